//! The machine that a measurement runs on: which core is whose, and how many files a process may open.

use anyhow::{Context, Result};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Files a process needs beside its sessions' sockets: stores, logs, listeners.
const FILES_BESIDE: u64 = 500;

/// Which cores the server (and the floor, which is measured where the server runs) and the load have.
#[derive(Clone, Debug)]
pub struct Cores {
    server: CpuSet,
    load: CpuSet,
    /// They share nothing.
    pub apart: bool,
}

impl Cores {
    /// One core for the server and all others for the load; on a machine of one core both share it. One core, so that
    /// a figure means the same on a machine of any size.
    pub fn split() -> Result<Self> {
        let all = sched_getaffinity(None).context("cannot read which cores there are")?;
        let mut numbers = (0..CpuSet::MAX_CPU).filter(|number| all.is_set(*number));
        let first = numbers.next().context("no core to run on")?;
        let (mut server, mut load) = (CpuSet::new(), CpuSet::new());
        server.set(first);
        numbers.for_each(|number| load.set(number));
        let apart = load.count() > 0;
        if !apart {
            load = server;
        }
        Ok(Self { server, load, apart })
    }

    /// Moves this thread, and what it starts from now on, to the load's cores.
    pub fn go_to_load(&self) -> Result<()> {
        sched_setaffinity(None, &self.load).context("cannot move to the load's cores")
    }

    /// Runs `start` where the server belongs: a process started by it stays there.
    pub fn as_server<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        sched_setaffinity(None, &self.server).context("cannot move to the server's core")?;
        let outcome = start();
        self.go_to_load()?;
        outcome
    }
}

/// Raises the bound of open files as far as it goes, for this process and those it starts.
///
/// # Errors
/// It does not reach `sockets` and what else a process opens.
pub fn allow_files(sockets: usize) -> Result<()> {
    let bound = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: bound.maximum, maximum: bound.maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the bound of open files")?;
    let wanted = sockets as u64 + FILES_BESIDE;
    match bound.maximum {
        Some(files) if files < wanted => {
            anyhow::bail!(
                "{sockets} sockets need {wanted} open files, {files} are allowed: raise it (ulimit -Hn)"
            )
        }
        _ => Ok(()),
    }
}
