//! `storm`: all sessions but a few drop at once and come back by the resume secret, while those few go on talking.

mod crowd;
mod session;
mod world;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fanfare_client::connection::ConnectOptions;
use serde::Serialize;

use super::{
    accounting::{forget_peak, resident_bytes},
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::{Made, Maker, Person, people},
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::{Ratio, Spread},
};
use crate::scratch::Scratch;
use crowd::{Crowd, Dropping, Seats};
use world::{Places, Sent, Side, World};

/// Storms where nothing else is asked for.
const REPEATS: usize = 2;
/// Between two messages of a talker.
const EVERY: Duration = Duration::from_secs(1);
/// How long talkers talk before everybody drops.
const CALM: Duration = Duration::from_secs(10);
/// Source addresses of TCP sessions: those that dropped leave their ports in TIME_WAIT.
const ADDRESSES: u8 = 4;
/// The others' p99 is to be at most so many times what it was.
const BAR: f64 = 2.0;

/// All sessions drop at once and come back by the resume secret, while others talk.
///
/// The --sessions that drop are spread over as many groups as there are talkers (--talkers); in each group one talker sends a message
/// of 128 bytes a second by a schedule that does not wait for the server, and the next talker is a member too. After 10 s of that all
/// sessions but the talkers let go of their connections without a word, and when all have, come back as the SDK does (after a random
/// part of half a second, then with growing pauses; 2,048 are connecting at once at most), by the resume secret alone. What was sent meanwhile must come to each of
/// them, once, in order: every delivery to every member is checked.
///
/// lost, duplicated: of those deliveries. resume_s: from the drop until the last session knows where its channels
/// stand and has them filled. attempts_per_session: connections tried; by_token: how often the secret was not taken.
///
/// others_p99_ratio: 99th percentile of the time from when a talker's message was meant to leave to its receipt by the next talker,
/// of the messages between the drop and the last session's return, by that of the 10 s before (`ours` and `floor`, in milliseconds).
/// Those that drop are turned by a thread of their own that stands back behind the talkers'.
///
/// peak_bytes: the most resident memory of the server from the drop until everything had arrived; before_bytes: before the drop.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke, or the
/// machine has one core only). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Storm {
    /// Sessions that drop; several sizes with commas between.
    #[arg(long, value_delimiter = ',', value_parser = crate::count, default_value = "15000")]
    pub sessions: Vec<usize>,
    /// Sessions that stay and talk, at least 2.
    #[arg(long, value_parser = crate::count, default_value = "200")]
    pub talkers: usize,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.storm/v1`.
#[derive(Debug, Serialize)]
pub struct StormReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    repeats: usize,
    sizes: Vec<Size>,
}

/// What was measured with one number of sessions.
#[derive(Debug, Serialize)]
struct Size {
    sessions: usize,
    talkers: usize,
    lost: u64,
    duplicated: u64,
    resume_s: Spread,
    attempts_per_session: Spread,
    /// Why the last attempt that failed did.
    attempt_failed: Option<String>,
    by_token: u64,
    gaps: u64,
    /// Milliseconds.
    others_p99_ratio: Ratio,
    peak_bytes: Spread,
    before_bytes: Spread,
}

/// Figures of one storm.
struct Round {
    resume_s: f64,
    attempts: f64,
    attempt_failed: Option<String>,
    by_token: u64,
    calm_p99_ms: f64,
    storm_p99_ms: f64,
    before_bytes: f64,
    peak_bytes: f64,
}

/// The whole run.
pub async fn run(arguments: &Storm, cores: &Cores) -> Result<StormReport> {
    let mut deliveries = Deliveries::default();
    let (mut limited, mut reasons) = (0, Vec::new());
    let mut sizes = Vec::new();
    ensure!(arguments.talkers >= 2, "--talkers: 2 at least, since each talks to the next");
    for sessions in &arguments.sessions {
        let (size, counted, spoken) = measure(arguments, cores, *sessions).await?;
        deliveries.add(counted);
        limited += spoken;
        sizes.push(size);
    }
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    Ok(StormReport {
        schema: "fanfare.storm/v1",
        outcome: Outcome::of(deliveries, limited, 0, reasons),
        transport: arguments.options.transport,
        repeats: arguments.options.repeats.unwrap_or(REPEATS),
        sizes,
    })
}

async fn measure(arguments: &Storm, cores: &Cores, sessions: usize) -> Result<(Size, Deliveries, u64)> {
    let places = Places { talkers: arguments.talkers, sessions: arguments.talkers + sessions };
    let transport = arguments.options.transport;
    allow_files(if transport == Transport::Quic { 0 } else { places.sessions })?;
    let scratch = Scratch::new("storm", arguments.options.keep)?;
    let server = Server::start(&scratch.path, cores, transport).await?;
    let people = people(&server.admin, places.sessions).await?;
    let made = groups(&server, places, &people).await?;
    let (sent, ways) = (Sent::default(), ways(&server, transport));
    let mut talkers = Crowd::new(World::new(places, Side::Talkers, &made, sent.clone())?);
    talkers.open(Side::Talkers, &ways, &people[..places.talkers], 0).await?;
    let dropping = Dropping::open(Seats {
        places,
        made,
        sent,
        ways,
        over_quic: transport == Transport::Quic,
        people: people[places.talkers..].to_vec(),
    })
    .await?;
    let mut rounds = Vec::new();
    for _ in 0..arguments.options.repeats.unwrap_or(REPEATS) {
        match storm(&talkers, &dropping, server.pid()).await? {
            Some(round) => rounds.push(round),
            None => break,
        }
    }
    let counted = dropping.end().await?;
    let mut world = talkers.end().await?;
    server.stop()?;
    let mut deliveries = world.deliveries();
    deliveries.add(counted.deliveries);
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    let beside: Vec<(f64, f64)> =
        rounds.iter().map(|round| (round.storm_p99_ms, round.calm_p99_ms)).collect();
    let size = Size {
        sessions,
        talkers: places.talkers,
        lost: deliveries.lost,
        duplicated: deliveries.duplicated,
        resume_s: of(|round| round.resume_s),
        attempts_per_session: of(|round| round.attempts),
        by_token: rounds.iter().map(|round| round.by_token).sum(),
        attempt_failed: rounds.iter().rev().find_map(|round| round.attempt_failed.clone()),
        gaps: world.gaps + counted.gaps,
        others_p99_ratio: Ratio::of(&beside, Some(BAR)),
        peak_bytes: of(|round| round.peak_bytes),
        before_bytes: of(|round| round.before_bytes),
    };
    Ok((size, deliveries, world.limited + counted.limited))
}

/// One storm; `None` where something does not come: the ledgers count it.
async fn storm(talkers: &Crowd, dropping: &Dropping, server: u32) -> Result<Option<Round>> {
    talkers.world.borrow_mut().talk(EVERY);
    talkers.wake();
    tokio::time::sleep(CALM).await;
    let (before_bytes, _) = resident_bytes(server)?;
    forget_peak(server)?;
    talkers.world.borrow_mut().storm();
    let back = dropping.storm().await?;
    talkers.world.borrow_mut().hush();
    let settled = talkers.settle().await? && dropping.settle().await?;
    let (_, peak_bytes) = resident_bytes(server)?;
    let world = talkers.world.borrow();
    let ms = |us: u64| us as f64 / 1e3;
    Ok(settled.then(|| Round {
        resume_s: back.resume_s,
        attempts: back.attempts,
        attempt_failed: back.attempt_failed,
        by_token: back.by_token,
        calm_p99_ms: ms(world.calm_us.value_at_quantile(0.99)),
        storm_p99_ms: ms(world.storm_us.value_at_quantile(0.99)),
        before_bytes: before_bytes as f64,
        peak_bytes: peak_bytes as f64,
    }))
}

async fn groups(server: &Server, places: Places, people: &[Person]) -> Result<Vec<Made>> {
    let target = server.targets.first().context("there is a way to connect")?;
    let mut made = Vec::with_capacity(places.talkers);
    for (number, others) in world::groups(places, people).iter().enumerate() {
        let mut maker = Maker::open(target, people, number).await?;
        made.push(maker.group(&format!("group-{number}"), others).await?);
        maker.close().await;
    }
    Ok(made)
}

/// How sessions connect; over TCP from several addresses of this machine.
fn ways(server: &Server, transport: Transport) -> Vec<ConnectOptions> {
    if transport == Transport::Quic {
        return server.targets.clone();
    }
    let from = |last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    let of = |target: &ConnectOptions| -> Vec<ConnectOptions> {
        (1..=ADDRESSES).map(|last| target.clone().local(from(last))).collect()
    };
    server.targets.iter().flat_map(of).collect()
}

impl Report for StormReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!("  storms over {:?}, {} repeats (median, least to most)", self.transport, self.repeats);
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        for size in &self.sizes {
            let ratio = size.others_p99_ratio;
            println!(
                "  {} sessions drop, {} talk: {} lost, {} duplicated, {} gaps fetched, {} times by token",
                size.sessions, size.talkers, size.lost, size.duplicated, size.gaps, size.by_token
            );
            println!(
                "    back after    {:>8.2} s ({:.2} to {:.2}), {:.2} attempts a session",
                size.resume_s.median, size.resume_s.min, size.resume_s.max, size.attempts_per_session.median
            );
            if let Some(why) = &size.attempt_failed {
                println!("    attempts      the last that failed: {why}");
            }
            println!("    others' p99   {:>8.2} ms, before {:.2} ms", ratio.ours, ratio.floor);
            println!("    ratio         {}", ratio.text());
            println!(
                "    memory        {:>8.1} MiB at most, {:.1} MiB before",
                mib(size.peak_bytes.median),
                mib(size.before_bytes.median)
            );
        }
    }
}
