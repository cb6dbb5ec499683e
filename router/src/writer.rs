//! The cursors' writer: one thread that writes cursors, positions and devices, apart from the commit path.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fanfare_storage::{StoreError, model::CursorBatch};

use crate::{
    context::Context,
    event::{Event, Written},
};

/// Jobs that may wait; a shard whose job finds no room keeps its cursors dirty and comes again.
pub const JOBS_MAX: usize = 16_384;
/// Rows of one write.
const ROWS_PER_WRITE_MAX: usize = 4_096;
/// How long a job waits for others where somebody looks for what it writes,
const GATHER_SOON: Duration = Duration::from_millis(20);
/// and where nobody does: each write costs a flush, and what thousands of devices acknowledge would be one after the other.
const GATHER: Duration = Duration::from_millis(500);
/// How long until a failed write is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Something to be written, and who is to be told.
pub struct Job {
    /// The rows.
    pub batch: CursorBatch,
    /// Told to that shard when they stand on disk.
    pub then: Option<(u16, Written)>,
    /// Somebody looks for it.
    pub is_soon: bool,
}

#[derive(Default)]
struct Queued {
    jobs: VecDeque<Job>,
    /// When the first of them has waited for long enough.
    due: Option<Instant>,
    stopping: bool,
    /// Jobs that were queued and that are written, so far.
    pushed: u64,
    written: u64,
    /// Somebody waits for what is queued.
    is_awaited: bool,
}

/// What shards hand their jobs to.
#[derive(Default)]
pub struct CursorQueue {
    queued: Mutex<Queued>,
    wake: Condvar,
    done: Condvar,
}

impl CursorQueue {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a job would find room now.
    pub fn has_room(&self) -> bool {
        self.lock().jobs.len() < JOBS_MAX
    }

    /// Queues a job; drops it where there is no room (the caller asked [`Self::has_room`]; cursors are maxima and come
    /// again).
    pub fn push(&self, job: Job) {
        let mut queued = self.lock();
        let due = Instant::now() + if job.is_soon { GATHER_SOON } else { GATHER };
        if queued.jobs.len() < JOBS_MAX * 2 {
            queued.jobs.push_back(job);
            queued.pushed += 1;
        }
        let is_full = queued.jobs.len() == ROWS_PER_WRITE_MAX;
        let is_sooner = is_full || queued.due.is_none_or(|before| due < before);
        if is_sooner {
            queued.due = Some(if is_full { Instant::now() } else { due });
        }
        drop(queued);
        // It knows when the first of them is due.
        if is_sooner {
            self.wake.notify_one();
        }
    }

    /// Waits until what is queued now is written, for at most `patience`.
    pub fn settle(&self, patience: Duration) {
        let mut queued = self.lock();
        let pushed = queued.pushed;
        queued.is_awaited |= queued.written < pushed;
        self.wake.notify_one();
        let is_behind = |queued: &mut Queued| queued.written < pushed && !queued.stopping;
        drop(self.done.wait_timeout_while(queued, patience, is_behind));
    }

    fn written(&self, jobs: usize) {
        let mut queued = self.lock();
        queued.written += jobs as u64;
        queued.is_awaited &= queued.written < queued.pushed;
        drop(queued);
        self.done.notify_all();
    }

    /// Ends the writer when all is written.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
        self.done.notify_all();
    }

    fn take(&self) -> Option<Vec<Job>> {
        let mut queued = self.lock();
        // What comes until the first one is due shares the flush.
        loop {
            if queued.stopping && queued.jobs.is_empty() {
                return None;
            }
            let left = queued.due.map(|due| due.saturating_duration_since(Instant::now()));
            queued = match left {
                None => self.wake.wait(queued).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() || queued.stopping || queued.is_awaited => break,
                Some(left) => self.wake.wait_timeout(queued, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        let (mut taken, mut rows) = (Vec::new(), 0);
        while let Some(job) = queued.jobs.pop_front() {
            rows += job.batch.rows();
            taken.push(job);
            if rows >= ROWS_PER_WRITE_MAX {
                break;
            }
        }
        // What is left has waited as long as what was taken.
        if queued.jobs.is_empty() {
            queued.due = None;
        }
        Some(taken)
    }
}

/// Runs until the queue is stopped and empty.
pub fn run(context: &Context) {
    while let Some(mut jobs) = context.cursors.take() {
        let mut batch = CursorBatch::default();
        for job in &mut jobs {
            batch.append(&mut job.batch);
        }
        loop {
            match context.metadata.write_cursors(&batch) {
                Ok(()) => break,
                Err(StoreError::SyncFailed(why)) => {
                    (context.config.on_fatal)(&why);
                    return;
                }
                Err(error) => {
                    // Repeating is safe: all are maxima. At the end one refusal is enough: clients come with theirs.
                    tracing::warn!(%error, "cursors were not written; again soon");
                    let queued = context.cursors.lock();
                    if queued.stopping {
                        return;
                    }
                    drop(context.cursors.wake.wait_timeout(queued, AGAIN_AFTER));
                }
            }
        }
        context.cursors.written(jobs.len());
        let told = jobs.into_iter().filter_map(|job| job.then);
        context.post_all(told.map(|(shard, written)| (shard, Event::CursorsWritten(written))));
    }
}

/// Shared by the router and the thread.
pub fn spawn(context: &Arc<Context>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let context = Arc::clone(context);
    std::thread::Builder::new().name("store-cursors".into()).spawn(move || run(&context))
}
