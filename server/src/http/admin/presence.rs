//! Who is online, for operators; and who may see a user.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
};
use fanfare_proto::Code;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Asked, Node};
use crate::http::{
    api::presence::{PresenceBody, USERS_MAX, named},
    problem::{Problem, parse},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfUsers {
    users: String,
    #[serde(default, rename = "as")]
    viewer: Option<String>,
}

pub async fn of(State(node): Node, of: Asked<OfUsers>) -> Answer {
    let Query(of) = of?;
    let words: Vec<&str> = of.users.split(',').collect();
    if words.len() > USERS_MAX {
        return Err(Problem::new(Code::BAD_FIELD, "`users` names more than 100"));
    }
    let viewer = match &of.viewer {
        Some(viewer) => Some(node.administration.user(viewer).await?.user),
        None => None,
    };
    let mut rows = Vec::with_capacity(words.len());
    for word in words {
        rows.push(node.administration.user(word).await?);
    }
    let shown = node.presence.of(viewer, rows.iter().map(|row| row.user).collect()).await?;
    let mut presence = Vec::with_capacity(rows.len());
    for (shown, row) in shown.into_iter().zip(&rows) {
        let mut body = serde_json::to_value(PresenceBody::from(shown)).unwrap_or_default();
        if let Some(body) = body.as_object_mut() {
            body.insert("name".into(), Value::String(row.name.clone()));
        }
        presence.push(body);
    }
    Ok(Json(json!({ "presence": presence })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneAudience {
    audience: String,
}

pub async fn set_audience(State(node): Node, Path(user): Path<String>, body: Bytes) -> Answer {
    let OneAudience { audience } = parse(&body)?;
    let audience = named(&audience)?;
    let user = node.administration.user(&user).await?;
    node.presence.show_to(user.user, audience).await?;
    Ok(Json(json!({ "user": user.user.to_string(), "name": user.name, "audience": audience.name() })))
}
