//! Any frames, at any time, to a server's session, from its greeting on: no panic, a known number at each refusal,
//! requests counted within their bound, nothing taken after the end.

#![no_main]

use bytes::Bytes;
use fanfare_proto::{
    Frame, check,
    session::server::{Action, Bucket, Greeting, Policy, ServerSession},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says what the server does between frames, the second how fast time goes.
    let Some((&[acts, pace], bytes)) = data.split_first_chunk::<2>() else { return };
    let policy =
        if acts & 1 == 0 { Policy::DEFAULT } else { Policy { requests_in_flight_max: 3, ..Policy::LOAD } };
    let mut now_ms = 1_000;
    let mut frames = Frame::iter(Bytes::copy_from_slice(bytes));
    let mut greeting = Greeting::new(now_ms, &policy);
    if greeting.received(bytes.len().min(4096)).is_err() {
        return;
    }
    let Some(Ok(first)) = frames.next() else { return };
    match greeting.handle(&first) {
        Ok(greeted) => {
            assert!(greeted.device.0 != 0);
            assert!(!greeted.token.is_empty() || !greeted.resume.is_empty());
        }
        Err(code) => {
            assert!(code.row().is_some());
            return;
        }
    }
    let token_until_ms = if acts & 2 == 0 { u64::MAX / 2 } else { u64::from(pace) * 100 };
    let mut sends = Bucket::default();
    let mut session = ServerSession::new(now_ms, token_until_ms, 0);
    for frame in frames {
        let Ok(frame) = frame else { break };
        now_ms += u64::from(pace) * 10;
        match session.handle(now_ms, &frame, &policy, &mut sends) {
            Ok(Action::Forward) => {
                assert!(!session.is_restricted());
                assert_eq!(check::check(&frame, true), Ok(()), "what is forwarded was checked");
            }
            Ok(Action::Auth { token }) => {
                assert!(!token.is_empty());
                if acts & 4 == 0 {
                    session.authenticated(now_ms + 100_000);
                    assert!(!session.is_restricted());
                }
            }
            Ok(Action::Answer(answer)) => {
                let answer = Frame::iter(answer).next().expect("a frame").expect("that is whole");
                assert_eq!(check::check(&answer, false), Ok(()));
                session.replied(&answer);
            }
            Ok(Action::Hold) => assert!(session.is_restricted()),
            Ok(Action::Pong { .. } | Action::Done) => {}
            end @ (Ok(Action::Closed) | Err(_)) => {
                if let Err(code) = end {
                    assert!(code.row().is_some());
                }
                assert!(session.handle(now_ms, &frame, &policy, &mut sends).is_err(), "the end is the end");
                return;
            }
        }
        assert!(session.in_flight() <= policy.requests_in_flight_max);
        let mut dues = 0;
        while session.handle_timeout(now_ms, &policy).is_some() {
            dues += 1;
            assert!(dues < 4, "what was due stays due");
        }
    }
});
