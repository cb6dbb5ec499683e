//! The invalid vectors: what breaks a header, a side, a body or a bound, each with its error number.

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, FrameType,
    frame::{routed, short},
    header::flags,
    wire,
};
use serde_json::{Value, json};

use crate::{
    json::hex,
    valid::{ALICE, BOB, CHANNEL, TIME_MS, TOP, client_message_id, deliver, send_of, text},
};

struct Vectors(Vec<Value>);

impl Vectors {
    fn add(&mut self, from: &str, code: Code, name: &str, bytes: &[u8]) {
        self.0.push(json!({ "name": name, "hex": hex(bytes), "from": from, "code": code.0 }));
    }

    fn client(&mut self, code: Code, name: &str, bytes: impl AsRef<[u8]>) {
        self.add("client", code, name, bytes.as_ref());
    }

    fn server(&mut self, code: Code, name: &str, bytes: impl AsRef<[u8]>) {
        self.add("server", code, name, bytes.as_ref());
    }
}

pub fn all() -> Vec<Value> {
    let mut vectors = Vectors(Vec::new());
    headers(&mut vectors);
    bodies(&mut vectors);
    session_fields(&mut vectors);
    send_fields(&mut vectors);
    channel_fields(&mut vectors);
    server_frames(&mut vectors);
    vectors.0
}

/// A frame with its byte `at` set to `value`.
fn with(frame: &Bytes, at: usize, value: u8) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[at] = value;
    bytes
}

/// A header of that type with a body of those bytes.
fn raw(frame_type: FrameType, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![frame_type as u8, 0, 0, 0];
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    if frame_type.is_routed() {
        bytes.extend_from_slice(&CHANNEL.0.to_le_bytes());
        bytes.extend_from_slice(&1u64.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

fn ping() -> Bytes {
    short(FrameType::Ping, 0, &wire::Ping { time_ms: TIME_MS, quiet: false })
}

fn send(content: wire::send::Content) -> Bytes {
    routed(FrameType::Send, 0, 0, 0, CHANNEL, 1, &send_of(content))
}

fn hello() -> wire::Hello {
    wire::Hello { version_min: 1, version_max: 1, token: "t".into(), device: 1, ..Default::default() }
}

fn headers(v: &mut Vectors) {
    let (ping, send) = (ping(), send(wire::send::Content::Message(text("hello"))));
    v.client(Code::TRUNCATED, "one byte of a known type", &ping[..1]);
    v.client(Code::TRUNCATED, "a short header but for a byte", &ping[..7]);
    v.client(Code::TRUNCATED, "a short header without its body", &ping[..8]);
    v.client(Code::TRUNCATED, "a routed header but for a byte", &send[..23]);
    v.client(Code::TRUNCATED, "a body but for a byte", &send[..send.len() - 1]);
    v.client(Code::TRUNCATED, "a whole frame and half of another", [&ping[..], &ping[..9]].concat());
    v.client(Code::UNKNOWN_TYPE, "type 0", [0]);
    v.client(Code::UNKNOWN_TYPE, "type 0x0d", with(&ping, 0, 0x0d));
    v.client(Code::UNKNOWN_TYPE, "type 0x7f", with(&ping, 0, 0x7f));
    v.client(Code::UNKNOWN_TYPE, "type 0x80", with(&send, 0, 0x80));
    v.client(Code::UNKNOWN_TYPE, "type 0x8f", with(&send, 0, 0x8f));
    v.client(Code::UNKNOWN_TYPE, "type 0xff", [0xff]);
    for frame_type in FrameType::ALL {
        if !frame_type.from_client() {
            v.client(
                Code::UNKNOWN_TYPE,
                &format!("{} from a client", frame_type.name()),
                raw(*frame_type, b""),
            );
        }
        if !frame_type.from_server() {
            v.server(
                Code::UNKNOWN_TYPE,
                &format!("{} from a server", frame_type.name()),
                raw(*frame_type, b""),
            );
        }
    }
    for bit in 4..8 {
        v.client(Code::RESERVED_BITS, &format!("flag bit {bit}"), with(&send, 1, 1 << bit));
    }
    for bit in 4..7 {
        v.client(Code::RESERVED_BITS, &format!("class bit {bit}"), with(&send, 2, 1 << bit));
    }
    v.client(Code::RESERVED_BITS, "a flag that a PING does not have", with(&ping, 1, flags::RETRY));
    v.client(Code::RESERVED_BITS, "a flag that a SEND does not have", with(&send, 1, 2));
    v.client(Code::RESERVED_BITS, "an epoch in a short header", with(&ping, 3, 1));
    v.client(Code::RESERVED_BITS, "an epoch in a SEND", with(&send, 3, 1));
    v.client(Code::RESERVED_BITS, "a channel of 64 bits", with(&send, 15, 0x80));
    v.client(Code::RESERVED_BITS, "a seq of 64 bits", with(&send, 23, 0x80));
    let mut large = ping[..8].to_vec();
    large[4..8].copy_from_slice(&(65_536u32 - 24 + 1).to_le_bytes());
    v.client(Code::FRAME_TOO_LARGE, "a body of 65,513 bytes", &large);
    large[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    v.client(Code::FRAME_TOO_LARGE, "a body of 4 GiB", &large);
    let mut large = send[..8].to_vec();
    large[4..8].copy_from_slice(&65_536u32.to_le_bytes());
    v.client(Code::FRAME_TOO_LARGE, "a routed frame known to be too large from 8 bytes", &large);
}

fn bodies(v: &mut Vectors) {
    v.client(Code::BAD_BODY, "a field that ends early", raw(FrameType::Ping, &[0x09, 1, 2]));
    v.client(Code::BAD_BODY, "a field of another wire type", raw(FrameType::Ping, &[0x08, 1]));
    v.client(Code::BAD_BODY, "field number 0", raw(FrameType::Ping, &[0x00, 1]));
    v.client(Code::BAD_BODY, "wire type 7", raw(FrameType::Ping, &[0x0f]));
    v.client(
        Code::BAD_BODY,
        "a varint of 11 bytes",
        raw(FrameType::Ack, &[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
    );
    v.client(
        Code::BAD_BODY,
        "a length beyond the body",
        raw(FrameType::Hello, &[0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
    );
    v.client(Code::BAD_BODY, "text that is not UTF-8", raw(FrameType::Hello, &[0x2a, 2, 0xc3, 0x28]));
    v.client(Code::BAD_BODY, "an unknown group nested 200 deep", raw(FrameType::Ping, &[0x7b; 200]));
    v.client(Code::BAD_BODY, "a group that ends without a beginning", raw(FrameType::Ping, &[0x7c]));
    v.client(
        Code::BAD_BODY,
        "a message inside a SEND that ends early",
        raw(FrameType::Send, &[0x32, 2, 0x0a, 5]),
    );
}

fn session_fields(v: &mut Vectors) {
    let hello_with = |change: fn(&mut wire::Hello)| {
        let mut hello = hello();
        change(&mut hello);
        short(FrameType::Hello, 0, &hello)
    };
    v.client(Code::BAD_FIELD, "HELLO with device 0", hello_with(|hello| hello.device = 0));
    v.client(Code::BAD_FIELD, "HELLO with a device of 64 bits", hello_with(|hello| hello.device = 1 << 63));
    v.client(Code::BAD_FIELD, "HELLO with delivery 2", hello_with(|hello| hello.delivery = 2));
    v.client(Code::BAD_FIELD, "HELLO with delivery -1", hello_with(|hello| hello.delivery = -1));
    v.client(
        Code::BAD_FIELD,
        "HELLO with version_min over version_max",
        hello_with(|hello| hello.version_min = 2),
    );
    v.client(
        Code::BAD_FIELD,
        "HELLO with a device name of 257 bytes",
        hello_with(|hello| hello.device_name = "n".repeat(257)),
    );
    v.client(
        Code::BAD_FIELD,
        "HELLO with an agent of 257 bytes",
        hello_with(|hello| hello.agent = "n".repeat(257)),
    );
    v.client(
        Code::TOKEN_MISSING,
        "HELLO with neither token nor resume",
        hello_with(|hello| hello.token.clear()),
    );
    v.client(
        Code::TOKEN_MALFORMED,
        "HELLO with a token of 4,097 bytes",
        hello_with(|hello| hello.token = "t".repeat(4097)),
    );
    v.client(Code::TOKEN_MISSING, "AUTH without a token", raw(FrameType::Auth, b""));
    let auth = wire::Auth { token: "t".repeat(4097), ..Default::default() };
    v.client(Code::TOKEN_MALFORMED, "AUTH with a token of 4,097 bytes", short(FrameType::Auth, 0, &auth));
    let ack = |number, positions: Vec<(u64, u64)>| {
        let positions =
            positions.into_iter().map(|(channel, seq)| wire::Position { channel, epoch: 1, seq }).collect();
        short(FrameType::Ack, 0, &wire::Ack { number, positions })
    };
    v.client(Code::BAD_FIELD, "ACK number 0", ack(0, vec![]));
    v.client(Code::BAD_FIELD, "ACK of channel 0", ack(1, vec![(0, 1)]));
    v.client(Code::BAD_FIELD, "ACK of a seq of 64 bits", ack(1, vec![(1, 1 << 63)]));
    v.client(Code::BAD_FIELD, "ACK of 1,001 positions", ack(1, vec![(1, 1); 1001]));
    v.client(
        Code::BAD_FIELD,
        "ACK of 30,000 empty positions",
        raw(FrameType::Ack, &[&[8, 1][..], &[0x12, 0].repeat(30_000)].concat()),
    );
    let state =
        |attention, visible| short(FrameType::State, 0, &wire::State { attention, visible, tapped: 0 });
    v.client(Code::BAD_FIELD, "STATE with attention 2", state(2, vec![]));
    v.client(Code::BAD_FIELD, "STATE with channel 0", state(0, vec![0]));
    v.client(Code::BAD_FIELD, "STATE with 1,001 channels", state(0, vec![1; 1001]));
    v.client(
        Code::BAD_FIELD,
        "SYNC with a window of 201",
        short(FrameType::Sync, 0, &wire::Sync { window: 201, ..Default::default() }),
    );
    let position = wire::Position { channel: 1, epoch: 1, seq: 1 };
    let sync = wire::Sync { positions: vec![position; 1001], ..Default::default() };
    v.client(Code::BAD_FIELD, "SYNC with 1,001 positions", short(FrameType::Sync, 0, &sync));
}

fn send_fields(v: &mut Vectors) {
    use wire::send::Content;
    let id_of = |id: &[u8]| wire::Send {
        client_message_id: Bytes::copy_from_slice(id),
        ..send_of(Content::Message(text("hello")))
    };
    let hello = send_of(Content::Message(text("hello")));
    let send_with = |flags, channel: u64, seq, body: &wire::Send| {
        routed(FrameType::Send, 0, flags, 0, ChannelId(channel), seq, body)
    };
    v.client(Code::BAD_FIELD, "SEND to channel 0", send_with(0, 0, 1, &hello));
    v.client(Code::BAD_FIELD, "SEND with request number 0", send_with(0, 7, 0, &hello));
    v.client(Code::BAD_FIELD, "SEND without a client message id", send_with(0, 7, 1, &id_of(&[])));
    v.client(
        Code::BAD_FIELD,
        "SEND with a client message id of 15 bytes",
        send_with(0, 7, 1, &id_of(&client_message_id()[..15])),
    );
    let mut version_4 = client_message_id().to_vec();
    version_4[6] = 0x40;
    v.client(Code::BAD_FIELD, "SEND with a UUID of version 4", send_with(0, 7, 1, &id_of(&version_4)));
    v.client(Code::BAD_FIELD, "SEND, a repeat that does not say when", send_with(flags::RETRY, 7, 1, &hello));
    let backwards = wire::Send { first_attempt_ms: 2, last_attempt_ms: 1, ..hello.clone() };
    v.client(
        Code::BAD_FIELD,
        "SEND, a repeat whose last attempt was before its first",
        send_with(flags::RETRY, 7, 1, &backwards),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND without content",
        send_with(0, 7, 1, &wire::Send { content: None, ..hello }),
    );

    let message = |change: fn(&mut wire::Message)| {
        let mut message = text("hello");
        change(&mut message);
        send(Content::Message(message))
    };
    v.client(Code::BAD_FIELD, "SEND of an empty message", message(|message| message.text.clear()));
    v.client(
        Code::BODY_TOO_LARGE,
        "SEND of a text of 16,385 bytes",
        message(|message| message.text = "x".repeat(16_385)),
    );
    v.client(
        Code::BODY_TOO_LARGE,
        "SEND of text and opaque of 16,385 bytes",
        message(|message| message.opaque = vec![1; 16_380].into()),
    );
    v.client(
        Code::BODY_TOO_LARGE,
        "SEND of an entry over 24 KiB",
        message(|message| {
            message.text = "x".repeat(16_384);
            message.attachments = vec![wire::Attachment { url: "u".repeat(2048), ..Default::default() }; 4];
        }),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with a content type of 257 bytes",
        message(|message| message.content_type = "t".repeat(257)),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with 1,001 mentions",
        message(|message| message.mentions = vec![ALICE; 1001]),
    );
    v.client(Code::BAD_FIELD, "SEND mentioning user 0", message(|message| message.mentions = vec![0]));
    v.client(
        Code::BAD_FIELD,
        "SEND replying to a seq of 64 bits",
        message(|message| message.reply_to = u64::MAX),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with 33 attachments",
        message(|message| message.attachments = vec![Default::default(); 33]),
    );
    let attached = |attachment: wire::Attachment| {
        send(Content::Message(wire::Message { attachments: vec![attachment], ..Default::default() }))
    };
    v.client(
        Code::BAD_FIELD,
        "SEND with a sha256 of 31 bytes",
        attached(wire::Attachment { sha256: vec![1; 31].into(), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with a preview of 2,049 bytes",
        attached(wire::Attachment { preview: vec![1; 2049].into(), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with a URL of 2,049 bytes",
        attached(wire::Attachment { url: "u".repeat(2049), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "SEND with an attachment's name of 257 bytes",
        attached(wire::Attachment { name: "n".repeat(257), ..Default::default() }),
    );

    v.client(
        Code::BAD_FIELD,
        "edit of nothing",
        send(Content::Edit(wire::Edit { target: 0, message: Some(text("x")) })),
    );
    v.client(
        Code::BAD_FIELD,
        "edit without a message",
        send(Content::Edit(wire::Edit { target: 1, message: None })),
    );
    v.client(
        Code::BODY_TOO_LARGE,
        "edit to 16,385 bytes",
        send(Content::Edit(wire::Edit { target: 1, message: Some(text(&"x".repeat(16_385))) })),
    );
    v.client(Code::BAD_FIELD, "recall of nothing", send(Content::Recall(wire::Recall { target: 0 })));
    let reaction = |target, emoji: &str| {
        send(Content::Reaction(wire::Reaction { target, emoji: emoji.into(), remove: false }))
    };
    v.client(Code::BAD_FIELD, "reaction to nothing", reaction(0, "x"));
    v.client(Code::BAD_FIELD, "reaction without an emoji", reaction(1, ""));
    v.client(Code::BAD_FIELD, "reaction of 65 bytes", reaction(1, &"x".repeat(65)));
    let membership = |change, users, role| {
        send(Content::Membership(wire::Membership { change, users, role, until_ms: 0 }))
    };
    v.client(Code::BAD_FIELD, "membership without a change", membership(0, vec![BOB], 0));
    v.client(Code::BAD_FIELD, "membership change 12", membership(12, vec![BOB], 0));
    v.client(Code::BAD_FIELD, "joined by nobody", membership(1, vec![], 0));
    v.client(Code::BAD_FIELD, "joined by user 0", membership(1, vec![0], 0));
    v.client(Code::BAD_FIELD, "joined by 1,001 users", membership(1, (1..=1001).collect(), 0));
    v.client(Code::BAD_FIELD, "left by two", membership(2, vec![ALICE, BOB], 0));
    v.client(Code::BAD_FIELD, "invited: nobody", membership(5, vec![], 0));
    v.client(Code::BAD_FIELD, "requested by two", membership(6, vec![ALICE, BOB], 0));
    v.client(Code::BAD_FIELD, "banned: nobody", membership(8, vec![], 0));
    let until = wire::Membership { change: 10, users: vec![BOB], role: 0, until_ms: 1 << 63 };
    v.client(Code::BAD_FIELD, "muted for longer than time", send(Content::Membership(until)));
    let until = wire::Membership { change: 5, users: vec![BOB], role: 0, until_ms: 1 };
    v.client(Code::BAD_FIELD, "invited until then", send(Content::Membership(until)));
    v.client(Code::BAD_FIELD, "banned as an owner", membership(8, vec![BOB], 3));
    v.client(Code::BAD_FIELD, "role changed to none", membership(4, vec![BOB], 0));
    v.client(Code::BAD_FIELD, "role changed to 4", membership(4, vec![BOB], 4));
    let change = |change: wire::ChannelChange| send(Content::ChannelChange(change));
    v.client(
        Code::BAD_FIELD,
        "channel name of 257 bytes",
        change(wire::ChannelChange { name: Some("n".repeat(257)), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "history policy 3",
        change(wire::ChannelChange { history: 3, ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "join policy -1",
        change(wire::ChannelChange { join: -1, ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "posting policy 3",
        change(wire::ChannelChange { posting: 3, ..Default::default() }),
    );
}

fn channel_fields(v: &mut Vectors) {
    use FrameType::{Counts, Fetch, Open, Receipt, Typing};
    let cursor = wire::Cursor { user: 0, delivered: 1, read: 1, read_ordinal: 1 };
    let receipt = |channel: u64, seq, cursors| {
        routed(Receipt, 0, 0, 0, ChannelId(channel), seq, &wire::Receipt { cursors })
    };
    v.client(Code::BAD_FIELD, "RECEIPT without a cursor", receipt(7, 0, vec![]));
    v.client(Code::BAD_FIELD, "RECEIPT with two cursors", receipt(7, 0, vec![cursor; 2]));
    v.client(Code::BAD_FIELD, "RECEIPT with a seq", receipt(7, 1, vec![cursor]));
    v.client(Code::BAD_FIELD, "RECEIPT of channel 0", receipt(0, 0, vec![cursor]));
    v.client(
        Code::BAD_FIELD,
        "RECEIPT of a seq of 64 bits",
        receipt(7, 0, vec![wire::Cursor { read: 1 << 63, ..cursor }]),
    );
    v.client(
        Code::BAD_FIELD,
        "COUNTS of nothing",
        routed(Counts, 0, 0, 0, CHANNEL, 1, &wire::Counts::default()),
    );
    let fetch = |before, messages_max| {
        routed(Fetch, 0, 0, 0, CHANNEL, 1, &wire::Fetch { before, messages_max, ..Default::default() })
    };
    v.client(Code::BAD_FIELD, "FETCH of no messages", fetch(0, 0));
    v.client(Code::BAD_FIELD, "FETCH of 101 messages", fetch(0, 101));
    v.client(Code::BAD_FIELD, "FETCH before a seq of 64 bits", fetch(1 << 63, 1));
    let typing = |seq, user| routed(Typing, 0, 0, 0, CHANNEL, seq, &wire::Typing { user, stopped: false });
    v.client(Code::BAD_FIELD, "TYPING for somebody else", typing(0, BOB));
    v.client(Code::BAD_FIELD, "TYPING with a seq", typing(1, 0));
    let open = |channel, target| {
        let body = wire::Open { client_message_id: client_message_id(), target };
        routed(Open, 0, 0, 0, ChannelId(channel), 1, &body)
    };
    let group = |group: wire::Group| open(0, Some(wire::open::Target::Group(group)));
    v.client(Code::BAD_FIELD, "OPEN of a channel", open(7, Some(wire::open::Target::Direct(BOB))));
    v.client(Code::BAD_FIELD, "OPEN of nothing", open(0, None));
    v.client(Code::BAD_FIELD, "OPEN with user 0", open(0, Some(wire::open::Target::Direct(0))));
    v.client(
        Code::BAD_FIELD,
        "OPEN with a user of 64 bits",
        open(0, Some(wire::open::Target::Direct(TOP + 1))),
    );
    v.client(
        Code::BAD_FIELD,
        "OPEN with a name of 257 bytes",
        group(wire::Group { name: "n".repeat(257), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "OPEN with 1,001 members",
        group(wire::Group { members: (1..=1001).collect(), ..Default::default() }),
    );
    v.client(
        Code::BAD_FIELD,
        "OPEN with history policy 9",
        group(wire::Group { history: 9, ..Default::default() }),
    );
    let nameless = wire::Open { target: Some(wire::open::Target::Direct(BOB)), ..Default::default() };
    v.client(
        Code::BAD_FIELD,
        "OPEN without a client message id",
        routed(Open, 0, 0, 0, ChannelId(0), 1, &nameless),
    );
}

fn server_frames(v: &mut Vectors) {
    let whole = deliver(4, wire::entry::Content::Message(text("hello")));
    v.server(Code::RESERVED_BITS, "DELIVER with flag bit 3", with(&whole, 1, 8));
    v.server(Code::BAD_FIELD, "DELIVER of seq 0", with(&whole, 16, 0));
    v.server(Code::BAD_BODY, "DELIVER whose body ends early", raw(FrameType::Deliver, &[0x32, 9]));
    let page = |frames: Bytes| {
        let page = wire::Page { first: 1, last: 4, frames, ..Default::default() };
        routed(FrameType::Page, 3, 0, 1, CHANNEL, 1, &page)
    };
    v.server(Code::TRUNCATED, "PAGE that holds half a frame", page(whole.slice(..whole.len() - 1)));
    v.server(
        Code::BAD_FIELD,
        "PAGE that holds a PONG",
        page(short(FrameType::Pong, 0, &wire::Pong::default())),
    );
    let backwards = wire::Page { first: 5, last: 4, ..Default::default() };
    v.server(
        Code::BAD_FIELD,
        "PAGE whose first is behind its last",
        routed(FrameType::Page, 3, 0, 1, CHANNEL, 1, &backwards),
    );
}
