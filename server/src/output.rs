//! Where results and remarks go: results on stdout, everything else on stderr; for people, or as JSON whose objects
//! each name their schema. Colour only on a terminal that wants it.

use std::io::{self, IsTerminal, Write};

use serde_json::{Map, Value};

use crate::failure::Failure;

/// The form of results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object.
    Json,
    /// One JSON object a line.
    Ndjson,
}

/// How this process speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The form of results.
    pub format: Format,
    /// No remarks on stderr, only errors.
    pub quiet: bool,
}

impl Output {
    /// Whether people read the results.
    pub fn is_human(self) -> bool {
        self.format == Format::Human
    }

    /// One result.
    pub fn object(self, schema: &str, mut value: Value, human: impl FnOnce() -> String) {
        let text = match self.format {
            Format::Human => human(),
            Format::Json | Format::Ndjson => {
                put_schema(&mut value, schema);
                value.to_string()
            }
        };
        print_line(&text);
    }

    /// A list: one object that holds it under `name`, or one object a line, or lines for people.
    pub fn list(self, name: &str, schema: &str, items: Vec<Value>, human: impl FnOnce() -> String) {
        match self.format {
            Format::Human => print_line(&human()),
            Format::Json => {
                let mut object = Map::new();
                object.insert("schema".into(), format!("fanfare.{name}/v1").into());
                object.insert(name.into(), Value::Array(items));
                print_line(&Value::Object(object).to_string());
            }
            Format::Ndjson => {
                for mut item in items {
                    put_schema(&mut item, schema);
                    print_line(&item.to_string());
                }
            }
        }
    }

    /// A remark on stderr, for people at work.
    pub fn remark(self, text: &str) {
        if !self.quiet && self.is_human() {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Word on stderr that programs may wait for, too: the command has begun to do what it does until it is ended.
    pub fn begun(self, human: &str, mut json: Value, schema: &str) {
        if !self.quiet {
            put_schema(&mut json, schema);
            let text = if self.is_human() { human.to_owned() } else { json.to_string() };
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// The end of a command that failed.
    pub fn failure(self, failure: &Failure) {
        let text =
            if self.is_human() { failure.human(color_on(&io::stderr())) } else { failure.json().to_string() };
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

fn put_schema(value: &mut Value, schema: &str) {
    if let Value::Object(object) = value {
        object.insert("schema".into(), format!("fanfare.{schema}/v1").into());
    }
}

/// Whether to colour what goes there: on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
pub fn color_on(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A line on stdout. A reader that has gone (`fanfare listen | head -1`) ends the process as it asked to.
pub fn print_line(text: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(i32::from(crate::failure::exit::OK));
    }
}

/// Columns padded to the widest, two spaces between; the first row is the head.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Text of people made safe for a terminal: control characters (escape sequences among them) are shown, not obeyed.
pub fn tame(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let bidi = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let hidden = (character.is_control() && character != '\t') || bidi;
            let shown: Vec<char> =
                if hidden { character.escape_default().collect() } else { vec![character] };
            shown
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["alice".to_owned(), "1".to_owned()], vec!["bo".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["name", "id"], &rows), "name   id\nalice  1\nbo     22");
    }

    #[test]
    fn escape_sequences_of_peers_do_not_reach_the_terminal() {
        assert_eq!(tame("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(tame("größe 😀"), "größe 😀");
    }
}
