//! Fanfare's load generator. `replay` replays a real community and checks every delivery; the others measure the server's hot
//! paths beside their floors.

mod admin;
mod check;
mod measure;
mod plan;
mod replay;
mod report;
mod scratch;
mod server_process;
mod trace;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "loadgen", version, about = "Load for Fanfare, with every delivery checked")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Replays the trace of a real community: every sender is a user with a session of its own and joins a channel when it
    /// first posts there. Every delivery of every recipient is checked.
    ///
    /// Exit status: 0 PASS, 1 error, 10 a promise was broken, 11 INVALID (the run proves nothing).
    Replay(Replay),
    Idle(measure::idle::Idle),
    Fanout(measure::fanout::Fanout),
    Pairs(measure::pairs::Pairs),
    Accept(measure::accept::Accept),
    Sends(measure::sends::Sends),
    Storm(measure::storm::Storm),
    Leak(measure::leak::Leak),
    HotGroup(measure::hot_group::HotGroup),
    Spike(measure::spike::Spike),
    Presence(measure::presence::Presence),
    /// The loop of the floor of `pairs`: started by it.
    #[command(hide = true)]
    FloorRelay {
        /// How many pairs connect.
        #[arg(long)]
        pairs: usize,
    },
    /// The users of the floor of `pairs`: started by it.
    #[command(hide = true)]
    FloorUsers {
        /// Where the loop listens.
        #[arg(long)]
        address: SocketAddr,
        /// How many pairs connect.
        #[arg(long)]
        pairs: usize,
    },
    /// The floor of `accept`: started by it.
    #[command(hide = true)]
    FloorAccept(measure::accept::floor::FloorAccept),
    /// The subscribers of `fanout`'s peer: started by it.
    #[command(hide = true)]
    PeerCrowd(measure::peer::crowd::PeerCrowd),
    /// The floor of `sends`: started by it.
    #[command(hide = true)]
    FloorStore(measure::sends::floor::FloorStore),
    /// The loop of `fanout`'s floor: started by it.
    #[command(hide = true)]
    FloorSend {
        /// How many connect.
        #[arg(long)]
        sockets: usize,
        /// Over QUIC, by quinn alone.
        #[arg(long)]
        quic: bool,
    },
    /// The readers of `fanout`'s floor: started by it.
    #[command(hide = true)]
    FloorRead {
        /// Where the loop listens.
        #[arg(long)]
        address: SocketAddr,
        /// How many to connect.
        #[arg(long)]
        sockets: usize,
        /// Over QUIC, by quinn alone.
        #[arg(long)]
        quic: bool,
    },
}

/// Over what sessions connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Transport {
    /// All by WebSocket.
    Ws,
    /// All by QUIC.
    Quic,
    /// Every other user by QUIC.
    Mix,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Replay {
    /// CSV with the header `timestamp,channel,topic,sender,bytes`, gzipped where its name ends in .gz.
    pub trace: PathBuf,
    /// Lines that people typed, one a body.
    #[arg(long)]
    pub bodies: PathBuf,
    /// Over what sessions connect.
    #[arg(long, value_enum, default_value = "ws")]
    pub transport: Transport,
    /// How many messages of the trace.
    #[arg(long, value_parser = count, default_value = "18446744073709551615", hide_default_value = true)]
    pub messages: usize,
    /// Leave out so many messages at the trace's beginning; nobody is a member at the first that is taken.
    #[arg(long, value_parser = number, default_value = "0", hide_default_value = true)]
    pub skip: usize,
    /// Look at tiers: every app is on screen, nobody opens a channel, and the trace drives the server's clock. Tells whether members had
    /// been pushed what they answer.
    #[arg(long)]
    pub tiers: bool,
    /// `max`: one unacknowledged send per sender and 256 in all. `Nx`: N times as fast as the community wrote.
    #[arg(long, default_value = "max", value_parser = rate)]
    pub rate: Rate,
    /// Kill the server (SIGKILL) so often, or every twelfth of the messages, whichever comes first; at least 5 times.
    #[arg(long, value_parser = duration)]
    pub kill: Option<Duration>,
    /// Kill the server under a library that takes back what it had not synced: whole, torn, and after plain kills.
    #[arg(long)]
    pub power_cut: bool,
    /// Seed of what is torn.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the report as JSON to this file (`-`: standard output, and nothing else there).
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// A running server's HTTP address, http://HOST:PORT; without it one is started on scratch data.
    #[arg(long, requires = "admin_file")]
    pub server: Option<String>,
    /// That server's admin.json, from its data folder.
    #[arg(long)]
    pub admin_file: Option<PathBuf>,
    /// Keep the scratch data of the server that was started.
    #[arg(long)]
    pub keep: bool,
}

/// How fast.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rate {
    /// As fast as acknowledgements come.
    Max,
    /// So many times the trace's own speed.
    Times(f64),
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    match text.strip_suffix('x').and_then(|number| number.parse::<f64>().ok()) {
        Some(times) if times > 0.0 && times.is_finite() => Ok(Rate::Times(times)),
        _ => Err("`max`, or a factor like `1000x`".into()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    number(text).and_then(|number| if number == 0 { Err("a number above 0".into()) } else { Ok(number) })
}

fn number(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    match digits.parse::<usize>() {
        Err(_) => Err("a number like `30000`, `30k` or `1M`".into()),
        Ok(number) => Ok(number.saturating_mul(factor)),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.strip_suffix("ms") {
        Some(number) => number.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s').and_then(|number| number.parse().ok()).map(Duration::from_secs_f64),
    };
    parsed.filter(|duration| !duration.is_zero()).ok_or_else(|| "a time like `5s` or `500ms`".into())
}

fn main() -> ExitCode {
    // Two providers may be compiled in by dependencies; name ours before anybody asks.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match Arguments::parse().verb {
        Verb::Replay(arguments) => replayed(&arguments),
        Verb::Idle(arguments) => measure::idle(&arguments),
        Verb::Fanout(arguments) => measure::fanout(&arguments),
        Verb::Pairs(arguments) => measure::pairs(&arguments),
        Verb::FloorRelay { pairs } => measure::pairs::floor::relay(pairs).map(|()| 0),
        Verb::FloorUsers { address, pairs } => measure::pairs::floor::users(address, pairs).map(|()| 0),
        Verb::Accept(arguments) => measure::accept(&arguments),
        Verb::FloorAccept(arguments) => measure::accept::floor::run(&arguments).map(|()| 0),
        Verb::Sends(arguments) => measure::sends(&arguments),
        Verb::Leak(arguments) => measure::leak(&arguments),
        Verb::HotGroup(arguments) => measure::hot_group(&arguments),
        Verb::Spike(arguments) => measure::spike(&arguments),
        Verb::Presence(arguments) => measure::presence(&arguments),
        Verb::Storm(arguments) => measure::storm(&arguments),
        Verb::PeerCrowd(arguments) => measure::peer::crowd::run(&arguments).map(|()| 0),
        Verb::FloorStore(arguments) => measure::sends::floor::run(&arguments).map(|()| 0),
        Verb::FloorSend { sockets, quic } => measure::floor::send(sockets, quic).map(|()| 0),
        Verb::FloorRead { address, sockets, quic } => {
            measure::floor::read(address, sockets, quic).map(|()| 0)
        }
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn replayed(arguments: &Replay) -> anyhow::Result<u8> {
    if arguments.tiers {
        let report = replay::tiers::run(arguments)?;
        told(arguments, &report, || report.print())?;
        return Ok(report.verdict.exit_code());
    }
    let report = replay::run(arguments)?;
    told(arguments, &report, || report.print())?;
    Ok(report.verdict.exit_code())
}

/// A report as it was asked for.
fn told(arguments: &Replay, report: &impl serde::Serialize, print: impl FnOnce()) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => println!("{json}"),
        Some(path) => {
            print();
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => print(),
    }
    Ok(())
}
