//! One SQLite file: how connections are opened and set, migrations, write transactions with exact outcomes, readers.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::sql_error;
use crate::{SLOW, error::StoreError, mutant};

/// Connections that read beside the writer.
const READERS: usize = 4;
/// Page cache of the writer, KiB.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// Page cache of a reader, KiB: the upper levels of the tables. Rows are read once, when their user or channel comes; what a reader kept
/// of them would be four times what the system keeps anyway.
const READER_CACHE_KIB: i64 = 512;
/// The index of a log of 1 GiB: 32 KiB for each 4,096 pages of 4 KiB.
const INDEX_BYTES: u64 = 2 * 1024 * 1024;
/// The index where little room is left: a log of 64 MiB.
const INDEX_BYTES_MIN: u64 = 128 * 1024;
/// The part of the free room that an index may take: the other stores start in the same room.
const INDEX_OF_FREE: u64 = 4;
/// Statements kept prepared per connection.
const STATEMENTS: usize = 64;

/// A database file with one writer and a few readers.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Vec<Mutex<Connection>>,
    next_reader: AtomicUsize,
    /// Set once a sync failed: nothing is written any more.
    failed: AtomicBool,
    /// The file and the index of its log, held open as long as the connections: closing any handle of a file gives up the
    /// process's locks on it, SQLite's too. Another program that looked into the file would take itself for the last one then, and
    /// remove the log as it leaves.
    _held: (File, Option<File>),
}

impl Database {
    /// Opens or creates the file, brings what its log holds into the file and to the disk, and migrates the schema.
    ///
    /// # Errors
    /// `Format` where a newer version wrote the schema; `Full`, `Unavailable`, `Damaged`, `SyncFailed`.
    ///
    /// `log_bytes` of the log are written at once, so that commits overwrite and never extend it: extending costs a
    /// commit of the file system's journal with each of ours (measured: 0.42 ms instead of 0.19).
    pub fn open(path: &Path, migrations: &[&str], log_bytes: usize) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| super::folder::of_io(&error, path))?;
        let mut writer = connect(path, WRITER_CACHE_KIB)?;
        settle(&writer, &file, path)?;
        migrate(&mut writer, migrations)?;
        if log_bytes > 0 {
            settle(&writer, &file, path)?;
            extend_log(path, log_bytes)?;
        }
        let index = extend_index(path);
        let readers = (0..READERS)
            .map(|_| connect(path, READER_CACHE_KIB).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            readers,
            next_reader: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            _held: (file, index),
        })
    }

    /// Another connection to the same file, for maintenance.
    pub fn connect(&self) -> Result<Connection, StoreError> {
        connect(&self.path, READER_CACHE_KIB)
    }

    /// Keeps writers away while the guard lives.
    pub fn pause_writers(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock()
    }

    /// Runs `step` in a transaction of the one writer; flushed on return.
    ///
    /// # Errors
    /// What `step` gave (all is rolled back then), else as of COMMIT.
    pub fn write<T>(&self, step: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut times = Times::start();
        let connection = self.writer.lock();
        self.check()?;
        run(&connection, "BEGIN IMMEDIATE").map_err(|error| sql_error::of_statement(&error))?;
        times.begun = Instant::now();
        let result = match step(&connection) {
            Ok(value) => {
                times.stepped = Instant::now();
                match run(&connection, "COMMIT") {
                    Ok(()) => {
                        times.tell(&self.path);
                        return Ok(value);
                    }
                    Err(error) => Err(sql_error::of_commit(&error)),
                }
            }
            Err(error) => Err(error),
        };
        // SQLite has rolled back by itself after some errors; the flag tells.
        if !connection.is_autocommit()
            && let Err(error) = run(&connection, "ROLLBACK")
        {
            self.fail();
            return Err(StoreError::SyncFailed(format!("rollback: {error}")));
        }
        if matches!(result, Err(StoreError::SyncFailed(_))) {
            self.fail();
        }
        result
    }

    /// Runs `query` on a reader, which sees the newest committed state.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let first = self.next_reader.fetch_add(1, Ordering::Relaxed);
        let free = (0..READERS).find_map(|step| self.readers[(first + step) % READERS].try_lock());
        let connection = free.unwrap_or_else(|| self.readers[first % READERS].lock());
        query(&connection).map_err(|error| sql_error::of_statement(&error))
    }

    /// Notes that a sync failed.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(StoreError::SyncFailed("an earlier sync failed".to_owned()));
        }
        Ok(())
    }

    /// Has the connections that nobody uses give their page caches back, and `own`. What cannot be given back now stays.
    pub fn shrink(&self, own: &Connection) {
        let shrink = |connection: &Connection| {
            if let Err(error) = run(connection, "PRAGMA shrink_memory") {
                tracing::warn!(%error, file = %self.path.display(), "page caches");
            }
        };
        shrink(own);
        for connection in self.readers.iter().chain([&self.writer]) {
            if let Some(connection) = connection.try_lock() {
                shrink(&connection);
            }
        }
    }

    /// Moves what stands in the log into the file, as far as that goes without waiting. Gives the pages that the log
    /// holds.
    pub fn checkpoint(&self, connection: &Connection) -> Result<u64, StoreError> {
        let pages = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1));
        match pages.map_err(|error| sql_error::of_statement(&error)) {
            Ok(pages) => Ok(pages.max(0).cast_unsigned()),
            Err(error) => {
                if matches!(error, StoreError::SyncFailed(_)) {
                    self.fail();
                }
                Err(error)
            }
        }
    }
}

/// When the steps of a transaction ended, so that a slow one can be told apart by where its time went.
struct Times {
    asked: Instant,
    begun: Instant,
    stepped: Instant,
}

impl Times {
    fn start() -> Self {
        let now = Instant::now();
        Self { asked: now, begun: now, stepped: now }
    }

    /// After COMMIT.
    fn tell(&self, path: &Path) {
        let took = self.asked.elapsed();
        if took >= SLOW {
            tracing::info!(
                file = %path.display(),
                took_ms = took.as_millis() as u64,
                writer_wait_ms = (self.begun - self.asked).as_millis() as u64,
                statements_ms = (self.stepped - self.begun).as_millis() as u64,
                flush_ms = self.stepped.elapsed().as_millis() as u64,
                "slow transaction"
            );
        }
    }
}

/// Runs a statement without results, prepared once.
pub fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.raw_execute().map(drop)
}

/// Ids, seqs and times are below 2^63; SQL's integers are signed.
pub const fn sql(value: u64) -> i64 {
    value.cast_signed()
}

fn connect(path: &Path, cache_kib: i64) -> Result<Connection, StoreError> {
    let of_statement = |error: rusqlite::Error| sql_error::of_statement(&error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags).map_err(of_statement)?;
    let set = || -> rusqlite::Result<()> {
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(
            None,
            "synchronous",
            if mutant::is("skip-fsync") { "OFF" } else { "FULL" },
        )?;
        // Checkpoints run on the maintenance thread alone, off the commit path.
        connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        // No temporary files: they could fail where the database itself has room.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "cell_size_check", true)?;
        // Or a statement is prepared anew for each value it is bound to, wherever the schema has an index with a condition.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(())
    };
    set().map_err(of_statement)?;
    Ok(connection)
}

/// After a kill the log may stand in the page cache only: bring it to the disk before anything of it is answered.
fn settle(connection: &Connection, file: &File, path: &Path) -> Result<(), StoreError> {
    let result = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        .map_err(|error| sql_error::of_statement(&error));
    match result {
        Ok(0) => {}
        Ok(_) => return Err(StoreError::Unavailable(format!("{} is in use", path.display()))),
        // No room to move the log into the file: the log, synced, holds all the same, and history can be served.
        Err(StoreError::Full(error)) => {
            tracing::warn!(%error, file = %path.display(), "no room for a checkpoint");
            super::folder::sync(&log_of(path))?;
        }
        Err(error) => return Err(error),
    }
    super::folder::sync_open(file, path)
}

fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    PathBuf::from(log)
}

/// Extends the index of the log, which SQLite shares between connections, to cover a log of 1 GiB, or less where room is
/// short. SQLite extends it when a commit's frames stand in the log already: without room then, the commit fails and yet
/// comes back with the next start. A start builds the index anew in the place of this one, so it finds room on a full disk,
/// too. Gives the file, which has to stay open, extended or not.
fn extend_index(path: &Path) -> Option<File> {
    let mut index = path.as_os_str().to_owned();
    index.push("-shm");
    let mut file = OpenOptions::new().read(true).write(true).open(&index).ok()?;
    let mut extend = || -> std::io::Result<()> {
        let room = rustix::fs::statvfs(path)?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let wanted = [INDEX_BYTES, INDEX_BYTES_MIN].into_iter().find(|bytes| free / INDEX_OF_FREE >= *bytes);
        // Never truncated, and only behind what SQLite has mapped.
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes))?;
        file.write_all(&vec![0; wanted.unwrap_or(0).saturating_sub(bytes) as usize])
    };
    if let Err(error) = extend() {
        tracing::warn!(%error, file = %path.display(), "the log's index is extended as commits come");
    }
    Some(file)
}

/// Writes zeros over the empty log: SQLite takes what does not begin with its mark for empty, and what does not follow
/// in checksum for the end, just as it does with what an earlier round left there.
///
/// # Errors
/// `SyncFailed`. Without room the log just grows as commits come.
fn extend_log(path: &Path, log_bytes: usize) -> Result<(), StoreError> {
    let log = log_of(path);
    let extend = || -> std::io::Result<Result<(), StoreError>> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&log)?;
        if file.metadata()?.len() > 0 {
            // Something stands there (a checkpoint found no room): leave it.
            return Ok(Ok(()));
        }
        let zeros = vec![0; 1024 * 1024];
        let written = (0..log_bytes / zeros.len()).try_for_each(|_| file.write_all(&zeros));
        if let Err(error) = written {
            file.set_len(0)?;
            return Err(error);
        }
        Ok(file.sync_all().map_err(|error| StoreError::SyncFailed(format!("{}: {error}", log.display()))))
    };
    extend().unwrap_or_else(|error| {
        tracing::warn!(%error, file = %log.display(), "the log is extended as commits come");
        Ok(())
    })
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let of_statement = |error: rusqlite::Error| sql_error::of_statement(&error);
    let version: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(of_statement)?;
    let newest = u32::try_from(migrations.len()).expect("a few migrations");
    if version > newest {
        return Err(StoreError::Format { found: version, expected: newest });
    }
    for (number, migration) in (1_u32..).zip(migrations).skip(version as usize) {
        let transaction = connection.transaction().map_err(of_statement)?;
        transaction.execute_batch(migration).map_err(of_statement)?;
        transaction.pragma_update(None, "user_version", number).map_err(of_statement)?;
        transaction.commit().map_err(|error| sql_error::of_commit(&error))?;
    }
    Ok(())
}
