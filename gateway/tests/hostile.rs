//! What peers should not do: each thing gets its number and its end, and nobody else notices.

#![allow(clippy::unwrap_used)]

mod kit;

use std::time::{Duration, Instant};

use fanfare_gateway::Origins;
use fanfare_proto::{
    Code, FrameType,
    frame::{routed, short},
    header::class,
    session::server::Policy,
    wire,
    ws::Opcode,
};
use kit::{CHANNEL, House, fetch, hello, ping, send, sync, ws::Said};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[tokio::test]
async fn a_bad_hello_gets_its_number() {
    let house = House::wide(|_| ());
    let token = || house.issuer.token(5);
    let cases = [
        (ping(1), Code::OUT_OF_STATE),
        (send(1, "x"), Code::OUT_OF_STATE),
        (short(FrameType::Welcome, 0, &wire::Welcome::default()), Code::UNKNOWN_TYPE),
        (vec![0x7f; 8].into(), Code::UNKNOWN_TYPE),
        (hello(|_| ()), Code::TOKEN_MISSING),
        (hello(|hello| hello.token = "nonsense".into()), Code::TOKEN_MALFORMED),
        (hello(|hello| hello.token = house.issuer.token_for(5, -60)), Code::TOKEN_EXPIRED),
        (hello(|hello| hello.token = "x".repeat(5_000)), Code::TOKEN_MALFORMED),
        (
            hello(|hello| (hello.token, hello.version_min, hello.version_max) = (token(), 2, 3)),
            Code::VERSION_UNSUPPORTED,
        ),
        (hello(|hello| (hello.token, hello.device) = (token(), 0)), Code::BAD_FIELD),
        (hello(|hello| hello.resume = vec![1; 70].into()), Code::RESUME_REFUSED),
        (hello(|hello| hello.token = token())[..20].to_vec().into(), Code::TRUNCATED),
        (vec![1, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff].into(), Code::BAD_BODY),
        (vec![1, 0x10, 0, 0, 0, 0, 0, 0].into(), Code::RESERVED_BITS),
        (vec![1, 0, 0, 0, 0, 0, 2, 0].into(), Code::FRAME_TOO_LARGE),
        (bytes::Bytes::new(), Code::TRUNCATED),
    ];
    for (bytes, code) in cases {
        let mut client = kit::ws::connect(house.address()).await;
        client.send(&bytes).await;
        client.closed(code).await;
    }
    let mut client = kit::ws::connect(house.address()).await;
    client.send_opcode(Opcode::Text, b"hello").await;
    client.closed(Code::TEXT_MESSAGE).await;
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
    assert!(house.router.opens.lock().is_empty());
}

#[tokio::test]
async fn a_bad_frame_in_a_session_gets_its_number() {
    let house = House::wide(|_| ());
    let ack = short(FrameType::Ack, 0, &wire::Ack::default());
    let typing = routed(FrameType::Typing, class::HINT, 0, 0, CHANNEL, 9, &wire::Typing::default());
    let cases = [
        (house.hello(5), Code::OUT_OF_STATE),
        (short(FrameType::Pong, 0, &wire::Pong::default()), Code::UNKNOWN_TYPE),
        (vec![0x20, 0, 0, 0, 0, 0, 0, 0].into(), Code::UNKNOWN_TYPE),
        (vec![4, 0, 0x10, 0, 0, 0, 0, 0].into(), Code::RESERVED_BITS),
        (vec![4, 1, 0, 0, 0, 0, 0, 0].into(), Code::RESERVED_BITS),
        (vec![4, 0, 0, 0, 0xff, 0xff, 0, 0].into(), Code::FRAME_TOO_LARGE),
        (vec![4, 0, 0, 0, 1, 0, 0, 0].into(), Code::TRUNCATED),
        (vec![4, 0, 0, 0, 1, 0, 0, 0, 0xff].into(), Code::BAD_BODY),
        (ack, Code::BAD_FIELD),
        (typing, Code::BAD_FIELD),
        (kit::auth("nonsense".into()), Code::TOKEN_MALFORMED),
        (kit::auth(house.issuer.token(6)), Code::TOKEN_CLAIMS),
        (send(1, "x")[..30].to_vec().into(), Code::TRUNCATED),
    ];
    for (number, (bytes, code)) in cases.into_iter().enumerate() {
        let mut client = house.session(5).await;
        // What came before it counts.
        client.send(&[ping(1), bytes].concat()).await;
        client.closed(code).await;
        kit::until("the owner hears of it", || house.router.closes.lock().len() == number + 1).await;
    }
}

#[tokio::test]
async fn a_bad_request_fails_and_the_session_goes_on() {
    let house = House::wide(|_| ());
    let mut client = house.session(5).await;
    let mut bad = send(1, "hello").to_vec();
    bad[24] = 0xff;
    client.send(&bad).await;
    assert_eq!(kit::code_of(&client.frame(FrameType::SendAck).await), Code::BAD_BODY);
    client.send(&send(2, &"x".repeat(17_000))).await;
    assert_eq!(kit::code_of(&client.frame(FrameType::SendAck).await), Code::BODY_TOO_LARGE);
    client.send(&fetch(3, 101)).await;
    assert_eq!(kit::code_of(&client.frame(FrameType::Refused).await), Code::BAD_FIELD);
    let presence = routed(
        FrameType::Presence,
        class::HINT,
        0,
        0,
        fanfare_proto::ChannelId(0),
        0,
        &wire::Presence::default(),
    );
    client.send(&presence).await;
    assert_eq!(kit::code_of(&client.frame(FrameType::Error).await), Code::NOT_SERVED);
    client.send(&ping(1)).await;
    client.frame(FrameType::Pong).await;
}

#[tokio::test]
async fn broken_framing_ends_the_connection() {
    let house = House::wide(|_| ());
    let cases: [(&[u8], Code); 8] = [
        // Reserved bit, reserved opcode, not masked, 64-bit length with its top bit set, a fragmented ping.
        (&[0xc2, 0x80, 0, 0, 0, 0], Code::WEBSOCKET),
        (&[0x83, 0x80, 0, 0, 0, 0], Code::WEBSOCKET),
        (&[0x82, 0x01, 0], Code::WEBSOCKET),
        (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Code::WEBSOCKET),
        (&[0x09, 0x80, 0, 0, 0, 0], Code::WEBSOCKET),
        // A message of 64 KiB and one byte; a continuation of nothing; a close code that may not be sent.
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], Code::FRAME_TOO_LARGE),
        (&[0x80, 0x80, 0, 0, 0, 0], Code::WEBSOCKET),
        (&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed], Code::WEBSOCKET),
    ];
    for (bytes, code) in cases {
        for in_session in [false, true] {
            let mut client = match in_session {
                true => house.session(5).await,
                false => kit::ws::connect(house.address()).await,
            };
            client.raw(bytes).await;
            client.closed(code).await;
        }
    }
    // 65 fragments of nothing.
    let mut client = house.session(5).await;
    client.raw(&[0x02, 0x80, 0, 0, 0, 0]).await;
    for _ in 0..64 {
        client.raw(&[0x00, 0x80, 0, 0, 0, 0]).await;
    }
    client.closed(Code::WEBSOCKET).await;
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn every_flipped_bit_of_a_header_is_answered_or_ends_it() {
    let house = House::wide(|_| ());
    let good = send(1, "hello");
    for bit in 0..24 * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut client = house.synced(5).await;
        client.send(&bytes).await;
        client.send(&ping(7)).await;
        loop {
            match client.said().await {
                Said::Frame(frame) if frame.frame_type() == FrameType::Pong => break,
                Said::Frame(frame) if frame.frame_type() == FrameType::Close => {
                    assert!(kit::code_of(&frame).row().is_some());
                    break;
                }
                Said::Frame(_) => {}
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }
    house.session(6).await;
}

#[tokio::test]
async fn floods_are_limited() {
    let house = House::new(|_| ());
    let mut client = house.session(5).await;
    for number in 0..10 {
        client.send_opcode(Opcode::Ping, b"x").await;
        assert_eq!(client.said().await, Said::Pong(b"x".to_vec()), "ping {number}");
    }
    client.send(&ping(1)).await;
    client.closed(Code::PING_FLOOD).await;

    // The rate of sends is the user's, whatever the number of sessions.
    let mut one = house.session(6).await;
    let mut other = house.session(6).await;
    let mut codes = Vec::new();
    for number in 1..=20 {
        for client in [&mut one, &mut other] {
            client.send(&send(number, "x")).await;
            codes.push(kit::code_of(&client.frame(FrameType::SendAck).await));
        }
    }
    assert!(codes[..30].iter().all(|code| *code == Code(0)), "{codes:?}");
    assert!(codes[32..].iter().filter(|code| **code == Code::RATE_LIMITED).count() >= 6, "{codes:?}");
    for _ in 0..150 {
        one.send(&sync()).await;
    }
    let mut limited = 0;
    for _ in 0..150 {
        match one.said().await {
            Said::Frame(frame) if frame.frame_type() == FrameType::Error => {
                assert_eq!(kit::code_of(&frame), Code::RATE_LIMITED);
                limited += 1;
            }
            Said::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(limited > 20, "{limited}");
}

#[tokio::test]
async fn requests_without_an_answer_are_counted() {
    let house = House::wide(|_| ());
    house.router.silent.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut client = house.session(5).await;
    for number in 1..=257 {
        client.send(&send(number, "x")).await;
    }
    let answer = client.frame(FrameType::SendAck).await;
    assert_eq!((kit::code_of(&answer), answer.routed().unwrap().seq), (Code::TOO_MANY_IN_FLIGHT, 257));
    // The refusal is written before the others are handed up.
    let handed_up = async {
        while house.router.frames.lock().len() < 256 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), handed_up).await.unwrap();
    assert_eq!(house.router.frames.lock().len(), 256);
}

/// What the server answers to a request, as far as its status.
async fn status(house: &House, request: &str) -> String {
    let mut stream = TcpStream::connect(house.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.windows(2).any(|two| two == b"\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().chars().skip(9).take(3).collect()
}

#[tokio::test]
async fn a_wrong_upgrade_is_refused_by_http() {
    let house = House::wide(|config| {
        config.origins = Origins { loopback: true, allowed: vec!["https://chat.example.org".into()] };
    });
    let request = |line: &str, more: &str| {
        format!(
            "{line}\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
        )
    };
    let get = "GET /v1/ws HTTP/1.1";
    let protocol = "Sec-WebSocket-Protocol: fanfare.v1\r\n";
    let origin = |origin: &str| format!("{protocol}Origin: {origin}\r\n");
    for (text, expected) in [
        (request(get, protocol), "101"),
        (request(get, &origin("https://chat.example.org")), "101"),
        (request(get, &origin("http://localhost:5173")), "101"),
        (request(get, &origin("https://evil.example.org")), "403"),
        (request(get, &origin("https://chat.example.org.evil.org")), "403"),
        (request(get, &origin("null")), "403"),
        (request(get, ""), "400"),
        (request(get, "Sec-WebSocket-Protocol: chat\r\n"), "400"),
        (request("GET / HTTP/1.1", protocol), "404"),
        (request("POST /v1/ws HTTP/1.1", protocol), "405"),
        (request("GET /v1/ws HTTP/1.0", protocol), "400"),
        (request(get, &format!("{protocol}Content-Length: 5\r\n")), "400"),
        (format!("{get}\r\nHost: localhost\r\n\r\n"), "426"),
        ("nonsense\r\n\r\n".into(), "400"),
        (request(get, &format!("{protocol}X: {}\r\n", "x".repeat(8_200))), "431"),
        (request(get, &format!("{protocol}{}", "X: y\r\n".repeat(70))), "431"),
    ] {
        assert_eq!(status(&house, &text).await, expected, "{text}");
    }
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn silence_before_hello_is_short() {
    let house = House::wide(|config| config.limits.policy = Policy { handshake_ms: 300, ..Policy::LOAD });
    let begun = Instant::now();
    // Nothing at all; half a request; TLS that never comes; an upgrade without HELLO; one byte of HELLO after another.
    let silent = TcpStream::connect(house.address()).await.unwrap();
    let mut half = TcpStream::connect(house.address()).await.unwrap();
    half.write_all(b"GET /v1/ws HT").await.unwrap();
    let mut tls = TcpStream::connect(house.address()).await.unwrap();
    tls.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    let mut upgraded = kit::ws::connect(house.address()).await;
    kit::until("all are counted", || house.gateway.stats().connections == 4).await;
    upgraded.closed(Code::HANDSHAKE_TIMEOUT).await;
    kit::until("nothing is left", || house.gateway.stats().connections == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(3));
    drop((silent, half, tls));

    // An owner that never answers counts too.
    *house.router.refuse.lock() = Some(Code::UNKNOWN_USER);
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&house.hello(5)).await;
    client.closed(Code::UNKNOWN_USER).await;
    assert!(house.router.closes.lock().is_empty(), "a session that was refused is not closed");
}

#[tokio::test]
async fn many_bytes_before_hello_are_refused() {
    let house = House::wide(|_| ());
    let mut client = kit::ws::connect(house.address()).await;
    for _ in 0..200 {
        client.send_opcode(Opcode::Pong, &[0; 100]).await;
    }
    client.closed(Code::HANDSHAKE_TIMEOUT).await;
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| hello.resume = vec![0; 9_000].into())).await;
    client.closed(Code::HANDSHAKE_TIMEOUT).await;
}

#[tokio::test]
async fn connections_are_counted_by_user_and_address() {
    let house = House::wide(|config| config.limits.connections_per_user = 3);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(house.session(5).await);
    }
    let mut refused = kit::ws::connect(house.address()).await;
    refused.send(&house.hello(5)).await;
    refused.closed(Code::CONNECTIONS_PER_USER).await;
    drop(sessions.pop());
    kit::until("a place is free", || house.gateway.stats().connections == 2).await;
    house.session(5).await;

    let house = House::wide(|config| config.limits.connections_per_address = 3);
    let mut sessions = Vec::new();
    for user in 0..3 {
        sessions.push(house.session(user + 1).await);
    }
    let mut refused = kit::ws::connect(house.address()).await;
    refused.send(&house.hello(9)).await;
    refused.closed(Code::CONNECTIONS_PER_ADDRESS).await;

    let house = House::wide(|config| config.limits.connections_max = 1);
    let _session = house.session(1).await;
    assert_eq!(status(&house, "").await, "503");
}

/// A client that stops reading, with a known room in the kernel.
async fn slow_reader(house: &House, user: u64) -> kit::ws::Client<TcpStream> {
    let mut client = house.synced(user).await;
    socket2::SockRef::from(&client.stream).set_recv_buffer_size(64 * 1024).unwrap();
    client.send(&sync()).await;
    client.frame(FrameType::Synced).await;
    client
}

#[tokio::test]
async fn a_slow_reader_gets_a_notify_in_place_of_what_it_missed() {
    let house = House::wide(|config| config.limits.outgoing_ms_max = 600_000);
    let mut slow = slow_reader(&house, 1).await;
    let mut quick = house.synced(2).await;
    let text = "x".repeat(10_000);
    // 30 MB: more than any kernel buffer of ours.
    for seq in 1..=3_000 {
        house.router.deliver(&text);
        assert_eq!(quick.frame(FrameType::Deliver).await.routed().unwrap().seq, seq);
        let waiting = house.gateway.stats().waiting_bytes;
        assert!(waiting <= 512 * 1024 + 16 * 1024, "{waiting} bytes wait");
    }
    assert!(house.gateway.stats().collapsed > 0);
    // What it reads is in order, and each hole is named.
    socket2::SockRef::from(&slow.stream).set_recv_buffer_size(1 << 20).unwrap();
    let (mut position, mut notified) = (0, 0);
    while position < 3_000 {
        let Said::Frame(frame) = slow.said().await else { panic!() };
        let seq = frame.routed().unwrap().seq;
        match frame.frame_type() {
            FrameType::Deliver => assert_eq!(seq, position + 1),
            FrameType::Notify => {
                assert!(seq > position);
                assert_eq!(frame.decode::<wire::Head>().unwrap().head, seq);
                notified += 1;
            }
            other => panic!("{other:?}"),
        }
        position = seq;
    }
    assert!(notified > 0);
}

#[tokio::test]
async fn a_reader_that_stopped_is_closed() {
    let house = House::wide(|config| config.limits.outgoing_ms_max = 300);
    let mut slow = slow_reader(&house, 1).await;
    let typing =
        routed(FrameType::Typing, class::HINT, 0, 0, CHANNEL, 0, &wire::Typing { user: 3, stopped: false });
    let text = "x".repeat(10_000);
    while house.gateway.sessions() > 0 {
        house.router.deliver(&text);
        house.router.fanout(typing.clone());
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    // It can be told so when it reads again; if it does not, the connection goes all the same.
    kit::until("the connection goes", || house.gateway.stats().connections == 0).await;
    loop {
        match slow.said().await {
            Said::End | Said::Close(_) => break,
            Said::Frame(frame) if frame.frame_type() == FrameType::Close => {
                assert_eq!(kit::code_of(&frame), Code::SLOW_READER);
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_handler_that_panics_costs_one_connection() {
    let house = House::wide(|_| ());
    let mut other = house.synced(2).await;
    let mut quic = kit::quic::connect(house.address(), &house.certificate).await;
    quic.send(&house.hello(3)).await;
    quic.frame(FrameType::Welcome).await;
    for _ in 0..3 {
        let mut client = house.session(1).await;
        client.send(&send(1, kit::router::POISON)).await;
        // Its frames are out, its task is gone: the sweep closes the socket.
        loop {
            match client.said().await {
                Said::Frame(frame) => assert_eq!(kit::code_of(&frame), Code::INTERNAL),
                Said::Close(code) => assert_eq!(code, Code::INTERNAL.close_code()),
                Said::End => break,
                other => panic!("{other:?}"),
            }
        }
    }
    let mut uplink = quic.connection.open_uni().await.unwrap();
    uplink.write_all(&send(1, kit::router::POISON)).await.unwrap();
    quic.closed(Code::INTERNAL).await;
    other.send(&send(1, "alive")).await;
    for _ in 0..2 {
        assert!(matches!(other.said().await, Said::Frame(_)));
    }
    kit::until("one session is left", || house.gateway.sessions() == 1).await;
    assert_eq!(house.router.closes.lock().len(), 4);
}
