//! The valid vectors' values: every frame type from every side that may send it, with usual, empty and extreme fields.

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, FrameType,
    frame::{routed, short},
    header::{class, flags},
    wire,
};
use serde_json::{Value, json};

use crate::json::{Schema, hex};

pub const CHANNEL: ChannelId = ChannelId(0x0123_4567_89ab_cdef);
/// The largest id and seq there is.
pub const TOP: u64 = (1 << 63) - 1;
pub const ALICE: u64 = 101_834_883_153_920_001;
pub const BOB: u64 = 101_834_883_153_920_002;
/// 2025-11-13T02:13:20Z.
pub const TIME_MS: u64 = 1_763_000_000_123;

pub struct Vector {
    pub name: String,
    pub from_client: bool,
    pub bytes: Bytes,
}

impl Vector {
    pub fn json(&self, schema: &Schema) -> Value {
        let frame = Frame::iter(self.bytes.clone()).next().unwrap().unwrap();
        let from = if self.from_client { "client" } else { "server" };
        json!({ "name": self.name, "from": from, "hex": hex(&self.bytes), "fields": schema.frame(&frame) })
    }
}

pub fn client_message_id() -> Bytes {
    Bytes::copy_from_slice(&ClientMessageId::new(TIME_MS, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).0)
}

pub fn text(text: &str) -> wire::Message {
    wire::Message { text: text.into(), ..Default::default() }
}

pub fn send_of(content: wire::send::Content) -> wire::Send {
    wire::Send { client_message_id: client_message_id(), content: Some(content), ..Default::default() }
}

pub fn entry_of(content: Option<wire::entry::Content>) -> wire::Entry {
    wire::Entry {
        epoch: 1,
        message_id: ALICE + 4096,
        ordinal: 7,
        sender: ALICE,
        client_message_id: client_message_id(),
        content,
    }
}

pub fn deliver(seq: u64, content: wire::entry::Content) -> Bytes {
    let counted = if matches!(content, wire::entry::Content::Message(_)) { flags::COUNTED } else { 0 };
    routed(FrameType::Deliver, class::MESSAGE, counted, 1, CHANNEL, seq, &entry_of(Some(content)))
}

fn all_of_message() -> wire::Message {
    wire::Message {
        text: "see you at 6, Ünïcode \u{1f980} and a \0 inside".into(),
        content_type: "text/markdown".into(),
        mentions: vec![ALICE, BOB, TOP],
        reply_to: 41,
        attachments: vec![
            wire::Attachment {
                id: "a-1".into(),
                url: "https://assets.example/a-1".into(),
                name: "crab.png".into(),
                content_type: "image/png".into(),
                bytes: TOP,
                sha256: Bytes::from_static(&[0xab; 32]),
                width: 20_000,
                height: u32::MAX,
                preview: Bytes::from_static(b"\xff\xd8\xff"),
            },
            wire::Attachment { id: "a-2".into(), ..Default::default() },
        ],
        opaque: Bytes::new(),
        mention_all: true,
    }
}

fn state() -> wire::ChannelState {
    wire::ChannelState {
        channel: CHANNEL.0,
        kind: wire::ChannelKind::Group as i32,
        name: "general".into(),
        role: wire::Role::Owner as i32,
        epoch: 1,
        epoch_start: 1,
        head: 300,
        ordinal: 250,
        position: 290,
        delivered: 290,
        read: 280,
        read_ordinal: 233,
        visible_from: 1,
        members: 4,
        peer: 0,
        history: wire::HistoryPolicy::All as i32,
        join: wire::JoinPolicy::OpenToAll as i32,
        active_ms: TIME_MS,
        posting: wire::PostingPolicy::AdminsOnly as i32,
        muted: true,
        muted_until_ms: TIME_MS,
        invited: false,
    }
}

/// Every content, as what a client sends.
pub fn contents() -> Vec<(&'static str, wire::send::Content)> {
    use wire::send::Content;
    let membership = |change: wire::MembershipChange, users: Vec<u64>, role: wire::Role| {
        let (change, role) = (change as i32, role as i32);
        Content::Membership(wire::Membership { change, users, role, until_ms: 0 })
    };
    let until = |change: wire::MembershipChange, until_ms: u64| {
        let users = vec![BOB];
        Content::Membership(wire::Membership { change: change as i32, users, role: 0, until_ms })
    };
    let none = wire::Role::None;
    vec![
        ("text", Content::Message(text("hello"))),
        ("a message with every field", Content::Message(all_of_message())),
        (
            "opaque",
            Content::Message(wire::Message {
                opaque: Bytes::from_static(&[0, 0xff, 0x80]),
                ..Default::default()
            }),
        ),
        (
            "an attachment alone",
            Content::Message(wire::Message {
                attachments: vec![wire::Attachment::default()],
                ..Default::default()
            }),
        ),
        ("edit", Content::Edit(wire::Edit { target: 41, message: Some(text("hello, corrected")) })),
        ("recall", Content::Recall(wire::Recall { target: TOP })),
        (
            "reaction",
            Content::Reaction(wire::Reaction { target: 1, emoji: "\u{1f44d}".into(), remove: false }),
        ),
        (
            "reaction taken back",
            Content::Reaction(wire::Reaction { target: 1, emoji: "\u{1f44d}".into(), remove: true }),
        ),
        ("joined", membership(wire::MembershipChange::Joined, vec![ALICE, BOB], wire::Role::None)),
        ("left", membership(wire::MembershipChange::Left, vec![], wire::Role::None)),
        ("removed", membership(wire::MembershipChange::Removed, vec![BOB], wire::Role::None)),
        ("role changed", membership(wire::MembershipChange::RoleChanged, vec![BOB], wire::Role::Admin)),
        ("invited", membership(wire::MembershipChange::Invited, vec![BOB], none)),
        ("requested", membership(wire::MembershipChange::Requested, vec![], none)),
        ("declined", membership(wire::MembershipChange::Declined, vec![BOB], none)),
        ("banned", until(wire::MembershipChange::Banned, 0)),
        ("unbanned", membership(wire::MembershipChange::Unbanned, vec![BOB], none)),
        ("muted for a time", until(wire::MembershipChange::Muted, TIME_MS)),
        ("unmuted", membership(wire::MembershipChange::Unmuted, vec![BOB], none)),
        (
            "channel change",
            Content::ChannelChange(wire::ChannelChange {
                kind: wire::ChannelKind::KindNone as i32,
                name: Some("crabs".into()),
                history: wire::HistoryPolicy::FromJoin as i32,
                join: wire::JoinPolicy::ByRequest as i32,
                posting: wire::PostingPolicy::AdminsOnly as i32,
            }),
        ),
        (
            "channel renamed to nothing",
            Content::ChannelChange(wire::ChannelChange { name: Some(String::new()), ..Default::default() }),
        ),
    ]
}

fn as_entry(content: wire::send::Content) -> wire::entry::Content {
    use wire::{entry::Content as Entry, send::Content as Send};
    match content {
        Send::Message(message) => Entry::Message(message),
        Send::Edit(edit) => Entry::Edit(edit),
        Send::Recall(recall) => Entry::Recall(recall),
        Send::Reaction(reaction) => Entry::Reaction(reaction),
        Send::Membership(membership) => Entry::Membership(membership),
        Send::ChannelChange(change) => Entry::ChannelChange(change),
    }
}

pub fn all() -> Vec<Vector> {
    let mut vectors = Vec::new();
    let mut add = |from_client: bool, what: &str, bytes: Bytes| {
        let frame_type = FrameType::from_u8(bytes[0]).unwrap().name();
        let side = if from_client { "client" } else { "server" };
        vectors.push(Vector { name: format!("{frame_type} from {side}: {what}"), from_client, bytes });
    };
    client_session(&mut |what, bytes| add(true, what, bytes));
    client_channels(&mut |what, bytes| add(true, what, bytes));
    server_session(&mut |what, bytes| add(false, what, bytes));
    server_channels(&mut |what, bytes| add(false, what, bytes));
    vectors
}

fn client_session(add: &mut dyn FnMut(&str, Bytes)) {
    use FrameType::*;
    let hello = wire::Hello {
        version_min: 1,
        version_max: 1,
        token: "eyJ.eyJ.c2ln".into(),
        device: ALICE,
        agent: "vectors/1".into(),
        ..Default::default()
    };
    add("by token", short(Hello, 0, &hello));
    let every = wire::Hello {
        version_max: u32::MAX,
        capabilities: u64::MAX,
        delivery: wire::Delivery::Full as i32,
        token: "t".repeat(4096),
        resume: Bytes::from_static(&[0xee; 64]),
        device: TOP,
        device_name: "n".repeat(256),
        agent: "a".repeat(256),
        ..hello
    };
    add("every field at its longest", short(Hello, 0, &every));
    add("token", short(Auth, 0, &wire::Auth { token: "eyJ.eyJ.c2ln".into(), ..Default::default() }));
    add("usual", short(Ping, 0, &wire::Ping { time_ms: TIME_MS, quiet: false }));
    add("quiet", short(Ping, 0, &wire::Ping { time_ms: TIME_MS, quiet: true }));
    add("empty body", short(Ping, 0, &wire::Ping::default()));
    let position = |channel, seq| wire::Position { channel, epoch: 1, seq };
    add(
        "two positions",
        short(Ack, 0, &wire::Ack { number: 1, positions: vec![position(CHANNEL.0, 12), position(TOP, TOP)] }),
    );
    add("no position", short(Ack, 0, &wire::Ack { number: 300, positions: vec![] }));
    add(
        "1,000 positions",
        short(Ack, 0, &wire::Ack { number: 2, positions: (1..=1000).map(|at| position(at, at)).collect() }),
    );
    add("bye", short(Close, 0, &wire::Error::default()));
    let state = wire::State {
        attention: wire::Attention::Foreground as i32,
        visible: vec![CHANNEL.0, 1],
        tapped: CHANNEL.0,
    };
    add("foreground", short(State, 0, &state));
    add("background", short(State, 0, &wire::State::default()));
    add("cold start", short(Sync, 0, &wire::Sync::default()));
    let sync =
        wire::Sync { positions: vec![position(CHANNEL.0, 0)], window: 200, cursor: Bytes::from_static(b"c") };
    add("every field", short(Sync, 0, &sync));
}

fn client_channels(add: &mut dyn FnMut(&str, Bytes)) {
    use FrameType::*;
    for (what, content) in contents() {
        add(what, routed(Send, class::MESSAGE, 0, 0, CHANNEL, 1, &send_of(content)));
    }
    let repeat = wire::Send {
        first_attempt_ms: TIME_MS,
        last_attempt_ms: TIME_MS + 5000,
        ..send_of(wire::send::Content::Message(text("hello")))
    };
    add("a repeat", routed(Send, class::MESSAGE, flags::RETRY, 0, CHANNEL, TOP, &repeat));
    let longest = wire::send::Content::Message(text(&"x".repeat(16 * 1024)));
    add("16 KiB of text", routed(Send, 0, 0, 0, CHANNEL, 2, &send_of(longest)));
    let receipt = wire::Receipt {
        cursors: vec![wire::Cursor { user: 0, delivered: 300, read: 299, read_ordinal: 250 }],
    };
    add("one cursor", routed(Receipt, class::STATE, 0, 0, CHANNEL, 0, &receipt));
    add("question", routed(Counts, 0, 0, 0, CHANNEL, 3, &wire::Counts { of: 41, ..Default::default() }));
    let fetch = wire::Fetch { before: 0, after: 0, messages_max: 50, before_ms: 0 };
    add("from the head", routed(Fetch, class::HISTORY, 0, 0, CHANNEL, 4, &fetch));
    let fetch = wire::Fetch { before: TOP, after: 300, messages_max: 100, before_ms: TIME_MS };
    add("every field", routed(Fetch, class::HISTORY, 0, 0, CHANNEL, 5, &fetch));
    add("begun", routed(Typing, class::HINT, 0, 0, CHANNEL, 0, &wire::Typing::default()));
    add("stopped", routed(Typing, class::HINT, 0, 0, CHANNEL, 0, &wire::Typing { user: 0, stopped: true }));
    let mut presence = |what, body| add(what, routed(Presence, class::HINT, 0, 0, ChannelId(0), 0, &body));
    presence("nobody is watched", wire::Presence::default());
    presence("two are watched", wire::Presence { watch: vec![BOB, TOP], ..Default::default() });
    let nobody = wire::Audience::Nobody as i32;
    presence("seen by nobody", wire::Presence { audience: nobody, ..Default::default() });
    let open = |target| wire::Open { client_message_id: client_message_id(), target: Some(target) };
    let direct = open(wire::open::Target::Direct(BOB));
    add("direct", routed(Open, 0, 0, 0, ChannelId(0), 6, &direct));
    let group = open(wire::open::Target::Group(wire::Group {
        name: "crabs".into(),
        members: vec![BOB, TOP],
        history: wire::HistoryPolicy::FromJoin as i32,
        join: wire::JoinPolicy::OpenToAll as i32,
        posting: wire::PostingPolicy::EveryMember as i32,
    }));
    add("group", routed(Open, 0, 0, 0, ChannelId(0), 7, &group));
    let bare = open(wire::open::Target::Group(wire::Group::default()));
    add("group with defaults", routed(Open, 0, 0, 0, ChannelId(0), 8, &bare));
}

fn server_session(add: &mut dyn FnMut(&str, Bytes)) {
    use FrameType::*;
    let welcome = wire::Welcome {
        version: 1,
        capabilities: 0,
        session: TOP,
        user: ALICE,
        user_name: "alice".into(),
        server_time_ms: TIME_MS,
        heartbeat_ms: 25_000,
        resume: Bytes::from_static(&[0xee; 64]),
        resume_until_ms: TIME_MS + 86_400_000,
        token_until_ms: TIME_MS + 900_000,
        acks_confirmed: 12,
        resumed: true,
        limits: Some(wire::Limits {
            frame_bytes_max: 65_536,
            body_bytes_max: 16_384,
            entry_bytes_max: 24_576,
            page_bytes_max: 65_536,
            fetch_messages_max: 100,
            sync_channels_max: 200,
            sends_in_flight_max: 256,
        }),
        delivery: wire::Delivery::Full as i32,
    };
    add("every field", short(Welcome, 0, &welcome));
    add("token wanted", short(Auth, 0, &wire::Auth { required_within_ms: 90_000, ..Default::default() }));
    let renewed = wire::Auth {
        until_ms: TIME_MS,
        resume: Bytes::from_static(&[1; 48]),
        resume_until_ms: TIME_MS,
        ..Default::default()
    };
    add("answer", short(Auth, 0, &renewed));
    let pong = wire::Pong { time_ms: TIME_MS, server_time_ms: u64::MAX, acks_confirmed: u64::MAX };
    add("extreme", short(Pong, 0, &pong));
    let away = wire::GoAway {
        delay_ms_min: 100,
        delay_ms_max: 30_000,
        gateway: "gw2.example:7443".into(),
        code: u32::from(Code::GOING_AWAY.0),
    };
    add("every field", short(GoAway, 0, &away));
    let error = |code: Code, frame_type: FrameType| wire::Error {
        code: u32::from(code.0),
        text: "too many requests".into(),
        retry_after_ms: 1500,
        frame_type: frame_type as u32,
    };
    add("with a number", short(Close, 0, &error(Code::RATE_LIMITED, Hello)));
    add("of a TYPING", short(Error, 0, &error(Code::RATE_LIMITED, Typing)));
    let synced = wire::Synced {
        channels: vec![state(), wire::ChannelState { channel: 1, peer: BOB, ..Default::default() }],
        complete: false,
        cursor: Bytes::from_static(b"\x01\x02"),
        channels_total: 10_000,
    };
    add("every field", short(Synced, class::STATE, &synced));
    add("no channels", short(Synced, class::STATE, &wire::Synced { complete: true, ..Default::default() }));
}

fn server_channels(add: &mut dyn FnMut(&str, Bytes)) {
    use FrameType::*;
    let ack = wire::SendAck {
        outcome: wire::Outcome::Ok as i32,
        code: 0,
        epoch: u32::MAX,
        seq: TOP,
        message_id: TOP,
        ordinal: TOP,
        retry_after_ms: 0,
        text: String::new(),
        client_message_id: client_message_id(),
        repeated_send: true,
    };
    add("ok", routed(SendAck, class::MESSAGE, 0, 0, CHANNEL, 1, &ack));
    let failed = wire::SendAck {
        outcome: wire::Outcome::Fail as i32,
        code: u32::from(Code::RETRY_LATER.0),
        retry_after_ms: 250,
        text: "the shard moves".into(),
        ..Default::default()
    };
    add("fail", routed(SendAck, class::MESSAGE, 0, 0, CHANNEL, 2, &failed));
    let unknown = wire::SendAck { outcome: wire::Outcome::Unknown as i32, code: 5002, ..Default::default() };
    add("unknown", routed(SendAck, class::MESSAGE, 0, 0, CHANNEL, 3, &unknown));
    for (seq, (what, content)) in contents().into_iter().enumerate() {
        add(what, deliver(seq as u64 + 1, as_entry(content)));
    }
    let opaque = wire::Message { opaque: Bytes::from_static(&[7; 100]), ..Default::default() };
    let opaque = entry_of(Some(wire::entry::Content::Message(opaque)));
    add(
        "marked opaque",
        routed(Deliver, class::MESSAGE, flags::OPAQUE | flags::COUNTED, 1, CHANNEL, TOP, &opaque),
    );
    add(
        "stub",
        routed(Deliver, class::MESSAGE, flags::STUB | flags::COUNTED, 1, CHANNEL, 4, &entry_of(None)),
    );
    let cursor = |user, read| wire::Cursor { user, delivered: 300, read, read_ordinal: read };
    let receipt = wire::Receipt { cursors: vec![cursor(ALICE, 299), cursor(BOB, 0)] };
    add("two members", routed(Receipt, class::STATE, 0, 0, CHANNEL, 0, &receipt));
    let counts = wire::Counts { of: 41, delivered: 99_999, read: 1, members: 100_000 };
    add("answer", routed(Counts, class::STATE, 0, 0, CHANNEL, 3, &counts));
    let head = wire::Head { epoch: 1, epoch_start: 1, head: 300, ordinal: 250, after: 0 };
    add("usual", routed(Notify, class::STATE, 0, 1, CHANNEL, 300, &head));
    add("usual", routed(Gap, class::STATE, 0, 1, CHANNEL, 300, &wire::Head { after: 12, ..head }));
    let range = |first, last| wire::SeqRange { first, last };
    let frames = [
        deliver(10, wire::entry::Content::Message(text("ten"))),
        deliver(11, wire::entry::Content::Message(text("eleven"))),
    ];
    let page = wire::Page {
        first: 3,
        last: 14,
        more: true,
        complete: false,
        hidden: vec![range(3, 8), range(9, 9)],
        frames: Bytes::from(frames.concat()),
        amendments: vec![
            wire::Amendment {
                target: 10,
                frame: deliver(
                    200,
                    wire::entry::Content::Edit(wire::Edit { target: 10, message: Some(text("TEN")) }),
                ),
                reactions: vec![wire::ReactionCount { emoji: "\u{1f980}".into(), count: 3, mine: true }],
            },
            wire::Amendment { target: 11, ..Default::default() },
        ],
        head: 300,
        corrupt: vec![range(12, 14)],
    };
    add("every field", routed(Page, class::HISTORY, 0, 1, CHANNEL, 4, &page));
    add(
        "of an empty channel",
        routed(Page, class::HISTORY, 0, 1, CHANNEL, 5, &wire::Page { complete: true, ..Default::default() }),
    );
    add("begun", routed(Typing, class::HINT, 0, 0, CHANNEL, 0, &wire::Typing { user: BOB, stopped: false }));
    let of = |user, status: wire::PresenceStatus, last_seen_ms| wire::UserPresence {
        user,
        status: status as i32,
        last_seen_ms,
    };
    let users = vec![
        of(BOB, wire::PresenceStatus::Online, 0),
        of(TOP, wire::PresenceStatus::Offline, TIME_MS),
        of(7, wire::PresenceStatus::NotTold, 0),
    ];
    let mut presence = |what, body| add(what, routed(Presence, class::HINT, 0, 0, ChannelId(0), 0, &body));
    presence("three users", wire::Presence { users, ..Default::default() });
    let audience = wire::Audience::SharedChannels as i32;
    presence("who sees it", wire::Presence { audience, ..Default::default() });
    add("answer to OPEN", routed(Channel, class::STATE, 0, 0, CHANNEL, 7, &state()));
    let removed = wire::ChannelState {
        channel: CHANNEL.0,
        kind: wire::ChannelKind::Group as i32,
        ..Default::default()
    };
    add("removed", routed(Channel, class::STATE, 0, 0, CHANNEL, 0, &removed));
    let refused = wire::Error {
        code: u32::from(Code::NOT_A_MEMBER.0),
        text: "there is no such channel, or you are not a member of it".into(),
        retry_after_ms: 0,
        frame_type: Fetch as u32,
    };
    add("a FETCH", routed(Refused, class::CONTROL, 0, 0, CHANNEL, 4, &refused));
}
