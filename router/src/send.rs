//! What a SEND says, checked against every bound that does not need the channel.

use fanfare_proto::{
    ClientMessageId, Code, Frame, UserId,
    header::flags,
    limits::{
        ATTACHMENTS_MAX, BODY_BYTES_MAX, CLIENT_ID_AGE_MAX, CLIENT_ID_AHEAD_MAX, EMOJI_BYTES_MAX,
        ENTRY_BYTES_MAX, MEMBERS_PER_ENTRY_MAX, NAME_BYTES_MAX, REPEATED_MAX,
    },
    wire::{self, send::Content},
};
use fanfare_storage::model::EntryKind;
use std::hash::{BuildHasher, Hasher};

use crate::members::role;

/// Bytes of an attachment's URL.
const URL_BYTES_MAX: usize = 2_048;
/// Bytes of an attachment's preview.
const PREVIEW_BYTES_MAX: usize = 2_048;
/// Bytes an entry has beside its content: header, ids and lengths.
pub const ENTRY_OVERHEAD_BYTES: usize = 24 + 64;

/// What a send asks for, as far as the channel must understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A message.
    Message {
        /// It mentions everyone.
        mention_all: bool,
        /// It mentions them.
        mentions: Vec<UserId>,
        /// A seq below its own, or 0.
        reply_to: u64,
        /// Its body is opaque.
        opaque: bool,
    },
    /// A newer body of a message.
    Edit {
        /// Its seq.
        target: u64,
    },
    /// A message taken back.
    Recall {
        /// Its seq.
        target: u64,
    },
    /// A reaction set or taken back.
    Reaction {
        /// The seq reacted to.
        target: u64,
    },
    /// Users join.
    Joined {
        /// Who.
        users: Vec<UserId>,
        /// As what.
        role: u8,
    },
    /// The sender leaves.
    Left,
    /// Users are removed.
    Removed {
        /// Who.
        users: Vec<UserId>,
    },
    /// Users get a role.
    RoleChanged {
        /// Who.
        users: Vec<UserId>,
        /// Which.
        role: u8,
    },
    /// Name or policies change.
    ChannelChange {
        /// The new name, if it changes.
        name: Option<String>,
        /// `wire::HistoryPolicy`, 0 for unchanged.
        history: u8,
        /// `wire::JoinPolicy`, 0 for unchanged.
        join: u8,
        /// `wire::PostingPolicy`, 0 for unchanged.
        posting: u8,
    },
    /// Users may come in if they want to.
    Invited {
        /// Who.
        users: Vec<UserId>,
    },
    /// The sender asks to come in.
    Requested,
    /// Invitations or requests are taken back or turned down.
    Declined {
        /// Whose.
        users: Vec<UserId>,
    },
    /// Users go and may not come in again.
    Banned {
        /// Who.
        users: Vec<UserId>,
        /// Until when, Unix milliseconds; 0 for no end.
        until_ms: u64,
    },
    /// They may again.
    Unbanned {
        /// Who.
        users: Vec<UserId>,
    },
    /// Members may not say anything.
    Muted {
        /// Who.
        users: Vec<UserId>,
        /// Until when, Unix milliseconds; 0 for no end.
        until_ms: u64,
    },
    /// They may again.
    Unmuted {
        /// Who.
        users: Vec<UserId>,
    },
}

impl Meaning {
    /// The kind of entry it becomes.
    pub fn kind(&self) -> EntryKind {
        match self {
            Self::Message { .. } => EntryKind::Message,
            Self::Edit { .. } => EntryKind::Edit,
            Self::Recall { .. } => EntryKind::Recall,
            Self::Reaction { .. } => EntryKind::Reaction,
            Self::Joined { .. }
            | Self::Left
            | Self::Removed { .. }
            | Self::RoleChanged { .. }
            | Self::Invited { .. }
            | Self::Requested
            | Self::Declined { .. }
            | Self::Banned { .. }
            | Self::Unbanned { .. }
            | Self::Muted { .. }
            | Self::Unmuted { .. } => EntryKind::Membership,
            Self::ChannelChange { .. } => EntryKind::ChannelChange,
        }
    }

    /// The seq it amends, or 0.
    pub fn target(&self) -> u64 {
        match self {
            Self::Edit { target } | Self::Recall { target } | Self::Reaction { target } => *target,
            _ => 0,
        }
    }

    /// The users it names who have to exist.
    pub fn named(&self) -> &[UserId] {
        match self {
            Self::Joined { users, .. } | Self::Invited { users } | Self::Banned { users, .. } => users,
            _ => &[],
        }
    }

    /// Whether it changes what later sends are checked against: it is the last of its commit.
    pub fn is_barrier(&self) -> bool {
        matches!(self.kind(), EntryKind::Membership | EntryKind::ChannelChange | EntryKind::Recall)
    }
}

/// A send, parsed.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The idempotency key.
    pub client_message_id: ClientMessageId,
    /// The times of the first and last attempt before this one, where it is a retry; Unix milliseconds.
    pub retry_ms: Option<(u64, u64)>,
    /// What it asks for.
    pub meaning: Meaning,
    /// The content as it stands in the entry: the protobuf field with its tag.
    pub content: Vec<u8>,
    /// Tells contents apart.
    pub fingerprint: u64,
}

/// Why a send is refused before it is looked at further, with the id to answer to (as it came).
pub type Refusal = (Code, Vec<u8>);

/// Reads a SEND of `sender`.
///
/// # Errors
/// `BAD_BODY`, `BAD_FIELD`, `BODY_TOO_LARGE`, `CLIENT_ID_AHEAD`, `EXPIRED`.
pub fn parse(frame: &Frame, sender: UserId, now_ms: u64) -> Result<Parsed, Refusal> {
    let mut send: wire::Send = frame.decode().map_err(|code| (code, Vec::new()))?;
    let refuse = |code: Code| (code, send.client_message_id.iter().copied().take(16).collect::<Vec<u8>>());
    let id = ClientMessageId::from_wire(&send.client_message_id).ok_or_else(|| refuse(Code::BAD_FIELD))?;
    if id.time_ms() > now_ms + CLIENT_ID_AHEAD_MAX.as_millis() as u64 {
        return Err(refuse(Code::CLIENT_ID_AHEAD));
    }
    if id.time_ms() + (CLIENT_ID_AGE_MAX.as_millis() as u64) < now_ms {
        return Err(refuse(Code::EXPIRED));
    }
    if let Some(Content::Membership(membership)) = &mut send.content
        && membership.users.is_empty()
        && matches!(
            membership.change(),
            wire::MembershipChange::Left
                | wire::MembershipChange::Requested
                | wire::MembershipChange::Declined
        )
    {
        membership.users.push(sender.0);
    }
    let content = send.content.as_ref().ok_or_else(|| refuse(Code::BAD_FIELD))?;
    let meaning = meaning(content, sender).map_err(refuse)?;
    let retry = frame.header.short().flags & flags::RETRY != 0;
    let mut bytes = Vec::with_capacity(content.encoded_len());
    content.encode(&mut bytes);
    if bytes.len() + ENTRY_OVERHEAD_BYTES > ENTRY_BYTES_MAX {
        return Err(refuse(Code::BODY_TOO_LARGE));
    }
    Ok(Parsed {
        client_message_id: id,
        retry_ms: retry.then_some((send.first_attempt_ms, send.last_attempt_ms.max(send.first_attempt_ms))),
        meaning,
        fingerprint: fingerprint(&bytes),
        content: bytes,
    })
}

/// Tells contents apart: the same bytes have the same number within a process.
pub fn fingerprint(content: &[u8]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0x66616e66).build_hasher();
    hasher.write(content);
    hasher.finish()
}

fn meaning(content: &Content, sender: UserId) -> Result<Meaning, Code> {
    match content {
        Content::Message(message) => check_message(message).map(|()| Meaning::Message {
            mention_all: message.mention_all,
            mentions: mentioned(&message.mentions),
            reply_to: message.reply_to,
            opaque: !message.opaque.is_empty(),
        }),
        Content::Edit(edit) => {
            check_message(edit.message.as_ref().ok_or(Code::BAD_FIELD)?)?;
            target(edit.target).map(|target| Meaning::Edit { target })
        }
        Content::Recall(recall) => target(recall.target).map(|target| Meaning::Recall { target }),
        Content::Reaction(reaction) => {
            if reaction.emoji.is_empty() || reaction.emoji.len() > EMOJI_BYTES_MAX {
                return Err(Code::BAD_FIELD);
            }
            target(reaction.target).map(|target| Meaning::Reaction { target })
        }
        Content::Membership(membership) => check_membership(membership, sender),
        Content::ChannelChange(change) => {
            let policy = |value: i32, most: u8| {
                u8::try_from(value).ok().filter(|value| *value <= most).ok_or(Code::BAD_FIELD)
            };
            let name = change.name.clone();
            if name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) || change.kind != 0 {
                return Err(Code::BAD_FIELD);
            }
            let (history, join) = (policy(change.history, 2)?, policy(change.join, 3)?);
            Ok(Meaning::ChannelChange { name, history, join, posting: policy(change.posting, 2)? })
        }
    }
}

fn target(seq: u64) -> Result<u64, Code> {
    if seq == 0 || seq >> 63 != 0 { Err(Code::BAD_FIELD) } else { Ok(seq) }
}

/// Whom a message mentions, each once.
fn mentioned(mentions: &[u64]) -> Vec<UserId> {
    let mut mentioned: Vec<UserId> = mentions.iter().copied().map(UserId).collect();
    mentioned.sort_unstable();
    mentioned.dedup();
    mentioned
}

fn check_membership(membership: &wire::Membership, sender: UserId) -> Result<Meaning, Code> {
    let change = wire::MembershipChange::try_from(membership.change).map_err(|_| Code::BAD_FIELD)?;
    if membership.users.is_empty() || membership.users.len() > MEMBERS_PER_ENTRY_MAX {
        return Err(Code::BAD_FIELD);
    }
    let until_ms = membership.until_ms;
    if until_ms >> 63 != 0 {
        return Err(Code::BAD_FIELD);
    }
    let mut users: Vec<UserId> = membership.users.iter().copied().map(UserId).collect();
    if users.iter().any(|user| user.is_none() || user.0 >> 63 != 0) {
        return Err(Code::BAD_FIELD);
    }
    users.sort_unstable();
    users.dedup();
    let role =
        u8::try_from(membership.role).ok().filter(|role| *role <= role::OWNER).ok_or(Code::BAD_FIELD)?;
    match change {
        wire::MembershipChange::Joined if role <= role::MEMBER => {
            Ok(Meaning::Joined { users, role: role::MEMBER })
        }
        wire::MembershipChange::Joined => Err(Code::BAD_FIELD),
        wire::MembershipChange::Left if users == [sender] => Ok(Meaning::Left),
        wire::MembershipChange::Removed => Ok(Meaning::Removed { users }),
        wire::MembershipChange::RoleChanged if role > 0 => Ok(Meaning::RoleChanged { users, role }),
        wire::MembershipChange::Invited => Ok(Meaning::Invited { users }),
        wire::MembershipChange::Requested if users == [sender] => Ok(Meaning::Requested),
        wire::MembershipChange::Declined => Ok(Meaning::Declined { users }),
        wire::MembershipChange::Banned => Ok(Meaning::Banned { users, until_ms }),
        wire::MembershipChange::Unbanned => Ok(Meaning::Unbanned { users }),
        wire::MembershipChange::Muted => Ok(Meaning::Muted { users, until_ms }),
        wire::MembershipChange::Unmuted => Ok(Meaning::Unmuted { users }),
        _ => Err(Code::BAD_FIELD),
    }
}

fn check_message(message: &wire::Message) -> Result<(), Code> {
    if message.text.len() + message.opaque.len() > BODY_BYTES_MAX {
        return Err(Code::BODY_TOO_LARGE);
    }
    let fits = |text: &str| text.len() <= NAME_BYTES_MAX;
    let attachment_is_sound = |one: &wire::Attachment| {
        fits(&one.id)
            && fits(&one.name)
            && fits(&one.content_type)
            && one.url.len() <= URL_BYTES_MAX
            && one.preview.len() <= PREVIEW_BYTES_MAX
            && matches!(one.sha256.len(), 0 | 32)
    };
    let sound = (!message.text.is_empty() || !message.opaque.is_empty() || !message.attachments.is_empty())
        && message.mentions.len() <= REPEATED_MAX
        && message.attachments.len() <= ATTACHMENTS_MAX
        && fits(&message.content_type)
        && message.reply_to >> 63 == 0
        && message.attachments.iter().all(attachment_is_sound);
    if sound { Ok(()) } else { Err(Code::BAD_FIELD) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_proto::{ChannelId, FrameType, frame::routed};

    const NOW: u64 = 1_800_000_000_000;

    fn frame(content: Content, at_ms: u64) -> Frame {
        let id = ClientMessageId::new(at_ms, [3; 10]);
        let send = wire::Send {
            client_message_id: id.0.to_vec().into(),
            content: Some(content),
            ..Default::default()
        };
        let mut bytes = routed(FrameType::Send, 1, 0, 0, ChannelId(9), 1, &send);
        Frame::split_from(&mut bytes).unwrap().unwrap()
    }

    fn code(content: Content, at_ms: u64) -> Option<Code> {
        parse(&frame(content, at_ms), UserId(1), NOW).err().map(|(code, _)| code)
    }

    fn text(bytes: usize) -> Content {
        Content::Message(wire::Message { text: "x".repeat(bytes), ..Default::default() })
    }

    #[test]
    fn bounds_are_those_of_the_protocol() {
        assert_eq!(code(text(BODY_BYTES_MAX), NOW), None);
        assert_eq!(code(text(BODY_BYTES_MAX + 1), NOW), Some(Code::BODY_TOO_LARGE));
        assert_eq!(code(text(0), NOW), Some(Code::BAD_FIELD));
        assert_eq!(code(text(1), NOW + 120_000), None);
        assert_eq!(code(text(1), NOW + 120_001), Some(Code::CLIENT_ID_AHEAD));
        assert_eq!(code(text(1), NOW - 7 * 24 * 3_600_000 - 1), Some(Code::EXPIRED));
        let reaction =
            |emoji: &str| Content::Reaction(wire::Reaction { target: 1, emoji: emoji.into(), remove: false });
        assert_eq!(code(reaction(""), NOW), Some(Code::BAD_FIELD));
        assert_eq!(code(reaction("+1"), NOW), None);
        assert_eq!(code(Content::Recall(wire::Recall { target: 0 }), NOW), Some(Code::BAD_FIELD));
        let change = wire::MembershipChange::Left.into();
        let left =
            |users: Vec<u64>| Content::Membership(wire::Membership { change, users, ..Default::default() });
        assert_eq!(code(left(vec![]), NOW), None);
        assert_eq!(code(left(vec![2]), NOW), Some(Code::BAD_FIELD));
    }
}
