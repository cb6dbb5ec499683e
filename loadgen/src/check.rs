//! Checks every delivery of every recipient: nothing lost, doubled, reordered, altered, or shown to a non-member.
//!
//! What each channel holds at each seq is learned at its first sight (by whichever member sees it first) and is compared
//! with what was sent; every later sight by anybody must be the same bytes. Per member one bit per seq says whether it
//! was received.

use anyhow::Result;
use bytes::Bytes;
use fanfare_proto::{
    ChannelId, ClientMessageId, Frame, FrameType, UserId,
    wire::{self, entry::Content},
};
use hashbrown::HashMap;

/// A member of a channel, densely numbered by the load generator.
pub type MemberIndex = usize;

/// What was counted; all but the first three must end at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Message entries received, each once per recipient.
    pub deliveries: u64,
    /// Other entries (membership, channel changes) received.
    pub other_entries: u64,
    /// Message entries that had to come by FETCH.
    pub fetched: u64,
    /// Entries that a member never received.
    pub lost: u64,
    /// Entries pushed to one member more than once.
    pub duplicated: u64,
    /// Entries that came before an earlier one, with no GAP between.
    pub reordered: u64,
    /// Entries that differ from what was sent, or from what another member saw at the same place.
    pub altered: u64,
    /// Entries seen by somebody who was not a member then.
    pub leaked: u64,
}

/// What was sent, by client message id, until it is seen.
#[derive(Clone, Debug)]
pub struct Sent {
    /// By whom.
    pub sender: UserId,
    /// Where.
    pub channel: ChannelId,
    /// Hash of the text as [`text_hash`] gives it; 0 for entries that are not messages.
    pub text: u64,
    /// When it was planned, microseconds on the caller's clock.
    pub planned_us: u64,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// Hash of the whole frame, 0 while unseen.
    frame: u64,
    is_message: bool,
    /// SEND_ACK said that this seq is ours.
    acked: bool,
    client_id: [u8; 16],
    planned_us: u64,
}

struct Membership {
    joined_seq: u64,
    newest_seq: u64,
    received: Vec<u64>,
}

#[derive(Default)]
struct ChannelTruth {
    places: Vec<Place>,
    members: HashMap<u32, Membership, foldhash::fast::FixedState>,
}

/// How an entry came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Live or as a fill: in order.
    Pushed,
    /// In a PAGE.
    Paged,
}

/// See the module.
#[derive(Default)]
pub struct Checker {
    channels: HashMap<ChannelId, ChannelTruth, foldhash::fast::FixedState>,
    /// Every SEND ever made, by client message id.
    sent: SentById,
    /// Where each client message id was seen: one effect at most.
    effects: HashMap<[u8; 16], (ChannelId, u64), foldhash::fast::FixedState>,
    /// What was counted so far.
    pub counts: Counts,
    /// The first few violations in words.
    pub examples: Vec<String>,
}

const EXAMPLES_MAX: usize = 20;

/// 64-bit hash of bytes: quick and good enough to tell accidents apart.
pub fn text_hash(bytes: &[u8]) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0x0fa7_fa2e).build_hasher();
    hasher.write(bytes);
    hasher.finish().max(1)
}

impl Checker {
    /// Notes a violation in words, where there is room for one more.
    pub fn violation(examples: &mut Vec<String>, what: impl FnOnce() -> String) {
        if examples.len() < EXAMPLES_MAX {
            examples.push(what());
        }
    }

    /// Notes an attempt to send, before it leaves.
    pub fn sending(&mut self, client_id: ClientMessageId, sent: Sent) {
        self.sent.insert(client_id.0, sent);
    }

    /// The first seq that `member` gets of the channel; 0 where it is not one.
    pub fn joined_seq(&self, channel: ChannelId, member: MemberIndex) -> u64 {
        let truth = self.channels.get(&channel);
        truth.and_then(|truth| truth.members.get(&(member as u32))).map_or(0, |member| member.joined_seq)
    }

    /// When a send was planned; 0 where it is not known.
    pub fn planned_us(&self, client_id: ClientMessageId) -> u64 {
        self.sent.get(&client_id.0).map_or(0, |sent| sent.planned_us)
    }

    /// Notes an acknowledged entry.
    pub fn acked(&mut self, channel: ChannelId, seq: u64, client_id: ClientMessageId, is_message: bool) {
        let Self { channels, counts, examples, effects, .. } = self;
        let place = place_mut(channels.entry(channel).or_default(), seq);
        if (place.frame != 0 || place.acked) && place.client_id != client_id.0 {
            counts.altered += 1;
            Self::violation(examples, || {
                format!("channel {channel} seq {seq} was acknowledged for two sends")
            });
        }
        place.acked = true;
        place.client_id = client_id.0;
        place.is_message = is_message;
        if *effects.entry(client_id.0).or_insert((channel, seq)) != (channel, seq) {
            counts.duplicated += 1;
            Self::violation(examples, || format!("one send has two places: channel {channel} seq {seq}"));
        }
    }

    /// Notes that `member` is one from `joined_seq` on. The same again has no effect.
    pub fn joined(&mut self, channel: ChannelId, member: MemberIndex, joined_seq: u64) {
        let truth = self.channels.entry(channel).or_default();
        truth.members.entry(member as u32).or_insert(Membership {
            joined_seq,
            newest_seq: joined_seq - 1,
            received: Vec::new(),
        });
    }

    /// Checks one DELIVER frame that `member` received. Returns when the message was planned; `None` for other entries.
    pub fn delivered(&mut self, member: MemberIndex, frame: &Frame, way: Way) -> Result<Option<u64>> {
        let Some(header) = frame.routed().filter(|header| header.short.frame_type == FrameType::Deliver)
        else {
            anyhow::bail!("{:?} is not DELIVER", frame.frame_type());
        };
        let (channel, seq) = (header.channel, header.seq);
        let Self { channels, counts, examples, effects, sent, .. } = self;
        let truth = channels.entry(channel).or_default();
        let hash = text_hash(&frame.bytes);
        let place = place_mut(truth, seq);
        let first = place.frame == 0;
        if first {
            let acked_as = place.acked.then_some(place.client_id);
            *place = learn(place, frame, hash, sent);
            if acked_as.is_some_and(|client_id| client_id != place.client_id) {
                counts.altered += 1;
                Self::violation(examples, || {
                    format!("channel {channel} seq {seq}: another entry than acknowledged")
                });
            }
            if let Err(why) = verify_sent(frame, channel, sent) {
                counts.altered += 1;
                Self::violation(examples, || format!("channel {channel} seq {seq}: {why}"));
            }
            if place.client_id != [0; 16]
                && *effects.entry(place.client_id).or_insert((channel, seq)) != (channel, seq)
            {
                counts.duplicated += 1;
                Self::violation(examples, || format!("one send has two places: channel {channel} seq {seq}"));
            }
        } else if place.frame != hash {
            counts.altered += 1;
            Self::violation(examples, || {
                format!("channel {channel} seq {seq}: two members saw different bytes")
            });
        }
        let is_message = place.is_message;
        let planned_us = is_message.then_some(place.planned_us);
        let Some(membership) = truth.members.get_mut(&(member as u32)) else {
            counts.leaked += 1;
            Self::violation(examples, || {
                format!("member {member} got channel {channel} seq {seq} without a join")
            });
            return Ok(planned_us);
        };
        if seq < membership.joined_seq {
            counts.leaked += 1;
            let joined = membership.joined_seq;
            Self::violation(examples, || {
                format!("member {member} joined channel {channel} at {joined}, got {seq}")
            });
            return Ok(planned_us);
        }
        let (word, bit) = ((seq / 64) as usize, 1u64 << (seq % 64));
        if membership.received.len() <= word {
            membership.received.resize(word + 1, 0);
        }
        if membership.received[word] & bit != 0 {
            if way == Way::Pushed {
                counts.duplicated += 1;
                Self::violation(examples, || {
                    format!("member {member} got channel {channel} seq {seq} twice")
                });
            }
            return Ok(planned_us);
        }
        if way == Way::Pushed && seq < membership.newest_seq {
            counts.reordered += 1;
            let newest = membership.newest_seq;
            Self::violation(examples, || {
                format!("member {member}: channel {channel} seq {seq} after {newest}")
            });
        }
        membership.received[word] |= bit;
        if way == Way::Pushed {
            membership.newest_seq = membership.newest_seq.max(seq);
        }
        if is_message {
            counts.deliveries += 1;
            counts.fetched += u64::from(way == Way::Paged);
        } else {
            counts.other_entries += 1;
        }
        Ok(planned_us)
    }

    /// Compares a frame read by an independent reader after all with what members saw.
    pub fn reread(&mut self, frame: &Frame) {
        let Some(header) = frame.routed() else { return };
        let (channel, seq) = (header.channel, header.seq);
        let hash = text_hash(&frame.bytes);
        let Self { channels, counts, examples, sent, .. } = self;
        let place = place_mut(channels.entry(channel).or_default(), seq);
        if place.frame == 0 {
            *place = learn(place, frame, hash, sent);
        } else if place.frame != hash {
            counts.altered += 1;
            Self::violation(examples, || format!("channel {channel} seq {seq} reads back as other bytes"));
        }
    }

    /// Deliveries of messages that members must have got, given each channel's final head, and how many of them and of
    /// the other entries they did not; counts those as lost.
    pub fn finish(&mut self, heads: &HashMap<ChannelId, u64>) -> u64 {
        let Self { channels, counts, examples, .. } = self;
        let mut expected = 0;
        for (channel, truth) in channels.iter() {
            let head = heads.get(channel).copied().unwrap_or(0);
            if truth.places.len() as u64 > head {
                counts.lost += 1;
                let seen = truth.places.len();
                Self::violation(examples, || {
                    format!("channel {channel} ends at {head}, but {seen} was seen")
                });
            }
            // messages[seq] counts messages up to and with seq.
            let mut messages = Vec::with_capacity(truth.places.len() + 1);
            messages.push(0u64);
            for place in &truth.places {
                messages.push(messages.last().copied().unwrap_or(0) + u64::from(place.is_message));
            }
            let total = messages.last().copied().unwrap_or(0);
            for (member, membership) in &truth.members {
                let from = membership.joined_seq.min(truth.places.len() as u64 + 1);
                expected += total - messages[from as usize - 1];
                for seq in from..=head {
                    let word = membership.received.get((seq / 64) as usize).copied().unwrap_or(0);
                    if word >> (seq % 64) & 1 == 0 {
                        counts.lost += 1;
                        Self::violation(examples, || {
                            format!("member {member} never got channel {channel} seq {seq}")
                        });
                    }
                }
            }
        }
        expected
    }

    /// Entries of all kinds that all members together must have received by `heads`.
    pub fn entries_due(&self, heads: &HashMap<ChannelId, u64>) -> u64 {
        self.channels
            .iter()
            .map(|(channel, truth)| {
                let head = heads.get(channel).copied().unwrap_or(0);
                truth.members.values().map(|member| (head + 1).saturating_sub(member.joined_seq)).sum::<u64>()
            })
            .sum()
    }
}

fn place_mut(truth: &mut ChannelTruth, seq: u64) -> &mut Place {
    // A server that invents huge seqs must not take the generator's memory.
    let index = (seq.clamp(1, 1 << 26) - 1) as usize;
    if truth.places.len() <= index {
        truth.places.resize(index + 1, Place::default());
    }
    &mut truth.places[index]
}

type SentById = HashMap<[u8; 16], Sent, foldhash::fast::FixedState>;

fn learn(place: &Place, frame: &Frame, hash: u64, sent: &SentById) -> Place {
    let entry: wire::Entry = frame.decode().unwrap_or_default();
    let client_id = entry.client_message_id.as_ref().try_into().unwrap_or([0; 16]);
    Place {
        frame: hash,
        is_message: matches!(entry.content, Some(Content::Message(_))),
        acked: place.acked,
        client_id,
        planned_us: sent.get(&client_id).map_or(0, |sent| sent.planned_us),
    }
}

fn verify_sent(frame: &Frame, channel: ChannelId, sent: &SentById) -> Result<(), String> {
    let entry: wire::Entry = frame.decode().map_err(|code| code.to_string())?;
    let Some(Content::Message(message)) = &entry.content else { return Ok(()) };
    let client_id: [u8; 16] =
        entry.client_message_id.as_ref().try_into().map_err(|_| "no client message id")?;
    let sent = sent.get(&client_id).ok_or("a message that nobody sent")?;
    if sent.sender.0 != entry.sender {
        return Err(format!("sender {} instead of {}", entry.sender, sent.sender));
    }
    if sent.channel != channel {
        return Err(format!("was sent to channel {}", sent.channel));
    }
    if sent.text != text_hash(message.text.as_bytes()) {
        return Err("the text differs from what was sent".into());
    }
    Ok(())
}

/// The frames of a PAGE.
pub fn page_frames(page: &wire::Page) -> impl Iterator<Item = Frame> + use<> {
    let frames: Bytes = page.frames.clone();
    Frame::iter(frames).filter_map(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_proto::{frame, header::class};

    fn deliver(channel: u64, seq: u64, sender: u64, client_id: ClientMessageId, text: &str) -> Frame {
        let message = wire::Message { text: text.into(), ..Default::default() };
        let body = wire::Entry {
            sender,
            client_message_id: Bytes::copy_from_slice(&client_id.0),
            content: Some(Content::Message(message)),
            ..Default::default()
        };
        let mut bytes =
            frame::routed(FrameType::Deliver, class::MESSAGE, 2, 0, ChannelId(channel), seq, &body);
        Frame::split_from(&mut bytes).unwrap().unwrap()
    }

    fn client_id(number: u8) -> ClientMessageId {
        ClientMessageId::new(1_000, [number; 10])
    }

    fn checker(sends: u8) -> Checker {
        let mut checker = Checker::default();
        for number in 1..=sends {
            let text = text_hash(format!("text {number}").as_bytes());
            checker.sending(
                client_id(number),
                Sent { sender: UserId(5), channel: ChannelId(1), text, planned_us: 7 },
            );
            checker.acked(ChannelId(1), u64::from(number), client_id(number), true);
        }
        for member in 0..2 {
            checker.joined(ChannelId(1), member, 1);
        }
        checker
    }

    fn heads(head: u64) -> HashMap<ChannelId, u64> {
        [(ChannelId(1), head)].into_iter().collect()
    }

    fn good(number: u8) -> Frame {
        deliver(1, u64::from(number), 5, client_id(number), &format!("text {number}"))
    }

    #[test]
    fn a_sound_history_counts_nothing() {
        let mut checker = checker(3);
        for member in 0..2 {
            for number in 1..=3 {
                checker.delivered(member, &good(number), Way::Pushed).unwrap();
            }
        }
        assert_eq!(checker.finish(&heads(3)), 6);
        assert_eq!(checker.counts, Counts { deliveries: 6, ..Default::default() });
    }

    #[test]
    fn every_kind_of_violation_is_counted() {
        // lost
        let mut lost = checker(3);
        for number in [1, 3] {
            lost.delivered(0, &good(number), Way::Pushed).unwrap();
            lost.delivered(1, &good(number), Way::Pushed).unwrap();
        }
        lost.delivered(0, &good(2), Way::Paged).unwrap();
        lost.finish(&heads(3));
        assert_eq!((lost.counts.lost, lost.counts.reordered, lost.counts.fetched), (1, 0, 1));
        // an acknowledged entry beyond the final head
        let mut rewound = checker(3);
        rewound.finish(&heads(2));
        assert!(rewound.counts.lost > 0);
        // duplicated
        let mut twice = checker(1);
        twice.delivered(0, &good(1), Way::Pushed).unwrap();
        twice.delivered(0, &good(1), Way::Pushed).unwrap();
        assert_eq!(twice.counts.duplicated, 1);
        // one send at two places
        let mut effects = checker(1);
        effects.delivered(0, &deliver(1, 2, 5, client_id(1), "text 1"), Way::Pushed).unwrap();
        assert_eq!(effects.counts.duplicated, 1);
        // reordered
        let mut reordered = checker(2);
        reordered.delivered(0, &good(2), Way::Pushed).unwrap();
        reordered.delivered(0, &good(1), Way::Pushed).unwrap();
        assert_eq!(reordered.counts.reordered, 1);
        // altered: another text; a sender who did not send it; two members with different bytes
        let mut altered = checker(3);
        altered.delivered(0, &deliver(1, 1, 5, client_id(1), "text !"), Way::Pushed).unwrap();
        altered.delivered(0, &deliver(1, 2, 6, client_id(2), "text 2"), Way::Pushed).unwrap();
        altered.delivered(0, &good(3), Way::Pushed).unwrap();
        altered.delivered(1, &deliver(1, 3, 5, client_id(3), "text 3!"), Way::Pushed).unwrap();
        assert_eq!(altered.counts.altered, 3);
        // leaked: not a member; before the join
        let mut leaked = checker(2);
        leaked.joined(ChannelId(1), 8, 2);
        leaked.delivered(7, &good(1), Way::Pushed).unwrap();
        leaked.delivered(8, &good(1), Way::Pushed).unwrap();
        assert_eq!(leaked.counts.leaked, 2);
    }
}
