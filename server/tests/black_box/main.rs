//! The real binary from outside.

mod administrators;
mod codes;
mod commands;
mod http;
mod newcomer;
mod presence;
mod process;
mod tools;
