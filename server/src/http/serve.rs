//! Serving HTTP/1.1 with deadlines: a head must come within 5 s, an answer must be read within 15 s, connections are
//! counted, in all and by address, and a stop lets what is under way end.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, Sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::api::Peer;

/// Connections that the kernel keeps until they are accepted. With the 128 of a plain bind a crowd of one address makes
/// others wait a second for their next try.
const BACKLOG: u32 = 4_096;
/// Connections at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 512;
/// Of one address, so that none takes all places; more are closed at once.
pub const CONNECTIONS_PER_ADDRESS: u32 = 128;
/// How long a request's head may take, also between two requests of one connection.
pub const HEAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client may leave an answer half read.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(15);
/// The longest head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long answers under way may take when the server stops.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);

/// Says what the HTTP side's metrics mean.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "fanfare_http_shed_total",
        "Connections closed at once: their address had too many"
    );
}

/// Binds an address.
///
/// # Errors
/// Of the system.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the connections of the last run; another listener is still refused.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The running HTTP side.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Serves on that socket.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start(listener: TcpListener, routes: Router) -> io::Result<Self> {
        describe_metrics();
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(accept(listener, routes, stop.clone()));
        Ok(Self { address, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and waits for the answers under way.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// How many connections each address has.
type Addresses = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// A connection's place, in all and under its address.
struct Place {
    addresses: Addresses,
    address: IpAddr,
    _room: OwnedSemaphorePermit,
}

impl Place {
    fn of(addresses: &Addresses, address: IpAddr, room: OwnedSemaphorePermit) -> Option<Self> {
        let mut counts = addresses.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Self { addresses: Arc::clone(addresses), address, _room: room })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What limits take for one address: of IPv6 a network of 64 bits, all of which one machine may have.
fn limited_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

async fn accept(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let addresses = Addresses::default();
    let tasks = TaskTracker::new();
    loop {
        let room = tokio::select! {
            () = stop.cancelled() => break,
            room = Arc::clone(&connections).acquire_owned() => room,
        };
        // It is never closed.
        let Ok(room) = room else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = limited_as(peer.ip());
                let Some(place) = Place::of(&addresses, address, room) else {
                    metrics::counter!("fanfare_http_shed_total").increment(1);
                    continue;
                };
                let routes = routes.clone().layer(Extension(Peer(address)));
                let stop = stop.clone();
                tasks.spawn(async move {
                    let _place = place;
                    serve(stream, routes, stop).await;
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back as connections end.
                tracing::warn!(%error, "HTTP cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    let _ = tokio::time::timeout(STOP_WAIT_MAX, tasks.wait()).await;
}

async fn serve(stream: TcpStream, routes: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT_MAX).max_buf_size(HEAD_BYTES_MAX);
    let stream = TokioIo::new(Timed::new(stream, READ_WAIT_MAX));
    let connection = builder.serve_connection(stream, TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "an HTTP connection ended");
    }
}

/// A stream whose peer has to read: one that leaves what is to be written half written for that long is cut.
struct Timed {
    stream: TcpStream,
    within: Duration,
    late: Pin<Box<Sleep>>,
    waits: bool,
}

impl Timed {
    fn new(stream: TcpStream, within: Duration) -> Self {
        Self { stream, within, late: Box::pin(tokio::time::sleep(within)), waits: false }
    }

    /// The clock runs from the first write that was not taken whole to the next one that is: a few bytes now and then do
    /// not stop it.
    fn in_time(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) if bytes >= wanted => self.waits = false,
            Poll::Ready(Err(_)) => {}
            Poll::Ready(Ok(_)) | Poll::Pending => {
                if !self.waits {
                    self.waits = true;
                    self.late.as_mut().reset(Instant::now() + self.within);
                }
                if self.late.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        written
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.in_time(cx, bytes.len(), written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.in_time(cx, wanted, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn an_address_has_its_places_and_a_network_of_ipv6_is_one() {
        let addresses = Addresses::default();
        let rooms = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let place = |text: &str| {
            let address = limited_as(text.parse().expect("an address"));
            Place::of(&addresses, address, Arc::clone(&rooms).try_acquire_owned().expect("room"))
        };
        let held: Vec<Place> = (0..CONNECTIONS_PER_ADDRESS).filter_map(|_| place("2001:db8::1")).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_ADDRESS as usize);
        assert!(place("2001:db8::2:0:0:1").is_none());
        assert!(place("2001:db8:0:1::1").is_some() && place("::1").is_some());
        assert_eq!(limited_as("::ffff:10.0.0.1".parse().expect("mapped")), IpAddr::from([10, 0, 0, 1]));
        drop(held);
        assert!(place("2001:db8::2").is_some());
        assert!(addresses.lock().is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut timed = Timed::new(stream, Duration::from_millis(100));
        let bytes = vec![0; 64 << 20];
        let fault = timed.write_all(&bytes).await.expect_err("nobody reads");
        assert_eq!(fault.kind(), io::ErrorKind::TimedOut);
        drop(timed);
        // What the kernel had taken came; the rest did not.
        let mut taken = Vec::new();
        let _ = client.read_to_end(&mut taken).await;
        assert!(taken.len() < bytes.len());
    }
}
