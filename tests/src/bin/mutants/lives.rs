//! Four short lives of a server, each the same for the same seed, in which a seeded bug has to show.

use std::{path::Path, time::Duration};

use crate::parted;
use anyhow::{Context, Result, bail};
use fanfare_proto::{ChannelId, frame::Frame, wire};
use fanfare_storage::{
    content::Content,
    embedded::{self, Options},
    fault::STEPS,
    model::{Entry, EntryKind},
};
use fanfare_tests::{
    people::Burst,
    scene::{SETTLE_TIME, Scene},
    server::{Extra, Started},
    strace::{Attached, Injection, WRITES},
};

/// What happens in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Killed in mid-talk, between two steps, and the power goes with it: twice.
    Cut,
    /// The disk is full for a while.
    Full,
    /// Bytes in the content store are altered behind the server's back.
    Altered,
    /// People are removed, devices and users signed out, and callers hang up.
    Parted,
}

impl Life {
    /// All of them.
    pub const ALL: [Life; 4] = [Life::Cut, Life::Full, Life::Altered, Life::Parted];
}

/// Lives it; returns what was found wrong.
pub fn live(binary: &Path, folder: &Path, life: Life, seed: u64, mutant: Option<&str>) -> Vec<String> {
    let env: Vec<(&str, &str)> = mutant.iter().map(|name| ("FANFARE_MUTANT", *name)).collect();
    let mut scene = match Scene::set(binary, folder, life == Life::Cut, &env) {
        Ok(scene) => scene,
        Err(error) => return vec![format!("{error:#}")],
    };
    let end = match life {
        Life::Cut => cut(&mut scene, seed),
        Life::Full => full(&mut scene, seed),
        Life::Altered => altered(&mut scene, seed),
        Life::Parted => parted::live(&mut scene, seed),
    };
    let mut found = scene.violations();
    if let Err(error) = end {
        found.push(format!("{error:#}"));
    }
    found
}

fn cut(scene: &mut Scene, seed: u64) -> Result<()> {
    for round in 0..2 {
        let number = seed * 2 + round;
        let step = STEPS[(number * 5 % STEPS.len() as u64) as usize];
        let fault = format!("{step}:{}", 2 + number % 3);
        scene.kill()?;
        let faulty = Extra { env: vec![("FANFARE_FAULT".into(), fault)], ..Extra::default() };
        if matches!(scene.start(&faulty)?, Started::Ready) && scene.people.connect(&scene.server).is_ok() {
            for _ in 0..40 {
                if scene.talk(12) == Burst::Broken {
                    break;
                }
            }
        }
        scene.kill()?;
        scene.cut_power(["lost", "torn", "mixed"][(number % 3) as usize], number)?;
        scene.recover()?;
        if !scene.ledger.violations.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

fn full(scene: &mut Scene, seed: u64) -> Result<()> {
    scene.talk(24);
    let threads = scene.server.threads()?;
    let thread = threads.iter().find(|(name, _)| name == "store-commit").context("no thread store-commit")?.1;
    let injection = Injection { calls: WRITES, error: "ENOSPC", when: format!("{}+", 1 + seed % 5) };
    let attached = Attached::to(thread, &injection, &scene.server.files(), scene.scratch())?;
    for _ in 0..6 {
        if scene.talk(12) == Burst::Broken {
            bail!("a session broke while the disk was full");
        }
    }
    if attached.detach()? == 0 {
        bail!("no write failed: this proves nothing");
    }
    scene.people.settle(&mut scene.ledger, SETTLE_TIME)?;
    scene.look()?;
    scene.recover()
}

fn altered(scene: &mut Scene, seed: u64) -> Result<()> {
    scene.talk(120);
    // Until all of it is in the content store, and a restart holds nothing of it in memory but what it loads.
    let (channel, _) = scene.people.channels[(seed % 2) as usize];
    let entry = loop_until_drained(scene, channel, seed)?;
    match scene.start(&Extra::default())? {
        Started::Ready => {}
        Started::Ended(status) => bail!("it does not start with one altered row ({status})"),
    }
    let histories = scene.people.histories(&scene.server, channel)?;
    for (name, history) in histories {
        if let Some(frame) = history.frames.get(&entry.seq)
            && frame.bytes == entry.frame
        {
            scene.ledger.violations.push(format!("G5 {name}: altered bytes of seq {} are served", entry.seq));
        } else if history.frames.contains_key(&entry.seq) {
            // Another copy: as good as the first.
        } else if !history.corrupt.iter().any(|&(first, last)| (first..=last).contains(&entry.seq)) {
            scene
                .ledger
                .violations
                .push(format!("G14 {name}: seq {} is neither there nor marked", entry.seq));
        }
        let others = (1..=history.head).filter(|seq| *seq != entry.seq);
        let lost = others.filter(|seq| !history.frames.contains_key(seq) && !history.is_hidden(*seq)).count();
        if lost > 0 {
            scene.ledger.violations.push(format!("G14 {name}: one altered row, and {lost} others are gone"));
        }
    }
    Ok(())
}

/// Stops the server and alters one stored message by one letter; gives it back as it now stands there.
fn loop_until_drained(scene: &mut Scene, channel: ChannelId, seed: u64) -> Result<Entry> {
    for _ in 0..10 {
        // Asked to end, it empties the outbox first.
        if let Some(pid) = scene.server.pid() {
            std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status()?;
            scene.server.wait_for_end(Duration::from_secs(20))?;
        }
        scene.kill()?;
        {
            let opened = embedded::open(scene.server.data(), &Options::default())?;
            let stored = opened.store.range(channel, 1, u64::MAX >> 1, 1_000, 1 << 24)?;
            if opened.recovered.is_empty() && stored.len() > 10 {
                let messages =
                    stored.iter().rev().skip(3 + seed as usize % 7).filter(|stored| stored.frame.len() > 60);
                let victim = messages.last().context("no message to alter")?;
                let mut bytes = victim.frame.to_vec();
                let last = bytes.len() - 1;
                // The last letter of its text.
                bytes[last] = if bytes[last] == b'a' { b'b' } else { b'a' };
                let frame = Frame::split_from(&mut bytes.clone().into())?.context("a whole frame")?;
                let _: wire::Entry = frame.decode()?;
                let entry = Entry {
                    message_id: 0.into(),
                    channel,
                    epoch: victim.epoch,
                    seq: victim.seq,
                    ordinal: 0,
                    kind: EntryKind::Message,
                    sender: 0.into(),
                    client_id: [0; 16],
                    target: 0,
                    hash: [0; 32],
                    frame: bytes.into(),
                };
                opened.store.put(std::slice::from_ref(&entry))?;
                opened.store.flush()?;
                return Ok(entry);
            }
        }
        scene.start(&Extra::default())?;
    }
    bail!("the outbox was never empty")
}
