//! What outlives a client: the queue, what was seen, how far was read; and what a store must do.
#![cfg(feature = "disk")]
#![allow(clippy::unwrap_used)]

mod fake;

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use fake::{FakeGateway, Fault};
use fanfare_client::{
    Client, DiskStore, Event, Events, MemoryStore, SendError, State, Status, Store, StoreError,
    store::{Changes, SavedSend},
};
use fanfare_proto::{
    ChannelId, Code, FrameType, Seq, UserId, frame,
    session::client::ChannelLog,
    wire::{self, send::Content},
};

const ROOM: ChannelId = ChannelId(7);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

async fn until(events: &mut Events, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    soon(async {
        loop {
            let event = events.next().await.expect("the client lives");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

fn seq_of(event: &Event) -> Option<Seq> {
    match event {
        Event::Entry(entry) => Some(entry.seq),
        _ => None,
    }
}

fn offline(path: &Path) -> Client {
    // Nobody listens there.
    Client::builder("ws://127.0.0.1:9").token("a").store(DiskStore::open(path).unwrap()).start()
}

fn online(gateway: &FakeGateway, path: &Path) -> Client {
    Client::builder(gateway.ws_url()).token("a").store(DiskStore::open(path).unwrap()).start()
}

async fn gateway() -> FakeGateway {
    let gateway = FakeGateway::start().await;
    gateway.add_channel(7, false);
    gateway
}

fn text(handle: &fanfare_client::SendHandle) -> &str {
    match handle.content() {
        Content::Message(message) => &message.text,
        _ => "",
    }
}

#[tokio::test]
async fn a_queue_made_without_a_connection_is_sent_by_the_next_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let client = offline(&path);
    let handles: Vec<_> = (0..20).map(|number| client.send_text(ROOM, number.to_string())).collect();
    assert!(handles.iter().all(|handle| handle.status() == Status::Queued));
    assert!(handles[3].abort() && !handles[3].abort(), "once");
    assert_eq!(handles[3].clone().sent().await, Err(SendError::Aborted));
    assert_eq!(client.echoes(ROOM).len(), 19);
    soon(client.close()).await;
    let closed = handles[0].clone().sent().await.unwrap_err();
    assert_eq!(closed, SendError::Closed { attempted: false, kept: true });
    assert!(!closed.is_recoverable(), "sent once more it would be there twice");
    drop(client);

    let gateway = gateway().await;
    let client = online(&gateway, &path);
    let queue = client.queue();
    let kept: Vec<String> =
        (0..20).filter(|number| *number != 3).map(|number: u32| number.to_string()).collect();
    assert_eq!(queue.iter().map(text).collect::<Vec<_>>(), kept);
    for handle in queue {
        soon(handle.sent()).await.unwrap();
    }
    assert_eq!(gateway.texts(7), kept);
    soon(client.close()).await;
    drop(client);
    assert!(
        DiskStore::open(&path).unwrap().load().unwrap().sends.is_empty(),
        "settled sends leave the queue"
    );
}

#[tokio::test]
async fn an_attempt_without_an_answer_is_repeated_by_the_next_client_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let gateway = gateway().await;
    let client = online(&gateway, &path);
    let mut events = client.events();
    until(&mut events, |event| matches!(event, Event::Synced { .. })).await;
    // Committed, and the answer lost; the next sessions are refused until the client is gone.
    (0..20).for_each(|_| gateway.refuse(Code::OVERLOADED, 60_000));
    gateway.fault(Fault::CutAfter);
    let handle = client.send_text(ROOM, "one");
    let behind = client.send_text(ROOM, "two");
    until(&mut events, |event| matches!(event, Event::State(State::Disconnected { .. }))).await;
    assert_eq!((handle.status(), behind.status()), (Status::Sending, Status::Queued));
    assert!(!handle.abort(), "it may be committed");
    soon(client.close()).await;
    assert!(matches!(handle.sent().await, Err(SendError::Closed { attempted: true, kept: true })));
    drop(client);
    gateway.refuse_no_more();

    let client = online(&gateway, &path);
    let queue = client.queue();
    assert_eq!((queue[0].status(), queue[1].status()), (Status::Sending, Status::Queued));
    let sent = soon(queue[0].clone().sent()).await.unwrap();
    assert_eq!((sent.seq, sent.repeated), (1, true));
    soon(queue[1].clone().sent()).await.unwrap();
    assert_eq!(gateway.texts(7), ["one", "two"]);
    let attempts = gateway.attempts();
    assert_eq!(attempts.iter().map(|attempt| attempt.2.clone()).collect::<HashSet<_>>().len(), 2);
    let repeat = attempts.iter().find(|attempt| attempt.0).expect("a repeat that says so");
    assert!(repeat.1 >= fake::SERVER_TIME_MS, "with the time of the attempt before it");
}

#[tokio::test]
async fn what_was_seen_is_read_without_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let gateway = gateway().await;
    for number in 1..=30 {
        gateway.publish(7, &format!("number {number}"));
    }
    let client = online(&gateway, &path);
    let mut events = client.events();
    until(&mut events, |event| seq_of(event) == Some(30)).await;
    client.channel(ROOM).mark_read();
    let read =
        until(&mut events, |event| matches!(event, Event::ChannelChanged(state) if state.read == 30)).await;
    assert!(matches!(read, Event::ChannelChanged(state) if state.read_ordinal == state.ordinal));
    assert_eq!(client.unread(), 0);
    soon(client.close()).await;
    drop(client);

    let client = offline(&path);
    let room = client.channel(ROOM);
    assert_eq!((room.state().unwrap().head, room.unread()), (30, Some(0)));
    let newest = soon(room.history(0, 10)).await.unwrap();
    assert!(newest.offline && !newest.complete);
    let seqs =
        |history: &fanfare_client::History| history.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(seqs(&newest), (21..=30).collect::<Vec<_>>());
    let older = soon(room.history(newest.first, 100)).await.unwrap();
    assert_eq!((seqs(&older), older.complete), ((1..=20).collect(), true));
    assert_eq!(older.entries[0].text(), Some("number 1"));
    let watch = soon(room.watch()).await.unwrap();
    assert_eq!(watch.snapshot.entries.len(), 30);
    soon(client.close()).await;
    drop((client, room, watch));

    // And is not fetched again: the server is told where this client stands.
    gateway.publish(7, "number 31");
    let client = online(&gateway, &path);
    let mut watch = soon(client.channel(ROOM).watch()).await.unwrap();
    let first = match watch.snapshot.last {
        31 => 31,
        _ => soon(watch.next_entry()).await.unwrap().seq,
    };
    assert_eq!(first, 31);
}

#[tokio::test]
async fn an_echo_stays_until_the_copy_is_seen_and_statuses_rise() {
    let gateway = gateway().await;
    let client = Client::builder(gateway.ws_url()).token("a").connect().await.unwrap();
    let mut events = client.events();
    let mut handle = client.send_text(ROOM, "hello");
    assert_eq!(client.echoes(ROOM).len(), 1);
    let own = until(&mut events, |event| seq_of(event).is_some()).await;
    assert!(client.echoes(ROOM).is_empty(), "seen");
    let sent = soon(handle.clone().sent()).await.unwrap();
    assert_eq!(seq_of(&own), Some(sent.seq));
    for (delivered, read, status) in [(1, 0, Status::Delivered(sent)), (1, 1, Status::Read(sent))] {
        let own = wire::Cursor { user: client.user().unwrap().0, delivered: 9, read: 9, read_ordinal: 9 };
        let cursor = wire::Cursor { user: 99, delivered, read, read_ordinal: read };
        gateway.tell(frame::routed(
            FrameType::Receipt,
            0,
            0,
            0,
            ROOM,
            0,
            &wire::Receipt { cursors: vec![own, cursor] },
        ));
        soon(async {
            while handle.status() != status {
                handle.changed().await.expect("it has not come to its end");
            }
        })
        .await;
    }
    assert_eq!(soon(handle.changed()).await, None, "read is the end");
}

#[tokio::test]
async fn a_full_queue_says_so_and_a_store_is_of_one_user_and_one_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let gateway = gateway().await;
    let client = online(&gateway, &path);
    assert_eq!(DiskStore::open(&path).unwrap_err(), StoreError::Locked);
    let mut events = client.events();
    until(&mut events, |event| matches!(event, Event::Synced { .. })).await;
    soon(client.close()).await;
    drop((client, events));
    let other = Client::builder(gateway.ws_url())
        .token_from(|| async { Ok("b".into()) })
        .device(fanfare_proto::DeviceId(77), "another")
        .store(DiskStore::open(&path).unwrap())
        .connect()
        .await
        .unwrap_err();
    assert!(other.reason.contains("belong"), "{other}");

    let full = Client::builder("ws://127.0.0.1:9").token("a").start();
    let handles: Vec<_> =
        (0..fanfare_client::QUEUE_MAX).map(|number| full.send_text(ROOM, number.to_string())).collect();
    let refused = full.send_text(ROOM, "one too many").sent().await.unwrap_err();
    assert!(refused == SendError::QueueFull && refused.is_recoverable());
    assert!(handles[0].abort());
    assert_eq!(full.send_text(ROOM, "there is room").status(), Status::Queued);
}

fn frame_of(channel: u64, seq: Seq, content: wire::entry::Content) -> ((ChannelId, Seq), Bytes) {
    let entry =
        wire::Entry { epoch: 1, message_id: seq, ordinal: seq, content: Some(content), ..Default::default() };
    let frame = frame::routed(FrameType::Deliver, 0, 0, 1, ChannelId(channel), seq, &entry);
    ((ChannelId(channel), seq), frame)
}

fn message(channel: u64, seq: Seq) -> ((ChannelId, Seq), Bytes) {
    frame_of(
        channel,
        seq,
        wire::entry::Content::Message(wire::Message { text: seq.to_string(), ..Default::default() }),
    )
}

fn seqs(store: &mut dyn Store, channel: u64) -> Vec<Seq> {
    let frames = store.entries(ChannelId(channel)).unwrap();
    frames
        .into_iter()
        .flat_map(fanfare_proto::Frame::iter)
        .map(|frame| frame.unwrap().routed().unwrap().seq)
        .collect()
}

/// Both stores, by the trait's word.
fn keeps_what_it_must(store: &mut dyn Store) {
    let write = |store: &mut dyn Store, entries: Vec<((ChannelId, Seq), Bytes)>| {
        store.write(&Changes { entries: entries.into_iter().collect(), ..Changes::default() }).unwrap();
    };
    write(store, (1..=8).map(|seq| message(1, seq)).chain([message(2, 500)]).collect());
    assert_eq!(seqs(store, 1), (1..=8).collect::<Vec<_>>());
    write(store, (9..=14).map(|seq| message(1, seq)).collect());
    assert_eq!(seqs(store, 1), (5..=14).collect::<Vec<_>>(), "ten are kept");
    write(store, vec![message(1, 3)]);
    assert_eq!(seqs(store, 1), (5..=14).collect::<Vec<_>>(), "no hole");
    let rewound = vec![(ChannelId(1), 12)];
    let entries = [message(1, 12)].into_iter().collect();
    store.write(&Changes { rewound, entries, ..Changes::default() }).unwrap();
    assert_eq!(seqs(store, 1), (5..=12).collect::<Vec<_>>());
    let channels = [(ChannelId(1), None)].into_iter().collect();
    store.write(&Changes { channels, ..Changes::default() }).unwrap();
    assert!(seqs(store, 1).is_empty());
    assert_eq!(seqs(store, 2), [500]);
}

#[test]
fn stores_are_bounded_and_without_holes() {
    keeps_what_it_must(&mut MemoryStore::bounded(10, 100));
    let folder = tempfile::tempdir().unwrap();
    keeps_what_it_must(&mut DiskStore::open_bounded(folder.path().join("a"), 10).unwrap());
    let mut small = MemoryStore::bounded(10, 5);
    let entries = (1..=4).map(|seq| message(1, seq)).chain((1..=4).map(|seq| message(2, seq))).collect();
    small.write(&Changes { entries, ..Changes::default() }).unwrap();
    assert_eq!((seqs(&mut small, 1), seqs(&mut small, 2)), (vec![4], vec![1, 2, 3, 4]));
}

#[test]
fn a_disk_store_gives_back_what_it_was_given_and_nothing_else_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let send = wire::Send {
        first_attempt_ms: 5,
        last_attempt_ms: 6,
        client_message_id: vec![1; 16].into(),
        content: None,
    };
    let sends: Vec<_> =
        [3, 1 << 40].map(|place| SavedSend { place, channel: ChannelId(1 << 60), send: send.clone() }).into();
    let mut log = ChannelLog::default();
    (log.epoch, log.position, log.acked_in, log.dirty) = (3, 9, 4, true);
    log.held = [(1, 9), (12, (1 << 62) + 1)].into_iter().collect();
    let state = wire::ChannelState { channel: 5, name: "room".into(), ..Default::default() };
    let installation = fanfare_client::store::Installation {
        user: UserId(8),
        resume: vec![1, 2].into(),
        ..Default::default()
    };
    let changes = Changes {
        installation: Some(installation.clone()),
        channels: [(ChannelId(5), Some(Arc::new(state.clone())))].into_iter().collect(),
        logs: [(ChannelId(5), log.clone())].into_iter().collect(),
        reads: [(ChannelId(5), Some((7, 6)))].into_iter().collect(),
        sends: sends.clone(),
        settled: vec![3],
        ..Changes::default()
    };
    DiskStore::open(&path).unwrap().write(&changes).unwrap();
    let saved = DiskStore::open(&path).unwrap().load().unwrap();
    assert_eq!((saved.installation, saved.channels), (installation, vec![state]));
    assert_eq!(saved.sends, sends[1..]);
    assert_eq!(saved.reads, [(ChannelId(5), 7, 6)]);
    let (_, read) = &saved.logs[0];
    assert_eq!(
        (&read.held, read.epoch, read.position, read.acked_in, read.dirty),
        (&log.held, 3, 9, 4, true)
    );
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    let other = folder.path().join("other");
    std::fs::write(
        &other,
        b"this is no database, and it is long enough to have a header of one: 0123456789012345678901",
    )
    .unwrap();
    assert!(matches!(DiskStore::open(&other), Err(StoreError::Format(_))));
}
