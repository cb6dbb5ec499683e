//! The router: shards that own channels and users. They give entries their order, commit them, acknowledge them, and
//! fan them out; they answer where a session stands and what history holds.
//!
//! Each shard owns its state, and a worker runs a part of the shards; whatever blocks (commits, reads, cursor writes) runs on threads of its own and
//! comes back as an event. `shard.rs` is where to begin reading, `event.rs` is the list of what can happen.

mod admin;
mod audience;
mod channel;
mod committer;
mod context;
mod cursors;
mod desk;
mod event;
mod faded;
mod frames;
mod gateways;
#[cfg(test)]
mod held;
#[cfg(feature = "history")]
pub mod history;
mod load;
mod marks;
mod members;
mod meter;
mod opens;
mod out;
mod page;
pub mod push;
mod repeats;
mod scores;
mod send;
mod shard;
mod shelves;
mod tail;
mod uplink;
mod user;
mod worker;
mod writer;

use std::{
    collections::HashMap as StdMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use fanfare_proto::{
    ids::IdSource,
    link::{Downlink, GatewayId, Uplink},
};
use fanfare_storage::{
    StoreError,
    content::{Content, Lists},
    drain::Drains,
    hash::ClientIdKey,
    log::Log,
    metadata::Metadata,
    model::{OutboxBatch, OutboxRow},
    ownership::Ownership,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

pub use admin::{
    Admin, BLOCKS_MAX, ChannelSummary, Handing, Hot, MemberSummary, SessionSummary, SessionTrace,
    ShardCounts, Status,
};
pub use context::{Clock, Fatal, RouterConfig, TierTimes};
use context::{Context, Inbox};
use event::Event;
pub use marks::MARKS_MAX;
pub use meter::describe as describe_metrics;

/// Where a router keeps things.
pub struct Stores {
    /// Who, when, which place.
    pub metadata: Arc<dyn Metadata>,
    /// What.
    pub content: Arc<dyn Content>,
    /// Users' lists.
    pub lists: Arc<dyn Lists>,
    /// The groups' log.
    pub log: Arc<dyn Log>,
    /// Who serves which shard.
    pub ownership: Arc<dyn Ownership>,
    /// The outbox as found at start.
    pub recovered: Vec<OutboxBatch>,
}

/// Why a router cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The number of shards is 0 or above 1,024.
    #[error("{0} shards: must be 1 to 1024")]
    Shards(u16),
    /// A store failed.
    #[error("a store failed")]
    Store(#[from] StoreError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[from] std::io::Error),
}

/// A running router. [`Self::shutdown`] ends it.
pub struct Router {
    context: Arc<Context>,
    drains: Arc<Drains>,
    committer: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

impl Router {
    /// Takes the leases of all shards, starts drains, committer, writer and shards. Blocks while it reads the stores.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: RouterConfig, stores: Stores) -> Result<Self, StartError> {
        if config.shards == 0 || config.shards > fanfare_proto::ids::SHARDS_MAX {
            return Err(StartError::Shards(config.shards));
        }
        meter::describe();
        let Stores { metadata, content, lists, log, ownership, recovered } = stores;
        let secret = metadata.secret("client-ids", &|| {
            let mut bytes = vec![0; 32];
            // Cannot fail but where the system has no randomness at all; then nothing else would work either.
            let _ = aws_lc_rs::rand::fill(&mut bytes);
            bytes
        })?;
        let mut owned = Vec::with_capacity(usize::from(config.shards));
        for lease in ownership.take_all(&(0..config.shards).collect::<Vec<_>>())? {
            let (_, last_id) = metadata.shard(lease.shard)?;
            owned.push((lease.term, last_id));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = worker::count(cores, config.shards);
        let (posts, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        let inboxes: Vec<Inbox> = (0..config.shards)
            .map(|shard| Inbox {
                posts: posts[usize::from(shard) % workers].clone(),
                permits: Arc::new(Semaphore::new(config.inbox_max)),
            })
            .collect();
        let rows: StdMap<OutboxRow, Vec<u16>> =
            recovered.iter().map(|batch| (batch.row, shards_of(batch, config.shards))).collect();
        let runtime = config.runtime.clone();
        let context = Arc::new(Context {
            config,
            metadata: Arc::clone(&metadata),
            content: Arc::clone(&content),
            lists: Arc::clone(&lists),
            inboxes: inboxes.into(),
            workers,
            commits: Default::default(),
            cursors: Default::default(),
            client_ids: ClientIdKey::new(&secret),
            rows: Mutex::new(rows),
            recent_ids: Arc::new(AtomicUsize::new(0)),
            block_order: Arc::default(),
            tail_bytes: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            committed: (AtomicU64::new(0), AtomicU64::new(0)),
            reads: Mutex::default(),
            began: tokio::time::Instant::now(),
            tasks: TaskTracker::new(),
        });
        start_shards(&context, &runtime, &recovered, owned, receivers);
        let of_drains = Arc::clone(&context);
        let on_drained = Box::new(move |rows: &[OutboxRow]| drained(&of_drains, rows));
        let drains = Arc::new(Drains::start(metadata, content, lists, log, recovered, on_drained)?);
        let committer = committer::Committer::new(Arc::clone(&context), Arc::clone(&drains));
        let committer =
            std::thread::Builder::new().name("store-commit".into()).spawn(move || committer.run())?;
        let writer = writer::spawn(&context)?;
        Ok(Self { context, drains, committer: Some(committer), writer: Some(writer) })
    }

    /// The way in for gateways.
    pub fn uplink(&self) -> Arc<dyn Uplink> {
        Arc::new(uplink::RouterUplink::new(Arc::clone(&self.context.inboxes), self.context.workers))
    }

    /// A gateway came: what owners send it goes this way from now on. Before its first session.
    pub fn attach_gateway(&self, gateway: GatewayId, downlink: Arc<dyn Downlink>) {
        for shard in 0..self.context.config.shards {
            self.context.post(shard, Event::Attach(gateway, Arc::clone(&downlink)));
        }
    }

    /// A gateway is gone, and all its sessions with it.
    pub fn detach_gateway(&self, gateway: GatewayId) {
        for shard in 0..self.context.config.shards {
            self.context.post(shard, Event::Detach(gateway));
        }
    }

    /// For the server's own people and programs.
    pub fn admin(&self) -> Admin {
        Admin::new(&self.context, &self.drains)
    }

    /// Drains: takes no new sends (RETRY_LATER), finishes and answers what is in flight, writes cursors, drains the
    /// outbox, ends every task and thread.
    pub async fn shutdown(mut self) {
        self.context.draining.store(true, Ordering::Relaxed);
        for shard in 0..self.context.config.shards {
            self.context.post(shard, Event::Stop);
        }
        self.context.tasks.close();
        self.context.tasks.wait().await;
        self.context.commits.stop();
        self.context.cursors.stop();
        let threads = [self.committer.take(), self.writer.take()];
        let drains = self.drains;
        let ended = tokio::task::spawn_blocking(move || {
            for thread in threads.into_iter().flatten() {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                if thread.join().is_err() {
                    tracing::error!(name, "panicked");
                }
            }
            // Whoever asks for the status just now ends them a moment later.
            if let Ok(drains) = Arc::try_unwrap(drains) {
                drains.stop();
            }
        });
        if ended.await.is_err() {
            tracing::error!("the stores' threads could not be waited for");
        }
    }
}

fn start_shards(
    context: &Arc<Context>,
    runtime: &tokio::runtime::Handle,
    recovered: &[OutboxBatch],
    owned: Vec<(u64, u64)>,
    receivers: Vec<mpsc::UnboundedReceiver<worker::Post>>,
) {
    let mut by_worker: Vec<Vec<(u16, shard::Shard)>> = receivers.iter().map(|_| Vec::new()).collect();
    for (number, (term, last_id)) in (0u16..).zip(owned) {
        let ids = IdSource::new(fanfare_proto::ShardId(number), last_id);
        let mut desk = desk::Desk::new(Arc::clone(context), number, term, ids);
        let mut overlay: HashMap<_, Vec<_>, RandomState> = HashMap::default();
        for batch in recovered {
            for entry in &batch.entries {
                if context.shard_of(entry.channel.shard()) == number {
                    desk.remember(batch.row, Arc::new(entry.clone()));
                }
            }
            for change in &batch.lists {
                if context.shard_of(change.user.shard()) == number {
                    overlay.entry(change.user).or_default().push((*change, batch.row));
                }
            }
        }
        by_worker[usize::from(number) % context.workers].push((number, shard::Shard::new(desk, overlay)));
    }
    for (shards, receiver) in by_worker.into_iter().zip(receivers) {
        let worker = worker::Worker::new(Arc::clone(context), shards);
        context.tasks.spawn_on(worker.run(receiver), runtime);
    }
}

/// The shards that a row is of.
fn shards_of(batch: &OutboxBatch, shards: u16) -> Vec<u16> {
    let mut of: Vec<u16> = batch.entries.iter().map(|entry| entry.channel.shard().0 % shards).collect();
    of.sort_unstable();
    of.dedup();
    of
}

/// Rows can be read from the content store now: their shards may forget them.
fn drained(context: &Context, rows: &[OutboxRow]) {
    let mut by_shard: StdMap<u16, Vec<OutboxRow>> = StdMap::new();
    {
        let mut known = context.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            for shard in known.remove(row).unwrap_or_default() {
                by_shard.entry(shard).or_default().push(*row);
            }
        }
    }
    context.post_all(by_shard.into_iter().map(|(shard, rows)| (shard, Event::Drained(rows))));
}
