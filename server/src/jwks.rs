//! Keys of an embedder's own issuer: a JWKS (RFC 7517) from a file or over HTTP, read again every minute. Only Ed25519
//! keys are taken, so that no token chooses its algorithm. Where it cannot be read the keys in force stay.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_gateway::Verifier;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};

/// How often it is read again: a key that is to sign must stand in it for as long before.
pub const EVERY: Duration = Duration::from_secs(60);
/// Longest wait for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Longest JWKS.
const BYTES_MAX: usize = 64 * 1024;
/// Keys of one issuer.
const KEYS_MAX: usize = 16;
/// Bytes of a key's id.
const KID_BYTES_MAX: usize = 128;

/// An issuer whose tokens are taken, and where its keys are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trusted {
    /// `iss` of its tokens.
    pub issuer: String,
    source: Source,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    File(PathBuf),
    Url { tls: bool, host: String, port: u16, path: String },
}

impl Trusted {
    /// `ISSUER=https://host/path`, `ISSUER=http://127.0.0.1:port/path` (loopback alone), or `ISSUER=FILE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (issuer, place) = text
            .split_once('=')
            .filter(|(issuer, place)| !issuer.trim().is_empty() && !place.trim().is_empty())
            .ok_or_else(|| format!("`{text}` is not ISSUER=URL or ISSUER=FILE"))?;
        let place = place.trim();
        let (tls, rest) = match (place.strip_prefix("https://"), place.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Ok(Self { issuer: issuer.trim().to_owned(), source: Source::File(place.into()) }),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => {
                (host, port.parse().map_err(|_| format!("`{authority}` is not a host and a port"))?)
            }
            None => (authority, if tls { 443 } else { 80 }),
        };
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if host.is_empty() || !tls && !loopback {
            return Err(format!("`{place}`: keys are read over https, or from loopback"));
        }
        let source = Source::Url { tls, host: host.to_owned(), port, path: format!("/{path}") };
        Ok(Self { issuer: issuer.trim().to_owned(), source })
    }

    /// Its keys as they are now: ids with the 32 bytes of each.
    ///
    /// # Errors
    /// It cannot be read, or is not a JWKS.
    pub async fn read(&self) -> Result<Vec<(String, [u8; 32])>> {
        let bytes = match &self.source {
            Source::File(path) => {
                let bytes = tokio::fs::read(path).await.with_context(|| path.display().to_string())?;
                if bytes.len() > BYTES_MAX {
                    bail!("{} is over {BYTES_MAX} bytes", path.display());
                }
                bytes.into()
            }
            Source::Url { tls, host, port, path } => {
                let exchange = fetch(*tls, host, *port, path);
                tokio::time::timeout(ANSWER_TIME, exchange)
                    .await
                    .with_context(|| format!("{host}:{port}{path}: no answer within {ANSWER_TIME:?}"))?
                    .with_context(|| format!("{host}:{port}{path}"))?
            }
        };
        keys(&bytes)
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    x: String,
    alg: Option<String>,
    r#use: Option<String>,
}

fn keys(bytes: &[u8]) -> Result<Vec<(String, [u8; 32])>> {
    let set: Set = serde_json::from_slice(bytes).context("this is not a JWKS")?;
    let mut keys = Vec::new();
    for key in set.keys.into_iter().take(KEYS_MAX) {
        let ours = key.kty == "OKP"
            && key.crv == "Ed25519"
            && key.alg.is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519")
            && key.r#use.is_none_or(|purpose| purpose == "sig")
            && (1..=KID_BYTES_MAX).contains(&key.kid.len());
        let bytes = URL_SAFE_NO_PAD.decode(&key.x).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        match bytes.filter(|_| ours) {
            Some(bytes) => keys.push((key.kid, bytes)),
            None => {
                tracing::warn!(kid = %key.kid, "a key of a JWKS is passed over: it is not Ed25519 with an id")
            }
        }
    }
    Ok(keys)
}

async fn fetch(tls: bool, host: &str, port: u16, path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect((host, port)).await?;
    if !tls {
        return exchange(stream, host, port, path).await;
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = rustls_pki_types::ServerName::try_from(host.to_owned())?;
    exchange(connector.connect(name, stream).await?, host, port, path).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    host: &str,
    port: u16,
    path: &str,
) -> Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("it answers {}", response.status());
        }
        let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
        Ok(body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes())
    };
    // The connection makes progress only while it is polled, beside the request, and may end before the answer is read.
    let (mut connection, mut exchange) = (std::pin::pin!(connection), std::pin::pin!(exchange));
    tokio::select! {
        biased;
        done = &mut exchange => done,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

/// Reads the keys of all these issuers now and every minute from then on, until it is aborted.
pub fn start(trusted: Vec<Trusted>, verifier: Verifier) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut turn = tokio::time::interval(EVERY);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            for one in &trusted {
                match one.read().await {
                    Ok(keys) => {
                        if verifier.trust(&one.issuer, &keys) {
                            tracing::info!(issuer = %one.issuer, keys = keys.len(), "trusted keys were read");
                        }
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(issuer = %one.issuer, %error, "trusted keys cannot be read; those in force stay");
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_can_sign_our_tokens_are_taken() {
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        let good =
            format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{x}","use":"sig","alg":"EdDSA"}}"#);
        let odd = [
            r#"{"kty":"RSA","kid":"b","n":"AQAB","e":"AQAB"}"#.to_owned(),
            good.replace("\"a\"", "\"\""),
            good.replace("Ed25519", "X25519"),
            good.replace("EdDSA", "HS256"),
            good.replace("sig", "enc"),
            good.replace(&x, &x[1..]),
        ];
        let set = format!(r#"{{"keys":[{good},{}]}}"#, odd.join(","));
        assert_eq!(keys(set.as_bytes()).expect("a set"), [("a".to_owned(), [7; 32])]);
        assert!(keys(b"{}").is_err() && keys(b"nonsense").is_err());
    }

    #[test]
    fn places_are_https_loopback_or_files() {
        let of = |text: &str| Trusted::parse(text).map(|trusted| trusted.source);
        let url = |tls, host: &str, port, path: &str| Source::Url {
            tls,
            host: host.into(),
            port,
            path: path.into(),
        };
        assert_eq!(of("me=https://id.example/keys/1"), Ok(url(true, "id.example", 443, "/keys/1")));
        assert_eq!(of("me = http://127.0.0.1:8080/k"), Ok(url(false, "127.0.0.1", 8080, "/k")));
        assert_eq!(of("me=./keys.json"), Ok(Source::File("./keys.json".into())));
        for odd in ["", "me", "=x", "me=", "me=http://id.example/keys", "me=https://:443/", "me=https://a:b/"]
        {
            assert!(of(odd).is_err(), "{odd}");
        }
    }
}
