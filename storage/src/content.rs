//! The content store: stored frames by (channel, seq), what amends them, and users' lists of channels.

use bytes::Bytes;
use fanfare_proto::{ChannelId, UserId};

use crate::{
    error::StoreError,
    model::{Entry, EntryKind, ListChange},
};

/// A frame as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub seq: u64,
    /// Its epoch.
    pub epoch: u32,
    /// The whole DELIVER frame.
    pub frame: Bytes,
}

/// One amendment of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAmendment {
    /// The amended seq.
    pub target: u64,
    /// The amending entry's seq.
    pub seq: u64,
    /// Edit, Recall or Reaction.
    pub kind: EntryKind,
    /// The amending entry's whole DELIVER frame.
    pub frame: Bytes,
}

/// Frames and amendments. Keyed and repeatable: the same entry put twice stands once. Methods block.
pub trait Content: Send + Sync + 'static {
    /// Puts entries, large batches sorted by (channel, seq); not durable before [`Self::flush`]. Entries that amend are
    /// indexed under their target too. Readers may see them at once.
    ///
    /// # Errors
    /// `Full`, `Unavailable`: repeat later.
    fn put(&self, entries: &[Entry]) -> Result<(), StoreError>;

    /// Returns when all that was put before is on disk.
    ///
    /// # Errors
    /// `SyncFailed`: the process must end.
    fn flush(&self) -> Result<(), StoreError>;

    /// Frames of `first ..= last` newest first, at most `limit` and about `bytes_max`; of each seq the highest epoch.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn range(
        &self,
        channel: ChannelId,
        first: u64,
        last: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Stored>, StoreError>;

    /// Amendments of messages in `first ..= last`, by target and seq, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn amendments(
        &self,
        channel: ChannelId,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<StoredAmendment>, StoreError>;

    /// The newest amendment of a message: its recall, if it was recalled.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn newest_amendment(
        &self,
        channel: ChannelId,
        target: u64,
    ) -> Result<Option<StoredAmendment>, StoreError>;

    /// Takes a frame away (a restore, an orphan that reconcile found). Only the channel's owner calls it.
    ///
    /// # Errors
    /// As of [`Self::put`].
    fn remove(&self, channel: ChannelId, seq: u64, epoch: u32) -> Result<(), StoreError>;

    /// (channel, epoch, seq) of all frames in key order above `after`, at most `limit`: the walk of reconcile.
    ///
    /// # Errors
    /// `Unavailable`.
    fn walk(
        &self,
        after: Option<(ChannelId, u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ChannelId, u64, u32)>, StoreError>;
}

/// Users' lists of channels: a projection, keyed and repeatable. Methods block.
pub trait Lists: Send + Sync + 'static {
    /// Applies changes; one whose seq is below what stands for (user, channel) is passed over. Not durable before
    /// [`Self::flush_lists`].
    ///
    /// # Errors
    /// `Full`, `Unavailable`: repeat later.
    fn apply(&self, changes: &[ListChange]) -> Result<(), StoreError>;

    /// Returns when all that was applied before is on disk.
    ///
    /// # Errors
    /// `SyncFailed`: the process must end.
    fn flush_lists(&self) -> Result<(), StoreError>;

    /// The channels in a user's list, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    fn list(&self, user: UserId) -> Result<Vec<ChannelId>, StoreError>;
}
