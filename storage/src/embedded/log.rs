//! The groups' log in fjall: (partition, offset) gives an entry's metadata; its frame stands in the content keyspace
//! and is joined when a record is read.

use bytes::Bytes;

use super::{
    content::frame_at,
    fjall_store::{FjallStore, Keyspaces, Part},
    record::{self, ENTRY_BYTES},
};
use crate::{
    error::StoreError,
    hash,
    log::{Log, Offset, Record},
    model::Entry,
};

/// Records in one atomic batch.
const BATCH_RECORDS: usize = 4096;

/// The next offset of each partition.
pub(super) struct Ends(Vec<Offset>);

impl Ends {
    pub(super) fn load(keyspaces: &Keyspaces, partitions: u16) -> Result<Self, fjall::Error> {
        let mut ends = Vec::with_capacity(usize::from(partitions));
        for partition in 0..partitions {
            // Truncation may have dropped all records; the offset they reached was noted with it.
            let noted = number(keyspaces.notes.get(end_key(partition))?.as_deref()).unwrap_or(0);
            let last = keyspaces.log.prefix(partition.to_be_bytes()).next_back();
            let last = last.map(fjall::Guard::key).transpose()?;
            let end = last.and_then(|key| number(key.get(2..))).map_or(0, |offset| offset + 1);
            ends.push(end.max(noted));
        }
        Ok(Self(ends))
    }
}

fn key(partition: u16, offset: Offset) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&partition.to_be_bytes());
    key[2..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn end_key(partition: u16) -> Vec<u8> {
    [b"end/".as_slice(), &partition.to_be_bytes()].concat()
}

fn offset_key(consumer: &str, partition: u16) -> Vec<u8> {
    [b"consumer/".as_slice(), consumer.as_bytes(), b"/", &partition.to_be_bytes()].concat()
}

fn number(bytes: Option<&[u8]>) -> Option<u64> {
    Some(u64::from_be_bytes(bytes?.try_into().ok()?))
}

impl FjallStore {
    fn check_partition(&self, partition: u16) -> Result<usize, StoreError> {
        if partition < self.partitions_open() {
            return Ok(usize::from(partition));
        }
        Err(StoreError::Unavailable(format!("the log has no partition {partition}")))
    }
}

/// A record whose frame is not in the content store, because its drain has not put it yet or because it was taken
/// away since, or whose frame does not match its hash, is given with an **empty frame**: look it up in the owner's
/// undrained entries, else it is gone.
impl Log for FjallStore {
    fn partitions(&self) -> u16 {
        self.partitions_open()
    }

    fn append(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut ends = self.ends.lock();
        for entries in entries.chunks(BATCH_RECORDS) {
            let mut next = ends.0.clone();
            self.write(|keyspaces| {
                let mut batch = keyspaces.database.batch();
                for entry in entries {
                    let partition = self.partition_of(entry.channel.shard().0);
                    let offset = &mut next[usize::from(partition)];
                    let mut row = Vec::with_capacity(ENTRY_BYTES);
                    record::put_entry(&mut row, entry);
                    batch.insert(&keyspaces.log, key(partition, *offset), row);
                    *offset += 1;
                }
                batch.commit()
            })?;
            ends.0 = next;
        }
        Ok(())
    }

    fn flush_log(&self) -> Result<(), StoreError> {
        self.persist(Part::Log)
    }

    fn read(&self, partition: u16, from: Offset, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.check_partition(partition)?;
        let rows = FjallStore::read(self, |keyspaces| {
            let range = keyspaces.log.range(key(partition, from)..=key(partition, Offset::MAX));
            range.take(limit).map(fjall::Guard::into_inner).collect::<Result<Vec<_>, _>>()
        })?;
        let mut records = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            let offset = number(key.get(2..))
                .ok_or_else(|| StoreError::Damaged("log: a key does not decode".to_owned()))?;
            let mut entry = record::get_entry(&row, Bytes::new())?;
            let frame = FjallStore::read(self, |keyspaces| {
                frame_at(keyspaces, entry.channel, entry.seq, entry.epoch)
            })?;
            match frame {
                Some(frame) if hash::frame(&frame) == entry.hash => entry.frame = frame,
                Some(_) => {
                    tracing::error!(channel = %entry.channel, seq = entry.seq, "a frame does not match its hash");
                }
                None => {}
            }
            records.push(Record { offset, entry });
        }
        Ok(records)
    }

    fn end(&self, partition: u16) -> Result<Offset, StoreError> {
        let partition = self.check_partition(partition)?;
        Ok(self.ends.lock().0[partition])
    }

    fn commit_offset(&self, consumer: &str, partition: u16, next: Offset) -> Result<(), StoreError> {
        self.check_partition(partition)?;
        self.write(|keyspaces| keyspaces.notes.insert(offset_key(consumer, partition), next.to_be_bytes()))?;
        self.persist(Part::Notes)
    }

    fn offset(&self, consumer: &str, partition: u16) -> Result<Offset, StoreError> {
        self.check_partition(partition)?;
        let noted = FjallStore::read(self, |keyspaces| keyspaces.notes.get(offset_key(consumer, partition)))?;
        Ok(number(noted.as_deref()).unwrap_or(0))
    }

    fn truncate(&self, partition: u16, below: Offset) -> Result<(), StoreError> {
        let place = self.check_partition(partition)?;
        let ends = self.ends.lock();
        let (end, below) = (ends.0[place], below.min(ends.0[place]));
        loop {
            let removed = self.write(|keyspaces| {
                let range = keyspaces.log.range(key(partition, 0)..key(partition, below));
                let keys = range.take(BATCH_RECORDS).map(fjall::Guard::key).collect::<Result<Vec<_>, _>>()?;
                let mut batch = keyspaces.database.batch();
                batch.insert(&keyspaces.notes, end_key(partition), end.to_be_bytes());
                for key in &keys {
                    batch.remove(&keyspaces.log, key.clone());
                }
                batch.commit()?;
                Ok(keys.len())
            })?;
            if removed < BATCH_RECORDS {
                return Ok(());
            }
        }
    }
}
