//! The two clocks: a monotonic one for deadlines, Unix time for what is told to others.

use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since the gateway started, and Unix milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at 1 s, so that 0 is before everything.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { start: now.checked_sub(Duration::from_secs(1)).unwrap_or(now) }
    }

    /// Monotonic.
    pub fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Unix time; may jump.
    pub fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    /// A Unix time on the monotonic clock, as far as both agree now.
    pub fn monotonic(&self, unix_ms: u64) -> u64 {
        (self.now_ms() + unix_ms).saturating_sub(self.unix_ms())
    }
}
