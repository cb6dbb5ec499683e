//! What holds for any bytes and any frames: decoders answer and never panic, hold no more than they were given, and
//! what was encoded comes back.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Frame, FrameType, check,
    frame::{FrameBuffer, routed, short},
    header::{Header, RoutedHeader, ShortHeader},
    wire,
};
use proptest::{collection::vec, prelude::*};

fn frame_type() -> impl Strategy<Value = FrameType> {
    proptest::sample::select(FrameType::ALL)
}

/// Any bytes, often behind a header that is in order.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let behind_header = (frame_type(), any::<[u8; 3]>(), any::<[u8; 16]>(), vec(any::<u8>(), 0..200))
        .prop_map(|(frame_type, [flags, class, epoch], ids, body)| {
            let mut bytes = vec![frame_type as u8, flags & 7, class & 0x8f, epoch & ids[0]];
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            if frame_type.is_routed() {
                bytes.extend_from_slice(&ids);
            }
            bytes.extend_from_slice(&body);
            bytes
        });
    prop_oneof![vec(any::<u8>(), 0..300), behind_header]
}

fn header() -> impl Strategy<Value = Header> {
    let id = 0..1u64 << 63;
    (frame_type(), 0..16u8, any::<u8>(), any::<u8>(), 0..65_513u32, id.clone(), id).prop_map(
        |(frame_type, flags, class, epoch, body_bytes, channel, seq)| {
            let epoch = if frame_type.is_routed() { epoch } else { 0 };
            let short = ShortHeader { frame_type, flags, class: class & 0x8f, epoch, body_bytes };
            if !frame_type.is_routed() {
                return Header::Short(short);
            }
            Header::Routed(RoutedHeader { short, channel: ChannelId(channel), seq })
        },
    )
}

fn message() -> impl Strategy<Value = wire::Message> {
    let attachment =
        (".{0,9}", ".{0,9}", any::<u64>(), vec(any::<u8>(), 0..9)).prop_map(|(id, name, bytes, preview)| {
            wire::Attachment { id, name, bytes, preview: preview.into(), ..Default::default() }
        });
    (".{1,40}", ".{0,9}", vec(1..1u64 << 63, 0..5), any::<u32>(), vec(attachment, 0..4), any::<bool>())
        .prop_map(|(text, content_type, mentions, reply_to, attachments, mention_all)| wire::Message {
            text,
            content_type,
            mentions,
            reply_to: u64::from(reply_to),
            attachments,
            opaque: Bytes::new(),
            mention_all,
        })
}

fn send() -> impl Strategy<Value = wire::Send> {
    use wire::send::Content;
    let content = prop_oneof![
        message().prop_map(Content::Message),
        (1..1u64 << 63, message())
            .prop_map(|(target, message)| Content::Edit(wire::Edit { target, message: Some(message) })),
        (1..1u64 << 63).prop_map(|target| Content::Recall(wire::Recall { target })),
        (1..1u64 << 63, ".{1,16}", any::<bool>())
            .prop_map(|(target, emoji, remove)| Content::Reaction(wire::Reaction { target, emoji, remove })),
        (1..12i32, vec(1..1u64 << 63, 1..2), 1..4i32, 0..1u64 << 63).prop_map(
            |(change, users, role, until_ms)| {
                use wire::MembershipChange as Change;
                let is = |one: Change| change == one as i32;
                let role = if is(Change::Joined) || is(Change::RoleChanged) { role } else { 0 };
                let until_ms = if is(Change::Banned) || is(Change::Muted) { until_ms } else { 0 };
                Content::Membership(wire::Membership { change, users, role, until_ms })
            }
        ),
    ];
    (any::<[u8; 10]>(), any::<u32>(), content).prop_map(|(random, time, content)| wire::Send {
        client_message_id: Bytes::copy_from_slice(
            &fanfare_proto::ClientMessageId::new(u64::from(time), random).0,
        ),
        content: Some(content),
        ..Default::default()
    })
}

/// Feeds `bytes` in pieces of those lengths; all frames, or the error.
fn fed(bytes: &[u8], lengths: &[usize]) -> Result<(Vec<Frame>, bool), fanfare_proto::Code> {
    let (mut buffer, mut frames, mut rest) = (FrameBuffer::default(), Vec::new(), bytes);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, more) = rest.split_at((*length).min(rest.len()));
        rest = more;
        buffer.feed(Bytes::copy_from_slice(chunk), |frame| frames.push(frame))?;
    }
    Ok((frames, buffer.is_partial()))
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in hostile(), from_client: bool, lengths in vec(1..40usize, 1..5)) {
        let _ = Header::parse(&bytes);
        let bytes = Bytes::from(bytes);
        let mut whole = Vec::new();
        let mut error = None;
        for frame in Frame::iter(bytes.clone()) {
            match frame {
                Ok(frame) => {
                    let _ = check::check(&frame, from_client);
                    whole.push(frame);
                }
                Err(code) => {
                    prop_assert!(code.row().is_some());
                    error = Some(code);
                }
            }
        }
        // A stream cut anywhere says the same, but that it may still go on.
        match fed(&bytes, &lengths) {
            Ok((frames, partial)) => {
                prop_assert_eq!(frames, whole);
                prop_assert_eq!(error, partial.then_some(fanfare_proto::Code::TRUNCATED));
            }
            Err(code) => prop_assert_eq!(error, Some(code)),
        }
    }

    #[test]
    fn headers_come_back(header in header()) {
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        prop_assert_eq!(bytes.len(), header.header_bytes());
        prop_assert_eq!(Header::parse(&bytes), Ok(Some(header)));
    }

    #[test]
    fn sends_come_back_and_pass(send in send(), channel in 1..1u64 << 63, seq in 1..1u64 << 63) {
        let bytes = routed(FrameType::Send, 1, 0, 0, ChannelId(channel), seq, &send);
        let frame = Frame::split_from(&mut bytes.clone()).unwrap().unwrap();
        prop_assert_eq!(frame.routed().unwrap().channel, ChannelId(channel));
        prop_assert_eq!(frame.routed().unwrap().seq, seq);
        prop_assert_eq!(check::decode::<wire::Send>(&frame), Ok(send));
    }

    #[test]
    fn streams_come_back_however_cut(
        sends in vec(send(), 1..6),
        times in vec(any::<u64>(), 1..6),
        lengths in vec(1..64usize, 1..5),
    ) {
        let mut wanted: Vec<Bytes> = sends
            .iter()
            .zip(1..)
            .map(|(send, seq)| routed(FrameType::Send, 1, 0, 0, ChannelId(7), seq, send))
            .collect();
        wanted.extend(times.iter().map(|&time_ms| short(FrameType::Ping, 0, &wire::Ping { time_ms, quiet: false })));
        let (frames, partial) = fed(&wanted.concat(), &lengths).unwrap();
        prop_assert!(!partial);
        prop_assert_eq!(frames.into_iter().map(|frame| frame.bytes).collect::<Vec<_>>(), wanted);
    }
}
