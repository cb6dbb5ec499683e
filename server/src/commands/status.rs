//! `fanfare status`.

use super::{Asker, user::text};
use crate::{
    clock,
    failure::{Outcome, exit},
};

/// Shows how the running server is; exit 5 where it is not ready.
pub async fn run(asker: Asker) -> Outcome<u8> {
    let status = asker.admin.get("/status").await?;
    let ready = status["ready"].as_bool() == Some(true);
    let shown = status.clone();
    asker.output.object("status", status, || {
        let count = |name: &str| shown[name].as_u64().unwrap_or(0);
        let certificate = match shown["certificate_left_s"].as_u64() {
            Some(left) => format!("certificate {} left", clock::span(left)),
            None => "certificate from files".to_owned(),
        };
        let mut lines = vec![
            format!(
                "{}   v{}   up {}   {certificate}",
                if ready { "ready" } else { "NOT READY" },
                text(&shown["version"]),
                clock::span(count("up_s"))
            ),
            format!(
                "clients  {} sessions   gateway {}   HTTP {}",
                count("sessions"),
                text(&shown["gateway"]),
                text(&shown["http"])
            ),
            format!(
                "data     {}   {} entries waiting to be drained",
                text(&shown["data"]),
                count("entries_undrained")
            ),
        ];
        if shown["push"]["on"].as_bool() == Some(true) {
            lines.push(format!("push     {}", super::push::line(&shown["push"])));
        }
        for check in shown["checks"].as_array().into_iter().flatten() {
            let glyph = if check["ok"].as_bool() == Some(true) { "+" } else { "-" };
            lines.push(format!("[{glyph}] {:9} {}", text(&check["name"]), text(&check["detail"])));
        }
        lines.join("\n")
    });
    Ok(if ready { exit::OK } else { exit::CHECKS })
}
