//! Frames for many who get everything at once: they go out in slices, between which what is for few has its turn, so that a loud large channel
//! makes no small one wait for more than a slice. What comes for a channel meanwhile goes to all of them together in the next round, in fewer
//! and larger writes: the louder it is, the less each entry costs. Who sends into it is answered when the round under way ends, as the answer
//! leaves behind any other fan-out: a sender that waits for it does not run ahead of those who read.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use fanfare_proto::{
    ids::ChannelId,
    link::{Handle, Tiers},
};

use super::{Lane, State, later::SLICE};
use crate::{
    audience::{AT_ONCE, Slice},
    connection::Dirty,
    gather::{Gathered, join},
    shared::Shared,
};

/// Bytes of one channel that wait for the next round; with more the rounds before it are ended at once.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Of all channels.
const ALL_WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Channels whose members are being given something in slices, in turn, each with what comes behind it.
#[derive(Default)]
pub(super) struct Wides {
    turns: VecDeque<ChannelId>,
    waiting: HashMap<ChannelId, VecDeque<Gathered>, foldhash::fast::RandomState>,
    bytes: usize,
    /// Slots of those who are answered when the round under way ends.
    behind: HashMap<ChannelId, Vec<u32>, foldhash::fast::RandomState>,
}

impl Wides {
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    fn holds(&self, channel: ChannelId) -> bool {
        !self.turns.is_empty() && self.waiting.contains_key(&channel)
    }

    /// A connection waits for the end of the channel's round, if one is under way.
    pub fn wait(&mut self, channel: ChannelId, slot: u32) -> bool {
        let holds = self.holds(channel);
        if holds {
            self.behind.entry(channel).or_default().push(slot);
        }
        holds
    }

    fn bytes_of(&self, channel: ChannelId) -> usize {
        let waiting = self.waiting.get(&channel);
        waiting.into_iter().flatten().map(|gathered| gathered.chunk.bytes.len()).sum()
    }
}

impl Lane {
    /// Serves some members of the channel whose turn it is. Says whether there was one.
    pub(super) fn slice_wide(self: &Rc<Self>) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(channel) = state.wide.turns.pop_front() else { return false };
        state.wide.turns.push_back(channel);
        let now_ms = self.shared.clock.now_ms();
        if let Slice::Done = state.serve_later(&self.shared, (channel, AT_ONCE), SLICE, now_ms) {
            state.next_round(&self.shared, channel, now_ms);
        }
        state.flush(&self.shared, now_ms);
        true
    }
}

impl State {
    /// Takes what is for so many of a channel that it goes out in slices, or for whom it has to stand behind what does; else gives it back.
    pub(super) fn take_wide(&mut self, shared: &Shared, gathered: Gathered, now_ms: u64) -> Option<Gathered> {
        let channel = gathered.chunk.channel;
        let is_busy = self.wide.holds(channel);
        if gathered.tiers != Tiers::AT_ONCE || self.audience.front_of(channel) <= SLICE {
            if is_busy && gathered.tiers.is_at_once() {
                self.end_wide(shared, channel, now_ms);
            }
            return Some(gathered);
        }
        let bytes = gathered.chunk.bytes.len();
        if is_busy && self.wide.bytes_of(channel) + bytes > WAITING_BYTES_MAX {
            self.end_wide(shared, channel, now_ms);
        }
        while self.wide.bytes + bytes > ALL_WAITING_BYTES_MAX
            && let Some(&oldest) = self.wide.turns.front()
        {
            self.end_wide(shared, oldest, now_ms);
        }
        self.wide.bytes += bytes;
        let is_first = !self.wide.holds(channel);
        self.wide.waiting.entry(channel).or_default().push_back(gathered);
        if is_first {
            self.wide.turns.push_back(channel);
            self.next_round(shared, channel, now_ms);
        }
        None
    }

    /// Everybody has what was on its way: who sent some of it is answered, and what came meanwhile is next.
    fn next_round(&mut self, shared: &Shared, channel: ChannelId, now_ms: u64) {
        for slot in self.wide.behind.remove(&channel).into_iter().flatten() {
            if let Some(connection) = self.connections.get_mut(slot)
                && connection.dirty == Dirty::Behind
            {
                connection.dirty = Dirty::No;
                self.sends_out += 1;
                connection.flush(shared, now_ms);
            }
        }
        let next = self.wide.waiting.get_mut(&channel).and_then(|waiting| {
            let before: usize = waiting.iter().map(|gathered| gathered.chunk.bytes.len()).sum();
            let next = join(waiting)?;
            let after: usize = waiting.iter().map(|gathered| gathered.chunk.bytes.len()).sum();
            self.wide.bytes -= before - after;
            Some(next)
        });
        if let Some(next) = next
            && self.audience.give_later(channel, Tiers::AT_ONCE, next)
        {
            return;
        }
        let left = self.wide.waiting.remove(&channel);
        self.wide.bytes -= left.iter().flatten().map(|gathered| gathered.chunk.bytes.len()).sum::<usize>();
        self.wide.turns.retain(|one| *one != channel);
    }

    /// All that is there for a channel is on its way in one round, those before have ended.
    fn last_round(&mut self, shared: &Shared, channel: ChannelId, now_ms: u64) {
        while self.wide.waiting.get(&channel).is_some_and(|waiting| !waiting.is_empty()) {
            self.serve_later(shared, (channel, AT_ONCE), usize::MAX, now_ms);
            self.next_round(shared, channel, now_ms);
        }
    }

    /// Everybody gets all that is there for a channel.
    fn end_wide(&mut self, shared: &Shared, channel: ChannelId, now_ms: u64) {
        while self.wide.holds(channel) {
            self.serve_later(shared, (channel, AT_ONCE), usize::MAX, now_ms);
            self.next_round(shared, channel, now_ms);
        }
    }

    /// A member comes, goes, or is about to be given something else of the channel: from here on it can be told who is to get what is on its way.
    pub(super) fn settle_wide(&mut self, shared: &Shared, channel: ChannelId, now_ms: u64) {
        if self.wide.holds(channel) {
            self.last_round(shared, channel, now_ms);
        }
    }

    /// Channels with something on its way to that connection.
    pub(super) fn wide_of(&self, handle: Handle) -> Vec<ChannelId> {
        let is_of = |channel: &ChannelId| self.audience.holds(*channel, handle);
        self.wide.turns.iter().copied().filter(is_of).collect()
    }
}
