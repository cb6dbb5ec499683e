//! What a command says when it cannot do what was asked: what happened, why, what to do about it, and where to read
//! more. One form for people, one for programs, and one table from error numbers to exit codes.

use std::{fmt, io};

use fanfare_proto::Code;
use fanfare_storage::StoreError;
use serde_json::{Value, json};

/// Exit codes, the same for every command.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// It failed at run time.
    pub const FAILED: u8 = 1;
    /// The command was not understood.
    pub const USAGE: u8 = 2;
    /// No server answers.
    pub const UNREACHABLE: u8 = 3;
    /// The server refused: token, role or membership.
    pub const REFUSED: u8 = 4;
    /// A check failed, or the server is not ready.
    pub const CHECKS: u8 = 5;
    /// The configuration is not valid.
    pub const CONFIG: u8 = 6;
    /// Data or protocol of another version.
    pub const VERSION: u8 = 7;
    /// What was named does not exist.
    pub const NOT_FOUND: u8 = 8;
    /// Interrupted a second time.
    pub const INTERRUPTED: u8 = 130;
}

/// A command's failure.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its number; `None` where the command line itself was not understood.
    pub code: Option<Code>,
    /// What happened, in one line.
    pub what: String,
    /// Causes with real values, outermost first.
    pub why: Vec<String>,
    /// Commands that help, each with a remark (may be empty).
    pub tries: Vec<(String, String)>,
    /// The process's exit code.
    pub exit: u8,
    /// When to try again, where that is known.
    pub retry_after: Option<std::time::Duration>,
}

/// What commands give back.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A numbered failure; exit code and the first advice follow from the number.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            what: what.into(),
            why: Vec::new(),
            tries: Vec::new(),
            exit: exit_of(code),
            retry_after: None,
        }
    }

    /// The number's own sentence.
    pub fn of(code: Code) -> Self {
        Self::new(
            code,
            code.row().map_or("The server answered with a number of a later version.", |row| row.what),
        )
    }

    /// Something that no number names.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, what)
    }

    /// The command line was not understood.
    pub fn usage(what: impl Into<String>) -> Self {
        Self {
            code: None,
            what: what.into(),
            why: Vec::new(),
            tries: Vec::new(),
            exit: exit::USAGE,
            retry_after: None,
        }
    }

    /// Adds a cause.
    #[must_use]
    pub fn why(mut self, why: impl fmt::Display) -> Self {
        self.why.push(why.to_string());
        self
    }

    /// Adds an advice: a command, with a remark.
    #[must_use]
    pub fn advise(mut self, command: impl Into<String>, remark: impl Into<String>) -> Self {
        self.tries.push((command.into(), remark.into()));
        self
    }

    /// Ends the process with another code than the number's own.
    #[must_use]
    pub fn exiting(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    fn advice(&self) -> Vec<(String, String)> {
        if !self.tries.is_empty() {
            return self.tries.clone();
        }
        let fix = self.code.and_then(Code::row).map(|row| row.fix);
        fix.map(|fix| (fix.to_owned(), String::new())).into_iter().collect()
    }

    /// For people, without the last line's end.
    pub fn human(&self, color: bool) -> String {
        let (red, bold, dim, reset) =
            if color { ("\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "", "") };
        let head = self.code.map_or_else(|| "error".to_owned(), |code| format!("error {code}"));
        let mut text = format!("{red}{head}:{reset} {bold}{}{reset}", self.what);
        for (index, why) in self.why.iter().enumerate() {
            text += &format!("\n  {dim}{}{reset}   {why}", if index == 0 { "why" } else { "   " });
        }
        let advice = self.advice();
        let width =
            advice.iter().filter(|(_, remark)| !remark.is_empty()).map(|(command, _)| command.len()).max();
        for (index, (command, remark)) in advice.iter().enumerate() {
            let label = if index == 0 { "try" } else { "   " };
            let line = format!("{command:width$}   {remark}", width = width.unwrap_or(0));
            text += &format!("\n  {dim}{label}{reset}   {}", line.trim_end());
        }
        if let Some(code) = self.code {
            text += &format!("\n  {dim}more{reset}  fanfare explain {code}");
        }
        text
    }

    /// For programs: `fanfare.error/v1`.
    pub fn json(&self) -> Value {
        let advice = self.advice();
        json!({
            "schema": "fanfare.error/v1",
            "code": self.code.map(|code| code.to_string()),
            "number": self.code.map(|code| code.0),
            "name": self.code.and_then(Code::row).map(|row| row.name),
            "what": self.what,
            "why": self.why,
            "try": advice.iter().map(|(command, remark)| json!({"command": command, "remark": remark})).collect::<Vec<_>>(),
            "more": self.code.map(|code| format!("fanfare explain {code}")),
            "exit": self.exit,
        })
    }
}

fn exit_of(code: Code) -> u8 {
    match code {
        Code::NO_SUCH_NAME | Code::NO_SUCH_USER | Code::NO_SUCH_TARGET => exit::NOT_FOUND,
        Code::NOT_A_MEMBER | Code::FORBIDDEN => exit::REFUSED,
        Code::UNREACHABLE => exit::UNREACHABLE,
        Code::DATA_FORMAT | Code::VERSION_UNSUPPORTED => exit::VERSION,
        Code::DEV_PUBLIC => exit::USAGE,
        _ => match code.0 / 1000 {
            2 => exit::REFUSED,
            6 => exit::CONFIG,
            7 => exit::CHECKS,
            _ => exit::FAILED,
        },
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Full(_) => Code::READ_ONLY,
            StoreError::Unavailable(_) | StoreError::HeadMoved { .. } | StoreError::Fenced { .. } => {
                Code::RETRY_LATER
            }
            StoreError::Unknown(_) => Code::OUTCOME_UNKNOWN,
            StoreError::Damaged(_) => Code::DATA_DAMAGED,
            StoreError::Locked(_) => Code::DATA_LOCKED,
            StoreError::Format { .. } => Code::DATA_FORMAT,
            _ => Code::INTERNAL,
        };
        Self::of(code).why(error)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::of(code)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::internal("An operation of the system failed.").why(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_human_form_has_its_four_parts_in_order() {
        let failure = Failure::new(Code::DATA_LOCKED, "cannot start: another fanfare holds ./x")
            .why("pid 4121")
            .advise("fanfare status", "it may be the server you wanted")
            .advise("fanfare start --data ./other", "a second one");
        assert_eq!(
            failure.human(false),
            "error FAN-S101: cannot start: another fanfare holds ./x\n  why   pid 4121\n  try   \
             fanfare status                 it may be the server you wanted\n        fanfare start --data ./other   a \
             second one\n  more  fanfare explain FAN-S101"
        );
        assert!(failure.human(true).contains("\x1b["));
        assert_eq!(failure.json()["try"][0]["command"], "fanfare status");
        assert_eq!(failure.json()["exit"], 1);
    }

    #[test]
    fn every_number_has_an_exit_code_of_the_list() {
        for row in Code::TABLE {
            assert!((1..=8).contains(&Failure::of(row.code).exit), "{}", row.name);
        }
    }
}
