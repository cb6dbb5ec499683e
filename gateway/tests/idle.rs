//! What connections cost that do nothing. Prints it; the bound is wide, so that only a mistake of kind fails it.

#![allow(clippy::unwrap_used)]

mod kit;

use std::io::Read as _;

use kit::{House, blocking::session};

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[test]
fn an_idle_websocket_is_small() {
    let house = House::wide(|_| ());
    let mut sockets = Vec::with_capacity(4_000);
    // The first ones fill the allocator's and the runtime's tables.
    sockets.extend((0..500).map(|user| session(&house, user + 1)));
    house.router.frames.lock().clear();
    house.router.opens.lock().clear();
    let before = resident_bytes();
    sockets.extend((500..2_500).map(|user| session(&house, user + 1)));
    assert_eq!(house.gateway.sessions(), 2_500);
    let each = resident_bytes().saturating_sub(before) / 2_000;
    println!(
        "an idle WebSocket session costs {each} bytes in this process, the pretended router's share included"
    );
    assert!(each < 4_096, "{each} bytes");
    house.router.deliver("hello");
    for socket in &mut sockets {
        let mut header = [0; 2];
        socket.read_exact(&mut header).unwrap();
    }
}
