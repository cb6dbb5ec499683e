//! `fanfare start`: one process that does everything, until it is told to stop.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    time::{Duration, Instant},
};

use fanfare_proto::Code;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Global, Role, Seed, Start},
    config,
    failure::{Failure, Outcome, exit},
    logs,
    node::{Node, NodeOptions},
    output::{Output, color_on},
};

/// How long clients are given to go elsewhere when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// A stop that takes longer than this has failed.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);

/// Starts, serves, stops.
pub fn run(global: &Global, flags: &Start) -> Outcome<u8> {
    let began = Instant::now();
    if flags.role != Role::All {
        let role = format!("{:?}", flags.role).to_lowercase();
        return Err(Failure::new(
            Code::NOT_SERVED,
            format!("the role `{role}` is not served alone in this version"),
        )
        .why("one process runs every role; a later version splits them over machines")
        .advise("fanfare start --role all", "every role in one process"));
    }
    let configuration = config::read(global, Some(flags))?;
    if flags.dev {
        loopback_only("--listen", configuration.listen)?;
        loopback_only("--http", configuration.http)?;
    }
    logs::start(configuration.log);
    raise_file_limit();
    let seed = flags.seed.unwrap_or(if flags.dev { Seed::Demo } else { Seed::None });
    let options = NodeOptions { configuration, dev: flags.dev, seed };
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("router").enable_all().build()?;
    let ended = runtime.block_on(serve(options, global.output(), began));
    // Readers of history may sit in a system call; the stores are closed already.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn serve(options: NodeOptions, output: Output, began: Instant) -> Outcome<u8> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let dev = options.dev;
    let seed = options.seed;
    let node = tokio::select! {
        node = Node::start(options) => node?,
        _ = interrupts.recv() => return Ok(exit::INTERRUPTED),
        _ = terminations.recv() => return Ok(exit::INTERRUPTED),
    };
    let administrator = !node.state().accounts.administrators().await?.is_empty();
    if !output.is_human() {
        output.object("ready", ready_json(&node, administrator, began.elapsed()), String::new);
    } else if !output.quiet {
        banner(&node, dev, administrator, seed, began.elapsed());
    }
    if !node.state().http.ip().is_loopback() {
        tracing::warn!(http = %node.state().http, "HTTP has no TLS and can be reached from elsewhere: tokens and passwords cross the network in the clear");
    }
    tracing::info!(
        gateway = %node.state().gateway,
        http = %node.state().http,
        data = %node.state().folder.display(),
        ready_ms = began.elapsed().as_millis() as u64,
        "ready"
    );
    tokio::select! {
        _ = interrupts.recv() => {}
        _ = terminations.recv() => {}
    }
    output.remark(
        "\nstopping: clients are told to reconnect, what is accepted is written (Ctrl-C again ends at once)",
    );
    tracing::info!("stopping");
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(STOP_WAIT_MAX, node.stop(GRACE)) => stopped,
        _ = interrupts.recv() => std::process::exit(i32::from(exit::INTERRUPTED)),
        _ = terminations.recv() => std::process::exit(i32::from(exit::INTERRUPTED)),
    };
    match stopped {
        Ok(()) => {
            tracing::info!("stopped");
            Ok(exit::OK)
        }
        Err(_) => Err(Failure::internal(format!("the server did not stop within {STOP_WAIT_MAX:?}"))
            .why("everything acknowledged is durable; the next start recovers the rest")
            .advise("fanfare start", "starts it again")),
    }
}

fn loopback_only(flag: &str, address: SocketAddr) -> Outcome {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let port = address.port();
    Err(Failure::new(Code::DEV_PUBLIC, format!("dev mode does not listen on {address}"))
        .why(format!(
            "{flag} is not a loopback address, and dev mode's people and certificate are for one machine"
        ))
        .advise(format!("fanfare start --dev {flag} 127.0.0.1:{port}"), "on this machine only")
        .advise("fanfare start", "without --dev, for others too (needs tls.certificate and tls.key)"))
}

/// The same for programs.
fn ready_json(node: &Node, administrator: bool, took: Duration) -> Value {
    let state = node.state();
    json!({
        "data": state.folder.display().to_string(),
        "dev": state.dev,
        "administrator": administrator,
        "gateway": format!("{}:{}", state.public_host(), state.gateway.port()),
        "http": state.http.to_string(),
        "certificate_sha256": state.certificate_sha256,
        "ready_ms": took.as_millis() as u64,
    })
}

/// What a newcomer needs to know, on stdout.
fn banner(node: &Node, dev: bool, administrator: bool, seed: Seed, took: Duration) {
    let state = node.state();
    let (bold, dim, reset) =
        if color_on(&std::io::stdout()) { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let folder = state.folder.display();
    let version = env!("CARGO_PKG_VERSION");
    let mode = if dev {
        format!("dev mode: loopback only · data {folder} (rm -r to reset)")
    } else {
        format!("data {folder}")
    };
    let mut lines = vec![format!("{bold}fanfare {version}{reset} · {mode}")];
    let label = |name: &str, text: &str| format!("  {dim}{name:11}{reset} {text}");
    let at = format!("{}:{}", state.public_host(), state.gateway.port());
    lines.push(label("Connect", &format!("{at}  QUIC (UDP) and WebSocket (TCP), same number")));
    lines.push(label("HTTP", &format!("http://{}/   health, metrics, discovery", state.http)));
    let elsewhere =
        if folder.to_string() == "./fanfare-data" { String::new() } else { format!(" --data {folder}") };
    let somebody = if seed == Seed::Demo { "alice" } else { "NAME" };
    lines.push(label("Token", &format!("fanfare user token {somebody}{elsewhere}")));
    if !dev && !administrator {
        lines.push(label("Admin", &format!("nobody yet: fanfare admin link{elsewhere}")));
    }
    for hash in &state.certificate_sha256 {
        lines.push(label("Certificate", &format!("sha256 {hash}")));
    }
    if seed == Seed::Demo {
        lines.push(label("People", "alice, bob, carol, dave in #general · echo-bot answers direct messages"));
    }
    let next = if seed == Seed::Demo {
        format!("fanfare listen general{elsewhere}  ·  fanfare send general \"hi\" --as bob{elsewhere}")
    } else {
        format!("fanfare user add NAME{elsewhere}  ·  fanfare status{elsewhere}")
    };
    lines.push(format!("Ready in {:.1} s. Next: {next}", took.as_secs_f64()));
    crate::output::print_line(&lines.join("\n"));
    if std::io::stdout().is_terminal() {
        crate::output::print_line(&format!("{dim}Ctrl-C stops it.{reset}"));
    }
}

/// Every connection is a file to the kernel: take as many as this process may have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
}
