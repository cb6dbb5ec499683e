//! Every delivery of one channel, counted and checked: each message to each member once, in order, with the bytes that were sent.
//!
//! What a message looks like is learned from the first member that has it, and compared with what was sent; every further
//! delivery must be the same bytes. A message is forgotten when all members have it, so the ledger of a channel is as long as
//! what is under way.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame,
    wire::{self, entry::Content},
};
use hashbrown::HashMap;
use serde::Serialize;

use crate::check::text_hash;

/// What is wrong with an answer to a SEND, where anything is.
pub fn refusal(ack: &wire::SendAck) -> Option<String> {
    (ack.outcome() != wire::Outcome::Ok)
        .then(|| format!("a SEND failed: {} {}", Code(ack.code as u16), ack.text))
}

/// Messages that may be under way; a seq beyond is nobody's.
const PLACES_MAX: u64 = 1 << 20;
/// Violations that are kept in words.
const EXAMPLES_MAX: usize = 10;

/// What was counted; the last four must be 0.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Deliveries {
    /// Messages received, once per member.
    pub checked: u64,
    /// Never received.
    pub lost: u64,
    /// Received more than once.
    pub duplicated: u64,
    /// Received before an earlier one.
    pub reordered: u64,
    /// Not what was sent.
    pub altered: u64,
    /// The first few violations in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Deliveries {
    /// Whether every promise was kept.
    pub fn are_sound(&self) -> bool {
        [self.lost, self.duplicated, self.reordered, self.altered].iter().all(|count| *count == 0)
    }

    /// Keeps one of the first few in words.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what());
        }
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: Self) {
        self.checked += other.checked;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.altered += other.altered;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }
}

struct Sent {
    text: u64,
    at: Instant,
}

/// A message that not all members have.
struct Place {
    /// Empty until the first of them has it.
    frame: Bytes,
    left: u32,
    sent_at: Option<Instant>,
}

/// See the module's page.
pub struct Ledger {
    channel: ChannelId,
    /// What is not above it was there before.
    head: u64,
    /// The seq that each member has next.
    next: Vec<u64>,
    /// Seq of the first place.
    first: u64,
    places: VecDeque<Place>,
    sent: HashMap<[u8; 16], Sent, foldhash::fast::FixedState>,
    /// What was counted.
    pub deliveries: Deliveries,
}

impl Ledger {
    /// Of a channel whose newest seq is `head` and whose `members` are numbered from 0.
    pub fn new(channel: ChannelId, head: u64, members: usize) -> Self {
        Self {
            channel,
            head,
            next: vec![head + 1; members],
            first: head + 1,
            places: VecDeque::new(),
            sent: HashMap::default(),
            deliveries: Deliveries::default(),
        }
    }

    /// Where it is kept for.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Whether that seq came after the ledger was opened.
    pub fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        channel == self.channel && seq > self.head
    }

    /// A message is about to leave.
    pub fn sending(&mut self, id: ClientMessageId, text: &str) {
        self.sent.insert(id.0, Sent { text: text_hash(text.as_bytes()), at: Instant::now() });
    }

    /// One DELIVER of a member. Gives when the message was sent, where this member was the last to have it.
    pub fn delivered(&mut self, member: usize, frame: &Frame) -> Option<Instant> {
        let seq = frame.routed().filter(|header| header.channel == self.channel)?.seq;
        if seq <= self.head {
            return None;
        }
        if seq > self.first.saturating_add(PLACES_MAX) {
            self.deliveries.altered += 1;
            self.deliveries.note(|| format!("member {member} had seq {seq}, which nobody sent"));
            return None;
        }
        let next = self.next.get_mut(member)?;
        if seq < *next {
            self.deliveries.duplicated += 1;
            self.deliveries.note(|| format!("member {member} had seq {seq} again"));
            return None;
        }
        if seq > *next {
            self.deliveries.reordered += 1;
            self.deliveries.note(|| format!("member {member} had seq {seq} before {next}"));
        }
        *next = seq + 1;
        let at = (seq - self.first) as usize;
        while self.places.len() <= at {
            let left = self.next.len() as u32;
            self.places.push_back(Place { frame: Bytes::new(), left, sent_at: None });
        }
        let place = &mut self.places[at];
        if place.frame.is_empty() {
            place.frame = Bytes::copy_from_slice(&frame.bytes);
            match identify(frame, &mut self.sent) {
                Some(sent_at) => place.sent_at = Some(sent_at),
                None => {
                    self.deliveries.altered += 1;
                    self.deliveries
                        .note(|| format!("seq {seq} is not what was sent, or was sent once already"));
                }
            }
        } else if place.frame != frame.bytes {
            self.deliveries.altered += 1;
            self.deliveries.note(|| format!("member {member} had other bytes at seq {seq} than the first"));
        }
        self.deliveries.checked += 1;
        place.left = place.left.saturating_sub(1);
        let whole = place.left == 0;
        let sent_at = place.sent_at.filter(|_| whole);
        while self.places.front().is_some_and(|place| place.left == 0) {
            self.places.pop_front();
            self.first += 1;
        }
        sent_at
    }

    /// Whether every message that was sent is with every member.
    pub fn is_settled(&self) -> bool {
        self.places.is_empty() && self.sent.is_empty()
    }

    /// Counts what is missing as lost, and gives what was counted.
    pub fn close(&mut self) -> Deliveries {
        let members = self.next.len() as u64;
        let mut deliveries = std::mem::take(&mut self.deliveries);
        let unseen = self.sent.len() as u64 * members;
        let missing: u64 = self.places.iter().map(|place| u64::from(place.left)).sum();
        deliveries.lost += unseen + missing;
        if unseen + missing > 0 {
            deliveries.note(|| format!("{} deliveries did not come", unseen + missing));
        }
        deliveries
    }
}

/// When the message of a frame was sent, where it is one of those under way, with its text.
fn identify(
    frame: &Frame,
    under_way: &mut HashMap<[u8; 16], Sent, foldhash::fast::FixedState>,
) -> Option<Instant> {
    let entry: wire::Entry = frame.decode().ok()?;
    let sent = under_way.remove(entry.client_message_id.as_ref())?;
    match entry.content {
        Some(Content::Message(message)) if text_hash(message.text.as_bytes()) == sent.text => Some(sent.at),
        _ => None,
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

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(CHANNEL, 10, 2);
        ledger.sending(id(1), "one");
        ledger.sending(id(2), "two");
        ledger
    }

    #[test]
    fn what_everybody_has_is_sound_and_forgotten() {
        let mut ledger = ledger();
        let (one, two) = (deliver(11, 1, "one"), deliver(12, 2, "two"));
        assert!(ledger.delivered(0, &deliver(9, 9, "before")).is_none());
        for (member, frame, last) in [(0, &one, false), (0, &two, false), (1, &one, true), (1, &two, true)] {
            assert_eq!(ledger.delivered(member, frame).is_some(), last);
        }
        assert!(ledger.is_settled());
        let deliveries = ledger.close();
        assert!(deliveries.are_sound());
        assert_eq!(deliveries.checked, 4);
    }

    #[test]
    fn every_kind_of_violation_is_counted() {
        let mut ledger = ledger();
        let (one, two) = (deliver(11, 1, "one"), deliver(12, 2, "two"));
        ledger.delivered(0, &one);
        ledger.delivered(0, &one);
        ledger.delivered(1, &two);
        ledger.delivered(0, &deliver(12, 2, "other"));
        let deliveries = ledger.close();
        assert_eq!((deliveries.duplicated, deliveries.reordered, deliveries.altered), (1, 1, 1));
        assert_eq!(deliveries.lost, 1, "seq 11 never came to member 1");
        assert!(!deliveries.are_sound());
        assert_eq!(deliveries.examples.len(), 4);
    }

    #[test]
    fn a_message_with_two_places_is_a_violation() {
        let mut ledger = ledger();
        ledger.delivered(0, &deliver(11, 1, "one"));
        ledger.delivered(0, &deliver(12, 1, "one"));
        assert_eq!(ledger.deliveries.altered, 1);
    }
}
