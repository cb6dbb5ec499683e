//! `fanfare reconcile`: through the running server, or in the folder itself where none runs.

use serde_json::{Value, json};

use super::{folder, on_runtime, server};
use crate::{
    cli::Global,
    contexts,
    failure::{Failure, Outcome, exit},
    node::stores,
};

/// Prints the report; exit 5 where something is wrong.
pub fn run(global: &Global) -> Outcome<u8> {
    let output = global.output();
    let elsewhere = contexts::chosen(global)?.is_some();
    let folder = folder(global)?;
    let asked = server(global)
        .and_then(|admin| on_runtime(async { admin.post_slow("/reconcile", &json!({})).await }));
    let report = match asked {
        Ok(report) => report,
        // Nobody holds the folder if nobody answers, or else opening it says who does.
        Err(Failure { exit: exit::UNREACHABLE, .. }) if !elsewhere && folder.join("format").exists() => {
            output.remark("no server runs: reading the data folder itself");
            stores::walk(&stores::open(&folder)?)?
        }
        Err(failure) => return Err(failure),
    };
    let clean = report["clean"].as_bool() == Some(true);
    let shown = report.clone();
    output.object("reconcile", report, || human(&shown, clean));
    Ok(if clean { exit::OK } else { exit::CHECKS })
}

fn human(report: &Value, clean: bool) -> String {
    let number = |name: &str| report[name].as_u64().unwrap_or(0);
    let mut lines = vec![format!(
        "{}: {} entries, {} frames, {} channels' chains and {} users' lists checked; {} entries not drained yet",
        if clean { "clean" } else { "NOT CLEAN" },
        number("entries_checked"),
        number("frames_checked"),
        number("chains_checked"),
        number("users_checked"),
        number("undrained")
    )];
    for name in ["missing_content", "hash_mismatch", "orphan_content", "chain_mismatch", "list_differences"] {
        let finding = &report[name];
        if finding["count"].as_u64().unwrap_or(0) > 0 {
            lines.push(format!("  {name}: {}, first {}", finding["count"], finding["examples"][0]));
        }
    }
    lines.join("\n")
}
