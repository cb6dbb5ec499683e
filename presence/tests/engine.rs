//! The engine over virtual time: what those who watch believe is true once it is quiet, within the bounds that are promised, and
//! nobody is told of whom it may not see.

use std::collections::{BTreeMap, HashMap, HashSet};

use fanfare_presence::{
    Config, Engine, Now, Seen, Status,
    engine::{SILENT_MS, Verdict},
};
use fanfare_proto::{
    Code, DeviceId, SessionId, UserId,
    link::{Alive, GatewayId, Handle, Origin},
};
use proptest::prelude::*;

/// Unix time at the start.
const EPOCH_MS: u64 = 1_800_000_000_000;
const STEP_MS: u64 = 250;
/// Of a session's lists one is taken in so long.
const LIST_MS: u64 = 500;

fn at(ms: u64) -> Now {
    Now { ms, unix_ms: EPOCH_MS + ms }
}

fn origin(user: u64, number: u32) -> Origin {
    Origin {
        gateway: GatewayId(1),
        handle: Handle::new(0, number, number),
        session: SessionId(u64::from(number)),
        user: UserId(user),
        device: DeviceId(u64::from(number)),
    }
}

/// A live session as it really is.
#[derive(Clone, Copy, Debug)]
struct Live {
    user: u64,
    foreground: Option<bool>,
    since_background_ms: u64,
    /// It stopped speaking then; its gateway does not know.
    dead_ms: Option<u64>,
}

/// The engine, and everything around it that is true.
struct World {
    engine: Engine,
    now_ms: u64,
    live: BTreeMap<u32, Live>,
    hidden: HashSet<(u64, u64)>,
    lists: HashMap<u32, Vec<u64>>,
    /// Those before, by session: until when they may still be in force.
    lists_before: HashMap<u32, Vec<(u64, Vec<u64>)>>,
    views: HashMap<(u32, u64), Option<Seen>>,
    /// Frames that are lost: of each session every so many.
    lost: Option<u64>,
    /// By session and user.
    lost_in_a_row: HashMap<(u32, u64), u8>,
    counts: HashMap<u32, u64>,
    told: u64,
    written: HashMap<u64, Vec<(u64, u64)>>,
}

impl World {
    fn new(config: Config) -> Self {
        Self {
            engine: Engine::new(config, at(0)),
            now_ms: 0,
            live: BTreeMap::new(),
            hidden: HashSet::new(),
            lists: HashMap::new(),
            lists_before: HashMap::new(),
            views: HashMap::new(),
            lost: None,
            lost_in_a_row: HashMap::new(),
            counts: HashMap::new(),
            told: 0,
            written: HashMap::new(),
        }
    }

    fn now(&self) -> Now {
        at(self.now_ms)
    }

    fn up(&mut self, number: u32, user: u64) {
        let live = Live { user, foreground: None, since_background_ms: 0, dead_ms: None };
        if self.live.insert(number, live).is_none() {
            self.engine.up(self.now(), origin(user, number));
        }
    }

    fn down(&mut self, number: u32) {
        let Some(live) = self.live.remove(&number) else { return };
        let silent_ms = live.dead_ms.map_or(0, |dead| (self.now_ms - dead) as u32);
        self.engine.down(self.now(), &origin(live.user, number), silent_ms);
        self.lists.remove(&number);
        self.lists_before.remove(&number);
        self.views.retain(|(session, _), _| *session != number);
    }

    fn show(&mut self, number: u32, foreground: bool) {
        let now = self.now();
        let Some(live) = self.live.get_mut(&number) else { return };
        if live.foreground != Some(foreground) {
            (live.foreground, live.since_background_ms) = (Some(foreground), now.ms);
            let user = live.user;
            self.engine.shown(now, &origin(user, number), foreground);
        }
    }

    fn watch(&mut self, number: u32, users: Vec<u64>) {
        let Some(live) = self.live.get(&number).copied() else { return };
        let list = users.iter().map(|user| UserId(*user)).collect();
        self.engine.watch(self.now(), origin(live.user, number), list).expect("there is room");
        self.views.retain(|(session, user), _| *session != number || users.contains(user));
        if let Some(before) = self.lists.insert(number, users) {
            self.lists_before.entry(number).or_default().push((self.now_ms + LIST_MS, before));
        }
    }

    /// A quarter of a second passes, and everything is done that is due.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now = self.now();
        // As a gateway does it: each session every 15 s, those that are silent every second.
        if now.ms.is_multiple_of(1_000) {
            for (number, live) in &self.live {
                let silent_ms = live.dead_ms.map_or(0, |dead| (now.ms - dead) as u32);
                let is_due = now.ms / 1_000 % 15 == u64::from(number % 15) || silent_ms >= SILENT_MS;
                if is_due && silent_ms < 45_000 {
                    let origin = origin(live.user, *number);
                    self.engine.alive(now, Alive { origin, silent_ms, foreground: live.foreground });
                }
            }
            let over = |live: &Live| live.dead_ms.is_some_and(|dead| now.ms - dead >= 45_000);
            let over: Vec<u32> =
                self.live.iter().filter(|(_, live)| over(live)).map(|(number, _)| *number).collect();
            over.into_iter().for_each(|number| self.down(number));
        }
        self.engine.tick(now);
        while let Some(check) = self.engine.next_check(true) {
            let is_hidden = self.hidden.contains(&(check.viewer.0, check.user.0));
            self.engine.checked(&check, if is_hidden { Verdict::Hidden } else { Verdict::Shown(0) });
        }
        for told in self.engine.poll_told(now, usize::MAX, |_| true) {
            let number = told.origin.session.0 as u32;
            let viewer = told.origin.user.0;
            for (user, seen) in &told.users {
                assert!(
                    seen.is_none() || !self.hidden.contains(&(viewer, user.0)),
                    "{viewer} is told of {user}"
                );
            }
            self.told += 1;
            let count = self.counts.entry(number).or_insert(0);
            *count += 1;
            // What is told is told three times: the third time in a row it comes.
            let of_told = told.users.iter().map(|(user, _)| (number, user.0));
            let may_be_lost =
                of_told.clone().all(|key| self.lost_in_a_row.get(&key).is_none_or(|lost| *lost < 2));
            let is_lost = self.lost.is_some_and(|every| count.is_multiple_of(every)) && may_be_lost;
            for key in of_told {
                let lost = self.lost_in_a_row.entry(key).or_insert(0);
                *lost = if is_lost { *lost + 1 } else { 0 };
            }
            if is_lost {
                continue;
            }
            let list = self.lists.get(&number).expect("who is told watches");
            let before = self.lists_before.get(&number);
            for (user, seen) in told.users {
                if list.contains(&user.0) {
                    self.views.insert((number, user.0), seen);
                    continue;
                }
                let was_watched = |(until, list): &(u64, Vec<u64>)| now.ms < *until && list.contains(&user.0);
                let was_watched = before.is_some_and(|lists| lists.iter().any(was_watched));
                assert!(was_watched, "{user} is not watched by {number}");
            }
        }
        for (user, seen_ms) in self.engine.poll_writes(now) {
            self.written.entry(user.0).or_default().push((now.ms, seen_ms));
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.step();
        }
    }

    fn truth(&self, config: &Config, user: u64) -> Status {
        let away_ms = config.away_after.as_millis() as u64;
        let of = |live: &Live| match live.foreground {
            _ if live.dead_ms.is_some() => Status::Offline,
            Some(false) if self.now_ms >= live.since_background_ms + away_ms => Status::Away,
            _ => Status::Online,
        };
        self.live.values().filter(|live| live.user == user).map(of).max().unwrap_or_default()
    }

    fn view(&self, number: u32, user: u64) -> Option<Seen> {
        *self.views.get(&(number, user)).expect("it was told")
    }
}

#[derive(Clone, Debug)]
enum Step {
    Up(u32, u64),
    Down(u32),
    Die(u32),
    Show(u32, bool),
    Watch(u32, Vec<u64>),
    Hide(u64, u64, bool),
    Pass(u64),
}

const USERS: u64 = 6;

fn step() -> impl Strategy<Value = Step> {
    let session = 0u32..12;
    let user = 1..=USERS;
    prop_oneof![
        4 => (session.clone(), user.clone()).prop_map(|(session, user)| Step::Up(session, user)),
        3 => session.clone().prop_map(Step::Down),
        1 => session.clone().prop_map(Step::Die),
        2 => (session.clone(), any::<bool>()).prop_map(|(session, shown)| Step::Show(session, shown)),
        3 => (session, proptest::collection::btree_set(user.clone(), 0..5))
            .prop_map(|(session, users)| Step::Watch(session, users.into_iter().collect())),
        1 => (user.clone(), user, any::<bool>()).prop_map(|(one, other, hidden)| Step::Hide(one, other, hidden)),
        4 => (1u64..80_000).prop_map(|ms| Step::Pass(ms - ms % STEP_MS)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn views_come_to_the_truth(steps in proptest::collection::vec(step(), 1..60), lost in 0u64..4) {
        let config = Config::default();
        let mut world = World::new(config);
        world.lost = (lost > 1).then_some(lost);
        for step in steps {
            match step {
                Step::Up(session, user) => {
                    // A session is one user's.
                    world.down(session);
                    world.up(session, user);
                }
                Step::Down(session) => world.down(session),
                Step::Die(session) => {
                    let now_ms = world.now_ms;
                    if let Some(live) = world.live.get_mut(&session) {
                        live.dead_ms.get_or_insert(now_ms);
                    }
                }
                Step::Show(session, foreground) => {
                    if world.live.get(&session).is_some_and(|live| live.dead_ms.is_none()) {
                        world.show(session, foreground);
                    }
                }
                Step::Watch(session, users) => world.watch(session, users),
                Step::Hide(viewer, user, hidden) => {
                    if hidden { world.hidden.insert((viewer, user)) } else { world.hidden.remove(&(viewer, user)) };
                    world.engine.recheck(UserId(user));
                }
                Step::Pass(ms) => world.pass(ms),
            }
        }
        // Long enough for a silent death, and for what was lost to come again.
        world.pass(120_000);
        for (session, users) in &world.lists {
            let Some(live) = world.live.get(session) else { continue };
            for user in users {
                let status = world.view(*session, *user).map(|seen| seen.status);
                let is_hidden = world.hidden.contains(&(live.user, *user));
                let wanted = (!is_hidden).then(|| world.truth(&config, *user));
                prop_assert_eq!(status, wanted, "{} of {}", session, user);
            }
        }
        let online = (1..=USERS).filter(|user| world.truth(&config, *user) == Status::Online).count();
        prop_assert_eq!(world.engine.counts().online, online);
        // Written lazily, and never too often.
        for rows in world.written.values() {
            for pair in rows.windows(2) {
                prop_assert!(pair[1].0 - pair[0].0 >= 30_000, "{:?}", pair);
            }
        }
        // Nothing is left of those who are gone.
        let sessions: Vec<u32> = world.live.keys().copied().collect();
        sessions.into_iter().for_each(|session| world.down(session));
        world.pass(120_000);
        prop_assert_eq!(world.engine.counts(), Default::default());
    }
}

#[test]
fn coming_and_going_is_told_within_the_promised_times() {
    let mut world = World::new(Config::default());
    world.up(1, 1);
    world.watch(1, vec![2]);
    world.pass(1_000);
    assert_eq!(world.view(1, 2), Some(Seen::default()));
    world.up(2, 2);
    world.pass(1_000);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Online), "within a second");
    world.down(2);
    let gone_ms = EPOCH_MS + world.now_ms;
    world.pass(1_500);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Online), "it may come back at once");
    world.pass(3_000);
    let offline = Seen { status: Status::Offline, last_seen_ms: gone_ms };
    assert_eq!(world.view(1, 2), Some(offline), "within 5 s");
    world.up(3, 2);
    world.pass(1_000);
    let died_ms = world.now_ms;
    world.live.get_mut(&3).expect("it is there").dead_ms = Some(died_ms);
    world.pass(30_000);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Online), "a heartbeat may be so late");
    world.pass(14_000);
    let seen = world.view(1, 2).expect("it is shown");
    assert_eq!(seen.status, Status::Offline, "within 45 s of a silent death");
    assert!(seen.last_seen_ms.abs_diff(EPOCH_MS + died_ms) <= 1_000, "{seen:?}: when it spoke last");
}

#[test]
fn a_reconnect_is_not_told() {
    let mut world = World::new(Config::default());
    world.up(1, 1);
    world.up(2, 2);
    world.watch(1, vec![2]);
    // Beyond what is told again.
    world.pass(60_000);
    let before = world.told;
    for number in 3..40 {
        world.down(number - 1);
        world.pass(1_000);
        world.up(number, 2);
        world.pass(2_000);
    }
    assert_eq!(world.told, before);
}

#[test]
fn a_gateway_that_says_nothing_any_more_loses_its_sessions() {
    let mut world = World::new(Config::default());
    world.up(1, 1);
    let other = Origin { gateway: GatewayId(2), ..origin(2, 9) };
    world.engine.up(world.now(), other);
    world.watch(1, vec![2]);
    world.pass(30_000);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Online));
    world.pass(14_000);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Offline), "within 45 s");
}

#[test]
fn a_service_that_stood_still_takes_nobody_for_gone() {
    let mut world = World::new(Config::default());
    world.up(1, 1);
    world.up(2, 2);
    world.watch(1, vec![2]);
    world.pass(5_000);
    let told = world.told;
    world.now_ms += 600_000;
    world.pass(60_000);
    assert_eq!(world.view(1, 2).map(|seen| seen.status), Some(Status::Online));
    assert!(world.told - told <= 2, "what was told is told again, and nothing else");
}

#[test]
fn a_change_costs_by_those_who_watch() {
    let mut world = World::new(Config::default());
    for user in 1..=200u32 {
        world.up(user, u64::from(user));
    }
    for number in 1..=5 {
        world.watch(number, (100..150).collect());
    }
    world.pass(60_000);
    let before = world.told;
    for number in 100..150 {
        world.down(number);
    }
    world.pass(4_000);
    assert_eq!(world.told - before, 5, "one batch for each who watches, whatever the number of changes");
    let before = world.told;
    for number in 160..200 {
        world.down(number);
    }
    world.pass(10_000);
    assert_eq!(world.told, before, "nobody watches them");
}

#[test]
fn when_all_leave_at_once_their_last_seens_are_spread_and_none_is_lost() {
    const USERS: u32 = 15_000;
    let config = Config::default();
    let mut world = World::new(config);
    for user in 1..=USERS {
        world.up(user, u64::from(user));
    }
    world.pass(90_000);
    world.written.clear();
    for user in 1..=USERS {
        world.down(user);
    }
    let gone_ms = world.now_ms;
    let mut most = 0;
    while world.written.len() < USERS as usize {
        let before: usize = world.written.values().map(Vec::len).sum();
        world.step();
        let after: usize = world.written.values().map(Vec::len).sum();
        most = most.max(after - before);
        assert!(world.now_ms < gone_ms + 120_000, "{} are written", world.written.len());
    }
    assert!(most <= config.writes_per_s as usize, "{most} at once");
    assert!(world.now_ms >= gone_ms + 20_000, "they are spread");
    for (user, rows) in &world.written {
        assert_eq!(rows[..], [(rows[0].0, EPOCH_MS + gone_ms)], "{user}");
    }
}

#[test]
fn what_waits_at_the_end_is_written() {
    let mut world = World::new(Config::default());
    for user in 1..=50 {
        world.up(user, u64::from(user));
    }
    world.pass(1_000);
    for user in 1..=50 {
        world.down(user);
    }
    let gone_ms = EPOCH_MS + world.now_ms;
    let mut rows = world.engine.drain_writes(world.now());
    rows.extend(world.written.iter().map(|(user, rows)| (UserId(*user), rows[0].1)));
    let newest: BTreeMap<UserId, u64> = rows.into_iter().collect();
    assert_eq!(newest.len(), 50);
    assert!(
        newest.values().filter(|seen| **seen == gone_ms).count() >= 45,
        "what was written before is older"
    );
    assert_eq!(world.engine.counts().writes_waiting, 0);
}

#[test]
fn lists_have_bounds_and_an_owner() {
    let mut world = World::new(Config { watched_max: 3, ..Config::default() });
    world.up(1, 1);
    let watch = |engine: &mut Engine, ms, number, users: u64| {
        engine.watch(at(ms), origin(1, number), (1..=users).map(UserId).collect())
    };
    assert_eq!(watch(&mut world.engine, 0, 1, 4), Err(Code::BAD_FIELD));
    assert_eq!(watch(&mut world.engine, 0, 1, 3), Ok(()));
    assert_eq!(watch(&mut world.engine, 0, 2, 1), Err(Code::RETRY_LATER), "there is no such session");
    assert_eq!((world.engine.counts().watchers, world.engine.counts().watched), (1, 3));
    assert_eq!(watch(&mut world.engine, LIST_MS, 1, 0), Ok(()));
    assert_eq!((world.engine.counts().watchers, world.engine.counts().watched), (0, 0));
    assert_eq!(watch(&mut world.engine, LIST_MS + 1, 1, 3), Ok(()));
    assert_eq!(world.engine.counts().watchers, 0, "an empty list between two is one, too");
}

#[test]
fn of_lists_that_come_fast_one_is_looked_at_in_half_a_second_and_the_last_stays() {
    let mut engine = Engine::new(Config::default(), at(0));
    engine.up(at(0), origin(1, 1));
    let mut asked = Vec::new();
    // As many as a client may send in two seconds, each of another user; and then no more.
    for number in 0..60 {
        let now = at(number * 50);
        if number < 40 {
            let list = vec![UserId(100 + number)];
            assert_eq!(engine.watch(now, origin(1, 1), list), Ok(()), "none is refused");
        }
        engine.tick(now);
        while let Some(check) = engine.next_check(true) {
            asked.push((now.ms, check.user.0));
            engine.checked(&check, Verdict::Shown(0));
        }
        assert!(engine.counts().lists_waiting <= 1, "one waits at a time");
    }
    assert_eq!(asked, [(0, 100), (500, 110), (1_000, 120), (1_500, 130), (2_000, 139)]);
    let told = engine.poll_told(at(3_000), usize::MAX, |_| true);
    let told: Vec<UserId> = told.iter().flat_map(|told| &told.users).map(|(user, _)| *user).collect();
    assert_eq!(told, [UserId(139)]);
    let counts = engine.counts();
    assert_eq!((counts.watchers, counts.watched, counts.lists_waiting), (1, 1, 0));
}

#[test]
fn a_session_that_ends_forgets_the_list_that_waits() {
    let mut engine = Engine::new(Config::default(), at(0));
    engine.up(at(0), origin(1, 1));
    assert_eq!(engine.watch(at(0), origin(1, 1), vec![UserId(2)]), Ok(()));
    assert_eq!(engine.watch(at(100), origin(1, 1), vec![UserId(3), UserId(4)]), Ok(()));
    let counts = engine.counts();
    assert_eq!((counts.watched, counts.lists_waiting), (1, 2));
    engine.down(at(200), &origin(1, 1), 0);
    // One that comes at once is held up by nothing of it.
    engine.up(at(300), origin(1, 1));
    let counts = engine.counts();
    assert_eq!((counts.watchers, counts.watched, counts.lists_waiting), (0, 0, 0));
    assert_eq!(engine.watch(at(300), origin(1, 1), vec![UserId(5)]), Ok(()));
    for ms in [300, 500, 800, 1_000] {
        engine.tick(at(ms));
        let asked = std::iter::from_fn(|| engine.next_check(true)).map(|check| check.user.0);
        let asked: Vec<u64> = asked.collect();
        assert_eq!(asked, if ms == 300 { vec![5] } else { Vec::new() }, "at {ms}");
    }
}

#[test]
fn the_last_seen_of_one_who_stays_is_written_again() {
    let mut world = World::new(Config::default());
    world.up(1, 1);
    world.up(2, 2);
    world.pass(60_000);
    world.show(2, false);
    world.pass(3_540_000);
    let rows = &world.written[&1];
    for pair in rows.windows(2) {
        let passed_ms = pair[1].0 - pair[0].0;
        assert!((600_000..=660_000).contains(&passed_ms), "after {passed_ms} ms");
    }
    for (now_ms, seen_ms) in rows {
        let late_ms = EPOCH_MS + now_ms - seen_ms;
        assert!(late_ms <= 60_000, "{late_ms} ms after it was so");
    }
    let unwritten_ms = world.now_ms - rows.last().expect("it was written").0;
    assert!(unwritten_ms <= 660_000, "for {unwritten_ms} ms nothing was written");
    assert_eq!(world.written[&2].len(), 1, "in the background nobody is there");
}

#[test]
fn those_who_stay_do_not_hold_up_those_who_leave() {
    // In ten minutes 600 can be written.
    let mut world = World::new(Config { writes_per_s: 1, ..Config::default() });
    for user in 1..=1_000 {
        world.up(user, u64::from(user));
    }
    world.pass(2_000_000);
    world.down(7);
    let gone_ms = EPOCH_MS + world.now_ms;
    world.pass(120_000);
    assert_eq!(world.written[&7].last().map(|(_, seen_ms)| *seen_ms), Some(gone_ms));
}
