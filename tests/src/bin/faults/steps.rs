//! kill -9 between every two steps of commit and drain, and between the same steps again while the kill before is
//! being recovered from.

use std::{os::unix::process::ExitStatusExt, time::Duration, time::Instant};

use anyhow::{Result, bail};
use fanfare_storage::fault::STEPS;
use fanfare_tests::{
    people::Burst,
    scene::Scene,
    server::{Extra, Started},
};

use super::Run;

/// At which pass of a step the process dies.
const PASSES: [u32; 3] = [1, 3, 10];
/// Passes of the steps that only come by where nobody talks for a second.
const PASSES_OF_QUIET: [u32; 2] = [1, 2];
/// A little longer than drained rows wait for a commit that takes them along.
const QUIET: Duration = Duration::from_millis(1_300);
/// Drains gather by time; talk at full speed would only make the history long.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest talk until a step was passed that often: drains flush by time.
const REACHED_TIME: Duration = Duration::from_secs(15);

/// One case for each step and pass.
pub fn sweep(run: &mut Run) -> Result<()> {
    let mut scene = run.scene(false)?;
    scene.talk(30);
    scene.recover()?;
    for (number, step) in STEPS.iter().enumerate() {
        let passes = if step.ends_with("forget") { &PASSES_OF_QUIET[..] } else { &PASSES };
        for (turn, &passes) in passes.iter().enumerate() {
            // Every second case dies again on the way back, at another step.
            let again =
                (turn + number).is_multiple_of(2).then(|| STEPS[(number + 3 * turn + 2) % STEPS.len()]);
            scene.begin();
            let mut unknown = 0;
            let end = case(&mut scene, step, passes, again, &mut unknown);
            let name = match again {
                Some(again) => format!("kill at {step} {passes}, again at {again}"),
                None => format!("kill at {step} {passes}"),
            };
            if !run.ended(&name, &mut scene, unknown, end) {
                run.close(&scene);
                scene = run.scene(false)?;
            }
        }
    }
    run.close(&scene);
    Ok(())
}

fn faulty(step: &str, passes: u32) -> Extra {
    Extra { env: vec![("FANFARE_FAULT".into(), format!("{step}:{passes}"))], ..Extra::default() }
}

fn case(
    scene: &mut Scene,
    step: &str,
    passes: u32,
    again: Option<&str>,
    unknown: &mut usize,
) -> Result<String> {
    scene.kill()?;
    match scene.start(&faulty(step, passes))? {
        Started::Ready => {
            // It may die at any moment, by what the start found to drain.
            if scene.people.connect(&scene.server).is_ok() {
                talk_until_death(scene, step)?;
            } else if scene.server.wait_for_end(Duration::from_secs(5))?.is_none() {
                bail!("it runs and lets nobody in:\n{}", scene.server.log_tail());
            }
        }
        Started::Ended(status) if status.signal() == Some(9) => {}
        Started::Ended(status) => bail!("it ended with {status}:\n{}", scene.server.log_tail()),
    }
    scene.people.hang_up(&mut scene.ledger);
    *unknown = scene.ledger.unknown();
    let mut remark = String::new();
    if let Some(again) = again {
        let started = scene.start(&faulty(again, 1))?;
        let died = match started {
            Started::Ended(_) => true,
            Started::Ready => scene.server.wait_for_end(Duration::from_secs(1))?.is_some(),
        };
        remark = if died { "; died again".into() } else { "; did not pass the second".into() };
    }
    scene.recover()?;
    Ok(remark)
}

fn talk_until_death(scene: &mut Scene, step: &str) -> Result<()> {
    let until = Instant::now() + REACHED_TIME;
    for turn in 0_u32.. {
        let opens = turn.is_multiple_of(4) || step.contains("lists");
        let burst = if opens { scene.open_and_talk(12) } else { scene.talk(12) };
        if burst == Burst::Broken {
            let Some(status) = scene.server.wait_for_end(Duration::from_secs(5))? else {
                bail!("a session broke and the process lives:\n{}", scene.server.log_tail());
            };
            if status.signal() != Some(9) {
                bail!("it ended with {status} instead of the kill at {step}:\n{}", scene.server.log_tail());
            }
            return Ok(());
        }
        if scene.server.ended()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(if step.ends_with("forget") { QUIET } else { PAUSE });
        if scene.server.ended()?.is_some() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("step {step} was not passed often enough within {REACHED_TIME:?}: this proves nothing");
        }
    }
    Ok(())
}
