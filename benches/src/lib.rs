//! What the groups of benchmarks share: the frames they move, and how long one that measures more than a call may take.
//! Each group stands in `benches/`, every line of it beside its floor in the same run.

pub mod frames;

use std::time::Duration;

/// Samples of a measurement whose single step costs milliseconds.
pub const SAMPLES: usize = 20;
/// How long such a measurement warms up.
pub const WARM_UP: Duration = Duration::from_millis(500);
/// How long such a measurement runs.
pub const RUN: Duration = Duration::from_secs(3);
