//! How active a member is in a channel, and how soon the channel's entries should come: pure functions of counters, settings and
//! `now`, without a clock, a runtime or a store.
//!
//! - [`Score`]: two exponentially decayed counters of what the member did, in 12 bytes;
//! - [`Total`]: what all members of a channel do;
//! - [`level`]: active, warm or passive, with hysteresis that keeps no state of its own;
//! - [`Settings`]: every weight, half-life and threshold.

mod level;
mod score;
mod settings;
mod total;

pub use level::{Level, Member, Shown, level};
pub use score::{Act, EPOCH_S, Score};
pub use settings::{Settings, Weights};
pub use total::Total;
