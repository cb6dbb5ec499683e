//! OPEN: the one direct channel of a pair, and new groups. A channel is made together with its first entries; it is
//! shown to nobody before they are committed.

use std::sync::{Arc, PoisonError};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, FrameType, ShardId, UserId,
    ids::direct_shard,
    limits::{CHANNELS_PER_USER_MAX, MEMBERS_PER_ENTRY_MAX, NAME_BYTES_MAX},
    link::Origin,
    wire::{self, open::Target},
};
use fanfare_storage::{
    StoreError,
    model::{Channel as Row, EntryKind, Settings},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::{
    channel::{Channel, Draft, Effect},
    context::Context,
    desk::Desk,
    event::{Block, Event, OpenAsk, OpenFound, OpenTarget, Touch},
    frames,
    load::{blocks_of, code_of},
    members::role,
    shard::{Shard, Slot},
    tail::Held,
};

/// The epoch of a channel that no restore has touched.
pub const FIRST_EPOCH: u32 = 1;
/// How long a made group is known by its OPEN without looking, milliseconds.
const GROUPS_KEPT_MS: u64 = 600_000;
/// Made groups that are known so, per shard.
const GROUPS_MAX: usize = 4_096;
/// How far from the OPEN's time a group it made can have been made, milliseconds.
const MADE_BEFORE_MS: u64 = 120_000;
/// OPENs that may wait for one look.
const WAITING_MAX: usize = 64;

/// What an OPEN is about: the same for each attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// A pair, lower first.
    Pair(UserId, UserId),
    /// A group, by who makes it and the OPEN's client message id.
    Group(UserId, [u8; 16]),
}

/// What a shard knows of a subject.
pub enum OpenState {
    /// Readers look for it.
    Looking {
        /// Those who wait.
        waiting: Vec<OpenAsk>,
        /// Blocks that came meanwhile.
        blocked: Vec<Block>,
    },
    /// It is being made.
    Making(ChannelId),
    /// It was made then.
    Made(ChannelId, u64),
}

/// By subject.
pub type Opens = HashMap<Subject, OpenState, RandomState>;

fn subject_of(ask: &OpenAsk) -> Subject {
    match &ask.target {
        OpenTarget::Direct(peer) => Subject::Pair(ask.user.min(*peer), ask.user.max(*peer)),
        OpenTarget::Group(_) => Subject::Group(ask.user, ask.client_message_id.0),
    }
}

fn shard_for(context: &Context, ask: &OpenAsk) -> ShardId {
    let shards = context.config.shards;
    match &ask.target {
        OpenTarget::Direct(peer) => direct_shard(ask.user, *peer, shards),
        OpenTarget::Group(_) => {
            let mut bytes = ask.client_message_id.0.to_vec();
            bytes.extend_from_slice(&ask.user.0.to_le_bytes());
            let mixed = crate::send::fingerprint(&bytes);
            ShardId((mixed % u64::from(shards)) as u16)
        }
    }
}

/// Checks an OPEN and sends it to the owner that makes or knows the channel. `candidates` are the user's channels.
///
/// # Errors
/// `BAD_FIELD`, `CHANNEL_FULL`, `WRONG_KIND`.
pub fn route(context: &Context, mut ask: OpenAsk) -> Result<(), Code> {
    let is_id = |user: UserId| !user.is_none() && user.0 >> 63 == 0;
    match &mut ask.target {
        OpenTarget::Direct(peer) if !is_id(*peer) || *peer == ask.user => return Err(Code::BAD_FIELD),
        OpenTarget::Direct(_) => {}
        OpenTarget::Group(group) => {
            let policies = (0..=2).contains(&group.history)
                && (0..=3).contains(&group.join)
                && (0..=2).contains(&group.posting);
            let members = group.members.iter().all(|user| is_id(UserId(*user)));
            if group.name.len() > NAME_BYTES_MAX || !policies || !members {
                return Err(Code::BAD_FIELD);
            }
            if group.members.len() > MEMBERS_PER_ENTRY_MAX {
                return Err(Code::BAD_FIELD);
            }
            if ask.candidates.len() >= CHANNELS_PER_USER_MAX {
                return Err(Code::CHANNEL_FULL);
            }
            group.members.sort_unstable();
            group.members.dedup();
            group.members.retain(|user| *user != ask.user.0);
        }
    }
    let shard = shard_for(context, &ask);
    let earliest = ask.client_message_id.time_ms().saturating_sub(MADE_BEFORE_MS);
    ask.candidates.retain(|channel| channel.shard() == shard && channel.time_ms() >= earliest);
    context.post(shard.0, Event::Open(Box::new(ask)));
    Ok(())
}

/// OPEN of a session, at its user's owner.
///
/// # Errors
/// What REFUSED is to say.
pub fn of_frame(
    context: &Context,
    origin: Origin,
    frame: &Frame,
    channels: impl Iterator<Item = ChannelId>,
) -> Result<(), Code> {
    let open: wire::Open = frame.decode()?;
    let id = ClientMessageId::from_wire(&open.client_message_id).ok_or(Code::BAD_FIELD)?;
    let now_ms = context.now_ms();
    if id.time_ms() > now_ms + fanfare_proto::limits::CLIENT_ID_AHEAD_MAX.as_millis() as u64 {
        return Err(Code::CLIENT_ID_AHEAD);
    }
    if id.time_ms() + (fanfare_proto::limits::CLIENT_ID_AGE_MAX.as_millis() as u64) < now_ms {
        return Err(Code::EXPIRED);
    }
    let target = match open.target.ok_or(Code::BAD_FIELD)? {
        Target::Direct(peer) => OpenTarget::Direct(UserId(peer)),
        Target::Group(group) => OpenTarget::Group(group),
    };
    let request = frame.routed().map_or(0, |header| header.seq);
    let candidates = channels.collect();
    let user = origin.user;
    let ask = OpenAsk {
        origin: Some(origin),
        request,
        user,
        client_message_id: id,
        target,
        candidates,
        reply: None,
    };
    route(context, ask)
}

impl Shard {
    /// An OPEN reached the owner of its channel.
    pub(crate) fn open(&mut self, ask: OpenAsk) {
        let subject = subject_of(&ask);
        match self.opens.get_mut(&subject) {
            Some(OpenState::Looking { waiting, .. }) if waiting.len() < WAITING_MAX => waiting.push(ask),
            Some(OpenState::Looking { .. }) => self.refuse_open(&ask, Code::RETRY_LATER),
            Some(OpenState::Made(channel, _)) => {
                let channel = *channel;
                self.answer_open(ask, channel);
            }
            Some(OpenState::Making(channel)) => {
                let channel = *channel;
                match self.channels.get_mut(&channel) {
                    Some(Slot::Ready(making)) => {
                        if let Some(ask) = making.also_opening(ask) {
                            self.refuse_open(&ask, Code::RETRY_LATER);
                        }
                    }
                    _ => self.refuse_open(&ask, Code::RETRY_LATER),
                }
            }
            None => self.look(subject, ask),
        }
    }

    fn look(&mut self, subject: Subject, ask: OpenAsk) {
        let undrained: Vec<_> =
            ask.candidates.iter().flat_map(|channel| self.desk.undrained_of(*channel)).collect();
        let asked = Box::new(ask.clone());
        let started = self.desk.context.read(self.desk.shard, move |context| {
            let found = look_for(context, &asked, &undrained);
            Event::OpenLooked(asked, found)
        });
        if started {
            self.opens.insert(subject, OpenState::Looking { waiting: vec![ask], blocked: Vec::new() });
        } else {
            self.refuse_open(&ask, Code::RETRY_LATER);
        }
    }

    /// One of a pair takes nothing from the other any more, or again: counts for a channel that is being made, which SQL
    /// does not have yet.
    pub(crate) fn blocked(&mut self, block: Block, other: UserId) {
        let user = block.user;
        match self.opens.get_mut(&Subject::Pair(user.min(other), user.max(other))) {
            Some(OpenState::Looking { blocked, .. }) => {
                match blocked.iter_mut().find(|one| one.user == user) {
                    Some(known) if known.order > block.order => {}
                    Some(known) => *known = block,
                    None => blocked.push(block),
                }
            }
            Some(OpenState::Making(channel)) => {
                if let Some(Slot::Ready(made)) = self.channels.get_mut(channel) {
                    made.set_blocked(block);
                }
            }
            Some(OpenState::Made(..)) | None => {}
        }
    }

    /// A reader has looked.
    pub(crate) fn open_looked(&mut self, ask: &OpenAsk, found: Result<OpenFound, Code>) {
        let subject = subject_of(ask);
        let Some(OpenState::Looking { mut waiting, blocked }) = self.opens.remove(&subject) else { return };
        match found {
            Err(code) => waiting.iter().for_each(|ask| self.refuse_open(ask, code)),
            Ok(OpenFound::Channel(channel)) => {
                if matches!(subject, Subject::Group(..)) {
                    self.opens.insert(subject, OpenState::Made(channel, self.desk.context.now_ms()));
                }
                waiting.into_iter().for_each(|ask| self.answer_open(ask, channel));
            }
            Ok(OpenFound::Nothing { blocks }) => {
                if self.desk.context.draining.load(std::sync::atomic::Ordering::Relaxed) {
                    return waiting.iter().for_each(|ask| self.refuse_open(ask, Code::RETRY_LATER));
                }
                if let Subject::Pair(low, _) = subject {
                    let takes_none = |user: UserId| {
                        let late = blocked.iter().find(|one| one.user == user).map(|one| one.stands);
                        late.unwrap_or(if user == low { blocks.0 } else { blocks.1 })
                    };
                    waiting.retain(|ask| {
                        let OpenTarget::Direct(peer) = &ask.target else { return true };
                        let is_blocked = takes_none(*peer);
                        if is_blocked {
                            self.refuse_open(ask, Code::BLOCKED);
                        }
                        !is_blocked
                    });
                    if waiting.is_empty() {
                        return;
                    }
                }
                let first = waiting.remove(0);
                let channel = self.make(first);
                if let Some(Slot::Ready(made)) = self.channels.get_mut(&channel) {
                    made.blocks = blocks;
                    blocked.iter().for_each(|block| made.set_blocked(*block));
                }
                self.opens.insert(subject, OpenState::Making(channel));
                for ask in waiting {
                    self.open(ask);
                }
            }
        }
    }

    /// Makes a channel; its first entries go with the next commit.
    fn make(&mut self, ask: OpenAsk) -> ChannelId {
        let now_ms = self.desk.context.now_ms();
        let channel = ChannelId(self.desk.ids.next(now_ms));
        let (kind, settings, pair, joins) = match &ask.target {
            OpenTarget::Direct(peer) => {
                let pair = (ask.user.min(*peer), ask.user.max(*peer));
                let kind = wire::ChannelKind::Direct;
                let settings = Settings { name: String::new(), history: 1, join: 2, posting: 1 };
                (kind, settings, pair, vec![(vec![pair.0, pair.1], role::MEMBER)])
            }
            OpenTarget::Group(group) => {
                let policy = |value: i32, default: u8| if value == 0 { default } else { value as u8 };
                let mut joins = vec![(vec![ask.user], role::OWNER)];
                if !group.members.is_empty() {
                    joins.push((group.members.iter().copied().map(UserId).collect(), role::MEMBER));
                }
                let settings = Settings {
                    name: group.name.clone(),
                    history: policy(group.history, 1),
                    join: policy(group.join, 2),
                    posting: policy(group.posting, 1),
                };
                (wire::ChannelKind::Group, settings, (UserId(0), UserId(0)), joins)
            }
        };
        let row = Row {
            channel,
            kind: kind as u8,
            name: settings.name,
            history: settings.history,
            join: settings.join,
            posting: settings.posting,
            pair,
            epoch: FIRST_EPOCH,
            epoch_start: 1,
            head: 0,
            ordinal: 0,
            message_id: Default::default(),
            chain: fanfare_storage::hash::CHAIN_START,
        };
        let drafts = joins
            .into_iter()
            .enumerate()
            .map(|(number, (users, role))| {
                let membership = wire::Membership {
                    change: wire::MembershipChange::Joined.into(),
                    users: users.iter().map(|user| user.0).collect(),
                    role: i32::from(role),
                    until_ms: 0,
                };
                let mut content = Vec::new();
                wire::entry::Content::Membership(membership).encode(&mut content);
                // The first entry carries the OPEN's id: by it a repeat finds the channel again.
                let client_message_id =
                    if number == 0 { ask.client_message_id.0.to_vec() } else { Vec::new() };
                Draft {
                    sender: ask.user,
                    client_message_id,
                    content,
                    kind: EntryKind::Membership,
                    target: 0,
                    opaque: false,
                    effect: Effect::Joined(users, role),
                    marks: Vec::new(),
                }
            })
            .collect();
        let made = Channel::of_open(row, ask, &self.desk);
        self.channels.insert(channel, Slot::Ready(Box::new(made)));
        self.first.push((channel, drafts));
        channel
    }

    /// A channel was made, or not.
    pub(crate) fn opened(&mut self, asks: Vec<OpenAsk>, made: Result<ChannelId, Code>) {
        if let Some(first) = asks.first() {
            let subject = subject_of(first);
            match made {
                Ok(channel) if matches!(subject, Subject::Group(..)) => {
                    self.opens.insert(subject, OpenState::Made(channel, self.desk.context.now_ms()));
                }
                _ => drop(self.opens.remove(&subject)),
            }
        }
        for ask in asks {
            match made {
                Ok(channel) => self.answer_open(ask, channel),
                Err(code) => self.refuse_open(&ask, code),
            }
        }
    }

    /// Forgets groups made long ago.
    pub(crate) fn sweep_opens(&mut self) {
        let now_ms = self.desk.context.now_ms();
        let is_many = self.opens.len() > GROUPS_MAX;
        self.opens.retain(|_, state| match state {
            OpenState::Made(_, made_ms) => !is_many && *made_ms + GROUPS_KEPT_MS > now_ms,
            _ => true,
        });
    }

    fn answer_open(&mut self, ask: OpenAsk, channel: ChannelId) {
        if let Some(origin) = ask.origin {
            self.touch(channel, Touch::Opened(origin, ask.request));
        }
        answer_people(&self.desk, &ask, Ok(channel));
    }

    fn refuse_open(&mut self, ask: &OpenAsk, code: Code) {
        if let Some(origin) = &ask.origin {
            let frame = frames::refused(FrameType::Open, ChannelId(0), ask.request, code);
            self.desk.gateways.reply(origin, frame);
        }
        answer_people(&self.desk, ask, Err(code));
    }
}

fn answer_people(desk: &Desk, ask: &OpenAsk, answer: Result<ChannelId, Code>) {
    if let Some(reply) = &ask.reply
        && let Some(reply) = reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        desk.answer(reply, answer);
    }
}

fn look_for(
    context: &Context,
    ask: &OpenAsk,
    undrained: &[Arc<fanfare_storage::model::Entry>],
) -> Result<OpenFound, Code> {
    let look = || -> Result<Result<OpenFound, Code>, StoreError> {
        match &ask.target {
            OpenTarget::Direct(peer) => {
                if let Some(channel) = context.metadata.direct(ask.user, *peer)? {
                    return Ok(Ok(OpenFound::Channel(channel)));
                }
                if context.metadata.user(*peer)?.is_none() {
                    return Ok(Err(Code::NO_SUCH_USER));
                }
                return Ok(Ok(OpenFound::Nothing {
                    blocks: blocks_of(&*context.metadata, ask.user, *peer)?,
                }));
            }
            OpenTarget::Group(group) => {
                for channel in &ask.candidates {
                    let remembered = undrained
                        .iter()
                        .find(|entry| entry.channel == *channel && entry.seq == 1)
                        .map(|entry| entry.frame.clone());
                    let frame = match remembered {
                        Some(frame) => Some(frame),
                        None => {
                            let stored = context.content.range(*channel, 1, 1, 1, 64 * 1024)?;
                            stored.into_iter().next().map(|stored| stored.frame)
                        }
                    };
                    let first = frame.as_ref().and_then(Held::of_stored);
                    if first.is_some_and(|(held, entry)| {
                        held.sender == ask.user && entry.client_message_id == ask.client_message_id.0[..]
                    }) {
                        return Ok(Ok(OpenFound::Channel(*channel)));
                    }
                }
                for user in &group.members {
                    if context.metadata.user(UserId(*user))?.is_none() {
                        return Ok(Err(Code::NO_SUCH_USER));
                    }
                }
            }
        }
        Ok(Ok(OpenFound::Nothing { blocks: (false, false) }))
    };
    look().unwrap_or_else(|error| {
        tracing::warn!(%error, "an open cannot be looked up");
        Err(code_of(&error))
    })
}
