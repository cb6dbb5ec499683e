//! What stands for or against users in a channel beside membership: mutes, bans, invitations, requests to join, and
//! what was turned down of late.

use std::collections::BTreeSet;

use fanfare_proto::UserId;
use fanfare_storage::model::{Mark, MarkChange, MarkKind};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Marks of one kind in one channel.
pub const MARKS_MAX: usize = 10_000;

/// See the module. Most channels have none.
#[derive(Debug, Default)]
pub struct Marks {
    of: HashMap<(UserId, MarkKind), Mark, RandomState>,
    by_kind: [usize; MarkKind::ALL.len()],
    /// Those whose time ends, soonest first.
    ends: BTreeSet<(u64, UserId, MarkKind)>,
}

impl Marks {
    /// From the stored rows.
    pub fn of_rows(rows: &[Mark]) -> Self {
        let mut marks = Self::default();
        rows.iter().for_each(|mark| marks.set(*mark));
        marks
    }

    /// The user's mark of that kind, while it counts.
    pub fn get(&self, user: UserId, kind: MarkKind, now_ms: u64) -> Option<&Mark> {
        self.of.get(&(user, kind)).filter(|mark| mark.until_ms == 0 || mark.until_ms > now_ms)
    }

    /// Whether there is or was anything about the user that is not taken away.
    pub fn knows(&self, user: UserId) -> bool {
        MarkKind::ALL.iter().any(|kind| self.of.contains_key(&(user, *kind)))
    }

    /// Whether `more` of the kind would be too many.
    pub fn is_full(&self, kind: MarkKind, more: usize) -> bool {
        self.by_kind[kind as usize - 1] + more > MARKS_MAX
    }

    /// All that count, by kind and user.
    pub fn list(&self, now_ms: u64) -> Vec<Mark> {
        let in_time = |mark: &&Mark| mark.until_ms == 0 || mark.until_ms > now_ms;
        let mut all: Vec<Mark> = self.of.values().filter(in_time).copied().collect();
        all.sort_unstable_by_key(|mark| (mark.kind, mark.user));
        all
    }

    /// Those whose time is over, which only wait to be taken away; at most `limit`.
    pub fn over(&self, now_ms: u64, limit: usize) -> impl Iterator<Item = &Mark> {
        let over = self.ends.iter().take_while(move |(until_ms, ..)| *until_ms <= now_ms);
        over.take(limit).filter_map(|(_, user, kind)| self.of.get(&(*user, *kind)))
    }

    /// As committed.
    pub fn apply(&mut self, change: &MarkChange) {
        if change.stands {
            self.set(change.mark);
        } else if let Some(old) = self.of.remove(&(change.mark.user, change.mark.kind)) {
            self.by_kind[old.kind as usize - 1] -= 1;
            self.ends.remove(&(old.until_ms, old.user, old.kind));
        }
    }

    fn set(&mut self, mark: Mark) {
        match self.of.insert((mark.user, mark.kind), mark) {
            Some(old) => drop(self.ends.remove(&(old.until_ms, old.user, old.kind))),
            None => self.by_kind[mark.kind as usize - 1] += 1,
        }
        if mark.until_ms > 0 {
            self.ends.insert((mark.until_ms, mark.user, mark.kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::ChannelId;

    use super::*;

    #[test]
    fn marks_end_with_their_time_and_are_counted_once() {
        let change = |user: u64, kind, until_ms, stands| MarkChange {
            channel: ChannelId(1),
            mark: Mark { user: UserId(user), kind, until_ms, seq: 1 },
            stands,
        };
        let mut marks = Marks::default();
        marks.apply(&change(1, MarkKind::Muted, 50, true));
        marks.apply(&change(1, MarkKind::Muted, 60, true));
        marks.apply(&change(1, MarkKind::Banned, 0, true));
        assert!(marks.get(UserId(1), MarkKind::Muted, 59).is_some());
        assert!(marks.get(UserId(1), MarkKind::Muted, 60).is_none());
        assert!(marks.get(UserId(1), MarkKind::Banned, u64::MAX).is_some());
        assert!(!marks.is_full(MarkKind::Muted, MARKS_MAX - 1) && marks.is_full(MarkKind::Muted, MARKS_MAX));
        assert_eq!(marks.list(60).len(), 1);
        marks.apply(&change(1, MarkKind::Banned, 0, false));
        marks.apply(&change(1, MarkKind::Banned, 0, false));
        assert!(!marks.is_full(MarkKind::Banned, MARKS_MAX));
        let over =
            |marks: &Marks, now_ms| marks.over(now_ms, 9).map(|mark| mark.until_ms).collect::<Vec<_>>();
        assert_eq!((over(&marks, 59), over(&marks, 60)), (vec![], vec![60]));
        assert!(marks.is_full(MarkKind::Muted, MARKS_MAX) && marks.knows(UserId(1)));
        marks.apply(&change(1, MarkKind::Muted, 0, false));
        assert!(!marks.is_full(MarkKind::Muted, MARKS_MAX) && marks.list(0).is_empty());
        assert!(over(&marks, 60).is_empty() && !marks.knows(UserId(1)));
    }
}
