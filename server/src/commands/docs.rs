//! `fanfare docs`: the pages of docs/reference, each written from the one table that the code itself uses.

mod http;
mod limits;
mod metrics;

use clap::{Arg, Command, CommandFactory};
use fanfare_proto::Code;

use crate::{
    cli::{Cli, Page},
    config::{KEYS, env_name},
    failure::{Outcome, exit},
    output::print_line,
};

/// Prints a page.
pub fn run(page: Page) -> Outcome<u8> {
    print_line(text(page).trim_end());
    Ok(exit::OK)
}

/// A page as docs/reference keeps it.
pub fn text(page: Page) -> String {
    match page {
        Page::Cli => cli(),
        Page::Config => configuration(),
        Page::Errors => errors(),
        Page::Http => http::page(),
        Page::Limits => limits::page(),
        Page::Metrics => metrics::page(),
    }
}

/// Texts in cells of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Every key with what it takes, its default, its name in the environment and what it is for.
pub fn configuration() -> String {
    let mut page = String::from(
        "# Configuration\n\n<!-- written by `fanfare docs config` -->\n\nA value comes from a flag, else from the environment, \
         else from the file (`--config FILE`, or `./fanfare.toml`), else it is\nthe default; `fanfare config show --origin` \
         prints which. A key that does not exist is an error wherever it stands. `fanfare config check`\nsays what is \
         wrong, with file and line. In the file, `gateway.listen` is `listen` under `[gateway]`.\n\n| key | takes | \
         default | environment | what it is for |\n| --- | --- | --- | --- | --- |\n",
    );
    for key in KEYS {
        let default = match key.default_dev {
            Some(dev) => format!("`{}`; with --dev `{dev}`", key.default),
            None if key.default.is_empty() => "none".to_owned(),
            None => format!("`{}`", key.default),
        };
        let env = env_name(key);
        let takes = cell(&key.kind.to_string());
        page += &format!("| `{}` | {takes} | {default} | `{env}` | {} |\n", key.name, cell(key.help));
    }
    page
}

/// The one table of error numbers, by area.
fn errors() -> String {
    let mut page = String::from(
        "# Errors\n\n<!-- written by `fanfare docs errors` -->\n\nAn error is one number everywhere: on the wire, in logs, on \
         screens. `fanfare explain CODE` prints a row of this page without a network.\nHow a connection is closed for each \
         of them is in [the protocol](../protocol.md).\n",
    );
    let areas = [
        (1, "The protocol"),
        (2, "Who may"),
        (3, "Requests"),
        (4, "Limits"),
        (5, "The server"),
        (6, "The configuration"),
        (7, "Findings of `fanfare doctor`"),
    ];
    for (area, title) in areas {
        page += &format!(
            "\n## {title}\n\n| code | number | name | what happened | what to do |\n| --- | --- | --- | --- | --- |\n"
        );
        for row in Code::TABLE.iter().filter(|row| row.code.0 / 1000 == area) {
            let (what, fix) = (cell(row.what), cell(row.fix));
            page += &format!("| {} | {} | {} | {what} | {fix} |\n", row.code, row.code.0, row.name);
        }
    }
    page
}

/// Every command with its flags.
fn cli() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = String::from(
        "# The command line\n\n<!-- written by `fanfare docs cli` -->\n\n`fanfare cheat` has worked examples. Results go to \
         stdout, remarks and errors to stderr. With `--json` every result is an object that names its\n`schema`.\n\n\
         ## Exit codes\n\n| code | what it says |\n| --- | --- |\n",
    );
    for (code, what) in EXITS {
        page += &format!("| {code} | {what} |\n");
    }
    page += "\n## Flags of every command\n\n| flag | what it does |\n| --- | --- |\n";
    for arg in root.get_arguments().filter(|arg| arg.is_global_set()) {
        page += &argument(arg);
    }
    page += "\n## Commands\n";
    for command in root.get_subcommands() {
        section(&mut page, "fanfare", command);
    }
    page
}

const EXITS: &[(u8, &str)] = &[
    (exit::OK, "done"),
    (exit::FAILED, "it failed at run time"),
    (exit::USAGE, "the command was not understood, or names a context that is not there"),
    (exit::UNREACHABLE, "no server answers"),
    (exit::REFUSED, "refused: token, role or membership"),
    (exit::CHECKS, "a check failed, or the server is not ready"),
    (exit::CONFIG, "the configuration is not valid"),
    (exit::VERSION, "data or protocol of another version"),
    (exit::NOT_FOUND, "what was named does not exist"),
    (exit::INTERRUPTED, "interrupted"),
];

fn section(page: &mut String, above: &str, command: &Command) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    if command.has_subcommands() {
        for inner in command.get_subcommands() {
            section(page, &name, inner);
        }
        return;
    }
    let own = |arg: &&Arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let mut usage = name.clone();
    for arg in command.get_positionals() {
        let shown = value_name(arg);
        usage += &if arg.is_required_set() { format!(" {shown}") } else { format!(" [{shown}]") };
    }
    for arg in command.get_arguments().filter(own).filter(|arg| !arg.is_positional() && arg.is_required_set())
    {
        usage += &format!(" --{} {}", arg.get_long().unwrap_or_default(), value_name(arg));
    }
    if command.get_arguments().filter(own).any(|arg| !arg.is_positional() && !arg.is_required_set()) {
        usage += " [FLAGS]";
    }
    *page += &format!("\n### {name}\n\n{about}.\n\n```\n{usage}\n```\n");
    let arguments: Vec<String> = command.get_arguments().filter(own).map(argument).collect();
    if !arguments.is_empty() {
        *page += &format!("\n| argument | what it does |\n| --- | --- |\n{}", arguments.concat());
    }
}

fn value_name(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map_or_else(|| arg.get_id().as_str().to_ascii_uppercase(), ToString::to_string)
}

fn argument(arg: &Arg) -> String {
    let takes = arg.get_num_args().is_none_or(|count| count.takes_values());
    let value = if takes { format!(" {}", value_name(arg)) } else { String::new() };
    let shown = match (arg.get_short(), arg.get_long()) {
        _ if arg.is_positional() => value_name(arg),
        (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
        (_, Some(long)) => format!("--{long}{value}"),
        (Some(short), None) => format!("-{short}{value}"),
        (None, None) => value_name(arg),
    };
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if takes && !values.is_empty() {
        help += &format!(": {}", values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes && !defaults.is_empty() {
        help += &format!(" (default `{}`)", defaults.join(","));
    }
    format!("| `{shown}` | {} |\n", cell(&help))
}

/// Command lines in documents, as a shell would take them apart.
#[cfg(test)]
pub mod lines {
    use clap::Parser as _;

    use crate::cli::Cli;

    /// Parses each `fanfare ...` of a line; gives how many there were.
    pub fn parse(line: &str) -> Result<usize, String> {
        let mut found = 0;
        for command in commands(line)? {
            if command.first().is_none_or(|word| word != "fanfare") {
                continue;
            }
            found += 1;
            let ended = |error: &clap::Error| {
                matches!(
                    error.kind(),
                    clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
                )
            };
            match Cli::try_parse_from(&command) {
                Err(error) if !ended(&error) => return Err(error.to_string()),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Words of each command of a line: quotes, comments, pipes, `&&`, `;`, `$(...)` and redirections.
    fn commands(line: &str) -> Result<Vec<Vec<String>>, String> {
        let line = line.trim().strip_prefix("$ ").unwrap_or(line.trim());
        let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
        let mut characters = line.chars().peekable();
        let mut redirected = false;
        while let Some(character) = characters.next() {
            match character {
                '"' | '\'' => {
                    let text = word.get_or_insert_default();
                    loop {
                        match characters.next() {
                            Some(end) if end == character => break,
                            Some(inner) => text.push(inner),
                            None => return Err(format!("a quote is left open: {line}")),
                        }
                    }
                }
                '#' if word.is_none() => break,
                ' ' | '\t' => words.extend(word.take().filter(|_| !std::mem::take(&mut redirected))),
                '>' | '<' => {
                    words.extend(word.take().filter(|word| word != "2" && word != "1"));
                    if characters.peek() == Some(&' ') {
                        characters.next();
                    }
                    redirected = true;
                }
                '|' | ';' | '&' | '(' | ')' => {
                    words.extend(word.take().filter(|_| !std::mem::take(&mut redirected)));
                    commands.push(std::mem::take(&mut words));
                }
                other => word.get_or_insert_default().push(other),
            }
        }
        words.extend(word.filter(|_| !redirected));
        commands.push(words);
        Ok(commands)
    }

    #[test]
    fn lines_are_taken_apart_as_a_shell_does() {
        let words = |line| commands(line).expect(line);
        assert_eq!(words("fanfare send a \"b c\" # d"), [vec!["fanfare", "send", "a", "b c"]]);
        assert_eq!(words("$ fanfare x | fanfare y -").len(), 2);
        assert_eq!(words("fanfare x > file.txt"), [vec!["fanfare", "x"]]);
        assert_eq!(words("T=$(fanfare x)")[1], ["fanfare", "x"]);
        assert!(commands("fanfare 'x").is_err());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    fn root() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn the_reference_is_what_the_code_says() {
        let pages = [
            (Page::Cli, "cli"),
            (Page::Config, "configuration"),
            (Page::Errors, "errors"),
            (Page::Http, "http"),
            (Page::Limits, "limits"),
            (Page::Metrics, "metrics"),
        ];
        for (page, file) in pages {
            let path = root().join(format!("docs/reference/{file}.md"));
            let wanted = text(page);
            if std::env::var_os("UPDATE_DOCS").is_some() {
                fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                fs::write(&path, &wanted).expect("written");
            }
            let kept = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == wanted,
                "docs/reference/{file}.md is stale: UPDATE_DOCS=1 cargo test -p fanfare-server the_reference"
            );
        }
    }

    fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pages(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }

    /// Command lines of a page's sh blocks: where a block has prompts, only what stands behind one.
    fn shown(page: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for block in page.split("\n```sh\n").skip(1) {
            let block = block.split("\n```").next().unwrap_or_default();
            let prompts = block.lines().any(|line| line.starts_with("$ "));
            lines.extend(block.lines().filter(|line| !prompts || line.starts_with("$ ")).map(str::to_owned));
        }
        lines
    }

    #[test]
    fn every_command_in_the_documents_exists() {
        let mut all = vec![root().join("README.md")];
        pages(&root().join("docs"), &mut all);
        let mut found = 0;
        for path in all {
            for line in shown(&fs::read_to_string(&path).expect("readable")) {
                found +=
                    lines::parse(&line).unwrap_or_else(|error| panic!("{}: {line}\n{error}", path.display()));
            }
        }
        assert!(found > 20, "only {found} commands are shown in all documents");
    }
}
