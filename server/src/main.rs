//! The binary `fanfare`. Everything is in the library; here are the allocator and the process's end.

#[cfg(feature = "mimalloc")]
mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "mimalloc")]
    allocator::set_up();
    fanfare_server::run(std::env::args_os())
}
