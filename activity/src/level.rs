//! Which level a member's score gives. The hysteresis needs no memory: counters only fall between acts, so what the score was a
//! minute ago follows from what they are now.
//!
//! Warm goes by the score and by what members of the channel do on average. The chance that a member answers a message falls with how
//! much others write, and what serving it costs rises with it: the same bar for a quiet and a busy channel wastes in one what it misses
//! in the other.

use crate::{score::Score, settings::Settings, total::Total};

/// How soon a member's sessions get entries, by score alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// The head and counts, now and then.
    Passive,
    /// Entries, bundled.
    Warm,
    /// Entries, at once.
    Active,
}

/// What a session shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Shown {
    /// The app is not on screen.
    Background,
    /// The app is on screen, the channel is not.
    Foreground,
    /// The channel is on screen.
    Visible,
}

/// What else a level follows from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Member {
    /// What the session shows.
    pub shown: Shown,
    /// A direct channel.
    pub is_direct: bool,
    /// Members of the channel.
    pub members: usize,
    /// A moderator took its right to write there.
    pub is_muted: bool,
    /// Messages the user has not read.
    pub unread: u64,
    /// What all members of the channel do.
    pub total: Total,
}

impl Member {
    /// The score with session state and boosts at `now_ms`, 0 to 1.
    pub fn score(&self, settings: &Settings, score: &Score, now_ms: u64) -> f32 {
        let state = match self.shown {
            Shown::Background => settings.background,
            Shown::Foreground => settings.foreground,
            Shown::Visible => 1.0,
        };
        let boost = if self.is_direct {
            settings.direct_boost
        } else if self.members <= settings.small_members {
            settings.small_boost
        } else {
            0.0
        };
        let minus = if self.is_muted { settings.muted_minus } else { 0.0 };
        (score.base(settings, now_ms, self.unread) * state + boost - minus).clamp(0.0, 1.0)
    }
}

/// The level at `now_ms` of one that was at `current`: up at once, down when the score has been below the part `exit` of the threshold
/// for `patience_s`.
pub fn level(settings: &Settings, score: &Score, member: &Member, current: Level, now_ms: u64) -> Level {
    let entered = at_least(settings, score, member, 1.0, now_ms);
    if entered >= current {
        return entered;
    }
    let earlier_ms = now_ms.saturating_sub((settings.patience_s * 1_000.0) as u64);
    let kept = at_least(settings, score, member, settings.exit, earlier_ms);
    kept.min(current).max(entered)
}

/// The level where every threshold counts by `factor`.
fn at_least(settings: &Settings, score: &Score, member: &Member, factor: f32, at_ms: u64) -> Level {
    let value = member.score(settings, score, at_ms);
    if value >= settings.active * factor {
        Level::Active
    } else if value >= settings.warm * factor
        && score.of_mean(settings, &member.total, member.members) >= settings.warm_of_mean * factor
    {
        Level::Warm
    } else {
        Level::Passive
    }
}
