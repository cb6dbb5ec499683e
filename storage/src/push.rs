//! The push outbox: who is to be told of what, until a receiver has taken it or it is given up. It holds no content.

use std::{fmt, str::FromStr};

use fanfare_proto::{ChannelId, MessageId, UserId};

use crate::error::StoreError;

/// What a push tells of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum PushKind {
    /// A message in a direct channel.
    Direct = 1,
    /// A message that names the user. Of those that wait, the newest of a channel stands for all.
    Mention = 2,
    /// An answer to a message of the user's.
    Reply = 3,
    /// That a group has messages: the first since the user was last there, and for all that follow it.
    Group = 4,
}

impl PushKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Mention, Self::Reply, Self::Group];
    /// What is said to one person: it goes before [`Self::OTHERS`] that are due.
    pub const FIRST: [Self; 2] = [Self::Direct, Self::Reply];
    /// What one message may give for very many.
    pub const OTHERS: [Self; 2] = [Self::Mention, Self::Group];

    /// Whether it is one of [`Self::FIRST`].
    pub fn is_first(self) -> bool {
        Self::FIRST.contains(&self)
    }

    /// The kind of that number.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == value)
    }

    /// As JSON and metrics have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mention => "mention",
            Self::Reply => "reply",
            Self::Group => "group",
        }
    }
}

/// The deduplication key: at most one push of a user and an entry. As text `USER-CHANNEL-EPOCH-SEQ`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PushKey {
    /// Who is told.
    pub user: UserId,
    /// In which channel.
    pub channel: ChannelId,
    /// Of which epoch.
    pub epoch: u32,
    /// Of which entry.
    pub seq: u64,
}

impl fmt::Display for PushKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.user, self.channel, self.epoch, self.seq)
    }
}

/// The text is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a push's key is USER-CHANNEL-EPOCH-SEQ")]
pub struct NotAKey;

impl FromStr for PushKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut parts = text.split('-');
        let mut next = || parts.next().and_then(|part| part.parse::<u64>().ok()).filter(|id| id >> 63 == 0);
        let (user, channel, epoch, seq) = (next(), next(), next(), next());
        let epoch = epoch.and_then(|epoch| u32::try_from(epoch).ok());
        match (user, channel, epoch, seq, parts.next()) {
            (Some(user), Some(channel), Some(epoch), Some(seq), None) => {
                Ok(Self { user: UserId(user), channel: ChannelId(channel), epoch, seq })
            }
            _ => Err(NotAKey),
        }
    }
}

/// One push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Push {
    /// Its key.
    pub key: PushKey,
    /// What it tells of.
    pub kind: PushKind,
    /// Who sent the entry.
    pub sender: UserId,
    /// The entry's id.
    pub message_id: MessageId,
    /// When it was put, Unix milliseconds.
    pub created_ms: u64,
    /// When it is to be tried; of one that is dead, when it was given up. Unix milliseconds.
    pub due_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the newest attempt failed; empty before.
    pub error: String,
}

/// What became of a push that was due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PushOutcome {
    /// The receiver has it.
    Delivered,
    /// Nobody needs it any more. It leaves no trace but its key.
    Cancelled,
    /// It failed and is tried again then.
    Retry {
        /// Unix milliseconds.
        due_ms: u64,
        /// Why it failed.
        error: String,
    },
    /// It was not tried, and is to be then.
    Postponed {
        /// Unix milliseconds.
        due_ms: u64,
    },
    /// It is given up, until somebody replays it.
    Dead {
        /// Why.
        error: String,
    },
}

/// What a push is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushState {
    /// It waits to be tried.
    Waiting,
    /// It was delivered, or nobody needed it any more.
    Ended,
    /// It was given up.
    Dead,
}

impl PushState {
    /// As JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ended => "ended",
            Self::Dead => "dead",
        }
    }
}

/// Who has caught up with a channel, and up to which seq.
pub type CaughtUp = (UserId, ChannelId, u64);

/// How the outbox stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PushCounts {
    /// Waiting, due or not.
    pub waiting: u64,
    /// When the oldest of these was put, Unix milliseconds; 0 where none waits.
    pub oldest_ms: u64,
    /// Given up.
    pub dead: u64,
}

/// Bytes of an error that are kept.
pub const ERROR_BYTES_MAX: usize = 200;

/// A durable outbox of pushes. What a method changed is on the disk when it returns. Methods block.
pub trait PushOutbox: Send + Sync + 'static {
    /// Takes pushes in, due at their `due_ms`. One whose key is known, in whatever state, changes nothing. Gives how many
    /// were new.
    ///
    /// It leaves at most one mention of a user in a channel waiting, the newest by epoch and seq. A new one ends those before it
    /// that wait, and is due at the soonest of their times and its own; it has its own attempts and age. One that is new while
    /// a newer one waits has ended at once, and leaves that one as it is. What ends so ends at the `created_ms` of the push that
    /// was put, also where it is being tried: whatever comes of that attempt changes nothing any more.
    ///
    /// # Errors
    /// `Full`, `Unavailable`: nothing was changed; `Unknown`: repeat it; `SyncFailed`: the process must end.
    fn put(&self, pushes: &[Push]) -> Result<usize, StoreError>;

    /// Those that wait and are due at `now_ms`, at most `limit`: [`PushKind::FIRST`], then [`PushKind::OTHERS`], of each the
    /// longest due first. The first have three quarters of `limit`, rounded up, and the others the rest; what either does not
    /// need is the other's.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Push>, StoreError>;

    /// What became of pushes. What was tried counts as an attempt, whatever came of it; keys that do not wait are passed over.
    /// A [`PushKind::Group`] that was cancelled or is dead has told nobody: where it is what [`Self::told`] goes by, that is
    /// forgotten, and the next message is told of.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn finish(&self, now_ms: u64, outcomes: &[(PushKey, PushOutcome)]) -> Result<(), StoreError>;

    /// Cancels what waits for users who have caught up, in that channel up to that seq; gives how many. [`Self::told`] stays:
    /// they have been there since.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn cancel(&self, now_ms: u64, caught_up: &[CaughtUp]) -> Result<usize, StoreError>;

    /// What is kept of a user's pushes, by channel and place, at most `limit`.
    ///
    /// # Errors
    /// As of [`Self::due`].
    fn of_user(&self, user: UserId, limit: usize) -> Result<Vec<(Push, PushState)>, StoreError>;

    /// Those given up, the longest first, at most `limit`.
    ///
    /// # Errors
    /// As of [`Self::due`].
    fn dead(&self, limit: usize) -> Result<Vec<Push>, StoreError>;

    /// Has pushes that were given up wait again, due now, with their attempts and age counted anew; all of them without a
    /// key. Gives how many. Mentions may wait beside each other then, until a newer one is put; [`Self::told`] stays.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn replay(&self, now_ms: u64, key: Option<PushKey>) -> Result<usize, StoreError>;

    /// When the newest push that tells of the channel as a whole ([`PushKind::Group`]) was put for each of these users, where
    /// there is one that was not dropped ([`Self::finish`]); Unix milliseconds.
    ///
    /// # Errors
    /// As of [`Self::due`].
    fn told(&self, channel: ChannelId, users: &[UserId]) -> Result<Vec<(UserId, u64)>, StoreError>;

    /// How it stands.
    ///
    /// # Errors
    /// As of [`Self::due`].
    fn counts(&self) -> Result<PushCounts, StoreError>;

    /// Forgets at most `limit` that ended (delivered or cancelled) or were given up before `before_ms`; gives how many.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn forget(&self, before_ms: u64, dead_before_ms: u64, limit: usize) -> Result<usize, StoreError>;

    /// Since when entries are read for it, Unix milliseconds; `None` before [`Self::begin`].
    ///
    /// # Errors
    /// As of [`Self::due`].
    fn began_ms(&self) -> Result<Option<u64>, StoreError>;

    /// Notes that entries are read from now on; the first note stays.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn begin(&self, now_ms: u64) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text_and_nothing_else_is() {
        let key = PushKey { user: UserId(1), channel: ChannelId(u64::MAX >> 1), epoch: u32::MAX, seq: 9 };
        assert_eq!(key.to_string().parse(), Ok(key));
        for odd in
            ["", "1-2-3", "1-2-3-4-5", "1-2-x-4", "1-2-4294967296-4", "9223372036854775808-2-3-4", "1-2-3--4"]
        {
            assert_eq!(odd.parse::<PushKey>(), Err(NotAKey), "{odd}");
        }
    }
}
