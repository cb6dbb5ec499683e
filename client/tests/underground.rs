//! The underground: between two clients and the real server lies a network that cuts, stalls, and splits what it carries. Ten thousand
//! messages go through it, and at both ends nothing may be lost, doubled or out of order.
//!
//! Needs `FANFARE_BIN`; `FANFARE_SEED` repeats a run (as far as a network of real sockets can be repeated).
#![allow(clippy::unwrap_used)]

mod server;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fanfare_client::{Client, Event, SendHandle, Sent, Status};
use fanfare_proto::{ChannelId, wire};
use server::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

/// Messages of each of the two.
const MESSAGES: usize = 5_000;
/// Sends that one client has under way.
const UNDER_WAY: usize = 200;
/// Messages between two cuts, about: cuts follow progress, so that a slow machine is not cut to a standstill.
const CUT_AFTER: u64 = 250;

/// splitmix64.
struct Random(AtomicU64);

impl Random {
    fn below(&self, end: u64) -> u64 {
        let mut mixed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

/// A TCP proxy that treats connections badly. What it carries it carries in order and whole, as far as it carries it: as TCP does.
struct Tunnel {
    address: SocketAddr,
    cut: watch::Sender<u64>,
    connections: AtomicUsize,
    random: Random,
}

impl Tunnel {
    async fn start(to: SocketAddr, seed: u64) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tunnel = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            cut: watch::channel(0).0,
            connections: AtomicUsize::new(0),
            random: Random(AtomicU64::new(seed)),
        });
        let serving = tunnel.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                tokio::spawn(serving.clone().carry(near, far));
            }
        });
        tunnel
    }

    async fn carry(self: Arc<Self>, near: TcpStream, far: TcpStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut cut = self.cut.subscribe();
        let (near_in, near_out) = near.into_split();
        let (far_in, far_out) = far.into_split();
        tokio::select! {
            () = self.pass(near_in, far_out) => {}
            () = self.pass(far_in, near_out) => {}
            // Whatever is half way is lost with it.
            _ = cut.changed() => {}
        }
    }

    async fn pass(&self, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                // In pieces, with waits between them: frames come torn, late, and many at once.
                let piece = match self.random.below(8) {
                    0 => 1 + self.random.below(rest.len() as u64) as usize,
                    _ => rest.len(),
                };
                match self.random.below(400) {
                    0 => tokio::time::sleep(Duration::from_millis(20 + self.random.below(180))).await,
                    1..10 => tokio::time::sleep(Duration::from_millis(1 + self.random.below(8))).await,
                    _ => {}
                }
                if to.write_all(&rest[..piece]).await.is_err() {
                    return;
                }
                rest = &rest[piece..];
            }
        }
    }

    fn cut_all(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

/// Sends numbered messages, at most so many under way, and checks how each ends.
async fn talk(client: Client, room: ChannelId, name: &'static str) -> Vec<(SendHandle, Sent)> {
    let mut ended = Vec::with_capacity(MESSAGES);
    let mut under_way = VecDeque::new();
    for number in 0..MESSAGES {
        if under_way.len() == UNDER_WAY {
            end_of(under_way.pop_front().unwrap(), &mut ended).await;
        }
        under_way.push_back(client.send_text(room, format!("{name} {number}")));
    }
    for handle in under_way {
        end_of(handle, &mut ended).await;
    }
    ended
}

async fn end_of(handle: SendHandle, ended: &mut Vec<(SendHandle, Sent)>) {
    let sent = handle.clone().sent().await.unwrap();
    ended.push((handle, sent));
}

/// Every message that one client is told of, as it is told.
async fn listen(
    mut events: fanfare_client::Events,
    room: ChannelId,
    heard: Arc<AtomicUsize>,
) -> Vec<(u64, String)> {
    let mut all = Vec::with_capacity(MESSAGES * 2);
    while all.len() < MESSAGES * 2 {
        match events.next().await.expect("the client lives") {
            Event::Entry(entry) if entry.channel == room => {
                if let Some(text) = entry.text() {
                    all.push((entry.seq, text.to_owned()));
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            }
            Event::Lagged(lost) => panic!("the test reads too slowly: {lost}"),
            Event::Skipped { first, last, .. } => panic!("{first} to {last} were skipped"),
            _ => {}
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_out_of_order() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::new(scratch.path()) else { return };
    server.start();
    let seed = std::env::var("FANFARE_SEED").map_or(20_250_101, |seed| seed.parse().unwrap());
    let tunnel = Tunnel::start(server.listen, seed).await;
    let url = format!("ws://{}", tunnel.address);
    let begun = std::time::Instant::now();

    let alice = Client::builder(&url).token(server.token("alice")).start();
    let bob = Client::builder(&url).token(server.token("bob")).start();
    let mut states = bob.events();
    let bob_id = loop {
        if let Some(user) = bob.user() {
            break user;
        }
        states.next().await.unwrap();
    };
    let group = wire::Group { name: "underground".into(), members: vec![bob_id.0], ..Default::default() };
    let room = alice.open_group(group).await.unwrap().id();
    while bob.channel_state(room).is_none() {
        states.next().await.unwrap();
    }
    drop(states);

    let heard = Arc::new(AtomicUsize::new(0));
    let ears = [&alice, &bob].map(|client| tokio::spawn(listen(client.events(), room, heard.clone())));
    let mouths = [(&alice, "alice"), (&bob, "bob")]
        .map(|(client, name)| tokio::spawn(talk(client.clone(), room, name)));
    let cutter = {
        let (tunnel, heard) = (tunnel.clone(), heard.clone());
        tokio::spawn(async move {
            let mut next = CUT_AFTER;
            loop {
                // Moments of the network's own choosing: nothing tells it when a message is half way.
                tokio::time::sleep(Duration::from_millis(1 + tunnel.random.below(20))).await;
                if heard.load(Ordering::Relaxed) as u64 >= next {
                    tunnel.cut_all();
                    next =
                        heard.load(Ordering::Relaxed) as u64 + CUT_AFTER / 2 + tunnel.random.below(CUT_AFTER);
                }
            }
        })
    };
    let mut sent = Vec::new();
    for mouth in mouths {
        sent.push(mouth.await.unwrap());
    }
    let mut told = Vec::new();
    for ear in ears {
        told.push(ear.await.unwrap());
    }
    cutter.abort();

    for all in &told {
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "told in order, and nothing twice");
    }
    assert_eq!(told[0], told[1], "both were told the same");
    for (who, name) in ["alice", "bob"].into_iter().enumerate() {
        let wanted: Vec<String> = (0..MESSAGES).map(|number| format!("{name} {number}")).collect();
        let mine: Vec<&(u64, String)> = told[0].iter().filter(|(_, text)| text.starts_with(name)).collect();
        assert!(mine.iter().map(|(_, text)| text).eq(wanted.iter()), "{name}: each once, in order");
        let said: HashMap<&str, u64> = mine.iter().map(|(seq, text)| (text.as_str(), *seq)).collect();
        for (number, (handle, at)) in sent[who].iter().enumerate() {
            assert_eq!(said[wanted[number].as_str()], at.seq, "the status names the place");
            assert!(handle.status().sent().is_some());
        }
    }
    for client in [&alice, &bob] {
        assert!(client.flush(Duration::from_secs(1)).await, "the queue is empty");
        assert!(client.echoes(room).is_empty(), "every copy was seen");
        assert_eq!(client.channel_state(room).unwrap().head, alice.channel_state(room).unwrap().head);
    }
    // The receipts too find their way.
    for (reader, (mut last, _)) in [(&bob, sent[0].pop().unwrap()), (&alice, sent[1].pop().unwrap())] {
        reader.channel(room).mark_read();
        let read = async {
            while !matches!(last.status(), Status::Read(_)) {
                last.changed().await.expect("its end is to be read");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), read).await.expect("in time");
    }
    let cuts = tunnel.connections.load(Ordering::Relaxed) - 2;
    assert!(cuts >= 20, "{cuts} cuts are no underground");
    eprintln!("{} messages, {cuts} connections cut, {:?}", MESSAGES * 2, begun.elapsed());
}
