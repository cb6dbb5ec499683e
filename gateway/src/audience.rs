//! A lane's mirror of who is due for a channel's frames. The router decides who is in it; the gateway only loops.
//!
//! A member is 8 bytes: slot and tier in one word, and the connection's generation, so that a slot that was given to
//! somebody else never gets what was meant for its former holder. Members of connections that ended go when they are met,
//! or all at once when they are the most.

use fanfare_proto::{
    ids::ChannelId,
    link::{Handle, Tier, Tiers},
};
use hashbrown::HashMap;

/// Members above which a channel keeps an index of their slots.
const INDEXED_ABOVE: usize = 128;
/// Places that a channel's list grows by at the least.
const ROOM_MIN: usize = 4;
/// Members of ended connections that are worth a look at everything.
const STALE_MIN: usize = 4_096;

/// One connection in one channel's audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    slot_and_tier: u32,
    pub generation: u32,
}

impl Member {
    fn new(handle: Handle, tier: Tier) -> Self {
        Self { slot_and_tier: handle.slot() << 8 | tier as u32, generation: handle.generation() }
    }

    pub fn slot(self) -> u32 {
        self.slot_and_tier >> 8
    }

    pub fn is_in(self, tiers: Tiers) -> bool {
        tiers.0 >> (self.slot_and_tier & 7) & 1 != 0
    }
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Member>,
    /// Slot to place in the list, while there are many.
    index: Option<Box<HashMap<u32, u32, foldhash::fast::RandomState>>>,
}

impl Members {
    fn find(&self, slot: u32) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(&slot).map(|place| *place as usize),
            None => self.list.iter().position(|member| member.slot() == slot),
        }
    }

    fn push(&mut self, member: Member) {
        let place = self.list.len() as u32;
        if self.list.len() == self.list.capacity() {
            self.list.reserve_exact(ROOM_MIN.max(self.list.len() / 8));
        }
        self.list.push(member);
        if let Some(index) = &mut self.index {
            index.insert(member.slot(), place);
        } else if self.list.len() > INDEXED_ABOVE {
            let places = self.list.iter().enumerate().map(|(place, member)| (member.slot(), place as u32));
            self.index = Some(Box::new(places.collect()));
        }
    }

    fn remove(&mut self, place: usize) {
        let gone = self.list.swap_remove(place);
        if let Some(index) = &mut self.index {
            index.remove(&gone.slot());
            if let Some(moved) = self.list.get(place) {
                index.insert(moved.slot(), place as u32);
            }
        }
        if self.list.len() * 4 < self.list.capacity() {
            self.list.shrink_to(self.list.len() * 2);
        }
        if self.list.len() <= INDEXED_ABOVE / 2 {
            self.index = None;
        }
    }
}

/// All channels' members on one lane.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    channels: HashMap<ChannelId, Members, foldhash::fast::RandomState>,
    members: usize,
    stale: usize,
}

impl Audience {
    /// Adds a connection, or changes its tier. Says whether it is new.
    pub fn add(&mut self, channel: ChannelId, handle: Handle, tier: Tier) -> bool {
        let members = self.channels.entry(channel).or_default();
        let member = Member::new(handle, tier);
        match members.find(handle.slot()) {
            Some(place) => {
                let known = std::mem::replace(&mut members.list[place], member);
                known.generation != member.generation
            }
            None => {
                members.push(member);
                self.members += 1;
                true
            }
        }
    }

    /// Takes a connection out. Says whether it was there.
    pub fn remove(&mut self, channel: ChannelId, handle: Handle) -> bool {
        let Some(members) = self.channels.get_mut(&channel) else { return false };
        let place = members.find(handle.slot());
        let Some(place) = place.filter(|place| members.list[*place].generation == handle.generation()) else {
            return false;
        };
        members.remove(place);
        self.members -= 1;
        if members.list.is_empty() {
            self.channels.remove(&channel);
        }
        true
    }

    /// How many of a channel are here, those included that have just gone.
    pub fn len_of(&self, channel: ChannelId) -> usize {
        self.channels.get(&channel).map_or(0, |members| members.list.len())
    }

    /// Calls for each member in one of the tiers; those for whom it answers false are gone and taken out.
    pub fn each(&mut self, channel: ChannelId, tiers: Tiers, mut served: impl FnMut(Member) -> bool) {
        let Some(members) = self.channels.get_mut(&channel) else { return };
        let mut place = 0;
        while let Some(member) = members.list.get(place).copied() {
            if !member.is_in(tiers) || served(member) {
                place += 1;
            } else {
                members.remove(place);
                self.members -= 1;
                self.stale = self.stale.saturating_sub(1);
            }
        }
        if members.list.is_empty() {
            self.channels.remove(&channel);
        }
    }

    /// A connection ended that was in so many channels. Says whether it is time for [`Audience::compact`].
    pub fn ended(&mut self, memberships: u32) -> bool {
        self.stale += memberships as usize;
        self.stale > STALE_MIN && self.stale * 2 > self.members
    }

    /// Takes out all members whose connection ended.
    pub fn compact(&mut self, is_live: impl Fn(Member) -> bool) {
        let mut left = 0;
        self.channels.retain(|_, members| {
            members.list.retain(|member| is_live(*member));
            members.list.shrink_to_fit();
            members.index = None;
            if members.list.len() > INDEXED_ABOVE {
                let places =
                    members.list.iter().enumerate().map(|(place, member)| (member.slot(), place as u32));
                members.index = Some(Box::new(places.collect()));
            }
            left += members.list.len();
            !members.list.is_empty()
        });
        (self.members, self.stale) = (left, 0);
    }

    /// Memberships held.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Channels with members here.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(slot: u32, generation: u32) -> Handle {
        Handle::new(0, slot, generation)
    }

    fn slots(audience: &mut Audience, tiers: Tiers) -> Vec<u32> {
        let mut slots = Vec::new();
        audience.each(ChannelId(1), tiers, |member| {
            slots.push(member.slot());
            true
        });
        slots.sort_unstable();
        slots
    }

    #[test]
    fn members_come_and_go_at_any_size() {
        let mut audience = Audience::default();
        for slot in 0..1_000 {
            assert!(audience.add(ChannelId(1), handle(slot, 1), Tier::Active));
            assert!(!audience.add(ChannelId(1), handle(slot, 1), Tier::Active));
        }
        for slot in (0..1_000).filter(|slot| slot % 3 != 0) {
            assert!(audience.remove(ChannelId(1), handle(slot, 1)));
            assert!(!audience.remove(ChannelId(1), handle(slot, 1)));
        }
        let expected: Vec<u32> = (0..1_000).filter(|slot| slot % 3 == 0).collect();
        assert_eq!(slots(&mut audience, Tiers::ALL), expected);
        assert_eq!(audience.members(), expected.len());
        for slot in expected {
            assert!(audience.remove(ChannelId(1), handle(slot, 1)));
        }
        assert_eq!((audience.members(), audience.channels()), (0, 0));
    }

    #[test]
    fn tiers_choose_and_change() {
        let mut audience = Audience::default();
        audience.add(ChannelId(1), handle(1, 1), Tier::Visible);
        audience.add(ChannelId(1), handle(2, 1), Tier::Passive);
        assert_eq!(slots(&mut audience, Tiers(0b0011)), [1]);
        audience.add(ChannelId(1), handle(2, 1), Tier::Active);
        assert_eq!(slots(&mut audience, Tiers(0b0011)), [1, 2]);
    }

    #[test]
    fn a_former_holder_of_a_slot_is_nobody() {
        let mut audience = Audience::default();
        audience.add(ChannelId(1), handle(1, 1), Tier::Active);
        assert!(!audience.remove(ChannelId(1), handle(1, 2)));
        assert!(audience.add(ChannelId(1), handle(1, 2), Tier::Active));
        assert!(!audience.remove(ChannelId(1), handle(1, 1)));
        audience.each(ChannelId(1), Tiers::ALL, |member| member.generation == 9);
        assert_eq!((audience.members(), audience.channels()), (0, 0));
    }

    #[test]
    fn ended_connections_are_compacted_when_they_are_the_most() {
        let mut audience = Audience::default();
        for slot in 0..10_000 {
            audience.add(ChannelId(1), handle(slot, 1), Tier::Active);
        }
        let mut due = false;
        for _ in 0..5_001 {
            due = audience.ended(1);
        }
        assert!(due);
        audience.compact(|member| member.slot() >= 5_001);
        assert_eq!(audience.members(), 4_999);
        assert!(audience.remove(ChannelId(1), handle(9_999, 1)));
    }
}
