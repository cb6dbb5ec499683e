//! What Fanfare keeps, behind traits: metadata (who, when, which place in the order), content (what), the group log, and
//! ownership of shards. Embedded stores (SQLite and fjall) stand beside the traits and are the default; Postgres,
//! Scylla or Cassandra and Kafka follow behind features and pass the same conformance suite.
//!
//! The storage crate knows rows, bytes and hashes; it knows no session, no gateway and no fan-out.

pub mod accounts;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod content;
pub mod drain;
pub mod embedded;
pub mod error;
pub mod fault;
pub mod hash;
pub mod log;
pub mod metadata;
pub mod model;
pub mod mutant;
pub mod ownership;
pub mod push;
pub mod read;
pub mod reconcile;
pub mod seen;

pub use error::StoreError;

/// A step of the commit path, or of what commits wait for, that takes so long is told in the log: how long and where its time went.
pub const SLOW: std::time::Duration = std::time::Duration::from_millis(100);
