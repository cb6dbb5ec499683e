//! Random histories: users send, repeat, join, leave, come, go, sync and fetch while the store fails and the gateway
//! starves; then everything heals, and the checkers look for a broken promise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod support;

use std::{collections::HashMap, time::Duration};

use fanfare_proto::{
    ChannelId, ClientMessageId, DeviceId, Frame, FrameType, UserId,
    frame::{routed, short},
    header::flags,
    wire,
};
use fanfare_router::history::{Answer, Event, Logs, Print, Seen, Violation, check, summary};
use support::{
    House, Session,
    faulty::Fault,
    gateway::{Given, frames_of},
    membership, new_id, now_ms, send_frame, text, whole,
};

const USERS: usize = 5;
const STEPS: usize = 300;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.next().is_multiple_of(chance)
    }
}

fn print(bytes: &[u8]) -> Print {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn print_content(content: &wire::entry::Content) -> Print {
    let mut bytes = Vec::new();
    content.encode(&mut bytes);
    print(&bytes)
}

fn seen(frame: &Frame) -> Seen {
    let entry: wire::Entry = frame.decode().unwrap();
    let header = frame.routed().unwrap();
    let mut members = (Vec::new(), Vec::new());
    if let Some(wire::entry::Content::Membership(change)) = &entry.content {
        let users = change.users.iter().copied().map(UserId);
        match change.change() {
            wire::MembershipChange::Joined => members.0.extend(users),
            wire::MembershipChange::Left | wire::MembershipChange::Removed => members.1.extend(users),
            _ => {}
        }
    }
    Seen {
        epoch: entry.epoch,
        seq: header.seq,
        frame: print(&frame.bytes),
        content: entry.content.as_ref().map_or(0, print_content),
        id: ClientMessageId::from_wire(&entry.client_message_id),
        sender: UserId(entry.sender),
        members,
        is_stub: header.short.flags & flags::STUB != 0,
    }
}

/// A device's session with what its client remembers.
struct Client {
    session: Session,
    follows: HashMap<ChannelId, u64>,
    acked: u64,
}

struct Attempt {
    user: usize,
    channel: ChannelId,
    id: ClientMessageId,
    content: wire::send::Content,
    first_ms: u64,
    open: u32,
    decided: bool,
}

struct Story {
    house: House,
    random: Random,
    users: Vec<UserId>,
    channels: Vec<ChannelId>,
    clients: HashMap<(usize, u64), Client>,
    attempts: Vec<Attempt>,
    /// (user, device, request) to the attempt.
    waiting: HashMap<(usize, u64, u64), usize>,
    fetching: HashMap<(usize, u64, u64), u64>,
    oks: HashMap<(usize, ChannelId), u64>,
    events: Vec<Event>,
    ok_sends: usize,
    blind_for: u32,
}

fn send_print(content: &wire::send::Content) -> Print {
    let mut bytes = Vec::new();
    content.encode(&mut bytes);
    print(&bytes)
}

impl Story {
    async fn begin(seed: u64) -> Self {
        let house = House::new().await;
        let users = house.users(USERS).await;
        let mut channels = Vec::new();
        for _ in 0..2 {
            channels.push(house.group(users[0], &users[1..3]).await);
        }
        Self {
            house,
            random: Random(seed),
            users,
            channels,
            clients: HashMap::new(),
            attempts: Vec::new(),
            waiting: HashMap::new(),
            fetching: HashMap::new(),
            oks: HashMap::new(),
            events: Vec::new(),
            ok_sends: 0,
            blind_for: 0,
        }
    }

    fn pick_client(&mut self) -> Option<(usize, u64)> {
        let mut keys: Vec<(usize, u64)> = self.clients.keys().copied().collect();
        keys.sort_unstable();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len())])
    }

    async fn come(&mut self, user: usize, device: u64) {
        if self.clients.contains_key(&(user, device)) {
            return;
        }
        let opened = self.house.gateway.open(self.users[user], DeviceId(device), support::TOKEN, false).await;
        let Ok(session) = opened else { return };
        let acked = session.opened.as_ref().unwrap().acks_confirmed;
        let client = Client { session, follows: HashMap::new(), acked };
        self.clients.insert((user, device), client);
        self.sync(user, device).await;
    }

    async fn sync(&mut self, user: usize, device: u64) {
        let Some(client) = self.clients.get_mut(&(user, device)) else { return };
        client.session.up(support::sync_frame(&[], 0)).await;
    }

    async fn go(&mut self, user: usize, device: u64) {
        let Some(client) = self.clients.remove(&(user, device)) else { return };
        client.session.close().await;
        self.fetching.retain(|(one, other, _), _| (*one, *other) != (user, device));
        let lost: Vec<_> =
            self.waiting.keys().copied().filter(|(one, other, _)| (*one, *other) == (user, device)).collect();
        for key in lost {
            if let Some(attempt) = self.waiting.remove(&key) {
                self.answered(attempt, Answer::Unknown);
            }
        }
    }

    fn answered(&mut self, attempt: usize, answer: Answer) {
        let one = &mut self.attempts[attempt];
        one.open -= 1;
        if let Answer::Ok { seq, .. } = answer {
            one.decided = true;
            self.ok_sends += 1;
            let newest = self.oks.entry((one.user, one.channel)).or_default();
            *newest = seq.max(*newest);
        }
        let user = self.users[one.user];
        self.events.push(Event::Answered { user, channel: one.channel, id: one.id, answer });
    }

    async fn attempt(&mut self, attempt: usize, device: u64) {
        let one = &self.attempts[attempt];
        let (user, channel) = (one.user, one.channel);
        let Some(client) = self.clients.get(&(user, device)) else { return };
        let request = client.session.request();
        let content = send_print(&one.content);
        let now = now_ms();
        let retry = (one.first_ms > 0).then_some((one.first_ms, now));
        let frame = send_frame(channel, request, one.id, one.content.clone(), retry);
        let id = one.id;
        client.session.up(frame).await;
        let one = &mut self.attempts[attempt];
        one.open += 1;
        if one.first_ms == 0 {
            one.first_ms = now;
        }
        self.waiting.insert((user, device, request), attempt);
        self.events.push(Event::Invoked { user: self.users[user], channel, id, content });
    }

    async fn send(&mut self, user: usize, device: u64, channel: ChannelId, content: wire::send::Content) {
        let id = new_id();
        self.attempts.push(Attempt { user, channel, id, content, first_ms: 0, open: 0, decided: false });
        self.attempt(self.attempts.len() - 1, device).await;
    }

    /// Takes what every session was given.
    fn pump(&mut self) {
        let keys: Vec<(usize, u64)> = self.clients.keys().copied().collect();
        for key in keys {
            while let Some(given) = self.clients.get_mut(&key).and_then(|client| client.session.now()) {
                if let Given::Frame(frame) = given {
                    self.frame(key, &frame);
                }
            }
        }
    }

    fn frame(&mut self, key: (usize, u64), frame: &Frame) {
        let (user, device) = (self.users[key.0], DeviceId(key.1));
        let client = self.clients.get_mut(&key).unwrap();
        let session = client.session.origin.session;
        let channel = frame.routed().map(|header| header.channel).unwrap_or_default();
        match frame.frame_type() {
            FrameType::Synced => {
                let synced: wire::Synced = frame.decode().unwrap();
                for state in synced.channels {
                    let channel = ChannelId(state.channel);
                    client.follows.insert(channel, state.position);
                    self.events.push(Event::Started {
                        session,
                        user,
                        device,
                        channel,
                        position: state.position,
                        head: state.head,
                        is_join: false,
                        is_explicit: false,
                    });
                }
            }
            FrameType::Channel => {
                let state: wire::ChannelState = frame.decode().unwrap();
                if state.role == 0 {
                    client.follows.remove(&channel);
                    self.events.push(Event::Ended { session, channel });
                } else {
                    client.follows.insert(channel, state.position);
                    let (position, head) = (state.position, state.head);
                    let (is_join, is_explicit) = (true, false);
                    self.events.push(Event::Started {
                        session,
                        user,
                        device,
                        channel,
                        position,
                        head,
                        is_join,
                        is_explicit,
                    });
                }
            }
            FrameType::Deliver => {
                let entry = seen(frame);
                if let Some(position) = client.follows.get_mut(&channel) {
                    *position = entry.seq.max(*position);
                }
                self.events.push(Event::Pushed { session, user, device, channel, entry });
            }
            FrameType::Gap => {
                let gap: wire::Head = frame.decode().unwrap();
                if let Some(position) = client.follows.get_mut(&channel) {
                    *position = gap.head.max(*position);
                }
                let (after, head) = (gap.after, gap.head);
                self.events.push(Event::Gap { session, device, user, channel, after, head });
            }
            FrameType::SendAck => {
                let request = frame.routed().unwrap().seq;
                let ack: wire::SendAck = frame.decode().unwrap();
                if let Some(attempt) = self.waiting.remove(&(key.0, key.1, request)) {
                    if std::env::var("FANFARE_TELL").is_ok() {
                        println!("{channel} {:?} {} {}", ack.outcome(), ack.code, ack.seq);
                    }
                    let answer = match ack.outcome() {
                        wire::Outcome::Ok => Answer::Ok { epoch: ack.epoch, seq: ack.seq },
                        wire::Outcome::Fail => Answer::Fail,
                        wire::Outcome::Unknown => Answer::Unknown,
                    };
                    self.answered(attempt, answer);
                }
            }
            FrameType::Page => {
                let request = frame.routed().unwrap().seq;
                let page: wire::Page = frame.decode().unwrap();
                let Some(invoked_after) = self.fetching.get(&(key.0, key.1, request)).copied() else {
                    return;
                };
                if !page.more {
                    self.fetching.remove(&(key.0, key.1, request));
                }
                self.events.push(Event::Page {
                    user,
                    channel,
                    first: page.first,
                    last: page.last,
                    head: page.head,
                    hidden: page
                        .hidden
                        .iter()
                        .chain(&page.corrupt)
                        .map(|range| (range.first, range.last))
                        .collect(),
                    entries: frames_of(&page.frames).iter().map(seen).collect(),
                    invoked_after,
                });
            }
            FrameType::Refused => {
                let request = frame.routed().unwrap().seq;
                self.fetching.remove(&(key.0, key.1, request));
            }
            _ => {}
        }
    }

    async fn fetch(&mut self, key: (usize, u64), channel: ChannelId) {
        let (before, after) = (self.random.next() % 50, self.random.next() % 20);
        let fetch =
            wire::Fetch { before, after, messages_max: 1 + self.random.below(100) as u32, before_ms: 0 };
        let client = &self.clients[&key];
        let request = client.session.request();
        let known = self.oks.get(&(key.0, channel)).copied().unwrap_or(0);
        self.fetching.insert((key.0, key.1, request), known);
        client.session.up(whole(routed(FrameType::Fetch, 3, 0, 0, channel, request, &fetch))).await;
    }

    async fn ack(&mut self, key: (usize, u64)) {
        let client = self.clients.get_mut(&key).unwrap();
        client.acked += 1;
        let positions = client
            .follows
            .iter()
            .map(|(channel, seq)| wire::Position { channel: channel.0, epoch: 1, seq: *seq })
            .collect();
        let ack = wire::Ack { number: client.acked, positions };
        client.session.up(whole(short(FrameType::Ack, 0, &ack))).await;
    }

    async fn step(&mut self) {
        self.blind_for = self.blind_for.saturating_sub(1);
        if self.blind_for == 0 {
            self.house.faulty.blind.store(false, std::sync::atomic::Ordering::SeqCst);
        }
        let channel = self.channels[self.random.below(self.channels.len())];
        match self.random.below(100) {
            0..45 => {
                if let Some((user, device)) = self.pick_client() {
                    // Few different texts: the same content is sent again and again under other ids.
                    let body = format!("word {}", self.random.below(3));
                    self.send(user, device, channel, text(&body)).await;
                }
            }
            45..55 => {
                if !self.attempts.is_empty() {
                    let attempt = self.random.below(self.attempts.len());
                    let device = 1 + self.random.next() % 2;
                    self.attempt(attempt, device).await;
                }
            }
            55..63 => {
                let user = self.random.below(USERS);
                let device = 1 + self.random.next() % 2;
                let was_away = !self.clients.contains_key(&(user, device));
                self.come(user, device).await;
                if was_away && self.random.one_in(3) {
                    // Cut off with all that was sent to it unread, and back again.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    self.go(user, device).await;
                    self.come(user, device).await;
                }
            }
            63..69 => {
                if let Some((user, device)) = self.pick_client() {
                    self.go(user, device).await;
                }
            }
            69..77 => {
                let change = if self.random.one_in(2) {
                    wire::MembershipChange::Joined
                } else {
                    wire::MembershipChange::Removed
                };
                let user = self.users[1 + self.random.below(USERS - 1)];
                self.come(0, 1).await;
                self.send(0, 1, channel, membership(change, &[user])).await;
            }
            77..79 => {
                if let Some((user, device)) = self.pick_client()
                    && user != 0
                {
                    let left = membership(wire::MembershipChange::Left, &[self.users[user]]);
                    self.send(user, device, channel, left).await;
                }
            }
            79..87 => {
                if let Some(key) = self.pick_client() {
                    self.fetch(key, channel).await;
                }
            }
            87..90 => {
                if let Some((user, device)) = self.pick_client() {
                    self.sync(user, device).await;
                }
            }
            90..94 => {
                if let Some(key) = self.pick_client() {
                    self.ack(key).await;
                }
            }
            94..99 => {
                let faults = [Fault::Full, Fault::Unavailable, Fault::UnknownBefore, Fault::UnknownAfter];
                let fault = faults[self.random.below(faults.len())];
                self.house.faulty.next([fault]);
            }
            _ => {
                // For a while nobody can find out what became of a commit.
                let blind = &self.house.faulty.blind;
                blind.store(true, std::sync::atomic::Ordering::SeqCst);
                self.blind_for = 10;
            }
        }
    }

    /// More than the gateway's credit, while it gives none back.
    async fn starve(&mut self) {
        self.come(0, 1).await;
        self.house.gateway.starve();
        let channel = self.channels[0];
        for number in 0..120 {
            let body = format!("{number} {}", "z".repeat(12_000));
            self.send(0, 1, channel, text(&body)).await;
            self.settle(8).await;
        }
        self.house.gateway.feed();
    }

    async fn settle(&mut self, turns: usize) {
        for turn in 0..turns {
            // Now and then long enough for a commit.
            if turn % 4 == 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            } else {
                tokio::task::yield_now().await;
            }
            self.pump();
        }
    }

    /// Waits until every request is answered.
    async fn rest(&mut self) {
        let until = std::time::Instant::now() + Duration::from_secs(15);
        while !self.waiting.is_empty() || !self.fetching.is_empty() {
            assert!(
                std::time::Instant::now() < until,
                "G13: {:?} and {:?} unanswered",
                self.waiting,
                self.fetching
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.pump();
        }
    }

    async fn end(mut self) -> (Vec<Violation>, usize) {
        self.house.faulty.clear();
        self.house.faulty.blind.store(false, std::sync::atomic::Ordering::SeqCst);
        self.house.gateway.feed();
        self.rest().await;
        // What is not known is repeated until it is.
        for round in 0.. {
            tokio::time::sleep(Duration::from_millis(120)).await;
            let open: Vec<usize> = (0..self.attempts.len())
                .filter(|attempt| {
                    let one = &self.attempts[*attempt];
                    !one.decided && self.random.0 % 2 == (*attempt as u64) % 2
                })
                .collect();
            if open.is_empty() || round > 2 {
                break;
            }
            for attempt in open {
                let user = self.attempts[attempt].user;
                self.come(user, 1).await;
                self.attempt(attempt, 1).await;
            }
            self.rest().await;
        }
        // Everybody comes with a device that holds nothing, reads everything, and hears one more live entry.
        for user in 0..USERS {
            self.come(user, 9).await;
        }
        self.come(0, 1).await;
        for channel in self.channels.clone() {
            self.send(0, 1, channel, text("the end")).await;
        }
        self.rest().await;
        let mut logs = Logs::new();
        for channel in &self.channels {
            let admin = self.house.router().admin();
            let (mut log, mut before) = (Vec::new(), 0);
            loop {
                let fetch = wire::Fetch { before, after: 0, messages_max: 100, before_ms: 0 };
                let pages = admin.history(*channel, None, fetch).await.unwrap();
                for page in &pages {
                    log.extend(frames_of(&page.frames).iter().map(seen));
                }
                let last = pages.last().unwrap();
                if last.complete {
                    break;
                }
                before = last.first;
            }
            log.sort_by_key(|entry| entry.seq);
            logs.insert(*channel, log);
        }
        // The newest entry reaches every session of every member.
        let until = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            self.pump();
            let behind = self.clients.values().any(|client| {
                client
                    .follows
                    .iter()
                    .any(|(channel, position)| *position < logs[channel].last().map_or(0, |entry| entry.seq))
            });
            if !behind {
                break;
            }
            if std::time::Instant::now() > until {
                let what = "a session of a member did not get the newest entry".into();
                let mut violations = check(&self.events, &logs);
                violations.push(Violation { promise: "G11", what });
                self.house.stop().await;
                return (violations, self.ok_sends);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let violations = check(&self.events, &logs);
        self.house.stop().await;
        (violations, self.ok_sends)
    }
}

async fn run(seed: u64) -> (Vec<Violation>, usize) {
    let mut story = Story::begin(seed).await;
    for user in 0..3 {
        story.come(user, 1).await;
    }
    for step in 0..STEPS {
        story.step().await;
        let turns = story.random.below(12);
        story.settle(turns).await;
        if step == STEPS / 2 {
            story.starve().await;
        }
    }
    story.end().await
}

/// Seeds: `FANFARE_SEEDS=first..last`, else a few.
fn seeds() -> std::ops::Range<u64> {
    let chosen = std::env::var("FANFARE_SEEDS").ok().and_then(|text| {
        let (first, last) = text.split_once("..")?;
        Some(first.parse().ok()?..last.parse().ok()?)
    });
    chosen.unwrap_or(1..9)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_promise_is_broken_in_random_histories() {
    for seed in seeds() {
        let (violations, oks) = run(seed).await;
        println!("seed {seed}: {oks} sends ok, {} violations", violations.len());
        assert!(violations.is_empty(), "seed {seed}: {}", summary(&violations));
        assert!(oks >= 50, "seed {seed}: a history with {oks} acknowledged sends shows nothing");
    }
}
