//! `fanfare presence`, and who may see it.

use serde_json::{Value, json};

use super::{Asker, user::text, with_lists};
use crate::{
    admin_client::segment,
    cli::{Presence, SeenBy},
    clock,
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Shows how users stand.
pub async fn run(asker: Asker, flags: Presence) -> Outcome<u8> {
    let mut query = format!("/presence?users={}", segment(&flags.users.join(",")));
    if let Some(viewer) = &flags.viewer {
        query += &format!("&as={}", segment(viewer));
    }
    let found = asker.admin.get(&query).await.map_err(with_lists)?;
    let users = found["presence"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = users.iter().map(row).collect();
    asker.output.list("presence", "presence", users, || {
        table(&["user", "name", "status", "last seen", "devices"], &rows)
    });
    Ok(exit::OK)
}

/// Sets who may see a user.
pub async fn seen_by(asker: Asker, name: String, seen_by: SeenBy) -> Outcome<u8> {
    asker.changing();
    let path = format!("/users/{}/audience", segment(&name));
    let done = asker.admin.post(&path, &json!({ "audience": seen_by.name() })).await.map_err(with_lists)?;
    let name = tame(&text(&done["name"]));
    asker.output.object("user_seen_by", done, || format!("{name}'s presence: {}", seen_by.name()));
    Ok(exit::OK)
}

fn row(user: &Value) -> Vec<String> {
    let seen = user["last_seen_ms"].as_u64().filter(|ms| *ms > 0).map(clock::minute).unwrap_or_default();
    let devices = user["devices"].as_array().map_or(0, Vec::len);
    vec![text(&user["user"]), tame(&text(&user["name"])), text(&user["status"]), seen, devices.to_string()]
}
