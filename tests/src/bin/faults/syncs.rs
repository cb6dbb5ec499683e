//! Syncs that fail, one at a time: at startup, and in each thread that syncs. The process must end and never try
//! the sync again; afterwards nothing acknowledged is missing, even when power goes before it restarts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use fanfare_tests::{
    people::Burst,
    scene::Scene,
    server::{Extra, Started},
    strace::{Attached, Injection, SYNCS, injected},
};

use super::Run;

/// Which sync of the committing thread fails; and of every other thread.
const OF_COMMITS: [u32; 10] = [1, 2, 3, 4, 5, 7, 10, 14, 20, 31];
const OF_OTHERS: [u32; 4] = [1, 2, 3, 5];
/// Which sync of any thread fails at startup, up to the first that is not reached.
const AT_START: u32 = 24;
/// Longest talk until a thread synced that often.
const REACHED_TIME: Duration = Duration::from_secs(5);
/// Talk at full speed would only make the history long.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest time from a failed sync to the end of the process.
const END_TIME: Duration = Duration::from_secs(10);
/// Threads that sync while the server runs.
const THREADS: [&str; 5] = ["store-checkpoin", "store-commit", "store-content", "store-lists", "store-log"];
/// Cuts of power before the restart; none is a plain restart.
const CUTS: [Option<&str>; 4] = [Some("lost"), None, Some("torn"), Some("mixed")];

fn injection(when: u32) -> Injection {
    Injection { calls: SYNCS, error: "EIO", when: when.to_string() }
}

/// Startup first, then thread by thread.
pub fn sweep(run: &mut Run) -> Result<()> {
    let mut scene = run.scene(true)?;
    scene.talk(60);
    scene.recover()?;
    let mut number = 0_u64;
    for when in 1..=AT_START {
        // Something to recover: killed with commits behind it that no drain has seen.
        scene.begin();
        let mut unknown = 0;
        let mut reached = true;
        let end = at_start(&mut scene, when, number, &mut unknown, &mut reached);
        number += 1;
        if !reached {
            break;
        }
        if !run.ended(&format!("sync {when} fails at startup"), &mut scene, unknown, end) {
            run.close(&scene);
            scene = run.scene(true)?;
        }
    }
    let mut names: Vec<String> = scene.server.threads()?.into_iter().map(|(name, _)| name).collect();
    names.dedup();
    names.retain(|name| THREADS.contains(&&**name));
    if names.len() != THREADS.len() {
        run.wrong(format!("of the threads {THREADS:?} there are only {names:?}"));
    }
    for name in names {
        let whens = if name == "store-commit" { &OF_COMMITS[..] } else { &OF_OTHERS };
        for &when in whens {
            scene.begin();
            let mut unknown = 0;
            let mut reached = true;
            let end = in_thread(&mut scene, &name, when, number, &mut unknown, &mut reached);
            number += 1;
            if !reached && when > 1 {
                break;
            }
            if !reached {
                // These must sync under any talk.
                if name != "store-checkpoin" {
                    run.wrong(format!("{name} never synced within {REACHED_TIME:?}"));
                } else {
                    println!("      {name} did not sync within {REACHED_TIME:?}");
                }
                break;
            }
            if !run.ended(&format!("sync {when} of {name} fails"), &mut scene, unknown, end) {
                run.close(&scene);
                scene = run.scene(true)?;
            }
        }
    }
    run.close(&scene);
    Ok(())
}

/// One burst of talk that gives this thread something to do.
fn talk(scene: &mut Scene, thread: &str) -> Burst {
    if thread == "store-lists" { scene.open_and_talk(12) } else { scene.talk(12) }
}

/// The call that failed was of a folder: SQLite passes over a failed sync of the folder of its log, and may, since `open` has
/// synced that folder itself. Whether the names are durable is what the power cut behind it shows.
fn was_of_a_folder(log: &Path) -> bool {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let path = text.lines().find(|line| line.ends_with("(INJECTED)")).and_then(|line| {
        let (_, rest) = line.split_once('<')?;
        Some(rest.split_once('>')?.0.to_owned())
    });
    path.is_some_and(|path| Path::new(&path).is_dir())
}

fn at_start(
    scene: &mut Scene,
    when: u32,
    number: u64,
    unknown: &mut usize,
    reached: &mut bool,
) -> Result<String> {
    scene.kill()?;
    let fault = Extra { env: vec![("FANFARE_FAULT".into(), "after-commit:4".into())], ..Extra::default() };
    if matches!(scene.start(&fault)?, Started::Ready) && scene.people.connect(&scene.server).is_ok() {
        while scene.talk(12) == Burst::Answered {}
    }
    scene.kill()?;
    *unknown = scene.ledger.unknown();
    let log = scene.scratch().join("strace-start.log");
    let _ = std::fs::remove_file(&log);
    let traced = Extra { wrap: injection(when).wrap(&log), ..Extra::default() };
    let started = scene.start(&traced)?;
    *reached = injected(&log) > 0;
    let mut remark = String::new();
    match started {
        Started::Ended(status) if status.success() => bail!("it ended as if all were well"),
        Started::Ended(status) => remark = format!("; ended with {status}"),
        Started::Ready if *reached => match scene.server.wait_for_end(END_TIME)? {
            Some(status) if !status.success() => remark = format!("; ended with {status}"),
            None if was_of_a_folder(&log) => remark = "; passed over, a folder's".into(),
            _ => scene.ledger.violations.push("it lives on after a failed sync at startup".into()),
        },
        Started::Ready => {}
    }
    scene.kill()?;
    if let Some(mode) = CUTS[number as usize % CUTS.len()] {
        scene.cut_power(mode, number)?;
        remark += &format!("; power cut ({mode})");
    }
    scene.recover()?;
    Ok(remark)
}

fn in_thread(
    scene: &mut Scene,
    name: &str,
    when: u32,
    number: u64,
    unknown: &mut usize,
    reached: &mut bool,
) -> Result<String> {
    let Some((_, thread)) = scene.server.threads()?.into_iter().find(|(thread, _)| thread == name) else {
        bail!("there is no thread {name}");
    };
    let attached = Attached::to(thread, &injection(when), &[], scene.scratch())?;
    let until = Instant::now() + REACHED_TIME;
    let mut broken = false;
    while !broken && attached.injected() == 0 && Instant::now() < until {
        broken = talk(scene, name) == Burst::Broken;
        std::thread::sleep(PAUSE);
    }
    *reached = attached.injected() > 0;
    let until = Instant::now() + END_TIME;
    let passed_over = was_of_a_folder(attached.log());
    while *reached && !broken && !passed_over && Instant::now() < until {
        broken = talk(scene, name) == Burst::Broken;
        std::thread::sleep(PAUSE);
    }
    let ended = if broken { scene.server.wait_for_end(END_TIME)? } else { scene.server.ended()? };
    drop(attached);
    let mut remark = String::new();
    match ended {
        Some(status) if !*reached => {
            bail!("it ended with {status} without a fault:\n{}", scene.server.log_tail())
        }
        Some(status) if status.success() => bail!("it ended as if all were well"),
        Some(status) => remark = format!("; ended with {status}"),
        None if passed_over => {
            talk(scene, name);
            remark = "; passed over, a folder's".into();
        }
        None if *reached => scene.ledger.violations.push("it lives on after a failed sync".into()),
        None => {}
    }
    scene.kill()?;
    *unknown = scene.ledger.unknown();
    if let Some(mode) = CUTS[number as usize % CUTS.len()].filter(|_| *reached) {
        scene.cut_power(mode, number)?;
        remark += &format!("; power cut ({mode})");
    }
    scene.recover()?;
    Ok(remark)
}
