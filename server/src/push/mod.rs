//! Pushes to the absent: a consumer of the groups' log puts them into the outbox as the router's rules say, and deliveries take
//! what is due to the one receiver of the deployment, signed. Nothing of this holds a message up.

mod consumer;
mod delivery;
mod hook;
mod letter;
mod meter;
mod schedule;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fanfare_proto::{ChannelId, Code, UserId};
use fanfare_router::{Admin, push::Rules};
use fanfare_storage::{
    StoreError,
    content::Content as Frames,
    log::{Log, Offset},
    metadata::Metadata,
    push::{Push, PushCounts, PushKey, PushOutbox, PushState},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use delivery::BADGE_CHANNELS_MAX;
pub use hook::HookUrl;
pub use letter::{PREVIEW_BYTES_MAX, SECRETS_MAX};
pub use meter::describe_metrics;
pub use schedule::{PAUSE_FIRST, PAUSE_MAX, Patience, RETRY_AFTER_MAX};

use crate::{
    clock,
    failure::{Failure, Outcome},
    node::stores,
    webhook_keys::WebhookKeys,
};

/// Name of the secret that signs where no file has one.
pub const SECRET: &str = "push";
/// Pushes that may wait; beyond it the log is not read on.
pub const WAITING_MAX: u64 = 1_000_000;
/// How long the key of a push that ended is known.
pub const ENDED_KEPT: Duration = Duration::from_secs(86_400);
/// How long one that was given up can be replayed.
pub const DEAD_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// Dead pushes in one answer.
pub const DEAD_PAGE: usize = 1_000;
/// Rows forgotten at once.
const FORGOTTEN_MAX: usize = 1_000;
/// How often the outbox is counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause after a store failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How much a push says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Ids and counts.
    None,
    /// Names, and the beginning of the text.
    Preview,
}

/// Where pushes go, and how.
#[derive(Clone, Debug)]
pub struct PushConfiguration {
    /// The receiver.
    pub url: HookUrl,
    /// A file with the secrets that sign; else the data folder's.
    pub secret_file: Option<PathBuf>,
    /// How much a push says.
    pub content: Content,
    /// Who was there so recently is told that much later.
    pub recent: Duration,
    /// How long a push is tried.
    pub patience: Patience,
    /// Requests at once.
    pub connections: usize,
    /// Of one request.
    pub timeout: Duration,
}

/// What the parts share.
struct Shared {
    config: PushConfiguration,
    outbox: Arc<dyn PushOutbox>,
    log: Arc<dyn Log>,
    metadata: Arc<dyn Metadata>,
    content: Arc<dyn Frames>,
    router: Admin,
    keys: WebhookKeys,
    secrets: Vec<Vec<u8>>,
    started_ms: u64,
    meter: meter::Meter,
    /// Up to where each partition of the log was read and put. Locked for one copy.
    read: Mutex<Vec<Offset>>,
    /// Something may be due.
    wake: Notify,
    stop: CancellationToken,
}

impl Shared {
    fn rules(&self) -> Rules {
        Rules { recent: self.config.recent, started_ms: self.started_ms }
    }

    fn is_full(&self) -> bool {
        self.meter.counts().waiting >= WAITING_MAX
    }

    /// Records that are not read yet. Blocks.
    fn lag(&self) -> Result<u64, StoreError> {
        let read = self.read.lock().clone();
        let mut lag = 0;
        for (partition, read) in (0u16..).zip(read) {
            lag += self.log.end(partition)?.saturating_sub(read);
        }
        Ok(lag)
    }
}

/// What commands look at. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pushes(Option<Arc<Shared>>);

impl std::fmt::Debug for Pushes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pushes").field("on", &self.0.is_some()).finish()
    }
}

/// The tasks. [`Self::stop`] ends them.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Pushes {
    /// Starts reading and delivering on the current runtime. `outbox` is the folder's own.
    ///
    /// # Errors
    /// CONFIG_VALUE where the file of secrets cannot be read or holds something else; of the stores.
    pub async fn start(
        config: PushConfiguration,
        outbox: Arc<dyn PushOutbox>,
        stores: &stores::Stores,
        router: Admin,
        keys: WebhookKeys,
        started_ms: u64,
    ) -> Outcome<(Self, Running)> {
        let secrets = match &config.secret_file {
            Some(path) => secrets_of(path)?,
            None => vec![stores::random_secret(stores.metadata.as_ref(), SECRET)?],
        };
        let shared = Arc::new(Shared {
            outbox,
            log: stores.log.clone(),
            metadata: stores.metadata.clone(),
            content: stores.content.clone(),
            router,
            keys,
            secrets,
            started_ms,
            meter: meter::Meter::default(),
            read: Mutex::new(vec![0; usize::from(stores.log.partitions())]),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            config,
        });
        // What waits from before counts from the beginning.
        let counts = retried(&shared, "the push outbox", |shared| shared.outbox.counts()).await;
        shared.meter.counted(counts, started_ms);
        let tasks = vec![
            tokio::spawn(consumer::run(Arc::clone(&shared))),
            tokio::spawn(delivery::run(Arc::clone(&shared))),
            tokio::spawn(keep(Arc::clone(&shared))),
        ];
        let running = Running { stop: shared.stop.clone(), tasks };
        Ok((Self(Some(shared)), running))
    }

    fn on(&self) -> Outcome<&Arc<Shared>> {
        self.0.as_ref().ok_or_else(|| {
            Failure::new(Code::NOT_SERVED, "nobody is pushed anything: push.url is not set")
                .advise("fanfare config show", "push.url: where pushes go")
        })
    }

    /// How it stands, for `fanfare push status` and `fanfare status`.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn status(&self) -> Outcome<Value> {
        let Some(shared) = &self.0 else { return Ok(json!({ "on": false })) };
        let (counts, lag) = asked(shared, |shared| Ok((shared.outbox.counts()?, shared.lag()?))).await?;
        let PushCounts { waiting, oldest_ms, dead } = counts;
        let oldest_s = if waiting > 0 { clock::now_ms().saturating_sub(oldest_ms) / 1000 } else { 0 };
        Ok(json!({
            "on": true,
            "url": shared.config.url.to_string(),
            "content": match shared.config.content { Content::None => "none", Content::Preview => "preview" },
            "waiting": waiting,
            "oldest_s": oldest_s,
            "dead": dead,
            "lag_records": lag,
            "delivered": shared.meter.delivered(),
            "failed": shared.meter.failed(),
        }))
    }

    /// Those given up, the longest first, at most [`DEAD_PAGE`].
    ///
    /// # Errors
    /// NOT_SERVED where pushes are off; of the stores.
    pub async fn dead(&self) -> Outcome<Vec<Push>> {
        asked(self.on()?, |shared| shared.outbox.dead(DEAD_PAGE)).await
    }

    /// What is kept of a user's pushes, at most so many; nothing where pushes are off.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn of_user(&self, user: UserId, limit: usize) -> Outcome<Vec<(Push, PushState)>> {
        match &self.0 {
            Some(shared) => asked(shared, move |shared| shared.outbox.of_user(user, limit)).await,
            None => Ok(Vec::new()),
        }
    }

    /// When the user was last told of that channel as a whole, Unix milliseconds.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn told(&self, channel: ChannelId, user: UserId) -> Outcome<Option<u64>> {
        let Some(shared) = &self.0 else { return Ok(None) };
        let told = asked(shared, move |shared| shared.outbox.told(channel, &[user])).await?;
        Ok(told.first().map(|(_, told_ms)| *told_ms))
    }

    /// Has those given up tried again: the one of that key, or all. Gives how many.
    ///
    /// # Errors
    /// NO_SUCH_NAME where none of that key was given up; NOT_SERVED where pushes are off; of the stores.
    pub async fn replay(&self, key: Option<PushKey>) -> Outcome<usize> {
        let shared = self.on()?;
        let count = asked(shared, move |shared| shared.outbox.replay(clock::now_ms(), key)).await?;
        if count == 0 && key.is_some() {
            return Err(Failure::new(Code::NO_SUCH_NAME, "no push of that key was given up")
                .advise("fanfare push dead", "lists those that were"));
        }
        tracing::warn!(count, "pushes that were given up are tried again");
        shared.wake.notify_one();
        Ok(count)
    }

    /// The secret that signs, as receivers take it.
    ///
    /// # Errors
    /// NOT_SERVED where pushes are off; FORBIDDEN where a file has it.
    pub fn secret(&self) -> Outcome<String> {
        let shared = self.on()?;
        match (&shared.config.secret_file, shared.secrets.first()) {
            (None, Some(secret)) => Ok(letter::shown_secret(secret)),
            _ => Err(Failure::new(
                Code::FORBIDDEN,
                "the secret stands in the file that push.secret_file names",
            )),
        }
    }
}

impl Running {
    /// Ends the tasks. What was read and not put is read again, what was under way is tried again.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of pushes panicked");
            }
        }
    }
}

/// Reads the file that `push.secret_file` names.
fn secrets_of(path: &Path) -> Outcome<Vec<Vec<u8>>> {
    let wrong = |why: String| {
        Failure::new(Code::CONFIG_VALUE, format!("push.secret_file: {}", path.display()))
            .why(why)
            .advise("fanfare config show", "says where the value comes from")
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    letter::secrets(&text).map_err(wrong)
}

/// Counts, and forgets what is old.
async fn keep(shared: Arc<Shared>) {
    let every = async {
        loop {
            let counts = retried(&shared, "the push outbox", |shared| {
                let now_ms = clock::now_ms();
                let before = |kept: Duration| now_ms.saturating_sub(kept.as_millis() as u64);
                while shared.outbox.forget(before(ENDED_KEPT), before(DEAD_KEPT), FORGOTTEN_MAX)?
                    == FORGOTTEN_MAX
                {}
                shared.outbox.counts()
            })
            .await;
            shared.meter.counted(counts, clock::now_ms());
            tokio::time::sleep(COUNT_EVERY).await;
        }
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = every => {}
    }
}

/// Runs what blocks, again and again until it succeeds.
async fn retried<T: Send + 'static>(
    shared: &Arc<Shared>,
    what: &'static str,
    run: impl Fn(&Shared) -> Result<T, StoreError> + Send + Sync + 'static,
) -> T {
    let run = Arc::new(run);
    let mut pause = PAUSES.0;
    loop {
        let (of_thread, shared) = (Arc::clone(&run), Arc::clone(shared));
        match tokio::task::spawn_blocking(move || of_thread(&shared)).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error @ StoreError::SyncFailed(_))) => {
                tracing::error!(%error, "the process must end: what the disk holds is not known any more");
                std::process::abort();
            }
            Ok(Err(error)) => tracing::warn!(what, %error, "pushes wait"),
            Err(error) => tracing::error!(what, %error, "a reader of pushes panicked"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Runs what blocks, once, for somebody who waits for it.
async fn asked<T: Send + 'static>(
    shared: &Arc<Shared>,
    run: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
) -> Outcome<T> {
    let shared = Arc::clone(shared);
    let done = tokio::task::spawn_blocking(move || run(&shared)).await;
    Ok(done.map_err(|error| Failure::internal("the push outbox could not be asked").why(error))??)
}
