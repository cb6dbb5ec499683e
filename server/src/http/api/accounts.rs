//! Setup, accounts, logins and devices.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use fanfare_proto::{Code, DeviceId};
use fanfare_storage::model::User;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Answer, Body, DONE, Done, Ids, Peer, ProblemBody, id};
use crate::{
    accounts::{Caller, SignedIn},
    clock,
    http::problem::Problem,
    node::NodeState,
};

type Node = State<Arc<NodeState>>;

pub fn routes() -> OpenApiRouter<Arc<NodeState>> {
    OpenApiRouter::new()
        .routes(routes!(setup))
        .routes(routes!(register))
        .routes(routes!(sign_in, sign_out_everywhere))
        .routes(routes!(refresh))
        .routes(routes!(sign_out))
        .routes(routes!(account))
        .routes(routes!(change_password))
        .routes(routes!(devices))
        .routes(routes!(remove_device))
}

/// An account, as its owner sees it.
#[derive(Serialize, ToSchema)]
pub struct AccountBody {
    /// Its id.
    #[schema(example = "124938049097445376")]
    user: String,
    /// Its name.
    #[schema(example = "alice")]
    name: String,
}

impl From<&User> for AccountBody {
    fn from(user: &User) -> Self {
        Self { user: user.user.to_string(), name: user.name.clone() }
    }
}

/// Where a client begins.
#[derive(Serialize, ToSchema)]
struct SetupBody {
    /// Protocol versions spoken.
    versions: Vec<u32>,
    /// Where to connect.
    gateways: Vec<GatewayBody>,
    /// Transports served, best first.
    transports: Vec<String>,
    /// SHA-256 of self-signed certificates, hex; empty where a chain is to be checked.
    certificate_sha256: Vec<String>,
    /// Whether people may make accounts themselves.
    registration_open: bool,
    /// Bounds that clients should know beforehand.
    limits: LimitsBody,
}

#[derive(Serialize, ToSchema)]
struct GatewayBody {
    host: String,
    port: u16,
}

#[derive(Serialize, ToSchema)]
struct LimitsBody {
    frame_bytes_max: usize,
    body_bytes_max: usize,
    members_per_entry_max: usize,
    token_bytes_max: usize,
}

/// What a client needs to begin
#[utoipa::path(get, path = "/v1/setup", tag = "setup", responses(
    (status = 200, body = SetupBody),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn setup(State(node): Node) -> Json<SetupBody> {
    use fanfare_proto::limits;
    Json(SetupBody {
        versions: vec![fanfare_proto::VERSION],
        gateways: vec![GatewayBody { host: node.public_host(), port: node.gateway.port() }],
        transports: ["quic", "ws", "wss"].map(str::to_owned).to_vec(),
        certificate_sha256: node.certificate_sha256.clone(),
        registration_open: node.accounts.registration_open(),
        limits: LimitsBody {
            frame_bytes_max: limits::FRAME_BYTES_MAX,
            body_bytes_max: limits::BODY_BYTES_MAX,
            members_per_entry_max: limits::MEMBERS_PER_ENTRY_MAX,
            token_bytes_max: limits::TOKEN_BYTES_MAX,
        },
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    /// 1 to 64 bytes, no spaces, none of `@ / ,`, not digits alone.
    #[schema(example = "erin", max_length = 64)]
    name: String,
    /// At least 8 characters, at most 256 bytes.
    #[schema(example = "correct horse battery", min_length = 8, max_length = 256)]
    password: String,
}

/// Make an account
#[utoipa::path(post, path = "/v1/accounts", tag = "accounts", request_body = NewAccount, responses(
    (status = 201, body = AccountBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 403, description = "accounts.registration is closed", body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, description = "the name is taken", body = ProblemBody, content_type = "application/problem+json"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn register(
    State(node): Node,
    Peer(address): Peer,
    Body(new): Body<NewAccount>,
) -> Result<(StatusCode, Json<AccountBody>), Problem> {
    let user = node.accounts.register(&new.name, &new.password, address).await?;
    Ok((StatusCode::CREATED, Json((&user).into())))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignIn {
    #[schema(example = "alice", max_length = 64)]
    name: String,
    #[schema(example = "correct horse battery", max_length = 256)]
    password: String,
    /// The device's id: random, made once by the app, below 2^63 and not 0.
    #[schema(example = "8121394847283", pattern = "^[1-9][0-9]{0,18}$")]
    device: String,
}

/// A token, and what gives the next.
#[derive(Serialize, ToSchema)]
pub struct SignedInBody {
    user: String,
    name: String,
    device: String,
    /// For HELLO, AUTH, and `Authorization: Bearer` here.
    token: String,
    /// When the token ends, Unix seconds.
    expires_unix_s: u64,
    /// Gives the next token, and another of its own kind; taken once.
    refresh_token: String,
    /// When the login ends where it is not refreshed, Unix seconds.
    login_expires_unix_s: u64,
}

impl From<SignedIn> for SignedInBody {
    fn from(signed_in: SignedIn) -> Self {
        Self {
            user: signed_in.user.user.to_string(),
            name: signed_in.user.name,
            device: signed_in.device.to_string(),
            token: signed_in.token.token,
            expires_unix_s: signed_in.token.expires_unix_s,
            refresh_token: signed_in.refresh_token,
            login_expires_unix_s: signed_in.login_expires_unix_s,
        }
    }
}

/// Sign in on a device
#[utoipa::path(post, path = "/v1/sessions", tag = "accounts", request_body = SignIn, responses(
    (status = 201, body = SignedInBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, description = "the name or the password is wrong", body = ProblemBody, content_type = "application/problem+json"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn sign_in(
    State(node): Node,
    Peer(address): Peer,
    Body(sign_in): Body<SignIn>,
) -> Result<(StatusCode, Json<SignedInBody>), Problem> {
    let device = id(&sign_in.device).map(DeviceId);
    let device =
        device.ok_or_else(|| Problem::new(Code::BAD_FIELD, "`device` is not a decimal number below 2^63"))?;
    let signed_in = node.accounts.sign_in(&sign_in.name, &sign_in.password, device, address).await?;
    Ok((StatusCode::CREATED, Json(signed_in.into())))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

/// The next token of a login
#[utoipa::path(post, path = "/v1/sessions/refresh", tag = "accounts", request_body = Refresh, responses(
    (status = 200, body = SignedInBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, description = "the login has ended", body = ProblemBody, content_type = "application/problem+json"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn refresh(State(node): Node, Peer(address): Peer, Body(asked): Body<Refresh>) -> Answer<SignedInBody> {
    Ok(Json(node.accounts.refresh(&asked.refresh_token, address).await?.into()))
}

/// Sign out: the token's device, or all where it is bound to none
#[utoipa::path(delete, path = "/v1/sessions/current", tag = "accounts", security(("token" = [])), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn sign_out(State(node): Node, caller: Caller) -> Answer<Done> {
    match caller.device {
        Some(device) => drop(node.accounts.remove_device(caller.user.user, device).await?),
        None => node.accounts.revoke(caller.user.user).await?,
    }
    Ok(DONE)
}

/// Sign out everywhere: all devices, all tokens
#[utoipa::path(delete, path = "/v1/sessions", tag = "accounts", security(("token" = [])), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn sign_out_everywhere(State(node): Node, caller: Caller) -> Answer<Done> {
    node.accounts.revoke(caller.user.user).await?;
    Ok(DONE)
}

/// Who the token is
#[utoipa::path(get, path = "/v1/account", tag = "accounts", security(("token" = [])), responses(
    (status = 200, body = AccountBody),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn account(caller: Caller) -> Json<AccountBody> {
    Json((&caller.user).into())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    #[schema(max_length = 256)]
    old: String,
    /// At least 8 characters, at most 256 bytes.
    #[schema(min_length = 8, max_length = 256)]
    new: String,
}

/// Change the password; everybody is signed out, this device too
#[utoipa::path(put, path = "/v1/account/password", tag = "accounts", security(("token" = [])), request_body = NewPassword,
    responses(
        (status = 200, body = Done),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn change_password(State(node): Node, caller: Caller, Body(change): Body<NewPassword>) -> Answer<Done> {
    node.accounts.change_password(&caller.user, &change.old, &change.new).await?;
    Ok(DONE)
}

#[derive(Serialize, ToSchema)]
struct DevicesBody {
    devices: Vec<DeviceBody>,
}

/// A device of the caller.
#[derive(Serialize, ToSchema)]
struct DeviceBody {
    device: String,
    /// As the client calls it; empty until it connects.
    name: String,
    /// Stays signed in by a refresh token.
    signed_in: bool,
    /// It is the one that asks.
    current: bool,
    /// When it was last open or closed, RFC 3339.
    seen: String,
}

/// The caller's devices
#[utoipa::path(get, path = "/v1/devices", tag = "accounts", security(("token" = [])), responses(
    (status = 200, body = DevicesBody),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn devices(State(node): Node, caller: Caller) -> Answer<DevicesBody> {
    let devices = node.accounts.devices(caller.user.user).await?;
    let rows = devices.into_iter().map(|(device, signed_in)| DeviceBody {
        device: device.device.to_string(),
        current: caller.device == Some(device.device),
        seen: clock::rfc3339(device.seen_ms),
        name: device.name,
        signed_in,
    });
    Ok(Json(DevicesBody { devices: rows.collect() }))
}

/// Sign a device out: its login, tokens and resume secrets are void, its sessions end
#[utoipa::path(delete, path = "/v1/devices/{device}", tag = "accounts", security(("token" = [])),
    params(("device" = String, Path, pattern = "^[1-9][0-9]{0,18}$")),
    responses(
        (status = 200, body = Done),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "the caller has no such device", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn remove_device(State(node): Node, caller: Caller, Ids([device]): Ids<1>) -> Answer<Done> {
    let user = caller.user.user;
    let devices = node.accounts.devices(user).await?;
    if !devices.iter().any(|(known, _)| known.device.0 == device) {
        return Err(Problem::not_found("you have no such device"));
    }
    node.accounts.remove_device(user, DeviceId(device)).await?;
    Ok(DONE)
}
