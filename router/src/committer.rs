//! The committer: one thread that takes what all shards have queued and commits it in one transaction.
//!
//! There is no timer: while one transaction is being flushed, the next batch gathers by itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use fanfare_proto::Code;
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

    /// Queues units. Never waits; ask [`Self::has_room`] first.
    pub fn push(&self, units: &mut Vec<Unit>) {
        if units.is_empty() {
            return;
        }
        let mut queued = self.lock();
        let was_empty = queued.units.is_empty();
        for unit in units.drain(..) {
            queued.entries += unit.commit.entries.len();
            queued.bytes += unit.bytes;
            queued.units.push_back(unit);
        }
        drop(queued);
        // It waits for the first one only.
        if was_empty {
            self.wake.notify_one();
        }
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

/// What goes into one transaction: the units' parts, and the shards' numbers for them.
#[derive(Default)]
struct Batch {
    commits: Vec<ShardCommit>,
    tickets: Vec<u64>,
}

impl Batch {
    fn of(units: Vec<Unit>) -> Self {
        let (commits, tickets) = units.into_iter().map(|unit| (unit.commit, unit.ticket)).unzip();
        Self { commits, tickets }
    }

    fn entries(&self) -> usize {
        self.commits.iter().map(|commit| commit.entries.len()).sum()
    }
}

/// A transaction whose outcome is not known.
struct Unresolved {
    batch: Batch,
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
                self.commit(Batch::of(units));
            }
        }
        for one in &mut self.unresolved {
            one.next = Instant::now();
        }
        self.resolve();
    }

    fn commit(&mut self, batch: Batch) {
        let since = Instant::now();
        loop {
            match self.drains.wait_for_room(ROOM_PATIENCE) {
                Room::Yes => break,
                Room::ReadOnly => {
                    self.context.read_only.store(true, Ordering::Relaxed);
                    return self.answer_failed(&batch, Code::READ_ONLY, false);
                }
                // Senders must hear within the protocol's patience; what waits longer had no effect.
                Room::Behind if since.elapsed() > Duration::from_secs(8) => {
                    let status = self.drains.status();
                    tracing::warn!(?status, "a commit is given up: the drains are behind");
                    return self.answer_failed(&batch, Code::RETRY_LATER, false);
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
        let entries = batch.entries();
        let drained = self.drains.take_drained();
        let started = Instant::now();
        let outcome = self.context.metadata.commit(&batch.commits, &drained);
        meter::commit(started.elapsed(), entries);
        if outcome.is_err() {
            self.drains.give_back_drained(drained);
        }
        match outcome {
            Ok(row) => {
                self.context.read_only.store(false, Ordering::Relaxed);
                self.context.committed.0.fetch_add(1, Ordering::Relaxed);
                self.done(batch, row);
            }
            Err(StoreError::SyncFailed(why)) => {
                // Not known, and never to be asked again: only the next start can tell.
                self.answer(&batch, &UnitOutcome::Unknown);
                (self.context.config.on_fatal)(&why);
            }
            Err(StoreError::Unknown(why)) => {
                tracing::warn!(why, units = batch.tickets.len(), "the outcome of a commit is unknown");
                meter::unknown();
                self.answer(&batch, &UnitOutcome::Unknown);
                self.unresolved.push(Unresolved { batch, next: Instant::now() });
            }
            Err(
                error @ (StoreError::HeadMoved { .. } | StoreError::Fenced { .. } | StoreError::Damaged(_)),
            ) => {
                if batch.tickets.len() > 1 {
                    // One of them is refused; the others need not suffer for it.
                    for (commit, ticket) in batch.commits.into_iter().zip(batch.tickets) {
                        self.commit(Batch { commits: vec![commit], tickets: vec![ticket] });
                    }
                } else {
                    tracing::error!(%error, "a commit was refused; its channels are read again");
                    self.answer_failed(&batch, Code::RETRY_LATER, true);
                }
            }
            Err(StoreError::Full(why)) => {
                if !self.context.read_only.swap(true, Ordering::Relaxed) {
                    tracing::error!(why, "no room for commits: read-only");
                }
                self.answer_failed(&batch, Code::READ_ONLY, false);
            }
            Err(error) => {
                tracing::warn!(%error, "a commit failed");
                self.answer_failed(&batch, Code::RETRY_LATER, false);
            }
        }
    }

    /// Drains get a row after the shards were told, so that it is never reported drained before it was reported committed.
    fn done(&self, batch: Batch, row: Option<OutboxRow>) {
        self.context.committed.1.fetch_add(batch.entries() as u64, Ordering::Relaxed);
        let Some(row) = row else { return };
        let mut shards: Vec<u16> = batch.commits.iter().map(|commit| commit.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        self.context.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(row, shards);
        self.answer(&batch, &UnitOutcome::Done(row));
        let committed_ms = self.context.now_ms();
        let (mut entries, mut lists) = (Vec::with_capacity(batch.entries()), Vec::new());
        for mut commit in batch.commits {
            entries.append(&mut commit.entries);
            lists.append(&mut commit.lists);
        }
        self.drains.offer(OutboxBatch { row, committed_ms, entries, lists });
    }

    fn answer_failed(&self, batch: &Batch, code: Code, reload: bool) {
        meter::commit_failed();
        self.answer(batch, &UnitOutcome::Failed { code, reload });
    }

    fn answer(&self, batch: &Batch, outcome: &UnitOutcome) {
        let units = batch.commits.iter().zip(&batch.tickets);
        self.context.post_all(units.map(|(commit, ticket)| {
            (commit.shard, Event::Committed { ticket: *ticket, outcome: outcome.clone() })
        }));
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
            match self.look_up(&one.batch.commits) {
                Ok(None) => self.answer_failed(&one.batch, Code::RETRY_LATER, false),
                Ok(Some(row)) => self.done(one.batch, Some(row)),
                Err(error) => {
                    tracing::warn!(%error, "an unknown outcome cannot be looked up yet");
                    one.next = now + RESOLVE_EVERY;
                    self.unresolved.push(one);
                }
            }
        }
    }

    fn look_up(&self, commits: &[ShardCommit]) -> Result<Option<OutboxRow>, StoreError> {
        // A head that stands where it stood says so cheaply; else the rows have to be read.
        if let Some(head) = commits.iter().flat_map(|commit| &commit.heads).next() {
            let stands = self.context.metadata.channel(head.channel)?;
            if stands.is_none_or(|channel| channel.head + 1 == head.first_seq) {
                return Ok(None);
            }
        }
        let Some(first) = commits.iter().flat_map(|commit| &commit.entries).next() else { return Ok(None) };
        let rows = self.context.metadata.outbox()?;
        let ours =
            rows.iter().find(|batch| batch.entries.iter().any(|entry| entry.message_id == first.message_id));
        Ok(ours.map(|batch| batch.row))
    }
}
