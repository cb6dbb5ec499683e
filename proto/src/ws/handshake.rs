//! The HTTP upgrade that comes before the first frame: read and answered on the server, asked and verified on
//! the client. Heads are capped before they are parsed, and whatever could carry a request body is refused.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Longest head of a request or response, in bytes, its empty line included.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Most headers in a request or response.
pub const HEADERS_MAX: usize = 64;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(GUID);
    STANDARD.encode(sha1.finish())
}

/// A client's wish to speak WebSocket, valid by RFC 6455. Whether path, host, origin and subprotocols are
/// welcome is the caller's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade<'h> {
    /// The path, from its `/` to before any `?`.
    pub path: &'h str,
    /// What follows the `?`.
    pub query: Option<&'h str>,
    /// The `Host` header.
    pub host: &'h str,
    /// The `Origin` header; browsers always send one.
    pub origin: Option<&'h str>,
    /// The offered subprotocols, best first.
    pub subprotocols: Vec<&'h str>,
    /// The `Authorization` header, scheme included.
    pub authorization: Option<&'h str>,
    /// The `Sec-WebSocket-Key`.
    pub key: &'h str,
}

impl<'h> Upgrade<'h> {
    /// Reads a request from the front of `head`: the upgrade and the length of its head, behind which frames
    /// begin. `None` while the head is not whole; call again with the longer head.
    ///
    /// # Errors
    /// What to answer before the connection is closed.
    pub fn parse(head: &'h [u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let capped = &head[..head.len().min(HEAD_BYTES_MAX)];
        let size = match request.parse(capped) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) if capped.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal::HeadTooLarge);
            }
            Err(_) => return Err(Refusal::BadRequest("not an HTTP/1.1 request")),
        };
        if request.version != Some(1) {
            return Err(Refusal::BadRequest("HTTP/1.1 is needed"));
        }
        if request.method != Some("GET") {
            return Err(Refusal::MethodNotAllowed);
        }
        let target = request.path.unwrap_or_default();
        if !target.starts_with('/') {
            return Err(Refusal::BadRequest("the request target is not a path"));
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };

        let mut seen = Seen::default();
        let mut subprotocols = Vec::new();
        for header in request.headers.iter() {
            let name = header.name;
            let value = header.value;
            if name.eq_ignore_ascii_case("host") {
                once(&mut seen.host, value, "Host")?;
            } else if name.eq_ignore_ascii_case("origin") {
                once(&mut seen.origin, value, "Origin")?;
            } else if name.eq_ignore_ascii_case("authorization") {
                once(&mut seen.authorization, value, "Authorization")?;
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                once(&mut seen.key, value, "Sec-WebSocket-Key")?;
            } else if name.eq_ignore_ascii_case("sec-websocket-version") {
                once(&mut seen.version, value, "Sec-WebSocket-Version")?;
            } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                let value = text(value).ok_or(Refusal::BadRequest("Sec-WebSocket-Protocol is malformed"))?;
                subprotocols.extend(list(value));
            } else if name.eq_ignore_ascii_case("connection") {
                seen.connection |= has_token(value, "upgrade");
            } else if name.eq_ignore_ascii_case("upgrade") {
                seen.upgrade |= has_token(value, "websocket");
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                || (name.eq_ignore_ascii_case("content-length") && value != b"0")
            {
                return Err(Refusal::BadRequest("an upgrade has no body"));
            }
        }
        let host = seen.host.ok_or(Refusal::BadRequest("Host is missing"))?;
        if !seen.upgrade {
            return Err(Refusal::UpgradeRequired);
        }
        if !seen.connection {
            return Err(Refusal::BadRequest("Connection does not say Upgrade"));
        }
        if seen.version != Some("13") {
            return Err(Refusal::UpgradeRequired);
        }
        let key = seen.key.ok_or(Refusal::BadRequest("Sec-WebSocket-Key is missing"))?;
        if !STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
            return Err(Refusal::BadRequest("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        let Seen { origin, authorization, .. } = seen;
        Ok(Some((Self { path, query, host, origin, subprotocols, authorization, key }, size)))
    }

    /// The response that opens the WebSocket, with one of the offered subprotocols or none. Extensions are
    /// never accepted.
    pub fn response(&self, subprotocol: Option<&str>) -> Vec<u8> {
        let mut out = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            accept_key(self.key)
        );
        if let Some(subprotocol) = subprotocol {
            out.push_str("Sec-WebSocket-Protocol: ");
            out.push_str(subprotocol);
            out.push_str("\r\n");
        }
        out.push_str("\r\n");
        out.into_bytes()
    }
}

#[derive(Default)]
struct Seen<'h> {
    host: Option<&'h str>,
    origin: Option<&'h str>,
    authorization: Option<&'h str>,
    key: Option<&'h str>,
    version: Option<&'h str>,
    connection: bool,
    upgrade: bool,
}

/// Stores a header that may come once only: two of them would let two readers see different requests.
fn once<'h>(slot: &mut Option<&'h str>, value: &'h [u8], name: &'static str) -> Result<(), Refusal> {
    let value = text(value).ok_or(Refusal::BadHeader(name))?;
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::BadHeader(name)),
    }
}

fn text(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    (!text.chars().any(char::is_control)).then_some(text)
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty())
}

fn has_token(value: &[u8], token: &str) -> bool {
    text(value).is_some_and(|value| list(value).any(|item| item.eq_ignore_ascii_case(token)))
}

/// Why an upgrade is refused. [`Refusal::response`] is what to send before closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400: not a valid upgrade.
    #[error("{0}")]
    BadRequest(&'static str),
    /// 400: the named header is malformed or comes twice.
    #[error("{0} is malformed or repeated")]
    BadHeader(&'static str),
    /// 403: the origin, or whoever asks, is not welcome.
    #[error("{0}")]
    Forbidden(&'static str),
    /// 404: no WebSocket at this path.
    #[error("no WebSocket at this path")]
    NotFound,
    /// 405: not a GET.
    #[error("only GET opens a WebSocket")]
    MethodNotAllowed,
    /// 408: the head did not come in time.
    #[error("the request did not come in time")]
    Timeout,
    /// 426: no wish for WebSocket version 13.
    #[error("this address speaks WebSocket version 13")]
    UpgradeRequired,
    /// 429: too many connections or attempts.
    #[error("too many connections")]
    TooManyRequests,
    /// 431: the head is above [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    #[error("the request's headers are too large")]
    HeadTooLarge,
    /// 503: full, or shutting down.
    #[error("the server takes no new connections")]
    Unavailable,
}

impl Refusal {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::BadHeader(_) => 400,
            Self::Forbidden(_) => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::UpgradeRequired => 426,
            Self::TooManyRequests => 429,
            Self::HeadTooLarge => 431,
            Self::Unavailable => 503,
        }
    }

    /// The whole response; the connection closes behind it.
    pub fn response(self) -> Vec<u8> {
        let (reason, extra) = match self.status() {
            403 => ("Forbidden", ""),
            404 => ("Not Found", ""),
            405 => ("Method Not Allowed", "Allow: GET\r\n"),
            408 => ("Request Timeout", ""),
            426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            429 => ("Too Many Requests", ""),
            431 => ("Request Header Fields Too Large", ""),
            503 => ("Service Unavailable", "Retry-After: 5\r\n"),
            _ => ("Bad Request", ""),
        };
        // An Upgrade header belongs to this hop, so Connection must name it.
        let connection = if self == Self::UpgradeRequired { "Upgrade, close" } else { "close" };
        let body = format!("{self}\n");
        format!(
            "HTTP/1.1 {} {reason}\r\nConnection: {connection}\r\n{extra}\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
            self.status(),
            body.len(),
        )
        .into_bytes()
    }
}

/// A client's side of the handshake.
#[derive(Debug, Clone, Copy)]
pub struct ClientRequest<'a> {
    /// The `Host` header: name and, if it is not the scheme's own, port.
    pub host: &'a str,
    /// Path and query, from its `/`.
    pub target: &'a str,
    /// The subprotocol to offer. A server that answers without it is refused.
    pub subprotocol: Option<&'a str>,
    /// The `Origin` header, which only browsers must send.
    pub origin: Option<&'a str>,
    /// The `Authorization` header, scheme included.
    pub authorization: Option<&'a str>,
    /// Sixteen random bytes, fresh for each connection.
    pub nonce: [u8; 16],
}

/// A server's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Length of the response's head; frames begin behind it.
    pub head_bytes: usize,
}

/// Why a client's handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A part of the request has characters that do not belong there.
    #[error("{0} has characters that cannot stand in a request")]
    Request(&'static str),
    /// The answer is not HTTP/1.1, or too long.
    #[error("the answer is not an HTTP/1.1 response within the limits")]
    Malformed,
    /// The server refused with this HTTP status.
    #[error("the server answered HTTP status {0}")]
    Status(u16),
    /// The answer does not belong to this request, or accepts what was not offered.
    #[error("the server's {0} does not fit the request")]
    Mismatch(&'static str),
}

impl ClientRequest<'_> {
    fn key(&self) -> String {
        STANDARD.encode(self.nonce)
    }

    /// The bytes to send first.
    ///
    /// # Errors
    /// [`HandshakeError::Request`] where a field could break out of its line.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeError> {
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.target.starts_with('/') || !visible(self.target) {
            return Err(HandshakeError::Request("target"));
        }
        if self.host.is_empty() || !visible(self.host) {
            return Err(HandshakeError::Request("host"));
        }
        let mut out = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {}\r\nSec-WebSocket-Version: 13\r\n",
            self.target,
            self.host,
            self.key(),
        );
        for (name, value) in [
            ("Sec-WebSocket-Protocol", self.subprotocol),
            ("Origin", self.origin),
            ("Authorization", self.authorization),
        ] {
            let Some(value) = value else { continue };
            if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                return Err(HandshakeError::Request(name));
            }
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str("\r\n");
        Ok(out.into_bytes())
    }

    /// Reads the response from the front of `head`; `None` while it is not whole.
    ///
    /// # Errors
    /// The server refused, or answered what it must not.
    pub fn verify(&self, head: &[u8]) -> Result<Option<Accepted>, HandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let capped = &head[..head.len().min(HEAD_BYTES_MAX)];
        let head_bytes = match response.parse(capped) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) if capped.len() < HEAD_BYTES_MAX => return Ok(None),
            _ => return Err(HandshakeError::Malformed),
        };
        match response.code {
            Some(101) if response.version == Some(1) => {}
            Some(101) | None => return Err(HandshakeError::Malformed),
            Some(status) => return Err(HandshakeError::Status(status)),
        }
        let expected = accept_key(&self.key());
        let (mut upgrade, mut connection, mut accept, mut subprotocol) = (false, false, None, None);
        for header in response.headers.iter() {
            let name = header.name;
            if name.eq_ignore_ascii_case("upgrade") {
                upgrade |= has_token(header.value, "websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                connection |= has_token(header.value, "upgrade");
            } else if name.eq_ignore_ascii_case("sec-websocket-accept") {
                if accept.replace(header.value).is_some() {
                    return Err(HandshakeError::Mismatch("Sec-WebSocket-Accept"));
                }
            } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                if subprotocol.replace(header.value).is_some() {
                    return Err(HandshakeError::Mismatch("Sec-WebSocket-Protocol"));
                }
            } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
                return Err(HandshakeError::Mismatch("Sec-WebSocket-Extensions"));
            }
        }
        if !upgrade {
            return Err(HandshakeError::Mismatch("Upgrade"));
        }
        if !connection {
            return Err(HandshakeError::Mismatch("Connection"));
        }
        if accept.and_then(text) != Some(expected.as_str()) {
            return Err(HandshakeError::Mismatch("Sec-WebSocket-Accept"));
        }
        if subprotocol.map(text) != self.subprotocol.map(Some) {
            return Err(HandshakeError::Mismatch("Sec-WebSocket-Protocol"));
        }
        Ok(Some(Accepted { head_bytes }))
    }
}
