//! Who serves which shard, under which term.

use crate::error::StoreError;

/// A lease on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which shard.
    pub shard: u16,
    /// Only rises; every commit carries it.
    pub term: u64,
}

/// Leases on shards. Methods block.
pub trait Ownership: Send + Sync + 'static {
    /// Takes the shard, raising its term: what an older owner still writes is refused from here on. Durable on return.
    ///
    /// # Errors
    /// `Unavailable`, `Full`.
    fn take(&self, shard: u16) -> Result<Lease, StoreError>;

    /// Takes all of these shards, in this order: one flush where the engine can.
    ///
    /// # Errors
    /// As of [`Self::take`]; some may have been taken.
    fn take_all(&self, shards: &[u16]) -> Result<Vec<Lease>, StoreError> {
        shards.iter().map(|shard| self.take(*shard)).collect()
    }

    /// The lease in force, if any.
    ///
    /// # Errors
    /// `Unavailable`.
    fn lease(&self, shard: u16) -> Result<Option<Lease>, StoreError>;
}
