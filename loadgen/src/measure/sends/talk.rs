//! The sessions of `sends`: every other one sends in the direct channel with the next one, either so many at a time or when its
//! schedule says so.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::Result;
use fanfare_proto::{
    ChannelId,
    session::client::{ClientSession, Event},
    wire::{self, send::Content},
};
use hashbrown::HashMap;
use hdrhistogram::Histogram;

use super::stalls::{STALL, Stretch};
use crate::measure::{
    crowd::Load,
    ledger::{Deliveries, Ledger, refusal},
    population::{Made, message_id},
};

/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// Messages that a scheduled sender may have under way: below the protocol's bound. Later ones wait, and their time runs.
const SCHEDULED_MAX: usize = 200;
/// The longest time to SEND_ACK that is told apart, in microseconds: ten minutes.
const ACK_US_MAX: u64 = 600_000_000;

/// When senders send.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Nothing.
    Rest,
    /// The next when there are fewer than so many unacknowledged, until then.
    Closed { in_flight: usize, until: Instant },
    /// At times that are fixed before: each sender `every` so often, `count` times.
    Open { from: Instant, every: Duration, count: u64 },
}

struct Sender {
    ledger: Ledger,
    /// Requests without an answer, with the time that they were meant to leave.
    under_way: VecDeque<(u64, Instant)>,
    /// Scheduled messages that left.
    left: u64,
}

/// The sessions' shared state: sessions 2n and 2n + 1 share a channel, the first one sends.
pub struct Talk {
    senders: Vec<Sender>,
    by_channel: HashMap<ChannelId, usize>,
    plan: Plan,
    number: u64,
    under_way: usize,
    /// The last acknowledgement, or the send that ended a time with nothing under way.
    mark: Instant,
    /// Acknowledged in this round, and when last.
    pub acked: u64,
    pub acked_at: Instant,
    /// From when a message was meant to leave to its SEND_ACK, in microseconds.
    pub ack_us: Histogram<u64>,
    /// Times without an acknowledgement, over all rounds.
    pub stalls: Vec<Stretch>,
    pub frame_bytes: usize,
    pub checked: usize,
    pub refused: Option<String>,
}

impl Talk {
    /// In those channels.
    pub fn new(channels: &[Made]) -> Result<Self> {
        let sender = |made: &Made| Sender {
            ledger: Ledger::new(made.channel, made.head, 2),
            under_way: VecDeque::new(),
            left: 0,
        };
        let now = Instant::now();
        Ok(Self {
            senders: channels.iter().map(sender).collect(),
            by_channel: channels.iter().enumerate().map(|(number, made)| (made.channel, number)).collect(),
            plan: Plan::Rest,
            number: 0,
            under_way: 0,
            mark: now,
            acked: 0,
            acked_at: now,
            ack_us: Histogram::new_with_bounds(1, ACK_US_MAX, 3)?,
            stalls: Vec::new(),
            frame_bytes: 0,
            checked: 0,
            refused: None,
        })
    }

    /// Begins a round.
    pub fn begin(&mut self, plan: Plan) {
        self.plan = plan;
        self.acked = 0;
        self.ack_us.reset();
        self.senders.iter_mut().for_each(|sender| sender.left = 0);
    }

    /// Whether everything of the round is sent, acknowledged and delivered.
    pub fn is_settled(&self) -> bool {
        let all_left = match self.plan {
            Plan::Rest => true,
            Plan::Closed { until, .. } => Instant::now() >= until,
            Plan::Open { count, .. } => self.senders.iter().all(|sender| sender.left >= count),
        };
        all_left && self.under_way == 0 && self.senders.iter().all(|sender| sender.ledger.is_settled())
    }

    /// Closes all ledgers.
    pub fn deliveries(&mut self) -> Deliveries {
        let mut all = Deliveries::default();
        self.senders.iter_mut().for_each(|sender| all.add(sender.ledger.close()));
        all
    }

    /// When the next message of a sender is to leave, if that is now or was before.
    fn due(&self, number: usize) -> Option<Instant> {
        let sender = self.senders.get(number)?;
        let now = Instant::now();
        match self.plan {
            Plan::Rest => None,
            Plan::Closed { in_flight, until } => {
                (now < until && sender.under_way.len() < in_flight).then_some(now)
            }
            Plan::Open { from, every, count } => {
                // Senders take turns: their schedules are spread over the time between two messages.
                let turn = every.mul_f64(number as f64 / self.senders.len() as f64);
                let at = from + turn + every.mul_f64(sender.left as f64);
                (sender.left < count && sender.under_way.len() < SCHEDULED_MAX && at <= now).then_some(at)
            }
        }
    }

    fn acknowledged(&mut self, number: usize, request: u64) {
        let Some(sender) = self.senders.get_mut(number) else { return };
        let Some(at) = sender.under_way.iter().position(|(asked, _)| *asked == request) else { return };
        let Some((_, meant_at)) = sender.under_way.remove(at) else { return };
        let now = Instant::now();
        let gap = now.saturating_duration_since(self.mark);
        if gap >= STALL {
            self.stalls.push(Stretch::until_now(gap));
        }
        (self.mark, self.acked_at) = (now, now);
        (self.under_way, self.acked) = (self.under_way - 1, self.acked + 1);
        self.ack_us.saturating_record(now.saturating_duration_since(meant_at).as_micros() as u64);
    }
}

impl Load for Talk {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                let channel = frame.routed().map(|header| header.channel);
                let Some(number) = channel.and_then(|channel| self.by_channel.get(&channel)).copied() else {
                    return;
                };
                let Some(sender) = self.senders.get_mut(number) else { return };
                sender.ledger.delivered(member % 2, &frame);
                (self.checked, self.frame_bytes) = (self.checked + 1, frame.bytes.len());
            }
            Event::SendAck { request, ack, .. } => {
                if let Some(why) = refusal(&ack) {
                    self.refused.get_or_insert(why);
                }
                self.acknowledged(member / 2, request);
            }
            _ => {}
        }
    }

    fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        let sender = self.by_channel.get(&channel).and_then(|number| self.senders.get(*number));
        sender.is_some_and(|sender| sender.ledger.is_new(channel, seq))
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        if member % 2 == 1 {
            return;
        }
        while let Some(meant_at) = self.due(member / 2) {
            let Some(sender) = self.senders.get_mut(member / 2) else { return };
            self.number += 1;
            let id = message_id(session.server_time_ms(now_ms), member, self.number);
            let text = format!("{:0TEXT_BYTES$}", self.number);
            sender.ledger.sending(id, &text);
            let send = wire::Send {
                client_message_id: bytes::Bytes::copy_from_slice(&id.0),
                content: Some(Content::Message(wire::Message { text, ..Default::default() })),
                ..Default::default()
            };
            match session.send(sender.ledger.channel(), &send, false) {
                Ok(request) => {
                    sender.under_way.push_back((request, meant_at));
                    sender.left += 1;
                    if self.under_way == 0 {
                        self.mark = Instant::now();
                    }
                    self.under_way += 1;
                }
                Err(code) => {
                    self.refused.get_or_insert(format!("a SEND could not be made: {code}"));
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        Talk::new(&[Made { channel: ChannelId(1), head: 0 }, Made { channel: ChannelId(2), head: 0 }])
            .unwrap()
    }

    #[test]
    fn a_schedule_is_kept_whatever_the_server_does() {
        let mut talk = talk();
        let (from, every) = (Instant::now() - Duration::from_millis(100), Duration::from_millis(40));
        talk.begin(Plan::Open { from, every, count: 3 });
        // The second sender begins half a turn later; a late message counts from when it was meant to leave.
        assert_eq!((talk.due(0), talk.due(1)), (Some(from), Some(from + every / 2)));
        talk.senders[0].left = 2;
        assert_eq!(talk.due(0), Some(from + every * 2));
        talk.senders[0].left = 3;
        assert_eq!(talk.due(0), None);
        assert!(!talk.is_settled(), "the second sender's are not out");
        talk.begin(Plan::Open { from: from + Duration::from_secs(60), every, count: 3 });
        assert_eq!(talk.due(0), None, "not yet");
    }

    #[test]
    fn time_runs_from_when_a_message_was_meant_to_leave() {
        let mut talk = talk();
        let meant_at = Instant::now() - Duration::from_millis(300);
        talk.senders[1].under_way.push_back((7, meant_at));
        (talk.under_way, talk.mark) = (1, meant_at);
        talk.acknowledged(1, 8);
        assert_eq!(talk.acked, 0, "nobody asked that");
        talk.acknowledged(1, 7);
        assert_eq!((talk.acked, talk.under_way), (1, 0));
        assert!(talk.ack_us.max() >= 300_000);
        assert_eq!(talk.stalls.len(), 1);
        assert!(talk.stalls[0].lasted >= Duration::from_millis(300));
    }
}
