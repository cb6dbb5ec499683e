//! Why a gateway does not start.

use std::{io, net::SocketAddr};

use fanfare_proto::error::Code;

/// What went wrong while starting, or while reading the certificate again.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address could not be bound for both TCP and UDP.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key.
    #[error("certificate: {0}")]
    Certificate(String),
    /// Threads could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(&'static str),
}

impl GatewayError {
    /// Its error number.
    pub fn code(&self) -> Code {
        match self {
            Self::Listen { .. } => Code::LISTEN_FAILED,
            Self::Certificate(_) => Code::CERTIFICATE,
            Self::Thread(_) => Code::INTERNAL,
            Self::Config(_) => Code::CONFIG_VALUE,
        }
    }
}
