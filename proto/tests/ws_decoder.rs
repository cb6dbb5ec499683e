//! The WebSocket decoder: any cut of a stream yields the same events, each broken rule its error, nothing is
//! copied that need not be, and nothing is held while idle.

use std::borrow::Cow;

use fanfare_proto::ws::{
    Decoder, Event, Limits, Opcode, Role, SERVER_HEADER_BYTES_MAX, WsError, client_close, client_control,
    client_frame, close_code_is_valid, close_payload, server_close, server_control, server_header,
    server_header_len, unmask,
};
use proptest::prelude::*;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

fn server() -> Decoder {
    Decoder::new(Role::Server, Limits::FANFARE)
}

fn owned(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Message { binary, payload } => {
            Event::Message { binary, payload: Cow::Owned(payload.into_owned()) }
        }
        Event::Ping(payload) => Event::Ping(Cow::Owned(payload.into_owned())),
        Event::Pong(payload) => Event::Pong(Cow::Owned(payload.into_owned())),
        Event::Close { code, reason } => Event::Close { code, reason: Cow::Owned(reason.into_owned()) },
    }
}

/// Everything that `decoder` makes of `chunks`, up to its first error.
fn decode<'c>(
    decoder: &mut Decoder,
    chunks: impl IntoIterator<Item = &'c [u8]>,
) -> (Vec<Event<'static>>, Option<WsError>) {
    let mut events = Vec::new();
    for chunk in chunks {
        let mut buffer = chunk.to_vec();
        let mut input = &mut buffer[..];
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => events.push(owned(event)),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(input.is_empty(), "all input is taken, so that the buffer is free for another connection");
    }
    (events, None)
}

/// What a fresh server-side decoder says to `wire`, once whole and once byte by byte.
fn verdict(wire: &[u8]) -> (Vec<Event<'static>>, Option<WsError>) {
    let whole = decode(&mut server(), [wire]);
    assert_eq!(decode(&mut server(), wire.chunks(1)), whole, "byte by byte");
    whole
}

fn error(wire: &[u8]) -> WsError {
    verdict(wire).1.expect("the stream breaks a rule")
}

/// A masked frame with any first byte.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    client_frame(Opcode::Binary, payload, MASK, &mut wire);
    wire[0] = first;
    wire
}

fn text(payload: &str) -> Event<'static> {
    Event::Message { binary: false, payload: Cow::Owned(payload.as_bytes().to_vec()) }
}

#[test]
fn the_examples_of_rfc_6455() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(verdict(&hello), (vec![text("Hello")], None));

    let unmasked = [0x01, 0x03, b'H', b'e', b'l', 0x80, 0x02, b'l', b'o', 0x8a, 0x02, b'h', b'i'];
    let mut client = Decoder::new(Role::Client, Limits::FANFARE);
    let pong = Event::Pong(Cow::Borrowed(b"hi"));
    assert_eq!(decode(&mut client, [&unmasked[..]]), (vec![text("Hello"), pong], None));
}

#[test]
fn broken_rules_have_their_errors() {
    for rsv in [0x40, 0x20, 0x10, 0x70] {
        assert_eq!(error(&raw(0x82 | rsv, b"")), WsError::ReservedBits);
    }
    for opcode in [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        assert_eq!(error(&raw(0x80 | opcode, b"")), WsError::UnknownOpcode(opcode));
    }
    for control in [0x08, 0x09, 0x0A] {
        assert_eq!(error(&raw(control, b"")), WsError::FragmentedControl);
        assert_eq!(error(&raw(0x80 | control, &[0; 126])), WsError::ControlTooLong);
    }
    assert_eq!(error(&[0x82, 0x00]), WsError::Unmasked);
    let masked = decode(&mut Decoder::new(Role::Client, Limits::FANFARE), [&raw(0x82, b"")[..]]);
    assert_eq!(masked, (vec![], Some(WsError::Masked)));

    assert_eq!(error(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 1]), WsError::LengthTopBit);
    assert_eq!(error(&[0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), WsError::LengthTopBit);
    assert_eq!(error(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), WsError::LengthNotMinimal);
    assert_eq!(error(&[0x82, 0xFE, 0, 125]), WsError::LengthNotMinimal);

    assert_eq!(error(&raw(0x80, b"x")), WsError::UnexpectedContinuation);
    assert_eq!(error(&[raw(0x82, b"x"), raw(0x00, b"x")].concat()), WsError::UnexpectedContinuation);
    for second in [0x81, 0x82, 0x01, 0x02] {
        assert_eq!(error(&[raw(0x02, b"x"), raw(second, b"x")].concat()), WsError::ExpectedContinuation);
    }

    assert_eq!(error(&raw(0x88, &[3])), WsError::CloseTooShort);
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        assert!(!close_code_is_valid(code));
        assert_eq!(error(&raw(0x88, &u16::to_be_bytes(code))), WsError::CloseCode(code));
    }
    assert_eq!(error(&raw(0x88, &[3, 0xE8, 0xFF])), WsError::Utf8);

    for wrong in [WsError::ReservedBits, WsError::LengthTopBit, WsError::Unmasked, WsError::CloseCode(0)] {
        assert_eq!(wrong.close_code(), 1002);
    }
}

#[test]
fn valid_close_frames() {
    assert_eq!(verdict(&client_close(None, "", MASK)).0, [Event::Close { code: None, reason: "".into() }]);
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999] {
        let expected = Event::Close { code: Some(code), reason: "tschüß".into() };
        assert_eq!(verdict(&client_close(Some(code), "tschüß", MASK)), (vec![expected], None));
    }
    // A reason that does not fit is cut between characters.
    let long = format!("{}ü", "x".repeat(122));
    assert_eq!(close_payload(Some(1000), &long).len(), 2 + 122);
    assert_eq!(server_close(Some(1000), &long).len(), 2 + 2 + 122);
}

#[test]
fn nothing_counts_after_a_close_or_an_error() {
    for first in [client_close(Some(1000), "", MASK), raw(0xF2, b"")] {
        let mut decoder = server();
        let _ = decode(&mut decoder, [&first[..]]);
        assert!(decoder.is_closed());
        let rest = [raw(0x82, b"late"), raw(0xFF, b"")].concat();
        assert_eq!(decode(&mut decoder, [&rest[..]]), (vec![], None));
        assert_eq!(decoder.heap_bytes(), 0);
    }
}

#[test]
fn long_messages_fail_at_their_declared_length() {
    let mut exact = raw(0x82, &vec![7; 64 << 10]);
    assert_eq!(decode(&mut server(), [&exact[..]]).0.len(), 1);
    assert_eq!(decode(&mut server(), exact.chunks(1000)).0.len(), 1);
    exact[9] += 1;
    assert_eq!(error(&exact[..14]), WsError::MessageTooLong);
    assert_eq!(
        error(&[0x82, 0xFF, 0x7F, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]),
        WsError::MessageTooLong
    );
    // The fragments count together.
    let fragments = [raw(0x02, &vec![7; 40_000]), raw(0x80, &vec![7; 30_000])].concat();
    assert_eq!(error(&fragments[..40_016]), WsError::MessageTooLong);
    assert_eq!(WsError::MessageTooLong.close_code(), 1009);
}

#[test]
fn memory_follows_what_came_and_not_what_was_declared() {
    let wire = raw(0x82, &vec![7; 60_000]);
    let mut decoder = server();
    assert_eq!(decode(&mut decoder, [&wire[..9]]), (vec![], None));
    assert!(decoder.heap_bytes() < 256, "{} bytes held for one byte", decoder.heap_bytes());
    assert_eq!(decode(&mut decoder, wire[9..30_000].chunks(100)), (vec![], None));
    assert!(decoder.heap_bytes() < 60_256, "at most twice what came");
    assert_eq!(decode(&mut decoder, wire[30_000..].chunks(100)).0.len(), 1);
    assert_eq!(decoder.heap_bytes(), 0);
}

#[test]
fn fragment_floods_end_at_the_limit() {
    let mut flood = raw(0x02, b"");
    for _ in 1..64 {
        flood.extend(raw(0x00, b""));
    }
    let last = [flood.clone(), raw(0x80, b"x")].concat();
    assert_eq!(error(&last), WsError::TooManyFragments);
    assert_eq!(WsError::TooManyFragments.close_code(), 1008);
    // Sixty-four are allowed.
    let len = flood.len();
    flood[len - 6] = 0x80;
    assert_eq!(verdict(&flood), (vec![Event::Message { binary: true, payload: Cow::Borrowed(b"") }], None));
}

#[test]
fn wrong_text_fails_at_its_first_wrong_byte() {
    // A surrogate, and a code point above the last, are wrong before their last byte.
    for (prefix, wrong) in [(&b"ok \xED"[..], 0xA0), (b"ok \xF4", 0x90), (b"", 0x80), (b"\xCE\xBA", 0xFF)] {
        // Several fragments with a ping between, then one frame cut open.
        let mut decoder = server();
        let mut wire = raw(0x01, prefix);
        wire.extend(raw(0x89, b"?"));
        let (events, no_error) = decode(&mut decoder, [&wire[..]]);
        assert_eq!((events, no_error), (vec![Event::Ping(Cow::Borrowed(b"?"))], None));
        assert_eq!(decode(&mut decoder, [&raw(0x00, &[wrong])[..]]).1, Some(WsError::Utf8));

        let mut payload = prefix.to_vec();
        payload.extend([wrong, b'x', b'x']);
        let wire = raw(0x81, &payload);
        let mut decoder = server();
        assert_eq!(decode(&mut decoder, [&wire[..wire.len() - 3]]), (vec![], None));
        assert_eq!(decode(&mut decoder, [&wire[wire.len() - 3..wire.len() - 2]]).1, Some(WsError::Utf8));
    }
    assert_eq!(WsError::Utf8.close_code(), 1007);
    // A character cut between fragments is fine, one that never ends is not.
    assert_eq!(verdict(&[raw(0x01, b"\xF0\x9F"), raw(0x80, b"\x98\x80")].concat()).0, [text("\u{1F600}")]);
    assert_eq!(error(&[raw(0x01, b"\xF0\x9F"), raw(0x80, b"\x98")].concat()), WsError::Utf8);
    assert_eq!(error(&raw(0x81, b"\xF0\x9F")), WsError::Utf8);
}

#[test]
fn an_idle_decoder_is_small_and_holds_no_heap() {
    assert!(size_of::<Decoder>() < 64, "{} bytes", size_of::<Decoder>());
    let mut decoder = server();
    assert_eq!(decoder.heap_bytes(), 0);
    let messages = [
        raw(0x82, &[1; 3000]),
        raw(0x89, b"ping"),
        [raw(0x01, b"a"), raw(0x89, b""), raw(0x80, b"b")].concat(),
        raw(0x8A, b""),
        raw(0x81, "ü".as_bytes()),
    ];
    for message in &messages {
        for cut in 1..message.len() {
            decode(&mut decoder, [&message[..cut]]);
            decode(&mut decoder, [&message[cut..]]);
            assert!(decoder.is_idle() && decoder.heap_bytes() == 0, "heap held after a whole message");
        }
    }
}

#[test]
fn a_whole_message_is_lent_out_of_the_input_without_a_copy() {
    let body: Vec<u8> = (0..16 << 10).map(|i| (i % 251) as u8).collect();
    let mut wire = raw(0x82, &body);
    let expected = wire[8..].as_ptr();
    let mut decoder = server();
    let mut input = &mut wire[..];
    let event = decoder.next(&mut input).expect("valid").expect("whole");
    let Event::Message { binary: true, payload: Cow::Borrowed(payload) } = event else {
        panic!("not lent: {event:?}")
    };
    assert_eq!(payload.as_ptr(), expected, "the payload is where it was read");
    assert_eq!(payload, body);
    assert!(decoder.is_idle() && input.is_empty());
}

#[test]
fn masks_fit_at_every_alignment() {
    let plain: Vec<u8> = (0..64).collect();
    for start in 0..8 {
        for end in start..64 {
            let mut masked = plain.clone();
            unmask(&mut masked[start..end], MASK);
            for (i, byte) in masked.iter().enumerate() {
                let key = if (start..end).contains(&i) { MASK[(i - start) % 4] } else { 0 };
                assert_eq!(byte ^ key, plain[i]);
            }
        }
    }
}

#[test]
fn server_headers_are_what_a_client_reads() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
        let mut header = [0; SERVER_HEADER_BYTES_MAX];
        let size = server_header(Opcode::Binary, len, &mut header);
        assert_eq!(size, server_header_len(len));
        let wire = [&header[..size], &vec![9; len]].concat();
        let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 1 };
        let (events, error) = decode(&mut Decoder::new(Role::Client, limits), [&wire[..]]);
        assert_eq!(error, None);
        assert_eq!(events, [Event::Message { binary: true, payload: Cow::Owned(vec![9; len]) }]);
    }
}

/// A message in fragments, with control frames before each.
#[derive(Debug, Clone)]
struct Sent {
    fragments: Vec<Vec<u8>>,
    text: Option<String>,
    controls: Vec<(bool, Vec<u8>)>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let control = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..=125));
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..700).prop_map(|bytes| (bytes, None)),
        any::<String>().prop_map(|text| (text.clone().into_bytes(), Some(text))),
    ];
    (body, 1usize..6, prop::collection::vec(control, 0..3)).prop_map(|((body, text), parts, controls)| {
        let step = body.len().div_ceil(parts).max(1);
        let mut fragments: Vec<_> = body.chunks(step).map(<[u8]>::to_vec).collect();
        fragments.resize(parts.max(fragments.len()), Vec::new());
        Sent { fragments, text, controls }
    })
}

/// Cuts `wire` into chunks of the given lengths, again and again.
fn cut<'w>(wire: &'w [u8], lengths: &[usize]) -> Vec<&'w [u8]> {
    let mut rest = wire;
    let mut chunks = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, more) = rest.split_at((*length).min(rest.len()));
        chunks.push(chunk);
        rest = more;
    }
    chunks
}

proptest! {
    #[test]
    fn any_cut_of_a_stream_yields_what_was_sent(
        messages in prop::collection::vec(sent(), 1..5),
        lengths in prop::collection::vec(1usize..300, 1..20),
        mask: [u8; 4],
    ) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for message in &messages {
            let last = message.fragments.len() - 1;
            for (i, fragment) in message.fragments.iter().enumerate() {
                for (ping, payload) in &message.controls {
                    let opcode = if *ping { Opcode::Ping } else { Opcode::Pong };
                    wire.extend(client_control(opcode, payload, mask));
                    let payload = Cow::Owned(payload.clone());
                    expected.push(if *ping { Event::Ping(payload) } else { Event::Pong(payload) });
                }
                let start = wire.len();
                let opcode = match (i, &message.text) {
                    (0, Some(_)) => Opcode::Text,
                    (0, None) => Opcode::Binary,
                    _ => Opcode::Continuation,
                };
                client_frame(opcode, fragment, mask, &mut wire);
                if i < last {
                    wire[start] &= 0x7F;
                }
            }
            let payload = Cow::Owned(message.fragments.concat());
            expected.push(Event::Message { binary: message.text.is_none(), payload });
        }
        let mut decoder = server();
        prop_assert_eq!(decode(&mut decoder, cut(&wire, &lengths)), (expected.clone(), None));
        prop_assert_eq!(decoder.heap_bytes(), 0);
        prop_assert_eq!(decode(&mut server(), [&wire[..]]), (expected, None));
    }

    #[test]
    fn any_cut_of_any_bytes_ends_the_same(
        // Mostly frames with something wrong somewhere, so that the deeper rules are reached too.
        pieces in prop::collection::vec(
            prop_oneof![
                4 => (prop::sample::select(vec![0x00u8, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A]),
                      prop::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..40))
                    .prop_map(|(first, payload)| raw(first, &payload)),
                1 => prop::collection::vec(any::<u8>(), 0..20),
            ],
            0..12,
        ),
        lengths in prop::collection::vec(1usize..60, 1..20),
    ) {
        let wire = pieces.concat();
        let limits = Limits { message_bytes_max: 150, fragments_max: 5 };
        let whole = decode(&mut Decoder::new(Role::Server, limits), [&wire[..]]);
        let mut decoder = Decoder::new(Role::Server, limits);
        prop_assert_eq!(decode(&mut decoder, cut(&wire, &lengths)), whole);
        prop_assert!(decoder.heap_bytes() <= 512, "{} bytes held", decoder.heap_bytes());
    }

    #[test]
    fn what_a_server_writes_a_client_reads(
        payload in prop::collection::vec(any::<u8>(), 0..=125),
        code in prop::option::of(prop_oneof![1000u16..=1003, 1007u16..=1014, 3000u16..5000]),
        reason: String,
    ) {
        let mut wire = server_control(Opcode::Ping, &payload);
        wire.extend(server_close(code, &reason));
        let mut decoder = Decoder::new(Role::Client, Limits::FANFARE);
        let (events, error) = decode(&mut decoder, [&wire[..]]);
        prop_assert_eq!(error, None);
        prop_assert_eq!(&events[0], &Event::Ping(Cow::Owned(payload)));
        let Event::Close { code: got, reason: cut } = &events[1] else { panic!("{events:?}") };
        prop_assert_eq!(*got, code);
        prop_assert!(reason.starts_with(cut.as_ref()));
    }
}
