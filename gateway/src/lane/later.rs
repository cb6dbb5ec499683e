//! What may wait: frames for warm and passive members. A lane gives them out in slices, between which everything else has its turn.

use std::{
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use fanfare_proto::{
    ids::ChannelId,
    link::{Handle, Tiers},
};

use super::{Lane, State, mark};
use crate::{
    audience::{AT_ONCE, Slice, place_of},
    connection::Dirty,
    gather::Gathers,
    shared::Shared,
};

/// Members that one slice serves: less than half a millisecond.
pub(super) const SLICE: usize = 64;

/// What the owner is given back when everybody has the frames.
pub(super) struct Credit {
    pub owner: u16,
    pub bytes: u32,
    /// Where several lanes got the same: how many still have it.
    pub shared: Option<Arc<AtomicU32>>,
}

/// Frames on their way, the oldest first, and those for warm members before all others.
#[derive(Default)]
pub(super) struct Laters {
    warm: VecDeque<OnTheWay>,
    others: VecDeque<OnTheWay>,
}

/// One channel's, for one of its tiers: see [`place_of`].
struct OnTheWay {
    channel: ChannelId,
    place: usize,
    credit: Credit,
}

impl Laters {
    pub fn is_empty(&self) -> bool {
        self.warm.is_empty() && self.others.is_empty()
    }

    fn of(&mut self, place: usize) -> &mut VecDeque<OnTheWay> {
        if place == place_of(Tiers::WARM) { &mut self.warm } else { &mut self.others }
    }
}

impl Lane {
    /// Serves some members of the oldest channel that waits.
    pub(super) fn slice(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let later = &mut state.later;
        let queue = if later.warm.is_empty() { &later.others } else { &later.warm };
        let Some(&OnTheWay { channel, place, .. }) = queue.front() else { return };
        let now_ms = self.shared.clock.now_ms();
        if let Slice::Done = state.serve_later(&self.shared, (channel, place), SLICE, now_ms)
            && let Some(served) = state.later.of(place).pop_front()
        {
            state.served_later(served.credit);
        }
        state.flush(&self.shared, now_ms);
        for (owner, bytes) in state.handed_on.drain(..) {
            self.shared.handed_on(owner, bytes);
        }
        for queue in [&mut state.later.warm, &mut state.later.others] {
            if queue.is_empty() && queue.capacity() > SLICE {
                *queue = VecDeque::new();
            }
        }
    }
}

impl State {
    /// Frames that may wait. Those that are still on their way to the same tiers go first, all at once.
    pub(super) fn later(
        &mut self,
        shared: &Shared,
        channel: ChannelId,
        tiers: Tiers,
        frames: &Bytes,
        credit: Credit,
        now_ms: u64,
    ) {
        let mut gathers = Gathers::default();
        let mut parts = Vec::new();
        gathers.add(channel, tiers, frames, |gathered| parts.push(gathered));
        parts.extend(gathers.drain());
        let last = parts.len().saturating_sub(1);
        for (number, gathered) in parts.into_iter().enumerate() {
            let place = place_of(gathered.tiers);
            self.finish(shared, channel, gathered.tiers, now_ms);
            if !self.audience.give_later(channel, gathered.tiers, gathered) {
                break;
            }
            if number == last {
                self.later.of(place).push_back(OnTheWay { channel, place, credit });
                return;
            }
            self.serve_later(shared, (channel, place), usize::MAX, now_ms);
        }
        // Nobody is there.
        self.served_later(credit);
    }

    /// Gives out what is on its way in a channel to any of these tiers.
    fn finish(&mut self, shared: &Shared, channel: ChannelId, tiers: Tiers, now_ms: u64) {
        while let Some(place) = self.audience.on_their_way(channel, tiers) {
            self.serve_later(shared, (channel, place), usize::MAX, now_ms);
            let is_served = |one: &OnTheWay| one.channel == channel && one.place == place;
            let queue = self.later.of(place);
            if let Some(number) = queue.iter().position(is_served)
                && let Some(served) = queue.remove(number)
            {
                self.served_later(served.credit);
            }
        }
    }

    fn served_later(&mut self, credit: Credit) {
        let Credit { owner, bytes, shared } = credit;
        if shared.is_none_or(|left| left.fetch_sub(1, Ordering::AcqRel) == 1) {
            self.count_credit(owner, bytes);
        }
    }

    pub(super) fn serve_later(
        &mut self,
        shared: &Shared,
        (channel, place): (ChannelId, usize),
        most: usize,
        now_ms: u64,
    ) -> Slice {
        let Self { connections, audience, dirty, .. } = self;
        let (mut taken, mut entries, mut bytes, mut sends) = (0, 0, 0, 0);
        let slice = audience.slice(channel, place, most, |gathered, member| {
            let Some(connection) = connections.get_mut(member.slot()) else { return false };
            if connection.origin.handle.generation() != member.generation {
                return false;
            }
            let is_taken = if connection.dirty == Dirty::No {
                sends += 1;
                connection.gathered_now(shared, &gathered.chunk, now_ms)
            } else {
                // Whose answer waits for the end of a round has its own entry with it.
                if connection.dirty != Dirty::Behind || place != AT_ONCE {
                    mark(dirty, member.slot(), connection);
                }
                connection.gathered(shared, &gathered.chunk, now_ms)
            };
            if is_taken {
                taken += 1;
                entries += gathered.entries;
                bytes += gathered.chunk.bytes.len() as u64;
            }
            true
        });
        self.buffers_out += taken;
        self.entries_out += entries;
        self.bytes_out += bytes;
        self.sends_out += sends;
        slice
    }

    /// A member is about to be given something else of the channel, or to be served otherwise: what is on its way to it goes first.
    pub(super) fn hurry(&mut self, shared: &Shared, channel: ChannelId, handle: Handle, now_ms: u64) {
        self.settle_wide(shared, channel, now_ms);
        if self.has_nothing_on_its_way() {
            return;
        }
        let Self { connections, audience, dirty, .. } = self;
        let Some(gathered) = audience.due_now(channel, handle) else { return };
        let Some(connection) = connections.get_mut(handle.slot()) else { return };
        if connection.origin.handle == handle {
            mark(dirty, handle.slot(), connection);
            if connection.gathered(shared, &gathered.chunk, now_ms) {
                self.buffers_out += 1;
                self.entries_out += gathered.entries;
                self.bytes_out += gathered.chunk.bytes.len() as u64;
            }
        }
    }

    /// As [`Self::hurry`], in all channels.
    pub(super) fn hurry_all(&mut self, shared: &Shared, handle: Handle, now_ms: u64) {
        let waiting = self.later.warm.iter().chain(&self.later.others);
        let waiting: Vec<ChannelId> = waiting.map(|one| one.channel).collect();
        for channel in waiting.into_iter().chain(self.wide_of(handle)) {
            self.hurry(shared, channel, handle, now_ms);
        }
    }

    pub(super) fn has_nothing_on_its_way(&self) -> bool {
        self.later.is_empty() && self.wide.is_empty()
    }
}
