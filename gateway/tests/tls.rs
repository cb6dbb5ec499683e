//! Sessions over WebSocket and TLS with peers that cut, delay, change keys and do wrong.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use fanfare_proto::{Code, FrameType, wire};
use kit::{
    House, fetch, ping, send, sync,
    ws::{Client, connect_tls, connect_tls_over, tls_config},
};
use rustls::{ConnectionTrafficSecrets, HandshakeKind, version};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

type Stream = TlsStream<TcpStream>;

async fn session(house: &House, config: Arc<rustls::ClientConfig>) -> Client<Stream> {
    let stream = TcpStream::connect(house.address()).await.unwrap();
    let mut client = connect_tls_over(stream, config, house.address()).await;
    open(house, &mut client).await;
    client
}

async fn open<S: AsyncRead + AsyncWrite + Unpin>(house: &House, client: &mut Client<S>) {
    client.send(&house.hello(5)).await;
    client.frame(FrameType::Welcome).await;
    client.send(&sync()).await;
    client.frame(FrameType::Synced).await;
}

async fn pinged<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, time_ms: u64) {
    client.send(&ping(time_ms)).await;
    let pong: wire::Pong = client.frame(FrameType::Pong).await.decode().unwrap();
    assert_eq!(pong.time_ms, time_ms);
}

/// Writes one byte at a time, each in a segment of its own.
struct Dribble(TcpStream);

impl AsyncRead for Dribble {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dribble {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_peer_that_writes_byte_by_byte_is_understood() {
    let house = House::new(|_| ());
    for versions in [[&version::TLS13], [&version::TLS12]] {
        let stream = TcpStream::connect(house.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let config = Arc::new(tls_config(&house.certificate, &versions));
        let mut client = connect_tls_over(Dribble(stream), config, house.address()).await;
        open(&house, &mut client).await;
        pinged(&mut client, 1).await;
        client.send(&send(1, &"x".repeat(3_000))).await;
        house.router.deliver("between");
        pinged_among_others(&mut client, 2).await;
    }
}

async fn pinged_among_others<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, time_ms: u64) {
    client.send(&ping(time_ms)).await;
    loop {
        match client.said().await {
            kit::ws::Said::Frame(frame) if frame.frame_type() == FrameType::Pong => return,
            kit::ws::Said::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn keys_change_on_the_way() {
    let house = House::new(|_| ());
    let mut client = connect_tls(house.address(), &house.certificate).await;
    open(&house, &mut client).await;
    for round in 1..=40 {
        // Asks for new keys of the server's, too.
        client.stream.get_mut().1.refresh_traffic_keys().unwrap();
        client.send(&fetch(round, 2)).await;
        client.frame(FrameType::Page).await;
        client.frame(FrameType::Page).await;
        house.router.deliver("under the new keys");
        client.frame(FrameType::Deliver).await;
    }
}

#[tokio::test]
async fn much_goes_both_ways() {
    let house = House::wide(|_| ());
    *house.router.page.lock() = (20_000, 20);
    let mut client = connect_tls(house.address(), &house.certificate).await;
    open(&house, &mut client).await;
    for number in 1..=50 {
        client.send(&send(number, &"y".repeat(12_000))).await;
    }
    let (mut acked, mut delivered) = (0, 0);
    while acked + delivered < 100 {
        match client.said().await {
            kit::ws::Said::Frame(frame) if frame.frame_type() == FrameType::SendAck => acked += 1,
            kit::ws::Said::Frame(frame) if frame.frame_type() == FrameType::Deliver => {
                delivered += 1;
                assert_eq!(frame.routed().unwrap().seq, delivered);
            }
            other => panic!("{other:?}"),
        }
    }
    client.send(&fetch(9, 20)).await;
    for page in 1..=20 {
        let page_of: wire::Page = client.frame(FrameType::Page).await.decode().unwrap();
        assert_eq!((page_of.more, page_of.frames.len() > 20_000), (page != 20, true));
    }
    pinged(&mut client, 7).await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let house = House::wide(|config| config.limits.outgoing_ms_max = 600_000);
    let stream = TcpStream::connect(house.address()).await.unwrap();
    socket2::SockRef::from(&stream).set_recv_buffer_size(8 * 1024).unwrap();
    let config = Arc::new(tls_config(&house.certificate, rustls::DEFAULT_VERSIONS));
    let mut client = connect_tls_over(stream, config, house.address()).await;
    open(&house, &mut client).await;
    let mut seq = 0;
    // Until the kernel takes no more and much waits here.
    while house.gateway.stats().waiting_bytes < 200_000 {
        house.router.deliver(&"z".repeat(1_000 + 10 * (seq as usize % 700)));
        seq += 1;
        if seq % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(11)).await;
        }
    }
    // Keys change while much waits.
    client.stream.get_mut().1.refresh_traffic_keys().unwrap();
    client.send(&ping(5)).await;
    for expected in 1..=seq {
        let frame = client.frame(FrameType::Deliver).await;
        assert_eq!(frame.routed().unwrap().seq, expected);
        if expected % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    client.frame(FrameType::Pong).await;
}

#[tokio::test]
async fn both_directions_end_with_close_notify() {
    let house = House::new(|_| ());
    // Ours first.
    let mut client = connect_tls(house.address(), &house.certificate).await;
    open(&house, &mut client).await;
    house
        .router
        .down(fanfare_proto::link::Down::Kick { handle: house.router.handle_of(5), code: Code::REVOKED });
    let mut rest = Vec::new();
    // Without close_notify this would be an error.
    client.stream.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.is_empty());
    client.stream.shutdown().await.unwrap();
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;

    // The peer's first.
    let mut client = connect_tls(house.address(), &house.certificate).await;
    open(&house, &mut client).await;
    client.stream.shutdown().await.unwrap();
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn what_is_no_record_is_answered_with_an_alert() {
    use rustls::AlertDescription::{BadRecordMac, DecodeError};
    let cases: [(&[u8], _); 3] = [
        (&[0xff; 64], DecodeError),
        (
            &[
                23, 3, 3, 0, 32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
            ],
            BadRecordMac,
        ),
        (&[23, 3, 3, 0xff, 0xff, 0], DecodeError),
    ];
    for (bytes, alert) in cases {
        let house = House::new(|_| ());
        let mut client = connect_tls(house.address(), &house.certificate).await;
        open(&house, &mut client).await;
        // What came before still counts.
        client.send(&send(1, "before")).await;
        client.stream.get_mut().0.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let error = client.stream.read_to_end(&mut rest).await.unwrap_err();
        let known = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        assert!(matches!(known, Some(rustls::Error::AlertReceived(was)) if *was == alert), "{error}");
        kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
        assert!(house.router.frames.lock().iter().any(|(_, frame)| frame.frame_type() == FrameType::Send));
    }
}

#[tokio::test]
async fn a_returning_client_resumes_under_both_versions() {
    let house = House::new(|_| ());
    for version in [&version::TLS13, &version::TLS12] {
        let config = Arc::new(tls_config(&house.certificate, &[version]));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let client = session(&house, config.clone()).await;
            let tls = client.stream.get_ref().1;
            assert_eq!((tls.handshake_kind(), tls.protocol_version()), (Some(kind), Some(version.version)));
        }
    }
}

/// A client that seals its records by itself, and reads none.
struct Sealer {
    socket: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    seq: u64,
}

impl Sealer {
    async fn new(house: &House) -> Self {
        let mut config = tls_config(&house.certificate, &[&version::TLS13]);
        config.enable_secret_extraction = true;
        let client = session(house, Arc::new(config)).await;
        let (socket, tls) = client.stream.into_inner();
        let (seq, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
        Self { socket, key, iv: iv.as_ref().try_into().unwrap(), seq }
    }

    async fn record(&mut self, content_type: u8, content: &[u8]) {
        let mut nonce = self.iv;
        for (byte, seq) in nonce[4..].iter_mut().zip(self.seq.to_be_bytes()) {
            *byte ^= seq;
        }
        self.seq += 1;
        let mut sealed = [content, &[content_type]].concat();
        let size = ((sealed.len() + 16) as u16).to_be_bytes();
        let header = [23, 3, 3, size[0], size[1]];
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
        let _ = self.socket.write_all(&[&header[..], &sealed].concat()).await;
    }

    /// Reads until a record of data has come.
    async fn hears(&mut self) {
        let mut header = [0; 5];
        let read = async {
            self.socket.read_exact(&mut header).await.unwrap();
            let mut rest = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
            self.socket.read_exact(&mut rest).await.unwrap();
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("the server says nothing");
        assert_eq!(header[0], 23);
    }
}

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

#[tokio::test]
async fn a_key_update_in_pieces_does_not_stop_what_goes_out() {
    let house = House::new(|_| ());
    let mut client = Sealer::new(&house).await;
    client.record(HANDSHAKE, &[24, 0]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    house.router.deliver("between the pieces");
    client.hears().await;
    client.record(HANDSHAKE, &[0, 1]).await;
    house.router.deliver("and again");
    client.hears().await;
    client.record(HANDSHAKE, &[1]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    house.router.deliver("under new keys, behind the update that was asked for");
    client.hears().await;
    client.hears().await;
    assert_eq!(house.gateway.stats().connections, 1);
}

#[tokio::test]
async fn empty_records_are_borne_for_a_while() {
    let house = House::new(|_| ());
    let mut client = Sealer::new(&house).await;
    for _ in 0..32 {
        client.record(DATA, &[]).await;
    }
    // A pong that nobody asked for: a frame of two bytes and its mask.
    client.record(DATA, &[0x8a, 0x80, 0, 0, 0, 0]).await;
    for _ in 0..32 {
        client.record(DATA, &[]).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(house.gateway.stats().connections, 1);
    client.record(DATA, &[]).await;
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn data_between_the_pieces_of_a_handshake_message_is_refused() {
    let house = House::new(|_| ());
    let mut client = Sealer::new(&house).await;
    client.record(HANDSHAKE, &[24, 0]).await;
    client.record(DATA, &[0x8a, 0x80, 0, 0, 0, 0]).await;
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn a_handshake_of_nonsense_costs_nothing() {
    let house = House::wide(|_| ());
    for tail in 0..200u8 {
        // The beginning of a handshake record, and then anything.
        let mut bytes = vec![22, 3, 1, 0, tail];
        bytes.extend((0..400u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ tail));
        let mut socket = TcpStream::connect(house.address()).await.unwrap();
        let (first, second) = bytes.split_at(usize::from(tail));
        let _ = socket.write_all(first).await;
        let _ = socket.write_all(second).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    }
    let mut client = connect_tls(house.address(), &house.certificate).await;
    open(&house, &mut client).await;
}
