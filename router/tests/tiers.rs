//! Tiers: who gets what when, by what members do and what their sessions show. Sessions are followed by the client's own state machine,
//! which says so where the server leaves a hole or repeats itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod support;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fanfare_proto::{
    ChannelId, DeviceId, Frame, FrameType, UserId,
    frame::{routed, short},
    header::class,
    link::Tier,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire::{self, Attention, send::Content},
};
use fanfare_router::RouterConfig;
use support::{House, Session, TOKEN, gateway::Given, membership, new_id, now_ms, send_frame, text, whole};

const PATIENCE: Duration = Duration::from_secs(20);

/// Groups of three members have tiers, and what waits does not wait long.
fn quick(config: &mut RouterConfig) {
    config.activity.small_members = 2;
    config.tiers.warm = Duration::from_millis(40);
    config.tiers.passive = Duration::from_millis(80);
    config.tiers.background = Duration::from_millis(160);
    config.tiers.look = Duration::from_millis(50);
    config.mention_all_every = Duration::ZERO;
}

async fn house() -> House {
    House::with(Arc::new(tempfile::tempdir().unwrap()), quick).await
}

/// A session with the client's view of it.
struct Follower {
    session: Session,
    client: ClientSession,
    delivered: Vec<u64>,
    notified: Vec<u64>,
    gaps: usize,
    typed: usize,
}

impl Follower {
    async fn new(house: &House, user: UserId, device: u64, screen: Option<wire::State>) -> Self {
        Self::with(house, user, device, screen, false).await
    }

    async fn with(house: &House, user: UserId, device: u64, screen: Option<wire::State>, full: bool) -> Self {
        let session = house.gateway.open(user, DeviceId(device), TOKEN, full).await.unwrap();
        let delivery = if full { wire::Delivery::Full } else { wire::Delivery::Tiered };
        let options = SessionOptions { token: "token".into(), delivery, screen, ..Default::default() };
        let client = ClientSession::new(DeviceState::new(DeviceId(device)), options, now_ms());
        let mut follower = Self { session, client, delivered: vec![], notified: vec![], gaps: 0, typed: 0 };
        let welcome = wire::Welcome {
            version: fanfare_proto::VERSION,
            user: user.0,
            server_time_ms: now_ms(),
            ..Default::default()
        };
        follower.take(whole(short(FrameType::Welcome, class::CONTROL, &welcome)));
        follower.up().await;
        follower.until(|event| matches!(event, Event::Synced(synced) if synced.complete)).await;
        // What its SYNC brought.
        (follower.delivered, follower.notified, follower.gaps) = (vec![], vec![], 0);
        follower
    }

    /// Sends up what the client has to say.
    async fn up(&mut self) {
        while let Some(mut bytes) = self.client.poll_transmit(now_ms()) {
            let frame = Frame::split_from(&mut bytes).unwrap().unwrap();
            if !matches!(frame.frame_type(), FrameType::Hello | FrameType::Ping) {
                self.session.up(frame).await;
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Vec<Event> {
        let mut events = Vec::new();
        self.client.handle(now_ms(), frame, &mut |event| events.push(event)).unwrap();
        for event in &events {
            match event {
                Event::Deliver(frame) => self.delivered.push(frame.routed().unwrap().seq),
                Event::Notified { head, .. } => self.notified.push(*head),
                Event::Gap { .. } => self.gaps += 1,
                Event::Typing { .. } => self.typed += 1,
                Event::Defect { .. } => panic!("{event:?} of user {}", self.session.origin.user),
                _ => {}
            }
        }
        events
    }

    /// Takes what is there.
    async fn pump(&mut self) {
        while let Some(given) = self.session.now() {
            if let Given::Frame(frame) = given {
                self.take(frame);
            }
        }
        self.up().await;
    }

    async fn until(&mut self, mut is: impl FnMut(&Event) -> bool) {
        loop {
            let found = match self.session.next().await {
                Given::Frame(frame) => self.take(frame).iter().any(&mut is),
                _ => false,
            };
            self.up().await;
            if found {
                return;
            }
        }
    }

    async fn until_head(&mut self, channel: ChannelId, head: u64) {
        let until = Instant::now() + PATIENCE;
        while self.tip(channel) < head {
            assert!(Instant::now() < until, "stands at {} of {head}", self.tip(channel));
            self.pump().await;
            tokio::task::yield_now().await;
        }
    }

    fn tip(&self, channel: ChannelId) -> u64 {
        self.client.log(channel).map_or(0, |log| log.tip())
    }

    async fn shows(&mut self, attention: Attention, visible: &[ChannelId]) {
        let visible = visible.iter().map(|channel| channel.0).collect();
        self.client.state(&wire::State { attention: attention.into(), visible, tapped: 0 }).unwrap();
        self.up().await;
    }

    fn tier(&self, channel: ChannelId) -> Option<Tier> {
        self.session.gateway.tier(channel, self.session.origin.handle)
    }

    async fn until_tier(&mut self, channel: ChannelId, tier: Tier) {
        let until = Instant::now() + PATIENCE;
        while self.tier(channel) != Some(tier) {
            assert!(Instant::now() < until, "is {:?}, not {tier:?}", self.tier(channel));
            self.pump().await;
            tokio::task::yield_now().await;
        }
    }

    async fn types(&mut self, channel: ChannelId) {
        self.client.typing(channel, false).unwrap();
        self.up().await;
    }
}

fn foreground(visible: &[ChannelId]) -> Option<wire::State> {
    let visible = visible.iter().map(|channel| channel.0).collect();
    Some(wire::State { attention: Attention::Foreground.into(), visible, tapped: 0 })
}

/// A group of that many, and a session of its owner with full delivery.
async fn group(house: &House, members: usize) -> (ChannelId, Vec<UserId>, Session) {
    let users = house.users(members).await;
    let channel = house.group(users[0], &users[1..]).await;
    let mut owner = house.gateway.open(users[0], DeviceId(1), TOKEN, true).await.unwrap();
    owner.sync(&[]).await;
    (channel, users, owner)
}

#[tokio::test]
async fn tiers_follow_what_a_session_shows_and_its_user_does() {
    let house = house().await;
    let (channel, users, _owner) = group(&house, 5).await;
    let mut silent = Follower::new(&house, users[1], 2, None).await;
    assert_eq!(silent.tier(channel), Some(Tier::Background), "nothing was said of the screen");
    silent.shows(Attention::Foreground, &[]).await;
    silent.until_tier(channel, Tier::Passive).await;
    silent.types(channel).await;
    silent.until_tier(channel, Tier::Warm).await;
    let content = text("hello");
    let frame = send_frame(channel, 9, new_id(), content, None);
    silent.session.up(frame).await;
    silent.until_tier(channel, Tier::Active).await;
    silent.shows(Attention::Foreground, &[channel]).await;
    silent.until_tier(channel, Tier::Visible).await;
    silent.shows(Attention::Foreground, &[]).await;
    silent.until_tier(channel, Tier::Active).await;
    // Behind the screen its score is not enough, as those of others are; it comes on screen again and stands where it stood.
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    silent.shows(Attention::Background, &[]).await;
    silent.until_tier(channel, Tier::Background).await;
    silent.shows(Attention::Foreground, &[]).await;
    silent.until_tier(channel, Tier::Active).await;
    let full = Follower::with(&house, users[2], 3, foreground(&[]), true).await;
    assert_eq!(full.tier(channel), Some(Tier::Active));
}

#[tokio::test]
async fn passive_members_are_told_the_head_however_many_messages_there_are() {
    let house = house().await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut passive = Follower::new(&house, users[1], 2, foreground(&[])).await;
    let mut behind = Follower::new(&house, users[2], 3, None).await;
    let began = Instant::now();
    let mut head = 0;
    for number in 0..60 {
        head = owner.say(channel, &format!("message {number}")).await;
    }
    passive.until_head(channel, head).await;
    behind.until_head(channel, head).await;
    let intervals = began.elapsed().as_millis() as usize / 80 + 2;
    for follower in [&passive, &behind] {
        assert!(follower.delivered.is_empty() && follower.gaps == 0);
        assert!(follower.notified.len() <= intervals, "{:?} in {intervals}", follower.notified);
        assert_eq!(follower.notified.last(), Some(&head));
    }
    let history = passive.session.history(channel, 0).await;
    assert_eq!(history.last().unwrap().0, head, "what was not sent is fetched");
}

#[tokio::test]
async fn warm_members_get_bundles_of_everything() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        quick(config);
        // However much the owner says, who typed once stays warm.
        config.activity.warm_of_mean = 0.0;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut warm = Follower::new(&house, users[1], 2, foreground(&[])).await;
    warm.types(channel).await;
    warm.until_tier(channel, Tier::Warm).await;
    let before = house.gateway.fanouts(channel);
    let first = owner.say(channel, "first").await;
    let mut head = first;
    for number in 0..40 {
        head = owner.say(channel, &format!("message {number}")).await;
    }
    warm.until_head(channel, head).await;
    assert_eq!(warm.delivered, (first..=head).collect::<Vec<_>>());
    assert_eq!((warm.client.repeats(), warm.gaps), (0, 0));
    // One fan-out a message for the owner, and the bundles.
    assert!(house.gateway.fanouts(channel) - before < 41 + 40);
    // What is taken back is heard at once.
    let seq = owner.say(channel, "wrong").await;
    owner.send(channel, Content::Recall(wire::Recall { target: seq })).await;
    warm.until_head(channel, seq + 1).await;
}

#[tokio::test]
async fn a_bundle_takes_a_message_along_that_is_being_committed() {
    for (patience, bundles) in [(Duration::from_secs(60), 1), (Duration::from_millis(1), 2)] {
        let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
            quick(config);
            config.activity.warm_of_mean = 0.0;
            config.tiers.commit = patience;
        })
        .await;
        let (channel, users, mut owner) = group(&house, 5).await;
        let mut warm = Follower::new(&house, users[1], 2, foreground(&[])).await;
        warm.types(channel).await;
        warm.until_tier(channel, Tier::Warm).await;
        let seq = owner.say(channel, "before").await;
        warm.until_head(channel, seq).await;
        let before = house.gateway.fanouts(channel);
        let first = owner.say(channel, "first").await;
        house.faulty.close_gate();
        let request = owner.request();
        owner.up(send_frame(channel, request, new_id(), text("second"), None)).await;
        if bundles == 2 {
            // Not for ever.
            warm.until_head(channel, first).await;
        } else {
            // It would have come meanwhile.
            tokio::time::sleep(Duration::from_millis(120)).await;
            warm.pump().await;
            assert!(warm.tip(channel) < first);
        }
        house.faulty.open_gate();
        warm.until_head(channel, first + 1).await;
        assert_eq!((warm.client.repeats(), warm.gaps), (0, 0));
        // Each message to those who get it at once, and the bundles.
        assert_eq!(house.gateway.fanouts(channel) - before, 2 + bundles);
    }
}

#[tokio::test]
async fn passive_members_do_not_wait_for_a_strain_that_is_over() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        quick(config);
        config.activity.warm_of_mean = 0.0;
        config.tiers.passive = Duration::from_secs(1);
    })
    .await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut warm = Follower::new(&house, users[1], 2, foreground(&[])).await;
    warm.types(channel).await;
    warm.until_tier(channel, Tier::Warm).await;
    house.gateway.starve();
    let stretched = async || house.router().admin().status().await.unwrap().counts.stretched;
    while stretched().await < 5 {
        owner.say(channel, "hello").await;
    }
    // At this strain they were to wait for half a minute.
    let mut passive = Follower::new(&house, users[2], 3, foreground(&[])).await;
    assert_eq!(passive.tier(channel), Some(Tier::Passive));
    owner.say(channel, "hello").await;
    house.gateway.feed();
    let head = owner.say(channel, "hello").await;
    let since = Instant::now();
    while passive.notified.last().is_none_or(|told| *told < head) {
        assert!(since.elapsed() < PATIENCE, "told {:?} of {head}", passive.notified.last());
        owner.say(channel, "hello").await;
        warm.pump().await;
        passive.pump().await;
    }
}

#[tokio::test]
async fn who_is_named_gets_that_entry_at_once() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.activity.small_members = 2;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut named = Follower::new(&house, users[1], 2, None).await;
    let mut other = Follower::new(&house, users[2], 3, None).await;
    owner.say(channel, "nobody in particular").await;
    let message = wire::Message { text: "you".into(), mentions: vec![users[1].0], ..Default::default() };
    let seq = owner.send(channel, Content::Message(message)).await.seq;
    // Long before the 15 s of passive members: the test would not wait for them.
    named.until_head(channel, seq).await;
    assert_eq!((named.delivered.as_slice(), named.notified.as_slice()), (&[seq][..], &[seq - 1][..]));
    other.pump().await;
    assert!(other.delivered.is_empty());
    // Its answer, and the answer to that.
    let message = wire::Message { text: "me".into(), ..Default::default() };
    named.session.up(send_frame(channel, 5, new_id(), Content::Message(message), None)).await;
    named.until_head(channel, seq + 1).await;
    let (everybody, answer) = (
        wire::Message { text: "all".into(), mention_all: true, ..Default::default() },
        wire::Message { text: "well".into(), reply_to: seq + 1, ..Default::default() },
    );
    let seq = owner.send(channel, Content::Message(everybody)).await.seq;
    other.until_head(channel, seq).await;
    assert_eq!(other.delivered, [seq]);
    let seq = owner.send(channel, Content::Message(answer)).await.seq;
    named.until_head(channel, seq).await;
}

#[tokio::test]
async fn who_is_answered_after_a_long_time_hears_of_it_at_once() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.activity.small_members = 2;
        // It has said something, and that alone does not make it active.
        config.activity.active = 0.9;
        config.tail_frames_max = 16;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut asked = Follower::new(&house, users[1], 2, None).await;
    let question = asked.session.say(channel, "does anybody know?").await;
    asked.session.close().await;
    for number in 0..40 {
        owner.say(channel, &format!("something else {number}")).await;
    }
    let mut asked = Follower::new(&house, users[1], 2, None).await;
    assert_eq!(asked.tier(channel), Some(Tier::Background));
    let answer = wire::Message { text: "I do".into(), reply_to: question, ..Default::default() };
    let seq = owner.send(channel, Content::Message(answer)).await.seq;
    asked.until_tier(channel, Tier::Active).await;
    asked.until_head(channel, seq).await;
}

#[tokio::test]
async fn names_beyond_a_few_and_all_at_once_take_a_role_and_time() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.activity.small_members = 2;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 40).await;
    let mut member = house.gateway.open(users[1], DeviceId(1), TOKEN, true).await.unwrap();
    member.sync(&[]).await;
    let naming = |count: usize| {
        let mentions = users.iter().chain(&users).take(count).map(|user| user.0).collect();
        Content::Message(wire::Message { text: "you".into(), mentions, ..Default::default() })
    };
    let outcome = |ack: wire::SendAck| (ack.seq > 0, support::code(ack.code));
    assert!(member.send(channel, naming(32)).await.seq > 0);
    assert_eq!(outcome(member.send(channel, naming(33)).await).1, fanfare_proto::Code::FORBIDDEN);
    assert!(owner.send(channel, naming(40)).await.seq > 0);
    // The same ones again and again are named once.
    let again = wire::Message { text: "you".into(), mentions: vec![users[2].0; 900], ..Default::default() };
    assert!(member.send(channel, Content::Message(again)).await.seq > 0);
    let all =
        || Content::Message(wire::Message { text: "all".into(), mention_all: true, ..Default::default() });
    assert!(owner.send(channel, all()).await.seq > 0);
    assert_eq!(outcome(owner.send(channel, all()).await).1, fanfare_proto::Code::RATE_LIMITED);
    owner.say(channel, "well").await;
}

#[tokio::test]
async fn a_channel_on_screen_is_visible_from_the_moment_its_user_joins() {
    let house = house().await;
    let (channel, _, mut owner) = group(&house, 5).await;
    let guest = house.users(1).await[0];
    let mut follower = Follower::new(&house, guest, 7, foreground(&[channel])).await;
    owner.send(channel, membership(wire::MembershipChange::Joined, &[guest])).await;
    follower.until_tier(channel, Tier::Visible).await;
}

/// A session rises while entries are held for those it joins, and while its gateway is behind: what they are still to get is not for it.
#[tokio::test]
async fn who_rises_gets_nothing_twice() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        quick(config);
        config.tiers.warm = Duration::from_secs(60);
    })
    .await;
    let (channel, users, mut owner) = group(&house, 270).await;
    let newcomers = house.users(4).await;
    let mut warm = Follower::new(&house, users[1], 2, foreground(&[])).await;
    warm.types(channel).await;
    warm.until_tier(channel, Tier::Warm).await;
    let mut visible = Follower::new(&house, users[2], 3, foreground(&[channel])).await;
    for pair in newcomers.chunks(2) {
        for newcomer in pair {
            owner.send(channel, membership(wire::MembershipChange::Joined, &[*newcomer])).await;
        }
        // One went out, one is held.
        let frame = send_frame(channel, 1, new_id(), text("of a member"), None);
        warm.session.up(frame).await;
        warm.until_tier(channel, Tier::Active).await;
        let said = owner.say(channel, "hello").await;
        warm.until_head(channel, said).await;
        visible.until_head(channel, said).await;
        assert_eq!((warm.client.repeats(), visible.client.repeats()), (0, 0));
    }
    // Behind, and named.
    let mut other = Follower::new(&house, users[3], 4, foreground(&[])).await;
    other.types(channel).await;
    other.until_tier(channel, Tier::Warm).await;
    house.gateway.starve();
    for _ in 0..100 {
        owner.send(channel, text(&"x".repeat(16_000))).await;
    }
    let behind = owner.say(channel, "hello").await;
    visible.pump().await;
    assert!(visible.tip(channel) < behind, "the gateway was not behind");
    let message = wire::Message { text: "you".into(), mentions: vec![users[3].0], ..Default::default() };
    let seq = owner.send(channel, Content::Message(message)).await.seq;
    house.gateway.feed();
    let last = owner.say(channel, "hello").await;
    other.until_head(channel, last).await;
    visible.until_head(channel, last.max(seq)).await;
    assert_eq!((other.client.repeats(), visible.client.repeats()), (0, 0));
}

#[tokio::test]
async fn opening_a_channel_brings_its_head_and_what_follows() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.activity.small_members = 2;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 5).await;
    let mut follower = Follower::new(&house, users[1], 2, foreground(&[])).await;
    let mut head = 0;
    for _ in 0..5 {
        head = owner.say(channel, "unheard").await;
    }
    follower.shows(Attention::Foreground, &[channel]).await;
    follower.until_head(channel, head).await;
    assert_eq!(follower.notified, [head]);
    let next = owner.say(channel, "heard").await;
    follower.until_head(channel, next).await;
    assert_eq!(follower.delivered, [next]);
    // Only who gets entries at once hears who types.
    let mut typist = Follower::new(&house, users[2], 3, foreground(&[channel])).await;
    let passive = Follower::new(&house, users[3], 4, None).await;
    typist.types(channel).await;
    follower.until(|event| matches!(event, Event::Typing { .. })).await;
    assert_eq!(passive.typed, 0);
}

#[tokio::test]
async fn activity_outlives_a_restart() {
    let house = house().await;
    let (channel, users, _owner) = group(&house, 5).await;
    let (talker, typist) = (users[1], users[2]);
    let mut follower = Follower::new(&house, talker, 2, foreground(&[])).await;
    follower.session.up(send_frame(channel, 9, new_id(), text("hello"), None)).await;
    follower.until_tier(channel, Tier::Active).await;
    let mut other = Follower::new(&house, typist, 3, foreground(&[])).await;
    other.types(channel).await;
    other.until_tier(channel, Tier::Warm).await;
    drop((follower, other));
    let house = house.restart_with(quick).await;
    let talker = Follower::new(&house, talker, 2, foreground(&[])).await;
    let typist = Follower::new(&house, typist, 3, foreground(&[])).await;
    assert_eq!((talker.tier(channel), typist.tier(channel)), (Some(Tier::Active), Some(Tier::Warm)));
}

#[tokio::test]
async fn who_is_in_a_group_that_grows_is_looked_at() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        quick(config);
        config.activity.small_members = 3;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 3).await;
    let mut silent = Follower::new(&house, users[1], 2, foreground(&[])).await;
    assert_eq!(silent.tier(channel), Some(Tier::Active), "in a small group everybody is");
    let newcomer = house.users(1).await;
    owner.send(channel, membership(wire::MembershipChange::Joined, &newcomer)).await;
    silent.until_tier(channel, Tier::Passive).await;
    owner.send(channel, membership(wire::MembershipChange::Removed, &newcomer)).await;
    silent.until_tier(channel, Tier::Active).await;
    let head = owner.say(channel, "small again").await;
    silent.until_head(channel, head).await;
    assert_eq!(silent.delivered.last(), Some(&head));
}

#[tokio::test]
async fn in_large_groups_joins_are_bundled() {
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.tiers.by_activity = false;
    })
    .await;
    let (channel, users, mut owner) = group(&house, 260).await;
    let mut watcher = Follower::new(&house, users[1], 2, foreground(&[])).await;
    let newcomers = house.users(40).await;
    let mut comers = Vec::new();
    for newcomer in &newcomers[30..] {
        comers.push(Follower::new(&house, *newcomer, 3, foreground(&[])).await);
    }
    let (before, began) = (house.gateway.fanouts(channel), Instant::now());
    let (mut head, mut joined) = (0, Vec::new());
    for newcomer in &newcomers {
        let ack = owner.send(channel, membership(wire::MembershipChange::Joined, &[*newcomer])).await;
        head = ack.seq;
        joined.push(head);
    }
    watcher.until_head(channel, head).await;
    let seconds = began.elapsed().as_secs();
    let fanouts = house.gateway.fanouts(channel) - before;
    assert!(fanouts <= seconds + 2, "{fanouts} fan-outs in {seconds} s");
    assert_eq!(watcher.delivered.len(), 40, "each of them was told");
    // Who came in meanwhile has its own entry and what is behind it, each once, and nothing that was before.
    let seq = owner.say(channel, "welcome").await;
    watcher.until_head(channel, seq).await;
    for (comer, joined) in comers.iter_mut().zip(&joined[30..]) {
        comer.until_head(channel, seq).await;
        assert_eq!(comer.delivered, (*joined..=seq).collect::<Vec<_>>());
        assert_eq!(comer.client.repeats(), 0);
    }
    // A message does not wait, and nothing that waits comes behind it.
    owner.send(channel, membership(wire::MembershipChange::Removed, &newcomers[..1])).await;
    let said = owner.say(channel, "hello").await;
    watcher.until_head(channel, said).await;
    assert_eq!((watcher.delivered.last(), watcher.client.repeats()), (Some(&said), 0));
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// Members send, type, mention, react, come, go, look and look away, scores fade within seconds, and the gateway starves. Nobody is left
/// with a hole, nobody is told anything twice, and everybody ends at the same head.
#[tokio::test]
async fn nobody_loses_or_repeats_anything_whatever_tier_it_has() {
    let (mut seen, mut starved) = ([0u32; 5], 0);
    for seed in 1..=8 {
        // In the larger one membership entries are held.
        let members = if seed % 4 == 0 { 270 } else { 9 };
        let (times, behind) = walk(seed, members).await;
        seen.iter_mut().zip(times).for_each(|(sum, times)| *sum += times);
        starved += behind;
    }
    assert!(seen.iter().all(|times| *times > 0), "{seen:?} is no walk through all tiers");
    assert!(starved > 0, "no gateway was ever behind");
}

/// Gives how often somebody was seen in each tier, and how often the gateway was behind when it was given credit again.
async fn walk(seed: u64, members: usize) -> ([u32; 5], u32) {
    const MEMBERS: usize = 9;
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        quick(config);
        config.activity.patience_s = 0.1;
        config.activity.fast_half_life_s = 0.2;
        config.activity.slow_half_life_s = 0.6;
        config.tail_frames_max = 64;
    })
    .await;
    let (channel, users, mut owner) = group(&house, members).await;
    let newcomers = house.users(2).await;
    let mut random = Random(seed);
    let mut followers: BTreeMap<usize, Follower> = BTreeMap::new();
    let (mut head, mut seen) = (0, [0u32; 5]);
    let (mut starves, mut starved) = (false, 0);
    let mut full = Follower::with(&house, users[MEMBERS - 1], 99, None, true).await;
    for step in 0..400 {
        let member = 1 + random.below(MEMBERS as u64 - 2) as usize;
        match random.below(13) {
            0..4 => {
                // Long enough for the credit to be spent.
                let text = if starves { "x".repeat(16_000) } else { format!("step {step}") };
                for _ in 0..if starves { 12 } else { 0 } {
                    owner.send(channel, support::text(&text)).await;
                }
                let mut message = wire::Message { text, ..Default::default() };
                if random.below(6) == 0 {
                    message.mentions = vec![users[member].0];
                }
                message.mention_all = random.below(40) == 0;
                head = owner.send(channel, Content::Message(message)).await.seq;
                if random.below(8) == 0 {
                    head = owner.send(channel, Content::Recall(wire::Recall { target: head })).await.seq;
                }
            }
            4 if !followers.contains_key(&member) => {
                let screen = match random.below(3) {
                    0 => None,
                    1 => foreground(&[]),
                    _ => foreground(&[channel]),
                };
                let follower = Follower::new(&house, users[member], member as u64, screen).await;
                followers.insert(member, follower);
            }
            5 if random.below(3) == 0 => {
                if let Some(follower) = followers.remove(&member) {
                    follower.session.close().await;
                }
            }
            6 | 7 => {
                if let Some(follower) = followers.get_mut(&member) {
                    let (attention, visible) = match random.below(3) {
                        0 => (Attention::Background, vec![]),
                        1 => (Attention::Foreground, vec![]),
                        _ => (Attention::Foreground, vec![channel]),
                    };
                    follower.shows(attention, &visible).await;
                }
            }
            8 => {
                if let Some(follower) = followers.get_mut(&member) {
                    let frame = send_frame(channel, 1_000 + step, new_id(), text("of a member"), None);
                    follower.session.up(frame).await;
                }
            }
            9 => {
                if let Some(follower) = followers.get_mut(&member) {
                    follower.types(channel).await;
                }
            }
            10 if random.below(4) == 0 => {
                house.gateway.starve();
                starves = true;
            }
            10 => {
                full.pump().await;
                starved += u32::from(starves && full.tip(channel) < head);
                house.gateway.feed();
                starves = false;
            }
            11 if members > MEMBERS => {
                let newcomer = newcomers[random.below(2) as usize];
                let change = [wire::MembershipChange::Joined, wire::MembershipChange::Removed]
                    [random.below(2) as usize];
                head = head.max(owner.send(channel, membership(change, &[newcomer])).await.seq);
            }
            _ => tokio::time::sleep(Duration::from_millis(random.below(30))).await,
        }
        for follower in followers.values_mut() {
            follower.pump().await;
            if let Some(tier) = follower.tier(channel) {
                seen[tier as usize] += 1;
            }
        }
        full.pump().await;
    }
    house.gateway.feed();
    head = head.max(owner.say(channel, "the end").await);
    full.until_head(channel, head).await;
    for (member, follower) in &mut followers {
        follower.until_head(channel, head).await;
        assert_eq!(follower.client.repeats(), 0, "seed {seed}: member {member}");
        assert!(follower.delivered.is_sorted(), "seed {seed}: member {member}");
    }
    let whole: Vec<u64> = owner.history(channel, 0).await.iter().map(|(seq, _)| *seq).collect();
    let is_whole = full.delivered.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    assert!(is_whole || full.gaps > 0, "seed {seed}: {:?}", full.delivered);
    assert_eq!(whole.last(), Some(&head));
    (seen, starved)
}

#[tokio::test]
async fn a_state_that_comes_too_often_or_names_too_much_is_refused() {
    let house = house().await;
    let (channel, users, _owner) = group(&house, 5).await;
    let mut follower = Follower::new(&house, users[1], 2, foreground(&[channel])).await;
    follower.shows(Attention::Background, &[]).await;
    let error: wire::Error = follower.session.frame(FrameType::Error).await.decode().unwrap();
    assert_eq!(support::code(error.code), fanfare_proto::Code::RATE_LIMITED);
    assert_eq!(follower.tier(channel), Some(Tier::Visible));
    let visible = (1..=17).collect();
    let state = wire::State { attention: 1, visible, tapped: 0 };
    follower.session.up(whole(short(FrameType::State, class::CONTROL, &state))).await;
    let error: wire::Error = follower.session.frame(FrameType::Error).await.decode().unwrap();
    assert_eq!(support::code(error.code), fanfare_proto::Code::BAD_FIELD);
    // A tap counts, and a channel that is none of its user's is nobody's business.
    let state = wire::State { attention: 1, visible: vec![channel.0, 77], tapped: channel.0 };
    follower.session.up(whole(short(FrameType::State, class::CONTROL, &state))).await;
    follower.until_tier(channel, Tier::Visible).await;
    let receipt = wire::Receipt { cursors: vec![wire::Cursor { read: 1, ..Default::default() }] };
    let frame = routed(FrameType::Receipt, class::STATE, 0, 0, channel, 0, &receipt);
    follower.session.up(whole(frame)).await;
}
