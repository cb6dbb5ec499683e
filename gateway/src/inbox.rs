//! A lane's one queue: what owners send down, connections that were accepted, orders of the gateway.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use fanfare_proto::link::{Down, Downlink, LANES_MAX};
use parking_lot::Mutex;
use smallvec::SmallVec;
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

    /// Several at once, in their order.
    pub fn push_all(&self, items: impl IntoIterator<Item = Item>) {
        let was_empty = {
            let mut queue = self.queue.lock();
            let before = queue.len();
            queue.extend(items);
            before == 0 && !queue.is_empty()
        };
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

    /// The lanes there are, bit n for lane n.
    fn known(&self) -> u64 {
        if self.0.len() >= LANES_MAX { u64::MAX } else { (1 << self.0.len()) - 1 }
    }
}

impl Downlink for Lanes {
    fn send(&self, owner: u16, down: Down) {
        self.send_all(&mut vec![(owner, down)]);
    }

    fn send_all(&self, downs: &mut Vec<(u16, Down)>) {
        // With one lane, which is common on few cores, they go as they are; with more each lane gets its own at once.
        if let [only] = &self.0[..] {
            return only.push_all(downs.drain(..).map(|(owner, down)| Item::Down {
                owner,
                down,
                shared: None,
            }));
        }
        let mut by_lane: SmallVec<[Vec<Item>; 16]> = SmallVec::new();
        by_lane.resize_with(self.0.len(), Vec::new);
        for (owner, down) in downs.drain(..) {
            let mut lanes = down.lanes() & self.known();
            match lanes.count_ones() {
                // For nobody: still handed on, or its credit would be lost. Any lane says so.
                0 => by_lane[0].push(Item::Down { owner, down, shared: None }),
                1 => by_lane[lanes.trailing_zeros() as usize].push(Item::Down { owner, down, shared: None }),
                count => {
                    let shared = Arc::new(AtomicU32::new(count));
                    while lanes != 0 {
                        let (down, shared) = (down.clone(), Some(shared.clone()));
                        by_lane[lanes.trailing_zeros() as usize].push(Item::Down { owner, down, shared });
                        lanes &= lanes - 1;
                    }
                }
            }
        }
        for (inbox, items) in self.0.iter().zip(by_lane) {
            inbox.push_all(items);
        }
    }
}
