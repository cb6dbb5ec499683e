//! The certificate, and the TLS that TCP and QUIC speak with it. Files are read again when they change; connections that
//! are open keep what they have.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{config::TlsSource, error::GatewayError};

/// The certificate as it is now, and both TLS configurations around it.
#[derive(Debug)]
pub(crate) struct Tls {
    certificate: Arc<Certificate>,
    files: Option<Mutex<Files>>,
    /// For TCP: HTTP/1.1 and then WebSocket.
    pub tcp: Arc<ServerConfig>,
    /// For QUIC.
    pub quic: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    seen: Stamp,
}

/// What tells a changed file: through a link's target too, because a link is what Kubernetes swaps.
type Stamp = [Option<(SystemTime, u64, PathBuf)>; 2];

#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    pub fn new(source: TlsSource) -> Result<Self, GatewayError> {
        let (key, files) = match source {
            TlsSource::Memory { chain, key } => (certified(chain, key)?, None),
            TlsSource::Files { certificate, key } => {
                let seen = stamp(&certificate, &key);
                let files = Files { certificate, key, seen };
                (files.read()?, Some(Mutex::new(files)))
            }
        };
        let certificate = Arc::new(Certificate(ArcSwap::from_pointee(key)));
        let configuration = |alpn: &[u8], versions: &[&'static rustls::SupportedProtocolVersion]| {
            let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .map_err(|error| GatewayError::Certificate(error.to_string()))?
                .with_no_client_auth()
                .with_cert_resolver(certificate.clone());
            config.alpn_protocols = vec![alpn.to_vec()];
            // Stateless tickets: a resumed handshake costs the server no memory. No early data, ever: it can be replayed.
            config.ticketer =
                aws_lc_rs::Ticketer::new().map_err(|error| GatewayError::Certificate(error.to_string()))?;
            config.send_tls13_tickets = 1;
            config.max_early_data_size = 0;
            Ok::<_, GatewayError>(Arc::new(config))
        };
        let tcp = configuration(b"http/1.1", rustls::DEFAULT_VERSIONS)?;
        let quic = configuration(fanfare_proto::ALPN, &[&rustls::version::TLS13])?;
        Ok(Self { certificate, files, tcp, quic })
    }

    /// SHA-256 of the certificate's DER.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        let key = self.certificate.0.load();
        let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, key.cert.first()?);
        digest.as_ref().try_into().ok()
    }

    /// Reads the files again where they changed, or in any case with `always`. A pair that does not fit together, as in
    /// the middle of an exchange, leaves the old one in place. Says whether there is a new one.
    pub fn reload(&self, always: bool) -> Result<bool, GatewayError> {
        let Some(files) = &self.files else { return Ok(false) };
        let mut files = files.lock();
        let now = stamp(&files.certificate, &files.key);
        if !always && now == files.seen {
            return Ok(false);
        }
        let key = files.read()?;
        files.seen = now;
        self.certificate.0.store(Arc::new(key));
        Ok(true)
    }
}

impl Files {
    fn read(&self) -> Result<CertifiedKey, GatewayError> {
        let fault = |path: &Path, error: &dyn std::fmt::Display| {
            GatewayError::Certificate(format!("{}: {error}", path.display()))
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| fault(&self.certificate, &error))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| fault(&self.key, &error))?;
        certified(chain, key)
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, GatewayError> {
    if chain.is_empty() {
        return Err(GatewayError::Certificate("no certificate in the file".into()));
    }
    // Refuses a key that is not the certificate's.
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| GatewayError::Certificate(error.to_string()))
}

fn stamp(certificate: &Path, key: &Path) -> Stamp {
    [certificate, key].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        let target = fs::canonicalize(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), target))
    })
}

/// A connection that cannot be TLS at all.
pub(crate) fn is_handshake(first: u8) -> bool {
    first == 0x16
}

impl From<GatewayError> for io::Error {
    fn from(error: GatewayError) -> Self {
        io::Error::other(error)
    }
}
