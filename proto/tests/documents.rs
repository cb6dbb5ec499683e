//! docs/protocol.md says what the code says: its error table is generated from `Code::TABLE`, and its table of frames
//! holds every type with its number, name, side and header. `UPDATE_DOCS=1 cargo test -p fanfare-proto --test documents`
//! writes the error table anew.

#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf};

use fanfare_proto::{Code, FrameType, check};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")
}

fn document() -> String {
    fs::read_to_string(path()).unwrap()
}

fn error_table() -> String {
    let mut table = String::from("| number | shown as | name | close code | what happened | what to do |\n");
    table.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for row in Code::TABLE {
        let close = if row.code.closes() { row.code.close_code().to_string() } else { "-".to_owned() };
        let line = format!(
            "| {} | {} | {} | {close} | {} | {} |\n",
            row.code.0, row.code, row.name, row.what, row.fix
        );
        table.push_str(&line);
    }
    table
}

#[test]
fn the_error_table_is_that_of_the_code() {
    let document = document();
    let start = document.find("<!-- errors: ").expect("the table's first marker");
    let start = start + document[start..].find('\n').unwrap() + 1;
    let end = document.find("<!-- errors end -->").expect("the table's last marker");
    let table = error_table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path(), format!("{}{table}{}", &document[..start], &document[end..])).unwrap();
        return;
    }
    assert!(
        document[start..end] == table,
        "docs/protocol.md is stale: UPDATE_DOCS=1 cargo test -p fanfare-proto"
    );
}

#[test]
fn every_error_that_the_page_names_exists() {
    let document = document();
    // Enum values are those of the schema.
    let schema = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/schema/fanfare.proto")).unwrap();
    let schema: Vec<&str> =
        schema.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).collect();
    for word in document.split(|char: char| !(char.is_ascii_uppercase() || char == '_')) {
        // Error names and frame names both look like this; the rest are abbreviations, enum values and fields.
        if word.contains('_') && word.len() > 3 {
            let known = Code::TABLE.iter().any(|row| row.name == word)
                || FrameType::ALL.iter().any(|frame_type| frame_type.name() == word)
                || schema.contains(&word)
                || word == "UPDATE_DOCS";
            assert!(known, "{word} is neither an error nor a frame");
        }
    }
}

#[test]
fn the_table_of_frames_is_that_of_the_code() {
    let document = document();
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| 0x"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), FrameType::ALL.len());
    for (row, frame_type) in rows.iter().zip(FrameType::ALL) {
        let from = match (frame_type.from_client(), frame_type.from_server()) {
            (true, true) => "both",
            (true, false) => "client",
            (false, _) => "server",
        };
        let header = if frame_type.is_routed() { "routed" } else { "short" };
        let number = format!("0x{:02X}", *frame_type as u8);
        assert_eq!(row[..4], [number.as_str(), frame_type.name(), from, header]);
    }
}

#[test]
fn numbers_in_the_page_are_the_limits() {
    let document = document();
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    use fanfare_proto::limits;
    for (phrase, value) in [
        ("| frame, WebSocket message | ", kib(limits::FRAME_BYTES_MAX)),
        ("| body; entry | ", kib(limits::BODY_BYTES_MAX)),
        ("| token | ", kib(limits::TOKEN_BYTES_MAX)),
        ("| repeated fields | ", "1,000".to_owned()),
        ("| unanswered requests | ", limits::REQUESTS_IN_FLIGHT_MAX.to_string()),
        ("so a content is at most ", "24,499 bytes".to_owned()),
    ] {
        let wanted = format!("{phrase}{value}");
        assert!(document.contains(&wanted), "{wanted}");
    }
    assert_eq!(limits::REPEATED_MAX, 1000);
    assert_eq!(check::CONTENT_BYTES_MAX, 24_499);
}
