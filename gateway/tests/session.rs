//! How sessions come back, prove themselves again, and end.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanfare_gateway::Resume;
use fanfare_proto::{Code, DeviceId, FrameType, UserId, link::Proof, session::server::Policy, wire};
use kit::{House, auth, hello, ping, send, sync, ws::Said};

fn resume(house: &House, token_until_ms: u64) -> Bytes {
    let now = unix_ms();
    let resume = Resume {
        user: UserId(5),
        device: DeviceId(11),
        generation: 2,
        token_until_ms,
        until_ms: now + 60_000,
    };
    house.resume.seal(&resume)
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

#[tokio::test]
async fn a_secret_brings_the_session_back() {
    let house = House::new(|_| ());
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&house.hello(5)).await;
    let welcome: wire::Welcome = client.frame(FrameType::Welcome).await.decode().unwrap();
    drop(client);
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| hello.resume = welcome.resume.clone())).await;
    let again: wire::Welcome = client.frame(FrameType::Welcome).await.decode().unwrap();
    assert!(again.resumed && again.user == 5 && again.session > welcome.session);
    assert_eq!(again.token_until_ms, welcome.token_until_ms);
    assert!(!again.resume.is_empty() && again.resume_until_ms > unix_ms());
    assert_eq!(house.router.opens.lock()[1].1, Proof::Resume { generation: 2 });

    // Another device cannot use it.
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| (hello.resume, hello.device) = (welcome.resume.clone(), 12))).await;
    client.closed(Code::RESUME_REFUSED).await;
}

#[tokio::test]
async fn the_token_decides_where_the_secret_is_refused() {
    let house = House::new(|_| ());
    // By the gateway.
    let mut client = kit::ws::connect(house.address()).await;
    client
        .send(&hello(|hello| (hello.resume, hello.token) = (vec![0; 70].into(), house.issuer.token(5))))
        .await;
    assert!(!client.frame(FrameType::Welcome).await.decode::<wire::Welcome>().unwrap().resumed);
    // By the owner.
    *house.router.refuse_resume.lock() = Some(Code::REVOKED);
    let secret = resume(&house, unix_ms() + 60_000);
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| (hello.resume, hello.token) = (secret.clone(), house.issuer.token(5)))).await;
    assert!(!client.frame(FrameType::Welcome).await.decode::<wire::Welcome>().unwrap().resumed);
    // Without a token, or with a bad one, it is refused.
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| hello.resume = secret.clone())).await;
    client.closed(Code::REVOKED).await;
    let mut client = kit::ws::connect(house.address()).await;
    client
        .send(&hello(|hello| (hello.resume, hello.token) = (secret.clone(), house.issuer.token_for(5, -90))))
        .await;
    client.closed(Code::TOKEN_EXPIRED).await;
}

#[tokio::test]
async fn a_token_from_before_a_revocation_keeps_no_session() {
    let house = House::new(|_| ());
    for (from_s, revoked) in [(0, false), (unix_ms() / 1000 + 60, true)] {
        house.router.tokens_from_s.store(from_s, Ordering::Relaxed);
        let mut client = kit::ws::connect(house.address()).await;
        client.send(&house.hello(5)).await;
        client.frame(FrameType::Welcome).await;
        client.send(&auth(house.issuer.token(5))).await;
        if revoked {
            client.closed(Code::REVOKED).await;
        } else {
            client.frame(FrameType::Auth).await;
        }
    }
}

#[tokio::test]
async fn a_session_resumed_past_its_token_gets_nothing_before_auth() {
    let house = House::new(|_| ());
    let secret = resume(&house, unix_ms() - 60_000);
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| hello.resume = secret.clone())).await;
    let welcome: wire::Welcome = client.frame(FrameType::Welcome).await.decode().unwrap();
    assert!(welcome.resumed && welcome.resume.is_empty());
    let asked: wire::Auth = client.frame(FrameType::Auth).await.decode().unwrap();
    assert_eq!(asked.required_within_ms, 30_000);
    // Frames wait; what owners send is dropped; PING is answered.
    client.send(&[sync(), send(1, "held")].concat()).await;
    house.router.reply(house.router.handle_of(5), kit::router::entry(kit::CHANNEL, 1, "secret"));
    client.send(&ping(1)).await;
    client.frame(FrameType::Pong).await;
    assert!(house.router.frames.lock().is_empty());
    client.send(&auth(house.issuer.token(5))).await;
    let answer: wire::Auth = client.frame(FrameType::Auth).await.decode().unwrap();
    assert!(answer.until_ms > unix_ms() && !answer.resume.is_empty());
    client.frame(FrameType::Synced).await;
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let Said::Frame(frame) = client.said().await else { panic!() };
        kinds.push(frame.frame_type().name());
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["DELIVER", "SEND_ACK"]);
}

#[tokio::test]
async fn an_ending_token_is_asked_for_and_its_session_closed_without() {
    let policy = Policy { reauth_before_ms: 899_500, reauth_grace_ms: 200, ..Policy::DEFAULT };
    let house = House::new(|config| config.limits.policy = policy);
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&house.hello(5)).await;
    client.frame(FrameType::Welcome).await;
    let asked: wire::Auth = client.frame(FrameType::Auth).await.decode().unwrap();
    assert!(asked.required_within_ms > 800_000);
    client.send(&auth(house.issuer.token(5))).await;
    let answer: wire::Auth = client.frame(FrameType::Auth).await.decode().unwrap();
    assert!(answer.until_ms > unix_ms());

    // A token that ends in a second, as good as over: asked for at once, closed when the grace is over.
    let mut client = kit::ws::connect(house.address()).await;
    client.send(&hello(|hello| hello.token = house.issuer.token_for(5, 1))).await;
    client.frame(FrameType::Welcome).await;
    let begun = Instant::now();
    client.frame(FrameType::Auth).await;
    client.closed(Code::REAUTHENTICATE).await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    kit::until("one is left", || house.gateway.sessions() == 1).await;
}

#[tokio::test]
async fn a_silent_session_ends() {
    let house = House::new(|config| config.limits.policy = Policy { idle_ms: 300, ..Policy::DEFAULT });
    let mut client = house.session(5).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.send(&ping(1)).await;
        client.frame(FrameType::Pong).await;
    }
    client.closed(Code::IDLE).await;
}

#[tokio::test]
async fn goodbye_is_answered() {
    let house = House::new(|_| ());
    let mut client = house.session(5).await;
    let close = fanfare_proto::session::server::close(Code(0), 0);
    client.send(&close).await;
    assert_eq!(client.said().await, Said::Close(1000));
    client.ended().await;
    let mut client = house.session(5).await;
    client.send_opcode(fanfare_proto::ws::Opcode::Close, &[0x03, 0xe9]).await;
    assert_eq!(client.said().await, Said::Close(1001));
    client.ended().await;
    kit::until("both are over", || house.router.closes.lock().len() == 2).await;
}

#[tokio::test]
async fn shutdown_asks_waits_and_closes() {
    let house = House::new(|config| config.lanes = 2);
    let mut stays = house.session(1).await;
    let mut leaves = house.session(2).await;
    let House { gateway, router, .. } = house;
    let address = gateway.addresses()[0];
    let begun = Instant::now();
    let ended = tokio::spawn(gateway.shutdown(Duration::from_millis(400)));
    for client in [&mut stays, &mut leaves] {
        let asked: wire::GoAway = client.frame(FrameType::GoAway).await.decode().unwrap();
        assert_eq!((asked.delay_ms_min, asked.delay_ms_max), (0, 320));
    }
    drop(leaves);
    stays.send(&ping(1)).await;
    stays.frame(FrameType::Pong).await;
    stays.closed(Code::GOING_AWAY).await;
    ended.await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(400) && begun.elapsed() < Duration::from_secs(4));
    assert_eq!(router.closes.lock().len(), 2);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_those_who_do_not_read() {
    let house = House::wide(|_| ());
    let mut clients = Vec::new();
    for user in 1..=3 {
        clients.push(house.synced(user).await);
    }
    for _ in 0..1_000 {
        house.router.deliver(&"x".repeat(10_000));
    }
    let begun = Instant::now();
    house.gateway.shutdown(Duration::ZERO).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
