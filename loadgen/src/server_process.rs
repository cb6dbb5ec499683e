//! The server under load, as a process of its own: started on scratch data, killed, restarted on the same ports, its
//! CPU time and memory read from the kernel's accounting.

use std::{
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// How the server writes where it can be reached, in its data folder.
#[derive(Clone, Debug, Deserialize)]
pub struct AdminFile {
    /// `host:port` of its HTTP side.
    pub address: String,
    /// Bearer token of `/admin/v1`.
    pub token: String,
}

/// A preload library that remembers unsynced writes, and the tool that undoes them.
#[derive(Clone, Debug)]
pub struct PowerCut {
    library: PathBuf,
    tool: PathBuf,
    journal: PathBuf,
}

/// The server's process and its folder.
#[derive(Debug)]
pub struct ServerProcess {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
    listen: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
    power_cut: Option<PowerCut>,
    environment: Vec<(&'static str, OsString)>,
    cpu_s_of_ended: f64,
    rss_peak_bytes: u64,
}

/// Builds a binary of this workspace in the profile this program was built in, and says where it lies.
pub fn build(package: &str, file: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where am I?")?;
    let folder = own.parent().context("a program lies in a folder")?.to_owned();
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("release");
    let profile = if profile == "debug" { "dev" } else { profile };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    if manifest.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--profile", profile, "-p", package, "--manifest-path"])
            .arg(&manifest);
        let status = cargo.stdout(Stdio::null()).status().context("cannot run cargo")?;
        if !status.success() {
            bail!("cargo build -p {package} failed");
        }
    }
    let built = folder.join(file);
    if !built.exists() {
        bail!("{} is not there: build it with cargo build --profile {profile} -p {package}", built.display());
    }
    Ok(built)
}

/// A free port below those that the kernel gives to outgoing connections: while the server is down, a client that tries again could
/// else be given its very port, connect to itself, and keep the server from coming back.
pub fn free_port() -> Result<SocketAddr> {
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

impl ServerProcess {
    /// Prepares a server on fresh data below `scratch`; [`Self::start`] starts it.
    pub fn prepare(scratch: &Path, power_cut: bool) -> Result<Self> {
        let binary = match std::env::var_os("FANFARE_BIN") {
            Some(binary) => binary.into(),
            None => build("fanfare-server", "fanfare")?,
        };
        let data = scratch.join("data");
        let power_cut = if power_cut {
            let tool = match std::env::var_os("FANFARE_POWERCUT") {
                Some(tool) => tool.into(),
                None => build("fanfare-powercut", "powercut")?,
            };
            let library = tool.with_file_name("libfanfare_powercut.so");
            let journal = scratch.join("journal");
            fs::create_dir_all(&journal)?;
            Some(PowerCut { library, tool, journal })
        } else {
            None
        };
        fs::create_dir_all(&data)?;
        Ok(Self {
            binary,
            log: scratch.join("server.log"),
            data,
            listen: free_port()?,
            http: free_port()?,
            child: None,
            power_cut,
            environment: Vec::new(),
            cpu_s_of_ended: 0.0,
            rss_peak_bytes: 0,
        })
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// Starts it and waits until it says that it is ready; returns where its HTTP side is, with the admin token.
    pub fn start(&mut self) -> Result<AdminFile> {
        let admin = self.data.join("admin.json");
        // A killed server leaves the old one behind.
        let _ = fs::remove_file(&admin);
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command
            .arg("start")
            .args(["--limits", "load", "--log", "json"])
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string()])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(power_cut) = &self.power_cut {
            command
                .env("LD_PRELOAD", &power_cut.library)
                .env("POWERCUT_DIR", fs::canonicalize(&self.data)?)
                .env("POWERCUT_JOURNAL", fs::canonicalize(&power_cut.journal)?);
        }
        self.child = Some(command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?);
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                let kept = self.keep();
                bail!("the server ended at once ({status}){kept}:\n{}", self.log_tail());
            }
            if let Ok(text) = fs::read(&admin)
                && let Ok(file) = serde_json::from_slice::<AdminFile>(&text)
            {
                return Ok(file);
            }
            if Instant::now() > deadline {
                bail!("the server was not ready within 120 s:\n{}", self.log_tail());
            }
            // The file appears when the server is ready; there is nothing else to wait on across processes.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Copies data and log to the folder that `FANFARE_KEEP` names, where it names one: the scratch folder goes with this run.
    fn keep(&self) -> String {
        let Some(folder) = std::env::var_os("FANFARE_KEEP") else { return String::new() };
        let folder = PathBuf::from(folder);
        let copy = |from: &Path| {
            Command::new("cp").arg("-a").arg(from).arg(&folder).status().is_ok_and(|copy| copy.success())
        };
        if fs::create_dir_all(&folder).is_ok() && copy(&self.data) && copy(&self.log) {
            format!("; its data and log are kept in {}", folder.display())
        } else {
            format!("; nothing could be kept in {}", folder.display())
        }
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Stops it where it stands (SIGSTOP), to look before a kill, or lets it go on (SIGCONT).
    pub fn pause(&mut self, paused: bool) {
        if let Some(child) = &self.child {
            signal(child, if paused { libc::SIGSTOP } else { libc::SIGCONT });
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.sample();
        if let Some(mut child) = self.child.take() {
            self.cpu_s_of_ended += cpu_s(child.id()).unwrap_or(0.0);
            child.kill()?;
            let status = child.wait()?;
            if status.signal() != Some(libc::SIGKILL) {
                bail!("the server ended by itself before the kill ({status}):\n{}", self.log_tail());
            }
        }
        Ok(())
    }

    /// After a kill: takes back what was not synced, as a power cut would. Returns what the tool printed.
    pub fn cut_power(&self, seed: u64, mode: &str) -> Result<serde_json::Value> {
        let Some(power_cut) = &self.power_cut else {
            bail!("the server does not run under the preload library")
        };
        let output = Command::new(&power_cut.tool)
            .arg("undo")
            .arg("--dir")
            .arg(fs::canonicalize(&self.data)?)
            .arg("--journal")
            .arg(fs::canonicalize(&power_cut.journal)?)
            .args(["--seed", &seed.to_string(), "--mode", mode])
            .output()
            .context("cannot run the power-cut tool")?;
        if !output.status.success() {
            bail!("powercut undo: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("powercut undo prints JSON")
    }

    /// Asks it to end (SIGTERM) and waits; an end by itself or one that takes over 30 s is an error.
    pub fn stop(&mut self) -> Result<()> {
        self.sample();
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let cpu = cpu_s(child.id());
        signal(&child, libc::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait()? {
                self.cpu_s_of_ended += cpu.unwrap_or(0.0);
                if !status.success() {
                    bail!("the server ended with {status}:\n{}", self.log_tail());
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("the server did not end within 30 s of SIGTERM:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process number while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Fails where the server ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            bail!("the server ended by itself ({status}):\n{}", self.log_tail());
        }
        self.sample();
        Ok(())
    }

    fn sample(&mut self) {
        let Some(child) = &self.child else { return };
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak_kib = status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        });
        self.rss_peak_bytes = self.rss_peak_bytes.max(peak_kib.unwrap_or(0) * 1024);
    }

    /// CPU seconds, user and system, over all its lives.
    pub fn cpu_s(&self) -> f64 {
        self.cpu_s_of_ended + self.child.as_ref().and_then(|child| cpu_s(child.id())).unwrap_or(0.0)
    }

    /// The most resident memory of any of its lives.
    pub fn rss_peak_bytes(&mut self) -> u64 {
        self.sample();
        self.rss_peak_bytes
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(child: &Child, signal: i32) {
    #[expect(unsafe_code, reason = "kill(2) has no safe wrapper in the standard library")]
    // SAFETY: the child is ours and not yet waited for, so its pid is still its own.
    unsafe {
        libc::kill(child.id() as i32, signal);
    }
}

fn cpu_s(pid: u32) -> Option<f64> {
    cpu_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// User and system CPU seconds from the text of a `/proc/*/stat`.
pub fn cpu_of(stat: &str) -> Option<f64> {
    // Fields 14 and 15 of proc(5), counted behind the command's closing parenthesis; 100 ticks a second on Linux.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}
