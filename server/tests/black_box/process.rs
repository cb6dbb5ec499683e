//! The real binary in a scratch folder: started on free ports, asked by its own commands, stopped.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything; only reached when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command line of the binary, not yet run, without what the developer's own environment sets.
pub fn fanfare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FANFARE") {
            command.env_remove(name);
        }
    }
    // Nor the contexts of whoever runs the tests.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

/// stdout as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// stderr as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lines of a child's stream as they come.
pub fn lines(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Waits for a line that holds `part`.
pub fn wait_for(lines: &Receiver<String>, part: &str) -> String {
    all_until(lines, part).pop().unwrap_or_default()
}

/// All lines up to the one that holds `part`, which is the last.
fn all_until(lines: &Receiver<String>, part: &str) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    let mut seen: Vec<String> = Vec::new();
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        seen.push(line);
        if seen.last().is_some_and(|line| line.contains(part)) {
            return seen;
        }
    }
    panic!("no line with `{part}` among {seen:#?}");
}

/// A server of its own folder.
pub struct Server {
    folder: TempDir,
    child: Option<Child>,
    said: Vec<String>,
    _banner: Receiver<String>,
    log: Receiver<String>,
}

impl Server {
    /// `fanfare start --dev` on free ports in a fresh folder.
    pub fn dev() -> Self {
        Self::on(tempfile::tempdir().expect("a scratch folder"), &["--dev"])
    }

    /// On that folder.
    pub fn on(folder: TempDir, flags: &[&str]) -> Self {
        let data = folder.path().join("data");
        let _ = std::fs::remove_file(data.join("admin.json"));
        let mut command =
            fanfare(&["start", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "json"]);
        command.args(flags).arg("--data").arg(&data).current_dir(folder.path());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let banner = lines(child.stdout.take().expect("piped"));
        let log = lines(child.stderr.take().expect("piped"));
        let said = all_until(&banner, "Ready in");
        Self { folder, child: Some(child), said, _banner: banner, log }
    }

    /// What it said on stdout until it was ready.
    pub fn banner(&self) -> String {
        self.said.join("\n")
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it wrote about itself.
    pub fn admin(&self) -> Value {
        let text = std::fs::read(self.data().join("admin.json")).expect("admin.json is there");
        serde_json::from_slice(&text).expect("admin.json is JSON")
    }

    /// A command against it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fanfare(arguments);
        command.arg("--data").arg(self.data()).current_dir(self.folder.path());
        command
    }

    /// A command against it, run to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary runs")
    }

    /// A command that must succeed; its stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    /// A command with `--json` that must succeed; its object, which names a schema.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
        let schema = value["schema"].as_str().unwrap_or_default();
        assert!(schema.starts_with("fanfare.") && schema.ends_with("/v1"), "{arguments:?}: {text}");
        value
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().expect("it runs").id();
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("its own child");
    }

    /// Ctrl-C, and waits for a clean end; gives the folder back with how long it took.
    pub fn stop(self) -> (TempDir, Duration) {
        self.signal(rustix::process::Signal::INT);
        self.ended()
    }

    /// Waits for a clean end.
    pub fn ended(mut self) -> (TempDir, Duration) {
        let began = Instant::now();
        let status = self.child.take().expect("it runs").wait().expect("it ends");
        let log: Vec<String> = self.log.iter().collect();
        assert!(status.success(), "{status}: {log:#?}");
        (self.take_folder(), began.elapsed())
    }

    /// Waits for the end of a killed one.
    pub fn abandon(mut self) -> TempDir {
        self.child.take().expect("it runs").wait().expect("it ends");
        self.take_folder()
    }

    fn take_folder(&mut self) -> TempDir {
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a scratch folder"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
