//! The rows that stores keep and owners exchange with them.

use bytes::Bytes;
use fanfare_proto::{ChannelId, ClientMessageId, DeviceId, MessageId, UserId};

/// SHA-256 of a stored frame, or a link of a channel's hash chain.
pub type Hash = [u8; 32];

/// The keyed hash of a client message id: HMAC-SHA-256 under the deployment's key, first 16 bytes.
pub type ClientIdHash = [u8; 16];

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A message.
    Message = 1,
    /// A newer body of a message.
    Edit = 2,
    /// A message taken back.
    Recall = 3,
    /// A reaction set or taken back.
    Reaction = 4,
    /// Members came, went or changed role.
    Membership = 5,
    /// The channel's name or policies changed.
    ChannelChange = 6,
}

impl EntryKind {
    /// The kind of that number.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Message, Self::Edit, Self::Recall, Self::Reaction, Self::Membership, Self::ChannelChange]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }

    /// Whether it counts as unread (moves the ordinal).
    pub fn is_counted(self) -> bool {
        self == Self::Message
    }
}

/// One entry's metadata with its stored frame.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Primary key, in arrival order.
    pub message_id: MessageId,
    /// Its channel.
    pub channel: ChannelId,
    /// The channel's epoch.
    pub epoch: u32,
    /// Its place.
    pub seq: u64,
    /// Entries up to this one that count as unread.
    pub ordinal: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Who sent it; 0 for the server itself.
    pub sender: UserId,
    /// The idempotency key, hashed. All zero for entries without one.
    pub client_id: ClientIdHash,
    /// The seq that an edit, recall or reaction amends; else 0.
    pub target: u64,
    /// SHA-256 of `frame`.
    pub hash: Hash,
    /// The whole DELIVER frame, as delivered.
    pub frame: Bytes,
}

/// The head of a channel, moved by compare-and-set: `WHERE head = first_seq - 1`.
#[derive(Clone, Debug)]
pub struct HeadMove {
    /// Which channel.
    pub channel: ChannelId,
    /// The epoch of the entries.
    pub epoch: u32,
    /// The first seq of this commit.
    pub first_seq: u64,
    /// The new head.
    pub head: u64,
    /// The new head's ordinal.
    pub ordinal: u64,
    /// The new head's message id; holds the time of the newest activity.
    pub message_id: MessageId,
    /// The hash chain up to the new head: SHA-256(previous chain, epoch, seq, hash), all big-endian.
    pub chain: Hash,
}

/// A channel as it stands in SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its id.
    pub channel: ChannelId,
    /// 1 direct, 2 group (`wire::ChannelKind`).
    pub kind: u8,
    /// Empty for direct channels.
    pub name: String,
    /// `wire::HistoryPolicy`.
    pub history: u8,
    /// `wire::JoinPolicy`.
    pub join: u8,
    /// `wire::PostingPolicy`.
    pub posting: u8,
    /// The two users of a direct channel, lower first; 0 in groups.
    pub pair: (UserId, UserId),
    /// The epoch; raised by a restore that rewinds the log.
    pub epoch: u32,
    /// The first seq of that epoch.
    pub epoch_start: u64,
    /// Newest committed seq, 0 at first.
    pub head: u64,
    /// Its ordinal.
    pub ordinal: u64,
    /// Its message id, 0 at first.
    pub message_id: MessageId,
    /// The hash chain up to the head.
    pub chain: Hash,
}

/// A membership as the channel has it, which is the truth about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// `wire::Role`: 1 member, 2 admin, 3 owner.
    pub role: u8,
    /// Seq of the entry by which the user joined.
    pub joined_seq: u64,
    /// Seq of the entry by which the user left or was removed; 0 while a member.
    pub left_seq: u64,
    /// First seq the member may see.
    pub visible_from: u64,
}

/// A past stretch of membership is kept as a row of its own so that hidden ranges stay right after rejoining:
/// what a user may see is the union of `visible_from ..= left_seq` over all its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// In which channel.
    pub channel: ChannelId,
    /// The row as it stands after the change, keyed (channel, user, joined_seq).
    pub member: Member,
}

/// What may stand for or against a user in a channel, beside membership.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum MarkKind {
    /// May not say anything.
    Muted = 1,
    /// May not come in.
    Banned = 2,
    /// May come in.
    Invited = 3,
    /// Asked to come in.
    Requested = 4,
    /// Turned an invitation down, or was turned down: for a while it does not begin anew.
    Declined = 5,
}

impl MarkKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Muted, Self::Banned, Self::Invited, Self::Requested, Self::Declined];

    /// The kind of that number.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == value)
    }
}

/// A mark as the channel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// On whom.
    pub user: UserId,
    /// Which.
    pub kind: MarkKind,
    /// Until when it counts, Unix milliseconds; 0 for no end.
    pub until_ms: u64,
    /// Seq of the entry by which it was set.
    pub seq: u64,
}

/// A mark set or taken away by an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkChange {
    /// In which channel.
    pub channel: ChannelId,
    /// The mark; one of the same user and kind is replaced.
    pub mark: Mark,
    /// Whether it stands after the change.
    pub stands: bool,
}

/// A channel's name and policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Empty for direct channels.
    pub name: String,
    /// `wire::HistoryPolicy`.
    pub history: u8,
    /// `wire::JoinPolicy`.
    pub join: u8,
    /// `wire::PostingPolicy`.
    pub posting: u8,
}

/// A user's list of channels, kept by the lists sink: a projection of the memberships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListChange {
    /// Whose list.
    pub user: UserId,
    /// Which channel.
    pub channel: ChannelId,
    /// Seq of the entry that caused it: a change never overwrites one of a higher seq.
    pub seq: u64,
    /// Whether the channel stands in the list after it.
    pub listed: bool,
}

/// What one shard adds to a group commit.
#[derive(Clone, Debug, Default)]
pub struct ShardCommit {
    /// Which shard.
    pub shard: u16,
    /// The lease's term; an older one is fenced off.
    pub term: u64,
    /// The highest id the shard has given, moved in the same transaction.
    pub last_id: u64,
    /// Channels made by this commit (with head = 0: their entries move it), inserted first.
    pub channels: Vec<Channel>,
    /// Heads moved, one row a channel.
    pub heads: Vec<HeadMove>,
    /// Entries, in seq order per channel.
    pub entries: Vec<Entry>,
    /// Members that changed by these entries.
    pub members: Vec<MemberChange>,
    /// What stands for or against users by these entries.
    pub marks: Vec<MarkChange>,
    /// Names and policies that changed by these entries.
    pub settings: Vec<(ChannelId, Settings)>,
    /// Users' lists that change; carried in the outbox row and applied by the lists sink.
    pub lists: Vec<ListChange>,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub user: UserId,
    /// Unique, as people see it.
    pub name: String,
    /// Bits: see the constants.
    pub flags: u32,
    /// Tokens issued before this time are void, Unix seconds; raised by revocation.
    pub tokens_from_s: u64,
}

impl User {
    /// May ask for full delivery (bots, bridges, load tests).
    pub const FULL_DELIVERY: u32 = 1;
    /// Cannot connect.
    pub const DISABLED: u32 = 2;
    /// Is a bot.
    pub const BOT: u32 = 4;
    /// May use the server's admin API with a token of its own.
    pub const ADMINISTRATOR: u32 = 8;
    /// Everyone may see whether the user is online; without it and the next one, who shares a channel.
    pub const SEEN_BY_EVERYONE: u32 = 16;
    /// Nobody may.
    pub const SEEN_BY_NOBODY: u32 = 32;
}

/// A device of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// As the client calls it.
    pub name: String,
    /// Raised by revocation; a resume secret of an older generation is refused.
    pub generation: u32,
    /// The newest ACK whose positions are all written.
    pub acks_confirmed: u64,
    /// Unix milliseconds of the last open or close.
    pub seen_ms: u64,
}

/// How far a device holds a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePosition {
    /// Whose.
    pub user: UserId,
    /// Which device.
    pub device: DeviceId,
    /// Which channel.
    pub channel: ChannelId,
    /// Of which epoch.
    pub epoch: u32,
    /// Everything up to here is held.
    pub seq: u64,
}

/// How far a user has got in a channel, over all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UserCursor {
    /// Which channel.
    pub channel: ChannelId,
    /// Whose.
    pub user: UserId,
    /// Delivered to some device up to here.
    pub delivered: u64,
    /// Read up to here.
    pub read: u64,
    /// Ordinal at `read`.
    pub read_ordinal: u64,
}

/// What one flush of cursors writes. All are merged as maxima (positions by (epoch, seq)).
#[derive(Clone, Debug, Default)]
pub struct CursorBatch {
    /// Users' cursors.
    pub cursors: Vec<UserCursor>,
    /// Devices' positions.
    pub positions: Vec<DevicePosition>,
    /// Devices seen, made, or whose confirmed ACK moved.
    pub devices: Vec<Device>,
    /// How active members are.
    pub activities: Vec<Activity>,
}

impl CursorBatch {
    /// Rows of all kinds.
    pub fn rows(&self) -> usize {
        self.cursors.len() + self.positions.len() + self.devices.len() + self.activities.len()
    }

    /// Adds another's rows.
    pub fn append(&mut self, other: &mut Self) {
        self.cursors.append(&mut other.cursors);
        self.positions.append(&mut other.positions);
        self.devices.append(&mut other.devices);
        self.activities.append(&mut other.activities);
    }
}

/// How active a member is in a channel, as of a seq: the parts of a score. The one of the highest seq counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Activity {
    /// Where.
    pub channel: ChannelId,
    /// Who.
    pub user: UserId,
    /// When the fast counter will have fallen to 1.
    pub fast: u32,
    /// When the slow counter will have fallen to 1.
    pub slow: u32,
    /// When the member last acted.
    pub acted: u32,
    /// The newest entry that is counted in it.
    pub seq: u64,
}

/// One entry of an outbox row's directory, as the owner keeps it until the row is drained.
#[derive(Clone, Debug)]
pub struct Undrained {
    /// The outbox row that holds the frame.
    pub row: OutboxRow,
    /// The entry with its frame.
    pub entry: Entry,
}

/// The number of an outbox row; rows of later commits have higher numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OutboxRow(pub u64);

/// One outbox row, as drains take it: what one transaction committed, of all shards that were in it.
#[derive(Clone, Debug)]
pub struct OutboxBatch {
    /// Its number.
    pub row: OutboxRow,
    /// When it was committed, Unix milliseconds.
    pub committed_ms: u64,
    /// The entries with their frames, each shard's in its order.
    pub entries: Vec<Entry>,
    /// Changes of users' lists.
    pub lists: Vec<ListChange>,
}

/// What identifies a repeat, searched for among a channel's entries.
#[derive(Clone, Copy, Debug)]
pub struct RepeatQuery {
    /// In which channel.
    pub channel: ChannelId,
    /// Of which sender.
    pub sender: UserId,
    /// Which client message id.
    pub client_message_id: ClientMessageId,
    /// Unix milliseconds, inclusive.
    pub from_ms: u64,
    /// Unix milliseconds, inclusive.
    pub to_ms: u64,
    /// Entries that may be looked at.
    pub entries_max: usize,
}
