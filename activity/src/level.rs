//! Which level a member's score gives. The hysteresis needs no memory: counters only fall between acts, so what the score was a
//! minute ago follows from what they are now.

use crate::{score::Score, settings::Settings};

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// What the session shows.
    pub shown: Shown,
    /// A direct channel.
    pub is_direct: bool,
    /// Members of the channel.
    pub members: usize,
    /// Messages the user has not read.
    pub unread: u64,
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
        (score.base(settings, now_ms, self.unread) * state + boost).clamp(0.0, 1.0)
    }
}

/// The level at `now_ms` of one that was at `current`: up at once, down when the score has been below the part `exit` of the threshold
/// for `patience_s`.
pub fn level(settings: &Settings, score: &Score, member: &Member, current: Level, now_ms: u64) -> Level {
    let now = member.score(settings, score, now_ms);
    let entered = at_least(now, settings.active, settings.warm);
    if entered >= current {
        return entered;
    }
    let earlier_ms = now_ms.saturating_sub((settings.patience_s * 1_000.0) as u64);
    let earlier = member.score(settings, score, earlier_ms);
    let kept = at_least(earlier, settings.active * settings.exit, settings.warm * settings.exit);
    kept.min(current).max(entered)
}

fn at_least(score: f32, active: f32, warm: f32) -> Level {
    if score >= active {
        Level::Active
    } else if score >= warm {
        Level::Warm
    } else {
        Level::Passive
    }
}
