//! Serving HTTP/1.1 with deadlines: a head must come within 5 s, connections are counted, and a stop lets what is under
//! way end.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::api::Peer;

/// Connections at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a request's head may take, also between two requests of one connection.
pub const HEAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// The longest head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long answers under way may take when the server stops.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);

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

async fn accept(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        let room = tokio::select! {
            () = stop.cancelled() => break,
            room = Arc::clone(&connections).acquire_owned() => room,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let routes = routes.clone().layer(Extension(Peer(peer.ip().to_canonical())));
                let stop = stop.clone();
                tasks.spawn(async move {
                    let _room = room;
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
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
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
