//! What `hot-group` reports.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    plan::{FACTOR, Role},
    scene::Round,
    world::Tally,
};
use crate::measure::{
    report::{Outcome, Report},
    server::Transport,
    statistics::{Ratio, Spread},
};

/// The untiered half's CPU and bytes are to be at least so many times the tiered half's.
const UNTIERED_BAR: f64 = 8.0;
/// p99 at ten times the passive membership is to be at most so many times what it was.
const SCALING_BAR: f64 = 1.5;
/// Twice the rate is to take at most so many times the frames and bytes to passive members.
const DOUBLING_BAR: f64 = 1.1;
/// From opening a channel to its newest entries, at most.
const OPENED_US_BAR: u64 = 200_000;
/// Above it the untiered half was limited by its core.
const CORES_MAX: f64 = 0.9;
/// Part of a round's entries that may come where none are meant to, or not come where all are.
const MISPLACED_MAX: f64 = 0.05;

/// `fanfare.hot-group/v1`.
#[derive(Debug, Serialize)]
pub struct HotGroupReport {
    pub schema: &'static str,
    #[serde(flatten)]
    pub outcome: Outcome,
    pub transport: Transport,
    pub sessions: usize,
    pub memberships: usize,
    pub rate: f64,
    pub seconds: u64,
    pub repeats: usize,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub heads_equal: bool,
    #[serde(flatten)]
    pub found: Found,
}

/// What was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Found {
    Halves(Box<Halves>),
    Scaling(Box<Scaling>),
    Doubling(Box<Doubling>),
    Opened(Opened),
    Killed(Killed),
}

/// Users that opened the group.
#[derive(Debug, Serialize)]
pub struct Opened {
    pub opened: u64,
    /// From then until the session had the newest entry.
    pub opened_us_p50: u64,
    pub opened_us_p99: u64,
    pub opened_us_max: u64,
    pub opened_us_bar: u64,
}

/// A server that was killed.
#[derive(Debug, Serialize)]
pub struct Killed {
    pub kills: u64,
    pub power_cut: bool,
    /// Sessions, each time.
    pub came_back: u64,
    /// From a kill until everything sent before was acknowledged, the longest.
    pub again_s: f64,
}

/// Tiered beside untiered.
#[derive(Debug, Serialize)]
pub struct Halves {
    /// Untiered by tiered, medians: CPU seconds of the server, bytes and send calls.
    pub cpu_ratio_untiered: f64,
    /// The same without what as many idle sessions take.
    pub cpu_ratio_untiered_beyond_idle: f64,
    pub bytes_ratio_untiered: f64,
    pub send_calls_ratio_untiered: Option<f64>,
    pub bar_at_least: f64,
    /// Of the tiered half, by tier.
    pub delay_us_p50: BTreeMap<&'static str, u64>,
    pub delay_us_p99: BTreeMap<&'static str, u64>,
    /// How much later than the visible ones.
    pub delay_us_bound: BTreeMap<&'static str, u64>,
    pub untiered: Vec<Half>,
    pub tiered: Vec<Half>,
}

/// One half.
#[derive(Debug, Serialize)]
pub struct Half {
    pub messages: u64,
    pub cpu_s: f64,
    pub cpu_s_by_thread: BTreeMap<String, f64>,
    /// Cores that the server was running on while messages were sent.
    pub cores: f64,
    /// The same while all sessions were idle, before the first round: heartbeats.
    pub idle_cores: f64,
    /// CPU beyond that of as many idle sessions.
    pub cpu_s_beyond_idle: f64,
    /// Frames of channels that sessions had, and their bytes.
    pub frames: u64,
    pub bytes: u64,
    /// By the server's own metrics, where it has them.
    pub server_bytes: Option<f64>,
    pub send_calls: Option<f64>,
    pub late_us_max: u64,
    pub tiers: BTreeMap<&'static str, Tier>,
}

/// What sessions of one tier had.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tier {
    pub sessions: usize,
    pub delivered: u64,
    pub named: u64,
    pub frames: u64,
    pub bytes: u64,
    pub delay_us_p50: u64,
    pub delay_us_p99: u64,
}

impl Tier {
    fn of(tally: &Tally) -> Self {
        Self {
            sessions: tally.sessions,
            delivered: tally.delivered,
            named: tally.named,
            frames: tally.frames,
            bytes: tally.bytes,
            delay_us_p50: tally.delay_us.value_at_quantile(0.5),
            delay_us_p99: tally.delay_us.value_at_quantile(0.99),
        }
    }
}

/// Beside ten times the passive membership: `ours` with it, `floor` with a tenth, in microseconds.
#[derive(Debug, Serialize)]
pub struct Scaling {
    pub passive_factor: usize,
    pub visible_p99_ratio: Ratio,
    pub active_p99_ratio: Ratio,
    pub pairs: Vec<[Half; 2]>,
}

/// Beside half the rate: `ours` at twice, `floor` at once, to all passive sessions of a round.
#[derive(Debug, Serialize)]
pub struct Doubling {
    pub passive_frames_ratio: Ratio,
    pub passive_bytes_ratio: Ratio,
    pub pairs: Vec<[Half; 2]>,
}

/// Both kinds of passive sessions.
pub fn passive(round: &Round) -> Tally {
    let mut all = round.tallies[Role::Foreground as usize].clone();
    all.add(&round.tallies[Role::Background as usize]);
    all
}

impl Half {
    pub fn of(round: &Round) -> Self {
        let tiers = Role::ALL.map(|role| (role.name(), Tier::of(&round.tallies[role as usize])));
        let mut tiers = BTreeMap::from(tiers);
        tiers.insert("passive", Tier::of(&passive(round)));
        let cpu_s: f64 = round.cpu_s.values().sum();
        Self {
            messages: round.messages,
            cpu_s,
            cpu_s_by_thread: round.cpu_s.clone(),
            cores: round.cores,
            idle_cores: round.idle_cores,
            cpu_s_beyond_idle: cpu_s - round.idle_cores * round.lasted.as_secs_f64(),
            frames: round.tallies.iter().map(|tally| tally.frames).sum(),
            bytes: round.tallies.iter().map(|tally| tally.bytes).sum(),
            server_bytes: round.server_bytes,
            send_calls: round.server_sends,
            late_us_max: round.late.as_micros() as u64,
            tiers,
        }
    }

    fn tier(&self, role: Role) -> Tier {
        self.tiers[role.name()]
    }
}

impl Halves {
    pub fn of(untiered: Vec<Half>, tiered: Vec<Half>) -> Self {
        let beside = |figure: fn(&Half) -> Option<f64>| {
            let each = untiered.iter().zip(&tiered);
            let ratios: Option<Vec<f64>> =
                each.map(|(full, ours)| Some(figure(full)? / figure(ours)?)).collect();
            ratios.map(|ratios| Spread::of(ratios).median)
        };
        let of_tiers = |figure: fn(&Tier) -> u64| {
            let median = |name: &&'static str| {
                let each = tiered.iter().filter_map(|half| half.tiers.get(*name));
                Spread::of(each.map(|tier| figure(tier) as f64)).median as u64
            };
            let names = tiered.first().map(|half| half.tiers.keys().copied().collect::<Vec<_>>());
            names.unwrap_or_default().into_iter().map(|name| (name, median(&name))).collect()
        };
        Self {
            cpu_ratio_untiered: beside(|half| Some(half.cpu_s)).unwrap_or(0.0),
            cpu_ratio_untiered_beyond_idle: beside(|half| Some(half.cpu_s_beyond_idle)).unwrap_or(0.0),
            bytes_ratio_untiered: beside(|half| Some(half.bytes as f64)).unwrap_or(0.0),
            send_calls_ratio_untiered: beside(|half| half.send_calls),
            bar_at_least: UNTIERED_BAR,
            delay_us_p50: of_tiers(|tier| tier.delay_us_p50),
            delay_us_p99: of_tiers(|tier| tier.delay_us_p99),
            delay_us_bound: BTreeMap::from([
                ("active", 20_000),
                ("warm", 250_000),
                ("passive_foreground", 5_000_000),
                ("passive_background", 15_000_000),
                ("passive", 15_000_000),
            ]),
            untiered,
            tiered,
        }
    }
}

impl Opened {
    pub fn of(us: &Histogram<u64>) -> Self {
        Self {
            opened: us.len(),
            opened_us_p50: us.value_at_quantile(0.5),
            opened_us_p99: us.value_at_quantile(0.99),
            opened_us_max: us.max(),
            opened_us_bar: OPENED_US_BAR,
        }
    }
}

impl Scaling {
    /// Of pairs: with a tenth of the passive members, with all.
    pub fn of(pairs: Vec<[Half; 2]>) -> Self {
        let p99 = |role: Role| {
            let of = |half: &Half| half.tier(role).delay_us_p99 as f64;
            let beside: Vec<_> = pairs.iter().map(|[few, many]| (of(many), of(few))).collect();
            Ratio::of(&beside, Some(SCALING_BAR))
        };
        Self {
            passive_factor: FACTOR,
            visible_p99_ratio: p99(Role::Visible),
            active_p99_ratio: p99(Role::Active),
            pairs,
        }
    }
}

impl Doubling {
    /// Of pairs: at the rate, at twice the rate.
    pub fn of(pairs: Vec<[Half; 2]>) -> Self {
        let beside = |figure: fn(&Tier) -> u64| {
            let of = |half: &Half| figure(&half.tiers["passive"]) as f64;
            let each: Vec<_> = pairs.iter().map(|[once, twice]| (of(twice), of(once))).collect();
            Ratio::of(&each, Some(DOUBLING_BAR))
        };
        Self {
            passive_frames_ratio: beside(|tier| tier.frames),
            passive_bytes_ratio: beside(|tier| tier.bytes),
            pairs,
        }
    }
}

/// Why a tiered round proves nothing: members were not what they were meant to be.
pub fn misplaced(half: &Half) -> Vec<String> {
    let mut reasons = Vec::new();
    for role in Role::ALL {
        let tier = half.tier(role);
        let all = (half.messages * tier.sessions as u64) as f64;
        let part = tier.delivered as f64 / all.max(1.0);
        let wrong = if role.is_told() { 1.0 - part } else { part };
        if wrong > MISPLACED_MAX {
            reasons.push(format!(
                "not what they were meant to be: of the entries {:.1} % were pushed to the {} sessions",
                part * 100.0,
                role.name()
            ));
        }
    }
    reasons
}

/// Why an untiered round proves nothing.
pub fn overloaded(half: &Half) -> Option<String> {
    (half.cores > CORES_MAX)
        .then(|| format!("the untiered half's server was running on {:.2} cores of one", half.cores))
}

impl Report for HotGroupReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  {} sessions of {} members over {:?}, {} messages a second for {} s",
            self.sessions, self.memberships, self.transport, self.rate, self.seconds
        );
        println!("  heads          {}", if self.heads_equal { "equal at the end" } else { "NOT EQUAL" });
        match &self.found {
            Found::Halves(halves) => halves.print(),
            Found::Scaling(scaling) => {
                println!(
                    "  p99 at {} times the passive membership, us; floor: a tenth of it",
                    scaling.passive_factor
                );
                println!("    visible      {}", beside(scaling.visible_p99_ratio));
                println!("    active       {}", beside(scaling.active_p99_ratio));
            }
            Found::Doubling(doubling) => {
                println!("  to passive sessions at twice the rate; floor: at once");
                println!("    frames       {}", beside(doubling.passive_frames_ratio));
                println!("    bytes        {}", beside(doubling.passive_bytes_ratio));
            }
            Found::Opened(opened) => {
                let ms = |us: u64| us as f64 / 1e3;
                let met = if opened.opened_us_p99 <= opened.opened_us_bar { "met" } else { "MISSED" };
                println!(
                    "  opened         {} times; ms until the newest entries: p50 {:.1}, p99 {:.1} (bar {} {met}), max {:.1}",
                    opened.opened,
                    ms(opened.opened_us_p50),
                    ms(opened.opened_us_p99),
                    ms(opened.opened_us_bar),
                    ms(opened.opened_us_max)
                );
            }
            Found::Killed(killed) => println!(
                "  killed         {} times{}; {} sessions came back, all was acknowledged {:.1} s after a kill at the latest",
                killed.kills,
                if killed.power_cut { ", with power cuts" } else { "" },
                killed.came_back,
                killed.again_s
            ),
        }
    }
}

fn beside(ratio: Ratio) -> String {
    format!("{:>10.0} by {:>10.0}  {}", ratio.ours, ratio.floor, ratio.text())
}

impl Halves {
    fn print(&self) {
        let met = |ratio: f64| if ratio >= self.bar_at_least { "met" } else { "MISSED" };
        println!("  untiered by tiered (medians; bar {} at least)", self.bar_at_least);
        println!("    CPU          {:>8.2} {}", self.cpu_ratio_untiered, met(self.cpu_ratio_untiered));
        println!("      beyond idle {:>7.2}", self.cpu_ratio_untiered_beyond_idle);
        println!("    bytes        {:>8.2} {}", self.bytes_ratio_untiered, met(self.bytes_ratio_untiered));
        if let Some(ratio) = self.send_calls_ratio_untiered {
            println!("    send calls   {ratio:>8.2}");
        }
        for (name, halves) in [("untiered", &self.untiered), ("tiered", &self.tiered)] {
            for half in halves {
                println!(
                    "  {name:<9} {} messages: {:.2} CPU s, {:.2} cores while sending ({:.3} while idle), {} frames, {:.1} MB, at most {} ms late",
                    half.messages,
                    half.cpu_s,
                    half.cores,
                    half.idle_cores,
                    half.frames,
                    half.bytes as f64 / 1e6,
                    half.late_us_max / 1_000
                );
                for role in Role::ALL {
                    let tier = half.tier(role);
                    let ms = |us: u64| us as f64 / 1e3;
                    let bound = self.delay_us_bound.get(role.name()).filter(|_| name == "tiered");
                    let bound = bound.map_or(String::new(), |bound| {
                        // A tier's delay is behind what everybody waits for.
                        let all = half.tier(Role::Visible).delay_us_p99;
                        let met = if tier.delay_us_p99 <= *bound + all { "met" } else { "MISSED" };
                        format!("bound {} {met}", ms(*bound))
                    });
                    println!(
                        "    {:<19} {:>6} sessions {:>9} entries {:>8} heads  ms p50 {:>9.2} p99 {:>9.2} {bound}",
                        role.name(),
                        tier.sessions,
                        tier.delivered,
                        tier.named,
                        ms(tier.delay_us_p50),
                        ms(tier.delay_us_p99)
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 messages of which the sessions of each role (ten of each) were pushed so many, and named the rest.
    fn half(cpu_s: f64, bytes: u64, delivered: [u64; Role::ALL.len()]) -> Half {
        let tier = |delivered: u64| Tier {
            sessions: 10,
            delivered,
            named: 1_000 - delivered,
            frames: 10,
            bytes: 100,
            delay_us_p50: 5,
            delay_us_p99: 7,
        };
        let tiers = Role::ALL.map(|role| (role.name(), tier(delivered[role as usize])));
        let mut tiers = BTreeMap::from(tiers);
        tiers.insert("passive", tier(0));
        Half {
            messages: 100,
            cpu_s,
            cpu_s_by_thread: BTreeMap::new(),
            cores: 0.5,
            idle_cores: 0.0,
            cpu_s_beyond_idle: cpu_s,
            frames: 1,
            bytes,
            server_bytes: None,
            send_calls: None,
            late_us_max: 0,
            tiers,
        }
    }

    #[test]
    fn members_are_what_they_were_meant_to_be_or_the_run_proves_nothing() {
        let meant = [1_000, 1_000, 1_000, 0, 0];
        assert!(misplaced(&half(1.0, 1, meant)).is_empty());
        assert!(misplaced(&half(1.0, 1, [1_000, 960, 1_000, 40, 0])).is_empty());
        let wrong = misplaced(&half(1.0, 1, [1_000, 1_000, 900, 0, 100]));
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].contains("90.0 %") && wrong[0].contains("warm"), "{wrong:?}");
        let mut busy = half(1.0, 1, meant);
        assert!(overloaded(&busy).is_none());
        busy.cores = 0.91;
        assert!(overloaded(&busy).is_some());
    }

    #[test]
    fn ratios_are_untiered_by_tiered_and_larger_by_smaller() {
        let all = [1_000; Role::ALL.len()];
        let meant = [1_000, 1_000, 1_000, 0, 0];
        let halves = Halves::of(vec![half(16.0, 900, all)], vec![half(2.0, 100, meant)]);
        assert_eq!((halves.cpu_ratio_untiered, halves.bytes_ratio_untiered), (8.0, 9.0));
        assert_eq!(halves.send_calls_ratio_untiered, None);
        assert_eq!((halves.delay_us_p99["warm"], halves.delay_us_p99["passive"]), (7, 7));
        let (few, mut many) = (half(1.0, 1, meant), half(1.0, 1, meant));
        many.tiers.insert(Role::Active.name(), Tier { delay_us_p99: 14, ..many.tier(Role::Active) });
        let scaling = Scaling::of(vec![[few, many]]);
        assert_eq!((scaling.active_p99_ratio.ratio, scaling.visible_p99_ratio.ratio), (2.0, 1.0));
        let (once, mut twice) = (half(1.0, 1, meant), half(1.0, 1, meant));
        twice.tiers.insert("passive", Tier { frames: 11, bytes: 105, ..twice.tiers["passive"] });
        let doubling = Doubling::of(vec![[once, twice]]);
        assert!((doubling.passive_frames_ratio.ratio - 1.1).abs() < 1e-9);
        assert_eq!(doubling.passive_bytes_ratio.bar_text(), "bar 1.1 met");
    }
}
