//! The UDP sockets that many QUIC connections of the load share.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result};
use fanfare_client::connection::ConnectOptions;
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::runtime::{Builder, Runtime};

/// How many.
const ENDPOINTS: usize = 4;
/// Bytes that the kernel is asked to keep for each of them: what a thousand connections are sent at once is beyond the default,
/// and what is dropped would measure how QUIC repairs it. The kernel gives as much as it allows.
const RECEIVE_BYTES: usize = 4 << 20;

/// Opens them on this machine's loopback address.
pub fn endpoints() -> Result<Vec<Endpoint>> {
    (0..ENDPOINTS).map(|_| endpoint()).collect()
}

/// The same, read by a thread of their own: on the thread of tens of thousands of connections reading stands behind all that are
/// ready, and the kernel's buffer runs over. Connections stay with the thread that opens them.
fn endpoints_apart() -> Result<Vec<Endpoint>> {
    static READING: OnceLock<Runtime> = OnceLock::new();
    let runtime = match READING.get() {
        Some(runtime) => runtime,
        None => {
            let made = Builder::new_multi_thread().worker_threads(1).thread_name("udp").enable_all().build();
            let made = made.context("no thread to read UDP")?;
            READING.get_or_init(|| made)
        }
    };
    let _context = runtime.enter();
    endpoints()
}

/// Those ways over endpoints of [`endpoints_apart`].
pub fn apart(ways: &[ConnectOptions]) -> Result<Vec<ConnectOptions>> {
    Ok(ways.iter().zip(endpoints_apart()?).map(|(way, endpoint)| way.clone().endpoint(endpoint)).collect())
}

fn endpoint() -> Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port")?;
    // With less it works too, as long as nothing is dropped.
    let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BYTES);
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?)
}
