//! Where tokens come from: one that was handed over, or whoever makes fresh ones.

use std::{future::Future, pin::Pin, sync::Arc};

use fanfare_proto::{Code, error::Policy, session::client::Ended};

/// Why there is no token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// The user may not sign in: do not try again.
    #[error("not authorised")]
    Unauthorized,
    /// Try again later.
    #[error("no token: {0}")]
    Unavailable(String),
}

impl TokenError {
    pub(crate) fn ended(&self) -> Ended {
        let policy = if *self == Self::Unauthorized { Policy::Never } else { Policy::BackOff };
        Ended { code: Some(Code::TOKEN_MISSING), policy, retry_after_ms: 0, text: self.to_string() }
    }
}

type Ask = dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>> + Send + Sync;

/// A token, or who makes them.
#[derive(Clone)]
pub(crate) enum TokenSource {
    Fixed(String),
    Ask(Arc<Ask>),
}

impl TokenSource {
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Fixed(_))
    }

    /// Without asking anybody; may be empty.
    pub fn at_hand(&self) -> String {
        match self {
            Self::Fixed(token) => token.clone(),
            Self::Ask(_) => String::new(),
        }
    }

    pub async fn get(&self) -> Result<String, TokenError> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Ask(ask) => ask().await,
        }
    }

    pub fn fresh(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>> {
        match self {
            Self::Fixed(token) => Box::pin(std::future::ready(Ok(token.clone()))),
            Self::Ask(ask) => ask(),
        }
    }
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tokens are secrets.
        f.write_str(if self.is_fixed() { "Fixed" } else { "Ask" })
    }
}
