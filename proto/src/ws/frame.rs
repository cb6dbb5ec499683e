//! One frame on the wire: its header read and written, its mask, and the frames that are written whole.

use super::{Role, WsError};

/// Longest header of an unmasked frame, in bytes.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;
/// Longest header of a masked frame, in bytes.
pub const CLIENT_HEADER_BYTES_MAX: usize = 14;
/// Longest payload of a control frame, in bytes.
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest reason in a close frame, in bytes: what two bytes of code leave of a control frame.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next part of a fragmented message.
    Continuation = 0x0,
    /// A text message or its first part.
    Text = 0x1,
    /// A binary message or its first part.
    Binary = 0x2,
    /// The last frame of a side.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xA,
}

impl Opcode {
    /// Close, ping and pong: short, never fragmented, allowed between the fragments of a message.
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    fn parse(bits: u8) -> Result<Self, WsError> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            other => return Err(WsError::UnknownOpcode(other)),
        })
    }
}

/// A frame whose header is read and whose payload may still be on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub opcode: Opcode,
    pub fin: bool,
    /// The mask as it applies to the next payload byte; zeros where the peer does not mask.
    pub mask: [u8; 4],
    /// Payload bytes that have not come yet.
    pub remaining: u64,
}

impl Frame {
    /// Reads a header from the front of `bytes`: the frame and the header's length, or `None` where more bytes
    /// are needed. Each rule is checked as soon as its byte is there.
    pub fn parse(bytes: &[u8], role: Role) -> Result<Option<(Self, usize)>, WsError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & RESERVED != 0 {
            return Err(WsError::ReservedBits);
        }
        let opcode = Opcode::parse(first & 0x0F)?;
        let fin = first & FIN != 0;
        if opcode.is_control() && !fin {
            return Err(WsError::FragmentedControl);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let masked = second & MASKED != 0;
        match role {
            Role::Server if !masked => return Err(WsError::Unmasked),
            Role::Client if masked => return Err(WsError::Masked),
            _ => {}
        }
        let short = second & 0x7F;
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(WsError::ControlTooLong);
        }
        let (remaining, mut size) = match short {
            126 => {
                let Some(length) = array::<2>(bytes, 2) else { return Ok(None) };
                let length = u64::from(u16::from_be_bytes(length));
                if length < 126 {
                    return Err(WsError::LengthNotMinimal);
                }
                (length, 4)
            }
            127 => {
                let Some(length) = array::<8>(bytes, 2) else { return Ok(None) };
                let length = u64::from_be_bytes(length);
                if length >> 63 != 0 {
                    return Err(WsError::LengthTopBit);
                }
                if length <= u64::from(u16::MAX) {
                    return Err(WsError::LengthNotMinimal);
                }
                (length, 10)
            }
            length => (u64::from(length), 2),
        };
        let mut mask = [0; 4];
        if masked {
            let Some(key) = array::<4>(bytes, size) else { return Ok(None) };
            mask = key;
            size += 4;
        }
        Ok(Some((Self { opcode, fin, mask, remaining }, size)))
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Applies `mask` to `payload` in place, eight bytes at a time. Masking and unmasking are the same.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes the header of a whole, unmasked frame with `len` payload bytes and returns the header's length.
pub fn server_header(opcode: Opcode, len: usize, out: &mut [u8; SERVER_HEADER_BYTES_MAX]) -> usize {
    out[0] = FIN | opcode as u8;
    match len {
        0..=125 => out[1] = len as u8,
        126..=0xFFFF => {
            out[1] = 126;
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out[1] = 127;
            out[2..10].copy_from_slice(&(len as u64).to_be_bytes());
        }
    }
    server_header_len(len)
}

/// How many bytes [`server_header`] writes for a payload of `len` bytes: 2, 4 or 10.
pub fn server_header_len(len: usize) -> usize {
    match len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Writes the header of a whole, masked frame with `len` payload bytes and returns the header's length. The
/// payload must then be masked with [`unmask`].
pub fn client_header(
    opcode: Opcode,
    len: usize,
    mask: [u8; 4],
    out: &mut [u8; CLIENT_HEADER_BYTES_MAX],
) -> usize {
    let mut plain = [0; SERVER_HEADER_BYTES_MAX];
    let size = server_header(opcode, len, &mut plain);
    out[..size].copy_from_slice(&plain[..size]);
    out[1] |= MASKED;
    out[size..size + 4].copy_from_slice(&mask);
    size + 4
}

/// Appends a whole, masked frame to `out`. `mask` must be unpredictable for what made the payload.
pub fn client_frame(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let mut header = [0; CLIENT_HEADER_BYTES_MAX];
    let size = client_header(opcode, payload.len(), mask, &mut header);
    out.reserve(size + payload.len());
    out.extend_from_slice(&header[..size]);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], mask);
}

/// A whole, unmasked control frame. What `payload` has above [`CONTROL_BYTES_MAX`] is cut off.
pub fn server_control(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
    let mut out = Vec::with_capacity(2 + payload.len());
    out.extend_from_slice(&[FIN | opcode as u8, payload.len() as u8]);
    out.extend_from_slice(payload);
    out
}

/// A whole, masked control frame. What `payload` has above [`CONTROL_BYTES_MAX`] is cut off.
pub fn client_control(opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    client_frame(opcode, &payload[..payload.len().min(CONTROL_BYTES_MAX)], mask, &mut out);
    out
}

/// The payload of a close frame: empty without a code, else the code and as much of `reason` as fits, cut
/// between characters.
pub fn close_payload(code: Option<u16>, reason: &str) -> Vec<u8> {
    let Some(code) = code else { return Vec::new() };
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let mut out = Vec::with_capacity(2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
    out
}

/// An unmasked close frame.
pub fn server_close(code: Option<u16>, reason: &str) -> Vec<u8> {
    server_control(Opcode::Close, &close_payload(code, reason))
}

/// A masked close frame.
pub fn client_close(code: Option<u16>, reason: &str, mask: [u8; 4]) -> Vec<u8> {
    client_control(Opcode::Close, &close_payload(code, reason), mask)
}

/// Whether `code` may stand in a close frame: the codes registered for that, and 3000 to 4999, which belong to
/// libraries and applications.
pub fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
