//! Faults against the unmodified binary: syncs that fail, disks that are full, kills between any two steps. After
//! each, what was acknowledged must be there exactly once in one order, and what was not must come to a definite end.
//!
//!     tests/faults/run [steps|syncs|space|disk|flips]...

mod disk;
mod flips;
mod space;
mod steps;
mod syncs;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;
use fanfare_tests::{
    scene::Scene,
    server::{build, built},
};

/// The run and its score.
#[derive(Debug)]
pub struct Run {
    binary: PathBuf,
    scratch: PathBuf,
    scenes: usize,
    cases: usize,
    failed: Vec<String>,
    acked: usize,
    unknown: usize,
    started: Instant,
}

impl Run {
    /// A fresh server with people in it.
    pub fn scene(&mut self, power_cuts: bool) -> Result<Scene> {
        let folder = self.fresh_folder();
        Scene::set(&self.binary, &folder, power_cuts, &[])
    }

    /// A folder of its own for a scene.
    pub fn fresh_folder(&mut self) -> PathBuf {
        self.scenes += 1;
        self.scratch.join(format!("scene-{}", self.scenes))
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Writes down how a case ended and prints its line; `false` where the scene is not to be used any more.
    pub fn ended(&mut self, name: &str, scene: &mut Scene, unknown: usize, end: Result<String>) -> bool {
        self.cases += 1;
        let mut wrong = scene.violations();
        let (whole, remark) = match end {
            Ok(remark) => (true, remark),
            Err(error) => {
                wrong.push(format!("{error:#}"));
                (false, String::new())
            }
        };
        self.unknown += unknown;
        let acked = scene.ledger.acked();
        let seconds = self.started.elapsed().as_secs_f32();
        if wrong.is_empty() {
            println!(
                "ok    {name}: {acked} acknowledged so far, {unknown} unknown at the fault{remark}  [{seconds:.0} s]"
            );
        } else {
            println!(
                "WRONG {name}: {acked} acknowledged so far, {unknown} unknown at the fault{remark}  [{seconds:.0} s]"
            );
            for line in wrong.iter().take(12) {
                println!("      {line}");
            }
            println!("      its log: {}", scene.server.log_tail().replace('\n', "\n      "));
            if wrong.len() > 12 {
                println!("      and {} more", wrong.len() - 12);
            }
            self.failed.push(name.to_owned());
        }
        whole
    }

    /// A scene is over: its acknowledged sends count.
    pub fn close(&mut self, scene: &Scene) {
        self.acked += scene.ledger.acked();
    }

    /// Something that keeps a part of the run from proving anything.
    pub fn wrong(&mut self, what: String) {
        println!("WRONG {what}");
        self.cases += 1;
        self.failed.push(what);
    }
}

fn main() -> Result<ExitCode> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let binary = match std::env::var_os("FANFARE_BIN") {
        Some(binary) => binary.into(),
        None => {
            build("fanfare-server", &[])?;
            build("fanfare-powercut", &[])?;
            built()?.join("fanfare")
        }
    };
    let scratch = tempfile::Builder::new().prefix("fanfare-faults-").tempdir()?;
    let mut run = Run {
        binary,
        scratch: scratch.path().to_owned(),
        scenes: 0,
        cases: 0,
        failed: Vec::new(),
        acked: 0,
        unknown: 0,
        started: Instant::now(),
    };
    for (part, sweep) in [
        ("steps", steps::sweep as fn(&mut Run) -> Result<()>),
        ("syncs", syncs::sweep),
        ("space", space::sweep),
        ("disk", disk::sweep),
        ("flips", flips::sweep),
    ] {
        if wanted(part) {
            println!("--- {part}");
            if let Err(error) = sweep(&mut run) {
                run.wrong(format!("{part}: {error:#}"));
            }
        }
    }
    if run.acked < 1_000 && parts.is_empty() {
        run.wrong(format!("only {} sends were acknowledged: this proves nothing", run.acked));
    }
    if run.unknown == 0 && parts.is_empty() {
        run.wrong("no fault met a send in flight: this proves nothing".to_owned());
    }
    println!(
        "{} cases, {} sends acknowledged, {} unknown at a fault and resolved, {} wrong, {:.0} s",
        run.cases,
        run.acked,
        run.unknown,
        run.failed.len(),
        run.started.elapsed().as_secs_f32()
    );
    for name in &run.failed {
        println!("WRONG: {name}");
    }
    Ok(if run.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
