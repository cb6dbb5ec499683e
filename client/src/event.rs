//! What the SDK tells an application.

use std::{sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, MessageId, Seq, SessionId, UserId,
    header::flags,
    wire::{self, entry::Content},
};

use crate::store::StoreError;

/// Something that happened. Clones are cheap.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The connection's state changed.
    State(State),
    /// A new entry of a channel. Live ones come in ascending order; those that fill a gap come later, ascending among themselves.
    Entry(Arc<Entry>),
    /// A channel as it stands now: its head, its unread count, its membership, or how far the user has read have changed. What comes in a
    /// burst is told once.
    ChannelChanged(Arc<wire::ChannelState>),
    /// The user is no longer a member.
    ChannelLeft(ChannelId),
    /// The user may join this group: see [`Client::join`](crate::Client::join) and [`Client::decline`](crate::Client::decline).
    Invited {
        /// The group.
        channel: ChannelId,
        /// What it is called.
        name: String,
    },
    /// An invitation was taken back or turned down.
    InvitationOver(ChannelId),
    /// Cursors of other members moved.
    Receipt {
        /// The channel.
        channel: ChannelId,
        /// The cursors.
        cursors: Arc<[wire::Cursor]>,
    },
    /// Somebody types, or stopped.
    Typing {
        /// The channel.
        channel: ChannelId,
        /// Who.
        user: UserId,
        /// Stopped.
        stopped: bool,
    },
    /// Users that are watched, as they stand from now on; those not named stand as they did.
    Presence(Arc<[wire::UserPresence]>),
    /// Who may see whether the user is online, as it is set from now on.
    SeenBy(wire::Audience),
    /// Entries that were missing have come; nothing in this range is missing any more.
    GapFilled {
        /// The channel.
        channel: ChannelId,
        /// First seq.
        first: Seq,
        /// Last seq.
        last: Seq,
    },
    /// More was missed than is fetched by itself: ask [`Client::history`](crate::Client::history) for what of this range is wanted.
    Skipped {
        /// The channel.
        channel: ChannelId,
        /// First seq.
        first: Seq,
        /// Last seq.
        last: Seq,
    },
    /// A restore rewound the channel: entries at or above `from` that came before are void.
    Rewound {
        /// The channel.
        channel: ChannelId,
        /// First seq that is void.
        from: Seq,
    },
    /// Where all channels stand is known.
    Synced {
        /// Channels of the user.
        channels: u32,
    },
    /// Something sent without waiting for an answer (a receipt, typing) was refused.
    Failed {
        /// Why.
        code: Code,
        /// For people.
        text: String,
    },
    /// The store fails. The client goes on, and tries it again; until then new sends fail, and nothing is kept.
    StoreFailed(StoreError),
    /// This subscriber read too slowly and lost so many events; what it holds of channels may have holes.
    Lagged(u64),
}

/// How the client stands with its server.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// No connection.
    Disconnected {
        /// Why, where a number said it.
        code: Option<Code>,
        /// For people.
        reason: String,
        /// Until the next attempt.
        retry_in: Duration,
    },
    /// An attempt is on its way.
    Connecting,
    /// A session is open.
    Connected {
        /// The user.
        user: UserId,
        /// The session.
        session: SessionId,
        /// Opened by the resume secret, without a token.
        resumed: bool,
    },
    /// Over for good: closed by the application, or a reason that would come again.
    Closed {
        /// Why, where a number said it.
        code: Option<Code>,
        /// For people.
        reason: String,
    },
}

/// One entry of a channel's log.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// The channel.
    pub channel: ChannelId,
    /// Its place: dense from 1.
    pub seq: Seq,
    /// Epoch of the place.
    pub epoch: u32,
    /// Its name everywhere and for ever.
    pub id: MessageId,
    /// How many entries up to this one count as unread.
    pub ordinal: u64,
    /// Who; 0: the server.
    pub sender: UserId,
    /// The sender's idempotency key; none from the server.
    pub client_message_id: Option<ClientMessageId>,
    /// It counts as unread.
    pub counted: bool,
    /// Recalled or erased: there is no content.
    pub stub: bool,
    /// What it says; `None` for stubs and for kinds of later versions.
    pub content: Option<Content>,
}

impl Entry {
    /// Reads a DELIVER frame.
    ///
    /// # Errors
    /// `BAD_BODY`, or `BAD_FIELD` for a frame without a channel.
    pub fn decode(frame: &Frame) -> Result<Self, Code> {
        let routed = *frame.routed().ok_or(Code::BAD_FIELD)?;
        let entry: wire::Entry = frame.decode()?;
        Ok(Self {
            channel: routed.channel,
            seq: routed.seq,
            epoch: entry.epoch,
            id: MessageId(entry.message_id),
            ordinal: entry.ordinal,
            sender: UserId(entry.sender),
            client_message_id: ClientMessageId::from_wire(&entry.client_message_id),
            counted: routed.short.flags & flags::COUNTED != 0,
            stub: routed.short.flags & flags::STUB != 0,
            content: entry.content,
        })
    }

    /// The message, where it is one.
    pub fn message(&self) -> Option<&wire::Message> {
        match &self.content {
            Some(Content::Message(message)) => Some(message),
            _ => None,
        }
    }

    /// The message's text, where it is one and not opaque.
    pub fn text(&self) -> Option<&str> {
        self.message().map(|message| message.text.as_str()).filter(|text| !text.is_empty())
    }

    /// Server's time, Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.id.time_ms()
    }
}

/// A part of a channel's history.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Entries, ascending.
    pub entries: Vec<Arc<Entry>>,
    /// Newest edit or recall, and reactions, of messages among them.
    pub amendments: Vec<Amendment>,
    /// Lowest seq covered; ask with `before` = this for what is older.
    pub first: Seq,
    /// Highest seq covered.
    pub last: Seq,
    /// The channel's head when it was answered.
    pub head: Seq,
    /// All that was asked for is here: nothing older is in the asked range.
    pub complete: bool,
    /// It comes from the store, as there was no connection: there may be newer entries, and reactions are those of entries held.
    pub offline: bool,
}

/// What became of a message after it was sent.
#[derive(Clone, Debug)]
pub struct Amendment {
    /// The message's seq.
    pub target: Seq,
    /// Its newest edit or recall.
    pub newest: Option<Arc<Entry>>,
    /// Reactions by emoji.
    pub reactions: Vec<wire::ReactionCount>,
}

impl History {
    /// Puts the pages of one answer (newest first) together.
    pub(crate) fn of_pages(mut pages: Vec<wire::Page>) -> Result<Self, Code> {
        pages.sort_unstable_by_key(|page| page.first);
        let mut history = Self { complete: pages.iter().any(|page| page.complete), ..Self::default() };
        let covering = || pages.iter().filter(|page| page.first <= page.last);
        history.first = covering().map(|page| page.first).min().unwrap_or(0);
        history.last = covering().map(|page| page.last).max().unwrap_or(0);
        history.head = pages.iter().map(|page| page.head).max().unwrap_or(0);
        for page in pages {
            for frame in Frame::iter(page.frames) {
                history.entries.push(Arc::new(Entry::decode(&frame?)?));
            }
            for amendment in page.amendments {
                let mut frame = amendment.frame;
                let newest = match Frame::split_from(&mut frame)? {
                    Some(frame) => Some(Arc::new(Entry::decode(&frame)?)),
                    None => None,
                };
                history.amendments.push(Amendment {
                    target: amendment.target,
                    newest,
                    reactions: amendment.reactions,
                });
            }
        }
        Ok(history)
    }
}
