//! `fanfare push`.

use serde_json::{Value, json};

use super::{Asker, user::text};
use crate::{
    cli::Push,
    clock,
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Does what was asked.
pub async fn run(asker: Asker, command: Push) -> Outcome<u8> {
    match command {
        Push::Status => {
            let status = asker.admin.get("/push").await?;
            let shown = status.clone();
            asker.output.object("push", status, || line(&shown));
        }
        Push::Dead => {
            let found = asker.admin.get("/push/dead").await?;
            let pushes = found["pushes"].as_array().cloned().unwrap_or_default();
            let rows: Vec<Vec<String>> = pushes
                .iter()
                .map(|push| {
                    let said = |name: &str| tame(&text(&push[name]));
                    vec![
                        said("key"),
                        said("kind"),
                        said("given_up_at"),
                        push["attempts"].to_string(),
                        said("error"),
                    ]
                })
                .collect();
            asker.output.list("pushes", "push", pushes, || {
                if rows.is_empty() {
                    "no push was given up".to_owned()
                } else {
                    table(&["key", "kind", "given up", "attempts", "why"], &rows)
                }
            });
        }
        Push::Replay { key, .. } => {
            asker.changing();
            let done = asker.admin.post("/push/replay", &json!({ "key": key })).await?;
            let count = done["replayed"].as_u64().unwrap_or(0);
            asker.output.object("push_replay", done, || format!("{count} are tried again"));
        }
        Push::Secret => {
            let found = asker.admin.get("/push/secret").await?;
            let secret = text(&found["secret"]);
            asker.output.object("push_secret", found, || secret);
        }
    }
    Ok(exit::OK)
}

/// How pushes stand, in one line.
pub fn line(status: &Value) -> String {
    if status["on"].as_bool() != Some(true) {
        return "off: push.url is not set".to_owned();
    }
    let count = |name: &str| status[name].as_u64().unwrap_or(0);
    let oldest = match count("waiting") {
        0 => String::new(),
        _ => format!(", the oldest for {}", clock::span(count("oldest_s"))),
    };
    format!(
        "{} wait{oldest}   {} given up   {} delivered   log {} behind   to {}",
        count("waiting"),
        count("dead"),
        count("delivered"),
        count("lag_records"),
        tame(&text(&status["url"]))
    )
}
