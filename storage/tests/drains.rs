//! Drains against stores that fail: what waits, what is repeated, what is never deleted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanfare_proto::{ChannelId, MessageId, UserId};
use fanfare_storage::{
    StoreError,
    conformance::Script,
    content::{Content, Stored, StoredAmendment},
    drain::{Bounds, Drains, Room},
    embedded::{self, Embedded, Options},
    hash,
    metadata::Metadata,
    model::{Entry, EntryKind, OutboxBatch, OutboxRow},
    ownership::Ownership,
};
use parking_lot::{Condvar, Mutex};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the fake store answers next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Full,
    FlushUnavailable,
    SyncFailed,
    /// Does not return from `put` until the mood changes.
    Stuck,
    Panics,
}

struct Fake {
    mood: Mutex<Mood>,
    changed: Condvar,
    puts: AtomicUsize,
    flushes: AtomicUsize,
}

impl Fake {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(mood),
            changed: Condvar::new(),
            puts: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
        })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
        self.changed.notify_all();
    }

    fn await_count(&self, counter: &AtomicUsize, at_least: usize) {
        let mut mood = self.mood.lock();
        while counter.load(Ordering::SeqCst) < at_least {
            assert!(!self.changed.wait_for(&mut mood, PATIENCE).timed_out(), "the drain does not try");
        }
    }
}

impl Content for Fake {
    fn put(&self, _: &[Entry]) -> Result<(), StoreError> {
        let mut mood = self.mood.lock();
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        while *mood == Mood::Stuck {
            self.changed.wait(&mut mood);
        }
        if *mood == Mood::Panics {
            drop(mood);
            panic!("a panic that is meant");
        }
        if *mood == Mood::Full { Err(StoreError::Full("fake".to_owned())) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mood = *self.mood.lock();
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        match mood {
            Mood::FlushUnavailable => Err(StoreError::Unavailable("fake".to_owned())),
            Mood::SyncFailed => Err(StoreError::SyncFailed("fake".to_owned())),
            _ => Ok(()),
        }
    }

    fn range(&self, _: ChannelId, _: u64, _: u64, _: usize, _: usize) -> Result<Vec<Stored>, StoreError> {
        Ok(Vec::new())
    }

    fn amendments(&self, _: ChannelId, _: u64, _: u64, _: usize) -> Result<Vec<StoredAmendment>, StoreError> {
        Ok(Vec::new())
    }

    fn newest_amendment(&self, _: ChannelId, _: u64) -> Result<Option<StoredAmendment>, StoreError> {
        Ok(None)
    }

    fn remove(&self, _: ChannelId, _: u64, _: u32) -> Result<(), StoreError> {
        Ok(())
    }

    fn walk(
        &self,
        _: Option<(ChannelId, u64, u32)>,
        _: usize,
    ) -> Result<Vec<(ChannelId, u64, u32)>, StoreError> {
        Ok(Vec::new())
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    opened: Embedded,
    script: Script,
    aborted: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let options = Options { reserve_bytes: 0, log_bytes: 0, ..Options::default() };
        let opened = embedded::open(folder.path(), &options).expect("opened");
        let lease = opened.metadata.take(0).expect("taken");
        let script = Script::new(0, lease.term);
        let row = opened.metadata.commit(&[script.create(&[1])], &[]).expect("committed");
        opened.metadata.forget_drained(row.as_slice()).expect("forgotten");
        Self { _folder: folder, opened, script, aborted: Arc::new(AtomicUsize::new(0)) }
    }

    fn drains(&self, content: Arc<Fake>, bounds: Bounds) -> Drains {
        let aborted = Arc::clone(&self.aborted);
        Drains::start_with(
            self.opened.metadata.clone(),
            content,
            self.opened.store.clone(),
            self.opened.store.clone(),
            Vec::new(),
            Box::new(|_| ()),
            Bounds { linger: Duration::from_millis(5), ..bounds },
            Box::new(move |_| {
                aborted.fetch_add(1, Ordering::SeqCst);
            }),
        )
        .expect("started")
    }

    fn commit(&mut self, drains: &Drains) -> OutboxRow {
        let commit = self.script.messages(&[1, 1, 1], "text");
        let row = self
            .opened
            .metadata
            .commit(std::slice::from_ref(&commit), &[])
            .expect("committed")
            .expect("a row");
        drains.offer(Script::batch(&commit, row));
        row
    }

    fn outbox(&self) -> usize {
        self.opened.metadata.outbox().expect("read").len()
    }
}

#[test]
fn a_full_sink_makes_the_server_read_only_until_there_is_room() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Full);
    let drains = bench.drains(Arc::clone(&fake), Bounds::default());
    assert_eq!(drains.room(), Room::Yes);
    bench.commit(&drains);
    fake.await_count(&fake.puts, 3);
    assert_eq!(drains.wait_for_room(PATIENCE), Room::ReadOnly);
    let status = drains.status();
    assert!(status.read_only && status.failures >= 2, "{status:?}");
    assert_eq!(status.failing[0].0, "store-content");
    assert_eq!(bench.outbox(), 1, "nothing is deleted");
    fake.set(Mood::Well);
    assert!(drains.wait_until_drained(PATIENCE));
    assert_eq!(drains.room(), Room::Yes);
    assert!(drains.status().failing.is_empty());
    drains.stop();
    assert_eq!(bench.outbox(), 0);
}

#[test]
fn a_failed_flush_puts_once_more() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::FlushUnavailable);
    let drains = bench.drains(Arc::clone(&fake), Bounds::default());
    bench.commit(&drains);
    fake.await_count(&fake.flushes, 2);
    fake.set(Mood::Well);
    assert!(drains.wait_until_drained(PATIENCE));
    let (puts, flushes) = (fake.puts.load(Ordering::SeqCst), fake.flushes.load(Ordering::SeqCst));
    assert_eq!(puts, flushes, "every flush follows a put of its own");
}

#[test]
fn a_failed_sync_ends_the_process_and_deletes_nothing() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::SyncFailed);
    let drains = bench.drains(Arc::clone(&fake), Bounds::default());
    bench.commit(&drains);
    fake.await_count(&fake.flushes, 1);
    drains.stop();
    assert_eq!(bench.aborted.load(Ordering::SeqCst), 1);
    assert_eq!(fake.flushes.load(Ordering::SeqCst), 1, "a failed sync is never tried again");
    assert_eq!(bench.outbox(), 1);
}

#[test]
fn a_sink_that_panics_does_not_hold_up_the_end() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Panics);
    let drains = bench.drains(Arc::clone(&fake), Bounds::default());
    bench.commit(&drains);
    fake.await_count(&fake.puts, 1);
    let until = Instant::now() + PATIENCE;
    while drains.status().failing.is_empty() {
        assert!(Instant::now() < until, "nobody is told");
        std::thread::yield_now();
    }
    let (told, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drains.stop();
        told.send(())
    });
    ended.recv_timeout(PATIENCE).expect("it ends");
    assert_eq!(bench.outbox(), 1);
}

#[test]
fn commits_wait_while_the_drains_are_behind() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Stuck);
    let drains = bench.drains(Arc::clone(&fake), Bounds { entries: 6, ..Bounds::default() });
    bench.commit(&drains);
    assert_eq!(drains.wait_for_room(Duration::ZERO), Room::Yes);
    bench.commit(&drains);
    assert_eq!(drains.wait_for_room(Duration::from_millis(20)), Room::Behind);
    let status = drains.status();
    assert_eq!((status.rows_behind, status.entries_behind), (2, 6));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drains.wait_for_room(PATIENCE));
        fake.set(Mood::Well);
        assert_eq!(waiting.join().expect("no panic"), Room::Yes);
    });
    fake.set(Mood::Stuck);
    bench.commit(&drains);
    fake.set(Mood::Well);
    drains.stop();
    assert_eq!(bench.outbox(), 0);
}

#[test]
fn commits_wait_while_the_oldest_row_is_too_old() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Stuck);
    let drains =
        bench.drains(Arc::clone(&fake), Bounds { age: Duration::from_millis(30), ..Bounds::default() });
    assert_eq!(drains.room(), Room::Yes, "nothing waits, so nothing is old");
    bench.commit(&drains);
    while drains.room() == Room::Yes {
        std::thread::yield_now();
    }
    assert_eq!(drains.room(), Room::Behind);
    fake.set(Mood::Well);
    assert_eq!(drains.wait_for_room(PATIENCE), Room::Yes);
}

#[test]
fn the_outbox_has_a_cap() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Stuck);
    let drains = bench.drains(Arc::clone(&fake), Bounds { outbox_bytes: 20, ..Bounds::default() });
    bench.commit(&drains);
    assert_eq!(drains.room(), Room::ReadOnly);
    fake.set(Mood::Well);
    assert!(drains.wait_until_drained(PATIENCE));
    assert_eq!(drains.room(), Room::Yes);
}

#[test]
fn stopping_leaves_what_a_failing_sink_has_not_taken() {
    let mut bench = Bench::new();
    let fake = Fake::new(Mood::Full);
    let drains = bench.drains(Arc::clone(&fake), Bounds::default());
    bench.commit(&drains);
    fake.await_count(&fake.puts, 1);
    drains.stop();
    assert_eq!(bench.outbox(), 1, "it is recovered at the next start");
}

#[test]
fn drained_rows_go_with_a_commit_or_alone() {
    let mut bench = Bench::new();
    let drains = bench.drains(Fake::new(Mood::Well), Bounds::default());
    let first = bench.commit(&drains);
    assert!(drains.wait_until_drained(PATIENCE));
    let taken = drains.take_drained();
    // Unless the second has passed already, and they were deleted alone.
    assert!(taken == [first] || bench.outbox() == 0);
    drains.give_back_drained(taken);
    // No commit comes.
    let until = std::time::Instant::now() + PATIENCE;
    while bench.outbox() > 0 {
        assert!(std::time::Instant::now() < until, "nobody deletes the row");
        std::thread::yield_now();
    }
}

/// Channels of one shard must reach the log in commit order, whatever the batches.
#[test]
fn the_log_keeps_commit_order() {
    use fanfare_storage::log::Log;
    let mut bench = Bench::new();
    let drains = bench.drains(Fake::new(Mood::Well), Bounds { batch_entries: 4, ..Bounds::default() });
    for _ in 0..50 {
        bench.commit(&drains);
    }
    drains.stop();
    let records = bench.opened.store.read(0, 0, 1000).expect("read");
    let seqs: Vec<u64> = records.iter().map(|record| record.entry.seq).collect();
    assert_eq!(seqs, (1..=150).collect::<Vec<_>>());
}

/// A row without entries or lists has no sink to wait for.
#[test]
fn empty_rows_are_drained_at_once() {
    let bench = Bench::new();
    let drains = bench.drains(Fake::new(Mood::Stuck), Bounds::default());
    let batch = OutboxBatch { row: OutboxRow(99), committed_ms: 0, entries: vec![], lists: vec![] };
    drains.offer(batch);
    assert_eq!(drains.status().rows_behind, 0);
    assert_eq!(drains.take_drained(), [OutboxRow(99)]);
}

/// The content store refuses nothing that the wire allows: the largest frame, and many.
#[test]
fn large_frames_pass() {
    let bench = Bench::new();
    let store = &bench.opened.store;
    let entries: Vec<Entry> = (1..=20)
        .map(|seq| {
            let frame = Bytes::from(vec![seq as u8; 1024 * 1024]);
            Entry {
                message_id: MessageId(seq),
                channel: ChannelId(1),
                epoch: 1,
                seq,
                ordinal: seq,
                kind: EntryKind::Message,
                sender: UserId(1),
                client_id: [0; 16],
                target: 0,
                hash: hash::frame(&frame),
                frame,
            }
        })
        .collect();
    store.put(&entries).expect("put");
    store.flush().expect("flushed");
    let found = store.range(ChannelId(1), 1, 20, 100, 5 * 1024 * 1024).expect("read");
    assert_eq!(found.len(), 5);
    assert_eq!(hash::frame(&found[4].frame), entries[15].hash);
}
