//! Two counters of a member's acts in a channel, one of minutes and one of days, as forward decay: a counter is kept as the logarithm
//! of what its acts would weigh at [`EPOCH_S`], so that nothing has to be swept and counters of different channels and times compare.
//!
//! After Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A Practical Time Decay Model for Streaming Systems" (ICDE 2009), with
//! an exponential function.

use crate::settings::Settings;

/// Unix seconds from which counters count their half-lives, 2025-01-01: near, so that a logarithm of 32 bits is exact to 1 % for
/// years (it grows by 52,560 a year at a half-life of 10 minutes).
pub const EPOCH_S: u64 = 1_735_689_600;

/// What a member does, or others do to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Sends a message.
    Send,
    /// Taps a push notification.
    Tap,
    /// Replies; counted beside [`Act::Send`].
    Reply,
    /// Reacts, edits or recalls.
    React,
    /// Is mentioned or replied to. No act of its own: it does not end ignoring.
    Named,
    /// Opens the channel, or has looked at it for another 30 s.
    Look,
    /// Its read cursor advances.
    Read,
    /// Types.
    Type,
}

/// See the module. 12 bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Score {
    /// Logarithm to base 2, in half-lives since [`EPOCH_S`]; minus infinity: never.
    fast: f32,
    /// The same, of the slow counter.
    slow: f32,
    /// Seconds since [`EPOCH_S`] of the last act of its own; 0: never.
    acted: u32,
}

const _: () =
    assert!(size_of::<Score>() == 12, "each member who ever did something has one in each of its channels");

impl Default for Score {
    fn default() -> Self {
        Self { fast: f32::NEG_INFINITY, slow: f32::NEG_INFINITY, acted: 0 }
    }
}

/// Seconds since [`EPOCH_S`].
fn since_epoch(now_ms: u64) -> f64 {
    (now_ms as f64 / 1_000.0 - EPOCH_S as f64).max(0.0)
}

/// The count that a logarithm stands for.
fn count(logarithm: f32, half_lives: f64) -> f64 {
    (f64::from(logarithm) - half_lives).exp2()
}

fn add(logarithm: f32, half_lives: f64, weight: f32) -> f32 {
    ((count(logarithm, half_lives) + f64::from(weight)).log2() + half_lives) as f32
}

impl Score {
    /// From its parts, as [`Self::parts`] gave them. What is not a number counts as never.
    pub fn of_parts((fast, slow, acted): (f32, f32, u32)) -> Self {
        let sound = |logarithm: f32| if logarithm.is_finite() { logarithm } else { f32::NEG_INFINITY };
        Self { fast: sound(fast), slow: sound(slow), acted }
    }

    /// The logarithms of fast and slow counter, and when the member last acted (seconds since [`EPOCH_S`]): to be stored.
    pub fn parts(&self) -> (f32, f32, u32) {
        (self.fast, self.slow, self.acted)
    }

    /// When the member last did something itself, Unix milliseconds to the second; 0: never.
    pub fn acted_ms(&self) -> u64 {
        if self.acted == 0 { 0 } else { (EPOCH_S + u64::from(self.acted)) * 1_000 }
    }

    /// Counts an act at `now_ms`, Unix milliseconds; acts may come in any order.
    pub fn act(&mut self, settings: &Settings, act: Act, now_ms: u64) {
        let (now, weight) = (since_epoch(now_ms), settings.weight(act));
        if weight > 0.0 {
            self.fast = add(self.fast, now / f64::from(settings.fast_half_life_s), weight);
            self.slow = add(self.slow, now / f64::from(settings.slow_half_life_s), weight);
        }
        if act != Act::Named {
            self.acted = self.acted.max(now as u32);
        }
    }

    /// The decayed counts of (fast, slow) at `now_ms`.
    pub fn counts(&self, settings: &Settings, now_ms: u64) -> (f32, f32) {
        let now = since_epoch(now_ms);
        let of = |logarithm, half_life: f32| count(logarithm, now / f64::from(half_life)) as f32;
        (of(self.fast, settings.fast_half_life_s), of(self.slow, settings.slow_half_life_s))
    }

    /// The score before session state and boosts at `now_ms`, 0 to 1, halved after `ignored_s` without an act of its own where the
    /// member has `unread` messages and those are many.
    pub fn base(&self, settings: &Settings, now_ms: u64, unread: u64) -> f32 {
        let (fast, slow) = self.counts(settings, now_ms);
        let saturated = |count: f32| count / (count + settings.half_saturation);
        let base = settings.fast_share * saturated(fast.min(1e9))
            + (1.0 - settings.fast_share) * saturated(slow.min(1e9));
        let is_ignored = unread >= settings.ignored_unread
            && settings.ignored_s > 0
            && (since_epoch(now_ms) as u32).saturating_sub(self.acted) >= settings.ignored_s;
        if is_ignored { base / 2.0 } else { base }
    }

    /// This slow counter by that of `all`, 0 to 1; 1 where that is empty. It does not change with time: both fall alike.
    pub fn part(&self, all: &Self) -> f32 {
        if all.slow == f32::NEG_INFINITY { 1.0 } else { (self.slow - all.slow).exp2().min(1.0) }
    }

    /// Counts what another counted, too.
    pub fn add(&mut self, other: &Self) {
        let sum = |one: f32, other: f32| {
            let (less, more) = (one.min(other), one.max(other));
            if less == f32::NEG_INFINITY {
                more
            } else {
                more + (less - more).exp2().ln_1p() / std::f32::consts::LN_2
            }
        };
        (self.fast, self.slow) = (sum(self.fast, other.fast), sum(self.slow, other.slow));
        self.acted = self.acted.max(other.acted);
    }

    /// Whether nothing is left of it that could make a difference: it may be forgotten.
    pub fn is_spent(&self, settings: &Settings, now_ms: u64) -> bool {
        let (fast, slow) = self.counts(settings, now_ms);
        fast < 1e-3 && slow < 1e-3
    }
}
