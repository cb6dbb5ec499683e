//! The binary `fanfare`. Everything is in the library; here are the allocator and the process's end.

use std::process::ExitCode;

// Huge pages stay off (mimalloc's default): they inflate the memory of many small idle connections.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fanfare_server::run(std::env::args_os())
}
