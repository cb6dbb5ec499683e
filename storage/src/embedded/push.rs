//! The push outbox in a SQLite file of its own, so that it never holds a commit up.

use std::{path::Path, sync::Arc};

use fanfare_proto::{ChannelId, MessageId, UserId};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    checkpoint::Checkpointer,
    database::{Database, sql},
    folder::{self, FolderLock},
    sql_error::of_statement,
    sqlite::{limit_of, unsigned},
};
use crate::{
    error::StoreError,
    push::{
        CaughtUp, ERROR_BYTES_MAX, Push, PushCounts, PushKey, PushKind, PushOutbox, PushOutcome, PushState,
    },
};

const MIGRATIONS: &[&str] = &[include_str!("../../migrations/push/0001.sql")];

/// What a row's `state` says.
const WAITING: u8 = 0;
const ENDED: u8 = 1;
const DEAD: u8 = 2;

/// About what a row takes in the log.
const ROW_BYTES: u64 = 300;

const COLUMNS: &str = "user, channel, epoch, seq, kind, sender, message, created_ms, due_ms, attempts, error";

/// See the module.
#[derive(Debug)]
pub struct SqlitePushes {
    database: Arc<Database>,
    checkpointer: Checkpointer,
    _lock: Arc<FolderLock>,
}

impl SqlitePushes {
    /// Opens or creates the file in `folder`. What it holds is on the disk on return.
    ///
    /// # Errors
    /// As of [`crate::embedded::open`].
    pub(super) fn open(folder: &Path, lock: Arc<FolderLock>) -> Result<Self, StoreError> {
        let database = Arc::new(Database::open(&folder.join("push.db"), MIGRATIONS, 0)?);
        folder::sync(folder)?;
        let checkpointer = Checkpointer::start(&[&database])?;
        Ok(Self { database, checkpointer, _lock: lock })
    }

    fn write<T>(
        &self,
        rows: usize,
        step: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let value =
            self.database.write(|connection| step(connection).map_err(|error| of_statement(&error)))?;
        self.checkpointer.written(rows as u64 * ROW_BYTES);
        Ok(value)
    }
}

fn push_of(row: &Row<'_>) -> rusqlite::Result<Push> {
    let kind: u8 = row.get(4)?;
    let kind = PushKind::from_u8(kind).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Integer, "no kind of push".into())
    })?;
    Ok(Push {
        key: PushKey {
            user: UserId(unsigned(row, 0)?),
            channel: ChannelId(unsigned(row, 1)?),
            epoch: row.get(2)?,
            seq: unsigned(row, 3)?,
        },
        kind,
        sender: UserId(unsigned(row, 5)?),
        message_id: MessageId(unsigned(row, 6)?),
        created_ms: unsigned(row, 7)?,
        due_ms: unsigned(row, 8)?,
        attempts: row.get(9)?,
        error: row.get(10)?,
    })
}

/// An error as it is kept.
fn shortened(error: &str) -> &str {
    &error[..error.floor_char_boundary(ERROR_BYTES_MAX)]
}

// As statements and the index of mentions have them: a partial index is taken for literals alone.
const _: () = assert!(PushKind::Mention as u8 == 2 && PushKind::Group as u8 == 4);

/// A key as statements have it.
const fn place_of(key: PushKey) -> (i64, i64, u32, i64) {
    (sql(key.user.0), sql(key.channel.0), key.epoch, sql(key.seq))
}

/// Has a mention that was inserted wait for all of its user and channel that wait, or end where a newer one does.
fn merge_mentions(connection: &Connection, push: &Push) -> rusqlite::Result<()> {
    let place = place_of(push.key);
    let (user, channel, epoch, seq) = place;
    let (has_newer, due_ms) = connection
        .prepare_cached(
            "SELECT max((epoch, seq) > (?3, ?4)), min(due_ms) FROM pushes INDEXED BY pushes_mentions
             WHERE user = ?1 AND channel = ?2 AND state = 0 AND kind = 2 AND (epoch, seq) <> (?3, ?4)",
        )?
        .query_row(place, |row| Ok((row.get::<_, Option<bool>>(0)?, row.get::<_, Option<i64>>(1)?)))?;
    // Both are null where no other waits.
    let (Some(has_newer), Some(due_ms)) = (has_newer, due_ms) else { return Ok(()) };
    let put_ms = sql(push.created_ms);
    if has_newer {
        connection
            .prepare_cached(
                "UPDATE pushes SET state = 1, due_ms = ?5 WHERE user = ?1 AND channel = ?2 AND epoch = ?3 AND seq = ?4",
            )?
            .execute((user, channel, epoch, seq, put_ms))?;
        return Ok(());
    }
    connection
        .prepare_cached(
            "UPDATE pushes INDEXED BY pushes_mentions SET state = 1, due_ms = ?5
             WHERE user = ?1 AND channel = ?2 AND state = 0 AND kind = 2 AND (epoch, seq) < (?3, ?4)",
        )?
        .execute((user, channel, epoch, seq, put_ms))?;
    connection
        .prepare_cached(
            "UPDATE pushes SET due_ms = min(due_ms, ?5) WHERE user = ?1 AND channel = ?2 AND epoch = ?3 AND seq = ?4",
        )?
        .execute((user, channel, epoch, seq, due_ms))?;
    Ok(())
}

impl PushOutbox for SqlitePushes {
    fn put(&self, pushes: &[Push]) -> Result<usize, StoreError> {
        if pushes.is_empty() {
            return Ok(0);
        }
        self.write(pushes.len(), |connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO pushes (user, channel, epoch, seq, kind, sender, message, created_ms, due_ms, attempts, state, error)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '') ON CONFLICT DO NOTHING",
            )?;
            let mut told = connection.prepare_cached(
                "INSERT INTO absences (channel, user, pushed_ms) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET pushed_ms = max(pushed_ms, excluded.pushed_ms)",
            )?;
            let mut new = 0;
            for push in pushes {
                let Push { key, kind, sender, message_id, created_ms, due_ms, .. } = push;
                let inserted = insert.execute((
                    sql(key.user.0),
                    sql(key.channel.0),
                    key.epoch,
                    sql(key.seq),
                    *kind as u8,
                    sql(sender.0),
                    sql(message_id.0),
                    sql(*created_ms),
                    sql(*due_ms),
                ))?;
                if inserted == 0 {
                    continue;
                }
                match kind {
                    PushKind::Mention => merge_mentions(connection, push)?,
                    PushKind::Group => {
                        told.execute((sql(key.channel.0), sql(key.user.0), sql(*created_ms)))?;
                    }
                    PushKind::Direct | PushKind::Reply => {}
                }
                new += inserted;
            }
            Ok(new)
        })
    }

    fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Push>, StoreError> {
        self.database.read(|connection| {
            // Two ranges of the index, side by side: however many are due, none are sorted.
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM pushes INDEXED BY pushes_next
                 WHERE state = 0 AND kind = ?1 AND due_ms <= ?3
                 UNION ALL
                 SELECT {COLUMNS} FROM pushes INDEXED BY pushes_next
                 WHERE state = 0 AND kind = ?2 AND due_ms <= ?3
                 ORDER BY due_ms LIMIT ?4"
            ))?;
            let mut due = |kinds: [PushKind; 2]| -> rusqlite::Result<Vec<Push>> {
                let [one, other] = kinds.map(|kind| kind as u8);
                query.query_map((one, other, sql(now_ms), limit_of(limit)), push_of)?.collect()
            };
            let (mut first, mut others) = (due(PushKind::FIRST)?, due(PushKind::OTHERS)?);
            let share = limit - limit / 4;
            first.truncate(share.max(limit - others.len()));
            others.truncate(limit - first.len());
            first.append(&mut others);
            Ok(first)
        })
    }

    fn finish(&self, now_ms: u64, outcomes: &[(PushKey, PushOutcome)]) -> Result<(), StoreError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        self.write(outcomes.len(), |connection| {
            let mut set = connection.prepare_cached(
                "UPDATE pushes SET state = ?1, due_ms = ?2, attempts = attempts + ?3, error = iif(?4 = '', error, ?4)
                 WHERE user = ?5 AND channel = ?6 AND epoch = ?7 AND seq = ?8 AND state = 0",
            )?;
            let mut untold = connection.prepare_cached(
                "DELETE FROM absences WHERE user = ?1 AND channel = ?2 AND pushed_ms =
                 (SELECT created_ms FROM pushes
                  WHERE user = ?1 AND channel = ?2 AND epoch = ?3 AND seq = ?4 AND kind = 4 AND state = 0)",
            )?;
            for (key, outcome) in outcomes {
                if matches!(outcome, PushOutcome::Cancelled | PushOutcome::Dead { .. }) {
                    // Only while the row still waits, so before it is set.
                    untold.execute(place_of(*key))?;
                }
                let (state, due_ms, attempts, error) = match outcome {
                    PushOutcome::Delivered => (ENDED, now_ms, 1, ""),
                    PushOutcome::Cancelled => (ENDED, now_ms, 0, ""),
                    PushOutcome::Postponed { due_ms } => (WAITING, *due_ms, 0, ""),
                    PushOutcome::Retry { due_ms, error } => (WAITING, *due_ms, 1, error.as_str()),
                    PushOutcome::Dead { error } => (DEAD, now_ms, 1, error.as_str()),
                };
                set.execute((
                    state,
                    sql(due_ms),
                    attempts,
                    shortened(error),
                    sql(key.user.0),
                    sql(key.channel.0),
                    key.epoch,
                    sql(key.seq),
                ))?;
            }
            Ok(())
        })
    }

    fn cancel(&self, now_ms: u64, caught_up: &[CaughtUp]) -> Result<usize, StoreError> {
        if caught_up.is_empty() {
            return Ok(0);
        }
        self.write(caught_up.len(), |connection| {
            let mut cancel = connection.prepare_cached(
                "UPDATE pushes SET state = 1, due_ms = ? WHERE user = ? AND channel = ? AND seq <= ? AND state = 0",
            )?;
            let mut cancelled = 0;
            for (user, channel, seq) in caught_up {
                cancelled += cancel.execute((sql(now_ms), sql(user.0), sql(channel.0), sql(*seq)))?;
            }
            Ok(cancelled)
        })
    }

    fn of_user(&self, user: UserId, limit: usize) -> Result<Vec<(Push, PushState)>, StoreError> {
        self.database.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS}, state FROM pushes WHERE user = ? ORDER BY channel, epoch, seq LIMIT ?"
                ))?
                .query_map((sql(user.0), limit_of(limit)), |row| {
                    let state = match row.get::<_, u8>(11)? {
                        WAITING => PushState::Waiting,
                        DEAD => PushState::Dead,
                        _ => PushState::Ended,
                    };
                    Ok((push_of(row)?, state))
                })?
                .collect()
        })
    }

    fn dead(&self, limit: usize) -> Result<Vec<Push>, StoreError> {
        self.database.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM pushes WHERE state = 2 ORDER BY due_ms LIMIT ?"
                ))?
                .query_map([limit_of(limit)], push_of)?
                .collect()
        })
    }

    fn replay(&self, now_ms: u64, key: Option<PushKey>) -> Result<usize, StoreError> {
        const AGAIN: &str =
            "UPDATE pushes SET state = 0, due_ms = ?1, created_ms = ?1, attempts = 0 WHERE state = 2";
        self.write(1, |connection| match key {
            None => connection.execute(AGAIN, [sql(now_ms)]),
            Some(key) => connection.execute(
                &format!("{AGAIN} AND user = ?2 AND channel = ?3 AND epoch = ?4 AND seq = ?5"),
                (sql(now_ms), sql(key.user.0), sql(key.channel.0), key.epoch, sql(key.seq)),
            ),
        })
    }

    fn told(&self, channel: ChannelId, users: &[UserId]) -> Result<Vec<(UserId, u64)>, StoreError> {
        self.database.read(|connection| {
            let mut told =
                connection.prepare_cached("SELECT pushed_ms FROM absences WHERE channel = ? AND user = ?")?;
            let mut found = Vec::new();
            for user in users {
                let pushed_ms =
                    told.query_row((sql(channel.0), sql(user.0)), |row| unsigned(row, 0)).optional()?;
                found.extend(pushed_ms.map(|pushed_ms| (*user, pushed_ms)));
            }
            Ok(found)
        })
    }

    fn counts(&self) -> Result<PushCounts, StoreError> {
        self.database.read(|connection| {
            let waiting = connection
                .prepare_cached("SELECT count(*), ifnull(min(created_ms), 0) FROM pushes WHERE state = 0")?
                .query_row([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
            let dead = connection
                .prepare_cached("SELECT count(*) FROM pushes WHERE state = 2")?
                .query_row([], |row| unsigned(row, 0))?;
            Ok(PushCounts { waiting: waiting.0, oldest_ms: waiting.1, dead })
        })
    }

    fn forget(&self, before_ms: u64, dead_before_ms: u64, limit: usize) -> Result<usize, StoreError> {
        self.write(limit, |connection| {
            let mut gone = 0;
            for (state, before_ms) in [(ENDED, before_ms), (DEAD, dead_before_ms)] {
                gone += connection
                    .prepare_cached(
                        "DELETE FROM pushes WHERE (user, channel, epoch, seq) IN
                         (SELECT user, channel, epoch, seq FROM pushes WHERE state = ? AND due_ms < ? LIMIT ?)",
                    )?
                    .execute((state, sql(before_ms), limit_of(limit - gone.min(limit))))?;
            }
            Ok(gone)
        })
    }

    fn began_ms(&self) -> Result<Option<u64>, StoreError> {
        self.database.read(|connection| {
            connection
                .query_row("SELECT value FROM notes WHERE name = 'began'", [], |row| unsigned(row, 0))
                .optional()
        })
    }

    fn begin(&self, now_ms: u64) -> Result<(), StoreError> {
        self.write(1, |connection| {
            connection
                .execute(
                    "INSERT INTO notes (name, value) VALUES ('began', ?) ON CONFLICT DO NOTHING",
                    [sql(now_ms)],
                )
                .map(drop)
        })
    }
}
