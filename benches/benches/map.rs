//! Group `map`: from a frame to its connection, from a channel to its members, from a user or an address to a count.
//! The gateway's own modules are compiled in from its sources, because it keeps them to itself.

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use dashmap::DashMap;
use fanfare_proto::{
    ChannelId, UserId,
    link::{Handle, Tier, Tiers},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

#[allow(dead_code, unused_imports, reason = "a module of the gateway's, of which the group needs a part")]
#[path = "../../gateway/src/admission.rs"]
mod admission;
#[allow(dead_code, unused_imports, reason = "a module of the gateway's, of which the group needs a part")]
#[path = "../../gateway/src/audience.rs"]
mod audience;
#[allow(dead_code, unused_imports, reason = "a module of the gateway's, of which the group needs a part")]
#[path = "../../gateway/src/config.rs"]
mod config;

/// Connections, users and addresses that a map holds.
const CONNECTIONS: u64 = 10_000;
/// Members of the one channel.
const MEMBERS: u32 = 1_000;
/// Look-ups in one turn, so that a turn is long beside the clock.
const TURN: usize = 1_024;
/// Threads that work at once; the machine that the figures are from has two cores.
const THREADS: [usize; 2] = [1, 2];

/// A connection, about as large as one is.
struct Place {
    generation: u32,
    written: u64,
    _rest: [u64; 24],
}

impl Place {
    fn new(generation: u32) -> Self {
        Self { generation, written: 0, _rest: [0; 24] }
    }
}

/// Numbers below `below` in an order that no cache foresees, the same every time.
fn scattered(seed: u64, below: u64) -> Vec<u64> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    (0..TURN).map(|_| next()).collect()
}

/// Runs so many turns on each thread at once: the time until the last has ended. `make` prepares a thread's turn.
fn on_threads<W: FnMut()>(threads: usize, turns: u64, make: impl Fn(usize) -> W + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    let (make, barrier) = (&make, &barrier);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut work = make(thread);
                    barrier.wait();
                    let start = Instant::now();
                    (0..turns).for_each(|_| work());
                    start.elapsed()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a turn does not panic"))
            .max()
            .unwrap_or_default()
    })
}

fn measure<W: FnMut()>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    make: impl Fn(usize) -> W + Sync,
) {
    group.throughput(Throughput::Elements((TURN * threads) as u64));
    group.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |bench| {
        bench.iter_custom(|turns| on_threads(threads, turns, &make));
    });
}

/// What a reply's handle leads to. A lane owns its slab, so each thread has one of its own.
fn connection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map/connection of a handle");
    let shared: DashMap<u64, Place, RandomState> = DashMap::default();
    for id in 0..CONNECTIONS {
        shared.insert(id, Place::new(1));
    }
    for threads in THREADS {
        measure(&mut group, "slab by handle", threads, |thread| {
            let mut slab = Slab::new();
            for _ in 0..CONNECTIONS {
                slab.insert(Place::new(1));
            }
            let handles: Vec<Handle> = scattered(thread as u64, CONNECTIONS)
                .iter()
                .map(|slot| Handle::new(0, *slot as u32, 1))
                .collect();
            move || {
                for handle in black_box(&handles) {
                    // As the lane does it: the slot's place, if it is still the same holder's.
                    if let Some(place) = slab.get_mut(handle.slot() as usize)
                        && place.generation == handle.generation()
                    {
                        place.written += 1;
                    }
                }
            }
        });
        measure(&mut group, "floor: array index", threads, |thread| {
            let mut places: Vec<Place> = (0..CONNECTIONS).map(|_| Place::new(1)).collect();
            let slots = scattered(thread as u64, CONNECTIONS);
            move || {
                for slot in black_box(&slots) {
                    places[*slot as usize].written += 1;
                }
            }
        });
        measure(&mut group, "beside: owned hashbrown", threads, |thread| {
            let mut places: HashMap<u64, Place, RandomState> =
                (0..CONNECTIONS).map(|id| (id, Place::new(1))).collect();
            let ids = scattered(thread as u64, CONNECTIONS);
            move || {
                for id in black_box(&ids) {
                    if let Some(place) = places.get_mut(id) {
                        place.written += 1;
                    }
                }
            }
        });
        measure(&mut group, "beside: shared dashmap", threads, |thread| {
            let (ids, shared) = (scattered(thread as u64, CONNECTIONS), &shared);
            move || {
                for id in black_box(&ids) {
                    if let Some(mut place) = shared.get_mut(id) {
                        place.written += 1;
                    }
                }
            }
        });
    }
}

/// From a channel to its members on a lane, once for all of them, and one member's coming and going.
fn audience(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map/members of a channel");
    let mut audience = audience::Audience::<()>::default();
    for channel in 1..=100 {
        for slot in 0..MEMBERS {
            audience.add(ChannelId(channel), Handle::new(0, slot, 1), Tier::Active);
        }
    }
    group.throughput(Throughput::Elements(MEMBERS.into()));
    group.bench_function("each", |bench| {
        bench.iter(|| {
            let mut slots = 0_u64;
            audience.each(black_box(ChannelId(50)), Tiers::ALL, |member| {
                slots += u64::from(member.slot());
                true
            });
            slots
        });
    });
    let array: Vec<(u32, u32)> = (0..MEMBERS).map(|slot| (slot, 1)).collect();
    group.bench_function("floor: array", |bench| {
        bench.iter(|| {
            let mut slots = 0_u64;
            for (slot, generation) in black_box(&array) {
                slots += u64::from(*slot);
                black_box(generation);
            }
            slots
        });
    });
    group.throughput(Throughput::Elements(1));
    let handle = Handle::new(0, MEMBERS, 1);
    group.bench_function("add and remove", |bench| {
        bench.iter(|| {
            audience.add(ChannelId(50), black_box(handle), Tier::Active);
            audience.remove(ChannelId(50), black_box(handle))
        });
    });
    let mut bare: HashMap<u64, u32, RandomState> = (0..u64::from(MEMBERS)).map(|id| (id, 1)).collect();
    group.bench_function("floor: owned hashbrown, add and remove", |bench| {
        bench.iter(|| {
            bare.insert(black_box(handle.0), 1);
            bare.remove(&black_box(handle.0))
        });
    });
}

/// The counts by user, taken and given back once per session.
fn counts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map/count of a user");
    let admission = admission::Admission::new(config::Limits::LOAD);
    let held: Vec<_> = (0..CONNECTIONS).map(|id| admission.user(UserId(id))).collect();
    for threads in THREADS {
        measure(&mut group, "take and give back", threads, |thread| {
            let (ids, admission) = (scattered(thread as u64, CONNECTIONS), Arc::clone(&admission));
            move || {
                for id in black_box(&ids) {
                    black_box(admission.user(UserId(*id)).is_ok());
                }
            }
        });
        measure(&mut group, "floor: owned hashbrown", threads, |thread| {
            let mut counts: HashMap<u64, u32, RandomState> = (0..CONNECTIONS).map(|id| (id, 1)).collect();
            let ids = scattered(thread as u64, CONNECTIONS);
            move || {
                for id in black_box(&ids) {
                    *counts.entry(*id).or_insert(0) += 1;
                    black_box(&counts);
                    if let Some(count) = counts.get_mut(id) {
                        *count -= 1;
                    }
                }
            }
        });
    }
    assert!(held.iter().all(Result::is_ok));
}

criterion_group!(map, connection, audience, counts);
criterion_main!(map);
