//! The log, on stderr: pretty for people, JSON for programs. No tokens, no bodies, nothing per message above trace.
//! `FANFARE_LOG` filters it (`info` unless said otherwise, for example `debug` or `fanfare_router=debug`).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::{config::LogForm, output::color_on};

/// Starts the log of this process; a second call changes nothing.
pub fn start(form: LogForm) {
    let filter = EnvFilter::try_from_env("FANFARE_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,fjall=warn,lsm_tree=warn,quinn=warn,quinn_proto=warn,rustls=warn")
    });
    let pretty = match form {
        LogForm::Pretty => true,
        LogForm::Json => false,
        LogForm::Auto => io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
    let _ = if pretty {
        builder.with_ansi(color_on(&io::stderr())).with_target(false).compact().try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}
