//! The groups' log: what delayed fan-out, presence and push consume.

use crate::{error::StoreError, model::Entry};

/// A record's place in its partition: contiguous from 0.
pub type Offset = u64;

/// One record: an entry, in commit order per channel, possibly more than once.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place.
    pub offset: Offset,
    /// The entry; readers drop repeats by (channel, epoch, seq).
    pub entry: Entry,
}

/// A log of partitions; a channel's records all stand in one of them, in seq order. Methods block.
pub trait Log: Send + Sync + 'static {
    /// How many partitions there are.
    fn partitions(&self) -> u16;

    /// The partition of a shard's channels.
    fn partition_of(&self, shard: u16) -> u16 {
        shard % self.partitions()
    }

    /// Appends entries in order, each to the partition of its channel's shard; at least once (a crash may repeat the last
    /// batch). Not durable before [`Self::flush_log`].
    ///
    /// # Errors
    /// `Full`, `Unavailable`: repeat later.
    fn append(&self, entries: &[Entry]) -> Result<(), StoreError>;

    /// Returns when all that was appended before is on disk.
    ///
    /// # Errors
    /// `SyncFailed`: the process must end.
    fn flush_log(&self) -> Result<(), StoreError>;

    /// Records from `from` on, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn read(&self, partition: u16, from: Offset, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// The offset the next record of the partition gets.
    ///
    /// # Errors
    /// `Unavailable`.
    fn end(&self, partition: u16) -> Result<Offset, StoreError>;

    /// Notes that `consumer` has handed over everything below `next`; durable on return.
    ///
    /// # Errors
    /// As of [`Self::append`].
    fn commit_offset(&self, consumer: &str, partition: u16, next: Offset) -> Result<(), StoreError>;

    /// What was noted, 0 at first.
    ///
    /// # Errors
    /// `Unavailable`.
    fn offset(&self, consumer: &str, partition: u16) -> Result<Offset, StoreError>;

    /// Drops records below `below`, where all consumers have passed.
    ///
    /// # Errors
    /// As of [`Self::append`].
    fn truncate(&self, partition: u16, below: Offset) -> Result<(), StoreError>;
}
