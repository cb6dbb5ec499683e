//! A QUIC client that can send anything.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use fanfare_proto::{ALPN, Code, Frame, FrameType, frame::FrameBuffer};
use quinn::{Connection, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls_pki_types::CertificateDer;

pub struct Client {
    pub endpoint: Endpoint,
    pub connection: Connection,
    pub control: SendStream,
    pub down: Stream,
}

/// Frames of a stream.
pub struct Stream {
    pub recv: RecvStream,
    buffer: FrameBuffer,
    frames: std::collections::VecDeque<Frame>,
}

impl Stream {
    pub fn new(recv: RecvStream) -> Self {
        Self { recv, buffer: FrameBuffer::default(), frames: Default::default() }
    }

    /// The next frame, `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let read = tokio::time::timeout(Duration::from_secs(10), self.recv.read_chunk(64 * 1024, true));
            let chunk = read.await.expect("the server says nothing").ok()??;
            let frames = &mut self.frames;
            self.buffer.feed(chunk.bytes, |frame| frames.push_back(frame)).unwrap();
        }
    }

    pub async fn frame(&mut self, frame_type: FrameType) -> Frame {
        let frame = self.next().await.expect("a frame");
        if frame.frame_type() == FrameType::Close && frame_type != FrameType::Close {
            panic!("closed with {:?} instead of {}", super::code_of(&frame), frame_type.name());
        }
        assert_eq!(frame.frame_type(), frame_type);
        frame
    }
}

pub fn config(certificate: &CertificateDer<'static>, alpn: &[u8]) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

pub async fn connect(address: SocketAddr, certificate: &CertificateDer<'static>) -> Client {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(config(certificate, ALPN), address, "localhost").unwrap();
    let connection = connecting.await.unwrap();
    let (control, recv) = connection.open_bi().await.unwrap();
    Client { endpoint, connection, control, down: Stream::new(recv) }
}

impl Client {
    pub async fn send(&mut self, frames: &[u8]) {
        let _ = self.control.write_all(frames).await;
    }

    pub async fn frame(&mut self, frame_type: FrameType) -> Frame {
        self.down.frame(frame_type).await
    }

    /// The server's first unidirectional stream.
    pub async fn hot(&self) -> Stream {
        let accepted = tokio::time::timeout(Duration::from_secs(10), self.connection.accept_uni());
        Stream::new(accepted.await.expect("no hot stream").unwrap())
    }

    /// One FETCH on a stream of its own: the frames of its answer.
    pub async fn fetch(&self, frame: Bytes) -> Vec<Frame> {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&frame).await.unwrap();
        send.finish().unwrap();
        let mut stream = Stream::new(recv);
        let mut frames = Vec::new();
        while let Some(frame) = stream.next().await {
            frames.push(frame);
        }
        frames
    }

    /// CLOSE with this number on control, then the connection's close with its code.
    pub async fn closed(&mut self, code: Code) {
        while let Some(frame) = self.down.next().await {
            if frame.frame_type() == FrameType::Close {
                assert_eq!(super::code_of(&frame), code);
                break;
            }
        }
        let closed = tokio::time::timeout(Duration::from_secs(10), self.connection.closed()).await.unwrap();
        match closed {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(u64::from(close.error_code), u64::from(code.close_code()));
            }
            other => panic!("{other} instead of {code:?}"),
        }
    }
}

impl Client {
    /// The connection's close after a goodbye of ours.
    pub async fn closed_by_us(&mut self) {
        let closed = tokio::time::timeout(Duration::from_secs(10), self.connection.closed()).await.unwrap();
        assert!(
            matches!(closed, quinn::ConnectionError::ApplicationClosed(close) if u64::from(close.error_code) == 0)
        );
    }
}
