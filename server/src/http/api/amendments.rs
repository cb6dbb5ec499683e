//! What becomes of a message after it was sent: a newer text, taken back, reactions.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
};
use fanfare_proto::{
    ChannelId, Code,
    wire::{self, send::Content},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Asked, Body, Ids,
    channels::{Key, Keyed, Written, mentions_of, write},
    id,
    rights::Refusals,
};
use crate::{accounts::Caller, http::problem::Problem, node::NodeState};

type Node = State<Arc<NodeState>>;
type Wrote = Result<(StatusCode, Json<Written>), Problem>;

pub fn routes() -> OpenApiRouter<Arc<NodeState>> {
    OpenApiRouter::new().routes(routes!(edit, recall)).routes(routes!(react, take_reaction))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewText {
    /// The whole new text, at most 16 KiB.
    #[schema(max_length = 16384)]
    text: String,
    /// Ids of users to mention.
    #[serde(default)]
    mentions: Vec<String>,
    /// The idempotency key: a UUIDv7 made at the first attempt.
    #[schema(format = "uuid")]
    client_message_id: Option<String>,
}

/// Give a message of yours a new text
#[utoipa::path(patch, path = "/v1/channels/{channel}/messages/{seq}", tag = "messages", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("seq" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
    ),
    request_body = NewText, responses((status = 201, body = Written), Refusals))]
async fn edit(
    State(node): Node,
    caller: Caller,
    Ids([channel, target]): Ids<2>,
    Body(new): Body<NewText>,
) -> Wrote {
    let key = Key::of(new.client_message_id.as_deref())?;
    let mentions = mentions_of(&new.mentions)?;
    let message = Some(wire::Message { text: new.text, mentions, ..Default::default() });
    write(&node, &caller, ChannelId(channel), key, Content::Edit(wire::Edit { target, message })).await
}

/// Take a message back: yours, or as an admin anybody's
#[utoipa::path(delete, path = "/v1/channels/{channel}/messages/{seq}", tag = "messages", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("seq" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        Keyed,
    ),
    responses((status = 201, body = Written), Refusals))]
async fn recall(
    State(node): Node,
    caller: Caller,
    Ids([channel, target]): Ids<2>,
    Asked(keyed): Asked<Keyed>,
) -> Wrote {
    let key = keyed.key()?;
    write(&node, &caller, ChannelId(channel), key, Content::Recall(wire::Recall { target })).await
}

/// A message and an emoji.
struct Reacted {
    channel: ChannelId,
    target: u64,
    emoji: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Reacted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let odd =
            || Problem::new(Code::BAD_FIELD, "the path is /v1/channels/ID/messages/SEQ/reactions/EMOJI");
        let Path((channel, target, emoji)) =
            Path::<(String, String, String)>::from_request_parts(parts, state).await.map_err(|_| odd())?;
        let (Some(channel), Some(target)) = (id(&channel), id(&target)) else { return Err(odd()) };
        Ok(Self { channel: ChannelId(channel), target, emoji })
    }
}

/// React to a message
#[utoipa::path(put, path = "/v1/channels/{channel}/messages/{seq}/reactions/{emoji}", tag = "messages", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("seq" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("emoji" = String, Path, description = "1 to 64 bytes", min_length = 1, max_length = 16),
        Keyed,
    ),
    responses((status = 201, body = Written), Refusals))]
async fn react(State(node): Node, caller: Caller, reacted: Reacted, Asked(keyed): Asked<Keyed>) -> Wrote {
    reaction(&node, &caller, reacted, &keyed, false).await
}

/// Take a reaction back
#[utoipa::path(delete, path = "/v1/channels/{channel}/messages/{seq}/reactions/{emoji}", tag = "messages", security(("token" = [])),
    params(
        ("channel" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("seq" = String, Path, pattern = "^[1-9][0-9]{0,18}$"),
        ("emoji" = String, Path, description = "1 to 64 bytes", min_length = 1, max_length = 16),
        Keyed,
    ),
    responses((status = 201, body = Written), Refusals))]
async fn take_reaction(
    State(node): Node,
    caller: Caller,
    reacted: Reacted,
    Asked(keyed): Asked<Keyed>,
) -> Wrote {
    reaction(&node, &caller, reacted, &keyed, true).await
}

async fn reaction(node: &NodeState, caller: &Caller, of: Reacted, keyed: &Keyed, remove: bool) -> Wrote {
    let content = Content::Reaction(wire::Reaction { target: of.target, emoji: of.emoji, remove });
    write(node, caller, of.channel, keyed.key()?, content).await
}
