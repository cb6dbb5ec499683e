//! Who belongs to a channel and what each may see of it. Joining costs the same in a group of ten as of 100,000.

use fanfare_proto::UserId;
use fanfare_storage::model::Member;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::shelves::{Keyed, Shelves};

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

/// A membership in 12 bytes: role in the lowest two bits; in the third, whether everything is visible rather than what came from
/// joining on; above, the seq of joining. A role of 0 stands for what does not fit, which is in [`Members::odd`].
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Place {
    user: UserId,
    standing: u32,
}

const _: () = assert!(size_of::<Place>() == 12, "each member has one in each of its channels");

impl Place {
    fn new(user: UserId, standing: Standing) -> Self {
        let Standing { role, joined_seq, visible_from } = standing;
        let fits = (1..4).contains(&role)
            && joined_seq < 1 << 29
            && (visible_from == 1 || visible_from == joined_seq);
        let packed = u32::from(role) | u32::from(visible_from == 1) << 2 | (joined_seq as u32) << 3;
        Self { user, standing: if fits { packed } else { 0 } }
    }

    /// `None`: it is among the odd ones.
    fn standing(self) -> Option<Standing> {
        let joined_seq = u64::from(self.standing >> 3);
        let role = (self.standing & 3) as u8;
        let visible_from = if self.standing & 4 == 0 { joined_seq } else { 1 };
        (role != 0).then_some(Standing { role, joined_seq, visible_from })
    }
}

impl Keyed for Place {
    type Key = UserId;

    fn key(&self) -> UserId {
        self.user
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Members {
    current: Shelves<Place>,
    /// Of those in force, what does not fit a [`Place`].
    odd: HashMap<UserId, Standing, RandomState>,
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
        let place = self.current.get(user)?;
        place.standing().or_else(|| self.odd.get(&user).copied())
    }

    /// Whether the user is a member or was.
    pub fn was_ever(&self, user: UserId) -> bool {
        self.current.get(user).is_some() || self.past.contains_key(&user)
    }

    /// All in force, by user.
    pub fn iter(&self) -> impl Iterator<Item = (UserId, Standing)> {
        let standing = |place: Place| place.standing().or_else(|| self.odd.get(&place.key()).copied());
        self.current.iter().filter_map(move |place| Some((place.key(), standing(place)?)))
    }

    /// The users in force above that one, in order.
    pub fn above(&self, after: UserId) -> impl Iterator<Item = UserId> + '_ {
        self.current.from(UserId(after.0.saturating_add(1))).map(|place| place.key())
    }

    /// Takes a user in.
    pub fn join(&mut self, user: UserId, role: u8, joined_seq: u64, visible_from: u64) {
        let standing = Standing { role, joined_seq, visible_from };
        self.take_out(user);
        let place = Place::new(user, standing);
        self.current.insert(place);
        if place.standing().is_none() {
            self.odd.insert(user, standing);
        }
        self.owners += usize::from(role == role::OWNER);
    }

    fn take_out(&mut self, user: UserId) -> Option<Standing> {
        let place = self.current.remove(user)?;
        let standing = place.standing().or_else(|| self.odd.remove(&user))?;
        self.owners -= usize::from(standing.role == role::OWNER);
        Some(standing)
    }

    /// Ends a membership at that seq; what it could see stays known.
    pub fn leave(&mut self, user: UserId, left_seq: u64) -> Option<Standing> {
        let standing = self.take_out(user)?;
        self.past.entry(user).or_default().push((standing.visible_from, left_seq));
        Some(standing)
    }

    /// Changes a role.
    pub fn set_role(&mut self, user: UserId, role: u8) {
        if let Some(standing) = self.get(user) {
            self.join(user, role, standing.joined_seq, standing.visible_from);
        }
    }

    /// Whether a member may see that entry.
    pub fn sees(&self, user: UserId, seq: u64) -> bool {
        let past = || {
            self.past.get(&user).into_iter().flatten().any(|(first, last)| (*first..=*last).contains(&seq))
        };
        self.get(user).is_some_and(|standing| seq >= standing.visible_from || past())
    }

    /// What a member may see, over all stretches of membership; `None` for others.
    pub fn visible(&self, user: UserId) -> Option<Visible> {
        let standing = self.get(user)?;
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

    #[test]
    fn what_does_not_fit_twelve_bytes_is_kept_as_it_is() {
        let seqs = [1, 2, (1 << 29) - 1, 1 << 29, u64::MAX >> 1];
        let standings: Vec<Standing> = [0, role::MEMBER, role::ADMIN, role::OWNER, 4, 255]
            .into_iter()
            .flat_map(|role| seqs.map(|joined_seq| (role, joined_seq)))
            .flat_map(|(role, joined_seq)| {
                [1, 2, joined_seq].map(|visible_from| Standing { role, joined_seq, visible_from })
            })
            .collect();
        let mut members = Members::default();
        let of = |number: usize| UserId(number as u64 * 0x9e37 % 90_001);
        for (number, standing) in standings.iter().enumerate() {
            members.join(of(number), standing.role, standing.joined_seq, standing.visible_from);
        }
        for (number, standing) in standings.iter().enumerate() {
            assert_eq!(members.get(of(number)), Some(*standing));
        }
        let mut all: Vec<_> =
            standings.iter().enumerate().map(|(number, standing)| (of(number), *standing)).collect();
        all.sort_unstable_by_key(|(user, _)| *user);
        assert!(members.iter().eq(all));
        assert_eq!(members.owners(), seqs.len() * 3);
        for (number, standing) in standings.iter().enumerate() {
            members.set_role(of(number), role::MEMBER);
            assert_eq!(members.get(of(number)), Some(Standing { role: role::MEMBER, ..*standing }));
            let gone = members.leave(of(number), 9);
            assert_eq!(gone.map(|gone| gone.joined_seq), Some(standing.joined_seq));
        }
        assert_eq!((members.len(), members.owners(), members.odd.len()), (0, 0, 0));
    }
}
