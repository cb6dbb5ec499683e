//! The floor of letting a session in: the same listener and handshake, one `recv`, one check of the token's signature, one
//! `send`. A process of its own, one thread.

use std::{
    future::Future,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fanfare_client::{
    connection::ConnectOptions,
    target::{Carrier, Target},
    tls::Trust,
};
use fanfare_proto::{
    ALPN, Frame, FrameType, SUBPROTOCOL, SessionId, UserId,
    session::server::{self, Policy},
    wire,
    ws::{self, Decoder, Event, Opcode, Role, Upgrade},
};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls_pki_types::PrivateKeyDer;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
};

use crate::{
    admin::Admin,
    measure::{
        machine::{Cores, allow_files},
        server::Transport,
        udp::endpoints,
    },
};

/// Name that the certificate is for.
const NAME: &str = "localhost";
/// Bytes of one read.
const READ_BYTES: usize = 4 * 1024;

/// What the process says when it listens.
#[derive(Serialize, Deserialize)]
struct Ready {
    port: u16,
}

/// The floor's process.
pub struct Floor {
    process: Child,
    targets: Vec<ConnectOptions>,
    trust: Option<Trust>,
}

impl Floor {
    /// Starts it with the key that the server's tokens are signed by.
    pub async fn start(cores: &Cores, transport: Transport, folder: &Path, admin: &Admin) -> Result<Self> {
        let answer = admin.request("GET", "/admin/v1/tokens/trust", None).await?;
        let key = answer["keys"][0]["public"].as_str().context("the server names no key")?.to_owned();
        let certificate = folder.join("floor.pem");
        let own = std::env::current_exe()?;
        let mut process = cores.as_server(|| {
            let mut command = Command::new(&own);
            command.args(["floor-accept", "--key", &key, "--transport", name(transport)]);
            command.arg("--certificate").arg(&certificate);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the floor")
        })?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("it is piped")?).read_line(&mut line)?;
        let ready: Ready = serde_json::from_str(&line).context("the floor did not start")?;
        let carrier = match transport {
            Transport::Ws => Carrier::WebSocket,
            Transport::Wss => Carrier::WebSocketTls,
            Transport::Quic => Carrier::Quic,
        };
        let trust = if carrier == Carrier::WebSocket { None } else { Some(Trust::ca_file(&certificate)?) };
        let target = Target { host: Ipv4Addr::LOCALHOST.to_string(), port: ready.port, carrier };
        let mut options = ConnectOptions::to(target);
        options.server_name = Some(NAME.into());
        let targets = match transport {
            Transport::Ws | Transport::Wss => vec![options],
            Transport::Quic => {
                endpoints()?.into_iter().map(|endpoint| options.clone().endpoint(endpoint)).collect()
            }
        };
        Ok(Self { process, targets, trust })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How one more session connects, with a whole handshake.
    pub fn stranger(&self, number: usize) -> Result<ConnectOptions> {
        let options =
            self.targets.get(number % self.targets.len()).context("there is a way to connect")?.clone();
        match &self.trust {
            Some(trust) => Ok(options.trust(trust)?),
            None => Ok(options),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Ws => "ws",
        Transport::Wss => "wss",
        Transport::Quic => "quic",
    }
}

/// `loadgen floor-accept`.
#[derive(clap::Args, Clone, Debug)]
pub struct FloorAccept {
    /// Public key of the tokens, hex.
    #[arg(long)]
    key: String,
    /// Over what they come.
    #[arg(long, value_enum)]
    transport: Transport,
    /// Where its certificate is written, for who connects.
    #[arg(long)]
    certificate: PathBuf,
}

/// The process.
pub fn run(arguments: &FloorAccept) -> Result<()> {
    allow_files(0)?;
    let key = Rc::new(DecodingKey::from_ed_der(&unhex(&arguments.key).context("a key in hex")?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, listen(arguments, key))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn ready(address: SocketAddr) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&Ready { port: address.port() })?)?;
    Ok(out.flush()?)
}

async fn listen(arguments: &FloorAccept, key: Rc<DecodingKey>) -> Result<()> {
    let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    if arguments.transport == Transport::Ws {
        let listener = TcpListener::bind(local).await?;
        ready(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            alone(websocket(stream, Rc::clone(&key)));
        }
    }
    let tls = tls(arguments)?;
    if arguments.transport == Transport::Wss {
        let listener = TcpListener::bind(local).await?;
        ready(listener.local_addr()?)?;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (acceptor, key) = (acceptor.clone(), Rc::clone(&key));
            alone(async move { websocket(acceptor.accept(stream).await?, key).await });
        }
    }
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), local)?;
    ready(endpoint.local_addr()?)?;
    while let Some(incoming) = endpoint.accept().await {
        alone(quic(incoming, Rc::clone(&key)));
    }
    bail!("the endpoint closed")
}

/// Runs a connection; whoever goes away ends it.
fn alone(connection: impl Future<Output = Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
}

fn tls(arguments: &FloorAccept) -> Result<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    std::fs::write(&arguments.certificate, made.cert.pem())?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    // As the gateway has it: one stateless ticket.
    tls.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    tls.send_tls13_tickets = 1;
    if arguments.transport == Transport::Quic {
        tls.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(tls)
}

async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, key: Rc<DecodingKey>) -> Result<()> {
    let mut bytes = Vec::with_capacity(READ_BYTES);
    let (answer, behind) = loop {
        ensure!(stream.read_buf(&mut bytes).await? > 0, "it left");
        match Upgrade::parse(&bytes) {
            Ok(Some((upgrade, size))) => break (upgrade.response(Some(SUBPROTOCOL)), size),
            Ok(None) => {}
            Err(refusal) => bail!("{refusal}"),
        }
    };
    stream.write_all(&answer).await?;
    bytes.drain(..behind);
    let mut decoder = Decoder::new(Role::Server, ws::Limits::FANFARE);
    let hello = loop {
        if bytes.is_empty() {
            ensure!(stream.read_buf(&mut bytes).await? > 0, "it left");
        }
        if let Some(Event::Message { payload, .. }) = decoder.next(&mut &mut bytes[..])? {
            break Bytes::from(payload.into_owned());
        }
        bytes.clear();
    };
    let welcome = answer_to(hello, &key)?;
    let mut header = [0; ws::SERVER_HEADER_BYTES_MAX];
    let size = ws::server_header(Opcode::Binary, welcome.len(), &mut header);
    let mut message = header[..size].to_vec();
    message.extend_from_slice(&welcome);
    stream.write_all(&message).await?;
    stream.flush().await?;
    drop((bytes, message));
    // It holds the connection until the other side lets go.
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

async fn quic(incoming: quinn::Incoming, key: Rc<DecodingKey>) -> Result<()> {
    let connection = incoming.await?;
    let (mut out, mut control) = connection.accept_bi().await?;
    let hello = control.read_chunk(READ_BYTES, true).await?.context("it left")?.bytes;
    out.write_all(&answer_to(hello, &key)?).await?;
    connection.closed().await;
    Ok(())
}

/// WELCOME for a HELLO whose token is signed by the key.
fn answer_to(mut hello: Bytes, key: &DecodingKey) -> Result<Bytes> {
    let frame = Frame::split_from(&mut hello).ok().flatten().context("no whole frame")?;
    ensure!(frame.frame_type() == FrameType::Hello, "not HELLO");
    let Ok(hello) = frame.decode::<wire::Hello>() else { bail!("a broken HELLO") };
    let (message, signature) = hello.token.rsplit_once('.').context("no token")?;
    let signed = jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::EdDSA)?;
    ensure!(signed, "not signed by the key");
    let welcome = server::Welcome {
        session: SessionId(1),
        user: UserId(1),
        user_name: "somebody".into(),
        server_time_ms: 0,
        resume: (Bytes::from_static(&[7; 96]), 0),
        token_until_ms: 0,
        acks_confirmed: 0,
        resumed: false,
        full: true,
    };
    Ok(server::welcome(welcome, &Policy::LOAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hex() {
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!((unhex("0"), unhex("zz")), (None, None));
    }
}
