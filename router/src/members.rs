//! Who belongs to a channel and what each may see of it. Joining costs the same in a group of ten as of 100,000.

use fanfare_proto::UserId;
use fanfare_storage::model::Member;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

/// `wire::Role` as stored.
pub mod role {
    /// May send.
    pub const MEMBER: u8 = 1;
    /// May add and remove members.
    pub const ADMIN: u8 = 2;
    /// May do everything.
    pub const OWNER: u8 = 3;
}

/// A membership in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// See [`role`].
    pub role: u8,
    /// Seq of the entry by which the user joined.
    pub joined_seq: u64,
    /// First seq the member may see.
    pub visible_from: u64,
}

/// Seqs a user may see, inclusive, ascending and apart from each other.
pub type Visible = SmallVec<[(u64, u64); 2]>;

/// See the module.
#[derive(Debug, Default)]
pub struct Members {
    current: HashMap<UserId, Standing, RandomState>,
    past: HashMap<UserId, Visible, RandomState>,
    owners: usize,
}

impl Members {
    /// From the stored rows.
    pub fn of_rows(rows: &[Member]) -> Self {
        let mut members = Self::default();
        for row in rows {
            if row.left_seq == 0 {
                members.join(row.user, row.role, row.joined_seq, row.visible_from);
            } else {
                members.past.entry(row.user).or_default().push((row.visible_from, row.left_seq));
            }
        }
        members
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// How many owners there are.
    pub fn owners(&self) -> usize {
        self.owners
    }

    /// The user's membership in force.
    pub fn get(&self, user: UserId) -> Option<Standing> {
        self.current.get(&user).copied()
    }

    /// Whether the user is a member or was.
    pub fn was_ever(&self, user: UserId) -> bool {
        self.current.contains_key(&user) || self.past.contains_key(&user)
    }

    /// All in force, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (UserId, Standing)> {
        self.current.iter().map(|(user, standing)| (*user, *standing))
    }

    /// Takes a user in.
    pub fn join(&mut self, user: UserId, role: u8, joined_seq: u64, visible_from: u64) {
        let standing = Standing { role, joined_seq, visible_from };
        if let Some(old) = self.current.insert(user, standing) {
            self.owners -= usize::from(old.role == role::OWNER);
        }
        self.owners += usize::from(role == role::OWNER);
    }

    /// Ends a membership at that seq; what it could see stays known.
    pub fn leave(&mut self, user: UserId, left_seq: u64) -> Option<Standing> {
        let standing = self.current.remove(&user)?;
        self.owners -= usize::from(standing.role == role::OWNER);
        self.past.entry(user).or_default().push((standing.visible_from, left_seq));
        Some(standing)
    }

    /// Changes a role.
    pub fn set_role(&mut self, user: UserId, role: u8) {
        if let Some(standing) = self.current.get_mut(&user) {
            self.owners -= usize::from(standing.role == role::OWNER);
            self.owners += usize::from(role == role::OWNER);
            standing.role = role;
        }
    }

    /// Whether a member may see that entry.
    pub fn sees(&self, user: UserId, seq: u64) -> bool {
        let past = || {
            self.past.get(&user).into_iter().flatten().any(|(first, last)| (*first..=*last).contains(&seq))
        };
        self.current.get(&user).is_some_and(|standing| seq >= standing.visible_from || past())
    }

    /// What a member may see, over all stretches of membership; `None` for others.
    pub fn visible(&self, user: UserId) -> Option<Visible> {
        let standing = self.current.get(&user)?;
        let mut ranges: Visible = self.past.get(&user).cloned().unwrap_or_default();
        ranges.push((standing.visible_from, u64::MAX));
        ranges.sort_unstable();
        let mut merged = Visible::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(newest) if first <= newest.1.saturating_add(1) => newest.1 = newest.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Some(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_membership_are_kept_apart_and_merged_where_they_touch() {
        let mut members = Members::default();
        let user = UserId(1);
        members.join(user, role::OWNER, 3, 3);
        assert_eq!(members.owners(), 1);
        assert!(members.leave(user, 7).is_some() && members.visible(user).is_none());
        members.join(user, role::MEMBER, 10, 10);
        assert_eq!(members.visible(user).unwrap().as_slice(), [(3, 7), (10, u64::MAX)]);
        assert_eq!(members.owners(), 0);
        assert_eq!([2, 3, 7, 8, 10].map(|seq| members.sees(user, seq)), [false, true, true, false, true]);
        members.leave(user, 12);
        assert!(!members.sees(user, 3), "who is out sees nothing");
        members.join(user, role::MEMBER, 13, 1);
        assert_eq!(members.visible(user).unwrap().as_slice(), [(1, u64::MAX)]);
    }
}
