//! `/admin/v1/administrators` and `/admin/v1/webhook-keys`.

use axum::{Extension, Json, body::Bytes, extract::State, http::StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Node, parse};
use crate::{
    accounts::administrators::Authority, administration::UserRow, clock, http::problem::Problem,
    webhook_keys::PublicKey,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkWish {
    #[serde(default)]
    name: Option<String>,
}

pub async fn open_link(
    State(node): Node,
    Extension(authority): Extension<Authority>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let wish: LinkWish = if body.is_empty() { LinkWish::default() } else { parse(&body)? };
    let link = node.accounts.open_link(wish.name.as_deref(), &authority).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({
            "link": link.secret,
            "name": link.name,
            "expires_unix_s": link.expires_unix_s,
            "expires_at": clock::rfc3339(link.expires_unix_s * 1000),
        })),
    ))
}

pub async fn list(State(node): Node) -> Answer {
    let users = node.accounts.administrators().await?;
    let users: Vec<UserRow> = users.into_iter().map(UserRow::from).collect();
    Ok(Json(json!({ "administrators": users })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dismissed {
    user: String,
}

pub async fn dismiss(State(node): Node, body: Bytes) -> Answer {
    let of: Dismissed = parse(&body)?;
    let user = node.administration.user(&of.user).await?;
    Ok(Json(json!(UserRow::from(node.accounts.dismiss(user.user).await?))))
}

pub async fn webhook_keys(State(node): Node) -> Answer {
    Ok(Json(json!({ "keys": rows(&node.webhook_keys.published().await?) })))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    #[serde(default)]
    withdraw: bool,
}

pub async fn rotate(State(node): Node, body: Bytes) -> Answer {
    let wish: Rotation = if body.is_empty() { Rotation::default() } else { parse(&body)? };
    Ok(Json(json!({ "keys": rows(&node.webhook_keys.rotate(wish.withdraw).await?) })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdrawn {
    kid: String,
}

pub async fn withdraw(State(node): Node, body: Bytes) -> Answer {
    let of: Withdrawn = parse(&body)?;
    Ok(Json(json!({ "keys": rows(&node.webhook_keys.withdraw(of.kid).await?) })))
}

fn rows(keys: &[PublicKey]) -> Vec<Value> {
    keys.iter()
        .map(|key| {
            json!({
                "kid": key.kid,
                "x": key.x(),
                "signs": key.ends_unix_s.is_none(),
                "created_at": clock::rfc3339(key.created_unix_s * 1000),
                "ends_at": key.ends_unix_s.map(|end| clock::rfc3339(end * 1000)),
            })
        })
        .collect()
}
