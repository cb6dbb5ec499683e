//! Client message ids that a channel no longer keeps, in eight bytes each: what was certainly not sent before need not be looked for in
//! the stores. Bloom filters of growing size, the oldest given up first. Their memory is bounded by what is committed in ten minutes, and
//! for one channel by [`FILTERS_MAX`].

use std::collections::VecDeque;

/// Ids of the first filter; each further one has twice as many.
const ROOM_FIRST: usize = 1_024;
/// Ids of a filter at the most: 8 MiB.
const ROOM_MOST: usize = 1 << 20;
/// Filters at the most: nine million ids, which is five and a half minutes at 28,000 a second in one channel.
const FILTERS_MAX: usize = 18;
/// Bits for each id, and how many of them are set. A filter takes three of 10^11 strange ids for known ones, by the formula for the rate of
/// false positives, (1 - e^(-kn/m))^k. Each is a search, and one in more than 50,000 entries ends without an answer: with half the bits, two of
/// a million in each of a dozen filters, some of a few million new messages were not taken.
const BITS: usize = 64;
const PROBES: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Faded {
    /// Oldest first.
    filters: VecDeque<Filter>,
    since_ms: u64,
}

#[derive(Debug)]
struct Filter {
    /// A power of two of them.
    words: Box<[u64]>,
    held: usize,
    /// Commit time of the newest in it, Unix milliseconds.
    last_ms: u64,
}

impl Filter {
    fn new(room: usize) -> Self {
        Self { words: vec![0; room * BITS / 64].into(), held: 0, last_ms: 0 }
    }

    fn room(&self) -> usize {
        self.words.len() * 64 / BITS
    }

    /// Where the bits of an id stand: word and bit. Each by the whole hash (a step of SplitMix64 from one to the next): of two numbers as
    /// large as a small filter, the one added to the other again and again, too many ids have the same.
    fn places(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let mask = self.words.len() as u64 * 64 - 1;
        let mut state = hash;
        std::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let bit = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32 & mask;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
        .take(PROBES)
    }
}

impl Faded {
    /// Holds all ids committed since then, Unix milliseconds, which are none yet.
    pub fn new(since_ms: u64) -> Self {
        Self { filters: VecDeque::new(), since_ms }
    }

    /// Since which commit time all ids that were given up are in it.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// An id that is no longer kept, by its hash, with its commit time.
    pub fn add(&mut self, hash: u64, ms: u64) {
        if self.filters.back().is_none_or(|filter| filter.held >= filter.room()) {
            let room = self.filters.back().map_or(ROOM_FIRST, |filter| (filter.room() * 2).min(ROOM_MOST));
            self.filters.push_back(Filter::new(room));
            if self.filters.len() > FILTERS_MAX {
                self.drop_oldest();
            }
        }
        let Some(filter) = self.filters.back_mut() else { return };
        for (word, bit) in filter.places(hash) {
            filter.words[word] |= bit;
        }
        filter.held += 1;
        filter.last_ms = filter.last_ms.max(ms);
    }

    /// Whether an id may be one of those; `false` is certain.
    pub fn may_hold(&self, hash: u64) -> bool {
        let has = |filter: &Filter| filter.places(hash).all(|(word, bit)| filter.words[word] & bit != 0);
        self.filters.iter().any(has)
    }

    /// Forgets what was committed before that time, as far as whole filters go.
    pub fn expire(&mut self, before_ms: u64) {
        while self.filters.front().is_some_and(|filter| filter.last_ms < before_ms) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(filter) = self.filters.pop_front() {
            self.since_ms = self.since_ms.max(filter.last_ms + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;

    #[test]
    fn what_was_added_is_held_and_few_others_are() {
        let hasher = foldhash::fast::FixedState::with_seed(1);
        let mut faded = Faded::new(7);
        for number in 0..200_000_u64 {
            faded.add(hasher.hash_one(number), number);
        }
        assert!((0..200_000_u64).all(|number| faded.may_hold(hasher.hash_one(number))));
        // Eight filters: by the formula one of 4,000,000,000.
        let strangers = (1_000_000..3_000_000_u64).filter(|number| faded.may_hold(hasher.hash_one(number)));
        assert_eq!(strangers.count(), 0, "of 2,000,000");
        assert_eq!(faded.since_ms(), 7);
    }

    #[test]
    fn what_goes_is_said() {
        let hasher = foldhash::fast::FixedState::with_seed(1);
        let mut faded = Faded::new(0);
        for number in 0..5_000_u64 {
            faded.add(hasher.hash_one(number), 100 + number);
        }
        // The first filter has 1,024, the second 2,048.
        faded.expire(100 + 1_023);
        assert_eq!(faded.since_ms(), 0);
        faded.expire(100 + 1_024);
        assert_eq!(faded.since_ms(), 100 + 1_024);
        assert!((1_024..5_000_u64).all(|number| faded.may_hold(hasher.hash_one(number))));
        faded.expire(u64::MAX);
        assert!(faded.is_empty());
        assert_eq!(faded.since_ms(), 100 + 5_000);
    }

    #[test]
    fn it_is_bounded() {
        let mut faded = Faded::new(0);
        let mut hash = 1_u64;
        for number in 0..(12_u64 << 20) {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            faded.add(hash, number);
        }
        let bytes: usize = faded.filters.iter().map(|filter| filter.words.len() * 8).sum();
        assert!(faded.filters.len() <= FILTERS_MAX && bytes <= FILTERS_MAX * ROOM_MOST * BITS / 8);
        assert!(faded.since_ms() > 0 && faded.may_hold(hash));
    }
}
