//! `presence`: users come and go before screens that watch them, and then all go at once.

mod session;
mod world;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use fanfare_proto::UserId;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, spawn_local},
};

use super::{
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::{Maker, Person, people},
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::Ratio,
};
use crate::{report::Verdict, scratch::Scratch};
use session::Shared;
use world::{BOUND, Part, World};

/// Sessions that connect at once.
const OPENING_MAX: usize = 64;
/// Between two messages of one who sends.
const EVERY: Duration = Duration::from_millis(250);
/// How long sends are counted before all go, and after.
const CALM: Duration = Duration::from_secs(20);
const MASS: Duration = Duration::from_secs(40);
/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(180);
/// The senders' p99 is to be at most so many times what it was.
const BAR: f64 = 2.0;
/// Users of one question about last seens.
const ASKED: usize = 100;
/// What a last seen may be beside the moment of the drop: the server sees it a little later, longer where it is busy.
const SEEN_MS: std::ops::RangeInclusive<i64> = -2_000..=60_000;

/// Users come and go before screens that watch them, and then all go at once.
///
/// --sessions users in groups of --screen; each of --watchers is a member of one of these groups and watches it. --churn percent of the users leave in a
/// minute, in no order, and come back 10 to 20 s after: every change that stands has to show on each screen within 5 s (late counts those that do
/// not), and 60 s after the last one no screen may be wrong (wrong_after_quiet). online_ms, offline_ms: from the change to its showing.
///
/// Then all of them drop at once without a word while --talkers go on sending four messages a second by a schedule. senders_p99_ratio: 99th percentile
/// of the time from when a message was meant to leave to its acknowledgement in the 40 s behind the drop, by that of the 20 s before. When the server has nothing
/// left to write it is started again, and must know when each of them was last there (last_seen_missing).
///
/// Exit status: 0 PASS, 1 error, 10 a screen was late or wrong or a last seen lost, 11 INVALID (a limiter spoke, or the machine has one core only).
/// A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Presence {
    /// Users that are watched.
    #[arg(long, value_parser = crate::count, default_value = "15000")]
    pub sessions: usize,
    /// Sessions that watch.
    #[arg(long, value_parser = crate::count, default_value = "1000")]
    pub watchers: usize,
    /// Users on one screen.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256), default_value_t = 50)]
    pub screen: u64,
    /// Percent of the users that leave in a minute.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=200), default_value_t = 10)]
    pub churn: u64,
    /// Seconds of that.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400), default_value_t = 120)]
    pub seconds: u64,
    /// Sessions that send.
    #[arg(long, value_parser = crate::count, default_value = "50")]
    pub talkers: usize,
    #[command(flatten)]
    pub options: Options,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
struct Times {
    count: u64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Times {
    fn of(us: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        Self {
            count: us.len(),
            p50: ms(us.value_at_quantile(0.5)),
            p99: ms(us.value_at_quantile(0.99)),
            max: ms(us.max()),
        }
    }
}

/// `fanfare.presence-load/v1`.
#[derive(Debug, Serialize)]
pub struct PresenceReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    sessions: usize,
    watchers: usize,
    screen: u64,
    churn_percent: u64,
    online_ms: Times,
    offline_ms: Times,
    late: u64,
    wrong_after_quiet: u64,
    /// Users told of in PRESENCE frames while they came and went, a second.
    told_per_s: f64,
    /// Of the server's core, of it the thread `presence`.
    cpu_share: f64,
    presence_cpu_share: f64,
    senders_p99_ratio: Ratio,
    /// From the drop until every screen showed it, and until every last seen was written.
    all_offline_s: f64,
    all_written_s: f64,
    last_seen_missing: usize,
}

/// The whole run.
pub async fn run(arguments: &Presence, cores: &Cores) -> Result<PresenceReport> {
    let Presence { sessions, watchers, talkers, .. } = *arguments;
    let screen = arguments.screen as usize;
    ensure!(arguments.options.repeats.is_none(), "presence takes no --repeats: it is one long run");
    ensure!(sessions >= screen, "--sessions: at least one --screen of them");
    let transport = arguments.options.transport;
    allow_files(if transport == Transport::Quic { 0 } else { sessions + watchers + talkers })?;
    let scratch = Scratch::new("presence", arguments.options.keep)?;
    let mut server = Server::start(&scratch.path, cores, transport).await?;
    let all = people(&server.admin, sessions + watchers + talkers).await?;
    let (watched, others) = all.split_at(sessions);
    let (screens_of, senders) = others.split_at(watchers);
    let screens = screens(sessions, watchers, screen);
    make_groups(&server, &all, &screens, sessions).await?;
    let world: Shared = Rc::new(RefCell::new(World::new(watched, &screens)?));
    let opening = Rc::new(Semaphore::new(OPENING_MAX));
    let target = |number: usize| server.targets[number % server.targets.len()].clone();
    let mut tasks = Vec::new();
    for at in 0..sessions {
        let work = session::come_and_go(Rc::clone(&world), at, target(at), Rc::clone(&opening));
        tasks.push(kept(&world, work));
    }
    wait(&world, "sessions do not open", World::are_as_wanted).await?;
    for (number, person) in screens_of.iter().enumerate() {
        let ids = screens[number].iter().map(|at| watched[*at].id).collect::<Vec<UserId>>();
        let (world_, opening) = (Rc::clone(&world), Rc::clone(&opening));
        tasks
            .push(kept(&world, session::watch(world_, number, person.clone(), target(number), ids, opening)));
    }
    wait(&world, "screens are not told", |world| world.wrong() == 0).await?;

    // They come and go.
    let (cpu, told, began) = (server.cpu()?, world.borrow().told, Instant::now());
    churn(&world, arguments).await?;
    let passed = began.elapsed().as_secs_f64();
    let spent = server.cpu()?.since(&cpu);
    let told_per_s = (world.borrow().told - told) as f64 / passed;
    wait(&world, "sessions do not come back", World::are_as_wanted).await?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.borrow_mut().look();
    let wrong_after_quiet = world.borrow().wrong();

    // All go at once.
    let mut maker = Maker::open(&server.targets[0], &all, sessions + watchers).await?;
    for (number, pair) in senders.chunks(2).enumerate() {
        let members: Vec<UserId> = pair.iter().map(|person| person.id).collect();
        let made = maker.group(&format!("talk-{number}"), &members).await?;
        for (place, person) in pair.iter().enumerate() {
            let number = number * 2 + place;
            let work =
                session::talk(Rc::clone(&world), number, person.clone(), target(number), made.channel, EVERY);
            tasks.push(kept(&world, work));
        }
    }
    maker.close().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.borrow_mut().part = Part::Calm;
    tokio::time::sleep(CALM).await;
    let (dropped, dropped_ms) = (Instant::now(), unix_ms());
    {
        let mut world = world.borrow_mut();
        (world.part, world.drops) = (Part::Mass, true);
        for watched in &mut world.watched {
            watched.wanted = false;
            watched.wake.notify_one();
        }
    }
    wait(&world, "screens do not show the drop", |world| world.are_as_wanted() && world.wrong() == 0).await?;
    let all_offline_s = dropped.elapsed().as_secs_f64();
    tokio::time::sleep(MASS.saturating_sub(dropped.elapsed())).await;
    world.borrow_mut().part = Part::Unmeasured;
    let all_written_s = written(&server, dropped).await?;
    world.borrow_mut().closing = true;
    tasks.iter().for_each(JoinHandle::abort);
    server.restart().await?;
    let last_seen_missing = missing(&server, watched, dropped_ms).await?;
    server.stop()?;
    let world = world.borrow();
    let ms = |us: &Histogram<u64>| us.value_at_quantile(0.99) as f64 / 1e3;
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    let mut outcome = Outcome::of(Deliveries::default(), world.limited, 0, reasons);
    for (count, what) in [
        (world.late, "changes did not show in time"),
        (wrong_after_quiet, "screens were wrong when it was quiet"),
        (last_seen_missing as u64, "last seens were lost"),
    ] {
        if count > 0 {
            outcome.verdict = Verdict::Broken;
            outcome.reasons.push(format!("{count} {what}"));
        }
    }
    Ok(PresenceReport {
        schema: "fanfare.presence-load/v1",
        outcome,
        transport,
        sessions,
        watchers,
        screen: arguments.screen,
        churn_percent: arguments.churn,
        online_ms: Times::of(&world.online_us),
        offline_ms: Times::of(&world.offline_us),
        late: world.late,
        wrong_after_quiet,
        told_per_s,
        cpu_share: spent.values().sum::<u64>() as f64 / 1e9 / passed,
        presence_cpu_share: spent.get("presence").map_or(0.0, |ns| *ns as f64 / 1e9) / passed,
        senders_p99_ratio: Ratio::of(&[(ms(&world.mass_us), ms(&world.calm_us))], Some(BAR)),
        all_offline_s,
        all_written_s,
        last_seen_missing,
    })
}

/// A task whose failure ends the run.
fn kept(world: &Shared, work: impl Future<Output = Result<()>> + 'static) -> JoinHandle<()> {
    let world = Rc::clone(world);
    spawn_local(async move {
        if let Err(error) = work.await {
            world.borrow_mut().failed.get_or_insert(format!("{error:#}"));
        }
    })
}

/// Which users each screen shows: the groups in turn.
fn screens(sessions: usize, watchers: usize, screen: usize) -> Vec<Vec<usize>> {
    let groups = sessions / screen;
    (0..watchers)
        .map(|watcher| {
            let first = watcher % groups * screen;
            (first..first + screen).collect()
        })
        .collect()
}

/// Those of a screen and those who watch it share a group.
async fn make_groups(server: &Server, all: &[Person], screens: &[Vec<usize>], sessions: usize) -> Result<()> {
    let target = server.targets.first().context("there is a way to connect")?;
    let mut maker = Maker::open(target, all, 0).await?;
    let mut groups: std::collections::BTreeMap<usize, Vec<UserId>> = std::collections::BTreeMap::new();
    for (watcher, screen) in screens.iter().enumerate() {
        let first = *screen.first().context("a screen shows somebody")?;
        let members = groups.entry(first).or_insert_with(|| screen.iter().map(|at| all[*at].id).collect());
        members.push(all[sessions + watcher].id);
    }
    for (number, members) in groups.values().enumerate() {
        maker.group(&format!("screen-{number}"), members).await?;
    }
    maker.close().await;
    Ok(())
}

/// Has users leave, and come back a while after.
async fn churn(world: &Shared, arguments: &Presence) -> Result<()> {
    let began = Instant::now();
    let per_s = arguments.sessions as f64 * arguments.churn as f64 / 100.0 / 60.0;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut coming: Vec<(Instant, usize)> = Vec::new();
    let mut left = 0u64;
    let length = Duration::from_secs(arguments.seconds);
    while began.elapsed() < length || !coming.is_empty() {
        if began.elapsed() < length {
            while (left as f64) < began.elapsed().as_secs_f64() * per_s {
                let at = (next() % arguments.sessions as u64) as usize;
                let mut world = world.borrow_mut();
                let watched = &mut world.watched[at];
                // One that came just now stays until that has shown.
                if watched.wanted && watched.online && watched.since.elapsed() > BOUND * 2 {
                    watched.wanted = false;
                    watched.wake.notify_one();
                    let back = Duration::from_millis(10_000 + next() % 10_000);
                    coming.push((Instant::now() + back, at));
                }
                left += 1;
            }
        }
        coming.retain(|(when, at)| {
            let is_due = *when <= Instant::now();
            if is_due {
                let watched = &mut world.borrow_mut().watched[*at];
                watched.wanted = true;
                watched.wake.notify_one();
            }
            !is_due
        });
        {
            let mut world = world.borrow_mut();
            world.look();
            if let Some(why) = &world.failed {
                bail!("{why}");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn wait(world: &Shared, what: &str, holds: impl Fn(&World) -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        {
            let world = world.borrow();
            if let Some(why) = &world.failed {
                bail!("{what}: {why}");
            }
            if holds(&world) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{what}: {} are wrong", world.wrong());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the server has no last seen left to write. Gives seconds since the drop.
async fn written(server: &Server, dropped: Instant) -> Result<f64> {
    loop {
        let waiting = server.admin.metric("fanfare_presence_writes_waiting").await?;
        if waiting == Some(0.0) {
            return Ok(dropped.elapsed().as_secs_f64());
        }
        ensure!(dropped.elapsed() < PATIENCE, "last seens are not written: {waiting:?} wait");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Users of whom the server does not know when they were last there.
async fn missing(server: &Server, watched: &[Person], dropped_ms: u64) -> Result<usize> {
    let mut missing = 0;
    for part in watched.chunks(ASKED) {
        let ids: Vec<String> = part.iter().map(|person| person.id.to_string()).collect();
        let path = format!("/admin/v1/presence?users={}", ids.join(","));
        let answer = server.admin.request("GET", &path, None).await?;
        let rows = answer["presence"].as_array().context("no `presence` in the answer")?;
        let is_known = |row: &serde_json::Value| {
            let seen = row["last_seen_ms"].as_u64().unwrap_or(0);
            row["status"] == "offline" && SEEN_MS.contains(&(seen.cast_signed() - dropped_ms.cast_signed()))
        };
        missing += part.len() - rows.iter().filter(|row| is_known(row)).count();
    }
    Ok(missing)
}

fn unix_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

impl Report for PresenceReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  {} users on {} screens of {} over {:?}, {} % leave in a minute",
            self.sessions, self.watchers, self.screen, self.transport, self.churn_percent
        );
        for (what, times) in [("online", &self.online_ms), ("offline", &self.offline_ms)] {
            println!(
                "    {what:<8} shown after {:>7.0} ms (p99 {:.0}, at most {:.0}), {} times",
                times.p50, times.p99, times.max, times.count
            );
        }
        println!("    late {}, wrong after 60 s of quiet {}", self.late, self.wrong_after_quiet);
        println!(
            "    {:.0} users told of a second, {:.3} of the server's core, of it {:.3} by presence",
            self.told_per_s, self.cpu_share, self.presence_cpu_share
        );
        let ratio = self.senders_p99_ratio;
        println!("  all drop at once");
        println!("    senders' p99  {:>8.2} ms, before {:.2} ms", ratio.ours, ratio.floor);
        println!("    ratio         {}", ratio.text());
        println!(
            "    offline on every screen after {:.1} s, written after {:.1} s, {} last seens lost",
            self.all_offline_s, self.all_written_s, self.last_seen_missing
        );
    }
}
