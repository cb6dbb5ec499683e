//! The embedded content store on fjall: one database with a keyspace each for frames, amendments, lists and the log.
//! This file owns the database itself: opening, syncing, what its errors mean, and opening it again after the disk
//! was full. What the keyspaces hold is in `content`, `lists` and `log` beside it.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Mutex, RwLock};

use super::{
    Options,
    folder::{self, FolderLock},
    log::Ends,
};
use crate::{SLOW, error::StoreError, mutant};

/// Memtable of the frames' keyspace, bytes; up to four more may wait to be written.
const CONTENT_MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Memtable of each other keyspace, bytes.
const SMALL_MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes in memtables, all together, that are worth tables of their own when nothing more comes.
const WRITE_OUT_BYTES: u64 = 512 * 1024;
/// Journals kept before memtables are written out, bytes.
const JOURNALS_BYTES: u64 = 192 * 1024 * 1024;
/// Memtables that wait to be written out, and tables that wait to be merged, at which a keyspace takes no more: just
/// below where fjall would hold the writer (4 and 20).
const SEALED_MAX: usize = 3;
const FRESH_TABLES_MAX: usize = 18;
/// How long readers are waited for before the database is opened again.
const REOPEN_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const REOPEN_EVERY: Duration = Duration::from_millis(1);
/// What is written to see whether the disk takes writes again: a file beside the database, and its size.
const PROBE_EXTENSION: &str = "probe";
const PROBE_BYTES: usize = 64 * 1024;
/// Threads that write memtables out and compact.
const WORKERS: usize = 2;
/// Free bytes below which a write that failed in the background is laid to the full disk, at least.
const LOW_BYTES: u64 = 16 * 1024 * 1024;
/// How long after there was too little room a failure in the background may still be due to that, where nothing had failed yet.
const LOW_OVER: Duration = Duration::from_secs(10);
/// Table files kept open.
const FILES: usize = 256;

/// The embedded content store, users' lists and groups' log.
pub struct FjallStore {
    path: PathBuf,
    options: Options,
    /// `None` while a reopening has failed.
    keyspaces: RwLock<Option<Keyspaces>>,
    /// A write failed and fjall refuses further ones until it is opened again.
    poisoned: AtomicBool,
    /// When there was too little room last; `None` where what fails is not for lack of it.
    low_at: Mutex<Option<Instant>>,
    /// Per sink: the database was opened again since its last flush, and what was put before may be gone.
    reopened: [AtomicBool; 4],
    /// Lists are read, compared and written by one at a time.
    pub(super) lists_turn: Mutex<()>,
    /// The next offsets of the log's partitions.
    pub(super) ends: Mutex<Ends>,
    _lock: Arc<FolderLock>,
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Which store a flush is for.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Content = 0,
    Lists = 1,
    Log = 2,
    Notes = 3,
}

pub(super) struct Keyspaces {
    pub database: Database,
    pub content: Keyspace,
    pub amendments: Keyspace,
    pub lists: Keyspace,
    pub log: Keyspace,
    pub notes: Keyspace,
}

impl Keyspaces {
    /// Whether fjall would hold a writer until its workers have caught up. It does so without end where they have
    /// failed, so it is not asked: the caller tries again.
    fn is_congested(&self) -> bool {
        self.all().into_iter().any(|keyspace| {
            keyspace.sealed_memtable_count() >= SEALED_MAX || keyspace.l0_table_count() >= FRESH_TABLES_MAX
        })
    }

    fn all(&self) -> [&Keyspace; 5] {
        [&self.content, &self.amendments, &self.lists, &self.log, &self.notes]
    }
}

impl FjallStore {
    /// Opens or creates the store in `folder/content`; all that was found there is on the disk on return.
    ///
    /// # Errors
    /// As of [`crate::embedded::open`].
    pub(super) fn open(folder: &Path, options: &Options, lock: Arc<FolderLock>) -> Result<Self, StoreError> {
        let path = folder.join("content");
        let keyspaces = open(&path, options)?;
        let ends = Ends::load(&keyspaces, options.log_partitions).map_err(|error| of_read(&error))?;
        Ok(Self {
            path,
            options: options.clone(),
            keyspaces: RwLock::new(Some(keyspaces)),
            poisoned: AtomicBool::new(false),
            low_at: Mutex::new(None),
            reopened: [const { AtomicBool::new(false) }; 4],
            lists_turn: Mutex::new(()),
            ends: Mutex::new(ends),
            _lock: lock,
        })
    }

    pub(super) fn partitions_open(&self) -> u16 {
        self.options.log_partitions
    }

    /// Bytes on disk, journals included.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.read(|keyspaces| keyspaces.database.disk_space())
    }

    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Keyspaces) -> Result<T, fjall::Error>,
    ) -> Result<T, StoreError> {
        match &*self.keyspaces.read() {
            Some(keyspaces) => query(keyspaces).map_err(|error| of_read(&error)),
            None => Err(StoreError::Unavailable("the content store is being opened again".to_owned())),
        }
    }

    /// Runs a step that writes, where the disk has room. Nothing is durable before [`Self::persist`].
    pub(super) fn write<T>(
        &self,
        step: impl FnOnce(&Keyspaces) -> Result<T, fjall::Error>,
    ) -> Result<T, StoreError> {
        self.check_room()?;
        if self.poisoned.load(Ordering::SeqCst) {
            self.reopen()?;
        }
        match &*self.keyspaces.read() {
            Some(keyspaces) if keyspaces.is_congested() => {
                // Workers that have failed never catch up.
                keyspaces.database.persist(PersistMode::Buffer).map_err(|error| self.of_write(&error))?;
                Err(StoreError::Unavailable("memtables wait to be written out".to_owned()))
            }
            Some(keyspaces) => step(keyspaces).map_err(|error| self.of_write(&error)),
            None => {
                self.poisoned.store(true, Ordering::SeqCst);
                Err(StoreError::Unavailable("the content store is being opened again".to_owned()))
            }
        }
    }

    /// Syncs the journal: all that `part` has put before is on the disk on return.
    pub(super) fn persist(&self, part: Part) -> Result<(), StoreError> {
        let guard = self.keyspaces.read();
        let Some(keyspaces) = &*guard else {
            return Err(StoreError::Unavailable("the content store is being opened again".to_owned()));
        };
        if self.reopened[part as usize].swap(false, Ordering::SeqCst) {
            return Err(StoreError::Unavailable("opened again: put it once more".to_owned()));
        }
        let mode = if mutant::is("skip-fsync") { PersistMode::Buffer } else { PersistMode::SyncData };
        let started = Instant::now();
        let persisted = keyspaces.database.persist(mode);
        if started.elapsed() >= SLOW {
            tracing::info!(took_ms = started.elapsed().as_millis() as u64, "slow sync of the content store");
        }
        match persisted {
            Ok(()) => {
                // Nothing has failed up to now; a while after the last shortage nothing will because of it.
                self.low_at.lock().take_if(|at| at.elapsed() >= LOW_OVER);
                Ok(())
            }
            Err(fjall::Error::Poisoned) => Err(self.of_write(&fjall::Error::Poisoned)),
            Err(error) => Err(StoreError::SyncFailed(error.to_string())),
        }
    }

    /// Has what stands in memtables written out in the background: nothing more comes, and what is durable need not stay in memory.
    pub(super) fn write_out(&self) {
        if self.poisoned.load(Ordering::SeqCst) {
            return;
        }
        let guard = self.keyspaces.read();
        let Some(keyspaces) = &*guard else { return };
        let bytes = keyspaces.database.write_buffer_size();
        if bytes < WRITE_OUT_BYTES || keyspaces.is_congested() {
            return;
        }
        // Where the room could end in the middle of it, nobody would be told before the next write.
        let needed = self.options.reserve_bytes.saturating_add(bytes).saturating_mul(2);
        if self.free_bytes().is_ok_and(|free| free < needed) {
            return;
        }
        // Tells whether something failed in the background, which a rotation does not ask.
        if let Err(error) = keyspaces.database.persist(PersistMode::Buffer) {
            tracing::warn!(error = %self.of_write(&error), "memtables cannot be written out");
            return;
        }
        for keyspace in keyspaces.all() {
            if let Err(error) = keyspace.rotate_memtable() {
                let error = self.of_write(&error);
                tracing::warn!(%error, "a memtable cannot be written out");
                return;
            }
        }
    }

    /// fjall does not survive a write without room: its workers stop and it has to be opened again. So it is not given
    /// anything below a reserve that lets the work under way end.
    fn check_room(&self) -> Result<(), StoreError> {
        let free = self.free_bytes()?;
        if free < self.options.reserve_bytes {
            self.note_low();
            return Err(StoreError::Full(format!(
                "{free} bytes free, {} are kept in reserve",
                self.options.reserve_bytes
            )));
        }
        Ok(())
    }

    fn note_low(&self) {
        *self.low_at.lock() = Some(Instant::now());
    }

    fn free_bytes(&self) -> Result<u64, StoreError> {
        let room = rustix::fs::statvfs(&self.path)
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.path.display())))?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    fn of_write(&self, error: &fjall::Error) -> StoreError {
        self.poisoned.store(true, Ordering::SeqCst);
        match error {
            fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => {
                let fault = folder::of_io(io, &self.path);
                if matches!(fault, StoreError::Full(_)) {
                    self.note_low();
                }
                fault
            }
            // A worker failed and left no error. With little room, now or while it worked, it was that: what it wrote stands in the journal
            // still, which opening again reads back. Else a sync may have failed.
            fjall::Error::Poisoned => match self.free_bytes() {
                Ok(free)
                    if self.low_at.lock().is_none()
                        && free >= self.options.reserve_bytes.saturating_mul(2).max(LOW_BYTES) =>
                {
                    StoreError::SyncFailed("a write of the content store failed in the background".to_owned())
                }
                _ => StoreError::Full("a write of the content store failed in the background".to_owned()),
            },
            error => StoreError::Unavailable(error.to_string()),
        }
    }

    /// Whether the disk takes a write again. The failed database still serves what it holds; it is closed only where the next one can
    /// go on, since reading the journals back takes a while in which nothing is served.
    fn probe(&self) -> Result<(), StoreError> {
        let path = self.path.with_extension(PROBE_EXTENSION);
        let tried = std::fs::write(&path, [1_u8; PROBE_BYTES]);
        let removed = std::fs::remove_file(&path);
        tried.and(removed).map_err(|error| folder::of_io(&error, &path))
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.probe()?;
        // Not by waiting for the lock: behind a writer that waits no reader gets in, and history must be served while a
        // slow write is still under way.
        let until = Instant::now() + REOPEN_PATIENCE;
        let mut keyspaces = loop {
            match self.keyspaces.try_write() {
                Some(keyspaces) => break keyspaces,
                None if Instant::now() < until => std::thread::sleep(REOPEN_EVERY),
                None => {
                    return Err(StoreError::Unavailable(
                        "the content store is in use and cannot be opened again".to_owned(),
                    ));
                }
            }
        };
        if !self.poisoned.load(Ordering::SeqCst) {
            return Ok(());
        }
        tracing::warn!(folder = %self.path.display(), "opening the content store again after a failed write");
        for reopened in &self.reopened {
            reopened.store(true, Ordering::SeqCst);
        }
        // Its lock and its threads have to go first.
        *keyspaces = None;
        *self.low_at.lock() = None;
        *keyspaces = Some(open(&self.path, &self.options)?);
        self.poisoned.store(false, Ordering::SeqCst);
        Ok(())
    }
}

fn open(path: &Path, options: &Options) -> Result<Keyspaces, StoreError> {
    if path.exists() {
        // After a kill, tables and journals may stand in the page cache only. fjall syncs its newest journal when it
        // reads it back, but neither older journals nor tables and their folders.
        folder::sync_tree(path)?;
    }
    let make = || -> Result<Keyspaces, fjall::Error> {
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .max_journaling_size(JOURNALS_BYTES)
            .max_cached_files(Some(FILES))
            .worker_threads(WORKERS)
            .open()?;
        let keyspace = |name: &str, memtable_bytes: u64| {
            database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes))
        };
        let keyspaces = Keyspaces {
            content: keyspace("content", CONTENT_MEMTABLE_BYTES)?,
            amendments: keyspace("amendments", SMALL_MEMTABLE_BYTES)?,
            lists: keyspace("lists", SMALL_MEMTABLE_BYTES)?,
            log: keyspace("log", SMALL_MEMTABLE_BYTES)?,
            notes: keyspace("notes", SMALL_MEMTABLE_BYTES)?,
            database: database.clone(),
        };
        Ok(keyspaces)
    };
    let existed = path.exists();
    let keyspaces = make().map_err(|error| match error {
        // A file that another one names is not there: what stands here is not what was written.
        fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io))
            if existed
                && matches!(
                    io.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                ) =>
        {
            StoreError::Damaged(format!("{}: {io}", path.display()))
        }
        fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => folder::of_io(&io, path),
        fjall::Error::Locked => StoreError::Locked(path.display().to_string()),
        error => StoreError::Damaged(format!("{}: {error}", path.display())),
    })?;
    if !mutant::is("skip-fsync") {
        keyspaces
            .database
            .persist(PersistMode::SyncAll)
            .map_err(|error| StoreError::SyncFailed(error.to_string()))?;
    }
    Ok(keyspaces)
}

fn of_read(error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) | fjall::Error::Poisoned => {
            StoreError::Unavailable(error.to_string())
        }
        error => StoreError::Damaged(error.to_string()),
    }
}
