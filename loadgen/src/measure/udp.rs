//! The UDP sockets that many QUIC connections of the load share.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
};

use anyhow::{Context, Result};
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use rustix::net::sockopt::set_socket_recv_buffer_size;

/// How many.
const ENDPOINTS: usize = 4;
/// Bytes that the kernel is asked to keep for each of them: what a thousand connections are sent at once is beyond the default,
/// and what is dropped would measure how QUIC repairs it. The kernel gives as much as it allows.
const RECEIVE_BYTES: usize = 4 << 20;

/// Opens them on this machine's loopback address.
pub fn endpoints() -> Result<Vec<Endpoint>> {
    (0..ENDPOINTS).map(|_| endpoint()).collect()
}

fn endpoint() -> Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port")?;
    // With less it works too, as long as nothing is dropped.
    let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BYTES);
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?)
}
