//! The maintenance thread that moves SQLite's logs into their files, so that no commit does.

use std::{
    sync::Arc,
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

#[derive(Debug, Default)]
struct Work {
    written_bytes: u64,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Signal {
    work: Mutex<Work>,
    wake: Condvar,
}

/// Owns the thread; it ends with this.
#[derive(Debug)]
pub struct Checkpointer {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
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
                    while signal.wait() {
                        for (database, connection) in &connected {
                            checkpoint(database, connection);
                        }
                    }
                }
            })
            .map_err(|error| StoreError::Unavailable(format!("thread: {error}")))?;
        Ok(Self { signal, thread: Some(thread) })
    }

    /// Counts what a transaction wrote.
    pub fn written(&self, bytes: u64) {
        let mut work = self.signal.work.lock();
        work.written_bytes += bytes + COMMIT_BYTES;
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
    /// Waits for work; `false` when the thread has to end.
    fn wait(&self) -> bool {
        let mut work = self.work.lock();
        while !work.stopping && work.written_bytes < WRITTEN_BYTES {
            if self.wake.wait_for(&mut work, INTERVAL).timed_out() && work.written_bytes > 0 {
                break;
            }
        }
        work.written_bytes = 0;
        !work.stopping
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
