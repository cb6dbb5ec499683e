//! How commands speak to the running server: HTTP on the address of `admin.json`, or of a context, with its token. One
//! connection per request; commands make few.

use std::{path::PathBuf, time::Duration};

use axum::body::Bytes;
use fanfare_proto::Code;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    admin_file::AdminFile,
    contexts::Reach,
    failure::{Failure, Outcome},
};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A way to the running server.
#[derive(Clone, Debug)]
pub struct AdminClient {
    file: AdminFile,
    /// The data folder, or the context's name.
    of: Of,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Of {
    Folder(PathBuf),
    Context(String),
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct Door {
    /// `host:port` of QUIC and WebSocket.
    pub gateway: String,
    /// Its certificates' SHA-256, hex, where they are self-signed.
    pub certificate_sha256: Vec<String>,
    /// Plain WebSocket is served there.
    pub plain: bool,
}

impl AdminClient {
    /// To the server of that data folder.
    ///
    /// # Errors
    /// UNREACHABLE where no server says that it runs there.
    pub fn of_folder(folder: PathBuf, timeout: Duration) -> Outcome<Self> {
        match AdminFile::read(&folder) {
            Some(file) => Ok(Self { file, of: Of::Folder(folder), timeout }),
            None => Err(Failure::new(Code::UNREACHABLE, format!("no server runs on {}", folder.display()))
                .why("the folder has no admin.json, which a ready server writes")
                .advise("fanfare start --dev", "starts one here")
                .advise("fanfare ... --data DIR", "if its data is elsewhere")),
        }
    }

    /// To the server of a context.
    pub fn of_context(reach: Reach, timeout: Duration) -> Self {
        let file = AdminFile {
            schema: String::new(),
            address: reach.address,
            token: reach.token,
            gateway: String::new(),
            certificate_sha256: Vec::new(),
            dev: false,
            pid: 0,
            started: String::new(),
        };
        Self { file, of: Of::Context(reach.name), timeout }
    }

    /// What the server wrote about itself; of a context, its address only.
    pub fn file(&self) -> &AdminFile {
        &self.file
    }

    /// The context, where it is one.
    pub fn context(&self) -> Option<&str> {
        match &self.of {
            Of::Folder(_) => None,
            Of::Context(name) => Some(name),
        }
    }

    /// Where clients connect: as `admin.json` has it, or as a context's server publishes it.
    ///
    /// # Errors
    /// UNREACHABLE, or INTERNAL where the answer is another server's.
    pub async fn door(&self) -> Outcome<Door> {
        if matches!(self.of, Of::Folder(_)) {
            let (gateway, certificate_sha256) =
                (self.file.gateway.clone(), self.file.certificate_sha256.clone());
            return Ok(Door { gateway, certificate_sha256, plain: true });
        }
        let (status, bytes) = self.ask(Method::GET, "/.well-known/fanfare.json", None, self.timeout).await?;
        let discovery = answer(status, &bytes)?;
        let first = &discovery["gateways"][0];
        let port = first["port"].as_u64().filter(|port| (1..=65_535).contains(port));
        let (Some(host), Some(port)) = (first["host"].as_str(), port) else {
            return Err(Failure::internal(format!("{} names no gateway", self.file.address)));
        };
        let loopback = |host: &str| {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        // A server that listens on every address does not know by which name it is reached: by this one.
        let own = self.file.address.rsplit_once(':').map_or("localhost", |(host, _)| host);
        let host = if host == "localhost" { own } else { host };
        let plain = loopback(host.trim_matches(['[', ']']));
        let host =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.into() };
        let hashes = discovery["certificate_sha256"].as_array().into_iter().flatten();
        let certificate_sha256 = hashes.filter_map(|hash| hash.as_str().map(str::to_owned)).collect();
        Ok(Door { gateway: format!("{host}:{port}"), certificate_sha256, plain })
    }

    /// A page of HTTP that is text.
    ///
    /// # Errors
    /// UNREACHABLE, or what the server answered.
    pub async fn text(&self, path: &str) -> Outcome<String> {
        let (status, bytes) = self.ask(Method::GET, path, None, self.timeout).await?;
        if !status.is_success() {
            answer(status, &bytes)?;
        }
        String::from_utf8(bytes.to_vec())
            .map_err(|error| Failure::internal(format!("{path} of the server is not text")).why(error))
    }

    /// Asks.
    ///
    /// # Errors
    /// UNREACHABLE, or what the server answered.
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.request(Method::GET, path, None, self.timeout).await
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// UNREACHABLE, or what the server answered.
    pub async fn post(&self, path: &str, body: &Value) -> Outcome<Value> {
        self.request(Method::POST, path, Some(body), self.timeout).await
    }

    /// Asks for something that takes as long as it takes.
    ///
    /// # Errors
    /// UNREACHABLE, or what the server answered.
    pub async fn post_slow(&self, path: &str, body: &Value) -> Outcome<Value> {
        self.request(Method::POST, path, Some(body), Duration::from_secs(24 * 3600)).await
    }

    /// Asks for a long answer and hands on its parts as they come, each within the time of one answer.
    ///
    /// # Errors
    /// UNREACHABLE, or what the server answered; INTERNAL where the answer broke off. Of `take`.
    pub async fn stream(&self, path: &str, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Outcome {
        let late = || self.unreachable().why(format!("no answer within {:?}", self.timeout));
        let begun = tokio::time::timeout(self.timeout, async {
            let stream = TcpStream::connect(&self.file.address).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let request = self.asking(Method::GET, &format!("/admin/v1{path}"), None)?;
            // The request goes out and the answer comes in only while the connection is polled: here, and below.
            let mut connection = Box::pin(connection);
            let mut response = Box::pin(sender.send_request(request));
            let response = tokio::select! {
                biased;
                response = &mut response => response?,
                ended = &mut connection => {
                    ended?;
                    response.await?
                }
            };
            anyhow::Ok((connection, response))
        });
        let (mut connection, response) =
            begun.await.map_err(|_| late())?.map_err(|error| self.unreachable().why(error))?;
        let status = response.status();
        let mut body = response.into_body();
        let mut whole = Vec::new();
        let mut connected = true;
        loop {
            let frame = tokio::time::timeout(self.timeout, async {
                tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    // Its end is told by the body, too.
                    _ = &mut connection, if connected => {
                        connected = false;
                        body.frame().await
                    }
                }
            });
            let Some(frame) = frame.await.map_err(|_| late())? else { break };
            let frame =
                frame.map_err(|error| Failure::internal("the server's answer broke off").why(error))?;
            let Some(part) = frame.data_ref() else { continue };
            if status.is_success() {
                take(part)?;
            } else if whole.len() + part.len() <= ANSWER_BYTES_MAX {
                whole.extend_from_slice(part);
            }
        }
        if status.is_success() { Ok(()) } else { answer(status, &whole).map(drop) }
    }

    fn asking(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        Ok(Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.file.address)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.file.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Outcome<Value> {
        let (status, bytes) = self.ask(method, &format!("/admin/v1{path}"), body, timeout).await?;
        answer(status, &bytes)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Outcome<(StatusCode, Bytes)> {
        match tokio::time::timeout(timeout, self.exchange(method, path, body)).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(error)) => Err(self.unreachable().why(error)),
            Err(_) => Err(self.unreachable().why(format!("no answer within {timeout:?}"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect(&self.file.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = self.asking(method, path, body)?;
        // The connection makes progress only while it is polled, beside the request.
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
            anyhow::Ok((status, bytes))
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => done,
            ended = &mut connection => {
                ended?;
                exchange.await
            }
        }
    }

    /// The failure of a server that does not answer.
    pub fn unreachable(&self) -> Failure {
        let address = &self.file.address;
        let folder = match &self.of {
            Of::Folder(folder) => folder,
            Of::Context(name) => {
                let what = format!("the server of context {name} does not answer at {address}");
                return Failure::new(Code::UNREACHABLE, what)
                    .advise(format!("fanfare context show {name}"), "prints where it is looked for");
            }
        };
        let what = format!("the server of {} does not answer at {address}", folder.display());
        Failure::new(Code::UNREACHABLE, what)
            .why(format!("it was process {}, started {}", self.file.pid, self.file.started))
            .advise("fanfare start --dev", "if it has ended")
            .advise("fanfare status --timeout 30s", "if it is busy")
    }
}

fn answer(status: StatusCode, bytes: &[u8]) -> Outcome<Value> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        Failure::internal(format!("the server's answer ({status}) is not JSON")).why(error)
    })?;
    if status.is_success() {
        return Ok(value);
    }
    let number = value["number"].as_u64().and_then(|number| u16::try_from(number).ok());
    let code = number.map_or(Code::INTERNAL, Code);
    let detail = value["detail"].as_str().or(value["title"].as_str()).unwrap_or("the server refused");
    Err(Failure::new(code, detail))
}

/// A text as one segment of a path.
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn segments_hide_everything_that_means_something_in_a_path() {
        assert_eq!(super::segment("a b/@ö"), "a%20b%2F%40%C3%B6");
    }
}
