//! Many who leave at once: who comes finds their places free, and who stays is served.

#![allow(clippy::unwrap_used)]

mod kit;

use std::time::{Duration, Instant};

use fanfare_proto::FrameType;
use kit::House;

const LEAVE: u64 = 400;

#[tokio::test]
async fn many_who_leave_at_once_make_room_for_who_comes() {
    let house = House::wide(|_| ());
    let mut stays = house.synced(1).await;
    for round in 0..3 {
        let mut leaves = Vec::new();
        for user in 2..2 + LEAVE {
            leaves.push(house.synced(user).await);
        }
        let left = Instant::now();
        drop(leaves);
        // Behind them all, unless that takes longer than anybody is to wait.
        let mut comes = house.synced(1_000 + round).await;
        if left.elapsed() < Duration::from_millis(500) {
            assert_eq!(house.gateway.stats().connections, 2, "who left has no place any more");
        }
        house.router.deliver("said to who is there");
        stays.frame(FrameType::Deliver).await;
        comes.frame(FrameType::Deliver).await;
        drop(comes);
        kit::until("who stays is alone", || house.gateway.stats().connections == 1).await;
    }
}

#[tokio::test]
async fn who_is_told_something_after_leaving_is_let_go_of() {
    let house = House::wide(|_| ());
    let mut stays = house.synced(1).await;
    let mut leaves = Vec::new();
    for user in 2..2 + LEAVE {
        leaves.push(house.synced(user).await);
    }
    for leaves in leaves {
        // What it is told is not read: its end is a reset.
        house.router.deliver("said while they leave");
        drop(leaves);
    }
    for _ in 0..LEAVE {
        stays.frame(FrameType::Deliver).await;
    }
    kit::until("who stays is alone", || house.gateway.stats().connections == 1).await;
}
