//! `/admin/v1`: what commands (and load tests) ask of the running server. `Authorization: Bearer` with the token of
//! `admin.json`, or an administrator's own; JSON both ways; ids are decimal strings; errors are problem+json. USER is a name or an id; CHANNEL
//! is a name among the acting user's channels, `@name` for the direct channel with that user, or an id.
//!
//! ```text
//! GET  /users?after=ID&limit=N          {"users":[{"user","name","full_delivery","bot"}]}, ascending, N <= 1000
//! POST /users                           {"name","full_delivery"?,"bot"?} -> 201 {"user","name",...}; 409 where taken
//! POST /users/bulk                      {"names":[...],"full_delivery"?,"token_ttl_s"?} -> {"users":[{"user","name",
//!                                       "created","token","expires_unix_s"}]}: made where missing, at most 1000
//! GET  /users/USER                      {"user","name",...}
//! POST /users/USER/token                {"ttl_s"?} -> {"user","name","token","expires_unix_s","expires_at"}
//! POST /users/USER/password              {"password"}: sets it, and signs the user out everywhere
//!                                       (for an administrator, a token or a password comes by admin.json's token alone)
//! POST /users/USER/disabled              {"disabled":bool}: out everywhere and not let in, or let in again
//! GET  /users/USER/export                everything the server holds about the user, as lines of JSON (docs/how-to/export-a-user.md)
//! POST /users/USER/revoke                signs the user out everywhere: logins, tokens, resume secrets, sessions
//! POST /users/USER/audience              {"audience"}: who may see the user's presence: everyone, shared_channels, nobody
//! GET  /presence?users=USER,...&as=USER  {"presence":[{"user","name","status","last_seen_ms","devices"?}]}; without `as` all of it
//! GET  /administrators                   {"administrators":[{"user","name",...}]}
//! POST /administrators/links             {"name"?} -> 201 {"link","name","expires_unix_s","expires_at"}: taken once
//! POST /administrators/dismiss           {"user":USER}: takes the flag away
//! GET  /webhook-keys                     {"keys":[{"kid","x","signs","created_at","ends_at"}]}: public halves
//! POST /webhook-keys/rotate              {"withdraw"?:bool} -> the same, as it stands then
//! POST /webhook-keys/withdraw            {"kid"} -> the same: gone at once; where it signs, a new one signs
//! GET  /push                             {"on","url","waiting","oldest_s","dead","lag_records",...}
//! GET  /push/dead                        {"pushes":[{"key","kind","user","channel","seq","attempts","error",...}]}: given up
//! POST /push/replay                      {"key"?} -> {"replayed":N}: tried again; all without a key
//! GET  /push/secret                      {"secret"}: by admin.json's token alone
//! GET  /sessions?user=USER              {"sessions":[...]}
//! POST /sessions/kick                   {"user":USER,"device"?:ID} -> {"user","name","ended":N}
//! GET  /devices?user=USER               {"devices":[{"device","name","sessions","generation","seen_ms"}]}
//! POST /devices/revoke                  {"user":USER,"device":ID} -> {"user","name","device","ended":N}
//! GET  /tokens/trust?user=ID            {"issuer","audience","keys":[{"kid","public"}],"now_ms","user"?}: public halves
//! POST /channels                        {"name","as":USER,"members":[USER]} -> 201 {"channel","name","kind",...}
//! GET  /channels?as=USER                {"channels":[...]}
//! GET  /channel?channel=CHANNEL&as=USER {"channel":id or null,"name","kind","peer"}: what the words mean
//! GET  /channel/info?channel=CHANNEL&as=USER  how it stands; without `as` a name among all channels, or an id
//! GET  /trace?message=ID                where a message is, and who has it
//! GET  /members?channel=CHANNEL&as=USER {"members":[{"user","name","role"}]}
//! POST /marks                                  {"channel","as","user","kind","stands","until_ms"}: mute or ban as --as may
//! GET  /history?channel=CHANNEL&as=USER&limit=N  {"messages":[...]}, oldest first
//! GET  /status                          {"ready","checks":[...],"version",...}
//! POST /reconcile                       the report
//! ```

mod administrators;
mod presence;
mod push;

use std::{sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use fanfare_proto::{
    Code, DeviceId, MessageId, UserId,
    wire::{self, MembershipChange},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    api::export::answer,
    problem::{Problem, parse},
};
use crate::{
    accounts::administrators::Authority,
    clock,
    node::NodeState,
    token::{IssuedToken, TTL_MAX},
};

/// Users in one batch or page.
const USERS_MAX: usize = 1_000;
/// Messages in one answer of history.
const MESSAGES_MAX: u32 = 100;
/// Life of a token where the request names none.
const TTL_DEFAULT_S: u64 = 3_600;

type Node = State<Arc<NodeState>>;
type Answer = Result<Json<Value>, Problem>;
type Asked<T> = Result<Query<T>, QueryRejection>;

/// Its routes, all behind the token.
pub fn routes(state: Arc<NodeState>) -> Router<Arc<NodeState>> {
    Router::new()
        .route("/users", get(users).post(add_user))
        .route("/users/bulk", post(add_users))
        .route("/users/{user}", get(user))
        .route("/users/{user}/token", post(token))
        .route("/users/{user}/password", post(password))
        .route("/users/{user}/disabled", post(disabled))
        .route("/users/{user}/audience", post(presence::set_audience))
        .route("/users/{user}/export", get(export))
        .route("/users/{user}/revoke", post(revoke_all))
        .route("/administrators", get(administrators::list))
        .route("/administrators/links", post(administrators::open_link))
        .route("/administrators/dismiss", post(administrators::dismiss))
        .route("/webhook-keys", get(administrators::webhook_keys))
        .route("/webhook-keys/rotate", post(administrators::rotate))
        .route("/webhook-keys/withdraw", post(administrators::withdraw))
        .route("/presence", get(presence::of))
        .route("/push", get(push::status))
        .route("/push/dead", get(push::dead))
        .route("/push/replay", post(push::replay))
        .route("/push/secret", get(push::secret))
        .route("/sessions", get(sessions))
        .route("/sessions/kick", post(kick))
        .route("/devices", get(devices))
        .route("/devices/revoke", post(revoke))
        .route("/tokens/trust", get(trust))
        .route("/channel/info", get(channel_info))
        .route("/trace", get(trace))
        .route("/channels", get(channels).post(create_channel))
        .route("/channel", get(channel))
        .route("/members", get(members))
        .route("/marks", post(mark))
        .route("/history", get(history))
        .route("/status", get(status))
        .route("/reconcile", post(reconcile))
        .route_layer(middleware::from_fn_with_state(state, authorized))
}

async fn authorized(State(node): Node, mut request: Request, next: Next) -> Result<Response, Problem> {
    let authority = authority(&node, request.headers()).await?;
    request.extensions_mut().insert(authority);
    Ok(next.run(request).await)
}

/// By whose right somebody asks.
///
/// # Errors
/// ADMIN_REFUSED, and of the token.
pub async fn authority(node: &NodeState, headers: &HeaderMap) -> Result<Authority, Problem> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if verify_slices_are_equal(given.as_bytes(), node.admin_token.as_bytes()).is_ok() {
        return Ok(Authority::Folder);
    }
    // The folder's token is hexadecimal: what has dots can be a person's alone.
    if !given.contains('.') {
        return Err(Problem::of(Code::ADMIN_REFUSED));
    }
    match node.accounts.administrator(given).await {
        Ok(caller) => Ok(Authority::Administrator(caller)),
        Err(Code::ADMIN_REFUSED) => {
            Err(Problem::new(Code::ADMIN_REFUSED, "the token is not an administrator's").status(403))
        }
        Err(code) => Err(code.into()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: Option<UserIdText>,
    #[serde(default)]
    limit: Option<usize>,
}

/// An id as JSON and queries have it: a decimal string.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct UserIdText(UserId);

impl TryFrom<String> for UserIdText {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

async fn users(State(node): Node, page: Asked<Page>) -> Answer {
    let Query(page) = page?;
    let after = page.after.map_or(UserId(0), |after| after.0);
    let limit = page.limit.unwrap_or(USERS_MAX).clamp(1, USERS_MAX);
    let users = node.administration.users(after, limit).await?;
    Ok(Json(json!({ "users": users })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    name: String,
    #[serde(default)]
    full_delivery: bool,
    #[serde(default)]
    bot: bool,
}

async fn add_user(State(node): Node, body: Bytes) -> Result<(StatusCode, Json<Value>), Problem> {
    let new: NewUser = parse(&body)?;
    let user = node.administration.add_user(&new.name, new.full_delivery, new.bot).await?;
    Ok((StatusCode::CREATED, Json(json!(user))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUsers {
    names: Vec<String>,
    #[serde(default)]
    full_delivery: bool,
    #[serde(default)]
    token_ttl_s: Option<u64>,
}

async fn add_users(State(node): Node, Extension(authority): Extension<Authority>, body: Bytes) -> Answer {
    let new: NewUsers = parse(&body)?;
    if new.names.len() > USERS_MAX {
        return Err(Problem::new(Code::BAD_FIELD, format!("at most {USERS_MAX} users in one request")));
    }
    let ttl = ttl(new.token_ttl_s)?;
    let mut done = Vec::with_capacity(new.names.len());
    for name in &new.names {
        let (user, created) = node.administration.user_made(name, new.full_delivery, false).await?;
        authority.may_become(user.administrator)?;
        let issued = node.administration.token(&user, ttl)?;
        done.push(json!({
            "user": user.user.to_string(),
            "name": user.name,
            "created": created,
            "token": issued.token,
            "expires_unix_s": issued.expires_unix_s,
        }));
    }
    Ok(Json(json!({ "users": done })))
}

async fn user(State(node): Node, Path(user): Path<String>) -> Answer {
    Ok(Json(json!(node.administration.user(&user).await?)))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWish {
    #[serde(default)]
    ttl_s: Option<u64>,
}

async fn token(
    State(node): Node,
    Extension(authority): Extension<Authority>,
    Path(user): Path<String>,
    body: Bytes,
) -> Answer {
    let wish: TokenWish = if body.is_empty() { TokenWish::default() } else { parse(&body)? };
    let user = node.administration.user(&user).await?;
    authority.may_become(user.administrator)?;
    let IssuedToken { token, expires_unix_s } = node.administration.token(&user, ttl(wish.ttl_s)?)?;
    Ok(Json(json!({
        "user": user.user.to_string(),
        "name": user.name,
        "token": token,
        "expires_unix_s": expires_unix_s,
        "expires_at": clock::rfc3339(expires_unix_s * 1000),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: String,
}

async fn password(
    State(node): Node,
    Extension(authority): Extension<Authority>,
    Path(user): Path<String>,
    body: Bytes,
) -> Answer {
    let new: NewPassword = parse(&body)?;
    let user = node.administration.user(&user).await?;
    authority.may_become(user.administrator)?;
    node.accounts.set_password(user.user, &new.password).await?;
    Ok(Json(json!(user)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disabled {
    disabled: bool,
}

async fn disabled(State(node): Node, Path(user): Path<String>, body: Bytes) -> Answer {
    let wish: Disabled = parse(&body)?;
    let user = node.administration.user(&user).await?;
    node.accounts.set_disabled(user.user, wish.disabled).await?;
    Ok(Json(json!(node.administration.user(&user.user.to_string()).await?)))
}

async fn revoke_all(State(node): Node, Path(user): Path<String>) -> Answer {
    let user = node.administration.user(&user).await?;
    node.accounts.revoke(user.user).await?;
    Ok(Json(json!(user)))
}

async fn export(
    State(node): Node,
    Extension(authority): Extension<Authority>,
    Path(user): Path<String>,
) -> Result<Response, Problem> {
    let user = node.administration.user(&user).await?;
    Ok(answer(node.exports.begin(user.user, authority).await?))
}

fn ttl(wish_s: Option<u64>) -> Result<Duration, Problem> {
    let ttl = Duration::from_secs(wish_s.unwrap_or(TTL_DEFAULT_S));
    if ttl.is_zero() || ttl > TTL_MAX {
        return Err(Problem::new(
            Code::BAD_FIELD,
            format!("a token lives from 1 s to {} s", TTL_MAX.as_secs()),
        ));
    }
    Ok(ttl)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfUser {
    user: String,
}

async fn sessions(State(node): Node, of: Asked<OfUser>) -> Answer {
    let Query(of) = of?;
    let user = node.administration.user(&of.user).await?;
    Ok(Json(json!({ "sessions": node.administration.sessions(user.user).await? })))
}

/// A device of a user, its id a decimal string.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfDevice {
    user: String,
    #[serde(default)]
    device: Option<String>,
}

impl OfDevice {
    fn device(&self) -> Result<Option<DeviceId>, Problem> {
        let parsed = self.device.as_ref().map(|device| device.parse().map(DeviceId)).transpose();
        parsed.map_err(|_| Problem::new(Code::BAD_FIELD, "`device` is not an id, a decimal string"))
    }
}

async fn kick(State(node): Node, body: Bytes) -> Answer {
    let of: OfDevice = parse(&body)?;
    let user = node.administration.user(&of.user).await?;
    let ended = node.administration.kick(user.user, of.device()?).await?;
    Ok(Json(json!({ "user": user.user.to_string(), "name": user.name, "ended": ended })))
}

async fn devices(State(node): Node, of: Asked<OfUser>) -> Answer {
    let Query(of) = of?;
    let user = node.administration.user(&of.user).await?;
    Ok(Json(json!({ "devices": node.administration.devices(user.user).await? })))
}

async fn revoke(State(node): Node, body: Bytes) -> Answer {
    let of: OfDevice = parse(&body)?;
    let device = of.device()?.ok_or_else(|| Problem::new(Code::BAD_FIELD, "`device` is missing"))?;
    let user = node.administration.user(&of.user).await?;
    if !node.accounts.devices(user.user).await?.iter().any(|(known, _)| known.device == device) {
        return Err(Problem::not_found(format!("{} has no device {device}", user.name)));
    }
    let ended = node.accounts.remove_device(user.user, device).await?;
    Ok(Json(json!({
        "user": user.user.to_string(),
        "name": user.name,
        "device": device.to_string(),
        "ended": ended,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustOf {
    #[serde(default)]
    user: Option<UserIdText>,
}

async fn trust(State(node): Node, of: Asked<TrustOf>) -> Answer {
    let Query(of) = of?;
    Ok(Json(node.administration.trust(of.user.map(|user| user.0)).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InfoOf {
    channel: String,
    #[serde(default, rename = "as")]
    actor: Option<String>,
}

async fn channel_info(State(node): Node, of: Asked<InfoOf>) -> Answer {
    let Query(of) = of?;
    let channel = match of.actor {
        Some(actor) => {
            let actor = node.administration.user(&actor).await?;
            node.administration.existing_channel(actor.user, &of.channel).await?
        }
        None => node.administration.any_channel(&of.channel).await?,
    };
    Ok(Json(node.administration.channel_info(channel).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMessage {
    message: String,
}

async fn trace(State(node): Node, of: Asked<OfMessage>) -> Answer {
    let Query(of) = of?;
    let id = of.message.parse().map(MessageId);
    let id = id.map_err(|_| Problem::new(Code::BAD_FIELD, "`message` is not an id, a decimal string"))?;
    let mut trace = node.administration.trace(id).await?;
    let place = (trace["channel"].as_str().unwrap_or("").to_owned(), trace["seq"].as_u64());
    for member in trace["members"].as_array_mut().into_iter().flatten() {
        let is_absent = member["sessions"].as_array().is_none_or(Vec::is_empty);
        let user = member["user"].as_str().and_then(|user| user.parse().ok()).map(UserId);
        if let Some(user) = user.filter(|_| is_absent) {
            member["push"] = push::of_entry(&node, user, &place.0, place.1).await?;
        }
    }
    Ok(Json(trace))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewChannel {
    name: String,
    #[serde(rename = "as")]
    actor: String,
    #[serde(default)]
    members: Vec<String>,
}

async fn create_channel(State(node): Node, body: Bytes) -> Result<(StatusCode, Json<Value>), Problem> {
    let new: NewChannel = parse(&body)?;
    let owner = node.administration.user(&new.actor).await?;
    let made = node.administration.create_group(owner.user, &new.name, &new.members).await?;
    Ok((StatusCode::CREATED, Json(json!(made))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct As {
    #[serde(rename = "as")]
    actor: String,
}

async fn channels(State(node): Node, actor: Asked<As>) -> Answer {
    let Query(actor) = actor?;
    let user = node.administration.user(&actor.actor).await?;
    Ok(Json(json!({ "channels": node.administration.channels(user.user).await? })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfChannel {
    channel: String,
    #[serde(rename = "as")]
    actor: String,
    #[serde(default)]
    limit: Option<u32>,
}

async fn channel(State(node): Node, of: Asked<OfChannel>) -> Answer {
    let Query(of) = of?;
    let actor = node.administration.user(&of.actor).await?;
    Ok(Json(json!(node.administration.named_channel(actor.user, &of.channel).await?)))
}

async fn members(State(node): Node, of: Asked<OfChannel>) -> Answer {
    let Query(of) = of?;
    let actor = node.administration.user(&of.actor).await?;
    let channel = node.administration.existing_channel(actor.user, &of.channel).await?;
    Ok(Json(
        json!({ "channel": channel.to_string(), "members": node.administration.members(channel).await? }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMark {
    channel: String,
    #[serde(rename = "as")]
    actor: String,
    user: String,
    /// `muted` or `banned`.
    kind: String,
    stands: bool,
    #[serde(default)]
    until_ms: u64,
}

/// What an admin of the channel would do: by its rights, in its name.
async fn mark(State(node): Node, body: Bytes) -> Answer {
    let new: NewMark = parse(&body)?;
    let actor = node.administration.user(&new.actor).await?;
    let channel = node.administration.existing_channel(actor.user, &new.channel).await?;
    let user = node.administration.user(&new.user).await?;
    let change = match (new.kind.as_str(), new.stands) {
        ("muted", true) => MembershipChange::Muted,
        ("muted", false) => MembershipChange::Unmuted,
        ("banned", true) => MembershipChange::Banned,
        ("banned", false) => MembershipChange::Unbanned,
        _ => return Err(Problem::new(Code::BAD_FIELD, "`kind` is `muted` or `banned`")),
    };
    let membership = wire::Membership {
        change: change.into(),
        users: vec![user.user.0],
        until_ms: new.until_ms,
        ..Default::default()
    };
    let send = wire::Send {
        client_message_id: uuid::Uuid::now_v7().as_bytes().to_vec().into(),
        content: Some(wire::send::Content::Membership(membership)),
        ..Default::default()
    };
    let ack = node.edge.send(actor.user, DeviceId(0), channel, &send).await?;
    if ack.outcome() != wire::Outcome::Ok {
        return Err(Problem::of(u16::try_from(ack.code).map_or(Code::INTERNAL, Code)));
    }
    Ok(Json(
        json!({ "channel": channel.to_string(), "user": user.user.to_string(), "name": user.name, "seq": ack.seq }),
    ))
}

async fn history(State(node): Node, of: Asked<OfChannel>) -> Answer {
    let Query(of) = of?;
    let actor = node.administration.user(&of.actor).await?;
    let channel = node.administration.existing_channel(actor.user, &of.channel).await?;
    let limit = of.limit.unwrap_or(50).clamp(1, MESSAGES_MAX);
    let messages = node.administration.history(actor.user, channel, limit).await?;
    Ok(Json(json!({ "channel": channel.to_string(), "messages": messages })))
}

async fn status(State(node): Node) -> Answer {
    Ok(Json(node.status().await))
}

async fn reconcile(State(node): Node) -> Answer {
    Ok(Json(node.administration.reconcile().await?))
}
