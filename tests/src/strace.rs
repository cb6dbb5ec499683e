//! System calls of the unmodified binary that fail on purpose. strace counts `when=N` for each thread by itself, so
//! that a thread attached to alone is swept call by call.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The calls that make bytes durable.
pub const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";
/// The calls that take room.
pub const WRITES: &str = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate";

/// What fails, how, and from which call on: `N` for the N-th alone, `N+` for it and all behind it.
#[derive(Clone, Debug)]
pub struct Injection {
    /// System calls, by comma.
    pub calls: &'static str,
    /// `EIO`, `ENOSPC`.
    pub error: &'static str,
    /// strace's `when`.
    pub when: String,
}

impl Injection {
    fn words(&self) -> [String; 4] {
        let Self { calls, error, when } = self;
        [
            "-e".into(),
            format!("trace={calls}"),
            "-e".into(),
            format!("inject={calls}:error={error}:when={when}"),
        ]
    }

    /// The words in front of a command that is to be traced with all its threads from its first call on. The tracer is a grandchild, so
    /// that the command keeps its place as the caller's child.
    pub fn wrap(&self, log: &Path) -> Vec<String> {
        let mut words: Vec<String> = ["strace", "-D", "-f", "-y", "-qq", "-o"].map(Into::into).to_vec();
        words.push(log.display().to_string());
        words.extend(self.words());
        words
    }
}

/// How many calls an strace log says were made to fail.
pub fn injected(log: &Path) -> usize {
    fs::read_to_string(log).unwrap_or_default().lines().filter(|line| line.ends_with("(INJECTED)")).count()
}

/// An strace attached to one thread of a running process. Dropped, it lets go: the calls work again.
#[derive(Debug)]
pub struct Attached {
    strace: Child,
    log: PathBuf,
}

impl Attached {
    /// Attaches to a thread, for calls on these files (all, where there are none), and waits until it holds.
    pub fn to(thread: u32, injection: &Injection, files: &[PathBuf], scratch: &Path) -> Result<Self> {
        let log = scratch.join(format!("strace-{thread}.log"));
        let said = scratch.join("strace.stderr");
        let _ = fs::remove_file(&log);
        let mut command = Command::new("strace");
        command.arg("-y").arg("-o").arg(&log).args(injection.words()).args(["-p", &thread.to_string()]);
        for file in files {
            command.arg("-P").arg(file);
        }
        let strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()
            .context("strace is needed: apt-get install strace")?;
        let mut attached = Self { strace, log };
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let text = fs::read_to_string(&said).unwrap_or_default();
            if text.contains("attached") {
                return Ok(attached);
            }
            if attached.strace.try_wait()?.is_some() || Instant::now() > until {
                bail!("strace does not attach: {text}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many calls it made fail.
    pub fn injected(&self) -> usize {
        injected(&self.log)
    }

    /// Where it writes the calls it sees.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Lets go; returns how many calls it made fail.
    pub fn detach(mut self) -> Result<usize> {
        self.end()?;
        Ok(self.injected())
    }

    fn end(&mut self) -> Result<()> {
        if self.strace.try_wait()?.is_none() {
            // SIGTERM: strace detaches and lets the thread run; SIGKILL would do so too, without its last lines.
            Command::new("kill").args(["-TERM", &self.strace.id().to_string()]).status()?;
        }
        self.strace.wait()?;
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
