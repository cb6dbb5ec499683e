//! Credit: how many bytes of each owner have been handed on. All lanes count into one place, so that what is not given
//! back is bounded for the gateway and not for each lane.

use std::sync::atomic::{AtomicU32, Ordering};

use fanfare_proto::{
    ids::SHARDS_MAX,
    link::{CREDIT_BYTES, GatewayId, Up, Uplink},
};

/// Bytes after which credit is given back.
const GIVE_BACK_BYTES: u32 = CREDIT_BYTES / 4;

/// Bytes by owner that are not yet given back.
#[derive(Debug)]
pub(crate) struct Credits {
    owners: Box<[AtomicU32]>,
}

impl Credits {
    pub fn new() -> Self {
        Self { owners: (0..SHARDS_MAX).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Counts, and gives back what is due. An owner beyond the shards is given back each time.
    pub fn handed_on(&self, gateway: GatewayId, owner: u16, bytes: u32, uplink: &dyn Uplink) {
        let due = match self.owners.get(usize::from(owner)) {
            Some(counted) => {
                let before = counted.fetch_add(bytes, Ordering::Relaxed);
                if before.saturating_add(bytes) < GIVE_BACK_BYTES {
                    0
                } else {
                    counted.swap(0, Ordering::Relaxed)
                }
            }
            None => bytes,
        };
        if due > 0 && uplink.try_send(Up::Credit { gateway, owner, bytes: due }).is_err() {
            tracing::error!(owner, "the link took no credit");
        }
    }
}
