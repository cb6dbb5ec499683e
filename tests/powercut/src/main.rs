//! The tool: `powercut undo` takes back what a power cut would have lost, `powercut status` says how much
//! that is now.

#[allow(dead_code, reason = "shared with the library, which uses other parts")]
mod log;
#[allow(dead_code, reason = "shared with the library, which uses other parts")]
mod pending;
#[allow(dead_code, reason = "shared with the library, which uses other parts")]
mod record;
#[allow(dead_code, reason = "shared with the library, which uses other parts")]
mod sys;
mod undo;

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::{
    log::Log,
    undo::{Dice, Mode, undo},
};

/// Simulates the power cut that a killed process left ready.
#[derive(Parser)]
#[command(name = "powercut")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes back unsynced bytes and names; what is left is durable.
    Undo {
        /// The folder that was POWERCUT_DIR.
        #[arg(long)]
        dir: PathBuf,
        /// The folder that was POWERCUT_JOURNAL.
        #[arg(long)]
        journal: PathBuf,
        /// The same seed cuts the same way.
        #[arg(long)]
        seed: u64,
        /// How much the cut takes.
        #[arg(long, value_enum, default_value = "lost")]
        mode: Mode,
    },
    /// Prints how much is not durable; works while the process runs.
    Status {
        /// The folder that is POWERCUT_JOURNAL.
        #[arg(long)]
        journal: PathBuf,
    },
}

fn main() -> Result<()> {
    if std::env::var("LD_PRELOAD").is_ok_and(|all| all.contains("fanfare_powercut")) {
        bail!("run the tool without LD_PRELOAD");
    }
    match Cli::parse().command {
        Command::Undo { dir, journal, seed, mode } => cut(&dir, &journal, seed, mode),
        Command::Status { journal } => status(&journal),
    }
}

fn cut(dir: &Path, journal: &Path, seed: u64, mode: Mode) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    let mut log = match Log::open(journal.as_os_str().as_bytes()) {
        Ok(log) => log,
        Err(libc::EWOULDBLOCK) => bail!("the process under test still runs"),
        Err(code) => {
            bail!("cannot open {}: {}", journal.display(), std::io::Error::from_raw_os_error(code))
        }
    };
    let done = undo(&dir, journal, &mut log, mode, &mut Dice(seed))?;
    println!(
        "{{\"files\":{},\"writes_undone\":{},\"bytes_undone\":{},\"writes_kept\":{},\"names_undone\":{}}}",
        done.files, done.writes_undone, done.bytes_undone, done.writes_kept, done.names_undone
    );
    Ok(())
}

fn status(journal: &Path) -> Result<()> {
    let log = Log::peek(journal.as_os_str().as_bytes())
        .map_err(std::io::Error::from_raw_os_error)
        .with_context(|| format!("cannot read {}", journal.display()))?;
    let writes = log.pending.files.values().flatten();
    let (count, bytes) = writes.fold((0u64, 0u64), |(n, sum), (_, data)| (n + 1, sum + data.len));
    println!(
        "{{\"files\":{},\"writes\":{count},\"bytes\":{bytes},\"names\":{},\"log_bytes\":{}}}",
        log.pending.files.len(),
        log.pending.names.len(),
        log.len()
    );
    Ok(())
}
