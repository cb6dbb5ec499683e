//! What is not durable yet: the log folded to the writes and name changes that a power cut may undo.

use std::collections::BTreeMap;

use crate::{
    record::{Data, Name, Op, Record},
    sys::Key,
};

/// Where a record lies in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The record's number.
    pub number: u64,
    /// First byte in the log.
    pub at: u64,
    /// Length in the log, bytes.
    pub len: u64,
}

/// Unsynced writes and name changes, in the order they happened.
#[derive(Debug, Default)]
pub struct Pending {
    /// The number the next record gets.
    pub next: u64,
    /// Unsynced writes of each file.
    pub files: BTreeMap<Key, Vec<(Place, Data)>>,
    /// Unsynced name changes.
    pub names: Vec<(Place, Name)>,
    /// Log bytes of all of these.
    pub live_bytes: u64,
}

impl Pending {
    /// Takes one record in; returns the name changes that became durable by it.
    pub fn apply(&mut self, place: Place, record: Record) -> Vec<(Place, Name)> {
        self.next = self.next.max(place.number + 1);
        match record {
            Record::Base => Vec::new(),
            Record::Data(data) => {
                self.live_bytes += place.len;
                self.files.entry(data.key).or_default().push((place, data));
                Vec::new()
            }
            Record::Name(name) => {
                self.live_bytes += place.len;
                self.names.push((place, name));
                Vec::new()
            }
            Record::Forget { key } => {
                self.drop_data(key, u64::MAX);
                Vec::new()
            }
            Record::Synced { key, upto } => {
                self.drop_data(key, upto);
                self.drop_names(upto, |name| name.settled_by(key))
            }
            Record::SyncedAll { upto } => {
                let keys: Vec<Key> = self.files.keys().copied().collect();
                for key in keys {
                    self.drop_data(key, upto);
                }
                self.drop_names(upto, |_| true)
            }
        }
    }

    /// Whether a sync of this file or folder would make anything durable.
    pub fn waits_for(&self, key: Key) -> bool {
        self.files.contains_key(&key) || self.names.iter().any(|(_, name)| name.settled_by(key))
    }

    /// Whether nothing would be lost by a power cut.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.names.is_empty()
    }

    fn drop_data(&mut self, key: Key, upto: u64) {
        let Some(writes) = self.files.get_mut(&key) else { return };
        // Numbers rise within a file, so what became durable is a prefix.
        let durable = writes.partition_point(|(place, _)| place.number <= upto);
        self.live_bytes -= writes[..durable].iter().map(|(place, _)| place.len).sum::<u64>();
        writes.drain(..durable);
        if writes.is_empty() {
            self.files.remove(&key);
        }
    }

    fn drop_names(&mut self, upto: u64, settled: impl Fn(&Name) -> bool) -> Vec<(Place, Name)> {
        let durable: Vec<_> =
            self.names.extract_if(.., |(place, name)| place.number <= upto && settled(name)).collect();
        self.live_bytes -= durable.iter().map(|(place, _)| place.len).sum::<u64>();
        durable
    }
}

impl Name {
    /// Whether a sync of `key` makes this name change durable: its folder, or the new file itself.
    fn settled_by(&self, key: Key) -> bool {
        self.parent == key
            || self.parent2 == key
            || (matches!(self.op, Op::Create | Op::Mkdir) && self.node == key)
    }
}
