//! The sessions of one thread of `spike`: groups whose first members send by a pace, and whose members all have everything.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Instant,
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code,
    session::client::{ClientSession, Ended, Event},
    wire,
};
use hashbrown::HashMap;

use super::{
    book::Book,
    clock::{Clock, Pace},
};
use crate::{
    check::page_frames,
    measure::{
        crowd::Load,
        ledger::Deliveries,
        reach::{Reach, Sent},
    },
};

/// Unanswered messages of a sender; later ones wait, and their time runs.
const IN_FLIGHT_MAX: usize = 200;
/// Messages that wait for a sender: beyond, what is due is refused on this side.
const WAITING_MAX: usize = 10_000;

/// What a group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One of those that are to notice nothing.
    Small,
    /// The large one.
    Hot,
    /// One that is loud in the spike alone.
    More,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Hot, Self::More];

    /// How it is called.
    pub fn name(self) -> &'static str {
        ["small", "hot", "more"][self as usize]
    }
}

/// A group of one thread.
#[derive(Clone)]
pub struct Seats {
    pub kind: Kind,
    pub sent: Sent,
    /// Its members' sessions.
    pub members: Range<usize>,
    /// How many of them send, by turns.
    pub senders: usize,
    /// Messages a second, before a factor.
    pub per_s: f64,
}

struct Group {
    seats: Seats,
    reach: Reach,
    pace: Option<Pace>,
    turn: usize,
}

#[derive(Default)]
struct Session {
    groups: Vec<usize>,
    due: VecDeque<(usize, Instant)>,
    in_flight: usize,
    fetches: bool,
    fetching: bool,
}

/// See the module's page.
pub struct World {
    groups: Vec<Group>,
    by_channel: HashMap<ChannelId, usize>,
    sessions: Vec<Session>,
    in_flight: HashMap<(usize, u64), (usize, ClientMessageId, Instant)>,
    number: u64,
    /// Of the first sender: so that threads have ids of their own.
    first: usize,
    /// By kind, from the beginning on.
    pub books: Option<[Book; 3]>,
    /// GAPs that were followed up.
    pub gaps: u64,
    /// Sessions that ended and came back, by why.
    pub ended: BTreeMap<String, u64>,
    /// Answers, entries and pages that came, for who waits for more.
    pub moved: usize,
}

impl World {
    /// Of those groups, with `count` sessions.
    pub fn new(groups: Vec<Seats>, count: usize, first: usize) -> Self {
        let mut sessions: Vec<Session> = (0..count).map(|_| Session::default()).collect();
        for (number, seats) in groups.iter().enumerate() {
            seats.members.clone().for_each(|member| sessions[member].groups.push(number));
        }
        let group = |seats: Seats| {
            let members = seats.members.clone();
            let reach = Reach::new(seats.sent.clone(), count, |member| members.contains(&member));
            Group { seats, reach, pace: None, turn: 0 }
        };
        let groups: Vec<Group> = groups.into_iter().map(group).collect();
        Self {
            by_channel: groups
                .iter()
                .enumerate()
                .map(|(at, group)| (group.seats.sent.channel(), at))
                .collect(),
            groups,
            sessions,
            in_flight: HashMap::new(),
            number: 0,
            first,
            books: None,
            gaps: 0,
            ended: BTreeMap::new(),
            moved: 0,
        }
    }

    /// Begins; in the spike groups send so many times as much, by kind. More ones send what the small ones would have to, beyond what they do.
    pub fn begin(&mut self, clock: Clock, factor: f64) {
        let all = self.groups.len() as f64;
        for (number, group) in self.groups.iter_mut().enumerate() {
            let turn = number as f64 / all;
            let per_s = group.seats.per_s;
            let (per_s, spike_per_s) = match group.seats.kind {
                Kind::Small => (per_s, per_s),
                Kind::Hot => (per_s, per_s * factor),
                Kind::More => (0.0, per_s * (factor - 1.0)),
            };
            group.pace = (per_s.max(spike_per_s) > 0.0).then(|| Pace::new(&clock, per_s, spike_per_s, turn));
        }
        self.books = Some(Kind::ALL.map(|_| Book::new(clock)));
    }

    /// Nothing is due any more.
    pub fn hush(&mut self) {
        self.groups.iter_mut().for_each(|group| group.pace = None);
    }

    /// Gives what is due to its senders. Names those that are to be woken.
    pub fn due(&mut self) -> Vec<usize> {
        let now = Instant::now();
        let mut wake = Vec::new();
        let Some(books) = &mut self.books else { return wake };
        for (number, group) in self.groups.iter_mut().enumerate() {
            let Some(pace) = &mut group.pace else { continue };
            let book = &mut books[group.seats.kind as usize];
            while let Some(at) = pace.due(&book.clock, now) {
                book.meant(at);
                let sender = group.seats.members.start + group.turn % group.seats.senders;
                group.turn += 1;
                let session = &mut self.sessions[sender];
                if session.due.len() >= WAITING_MAX {
                    book.refused("waited here".into());
                    continue;
                }
                session.due.push_back((number, at));
                wake.push(sender);
            }
        }
        wake
    }

    /// Whether everything was answered and came to all.
    pub fn is_settled(&self) -> bool {
        let is_idle =
            |session: &Session| session.due.is_empty() && session.in_flight == 0 && !session.fetching;
        let is_whole = |group: &Group| group.seats.members.clone().all(|member| !group.reach.lacks(member));
        self.sessions.iter().all(is_idle) && self.groups.iter().all(is_whole)
    }

    /// Closes all groups: every member holds everything.
    pub fn close(&mut self) -> Deliveries {
        let mut all = Deliveries::default();
        for group in &mut self.groups {
            all.add(group.reach.close(|_| true));
            let unanswered = group.seats.sent.unanswered();
            all.lost += unanswered;
            if unanswered > 0 {
                all.note(|| format!("{unanswered} messages were never answered"));
            }
        }
        all
    }

    fn book(&mut self, group: usize) -> Option<&mut Book> {
        let kind = self.groups[group].seats.kind;
        self.books.as_mut().map(|books| &mut books[kind as usize])
    }

    fn answered(&mut self, member: usize, request: u64) -> Option<(usize, ClientMessageId, Instant)> {
        let sent = self.in_flight.remove(&(member, request))?;
        self.sessions[member].in_flight = self.sessions[member].in_flight.saturating_sub(1);
        self.moved += 1;
        Some(sent)
    }

    fn acknowledged(&mut self, member: usize, request: u64, ack: &wire::SendAck) {
        let Some((group, id, meant)) = self.answered(member, request) else { return };
        let sent = self.groups[group].seats.sent.clone();
        match ack.outcome() {
            wire::Outcome::Ok => {
                sent.acknowledged(ack.seq, ack.ordinal);
                if let Some(book) = self.book(group) {
                    book.done(meant);
                }
            }
            outcome => {
                sent.not_acknowledged(id, outcome == wire::Outcome::Fail);
                if let Some(book) = self.book(group) {
                    book.refused_by(Code(ack.code as u16));
                }
            }
        }
    }
}

impl Load for World {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                let channel = frame.routed().map(|header| header.channel);
                let group = channel.and_then(|channel| self.by_channel.get(&channel)).copied();
                let Some(group) = group else { return };
                let came = self.groups[group].reach.delivered(member, &frame);
                self.moved += 1;
                if let Some(((_, meant), book)) = came.zip(self.book(group)) {
                    book.delivered(meant);
                }
            }
            Event::Synced(synced) => {
                for state in &synced.channels {
                    if let Some(group) = self.by_channel.get(&ChannelId(state.channel)) {
                        self.groups[*group].reach.began(member, state);
                    }
                }
            }
            Event::SendAck { request, ack, .. } => self.acknowledged(member, request, &ack),
            Event::Page { channel, page, .. } => {
                let Some(group) = self.by_channel.get(&channel).copied() else { return };
                page_frames(&page).for_each(|frame| self.groups[group].reach.paged(member, &frame));
                self.moved += 1;
                self.sessions[member].fetching &= page.more;
            }
            _ => {}
        }
    }

    fn is_new(&self, _channel: ChannelId, _seq: u64) -> bool {
        false
    }

    fn named(&mut self, member: usize, channel: ChannelId, head: u64) -> bool {
        if let Some(group) = self.by_channel.get(&channel)
            && !self.groups[*group].reach.named(member, head, None).is_empty()
        {
            self.gaps += 1;
            self.sessions[member].fetches = true;
        }
        true
    }

    fn refused(&mut self, member: usize, request: Option<u64>, code: Code) -> bool {
        if let Some((group, id, _)) = request.and_then(|request| self.answered(member, request)) {
            self.groups[group].seats.sent.not_acknowledged(id, true);
            if let Some(book) = self.book(group) {
                book.refused_by(code);
            }
        } else if request.is_some() {
            // A FETCH: it is asked for again.
            self.sessions[member].fetching = false;
        }
        true
    }

    fn ended(&mut self, member: usize, ended: &Ended) -> bool {
        let why = ended.code.map_or_else(|| ended.text.clone(), |code| code.to_string());
        *self.ended.entry(why).or_default() += 1;
        // What had no answer has none any more: nobody knows whether it has a place.
        let unanswered: Vec<_> = self.in_flight.extract_if(|(of, _), _| *of == member).collect();
        for (_, (group, id, _)) in unanswered {
            self.groups[group].seats.sent.not_acknowledged(id, false);
            if let Some(book) = self.book(group) {
                book.refused("the session ended".into());
            }
        }
        let session = &mut self.sessions[member];
        (session.in_flight, session.fetching, session.fetches) = (0, false, true);
        true
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        while self.sessions[member].in_flight < IN_FLIGHT_MAX
            && let Some((group, meant)) = self.sessions[member].due.pop_front()
        {
            self.number += 1;
            let sent = self.groups[group].seats.sent.clone();
            match sent.send(session, now_ms, self.first + member, self.number, meant) {
                Ok((request, id)) => {
                    self.sessions[member].in_flight += 1;
                    self.in_flight.insert((member, request), (group, id, meant));
                }
                Err(code) => {
                    if let Some(book) = self.book(group) {
                        book.refused(format!("on this side: {code}"));
                    }
                }
            }
        }
        let state = &mut self.sessions[member];
        if !state.fetches || state.fetching {
            return;
        }
        state.fetches = false;
        for group in &state.groups {
            match self.groups[*group].reach.fetch(member, session) {
                Ok(false) => {}
                Ok(true) => (state.fetches, state.fetching) = (true, true),
                Err(_) => state.fetches = true,
            }
            if state.fetches {
                return;
            }
        }
    }
}
