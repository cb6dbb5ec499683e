//! How often something may be tried, per key: an account's name, an address, a user.

use std::{hash::Hash, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};

/// Keys remembered at most; a flood of new ones beyond that is refused until old ones are forgotten.
const KEYS_MAX: usize = 100_000;

/// A token bucket per key.
pub struct Throttle<K: Clone + Hash + Eq> {
    limiter: RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
}

impl<K: Clone + Hash + Eq> std::fmt::Debug for Throttle<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").finish_non_exhaustive()
    }
}

impl<K: Clone + Hash + Eq> Throttle<K> {
    /// `burst` at once, and so many again within `within`.
    pub fn new(burst: u32, within: Duration) -> Self {
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let every = (within / burst.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(every).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        Self { limiter: RateLimiter::keyed(quota).with_middleware(), clock: DefaultClock::default() }
    }

    /// Takes one try; gives how many are left.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub fn take(&self, key: &K) -> Result<u32, Duration> {
        if self.limiter.len() >= KEYS_MAX {
            self.limiter.retain_recent();
            if self.limiter.len() >= KEYS_MAX {
                return Err(Duration::from_secs(1));
            }
            self.limiter.shrink_to_fit();
        }
        match self.limiter.check_key(key) {
            Ok(state) => Ok(state.remaining_burst_capacity()),
            Err(not_yet) => Err(not_yet.wait_time_from(self.clock.now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_burst_and_others_have_theirs() {
        let throttle = Throttle::new(3, Duration::from_secs(3_000));
        for _ in 0..3 {
            assert!(throttle.take(&"ann").is_ok());
        }
        let wait = throttle.take(&"ann").expect_err("the burst is used up");
        assert!(wait > Duration::from_secs(900) && wait <= Duration::from_secs(1_000), "{wait:?}");
        assert!(throttle.take(&"bob").is_ok());
    }
}
