//! What a client session tells its owner, and how a session ends.

use crate::{
    error::{Code, Policy},
    frame::Frame,
    ids::{ChannelId, Seq},
    wire,
};

/// Something that happened in a session. Bodies of DELIVER are not decoded: see [`Frame::decode`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The session is open; with `sync` in the options SYNC is already on its way.
    Welcome(Box<wire::Welcome>),
    /// A DELIVER frame of an entry not held before; it is held now.
    Deliver(Frame),
    /// The channel's head stands there, by word of NOTIFY to a session with tiers: what of the entries behind `after` is not held was not
    /// sent. FETCH it when the user looks.
    Notified {
        /// The channel.
        channel: ChannelId,
        /// End of what is held without a hole.
        after: Seq,
        /// Newest seq of the channel.
        head: Seq,
        /// Messages up to it.
        ordinal: u64,
    },
    /// Entries behind `after` up to `head` were not sent, by word of GAP, or of NOTIFY to a session with full delivery: FETCH what of them
    /// is wanted.
    Gap {
        /// The channel.
        channel: ChannelId,
        /// End of what is held without a hole.
        after: Seq,
        /// Newest seq of the channel.
        head: Seq,
    },
    /// The server broke a rule; `after` and `before` bound what must be fetched, both not included.
    Defect {
        /// The channel.
        channel: ChannelId,
        /// Which rule.
        kind: Defect,
        /// Newest seq before the hole.
        after: Seq,
        /// Seq that came behind it.
        before: Seq,
    },
    /// The channel's epoch rose: a restore rewound its log, entries at or above `from` that were held are void.
    Rewound {
        /// The channel.
        channel: ChannelId,
        /// The new epoch.
        epoch: u32,
        /// Its first seq.
        from: Seq,
    },
    /// Where channels stand; behind the last of them `complete` is set.
    Synced(Box<wire::Synced>),
    /// A channel as it stands for this user: the answer to OPEN, or with `request` 0 word of a changed membership.
    /// A role of NONE: the user is out of it.
    Channel {
        /// The OPEN's request number, or 0.
        request: u64,
        /// The state.
        state: Box<wire::ChannelState>,
    },
    /// What became of a SEND.
    SendAck {
        /// The channel.
        channel: ChannelId,
        /// The SEND's request number.
        request: u64,
        /// The answer.
        ack: wire::SendAck,
    },
    /// A part of the answer to a FETCH; its range is held now.
    Page {
        /// The channel.
        channel: ChannelId,
        /// The FETCH's request number.
        request: u64,
        /// Ranges of the page above the position that were not held before: what of it was not handed out by DELIVER.
        news: Vec<(Seq, Seq)>,
        /// The part.
        page: Box<wire::Page>,
    },
    /// Cursors of other members that moved.
    Receipt {
        /// The channel.
        channel: ChannelId,
        /// The cursors.
        receipt: wire::Receipt,
    },
    /// The answer to COUNTS.
    Counts {
        /// The channel.
        channel: ChannelId,
        /// The question's request number.
        request: u64,
        /// The answer.
        counts: wire::Counts,
    },
    /// Somebody types, or stopped.
    Typing {
        /// The channel.
        channel: ChannelId,
        /// Who.
        typing: wire::Typing,
    },
    /// Users that are watched as they stand now, or who may see this one.
    Presence(wire::Presence),
    /// The answer to a heartbeat; milliseconds it took.
    Pong {
        /// From PING made to PONG handled.
        round_trip_ms: u64,
    },
    /// Hand a fresh token to [`ClientSession::authenticate`](super::ClientSession::authenticate) within so many
    /// milliseconds.
    AuthRequired {
        /// The time left.
        within_ms: u32,
    },
    /// The fresh token was taken.
    Authenticated {
        /// Its end, Unix milliseconds.
        until_ms: u64,
    },
    /// A request (OPEN, FETCH, COUNTS, SEND) failed.
    Refused {
        /// The channel.
        channel: ChannelId,
        /// The request's number.
        request: u64,
        /// Why.
        error: wire::Error,
    },
    /// A frame without a request number failed; `frame_type` says which. A SYNC that fails for a while is repeated, and nothing told of it.
    Failed(wire::Error),
    /// Reconnect within the window; the session goes on until then.
    GoAway(wire::GoAway),
    /// The session is over; nothing comes behind it.
    Ended(Ended),
}

/// Which rule a server broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// A DELIVER left seqs out without a GAP or NOTIFY.
    Hole,
    /// A frame of a channel that no SYNCED or CHANNEL named, and not its first entry.
    Unannounced,
    /// A state or head of a lower epoch than one named before.
    EpochFell,
}

/// How a session or connection ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the session ended: {text}")]
pub struct Ended {
    /// The error number, where a CLOSE said one or this side found it.
    pub code: Option<Code>,
    /// What to do about it.
    pub policy: Policy,
    /// Not before so many milliseconds.
    pub retry_after_ms: u32,
    /// For people.
    pub text: String,
}

impl Ended {
    /// By an error number.
    pub fn from_code(code: Code, text: impl Into<String>) -> Self {
        Self { code: Some(code), policy: code.policy(), retry_after_ms: 0, text: text.into() }
    }

    /// By a close code of WebSocket, an application error code of QUIC, or (`None`) a connection that just broke.
    pub fn from_close(close_code: Option<u16>, text: impl Into<String>) -> Self {
        let policy = close_code.map_or(Policy::BackOff, Code::policy_of_close);
        let code = close_code.and_then(code_of_close);
        Self { code, policy, retry_after_ms: 0, text: text.into() }
    }

    /// Milliseconds to wait before the next attempt, the `attempt`-th in a row without a WELCOME (0 for the first).
    /// `None`: do not try again. Exponential with full jitter, `random` being 64 random bits; never less than the server asked for. Where the policy is
    /// [`Policy::Authenticate`], get a fresh token before.
    pub fn delay_ms(&self, attempt: u32, random: u64) -> Option<u64> {
        let window = match self.policy {
            Policy::Never => return None,
            // At once, but not everybody in the same instant.
            Policy::Resume | Policy::Repeat => 250u64 << attempt.min(7),
            Policy::Authenticate if attempt == 0 => 1,
            Policy::BackOff | Policy::Authenticate => 500 << attempt.min(6),
        };
        Some(u64::from(self.retry_after_ms) + random % window.min(BACK_OFF_MS_MAX))
    }
}

/// The error number that ends connections with this close code.
fn code_of_close(close_code: u16) -> Option<Code> {
    let mut closing = Code::TABLE.iter().map(|row| row.code).filter(|code| code.closes());
    closing.find(|code| code.close_code() == close_code)
}

/// Widest window of the reconnect jitter, in milliseconds.
pub const BACK_OFF_MS_MAX: u64 = 30_000;
