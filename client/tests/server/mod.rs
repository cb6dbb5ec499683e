//! The real server as a process on scratch data, where `FANFARE_BIN` names its binary.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

pub struct Server {
    binary: PathBuf,
    data: PathBuf,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    child: Option<Child>,
}

/// Below the ports that the kernel gives to outgoing connections: a client that tries again could else be given the server's.
fn free_port(above: u32) -> SocketAddr {
    let first = std::process::id() ^ std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let ports = (0..2_000u32).map(|step| (above + (first % 10_000 + step * 7) % 10_000) as u16);
    let mut addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    addresses.find(|address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()).unwrap()
}

impl Server {
    /// Ready to be started; `None`, and one line that says why, where there is no binary.
    pub fn new(scratch: &Path) -> Option<Self> {
        let Some(binary) = std::env::var_os("FANFARE_BIN") else {
            eprintln!("skipped: FANFARE_BIN does not name a fanfare binary");
            return None;
        };
        let data = scratch.join("data");
        fs::create_dir_all(&data).unwrap();
        let (listen, http) = (free_port(12_000), free_port(22_000));
        // Relative to where the tests were started from, which is not where they run.
        let binary = PathBuf::from(binary);
        let from_root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&binary);
        let binary = if binary.is_absolute() { binary } else { from_root.canonicalize().unwrap() };
        Some(Self { binary, data, listen, http, child: None })
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) {
        let admin = self.data.join("admin.json");
        let _ = fs::remove_file(&admin);
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.data.with_file_name("log")).unwrap();
        let child = Command::new(&self.binary)
            .args(["start", "--seed", "demo", "--limits", "load", "--log", "json", "--data"])
            .arg(&self.data)
            .args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(60);
        while !fs::read(&admin).is_ok_and(|text| serde_json::from_slice::<Value>(&text).is_ok()) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "it does not serve: {ended:?}");
            // The file appears when it is ready; there is nothing else to wait on across processes.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A token for one of the demo's people.
    pub fn token(&self, name: &str) -> String {
        let mut command = Command::new(&self.binary);
        command.args(["user", "token", name, "--ttl", "1h", "--json", "--data"]).arg(&self.data);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["token"].as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
