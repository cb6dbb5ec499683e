//! The commands: what each asks of the running server, or does itself, and how its result is shown.

mod admin;
mod channel;
mod cheat;
mod completions;
mod configuration;
mod context;
mod decode;
mod device;
mod docs;
mod doctor;
mod explain;
mod presence;
mod push;
mod reconcile;
mod setup;
mod start;
mod status;
mod talk;
mod token;
mod top;
mod trace;
mod user;

use std::{future::Future, path::PathBuf};

use fanfare_proto::Code;
use serde_json::json;

use crate::{
    admin_client::AdminClient,
    cli::{Actor, Cli, Command, Global},
    config, contexts,
    failure::{Failure, Outcome, exit},
    http,
    output::{Output, print_line},
};

const FRONT: &str = "\
fanfare: a messaging backend in one binary

  fanfare start --dev                          a server on this machine, with people to try it with
  fanfare listen general                       in a second terminal: what is said in the group
  fanfare send general \"hi\" --as bob           in a third: say something

Most used: start · send · listen · channel · user · status      All: fanfare --help
Worked examples: fanfare cheat                                  Is this machine fit: fanfare doctor
An error number: fanfare explain FAN-S101                       The protocol: docs/protocol.md";

/// Does what was asked; gives the exit code.
pub fn run(cli: Cli) -> Outcome<u8> {
    let Cli { global, command } = cli;
    let output = global.output();
    let Some(command) = command else {
        print_line(FRONT);
        return Ok(exit::OK);
    };
    if let Some(name) = &global.context {
        // An unknown name ends every command, also those that would not need it.
        contexts::Contexts::read()?.named(name)?;
        let here = matches!(
            command,
            Command::Start(_) | Command::Setup | Command::Config(_) | Command::Doctor { .. }
        );
        if here || global.data.is_some() {
            return Err(Failure::usage("--context names a server elsewhere").why(if here {
                "this command works on this machine's own folder and configuration"
            } else {
                "--data names a folder of this machine: give one of the two"
            }));
        }
    }
    match command {
        Command::Start(flags) => start::run(&global, &flags),
        Command::Setup => setup::run(&global),
        Command::Config(command) => configuration::run(&global, &command),
        Command::Explain { code } => explain::run(output, code.as_deref()),
        Command::Version => {
            output.object("version", http::version_json(), || {
                let (version, protocol) = (env!("CARGO_PKG_VERSION"), fanfare_proto::VERSION);
                let format = fanfare_storage::embedded::FORMAT;
                format!("fanfare {version} · protocol {protocol} · data format {format}")
            });
            Ok(exit::OK)
        }
        Command::Doctor { only } => doctor::run(&global, &only),
        Command::Context(command) => context::run(output, command),
        Command::Decode { hex, from } => decode::run(output, &hex, from),
        Command::Cheat { topic } => cheat::run(output, topic.as_deref()),
        Command::Completions { shell } => completions::run(shell),
        Command::Docs { page } => docs::run(page),
        Command::Token(command) => token::run(&global, command),
        Command::Reconcile => reconcile::run(&global),
        Command::User(command) => asked(&global, |asker| user::run(asker, command)),
        Command::Admin(command) => asked(&global, |asker| admin::run(asker, command)),
        Command::Channel(command) => asked(&global, |asker| channel::run(asker, command)),
        Command::Session(command) => asked(&global, |asker| user::sessions(asker, command)),
        Command::Device(command) => asked(&global, |asker| device::run(asker, command)),
        Command::Presence(flags) => asked(&global, |asker| presence::run(asker, flags)),
        Command::Trace { message } => asked(&global, |asker| trace::run(asker, message)),
        Command::Top(flags) => asked(&global, |asker| top::run(asker, flags)),
        Command::Push(command) => asked(&global, |asker| push::run(asker, command)),
        Command::Status => asked(&global, status::run),
        Command::Send(flags) => asked(&global, |asker| talk::send(asker, flags)),
        Command::Listen(flags) => asked(&global, |asker| talk::listen(asker, flags)),
    }
}

/// A command that asks the running server.
#[derive(Clone, Debug)]
struct Asker {
    admin: AdminClient,
    output: Output,
    global: Global,
}

fn asked<F: Future<Output = Outcome<u8>>>(global: &Global, command: impl FnOnce(Asker) -> F) -> Outcome<u8> {
    let admin = server(global)?;
    let asker = Asker { admin, output: global.output(), global: global.clone() };
    on_runtime(command(asker))
}

/// The server a command asks: that of `--context`, of `--data`, of the current context, or of the configured folder.
fn server(global: &Global) -> Outcome<AdminClient> {
    match contexts::chosen(global)? {
        Some(reach) => Ok(AdminClient::of_context(reach, global.timeout)),
        None => AdminClient::of_folder(folder(global)?, global.timeout),
    }
}

/// The data folder of a command.
fn folder(global: &Global) -> Outcome<PathBuf> {
    config::read(global, None).map(|configuration| configuration.folder)
}

/// Runs a command's future on a small runtime of its own.
fn on_runtime<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

impl Asker {
    /// Before anything is changed: a server elsewhere is named.
    fn changing(&self) {
        if let Some(name) = self.admin.context() {
            let address = &self.admin.file().address;
            self.output.begun(
                &format!("target: {name} ({address})"),
                json!({ "context": name, "address": address }),
                "target",
            );
        }
    }

    /// Who acts: `--as`, or alice on a dev server.
    fn actor(&self, actor: &Actor) -> Outcome<String> {
        match &actor.user {
            Some(user) => Ok(user.clone()),
            None if self.admin.file().dev => Ok("alice".to_owned()),
            None => Err(Failure::usage("say who acts: --as USER")
                .why("only a dev server has a default (alice)")
                .advise("fanfare user ls", "lists who there is")),
        }
    }
}

/// A missing user or channel, with what to look at.
fn with_lists(failure: Failure) -> Failure {
    match failure.code {
        Some(Code::NO_SUCH_NAME) if failure.tries.is_empty() => failure
            .advise("fanfare user ls", "lists users")
            .advise("fanfare channel ls --as USER", "lists a user's channels"),
        _ => failure,
    }
}
