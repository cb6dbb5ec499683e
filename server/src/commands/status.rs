//! `fanfare status`.

use serde_json::{Value, json};

use super::{
    Asker,
    top::{of, sum},
    user::text,
};
use crate::{
    clock,
    failure::{Outcome, exit},
    output::tame,
};

/// Tiers, the soonest first.
const TIERS: [&str; 5] = ["visible", "active", "warm", "passive", "background"];

/// Shows how the running server is; exit 5 where it is not ready.
pub async fn run(asker: Asker) -> Outcome<u8> {
    let status = asker.admin.get("/status").await?;
    let ready = status["ready"].as_bool() == Some(true);
    let metrics = asker.admin.text("/metrics").await;
    let mut status = status;
    status["fanout"] = metrics.as_deref().map_or(Value::Null, fanout);
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
        lines.extend(tiers(&shown));
        if let Err(failure) = &metrics {
            lines.push(format!("fan-out  not shown, /metrics cannot be had: {}", failure.what));
        }
        let hottest = shown["hottest"].as_array().into_iter().flatten().map(hot);
        let hottest: Vec<String> = hottest.collect();
        if !hottest.is_empty() {
            lines.push(format!("hottest  {}", hottest.join("   ")));
        }
        for check in shown["checks"].as_array().into_iter().flatten() {
            let glyph = if check["ok"].as_bool() == Some(true) { "+" } else { "-" };
            lines.push(format!("[{glyph}] {:9} {}", text(&check["name"]), text(&check["detail"])));
        }
        lines.join("\n")
    });
    Ok(if ready { exit::OK } else { exit::CHECKS })
}

/// What each tier has and got since the start, from the metrics.
fn fanout(metrics: &str) -> Value {
    let tier = |tier: &&str| {
        let label = format!("tier=\"{tier}\"");
        let count = |name: &str| of(metrics, name, &[&label]) as u64;
        let delay = of(metrics, "fanfare_router_delay_seconds", &[&label, "quantile=\"0.99\""]);
        json!({
            "tier": tier,
            "members": count("fanfare_gateway_members"),
            "deliveries": count("fanfare_router_deliveries_total"),
            "named": count("fanfare_router_named_total"),
            "delay_p99_ms": (delay * 1e3).round() as u64,
        })
    };
    json!({
        "tiers": TIERS.iter().map(tier).collect::<Vec<_>>(),
        "bundles": sum(metrics, "fanfare_router_bundles_total") as u64,
        "heads": sum(metrics, "fanfare_router_notifies_total") as u64,
        "presence_lag": sum(metrics, "fanfare_presence_queue_depth") as u64,
    })
}

/// A line a tier that has anybody, or had.
fn tiers(status: &Value) -> Vec<String> {
    let line = |tier: &Value| {
        let number = |name: &str| tier[name].as_u64().unwrap_or(0);
        let (name, got) = (text(&tier["tier"]), number("deliveries") + number("named"));
        let bound = match status["tiers"][format!("{name}_ms")].as_u64() {
            Some(bound) if bound > 0 => format!("of {bound} ms"),
            _ => "at once".to_owned(),
        };
        let what = if number("named") > 0 { "heads told" } else { "delivered" };
        (got + number("members") > 0).then(|| {
            format!(
                "  {name:10} {:>9} members {got:>12} {what}   p99 after {} ms, {bound}",
                number("members"),
                number("delay_p99_ms")
            )
        })
    };
    let mut lines: Vec<String> =
        status["fanout"]["tiers"].as_array().into_iter().flatten().filter_map(line).collect();
    if !lines.is_empty() {
        let count = |name: &str| status["fanout"][name].as_u64().unwrap_or(0);
        let mut head = format!(
            "fan-out  {} bundles, {} heads to gateways; presence {} behind",
            count("bundles"),
            count("heads"),
            count("presence_lag")
        );
        let doubled = status["tiers"]["passive_doubled"].as_u64().unwrap_or(0);
        if doubled > 0 {
            head.push_str(&format!("; busy: passive members wait {} times as long", 1u64 << doubled.min(32)));
        }
        lines.insert(0, head);
    }
    lines
}

fn hot(hot: &Value) -> String {
    let name = match hot["name"].as_str() {
        Some(name) if !name.is_empty() => format!("#{}", tame(name)),
        _ => text(&hot["channel"]),
    };
    format!("{name} {}/min to {} sessions", hot["entries_per_min"], hot["sessions"])
}
