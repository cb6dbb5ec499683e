//! The client message ids a channel has seen of late, pending ones too: what tells a repeat from a new send.

use std::{
    collections::VecDeque,
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::faded::Faded;
use fanfare_proto::{ClientMessageId, MessageId, UserId, link::Origin};
use fanfare_storage::mutant;
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable, hash_table::Entry};
use smallvec::SmallVec;

/// How long committed ids are kept.
pub const KEPT: Duration = Duration::from_secs(600);
/// Ids a channel may keep while the process as a whole is over its bound.
pub const KEPT_UNDER_PRESSURE: usize = 1_024;
/// Places that the list of committed ids grows by at the least.
const ROOM_MIN: usize = 4;
/// Places for sends under way that stay when none is.
const PENDING_KEPT: usize = 4;
/// Attempts of one send that may wait for the same outcome.
pub const WAITING_ATTEMPTS_MAX: usize = 16;

/// Who is answered: session and request number.
pub type Attempt = (Origin, u64);

/// The idempotency key within a channel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    sender: UserId,
    id: [u8; 16],
}

impl Key {
    /// Of a send.
    pub fn new(sender: UserId, id: ClientMessageId, fingerprint: u64) -> Self {
        if mutant::is("dedupe-by-content") {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&fingerprint.to_le_bytes());
            return Self { sender, id: bytes };
        }
        Self { sender, id: id.0 }
    }
}

/// Where a committed send stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The channel's epoch.
    pub epoch: u32,
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub message_id: MessageId,
    /// Its ordinal.
    pub ordinal: u64,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Known<'r> {
    /// Not yet decided; the attempts that wait for it.
    Pending {
        /// Of the content.
        fingerprint: u64,
        /// Answered when it is decided, the first one first.
        attempts: &'r mut SmallVec<[Attempt; 1]>,
    },
    /// Committed.
    Done {
        /// Of the content.
        fingerprint: u64,
        /// Where.
        place: Place,
    },
}

#[derive(Debug)]
struct Pending {
    fingerprint: u64,
    attempts: SmallVec<[Attempt; 1]>,
}

/// A committed send: there may be very many.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Done {
    key: Key,
    fingerprint: u64,
    seq: u64,
    message_id: MessageId,
    ordinal: u64,
    epoch: u32,
}

const _: () = assert!(size_of::<Done>() == 60, "each send of the last ten minutes has one");

impl Done {
    fn place(self) -> Place {
        let Self { epoch, seq, message_id, ordinal, .. } = self;
        Place { epoch, seq, message_id, ordinal }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Repeats {
    pending: HashMap<Key, Pending, RandomState>,
    /// In the order they were learned.
    done: VecDeque<Done>,
    /// Of the first of `done`; they count up and around.
    first: u32,
    /// By key: the number of the newest.
    numbers: HashTable<u32>,
    hasher: RandomState,
    complete_since_ms: u64,
    /// Those that went before their time, where any did.
    faded: Option<Box<Faded>>,
    process_total: Arc<AtomicUsize>,
    process_max: usize,
}

impl Repeats {
    /// Knows every id committed since `complete_since_ms`, which are none yet.
    pub fn new(complete_since_ms: u64, process_total: Arc<AtomicUsize>, process_max: usize) -> Self {
        Self {
            pending: HashMap::default(),
            done: VecDeque::new(),
            first: 0,
            numbers: HashTable::new(),
            hasher: RandomState::default(),
            complete_since_ms,
            faded: None,
            process_total,
            process_max,
        }
    }

    /// Whether a key that [`Self::get`] does not know was certainly not committed at or after that time, Unix milliseconds.
    pub fn is_new(&self, key: &Key, earliest_ms: u64) -> bool {
        if earliest_ms >= self.complete_since_ms {
            return true;
        }
        let faded = self.faded.as_ref().filter(|faded| earliest_ms >= faded.since_ms());
        faded.is_some_and(|faded| !faded.may_hold(self.hasher.hash_one(key)))
    }

    /// Since which commit time (Unix milliseconds) all ids are known.
    pub fn complete_since_ms(&self) -> u64 {
        self.complete_since_ms
    }

    fn find(&self, key: &Key) -> Option<Done> {
        let at = |number: &u32| self.done.get(number.wrapping_sub(self.first) as usize).copied();
        let is_it = |number: &u32| at(number).is_some_and(|done| { done.key } == *key);
        at(self.numbers.find(self.hasher.hash_one(key), is_it)?)
    }

    /// What is known of the key.
    pub fn get(&mut self, key: &Key) -> Option<Known<'_>> {
        if mutant::is("no-dedupe") {
            return None;
        }
        if let Some(done) = self.find(key) {
            return Some(Known::Done { fingerprint: done.fingerprint, place: done.place() });
        }
        let Pending { fingerprint, attempts } = self.pending.get_mut(key)?;
        Some(Known::Pending { fingerprint: *fingerprint, attempts })
    }

    /// A send is under way.
    pub fn begin(&mut self, key: Key, fingerprint: u64, attempt: Option<Attempt>) {
        let attempts: SmallVec<[Attempt; 1]> = attempt.into_iter().collect();
        if mutant::is("no-dedupe")
            && let Some(Pending { attempts: waiting, .. }) = self.pending.get_mut(&key)
        {
            waiting.extend(attempts);
            return;
        }
        self.pending.insert(key, Pending { fingerprint, attempts });
    }

    fn end(&mut self, key: &Key) -> Option<Pending> {
        let ended = self.pending.remove(key);
        if self.pending.is_empty() && self.pending.capacity() > PENDING_KEPT {
            self.pending = HashMap::default();
        }
        ended
    }

    /// The send was committed: gives those to be answered.
    pub fn done(&mut self, key: Key, place: Place) -> SmallVec<[Attempt; 1]> {
        let (fingerprint, attempts) = match self.end(&key) {
            Some(Pending { fingerprint, attempts }) => (fingerprint, attempts),
            None => (self.find(&key).map_or(0, |done| done.fingerprint), SmallVec::new()),
        };
        self.learn(key, fingerprint, place);
        attempts
    }

    /// A committed send is known, by its commit or because it was read back.
    pub fn learn(&mut self, key: Key, fingerprint: u64, place: Place) {
        let Place { epoch, seq, message_id, ordinal } = place;
        if self.done.len() == self.done.capacity() {
            self.done.reserve_exact(ROOM_MIN.max(self.done.len() / 8));
        }
        let number = self.first.wrapping_add(self.done.len() as u32);
        self.done.push_back(Done { key, fingerprint, seq, message_id, ordinal, epoch });
        let Self { done, first, numbers, hasher, .. } = self;
        let key_at = |number: &u32| done.get(number.wrapping_sub(*first) as usize).map(|done| done.key);
        let is_it = |number: &u32| key_at(number) == Some(key);
        let hash = |number: &u32| key_at(number).map_or(0, |key| hasher.hash_one(key));
        match numbers.entry(hasher.hash_one(key), is_it, hash) {
            Entry::Occupied(mut known) => *known.get_mut() = number,
            Entry::Vacant(vacant) => {
                vacant.insert(number);
                self.process_total.fetch_add(1, Ordering::Relaxed);
            }
        }
        while self.done.len() > KEPT_UNDER_PRESSURE
            && self.process_total.load(Ordering::Relaxed) > self.process_max
        {
            if let Some(Done { key, message_id, .. }) = self.done.front().copied() {
                let since_ms = self.complete_since_ms;
                let faded = self.faded.get_or_insert_with(|| Box::new(Faded::new(since_ms)));
                faded.add(self.hasher.hash_one(key), message_id.time_ms());
            }
            self.drop_oldest();
        }
    }

    /// The attempts that wait for the key, which is left pending: for an answer that decides nothing.
    pub fn take_attempts(&mut self, key: &Key) -> SmallVec<[Attempt; 1]> {
        self.pending.get_mut(key).map(|pending| std::mem::take(&mut pending.attempts)).unwrap_or_default()
    }

    /// The send has no effect: gives those to be answered.
    pub fn failed(&mut self, key: &Key) -> SmallVec<[Attempt; 1]> {
        self.end(key).map(|pending| pending.attempts).unwrap_or_default()
    }

    fn drop_oldest(&mut self) {
        let Some(Done { key, message_id, .. }) = self.done.front().copied() else { return };
        self.complete_since_ms = self.complete_since_ms.max(message_id.time_ms() + 1);
        let number = self.first;
        let known = self.numbers.find_entry(self.hasher.hash_one(key), |one| *one == number);
        // A newer one of the same key has the number of that.
        if let Ok(known) = known {
            known.remove();
            self.process_total.fetch_sub(1, Ordering::Relaxed);
        }
        self.done.pop_front();
        self.first = number.wrapping_add(1);
    }

    /// Forgets what is older than [`KEPT`].
    pub fn expire(&mut self, now_ms: u64) {
        let before_ms = now_ms.saturating_sub(KEPT.as_millis() as u64);
        if let Some(faded) = &mut self.faded {
            faded.expire(before_ms);
            if faded.is_empty() {
                self.faded = None;
            }
        }
        let mut gone = false;
        while self.done.front().is_some_and(|done| { done.message_id }.time_ms() < before_ms) {
            self.drop_oldest();
            gone = true;
        }
        if gone {
            // Those are in no filter.
            self.faded = None;
        }
        if gone && self.done.capacity() > 2 * self.done.len() + ROOM_MIN {
            self.done.shrink_to_fit();
            let Self { done, first, numbers, hasher, .. } = self;
            numbers.shrink_to_fit(|number| {
                let done = done.get(number.wrapping_sub(*first) as usize);
                done.map_or(0, |done| hasher.hash_one(done.key))
            });
        }
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        self.process_total.fetch_sub(self.numbers.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ms: u64) -> Place {
        Place { epoch: 0, seq: 1, message_id: MessageId::first_at(ms), ordinal: 1 }
    }

    #[test]
    fn what_is_forgotten_is_said() {
        let total = Arc::new(AtomicUsize::new(0));
        let start = fanfare_proto::ids::EPOCH_MS + 1_000_000;
        let mut repeats = Repeats::new(0, Arc::clone(&total), 10_000);
        let key = |n: u8| Key::new(UserId(1), ClientMessageId([n; 16]), u64::from(n));
        repeats.begin(key(1), 7, None);
        assert!(matches!(repeats.get(&key(1)), Some(Known::Pending { fingerprint: 7, .. })));
        repeats.done(key(1), place(start));
        repeats.begin(key(2), 8, None);
        repeats.failed(&key(2));
        assert!(repeats.get(&key(2)).is_none());
        repeats.expire(start + 1);
        assert!(repeats.get(&key(1)).is_some());
        assert_eq!(repeats.complete_since_ms(), 0);
        repeats.expire(start + 600_001);
        assert!(repeats.get(&key(1)).is_none());
        assert!(repeats.complete_since_ms() > start);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_went_before_its_time_is_still_told_from_what_is_new() {
        let total = Arc::new(AtomicUsize::new(0));
        let start = fanfare_proto::ids::EPOCH_MS + 1_000_000;
        let mut repeats = Repeats::new(start, Arc::clone(&total), 100);
        let key = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            Key::new(UserId(1), ClientMessageId(id), n)
        };
        let kept = KEPT_UNDER_PRESSURE as u64;
        for n in 0..kept + 5_000 {
            repeats.begin(key(n), n, None);
            repeats.done(key(n), place(start + n));
        }
        assert_eq!(repeats.done.len(), KEPT_UNDER_PRESSURE);
        assert_eq!(repeats.complete_since_ms(), start + 5_000);
        assert!((0..5_000).all(|n| repeats.get(&key(n)).is_none() && !repeats.is_new(&key(n), start)));
        let strangers = (100_000..110_000).filter(|n| !repeats.is_new(&key(*n), start)).count();
        assert!(strangers < 5, "{strangers} of 10,000");
        assert!(!repeats.is_new(&key(100_000), start - 1), "before it began nothing is known");
        // In their time all of them go, and nothing is claimed of what went.
        repeats.expire(start + kept + 5_000 + 600_001);
        assert!(
            repeats.faded.is_none()
                && !repeats.is_new(&key(0), start)
                && !repeats.is_new(&key(100_000), start)
        );
    }

    #[test]
    fn many_are_found_dropped_in_their_order_and_counted() {
        let total = Arc::new(AtomicUsize::new(0));
        let start = fanfare_proto::ids::EPOCH_MS + 1_000_000;
        let mut repeats = Repeats::new(0, Arc::clone(&total), usize::MAX);
        repeats.first = u32::MAX - 500;
        let key = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            Key::new(UserId(n % 7), ClientMessageId(id), n)
        };
        for n in 0..2_000 {
            repeats.begin(key(n), n, None);
            repeats.done(key(n), Place { seq: n, ..place(start + n) });
        }
        // Read back once more, as of a later entry.
        repeats.learn(key(3), 3, Place { seq: 5_000, ..place(start + 2_000) });
        assert_eq!(
            (total.load(Ordering::Relaxed), repeats.pending.capacity() <= PENDING_KEPT),
            (2_000, true)
        );
        repeats.expire(start + 600_000 + 1_500);
        for n in 0..2_000 {
            let seq = repeats.get(&key(n)).map(|known| match known {
                Known::Done { fingerprint, place } if fingerprint == n => place.seq,
                _ => 0,
            });
            let expected = if n == 3 { Some(5_000) } else { (n >= 1_500).then_some(n) };
            assert_eq!(seq, expected);
        }
        assert_eq!(total.load(Ordering::Relaxed), 501);
        assert!(repeats.done.capacity() <= 2 * 501 + ROOM_MIN);
        drop(repeats);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
