//! Fanfare's wire: ids, headers, frames, error numbers, the sans-IO session and WebSocket framing, and the
//! envelope between gateway and router. No runtime, no socket, no clock, no randomness: bytes and `now` come in
//! as arguments. `docs/protocol.md` specifies every byte.

pub mod check;
pub mod error;
pub mod frame;
pub mod header;
pub mod ids;
pub mod limits;
pub mod link;
pub mod session;
pub mod ws;

/// The bodies of frames, generated from `schema/fanfare.proto` (`tests/schema.rs` keeps both together).
#[allow(clippy::all, clippy::pedantic, missing_docs)]
#[rustfmt::skip]
pub mod wire;

pub use error::Code;
pub use frame::Frame;
pub use header::{FrameType, Header, RoutedHeader, ShortHeader};
pub use ids::{ChannelId, ClientMessageId, DeviceId, MessageId, Seq, SessionId, ShardId, UserId};

/// The schema of frames' bodies as a protobuf `FileDescriptorSet`, for tools that show any body by its fields' names.
pub const DESCRIPTORS: &[u8] = include_bytes!("../schema/fanfare.fds");

/// The protocol version this crate speaks.
pub const VERSION: u32 = 1;
/// ALPN of QUIC connections.
pub const ALPN: &[u8] = b"fanfare/1";
/// WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "fanfare.v1";
/// Path of the WebSocket endpoint.
pub const WS_PATH: &str = "/v1/ws";
/// Port of both transports, UDP and TCP.
pub const PORT: u16 = 7443;
/// Port of HTTP.
pub const HTTP_PORT: u16 = 7080;
