//! Histories of what clients saw, and checkers that find a broken promise in them. For tests of any layer: a history is
//! plain data, recorded through a router, a gateway or the network.
//!
//! All checkers are one pass over hash maps: every entry says its place, so no order has to be searched for.

pub mod membership;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fanfare_proto::{ChannelId, ClientMessageId, DeviceId, SessionId, UserId};

/// Tells bodies apart.
pub type Print = u64;

/// An entry as somebody saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The channel's epoch.
    pub epoch: u32,
    /// Its place.
    pub seq: u64,
    /// Of its whole frame.
    pub frame: Print,
    /// Of its content.
    pub content: Print,
    /// Its client message id, if it has one.
    pub id: Option<ClientMessageId>,
    /// Its sender.
    pub sender: UserId,
    /// Who became a member by it, and who ceased to be one.
    pub members: (Vec<UserId>, Vec<UserId>),
    /// A stub stands in the frame's place.
    pub is_stub: bool,
}

/// What a send came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Committed there.
    Ok { epoch: u32, seq: u64 },
    /// This attempt has no effect.
    Fail,
    /// Nobody knows. Also what a broken connection leaves behind.
    Unknown,
}

/// One thing that happened, in the order in which its observer saw it.
#[derive(Clone, Debug)]
pub enum Event {
    /// An attempt of a send began.
    Invoked { user: UserId, channel: ChannelId, id: ClientMessageId, content: Print },
    /// An attempt was answered.
    Answered { user: UserId, channel: ChannelId, id: ClientMessageId, answer: Answer },
    /// A session is served from behind that position; `is_join` where the user has just joined, `is_explicit` where
    /// the client named its position itself.
    Started {
        session: SessionId,
        user: UserId,
        device: DeviceId,
        channel: ChannelId,
        position: u64,
        head: u64,
        is_join: bool,
        is_explicit: bool,
    },
    /// An entry was pushed.
    Pushed { session: SessionId, user: UserId, device: DeviceId, channel: ChannelId, entry: Seen },
    /// Entries behind `after` up to `head` are not pushed.
    Gap { session: SessionId, device: DeviceId, user: UserId, channel: ChannelId, after: u64, head: u64 },
    /// The user is told that it is no member any more.
    Ended { session: SessionId, channel: ChannelId },
    /// A page was read; `invoked_after` is the highest seq of this user's sends that were OK when it was asked for.
    Page {
        user: UserId,
        channel: ChannelId,
        first: u64,
        last: u64,
        head: u64,
        hidden: Vec<(u64, u64)>,
        entries: Vec<Seen>,
        invoked_after: u64,
    },
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: "G1" and so on.
    pub promise: &'static str,
    /// What was seen.
    pub what: String,
}

/// Which promises are broken, and the first few ways in which they are.
pub fn summary(violations: &[Violation]) -> String {
    let promises: BTreeSet<&str> = violations.iter().map(|violation| violation.promise).collect();
    let promises: Vec<&str> = promises.into_iter().collect();
    format!("broken: {}; {:#?}", promises.join(" "), &violations[..violations.len().min(5)])
}

/// The whole log of a channel as read after everything has come to rest.
pub type Logs = HashMap<ChannelId, Vec<Seen>>;

/// Everything that is wrong with the history, given the final logs.
pub fn check(events: &[Event], logs: &Logs) -> Vec<Violation> {
    let mut checker = Checker { logs, violations: Vec::new(), intervals: HashMap::new() };
    checker.logs();
    checker.sends(events);
    checker.observations(events);
    checker.streams(events);
    checker.violations
}

struct Checker<'a> {
    logs: &'a Logs,
    violations: Vec<Violation>,
    /// Stretches of membership: joined by, left by (`u64::MAX`: still a member).
    intervals: HashMap<(ChannelId, UserId), Vec<(u64, u64)>>,
}

impl Checker<'_> {
    fn broken(&mut self, promise: &'static str, what: String) {
        self.violations.push(Violation { promise, what });
    }

    fn entry(&self, channel: ChannelId, seq: u64) -> Option<&Seen> {
        self.logs.get(&channel)?.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    /// G2 (no gaps), G3 (one place per id), and who was a member when.
    fn logs(&mut self) {
        for (channel, log) in self.logs {
            let mut places: HashMap<ClientMessageId, u64> = HashMap::new();
            for (place, entry) in (1u64..).zip(log) {
                if entry.seq != place {
                    self.broken("G2", format!("{channel}: {place} is missing, {} stands there", entry.seq));
                    break;
                }
                if let Some(id) = entry.id
                    && let Some(before) = places.insert(id, entry.seq)
                {
                    self.broken("G3", format!("{channel}: {id:?} stands at {before} and {}", entry.seq));
                }
                for user in &entry.members.0 {
                    let of = self.intervals.entry((*channel, *user)).or_default();
                    if of.last().is_none_or(|(_, left)| *left != u64::MAX) {
                        of.push((entry.seq, u64::MAX));
                    }
                }
                for user in &entry.members.1 {
                    let of = self.intervals.entry((*channel, *user)).or_default();
                    if let Some(newest) = of.last_mut().filter(|(_, left)| *left == u64::MAX) {
                        newest.1 = entry.seq;
                    }
                }
            }
        }
    }

    /// G1, G3, G4.
    fn sends(&mut self, events: &[Event]) {
        #[derive(Default)]
        struct Send {
            attempts: u32,
            failed: u32,
            oks: Vec<(u32, u64)>,
        }
        let mut sends: HashMap<(ChannelId, ClientMessageId), Send> = HashMap::new();
        for event in events {
            match event {
                Event::Invoked { channel, id, .. } => sends.entry((*channel, *id)).or_default().attempts += 1,
                Event::Answered { channel, id, answer, .. } => {
                    let send = sends.entry((*channel, *id)).or_default();
                    match answer {
                        Answer::Ok { epoch, seq } => send.oks.push((*epoch, *seq)),
                        Answer::Fail => send.failed += 1,
                        Answer::Unknown => {}
                    }
                }
                _ => {}
            }
        }
        let mut at: HashMap<(ChannelId, ClientMessageId), u64> = HashMap::new();
        for (channel, log) in self.logs {
            at.extend(log.iter().filter_map(|entry| entry.id.map(|id| ((*channel, id), entry.seq))));
        }
        for ((channel, id), send) in sends {
            let place = at.get(&(channel, id)).copied();
            for (_, seq) in &send.oks {
                if place != Some(*seq) {
                    self.broken(
                        "G1",
                        format!("{channel}: {id:?} was acknowledged at {seq}, stands at {place:?}"),
                    );
                }
            }
            if send.oks.iter().any(|ok| *ok != send.oks[0]) {
                self.broken("G3", format!("{channel}: {id:?} was acknowledged at {:?}", send.oks));
            }
            if send.failed == send.attempts && place.is_some() {
                self.broken("G4", format!("{channel}: every attempt of {id:?} failed, stands at {place:?}"));
            }
        }
    }

    /// G2 (everybody sees the same), G5, G6, G10.
    fn observations(&mut self, events: &[Event]) {
        let mut invoked: HashSet<(ChannelId, UserId, ClientMessageId, Print)> = HashSet::new();
        for event in events {
            if let Event::Invoked { user, channel, id, content } = event {
                invoked.insert((*channel, *user, *id, *content));
            }
        }
        for event in events {
            match event {
                Event::Pushed { user, channel, entry, .. } => {
                    self.observed(*channel, *user, entry, &invoked);
                    // Who is removed does not get the entry that removes it.
                    let is_within = self.is_within(*channel, *user, entry.seq, 1);
                    if !is_within {
                        self.broken(
                            "G7",
                            format!("{channel}: {} was pushed to {user}, no member then", entry.seq),
                        );
                    }
                }
                Event::Page { user, channel, entries, first, last, head, hidden, invoked_after } => {
                    if head < invoked_after {
                        self.broken(
                            "G10",
                            format!("{channel}: {user} reads up to {head} behind {invoked_after}"),
                        );
                    }
                    let mut covered: BTreeMap<u64, u64> = entries.iter().map(|seen| (seen.seq, 1)).collect();
                    for (low, high) in hidden {
                        covered.extend((*low..=*high).map(|seq| (seq, 1)));
                    }
                    if (*first..=*last).any(|seq| !covered.contains_key(&seq)) {
                        self.broken("G1", format!("{channel}: a page of {first} to {last} lacks entries"));
                    }
                    for entry in entries {
                        self.observed(*channel, *user, entry, &invoked);
                        if !self.is_within(*channel, *user, entry.seq, 0) {
                            let seq = entry.seq;
                            self.broken(
                                "G6",
                                format!("{channel}: a page shows {seq} to {user}, no member then"),
                            );
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn is_within(&self, channel: ChannelId, user: UserId, seq: u64, short: u64) -> bool {
        let of = self.intervals.get(&(channel, user));
        of.is_some_and(|of| of.iter().any(|(joined, left)| *joined <= seq && seq <= left - short))
    }

    fn observed(
        &mut self,
        channel: ChannelId,
        user: UserId,
        entry: &Seen,
        invoked: &HashSet<(ChannelId, UserId, ClientMessageId, Print)>,
    ) {
        match self.entry(channel, entry.seq).cloned() {
            None => {
                let id = entry.id;
                self.broken("G2", format!("{channel}: {user} saw {id:?} at {}, beyond the log", entry.seq));
            }
            Some(stands) if stands.frame != entry.frame && !stands.is_stub && !entry.is_stub => {
                self.broken(
                    "G2",
                    format!(
                        "{channel}: {user} saw {:?} at {}, {:?} stands there",
                        entry.id, entry.seq, stands.id
                    ),
                );
            }
            Some(_) => {}
        }
        if let Some(id) = entry.id
            && entry.seq > 1
            && !entry.is_stub
            && !invoked.contains(&(channel, entry.sender, id, entry.content))
        {
            self.broken("G5", format!("{channel}: {} by {} was never sent so", entry.seq, entry.sender));
        }
    }

    /// G2 (a stream neither skips nor goes back), G3 (nothing comes twice), G8, G9.
    fn streams(&mut self, events: &[Event]) {
        /// What one device holds of one channel without a hole; entries named by a GAP count as held, for it knows
        /// that it must fetch them.
        #[derive(Default, Clone, Copy)]
        struct Stream {
            position: u64,
        }
        let mut live: HashMap<(SessionId, ChannelId), Stream> = HashMap::new();
        let mut held: HashMap<(UserId, DeviceId, ChannelId), u64> = HashMap::new();
        for event in events {
            match event {
                Event::Started { session, user, device, channel, position, is_join, is_explicit, head } => {
                    let is_start_of_membership = self
                        .intervals
                        .get(&(*channel, *user))
                        .is_some_and(|of| of.iter().any(|(joined, _)| *joined == position + 1));
                    if *is_join && !is_start_of_membership {
                        self.broken("G8", format!("{channel}: {user} joined and begins behind {position}"));
                    }
                    let has = held.get(&(*user, *device, *channel)).copied().unwrap_or(0);
                    if *position > has && !is_start_of_membership && !*is_explicit && *position <= *head {
                        self.broken(
                            "G9",
                            format!(
                                "{channel}: {user} on {device} holds {has} and is served from {position}"
                            ),
                        );
                    }
                    let stream = live.entry((*session, *channel)).or_default();
                    stream.position = *position;
                    // A restart at an older place is the client's own doing.
                    held.insert((*user, *device, *channel), (*position).max(has));
                }
                Event::Pushed { session, user, device, channel, entry } => {
                    match live.get_mut(&(*session, *channel)) {
                        None => {
                            let seq = entry.seq;
                            self.broken(
                                "G9",
                                format!("{channel}: {seq} was pushed to {user} before any state"),
                            );
                        }
                        Some(stream) => {
                            let expected = stream.position + 1;
                            if entry.seq > expected {
                                let seq = entry.seq;
                                self.violations.push(Violation {
                                    promise: "G9",
                                    what: format!("{channel}: {user} was pushed {seq}, {expected} was next"),
                                });
                            } else if entry.seq < expected {
                                let seq = entry.seq;
                                self.violations.push(Violation {
                                    promise: "G3",
                                    what: format!(
                                        "{channel}: {user} was pushed {seq} again, {expected} was next"
                                    ),
                                });
                            }
                            stream.position = stream.position.max(entry.seq);
                            let has = held.entry((*user, *device, *channel)).or_default();
                            *has = (*has).max(entry.seq);
                        }
                    }
                }
                Event::Gap { session, user, device, channel, after, head } => {
                    if let Some(stream) = live.get_mut(&(*session, *channel)) {
                        if *after > stream.position {
                            let position = stream.position;
                            self.violations.push(Violation {
                                promise: "G9",
                                what: format!("{channel}: GAP behind {after}, {user} stands at {position}"),
                            });
                        }
                        stream.position = stream.position.max(*head);
                        let has = held.entry((*user, *device, *channel)).or_default();
                        *has = (*has).max(*head);
                    }
                }
                Event::Ended { session, channel } => drop(live.remove(&(*session, *channel))),
                _ => {}
            }
        }
    }
}
