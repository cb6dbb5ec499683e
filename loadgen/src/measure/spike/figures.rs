//! What `spike` reports.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{GOODPUT_BAR, On, P99_BAR, Spike, book::Book, clock::Phase, recovered_s};
use crate::measure::{
    report::{Outcome, Report},
    server::Transport,
    statistics::{Spread, bar_text},
};

/// It is to be over within so many seconds.
const RECOVERY_S_BAR: f64 = 60.0;

/// `fanfare.spike/v1`.
#[derive(Debug, Serialize)]
pub struct SpikeReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    factor: f64,
    seconds: f64,
    /// The least of all spikes'.
    goodput_ratio: f64,
    goodput_ratio_bar_at_least: f64,
    /// The most of them; absent where one was never over.
    recovery_s: Option<f64>,
    recovery_s_bar: f64,
    /// The most of their kinds' medians.
    small_p99_ratio: f64,
    small_p99_ratio_bar: f64,
    /// Of the spikes of one kind.
    small_p99_ratios: BTreeMap<&'static str, Spread>,
    lost: u64,
    /// GAPs in the place of entries, which were fetched.
    gaps: u64,
    /// Sessions that ended and came back, by why.
    sessions_ended: BTreeMap<String, u64>,
    peak_bytes: u64,
    memory_cap_bytes: u64,
    spikes: Vec<Spiked>,
}

/// What was counted in one spike.
pub struct Lasted {
    pub small: Book,
    pub hot: Book,
    pub more: Book,
    pub came: Book,
    /// Cores that the server was running on before, and in the spike.
    pub cores: (f64, f64),
}

/// One spike.
#[derive(Debug, Serialize)]
pub struct Spiked {
    on: On,
    goodput_ratio: f64,
    connects_ratio: f64,
    recovery_s: Option<f64>,
    small_p99_ratio: f64,
    /// By kind: `small`, `hot`, `more`, `connects`; and phase.
    kinds: BTreeMap<&'static str, BTreeMap<&'static str, Figures>>,
    /// By kind, and error number or words.
    refused: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// From the beginning of the spike.
    first_refused_s: BTreeMap<&'static str, f64>,
    /// Cores that the server was running on.
    cores_before: f64,
    cores: f64,
    before_bytes: u64,
    peak_bytes: u64,
}

/// Of one kind in one phase.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    meant: u64,
    /// Acknowledged, or let in.
    done: u64,
    done_per_s: f64,
    done_us_p50: u64,
    done_us_p99: u64,
    delivered: u64,
    delivered_us_p50: u64,
    delivered_us_p99: u64,
}

impl Figures {
    fn of(book: &Book, phase: Phase) -> Self {
        let page = book.page(phase);
        Self {
            meant: page.meant,
            done: page.done,
            done_per_s: book.per_s(phase),
            done_us_p50: page.done_us.value_at_quantile(0.5),
            done_us_p99: page.done_us.value_at_quantile(0.99),
            delivered: page.delivered_us.len(),
            delivered_us_p50: page.delivered_us.value_at_quantile(0.5),
            delivered_us_p99: page.delivered_us.value_at_quantile(0.99),
        }
    }
}

/// In the spike by before.
fn grown(book: &Book, figure: impl Fn(&Book, Phase) -> f64) -> f64 {
    let before = figure(book, Phase::Calm);
    if before > 0.0 { figure(book, Phase::Spike) / before } else { 0.0 }
}

impl Spiked {
    pub fn of(on: On, lasted: &Lasted, before_bytes: u64, peak_bytes: u64) -> Self {
        let kinds = [
            ("small", &lasted.small),
            ("hot", &lasted.hot),
            ("more", &lasted.more),
            ("connects", &lasted.came),
        ];
        let phases = |book| BTreeMap::from(Phase::ALL.map(|phase| (phase.name(), Figures::of(book, phase))));
        let begins = lasted.small.clock.from + lasted.small.clock.calm;
        let first = |book: &Book| {
            let at = book.first_refused?;
            let early = begins.saturating_duration_since(at).as_secs_f64();
            Some(at.saturating_duration_since(begins).as_secs_f64() - early)
        };
        Self {
            on,
            goodput_ratio: grown(&lasted.small, Book::per_s),
            connects_ratio: grown(&lasted.came, Book::per_s),
            recovery_s: recovered_s(&lasted.small),
            small_p99_ratio: grown(&lasted.small, |book, phase| {
                book.page(phase).delivered_us.value_at_quantile(0.99) as f64
            }),
            kinds: kinds.into_iter().map(|(name, book)| (name, phases(book))).collect(),
            refused: kinds
                .into_iter()
                .filter(|(_, book)| !book.refused.is_empty())
                .map(|(name, book)| (name, book.refused.clone()))
                .collect(),
            first_refused_s: kinds
                .into_iter()
                .filter_map(|(name, book)| Some((name, first(book)?)))
                .collect(),
            cores_before: lasted.cores.0,
            cores: lasted.cores.1,
            before_bytes,
            peak_bytes,
        }
    }

    /// Whether this side was what refused.
    pub fn was_held_up_here(&self) -> bool {
        let is_here = |why: &String| why.starts_with("on this side") || why == "waited here";
        self.refused.values().any(|refused| refused.keys().any(is_here))
    }

    fn print(&self) {
        println!("  on {:?}", self.on);
        println!(
            "    goodput        {:>8.3} of the small groups, {:.3} of connects; {}",
            self.goodput_ratio,
            self.connects_ratio,
            at_least(self.goodput_ratio.min(self.connects_ratio), GOODPUT_BAR)
        );
        println!(
            "    small p99      {:>8.2} times; {}",
            self.small_p99_ratio,
            bar_text(self.small_p99_ratio, Some(P99_BAR))
        );
        match self.recovery_s {
            Some(seconds) => {
                println!("    as before after {seconds:>7.0} s; {}", bar_text(seconds, Some(RECOVERY_S_BAR)))
            }
            None => println!("    as before           never"),
        }
        for (kind, phases) in &self.kinds {
            for phase in Phase::ALL {
                let Some(figures) = phases.get(phase.name()).filter(|figures| figures.meant > 0) else {
                    continue;
                };
                let ms = |us: u64| us as f64 / 1e3;
                print!(
                    "    {kind:<9}{:<6} {:>8} meant {:>8} done {:>8.1}/s  ms p50 {:>8.2} p99 {:>8.2}",
                    phase.name(),
                    figures.meant,
                    figures.done,
                    figures.done_per_s,
                    ms(figures.done_us_p50),
                    ms(figures.done_us_p99)
                );
                if figures.delivered > 0 {
                    print!(
                        "  delivered {:>9}, p50 {:>8.2} p99 {:>8.2}",
                        figures.delivered,
                        ms(figures.delivered_us_p50),
                        ms(figures.delivered_us_p99)
                    );
                }
                println!();
            }
        }
        for (kind, refused) in &self.refused {
            let words: Vec<String> = refused.iter().map(|(why, count)| format!("{count} x {why}")).collect();
            let first = self.first_refused_s.get(kind).copied().unwrap_or_default();
            println!("    refused        {kind}: {}; the first after {first:.1} s", words.join(", "));
        }
        println!("    cores          {:>8.2} of one, {:.2} before", self.cores, self.cores_before);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "    memory         {:>8.1} MiB at most, {:.1} MiB before",
            mib(self.peak_bytes),
            mib(self.before_bytes)
        );
    }
}

fn at_least(figure: f64, bar: f64) -> String {
    format!("bar {bar} at least {}", if figure >= bar { "met" } else { "MISSED" })
}

impl SpikeReport {
    pub fn of(
        arguments: &Spike,
        outcome: Outcome,
        spikes: Vec<Spiked>,
        lost: u64,
        gaps: u64,
        sessions_ended: BTreeMap<String, u64>,
    ) -> Self {
        let least = |figure: fn(&Spiked) -> f64| spikes.iter().map(figure).fold(f64::INFINITY, f64::min);
        let mut of_kinds: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for spiked in &spikes {
            of_kinds.entry(spiked.on.name()).or_default().push(spiked.small_p99_ratio);
        }
        let small_p99_ratios: BTreeMap<_, _> =
            of_kinds.into_iter().map(|(on, ratios)| (on, Spread::of(ratios))).collect();
        let recovered: Option<Vec<f64>> = spikes.iter().map(|spiked| spiked.recovery_s).collect();
        Self {
            schema: "fanfare.spike/v1",
            outcome,
            transport: arguments.options.transport,
            factor: arguments.factor,
            seconds: arguments.length.as_secs_f64(),
            goodput_ratio: least(|spiked| spiked.goodput_ratio.min(spiked.connects_ratio)),
            goodput_ratio_bar_at_least: GOODPUT_BAR,
            recovery_s: recovered.map(|seconds| seconds.into_iter().fold(0.0, f64::max)),
            recovery_s_bar: RECOVERY_S_BAR,
            small_p99_ratio: small_p99_ratios.values().map(|ratios| ratios.median).fold(0.0, f64::max),
            small_p99_ratio_bar: P99_BAR,
            small_p99_ratios,
            lost,
            gaps,
            sessions_ended,
            peak_bytes: spikes.iter().map(|spiked| spiked.peak_bytes).max().unwrap_or(0),
            memory_cap_bytes: arguments.memory_cap_mib << 20,
            spikes,
        }
    }
}

impl Report for SpikeReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!("  {} times as much for {} s over {:?}", self.factor, self.seconds, self.transport);
        self.spikes.iter().for_each(Spiked::print);
        if self.spikes.len() > self.small_p99_ratios.len() {
            for (on, Spread { median, min, max }) in &self.small_p99_ratios {
                let bar = bar_text(*median, Some(P99_BAR));
                println!("  small p99 on {on}: {median:.2} times, median of {min:.2} to {max:.2}; {bar}");
            }
        }
        for (why, count) in &self.sessions_ended {
            println!("  ended          {count:>8} sessions, which came back: {why}");
        }
        let met = if self.peak_bytes <= self.memory_cap_bytes { "met" } else { "MISSED" };
        println!(
            "  memory cap     {:>8} MiB {met}; {} gaps fetched, {} lost",
            self.memory_cap_bytes >> 20,
            self.gaps,
            self.lost
        );
    }
}
