//! The little of the server's HTTP side that a load needs: users with tokens, and how to connect.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::server_process::AdminFile;

/// Bytes of one answer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The server's HTTP side.
#[derive(Clone, Debug)]
pub struct Admin {
    address: SocketAddr,
    token: String,
}

impl Admin {
    /// From the file that the server writes into its data folder.
    pub fn new(file: &AdminFile) -> Result<Self> {
        let address = file.address.trim_start_matches("http://").trim_end_matches('/');
        let address = address.parse().with_context(|| format!("`{}` is not HOST:PORT", file.address))?;
        Ok(Self { address, token: file.token.clone() })
    }

    /// Sends one request and reads the JSON answer; any status but 2xx is an error.
    pub async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = self.answer(method, path, &body.map(Value::to_string).unwrap_or_default()).await?;
        if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&body)?) }
    }

    /// One of the server's metrics, by its name and labels as `/metrics` prints them; `None` where it is not there.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = self.answer("GET", "/metrics", "").await?;
        Ok(metric_of(std::str::from_utf8(&text)?, name))
    }

    /// The sum of a metric over all its labels; `None` where it is not there.
    pub async fn metric_sum(&self, name: &str) -> Result<Option<f64>> {
        let text = self.answer("GET", "/metrics", "").await?;
        Ok(sum_of(std::str::from_utf8(&text)?, name))
    }

    /// The lines of metrics whose names begin so.
    pub async fn metric_lines(&self, names: &[&str]) -> Result<Vec<String>> {
        let text = self.answer("GET", "/metrics", "").await?;
        let lines = std::str::from_utf8(&text)?.lines();
        let wanted = lines.filter(|line| names.iter().any(|name| line.starts_with(name)));
        Ok(wanted.map(str::to_owned).collect())
    }

    async fn answer(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let mut stream =
            TcpStream::connect(self.address).await.context("cannot reach the server's HTTP side")?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")?;
        let head = std::str::from_utf8(&answer[..end])?;
        let status: u16 =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP status")?;
        let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
        let body = if chunked { unchunk(&answer[end + 4..])? } else { answer[end + 4..].to_vec() };
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}

/// The value behind a name with its labels.
fn metric_of(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The sum of the values behind a name with any labels or none.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest,
        };
        rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
    };
    text.lines().filter_map(value).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").context("a chunk without a length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..length).context("a cut chunk")?);
        rest = rest.get(length + 2..).context("a cut chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE a summary\na{quantile=\"0.5\"} 0.25\na_count 7\n";
        assert_eq!(metric_of(text, "a{quantile=\"0.5\"}"), Some(0.25));
        assert_eq!((metric_of(text, "a_count"), metric_of(text, "a")), (Some(7.0), None));
    }

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "a{lane=\"0\"} 2\na{lane=\"1\"} 3\na_total 7\nab 1\n";
        assert_eq!(
            (sum_of(text, "a"), sum_of(text, "a_total"), sum_of(text, "b")),
            (Some(5.0), Some(7.0), None)
        );
    }
}
