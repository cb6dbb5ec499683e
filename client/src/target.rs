//! Where to connect: URLs, and the small document a server's HTTP side serves for clients that know only its name.

use std::{net::IpAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{error::OpenError, tls::Trust};

/// How frames travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carrier {
    /// WebSocket over TCP.
    WebSocket,
    /// WebSocket over TLS.
    WebSocketTls,
    /// QUIC.
    Quic,
}

/// One gateway's address and how to speak to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Transport.
    pub carrier: Carrier,
}

/// Bytes of a discovery answer, head included.
const DISCOVERY_BYTES_MAX: u64 = 64 * 1024;
/// From connecting to the whole answer.
const DISCOVERY_TIME_MAX: Duration = Duration::from_secs(5);

impl Target {
    /// Reads `ws://host:port`, `wss://host:port` or `quic://host:port`; the port may be left out (7443).
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub fn parse(url: &str) -> Result<Self, OpenError> {
        let (scheme, authority) = split(url)?;
        let carrier = match scheme {
            "ws" => Carrier::WebSocket,
            "wss" => Carrier::WebSocketTls,
            "quic" => Carrier::Quic,
            _ => return Err(OpenError::Url(url.into())),
        };
        let (host, port) =
            host_port(authority, fanfare_proto::PORT).ok_or_else(|| OpenError::Url(url.into()))?;
        Ok(Self { host, port, carrier })
    }

    /// `host:port`, brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.carrier {
            Carrier::WebSocket => "ws",
            Carrier::WebSocketTls => "wss",
            Carrier::Quic => "quic",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Scheme and authority of a URL.
fn split(url: &str) -> Result<(&str, &str), OpenError> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| OpenError::Url(url.into()))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return Err(OpenError::Url(url.into()));
    }
    Ok((scheme, authority))
}

fn host_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = if port.is_empty() { default_port } else { port.strip_prefix(':')?.parse().ok()? };
        return Some((host.into(), port));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(':') => {
            Some((host.into(), port.parse().ok()?))
        }
        Some(_) => None,
        None => Some((authority.into(), default_port)),
    }
}

/// What a server says about itself at `/.well-known/fanfare.json`.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Discovery {
    /// Version of the document: 1.
    pub version: u32,
    /// Gateways, best first.
    pub gateways: Vec<Gateway>,
    /// Transports that the gateways serve: `quic`, `ws`, `wss`.
    #[serde(default)]
    pub transports: Vec<String>,
    /// SHA-256 of certificates to be pinned, hex; empty where a chain is to be checked.
    #[serde(default)]
    pub certificate_sha256: Vec<String>,
}

/// One address of [`Discovery`].
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Gateway {
    /// Name or address.
    pub host: String,
    /// UDP and TCP port.
    pub port: u16,
}

impl Discovery {
    /// Asks a server's HTTP side, `http://host:port`.
    ///
    /// # Errors
    /// [`OpenError::Url`], [`OpenError::Discovery`], [`OpenError::Connect`], [`OpenError::Timeout`].
    pub async fn fetch(url: &str) -> Result<Self, OpenError> {
        tokio::time::timeout(DISCOVERY_TIME_MAX, Self::fetch_now(url))
            .await
            .map_err(|_| OpenError::Timeout)?
    }

    async fn fetch_now(url: &str) -> Result<Self, OpenError> {
        let (scheme, authority) = split(url)?;
        let target = (scheme == "http").then(|| host_port(authority, fanfare_proto::HTTP_PORT)).flatten();
        let (host, port) = target.ok_or_else(|| OpenError::Url(url.into()))?;
        let mut stream = TcpStream::connect((host.as_str(), port)).await.map_err(OpenError::Connect)?;
        let request = format!(
            "GET /.well-known/fanfare.json HTTP/1.1\r\nHost: {authority}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(OpenError::Connect)?;
        let mut answer = Vec::new();
        stream.take(DISCOVERY_BYTES_MAX).read_to_end(&mut answer).await.map_err(OpenError::Connect)?;
        Self::parse_answer(&answer)
    }

    fn parse_answer(answer: &[u8]) -> Result<Self, OpenError> {
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.ok_or(OpenError::Discovery("the answer is not HTTP"))?;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        if head.split(' ').nth(1) != Some("200") {
            return Err(OpenError::Discovery("the server serves no fanfare.json"));
        }
        let body = &answer[end + 4..];
        let chunked =
            head.lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"));
        let body = if chunked { unchunk(body).unwrap_or_default() } else { body.to_vec() };
        let discovery: Self = serde_json::from_slice(&body)
            .map_err(|_| OpenError::Discovery("fanfare.json is not of the expected form"))?;
        if discovery.version != 1 || discovery.gateways.is_empty() {
            return Err(OpenError::Discovery("fanfare.json is of another version, or names no gateway"));
        }
        Ok(discovery)
    }

    /// The best target of the first gateway: QUIC where it can be trusted (pinned or by `trust`), else WebSocket, plain on loopback only.
    ///
    /// # Errors
    /// [`OpenError::Discovery`] where no transport fits.
    pub fn target(&self, trust: &Trust) -> Result<Target, OpenError> {
        let gateway = self.gateways.first().ok_or(OpenError::Discovery("no gateway is named"))?;
        let trusted = !self.certificate_sha256.is_empty() || !matches!(trust, Trust::Nobody);
        let loopback =
            gateway.host == "localhost" || gateway.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let serves = |name: &str| self.transports.iter().any(|transport| transport == name);
        let carrier = if serves("quic") && trusted {
            Carrier::Quic
        } else if serves("wss") && trusted {
            Carrier::WebSocketTls
        } else if serves("ws") && loopback {
            Carrier::WebSocket
        } else {
            return Err(OpenError::Discovery("no transport of the server can be used from here"));
        };
        Ok(Target { host: gateway.host.clone(), port: gateway.port, carrier })
    }

    /// The pinned certificates, or `None` where it names none.
    ///
    /// # Errors
    /// [`OpenError::Discovery`] where a hash is not 64 hex digits.
    pub fn pins(&self) -> Result<Option<Trust>, OpenError> {
        if self.certificate_sha256.is_empty() {
            return Ok(None);
        }
        let pins =
            self.certificate_sha256.iter().map(|hex| Trust::parse_pin(hex)).collect::<Option<Vec<_>>>();
        pins.map(|pins| Some(Trust::Pinned(pins)))
            .ok_or(OpenError::Discovery("a certificate hash is not hex"))
    }
}

/// The body of a chunked answer.
fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        body = &body[line + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_and_print() {
        for (url, printed) in [
            ("ws://127.0.0.1:9000/", "ws://127.0.0.1:9000"),
            ("wss://chat.example.org", "wss://chat.example.org:7443"),
            ("quic://[::1]:7443", "quic://[::1]:7443"),
        ] {
            assert_eq!(Target::parse(url).unwrap().to_string(), printed);
        }
        for url in
            ["", "ws://", "ftp://a:1", "ws://a:port", "ws://user@host:1", "127.0.0.1:7443", "ws://::1:5"]
        {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn discovery_prefers_quic_where_it_can_be_trusted() {
        let body = r#"{"version":1,"gateways":[{"host":"127.0.0.1","port":7443}],"transports":["quic","ws"],"certificate_sha256":["HASH"],"http":"x"}"#;
        let hash = "ab".repeat(32);
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}");
        let parsed = Discovery::parse_answer(answer(&body.replace("HASH", &hash)).as_bytes()).unwrap();
        assert_eq!(parsed.target(&Trust::Nobody).unwrap().to_string(), "quic://127.0.0.1:7443");
        assert!(matches!(parsed.pins(), Ok(Some(Trust::Pinned(pins))) if pins == [[0xab; 32]]));
        let unpinned = Discovery::parse_answer(answer(&body.replace("\"HASH\"", "")).as_bytes()).unwrap();
        assert_eq!(unpinned.target(&Trust::Nobody).unwrap().to_string(), "ws://127.0.0.1:7443");
        assert!(Discovery::parse_answer(b"HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2a\r\n{\"version\":1,\"gateways\":[{\"host\":\"a\",\"port\r\n5\r\n\":1}]\r\n1\r\n}\r\n0\r\n\r\n";
        assert_eq!(Discovery::parse_answer(chunked).unwrap().gateways[0].port, 1);
    }
}
