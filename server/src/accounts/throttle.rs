//! How often something may be tried, per key: an account's name, an address, a user.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{StateStore, keyed::ShrinkableKeyedStateStore},
};
use parking_lot::Mutex;

/// Keys remembered at most; a flood of new ones beyond that is refused until old ones are forgotten. Those that are known count
/// as ever.
const KEYS_MAX: usize = 100_000;
/// Looking for old ones walks through all: that often at most, or the flood would pay for each try with a walk of ours.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A token bucket per key.
pub struct Throttle<K: Clone + Hash + Eq> {
    limiter: RateLimiter<K, Known<K>, DefaultClock, StateInformationMiddleware>,
    known: Known<K>,
    clock: DefaultClock,
    swept: Mutex<Option<Instant>>,
}

/// The keys that are remembered, each with when its bucket is full again.
#[derive(Clone)]
struct Known<K>(Arc<Mutex<HashMap<K, Nanos>>>);

impl<K: Clone + Hash + Eq> StateStore for Known<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut known = self.0.lock();
        let (measured, full_at) = measure(known.get(key).copied())?;
        known.insert(key.clone(), full_at);
        Ok(measured)
    }
}

impl<K: Clone + Hash + Eq> ShrinkableKeyedStateStore<K> for Known<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.lock().retain(|_, full_at| *full_at > drop_below);
    }

    fn shrink_to_fit(&self) {
        self.0.lock().shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
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
        let (known, clock) = (Known(Arc::default()), DefaultClock::default());
        let limiter = RateLimiter::new(quota, known.clone(), clock.clone());
        Self { limiter, known, clock, swept: Mutex::new(None) }
    }

    /// Takes one try; gives how many are left.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub fn take(&self, key: &K) -> Result<u32, Duration> {
        if !self.has_room(key) {
            self.sweep();
            if !self.has_room(key) {
                return Err(SWEEP_EVERY);
            }
        }
        match self.limiter.check_key(key) {
            Ok(state) => Ok(state.remaining_burst_capacity()),
            Err(not_yet) => Err(not_yet.wait_time_from(self.clock.now())),
        }
    }
}

impl<K: Clone + Hash + Eq> Throttle<K> {
    fn has_room(&self, key: &K) -> bool {
        let known = self.known.0.lock();
        known.len() < KEYS_MAX || known.contains_key(key)
    }

    fn sweep(&self) {
        let mut swept = self.swept.lock();
        if swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
            *swept = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_keys_is_refused_and_forgotten_in_time() {
        let throttle = Throttle::new(1, Duration::from_millis(200));
        for key in 0..KEYS_MAX {
            assert!(throttle.take(&key).is_ok());
        }
        // A walk has to be due for old keys to go.
        let until = Instant::now() + Duration::from_secs(10);
        while throttle.take(&KEYS_MAX).is_err() {
            assert!(Instant::now() < until, "old keys are never forgotten");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(throttle.limiter.len() < KEYS_MAX);
    }

    #[test]
    fn who_is_known_counts_as_ever_in_a_flood() {
        let throttle = Throttle::new(3, Duration::from_secs(3_000));
        for key in 0..KEYS_MAX {
            assert!(throttle.take(&key).is_ok());
        }
        assert!(throttle.take(&KEYS_MAX).is_err(), "there is no room for another");
        assert_eq!([throttle.take(&7), throttle.take(&7)], [Ok(1), Ok(0)]);
        let wait = throttle.take(&7).expect_err("its own are used up");
        assert!(wait > Duration::from_secs(900), "{wait:?}");
    }

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
