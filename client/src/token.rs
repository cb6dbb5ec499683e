//! Where tokens come from: one that was handed over, or whoever makes fresh ones.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use fanfare_proto::{Code, error::Policy, session::client::Ended};

/// Time to make a token.
const ASK_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the next attempt while a session waits for a fresh one: the server gives it a minute, or half of that.
const AGAIN_MS_MAX: u64 = 5_000;

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
            Self::Ask(ask) => match tokio::time::timeout(ASK_TIME_MAX, ask()).await {
                Ok(token) => token,
                Err(_) => Err(TokenError::Unavailable("whoever makes them did not answer in time".into())),
            },
        }
    }

    /// As [`Self::get`], asking again until there is one or there never will be.
    pub async fn fresh(self) -> Result<String, TokenError> {
        let mut attempt = 0;
        loop {
            match self.get().await {
                Err(error @ TokenError::Unavailable(_)) => {
                    tracing::debug!(%error, attempt, "no fresh token yet");
                    let ended = error.ended();
                    let wait = ended.delay_ms(attempt, crate::random()).unwrap_or(0).min(AGAIN_MS_MAX);
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                settled => return settled,
            }
        }
    }
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tokens are secrets.
        f.write_str(if self.is_fixed() { "Fixed" } else { "Ask" })
    }
}
