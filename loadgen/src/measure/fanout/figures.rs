//! What `fanout` reports.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::{
    floor::Taken,
    report::{Outcome, Report},
    server::Transport,
    statistics::{Ratio, Spread, bar_text, median_of},
};

/// How far datagrams per message may differ between ours and the floor, as a part of the floor's.
const DATAGRAMS_APART_MAX: f64 = 0.05;
/// Ours is to be below the peer's.
const PEER_BAR: f64 = 1.0;

/// `fanfare.fanout/v1`.
#[derive(Debug, Serialize)]
pub struct FanoutReport {
    pub schema: &'static str,
    #[serde(flatten)]
    pub outcome: Outcome,
    pub transport: Transport,
    pub in_flight: u16,
    pub repeats: usize,
    pub sizes: Vec<Size>,
}

/// What was measured with one number of members.
#[derive(Debug, Serialize)]
pub struct Size {
    pub members: usize,
    pub messages_per_round: usize,
    /// Bytes of one DELIVER frame.
    pub frame_bytes: usize,
    /// CPU per delivery, in microseconds.
    pub ratio: Ratio,
    pub cpu_us_per_delivery: Spread,
    pub floor_cpu_us_per_delivery: Spread,
    /// Ours by kind of thread, medians, in microseconds per delivery.
    pub cpu_us_per_delivery_by_thread: BTreeMap<String, f64>,
    pub deliver_us_p50: Spread,
    pub pass_us_p50: Spread,
    pub read_us_p50: Spread,
    /// `deliver_us_p50` by `pass_us_p50`.
    pub deliver_ratio: Ratio,
    pub deliveries_per_s: Spread,
    /// Over QUIC: ours by the floor's, of datagrams per message and member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams_per_message: Option<Ratio>,
    /// Where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerFigures>,
    #[serde(skip)]
    pub datagrams_alike: bool,
}

/// A peer's work beside ours.
#[derive(Debug, Serialize)]
pub struct PeerFigures {
    /// Its program and version.
    pub name: String,
    pub version: String,
    /// CPU per delivery, in microseconds: ours by the peer's (`floor`).
    pub ratio: Ratio,
}

/// Figures of one repeat.
pub struct Round {
    pub cpu_us: f64,
    pub by_thread: BTreeMap<String, f64>,
    pub floor_cpu_us: f64,
    pub deliver_us: f64,
    pub pass_us: f64,
    pub read_us: f64,
    pub deliveries_per_s: f64,
    /// Per message and member: ours, the floor's.
    pub datagrams: Option<(f64, f64)>,
    /// CPU per delivery of the peer, in microseconds.
    pub peer_cpu_us: Option<f64>,
}

/// What was read of the server and its sessions in one repeat.
pub struct Ours {
    pub spent: BTreeMap<String, u64>,
    pub deliver_us: u64,
    pub elapsed_s: f64,
    pub datagrams: u64,
    pub deliveries: usize,
    pub peer_cpu_us: Option<f64>,
}

pub fn round(ours: &Ours, mut taken: Taken, floor_deliveries: usize) -> Round {
    let deliveries = ours.deliveries as f64;
    let per_delivery = |ns: u64| ns as f64 / 1e3 / deliveries;
    let floor_datagrams = taken.datagrams.map(|datagrams| datagrams as f64 / floor_deliveries as f64);
    Round {
        cpu_us: per_delivery(ours.spent.values().sum()),
        by_thread: ours.spent.iter().map(|(kind, ns)| (kind.clone(), per_delivery(*ns))).collect(),
        floor_cpu_us: taken.cpu_ns as f64 / 1e3 / floor_deliveries as f64,
        deliver_us: ours.deliver_us as f64,
        pass_us: median_of(&mut taken.pass_us) as f64,
        read_us: median_of(&mut taken.read_us) as f64,
        deliveries_per_s: deliveries / ours.elapsed_s,
        datagrams: floor_datagrams.map(|floor| (ours.datagrams as f64 / deliveries, floor)),
        peer_cpu_us: ours.peer_cpu_us,
    }
}

/// Whether a repeat's datagrams per message were alike on both sides.
fn datagrams_are_alike(round: &Round) -> bool {
    round.datagrams.is_none_or(|(ours, floor)| (ours - floor).abs() <= floor * DATAGRAMS_APART_MAX)
}

pub fn size(
    rounds: &[Round],
    members: usize,
    messages: usize,
    frame_bytes: usize,
    in_flight: usize,
    peer: Option<(String, String)>,
) -> Size {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    let pairs = |ours: fn(&Round) -> f64, floor: fn(&Round) -> f64| -> Vec<(f64, f64)> {
        rounds.iter().map(|round| (ours(round), floor(round))).collect()
    };
    let (cpu_bar, deliver_bar) = match in_flight {
        1 => (Some(1.25), Some(1.5)),
        64 => (Some(2.0), Some(2.0)),
        _ => (None, None),
    };
    let datagrams: Option<Vec<(f64, f64)>> = rounds.iter().map(|round| round.datagrams).collect();
    let beside_peer: Option<Vec<(f64, f64)>> =
        rounds.iter().map(|round| Some((round.cpu_us, round.peer_cpu_us?))).collect();
    let mut kinds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (kind, us) in rounds.iter().flat_map(|round| &round.by_thread) {
        kinds.entry(kind.clone()).or_default().push(*us);
    }
    Size {
        members,
        messages_per_round: messages,
        frame_bytes,
        ratio: Ratio::of(&pairs(|round| round.cpu_us, |round| round.floor_cpu_us), cpu_bar),
        cpu_us_per_delivery: of(|round| round.cpu_us),
        floor_cpu_us_per_delivery: of(|round| round.floor_cpu_us),
        cpu_us_per_delivery_by_thread: kinds
            .into_iter()
            .map(|(kind, us)| (kind, Spread::of(us).median))
            .collect(),
        deliver_us_p50: of(|round| round.deliver_us),
        pass_us_p50: of(|round| round.pass_us),
        read_us_p50: of(|round| round.read_us),
        deliver_ratio: Ratio::of(&pairs(|round| round.deliver_us, |round| round.pass_us), deliver_bar),
        deliveries_per_s: of(|round| round.deliveries_per_s),
        datagrams_per_message: datagrams.map(|datagrams| Ratio::of(&datagrams, None)),
        peer: peer.zip(beside_peer).map(|((name, version), beside)| PeerFigures {
            name,
            version,
            ratio: Ratio::of(&beside, Some(PEER_BAR)),
        }),
        datagrams_alike: in_flight > 1 || rounds.iter().all(datagrams_are_alike),
    }
}

impl Report for FanoutReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  fan-out over {:?}, {} in flight, {} repeats (median, least to most)",
            self.transport, self.in_flight, self.repeats
        );
        println!(
            "   members      CPU us/delivery         floor     ratio                      deliver p50 ms     pass ms   deliver/pass"
        );
        for size in &self.sizes {
            let (cpu, ratio, deliver) = (size.cpu_us_per_delivery, size.ratio, size.deliver_us_p50);
            println!(
                "  {:>8}  {:>6.3} ({:.3} to {:.3})  {:>8.3}  {:>5.2} ({:.2} to {:.2}) {:<14}  {:>9.2}  {:>9.2}  {:>6.2} {}",
                size.members,
                cpu.median,
                cpu.min,
                cpu.max,
                ratio.floor,
                ratio.ratio,
                ratio.min,
                ratio.max,
                ratio.bar_text(),
                deliver.median / 1e3,
                size.pass_us_p50.median / 1e3,
                size.deliver_ratio.ratio,
                bar_text(size.deliver_ratio.ratio, size.deliver_ratio.bar),
            );
            let mut kinds: Vec<_> = size.cpu_us_per_delivery_by_thread.iter().collect();
            kinds.sort_by(|one, other| other.1.total_cmp(one.1));
            let kinds: Vec<String> = kinds.iter().map(|(kind, us)| format!("{kind} {us:.3}")).collect();
            if let Some(datagrams) = size.datagrams_per_message {
                println!(
                    "            datagrams per message: {:.3}, the floor's {:.3}",
                    datagrams.ours, datagrams.floor
                );
            }
            if let Some(PeerFigures { name, version, ratio }) = &size.peer {
                println!(
                    "            {name} {version}: {:.3} us a delivery; ours by that {:.2} ({:.2} to {:.2}) {}",
                    ratio.floor,
                    ratio.ratio,
                    ratio.min,
                    ratio.max,
                    ratio.bar_text()
                );
            }
            println!(
                "            by thread: {} · {:.0} deliveries/s",
                kinds.join(", "),
                size.deliveries_per_s.median
            );
        }
    }
}
