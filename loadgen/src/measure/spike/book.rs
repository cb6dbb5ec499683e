//! What became of what was asked for, by phase and by second.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fanfare_proto::Code;
use hdrhistogram::Histogram;

use super::clock::{Clock, Phase};

/// The longest time that is told apart, in microseconds: ten minutes.
const US_MAX: u64 = 600_000_000;
/// Seconds of a run.
const SECONDS_MAX: usize = 3_600;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, US_MAX, 3).expect("bounds that are constant")
}

/// One phase, by when something was meant to leave.
#[derive(Clone, Debug)]
pub struct Page {
    pub meant: u64,
    pub done: u64,
    pub done_us: Histogram<u64>,
    pub delivered_us: Histogram<u64>,
}

/// One second, by when something happened.
#[derive(Clone, Debug)]
pub struct Second {
    pub done: u64,
    pub delivered_us: Histogram<u64>,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Book {
    pub clock: Clock,
    pub pages: [Page; 3],
    pub seconds: Vec<Second>,
    /// Refused, by number or words.
    pub refused: BTreeMap<String, u64>,
    /// When the first was.
    pub first_refused: Option<Instant>,
}

impl Book {
    /// An empty one.
    pub fn new(clock: Clock) -> Self {
        let page = || Page { meant: 0, done: 0, done_us: histogram(), delivered_us: histogram() };
        Self {
            clock,
            pages: std::array::from_fn(|_| page()),
            seconds: Vec::new(),
            refused: BTreeMap::new(),
            first_refused: None,
        }
    }

    fn second(&mut self, at: Instant) -> &mut Second {
        let number = self.clock.second(at).min(SECONDS_MAX);
        if self.seconds.len() <= number {
            self.seconds.resize_with(number + 1, || Second { done: 0, delivered_us: histogram() });
        }
        &mut self.seconds[number]
    }

    /// Something is meant to leave.
    pub fn meant(&mut self, at: Instant) {
        self.pages[self.clock.phase(at) as usize].meant += 1;
    }

    /// It was acknowledged, or a session let in.
    pub fn done(&mut self, meant: Instant) {
        let now = Instant::now();
        let page = &mut self.pages[self.clock.phase(meant) as usize];
        page.done += 1;
        page.done_us.saturating_record(us(now - meant));
        self.second(now).done += 1;
    }

    /// Somebody has it.
    pub fn delivered(&mut self, meant: Instant) {
        let now = Instant::now();
        let late = us(now.saturating_duration_since(meant));
        self.pages[self.clock.phase(meant) as usize].delivered_us.saturating_record(late);
        self.second(now).delivered_us.saturating_record(late);
    }

    /// It was refused.
    pub fn refused(&mut self, why: String) {
        *self.refused.entry(why).or_default() += 1;
        self.first_refused.get_or_insert_with(Instant::now);
    }

    /// It was refused by an error number.
    pub fn refused_by(&mut self, code: Code) {
        self.refused(code.to_string());
    }

    /// Of a phase.
    pub fn page(&self, phase: Phase) -> &Page {
        &self.pages[phase as usize]
    }

    /// Done in a second, while a phase was.
    pub fn per_s(&self, phase: Phase) -> f64 {
        let (from, to) = match phase {
            Phase::Calm => (0, self.clock.calm.as_secs()),
            Phase::Spike => (self.clock.calm.as_secs(), (self.clock.calm + self.clock.spike).as_secs()),
            Phase::After => ((self.clock.calm + self.clock.spike).as_secs(), self.seconds.len() as u64),
        };
        let seconds = self.seconds.iter().skip(from as usize).take((to - from.min(to)) as usize);
        seconds.map(|second| second.done).sum::<u64>() as f64 / (to - from.min(to)).max(1) as f64
    }

    /// Seconds behind the spike until `steady` seconds one after the other are as before: as much done, and the 99th percentile of deliveries, of
    /// as many as `worse` times the calm's. `None`: not yet.
    pub fn recovered_s(&self, steady: usize, goodput: f64, worse: f64) -> Option<f64> {
        let over = (self.clock.calm + self.clock.spike).as_secs() as usize;
        let calm_us = self.page(Phase::Calm).delivered_us.value_at_quantile(0.99) as f64;
        let enough = self.per_s(Phase::Calm) * goodput;
        // The last second may not be over.
        let seconds = self.seconds.get(over..self.seconds.len().saturating_sub(1)).unwrap_or_default();
        let is_normal = |second: &Second| {
            second.done as f64 >= enough
                && second.delivered_us.value_at_quantile(0.99) as f64 <= calm_us * worse
        };
        let normal: Vec<bool> = seconds.iter().map(is_normal).collect();
        let first = normal.windows(steady).position(|window| window.iter().all(|is_normal| *is_normal))?;
        Some(first as f64)
    }
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Book {
        let clock =
            Clock { from: Instant::now(), calm: Duration::from_secs(2), spike: Duration::from_secs(2) };
        Book::new(clock)
    }

    fn second(done: u64, us: u64) -> Second {
        let mut delivered_us = histogram();
        delivered_us.saturating_record(us);
        Second { done, delivered_us }
    }

    #[test]
    fn it_is_over_when_everything_is_as_before() {
        let mut book = book();
        book.pages[0].delivered_us.saturating_record(100);
        book.seconds = [(10, 100), (10, 100), (10, 900), (2, 900)].map(|(done, us)| second(done, us)).into();
        assert_eq!((book.per_s(Phase::Calm), book.per_s(Phase::Spike)), (10.0, 6.0));
        assert_eq!(book.recovered_s(2, 0.9, 2.0), None, "nothing came behind the spike");
        book.seconds
            .extend([(10, 900), (10, 100), (8, 100), (9, 190), (10, 150)].map(|(d, us)| second(d, us)));
        assert_eq!(book.recovered_s(2, 0.9, 2.0), None, "the last second may not be over");
        book.seconds.push(second(0, 1));
        assert_eq!(book.recovered_s(2, 0.9, 2.0), Some(3.0));
        assert_eq!(book.recovered_s(1, 0.9, 2.0), Some(1.0));
    }

    #[test]
    fn what_was_meant_to_leave_in_a_phase_is_that_phases() {
        let mut book = book();
        let calm = book.clock.from;
        book.meant(calm);
        book.meant(calm + Duration::from_secs(3));
        book.done(calm);
        book.refused_by(Code::RETRY_LATER);
        assert_eq!((book.page(Phase::Calm).meant, book.page(Phase::Calm).done), (1, 1));
        assert_eq!((book.page(Phase::Spike).meant, book.page(Phase::Spike).done), (1, 0));
        assert_eq!(book.refused.values().sum::<u64>(), 1);
        assert!(book.first_refused.is_some());
    }
}
