//! One sink's thread: gather, apply, flush, mark; try again for ever when the store cannot.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Shared, State};
use crate::{
    content::{Content, Lists},
    error::StoreError,
    fault,
    log::Log,
    model::{Entry, ListChange, OutboxBatch, OutboxRow},
};

/// How many sinks there are.
pub const COUNT: usize = 3;
/// The place of the lists' sink.
pub const LISTS: usize = 1;
/// Names of the sinks and of their threads.
pub const NAMES: [&str; COUNT] = ["store-content", "store-lists", "store-log"];

/// First pause after a failed attempt; doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Longest pause after failed attempts.
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub enum Sink {
    Content(Arc<dyn Content>),
    Lists(Arc<dyn Lists>),
    Log(Arc<dyn Log>),
}

impl Sink {
    const fn place(&self) -> usize {
        match self {
            Self::Content(_) => 0,
            Self::Lists(_) => LISTS,
            Self::Log(_) => 2,
        }
    }

    pub const fn name(&self) -> &'static str {
        NAMES[self.place()]
    }

    /// Applies and flushes. Both are repeated where either fails: a store that was opened again meanwhile may have
    /// lost what was applied.
    fn write(&self, batches: &[Arc<OutboxBatch>]) -> Result<(), StoreError> {
        match self {
            Self::Content(content) => {
                let mut entries: Vec<Entry> =
                    batches.iter().flat_map(|batch| batch.entries.iter().cloned()).collect();
                entries.sort_by_key(|entry| (entry.channel, entry.seq));
                fault::point("before-content-put");
                content.put(&entries)?;
                fault::point("after-content-put");
                content.flush()?;
                fault::point("after-content-flush");
            }
            Self::Lists(lists) => {
                let changes: Vec<ListChange> =
                    batches.iter().flat_map(|batch| batch.lists.iter().copied()).collect();
                fault::point("before-lists-apply");
                lists.apply(&changes)?;
                fault::point("after-lists-apply");
                lists.flush_lists()?;
                fault::point("after-lists-flush");
            }
            Self::Log(log) => {
                fault::point("before-log-append");
                let entries: Vec<Entry> =
                    batches.iter().flat_map(|batch| batch.entries.iter().cloned()).collect();
                log.append(&entries)?;
                fault::point("after-log-append");
                log.flush_log()?;
                fault::point("after-log-flush");
            }
        }
        Ok(())
    }
}

/// Says when it goes that a sink's thread has ended, however it did: who stops the drains waits for all of them.
struct Running<'a>(&'a Shared, usize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "the thread of this drain panicked; restart the server".to_owned();
            self.0.note_error(self.1, Some(&StoreError::Unavailable(why)));
        }
        self.0.state.lock().sinks_running -= 1;
        self.0.moved.notify_all();
    }
}

/// The thread of one sink.
pub fn run(shared: &Shared, sink: &Sink) {
    let place = sink.place();
    let _running = Running(shared, place);
    while let Some(batches) = gather(shared, place) {
        let mut pause = PAUSE_FIRST;
        let is_written = loop {
            match sink.write(&batches) {
                Ok(()) => {
                    shared.note_error(place, None);
                    break true;
                }
                Err(error @ StoreError::SyncFailed(_)) => {
                    shared.abort(&error);
                    break false;
                }
                Err(error) => {
                    tracing::warn!(sink = sink.name(), %error, "a batch is repeated");
                    shared.note_error(place, Some(&error));
                    if !rest(shared, place, pause) {
                        break false;
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        };
        if !is_written {
            break;
        }
        let rows: Vec<OutboxRow> = batches.iter().map(|batch| batch.row).collect();
        shared.mark(place, &rows);
    }
}

/// The next rows, in commit order; `None` when all is drained and the thread has to end.
fn gather(shared: &Shared, place: usize) -> Option<Vec<Arc<OutboxBatch>>> {
    let mut state = shared.state.lock();
    let mut until = None;
    loop {
        if state.queues[place].is_empty() {
            if state.stopping {
                return None;
            }
            shared.wake[place].wait(&mut state);
            continue;
        }
        let until = *until.get_or_insert_with(|| Instant::now() + shared.bounds.linger);
        let is_enough = state.queued_entries[place] >= shared.bounds.batch_entries;
        if is_enough || state.stopping || shared.wake[place].wait_until(&mut state, until).timed_out() {
            return Some(take(&mut state, place, shared.bounds.batch_entries));
        }
    }
}

fn take(state: &mut State, place: usize, entries_max: usize) -> Vec<Arc<OutboxBatch>> {
    let (mut batches, mut entries) = (Vec::new(), 0);
    while let Some(batch) = state.queues[place].front() {
        let more = batch.entries.len().max(1);
        if !batches.is_empty() && entries + more > entries_max {
            break;
        }
        entries += more;
        state.queued_entries[place] -= more;
        batches.extend(state.queues[place].pop_front());
    }
    batches
}

/// Pauses after a failed attempt; `false` when the drains are being stopped.
fn rest(shared: &Shared, place: usize, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    let mut state = shared.state.lock();
    while !state.stopping {
        if shared.wake[place].wait_until(&mut state, until).timed_out() {
            return true;
        }
    }
    false
}
