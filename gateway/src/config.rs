//! What a gateway is told when it starts: addresses, certificates, bounds.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use fanfare_proto::{
    limits,
    link::{Activities, GatewayId},
    session::server::Policy,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Everything a gateway is told. `Config::default()` listens on a free loopback port without TLS, for tests.
#[derive(Debug)]
pub struct Config {
    /// Its number among the gateways.
    pub id: GatewayId,
    /// Addresses for TCP and UDP alike. Port 0 takes one that is free for both, the same for all addresses.
    pub listen: Vec<SocketAddr>,
    /// Certificate for wss and QUIC; without one there is only plain WebSocket.
    pub tls: Option<TlsSource>,
    /// Whether plain WebSocket is served to peers that are not on this machine.
    pub plain: bool,
    /// Pages that may connect.
    pub origins: Origins,
    /// Rates, counts, times.
    pub limits: Limits,
    /// Worker threads; 0 takes one per core, at most [`LANES_DEFAULT_MAX`].
    pub lanes: usize,
    /// How often deadlines are looked at: their coarseness.
    pub sweep: Duration,
    /// Key of QUIC's connection ids and stateless resets: 32 random bytes of this gateway alone, the same over its
    /// restarts, so that clients of a gateway that died hear so from the next one at their first packet. `None`: another
    /// at each start.
    pub reset_key: Option<[u8; 32]>,
    /// Life of a resume secret.
    pub resume_life: Duration,
    /// Where what sessions do is told; without it PRESENCE is not served.
    pub activities: Option<Arc<dyn Activities>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: GatewayId(1),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            tls: None,
            plain: false,
            origins: Origins { loopback: true, allowed: Vec::new() },
            limits: Limits::DEFAULT,
            lanes: 0,
            sweep: Duration::from_secs(1),
            reset_key: None,
            resume_life: limits::RESUME_LIFE,
            activities: None,
        }
    }
}

/// Lanes that are started where nothing else is said.
pub const LANES_DEFAULT_MAX: usize = 16;

/// Where the certificate and its key come from.
#[derive(Debug)]
pub enum TlsSource {
    /// PEM files, read again when they change.
    Files {
        /// The chain, the server's own certificate first.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// Made by the caller, as in dev mode.
    Memory {
        /// The chain, the server's own certificate first.
        chain: Vec<CertificateDer<'static>>,
        /// Its private key.
        key: PrivateKeyDer<'static>,
    },
}

/// Pages that may open a WebSocket. Requests without `Origin` do not come from pages and are let in.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    /// Pages served from this machine, on any port: `localhost`, `127.0.0.0/8`, `[::1]`.
    pub loopback: bool,
    /// Exact origins, such as `https://chat.example.org`.
    pub allowed: Vec<String>,
}

impl Origins {
    /// Whether a page of that origin may connect.
    pub fn allows(&self, origin: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == origin) || (self.loopback && is_loopback(origin))
    }
}

fn is_loopback(origin: &str) -> bool {
    let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
        return false;
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some("0"))),
            None => return false,
        },
        None => authority.split_once(':').map_or((authority, Some("0")), |(host, port)| (host, Some(port))),
    };
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        return false;
    }
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The bounds that a deployment may choose; everything else is fixed in `fanfare_proto::limits`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rates and times of a session.
    pub policy: Policy,
    /// Connections of one user at this gateway.
    pub connections_per_user: u32,
    /// Connections of one address (IPv6: of one /64).
    pub connections_per_address: u32,
    /// Connections in all.
    pub connections_max: u32,
    /// Handshakes under way: the bound of what is begun and not finished, not of a rate.
    pub handshakes_max: u32,
    /// Bytes that may wait for a slow reader.
    pub outgoing_bytes_max: u32,
    /// How long they may wait, in milliseconds; after half of it they are made fewer.
    pub outgoing_ms_max: u64,
}

impl Limits {
    /// The numbers of docs/protocol.md, section 7.
    pub const DEFAULT: Self = Self {
        policy: Policy::DEFAULT,
        connections_per_user: 16,
        connections_per_address: 200,
        connections_max: 1_000_000,
        handshakes_max: 1_024,
        outgoing_bytes_max: limits::OUTGOING_BYTES_MAX as u32,
        outgoing_ms_max: limits::OUTGOING_TIME_MAX.as_millis() as u64,
    };
    /// The same code with numbers that a load test does not reach. Handshakes have the same bound: with more under way than are
    /// done in their time, none of them is.
    pub const LOAD: Self = Self {
        policy: Policy::LOAD,
        connections_per_user: 1_000_000,
        connections_per_address: 1_000_000,
        ..Self::DEFAULT
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_exact_and_loopback_is_what_it_says() {
        let origins = Origins { loopback: true, allowed: vec!["https://chat.example.org".into()] };
        for good in [
            "https://chat.example.org",
            "http://localhost:5173",
            "http://127.0.0.1",
            "https://[::1]:8443",
            "http://127.8.9.1:80",
        ] {
            assert!(origins.allows(good), "{good}");
        }
        for bad in [
            "null",
            "",
            "https://chat.example.org.evil.test",
            "http://chat.example.org",
            "https://chat.example.org:444",
            "http://localhost.evil.test",
            "http://localhost:80.evil.test",
            "http://127.0.0.1.evil.test",
            "http://evil.test#http://localhost",
            "file://localhost",
            "http://[::1].evil.test",
            "http://10.0.0.1",
        ] {
            assert!(!origins.allows(bad), "{bad}");
        }
        assert!(!Origins::default().allows("http://localhost"));
    }
}
