//! The server session driven by hand: states, rates, bounds, deadlines, and any bytes a peer may think of.

use proptest::prelude::*;

use super::*;
use crate::ids::ClientMessageId;

const POLICY: Policy = Policy::DEFAULT;

fn frame(bytes: Bytes) -> Frame {
    Frame::split_from(&mut bytes.clone()).unwrap().unwrap()
}

fn hello(change: impl FnOnce(&mut wire::Hello)) -> Frame {
    let mut hello = wire::Hello {
        version_min: 1,
        version_max: 1,
        token: "a.b.c".into(),
        device: 7,
        ..Default::default()
    };
    change(&mut hello);
    frame(frame::short(FrameType::Hello, class::CONTROL, &hello))
}

fn send(number: u64, text: &str) -> Frame {
    let id = ClientMessageId::new(1, [0; 10]);
    let message = wire::Message { text: text.into(), ..Default::default() };
    let body = wire::Send {
        client_message_id: Bytes::copy_from_slice(&id.0),
        content: Some(wire::send::Content::Message(message)),
        ..Default::default()
    };
    frame(frame::routed(FrameType::Send, class::MESSAGE, 0, 0, ChannelId(7), number, &body))
}

fn ping() -> Frame {
    frame(frame::short(FrameType::Ping, class::CONTROL, &wire::Ping { time_ms: 5, quiet: false }))
}

fn state() -> Frame {
    frame(frame::short(FrameType::State, class::CONTROL, &wire::State::default()))
}

fn auth() -> Frame {
    frame(frame::short(
        FrameType::Auth,
        class::CONTROL,
        &wire::Auth { token: "t".into(), ..Default::default() },
    ))
}

fn open(now_ms: u64, token_until_ms: u64) -> (ServerSession, Bucket) {
    (ServerSession::new(now_ms, token_until_ms, 0), Bucket::default())
}

fn answer_code(action: &Action) -> (FrameType, u32) {
    let Action::Answer(bytes) = action else { panic!("{action:?} is no answer") };
    let answer = frame(bytes.clone());
    match answer.frame_type() {
        FrameType::SendAck => (FrameType::SendAck, answer.decode::<wire::SendAck>().unwrap().code),
        other => (other, answer.decode::<wire::Error>().unwrap().code),
    }
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<ServerSession>() <= 80, "{}", size_of::<ServerSession>());
    assert_eq!(size_of::<Bucket>(), 16);
}

#[test]
fn a_greeting_takes_hello_alone() {
    let greeting = || Greeting::new(0, &POLICY);
    assert_eq!(greeting().handle(&hello(|_| ())).unwrap().device, DeviceId(7));
    assert_eq!(greeting().handle(&ping()).unwrap_err(), Code::OUT_OF_STATE);
    let pong = frame(pong(1, 1, 1));
    assert_eq!(greeting().handle(&pong).unwrap_err(), Code::UNKNOWN_TYPE);
    for (code, bad) in [
        (Code::VERSION_UNSUPPORTED, hello(|hello| (hello.version_min, hello.version_max) = (2, 9))),
        (Code::VERSION_UNSUPPORTED, hello(|hello| (hello.version_min, hello.version_max) = (0, 0))),
        (Code::TOKEN_MISSING, hello(|hello| hello.token.clear())),
        (Code::TOKEN_MALFORMED, hello(|hello| hello.token = "x".repeat(4097))),
        (Code::BAD_FIELD, hello(|hello| hello.device = 0)),
        (Code::BAD_FIELD, hello(|hello| hello.device = 1 << 63)),
        (Code::BAD_FIELD, hello(|hello| hello.device_name = "x".repeat(257))),
        (Code::BAD_FIELD, hello(|hello| hello.delivery = 2)),
    ] {
        assert_eq!(greeting().handle(&bad).unwrap_err(), code);
    }
}

#[test]
fn a_greeting_counts_bytes() {
    let mut greeting = Greeting::new(100, &POLICY);
    assert_eq!(greeting.deadline(), 5_100);
    assert_eq!(greeting.received(8 * 1024), Ok(()));
    assert_eq!(greeting.received(1), Err(Code::HANDSHAKE_TIMEOUT));
}

#[test]
fn hello_twice_ends_the_session() {
    let (mut session, mut sends) = open(0, u64::MAX);
    assert_eq!(session.handle(1, &hello(|_| ()), &POLICY, &mut sends), Err(Code::OUT_OF_STATE));
    assert_eq!(session.handle(1, &ping(), &POLICY, &mut sends), Err(Code::OUT_OF_STATE));
    assert_eq!(session.handle_timeout(u64::MAX, &POLICY), None);
}

#[test]
fn sends_are_limited_for_the_user_and_other_frames_for_the_session() {
    let (mut session, mut sends) = open(0, u64::MAX);
    for number in 1..=30 {
        assert_eq!(session.handle(0, &send(number, "x"), &POLICY, &mut sends), Ok(Action::Forward));
    }
    let limited = session.handle(0, &send(31, "x"), &POLICY, &mut sends).unwrap();
    assert_eq!(answer_code(&limited), (FrameType::SendAck, 4001));
    let (mut other, _) = open(0, u64::MAX);
    let limited = other.handle(0, &send(1, "x"), &POLICY, &mut sends).unwrap();
    assert_eq!(answer_code(&limited), (FrameType::SendAck, 4001));
    assert_eq!(other.handle(500, &send(1, "x"), &POLICY, &mut sends), Ok(Action::Forward));
    for _ in 0..100 {
        assert_eq!(session.handle(600, &state(), &POLICY, &mut sends), Ok(Action::Forward));
    }
    let limited = session.handle(600, &state(), &POLICY, &mut sends).unwrap();
    assert_eq!(answer_code(&limited), (FrameType::Error, 4001));
    assert_eq!(session.handle(650, &state(), &POLICY, &mut sends), Ok(Action::Forward));
}

#[test]
fn pings_beyond_their_burst_end_the_session() {
    let (mut session, mut sends) = open(0, u64::MAX);
    for _ in 0..10 {
        assert_eq!(session.handle(0, &ping(), &POLICY, &mut sends), Ok(Action::Pong { time_ms: 5 }));
    }
    assert_eq!(session.handle(999, &ping(), &POLICY, &mut sends), Err(Code::PING_FLOOD));
}

#[test]
fn a_quiet_ping_is_heard_and_counted_and_not_answered() {
    let (mut session, mut sends) = open(0, u64::MAX);
    let quiet = wire::Ping { time_ms: 5, quiet: true };
    let quiet = frame(frame::short(FrameType::Ping, class::CONTROL, &quiet));
    for _ in 0..10 {
        assert_eq!(session.handle(700, &quiet, &POLICY, &mut sends), Ok(Action::Done));
    }
    assert_eq!(session.heard_ms(), 700);
    assert_eq!(session.handle(701, &quiet, &POLICY, &mut sends), Err(Code::PING_FLOOD));
}

#[test]
fn requests_in_flight_are_bounded_and_answers_make_room() {
    let policy = Policy { requests_in_flight_max: 2, ..Policy::LOAD };
    let (mut session, mut sends) = open(0, u64::MAX);
    for number in 1..=2 {
        assert_eq!(session.handle(0, &send(number, "x"), &policy, &mut sends), Ok(Action::Forward));
    }
    let refused = session.handle(0, &send(3, "x"), &policy, &mut sends).unwrap();
    assert_eq!(answer_code(&refused), (FrameType::SendAck, 4003));
    let fetch = wire::Fetch { messages_max: 1, ..Default::default() };
    let fetch = frame(frame::routed(FrameType::Fetch, class::HISTORY, 0, 0, ChannelId(7), 4, &fetch));
    let refused = session.handle(0, &fetch, &policy, &mut sends).unwrap();
    assert_eq!(answer_code(&refused), (FrameType::Refused, 4003));
    session.replied(&frame(failed(&send(1, "x"), Code::FORBIDDEN, 0)));
    assert_eq!(session.handle(0, &fetch, &policy, &mut sends), Ok(Action::Forward));
    let page = |more| {
        let page = wire::Page { more, ..Default::default() };
        frame(frame::routed(FrameType::Page, class::HISTORY, 0, 0, ChannelId(7), 4, &page))
    };
    session.replied(&page(true));
    assert_eq!(session.in_flight(), 2);
    session.replied(&page(false));
    assert_eq!(session.in_flight(), 1);
}

#[test]
fn a_bad_body_fails_its_request_or_ends_the_session() {
    let (mut session, mut sends) = open(0, u64::MAX);
    let mut bytes = send(1, "hello").bytes.to_vec();
    bytes[24] = 0xff;
    let answer = session.handle(0, &frame(bytes.into()), &POLICY, &mut sends).unwrap();
    assert_eq!(answer_code(&answer), (FrameType::SendAck, 1004));
    let big = session.handle(0, &send(2, &"x".repeat(16 * 1024 + 1)), &POLICY, &mut sends).unwrap();
    assert_eq!(answer_code(&big), (FrameType::SendAck, 4002));
    assert_eq!(session.in_flight(), 0);
    let ack = wire::Ack { number: 0, ..Default::default() };
    let ack = frame(frame::short(FrameType::Ack, class::CONTROL, &ack));
    assert_eq!(session.handle(0, &ack, &POLICY, &mut sends), Err(Code::BAD_FIELD));
}

#[test]
fn a_watch_list_has_no_channel_and_a_bound() {
    let (mut session, mut sends) = open(0, u64::MAX);
    let mut sent = |channel, body: wire::Presence| {
        let presence = frame(frame::routed(FrameType::Presence, class::HINT, 0, 0, channel, 0, &body));
        session.handle(0, &presence, &POLICY, &mut sends)
    };
    let watch = |users: u64| wire::Presence { watch: (1..=users).collect(), ..Default::default() };
    assert_eq!(sent(ChannelId(0), watch(256)), Ok(Action::Forward));
    assert_eq!(sent(ChannelId(0), watch(0)), Ok(Action::Forward));
    for (channel, body) in [
        (ChannelId(7), watch(1)),
        (ChannelId(0), watch(257)),
        (ChannelId(0), wire::Presence { audience: 4, ..Default::default() }),
        (ChannelId(0), wire::Presence { audience: 1, ..watch(1) }),
        (ChannelId(0), wire::Presence { users: vec![wire::UserPresence::default()], ..Default::default() }),
    ] {
        let (mut session, mut sends) = open(0, u64::MAX);
        let presence = frame(frame::routed(FrameType::Presence, class::HINT, 0, 0, channel, 0, &body));
        assert_eq!(session.handle(0, &presence, &POLICY, &mut sends), Err(Code::BAD_FIELD));
    }
}

#[test]
fn silence_ends_a_session_and_any_frame_keeps_it() {
    let (mut session, mut sends) = open(0, u64::MAX);
    assert_eq!(session.deadline(&POLICY), 45_000);
    assert_eq!(session.handle_timeout(44_999, &POLICY), None);
    session.handle(44_999, &state(), &POLICY, &mut sends).unwrap();
    assert_eq!(session.handle_timeout(45_000, &POLICY), None);
    assert_eq!(session.handle_timeout(89_999, &POLICY), Some(Due::Close(Code::IDLE)));
}

#[test]
fn a_token_that_ends_is_asked_for_again() {
    let policy = Policy { idle_ms: u64::MAX, ..POLICY };
    let (mut session, mut sends) = open(0, 900_000);
    assert_eq!(session.handle_timeout(839_999, &policy), None);
    assert_eq!(session.handle_timeout(840_000, &policy), Some(Due::Auth { within_ms: 90_000 }));
    assert_eq!(session.handle_timeout(840_000, &policy), None);
    let action = session.handle(850_000, &auth(), &policy, &mut sends);
    assert_eq!(action, Ok(Action::Auth { token: "t".into() }));
    session.authenticated(1_800_000);
    assert_eq!(session.handle_timeout(930_000, &policy), None);
    assert_eq!(session.handle_timeout(1_740_000, &policy), Some(Due::Auth { within_ms: 90_000 }));
    assert_eq!(session.handle_timeout(1_829_999, &policy), None);
    assert_eq!(session.handle_timeout(1_830_000, &policy), Some(Due::Close(Code::REAUTHENTICATE)));
}

#[test]
fn a_session_resumed_past_its_token_waits_for_auth() {
    let (mut session, mut sends) = open(1_000_000, 900_000);
    assert!(session.is_restricted());
    assert_eq!(session.handle_timeout(1_000_000, &POLICY), Some(Due::Auth { within_ms: 30_000 }));
    assert_eq!(session.handle(1_000_001, &send(1, "x"), &POLICY, &mut sends), Ok(Action::Hold));
    assert_eq!(session.handle(1_000_001, &ping(), &POLICY, &mut sends), Ok(Action::Pong { time_ms: 5 }));
    session.handle(1_000_002, &auth(), &POLICY, &mut sends).unwrap();
    session.authenticated(1_900_000);
    assert!(!session.is_restricted());
    assert_eq!(session.handle(1_000_003, &send(1, "x"), &POLICY, &mut sends), Ok(Action::Forward));

    let (mut session, _) = open(1_000_000, 900_000);
    session.handle_timeout(1_000_000, &POLICY);
    assert_eq!(session.handle_timeout(1_030_000, &POLICY), Some(Due::Close(Code::REAUTHENTICATE)));
}

proptest! {
    /// No bucket ever gives more than its burst and what has flowed in since.
    #[test]
    fn a_bucket_never_gives_more_than_its_rate(
        per_minute in 1u32..100_000,
        burst in 1u32..200,
        steps in proptest::collection::vec(0u64..2_000, 1..400),
    ) {
        let rate = Rate { per_minute, burst };
        let (mut bucket, mut now_ms, mut taken) = (Bucket::default(), 0u64, 0u64);
        for step in steps {
            now_ms += step;
            match bucket.take(now_ms, rate) {
                Ok(()) => taken += 1,
                Err(wait_ms) => {
                    let mut later = bucket;
                    prop_assert!(later.take(now_ms + u64::from(wait_ms), rate).is_ok());
                }
            }
            prop_assert!(taken * 60_000 <= now_ms * u64::from(per_minute) + u64::from(burst) * 60_000);
        }
    }

    /// Whatever frames come, in whatever order, the session neither panics nor goes on after its end.
    #[test]
    fn any_frames_are_judged(
        inputs in proptest::collection::vec((proptest::sample::select(FrameType::ALL),
            proptest::collection::vec(any::<u8>(), 0..40), 0u8..4, 0u64..3, 0u64..20_000), 1..80),
    ) {
        let (mut session, mut sends) = open(0, 60_000);
        let (mut now_ms, mut ended) = (0, false);
        for (frame_type, body, flags, seq, step) in inputs {
            now_ms += step;
            let mut bytes = vec![frame_type as u8, flags, 0, 0];
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            if frame_type.is_routed() {
                bytes.extend_from_slice(&7u64.to_le_bytes());
                bytes.extend_from_slice(&seq.to_le_bytes());
            }
            bytes.extend_from_slice(&body);
            let outcome = session.handle(now_ms, &frame(bytes.into()), &POLICY, &mut sends);
            prop_assert!(!ended || outcome.is_err());
            ended |= matches!(outcome, Err(_) | Ok(Action::Closed));
            if let Some(Due::Close(_)) = session.handle_timeout(now_ms, &POLICY) {
                ended = true;
            }
            prop_assert!(session.in_flight() <= POLICY.requests_in_flight_max);
        }
    }
}
