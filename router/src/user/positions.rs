//! A user's list of channels, and how far a device holds them: sorted, without room that is not used.

use fanfare_proto::ChannelId;
use fanfare_storage::model::DevicePosition;

/// The least that an array grows by.
const ROOM_MIN: usize = 2;

/// Makes room for one more: an eighth of what is there.
fn grow<T>(array: &mut Vec<T>) {
    if array.len() == array.capacity() {
        array.reserve_exact(ROOM_MIN.max(array.len() / 8));
    }
}

/// The channels in a user's list.
#[derive(Debug, Default)]
pub struct Channels(Vec<ChannelId>);

impl Channels {
    /// As read.
    pub fn of(mut channels: Vec<ChannelId>) -> Self {
        channels.sort_unstable();
        channels.dedup();
        channels.shrink_to_fit();
        Self(channels)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = ChannelId> + '_ {
        self.0.iter().copied()
    }

    pub fn contains(&self, channel: ChannelId) -> bool {
        self.0.binary_search(&channel).is_ok()
    }

    pub fn insert(&mut self, channel: ChannelId) {
        if let Err(place) = self.0.binary_search(&channel) {
            grow(&mut self.0);
            self.0.insert(place, channel);
        }
    }

    pub fn remove(&mut self, channel: ChannelId) {
        if let Ok(place) = self.0.binary_search(&channel) {
            self.0.remove(place);
            if self.0.capacity() > 2 * self.0.len() + ROOM_MIN {
                self.0.shrink_to_fit();
            }
        }
    }
}

/// How far a device holds one channel.
#[derive(Clone, Copy, Debug)]
struct Position {
    channel: ChannelId,
    seq: u64,
    epoch: u32,
    /// Ahead of what is written.
    is_dirty: bool,
}

/// How far a device holds its user's channels.
#[derive(Debug, Default)]
pub struct Positions(Vec<Position>);

impl Positions {
    /// As read.
    pub fn of(rows: &[DevicePosition]) -> Self {
        let of = |row: &DevicePosition| Position {
            channel: row.channel,
            seq: row.seq,
            epoch: row.epoch,
            is_dirty: false,
        };
        let mut positions: Vec<Position> = rows.iter().map(of).collect();
        positions.sort_by_key(|position| position.channel);
        Self(positions)
    }

    fn find(&self, channel: ChannelId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&channel, |position| position.channel)
    }

    /// Epoch and seq.
    pub fn get(&self, channel: ChannelId) -> Option<(u32, u64)> {
        let position = self.0.get(self.find(channel).ok()?)?;
        Some((position.epoch, position.seq))
    }

    fn held(&mut self, channel: ChannelId) -> &mut Position {
        let place = match self.find(channel) {
            Ok(place) => place,
            Err(place) => {
                grow(&mut self.0);
                self.0.insert(place, Position { channel, seq: 0, epoch: 0, is_dirty: false });
                place
            }
        };
        &mut self.0[place]
    }

    /// The device holds the channel up to there; what it held before may be more.
    pub fn raise(&mut self, channel: ChannelId, to: (u32, u64)) {
        if to == (0, 0) {
            return;
        }
        let held = self.held(channel);
        if to > (held.epoch, held.seq) {
            (held.epoch, held.seq) = to;
            held.is_dirty = true;
        }
    }

    /// Whatever it held before, and nothing is to be written: for a seeded bug.
    pub fn set(&mut self, channel: ChannelId, to: (u32, u64)) {
        let held = self.held(channel);
        (held.epoch, held.seq) = to;
    }

    /// Whether anything is to be written.
    pub fn is_dirty(&self) -> bool {
        self.0.iter().any(|position| position.is_dirty)
    }

    /// Takes what is to be written.
    pub fn take_dirty(&mut self) -> Vec<(ChannelId, (u32, u64))> {
        let dirty = self.0.iter_mut().filter(|position| position.is_dirty);
        dirty
            .map(|position| {
                position.is_dirty = false;
                (position.channel, (position.epoch, position.seq))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_and_has_no_spare_room() {
        let mut channels = Channels::of([5, 3, 9, 3].map(ChannelId).to_vec());
        channels.insert(ChannelId(4));
        channels.insert(ChannelId(4));
        channels.remove(ChannelId(5));
        channels.remove(ChannelId(6));
        assert!(channels.iter().eq([3, 4, 9].map(ChannelId)));
        assert!(channels.contains(ChannelId(4)) && !channels.contains(ChannelId(5)));
        for channel in 0..200 {
            channels.insert(ChannelId(channel * 7 % 1_000));
        }
        assert!(channels.0.capacity() <= channels.len() + channels.len() / 8);
    }

    #[test]
    fn positions_only_rise_and_are_written_once() {
        let mut positions = Positions::default();
        positions.raise(ChannelId(2), (0, 5));
        positions.raise(ChannelId(1), (0, 0));
        positions.raise(ChannelId(2), (0, 4));
        assert_eq!(positions.get(ChannelId(2)), Some((0, 5)));
        assert_eq!(positions.take_dirty(), [(ChannelId(2), (0, 5))]);
        assert!(!positions.is_dirty());
        positions.raise(ChannelId(2), (1, 1));
        assert!(positions.is_dirty());
        assert_eq!(positions.get(ChannelId(1)), None, "nothing of it is held");
    }
}
