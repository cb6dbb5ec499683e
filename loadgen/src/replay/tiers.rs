//! `replay --tiers`: whether members had been pushed what they answer, and how much was pushed for that. The trace drives the server's
//! clock; every member's app is on screen, and nobody opens a channel or fetches.

mod answers;
mod figures;
mod model;

use std::{
    cell::RefCell,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    rc::Rc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, Frame, UserId,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire::{self, entry, open::Target, send::Content},
};
use hashbrown::HashMap;
use indicatif::ProgressBar;
use tokio::{
    sync::Notify,
    task::{JoinSet, LocalSet},
};

use self::answers::Reached;
pub use self::figures::Report;
use super::{OPENING_MAX, SETTLE_PATIENCE, bar, people, targets};
use crate::{
    Replay,
    admin::Admin,
    plan::{Plan, Step},
    scratch::Scratch,
    server_process::ServerProcess,
    trace::{Bodies, Row, Trace},
};

/// No answer to a send for so long: the run fails.
const ACK_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes 9 to 15 of a client message id, 56 bits that are kept whole.
const ROW_AT: usize = 9;

/// The clock of the server's router: a file that it reads.
struct DrivenClock {
    file: File,
    start_ms: u64,
}

impl DrivenClock {
    fn create(path: &Path) -> Result<Self> {
        let start_ms = UNIX_EPOCH.elapsed()?.as_millis() as u64;
        let clock = Self { file: File::create(path)?, start_ms };
        clock.set(clock.start_ms)?;
        Ok(clock)
    }

    fn set(&self, ms: u64) -> Result<()> {
        self.file.write_all_at(&ms.to_le_bytes(), 0).context("cannot set the server's clock")
    }
}

struct User {
    id: UserId,
    token: String,
    wake: Rc<Notify>,
    /// Newest seq by channel that it was sent or told.
    heads: HashMap<ChannelId, u64>,
}

/// What the one message that is under way needs next.
struct UnderWay {
    row: usize,
    step: Step,
    request: Option<u64>,
}

struct Stage {
    plan: Plan,
    users: Vec<User>,
    bodies: Bodies,
    clock: DrivenClock,
    channels: Vec<Option<ChannelId>>,
    heads: HashMap<ChannelId, u64>,
    members: Vec<Vec<u32>>,
    /// Newest message of each topic: seq and sender.
    topics: Vec<(u64, Option<u32>)>,
    reached: Reached,
    under_way: Option<UnderWay>,
    ids: u64,
    open: usize,
    duplicated: u64,
    closing: bool,
    failed: Option<String>,
    finished: Rc<Notify>,
}

type Shared = Rc<RefCell<Stage>>;

impl Stage {
    fn fail(&mut self, why: String) {
        self.failed.get_or_insert(why);
        self.finished.notify_one();
    }

    /// The virtual time of a row.
    fn time_ms(&self, row: usize) -> u64 {
        self.clock.start_ms + (self.plan.row(row).time_s - self.plan.row(0).time_s) * 1_000
    }

    /// The next row of the trace is under way, at its time.
    fn begin(&mut self) {
        let Some((row, step)) = self.plan.next(u64::MAX) else { return self.finished.notify_one() };
        if let Err(error) = self.clock.set(self.time_ms(row)) {
            return self.fail(format!("{error:#}"));
        }
        self.under_way = Some(UnderWay { row, step, request: None });
        self.users[self.plan.row(row).sender as usize].wake.notify_one();
    }

    fn id(&mut self, row: usize) -> bytes::Bytes {
        self.ids += 1;
        let mut id = ClientMessageId::new(self.time_ms(row), [0; 10]).0;
        // A message's id names its row; those of openings and joins are beyond all rows.
        let number = match self.under_way.as_ref().map(|under_way| under_way.step) {
            Some(Step::Send) => row as u64,
            _ => self.plan.total() as u64 + self.ids,
        };
        id[ROW_AT..].copy_from_slice(&number.to_be_bytes()[1..]);
        bytes::Bytes::copy_from_slice(&id)
    }

    fn message(&self, number: usize) -> wire::Message {
        let Row { topic, sender, bytes, .. } = *self.plan.row(number);
        let (seq, by) = self.topics[topic as usize];
        let mentioned = by.filter(|by| *by != sender).map(|by| self.users[by as usize].id.0);
        wire::Message {
            text: self.bodies.text(number as u64, bytes as usize),
            mentions: mentioned.into_iter().collect(),
            reply_to: seq,
            ..Default::default()
        }
    }

    /// Puts what is under way into its sender's session.
    fn transmit(&mut self, user: usize, session: &mut ClientSession) {
        let Some(UnderWay { row, step, request: None }) = self.under_way else { return };
        let trace = *self.plan.row(row);
        if trace.sender as usize != user {
            return;
        }
        let client_message_id = self.id(row);
        let request = match (step, self.channels[trace.channel as usize]) {
            (Step::Open, _) => {
                let group = wire::Group {
                    name: format!("channel-{}", trace.channel + 1),
                    history: wire::HistoryPolicy::FromJoin.into(),
                    join: wire::JoinPolicy::OpenToAll.into(),
                    posting: wire::PostingPolicy::EveryMember.into(),
                    ..Default::default()
                };
                session.open(&wire::Open { client_message_id, target: Some(Target::Group(group)) })
            }
            (step, Some(channel)) => {
                let content = if step == Step::Join {
                    Content::Membership(wire::Membership {
                        change: wire::MembershipChange::Joined.into(),
                        users: vec![self.users[user].id.0],
                        role: wire::Role::Member.into(),
                        until_ms: 0,
                    })
                } else {
                    Content::Message(self.message(row))
                };
                let send = wire::Send { client_message_id, content: Some(content), ..Default::default() };
                session.send(channel, &send, false)
            }
            (_, None) => return self.fail(format!("channel {} is not open", trace.channel + 1)),
        };
        // A full session is tried again when it has sent something.
        if let (Ok(request), Some(under_way)) = (request, &mut self.under_way) {
            under_way.request = Some(request);
        }
    }

    fn is_answer(&self, user: usize, request: u64) -> Option<(usize, Step)> {
        let under_way = self.under_way.as_ref()?;
        let is_mine = self.plan.row(under_way.row).sender as usize == user;
        (is_mine && under_way.request == Some(request)).then_some((under_way.row, under_way.step))
    }

    fn joined(&mut self, row: usize, channel: ChannelId, seq: u64) {
        let Row { channel: number, sender, .. } = *self.plan.row(row);
        self.channels[number as usize] = Some(channel);
        self.members[number as usize].push(sender);
        self.raise(sender as usize, channel, seq);
        self.plan.joined(row);
        self.under_way = Some(UnderWay { row, step: Step::Send, request: None });
        self.users[sender as usize].wake.notify_one();
    }

    fn acked(&mut self, user: usize, channel: ChannelId, request: u64, ack: &wire::SendAck) {
        let Some((row, step)) = self.is_answer(user, request) else { return };
        if ack.outcome() != wire::Outcome::Ok {
            return self.fail(format!("row {row}: a send ended with {:?}", Code(ack.code as u16)));
        }
        self.raise(user, channel, ack.seq);
        if step == Step::Join {
            return self.joined(row, channel, ack.seq);
        }
        let Row { topic, sender, .. } = *self.plan.row(row);
        self.topics[topic as usize] = (ack.seq, Some(sender));
        self.under_way = None;
        self.plan.finish(row);
        self.begin();
    }

    /// A user was sent an entry, or told the head.
    fn raise(&mut self, user: usize, channel: ChannelId, seq: u64) {
        for head in
            [self.heads.entry(channel).or_default(), self.users[user].heads.entry(channel).or_default()]
        {
            *head = (*head).max(seq);
        }
    }

    fn delivered(&mut self, user: usize, frame: &Frame) {
        let Some(header) = frame.routed() else { return };
        self.raise(user, header.channel, header.seq);
        let Ok(entry) = frame.decode::<wire::Entry>() else {
            return self.fail("an entry cannot be read".into());
        };
        if !matches!(entry.content, Some(entry::Content::Message(_))) {
            return;
        }
        let mut number = [0; 8];
        let id = &entry.client_message_id;
        if id.len() == 16 {
            number[1..].copy_from_slice(&id[ROW_AT..]);
        }
        let row = u64::from_be_bytes(number) as usize;
        let is_own = row < self.plan.total() && self.plan.row(row).sender as usize == user;
        if row >= self.plan.total() {
            self.fail(format!("an entry names row {row}"));
        } else if !is_own && !self.reached.insert(row, user) {
            self.duplicated += 1;
        }
    }

    /// Memberships whose session does not know the head of its channel yet.
    fn behind(&self) -> usize {
        let is_behind = |channel: Option<ChannelId>, user: u32| {
            let channel = channel.unwrap_or_default();
            self.users[user as usize].heads.get(&channel) < self.heads.get(&channel)
        };
        let of = |(members, channel): (&Vec<u32>, &Option<ChannelId>)| {
            members.iter().filter(|user| is_behind(*channel, **user)).count()
        };
        self.members.iter().zip(&self.channels).map(of).sum()
    }

    fn take(&mut self, user: usize, event: Event) {
        match event {
            Event::Deliver(frame) => self.delivered(user, &frame),
            Event::Notified { channel, head, .. } | Event::Gap { channel, head, .. } => {
                self.raise(user, channel, head);
            }
            Event::Welcome(_) => self.open += 1,
            Event::SendAck { channel, request, ack } => self.acked(user, channel, request, &ack),
            Event::Channel { request, state } if request != 0 => {
                if let Some((row, Step::Open)) = self.is_answer(user, request) {
                    self.joined(row, ChannelId(state.channel), state.head);
                }
            }
            Event::Refused { error, .. } | Event::Failed(error) => {
                self.fail(format!("{:?}: {}", Code(error.code as u16), error.text));
            }
            Event::Defect { channel, kind, .. } => self.fail(format!("{kind:?} in channel {channel}")),
            Event::Ended(ended) if !self.closing => self.fail(format!("a session ended: {ended}")),
            _ => {}
        }
    }
}

async fn session(stage: Shared, user: usize, options: ConnectOptions) {
    let (token, wake) = {
        let stage = stage.borrow();
        (stage.users[user].token.clone(), Rc::clone(&stage.users[user].wake))
    };
    let screen = wire::State { attention: wire::Attention::Foreground.into(), ..Default::default() };
    let session_options = SessionOptions {
        token,
        device_name: "loadgen".into(),
        screen: Some(screen),
        seed: user as u64,
        ..Default::default()
    };
    let session = ClientSession::new(DeviceState::new(DeviceId(user as u64 + 1)), session_options, now_ms());
    let mut connection = match Connection::open(&options, session).await {
        Ok(connection) => connection,
        Err(error) => return stage.borrow_mut().fail(format!("cannot connect: {error}")),
    };
    loop {
        {
            let mut stage = stage.borrow_mut();
            if stage.closing || stage.failed.is_some() {
                break;
            }
            stage.transmit(user, connection.session());
        }
        let mut sink = |event| stage.borrow_mut().take(user, event);
        let ended = tokio::select! {
            biased;
            turned = connection.turn(&mut sink) => turned.err(),
            () = wake.notified() => None,
        };
        if let Some(ended) = ended {
            let mut stage = stage.borrow_mut();
            if !stage.closing {
                stage.fail(format!("a session ended: {ended}"));
            }
            return;
        }
    }
    let repeats = connection.session().repeats();
    stage.borrow_mut().duplicated += repeats;
    connection.close(Code(0)).await;
}

/// The whole run.
pub fn run(arguments: &Replay) -> Result<Report> {
    if arguments.server.is_some() || arguments.kill.is_some() || arguments.power_cut {
        bail!("--tiers drives the clock of a server of its own: leave --server, --kill and --power-cut out");
    }
    let trace = Trace::read(&arguments.trace, arguments.skip, arguments.messages)?;
    let bodies = Bodies::read(&arguments.bodies)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let scratch = Scratch::new("replay", arguments.keep)?;
    let ran = local.block_on(&runtime, replay(arguments, &trace, bodies, &scratch))?;
    Report::of(arguments, &trace, &ran)
}

/// What a run leaves.
struct Ran {
    reached: Reached,
    duplicated: u64,
    /// Memberships whose session did not come to know the head.
    behind: usize,
    start_ms: u64,
    duration: Duration,
    server_cpu_s: f64,
}

async fn replay(arguments: &Replay, trace: &Trace, bodies: Bodies, scratch: &Scratch) -> Result<Ran> {
    let path = scratch.path.join("clock");
    let clock = DrivenClock::create(&path)?;
    let start_ms = clock.start_ms;
    let mut server = ServerProcess::prepare(&scratch.path, false)?;
    server.set("FANFARE__ROUTER__CLOCK", path);
    let admin_file = server.start()?;
    let admin = Admin::new(&admin_file)?;
    let targets = targets(&admin_file, arguments.transport).await?;
    let user = |person: super::User| User {
        id: person.id,
        token: person.token,
        wake: Rc::default(),
        heads: HashMap::new(),
    };
    let users = people(&admin, trace.senders).await?.into_iter().map(user).collect();
    let finished = Rc::new(Notify::new());
    let stage: Shared = Rc::new(RefCell::new(Stage {
        plan: Plan::new(trace.rows.clone(), trace.channels, trace.senders, 1),
        users,
        bodies,
        clock,
        channels: vec![None; trace.channels],
        heads: HashMap::new(),
        members: vec![Vec::new(); trace.channels],
        topics: vec![(0, None); trace.topics],
        reached: Reached::new(trace),
        under_way: None,
        ids: 0,
        open: 0,
        duplicated: 0,
        closing: false,
        failed: None,
        finished: Rc::clone(&finished),
    }));
    let bar = bar(trace.rows.len())?;
    bar.set_message("connecting");
    let mut sessions = JoinSet::new();
    for user in 0..trace.senders {
        sessions.spawn_local(session(Rc::clone(&stage), user, targets[user % targets.len()].clone()));
        opened(&stage, (user + 1).saturating_sub(OPENING_MAX)).await?;
    }
    opened(&stage, trace.senders).await?;

    bar.set_message("sending");
    let began = Instant::now();
    stage.borrow_mut().begin();
    sent(&stage, &finished, &bar).await?;
    let duration = began.elapsed();
    bar.set_message("settling");
    let deadline = Instant::now() + SETTLE_PATIENCE;
    while stage.borrow().behind() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.check_alive()?;
    }
    let server_cpu_s = server.cpu_s();
    let behind = stage.borrow().behind();
    {
        let mut stage = stage.borrow_mut();
        stage.closing = true;
        stage.users.iter().for_each(|user| user.wake.notify_one());
    }
    while let Some(ended) = sessions.join_next().await {
        ended?;
    }
    server.stop()?;
    bar.finish_and_clear();
    let mut stage = stage.borrow_mut();
    if let Some(why) = &stage.failed {
        bail!("{why}");
    }
    let reached = std::mem::replace(&mut stage.reached, Reached::none());
    Ok(Ran { reached, duplicated: stage.duplicated, behind, start_ms, duration, server_cpu_s })
}

/// Waits until so many sessions are open.
async fn opened(stage: &Shared, count: usize) -> Result<()> {
    let deadline = Instant::now() + ACK_PATIENCE;
    while stage.borrow().open < count {
        if let Some(why) = &stage.borrow().failed {
            bail!("{why}");
        }
        if Instant::now() > deadline {
            bail!("sessions do not open");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until every row was sent and acknowledged.
async fn sent(stage: &Shared, finished: &Notify, bar: &ProgressBar) -> Result<()> {
    let mut seen = (0, Instant::now());
    loop {
        let _ = tokio::time::timeout(Duration::from_millis(200), finished.notified()).await;
        let stage = stage.borrow();
        if let Some(why) = &stage.failed {
            bail!("{why}");
        }
        let done = stage.plan.finished();
        bar.set_position(done as u64);
        if stage.plan.is_done() {
            return Ok(());
        }
        if done > seen.0 {
            seen = (done, Instant::now());
        } else if seen.1.elapsed() > ACK_PATIENCE {
            bail!("row {done} was not acknowledged within {} s", ACK_PATIENCE.as_secs());
        }
    }
}
