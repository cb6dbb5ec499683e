//! What is true of the watched users, what those who watch believe, and how long it took them.

use std::{
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use fanfare_proto::{UserId, wire, wire::PresenceStatus};
use hdrhistogram::Histogram;
use tokio::sync::Notify;

use super::super::population::Person;

/// Longest time that is told apart, microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;
/// A change that stands has to show within this.
pub const BOUND: Duration = Duration::from_secs(5);

/// A watched user, as it really is.
pub struct Watched {
    /// Its account.
    pub person: Person,
    /// Whether it is to be connected.
    pub wanted: bool,
    /// Whether it is, and since when.
    pub online: bool,
    /// See `online`.
    pub since: Instant,
    /// Whether it was looked at since.
    settled: bool,
    /// Who watches it.
    watchers: Vec<usize>,
    /// Has its task look at `wanted`.
    pub wake: Rc<Notify>,
}

/// In which part of the run sends are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Not at all.
    Unmeasured,
    /// Nobody comes or goes.
    Calm,
    /// All have gone at once.
    Mass,
}

/// See the module's page.
pub struct World {
    /// Those who are watched.
    pub watched: Vec<Watched>,
    by_user: HashMap<UserId, usize>,
    /// By watcher: what it was told last, by place of the user.
    views: Vec<HashMap<usize, PresenceStatus>>,
    /// From a change to its showing, each time it does.
    pub online_us: Histogram<u64>,
    /// See `online_us`.
    pub offline_us: Histogram<u64>,
    /// Changes that did not show with somebody within the bound.
    pub late: u64,
    /// Users told of in frames.
    pub told: u64,
    /// Where sends are counted.
    pub part: Part,
    /// From when a message was meant to leave to its SEND_ACK.
    pub calm_us: Histogram<u64>,
    /// See `calm_us`.
    pub mass_us: Histogram<u64>,
    /// Sessions that drop without a word instead of with one.
    pub drops: bool,
    /// Times a limiter spoke.
    pub limited: u64,
    /// Why the run cannot go on.
    pub failed: Option<String>,
    /// Sessions end.
    pub closing: bool,
}

impl World {
    /// Nobody is connected; `screens` are places of users, by watcher.
    pub fn new(people: &[Person], screens: &[Vec<usize>]) -> Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        let mut watchers = vec![Vec::new(); people.len()];
        for (watcher, screen) in screens.iter().enumerate() {
            screen.iter().for_each(|user| watchers[*user].push(watcher));
        }
        let watched = people.iter().zip(watchers).map(|(person, watchers)| Watched {
            person: person.clone(),
            wanted: true,
            online: false,
            since: Instant::now(),
            settled: true,
            watchers,
            wake: Rc::default(),
        });
        Ok(Self {
            watched: watched.collect(),
            by_user: people.iter().enumerate().map(|(at, person)| (person.id, at)).collect(),
            views: screens.iter().map(|_| HashMap::new()).collect(),
            online_us: histogram()?,
            offline_us: histogram()?,
            late: 0,
            told: 0,
            part: Part::Unmeasured,
            calm_us: histogram()?,
            mass_us: histogram()?,
            drops: false,
            limited: 0,
            failed: None,
            closing: false,
        })
    }

    /// A watched user came or went just now.
    pub fn changed(&mut self, at: usize, online: bool) {
        let watched = &mut self.watched[at];
        (watched.online, watched.since, watched.settled) = (online, Instant::now(), false);
    }

    /// One who watches was told.
    pub fn told(&mut self, watcher: usize, presence: &wire::Presence) {
        for user in &presence.users {
            let Some(at) = self.by_user.get(&UserId(user.user)) else { continue };
            self.told += 1;
            let status = user.status();
            let before = self.views[watcher].insert(*at, status);
            let watched = &self.watched[*at];
            if before.is_none_or(|before| before == status) || status != truth(watched) {
                continue;
            }
            let us = watched.since.elapsed().as_micros() as u64;
            let histogram = if watched.online { &mut self.online_us } else { &mut self.offline_us };
            histogram.saturating_record(us);
        }
    }

    /// Looks at changes that should show by now.
    pub fn look(&mut self) {
        for at in 0..self.watched.len() {
            let watched = &self.watched[at];
            if !watched.settled && watched.since.elapsed() >= BOUND {
                self.late += self.wrong_of(at);
                self.watched[at].settled = true;
            }
        }
    }

    /// How many who watch the user are wrong about it.
    fn wrong_of(&self, at: usize) -> u64 {
        let wanted = truth(&self.watched[at]);
        let is_wrong = |watcher: &&usize| self.views[**watcher].get(&at) != Some(&wanted);
        self.watched[at].watchers.iter().filter(is_wrong).count() as u64
    }

    /// How many beliefs are wrong now.
    pub fn wrong(&self) -> u64 {
        (0..self.watched.len()).map(|at| self.wrong_of(at)).sum()
    }

    /// Whether all are as they are to be.
    pub fn are_as_wanted(&self) -> bool {
        self.watched.iter().all(|watched| watched.online == watched.wanted)
    }

    /// A send was acknowledged.
    pub fn acknowledged(&mut self, meant: Instant) {
        let us = meant.elapsed().as_micros() as u64;
        match self.part {
            Part::Unmeasured => {}
            Part::Calm => self.calm_us.saturating_record(us),
            Part::Mass => self.mass_us.saturating_record(us),
        }
    }
}

fn truth(watched: &Watched) -> PresenceStatus {
    if watched.online { PresenceStatus::Online } else { PresenceStatus::Offline }
}
