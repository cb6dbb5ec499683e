//! The thread `presence`: takes what gateways say, asks the stores who may see whom, tells those who watch, writes last seens.

use std::{
    collections::HashMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, Frame, FrameType, UserId, frame,
    header::class,
    limits::PRESENCE_USERS_PER_FRAME,
    link::{Activities, Activity, CREDIT_BYTES, Down, Downlink, GatewayId, Origin, PRESENCE_OWNER},
    session::server,
    wire,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    Config,
    engine::{Device, Engine, Now, Seen, Status, Told, Verdict},
    meter::{self, Meters},
    queue::Queue,
    quota::Quota,
    rules::{Audience, Rules, Stores},
};

/// Longest rest of the thread.
const TICK: Duration = Duration::from_millis(250);
/// How long the stores are asked in one go, of a session that has just begun to watch,
const FRESH_CHECKS: Duration = Duration::from_millis(50);
/// and of those that are asked about again: within a tenth of the thread's time.
const CHECKS_AGAIN: Duration = Duration::from_millis(20);
/// Sessions that are told something in one go.
const TOLD_MAX: usize = 1_024;
/// Between two writes of last seens, milliseconds.
const WRITE_MS: u64 = 1_000;
/// Rows of one transaction.
const ROWS_MAX: usize = 256;
/// Questions that may wait.
const ASKS_MAX: usize = 1_024;

/// How a user stands, as somebody who asks is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The user.
    pub user: UserId,
    /// `None` where whoever asks may not know, or there is no such user.
    pub seen: Option<Seen>,
    /// Devices that are connected; for the user itself and for operators alone.
    pub devices: Vec<Device>,
}

/// The service cannot start.
pub type StartError = std::io::Error;

/// What a question's answer is: by user, what the engine has in memory.
type Found = Vec<Option<(Seen, Vec<Device>)>>;

enum Ask {
    /// How these users stand.
    Of(Vec<UserId>, oneshot::Sender<Found>),
    /// The user's audience or blocks changed.
    Recheck(UserId, oneshot::Sender<()>),
    Attach(GatewayId, Arc<dyn Downlink>),
    Stop,
}

/// What waits for the thread; `None` once it has ended.
type Asks = Mutex<Option<Vec<Ask>>>;

/// The running service. [`Self::shutdown`] ends it. Clones are handles of the same one.
#[derive(Clone)]
pub struct Presence {
    queue: Arc<Queue>,
    asks: Arc<Asks>,
    stores: Stores,
    /// For those who ask from elsewhere. Locked by a blocking thread for one answer.
    rules: Arc<Mutex<Rules>>,
    started: Instant,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Presence {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(config: Config, stores: Stores) -> Result<Self, StartError> {
        meter::describe();
        let (queue, asks) = (Arc::new(Queue::default()), Arc::new(Mutex::new(Some(Vec::new()))));
        let started = Instant::now();
        let work = Work {
            engine: Engine::new(config, now(started)),
            queue: Arc::clone(&queue),
            asks: Arc::clone(&asks),
            stores: stores.clone(),
            rules: Rules::new(stores.clone()),
            gateways: HashMap::new(),
            meters: Meters::new(),
            started,
            audiences: Quota::default(),
            write_ms: 0,
        };
        let thread = std::thread::Builder::new().name("presence".into()).spawn(move || work.run())?;
        let rules = Arc::new(Mutex::new(Rules::new(stores.clone())));
        Ok(Self { queue, asks, stores, rules, started, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Where gateways tell what their sessions do.
    pub fn activities(&self) -> Arc<dyn Activities> {
        self.queue.clone()
    }

    /// A gateway came: what its sessions are told goes this way.
    pub fn attach_gateway(&self, gateway: GatewayId, downlink: Arc<dyn Downlink>) {
        if let Some(asks) = self.asks.lock().as_mut() {
            asks.push(Ask::Attach(gateway, downlink));
        }
        self.queue.wake();
    }

    /// How these users stand, in the order given, as `viewer` may know it; operators (`None`) may know all.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn of(&self, viewer: Option<UserId>, users: Vec<UserId>) -> Result<Vec<Shown>, Code> {
        let (reply, found) = oneshot::channel();
        self.ask(Ask::Of(users.clone(), reply))?;
        let found = found.await.map_err(|_| Code::RETRY_LATER)?;
        let presence = self.clone();
        let shown = tokio::task::spawn_blocking(move || presence.shown(viewer, &users, found));
        shown.await.map_err(|_| Code::INTERNAL)?
    }

    fn shown(&self, viewer: Option<UserId>, users: &[UserId], found: Found) -> Result<Vec<Shown>, Code> {
        let failed = |error| {
            tracing::warn!(%error, "presence cannot be looked up");
            Code::RETRY_LATER
        };
        let mut shown = Vec::with_capacity(users.len());
        for (user, found) in users.iter().copied().zip(found) {
            let may_see = match viewer {
                Some(viewer) => self.rules.lock().may_see(now(self.started).ms, viewer, user),
                None => self.stores.metadata.user(user).map(|row| row.is_some()),
            };
            let may_see = may_see.map_err(failed)?;
            let (seen, devices) = match found {
                _ if !may_see => (None, Vec::new()),
                Some((seen, devices)) => (Some(seen), devices),
                None => {
                    let last_seen_ms = self.stores.seen.last_seen(user).map_err(failed)?;
                    (Some(Seen { status: Status::Offline, last_seen_ms }), Vec::new())
                }
            };
            let shows_devices = viewer.is_none_or(|viewer| viewer == user);
            shown.push(Shown { user, seen, devices: if shows_devices { devices } else { Vec::new() } });
        }
        Ok(shown)
    }

    /// Who may see the user.
    ///
    /// # Errors
    /// `NO_SUCH_USER`, `RETRY_LATER`.
    pub async fn audience(&self, user: UserId) -> Result<Audience, Code> {
        let metadata = Arc::clone(&self.stores.metadata);
        let read = tokio::task::spawn_blocking(move || metadata.user(user)).await;
        let row = read.map_err(|_| Code::INTERNAL)?.map_err(|_| Code::RETRY_LATER)?;
        Ok(Audience::of(&row.ok_or(Code::NO_SUCH_USER)?))
    }

    /// Sets who may see the user; counts for all once this returns.
    ///
    /// # Errors
    /// `NO_SUCH_USER`, `RETRY_LATER`.
    pub async fn show_to(&self, user: UserId, audience: Audience) -> Result<(), Code> {
        let stores = self.stores.clone();
        let write =
            tokio::task::spawn_blocking(move || write_audience(&stores, user, audience, || true)).await;
        write.map_err(|_| Code::INTERNAL)??;
        self.recheck(user).await
    }

    /// Whom the user blocks changed: counts here once this returns.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn recheck(&self, user: UserId) -> Result<(), Code> {
        let (reply, done) = oneshot::channel();
        self.ask(Ask::Recheck(user, reply))?;
        done.await.map_err(|_| Code::RETRY_LATER)
    }

    fn ask(&self, ask: Ask) -> Result<(), Code> {
        {
            let mut asks = self.asks.lock();
            let asks = asks.as_mut().filter(|asks| asks.len() < ASKS_MAX).ok_or(Code::RETRY_LATER)?;
            asks.push(ask);
        }
        self.queue.wake();
        Ok(())
    }

    /// Takes what gateways still said, writes every last seen that waits, ends the thread.
    pub async fn shutdown(self) {
        let Some(thread) = self.thread.lock().take() else { return };
        if let Some(asks) = self.asks.lock().as_mut() {
            asks.push(Ask::Stop);
        }
        self.queue.wake();
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(())) => {}
            _ => tracing::error!("the thread of presence panicked"),
        }
    }
}

fn now(started: Instant) -> Now {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Now { ms: started.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as u64 }
}

/// Writes it where it was another before, if it `may` change then; gives whether it was.
fn write_audience(
    stores: &Stores,
    user: UserId,
    audience: Audience,
    may: impl FnOnce() -> bool,
) -> Result<bool, Code> {
    let failed = |error| {
        tracing::warn!(%error, "who may see a user cannot be written");
        Code::RETRY_LATER
    };
    let row = stores.metadata.user(user).map_err(failed)?.ok_or(Code::NO_SUCH_USER)?;
    if Audience::of(&row) == audience {
        return Ok(false);
    }
    if !may() {
        return Err(Code::RETRY_LATER);
    }
    let (set, clear) = audience.flags();
    stores.accounts.change_flags(user, set, clear).map_err(failed)?;
    Ok(true)
}

/// A gateway as the thread knows it.
struct Gateway {
    downlink: Arc<dyn Downlink>,
    /// Bytes that may still be sent.
    credit: i64,
}

/// What the thread owns.
struct Work {
    engine: Engine,
    queue: Arc<Queue>,
    asks: Arc<Asks>,
    stores: Stores,
    rules: Rules,
    gateways: HashMap<GatewayId, Gateway>,
    meters: Meters,
    started: Instant,
    /// Of the audiences that frames change.
    audiences: Quota,
    /// When last seens are written next.
    write_ms: u64,
}

impl Work {
    fn run(mut self) {
        let mut counted = Instant::now();
        let mut rest = TICK;
        loop {
            let taken = self.queue.take(rest);
            let now = now(self.started);
            let depth = taken.words.len();
            self.meters.dropped.increment(taken.dropped);
            for (gateway, bytes) in taken.credits {
                if let Some(gateway) = self.gateways.get_mut(&gateway) {
                    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                    gateway.credit = gateway.credit.saturating_add(bytes).min(i64::from(CREDIT_BYTES));
                }
            }
            for word in taken.words {
                self.word(now, word);
            }
            self.engine.tick(now);
            let stops = self.answer(now);
            let is_more = self.check(now);
            self.tell(now);
            self.write(now);
            if counted.elapsed() >= Duration::from_secs(1) {
                counted = Instant::now();
                self.count(depth);
            }
            if stops {
                return self.end();
            }
            rest = if is_more { Duration::ZERO } else { TICK };
        }
    }

    fn word(&mut self, now: Now, word: Activity) {
        match word {
            Activity::Up(origin) => self.engine.up(now, origin),
            Activity::Down(origin, silent_ms) => self.engine.down(now, &origin, silent_ms),
            Activity::Shown(origin, foreground) => self.engine.shown(now, &origin, foreground),
            Activity::Alive(sessions) => {
                for alive in sessions {
                    self.engine.alive(now, alive);
                }
            }
            Activity::Presence(origin, frame) => {
                if let Err(code) = self.presence(now, origin, &frame) {
                    let retry_after_ms = if code == Code::RETRY_LATER { server::RETRY_AFTER_MS } else { 0 };
                    self.send(&origin, server::failed(&frame, code, retry_after_ms));
                }
            }
        }
    }

    /// A client's frame: a watch list, or who may see the user.
    fn presence(&mut self, now: Now, origin: Origin, frame: &Frame) -> Result<(), Code> {
        let presence: wire::Presence = frame.decode()?;
        let Some(audience) = Audience::from_wire(presence.audience) else {
            return self.engine.watch(now, origin, presence.watch.into_iter().map(UserId).collect());
        };
        let may = || self.audiences.take(now.ms, origin.user);
        // One that says what it is already costs those who watch nothing.
        if write_audience(&self.stores, origin.user, audience, may)? {
            self.engine.recheck(origin.user);
        }
        let answer = wire::Presence { audience: audience.to_wire().into(), ..Default::default() };
        let answer = frame::routed(FrameType::Presence, class::CONTROL, 0, 0, ChannelId(0), 0, &answer);
        self.send(&origin, answer);
        Ok(())
    }

    /// Answers who asks; says whether to stop.
    fn answer(&mut self, now: Now) -> bool {
        let mut stops = false;
        let asks = self.asks.lock().as_mut().map(std::mem::take).unwrap_or_default();
        for ask in asks {
            match ask {
                Ask::Of(users, reply) => {
                    let found = users.into_iter().map(|user| self.engine.of(now, user)).collect();
                    // Whoever asked may be gone.
                    let _ = reply.send(found);
                }
                Ask::Recheck(user, reply) => {
                    self.engine.recheck(user);
                    let _ = reply.send(());
                }
                Ask::Attach(gateway, downlink) => {
                    let credit = i64::from(CREDIT_BYTES);
                    self.gateways.insert(gateway, Gateway { downlink, credit });
                }
                Ask::Stop => stops = true,
            }
        }
        stops
    }

    /// Asks the stores who may see whom, for a while. Says whether questions are left that should not wait.
    fn check(&mut self, now: Now) -> bool {
        let began = Instant::now();
        let mut checks = 0;
        let is_more = loop {
            let passed = began.elapsed();
            if passed >= FRESH_CHECKS {
                break true;
            }
            let Some(check) = self.engine.next_check(passed < CHECKS_AGAIN) else { break false };
            checks += 1;
            let verdict = self.rules.may_see(now.ms, check.viewer, check.user).and_then(|may_see| {
                Ok(match may_see {
                    false => Verdict::Hidden,
                    true if check.wants_seen => Verdict::Shown(self.stores.seen.last_seen(check.user)?),
                    true => Verdict::Shown(0),
                })
            });
            let verdict = verdict.unwrap_or_else(|error| {
                tracing::warn!(%error, "presence cannot be looked up");
                Verdict::Unknown
            });
            self.engine.checked(&check, verdict);
        };
        self.meters.checks.increment(checks);
        is_more
    }

    /// Tells who watches, where there is credit.
    fn tell(&mut self, now: Now) {
        loop {
            let gateways = &self.gateways;
            let room = |origin: &Origin| {
                let has_room = gateways.get(&origin.gateway).is_none_or(|gateway| gateway.credit > 0);
                if !has_room {
                    self.meters.held.increment(1);
                }
                has_room
            };
            let told = self.engine.poll_told(now, TOLD_MAX, room);
            if told.is_empty() {
                return;
            }
            let mut downs: HashMap<GatewayId, Vec<(u16, Down)>> = HashMap::new();
            for told in told {
                self.meters.changes.increment(told.users.len() as u64);
                for frame in frames(&told) {
                    self.meters.frames.increment(1);
                    let down = Down::Reply { handle: told.origin.handle, frames: frame };
                    if let Some(gateway) = self.gateways.get_mut(&told.origin.gateway) {
                        gateway.credit -= i64::from(down.charge_bytes());
                    }
                    downs.entry(told.origin.gateway).or_default().push((PRESENCE_OWNER, down));
                }
            }
            for (gateway, mut downs) in downs {
                if let Some(gateway) = self.gateways.get(&gateway) {
                    gateway.downlink.send_all(&mut downs);
                }
            }
        }
    }

    fn send(&mut self, origin: &Origin, frames: Bytes) {
        if let Some(gateway) = self.gateways.get_mut(&origin.gateway) {
            let down = Down::Reply { handle: origin.handle, frames };
            gateway.credit -= i64::from(down.charge_bytes());
            gateway.downlink.send(PRESENCE_OWNER, down);
        }
    }

    /// Once a second, so that a trickle costs one flush in it.
    fn write(&mut self, now: Now) {
        if now.ms < self.write_ms {
            return;
        }
        self.write_ms = now.ms + WRITE_MS;
        let rows = self.engine.poll_writes(now);
        self.write_rows(now, &rows);
    }

    /// Says whether all could be written; the others wait again.
    fn write_rows(&mut self, now: Now, rows: &[(UserId, u64)]) -> bool {
        let mut done = true;
        for rows in rows.chunks(ROWS_MAX) {
            match self.stores.seen.write_seen(rows) {
                Ok(()) => self.meters.writes.increment(rows.len() as u64),
                Err(error) => {
                    tracing::warn!(%error, "last seens cannot be written");
                    self.engine.unwritten(now, rows);
                    done = false;
                }
            }
        }
        done
    }

    /// What gateways said last counts, and everything that waits is written.
    fn end(mut self) {
        let now = now(self.started);
        for word in self.queue.take(Duration::ZERO).words {
            self.word(now, word);
        }
        let rows = self.engine.drain_writes(now);
        if !self.write_rows(now, &rows) {
            let waiting = self.engine.counts().writes_waiting;
            tracing::error!(waiting, "last seens are lost");
        }
    }

    fn count(&self, depth: usize) {
        let counts = self.engine.counts();
        self.meters.online.set(counts.online as f64);
        self.meters.away.set(counts.away as f64);
        self.meters.watchers.set(counts.watchers as f64);
        self.meters.watched.set(counts.watched as f64);
        self.meters.queue_depth.set(depth as f64);
        self.meters.writes_waiting.set(counts.writes_waiting as f64);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // However it ended, whoever still asks is told to come later.
        drop(self.asks.lock().take());
    }
}

/// What a session is told, in frames that go into a datagram each.
fn frames(told: &Told) -> impl Iterator<Item = Bytes> {
    told.users.chunks(PRESENCE_USERS_PER_FRAME).map(|users| {
        let of = |(user, seen): &(UserId, Option<Seen>)| {
            let status = match seen.map(|seen| seen.status) {
                None => wire::PresenceStatus::NotTold,
                Some(Status::Offline) => wire::PresenceStatus::Offline,
                Some(Status::Away) => wire::PresenceStatus::Away,
                Some(Status::Online) => wire::PresenceStatus::Online,
            };
            let last_seen_ms = seen.map_or(0, |seen| seen.last_seen_ms);
            wire::UserPresence { user: user.0, status: status.into(), last_seen_ms }
        };
        let body = wire::Presence { users: users.iter().map(of).collect(), ..Default::default() };
        frame::routed(FrameType::Presence, class::HINT, 0, 0, ChannelId(0), 0, &body)
    })
}
