//! `fanfare device`.

use serde_json::{Value, json};

use super::{Asker, user::text, with_lists};
use crate::{
    admin_client::segment,
    cli::Device,
    clock,
    failure::{Outcome, exit},
    output::{table, tame},
};

/// Lists a user's devices, or revokes one.
pub async fn run(asker: Asker, command: Device) -> Outcome<u8> {
    match command {
        Device::Ls { user } => {
            let found = asker.admin.get(&format!("/devices?user={}", segment(&user))).await;
            let found = found.map_err(with_lists)?;
            let devices = found["devices"].as_array().cloned().unwrap_or_default();
            let rows: Vec<Vec<String>> = devices.iter().map(row).collect();
            asker.output.list("devices", "device", devices, || {
                if rows.is_empty() {
                    format!("{user} has no device yet")
                } else {
                    table(&["device", "name", "sessions", "seen", "revoked"], &rows)
                }
            });
        }
        Device::Rm { user, device } => {
            asker.changing();
            let body = json!({ "user": user, "device": device.to_string() });
            let done = asker.admin.post("/devices/revoke", &body).await;
            let done = done.map_err(|failure| {
                failure.advise(format!("fanfare device ls --user {user}"), "lists a user's devices")
            })?;
            let (name, ended) = (tame(&text(&done["name"])), done["ended"].as_u64().unwrap_or(0));
            asker.output.object("device_rm", done, || {
                format!(
                    "revoked device {device} of {name}: its resume secrets are void, {ended} sessions ended"
                )
            });
        }
    }
    Ok(exit::OK)
}

fn row(device: &Value) -> Vec<String> {
    let seen = device["seen_ms"].as_u64().filter(|ms| *ms > 0).map(clock::minute).unwrap_or_default();
    let revoked = match device["generation"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => "once".to_owned(),
        Some(times) => format!("{times} times"),
    };
    vec![
        text(&device["device"]),
        tame(&text(&device["name"])),
        device["sessions"].as_u64().unwrap_or(0).to_string(),
        seen,
        revoked,
    ]
}
