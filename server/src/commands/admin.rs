//! `fanfare admin`: administrators, and the keys that sign webhooks.

use serde_json::{Value, json};

use super::{Asker, user::text, with_lists};
use crate::{
    admin_client::segment,
    cli::{Admin, WebhookKeys},
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Does what was asked.
pub async fn run(asker: Asker, command: Admin) -> Outcome<u8> {
    match command {
        Admin::Link { name } => link(&asker, name.as_deref()).await?,
        Admin::Ls => {
            let found = asker.admin.get("/administrators").await?;
            let users = found["administrators"].as_array().cloned().unwrap_or_default();
            let rows: Vec<Vec<String>> =
                users.iter().map(|user| vec![text(&user["name"]), text(&user["user"])]).collect();
            asker.output.list("administrators", "user", users, || {
                if rows.is_empty() {
                    "there is no administrator: fanfare admin link".to_owned()
                } else {
                    table(&["name", "id"], &rows)
                }
            });
        }
        Admin::Rm { name } => {
            asker.changing();
            let user = asker.admin.post("/administrators/dismiss", &json!({ "user": name })).await;
            let user = user.map_err(with_lists)?;
            let name = tame(&text(&user["name"]));
            asker.output.object("user", user, || format!("{name} is no administrator (any more)"));
        }
        Admin::WebhookKeys(WebhookKeys::Ls) => {
            keys(&asker, asker.admin.get("/webhook-keys").await?);
        }
        Admin::WebhookKeys(WebhookKeys::Rotate { withdraw }) => {
            asker.changing();
            keys(&asker, asker.admin.post("/webhook-keys/rotate", &json!({ "withdraw": withdraw })).await?);
        }
        Admin::WebhookKeys(WebhookKeys::Withdraw { kid }) => {
            asker.changing();
            keys(&asker, asker.admin.post("/webhook-keys/withdraw", &json!({ "kid": kid })).await?);
        }
    }
    Ok(exit::OK)
}

async fn link(asker: &Asker, name: Option<&str>) -> Outcome {
    asker.changing();
    let mut opened = asker.admin.post("/administrators/links", &json!({ "name": name })).await?;
    let at = &asker.admin.file().address;
    // A server that listens on every address is reached by this machine's own name here.
    let at = match at.strip_prefix("0.0.0.0:").or_else(|| at.strip_prefix("[::]:")) {
        Some(port) => format!("localhost:{port}"),
        None => at.clone(),
    };
    // Behind the #, which browsers keep to themselves: it reaches no server's or proxy's log.
    let mut url = format!("http://{at}/admin/claim#link={}", text(&opened["link"]));
    if let Some(name) = name {
        url += &format!("&name={}", segment(name));
    }
    if let Some(fields) = opened.as_object_mut() {
        fields.remove("link");
        fields.insert("url".to_owned(), Value::String(url.clone()));
    }
    let ends = text(&opened["expires_at"]);
    asker.output.remark(&format!("open it in a browser, until {ends}; it is good once"));
    asker.output.object("admin_link", opened, || url);
    Ok(())
}

fn keys(asker: &Asker, found: Value) {
    let keys = found["keys"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let state = match key["ends_at"].as_str() {
                Some(end) => format!("taken until {end}"),
                None => "signs".to_owned(),
            };
            vec![text(&key["kid"]), text(&key["created_at"]), state]
        })
        .collect();
    asker.output.list("webhook_keys", "webhook_key", keys, || table(&["key", "made", ""], &rows));
}
