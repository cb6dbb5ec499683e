//! Every documented error number is produced by a test: `tests/codes.txt` names it for each, and here that is held against the
//! table and the sources. The named function must be a test and speak of the number.

use std::{collections::BTreeMap, fs, path::Path};

use fanfare_proto::{Code, error::ErrorRow};

/// Numbers without a test, at most.
const EXCEPTIONS_MAX: usize = 3;

/// The text of a function: from its attributes to the line that closes it, by indentation.
fn function(text: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let begins = |line: &str| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("async ");
        let rest = line.strip_prefix("fn ").or_else(|| line.strip_prefix("def "));
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    };
    let at = lines.iter().position(|line| begins(line))?;
    let depth = |line: &str| line.len() - line.trim_start().len();
    let first = lines[..at]
        .iter()
        .rposition(|line| !line.trim_start().starts_with("#["))
        .map_or(0, |above| above + 1);
    let own = depth(lines[at]);
    let rust = lines[at].contains("fn ");
    let end = lines[at + 1..].iter().position(|line| {
        let closes = if rust { line.trim_start().starts_with('}') } else { !line.starts_with(')') };
        !line.trim().is_empty() && depth(line) <= own && closes
    });
    let end = end.map_or(lines.len(), |end| at + 1 + end);
    Some(lines[first..end].join("\n"))
}

/// Whether a text has that word, not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let inner = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    text.match_indices(word).any(|(at, _)| {
        let bytes = text.as_bytes();
        !inner(at.checked_sub(1).and_then(|at| bytes.get(at))) && !inner(bytes.get(at + word.len()))
    })
}

/// What is wrong with the line of a number.
fn wrong(row: &ErrorRow, rest: &str, root: &Path) -> Option<String> {
    let Some((file, name)) = rest.split_once(' ') else {
        return Some(format!("`{rest}` is not a file and a function"));
    };
    let Ok(text) = fs::read_to_string(root.join(file)) else { return Some(format!("there is no {file}")) };
    let Some(body) = function(&text, name) else { return Some(format!("{file} has no function {name}")) };
    if file.ends_with(".rs") && !body.contains("#[test]") && !body.contains("#[tokio::test") {
        return Some(format!("{name} of {file} is no test"));
    }
    let said = [row.name.to_owned(), row.code.0.to_string(), row.code.to_string()];
    // Names in an assertion or a call, not in a comment.
    let code: Vec<&str> = body
        .lines()
        .filter(|line| !line.trim_start().starts_with("//") && !line.trim_start().starts_with('#'))
        .collect();
    let code = code.join("\n");
    (!said.iter().any(|word| has_word(&code, word))).then(|| format!("{name} of {file} does not speak of it"))
}

#[test]
fn every_error_number_is_produced_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let registry = fs::read_to_string(root.join("tests/codes.txt")).expect("tests/codes.txt");
    let mut lines = BTreeMap::new();
    for line in registry.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (number, rest) = line.split_once(' ').expect("a number first");
        let (name, rest) = rest.split_once(' ').expect("a name second");
        let known = Code::TABLE.iter().find(|row| row.code.0.to_string() == number && row.name == name);
        assert!(known.is_some(), "{number} {name} is not in the table of proto/src/error.rs");
        assert!(lines.insert(name, rest).is_none(), "{name} stands twice");
    }
    let mut problems = Vec::new();
    let mut exceptions = 0;
    for row in Code::TABLE {
        let problem = match lines.get(row.name).map(|rest| rest.strip_prefix("except: ").ok_or(*rest)) {
            None => Some("no test produces it: write one, and name it in tests/codes.txt".to_owned()),
            Some(Ok(why)) => {
                exceptions += 1;
                (why.len() < 40).then(|| "its exception needs a reason".to_owned())
            }
            Some(Err(rest)) => wrong(row, rest, &root),
        };
        problems.extend(problem.map(|problem| format!("{} {}: {problem}", row.code, row.name)));
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(exceptions <= EXCEPTIONS_MAX, "{exceptions} numbers without a test");
}

#[test]
fn functions_are_found_with_their_ends() {
    let rust = "#[test]\nfn one() {\n    a(2001);\n}\n\n#[test]\nfn two() {\n    b();\n}\n";
    assert!(function(rust, "one").is_some_and(|body| body.contains("#[test]") && !body.contains("two")));
    let python = "def one(\n    a,\n):\n    refused(2001)\n\n\nasync def two():\n    pass\n";
    assert!(function(python, "one").is_some_and(|body| body.contains("2001") && !body.contains("two")));
    assert_eq!(function(rust, "on"), None);
    assert!(has_word("(CODE,", "CODE") && !has_word("CODE_2", "CODE") && !has_word("12001", "2001"));
}
