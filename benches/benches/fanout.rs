//! Group `fanout`: one fan-out from a router to the sockets of 1,000 members, through a whole gateway, beside a bare loop
//! of `send` of the same bytes to as many sockets. The router here only pretends.
//!
//! Two figures each: CPU time of the thread that writes, which a noisy neighbour moves least, and wall time until the
//! last member has it. Members read between the fan-outs, so that no `send` wakes a reader; they acknowledge after every
//! 256 frames, as the protocol has it.

use std::{
    future::Future,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use fanfare_benches::{RUN, SAMPLES, WARM_UP, frames};
use fanfare_gateway::{Config, Gateway, Limits, Resume, ResumeKeys, Verifier};
use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame, FrameType, SUBPROTOCOL, UserId, WS_PATH,
    frame::short,
    header::class,
    limits::ACK_AFTER_FRAMES,
    link::{AudienceChange, CREDIT_BYTES, Down, Downlink, Handle, Opened, Tier, Tiers, Up, Uplink},
    wire,
    ws::{self, ClientRequest, Decoder, Event, Opcode, Role, client_frame},
};

/// Members of the one group, each with a socket: with both ends and the floor's, 4,000 files.
const MEMBERS: u64 = 1_000;
/// Frames that one flush may have gathered.
const BATCH: usize = 64;
const CHANNEL: ChannelId = ChannelId(7);
const OWNER: u16 = 0;
/// How long a member waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nanoseconds that a thread of this process has spent on a core.
fn cpu_ns(thread: &str) -> u64 {
    let path = format!("/proc/{thread}/schedstat");
    let figures = std::fs::read_to_string(path).expect("Linux tells a thread's time");
    figures.split(' ').next().and_then(|spent| spent.parse().ok()).expect("nanoseconds come first")
}

/// The path in /proc of the thread of that name.
fn thread_named(name: &str) -> String {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux lists a process's threads");
    let mut numbers = threads.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_named = |number: &String| {
        let comm = std::fs::read_to_string(format!("/proc/self/task/{number}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    format!("self/task/{}", numbers.find(is_named).expect("the gateway's lane has a thread"))
}

/// Which time a measurement is of.
#[derive(Clone, Copy)]
enum Clock {
    Cpu,
    Wall,
}

// ---- the gateway's side

/// A router that lets everybody in and remembers their handles.
#[derive(Default)]
struct Pretend {
    down: OnceLock<Arc<dyn Downlink>>,
    handles: Mutex<Vec<Handle>>,
    credit: AtomicU64,
}

impl Uplink for Pretend {
    fn try_send(&self, up: Up) -> Result<(), Box<Up>> {
        match up {
            Up::Open { origin, .. } => {
                self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(origin.handle);
                let opened = Opened {
                    user_name: "somebody".into(),
                    acks_confirmed: 0,
                    generation: 1,
                    tokens_from_s: 0,
                };
                self.down(Down::Opened { handle: origin.handle, outcome: Ok(opened) });
            }
            Up::Credit { bytes, .. } => {
                self.credit.fetch_add(bytes.into(), Ordering::Relaxed);
            }
            Up::Close { .. } | Up::Frame { .. } => {}
        }
        Ok(())
    }

    fn reserve(&self, _: &Up) -> bool {
        true
    }

    fn hand_over(&self, ups: &mut Vec<Up>) {
        for up in ups.drain(..) {
            let _ = self.try_send(up);
        }
    }

    fn send(&self, up: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>> {
        Box::pin(async move { self.try_send(up).map_err(|_| Code::RETRY_LATER) })
    }
}

impl Pretend {
    fn down(&self, down: Down) {
        self.down.get().expect("connected before the first session").send(OWNER, down);
    }
}

/// A member's end of a WebSocket.
struct Member {
    stream: TcpStream,
    decoder: Decoder,
    acks: u64,
}

impl Member {
    /// Connects and says HELLO with a resume secret, for which no signature is checked.
    fn open(address: SocketAddr, keys: &ResumeKeys, user: u64) -> Self {
        let mut stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
        let host = address.to_string();
        let request = ClientRequest {
            host: &host,
            target: WS_PATH,
            subprotocol: Some(SUBPROTOCOL),
            origin: None,
            authorization: None,
            nonce: [7; 16],
        };
        stream.write_all(&request.encode().expect("a sound request")).expect("the gateway reads");
        let mut head = Vec::new();
        while request.verify(&head).expect("the gateway upgrades").is_none() {
            let mut part = [0; 1_024];
            let count = stream.read(&mut part).expect("the gateway answers");
            assert!(count > 0, "the gateway hung up during the upgrade");
            head.extend_from_slice(&part[..count]);
        }
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
        let until_ms = now_ms + 3_600_000;
        let device = DeviceId(user);
        let resume = Resume { user: UserId(user), device, generation: 1, token_until_ms: until_ms, until_ms };
        let hello = wire::Hello {
            version_min: 1,
            version_max: 1,
            device: device.0,
            resume: keys.seal(&resume),
            delivery: wire::Delivery::Full.into(),
            ..Default::default()
        };
        let mut member = Self { stream, decoder: Decoder::new(Role::Client, ws::Limits::FANFARE), acks: 0 };
        member.say(&short(FrameType::Hello, class::CONTROL, &hello));
        assert_eq!(member.frames_until(1), [FrameType::Welcome]);
        member
    }

    fn say(&mut self, frame: &[u8]) {
        let mut out = Vec::new();
        client_frame(Opcode::Binary, frame, [1, 2, 3, 4], &mut out);
        self.stream.write_all(&out).expect("the gateway reads");
    }

    fn acknowledge(&mut self) {
        self.acks += 1;
        let positions = vec![wire::Position { channel: CHANNEL.0, epoch: 1, seq: self.acks }];
        let ack = wire::Ack { number: self.acks, positions };
        self.say(&short(FrameType::Ack, class::CONTROL, &ack));
    }

    /// Reads until so many frames have come.
    fn frames_until(&mut self, count: usize) -> Vec<FrameType> {
        let mut types = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while types.len() < count {
            let size = self.stream.read(&mut buffer).expect("the gateway writes");
            assert!(size > 0, "the gateway hung up");
            let mut input = &mut buffer[..size];
            while let Some(event) = self.decoder.next(&mut input).expect("sound WebSocket frames") {
                let Event::Message { payload, .. } = event else { panic!("no message: {event:?}") };
                let frames = Frame::iter(Bytes::copy_from_slice(&payload));
                types.extend(frames.map(|frame| frame.expect("a sound frame").frame_type()));
            }
        }
        types
    }
}

/// A gateway with one lane and all members in the audience of one channel.
struct Crowd {
    router: Arc<Pretend>,
    members: Vec<Member>,
    lane: String,
    frames_since_ack: u32,
    frames_sent: u64,
    _gateway: Gateway,
}

impl Crowd {
    fn new() -> Self {
        let router = Arc::new(Pretend::default());
        let keys = ResumeKeys::new(&[(1, [9; 32])]);
        let config = Config { lanes: 1, limits: Limits::LOAD, ..Config::default() };
        let verifier = Verifier::new("fanfare", "fanfare", &[]);
        let gateway = Gateway::start(config, router.clone(), verifier, keys.clone()).expect("a free port");
        assert!(router.down.set(gateway.downlink()).is_ok());
        let address = gateway.addresses()[0];
        let members = (1..=MEMBERS).map(|user| Member::open(address, &keys, user)).collect();
        let handles = std::mem::take(&mut *router.handles.lock().unwrap_or_else(PoisonError::into_inner));
        let changes = handles.into_iter().map(|handle| AudienceChange::Add(handle, Tier::Active)).collect();
        router.down(Down::Audience { channel: CHANNEL, changes });
        let lane = thread_named("gateway-0");
        Self { router, members, lane, frames_since_ack: 0, frames_sent: 0, _gateway: gateway }
    }

    /// Sends these fan-outs, of so many frames in all, and waits until every member has them. What the last one gets is
    /// written last, so that the others' is there when they read.
    fn fan_out(&mut self, fanouts: &[Bytes], count: usize) -> Duration {
        let start = Instant::now();
        for frames in fanouts {
            let frames = frames.clone();
            self.router.down(Down::Fanout { channel: CHANNEL, lanes: 1, tiers: Tiers::ALL, frames });
        }
        let (last, others) = self.members.split_last_mut().expect("there are members");
        let is_whole = |types: &[FrameType]| {
            types.len() == count && types.iter().all(|frame_type| *frame_type == FrameType::Deliver)
        };
        assert!(is_whole(&last.frames_until(count)));
        let elapsed = start.elapsed();
        for member in others {
            assert!(is_whole(&member.frames_until(count)));
        }
        self.frames_sent += count as u64;
        self.frames_since_ack += count as u32;
        if self.frames_since_ack >= ACK_AFTER_FRAMES {
            self.frames_since_ack = 0;
            self.members.iter_mut().for_each(Member::acknowledge);
        }
        elapsed
    }

    fn measure(&mut self, clock: Clock, turns: u64, fanouts: &[Bytes], count: usize) -> Duration {
        // A session that is silent too long would be closed.
        self.members.iter_mut().for_each(Member::acknowledge);
        let before = cpu_ns(&self.lane);
        let wall = (0..turns).map(|_| self.fan_out(fanouts, count)).sum();
        match clock {
            Clock::Wall => wall,
            Clock::Cpu => Duration::from_nanos(cpu_ns(&self.lane) - before),
        }
    }
}

// ---- the floor

/// As many sockets, written by a bare loop.
struct Sockets {
    pairs: Vec<(TcpStream, TcpStream)>,
}

impl Sockets {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let pair = |_| {
            let client = TcpStream::connect(address).expect("it listens");
            let (server, _) = listener.accept().expect("one has come");
            server.set_nodelay(true).expect("a TCP socket");
            server.set_nonblocking(true).expect("a TCP socket");
            client.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
            (server, client)
        };
        Self { pairs: (0..MEMBERS).map(pair).collect() }
    }

    fn measure(&mut self, clock: Clock, turns: u64, bytes: &[u8]) -> Duration {
        let mut spent = Duration::ZERO;
        let mut buffer = vec![0; bytes.len()];
        for _ in 0..turns {
            let (start, before) = (Instant::now(), cpu_ns("thread-self"));
            for (server, _) in &mut self.pairs {
                let sent = server.write(bytes).expect("there is room");
                assert_eq!(sent, bytes.len());
            }
            spent += match clock {
                Clock::Wall => start.elapsed(),
                Clock::Cpu => Duration::from_nanos(cpu_ns("thread-self") - before),
            };
            for (_, client) in &mut self.pairs {
                client.read_exact(&mut buffer).expect("it was sent");
            }
        }
        spent
    }
}

fn fanout(criterion: &mut Criterion) {
    let mut crowd = Crowd::new();
    let mut sockets = Sockets::new();
    let one = vec![frames::deliver(CHANNEL, 1)];
    let many: Vec<Bytes> = (1..=BATCH as u64).map(|seq| frames::deliver(CHANNEL, seq)).collect();
    let gathered = vec![Bytes::from(many.concat())];
    for (name, fanouts, count) in [
        ("1 frame", &one, 1),
        ("64 frames in one fan-out", &gathered, BATCH),
        ("64 fan-outs at once", &many, BATCH),
    ] {
        for (clock, of) in [(Clock::Cpu, "CPU"), (Clock::Wall, "wall")] {
            let mut group: BenchmarkGroup<'_, WallTime> =
                criterion.benchmark_group(format!("fanout/{name}, {of}"));
            group.throughput(Throughput::Elements(MEMBERS * count as u64));
            group.bench_function("gateway", |bench| {
                bench.iter_custom(|turns| crowd.measure(clock, turns, fanouts, count));
            });
            let mut bytes = Vec::new();
            let payload = fanouts.concat();
            let mut header = [0; ws::SERVER_HEADER_BYTES_MAX];
            let size = ws::server_header(Opcode::Binary, payload.len(), &mut header);
            bytes.extend_from_slice(&header[..size]);
            bytes.extend_from_slice(&payload);
            group.bench_function("floor: bare send", |bench| {
                bench.iter_custom(|turns| sockets.measure(clock, turns, &bytes));
            });
        }
    }
    let credit = crowd.router.credit.load(Ordering::Relaxed);
    assert!(
        crowd.frames_sent < 10_000 || credit >= u64::from(CREDIT_BYTES / 2),
        "the gateway gives credit back"
    );
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(SAMPLES).warm_up_time(WARM_UP).measurement_time(RUN);
    targets = fanout
}
criterion_main!(group);
