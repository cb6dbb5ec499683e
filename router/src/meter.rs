//! What the router counts. No label names a user, a channel or a session.

use std::{array, sync::LazyLock, time::Duration};

use fanfare_proto::link::Tier;
use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// Tells the recorder what each metric means.
pub fn describe() {
    describe_counter!("fanfare_router_sends_total", "Sends taken from gateways");
    describe_counter!("fanfare_router_repeats_total", "Sends recognised as repeats");
    describe_counter!("fanfare_router_refused_total", "Sends that failed before they were sequenced");
    describe_counter!(
        "fanfare_router_retry_later_total",
        "Sends that failed with RETRY_LATER before they were sequenced, by `why`"
    );
    describe_counter!("fanfare_router_entries_total", "Entries committed");
    describe_counter!("fanfare_router_commits_failed_total", "Commits that had no effect");
    describe_counter!("fanfare_router_commits_unknown_total", "Commits whose outcome was unknown at first");
    describe_histogram!("fanfare_router_commit_seconds", "Time of one group commit, flush included");
    describe_histogram!("fanfare_router_commit_entries", "Entries of one group commit");
    describe_counter!("fanfare_router_fanouts_total", "Frames' batches sent to gateways");
    describe_counter!("fanfare_router_bundles_total", "Bundles for warm sessions, one for each gateway");
    describe_counter!(
        "fanfare_router_notifies_total",
        "Heads told to passive sessions, one for each gateway"
    );
    describe_counter!(
        "fanfare_router_deliveries_total",
        "Entries handed to gateways, once for each session that they are for, by `tier`"
    );
    describe_counter!(
        "fanfare_router_named_total",
        "Heads handed to gateways in the place of entries, once for each session, by `tier`"
    );
    describe_histogram!(
        "fanfare_router_delay_seconds",
        "From an entry's place in the order to its hand-over to a gateway, or that of the head that names it, by `tier`"
    );
    describe_counter!("fanfare_router_behind_total", "Times a channel fell behind at a gateway");
    describe_counter!("fanfare_router_gaps_total", "GAP frames sent");
    describe_counter!("fanfare_router_loads_total", "Channels loaded");
    describe_counter!("fanfare_router_pages_tail_total", "Pages answered from a tail");
    describe_counter!("fanfare_router_pages_read_total", "Pages answered from the stores");
    describe_counter!("fanfare_router_corrupt_total", "Stored frames that did not match their hash");
    describe_counter!("fanfare_router_syncs_total", "SYNCs taken");
    describe_counter!(
        "fanfare_router_reads_refused_total",
        "Reads refused because too many wait for the stores"
    );
}

/// A send is refused with RETRY_LATER; rare.
pub fn retry_later(why: &'static str) {
    counter!("fanfare_router_retry_later_total", "why" => why).increment(1);
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $metric:literal;)*) => {
        $($(#[$doc])* pub fn $name() {
            // Looked up once: the recorder is there before the router is.
            static COUNTER: LazyLock<Counter> = LazyLock::new(|| counter!($metric));
            COUNTER.increment(1);
        })*
    };
}

counters! {
    /// Too many reads wait.
    read_refused = "fanfare_router_reads_refused_total";
    /// A send came.
    send = "fanfare_router_sends_total";
    /// It was a repeat.
    repeat = "fanfare_router_repeats_total";
    /// It was refused.
    refused = "fanfare_router_refused_total";
    /// A commit had no effect.
    commit_failed = "fanfare_router_commits_failed_total";
    /// A commit's outcome was unknown.
    unknown = "fanfare_router_commits_unknown_total";
    /// A batch went to a gateway.
    fanout = "fanfare_router_fanouts_total";
    /// A bundle for warm sessions went to a gateway.
    bundle = "fanfare_router_bundles_total";
    /// A head for passive sessions went to a gateway.
    notify = "fanfare_router_notifies_total";
    /// A channel fell behind at a gateway.
    behind = "fanfare_router_behind_total";
    /// A GAP was sent.
    gap = "fanfare_router_gaps_total";
    /// A channel was loaded.
    load = "fanfare_router_loads_total";
    /// A FETCH was answered from the tail.
    page_tail = "fanfare_router_pages_tail_total";
    /// A FETCH was answered from the stores.
    page_read = "fanfare_router_pages_read_total";
    /// A stored frame was wrong.
    corrupt = "fanfare_router_corrupt_total";
    /// A SYNC came.
    sync = "fanfare_router_syncs_total";
}

/// A commit was tried.
pub fn commit(took: Duration, entries: usize) {
    histogram!("fanfare_router_commit_seconds").record(took.as_secs_f64());
    histogram!("fanfare_router_commit_entries").record(entries as f64);
    counter!("fanfare_router_entries_total").increment(entries as u64);
}

/// So many entries were handed to a gateway for so many sessions of a tier, or one head for those who are passive, the oldest so late.
pub fn handed(tier: Tier, sessions: u32, entries: u64, late_ms: Option<u64>) {
    if sessions == 0 {
        return;
    }
    struct OfTier {
        count: Counter,
        delay: Histogram,
    }
    static TIERS: LazyLock<[OfTier; Tier::ALL.len()]> = LazyLock::new(|| {
        array::from_fn(|number| {
            let tier = Tier::ALL[number];
            let count = if tier < Tier::Passive {
                counter!("fanfare_router_deliveries_total", "tier" => tier.name())
            } else {
                counter!("fanfare_router_named_total", "tier" => tier.name())
            };
            OfTier { count, delay: histogram!("fanfare_router_delay_seconds", "tier" => tier.name()) }
        })
    });
    let of = &TIERS[tier as usize];
    of.count.increment(u64::from(sessions) * if tier < Tier::Passive { entries } else { 1 });
    if let Some(late_ms) = late_ms {
        of.delay.record(late_ms as f64 / 1_000.0);
    }
}
