//! Taking a one-time link: the way to the first administrator.

use axum::{Json, extract::State, http::StatusCode};
use fanfare_proto::{Code, DeviceId};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Body, Node, NodeRouter, Peer, ProblemBody, accounts::SignedInBody, id};
use crate::http::problem::Problem;

pub fn routes() -> NodeRouter {
    OpenApiRouter::new().routes(routes!(claim))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Claim {
    /// The secret of the link that `fanfare admin link` printed: what stands behind `link=` in it.
    #[schema(max_length = 64)]
    link: String,
    /// 1 to 64 bytes, no spaces, none of `@ / ,`, not digits alone. A link that is for somebody takes that name alone.
    #[schema(example = "olga", max_length = 64)]
    name: String,
    /// At least 8 characters, at most 256 bytes.
    #[schema(example = "correct horse battery", min_length = 8, max_length = 256)]
    password: String,
    /// The device's id, as in signing in; without one it is made here.
    #[schema(pattern = "^[1-9][0-9]{0,18}$")]
    device: Option<String>,
}

/// Become an administrator by a one-time link
///
/// Makes the account, or gives the one that the link is for that password and signs it out everywhere; then signs in.
#[utoipa::path(post, path = "/v1/admin/claim", tag = "accounts", request_body = Claim, responses(
    (status = 201, body = SignedInBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, description = "the link was used, has ended, or was never given out", body = ProblemBody,
        content_type = "application/problem+json"),
    (status = 403, description = "the account is disabled", body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, description = "the name is taken, and the link is not for it", body = ProblemBody,
        content_type = "application/problem+json"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn claim(
    State(node): Node,
    Peer(address): Peer,
    Body(claim): Body<Claim>,
) -> Result<(StatusCode, Json<SignedInBody>), Problem> {
    let device = claim.device.as_deref().map(|device| id(device).map(DeviceId));
    if device == Some(None) {
        return Err(Problem::new(Code::BAD_FIELD, "`device` is not a decimal number below 2^63"));
    }
    let device = device.flatten();
    let signed_in = node.accounts.claim(&claim.link, &claim.name, &claim.password, device, address).await?;
    Ok((StatusCode::CREATED, Json(signed_in.into())))
}
