//! What a frame must be before anybody acts on it: the side that may send it, its flags, a body that decodes, and
//! every bound of docs/protocol.md that needs neither storage nor clock. Both sides may call it; a receiver that has
//! the body decoded already calls [`Body::check`] alone, one that wants both in one step [`decode`].
//!
//! What needs state (is the sender a member, is the message id too old, has HELLO come) is the session's and the
//! router's to say.

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::{
    error::Code,
    frame::Frame,
    header::{FrameType, Header, ROUTED_BYTES, flags},
    ids::ClientMessageId,
    limits, wire,
};

/// Bytes that the server adds to a content when it makes the entry: epoch, message id, ordinal, sender and client
/// message id at their longest.
const ENTRY_FIELDS_BYTES_MAX: usize = 6 + 9 + 11 + 9 + 18;
/// Bytes of a SEND's content beyond which its entry would not fit into [`limits::ENTRY_BYTES_MAX`].
pub const CONTENT_BYTES_MAX: usize = limits::ENTRY_BYTES_MAX - ROUTED_BYTES - ENTRY_FIELDS_BYTES_MAX;
/// Bytes of an attachment's preview, and of its URL.
pub const ATTACHMENT_BYTES_MAX: usize = 2 * 1024;

/// The body of a frame that a client sends, with the bounds of its fields.
pub trait Body: prost::Message + Default {
    /// The only type of frame it is the body of, coming from a client.
    const TYPE: FrameType;
    /// Paths of field numbers to the repeated messages in it, each with the most there may be: counted before
    /// anything is decoded, because a repeated message of 2 bytes on the wire is a hundred in memory.
    const REPEATED: &'static [(&'static [u32], usize)] = &[];

    /// Holds the fields (and the header's, where they belong together) against their bounds.
    ///
    /// # Errors
    /// `BAD_FIELD`; `BODY_TOO_LARGE` in contents; `TOKEN_MISSING` and `TOKEN_MALFORMED` in HELLO and AUTH.
    fn check(&self, header: &Header) -> Result<(), Code>;
}

/// Whether this side may send the frame, with these flags: what the header alone tells beyond [`Header::parse`].
///
/// # Errors
/// `UNKNOWN_TYPE`, `RESERVED_BITS`.
pub fn header(header: &Header, from_client: bool) -> Result<(), Code> {
    use FrameType::{Deliver, Gap, Notify, Page, Send};
    let short = header.short();
    let kind = short.frame_type;
    if !(if from_client { kind.from_client() } else { kind.from_server() }) {
        return Err(Code::UNKNOWN_TYPE);
    }
    let meant = match kind {
        Send => flags::RETRY,
        Deliver => flags::OPAQUE | flags::COUNTED | flags::STUB,
        _ => 0,
    };
    if short.flags & !meant != 0 || (short.epoch != 0 && !matches!(kind, Deliver | Notify | Gap | Page)) {
        return Err(Code::RESERVED_BITS);
    }
    Ok(())
}

/// A client's frame as its checked body. The frame's type must be `B::TYPE`.
///
/// # Errors
/// `BAD_BODY`, and those of [`Body::check`].
pub fn decode<B: Body>(frame: &Frame) -> Result<B, Code> {
    debug_assert_eq!(frame.frame_type(), B::TYPE);
    let bytes = frame.body();
    for (path, most) in B::REPEATED {
        if occurrences(&bytes, path)? > *most {
            return Err(Code::BAD_FIELD);
        }
    }
    let body = B::decode(bytes).map_err(|_| Code::BAD_BODY)?;
    body.check(&frame.header)?;
    Ok(body)
}

/// Everything about one frame of that side: [`header`], and the body as its type has it.
///
/// # Errors
/// `UNKNOWN_TYPE`, `RESERVED_BITS`, `BAD_BODY`, and those of [`Body::check`]; from a server's frame `BAD_FIELD` too.
pub fn check(frame: &Frame, from_client: bool) -> Result<(), Code> {
    header(&frame.header, from_client)?;
    if from_client { client_frame(frame) } else { server_frame(frame) }
}

fn client_frame(frame: &Frame) -> Result<(), Code> {
    use FrameType::*;
    match frame.frame_type() {
        Hello => decode::<wire::Hello>(frame).map(drop),
        Auth => decode::<wire::Auth>(frame).map(drop),
        Ping => decode::<wire::Ping>(frame).map(drop),
        Ack => decode::<wire::Ack>(frame).map(drop),
        Close => decode::<wire::Error>(frame).map(drop),
        State => decode::<wire::State>(frame).map(drop),
        Sync => decode::<wire::Sync>(frame).map(drop),
        Send => decode::<wire::Send>(frame).map(drop),
        Receipt => decode::<wire::Receipt>(frame).map(drop),
        Counts => decode::<wire::Counts>(frame).map(drop),
        Fetch => decode::<wire::Fetch>(frame).map(drop),
        Typing => decode::<wire::Typing>(frame).map(drop),
        Open => decode::<wire::Open>(frame).map(drop),
        Presence => decode::<wire::Presence>(frame).map(drop),
        Welcome | Pong | GoAway | Synced | Error | SendAck | Deliver | Notify | Gap | Page | Channel
        | Refused => Err(Code::UNKNOWN_TYPE),
    }
}

/// Lenient where a later server may say more (enums, lengths), strict in what a client builds upon.
fn server_frame(frame: &Frame) -> Result<(), Code> {
    use FrameType::*;
    match frame.frame_type() {
        Welcome => frame.decode::<wire::Welcome>().map(drop),
        Auth => frame.decode::<wire::Auth>().map(drop),
        Pong => frame.decode::<wire::Pong>().map(drop),
        GoAway => frame.decode::<wire::GoAway>().map(drop),
        Close | Error | Refused => frame.decode::<wire::Error>().map(drop),
        Synced => {
            let synced: wire::Synced = frame.decode()?;
            require(synced.channels.len() <= limits::REPEATED_MAX)
        }
        SendAck => frame.decode::<wire::SendAck>().map(drop),
        Deliver => {
            channel(&frame.header)?;
            require(frame.routed().is_some_and(|routed| routed.seq != 0))?;
            frame.decode::<wire::Entry>().map(drop)
        }
        Receipt => {
            channel(&frame.header)?;
            let receipt: wire::Receipt = frame.decode()?;
            require(receipt.cursors.len() <= limits::REPEATED_MAX)
        }
        Counts => frame.decode::<wire::Counts>().map(drop),
        Notify | Gap => {
            channel(&frame.header)?;
            frame.decode::<wire::Head>().map(drop)
        }
        Page => page(&frame.decode()?),
        Typing => frame.decode::<wire::Typing>().map(drop),
        Presence => {
            let presence: wire::Presence = frame.decode()?;
            require(presence.users.len() <= limits::REPEATED_MAX)
        }
        Channel => frame.decode::<wire::ChannelState>().map(drop),
        Hello | Ping | Ack | State | Sync | Send | Fetch | Open => Err(Code::UNKNOWN_TYPE),
    }
}

/// The frames inside of a page are whole DELIVER frames.
fn page(page: &wire::Page) -> Result<(), Code> {
    require(page.first <= page.last)?;
    let amendments = page.amendments.iter().map(|amendment| amendment.frame.clone());
    for bytes in std::iter::once(page.frames.clone()).chain(amendments) {
        for frame in Frame::iter(bytes) {
            let frame = frame?;
            require(frame.frame_type() == FrameType::Deliver)?;
            check(&frame, false)?;
        }
    }
    Ok(())
}

/// How often the field at the end of `path` occurs in all messages along it, without decoding any value.
fn occurrences(bytes: &Bytes, path: &[u32]) -> Result<usize, Code> {
    let Some((&wanted, rest_of_path)) = path.split_first() else { return Ok(1) };
    let mut bytes = bytes.clone();
    let mut count = 0;
    while !bytes.is_empty() {
        let (field, wire_type) = decode_key(&mut bytes).map_err(|_| Code::BAD_BODY)?;
        if field == wanted && wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut bytes).map_err(|_| Code::BAD_BODY)?;
            let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len());
            let value = bytes.split_to(length.ok_or(Code::BAD_BODY)?);
            count += occurrences(&value, rest_of_path)?;
        } else {
            skip_field(wire_type, field, &mut bytes, DecodeContext::default()).map_err(|_| Code::BAD_BODY)?;
        }
    }
    Ok(count)
}

/// `BAD_FIELD` unless `holds`.
fn require(holds: bool) -> Result<(), Code> {
    if holds { Ok(()) } else { Err(Code::BAD_FIELD) }
}

/// An id names something: not 0, below 2^63.
fn id(value: u64) -> Result<(), Code> {
    require(value != 0 && value >> 63 == 0)
}

/// A seq that may be 0 (none), or a number below 2^63.
fn place(value: u64) -> Result<(), Code> {
    require(value >> 63 == 0)
}

fn ids(values: &[u64], most: usize) -> Result<(), Code> {
    require(values.len() <= most)?;
    values.iter().try_for_each(|value| id(*value))
}

fn name(text: &str) -> Result<(), Code> {
    require(text.len() <= limits::NAME_BYTES_MAX)
}

/// An enum's value is one of its first `values`.
fn value(value: i32, values: i32) -> Result<(), Code> {
    require((0..values).contains(&value))
}

fn client_message_id(bytes: &[u8]) -> Result<(), Code> {
    require(ClientMessageId::from_wire(bytes).is_some())
}

fn channel(header: &Header) -> Result<(), Code> {
    require(header.routed().is_some_and(|routed| !routed.channel.is_none()))
}

/// A request: a channel, and a request number that its answer repeats.
fn request(header: &Header) -> Result<(), Code> {
    channel(header)?;
    require(header.routed().is_some_and(|routed| routed.seq != 0))
}

/// A frame about a channel that is no request: seq 0.
fn no_request(header: &Header) -> Result<(), Code> {
    channel(header)?;
    require(header.routed().is_some_and(|routed| routed.seq == 0))
}

fn token(token: &str) -> Result<(), Code> {
    if token.len() <= limits::TOKEN_BYTES_MAX { Ok(()) } else { Err(Code::TOKEN_MALFORMED) }
}

fn positions(positions: &[wire::Position]) -> Result<(), Code> {
    require(positions.len() <= limits::REPEATED_MAX)?;
    positions.iter().try_for_each(|position| {
        id(position.channel)?;
        place(position.seq)
    })
}

impl Body for wire::Hello {
    const TYPE: FrameType = FrameType::Hello;

    fn check(&self, _: &Header) -> Result<(), Code> {
        require(self.version_min <= self.version_max)?;
        value(self.delivery, 2)?;
        id(self.device)?;
        name(&self.device_name)?;
        name(&self.agent)?;
        if self.token.is_empty() && self.resume.is_empty() {
            return Err(Code::TOKEN_MISSING);
        }
        token(&self.token)
    }
}

impl Body for wire::Auth {
    const TYPE: FrameType = FrameType::Auth;

    fn check(&self, _: &Header) -> Result<(), Code> {
        if self.token.is_empty() {
            return Err(Code::TOKEN_MISSING);
        }
        token(&self.token)
    }
}

impl Body for wire::Ping {
    const TYPE: FrameType = FrameType::Ping;

    fn check(&self, _: &Header) -> Result<(), Code> {
        Ok(())
    }
}

impl Body for wire::Ack {
    const TYPE: FrameType = FrameType::Ack;
    const REPEATED: &'static [(&'static [u32], usize)] = &[(&[2], limits::REPEATED_MAX)];

    fn check(&self, _: &Header) -> Result<(), Code> {
        id(self.number)?;
        positions(&self.positions)
    }
}

/// Of CLOSE.
impl Body for wire::Error {
    const TYPE: FrameType = FrameType::Close;

    fn check(&self, _: &Header) -> Result<(), Code> {
        Ok(())
    }
}

impl Body for wire::State {
    const TYPE: FrameType = FrameType::State;

    fn check(&self, _: &Header) -> Result<(), Code> {
        value(self.attention, 2)?;
        require(self.tapped >> 63 == 0)?;
        ids(&self.visible, limits::VISIBLE_MAX)
    }
}

impl Body for wire::Sync {
    const TYPE: FrameType = FrameType::Sync;
    const REPEATED: &'static [(&'static [u32], usize)] = &[(&[1], limits::REPEATED_MAX)];

    fn check(&self, _: &Header) -> Result<(), Code> {
        require(self.window <= limits::SYNC_WINDOW_MAX)?;
        positions(&self.positions)
    }
}

impl Body for wire::Receipt {
    const TYPE: FrameType = FrameType::Receipt;
    const REPEATED: &'static [(&'static [u32], usize)] = &[(&[1], 1)];

    fn check(&self, header: &Header) -> Result<(), Code> {
        no_request(header)?;
        require(self.cursors.len() == 1)?;
        self.cursors.iter().try_for_each(|cursor| {
            place(cursor.delivered)?;
            place(cursor.read)?;
            place(cursor.read_ordinal)
        })
    }
}

impl Body for wire::Counts {
    const TYPE: FrameType = FrameType::Counts;

    fn check(&self, header: &Header) -> Result<(), Code> {
        request(header)?;
        id(self.of)
    }
}

impl Body for wire::Fetch {
    const TYPE: FrameType = FrameType::Fetch;

    fn check(&self, header: &Header) -> Result<(), Code> {
        request(header)?;
        require((1..=limits::FETCH_MESSAGES_MAX).contains(&self.messages_max))?;
        place(self.before)?;
        place(self.after)
    }
}

impl Body for wire::Typing {
    const TYPE: FrameType = FrameType::Typing;

    fn check(&self, header: &Header) -> Result<(), Code> {
        no_request(header)?;
        require(self.user == 0)
    }
}

impl Body for wire::Presence {
    const TYPE: FrameType = FrameType::Presence;
    const REPEATED: &'static [(&'static [u32], usize)] = &[(&[5], 0)];

    fn check(&self, header: &Header) -> Result<(), Code> {
        require(header.routed().is_some_and(|routed| routed.channel.is_none() && routed.seq == 0))?;
        value(self.audience, 4)?;
        require(self.watch.is_empty() || self.audience == 0)?;
        ids(&self.watch, limits::PRESENCE_WATCHED_MAX)
    }
}

impl Body for wire::Open {
    const TYPE: FrameType = FrameType::Open;

    fn check(&self, header: &Header) -> Result<(), Code> {
        require(header.routed().is_some_and(|routed| routed.channel.is_none() && routed.seq != 0))?;
        client_message_id(&self.client_message_id)?;
        match &self.target {
            Some(wire::open::Target::Direct(user)) => id(*user),
            Some(wire::open::Target::Group(group)) => {
                name(&group.name)?;
                ids(&group.members, limits::MEMBERS_PER_ENTRY_MAX)?;
                value(group.history, 3)?;
                value(group.join, 4)?;
                value(group.posting, 3)
            }
            None => Err(Code::BAD_FIELD),
        }
    }
}

impl Body for wire::Send {
    const TYPE: FrameType = FrameType::Send;
    const REPEATED: &'static [(&'static [u32], usize)] =
        &[(&[6, 5], limits::ATTACHMENTS_MAX), (&[7, 2, 5], limits::ATTACHMENTS_MAX)];

    fn check(&self, header: &Header) -> Result<(), Code> {
        use wire::send::Content;
        request(header)?;
        client_message_id(&self.client_message_id)?;
        if header.short().flags & flags::RETRY != 0 {
            require(self.first_attempt_ms != 0 && self.first_attempt_ms <= self.last_attempt_ms)?;
        }
        let content = self.content.as_ref().ok_or(Code::BAD_FIELD)?;
        // The frame is never shorter than its content, so most sends need no second measure.
        if header.short().body_bytes as usize > CONTENT_BYTES_MAX && content.encoded_len() > CONTENT_BYTES_MAX
        {
            return Err(Code::BODY_TOO_LARGE);
        }
        match content {
            Content::Message(content) => message(content),
            Content::Edit(edit) => {
                id(edit.target)?;
                message(edit.message.as_ref().ok_or(Code::BAD_FIELD)?)
            }
            Content::Recall(recall) => id(recall.target),
            Content::Reaction(reaction) => {
                id(reaction.target)?;
                require((1..=limits::EMOJI_BYTES_MAX).contains(&reaction.emoji.len()))
            }
            Content::Membership(change) => membership(change),
            Content::ChannelChange(change) => {
                change.name.as_deref().map_or(Ok(()), name)?;
                value(change.kind, 3)?;
                value(change.history, 3)?;
                value(change.join, 4)?;
                value(change.posting, 3)
            }
        }
    }
}

fn message(message: &wire::Message) -> Result<(), Code> {
    let body_bytes = message.text.len() + message.opaque.len();
    if body_bytes > limits::BODY_BYTES_MAX {
        return Err(Code::BODY_TOO_LARGE);
    }
    require(body_bytes != 0 || !message.attachments.is_empty())?;
    name(&message.content_type)?;
    ids(&message.mentions, limits::REPEATED_MAX)?;
    place(message.reply_to)?;
    require(message.attachments.len() <= limits::ATTACHMENTS_MAX)?;
    message.attachments.iter().try_for_each(|attachment| {
        name(&attachment.id)?;
        name(&attachment.name)?;
        name(&attachment.content_type)?;
        require(
            attachment.url.len() <= ATTACHMENT_BYTES_MAX && attachment.preview.len() <= ATTACHMENT_BYTES_MAX,
        )?;
        require(matches!(attachment.sha256.len(), 0 | 32))
    })
}

fn membership(membership: &wire::Membership) -> Result<(), Code> {
    use wire::{MembershipChange as Change, Role};
    ids(&membership.users, limits::MEMBERS_PER_ENTRY_MAX)?;
    let role = Role::try_from(membership.role).map_err(|_| Code::BAD_FIELD)?;
    let change = Change::try_from(membership.change).map_err(|_| Code::BAD_FIELD)?;
    // What means nothing would stand in the entry for ever, shown to all.
    require(membership.until_ms == 0 || matches!(change, Change::Banned | Change::Muted))?;
    require(role == Role::None || matches!(change, Change::Joined | Change::RoleChanged))?;
    match Change::try_from(membership.change) {
        Ok(Change::Joined | Change::Removed | Change::Invited | Change::Unbanned | Change::Unmuted) => {
            require(!membership.users.is_empty())
        }
        Ok(Change::Banned | Change::Muted) => {
            place(membership.until_ms)?;
            require(!membership.users.is_empty())
        }
        Ok(Change::Left | Change::Requested) => require(membership.users.len() <= 1),
        Ok(Change::Declined) => Ok(()),
        Ok(Change::RoleChanged) => require(!membership.users.is_empty() && role != Role::None),
        Ok(Change::ChangeNone) | Err(_) => Err(Code::BAD_FIELD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame, header::class, ids::ChannelId};

    fn send(content: wire::send::Content) -> Frame {
        let id = ClientMessageId::new(1, [0; 10]);
        let body = wire::Send {
            client_message_id: Bytes::copy_from_slice(&id.0),
            content: Some(content),
            ..Default::default()
        };
        let mut bytes = frame::routed(FrameType::Send, class::MESSAGE, 0, 0, ChannelId(7), 1, &body);
        Frame::split_from(&mut bytes).unwrap().unwrap()
    }

    #[test]
    fn a_body_of_16_kib_passes_and_a_byte_more_does_not() {
        for (length, answer) in [(16 * 1024, Ok(())), (16 * 1024 + 1, Err(Code::BODY_TOO_LARGE))] {
            let message = wire::Message { text: "x".repeat(length), ..Default::default() };
            assert_eq!(check(&send(wire::send::Content::Message(message)), true), answer);
        }
    }

    #[test]
    fn an_entry_that_would_not_fit_is_refused() {
        let attachments = (0..3).map(|_| wire::Attachment { url: "x".repeat(2048), ..Default::default() });
        let mut message = wire::Message {
            text: "x".repeat(16 * 1024),
            attachments: attachments.collect(),
            ..Default::default()
        };
        assert_eq!(check(&send(wire::send::Content::Message(message.clone())), true), Ok(()));
        message.attachments.push(wire::Attachment { url: "x".repeat(2048), ..Default::default() });
        assert_eq!(check(&send(wire::send::Content::Message(message)), true), Err(Code::BODY_TOO_LARGE));
    }

    #[test]
    fn repeated_messages_are_counted_before_they_are_decoded() {
        // 30,000 empty attachments: 60 KB on the wire, megabytes once decoded.
        let attachments = vec![wire::Attachment::default(); 30_000];
        let message = wire::Message { attachments, ..Default::default() };
        assert_eq!(check(&send(wire::send::Content::Message(message.clone())), true), Err(Code::BAD_FIELD));
        let edit = wire::Edit { target: 1, message: Some(message) };
        let edit = send(wire::send::Content::Edit(edit));
        assert_eq!(occurrences(&edit.body(), &[7, 2, 5]), Ok(30_000));
        assert_eq!(check(&edit, true), Err(Code::BAD_FIELD));
    }
}
