//! The edges: sockets, handshakes, framing, the connection map. No routing logic: what the gateway exchanges with routers
//! are values of [`fanfare_proto::link`], and it cannot name a shard, a row or a registry.
//!
//! - `listen`: the front door; accepts and hands over to lanes.
//! - `lane`: a thread that owns its connections, mirror and queue; gathers and writes in passes.
//! - `handshake`, `quic`: from a socket to a session, over TCP and over UDP.
//! - `socket`, `readiness`, `tls_stream`, `wire`: a TCP socket on its lane, which waits for all of its own with one epoll; TLS over it.
//! - `connection`, `outgoing`: one connection, and what waits for it.
//! - `gather`, `audience`: frames laid side by side once, and who is due for them.
//! - `token`, `resume`, `admission`: who may come in.

mod admission;
mod audience;
mod clock;
mod config;
mod connection;
mod connection_id;
mod credit;
mod endpoint;
mod error;
mod gather;
mod handshake;
mod inbox;
mod lane;
mod listen;
mod outgoing;
mod quic;
mod readiness;
mod resume;
mod shared;
mod slots;
mod socket;
mod telemetry;
mod tls;
mod tls_stream;
mod token;
mod turns;
mod wire;

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use fanfare_proto::link::{Downlink, LANES_MAX, Uplink};
use tokio::{runtime, sync::oneshot, task::LocalSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    clock::Clock,
    credit::Credits,
    inbox::{Inbox, Item, Lanes},
    lane::Lane,
    readiness::Readiness,
    shared::Shared,
    tls::Tls,
};
pub use crate::{
    config::{Config, LANES_DEFAULT_MAX, Limits, Origins, TlsSource},
    error::GatewayError,
    listen::DATAGRAM_BUFFER_BYTES,
    resume::{Resume, ResumeKeys},
    shared::{Stats, fingerprint},
    telemetry::describe as describe_metrics,
    token::{LEEWAY_S, TYPE as TOKEN_TYPE, Verified, Verifier},
};

/// A gateway that runs. Dropping it ends it without a word to its clients; [`Gateway::shutdown`] is the polite way.
pub struct Gateway {
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
    addresses: Vec<SocketAddr>,
    closing: CancellationToken,
    ended: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    lanes_ended: Vec<oneshot::Receiver<()>>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Binds, starts the threads, and takes connections at once. `resume` and `verifier` may be rotated later through
    /// clones of theirs.
    ///
    /// # Errors
    /// An address that is taken, a certificate that cannot be used, no threads.
    pub fn start(
        config: Config,
        uplink: Arc<dyn Uplink>,
        verifier: Verifier,
        resume: ResumeKeys,
    ) -> Result<Self, GatewayError> {
        telemetry::describe();
        let doors = listen::bind(&config.listen)?;
        let addresses = doors.iter().map(|door| door.address).collect();
        let tls = config.tls.map(Tls::new).transpose()?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = match config.lanes {
            0 => cores.min(LANES_DEFAULT_MAX),
            lanes => lanes.min(LANES_MAX),
        };
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let shared = Arc::new(Shared {
            id: config.id,
            uplink,
            verifier,
            resume,
            reset_key: config.reset_key,
            resume_life_ms: config.resume_life.as_millis() as u64,
            activities: config.activities,
            limits: config.limits,
            origins: config.origins,
            plain: config.plain,
            sweep: config.sweep.max(Duration::from_millis(1)),
            clock: Clock::new(),
            admission: Admission::new(config.limits),
            credits: Credits::new(),
            tls,
            ids: Shared::id_source(config.id),
            counts: shared::Counts::default(),
        });
        let lanes = Arc::new(Lanes((0..count).map(|_| Arc::new(Inbox::default())).collect()));
        let mut gateway = Self {
            shared: shared.clone(),
            lanes: lanes.clone(),
            addresses,
            closing: closing.clone(),
            ended: ended.clone(),
            threads: Vec::new(),
            lanes_ended: Vec::new(),
        };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let serving = listen::serve(doors, shared.clone(), lanes.clone(), closing, ended);
        // Says that it is ready, or ends: everything that can fail does so before it waits for the first time.
        let door = async move {
            tokio::pin!(serving);
            let outcome = match poll_once(serving.as_mut()).await {
                Some(outcome) => outcome,
                None => {
                    let _ = ready.send(());
                    serving.await
                }
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "the gateway's door is closed");
            }
        };
        let mut door = Some(door);
        for (number, inbox) in lanes.0.iter().enumerate() {
            let (shared, inbox) = (shared.clone(), inbox.clone());
            let epoll = Readiness::epoll().map_err(GatewayError::Thread)?;
            let (ended, wait) = oneshot::channel();
            // Handing over what comes in costs a switch of threads: a single lane takes it itself.
            let door = if count == 1 { door.take() } else { None };
            gateway.thread(format!("gateway-{number}"), move |runtime| {
                let mut door = door.map(Box::pin);
                LocalSet::new().block_on(&runtime, async {
                    // A pass writes to thousands of sockets in one poll: it is not to be cut by tokio's budget.
                    let readiness = match Readiness::new(epoll) {
                        Ok(readiness) => readiness,
                        Err(error) => {
                            // Without its lane the door is not to open.
                            door = None;
                            return tracing::error!(%error, "a lane cannot watch its sockets");
                        }
                    };
                    let lane = Lane::new(number as u8, shared, inbox, readiness);
                    let mut lane = std::pin::pin!(tokio::task::unconstrained(lane.run()));
                    // Not in a task: what comes in is not to stand behind all tasks that are ready.
                    std::future::poll_fn(|cx| {
                        if door.as_mut().is_some_and(|door| door.as_mut().poll(cx).is_ready()) {
                            door = None;
                        }
                        lane.as_mut().poll(cx)
                    })
                    .await;
                });
                let _ = ended.send(());
                if let Some(door) = door {
                    // QUIC's last closes go out.
                    runtime.block_on(door);
                }
            })?;
            gateway.lanes_ended.push(wait);
        }
        if let Some(door) = door {
            gateway.thread("gateway-door".into(), move |runtime| runtime.block_on(door))?;
        }
        if started.recv().is_err() {
            return Err(GatewayError::Config("the listening sockets could not be used"));
        }
        Ok(gateway)
    }

    fn thread(
        &mut self,
        name: String,
        work: impl FnOnce(runtime::Runtime) + Send + 'static,
    ) -> Result<(), GatewayError> {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(GatewayError::Thread)?;
        let thread =
            thread::Builder::new().name(name).spawn(move || work(runtime)).map_err(GatewayError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The routers' way to this gateway.
    pub fn downlink(&self) -> Arc<dyn Downlink> {
        self.lanes.clone()
    }

    /// Where it listens, TCP and UDP alike, with the ports that were taken.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Sessions with a WELCOME.
    pub fn sessions(&self) -> usize {
        self.stats().sessions
    }

    /// Figures of this moment.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// SHA-256 of the certificate's DER, where there is one.
    pub fn certificate_sha256(&self) -> Option<[u8; 32]> {
        self.shared.fingerprint()
    }

    /// Reads the certificate's files again now, instead of within seconds of their change.
    ///
    /// # Errors
    /// They cannot be read or do not fit together; the old ones stay in use.
    pub fn reload_certificate(&self) -> Result<(), GatewayError> {
        self.shared.tls.as_ref().map_or(Ok(()), |tls| tls.reload(true).map(|_| ()))
    }

    /// Ends politely: takes no more connections, asks everybody to reconnect elsewhere within `grace`, waits that long for
    /// them to leave, closes those who are left (GOING_AWAY) and gives them two seconds to take it. With a `grace` of
    /// zero there is no waiting.
    pub async fn shutdown(mut self, grace: Duration) {
        self.closing.cancel();
        if !grace.is_zero() {
            let most = u32::try_from(grace.as_millis() * 4 / 5).unwrap_or(u32::MAX);
            for lane in &self.lanes.0 {
                lane.push(Item::GoAway { delay_ms: (0, most) });
            }
            let deadline = tokio::time::Instant::now() + grace;
            while self.sessions() > 0 && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20).min(grace)).await;
            }
        }
        for lane in &self.lanes.0 {
            lane.push(Item::Close);
        }
        for ended in self.lanes_ended.drain(..) {
            let _ = ended.await;
        }
        self.ended.cancel();
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the gateway panicked");
                }
            }
        });
        let _ = joined.await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.closing.cancel();
        self.ended.cancel();
        for lane in &self.lanes.0 {
            lane.push(Item::Close);
        }
    }
}

/// Polls once: `None` where it waits.
async fn poll_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
