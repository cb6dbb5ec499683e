//! `fanfare completions`.

use clap::CommandFactory;
use clap_complete::{Shell as Generator, generate};

use crate::{
    cli::{Cli, Shell},
    failure::{Outcome, exit},
    output::print_line,
};

/// Prints the script.
pub fn run(shell: Shell) -> Outcome<u8> {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    generate(generator, &mut Cli::command(), "fanfare", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end());
    Ok(exit::OK)
}
