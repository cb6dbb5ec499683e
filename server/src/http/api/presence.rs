//! Who is online, as far as whoever asks may see it; and who may see oneself.

use std::sync::Arc;

use axum::{Json, extract::State};
use fanfare_presence::{Audience, Shown, Status};
use fanfare_proto::{Code, UserId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Answer, Asked, Body, DONE, Done, Ids, Node, ProblemBody, id};
use crate::{accounts::Caller, http::problem::Problem, node::NodeState};

/// Users of one question.
pub const USERS_MAX: usize = 100;

pub fn routes() -> OpenApiRouter<Arc<NodeState>> {
    OpenApiRouter::new()
        .routes(routes!(of_user))
        .routes(routes!(of_users))
        .routes(routes!(audience, set_audience))
}

/// How a user stands.
#[derive(Serialize, ToSchema)]
pub struct PresenceBody {
    /// Who.
    #[schema(example = "124938049097445376")]
    user: String,
    /// `online`, `away`, `offline`; `unknown` where the user does not show it to whoever asks, or is not there.
    #[schema(example = "away")]
    status: &'static str,
    /// Since when the user is not online, Unix milliseconds; none where it is, or where nobody knows.
    last_seen_ms: Option<u64>,
    /// Devices that are connected: of oneself alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<DeviceStatusBody>,
}

/// How a device stands.
#[derive(Serialize, ToSchema)]
struct DeviceStatusBody {
    device: String,
    /// `online` or `away`.
    status: &'static str,
}

fn name_of(status: Status) -> &'static str {
    match status {
        Status::Online => "online",
        Status::Away => "away",
        Status::Offline => "offline",
    }
}

impl From<Shown> for PresenceBody {
    fn from(shown: Shown) -> Self {
        let devices = shown.devices.iter().map(|device| DeviceStatusBody {
            device: device.device.to_string(),
            status: name_of(device.status),
        });
        Self {
            user: shown.user.to_string(),
            status: shown.seen.map_or("unknown", |seen| name_of(seen.status)),
            last_seen_ms: shown.seen.map(|seen| seen.last_seen_ms).filter(|ms| *ms > 0),
            devices: devices.collect(),
        }
    }
}

/// How several users stand.
#[derive(Serialize, ToSchema)]
struct PresencesBody {
    /// In the order asked for.
    presence: Vec<PresenceBody>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OfUsers {
    /// Ids with commas between them, at most 100.
    #[param(example = "124938049097445376,124938049097445377")]
    users: String,
}

/// Who may see whether a user is online, and when it was last seen.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AudienceBody {
    /// `everyone`; `shared_channels`: members of a channel that the user is a member of, a direct one too; `nobody`.
    #[schema(example = "shared_channels")]
    audience: String,
}

/// Whether a user is online, and when it was last seen
#[utoipa::path(get, path = "/v1/users/{user}/presence", tag = "presence", security(("token" = [])),
    params(("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$")), responses(
    (status = 200, body = PresenceBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn of_user(State(node): Node, caller: Caller, Ids([user]): Ids<1>) -> Answer<PresenceBody> {
    let shown = node.presence.of(Some(caller.user.user), vec![UserId(user)]).await?;
    let shown = shown.into_iter().next().ok_or_else(|| Problem::of(Code::INTERNAL))?;
    Ok(Json(shown.into()))
}

/// The same of several users
#[utoipa::path(get, path = "/v1/presence", tag = "presence", security(("token" = [])), params(OfUsers), responses(
    (status = 200, body = PresencesBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn of_users(State(node): Node, caller: Caller, Asked(asked): Asked<OfUsers>) -> Answer<PresencesBody> {
    let ids: Option<Vec<UserId>> = asked.users.split(',').map(|word| id(word).map(UserId)).collect();
    let users = ids.filter(|ids| ids.len() <= USERS_MAX).ok_or_else(|| {
        Problem::new(Code::BAD_FIELD, "`users` is not a list of at most 100 ids with commas between them")
    })?;
    let shown = node.presence.of(Some(caller.user.user), users).await?;
    Ok(Json(PresencesBody { presence: shown.into_iter().map(PresenceBody::from).collect() }))
}

/// Who may see your presence
#[utoipa::path(get, path = "/v1/audience", tag = "presence", security(("token" = [])), responses(
    (status = 200, body = AudienceBody),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn audience(State(node): Node, caller: Caller) -> Answer<AudienceBody> {
    let audience = node.presence.audience(caller.user.user).await?;
    Ok(Json(AudienceBody { audience: audience.name().to_owned() }))
}

/// Say who may see your presence
#[utoipa::path(put, path = "/v1/audience", tag = "presence", security(("token" = [])), request_body = AudienceBody, responses(
    (status = 200, body = Done),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn set_audience(State(node): Node, caller: Caller, Body(body): Body<AudienceBody>) -> Answer<Done> {
    node.presence.show_to(caller.user.user, named(&body.audience)?).await?;
    Ok(DONE)
}

/// The audience of that name.
///
/// # Errors
/// BAD_FIELD.
pub fn named(name: &str) -> Result<Audience, Problem> {
    let odd = || Problem::new(Code::BAD_FIELD, "`audience` is none of everyone, shared_channels, nobody");
    Audience::named(name).ok_or_else(odd)
}
