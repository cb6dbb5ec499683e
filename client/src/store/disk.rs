//! A store in a file: SQLite, flushed with every write.

use std::{fs, path::Path};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, DeviceId, UserId,
    session::client::{ChannelLog, IntervalSet},
    wire,
};
use prost::Message;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, params};

use super::{Changes, ENTRIES_KEPT, Installation, Saved, SavedSend, Store, StoreError};

/// Version of the tables.
const VERSION: i64 = 1;
/// `Fanf`: tells this file from others.
const APPLICATION: i64 = 0x4661_6e66;

const TABLES: &str = "
CREATE TABLE installation (one INTEGER PRIMARY KEY CHECK (one = 1), user INTEGER NOT NULL, device INTEGER NOT NULL,
    ack_number INTEGER NOT NULL, acks_confirmed INTEGER NOT NULL, resume BLOB NOT NULL, resume_until INTEGER NOT NULL) STRICT;
CREATE TABLE sends (place INTEGER PRIMARY KEY, channel INTEGER NOT NULL, send BLOB NOT NULL) STRICT;
CREATE TABLE channels (channel INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT;
CREATE TABLE logs (channel INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, epoch_start INTEGER NOT NULL, position INTEGER NOT NULL,
    receipted INTEGER NOT NULL, direct INTEGER NOT NULL, acked_in INTEGER NOT NULL, dirty INTEGER NOT NULL, held BLOB NOT NULL) STRICT;
CREATE TABLE reads (channel INTEGER PRIMARY KEY, seq INTEGER NOT NULL, ordinal INTEGER NOT NULL) STRICT;
CREATE TABLE entries (channel INTEGER NOT NULL, seq INTEGER NOT NULL, frame BLOB NOT NULL, PRIMARY KEY (channel, seq)) STRICT, WITHOUT ROWID;
";

/// Keeps everything in one SQLite file: the queue and what was seen are there again after the process, or the machine, died. The file holds
/// messages and the secret that resumes the session, so it is readable by its user alone. One client at a time has it open.
#[derive(Debug)]
pub struct DiskStore {
    db: Connection,
    per_channel: u64,
}

impl DiskStore {
    /// Opens the file, made where it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_bounded(path, ENTRIES_KEPT)
    }

    /// As [`Self::open`], keeping entries within `per_channel` seqs of a channel's newest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_bounded(path: impl AsRef<Path>, per_channel: u64) -> Result<Self, StoreError> {
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path.as_ref()).map_err(|error| StoreError::Failed(error.to_string()))?;
        let mut db = Connection::open(path)?;
        db.busy_timeout(std::time::Duration::ZERO)?;
        // Exclusive before the first access: then there is no shared memory file, and no second client.
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "FULL")?;
        let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
        let application: i64 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match (application, version, tables) {
            (APPLICATION, VERSION, _) => {}
            (0, 0, 0) => {
                transaction.execute_batch(TABLES)?;
                transaction.pragma_update(None, "application_id", APPLICATION)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
            }
            (APPLICATION, version, _) => {
                return Err(StoreError::Format(format!("it has version {version}, this is {VERSION}")));
            }
            _ => return Err(StoreError::Format("it is not a store of this SDK".into())),
        }
        transaction.commit()?;
        Ok(Self { db, per_channel })
    }

    fn put(&self, to: &Transaction<'_>, changes: &Changes) -> rusqlite::Result<()> {
        if let Some(own) = &changes.installation {
            to.prepare_cached("INSERT OR REPLACE INTO installation VALUES (1, ?, ?, ?, ?, ?, ?)")?.execute(
                params![
                    own.user.0 as i64,
                    own.device.0 as i64,
                    own.ack_number as i64,
                    own.acks_confirmed as i64,
                    &own.resume[..],
                    own.resume_until_ms as i64
                ],
            )?;
        }
        for (channel, from) in &changes.rewound {
            to.prepare_cached("DELETE FROM entries WHERE channel = ? AND seq >= ?")?
                .execute([channel.0 as i64, *from as i64])?;
        }
        for (channel, state) in &changes.channels {
            match state {
                Some(state) => {
                    to.prepare_cached("INSERT OR REPLACE INTO channels VALUES (?, ?)")?
                        .execute(params![channel.0 as i64, state.encode_to_vec()])?;
                }
                None => {
                    for table in ["channels", "logs", "reads", "entries"] {
                        to.prepare_cached(&format!("DELETE FROM {table} WHERE channel = ?"))?
                            .execute([channel.0 as i64])?;
                    }
                }
            }
        }
        for (channel, log) in &changes.logs {
            let held: Vec<u8> = log
                .held
                .iter()
                .flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()].concat())
                .collect();
            to.prepare_cached("INSERT OR REPLACE INTO logs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(
                params![
                    channel.0 as i64,
                    log.epoch,
                    log.epoch_start as i64,
                    log.position as i64,
                    log.receipted as i64,
                    log.direct,
                    log.acked_in as i64,
                    log.dirty,
                    held
                ],
            )?;
        }
        let mut newest = None;
        for ((channel, seq), frame) in &changes.entries {
            to.prepare_cached("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)")?.execute(params![
                channel.0 as i64,
                *seq as i64,
                &frame[..]
            ])?;
            if newest.is_some_and(|newest| newest != *channel) {
                self.prune(to, newest)?;
            }
            newest = Some(*channel);
        }
        self.prune(to, newest)?;
        for (channel, read) in &changes.reads {
            match read {
                Some((seq, ordinal)) => to
                    .prepare_cached("INSERT OR REPLACE INTO reads VALUES (?, ?, ?)")?
                    .execute([channel.0 as i64, *seq as i64, *ordinal as i64])?,
                None => {
                    to.prepare_cached("DELETE FROM reads WHERE channel = ?")?.execute([channel.0 as i64])?
                }
            };
        }
        for send in &changes.sends {
            to.prepare_cached("INSERT OR REPLACE INTO sends VALUES (?, ?, ?)")?.execute(params![
                send.place as i64,
                send.channel.0 as i64,
                send.send.encode_to_vec()
            ])?;
        }
        for place in &changes.settled {
            to.prepare_cached("DELETE FROM sends WHERE place = ?")?.execute([*place as i64])?;
        }
        Ok(())
    }

    /// Lets go what lies too far below the channel's newest.
    fn prune(&self, of: &Transaction<'_>, channel: Option<ChannelId>) -> rusqlite::Result<()> {
        let Some(channel) = channel else { return Ok(()) };
        of.prepare_cached(
            "DELETE FROM entries WHERE channel = ?1 AND seq <= (SELECT max(seq) FROM entries WHERE channel = ?1) - ?2",
        )?
        .execute([channel.0 as i64, self.per_channel.min(1 << 40) as i64])?;
        Ok(())
    }
}

impl Store for DiskStore {
    fn load(&mut self) -> Result<Saved, StoreError> {
        let own = |row: &Row<'_>| {
            Ok(Installation {
                user: UserId(unsigned(row, 0)?),
                device: DeviceId(unsigned(row, 1)?),
                ack_number: unsigned(row, 2)?,
                acks_confirmed: unsigned(row, 3)?,
                resume: row.get::<_, Vec<u8>>(4)?.into(),
                resume_until_ms: unsigned(row, 5)?,
            })
        };
        let installation = self
            .db
            .query_row(
                "SELECT user, device, ack_number, acks_confirmed, resume, resume_until FROM installation",
                [],
                own,
            )
            .optional()?
            .unwrap_or_default();
        let mut saved = Saved { installation, ..Saved::default() };
        let channels = self.all("SELECT state FROM channels", |row| row.get::<_, Vec<u8>>(0))?;
        for state in channels {
            saved.channels.push(wire::ChannelState::decode(&state[..])?);
        }
        saved.logs = self.all("SELECT * FROM logs", |row| {
            let held: Vec<u8> = row.get(8)?;
            let (pairs, _) = held.as_chunks::<16>();
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            let held: IntervalSet =
                pairs.iter().map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect();
            let mut log = ChannelLog::default();
            (log.epoch, log.epoch_start, log.position) = (row.get(1)?, unsigned(row, 2)?, unsigned(row, 3)?);
            (log.receipted, log.direct) = (unsigned(row, 4)?, row.get(5)?);
            (log.acked_in, log.dirty, log.held) = (unsigned(row, 6)?, row.get(7)?, held);
            Ok((ChannelId(unsigned(row, 0)?), log))
        })?;
        saved.reads = self.all("SELECT channel, seq, ordinal FROM reads", |row| {
            Ok((ChannelId(unsigned(row, 0)?), unsigned(row, 1)?, unsigned(row, 2)?))
        })?;
        let sends = self.all("SELECT place, channel, send FROM sends ORDER BY place", |row| {
            Ok((unsigned(row, 0)?, ChannelId(unsigned(row, 1)?), row.get::<_, Vec<u8>>(2)?))
        })?;
        for (place, channel, send) in sends {
            saved.sends.push(SavedSend { place, channel, send: wire::Send::decode(&send[..])? });
        }
        Ok(saved)
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let transaction = self.db.unchecked_transaction()?;
        self.put(&transaction, changes)?;
        Ok(transaction.commit()?)
    }

    fn entries(&mut self, channel: ChannelId) -> Result<Vec<Bytes>, StoreError> {
        let mut select =
            self.db.prepare_cached("SELECT frame FROM entries WHERE channel = ? ORDER BY seq")?;
        let frames = select.query_map([channel.0 as i64], |row| row.get::<_, Vec<u8>>(0).map(Bytes::from))?;
        Ok(frames.collect::<rusqlite::Result<_>>()?)
    }

    fn lasts(&self) -> bool {
        true
    }
}

impl DiskStore {
    fn all<T>(
        &self,
        sql: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.db.prepare(sql)?.query_map([], read)?.collect()
    }
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|value| value as u64)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Format(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<prost::DecodeError> for StoreError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Format(error.to_string())
    }
}
