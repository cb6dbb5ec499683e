//! The keys by which a receiver knows that a webhook is this deployment's.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Node, NodeRouter, ProblemBody};
use crate::http::problem::Problem;

/// How long a receiver may keep the answer; rotation's overlap is far longer.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=300");

pub fn routes() -> NodeRouter {
    OpenApiRouter::new().routes(routes!(keys))
}

/// A JWKS (RFC 7517).
#[derive(Serialize, ToSchema)]
struct KeysBody {
    keys: Vec<KeyBody>,
}

/// An Ed25519 public key (RFC 8037).
#[derive(Serialize, ToSchema)]
struct KeyBody {
    /// Always `OKP`.
    kty: &'static str,
    /// Always `Ed25519`.
    crv: &'static str,
    /// Always `EdDSA`.
    alg: &'static str,
    /// Always `sig`.
    r#use: &'static str,
    /// What a signature names it by.
    kid: String,
    /// The key's 32 bytes, base64url.
    x: String,
    /// When it ends, Unix seconds; not there for the key that signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// The public keys of webhooks
#[utoipa::path(get, path = "/v1/webhooks/keys", tag = "webhooks", responses(
    (status = 200, body = KeysBody),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn keys(State(node): Node) -> Result<([(HeaderName, HeaderValue); 1], Json<KeysBody>), Problem> {
    let keys = node.webhook_keys.published().await?.into_iter().map(|key| KeyBody {
        kty: "OKP",
        crv: "Ed25519",
        alg: "EdDSA",
        r#use: "sig",
        x: key.x(),
        exp: key.ends_unix_s,
        kid: key.kid,
    });
    Ok(([(header::CACHE_CONTROL, CACHED)], Json(KeysBody { keys: keys.collect() })))
}
