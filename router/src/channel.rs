//! A channel as its owner holds it.

mod bundle;
mod cursor;
mod history;
mod journal;
mod outcome;
mod rights;
mod sending;
mod sequence;
mod serve;
mod tiers;

pub use cursor::read_receipt;
pub use outcome::Left;
pub use sequence::Draft;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fanfare_activity::Act;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, FrameType, MessageId, UserId, link::Origin, wire,
};
use fanfare_storage::model::{Channel as Row, Entry, Hash, MarkChange, MarkKind, Settings};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use crate::{
    audience::Audience,
    cursors::Cursors,
    desk::Desk,
    event::{Block, OpenAsk, Touch},
    frames,
    load::Loaded,
    marks::Marks,
    members::Members,
    repeats::{Key, Repeats},
    scores::Scores,
    send::Meaning,
    tail::Tail,
};
use journal::{Journal, Pace};
use tiers::Waits;

/// Recalls remembered beside the tail, so that a target that was looked up before one of them is not amended after it.
const RECALLED_MAX: usize = 4_096;

/// A send that is to be sequenced.
pub struct Waiting {
    key: Key,
    sender: UserId,
    client_message_id: ClientMessageId,
    meaning: Meaning,
    content: Vec<u8>,
    fingerprint: u64,
    /// Who sent the message it amends, once that is known.
    target_sender: Option<UserId>,
    /// The named users were found.
    users_checked: bool,
    /// The stores were searched for an earlier attempt.
    searched: bool,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.content.len() + 256
    }
}

/// What an entry changes beside the log.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// These users are members now.
    Joined(Vec<UserId>, u8),
    /// These are not any more.
    Gone(Vec<UserId>),
    /// These have that role now.
    Role(Vec<UserId>, u8),
    /// Name and policies.
    Settings(Settings),
    /// The message is taken back.
    Recalled(u64),
}

/// Whom a message is for above all.
#[derive(Debug)]
pub struct Named {
    /// It mentions them.
    users: Vec<UserId>,
    /// It mentions everybody.
    all: bool,
    /// It answers that one, or 0.
    reply_to: u64,
}

/// One entry of the commit in flight.
pub struct Sequenced {
    key: Option<Key>,
    client_message_id: Vec<u8>,
    entry: Arc<Entry>,
    effect: Effect,
    marks: Vec<MarkChange>,
    /// Whom it is for above all.
    named: Option<Box<Named>>,
    /// The send itself, for the seeded bug that tries it again.
    again: Option<Box<Waiting>>,
}

/// The commit in flight.
pub struct InFlight {
    items: Vec<Sequenced>,
    /// All frames side by side.
    frames: Bytes,
    ordinal: u64,
    chain: Hash,
    /// Its outcome is unknown: the channel is frozen until it is.
    is_frozen: bool,
}

/// See the module.
pub struct Channel {
    /// As committed.
    pub row: Row,
    /// As committed.
    pub members: Members,
    /// As committed.
    pub marks: Marks,
    /// In a direct channel: whether the first of the pair takes nothing from the second, and the other way round.
    pub blocks: (bool, bool),
    /// By which [`Block::order`] each was set.
    blocked: (u64, u64),
    /// In memory ahead of what is written.
    pub cursors: Cursors,
    /// Who listens.
    pub audience: Audience,
    /// How active members are.
    scores: Scores,
    /// Entries up to here were given to the fan-out: the head, but in the moment of a commit.
    heard: u64,
    waits: Waits,
    journal: Option<Box<Journal>>,
    pace: Pace,
    tail: Tail,
    repeats: Repeats,
    pending: VecDeque<Waiting>,
    parked: HashMap<Key, Waiting, RandomState>,
    pending_bytes: usize,
    in_flight: Option<InFlight>,
    recalled: HashSet<u64, RandomState>,
    /// Sends are in `Desk::dirty`.
    is_dirty: bool,
    cursors_due: bool,
    receipts_due: bool,
    receipts_shown: Option<Instant>,
    typed: HashMap<UserId, Instant, RandomState>,
    typing_window: (Option<Instant>, u32),
    /// From when on a message may mention everybody again, Unix milliseconds.
    mention_all_from_ms: u64,
    /// Made and not yet committed: the OPENs to be answered.
    opening: Option<Vec<OpenAsk>>,
    touched: Instant,
    /// Only a seeded bug moves it: places lost to failed commits.
    skipped: u64,
}

impl Channel {
    /// As read.
    pub fn of_loaded(loaded: Loaded, desk: &Desk) -> Self {
        let context = &desk.context;
        let max = context.config.recent_ids_max;
        let mut repeats = Repeats::new(loaded.complete_since_ms, Arc::clone(&context.recent_ids), max);
        for (key, fingerprint, place) in loaded.sends {
            repeats.learn(key, fingerprint, place);
        }
        let members = Members::of_rows(&loaded.members);
        let (row, tail) = (loaded.channel, loaded.tail);
        let is_member = |user| members.get(user).is_some();
        let scores =
            Scores::restore(&context.config.activity, loaded.activities, &tail, context.now_ms(), is_member);
        let mut cursors: Vec<_> = loaded.cursors;
        cursors.retain(|cursor| members.get(cursor.user).is_some());
        for cursor in &mut cursors {
            cursor.delivered = cursor.delivered.min(row.head);
            cursor.read = cursor.read.min(row.head);
            cursor.read_ordinal = cursor.read_ordinal.min(row.ordinal);
        }
        context.tail_bytes.fetch_add(tail.bytes(), std::sync::atomic::Ordering::Relaxed);
        let mut channel = Self::new(row, members, Cursors::of_rows(cursors), tail, repeats);
        channel.marks = Marks::of_rows(&loaded.marks);
        channel.blocks = loaded.blocks;
        channel.scores = scores;
        channel
    }

    /// Not yet committed.
    pub fn of_open(row: Row, open: OpenAsk, desk: &Desk) -> Self {
        let max = desk.context.config.recent_ids_max;
        let repeats = Repeats::new(0, Arc::clone(&desk.context.recent_ids), max);
        let mut channel = Self::new(row, Members::default(), Cursors::default(), Tail::default(), repeats);
        channel.opening = Some(vec![open]);
        channel
    }

    fn new(row: Row, members: Members, cursors: Cursors, tail: Tail, repeats: Repeats) -> Self {
        Self {
            heard: row.head,
            scores: Scores::default(),
            waits: Waits::default(),
            journal: None,
            pace: Pace::default(),
            row,
            members,
            marks: Marks::default(),
            blocks: (false, false),
            blocked: (0, 0),
            cursors,
            audience: Audience::default(),
            tail,
            repeats,
            pending: VecDeque::new(),
            parked: HashMap::default(),
            pending_bytes: 0,
            in_flight: None,
            recalled: HashSet::default(),
            is_dirty: false,
            cursors_due: false,
            receipts_due: false,
            receipts_shown: None,
            typed: HashMap::default(),
            typing_window: (None, 0),
            mention_all_from_ms: 0,
            opening: None,
            touched: Instant::now(),
            skipped: 0,
        }
    }

    /// Its id.
    pub fn id(&self) -> ChannelId {
        self.row.channel
    }

    /// Made and not yet committed: nobody is shown it.
    pub fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// A further OPEN of the same channel waits for its commit.
    pub fn also_opening(&mut self, open: OpenAsk) -> Option<OpenAsk> {
        match &mut self.opening {
            Some(opening) if opening.len() < 64 => {
                opening.push(open);
                None
            }
            _ => Some(open),
        }
    }

    /// Whether anything is under way.
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some() || !self.pending.is_empty() || !self.parked.is_empty()
    }

    /// Whether nobody needs it in memory.
    pub fn is_idle(&self, now: Instant, desk: &Desk) -> bool {
        !self.is_busy()
            && self.audience.is_empty()
            && !self.cursors_due
            && !self.receipts_due
            && !self.cursors.is_dirty()
            && !self.scores.is_dirty()
            && self.waits.held.is_none()
            && now.duration_since(self.touched) >= desk.context.config.idle
            && !desk.undrained.contains_key(&self.id())
    }

    /// Forgets what is old.
    pub fn sweep(&mut self, now: Instant, desk: &Desk) {
        self.repeats.expire(desk.context.now_ms());
        let is_quiet = now.duration_since(self.touched) >= desk.context.config.tail_kept;
        if is_quiet && !self.is_busy() && !desk.undrained.contains_key(&self.id()) {
            let dropped = self.tail.rest(self.members.len());
            desk.context.tail_bytes.fetch_sub(dropped, std::sync::atomic::Ordering::Relaxed);
        }
        // What a burst made room for goes back when it is over.
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
        if self.parked.is_empty() {
            self.parked = HashMap::default();
        }
        self.forget_journal(desk.context.now_ms());
        self.typed.retain(|_, typed| now.duration_since(*typed) < serve::TYPING_EVERY);
    }

    /// It goes: counts its memory out.
    pub fn put_away(&mut self, desk: &Desk) {
        desk.context.tail_bytes.fetch_sub(self.tail.bytes(), std::sync::atomic::Ordering::Relaxed);
        self.tail.clear();
    }

    /// Anything but a send's own steps.
    pub fn touch(&mut self, desk: &mut Desk, touch: Touch) {
        self.touched = Instant::now();
        match touch {
            Touch::Frame(origin, frame) => self.frame(desk, origin, &frame),
            Touch::Head { origin, sync } => self.tell_head(desk, origin, sync),
            Touch::Subscribe(subscribe) => self.subscribe(desk, subscribe),
            Touch::Unsubscribe(origin) => {
                if self.audience.remove(&origin) {
                    desk.gateways.remove(self.id(), origin.gateway, origin.handle);
                }
            }
            Touch::Shows(origin, shown) => self.shows(desk, &origin, shown),
            Touch::Tapped(user) => self.looked(desk, user, Act::Tap),
            Touch::Replied(user) => user.into_iter().for_each(|user| self.name(desk, user)),
            Touch::Delivered(user, seq) => self.delivered(desk, user, seq),
            Touch::Opened(origin, request) => self.answer_open(desk, &origin, request),
            Touch::Snapshot(reply) => drop(reply.send(Some(self.snapshot(desk)))),
            Touch::Marks(user, reply) => {
                let role = self.members.get(user).map_or(0, |standing| standing.role);
                let may_see = role >= crate::members::role::ADMIN;
                let marks = if may_see { self.marks.list(desk.context.now_ms()) } else { Vec::new() };
                let _ = reply.send(Some((role, marks)));
            }
            Touch::Describe(user, reply) => {
                drop(reply.send(Some(self.describe(user, desk.context.now_ms()))))
            }
            Touch::Trace(seq, users, reply) => drop(reply.send(self.trace(seq, &users))),
            Touch::View(ask) => {
                let _ = ask.reply.send(Some(self.view(desk, &ask.who, &ask.frames)));
            }
            Touch::Blocked { block, reply } => {
                self.set_blocked(block);
                let _ = reply.send(());
            }
        }
    }

    fn frame(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        match frame.frame_type() {
            FrameType::Send => self.send(desk, origin, frame),
            FrameType::Fetch => self.fetch(desk, origin, frame),
            FrameType::Receipt => self.receipt(desk, origin, frame),
            FrameType::Counts => self.count(desk, origin, frame),
            FrameType::Typing => self.typing(desk, origin, frame),
            other => desk.gateways.reply(&origin, frames::failed(other, Code::NOT_SERVED)),
        }
    }

    /// The channel as it stands for a user, served from `position`.
    pub fn state_for(&self, user: UserId, position: u64, now_ms: u64) -> wire::ChannelState {
        let standing = self.members.get(user);
        let cursor = self.cursors.get(user);
        let pair = self.row.pair;
        let peer = if pair.0 == user { pair.1 } else { pair.0 };
        let muted = self.marks.get(user, MarkKind::Muted, now_ms);
        wire::ChannelState {
            channel: self.id().0,
            kind: i32::from(self.row.kind),
            name: self.row.name.clone(),
            role: standing.map_or(0, |standing| i32::from(standing.role)),
            epoch: self.row.epoch,
            epoch_start: self.row.epoch_start,
            head: self.row.head,
            ordinal: self.row.ordinal,
            position,
            delivered: cursor.delivered,
            read: cursor.read,
            read_ordinal: cursor.read_ordinal,
            visible_from: standing.map_or(0, |standing| standing.visible_from),
            members: self.members.len() as u32,
            peer: if self.is_direct() { peer.0 } else { 0 },
            history: i32::from(self.row.history),
            join: i32::from(self.row.join),
            active_ms: if self.row.head == 0 { 0 } else { self.row.message_id.time_ms() },
            posting: i32::from(self.row.posting),
            muted: muted.is_some(),
            muted_until_ms: muted.map_or(0, |mark| mark.until_ms),
            invited: false,
        }
    }

    fn is_direct(&self) -> bool {
        i32::from(self.row.kind) == wire::ChannelKind::Direct as i32
    }

    /// One of the pair takes nothing from the other any more, or again.
    pub fn set_blocked(&mut self, block: Block) {
        let is_low = block.user == self.row.pair.0;
        let (stands, order) = if is_low {
            (&mut self.blocks.0, &mut self.blocked.0)
        } else {
            (&mut self.blocks.1, &mut self.blocked.1)
        };
        if block.order > *order {
            (*stands, *order) = (block.stands, block.order);
        }
    }

    /// Whether the other one of the pair takes nothing from this user.
    fn is_blocked(&self, user: UserId) -> bool {
        if user == self.row.pair.0 { self.blocks.1 } else { self.blocks.0 }
    }

    /// The frame of that entry, where the tail has it.
    pub fn tail_frame(&self, seq: u64) -> Option<Bytes> {
        self.tail.get(seq).map(|held| held.frame.clone())
    }

    fn head_id(&self) -> MessageId {
        self.row.message_id
    }
}
