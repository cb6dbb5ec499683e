//! How commands speak to the running server: HTTP on the address of `admin.json`, with its token. One connection per
//! request; commands make few.

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
    failure::{Failure, Outcome},
};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A way to the running server.
#[derive(Clone, Debug)]
pub struct AdminClient {
    file: AdminFile,
    folder: PathBuf,
    timeout: Duration,
}

impl AdminClient {
    /// To the server of that data folder.
    ///
    /// # Errors
    /// UNREACHABLE where no server says that it runs there.
    pub fn of_folder(folder: PathBuf, timeout: Duration) -> Outcome<Self> {
        match AdminFile::read(&folder) {
            Some(file) => Ok(Self { file, folder, timeout }),
            None => Err(Failure::new(Code::UNREACHABLE, format!("no server runs on {}", folder.display()))
                .why("the folder has no admin.json, which a ready server writes")
                .advise("fanfare start --dev", "starts one here")
                .advise("fanfare ... --data DIR", "if its data is elsewhere")),
        }
    }

    /// What the server wrote about itself.
    pub fn file(&self) -> &AdminFile {
        &self.file
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

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Outcome<Value> {
        match tokio::time::timeout(timeout, self.exchange(method, path, body)).await {
            Ok(Ok((status, bytes))) => answer(status, &bytes),
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
        let request = Request::builder()
            .method(method)
            .uri(format!("/admin/v1{path}"))
            .header(header::HOST, &self.file.address)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.file.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?;
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
        let what =
            format!("the server of {} does not answer at {}", self.folder.display(), self.file.address);
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
