//! Conversations over QUIC, and what peers should not do there.

#![allow(clippy::unwrap_used)]

mod kit;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fanfare_proto::{Code, FrameType, session::server::Policy, wire};
use kit::{CHANNEL, House, fetch, hello, ping, send, sync, typing};

async fn session(house: &House, user: u64) -> (kit::quic::Client, kit::quic::Stream) {
    let mut client = kit::quic::connect(house.address(), &house.certificate).await;
    client.send(&house.hello(user)).await;
    client.frame(FrameType::Welcome).await;
    client.send(&sync()).await;
    let mut hot = client.hot().await;
    hot.frame(FrameType::Synced).await;
    (client, hot)
}

#[tokio::test]
async fn a_session_opens_and_talks_on_its_streams() {
    let house = House::new(|_| ());
    let (mut client, mut hot) = session(&house, 5).await;
    client.send(&send(1, "hello")).await;
    client.frame(FrameType::SendAck).await;
    assert_eq!(hot.frame(FrameType::Deliver).await.routed().unwrap().seq, 1);
    client.send(&ping(42)).await;
    assert_eq!(client.frame(FrameType::Pong).await.decode::<wire::Pong>().unwrap().time_ms, 42);

    // The uplink carries sends too; hints come and go in datagrams.
    let mut uplink = client.connection.open_uni().await.unwrap();
    uplink.write_all(&send(2, "by uplink")).await.unwrap();
    client.frame(FrameType::SendAck).await;
    assert_eq!(hot.frame(FrameType::Deliver).await.routed().unwrap().seq, 2);
    client.connection.send_datagram(typing()).unwrap();
    let mut hint = tokio::time::timeout(Duration::from_secs(5), client.connection.read_datagram())
        .await
        .unwrap()
        .unwrap();
    let hint = fanfare_proto::Frame::split_from(&mut hint).unwrap().unwrap();
    assert_eq!((hint.frame_type(), hint.routed().unwrap().channel), (FrameType::Typing, CHANNEL));

    // Pages come on the stream of their FETCH, or on control where that was asked.
    for number in 10..20 {
        let pages = client.fetch(fetch(number, 5)).await;
        assert_eq!(pages.len(), 2);
        assert!(
            pages
                .iter()
                .all(|page| page.frame_type() == FrameType::Page && page.routed().unwrap().seq == number)
        );
    }
    let refused = client.fetch(fetch(20, 101)).await;
    assert_eq!((refused.len(), kit::code_of(&refused[0])), (1, Code::BAD_FIELD));
    client.send(&fetch(21, 5)).await;
    client.frame(FrameType::Page).await;
    client.frame(FrameType::Page).await;
    client.send(&fanfare_proto::session::server::close(Code(0), 0)).await;
    client.closed_by_us().await;
    kit::until("the session is over", || house.gateway.stats().connections == 0).await;
    assert_eq!(house.router.closes.lock().len(), 1);
}

#[tokio::test]
async fn websocket_and_quic_share_a_channel_and_its_buffers() {
    let house = House::wide(|_| ());
    let (_client, mut hot) = session(&house, 1).await;
    let mut ws = house.synced(2).await;
    for block in 0..30 {
        for number in 1..=100 {
            house.router.deliver(&"x".repeat(number * 4));
        }
        for seq in block * 100 + 1..=block * 100 + 100 {
            assert_eq!(hot.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
            assert_eq!(ws.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
        }
    }
}

#[tokio::test]
async fn a_big_page_comes_whole() {
    let house = House::wide(|_| ());
    *house.router.page.lock() = (60_000, 8);
    let (client, _hot) = session(&house, 1).await;
    let answers = [client.fetch(fetch(1, 100)), client.fetch(fetch(2, 100)), client.fetch(fetch(3, 100))];
    let [one, two, three] = answers;
    let (one, two, three) = tokio::join!(one, two, three);
    for pages in [one, two, three] {
        assert_eq!(pages.len(), 8);
        assert!(!pages[7].decode::<wire::Page>().unwrap().more);
    }
}

#[tokio::test]
async fn bad_bytes_get_their_number() {
    let house = House::wide(|_| ());
    let before: [(Bytes, Code); 5] = [
        (ping(1), Code::OUT_OF_STATE),
        (vec![0x7f].into(), Code::UNKNOWN_TYPE),
        (hello(|hello| hello.token = "nonsense".into()), Code::TOKEN_MALFORMED),
        (hello(|hello| hello.resume = vec![0; 9_000].into()), Code::HANDSHAKE_TIMEOUT),
        (vec![1, 0, 0, 0, 0, 0, 2, 0].into(), Code::FRAME_TOO_LARGE),
    ];
    for (bytes, code) in before {
        let mut client = kit::quic::connect(house.address(), &house.certificate).await;
        client.send(&bytes).await;
        client.closed(code).await;
    }
    let within: [(Bytes, Code); 4] = [
        (house.hello(5), Code::OUT_OF_STATE),
        (vec![4, 0, 0x10, 0, 0, 0, 0, 0].into(), Code::RESERVED_BITS),
        (vec![4, 0, 0, 0, 1, 0, 0, 0, 0xff].into(), Code::BAD_BODY),
        (vec![0x20].into(), Code::UNKNOWN_TYPE),
    ];
    for (bytes, code) in within {
        let (mut client, _hot) = session(&house, 5).await;
        client.send(&bytes).await;
        client.closed(code).await;
    }
    // A frame cut by the end of its stream; a datagram that is none; streams that the protocol does not know.
    let (mut client, _hot) = session(&house, 5).await;
    client.send(&send(1, "x")[..30]).await;
    client.control.finish().unwrap();
    client.closed(Code::TRUNCATED).await;
    let (mut client, _hot) = session(&house, 5).await;
    client.connection.send_datagram(send(1, "x")).unwrap();
    client.closed(Code::UNKNOWN_TYPE).await;
    let (mut client, _hot) = session(&house, 5).await;
    let (mut stream, _recv) = client.connection.open_bi().await.unwrap();
    stream.write_all(&ping(1)).await.unwrap();
    stream.finish().unwrap();
    client.closed(Code::STREAM).await;
    let (mut client, _hot) = session(&house, 5).await;
    let mut uplinks = Vec::new();
    for _ in 0..2 {
        let mut uplink = client.connection.open_uni().await.unwrap();
        uplink.write_all(&typing()).await.unwrap();
        uplinks.push(uplink);
    }
    client.closed(Code::STREAM).await;
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn another_alpn_is_refused() {
    let house = House::new(|_| ());
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = kit::quic::config(&house.certificate, b"h9");
    assert!(endpoint.connect_with(config, house.address(), "localhost").unwrap().await.is_err());
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn silence_before_hello_is_short() {
    let house = House::new(|config| config.limits.policy = Policy { handshake_ms: 300, ..Policy::DEFAULT });
    let begun = Instant::now();
    let mut client = kit::quic::connect(house.address(), &house.certificate).await;
    client.send(&house.hello(5)[..9]).await;
    client.closed(Code::HANDSHAKE_TIMEOUT).await;
    // Without even a stream.
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = kit::quic::config(&house.certificate, fanfare_proto::ALPN);
    let connection = endpoint.connect_with(config, house.address(), "localhost").unwrap().await.unwrap();
    connection.closed().await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn a_reader_that_stopped_is_bounded_and_closed() {
    let house = House::wide(|config| config.limits.outgoing_ms_max = 400);
    let (client, _hot) = session(&house, 1).await;
    let text = "x".repeat(10_000);
    while house.gateway.sessions() > 0 {
        house.router.deliver(&text);
        assert!(house.gateway.stats().waiting_bytes <= 512 * 1024 + 16 * 1024);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
    assert!(house.gateway.stats().collapsed > 0);
    client.connection.closed().await;
}

#[tokio::test]
async fn shutdown_reaches_quic() {
    let house = House::new(|_| ());
    let (mut client, _hot) = session(&house, 1).await;
    let ended = tokio::spawn(house.gateway.shutdown(Duration::from_millis(100)));
    client.frame(FrameType::GoAway).await;
    client.closed(Code::GOING_AWAY).await;
    ended.await.unwrap();
}
