//! Serving HTTP/1.1 with deadlines: a head must come within 5 s, an answer must be read within 15 s, connections have
//! places and an age, and a stop lets what is under way end.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, Sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    api::Peer,
    client_address::{client_address, is_of, limited_as},
    places::{BusyBody, Place, Places},
};
use crate::network::Network;

/// Connections that the kernel keeps until they are accepted. With the 128 of a plain bind a crowd of one address makes
/// others wait a second for their next try.
const BACKLOG: u32 = 4_096;
/// How long a request's head may take, also between two requests of one connection.
pub const HEAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client may leave an answer half read.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(15);
/// The longest head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How old a connection may become; then it ends with the answer that is under way.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a connection that lost its place has to write what is left of its answer: it counts no more.
const SHED_WAIT_MAX: Duration = Duration::from_millis(100);
/// How long answers under way may take when the server stops.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);

/// Says what the HTTP side's metrics mean.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "fanfare_http_shed_total",
        "Connections closed at once: their address had too many, or there was no room"
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
    /// Serves on that socket; of `proxies` is believed for whom they ask.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start(listener: TcpListener, routes: Router, proxies: Arc<[Network]>) -> io::Result<Self> {
        describe_metrics();
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(accept(listener, routes, proxies, stop.clone()));
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

async fn accept(listener: TcpListener, routes: Router, proxies: Arc<[Network]>, stop: CancellationToken) {
    let places = Arc::new(Places::default());
    let began = std::time::Instant::now();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                let is_proxy = is_of(&proxies, address);
                let now = std::time::Instant::now();
                let Some(place) = places.take(limited_as(address), is_proxy, began, now) else {
                    metrics::counter!("fanfare_http_shed_total").increment(1);
                    continue;
                };
                let client = Client { address, proxies: Arc::clone(&proxies), place };
                tasks.spawn(serve(stream, client, routes.clone(), stop.clone()));
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

/// Who is connected.
struct Client {
    address: IpAddr,
    proxies: Arc<[Network]>,
    place: Place,
}

async fn serve(stream: TcpStream, client: Client, routes: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT_MAX).max_buf_size(HEAD_BYTES_MAX);
    let stream = TokioIo::new(Timed::new(stream, READ_WAIT_MAX));
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|mut request: Request<Incoming>| {
        let busy = client.place.busy();
        let address = client_address(client.address, &client.proxies, request.headers());
        request.extensions_mut().insert(Peer(limited_as(address)));
        let answered = routes.call(request);
        async { answered.await.map(|answer| answer.map(|body| Body::new(BusyBody::new(body, busy)))) }
    });
    let connection = builder.serve_connection(stream, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = tokio::time::sleep(CONNECTION_AGE_MAX) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = client.place.shed.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(SHED_WAIT_MAX, connection).await.unwrap_or(Ok(()))
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
