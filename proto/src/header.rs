//! Frame headers: fixed offsets, little-endian, read without decoding a body.
//!
//! ```text
//! short header, 8 bytes                      routed header, 24 bytes (bit 7 of type set)
//!  0  u8   type                               0..7  as the short header
//!  1  u8   flags                              8     u64 channel id
//!  2  u8   class                             16     u64 seq; a request number in SEND, FETCH, OPEN, COUNTS
//!  3  u8   epoch, low 8 bits (routed only)           and their answers
//!  4  u32  body length
//! ```

use crate::{error::Code, ids::ChannelId, limits};

/// Bytes of a short header.
pub const SHORT_BYTES: usize = 8;
/// Bytes of a routed header.
pub const ROUTED_BYTES: usize = 24;

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $wire:literal;)*) => {
        /// What a frame is; bit 7 set means that it has a routed header.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $value,)* }

        impl FrameType {
            /// All of them, by number.
            pub const ALL: &'static [FrameType] = &[$(FrameType::$name,)*];

            /// The type of that number.
            pub fn from_u8(value: u8) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            /// Its name in the protocol document.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }
        }
    };
}

frame_types! {
    /// Client's first frame.
    Hello = 0x01, "HELLO";
    /// Server's answer to HELLO.
    Welcome = 0x02, "WELCOME";
    /// A fresh token, the request for one, or the answer.
    Auth = 0x03, "AUTH";
    /// Heartbeat of the client.
    Ping = 0x04, "PING";
    /// Its answer.
    Pong = 0x05, "PONG";
    /// Positions that the device has reached.
    Ack = 0x06, "ACK";
    /// The server asks the client to move.
    GoAway = 0x07, "GOAWAY";
    /// The last frame of a session, with its error number.
    Close = 0x08, "CLOSE";
    /// What the client's screen shows.
    State = 0x09, "STATE";
    /// The client asks where its channels stand.
    Sync = 0x0a, "SYNC";
    /// The answer, one or more.
    Synced = 0x0b, "SYNCED";
    /// A request that failed without ending the session and has no answer of its own.
    Error = 0x0c, "ERROR";
    /// One entry to be sequenced.
    Send = 0x81, "SEND";
    /// What became of it.
    SendAck = 0x82, "SEND_ACK";
    /// A stored entry.
    Deliver = 0x83, "DELIVER";
    /// Cursors of members.
    Receipt = 0x84, "RECEIPT";
    /// How many have passed a seq: question and answer.
    Counts = 0x85, "COUNTS";
    /// A channel's head moved; no bodies.
    Notify = 0x86, "NOTIFY";
    /// Entries up to the head are not sent: FETCH them.
    Gap = 0x87, "GAP";
    /// The client asks for a range of history.
    Fetch = 0x88, "FETCH";
    /// A part of the answer.
    Page = 0x89, "PAGE";
    /// Somebody types.
    Typing = 0x8a, "TYPING";
    /// Somebody came or went.
    Presence = 0x8b, "PRESENCE";
    /// The client opens a direct channel or makes a group.
    Open = 0x8c, "OPEN";
    /// A channel as it stands for this user: the answer to OPEN, and word of a membership that changed.
    Channel = 0x8d, "CHANNEL";
    /// A request with a number that failed and has no answer of its own.
    Refused = 0x8e, "REFUSED";
}

impl FrameType {
    /// Whether it has a routed header.
    pub fn is_routed(self) -> bool {
        self as u8 & 0x80 != 0
    }

    /// Whether a client may send it.
    pub fn from_client(self) -> bool {
        use FrameType::*;
        matches!(
            self,
            Hello
                | Auth
                | Ping
                | Ack
                | Close
                | State
                | Sync
                | Send
                | Receipt
                | Counts
                | Fetch
                | Typing
                | Presence
                | Open
        )
    }

    /// Whether a server may send it.
    pub fn from_server(self) -> bool {
        use FrameType::*;
        !matches!(self, Hello | Ping | Ack | State | Sync | Send | Fetch | Open)
    }
}

/// Flags of frames; which bits mean something depends on the type, others must be 0.
pub mod flags {
    /// SEND: an earlier attempt of the same client message id was made.
    pub const RETRY: u8 = 1;
    /// DELIVER: the body is opaque (end-to-end encrypted).
    pub const OPAQUE: u8 = 1;
    /// DELIVER: the entry counts as unread.
    pub const COUNTED: u8 = 2;
    /// DELIVER inside a PAGE, or in place of a stored frame: the body was recalled or erased; this is its stub.
    pub const STUB: u8 = 4;
}

/// Classes: low 4 bits a priority (0 first), bit 7 that it may be dropped.
pub mod class {
    /// Session control.
    pub const CONTROL: u8 = 0;
    /// Entries and answers to sends.
    pub const MESSAGE: u8 = 1;
    /// Heads, gaps, cursors: newer ones replace older ones.
    pub const STATE: u8 = 2;
    /// History.
    pub const HISTORY: u8 = 3;
    /// Typing and presence: may be dropped.
    pub const HINT: u8 = 0x80 | 4;
    /// The bit that says "may be dropped".
    pub const DROPPABLE: u8 = 0x80;
}

/// The first 8 bytes of each frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShortHeader {
    /// What it is.
    pub frame_type: FrameType,
    /// See [`flags`].
    pub flags: u8,
    /// See [`class`].
    pub class: u8,
    /// Low 8 bits of the channel's epoch; 0 in a short header.
    pub epoch: u8,
    /// Bytes of the body, which follows the whole header.
    pub body_bytes: u32,
}

/// The 24-byte header of frames that belong to a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoutedHeader {
    /// The first 8 bytes.
    pub short: ShortHeader,
    /// The channel; 0 in OPEN.
    pub channel: ChannelId,
    /// The entry's seq, or the request's number.
    pub seq: u64,
}

/// Either header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// 8 bytes.
    Short(ShortHeader),
    /// 24 bytes.
    Routed(RoutedHeader),
}

impl Header {
    /// Reads the header at the start of `bytes`. `Ok(None)`: more bytes are needed.
    ///
    /// # Errors
    /// `UNKNOWN_TYPE`, `RESERVED_BITS` (an epoch in a short header, unknown class bits), `FRAME_TOO_LARGE` (a body over
    /// [`limits::FRAME_BYTES_MAX`]) are known from the first 8 bytes, before any of the body is held.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Code> {
        let Some(short) = bytes.first_chunk::<SHORT_BYTES>() else {
            // A type nobody knows is refused at its first byte.
            return match bytes.first().map(|byte| FrameType::from_u8(*byte)) {
                Some(None) => Err(Code::UNKNOWN_TYPE),
                _ => Ok(None),
            };
        };
        let frame_type = FrameType::from_u8(short[0]).ok_or(Code::UNKNOWN_TYPE)?;
        let body_bytes = u32::from_le_bytes([short[4], short[5], short[6], short[7]]);
        let header =
            ShortHeader { frame_type, flags: short[1], class: short[2], epoch: short[3], body_bytes };
        if header.class & 0x70 != 0
            || header.flags & 0xf0 != 0
            || (!frame_type.is_routed() && header.epoch != 0)
        {
            return Err(Code::RESERVED_BITS);
        }
        if body_bytes as usize + ROUTED_BYTES > limits::FRAME_BYTES_MAX {
            return Err(Code::FRAME_TOO_LARGE);
        }
        if !frame_type.is_routed() {
            return Ok(Some(Self::Short(header)));
        }
        let Some(routed) = bytes.first_chunk::<ROUTED_BYTES>() else { return Ok(None) };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&routed[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (channel, seq) = (word(8), word(16));
        if channel >> 63 != 0 || seq >> 63 != 0 {
            return Err(Code::RESERVED_BITS);
        }
        Ok(Some(Self::Routed(RoutedHeader { short: header, channel: ChannelId(channel), seq })))
    }

    /// The first 8 bytes' fields.
    pub fn short(&self) -> &ShortHeader {
        match self {
            Self::Short(short) => short,
            Self::Routed(routed) => &routed.short,
        }
    }

    /// The routed header, where it is one.
    pub fn routed(&self) -> Option<&RoutedHeader> {
        match self {
            Self::Short(_) => None,
            Self::Routed(routed) => Some(routed),
        }
    }

    /// Bytes of the header itself.
    pub fn header_bytes(&self) -> usize {
        match self {
            Self::Short(_) => SHORT_BYTES,
            Self::Routed(_) => ROUTED_BYTES,
        }
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        self.header_bytes() + self.short().body_bytes as usize
    }

    /// Writes the header to the end of `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let short = self.short();
        out.extend_from_slice(&[short.frame_type as u8, short.flags, short.class, short.epoch]);
        out.extend_from_slice(&short.body_bytes.to_le_bytes());
        if let Self::Routed(routed) = self {
            out.extend_from_slice(&routed.channel.0.to_le_bytes());
            out.extend_from_slice(&routed.seq.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_number_and_side() {
        for frame_type in FrameType::ALL {
            assert_eq!(FrameType::from_u8(*frame_type as u8), Some(*frame_type));
            assert!(frame_type.from_client() || frame_type.from_server());
        }
    }

    #[test]
    fn a_routed_header_survives_the_round_trip() {
        let short = ShortHeader {
            frame_type: FrameType::Deliver,
            flags: 2,
            class: class::MESSAGE,
            epoch: 9,
            body_bytes: 77,
        };
        let header =
            Header::Routed(RoutedHeader { short, channel: ChannelId(0x0102_0304_0506_0708), seq: 41 });
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        assert_eq!(bytes.len(), ROUTED_BYTES);
        assert_eq!(Header::parse(&bytes), Ok(Some(header)));
        for cut in 0..ROUTED_BYTES {
            assert_eq!(Header::parse(&bytes[..cut]), Ok(None));
        }
    }
}
