//! The session without IO: frames and `now` go in; frames, events and the next deadline come out. Gateway, client and
//! load generator drive the same types.

pub mod client;
pub mod server;
