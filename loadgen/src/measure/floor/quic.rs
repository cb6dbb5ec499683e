//! quinn alone: the same bytes, written to one stream of as many connections, by one thread.

use std::{
    cell::Cell,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use quinn::{
    Connection, Endpoint, SendStream, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::LocalSet,
};

use super::{Order, Ready, Taken, say, thread_cpu_ns};
use crate::measure::udp::endpoints;

/// Name that the certificate is for.
const NAME: &str = "localhost";
/// Longest certificate that the readers take, in bytes.
const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one read of a stream.
const READ_BYTES: usize = 64 * 1024;
/// Asks the readers how many datagrams they have received.
const COUNT: u64 = u64::MAX;
/// From the last pass to the last look at CPU: acknowledgements are held back for less than that.
const ACKNOWLEDGED: Duration = Duration::from_millis(50);

fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// The loop's process.
pub fn send(sockets: usize) -> Result<()> {
    on_one_thread(async {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = made.cert.der().clone();
        let endpoint =
            Endpoint::server(server_config(&certificate, made.signing_key.serialize_der())?, loopback())?;
        let listener = TcpListener::bind(loopback()).await?;
        let ready = Ready { address: listener.local_addr()? };
        say(&ready)?;
        let (mut control, _) = listener.accept().await?;
        control.set_nodelay(true)?;
        control.write_u16(endpoint.local_addr()?.port()).await?;
        control.write_u32(certificate.len() as u32).await?;
        control.write_all(&certificate).await?;
        let mut streams = Vec::with_capacity(sockets);
        while streams.len() < sockets {
            let connection = endpoint.accept().await.context("the endpoint is closed")?.await?;
            streams.push(connection.open_uni().await?);
        }
        say(&ready)?;
        let mut orders = BufReader::new(tokio::io::stdin());
        let mut text = String::new();
        while orders.read_line(&mut text).await? > 0 {
            let order = Order::parse(&text)?;
            text.clear();
            say(&passes(&mut streams, &mut control, order).await?)?;
        }
        Ok(())
    })
}

async fn passes(streams: &mut [SendStream], control: &mut TcpStream, order: Order) -> Result<Taken> {
    let payload = vec![0xa5; order.bytes as usize];
    let mut taken = Taken::default();
    let datagrams = count(control).await?;
    let cpu = thread_cpu_ns();
    for _ in 0..order.passes {
        control.write_u64_le(order.bytes).await?;
        let began = Instant::now();
        for stream in &mut *streams {
            stream.write_all(&payload).await?;
        }
        control.read_u8().await.context("the floor's readers did not get everything")?;
        taken.read_us.push(began.elapsed().as_micros() as u64);
    }
    tokio::time::sleep(ACKNOWLEDGED).await;
    taken.cpu_ns = thread_cpu_ns() - cpu;
    taken.pass_us.clone_from(&taken.read_us);
    taken.datagrams = Some(count(control).await?.saturating_sub(datagrams));
    Ok(taken)
}

async fn count(control: &mut TcpStream) -> Result<u64> {
    control.write_u64_le(COUNT).await?;
    Ok(control.read_u64_le().await?)
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn server_config(certificate: &CertificateDer<'static>, key: Vec<u8>) -> Result<quinn::ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(key.into());
    let tls = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()?));
    Ok(config)
}

/// Low stream limits and bounded windows, as a gateway has them.
fn transport() -> Result<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(3))
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .receive_window(VarInt::from_u32(256 * 1024))
        .send_window(256 * 1024)
        .max_idle_timeout(Some(Duration::from_secs(600).try_into()?));
    Ok(transport)
}

/// The readers' process.
pub fn read(address: SocketAddr, sockets: usize) -> Result<()> {
    on_one_thread(async {
        let mut control = TcpStream::connect(address).await?;
        control.set_nodelay(true)?;
        let server = SocketAddr::new(address.ip(), control.read_u16().await?);
        let bytes = control.read_u32().await? as usize;
        if bytes > CERTIFICATE_BYTES_MAX {
            bail!("a certificate of {bytes} bytes");
        }
        let mut certificate = vec![0; bytes];
        control.read_exact(&mut certificate).await?;
        let (received, arrived) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let connections = connect(server, certificate.into(), sockets, &received, &arrived).await?;
        // The loop's end closes it.
        while let Ok(asked) = control.read_u64_le().await {
            if asked == COUNT {
                let datagrams =
                    connections.iter().map(|connection| connection.stats().udp_rx.datagrams).sum();
                control.write_u64_le(datagrams).await?;
                continue;
            }
            let wanted = asked.saturating_mul(sockets as u64);
            while received.get() < wanted {
                arrived.notified().await;
            }
            received.set(received.get() - wanted);
            control.write_u8(1).await?;
        }
        Ok(())
    })
}

async fn connect(
    server: SocketAddr,
    certificate: CertificateDer<'static>,
    sockets: usize,
    received: &Rc<Cell<u64>>,
    arrived: &Rc<Notify>,
) -> Result<Vec<Connection>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = transport()?;
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    let endpoints = endpoints()?;
    let mut connections = Vec::with_capacity(sockets);
    for number in 0..sockets {
        let connecting = endpoints[number % endpoints.len()].connect_with(config.clone(), server, NAME)?;
        let connection = connecting.await?;
        let (reader, received, arrived) = (connection.clone(), Rc::clone(received), Rc::clone(arrived));
        tokio::task::spawn_local(async move {
            let Ok(mut stream) = reader.accept_uni().await else { return };
            while let Ok(Some(chunk)) = stream.read_chunk(READ_BYTES, true).await {
                received.set(received.get() + chunk.bytes.len() as u64);
                arrived.notify_one();
            }
        });
        connections.push(connection);
    }
    Ok(connections)
}
