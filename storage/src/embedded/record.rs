//! Entries' metadata in bytes: what the outbox's directory and the log's records are made of. All numbers big-endian.

use bytes::{Buf, BufMut, Bytes};
use fanfare_proto::{ChannelId, MessageId, UserId};

use crate::{
    error::StoreError,
    hash,
    model::{Entry, EntryKind, ListChange, ShardCommit},
};

/// Bytes of one entry's metadata.
pub const ENTRY_BYTES: usize = 8 + 8 + 4 + 8 + 8 + 1 + 8 + 16 + 8 + 32;
/// Bytes of one entry in the outbox's directory: its metadata, then its frame's offset and length.
const DIRECTORY_BYTES: usize = ENTRY_BYTES + 8;
/// Bytes of one list change.
const LIST_BYTES: usize = 8 + 8 + 8 + 1;
/// Format byte, count of entries, count of list changes.
const HEAD_BYTES: usize = 1 + 4 + 4;
/// Bytes of the directory's checksum, the first of a SHA-256.
const SUM_BYTES: usize = 16;
/// The one format of outbox rows.
const FORMAT: u8 = 1;

/// Appends an entry's metadata, [`ENTRY_BYTES`] long.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.put_u64(entry.message_id.0);
    out.put_u64(entry.channel.0);
    out.put_u32(entry.epoch);
    out.put_u64(entry.seq);
    out.put_u64(entry.ordinal);
    out.put_u8(entry.kind as u8);
    out.put_u64(entry.sender.0);
    out.put_slice(&entry.client_id);
    out.put_u64(entry.target);
    out.put_slice(&entry.hash);
}

/// Reads what [`put_entry`] wrote; the frame is given by the caller.
///
/// # Errors
/// `Damaged`.
pub fn get_entry(mut bytes: &[u8], frame: Bytes) -> Result<Entry, StoreError> {
    if bytes.len() < ENTRY_BYTES {
        return Err(StoreError::Damaged(format!("entry of {} bytes", bytes.len())));
    }
    let message_id = MessageId(bytes.get_u64());
    let channel = ChannelId(bytes.get_u64());
    let epoch = bytes.get_u32();
    let seq = bytes.get_u64();
    let ordinal = bytes.get_u64();
    let kind = bytes.get_u8();
    let kind = EntryKind::from_u8(kind).ok_or_else(|| StoreError::Damaged(format!("entry kind {kind}")))?;
    let sender = UserId(bytes.get_u64());
    let mut client_id = [0; 16];
    bytes.copy_to_slice(&mut client_id);
    let target = bytes.get_u64();
    let mut hash = [0; 32];
    bytes.copy_to_slice(&mut hash);
    Ok(Entry { message_id, channel, epoch, seq, ordinal, kind, sender, client_id, target, hash, frame })
}

/// An outbox row's body: head, directory of entries, list changes, a checksum over all these, then the frames. Of all shards
/// of a transaction.
///
/// # Errors
/// `Damaged` where a transaction is too large to be described (4 GiB).
pub fn encode_outbox(out: &mut Vec<u8>, commits: &[ShardCommit]) -> Result<(), StoreError> {
    let too_large = |_| StoreError::Damaged("an outbox row above 4 GiB".to_owned());
    let entries = || commits.iter().flat_map(|commit| &commit.entries);
    let lists = || commits.iter().flat_map(|commit| &commit.lists);
    let (entry_count, list_count) = (entries().count(), lists().count());
    let directory = HEAD_BYTES + entry_count * DIRECTORY_BYTES + list_count * LIST_BYTES + SUM_BYTES;
    let frames: usize = entries().map(|entry| entry.frame.len()).sum();
    out.clear();
    out.reserve(directory + frames);
    out.put_u8(FORMAT);
    out.put_u32(u32::try_from(entry_count).map_err(too_large)?);
    out.put_u32(u32::try_from(list_count).map_err(too_large)?);
    let mut offset = 0_usize;
    for entry in entries() {
        put_entry(out, entry);
        out.put_u32(u32::try_from(offset).map_err(too_large)?);
        out.put_u32(u32::try_from(entry.frame.len()).map_err(too_large)?);
        offset += entry.frame.len();
    }
    for change in lists() {
        out.put_u64(change.user.0);
        out.put_u64(change.channel.0);
        out.put_u64(change.seq);
        out.put_u8(u8::from(change.listed));
    }
    let sum = hash::frame(out);
    out.put_slice(&sum[..SUM_BYTES]);
    for entry in entries() {
        out.put_slice(&entry.frame);
    }
    Ok(())
}

/// Reads what [`encode_outbox`] wrote; every frame is checked against its hash.
///
/// # Errors
/// `Damaged`.
pub fn decode_outbox(body: &Bytes) -> Result<(Vec<Entry>, Vec<ListChange>), StoreError> {
    let damaged = |what: &str| StoreError::Damaged(format!("outbox row: {what}"));
    if body.len() < HEAD_BYTES + SUM_BYTES || body[0] != FORMAT {
        return Err(damaged("no head"));
    }
    let mut head = &body[1..HEAD_BYTES];
    let (entry_count, list_count) = (head.get_u32() as usize, head.get_u32() as usize);
    let lists_at = HEAD_BYTES + entry_count * DIRECTORY_BYTES;
    let sum_at = lists_at + list_count * LIST_BYTES;
    let frames_at = sum_at + SUM_BYTES;
    if body.len() < frames_at {
        return Err(damaged("cut off"));
    }
    if hash::frame(&body[..sum_at])[..SUM_BYTES] != body[sum_at..frames_at] {
        return Err(damaged("directory does not match its checksum"));
    }
    let mut entries = Vec::with_capacity(entry_count);
    for line in body[HEAD_BYTES..lists_at].chunks_exact(DIRECTORY_BYTES) {
        let mut place = &line[ENTRY_BYTES..];
        let (offset, length) = (place.get_u32() as usize, place.get_u32() as usize);
        let first = frames_at + offset;
        if body.len() < first + length {
            return Err(damaged("frame cut off"));
        }
        let entry = get_entry(line, body.slice(first..first + length))?;
        if hash::frame(&entry.frame) != entry.hash {
            return Err(damaged("frame does not match its hash"));
        }
        entries.push(entry);
    }
    let mut lists = Vec::with_capacity(list_count);
    for mut line in body[lists_at..sum_at].chunks_exact(LIST_BYTES) {
        lists.push(ListChange {
            user: UserId(line.get_u64()),
            channel: ChannelId(line.get_u64()),
            seq: line.get_u64(),
            listed: line.get_u8() == 1,
        });
    }
    Ok((entries, lists))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        let frame = Bytes::from(vec![seq as u8; 20 + seq as usize]);
        Entry {
            message_id: MessageId(1000 + seq),
            channel: ChannelId(9),
            epoch: 3,
            seq,
            ordinal: seq + 1,
            kind: EntryKind::Edit,
            sender: UserId(5),
            client_id: [4; 16],
            target: seq - 1,
            hash: hash::frame(&frame),
            frame,
        }
    }

    fn body() -> Vec<u8> {
        let list = ListChange { user: UserId(1), channel: ChannelId(9), seq: 2, listed: true };
        let mut out = Vec::new();
        let one = ShardCommit { entries: vec![entry(1)], ..Default::default() };
        let other = ShardCommit { entries: vec![entry(2)], lists: vec![list], ..Default::default() };
        encode_outbox(&mut out, &[one, other]).expect("small");
        out
    }

    #[test]
    fn outbox_rows_read_back() {
        let (entries, lists) = decode_outbox(&Bytes::from(body())).expect("sound");
        assert_eq!(entries.len(), 2);
        assert_eq!(format!("{:?}", entries[1]), format!("{:?}", entry(2)));
        assert_eq!(lists, [ListChange { user: UserId(1), channel: ChannelId(9), seq: 2, listed: true }]);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_found() {
        let sound = body();
        for at in 0..sound.len() {
            let mut flipped = sound.clone();
            flipped[at] ^= 1;
            assert!(decode_outbox(&Bytes::from(flipped)).is_err(), "byte {at}");
            assert!(decode_outbox(&Bytes::copy_from_slice(&sound[..at])).is_err(), "cut at {at}");
        }
    }
}
