//! A store in memory: ends with the client.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use fanfare_proto::{ChannelId, Seq};

use super::{Changes, ENTRIES_KEPT, Saved, Store, StoreError};

/// Entries kept of all channels together, by default.
pub const ENTRIES_MAX: usize = 20_000;

/// Keeps what was seen for reading without a connection, bounded, until the client ends.
#[derive(Debug)]
pub struct MemoryStore {
    channels: HashMap<ChannelId, Kept>,
    /// One item per entry kept, oldest first: whose turn it is to lose its lowest.
    turns: VecDeque<ChannelId>,
    per_channel: u64,
    all_max: usize,
}

#[derive(Debug, Default)]
struct Kept {
    entries: BTreeMap<Seq, Bytes>,
    /// Nothing below is taken again.
    floor: Seq,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::bounded(ENTRIES_KEPT, ENTRIES_MAX)
    }
}

impl MemoryStore {
    /// Keeps entries within `per_channel` seqs of a channel's newest, and at most `all_max` in all.
    pub fn bounded(per_channel: u64, all_max: usize) -> Self {
        Self { channels: HashMap::new(), turns: VecDeque::new(), per_channel, all_max }
    }

    fn keep(&mut self, channel: ChannelId, seq: Seq, frame: &Bytes) {
        let kept = self.channels.entry(channel).or_default();
        if let Some(&newest) = kept.entries.keys().next_back() {
            kept.floor = kept.floor.max((newest.max(seq) + 1).saturating_sub(self.per_channel));
        }
        if seq >= kept.floor {
            // A copy: the frame may be a slice of much more.
            let new = kept.entries.insert(seq, Bytes::copy_from_slice(frame)).is_none();
            if new {
                self.turns.push_back(channel);
            }
        }
        kept.entries = kept.entries.split_off(&kept.floor);
        // Turns of entries that went otherwise are spent without one.
        while self.turns.len() > self.all_max {
            let Some(kept) = self.turns.pop_front().and_then(|turn| self.channels.get_mut(&turn)) else {
                continue;
            };
            if let Some((lowest, _)) = kept.entries.pop_first() {
                kept.floor = lowest + 1;
            }
        }
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        for (channel, from) in &changes.rewound {
            if let Some(kept) = self.channels.get_mut(channel) {
                kept.entries.split_off(from);
            }
        }
        for channel in
            changes.channels.iter().filter(|(_, state)| state.is_none()).map(|(channel, _)| channel)
        {
            self.channels.remove(channel);
        }
        for ((channel, seq), frame) in &changes.entries {
            self.keep(*channel, *seq, frame);
        }
        Ok(())
    }

    fn entries(&mut self, channel: ChannelId) -> Result<Vec<Bytes>, StoreError> {
        Ok(self
            .channels
            .get(&channel)
            .map(|kept| kept.entries.values().cloned().collect())
            .unwrap_or_default())
    }

    fn lasts(&self) -> bool {
        false
    }
}
