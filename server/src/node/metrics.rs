//! Prometheus: one recorder per process, and what only the operating system knows.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinHandle;

/// Histograms are folded that often, also when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

const STARTED: &str = "process_start_time_seconds";
const RESIDENT: &str = "process_resident_memory_bytes";

/// What only the operating system knows: name, type, help.
pub const PROCESS: &[(&str, &str, &str)] = &[
    (STARTED, "gauge", "Unix time of the start"),
    (RESIDENT, "gauge", "Memory in use"),
    ("process_cpu_seconds_total", "counter", "User and system time"),
];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// The process's metrics.
#[derive(Debug)]
pub struct Metrics {
    upkeep: JoinHandle<()>,
}

impl Metrics {
    /// Installs the recorder, once per process, before anything is counted.
    pub fn install() -> Self {
        let handle = HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).clone();
        if handle.is_none() {
            tracing::warn!(
                "another recorder of metrics is installed: /metrics has the process's values only"
            );
        }
        let upkeep = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP_EVERY);
            loop {
                ticks.tick().await;
                if let Some(handle) = &handle {
                    handle.run_upkeep();
                }
            }
        });
        Self { upkeep }
    }

    /// The exposition text.
    pub fn render(&self, started_ms: u64) -> String {
        let mut text =
            HANDLE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default();
        for (name, kind, help) in PROCESS {
            let value = match *name {
                STARTED => Some(started_ms as f64 / 1000.0),
                RESIDENT => resident_bytes().map(|bytes| bytes as f64),
                _ => cpu_seconds(),
            };
            if let Some(value) = value {
                text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
            }
        }
        text
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // proc(5): fields 14 and 15 in ticks, 100 a second, counted behind the command's closing parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some((user + system) as f64 / 100.0)
}
