//! What can go wrong, by operation.

use std::io;

use fanfare_proto::{
    error::{Code, Policy},
    session::client::Ended,
    ws::HandshakeError,
};

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL is not of a form this client speaks.
    #[error("{0:?} is not a ws://, wss://, quic:// or http:// URL with a host")]
    Url(String),
    /// TLS cannot be used as configured.
    #[error("no trust: {0}")]
    Trust(String),
    /// The name did not resolve, or nobody answered there.
    #[error("the server could not be reached")]
    Connect(#[source] io::Error),
    /// The server refused the WebSocket upgrade.
    #[error("the WebSocket upgrade failed")]
    Upgrade(#[from] HandshakeError),
    /// QUIC could not be set up.
    #[error("QUIC could not be opened")]
    QuicConnect(#[from] quinn::ConnectError),
    /// The QUIC handshake failed.
    #[error("the QUIC handshake failed")]
    Quic(#[from] quinn::ConnectionError),
    /// The server's `fanfare.json` could not be used.
    #[error("discovery: {0}")]
    Discovery(&'static str),
    /// It took too long.
    #[error("the server did not answer in time")]
    Timeout,
}

impl OpenError {
    /// What to do about it, as for a session that ended.
    pub fn ended(&self) -> Ended {
        let mut ended = match self {
            Self::Quic(error) => crate::connection::ended_of_quic(error),
            _ => Ended::from_close(None, ""),
        };
        ended.text = whole(self);
        match self {
            Self::Url(_) | Self::Trust(_) => ended.policy = Policy::Never,
            Self::Upgrade(HandshakeError::Status(400..=428)) => {
                ended.code = Some(Code::UPGRADE);
                ended.policy = Policy::Never;
            }
            _ => {}
        }
        ended
    }
}

/// An error with what caused it, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_why_a_connection_failed_reads_what_caused_it() {
        let refused = OpenError::Connect(io::Error::other("Connection refused"));
        assert_eq!(refused.ended().text, "the server could not be reached: Connection refused");
        let upgrade = OpenError::Upgrade(HandshakeError::Status(503));
        assert!(upgrade.ended().text.contains("503"), "{}", upgrade.ended().text);
    }
}
