//! What is meant to leave when, and which time of a spike that is: before, during, after.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Which time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Phase {
    /// Before.
    Calm,
    /// While there is more.
    Spike,
    /// After.
    After,
}

impl Phase {
    /// In their order.
    pub const ALL: [Self; 3] = [Self::Calm, Self::Spike, Self::After];

    /// How it is called.
    pub fn name(self) -> &'static str {
        ["calm", "spike", "after"][self as usize]
    }
}

/// When each phase begins, and how much more there is in the spike. Copied to all threads.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The beginning.
    pub from: Instant,
    /// How long it is calm.
    pub calm: Duration,
    /// How long there is more.
    pub spike: Duration,
}

impl Clock {
    /// Which time it is.
    pub fn phase(&self, at: Instant) -> Phase {
        let since = at.saturating_duration_since(self.from);
        if since < self.calm {
            Phase::Calm
        } else if since < self.calm + self.spike {
            Phase::Spike
        } else {
            Phase::After
        }
    }

    /// When the spike is over.
    pub fn over(&self) -> Instant {
        self.from + self.calm + self.spike
    }

    /// The whole second since the beginning.
    pub fn second(&self, at: Instant) -> usize {
        at.saturating_duration_since(self.from).as_secs() as usize
    }
}

/// One source of something at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A second, outside of the spike and in it.
    pub per_s: f64,
    pub spike_per_s: f64,
    next: Instant,
}

impl Pace {
    /// Begins `turn` (0 to 1) of its interval late, so that sources of one rate do not come at once.
    pub fn new(clock: &Clock, per_s: f64, spike_per_s: f64, turn: f64) -> Self {
        let mut pace = Self { per_s, spike_per_s, next: clock.from };
        let first = if per_s > 0.0 { turn / per_s } else { clock.calm.as_secs_f64() + turn / spike_per_s };
        pace.next += Duration::from_secs_f64(first);
        pace
    }

    /// Takes what is due now: when it was meant to leave.
    pub fn due(&mut self, clock: &Clock, now: Instant) -> Option<Instant> {
        let at = self.next;
        if at > now {
            return None;
        }
        let per_s = if clock.phase(at) == Phase::Spike { self.spike_per_s } else { self.per_s };
        if per_s <= 0.0 {
            // Nothing more behind the spike.
            self.next = now + Duration::from_secs(3_600);
            return None;
        }
        self.next = at + Duration::from_secs_f64(1.0 / per_s);
        let begins = clock.from + clock.calm;
        if at < begins && self.next > begins {
            self.next = begins
                + Duration::from_secs_f64(
                    (self.next - begins).as_secs_f64() * per_s / self.spike_per_s.max(per_s),
                );
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        let calm = Duration::from_secs(10);
        Clock { from: Instant::now(), calm, spike: Duration::from_secs(20) }
    }

    fn count(clock: &Clock, mut pace: Pace, until_s: u64) -> [usize; 3] {
        let mut counts = [0; 3];
        let until = clock.from + Duration::from_secs(until_s);
        while let Some(at) = pace.due(clock, until) {
            counts[clock.phase(at) as usize] += 1;
        }
        counts
    }

    #[test]
    fn a_pace_is_kept_in_each_phase() {
        let clock = clock();
        assert_eq!(count(&clock, Pace::new(&clock, 2.0, 20.0, 0.0), 40), [20, 400, 21]);
        let [calm, spike, after] = count(&clock, Pace::new(&clock, 2.0, 20.0, 0.5), 40);
        assert!((19..=21).contains(&calm) && (399..=401).contains(&spike) && (19..=21).contains(&after));
        assert_eq!(count(&clock, Pace::new(&clock, 3.0, 3.0, 0.9), 40)[1], 60);
    }

    #[test]
    fn what_is_only_in_the_spike_is_only_there() {
        let clock = clock();
        let [calm, spike, after] = count(&clock, Pace::new(&clock, 0.0, 9.0, 0.0), 40);
        assert!(calm == 0 && (180..=181).contains(&spike) && after == 0, "{calm} {spike} {after}");
    }

    #[test]
    fn phases_follow_one_another() {
        let clock = clock();
        let at = |seconds| clock.phase(clock.from + Duration::from_secs(seconds));
        assert_eq!([at(0), at(10), at(29), at(30)], [Phase::Calm, Phase::Spike, Phase::Spike, Phase::After]);
        assert_eq!(clock.second(clock.from + Duration::from_millis(2_500)), 2);
    }
}
