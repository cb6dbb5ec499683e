//! Broken frames against a running server, over both transports, before and after authentication: prefixes of every
//! golden vector, every bit of every header flipped, and the invalid vectors. Each must yield a numbered error or a
//! close with a number, or be a legal frame of a session that goes on.

mod attempt;
mod cases;
mod quic;
mod websocket;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use attempt::Attempt;
use cases::Case;
use clap::Parser;

/// Connections that one worker has open at a time: one. Workers per transport:
const WORKERS: usize = 12;
/// Wrong outcomes that are printed.
const WRONG_SHOWN_MAX: usize = 20;

/// See the crate's page.
#[derive(Debug, Parser)]
struct Options {
    /// Address of the server, UDP and TCP.
    server: SocketAddr,
    /// A token of any user.
    #[arg(long)]
    token: String,
    /// The folder of the golden vectors.
    #[arg(long, default_value = "proto/vectors")]
    vectors: PathBuf,
    /// Every prefix of long vectors too, not only some.
    #[arg(long)]
    all: bool,
}

/// A way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Quic,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let cases = Arc::new(cases::all(&options.vectors, options.all)?);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(options, cases))
}

async fn run(options: Options, cases: Arc<Vec<Case>>) -> Result<ExitCode> {
    let mut wrong = Vec::new();
    for transport in [Transport::WebSocket, Transport::Quic] {
        for authenticated in [false, true] {
            let began = Instant::now();
            let next = Arc::new(AtomicUsize::new(0));
            let mut workers = tokio::task::JoinSet::new();
            for worker in 0..WORKERS {
                let attempt = Attempt {
                    transport,
                    server: options.server,
                    // A device of its own: a newer session of the same one replaces the older.
                    hello: authenticated.then(|| attempt::hello(&options.token, worker as u64 + 1)),
                    endpoint: quic::endpoint()?,
                };
                workers.spawn(work(attempt, cases.clone(), next.clone()));
            }
            let mut failed = Vec::new();
            while let Some(worker) = workers.join_next().await {
                failed.extend(worker.context("a worker ended")?);
            }
            let state = if authenticated { "after" } else { "before" };
            println!(
                "hostile: {transport:?} {state} authentication: {} cases, {} wrong, {:.1} s",
                cases.len(),
                failed.len(),
                began.elapsed().as_secs_f64()
            );
            wrong.extend(failed);
        }
    }
    for line in wrong.iter().take(WRONG_SHOWN_MAX) {
        println!("hostile: {line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes cases until there are no more; what went wrong.
async fn work(attempt: Attempt, cases: Arc<Vec<Case>>, next: Arc<AtomicUsize>) -> Vec<String> {
    let mut wrong = Vec::new();
    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
        if let Err(error) = attempt.make(case).await {
            let state = if attempt.hello.is_some() { "after" } else { "before" };
            wrong.push(format!("{:?} {state} authentication: {}: {error:#}", attempt.transport, case.name));
        }
    }
    wrong
}
