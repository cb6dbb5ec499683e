//! docs/reference/metrics.md: what the crates tell a recorder of their metrics, and the process's own.

use std::collections::BTreeMap;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;

use super::cell;
use crate::node::metrics::PROCESS;

/// Name, kind and help of every metric.
pub fn described() -> BTreeMap<String, (&'static str, String)> {
    let listener = Listener::default();
    metrics::with_local_recorder(&listener, || {
        fanfare_gateway::describe_metrics();
        fanfare_router::describe_metrics();
        fanfare_presence::describe_metrics();
        crate::http::describe_metrics();
        crate::push::describe_metrics();
    });
    let mut described = listener.0.into_inner();
    described
        .extend(PROCESS.iter().map(|(name, kind, help)| ((*name).to_owned(), (*kind, (*help).to_owned()))));
    described
}

/// The page.
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n<!-- written by `fanfare docs metrics` -->\n\n`GET /metrics` has them in Prometheus' text form: from this machine without a token, from elsewhere with that of \
         `admin.json` or an administrator's. One that \
         was not counted yet is not there. No label names a user, a\nchannel or a session. Summaries have quantiles, `_sum` and `_count`. \
         \"By lane\" is a label `lane`: a thread that holds connections.\n\n| metric | type | what it says |\n| --- | --- | --- |\n",
    );
    for (name, (kind, help)) in described() {
        page += &format!("| `{name}` | {kind} | {} |\n", cell(&help));
    }
    page
}

/// A recorder that keeps what it is told and counts nothing.
#[derive(Default)]
struct Listener(Mutex<BTreeMap<String, (&'static str, String)>>);

impl Listener {
    fn heard(&self, key: &KeyName, kind: &'static str, help: SharedString) {
        self.0.lock().insert(key.as_str().to_owned(), (kind, help.into_owned()));
    }
}

impl Recorder for Listener {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.heard(&key, "counter", help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.heard(&key, "gauge", help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        // As the exporter shows it.
        self.heard(&key, "summary", help);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Names of metrics in the sources of a folder.
    fn named(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                named(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for part in text.split('"') {
                let name = part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                let ours = [
                    "fanfare_gateway_",
                    "fanfare_router_",
                    "fanfare_store_",
                    "fanfare_http_",
                    "fanfare_push_",
                    "fanfare_presence_",
                ];
                if name && ours.iter().any(|prefix| part.len() > prefix.len() && part.starts_with(prefix)) {
                    found.push(part.to_owned());
                }
            }
        }
    }

    #[test]
    fn every_metric_is_described() {
        let described = described();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut found = Vec::new();
        for package in ["gateway", "router", "storage", "presence", "server"] {
            named(&root.join(package).join("src"), &mut found);
        }
        assert!(found.len() > 40, "only {} names in the sources", found.len());
        for name in found {
            assert!(described.contains_key(&name), "{name} is counted and nowhere described");
        }
        for (name, (_, help)) in described {
            assert!(help.len() > 5, "{name}: `{help}` helps nobody");
        }
    }
}
