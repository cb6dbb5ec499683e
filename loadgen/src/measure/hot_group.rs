//! `hot-group`: one large group of which a few are active and most are passive, tiered beside untiered; asked for otherwise, what grows
//! with passive members or with messages, how soon an opened group is on screen, and what is left of it when its server is killed.

mod figures;
mod plan;
mod scene;
mod world;

use std::time::Duration;

use anyhow::{Result, ensure};
use fanfare_proto::wire::Delivery;

use super::{
    ledger::Deliveries,
    machine::Cores,
    report::{Options, Outcome},
};
use crate::report::Verdict;
use figures::{
    Doubling, Found, Half, Halves, HotGroupReport, Killed, Opened, Scaling, misplaced, overloaded,
};
use plan::Plan;
use scene::{Ended, Scene};

/// Pairs of rounds where nothing else is asked for: of halves, each with servers of their own; of --scaling; of --doubling.
const REPEATS: usize = 1;
const REPEATS_SCALING: usize = 5;
const REPEATS_DOUBLING: usize = 3;
/// Seconds of a round where nothing else is asked for: the longest interval of the passive is in it often, and what 16 s of idle sessions cost behind
/// it weighs little. Of --scaling, which tells of times alone. Of --doubling no multiple of the intervals: whether the last of ten begins
/// in time would be a matter of milliseconds, and a tenth of what is counted.
const SECONDS: u64 = 120;
const SECONDS_SCALING: u64 = 20;
const SECONDS_DOUBLING: u64 = 127;

/// One group whose members are mostly passive: what tiers spare the server, and what they cost in time.
///
/// A group of --memberships members, of whom --sessions have a session: 5 % active (8 of them have the channel on screen), 5 % warm,
/// 90 % passive, a tenth of these with the app on screen, on another channel or none (as much as people look at a messenger over a day), the others in the background. Four of those who have it on screen send messages of 128 bytes, --rate a second in all, by a schedule that
/// does not wait for the server. Untiered, every session asks for full delivery. Tiered, sessions say what is on their screen, and before anything is
/// measured the active ones send and read and the warm ones read. Each half has a server of its own, on a core of its own.
///
/// cpu_ratio_untiered: CPU of all threads of the server from the first SEND until 16 s after the last, untiered by tiered. bytes_ratio_untiered:
/// bytes of all frames of channels that sessions had. send_calls_ratio_untiered: by the server's metrics. delay_us_p99: of the
/// tiered half, from when a message was meant to leave until a session had it, or (passive) was told of it. Passive
/// sessions are read by a thread that stands back behind the others'.
///
/// Every entry to every session is checked: once, in order, or named as head and fetched. At the end all that are visible, active and warm and
/// 200 of the passive fetch what they lack, and 50 of the absent come; heads_equal: all of them have the group's head.
///
/// --scaling: p99 of visible and active members in a group with ten times the passive and absent members of another with the same active
/// ones, in turn. --doubling: frames and bytes to passive sessions at twice the rate, in turn with the rate.
///
/// --opens: users of passive sessions open the group while messages are sent, and leave it again; opened_us_p99 is from then until the session has the
/// newest entry that had been acknowledged. --kills: sessions come back, and at the end everybody knows of every message that was acknowledged.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered or a head differs, 11 INVALID (a limiter spoke, the
/// machine has one core only, the untiered half's server was running on more than 0.9 of its core, or over 5 % of what was
/// pushed was pushed to the wrong tier). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct HotGroup {
    /// Members that have a session.
    #[arg(long, value_parser = crate::count, default_value = "15000")]
    pub sessions: usize,
    /// All members.
    #[arg(long, value_parser = crate::count, default_value = "50000")]
    pub memberships: usize,
    /// Messages a second.
    #[arg(long, default_value_t = 8.0, value_parser = rate)]
    pub rate: f64,
    /// Seconds of each round; by default 120, with --scaling 20, with --doubling 127 (no multiple of the passive members' intervals).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: Option<u64>,
    /// Visible and active members beside ten times the passive membership.
    #[arg(long, conflicts_with = "doubling")]
    pub scaling: bool,
    /// Passive members at twice the rate.
    #[arg(long)]
    pub doubling: bool,
    /// Users of passive sessions open the group, so many a second.
    #[arg(long, conflicts_with_all = ["scaling", "doubling"], value_parser = rate)]
    pub opens: Option<f64>,
    /// Kill the server (SIGKILL) so often while messages are sent.
    #[arg(long, conflicts_with_all = ["scaling", "doubling", "opens"], value_parser = clap::value_parser!(u64).range(1..=100))]
    pub kills: Option<u64>,
    /// At each kill take back what the server had not synced: lost, torn, or some of it.
    #[arg(long, requires = "kills")]
    pub power_cut: bool,
    #[command(flatten)]
    pub options: Options,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1_000.0 => Ok(rate),
        _ => Err("a number above 0, 1000 at most".into()),
    }
}

impl HotGroup {
    fn repeats(&self) -> usize {
        let usual = if self.scaling {
            REPEATS_SCALING
        } else if self.doubling {
            REPEATS_DOUBLING
        } else {
            REPEATS
        };
        self.options.repeats.unwrap_or(usual)
    }

    fn seconds(&self) -> u64 {
        let usual = if self.scaling {
            SECONDS_SCALING
        } else if self.doubling {
            SECONDS_DOUBLING
        } else {
            SECONDS
        };
        self.seconds.unwrap_or(usual)
    }
}

/// What all servers of a run count.
struct Run {
    deliveries: Deliveries,
    limited: u64,
    behind: u64,
    heads_equal: bool,
    reasons: Vec<String>,
}

impl Run {
    fn ended(&mut self, ended: Ended) {
        self.deliveries.add(ended.deliveries);
        self.limited += ended.limited;
        self.behind += ended.behind;
        self.heads_equal &= ended.heads_equal;
    }

    fn proves_nothing(&mut self, reasons: impl IntoIterator<Item = String>) {
        for reason in reasons {
            if !self.reasons.contains(&reason) {
                self.reasons.push(reason);
            }
        }
    }
}

/// The whole run.
pub async fn run(arguments: &HotGroup, cores: &Cores) -> Result<HotGroupReport> {
    let plan = Plan::new(arguments.sessions, arguments.memberships)?;
    ensure!(arguments.repeats() > 0, "--repeats: 1 at least");
    let mut run = Run {
        deliveries: Deliveries::default(),
        limited: 0,
        behind: 0,
        heads_equal: true,
        reasons: Vec::new(),
    };
    if !cores.apart {
        run.reasons.push("server and load share the only core".into());
    }
    let found = if arguments.scaling {
        Found::Scaling(Box::new(scaling(arguments, cores, plan, &mut run).await?))
    } else if arguments.doubling {
        Found::Doubling(Box::new(doubling(arguments, cores, plan, &mut run).await?))
    } else if let Some(opens) = arguments.opens {
        let mut scene = Scene::open(arguments, cores, plan, Delivery::Tiered, 1).await?;
        let length = Duration::from_secs(arguments.seconds());
        let opened = scene.opened_round(arguments.rate, length, opens).await?;
        run.ended(scene.end().await?);
        Found::Opened(Opened::of(&opened))
    } else if let Some(kills) = arguments.kills {
        let mut scene = Scene::open(arguments, cores, plan, Delivery::Tiered, 1).await?;
        let length = Duration::from_secs(arguments.seconds());
        let seed = arguments.power_cut.then_some(1);
        let (came_back, longest) = scene.killed_round(arguments.rate, length, kills, seed).await?;
        run.ended(scene.end().await?);
        Found::Killed(Killed {
            kills,
            power_cut: arguments.power_cut,
            came_back,
            again_s: longest.as_secs_f64(),
        })
    } else {
        Found::Halves(Box::new(halves(arguments, cores, plan, &mut run).await?))
    };
    let Run { deliveries, limited, behind, heads_equal, reasons } = run;
    let (lost, duplicated, reordered) = (deliveries.lost, deliveries.duplicated, deliveries.reordered);
    let mut outcome = Outcome::of(deliveries, limited, behind, reasons);
    if !heads_equal {
        outcome.verdict = Verdict::Broken;
        outcome.reasons.push("not every member has the group's head".into());
    }
    Ok(HotGroupReport {
        schema: "fanfare.hot-group/v1",
        outcome,
        transport: arguments.options.transport,
        sessions: plan.sessions,
        memberships: plan.memberships,
        rate: arguments.rate,
        seconds: arguments.seconds(),
        repeats: arguments.repeats(),
        lost,
        duplicated,
        reordered,
        heads_equal,
        found,
    })
}

async fn halves(arguments: &HotGroup, cores: &Cores, plan: Plan, run: &mut Run) -> Result<Halves> {
    let (mut untiered, mut tiered) = (Vec::new(), Vec::new());
    let length = Duration::from_secs(arguments.seconds());
    for _ in 0..arguments.repeats() {
        for delivery in [Delivery::Full, Delivery::Tiered] {
            let mut scene = Scene::open(arguments, cores, plan, delivery, 1).await?;
            let half = Half::of(&scene.round(0, arguments.rate, length).await?);
            run.ended(scene.end().await?);
            if delivery == Delivery::Full {
                run.proves_nothing(overloaded(&half));
                untiered.push(half);
            } else {
                run.proves_nothing(misplaced(&half));
                tiered.push(half);
            }
        }
    }
    Ok(Halves::of(untiered, tiered))
}

async fn scaling(arguments: &HotGroup, cores: &Cores, plan: Plan, run: &mut Run) -> Result<Scaling> {
    let length = Duration::from_secs(arguments.seconds());
    let mut scene = Scene::open(arguments, cores, plan, Delivery::Tiered, 2).await?;
    let mut pairs = Vec::new();
    for _ in 0..arguments.repeats() {
        let few = Half::of(&scene.round(1, arguments.rate, length).await?);
        let many = Half::of(&scene.round(0, arguments.rate, length).await?);
        run.proves_nothing(misplaced(&few).into_iter().chain(misplaced(&many)));
        pairs.push([few, many]);
    }
    run.ended(scene.end().await?);
    Ok(Scaling::of(pairs))
}

async fn doubling(arguments: &HotGroup, cores: &Cores, plan: Plan, run: &mut Run) -> Result<Doubling> {
    let length = Duration::from_secs(arguments.seconds());
    let mut scene = Scene::open(arguments, cores, plan, Delivery::Tiered, 1).await?;
    let mut pairs = Vec::new();
    for _ in 0..arguments.repeats() {
        let once = Half::of(&scene.round(0, arguments.rate, length).await?);
        let twice = Half::of(&scene.round(0, arguments.rate * 2.0, length).await?);
        run.proves_nothing(misplaced(&once).into_iter().chain(misplaced(&twice)));
        pairs.push([once, twice]);
    }
    run.ended(scene.end().await?);
    Ok(Doubling::of(pairs))
}
