//! Frames and amendments in fjall. Frames stand under (channel, !seq, !epoch), so that reading forwards gives the
//! newest first and of each seq the highest epoch; amendments under (channel, target, seq, !epoch).

use bytes::Bytes;
use fanfare_proto::ChannelId;

use super::fjall_store::{FjallStore, Keyspaces, Part};
use crate::{
    content::{Content, Stored, StoredAmendment},
    error::StoreError,
    model::{Entry, EntryKind},
};

/// Bytes before the frame in a content row: kind and target, so that taking a frame away finds its amendment.
const PREFIX_BYTES: usize = 9;
/// Bytes after which one atomic batch is closed and the next begun.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

pub(super) fn content_key(channel: ChannelId, seq: u64, epoch: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&channel.0.to_be_bytes());
    key[8..16].copy_from_slice(&(!seq).to_be_bytes());
    key[16..].copy_from_slice(&(!epoch).to_be_bytes());
    key
}

fn content_place(key: &[u8]) -> Option<(ChannelId, u64, u32)> {
    let channel = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
    let seq = !u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    let epoch = !u32::from_be_bytes(key.get(16..20)?.try_into().ok()?);
    Some((ChannelId(channel), seq, epoch))
}

fn amendment_key(channel: ChannelId, target: u64, seq: u64, epoch: u32) -> [u8; 28] {
    let mut key = [0; 28];
    key[..8].copy_from_slice(&channel.0.to_be_bytes());
    key[8..16].copy_from_slice(&target.to_be_bytes());
    key[16..24].copy_from_slice(&seq.to_be_bytes());
    key[24..].copy_from_slice(&(!epoch).to_be_bytes());
    key
}

fn amendment(key: &[u8], value: &[u8]) -> Result<StoredAmendment, StoreError> {
    let (target, seq) = amendment_place(key).ok_or_else(|| damaged("a key does not decode"))?;
    let kind = value.first().copied().and_then(EntryKind::from_u8);
    let kind = kind.ok_or_else(|| damaged("an amendment of no kind"))?;
    Ok(StoredAmendment { target, seq, kind, frame: Bytes::copy_from_slice(&value[1..]) })
}

fn amendment_place(key: &[u8]) -> Option<(u64, u64)> {
    let target = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    let seq = u64::from_be_bytes(key.get(16..24)?.try_into().ok()?);
    Some((target, seq))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("content store: {what}"))
}

/// The frame of one entry, if it is there.
pub(super) fn frame_at(
    keyspaces: &Keyspaces,
    channel: ChannelId,
    seq: u64,
    epoch: u32,
) -> Result<Option<Bytes>, fjall::Error> {
    let row = keyspaces.content.get(content_key(channel, seq, epoch))?;
    Ok(row.and_then(|row| row.get(PREFIX_BYTES..).map(Bytes::copy_from_slice)))
}

impl Content for FjallStore {
    fn put(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let taken = self.write(|keyspaces| {
                let mut batch = keyspaces.database.batch();
                let (mut taken, mut bytes) = (0, 0);
                for entry in rest {
                    let mut row = Vec::with_capacity(PREFIX_BYTES + entry.frame.len());
                    row.push(entry.kind as u8);
                    row.extend_from_slice(&entry.target.to_be_bytes());
                    row.extend_from_slice(&entry.frame);
                    bytes += row.len();
                    if entry.target != 0 {
                        let key = amendment_key(entry.channel, entry.target, entry.seq, entry.epoch);
                        let mut amendment = Vec::with_capacity(1 + entry.frame.len());
                        amendment.push(entry.kind as u8);
                        amendment.extend_from_slice(&entry.frame);
                        bytes += amendment.len();
                        batch.insert(&keyspaces.amendments, key, amendment);
                    }
                    batch.insert(&keyspaces.content, content_key(entry.channel, entry.seq, entry.epoch), row);
                    taken += 1;
                    if bytes >= BATCH_BYTES {
                        break;
                    }
                }
                batch.commit()?;
                Ok(taken)
            })?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.persist(Part::Content)
    }

    fn range(
        &self,
        channel: ChannelId,
        first: u64,
        last: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        if first > last || limit == 0 {
            return Ok(Vec::new());
        }
        let rows = self.read(|keyspaces| {
            let newest = content_key(channel, last, u32::MAX);
            let oldest = content_key(channel, first, 0);
            let (mut rows, mut bytes) = (Vec::new(), 0);
            let mut newest_seq = None;
            for row in keyspaces.content.range(newest..=oldest) {
                let (key, value) = row.into_inner()?;
                let seq_key = key.get(8..16).map(<[u8]>::to_vec);
                if newest_seq == seq_key {
                    // An older epoch of the same seq.
                    continue;
                }
                if rows.len() == limit || (bytes >= bytes_max && !rows.is_empty()) {
                    break;
                }
                newest_seq = seq_key;
                bytes += value.len();
                rows.push((key, value));
            }
            Ok(rows)
        })?;
        rows.iter()
            .map(|(key, value)| {
                let (_, seq, epoch) = content_place(key).ok_or_else(|| damaged("a key does not decode"))?;
                let frame = value.get(PREFIX_BYTES..).ok_or_else(|| damaged("a row is cut off"))?;
                Ok(Stored { seq, epoch, frame: Bytes::copy_from_slice(frame) })
            })
            .collect()
    }

    fn amendments(
        &self,
        channel: ChannelId,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<StoredAmendment>, StoreError> {
        if first > last {
            return Ok(Vec::new());
        }
        let rows = self.read(|keyspaces| {
            let from = amendment_key(channel, first, 0, u32::MAX);
            let to = amendment_key(channel, last, u64::MAX, 0);
            // Older epochs of the same seq count against nothing: they are passed over below.
            let mut rows: Vec<(fjall::UserKey, fjall::UserValue)> = Vec::new();
            for row in keyspaces.amendments.range(from..=to) {
                let (key, value) = row.into_inner()?;
                if rows.last().is_some_and(|(before, _)| before.get(..24) == key.get(..24)) {
                    continue;
                }
                if rows.len() == limit {
                    break;
                }
                rows.push((key, value));
            }
            Ok(rows)
        })?;
        rows.iter().map(|(key, value)| amendment(key, value)).collect()
    }

    fn newest_amendment(
        &self,
        channel: ChannelId,
        target: u64,
    ) -> Result<Option<StoredAmendment>, StoreError> {
        let row = self.read(|keyspaces| {
            let from = amendment_key(channel, target, 0, u32::MAX);
            let to = amendment_key(channel, target, u64::MAX, 0);
            let Some(last) = keyspaces.amendments.range(from..=to).next_back() else { return Ok(None) };
            let (last, _) = last.into_inner()?;
            let Some((_, seq)) = amendment_place(&last) else { return Ok(None) };
            // Of the epochs of that seq the newest comes first.
            let (from, to) =
                (amendment_key(channel, target, seq, u32::MAX), amendment_key(channel, target, seq, 0));
            keyspaces.amendments.range(from..=to).next().map(fjall::Guard::into_inner).transpose()
        })?;
        row.map(|(key, value)| amendment(&key, &value)).transpose()
    }

    fn remove(&self, channel: ChannelId, seq: u64, epoch: u32) -> Result<(), StoreError> {
        self.write(|keyspaces| {
            let key = content_key(channel, seq, epoch);
            let Some(row) = keyspaces.content.get(key)? else {
                return Ok(());
            };
            let mut batch = keyspaces.database.batch();
            batch.remove(&keyspaces.content, key);
            let target = row.get(1..PREFIX_BYTES).and_then(|target| target.try_into().ok());
            match target.map(u64::from_be_bytes) {
                None | Some(0) => {}
                Some(target) => {
                    batch.remove(&keyspaces.amendments, amendment_key(channel, target, seq, epoch))
                }
            }
            batch.commit()
        })
    }

    fn walk(
        &self,
        after: Option<(ChannelId, u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ChannelId, u64, u32)>, StoreError> {
        let keys = self.read(|keyspaces| {
            let range = match after {
                Some((channel, seq, epoch)) => {
                    let key = content_key(channel, seq, epoch).to_vec();
                    keyspaces.content.range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded))
                }
                None => keyspaces.content.iter(),
            };
            range.take(limit).map(fjall::Guard::key).collect::<Result<Vec<_>, _>>()
        })?;
        keys.iter().map(|key| content_place(key).ok_or_else(|| damaged("a key does not decode"))).collect()
    }
}
