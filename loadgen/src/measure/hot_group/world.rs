//! What the sessions of one thread of `hot-group` share: which groups they are in, what they are to do, what came and how late.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code,
    session::client::{ClientSession, Ended, Event, Received},
    wire,
};
use hashbrown::HashMap;
use hdrhistogram::Histogram;

use super::plan::{Plan, Role};
use crate::{
    check::page_frames,
    measure::{
        crowd::Load,
        ledger::{Deliveries, refusal},
        reach::{FETCH_MESSAGES, Reach, Sent},
    },
};

/// The longest time that is told apart, in microseconds: ten minutes.
const DELAY_US_MAX: u64 = 600_000_000;
/// FETCHes of one session.
const FETCHES_MAX: u32 = 1_000;

/// What sessions of one role had in a round.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Sessions, and of those in the round's group.
    pub sessions: usize,
    /// Entries that came by themselves.
    pub delivered: u64,
    /// Heads that were named.
    pub named: u64,
    /// Frames of channels, and their bytes.
    pub frames: u64,
    pub bytes: u64,
    /// From when a message was meant to leave until a session had it, or was told of it, in microseconds.
    pub delay_us: Histogram<u64>,
}

impl Tally {
    fn new(sessions: usize) -> Self {
        let delay_us = Histogram::new_with_bounds(1, DELAY_US_MAX, 3).expect("bounds that are constant");
        Self { sessions, delivered: 0, named: 0, frames: 0, bytes: 0, delay_us }
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.delivered += other.delivered;
        self.named += other.named;
        self.frames += other.frames;
        self.bytes += other.bytes;
        // Of the same bounds.
        let _ = self.delay_us.add(&other.delay_us);
    }

    fn late(&mut self, since: Instant, now: Instant) {
        self.delay_us.saturating_record(now.saturating_duration_since(since).as_micros() as u64);
    }
}

/// What the sessions of one thread had in a round, by role.
pub type Tallies = [Tally; Role::ALL.len()];

/// What a session is to do.
#[derive(Default)]
struct Seat {
    has_said: bool,
    /// Messages: the group and when each is meant to leave.
    sends: VecDeque<(usize, Instant)>,
    /// Groups that it has read, up to a seq with its ordinal.
    reads: VecDeque<(usize, u64, u64)>,
    /// Groups with a head that it was told of instead of being sent what leads there, which it fetches.
    missed: Vec<(usize, u64)>,
    /// Up to where it did.
    asked: Vec<(usize, u64)>,
    /// It fetches what it lacks.
    fetches: bool,
    fetching: bool,
    fetched: u32,
    counted: Received,
    /// Messages whose outcome is not known: they are sent again.
    again: Vec<Flight>,
    /// The user opened the group: then, and which entries are to be on the screen.
    opened: Option<Opened>,
    /// It shows the group, or no longer; said once.
    shows: Option<bool>,
}

/// A message that is under way.
#[derive(Clone, Copy)]
struct Flight {
    group: usize,
    id: ClientMessageId,
    number: u64,
    sent_ms: u64,
}

/// A channel that a user has opened.
#[derive(Clone, Copy)]
struct Opened {
    at: Instant,
    /// The newest entry that was acknowledged then.
    newest: u64,
}

/// Entries on a screen.
const ON_SCREEN: u32 = 20;

/// See the module's page.
pub struct World {
    plan: Plan,
    /// Number of the first session.
    first: usize,
    delivery: wire::Delivery,
    groups: Vec<Reach>,
    seats: Vec<Seat>,
    /// By session and request.
    in_flight: HashMap<(usize, u64), Flight>,
    /// The server is killed: sessions that end come back, and send again what was not answered.
    pub is_killed: bool,
    /// Sessions that came back.
    pub came_back: u64,
    /// From opening the group to its newest entries, in microseconds.
    pub opened_us: Histogram<u64>,
    number: u64,
    /// The round's group.
    group: usize,
    tallies: Tallies,
    /// Heads that were named before anybody here had their entries.
    unplaced: Vec<(Role, u64, Instant)>,
    /// The longest that a message left after it was meant to.
    pub late: Duration,
    /// Of the absent: those that came, and those that were told the group's head.
    pub returned: usize,
    pub returned_equal: usize,
    /// Entries and heads that came, for who waits for more.
    pub moved: usize,
    pub refused: Option<String>,
    /// Messages that sessions are to send and have not sent yet.
    pub queued: u64,
}

impl World {
    /// Of the sessions from `first` on, `count` of them. In the second group there are the small one's members only.
    pub fn new(plan: Plan, delivery: wire::Delivery, sent: &[Sent], first: usize, count: usize) -> Self {
        let group = |(number, sent): (usize, &Sent)| {
            Reach::new(sent.clone(), count, |member| number == 0 || plan.is_in_small(first + member))
        };
        let mut world = Self {
            plan,
            first,
            delivery,
            groups: sent.iter().enumerate().map(group).collect(),
            seats: (0..count).map(|_| Seat::default()).collect(),
            in_flight: HashMap::new(),
            is_killed: false,
            came_back: 0,
            opened_us: Tally::new(0).delay_us,
            number: 0,
            group: 0,
            tallies: Role::ALL.map(|_| Tally::new(0)),
            unplaced: Vec::new(),
            late: Duration::ZERO,
            returned: 0,
            returned_equal: 0,
            moved: 0,
            refused: None,
            queued: 0,
        };
        world.begin(0);
        world
    }

    fn role(&self, member: usize) -> Role {
        if member < self.seats.len() { self.plan.role(self.first + member) } else { Role::Absent }
    }

    fn group_of(&self, channel: ChannelId) -> Option<usize> {
        self.groups.iter().position(|group| group.sent().channel() == channel)
    }

    /// Begins a round in a group.
    pub fn begin(&mut self, group: usize) {
        self.group = group;
        self.unplaced.clear();
        let plan = self.plan;
        let is_in = |number: usize| group == 0 || plan.is_in_small(number);
        let numbers = self.first..self.first + self.seats.len();
        self.tallies = Role::ALL.map(|role| {
            Tally::new(numbers.clone().filter(|number| plan.role(*number) == role && is_in(*number)).count())
        });
    }

    /// What came since.
    pub fn end_round(&mut self) -> Tallies {
        let sent = self.groups[self.group].sent();
        for (role, seq, at) in self.unplaced.drain(..) {
            if let Some(meant) = sent.meant(seq) {
                self.tallies[role as usize].late(meant, at);
            }
        }
        std::mem::replace(&mut self.tallies, Role::ALL.map(|_| Tally::new(0)))
    }

    /// Has a session send a message that is meant to leave at `at`.
    pub fn send(&mut self, member: usize, group: usize, at: Instant) {
        self.queued += 1;
        self.seats[member].sends.push_back((group, at));
    }

    /// Has a session have read a group up to its head.
    pub fn read(&mut self, member: usize, group: usize) {
        let (seq, ordinal) = self.groups[group].sent().head();
        self.seats[member].reads.push_back((group, seq, ordinal));
    }

    /// Has the user of a session open the round's group.
    pub fn open(&mut self, member: usize) {
        let (newest, _) = self.groups[self.group].sent().head();
        self.seats[member].opened = Some(Opened { at: Instant::now(), newest });
        self.seats[member].shows = Some(true);
    }

    /// Has the user of a session leave it.
    pub fn leave(&mut self, member: usize) {
        self.seats[member].shows = Some(false);
    }

    /// Sessions that opened the group and do not have its newest entries yet.
    pub fn opening(&self) -> usize {
        self.seats.iter().filter(|seat| seat.opened.is_some()).count()
    }

    fn look_at_screen(&mut self, member: usize) {
        let Some(seat) = self.seats.get_mut(member) else { return };
        if let Some(opened) = seat.opened
            && self.groups[self.group].holds(member, opened.newest)
        {
            seat.opened = None;
            self.opened_us.saturating_record(opened.at.elapsed().as_micros() as u64);
        }
    }

    fn transmit_screen(&mut self, member: usize, session: &mut ClientSession) {
        let Some(shows) = self.seats[member].shows.take() else { return };
        let (channel, mut state) = (self.groups[self.group].sent().channel(), self.state(member));
        if shows {
            state.set_attention(wire::Attention::Foreground);
            state.visible = vec![channel.0];
        }
        let mut said = session.state(&state);
        if shows && said.is_ok() {
            let newest = wire::Fetch { before: 0, after: 0, messages_max: ON_SCREEN, before_ms: 0 };
            said = session.fetch(channel, &newest).map(drop);
        }
        if let Err(code) = said {
            self.refused.get_or_insert(format!("a channel could not be opened: {code}"));
        }
    }

    /// Has a session fetch what it lacks.
    pub fn fetch(&mut self, member: usize) {
        self.seats[member].fetches = true;
    }

    /// Messages of a group that are still to be sent, or have no answer.
    pub fn unanswered(&self, sent: &Sent) -> u64 {
        self.queued + sent.unanswered()
    }

    /// Whether all sessions know of every group's head, and a figure that moves meanwhile.
    pub fn is_reached(&self) -> bool {
        self.groups.iter().all(|group| {
            let (those, all) = group.reached();
            those == all
        })
    }

    /// Whether those that fetch lack nothing.
    pub fn have_fetched(&self) -> bool {
        let lacks = |member| self.groups.iter().any(|group| group.lacks(member));
        let mut fetching = self.seats.iter().enumerate().filter(|(_, seat)| seat.fetches);
        fetching.all(|(member, seat)| !seat.fetching && (seat.fetched >= FETCHES_MAX || !lacks(member)))
    }

    /// Whether all sessions have the groups' heads as theirs.
    pub fn heads_are_equal(&self) -> bool {
        self.groups.iter().all(Reach::heads_are_equal)
    }

    /// Closes the groups: those that fetched, and all where delivery is full, hold everything.
    pub fn close(&mut self) -> Deliveries {
        let is_full = self.delivery == wire::Delivery::Full;
        let mut all = Deliveries::default();
        let seats = &self.seats;
        for group in &mut self.groups {
            all.add(group.close(|member| is_full || seats[member].fetches));
        }
        all
    }

    fn transmit_sends(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        while let Some((group, meant)) = self.seats[member].sends.pop_front() {
            (self.number, self.queued) = (self.number + 1, self.queued - 1);
            self.late = self.late.max(meant.elapsed());
            let sent = self.groups[group].sent();
            match sent.send(session, now_ms, self.first + member, self.number, meant) {
                Ok((request, id)) => {
                    let flight =
                        Flight { group, id, number: self.number, sent_ms: session.server_time_ms(now_ms) };
                    self.in_flight.insert((member, request), flight);
                }
                Err(code) => {
                    self.refused.get_or_insert(format!("a SEND could not be made: {code}"));
                }
            }
        }
        for mut flight in std::mem::take(&mut self.seats[member].again) {
            let sent = self.groups[flight.group].sent();
            match sent.again(session, flight.id, flight.number, flight.sent_ms) {
                Ok(request) => {
                    flight.sent_ms = session.server_time_ms(now_ms);
                    self.in_flight.insert((member, request), flight);
                }
                Err(_) => self.seats[member].again.push(flight),
            }
        }
    }

    fn transmit_fetch(&mut self, member: usize, session: &mut ClientSession) {
        let seat = &mut self.seats[member];
        if !seat.fetches || seat.fetching || seat.fetched >= FETCHES_MAX {
            return;
        }
        for group in &self.groups {
            match group.fetch(member, session) {
                Ok(true) => {
                    (seat.fetching, seat.fetched) = (true, seat.fetched + 1);
                    return;
                }
                Ok(false) => {}
                Err(code) => {
                    self.refused.get_or_insert(format!("a FETCH could not be made: {code}"));
                }
            }
        }
    }

    /// Who follows a group fetches what it was only told of, as a screen would: else the server counts it as behind, and sends from there
    /// on when it comes back.
    fn transmit_missed(&mut self, member: usize, session: &mut ClientSession) {
        let seat = &mut self.seats[member];
        for (group, head) in std::mem::take(&mut seat.missed) {
            let sent = self.groups[group].sent();
            let held = session.log(sent.channel()).map_or(0, |log| log.position);
            let asked = match seat.asked.iter().position(|(of, _)| *of == group) {
                Some(at) => at,
                None => {
                    seat.asked.push((group, held));
                    seat.asked.len() - 1
                }
            };
            let upto = &mut seat.asked[asked].1;
            *upto = held.max(*upto);
            while *upto < head {
                let next = head.min(*upto + u64::from(FETCH_MESSAGES));
                match sent.fetch(session, *upto, next) {
                    Ok(_) => *upto = next,
                    Err(Code::TOO_MANY_IN_FLIGHT) => {
                        // Once one of them is answered.
                        seat.missed.push((group, head));
                        break;
                    }
                    Err(code) => {
                        self.refused.get_or_insert(format!("a FETCH could not be made: {code}"));
                        return;
                    }
                }
            }
        }
    }

    fn state(&self, member: usize) -> wire::State {
        let mut state = wire::State::default();
        match self.role(member) {
            Role::Background | Role::Absent => state.set_attention(wire::Attention::Background),
            _ => state.set_attention(wire::Attention::Foreground),
        }
        if self.role(member) == Role::Visible {
            state.visible = self.groups.iter().map(|group| group.sent().channel().0).collect();
        }
        state
    }

    /// NOTIFY or GAP.
    fn told(&mut self, member: usize, channel: ChannelId, head: u64, ordinal: Option<u64>) {
        let (role, now) = (self.role(member), Instant::now());
        let Some(group) = self.group_of(channel) else { return };
        let follows = matches!(role, Role::Visible | Role::Active | Role::Warm);
        if let Some(seat) = self.seats.get_mut(member).filter(|_| follows) {
            seat.missed.push((group, head));
        }
        let news = self.groups[group].named(member, head, ordinal);
        if group != self.group || role == Role::Absent || news.is_empty() {
            return;
        }
        self.moved += 1;
        let tally = &mut self.tallies[role as usize];
        tally.named += 1;
        for seq in news {
            match self.groups[group].sent().meant(seq) {
                Some(meant) => tally.late(meant, now),
                None => self.unplaced.push((role, seq, now)),
            }
        }
    }
}

impl Load for World {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                let channel = frame.routed().map(|header| header.channel);
                let Some(group) = channel.and_then(|channel| self.group_of(channel)) else { return };
                if let Some((_, meant)) = self.groups[group].delivered(member, &frame)
                    && group == self.group
                {
                    self.moved += 1;
                    let tally = &mut self.tallies[self.plan.role(self.first + member) as usize];
                    tally.delivered += 1;
                    tally.late(meant, Instant::now());
                    self.look_at_screen(member);
                }
            }
            Event::Notified { channel, head, ordinal, .. } => self.told(member, channel, head, Some(ordinal)),
            Event::Synced(synced) => {
                for state in &synced.channels {
                    let Some(group) = self.group_of(ChannelId(state.channel)) else { continue };
                    self.groups[group].began(member, state);
                    if self.role(member) == Role::Absent && group == 0 {
                        self.returned += 1;
                        let head = self.groups[group].sent().head();
                        self.returned_equal += usize::from((state.head, state.ordinal) == head);
                    }
                }
            }
            Event::SendAck { request, ack, .. } => {
                let flight = self.in_flight.remove(&(member, request));
                if let Some(why) = refusal(&ack) {
                    match flight {
                        Some(flight) if self.is_killed => self.seats[member].again.push(flight),
                        Some(Flight { group, id, .. }) => {
                            self.groups[group].sent().not_acknowledged(id, true);
                            self.refused.get_or_insert(why);
                        }
                        None => _ = self.refused.get_or_insert(why),
                    }
                } else if let Some(Flight { group, .. }) = flight {
                    self.groups[group].sent().acknowledged(ack.seq, ack.ordinal);
                }
            }
            Event::Page { channel, page, .. } => {
                let Some(group) = self.group_of(channel) else { return };
                page_frames(&page).for_each(|frame| self.groups[group].paged(member, &frame));
                self.moved += 1;
                self.look_at_screen(member);
                if let Some(seat) = self.seats.get_mut(member).filter(|_| !page.more) {
                    seat.fetching = false;
                }
            }
            _ => {}
        }
    }

    fn is_new(&self, _channel: ChannelId, _seq: u64) -> bool {
        // What a head stands for is followed up: see `named`.
        false
    }

    fn named(&mut self, member: usize, channel: ChannelId, head: u64) -> bool {
        self.told(member, channel, head, None);
        true
    }

    fn refused(&mut self, _member: usize, _request: Option<u64>, _code: Code) -> bool {
        false
    }

    fn delivery(&self) -> wire::Delivery {
        self.delivery
    }

    fn ended(&mut self, member: usize, _ended: &Ended) -> bool {
        if !self.is_killed {
            return false;
        }
        self.came_back += 1;
        if let Some(seat) = self.seats.get_mut(member) {
            let unanswered: Vec<_> =
                self.in_flight.extract_if(|(of, _), _| *of == member).map(|(_, flight)| flight).collect();
            seat.again.extend(unanswered);
            (seat.has_said, seat.fetching, seat.counted) = (false, false, Received::default());
            seat.missed.clear();
            seat.asked.clear();
        }
        true
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        let is_tiered = self.delivery == wire::Delivery::Tiered;
        if member >= self.seats.len() {
            return;
        }
        let received = session.received();
        let counted = std::mem::replace(&mut self.seats[member].counted, received);
        let tally = &mut self.tallies[self.plan.role(self.first + member) as usize];
        tally.frames += received.frames - counted.frames;
        tally.bytes += received.bytes - counted.bytes;
        if is_tiered && !std::mem::replace(&mut self.seats[member].has_said, true) {
            let state = self.state(member);
            if let Err(code) = session.state(&state) {
                self.refused.get_or_insert(format!("a STATE could not be made: {code}"));
            }
        }
        self.transmit_sends(member, session, now_ms);
        while let Some((group, seq, ordinal)) = self.seats[member].reads.pop_front() {
            let channel = self.groups[group].sent().channel();
            if let Err(code) = session.mark_read(channel, seq, ordinal) {
                self.refused.get_or_insert(format!("a RECEIPT could not be made: {code}"));
            }
        }
        self.transmit_screen(member, session);
        self.transmit_missed(member, session);
        self.transmit_fetch(member, session);
    }
}
