#![doc = include_str!("../README.md")]
//!
//! Below [`Client`] lies [`connection`], for programs that drive the session themselves (the load generator).

mod actor;
mod asking;
mod client;
pub mod connection;
pub mod error;
pub mod event;
mod gaps;
mod keep;
mod screen;
mod sending;
pub mod store;
pub mod target;
pub mod tls;
mod token;
mod watch;

pub use asking::{QUESTIONS_MAX, RequestError};
pub use client::{Builder, Client, ConnectError, EVENTS_MAX, Events};
pub use error::OpenError;
pub use event::{Amendment, Entry, Event, History, State};
pub use fanfare_proto as proto;
pub use gaps::FILL_MESSAGES_MAX;
pub use sending::{QUEUE_MAX, SendError, SendHandle, Sent, Status, WINDOW_MAX};
#[cfg(feature = "disk")]
pub use store::DiskStore;
pub use store::{MemoryStore, Store, StoreError};
pub use tls::Trust;
pub use token::TokenError;
pub use watch::{Channel, Watch};

/// 64 random bits from the system.
fn random() -> u64 {
    let mut bits = [0; 8];
    // A system without randomness cannot have opened a connection; jitter then is the least of its troubles.
    let _ = aws_lc_rs::rand::fill(&mut bits);
    u64::from_ne_bytes(bits)
}
