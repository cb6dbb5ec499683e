//! Peers of `fanout`: another message server that is installed on this machine, doing the same work in the same run.
//!
//! The peer runs where the server runs. Its subscribers (as many sockets as members, the sender is one of them) are a process of
//! their own, module `crowd`, that speaks the peer's protocol as it is: of NATS the text protocol, of MQTT 3.1.1 with QoS 0.

pub mod crowd;
mod speech;

use std::{
    collections::BTreeMap,
    io::{BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{accounting::CpuTimes, floor::line, machine::Cores};
use crate::server_process::free_port;

/// How long a peer has to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// nats-server.
    Nats,
    /// mosquitto.
    Mosquitto,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
        }
    }

    /// What it is started with: it answers on one address of this machine, keeps nothing, and waits for slow readers as
    /// long as ours does.
    fn config(self, address: SocketAddr) -> String {
        match self {
            Self::Nats => {
                format!(
                    "listen: {address}\nping_interval: \"1h\"\nwrite_deadline: \"60s\"\nmax_pending: 268435456\n"
                )
            }
            Self::Mosquitto => format!(
                "listener {} {}\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nmax_queued_messages 0\nuser root\n",
                address.port(),
                address.ip()
            ),
        }
    }

    /// Its version, as the program says it.
    fn version(self) -> Result<String> {
        let flag = match self {
            Self::Nats => "--version",
            Self::Mosquitto => "-h",
        };
        let said = Command::new(self.program()).arg(flag).output();
        let said = match said {
            Ok(said) => String::from_utf8_lossy(&said.stdout).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "--peer: {0} is not installed here (not in PATH). Install it (Debian: apt-get install {0}) or leave --peer out",
                self.program()
            ),
            Err(error) => return Err(error).with_context(|| format!("cannot run {}", self.program())),
        };
        let number =
            |word: &&str| word.trim_start_matches('v').starts_with(|letter: char| letter.is_ascii_digit());
        Ok(said.split_whitespace().find(number).unwrap_or("of unknown version").to_owned())
    }
}

/// What the subscribers are asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How many messages the sender publishes.
    pub messages: usize,
    /// Messages under way at any time, until the sender's own copy has come.
    pub in_flight: usize,
}

/// What they received.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Received {
    /// Messages, once per subscriber; each was the next one and what was sent.
    pub deliveries: u64,
}

/// A peer and its subscribers.
pub struct Peer {
    server: Child,
    crowd: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Its program's name and its version.
    pub name: String,
    pub version: String,
}

impl Peer {
    /// Starts it with so many subscribers.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(kind: Kind, cores: &Cores, folder: &Path, members: usize) -> Result<Self> {
        let version = kind.version()?;
        let address = free_port()?;
        let config = folder.join("peer.conf");
        std::fs::write(&config, kind.config(address))?;
        let log = std::fs::File::create(folder.join("peer.log"))?;
        let server = cores.as_server(|| {
            let mut command = Command::new(kind.program());
            command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.spawn().with_context(|| format!("cannot start {}", kind.program()))
        })?;
        let mut started = Started(Some(server));
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > until {
                let said = std::fs::read_to_string(folder.join("peer.log")).unwrap_or_default();
                bail!("{} does not listen: {said}", kind.program());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer-crowd").args([
            "--address",
            &address.to_string(),
            "--members",
            &members.to_string(),
        ]);
        command.arg("--kind").arg(kind.to_possible_value().context("every kind has a name")?.get_name());
        let mut crowd = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = crowd.stdin.take().context("it is piped")?;
        let answers = BufReader::new(crowd.stdout.take().context("it is piped")?);
        let server = started.0.take().context("it was just started")?;
        let mut peer = Self { server, crowd, orders, answers, name: kind.program().into(), version };
        // The first line: all have subscribed.
        let _: Received = line(&mut peer.answers).context("the peer's subscribers")?;
        Ok(peer)
    }

    /// Has the sender publish, until everybody has everything. Blocks. Gives the CPU of the peer per delivery, in microseconds.
    pub fn run(&mut self, order: Order) -> Result<f64> {
        let before = CpuTimes::of(self.server.id())?;
        writeln!(self.orders, "{}", serde_json::to_string(&order)?)
            .context("the peer's subscribers are gone")?;
        let received: Received = line(&mut self.answers).context("the peer's subscribers")?;
        let spent: BTreeMap<String, u64> = CpuTimes::of(self.server.id())?.since(&before);
        Ok(spent.values().sum::<u64>() as f64 / 1e3 / (received.deliveries.max(1)) as f64)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.crowd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ends with whoever holds it.
struct Started(Option<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
