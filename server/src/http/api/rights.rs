//! Settings, roles, doors and blocks: who may come in, say something, and to whom. Writes are SENDs that the owner of the
//! channel checks.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
};
use fanfare_proto::{
    ChannelId, Code, UserId,
    wire::{self, MembershipChange as Change, send::Content},
};
use fanfare_storage::model::MarkKind;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Answer, Asked, Body, DONE, Done, Ids,
    channels::{Key, Keyed, Written, write},
    id,
};
use crate::{accounts::Caller, administration::mark_name, clock, http::problem::Problem, node::NodeState};

type Node = State<Arc<NodeState>>;
type Wrote = Result<(StatusCode, Json<Written>), Problem>;

/// Marks in one answer.
const MARKS_PAGE: usize = 1_000;
/// Blocks or invitations in one answer.
const PAGE: usize = 1_000;
/// All marks there can be.
const SKIP_MAX: usize = MarkKind::ALL.len() * fanfare_router::MARKS_MAX;

pub fn routes() -> OpenApiRouter<Arc<NodeState>> {
    OpenApiRouter::new()
        .routes(routes!(settings))
        .routes(routes!(role))
        .routes(routes!(join))
        .routes(routes!(marks))
        .routes(routes!(set_mark, take_mark))
        .routes(routes!(invitations))
        .routes(routes!(blocks))
        .routes(routes!(block, unblock))
}

/// Every way in which a write to a channel may be refused.
pub(super) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let of = |(status, what): (&str, &str)| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemBody"))).build();
            let response =
                ResponseBuilder::new().description(what).content("application/problem+json", content);
            (status.to_owned(), RefOr::T(response.build()))
        };
        [
            ("400", "a value is out of its range, or not for this kind of channel"),
            ("401", "no token, or not a good one"),
            ("403", "no such channel, not a member, or not allowed"),
            ("404", "a user or message that is named does not exist"),
            ("409", "it is so already, or the key was used for another content"),
            ("413", "the body is too large"),
            ("429", "too many requests: wait as `retry-after` says"),
            ("503", "nothing was changed, or it is not known (FAN-S002): repeat with the same key"),
        ]
        .map(of)
        .into()
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSettings {
    /// At most 256 bytes.
    #[schema(max_length = 256)]
    name: Option<String>,
    /// What those who join from now on see.
    history: Option<HistoryWord>,
    /// Who may come in.
    join: Option<JoinWord>,
    /// Who may send messages.
    posting: Option<PostingWord>,
    /// The idempotency key: a UUIDv7 made at the first attempt.
    #[schema(format = "uuid")]
    client_message_id: Option<String>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum HistoryWord {
    FromJoin = 1,
    All = 2,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum JoinWord {
    OpenToAll = 1,
    ByInvitation = 2,
    ByRequest = 3,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PostingWord {
    EveryMember = 1,
    AdminsOnly = 2,
}

/// Change a group's name or policies
#[utoipa::path(patch, path = "/v1/channels/{channel}", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$")), request_body = NewSettings,
    responses((status = 201, body = Written), Refusals))]
async fn settings(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Body(new): Body<NewSettings>,
) -> Wrote {
    let key = Key::of(new.client_message_id.as_deref())?;
    let change = wire::ChannelChange {
        name: new.name,
        history: new.history.map_or(0, |word| word as i32),
        join: new.join.map_or(0, |word| word as i32),
        posting: new.posting.map_or(0, |word| word as i32),
        ..Default::default()
    };
    write(&node, &caller, ChannelId(channel), key, Content::ChannelChange(change)).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRole {
    role: RoleWord,
    /// The idempotency key: a UUIDv7 made at the first attempt.
    #[schema(format = "uuid")]
    client_message_id: Option<String>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RoleWord {
    Member = 1,
    Admin = 2,
    Owner = 3,
}

/// Give a member a role
#[utoipa::path(patch, path = "/v1/channels/{channel}/members/{user}", tag = "channels", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
    ),
    request_body = NewRole, responses((status = 201, body = Written), Refusals))]
async fn role(
    State(node): Node,
    caller: Caller,
    Ids([channel, user]): Ids<2>,
    Body(new): Body<NewRole>,
) -> Wrote {
    let key = Key::of(new.client_message_id.as_deref())?;
    let membership = wire::Membership {
        change: Change::RoleChanged.into(),
        users: vec![user],
        role: new.role as i32,
        ..Default::default()
    };
    write(&node, &caller, ChannelId(channel), key, Content::Membership(membership)).await
}

/// Join an open group, or one you are invited to
#[utoipa::path(post, path = "/v1/channels/{channel}/join", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"), Keyed),
    responses((status = 201, body = Written), Refusals))]
async fn join(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Asked(keyed): Asked<Keyed>,
) -> Wrote {
    let users = vec![caller.user.user.0];
    let membership = wire::Membership { change: Change::Joined.into(), users, ..Default::default() };
    let key = keyed.key()?;
    write(&node, &caller, ChannelId(channel), key, Content::Membership(membership)).await
}

/// A channel, what stands for or against somebody in it, and whom.
struct Marked {
    channel: ChannelId,
    kind: MarkKind,
    user: u64,
}

impl<S: Send + Sync> FromRequestParts<S> for Marked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let odd = || Problem::new(Code::BAD_FIELD, "the path is /v1/channels/ID/marks/KIND/ID");
        let Path((channel, kind, user)) =
            Path::<(String, String, String)>::from_request_parts(parts, state).await.map_err(|_| odd())?;
        let kind = MarkKind::ALL.into_iter().find(|one| mark_name(*one) == kind).ok_or_else(odd)?;
        let (Some(channel), Some(user)) = (id(&channel), id(&user)) else { return Err(odd()) };
        Ok(Self { channel: ChannelId(channel), kind, user })
    }
}

impl Marked {
    fn not_set(&self) -> Problem {
        Problem::new(
            Code::BAD_FIELD,
            "`declined` is what remains of `invited` and `requested`: set or take those",
        )
    }
}

#[derive(Serialize, ToSchema)]
struct MarksBody {
    /// By kind and user, at most 1,000.
    marks: Vec<MarkBody>,
    /// How many there are in all.
    total: usize,
}

#[derive(Serialize, ToSchema)]
struct MarkBody {
    /// `muted`, `banned`, `invited`, `requested`, or `declined`: turned an invitation down or was turned down, and within an hour
    /// neither asks nor is invited again.
    kind: String,
    user: String,
    name: String,
    /// Until when, RFC 3339; null for no end.
    until: Option<String>,
    /// The seq of the entry that set it.
    seq: u64,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MarksAsked {
    /// How many to pass over.
    #[param(minimum = 0, maximum = 50000)]
    skip: Option<usize>,
}

/// Who is muted, banned, invited or waiting to be let in; for admins and owners
#[utoipa::path(get, path = "/v1/channels/{channel}/marks", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"), MarksAsked),
    responses((status = 200, body = MarksBody), Refusals))]
async fn marks(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Asked(asked): Asked<MarksAsked>,
) -> Answer<MarksBody> {
    let skip = asked.skip.unwrap_or(0);
    if skip > SKIP_MAX {
        return Err(Problem::new(Code::BAD_FIELD, format!("`skip` is at most {SKIP_MAX}")));
    }
    let (user, channel) = (caller.user.user, ChannelId(channel));
    let (rows, total) = node.administration.marks(user, channel, skip, MARKS_PAGE).await?;
    let body = |row: crate::administration::MarkRow| MarkBody {
        kind: mark_name(row.mark.kind).to_owned(),
        user: row.mark.user.to_string(),
        name: row.name,
        until: (row.mark.until_ms > 0).then(|| clock::rfc3339(row.mark.until_ms)),
        seq: row.mark.seq,
    };
    Ok(Json(MarksBody { marks: rows.into_iter().map(body).collect(), total }))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MarkAsked {
    /// Until when a mute or ban counts, Unix milliseconds; without it there is no end.
    #[param(minimum = 1)]
    until_ms: Option<u64>,
    /// The idempotency key: a UUIDv7 made at the first attempt.
    #[param(format = "uuid")]
    client_message_id: Option<String>,
}

/// Mute or ban somebody, invite somebody, or ask to be let in
#[utoipa::path(put, path = "/v1/channels/{channel}/marks/{kind}/{user}", tag = "channels", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("kind" = String, Path, description = "`requested` is for yourself alone", pattern = "^(muted|banned|invited|requested)$"),
        ("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        MarkAsked,
    ),
    responses((status = 201, body = Written), Refusals))]
async fn set_mark(
    State(node): Node,
    caller: Caller,
    marked: Marked,
    Asked(asked): Asked<MarkAsked>,
) -> Wrote {
    let until_ms = asked.until_ms.unwrap_or(0);
    let has_end = matches!(marked.kind, MarkKind::Muted | MarkKind::Banned);
    if asked.until_ms == Some(0) || until_ms >> 63 != 0 || (until_ms > 0 && !has_end) {
        return Err(Problem::new(Code::BAD_FIELD, "`until_ms` is a time ahead, of a mute or a ban"));
    }
    let change = match marked.kind {
        MarkKind::Muted => Change::Muted,
        MarkKind::Banned => Change::Banned,
        MarkKind::Invited => Change::Invited,
        MarkKind::Requested => Change::Requested,
        MarkKind::Declined => return Err(marked.not_set()),
    };
    let key = Key::of(asked.client_message_id.as_deref())?;
    let users = vec![marked.user];
    let membership = wire::Membership { change: change.into(), users, until_ms, ..Default::default() };
    write(&node, &caller, marked.channel, key, Content::Membership(membership)).await
}

/// Lift a mute or ban, take an invitation back or turn it down, or turn a request down
#[utoipa::path(delete, path = "/v1/channels/{channel}/marks/{kind}/{user}", tag = "channels", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("kind" = String, Path, pattern = "^(muted|banned|invited|requested)$"),
        ("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        Keyed,
    ),
    responses((status = 201, body = Written), Refusals))]
async fn take_mark(State(node): Node, caller: Caller, marked: Marked, Asked(keyed): Asked<Keyed>) -> Wrote {
    let change = match marked.kind {
        MarkKind::Muted => Change::Unmuted,
        MarkKind::Banned => Change::Unbanned,
        MarkKind::Invited | MarkKind::Requested => Change::Declined,
        MarkKind::Declined => return Err(marked.not_set()),
    };
    let membership =
        wire::Membership { change: change.into(), users: vec![marked.user], ..Default::default() };
    let key = keyed.key()?;
    write(&node, &caller, marked.channel, key, Content::Membership(membership)).await
}

#[derive(Serialize, ToSchema)]
struct InvitationsBody {
    /// By ascending id, at most 1,000.
    invitations: Vec<InvitationBody>,
    /// Ask on with this as `after`; null where these were the last.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct InvitationBody {
    channel: String,
    name: String,
}

/// The groups you are invited to
#[utoipa::path(get, path = "/v1/invitations", tag = "channels", security(("token" = [])), params(Paged),
    responses((status = 200, body = InvitationsBody), Refusals))]
async fn invitations(
    State(node): Node,
    caller: Caller,
    Asked(asked): Asked<Paged>,
) -> Answer<InvitationsBody> {
    let after = ChannelId(asked.after()?);
    let rows = node.administration.invitations(caller.user.user, after, PAGE).await?;
    let next = (rows.len() == PAGE).then(|| rows.last().map(|(channel, _)| channel.to_string())).flatten();
    let body = |(channel, name): (ChannelId, String)| InvitationBody { channel: channel.to_string(), name };
    Ok(Json(InvitationsBody { invitations: rows.into_iter().map(body).collect(), next }))
}

#[derive(Serialize, ToSchema)]
struct BlocksBody {
    /// By ascending id, at most 1,000.
    blocks: Vec<BlockBody>,
    /// Ask on with this as `after`; null where these were the last.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct BlockBody {
    user: String,
    name: String,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Paged {
    /// What has an id above this one.
    #[param(value_type = Option<String>, pattern = "^[1-9][0-9]{0,18}$")]
    after: Option<String>,
}

impl Paged {
    fn after(&self) -> Result<u64, Problem> {
        let Some(after) = &self.after else { return Ok(0) };
        id(after).ok_or_else(|| Problem::new(Code::BAD_FIELD, "`after` is not an id"))
    }
}

/// Whom you take no direct messages from
#[utoipa::path(get, path = "/v1/blocks", tag = "accounts", security(("token" = [])), params(Paged),
    responses((status = 200, body = BlocksBody), Refusals))]
async fn blocks(State(node): Node, caller: Caller, Asked(asked): Asked<Paged>) -> Answer<BlocksBody> {
    let after = UserId(asked.after()?);
    let rows = node.administration.blocks(caller.user.user, after, PAGE).await?;
    let next = (rows.len() == PAGE).then(|| rows.last().map(|(user, _)| user.to_string())).flatten();
    let body = |(user, name): (UserId, String)| BlockBody { user: user.to_string(), name };
    Ok(Json(BlocksBody { blocks: rows.into_iter().map(body).collect(), next }))
}

/// Take no direct messages from a user any more
#[utoipa::path(put, path = "/v1/blocks/{user}", tag = "accounts", security(("token" = [])),
    params(("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$")),
    responses((status = 200, body = Done), Refusals))]
async fn block(State(node): Node, caller: Caller, Ids([user]): Ids<1>) -> Answer<Done> {
    node.administration.block(caller.user.user, UserId(user), true).await?;
    node.presence.recheck(caller.user.user).await?;
    Ok(DONE)
}

/// Take direct messages from a user again
#[utoipa::path(delete, path = "/v1/blocks/{user}", tag = "accounts", security(("token" = [])),
    params(("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$")),
    responses((status = 200, body = Done), Refusals))]
async fn unblock(State(node): Node, caller: Caller, Ids([user]): Ids<1>) -> Answer<Done> {
    node.administration.block(caller.user.user, UserId(user), false).await?;
    node.presence.recheck(caller.user.user).await?;
    Ok(DONE)
}
