//! `fanfare top`: what the running server does, from its status and metrics, a line an interval.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Asker;
use crate::{
    cli::Top,
    clock,
    failure::{Outcome, exit},
    output::print_line,
};

/// Lines between two heads.
const HEAD_EVERY: u64 = 20;
/// Lines a terminal keeps in view.
const IN_VIEW: usize = 20;
/// Shorter intervals measure the questions, not the server.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

const HEAD: &str = "time       sessions    sends/s  deliveries/s   undrained     memory      cpu";

/// Prints until it is ended, or `--count` lines.
pub async fn run(asker: Asker, flags: Top) -> Outcome<u8> {
    let human = asker.output.is_human();
    let redraw = human
        && std::io::stdout().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let mut ticks = tokio::time::interval(flags.interval.max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before = Sample::take(&asker).await?;
    let mut seen: Vec<String> = Vec::new();
    let mut number = 0;
    while flags.count.is_none_or(|count| number < count) {
        ticks.tick().await;
        let now = Sample::take(&asker).await?;
        let value = now.since(&before);
        before = now;
        if !human {
            asker.output.object("top", value, String::new);
        } else if redraw {
            seen.push(line(&value));
            let first = seen.len().saturating_sub(IN_VIEW);
            seen.drain(..first);
            let server = &asker.admin.file().address;
            let every = flags.interval.max(INTERVAL_MIN);
            print_line(&format!(
                "\x1b[H\x1b[2Jfanfare at {server}, every {every:?} (Ctrl-C ends)\n\n{HEAD}\n{}",
                seen.join("\n")
            ));
        } else {
            if number % HEAD_EVERY == 0 {
                print_line(HEAD);
            }
            print_line(&line(&value));
        }
        number += 1;
    }
    Ok(exit::OK)
}

/// What the server said at one moment.
struct Sample {
    at: Instant,
    status: Value,
    sends: f64,
    deliveries: f64,
    cpu_s: f64,
    memory_bytes: f64,
}

impl Sample {
    async fn take(asker: &Asker) -> Outcome<Self> {
        let status = asker.admin.get("/status").await?;
        let metrics = asker.admin.text("/metrics").await?;
        Ok(Self {
            at: Instant::now(),
            status,
            sends: sum(&metrics, "fanfare_router_sends_total"),
            deliveries: sum(&metrics, "fanfare_gateway_entries_out_total"),
            cpu_s: sum(&metrics, "process_cpu_seconds_total"),
            memory_bytes: sum(&metrics, "process_resident_memory_bytes"),
        })
    }

    fn since(&self, before: &Self) -> Value {
        let took = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        // A server that was started anew between two samples counts from zero.
        let rate = |now: f64, before: f64| ((now - before).max(0.0) / took * 10.0).round() / 10.0;
        json!({
            "time": clock::rfc3339(clock::now_ms()),
            "ready": self.status["ready"],
            "sessions": self.status["sessions"],
            "sends_per_s": rate(self.sends, before.sends),
            "deliveries_per_s": rate(self.deliveries, before.deliveries),
            "entries_undrained": self.status["entries_undrained"],
            "memory_bytes": self.memory_bytes as u64,
            "cpu_percent": rate(self.cpu_s * 100.0, before.cpu_s * 100.0),
        })
    }
}

/// The sum of a metric over its labels.
pub fn sum(metrics: &str, name: &str) -> f64 {
    of(metrics, name, &[])
}

/// The sum of a metric over those of its lines that have these labels.
pub fn of(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter(|rest| labels.iter().all(|label| rest.contains(label)))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn line(value: &Value) -> String {
    let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
    let ready = if value["ready"].as_bool() == Some(true) { "" } else { "  NOT READY" };
    format!(
        "{:9} {:>9.0} {:>10.1} {:>13.1} {:>11.0} {:>6.0} MiB {:>6.0} %{ready}",
        clock::time_of_day(clock::now_ms()),
        number("sessions"),
        number("sends_per_s"),
        number("deliveries_per_s"),
        number("entries_undrained"),
        number("memory_bytes") / 1_048_576.0,
        number("cpu_percent"),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_metric_is_summed_over_its_labels_and_no_other_is_counted() {
        let text =
            "# TYPE a_total counter\na_total{lane=\"0\"} 3\na_total{lane=\"1\"} 4.5\na_total_more 9\nb 1\n";
        assert!((super::sum(text, "a_total") - 7.5).abs() < 1e-9);
        assert!(super::sum(text, "c").abs() < 1e-9);
    }
}
