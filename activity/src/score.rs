//! Two counters of a member's acts in a channel, one of minutes and one of days, as forward decay: a counter is kept as the moment at
//! which it will have fallen to 1, so that nothing has to be swept and counters of different channels and times compare.
//!
//! After Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A Practical Time Decay Model for Streaming Systems" (ICDE 2009), with
//! an exponential function.

use crate::{settings::Settings, total::Total};

/// Unix seconds from which moments count, 2025-01-01.
pub const EPOCH_S: u64 = 1_735_689_600;

/// Moments are kept in parts of a second: of 2^32 they last until 2042, and rounding to them changes a counter that halves in ten
/// minutes by less than 0.01 %.
const PARTS_PER_S: f64 = 8.0;

/// What others do to a member lifts its counters no further than this: two messages of its own. Otherwise anybody could make members
/// active for days by naming them again and again.
const NAMED_MAX: f64 = 16.0;

/// More half-lives ahead than any counter comes: who has such a moment had it from a clock that was wrong.
const HALF_LIVES_MAX: f64 = 40.0;

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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Score {
    /// When it will have fallen to 1, in eighths of a second since [`EPOCH_S`]; 0: it was never raised.
    fast: u32,
    /// The same, of the slow counter.
    slow: u32,
    /// Seconds since [`EPOCH_S`] of the last act of its own; 0: never.
    acted: u32,
}

const _: () =
    assert!(size_of::<Score>() == 12, "each member who ever did something has one in each of its channels");

/// Seconds since [`EPOCH_S`].
fn since_epoch(now_ms: u64) -> f64 {
    (now_ms as f64 / 1_000.0 - EPOCH_S as f64).max(0.0)
}

/// What a counter is at `now_s` that will have fallen to 1 at `moment`.
fn count(moment: u32, now_s: f64, half_life_s: f32) -> f64 {
    if moment == 0 { 0.0 } else { half_lives(moment, now_s, half_life_s).exp2() }
}

/// How many half-lives it takes from `now_s` to that moment.
fn half_lives(moment: u32, now_s: f64, half_life_s: f32) -> f64 {
    (f64::from(moment) / PARTS_PER_S - now_s) / f64::from(half_life_s)
}

/// When a counter will have fallen to 1 that is raised at `now_s`, by an act that lifts it to `most` at the most.
fn raised(moment: u32, now_s: f64, half_life_s: f32, weight: f32, most: f64) -> u32 {
    let before = count(moment, now_s, half_life_s);
    let raised = (before + f64::from(weight)).min(most.max(before));
    let until_s = now_s + raised.log2() * f64::from(half_life_s);
    ((until_s * PARTS_PER_S).round() as u32).max(1)
}

impl Score {
    /// From its parts, as [`Self::parts`] gave them.
    pub fn of_parts((fast, slow, acted): (u32, u32, u32)) -> Self {
        Self { fast, slow, acted }
    }

    /// Without what a clock that was ahead of `now_ms` has left in it, which would count for as long as that clock was ahead.
    pub fn sound(self, settings: &Settings, now_ms: u64) -> Self {
        let now = since_epoch(now_ms);
        let is_sound = |moment, half_life_s| half_lives(moment, now, half_life_s) <= HALF_LIVES_MAX;
        let of = |moment, half_life_s| if is_sound(moment, half_life_s) { moment } else { 0 };
        Self {
            fast: of(self.fast, settings.fast_half_life_s),
            slow: of(self.slow, settings.slow_half_life_s),
            acted: self.acted.min(now as u32),
        }
    }

    /// When fast and slow counter will have fallen to 1 (eighths of a second since [`EPOCH_S`]) and when the member last acted
    /// (seconds since then); 0 for never: to be stored.
    pub fn parts(&self) -> (u32, u32, u32) {
        (self.fast, self.slow, self.acted)
    }

    /// When the member last did something itself, Unix milliseconds to the second; 0: never.
    pub fn acted_ms(&self) -> u64 {
        if self.acted == 0 { 0 } else { (EPOCH_S + u64::from(self.acted)) * 1_000 }
    }

    /// Counts an act at `now_ms`, Unix milliseconds; acts may come in any order.
    pub fn act(&mut self, settings: &Settings, act: Act, now_ms: u64) {
        let (now, weight) = (since_epoch(now_ms), settings.weight(act));
        let most = if act == Act::Named { NAMED_MAX } else { f64::INFINITY };
        if weight > 0.0 {
            self.fast = raised(self.fast, now, settings.fast_half_life_s, weight, most);
            self.slow = raised(self.slow, now, settings.slow_half_life_s, weight, most);
        }
        if act != Act::Named {
            self.acted = self.acted.max(now as u32);
        }
    }

    /// The decayed counts of (fast, slow) at `now_ms`.
    pub fn counts(&self, settings: &Settings, now_ms: u64) -> (f32, f32) {
        let now = since_epoch(now_ms);
        let of = |moment, half_life_s| count(moment, now, half_life_s) as f32;
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

    /// When what it adds to a [`Total`] will have fallen to 1, seconds since [`EPOCH_S`]: its slow counter, of which not more than
    /// `total_cap` counted when it last acted itself. Nothing where it never did.
    pub(crate) fn in_total(&self, settings: &Settings) -> Option<f64> {
        let cap_s = f64::from(settings.total_cap).log2() * f64::from(settings.slow_half_life_s);
        let is_counted = self.slow > 0 && self.acted > 0;
        is_counted.then(|| (f64::from(self.slow) / PARTS_PER_S).min(f64::from(self.acted) + cap_s))
    }

    /// Its slow counter by the mean of `members` that counted into `total`; infinite where nobody did. It does not change with time:
    /// all counters fall alike.
    pub fn of_mean(&self, settings: &Settings, total: &Total, members: usize) -> f32 {
        if self.slow == 0 {
            return if total.is_empty() { f32::INFINITY } else { 0.0 };
        }
        let own_s = f64::from(self.slow) / PARTS_PER_S;
        (total.falls_of(settings, own_s) * members as f64) as f32
    }
}
