//! `fanfare trace`.

use serde_json::Value;

use super::{Asker, user::text};
use crate::{
    clock,
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Shows where a message is.
pub async fn run(asker: Asker, message: u64) -> Outcome<u8> {
    let found = asker.admin.get(&format!("/trace?message={message}")).await?;
    let shown = found.clone();
    asker.output.object("trace", found, || human(&shown));
    Ok(exit::OK)
}

fn human(trace: &Value) -> String {
    let number = |name: &str| trace[name].as_u64().unwrap_or(0);
    let yes = |name: &str| trace["stored"][name].as_bool() == Some(true);
    let name = match trace["channel_name"].as_str() {
        Some(name) if !name.is_empty() => format!("#{}", tame(name)),
        _ => "a direct channel".to_owned(),
    };
    let stored = match (yes("content"), yes("outbox")) {
        _ if trace["stored"]["hash_matches"].as_bool() == Some(false) => {
            "DAMAGED: the frame does not match its hash"
        }
        (true, true) => "content, and the outbox still holds it",
        (true, false) => "content",
        (false, true) => "the outbox, to be drained into content",
        (false, false) => "NOWHERE: its place is known and its bytes are missing",
    };
    let mut lines = vec![
        format!("{} -> {name} ({})", tame(&text(&trace["sender_name"])), text(&trace["channel"])),
        format!(
            "  entry      {}, seq {} of epoch {}, ordinal {}",
            text(&trace["kind"]),
            number("seq"),
            number("epoch"),
            number("ordinal")
        ),
        format!("  sequenced  {}", text(&trace["time"])),
        format!("  stored     metadata: its place and hash; bytes: {stored}"),
        format!(
            "  members    {} now: {} have it, {} read it",
            number("members_total"),
            number("delivered_total"),
            number("read_total")
        ),
    ];
    let rows: Vec<Vec<String>> = trace["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| {
            let mark = |name: &str| match member[name].as_bool() {
                Some(true) => "yes".to_owned(),
                _ => "-".to_owned(),
            };
            let note = match (member["sender"].as_bool(), member["visible"].as_bool()) {
                (Some(true), _) => "sent it",
                (_, Some(false)) => "joined later and may not see it",
                _ => "",
            };
            vec![
                tame(&text(&member["name"])),
                mark("delivered"),
                mark("read"),
                format!("{} / {}", member["delivered_to"], member["read_to"]),
                note.to_owned(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        lines.push(table(&["member", "delivered", "read", "up to seq", ""], &rows));
    }
    if number("members_total") > rows.len() as u64 {
        lines.push(format!("and {} more", number("members_total") - rows.len() as u64));
    }
    let age = clock::now_ms().saturating_sub(number("time_ms")) / 1000;
    lines.push(format!("{} ago", clock::span(age)));
    lines.join("\n")
}
