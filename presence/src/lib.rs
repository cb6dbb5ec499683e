//! Who is online: gateways tell what their sessions do, this crate makes each user's status of it and tells those who
//! have the user on their screen and may see it.
//!
//! - [`engine`]: the rules, pure: sessions, status, watch lists, what is to be told and written; takes `now`.
//! - `queue`: the way from gateways, in memory; a broker's may take its place.
//! - `quota`: how often users choose who may see them.
//! - [`rules`]: who may see whom.
//! - `service`: the thread that drives the engine, with the stores and the gateways' downlinks.
//!
//! Everything held is bounded by sessions and by what they watch. Nothing here is on the way of a message.

pub mod engine;
mod meter;
mod queue;
mod quota;
pub mod rules;
mod service;

use std::time::Duration;

pub use engine::{Device, Engine, Now, Seen, Status};
pub use meter::describe as describe_metrics;
pub use rules::{Audience, Rules, Stores};
pub use service::{Presence, Shown, StartError};

/// How presence is kept. Numbers are bounds with their units.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A device in the background counts as away after this.
    pub away_after: Duration,
    /// A user without a session counts as offline after this: who reconnects at once was not away.
    pub offline_after: Duration,
    /// One who watches is told at most once in so long.
    pub change_every: Duration,
    /// One user's last seen is written at most once in so long.
    pub write_every: Duration,
    /// Last seens written per second, of all users.
    pub writes_per_s: u32,
    /// Users that one session may watch.
    pub watched_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            away_after: Duration::from_secs(60),
            offline_after: Duration::from_secs(2),
            change_every: Duration::from_millis(500),
            write_every: Duration::from_secs(30),
            writes_per_s: 1_000,
            watched_max: fanfare_proto::limits::PRESENCE_WATCHED_MAX,
        }
    }
}
