//! A channel's newest frames, kept by its owner: contiguous up to the head, bounded in count and bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use fanfare_proto::{
    Frame, MessageId, UserId,
    header::{FrameType, class, flags},
    wire,
};
use fanfare_storage::model::{Entry, EntryKind};

/// Frames that stay in a channel in which nothing happens.
const FRAMES_AT_REST: usize = 64;
/// Bytes of them, and for each member: the more there are, the more will come and ask.
const BYTES_AT_REST: usize = 4 * 1024;
const MEMBER_BYTES_AT_REST: usize = 16;

/// One frame of the tail with what is asked of it without decoding.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its place.
    pub seq: u64,
    /// Entries up to it that count as unread.
    pub ordinal: u64,
    /// Its id, which holds its time.
    pub message_id: MessageId,
    /// What it is.
    pub kind: EntryKind,
    /// Who sent it.
    pub sender: UserId,
    /// What it amends, or 0.
    pub target: u64,
    /// The frame as delivered, or its stub.
    pub frame: Bytes,
    /// Whether the body was recalled and the frame is a stub.
    pub stub: bool,
}

impl Held {
    /// As sequenced.
    pub fn of(entry: &Entry) -> Self {
        Self {
            seq: entry.seq,
            ordinal: entry.ordinal,
            message_id: entry.message_id,
            kind: entry.kind,
            sender: entry.sender,
            target: entry.target,
            frame: entry.frame.clone(),
            stub: false,
        }
    }

    /// As read back from a store; `None` where the frame does not decode as an entry.
    pub fn of_stored(frame: &Bytes) -> Option<(Self, wire::Entry)> {
        let whole = Frame::split_from(&mut frame.clone()).ok()??;
        let header = *whole.routed()?;
        let entry: wire::Entry = whole.decode().ok()?;
        let (kind, target) = kind_of(entry.content.as_ref()?);
        let held = Self {
            seq: header.seq,
            ordinal: entry.ordinal,
            message_id: MessageId(entry.message_id),
            kind,
            sender: UserId(entry.sender),
            target,
            frame: frame.clone(),
            stub: header.short.flags & flags::STUB != 0,
        };
        Some((held, entry))
    }

    /// Puts the stub in the frame's place.
    pub fn take_back(&mut self) {
        if !self.stub {
            if let Some(stub) = stub(&self.frame) {
                self.frame = stub;
            }
            self.stub = true;
        }
    }
}

/// What an entry is and what it amends.
pub fn kind_of(content: &wire::entry::Content) -> (EntryKind, u64) {
    use wire::entry::Content;
    match content {
        Content::Message(_) => (EntryKind::Message, 0),
        Content::Edit(edit) => (EntryKind::Edit, edit.target),
        Content::Recall(recall) => (EntryKind::Recall, recall.target),
        Content::Reaction(reaction) => (EntryKind::Reaction, reaction.target),
        Content::Membership(_) => (EntryKind::Membership, 0),
        Content::ChannelChange(_) => (EntryKind::ChannelChange, 0),
    }
}

/// The frame without its content, flagged as a stub.
pub fn stub(frame: &Bytes) -> Option<Bytes> {
    let whole = Frame::split_from(&mut frame.clone()).ok()??;
    let header = *whole.routed()?;
    let mut entry: wire::Entry = whole.decode().ok()?;
    entry.content = None;
    let flags = header.short.flags | flags::STUB;
    Some(fanfare_proto::frame::routed(
        FrameType::Deliver,
        class::MESSAGE,
        flags,
        entry.epoch,
        header.channel,
        header.seq,
        &entry,
    ))
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    held: VecDeque<Held>,
    bytes: usize,
    /// Nothing came since [`Self::rest`].
    is_at_rest: bool,
}

impl Tail {
    /// The oldest seq held, if any.
    pub fn first(&self) -> Option<u64> {
        self.held.front().map(|held| held.seq)
    }

    /// Bytes of its frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether it holds everything behind `position`, given the head.
    pub fn covers(&self, position: u64, head: u64) -> bool {
        position >= head || self.first().is_some_and(|first| first <= position + 1)
    }

    /// The frame of that seq.
    pub fn get(&self, seq: u64) -> Option<&Held> {
        let index = seq.checked_sub(self.first()?)?;
        self.held.get(usize::try_from(index).ok()?)
    }

    fn index_of(&self, seq: u64) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.first()?)?).ok().filter(|index| *index < self.held.len())
    }

    /// Frames behind `position`, ascending.
    pub fn behind(&self, position: u64) -> impl DoubleEndedIterator<Item = &Held> {
        let skip = self.first().map_or(0, |first| (position + 1).saturating_sub(first));
        self.held.range(usize::try_from(skip).unwrap_or(usize::MAX).min(self.held.len())..)
    }

    /// All frames, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Held> {
        self.held.iter()
    }

    /// Adds the next frame, which joins with the newest.
    pub fn push(&mut self, held: Held) {
        if self.held.back().is_some_and(|newest| newest.seq + 1 != held.seq) {
            // Only a seeded bug leaves a hole; what is held stays contiguous either way.
            self.clear();
        }
        self.bytes += held.frame.len();
        self.held.push_back(held);
        self.is_at_rest = false;
    }

    /// Drops the oldest until within both bounds; gives how many bytes went.
    pub fn shrink(&mut self, frames_max: usize, bytes_max: usize) -> usize {
        let before = self.bytes;
        while self.held.len() > frames_max || (self.bytes > bytes_max && self.held.len() > 1) {
            if let Some(oldest) = self.held.pop_front() {
                self.bytes -= oldest.frame.len();
            }
        }
        before - self.bytes
    }

    /// Nothing happens in its channel: keeps what brings a session up to date that was away for a few messages, and gives how many
    /// bytes went. What is older is read from the stores.
    pub fn rest(&mut self, members: usize) -> usize {
        if std::mem::replace(&mut self.is_at_rest, true) {
            return 0;
        }
        let dropped = self.shrink(FRAMES_AT_REST, BYTES_AT_REST + members * MEMBER_BYTES_AT_REST);
        self.held.shrink_to_fit();
        for held in &mut self.held {
            // Else it holds on to all that was committed with it.
            held.frame = Bytes::copy_from_slice(&held.frame);
        }
        dropped
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }

    /// A message was recalled: it and its edits become stubs.
    pub fn recall(&mut self, target: u64) {
        if let Some(index) = self.index_of(target)
            && let Some(held) = self.held.get_mut(index)
        {
            let before = held.frame.len();
            held.take_back();
            self.bytes = self.bytes + held.frame.len() - before;
        }
        for held in &mut self.held {
            if held.kind == EntryKind::Edit && held.target == target {
                let before = held.frame.len();
                held.take_back();
                self.bytes = self.bytes + held.frame.len() - before;
            }
        }
    }

    /// Applies every recall that stands in the tail itself.
    pub fn apply_recalls(&mut self) {
        let targets: Vec<u64> =
            self.held.iter().filter(|held| held.kind == EntryKind::Recall).map(|held| held.target).collect();
        for target in targets {
            self.recall(target);
        }
    }

    /// Frames behind `position` up to that of `upto` side by side, within about `bytes_max` (at least one), with the seq of the last.
    pub fn gather(&self, position: u64, upto: u64, bytes_max: usize) -> Option<(Bytes, u64)> {
        let (mut bytes, mut last) = (Vec::new(), None);
        for held in self.behind(position).take_while(|held| held.seq <= upto) {
            if last.is_some() && bytes.len() + held.frame.len() > bytes_max {
                break;
            }
            bytes.extend_from_slice(&held.frame);
            last = Some(held.seq);
        }
        last.map(|last| (Bytes::from(bytes), last))
    }

    /// Bytes of the frames behind `position`.
    pub fn bytes_behind(&self, position: u64) -> usize {
        self.behind(position).map(|held| held.frame.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_proto::ChannelId;

    fn held(seq: u64, kind: EntryKind, target: u64) -> Held {
        let content = wire::entry::Content::Message(wire::Message {
            text: format!("body {seq}"),
            ..Default::default()
        });
        let entry =
            wire::Entry { message_id: seq, ordinal: seq, content: Some(content), ..Default::default() };
        let frame =
            fanfare_proto::frame::routed(FrameType::Deliver, class::MESSAGE, 2, 0, ChannelId(1), seq, &entry);
        Held {
            seq,
            ordinal: seq,
            message_id: MessageId(seq),
            kind,
            sender: UserId(1),
            target,
            frame,
            stub: false,
        }
    }

    #[test]
    fn covers_exactly_what_it_holds() {
        let mut tail = Tail::default();
        assert!(tail.covers(0, 0) && !tail.covers(0, 1));
        for seq in 5..10 {
            tail.push(held(seq, EntryKind::Message, 0));
        }
        assert!(tail.covers(4, 9) && !tail.covers(3, 9) && tail.covers(9, 9));
        assert_eq!(tail.behind(6).map(|held| held.seq).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(tail.behind(0).count(), 5);
        tail.shrink(2, usize::MAX);
        assert_eq!(tail.first(), Some(8));
        assert_eq!(tail.bytes(), tail.iter().map(|held| held.frame.len()).sum::<usize>());
    }

    #[test]
    fn at_rest_it_keeps_the_newest_frames() {
        let mut tail = Tail::default();
        for seq in 1..=100 {
            tail.push(held(seq, EntryKind::Message, 0));
        }
        let before = tail.bytes();
        let dropped = tail.rest(1);
        assert_eq!((tail.len(), tail.first(), before - dropped), (FRAMES_AT_REST, Some(37), tail.bytes()));
        assert!(tail.covers(36, 100) && !tail.covers(35, 100));
        assert_eq!(tail.rest(1), 0);
    }

    #[test]
    fn a_recall_leaves_no_body_of_the_message_or_its_edits() {
        let mut tail = Tail::default();
        tail.push(held(1, EntryKind::Message, 0));
        tail.push(held(2, EntryKind::Edit, 1));
        tail.push(held(3, EntryKind::Message, 0));
        tail.recall(1);
        let text =
            |seq: u64| tail.get(seq).is_some_and(|held| held.frame.windows(4).any(|word| word == b"body"));
        assert!(!text(1) && !text(2) && text(3));
        assert_eq!(tail.bytes(), tail.iter().map(|held| held.frame.len()).sum::<usize>());
        let whole = Frame::split_from(&mut tail.get(1).unwrap().frame.clone()).unwrap().unwrap();
        assert_eq!((whole.routed().unwrap().channel, whole.routed().unwrap().seq), (ChannelId(1), 1));
    }
}
