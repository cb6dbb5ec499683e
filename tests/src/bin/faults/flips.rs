//! One flipped bit anywhere in the content store's files while the server is down: it is served as it was (another
//! copy), marked, refused, or the start says that the data is damaged. Never other bytes, never a hole, no panic.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fanfare_tests::{
    connection::History,
    scene::Scene,
    server::{Extra, Started},
};

use super::Run;

/// How many flips.
const FLIPS: u64 = 24;

/// What a flip may come to.
#[derive(Default)]
struct Outcomes(BTreeMap<&'static str, usize>);

/// One flip after the other, each in a fresh copy of the same data.
pub fn sweep(run: &mut Run) -> Result<()> {
    let mut scene = run.scene(false)?;
    for _ in 0..6 {
        scene.talk(60);
    }
    scene.recover()?;
    let mut before = Vec::new();
    for (channel, _) in scene.people.channels.clone() {
        before.push((channel, scene.people.histories(&scene.server, channel)?));
    }
    scene.kill()?;
    let copy = scene.scratch().join("copy");
    copy_folder(scene.server.data(), &copy)?;
    let mut outcomes = Outcomes::default();
    for flip in 0..FLIPS {
        scene.begin();
        let end = one(&mut scene, flip, &before, &mut outcomes);
        scene.kill()?;
        let failed = end.is_err() || !scene.ledger.violations.is_empty();
        if failed {
            run.ended(&format!("bit flip {flip}"), &mut scene, 0, end);
        }
        fs::remove_dir_all(scene.server.data())?;
        copy_folder(&copy, scene.server.data())?;
    }
    let said: Vec<String> = outcomes.0.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    run.ended(&format!("{FLIPS} bit flips"), &mut scene, 0, Ok(format!("; {}", said.join(", "))));
    run.close(&scene);
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if !status.success() {
        bail!("cannot copy {}", from.display());
    }
    Ok(())
}

fn one(
    scene: &mut Scene,
    flip: u64,
    before: &[(fanfare_proto::ChannelId, Vec<(&'static str, History)>)],
    outcomes: &mut Outcomes,
) -> Result<String> {
    let files: Vec<PathBuf> = scene
        .server
        .files()
        .into_iter()
        .filter(|path| path.parent() != Some(scene.server.data()))
        .filter(|path| path.metadata().is_ok_and(|meta| meta.len() > 0))
        .collect();
    // By size: every byte is as likely as any other.
    let sizes: Vec<u64> = files.iter().map(|path| used(path).unwrap_or(0)).collect();
    let total: u64 = sizes.iter().sum();
    if total == 0 {
        bail!("the content store has no files: this proves nothing");
    }
    let mut place = flip.wrapping_mul(0x9e37_79b9_7f4a_7c15) % total;
    let index = sizes.iter().position(|size| {
        let here = place < *size;
        if !here {
            place -= size;
        }
        here
    });
    let path = &files[index.context("a place within the files")?];
    let mut bytes = fs::read(path)?;
    bytes[place as usize] ^= 1 << (flip % 8);
    fs::write(path, bytes)?;
    let what = format!("{} byte {place}", path.file_name().unwrap_or_default().display());
    match scene.start(&Extra::default())? {
        Started::Ended(status) => {
            if status.code().is_none_or(|code| code == 101) {
                bail!("{what}: the start ended with {status}:\n{}", scene.server.log_tail());
            }
            if !scene.server.log_tail().contains("FAN-S103") {
                bail!("{what}: the start ended with {status}, and does not say that the data is damaged");
            }
            *outcomes.0.entry("refused at start").or_default() += 1;
            return Ok(String::new());
        }
        Started::Ready => {}
    }
    let mut marked = false;
    for (channel, readers) in before {
        let now = match scene.people.histories(&scene.server, *channel) {
            Ok(now) => now,
            Err(error) => {
                if scene.server.ended()?.is_some() {
                    bail!("{what}: it ended by a read: {error:#}\n{}", scene.server.log_tail());
                }
                *outcomes.0.entry("refused when read").or_default() += 1;
                return Ok(String::new());
            }
        };
        for ((name, was), (_, is)) in readers.iter().zip(&now) {
            for (seq, frame) in &was.frames {
                let corrupt = is.corrupt.iter().any(|&(first, last)| (first..=last).contains(seq));
                marked |= corrupt;
                match is.frames.get(seq) {
                    Some(now) if now == frame => {}
                    Some(_) => {
                        let text =
                            format!("G14 {what}: {name} is served other bytes at seq {seq} of {channel}");
                        scene.ledger.violations.push(text);
                    }
                    None if corrupt => {}
                    None => {
                        let text = format!("G14 {what}: {name} is served a hole at seq {seq} of {channel}");
                        scene.ledger.violations.push(text);
                        break;
                    }
                }
            }
        }
    }
    if scene.server.panics() > 0 {
        bail!("{what}: it panicked:\n{}", scene.server.log_tail());
    }
    *outcomes.0.entry(if marked { "marked" } else { "without effect" }).or_default() += 1;
    Ok(String::new())
}

/// Bytes up to the last that is not zero: files may be made long beforehand.
fn used(path: &Path) -> Result<u64> {
    let bytes = fs::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}
