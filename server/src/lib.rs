//! The binary `fanfare` as a library: configuration, the wiring of stores, router, gateway and HTTP into one process
//! ([`node::Node`]), and the commands. It decides nothing about messages: that is the router's.

pub mod accounts;
pub mod admin_client;
pub mod admin_file;
pub mod administration;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod contexts;
pub mod export;
pub mod failure;
pub mod history;
pub mod http;
pub mod jwks;
pub mod logs;
pub mod network;
pub mod node;
pub mod output;
pub mod private_file;
pub mod push;
pub mod token;
pub mod webhook_keys;

mod commands;
mod echo_bot;
mod seed;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, error::ErrorKind};

use crate::{
    cli::Cli,
    failure::{Failure, exit},
    output::{Format, Output},
};

/// Runs one command line and says how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Both quinn and the WebSocket's TLS take the process's provider; rustls refuses to guess between several.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&arguments, &error),
    };
    let output = cli.global.output();
    match commands::run(cli) {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit)
        }
    }
}

/// Help and version go to stdout; a line that was not understood becomes a failure in our form.
fn usage(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::from(exit::OK);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(exit::USAGE);
    }
    let said = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let json = said("--json") || said("--output=json") || said("json") || said("ndjson");
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what =
        lines.next().unwrap_or("the command was not understood").trim_start_matches("error: ").to_owned();
    let mut failure = Failure::usage(what);
    for line in lines {
        let (label, rest) = line.split_once(": ").unwrap_or(("", line));
        match label {
            "tip" => failure = failure.why(rest),
            "Usage" => failure = failure.advise(rest, "the form of it"),
            _ if line.starts_with("For more information") => {}
            _ => failure = failure.why(line),
        }
    }
    let failure = failure.advise("fanfare --help", "all commands");
    Output { format: if json { Format::Json } else { Format::Human }, quiet: false }.failure(&failure);
    ExitCode::from(failure.exit)
}
