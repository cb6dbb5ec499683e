//! The metadata store in SQLite: `meta.db` with the commit path, `cursors.db` with what may never hold it up.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use fanfare_proto::{ChannelId, DeviceId, MessageId, UserId};
use parking_lot::Mutex;
use rusqlite::{OptionalExtension, Row};

use super::{
    Options,
    checkpoint::Checkpointer,
    commit, cursors,
    database::{Database, sql},
    folder::FolderLock,
    record, sql_error,
};
use crate::{
    error::StoreError,
    fault,
    metadata::{Metadata, WalkedEntry},
    model::{
        Activity, Channel, CursorBatch, Device, DevicePosition, Hash, Mark, MarkKind, Member, OutboxBatch,
        OutboxRow, ShardCommit, User, UserCursor,
    },
    ownership::{Lease, Ownership},
};

const META_MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/meta/0001.sql"),
    include_str!("../../migrations/meta/0002.sql"),
    include_str!("../../migrations/meta/0003-accounts.sql"),
    include_str!("../../migrations/meta/0004-rights.sql"),
    include_str!("../../migrations/meta/0005-outbox.sql"),
];
const CURSORS_MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/cursors/0001.sql"),
    include_str!("../../migrations/cursors/0002.sql"),
    include_str!("../../migrations/cursors/0003-seen.sql"),
];

/// The embedded metadata store. Holds every shard of the deployment.
#[derive(Debug)]
pub struct SqliteMetadata {
    meta: Arc<Database>,
    cursors: Arc<Database>,
    /// The number of the next outbox row and the buffer in which rows are built. Taken before the writer.
    outbox: Mutex<OutboxState>,
    checkpointer: Checkpointer,
    lock: Arc<FolderLock>,
}

#[derive(Debug)]
struct OutboxState {
    next: u64,
    body: Vec<u8>,
}

/// The most bytes that the row buffer keeps between commits.
const BODY_KEPT_BYTES: usize = 4 * 1024 * 1024;

impl SqliteMetadata {
    /// Opens or creates both files in `folder`. What they hold is on the disk on return.
    ///
    /// # Errors
    /// As of [`crate::embedded::open`].
    pub(super) fn open(folder: &Path, options: &Options, lock: Arc<FolderLock>) -> Result<Self, StoreError> {
        let meta = Arc::new(Database::open(&folder.join("meta.db"), META_MIGRATIONS, options.log_bytes)?);
        let cursors = Arc::new(Database::open(&folder.join("cursors.db"), CURSORS_MIGRATIONS, 0)?);
        let newest: Option<i64> = meta.read(|connection| {
            connection.query_row("SELECT max(number) FROM outbox", [], |row| row.get(0))
        })?;
        let outbox = OutboxState { next: newest.unwrap_or(0).cast_unsigned() + 1, body: Vec::new() };
        let checkpointer = Checkpointer::start(&[&meta, &cursors])?;
        Ok(Self { meta, cursors, outbox: Mutex::new(outbox), checkpointer, lock })
    }

    /// The folder's lock.
    pub(super) fn lock(&self) -> Arc<FolderLock> {
        Arc::clone(&self.lock)
    }

    /// As [`Checkpointer::at_rest`].
    pub(super) fn at_rest(&self, at_rest: impl Fn() + Send + Sync + 'static) {
        self.checkpointer.at_rest(Box::new(at_rest));
    }

    /// As [`Database::write`] of `meta.db`.
    pub(super) fn write_meta<T>(
        &self,
        step: impl FnOnce(&rusqlite::Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let value = self.meta.write(step)?;
        self.written(0);
        Ok(value)
    }

    /// As [`Database::read`] of `meta.db`.
    pub(super) fn read_meta<T>(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.meta.read(query)
    }

    /// As [`Database::write`] of `cursors.db`, of what comes in a trickle.
    pub(super) fn trickle<T>(
        &self,
        step: impl FnOnce(&rusqlite::Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let value = self.cursors.write(step)?;
        self.checkpointer.trickled();
        Ok(value)
    }

    /// As [`Database::read`] of `cursors.db`.
    pub(super) fn read_cursors<T>(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.cursors.read(query)
    }

    fn written(&self, bytes: usize) {
        self.checkpointer.written(bytes as u64);
    }
}

/// The number behind a column of ids, seqs or times.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn hash_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    row.get(column)
}

fn channel_of(row: &Row<'_>) -> rusqlite::Result<Channel> {
    Ok(Channel {
        channel: ChannelId(unsigned(row, 0)?),
        kind: row.get(1)?,
        name: row.get(2)?,
        history: row.get(3)?,
        join: row.get(4)?,
        posting: row.get(5)?,
        pair: (UserId(unsigned(row, 6)?), UserId(unsigned(row, 7)?)),
        epoch: row.get(8)?,
        epoch_start: unsigned(row, 9)?,
        head: unsigned(row, 10)?,
        ordinal: unsigned(row, 11)?,
        message_id: MessageId(unsigned(row, 12)?),
        chain: hash_of(row, 13)?,
    })
}

pub(super) fn user_of(row: &Row<'_>) -> rusqlite::Result<User> {
    let user = UserId(unsigned(row, 0)?);
    Ok(User { user, name: row.get(1)?, flags: row.get(2)?, tokens_from_s: unsigned(row, 3)? })
}

/// A user by id.
pub(super) fn user_by_id(connection: &rusqlite::Connection, user: UserId) -> rusqlite::Result<Option<User>> {
    connection
        .prepare_cached("SELECT user, name, flags, tokens_from_s FROM users WHERE user = ?")?
        .query_row([sql(user.0)], user_of)
        .optional()
}

/// Inserts a user; `false` where the name is taken.
pub(super) fn insert_user(connection: &rusqlite::Connection, user: &User) -> Result<bool, StoreError> {
    let added = connection
        .prepare_cached("INSERT INTO users (user, name, flags, tokens_from_s) VALUES (?, ?, ?, ?)")
        .and_then(|mut insert| {
            insert.execute((sql(user.user.0), &user.name, user.flags, sql(user.tokens_from_s)))
        });
    match added {
        Ok(_) => {}
        Err(error) if sql_error::is_conflict(&error) => return Ok(false),
        Err(error) => return Err(sql_error::of_statement(&error)),
    }
    // The id is given: with a clock that was set back, no owner may give it again.
    connection
        .prepare_cached("UPDATE shards SET last_id = max(last_id, ?) WHERE shard = ?")
        .and_then(|mut update| update.execute((sql(user.user.0), user.user.shard().0)))
        .map(|_| true)
        .map_err(|error| sql_error::of_statement(&error))
}

/// Unix milliseconds by this machine's clock.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

impl Metadata for SqliteMetadata {
    fn commit(
        &self,
        commits: &[ShardCommit],
        drained: &[OutboxRow],
    ) -> Result<Option<OutboxRow>, StoreError> {
        fault::point("before-commit");
        let mut outbox = self.outbox.lock();
        let OutboxState { next, body } = &mut *outbox;
        let number = *next;
        // Used up whatever the outcome: a commit that is not known may have stored its row.
        *next += 1;
        let committed_ms = now_ms();
        let mut bytes = 0;
        self.meta.write(|connection| {
            commit::delete_rows(connection, drained)?;
            commit::check_terms(connection, commits)?;
            for commit in commits {
                commit::shard(connection, commit)?;
                bytes += commit.entries.len() * commit::ENTRY_ROW_BYTES;
            }
            if !commits.is_empty() {
                record::encode_outbox(body, commits)?;
                commit::outbox_row(connection, number, committed_ms, body)?;
                bytes += body.len();
            }
            Ok(())
        })?;
        if body.capacity() > BODY_KEPT_BYTES {
            *body = Vec::new();
        }
        drop(outbox);
        fault::point("after-commit");
        self.written(bytes);
        Ok((!commits.is_empty()).then_some(OutboxRow(number)))
    }

    fn forget_drained(&self, drained: &[OutboxRow]) -> Result<(), StoreError> {
        if drained.is_empty() {
            return Ok(());
        }
        fault::point("before-forget");
        self.meta.write(|connection| commit::delete_rows(connection, drained))?;
        fault::point("after-forget");
        self.written(0);
        Ok(())
    }

    fn outbox(&self) -> Result<Vec<OutboxBatch>, StoreError> {
        let rows = self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT number, committed_ms, body FROM outbox ORDER BY number")?
                .query_map([], |row| {
                    let body: Vec<u8> = row.get(2)?;
                    Ok((unsigned(row, 0)?, unsigned(row, 1)?, Bytes::from(body)))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut batches = Vec::with_capacity(rows.len());
        for (number, committed_ms, body) in rows {
            let (entries, lists) = record::decode_outbox(&body)?;
            batches.push(OutboxBatch { row: OutboxRow(number), committed_ms, entries, lists });
        }
        Ok(batches)
    }

    fn shard(&self, shard: u16) -> Result<(u64, u64), StoreError> {
        let found = self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT term, last_id FROM shards WHERE shard = ?")?
                .query_row([shard], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))
                .optional()
        })?;
        Ok(found.unwrap_or((0, 0)))
    }

    fn channel(&self, channel: ChannelId) -> Result<Option<Channel>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(commit::CHANNEL_BY_ID)?
                .query_row([sql(channel.0)], channel_of)
                .optional()
        })
    }

    fn direct(&self, one: UserId, other: UserId) -> Result<Option<ChannelId>, StoreError> {
        let (low, high) = (one.min(other), one.max(other));
        self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT channel FROM channels WHERE low = ? AND high = ? AND low <> 0")?
                .query_row([sql(low.0), sql(high.0)], |row| unsigned(row, 0).map(ChannelId))
                .optional()
        })
    }

    fn channels(&self, after: ChannelId, limit: usize) -> Result<Vec<Channel>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(commit::CHANNELS_ABOVE)?
                .query_map([sql(after.0), limit_of(limit)], channel_of)?
                .collect()
        })
    }

    fn members(&self, channel: ChannelId) -> Result<Vec<Member>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT user, role, joined_seq, left_seq, visible_from FROM members WHERE channel = ?
                     ORDER BY user, joined_seq",
                )?
                .query_map([sql(channel.0)], |row| {
                    Ok(Member {
                        user: UserId(unsigned(row, 0)?),
                        role: row.get(1)?,
                        joined_seq: unsigned(row, 2)?,
                        left_seq: unsigned(row, 3)?,
                        visible_from: unsigned(row, 4)?,
                    })
                })?
                .collect()
        })
    }

    fn stretches(&self, channel: ChannelId, user: UserId) -> Result<Vec<Member>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT role, joined_seq, left_seq, visible_from FROM members WHERE channel = ? AND user = ?
                     ORDER BY joined_seq",
                )?
                .query_map((sql(channel.0), sql(user.0)), |row| {
                    Ok(Member {
                        user,
                        role: row.get(0)?,
                        joined_seq: unsigned(row, 1)?,
                        left_seq: unsigned(row, 2)?,
                        visible_from: unsigned(row, 3)?,
                    })
                })?
                .collect()
        })
    }

    fn marks(&self, channel: ChannelId) -> Result<Vec<Mark>, StoreError> {
        let rows: Vec<(u64, u8, u64, u64)> = self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT user, kind, until_ms, seq FROM marks WHERE channel = ? ORDER BY user, kind",
                )?
                .query_map([sql(channel.0)], |row| {
                    Ok((unsigned(row, 0)?, row.get(1)?, unsigned(row, 2)?, unsigned(row, 3)?))
                })?
                .collect()
        })?;
        let mark = |(user, kind, until_ms, seq)| {
            let kind = MarkKind::from_u8(kind)
                .ok_or_else(|| StoreError::Damaged(format!("a mark of kind {kind} in channel {channel}")))?;
            Ok(Mark { user: UserId(user), kind, until_ms, seq })
        };
        rows.into_iter().map(mark).collect()
    }

    fn invitations(
        &self,
        user: UserId,
        after: ChannelId,
        limit: usize,
    ) -> Result<Vec<ChannelId>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT channel FROM marks WHERE user = ? AND kind = 3 AND channel > ?
                     ORDER BY channel LIMIT ?",
                )?
                .query_map([sql(user.0), sql(after.0), limit_of(limit)], |row| {
                    unsigned(row, 0).map(ChannelId)
                })?
                .collect()
        })
    }

    fn block(&self, user: UserId, blocked: UserId, stands: bool, most: usize) -> Result<bool, StoreError> {
        self.meta.write(|connection| {
            let write = || -> rusqlite::Result<bool> {
                let pair = [sql(user.0), sql(blocked.0)];
                if !stands {
                    connection.execute("DELETE FROM blocks WHERE user = ? AND blocked = ?", pair)?;
                    return Ok(true);
                }
                let others: i64 = connection.query_row(
                    "SELECT count(*) FROM blocks WHERE user = ? AND blocked <> ?",
                    pair,
                    |row| row.get(0),
                )?;
                if others >= limit_of(most) {
                    return Ok(false);
                }
                connection.execute("INSERT OR IGNORE INTO blocks (user, blocked) VALUES (?, ?)", pair)?;
                Ok(true)
            };
            write().map_err(|error| sql_error::of_statement(&error))
        })
    }

    fn blocks(&self, user: UserId) -> Result<Vec<UserId>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT blocked FROM blocks WHERE user = ? ORDER BY blocked")?
                .query_map([sql(user.0)], |row| unsigned(row, 0).map(UserId))?
                .collect()
        })
    }

    fn is_blocked(&self, user: UserId, other: UserId) -> Result<bool, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT 1 FROM blocks WHERE user = ? AND blocked = ?")?
                .exists([sql(user.0), sql(other.0)])
        })
    }

    fn memberships(&self, user: UserId) -> Result<Vec<ChannelId>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT DISTINCT channel FROM members WHERE user = ? AND left_seq = 0 ORDER BY channel",
                )?
                .query_map([sql(user.0)], |row| unsigned(row, 0).map(ChannelId))?
                .collect()
        })
    }

    fn hashes(&self, ids: &[MessageId]) -> Result<HashMap<MessageId, (ChannelId, u64, Hash)>, StoreError> {
        self.meta.read(|connection| {
            let mut by_id =
                connection.prepare_cached("SELECT channel, seq, hash FROM entries WHERE message_id = ?")?;
            let mut found = HashMap::with_capacity(ids.len());
            for id in ids {
                let row = by_id
                    .query_row([sql(id.0)], |row| {
                        Ok((ChannelId(unsigned(row, 0)?), unsigned(row, 1)?, hash_of(row, 2)?))
                    })
                    .optional()?;
                if let Some(row) = row {
                    found.insert(*id, row);
                }
            }
            Ok(found)
        })
    }

    fn walk(&self, after: MessageId, limit: usize) -> Result<Vec<WalkedEntry>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT message_id, channel, epoch, seq, hash FROM entries WHERE message_id > ?
                     ORDER BY message_id LIMIT ?",
                )?
                .query_map([sql(after.0), limit_of(limit)], |row| {
                    Ok(WalkedEntry {
                        message_id: MessageId(unsigned(row, 0)?),
                        channel: ChannelId(unsigned(row, 1)?),
                        epoch: row.get(2)?,
                        seq: unsigned(row, 3)?,
                        hash: hash_of(row, 4)?,
                    })
                })?
                .collect()
        })
    }

    fn add_user(&self, user: &User) -> Result<bool, StoreError> {
        self.meta.write(|connection| insert_user(connection, user))
    }

    fn user(&self, user: UserId) -> Result<Option<User>, StoreError> {
        self.meta.read(|connection| user_by_id(connection, user))
    }

    fn user_named(&self, name: &str) -> Result<Option<User>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached("SELECT user, name, flags, tokens_from_s FROM users WHERE name = ?")?
                .query_row([name], user_of)
                .optional()
        })
    }

    fn users(&self, after: UserId, limit: usize) -> Result<Vec<User>, StoreError> {
        self.meta.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT user, name, flags, tokens_from_s FROM users WHERE user > ? ORDER BY user LIMIT ?",
                )?
                .query_map([sql(after.0), limit_of(limit)], user_of)?
                .collect()
        })
    }

    fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<u32, StoreError> {
        self.cursors.write(|connection| cursors::revoke(connection, user, device))
    }

    fn write_cursors(&self, batch: &CursorBatch) -> Result<(), StoreError> {
        self.cursors.write(|connection| cursors::write(connection, batch))?;
        self.written(0);
        Ok(())
    }

    fn cursors(&self, channel: ChannelId) -> Result<Vec<UserCursor>, StoreError> {
        self.cursors.read(|connection| cursors::of_channel(connection, channel))
    }

    fn activities(&self, channel: ChannelId) -> Result<Vec<Activity>, StoreError> {
        self.cursors.read(|connection| cursors::activities(connection, channel))
    }

    fn cursor(&self, channel: ChannelId, user: UserId) -> Result<UserCursor, StoreError> {
        self.cursors.read(|connection| cursors::of_member(connection, channel, user))
    }

    fn positions(&self, user: UserId, device: DeviceId) -> Result<Vec<DevicePosition>, StoreError> {
        self.cursors.read(|connection| cursors::positions(connection, user, device))
    }

    fn devices(&self, user: UserId) -> Result<Vec<Device>, StoreError> {
        self.cursors.read(|connection| cursors::devices(connection, user))
    }

    fn secret(&self, name: &str, make: &dyn Fn() -> Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let by_name = |connection: &rusqlite::Connection| {
            connection
                .prepare_cached("SELECT value FROM secrets WHERE name = ?")?
                .query_row([name], |row| row.get::<_, Vec<u8>>(0))
                .optional()
        };
        if let Some(secret) = self.meta.read(by_name)? {
            return Ok(secret);
        }
        self.meta.write(|connection| {
            let made = || -> rusqlite::Result<Vec<u8>> {
                // Looked for again under the writer: two callers must not make two.
                if let Some(secret) = by_name(connection)? {
                    return Ok(secret);
                }
                let secret = make();
                connection.execute("INSERT INTO secrets (name, value) VALUES (?, ?)", (name, &secret))?;
                Ok(secret)
            };
            made().map_err(|error| sql_error::of_statement(&error))
        })
    }
}

impl Ownership for SqliteMetadata {
    fn take(&self, shard: u16) -> Result<Lease, StoreError> {
        let leases = self.take_all(&[shard])?;
        leases
            .into_iter()
            .next()
            .ok_or_else(|| StoreError::Unavailable(format!("shard {shard} was not taken")))
    }

    fn take_all(&self, shards: &[u16]) -> Result<Vec<Lease>, StoreError> {
        self.meta.write(|connection| {
            let mut take = connection
                .prepare_cached(
                    "INSERT INTO shards (shard, term, last_id) VALUES (?, 1, 0)
                     ON CONFLICT (shard) DO UPDATE SET term = term + 1 RETURNING term",
                )
                .map_err(|error| sql_error::of_statement(&error))?;
            let mut leases = Vec::with_capacity(shards.len());
            for shard in shards {
                let term = take.query_row([shard], |row| unsigned(row, 0));
                leases.push(Lease {
                    shard: *shard,
                    term: term.map_err(|error| sql_error::of_statement(&error))?,
                });
            }
            Ok(leases)
        })
    }

    fn lease(&self, shard: u16) -> Result<Option<Lease>, StoreError> {
        let (term, _) = self.shard(shard)?;
        Ok((term > 0).then_some(Lease { shard, term }))
    }
}

pub(super) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
