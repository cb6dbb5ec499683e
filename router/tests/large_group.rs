//! A group of 100,000: joining costs the same for the last as for the first, and one send is one message per gateway.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod support;

use std::time::Instant;

use fanfare_proto::{DeviceId, UserId, link::GatewayId, wire};
use support::{Gateway, House, gateway::Given, membership};

const MEMBERS: u64 = 100_000;
const SESSIONS: usize = 2_000;
const PER_ENTRY: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn one_send_is_one_message_per_gateway() {
    // Everybody hears at once: what is counted is the fan-out itself.
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut house = House::with(folder, |config| config.tiers.by_activity = false).await;
    let owner = house.user("owner").await;
    house.faulty.everybody_exists.store(true, std::sync::atomic::Ordering::SeqCst);
    // Ids as shards would give them, spread over all shards.
    let members: Vec<UserId> = (1..=MEMBERS)
        .map(|number| UserId(number << 21 | (number % u64::from(support::SHARDS)) << 11))
        .collect();
    let second = Gateway::attach(house.router(), GatewayId(2));
    let channel = house.group(owner, &[]).await;
    let mut speaker = house.session(owner, 1).await;
    let mut sessions = Vec::new();
    for (number, user) in members.iter().take(SESSIONS).enumerate() {
        let gateway = if number % 2 == 0 { &house.gateway } else { &second };
        let mut session = gateway.open(*user, DeviceId(1), support::TOKEN, false).await.unwrap();
        session.sync(&[]).await;
        sessions.push(session);
    }
    let mut took = Vec::new();
    for chunk in members.chunks(PER_ENTRY) {
        let since = Instant::now();
        let ack = speaker.send(channel, membership(wire::MembershipChange::Joined, chunk)).await;
        assert_eq!(ack.outcome(), wire::Outcome::Ok, "{ack:?}");
        took.push(since.elapsed());
    }
    let summary = house.router().admin().describe(channel, Some(owner)).await.unwrap().unwrap();
    assert_eq!(summary.members_total as u64, MEMBERS + 1);
    // The median of the last tenth against that of the second: no more than noise apart.
    let median = |some: &[std::time::Duration]| {
        let mut some = some.to_vec();
        some.sort_unstable();
        some[some.len() / 2]
    };
    let (early, late) = (median(&took[10..20]), median(&took[90..]));
    println!("joins of {PER_ENTRY}: {early:?} among 10,000, {late:?} among 100,000");
    assert!(late < early * 5 + std::time::Duration::from_millis(20), "joins grew: {early:?} to {late:?}");
    // Everybody who is here listens.
    let until = Instant::now() + std::time::Duration::from_secs(60);
    while house.gateway.audience(channel) + second.audience(channel) < SESSIONS + 1 {
        assert!(Instant::now() < until, "somebody does not listen");
        tokio::task::yield_now().await;
    }
    // What was held of the joins goes out with the first.
    let mut before = (0, 0);
    for text in ["hello", "hello, all"] {
        before = (house.gateway.fanouts(channel), second.fanouts(channel));
        let seq = speaker.say(channel, text).await;
        for session in &mut sessions {
            loop {
                if let Given::Frame(frame) = session.next().await
                    && frame.routed().is_some_and(|header| header.seq == seq && header.channel == channel)
                    && frame.frame_type() == fanfare_proto::FrameType::Deliver
                {
                    break;
                }
            }
        }
    }
    assert_eq!((house.gateway.fanouts(channel), second.fanouts(channel)), (before.0 + 1, before.1 + 1));
    house.stop().await;
}
