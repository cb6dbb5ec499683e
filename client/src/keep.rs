//! What stands between a client and its [`Store`]: what was seen is gathered and written a few times a second, what was sent at once;
//! and what is held is read back while there is no connection.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Frame, Seq, UserId, frame,
    header::{FrameType, class, flags},
    session::client::ChannelLog,
    wire::{self, entry::Content},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    event::{Amendment, Entry, History},
    store::{Changes, Installation, MemoryStore, Saved, SavedSend, Store, StoreError},
};

/// From the first change to its write.
const WRITE_AFTER: Duration = Duration::from_millis(250);
/// After a write that failed.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Entries that wait before they are written early.
const WAITING_ENTRIES: usize = 512;
/// Entries that wait for a store that fails, before nothing more that was seen is kept.
const WAITING_ENTRIES_MAX: usize = 8_192;

/// Settled sends that wait for a store that fails.
const SETTLED_MAX: usize = 8_192;

/// The store and what waits for it.
pub(crate) struct Keeper {
    inner: Mutex<Inner>,
    lasts: bool,
}

struct Inner {
    store: Box<dyn Store>,
    waiting: Changes,
    due: Option<Instant>,
    user: UserId,
    next_place: u64,
    /// The store failed for long: what it holds of channels stays as it is, and true; whoever opens it next fetches the rest again.
    stopped: bool,
    /// The last write failed.
    failed: bool,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("lasts", &self.lasts).finish_non_exhaustive()
    }
}

impl Keeper {
    pub fn open(mut store: Box<dyn Store>) -> Result<(Self, Saved), StoreError> {
        let saved = store.load()?;
        let lasts = store.lasts();
        let inner = Inner {
            store,
            waiting: Changes::default(),
            due: None,
            user: saved.installation.user,
            next_place: saved.sends.last().map_or(1, |send| send.place + 1),
            stopped: false,
            failed: false,
        };
        Ok((Self { inner: Mutex::new(inner), lasts }, saved))
    }

    /// For a client whose store cannot be opened.
    pub fn empty() -> (Self, Saved) {
        let inner = Inner {
            store: Box::new(MemoryStore::default()),
            waiting: Changes::default(),
            due: None,
            user: UserId(0),
            next_place: 1,
            stopped: false,
            failed: false,
        };
        (Self { inner: Mutex::new(inner), lasts: false }, Saved::default())
    }

    /// Whose it is, once that is known.
    pub fn user(&self) -> Option<UserId> {
        Some(self.inner.lock().user).filter(|user| user.0 != 0)
    }

    /// Whether the store outlives the process.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// Writes a send down and hands its place on, one send after the other, so that the queue has one order everywhere. What
    /// `hand_on` refuses is taken back.
    pub fn queue<E>(
        &self,
        channel: ChannelId,
        send: wire::Send,
        hand_on: impl FnOnce(u64, wire::Send) -> Result<(), E>,
    ) -> Result<Result<(), E>, StoreError> {
        let mut inner = self.inner.lock();
        let place = inner.next_place;
        inner.next_place += 1;
        let mut saved = SavedSend { place, channel, send };
        if self.lasts {
            inner.waiting.sends.push(saved.clone());
            // A write that failed may have reached the disk all the same: what was not queued is not to come back.
            inner.write().inspect_err(|_| inner.settle(place))?;
        }
        let outcome = hand_on(place, std::mem::take(&mut saved.send));
        if outcome.is_err() && self.lasts {
            inner.settle(place);
            let _ = inner.write();
        }
        Ok(outcome)
    }

    /// Writes attempts down before they are made.
    pub fn attempt(&self, sends: Vec<SavedSend>) -> Result<(), StoreError> {
        if !self.lasts {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        let places: Vec<u64> = sends.iter().map(|send| send.place).collect();
        inner.waiting.sends.extend(sends);
        inner.write().inspect_err(|_| places.iter().for_each(|place| inner.forget(*place)))
    }

    /// A send's end is known. Written with what is written next: a repeat finds that it is committed.
    pub fn settled(&self, place: u64) {
        if self.lasts {
            self.inner.lock().settle(place);
        }
    }

    /// As [`Self::settled`], written at once.
    pub fn aborted(&self, place: u64) {
        if self.lasts {
            let mut inner = self.inner.lock();
            inner.settle(place);
            // It is written with the next write, should this one fail.
            let _ = inner.write();
        }
    }

    /// DELIVER frames that came.
    pub fn frames(&self, frames: impl IntoIterator<Item = (Frame, Option<Seq>)>) {
        let mut inner = self.inner.lock();
        if inner.stopped {
            return;
        }
        for (frame, recalls) in frames {
            let Some(routed) = frame.routed().copied() else { continue };
            inner.waiting.entries.insert((routed.channel, routed.seq), frame.bytes);
            if let Some(target) = recalls {
                inner.recall(routed.channel, target);
            }
        }
        inner.changed();
    }

    /// What is held of a channel, once everything in it was told.
    pub fn log(&self, channel: ChannelId, log: &ChannelLog) {
        let mut inner = self.inner.lock();
        if !inner.stopped {
            inner.waiting.logs.insert(channel, log.clone());
            inner.changed();
        }
    }

    /// Entries from that seq up are void.
    pub fn rewound(&self, channel: ChannelId, from: Seq) {
        let mut inner = self.inner.lock();
        inner.waiting.entries.retain(|(of, seq), _| *of != channel || *seq < from);
        inner.waiting.rewound.push((channel, from));
        inner.changed();
    }

    /// A channel as it stands, or that it was left.
    pub fn channel(&self, channel: ChannelId, state: Option<Arc<wire::ChannelState>>) {
        let mut inner = self.inner.lock();
        if state.is_none() {
            inner.waiting.entries.retain(|(of, _), _| *of != channel);
            inner.waiting.logs.remove(&channel);
            inner.waiting.reads.remove(&channel);
        }
        inner.waiting.channels.insert(channel, state);
        inner.changed();
    }

    /// How far the user has read; `None`: the server knows.
    pub fn read(&self, channel: ChannelId, read: Option<(Seq, u64)>) {
        let mut inner = self.inner.lock();
        inner.waiting.reads.insert(channel, read);
        inner.changed();
    }

    pub fn installation(&self, installation: Installation) {
        let mut inner = self.inner.lock();
        inner.user = installation.user;
        inner.waiting.installation = Some(installation);
        inner.changed();
    }

    /// When [`Self::write_due`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.lock().due
    }

    /// Writes what is due.
    pub fn write_due(&self) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        let early = inner.waiting.entries.len() >= WAITING_ENTRIES && !inner.failed;
        if inner.due.is_some_and(|due| due <= Instant::now() || early) { inner.write() } else { Ok(()) }
    }

    /// Writes what waits.
    pub fn write(&self) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        if inner.due.is_some() { inner.write() } else { Ok(()) }
    }

    /// Messages below `before` (0: from the newest held), as far down as is held without a hole; `None` where that is nothing.
    pub fn history(
        &self,
        channel: ChannelId,
        before: Seq,
        limit: u32,
        user: Option<UserId>,
    ) -> Option<History> {
        let frames = {
            let mut inner = self.inner.lock();
            let stored = inner.store.entries(channel).unwrap_or_else(|error| {
                tracing::warn!(%error, "the store cannot be read");
                Vec::new()
            });
            let waiting = inner.waiting.entries.range((channel, 0)..=(channel, Seq::MAX));
            stored.into_iter().chain(waiting.map(|(_, frame)| frame.clone())).collect::<Vec<Bytes>>()
        };
        let mut entries = BTreeMap::new();
        for frame in frames.into_iter().flat_map(Frame::iter) {
            match frame.and_then(|frame| Entry::decode(&frame)) {
                Ok(entry) => drop(entries.insert(entry.seq, entry)),
                Err(code) => tracing::warn!(%code, %channel, "a stored entry cannot be read"),
            }
        }
        of_entries(entries, before, limit, user)
    }
}

impl Inner {
    fn changed(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + WRITE_AFTER);
    }

    fn settle(&mut self, place: u64) {
        self.forget(place);
        if self.waiting.settled.len() < SETTLED_MAX {
            self.waiting.settled.push(place);
        }
        self.changed();
    }

    fn forget(&mut self, place: u64) {
        self.waiting.sends.retain(|send| send.place != place);
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.waiting.is_empty() {
            self.due = None;
            return Ok(());
        }
        match self.store.write(&self.waiting) {
            Ok(()) => {
                self.waiting = Changes::default();
                (self.due, self.failed) = (None, false);
                Ok(())
            }
            Err(error) => {
                self.failed = true;
                self.due = Some(Instant::now() + WRITE_AGAIN_AFTER);
                if self.waiting.entries.len() > WAITING_ENTRIES_MAX {
                    self.stopped = true;
                    self.waiting.entries.clear();
                    self.waiting.logs.clear();
                }
                Err(error)
            }
        }
    }

    /// A message was taken back: its content is not kept.
    fn recall(&mut self, channel: ChannelId, target: Seq) {
        let waiting = self.waiting.entries.get(&(channel, target)).cloned();
        let stored = || {
            let frames = self.store.entries(channel).ok()?;
            frames.into_iter().find(|bytes| {
                let frame = Frame::iter(bytes.clone()).next().and_then(Result::ok);
                frame.and_then(|frame| frame.routed().map(|routed| routed.seq)) == Some(target)
            })
        };
        if let Some(stub) = waiting.or_else(stored).and_then(stub_of) {
            self.waiting.entries.insert((channel, target), stub);
        }
    }
}

/// The frame of an entry without its content.
fn stub_of(frame: Bytes) -> Option<Bytes> {
    let frame = Frame::iter(frame).next()?.ok()?;
    let routed = frame.routed()?;
    let mut entry: wire::Entry = frame.decode().ok()?;
    entry.content = None;
    let flags = routed.short.flags | flags::STUB;
    Some(frame::routed(
        FrameType::Deliver,
        class::MESSAGE,
        flags,
        entry.epoch,
        routed.channel,
        routed.seq,
        &entry,
    ))
}

/// Puts a part of the history together from what is held.
fn of_entries(
    mut entries: BTreeMap<Seq, Entry>,
    before: Seq,
    limit: u32,
    user: Option<UserId>,
) -> Option<History> {
    let newest = *entries.keys().next_back()?;
    let last = if before == 0 { newest } else { before - 1 };
    let mut history = History { first: last, last, head: newest, offline: true, ..History::default() };
    let mut messages = 0;
    for (step, (seq, entry)) in entries.range(..=last).rev().enumerate() {
        if seq + step as u64 != last {
            break;
        }
        history.first = *seq;
        messages += u32::from(entry.message().is_some() || entry.stub);
        if messages >= limit {
            break;
        }
    }
    if !entries.contains_key(&history.first) {
        return None;
    }
    history.complete = history.first == 1;
    // What became of them lies behind them.
    let mut newest: BTreeMap<Seq, Seq> = BTreeMap::new();
    let mut reactions: BTreeMap<Seq, BTreeMap<String, HashSet<UserId>>> = BTreeMap::new();
    for (seq, entry) in entries.range(history.first..) {
        match &entry.content {
            Some(Content::Edit(wire::Edit { target, .. }) | Content::Recall(wire::Recall { target })) => {
                newest.insert(*target, *seq);
            }
            Some(Content::Reaction(reaction)) => {
                let of = reactions.entry(reaction.target).or_default();
                let users = of.entry(reaction.emoji.clone()).or_default();
                if reaction.remove {
                    users.remove(&entry.sender)
                } else {
                    users.insert(entry.sender)
                };
            }
            _ => {}
        }
    }
    let newest: BTreeMap<Seq, Entry> =
        newest.into_iter().filter_map(|(target, seq)| Some((target, entries.get(&seq)?.clone()))).collect();
    for (seq, entry) in entries.range_mut(history.first..=last) {
        let amended = newest.get(seq);
        if amended.is_some_and(|newest| matches!(newest.content, Some(Content::Recall(_)))) {
            (entry.stub, entry.content) = (true, None);
        }
        let mut counts = Vec::new();
        for (emoji, users) in reactions.remove(seq).unwrap_or_default() {
            let mine = user.is_some_and(|user| users.contains(&user));
            if !users.is_empty() {
                counts.push(wire::ReactionCount { emoji, count: users.len() as u32, mine });
            }
        }
        if amended.is_some() || !counts.is_empty() {
            let newest = amended.cloned().map(Arc::new);
            history.amendments.push(Amendment { target: *seq, newest, reactions: counts });
        }
        history.entries.push(Arc::new(entry.clone()));
    }
    Some(history)
}
