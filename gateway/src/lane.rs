//! A lane: one thread that owns its connections, their audience mirror, and one queue. Nothing of it is shared but that
//! queue; everything below runs on the lane's thread, so borrows never meet.
//!
//! What can wake it: its inbox ([`Item`]), readiness of a socket (through the lane's own epoll, [`crate::readiness`]; what is ready is
//! read into the lane's one scratch buffer), and the sweep. A pass takes everything that is in the inbox, gathers, gives buffers to
//! their readers and then writes each reader once: so batches grow by themselves while the lane is busy. A QUIC connection has a task.

mod later;
mod look;
mod wide;

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fanfare_proto::{
    error::Code,
    header::{FrameType, Header},
    ids::ChannelId,
    link::{Activity, AudienceChange, Down, Handle, Tier, Up},
    session::server,
};
use later::{Credit, Laters};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::TaskTracker;
use wide::Wides;

use crate::{
    audience::Audience,
    connection::{Connection, Dirty, LINGER_MS, Link, Stage},
    gather::{Gathered, Gathers},
    handshake,
    inbox::{Inbox, Item},
    quic,
    readiness::{Readiness, Ready, Turn},
    shared::Shared,
    slots::Slots,
    turns::Turns,
};

/// Bytes of the buffer that all connections of a lane are read through.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Bytes that one pass takes from the inbox: within what one connection may have waiting, so that a burst does not make a
/// slow reader of one that never had a chance to be written to.
const PASS_BYTES: u32 = 256 * 1024;
/// Places of the inbox's list that are kept for the next burst.
const INBOX_KEPT: usize = 16 * 1024;
/// Messages for the router that wait for the end of a turn.
const UPS_MAX: usize = 1_024;
/// How long an ACK waits for company: nobody waits for it.
const ACKS_WAIT: Duration = Duration::from_millis(5);
/// Sessions of a channel from which on the sender's answer leaves behind the pass, and behind the channel's round where one is under way: what
/// it sends next would only wait for the end of it.
const LATE_AUDIENCE: usize = 64;
/// Each session is told of as alive once in so many sweeps.
const ALIVE_SWEEPS: u32 = 15;
/// Connections that one lane may own: what a handle can number.
const SLOTS_MAX: usize = 1 << 24;

/// A connection's place on its lane, and which of that place's holders it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub slot: u32,
    pub generation: u32,
}

impl From<Handle> for Key {
    fn from(handle: Handle) -> Self {
        Self { slot: handle.slot(), generation: handle.generation() }
    }
}

/// See the module's page.
pub(crate) struct Lane {
    pub shared: Arc<Shared>,
    number: u8,
    inbox: Arc<Inbox>,
    state: RefCell<State>,
    scratch: RefCell<Box<[u8]>>,
    pub readiness: Rc<Readiness>,
    ups: RefCell<Ups>,
    /// There is something in `ups` that should not wait.
    has_ups: Notify,
    /// Frames handed up since the last sweep.
    frames_in: Cell<u64>,
    /// Of the handshakes.
    pub turns: Turns,
    /// Handshakes and connections; the lane ends when they have.
    pub tasks: TaskTracker,
}

/// What was read and has its place at the router: handed over when all connections that were ready have been read.
#[derive(Default)]
struct Ups {
    waiting: Vec<Up>,
    /// Since when there is nothing but ACKs.
    acks_since: Option<Instant>,
}

struct State {
    connections: Slots<Connection>,
    audience: Audience<Gathered>,
    gathers: Gathers,
    /// Slots with something to write.
    dirty: Vec<u32>,
    /// Those that are written behind all others: they sent into that channel.
    late: Vec<(u32, ChannelId)>,
    later: Laters,
    wide: Wides,
    next_generation: u32,
    sweeps: u32,
    /// Everybody is sent away; when the lane ends at the latest.
    closing_by_ms: Option<u64>,
    handed_on: Vec<(u16, u32)>,
    buffers_out: u64,
    entries_out: u64,
    bytes_out: u64,
    sends_out: u64,
    /// At the last sweep.
    waiting_bytes: u64,
    meters: Meters,
}

/// What the sweep tells the metrics recorder, registered once.
struct Meters {
    connections: metrics::Gauge,
    memberships: metrics::Gauge,
    channels: metrics::Gauge,
    waiting_bytes: metrics::Gauge,
    frames_in: metrics::Counter,
    buffers_out: metrics::Counter,
    entries_out: metrics::Counter,
    bytes_out: metrics::Counter,
    sends_out: metrics::Counter,
    members: [metrics::Gauge; Tier::ALL.len()],
}

impl Meters {
    fn new(lane: u8) -> Self {
        let lane = lane.to_string();
        Self {
            connections: metrics::gauge!("fanfare_gateway_connections", "lane" => lane.clone()),
            memberships: metrics::gauge!("fanfare_gateway_memberships", "lane" => lane.clone()),
            channels: metrics::gauge!("fanfare_gateway_channels", "lane" => lane.clone()),
            waiting_bytes: metrics::gauge!("fanfare_gateway_waiting_bytes", "lane" => lane.clone()),
            frames_in: metrics::counter!("fanfare_gateway_frames_in_total", "lane" => lane.clone()),
            buffers_out: metrics::counter!("fanfare_gateway_buffers_out_total", "lane" => lane.clone()),
            entries_out: metrics::counter!("fanfare_gateway_entries_out_total", "lane" => lane.clone()),
            bytes_out: metrics::counter!("fanfare_gateway_bytes_out_total", "lane" => lane.clone()),
            sends_out: metrics::counter!("fanfare_gateway_sends_total", "lane" => lane.clone()),
            members: Tier::ALL.map(|tier| {
                metrics::gauge!("fanfare_gateway_members", "lane" => lane.clone(), "tier" => tier.name())
            }),
        }
    }
}

impl Lane {
    pub fn new(number: u8, shared: Arc<Shared>, inbox: Arc<Inbox>, readiness: Readiness) -> Rc<Self> {
        let state = State {
            connections: Slots::new(),
            audience: Audience::default(),
            gathers: Gathers::default(),
            dirty: Vec::new(),
            late: Vec::new(),
            later: Laters::default(),
            wide: Wides::default(),
            next_generation: 1,
            sweeps: 0,
            closing_by_ms: None,
            handed_on: Vec::new(),
            buffers_out: 0,
            entries_out: 0,
            bytes_out: 0,
            sends_out: 0,
            waiting_bytes: 0,
            meters: Meters::new(number),
        };
        let scratch = vec![0; SCRATCH_BYTES].into_boxed_slice();
        let tasks = TaskTracker::new();
        let frames_in = Cell::new(0);
        Rc::new(Self {
            shared,
            number,
            inbox,
            state: state.into(),
            scratch: scratch.into(),
            ups: RefCell::default(),
            has_ups: Notify::new(),
            readiness: Rc::new(readiness),
            frames_in,
            turns: Turns::new(),
            tasks,
        })
    }

    /// Works until it is told to close and everybody has left, or time is up.
    pub async fn run(self: Rc<Self>) {
        let mut sweep = tokio::time::interval(self.shared.sweep);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut items, mut ready) = (Vec::new(), Ready::default());
        loop {
            let (closing, has_later) = {
                let state = self.state.borrow();
                (state.closing_by_ms.is_some(), !state.has_nothing_on_its_way())
            };
            let acks_since = self.ups.borrow().acks_since;
            let acks_due = acks_since.unwrap_or_else(Instant::now) + ACKS_WAIT;
            tokio::select! {
                () = self.inbox.filled() => {}
                () = self.has_ups.notified() => {}
                () = self.readiness.ready() => {}
                () = tokio::time::sleep_until(acks_due), if acks_since.is_some() => {}
                _ = sweep.tick() => self.guarded(|| self.sweep()),
                () = tokio::time::sleep(Duration::from_millis(10)), if closing => {}
                () = tokio::task::yield_now(), if has_later => {}
            }
            if self.look(&mut ready) {
                // Without it a lane that always has something ready would leave handshakes, QUIC and timers out.
                tokio::task::yield_now().await;
            }
            while self.inbox.take(&mut items) {
                let mut items = items.drain(..).peekable();
                while items.peek().is_some() {
                    self.pass(&mut items);
                    self.guarded(|| _ = self.slice_wide());
                    // Reads, and what QUIC has to do, go between passes.
                    tokio::task::yield_now().await;
                    self.look(&mut ready);
                }
            }
            // What may wait goes where nothing else is there to be done, a slice at a time.
            self.guarded(|| {
                if !self.slice_wide() {
                    self.slice();
                }
            });
            if items.capacity() > INBOX_KEPT {
                items = Vec::new();
            }
            let state = self.state.borrow();
            if let Some(by_ms) = state.closing_by_ms
                && (state.connections.is_empty() || self.shared.clock.now_ms() >= by_ms)
            {
                break;
            }
        }
        // Who is in a handshake is told.
        self.turns.hold(false);
        // Their places at the router are taken.
        self.ups.borrow_mut().acks_since = None;
        self.hand_over();
        let ended = self.state.borrow_mut().connections.drain();
        for mut connection in ended {
            connection.end(&self.shared);
            connection.wake();
        }
        self.tasks.close();
        // Handshakes under way have their own deadline; nobody waits for it.
        let _ = tokio::time::timeout_at(Instant::now() + Duration::from_millis(200), self.tasks.wait()).await;
    }

    /// The handshake of a WebSocket connection is over: from here on the lane looks at its socket.
    pub fn settle(self: &Rc<Self>, key: Key) {
        let settled = self.with(key, |connection, _, _| match &mut connection.link {
            Link::Ws { wire, readiness, .. } => {
                let socket = wire.socket();
                socket.settle()?;
                socket.fd().map_or(Ok(()), |fd| readiness.watch(fd, key))
            }
            Link::Quic(_) => Ok(()),
        });
        if let Some(Err(error)) = settled {
            tracing::warn!(%error, "a connection cannot be watched");
            self.remove(key);
        }
    }

    fn pass(self: &Rc<Self>, items: &mut impl Iterator<Item = Item>) {
        let now_ms = self.shared.clock.now_ms();
        let mut bytes = 0;
        while bytes < PASS_BYTES
            && let Some(item) = items.next()
        {
            if let Item::Down { down, .. } = &item {
                bytes += down.charge_bytes();
            }
            self.guarded(|| self.item(item, now_ms));
        }
        self.guarded(|| {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let mut gathered = state.gathers.drain();
            // The frames of one channel, as mostly: each reader is written as it is met, and not looked up a second time.
            let alone = if gathered.len() == 1 { gathered.pop() } else { None };
            for gathered in gathered {
                state.assign(&self.shared, gathered, false, now_ms);
            }
            state.flush(&self.shared, now_ms);
            if let Some(gathered) = alone {
                state.assign(&self.shared, gathered, true, now_ms);
            }
            state.flush_late(&self.shared, now_ms);
            for (owner, bytes) in state.handed_on.drain(..) {
                self.shared.handed_on(owner, bytes);
            }
        });
    }

    /// A panic in work for many connections ends that piece of work, not the lane.
    fn guarded(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            metrics::counter!("fanfare_gateway_panics_total").increment(1);
            tracing::error!(lane = self.number, "a lane's work panicked; the lane goes on");
        }
    }

    fn item(self: &Rc<Self>, item: Item, now_ms: u64) {
        match item {
            Item::Down { owner, down, shared } => {
                let mut state = self.state.borrow_mut();
                if let Down::Fanout { channel, tiers, frames, .. } = &down
                    && !tiers.is_at_once()
                {
                    let credit = Credit { owner, bytes: down.charge_bytes(), shared };
                    return state.later(&self.shared, *channel, *tiers, frames, credit, now_ms);
                }
                let last = shared.is_none_or(|left| left.fetch_sub(1, Ordering::AcqRel) == 1);
                if last {
                    state.count_credit(owner, down.charge_bytes());
                }
                let retry = state.down(&self.shared, down, now_ms);
                drop(state);
                if let Some(up) = retry {
                    self.ask_again(up);
                }
            }
            Item::Accepted { stream, address, handshake } => {
                let task = handshake::websocket(self.clone(), stream, address, handshake);
                self.tasks.spawn_local(task);
            }
            Item::Incoming { incoming, address, handshake } => {
                let task = quic::serve(self.clone(), incoming, address, handshake);
                self.tasks.spawn_local(task);
            }
            Item::GoAway { delay_ms } => {
                let mut state = self.state.borrow_mut();
                let state = &mut *state;
                let go_away = server::go_away(delay_ms, "", Code::GOING_AWAY);
                for (slot, connection) in state.connections.iter_mut() {
                    if matches!(connection.stage, Stage::Open(_)) {
                        connection.control(go_away.clone(), now_ms);
                        mark(&mut state.dirty, slot, connection);
                    }
                }
            }
            Item::Close => {
                let mut state = self.state.borrow_mut();
                let state = &mut *state;
                state.closing_by_ms = Some(now_ms + LINGER_MS + 500);
                for (slot, connection) in state.connections.iter_mut() {
                    if !matches!(connection.stage, Stage::Closing { .. }) {
                        connection.close(&self.shared, now_ms, Code::GOING_AWAY);
                        mark(&mut state.dirty, slot, connection);
                    }
                }
            }
        }
    }

    /// Asks the owner of a user again, with the token this time.
    fn ask_again(self: &Rc<Self>, up: Up) {
        let lane = self.clone();
        self.tasks.spawn_local(async move {
            let Up::Open { origin, .. } = &up else { return };
            let key = Key::from(origin.handle);
            if let Err(code) = lane.shared.uplink.send(up).await {
                lane.with(key, |connection, shared, now_ms| connection.refused(shared, now_ms, code));
            }
        });
    }

    /// Looks at every connection's deadlines and bounds.
    fn sweep(self: &Rc<Self>) {
        let now_ms = self.shared.clock.now_ms();
        let mut gone = Vec::new();
        let mut alive = Vec::new();
        let mut waiting_bytes = 0;
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            state.sweeps = state.sweeps.wrapping_add(1);
            let told = self.shared.activities.is_some().then_some(state.sweeps % ALIVE_SWEEPS);
            for (slot, connection) in state.connections.iter_mut() {
                if told == Some(slot % ALIVE_SWEEPS) {
                    alive.extend(connection.alive(now_ms));
                }
                let before = connection.waiting_bytes();
                connection.sweep(&self.shared, now_ms);
                let after = connection.waiting_bytes();
                waiting_bytes += after;
                if after != before {
                    mark(&mut state.dirty, slot, connection);
                }
                match connection.stage {
                    Stage::Closing { until_ms } if now_ms >= until_ms => {
                        if let Link::Quic(link) = &connection.link {
                            link.abandon();
                        }
                        gone.push(slot);
                    }
                    _ => {}
                }
            }
            state.flush(&self.shared, now_ms);
            let (buffers, bytes) =
                (std::mem::take(&mut state.buffers_out), std::mem::take(&mut state.bytes_out));
            let counts = &self.shared.counts;
            let frames = self.frames_in.take();
            counts.frames_in.fetch_add(frames, Ordering::Relaxed);
            counts.buffers_out.fetch_add(buffers, Ordering::Relaxed);
            counts.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            counts
                .waiting_bytes
                .fetch_add(waiting_bytes.wrapping_sub(state.waiting_bytes), Ordering::Relaxed);
            state.waiting_bytes = waiting_bytes;
            let meters = &state.meters;
            meters.frames_in.increment(frames);
            meters.buffers_out.increment(buffers);
            meters.entries_out.increment(std::mem::take(&mut state.entries_out));
            meters.bytes_out.increment(bytes);
            meters.sends_out.increment(std::mem::take(&mut state.sends_out));
            for (gauge, members) in meters.members.iter().zip(state.audience.by_tier()) {
                gauge.set(f64::from(members));
            }
            meters.connections.set(state.connections.len() as f64);
            meters.memberships.set(state.audience.members() as f64);
            meters.channels.set(state.audience.channels() as f64);
            meters.waiting_bytes.set(waiting_bytes as f64);
        }
        if !alive.is_empty() {
            let _ = self.shared.tell(Activity::Alive(alive));
        }
        for slot in gone {
            self.remove_slot(slot);
        }
    }

    // ---- connections

    /// Gives a connection its place; the caller then asks its owner and starts its task.
    ///
    /// # Errors
    /// `GOING_AWAY`, `OVERLOADED`.
    pub fn insert(&self, make: impl FnOnce(Handle) -> Connection) -> Result<(Key, Option<Up>), Code> {
        let mut state = self.state.borrow_mut();
        if state.closing_by_ms.is_some() {
            return Err(Code::GOING_AWAY);
        }
        if state.connections.len() >= SLOTS_MAX {
            return Err(Code::OVERLOADED);
        }
        let generation = state.next_generation;
        state.next_generation = generation.wrapping_add(1).max(1);
        let made = state.connections.insert(|slot| make(Handle::new(self.number, slot, generation)));
        let (slot, connection) = made;
        Ok((Key { slot, generation }, connection.open_request()))
    }

    /// Does something with a connection that is still there, and writes what came of it.
    pub fn with<R>(&self, key: Key, work: impl FnOnce(&mut Connection, &Shared, u64) -> R) -> Option<R> {
        let now_ms = self.shared.clock.now_ms();
        // Borrowed already only where a panic unwinds through the lane's own work, which has its own guard.
        let mut state = self.state.try_borrow_mut().ok()?;
        let connection = state.get(key)?;
        let done = work(connection, &self.shared, now_ms);
        connection.flush(&self.shared, now_ms);
        Some(done)
    }

    /// Takes a connection away; its socket closes.
    pub fn remove(&self, key: Key) {
        drop(self.take(key));
    }

    /// Takes a connection away.
    pub fn take(&self, key: Key) -> Option<Connection> {
        self.state.borrow_mut().get(key)?;
        self.remove_slot(key.slot)
    }

    fn remove_slot(&self, slot: u32) -> Option<Connection> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut connection = state.connections.remove(slot)?;
        connection.end(&self.shared);
        connection.wake();
        if state.audience.ended(connection.memberships) {
            let connections = &state.connections;
            state.audience.compact(|member| {
                let connection = connections.get(member.slot());
                connection
                    .is_some_and(|connection| connection.origin.handle.generation() == member.generation)
            });
        }
        Some(connection)
    }

    /// A handler panicked over what one connection sent: that connection is closed.
    pub fn panicked(&self, key: Key) {
        metrics::counter!("fanfare_gateway_panics_total").increment(1);
        tracing::error!(lane = self.number, slot = key.slot, "a handler panicked; its connection is closed");
        self.with(key, |connection, shared, now_ms| connection.close(shared, now_ms, Code::INTERNAL));
    }

    /// Hands frames up, in order, at the end of this turn of the lane. Waits where an owner has no room; writing goes on
    /// meanwhile, reading does not.
    pub async fn forward(&self, key: Key, ups: &mut Vec<Up>) {
        let rest = self.forward_at_once(ups);
        if !rest.is_empty() {
            // Boxed, because a connection's task is as big as its biggest state.
            Box::pin(self.forward_slowly(key, rest)).await;
        }
    }

    /// The same by a task of its own: the connection is not read until that is done.
    fn forward_beside(self: &Rc<Self>, key: Key, ups: &mut Vec<Up>) {
        let rest = self.forward_at_once(ups);
        if rest.is_empty() {
            return;
        }
        self.with(key, |connection, _, _| connection.forwards = true);
        let lane = self.clone();
        self.tasks.spawn_local(async move {
            let shared = &lane.shared;
            for up in rest {
                let Up::Frame { frame, .. } = &up else { continue };
                let frame = frame.clone();
                if shared.uplink.send(up).await.is_err() {
                    lane.with(key, |connection, _, now_ms| connection.unsent(&frame, now_ms));
                }
            }
            lane.with(key, |connection, _, _| {
                connection.forwards = false;
                connection.wake();
            });
        });
    }

    /// Gives what found no room, and what was behind it.
    fn forward_at_once(&self, ups: &mut Vec<Up>) -> Vec<Up> {
        self.frames_in.set(self.frames_in.get() + ups.len() as u64);
        let mut rest = ups.drain(..);
        while let Some(up) = rest.next() {
            if !self.shared.uplink.reserve(&up) {
                // What it sent before goes first.
                self.hand_over();
                return std::iter::once(up).chain(rest).collect();
            }
            self.add(up);
        }
        Vec::new()
    }

    fn add(&self, up: Up) {
        let mut ups = self.ups.borrow_mut();
        let is_ack = matches!(&up, Up::Frame { frame, .. } if frame.frame_type() == FrameType::Ack);
        if !is_ack {
            if ups.waiting.is_empty() || ups.acks_since.is_some() {
                self.has_ups.notify_one();
            }
            ups.acks_since = None;
        } else if ups.waiting.is_empty() {
            ups.acks_since = Some(Instant::now());
            // The lane sees that it has to look at the time.
            self.has_ups.notify_one();
        }
        ups.waiting.push(up);
        if ups.waiting.len() >= UPS_MAX {
            ups.acks_since = None;
            self.guarded(|| self.shared.uplink.hand_over(&mut ups.waiting));
        }
    }

    /// Hands over what was read, unless it is ACKs that have not waited yet.
    fn hand_over(&self) {
        let mut ups = self.ups.borrow_mut();
        let waits = ups.acks_since.is_some_and(|since| since.elapsed() < ACKS_WAIT);
        if !ups.waiting.is_empty() && !waits {
            ups.acks_since = None;
            self.guarded(|| self.shared.uplink.hand_over(&mut ups.waiting));
        }
    }

    async fn forward_slowly(&self, key: Key, ups: Vec<Up>) {
        for up in ups {
            let Up::Frame { frame, .. } = &up else { continue };
            let frame = frame.clone();
            let mut sending = self.shared.uplink.send(up);
            let sent = std::future::poll_fn(|cx| {
                // What waits is written meanwhile.
                self.with(key, |_, _, _| ());
                sending.as_mut().poll(cx)
            });
            if sent.await.is_err() {
                self.with(key, |connection, _, now_ms| connection.unsent(&frame, now_ms));
            }
        }
    }
}

fn mark(dirty: &mut Vec<u32>, slot: u32, connection: &mut Connection) {
    match &mut connection.dirty {
        Dirty::Yes => {}
        Dirty::Late { answers_alone } => *answers_alone = false,
        Dirty::No | Dirty::Behind => {
            connection.dirty = Dirty::Yes;
            dirty.push(slot);
        }
    }
}

impl State {
    /// A socket is ready.
    fn told(&mut self, turn: Turn) {
        if let Some(Link::Ws { wire, .. }) = self.get(turn.key).map(|connection| &mut connection.link) {
            wire.socket().told(turn.is_hung_up);
        }
    }

    fn get(&mut self, key: Key) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(key.slot)?;
        (connection.origin.handle.generation() == key.generation).then_some(connection)
    }

    fn count_credit(&mut self, owner: u16, bytes: u32) {
        match self.handed_on.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, counted)) => *counted += bytes,
            None => self.handed_on.push((owner, bytes)),
        }
    }

    /// One message of an owner. `Some`: to be sent up.
    fn down(&mut self, shared: &Shared, down: Down, now_ms: u64) -> Option<Up> {
        match down {
            Down::Fanout { channel, tiers, frames, .. } => {
                let mut ready = smallvec::SmallVec::<[Gathered; 2]>::new();
                self.gathers.add(channel, tiers, &frames, |gathered| ready.push(gathered));
                for gathered in ready {
                    self.assign(shared, gathered, false, now_ms);
                }
            }
            Down::Reply { handle, frames } => {
                self.settle(shared, handle, &frames, now_ms);
                let late_for = self.late_for(&frames);
                let key = Key::from(handle);
                let connection = self.connections.get_mut(key.slot);
                if let Some(connection) =
                    connection.filter(|one| one.origin.handle.generation() == key.generation)
                {
                    connection.reply(shared, frames, now_ms);
                    match (late_for, connection.dirty) {
                        (None, _) => mark(&mut self.dirty, key.slot, connection),
                        (Some(_), Dirty::Late { .. }) => {}
                        (Some(channel), before) => {
                            connection.dirty = Dirty::Late { answers_alone: before != Dirty::Yes };
                            self.late.push((key.slot, channel));
                        }
                    }
                }
            }
            Down::Audience { channel, changes } => {
                if let Some(gathered) = self.gathers.take(channel) {
                    self.assign(shared, gathered, false, now_ms);
                }
                for change in changes {
                    let (AudienceChange::Add(handle, _) | AudienceChange::Remove(handle)) = change;
                    self.hurry(shared, channel, handle, now_ms);
                    self.change(channel, change);
                }
            }
            Down::Opened { handle, outcome } => {
                return self.each(handle.into(), |connection| {
                    let again = connection.opened(shared, now_ms, outcome);
                    connection.wake();
                    again
                })?;
            }
            Down::Kick { handle, code } => {
                self.each(handle.into(), |connection| connection.close(shared, now_ms, code));
            }
            Down::Confirmed { handle, number } => {
                if let Some(Stage::Open(session)) =
                    self.get(handle.into()).map(|connection| &mut connection.stage)
                {
                    session.confirmed(number);
                }
            }
        }
        None
    }

    /// Does something with a connection that is still there, which is then written in this pass.
    fn each<R>(&mut self, key: Key, work: impl FnOnce(&mut Connection) -> R) -> Option<R> {
        let connection = self.connections.get_mut(key.slot)?;
        if connection.origin.handle.generation() != key.generation {
            return None;
        }
        let done = work(connection);
        mark(&mut self.dirty, key.slot, connection);
        Some(done)
    }

    /// What a reply must not overtake goes to its readers first: gathered frames of the channels whose entries, heads or
    /// state the reply tells, and of all channels where it tells of all. Entries go before a page that may hold them, or they would come to
    /// their reader as repeats (over QUIC they may: a page has a stream of its own). Other answers have no order with entries.
    fn settle(&mut self, shared: &Shared, handle: Handle, frames: &[u8], now_ms: u64) {
        let mut at = 0;
        while !(self.gathers.is_empty() && self.has_nothing_on_its_way())
            && let Ok(Some(header)) = Header::parse(frames.get(at..).unwrap_or_default())
        {
            use FrameType::{Channel, Deliver, Gap, Notify, Page, Synced};
            at += header.frame_bytes();
            match (header.short().frame_type, header.routed()) {
                (Synced, _) => {
                    for gathered in self.gathers.drain() {
                        self.assign(shared, gathered, false, now_ms);
                    }
                    self.hurry_all(shared, handle, now_ms);
                }
                (Deliver | Notify | Gap | Channel | Page, Some(routed)) => {
                    if let Some(gathered) = self.gathers.take(routed.channel) {
                        self.assign(shared, gathered, false, now_ms);
                    }
                    self.hurry(shared, routed.channel, handle, now_ms);
                }
                _ => {}
            }
        }
    }

    /// The channel, if frames are the answer to a send into one that many here are in.
    fn late_for(&self, frames: &[u8]) -> Option<ChannelId> {
        let header = Header::parse(frames).ok()??;
        let channel = header.routed()?.channel;
        let is_answer = header.short().frame_type == FrameType::SendAck;
        (is_answer && self.audience.len_of(channel) >= LATE_AUDIENCE).then_some(channel)
    }

    fn change(&mut self, channel: ChannelId, change: AudienceChange) {
        match change {
            AudienceChange::Add(handle, tier) => {
                let Some(connection) = self.connections.get_mut(handle.slot()) else { return };
                if connection.origin.handle == handle && self.audience.add(channel, handle, tier) {
                    connection.memberships += 1;
                }
            }
            AudienceChange::Remove(handle) => {
                if self.audience.remove(channel, handle)
                    && let Some(connection) = self.get(handle.into())
                {
                    connection.memberships = connection.memberships.saturating_sub(1);
                }
            }
        }
    }

    /// Gives a gathered buffer to its readers: one reference each. Written now, or with all else that is for them.
    fn assign(&mut self, shared: &Shared, gathered: Gathered, is_now: bool, now_ms: u64) {
        let Some(gathered) = self.take_wide(shared, gathered, now_ms) else { return };
        let Self { connections, audience, dirty, .. } = self;
        let Gathered { chunk, tiers, entries } = gathered;
        let mut taken = 0;
        audience.each(chunk.channel, tiers, |member| {
            let Some(connection) = connections.get_mut(member.slot()) else { return false };
            if connection.origin.handle.generation() != member.generation {
                return false;
            }
            taken += u64::from(if is_now && connection.dirty == Dirty::No {
                connection.gathered_now(shared, &chunk, now_ms)
            } else {
                mark(dirty, member.slot(), connection);
                connection.gathered(shared, &chunk, now_ms)
            });
            true
        });
        self.sends_out += if is_now { taken } else { 0 };
        self.buffers_out += taken;
        self.entries_out += taken * entries;
        self.bytes_out += taken * chunk.bytes.len() as u64;
    }

    /// Writes every connection that has something new, once, but for those that are written behind the others.
    fn flush(&mut self, shared: &Shared, now_ms: u64) {
        for slot in self.dirty.drain(..) {
            if let Some(connection) = self.connections.get_mut(slot)
                && connection.dirty == Dirty::Yes
            {
                connection.dirty = Dirty::No;
                self.sends_out += 1;
                connection.flush(shared, now_ms);
            }
        }
    }

    /// Writes those. Who has nothing but answers, and a channel's round is under way, is written when that ends.
    fn flush_late(&mut self, shared: &Shared, now_ms: u64) {
        for (slot, channel) in self.late.drain(..) {
            if let Some(connection) = self.connections.get_mut(slot)
                && let Dirty::Late { answers_alone } = connection.dirty
            {
                if answers_alone && self.wide.wait(channel, slot) {
                    connection.dirty = Dirty::Behind;
                    continue;
                }
                connection.dirty = Dirty::No;
                self.sends_out += 1;
                connection.flush(shared, now_ms);
            }
        }
    }
}

/// Held by a connection's task: where the task ends by a panic, the connection ends with it.
pub(crate) struct Custody {
    pub lane: Rc<Lane>,
    pub key: Key,
}

impl Drop for Custody {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody writes for it any more: what the socket takes now is what it gets, and the sweep takes it away.
            self.lane.panicked(self.key);
        }
    }
}
