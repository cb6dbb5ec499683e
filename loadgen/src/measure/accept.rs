//! `accept`: what it costs to let a session in, beside the same handshake with nothing behind it.

pub mod floor;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Instant};

use anyhow::{Context, Result, bail};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    DeviceId,
    session::client::{ClientSession, DeviceState, SessionOptions},
    wire,
};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    accounting::CpuTimes,
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::{Person, people},
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::{Ratio, Spread},
};
use crate::{report::Verdict, scratch::Scratch};
use floor::Floor;

/// Sessions that are being opened at any time.
const OPENING: usize = 32;
/// Sessions of the control run.
const ALTERED: usize = 100;
/// Repeats where nothing else is asked for.
const REPEATS: usize = 5;

/// What it costs to let a session in: connect, upgrade, authenticate, WELCOME.
///
/// So many sessions are opened, 32 at a time, each of another user by a token that no other has and that was made before the
/// clock starts; over TLS and QUIC each makes a whole handshake. A control run shows that tokens with an altered signature are
/// refused. The floor is opened in the same way, in the same run, on the server's core: the same listener and handshake, one
/// `recv`, one check of such a token's signature by the same library, one `send` of the same WELCOME, and nothing else: no claims,
/// no bounds, no registry.
///
/// cpu_us_per_session: CPU of all threads from the kernel's accounting, ours and the floor's; `ratio` is the one by the other.
/// sessions_per_s: how many of ours became ready in a second of wall time, by clients on the load's cores.
///
/// Exit status: 0 PASS, 1 error, 10 an altered token was taken, 11 INVALID (the machine has one core only). A missed bar changes
/// nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Accept {
    /// Sessions of each repeat.
    #[arg(long, value_parser = crate::count, default_value = "10000")]
    pub sessions: usize,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.accept/v1`.
#[derive(Debug, Serialize)]
pub struct AcceptReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    sessions: usize,
    repeats: usize,
    /// CPU per session, in microseconds.
    ratio: Ratio,
    cpu_us_per_session: Spread,
    cpu_us_per_session_by_thread: BTreeMap<String, f64>,
    floor_cpu_us_per_session: Spread,
    sessions_per_s: Spread,
    floor_sessions_per_s: Spread,
    /// Of the control run: sessions with an altered token, and how many of them were let in.
    altered: usize,
    altered_taken: usize,
}

/// What opening all sessions took.
struct Opened {
    cpu_us: f64,
    by_thread: BTreeMap<String, f64>,
    per_s: f64,
}

/// The whole run.
pub async fn run(arguments: &Accept, cores: &Cores) -> Result<AcceptReport> {
    let (sessions, transport) = (arguments.sessions, arguments.options.transport);
    allow_files(if transport == Transport::Quic { 0 } else { sessions })?;
    let scratch = Scratch::new("accept", arguments.options.keep)?;
    let server = Server::start(&scratch.path, cores, transport).await?;
    let floor = Floor::start(cores, transport, &scratch.path, &server.admin).await?;
    // Everybody's first time, and the control run, are not counted.
    let everybody = people(&server.admin, sessions).await?;
    let altered_taken = altered(&server, &everybody).await?;
    let repeats = arguments.options.repeats.unwrap_or(REPEATS);
    let mut rounds = Vec::new();
    for _ in 0..repeats {
        let everybody = people(&server.admin, sessions).await?;
        let strangers = (0..sessions).map(|number| server.stranger(number)).collect::<Result<Vec<_>>>()?;
        let ours = open(server.pid(), &everybody, strangers).await.context("the server")?;
        let strangers = (0..sessions).map(|number| floor.stranger(number)).collect::<Result<Vec<_>>>()?;
        rounds.push((ours, open(floor.pid(), &everybody, strangers).await.context("the floor")?));
    }
    server.stop()?;
    Ok(report(arguments, cores, repeats, &rounds, altered_taken))
}

fn report(
    arguments: &Accept,
    cores: &Cores,
    repeats: usize,
    rounds: &[(Opened, Opened)],
    altered_taken: usize,
) -> AcceptReport {
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    let mut outcome = Outcome::of(Deliveries::default(), 0, 0, reasons);
    if altered_taken > 0 {
        outcome.verdict = Verdict::Broken;
        outcome.reasons.push(format!("{altered_taken} of {ALTERED} altered tokens were taken"));
    }
    let mut kinds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (kind, us) in rounds.iter().flat_map(|(ours, _)| &ours.by_thread) {
        kinds.entry(kind.clone()).or_default().push(*us);
    }
    let pairs: Vec<(f64, f64)> = rounds.iter().map(|(ours, floor)| (ours.cpu_us, floor.cpu_us)).collect();
    let bar = if arguments.options.transport == Transport::Ws { 1.4 } else { 1.2 };
    AcceptReport {
        schema: "fanfare.accept/v1",
        outcome,
        transport: arguments.options.transport,
        sessions: arguments.sessions,
        repeats,
        ratio: Ratio::of(&pairs, Some(bar)),
        cpu_us_per_session: Spread::of(rounds.iter().map(|(ours, _)| ours.cpu_us)),
        cpu_us_per_session_by_thread: kinds
            .into_iter()
            .map(|(kind, us)| (kind, Spread::of(us).median))
            .collect(),
        floor_cpu_us_per_session: Spread::of(rounds.iter().map(|(_, floor)| floor.cpu_us)),
        sessions_per_s: Spread::of(rounds.iter().map(|(ours, _)| ours.per_s)),
        floor_sessions_per_s: Spread::of(rounds.iter().map(|(_, floor)| floor.per_s)),
        altered: ALTERED,
        altered_taken,
    }
}

/// Opens a session for everybody, some at a time, then lets go of all. CPU is read while all are open.
async fn open(pid: u32, everybody: &[Person], strangers: Vec<ConnectOptions>) -> Result<Opened> {
    let open = Rc::new(RefCell::new(Vec::with_capacity(everybody.len())));
    let (before, began) = (CpuTimes::of(pid)?, Instant::now());
    let mut tasks = JoinSet::new();
    for (number, (person, options)) in everybody.iter().zip(strangers).enumerate() {
        if tasks.len() >= OPENING {
            tasks.join_next().await.context("some are being opened")???;
        }
        let (token, open) = (person.token.clone(), Rc::clone(&open));
        tasks.spawn_local(async move {
            let connection =
                welcome(&options, token, number).await.with_context(|| format!("session {number}"))?;
            open.borrow_mut().push(connection);
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    let spent = CpuTimes::of(pid)?.since(&before);
    let sessions = everybody.len() as f64;
    let us = |ns: u64| ns as f64 / 1e3 / sessions;
    Ok(Opened {
        cpu_us: us(spent.values().sum()),
        by_thread: spent.into_iter().map(|(kind, ns)| (kind, us(ns))).collect(),
        per_s: sessions / elapsed_s,
    })
}

/// One session up to its WELCOME.
async fn welcome(options: &ConnectOptions, token: String, number: usize) -> Result<Connection> {
    let session_options = SessionOptions {
        token,
        delivery: wire::Delivery::Full,
        device_name: "loadgen".into(),
        sync: None,
        ..Default::default()
    };
    let session =
        ClientSession::new(DeviceState::new(DeviceId(number as u64 + 1)), session_options, now_ms());
    let mut connection = Connection::open(options, session).await?;
    while !connection.session().is_open() {
        connection.turn(&mut |_| {}).await?;
    }
    Ok(connection)
}

/// Tries tokens whose signature was altered. Gives how many were let in.
async fn altered(server: &Server, everybody: &[Person]) -> Result<usize> {
    let mut taken = 0;
    for number in 0..ALTERED {
        let person = &everybody[number % everybody.len()];
        let token = altered_token(&person.token).context("a token without a signature")?;
        match welcome(&server.stranger(number)?, token, number).await {
            Ok(_) => taken += 1,
            Err(error) if error.is::<fanfare_proto::session::client::Ended>() => {}
            Err(error) => bail!("the control run cannot connect: {error:#}"),
        }
    }
    Ok(taken)
}

/// The token with another letter in the middle of its signature: still well-formed.
fn altered_token(token: &str) -> Option<String> {
    let (message, signature) = token.rsplit_once('.')?;
    let mut letters: Vec<char> = signature.chars().collect();
    let middle = letters.len() / 2;
    let letter = letters.get_mut(middle)?;
    *letter = if *letter == 'A' { 'B' } else { 'A' };
    Some(format!("{message}.{}", letters.into_iter().collect::<String>()))
}

impl Report for AcceptReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  {} sessions let in over {:?}, {} repeats (median, least to most); {} altered tokens tried, {} taken",
            self.sessions, self.transport, self.repeats, self.altered, self.altered_taken
        );
        let (ours, floor, ratio) = (self.cpu_us_per_session, self.floor_cpu_us_per_session, self.ratio);
        println!("  CPU us a session  {:>8.1} ({:.1} to {:.1})", ours.median, ours.min, ours.max);
        println!("  floor             {:>8.1} ({:.1} to {:.1})", floor.median, floor.min, floor.max);
        println!("  ratio             {}", ratio.text());
        println!(
            "  sessions a second {:>8.0}, the floor's {:.0}",
            self.sessions_per_s.median, self.floor_sessions_per_s.median
        );
        let mut kinds: Vec<_> = self.cpu_us_per_session_by_thread.iter().collect();
        kinds.sort_by(|one, other| other.1.total_cmp(one.1));
        let kinds: Vec<String> = kinds.iter().map(|(kind, us)| format!("{kind} {us:.1}")).collect();
        println!("  by thread         {}", kinds.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_token_differs_in_its_signature_alone() {
        let altered = altered_token("head.claims.abcdef").unwrap();
        assert_eq!(altered, "head.claims.abcAef");
        assert_eq!(altered_token("h.c.AAA").unwrap(), "h.c.ABA");
        assert_eq!(altered_token("none"), None);
    }
}
