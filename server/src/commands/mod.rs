//! The commands: what each asks of the running server, or does itself, and how its result is shown.

mod channel;
mod configuration;
mod explain;
mod reconcile;
mod setup;
mod start;
mod status;
mod talk;
mod user;

use std::{future::Future, path::PathBuf};

use fanfare_proto::Code;

use crate::{
    admin_client::AdminClient,
    cli::{Actor, Cli, Command, Global},
    config,
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
An error number: fanfare explain FAN-S101                       The protocol: docs/protocol.md";

/// Does what was asked; gives the exit code.
pub fn run(cli: Cli) -> Outcome<u8> {
    let Cli { global, command } = cli;
    let output = global.output();
    let Some(command) = command else {
        print_line(FRONT);
        return Ok(exit::OK);
    };
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
        Command::Reconcile => reconcile::run(&global),
        Command::User(command) => asked(&global, |asker| user::run(asker, command)),
        Command::Channel(command) => asked(&global, |asker| channel::run(asker, command)),
        Command::Session(command) => asked(&global, |asker| user::sessions(asker, command)),
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
    let admin = AdminClient::of_folder(folder(global)?, global.timeout)?;
    let asker = Asker { admin, output: global.output(), global: global.clone() };
    on_runtime(command(asker))
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
