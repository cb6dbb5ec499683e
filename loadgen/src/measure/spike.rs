//! `spike`: for a while ten times the connects or ten times the messages, and what those notice who do what they did before.

mod book;
mod clock;
mod comers;
mod figures;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use fanfare_proto::UserId;
use serde::Serialize;

use super::{
    accounting::{CpuTimes, forget_peak, resident_bytes},
    beside::Beside,
    crowd::{Crowd, Stage},
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::{Maker, Person, people},
    reach::Sent,
    report::{Options, Outcome},
    server::{Server, Transport},
    udp,
};
use crate::scratch::Scratch;
use book::Book;
use clock::Clock;
use comers::Comers;
use figures::{Lasted, SpikeReport, Spiked};
use world::{Kind, Seats, World};

/// Small groups, and as many that are loud in the spike alone.
const SMALL: usize = 100;
/// Members of each.
const MEMBERS: usize = 5;
/// Senders of the hot group.
const HOT_SENDERS: usize = 20;
/// Users that connect and leave by turns.
const COMERS: usize = 2_000;
/// What opening sessions leaves to be done: positions are acknowledged within 12 s and then written.
const SETTLE: Duration = Duration::from_secs(15);
/// How often paces are looked at.
const TICK: Duration = Duration::from_millis(1);
/// From the end of the spike: at least so long, at most so long.
const AFTER_MIN: Duration = Duration::from_secs(6);
const AFTER_MAX: Duration = Duration::from_secs(75);
/// Seconds one after the other that have to be as before,
const STEADY: usize = 3;
/// with at least so much done,
const GOODPUT_BAR: f64 = 0.9;
/// and at most so many times the p99.
const P99_BAR: f64 = 2.0;

/// What there is more of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// Users that connect.
    Connects,
    /// Messages, to the hot group and to small ones.
    Messages,
    /// Both at once.
    Both,
}

impl On {
    fn name(self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::Messages => "messages",
            Self::Both => "both",
        }
    }
}

/// Ten times the connects, then ten times the messages, for a while each: what those notice who go on as before, and how soon it is over.
///
/// 100 small groups of 5 sessions get --small-rate messages a second each, one hot group of --hot-members sessions --hot-rate; --connects users
/// a second connect, get where their channels stand and leave. All by schedules that do not wait for the server, messages of 128 bytes, full
/// delivery. After --calm seconds, for --for: --factor times the connects; or --factor times the messages, those to the hot group by its senders,
/// those to small groups by 100 others of 5 sessions, so that the first 100 go on as before. Then as before, until three seconds one after the other
/// are as they were (6 s at least, 75 s at most). Nobody repeats what was refused; a session that is ended comes back as the SDK does (sessions_ended, by error number). The small groups' sessions are read by a thread of their own,
/// behind which those of the others and of the users that come stand back.
///
/// goodput_ratio: messages of the 100 groups acknowledged a second in the spike, by that before; and the same of sessions let in (the lesser of
/// both). recovery_s: from the end of the spike. refused: by error number; first_refused_s: from its beginning. All of the worst
/// spike. small_p99_ratio: 99th percentile of the time from when a message of the 100 groups was meant to leave to its receipt, in the spike
/// by that before; of several spikes of a kind their median, and small_p99_ratios its spread. lost: messages that were acknowledged and did not come, by DELIVER or, where a GAP named them, by FETCH.
///
/// peak_bytes: the most resident memory of the server; --memory-cap-mib is what it is to be at most.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (the machine has one core only, or
/// something was refused on this side). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Spike {
    /// So many times what there was before.
    #[arg(long, default_value_t = 10.0, value_parser = factor)]
    pub factor: f64,
    /// How long.
    #[arg(long = "for", default_value = "20s", value_parser = crate::duration)]
    pub length: Duration,
    /// Of what; several with commas between, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "connects,messages")]
    pub on: Vec<On>,
    /// Seconds before.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    pub calm: u64,
    /// Messages a second of each small group.
    #[arg(long, default_value_t = 2.0, value_parser = factor)]
    pub small_rate: f64,
    /// Messages a second of the hot group.
    #[arg(long, default_value_t = 8.0, value_parser = factor)]
    pub hot_rate: f64,
    /// Sessions of the hot group.
    #[arg(long, default_value = "2000", value_parser = crate::count)]
    pub hot_members: usize,
    /// Users a second that connect.
    #[arg(long, default_value_t = 30.0, value_parser = factor)]
    pub connects: f64,
    /// What the server's resident memory is to stay below.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub memory_cap_mib: u64,
    #[command(flatten)]
    pub options: Options,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.01..=100_000.0).contains(&number) => Ok(number),
        _ => Err("a number from 0.01 to 100000".into()),
    }
}

/// The whole run.
pub async fn run(arguments: &Spike, cores: &Cores) -> Result<SpikeReport> {
    ensure!(arguments.hot_members >= HOT_SENDERS, "--hot-members: {HOT_SENDERS} at least");
    ensure!(arguments.factor >= 1.0, "--factor: 1 at least");
    ensure!(arguments.length >= Duration::from_secs(2), "--for: 2s at least");
    ensure!(
        arguments.options.repeats.is_none(),
        "spike takes no --repeats: name what there is more of several times"
    );
    let house = House::open(arguments, cores).await?;
    let mut spikes = Vec::new();
    for on in &arguments.on {
        spikes.push(house.spike(arguments, *on).await?);
    }
    let Ended { deliveries, gaps, sessions } = house.end().await?;
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    if spikes.iter().any(Spiked::was_held_up_here) {
        reasons.push("something was refused on this side".into());
    }
    let lost = deliveries.lost;
    let outcome = Outcome::of(deliveries, 0, 0, reasons);
    Ok(SpikeReport::of(arguments, outcome, spikes, lost, gaps, sessions))
}

/// A server with all sessions: of the small groups on this thread, of the others on one that stands back, as those that come.
struct House {
    server: Server,
    small: Crowd<World>,
    loud: Beside<Crowd<World>>,
    coming: Beside<()>,
    comers: Comers,
    _scratch: Scratch,
}

/// How it ended.
struct Ended {
    deliveries: Deliveries,
    gaps: u64,
    sessions: BTreeMap<String, u64>,
}

impl House {
    async fn open(arguments: &Spike, cores: &Cores) -> Result<Self> {
        let transport = arguments.options.transport;
        let (small, loud) = (SMALL * MEMBERS, arguments.hot_members + SMALL * MEMBERS);
        let coming = (arguments.connects * arguments.factor * 15.0) as usize;
        allow_files(if transport == Transport::Quic { 0 } else { small + loud + coming.min(4_000) })?;
        let scratch = Scratch::new("spike", arguments.options.keep)?;
        let server = Server::start(&scratch.path, cores, transport).await?;
        let people: Arc<[Person]> = people(&server.admin, small + loud + COMERS).await?.into();
        let of_small: Vec<_> = (0..SMALL).map(|group| (Kind::Small, group * MEMBERS, MEMBERS)).collect();
        let mut of_loud = vec![(Kind::Hot, 0, arguments.hot_members)];
        let more = |group| (Kind::More, arguments.hot_members + group * MEMBERS, MEMBERS);
        of_loud.extend((0..SMALL).map(more));
        let of_small = make(&server, arguments, &people[..small], &of_small).await?;
        let of_loud = make(&server, arguments, &people[small..small + loud], &of_loud).await?;

        let mut small_crowd = Crowd::new(World::new(of_small, small, 0));
        small_crowd.grow(&server.targets, &people[..small], small).await?;
        let loud_crowd = Beside::start("loud", move || Crowd::new(World::new(of_loud, loud, small)))?;
        let (targets, all) = (server.targets.clone(), Arc::clone(&people));
        loud_crowd
            .ask(async move |crowd| {
                let targets = if transport == Transport::Quic { udp::apart(&targets)? } else { targets };
                crowd.grow(&targets, &all[small..small + loud], loud).await
            })
            .await?;
        let comers = Comers {
            people: people[small + loud..].into(),
            targets: server.targets.clone(),
            per_s: arguments.connects,
            spike_per_s: arguments.connects,
        };
        let coming = Beside::start("coming", || ())?;
        tokio::time::sleep(SETTLE).await;
        Ok(Self { server, small: small_crowd, loud: loud_crowd, coming, comers, _scratch: scratch })
    }

    async fn spike(&self, arguments: &Spike, on: On) -> Result<Spiked> {
        let factor = |is_more: bool| if is_more { arguments.factor } else { 1.0 };
        let (messages, connects) = (factor(on != On::Connects), factor(on != On::Messages));
        let clock = Clock {
            from: Instant::now() + Duration::from_millis(200),
            calm: Duration::from_secs(arguments.calm),
            spike: arguments.length,
        };
        let (before_bytes, _) = resident_bytes(self.server.pid())?;
        forget_peak(self.server.pid())?;
        let is_over = Arc::new(AtomicBool::new(false));
        self.small.with(|stage| stage.load.begin(clock, messages));
        let over = Arc::clone(&is_over);
        let loud = self.loud.ask(async move |crowd| {
            crowd.with(|stage| stage.load.begin(clock, messages));
            keep_pace(crowd, || over.load(Ordering::Relaxed)).await
        });
        let comers = Comers { spike_per_s: self.comers.per_s * connects, ..self.comers.clone() };
        let over = Arc::clone(&is_over);
        let coming = self.coming.ask(async move |()| comers.come(clock, over).await);
        let small = async {
            let kept = keep_pace(&self.small, || self.is_recovered(&clock)).await;
            is_over.store(true, Ordering::Relaxed);
            kept
        };
        let (small, loud, came, cores) = tokio::join!(small, loud, coming, self.cores(&clock));
        let (_, came, cores) = ((small?, loud?), came?, cores?);
        let (_, peak_bytes) = resident_bytes(self.server.pid())?;
        // What does not come is counted at the end.
        self.small.until(settled).await?;
        self.loud.ask(async |crowd| crowd.until(settled).await).await?;
        let mut books = self.small.with(|stage| stage.load.books.take()).context("it was begun")?;
        let loud = self.loud.ask(async |crowd| Ok(crowd.with(|stage| stage.load.books.take()))).await?;
        let loud = loud.context("it was begun")?;
        for (at, book) in loud.into_iter().enumerate().skip(1) {
            books[at] = book;
        }
        let [small, hot, more] = books;
        Ok(Spiked::of(on, &Lasted { small, hot, more, came, cores }, before_bytes, peak_bytes))
    }

    /// Cores that the server was running on before, and in the spike.
    async fn cores(&self, clock: &Clock) -> Result<(f64, f64)> {
        let of = |now: &CpuTimes, before: &CpuTimes, length: Duration| {
            now.since(before).values().sum::<u64>() as f64 / length.as_nanos() as f64
        };
        tokio::time::sleep_until(clock.from.into()).await;
        let began = self.server.cpu()?;
        tokio::time::sleep_until((clock.from + clock.calm).into()).await;
        let before = self.server.cpu()?;
        tokio::time::sleep_until(clock.over().into()).await;
        let over = self.server.cpu()?;
        Ok((of(&before, &began, clock.calm), of(&over, &before, clock.spike)))
    }

    /// Whether the small groups are as before, or never will be.
    fn is_recovered(&self, clock: &Clock) -> bool {
        let since = Instant::now().saturating_duration_since(clock.over());
        since >= AFTER_MAX
            || since >= AFTER_MIN
                && self.small.with(|stage| {
                    stage.load.books.as_ref().is_some_and(|books| recovered_s(&books[0]).is_some())
                })
    }

    async fn end(self) -> Result<Ended> {
        let (mut deliveries, mut gaps, mut sessions) = counted(self.small.end().await?);
        let loud = self.loud.end(async |crowd| Ok(counted(crowd.end().await?))).await?;
        self.coming.end(async |()| Ok(())).await?;
        deliveries.add(loud.0);
        gaps += loud.1;
        for (why, count) in loud.2 {
            *sessions.entry(why).or_default() += count;
        }
        self.server.stop()?;
        Ok(Ended { deliveries, gaps, sessions })
    }
}

fn recovered_s(small: &Book) -> Option<f64> {
    small.recovered_s(STEADY, GOODPUT_BAR, P99_BAR)
}

fn settled(stage: &Stage<World>) -> (bool, usize) {
    (stage.load.is_settled(), stage.load.moved)
}

fn counted(mut stage: Stage<World>) -> (Deliveries, u64, BTreeMap<String, u64>) {
    let mut deliveries = stage.load.close();
    stage.add_to(&mut deliveries);
    (deliveries, stage.load.gaps, stage.load.ended)
}

/// Has groups send by their paces until it is over.
async fn keep_pace(crowd: &Crowd<World>, is_over: impl Fn() -> bool) -> Result<()> {
    while !is_over() {
        let due = crowd.with(|stage| stage.load.due());
        due.into_iter().for_each(|sender| crowd.wake(sender));
        tokio::time::sleep(TICK).await;
    }
    crowd.with(|stage| stage.load.hush());
    Ok(())
}

/// Makes groups of (kind, first member, members).
async fn make(
    server: &Server,
    arguments: &Spike,
    people: &[Person],
    groups: &[(Kind, usize, usize)],
) -> Result<Vec<Seats>> {
    let target = server.targets.first().context("there is a way to connect")?;
    let mut seats = Vec::with_capacity(groups.len());
    for (kind, first, count) in groups.iter().copied() {
        let others: Vec<UserId> = people[first + 1..first + count].iter().map(|person| person.id).collect();
        let mut maker = Maker::open(target, people, first).await?;
        let made = maker.group(kind.name(), &others).await?;
        maker.close().await;
        let is_hot = kind == Kind::Hot;
        seats.push(Seats {
            kind,
            sent: Sent::new(made.channel, made.head),
            members: first..first + count,
            senders: if is_hot { HOT_SENDERS } else { count },
            per_s: if is_hot { arguments.hot_rate } else { arguments.small_rate },
        });
    }
    Ok(seats)
}
