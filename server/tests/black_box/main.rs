//! The real binary from outside.

mod commands;
mod http;
mod newcomer;
mod process;
mod tools;
