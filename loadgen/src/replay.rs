//! `replay`: a real community against a server, every delivery of every recipient checked; with kills and power cuts. With `--tiers` on the
//! community's own clock, for who got what in time.

mod session;
pub mod tiers;
mod world;

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_client::{
    connection::ConnectOptions,
    target::{Carrier, Discovery, Target},
    tls::Trust,
};
use fanfare_proto::{ChannelId, UserId};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::task::{JoinSet, LocalSet, spawn_blocking};

use crate::{
    Rate, Replay, Transport,
    admin::Admin,
    plan::Plan,
    report::{Kill, Latency, Report, Verdict},
    scratch::Scratch,
    server_process::{AdminFile, ServerProcess},
    trace::{Bodies, Trace},
};
use world::{Shared, User, World};

/// Unacknowledged sends over all senders at full speed.
const IN_FLIGHT_MAX: usize = 256;
/// No delivery for so long after the last acknowledgement: what is missing is lost.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// No acknowledgement for so long: the run fails.
const ACK_PATIENCE: Duration = Duration::from_secs(120);
/// Fewer acknowledged sends prove nothing.
const SENDS_MIN: usize = 1_000;
/// Kills that a killed run has at least.
const KILLS_MIN: usize = 5;
/// The messages between two kills are at most this part of all.
const KILL_PART: usize = 12;
/// From stopping the server to killing it: its last answers arrive.
const PAUSE: Duration = Duration::from_millis(5);
/// UDP sockets that QUIC sessions share.
const ENDPOINTS: usize = 4;
/// Users made by one request.
const USERS_PER_REQUEST: usize = 500;
/// Sessions opened at once.
const OPENING_MAX: usize = 100;

/// The whole run.
pub fn run(arguments: &Replay) -> Result<Report> {
    let trace = Trace::read(&arguments.trace, arguments.skip, arguments.messages)?;
    let bodies = Bodies::read(&arguments.bodies)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let scratch = Scratch::new("replay", arguments.keep)?;
    let report = local.block_on(&runtime, replay(arguments, trace, bodies, &scratch));
    // A server that did not end by itself is killed with its handle; scratch data goes with it.
    drop(local);
    report
}

type Process = Arc<Mutex<ServerProcess>>;

/// Runs what blocks (starting, killing) beside the sessions.
async fn blocking<T: Send + 'static>(
    process: &Process,
    act: impl FnOnce(&mut ServerProcess) -> Result<T> + Send + 'static,
) -> Result<T> {
    let process = Arc::clone(process);
    spawn_blocking(move || act(&mut process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
        .await?
}

async fn replay(arguments: &Replay, trace: Trace, bodies: Bodies, scratch: &Scratch) -> Result<Report> {
    let kill_every = arguments.kill.or(arguments.power_cut.then_some(Duration::from_secs(5)));
    if arguments.server.is_some() && kill_every.is_some() {
        bail!("--kill and --power-cut need a server of this program's own: leave --server out");
    }
    let (process, admin_file) = match &arguments.server {
        None => {
            let mut server = ServerProcess::prepare(&scratch.path, arguments.power_cut)?;
            let file = server.start()?;
            (Some(Arc::new(Mutex::new(server))), file)
        }
        Some(url) => {
            let path = arguments.admin_file.as_ref().context("--server needs --admin-file")?;
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (None, AdminFile { address: url.clone(), ..serde_json::from_slice(&text)? })
        }
    };
    let admin = Admin::new(&admin_file)?;
    let targets = targets(&admin_file, arguments.transport).await?;
    let users = people(&admin, trace.senders).await?;

    let (total, users_count, channels_count) = (trace.rows.len(), trace.senders, trace.channels);
    let speed = match arguments.rate {
        Rate::Max => None,
        Rate::Times(times) => Some(times),
    };
    let plan = Plan::new(trace.rows, trace.channels, trace.senders, IN_FLIGHT_MAX);
    let world: Shared =
        Rc::new(RefCell::new(World::new(plan, users, trace.channels, trace.topics, bodies, speed)));

    let bar = bar(total)?;
    bar.set_message("connecting");
    let mut sessions = JoinSet::new();
    open_all(&world, &targets, &mut sessions, users_count).await?;

    bar.set_message("sending");
    world.borrow_mut().begin();
    world.borrow_mut().pump();
    let began = Instant::now();
    let kills = send_all(&world, process.as_ref(), kill_every, arguments, &bar, began).await?;
    let duration = began.elapsed();
    bar.set_message("settling");
    settle(&world, process.as_ref()).await?;
    let settle = began.elapsed() - duration;
    let (server_cpu_s, server_rss_peak_bytes) = match &process {
        Some(process) => {
            let process = Arc::clone(process);
            let mut process = process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (process.cpu_s(), process.rss_peak_bytes())
        }
        None => (0.0, 0),
    };
    let loadgen_cpu_s = own_cpu_s();

    bar.set_message("reading back");
    let reread = read_back(&world, &targets[0]).await?;
    world.borrow_mut().closing = true;
    for user in &world.borrow().users {
        user.wake.notify_one();
    }
    while let Some(ended) = sessions.join_next().await {
        ended?;
    }
    if let Some(process) = &process {
        blocking(process, ServerProcess::stop).await?;
    }
    bar.finish_and_clear();

    let mut world = world.borrow_mut();
    let world = &mut *world;
    if let Some(why) = &world.failed {
        bail!("{why}");
    }
    let heads = world.heads.clone();
    let deliveries_expected = world.checker.finish(&heads);
    let counts = world.checker.counts;
    let mut reasons = Vec::new();
    let mut verdict = Verdict::Pass;
    if world.plan.finished() < SENDS_MIN.min(total) || total < SENDS_MIN {
        reasons.push(format!("fewer than {SENDS_MIN} sends were acknowledged"));
        verdict = Verdict::Invalid;
    }
    if world.rate_limited > 0 {
        reasons.push(format!("a limiter spoke {} times", world.rate_limited));
        verdict = Verdict::Invalid;
    }
    if kill_every.is_some() {
        if kills.len() < KILLS_MIN {
            reasons.push(format!("only {} kills, {KILLS_MIN} are needed: take more messages", kills.len()));
            verdict = Verdict::Invalid;
        }
        if kills.iter().any(|kill| kill.in_flight == 0) {
            reasons.push("a kill hit nothing in flight".into());
            verdict = Verdict::Invalid;
        }
    }
    if !Report::is_sound(&counts) || counts.deliveries != deliveries_expected {
        reasons.push("a promise was broken".into());
        verdict = Verdict::Broken;
    }
    let all_s = (duration + settle).as_secs_f64();
    let deliveries = counts.deliveries.max(1) as f64;
    Ok(Report {
        schema: "fanfare.replay/v1",
        verdict,
        reasons,
        transport: format!("{:?}", arguments.transport).to_lowercase(),
        messages: total,
        users: users_count,
        channels: channels_count,
        joins: world.joins,
        sends_acked: world.plan.finished() as u64,
        deliveries_expected,
        deliveries: counts.deliveries,
        fetched: counts.fetched,
        lost: counts.lost,
        duplicated: counts.duplicated,
        reordered: counts.reordered,
        altered: counts.altered,
        leaked: counts.leaked,
        reread,
        kills,
        unknown_resolved: world.unknown_resolved,
        rate_limited: world.rate_limited,
        reconnects: world.reconnects,
        duration_s: duration.as_secs_f64(),
        settle_s: settle.as_secs_f64(),
        sends_per_s: world.plan.finished() as f64 / duration.as_secs_f64(),
        deliveries_per_s: counts.deliveries as f64 / all_s,
        ack: Latency::from(&world.ack_us),
        deliver: Latency::from(&world.deliver_us),
        server_cpu_s,
        server_cpu_us_per_delivery: server_cpu_s * 1e6 / deliveries,
        server_rss_peak_bytes,
        loadgen_cpu_s,
        examples: world.checker.examples.clone(),
        repeat: std::env::args().collect::<Vec<_>>().join(" "),
    })
}

/// A bar that fills as messages are sent.
fn bar(messages: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(messages as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg} ▕{wide_bar}▏ {human_pos}/{human_len} {per_sec} {eta}",
    )?);
    Ok(bar)
}

/// How to connect by each transport that the replay uses.
async fn targets(admin: &AdminFile, transport: Transport) -> Result<Vec<ConnectOptions>> {
    let address = admin.address.trim_start_matches("http://").trim_end_matches('/');
    let discovery = Discovery::fetch(&format!("http://{address}")).await?;
    let gateway = discovery.gateways.first().context("the server names no gateway")?;
    let trust = discovery.pins()?.unwrap_or(Trust::Nobody);
    let target = |carrier| Target { host: gateway.host.clone(), port: gateway.port, carrier };
    let mut targets = Vec::new();
    if transport != Transport::Quic {
        targets.push(ConnectOptions::to(target(Carrier::WebSocket)));
    }
    if transport != Transport::Ws {
        for _ in 0..ENDPOINTS {
            let local: SocketAddr = ([127, 0, 0, 1], 0).into();
            let endpoint = quinn::Endpoint::client(local)?;
            targets.push(ConnectOptions::to(target(Carrier::Quic)).trust(&trust)?.endpoint(endpoint));
        }
    }
    Ok(targets)
}

/// Makes the community's accounts, each with a token for the whole run.
async fn people(admin: &Admin, count: usize) -> Result<Vec<User>> {
    let mut users = Vec::with_capacity(count);
    // A server that replays twice has people of the same names; a mark keeps them apart.
    let mark = std::process::id();
    while users.len() < count {
        let names: Vec<String> = (users.len()..count.min(users.len() + USERS_PER_REQUEST))
            .map(|number| format!("member-{mark}-{}", number + 1))
            .collect();
        let body = json!({ "names": names, "full_delivery": true, "token_ttl_s": 24 * 3600 });
        let answer = admin.request("POST", "/admin/v1/users/bulk", Some(&body)).await?;
        let made = answer["users"].as_array().context("no `users` in the answer")?;
        for user in made {
            let id = user["user"]
                .as_str()
                .and_then(|id| id.parse::<u64>().ok())
                .context("a user without an id")?;
            let token = user["token"].as_str().context("a user without a token")?.to_owned();
            users.push(User { id: UserId(id), token, wake: Rc::default(), current: None });
        }
        if made.len() != names.len() {
            bail!("{} users asked for, {} made", names.len(), made.len());
        }
    }
    Ok(users)
}

/// Opens every user's session and waits until all are open.
async fn open_all(
    world: &Shared,
    targets: &[ConnectOptions],
    sessions: &mut JoinSet<()>,
    users: usize,
) -> Result<()> {
    let (plain, quic): (Vec<_>, Vec<_>) =
        targets.iter().cloned().partition(|target| target.target.carrier == Carrier::WebSocket);
    let deadline = Instant::now() + ACK_PATIENCE;
    for user in 0..users {
        let by_quic = !quic.is_empty() && (plain.is_empty() || user % 2 == 1);
        let options = if by_quic { quic[user / 2 % quic.len()].clone() } else { plain[0].clone() };
        sessions.spawn_local(session::run(Rc::clone(world), user, options));
        while user + 1 - world.borrow().sessions_open.min(user + 1) > OPENING_MAX {
            wait_a_little(world, deadline, "sessions do not open").await?;
        }
    }
    while world.borrow().sessions_open < users {
        wait_a_little(world, deadline, "sessions do not open").await?;
    }
    Ok(())
}

async fn wait_a_little(world: &Shared, deadline: Instant, what: &str) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(2)).await;
    if let Some(why) = &world.borrow().failed {
        bail!("{why}");
    }
    if Instant::now() > deadline {
        bail!("{what}");
    }
    Ok(())
}

/// Waits until every message is acknowledged, killing the server meanwhile where that is asked for.
async fn send_all(
    world: &Shared,
    process: Option<&Process>,
    kill_every: Option<Duration>,
    arguments: &Replay,
    bar: &ProgressBar,
    began: Instant,
) -> Result<Vec<Kill>> {
    let mut kills: Vec<Kill> = Vec::new();
    let total = world.borrow().plan.total();
    let (mut killed_at, mut killed_after) = (Instant::now(), 0);
    let (mut moved_at, mut moved_to) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let (finished, in_flight, done) = {
            let mut world = world.borrow_mut();
            if let Some(why) = &world.failed {
                bail!("{why}");
            }
            if world.speed.is_some() {
                world.pump();
            }
            (world.plan.finished(), world.plan.in_flight(), world.plan.is_done())
        };
        bar.set_position(finished as u64);
        if done {
            return Ok(kills);
        }
        if finished > moved_to {
            (moved_at, moved_to) = (Instant::now(), finished);
        } else if moved_at.elapsed() > ACK_PATIENCE && (arguments.rate == Rate::Max || in_flight > 0) {
            bail!("nothing was acknowledged for {} s; {in_flight} sends wait", ACK_PATIENCE.as_secs());
        }
        let Some((process, every)) = process.zip(kill_every) else { continue };
        let due = killed_at.elapsed() >= every || finished - killed_after >= total / KILL_PART;
        if !due || in_flight == 0 {
            continue;
        }
        let number = kills.len() as u64;
        let kill_at = Instant::now();
        // What it had answered is read first, so that what counts as in flight is what the kill hits.
        blocking(process, |server| {
            server.pause(true);
            Ok(())
        })
        .await?;
        tokio::time::sleep(PAUSE).await;
        if world.borrow().plan.in_flight() == 0 {
            blocking(process, |server| {
                server.pause(false);
                Ok(())
            })
            .await?;
            continue;
        }
        blocking(process, ServerProcess::kill).await?;
        let (in_flight, acked) = {
            let world = world.borrow();
            (world.plan.in_flight(), world.plan.finished())
        };
        // Every third kill is plain: what it leaves unsynced is undone by a later cut.
        let power_cut = if arguments.power_cut && number % 3 != 2 {
            let seed = arguments.seed.wrapping_add(number);
            let mode = ["lost", "torn", "mixed"][(number % 4 % 3) as usize];
            Some(blocking(process, move |server| server.cut_power(seed, mode)).await?)
        } else {
            None
        };
        blocking(process, ServerProcess::start).await?;
        kills.push(Kill {
            at_s: (kill_at - began).as_secs_f64(),
            in_flight,
            acked,
            ready_after_ms: kill_at.elapsed().as_millis() as u64,
            power_cut,
        });
        (killed_at, killed_after) = (Instant::now(), finished);
        moved_at = Instant::now();
    }
}

/// Waits until every member has everything, or nothing moves any more.
async fn settle(world: &Shared, process: Option<&Process>) -> Result<()> {
    let due = {
        let world = world.borrow();
        world.checker.entries_due(&world.heads)
    };
    let (mut moved_at, mut last) = (Instant::now(), 0);
    loop {
        let received = {
            let world = world.borrow();
            if let Some(why) = &world.failed {
                bail!("{why}");
            }
            world.checker.counts.deliveries + world.checker.counts.other_entries
        };
        if received >= due {
            return Ok(());
        }
        if received > last {
            (moved_at, last) = (Instant::now(), received);
        } else if moved_at.elapsed() > SETTLE_PATIENCE {
            // What is missing is counted as lost.
            return Ok(());
        }
        if let Some(process) = process {
            process.lock().unwrap_or_else(std::sync::PoisonError::into_inner).check_alive()?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads every channel whole by a fresh device of its first member.
async fn read_back(world: &Shared, options: &ConnectOptions) -> Result<u64> {
    let channels: Vec<(ChannelId, usize)> = {
        let world = world.borrow();
        world
            .channels
            .iter()
            .zip(&world.openers)
            .filter_map(|(id, opener)| Some(((*id)?, (*opener)?)))
            .collect()
    };
    let mut all = 0;
    for (channel, user) in channels {
        let (read, head) = session::reread(world, user, channel, options).await?;
        let known = world.borrow().heads.get(&channel).copied().unwrap_or(0);
        if read < known || head != known {
            let mut world = world.borrow_mut();
            world.checker.counts.lost += known.saturating_sub(read).max(1);
            crate::check::Checker::violation(&mut world.checker.examples, || {
                format!(
                    "channel {channel}: head {known} was seen, a fresh reader got {read} entries up to {head}"
                )
            });
        }
        all += read;
    }
    Ok(all)
}

fn own_cpu_s() -> f64 {
    std::fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|stat| crate::server_process::cpu_of(&stat))
        .unwrap_or(0.0)
}
