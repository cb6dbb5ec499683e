//! A disk that is really full: a small tmpfs of its own (this program runs in a mount namespace of its own), filled up to the last pages.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_tests::{
    people::Burst,
    scene::{SETTLE_TIME, Scene},
};

use super::Run;

/// Size of the disk, MiB: over twice the reserve below which content stays in the outbox.
const DISK_MIB: u64 = 192;
/// What is left free, bytes.
const LEFT: [u64; 7] = [0, 4_096, 12_288, 40_960, 139_264, 1 << 20, 24 << 20];

/// Longest talk until the full disk is noticed.
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// One case for each size of what is left.
pub fn sweep(run: &mut Run) -> Result<()> {
    let disk = run.fresh_folder();
    fs::create_dir_all(&disk)?;
    let size = format!("size={DISK_MIB}m,mode=0700");
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&disk).status()?;
    if !status.success() {
        bail!("cannot mount a tmpfs: run it by tests/faults/run, as root");
    }
    let mut scene = on_disk(run, &disk)?;
    for (number, left) in LEFT.into_iter().enumerate() {
        for kill_while_full in [false, true] {
            if kill_while_full && !number.is_multiple_of(2) {
                continue;
            }
            scene.begin();
            let mut unknown = 0;
            let end = case(&mut scene, &disk, left, kill_while_full, &mut unknown);
            let name = format!("disk full but {left} bytes{}", if kill_while_full { ", killed" } else { "" });
            let _ = fs::remove_file(disk.join("ballast"));
            if !run.ended(&name, &mut scene, unknown, end) {
                run.close(&scene);
                scene = on_disk(run, &disk)?;
            }
        }
    }
    run.close(&scene);
    drop(scene);
    let _ = Command::new("umount").arg(&disk).status();
    Ok(())
}

/// A scene with its data on that disk, and its log elsewhere: it has to be readable.
fn on_disk(run: &mut Run, disk: &Path) -> Result<Scene> {
    let scratch = run.fresh_folder();
    fs::create_dir_all(&scratch)?;
    let data = disk.join(scratch.file_name().context("a folder has a name")?);
    fs::create_dir_all(&data)?;
    std::os::unix::fs::symlink(&data, scratch.join("data"))?;
    Scene::set(run.binary(), &scratch, false, &[])
}

/// Fills the disk until only so many bytes are left.
fn fill(disk: &Path, left: u64) -> Result<PathBuf> {
    let path = disk.join("ballast");
    let mut ballast = fs::File::create(&path)?;
    let chunk = vec![0; 1 << 16];
    let mut size = chunk.len();
    let mut written = 0_u64;
    while size >= 512 {
        match ballast.write(&chunk[..size]) {
            Ok(count) => written += count as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    ballast.set_len(written.saturating_sub(left))?;
    Ok(path)
}

fn case(
    scene: &mut Scene,
    disk: &Path,
    left: u64,
    kill_while_full: bool,
    unknown: &mut usize,
) -> Result<String> {
    if scene.talk(24) == Burst::Broken {
        bail!("a session broke before the disk was full");
    }
    let ballast = fill(disk, left)?;
    let refused = |scene: &Scene| scene.ledger.fails.contains_key(&5003);
    // Until somebody is told READ_ONLY: at once where the log has to grow, with the next drain where it has not.
    let until = Instant::now() + REFUSED_TIME;
    while !refused(scene) && Instant::now() < until {
        if scene.talk(24) == Burst::Broken {
            let status = scene.server.wait_for_end(Duration::from_secs(5))?;
            bail!("a full disk broke a session ({status:?}):\n{}", scene.server.log_tail());
        }
    }
    if !refused(scene) {
        bail!("nobody was told READ_ONLY: {:?}", scene.ledger.fails);
    }
    // More of it, in the state of being full.
    for _ in 0..3 {
        if scene.talk(12) == Burst::Broken {
            bail!("a session broke while read-only:\n{}", scene.server.log_tail());
        }
    }
    scene.people.pages_a_channel(&scene.server).context("history while the disk is full")?;
    *unknown = scene.ledger.unknown();
    if kill_while_full {
        scene.kill()?;
        match scene.start(&Default::default())? {
            fanfare_tests::server::Started::Ready => {}
            fanfare_tests::server::Started::Ended(status) => {
                bail!("it does not start on a full disk ({status}):\n{}", scene.server.log_tail())
            }
        }
        scene.people.connect(&scene.server)?;
        scene.people.pages_a_channel(&scene.server).context("history after a restart on a full disk")?;
    }
    fs::remove_file(ballast)?;
    scene.people.settle(&mut scene.ledger, SETTLE_TIME).context("after there was room again")?;
    scene.look()?;
    scene.recover()?;
    Ok(String::new())
}
