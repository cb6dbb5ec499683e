//! The rig of the black-box tests: the real binary as a process (started, killed, traced, restarted on the same
//! data), people who talk to it over WebSocket with frames written by hand, and a ledger that holds what they were
//! told against what anybody can page afterwards.
//!
//! - `server`: the process and its folder;
//! - `connection`: one session, blocking, no SDK in between: a test must not trust what it tests;
//! - `ledger`: what was sent, what became of it, what was seen; the checks;
//! - `people`: several sessions that talk at once and write the ledger;
//! - `scene`: all of these together, and the way back after a fault;
//! - `strace`: system calls that fail on purpose.

pub mod connection;
pub mod ledger;
pub mod people;
pub mod scene;
pub mod server;
pub mod strace;
