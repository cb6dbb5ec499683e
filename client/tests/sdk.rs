//! The SDK against a gateway that fails on command: reconnects, repeats, gaps, questions.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fake::{FakeGateway, Fault};
use fanfare_client::{Client, Event, Events, State, Status, TokenError, Trust};
use fanfare_proto::{ChannelId, Code, DeviceId, FrameType, UserId, frame, wire};

const ROOM: ChannelId = ChannelId(7);

async fn gateway() -> FakeGateway {
    let gateway = FakeGateway::start().await;
    gateway.add_channel(7, false);
    gateway
}

async fn connect(gateway: &FakeGateway) -> Client {
    Client::builder(gateway.ws_url())
        .token("a")
        .device(DeviceId(5), "test")
        .connect()
        .await
        .expect("a session")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

async fn until(events: &mut Events, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    soon(async {
        loop {
            let event = events.next().await.expect("the client lives");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

fn seq_of(event: &Event) -> Option<u64> {
    match event {
        Event::Entry(entry) => Some(entry.seq),
        _ => None,
    }
}

#[tokio::test]
async fn a_message_goes_from_queued_to_sent_and_comes_back() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let mut events = client.events();
    let mut handle = client.send_text(ROOM, "hello");
    assert_eq!(handle.status(), Status::Queued);
    assert_eq!(soon(handle.changed()).await, Some(Status::Sending));
    let sent = soon(handle.sent()).await.unwrap();
    assert_eq!((sent.seq, sent.repeated), (1, false));
    let Event::Entry(entry) = until(&mut events, |event| seq_of(event).is_some()).await else { panic!() };
    assert_eq!((entry.text(), entry.channel, Some(entry.sender)), (Some("hello"), ROOM, client.user()));
    assert!(entry.client_message_id.is_some_and(|id| id.time_ms() >= fake::SERVER_TIME_MS));
    assert!(client.close().await.is_some());
    assert!(matches!(client.state(), State::Closed { .. }));
    assert!(client.send_text(ROOM, "late").sent().await.is_err());
}

#[tokio::test]
async fn sends_survive_every_way_an_attempt_can_end() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let faults = [
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Unknown(false),
        Fault::Unknown(true),
        Fault::Fail(Code::RETRY_LATER),
        Fault::Fail(Code::RATE_LIMITED),
    ];
    for fault in faults {
        gateway.fault(fault);
        let before = gateway.attempts().len();
        soon(client.send_text(ROOM, format!("{fault:?}")).sent()).await.unwrap();
        let attempts = &gateway.attempts()[before..];
        let ids: HashSet<_> = attempts.iter().map(|attempt| attempt.2.clone()).collect();
        assert_eq!((attempts.len(), ids.len()), (2, 1), "{fault:?}");
        assert!(!attempts[0].0 && attempts[0].1 == 0, "the first attempt is no repeat");
        assert!(attempts[1].0 && attempts[1].1 >= fake::SERVER_TIME_MS, "the second says when the first was");
    }
    assert_eq!(gateway.texts(7), faults.map(|fault| format!("{fault:?}")), "each once");
}

#[tokio::test]
async fn many_sends_in_flight_survive_cuts_each_once() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let handles: Vec<_> = (0..300).map(|number| client.send_text(ROOM, number.to_string())).collect();
    let refusal = Fault::Fail(Code::RATE_LIMITED);
    for fault in [Fault::CutBefore, refusal, Fault::CutAfter, Fault::Unknown(false), refusal, Fault::CutAfter]
    {
        gateway.fault(fault);
    }
    let mut seqs = HashSet::new();
    for handle in handles {
        assert!(seqs.insert(soon(handle.sent()).await.unwrap().seq));
    }
    let in_order: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(gateway.texts(7), in_order, "each once, in order");
}

#[tokio::test]
async fn refusals_are_definite_and_typed() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let error = soon(client.send_text(ChannelId(99), "nowhere").sent()).await.unwrap_err();
    assert_eq!((error.code(), error.is_recoverable()), (Some(Code::NOT_A_MEMBER), false));
    gateway.fault(Fault::Fail(Code::BODY_TOO_LARGE));
    let error = soon(client.send_text(ROOM, "long").sent()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::BODY_TOO_LARGE));
    assert!(soon(client.flush(Duration::from_secs(5))).await);
}

#[tokio::test]
async fn what_was_missed_comes_after_a_reconnect_and_nothing_twice() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let mut events = client.events();
    gateway.publish(7, "one");
    until(&mut events, |event| seq_of(event) == Some(1)).await;
    for seq in 2..6u64 {
        gateway.cut_all();
        gateway.publish_silently(7, "while away");
        let event = until(&mut events, |event| seq_of(event).is_some()).await;
        assert_eq!(seq_of(&event), Some(seq));
    }
    assert!(gateway.hellos().len() >= 5);
}

#[tokio::test]
async fn gaps_are_fetched_in_order() {
    let gateway = gateway().await;
    for number in 0..250 {
        gateway.publish(7, &number.to_string());
    }
    gateway.answer_gaps(true);
    let client = Client::builder(gateway.ws_url()).token("a").start();
    let mut events = client.events();
    for seq in 1..=250 {
        let event = until(&mut events, |event| seq_of(event).is_some()).await;
        assert_eq!(seq_of(&event), Some(seq));
    }
    let filled = until(&mut events, |event| matches!(event, Event::GapFilled { .. })).await;
    assert!(matches!(filled, Event::GapFilled { first: 1, last: 250, .. }));
    gateway.publish(7, "live");
    let event = until(&mut events, |event| seq_of(event).is_some()).await;
    assert_eq!(seq_of(&event), Some(251));
    let device = soon(client.close()).await.unwrap();
    assert_eq!(device.channels[&ROOM].position, 251);
}

#[tokio::test]
async fn what_is_too_old_is_skipped_and_said_so() {
    let gateway = gateway().await;
    for number in 0..700 {
        gateway.publish(7, &number.to_string());
    }
    gateway.answer_gaps(true);
    let client = Client::builder(gateway.ws_url()).token("a").start();
    let mut events = client.events();
    let first = until(&mut events, |event| seq_of(event).is_some()).await;
    assert_eq!(seq_of(&first), Some(201));
    let skipped = until(&mut events, |event| matches!(event, Event::Skipped { .. })).await;
    assert!(matches!(skipped, Event::Skipped { first: 1, last: 200, .. }));
    let device = soon(client.close()).await.unwrap();
    assert_eq!(device.channels[&ROOM].position, 700);
}

#[tokio::test]
async fn a_watch_has_no_seam() {
    let gateway = gateway().await;
    for number in 0..20 {
        gateway.publish(7, &number.to_string());
    }
    let client = connect(&gateway).await;
    let room = client.channel(ROOM);
    let publisher = gateway.clone();
    let live = tokio::spawn(async move {
        for number in 20..120 {
            publisher.publish(7, &number.to_string());
            tokio::task::yield_now().await;
        }
    });
    let mut watch = soon(room.watch_from(10)).await.unwrap();
    live.await.unwrap();
    let mut seqs: Vec<u64> = watch.snapshot.entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs.len(), 10);
    while *seqs.last().unwrap() < 120 {
        let entry = soon(watch.next_entry()).await.unwrap();
        if entry.seq > seqs[0] {
            seqs.push(entry.seq);
        }
    }
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
}

#[tokio::test]
async fn questions_are_answered_across_a_cut() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    gateway.publish(7, "one");
    gateway.cut_all();
    let counts = soon(client.counts(ROOM, 1)).await.unwrap();
    assert_eq!((counts.read, counts.members), (1, 2));
    let direct = soon(client.open_direct(UserId(3))).await.unwrap();
    assert_eq!(direct.id(), ChannelId(5_003));
    soon(direct.send_text("hi").sent()).await.unwrap();
    let group = wire::Group { name: "g".into(), members: vec![3], ..Default::default() };
    soon(client.open_group(group)).await.unwrap();
    let history = soon(client.history(ROOM, 0, 10)).await.unwrap();
    assert_eq!((history.entries.len(), history.complete, history.head), (1, true, 1));
    assert!(client.channels().len() >= 2);
}

#[tokio::test]
async fn reading_and_typing_reach_the_server() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let mut events = client.events();
    gateway.publish(7, "one");
    until(&mut events, |event| seq_of(event) == Some(1)).await;
    let room = client.channel(ROOM);
    assert_eq!(room.unread(), Some(1));
    room.mark_read();
    room.typing();
    let typing = until(&mut events, |event| matches!(event, Event::Typing { .. })).await;
    assert!(matches!(typing, Event::Typing { user, stopped: false, .. } if Some(user) == client.user()));
    let receipts = gateway.receipts();
    assert_eq!(receipts.len(), 1);
    assert_eq!((receipts[0].1.read, receipts[0].1.read_ordinal), (1, 1));
}

#[tokio::test]
async fn policies_decide_about_the_next_attempt() {
    let gateway = gateway().await;
    gateway.refuse(Code::VERSION_UNSUPPORTED, 0);
    let error = Client::builder(gateway.ws_url()).token("a").connect().await.unwrap_err();
    assert_eq!(error.code, Some(Code::VERSION_UNSUPPORTED));

    // Backs off, then succeeds.
    gateway.refuse(Code::OVERLOADED, 20);
    let client = Client::builder(gateway.ws_url()).token("a").start();
    let mut events = client.events();
    let down = until(&mut events, |event| matches!(event, Event::State(State::Disconnected { .. }))).await;
    assert!(matches!(down, Event::State(State::Disconnected { code: Some(Code::OVERLOADED), .. })));
    until(&mut events, |event| matches!(event, Event::State(State::Connected { .. }))).await;

    // A revoked session asks for a fresh token and drops its secret.
    let fresh = Client::builder(gateway.ws_url())
        .token_from(|| async { Ok("fresh".into()) })
        .connect()
        .await
        .unwrap();
    let mut events = fresh.events();
    gateway.refuse(Code::REVOKED, 0);
    gateway.cut_all();
    until(&mut events, |event| matches!(event, Event::State(State::Connected { .. }))).await;
    let last = gateway.hellos().into_iter().rfind(|hello| hello.token == "fresh").unwrap();
    assert!(last.resume.is_empty());

    // With a fixed token there is none.
    gateway.refuse(Code::TOKEN_EXPIRED, 0);
    let fixed = Client::builder(gateway.ws_url()).token("old").start();
    let mut events = fixed.events();
    let closed = until(&mut events, |event| matches!(event, Event::State(State::Closed { .. }))).await;
    assert!(matches!(closed, Event::State(State::Closed { code: Some(Code::TOKEN_EXPIRED), .. })));
    assert!(events.next().await.is_none());

    let unauthorized =
        Client::builder(gateway.ws_url()).token_from(|| async { Err(TokenError::Unauthorized) });
    assert!(unauthorized.connect().await.is_err());
}

#[tokio::test]
async fn a_request_for_a_token_is_answered() {
    let gateway = gateway().await;
    let client = Client::builder(gateway.ws_url())
        .token_from(|| async { Ok("fresh".into()) })
        .connect()
        .await
        .unwrap();
    soon(client.counts(ROOM, 1)).await.unwrap();
    let auth = wire::Auth { required_within_ms: 60_000, ..Default::default() };
    gateway.tell(frame::short(FrameType::Auth, 0, &auth));
    soon(async {
        while gateway.auths().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(gateway.auths(), ["fresh"]);
}

#[tokio::test]
async fn a_token_that_cannot_be_had_at_once_is_asked_for_again() {
    let gateway = gateway().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let asking = asked.clone();
    let token = move || {
        let time = asking.fetch_add(1, Ordering::Relaxed);
        // For the session; then not at once, for the server's question.
        let token = if time == 1 { Err(TokenError::Unavailable("no".into())) } else { Ok(format!("{time}")) };
        async move { token }
    };
    let client = Client::builder(gateway.ws_url()).token_from(token).connect().await.unwrap();
    soon(client.counts(ROOM, 1)).await.unwrap();
    let auth = wire::Auth { required_within_ms: 60_000, ..Default::default() };
    gateway.tell(frame::short(FrameType::Auth, 0, &auth));
    soon(async {
        while gateway.auths().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((gateway.auths(), asked.load(Ordering::Relaxed)), (vec!["2".to_string()], 3));
}

#[tokio::test]
async fn goaway_moves_the_session() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let mut events = client.events();
    soon(client.send_text(ROOM, "one").sent()).await.unwrap();
    let goaway = wire::GoAway { delay_ms_min: 1, delay_ms_max: 20, ..Default::default() };
    gateway.tell(frame::short(FrameType::GoAway, 0, &goaway));
    until(&mut events, |event| matches!(event, Event::State(State::Connected { resumed: true, .. }))).await;
    soon(client.send_text(ROOM, "two").sent()).await.unwrap();
    assert_eq!(gateway.texts(7), ["one", "two"]);
}

#[tokio::test]
async fn quic_and_tls_carry_the_sdk() {
    let gateway = gateway().await;
    for url in [gateway.quic_url(), gateway.wss_url()] {
        let client = Client::builder(url)
            .token("a")
            .tls(Trust::Pinned(vec![gateway.pin]))
            .connect()
            .await
            .expect("a session");
        gateway.fault(Fault::CutAfter);
        soon(client.send_text(ROOM, "x").sent()).await.unwrap();
        soon(client.close()).await.unwrap();
    }
    assert_eq!(gateway.texts(7).len(), 2);
}

#[tokio::test]
async fn an_aborted_send_is_never_made() {
    let gateway = gateway().await;
    gateway.refuse(Code::OVERLOADED, 50);
    let client = Client::builder(gateway.ws_url()).token("a").start();
    let handle = client.send_text(ROOM, "no");
    handle.abort();
    let kept = client.send_text(ROOM, "yes");
    assert!(soon(handle.sent()).await.is_err());
    soon(kept.sent()).await.unwrap();
    assert_eq!(gateway.texts(7), ["yes"]);
}

#[tokio::test]
async fn a_device_goes_on_where_it_stood() {
    let gateway = gateway().await;
    let client = connect(&gateway).await;
    let mut events = client.events();
    gateway.publish(7, "one");
    until(&mut events, |event| seq_of(event) == Some(1)).await;
    let device = soon(client.close()).await.unwrap();
    // Closing acknowledges.
    soon(async {
        while gateway.acks().last().map(|ack| ack.positions[0].seq) != Some(1) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gateway.publish(7, "two");
    let client = Client::builder(gateway.ws_url()).token("a").restore(device).start();
    let mut events = client.events();
    let event = until(&mut events, |event| seq_of(event).is_some()).await;
    assert_eq!(seq_of(&event), Some(2));
}
