use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    header::flags,
    ids::DeviceId,
    wire::{ChannelKind, ChannelState, Entry, Head, Role},
};

const ROOM: ChannelId = ChannelId(7);

fn deliver(channel: ChannelId, epoch: u32, seq: u64) -> Frame {
    deliver_from(channel, epoch, seq, 99)
}

fn deliver_from(channel: ChannelId, epoch: u32, seq: u64, sender: u64) -> Frame {
    let body = Entry { epoch, message_id: seq << 21, ordinal: seq, sender, ..Default::default() };
    parse(frame::routed(FrameType::Deliver, class::MESSAGE, flags::COUNTED, epoch, channel, seq, &body))
}

fn parse(mut bytes: Bytes) -> Frame {
    Frame::split_from(&mut bytes).unwrap().expect("a whole frame")
}

fn short(frame_type: FrameType, body: &impl prost::Message) -> Frame {
    parse(frame::short(frame_type, 0, body))
}

fn routed(frame_type: FrameType, seq: u64, body: &impl prost::Message) -> Frame {
    parse(frame::routed(frame_type, 0, 0, 0, ROOM, seq, body))
}

fn state(channel: ChannelId, position: u64, head: u64) -> ChannelState {
    ChannelState {
        channel: channel.0,
        kind: ChannelKind::Group as i32,
        role: Role::Member as i32,
        position,
        head,
        ..Default::default()
    }
}

/// A session with what it said and what it told.
struct Bench {
    session: ClientSession,
    now: u64,
    events: Vec<Event>,
}

impl Bench {
    fn new(device: DeviceState) -> Self {
        let options = SessionOptions { token: "token".into(), seed: 5, ..Default::default() };
        Self { session: ClientSession::new(device, options, 1_000), now: 1_000, events: Vec::new() }
    }

    /// Behind WELCOME and a SYNCED that names the room.
    fn open(position: u64, head: u64) -> Self {
        let mut bench = Self::new(DeviceState::new(DeviceId(3)));
        bench.welcome(0);
        bench.synced(state(ROOM, position, head));
        bench.sent();
        bench.events.clear();
        bench
    }

    fn welcome(&mut self, acks_confirmed: u64) {
        let welcome = wire::Welcome {
            version: 1,
            user: 42,
            server_time_ms: 1_800_000_000_000,
            heartbeat_ms: 25_000,
            resume: Bytes::from_static(b"secret"),
            acks_confirmed,
            ..Default::default()
        };
        self.take(short(FrameType::Welcome, &welcome)).unwrap();
    }

    fn synced(&mut self, state: ChannelState) {
        let synced = wire::Synced { channels: vec![state], complete: true, ..Default::default() };
        self.take(short(FrameType::Synced, &synced)).unwrap();
    }

    fn take(&mut self, frame: Frame) -> Result<(), Code> {
        let events = &mut self.events;
        self.session.handle(self.now, frame, &mut |event| events.push(event))
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        let events = &mut self.events;
        self.session.handle_timeout(self.now, &mut |event| events.push(event));
    }

    fn sent(&mut self) -> Vec<Frame> {
        let now = self.now;
        std::iter::from_fn(|| self.session.poll_transmit(now)).map(parse).collect()
    }

    fn sent_types(&mut self) -> Vec<FrameType> {
        self.sent().iter().map(Frame::frame_type).collect()
    }

    fn delivered(&self) -> Vec<u64> {
        let seqs = self.events.iter().filter_map(|event| match event {
            Event::Deliver(frame) => Some(frame.routed().unwrap().seq),
            _ => None,
        });
        seqs.collect()
    }

    fn position(&self) -> u64 {
        self.session.log(ROOM).unwrap().position
    }
}

#[test]
fn a_session_opens_with_hello_and_sync() {
    let mut bench = Bench::new(DeviceState::new(DeviceId(3)));
    let hello = bench.sent();
    assert_eq!(hello[0].frame_type(), FrameType::Hello);
    let hello: wire::Hello = hello[0].decode().unwrap();
    assert_eq!((hello.token.as_str(), hello.device, hello.version_max), ("token", 3, 1));
    assert_eq!(bench.session.typing(ROOM, false), Err(Code::OUT_OF_STATE));
    bench.welcome(0);
    assert_eq!(bench.sent_types(), [FrameType::Sync]);
    assert!(bench.session.is_open());
    assert_eq!(bench.session.server_time_ms(bench.now + 5), 1_800_000_000_005);
    assert_eq!(bench.session.device().resume, "secret");
}

#[test]
fn a_sync_that_fails_for_a_while_is_repeated() {
    let mut bench = Bench::open(0, 0);
    bench.sent();
    let failed = |code: Code, frame_type: FrameType, retry_after_ms| {
        let error = wire::Error {
            code: code.0.into(),
            frame_type: frame_type as u32,
            retry_after_ms,
            ..Default::default()
        };
        short(FrameType::Error, &error)
    };
    // What the server names holds; else it doubles, up to half a minute.
    let pauses =
        [(500, 500), (500, 1_000), (0, 2_000), (5_000, 5_000), (40_000, 40_000), (0, 30_000), (0, 30_000)];
    for (named_ms, least_ms) in pauses {
        bench.take(failed(Code::RETRY_LATER, FrameType::Sync, named_ms)).unwrap();
        assert!(bench.events.is_empty());
        let due = bench.session.sync_at;
        assert!((bench.now + least_ms..=bench.now + least_ms * 6 / 5).contains(&due), "{due}");
        while bench.now < due {
            bench.now = bench.session.deadline().unwrap();
            bench.session.handle_timeout(bench.now, &mut |_| panic!("nothing to tell"));
            let expected = if bench.now < due { FrameType::Ping } else { FrameType::Sync };
            assert_eq!(bench.sent_types(), [expected]);
            if expected == FrameType::Ping {
                let pong = wire::Pong { time_ms: bench.now, ..Default::default() };
                bench.take(short(FrameType::Pong, &pong)).unwrap();
                bench.events.clear();
            }
        }
    }
    assert!(bench.session.deadline() > Some(bench.now + 5_000), "once for each failure");
    for (code, frame_type) in [(Code::RETRY_LATER, FrameType::State), (Code::BAD_FIELD, FrameType::Sync)] {
        bench.take(failed(code, frame_type, 0)).unwrap();
        assert!(matches!(bench.events.pop(), Some(Event::Failed(_))));
    }
}

#[test]
fn frames_out_of_their_time_end_the_session() {
    let mut bench = Bench::new(DeviceState::new(DeviceId(3)));
    bench.sent();
    assert_eq!(bench.take(deliver(ROOM, 0, 1)), Err(Code::OUT_OF_STATE));
    assert_eq!(bench.sent_types(), [FrameType::Close]);
    assert!(bench.session.is_ended());
    let mut bench = Bench::open(0, 0);
    assert_eq!(bench.take(routed(FrameType::Send, 1, &wire::Send::default())), Err(Code::UNKNOWN_TYPE));
    assert_eq!(bench.take(deliver(ROOM, 0, 1)), Ok(()), "what comes behind the end is ignored");
    assert!(bench.events.is_empty());
}

#[test]
fn repeats_are_dropped_and_holes_are_told() {
    let mut bench = Bench::open(4, 5);
    for seq in [5, 6, 6, 3, 9, 10] {
        bench.take(deliver(ROOM, 0, seq)).unwrap();
    }
    assert_eq!(bench.delivered(), [5, 6, 9, 10]);
    assert_eq!(bench.session.repeats(), 2);
    let holes: Vec<_> = bench
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Defect { kind: Defect::Hole, after, before, .. } => Some((*after, *before)),
            _ => None,
        })
        .collect();
    assert_eq!(holes, [(6, 9)]);
    assert_eq!(bench.position(), 6);
    // The page that fills it moves the position over everything held.
    bench
        .take(routed(
            FrameType::Page,
            1,
            &wire::Page { first: 7, last: 8, complete: true, ..Default::default() },
        ))
        .unwrap();
    assert_eq!(bench.position(), 10);
}

#[test]
fn a_gap_asks_for_fetch_and_live_goes_on_behind_it() {
    let mut bench = Bench::open(4, 20);
    bench.take(routed(FrameType::Gap, 20, &Head { head: 20, after: 4, ..Default::default() })).unwrap();
    assert!(matches!(bench.events[..], [Event::Gap { after: 4, head: 20, .. }]));
    bench.take(deliver(ROOM, 0, 21)).unwrap();
    assert_eq!(bench.delivered(), [21]);
    assert_eq!(bench.position(), 4);
    let page = |first, last, more| wire::Page { first, last, more, complete: !more, ..Default::default() };
    let number = bench
        .session
        .fetch(ROOM, &wire::Fetch { after: 4, messages_max: 100, ..Default::default() })
        .unwrap();
    bench.take(routed(FrameType::Page, number, &page(12, 20, true))).unwrap();
    assert!(matches!(bench.events.last(), Some(Event::Page { news, .. }) if news[..] == [(12, 20)]));
    assert_eq!((bench.position(), bench.session.requests_in_flight()), (4, 1));
    bench.take(routed(FrameType::Page, number, &page(5, 11, false))).unwrap();
    assert_eq!((bench.position(), bench.session.requests_in_flight()), (21, 0));
    bench.take(routed(FrameType::Notify, 30, &Head { head: 30, ..Default::default() })).unwrap();
    assert!(matches!(bench.events.last(), Some(Event::Notified { after: 21, head: 30, .. })));
    bench.session.skip_to(bench.now, ROOM, 30);
    bench.take(deliver(ROOM, 0, 31)).unwrap();
    assert_eq!(bench.position(), 31);
}

#[test]
fn a_heartbeat_goes_along_with_the_last_head_before_it() {
    let mut bench = Bench::open(0, 0);
    let told = |head| routed(FrameType::Notify, head, &Head { head, ..Default::default() });
    let heartbeat_ms = bench.session.heartbeat_ms;
    bench.sent();
    let rested = bench.now;
    bench.now = rested + heartbeat_ms * PING_ALONG_PERCENT / 100 - 1;
    bench.take(told(5)).unwrap();
    assert_eq!(bench.sent_types(), []);
    // Whatever the jitter: another one will come in time, and here none.
    bench.now = rested + heartbeat_ms * 3 / 5;
    bench.take(told(6)).unwrap();
    assert_eq!(bench.sent_types(), []);
    bench.now = rested + heartbeat_ms;
    bench.take(told(6)).unwrap();
    bench.take(told(7)).unwrap();
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].decode::<wire::Ping>().unwrap().quiet, "it lives, and there is nothing to confirm");
    // The next one is counted from there, and nobody waits for an answer.
    assert!(bench.session.deadline().unwrap() > rested + heartbeat_ms * 5 / 4);
    // Whatever the time between heads, it goes along with the last one before five quarters, and never alone where that time stays so.
    for every in [5_000, 6_500, 15_000, 20_000] {
        bench.session.rest_until_ping(bench.now);
        for _ in 0..40 {
            let rested = bench.session.rested_at;
            bench.wait(every);
            bench.take(told(8)).unwrap();
            let sent = bench.sent();
            let is_last = bench.now + every >= rested + heartbeat_ms * 5 / 4;
            assert_eq!(sent.len(), usize::from(is_last), "at {} of {rested}, every {every}", bench.now);
            assert!(sent.iter().all(|ping| ping.decode::<wire::Ping>().unwrap().quiet));
        }
    }
    // Heads that cease are not waited for.
    for _ in 0..2 {
        bench.wait(heartbeat_ms * 2 / 5);
        bench.take(told(8)).unwrap();
        assert_eq!(bench.sent_types(), []);
    }
    let left = bench.session.deadline().unwrap() - bench.now;
    assert!(left <= heartbeat_ms * 45 / 100, "{left}");
    bench.wait(left);
    assert_eq!(bench.sent_types(), [FrameType::Ping]);
    bench.take(short(FrameType::Pong, &wire::Pong::default())).unwrap();
    // With an acknowledgement that is not confirmed it asks.
    bench.take(deliver(ROOM, 0, 1)).unwrap();
    bench.wait(limits::ACK_AFTER.as_millis() as u64 * 6 / 5);
    assert_eq!(bench.sent_types(), [FrameType::Ack]);
    bench.now += heartbeat_ms * 3 / 4;
    bench.take(told(9)).unwrap();
    let sent = bench.sent();
    assert!(!sent[0].decode::<wire::Ping>().unwrap().quiet);
    assert_eq!(bench.session.deadline(), Some(bench.now + PONG_TIME_MS));
}

#[test]
fn acknowledgements_follow_frames_bytes_and_time() {
    let mut bench = Bench::open(0, 0);
    for seq in 1..=255 {
        bench.take(deliver(ROOM, 0, seq)).unwrap();
    }
    assert_eq!(bench.sent_types(), []);
    bench.take(deliver(ROOM, 0, 256)).unwrap();
    let sent = bench.sent();
    let ack: wire::Ack = sent[0].decode().unwrap();
    assert_eq!((ack.number, ack.positions[0].seq, ack.positions.len()), (1, 256, 1));

    bench.take(deliver(ROOM, 0, 257)).unwrap();
    let due = bench.session.deadline().unwrap() - bench.now;
    assert!((8_000..=12_000).contains(&due), "{due}");
    bench.wait(due);
    let ack: wire::Ack = bench.sent()[0].decode().unwrap();
    assert_eq!((ack.number, ack.positions[0].seq), (2, 257));

    // Shortly before its time it goes along with what comes, and begins anew.
    bench.take(deliver(ROOM, 0, 258)).unwrap();
    let due = bench.session.deadline().unwrap() - bench.now;
    bench.now += 7_999;
    bench.take(deliver(ROOM, 0, 259)).unwrap();
    assert_eq!(bench.sent_types(), []);
    bench.now += due - 7_999 - 1;
    bench.take(deliver(ROOM, 0, 260)).unwrap();
    let ack: wire::Ack = bench.sent()[0].decode().unwrap();
    assert_eq!((ack.number, ack.positions[0].seq), (3, 260));
    assert!(bench.session.deadline().unwrap() > bench.now + 8_000);

    // It rides with another frame.
    bench.wait(1_000);
    bench.take(deliver(ROOM, 0, 261)).unwrap();
    bench.session.typing(ROOM, false).unwrap();
    assert_eq!(bench.sent_types(), [FrameType::Typing, FrameType::Ack]);
    bench.take(deliver(ROOM, 0, 262)).unwrap();
    bench.session.typing(ROOM, false).unwrap();
    assert_eq!(bench.sent_types(), [FrameType::Typing], "but not with every one");
}

#[test]
fn a_server_that_does_not_read_fills_no_queue() {
    let mut bench = Bench::open(0, 0);
    for seq in 1..=300_000 {
        bench.take(deliver(ROOM, 0, seq)).unwrap();
    }
    assert_eq!(bench.sent().len(), OUTGOING_FRAMES_MAX);
    bench.wait(12_000);
    let ack: wire::Ack = bench.sent()[0].decode().unwrap();
    assert_eq!(ack.positions[0].seq, 300_000, "what waited is not lost");
}

#[test]
fn unconfirmed_positions_are_said_again_in_the_next_sync() {
    let mut bench = Bench::open(0, 0);
    bench.take(deliver(ROOM, 0, 1)).unwrap();
    bench.wait(12_000);
    let other = ChannelId(8);
    bench.synced(state(other, 5, 5));
    bench.take(deliver(other, 0, 6)).unwrap();
    bench.wait(12_000);
    let third = ChannelId(9);
    bench.synced(state(third, 1, 1));
    bench.take(deliver(third, 0, 2)).unwrap();
    bench.sent();
    assert_eq!(bench.session.device().ack_number, 2);

    let again = |confirmed: u64, device: DeviceState| {
        let mut next = Bench::new(device);
        let hello: wire::Hello = next.sent()[0].decode().unwrap();
        assert_eq!(hello.resume, "secret");
        next.welcome(confirmed);
        let sync: wire::Sync = next.sent()[0].decode().unwrap();
        sync.positions.iter().map(|position| (position.channel, position.seq)).collect::<Vec<_>>()
    };
    let device = bench.session.into_device();
    assert_eq!(again(0, device.clone()), [(7, 1), (8, 6), (9, 2)]);
    assert_eq!(again(1, device.clone()), [(8, 6), (9, 2)]);
    assert_eq!(again(2, device), [(9, 2)]);
}

#[test]
fn heartbeats_are_jittered_and_a_dead_server_is_given_up() {
    let mut bench = Bench::open(0, 0);
    let due = bench.session.deadline().unwrap() - bench.now;
    assert!((20_000..=30_000).contains(&due), "{due}");
    bench.wait(due);
    assert!(bench.session.deadline().unwrap() > bench.now, "a transport that is stuck does not make it spin");
    let sent = bench.sent();
    let ping: wire::Ping = sent[0].decode().unwrap();
    bench.now += 40;
    let pong = wire::Pong { time_ms: ping.time_ms, server_time_ms: 2_000_000, acks_confirmed: 0 };
    bench.take(short(FrameType::Pong, &pong)).unwrap();
    assert!(matches!(bench.events.last(), Some(Event::Pong { round_trip_ms: 40 })));
    assert_eq!(bench.session.server_time_ms(bench.now), 2_000_020);

    let due = bench.session.deadline().unwrap() - bench.now;
    bench.wait(due);
    assert_eq!(bench.sent_types(), [FrameType::Ping]);
    bench.wait(PONG_TIME_MS);
    assert!(matches!(bench.events.last(), Some(Event::Ended(_))));
    assert!(bench.session.is_ended() && bench.session.deadline().is_none());
}

#[test]
fn a_request_without_an_answer_is_followed_by_a_ping() {
    let mut bench = Bench::open(0, 0);
    bench.session.counts(ROOM, 1).unwrap();
    bench.sent();
    bench.wait(UNANSWERED_PING_MS);
    assert_eq!(bench.sent_types(), [FrameType::Ping]);
    bench.wait(PONG_TIME_MS);
    assert!(bench.session.is_ended(), "nobody is there");

    let mut bench = Bench::open(0, 0);
    bench.session.counts(ROOM, 1).unwrap();
    bench.sent();
    bench.take(routed(FrameType::Counts, 1, &wire::Counts::default())).unwrap();
    bench.wait(UNANSWERED_PING_MS);
    assert_eq!(bench.sent_types(), []);
    assert!(bench.session.deadline().unwrap() > bench.now + 10_000, "the heartbeat stands as it stood");
}

#[test]
fn direct_channels_get_one_receipt_for_many_entries() {
    let mut bench = Bench::open(0, 0);
    let direct = ChannelState { kind: ChannelKind::Direct as i32, ..state(ROOM, 0, 0) };
    bench.synced(direct);
    bench.take(deliver_from(ROOM, 0, 1, 42)).unwrap();
    assert!(bench.session.deadline().unwrap() > bench.now + 250, "one's own entries need none");
    for seq in 2..6 {
        bench.take(deliver(ROOM, 0, seq)).unwrap();
    }
    assert_eq!(bench.session.deadline(), Some(bench.now + 250));
    bench.wait(250);
    let sent = bench.sent();
    let receipt: wire::Receipt = sent[0].decode().unwrap();
    assert_eq!(receipt.cursors[0].delivered, 5);
    assert!(sent[1..].iter().all(|frame| frame.frame_type() == FrameType::Ack));
}

#[test]
fn a_risen_epoch_voids_what_was_held() {
    let mut bench = Bench::open(0, 10);
    for seq in 1..=10 {
        bench.take(deliver(ROOM, 0, seq)).unwrap();
    }
    let rewound = ChannelState { epoch: 1, epoch_start: 8, ..state(ROOM, 7, 7) };
    bench.synced(rewound);
    assert!(bench.events.iter().any(|event| matches!(event, Event::Rewound { epoch: 1, from: 8, .. })));
    assert_eq!(bench.position(), 7);
    bench.events.clear();
    bench.take(deliver(ROOM, 0, 8)).unwrap();
    assert_eq!(bench.delivered(), [], "a stale gateway's entry of the old epoch");
    bench.take(deliver(ROOM, 1, 8)).unwrap();
    assert_eq!((bench.delivered(), bench.position()), (vec![8], 8));
    // Without a word before, by the header alone.
    bench.take(deliver(ROOM, 2, 9)).unwrap();
    assert_eq!(bench.session.log(ROOM).unwrap().epoch, 2);
}

#[test]
fn entries_below_the_epochs_start_keep_their_old_epoch() {
    let mut bench = Bench::open(0, 0);
    bench.synced(ChannelState { epoch: 3, epoch_start: 5, ..state(ROOM, 2, 6) });
    for (epoch, seq) in [(0, 3), (2, 4), (3, 5), (3, 6)] {
        bench.take(deliver(ROOM, epoch, seq)).unwrap();
    }
    assert_eq!(bench.delivered(), [3, 4, 5, 6]);
}

#[test]
fn the_answer_to_open_may_come_behind_the_first_entries() {
    let mut bench = Bench::open(0, 0);
    let new = ChannelId(11);
    bench.take(deliver(new, 0, 1)).unwrap();
    bench.take(deliver(new, 0, 2)).unwrap();
    bench.take(routed(FrameType::Channel, 1, &state(new, 0, 1))).unwrap();
    bench.take(deliver(new, 0, 3)).unwrap();
    assert_eq!(bench.delivered(), [1, 2, 3]);
    assert!(!bench.events.iter().any(|event| matches!(event, Event::Defect { .. })));
    let gone = ChannelState { role: Role::None as i32, ..state(new, 3, 3) };
    bench.take(routed(FrameType::Channel, 0, &gone)).unwrap();
    assert!(bench.session.log(new).is_none());
}

#[test]
fn close_codes_say_what_to_do_next() {
    let never = Ended::from_code(Code::VERSION_UNSUPPORTED, "");
    assert_eq!(never.delay_ms(0, 1), None);
    let broken = Ended::from_close(Some(Code::OVERLOADED.close_code()), "");
    assert_eq!(broken.code, Some(Code::OVERLOADED));
    assert!(broken.delay_ms(3, u64::MAX).unwrap() < 4_000);
    assert!(broken.delay_ms(40, u64::MAX).unwrap() < BACK_OFF_MS_MAX);
    let told = Ended { retry_after_ms: 700, ..broken };
    assert!(told.delay_ms(0, 0).unwrap() >= 700);
    let mut bench = Bench::open(0, 0);
    let error = wire::Error { code: Code::REVOKED.0.into(), ..Default::default() };
    bench.take(short(FrameType::Close, &error)).unwrap();
    assert!(
        matches!(&bench.events[0], Event::Ended(ended) if ended.policy == crate::error::Policy::Authenticate)
    );
    assert!(bench.session.device().resume.is_empty(), "a revoked session's secret is worth nothing");
}

#[test]
fn requests_are_bounded() {
    let mut bench = Bench::open(0, 0);
    for number in 1..=256 {
        assert_eq!(bench.session.counts(ROOM, 1), Ok(number));
    }
    assert_eq!(bench.session.counts(ROOM, 1), Err(Code::TOO_MANY_IN_FLIGHT));
    bench.take(routed(FrameType::Counts, 200, &wire::Counts::default())).unwrap();
    assert_eq!(bench.session.counts(ROOM, 1), Ok(257));
}

#[test]
fn many_positions_go_ahead_of_sync_as_acks() {
    let mut bench = Bench::open(0, 0);
    for channel in 1_000..2_500 {
        bench.synced(state(ChannelId(channel), 0, 0));
        bench.take(deliver(ChannelId(channel), 0, 1)).unwrap();
    }
    let mut next = Bench::new(bench.session.into_device());
    next.sent();
    next.welcome(0);
    let mut told = BTreeSet::new();
    for frame in next.sent() {
        let positions = match frame.frame_type() {
            FrameType::Ack => frame.decode::<wire::Ack>().unwrap().positions,
            _ => frame.decode::<wire::Sync>().unwrap().positions,
        };
        assert!(positions.len() <= 1_000);
        told.extend(positions.iter().map(|position| position.channel));
    }
    assert_eq!(told.len(), 1_500);
}

/// A server that plays by the rules, with every liberty they leave: repeats, gaps, notifies, reconnects in between. The
/// client must end up with every entry, each handed out once.
#[derive(Debug, Clone)]
enum Play {
    Commit(u8),
    Live(u8),
    Gap,
    Notify,
    Reconnect(bool),
    Fill,
}

fn play() -> impl Strategy<Value = Play> {
    prop_oneof![
        4 => (1u8..5).prop_map(Play::Commit),
        4 => (1u8..5).prop_map(Play::Live),
        1 => Just(Play::Gap),
        1 => Just(Play::Notify),
        1 => any::<bool>().prop_map(Play::Reconnect),
        2 => Just(Play::Fill),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_or_doubled(plays in proptest::collection::vec(play(), 1..60)) {
        let mut bench = Bench::open(0, 0);
        let (mut head, mut sent) = (0u64, 0u64);
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        let fill = |bench: &mut Bench, counts: &mut BTreeMap<u64, u32>, head: u64| {
            let log = bench.session.log(ROOM).unwrap();
            for (first, last) in log.held.missing(log.position, head) {
                for seq in first..=last { *counts.entry(seq).or_default() += 1; }
                let page = wire::Page { first, last, complete: true, ..Default::default() };
                bench.take(routed(FrameType::Page, 1, &page)).unwrap();
            }
        };
        for play in plays.into_iter().chain([Play::Notify, Play::Fill]) {
            match play {
                Play::Commit(entries) => head += u64::from(entries),
                Play::Live(entries) => for _ in 0..entries {
                    if sent < head { sent += 1; bench.take(deliver(ROOM, 0, sent)).unwrap(); }
                },
                Play::Gap | Play::Notify => if sent < head {
                    let frame_type = if matches!(play, Play::Gap) { FrameType::Gap } else { FrameType::Notify };
                    bench.take(routed(frame_type, head, &Head { head, after: sent, ..Default::default() })).unwrap();
                    sent = head;
                },
                Play::Reconnect(confirm) => {
                    bench.wait(12_000);
                    bench.sent();
                    let confirmed = if confirm { bench.session.device().ack_number } else { 0 };
                    let (now, events) = (bench.now, std::mem::take(&mut bench.events));
                    bench = Bench { now, events, ..Bench::new(bench.session.into_device()) };
                    bench.welcome(confirmed);
                    sent = bench.position();
                    bench.synced(state(ROOM, sent, head));
                }
                Play::Fill => fill(&mut bench, &mut counts, sent),
            }
        }
        for seq in bench.delivered() { *counts.entry(seq).or_default() += 1; }
        prop_assert_eq!(bench.position(), sent);
        prop_assert_eq!(counts, (1..=sent).map(|seq| (seq, 1)).collect::<BTreeMap<_, _>>());
        let defect = bench.events.iter().any(|event| matches!(event, Event::Defect { .. }));
        prop_assert!(!defect);
    }
}

/// Numbers where arithmetic breaks, and some that mean something.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..12, Just(u64::MAX), Just(1 << 63), Just((1 << 63) - 1), any::<u64>()]
}

fn anything() -> impl Strategy<Value = Frame> {
    let numbers = || (number(), number(), number(), number());
    let whole = prop_oneof![
        numbers().prop_map(|(head, after, epoch_start, epoch)| {
            let head = Head { head, after, epoch_start, epoch: epoch as u32, ordinal: head };
            routed(FrameType::Gap, 1, &head)
        }),
        numbers().prop_map(|(first, last, head, _)| {
            routed(
                FrameType::Page,
                1,
                &wire::Page { first, last, head, complete: true, ..Default::default() },
            )
        }),
        numbers().prop_map(|(position, head, epoch_start, epoch)| {
            let state = ChannelState { epoch_start, epoch: epoch as u32, ..state(ROOM, position, head) };
            short(FrameType::Synced, &wire::Synced { channels: vec![state], ..Default::default() })
        }),
        numbers().prop_map(|(time_ms, server_time_ms, acks_confirmed, _)| {
            short(FrameType::Pong, &wire::Pong { time_ms, server_time_ms, acks_confirmed })
        }),
        (0u32..4, number()).prop_map(|(epoch, seq)| deliver(ROOM, epoch * 0x55, seq & !(1 << 63))),
    ];
    let bytes = (0..FrameType::ALL.len(), proptest::collection::vec(any::<u8>(), 0..40), number());
    let broken = bytes.prop_map(|(at, body, seq)| {
        let frame_type = FrameType::ALL[at];
        let short =
            crate::ShortHeader { frame_type, flags: 0, class: 0, epoch: 0, body_bytes: body.len() as u32 };
        let header = if frame_type.is_routed() {
            crate::Header::Routed(RoutedHeader { short, channel: ROOM, seq: seq & !(1 << 63) })
        } else {
            crate::Header::Short(short)
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        bytes.extend_from_slice(&body);
        parse(bytes.into())
    });
    prop_oneof![5 => whole, 1 => broken]
}

proptest! {
    #[test]
    fn no_server_makes_it_panic(frames in proptest::collection::vec(anything(), 0..30), opened in any::<bool>()) {
        let mut bench = if opened { Bench::open(3, 5) } else { Bench::new(DeviceState::new(DeviceId(3))) };
        for frame in frames {
            let _ = bench.take(frame);
            bench.wait(5_000);
            bench.session.server_time_ms(bench.now);
            bench.sent();
        }
    }
}

#[test]
fn a_deliver_costs_little() {
    let mut bench = Bench::open(0, 0);
    let channels: Vec<ChannelId> = (100..110).map(ChannelId).collect();
    for channel in &channels {
        bench.synced(state(*channel, 0, 0));
    }
    let (mut taken, mut elapsed) = (0u64, std::time::Duration::ZERO);
    for round in 0..200 {
        let seqs = round * 100 + 1..=round * 100 + 100;
        let frames: Vec<Frame> =
            seqs.flat_map(|seq| channels.iter().map(move |channel| deliver(*channel, 0, seq))).collect();
        let start = std::time::Instant::now();
        for frame in frames {
            bench.session.handle(bench.now, frame, &mut |_| taken += 1).unwrap();
            while bench.session.poll_transmit(bench.now).is_some() {}
        }
        elapsed += start.elapsed();
    }
    assert_eq!(taken, 200_000);
    let per_frame = elapsed.as_nanos() as u64 / taken;
    println!("{per_frame} ns a DELIVER, with the drop of its frame");
    assert!(per_frame < 2_000, "{per_frame} ns a DELIVER, far above what a load generator can bear");
}
