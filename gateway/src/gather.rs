//! Gathering: the frames of a channel that came in one pass of the lane are laid side by side once, behind room for a
//! WebSocket header, and every recipient's write shares that buffer.

use std::collections::VecDeque;

use bytes::Bytes;
use fanfare_proto::{
    header::{FrameType, Header, class},
    ids::ChannelId,
    limits::{FRAME_BYTES_MAX, GATHER_BYTES_MAX},
    link::Tiers,
    ws::SERVER_HEADER_BYTES_MAX,
};
use hashbrown::HashMap;

use crate::outgoing::{Chunk, Kind};

/// Frames of one channel for the same readers.
#[derive(Debug)]
struct Gather {
    buffer: Vec<u8>,
    tiers: Tiers,
    kind: Kind,
    entries: u64,
}

/// A buffer that is ready for its readers.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub chunk: Chunk,
    pub tiers: Tiers,
    /// DELIVER frames in it.
    pub entries: u64,
}

/// The channels with frames that no connection has been given yet.
#[derive(Debug, Default)]
pub(crate) struct Gathers {
    waiting: HashMap<ChannelId, Gather, foldhash::fast::RandomState>,
}

impl Gathers {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds the frames of one fan-out; what must go out before them, because it is full or for others, goes to `ready`.
    pub fn add(&mut self, channel: ChannelId, tiers: Tiers, frames: &Bytes, mut ready: impl FnMut(Gathered)) {
        let (kind, mut entries) = contents(frames);
        if let Some(gather) = self.waiting.get(&channel) {
            let fits = gather.buffer.len() + frames.len() <= GATHER_BYTES_MAX;
            if gather.tiers != tiers || gather.kind != kind || !fits {
                self.take(channel).into_iter().for_each(&mut ready);
            }
        }
        let mut rest = frames.clone();
        // A buffer is one WebSocket message. Only a fan-out that is longer than one has to be cut, between frames.
        while rest.len() > FRAME_BYTES_MAX {
            let size = whole_frames(&rest, FRAME_BYTES_MAX);
            let part = rest.split_to(size);
            let (_, of_part) = contents(&part);
            entries = entries.saturating_sub(of_part);
            ready(Gathered { chunk: Chunk::message(&part, kind, channel), tiers, entries: of_part });
        }
        let gather = self.waiting.entry(channel).or_insert_with(|| {
            let mut buffer = Vec::with_capacity(SERVER_HEADER_BYTES_MAX + rest.len());
            buffer.extend_from_slice(&[0; SERVER_HEADER_BYTES_MAX]);
            Gather { buffer, tiers, kind, entries: 0 }
        });
        gather.buffer.extend_from_slice(&rest);
        gather.entries += entries;
    }

    /// Takes what has been gathered for a channel.
    pub fn take(&mut self, channel: ChannelId) -> Option<Gathered> {
        self.waiting.remove(&channel).map(|gather| gather.seal(channel))
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<Gathered> {
        self.waiting.drain().map(|(channel, gather)| gather.seal(channel)).collect()
    }
}

impl Gather {
    fn seal(self, channel: ChannelId) -> Gathered {
        let chunk = Chunk::seal(self.buffer, self.kind, channel);
        Gathered { chunk, tiers: self.tiers, entries: self.entries }
    }
}

/// The first of what waits for the same readers, and with it what comes behind it, as far as it is entries and fits into one buffer.
pub(crate) fn join(waiting: &mut VecDeque<Gathered>) -> Option<Gathered> {
    let first = waiting.pop_front()?;
    let mut bytes = first.chunk.bytes.len();
    let fits = |next: &&Gathered| {
        bytes += next.chunk.bytes.len();
        bytes <= GATHER_BYTES_MAX && next.chunk.kind == Kind::Entries && next.tiers == first.tiers
    };
    let behind = waiting.iter().take_while(fits).count();
    if behind == 0 || first.chunk.kind != Kind::Entries {
        return Some(first);
    }
    let (channel, tiers, kind) = (first.chunk.channel, first.tiers, first.chunk.kind);
    let mut buffer = Vec::with_capacity(GATHER_BYTES_MAX);
    buffer.extend_from_slice(&[0; SERVER_HEADER_BYTES_MAX]);
    let mut entries = 0;
    for part in std::iter::once(first).chain(waiting.drain(..behind)) {
        buffer.extend_from_slice(&part.chunk.frames());
        entries += part.entries;
    }
    Some(Gathered { chunk: Chunk::seal(buffer, kind, channel), tiers, entries })
}

/// How many of the first bytes are whole frames within `most`; one frame at least, all where the bytes are no frames.
fn whole_frames(bytes: &[u8], most: usize) -> usize {
    let mut end = 0;
    while let Ok(Some(header)) = Header::parse(bytes.get(end..).unwrap_or_default()) {
        let next = end + header.frame_bytes();
        if next > bytes.len() || (next > most && end > 0) {
            break;
        }
        end = next;
    }
    if end == 0 { bytes.len() } else { end }
}

/// What a run of frames is, and how many of them are entries: only a run of nothing but heads and entries may collapse,
/// or of nothing but hints be dropped.
fn contents(frames: &[u8]) -> (Kind, u64) {
    let (mut at, mut entries) = (0, 0);
    let mut kind = None;
    while let Ok(Some(header)) = Header::parse(frames.get(at..).unwrap_or_default()) {
        let this = frame_kind(&header);
        kind = Some(if kind.is_none_or(|kind| kind == this) { this } else { Kind::Control });
        entries += u64::from(header.short().frame_type == FrameType::Deliver);
        at += header.frame_bytes();
    }
    (kind.unwrap_or(Kind::Control), entries)
}

/// What one frame is.
pub(crate) fn frame_kind(header: &Header) -> Kind {
    let short = header.short();
    match short.frame_type {
        _ if short.class & class::DROPPABLE != 0 => Kind::Hint,
        FrameType::Deliver | FrameType::Notify | FrameType::Gap => Kind::Entries,
        FrameType::Page => Kind::History,
        _ => Kind::Control,
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{frame, wire};

    use super::*;

    fn deliver(seq: u64, bytes: usize) -> Bytes {
        let message = wire::Message { text: "x".repeat(bytes), ..Default::default() };
        let body =
            wire::Entry { content: Some(wire::entry::Content::Message(message)), ..Default::default() };
        frame::routed(FrameType::Deliver, class::MESSAGE, 0, 0, ChannelId(1), seq, &body)
    }

    #[test]
    fn what_waits_is_joined_as_far_as_it_is_entries_and_fits() {
        let gathered = |frames: &Bytes| {
            let mut gathers = Gathers::default();
            gathers.add(ChannelId(1), Tiers::AT_ONCE, frames, |_| unreachable!("it fits"));
            gathers.take(ChannelId(1)).expect("added")
        };
        let frames: Vec<Bytes> = (1..=20).map(|seq| deliver(seq, 1_000)).collect();
        let mut waiting: VecDeque<Gathered> = frames.iter().map(gathered).collect();
        waiting.insert(3, gathered(&typing()));
        waiting.push_back(gathered(&typing()));
        let mut joined = Vec::new();
        while let Some(one) = join(&mut waiting) {
            assert!(one.chunk.bytes.len() <= GATHER_BYTES_MAX);
            joined.push(one);
        }
        let kinds: Vec<Kind> = joined.iter().map(|one| one.chunk.kind).collect();
        assert_eq!(kinds, [Kind::Entries, Kind::Hint, Kind::Entries, Kind::Entries, Kind::Hint]);
        assert_eq!(joined[0].entries, 3);
        assert_eq!(joined.iter().map(|one| one.entries).sum::<u64>(), 20);
        let entries = joined.iter().filter(|one| one.chunk.kind == Kind::Entries);
        let sent: Vec<u8> = entries.flat_map(|one| one.chunk.frames().to_vec()).collect();
        assert_eq!(sent, frames.concat());
    }

    fn typing() -> Bytes {
        frame::routed(FrameType::Typing, class::HINT, 0, 0, ChannelId(1), 0, &wire::Typing::default())
    }

    #[test]
    fn frames_of_a_pass_share_one_buffer_up_to_its_bound() {
        let mut gathers = Gathers::default();
        let mut ready = Vec::new();
        let frames: Vec<Bytes> = (1..=100).map(|seq| deliver(seq, 1_000)).collect();
        for frame in &frames {
            gathers.add(ChannelId(1), Tiers::ALL, frame, |gathered| ready.push(gathered));
        }
        ready.extend(gathers.drain());
        assert!(gathers.is_empty());
        assert!(ready.len() >= 6 && ready.len() <= 8);
        assert!(ready.iter().all(|gathered| gathered.chunk.bytes.len() <= GATHER_BYTES_MAX));
        let sent: Vec<u8> = ready.iter().flat_map(|gathered| gathered.chunk.frames().to_vec()).collect();
        assert_eq!(sent, frames.concat());
        assert_eq!(ready.iter().map(|gathered| gathered.entries).sum::<u64>(), 100);
    }

    #[test]
    fn hints_and_other_readers_are_kept_apart() {
        let mut gathers = Gathers::default();
        let mut ready = Vec::new();
        gathers.add(ChannelId(1), Tiers::ALL, &deliver(1, 10), |gathered| ready.push(gathered));
        gathers.add(ChannelId(1), Tiers::ALL, &typing(), |gathered| ready.push(gathered));
        gathers.add(ChannelId(1), Tiers(1), &typing(), |gathered| ready.push(gathered));
        ready.extend(gathers.take(ChannelId(1)));
        let kinds: Vec<Kind> = ready.iter().map(|gathered| gathered.chunk.kind).collect();
        assert_eq!(kinds, [Kind::Entries, Kind::Hint, Kind::Hint]);
        assert_eq!(ready[2].tiers, Tiers(1));
    }

    #[test]
    fn a_fanout_above_a_message_is_cut_between_frames() {
        let mut gathers = Gathers::default();
        let mut ready = Vec::new();
        let frames: Vec<Bytes> = (1..=20).map(|seq| deliver(seq, 10_000)).collect();
        gathers.add(ChannelId(1), Tiers::ALL, &frames.concat().into(), |gathered| ready.push(gathered));
        ready.extend(gathers.drain());
        assert!(ready.iter().all(|gathered| gathered.chunk.frames().len() <= FRAME_BYTES_MAX));
        let sent: Vec<u8> = ready.iter().flat_map(|gathered| gathered.chunk.frames().to_vec()).collect();
        assert_eq!(sent, frames.concat());
    }
}
