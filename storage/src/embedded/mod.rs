//! The embedded stores, the default: SQLite for metadata, fjall for content, lists and the log, in one data folder.

mod accounts;
mod checkpoint;
mod commit;
mod content;
mod cursors;
mod database;
mod fjall_store;
mod folder;
mod lists;
mod log;
mod push;
mod record;
mod seen;
mod sql_error;
mod sqlite;

use std::{path::Path, sync::Arc};

pub use fjall_store::FjallStore;
pub use folder::FORMAT;
pub use push::SqlitePushes;
pub use sqlite::SqliteMetadata;

use crate::{error::StoreError, metadata::Metadata, model::OutboxBatch};

/// How the embedded stores are opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cache of content blocks, bytes.
    pub cache_bytes: u64,
    /// Free bytes on the disk below which content is not written (the outbox keeps it). The commit path goes on until
    /// the disk is full.
    pub reserve_bytes: u64,
    /// Bytes of the commit path's log written at every start, so that commits overwrite and need not extend it; the
    /// checkpoint thread lets the log start over well before. 0 leaves it to grow: a start some 100 ms faster, for
    /// tests.
    pub log_bytes: usize,
    /// Partitions of the groups' log. Must not change once the log was written.
    pub log_partitions: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
            log_bytes: 32 * 1024 * 1024,
            log_partitions: 16,
        }
    }
}

/// The opened folder. Its lock is free again when the last reference to either store is gone.
#[derive(Debug)]
pub struct Embedded {
    /// Metadata and ownership.
    pub metadata: Arc<SqliteMetadata>,
    /// Content, lists and log.
    pub store: Arc<FjallStore>,
    /// Outbox rows found, ascending: for [`crate::drain::Drains::start`] and for the owners' tails.
    pub recovered: Vec<OutboxBatch>,
}

impl Embedded {
    /// Opens or creates the push outbox in the folder, which must be the one that was opened. Holds the folder's lock, too.
    ///
    /// # Errors
    /// As of [`open`].
    pub fn pushes(&self, folder: &Path) -> Result<Arc<SqlitePushes>, StoreError> {
        SqlitePushes::open(folder, self.metadata.lock()).map(Arc::new)
    }
}

/// Opens or creates a data folder. Everything found in it is on the disk before it is answered: after a kill it may
/// have stood in the page cache only.
///
/// # Errors
/// `Locked` at once where another process holds the folder; `Format`; `Damaged`; `Full`, `Unavailable`;
/// `SyncFailed`.
pub fn open(folder: &Path, options: &Options) -> Result<Embedded, StoreError> {
    let lock = Arc::new(folder::take(folder)?);
    let metadata = Arc::new(SqliteMetadata::open(folder, options, Arc::clone(&lock))?);
    let store = Arc::new(FjallStore::open(folder, options, lock)?);
    let content = Arc::downgrade(&store);
    metadata.at_rest(move || {
        if let Some(store) = content.upgrade() {
            store.write_out();
        }
    });
    folder::sync(folder)?;
    let recovered = metadata.outbox()?;
    Ok(Embedded { metadata, store, recovered })
}
