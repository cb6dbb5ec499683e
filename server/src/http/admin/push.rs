//! `/admin/v1/push`.

use axum::{Extension, Json, body::Bytes, extract::State};
use fanfare_proto::{Code, UserId};
use fanfare_storage::push::{Push, PushKey};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Node, parse};
use crate::{accounts::administrators::Authority, clock, http::problem::Problem, node::NodeState};

pub async fn status(State(node): Node) -> Answer {
    Ok(Json(node.pushes.status().await?))
}

pub async fn dead(State(node): Node) -> Answer {
    let pushes: Vec<Value> = node.pushes.dead().await?.iter().map(row).collect();
    Ok(Json(json!({ "pushes": pushes })))
}

/// Pushes of a user that are searched for an entry's.
const KEPT_MAX: usize = 200;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    #[serde(default)]
    key: Option<String>,
}

pub async fn replay(State(node): Node, body: Bytes) -> Answer {
    let wish: Replay = if body.is_empty() { Replay::default() } else { parse(&body)? };
    let key = wish.key.map(|key| key.parse::<PushKey>()).transpose();
    let key = key.map_err(|error| Problem::new(Code::BAD_FIELD, error.to_string()))?;
    Ok(Json(json!({ "replayed": node.pushes.replay(key).await? })))
}

pub async fn secret(State(node): Node, Extension(authority): Extension<Authority>) -> Answer {
    if !matches!(authority, Authority::Folder) {
        return Err(Problem::of(Code::ADMIN_REFUSED).status(403));
    }
    Ok(Json(json!({ "secret": node.pushes.secret()? })))
}

/// The push of an entry to a user, where one is kept.
pub async fn of_entry(
    node: &NodeState,
    user: UserId,
    channel: &str,
    seq: Option<u64>,
) -> Result<Value, Problem> {
    let kept = node.pushes.of_user(user, KEPT_MAX).await?;
    let is_it = |push: &Push| push.key.channel.to_string() == channel && Some(push.key.seq) == seq;
    let found = kept.into_iter().find(|(push, _)| is_it(push));
    Ok(found.map_or(Value::Null, |(push, state)| {
        json!({
            "state": state.name(),
            "due_ms": push.due_ms,
            "attempts": push.attempts,
            "error": push.error,
        })
    }))
}

fn row(push: &Push) -> Value {
    json!({
        "key": push.key.to_string(),
        "kind": push.kind.name(),
        "user": push.key.user.to_string(),
        "channel": push.key.channel.to_string(),
        "epoch": push.key.epoch,
        "seq": push.key.seq,
        "message": push.message_id.to_string(),
        "created_at": clock::rfc3339(push.created_ms),
        "given_up_at": clock::rfc3339(push.due_ms),
        "attempts": push.attempts,
        "error": push.error,
    })
}
