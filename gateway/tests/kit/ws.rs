//! A WebSocket client that can send anything.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use fanfare_proto::{
    Code, Frame, FrameType, SUBPROTOCOL, WS_PATH,
    ws::{ClientRequest, Decoder, Event, Limits, Opcode, Role, client_frame},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// What the server said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Frame(Frame),
    Pong(Vec<u8>),
    /// A close frame with this code; 0 without one.
    Close(u16),
    /// The socket ended.
    End,
}

pub struct Client<S> {
    pub stream: S,
    decoder: Decoder,
    said: VecDeque<Said>,
    /// Messages (not frames) that came.
    pub messages: usize,
}

pub fn request(address: &str) -> ClientRequest<'_> {
    ClientRequest {
        host: address,
        target: WS_PATH,
        subprotocol: Some(SUBPROTOCOL),
        origin: None,
        authorization: None,
        nonce: [7; 16],
    }
}

pub async fn connect(address: SocketAddr) -> Client<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    upgrade(stream, address).await
}

/// What a client must trust to connect.
pub fn tls_config(
    certificate: &CertificateDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub async fn connect_tls(
    address: SocketAddr,
    certificate: &CertificateDer<'static>,
) -> Client<TlsStream<TcpStream>> {
    let config = Arc::new(tls_config(certificate, rustls::DEFAULT_VERSIONS));
    connect_tls_over(TcpStream::connect(address).await.unwrap(), config, address).await
}

/// TLS and the upgrade over any stream.
pub async fn connect_tls_over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: Arc<rustls::ClientConfig>,
    address: SocketAddr,
) -> Client<TlsStream<S>> {
    let connector = tokio_rustls::TlsConnector::from(config);
    let name = ServerName::try_from("localhost").unwrap();
    upgrade(connector.connect(name, stream).await.unwrap(), address).await
}

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: S, address: SocketAddr) -> Client<S> {
    let upgraded = tokio::time::timeout(Duration::from_secs(10), upgrade_now(stream, address)).await;
    upgraded.expect("the server does not answer the upgrade")
}

async fn upgrade_now<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, address: SocketAddr) -> Client<S> {
    let address = address.to_string();
    let request = request(&address);
    stream.write_all(&request.encode().unwrap()).await.unwrap();
    stream.flush().await.unwrap();
    let mut head = Vec::new();
    loop {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0, "refused: {}", String::from_utf8_lossy(&head));
        if let Some(accepted) = request.verify(&head).unwrap() {
            assert_eq!(accepted.head_bytes, head.len());
            let decoder = Decoder::new(Role::Client, Limits::FANFARE);
            return Client { stream, decoder, said: VecDeque::new(), messages: 0 };
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Frames side by side, as one message.
    pub async fn send(&mut self, frames: &[u8]) {
        self.send_opcode(Opcode::Binary, frames).await;
    }

    pub async fn send_opcode(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        client_frame(opcode, payload, [1, 2, 3, 4], &mut out);
        self.raw(&out).await;
    }

    /// Any bytes; a server that has hung up already is no fault.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    pub async fn said(&mut self) -> Said {
        tokio::time::timeout(Duration::from_secs(10), self.read()).await.expect("the server says nothing")
    }

    async fn read(&mut self) -> Said {
        loop {
            if let Some(said) = self.said.pop_front() {
                return said;
            }
            let mut buffer = vec![0; 64 * 1024];
            let count = match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Said::End,
                Ok(count) => count,
            };
            let mut input = &mut buffer[..count];
            while let Some(event) = self.decoder.next(&mut input).unwrap() {
                match event {
                    Event::Message { payload, binary } => {
                        assert!(binary);
                        self.messages += 1;
                        let frames = Frame::iter(Bytes::from(payload.into_owned()));
                        self.said.extend(frames.map(|frame| Said::Frame(frame.unwrap())));
                    }
                    Event::Ping(_) => panic!("the server pings"),
                    Event::Pong(payload) => self.said.push_back(Said::Pong(payload.into_owned())),
                    Event::Close { code, .. } => self.said.push_back(Said::Close(code.unwrap_or(0))),
                }
            }
        }
    }

    /// The next frame, which must be of this type.
    pub async fn frame(&mut self, frame_type: FrameType) -> Frame {
        match self.said().await {
            Said::Frame(frame) if frame.frame_type() == frame_type => frame,
            Said::Frame(frame) if frame.frame_type() == FrameType::Close => {
                panic!("closed with {:?} instead of {}", super::code_of(&frame), frame_type.name())
            }
            other => panic!("{other:?} instead of {}", frame_type.name()),
        }
    }

    /// CLOSE with this number, the close frame with its code, and the end; other frames before it are skipped.
    pub async fn closed(&mut self, code: Code) {
        loop {
            match self.said().await {
                Said::Frame(frame) if frame.frame_type() == FrameType::Close => {
                    assert_eq!(super::code_of(&frame), code);
                    break;
                }
                Said::Frame(_) | Said::Pong(_) => {}
                other => panic!("{other:?} instead of CLOSE {code:?}"),
            }
        }
        assert_eq!(self.said().await, Said::Close(code.close_code()));
        self.ended().await;
    }

    pub async fn ended(&mut self) {
        let _ = self.stream.shutdown().await;
        assert_eq!(self.said().await, Said::End);
    }
}
