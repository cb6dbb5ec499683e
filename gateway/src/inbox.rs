//! A lane's one queue: what owners send down, connections that were accepted, orders of the gateway.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use fanfare_proto::link::{Down, Downlink, LANES_MAX};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{admission::AddressPermit, admission::HandshakePermit};

/// One thing for a lane to do.
pub(crate) enum Item {
    /// From an owner. Bounded by credit, and by the requests that caused it.
    Down {
        owner: u16,
        down: Down,
        /// Where several lanes got the same: how many still have it. The last gives the credit back.
        shared: Option<Arc<AtomicU32>>,
    },
    /// A socket whose handshake this lane does. Bounded by the handshakes under way.
    Accepted { stream: std::net::TcpStream, address: AddressPermit, handshake: HandshakePermit },
    /// The same over UDP.
    Incoming { incoming: Box<quinn::Incoming>, address: AddressPermit, handshake: HandshakePermit },
    /// Ask everybody to go to another place.
    GoAway { delay_ms: (u32, u32) },
    /// Close everybody, then end.
    Close,
}

/// See the module's page.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Vec<Item>>,
    filled: Notify,
    /// Connections of the lane, handshakes included: new ones go to the lane with the fewest.
    pub connections: Arc<AtomicU32>,
}

impl Inbox {
    pub fn push(&self, item: Item) {
        let was_empty = {
            let mut queue = self.queue.lock();
            queue.push(item);
            queue.len() == 1
        };
        // A lane that has not yet taken the first one sees the rest with it.
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Everything that came, in its order, into `items`, which is empty. Says whether there was anything.
    pub fn take(&self, items: &mut Vec<Item>) -> bool {
        debug_assert!(items.is_empty());
        std::mem::swap(&mut *self.queue.lock(), items);
        !items.is_empty()
    }

    /// Waits until there may be something.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }
}

/// The lanes of one gateway, as routers reach them.
pub(crate) struct Lanes(pub Vec<Arc<Inbox>>);

impl Lanes {
    /// The lane with the fewest connections.
    pub fn idlest(&self) -> &Arc<Inbox> {
        self.0
            .iter()
            .min_by_key(|inbox| inbox.connections.load(Ordering::Relaxed))
            .expect("a gateway has a lane")
    }
}

impl Downlink for Lanes {
    fn send(&self, owner: u16, down: Down) {
        let known = if self.0.len() >= LANES_MAX { u64::MAX } else { (1 << self.0.len()) - 1 };
        let lanes = down.lanes() & known;
        let Some(first) = (lanes != 0).then(|| lanes.trailing_zeros() as usize) else {
            // For nobody: still handed on, or its credit would be lost. Any lane says so.
            self.0[0].push(Item::Down { owner, down, shared: None });
            return;
        };
        let count = lanes.count_ones();
        if count == 1 {
            self.0[first].push(Item::Down { owner, down, shared: None });
            return;
        }
        let shared = Arc::new(AtomicU32::new(count));
        for (number, inbox) in self.0.iter().enumerate() {
            if lanes >> number & 1 != 0 {
                inbox.push(Item::Down { owner, down: down.clone(), shared: Some(shared.clone()) });
            }
        }
    }
}
