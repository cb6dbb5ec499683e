//! What pushes count. No label names a user or a channel.

use std::sync::atomic::{AtomicU64, Ordering};

use fanfare_storage::push::{PushCounts, PushOutcome};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;

/// Tells the recorder what each metric means.
pub fn describe_metrics() {
    describe_gauge!("fanfare_push_waiting", "Pushes that wait, due or not");
    describe_gauge!("fanfare_push_oldest_seconds", "Age of the oldest push that waits");
    describe_gauge!("fanfare_push_dead", "Pushes that were given up and can be replayed");
    describe_gauge!("fanfare_push_lag_records", "Records of the groups' log that pushes have not read");
    describe_counter!("fanfare_push_put_total", "Pushes put into the outbox");
    describe_counter!(
        "fanfare_push_outcomes_total",
        "What became of pushes that were due, by `result`: delivered, retried, dead, cancelled, postponed"
    );
}

/// What is told to commands, too.
#[derive(Default)]
pub struct Meter {
    /// Locked for one copy.
    counts: Mutex<PushCounts>,
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl Meter {
    /// New pushes were put. Mentions among them end others, or end at once: that the next count knows.
    pub fn put(&self, new: usize) {
        self.counts.lock().waiting += new as u64;
        counter!("fanfare_push_put_total").increment(new as u64);
    }

    /// The outbox was counted.
    pub fn counted(&self, counts: PushCounts, now_ms: u64) {
        *self.counts.lock() = counts;
        let oldest_ms = if counts.waiting > 0 { now_ms.saturating_sub(counts.oldest_ms) } else { 0 };
        gauge!("fanfare_push_waiting").set(counts.waiting as f64);
        gauge!("fanfare_push_oldest_seconds").set(oldest_ms as f64 / 1000.0);
        gauge!("fanfare_push_dead").set(counts.dead as f64);
    }

    /// As counted last, with what was put since.
    pub fn counts(&self) -> PushCounts {
        *self.counts.lock()
    }

    /// So many records are not read.
    pub fn lag(&self, records: u64) {
        gauge!("fanfare_push_lag_records").set(records as f64);
    }

    /// What became of a push, also of a mention that a newer one ended while it was under way.
    pub fn outcome(&self, outcome: &PushOutcome) {
        let result = match outcome {
            PushOutcome::Delivered => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                "delivered"
            }
            PushOutcome::Retry { .. } => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                "retried"
            }
            PushOutcome::Dead { .. } => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                "dead"
            }
            PushOutcome::Cancelled => "cancelled",
            PushOutcome::Postponed { .. } => "postponed",
        };
        counter!("fanfare_push_outcomes_total", "result" => result).increment(1);
    }

    /// Nobody needs these any more.
    pub fn cancelled(&self, count: usize) {
        counter!("fanfare_push_outcomes_total", "result" => "cancelled").increment(count as u64);
    }

    /// Since the start.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Attempts that failed since the start.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}
