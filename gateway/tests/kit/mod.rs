//! What the tests of the gateway share: a router that only pretends, tokens, and clients that can misbehave.
#![allow(dead_code, clippy::unwrap_used)]

pub mod blocking;
pub mod quic;
pub mod router;
pub mod token;
pub mod ws;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use fanfare_gateway::{Config, Gateway, Limits, ResumeKeys, TlsSource};
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, FrameType,
    frame::{routed, short},
    header::class,
    wire,
};
use router::Router;
use token::Issuer;

/// The channel that everybody who sends SYNC is in.
pub const CHANNEL: ChannelId = ChannelId(7);

pub struct House {
    pub gateway: Gateway,
    pub router: Arc<Router>,
    pub issuer: Issuer,
    pub resume: ResumeKeys,
    pub certificate: rustls_pki_types::CertificateDer<'static>,
}

impl House {
    /// A gateway with TLS on a free loopback port, one lane, deadlines looked at every 10 ms.
    pub fn new(change: impl FnOnce(&mut Config)) -> Self {
        let issuer = Issuer::new();
        let (certificate, key) = self_signed();
        let mut config = Config {
            lanes: 1,
            sweep: Duration::from_millis(10),
            tls: Some(TlsSource::Memory { chain: vec![certificate.clone()], key }),
            ..Config::default()
        };
        change(&mut config);
        let router = Arc::new(Router::default());
        let resume = ResumeKeys::new(&[(1, [9; 32])]);
        let gateway = Gateway::start(config, router.clone(), issuer.verifier(), resume.clone()).unwrap();
        router.connect(gateway.downlink());
        Self { gateway, router, issuer, resume, certificate }
    }

    /// The same with limits that no test reaches by accident.
    pub fn wide(change: impl FnOnce(&mut Config)) -> Self {
        Self::new(|config| {
            config.limits = Limits::LOAD;
            change(config);
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.gateway.addresses()[0]
    }

    pub fn hello(&self, user: u64) -> Bytes {
        hello(|hello| hello.token = self.issuer.token(user))
    }

    /// A WebSocket session of that user, behind its WELCOME.
    pub async fn session(&self, user: u64) -> ws::Client<tokio::net::TcpStream> {
        let mut client = ws::connect(self.address()).await;
        client.send(&self.hello(user)).await;
        client.frame(FrameType::Welcome).await;
        client
    }

    /// The same, in the audience of [`CHANNEL`].
    pub async fn synced(&self, user: u64) -> ws::Client<tokio::net::TcpStream> {
        let mut client = self.session(user).await;
        client.send(&sync()).await;
        client.frame(FrameType::Synced).await;
        client
    }
}

pub fn self_signed() -> (rustls_pki_types::CertificateDer<'static>, rustls_pki_types::PrivateKeyDer<'static>)
{
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let private = rustls_pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    (key.cert.der().clone(), private.into())
}

pub fn hello(change: impl FnOnce(&mut wire::Hello)) -> Bytes {
    let mut hello = wire::Hello { version_min: 1, version_max: 1, device: 11, ..Default::default() };
    change(&mut hello);
    short(FrameType::Hello, class::CONTROL, &hello)
}

pub fn ping(time_ms: u64) -> Bytes {
    short(FrameType::Ping, class::CONTROL, &wire::Ping { time_ms, quiet: false })
}

pub fn sync() -> Bytes {
    short(FrameType::Sync, class::CONTROL, &wire::Sync::default())
}

pub fn send(number: u64, text: &str) -> Bytes {
    let id = ClientMessageId::new(number, [0; 10]);
    let message = wire::Message { text: text.into(), ..Default::default() };
    let body = wire::Send {
        client_message_id: Bytes::copy_from_slice(&id.0),
        content: Some(wire::send::Content::Message(message)),
        ..Default::default()
    };
    routed(FrameType::Send, class::MESSAGE, 0, 0, CHANNEL, number, &body)
}

pub fn fetch(number: u64, messages_max: u32) -> Bytes {
    let body = wire::Fetch { messages_max, ..Default::default() };
    routed(FrameType::Fetch, class::HISTORY, 0, 0, CHANNEL, number, &body)
}

pub fn typing() -> Bytes {
    routed(FrameType::Typing, class::HINT, 0, 0, CHANNEL, 0, &wire::Typing::default())
}

pub fn auth(token: String) -> Bytes {
    short(FrameType::Auth, class::CONTROL, &wire::Auth { token, ..Default::default() })
}

/// The error number in a CLOSE, ERROR, REFUSED or SEND_ACK.
pub fn code_of(frame: &Frame) -> Code {
    Code(match frame.frame_type() {
        FrameType::SendAck => frame.decode::<wire::SendAck>().unwrap().code,
        _ => frame.decode::<wire::Error>().unwrap().code,
    } as u16)
}

/// Waits until something holds, up to 10 s.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
