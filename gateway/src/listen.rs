//! The front door: one thread that accepts TCP connections and QUIC handshakes and hands each to the lane with the fewest
//! connections. It also looks after the certificate's files.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener, UdpSocket},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::hmac;
use fanfare_proto::ws::Refusal;
use quinn::{Endpoint, EndpointConfig};
use quinn_proto::RandomConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Over,
    connection_id::{self, SignedConnectionIds},
    endpoint,
    error::GatewayError,
    inbox::{Item, Lanes},
    quic,
    shared::Shared,
};

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4_096;
/// What the kernel keeps for a slow TCP reader, in bytes; it doubles the number.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// What the kernel keeps of datagrams that a busy endpoint has not read, in bytes.
pub const DATAGRAM_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Ports that are tried where any will do.
const PORTS_TRIED: usize = 64;
/// How long accepting rests when the process has no file left.
const FILES_REST: Duration = Duration::from_millis(100);
/// Handshakes that wait for their first turn, over TCP and QUIC, from which on TCP connections are left with the kernel: some
/// tens of milliseconds of work. A client that waits there costs nothing.
const WAITING_MAX: u32 = 256;
/// How long accepting rests then.
const WAITING_REST: Duration = Duration::from_millis(1);
/// How long all places for handshakes may be taken until those that come are turned away: when thousands come back at once, their clients
/// are the slower ones. Well below what a client waits for an answer.
const FULL_PATIENCE: Duration = Duration::from_secs(3);
/// How long places have to be there at once until that begins anew.
const FULL_OVER: Duration = Duration::from_secs(10);
/// How often the certificate's files are looked at.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(3);

/// One address, bound for both.
pub(crate) struct Door {
    pub address: SocketAddr,
    tcp: StdListener,
    udp: UdpSocket,
}

/// Binds all addresses, TCP and UDP alike. Those with port 0 get one port that is free for all of them.
pub(crate) fn bind(addresses: &[SocketAddr]) -> Result<Vec<Door>, GatewayError> {
    let any = addresses.iter().any(|address| address.port() == 0);
    let mut last = GatewayError::Config("no address to listen on");
    for _ in 0..if any { PORTS_TRIED } else { 1 } {
        let mut port = None;
        let mut doors = Vec::new();
        let mut fault = None;
        for wanted in addresses {
            let mut address = *wanted;
            if let (0, Some(port)) = (address.port(), port) {
                address.set_port(port);
            }
            match Door::bind(address) {
                Ok(door) => {
                    if wanted.port() == 0 {
                        port = Some(door.address.port());
                    }
                    doors.push(door);
                }
                Err(source) => {
                    fault = Some(GatewayError::Listen { address, source });
                    break;
                }
            }
        }
        match fault {
            None if !doors.is_empty() => return Ok(doors),
            None => return Err(last),
            Some(fault) => last = fault,
        }
    }
    Err(last)
}

impl Door {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let tcp = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the connections of the last run; another listener is still refused.
        tcp.set_reuse_address(true)?;
        tcp.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        if address.is_ipv6() {
            tcp.set_only_v6(false)?;
        }
        tcp.bind(&address.into())?;
        let address = tcp.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let udp = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            udp.set_only_v6(false)?;
        }
        udp.bind(&address.into())?;
        // As much as the system allows: bursts of handshakes are longer than the default.
        let _ = udp.set_recv_buffer_size(DATAGRAM_BUFFER_BYTES);
        let _ = udp.set_send_buffer_size(DATAGRAM_BUFFER_BYTES);
        tcp.listen(BACKLOG)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Self { address, tcp: tcp.into(), udp: udp.into() })
    }
}

/// Connection ids that this gateway knows again after a restart, and resets that its clients believe.
fn endpoint_config(reset_key: Option<[u8; 32]>) -> EndpointConfig {
    let Some(key) = reset_key else {
        let mut config = EndpointConfig::default();
        // Not quinn's own default: see `connection_id`.
        config.cid_generator(|| Box::new(RandomConnectionIdGenerator::new(connection_id::ID_BYTES)));
        return config;
    };
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let ids = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&reset, b"connection ids").as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(SignedConnectionIds::new(ids.clone())));
    config
}

/// Serves the doors until `closing`, then keeps the QUIC endpoints alive until `ended`.
pub(crate) async fn serve(
    doors: Vec<Door>,
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
    closing: CancellationToken,
    ended: CancellationToken,
) -> Result<(), GatewayError> {
    let tasks = tokio_util::task::TaskTracker::new();
    let (mut endpoints, mut readers) = (Vec::new(), Vec::new());
    for door in doors {
        let fault = |source| GatewayError::Listen { address: door.address, source };
        let tcp = TcpListener::from_std(door.tcp).map_err(fault)?;
        tasks.spawn(closing.clone().run_until_cancelled_owned(accept(tcp, shared.clone(), lanes.clone())));
        if let Some(tls) = &shared.tls {
            let idle = Duration::from_millis(shared.policy().idle_ms.min(3_600_000));
            let config = quic::server_config(tls, idle)?;
            let (endpoint, reader) =
                endpoint::open(endpoint_config(shared.reset_key), config, door.udp).map_err(fault)?;
            let incoming = incoming(endpoint.clone(), shared.clone(), lanes.clone());
            tasks.spawn(closing.clone().run_until_cancelled_owned(incoming));
            endpoints.push(endpoint);
            readers.push(reader);
        }
    }
    tasks.spawn(closing.clone().run_until_cancelled_owned(watch_certificate(shared)));
    tasks.close();
    let serving = async move {
        tasks.wait().await;
        ended.cancelled().await;
        for endpoint in &endpoints {
            endpoint.close(quinn::VarInt::from(0u32), b"");
            // The last closes go out.
            let _ = tokio::time::timeout(Duration::from_millis(300), endpoint.wait_idle()).await;
        }
    };
    let mut serving = pin!(serving);
    std::future::poll_fn(|cx| {
        readers.retain_mut(|reader| Pin::new(reader).poll(cx).is_pending());
        serving.as_mut().poll(cx)
    })
    .await;
    Ok(())
}

/// When all places for handshakes were taken.
#[derive(Default)]
struct Fullness {
    /// The first and the newest of the times at which they were met so.
    met: Option<(Instant, Instant)>,
}

impl Fullness {
    /// They are taken now. Gives whether that is to be waited out.
    fn is_borne(&mut self, now: Instant) -> bool {
        let since = match self.met {
            Some((since, last)) if now - last < FULL_OVER => since,
            _ => now,
        };
        self.met = Some((since, now));
        now - since < FULL_PATIENCE
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, lanes: Arc<Lanes>) {
    let mut fullness = Fullness::default();
    loop {
        while shared.admission.waiting() >= WAITING_MAX {
            tokio::time::sleep(WAITING_REST).await;
        }
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // A peer that left while it waited is nothing; without files (or memory) a rest lets others leave.
                metrics::counter!("fanfare_gateway_accept_errors_total").increment(1);
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
                {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(FILES_REST).await;
                }
                continue;
            }
        };
        let Some(mut address) = shared.admission.address(peer.ip()) else {
            // As much of an answer as costs nothing; under TLS it is not understood.
            metrics::counter!("fanfare_gateway_shed_total").increment(1);
            let _ = stream.try_write(&Refusal::Unavailable.response());
            continue;
        };
        let mut handshake = shared.admission.handshake(Over::Tcp);
        while handshake.is_none() && fullness.is_borne(Instant::now()) {
            tokio::time::sleep(WAITING_REST).await;
            handshake = shared.admission.handshake(Over::Tcp);
        }
        let Some(handshake) = handshake else {
            metrics::counter!("fanfare_gateway_shed_total").increment(1);
            continue;
        };
        // Without it a TLS ticket stalls each connect until the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let Ok(stream) = stream.into_std() else { continue };
        let lane = lanes.idlest();
        address.on_lane(&lane.connections);
        lane.push(Item::Accepted { stream, address, handshake });
    }
}

async fn incoming(endpoint: Endpoint, shared: Arc<Shared>, lanes: Arc<Lanes>) {
    while let Some(incoming) = endpoint.accept().await {
        if shared.admission.handshakes() >= shared.limits.handshakes_max {
            metrics::counter!("fanfare_gateway_shed_total").increment(1);
            incoming.refuse();
            continue;
        }
        if incoming.may_retry() {
            // Nothing is kept or counted for an address that has not shown that it is one, and it is sent no more than
            // it sent: a first flight with a certificate would be over three times a lone Initial.
            let _ = incoming.retry();
            continue;
        }
        let Some(mut address) = shared.admission.address(incoming.remote_address().ip()) else {
            incoming.refuse();
            continue;
        };
        let Some(handshake) = shared.admission.handshake(Over::Quic) else {
            incoming.refuse();
            continue;
        };
        let lane = lanes.idlest();
        address.on_lane(&lane.connections);
        lane.push(Item::Incoming { incoming: Box::new(incoming), address, handshake });
    }
}

async fn watch_certificate(shared: Arc<Shared>) {
    let Some(tls) = &shared.tls else { return };
    loop {
        tokio::time::sleep(CERTIFICATE_EVERY).await;
        match tls.reload(false) {
            Ok(true) => tracing::info!("the certificate was read again"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the certificate's files changed and could not be read; the old one stays")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_waited_out_and_an_attack_is_not() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut fullness = Fullness::default();
        assert!(
            (0..3_000).step_by(5).all(|ms| fullness.is_borne(at(ms))),
            "a place now and then, all of them soon taken"
        );
        assert!((3_000..60_000).step_by(5).all(|ms| !fullness.is_borne(at(ms))), "and it goes on");
        assert!(!fullness.is_borne(at(69_000)));
        assert!(fullness.is_borne(at(79_001)), "places were there for a while");
    }
}
