//! What the router counts. No label names a user, a channel or a session.

use std::{sync::LazyLock, time::Duration};

use metrics::{Counter, counter, describe_counter, describe_histogram, histogram};

/// Tells the recorder what each metric means.
pub fn describe() {
    describe_counter!("fanfare_router_sends_total", "Sends taken from gateways");
    describe_counter!("fanfare_router_repeats_total", "Sends recognised as repeats");
    describe_counter!("fanfare_router_refused_total", "Sends that failed before they were sequenced");
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
    describe_counter!("fanfare_router_behind_total", "Times a channel fell behind at a gateway");
    describe_counter!("fanfare_router_gaps_total", "GAP frames sent");
    describe_counter!("fanfare_router_loads_total", "Channels loaded");
    describe_counter!("fanfare_router_pages_tail_total", "Pages answered from a tail");
    describe_counter!("fanfare_router_pages_read_total", "Pages answered from the stores");
    describe_counter!("fanfare_router_corrupt_total", "Stored frames that did not match their hash");
    describe_counter!("fanfare_router_syncs_total", "SYNCs taken");
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
