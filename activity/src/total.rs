//! What all members of a channel do, for its mean.

use crate::{score::Score, settings::Settings};

/// The sum of members' slow counters, kept like one of them. Of each member not more than `total_cap` counts, taken when it last acted:
/// otherwise one who never stops, a bot or a flood, would lift the mean above everybody else. Being named does not count either, since
/// others can do that to a member. Who leaves is taken out again.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Total {
    /// When it will have fallen to 1, seconds since [`crate::EPOCH_S`]; minus infinity: nobody counted.
    until_s: f64,
}

impl Default for Total {
    fn default() -> Self {
        Self { until_s: f64::NEG_INFINITY }
    }
}

impl Total {
    /// Counts a member in.
    pub fn add(&mut self, settings: &Settings, score: &Score) {
        let Some(one_s) = score.in_total(settings) else { return };
        let (less, more) = (self.until_s.min(one_s), self.until_s.max(one_s));
        let half_life_s = f64::from(settings.slow_half_life_s);
        self.until_s =
            more + ((less - more) / half_life_s).exp2().ln_1p() / std::f64::consts::LN_2 * half_life_s;
    }

    /// Takes a member out that was counted in with this score.
    pub fn remove(&mut self, settings: &Settings, score: &Score) {
        let Some(one_s) = score.in_total(settings) else { return };
        let half_life_s = f64::from(settings.slow_half_life_s);
        let part = ((one_s - self.until_s) / half_life_s).exp2();
        // What is left of the last one is rounding.
        self.until_s = if part < 1.0 - 1e-9 {
            self.until_s + (-part).ln_1p() / std::f64::consts::LN_2 * half_life_s
        } else {
            f64::NEG_INFINITY
        };
    }

    /// Whether nobody counted.
    pub fn is_empty(&self) -> bool {
        self.until_s == f64::NEG_INFINITY
    }

    /// How often this goes into a counter that will have fallen to 1 at `until_s`.
    pub(crate) fn falls_of(&self, settings: &Settings, until_s: f64) -> f64 {
        ((until_s - self.until_s) / f64::from(settings.slow_half_life_s)).exp2()
    }
}
