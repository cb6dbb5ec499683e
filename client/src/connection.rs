//! One connection of one session: the transport, the sans-IO session and one timer, turned by whoever owns it. The SDK's
//! [`Client`](crate::Client) stands on it; a load generator uses it directly, thousands of times in one process:
//! an idle connection holds no buffer, spawns no task and has one timer.
//!
//! ```no_run
//! use fanfare_client::connection::{Connection, ConnectOptions, now_ms};
//! use fanfare_proto::{DeviceId, session::client::{ClientSession, DeviceState, Event, SessionOptions}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = ConnectOptions::new("ws://127.0.0.1:7443")?;
//! let session_options = SessionOptions { token: "...".into(), ..Default::default() };
//! let session = ClientSession::new(DeviceState::new(DeviceId(1)), session_options, now_ms());
//! let mut connection = Connection::open(&options, session).await?;
//! loop {
//!     let mut delivered = 0;
//!     connection.turn(&mut |event| if let Event::Deliver(_) = event { delivered += 1 }).await?;
//! }
//! # }
//! ```

mod quic;
mod websocket;

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use fanfare_proto::{
    Code,
    session::client::{ClientSession, DeviceState, Ended, Event},
};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, Sleep},
};

use crate::{
    error::OpenError,
    target::{Carrier, Target},
    tls::Trust,
};

use quic::Quic;
pub use quic::client_transport;
pub(crate) use quic::ended_of_quic;
use websocket::WebSocket;

/// Time to open a connection, by default.
pub const OPEN_TIME_MAX: Duration = Duration::from_secs(10);
/// Time to flush the last frames of a session.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// Milliseconds of this process's steady clock: the `now_ms` of every session that a [`Connection`] turns.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Never 0, so that the session's arithmetic has room below.
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1_000_000
}

/// How to reach a gateway. Made once, shared by any number of connections.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Where, and by which transport.
    pub target: Target,
    /// Source address (`127.0.0.7`), for tests that need more ports or addresses than one has.
    pub local: Option<IpAddr>,
    /// Endpoint for QUIC connections; many can share one. Without it each connection opens its own.
    pub endpoint: Option<quinn::Endpoint>,
    /// From the start to the open transport.
    pub open_time_max: Duration,
    /// Name that the certificate must have, if it is not the target's host.
    pub server_name: Option<String>,
    tls: Option<Arc<rustls::ClientConfig>>,
    quic: Option<quinn::ClientConfig>,
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("target", &self.target)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    /// For `ws://`, or for `wss://` and `quic://` to be followed by [`Self::trust`].
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub fn new(url: &str) -> Result<Self, OpenError> {
        Ok(Self::to(Target::parse(url)?))
    }

    /// As [`Self::new`], for a target at hand.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            local: None,
            endpoint: None,
            open_time_max: OPEN_TIME_MAX,
            server_name: None,
            tls: None,
            quic: None,
        }
    }

    /// Whom to trust over TLS and QUIC.
    ///
    /// # Errors
    /// [`OpenError::Trust`].
    pub fn trust(mut self, trust: &Trust) -> Result<Self, OpenError> {
        match self.target.carrier {
            Carrier::WebSocket => {}
            Carrier::WebSocketTls => self.tls = Some(trust.client_config(&[])?),
            Carrier::Quic => {
                let config = trust.client_config(&[fanfare_proto::ALPN])?;
                let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)
                    .map_err(|error| OpenError::Trust(error.to_string()))?;
                let mut config = quinn::ClientConfig::new(Arc::new(config));
                config.transport_config(client_transport());
                self.quic = Some(config);
            }
        }
        Ok(self)
    }

    /// Source address of the connections.
    pub fn local(mut self, local: IpAddr) -> Self {
        self.local = Some(local);
        self
    }

    /// Endpoint that the QUIC connections share; its source address is its own.
    pub fn endpoint(mut self, endpoint: quinn::Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, OpenError> {
        let target = (self.target.host.as_str(), self.target.port);
        let addresses: Vec<_> = lookup_host(target)
            .await
            .map_err(OpenError::Connect)?
            .filter(|address| self.local.is_none_or(|local| local.is_ipv4() == address.is_ipv4()))
            .collect();
        if addresses.is_empty() {
            let error = std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "the name has no address of the local one's family",
            );
            return Err(OpenError::Connect(error));
        }
        Ok(addresses)
    }

    async fn tcp(&self) -> Result<TcpStream, OpenError> {
        let mut failed = None;
        for address in self.addresses().await? {
            match self.tcp_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            }
        }
        Err(OpenError::Connect(failed.unwrap_or_else(|| std::io::ErrorKind::NotFound.into())))
    }

    async fn tcp_to(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(local) = self.local {
            socket.bind(SocketAddr::new(local, 0))?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn name(&self) -> Result<ServerName<'static>, OpenError> {
        let name = self.server_name.clone().unwrap_or_else(|| self.target.host.clone());
        ServerName::try_from(name).map_err(|error| OpenError::Trust(error.to_string()))
    }

    async fn transport(&self) -> Result<Transport, OpenError> {
        let no_trust = || OpenError::Trust("no certificate or roots to trust were given".into());
        Ok(match self.target.carrier {
            Carrier::WebSocket => Transport::Plain(WebSocket::open(self.tcp().await?, &self.target).await?),
            Carrier::WebSocketTls => {
                let tls = tokio_rustls::TlsConnector::from(self.tls.clone().ok_or_else(no_trust)?);
                let stream =
                    tls.connect(self.name()?, self.tcp().await?).await.map_err(OpenError::Connect)?;
                Transport::Tls(Box::new(WebSocket::open(stream, &self.target).await?))
            }
            Carrier::Quic => {
                let config = self.quic.clone().ok_or_else(no_trust)?;
                let name = self.server_name.as_deref().unwrap_or(&self.target.host);
                let address = self.addresses().await?[0];
                let endpoint = match &self.endpoint {
                    Some(endpoint) => endpoint.clone(),
                    None => {
                        let unspecified = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
                        let local = SocketAddr::new(self.local.unwrap_or(unspecified), 0);
                        quinn::Endpoint::client(local).map_err(OpenError::Connect)?
                    }
                };
                Transport::Quic(Box::new(Quic::open(&endpoint, config, address, name).await?))
            }
        })
    }
}

enum Transport {
    Plain(WebSocket<TcpStream>),
    Tls(Box<WebSocket<tokio_rustls::client::TlsStream<TcpStream>>>),
    Quic(Box<Quic>),
}

macro_rules! each {
    ($self:expr, $transport:ident => $call:expr) => {
        match $self {
            Transport::Plain($transport) => $call,
            Transport::Tls($transport) => $call,
            Transport::Quic($transport) => $call,
        }
    };
}

/// An open transport with its session. Nothing happens unless [`Self::turn`] (or [`Self::poll`]) is called; it may be dropped
/// at any moment and called again.
pub struct Connection {
    transport: Transport,
    session: ClientSession,
    sleep: Option<Pin<Box<Sleep>>>,
    /// What `sleep` is set to.
    wakes_at: u64,
    ended: Option<Ended>,
}

impl Connection {
    /// Opens the transport. The session's HELLO goes out with the first turn; WELCOME comes as an event.
    ///
    /// # Errors
    /// See [`OpenError`]; the session is lost with it, keep a clone of its device where that matters.
    pub async fn open(options: &ConnectOptions, session: ClientSession) -> Result<Self, OpenError> {
        let transport = tokio::time::timeout(options.open_time_max, options.transport())
            .await
            .map_err(|_| OpenError::Timeout)??;
        Ok(Self { transport, session, sleep: None, wakes_at: u64::MAX, ended: None })
    }

    /// The session, to ask for something; the next turn sends it.
    pub fn session(&mut self) -> &mut ClientSession {
        &mut self.session
    }

    /// Sends what waits, then waits until the server or the clock has something to say, and says it to `sink`: one or many events. What the
    /// sink makes the session send goes out with the next turn. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The session is over; the same comes again from every further call. An [`Event::Ended`] went to the sink before, once.
    pub async fn turn(&mut self, sink: &mut impl FnMut(Event)) -> Result<(), Ended> {
        std::future::poll_fn(|cx| self.poll(cx, sink)).await
    }

    /// As [`Self::turn`]: ready when events went to the sink.
    pub fn poll(&mut self, cx: &mut Context<'_>, sink: &mut impl FnMut(Event)) -> Poll<Result<(), Ended>> {
        if let Some(ended) = &self.ended {
            return Poll::Ready(Err(ended.clone()));
        }
        let told = Cell::new(false);
        let mut ended = None;
        let mut note = |event: Event| {
            told.set(true);
            if let Event::Ended(why) = &event {
                ended = Some(why.clone());
            }
            sink(event);
        };
        loop {
            let now = now_ms();
            if self.session.deadline().is_some_and(|deadline| deadline <= now) {
                self.session.handle_timeout(now, &mut note);
            }
            let mut broken =
                each!(&mut self.transport, transport => transport.poll_send(cx, &mut self.session, now))
                    .err();
            if broken.is_none() && !self.session.is_ended() {
                let session = &mut self.session;
                let mut take = |frame| session.handle(now, frame, &mut note);
                match each!(&mut self.transport, transport => transport.poll_receive(cx, &mut take)) {
                    Poll::Ready(Ok(())) if !self.session.is_ended() => {
                        if told.get() {
                            return Poll::Ready(Ok(()));
                        }
                        continue;
                    }
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(why)) => broken = Some(why),
                    Poll::Pending if told.get() => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        if self.poll_sleep(cx, now).is_ready() {
                            continue;
                        }
                        return Poll::Pending;
                    }
                }
            }
            // Over: the CLOSE that waits, if any, goes out as far as the transport takes it at once.
            if broken.is_none() {
                let _ =
                    each!(&mut self.transport, transport => transport.poll_send(cx, &mut self.session, now));
            }
            if ended.is_none() {
                let why = broken.unwrap_or_else(|| Ended::from_close(None, "the session was closed"));
                sink(Event::Ended(why.clone()));
                ended = Some(why);
            }
            each!(&mut self.transport, transport => transport.close(&self.session));
            let why = ended.expect("set above");
            self.ended = Some(why.clone());
            return Poll::Ready(Err(why));
        }
    }

    fn poll_sleep(&mut self, cx: &mut Context<'_>, now: u64) -> Poll<()> {
        let Some(deadline) = self.session.deadline() else { return Poll::Pending };
        // A timer that fires too early is cheaper than one set anew with every frame.
        if self.sleep.is_none() || deadline < self.wakes_at || self.wakes_at <= now {
            let at = Instant::now() + Duration::from_millis(deadline.saturating_sub(now));
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(at),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at))),
            }
            self.wakes_at = deadline;
        }
        match self.sleep.as_mut().expect("set above").as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.wakes_at = 0;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Ends the session in order: what waits, the last ACK and CLOSE are flushed (for at most 2 s), then the transport is
    /// closed. Gives back what the next session needs.
    pub async fn close(mut self, code: Code) -> DeviceState {
        self.session.close(code, "");
        let flush = std::future::poll_fn(
            |cx| each!(&mut self.transport, transport => transport.poll_flush(cx, &mut self.session, now_ms())),
        );
        // A connection that is broken by now needs no goodbye.
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, flush).await;
        each!(&mut self.transport, transport => transport.close(&self.session));
        if let Transport::Quic(quic) = &mut self.transport {
            quic.finished().await;
        }
        self.session.into_device()
    }

    /// Drops the transport as it stands, as a broken network would.
    pub fn into_session(self) -> ClientSession {
        self.session
    }

    /// UDP datagrams that came so far, over QUIC.
    pub fn datagrams_received(&self) -> Option<u64> {
        match &self.transport {
            Transport::Quic(quic) => Some(quic.datagrams_received()),
            Transport::Plain(_) | Transport::Tls(_) => None,
        }
    }

    /// Local address, where the transport knows it.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.transport {
            Transport::Plain(ws) => ws.io().local_addr().ok(),
            Transport::Tls(ws) => ws.io().get_ref().0.local_addr().ok(),
            Transport::Quic(quic) => quic.local_addr(),
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("open", &self.session.is_open())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// A read buffer that all connections of a thread share: it is lent for one synchronous read.
mod scratch {
    use std::cell::Cell;

    /// Bytes of one read.
    pub const READ_BYTES: usize = 64 * 1024;

    thread_local! {
        static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
    }

    /// Runs `read` with the thread's buffer.
    pub fn with<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice());
        let result = read(&mut buffer);
        BUFFER.set(Some(buffer));
        result
    }
}
