//! Whom to trust at the other end: certificates pinned by their SHA-256, or the roots of a file.

use std::{path::Path, sync::Arc};

use aws_lc_rs::digest;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use crate::error::OpenError;

/// Whom a connection by TLS or QUIC trusts.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Nobody: only plain WebSocket can be opened.
    #[default]
    Nobody,
    /// Servers whose certificate (DER) has one of these SHA-256 hashes; no chain, name or time is checked.
    Pinned(Vec<[u8; 32]>),
    /// Servers whose chain leads to one of these roots.
    Roots(Arc<RootCertStore>),
}

impl Trust {
    /// The roots of a PEM file.
    ///
    /// # Errors
    /// [`OpenError::Trust`].
    pub fn ca_file(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let fail = |error: String| OpenError::Trust(error);
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(path.as_ref()).map_err(|error| fail(error.to_string()))?
        {
            roots
                .add(certificate.map_err(|error| fail(error.to_string()))?)
                .map_err(|error| fail(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(fail(format!("{} holds no certificate", path.as_ref().display())));
        }
        Ok(Self::Roots(Arc::new(roots)))
    }

    /// One pinned certificate by the 64 hex digits of its SHA-256.
    ///
    /// # Errors
    /// [`OpenError::Trust`].
    pub fn pin(hex: &str) -> Result<Self, OpenError> {
        let pin = Self::parse_pin(hex).ok_or_else(|| OpenError::Trust("a pin has 64 hex digits".into()))?;
        Ok(Self::Pinned(vec![pin]))
    }

    pub(crate) fn parse_pin(hex: &str) -> Option<[u8; 32]> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b':').collect();
        let (pairs, rest) = digits.as_chunks::<2>();
        let mut pin = [0; 32];
        if pairs.len() != pin.len() || !rest.is_empty() {
            return None;
        }
        for (byte, pair) in pin.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(pin)
    }

    /// The TLS side of it, to be shared by all connections. `alpn` is empty for WebSocket.
    ///
    /// # Errors
    /// [`OpenError::Trust`] for [`Trust::Nobody`].
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, OpenError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| OpenError::Trust(error.to_string()))?;
        let mut config = match self {
            Self::Nobody => {
                return Err(OpenError::Trust("no certificate or roots to trust were given".into()));
            }
            Self::Pinned(pins) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(PinVerifier { pins: pins.clone(), provider }))
                .with_no_client_auth(),
            Self::Roots(roots) => builder.with_root_certificates(roots.clone()).with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// Takes a certificate by its hash alone. That the server holds its key is still proven by the handshake's signature.
#[derive(Debug)]
struct PinVerifier {
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hash = digest::digest(&digest::SHA256, end_entity);
        if self.pins.iter().any(|pin| pin == hash.as_ref()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
