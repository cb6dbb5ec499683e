//! `fanfare explain`: the one table of error numbers, offline.

use fanfare_proto::{
    Code,
    error::{ErrorRow, Policy},
};
use serde_json::{Value, json};

use crate::{
    config::nearest,
    failure::{Failure, Outcome, exit},
    output::{Output, table},
};

/// Prints one row, or all.
pub fn run(output: Output, code: Option<&str>) -> Outcome<u8> {
    let Some(text) = code else {
        let rows: Vec<Vec<String>> = Code::TABLE
            .iter()
            .map(|row| vec![row.code.to_string(), row.code.0.to_string(), row.name.into(), row.what.into()])
            .collect();
        let items = Code::TABLE.iter().map(row_json).collect();
        output.list("errors", "explanation", items, || table(&["code", "number", "name", "what"], &rows));
        return Ok(exit::OK);
    };
    let named = Code::TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(text.trim())).map(|row| row.code);
    let Some(row) = named.or_else(|| Code::parse(text)).and_then(Code::row) else {
        let codes: Vec<String> = Code::TABLE.iter().map(|row| row.code.to_string()).collect();
        let upper = text.to_ascii_uppercase();
        let names = Code::TABLE.iter().map(|row| row.name).chain(codes.iter().map(String::as_str));
        let mut failure = Failure::new(Code::NO_SUCH_NAME, format!("no error number `{text}` is known"));
        if let Some(near) = nearest(&upper, names) {
            failure = failure.advise(format!("fanfare explain {near}"), "perhaps this one");
        }
        return Err(failure.advise("fanfare explain", "lists all of them"));
    };
    output.object("explanation", row_json(row), || {
        let close = row.code.close_code();
        format!(
            "{} {} ({})\n  what    {}\n  do      {}\n  retry   {}\n  close   {close}",
            row.code,
            row.name,
            row.code.0,
            row.what,
            row.fix,
            policy(row.policy).1
        )
    });
    Ok(exit::OK)
}

fn row_json(row: &ErrorRow) -> Value {
    json!({
        "code": row.code.to_string(),
        "number": row.code.0,
        "name": row.name,
        "what": row.what,
        "fix": row.fix,
        "policy": policy(row.policy).0,
        "close_code": row.code.close_code(),
    })
}

fn policy(policy: Policy) -> (&'static str, &'static str) {
    match policy {
        Policy::Resume => ("resume", "reconnect at once, with jitter"),
        Policy::BackOff => ("back_off", "again after a back-off, or after the time the answer names"),
        Policy::Authenticate => ("authenticate", "again with a fresh token"),
        Policy::Never => ("never", "do not repeat: the same would fail again"),
        Policy::Repeat => ("repeat", "repeat with the same client message id until the outcome is known"),
    }
}
