//! WebSocket framing (RFC 6455) without IO, for both sides: bytes in, events out.
//!
//! Made for a server with very many quiet connections: an idle [`Decoder`] is a few words and holds no heap, so
//! one read buffer can serve all connections of a worker. A frame that lies whole in that buffer is unmasked in
//! place and lent out of it, without a copy. Server frames carry no mask, so one header in front of one payload
//! can be written to any number of sockets ([`server_header`]).
//!
//! Compression is never negotiated, and randomness (masks, keys) is always an argument. What the caller must do:
//! answer [`Event::Ping`], count control frames per second, write a close frame with [`WsError::close_code`]
//! when decoding fails, and hold deadlines.
//!
//! - `frame`: the header on the wire, masks, and how frames are written;
//! - `decoder`: from a stream of bytes to messages and control frames;
//! - `handshake`: the HTTP upgrade, server and client side.

mod decoder;
mod frame;
mod handshake;

pub use decoder::{Decoder, Event};
pub use frame::{
    CLIENT_HEADER_BYTES_MAX, CLOSE_REASON_BYTES_MAX, CONTROL_BYTES_MAX, Opcode, SERVER_HEADER_BYTES_MAX,
    client_close, client_control, client_frame, client_header, close_code_is_valid, close_payload,
    server_close, server_control, server_header, server_header_len, unmask,
};
pub use handshake::{
    Accepted, ClientRequest, HEAD_BYTES_MAX, HEADERS_MAX, HandshakeError, Refusal, Upgrade, accept_key,
};

/// Which end of the connection a [`Decoder`] stands at. A server takes only masked frames, a client only
/// unmasked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Decodes what clients send.
    Server,
    /// Decodes what a server sends.
    Client,
}

/// What one message may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message in bytes, all its fragments together. Checked against the declared length, before any
    /// memory is taken.
    pub message_bytes_max: u32,
    /// Most frames that one message may come in. Empty ones count too.
    pub fragments_max: u32,
}

impl Limits {
    /// What Fanfare's gateway allows: 64 KiB in at most 64 frames.
    pub const FANFARE: Self = Self { message_bytes_max: 64 << 10, fragments_max: 64 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::FANFARE
    }
}

/// What a peer did wrong. The connection cannot go on: send a close frame with [`WsError::close_code`], then
/// close the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// One of the three reserved bits is set; they belong to extensions, and none is negotiated.
    #[error("reserved bit set: no extension was negotiated")]
    ReservedBits,
    /// An opcode that RFC 6455 does not define; holds its four bits.
    #[error("unknown opcode {0:#x}")]
    UnknownOpcode(u8),
    /// A control frame that is not the last of its message.
    #[error("fragmented control frame")]
    FragmentedControl,
    /// A control frame with more than 125 bytes.
    #[error("control frame longer than 125 bytes")]
    ControlTooLong,
    /// A client frame without a mask.
    #[error("client frame without a mask")]
    Unmasked,
    /// A server frame with a mask.
    #[error("server frame with a mask")]
    Masked,
    /// A 64-bit length with its top bit set.
    #[error("length with its top bit set")]
    LengthTopBit,
    /// A length written in more bytes than it needs.
    #[error("length not in its shortest form")]
    LengthNotMinimal,
    /// A continuation frame where no message had begun.
    #[error("continuation of no message")]
    UnexpectedContinuation,
    /// A new message before the fragmented one had ended.
    #[error("new message inside a fragmented one")]
    ExpectedContinuation,
    /// A close frame with a payload of one byte.
    #[error("close frame with half a code")]
    CloseTooShort,
    /// A close code that must not be sent.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// A text message or close reason that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A message above [`Limits::message_bytes_max`].
    #[error("message too long")]
    MessageTooLong,
    /// A message in more frames than [`Limits::fragments_max`].
    #[error("message in too many fragments")]
    TooManyFragments,
}

impl WsError {
    /// The status code for the close frame: 1002 (protocol), 1007 (not UTF-8), 1008 (too many fragments) or
    /// 1009 (too long).
    pub fn close_code(self) -> u16 {
        match self {
            Self::Utf8 => 1007,
            Self::TooManyFragments => 1008,
            Self::MessageTooLong => 1009,
            _ => 1002,
        }
    }
}
