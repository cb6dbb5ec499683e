//! Frames as a busy group has them: 128 bytes of text, everything else filled in as a router fills it.

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Frame, FrameType,
    frame::routed,
    header::{class, flags},
    wire,
};

/// Bytes of the text in each message.
pub const TEXT_BYTES: usize = 128;
/// A time that client message ids are made of, Unix milliseconds.
const TIME_MS: u64 = 1_790_000_000_000;

/// The content of every message here.
pub fn message() -> wire::Message {
    let text = "the quick brown fox jumps over the lazy dog; ".chars().cycle().take(TEXT_BYTES).collect();
    wire::Message { text, ..Default::default() }
}

/// The body of a DELIVER.
pub fn entry(seq: u64) -> wire::Entry {
    wire::Entry {
        epoch: 1,
        message_id: TIME_MS << 21 | seq,
        ordinal: seq,
        sender: 0x0123_4567_89ab_cdef,
        client_message_id: client_message_id(seq),
        content: Some(wire::entry::Content::Message(message())),
    }
}

/// A whole DELIVER.
pub fn deliver(channel: ChannelId, seq: u64) -> Bytes {
    encode(channel, seq, &entry(seq))
}

/// Encodes a DELIVER as a shard does.
pub fn encode(channel: ChannelId, seq: u64, entry: &wire::Entry) -> Bytes {
    routed(FrameType::Deliver, class::MESSAGE, flags::COUNTED, entry.epoch, channel, seq, entry)
}

/// The body of a SEND.
pub fn send_body(id: Bytes) -> wire::Send {
    let content = Some(wire::send::Content::Message(message()));
    wire::Send { client_message_id: id, content, ..Default::default() }
}

/// A whole SEND.
pub fn send(channel: ChannelId, request: u64, id: Bytes) -> Bytes {
    routed(FrameType::Send, class::MESSAGE, 0, 0, channel, request, &send_body(id))
}

/// A client message id of a fixed time.
pub fn client_message_id(number: u64) -> Bytes {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    Bytes::copy_from_slice(&ClientMessageId::new(TIME_MS, random).0)
}

/// DELIVERs of ascending seq side by side, as many as fit into so many bytes.
pub fn run_of_delivers(channel: ChannelId, bytes_max: usize) -> Bytes {
    let mut run = Vec::with_capacity(bytes_max);
    for seq in 1.. {
        let frame = deliver(channel, seq);
        if run.len() + frame.len() > bytes_max {
            break;
        }
        run.extend_from_slice(&frame);
    }
    run.into()
}

/// The one frame in `bytes`.
pub fn whole(mut bytes: Bytes) -> Frame {
    Frame::split_from(&mut bytes).ok().flatten().expect("a whole frame of our own")
}
