//! What can go wrong in a store, by what the caller may conclude from it.

use thiserror::Error;

/// A store's failure.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was changed, and nothing will be: no room on the disk. Writers become read-only until there is.
    #[error("no room: {0}")]
    Full(String),
    /// Nothing was changed, and nothing will be: the store cannot do it now.
    #[error("not now: {0}")]
    Unavailable(String),
    /// The transaction's term is older than the lease's: another owner writes this shard now. Nothing was changed.
    #[error("shard {shard} is owned under a newer term")]
    Fenced {
        /// Which shard.
        shard: u16,
    },
    /// A head was not where the caller expected it. Nothing was changed.
    #[error("the head of channel {channel} was not at {expected}")]
    HeadMoved {
        /// Which channel.
        channel: u64,
        /// The expected head.
        expected: u64,
    },
    /// It is not known whether the transaction was committed.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// A sync failed: what the disk holds is not known any more and the process must end and recover.
    /// Never tried again (an fsync that failed once may succeed the next time without the bytes).
    #[error("sync failed: {0}")]
    SyncFailed(String),
    /// Stored bytes do not match their hash, or a row does not decode.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Another process holds the data folder.
    #[error("locked: {0}")]
    Locked(String),
    /// The folder was written by another format.
    #[error("format {found}, this version reads {expected}")]
    Format {
        /// What stands in the folder.
        found: u32,
        /// What this version reads.
        expected: u32,
    },
}
