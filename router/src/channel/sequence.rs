//! Giving sends their place: rules that need the committed state, frames, hashes, and what goes into the commit.

use std::sync::Arc;

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, FrameType, Header, MessageId, RoutedHeader, ShortHeader, UserId,
    header::{class, flags},
    limits::MEMBERS_MAX,
    wire,
};
use fanfare_storage::{
    hash,
    model::{Entry, EntryKind, HeadMove, ListChange, Member, MemberChange, ShardCommit},
    mutant,
};
use prost::Message;

use super::{Channel, Effect, InFlight, Sequenced, Waiting};
use crate::{desk::Desk, members::role, repeats::Place, send::Meaning};

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
        let (mut drafted, mut bytes) = (Vec::new(), 0);
        while drafted.len() < BATCH_ENTRIES_MAX && bytes < BATCH_BYTES_MAX {
            let Some(waiting) = self.pending.pop_front() else { break };
            match self.effect_of(&waiting, self.row.head + 1 + drafted.len() as u64) {
                Err(code) => self.refuse(desk, waiting, code),
                Ok(effect) => {
                    self.pending_bytes -= waiting.bytes();
                    bytes += waiting.bytes();
                    let is_barrier = waiting.meaning.is_barrier();
                    let draft = Draft {
                        sender: waiting.sender,
                        client_message_id: waiting.client_message_id.0.to_vec(),
                        content: Vec::new(),
                        kind: waiting.meaning.kind(),
                        target: waiting.meaning.target(),
                        opaque: matches!(waiting.meaning, Meaning::Message { opaque: true, .. }),
                        effect,
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
            commit.entries.push(entry.clone());
            items.push(Sequenced {
                key: waiting.as_ref().map(|waiting| waiting.key),
                client_message_id: draft.client_message_id,
                entry: Arc::new(entry),
                effect: draft.effect,
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
            Effect::Policy(name, history, join) => {
                commit.policies.push((channel, name.clone(), *history, *join));
            }
        }
    }

    /// What one who joins by that entry may see.
    pub(super) fn visible_from(&self, joined_seq: u64) -> u64 {
        if i32::from(self.row.history) == wire::HistoryPolicy::All as i32 { 1 } else { joined_seq }
    }

    /// Whether the send is allowed as the channel stands, and what it changes.
    fn effect_of(&self, waiting: &Waiting, seq: u64) -> Result<Effect, Code> {
        let standing = self.members.get(waiting.sender);
        let is_direct = self.is_direct();
        if let Meaning::Joined { users, .. } = &waiting.meaning
            && standing.is_none()
        {
            let is_open = i32::from(self.row.join) == wire::JoinPolicy::OpenToAll as i32;
            if !is_open || *users != [waiting.sender] || is_direct {
                return Err(Code::NOT_A_MEMBER);
            }
            if self.members.len() >= MEMBERS_MAX {
                return Err(Code::CHANNEL_FULL);
            }
            return Ok(Effect::Joined(users.clone(), role::MEMBER));
        }
        let own = standing.ok_or(Code::NOT_A_MEMBER)?.role;
        let need = |least: u8| if own >= least { Ok(()) } else { Err(Code::FORBIDDEN) };
        let in_group = || if is_direct { Err(Code::WRONG_KIND) } else { Ok(()) };
        let not_recalled = |target: &u64| {
            let stub = self.tail.get(*target).is_some_and(|held| held.stub);
            if stub || self.recalled.contains(target) { Err(Code::RECALLED) } else { Ok(()) }
        };
        match &waiting.meaning {
            Meaning::Message { mention_all, reply_to, .. } => {
                if *mention_all && !is_direct {
                    need(role::ADMIN)?;
                }
                if *reply_to >= seq {
                    return Err(Code::BAD_FIELD);
                }
                Ok(Effect::None)
            }
            Meaning::Edit { target } => {
                if waiting.target_sender != Some(waiting.sender) {
                    return Err(Code::FORBIDDEN);
                }
                not_recalled(target)?;
                Ok(Effect::None)
            }
            Meaning::Recall { target } => {
                if waiting.target_sender != Some(waiting.sender) {
                    need(role::ADMIN)?;
                }
                not_recalled(target)?;
                Ok(Effect::Recalled(*target))
            }
            Meaning::Reaction { target } => not_recalled(target).map(|()| Effect::None),
            Meaning::Joined { users, role: new_role } => {
                in_group()?;
                let new: Vec<UserId> =
                    users.iter().copied().filter(|user| self.members.get(*user).is_none()).collect();
                if new.is_empty() {
                    return Err(Code::NO_CHANGE);
                }
                need(role::ADMIN)?;
                if self.members.len() + new.len() > MEMBERS_MAX {
                    return Err(Code::CHANNEL_FULL);
                }
                Ok(Effect::Joined(new, *new_role))
            }
            Meaning::Left => {
                in_group()?;
                if own == role::OWNER && self.members.owners() == 1 && self.members.len() > 1 {
                    return Err(Code::LAST_OWNER);
                }
                Ok(Effect::Gone(vec![waiting.sender]))
            }
            Meaning::Removed { users } => {
                in_group()?;
                need(role::ADMIN)?;
                let gone: Vec<UserId> =
                    users.iter().copied().filter(|user| self.members.get(*user).is_some()).collect();
                if gone.is_empty() {
                    return Err(Code::NO_CHANGE);
                }
                let role_of = |user: &UserId| self.members.get(*user).map_or(0, |standing| standing.role);
                if own < role::OWNER && gone.iter().any(|user| role_of(user) >= role::ADMIN) {
                    return Err(Code::FORBIDDEN);
                }
                let owners = gone.iter().filter(|user| role_of(user) == role::OWNER).count();
                if owners == self.members.owners() && self.members.len() > gone.len() {
                    return Err(Code::LAST_OWNER);
                }
                Ok(Effect::Gone(gone))
            }
            Meaning::RoleChanged { users, role: new_role } => {
                in_group()?;
                need(role::OWNER)?;
                let role_of = |user: &UserId| self.members.get(*user).map_or(0, |standing| standing.role);
                let changed: Vec<UserId> = users
                    .iter()
                    .copied()
                    .filter(|user| role_of(user) > 0 && role_of(user) != *new_role)
                    .collect();
                if changed.is_empty() {
                    return Err(Code::NO_CHANGE);
                }
                let owners = changed.iter().filter(|user| role_of(user) == role::OWNER).count();
                if *new_role < role::OWNER && owners == self.members.owners() {
                    return Err(Code::LAST_OWNER);
                }
                Ok(Effect::Role(changed, *new_role))
            }
            Meaning::ChannelChange { name, history, join } => {
                in_group()?;
                need(role::ADMIN)?;
                let name = name.clone().unwrap_or_else(|| self.row.name.clone());
                let keep = |new: u8, old: u8| if new == 0 { old } else { new };
                let (history, join) = (keep(*history, self.row.history), keep(*join, self.row.join));
                if name == self.row.name && history == self.row.history && join == self.row.join {
                    return Err(Code::NO_CHANGE);
                }
                Ok(Effect::Policy(name, history, join))
            }
        }
    }

    fn seeded_bugs_before_commit(&mut self, desk: &mut Desk) {
        let (early_ack, early_push) = (mutant::is("ack-before-commit"), mutant::is("push-past-watermark"));
        if !early_ack && !early_push {
            return;
        }
        let Some(flight) = self.in_flight.take() else { return };
        if early_push {
            self.fan_out(desk, flight.frames.clone(), self.row.head + 1);
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
