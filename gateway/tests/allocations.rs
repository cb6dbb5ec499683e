//! What a fan-out allocates, counted by this binary's allocator: nothing for each who is told.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::ws::{Opcode, client_frame};
use kit::{CHANNEL, House};

struct Counting;

/// Blocks that were asked for, by whichever thread.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; it only counts and passes on")]
// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const READERS: u64 = 2_000;
/// Fan-outs that are counted.
const ROUNDS: u64 = 50;
const TEXT_BYTES: usize = 100;

/// A session in the audience, on a blocking socket.
fn session(house: &House, user: u64) -> TcpStream {
    let mut stream = TcpStream::connect(house.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = house.address().to_string();
    stream.write_all(&kit::ws::request(&address).encode().unwrap()).unwrap();
    let mut answer = [0; 512];
    assert!(stream.read(&mut answer).unwrap() > 0);
    let mut bytes = Vec::new();
    client_frame(Opcode::Binary, &house.hello(user), [1; 4], &mut bytes);
    client_frame(Opcode::Binary, &kit::sync(), [1; 4], &mut bytes);
    stream.write_all(&bytes).unwrap();
    // WELCOME and SYNCED.
    for _ in 0..2 {
        message(&mut stream);
    }
    stream
}

/// Reads one message of the server; its bytes.
fn message(stream: &mut TcpStream) -> usize {
    let mut header = [0; 4];
    stream.read_exact(&mut header[..2]).unwrap();
    let mut length = usize::from(header[1]);
    if length == 126 {
        stream.read_exact(&mut header[2..4]).unwrap();
        length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    }
    let mut payload = [0; 16 * 1024];
    stream.read_exact(&mut payload[..length]).unwrap();
    length
}

/// Fans out and reads with all; blocks that were allocated on the way.
fn rounds(house: &House, sockets: &mut [TcpStream], frames: &[Bytes]) -> u64 {
    let before = ALLOCATED.load(Ordering::Relaxed);
    for frames in frames {
        house.router.fanout(frames.clone());
        for socket in &mut *sockets {
            // Frames of one hand-over may come as one message or as several.
            let mut left = frames.len();
            while left > 0 {
                left -= message(socket);
            }
        }
    }
    ALLOCATED.load(Ordering::Relaxed) - before
}

#[test]
fn a_fan_out_allocates_nothing_for_each_who_is_told() {
    let house = House::wide(|config| {
        config.sweep = Duration::from_secs(1);
        // Nobody pings here, however slow the machine.
        config.limits.policy.idle_ms = 3_600_000;
    });
    let mut sockets: Vec<_> = (0..READERS).map(|user| session(&house, user + 1)).collect();
    let mut seq = 0;
    for frames_at_once in [1, 16] {
        let mut made = || -> Vec<Bytes> {
            let one = |seq| kit::router::entry(CHANNEL, seq, &"x".repeat(TEXT_BYTES));
            let pass = |seq: &mut u64| {
                (0..frames_at_once).fold(Vec::new(), |mut frames, _| {
                    *seq += 1;
                    frames.extend_from_slice(&one(*seq));
                    frames
                })
            };
            (0..ROUNDS).map(|_| pass(&mut seq).into()).collect()
        };
        let (warm, counted) = (made(), made());
        rounds(&house, &mut sockets, &warm);
        let blocks = rounds(&house, &mut sockets, &counted);
        let deliveries = READERS * ROUNDS * frames_at_once;
        println!("{frames_at_once} at once: {blocks} blocks in {ROUNDS} fan-outs, {deliveries} deliveries");
        // Some for a fan-out, whoever is told, and for the lane's own timers.
        assert!(blocks < ROUNDS * 20, "{blocks} blocks in {ROUNDS} fan-outs to {READERS}");
    }
}
