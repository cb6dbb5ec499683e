//! The statements of the commit path.

use std::collections::HashMap;

use rusqlite::Connection;

use super::{
    database::sql,
    sql_error::{is_conflict, of_statement},
};
use crate::{
    error::StoreError,
    model::{Channel, Entry, HeadMove, MarkChange, MemberChange, OutboxRow, ShardCommit},
};

/// About what one row of `entries` adds to the log, bytes.
pub const ENTRY_ROW_BYTES: usize = 160;

/// Columns in the order in which channels are read.
macro_rules! channels {
    ($rest:literal) => {
        concat!(
            "SELECT channel, kind, name, history, join_policy, posting, low, high, epoch, epoch_start, head, ",
            "ordinal, message_id, chain FROM channels JOIN heads USING (channel) WHERE ",
            $rest
        )
    };
}
pub const CHANNEL_BY_ID: &str = channels!("channel = ?");
pub const CHANNELS_ABOVE: &str = channels!("channel > ? ORDER BY channel LIMIT ?");

/// Writes one shard's part; the outbox row is of all.
pub fn shard(connection: &Connection, commit: &ShardCommit) -> Result<(), StoreError> {
    for channel in &commit.channels {
        insert_channel(connection, channel)?;
    }
    move_heads(connection, &commit.heads)?;
    insert_entries(connection, &commit.entries)?;
    write_members(connection, &commit.members).map_err(|error| of_statement(&error))?;
    write_marks(connection, &commit.marks).map_err(|error| of_statement(&error))?;
    for (channel, of) in &commit.settings {
        connection
            .prepare_cached(
                "UPDATE channels SET name = ?, history = ?, join_policy = ?, posting = ? WHERE channel = ?",
            )
            .and_then(|mut update| {
                update.execute((&of.name, of.history, of.join, of.posting, sql(channel.0)))
            })
            .map_err(|error| of_statement(&error))?;
    }
    Ok(())
}

/// Stores one outbox row.
pub fn outbox_row(
    connection: &Connection,
    number: u64,
    committed_ms: u64,
    body: &[u8],
) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT INTO outbox (number, committed_ms, body) VALUES (?, ?, ?)")
        .and_then(|mut insert| insert.execute((sql(number), sql(committed_ms), body)))
        .map(drop)
        .map_err(|error| of_statement(&error))
}

/// Deletes outbox rows; those that are gone already are passed over.
pub fn delete_rows(connection: &Connection, rows: &[OutboxRow]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let delete = || -> rusqlite::Result<()> {
        let mut delete = connection.prepare_cached("DELETE FROM outbox WHERE number = ?")?;
        for row in rows {
            delete.execute([sql(row.0)])?;
        }
        Ok(())
    };
    delete().map_err(|error| of_statement(&error))
}

/// Checks the terms of all shards and notes the highest ids they gave: once for a shard, however many parts it has.
pub fn check_terms(connection: &Connection, commits: &[ShardCommit]) -> Result<(), StoreError> {
    let mut checked: HashMap<u16, u64> = HashMap::with_capacity(commits.len());
    // The last part of a shard has the highest id.
    for commit in commits.iter().rev() {
        if checked.insert(commit.shard, commit.term) != Some(commit.term) {
            check_term(connection, commit)?;
        }
    }
    Ok(())
}

fn check_term(connection: &Connection, commit: &ShardCommit) -> Result<(), StoreError> {
    let moved = connection
        .prepare_cached("UPDATE shards SET last_id = max(last_id, ?) WHERE shard = ? AND term = ?")
        .and_then(|mut update| update.execute((sql(commit.last_id), commit.shard, sql(commit.term))))
        .map_err(|error| of_statement(&error))?;
    if moved == 0 {
        return Err(StoreError::Fenced { shard: commit.shard });
    }
    Ok(())
}

fn insert_channel(connection: &Connection, channel: &Channel) -> Result<(), StoreError> {
    let (low, high) = (channel.pair.0.min(channel.pair.1), channel.pair.0.max(channel.pair.1));
    let insert = || -> rusqlite::Result<()> {
        let mut insert_channel = connection.prepare_cached(
            "INSERT INTO channels (channel, kind, name, history, join_policy, posting, low, high, epoch_start)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        insert_channel.execute((
            sql(channel.channel.0),
            channel.kind,
            &channel.name,
            channel.history,
            channel.join,
            channel.posting,
            sql(low.0),
            sql(high.0),
            sql(channel.epoch_start),
        ))?;
        let mut insert_head = connection.prepare_cached(
            "INSERT INTO heads (channel, epoch, head, ordinal, message_id, chain) VALUES (?, ?, ?, ?, ?, ?)",
        )?;
        insert_head.execute((
            sql(channel.channel.0),
            channel.epoch,
            sql(channel.head),
            sql(channel.ordinal),
            sql(channel.message_id.0),
            &channel.chain[..],
        ))?;
        Ok(())
    };
    match insert() {
        Ok(()) => Ok(()),
        // The channel, or the pair's channel, exists: its head is not where a new channel's would be.
        Err(error) if is_conflict(&error) => {
            Err(StoreError::HeadMoved { channel: channel.channel.0, expected: channel.head })
        }
        Err(error) => Err(of_statement(&error)),
    }
}

fn move_heads(connection: &Connection, heads: &[HeadMove]) -> Result<(), StoreError> {
    if heads.is_empty() {
        return Ok(());
    }
    let mut update = connection
        .prepare_cached(
            "UPDATE heads SET head = ?, ordinal = ?, message_id = ?, chain = ?
             WHERE channel = ? AND head = ? AND epoch = ?",
        )
        .map_err(|error| of_statement(&error))?;
    for head in heads {
        let expected = head.first_seq.saturating_sub(1);
        let moved = update
            .execute((
                sql(head.head),
                sql(head.ordinal),
                sql(head.message_id.0),
                &head.chain[..],
                sql(head.channel.0),
                sql(expected),
                head.epoch,
            ))
            .map_err(|error| of_statement(&error))?;
        if moved == 0 {
            return Err(StoreError::HeadMoved { channel: head.channel.0, expected });
        }
    }
    Ok(())
}

fn insert_entries(connection: &Connection, entries: &[Entry]) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut insert = connection
        .prepare_cached(
            "INSERT INTO entries (message_id, channel, epoch, seq, ordinal, kind, sender, client_id, target, hash)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .map_err(|error| of_statement(&error))?;
    for entry in entries {
        let inserted = insert.execute((
            sql(entry.message_id.0),
            sql(entry.channel.0),
            entry.epoch,
            sql(entry.seq),
            sql(entry.ordinal),
            entry.kind as u8,
            sql(entry.sender.0),
            &entry.client_id[..],
            sql(entry.target),
            &entry.hash[..],
        ));
        match inserted {
            Ok(_) => {}
            Err(error) if is_conflict(&error) => {
                return Err(StoreError::Damaged(format!("message id {} was given twice", entry.message_id)));
            }
            Err(error) => return Err(of_statement(&error)),
        }
    }
    Ok(())
}

fn write_members(connection: &Connection, members: &[MemberChange]) -> rusqlite::Result<()> {
    if members.is_empty() {
        return Ok(());
    }
    let mut write = connection.prepare_cached(
        "INSERT INTO members (channel, user, joined_seq, role, left_seq, visible_from) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (channel, user, joined_seq) DO UPDATE
         SET role = excluded.role, left_seq = excluded.left_seq, visible_from = excluded.visible_from",
    )?;
    for MemberChange { channel, member } in members {
        write.execute((
            sql(channel.0),
            sql(member.user.0),
            sql(member.joined_seq),
            member.role,
            sql(member.left_seq),
            sql(member.visible_from),
        ))?;
    }
    Ok(())
}

fn write_marks(connection: &Connection, marks: &[MarkChange]) -> rusqlite::Result<()> {
    for MarkChange { channel, mark, stands } in marks {
        if *stands {
            connection
                .prepare_cached(
                    "INSERT INTO marks (channel, user, kind, until_ms, seq) VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT (channel, user, kind) DO UPDATE
                     SET until_ms = excluded.until_ms, seq = excluded.seq",
                )?
                .execute((
                    sql(channel.0),
                    sql(mark.user.0),
                    mark.kind as u8,
                    sql(mark.until_ms),
                    sql(mark.seq),
                ))?;
        } else {
            connection
                .prepare_cached("DELETE FROM marks WHERE channel = ? AND user = ? AND kind = ?")?
                .execute((sql(channel.0), sql(mark.user.0), mark.kind as u8))?;
        }
    }
    Ok(())
}
