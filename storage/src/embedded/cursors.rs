//! The statements on `cursors.db`: users' cursors, devices and their positions, all merged as maxima.

use fanfare_proto::{ChannelId, DeviceId, UserId};
use rusqlite::{Connection, OptionalExtension};

use super::{database::sql, sql_error::of_statement, sqlite::unsigned};
use crate::{
    error::StoreError,
    model::{Activity, CursorBatch, Device, DevicePosition, UserCursor},
};

/// Merges a batch.
pub fn write(connection: &Connection, batch: &CursorBatch) -> Result<(), StoreError> {
    merge(connection, batch).map_err(|error| of_statement(&error))
}

fn merge(connection: &Connection, batch: &CursorBatch) -> rusqlite::Result<()> {
    let mut cursors = connection.prepare_cached(
        "INSERT INTO cursors (channel, user, delivered, read, read_ordinal) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (channel, user) DO UPDATE SET
         delivered = max(delivered, excluded.delivered),
         read = max(read, excluded.read),
         read_ordinal = max(read_ordinal, excluded.read_ordinal)",
    )?;
    for cursor in &batch.cursors {
        cursors.execute((
            sql(cursor.channel.0),
            sql(cursor.user.0),
            sql(cursor.delivered),
            sql(cursor.read),
            sql(cursor.read_ordinal),
        ))?;
    }
    let mut positions = connection.prepare_cached(
        "INSERT INTO positions (user, device, channel, epoch, seq) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (user, device, channel) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq
         WHERE (excluded.epoch, excluded.seq) > (epoch, seq)",
    )?;
    for position in &batch.positions {
        positions.execute((
            sql(position.user.0),
            sql(position.device.0),
            sql(position.channel.0),
            position.epoch,
            sql(position.seq),
        ))?;
    }
    let mut devices = connection.prepare_cached(
        "INSERT INTO devices (user, device, name, generation, acks_confirmed, seen_ms) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (user, device) DO UPDATE SET
         name = iif(excluded.name = '', name, excluded.name),
         generation = max(generation, excluded.generation),
         acks_confirmed = max(acks_confirmed, excluded.acks_confirmed),
         seen_ms = max(seen_ms, excluded.seen_ms)",
    )?;
    for device in &batch.devices {
        devices.execute((
            sql(device.user.0),
            sql(device.device.0),
            &device.name,
            device.generation,
            sql(device.acks_confirmed),
            sql(device.seen_ms),
        ))?;
    }
    let mut activities = connection.prepare_cached(
        "INSERT INTO activities (channel, user, fast, slow, acted, seq) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (channel, user) DO UPDATE SET
         fast = excluded.fast, slow = excluded.slow, acted = excluded.acted, seq = excluded.seq
         WHERE excluded.seq >= seq",
    )?;
    for activity in &batch.activities {
        activities.execute((
            sql(activity.channel.0),
            sql(activity.user.0),
            activity.fast,
            activity.slow,
            activity.acted,
            sql(activity.seq),
        ))?;
    }
    Ok(())
}

/// Raises a device's generation; a device never seen is made, so that it cannot come back with an old secret.
pub fn revoke(connection: &Connection, user: UserId, device: DeviceId) -> Result<u32, StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO devices (user, device, name, generation, acks_confirmed, seen_ms) VALUES (?, ?, '', 1, 0, 0)
             ON CONFLICT (user, device) DO UPDATE SET generation = generation + 1 RETURNING generation",
        )
        .and_then(|mut revoke| revoke.query_row([sql(user.0), sql(device.0)], |row| row.get(0)))
        .map_err(|error| of_statement(&error))
}

/// All members' cursors in a channel.
pub fn of_channel(connection: &Connection, channel: ChannelId) -> rusqlite::Result<Vec<UserCursor>> {
    connection
        .prepare_cached(
            "SELECT user, delivered, read, read_ordinal FROM cursors WHERE channel = ? ORDER BY user",
        )?
        .query_map([sql(channel.0)], |row| {
            Ok(UserCursor {
                channel,
                user: UserId(unsigned(row, 0)?),
                delivered: unsigned(row, 1)?,
                read: unsigned(row, 2)?,
                read_ordinal: unsigned(row, 3)?,
            })
        })?
        .collect()
}

/// How active a channel's members are.
pub fn activities(connection: &Connection, channel: ChannelId) -> rusqlite::Result<Vec<Activity>> {
    connection
        .prepare_cached(
            "SELECT user, fast, slow, acted, seq FROM activities WHERE channel = ? ORDER BY user",
        )?
        .query_map([sql(channel.0)], |row| {
            Ok(Activity {
                channel,
                user: UserId(unsigned(row, 0)?),
                fast: row.get(1)?,
                slow: row.get(2)?,
                acted: row.get(3)?,
                seq: unsigned(row, 4)?,
            })
        })?
        .collect()
}

/// One member's cursor in a channel; zeros where there is no row.
pub fn of_member(connection: &Connection, channel: ChannelId, user: UserId) -> rusqlite::Result<UserCursor> {
    let found = connection
        .prepare_cached("SELECT delivered, read, read_ordinal FROM cursors WHERE channel = ? AND user = ?")?
        .query_row([sql(channel.0), sql(user.0)], |row| {
            Ok(UserCursor {
                channel,
                user,
                delivered: unsigned(row, 0)?,
                read: unsigned(row, 1)?,
                read_ordinal: unsigned(row, 2)?,
            })
        })
        .optional()?;
    Ok(found.unwrap_or(UserCursor { channel, user, ..UserCursor::default() }))
}

/// One device's positions.
pub fn positions(
    connection: &Connection,
    user: UserId,
    device: DeviceId,
) -> rusqlite::Result<Vec<DevicePosition>> {
    connection
        .prepare_cached(
            "SELECT channel, epoch, seq FROM positions WHERE user = ? AND device = ? ORDER BY channel",
        )?
        .query_map([sql(user.0), sql(device.0)], |row| {
            Ok(DevicePosition {
                user,
                device,
                channel: ChannelId(unsigned(row, 0)?),
                epoch: row.get(1)?,
                seq: unsigned(row, 2)?,
            })
        })?
        .collect()
}

/// A user's devices.
pub fn devices(connection: &Connection, user: UserId) -> rusqlite::Result<Vec<Device>> {
    connection
        .prepare_cached(
            "SELECT device, name, generation, acks_confirmed, seen_ms FROM devices WHERE user = ? ORDER BY device",
        )?
        .query_map([sql(user.0)], |row| {
            Ok(Device {
                user,
                device: DeviceId(unsigned(row, 0)?),
                name: row.get(1)?,
                generation: row.get(2)?,
                acks_confirmed: unsigned(row, 3)?,
                seen_ms: unsigned(row, 4)?,
            })
        })?
        .collect()
}
