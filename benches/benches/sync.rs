//! Group `sync`: the one way back, and history. A router in memory on embedded stores, without gateway or network: what a
//! session that returns costs (SYNC of 50 channels with 10 entries behind each), and a FETCH of 100 messages from a
//! channel's tail and from the content store. Beside them: copying the same frames, as many hops between two tasks, and
//! a bare range of fjall.

use std::{
    hint::black_box,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fanfare_benches::{RUN, SAMPLES, WARM_UP, frames};
use fanfare_proto::{
    ChannelId, ClientMessageId, DeviceId, Frame, FrameType, MessageId, SessionId, UserId,
    frame::{routed, short},
    header::class,
    link::{Down, Downlink, GatewayId, Handle, Origin, Proof, Up, Uplink},
    wire,
};
use fanfare_router::{Admin, Router, RouterConfig, Stores};
use fanfare_storage::{
    content::Content,
    embedded::{self, FjallStore, SqliteMetadata},
    model::User,
    read::verified_range,
};
use tokio::runtime::Runtime;

/// Channels of the session that comes back.
const CHANNELS: usize = 50;
/// Entries behind in each.
const BEHIND: u64 = 10;
/// Messages of one FETCH.
const MESSAGES: u64 = 100;
/// Messages in the channel that is read: more than its tail holds.
const HISTORY: u64 = 2_000;
/// Where a FETCH begins that the tail cannot answer.
const OLD: u64 = 500;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

const GATEWAY: GatewayId = GatewayId(1);

/// A gateway that hands on what it is given and credits it at once.
struct Mirror {
    uplink: Arc<dyn Uplink>,
    /// Bounded by what the one session has asked for.
    given: mpsc::Sender<Down>,
}

impl Downlink for Mirror {
    fn send(&self, owner: u16, down: Down) {
        let bytes = down.charge_bytes();
        let credited = self.uplink.try_send(Up::Credit { gateway: GATEWAY, owner, bytes });
        debug_assert!(credited.is_ok(), "credit always finds room");
        // After the end nobody listens.
        let _ = self.given.send(down);
    }
}

/// A router on stores in a folder of its own, and one gateway.
struct House {
    runtime: Runtime,
    router: Option<Router>,
    admin: Admin,
    uplink: Arc<dyn Uplink>,
    given: mpsc::Receiver<Down>,
    content: Arc<FjallStore>,
    metadata: Arc<SqliteMetadata>,
    sessions: u64,
    ids: u64,
}

impl House {
    fn new(folder: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        let opened = embedded::open(folder, &embedded::Options::default()).expect("an empty folder");
        let stores = Stores {
            metadata: opened.metadata.clone(),
            content: opened.store.clone(),
            lists: opened.store.clone(),
            log: opened.store.clone(),
            ownership: opened.metadata.clone(),
            recovered: opened.recovered,
        };
        let router =
            Router::start(RouterConfig::new(runtime.handle().clone()), stores).expect("sound stores");
        let (sender, given) = mpsc::channel();
        let uplink = router.uplink();
        router.attach_gateway(GATEWAY, Arc::new(Mirror { uplink: uplink.clone(), given: sender }));
        Self {
            admin: router.admin(),
            router: Some(router),
            runtime,
            uplink,
            given,
            content: opened.store,
            metadata: opened.metadata,
            sessions: 0,
            ids: 0,
        }
    }

    fn user(&self, name: &str) -> UserId {
        let made = self.runtime.block_on(self.admin.create_user(name, User::FULL_DELIVERY));
        made.expect("a new name").user
    }

    fn new_id(&mut self) -> ClientMessageId {
        self.ids += 1;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.ids.to_be_bytes());
        ClientMessageId::new(now_ms, random)
    }

    fn group(&mut self, owner: UserId, member: UserId) -> ChannelId {
        let group = wire::Group { name: "group".into(), members: vec![member.0], ..Default::default() };
        let id = self.new_id();
        self.runtime.block_on(self.admin.create_group(owner, id, group)).expect("both exist")
    }

    fn up(&self, up: Up) {
        assert!(self.uplink.try_send(up).is_ok(), "an inbox is full of one session's requests");
    }

    fn frame(&self, origin: Origin, bytes: Bytes) {
        self.up(Up::Frame { origin, frame: frames::whole(bytes) });
    }

    fn next(&self) -> Down {
        self.given.recv_timeout(PATIENCE).expect("the router answers")
    }

    fn open(&mut self, user: UserId) -> Origin {
        self.sessions += 1;
        let handle = Handle::new(0, 1, self.sessions as u32);
        let origin =
            Origin { gateway: GATEWAY, handle, session: SessionId(self.sessions), user, device: DeviceId(1) };
        self.up(Up::Open {
            origin,
            proof: Proof::Token { issued_s: u64::MAX, generation: None },
            full: true,
            device_name: "bench".into(),
        });
        loop {
            if let Down::Opened { handle: of, outcome } = self.next()
                && of == handle
            {
                outcome.expect("the user may connect");
                return origin;
            }
        }
    }

    /// Sends so many messages and waits until all are acknowledged. Gives the channel's head.
    fn say(&mut self, origin: Origin, channel: ChannelId, count: u64) -> u64 {
        let mut head = 0;
        let mut left = count;
        while left > 0 {
            let some = left.min(100);
            for request in 1..=some {
                let id = Bytes::copy_from_slice(&self.new_id().0);
                self.frame(origin, frames::send(channel, request, id));
            }
            let mut waiting = some;
            while waiting > 0 {
                let Down::Reply { frames, .. } = self.next() else { continue };
                for frame in
                    Frame::iter(frames).flatten().filter(|frame| frame.frame_type() == FrameType::SendAck)
                {
                    let ack: wire::SendAck = frame.decode().expect("a sound SEND_ACK");
                    assert_eq!(ack.outcome(), wire::Outcome::Ok, "{ack:?}");
                    head = head.max(ack.seq);
                    waiting -= 1;
                }
            }
            left -= some;
        }
        head
    }

    /// A session ends and comes back with these positions. Gives the answers, the last of which says that it is complete.
    fn come_back(&mut self, origin: &mut Origin, positions: &[wire::Position]) -> Vec<Bytes> {
        self.up(Up::Close { origin: *origin });
        *origin = self.open(origin.user);
        let sync =
            wire::Sync { positions: positions.to_vec(), window: CHANNELS as u32, ..Default::default() };
        self.frame(*origin, short(FrameType::Sync, class::STATE, &sync));
        let mut answers = Vec::new();
        loop {
            let Down::Reply { handle, frames } = self.next() else { continue };
            if handle != origin.handle {
                continue;
            }
            let is_last = is_complete(&frames);
            answers.push(frames);
            if is_last {
                return answers;
            }
        }
    }

    /// A FETCH below `before` (0: from the head). Gives the frames of its pages.
    fn fetch(&mut self, origin: Origin, channel: ChannelId, before: u64) -> Vec<Bytes> {
        let fetch = wire::Fetch { before, messages_max: MESSAGES as u32, ..Default::default() };
        self.frame(origin, routed(FrameType::Fetch, class::HISTORY, 0, 0, channel, 1, &fetch));
        let mut pages = Vec::new();
        loop {
            let Down::Reply { frames, .. } = self.next() else { continue };
            for frame in Frame::iter(frames).flatten() {
                assert_ne!(frame.frame_type(), FrameType::Refused);
                if frame.frame_type() == FrameType::Page {
                    let page: wire::Page = frame.decode().expect("a sound PAGE");
                    pages.push(page.frames);
                    if !page.more {
                        return pages;
                    }
                }
            }
        }
    }

    /// Waits until everything that was sent can be read from the content store alone.
    fn drained(&self) {
        let is_drained = async {
            while self.admin.status().await.expect("it runs").counts.undrained > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, is_drained).await });
        waited.expect("drains end");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(router) = self.router.take() {
            self.runtime.block_on(router.shutdown());
        }
    }
}

/// Whether the last SYNCED is among these frames.
fn is_complete(frames: &Bytes) -> bool {
    Frame::iter(frames.clone()).flatten().any(|frame| match frame.frame_type() {
        FrameType::Synced => frame.decode::<wire::Synced>().is_ok_and(|synced| synced.complete),
        FrameType::Error => panic!("SYNC failed: {:?}", frame.decode::<wire::Error>()),
        _ => false,
    })
}

fn count(answers: &[Bytes], frame_type: FrameType) -> usize {
    answers
        .iter()
        .flat_map(|frames| Frame::iter(frames.clone()).flatten())
        .filter(|frame| frame.frame_type() == frame_type)
        .count()
}

fn copy(answers: &[Bytes], into: &mut Vec<u8>) {
    into.clear();
    for frames in answers {
        into.extend_from_slice(black_box(frames));
    }
    black_box(into);
}

fn come_back(criterion: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's folder is ours");
    let mut house = House::new(folder.path());
    let (sender, reader) = (house.user("sender"), house.user("reader"));
    let talking = house.open(sender);
    let positions: Vec<wire::Position> = (0..CHANNELS)
        .map(|_| {
            let channel = house.group(sender, reader);
            let head = house.say(talking, channel, BEHIND * 2);
            wire::Position { channel: channel.0, epoch: 1, seq: head - BEHIND }
        })
        .collect();
    let mut origin = house.open(reader);
    let answers = house.come_back(&mut origin, &positions);
    assert_eq!(count(&answers, FrameType::Deliver), CHANNELS * BEHIND as usize);

    let mut group = criterion.benchmark_group("sync/50 channels, 10 entries behind each");
    group.throughput(Throughput::Elements(CHANNELS as u64 * BEHIND));
    group
        .bench_function("close, open, SYNC", |bench| bench.iter(|| house.come_back(&mut origin, &positions)));
    let mut copied = Vec::new();
    group.bench_function("floor: memcpy", |bench| bench.iter(|| copy(&answers, &mut copied)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("threads");
    group.bench_function("floor: as many hops between two tasks", |bench| {
        let (to, mut asked) = tokio::sync::mpsc::channel::<Bytes>(CHANNELS);
        let (answer, mut from) = tokio::sync::mpsc::channel::<Bytes>(CHANNELS);
        let other = runtime.spawn(async move {
            while let Some(word) = asked.recv().await {
                if answer.send(word).await.is_err() {
                    return;
                }
            }
        });
        let to = &to;
        let from = &mut from;
        bench.iter(|| {
            // One after the other, as the channels of a SYNC are asked within its window.
            runtime.block_on(async {
                for frames in answers.iter().cycle().take(CHANNELS) {
                    to.send(frames.clone()).await.expect("the task runs");
                    black_box(from.recv().await);
                }
            });
        });
        other.abort();
    });
}

fn fetch(criterion: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's folder is ours");
    let mut house = House::new(&folder.path().join("store"));
    let (sender, reader) = (house.user("sender"), house.user("reader"));
    let channel = house.group(sender, reader);
    let origin = house.open(sender);
    let head = house.say(origin, channel, HISTORY);
    house.drained();
    let bare = bare_rows(folder.path(), channel, head);
    for (name, before) in [("tail", 0), ("content", OLD)] {
        let pages = house.fetch(origin, channel, before);
        assert_eq!(count(&pages, FrameType::Deliver), MESSAGES as usize);
        let mut group = criterion.benchmark_group(format!("sync/FETCH of 100 messages from {name}"));
        group.throughput(Throughput::Elements(MESSAGES));
        group.bench_function("FETCH", |bench| bench.iter(|| house.fetch(origin, channel, before)));
        let mut copied = Vec::new();
        group.bench_function("floor: memcpy", |bench| bench.iter(|| copy(&pages, &mut copied)));
        if before == 0 {
            continue;
        }
        group.bench_function("floor: bare fjall range", |bench| {
            bench.iter(|| {
                let (newest, oldest) = (key(channel, before - 1), key(channel, before - MESSAGES));
                let rows = bare.range(newest..=oldest).map(|row| row.into_inner().expect("a sound row"));
                let rows: Vec<_> = rows.collect();
                assert_eq!(rows.len(), MESSAGES as usize);
                rows
            });
        });
        let (first, limit) = (before - MESSAGES, MESSAGES as usize);
        group.bench_function("beside: the store's range", |bench| {
            bench.iter(|| {
                house.content.range(channel, first, before - 1, limit, usize::MAX).map(|rows| rows.len())
            });
        });
        group.bench_function("beside: the same, each frame against its hash", |bench| {
            bench.iter(|| {
                let (metadata, content) = (&*house.metadata, &*house.content);
                let range = (first, before - 1);
                verified_range(metadata, content, &message_id, channel, range, limit, usize::MAX)
                    .map(|verified| verified.frames.len())
            });
        });
    }
}

fn message_id(frame: &[u8]) -> Option<MessageId> {
    let entry: wire::Entry = frames::whole(Bytes::copy_from_slice(frame)).decode().ok()?;
    Some(MessageId(entry.message_id))
}

/// As many rows of the same size under the same keys, in a fjall of their own.
fn bare_rows(folder: &Path, channel: ChannelId, head: u64) -> fjall::Keyspace {
    let make = || -> Result<fjall::Keyspace, fjall::Error> {
        let database = fjall::Database::builder(folder.join("bare")).open()?;
        let rows = database.keyspace("rows", fjall::KeyspaceCreateOptions::default)?;
        for seq in 1..=head {
            rows.insert(key(channel, seq), &*frames::deliver(channel, seq))?;
        }
        database.persist(fjall::PersistMode::SyncData)?;
        Ok(rows)
    };
    make().expect("an empty folder")
}

/// Newest first, as the content store has them.
fn key(channel: ChannelId, seq: u64) -> [u8; 20] {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&channel.0.to_be_bytes());
    key[8..16].copy_from_slice(&(!seq).to_be_bytes());
    key
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(SAMPLES).warm_up_time(WARM_UP).measurement_time(RUN);
    targets = come_back, fetch
}
criterion_main!(group);
