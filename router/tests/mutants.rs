//! Each seeded bug is caught by the tests, by the checker of the promise that it breaks, and none is reported on the sound build.
//! The tests' own binaries are run again, once per bug, with `FANFARE_MUTANT`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::process::Command;

/// The tests that catch them: binary and name.
const TESTS: &[(&str, &str)] = &[
    ("histories", "no_promise_is_broken_in_random_histories"),
    ("membership", "who_belongs_is_told_everything_and_nobody_else_anything"),
    ("conversation", "wrong_bytes_are_never_served"),
];

/// (bug, test binary, what its report names, one of these): the test must fail so while the bug is on.
const MUTANTS: &[(&str, &str, &str)] = &[
    ("ack-before-commit", "histories", "G1"),
    ("no-dedupe", "histories", "G3"),
    ("dedupe-by-content", "histories", "G1"),
    ("seq-outside-transaction", "histories", "G2"),
    ("push-past-watermark", "histories", "G2"),
    ("fan-out-list-read-before-removal", "histories", "G7"),
    ("resume-off-by-one", "histories", "G9"),
    ("cursor-saved-before-push", "histories", "G9"),
    ("drop-on-full-queue", "histories", "G9"),
    ("retry-a-fail", "histories", "G4"),
    ("error-mapped-ok", "histories", "G1"),
    ("fan-out-list-read-before-removal", "membership", "G7"),
    ("fetch-skips-membership", "membership", "G6"),
    ("page-ignores-visible-ranges", "membership", "G6"),
    ("counts-skip-membership", "membership", "G6 G7"),
    ("typing-skips-membership", "membership", "G6 G7"),
    ("session-cache-ignores-revoke", "membership", "G7"),
    ("session-outlives-revocation", "membership", "G7"),
    ("join-served-one-late", "membership", "G8"),
    ("page-from-drained-only", "membership", "G10"),
    ("hash-not-checked", "conversation", "nothing is served"),
];

/// Within so many seeds a bug has to show.
const SEEDS: &str = "1..21";

/// The newest sibling of this test's binary with that name.
fn binary(name: &str) -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    let mut found: Vec<_> = std::fs::read_dir(own.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
        })
        .collect();
    found.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
    found.pop().unwrap_or_else(|| panic!("no test binary {name}: run the whole package's tests"))
}

/// What the test says while that bug is on; `None` where it passes.
fn report(name: &str, mutant: Option<&str>) -> Option<String> {
    let test = TESTS.iter().find(|(binary, _)| *binary == name).unwrap().1;
    let mut command = Command::new(binary(name));
    command.args(["--exact", test, "--test-threads", "1"]).env("RUST_BACKTRACE", "0");
    match mutant {
        Some(mutant) => command.env("FANFARE_MUTANT", mutant).env("FANFARE_SEEDS", SEEDS),
        None => command.env_remove("FANFARE_MUTANT"),
    };
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (!output.status.success()).then(|| said.concat())
}

/// Whether the report is of one of these promises: it names all that are broken in one line.
fn names(report: &str, what: &str) -> bool {
    let broken = report.lines().find_map(|line| line.split_once("broken: "));
    let promises = broken.and_then(|(_, rest)| rest.split(';').next());
    match promises {
        Some(promises) => promises.split(' ').any(|promise| what.split(' ').any(|one| one == promise)),
        None => report.contains(what),
    }
}

#[test]
fn every_seeded_bug_is_caught_and_the_sound_build_is_clean() {
    for (name, _) in TESTS {
        let report = report(name, None);
        assert!(report.is_none(), "{name} fails without any seeded bug: {}", report.unwrap());
    }
    let mut missed = Vec::new();
    for (mutant, name, what) in MUTANTS {
        match report(name, Some(mutant)) {
            None => missed.push(format!("{mutant}: {name} passes")),
            Some(report) if !names(&report, what) => {
                let line = report.lines().find(|line| line.contains("broken: ")).unwrap_or("another error");
                missed.push(format!("{mutant}: {name} does not name {what}: {line}"));
            }
            Some(_) => {}
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
