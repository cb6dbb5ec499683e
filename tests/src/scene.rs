//! A server, its people and their ledger in one scratch folder, and what has to hold after every fault: restart,
//! repeat everything to a definite end, repeat what was acknowledged, page every channel as every member.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    ledger::Ledger,
    people::{Burst, People},
    server::{Extra, Server, Started, built},
};

/// Longest time from the end of a fault until every send has a definite end.
pub const SETTLE_TIME: Duration = Duration::from_secs(45);

/// See the module.
#[derive(Debug)]
pub struct Scene {
    /// The process.
    pub server: Server,
    /// Who talks.
    pub people: People,
    /// What they know.
    pub ledger: Ledger,
    /// What every start of this scene has.
    pub extra: Extra,
    scratch: PathBuf,
    power: Option<Power>,
    /// The first message of this case.
    from: usize,
}

#[derive(Debug)]
struct Power {
    tool: PathBuf,
    journal: PathBuf,
}

impl Scene {
    /// Starts a fresh server in a folder that is made for it, and lets the people in. `power_cuts`: under the
    /// library that remembers unsynced bytes.
    pub fn set(binary: &Path, scratch: &Path, power_cuts: bool, env: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(scratch)?;
        let mut server = Server::new(binary, scratch)?;
        let mut extra = Extra::default();
        extra.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let power = if power_cuts {
            let journal = scratch.join("journal");
            fs::create_dir_all(&journal)?;
            let journal = journal.canonicalize()?;
            let library = built()?.join("libfanfare_powercut.so");
            for (name, path) in
                [("LD_PRELOAD", &*library), ("POWERCUT_DIR", server.data()), ("POWERCUT_JOURNAL", &*journal)]
            {
                extra.env.push((name.to_owned(), path.display().to_string()));
            }
            Some(Power { tool: built()?.join("powercut"), journal })
        } else {
            None
        };
        match server.start(&extra)? {
            Started::Ready => {}
            Started::Ended(status) => {
                bail!("it ended at its first start with {status}:\n{}", server.log_tail())
            }
        }
        let people = People::arrive(&server)?;
        Ok(Self {
            server,
            people,
            ledger: Ledger::default(),
            extra,
            scratch: scratch.to_owned(),
            power,
            from: 0,
        })
    }

    /// Where strace may keep its notes.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A new case begins: what is made from now on is what its end repeats.
    pub fn begin(&mut self) {
        self.from = self.ledger.messages.len();
        self.ledger.fails.clear();
    }

    /// As [`Self::talk`], with a group opened before.
    pub fn open_and_talk(&mut self, count: usize) -> Burst {
        match self.people.open_group(&mut self.ledger) {
            Burst::Answered => self.talk(count),
            Burst::Broken => Burst::Broken,
        }
    }

    /// Makes so many messages and sends them.
    pub fn talk(&mut self, count: usize) -> Burst {
        let made = self.people.make(&mut self.ledger, count);
        self.people.send(&mut self.ledger, &made)
    }

    /// Starts the server with what this scene and this start have in addition.
    pub fn start(&mut self, more: &Extra) -> Result<Started> {
        let mut extra = self.extra.clone();
        extra.wrap.extend(more.wrap.iter().cloned());
        extra.env.extend(more.env.iter().cloned());
        self.server.start(&extra)
    }

    /// Undoes what was not synced when the process died, as a power cut would.
    pub fn cut_power(&self, mode: &str, seed: u64) -> Result<()> {
        let Some(power) = &self.power else { bail!("this scene has no power to cut") };
        let output = Command::new(&power.tool)
            .arg("undo")
            .arg("--dir")
            .arg(self.server.data())
            .arg("--journal")
            .arg(&power.journal)
            .args(["--seed", &seed.to_string(), "--mode", mode])
            .output()?;
        if !output.status.success() {
            bail!("powercut undo: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// SIGKILL now; the people lose their sessions.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()?;
        self.people.hang_up(&mut self.ledger);
        Ok(())
    }

    /// Restarts without any fault and checks everything.
    pub fn recover(&mut self) -> Result<()> {
        self.kill()?;
        match self.start(&Extra::default())? {
            Started::Ready => {}
            Started::Ended(status) => {
                bail!("it does not start again ({status}):\n{}", self.server.log_tail())
            }
        }
        self.people.connect(&self.server)?;
        self.people.settle(&mut self.ledger, SETTLE_TIME)?;
        self.look()
    }

    /// Repeats what this case had acknowledged and pages everything.
    pub fn look(&mut self) -> Result<()> {
        self.people.repeat(&mut self.ledger, self.from)?;
        self.people.check(&self.server, &mut self.ledger)?;
        if self.server.panics() > 0 {
            self.ledger.violations.push(format!("it panicked:\n{}", self.server.log_tail()));
        }
        Ok(())
    }

    /// What was found wrong since the last time.
    pub fn violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ledger.violations)
    }
}
