//! A lane's mirror of who is due for a channel's frames. The router decides who is in it; the gateway only loops.
//!
//! A member is 8 bytes: slot and tier in one word, and the connection's generation, so that a slot that was given to
//! somebody else never gets what was meant for its former holder. Members of connections that ended go when they are met,
//! or all at once when they are the most.
//!
//! Frames that may wait ([`Later`]) go to a channel's members in slices, from the end of its list: who has not been given them yet stands
//! before a mark, and whoever is taken out or changes its tier leaves that part first. So each gets what was meant for it, once. There may be
//! such frames for one tier beside others for another one, each with its mark: nobody waits for them.
//!
//! Members who get everything at once stand in front of a long list, so that a message costs what they are, and not what all are. Where they
//! are many it goes to them in slices as well, from the end of that front.

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

    fn is_at_once(self) -> bool {
        self.is_in(Tiers::AT_ONCE)
    }

    fn tier(self) -> usize {
        (self.slot_and_tier & 7) as usize
    }
}

/// The place of frames for those who get everything at once.
pub(crate) const AT_ONCE: usize = 3;
/// Frames that may be on their way at the same time, each for tiers of its own.
const LATERS_MAX: usize = 4;

/// Frames on their way to a channel's members, by the first tier that they are for.
#[derive(Debug)]
struct Laters<F>([Option<Later<F>>; LATERS_MAX]);

impl<F> Default for Laters<F> {
    fn default() -> Self {
        Self([const { None }; LATERS_MAX])
    }
}

/// One of them. No two are for the same tier.
#[derive(Debug)]
struct Later<F> {
    what: F,
    tiers: Tiers,
    /// Members before this place have not been given it.
    left: usize,
}

/// Where frames for these tiers stand among those of their channel.
pub(crate) fn place_of(tiers: Tiers) -> usize {
    if tiers == Tiers::AT_ONCE {
        return AT_ONCE;
    }
    let may_wait = [Tier::Warm, Tier::Passive, Tier::Background];
    may_wait.iter().position(|tier| tiers.contains(*tier)).unwrap_or(0)
}

/// How far a slice came.
#[derive(Debug)]
pub(crate) enum Slice {
    /// There are members left.
    More,
    /// Everybody has it.
    Done,
}

/// What a long list has beside it.
#[derive(Debug, Default)]
struct Index {
    /// Slot to place in the list.
    places: HashMap<u32, u32, foldhash::fast::RandomState>,
    /// So many members in front are all those who get everything at once.
    front: usize,
}

#[derive(Debug)]
struct Members<F> {
    list: Vec<Member>,
    index: Option<Box<Index>>,
    laters: Option<Box<Laters<F>>>,
}

impl<F> Default for Members<F> {
    fn default() -> Self {
        Self { list: Vec::new(), index: None, laters: None }
    }
}

impl<F> Members<F> {
    fn find(&self, slot: u32) -> Option<usize> {
        match &self.index {
            Some(index) => index.places.get(&slot).map(|place| *place as usize),
            None => self.list.iter().position(|member| member.slot() == slot),
        }
    }

    fn push(&mut self, member: Member) {
        let place = self.list.len();
        if self.list.len() == self.list.capacity() {
            self.list.reserve_exact(ROOM_MIN.max(self.list.len() / 8));
        }
        self.list.push(member);
        if let Some(index) = &mut self.index {
            index.places.insert(member.slot(), place as u32);
            self.settle(place);
        } else if self.list.len() > INDEXED_ABOVE && !self.is_on_its_way(AT_ONCE) {
            let places = self.list.iter().enumerate().map(|(place, member)| (member.slot(), place as u32));
            self.index = Some(Box::new(Index { places: places.collect(), front: 0 }));
            let at_once: Vec<u32> =
                self.list.iter().filter(|member| member.is_at_once()).map(|member| member.slot()).collect();
            for slot in at_once {
                if let Some(place) = self.find(slot) {
                    let (place, _) = self.part(place);
                    self.settle(place);
                }
            }
        }
    }

    fn front(&self) -> usize {
        self.index.as_ref().map_or(0, |index| index.front)
    }

    fn is_on_its_way(&self, which: usize) -> bool {
        self.laters.as_ref().is_some_and(|laters| laters.0.get(which).is_some_and(Option::is_some))
    }

    /// A member in front stands behind it. Gives its place.
    fn leave_front(&mut self, place: usize) -> usize {
        let front = self.front();
        let Some(index) = self.index.as_mut().filter(|_| place < front) else { return place };
        index.front -= 1;
        self.swap(place, front - 1);
        front - 1
    }

    /// A member that stands behind all marks goes to the front if it belongs there: each part that it passes gives its first place for one
    /// behind its last.
    fn settle(&mut self, mut place: usize) {
        if self.index.is_none() || !self.list[place].is_at_once() {
            return;
        }
        if let Some(mut laters) = self.laters.take() {
            let mut order = [0, 1, 2];
            order.sort_unstable_by_key(|which| {
                std::cmp::Reverse(laters.0[*which].as_ref().map_or(0, |later| later.left))
            });
            for which in order {
                let Some(later) = &mut laters.0[which] else { continue };
                self.swap(place, later.left);
                place = later.left;
                later.left += 1;
            }
            self.laters = Some(laters);
        }
        self.swap(place, self.front());
        if let Some(index) = &mut self.index {
            index.front += 1;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        if one == other {
            return;
        }
        self.list.swap(one, other);
        if let Some(index) = &mut self.index {
            index.places.insert(self.list[one].slot(), one as u32);
            index.places.insert(self.list[other].slot(), other as u32);
        }
    }

    /// Takes a member out of the front, and out of those who are still to be given what waits. Gives its place, and which frames it is due
    /// for: no two are for its tier.
    fn part(&mut self, mut place: usize) -> (usize, Option<usize>) {
        let Some(mut laters) = self.laters.take() else { return (self.leave_front(place), None) };
        let mut due = None;
        // From the shortest part on: whom the member changes places with has left that part already. What is for the front lies within it.
        let mut order = [AT_ONCE, 0, 1, 2];
        order.sort_by_key(|which| laters.0[*which].as_ref().map_or(0, |later| later.left));
        for which in order {
            let Some(later) = laters.0[which].as_mut() else { continue };
            if which != AT_ONCE {
                place = self.leave_front(place);
            }
            if place >= later.left {
                continue;
            }
            later.left -= 1;
            if self.list[place].is_in(later.tiers) {
                due = Some(which);
            }
            let last = later.left;
            self.swap(place, last);
            place = last;
        }
        self.laters = Some(laters);
        (self.leave_front(place), due)
    }

    fn take_later(&mut self, which: usize) -> Option<Later<F>> {
        let laters = self.laters.as_mut()?;
        let later = laters.0.get_mut(which)?.take();
        if laters.0.iter().all(Option::is_none) {
            self.laters = None;
        }
        later
    }

    fn put_later(&mut self, which: usize, later: Later<F>) {
        if let Some(place) = self.laters.get_or_insert_default().0.get_mut(which) {
            *place = Some(later);
        }
    }

    fn remove(&mut self, place: usize) {
        let (place, _) = self.part(place);
        let gone = self.list.swap_remove(place);
        if let Some(index) = &mut self.index {
            index.places.remove(&gone.slot());
            if let Some(moved) = self.list.get(place) {
                index.places.insert(moved.slot(), place as u32);
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

/// All channels' members on one lane. `F` is what may be on its way to a channel's members.
#[derive(Debug)]
pub(crate) struct Audience<F> {
    channels: HashMap<ChannelId, Members<F>, foldhash::fast::RandomState>,
    members: usize,
    stale: usize,
    /// By tier.
    tiers: [u32; Tier::ALL.len()],
}

impl<F> Default for Audience<F> {
    fn default() -> Self {
        Self { channels: HashMap::default(), members: 0, stale: 0, tiers: Default::default() }
    }
}

impl<F> Audience<F> {
    /// Adds a connection, or changes its tier. Says whether it is new.
    pub fn add(&mut self, channel: ChannelId, handle: Handle, tier: Tier) -> bool {
        let members = self.channels.entry(channel).or_default();
        let member = Member::new(handle, tier);
        match members.find(handle.slot()) {
            Some(place) => {
                // Who was due for what waits was given it before this.
                let (place, _) = members.part(place);
                let known = std::mem::replace(&mut members.list[place], member);
                members.settle(place);
                self.tiers[known.tier()] -= 1;
                self.tiers[member.tier()] += 1;
                known.generation != member.generation
            }
            None => {
                members.push(member);
                self.members += 1;
                self.tiers[member.tier()] += 1;
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
        self.tiers[members.list[place].tier()] -= 1;
        members.remove(place);
        self.members -= 1;
        if members.list.is_empty() {
            self.channels.remove(&channel);
        }
        true
    }

    /// Puts frames in the way of a channel's members, where none are for any of these tiers: see [`Self::slice`]. Says whether there is
    /// anybody.
    pub fn give_later(&mut self, channel: ChannelId, tiers: Tiers, what: F) -> bool {
        let Some(members) = self.channels.get_mut(&channel) else { return false };
        let which = place_of(tiers);
        let left =
            if which == AT_ONCE && members.index.is_some() { members.front() } else { members.list.len() };
        members.put_later(which, Later { what, tiers, left });
        true
    }

    /// Frames that are on their way to any of these tiers of a channel; the first of them.
    pub fn on_their_way(&self, channel: ChannelId, tiers: Tiers) -> Option<usize> {
        let laters = self.channels.get(&channel)?.laters.as_ref()?;
        laters.0.iter().position(|later| later.as_ref().is_some_and(|later| later.tiers.0 & tiers.0 != 0))
    }

    /// A member is to be given something else, or to be served otherwise: what is on its way to it, which it is given now.
    pub fn due_now(&mut self, channel: ChannelId, handle: Handle) -> Option<&F> {
        let members = self.channels.get_mut(&channel)?;
        members.laters.as_ref()?;
        let place = members.find(handle.slot())?;
        if members.list[place].generation != handle.generation() {
            return None;
        }
        if members.list[place].is_at_once() && !members.is_on_its_way(AT_ONCE) {
            return None;
        }
        let (place, due) = members.part(place);
        members.settle(place);
        members.laters.as_ref()?.0.get(due?)?.as_ref().map(|later| &later.what)
    }

    /// Calls for so many of the members that are due for what is on its way in that place; as in [`Self::each`] those who are gone are taken
    /// out.
    pub fn slice(
        &mut self,
        channel: ChannelId,
        which: usize,
        mut most: usize,
        mut served: impl FnMut(&F, Member) -> bool,
    ) -> Slice {
        let Some(members) = self.channels.get_mut(&channel) else { return Slice::Done };
        let Some(mut later) = members.take_later(which) else { return Slice::Done };
        // Nobody in front is due for what may wait.
        let end = |members: &Members<F>| if which == AT_ONCE { 0 } else { members.front() };
        while most > 0 && later.left > end(members) {
            later.left -= 1;
            let member = members.list[later.left];
            if !member.is_in(later.tiers) {
                continue;
            }
            most -= 1;
            if !served(&later.what, member) {
                members.remove(later.left);
                self.members -= 1;
                self.tiers[member.tier()] -= 1;
                self.stale = self.stale.saturating_sub(1);
            }
        }
        if later.left > end(members) {
            members.put_later(which, later);
            return Slice::More;
        }
        if members.list.is_empty() {
            self.channels.remove(&channel);
        }
        Slice::Done
    }

    /// How many of a channel are here, those included that have just gone.
    pub fn len_of(&self, channel: ChannelId) -> usize {
        self.channels.get(&channel).map_or(0, |members| members.list.len())
    }

    /// How many of a long list get everything at once, those included that have just gone.
    pub fn front_of(&self, channel: ChannelId) -> usize {
        self.channels.get(&channel).map_or(0, Members::front)
    }

    /// Whether a connection is in a channel.
    pub fn holds(&self, channel: ChannelId, handle: Handle) -> bool {
        let Some(members) = self.channels.get(&channel) else { return false };
        members.find(handle.slot()).is_some_and(|place| members.list[place].generation == handle.generation())
    }

    /// Calls for each member in one of the tiers; those for whom it answers false are gone and taken out.
    pub fn each(&mut self, channel: ChannelId, tiers: Tiers, mut served: impl FnMut(Member) -> bool) {
        let Some(members) = self.channels.get_mut(&channel) else { return };
        let is_for_front = tiers.0 & Tiers::AT_ONCE.0 != 0;
        let is_for_others = members.index.is_none() || tiers.0 & !Tiers::AT_ONCE.0 != 0;
        let mut place = if is_for_front { 0 } else { members.front() };
        while is_for_others || place < members.front() {
            let Some(member) = members.list.get(place).copied() else { break };
            if !member.is_in(tiers) || served(member) {
                place += 1;
            } else {
                self.tiers[member.tier()] -= 1;
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
        let (mut left, mut tiers) = (0, [0; Tier::ALL.len()]);
        self.channels.retain(|_, members| {
            for later in members.laters.iter_mut().flat_map(|laters| laters.0.iter_mut().flatten()) {
                later.left = members.list[..later.left].iter().filter(|member| is_live(**member)).count();
            }
            let front = members.list[..members.front()].iter().filter(|member| is_live(**member)).count();
            members.list.retain(|member| is_live(*member));
            for member in &members.list {
                tiers[member.tier()] += 1;
            }
            members.list.shrink_to_fit();
            if members.index.take().is_some() && members.list.len() > INDEXED_ABOVE {
                let places =
                    members.list.iter().enumerate().map(|(place, member)| (member.slot(), place as u32));
                members.index = Some(Box::new(Index { places: places.collect(), front }));
            }
            left += members.list.len();
            !members.list.is_empty()
        });
        (self.members, self.stale, self.tiers) = (left, 0, tiers);
    }

    /// Memberships by tier, as [`Tier::ALL`].
    pub fn by_tier(&self) -> [u32; Tier::ALL.len()] {
        self.tiers
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

    fn slots(audience: &mut Audience<()>, tiers: Tiers) -> Vec<u32> {
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
        let mut audience = Audience::<()>::default();
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
        let mut audience = Audience::<()>::default();
        audience.add(ChannelId(1), handle(1, 1), Tier::Visible);
        audience.add(ChannelId(1), handle(2, 1), Tier::Passive);
        assert_eq!(slots(&mut audience, Tiers(0b0011)), [1]);
        audience.add(ChannelId(1), handle(2, 1), Tier::Active);
        assert_eq!(slots(&mut audience, Tiers(0b0011)), [1, 2]);
    }

    #[test]
    fn a_former_holder_of_a_slot_is_nobody() {
        let mut audience = Audience::<()>::default();
        audience.add(ChannelId(1), handle(1, 1), Tier::Active);
        assert!(!audience.remove(ChannelId(1), handle(1, 2)));
        assert!(audience.add(ChannelId(1), handle(1, 2), Tier::Active));
        assert!(!audience.remove(ChannelId(1), handle(1, 1)));
        audience.each(ChannelId(1), Tiers::ALL, |member| member.generation == 9);
        assert_eq!((audience.members(), audience.channels()), (0, 0));
    }

    #[test]
    fn ended_connections_are_compacted_when_they_are_the_most() {
        let mut audience = Audience::<()>::default();
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

    /// Slices between changes of every kind, against a model that gives everybody everything in the moment it comes.
    #[test]
    fn what_goes_in_slices_reaches_those_it_was_meant_for_once() {
        let mut was_long = false;
        for seed in 0..200u64 {
            let mut random = seed;
            let mut next = move |most: u64| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % most
            };
            let (mut audience, channel) = (Audience::<u32>::default(), ChannelId(1));
            let mut tiers: std::collections::BTreeMap<u32, Tier> = Default::default();
            let (mut given, mut expected) = (Vec::new(), Vec::new());
            let mut dead = std::collections::BTreeSet::new();
            let mut sent = 0;
            for step in 0..1_200 {
                let slot = next(300) as u32;
                let tier = Tier::ALL[next(5) as usize];
                // Many come, and then many leave: the list is long for a while.
                let comes = step % 600 < 400;
                let what = if next(2) == 0 { u64::from(!comes) * 2 } else { next(6) };
                match what {
                    0 | 1 if comes && !dead.contains(&slot) => {
                        if let Some(what) = audience.due_now(channel, handle(slot, 1)) {
                            given.push((*what, slot));
                        }
                        audience.add(channel, handle(slot, 1), tier);
                        tiers.insert(slot, tier);
                    }
                    1 | 2 if !dead.contains(&slot) => {
                        if let Some(what) = audience.due_now(channel, handle(slot, 1)) {
                            given.push((*what, slot));
                        }
                        assert_eq!(audience.remove(channel, handle(slot, 1)), tiers.remove(&slot).is_some());
                    }
                    3 => {
                        let to =
                            [Tiers::WARM, Tiers(0b1000), Tiers(0b1_0000), Tiers(0b1_1000), Tiers::AT_ONCE]
                                [next(5) as usize];
                        if audience.on_their_way(channel, to).is_some() {
                            continue;
                        }
                        sent += 1;
                        if audience.give_later(channel, to, sent) {
                            let meant = tiers.iter().filter(|(_, tier)| to.contains(**tier));
                            expected.extend(meant.map(|(slot, _)| (sent, *slot)));
                        }
                    }
                    5 if next(3) == 0 && !dead.contains(&slot) => {
                        if let Some(what) = audience.due_now(channel, handle(slot, 1)) {
                            given.push((*what, slot));
                        }
                    }
                    4 if next(3) == 0 => {
                        was_long |= audience.len_of(channel) > INDEXED_ABOVE;
                        let to =
                            [Tiers::AT_ONCE, Tiers::ALL, Tiers(0b11_0110), Tiers::WARM][next(4) as usize];
                        let mut served = std::collections::BTreeSet::new();
                        audience.each(channel, to, |member| {
                            let is_live = !dead.contains(&member.slot());
                            assert!(!is_live || served.insert(member.slot()), "seed {seed}: twice");
                            is_live
                        });
                        let meant =
                            tiers.iter().filter(|(_, tier)| to.contains(**tier)).map(|(slot, _)| *slot);
                        assert!(meant.eq(served.iter().copied()), "seed {seed}");
                    }
                    4 if dead.len() < 40 => {
                        // Its connection ended: nobody says so.
                        if tiers.remove(&slot).is_some() {
                            dead.insert(slot);
                            audience.ended(1);
                            if next(4) == 0 {
                                audience.compact(|member| !dead.contains(&member.slot()));
                            }
                        }
                    }
                    _ => {
                        let (which, most) = (next(4) as usize, next(40) as usize + 1);
                        audience.slice(channel, which, most, |what, member| {
                            let is_live = !dead.contains(&member.slot());
                            if is_live {
                                given.push((*what, member.slot()));
                            }
                            is_live
                        });
                    }
                }
            }
            while let Some(which) = audience.on_their_way(channel, Tiers::ALL) {
                audience.slice(channel, which, 7, |what, member| {
                    let is_live = !dead.contains(&member.slot());
                    if is_live {
                        given.push((*what, member.slot()));
                    }
                    is_live
                });
            }
            // Who died or was taken out meanwhile may have been meant and not reached.
            given.sort_unstable();
            expected.sort_unstable();
            assert!(given.windows(2).all(|pair| pair[0] != pair[1]), "seed {seed}: somebody got it twice");
            assert!(given.iter().all(|one| expected.contains(one)), "seed {seed}: not meant for all");
            let missed = expected.iter().filter(|one| !given.contains(one) && !dead.contains(&one.1));
            assert_eq!(missed.count(), 0, "seed {seed}");
            audience.compact(|member| !dead.contains(&member.slot()));
            let mut by_tier = [0; 5];
            tiers.values().for_each(|tier| by_tier[*tier as usize] += 1);
            assert_eq!(audience.by_tier(), by_tier, "seed {seed}");
        }
        assert!(was_long);
    }
}
