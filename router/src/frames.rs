//! The frames an owner makes itself: answers, states and refusals.

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, FrameType,
    frame::{routed, short},
    header::class,
    wire,
};

/// How long a peer should wait after an error that passes by itself, milliseconds.
pub fn retry_after_ms(code: Code) -> u32 {
    match code {
        Code::READ_ONLY => 2_000,
        Code::RETRY_LATER | Code::RATE_LIMITED | Code::TOO_MANY_IN_FLIGHT => 500,
        Code::OUTCOME_UNKNOWN => 200,
        _ => 0,
    }
}

fn error(code: Code, frame_type: FrameType) -> wire::Error {
    let text = code.row().map_or_else(String::new, |row| row.what.to_owned());
    wire::Error {
        code: u32::from(code.0),
        text,
        retry_after_ms: retry_after_ms(code),
        frame_type: frame_type as u32,
    }
}

/// REFUSED: a request with a number failed.
pub fn refused(frame_type: FrameType, channel: ChannelId, request: u64, code: Code) -> Bytes {
    routed(FrameType::Refused, class::MESSAGE, 0, 0, channel, request, &error(code, frame_type))
}

/// ERROR: a frame without a number failed.
pub fn failed(frame_type: FrameType, code: Code) -> Bytes {
    short(FrameType::Error, class::CONTROL, &error(code, frame_type))
}

/// SEND_ACK.
pub fn send_ack(channel: ChannelId, request: u64, ack: &wire::SendAck) -> Bytes {
    routed(FrameType::SendAck, class::MESSAGE, 0, 0, channel, request, ack)
}

/// SEND_ACK that says `FAIL`, or `UNKNOWN` for `OUTCOME_UNKNOWN`.
pub fn send_failed(channel: ChannelId, request: u64, client_message_id: &[u8], code: Code) -> Bytes {
    let outcome = if code == Code::OUTCOME_UNKNOWN { wire::Outcome::Unknown } else { wire::Outcome::Fail };
    let ack = wire::SendAck {
        outcome: outcome.into(),
        code: u32::from(code.0),
        retry_after_ms: retry_after_ms(code),
        text: code.row().map_or_else(String::new, |row| row.what.to_owned()),
        client_message_id: Bytes::copy_from_slice(client_message_id),
        ..Default::default()
    };
    send_ack(channel, request, &ack)
}

/// SYNCED with these states.
pub fn synced(synced: &wire::Synced) -> Bytes {
    short(FrameType::Synced, class::STATE, synced)
}

/// CHANNEL: the answer to OPEN (its request number), or word of a changed membership (0).
pub fn channel(request: u64, state: &wire::ChannelState) -> Bytes {
    routed(FrameType::Channel, class::STATE, 0, 0, ChannelId(state.channel), request, state)
}

/// GAP: entries behind `after` up to the head are not sent.
pub fn gap(channel: ChannelId, head: &wire::Head) -> Bytes {
    routed(FrameType::Gap, class::STATE, 0, head.epoch, channel, head.head, head)
}
