//! The numbers, all of which a deployment may set.

use crate::score::Act;

/// What each act adds to both counters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weights {
    /// Sends a message.
    pub send: f32,
    /// Taps a push notification.
    pub tap: f32,
    /// Replies, beside the message that it is.
    pub reply: f32,
    /// Reacts, or amends what it sent.
    pub react: f32,
    /// Is mentioned or replied to.
    pub named: f32,
    /// Opens the channel, or has looked at it for another 30 s.
    pub look: f32,
    /// Its read cursor advances.
    pub read: f32,
    /// Types.
    pub typing: f32,
}

/// See the module.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// What acts add.
    pub weights: Weights,
    /// Seconds in which the fast counter halves.
    pub fast_half_life_s: f32,
    /// Seconds in which the slow counter halves.
    pub slow_half_life_s: f32,
    /// Of the score; the slow counter has the rest.
    pub fast_share: f32,
    /// The count at which a counter is half saturated.
    pub half_saturation: f32,
    /// The score counts by so much while the app is on screen with another channel,
    pub foreground: f32,
    /// and while it is not.
    pub background: f32,
    /// Added in direct channels.
    pub direct_boost: f32,
    /// Added in groups of up to `small_members`.
    pub small_boost: f32,
    /// Members of a small group.
    pub small_members: usize,
    /// Taken off where the member is muted.
    pub muted_minus: f32,
    /// Unread messages at which a member counts as ignoring the channel,
    pub ignored_unread: u64,
    /// and the seconds without an act after which the score is halved.
    pub ignored_s: u32,
    /// Score from which on a member is active.
    pub active: f32,
    /// Score from which on a member is warm,
    pub warm: f32,
    /// where its slow counter is also so much of the mean of all members'.
    pub warm_of_mean: f32,
    /// The mean counts no more than this of a member.
    pub total_cap: f32,
    /// A tier is left below this part of its threshold,
    pub exit: f32,
    /// when the score was below it for so many seconds.
    pub patience_s: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: Weights {
                send: 8.0,
                tap: 6.0,
                reply: 5.0,
                react: 5.0,
                named: 4.0,
                look: 4.0,
                read: 3.0,
                typing: 2.0,
            },
            fast_half_life_s: 600.0,
            slow_half_life_s: 3.0 * 86_400.0,
            fast_share: 0.65,
            half_saturation: 8.0,
            foreground: 0.8,
            background: 0.3,
            direct_boost: 1.0,
            small_boost: 0.6,
            small_members: 16,
            muted_minus: 0.2,
            ignored_unread: 20,
            ignored_s: 86_400,
            active: 0.39,
            warm: 0.05,
            warm_of_mean: 0.6,
            total_cap: 300.0,
            exit: 0.6,
            patience_s: 60.0,
        }
    }
}

impl Settings {
    /// What an act adds.
    pub fn weight(&self, act: Act) -> f32 {
        let weights = &self.weights;
        match act {
            Act::Send => weights.send,
            Act::Tap => weights.tap,
            Act::Reply => weights.reply,
            Act::React => weights.react,
            Act::Named => weights.named,
            Act::Look => weights.look,
            Act::Read => weights.read,
            Act::Type => weights.typing,
        }
    }
}
