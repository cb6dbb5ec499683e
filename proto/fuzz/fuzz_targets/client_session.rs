//! Any frames, in any order and at any time, to a client's session: no panic, no more to send than the bound, and
//! deadlines that pass.

#![no_main]

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, DeviceId, Frame,
    session::client::{ClientSession, DeviceState, OUTGOING_FRAMES_MAX, SessionOptions},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says what the client does between frames, the second how fast time goes.
    let Some((&[acts, pace], bytes)) = data.split_first_chunk::<2>() else { return };
    let options = SessionOptions {
        token: "t".into(),
        sync: (acts & 1 == 0).then_some(0),
        seed: u64::from(pace),
        ..SessionOptions::default()
    };
    let mut now_ms = 0;
    let mut session = ClientSession::new(DeviceState::new(DeviceId(1)), options, now_ms);
    for frame in Frame::iter(Bytes::copy_from_slice(bytes)) {
        let Ok(frame) = frame else { break };
        now_ms += u64::from(pace) * 100;
        if session.handle(now_ms, frame, &mut |_| {}).is_err() {
            break;
        }
        if acts & 2 != 0 {
            let _ = session.fetch(ChannelId(7), &fanfare_proto::wire::Fetch::default());
        }
        if session.deadline().is_some_and(|deadline| deadline <= now_ms) {
            session.handle_timeout(now_ms, &mut |_| {});
        }
        if acts & 4 != 0 {
            // The socket takes nothing.
            continue;
        }
        let mut sent = 0;
        while let Some(frame) = session.poll_transmit(now_ms) {
            assert!(!frame.is_empty());
            sent += 1;
            assert!(sent <= OUTGOING_FRAMES_MAX + 16, "more to send than the bound");
        }
        assert!(session.deadline().is_none_or(|deadline| deadline > now_ms), "a deadline that passed stays");
    }
});
