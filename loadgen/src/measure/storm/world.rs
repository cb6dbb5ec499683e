//! What the sessions of one side of `storm` share: who is in which group, what came, and how long it took.
//!
//! Session `n` below the number of talkers sends in group `n`; the next talker is in it too, so that the time from one to the other is known
//! whatever the storm does. All other sessions are spread over the groups. Talkers and those that drop run apart, each side with a world and
//! ledgers of its own; what is sent is known to both.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use fanfare_proto::{
    ChannelId, ClientMessageId, Frame, UserId,
    session::client::ClientSession,
    wire::{self, send::Content},
};
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::measure::{
    ledger::{Deliveries, Ledger, refusal},
    population::{Made, Person, message_id},
};

/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// The longest time that is told apart, in microseconds: ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Unanswered messages of a talker; later ones wait, and their time runs.
const IN_FLIGHT_MAX: usize = 200;

/// Who is in which group.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Sessions that talk and stay.
    pub talkers: usize,
    /// All sessions.
    pub sessions: usize,
}

impl Places {
    /// The sessions of a group, in the order of its ledger.
    pub fn members(self, group: usize) -> impl Iterator<Item = usize> {
        let dropping = (self.talkers + group..self.sessions).step_by(self.talkers);
        [group, (group + 1) % self.talkers].into_iter().chain(dropping)
    }

    /// How many of a group are on one side.
    fn count(self, group: usize, side: Side) -> usize {
        match side {
            Side::Talkers => 2,
            Side::Dropping => self.members(group).count() - 2,
        }
    }

    /// The place of a session in its side's ledger of a group.
    fn place(self, group: usize, session: usize) -> Option<usize> {
        if session == group {
            Some(0)
        } else if session == (group + 1) % self.talkers {
            Some(1)
        } else {
            let number = session.checked_sub(self.talkers)?;
            (number % self.talkers == group).then_some(number / self.talkers)
        }
    }
}

/// Which sessions a world is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Those that talk and stay.
    Talkers,
    /// Those that drop and come back.
    Dropping,
}

/// What talkers have sent and the other side has not seen yet: group, id and text. Written before it is sent.
pub type Sent = Arc<Mutex<Vec<(usize, ClientMessageId, String)>>>;

/// The groups to be made: their maker's number, and the others in it.
pub fn groups(places: Places, people: &[Person]) -> Vec<Vec<UserId>> {
    let others = |group| {
        places.members(group).skip(1).filter_map(|session| people.get(session)).map(|person| person.id)
    };
    (0..places.talkers).map(|group| others(group).collect()).collect()
}

struct Group {
    ledger: Ledger,
    /// When the messages that the next talker has not were meant to leave.
    meant: VecDeque<Instant>,
    sent: u64,
    unanswered: usize,
}

/// Which time a message belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Nobody has gone.
    Calm,
    /// From when all dropped until all are back.
    Storm,
}

/// When talkers talk.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    from: Instant,
    every: Duration,
    until: Option<Instant>,
}

/// See the module's page.
pub struct World {
    places: Places,
    side: Side,
    sent: Sent,
    groups: Vec<Group>,
    by_channel: HashMap<ChannelId, usize>,
    schedule: Option<Schedule>,
    number: u64,
    /// From when a message of the storm was meant to leave on.
    storm_from: Option<Instant>,
    /// From a message's intended time to its receipt by the next talker, in microseconds.
    pub calm_us: Histogram<u64>,
    pub storm_us: Histogram<u64>,
    /// Sessions that know where their channels stand.
    pub ready: usize,
    /// Dropping sessions that have let go.
    pub dropped: usize,
    /// Attempts to come back, and those by a token since the secret was not taken.
    pub attempts: u64,
    pub by_token: u64,
    /// Why the last attempt failed.
    pub attempt_failed: Option<String>,
    pub gaps: u64,
    pub repeats: u64,
    pub limited: u64,
    pub checked: usize,
    pub hole: Option<String>,
    pub failed: Option<String>,
    pub closing: bool,
}

impl World {
    /// Of groups that were just made.
    pub fn new(places: Places, side: Side, made: &[Made], sent: Sent) -> Result<Self> {
        let group = |(number, made): (usize, &Made)| Group {
            ledger: Ledger::new(made.channel, made.head, places.count(number, side)),
            meant: VecDeque::new(),
            sent: 0,
            unanswered: 0,
        };
        Ok(Self {
            places,
            side,
            sent,
            groups: made.iter().enumerate().map(group).collect(),
            by_channel: made.iter().enumerate().map(|(number, made)| (made.channel, number)).collect(),
            schedule: None,
            number: 0,
            storm_from: None,
            calm_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            storm_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            ready: 0,
            dropped: 0,
            attempts: 0,
            by_token: 0,
            attempt_failed: None,
            gaps: 0,
            repeats: 0,
            limited: 0,
            checked: 0,
            hole: None,
            failed: None,
            closing: false,
        })
    }

    /// Has each talker send a message `every` so often from now on.
    pub fn talk(&mut self, every: Duration) {
        self.groups.iter_mut().for_each(|group| group.sent = 0);
        self.calm_us.reset();
        self.storm_us.reset();
        self.schedule = Some(Schedule { from: Instant::now(), every, until: None });
        self.storm_from = None;
    }

    /// Nothing is meant to leave any more.
    pub fn hush(&mut self) {
        if let Some(schedule) = &mut self.schedule {
            schedule.until = Some(Instant::now());
        }
    }

    /// From now on messages are the storm's.
    pub fn storm(&mut self) {
        self.storm_from = Some(Instant::now());
        (self.dropped, self.attempts, self.by_token) = (0, 0, 0);
        self.attempt_failed = None;
    }

    fn phase(&self, meant_at: Instant) -> Phase {
        if self.storm_from.is_some_and(|from| meant_at >= from) { Phase::Storm } else { Phase::Calm }
    }

    /// Takes over what the talkers have sent.
    fn learn(&mut self) {
        if self.side == Side::Dropping {
            for (group, id, text) in self.sent.lock().drain(..) {
                if let Some(group) = self.groups.get_mut(group) {
                    group.ledger.sending(id, &text);
                }
            }
        }
    }

    /// Whether everything that was meant to leave is with everybody of this side.
    pub fn is_settled(&mut self) -> bool {
        self.learn();
        self.groups.iter().enumerate().all(|(number, group)| {
            group.unanswered == 0 && group.ledger.is_settled() && self.due(number).is_none()
        })
    }

    /// Closes all ledgers.
    pub fn deliveries(&mut self) -> Deliveries {
        self.learn();
        let mut all = Deliveries::default();
        self.groups.iter_mut().for_each(|group| all.add(group.ledger.close()));
        all.duplicated += self.repeats;
        all.examples.extend(self.hole.take());
        all
    }

    /// One entry for a session, by DELIVER or PAGE.
    pub fn delivered(&mut self, session: usize, frame: &Frame) {
        let Some(channel) = frame.routed().map(|header| header.channel) else { return };
        let Some(number) = self.by_channel.get(&channel).copied() else { return };
        let Some(place) = self.places.place(number, session) else { return };
        self.learn();
        let Some(group) = self.groups.get_mut(number) else { return };
        let before = group.ledger.deliveries.checked;
        group.ledger.delivered(place, frame);
        let news = (group.ledger.deliveries.checked - before) as usize;
        self.checked += news;
        // The second place is the next talker's; what a talker sends comes in the order in which it was sent.
        if (self.side, place) == (Side::Talkers, 1)
            && news > 0
            && let Some(meant_at) = group.meant.pop_front()
        {
            let us = meant_at.elapsed().as_micros() as u64;
            match self.phase(meant_at) {
                Phase::Calm => self.calm_us.saturating_record(us),
                Phase::Storm => self.storm_us.saturating_record(us),
            }
        }
    }

    /// The answer to a SEND.
    pub fn acknowledged(&mut self, session: usize, ack: &wire::SendAck) {
        if let Some(why) = refusal(ack) {
            self.failed.get_or_insert(why);
        }
        if let Some(group) = self.groups.get_mut(session) {
            group.unanswered = group.unanswered.saturating_sub(1);
        }
    }

    /// Whether a group's seq is one that this run made.
    pub fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        let group = self.by_channel.get(&channel).and_then(|number| self.groups.get(*number));
        group.is_some_and(|group| group.ledger.is_new(channel, seq))
    }

    /// When a session's next message is to leave, if it is to send one.
    pub fn next(&self, session: usize) -> Option<Instant> {
        let schedule = self.schedule?;
        let group = self.groups.get(session)?;
        let turn = schedule.every.mul_f64(session as f64 / self.places.talkers as f64);
        let at = schedule.from + turn + schedule.every.mul_f64(group.sent as f64);
        schedule.until.is_none_or(|until| at <= until).then_some(at)
    }

    fn due(&self, session: usize) -> Option<Instant> {
        self.next(session).filter(|at| *at <= Instant::now())
    }

    /// Queues what a talker is to send now.
    pub fn transmit(&mut self, talker: usize, session: &mut ClientSession, now_ms: u64) {
        while let Some(meant_at) = self.due(talker) {
            let Some(group) = self.groups.get_mut(talker) else { return };
            if group.unanswered >= IN_FLIGHT_MAX {
                return;
            }
            self.number += 1;
            let id = message_id(session.server_time_ms(now_ms), talker, self.number);
            let text = format!("{:0TEXT_BYTES$}", self.number);
            group.ledger.sending(id, &text);
            self.sent.lock().push((talker, id, text.clone()));
            let send = wire::Send {
                client_message_id: bytes::Bytes::copy_from_slice(&id.0),
                content: Some(Content::Message(wire::Message { text, ..Default::default() })),
                ..Default::default()
            };
            if let Err(code) = session.send(group.ledger.channel(), &send, false) {
                self.failed.get_or_insert(format!("a SEND could not be made: {code}"));
                return;
            }
            group.meant.push_back(meant_at);
            (group.sent, group.unanswered) = (group.sent + 1, group.unanswered + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { talkers: 3, sessions: 12 };

    #[test]
    fn every_dropping_session_is_in_one_group_and_every_talker_in_two() {
        let mut groups_of = [0; 12];
        for group in 0..PLACES.talkers {
            for (number, session) in PLACES.members(group).enumerate() {
                groups_of[session] += 1;
                let place = if number < 2 { number } else { number - 2 };
                assert_eq!(PLACES.place(group, session), Some(place));
            }
            assert_eq!((PLACES.count(group, Side::Talkers), PLACES.count(group, Side::Dropping)), (2, 3));
        }
        assert_eq!(groups_of, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(PLACES.place(0, 2), None);
        assert_eq!(PLACES.place(0, 4), None);
    }

    #[test]
    fn what_talkers_sent_is_missed_on_the_other_side() {
        let made = [1, 2, 3].map(|channel| Made { channel: ChannelId(channel), head: 0 });
        let sent = Sent::default();
        let mut world = World::new(PLACES, Side::Dropping, &made, sent.clone()).unwrap();
        assert!(world.is_settled());
        sent.lock().push((1, message_id(1_000, 1, 1), "one".into()));
        assert!(!world.is_settled());
        assert_eq!(world.deliveries().lost, 3);
    }

    #[test]
    fn a_message_is_the_storms_when_it_was_meant_to_leave_in_it() {
        let made = |channel| Made { channel: ChannelId(channel), head: 0 };
        let mut world =
            World::new(PLACES, Side::Talkers, &[made(1), made(2), made(3)], Sent::default()).unwrap();
        assert!(world.is_settled() && world.due(0).is_none());
        world.talk(Duration::from_secs(3600));
        let calm = world.due(0).unwrap();
        assert_eq!(world.due(1), None, "a third of an hour later");
        assert!(!world.is_settled());
        std::thread::sleep(Duration::from_millis(2));
        world.storm();
        assert_eq!(world.phase(calm), Phase::Calm);
        assert_eq!(world.phase(Instant::now()), Phase::Storm);
        world.groups[0].sent = 1;
        world.hush();
        assert!(world.is_settled(), "the next was meant to leave in an hour");
    }
}
