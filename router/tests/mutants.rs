//! Each seeded bug is caught by the tests, and none is reported on the sound build. The tests' own binaries are run again,
//! once per bug, with `FANFARE_MUTANT`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::process::{Command, Stdio};

/// (bug, test binary, test): the test must fail while the bug is on.
const MUTANTS: &[(&str, &str, &str)] = &[
    ("ack-before-commit", "histories", "no_promise_is_broken_in_random_histories"),
    ("no-dedupe", "histories", "no_promise_is_broken_in_random_histories"),
    ("dedupe-by-content", "histories", "no_promise_is_broken_in_random_histories"),
    ("seq-outside-transaction", "histories", "no_promise_is_broken_in_random_histories"),
    ("push-past-watermark", "histories", "no_promise_is_broken_in_random_histories"),
    ("fan-out-list-read-before-removal", "histories", "no_promise_is_broken_in_random_histories"),
    ("resume-off-by-one", "histories", "no_promise_is_broken_in_random_histories"),
    ("cursor-saved-before-push", "histories", "no_promise_is_broken_in_random_histories"),
    ("drop-on-full-queue", "histories", "no_promise_is_broken_in_random_histories"),
    ("retry-a-fail", "histories", "no_promise_is_broken_in_random_histories"),
    ("error-mapped-ok", "histories", "no_promise_is_broken_in_random_histories"),
    ("hash-not-checked", "conversation", "wrong_bytes_are_never_served"),
];

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

fn passes(name: &str, test: &str, mutant: Option<&str>) -> bool {
    let mut command = Command::new(binary(name));
    command.args(["--exact", test, "--test-threads", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
    match mutant {
        Some(mutant) => command.env("FANFARE_MUTANT", mutant),
        None => command.env_remove("FANFARE_MUTANT"),
    };
    command.env("RUST_BACKTRACE", "0").status().unwrap().success()
}

#[test]
fn every_seeded_bug_is_caught_and_the_sound_build_is_clean() {
    for name in ["histories", "conversation"] {
        let test = MUTANTS.iter().find(|(_, binary, _)| *binary == name).unwrap().2;
        assert!(passes(name, test, None), "{name} fails without any seeded bug");
    }
    let missed: Vec<&str> = MUTANTS
        .iter()
        .filter(|(mutant, name, test)| passes(name, test, Some(mutant)))
        .map(|(mutant, ..)| *mutant)
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
