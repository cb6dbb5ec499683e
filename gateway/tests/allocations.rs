//! What a fan-out allocates, counted by this binary's allocator: nothing for each who is told.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use kit::{
    CHANNEL, House,
    blocking::{message, session},
};

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
