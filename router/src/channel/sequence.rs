//! Giving sends their place: frames, hashes, and what goes into the commit.

use std::sync::Arc;

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, FrameType, Header, MessageId, RoutedHeader, ShortHeader, UserId,
    header::{class, flags},
    wire,
};
use fanfare_storage::{
    hash,
    model::{Entry, EntryKind, HeadMove, ListChange, MarkChange, Member, MemberChange, ShardCommit},
    mutant,
};
use prost::Message;

use super::{Channel, Effect, InFlight, Named, Sequenced, Waiting, rights::Allowed};
use crate::{desk::Desk, repeats::Place, send::Meaning};

/// Entries of one channel in one commit.
const BATCH_ENTRIES_MAX: usize = 1_024;
/// Bytes of their frames, so that one fan-out stays far below a gateway's credit.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// What becomes an entry.
pub struct Draft {
    /// Who sends it; 0 for the server.
    pub sender: UserId,
    /// The client message id, empty where there is none.
    pub client_message_id: Vec<u8>,
    /// The content as it stands in the entry; empty where a send holds it.
    pub content: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// What it amends.
    pub target: u64,
    /// Its body is opaque.
    pub opaque: bool,
    /// What it changes.
    pub effect: Effect,
    /// Marks it sets or takes away.
    pub marks: Vec<MarkChange>,
}

struct Drafted {
    draft: Draft,
    waiting: Option<Waiting>,
}

impl Channel {
    /// Sequences what waits, adds it to the shard's commit and gives whether anything was added.
    pub fn sequence(&mut self, desk: &mut Desk, commit: &mut ShardCommit) -> bool {
        self.is_dirty = false;
        if self.in_flight.is_some() {
            return false;
        }
        let (mut drafted, mut bytes, now_ms) = (Vec::new(), 0, desk.context.now_ms());
        while drafted.len() < BATCH_ENTRIES_MAX && bytes < BATCH_BYTES_MAX {
            let Some(waiting) = self.pending.pop_front() else { break };
            match self.allow(&waiting, self.row.head + 1 + drafted.len() as u64, now_ms) {
                Err(code) => self.refuse(desk, waiting, code),
                Ok(Allowed { effect, marks }) => {
                    self.pending_bytes -= waiting.bytes();
                    bytes += waiting.bytes();
                    if matches!(waiting.meaning, Meaning::Message { mention_all: true, .. }) {
                        let every = desk.context.config.mention_all_every;
                        self.mention_all_from_ms = now_ms + every.as_millis() as u64;
                    }
                    let is_barrier = waiting.meaning.is_barrier();
                    let draft = Draft {
                        sender: waiting.sender,
                        client_message_id: waiting.client_message_id.0.to_vec(),
                        content: Vec::new(),
                        kind: waiting.meaning.kind(),
                        target: waiting.meaning.target(),
                        opaque: matches!(waiting.meaning, Meaning::Message { opaque: true, .. }),
                        effect,
                        marks,
                    };
                    drafted.push(Drafted { draft, waiting: Some(waiting) });
                    if is_barrier {
                        break;
                    }
                }
            }
        }
        if drafted.is_empty() {
            return false;
        }
        self.build(desk, commit, drafted);
        true
    }

    /// The first entries of a channel that this commit makes.
    pub fn sequence_first(&mut self, desk: &mut Desk, commit: &mut ShardCommit, drafts: Vec<Draft>) {
        commit.channels.push(self.row.clone());
        let drafted = drafts.into_iter().map(|draft| Drafted { draft, waiting: None }).collect();
        self.build(desk, commit, drafted);
    }

    fn build(&mut self, desk: &mut Desk, commit: &mut ShardCommit, drafted: Vec<Drafted>) {
        let channel = self.id();
        let now_ms = desk.context.now_ms();
        let first_seq = self.row.head + 1 + self.skipped;
        let (mut ordinal, mut frames, mut ends) = (self.row.ordinal, Vec::new(), Vec::new());
        let mut placed = Vec::with_capacity(drafted.len());
        for (seq, Drafted { draft, waiting }) in (first_seq..).zip(drafted) {
            let message_id = MessageId(desk.ids.next(now_ms));
            ordinal += u64::from(draft.kind.is_counted());
            let place = Place { epoch: self.row.epoch, seq, message_id, ordinal };
            let content = waiting.as_ref().map_or(&draft.content, |waiting| &waiting.content);
            write_frame(&mut frames, channel, &place, &draft, content);
            ends.push(frames.len());
            placed.push((place, draft, waiting));
        }
        let frames = Bytes::from(frames);
        let (mut items, mut chain, mut start) = (Vec::with_capacity(placed.len()), self.row.chain, 0);
        for ((place, draft, waiting), end) in placed.into_iter().zip(ends) {
            let frame = frames.slice(start..end);
            start = end;
            let stored_hash = hash::frame(&frame);
            chain = hash::chain(&chain, place.epoch, place.seq, &stored_hash);
            let client_id = fanfare_proto::ClientMessageId::from_wire(&draft.client_message_id)
                .map_or([0; 16], |id| desk.context.client_ids.hash(&id));
            let entry = Entry {
                message_id: place.message_id,
                channel,
                epoch: place.epoch,
                seq: place.seq,
                ordinal: place.ordinal,
                kind: draft.kind,
                sender: draft.sender,
                client_id,
                target: draft.target,
                hash: stored_hash,
                frame,
            };
            self.write_effect(commit, place.seq, &draft.effect);
            commit.marks.extend_from_slice(&draft.marks);
            commit.entries.push(entry.clone());
            items.push(Sequenced {
                key: waiting.as_ref().map(|waiting| waiting.key),
                client_message_id: draft.client_message_id,
                entry: Arc::new(entry),
                effect: draft.effect,
                marks: draft.marks,
                named: waiting.as_ref().and_then(|waiting| named(&waiting.meaning)),
                again: if mutant::is("retry-a-fail") { waiting.map(Box::new) } else { None },
            });
        }
        let Some(newest) = items.last() else { return };
        commit.heads.push(HeadMove {
            channel,
            epoch: self.row.epoch,
            first_seq: self.row.head + 1,
            head: newest.entry.seq,
            ordinal,
            message_id: newest.entry.message_id,
            chain,
        });
        commit.last_id = commit.last_id.max(desk.ids.last());
        self.in_flight = Some(InFlight { items, frames, ordinal, chain, is_frozen: false });
        self.seeded_bugs_before_commit(desk);
    }

    /// What an entry changes in SQL beside its own row.
    fn write_effect(&self, commit: &mut ShardCommit, seq: u64, effect: &Effect) {
        let channel = self.id();
        let (mut member, mut list) = (
            |member: Member| commit.members.push(MemberChange { channel, member }),
            |user: UserId, listed: bool| commit.lists.push(ListChange { user, channel, seq, listed }),
        );
        match effect {
            Effect::None | Effect::Recalled(_) => {}
            Effect::Joined(users, role) => {
                let visible_from = self.visible_from(seq);
                for user in users {
                    member(Member { user: *user, role: *role, joined_seq: seq, left_seq: 0, visible_from });
                    list(*user, true);
                }
            }
            Effect::Gone(users) => {
                for user in users {
                    if let Some(standing) = self.members.get(*user) {
                        member(Member {
                            user: *user,
                            role: standing.role,
                            joined_seq: standing.joined_seq,
                            left_seq: seq,
                            visible_from: standing.visible_from,
                        });
                        list(*user, false);
                    }
                }
            }
            Effect::Role(users, role) => {
                for user in users {
                    if let Some(standing) = self.members.get(*user) {
                        member(Member {
                            user: *user,
                            role: *role,
                            joined_seq: standing.joined_seq,
                            left_seq: 0,
                            visible_from: standing.visible_from,
                        });
                    }
                }
            }
            Effect::Settings(settings) => commit.settings.push((channel, settings.clone())),
        }
    }

    /// What one who joins by that entry may see.
    pub(super) fn visible_from(&self, joined_seq: u64) -> u64 {
        if i32::from(self.row.history) == wire::HistoryPolicy::All as i32 { 1 } else { joined_seq }
    }

    fn seeded_bugs_before_commit(&mut self, desk: &mut Desk) {
        let (early_ack, early_push) = (mutant::is("ack-before-commit"), mutant::is("push-past-watermark"));
        if !early_ack && !early_push {
            return;
        }
        let Some(flight) = self.in_flight.take() else { return };
        if early_push {
            self.at_once(desk, &flight.frames, self.row.head + 1, self.row.head + flight.items.len() as u64);
        }
        if early_ack {
            for item in &flight.items {
                let Some(key) = &item.key else { continue };
                let place = place_of(&item.entry);
                for attempt in self.repeats.take_attempts(key) {
                    self.acknowledge(desk, &attempt, &[], place, false);
                }
            }
        }
        self.in_flight = Some(flight);
    }
}

fn named(meaning: &Meaning) -> Option<Box<Named>> {
    match meaning {
        Meaning::Message { mention_all, reply_to, mentions, .. }
            if *mention_all || *reply_to > 0 || !mentions.is_empty() =>
        {
            Some(Box::new(Named { users: mentions.clone(), all: *mention_all, reply_to: *reply_to }))
        }
        _ => None,
    }
}

/// Where an entry stands.
pub fn place_of(entry: &Entry) -> Place {
    Place { epoch: entry.epoch, seq: entry.seq, message_id: entry.message_id, ordinal: entry.ordinal }
}

/// Encodes a DELIVER frame: the content's bytes stand behind the other fields, as in field order.
fn write_frame(out: &mut Vec<u8>, channel: ChannelId, place: &Place, draft: &Draft, content: &[u8]) {
    let entry = wire::Entry {
        epoch: place.epoch,
        message_id: place.message_id.0,
        ordinal: place.ordinal,
        sender: draft.sender.0,
        client_message_id: draft.client_message_id.clone().into(),
        content: None,
    };
    let flags = if draft.opaque { flags::OPAQUE } else { 0 }
        | if draft.kind.is_counted() { flags::COUNTED } else { 0 };
    let short = ShortHeader {
        frame_type: FrameType::Deliver,
        flags,
        class: class::MESSAGE,
        epoch: place.epoch as u8,
        body_bytes: (entry.encoded_len() + content.len()) as u32,
    };
    Header::Routed(RoutedHeader { short, channel, seq: place.seq }).write(out);
    entry.encode_raw(out);
    out.extend_from_slice(content);
}
