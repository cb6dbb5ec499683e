//! No room at any write of each storing thread, on and on until the fault ends: sends are refused as READ_ONLY or
//! stay unknown, history is served, nothing ends, and afterwards all goes on by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fanfare_tests::{
    people::Burst,
    scene::{SETTLE_TIME, Scene},
    strace::{Attached, Injection, WRITES},
};

use super::Run;

/// From which write on there is no room.
const WHENS: [u32; 7] = [1, 2, 3, 4, 6, 9, 16];
const WHENS_OF_OTHERS: [u32; 3] = [1, 2, 4];
/// Longest talk until a thread wrote that often.
const REACHED_TIME: Duration = Duration::from_secs(4);
/// Talk at full speed would only make the history long.
const PAUSE: Duration = Duration::from_millis(5);
/// How long the fault lasts once it struck.
const FULL_TIME: Duration = Duration::from_millis(500);

/// Thread by thread, write by write.
pub fn sweep(run: &mut Run) -> Result<()> {
    let mut scene = run.scene(false)?;
    scene.talk(60);
    scene.recover()?;
    let mut names: Vec<String> = scene.server.threads()?.into_iter().map(|(name, _)| name).collect();
    names.dedup();
    names.retain(|name| name.starts_with("store-"));
    for name in names {
        let whens = if name == "store-commit" { &WHENS[..] } else { &WHENS_OF_OTHERS };
        for &when in whens {
            scene.begin();
            let mut unknown = 0;
            let mut reached = true;
            let end = case(&mut scene, &name, when, &mut unknown, &mut reached);
            if !reached {
                if name == "store-commit" {
                    run.wrong(format!("{name} never wrote {when} times"));
                }
                break;
            }
            if !run.ended(&format!("no room from write {when} of {name} on"), &mut scene, unknown, end) {
                run.close(&scene);
                scene = run.scene(false)?;
            }
        }
    }
    run.close(&scene);
    Ok(())
}

fn case(scene: &mut Scene, name: &str, when: u32, unknown: &mut usize, reached: &mut bool) -> Result<String> {
    let Some((_, thread)) = scene.server.threads()?.into_iter().find(|(thread, _)| thread == name) else {
        bail!("there is no thread {name}");
    };
    let injection = Injection { calls: WRITES, error: "ENOSPC", when: format!("{when}+") };
    let mut files = scene.server.files();
    // What the content store tries before it is opened again: without this the disk would seem to have room.
    files.push(scene.server.data().join("content.probe"));
    let attached = Attached::to(thread, &injection, &files, scene.scratch())?;
    let until = Instant::now() + REACHED_TIME;
    let mut broken = false;
    while !broken && attached.injected() == 0 && Instant::now() < until {
        broken = scene.talk(12) == Burst::Broken;
        std::thread::sleep(PAUSE);
    }
    *reached = attached.injected() > 0;
    let until = Instant::now() + FULL_TIME;
    while *reached && !broken && Instant::now() < until {
        broken = scene.talk(12) == Burst::Broken;
    }
    broken |= scene.server.ended()?.is_some();
    if broken {
        let status = if scene.server.pid().is_some() {
            scene.server.wait_for_end(Duration::from_secs(5))?.map(|status| status.to_string())
        } else {
            Some("it had ended".to_owned())
        };
        *unknown = scene.ledger.unknown();
        drop(attached);
        // The content store asks the disk how much room there is; where it hears "plenty" behind a failed write, it
        // must think the worst. (A disk that is really full is `disk`'s business.)
        if name == "store-commit" || name == "store-checkpoin" || status.is_none() {
            let what = if status.is_some() { "the process" } else { "a session" };
            scene.ledger.violations.push(format!("a full disk ended {what} ({status:?})"));
        }
        scene.recover()?;
        return Ok("; it ended and came back".to_owned());
    }
    let paged = scene.people.pages_a_channel(&scene.server).context("history while there is no room");
    if paged.is_err()
        && name != "store-commit"
        && scene.server.wait_for_end(Duration::from_secs(1))?.is_some()
    {
        // As above: the content store thought the worst, only later.
        *unknown = scene.ledger.unknown();
        drop(attached);
        scene.recover()?;
        return Ok("; it ended and came back".to_owned());
    }
    paged?;
    *unknown = scene.ledger.unknown();
    let calls = attached.detach()?;
    let fails: Vec<String> =
        scene.ledger.fails.iter().map(|(code, count)| format!("{count} x {code}")).collect();
    if name == "store-commit" && *reached && !scene.ledger.fails.contains_key(&5003) {
        scene.ledger.violations.push(format!("nobody was told READ_ONLY ({})", fails.join(", ")));
    }
    // By itself, without a restart.
    scene.people.settle(&mut scene.ledger, SETTLE_TIME).context("after there was room again")?;
    scene.look()?;
    scene.recover()?;
    Ok(format!(
        "; {calls} calls failed; {}",
        if fails.is_empty() { "no FAIL".into() } else { fails.join(", ") }
    ))
}
