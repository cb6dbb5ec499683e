//! `leak`: whether memory returns to what it was after sessions came and went and messages were sent.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    Code, DeviceId,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire,
};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    accounting::process_bytes,
    crowd::Crowd,
    idle::blocks::{BLOCK, Blocks, channels},
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::{Person, people},
    report::{Options, Outcome, Report},
    server::{Server, Transport},
};
use crate::{report::Verdict, scratch::Scratch};

/// Sessions that stay and talk.
const TALKERS: usize = 200;
/// Messages that each of them sends in a second.
const SENDS_PER_S: u32 = 1;
/// Users that come and go, in turn.
const COMERS: usize = 500;
/// Of them on their way at once.
const COMING_MAX: usize = 32;
/// Channels of each user, one of them everybody's.
const CHANNELS: u16 = 5;
/// What sessions that came and went may leave, each (less than the smallest thing that one has), and all together: pages that
/// the allocator keeps are not the same at any two times.
const BYTES_PER_CONNECT_BAR: u64 = 256;
const CONNECTS_BYTES_BAR: u64 = 4 << 20;
/// What traffic may leave: memtables and page caches of the stores are bounded, but not full before.
const TRAFFIC_BYTES_BAR: u64 = 48 << 20;

/// Memory of the server before and after sessions came and went, and before and after traffic.
///
/// 200 sessions stay, in 5 channels each. First comes what is not counted: all 500 users that come and go do so four times, and the 200 talk for
/// 10 s. After --rest seconds memory is read (`before_bytes`). Then --connects times a user connects, gets where its channels
/// stand, and leaves, every other time without a goodbye; after a rest it is read again (`after_connects_bytes`). Then the 200
/// send a message a second each, to the 40 of their block, for --seconds, while as many users come and go; after a rest it is read
/// for the third time (`after_traffic_bytes`). Memory is Anonymous of /proc/PID/smaps_rollup.
///
/// connects_bytes: what the first part left; at most 4 MiB and 256 bytes for each that came and went. traffic_bytes: what the
/// second part left; at most 48 MiB, which the stores' memtables and caches may grow until they are full.
///
/// Exit status: 0 PASS, 1 error, 10 memory did not return or a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke).
#[derive(clap::Args, Clone, Debug)]
pub struct Leak {
    /// How many times a user connects and leaves, in each of the two parts.
    #[arg(long, value_parser = crate::count, default_value = "10000")]
    pub connects: usize,
    /// Seconds of traffic.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400), default_value_t = 600)]
    pub seconds: u64,
    /// Seconds without anything before memory is read.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600), default_value_t = 30)]
    pub rest: u64,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.leak/v1`.
#[derive(Debug, Serialize)]
pub struct LeakReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    connects: usize,
    messages: u64,
    before_bytes: u64,
    after_connects_bytes: u64,
    after_traffic_bytes: u64,
    connects_bytes: i64,
    connects_bytes_bar: u64,
    traffic_bytes: i64,
    traffic_bytes_bar: u64,
}

/// The whole run.
pub async fn run(arguments: &Leak, cores: &Cores) -> Result<LeakReport> {
    ensure!(arguments.options.repeats.is_none(), "leak takes no --repeats: it is one long run");
    let transport = arguments.options.transport;
    allow_files(TALKERS + COMING_MAX)?;
    let scratch = Scratch::new("leak", arguments.options.keep)?;
    let mut server = Server::start(&scratch.path, cores, transport).await?;
    let all: Rc<[Person]> = people(&server.admin, TALKERS + COMERS).await?.into();
    // Whole blocks, so that who comes and goes is in nobody's way who talks.
    ensure!(TALKERS.is_multiple_of(BLOCK), "talkers are whole blocks");
    let made = channels(&server, &all, CHANNELS).await?;
    server.restart().await?;
    let mut crowd = Crowd::new(Blocks::new(&made, TALKERS + COMERS));
    crowd.grow(&server.targets, &all, TALKERS).await?;
    let rest = Duration::from_secs(arguments.rest);
    let read = async || {
        tokio::time::sleep(rest).await;
        process_bytes(server.pid())
    };

    let no_time = Duration::ZERO;
    come_and_go(&server.targets, &all, COMERS * 4, no_time).await?;
    let warm = Duration::from_secs(10);
    let mut messages = traffic(&crowd, warm).await?;
    let before_bytes = read().await?;
    come_and_go(&server.targets, &all, arguments.connects, no_time).await?;
    let after_connects_bytes = read().await?;
    let length = Duration::from_secs(arguments.seconds);
    let pause = length / u32::try_from(arguments.connects.div_ceil(COMING_MAX))?;
    let coming = come_and_go(&server.targets, &all, arguments.connects, pause);
    let (came, sent) = tokio::join!(coming, traffic(&crowd, length));
    came?;
    messages += sent?;
    let after_traffic_bytes = read().await?;

    let mut stage = crowd.end().await?;
    server.stop()?;
    let mut deliveries: Deliveries = stage.load.deliveries();
    stage.add_to(&mut deliveries);
    let left = |now: u64, before: u64| now.cast_signed() - before.cast_signed();
    let connects_bytes = left(after_connects_bytes, before_bytes);
    let connects_bytes_bar = connects_bytes_bar(arguments.connects);
    let traffic_bytes = left(after_traffic_bytes, after_connects_bytes);
    let mut outcome = Outcome::of(deliveries, stage.limited, stage.behind, Vec::new());
    for leaked in leaks(connects_bytes, connects_bytes_bar, traffic_bytes) {
        outcome.verdict = Verdict::Broken;
        outcome.reasons.push(leaked);
    }
    Ok(LeakReport {
        schema: "fanfare.leak/v1",
        outcome,
        transport,
        connects: arguments.connects,
        messages,
        before_bytes,
        after_connects_bytes,
        after_traffic_bytes,
        connects_bytes,
        connects_bytes_bar,
        traffic_bytes,
        traffic_bytes_bar: TRAFFIC_BYTES_BAR,
    })
}

fn connects_bytes_bar(connects: usize) -> u64 {
    CONNECTS_BYTES_BAR + BYTES_PER_CONNECT_BAR * connects as u64
}

/// What did not return, in words.
fn leaks(connects_bytes: i64, connects_bytes_bar: u64, traffic_bytes: i64) -> Vec<String> {
    let mut leaks = Vec::new();
    if connects_bytes > connects_bytes_bar.cast_signed() {
        leaks.push(format!("sessions that came and went left {connects_bytes} bytes"));
    }
    if traffic_bytes > TRAFFIC_BYTES_BAR.cast_signed() {
        leaks.push(format!("traffic left {traffic_bytes} bytes"));
    }
    leaks
}

/// Has users connect and leave so many times, some at once; each such group takes at least `pause`.
async fn come_and_go(
    targets: &[ConnectOptions],
    all: &Rc<[Person]>,
    times: usize,
    pause: Duration,
) -> Result<()> {
    let mut on_their_way = JoinSet::new();
    let began = Instant::now();
    for time in 0..times {
        if on_their_way.len() >= COMING_MAX {
            on_their_way.join_next().await.context("some are on their way")???;
            let group = u32::try_from(time / COMING_MAX)?;
            tokio::time::sleep_until((began + pause * group).into()).await;
        }
        let target = targets.get(time % targets.len()).context("there is a way to connect")?.clone();
        on_their_way.spawn_local(come(target, Rc::clone(all), time));
    }
    while let Some(ended) = on_their_way.join_next().await {
        ended??;
    }
    Ok(())
}

async fn come(target: ConnectOptions, all: Rc<[Person]>, time: usize) -> Result<()> {
    let number = TALKERS + time % COMERS;
    let person = all.get(number).context("there are as many people")?;
    let options = SessionOptions {
        token: person.token.clone(),
        delivery: wire::Delivery::Full,
        device_name: "loadgen".into(),
        ..Default::default()
    };
    let session = ClientSession::new(DeviceState::new(DeviceId(number as u64 + 1)), options, now_ms());
    let mut connection = Connection::open(&target, session).await?;
    let (mut is_ready, mut refused) = (false, None);
    while !is_ready {
        let mut sink = |event| match event {
            Event::Synced(synced) => is_ready |= synced.complete,
            Event::Failed(error) | Event::Refused { error, .. } => refused = Some(error),
            _ => {}
        };
        connection.turn(&mut sink).await?;
        if let Some(error) = &refused {
            bail!("session {number}: {} {}", Code(error.code as u16), error.text);
        }
    }
    if time.is_multiple_of(2) {
        connection.close(Code(0)).await;
    }
    Ok(())
}

/// Has those that stay send, for so long. Gives how many messages.
async fn traffic(crowd: &Crowd<Blocks>, length: Duration) -> Result<u64> {
    let (began, mut seconds) = (Instant::now(), 0);
    while began.elapsed() < length {
        crowd.with(|stage| (0..TALKERS).for_each(|talker| stage.load.left[talker] += SENDS_PER_S));
        (0..TALKERS).for_each(|talker| crowd.wake(talker));
        seconds += 1;
        tokio::time::sleep_until((began + Duration::from_secs(seconds)).into()).await;
    }
    crowd
        .until(|stage| {
            let load = &stage.load;
            let sent = load.left.iter().all(|left| *left == 0) && load.are_settled();
            (sent || load.refused.is_some(), load.checked())
        })
        .await?;
    crowd.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None => Ok(seconds * u64::from(SENDS_PER_S) * TALKERS as u64),
    })
}

impl Report for LeakReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!("  memory over {:?}, MiB in the process", self.transport);
        println!("    before           {:>8.1}", mib(self.before_bytes as f64));
        println!(
            "    after {} came and went  {:.1}: {:.1} more, bar {:.1}",
            self.connects,
            mib(self.after_connects_bytes as f64),
            mib(self.connects_bytes as f64),
            mib(self.connects_bytes_bar as f64)
        );
        println!(
            "    after {} messages, and as many came and went  {:.1}: {:.1} more, bar {:.0}",
            self.messages,
            mib(self.after_traffic_bytes as f64),
            mib(self.traffic_bytes as f64),
            mib(self.traffic_bytes_bar as f64)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_return_is_named() {
        let bar = connects_bytes_bar(4_000);
        assert_eq!(bar, (4 << 20) + 1_024_000);
        assert!(leaks(bar.cast_signed(), bar, 40 << 20).is_empty());
        assert!(leaks(-100, bar, -(1 << 20)).is_empty());
        assert_eq!(leaks(6 << 20, bar, 0).len(), 1);
        assert_eq!(leaks(6 << 20, bar, 49 << 20).len(), 2);
    }
}
