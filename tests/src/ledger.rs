//! What was sent, what its senders were told, what anybody was shown; and the checks that hold it against what can be
//! paged afterwards. A few maps, no trust in anybody.

use std::collections::BTreeMap;

use fanfare_proto::{ChannelId, ClientMessageId, frame::Frame, wire};

use crate::connection::History;

/// What is known of one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// No attempt was made yet.
    Unsent,
    /// Some attempt may have had an effect.
    Unknown,
    /// Every attempt was answered FAIL: it must never be seen.
    Failed,
    /// Acknowledged at this place.
    Acked {
        /// The channel's epoch.
        epoch: u32,
        /// Its seq.
        seq: u64,
    },
}

/// One message and its life.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Where to.
    pub channel: ChannelId,
    /// Which of the people sends it.
    pub sender: usize,
    /// Its key, the same on every attempt.
    pub id: ClientMessageId,
    /// What it says.
    pub text: String,
    /// The clock at the first and the last attempt, Unix milliseconds; 0 before.
    pub attempts_ms: (u64, u64),
    /// What is known of it.
    pub fate: Fate,
    /// Never to be repeated: it shows whether FAIL means that there is no effect, ever.
    pub left_failed: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Ledger {
    /// In the order in which they were made.
    pub messages: Vec<Sent>,
    by_id: BTreeMap<ClientMessageId, usize>,
    /// Entries anybody was shown: by channel, epoch (low byte), seq.
    seen: BTreeMap<(ChannelId, u8, u64), Frame>,
    /// How often an attempt was answered FAIL, by error number.
    pub fails: BTreeMap<u32, usize>,
    /// What was found wrong.
    pub violations: Vec<String>,
}

impl Ledger {
    /// Writes down a new message.
    pub fn add(&mut self, channel: ChannelId, sender: usize, text: String) -> usize {
        let id = crate::connection::fresh_id();
        let index = self.messages.len();
        self.by_id.insert(id, index);
        self.messages.push(Sent {
            channel,
            sender,
            id,
            text,
            attempts_ms: (0, 0),
            fate: Fate::Unsent,
            left_failed: false,
        });
        index
    }

    /// How many are acknowledged.
    pub fn acked(&self) -> usize {
        self.messages.iter().filter(|sent| matches!(sent.fate, Fate::Acked { .. })).count()
    }

    /// How many may or may not have happened.
    pub fn unknown(&self) -> usize {
        self.messages.iter().filter(|sent| sent.fate == Fate::Unknown).count()
    }

    /// Takes the answer to an attempt; `earlier_unknown`: an attempt before it was never answered.
    pub fn answered(&mut self, index: usize, before: Fate, ack: &wire::SendAck) {
        let sent = &mut self.messages[index];
        let outcome = wire::Outcome::try_from(ack.outcome).unwrap_or(wire::Outcome::Unknown);
        if outcome == wire::Outcome::Fail {
            *self.fails.entry(ack.code).or_default() += 1;
        }
        let fate = match (outcome, before) {
            (wire::Outcome::Ok, Fate::Acked { epoch, seq }) => {
                if (epoch, seq) != (ack.epoch, ack.seq) {
                    let text = format!(
                        "G3 {}: acknowledged at {epoch}/{seq}, its repeat at {}/{}",
                        sent.text, ack.epoch, ack.seq
                    );
                    self.violations.push(text);
                }
                before
            }
            (wire::Outcome::Ok, _) => Fate::Acked { epoch: ack.epoch, seq: ack.seq },
            (_, Fate::Acked { .. }) => {
                // Not now, by the disk or the load, is no contradiction; that it never was is one.
                let passing = [5001, 5002, 5003, 5004, 4001, 4003];
                if outcome == wire::Outcome::Fail && !passing.contains(&ack.code) {
                    let text =
                        format!("G3 {}: acknowledged, its repeat answered FAIL {}", sent.text, ack.code);
                    self.violations.push(text);
                }
                before
            }
            (wire::Outcome::Unknown, _) | (wire::Outcome::Fail, Fate::Unknown) => Fate::Unknown,
            (wire::Outcome::Fail, _) => Fate::Failed,
        };
        self.messages[index].fate = fate;
    }

    /// Takes an entry that somebody was shown.
    pub fn saw(&mut self, by: &str, frame: &Frame) {
        let Some(routed) = frame.routed() else { return };
        let key = (routed.channel, routed.short.epoch, routed.seq);
        match self.seen.get(&key) {
            Some(earlier) if earlier != frame => self.violations.push(format!(
                "G2 {by}: seq {} of {} shows other bytes than before",
                routed.seq, routed.channel
            )),
            Some(_) => {}
            None => drop(self.seen.insert(key, frame.clone())),
        }
    }

    /// Holds a complete history of a channel, as one member pages it, against all that is known.
    pub fn check(&mut self, by: &str, channel: ChannelId, history: &History) {
        let mut wrong = Vec::new();
        let mut acked_at: BTreeMap<u64, &Sent> = BTreeMap::new();
        for sent in self.messages.iter().filter(|sent| sent.channel == channel) {
            if let Fate::Acked { seq, .. } = sent.fate
                && let Some(other) = acked_at.insert(seq, sent)
            {
                wrong.push(format!("G3 seq {seq} was given to {:?} and {:?}", other.text, sent.text));
            }
        }
        for &(first, last) in &history.corrupt {
            wrong.push(format!("G14 seq {first} to {last} are marked corrupt"));
        }
        for seq in 1..=history.head {
            if !history.covered.contains(&seq) {
                wrong.push(format!("G2 seq {seq} of {} is in no page", history.head));
            } else if !history.frames.contains_key(&seq) && !history.is_hidden(seq) {
                wrong.push(format!("G2 seq {seq} is neither there nor hidden"));
            }
        }
        let mut places: BTreeMap<ClientMessageId, u64> = BTreeMap::new();
        for (&seq, frame) in &history.frames {
            let Ok(entry) = frame.decode::<wire::Entry>() else {
                wrong.push(format!("G5 seq {seq} does not decode"));
                continue;
            };
            let Some(id) = ClientMessageId::from_wire(&entry.client_message_id) else { continue };
            if let Some(other) = places.insert(id, seq) {
                wrong.push(format!("G3 one message stands at seq {other} and {seq}"));
            }
            let Some(wire::entry::Content::Message(message)) = &entry.content else { continue };
            match self.by_id.get(&id).map(|index| &self.messages[*index]) {
                Some(sent) if sent.channel == channel && sent.text == message.text => {}
                Some(sent) => {
                    wrong.push(format!("G5 seq {seq} says {:?}, sent was {:?}", message.text, sent.text))
                }
                // Not of this ledger: seeded, or of another round.
                None => {}
            }
        }
        for sent in self.messages.iter().filter(|sent| sent.channel == channel) {
            let place = places.get(&sent.id).copied();
            match sent.fate {
                Fate::Acked { seq, .. } if place != Some(seq) && !history.is_hidden(seq) => {
                    let text = &sent.text;
                    wrong.push(format!("G1 {text}: acknowledged at seq {seq}, found at {place:?}"));
                }
                Fate::Failed if place.is_some() => {
                    wrong.push(format!("G4 {}: every attempt FAILed, and it stands at {place:?}", sent.text));
                }
                _ => {}
            }
        }
        for (&(_, epoch, seq), frame) in self.seen.range((channel, 0, 0)..=(channel, u8::MAX, u64::MAX)) {
            match history.frames.get(&seq) {
                Some(paged) if paged == frame => {}
                Some(_) => wrong.push(format!("G2 seq {seq} (epoch {epoch}) was shown with other bytes")),
                None if history.is_hidden(seq) => {}
                None => wrong
                    .push(format!("G1 seq {seq} was shown to somebody and is gone (head {})", history.head)),
            }
        }
        for frame in history.frames.values() {
            self.saw(by, frame);
        }
        self.violations.extend(wrong.into_iter().map(|text| format!("{by}, channel {channel}: {text}")));
    }
}
