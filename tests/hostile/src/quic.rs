//! A QUIC connection whose control stream takes bytes as they are given.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use fanfare_proto::{ALPN, Frame, frame::FrameBuffer};
use quinn::{ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::attempt::Incoming;

/// A socket of its own that trusts whom it is pointed at: the server is one that the test started.
pub fn endpoint() -> Result<Endpoint> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    Ok(endpoint)
}

/// See the module's page.
pub struct Link {
    connection: quinn::Connection,
    send: SendStream,
    receive: RecvStream,
    buffer: FrameBuffer,
    ready: VecDeque<Frame>,
}

impl Link {
    /// Connects and opens control.
    pub async fn connect(endpoint: &Endpoint, server: SocketAddr) -> Result<Self> {
        let connection = endpoint.connect(server, "localhost")?.await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(Self { connection, send, receive, buffer: FrameBuffer::default(), ready: VecDeque::new() })
    }

    /// Bytes on control. A server that has closed already says why on reading.
    pub async fn send(&mut self, bytes: &Bytes) -> Result<()> {
        let _ = self.send.write_all(bytes).await;
        Ok(())
    }

    /// FIN on control.
    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// The next frame on control, or the end.
    pub async fn next(&mut self) -> Result<Incoming> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Incoming::Frame(frame));
            }
            match self.receive.read_chunk(16 * 1024, true).await {
                Ok(Some(chunk)) => {
                    let ready = &mut self.ready;
                    self.buffer.feed(chunk.bytes, |frame| ready.push_back(frame))?;
                }
                // The stream's end is not yet the connection's, which has the number.
                Ok(None) | Err(_) => {
                    return Ok(Incoming::End(match self.connection.closed().await {
                        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
                        _ => None,
                    }));
                }
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.close(0u32.into(), b"");
    }
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
