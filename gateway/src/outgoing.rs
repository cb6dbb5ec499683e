//! What waits for one connection: references to shared buffers, written by the lane's flush pass. Empty, it holds no heap.
//!
//! A slow reader loses in this order: hints (typing) are dropped; waiting entries of a channel become one NOTIFY that
//! names the newest head among them, so that the client fetches what it misses; then the connection is closed and can be
//! resumed. What is held for it at the most is the byte budget, one answer to a FETCH, and the one buffer that is half
//! written.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;
use fanfare_proto::{
    frame::{self, Frame},
    header::{FrameType, Header, class},
    ids::ChannelId,
    wire,
    ws::{Opcode, SERVER_HEADER_BYTES_MAX, server_header},
};

/// What a chunk is, when there is too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Answers and session control: kept.
    Control,
    /// DELIVER, NOTIFY and GAP of one channel: may become a NOTIFY.
    Entries,
    /// May be dropped.
    Hint,
    /// PAGE: outside of the byte budget, because a session has one FETCH answered at a time.
    History,
    /// A WebSocket control frame: no frames of ours in it.
    Raw,
}

/// Whole frames behind a WebSocket header.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// The WebSocket header, if it is there, and frames.
    pub bytes: Bytes,
    /// Length of the WebSocket header in front.
    pub lead: u8,
    /// What it is.
    pub kind: Kind,
    /// Of [`Kind::Entries`].
    pub channel: ChannelId,
}

impl Chunk {
    /// Puts a WebSocket header in front of frames that are for one connection.
    pub fn message(frames: &[u8], kind: Kind, channel: ChannelId) -> Self {
        let mut buffer = Vec::with_capacity(SERVER_HEADER_BYTES_MAX + frames.len());
        buffer.extend_from_slice(&[0; SERVER_HEADER_BYTES_MAX]);
        buffer.extend_from_slice(frames);
        Self::seal(buffer, kind, channel)
    }

    /// Makes a chunk of a buffer that has room for the longest header in front of its frames.
    pub fn seal(mut buffer: Vec<u8>, kind: Kind, channel: ChannelId) -> Self {
        let mut header = [0; SERVER_HEADER_BYTES_MAX];
        let lead = server_header(Opcode::Binary, buffer.len() - SERVER_HEADER_BYTES_MAX, &mut header);
        let start = SERVER_HEADER_BYTES_MAX - lead;
        buffer[start..SERVER_HEADER_BYTES_MAX].copy_from_slice(&header[..lead]);
        Self { bytes: Bytes::from(buffer).slice(start..), lead: lead as u8, kind, channel }
    }

    /// The frames alone.
    pub fn frames(&self) -> Bytes {
        self.bytes.slice(usize::from(self.lead)..)
    }
}

/// Chunks in their order. The first has its place here, so that one that is written at once costs no allocation.
#[derive(Debug, Default)]
struct Chunks {
    /// There while anything is.
    first: Option<Chunk>,
    rest: VecDeque<Chunk>,
}

impl Chunks {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.first.iter().chain(&self.rest)
    }

    fn push(&mut self, chunk: Chunk) {
        match &self.first {
            Some(_) => self.rest.push_back(chunk),
            None => self.first = Some(chunk),
        }
    }

    fn pop(&mut self) -> Option<Chunk> {
        let popped = std::mem::replace(&mut self.first, self.rest.pop_front());
        if self.rest.is_empty() {
            // Who keeps up holds no buffer.
            self.rest = VecDeque::new();
        }
        popped
    }

    /// Takes out all, or all but the first.
    fn split(&mut self, keeps_first: bool) -> VecDeque<Chunk> {
        let mut taken = std::mem::take(&mut self.rest);
        if !keeps_first && let Some(first) = self.first.take() {
            taken.push_front(first);
        }
        taken
    }
}

/// The chunks that wait for one stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: Chunks,
    /// Bytes of the first chunk that are written.
    written: u32,
    /// Bytes that wait, but for history.
    waiting: u32,
    /// Bytes of history that wait.
    history: u32,
    /// Since when the first chunk has been the first, in monotonic milliseconds; 0: nothing waits.
    since_ms: u64,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that count against the budget.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Bytes of history that wait.
    pub fn history(&self) -> u32 {
        self.history
    }

    /// Since when the first chunk has been the first, in monotonic milliseconds: how long the reader has taken nothing
    /// worth naming. A page over a thin link may take its time as long as it moves.
    pub fn since_ms(&self) -> Option<u64> {
        (self.since_ms != 0).then_some(self.since_ms)
    }

    pub fn push(&mut self, chunk: Chunk, now_ms: u64) {
        if self.chunks.is_empty() {
            self.since_ms = now_ms.max(1);
        }
        let bytes = chunk.bytes.len() as u32;
        *self.counter(chunk.kind) += bytes;
        self.chunks.push(chunk);
    }

    fn counter(&mut self, kind: Kind) -> &mut u32 {
        if kind == Kind::History { &mut self.history } else { &mut self.waiting }
    }

    /// Counts again after chunks went from the middle.
    fn recount(&mut self) {
        let bytes = |history: bool| {
            let chunks = self.chunks.iter().filter(|chunk| (chunk.kind == Kind::History) == history);
            chunks.map(|chunk| chunk.bytes.len() as u32).sum()
        };
        (self.waiting, self.history) = (bytes(false), bytes(true));
        if self.chunks.is_empty() {
            self.since_ms = 0;
        }
    }

    /// What to write next, WebSocket headers included, where it is one chunk.
    pub fn single(&self) -> Option<&[u8]> {
        let first = self.chunks.first.as_ref().filter(|_| self.chunks.rest.is_empty())?;
        first.bytes.get(self.written as usize..)
    }

    /// Copies what to write next side by side, where all of it fits. Says how many bytes.
    pub fn join(&self, joined: &mut [u8]) -> Option<usize> {
        let bytes = (self.waiting + self.history) as usize - self.written as usize;
        let mut rest = joined.get_mut(..bytes)?;
        let mut skip = self.written as usize;
        for chunk in self.chunks.iter() {
            let from = &chunk.bytes[skip..];
            skip = 0;
            let (to, behind) = rest.split_at_mut_checked(from.len())?;
            to.copy_from_slice(from);
            rest = behind;
        }
        rest.is_empty().then_some(bytes)
    }

    /// What to write next, WebSocket headers included: fills `slices` and says how many.
    pub fn slices<'q>(&'q self, slices: &mut [IoSlice<'q>]) -> usize {
        let mut skip = self.written as usize;
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(self.chunks.iter()) {
            *slice = IoSlice::new(&chunk.bytes[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    /// What to write next on a stream that needs no WebSocket headers: fills `slices` and says how many.
    pub fn frames(&self, slices: &mut [Bytes]) -> usize {
        let mut skip = self.written as usize;
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(self.chunks.iter()) {
            *slice = chunk.bytes.slice(skip.max(usize::from(chunk.lead))..);
            skip = 0;
            count += 1;
        }
        count
    }

    /// So many bytes of [`Queue::slices`] were written.
    pub fn advance(&mut self, mut bytes: usize, now_ms: u64) {
        while let Some(chunk) = &self.chunks.first {
            let left = chunk.bytes.len() - self.written as usize;
            if bytes < left {
                self.written += bytes as u32;
                return;
            }
            bytes -= left;
            self.pop(now_ms);
        }
    }

    /// So many bytes of [`Queue::frames`] were written.
    pub fn advance_frames(&mut self, mut bytes: usize, now_ms: u64) {
        while let Some(chunk) = &self.chunks.first {
            self.written = self.written.max(u32::from(chunk.lead));
            let left = chunk.bytes.len() - self.written as usize;
            if bytes < left {
                self.written += bytes as u32;
                return;
            }
            bytes -= left;
            self.pop(now_ms);
        }
    }

    fn pop(&mut self, now_ms: u64) {
        self.written = 0;
        self.since_ms = now_ms.max(1);
        let Some(chunk) = self.chunks.pop() else { return };
        let bytes = chunk.bytes.len() as u32;
        *self.counter(chunk.kind) -= bytes;
        if self.chunks.is_empty() {
            self.recount();
        }
    }

    /// Forgets everything but a chunk that is half written.
    pub fn clear(&mut self) {
        self.chunks.split(self.written > 0);
        self.recount();
    }

    /// Drops the hints. Says how many bytes went.
    pub fn drop_hints(&mut self) -> u32 {
        let before = self.waiting;
        for chunk in self.chunks.split(self.written > 0) {
            if chunk.kind != Kind::Hint {
                self.chunks.push(chunk);
            }
        }
        self.recount();
        before - self.waiting
    }

    /// Makes of each channel's waiting entries one NOTIFY with the newest head, at the place of the last of them. Says
    /// how many bytes went.
    pub fn collapse(&mut self) -> u32 {
        let before = self.waiting;
        let mut newest: Vec<(ChannelId, Option<wire::Head>)> = Vec::new();
        // Backwards: the first met is the channel's last.
        let mut kept = VecDeque::new();
        for chunk in self.chunks.split(self.written > 0).into_iter().rev() {
            if chunk.kind != Kind::Entries {
                kept.push_front(chunk);
                continue;
            }
            match newest.iter_mut().find(|(channel, _)| *channel == chunk.channel) {
                Some((_, head)) => merge(head, newest_head(&chunk)),
                None => {
                    newest.push((chunk.channel, newest_head(&chunk)));
                    kept.push_front(Chunk { bytes: Bytes::new(), lead: 0, ..chunk });
                }
            }
        }
        for mut chunk in kept {
            if chunk.kind == Kind::Entries {
                let head = newest.iter().find(|(channel, _)| *channel == chunk.channel);
                let Some((channel, Some(head))) = head else { continue };
                let notify =
                    frame::routed(FrameType::Notify, class::STATE, 0, head.epoch, *channel, head.head, head);
                chunk = Chunk::message(&notify, Kind::Entries, *channel);
            }
            self.chunks.push(chunk);
        }
        self.recount();
        before - self.waiting.min(before)
    }
}

/// The head that the last frame of a chunk names.
fn newest_head(chunk: &Chunk) -> Option<wire::Head> {
    let frames = chunk.frames();
    let (mut at, mut last) = (0, 0);
    while at < frames.len() {
        let Ok(Some(header)) = Header::parse(&frames[at..]) else { break };
        last = at;
        at += header.frame_bytes();
    }
    let frame = Frame::split_from(&mut frames.slice(last..)).ok()??;
    let seq = frame.routed()?.seq;
    match frame.frame_type() {
        FrameType::Deliver => {
            let entry: wire::Entry = frame.decode().ok()?;
            Some(wire::Head { epoch: entry.epoch, head: seq, ordinal: entry.ordinal, ..Default::default() })
        }
        FrameType::Notify | FrameType::Gap => {
            let head: wire::Head = frame.decode().ok()?;
            Some(wire::Head { after: 0, ..head })
        }
        _ => None,
    }
}

/// Takes over from an older chunk what the newer does not say: where the epoch began.
fn merge(newer: &mut Option<wire::Head>, older: Option<wire::Head>) {
    let Some(older) = older else { return };
    match newer {
        Some(newer) => {
            if newer.epoch_start == 0 && newer.epoch == older.epoch {
                newer.epoch_start = older.epoch_start;
            }
            if (older.epoch, older.head) > (newer.epoch, newer.head) {
                *newer = older;
            }
        }
        None => *newer = Some(older),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(channel: u64, seq: u64, bytes: usize) -> Chunk {
        let message = wire::Message { text: "x".repeat(bytes), ..Default::default() };
        let content = Some(wire::entry::Content::Message(message));
        let body = wire::Entry { epoch: 2, ordinal: seq - 1, content, ..Default::default() };
        let frame = frame::routed(FrameType::Deliver, class::MESSAGE, 0, 2, ChannelId(channel), seq, &body);
        Chunk::message(&frame, Kind::Entries, ChannelId(channel))
    }

    fn control(fill: u8) -> Chunk {
        Chunk::message(&[fill; 20], Kind::Control, ChannelId(0))
    }

    fn drain(queue: &mut Queue, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = queue.slices(&mut slices);
            let mut bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            bytes.truncate(step);
            out.extend_from_slice(&bytes);
            queue.advance(bytes.len(), 5);
        }
        out
    }

    #[test]
    fn bytes_leave_in_order_however_they_are_cut() {
        let chunks = [entry(1, 1, 300), control(7), entry(2, 1, 70_000 / 2), control(8)];
        let expected: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
        let frames: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.frames().to_vec()).collect();
        for step in [13, 1_000, usize::MAX] {
            let mut queue = Queue::default();
            chunks.iter().for_each(|chunk| queue.push(chunk.clone(), 5));
            assert_eq!(drain(&mut queue, step), expected);
            assert_eq!((queue.waiting(), queue.since_ms()), (0, None));
            chunks.iter().for_each(|chunk| queue.push(chunk.clone(), 5));
            let mut out = Vec::new();
            while !queue.is_empty() {
                let mut slices = [const { Bytes::new() }; 3];
                let count = queue.frames(&mut slices);
                let mut bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                bytes.truncate(step);
                out.extend_from_slice(&bytes);
                queue.advance_frames(bytes.len(), 5);
            }
            assert_eq!(out, frames);
            chunks.iter().for_each(|chunk| queue.push(chunk.clone(), 5));
            let (mut out, mut joined) = (Vec::new(), vec![0; 64 * 1024]);
            assert_eq!(queue.join(&mut joined[..100]), None);
            while let Some(bytes) = queue.join(&mut joined).filter(|bytes| *bytes > 0) {
                let taken = bytes.min(step);
                out.extend_from_slice(&joined[..taken]);
                queue.advance(taken, 5);
            }
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn an_idle_queue_holds_no_heap() {
        let mut queue = Queue::default();
        queue.push(control(1), 1);
        drain(&mut queue, usize::MAX);
        assert_eq!(queue.chunks.rest.capacity(), 0);
    }

    #[test]
    fn entries_collapse_to_the_newest_head_and_nothing_else_moves() {
        let mut queue = Queue::default();
        for chunk in [entry(1, 5, 100), control(7), entry(2, 9, 100), entry(1, 6, 100), control(8)] {
            queue.push(chunk, 1);
        }
        // The first is half written: it must stay whole.
        queue.advance(3, 1);
        queue.push(entry(1, 7, 100), 2);
        queue.push(Chunk { kind: Kind::Hint, ..control(9) }, 2);
        assert_eq!(queue.drop_hints(), 22);
        assert!(queue.collapse() > 0);
        let rest = drain(&mut queue, usize::MAX);
        let expected = entry(1, 5, 100);
        assert_eq!(rest[..expected.bytes.len() - 3], expected.bytes[3..]);
        let mut rest = &rest[expected.bytes.len() - 3..];
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(rest[1]);
            let bytes = Bytes::copy_from_slice(&rest[2..2 + length]);
            rest = &rest[2 + length..];
            match Frame::split_from(&mut bytes.clone()) {
                Ok(Some(frame)) if frame.frame_type() == FrameType::Notify => {
                    let head: wire::Head = frame.decode().unwrap();
                    let routed = frame.routed().unwrap();
                    assert_eq!((head.head, head.epoch, head.ordinal), (routed.seq, 2, routed.seq - 1));
                    seen.push((routed.channel.0, routed.seq));
                }
                _ => seen.push((0, u64::from(bytes[0]))),
            }
        }
        assert_eq!(seen, [(0, 7), (2, 9), (0, 8), (1, 7)]);
    }
}
