//! The rig of these tests: a watched folder, its journal, and processes run under the preload library.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::Duration,
};

use serde_json::Value;

/// Longest wait for a process; only reached when something is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// A watched folder `data` and its journal, side by side.
pub struct Rig {
    _root: tempfile::TempDir,
    pub data: PathBuf,
    pub journal: PathBuf,
}

/// What every Python program starts with.
const PRELUDE: &str = "
import os, signal, sys
def die(): os.kill(os.getpid(), signal.SIGKILL)
def make(p): return os.open(p, os.O_RDWR | os.O_CREAT, 0o644)
def sync_dir(p='.'):
    d = os.open(p, os.O_RDONLY); os.fsync(d); os.close(d)
def durable(p, b):
    f = make(p); os.write(f, b); os.fsync(f); sync_dir(); return f
";

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let deps = exe.parent().expect("a test lies in a folder");
    // `cargo test` leaves the library in deps, `cargo build` links it one folder up too: the newest counts.
    let profile = deps.parent().expect("deps lies in the profile folder");
    let built = |folder: &Path| {
        let path = folder.join("libfanfare_powercut.so");
        Some((path.metadata().and_then(|meta| meta.modified()).ok()?, path))
    };
    built(profile).max(built(deps)).expect("the library is built with the tests").1
}

#[allow(dead_code, reason = "each test file uses a part")]
impl Rig {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (data, journal) = (root.path().join("data"), root.path().join("journal"));
        std::fs::create_dir(&data).expect("the data folder");
        Self { _root: root, data, journal }
    }

    /// Makes a command run under the preload, in the data folder.
    pub fn watched<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(&self.data)
            .env("LD_PRELOAD", library())
            .env("POWERCUT_DIR", &self.data)
            .env("POWERCUT_JOURNAL", &self.journal)
    }

    /// Runs a Python program that must end in its own SIGKILL; returns what it printed.
    pub fn python(&self, program: &str) -> String {
        let mut command = Command::new("python3");
        command.arg("-c").arg(format!("{PRELUDE}{program}\ndie()\n"));
        killed(&finish(self.watched(&mut command)))
    }

    fn tool(&self, args: &[&str]) -> Value {
        let output = finish(Command::new(env!("CARGO_BIN_EXE_powercut")).args(args));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON line")
    }

    pub fn undo(&self, mode: &str, seed: u64) -> Value {
        let (data, journal) = (self.data.to_string_lossy(), self.journal.to_string_lossy());
        let seed = seed.to_string();
        self.tool(&["undo", "--dir", &data, "--journal", &journal, "--seed", &seed, "--mode", mode])
    }

    pub fn status(&self) -> Value {
        self.tool(&["status", "--journal", &self.journal.to_string_lossy()])
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.data.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn has(&self, name: &str) -> bool {
        Path::exists(&self.data.join(name))
    }
}

/// Runs a command to its end, which must come within [`PATIENCE`].
pub fn finish(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("it runs");
    let pid = child.id() as i32;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let is_late = ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
        if is_late {
            // SAFETY: a signal to a child that has not been waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        is_late
    });
    let output = child.wait_with_output().expect("it ends");
    drop(done);
    let is_late = watch.join().expect("no panic");
    assert!(!is_late, "not done after {PATIENCE:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn killed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "the program ends by SIGKILL: {:?} {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
