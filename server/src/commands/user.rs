//! `fanfare user` and `fanfare session`.

use std::io::Write as _;

use serde_json::{Value, json};

use super::{Asker, with_lists};
use crate::{
    admin_client::segment,
    cli::{Session, User},
    clock,
    failure::{Failure, Outcome, exit},
    output::{table, tame},
};

/// Users on one page of the admin API.
const PAGE: usize = 1_000;

/// Adds, lists, or issues a token.
pub async fn run(asker: Asker, command: User) -> Outcome<u8> {
    match command {
        User::Add { name, full_delivery } => {
            let body = json!({ "name": name, "full_delivery": full_delivery });
            asker.changing();
            let user = asker.admin.post("/users", &body).await?;
            let (name, id) = (text(&user["name"]), text(&user["user"]));
            asker
                .output
                .object("user", user, || format!("made {name} ({id}). Next: fanfare user token {name}"));
        }
        User::SeenBy { name, audience } => {
            return super::presence::seen_by(asker, name, audience).await;
        }
        User::Ls => {
            let mut users: Vec<Value> = Vec::new();
            loop {
                let after = users.last().map_or_else(|| "0".to_owned(), |user| text(&user["user"]));
                let page = asker.admin.get(&format!("/users?after={after}&limit={PAGE}")).await?;
                let page = page["users"].as_array().cloned().unwrap_or_default();
                let last = page.len() < PAGE;
                users.extend(page);
                if last {
                    break;
                }
            }
            let rows: Vec<Vec<String>> = users
                .iter()
                .map(|user| {
                    let flag = |name: &str| user[name].as_bool() == Some(true);
                    let marks = [
                        ("bot", flag("bot")),
                        ("full delivery", flag("full_delivery")),
                        ("disabled", flag("disabled")),
                        ("administrator", flag("administrator")),
                    ];
                    let marks: Vec<&str> =
                        marks.iter().filter(|(_, on)| *on).map(|(mark, _)| *mark).collect();
                    vec![text(&user["name"]), text(&user["user"]), marks.join(", ")]
                })
                .collect();
            asker.output.list("users", "user", users, || table(&["name", "id", ""], &rows));
        }
        User::Token { name, ttl } => {
            let body = json!({ "ttl_s": ttl.as_secs().max(1) });
            let path = format!("/users/{}/token", segment(&name));
            asker.changing();
            let issued = asker.admin.post(&path, &body).await.map_err(with_lists)?;
            let (token, ends) = (text(&issued["token"]), text(&issued["expires_at"]));
            asker.output.remark(&format!("a token for {name}, until {ends}"));
            asker.output.object("token", issued, || token);
        }
        User::Password { name } => {
            let mut password = String::new();
            std::io::stdin().read_line(&mut password)?;
            let body = json!({ "password": password.trim_end_matches(['\r', '\n']) });
            change(&asker, &name, "password", &body, "has a new password, and is signed out everywhere")
                .await?;
        }
        User::Export { name } => export(&asker, &name).await?,
        User::Revoke { name } => {
            change(&asker, &name, "revoke", &json!({}), "is signed out everywhere").await?;
        }
        User::Disable { name } => {
            let said = "is disabled, and signed out everywhere";
            change(&asker, &name, "disabled", &json!({ "disabled": true }), said).await?;
        }
        User::Enable { name } => {
            change(&asker, &name, "disabled", &json!({ "disabled": false }), "may come in again").await?;
        }
    }
    Ok(exit::OK)
}

/// Writes an export as it comes; half a one is a failure.
async fn export(asker: &Asker, name: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    let mut last = Vec::new();
    let path = format!("/users/{}/export", segment(name));
    let taken = asker.admin.stream(&path, |part| {
        // The last line may come in parts.
        let end = part.strip_suffix(b"\n").unwrap_or(part);
        match end.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => last = part[at + 1..].to_vec(),
            None if last.ends_with(b"\n") => last = part.to_vec(),
            None => last.extend_from_slice(part),
        }
        out.write_all(part)
    });
    taken.await.map_err(with_lists)?;
    out.flush()?;
    match serde_json::from_slice::<Value>(&last) {
        Ok(line) if line["type"] == "end" => {
            asker.output.remark(&format!("that is all: {} messages", line["messages"]));
            Ok(())
        }
        _ => Err(Failure::internal("the export broke off: its last line has not the type `end`")
            .advise(format!("fanfare user export {name}"), "begins it anew")),
    }
}

/// Changes what a user may prove itself with.
async fn change(asker: &Asker, name: &str, what: &str, body: &Value, said: &str) -> Outcome {
    asker.changing();
    let path = format!("/users/{}/{what}", segment(name));
    let user = asker.admin.post(&path, body).await.map_err(with_lists)?;
    let name = tame(&text(&user["name"]));
    asker.output.object("user", user, || format!("{name} {said}"));
    Ok(())
}

/// Lists a user's live sessions, or ends them.
pub async fn sessions(asker: Asker, command: Session) -> Outcome<u8> {
    let user = match command {
        Session::Ls { user } => user,
        Session::Kick { user, device } => {
            let device = device.map(|device| device.to_string());
            asker.changing();
            let done = asker.admin.post("/sessions/kick", &json!({ "user": user, "device": device })).await;
            let done = done.map_err(with_lists)?;
            let (name, ended) = (tame(&text(&done["name"])), done["ended"].as_u64().unwrap_or(0));
            let of = device.map(|device| format!(" on device {device}")).unwrap_or_default();
            asker.output.object("session_kick", done, || match ended {
                0 => format!("{name} had no live session{of}"),
                1 => format!("ended 1 session of {name}{of}"),
                _ => format!("ended {ended} sessions of {name}{of}"),
            });
            return Ok(exit::OK);
        }
    };
    let found = asker.admin.get(&format!("/sessions?user={}", segment(&user))).await.map_err(with_lists)?;
    let sessions = found["sessions"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .map(|session| {
            let since = session["since_ms"].as_u64().map(clock::minute).unwrap_or_default();
            vec![
                text(&session["session"]),
                text(&session["device"]),
                tame(&text(&session["device_name"])),
                since,
            ]
        })
        .collect();
    asker.output.list("sessions", "session", sessions, || {
        if rows.is_empty() {
            format!("{user} has no live session")
        } else {
            table(&["session", "device", "name", "since"], &rows)
        }
    });
    Ok(exit::OK)
}

/// A JSON string's text; empty for anything else.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
