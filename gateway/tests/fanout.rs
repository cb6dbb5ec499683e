//! What a delivery costs in a large channel, beside a bare loop of `send`: run it with
//! `cargo test --release -p fanfare-gateway --test fanout -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    time::Instant,
};

use fanfare_proto::link::Down;
use kit::{CHANNEL, House, blocking::session};

const READERS: u64 = 2_000;
const ROUNDS: u64 = 100;

fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

#[test]
#[ignore = "a measurement"]
fn a_delivery_costs_about_one_send() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pairs = Vec::new();
    for _ in 0..READERS {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nodelay(true).unwrap();
        pairs.push((near, listener.accept().unwrap().0));
    }
    let payload = [7u8; 150];
    let (begun, cpu) = (Instant::now(), cpu_ms());
    for _ in 0..ROUNDS {
        for (near, _) in &mut pairs {
            near.write_all(&payload).unwrap();
        }
    }
    let floor = (cpu_ms() - cpu) * 1_000_000 / (READERS * ROUNDS);
    println!("bare send: {floor} ns of CPU each, {:?}", begun.elapsed());
    drop(pairs);

    for batch in [1, 16] {
        let house = House::wide(|_| ());
        let sockets: Vec<TcpStream> = (0..READERS).map(|user| session(&house, user + 1)).collect();
        while house.router.frames.lock().len() < READERS as usize {
            std::thread::yield_now();
        }
        let (begun, cpu) = (Instant::now(), cpu_ms());
        let done = || house.gateway.stats().buffers_out;
        for round in 0..ROUNDS / batch {
            for message in 0..batch {
                let frames = kit::router::entry(CHANNEL, round * batch + message + 1, &"x".repeat(100));
                house.router.down(Down::Fanout {
                    channel: CHANNEL,
                    lanes: 1,
                    tiers: fanfare_proto::link::Tiers::ALL,
                    frames,
                });
            }
            // One message after another, as if each came alone.
            let handed = (round + 1) * READERS;
            while done() < handed {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        let each = (cpu_ms() - cpu) * 1_000_000 / (READERS * (ROUNDS / batch) * batch);
        println!("{batch} at a time: {each} ns of CPU a delivery, {:?}", begun.elapsed());
        drop(sockets);
    }
}
