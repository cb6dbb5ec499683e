//! The names of the gateway's metrics, in one place. No label holds a user, a channel or a connection.

use metrics::{Unit, describe_counter, describe_gauge};

/// Tells the recorder, where there is one, what the metrics mean.
pub fn describe() {
    describe_gauge!("fanfare_gateway_connections", "Sessions and those opening, by lane");
    describe_gauge!("fanfare_gateway_memberships", "Places in channels' audiences, by lane");
    describe_gauge!("fanfare_gateway_members", "Places in channels' audiences, by lane and tier");
    describe_counter!("fanfare_gateway_sends_total", "Writes to connections, by lane");
    describe_gauge!("fanfare_gateway_channels", "Channels with an audience, by lane");
    describe_gauge!(
        "fanfare_gateway_waiting_bytes",
        Unit::Bytes,
        "Bytes that wait for slow readers, by lane"
    );
    describe_counter!("fanfare_gateway_closes_total", "Connections closed or refused, by error number");
    describe_counter!(
        "fanfare_gateway_unsent_total",
        "Frames refused (RETRY_LATER) because their owner's inbox was full"
    );
    describe_counter!("fanfare_gateway_refused_total", "Upgrades refused, by HTTP status");
    describe_counter!(
        "fanfare_gateway_shed_total",
        "Connections dropped before their handshake, for lack of room"
    );
    describe_counter!(
        "fanfare_gateway_panics_total",
        "Panics that ended a connection or a piece of a lane's work"
    );
    describe_counter!("fanfare_gateway_accept_errors_total", "Errors of accept");
    describe_counter!("fanfare_gateway_frames_in_total", "Frames of clients handed to routers, by lane");
    describe_counter!("fanfare_gateway_buffers_out_total", "Gathered buffers handed to connections, by lane");
    describe_counter!("fanfare_gateway_entries_out_total", "Entries in those, once for each reader, by lane");
    describe_counter!("fanfare_gateway_bytes_out_total", Unit::Bytes, "Bytes of those, by lane");
}
