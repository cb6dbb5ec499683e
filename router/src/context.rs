//! What all shards of a router share: stores, queues, counters and the way to each other.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use fanfare_storage::{
    content::Content, content::Lists, hash::ClientIdKey, metadata::Metadata, model::OutboxRow,
};
use smallvec::SmallVec;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;

use crate::{
    committer::CommitQueue,
    event::Event,
    meter,
    worker::{Post, Posts},
    writer::CursorQueue,
};

/// Tells Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Called when the process must end (a failed sync); must not return in production.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How a router runs. Numbers are bounds with their units; the default suits one machine.
#[derive(Clone)]
pub struct RouterConfig {
    /// Shards, as the deployment was set up with.
    pub shards: u16,
    /// Where shards and readers run.
    pub runtime: Handle,
    /// The server's clock.
    pub clock: Clock,
    /// What to do when the process must end.
    pub on_fatal: Fatal,
    /// Frames and opens from gateways that may wait for one shard.
    pub inbox_max: usize,
    /// Frames of one channel's tail.
    pub tail_frames_max: usize,
    /// Bytes of one channel's tail.
    pub tail_bytes_max: usize,
    /// Bytes of all tails; above it busy channels keep an eighth of their bounds.
    pub tails_bytes_max: usize,
    /// Client message ids kept in the process.
    pub recent_ids_max: usize,
    /// Sends that may wait in one channel.
    pub pending_sends_max: usize,
    /// Bytes of those sends.
    pub pending_bytes_max: usize,
    /// Store reads at once.
    pub readers: usize,
    /// Store reads that may wait for one of those.
    pub readers_waiting_max: usize,
    /// How long positions and cursors may stay unwritten.
    pub cursors_every: Duration,
    /// As `cursors_every`, in direct channels.
    pub direct_cursors_every: Duration,
    /// How long the tail of a channel in which nothing happens stays as it is; then the newest few frames are left of it.
    pub tail_kept: Duration,
    /// How long a channel that nobody uses stays loaded.
    pub idle: Duration,
    /// How members' scores come about.
    pub activity: fanfare_activity::Settings,
    /// What follows from them.
    pub tiers: TierTimes,
    /// Between two messages of a group that mention everybody.
    pub mention_all_every: Duration,
}

/// How long each tier waits.
#[derive(Clone, Copy, Debug)]
pub struct TierTimes {
    /// Members' activity decides. Else every session gets every entry at once.
    pub by_activity: bool,
    /// Until warm sessions get what there is,
    pub warm: Duration,
    /// and how long that waits for a message which is being committed then.
    pub commit: Duration,
    /// Until passive sessions are told the head while the app is on screen,
    pub passive: Duration,
    /// and while it is not.
    pub background: Duration,
    /// Between two looks at the scores of those who may have to go down a tier.
    pub look: Duration,
}

impl Default for TierTimes {
    fn default() -> Self {
        Self {
            by_activity: true,
            warm: Duration::from_millis(250),
            commit: Duration::from_millis(20),
            passive: Duration::from_secs(5),
            background: Duration::from_secs(15),
            look: Duration::from_secs(30),
        }
    }
}

impl RouterConfig {
    /// The defaults on that runtime.
    pub fn new(runtime: Handle) -> Self {
        Self {
            shards: fanfare_proto::ids::SHARDS_DEFAULT,
            runtime,
            clock: Arc::new(|| {
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(0, |since| since.as_millis() as u64)
            }),
            on_fatal: Arc::new(|why| {
                tracing::error!(why, "the process must end");
                std::process::abort();
            }),
            inbox_max: 4_096,
            tail_frames_max: 1_024,
            tail_bytes_max: 256 * 1024,
            tails_bytes_max: 512 * 1024 * 1024,
            recent_ids_max: 1_000_000,
            pending_sends_max: 1_024,
            pending_bytes_max: 4 * 1024 * 1024,
            readers: 4,
            readers_waiting_max: 16_384,
            cursors_every: Duration::from_secs(5),
            direct_cursors_every: Duration::from_millis(250),
            tail_kept: Duration::from_secs(8),
            idle: Duration::from_secs(60),
            activity: Default::default(),
            tiers: Default::default(),
            mention_all_every: fanfare_proto::limits::MENTION_ALL_EVERY,
        }
    }
}

/// A shard's inbox. One queue, so that what one sender sends stays in order (a session's `Close` never overtakes its
/// `Open`).
///
/// **Why the channel has no bound of its own**: nothing that a shard does may block on another shard, or two could wait
/// for each other. What peers cause (frames, opens) takes one of `inbox_max` permits, given back when it is handled.
/// Everything else is an answer or a consequence of something that was bounded when it began: one outcome per unit in
/// flight (the commit queue has a bound), one result per reader (they have a bound), one `Close` per open session, one
/// `Credit` per 64 bytes under way, per SYNC at most two words per channel of the user and one SYNC per session at a
/// time, per STATE at most one word per channel and a millisecond between two for each, per membership entry (at most 1,000 users) one word per shard concerned.
pub struct Inbox {
    /// The queue of the worker that runs the shard.
    pub posts: Posts,
    /// What peers may still cause.
    pub permits: Arc<Semaphore>,
}

/// Results of brief reads that are handed over together.
const READS_PER_POST: usize = 16;

/// What is to be read from stores, and how many read.
#[derive(Default)]
pub struct Reads {
    waiting: VecDeque<Waiting>,
    running: usize,
}

struct Waiting {
    shard: u16,
    read: Read,
    is_brief: bool,
}

/// Makes an event of what it reads.
type Read = Box<dyn FnOnce(&Context) -> Event + Send>;

/// To several shards, each in the order given: one hand-over per worker.
pub fn post_all(inboxes: &[Inbox], workers: usize, events: impl IntoIterator<Item = (u16, Event)>) {
    let events = events.into_iter();
    let mut by_worker: SmallVec<[Vec<(u16, Event)>; 4]> = SmallVec::new();
    // One worker gets them all, several each its part.
    let expected = events.size_hint().0.div_ceil(workers);
    by_worker.resize_with(workers, || Vec::with_capacity(expected));
    for (shard, event) in events {
        by_worker[usize::from(shard) % workers].push((shard, event));
    }
    for events in by_worker {
        if let Some((first, _)) = events.first()
            && let Some(inbox) = inboxes.get(usize::from(*first))
        {
            let _ = inbox.posts.send(Post::Many(events));
        }
    }
}

/// See the module.
pub struct Context {
    /// As given.
    pub config: RouterConfig,
    /// Who, when, which place.
    pub metadata: Arc<dyn Metadata>,
    /// What.
    pub content: Arc<dyn Content>,
    /// Users' lists.
    pub lists: Arc<dyn Lists>,
    /// By shard.
    pub inboxes: Arc<[Inbox]>,
    /// How many run the shards: shard n belongs to worker n modulo their number.
    pub workers: usize,
    /// To the committer.
    pub commits: CommitQueue,
    /// To the cursors' writer.
    pub cursors: CursorQueue,
    /// For the stored hash of client message ids.
    pub client_ids: ClientIdKey,
    /// Rows committed and not drained, with their shards. Locked for one map operation at a time.
    pub rows: Mutex<HashMap<OutboxRow, Vec<u16>>>,
    /// Client message ids kept.
    pub recent_ids: Arc<AtomicUsize>,
    /// Bytes of all tails.
    pub tail_bytes: AtomicUsize,
    /// No new sends: the router is being drained.
    pub draining: AtomicBool,
    /// The newest commit found no room.
    pub read_only: AtomicBool,
    /// Commits and entries since the start.
    pub committed: (AtomicU64, AtomicU64),
    /// How many blocks were written. Locked by a blocking thread for one write.
    pub block_order: Arc<Mutex<u64>>,
    /// What is to be read. Locked for one queue operation at a time.
    pub reads: Mutex<Reads>,
    /// When the router was started.
    pub began: tokio::time::Instant,
    /// Shards and readers; waited for at shutdown.
    pub tasks: TaskTracker,
}

impl Context {
    /// Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        (self.config.clock)()
    }

    /// The shard that an id names. Ids come from peers: one that no shard gave leads to some shard, which does not know
    /// it.
    pub fn shard_of(&self, shard: fanfare_proto::ShardId) -> u16 {
        shard.0 % self.config.shards
    }

    /// To a shard; nothing where it has ended.
    pub fn post(&self, shard: u16, event: Event) {
        if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
            let _ = inbox.posts.send(Post::One(shard, event));
        }
    }

    /// To several shards, each in the order given: one hand-over per worker.
    pub fn post_all(&self, events: impl IntoIterator<Item = (u16, Event)>) {
        post_all(&self.inboxes, self.workers, events);
    }

    /// A shard's place among those of its worker.
    pub fn place_of(&self, shard: u16) -> usize {
        usize::from(shard) / self.workers
    }

    /// Runs `read` on a thread that may block, beside at most `readers - 1` others; what it returns goes to the shard.
    /// Gives `false`, and runs nothing, where too many wait already.
    ///
    /// A thread that has read one thing takes the next that waits: handing each to a thread of its own cost more than
    /// most reads.
    pub fn read(self: &Arc<Self>, shard: u16, read: impl FnOnce(&Context) -> Event + Send + 'static) -> bool {
        self.read_later(Waiting { shard, read: Box::new(read), is_brief: false })
    }

    /// As [`Self::read`], for a few rows, of which many are read at once: results may wait for those of the next ones that are as brief.
    pub fn read_briefly(
        self: &Arc<Self>,
        shard: u16,
        read: impl FnOnce(&Context) -> Event + Send + 'static,
    ) -> bool {
        self.read_later(Waiting { shard, read: Box::new(read), is_brief: true })
    }

    fn read_later(self: &Arc<Self>, waiting: Waiting) -> bool {
        {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            if reads.waiting.len() >= self.config.readers_waiting_max {
                meter::read_refused();
                return false;
            }
            reads.waiting.push_back(waiting);
            if reads.running >= self.config.readers {
                return true;
            }
            reads.running += 1;
        }
        let context = Arc::clone(self);
        self.tasks.spawn_blocking_on(move || context.run_reads(), &self.config.runtime);
        true
    }

    fn run_reads(&self) {
        let mut done = Vec::new();
        loop {
            let next = {
                let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
                let next = reads.waiting.pop_front();
                reads.running -= usize::from(next.is_none());
                next
            };
            let is_last = next.is_none();
            if let Some(Waiting { shard, read, is_brief }) = next {
                if !is_brief && !done.is_empty() {
                    self.post_all(done.drain(..));
                }
                match catch_unwind(AssertUnwindSafe(|| read(self))) {
                    Ok(event) => done.push((shard, event)),
                    Err(_) => tracing::error!(shard, "a reader panicked"),
                }
            }
            if is_last || done.len() >= READS_PER_POST {
                self.post_all(done.drain(..));
            }
            if is_last {
                return;
            }
        }
    }

    /// Whether the row waits for its drains.
    pub fn is_undrained(&self, row: OutboxRow) -> bool {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&row)
    }
}
