//! FETCH: a range of history as PAGE frames, from the tail where it holds the range, else from the stores.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, FrameType, MessageId, UserId,
    frame::routed,
    header::class,
    limits::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, PAGE_BYTES_MAX},
    wire::{self, SeqRange},
};
use fanfare_storage::{
    StoreError,
    content::Content,
    hash,
    metadata::Metadata,
    model::{Entry, EntryKind},
    mutant,
};

use crate::{
    members::Visible,
    meter,
    tail::{Held, Tail, stub},
};

/// Entries (not only messages) that one FETCH may look at.
const ENTRIES_PER_FETCH_MAX: usize = 4_096;
/// Entries read from the content store at once.
const ENTRIES_PER_READ: usize = 256;
/// Amendments of one FETCH's messages that are looked at.
const AMENDMENTS_MAX: usize = 20_000;
/// Bytes of a PAGE beside its frames and amendments: header, ranges, numbers.
const PAGE_OVERHEAD_BYTES: usize = 512;
/// Emojis that a page counts for one message.
const EMOJIS_MAX: usize = 64;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct PageAsk {
    /// The channel.
    pub channel: ChannelId,
    /// Its epoch.
    pub epoch: u32,
    /// Its head.
    pub head: u64,
    /// Seqs above this,
    pub after: u64,
    /// below this (never 0 here),
    pub before: u64,
    /// and older than this, Unix milliseconds, where not 0.
    pub before_ms: u64,
    /// Messages, at most.
    pub messages_max: u32,
    /// What the reader may see.
    pub visible: Visible,
    /// Whose reactions are `mine`.
    pub reader: UserId,
}

impl PageAsk {
    /// From a FETCH, clamped to the channel.
    pub fn new(
        fetch: &wire::Fetch,
        channel: ChannelId,
        (epoch, head): (u32, u64),
        visible: Visible,
        reader: UserId,
    ) -> Self {
        let before = if fetch.before == 0 { head + 1 } else { fetch.before.min(head + 1) };
        let visible = if mutant::is("page-ignores-visible-ranges") {
            smallvec::smallvec![(1, u64::MAX)]
        } else {
            visible
        };
        Self {
            channel,
            epoch,
            head,
            after: fetch.after,
            before,
            before_ms: fetch.before_ms,
            messages_max: fetch.messages_max.clamp(1, FETCH_MESSAGES_MAX),
            visible,
            reader,
        }
    }
}

/// What the owner has in memory of a channel, for a reader.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The epoch.
    pub epoch: u32,
    /// The head.
    pub head: u64,
    /// The newest frames.
    pub tail: Tail,
    /// What is not drained, in seq order.
    pub undrained: Vec<Arc<Entry>>,
}

/// One walked place, newest first.
enum Walked {
    Frame(Held),
    Corrupt(u64),
}

#[derive(Default)]
struct Walk {
    /// Newest first.
    places: Vec<Walked>,
    hidden: Vec<SeqRange>,
    /// The lowest seq covered; `before` where nothing was.
    low: u64,
    complete: bool,
}

/// Amendments by target and seq.
type Amendments = BTreeMap<u64, BTreeMap<u64, Held>>;

/// The answer from the tail alone; `None` where it does not reach far enough.
pub fn from_tail(ask: &PageAsk, tail: &Tail) -> Option<Vec<wire::Page>> {
    let first = tail.first()?;
    if ask.before_ms != 0 {
        return None;
    }
    let walk = walk(ask, |low, high| {
        // A read below the tail's first frame is what the tail cannot answer.
        if low >= first || high < first {
            (low >= first).then(|| {
                (low..=high).rev().filter_map(|seq| tail.get(seq).cloned()).map(Walked::Frame).collect()
            })
        } else {
            Some((first..=high).rev().filter_map(|seq| tail.get(seq).cloned()).map(Walked::Frame).collect())
        }
    })?;
    let mut amendments = Amendments::new();
    for held in tail.iter().filter(|held| held.target > 0) {
        amendments.entry(held.target).or_default().insert(held.seq, held.clone());
    }
    Some(pages(ask, walk, &amendments))
}

/// The answer from the stores, with what the owner has in memory.
///
/// # Errors
/// Those of the stores' reads.
pub fn from_stores(
    ask: &PageAsk,
    memory: &Snapshot,
    metadata: &dyn Metadata,
    content: &dyn Content,
) -> Result<Vec<wire::Page>, StoreError> {
    let mut ask = ask.clone();
    let reader = Reader { channel: ask.channel, memory, metadata, content };
    if ask.before_ms != 0 {
        ask.before = ask.before.min(reader.first_at(ask.before_ms, ask.head)?);
    }
    let mut failed = None;
    let walk = walk(&ask, |low, high| match reader.read(low, high) {
        Ok(places) => Some(places),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let walk = walk.unwrap_or_default();
    let amendments = reader.amendments(&walk)?;
    Ok(pages(&ask, walk, &amendments))
}

/// Walks from the newest asked seq downwards over what the reader may see. `read(low, high)` gives the places of the range newest
/// first, from `high` on without a hole (not necessarily down to `low`); `None` ends the walk without an answer.
fn walk(ask: &PageAsk, mut read: impl FnMut(u64, u64) -> Option<Vec<Walked>>) -> Option<Walk> {
    let mut walk = Walk { low: ask.before, ..Default::default() };
    let (mut messages, mut bytes) = (0, 0);
    let mut next = ask.before.saturating_sub(1).min(ask.head);
    if next < walk.low.saturating_sub(1) {
        walk.low = next + 1;
    }
    while next > ask.after {
        // The visible stretch that holds `next`, or the hidden one.
        let Some((first, _)) =
            ask.visible.iter().rev().find(|(first, last)| *first <= next && next <= *last).copied()
        else {
            let below = ask.visible.iter().rev().find(|(_, last)| *last < next).map_or(0, |(_, last)| *last);
            let below = below.max(ask.after);
            walk.hidden.push(SeqRange { first: below + 1, last: next });
            walk.low = below + 1;
            next = below;
            continue;
        };
        let low = first.max(ask.after + 1).max((next + 1).saturating_sub(ENTRIES_PER_READ as u64));
        let places = read(low, next)?;
        if places.is_empty() {
            return None;
        }
        for place in places {
            if messages >= ask.messages_max
                || walk.places.len() >= ENTRIES_PER_FETCH_MAX
                || bytes >= FETCH_BYTES_MAX - 2 * PAGE_BYTES_MAX
            {
                return Some(walk);
            }
            if let Walked::Frame(held) = &place {
                messages += u32::from(held.kind == EntryKind::Message);
                bytes += held.frame.len();
            }
            walk.places.push(place);
            walk.low = next;
            next -= 1;
        }
    }
    walk.complete = true;
    Some(walk)
}

struct Reader<'a> {
    channel: ChannelId,
    memory: &'a Snapshot,
    metadata: &'a dyn Metadata,
    content: &'a dyn Content,
}

impl Reader<'_> {
    fn remembered(&self, seq: u64) -> Option<Held> {
        // What is not drained comes first: the tail may hold a stub where the page needs to know whose it was.
        if let Some(held) = self.memory.tail.get(seq) {
            return Some(held.clone());
        }
        let index = self.memory.undrained.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        self.memory.undrained.get(index).map(|entry| Held::of(entry))
    }

    fn read(&self, low: u64, high: u64) -> Result<Vec<Walked>, StoreError> {
        let mut places: Vec<Walked> = Vec::new();
        let mut seq = high;
        while seq >= low {
            let Some(held) = self.remembered(seq) else { break };
            places.push(Walked::Frame(held));
            seq -= 1;
        }
        if !places.is_empty() || seq < low {
            return Ok(places);
        }
        let stored = self.content.range(self.channel, low, seq, ENTRIES_PER_READ, PAGE_BYTES_MAX * 4)?;
        let lowest = stored.last().map_or(low, |stored| stored.seq);
        let by_seq: HashMap<u64, Bytes> = stored.into_iter().map(|one| (one.seq, one.frame)).collect();
        let parsed: Vec<(u64, Option<Held>)> = (lowest..=seq)
            .rev()
            .map(|seq| {
                let held = by_seq.get(&seq).and_then(Held::of_stored).map(|(held, _)| held);
                (seq, held.filter(|held| held.seq == seq))
            })
            .collect();
        let sound = self.sound(parsed.iter().filter_map(|(_, held)| held.as_ref()))?;
        for (seq, held) in parsed {
            match held.filter(|held| sound.contains(&held.message_id)).or_else(|| self.remembered(seq)) {
                Some(held) => places.push(Walked::Frame(held)),
                None => {
                    meter::corrupt();
                    tracing::error!(channel = %self.channel, seq, "a stored frame is missing or does not match its hash");
                    places.push(Walked::Corrupt(seq));
                }
            }
        }
        Ok(places)
    }

    /// Ids of those whose stored frame matches its hash in metadata.
    fn sound<'h>(&self, all: impl Iterator<Item = &'h Held>) -> Result<BTreeSet<MessageId>, StoreError> {
        let all: Vec<&Held> = all.collect();
        let ids: Vec<MessageId> = all.iter().map(|held| held.message_id).collect();
        let hashes = self.metadata.hashes(&ids)?;
        let is_sound = |held: &&&Held| {
            mutant::is("hash-not-checked")
                || hashes.get(&held.message_id).is_some_and(|(channel, seq, stored)| {
                    (*channel, *seq) == (self.channel, held.seq) && *stored == hash::frame(&held.frame)
                })
        };
        Ok(all.iter().filter(is_sound).map(|held| held.message_id).collect())
    }

    /// The first seq whose time is not before `ms`: seqs are in the order of time.
    fn first_at(&self, ms: u64, head: u64) -> Result<u64, StoreError> {
        let (mut low, mut high) = (1, head + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let time = match self.remembered(middle) {
                Some(held) => Some(held.message_id.time_ms()),
                None => self
                    .content
                    .range(self.channel, middle, middle, 1, PAGE_BYTES_MAX)?
                    .first()
                    .and_then(|stored| Held::of_stored(&stored.frame))
                    .map(|(held, _)| held.message_id.time_ms()),
            };
            // A place that cannot be read is taken for new: the search ends at or below it.
            if time.is_some_and(|time| time < ms) { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// What amends the walked messages, and whether the targets of walked edits were recalled.
    fn amendments(&self, walk: &Walk) -> Result<Amendments, StoreError> {
        let mut wanted: BTreeSet<u64> = BTreeSet::new();
        for place in &walk.places {
            if let Walked::Frame(held) = place {
                match held.kind {
                    EntryKind::Message => drop(wanted.insert(held.seq)),
                    EntryKind::Edit => drop(wanted.insert(held.target)),
                    _ => {}
                }
            }
        }
        let mut found = Amendments::new();
        let (Some(first), Some(last)) = (wanted.first().copied(), wanted.last().copied()) else {
            return Ok(found);
        };
        let walked_first = walk.low.max(first);
        let mut stored = self.content.amendments(self.channel, walked_first, last, AMENDMENTS_MAX)?;
        for target in wanted.range(..walked_first) {
            stored.extend(self.content.amendments(self.channel, *target, *target, AMENDMENTS_MAX)?);
        }
        if stored.len() >= AMENDMENTS_MAX {
            // Cut off. A recall is the newest amendment of its message, and no body of a recalled one is given.
            for target in &wanted {
                stored.extend(self.content.newest_amendment(self.channel, *target)?);
            }
        }
        let held: Vec<Held> = stored
            .iter()
            .filter(|one| wanted.contains(&one.target))
            .filter_map(|one| Held::of_stored(&one.frame).map(|(held, _)| held))
            .collect();
        let sound = self.sound(held.iter())?;
        let in_memory = self.memory.undrained.iter().map(|entry| Held::of(entry));
        let in_tail = self.memory.tail.iter().cloned();
        for held in
            held.into_iter().filter(|held| sound.contains(&held.message_id)).chain(in_memory).chain(in_tail)
        {
            if held.target > 0 && wanted.contains(&held.target) {
                found.entry(held.target).or_default().insert(held.seq, held);
            }
        }
        Ok(found)
    }
}

/// What one message's amendments come to.
fn sum_up(target: u64, amendments: &BTreeMap<u64, Held>, reader: UserId) -> Option<wire::Amendment> {
    let mut newest: Option<&Held> = None;
    let mut reactions: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for held in amendments.values() {
        match held.kind {
            EntryKind::Edit | EntryKind::Recall => newest = Some(held),
            EntryKind::Reaction => {
                let Some((_, entry)) = Held::of_stored(&held.frame) else { continue };
                let Some(wire::entry::Content::Reaction(reaction)) = entry.content else { continue };
                let users = reactions.entry(reaction.emoji).or_default();
                if reaction.remove {
                    users.remove(&entry.sender);
                } else {
                    users.insert(entry.sender);
                }
            }
            _ => {}
        }
    }
    let is_recalled = newest.is_some_and(|held| held.kind == EntryKind::Recall);
    let reactions: Vec<wire::ReactionCount> = reactions
        .into_iter()
        .filter(|(_, users)| !users.is_empty() && !is_recalled)
        .take(EMOJIS_MAX)
        .map(|(emoji, users)| wire::ReactionCount {
            emoji,
            count: users.len() as u32,
            mine: users.contains(&reader.0),
        })
        .collect();
    let frame = newest.map_or_else(Bytes::new, |held| held.frame.clone());
    (!frame.is_empty() || !reactions.is_empty()).then_some(wire::Amendment { target, frame, reactions })
}

fn is_recalled(target: u64, amendments: &Amendments) -> bool {
    amendments.get(&target).is_some_and(|of| of.values().any(|held| held.kind == EntryKind::Recall))
}

struct Building {
    /// Newest first.
    frames: Vec<Bytes>,
    amendments: Vec<wire::Amendment>,
    corrupt: Vec<SeqRange>,
    bytes: usize,
    low: u64,
}

/// Cuts the walked places into pages of at most 64 KiB, newest first.
fn pages(ask: &PageAsk, walk: Walk, amendments: &Amendments) -> Vec<wire::Page> {
    let mut pages: Vec<wire::Page> = Vec::new();
    let mut high = ask.before.saturating_sub(1).min(ask.head);
    let new = |high: u64| Building {
        frames: Vec::new(),
        amendments: Vec::new(),
        corrupt: Vec::new(),
        bytes: PAGE_OVERHEAD_BYTES,
        low: high + 1,
    };
    let mut building = new(high);
    let mut total = 0;
    let mut cut = false;
    let close = |building: Building, high: u64| {
        let mut frames = Vec::with_capacity(building.bytes);
        for frame in building.frames.iter().rev() {
            frames.extend_from_slice(frame);
        }
        let mut amendments = building.amendments;
        amendments.reverse();
        let mut corrupt = building.corrupt;
        corrupt.reverse();
        let (first, last) = (building.low, high);
        let hidden = walk
            .hidden
            .iter()
            .filter(|range| range.first <= last && range.last >= first)
            .map(|range| SeqRange { first: range.first.max(first), last: range.last.min(last) })
            .rev()
            .collect();
        wire::Page {
            first,
            last,
            more: true,
            complete: false,
            hidden,
            frames: frames.into(),
            amendments,
            head: ask.head,
            corrupt,
        }
    };
    for place in &walk.places {
        let (seq, frame, amendment) = match place {
            Walked::Corrupt(seq) => (*seq, None, None),
            Walked::Frame(held) => {
                let recalled = held.stub
                    || is_recalled(held.seq, amendments)
                    || (held.kind == EntryKind::Edit && is_recalled(held.target, amendments));
                let frame = if recalled && !held.stub { stub(&held.frame) } else { Some(held.frame.clone()) };
                let amendment = (held.kind == EntryKind::Message)
                    .then(|| amendments.get(&held.seq))
                    .flatten()
                    .and_then(|of| sum_up(held.seq, of, ask.reader));
                (held.seq, frame, amendment)
            }
        };
        let amendment_bytes = amendment.as_ref().map_or(0, |amendment| {
            64 + amendment.frame.len()
                + amendment.reactions.iter().map(|reaction| reaction.emoji.len() + 24).sum::<usize>()
        });
        let bytes = frame.as_ref().map_or(24, Bytes::len) + amendment_bytes;
        if building.bytes + bytes > PAGE_BYTES_MAX && building.low <= high {
            total += building.bytes;
            if total + PAGE_BYTES_MAX > FETCH_BYTES_MAX {
                cut = true;
                break;
            }
            let low = building.low;
            pages.push(close(std::mem::replace(&mut building, new(low - 1)), high));
            high = low - 1;
        }
        building.bytes += bytes;
        building.low = seq;
        building.amendments.extend(amendment);
        match frame {
            Some(frame) => building.frames.push(frame),
            None => match building.corrupt.last_mut() {
                Some(range) if range.first == seq + 1 => range.first = seq,
                _ => building.corrupt.push(SeqRange { first: seq, last: seq }),
            },
        }
    }
    if !cut {
        // Hidden stretches below the oldest frame are covered too.
        building.low = walk.low.min(building.low);
    }
    pages.push(close(building, high));
    if let Some(last) = pages.last_mut() {
        last.more = false;
        last.complete = walk.complete && !cut;
        if last.complete {
            last.first = (ask.after + 1).min(last.first);
        }
    }
    pages
}

/// PAGE frames.
pub fn frames(ask: &PageAsk, request: u64, pages: &[wire::Page]) -> Vec<Bytes> {
    pages
        .iter()
        .map(|page| routed(FrameType::Page, class::HISTORY, 0, ask.epoch, ask.channel, request, page))
        .collect()
}
