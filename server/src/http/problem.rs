//! HTTP errors: `application/problem+json` (RFC 9457) with our number.

use axum::{
    extract::rejection::QueryRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fanfare_proto::Code;
use fanfare_storage::StoreError;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::failure::Failure;

/// The longest text of what was wrong: what somebody sent comes back in it.
const DETAIL_BYTES_MAX: usize = 512;

/// An error's answer.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    status: u16,
    retry_after: Option<std::time::Duration>,
}

impl Problem {
    /// With the number's usual status; `detail` says what was wrong this time.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > DETAIL_BYTES_MAX {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
            detail.push('…');
        }
        Self { code, detail, status: status_of(code), retry_after: None }
    }

    /// The number's own sentence.
    pub fn of(code: Code) -> Self {
        Self::new(code, code.row().map_or("unknown number", |row| row.what))
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NO_SUCH_NAME, detail)
    }

    /// With when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: std::time::Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// With another status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The number.
    pub fn code(&self) -> Code {
        self.code
    }
}

/// A JSON body as a value.
///
/// # Errors
/// BAD_BODY with the place.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::new(Code::BAD_BODY, format!("the body is not as expected: {error}")))
}

fn status_of(code: Code) -> u16 {
    match code {
        Code::NO_SUCH_NAME | Code::NO_SUCH_USER | Code::NO_SUCH_TARGET => 404,
        Code::NAME_TAKEN | Code::CONFLICT | Code::NO_CHANGE => 409,
        Code::FORBIDDEN | Code::NOT_A_MEMBER => 403,
        Code::BODY_TOO_LARGE => 413,
        Code::RATE_LIMITED | Code::TOO_MANY_IN_FLIGHT => 429,
        Code::OUTCOME_UNKNOWN | Code::RETRY_LATER | Code::READ_ONLY | Code::OVERLOADED | Code::GOING_AWAY => {
            503
        }
        Code::INTERNAL | Code::CORRUPT | Code::DATA_DAMAGED => 500,
        Code::NOT_SERVED => 501,
        Code::ADMIN_REFUSED
        | Code::TOKEN_MISSING
        | Code::TOKEN_MALFORMED
        | Code::TOKEN_EXPIRED
        | Code::TOKEN_SIGNATURE
        | Code::TOKEN_CLAIMS
        | Code::REVOKED
        | Code::UNKNOWN_USER
        | Code::LOGIN_REFUSED
        | Code::LOGIN_ENDED => 401,
        Code::REGISTRATION_CLOSED => 403,
        _ => 400,
    }
}

/// Whether the cause is the server's own, and of no use to who asked.
fn is_ours(code: Code) -> bool {
    matches!(
        code,
        Code::INTERNAL
            | Code::CORRUPT
            | Code::DATA_DAMAGED
            | Code::DATA_LOCKED
            | Code::DATA_FORMAT
            | Code::RETRY_LATER
            | Code::READ_ONLY
            | Code::OUTCOME_UNKNOWN
    )
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = json!({
            "type": "about:blank",
            "title": self.code.row().map(|row| row.what),
            "status": self.status,
            "detail": self.detail,
            "code": self.code.to_string(),
            "number": self.code.0,
            "fix": self.code.row().map(|row| row.fix),
        });
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self::of(code)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let code = failure.code.unwrap_or(Code::BAD_FIELD);
        if is_ours(code) {
            // Paths and what a store says are for who runs the server.
            if !failure.why.is_empty() {
                tracing::warn!(%code, what = failure.what, why = failure.why.join("; "), "a request failed");
            }
            return Self { retry_after: failure.retry_after, ..Self::new(code, failure.what) };
        }
        let text = std::iter::once(failure.what).chain(failure.why).collect::<Vec<_>>().join("; ");
        Self { retry_after: failure.retry_after, ..Self::new(code, text) }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Failure::from(error).into()
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::BAD_FIELD, rejection.body_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_is_not_sent() {
        let said = "/var/lib/fanfare/meta.db: disk I/O error".to_owned();
        let errors = [
            StoreError::Unavailable(said.clone()),
            StoreError::Damaged(said.clone()),
            StoreError::Full(said.clone()),
            StoreError::Unknown(said.clone()),
            StoreError::Locked(said.clone()),
        ];
        for error in errors {
            let problem = Problem::from(error);
            assert!(!problem.detail.contains("meta.db"), "{problem:?}");
        }
        let internal = Problem::from(Failure::internal("no token could be issued").why(&said));
        assert_eq!(internal.detail, "no token could be issued");
        // What the caller did wrong is its business.
        let mistake = Problem::from(Failure::new(Code::BAD_FIELD, "no name").why("it has spaces"));
        assert_eq!(mistake.detail, "no name; it has spaces");
    }

    #[test]
    fn what_was_sent_comes_back_in_part() {
        let detail = Problem::new(Code::BAD_FIELD, "é".repeat(100_000)).detail;
        assert!(detail.len() < DETAIL_BYTES_MAX + 8 && detail.ends_with("é…"), "{}", detail.len());
    }
}
