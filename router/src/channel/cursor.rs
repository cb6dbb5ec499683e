//! Receipts, what follows from ACKs, COUNTS, and when cursors are written and shown.

use fanfare_activity::Act;
use fanfare_proto::{
    Code, Frame, FrameType, UserId, frame::routed, header::class, limits::RECEIPTS_PUSHED_MEMBERS_MAX,
    link::Origin, wire,
};
use fanfare_storage::{
    model::{CursorBatch, UserCursor},
    mutant,
};
use std::time::Duration;
use tokio::time::Instant;

use super::Channel;
use crate::{
    desk::{Desk, Due},
    event::Written,
    frames,
    writer::Job,
};

/// Between two RECEIPT frames of a channel.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// What a RECEIPT says, as far as that needs no channel.
pub fn read_receipt(frame: &Frame) -> Result<wire::Receipt, Code> {
    let receipt: wire::Receipt = frame.decode()?;
    if receipt.cursors.len() == 1 { Ok(receipt) } else { Err(Code::BAD_FIELD) }
}

impl Channel {
    /// RECEIPT.
    pub(super) fn receipt(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let code = match read_receipt(frame) {
            Err(code) => code,
            Ok(_) if self.members.get(origin.user).is_none() => Code::NOT_A_MEMBER,
            Ok(receipt) => {
                let cursor = &receipt.cursors[0];
                let read = cursor.read.min(self.row.head);
                let read_ordinal = match self.tail.get(read) {
                    Some(held) => held.ordinal,
                    // What is older is the client's word, within what is possible.
                    None => cursor.read_ordinal.min(self.row.ordinal).min(read),
                };
                if read > self.cursors.get(origin.user).read {
                    self.act(desk, origin.user, Act::Read);
                }
                self.raise(
                    desk,
                    UserCursor {
                        channel: self.id(),
                        user: origin.user,
                        delivered: cursor.delivered.min(self.row.head),
                        read,
                        read_ordinal,
                    },
                );
                return;
            }
        };
        desk.gateways.reply(&origin, frames::failed(FrameType::Receipt, code));
    }

    /// A device of a member holds the channel up to there.
    pub(super) fn delivered(&mut self, desk: &mut Desk, user: UserId, seq: u64) {
        if self.members.get(user).is_some() {
            let delivered = seq.min(self.row.head);
            self.raise(desk, UserCursor { channel: self.id(), user, delivered, read: 0, read_ordinal: 0 });
        }
    }

    fn raise(&mut self, desk: &mut Desk, to: UserCursor) {
        if self.cursors.raise(to) && !self.cursors_due {
            self.cursors_due = true;
            let config = &desk.context.config;
            let every = if self.is_direct() { config.direct_cursors_every } else { config.cursors_every };
            desk.at(Instant::now() + every, Due::Cursors(self.id()));
        }
    }

    /// Hands what moved to the writer.
    pub fn write_cursors(&mut self, desk: &mut Desk) {
        self.cursors_due = false;
        if !self.cursors.is_dirty() {
            return;
        }
        if !desk.context.cursors.has_room() {
            self.cursors_due = true;
            return desk.at(Instant::now() + SHOWN_EVERY, Due::Cursors(self.id()));
        }
        let cursors = self.cursors.take_dirty();
        let users = cursors.iter().map(|cursor| cursor.user).collect();
        let then = Some((desk.shard, Written::Channel(self.id(), users)));
        let batch = CursorBatch { cursors, ..Default::default() };
        desk.context.cursors.push(Job { batch, then, is_soon: self.is_direct() });
    }

    /// Those cursors stand on disk: in small channels the others are shown them, at most once a second.
    pub fn cursors_written(&mut self, desk: &mut Desk, users: Vec<UserId>) {
        if self.members.len() > RECEIPTS_PUSHED_MEMBERS_MAX || self.audience.is_empty() {
            return;
        }
        self.cursors.written(users);
        if self.receipts_due {
            return;
        }
        let now = Instant::now();
        match self.receipts_shown {
            Some(shown) if shown + SHOWN_EVERY > now => {
                self.receipts_due = true;
                desk.at(shown + SHOWN_EVERY, Due::Receipts(self.id()));
            }
            _ => self.show_receipts(desk),
        }
    }

    /// One RECEIPT with everything written and not yet shown.
    pub fn show_receipts(&mut self, desk: &mut Desk) {
        self.receipts_due = false;
        let cursors = self.cursors.take_shown();
        if cursors.is_empty() {
            return;
        }
        let now = Instant::now();
        self.receipts_shown = Some(now);
        let users: Vec<UserId> = cursors.iter().map(|cursor| UserId(cursor.user)).collect();
        let frame = routed(FrameType::Receipt, class::STATE, 0, 0, self.id(), 0, &wire::Receipt { cursors });
        if !self.hint(desk, frame) {
            // Somebody missed it: the same, or newer ones, in a second.
            self.cursors.written(users);
            self.receipts_due = true;
            desk.at(now + SHOWN_EVERY, Due::Receipts(self.id()));
        }
    }

    /// COUNTS.
    pub(super) fn count(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let Some(request) = frame.routed().map(|header| header.seq) else { return };
        let answer = match frame.decode::<wire::Counts>() {
            Err(code) => Err(code),
            Ok(_) if self.members.get(origin.user).is_none() && !mutant::is("counts-skip-membership") => {
                Err(Code::NOT_A_MEMBER)
            }
            Ok(counts) if counts.of == 0 || counts.of > self.row.head => Err(Code::BAD_FIELD),
            Ok(counts) => Ok(counts.of),
        };
        let frame = match answer {
            Err(code) => frames::refused(FrameType::Counts, self.id(), request, code),
            Ok(of) => {
                let (delivered, read) = self.cursors.counts(of);
                let counts = wire::Counts { of, delivered, read, members: self.members.len() as u32 };
                routed(FrameType::Counts, class::STATE, 0, 0, self.id(), request, &counts)
            }
        };
        desk.gateways.reply(&origin, frame);
    }
}
