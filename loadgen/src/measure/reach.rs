//! Who has what of a channel in which the head may come in the place of entries: each entry to each session once and in order, or
//! named by NOTIFY or GAP, and then by FETCH.
//!
//! What was sent stands in a [`Sent`], which threads share; who has it in a [`Reach`] of each thread.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame,
    session::client::{ClientSession, IntervalSet},
    wire::{self, entry::Content, send},
};
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::{ledger::Deliveries, population::message_id};
use crate::check::text_hash;

/// Entries of a channel in one run; a seq beyond is nobody's.
const PLACES_MAX: u64 = 1 << 20;
/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// Entries asked for by one FETCH.
pub const FETCH_MESSAGES: u32 = 100;

/// What was sent to a channel, and what it looks like to those who have it. Shared by clones.
#[derive(Clone)]
pub struct Sent(Arc<Mutex<Inner>>);

struct Inner {
    channel: ChannelId,
    /// Up to here nothing is counted.
    after: u64,
    /// From the seq behind `after`.
    places: Vec<Place>,
    under_way: HashMap<[u8; 16], UnderWay>,
    unanswered: u64,
    /// Newest acknowledged seq with its ordinal.
    head: (u64, u64),
}

#[derive(Clone, Default)]
struct Place {
    /// Empty until somebody has it.
    frame: Bytes,
    meant: Option<Instant>,
}

struct UnderWay {
    text: u64,
    meant: Instant,
}

impl Sent {
    /// Of a channel whose newest seq is `head`.
    pub fn new(channel: ChannelId, head: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            channel,
            after: head,
            places: Vec::new(),
            under_way: HashMap::new(),
            unanswered: 0,
            head: (head, 0),
        })))
    }

    /// Which channel.
    pub fn channel(&self) -> ChannelId {
        self.0.lock().channel
    }

    /// Has a session send a message that was meant to leave at `meant`. Gives its request number and id.
    ///
    /// # Errors
    /// The session does not take it.
    pub fn send(
        &self,
        session: &mut ClientSession,
        now_ms: u64,
        sender: usize,
        number: u64,
        meant: Instant,
    ) -> Result<(u64, ClientMessageId), Code> {
        let id = message_id(session.server_time_ms(now_ms), sender, number);
        let text = format!("{number:0TEXT_BYTES$}");
        self.sending(id, &text, meant);
        let send = wire::Send {
            client_message_id: Bytes::copy_from_slice(&id.0),
            content: Some(send::Content::Message(wire::Message { text, ..Default::default() })),
            ..Default::default()
        };
        match session.send(self.channel(), &send, false) {
            Ok(request) => Ok((request, id)),
            Err(code) => {
                self.not_acknowledged(id, true);
                Err(code)
            }
        }
    }

    /// Sends a message again whose outcome is not known.
    ///
    /// # Errors
    /// The session does not take it.
    pub fn again(
        &self,
        session: &mut ClientSession,
        id: ClientMessageId,
        number: u64,
        last_attempt_ms: u64,
    ) -> Result<u64, Code> {
        let text = format!("{number:0TEXT_BYTES$}");
        let send = wire::Send {
            client_message_id: Bytes::copy_from_slice(&id.0),
            first_attempt_ms: id.time_ms(),
            last_attempt_ms,
            content: Some(send::Content::Message(wire::Message { text, ..Default::default() })),
        };
        session.send(self.channel(), &send, true)
    }

    /// Has a session fetch the newest entries behind a seq, up to another.
    ///
    /// # Errors
    /// The session does not take it.
    pub fn fetch(&self, session: &mut ClientSession, after: u64, to: u64) -> Result<u64, Code> {
        let fetch = wire::Fetch { after, before: to + 1, messages_max: FETCH_MESSAGES, before_ms: 0 };
        session.fetch(self.channel(), &fetch)
    }

    /// A message is about to leave that was meant to at `meant`.
    fn sending(&self, id: ClientMessageId, text: &str, meant: Instant) {
        let mut inner = self.0.lock();
        inner.unanswered += 1;
        inner.under_way.insert(id.0, UnderWay { text: text_hash(text.as_bytes()), meant });
    }

    /// It has a place.
    pub fn acknowledged(&self, seq: u64, ordinal: u64) {
        let mut inner = self.0.lock();
        inner.unanswered = inner.unanswered.saturating_sub(1);
        inner.head = inner.head.max((seq, ordinal));
    }

    /// It has none, and never will where it `failed`; else nobody knows.
    pub fn not_acknowledged(&self, id: ClientMessageId, failed: bool) {
        let mut inner = self.0.lock();
        inner.unanswered = inner.unanswered.saturating_sub(1);
        if failed {
            inner.under_way.remove(&id.0);
        }
    }

    /// Messages without an answer.
    pub fn unanswered(&self) -> u64 {
        self.0.lock().unanswered
    }

    /// Newest acknowledged seq, and its ordinal.
    pub fn head(&self) -> (u64, u64) {
        self.0.lock().head
    }

    /// Up to which seq nothing is counted.
    fn after(&self) -> u64 {
        self.0.lock().after
    }

    /// Counts from the head on only.
    pub fn forget(&self) {
        let mut inner = self.0.lock();
        inner.after = inner.head.0;
        inner.places.clear();
    }

    /// When the message of a seq was meant to leave, where anybody had it yet.
    pub fn meant(&self, seq: u64) -> Option<Instant> {
        let inner = self.0.lock();
        let at = seq.checked_sub(inner.after + 1)? as usize;
        inner.places.get(at)?.meant
    }

    /// Somebody has an entry: gives when it was meant to leave, or what is wrong with it.
    fn seen(&self, seq: u64, frame: &Frame) -> Result<Option<Instant>, String> {
        let mut inner = self.0.lock();
        let at = match seq.checked_sub(inner.after + 1) {
            Some(at) if at < PLACES_MAX => at as usize,
            _ => return Err(format!("seq {seq}, which nobody sent")),
        };
        if inner.places.len() <= at {
            inner.places.resize(at + 1, Place::default());
        }
        let first = &inner.places[at];
        if !first.frame.is_empty() {
            let same = first.frame == frame.bytes;
            return same
                .then_some(first.meant)
                .ok_or_else(|| format!("other bytes at seq {seq} than another"));
        }
        let meant = inner.identify(frame);
        inner.places[at] = Place { frame: Bytes::copy_from_slice(&frame.bytes), meant };
        match meant {
            Some(_) => Ok(meant),
            None => Err(format!("seq {seq}, which is not what was sent, or was sent once already")),
        }
    }
}

impl Inner {
    fn identify(&mut self, frame: &Frame) -> Option<Instant> {
        let entry: wire::Entry = frame.decode().ok()?;
        let sent = self.under_way.remove(entry.client_message_id.as_ref())?;
        match entry.content {
            Some(Content::Message(message)) if text_hash(message.text.as_bytes()) == sent.text => {
                Some(sent.meant)
            }
            _ => None,
        }
    }
}

/// What a session knows of the channel.
#[derive(Default)]
struct Standing {
    held: IntervalSet,
    /// Newest seq that came by DELIVER.
    tip: u64,
    /// Newest seq that was named, with its ordinal where that was told.
    named: (u64, Option<u64>),
}

impl Standing {
    fn name(&mut self, head: u64, ordinal: Option<u64>) {
        if head > self.named.0 || head == self.named.0 && ordinal.is_some() {
            self.named = (head, ordinal);
        }
    }

    /// Newest seq that it knows of.
    fn known(&self) -> u64 {
        self.tip.max(self.named.0)
    }
}

/// See the module's page.
pub struct Reach {
    sent: Sent,
    members: Vec<Option<Standing>>,
    /// What was counted.
    pub deliveries: Deliveries,
}

impl Reach {
    /// Of `count` sessions, those of members.
    pub fn new(sent: Sent, count: usize, is_member: impl Fn(usize) -> bool) -> Self {
        let members = (0..count).map(|member| is_member(member).then(Standing::default)).collect();
        Self { sent, members, deliveries: Deliveries::default() }
    }

    /// What was sent.
    pub fn sent(&self) -> &Sent {
        &self.sent
    }

    fn standing(&mut self, member: usize) -> Option<&mut Standing> {
        self.members.get_mut(member)?.as_mut()
    }

    /// SYNCED told a session where it stands.
    pub fn began(&mut self, member: usize, state: &wire::ChannelState) {
        let Some(standing) = self.standing(member) else { return };
        standing.tip = standing.tip.max(state.position);
        standing.name(state.head, Some(state.ordinal));
    }

    /// One DELIVER of a session. Gives its seq and when it was meant to leave.
    pub fn delivered(&mut self, member: usize, frame: &Frame) -> Option<(u64, Instant)> {
        let seq = frame.routed()?.seq;
        let after = self.sent.after();
        let counts = seq > after;
        let standing = self.standing(member)?;
        let (is_new, known, tip) = (standing.held.insert(seq), standing.known().max(after), standing.tip);
        standing.tip = tip.max(seq);
        if !counts {
            return None;
        }
        if !is_new {
            self.deliveries.duplicated += 1;
            self.deliveries.note(|| format!("session {member} had seq {seq} again"));
            return None;
        }
        if seq <= tip || seq > known + 1 {
            self.deliveries.reordered += 1;
            self.deliveries
                .note(|| format!("session {member} had seq {seq} behind {tip}, {known} was named"));
        }
        self.takes(member, seq, frame)
    }

    /// One entry of a PAGE; what was held already is nothing.
    pub fn paged(&mut self, member: usize, frame: &Frame) {
        let Some(seq) = frame.routed().map(|header| header.seq) else { return };
        let counts = seq > self.sent.after();
        if self.standing(member).is_some_and(|standing| standing.held.insert(seq)) && counts {
            self.takes(member, seq, frame);
        }
    }

    fn takes(&mut self, member: usize, seq: u64, frame: &Frame) -> Option<(u64, Instant)> {
        self.deliveries.checked += 1;
        match self.sent.seen(seq, frame) {
            Ok(meant) => meant.map(|meant| (seq, meant)),
            Err(why) => {
                self.deliveries.altered += 1;
                self.deliveries.note(|| format!("session {member} had {why}"));
                None
            }
        }
    }

    /// NOTIFY or GAP named a head. Gives the seqs that the session did not know of.
    pub fn named(&mut self, member: usize, head: u64, ordinal: Option<u64>) -> std::ops::Range<u64> {
        let after = self.sent.after();
        let Some(standing) = self.standing(member) else { return 0..0 };
        let first = standing.known().max(after) + 1;
        standing.name(head, ordinal);
        first..(head + 1).max(first)
    }

    /// Whether a session holds a seq, or it is from before.
    pub fn holds(&self, member: usize, seq: u64) -> bool {
        let standing = self.members.get(member).and_then(Option::as_ref);
        seq <= self.sent.after() || standing.is_some_and(|standing| standing.held.contains(seq))
    }

    /// What a session does not hold, ascending, up to the newest acknowledged seq.
    fn missing(&self, member: usize) -> Vec<(u64, u64)> {
        let (after, (head, _)) = (self.sent.after(), self.sent.head());
        let standing = self.members.get(member).and_then(Option::as_ref);
        standing.map_or_else(Vec::new, |standing| standing.held.missing(after, head))
    }

    /// Whether there is anything that a session does not hold, up to the newest acknowledged seq.
    pub fn lacks(&self, member: usize) -> bool {
        !self.missing(member).is_empty()
    }

    /// Has a session fetch the newest entries of what it lacks. Gives whether it lacks any.
    ///
    /// # Errors
    /// The session does not take it.
    pub fn fetch(&self, member: usize, session: &mut ClientSession) -> Result<bool, Code> {
        let Some((first, last)) = self.missing(member).pop() else { return Ok(false) };
        self.sent.fetch(session, first - 1, last).map(|_| true)
    }

    /// How many sessions know of the newest acknowledged seq, and of how many.
    pub fn reached(&self) -> (usize, usize) {
        let (head, _) = self.sent.head();
        let standings = || self.members.iter().flatten();
        (standings().filter(|standing| standing.known() >= head).count(), standings().count())
    }

    /// Whether all sessions have the group's head as theirs, with its ordinal where they were told one.
    pub fn heads_are_equal(&self) -> bool {
        let (head, ordinal) = self.sent.head();
        self.members.iter().flatten().all(|standing| {
            let (named, told) = standing.named;
            standing.known() == head && (named < head || told.is_none_or(|told| told == ordinal))
        })
    }

    /// Counts as lost what a session does not know of, and what it does not hold where it `must_hold` everything.
    pub fn close(&mut self, must_hold: impl Fn(usize) -> bool) -> Deliveries {
        let (after, (head, _)) = (self.sent.after(), self.sent.head());
        let mut deliveries = std::mem::take(&mut self.deliveries);
        for (member, standing) in self.members.iter().enumerate() {
            let Some(standing) = standing else { continue };
            let missing: u64 = if must_hold(member) {
                standing.held.missing(after, head).iter().map(|(first, last)| last - first + 1).sum()
            } else {
                head.saturating_sub(standing.known().max(after))
            };
            if missing > 0 {
                deliveries.lost += missing;
                deliveries.note(|| {
                    format!("session {member} lacks {missing} entries; it knows of {}", standing.known())
                });
            }
        }
        deliveries
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{FrameType, frame, header::class};

    use super::*;

    const CHANNEL: ChannelId = ChannelId(7);

    fn id(number: u8) -> ClientMessageId {
        ClientMessageId([number; 16])
    }

    fn deliver(seq: u64, number: u8, text: &str) -> Frame {
        let message = wire::Message { text: text.into(), ..Default::default() };
        let body = wire::Entry {
            client_message_id: Bytes::copy_from_slice(&id(number).0),
            content: Some(Content::Message(message)),
            ..Default::default()
        };
        let mut bytes = frame::routed(FrameType::Deliver, class::MESSAGE, 0, 0, CHANNEL, seq, &body);
        Frame::split_from(&mut bytes).unwrap().unwrap()
    }

    /// Two sessions of a channel at seq 10, in which three messages were sent and acknowledged.
    fn reach() -> (Reach, [Frame; 3]) {
        let sent = Sent::new(CHANNEL, 10);
        for (number, text) in [(1, "one"), (2, "two"), (3, "three")] {
            sent.sending(id(number), text, Instant::now());
            sent.acknowledged(10 + u64::from(number), u64::from(number));
        }
        let frames = [deliver(11, 1, "one"), deliver(12, 2, "two"), deliver(13, 3, "three")];
        (Reach::new(sent, 3, |member| member < 2), frames)
    }

    #[test]
    fn what_is_delivered_or_named_and_fetched_is_sound() {
        let (mut reach, [one, two, three]) = reach();
        for frame in [&one, &two, &three] {
            assert!(reach.delivered(0, frame).is_some());
        }
        assert_eq!(reach.reached(), (1, 2));
        assert_eq!(reach.named(1, 12, Some(2)), 11..13);
        assert!(reach.delivered(1, &three).is_some(), "behind a head that was named");
        assert_eq!(reach.reached(), (2, 2));
        assert!(reach.heads_are_equal());
        assert_eq!(reach.missing(1), [(11, 12)]);
        [&one, &two, &three].into_iter().for_each(|frame| reach.paged(1, frame));
        assert!(reach.missing(1).is_empty());
        let deliveries = reach.close(|_| true);
        assert!(deliveries.are_sound(), "{:?}", deliveries.examples);
        assert_eq!(deliveries.checked, 6);
    }

    #[test]
    fn a_head_that_was_named_is_enough_for_who_need_not_hold_everything() {
        let (mut reach, [one, ..]) = reach();
        reach.delivered(0, &one);
        reach.named(1, 13, Some(3));
        assert!(!reach.heads_are_equal());
        let deliveries = reach.close(|_| false);
        assert_eq!((deliveries.lost, deliveries.checked), (2, 1), "session 0 knows of seq 11 only");
        reach.named(0, 13, Some(4));
        assert!(!reach.heads_are_equal(), "another ordinal");
        reach.named(0, 13, Some(3));
        assert!(reach.heads_are_equal());
        assert_eq!(reach.close(|member| member == 1).lost, 3, "named is not held");
    }

    #[test]
    fn every_kind_of_violation_is_counted() {
        let (mut reach, [one, two, three]) = reach();
        reach.delivered(0, &one);
        reach.delivered(0, &one);
        reach.delivered(0, &three);
        reach.delivered(0, &two);
        reach.delivered(1, &deliver(11, 1, "other"));
        reach.delivered(1, &deliver(14, 9, "nobody's"));
        let deliveries = reach.close(|_| false);
        // Session 0 had 13 before 12, and 12 behind it; session 1 had 14 before 12.
        assert_eq!((deliveries.duplicated, deliveries.reordered, deliveries.altered), (1, 3, 2));
    }

    #[test]
    fn a_message_that_failed_is_nobodys() {
        let sent = Sent::new(CHANNEL, 10);
        sent.sending(id(1), "one", Instant::now());
        sent.not_acknowledged(id(1), true);
        assert_eq!((sent.unanswered(), sent.head()), (0, (10, 0)));
        let mut reach = Reach::new(sent, 1, |_| true);
        reach.delivered(0, &deliver(11, 1, "one"));
        assert_eq!(reach.close(|_| true).altered, 1);
    }

    #[test]
    fn what_was_before_is_not_counted() {
        let (mut reach, [one, two, three]) = reach();
        [&one, &two, &three].into_iter().for_each(|frame| {
            reach.delivered(0, frame);
        });
        reach.sent().forget();
        assert!(reach.delivered(1, &three).is_none());
        reach.named(1, 13, Some(3));
        assert!(reach.close(|_| true).are_sound());
        reach.sent().sending(id(4), "four", Instant::now());
        reach.sent().acknowledged(14, 4);
        assert!(reach.delivered(0, &deliver(14, 4, "four")).is_some());
        assert_eq!(reach.close(|_| true).lost, 1);
    }
}
