//! What a replay prints: for people, and as JSON.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::check::Counts;

/// Percentiles of one latency in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// One kill of the server.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// Seconds since the replay began.
    pub at_s: f64,
    /// Sends without an answer at that moment.
    pub in_flight: usize,
    /// Sends acknowledged before.
    pub acked: usize,
    /// From the kill until the server said that it was ready.
    pub ready_after_ms: u64,
    /// What a power cut took back; absent where the kill was plain.
    pub power_cut: Option<serde_json::Value>,
}

/// What the run proves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every promise held.
    Pass,
    /// A promise was broken.
    Broken,
    /// The run proves nothing.
    Invalid,
}

impl Verdict {
    /// 0 PASS, 10 a promise broken, 11 INVALID.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Broken => 10,
            Self::Invalid => 11,
        }
    }
}

/// The whole report; stable keys, units in names.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `fanfare.replay/v1`.
    pub schema: &'static str,
    /// What the run proves.
    pub verdict: Verdict,
    /// Why it is not PASS.
    pub reasons: Vec<String>,
    /// ws, quic or mix.
    pub transport: String,
    /// Messages of the trace that were asked for.
    pub messages: usize,
    /// Users with a session each.
    pub users: usize,
    /// Channels.
    pub channels: usize,
    /// Joins, the openings of channels included.
    pub joins: u64,
    /// Messages acknowledged.
    pub sends_acked: u64,
    /// Message deliveries that the members of each channel must have got.
    pub deliveries_expected: u64,
    /// Those they got.
    pub deliveries: u64,
    /// Of these, by FETCH.
    pub fetched: u64,
    /// Must be 0.
    pub lost: u64,
    /// Must be 0.
    pub duplicated: u64,
    /// Must be 0.
    pub reordered: u64,
    /// Must be 0.
    pub altered: u64,
    /// Must be 0.
    pub leaked: u64,
    /// Entries read back after all by independent readers and compared.
    pub reread: u64,
    /// Kills of the server.
    pub kills: Vec<Kill>,
    /// Sends one of whose attempts ended without an answer, and that came to a definite end.
    pub unknown_resolved: u64,
    /// Attempts refused by a limiter; any makes the run INVALID.
    pub rate_limited: u64,
    /// Connections that ended and were made anew.
    pub reconnects: u64,
    /// From the first send to the last acknowledgement.
    pub duration_s: f64,
    /// From the last acknowledgement until every member had everything.
    pub settle_s: f64,
    /// Acknowledged messages a second.
    pub sends_per_s: f64,
    /// Message deliveries a second, over the whole of both.
    pub deliveries_per_s: f64,
    /// From the planned instant to SEND_ACK.
    pub ack: Latency,
    /// From the planned instant to a member's DELIVER, live ones.
    pub deliver: Latency,
    /// The server's CPU seconds, all lives.
    pub server_cpu_s: f64,
    /// Its CPU per delivery.
    pub server_cpu_us_per_delivery: f64,
    /// Its most resident memory.
    pub server_rss_peak_bytes: u64,
    /// This program's CPU seconds.
    pub loadgen_cpu_s: f64,
    /// Violations in words, the first few.
    pub examples: Vec<String>,
    /// The command that repeats it.
    pub repeat: String,
}

impl Report {
    /// Whether the counts hold all promises.
    pub fn is_sound(counts: &Counts) -> bool {
        [counts.lost, counts.duplicated, counts.reordered, counts.altered, counts.leaked]
            .iter()
            .all(|count| *count == 0)
    }

    /// For people.
    pub fn print(&self) {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Broken => "BROKEN",
            Verdict::Invalid => "INVALID",
        };
        println!(
            "VERDICT  {verdict} · {} deliveries checked: {} lost, {} duplicated, {} reordered, {} altered, {} leaked",
            self.deliveries, self.lost, self.duplicated, self.reordered, self.altered, self.leaked
        );
        for reason in &self.reasons {
            println!("  why    {reason}");
        }
        for example in &self.examples {
            println!("  seen   {example}");
        }
        println!(
            "  {} users in {} channels over {}, {} joins, {} of {} messages acknowledged, {} deliveries expected",
            self.users,
            self.channels,
            self.transport,
            self.joins,
            self.sends_acked,
            self.messages,
            self.deliveries_expected
        );
        println!("                    p50      p90      p99    p99.9      max   ms");
        for (name, latency) in [("send → ack", self.ack), ("send → deliver", self.deliver)] {
            let ms = |us: u64| us as f64 / 1000.0;
            println!(
                "  {name:<14} {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}   from the planned instant, {} measured",
                ms(latency.p50_us),
                ms(latency.p90_us),
                ms(latency.p99_us),
                ms(latency.p999_us),
                ms(latency.max_us),
                latency.count
            );
        }
        println!(
            "  {:.0} sends/s, {:.0} deliveries/s over {:.1} s and {:.1} s to settle",
            self.sends_per_s, self.deliveries_per_s, self.duration_s, self.settle_s
        );
        println!(
            "  server {:.1} CPU s ({:.2} us a delivery), {:.0} MiB at most · generator {:.1} CPU s",
            self.server_cpu_s,
            self.server_cpu_us_per_delivery,
            self.server_rss_peak_bytes as f64 / (1 << 20) as f64,
            self.loadgen_cpu_s
        );
        for (number, kill) in self.kills.iter().enumerate() {
            let cut = kill.power_cut.as_ref().map(|cut| format!(", power cut {cut}")).unwrap_or_default();
            println!(
                "  kill {} at {:.1} s: {} sends in flight, {} acknowledged, ready after {} ms{cut}",
                number + 1,
                kill.at_s,
                kill.in_flight,
                kill.acked,
                kill.ready_after_ms
            );
        }
        if !self.kills.is_empty() {
            println!(
                "  {} sends of unknown outcome came to a definite end; {} entries read back and compared",
                self.unknown_resolved, self.reread
            );
        }
        println!("  repeat {}", self.repeat);
    }
}
