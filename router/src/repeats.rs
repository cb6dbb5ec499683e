//! The client message ids a channel has seen of late, pending ones too: what tells a repeat from a new send.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fanfare_proto::{ClientMessageId, MessageId, UserId, link::Origin};
use fanfare_storage::mutant;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

/// How long committed ids are kept.
pub const KEPT: Duration = Duration::from_secs(600);
/// Ids a channel may keep while the process as a whole is over its bound.
pub const KEPT_UNDER_PRESSURE: usize = 1_024;
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
pub enum Known {
    /// Not yet decided; the attempts that wait for it.
    Pending {
        /// Of the content.
        fingerprint: u64,
        /// Answered when it is decided, the first one first.
        attempts: SmallVec<[Attempt; 1]>,
    },
    /// Committed.
    Done {
        /// Of the content.
        fingerprint: u64,
        /// Where.
        place: Place,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Repeats {
    known: HashMap<Key, Known, RandomState>,
    order: VecDeque<(u64, Key)>,
    complete_since_ms: u64,
    process_total: Arc<AtomicUsize>,
    process_max: usize,
}

impl Repeats {
    /// Knows every id committed since `complete_since_ms`, which are none yet.
    pub fn new(complete_since_ms: u64, process_total: Arc<AtomicUsize>, process_max: usize) -> Self {
        Self {
            known: HashMap::default(),
            order: VecDeque::new(),
            complete_since_ms,
            process_total,
            process_max,
        }
    }

    /// Since which commit time (Unix milliseconds) all ids are known.
    pub fn complete_since_ms(&self) -> u64 {
        self.complete_since_ms
    }

    /// What is known of the key.
    pub fn get(&mut self, key: &Key) -> Option<&mut Known> {
        if mutant::is("no-dedupe") {
            return None;
        }
        self.known.get_mut(key)
    }

    /// A send is under way.
    pub fn begin(&mut self, key: Key, fingerprint: u64, attempt: Option<Attempt>) {
        let attempts: SmallVec<[Attempt; 1]> = attempt.into_iter().collect();
        if mutant::is("no-dedupe")
            && let Some(Known::Pending { attempts: waiting, .. }) = self.known.get_mut(&key)
        {
            waiting.extend(attempts);
            return;
        }
        self.known.insert(key, Known::Pending { fingerprint, attempts });
    }

    /// The send was committed: gives those to be answered.
    pub fn done(&mut self, key: Key, place: Place) -> SmallVec<[Attempt; 1]> {
        let before = self.known.remove(&key);
        let (fingerprint, attempts) = match before {
            Some(Known::Pending { fingerprint, attempts }) => (fingerprint, attempts),
            Some(Known::Done { fingerprint, .. }) => (fingerprint, SmallVec::new()),
            None => (0, SmallVec::new()),
        };
        self.learn(key, fingerprint, place);
        attempts
    }

    /// A committed send is known, by its commit or because it was read back.
    pub fn learn(&mut self, key: Key, fingerprint: u64, place: Place) {
        if self.known.insert(key, Known::Done { fingerprint, place }).is_none() {
            self.process_total.fetch_add(1, Ordering::Relaxed);
        }
        self.order.push_back((place.message_id.time_ms(), key));
        while self.order.len() > KEPT_UNDER_PRESSURE
            && self.process_total.load(Ordering::Relaxed) > self.process_max
        {
            self.drop_oldest();
        }
    }

    /// The attempts that wait for the key, which is left pending: for an answer that decides nothing.
    pub fn take_attempts(&mut self, key: &Key) -> SmallVec<[Attempt; 1]> {
        match self.known.get_mut(key) {
            Some(Known::Pending { attempts, .. }) => std::mem::take(attempts),
            _ => SmallVec::new(),
        }
    }

    /// The send has no effect: gives those to be answered.
    pub fn failed(&mut self, key: &Key) -> SmallVec<[Attempt; 1]> {
        let attempts = self.take_attempts(key);
        if matches!(self.known.get(key), Some(Known::Pending { .. })) {
            self.known.remove(key);
        }
        attempts
    }

    fn drop_oldest(&mut self) {
        let Some((committed_ms, key)) = self.order.pop_front() else { return };
        self.complete_since_ms = self.complete_since_ms.max(committed_ms + 1);
        if matches!(self.known.get(&key), Some(Known::Done { .. })) {
            self.known.remove(&key);
            self.process_total.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets what is older than [`KEPT`].
    pub fn expire(&mut self, now_ms: u64) {
        let before_ms = now_ms.saturating_sub(KEPT.as_millis() as u64);
        while self.order.front().is_some_and(|(committed_ms, _)| *committed_ms < before_ms) {
            self.drop_oldest();
        }
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        let done = self.known.values().filter(|known| matches!(known, Known::Done { .. })).count();
        self.process_total.fetch_sub(done, Ordering::Relaxed);
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
}
