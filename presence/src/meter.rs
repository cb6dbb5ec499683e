//! What presence counts. No label names a user or a session.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

/// Tells the recorder what each metric means.
pub fn describe() {
    describe_gauge!("fanfare_presence_online", "Users online");
    describe_gauge!("fanfare_presence_away", "Users away");
    describe_gauge!("fanfare_presence_watchers", "Sessions that watch somebody");
    describe_gauge!("fanfare_presence_watched", "Users on all watch lists, each time they are");
    describe_gauge!("fanfare_presence_queue_depth", "Words of gateways that wait");
    describe_gauge!("fanfare_presence_writes_waiting", "Last seens that wait to be written");
    describe_counter!("fanfare_presence_changes_total", "Users' changes sent to sessions that watch");
    describe_counter!("fanfare_presence_frames_total", "PRESENCE frames sent");
    describe_counter!("fanfare_presence_held_total", "Times changes were held back for want of credit");
    describe_counter!("fanfare_presence_dropped_total", "Words of gateways dropped: a full queue");
    describe_counter!("fanfare_presence_writes_total", "Last seens written");
    describe_counter!(
        "fanfare_presence_checks_total",
        "Times it was looked up whether one user may see another"
    );
}

/// The recorder's handles.
pub struct Meters {
    pub online: Gauge,
    pub away: Gauge,
    pub watchers: Gauge,
    pub watched: Gauge,
    pub queue_depth: Gauge,
    pub writes_waiting: Gauge,
    pub changes: Counter,
    pub frames: Counter,
    pub held: Counter,
    pub dropped: Counter,
    pub writes: Counter,
    pub checks: Counter,
}

impl Meters {
    pub fn new() -> Self {
        Self {
            online: gauge!("fanfare_presence_online"),
            away: gauge!("fanfare_presence_away"),
            watchers: gauge!("fanfare_presence_watchers"),
            watched: gauge!("fanfare_presence_watched"),
            queue_depth: gauge!("fanfare_presence_queue_depth"),
            writes_waiting: gauge!("fanfare_presence_writes_waiting"),
            changes: counter!("fanfare_presence_changes_total"),
            frames: counter!("fanfare_presence_frames_total"),
            held: counter!("fanfare_presence_held_total"),
            dropped: counter!("fanfare_presence_dropped_total"),
            writes: counter!("fanfare_presence_writes_total"),
            checks: counter!("fanfare_presence_checks_total"),
        }
    }
}
