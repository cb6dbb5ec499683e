//! The measuring modes: each hot path of the server beside its floor, in one run, so that the figure is a ratio that holds on any
//! machine.
//!
//! A mode starts its server as a process of its own, on a core of its own, and reads what it took from the kernel's accounting.
//! Sessions are whole ones, limiters are on (`--limits load`), and every delivery is counted and checked.

pub mod accept;
mod accounting;
mod beside;
mod crowd;
pub mod fanout;
pub mod floor;
pub mod hot_group;
pub mod idle;
pub mod leak;
mod ledger;
mod machine;
pub mod pairs;
pub mod peer;
mod population;
pub mod presence;
mod reach;
pub mod report;
pub mod sends;
mod server;
pub mod spike;
mod statistics;
pub mod storm;
mod udp;

use std::future::Future;

use anyhow::Result;
use tokio::task::LocalSet;

use machine::Cores;
use report::{Options, Report};

/// Runs a mode on the load's cores and hands its report over. Gives the exit status.
fn on_load<R: Report, F: Future<Output = Result<R>>>(
    options: &Options,
    mode: impl FnOnce(Cores) -> F,
) -> Result<u8> {
    let cores = Cores::split()?;
    cores.go_to_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let report = local.block_on(&runtime, mode(cores))?;
    report::hand_over(&report, options)
}

/// `loadgen fanout`.
pub fn fanout(arguments: &fanout::Fanout) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { fanout::run(arguments, &cores).await })
}

/// `loadgen idle`.
pub fn idle(arguments: &idle::Idle) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { idle::run(arguments, &cores).await })
}

/// `loadgen accept`.
pub fn accept(arguments: &accept::Accept) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { accept::run(arguments, &cores).await })
}

/// `loadgen pairs`.
pub fn pairs(arguments: &pairs::Pairs) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { pairs::run(arguments, &cores).await })
}

/// `loadgen sends`.
pub fn sends(arguments: &sends::Sends) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { sends::run(arguments, &cores).await })
}

/// `loadgen storm`.
pub fn storm(arguments: &storm::Storm) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { storm::run(arguments, &cores).await })
}

/// `loadgen leak`.
pub fn leak(arguments: &leak::Leak) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { leak::run(arguments, &cores).await })
}

/// `loadgen hot-group`.
pub fn hot_group(arguments: &hot_group::HotGroup) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { hot_group::run(arguments, &cores).await })
}

/// `loadgen spike`.
pub fn spike(arguments: &spike::Spike) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { spike::run(arguments, &cores).await })
}

/// `loadgen presence`.
pub fn presence(arguments: &presence::Presence) -> Result<u8> {
    on_load(&arguments.options, |cores| async move { presence::run(arguments, &cores).await })
}
