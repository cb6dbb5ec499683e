//! Many sessions in one thread: each has a task that turns its connection; what its events mean is the mode's business.
//!
//! Sessions are whole ones (the sans-IO session of the SDK, with its acknowledgements, receipts and heartbeats); a delivery costs
//! this side little more than its `recv`.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, Code, DeviceId,
    session::client::{ClientSession, DeviceState, Ended, Event, SessionOptions},
    wire,
};
use tokio::{sync::Notify, task::JoinSet};

use super::{ledger::Deliveries, population::Person};

/// Sessions opened at once.
const OPENING_MAX: usize = 64;
/// Attempts of one session to connect.
const ATTEMPTS_MAX: u32 = 8;
/// Nothing moves for so long: what is waited for does not come.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether something has happened.
const LOOK: Duration = Duration::from_millis(2);

/// What a mode does with the events of its sessions, and what it has them ask.
pub trait Load: 'static {
    /// Something happened in the session of `member`.
    fn event(&mut self, member: usize, event: Event);
    /// Whether this seq of the channel is one that the mode waits for, not one from before.
    fn is_new(&self, channel: ChannelId, seq: u64) -> bool;
    /// The session of `member` is about to wait: what it is to send is queued now. Called before every wait, so quick.
    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64);
    /// What sessions ask for.
    fn delivery(&self) -> wire::Delivery {
        wire::Delivery::Full
    }
    /// The server named a head in the place of entries. Gives whether the mode follows that up; else the session counts as behind.
    fn named(&mut self, _member: usize, _channel: ChannelId, _head: u64) -> bool {
        false
    }
    /// A request failed, where it was one with a number. Gives whether the mode follows that up; else it ends the run, or makes it INVALID.
    fn refused(&mut self, _member: usize, _request: Option<u64>, _code: Code) -> bool {
        false
    }
    /// A session that was open ended. Gives whether it is to come back; else it ends the run.
    fn ended(&mut self, _member: usize, _ended: &Ended) -> bool {
        false
    }
}

/// What all sessions share. Borrowed for one event at a time, never across an await.
pub struct Stage<L> {
    /// The mode's own state.
    pub load: L,
    /// Sessions that know where all their channels stand: they get everything from here on.
    pub ready: usize,
    /// Refusals by a limiter: any of them makes a run INVALID.
    pub limited: u64,
    /// Entries that the server sent again to a session which held them.
    pub repeats: u64,
    /// The first broken rule that a session saw, in words.
    pub hole: Option<String>,
    /// GAPs in the place of what was to be measured: a session read too slowly, which proves nothing about the server.
    pub behind: u64,
    /// The first of them, in words.
    gap: Option<String>,
    /// Attempts to connect beside each session's first: the server refused it, or did not answer in time.
    pub repeated_attempts: u64,
    /// Why the run cannot go on.
    pub failed: Option<String>,
    closing: bool,
    count: Option<Count>,
}

/// Datagrams that sessions had received when they were asked.
#[derive(Clone, Copy, Default)]
struct Count {
    sessions: usize,
    datagrams: u64,
}

impl<L: Load> Stage<L> {
    /// Adds what the sessions themselves saw to what the ledgers counted.
    pub fn add_to(&self, deliveries: &mut Deliveries) {
        deliveries.duplicated += self.repeats;
        deliveries.examples.extend(self.hole.clone());
        if self.behind > 0 {
            // What GAP named was not promised to come by itself.
            (deliveries.lost, deliveries.reordered) = (0, 0);
        }
    }

    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Synced(synced) => {
                self.ready += usize::from(synced.complete);
                self.load.event(member, Event::Synced(synced));
            }
            Event::Failed(error) => self.refused(member, None, &error),
            Event::Refused { request, error, .. } => self.refused(member, Some(request), &error),
            Event::Ended(ended) if !self.closing => {
                if let Some(Code::RATE_LIMITED | Code::PING_FLOOD | Code::CONNECTIONS_PER_ADDRESS) =
                    ended.code
                {
                    self.limited += 1;
                }
                self.failed.get_or_insert(format!("session {member} ended: {ended}"));
            }
            Event::Defect { channel, kind, after, before } => {
                // The ledger counts it; here it is told in words.
                self.hole.get_or_insert_with(|| {
                    format!("session {member}: {kind:?} in channel {channel} between {after} and {before}")
                });
            }
            Event::Gap { channel, head, .. } if self.load.named(member, channel, head) => {}
            Event::Gap { channel, after, head } if self.load.is_new(channel, head) => {
                self.behind += 1;
                let what =
                    || format!("session {member}: channel {channel} behind {after}, which is at {head}");
                self.gap.get_or_insert_with(what);
            }
            Event::Gap { .. } => {}
            event => self.load.event(member, event),
        }
    }

    fn comes_back(&mut self, member: usize, ended: &Ended) -> bool {
        !self.closing && self.load.ended(member, ended)
    }

    fn refused(&mut self, member: usize, request: Option<u64>, error: &wire::Error) {
        let code = Code(error.code as u16);
        if self.load.refused(member, request, code) {
            return;
        }
        if code == Code::RATE_LIMITED {
            self.limited += 1;
        } else {
            let what = if request.is_some() { "a request" } else { "a frame without a number" };
            self.failed.get_or_insert(format!("session {member}: {what} failed: {code} {}", error.text));
        }
    }
}

/// See the module's page.
pub struct Crowd<L> {
    stage: Rc<RefCell<Stage<L>>>,
    wakes: Vec<Rc<Notify>>,
    tasks: JoinSet<()>,
}

impl<L: Load> Crowd<L> {
    /// Nobody yet.
    pub fn new(load: L) -> Self {
        let stage = Stage {
            load,
            ready: 0,
            limited: 0,
            repeats: 0,
            hole: None,
            behind: 0,
            gap: None,
            repeated_attempts: 0,
            failed: None,
            closing: false,
            count: None,
        };
        Self { stage: Rc::new(stage.into()), wakes: Vec::new(), tasks: JoinSet::new() }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.wakes.len()
    }

    /// Opens sessions for the next of `people` until there are `count`, and waits until all are in their audiences.
    pub async fn grow(&mut self, targets: &[ConnectOptions], people: &[Person], count: usize) -> Result<()> {
        while self.wakes.len() < count {
            let member = self.wakes.len();
            let person = people.get(member).context("more sessions than people")?;
            let options = targets[member % targets.len()].clone();
            let (wake, stage) = (Rc::new(Notify::new()), Rc::clone(&self.stage));
            self.wakes.push(Rc::clone(&wake));
            self.tasks.spawn_local(live(stage, member, options, person.token.clone(), wake));
            let opened = self.wakes.len();
            self.surely("sessions do not open", |stage| (stage.ready + OPENING_MAX >= opened, stage.ready))
                .await?;
        }
        self.surely("sessions do not get where their channels stand", |stage| {
            (stage.ready >= count, stage.ready)
        })
        .await
    }

    /// Does something with what is shared.
    pub fn with<R>(&self, work: impl FnOnce(&mut Stage<L>) -> R) -> R {
        work(&mut self.stage.borrow_mut())
    }

    /// What has a session look at what it is to send.
    pub fn waker(&self, member: usize) -> Option<Rc<Notify>> {
        self.wakes.get(member).cloned()
    }

    /// Has a session look at what it is to send.
    pub fn wake(&self, member: usize) {
        if let Some(wake) = self.wakes.get(member) {
            wake.notify_one();
        }
    }

    /// UDP datagrams that all sessions have received, over QUIC. Asked while nothing is under way.
    pub async fn datagrams_received(&self) -> Result<u64> {
        self.with(|stage| stage.count = Some(Count::default()));
        self.wakes.iter().for_each(|wake| wake.notify_one());
        let counted = |stage: &Stage<L>| stage.count.map_or(0, |count| count.sessions);
        self.surely("sessions do not answer", |stage| (counted(stage) >= self.len(), counted(stage))).await?;
        self.with(|stage| stage.count.take().map(|count| count.datagrams).context("it was just counted"))
    }

    /// As [`Self::until`]; that it does not come is an error.
    async fn surely(&self, what: &str, look: impl Fn(&Stage<L>) -> (bool, usize)) -> Result<()> {
        if self.until(look).await? {
            return Ok(());
        }
        if let Some(gap) = self.with(|stage| stage.gap.take()) {
            bail!("{what}: the server told a session to fetch what it missed ({gap})")
        }
        bail!("{what}: nothing moved for {} s", PATIENCE.as_secs())
    }

    /// Waits until `look` says so. Its second answer is any figure that moves while there is hope. Gives false where nothing moved
    /// for [`PATIENCE`], or a session fell behind: what is waited for does not come any more.
    ///
    /// # Errors
    /// A session failed.
    pub async fn until(&self, look: impl Fn(&Stage<L>) -> (bool, usize)) -> Result<bool> {
        let (mut moved_at, mut last) = (Instant::now(), usize::MAX);
        loop {
            {
                let stage = self.stage.borrow();
                if let Some(why) = &stage.failed {
                    bail!("{why}");
                }
                let (done, figure) = look(&stage);
                if done || stage.behind > 0 {
                    return Ok(done);
                }
                if figure != last {
                    (moved_at, last) = (Instant::now(), figure);
                }
            }
            if moved_at.elapsed() > PATIENCE {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets go of all sessions at once, without a word, and gives what was shared.
    pub async fn end(mut self) -> Result<Stage<L>> {
        self.stage.borrow_mut().closing = true;
        self.wakes.iter().for_each(|wake| wake.notify_one());
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a session's task failed")?;
        }
        Rc::try_unwrap(self.stage).ok().map(RefCell::into_inner).context("a session outlived its task")
    }
}

/// A session's life. What fails before the session was open is tried again as the SDK does it; what fails behind ends the run, where the
/// mode does not have it come back.
async fn live<L: Load>(
    stage: Rc<RefCell<Stage<L>>>,
    member: usize,
    options: ConnectOptions,
    token: String,
    wake: Rc<Notify>,
) {
    let mut device = DeviceState::new(DeviceId(member as u64 + 1));
    let (mut attempt, mut life) = (0, 0_u64);
    loop {
        let number = u64::from(attempt) | life << 8;
        let seed = (member as u64).wrapping_add(number << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let session_options = SessionOptions {
            token: token.clone(),
            delivery: stage.borrow().load.delivery(),
            device_name: "loadgen".into(),
            seed,
            ..Default::default()
        };
        let session = ClientSession::new(device.clone(), session_options, now_ms());
        let ended = match Connection::open(&options, session).await {
            Ok(connection) => {
                let turned = turn(&stage, member, connection, &wake).await;
                if turned.has_opened {
                    (attempt, life) = (0, life + 1);
                }
                device = turned.device;
                turned.ended
            }
            Err(error) => Some(error.ended()),
        };
        let Some(ended) = ended else { return };
        let delay_ms = {
            let mut shared = stage.borrow_mut();
            if shared.closing {
                return;
            }
            let delay_ms = ended.delay_ms(attempt, seed.rotate_left(32));
            let Some(delay_ms) = delay_ms.filter(|_| attempt + 1 < ATTEMPTS_MAX) else {
                shared.failed.get_or_insert(format!("session {member} cannot connect: {ended}"));
                return;
            };
            shared.repeated_attempts += 1;
            delay_ms
        };
        attempt += 1;
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
}

/// How a connection was turned.
struct Turned {
    /// Why it is to be tried again.
    ended: Option<Ended>,
    has_opened: bool,
    device: DeviceState,
}

/// Turns a connection until all is over, or it ends. Gives how, where the session was never open or is to come back.
async fn turn<L: Load>(
    stage: &Rc<RefCell<Stage<L>>>,
    member: usize,
    mut connection: Connection,
    wake: &Notify,
) -> Turned {
    let mut has_opened = false;
    let mut ended = None;
    loop {
        if connection.session().is_open() {
            stage.borrow_mut().load.transmit(member, connection.session(), now_ms());
        }
        let mut sink = |event| match event {
            Event::Ended(why) if !has_opened || stage.borrow_mut().comes_back(member, &why) => {
                ended = Some(why)
            }
            event => {
                has_opened |= matches!(event, Event::Welcome(_));
                stage.borrow_mut().event(member, event);
            }
        };
        tokio::select! {
            biased;
            turned = connection.turn(&mut sink) => if turned.is_err() { break },
            () = wake.notified() => {
                let mut stage = stage.borrow_mut();
                if stage.closing {
                    break;
                }
                if let Some(count) = &mut stage.count {
                    count.sessions += 1;
                    count.datagrams += connection.datagrams_received().unwrap_or(0);
                }
            }
        }
    }
    let repeats = connection.session().repeats();
    stage.borrow_mut().repeats += repeats;
    Turned { ended, has_opened, device: connection.into_session().into_device() }
}
