//! What a commit's outcome does to a channel: acknowledgement, effects and live fan-out, in that order.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use fanfare_proto::{
    Code, UserId,
    link::{Down, Tier, Tiers},
    wire,
};
use fanfare_storage::{
    model::{ListChange, MarkChange, MarkKind, OutboxRow},
    mutant,
};

use super::{Channel, Effect, InFlight, RECALLED_MAX, Sequenced, sequence::place_of};
use crate::{
    desk::Desk,
    event::{Event, OpenAsk, UnitOutcome},
    frames, meter,
    tail::Held,
};

/// What is left of a channel after an outcome.
pub enum Left {
    /// It stands.
    Standing,
    /// It was to be made and was not: these OPENs failed with that code.
    NotMade(Vec<OpenAsk>, Code),
    /// It was made: these OPENs are to be answered.
    Made(Vec<OpenAsk>),
    /// It does not stand as believed: read it again.
    Reload,
}

impl Channel {
    /// The outcome of the commit in flight.
    pub fn committed(&mut self, desk: &mut Desk, outcome: &UnitOutcome) -> Left {
        let Some(flight) = self.in_flight.take() else { return Left::Standing };
        let left = match outcome {
            UnitOutcome::Done(row) => {
                self.apply(desk, *row, flight);
                self.opening.take().map_or(Left::Standing, Left::Made)
            }
            UnitOutcome::Failed { code, reload } => self.give_up(desk, flight, *code, *reload),
            UnitOutcome::Unknown => {
                self.freeze(desk, flight);
                Left::Standing
            }
        };
        if !self.pending.is_empty() {
            self.mark_dirty(desk);
        }
        left
    }

    fn give_up(&mut self, desk: &mut Desk, flight: InFlight, code: Code, reload: bool) -> Left {
        if mutant::is("seq-outside-transaction") {
            self.skipped += flight.items.len() as u64;
        }
        for Sequenced { key, client_message_id: id, entry, again, .. } in flight.items {
            let Some(key) = key else { continue };
            for attempt in self.repeats.failed(&key) {
                if mutant::is("error-mapped-ok") {
                    self.acknowledge(desk, &attempt, &[], place_of(&entry), false);
                    continue;
                }
                desk.gateways.reply(&attempt.0, frames::send_failed(self.id(), attempt.1, &id, code));
            }
            if let Some(again) = again {
                self.repeats.begin(again.key, again.fingerprint, None);
                self.pending_bytes += again.bytes();
                self.pending.push_back(*again);
            }
        }
        match self.opening.take() {
            Some(opening) => Left::NotMade(opening, code),
            None if reload => Left::Reload,
            None => Left::Standing,
        }
    }

    /// The outcome is not known: senders hear so, what had not begun fails, and nothing new is taken.
    fn freeze(&mut self, desk: &mut Desk, mut flight: InFlight) {
        flight.is_frozen = true;
        for item in &flight.items {
            let Some(key) = &item.key else { continue };
            let id = &item.client_message_id;
            for (origin, request) in self.repeats.take_attempts(key) {
                let frame = frames::send_failed(self.id(), request, id, Code::OUTCOME_UNKNOWN);
                desk.gateways.reply(&origin, frame);
            }
        }
        self.in_flight = Some(flight);
        while let Some(waiting) = self.pending.pop_front() {
            meter::retry_later("frozen");
            self.refuse(desk, waiting, Code::RETRY_LATER);
        }
    }

    /// Everything that waits fails: the channel is read again.
    pub fn fail_waiting(&mut self, desk: &mut Desk, code: Code) {
        let pending = std::mem::take(&mut self.pending);
        let parked = std::mem::take(&mut self.parked);
        for waiting in pending.into_iter().chain(parked.into_iter().map(|(_, waiting)| waiting)) {
            meter::retry_later("reload");
            self.refuse(desk, waiting, code);
        }
    }

    fn apply(&mut self, desk: &mut Desk, row: OutboxRow, flight: InFlight) {
        let first_seq = self.row.head + 1;
        let Some(newest) = flight.items.last().map(|item| Arc::clone(&item.entry)) else { return };
        self.row.head = newest.seq;
        self.row.ordinal = flight.ordinal;
        self.row.message_id = newest.message_id;
        self.row.chain = flight.chain;
        let before = self.tail.bytes();
        for item in &flight.items {
            self.tail.push(Held::of(&item.entry));
            if let Effect::Recalled(target) = &item.effect {
                self.tail.recall(*target);
                if self.recalled.len() >= RECALLED_MAX {
                    self.recalled.clear();
                }
                self.recalled.insert(*target);
            }
            desk.remember(row, Arc::clone(&item.entry));
        }
        self.bound_tail(desk, before);
        // The acknowledgement comes first, then everybody hears.
        for item in &flight.items {
            let Some(key) = item.key else { continue };
            let place = place_of(&item.entry);
            let attempts = self.repeats.done(key, place);
            if attempts.is_empty() {
                continue;
            }
            let id = &item.client_message_id;
            for (number, attempt) in attempts.iter().enumerate() {
                self.acknowledge(desk, attempt, id, place, number > 0);
            }
        }
        self.pace.count(flight.items.len(), desk.context.now_ms());
        self.before_hearing(desk, &flight.items);
        if !mutant::is("push-past-watermark") {
            self.hear(desk, first_seq, &flight);
        }
        self.heard = self.row.head;
        let late_removal = mutant::is("fan-out-list-read-before-removal");
        for item in &flight.items {
            let is_last = item.entry.seq == newest.seq;
            if late_removal || !is_last || mutant::is("push-past-watermark") {
                self.take_effect(desk, item, row);
            }
        }
    }

    /// Live fan-out. A removal takes effect before its own entry goes out: who is removed is told and gets nothing more.
    fn hear(&mut self, desk: &mut Desk, first_seq: u64, flight: &InFlight) {
        let Some(newest) = flight.items.last() else { return };
        let row = desk.undrained.get(&self.id()).and_then(|of| of.back()).map(|(row, _)| *row);
        let late_removal = mutant::is("fan-out-list-read-before-removal");
        let is_removal = matches!(newest.effect, Effect::Gone(_)) && !late_removal;
        if is_removal {
            let before = flight.frames.slice(..flight.frames.len() - newest.entry.frame.len());
            if !before.is_empty() {
                let earlier = flight.items.len() - 1;
                self.fan_out(desk, before, first_seq, &flight.items[..earlier]);
            }
            if let Some(row) = row {
                self.take_effect(desk, newest, row);
            }
            let last = flight.items.len() - 1;
            self.fan_out(desk, newest.entry.frame.clone(), newest.entry.seq, &flight.items[last..]);
        } else {
            self.fan_out(desk, flight.frames.clone(), first_seq, &flight.items);
            if !late_removal && let Some(row) = row {
                self.take_effect(desk, newest, row);
            }
        }
    }

    /// Members, roles, settings, marks; word to those concerned and to the owners of their lists.
    fn take_effect(&mut self, desk: &mut Desk, item: &Sequenced, row: OutboxRow) {
        let seq = item.entry.seq;
        match &item.effect {
            Effect::None | Effect::Recalled(_) => {}
            Effect::Joined(users, role) => {
                let visible_from = self.visible_from(seq);
                for user in users {
                    self.members.join(*user, *role, seq, visible_from);
                }
                self.resized(desk);
                self.tell_lists(desk, users, seq, true, row);
            }
            Effect::Gone(users) => {
                let now_ms = desk.context.now_ms();
                for user in users {
                    self.members.leave(*user, seq);
                    self.cursors.forget(*user);
                    self.scores.forget(&desk.context.config.activity, *user);
                    let mut state = self.state_for(*user, seq.saturating_sub(1), now_ms);
                    // What the channel is called or holds is no business of theirs any more.
                    state.head = seq;
                    state.members = 0;
                    let frame = frames::channel(0, &state);
                    for listener in self.audience.remove_user(*user) {
                        desk.gateways.tell_at(
                            listener.gateway,
                            Down::Reply { handle: listener.handle, frames: frame.clone() },
                        );
                        desk.gateways.remove(self.id(), listener.gateway, listener.handle);
                    }
                }
                self.resized(desk);
                self.tell_lists(desk, users, seq, false, row);
            }
            Effect::Role(users, role) => {
                for user in users {
                    self.members.set_role(*user, *role);
                    self.tell_state(desk, *user);
                }
            }
            Effect::Settings(settings) => {
                self.row.name.clone_from(&settings.name);
                self.row.history = settings.history;
                self.row.join = settings.join;
                self.row.posting = settings.posting;
            }
        }
        if item.marks.is_empty() {
            return;
        }
        for change in &item.marks {
            self.marks.apply(change);
            if change.mark.kind == MarkKind::Muted {
                self.tell_state(desk, change.mark.user);
            }
        }
        for stands in [true, false] {
            self.tell_invited(desk, &item.marks, stands);
        }
    }

    /// Tells a member's sessions how it stands.
    fn tell_state(&self, desk: &mut Desk, user: UserId) {
        for listener in self.audience.of_user(user) {
            let position = self.sent_to(listener.gateway);
            let frames = frames::channel(0, &self.state_for(user, position, desk.context.now_ms()));
            desk.gateways.tell_at(listener.gateway, Down::Reply { handle: listener.handle, frames });
        }
    }

    /// Word to users' sessions that the channel may be joined, or no longer. What it is called, and no more.
    fn tell_invited(&self, desk: &Desk, marks: &[MarkChange], stands: bool) {
        let mut by_shard: std::collections::BTreeMap<u16, Vec<UserId>> = Default::default();
        let is_about =
            |change: &&MarkChange| change.mark.kind == MarkKind::Invited && change.stands == stands;
        for user in marks.iter().filter(is_about).map(|change| change.mark.user) {
            if self.members.get(user).is_none() {
                by_shard.entry(desk.context.shard_of(user.shard())).or_default().push(user);
            }
        }
        if by_shard.is_empty() {
            return;
        }
        let state = wire::ChannelState {
            channel: self.id().0,
            kind: i32::from(self.row.kind),
            name: self.row.name.clone(),
            invited: stands,
            ..Default::default()
        };
        let frames = frames::channel(0, &state);
        for (shard, users) in by_shard {
            desk.post(shard, Event::Tell(users, frames.clone()));
        }
    }

    fn tell_lists(&self, desk: &Desk, users: &[UserId], seq: u64, listed: bool, row: OutboxRow) {
        let mut by_shard: std::collections::BTreeMap<u16, Vec<(ListChange, OutboxRow)>> = Default::default();
        for user in users {
            let change = ListChange { user: *user, channel: self.id(), seq, listed };
            by_shard.entry(desk.context.shard_of(user.shard())).or_default().push((change, row));
        }
        for (shard, changes) in by_shard {
            desk.post(shard, Event::Listed(changes));
        }
    }

    /// Sends entries to those who get them at once, and puts them off for the others.
    pub(super) fn fan_out(&mut self, desk: &mut Desk, frames: Bytes, first_seq: u64, items: &[Sequenced]) {
        let last_seq = items.last().map_or(first_seq, |item| item.entry.seq);
        if self.may_wait(items) {
            self.heard = last_seq;
            self.hold(desk, first_seq);
            return self.put_off(desk);
        }
        let (frames, first_seq) = self.with_held(desk, frames, first_seq, last_seq);
        self.at_once(desk, &frames, first_seq, last_seq);
        self.heard = last_seq;
        self.let_listen(desk);
        for item in items {
            if item.named.as_ref().is_some_and(|named| named.all) {
                self.tell_all(desk, &item.entry.frame);
            }
        }
        if items.iter().any(|item| matches!(item.effect, Effect::Recalled(_))) {
            self.hurry_warm(desk);
        }
        self.warm_goes_along(desk);
        self.put_off(desk);
    }

    /// To those who get entries at once: one message per gateway. Where a gateway's credit is spent only a mark is left.
    pub(super) fn at_once(&mut self, desk: &mut Desk, frames: &Bytes, first_seq: u64, last_seq: u64) {
        let channel = self.id();
        if self.audience.is_empty() {
            return;
        }
        let (entries, late_ms) = (last_seq + 1 - first_seq.min(last_seq), self.late_ms(desk, first_seq));
        for at in &mut self.audience.gateways {
            if at.behind.is_some() || !at.has_at_once() {
                continue;
            }
            let (lanes, tiers) = (at.lanes(), Tiers::AT_ONCE);
            let down = Down::Fanout { channel, lanes, tiers, frames: frames.clone() };
            meter::fanout();
            if !desk.gateways.fan_out(at.gateway, down) && !mutant::is("drop-on-full-queue") {
                meter::behind();
                at.behind = Some(first_seq.saturating_sub(1));
                desk.gateways.put_behind(at.gateway, channel);
                continue;
            }
            for tier in [Tier::Visible, Tier::Active] {
                meter::handed(tier, at.count(tier), entries, late_ms);
            }
        }
    }

    fn bound_tail(&mut self, desk: &Desk, before: usize) {
        let config = &desk.context.config;
        let total = &desk.context.tail_bytes;
        let share = if total.load(Ordering::Relaxed) > config.tails_bytes_max { 8 } else { 1 };
        total.fetch_add(self.tail.bytes(), Ordering::Relaxed);
        total.fetch_sub(before, Ordering::Relaxed);
        let dropped = self.tail.shrink(config.tail_frames_max / share, config.tail_bytes_max / share);
        total.fetch_sub(dropped, Ordering::Relaxed);
    }
}
