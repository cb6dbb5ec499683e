//! A shard: it owns its channels and users, and its worker runs it. No locks, no waiting: what takes time runs elsewhere and
//! comes back as an event.

use std::{collections::VecDeque, time::Duration};

use fanfare_proto::{ChannelId, Code, FrameType, UserId, frame, link::Up, wire};
use fanfare_storage::model::{DevicePosition, ListChange, OutboxRow, ShardCommit, User as Row};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tokio::time::Instant;

use crate::{
    admin::{Hot, ShardCounts},
    audience::Audience,
    channel::{Channel, Draft, Left, read_receipt},
    committer::{BYTES_PER_COMMIT_MAX, ENTRIES_PER_COMMIT_MAX, Unit},
    desk::{Desk, Due},
    event::{AdminAsk, Event, Touch, UnitOutcome, Word, Written},
    frames, load, meter, opens,
    opens::Opens,
    out::Out,
    send,
    user::{OpenSession, User},
};

/// Events that may wait for one channel or user to be loaded.
const WAITING_MAX: usize = 1_024;
/// Of sessions that come back, in the same place: all of a large group may at once, and nobody may come again and again while a store is away.
const RETURNS_WAITING_MAX: usize = 262_144;
/// Between two looks at what is idle.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long sends wait before the commit queue is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// A channel's place in the shard.
pub enum Slot {
    /// Being read; what waits for it. `audience` is kept while a channel is read again.
    Loading { waiting: VecDeque<Touch>, audience: Option<Box<(Audience, u64)>> },
    /// Served.
    Ready(Box<Channel>),
}

/// What waits for a user to be read.
enum UserTouch {
    Open(OpenSession),
    Close(fanfare_proto::link::Origin),
    Channels(tokio::sync::oneshot::Sender<Vec<ChannelId>>),
    /// The device's generation was raised.
    DeviceRevoked(fanfare_proto::DeviceId, u32, tokio::sync::oneshot::Sender<usize>),
    /// The row changed; the sessions end with this error.
    Revoked(Row, Code, tokio::sync::oneshot::Sender<Vec<fanfare_proto::DeviceId>>),
}

enum UserSlot {
    #[expect(clippy::box_collection, reason = "8 bytes in the slot of a user that is there")]
    Loading(Box<VecDeque<UserTouch>>),
    Ready(Box<User>),
}

/// See the module.
pub struct Shard {
    pub(crate) desk: Desk,
    pub(crate) channels: HashMap<ChannelId, Slot, RandomState>,
    users: HashMap<UserId, UserSlot, RandomState>,
    /// Changes of users' lists whose rows are not drained.
    overlay: HashMap<UserId, Vec<(ListChange, OutboxRow)>, RandomState>,
    pub(crate) opens: Opens,
    /// Channels to be made with the next commit.
    pub(crate) first: Vec<(ChannelId, Vec<Draft>)>,
    tickets: HashMap<u64, Vec<ChannelId>, RandomState>,
    next_ticket: u64,
    stopping: bool,
}

impl Shard {
    /// With what was found in the outbox already on its desk.
    pub fn new(desk: Desk, overlay: HashMap<UserId, Vec<(ListChange, OutboxRow)>, RandomState>) -> Self {
        Self {
            desk,
            channels: HashMap::default(),
            users: HashMap::default(),
            overlay,
            opens: Opens::default(),
            first: Vec::new(),
            tickets: HashMap::default(),
            next_ticket: 1,
            stopping: false,
        }
    }

    /// The first look at what is idle.
    pub fn sweep_at(&mut self, time: Instant) {
        self.desk.at(time, Due::Sweep);
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Instant {
        self.desk.next_due().unwrap_or_else(|| Instant::now() + SWEEP_EVERY)
    }

    /// Does what is due.
    pub fn timers(&mut self, now: Instant) {
        while let Some(due) = self.desk.take_due(now) {
            self.timer(due, now);
        }
    }

    /// Told to stop, and nothing is in flight.
    pub fn is_done(&self) -> bool {
        self.stopping && self.is_quiet()
    }

    /// What it has for others.
    pub fn out(&self) -> &Out {
        &self.desk.gateways.out
    }

    /// One event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Up(up) => self.up(up),
            Event::Attach(gateway, downlink) => self.desk.gateways.attach(gateway, downlink),
            Event::Detach(gateway) => self.detach(gateway),
            Event::Touch(channel, touch) => self.touch(channel, touch),
            Event::Loaded(channel, loaded) => self.loaded(channel, loaded),
            Event::UserLoaded(user, loaded) => self.user_loaded(user, loaded),
            Event::PositionsLoaded(user, device, positions) => self.positions_loaded(user, device, positions),
            Event::Checked { channel, key, check } => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.checked(&mut self.desk, &key, check);
                }
            }
            Event::Committed { ticket, outcome } => self.committed(ticket, &outcome),
            Event::Drained(rows) => self.desk.drained(&rows),
            Event::CursorsWritten(Written::Channel(channel, users)) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.cursors_written(&mut self.desk, users);
                }
            }
            Event::CursorsWritten(Written::Device(user, device, number)) => {
                if let Some(UserSlot::Ready(user)) = self.users.get_mut(&user) {
                    user.confirmed(&mut self.desk, device, number);
                }
            }
            Event::Answer { origin, replies } => {
                for frames in replies {
                    self.desk.gateways.reply(&origin, frames);
                }
            }
            Event::Word(user, word) => {
                if let Some(UserSlot::Ready(user)) = self.users.get_mut(&user) {
                    user.word(&mut self.desk, word);
                }
            }
            Event::Tell(users, frame) => {
                for user in users {
                    if let Some(UserSlot::Ready(user)) = self.users.get(&user) {
                        user.tell(&mut self.desk, &frame);
                    }
                }
            }
            Event::Listed(changes) => self.listed(changes),
            Event::Open(ask) => self.open(*ask),
            Event::OpenLooked(ask, found) => self.open_looked(&ask, found),
            Event::Admin(ask) => self.admin(ask),
            Event::Stop => self.stopping = true,
        }
    }

    fn up(&mut self, up: Up) {
        match up {
            Up::Open { origin, proof, full, device_name } => {
                let open = OpenSession { origin, proof, full, device_name };
                self.touch_user(origin.user, UserTouch::Open(open));
            }
            Up::Close { origin } => match self.users.get_mut(&origin.user) {
                Some(UserSlot::Ready(user)) => user.close(&mut self.desk, &origin),
                Some(UserSlot::Loading(waiting)) => waiting.push_back(UserTouch::Close(origin)),
                None => {}
            },
            Up::Credit { gateway, bytes, .. } => {
                self.desk.gateways.refill(gateway, bytes);
                while let Some(channel) = self.desk.gateways.next_behind(gateway) {
                    if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                        channel.catch_up(&mut self.desk, gateway);
                    }
                }
            }
            Up::Frame { origin, frame } => match (frame.frame_type(), frame.routed()) {
                (FrameType::Open, _) => self.open_frame(origin, &frame),
                (_, Some(header)) => self.touch(header.channel, Touch::Frame(origin, frame)),
                (_, None) => match self.users.get_mut(&origin.user) {
                    Some(UserSlot::Ready(user)) => user.frame(&mut self.desk, origin, &frame),
                    _ => {
                        let error = frames::failed(frame.frame_type(), Code::RETRY_LATER);
                        self.desk.gateways.reply(&origin, error);
                    }
                },
            },
        }
    }

    fn open_frame(&mut self, origin: fanfare_proto::link::Origin, frame: &frame::Frame) {
        let opened = match self.users.get(&origin.user) {
            Some(UserSlot::Ready(user)) => {
                opens::of_frame(&self.desk.context, origin, frame, user.channels())
            }
            _ => Err(Code::RETRY_LATER),
        };
        if let Err(code) = opened {
            let request = frame.routed().map_or(0, |header| header.seq);
            let refused = frames::refused(FrameType::Open, ChannelId(0), request, code);
            self.desk.gateways.reply(&origin, refused);
        }
    }

    fn detach(&mut self, gateway: fanfare_proto::link::GatewayId) {
        self.desk.gateways.detach(gateway);
        for slot in self.users.values_mut() {
            match slot {
                UserSlot::Ready(user) => user.close_at(&mut self.desk, gateway),
                UserSlot::Loading(waiting) => waiting.retain(
                    |touch| !matches!(touch, UserTouch::Open(open) if open.origin.gateway == gateway),
                ),
            }
        }
        for slot in self.channels.values_mut() {
            match slot {
                Slot::Ready(channel) => channel.audience.remove_gateway(gateway),
                Slot::Loading { audience: Some(kept), .. } => kept.0.remove_gateway(gateway),
                Slot::Loading { .. } => {}
            }
        }
    }

    /// Something for a channel, which is loaded first where it is not.
    pub(crate) fn touch(&mut self, channel: ChannelId, touch: Touch) {
        match self.channels.get_mut(&channel) {
            Some(Slot::Ready(ready)) => ready.touch(&mut self.desk, touch),
            Some(Slot::Loading { waiting, .. }) if waiting.len() < WAITING_MAX => waiting.push_back(touch),
            Some(Slot::Loading { waiting, .. })
                if matches!(touch, Touch::Head { .. } | Touch::Subscribe(_))
                    && waiting.len() < RETURNS_WAITING_MAX =>
            {
                waiting.push_back(touch);
            }
            // An end has a beginning that found room.
            Some(Slot::Loading { waiting, .. }) if matches!(touch, Touch::Unsubscribe(_)) => {
                waiting.push_back(touch)
            }
            Some(Slot::Loading { .. }) => refuse(&mut self.desk, channel, touch, Code::RETRY_LATER),
            // What only matters to a channel in memory does not load it.
            None if matches!(touch, Touch::Unsubscribe(_) | Touch::Shows(..) | Touch::Tapped(_)) => {}
            None => {
                let slot = Slot::Loading { waiting: VecDeque::from([touch]), audience: None };
                self.channels.insert(channel, slot);
                self.load(channel);
            }
        }
    }

    fn load(&mut self, channel: ChannelId) {
        let undrained = self.desk.undrained_of(channel);
        let started = self.desk.context.read(self.desk.shard, move |context| {
            let now_ms = context.now_ms();
            let loaded = load::channel(&*context.metadata, &*context.content, channel, &undrained, now_ms);
            Event::Loaded(channel, loaded)
        });
        if !started {
            self.loaded(channel, Err(Code::RETRY_LATER));
        }
    }

    fn loaded(&mut self, id: ChannelId, loaded: Result<Option<Box<load::Loaded>>, Code>) {
        let Some(Slot::Loading { waiting, audience }) = self.channels.remove(&id) else { return };
        let code = match loaded {
            Ok(Some(loaded)) => {
                let mut channel = Channel::of_loaded(*loaded, &self.desk);
                if let Some(kept) = audience {
                    let (audience, sent) = *kept;
                    channel.resume_audience(&mut self.desk, audience, sent);
                }
                for touch in waiting {
                    channel.touch(&mut self.desk, touch);
                }
                self.channels.insert(id, Slot::Ready(Box::new(channel)));
                return;
            }
            Ok(None) => Code::NOT_A_MEMBER,
            Err(code) => code,
        };
        // Of sessions that are served it is known who left and what they show: that counts when the channel can be read.
        let is_kept =
            |touch: &Touch| audience.is_some() && matches!(touch, Touch::Unsubscribe(_) | Touch::Shows(..));
        let (waiting, refused): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(is_kept);
        for touch in refused {
            refuse(&mut self.desk, id, touch, code);
        }
        if audience.is_some() {
            // Sessions are served by it: it is read again until it can be.
            self.channels.insert(id, Slot::Loading { waiting, audience });
            self.desk.at(Instant::now() + Duration::from_millis(500), Due::Reload(id));
        }
    }

    fn touch_user(&mut self, user: UserId, touch: UserTouch) {
        match self.users.get_mut(&user) {
            Some(UserSlot::Ready(_)) => self.ready_user(user, touch),
            Some(UserSlot::Loading(waiting)) if waiting.len() < WAITING_MAX => waiting.push_back(touch),
            Some(UserSlot::Loading(_)) => self.refuse_user(touch, Code::RETRY_LATER),
            None => {
                let device = match &touch {
                    UserTouch::Open(open) => Some(open.origin.device),
                    _ => None,
                };
                self.users.insert(user, UserSlot::Loading(Box::new(VecDeque::from([touch]))));
                let started = self.desk.context.read_briefly(self.desk.shard, move |context| {
                    Event::UserLoaded(user, load::user(&*context.metadata, &*context.lists, user, device))
                });
                if !started {
                    self.user_loaded(user, Err(Code::RETRY_LATER));
                }
            }
        }
    }

    fn ready_user(&mut self, id: UserId, touch: UserTouch) {
        let Some(UserSlot::Ready(user)) = self.users.get_mut(&id) else { return };
        match touch {
            UserTouch::Close(origin) => user.close(&mut self.desk, &origin),
            UserTouch::Channels(reply) => drop(reply.send(user.channels().collect())),
            UserTouch::DeviceRevoked(device, generation, reply) => {
                let ended = user.revoked(&mut self.desk, device, generation);
                self.desk.answer(reply, ended);
            }
            UserTouch::Revoked(row, code, reply) => {
                let devices = user.row_changed(&mut self.desk, row, code);
                self.desk.answer(reply, devices);
            }
            UserTouch::Open(open) if user.has_device(open.origin.device) => user.open(&mut self.desk, open),
            UserTouch::Open(open) => {
                let device = open.origin.device;
                user.wait_for_device(open);
                let started = self.desk.context.read_briefly(self.desk.shard, move |context| {
                    let positions = context.metadata.positions(id, device).map_err(|error| {
                        tracing::warn!(user = %id, %error, "positions cannot be read");
                        load::code_of(&error)
                    });
                    Event::PositionsLoaded(id, device, positions)
                });
                if !started {
                    self.positions_loaded(id, device, Err(Code::RETRY_LATER));
                }
            }
        }
    }

    fn positions_loaded(
        &mut self,
        id: UserId,
        device: fanfare_proto::DeviceId,
        positions: Result<Vec<DevicePosition>, Code>,
    ) {
        let Some(UserSlot::Ready(user)) = self.users.get_mut(&id) else { return };
        let (ready, failed) = user.device_read(device, positions);
        for open in ready {
            match failed {
                Some(code) => self.refuse_user(UserTouch::Open(open), code),
                None => self.ready_user(id, UserTouch::Open(open)),
            }
        }
    }

    fn user_loaded(&mut self, id: UserId, loaded: Result<Option<Box<load::LoadedUser>>, Code>) {
        let Some(UserSlot::Loading(waiting)) = self.users.remove(&id) else { return };
        let code = match loaded {
            Ok(Some(loaded)) => {
                let changes = self.overlay.get(&id).into_iter().flatten().map(|(change, _)| change);
                let user = User::of_loaded(*loaded, changes);
                self.users.insert(id, UserSlot::Ready(Box::new(user)));
                for touch in *waiting {
                    self.ready_user(id, touch);
                }
                return;
            }
            Ok(None) => Code::UNKNOWN_USER,
            Err(code) => code,
        };
        for touch in *waiting {
            self.refuse_user(touch, code);
        }
    }

    fn refuse_user(&mut self, touch: UserTouch, code: Code) {
        match touch {
            UserTouch::Open(OpenSession { origin, .. }) => {
                let opened = fanfare_proto::link::Down::Opened { handle: origin.handle, outcome: Err(code) };
                self.desk.gateways.tell(&origin, opened);
            }
            UserTouch::Close(_) => {}
            UserTouch::Channels(reply) => drop(reply.send(Vec::new())),
            UserTouch::DeviceRevoked(_, _, reply) => drop(reply.send(0)),
            UserTouch::Revoked(_, _, reply) => drop(reply.send(Vec::new())),
        }
    }

    /// Something for a user where it is in memory or on its way there: what is read anew from SQL knows it already.
    fn touch_known_user(&mut self, user: UserId, touch: UserTouch) {
        match self.users.get_mut(&user) {
            Some(UserSlot::Ready(_)) => self.ready_user(user, touch),
            // What was read may be older than the change.
            Some(UserSlot::Loading(waiting)) => waiting.push_back(touch),
            None => self.refuse_user(touch, Code::UNKNOWN_USER),
        }
    }

    fn listed(&mut self, changes: Vec<(ListChange, OutboxRow)>) {
        for (change, row) in changes {
            self.overlay.entry(change.user).or_default().push((change, row));
            if let Some(UserSlot::Ready(user)) = self.users.get_mut(&change.user) {
                user.listed(&self.desk, &change);
            }
        }
    }

    fn committed(&mut self, ticket: u64, outcome: &UnitOutcome) {
        let channels = match outcome {
            UnitOutcome::Unknown => self.tickets.get(&ticket).cloned(),
            UnitOutcome::Done(_) | UnitOutcome::Failed { .. } => self.tickets.remove(&ticket),
        };
        for id in channels.unwrap_or_default() {
            let Some(Slot::Ready(channel)) = self.channels.get_mut(&id) else { continue };
            match channel.committed(&mut self.desk, outcome) {
                Left::Standing => {}
                Left::Made(asks) => self.opened(asks, Ok(id)),
                Left::NotMade(asks, code) => {
                    self.channels.remove(&id);
                    self.opened(asks, Err(code));
                }
                Left::Reload => {
                    channel.fail_waiting(&mut self.desk, Code::RETRY_LATER);
                    channel.release(&mut self.desk);
                    channel.put_away(&self.desk);
                    let audience = std::mem::take(&mut channel.audience);
                    let sent = channel.row.head;
                    let audience = Some(Box::new((audience, sent)));
                    self.channels.insert(id, Slot::Loading { waiting: VecDeque::new(), audience });
                    self.load(id);
                }
            }
        }
    }

    /// Gives what has gathered in this pass for the committer.
    pub fn sequence(&mut self, units: &mut Vec<Unit>) {
        if self.desk.dirty.is_empty() && self.first.is_empty() {
            return;
        }
        if !self.desk.context.commits.has_room() {
            return self.desk.at(Instant::now() + AGAIN_AFTER, Due::Sequence);
        }
        let (mut commit, mut channels, mut counted, mut bytes) = (self.new_commit(), Vec::new(), 0, 0);
        for (id, drafts) in std::mem::take(&mut self.first) {
            if let Some(Slot::Ready(channel)) = self.channels.get_mut(&id) {
                channel.sequence_first(&mut self.desk, &mut commit, drafts);
                channels.push(id);
            }
        }
        for id in std::mem::take(&mut self.desk.dirty) {
            if let Some(Slot::Ready(channel)) = self.channels.get_mut(&id)
                && channel.sequence(&mut self.desk, &mut commit)
            {
                channels.push(id);
            }
            bytes += commit.entries[counted..].iter().map(|entry| entry.frame.len()).sum::<usize>();
            counted = commit.entries.len();
            if commit.entries.len() >= ENTRIES_PER_COMMIT_MAX / 2 || bytes >= BYTES_PER_COMMIT_MAX / 2 {
                let full = std::mem::replace(&mut commit, self.new_commit());
                self.hand_over(full, std::mem::take(&mut channels), units);
                (counted, bytes) = (0, 0);
            }
        }
        self.hand_over(commit, channels, units);
    }

    fn new_commit(&self) -> ShardCommit {
        ShardCommit {
            shard: self.desk.shard,
            term: self.desk.term,
            last_id: self.desk.ids.last(),
            ..Default::default()
        }
    }

    fn hand_over(&mut self, commit: ShardCommit, channels: Vec<ChannelId>, units: &mut Vec<Unit>) {
        if channels.is_empty() {
            return;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, channels);
        let bytes = commit.entries.iter().map(|entry| entry.frame.len()).sum();
        units.push(Unit { ticket, commit, bytes });
    }

    fn timer(&mut self, due: Due, now: Instant) {
        match due {
            Due::Cursors(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.write_cursors(&mut self.desk);
                }
            }
            Due::Receipts(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.show_receipts(&mut self.desk);
                }
            }
            Due::Warm(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.warm_due(&mut self.desk);
                }
            }
            Due::Tell(channel, tier) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.passive_due(&mut self.desk, tier);
                }
            }
            Due::Held(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.release(&mut self.desk);
                }
            }
            Due::Look(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.look(&mut self.desk);
                }
            }
            Due::Scores(channel) => {
                if let Some(Slot::Ready(channel)) = self.channels.get_mut(&channel) {
                    channel.write_scores(&mut self.desk);
                }
            }
            Due::Positions(user) => {
                if let Some(UserSlot::Ready(user)) = self.users.get_mut(&user) {
                    user.write_positions(&mut self.desk);
                }
            }
            Due::Reload(channel) => self.load(channel),
            // What waits is sequenced at the end of this pass.
            Due::Sequence => {}
            Due::Sweep => {
                self.sweep(now);
                self.desk.at(now + SWEEP_EVERY, Due::Sweep);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        let desk = &self.desk;
        self.channels.retain(|_, slot| match slot {
            Slot::Loading { .. } => true,
            Slot::Ready(channel) if channel.is_idle(now, desk) => {
                channel.put_away(desk);
                false
            }
            Slot::Ready(channel) => {
                channel.sweep(now, desk);
                true
            }
        });
        self.users.retain(|_, slot| !matches!(slot, UserSlot::Ready(user) if user.is_idle()));
        let users = &self.users;
        self.overlay.retain(|user, changes| {
            // A user that is being read may have been read before a change was drained.
            if !matches!(users.get(user), Some(UserSlot::Loading(_))) {
                changes.retain(|(_, row)| desk.context.is_undrained(*row));
            }
            !changes.is_empty()
        });
        self.sweep_opens();
    }

    fn is_quiet(&self) -> bool {
        self.tickets.is_empty()
            && self.first.is_empty()
            && self.desk.dirty.is_empty()
            && !self.channels.values().any(|slot| matches!(slot, Slot::Ready(channel) if channel.is_busy()))
    }

    /// The last writes: cursors and positions.
    pub fn flush(&mut self) {
        for slot in self.users.values_mut() {
            if let UserSlot::Ready(user) = slot {
                user.write_positions(&mut self.desk);
            }
        }
        for slot in self.channels.values_mut() {
            if let Slot::Ready(channel) = slot {
                channel.write_cursors(&mut self.desk);
                channel.write_scores(&mut self.desk);
            }
        }
    }

    fn admin(&mut self, ask: AdminAsk) {
        match ask {
            AdminAsk::NewId(reply) => {
                let now_ms = self.desk.context.now_ms();
                let _ = reply.send(self.desk.ids.next(now_ms));
            }
            AdminAsk::Sessions(user, reply) => {
                let sessions = match self.users.get(&user) {
                    Some(UserSlot::Ready(user)) => user.summaries(),
                    _ => Vec::new(),
                };
                let _ = reply.send(sessions);
            }
            AdminAsk::Channels(user, reply) => self.touch_user(user, UserTouch::Channels(reply)),
            AdminAsk::Kick(user, device, code, reply) => {
                let kicked = match self.users.get_mut(&user) {
                    Some(UserSlot::Ready(user)) => user.kick(&mut self.desk, device, code),
                    _ => 0,
                };
                self.desk.answer(reply, kicked);
            }
            AdminAsk::Revoked(user, device, generation, reply) => {
                self.touch_known_user(user, UserTouch::DeviceRevoked(device, generation, reply));
            }
            AdminAsk::UserRevoked(row, code, reply) => {
                self.touch_known_user(row.user, UserTouch::Revoked(row, code, reply));
            }
            AdminAsk::Blocked(block, other, reply) => {
                self.blocked(block, other);
                let _ = reply.send(());
            }
            AdminAsk::Forget(user) => {
                if matches!(self.users.get(&user), Some(UserSlot::Ready(ready)) if ready.is_idle()) {
                    self.users.remove(&user);
                }
            }
            AdminAsk::Counts(reply) => drop(reply.send(self.counts())),
            AdminAsk::Hottest(max, reply) => drop(reply.send(self.hottest(max))),
            AdminAsk::Undrained(reply) => {
                let all = self.desk.undrained.values().flatten();
                let _ = reply.send(all.map(|(row, entry)| (*row, entry.channel, entry.seq)).collect());
            }
        }
    }

    fn hottest(&mut self, max: usize) -> Vec<Hot> {
        let now_ms = self.desk.context.now_ms();
        let pace = |(id, slot): (&ChannelId, &mut Slot)| match slot {
            Slot::Ready(channel) => {
                Some((channel.entries_per_min(now_ms), *id)).filter(|(pace, _)| *pace > 0)
            }
            Slot::Loading { .. } => None,
        };
        let mut busy: Vec<_> = self.channels.iter_mut().filter_map(pace).collect();
        busy.sort_unstable_by_key(|(pace, _)| std::cmp::Reverse(*pace));
        let hot = |(_, id)| match self.channels.get_mut(&id)? {
            Slot::Ready(channel) => Some(channel.hot(now_ms)),
            Slot::Loading { .. } => None,
        };
        busy.into_iter().take(max).filter_map(hot).collect()
    }

    fn counts(&self) -> ShardCounts {
        let mut counts = ShardCounts { users: self.users.len(), ..Default::default() };
        for slot in self.channels.values() {
            if let Slot::Ready(channel) = slot {
                counts.channels += 1;
                counts.listeners += channel.audience.len();
            }
        }
        for slot in self.users.values() {
            if let UserSlot::Ready(user) = slot {
                counts.sessions += user.sessions_len();
            }
        }
        counts.stretched = self.desk.strain.steps(Instant::now());
        counts.undrained = self.desk.undrained.values().map(VecDeque::len).sum();
        counts
    }
}

/// Answers what cannot be done because its channel is not there, or not now.
fn refuse(desk: &mut Desk, channel: ChannelId, touch: Touch, code: Code) {
    let served = |code: Code| if code == Code::NOT_A_MEMBER { Ok(None) } else { Err(code) };
    match touch {
        Touch::Frame(origin, frame) => {
            let request = frame.routed().map_or(0, |header| header.seq);
            // What is wrong with the frame itself comes first, as where there is a channel: it shall not tell them apart.
            let or_code = |read: Result<(), Code>| read.err().unwrap_or(code);
            let code = match frame.frame_type() {
                FrameType::Fetch => or_code(frame.decode::<wire::Fetch>().map(drop)),
                FrameType::Counts => or_code(frame.decode::<wire::Counts>().map(drop)),
                FrameType::Typing => or_code(frame.decode::<wire::Typing>().map(drop)),
                FrameType::Receipt => or_code(read_receipt(&frame).map(drop)),
                FrameType::Send => code,
                _ => Code::NOT_SERVED,
            };
            if frame.frame_type() == FrameType::Send && code == Code::RETRY_LATER {
                meter::retry_later("loading");
            }
            let answer = match frame.frame_type() {
                FrameType::Send => match send::parse(&frame, origin.user, desk.context.now_ms()) {
                    Ok(parsed) => frames::send_failed(channel, request, &parsed.client_message_id.0, code),
                    Err((code, id)) => frames::send_failed(channel, request, &id, code),
                },
                FrameType::Fetch | FrameType::Counts => {
                    frames::refused(frame.frame_type(), channel, request, code)
                }
                other => frames::failed(other, code),
            };
            desk.gateways.reply(&origin, answer);
        }
        Touch::Head { origin, sync } => {
            let head = if code == Code::NOT_A_MEMBER { Ok(None) } else { Err(code) };
            desk.post_user(origin.user, Word::Head { origin, sync, channel, head });
        }
        Touch::Subscribe(subscribe) => {
            if let crate::event::Cause::Sync { sync, .. } = subscribe.cause {
                let origin = subscribe.origin;
                let word = Word::Subscribed { origin, sync, channel, served: served(code) };
                desk.post_user(origin.user, word);
            }
        }
        Touch::Opened(origin, request) => {
            desk.gateways.reply(&origin, frames::refused(FrameType::Open, ChannelId(0), request, code));
        }
        Touch::Snapshot(reply) => drop(reply.send(None)),
        Touch::Describe(_, reply) => drop(reply.send(None)),
        Touch::Trace(.., reply) => drop(reply.send(Vec::new())),
        Touch::View(ask) if code == Code::NOT_A_MEMBER => drop(ask.reply.send(None)),
        Touch::Marks(_, reply) if code == Code::NOT_A_MEMBER => drop(reply.send(None)),
        // The caller is told to try again.
        Touch::Marks(..) | Touch::View(_) => {}
        // There is no such channel any more, or it is not there now: what is read anew from SQL knows it, what is being read may
        // not, and the caller is told to try again.
        Touch::Blocked { reply, .. } if code == Code::NOT_A_MEMBER => drop(reply.send(())),
        Touch::Blocked { .. } => {}
        Touch::Unsubscribe(_)
        | Touch::Delivered(..)
        | Touch::Shows(..)
        | Touch::Tapped(_)
        | Touch::Replied(_) => {}
    }
}
