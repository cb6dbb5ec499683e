//! The rules of presence, without IO: sessions come and go, a status follows, and those who watch are told.
//!
//! - `person`: one user's sessions and status;
//! - `watching`: watch lists, what is to be checked, told and told again;
//! - `writes`: when last seens are written.
//!
//! Times are of one clock that never falls, in milliseconds; last seens are Unix milliseconds. What was missed is made good by the
//! gateways' word of who is alive; who is not named for [`EXPIRES_MS`] is gone.

mod person;
mod watching;
mod writes;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use fanfare_proto::{
    DeviceId, UserId,
    link::{Alive, GatewayId, Handle, Origin},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use crate::Config;
use person::{Person, Session};
pub use watching::{Check, Told, Verdict};
use watching::{Watcher, Watching};
use writes::Writes;

/// A session that its gateway does not name for so long is gone: two words of it are missing.
pub const EXPIRES_MS: u64 = 35_000;
/// A session from which nothing came for so long counts as gone: a heartbeat is at most 30 s away.
pub const SILENT_MS: u32 = 38_000;
/// All users are looked at once in so long.
const SCAN_MS: u64 = 2_500;
/// The engine itself was not called for so long: gateways may have been kept from speaking, too.
const STALL_MS: u64 = 5_000;
/// The last seen of one who stays is written again where somebody was there so long after it was written last.
const WRITE_AGAIN_MS: u64 = 600_000;

/// The clocks of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic, milliseconds.
    pub ms: u64,
    /// Unix milliseconds.
    pub unix_ms: u64,
}

/// How a user, or a device, stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Status {
    /// No session.
    #[default]
    Offline,
    /// In the background for a while, on every device.
    Away,
    /// There.
    Online,
}

/// A status, and since when it is not online: Unix milliseconds, 0 while it is or where nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The status.
    pub status: Status,
    /// When the user was there last.
    pub last_seen_ms: u64,
}

/// One device of a user who is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Which.
    pub device: DeviceId,
    /// How it stands.
    pub status: Status,
}

/// How much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Users online.
    pub online: usize,
    /// Users away.
    pub away: usize,
    /// Users in memory.
    pub people: usize,
    /// Sessions that watch.
    pub watchers: usize,
    /// Users on their lists, each time they are.
    pub watched: usize,
    /// Users on lists that wait for their time.
    pub lists_waiting: usize,
    /// Last seens that wait to be written.
    pub writes_waiting: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    people: Slab<Person>,
    by_user: HashMap<UserId, usize, RandomState>,
    watching: Watching,
    by_session: HashMap<(GatewayId, Handle), usize, RandomState>,
    /// When somebody may have become offline; ascending.
    leaving: VecDeque<(u64, UserId)>,
    /// When somebody may have become away; each user once.
    resting: BinaryHeap<Reverse<(u64, UserId)>>,
    /// People whose status is to be looked at.
    changed: Vec<usize>,
    writes: Writes,
    scanned: usize,
    ticked_ms: u64,
    /// Nobody expires before.
    expires_from_ms: u64,
    online: usize,
    away: usize,
}

impl Engine {
    /// Nobody is there.
    pub fn new(config: Config, now: Now) -> Self {
        Self {
            writes: Writes::new(&config, now.ms),
            config,
            people: Slab::new(),
            by_user: HashMap::default(),
            watching: Watching::default(),
            by_session: HashMap::default(),
            leaving: VecDeque::new(),
            resting: BinaryHeap::new(),
            changed: Vec::new(),
            scanned: 0,
            ticked_ms: now.ms,
            expires_from_ms: now.ms,
            online: 0,
            away: 0,
        }
    }

    // ---- what gateways say

    /// A session is open.
    pub fn up(&mut self, now: Now, origin: Origin) {
        self.alive(now, Alive { origin, silent_ms: 0, foreground: None });
    }

    /// A session is over.
    pub fn down(&mut self, now: Now, origin: &Origin, silent_ms: u32) {
        self.end_session((origin.gateway, origin.handle));
        let Some(&at) = self.by_user.get(&origin.user) else { return };
        // Between two heartbeats it was there until it ended.
        let silent_ms = if silent_ms >= SILENT_MS { u64::from(silent_ms) } else { 0 };
        let heard_ms = now.unix_ms.saturating_sub(silent_ms);
        let person = &mut self.people[at];
        let Some(place) = person.sessions.iter().position(|session| session.is(origin)) else { return };
        let session = person.sessions.swap_remove(place);
        if !session.silent {
            person.seen(session.seen_ms(now).min(heard_ms));
        }
        self.left(now, at);
    }

    /// A session said whether it is in the foreground.
    pub fn shown(&mut self, now: Now, origin: &Origin, foreground: bool) {
        let Some(&at) = self.by_user.get(&origin.user) else { return };
        let Some(session) = self.people[at].session(origin) else { return };
        session.show(now, foreground);
        self.rests(now, at);
        self.change(at);
    }

    /// A session is there: known, or one whose coming was missed.
    pub fn alive(&mut self, now: Now, alive: Alive) {
        let Alive { origin, silent_ms, foreground } = alive;
        let at = self.person(origin.user);
        let silent = silent_ms >= SILENT_MS;
        let person = &mut self.people[at];
        let Some(session) = person.session(&origin) else {
            if !silent {
                let mut session = Session::new(now, &origin);
                if let Some(foreground) = foreground {
                    session.show(now, foreground);
                }
                person.sessions.push(session);
                person.seen(now.unix_ms);
                person.gone_ms = None;
                self.rests(now, at);
                self.write(now, at);
                self.change(at);
            }
            return;
        };
        session.alive_ms = now.ms;
        let was_silent = std::mem::replace(&mut session.silent, silent);
        if let Some(foreground) = foreground
            && session.foreground != Some(foreground)
        {
            session.show(now, foreground);
            self.rests(now, at);
            self.change(at);
        }
        if silent && !was_silent {
            self.people[at].seen(now.unix_ms.saturating_sub(u64::from(silent_ms)));
            self.left(now, at);
        } else if was_silent && !silent {
            self.people[at].gone_ms = None;
            self.change(at);
        }
        if !silent {
            self.stays(now, at, &origin, silent_ms);
        }
    }

    /// Has the last seen of one who stays written now and then: after a kill it is when he was there, not when he came.
    fn stays(&mut self, now: Now, at: usize, origin: &Origin, silent_ms: u32) {
        let person = &mut self.people[at];
        let Some(session) = person.session(origin) else { return };
        let there_ms = session.there_ms(now).min(now.ms.saturating_sub(u64::from(silent_ms)));
        // One that was never written waits for it.
        let is_old = person.written_ms.is_some_and(|written| there_ms >= written + WRITE_AGAIN_MS);
        if is_old && !self.writes.is_busy() {
            person.seen(now.unix_ms.saturating_sub(now.ms.saturating_sub(there_ms)));
            self.write(now, at);
        }
    }

    /// Looks at the person again when the next of its sessions may count as away.
    fn rests(&mut self, now: Now, at: usize) {
        let person = &mut self.people[at];
        let due = person.sessions.iter().filter_map(|session| session.away_ms(&self.config));
        if let Some(due) = due.filter(|due| *due > now.ms).min()
            && !std::mem::replace(&mut person.is_resting, true)
        {
            self.resting.push(Reverse((due, person.user)));
        }
    }

    /// One session less: whether it was the last shows in a moment.
    fn left(&mut self, now: Now, at: usize) {
        let person = &mut self.people[at];
        if person.is_gone() {
            person.gone_ms = Some(now.ms);
            let due = now.ms + self.config.offline_after.as_millis() as u64;
            self.leaving.push_back((due, person.user));
            self.write(now, at);
        }
        self.change(at);
    }

    fn change(&mut self, at: usize) {
        let person = &mut self.people[at];
        if !std::mem::replace(&mut person.is_changed, true) {
            self.changed.push(at);
        }
    }

    fn write(&mut self, now: Now, at: usize) {
        let person = &mut self.people[at];
        if !std::mem::replace(&mut person.is_due, true) {
            self.writes.add(now.ms, at, person.user, person.written_ms);
        }
    }

    /// The place of a user, who is put there where he is new.
    fn person(&mut self, user: UserId) -> usize {
        *self.by_user.entry(user).or_insert_with(|| self.people.insert(Person::new(user)))
    }

    // ---- time

    /// What time alone brings, and what follows from all that was said since the last tick.
    pub fn tick(&mut self, now: Now) {
        if now.ms.saturating_sub(self.ticked_ms) > STALL_MS {
            self.expires_from_ms = now.ms + EXPIRES_MS;
        }
        self.expire(now);
        self.ticked_ms = now.ms;
        self.look_due(now);
        while let Some((_, user)) = self.leaving.pop_front_if(|(due, _)| *due <= now.ms) {
            if let Some(&at) = self.by_user.get(&user) {
                self.change(at);
            }
        }
        while self.resting.peek().is_some_and(|Reverse((due, _))| *due <= now.ms) {
            let Some(Reverse((_, user))) = self.resting.pop() else { break };
            if let Some(&at) = self.by_user.get(&user) {
                self.people[at].is_resting = false;
                self.rests(now, at);
                self.change(at);
            }
        }
        for at in std::mem::take(&mut self.changed) {
            self.settle(now, at);
        }
        self.repeat(now);
        self.recheck_due(now);
    }

    /// What a person is shown as, from here on.
    fn settle(&mut self, now: Now, at: usize) {
        let person = &mut self.people[at];
        person.is_changed = false;
        let status = person.status(now, &self.config);
        let shown = Seen { status, last_seen_ms: person.last_seen(now, status) };
        let before = std::mem::replace(&mut person.shown, shown);
        if before != shown {
            self.online = self.online + usize::from(status == Status::Online)
                - usize::from(before.status == Status::Online);
            self.away =
                self.away + usize::from(status == Status::Away) - usize::from(before.status == Status::Away);
            for place in 0..self.people[at].watchers.len() {
                let (watcher, target) = self.people[at].watchers[place];
                self.watching.pend(watcher, target);
            }
        }
        self.forget_idle(at);
    }

    /// Looks at a part of all people: sessions that nobody names, and people whom nobody needs.
    fn expire(&mut self, now: Now) {
        let all = self.people.capacity();
        let passed_ms = now.ms.saturating_sub(self.ticked_ms).min(SCAN_MS);
        let part = (all as u64 * passed_ms).div_ceil(SCAN_MS) as usize;
        for _ in 0..part.min(all) {
            let at = self.scanned;
            self.scanned = if at + 1 >= all { 0 } else { at + 1 };
            let Some(person) = self.people.get_mut(at) else { continue };
            let before = person.sessions.len();
            let mut ended: smallvec::SmallVec<[(GatewayId, Handle); 2]> = smallvec::SmallVec::new();
            let mut seen_ms = 0;
            person.sessions.retain(|session| {
                let is_there = now.ms < self.expires_from_ms || now.ms < session.alive_ms + EXPIRES_MS;
                if !is_there {
                    ended.push((session.gateway, session.handle));
                    let unnamed_ms = now.ms - session.alive_ms;
                    seen_ms = seen_ms.max(now.unix_ms.saturating_sub(unnamed_ms).min(session.seen_ms(now)));
                }
                is_there
            });
            if person.sessions.len() < before {
                person.seen(seen_ms);
                self.left(now, at);
            } else {
                self.forget_idle(at);
            }
            for key in ended {
                self.end_session(key);
            }
        }
    }

    /// Takes a person away whom nobody needs.
    fn forget_idle(&mut self, at: usize) {
        let is_idle = |person: &Person| person.is_idle(self.ticked_ms, &self.config);
        if self.people.get(at).is_some_and(is_idle) {
            let person = self.people.remove(at);
            self.by_user.remove(&person.user);
        }
    }

    // ---- what is asked

    /// How a user stands, with the devices that are connected; `None` where nothing of the user is in memory.
    pub fn of(&self, now: Now, user: UserId) -> Option<(Seen, Vec<Device>)> {
        let person = self.people.get(*self.by_user.get(&user)?)?;
        let devices = person.sessions.iter().filter(|session| !session.silent);
        let devices = devices
            .map(|session| Device { device: session.device, status: session.status(now, &self.config) })
            .collect();
        (person.is_known() || person.shown.status != Status::Offline).then_some((person.shown, devices))
    }

    /// Last seens that are due, at most as many as go into this time.
    pub fn poll_writes(&mut self, now: Now) -> Vec<(UserId, u64)> {
        let mut rows = Vec::new();
        while let Some((at, user)) = self.writes.poll(now.ms) {
            rows.extend(self.write_of(now, at, user));
        }
        rows
    }

    /// All that waits to be written, at the end.
    pub fn drain_writes(&mut self, now: Now) -> Vec<(UserId, u64)> {
        let waiting = self.writes.drain();
        waiting.into_iter().filter_map(|(at, user)| self.write_of(now, at, user)).collect()
    }

    fn write_of(&mut self, now: Now, at: usize, user: UserId) -> Option<(UserId, u64)> {
        let person = self.people.get_mut(at).filter(|person| person.user == user)?;
        person.is_due = false;
        person.written_ms = Some(now.ms);
        let row = (user, person.last_seen_ms);
        Some(row)
    }

    /// Rows that could not be written wait again.
    pub fn unwritten(&mut self, now: Now, rows: &[(UserId, u64)]) {
        for (user, seen_ms) in rows {
            let at = self.person(*user);
            self.people[at].seen(*seen_ms);
            self.write(now, at);
        }
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            online: self.online,
            away: self.away,
            people: self.people.len(),
            watchers: self.watching.watchers(),
            watched: self.watching.watched(),
            lists_waiting: self.watching.waiting(),
            writes_waiting: self.writes.waiting(),
        }
    }

    /// What the session watched, and the list that waits, are nobody's any more.
    fn end_session(&mut self, key: (GatewayId, Handle)) {
        self.watching.forget(key);
        if let Some(watcher) = self.by_session.remove(&key) {
            self.end_watcher(watcher);
        }
    }

    fn end_watcher(&mut self, at: usize) {
        let Watcher { targets, .. } = self.watching.take(at);
        for (place, target) in targets.iter().enumerate() {
            self.unwatched(target.person, at, place);
        }
    }

    fn unwatched(&mut self, person: usize, watcher: usize, place: usize) {
        let watchers = &mut self.people[person].watchers;
        if let Some(found) = watchers.iter().position(|known| *known == (watcher as u32, place as u32)) {
            watchers.swap_remove(found);
        }
        self.forget_idle(person);
    }
}
