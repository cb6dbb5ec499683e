//! Conversations over real sockets: WebSocket, plain and under TLS.

#![allow(clippy::unwrap_used)]

mod kit;

use fanfare_proto::{Code, FrameType, wire};
use kit::{CHANNEL, House, fetch, hello, ping, send, sync, typing, ws::Said};

#[tokio::test]
async fn a_session_opens_and_talks() {
    let house = House::new(|_| ());
    let mut client = kit::ws::connect(house.address()).await;
    client
        .send(&hello(|hello| {
            hello.token = house.issuer.token(5);
            hello.device_name = "phone".into();
        }))
        .await;
    let welcome: wire::Welcome = client.frame(FrameType::Welcome).await.decode().unwrap();
    assert_eq!((welcome.version, welcome.user, welcome.user_name.as_str()), (1, 5, "user 5"));
    assert_eq!((welcome.acks_confirmed, welcome.resumed, welcome.heartbeat_ms), (4, false, 25_000));
    assert!(!welcome.resume.is_empty() && welcome.session != 0);
    assert_eq!(house.router.opens.lock()[0].3, "phone");

    client.send(&sync()).await;
    client.frame(FrameType::Synced).await;
    client.send(&send(1, "hello")).await;
    let (mut acked, mut delivered) = (false, false);
    while !(acked && delivered) {
        match client.said().await {
            Said::Frame(frame) if frame.frame_type() == FrameType::SendAck => {
                assert_eq!(frame.routed().unwrap().seq, 1);
                acked = true;
            }
            Said::Frame(frame) if frame.frame_type() == FrameType::Deliver => {
                assert_eq!((frame.routed().unwrap().seq, frame.routed().unwrap().channel), (1, CHANNEL));
                delivered = true;
            }
            other => panic!("{other:?}"),
        }
    }
    client.send(&ping(42)).await;
    let pong: wire::Pong = client.frame(FrameType::Pong).await.decode().unwrap();
    assert_eq!((pong.time_ms, pong.acks_confirmed), (42, 4));
    client.send(&fetch(9, 2)).await;
    assert!(client.frame(FrameType::Page).await.decode::<wire::Page>().unwrap().more);
    assert!(!client.frame(FrameType::Page).await.decode::<wire::Page>().unwrap().more);
    client.send(&typing()).await;
    client.frame(FrameType::Typing).await;
    assert_eq!(house.gateway.sessions(), 1);
    drop(client);
    kit::until("the owner hears of the end", || house.router.closes.lock().len() == 1).await;
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn tls_on_the_same_port() {
    let house = House::new(|_| ());
    let mut client = kit::ws::connect_tls(house.address(), &house.certificate).await;
    client.send(&house.hello(5)).await;
    client.frame(FrameType::Welcome).await;
    client.send(&sync()).await;
    client.frame(FrameType::Synced).await;
    for number in 0..40 {
        house.router.deliver(&"x".repeat(number * 400));
    }
    for seq in 1..=40 {
        assert_eq!(client.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
    }
    house
        .router
        .down(fanfare_proto::link::Down::Kick { handle: house.router.handle_of(5), code: Code::REVOKED });
    client.closed(Code::REVOKED).await;
}

#[tokio::test]
async fn what_comes_behind_hello_waits_for_welcome() {
    let house = House::new(|_| ());
    let mut client = kit::ws::connect(house.address()).await;
    // HELLO and SYNC in one message, another frame right behind it, all in one write.
    let mut bytes = Vec::new();
    let first = [house.hello(5), sync()].concat();
    fanfare_proto::ws::client_frame(fanfare_proto::ws::Opcode::Binary, &first, [9; 4], &mut bytes);
    fanfare_proto::ws::client_frame(fanfare_proto::ws::Opcode::Binary, &send(1, "early"), [8; 4], &mut bytes);
    client.raw(&bytes).await;
    client.frame(FrameType::Welcome).await;
    client.frame(FrameType::Synced).await;
    let mut kinds = [client.said().await, client.said().await].map(|said| match said {
        Said::Frame(frame) => frame.frame_type().name(),
        other => panic!("{other:?}"),
    });
    kinds.sort_unstable();
    assert_eq!(kinds, ["DELIVER", "SEND_ACK"]);
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let house = House::new(|_| ());
    let mut client = kit::ws::connect(house.address()).await;
    let mut bytes = Vec::new();
    fanfare_proto::ws::client_frame(fanfare_proto::ws::Opcode::Binary, &house.hello(5), [9; 4], &mut bytes);
    fanfare_proto::ws::client_frame(fanfare_proto::ws::Opcode::Binary, &ping(1), [8; 4], &mut bytes);
    for byte in bytes {
        client.raw(&[byte]).await;
    }
    client.frame(FrameType::Welcome).await;
    client.frame(FrameType::Pong).await;
}

#[tokio::test]
async fn frames_of_a_channel_are_gathered_and_stay_in_order() {
    let house = House::wide(|_| ());
    let mut clients = Vec::new();
    for user in 1..=20 {
        clients.push(house.synced(user).await);
    }
    // The router is much faster than the lane, so frames gather by themselves.
    let router = house.router.clone();
    let text = "x".repeat(100);
    tokio::task::spawn_blocking(move || (0..2_000).for_each(|_| _ = router.deliver(&text))).await.unwrap();
    for client in &mut clients {
        for seq in 1..=2_000 {
            assert_eq!(client.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
        }
        assert!(client.messages < 1_900, "{} messages", client.messages);
    }
    // Nothing of the credit is lost but what is not yet worth a message.
    kit::until("credit comes back", || {
        let charged = house.router.charged.load(std::sync::atomic::Ordering::Relaxed);
        let credit = u64::from(house.router.credit.load(std::sync::atomic::Ordering::Relaxed));
        charged >= credit && charged - credit < u64::from(fanfare_proto::link::CREDIT_BYTES / 4)
    })
    .await;
}

#[tokio::test]
async fn a_reply_does_not_overtake_the_channel() {
    let house = House::wide(|_| ());
    let mut client = house.synced(1).await;
    let handle = house.router.handle_of(1);
    let router = house.router.clone();
    tokio::task::spawn_blocking(move || {
        for seq in (1..=300).step_by(3) {
            router.fanout(kit::router::entry(CHANNEL, seq, "fan-out"));
            router.reply(handle, kit::router::entry(CHANNEL, seq + 1, "reply"));
            // Out and in again between two: neither lost nor doubled.
            router.remove(CHANNEL, handle);
            router.add(CHANNEL, handle);
            router.fanout(kit::router::entry(CHANNEL, seq + 2, "fan-out"));
        }
    })
    .await
    .unwrap();
    for seq in 1..=300 {
        assert_eq!(client.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
    }
}

#[tokio::test]
async fn who_is_not_in_the_audience_gets_nothing() {
    let house = House::wide(|_| ());
    let mut inside = house.synced(1).await;
    let mut removed = house.synced(2).await;
    house.router.remove(CHANNEL, house.router.handle_of(2));
    let left = house.synced(3).await;
    drop(left);
    kit::until("user 3 is gone", || house.gateway.sessions() == 2).await;
    // Gets the slot of the one who left, whom nobody took out of the audience.
    let mut heir = house.session(4).await;
    house.router.deliver("for user 1 alone");
    inside.frame(FrameType::Deliver).await;
    for outsider in [&mut removed, &mut heir] {
        outsider.send(&ping(1)).await;
        outsider.frame(FrameType::Pong).await;
    }
}

#[tokio::test]
async fn one_fetch_is_answered_at_a_time() {
    let house = House::wide(|_| ());
    *house.router.page.lock() = (20_000, 20);
    let mut client = house.session(1).await;
    let asked = || {
        house.router.frames.lock().iter().filter(|(_, frame)| frame.frame_type() == FrameType::Fetch).count()
    };
    let requests: Vec<u8> = (1..=10).flat_map(|number| fetch(number, 50)).collect();
    client.send(&requests).await;
    kit::until("the first FETCH is handed up", || asked() >= 1).await;
    for number in 1..=10 {
        for page in 1..=20 {
            let frame = client.frame(FrameType::Page).await;
            assert_eq!(frame.routed().unwrap().seq, number);
            assert_eq!(frame.decode::<wire::Page>().unwrap().more, page < 20);
        }
    }
    assert_eq!(asked(), 10);
}

#[tokio::test]
async fn an_owner_without_room_costs_a_retry_later() {
    let house = House::wide(|_| ());
    let mut client = house.session(1).await;
    house.router.full.store(true, std::sync::atomic::Ordering::Relaxed);
    client.send(&[send(1, "one"), fetch(2, 5), sync()].concat()).await;
    let answer = client.frame(FrameType::SendAck).await;
    assert_eq!((kit::code_of(&answer), answer.routed().unwrap().seq), (Code::RETRY_LATER, 1));
    let answer = client.frame(FrameType::Refused).await;
    assert_eq!((kit::code_of(&answer), answer.routed().unwrap().seq), (Code::RETRY_LATER, 2));
    assert_eq!(kit::code_of(&client.frame(FrameType::Error).await), Code::RETRY_LATER);
    house.router.full.store(false, std::sync::atomic::Ordering::Relaxed);
    client.send(&send(3, "two")).await;
    assert_eq!(kit::code_of(&client.frame(FrameType::SendAck).await), Code(0));
}

#[tokio::test]
async fn several_lanes_serve_one_channel() {
    let house = House::wide(|config| config.lanes = 3);
    let mut clients = Vec::new();
    for user in 1..=9 {
        clients.push(house.synced(user).await);
    }
    let lanes: std::collections::HashSet<u8> =
        house.router.sessions.lock().keys().map(|handle| handle.lane()).collect();
    assert_eq!(lanes.len(), 3);
    for _ in 0..50 {
        house.router.deliver("x");
    }
    for client in &mut clients {
        for seq in 1..=50 {
            assert_eq!(client.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
        }
    }
}

/// A client that is not ours agrees about the framing.
#[tokio::test]
async fn tokio_websockets_agrees() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_websockets::{ClientBuilder, Message};
    let house = House::new(|_| ());
    let header = |text: &'static str| text.parse().unwrap();
    let (mut client, _) = ClientBuilder::new()
        .uri(&format!("ws://{}/v1/ws", house.address()))
        .unwrap()
        .add_header("sec-websocket-protocol".parse().unwrap(), header("fanfare.v1"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    client.send(Message::binary(house.hello(5))).await.unwrap();
    let welcome = client.next().await.unwrap().unwrap();
    assert!(welcome.is_binary() && welcome.as_payload()[0] == FrameType::Welcome as u8);
    client.send(Message::ping(&b"hi"[..])).await.unwrap();
    let pong = client.next().await.unwrap().unwrap();
    assert!(pong.is_pong() && **pong.as_payload() == *b"hi");
    client.close().await.unwrap();
    kit::until("the session ends", || house.gateway.sessions() == 0).await;
}
