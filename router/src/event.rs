//! Everything that can reach a shard.

use std::sync::{Arc, atomic::AtomicUsize};

use bytes::Bytes;
use fanfare_activity::Shown;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, MessageId, UserId,
    link::{Downlink, GatewayId, Origin, Up},
    wire,
};
use fanfare_storage::model::{DevicePosition, ListChange, Mark, OutboxRow, User};
use tokio::sync::oneshot;

use crate::{
    admin::{ChannelSummary, Hot, SessionSummary, SessionTrace, ShardCounts},
    load::{Loaded, LoadedUser},
    page::Snapshot,
    push::ViewAsk,
    repeats::{Key, Place},
};

/// One input of a shard. The match on it (`Shard::handle`) is the table of contents of the router.
pub enum Event {
    /// From a gateway.
    Up(Up),
    /// A gateway is there.
    Attach(GatewayId, Arc<dyn Downlink>),
    /// A gateway is gone, and its sessions with it.
    Detach(GatewayId),
    /// For a channel of this shard, from another shard or the process itself.
    Touch(ChannelId, Touch),
    /// A channel was read.
    Loaded(ChannelId, Result<Option<Box<Loaded>>, Code>),
    /// A user was read.
    UserLoaded(UserId, Result<Option<Box<LoadedUser>>, Code>),
    /// A device's positions were read.
    PositionsLoaded(UserId, DeviceId, Result<Vec<DevicePosition>, Code>),
    /// What a parked send waited for is known.
    Checked {
        /// Its channel.
        channel: ChannelId,
        /// Which send.
        key: Key,
        /// What came out.
        check: Check,
    },
    /// What became of a unit of a commit.
    Committed {
        /// Which unit.
        ticket: u64,
        /// What became of it.
        outcome: UnitOutcome,
    },
    /// Outbox rows of this shard are drained.
    Drained(Vec<OutboxRow>),
    /// Cursors handed to the writer stand on disk.
    CursorsWritten(Written),
    /// Frames that a reader made for a session.
    Answer {
        /// For whom.
        origin: Origin,
        /// In this order.
        replies: Vec<Bytes>,
    },
    /// For a user of this shard, from an owner of a channel.
    Word(UserId, Word),
    /// Frames for all sessions of users of this shard, where there are any.
    Tell(Vec<UserId>, Bytes),
    /// Users' lists changed by entries that are committed.
    Listed(Vec<(ListChange, OutboxRow)>),
    /// Open a direct channel that this shard owns, or make a group here.
    Open(Box<OpenAsk>),
    /// What a reader found out about an OPEN.
    OpenLooked(Box<OpenAsk>, Result<OpenFound, Code>),
    /// From people and programs of the server's own.
    Admin(AdminAsk),
    /// Stop: finish what is in flight, then end.
    Stop,
}

/// For a channel, which is loaded first where it is not.
pub enum Touch {
    /// SEND, RECEIPT, COUNTS, FETCH or TYPING.
    Frame(Origin, fanfare_proto::Frame),
    /// A syncing session asks how new the channel is.
    Head {
        /// Who asks.
        origin: Origin,
        /// Of which SYNC.
        sync: u64,
    },
    /// A session is to be served from its position on.
    Subscribe(Subscribe),
    /// A session ended.
    Unsubscribe(Origin),
    /// What a session shows of the channel changed.
    Shows(Origin, Shown),
    /// The user came by a push notification of the channel.
    Tapped(UserId),
    /// A message of this user was replied to, if there is one.
    Replied(Option<UserId>),
    /// A device of the user holds the channel up to there.
    Delivered(UserId, u64),
    /// The answer to OPEN, where the channel exists.
    Opened(Origin, u64),
    /// A reader's view of it.
    Snapshot(oneshot::Sender<Option<Snapshot>>),
    /// One of a direct channel's pair takes nothing from the other any more, or again: it stands in SQL.
    Blocked {
        /// Which way.
        block: Block,
        /// Once it counts.
        reply: oneshot::Sender<()>,
    },
    /// The role of that user (0: no member), and what stands for or against users.
    Marks(UserId, oneshot::Sender<Option<(u8, Vec<Mark>)>>),
    /// For pushes.
    View(Box<ViewAsk>),
    /// For people.
    Describe(Option<UserId>, oneshot::Sender<Option<ChannelSummary>>),
    /// What sessions of these users got of an entry.
    Trace(u64, Vec<UserId>, oneshot::Sender<Vec<SessionTrace>>),
}

/// A block of one of a pair, as written to SQL.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Who decides.
    pub user: UserId,
    /// Whether it stands.
    pub stands: bool,
    /// Blocks are written in this order; word of them may come in another.
    pub order: u64,
}

/// A session to be served.
pub struct Subscribe {
    /// Which.
    pub origin: Origin,
    /// Where it stands (epoch, seq), if known.
    pub position: Option<(u32, u64)>,
    /// The client itself said so in this SYNC.
    pub is_explicit: bool,
    /// How it is to be served.
    pub wants: Wants,
    /// Why.
    pub cause: Cause,
}

/// What decides how a session is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// It has full delivery.
    Full,
    /// Its user's activity, and what it shows of the channel.
    ByTier(Shown),
}

/// Why a session is to be served.
#[derive(Clone)]
pub enum Cause {
    /// By a SYNC: answered with SYNCED, frames within the budget, and word to the user's owner.
    Sync {
        /// Which SYNC of the session.
        sync: u64,
        /// Bytes that frames may still take; empty beyond the window.
        budget: Option<Arc<AtomicUsize>>,
    },
    /// The user joined by this entry: answered with CHANNEL and the frames from there.
    Joined(u64),
}

/// From a channel's owner to a user's.
pub enum Word {
    /// How new the channel is; `None` where the user is no member.
    Head {
        /// Which session.
        origin: Origin,
        /// Of which SYNC.
        sync: u64,
        /// Which channel.
        channel: ChannelId,
        /// Its head's message id, or why it is not known.
        head: Result<Option<MessageId>, Code>,
    },
    /// The session is served.
    Subscribed {
        /// Which session.
        origin: Origin,
        /// Of which SYNC.
        sync: u64,
        /// Which channel.
        channel: ChannelId,
        /// Where it was served from, or `None`; an error where the channel cannot be served now.
        served: Result<Option<(u32, u64)>, Code>,
    },
}

/// What a check of a parked send found.
#[derive(Debug)]
pub enum Check {
    /// An earlier attempt was committed there; and whether the content is the same.
    Repeat(Place, bool),
    /// No earlier attempt was.
    New,
    /// The amended message is there, by that sender.
    Target(UserId),
    /// The named users exist.
    Users,
    /// The send fails.
    Refused(Code),
}

/// What became of a unit.
#[derive(Clone, Debug)]
pub enum UnitOutcome {
    /// Committed and flushed, as this outbox row.
    Done(OutboxRow),
    /// Nothing was changed, and nothing will be.
    Failed {
        /// What senders are told.
        code: Code,
        /// The channels do not stand as this owner believes.
        reload: bool,
    },
    /// Not known yet; another outcome follows.
    Unknown,
}

/// What the cursors' writer wrote.
pub enum Written {
    /// Cursors of a channel's members.
    Channel(ChannelId, Vec<UserId>),
    /// Positions and the confirmed ACK of a device.
    Device(UserId, DeviceId, u64),
}

/// An OPEN on its way.
#[derive(Clone)]
pub struct OpenAsk {
    /// The session that asks; `None` for people of the server's own, answered by `reply`.
    pub origin: Option<Origin>,
    /// Its request number.
    pub request: u64,
    /// Who opens.
    pub user: UserId,
    /// The idempotency key.
    pub client_message_id: ClientMessageId,
    /// What is asked for.
    pub target: OpenTarget,
    /// Groups of the user made at about that time by the owner asked: one may be it.
    pub candidates: Vec<ChannelId>,
    /// Where the server's own people wait.
    pub reply: Option<OpenReply>,
}

/// Answers an OPEN of the server's own people.
pub type OpenReply = Arc<std::sync::Mutex<Option<oneshot::Sender<Result<ChannelId, Code>>>>>;

/// What an OPEN asks for.
#[derive(Clone)]
pub enum OpenTarget {
    /// The channel of a pair.
    Direct(UserId),
    /// A new group.
    Group(wire::Group),
}

/// What is there of what an OPEN asks for.
pub enum OpenFound {
    /// The channel.
    Channel(ChannelId),
    /// Nothing: it is to be made.
    Nothing {
        /// Of a pair: whether the first blocks the second, and the other way round.
        blocks: (bool, bool),
    },
}

/// Questions of the server's own people to one shard.
pub enum AdminAsk {
    /// A new id of this shard.
    NewId(oneshot::Sender<u64>),
    /// A user's sessions.
    Sessions(UserId, oneshot::Sender<Vec<SessionSummary>>),
    /// A user's channels.
    Channels(UserId, oneshot::Sender<Vec<ChannelId>>),
    /// End a user's sessions (of one device, where given) with this error; gives how many.
    Kick(UserId, Option<DeviceId>, Code, oneshot::Sender<usize>),
    /// The device's generation was raised.
    Revoked(UserId, DeviceId, u32, oneshot::Sender<usize>),
    /// The user's row changed in SQL: its sessions end with this error. Gives the devices that the owner knows.
    UserRevoked(User, Code, oneshot::Sender<Vec<DeviceId>>),
    /// In the pair's shard: one takes nothing from the other, who is named, any more, or again.
    Blocked(Block, UserId, oneshot::Sender<()>),
    /// The user's row was made.
    Forget(UserId),
    /// How much there is.
    Counts(oneshot::Sender<ShardCounts>),
    /// The busiest channels, at most so many.
    Hottest(usize, oneshot::Sender<Vec<Hot>>),
    /// Entries whose rows are not drained.
    Undrained(oneshot::Sender<Vec<(OutboxRow, ChannelId, u64)>>),
}
