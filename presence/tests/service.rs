//! The service on real stores: who may see whom, for a matrix of audiences and of what two users are to each other, by each way
//! that presence can be asked for; and last seens that outlive the service.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanfare_presence::{Audience, Config, Presence, Shown, Status, Stores};
use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame, FrameType, SessionId, UserId, frame,
    header::class,
    link::{Activity, Down, Downlink, GatewayId, Handle, Origin, PRESENCE_OWNER},
    wire,
};
use fanfare_storage::{
    content::Lists as _,
    embedded::{self, Embedded, Options},
    metadata::Metadata as _,
    model::{ListChange, User},
    seen::LastSeen as _,
};
use parking_lot::Mutex;

const GATEWAY: GatewayId = GatewayId(1);
/// Longest wait for what has to come.
const WAIT: Duration = Duration::from_secs(20);

/// A gateway that keeps what its sessions are told.
#[derive(Default)]
struct Sessions(Mutex<Vec<(Handle, Bytes)>>);

impl Downlink for Sessions {
    fn send(&self, owner: u16, down: Down) {
        assert_eq!(owner, PRESENCE_OWNER);
        let Down::Reply { handle, frames } = down else { panic!("{down:?}") };
        self.0.lock().push((handle, frames));
    }
}

struct House {
    embedded: Embedded,
    presence: Presence,
    sessions: Arc<Sessions>,
    _folder: tempfile::TempDir,
}

fn stores(embedded: &Embedded) -> Stores {
    Stores {
        metadata: embedded.metadata.clone(),
        accounts: embedded.metadata.clone(),
        lists: embedded.store.clone(),
        seen: embedded.metadata.clone(),
    }
}

impl House {
    fn new(users: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options { log_bytes: 0, ..Options::default() };
        let embedded = embedded::open(folder.path(), &options).expect("opened");
        for user in 1..=users {
            let row =
                User { user: UserId(user), name: format!("u{user}"), flags: User::BOT, tokens_from_s: 0 };
            assert!(embedded.metadata.add_user(&row).expect("written"));
        }
        let config = Config { change_every: Duration::from_millis(10), ..Config::default() };
        let presence = Presence::start(config, stores(&embedded)).expect("started");
        let sessions = Arc::new(Sessions::default());
        presence.attach_gateway(GATEWAY, sessions.clone());
        Self { embedded, presence, sessions, _folder: folder }
    }

    fn up(&self, user: u64) {
        self.presence.activities().publish(Activity::Up(origin(user))).expect("there is room");
    }

    fn say(&self, user: u64, body: &wire::Presence) {
        let mut bytes = frame::routed(FrameType::Presence, class::CONTROL, 0, 0, ChannelId(0), 0, body);
        let frame = Frame::split_from(&mut bytes).expect("whole").expect("whole");
        self.presence.activities().publish(Activity::Presence(origin(user), frame)).expect("there is room");
    }

    fn watch(&self, user: u64, watch: Vec<u64>) {
        self.say(user, &wire::Presence { watch, ..Default::default() });
    }

    /// What a session knows by all it was told.
    fn view(&self, user: u64) -> HashMap<u64, wire::UserPresence> {
        let mut view = HashMap::new();
        for presence in self.told(user) {
            view.extend(presence.users.iter().map(|one| (one.user, *one)));
        }
        view
    }

    fn told(&self, user: u64) -> Vec<wire::Presence> {
        let frames = self.frames(user);
        let frames = frames.iter().filter(|frame| frame.frame_type() == FrameType::Presence);
        frames.map(|frame| frame.decode().expect("decodes")).collect()
    }

    /// How many of its frames were answered each way: done, and not.
    fn answers(&self, user: u64) -> (usize, usize) {
        let done = self.told(user).iter().filter(|told| told.users.is_empty()).count();
        let frames = self.frames(user);
        let failed = frames.iter().filter(|frame| frame.frame_type() == FrameType::Error);
        let failed = failed.map(|frame| frame.decode::<wire::Error>().expect("decodes"));
        let failed = failed.inspect(|error| assert_eq!(error.code, u32::from(Code::RETRY_LATER.0)));
        (done, failed.count())
    }

    fn frames(&self, user: u64) -> Vec<Frame> {
        let told = self.sessions.0.lock();
        let frames = told.iter().filter(|(handle, _)| *handle == origin(user).handle);
        let frames = frames.flat_map(|(_, frames)| Frame::iter(frames.clone()));
        frames.map(|frame| frame.expect("whole")).collect()
    }

    fn list(&self, user: u64, channel: u64, seq: u64, listed: bool) {
        let change = ListChange { user: UserId(user), channel: ChannelId(channel), seq, listed };
        self.embedded.store.apply(&[change]).expect("applied");
    }

    /// Waits until it holds.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + WAIT;
        while !holds(self) {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn of(&self, viewer: Option<u64>, user: u64) -> Shown {
        let shown = self.presence.of(viewer.map(UserId), vec![UserId(user)]).await.expect("answered");
        shown.into_iter().next().expect("one")
    }
}

fn origin(user: u64) -> Origin {
    Origin {
        gateway: GATEWAY,
        handle: Handle::new(0, user as u32, user as u32),
        session: SessionId(user),
        user: UserId(user),
        device: DeviceId(user),
    }
}

/// What a user is to the one who looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Relation {
    shares: bool,
    /// Shared a channel once.
    left: bool,
    blocks: bool,
    is_blocked: bool,
}

fn relations() -> impl Iterator<Item = Relation> {
    (0u8..16).map(|bits| Relation {
        shares: bits & 1 != 0,
        left: bits & 2 != 0,
        blocks: bits & 4 != 0,
        is_blocked: bits & 8 != 0,
    })
}

const AUDIENCES: [Audience; 3] = [Audience::Everyone, Audience::SharedChannels, Audience::Nobody];

fn may_see(audience: Audience, relation: Relation) -> bool {
    let is_blocked = relation.blocks || relation.is_blocked;
    !is_blocked
        && (audience == Audience::Everyone || (audience == Audience::SharedChannels && relation.shares))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_sees_by_every_way() {
    const VIEWER: u64 = 1;
    let cells: Vec<(u64, Audience, Relation)> = AUDIENCES
        .iter()
        .flat_map(|audience| relations().map(|relation| (*audience, relation)))
        .zip(2..)
        .map(|((audience, relation), user)| (user, audience, relation))
        .collect();
    let house = House::new(cells.len() as u64 + 1);
    for (user, audience, relation) in &cells {
        let (user, channel) = (*user, 10_000 + user);
        house.list(user, 1_000, 1, true);
        if relation.shares {
            house.list(user, channel, 1, true);
            house.list(VIEWER, channel, 1, true);
        }
        if relation.left {
            let channel = channel + 10_000;
            house.list(user, channel, 1, true);
            house.list(VIEWER, channel, 1, true);
            house.list(VIEWER, channel, 2, false);
        }
        let metadata = &house.embedded.metadata;
        if relation.blocks {
            metadata.block(UserId(VIEWER), UserId(user), true, 100).expect("written");
        }
        if relation.is_blocked {
            metadata.block(UserId(user), UserId(VIEWER), true, 100).expect("written");
        }
        house.presence.show_to(UserId(user), *audience).await.expect("written");
        house.up(user);
    }
    house.up(VIEWER);
    // One who is not there is like one who shows nothing.
    let nobody = cells.len() as u64 + 2;
    let mut watched: Vec<u64> = cells.iter().map(|(user, ..)| *user).collect();
    watched.push(nobody);
    house.watch(VIEWER, watched.clone());
    house.until("all are told", |house| house.view(VIEWER).len() == watched.len());
    // Each changes its audience to each, in turn.
    for round in 0..3 {
        let audience_of = |first: Audience| {
            let at = AUDIENCES.iter().position(|one| *one == first).expect("one of them");
            AUDIENCES[(at + round) % 3]
        };
        for (user, first, _) in &cells {
            house.presence.show_to(UserId(*user), audience_of(*first)).await.expect("written");
        }
        let wrong = |house: &House| {
            let view = house.view(VIEWER);
            let wanted = |audience, relation| {
                let is_shown = may_see(audience_of(audience), relation);
                if is_shown { wire::PresenceStatus::Online } else { wire::PresenceStatus::NotTold }
            };
            let is_wrong = |(user, audience, relation): &&(u64, Audience, Relation)| {
                view[user].status() != wanted(*audience, *relation)
            };
            cells.iter().filter(is_wrong).copied().collect::<Vec<_>>()
        };
        house.until("views follow", |house| wrong(house).is_empty());
        for (user, audience, relation) in &cells {
            let seen = house.of(Some(VIEWER), *user).await;
            let is_shown = may_see(audience_of(*audience), *relation);
            assert_eq!(seen.seen.map(|seen| seen.status), is_shown.then_some(Status::Online), "{relation:?}");
            assert_eq!(seen.devices, [], "devices are the user's own business");
            let own = house.of(Some(*user), *user).await;
            assert_eq!((own.seen.map(|seen| seen.status), own.devices.len()), (Some(Status::Online), 1));
            let operator = house.of(None, *user).await;
            assert_eq!(operator.seen.map(|seen| seen.status), Some(Status::Online));
        }
        assert_eq!(house.view(VIEWER)[&nobody].status(), wire::PresenceStatus::NotTold);
        assert_eq!(house.of(Some(VIEWER), nobody).await.seen, None);
    }
    for presence in house.view(VIEWER).values() {
        let is_hidden = presence.status() == wire::PresenceStatus::NotTold;
        assert!(!is_hidden || presence.last_seen_ms == 0, "{presence:?}");
    }
    // A block counts at once.
    let (user, ..) = cells
        .iter()
        .find(|(user, ..)| house.view(VIEWER)[user].status() == wire::PresenceStatus::Online)
        .copied()
        .expect("somebody is seen");
    house.embedded.metadata.block(UserId(user), UserId(VIEWER), true, 100).expect("written");
    house.presence.recheck(UserId(user)).await.expect("asked");
    house.until("the block counts", |house| {
        house.view(VIEWER)[&user].status() == wire::PresenceStatus::NotTold
    });
    house.presence.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audience_is_set_over_the_wire_and_stays() {
    let house = House::new(2);
    house.up(1);
    house.up(2);
    house.watch(1, vec![2]);
    let shown = |house: &House| house.view(1).get(&2).map(wire::UserPresence::status);
    house.until("they share nothing", |house| shown(house) == Some(wire::PresenceStatus::NotTold));
    let audience = wire::Audience::Everyone.into();
    house.say(2, &wire::Presence { audience, ..Default::default() });
    house.until("it is answered", |house| house.told(2).iter().any(|told| told.audience == audience));
    house.until("it counts", |house| shown(house) == Some(wire::PresenceStatus::Online));
    assert_eq!(house.presence.audience(UserId(2)).await, Ok(Audience::Everyone));
    assert_eq!(house.presence.audience(UserId(3)).await, Err(Code::NO_SUCH_USER));
    let row = house.embedded.metadata.user(UserId(2)).expect("read").expect("there");
    assert_ne!(row.flags & User::BOT, 0, "other flags stay");
    house.presence.clone().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_others_from_choosing_their_audience() {
    let house = House::new(5);
    for user in 1..=5 {
        house.up(user);
        house.watch(user, vec![user]);
        house.until("it is told", |house| !house.view(user).is_empty());
    }
    let choose = |user, audience: wire::Audience| {
        house.say(user, &wire::Presence { audience: audience.into(), ..Default::default() });
    };
    // Three say again and again what is so already.
    for _ in 0..100 {
        (1..=3).for_each(|user| choose(user, wire::Audience::SharedChannels));
    }
    // One changes its mind with every frame: so often, and not more.
    for number in 0..10 {
        let even = number % 2 == 0;
        choose(4, if even { wire::Audience::Nobody } else { wire::Audience::Everyone });
    }
    choose(5, wire::Audience::Nobody);
    house.until("all are answered", |house| {
        (1..=5).map(|user| house.answers(user)).map(|(done, failed)| done + failed).sum::<usize>() == 311
    });
    for user in 1..=3 {
        assert_eq!(house.answers(user), (100, 0), "{user}: what changes nothing is not counted");
    }
    // Those refused where the row stood so already were answered as done.
    let (done, failed) = house.answers(4);
    assert_eq!((done, failed), (7, 3));
    assert_eq!(house.presence.audience(UserId(4)).await, Ok(Audience::Nobody));
    assert_eq!(house.answers(5), (1, 0), "the last is served as well");
    assert_eq!(house.presence.audience(UserId(5)).await, Ok(Audience::Nobody));
    house.presence.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_seens_outlive_the_service() {
    let house = House::new(300);
    for user in 1..=300 {
        house.up(user);
    }
    let before_ms = unix_ms();
    for user in 1..=300 {
        house.presence.activities().publish(Activity::Down(origin(user), 0)).expect("there is room");
    }
    // What gateways said before is taken first.
    house.presence.clone().shutdown().await;
    let first = house.embedded.metadata.last_seen(UserId(300)).expect("read");
    assert!(first >= before_ms, "{first} is before {before_ms}");
    let presence = Presence::start(Config::default(), stores(&house.embedded)).expect("started");
    let shown = presence.of(None, (1..=300).map(UserId).collect()).await.expect("answered");
    for shown in shown {
        let seen = shown.seen.expect("operators see all");
        assert_eq!(seen.status, Status::Offline);
        assert!(seen.last_seen_ms >= before_ms, "{shown:?}");
    }
    presence.clone().shutdown().await;
    assert_eq!(presence.of(None, vec![UserId(1)]).await, Err(Code::RETRY_LATER), "it has ended");
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}
