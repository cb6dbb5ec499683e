//! Any bytes, cut in any way, at either end of a connection: no panic, the same events and error as uncut, no
//! more memory than the limit allows, and messages within their promises.

#![no_main]

use fanfare_proto::ws::{Decoder, Event, Limits, Role, WsError};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { message_bytes_max: 300, fragments_max: 5 };
/// The fixed part of what a decoder keeps, and a control frame.
const KEPT_BYTES_MAX: usize = 1024;

fuzz_target!(|data: &[u8]| {
    // The first byte says which end, the next four how to cut.
    let Some((&[end, ref cuts @ ..], wire)) = data.split_first_chunk::<5>() else { return };
    let role = if end & 1 == 0 { Role::Server } else { Role::Client };
    let whole = decode(role, wire, &[usize::MAX]);
    let lengths = cuts.map(|cut| usize::from(cut) + 1);
    assert_eq!(decode(role, wire, &lengths), whole);
});

fn decode(role: Role, wire: &[u8], lengths: &[usize]) -> (Vec<String>, Option<WsError>) {
    let mut decoder = Decoder::new(role, LIMITS);
    let mut events = Vec::new();
    let mut rest = wire;
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, more) = rest.split_at(length.min(rest.len()));
        rest = more;
        let mut buffer = chunk.to_vec();
        let mut input = &mut buffer[..];
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    check(&event);
                    events.push(format!("{event:?}"));
                }
                Err(error) => {
                    assert_eq!(decoder.heap_bytes(), 0);
                    return (events, Some(error));
                }
            }
        }
        assert!(input.is_empty());
        assert!(decoder.heap_bytes() <= LIMITS.message_bytes_max as usize + KEPT_BYTES_MAX);
    }
    (events, None)
}

fn check(event: &Event<'_>) {
    match event {
        Event::Message { binary, payload } => {
            assert!(payload.len() <= LIMITS.message_bytes_max as usize);
            assert!(*binary || std::str::from_utf8(payload).is_ok());
        }
        Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
        Event::Close { reason, .. } => assert!(reason.len() <= 123),
    }
}
