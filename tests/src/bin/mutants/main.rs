//! Seeded bugs (feature `mutants`, one chosen by FANFARE_MUTANT) against the whole binary: each must be caught by
//! the checks within 20 seeds, and the same checks must find nothing where no bug is chosen. Those that need no process, disk or
//! power to show are caught beside the router (`cargo test -p fanfare-router --features mutants`); this program
//! makes sure that no seeded bug in the sources is without a catcher.

mod lives;
mod parted;

use std::{collections::BTreeSet, fs, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use fanfare_tests::server::{build, built, root};

use lives::Life;

/// Seeds within which a bug has to be caught.
const SEEDS: u64 = 20;
/// Seeds of every life that the sound build has to live without a report.
const SOUND_SEEDS: u64 = 3;

/// Which life shows which bug.
const CAUGHT_HERE: &[(&str, Life)] = &[
    ("ack-before-commit", Life::Cut),
    ("outbox-row-deleted-early", Life::Cut),
    ("skip-fsync", Life::Cut),
    ("no-dedupe", Life::Cut),
    ("dedupe-by-content", Life::Cut),
    ("error-mapped-ok", Life::Full),
    ("retry-a-fail", Life::Full),
    ("hash-not-checked", Life::Altered),
    ("pooled-connection-reused-after-cancel", Life::Parted),
    ("session-outlives-revocation", Life::Parted),
    ("session-cache-ignores-revoke", Life::Parted),
    ("fetch-skips-membership", Life::Parted),
    ("page-over-http-skips-membership", Life::Parted),
];

/// The names of all seeded bugs in the sources.
fn seeded() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in ["storage", "router", "gateway", "server"] {
        let mut folders = vec![root().join(package).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path)?;
                for part in text.split("mutant::is(\"").skip(1) {
                    names.extend(part.split('"').next().map(str::to_owned));
                }
            }
        }
    }
    Ok(names)
}

/// The names that the router's own tests say they catch: their sources name each bug they choose.
fn caught_beside_the_router() -> Result<BTreeSet<String>> {
    let mut text = String::new();
    for folder in ["router/tests", "router/src", "gateway/tests", "gateway/src"] {
        let mut folders = vec![root().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.components().any(|part| part.as_os_str() == "tests")
                    || path.ends_with("tests.rs")
                {
                    text += &fs::read_to_string(&path).unwrap_or_default();
                }
            }
        }
    }
    Ok(seeded()?.into_iter().filter(|name| text.contains(&format!("\"{name}\""))).collect())
}

fn main() -> Result<ExitCode> {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let begun = Instant::now();
    let scratch = tempfile::Builder::new().prefix("fanfare-mutants-").tempdir()?;
    let binary = match std::env::var_os("FANFARE_BIN") {
        // One that was built with the feature, beside its power-cut library.
        Some(binary) => binary.into(),
        None => {
            build("fanfare-powercut", &[])?;
            build("fanfare-server", &["mutants"])?;
            let binary = scratch.path().join("fanfare");
            fs::copy(built()?.join("fanfare"), &binary).context("the build with seeded bugs")?;
            // The sound binary takes its place again.
            build("fanfare-server", &[])?;
            binary
        }
    };

    let mut failed = Vec::new();
    let mut lives = 0;
    let mut live = |life: Life, seed: u64, mutant: Option<&str>| {
        lives += 1;
        let folder = scratch.path().join(format!("life-{lives}"));
        let found = lives::live(&binary, &folder, life, seed, mutant);
        let _ = fs::remove_dir_all(&folder);
        found
    };

    for life in Life::ALL {
        for seed in 0..SOUND_SEEDS {
            let found = live(life, seed, None);
            if found.is_empty() {
                println!("ok    sound build, {life:?}, seed {seed}: nothing reported");
            } else {
                println!("WRONG sound build, {life:?}, seed {seed}:");
                found.iter().take(10).for_each(|line| println!("      {line}"));
                failed.push(format!("the sound build was reported ({life:?}, seed {seed})"));
            }
        }
    }
    let seeded = seeded()?;
    let elsewhere = caught_beside_the_router()?;
    for name in &seeded {
        if !only.is_empty() && !only.contains(name) {
            continue;
        }
        let Some((_, life)) = CAUGHT_HERE.iter().find(|(known, _)| known == name) else {
            if elsewhere.contains(name) {
                println!("      {name}: caught beside the router");
            } else {
                failed.push(format!("no test catches the seeded bug {name}"));
            }
            continue;
        };
        let caught =
            (0..SEEDS).find_map(|seed| live(*life, seed, Some(name)).into_iter().next().map(|by| (seed, by)));
        match caught {
            Some((seed, by)) => {
                let by: String = by.lines().next().unwrap_or_default().chars().take(150).collect();
                println!("ok    {name}: caught with seed {seed} ({life:?}): {by}");
            }
            None => failed.push(format!("{name} was not caught within {SEEDS} seeds of {life:?}")),
        }
    }
    if seeded.len() < CAUGHT_HERE.len() {
        bail!("only {} seeded bugs in the sources", seeded.len());
    }
    println!(
        "{} seeded bugs, {lives} lives, {} wrong, {:.0} s",
        seeded.len(),
        failed.len(),
        begun.elapsed().as_secs_f32()
    );
    for line in &failed {
        println!("WRONG: {line}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
