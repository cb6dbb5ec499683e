//! The receiver's end: its URL, and one connection to it that is kept between requests.

use std::{fmt, future::Future, io, pin::Pin, str::FromStr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Bytes of an answer's body; nobody looks at them.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a URL.
const URL_BYTES_MAX: usize = 2_048;

/// Where pushes go: `http://` or `https://`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookUrl {
    tls: bool,
    /// Without the brackets of IPv6.
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl FromStr for HookUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(format!("`{text}` is neither https:// nor http://")),
        };
        let odd = |what: &str| Err(format!("`{text}`: {what}"));
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return odd("2,048 printable ASCII characters at most, without spaces");
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return odd("a name and a password have no place in it: pushes are signed");
        }
        if path.contains('#') {
            return odd("what follows # is not sent");
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return odd("the port is not one"),
            },
            None => return odd("the host is not one"),
        };
        if host.is_empty() {
            return odd("it names no host");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, host: host.to_owned(), port, authority: authority.to_owned(), path })
    }
}

/// Without its path and query, which may hold a secret of the receiver's.
impl fmt::Display for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// What a receiver answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After`, as it came.
    pub retry_after: Option<String>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection, polled only while a request is under way.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// One place from which requests go, one after the other.
pub struct Hook {
    url: HookUrl,
    tls: Arc<rustls::ClientConfig>,
    connection: Option<Connection>,
}

/// What a client trusts: the roots that browsers ship with.
pub fn tls_config() -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

impl Hook {
    /// To that URL; nothing is opened yet.
    pub fn new(url: HookUrl, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { url, tls, connection: None }
    }

    /// Posts a JSON body with these headers. A connection that was kept and turns out closed is opened anew, once.
    ///
    /// # Errors
    /// No answer came, and why. The receiver may have the request all the same.
    pub async fn post(&mut self, headers: &[(&str, String)], body: &Bytes) -> Result<Answer, String> {
        if let Some(kept) = self.connection.take()
            && let Ok(answer) = self.exchange(kept, headers, body).await
        {
            return Ok(answer);
        }
        let fresh = self.open().await.map_err(|error| format!("no connection: {error}"))?;
        self.exchange(fresh, headers, body).await
    }

    async fn open(&mut self) -> io::Result<Connection> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        if !self.url.tls {
            return connect(stream).await;
        }
        let name = rustls_pki_types::ServerName::try_from(self.url.host.clone()).map_err(io::Error::other)?;
        connect(TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?).await
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        headers: &[(&str, String)],
        body: &Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::post(&self.url.path)
            .header(header::HOST, &self.url.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("fanfare/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.clone())).map_err(|error| error.to_string())?;
        let (answer, is_whole) = {
            let Connection { sender, driver } = &mut connection;
            let mut exchange = std::pin::pin!(async {
                let response = sender.send_request(request).await;
                Ok::<_, String>(read(response.map_err(|error| format!("no answer: {error}"))?).await)
            });
            // The connection makes progress only while it is polled, and may end before the answer is read.
            tokio::select! {
                biased;
                done = &mut exchange => done?,
                _ = driver => return exchange.await.map(|(answer, _)| answer),
            }
        };
        if is_whole {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> io::Result<Connection> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    Ok(Connection { sender, driver: Box::pin(connection) })
}

/// The answer, and whether its body was read to its end.
async fn read(response: Response<Incoming>) -> (Answer, bool) {
    let retry_after = response.headers().get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let answer = Answer { status: response.status().as_u16(), retry_after };
    let is_whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.is_ok();
    (answer, is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_nothing_else_is() {
        let of = |text: &str| text.parse::<HookUrl>().map(|url| (url.tls, url.host, url.port, url.path));
        let is = |tls, host: &str, port, path: &str| Ok((tls, host.to_owned(), port, path.to_owned()));
        assert_eq!(of("https://push.example/in?x=1"), is(true, "push.example", 443, "/in?x=1"));
        assert_eq!(of("http://127.0.0.1:8080"), is(false, "127.0.0.1", 8080, "/"));
        assert_eq!(of("http://[::1]:9/a"), is(false, "::1", 9, "/a"));
        assert_eq!(of("https://[::1]"), is(true, "::1", 443, "/"));
        assert_eq!(of("http://a?b"), is(false, "a", 80, "/?b"));
        for odd in [
            "",
            "ftp://a",
            "a.example",
            "http://",
            "http://:80/",
            "http://a:0/",
            "http://a:x/",
            "http://u:p@a/",
            "http://a/#b",
            "http://a/ b",
            "http://[::1/",
            "http://[::1]x/",
            "http://a/\u{e9}",
        ] {
            assert!(of(odd).is_err(), "{odd}");
        }
        let url: HookUrl = "https://push.example:8443/secret?token=x".parse().expect("a URL");
        assert_eq!(url.to_string(), "https://push.example:8443");
    }
}
