//! Channels, members, history and sends. Reads go by what the caller may see; writes are SENDs that the owner of the channel checks.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, UserId,
    limits::MEMBERS_PER_ENTRY_MAX,
    wire::{self, send::Content},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Answer, Asked, Body, Ids, ProblemBody, id};
use crate::{accounts::Caller, administration::ChannelRow, clock, http::problem::Problem, node::NodeState};

type Node = State<Arc<NodeState>>;

/// Messages in one answer.
pub const MESSAGES_MAX: u32 = 100;
/// Members in one answer.
pub const MEMBERS_PAGE: usize = 1_000;

pub fn routes() -> OpenApiRouter<Arc<NodeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(direct))
        .routes(routes!(info))
        .routes(routes!(members, add_members))
        .routes(routes!(remove_member))
        .routes(routes!(history, send))
}

/// A channel as it stands for the caller.
#[derive(Serialize, ToSchema)]
pub struct ChannelBody {
    /// Its id.
    channel: String,
    /// `direct` or `group`.
    kind: String,
    /// Empty for direct channels.
    name: String,
    /// The other one's name in a direct channel; empty in groups.
    peer_name: String,
    /// The caller's role: `owner`, `admin` or `member`.
    role: String,
    /// Members in all.
    members: u32,
    /// Its newest seq.
    head: u64,
    /// Messages that the caller has not read.
    unread: u64,
    /// What one who joins sees of the time before: `from_join` or `all`.
    history: String,
    /// Who may come in: `open_to_all`, `by_request` or `by_invitation`.
    join: String,
    /// Who may send messages: `every_member` or `admins_only`.
    posting: String,
    /// The caller may send nothing.
    muted: bool,
    /// Until when, RFC 3339; null where the caller is not muted or there is no end.
    muted_until: Option<String>,
    /// When something last happened in it, RFC 3339.
    active: String,
}

impl From<ChannelRow> for ChannelBody {
    fn from(row: ChannelRow) -> Self {
        Self {
            channel: row.channel.to_string(),
            kind: row.kind.to_owned(),
            name: row.name,
            peer_name: row.peer_name,
            role: row.role.to_owned(),
            members: row.members,
            head: row.head,
            unread: row.unread,
            history: row.history.to_owned(),
            join: row.join.to_owned(),
            posting: row.posting.to_owned(),
            muted: row.muted_until_ms.is_some(),
            muted_until: row.muted_until_ms.filter(|until| *until > 0).map(clock::rfc3339),
            active: clock::rfc3339(row.active_ms),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct ChannelsBody {
    channels: Vec<ChannelBody>,
}

/// The caller's channels, newest activity first
#[utoipa::path(get, path = "/v1/channels", tag = "channels", security(("token" = [])), responses(
    (status = 200, body = ChannelsBody),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(State(node): Node, caller: Caller) -> Answer<ChannelsBody> {
    let rows = node.administration.channels(caller.user.user).await?;
    Ok(Json(ChannelsBody { channels: rows.into_iter().map(ChannelBody::from).collect() }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewChannel {
    /// 1 to 256 bytes, not digits alone, not beginning with `@`.
    #[schema(example = "crabs", min_length = 1, max_length = 256)]
    name: String,
    /// First members beside the caller, who owns it: names or ids, at most 1,000.
    #[serde(default)]
    #[schema(max_items = 1000)]
    members: Vec<String>,
}

/// Make a group
#[utoipa::path(post, path = "/v1/channels", tag = "channels", security(("token" = [])), request_body = NewChannel, responses(
    (status = 201, body = ChannelBody),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 404, description = "a member does not exist", body = ProblemBody, content_type = "application/problem+json"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    State(node): Node,
    caller: Caller,
    Body(new): Body<NewChannel>,
) -> Result<(StatusCode, Json<ChannelBody>), Problem> {
    let made = node.administration.create_group(caller.user.user, &new.name, &new.members).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

/// The direct channel with a user, made where it is not there
#[utoipa::path(put, path = "/v1/direct/{user}", tag = "channels", security(("token" = [])),
    params(("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$")),
    responses(
        (status = 200, body = ChannelBody),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn direct(State(node): Node, caller: Caller, Ids([user]): Ids<1>) -> Answer<ChannelBody> {
    Ok(Json(node.administration.open_direct(caller.user.user, UserId(user)).await?.into()))
}

/// One channel of the caller
#[utoipa::path(get, path = "/v1/channels/{channel}", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$")),
    responses(
        (status = 200, body = ChannelBody),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "no such channel, or not a member", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn info(State(node): Node, caller: Caller, Ids([channel]): Ids<1>) -> Answer<ChannelBody> {
    Ok(Json(node.administration.channel_of(caller.user.user, ChannelId(channel)).await?.into()))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MembersAsked {
    /// Members with an id above this one.
    #[param(value_type = Option<String>, pattern = "^[1-9][0-9]{0,18}$")]
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct MembersBody {
    /// By ascending id, at most 1,000.
    members: Vec<MemberBody>,
    /// Members in all.
    total: usize,
    /// Ask on with this as `after`; null where these were the last.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct MemberBody {
    user: String,
    name: String,
    role: String,
    /// How far it has read, as a seq.
    read: u64,
}

/// Who is in a channel
#[utoipa::path(get, path = "/v1/channels/{channel}/members", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"), MembersAsked),
    responses(
        (status = 200, body = MembersBody),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn members(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Asked(asked): Asked<MembersAsked>,
) -> Answer<MembersBody> {
    let channel = ChannelId(channel);
    let after = match &asked.after {
        Some(after) => id(after).ok_or_else(|| Problem::new(Code::BAD_FIELD, "`after` is not an id"))?,
        None => 0,
    };
    node.administration.channel_of(caller.user.user, channel).await?;
    let (page, total) = node.administration.members_page(channel, UserId(after), MEMBERS_PAGE).await?;
    let next =
        (page.len() == MEMBERS_PAGE).then(|| page.last().map(|member| member.user.to_string())).flatten();
    let members = page.into_iter().map(|member| MemberBody {
        user: member.user.to_string(),
        name: member.name,
        role: member.role.to_owned(),
        read: member.read,
    });
    Ok(Json(MembersBody { members: members.collect(), total, next }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMembers {
    /// Ids of those to add, at most 1,000.
    #[schema(min_items = 1, max_items = 1000)]
    users: Vec<String>,
    /// The idempotency key: a UUIDv7 made at the first attempt. Without one a repeat is another request.
    #[schema(format = "uuid")]
    client_message_id: Option<String>,
}

/// What became of a write.
#[derive(Serialize, ToSchema)]
pub(super) struct Written {
    /// The entry's place in the channel.
    seq: u64,
    /// The entry's id.
    message: String,
    /// The idempotency key, as given or as made.
    client_message_id: String,
    /// It had been written by an earlier attempt.
    repeated: bool,
}

/// Add members, many at once
#[utoipa::path(post, path = "/v1/channels/{channel}/members", tag = "channels", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$")), request_body = NewMembers,
    responses(
        (status = 201, body = Written),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn add_members(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Body(new): Body<NewMembers>,
) -> Result<(StatusCode, Json<Written>), Problem> {
    let users: Option<Vec<u64>> = new.users.iter().map(|user| id(user)).collect();
    let users =
        users.filter(|users| (1..=MEMBERS_PER_ENTRY_MAX).contains(&users.len())).ok_or_else(|| {
            Problem::new(Code::BAD_FIELD, format!("`users` are 1 to {MEMBERS_PER_ENTRY_MAX} ids, decimal"))
        })?;
    let membership = wire::Membership {
        change: wire::MembershipChange::Joined.into(),
        users,
        role: wire::Role::Member.into(),
        until_ms: 0,
    };
    let key = Key::of(new.client_message_id.as_deref())?;
    write(&node, &caller, ChannelId(channel), key, Content::Membership(membership)).await
}

/// Remove a member, or leave
#[utoipa::path(delete, path = "/v1/channels/{channel}/members/{user}", tag = "channels", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("user" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
    ),
    responses(
        (status = 201, body = Written),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn remove_member(
    State(node): Node,
    caller: Caller,
    Ids([channel, user]): Ids<2>,
) -> Result<(StatusCode, Json<Written>), Problem> {
    let leaves = caller.user.user.0 == user;
    let change = if leaves { wire::MembershipChange::Left } else { wire::MembershipChange::Removed };
    let membership = wire::Membership { change: change.into(), users: vec![user], ..Default::default() };
    write(&node, &caller, ChannelId(channel), Key::of(None)?, Content::Membership(membership)).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HistoryAsked {
    /// Messages with a seq below this one; without it the newest.
    #[param(minimum = 1)]
    before: Option<u64>,
    /// Messages of before this time, Unix milliseconds.
    #[param(minimum = 1)]
    before_ms: Option<u64>,
    /// Messages at most.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
struct HistoryBody {
    /// Newest first, as the caller may see them.
    messages: Vec<MessageBody>,
    /// Ask on with this as `before`; null where nothing older may be seen.
    next: Option<u64>,
}

#[derive(Serialize, Deserialize, ToSchema)]
struct MessageBody {
    seq: u64,
    message: String,
    sender: String,
    sender_name: String,
    /// When it was committed, RFC 3339.
    time: String,
    /// The newest text; null where it was recalled or is opaque.
    text: Option<String>,
    edited: bool,
    recalled: bool,
    /// The seq it answers, or 0.
    reply_to: u64,
    reactions: Vec<ReactionBody>,
}

#[derive(Serialize, Deserialize, ToSchema)]
struct ReactionBody {
    emoji: String,
    count: u32,
}

/// What was said, newest first
#[utoipa::path(get, path = "/v1/channels/{channel}/messages", tag = "messages", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"), HistoryAsked),
    responses(
        (status = 200, body = HistoryBody),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn history(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Asked(asked): Asked<HistoryAsked>,
) -> Answer<HistoryBody> {
    let limit = asked.limit.unwrap_or(50);
    if limit == 0 || limit > MESSAGES_MAX {
        return Err(Problem::new(Code::BAD_FIELD, format!("`limit` is from 1 to {MESSAGES_MAX}")));
    }
    let before = asked.before.unwrap_or(0);
    if asked.before == Some(0) || before >> 63 != 0 {
        return Err(Problem::new(Code::BAD_FIELD, "`before` is a seq, from 1"));
    }
    let before_ms = asked.before_ms.unwrap_or(0);
    if asked.before_ms == Some(0) || before_ms >> 63 != 0 {
        return Err(Problem::new(Code::BAD_FIELD, "`before_ms` is a time, Unix milliseconds"));
    }
    let (user, channel) = (caller.user.user, ChannelId(channel));
    let (rows, next) = node.administration.history_before(user, channel, before, before_ms, limit).await?;
    let messages =
        rows.into_iter().rev().map(serde_json::from_value::<MessageBody>).collect::<Result<Vec<_>, _>>();
    let messages = messages.map_err(|error| Problem::new(Code::INTERNAL, error.to_string()))?;
    Ok(Json(HistoryBody { messages, next }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMessage {
    /// At most 16 KiB.
    #[schema(example = "hello from a backend", max_length = 16384)]
    text: String,
    /// The seq it answers.
    reply_to: Option<u64>,
    /// Ids of users to mention.
    #[serde(default)]
    mentions: Vec<String>,
    /// The idempotency key: a UUIDv7 made at the first attempt, the same at each repeat. Without one a repeat is another message.
    #[schema(format = "uuid")]
    client_message_id: Option<String>,
    /// An earlier attempt was made, at this time, Unix milliseconds: the server looks for it.
    first_attempt_ms: Option<u64>,
}

/// Send a message
#[utoipa::path(post, path = "/v1/channels/{channel}/messages", tag = "messages", security(("token" = [])),
    params(("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$")), request_body = NewMessage,
    responses(
        (status = 201, body = Written),
        (status = 400, body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "the key was used for another content", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "nothing was changed, or it is not known (FAN-S002): repeat with the same key", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
async fn send(
    State(node): Node,
    caller: Caller,
    Ids([channel]): Ids<1>,
    Body(new): Body<NewMessage>,
) -> Result<(StatusCode, Json<Written>), Problem> {
    let mentions = mentions_of(&new.mentions)?;
    let key = Key {
        first_attempt_ms: new.first_attempt_ms.unwrap_or(0),
        ..Key::of(new.client_message_id.as_deref())?
    };
    let message =
        wire::Message { text: new.text, reply_to: new.reply_to.unwrap_or(0), mentions, ..Default::default() };
    write(&node, &caller, ChannelId(channel), key, Content::Message(message)).await
}

/// What makes a write without a body safe to repeat.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Keyed {
    /// The idempotency key: a UUIDv7 made at the first attempt. Without one a repeat is another request.
    #[param(format = "uuid")]
    client_message_id: Option<String>,
}

impl Keyed {
    pub(super) fn key(&self) -> Result<Key, Problem> {
        Key::of(self.client_message_id.as_deref())
    }
}

/// Ids of mentioned users.
pub(super) fn mentions_of(ids: &[String]) -> Result<Vec<u64>, Problem> {
    let mentions: Option<Vec<u64>> = ids.iter().map(|user| id(user)).collect();
    mentions.ok_or_else(|| Problem::new(Code::BAD_FIELD, "`mentions` are ids, decimal"))
}

/// What makes a write safe to repeat.
pub(super) struct Key {
    id: Uuid,
    first_attempt_ms: u64,
}

impl Key {
    pub(super) fn of(given: Option<&str>) -> Result<Self, Problem> {
        let id = match given {
            None => Uuid::now_v7(),
            Some(text) => Uuid::parse_str(text)
                .ok()
                .filter(|id| id.get_version_num() == 7)
                .ok_or_else(|| Problem::new(Code::BAD_FIELD, "`client_message_id` is not a UUIDv7"))?,
        };
        Ok(Self { id, first_attempt_ms: 0 })
    }
}

pub(super) async fn write(
    node: &NodeState,
    caller: &Caller,
    channel: ChannelId,
    key: Key,
    content: Content,
) -> Result<(StatusCode, Json<Written>), Problem> {
    let id = ClientMessageId(*key.id.as_bytes());
    let retried = key.first_attempt_ms > 0;
    let send = wire::Send {
        client_message_id: id.0.to_vec().into(),
        first_attempt_ms: key.first_attempt_ms,
        last_attempt_ms: if retried { clock::now_ms() } else { 0 },
        content: Some(content),
    };
    let device = caller.device.unwrap_or(DeviceId(0));
    let ack = node.edge.send(caller.user.user, device, channel, &send).await?;
    match ack.outcome() {
        wire::Outcome::Ok => Ok((
            StatusCode::CREATED,
            Json(Written {
                seq: ack.seq,
                message: ack.message_id.to_string(),
                client_message_id: key.id.to_string(),
                repeated: ack.repeated_send,
            }),
        )),
        wire::Outcome::Unknown => Err(Problem::of(Code::OUTCOME_UNKNOWN)),
        wire::Outcome::Fail => {
            let code = u16::try_from(ack.code).map_or(Code::INTERNAL, Code);
            let wait = std::time::Duration::from_millis(ack.retry_after_ms.into());
            let problem = Problem::of(code);
            Err(if wait.is_zero() { problem } else { problem.retry_after(wait) })
        }
    }
}
