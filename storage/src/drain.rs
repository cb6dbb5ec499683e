//! Drains: what moves committed entries from the outbox into content, lists and log.
//!
//! The committer offers each outbox row once it is committed. Every sink has a thread that takes rows in commit order,
//! applies them in large batches, flushes, and marks them. A row marked by all three is drained: it goes with the next
//! commit ([`Drains::take_drained`]) or, where none comes by, with a transaction of its own. Applying twice is
//! harmless, so a crash at any step repeats at most.

mod sink;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    content::{Content, Lists},
    error::StoreError,
    log::Log,
    metadata::Metadata,
    model::{OutboxBatch, OutboxRow},
    mutant,
};
use sink::Sink;

/// Called with rows whose entries can be read from the content store from now on, in no particular order.
pub type OnDrained = Box<dyn Fn(&[OutboxRow]) + Send>;
/// Called when the process must end; must not return normally in production.
pub type Abort = Box<dyn Fn(&StoreError) + Send + Sync>;

/// How long a drained row waits for a commit that takes it along.
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// Drained rows given to one commit or forgotten at once.
const DRAINED_ROWS_MAX: usize = 1024;

/// How far the drains may be behind.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Entries behind at which commits wait.
    pub entries: usize,
    /// Age of the oldest row at which commits wait.
    pub age: Duration,
    /// Bytes of frames behind (they are held in memory) at which commits wait.
    pub bytes: u64,
    /// Bytes of frames in the outbox at which the server is read-only.
    pub outbox_bytes: u64,
    /// How long a sink gathers rows, so that its flushes are few.
    pub linger: Duration,
    /// Entries at which a sink gathers no longer, and which it applies at once.
    pub batch_entries: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries: 100_000,
            age: Duration::from_secs(2),
            bytes: 256 * 1024 * 1024,
            outbox_bytes: 10 * 1024 * 1024 * 1024,
            linger: Duration::from_millis(150),
            batch_entries: 4096,
        }
    }
}

/// Whether a further commit may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It may.
    Yes,
    /// The drains are behind their bounds: wait.
    Behind,
    /// A sink has no room, or the outbox is at its cap: refuse sends as read-only.
    ReadOnly,
}

/// How the drains stand, for metrics and people.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Rows not drained.
    pub rows_behind: usize,
    /// Entries not drained.
    pub entries_behind: usize,
    /// Bytes of their frames.
    pub bytes_behind: u64,
    /// Age of the oldest of them, milliseconds.
    pub oldest_age_ms: u64,
    /// Rows drained that no transaction has deleted yet.
    pub rows_drained: usize,
    /// Whether sends have to be refused.
    pub read_only: bool,
    /// Sinks that fail now: name and newest error.
    pub failing: Vec<(&'static str, String)>,
    /// Failed attempts since the start.
    pub failures: u64,
}

pub(crate) struct Pending {
    sinks_left: u8,
    since: Instant,
    entries: usize,
    bytes: u64,
}

#[derive(Default)]
pub(crate) struct State {
    queues: [VecDeque<Arc<OutboxBatch>>; sink::COUNT],
    queued_entries: [usize; sink::COUNT],
    pending: HashMap<OutboxRow, Pending>,
    /// Rows in the order offered, drained ones too until they are at the front.
    order: VecDeque<OutboxRow>,
    entries: usize,
    bytes: u64,
    drained: Vec<OutboxRow>,
    drained_since: Option<Instant>,
    errors: [Option<Failing>; sink::COUNT],
    failures: u64,
    stopping: bool,
    sinks_running: usize,
}

struct Failing {
    is_full: bool,
    text: String,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Per sink: its queue is no longer empty, or holds a whole batch, or is to be stopped. Not told of every row:
    /// waking three threads costs more than a small commit.
    wake: [Condvar; sink::COUNT],
    /// Something was drained, or a sink's error came or went.
    moved: Condvar,
    bounds: Bounds,
    on_drained: Mutex<OnDrained>,
    abort: Abort,
}

/// The running drains. [`Self::stop`] ends them; dropping does the same.
pub struct Drains {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Drains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drains").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Drains {
    /// Starts the threads with the default bounds; a failed sync aborts the process.
    ///
    /// # Errors
    /// `Unavailable` where a thread cannot be started.
    pub fn start(
        metadata: Arc<dyn Metadata>,
        content: Arc<dyn Content>,
        lists: Arc<dyn Lists>,
        log: Arc<dyn Log>,
        recovered: Vec<OutboxBatch>,
        on_drained: OnDrained,
    ) -> Result<Self, StoreError> {
        let abort: Abort = Box::new(|_| std::process::abort());
        Self::start_with(metadata, content, lists, log, recovered, on_drained, Bounds::default(), abort)
    }

    /// As [`Self::start`], with bounds and what to do when the process must end.
    ///
    /// # Errors
    /// As of [`Self::start`].
    #[expect(clippy::too_many_arguments, reason = "one call, at start")]
    pub fn start_with(
        metadata: Arc<dyn Metadata>,
        content: Arc<dyn Content>,
        lists: Arc<dyn Lists>,
        log: Arc<dyn Log>,
        recovered: Vec<OutboxBatch>,
        on_drained: OnDrained,
        bounds: Bounds,
        abort: Abort,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: [const { Condvar::new() }; sink::COUNT],
            moved: Condvar::new(),
            bounds,
            on_drained: Mutex::new(on_drained),
            abort,
        });
        let mut drains = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        for batch in recovered {
            drains.offer(batch);
        }
        for sink in [Sink::Content(content), Sink::Lists(lists), Sink::Log(log)] {
            shared.state.lock().sinks_running += 1;
            let of_thread = Arc::clone(&shared);
            let started = spawn(sink.name(), move || sink::run(&of_thread, &sink));
            match started {
                Ok(thread) => drains.threads.push(thread),
                Err(error) => {
                    shared.state.lock().sinks_running -= 1;
                    return Err(error);
                }
            }
        }
        let of_thread = Arc::clone(&shared);
        drains.threads.push(spawn("store-forget", move || forget(&of_thread, &*metadata))?);
        Ok(drains)
    }

    /// Takes over a committed row. Never waits: ask [`Self::wait_for_room`] before the commit.
    pub fn offer(&self, batch: OutboxBatch) {
        let row = batch.row;
        let entries = batch.entries.len();
        let bytes = batch.entries.iter().map(|entry| entry.frame.len() as u64).sum();
        let batch = Arc::new(batch);
        let early = mutant::is("outbox-row-deleted-early");
        let drained = {
            let mut state = self.shared.state.lock();
            let mut sinks_left = 0;
            for place in 0..sink::COUNT {
                let has_work = if place == sink::LISTS { !batch.lists.is_empty() } else { entries > 0 };
                if has_work {
                    sinks_left |= 1 << place;
                    let before = state.queued_entries[place];
                    state.queued_entries[place] = before + entries.max(1);
                    state.queues[place].push_back(Arc::clone(&batch));
                    let enough = self.shared.bounds.batch_entries;
                    if before == 0 || (before < enough && state.queued_entries[place] >= enough) {
                        self.shared.wake[place].notify_one();
                    }
                }
            }
            state.order.push_back(row);
            state.entries += entries;
            state.bytes += bytes;
            state.pending.insert(row, Pending { sinks_left, since: Instant::now(), entries, bytes });
            if sinks_left == 0 || early { state.finish(&[row]) } else { Vec::new() }
        };
        self.shared.tell(&drained);
    }

    /// Whether a further commit may be made now.
    pub fn room(&self) -> Room {
        self.shared.room(&self.shared.state.lock())
    }

    /// Waits until a further commit may be made, for at most `patience`. `ReadOnly` is answered at once.
    pub fn wait_for_room(&self, patience: Duration) -> Room {
        let until = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        loop {
            let room = self.shared.room(&state);
            if room != Room::Behind || self.shared.moved.wait_until(&mut state, until).timed_out() {
                return room;
            }
        }
    }

    /// Drained rows for the committer to delete in its next commit, at most 1,024. Where that commit fails, give them
    /// back.
    pub fn take_drained(&self) -> Vec<OutboxRow> {
        self.shared.state.lock().take_drained()
    }

    /// Rows of [`Self::take_drained`] whose deletion was not committed, or not surely.
    pub fn give_back_drained(&self, rows: Vec<OutboxRow>) {
        self.shared.state.lock().add_drained(&rows);
    }

    /// How the drains stand.
    pub fn status(&self) -> Status {
        let state = self.shared.state.lock();
        Status {
            rows_behind: state.pending.len(),
            entries_behind: state.entries,
            bytes_behind: state.bytes,
            oldest_age_ms: state.oldest_age().map_or(0, |age| age.as_millis() as u64),
            rows_drained: state.drained.len(),
            read_only: self.shared.room(&state) == Room::ReadOnly,
            failing: (0..sink::COUNT)
                .filter_map(|place| {
                    state.errors[place].as_ref().map(|error| (sink::NAMES[place], error.text.clone()))
                })
                .collect(),
            failures: state.failures,
        }
    }

    /// Waits until all that was offered is drained, for at most `patience`; whether it is.
    pub fn wait_until_drained(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        while !state.pending.is_empty() {
            if self.shared.moved.wait_until(&mut state, until).timed_out() {
                return state.pending.is_empty();
            }
        }
        true
    }

    /// Drains what was offered, deletes the rows and ends the threads. A sink that fails meanwhile is left: its rows
    /// stay in the outbox and are recovered at the next start.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.state.lock().stopping = true;
        for wake in &self.shared.wake {
            wake.notify_all();
        }
        self.shared.moved.notify_all();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(thread = name, "panicked");
            }
        }
    }
}

impl Drop for Drains {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| StoreError::Unavailable(format!("thread {name}: {error}")))
}

impl State {
    /// Rows are drained: no sink has them any more.
    fn finish(&mut self, rows: &[OutboxRow]) -> Vec<OutboxRow> {
        let mut drained = Vec::with_capacity(rows.len());
        for row in rows {
            if let Some(pending) = self.pending.remove(row) {
                self.entries -= pending.entries;
                self.bytes -= pending.bytes;
                drained.push(*row);
            }
        }
        while self.order.front().is_some_and(|row| !self.pending.contains_key(row)) {
            self.order.pop_front();
        }
        self.add_drained(&drained);
        drained
    }

    fn add_drained(&mut self, rows: &[OutboxRow]) {
        if !rows.is_empty() {
            self.drained.extend_from_slice(rows);
            self.drained_since.get_or_insert_with(Instant::now);
        }
    }

    fn take_drained(&mut self) -> Vec<OutboxRow> {
        let kept = self.drained.len().saturating_sub(DRAINED_ROWS_MAX);
        let taken = self.drained.split_off(kept);
        self.drained_since = if self.drained.is_empty() { None } else { Some(Instant::now()) };
        taken
    }

    fn oldest_age(&self) -> Option<Duration> {
        let oldest = self.pending.get(self.order.front()?)?;
        Some(oldest.since.elapsed())
    }
}

impl Shared {
    fn room(&self, state: &State) -> Room {
        let is_full = state.errors.iter().flatten().any(|error| error.is_full);
        if is_full || state.bytes >= self.bounds.outbox_bytes {
            Room::ReadOnly
        } else if state.entries >= self.bounds.entries
            || state.bytes >= self.bounds.bytes
            || state.oldest_age().is_some_and(|age| age >= self.bounds.age)
        {
            Room::Behind
        } else {
            Room::Yes
        }
    }

    /// A sink has flushed these rows.
    fn mark(&self, place: usize, rows: &[OutboxRow]) {
        let drained = {
            let mut state = self.state.lock();
            let mut done = Vec::new();
            for row in rows {
                // A row may be gone already: only the seeded bug does that.
                if let Some(pending) = state.pending.get_mut(row) {
                    pending.sinks_left &= !(1 << place);
                    if pending.sinks_left == 0 {
                        done.push(*row);
                    }
                }
            }
            state.finish(&done)
        };
        self.moved.notify_all();
        self.tell(&drained);
    }

    fn tell(&self, drained: &[OutboxRow]) {
        if !drained.is_empty() {
            (self.on_drained.lock())(drained);
        }
    }

    /// A sink's attempt failed, or (`None`) went well after failed ones.
    fn note_error(&self, place: usize, error: Option<&StoreError>) {
        let mut state = self.state.lock();
        state.failures += u64::from(error.is_some());
        if error.is_some() || state.errors[place].is_some() {
            state.errors[place] = error.map(|error| Failing {
                is_full: matches!(error, StoreError::Full(_)),
                text: error.to_string(),
            });
            drop(state);
            self.moved.notify_all();
        }
    }

    fn abort(&self, error: &StoreError) {
        tracing::error!(%error, "the process must end: what the disk holds is not known any more");
        (self.abort)(error);
    }

    fn wait_moved(&self, state: &mut MutexGuard<'_, State>, patience: Duration) {
        self.moved.wait_for(state, patience);
    }
}

/// Deletes drained rows that no commit has taken along.
fn forget(shared: &Shared, metadata: &dyn Metadata) {
    loop {
        let (rows, is_last) = {
            let mut state = shared.state.lock();
            loop {
                let is_last = state.stopping && state.sinks_running == 0;
                let is_due = state.drained_since.is_some_and(|since| since.elapsed() >= FORGET_AFTER);
                if is_last || is_due {
                    break (state.take_drained(), is_last);
                }
                shared.wait_moved(&mut state, FORGET_AFTER / 4);
            }
        };
        if rows.is_empty() {
            if is_last {
                return;
            }
            continue;
        }
        match metadata.forget_drained(&rows) {
            Ok(()) => {}
            Err(error @ StoreError::SyncFailed(_)) => return shared.abort(&error),
            Err(error) => {
                tracing::warn!(%error, rows = rows.len(), "drained rows are deleted later");
                if is_last {
                    return;
                }
                shared.state.lock().add_drained(&rows);
            }
        }
    }
}
