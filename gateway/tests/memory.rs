//! What a gateway holds for an idle WebSocket session, counted by this binary's allocator: the table that stands in
//! docs/decisions/0007-small-sessions.md, and nothing beside it.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    sync::atomic::{AtomicIsize, Ordering},
    time::Duration,
};

use kit::{
    House,
    blocking::{message, session},
};

/// Blocks by size; larger ones are counted together.
const SIZES: usize = 32 * 1024;

struct Counting;

static BLOCKS: [AtomicIsize; SIZES] = [const { AtomicIsize::new(0) }; SIZES];
static BYTES: AtomicIsize = AtomicIsize::new(0);

fn count(layout: Layout, blocks: isize) {
    BYTES.fetch_add(blocks * layout.size() as isize, Ordering::Relaxed);
    BLOCKS[layout.size().min(SIZES - 1)].fetch_add(blocks, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; it only counts and passes on")]
// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn forget(house: &House) {
    std::thread::sleep(Duration::from_millis(300));
    *house.router.frames.lock() = Vec::new();
    *house.router.opens.lock() = Vec::new();
}

fn blocks() -> Vec<isize> {
    BLOCKS.iter().map(|blocks| blocks.load(Ordering::Relaxed)).collect()
}

/// Blocks that came for each session, by size, and the bytes of all that are not one of those.
fn grown(before: &(Vec<isize>, isize), sessions: isize, page_bytes: usize) -> (BTreeMap<usize, isize>, f64) {
    let mut named = BTreeMap::new();
    let mut rest = BYTES.load(Ordering::Relaxed) - before.1;
    for (size, (now, then)) in blocks().iter().zip(&before.0).enumerate() {
        let more = now - then;
        if size == page_bytes || more * 10 >= sessions * 9 {
            let each = if size == page_bytes { more } else { more / sessions };
            rest -= size as isize * if size == page_bytes { more } else { each * sessions };
            named.insert(size, each);
        }
    }
    (named, rest as f64 / sessions as f64)
}

#[test]
fn an_idle_websocket_holds_what_the_table_says() {
    const FIRST: u64 = 450;
    const MORE: u64 = 1_800;
    /// A connection's place, and the places of a page.
    const PLACE: usize = 328;
    const PAGE: usize = 16_384 / PLACE;
    // What the connections of a user share.
    let table: BTreeMap<usize, isize> = [(64, 1), (PLACE * PAGE, MORE as isize / PAGE as isize)].into();

    let house = House::wide(|_| ());
    house.router.sessions.lock().reserve(8 * (FIRST + MORE) as usize);
    let mut sockets = Vec::with_capacity((FIRST + MORE) as usize);
    sockets.extend((0..FIRST).map(|user| session(&house, user + 1)));
    forget(&house);
    let before = (blocks(), BYTES.load(Ordering::Relaxed));
    sockets.extend((FIRST..FIRST + MORE).map(|user| session(&house, user + 1)));
    forget(&house);
    let (named, rest) = grown(&before, MORE as isize, PLACE * PAGE);
    println!("an idle session: {named:?} and {rest:.1} bytes of tables");
    assert_eq!(named, table);
    // Its place in one channel with the index of that, and its user's in the table of users, both of which double.
    assert!(rest < 96.0, "{rest} bytes");

    // After traffic it is the same.
    for _ in 0..200 {
        house.router.deliver("something that everybody is told");
        for socket in &mut sockets {
            message(socket);
        }
    }
    forget(&house);
    let (named, rest) = grown(&before, MORE as isize, PLACE * PAGE);
    println!("after traffic: {named:?} and {rest:.1} bytes of tables");
    assert_eq!(named, table);
    assert!(rest < 96.0, "{rest} bytes");
}
