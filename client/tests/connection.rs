//! The lower layer over real sockets: each transport, shared endpoints, source addresses, ends.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{net::IpAddr, time::Duration};

use fake::FakeGateway;
use fanfare_client::{
    OpenError, Trust,
    connection::{ConnectOptions, Connection, now_ms},
};
use fanfare_proto::{
    ChannelId, Code, DeviceId,
    error::Policy,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire,
};

fn session(device: DeviceState) -> ClientSession {
    ClientSession::new(device, SessionOptions { token: "a".into(), ..Default::default() }, now_ms())
}

fn options(url: &str, gateway: &FakeGateway) -> ConnectOptions {
    ConnectOptions::new(url).unwrap().trust(&Trust::Pinned(vec![gateway.pin])).unwrap()
}

/// Turns until `enough` events have come.
async fn turn_until(connection: &mut Connection, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    let turns = async {
        while !enough(&events) {
            let outcome = connection.turn(&mut |event| events.push(event)).await;
            if outcome.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), turns).await.expect("the events in time");
    events
}

fn delivered(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Deliver(_))).count()
}

async fn sends_and_receives(url: String, gateway: FakeGateway) {
    gateway.add_channel(7, false);
    gateway.publish(7, "before");
    let options = options(&url, &gateway);
    let mut connection = Connection::open(&options, session(DeviceState::new(DeviceId(5)))).await.unwrap();
    turn_until(&mut connection, |events| delivered(events) == 1).await;
    for number in 0..200 {
        let message = wire::Message { text: format!("{number} {}", "x".repeat(1_000)), ..Default::default() };
        let send = wire::Send {
            client_message_id: format!("{number:016}").into_bytes().into(),
            content: Some(wire::send::Content::Message(message)),
            ..Default::default()
        };
        connection.session().send(ChannelId(7), &send, false).unwrap();
    }
    let acks =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::SendAck { .. })).count();
    turn_until(&mut connection, |events| delivered(events) == 200 && acks(events) == 200).await;
    assert_eq!(connection.session().log(ChannelId(7)).unwrap().position, 201);
    assert_eq!(gateway.texts(7).len(), 201);

    let device = connection.close(Code(0)).await;
    assert_eq!(device.resume, "resume");
    gateway.publish(7, "while away");
    let mut connection = Connection::open(&options, session(device)).await.unwrap();
    let events = turn_until(&mut connection, |events| delivered(events) == 1).await;
    assert_eq!(delivered(&events), 1, "only what was missed comes");
    assert_eq!(gateway.hellos()[1].resume, "resume");
}

#[tokio::test]
async fn websocket_carries_a_session() {
    let gateway = FakeGateway::start().await;
    sends_and_receives(gateway.ws_url(), gateway).await;
}

#[tokio::test]
async fn websocket_over_tls_carries_a_session() {
    let gateway = FakeGateway::start().await;
    sends_and_receives(gateway.wss_url(), gateway).await;
}

#[tokio::test]
async fn quic_carries_a_session() {
    let gateway = FakeGateway::start().await;
    sends_and_receives(gateway.quic_url(), gateway).await;
}

#[tokio::test]
async fn another_certificate_is_refused() {
    let gateway = FakeGateway::start().await;
    for url in [gateway.wss_url(), gateway.quic_url()] {
        let options = ConnectOptions::new(&url).unwrap().trust(&Trust::Pinned(vec![[1; 32]])).unwrap();
        let error = Connection::open(&options, session(DeviceState::new(DeviceId(5)))).await.unwrap_err();
        assert!(matches!(error, OpenError::Connect(_) | OpenError::Quic(_)), "{error:?}");
        let untrusting = ConnectOptions::new(&url).unwrap();
        let error = Connection::open(&untrusting, session(DeviceState::new(DeviceId(5)))).await.unwrap_err();
        assert_eq!(error.ended().policy, Policy::Never);
    }
}

#[tokio::test]
async fn many_connections_share_an_endpoint_and_choose_their_address() {
    let gateway = FakeGateway::start().await;
    gateway.add_channel(7, false);
    let endpoint = quinn::Endpoint::client("127.0.0.3:0".parse().unwrap()).unwrap();
    let quic = options(&gateway.quic_url(), &gateway).endpoint(endpoint.clone());
    let tcp = options(&gateway.ws_url(), &gateway).local("127.0.0.4".parse().unwrap());
    let mut connections = Vec::new();
    for number in 0..40 {
        let options = if number % 2 == 0 { &quic } else { &tcp };
        let mut connection =
            Connection::open(options, session(DeviceState::new(DeviceId(number + 1)))).await.unwrap();
        turn_until(&mut connection, |events| events.iter().any(|event| matches!(event, Event::Synced(_))))
            .await;
        let local = connection.local_addr().unwrap();
        let expected: IpAddr = if number % 2 == 0 { [127, 0, 0, 3] } else { [127, 0, 0, 4] }.into();
        assert_eq!(local.ip(), expected);
        connections.push(connection);
    }
    gateway.publish(7, "to all");
    for connection in &mut connections {
        turn_until(connection, |events| delivered(events) == 1).await;
    }
}

#[tokio::test]
async fn a_close_tells_why_on_each_transport() {
    let gateway = FakeGateway::start().await;
    for url in [gateway.ws_url(), gateway.wss_url(), gateway.quic_url()] {
        gateway.refuse(Code::CONNECTIONS_PER_USER, 1_234);
        let options = options(&url, &gateway);
        let mut connection =
            Connection::open(&options, session(DeviceState::new(DeviceId(5)))).await.unwrap();
        let events = turn_until(&mut connection, |_| false).await;
        let [Event::Ended(ended)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(ended.code, Some(Code::CONNECTIONS_PER_USER), "{url}");
        assert_eq!((ended.policy, ended.retry_after_ms), (Policy::BackOff, 1_234));
        assert!(connection.turn(&mut |_| panic!("nothing comes behind the end")).await.is_err());
    }
}

#[tokio::test]
async fn a_cut_is_an_end_without_a_code() {
    let gateway = FakeGateway::start().await;
    let options = options(&gateway.ws_url(), &gateway);
    let mut connection = Connection::open(&options, session(DeviceState::new(DeviceId(5)))).await.unwrap();
    turn_until(&mut connection, |events| events.iter().any(|event| matches!(event, Event::Synced(_)))).await;
    gateway.cut_all();
    let events = turn_until(&mut connection, |_| false).await;
    assert!(
        matches!(&events[..], [Event::Ended(ended)] if ended.code.is_none() && ended.policy == Policy::BackOff)
    );
}
