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
            let note = if note.is_empty() { how(trace, member) } else { note.to_owned() };
            vec![
                tame(&text(&member["name"])),
                mark("delivered"),
                mark("read"),
                format!("{} / {}", member["delivered_to"], member["read_to"]),
                note,
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

/// How a member's sessions got it, or why they did not yet.
fn how(trace: &Value, member: &Value) -> String {
    let sequenced_ms = trace["time_ms"].as_u64().unwrap_or(0);
    let after = |at: &Value| {
        at.as_u64().map_or_else(String::new, |at| {
            format!(" after {:.1} s", at.saturating_sub(sequenced_ms) as f64 / 1e3)
        })
    };
    let session = |session: &Value| {
        let tier = text(&session["tier"]);
        let bound = trace["tiers"][format!("{tier}_ms")].as_u64().unwrap_or(0) as f64 / 1e3;
        match session["state"].as_str() {
            Some("sent") if bound > 0.0 => format!("{tier}: bundled{}", after(&session["at_ms"])),
            Some("sent") => format!("{tier}: at once"),
            Some("named") => {
                format!("{tier}: told the head{}, fetches it when it looks", after(&session["at_ms"]))
            }
            _ if bound > 0.0 => format!("{tier}: waits, for {bound} s at the most"),
            _ => format!("{tier}: waits, its gateway is behind"),
        }
    };
    let sessions: Vec<String> = member["sessions"].as_array().into_iter().flatten().map(session).collect();
    if !sessions.is_empty() {
        return sessions.join("; ");
    }
    match member["push"]["state"].as_str() {
        Some("waiting") => format!("absent: a push waits, tried {} times", member["push"]["attempts"]),
        Some("dead") => format!("absent: its push was given up ({})", tame(&text(&member["push"]["error"]))),
        Some(_) => "absent: was pushed, or needed it no more".to_owned(),
        None => "absent: gets it when it comes".to_owned(),
    }
}
