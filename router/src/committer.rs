//! The committer: one thread that takes what all shards have queued and commits it in one transaction.
//!
//! There is no timer: while one transaction is being flushed, the next batch gathers by itself.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use fanfare_proto::{Code, ShardId};
use fanfare_storage::{
    SLOW, StoreError,
    drain::{Drains, Room},
    model::{OutboxBatch, OutboxRow, ShardCommit},
};

use crate::{
    context::Context,
    event::{Event, UnitOutcome},
    meter,
};

/// Entries of one transaction.
pub const ENTRIES_PER_COMMIT_MAX: usize = 4_096;
/// Bytes of their frames.
pub const BYTES_PER_COMMIT_MAX: usize = 8 * 1024 * 1024;
/// Entries that may be queued before shards keep what they have. One pass of each shard may go over it.
pub const QUEUED_ENTRIES_MAX: usize = 32_768;
/// Bytes that may be queued, likewise.
pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a commit waits for the drains before it is looked at again.
const ROOM_PATIENCE: Duration = Duration::from_millis(100);
/// How long until an unknown outcome is looked up again.
const RESOLVE_EVERY: Duration = Duration::from_millis(50);

/// What one shard adds to a commit: the newest entries of some of its channels.
pub struct Unit {
    /// The shard's number for it.
    pub ticket: u64,
    /// What is to be committed.
    pub commit: ShardCommit,
    /// Bytes of the frames.
    pub bytes: usize,
}

#[derive(Default)]
struct Queued {
    units: VecDeque<Unit>,
    entries: usize,
    bytes: usize,
    stopping: bool,
}

/// What shards hand their units to.
#[derive(Default)]
pub struct CommitQueue {
    queued: Mutex<Queued>,
    wake: Condvar,
}

impl CommitQueue {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a shard may build a further unit.
    pub fn has_room(&self) -> bool {
        let queued = self.lock();
        queued.entries < QUEUED_ENTRIES_MAX && queued.bytes < QUEUED_BYTES_MAX
    }

    /// Queues a unit. Never waits; ask [`Self::has_room`] first.
    pub fn push(&self, unit: Unit) {
        let mut queued = self.lock();
        queued.entries += unit.commit.entries.len();
        queued.bytes += unit.bytes;
        queued.units.push_back(unit);
        drop(queued);
        self.wake.notify_one();
    }

    /// Ends the committer when the queue is empty.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    /// Waits for units, for at most `patience` where given. `None`: the end.
    fn take(&self, patience: Option<Duration>) -> Option<Vec<Unit>> {
        let mut queued = self.lock();
        let until = patience.map(|patience| Instant::now() + patience);
        while queued.units.is_empty() {
            if queued.stopping {
                return None;
            }
            queued = match until {
                None => self.wake.wait(queued).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(Vec::new());
                    }
                    self.wake.wait_timeout(queued, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let (mut taken, mut entries, mut bytes) = (Vec::new(), 0, 0);
        while let Some(unit) = queued.units.pop_front() {
            entries += unit.commit.entries.len();
            bytes += unit.bytes;
            if !taken.is_empty() && (entries > ENTRIES_PER_COMMIT_MAX || bytes > BYTES_PER_COMMIT_MAX) {
                queued.units.push_front(unit);
                break;
            }
            queued.entries -= unit.commit.entries.len();
            queued.bytes -= unit.bytes;
            taken.push(unit);
        }
        Some(taken)
    }
}

/// A transaction whose outcome is not known.
struct Unresolved {
    units: Vec<Unit>,
    next: Instant,
}

/// The thread's own state.
pub struct Committer {
    context: Arc<Context>,
    drains: Arc<Drains>,
    unresolved: Vec<Unresolved>,
}

impl Committer {
    /// On that context.
    pub fn new(context: Arc<Context>, drains: Arc<Drains>) -> Self {
        Self { context, drains, unresolved: Vec::new() }
    }

    /// Runs until the queue is stopped and empty and nothing is unresolved any more (one last look each).
    pub fn run(mut self) {
        let context = Arc::clone(&self.context);
        loop {
            let patience = (!self.unresolved.is_empty()).then_some(RESOLVE_EVERY);
            let Some(units) = context.commits.take(patience) else { break };
            self.resolve();
            if !units.is_empty() {
                self.commit(units);
            }
        }
        for one in &mut self.unresolved {
            one.next = Instant::now();
        }
        self.resolve();
    }

    fn commit(&mut self, units: Vec<Unit>) {
        let since = Instant::now();
        loop {
            match self.drains.wait_for_room(ROOM_PATIENCE) {
                Room::Yes => break,
                Room::ReadOnly => {
                    self.context.read_only.store(true, Ordering::Relaxed);
                    return self.answer_failed(&units, Code::READ_ONLY, false);
                }
                // Senders must hear within the protocol's patience; what waits longer had no effect.
                Room::Behind if since.elapsed() > Duration::from_secs(8) => {
                    return self.answer_failed(&units, Code::RETRY_LATER, false);
                }
                Room::Behind => {}
            }
        }
        if since.elapsed() >= SLOW {
            let (took_ms, status) = (since.elapsed().as_millis() as u64, self.drains.status());
            tracing::info!(
                took_ms,
                entries_behind = status.entries_behind,
                oldest_age_ms = status.oldest_age_ms,
                failing = ?status.failing,
                "slow drains: a commit waited for them"
            );
        }
        let (commits, entries) = merge(&units);
        let drained = self.drains.take_drained();
        let started = Instant::now();
        let outcome = self.context.metadata.commit(&commits, &drained);
        meter::commit(started.elapsed(), entries);
        if outcome.is_err() {
            self.drains.give_back_drained(drained);
        }
        match outcome {
            Ok(rows) => {
                self.context.read_only.store(false, Ordering::Relaxed);
                self.context.committed.0.fetch_add(1, Ordering::Relaxed);
                self.context.committed.1.fetch_add(entries as u64, Ordering::Relaxed);
                let by_shard = commits.iter().map(|commit| commit.shard).zip(rows).collect();
                self.answer_done(&units, &by_shard);
                self.offer(commits, &by_shard);
            }
            Err(StoreError::SyncFailed(why)) => {
                // Not known, and never to be asked again: only the next start can tell.
                self.answer(&units, &UnitOutcome::Unknown);
                (self.context.config.on_fatal)(&why);
            }
            Err(StoreError::Unknown(why)) => {
                tracing::warn!(why, units = units.len(), "the outcome of a commit is unknown");
                meter::unknown();
                self.answer(&units, &UnitOutcome::Unknown);
                self.unresolved.push(Unresolved { units, next: Instant::now() });
            }
            Err(
                error @ (StoreError::HeadMoved { .. } | StoreError::Fenced { .. } | StoreError::Damaged(_)),
            ) => {
                if units.len() > 1 {
                    // One of them is refused; the others need not suffer for it.
                    for unit in units {
                        self.commit(vec![unit]);
                    }
                } else {
                    tracing::error!(%error, "a commit was refused; its channels are read again");
                    self.answer_failed(&units, Code::RETRY_LATER, true);
                }
            }
            Err(StoreError::Full(why)) => {
                if !self.context.read_only.swap(true, Ordering::Relaxed) {
                    tracing::error!(why, "no room for commits: read-only");
                }
                self.answer_failed(&units, Code::READ_ONLY, false);
            }
            Err(error) => {
                tracing::warn!(%error, "a commit failed");
                self.answer_failed(&units, Code::RETRY_LATER, false);
            }
        }
    }

    /// Drains get their rows after the shards were told, so that a row is never reported drained before it was
    /// reported committed.
    fn offer(&self, commits: Vec<ShardCommit>, rows: &BTreeMap<u16, OutboxRow>) {
        let committed_ms = self.context.now_ms();
        for commit in commits {
            if let Some(row) = rows.get(&commit.shard) {
                self.drains.offer(OutboxBatch {
                    row: *row,
                    shard: ShardId(commit.shard),
                    committed_ms,
                    entries: commit.entries,
                    lists: commit.lists,
                });
            }
        }
    }

    fn answer_done(&self, units: &[Unit], rows: &BTreeMap<u16, OutboxRow>) {
        {
            let mut known = self.context.rows.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(rows.iter().map(|(shard, row)| (*row, *shard)));
        }
        for unit in units {
            match rows.get(&unit.commit.shard) {
                Some(row) => self.tell(unit, UnitOutcome::Done(*row)),
                None => self.tell(unit, UnitOutcome::Failed { code: Code::RETRY_LATER, reload: true }),
            }
        }
    }

    fn answer_failed(&self, units: &[Unit], code: Code, reload: bool) {
        meter::commit_failed();
        self.answer(units, &UnitOutcome::Failed { code, reload });
    }

    fn answer(&self, units: &[Unit], outcome: &UnitOutcome) {
        for unit in units {
            self.tell(unit, outcome.clone());
        }
    }

    fn tell(&self, unit: &Unit, outcome: UnitOutcome) {
        self.context.post(unit.commit.shard, Event::Committed { ticket: unit.ticket, outcome });
    }

    /// Looks up what became of commits whose outcome was unknown: the outbox holds a row of a shard's first entry if and
    /// only if the transaction was committed, because nothing drains a row before it was offered.
    fn resolve(&mut self) {
        let now = Instant::now();
        let mut waiting = std::mem::take(&mut self.unresolved);
        while let Some(mut one) = waiting.pop() {
            if one.next > now {
                self.unresolved.push(one);
                continue;
            }
            match self.look_up(&one.units) {
                Ok(None) => self.answer_failed(&one.units, Code::RETRY_LATER, false),
                Ok(Some(rows)) => {
                    let (commits, entries) = merge(&one.units);
                    self.context.committed.1.fetch_add(entries as u64, Ordering::Relaxed);
                    self.answer_done(&one.units, &rows);
                    self.offer(commits, &rows);
                }
                Err(error) => {
                    tracing::warn!(%error, "an unknown outcome cannot be looked up yet");
                    one.next = now + RESOLVE_EVERY;
                    self.unresolved.push(one);
                }
            }
        }
    }

    fn look_up(&self, units: &[Unit]) -> Result<Option<BTreeMap<u16, OutboxRow>>, StoreError> {
        // A head that stands where it stood says so cheaply; else the rows have to be read.
        if let Some(head) = units.iter().flat_map(|unit| &unit.commit.heads).next() {
            let stands = self.context.metadata.channel(head.channel)?;
            if stands.is_none_or(|channel| channel.head + 1 == head.first_seq) {
                return Ok(None);
            }
        }
        let mut rows = BTreeMap::new();
        for batch in self.context.metadata.outbox()? {
            let ours = units.iter().any(|unit| {
                unit.commit.shard == batch.shard.0
                    && unit.commit.entries.first().is_some_and(|first| {
                        batch.entries.iter().any(|entry| entry.message_id == first.message_id)
                    })
            });
            if ours {
                rows.insert(batch.shard.0, batch.row);
            }
        }
        Ok(Some(rows))
    }
}

/// One `ShardCommit` per shard, in the order of the units.
fn merge(units: &[Unit]) -> (Vec<ShardCommit>, usize) {
    let mut commits: Vec<ShardCommit> = Vec::new();
    let mut place_of: BTreeMap<u16, usize> = BTreeMap::new();
    let mut entries = 0;
    for Unit { commit, .. } in units {
        entries += commit.entries.len();
        match place_of.get(&commit.shard) {
            None => {
                place_of.insert(commit.shard, commits.len());
                commits.push(commit.clone());
            }
            Some(place) => {
                let merged = &mut commits[*place];
                merged.last_id = merged.last_id.max(commit.last_id);
                merged.term = merged.term.max(commit.term);
                merged.channels.extend_from_slice(&commit.channels);
                merged.heads.extend_from_slice(&commit.heads);
                merged.entries.extend_from_slice(&commit.entries);
                merged.members.extend_from_slice(&commit.members);
                merged.marks.extend_from_slice(&commit.marks);
                merged.settings.extend_from_slice(&commit.settings);
                merged.lists.extend_from_slice(&commit.lists);
            }
        }
    }
    (commits, entries)
}
