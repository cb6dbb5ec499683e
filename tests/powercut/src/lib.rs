//! A preload library that makes a power cut possible to test: before every change below `POWERCUT_DIR` it
//! saves what was there in `POWERCUT_JOURNAL`, and forgets that only when the process syncs. After a SIGKILL
//! the `powercut` tool can then take back what a disk would have lost. See the README beside this crate.

mod data;
#[allow(dead_code, reason = "shared with the tool, which uses other parts")]
mod log;
mod names;
#[allow(dead_code, reason = "shared with the tool, which uses other parts")]
mod pending;
#[allow(dead_code, reason = "shared with the tool, which uses other parts")]
mod record;
#[allow(dead_code, reason = "shared with the tool, which uses other parts")]
mod sys;
#[cfg(target_arch = "x86_64")]
mod trap;
mod watch;
