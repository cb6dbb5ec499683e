//! The real binary as a process: started (plain, traced, or under a library of ours), killed, restarted on the same
//! data and the same ports.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longest time from start to ready, recovery included.
const READY_TIME: Duration = Duration::from_secs(60);

/// What a start adds to the plain one.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// A command to run it under, as `strace -D ...`.
    pub wrap: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
}

/// What became of a start.
#[derive(Debug)]
pub enum Started {
    /// It serves.
    Ready,
    /// It ended by itself before it served.
    Ended(ExitStatus),
}

/// The process and its folder.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
    listen: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
}

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

/// The folder in which this program lies, and its neighbours.
pub fn built() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where am I?")?;
    Ok(own.parent().context("a program lies in a folder")?.to_owned())
}

/// Builds one package of the workspace in the profile of this program.
pub fn build(package: &str, features: &[&str]) -> Result<()> {
    let folder = built()?;
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("release").to_owned();
    let profile = if profile == "debug" { "dev".to_owned() } else { profile };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--quiet", "--profile", &profile, "-p", package]);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    let status = cargo.stdout(Stdio::null()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build -p {package} {features:?} failed");
    }
    Ok(())
}

/// A free port below those that the kernel gives to outgoing connections: while the server is down, a client that tries again could
/// else be given its very port, connect to itself, and keep the server from coming back.
fn free_port() -> Result<SocketAddr> {
    const PORTS: std::ops::Range<u16> = 12_000..32_000;
    let now = std::time::UNIX_EPOCH.elapsed()?.subsec_nanos() ^ std::process::id().rotate_left(16);
    let first = now % u32::from(PORTS.end - PORTS.start);
    for step in 0..1_000 {
        let port = PORTS.start + ((first + step * 7) % u32::from(PORTS.end - PORTS.start)) as u16;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("none of a thousand ports is free")
}

impl Server {
    /// A server whose data will lie in `scratch/data`; nothing runs yet.
    pub fn new(binary: &Path, scratch: &Path) -> Result<Self> {
        let data = scratch.join("data");
        fs::create_dir_all(&data)?;
        Ok(Self {
            binary: binary.to_owned(),
            data: data.canonicalize()?,
            log: scratch.join("server.log"),
            listen: free_port()?,
            http: free_port()?,
            child: None,
        })
    }

    /// The address of its WebSocket side.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// The address of its HTTP side.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it and waits until it is ready or has ended.
    pub fn start(&mut self, extra: &Extra) -> Result<Started> {
        let admin = self.data.join("admin.json");
        // A killed server leaves the old one behind.
        let _ = fs::remove_file(&admin);
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut words = extra.wrap.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        words.push(self.binary.clone().into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["start", "--seed", "demo", "--limits", "load", "--log", "json", "--data"])
            .arg(&self.data)
            .args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string()])
            .envs(extra.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("cannot run {words:?}"))?);
        let until = Instant::now() + READY_TIME;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Started::Ended(status));
            }
            if fs::read(&admin).is_ok_and(|text| serde_json::from_slice::<Value>(&text).is_ok()) {
                return Ok(Started::Ready);
            }
            if Instant::now() > until {
                bail!("not ready within {READY_TIME:?}:\n{}", self.log_tail());
            }
            // The file appears when the server is ready; there is nothing else to wait on across processes.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it where nothing can keep it from serving.
    pub fn start_well(&mut self) -> Result<()> {
        match self.start(&Extra::default())? {
            Started::Ready => Ok(()),
            Started::Ended(status) => bail!("it ended at its start with {status}:\n{}", self.log_tail()),
        }
    }

    /// Its end, where it ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Waits for its end by itself.
    pub fn wait_for_end(&mut self, time: Duration) -> Result<Option<ExitStatus>> {
        let until = Instant::now() + time;
        while self.child.is_some() {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() > until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("there is no process to wait for")
    }

    /// SIGKILL, and waits. No matter where it is already gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Runs one of its commands on its data folder; returns what it printed as JSON.
    pub fn command(&self, args: &[&str]) -> Result<Value> {
        let output = Command::new(&self.binary)
            .args(args)
            .arg("--json")
            .arg("--data")
            .arg(&self.data)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("fanfare {args:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("fanfare {args:?} printed {text:?}"))
    }

    /// A token for somebody, good for an hour.
    pub fn token(&self, name: &str) -> Result<String> {
        let said = self.command(&["user", "token", name, "--ttl", "1h"])?;
        Ok(said["token"].as_str().with_context(|| format!("no token in {said}"))?.to_owned())
    }

    /// Its threads: names and ids.
    pub fn threads(&self) -> Result<Vec<(String, u32)>> {
        let pid = self.pid().context("it does not run")?;
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().to_owned();
            if let Some(id) = task.file_name().to_str().and_then(|id| id.parse().ok()) {
                threads.push((name, id));
            }
        }
        threads.sort();
        Ok(threads)
    }

    /// All files below its data folder.
    pub fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut folders) = (Vec::new(), vec![self.data.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// How many lines of its log say that it panicked.
    pub fn panics(&self) -> usize {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.contains("panicked at")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
