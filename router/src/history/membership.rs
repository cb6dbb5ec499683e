//! Who may be told what: G6, G7, G8 and G10 held against every byte that sessions were given, in the order in which their gateway
//! gave it. The channels' logs say who was a member when: joins and removals are entries of the same sequence, so nothing
//! here goes by a clock.
//!
//! Every text, name and emoji of a channel begins with its [`canary`]; all bytes of all frames are searched for it.

use std::collections::{HashMap, HashSet};

use fanfare_proto::{
    ChannelId, DeviceId, Frame, FrameType, SessionId, UserId,
    wire::{self, entry::Content},
};

use super::Violation;

const CANARY: &[u8] = b"canary/";
const CANARY_DIGITS: usize = 16;

/// What every text of a channel begins with.
pub fn canary(channel: ChannelId) -> String {
    format!("canary/{:0width$x}/", channel.0, width = CANARY_DIGITS)
}

/// One thing that happened, in the order of the gateway that saw it.
#[derive(Clone, Debug)]
pub enum Record {
    /// A session was let in. `generation`: of the device, in what it proved itself with.
    Opened { session: SessionId, user: UserId, device: DeviceId, generation: Option<u32> },
    /// It is over; nothing can be given to it any more.
    Ended { session: SessionId },
    /// It asks for a page of what is below `before` (0: from the head).
    Asked { session: SessionId, channel: ChannelId, request: u64, before: u64 },
    /// It was given a frame.
    Given { session: SessionId, frame: Frame },
    /// The caller was told that the device's sessions are over and its secrets void.
    Revoked { user: UserId, device: DeviceId },
}

/// A channel as it was made, and its whole log as read after everything has come to rest.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Who joined first saw what was there before.
    pub shows_all: bool,
    /// DELIVER frames from seq 1 on.
    pub log: Vec<Frame>,
}

/// A stretch of membership.
#[derive(Clone, Copy)]
struct Stretch {
    joined: u64,
    /// By the entry that ended it; `u64::MAX`: still a member.
    left: u64,
    visible_from: u64,
}

#[derive(Default)]
struct Book {
    /// In the order of joining.
    stretches: HashMap<UserId, Vec<Stretch>>,
    head: u64,
}

impl Book {
    fn of(&self, user: UserId) -> &[Stretch] {
        self.stretches.get(&user).map_or(&[], Vec::as_slice)
    }

    /// The stretch in force once the entry at that seq has had its effect.
    fn at(&self, user: UserId, head: u64) -> Option<Stretch> {
        self.of(user).iter().find(|stretch| stretch.joined <= head && head < stretch.left).copied()
    }

    /// Whether a member at that head may see the entry at `seq`.
    fn shows(&self, user: UserId, head: u64, seq: u64) -> bool {
        let of = self.of(user).iter().filter(|stretch| stretch.joined <= head);
        of.clone().any(|stretch| stretch.visible_from <= seq && seq <= stretch.left)
    }
}

/// What a session holds of a channel that it follows.
struct Followed {
    position: u64,
    /// It began with a join, and nothing came since.
    is_new: bool,
}

/// A request for a page: where from, and the newest seq that its user had seen or been promised.
struct Asked {
    channel: ChannelId,
    before: u64,
    known: u64,
    is_first: bool,
}

struct Session {
    user: UserId,
    device: DeviceId,
    is_open: bool,
    is_synced: bool,
    followed: HashMap<ChannelId, Followed>,
    /// Newest head it was told of.
    watermark: HashMap<ChannelId, u64>,
    asked: HashMap<u64, Asked>,
}

/// Everything that is wrong with what sessions were given. G11, that a session of a member holds everything, is
/// only to be expected once nothing is under way.
pub fn check(records: &[Record], channels: &HashMap<ChannelId, Whole>) -> Vec<Violation> {
    let mut checker = Checker::default();
    for (channel, whole) in channels {
        checker.read(*channel, whole);
    }
    for record in records {
        checker.take(record);
    }
    checker.rest();
    checker.violations
}

#[derive(Default)]
struct Checker {
    violations: Vec<Violation>,
    books: HashMap<ChannelId, Book>,
    sessions: HashMap<SessionId, Session>,
    /// What a device was ever given of a channel without a hole.
    held: HashMap<(UserId, DeviceId, ChannelId), u64>,
    /// Newest acknowledged send.
    oks: HashMap<(UserId, ChannelId), u64>,
    revoked: HashMap<(UserId, DeviceId), u32>,
}

impl Checker {
    fn broken(&mut self, promise: &'static str, what: String) {
        self.violations.push(Violation { promise, what });
    }

    /// Something that only a member at that head may have: G6 for who had never been one, G7 for who had.
    fn not_theirs(&mut self, channel: ChannelId, user: UserId, head: u64, what: &str) {
        let was = self
            .books
            .get(&channel)
            .is_some_and(|book| book.of(user).iter().any(|stretch| stretch.joined <= head));
        let promise = if was { "G7" } else { "G6" };
        self.broken(promise, format!("{channel}: {user} was given {what} at {head}, no member then"));
    }

    /// Who was a member when, and whether everybody who wrote was.
    fn read(&mut self, channel: ChannelId, whole: &Whole) {
        let (mut book, mut shows_all) = (Book::default(), whole.shows_all);
        for frame in &whole.log {
            let seq = frame.routed().map_or(0, |header| header.seq);
            let Ok(entry) = frame.decode::<wire::Entry>() else {
                self.broken("G5", format!("{channel}: {seq} does not decode"));
                continue;
            };
            let (sender, mut joins_itself) = (UserId(entry.sender), false);
            match &entry.content {
                Some(Content::Membership(membership)) => {
                    let users: Vec<UserId> = membership.users.iter().copied().map(UserId).collect();
                    match membership.change() {
                        wire::MembershipChange::Joined => {
                            // Who makes a channel is in its first entry, of a pair both.
                            joins_itself = users == [sender] || seq == 1 && users.contains(&sender);
                            let visible_from = if shows_all { 1 } else { seq };
                            for user in users {
                                let of = book.stretches.entry(user).or_default();
                                if of.last().is_none_or(|newest| newest.left != u64::MAX) {
                                    of.push(Stretch { joined: seq, left: u64::MAX, visible_from });
                                }
                            }
                        }
                        wire::MembershipChange::Left | wire::MembershipChange::Removed => {
                            for user in users {
                                let of = book.stretches.entry(user).or_default().last_mut();
                                if let Some(newest) = of.filter(|newest| newest.left == u64::MAX) {
                                    newest.left = seq;
                                }
                            }
                        }
                        _ => {}
                    }
                }
                Some(Content::ChannelChange(change)) => match change.history() {
                    wire::HistoryPolicy::All => shows_all = true,
                    wire::HistoryPolicy::FromJoin => shows_all = false,
                    _ => {}
                },
                _ => {}
            }
            let may = book.of(sender).iter().any(|stretch| stretch.joined < seq && seq <= stretch.left);
            if !may && !joins_itself && !sender.is_none() {
                let was = book.of(sender).iter().any(|stretch| stretch.left < seq);
                let promise = if was { "G7" } else { "G6" };
                self.broken(promise, format!("{channel}: {seq} is by {sender}, no member then"));
            }
            book.head = seq;
        }
        self.books.insert(channel, book);
    }

    fn take(&mut self, record: &Record) {
        match record {
            Record::Opened { session, user, device, generation } => {
                let now = self.revoked.get(&(*user, *device)).copied().unwrap_or(0);
                if generation.is_some_and(|generation| generation < now) {
                    self.broken("G7", format!("{user} was let in on {device} by what had been revoked"));
                }
                let opened = Session {
                    user: *user,
                    device: *device,
                    is_open: true,
                    is_synced: false,
                    followed: HashMap::new(),
                    watermark: HashMap::new(),
                    asked: HashMap::new(),
                };
                self.sessions.insert(*session, opened);
            }
            Record::Ended { session } => {
                if let Some(one) = self.sessions.get_mut(session) {
                    one.is_open = false;
                }
            }
            Record::Asked { session, channel, request, before } => {
                let Some(one) = self.sessions.get_mut(session) else { return };
                let seen = one.watermark.get(channel).copied().unwrap_or(0);
                let ok = self.oks.get(&(one.user, *channel)).copied().unwrap_or(0);
                let asked = Asked { channel: *channel, before: *before, known: seen.max(ok), is_first: true };
                one.asked.insert(*request, asked);
            }
            Record::Given { session, frame } => self.given(*session, frame),
            Record::Revoked { user, device } => {
                *self.revoked.entry((*user, *device)).or_default() += 1;
                let alive = |one: &&Session| one.is_open && one.user == *user && one.device == *device;
                let alive = self.sessions.values().filter(alive).count();
                if alive > 0 {
                    self.broken("G7", format!("{user}: {alive} sessions of {device} outlive its revocation"));
                }
            }
        }
    }

    fn given(&mut self, id: SessionId, frame: &Frame) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (user, is_open) = (session.user, session.is_open);
        if !is_open {
            self.broken("G7", format!("{user} was given {:?} in a session that is over", frame.frame_type()));
        }
        self.search(user, frame);
        if frame.frame_type() == FrameType::Synced {
            let Ok(synced) = frame.decode::<wire::Synced>() else { return };
            for state in &synced.channels {
                self.state(id, user, state, true);
            }
            if let Some(session) = self.sessions.get_mut(&id) {
                session.is_synced |= synced.complete;
            }
            return;
        }
        let Some((channel, seq)) = frame.routed().map(|header| (header.channel, header.seq)) else { return };
        match frame.frame_type() {
            FrameType::Deliver => self.entry(id, user, channel, seq),
            FrameType::Gap | FrameType::Notify => {
                let Ok(head) = frame.decode::<wire::Head>() else { return };
                self.gap(id, user, channel, &head);
            }
            FrameType::Channel => {
                let Ok(state) = frame.decode::<wire::ChannelState>() else { return };
                if state.role == 0 {
                    self.saw_head(id, channel, state.head);
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.followed.remove(&channel);
                    }
                } else {
                    self.state(id, user, &state, false);
                }
            }
            FrameType::Page => {
                let Ok(page) = frame.decode::<wire::Page>() else { return };
                self.page(id, user, channel, seq, &page);
            }
            FrameType::Typing | FrameType::Receipt => self.hint(id, user, channel, frame),
            FrameType::Counts => {
                // The answer is as of a head that the session has been told of, or of a newer one.
                let known = self.sessions.get(&id).and_then(|one| one.watermark.get(&channel).copied());
                let known = known.unwrap_or(0);
                let of = self.books.get(&channel).map_or(&[][..], |book| book.of(user));
                if !of.iter().any(|stretch| stretch.left > known) {
                    self.not_theirs(channel, user, known, "COUNTS");
                }
            }
            FrameType::SendAck => {
                let Ok(ack) = frame.decode::<wire::SendAck>() else { return };
                if ack.outcome() == wire::Outcome::Ok {
                    let newest = self.oks.entry((user, channel)).or_default();
                    *newest = ack.seq.max(*newest);
                }
            }
            // An answer that tells nothing but that there is none.
            FrameType::Refused => {}
            other => self.broken("G6", format!("{channel}: {user} was given {other:?}")),
        }
    }

    /// Canaries in a frame's bytes: each of a channel that the user once belonged to, in a frame of that channel.
    fn search(&mut self, user: UserId, frame: &Frame) {
        let of_frame = frame.routed().map(|header| header.channel);
        let mut found = HashSet::new();
        for (place, window) in frame.bytes.windows(CANARY.len() + CANARY_DIGITS).enumerate() {
            if window.starts_with(CANARY) {
                let digits = std::str::from_utf8(&window[CANARY.len()..]).unwrap_or_default();
                match u64::from_str_radix(digits, 16) {
                    Ok(channel) => drop(found.insert(ChannelId(channel))),
                    Err(_) => self.broken("G5", format!("{user} was given half a canary at byte {place}")),
                }
            }
        }
        for channel in found {
            let was = self.books.get(&channel).is_some_and(|book| !book.of(user).is_empty());
            if !was {
                let what = format!("{channel}: its canary came to {user} in {:?}", frame.frame_type());
                self.broken("G6", what);
            } else if of_frame.is_some_and(|of_frame| of_frame != channel) {
                self.broken("G6", format!("{channel}: its canary came to {user} in a frame of {of_frame:?}"));
            }
        }
    }

    /// A head that the session is told of in order: it never goes back.
    fn saw_head(&mut self, id: SessionId, channel: ChannelId, head: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let watermark = session.watermark.entry(channel).or_default();
        let (before, user) = (*watermark, session.user);
        *watermark = head.max(before);
        if head < before {
            self.broken("G10", format!("{channel}: {user} is told of head {head} behind {before}"));
        }
    }

    /// A channel's state begins the stream of its entries.
    fn state(&mut self, id: SessionId, user: UserId, state: &wire::ChannelState, is_synced: bool) {
        let (channel, position, head) = (ChannelId(state.channel), state.position, state.head);
        let stretch = self.books.get(&channel).and_then(|book| book.at(user, head));
        let Some(stretch) = stretch else {
            return self.not_theirs(channel, user, head, "a state");
        };
        if state.visible_from != stretch.visible_from {
            let what =
                format!("{channel}: {user} sees from {}, not {}", state.visible_from, stretch.visible_from);
            self.broken("G8", what);
        }
        self.saw_head(id, channel, head);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let key = (user, session.device, channel);
        let before = session.followed.get(&channel).map(|followed| followed.position);
        let is_new = before.is_none() && !is_synced;
        session.followed.insert(channel, Followed { position, is_new });
        let held = self.held.get(&key).copied().unwrap_or(0).max(stretch.joined - 1);
        match before {
            // Only a SYNC may go back, where the client asks for it.
            Some(before) if position != before && !is_synced => {
                self.broken(
                    "G9",
                    format!("{channel}: {user} holds {before} and shall go on from {position}"),
                );
            }
            None if is_new && position + 1 != stretch.joined => {
                let joined = stretch.joined;
                self.broken(
                    "G8",
                    format!("{channel}: {user} joined at {joined} and begins behind {position}"),
                );
            }
            _ if position > held => {
                self.broken("G8", format!("{channel}: {user} holds {held} and begins behind {position}"));
            }
            _ => {}
        }
        let held = self.held.entry(key).or_default();
        *held = position.max(*held);
    }

    fn entry(&mut self, id: SessionId, user: UserId, channel: ChannelId, seq: u64) {
        let is_theirs = self
            .books
            .get(&channel)
            .is_some_and(|book| book.of(user).iter().any(|of| of.joined <= seq && seq < of.left));
        if !is_theirs {
            self.not_theirs(channel, user, seq, "an entry");
        }
        self.moved(id, user, channel, seq, seq);
        // Behind a state come the entries up to its head.
        if let Some(session) = self.sessions.get_mut(&id) {
            let watermark = session.watermark.entry(channel).or_default();
            *watermark = seq.max(*watermark);
        }
    }

    /// What passes by: only sessions that have every entry up to the head are given it, so that their position says who
    /// was a member.
    fn hint(&mut self, id: SessionId, user: UserId, channel: ChannelId, frame: &Frame) {
        let followed = self.sessions.get(&id).and_then(|session| session.followed.get(&channel));
        let Some(head) = followed.map(|followed| followed.position) else {
            let what = format!("{:?}", frame.frame_type());
            return self.not_theirs(channel, user, u64::MAX, &what);
        };
        let of: Vec<u64> = match frame.frame_type() {
            FrameType::Typing => frame.decode::<wire::Typing>().map(|typing| vec![typing.user]),
            _ => frame
                .decode::<wire::Receipt>()
                .map(|receipt| receipt.cursors.iter().map(|cursor| cursor.user).collect()),
        }
        .unwrap_or_default();
        for other in of.into_iter().map(UserId) {
            let book = self.books.get(&channel);
            if book.is_none_or(|book| book.at(other, head).is_none()) {
                let was = book.is_some_and(|book| !book.of(other).is_empty());
                let promise = if was { "G7" } else { "G6" };
                let what = frame.frame_type();
                self.broken(promise, format!("{channel}: {what:?} of {other} at {head}, no member then"));
            }
        }
    }

    fn gap(&mut self, id: SessionId, user: UserId, channel: ChannelId, gap: &wire::Head) {
        if self.books.get(&channel).is_none_or(|book| book.at(user, gap.head).is_none()) {
            self.not_theirs(channel, user, gap.head, "a GAP");
        }
        self.moved(id, user, channel, gap.after + 1, gap.head);
        self.saw_head(id, channel, gap.head);
    }

    /// The stream goes on with `first` and is then complete, or named as incomplete, up to `last`.
    fn moved(&mut self, id: SessionId, user: UserId, channel: ChannelId, first: u64, last: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let device = session.device;
        let Some(followed) = session.followed.get_mut(&channel) else {
            return self.broken("G7", format!("{channel}: {user} was pushed {last} and does not follow it"));
        };
        let (next, is_new) = (followed.position + 1, followed.is_new);
        *followed = Followed { position: followed.position.max(last), is_new: false };
        let held = self.held.entry((user, device, channel)).or_default();
        *held = (*held).max(last);
        if first > next {
            let promise = if is_new { "G8" } else { "G9" };
            self.broken(promise, format!("{channel}: {user} was pushed {first}, {next} was next"));
        } else if last < next {
            self.broken("G10", format!("{channel}: {user} was pushed {last} again, {next} was next"));
        }
    }

    fn page(&mut self, id: SessionId, user: UserId, channel: ChannelId, request: u64, page: &wire::Page) {
        let head = page.head;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(asked) = session.asked.get_mut(&request).filter(|asked| asked.channel == channel) else {
            return self.broken("G6", format!("{channel}: {user} was given a page it did not ask for"));
        };
        let (known, before, is_first) = (asked.known, asked.before, asked.is_first);
        asked.is_first = false;
        if !page.more {
            session.asked.remove(&request);
        }
        let watermark = session.watermark.entry(channel).or_default();
        *watermark = head.max(*watermark);
        if head < known || is_first && before == 0 && page.last < known {
            let last = page.last;
            self.broken("G10", format!("{channel}: {user} reads up to {last} of {head} behind {known}"));
        }
        if self.books.get(&channel).is_none_or(|book| book.at(user, head).is_none()) {
            self.not_theirs(channel, user, head, "a page");
        }
        let mut there = HashSet::new();
        for frame in Frame::iter(page.frames.clone()) {
            let place =
                frame.ok().and_then(|frame| frame.routed().map(|header| (header.channel, header.seq)));
            match place {
                Some((of, seq)) if of == channel => drop(there.insert(seq)),
                _ => self.broken("G6", format!("{channel}: a page for {user} holds {place:?}")),
            }
        }
        let is_hidden = |seq: u64| page.hidden.iter().any(|range| (range.first..=range.last).contains(&seq));
        let shows = |checker: &Self, seq: u64| {
            checker.books.get(&channel).is_some_and(|book| book.shows(user, head, seq))
        };
        if there.iter().any(|seq| !(page.first..=page.last).contains(seq)) {
            self.broken("G6", format!("{channel}: a page for {user} holds more than it says"));
        }
        for seq in page.first..=page.last.min(head) {
            let (shows, is_there, is_hidden) = (shows(self, seq), there.contains(&seq), is_hidden(seq));
            let told = format!("a page of {head} for {user}");
            if !shows && is_there {
                self.broken("G6", format!("{channel}: {told} shows {seq}, outside its membership"));
            } else if shows && is_hidden {
                self.broken("G8", format!("{channel}: {told} hides {seq}, which it may see"));
            } else if shows && !is_there {
                let promise = if seq <= known { "G10" } else { "G1" };
                self.broken(promise, format!("{channel}: {told} lacks {seq}"));
            } else if !shows && !is_hidden {
                self.broken("G2", format!("{channel}: {told} neither shows nor hides {seq}"));
            }
        }
        for amendment in &page.amendments {
            if !there.contains(&amendment.target) {
                let target = amendment.target;
                self.broken("G6", format!("{channel}: {user} is told what amends {target}, not in its page"));
            }
        }
    }

    /// Nothing is under way any more: who is a member is served, and holds everything.
    fn rest(&mut self) {
        let mut behind = Vec::new();
        for session in self.sessions.values().filter(|session| session.is_open && session.is_synced) {
            for (channel, book) in &self.books {
                if book.at(session.user, book.head).is_some() {
                    let position = session.followed.get(channel).map(|followed| followed.position);
                    if position != Some(book.head) {
                        let (user, head) = (session.user, book.head);
                        behind.push(format!("{channel}: {user} stands at {position:?} of {head}"));
                    }
                }
            }
        }
        for what in behind {
            self.broken("G11", what);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fanfare_proto::frame::{routed, short};

    use super::*;

    const CHANNEL: ChannelId = ChannelId(7);
    const OWNER: UserId = UserId(1);
    /// Joins by 4, is removed by 6.
    const MEMBER: UserId = UserId(2);
    const STRANGER: UserId = UserId(3);

    fn frame(mut bytes: Bytes) -> Frame {
        Frame::split_from(&mut bytes).unwrap().unwrap()
    }

    fn of_channel(frame_type: FrameType, seq: u64, body: &impl prost::Message) -> Frame {
        frame(routed(frame_type, 0, 0, 0, CHANNEL, seq, body))
    }

    fn entry(seq: u64, content: Content) -> Frame {
        let entry = wire::Entry { epoch: 1, sender: OWNER.0, content: Some(content), ..Default::default() };
        of_channel(FrameType::Deliver, seq, &entry)
    }

    fn message(seq: u64) -> Frame {
        let text = format!("{}{seq}", canary(CHANNEL));
        entry(seq, Content::Message(wire::Message { text, ..Default::default() }))
    }

    fn log() -> Vec<Frame> {
        let change = |seq, change: wire::MembershipChange, user: UserId| {
            let users = vec![user.0];
            entry(
                seq,
                Content::Membership(wire::Membership { change: change.into(), users, role: 1, until_ms: 0 }),
            )
        };
        vec![
            change(1, wire::MembershipChange::Joined, OWNER),
            message(2),
            message(3),
            change(4, wire::MembershipChange::Joined, MEMBER),
            message(5),
            change(6, wire::MembershipChange::Removed, MEMBER),
            message(7),
        ]
    }

    fn opened(number: u64, user: UserId) -> Record {
        Record::Opened { session: SessionId(number), user, device: DeviceId(number), generation: Some(0) }
    }

    fn given(number: u64, frame: Frame) -> Record {
        Record::Given { session: SessionId(number), frame }
    }

    fn state(position: u64, head: u64, visible_from: u64) -> Frame {
        let state = wire::ChannelState {
            channel: CHANNEL.0,
            role: 1,
            position,
            head,
            visible_from,
            ..Default::default()
        };
        of_channel(FrameType::Channel, 0, &state)
    }

    fn page(request: u64, head: u64, shown: &[u64], hidden: &[(u64, u64)]) -> Frame {
        let frames: Vec<u8> = shown.iter().flat_map(|seq| message(*seq).bytes.to_vec()).collect();
        let hidden = hidden.iter().map(|(first, last)| wire::SeqRange { first: *first, last: *last });
        let page = wire::Page {
            first: 1,
            last: head,
            head,
            complete: true,
            frames: frames.into(),
            hidden: hidden.collect(),
            ..Default::default()
        };
        of_channel(FrameType::Page, request, &page)
    }

    fn asked(number: u64, request: u64) -> Record {
        Record::Asked { session: SessionId(number), channel: CHANNEL, request, before: 0 }
    }

    fn broken(records: &[Record]) -> Vec<&'static str> {
        let whole = Whole { shows_all: false, log: log() };
        let found = check(records, &HashMap::from([(CHANNEL, whole)]));
        let mut promises: Vec<&str> = found.iter().map(|violation| violation.promise).collect();
        promises.dedup();
        promises
    }

    #[test]
    fn what_is_theirs_is_no_violation() {
        let gone = wire::ChannelState { channel: CHANNEL.0, head: 6, ..Default::default() };
        let records = [
            opened(2, MEMBER),
            given(2, state(3, 4, 4)),
            given(2, log()[3].clone()),
            asked(2, 1),
            given(2, message(5)),
            given(2, page(1, 5, &[4, 5], &[(1, 3)])),
            given(2, of_channel(FrameType::Channel, 0, &gone)),
        ];
        assert_eq!(broken(&records), [""; 0]);
    }

    #[test]
    fn a_stranger_is_given_nothing_not_even_a_name_in_an_error() {
        let open = opened(3, STRANGER);
        assert_eq!(broken(&[open.clone(), given(3, message(2))])[0], "G6");
        let error = wire::Error { text: format!("no member of {}", canary(CHANNEL)), ..Default::default() };
        let refused = of_channel(FrameType::Refused, 1, &error);
        assert_eq!(broken(&[open.clone(), given(3, refused)]), ["G6"]);
        assert_eq!(broken(&[open.clone(), given(3, frame(short(FrameType::Error, 0, &error)))]), ["G6"]);
        let typing = of_channel(FrameType::Typing, 0, &wire::Typing { user: OWNER.0, stopped: false });
        assert_eq!(broken(&[open.clone(), given(3, typing)]), ["G6"]);
        assert_eq!(
            broken(&[open, given(3, of_channel(FrameType::Counts, 1, &wire::Counts::default()))]),
            ["G6"]
        );
        let other = routed(FrameType::Refused, 0, 0, 0, ChannelId(8), 1, &error);
        assert_eq!(broken(&[opened(1, OWNER), given(1, frame(other))]), ["G6"]);
    }

    #[test]
    fn the_removed_get_nothing_more() {
        let begin =
            [opened(2, MEMBER), given(2, state(3, 4, 4)), given(2, log()[3].clone()), given(2, message(5))];
        let and = |more: Record| [begin.as_slice(), &[more]].concat();
        assert_eq!(broken(&and(given(2, log()[5].clone()))), ["G7"], "nor the entry that removes it");
        assert_eq!(broken(&and(given(2, page(1, 7, &[], &[]))))[0], "G6", "nobody asked");
        let late =
            [begin.as_slice(), &[asked(2, 1), given(2, page(1, 7, &[4, 5, 6], &[(1, 3), (7, 7)]))]].concat();
        assert_eq!(broken(&late)[0], "G7");
        assert_eq!(broken(&and(Record::Revoked { user: MEMBER, device: DeviceId(2) })), ["G7"]);
        let over =
            [begin.as_slice(), &[Record::Ended { session: SessionId(2) }, given(2, message(5))]].concat();
        assert_eq!(broken(&over)[0], "G7");
        let again = [Record::Revoked { user: MEMBER, device: DeviceId(2) }, opened(2, MEMBER)];
        assert_eq!(broken(&again), ["G7"]);
    }

    #[test]
    fn who_joins_misses_nothing() {
        let open = opened(2, MEMBER);
        assert_eq!(broken(&[open.clone(), given(2, state(4, 5, 4))]), ["G8"]);
        assert_eq!(broken(&[open.clone(), given(2, state(3, 5, 5))]), ["G8"], "it may see its own joining");
        assert_eq!(broken(&[open.clone(), given(2, state(3, 5, 4)), given(2, message(5))]), ["G8"]);
        let hides = [open, asked(2, 1), given(2, page(1, 5, &[5], &[(1, 4)]))];
        assert_eq!(broken(&hides), ["G8"]);
    }

    #[test]
    fn what_one_knows_does_not_go_away() {
        let open = opened(1, OWNER);
        let ok = wire::SendAck { outcome: wire::Outcome::Ok.into(), seq: 5, ..Default::default() };
        let ok = given(1, of_channel(FrameType::SendAck, 9, &ok));
        let all = [1, 2, 3, 4];
        // Asked for before the answer, it may be older; asked for behind it, on any session, it may not.
        let early = [open.clone(), asked(1, 1), ok.clone(), given(1, page(1, 4, &all, &[]))];
        assert_eq!(broken(&early), [""; 0]);
        let late = [open.clone(), ok.clone(), opened(4, OWNER), asked(4, 1), given(4, page(1, 4, &all, &[]))];
        assert_eq!(broken(&late), ["G10"]);
        let lacks = [open.clone(), ok, asked(1, 1), given(1, page(1, 7, &[1, 2, 3, 4, 6, 7], &[]))];
        assert_eq!(broken(&lacks), ["G10"]);
        let back =
            [open.clone(), given(1, state(0, 2, 1)), given(1, log()[0].clone()), given(1, log()[0].clone())];
        assert_eq!(broken(&back), ["G10"]);
        let ahead = [open, given(1, state(0, 2, 1)), given(1, log()[0].clone()), given(1, state(2, 2, 1))];
        assert_eq!(broken(&ahead), ["G9"], "a state that skips what it has not been given");
    }
}
