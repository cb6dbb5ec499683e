//! What a connection costs that has ended its session and stays. Alone in its file: it counts the CPU of all lanes.

#![allow(clippy::unwrap_used)]

mod kit;

use fanfare_proto::ws::Opcode;
use kit::{House, ws::Said};

/// CPU of this process's lanes, in ticks of 10 ms.
fn lane_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .filter_map(|stat| {
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            name.starts_with("gateway-")
                .then(|| fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
        })
        .sum()
}

#[tokio::test]
async fn who_closes_and_stays_costs_nothing() {
    let house = House::wide(|_| ());
    let mut clients = Vec::new();
    for user in 1..=4 {
        let mut client = house.session(user).await;
        client.send_opcode(Opcode::Close, &1_000_u16.to_be_bytes()).await;
        // The server's direction has ended, ours has not.
        while client.said().await != Said::End {}
        clients.push(client);
    }
    let before = lane_ticks();
    kit::until("they are let go of", || house.gateway.stats().connections == 0).await;
    // Two seconds: a lane that turns around takes all of them that it gets.
    let ticks = lane_ticks() - before;
    assert!(ticks < 20, "{ticks} ticks of CPU for four that only stay");
}
