//! Watch lists: each session's are taken at a pace, who may see whom is asked of the caller, changes are gathered for each
//! session and told at a pace, and what was told is told again later, as it may have been lost on the way.

use std::collections::VecDeque;

use fanfare_proto::{
    Code, UserId,
    link::{GatewayId, Handle, Origin},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use super::{Engine, Now, Seen, Status};

/// Users on all lists, those that wait too, each time they are.
const WATCHED_MAX: usize = 4_000_000;
/// Of each session one list is looked at in so long: all on it are asked about anew.
const LIST_MS: u64 = 500;
/// What was told is told again so long after,
const REPEAT_MS: u64 = 20_000;
/// and so often.
const REPEATS: u8 = 2;
/// Whether somebody may be seen is asked again after this: channels are joined and left.
const RECHECK_MS: u64 = 30_000;

/// What a session is told: its users, in any order; `None` for one it may not see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Which session.
    pub origin: Origin,
    /// Who, and how they stand.
    pub users: Vec<(UserId, Option<Seen>)>,
}

/// A question: may `viewer` see `user`?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Check {
    /// Who looks.
    pub viewer: UserId,
    /// At whom.
    pub user: UserId,
    /// Whether the user's last seen is wanted, too.
    pub wants_seen: bool,
    watcher: usize,
    number: u64,
    place: usize,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Yes; with the last seen as it is stored, where it was wanted, else 0.
    Shown(u64),
    /// No.
    Hidden,
    /// It cannot be told now: what was told before holds, and nothing is told to one who has not been.
    Unknown,
}

/// A user on a list.
#[derive(Debug)]
pub struct Target {
    pub person: usize,
    user: UserId,
    /// Whether the watcher may see it; `None` until that is known.
    allowed: Option<bool>,
    /// What it was told last.
    told: Option<Option<Seen>>,
    is_pending: bool,
    /// To be told although it is as it was told.
    is_forced: bool,
    repeats: u8,
}

/// A session that watches.
#[derive(Debug)]
pub struct Watcher {
    origin: Origin,
    pub targets: Vec<Target>,
    /// Places in the list that are to be told.
    pending: Vec<u32>,
    is_pending: bool,
    next_ms: u64,
    /// The next place to ask about, on the list that it is on.
    unchecked: usize,
    checks: Checks,
    is_repeating: bool,
    /// Tells watchers apart that had the same place, and lists of one session.
    number: u64,
}

/// On which list of questions a watcher is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Checks {
    None,
    Fresh,
    Again,
}

/// A session whose list was looked at a moment ago.
#[derive(Debug)]
struct Pace {
    origin: Origin,
    /// When the next may be.
    due_ms: u64,
    /// The newest that came meanwhile.
    next: Option<Vec<UserId>>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Watching {
    watchers: Slab<Watcher>,
    /// Those with something to tell.
    pending: VecDeque<(usize, u64)>,
    fresh: VecDeque<(usize, u64)>,
    again: VecDeque<(usize, u64)>,
    /// Single places that cannot wait.
    urgent: VecDeque<(usize, u64, usize)>,
    /// Ascending.
    repeats: VecDeque<(u64, usize, u64)>,
    rechecks: VecDeque<(u64, usize, u64)>,
    paces: HashMap<(GatewayId, Handle), Pace, RandomState>,
    /// When the time of each has come; ascending. One that is not of that time any more is void.
    paced: VecDeque<(u64, (GatewayId, Handle))>,
    numbers: u64,
    watched: usize,
    /// Users on lists that wait.
    waiting: usize,
}

impl Watching {
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    pub fn watched(&self) -> usize {
        self.watched
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes the list of a session that waits.
    fn take_next(&mut self, key: (GatewayId, Handle)) -> Option<Vec<UserId>> {
        let users = self.paces.get_mut(&key)?.next.take()?;
        self.waiting -= users.len();
        Some(users)
    }

    /// The session is over.
    pub fn forget(&mut self, key: (GatewayId, Handle)) {
        self.take_next(key);
        self.paces.remove(&key);
    }

    /// Takes a watcher away.
    pub fn take(&mut self, at: usize) -> Watcher {
        let watcher = self.watchers.remove(at);
        self.watched -= watcher.targets.len();
        watcher
    }

    fn get(&mut self, at: usize, number: u64) -> Option<&mut Watcher> {
        self.watchers.get_mut(at).filter(|watcher| watcher.number == number)
    }

    /// A place of a watcher's list is to be told.
    pub fn pend(&mut self, at: u32, place: u32) {
        let at = at as usize;
        let Some(watcher) = self.watchers.get_mut(at) else { return };
        let Some(target) = watcher.targets.get_mut(place as usize) else { return };
        if target.allowed.is_some() && !std::mem::replace(&mut target.is_pending, true) {
            watcher.pending.push(place);
            if !std::mem::replace(&mut watcher.is_pending, true) {
                self.pending.push_back((at, watcher.number));
            }
        }
    }

    fn queue_checks(&mut self, at: usize, checks: Checks) {
        let Some(watcher) = self.watchers.get_mut(at) else { return };
        watcher.unchecked = 0;
        // From `again` it may go before the others; its place there is then void.
        if watcher.checks != checks && watcher.checks != Checks::Fresh {
            watcher.checks = checks;
            let queue = if checks == Checks::Fresh { &mut self.fresh } else { &mut self.again };
            queue.push_back((at, watcher.number));
        }
    }
}

impl Engine {
    /// A session watches these users in place of those before; whoever may be seen is told as he stands. Within 500 ms of its
    /// last list this one waits, in place of another that does; the last list stays in force until then.
    ///
    /// # Errors
    /// `BAD_FIELD` beyond the bound of a session, `RETRY_LATER` beyond that of all or where the session is not known; the
    /// old list stays then.
    pub fn watch(&mut self, now: Now, origin: Origin, mut users: Vec<UserId>) -> Result<(), Code> {
        users.sort_unstable();
        users.dedup();
        if users.len() > self.config.watched_max {
            return Err(Code::BAD_FIELD);
        }
        let key = (origin.gateway, origin.handle);
        let pace = self.watching.paces.get(&key);
        let waits = pace.is_some_and(|pace| now.ms < pace.due_ms);
        let next = pace.and_then(|pace| pace.next.as_ref()).map_or(0, Vec::len);
        let old = self.by_session.get(&key).map_or(0, |at| self.watching.watchers[*at].targets.len());
        // A list that waits counts as well, and so finds room when its time comes.
        let replaced = if waits { next } else { next + old };
        if self.watching.watched + self.watching.waiting - replaced + users.len() > WATCHED_MAX {
            return Err(Code::RETRY_LATER);
        }
        // The list of a session that is not there would never be taken away again.
        let known = self.by_user.get(&origin.user).map(|at| &self.people[*at]);
        if !known.is_some_and(|person| person.sessions.iter().any(|session| session.is(&origin))) {
            return Err(Code::RETRY_LATER);
        }
        self.watching.take_next(key);
        match self.watching.paces.get_mut(&key) {
            Some(pace) if waits => {
                self.watching.waiting += users.len();
                pace.next = Some(users);
            }
            _ => self.look(now, origin, &users),
        }
        Ok(())
    }

    /// Looks at the lists whose time has come.
    pub(super) fn look_due(&mut self, now: Now) {
        while let Some((due_ms, key)) = self.watching.paced.pop_front_if(|(due, _)| *due <= now.ms) {
            let Some(pace) = self.watching.paces.get(&key).filter(|pace| pace.due_ms == due_ms) else {
                continue;
            };
            let origin = pace.origin;
            match self.watching.take_next(key) {
                Some(users) => self.look(now, origin, &users),
                None => drop(self.watching.paces.remove(&key)),
            }
        }
    }

    /// Puts a list in the place of the one before.
    fn look(&mut self, now: Now, origin: Origin, users: &[UserId]) {
        let key = (origin.gateway, origin.handle);
        let due_ms = now.ms + LIST_MS;
        self.watching.paces.insert(key, Pace { origin, due_ms, next: None });
        self.watching.paced.push_back((due_ms, key));
        let old = self.by_session.remove(&key);
        let next_ms = old.map_or(now.ms, |at| self.watching.watchers[at].next_ms);
        if !users.is_empty() {
            let people: Vec<usize> = users.iter().map(|user| self.person(*user)).collect();
            let targets = people.iter().zip(users).map(|(person, user)| Target {
                person: *person,
                user: *user,
                allowed: None,
                told: None,
                is_pending: false,
                is_forced: false,
                repeats: 0,
            });
            self.watching.numbers += 1;
            let number = self.watching.numbers;
            let watcher = Watcher {
                origin,
                targets: targets.collect(),
                pending: Vec::new(),
                is_pending: false,
                next_ms,
                unchecked: 0,
                checks: Checks::None,
                is_repeating: false,
                number,
            };
            self.watching.watched += users.len();
            let at = self.watching.watchers.insert(watcher);
            for (place, person) in people.iter().enumerate() {
                self.people[*person].watchers.push((at as u32, place as u32));
            }
            self.by_session.insert(key, at);
            self.watching.queue_checks(at, Checks::Fresh);
            self.watching.rechecks.push_back((now.ms + RECHECK_MS, at, number));
        }
        // Behind the new list, so that people on both stay where they are.
        if let Some(old) = old {
            self.end_watcher(old);
        }
    }

    /// The next question to be answered by [`Self::checked`]; those that were answered before only where `again`.
    pub fn next_check(&mut self, again: bool) -> Option<Check> {
        while let Some((at, number, place)) = self.watching.urgent.pop_front() {
            if self.watching.get(at, number).is_some() {
                return self.check_of(at, place);
            }
        }
        for checks in [Checks::Fresh, Checks::Again] {
            if checks == Checks::Again && !again {
                break;
            }
            loop {
                let watching = &mut self.watching;
                let queue = if checks == Checks::Fresh { &mut watching.fresh } else { &mut watching.again };
                let Some(&(at, number)) = queue.front() else { break };
                let watcher = watching.watchers.get_mut(at);
                match watcher.filter(|watcher| watcher.number == number && watcher.checks == checks) {
                    Some(watcher) if watcher.unchecked < watcher.targets.len() => {
                        watcher.unchecked += 1;
                        let place = watcher.unchecked - 1;
                        return self.check_of(at, place);
                    }
                    Some(watcher) => {
                        watcher.checks = Checks::None;
                        queue.pop_front();
                    }
                    None => drop(queue.pop_front()),
                }
            }
        }
        None
    }

    fn check_of(&self, at: usize, place: usize) -> Option<Check> {
        let watcher = self.watching.watchers.get(at)?;
        let target = watcher.targets.get(place)?;
        let wants_seen = !self.people.get(target.person)?.is_known();
        Some(Check {
            viewer: watcher.origin.user,
            user: target.user,
            wants_seen,
            watcher: at,
            number: watcher.number,
            place,
        })
    }

    /// The answer to a question.
    pub fn checked(&mut self, check: &Check, verdict: Verdict) {
        let Some(watcher) = self.watching.get(check.watcher, check.number) else { return };
        let Some(target) = watcher.targets.get_mut(check.place) else { return };
        let allowed = match verdict {
            Verdict::Unknown => return,
            Verdict::Hidden => false,
            Verdict::Shown(seen_ms) => {
                let person = &mut self.people[target.person];
                person.seen(seen_ms);
                if person.shown.status == Status::Offline && person.is_gone() {
                    person.shown.last_seen_ms = person.last_seen_ms;
                }
                true
            }
        };
        if target.allowed.replace(allowed) != Some(allowed) {
            self.watching.pend(check.watcher as u32, check.place as u32);
        }
    }

    /// A user's audience or blocks changed: nothing is told of or to that user before it was asked anew.
    pub fn recheck(&mut self, user: UserId) {
        let Some(&at) = self.by_user.get(&user) else { return };
        let person = &self.people[at];
        for (watcher, place) in &person.watchers {
            let (watcher, place) = (*watcher as usize, *place as usize);
            let Some(known) = self.watching.watchers.get_mut(watcher) else { continue };
            // Where it is not known the question waits already.
            if known.targets[place].allowed.take().is_some() {
                self.watching.urgent.push_back((watcher, known.number, place));
            }
        }
        let own = person.sessions.iter().map(|session| (session.gateway, session.handle));
        for watcher in own.filter_map(|key| self.by_session.get(&key).copied()) {
            for target in &mut self.watching.watchers[watcher].targets {
                target.allowed = None;
            }
            self.watching.queue_checks(watcher, Checks::Fresh);
        }
    }

    pub(super) fn recheck_due(&mut self, now: Now) {
        while let Some((_, at, number)) = self.watching.rechecks.pop_front_if(|(due, ..)| *due <= now.ms) {
            if self.watching.get(at, number).is_some() {
                self.watching.queue_checks(at, Checks::Again);
                self.watching.rechecks.push_back((now.ms + RECHECK_MS, at, number));
            }
        }
    }

    pub(super) fn repeat(&mut self, now: Now) {
        while let Some((_, at, number)) = self.watching.repeats.pop_front_if(|(due, ..)| *due <= now.ms) {
            let Some(watcher) = self.watching.get(at, number) else { continue };
            watcher.is_repeating = false;
            let mut places = Vec::new();
            for (place, target) in watcher.targets.iter_mut().enumerate() {
                if target.repeats > 0 {
                    target.is_forced = true;
                    places.push(place as u32);
                }
            }
            for place in places {
                self.watching.pend(at as u32, place);
            }
        }
    }

    /// What is to be told now, to sessions for which there is `room`; at most `most` of them.
    pub fn poll_told(&mut self, now: Now, most: usize, room: impl Fn(&Origin) -> bool) -> Vec<Told> {
        let mut told = Vec::new();
        for _ in 0..self.watching.pending.len() {
            if told.len() >= most {
                break;
            }
            let Some((at, number)) = self.watching.pending.pop_front() else { break };
            let Some(watcher) = self.watching.watchers.get_mut(at).filter(|one| one.number == number) else {
                continue;
            };
            if now.ms < watcher.next_ms || !room(&watcher.origin) {
                self.watching.pending.push_back((at, number));
                continue;
            }
            watcher.is_pending = false;
            let mut users = Vec::with_capacity(watcher.pending.len());
            let mut repeats = false;
            for place in watcher.pending.drain(..) {
                let target = &mut watcher.targets[place as usize];
                target.is_pending = false;
                let is_forced = std::mem::take(&mut target.is_forced);
                let Some(allowed) = target.allowed else { continue };
                let shown = allowed.then(|| self.people[target.person].shown);
                if target.told != Some(shown) {
                    target.repeats = REPEATS;
                } else if is_forced {
                    target.repeats = target.repeats.saturating_sub(1);
                } else {
                    continue;
                }
                repeats |= target.repeats > 0;
                target.told = Some(shown);
                users.push((target.user, shown));
            }
            if users.is_empty() {
                continue;
            }
            watcher.next_ms = now.ms + self.config.change_every.as_millis() as u64;
            if repeats && !std::mem::replace(&mut watcher.is_repeating, true) {
                self.watching.repeats.push_back((now.ms + REPEAT_MS, at, number));
            }
            told.push(Told { origin: watcher.origin, users });
        }
        told
    }
}
