//! How far members have got in a channel: maxima merged in memory, with the histogram that answers COUNTS.

use std::collections::BTreeMap;

use fanfare_proto::{ChannelId, UserId, wire};
use fanfare_storage::model::UserCursor;
use foldhash::fast::RandomState;
use hashbrown::HashSet;

use crate::shelves::{Keyed, Shelves};

/// A member's cursor without the channel, which all have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cursor {
    user: UserId,
    delivered: u64,
    read: u64,
    read_ordinal: u64,
}

const _: () = assert!(size_of::<Cursor>() == 32, "each member who was delivered anything has one");

impl Keyed for Cursor {
    type Key = UserId;

    fn key(&self) -> UserId {
        self.user
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cursors {
    channel: ChannelId,
    of: Shelves<Cursor>,
    delivered: BTreeMap<u64, u32>,
    read: BTreeMap<u64, u32>,
    dirty: HashSet<UserId, RandomState>,
    written: HashSet<UserId, RandomState>,
}

fn moved(histogram: &mut BTreeMap<u64, u32>, from: u64, to: u64) {
    if from > 0
        && let Some(count) = histogram.get_mut(&from)
    {
        *count -= 1;
        if *count == 0 {
            histogram.remove(&from);
        }
    }
    if to > 0 {
        *histogram.entry(to).or_default() += 1;
    }
}

impl Cursors {
    /// From the stored rows of members.
    pub fn of_rows(rows: impl IntoIterator<Item = UserCursor>) -> Self {
        let mut cursors = Self::default();
        for row in rows {
            cursors.raise(row);
        }
        cursors.dirty.clear();
        cursors
    }

    /// A user's cursor; zeros where none is known.
    pub fn get(&self, user: UserId) -> UserCursor {
        let cursor = self.of.get(user).unwrap_or(Cursor { user, delivered: 0, read: 0, read_ordinal: 0 });
        self.whole(cursor)
    }

    fn whole(&self, cursor: Cursor) -> UserCursor {
        let Cursor { user, delivered, read, read_ordinal } = cursor;
        UserCursor { channel: self.channel, user, delivered, read, read_ordinal }
    }

    /// Raises what is higher; says whether anything moved. The caller has clamped it to head and membership.
    pub fn raise(&mut self, to: UserCursor) -> bool {
        self.channel = to.channel;
        let known = self.of.get(to.user);
        let before = known.unwrap_or(Cursor { user: to.user, delivered: 0, read: 0, read_ordinal: 0 });
        let mut cursor = before;
        cursor.delivered = before.delivered.max(to.delivered).max(to.read);
        if to.read > before.read {
            cursor.read = to.read;
            cursor.read_ordinal = before.read_ordinal.max(to.read_ordinal);
        }
        if cursor == before {
            return false;
        }
        self.of.insert(cursor);
        moved(&mut self.delivered, before.delivered, cursor.delivered);
        moved(&mut self.read, before.read, cursor.read);
        self.dirty.insert(to.user);
        true
    }

    /// Forgets a user who left.
    pub fn forget(&mut self, user: UserId) {
        if let Some(cursor) = self.of.remove(user) {
            moved(&mut self.delivered, cursor.delivered, 0);
            moved(&mut self.read, cursor.read, 0);
        }
        self.dirty.remove(&user);
        self.written.remove(&user);
    }

    /// How many have (delivered, read) that seq.
    pub fn counts(&self, seq: u64) -> (u32, u32) {
        let passed = |histogram: &BTreeMap<u64, u32>| histogram.range(seq..).map(|(_, count)| *count).sum();
        (passed(&self.delivered), passed(&self.read))
    }

    /// Whether anything waits to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes what moved since the last time, to be written.
    pub fn take_dirty(&mut self) -> Vec<UserCursor> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|user| Some(self.whole(self.of.get(user)?))).collect()
    }

    /// These stand on disk now and may be shown.
    pub fn written(&mut self, users: impl IntoIterator<Item = UserId>) {
        for user in users {
            if self.of.get(user).is_some() {
                self.written.insert(user);
            }
        }
    }

    /// What was written and not yet shown, as others may see it.
    pub fn take_shown(&mut self) -> Vec<wire::Cursor> {
        std::mem::take(&mut self.written)
            .into_iter()
            .filter_map(|user| self.of.get(user))
            .map(|cursor| wire::Cursor {
                user: cursor.user.0,
                delivered: cursor.delivered,
                read: cursor.read,
                read_ordinal: cursor.read_ordinal,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_proto::ChannelId;

    fn cursor(user: u64, delivered: u64, read: u64) -> UserCursor {
        UserCursor { channel: ChannelId(1), user: UserId(user), delivered, read, read_ordinal: read }
    }

    #[test]
    fn cursors_only_rise_and_the_histogram_follows() {
        let mut cursors = Cursors::default();
        assert!(cursors.raise(cursor(1, 5, 2)));
        assert!(!cursors.raise(cursor(1, 4, 1)));
        assert!(cursors.raise(cursor(2, 3, 3)));
        assert_eq!(cursors.counts(3), (2, 1));
        assert_eq!(cursors.counts(5), (1, 0));
        assert!(cursors.raise(cursor(1, 0, 6)));
        assert_eq!(cursors.get(UserId(1)).delivered, 6);
        assert_eq!(cursors.counts(4), (1, 1));
        cursors.forget(UserId(1));
        assert_eq!(cursors.counts(1), (1, 1));
        assert_eq!(cursors.take_dirty().len(), 1);
    }
}
