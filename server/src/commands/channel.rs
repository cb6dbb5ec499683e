//! `fanfare channel`.

use serde_json::{Value, json};

use super::{Asker, user::text, with_lists};
use crate::{
    admin_client::segment,
    cli::{Actor, Channel, Mark},
    clock,
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Creates, lists, shows members or history.
pub async fn run(asker: Asker, command: Channel) -> Outcome<u8> {
    match command {
        Channel::Create { name, members, actor } => {
            let body = json!({ "name": name, "as": asker.actor(&actor)?, "members": members });
            asker.changing();
            let made = asker.admin.post("/channels", &body).await.map_err(with_lists)?;
            let (name, id) = (tame(&text(&made["name"])), text(&made["channel"]));
            asker.output.object("channel", made, || {
                format!("made {name} ({id}). Next: fanfare send {name} \"hello\"")
            });
        }
        Channel::Ls { actor } => list(&asker, &actor).await?,
        Channel::Info { channel, user } => info(&asker, &channel, user).await?,
        Channel::Members { channel, actor } => {
            let found = of_channel(&asker, "members", &channel, &actor, "").await?;
            let members = found["members"].as_array().cloned().unwrap_or_default();
            let rows: Vec<Vec<String>> = members
                .iter()
                .map(|member| {
                    vec![tame(&text(&member["name"])), text(&member["role"]), text(&member["user"])]
                })
                .collect();
            asker.output.list("members", "member", members, || table(&["name", "role", "id"], &rows));
        }
        Channel::Mute { mark } => set_mark(&asker, "muted", &mark).await?,
        Channel::Ban { mark } => set_mark(&asker, "banned", &mark).await?,
        Channel::History { channel, actor, limit } => {
            let found = of_channel(&asker, "history", &channel, &actor, &format!("&limit={limit}")).await?;
            let messages = found["messages"].as_array().cloned().unwrap_or_default();
            let lines: Vec<String> = messages.iter().map(message_line).collect();
            asker.output.list("messages", "message", messages, || {
                if lines.is_empty() { "nothing was said yet".to_owned() } else { lines.join("\n") }
            });
        }
    }
    Ok(exit::OK)
}

async fn list(asker: &Asker, actor: &Actor) -> Outcome {
    let found = asker
        .admin
        .get(&format!("/channels?as={}", segment(&asker.actor(actor)?)))
        .await
        .map_err(with_lists)?;
    let channels = found["channels"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = channels
        .iter()
        .map(|channel| {
            let direct = channel["kind"].as_str() == Some("direct");
            let name =
                if direct { format!("@{}", text(&channel["peer_name"])) } else { text(&channel["name"]) };
            let number = |name: &str| channel[name].as_u64().unwrap_or(0).to_string();
            vec![
                tame(&name),
                number("members"),
                number("unread"),
                text(&channel["role"]),
                text(&channel["channel"]),
            ]
        })
        .collect();
    asker
        .output
        .list("channels", "channel", channels, || table(&["name", "members", "unread", "role", "id"], &rows));
    Ok(())
}

async fn set_mark(asker: &Asker, kind: &str, mark: &Mark) -> Outcome {
    let until_ms = mark.time.map_or(0, |time| clock::now_ms().saturating_add(time.as_millis() as u64));
    let body = json!({
        "channel": mark.channel,
        "as": asker.actor(&mark.actor)?,
        "user": mark.whom,
        "kind": kind,
        "stands": !mark.lift,
        "until_ms": until_ms,
    });
    asker.changing();
    let done = asker.admin.post("/marks", &body).await.map_err(with_lists)?;
    let (name, channel) = (tame(&text(&done["name"])), tame(&mark.channel));
    asker.output.object("mark", done, || {
        let end = if until_ms > 0 { format!(" until {}", clock::minute(until_ms)) } else { String::new() };
        let not = if mark.lift { "no longer " } else { "" };
        format!("{name} is {not}{kind} in {channel}{end}")
    });
    Ok(())
}

/// How a channel stands; without an actor as the operator sees it.
async fn info(asker: &Asker, channel: &str, user: Option<String>) -> Outcome {
    // @name is somebody's other side: it needs to be said whose.
    let user = match user {
        None if channel.starts_with('@') => Some(asker.actor(&Actor { user: None })?),
        user => user,
    };
    let actor = user.map(|user| format!("&as={}", segment(&user))).unwrap_or_default();
    let path = format!("/channel/info?channel={}{actor}", segment(channel));
    let found = asker.admin.get(&path).await.map_err(with_lists)?;
    let shown = found.clone();
    asker.output.object("channel_info", found, || {
        let number = |name: &str| shown[name].as_u64().unwrap_or(0);
        let direct = text(&shown["kind"]) == "direct";
        let pair: Vec<String> =
            shown["pair"].as_array().into_iter().flatten().map(|user| tame(&text(user))).collect();
        let name = if direct { pair.join(" and ") } else { tame(&text(&shown["name"])) };
        let newest = shown["active_ms"].as_u64().filter(|ms| *ms > 0).map(clock::minute);
        format!(
            "{} {name} ({})\n  head       seq {} of epoch {}, ordinal {}, newest {}\n  members    {}   listeners {}\n  \
             tail       {} frames in memory\n  policies   history {}   join {}   posting {}",
            text(&shown["kind"]),
            text(&shown["channel"]),
            number("head"),
            number("epoch"),
            number("ordinal"),
            newest.unwrap_or_else(|| "never".to_owned()),
            number("members"),
            number("listeners"),
            number("tail_frames"),
            text(&shown["history"]),
            text(&shown["join"]),
            text(&shown["posting"]),
        )
    });
    Ok(())
}

async fn of_channel(asker: &Asker, what: &str, channel: &str, actor: &Actor, more: &str) -> Outcome<Value> {
    let (channel, actor) = (segment(channel), segment(&asker.actor(actor)?));
    asker.admin.get(&format!("/{what}?channel={channel}&as={actor}{more}")).await.map_err(with_lists)
}

/// One message as people read it.
pub fn message_line(message: &Value) -> String {
    let time = message["time_ms"].as_u64().map(clock::time_of_day).unwrap_or_default();
    let body = match (message["recalled"].as_bool(), message["text"].as_str()) {
        (Some(true), _) => "(recalled)".to_owned(),
        (_, Some(text)) => tame(text),
        _ => "(not text)".to_owned(),
    };
    let edited = if message["edited"].as_bool() == Some(true) { "  (edited)" } else { "" };
    format!("{time}  {:8}  {body}{edited}", tame(&text(&message["sender_name"])))
}
