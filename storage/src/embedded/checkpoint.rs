//! The maintenance thread: it moves SQLite's logs into their files, so that no commit does, and has the stores give back what a
//! burst took once nothing is written any more.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::database::Database;
use crate::{SLOW, error::StoreError};

/// Bytes written (by estimate) after which a checkpoint is worth its two syncs.
const WRITTEN_BYTES: u64 = 16 * 1024 * 1024;
/// Pages in a log at which writers are held for the rest of a checkpoint, so that the log starts over: 16 MiB.
const LOG_PAGES_MAX: u64 = 4 * 1024;
/// What a transaction rewrites besides its rows (heads, trees), bytes, roughly.
const COMMIT_BYTES: u64 = 64 * 1024;
/// Longest time between looks at the logs.
const INTERVAL: Duration = Duration::from_secs(5);
/// Since the last write: the stores are at rest.
const REST: Duration = Duration::from_secs(5);

/// What gives memory back when the stores are at rest.
type AtRest = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Work {
    written_bytes: u64,
    /// The last write since the stores were at rest.
    written_at: Option<Instant>,
    stopping: bool,
}

/// What the thread has to do.
enum Task {
    Checkpoint,
    Rest,
    End,
}

#[derive(Default)]
struct Signal {
    work: Mutex<Work>,
    wake: Condvar,
    at_rest: OnceLock<AtRest>,
}

/// Owns the thread; it ends with this.
pub struct Checkpointer {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpointer").finish_non_exhaustive()
    }
}

impl Checkpointer {
    /// Starts the thread for these databases.
    pub fn start(databases: &[&Arc<Database>]) -> Result<Self, StoreError> {
        let signal = Arc::new(Signal::default());
        let mut connected = Vec::new();
        for database in databases {
            connected.push((Arc::clone(database), database.connect()?));
        }
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn({
                let signal = Arc::clone(&signal);
                move || {
                    loop {
                        match signal.wait() {
                            Task::Checkpoint => {
                                connected.iter().for_each(|(database, own)| checkpoint(database, own));
                            }
                            Task::Rest => {
                                connected.iter().for_each(|(database, own)| database.shrink(own));
                                // Logs are moved whatever becomes of this.
                                if let Some(at_rest) = signal.at_rest.get()
                                    && catch_unwind(AssertUnwindSafe(at_rest)).is_err()
                                {
                                    tracing::error!("giving memory back panicked");
                                }
                            }
                            Task::End => return,
                        }
                    }
                }
            })
            .map_err(|error| StoreError::Unavailable(format!("thread: {error}")))?;
        Ok(Self { signal, thread: Some(thread) })
    }

    /// What else gives memory back when the stores are at rest; the first that is given stays.
    pub fn at_rest(&self, at_rest: AtRest) {
        // A second one changes nothing, as it says.
        let _ = self.signal.at_rest.set(at_rest);
    }

    /// Counts what a transaction wrote.
    pub fn written(&self, bytes: u64) {
        self.count(bytes, true);
    }

    /// Counts a small transaction of a trickle, beside which the stores are at rest all the same.
    pub fn trickled(&self) {
        self.count(0, false);
    }

    fn count(&self, bytes: u64, is_busy: bool) {
        let mut work = self.signal.work.lock();
        work.written_bytes += bytes + COMMIT_BYTES;
        if is_busy {
            work.written_at = Some(Instant::now());
        }
        if work.written_bytes >= WRITTEN_BYTES {
            self.signal.wake.notify_one();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.signal.work.lock().stopping = true;
        self.signal.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

impl Signal {
    fn wait(&self) -> Task {
        let mut work = self.work.lock();
        loop {
            if work.stopping {
                return Task::End;
            }
            let is_late = work.written_bytes < WRITTEN_BYTES
                && self.wake.wait_for(&mut work, INTERVAL).timed_out()
                && !work.stopping;
            if work.written_bytes >= WRITTEN_BYTES || (is_late && work.written_bytes > 0) {
                work.written_bytes = 0;
                return Task::Checkpoint;
            }
            if is_late && work.written_at.is_some_and(|last| last.elapsed() >= REST) {
                work.written_at = None;
                return Task::Rest;
            }
        }
    }
}

fn checkpoint(database: &Database, connection: &rusqlite::Connection) {
    let started = Instant::now();
    let (mut log_pages, mut held) = (0, Duration::ZERO);
    let result = database.checkpoint(connection).and_then(|pages| {
        log_pages = pages;
        if pages < LOG_PAGES_MAX {
            return Ok(());
        }
        // Writers that never pause keep the log growing behind a passive checkpoint. Nearly everything has just been
        // moved, so that holding them for the rest is short; the next commit then starts the log over.
        let _writers = database.pause_writers();
        let since = Instant::now();
        let moved = database.checkpoint(connection).map(drop);
        held = since.elapsed();
        moved
    });
    let took = started.elapsed();
    if took >= SLOW {
        let (took_ms, writers_held_ms) = (took.as_millis() as u64, held.as_millis() as u64);
        tracing::info!(took_ms, writers_held_ms, log_pages, "slow checkpoint");
    }
    match result {
        Ok(()) => {}
        Err(error @ StoreError::SyncFailed(_)) => {
            tracing::error!(%error, "the process must end: what the disk holds is not known any more");
            std::process::abort();
        }
        // The log keeps everything; the next round tries again.
        Err(error) => tracing::warn!(%error, "checkpoint"),
    }
}
