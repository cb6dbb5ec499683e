//! Reading a channel or a user before it is served. Runs on readers' threads.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use fanfare_proto::{ChannelId, ClientMessageId, Code, DeviceId, UserId, limits::CLIENT_ID_AHEAD_MAX};
use fanfare_storage::{
    StoreError,
    content::Content,
    hash,
    metadata::Metadata,
    model::{Activity, Channel, Device, DevicePosition, Entry, Mark, Member, User, UserCursor},
};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::{
    meter,
    repeats::{Key, Place},
    send::fingerprint,
    tail::{Held, Tail},
};

/// Frames of a channel read at once when it is loaded.
const TAIL_FRAMES_MAX: usize = 256;
/// Bytes of them.
const TAIL_BYTES_MAX: usize = 64 * 1024;
/// Below the tail, client message ids are read back as far as a new send's id could have been used before: how far ids
/// may be ahead of the clock, and half a minute for the way here. Else the first minutes after a start would search the
/// stores for every send.
const IDS_BACK_MS: u64 = CLIENT_ID_AHEAD_MAX.as_millis() as u64 + 30_000;
/// Entries read back for that at most; what lies before them is searched when it is asked for.
const IDS_MAX: usize = 65_536;
/// Entries read at once.
const IDS_CHUNK: usize = 1_024;

/// A channel as read.
pub struct Loaded {
    /// Its row.
    pub channel: Channel,
    /// Its membership rows.
    pub members: Vec<Member>,
    /// Its marks.
    pub marks: Vec<Mark>,
    /// In a direct channel: whether the first of the pair blocks the second, and the other way round.
    pub blocks: (bool, bool),
    /// Its members' cursors.
    pub cursors: Vec<UserCursor>,
    /// How active they are.
    pub activities: Vec<Activity>,
    /// The newest frames, up to the head.
    pub tail: Tail,
    /// The sends among them.
    pub sends: Vec<(Key, u64, Place)>,
    /// Since which commit time those are complete, Unix milliseconds.
    pub complete_since_ms: u64,
}

/// A user as read.
pub struct LoadedUser {
    /// The row.
    pub user: User,
    /// The devices.
    pub devices: Vec<Device>,
    /// Where one of them stands.
    pub positions: Option<(DeviceId, Vec<DevicePosition>)>,
    /// The channels in the list.
    pub channels: Vec<ChannelId>,
}

/// What a failed read means to those who wait for it.
pub fn code_of(error: &StoreError) -> Code {
    match error {
        StoreError::Damaged(_) => Code::CORRUPT,
        _ => Code::RETRY_LATER,
    }
}

/// Reads a channel up to its head, from content and what is not drained together. `None`: there is no such channel.
///
/// # Errors
/// `CORRUPT` where entries are missing, `RETRY_LATER` where the stores cannot answer now.
pub fn channel(
    metadata: &dyn Metadata,
    content: &dyn Content,
    channel: ChannelId,
    undrained: &[Arc<Entry>],
    now_ms: u64,
) -> Result<Option<Box<Loaded>>, Code> {
    let read = || -> Result<Option<Box<Loaded>>, StoreError> {
        let Some(row) = metadata.channel(channel)? else { return Ok(None) };
        let members = metadata.members(channel)?;
        let marks = metadata.marks(channel)?;
        let (low, high) = row.pair;
        let blocks = if low.is_none() { (false, false) } else { blocks_of(metadata, low, high)? };
        let cursors = metadata.cursors(channel)?;
        let activities = metadata.activities(channel)?;
        let (tail, mut sends) = tail(metadata, content, &row, undrained)?;
        let complete_since_ms = match tail.iter().next() {
            _ if row.head == 0 => 0,
            Some(oldest) => {
                let (seq, since_ms) = (oldest.seq, oldest.message_id.time_ms() + 1);
                let (older, since_ms) = ids_below(content, &row, undrained, seq, since_ms, now_ms)?;
                sends.splice(0..0, older);
                since_ms
            }
            None => row.message_id.time_ms() + 1,
        };
        Ok(Some(Box::new(Loaded {
            channel: row,
            members,
            marks,
            blocks,
            cursors,
            activities,
            tail,
            sends,
            complete_since_ms,
        })))
    };
    meter::load();
    read().map_err(|error| {
        tracing::error!(%channel, %error, "a channel cannot be loaded");
        code_of(&error)
    })
}

/// Whether the lower of a pair blocks the higher, and the other way round.
pub fn blocks_of(metadata: &dyn Metadata, one: UserId, other: UserId) -> Result<(bool, bool), StoreError> {
    let (low, high) = (one.min(other), one.max(other));
    Ok((metadata.is_blocked(low, high)?, metadata.is_blocked(high, low)?))
}

type Sends = Vec<(Key, u64, Place)>;

/// The sends below the tail, oldest first, and since which commit time (Unix milliseconds) all are known then.
fn ids_below(
    content: &dyn Content,
    row: &Channel,
    undrained: &[Arc<Entry>],
    tail_first: u64,
    mut since_ms: u64,
    now_ms: u64,
) -> Result<(Sends, u64), StoreError> {
    let horizon_ms = now_ms.saturating_sub(IDS_BACK_MS);
    let waiting: HashMap<u64, &Bytes, RandomState> =
        undrained.iter().map(|entry| (entry.seq, &entry.frame)).collect();
    let (mut sends, mut read, mut last) = (Vec::new(), 0, tail_first - 1);
    'back: while last > 0 && since_ms > horizon_ms && read < IDS_MAX {
        let first = last.saturating_sub(IDS_CHUNK as u64 - 1).max(1);
        let stored = content.range(row.channel, first, last, IDS_CHUNK, usize::MAX)?;
        let stored: HashMap<u64, Bytes, RandomState> =
            stored.into_iter().map(|stored| (stored.seq, stored.frame)).collect();
        for seq in (first..=last).rev() {
            // A hole or a frame that does not decode ends what is known; reading it says more.
            let Some(frame) = waiting.get(&seq).copied().or_else(|| stored.get(&seq)) else { break 'back };
            let Some((one, entry)) = Held::of_stored(frame) else { break 'back };
            read += 1;
            since_ms = since_ms.min(one.message_id.time_ms() + 1);
            sends.extend(send_of(&one, &entry));
        }
        last = first - 1;
    }
    if last == 0 {
        since_ms = 0;
    }
    sends.reverse();
    Ok((sends, since_ms))
}

/// The send that made an entry, where it was one.
fn send_of(held: &Held, entry: &fanfare_proto::wire::Entry) -> Option<(Key, u64, Place)> {
    let id = ClientMessageId::from_wire(&entry.client_message_id)?;
    let print = print_of(entry);
    let place =
        Place { epoch: entry.epoch, seq: held.seq, message_id: held.message_id, ordinal: held.ordinal };
    Some((Key::new(held.sender, id, print), print, place))
}

fn tail(
    metadata: &dyn Metadata,
    content: &dyn Content,
    row: &Channel,
    undrained: &[Arc<Entry>],
) -> Result<(Tail, Sends), StoreError> {
    let (mut tail, mut sends) = (Tail::default(), Vec::new());
    if row.head == 0 {
        return Ok((tail, sends));
    }
    let first = row.head.saturating_sub(TAIL_FRAMES_MAX as u64 - 1).max(1);
    let mut frames: BTreeMap<u64, (Bytes, bool)> = BTreeMap::new();
    for stored in content.range(row.channel, first, row.head, TAIL_FRAMES_MAX, TAIL_BYTES_MAX)? {
        frames.insert(stored.seq, (stored.frame, true));
    }
    for entry in undrained.iter().filter(|entry| entry.seq >= first && entry.seq <= row.head) {
        frames.insert(entry.seq, (entry.frame.clone(), false));
    }
    // Backwards from the head, as far as it goes without a hole.
    let mut held: Vec<(Held, fanfare_proto::wire::Entry, bool)> = Vec::new();
    let mut bytes = 0;
    for seq in (first..=row.head).rev() {
        let Some((frame, is_stored)) = frames.remove(&seq) else {
            if seq == row.head {
                return Err(StoreError::Damaged(format!(
                    "channel {}: the head {seq} has no frame",
                    row.channel
                )));
            }
            break;
        };
        bytes += frame.len();
        if bytes > TAIL_BYTES_MAX && !held.is_empty() {
            break;
        }
        match Held::of_stored(&frame) {
            Some((one, entry)) => held.push((one, entry, is_stored)),
            None => break,
        }
    }
    let ids: Vec<_> = held.iter().filter(|(.., stored)| *stored).map(|(one, ..)| one.message_id).collect();
    let hashes = metadata.hashes(&ids)?;
    let sound = held
        .iter()
        .take_while(|(one, _, is_stored)| {
            let matches = !is_stored
                || hashes.get(&one.message_id).is_some_and(|(channel, seq, stored)| {
                    (*channel, *seq) == (row.channel, one.seq) && *stored == hash::frame(&one.frame)
                });
            if !matches && !fanfare_storage::mutant::is("hash-not-checked") {
                meter::corrupt();
                tracing::error!(channel = %row.channel, seq = one.seq, "a stored frame does not match its hash");
            }
            matches || fanfare_storage::mutant::is("hash-not-checked")
        })
        .count();
    held.truncate(sound);
    for (one, entry, _) in held.into_iter().rev() {
        sends.extend(send_of(&one, &entry));
        tail.push(one);
    }
    tail.apply_recalls();
    Ok((tail, sends))
}

/// The fingerprint of a stored entry's content, as of a send with the same.
pub fn print_of(entry: &fanfare_proto::wire::Entry) -> u64 {
    let mut bytes = Vec::new();
    if let Some(content) = &entry.content {
        content.encode(&mut bytes);
    }
    fingerprint(&bytes)
}

/// Reads a user with devices and list, and with the positions of the device that comes.
///
/// # Errors
/// `RETRY_LATER`.
pub fn user(
    metadata: &dyn Metadata,
    lists: &dyn fanfare_storage::content::Lists,
    user: UserId,
    device: Option<DeviceId>,
) -> Result<Option<Box<LoadedUser>>, Code> {
    let read = || -> Result<Option<Box<LoadedUser>>, StoreError> {
        let Some(row) = metadata.user(user)? else { return Ok(None) };
        let devices = metadata.devices(user)?;
        let channels = lists.list(user)?;
        let positions = device.map(|device| Ok((device, metadata.positions(user, device)?))).transpose()?;
        Ok(Some(Box::new(LoadedUser { user: row, devices, channels, positions })))
    };
    read().map_err(|error| {
        tracing::warn!(%user, %error, "a user cannot be read");
        code_of(&error)
    })
}
