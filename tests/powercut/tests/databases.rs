//! Real databases through a power cut: what they acknowledged as durable is there, and what they did not sync
//! can be lost, which shows that the cut bites.

#![allow(clippy::unwrap_used)]

mod rig;

use std::{collections::BTreeSet, process::Command};

use rig::{Rig, finish, killed};

const ROUNDS: u64 = 30;

/// Commits rows and says so; ends in a transaction that spills its rows unsynced, or dies before by a timer.
fn sqlite_program(level: &str, from: u64, die_after_ms: u64) -> String {
    format!(
        "import sqlite3, threading
if {die_after_ms}: threading.Timer({die_after_ms} / 1000, die).start()
c = sqlite3.connect('db', isolation_level=None)
c.execute('pragma journal_mode=wal')
c.execute('pragma synchronous={level}')
c.execute('pragma wal_autocheckpoint=20')
c.execute('create table if not exists t (k integer primary key, v blob)')
for k in range({from}, {from} + {ROUNDS}):
    c.execute('insert into t values (?, ?)', (k, os.urandom(900)))
    os.write(1, b'%d\\n' % k)
c.execute('pragma cache_size=5')
c.execute('begin')
for k in range(100): c.execute('insert into t values (?, ?)', (1000000 + k, os.urandom(900)))
"
    )
}

/// Reads the table back without the preload; also checks the whole database.
fn sqlite_keys(rig: &Rig) -> Result<BTreeSet<u64>, String> {
    let program = "import sqlite3, sys
c = sqlite3.connect('db')
ok = c.execute('pragma integrity_check').fetchall()
assert ok == [('ok',)], ok
# The kill may have come before the table did.
c.execute('create table if not exists t (k integer primary key, v blob)')
for (k,) in c.execute('select k from t'): print(k)
c.close()
";
    let output = finish(Command::new("python3").arg("-c").arg(program).current_dir(&rig.data));
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(numbers(&String::from_utf8_lossy(&output.stdout)))
}

fn numbers(text: &str) -> BTreeSet<u64> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[test]
fn sqlite_keeps_every_commit_when_it_syncs_each() {
    let mut undone = 0;
    for seed in 0..50 {
        let rig = Rig::new();
        let mode = ["lost", "torn", "mixed"][(seed % 3) as usize];
        let mut acked = BTreeSet::new();
        for round in 0..2 {
            let die_after_ms = if seed % 2 == 0 { 0 } else { 2 + seed + round * 7 };
            acked.extend(numbers(&rig.python(&sqlite_program("full", round * ROUNDS, die_after_ms))));
            undone += rig.undo(mode, seed)["writes_undone"].as_u64().unwrap();
            let found = sqlite_keys(&rig).unwrap_or_else(|error| panic!("{mode} {seed}: {error}"));
            let lost: Vec<_> = acked.difference(&found).collect();
            assert!(lost.is_empty(), "{mode} {seed}: lost {lost:?}");
            // Beside what was said at most the one commit that the kill met.
            assert!(found.len() <= acked.len() + 1, "{mode} {seed}: {found:?}");
            acked = found;
        }
    }
    assert!(undone > 100, "{undone}: the open transaction leaves unsynced pages");
}

#[test]
fn sqlite_loses_commits_when_it_does_not_sync() {
    let mut lossy = 0;
    for seed in 0..10 {
        let rig = Rig::new();
        let acked = numbers(&rig.python(&sqlite_program("off", 0, 0)));
        assert_eq!(acked.len() as u64, ROUNDS);
        rig.undo(["lost", "torn"][(seed % 2) as usize], seed);
        lossy += usize::from(sqlite_keys(&rig).map_or(true, |found| found != acked));
    }
    assert!(lossy > 0, "no seed lost a commit");
}

const CHILD: &str = "POWERCUT_FJALL_CHILD";

/// Not a test of its own: the process that the fjall test runs under the preload and that kills itself.
#[test]
fn fjall_child() {
    let Ok(spec) = std::env::var(CHILD) else { return };
    let (from, sync) = spec.split_once(' ').unwrap();
    let from: u64 = from.parse().unwrap();
    let db = fjall::Database::builder("kv").open().unwrap();
    let keys = db.keyspace("keys", fjall::KeyspaceCreateOptions::default).unwrap();
    for key in from..from + ROUNDS {
        keys.insert(key.to_be_bytes(), vec![key as u8; 3000]).unwrap();
        if key % 10 == 9 {
            // Writes a table, replaces the `current` file and leaves an old journal behind.
            keys.rotate_memtable_and_wait().unwrap();
        }
        if sync == "sync" {
            db.persist(fjall::PersistMode::SyncAll).unwrap();
        }
        eprintln!("acked {key}");
    }
    // SAFETY: a signal to this very process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

fn fjall_run(rig: &Rig, from: u64, sync: &str) -> BTreeSet<u64> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "fjall_child", "--nocapture"]).env(CHILD, format!("{from} {sync}"));
    let output = finish(rig.watched(&mut command));
    killed(&output);
    let said = String::from_utf8_lossy(&output.stderr).replace("acked ", "");
    numbers(&said)
}

fn fjall_keys(rig: &Rig) -> fjall::Result<BTreeSet<u64>> {
    let db = fjall::Database::builder(rig.data.join("kv")).open()?;
    let keys = db.keyspace("keys", fjall::KeyspaceCreateOptions::default)?;
    let mut found = BTreeSet::new();
    for item in keys.iter() {
        let (key, value) = item.into_inner()?;
        let key = u64::from_be_bytes(key.as_ref().try_into().expect("keys are eight bytes"));
        assert!(value.len() == 3000 && value.iter().all(|byte| *byte == key as u8), "key {key} is whole");
        found.insert(key);
    }
    Ok(found)
}

#[test]
fn fjall_keeps_every_persisted_key() {
    for seed in 0..15 {
        let rig = Rig::new();
        let mode = ["lost", "torn", "mixed"][(seed % 3) as usize];
        let mut acked = BTreeSet::new();
        for round in 0..2 {
            acked.extend(fjall_run(&rig, round * ROUNDS, "sync"));
            assert_eq!(acked.len() as u64, (round + 1) * ROUNDS);
            rig.undo(mode, seed);
            let found = fjall_keys(&rig).unwrap_or_else(|error| panic!("{mode} {seed}: {error}"));
            assert!(found.is_superset(&acked), "{mode} {seed}: lost {:?}", acked.difference(&found));
        }
    }
}

#[test]
fn fjall_loses_keys_that_were_not_persisted() {
    let rig = Rig::new();
    let acked = fjall_run(&rig, 1, "skip");
    rig.undo("lost", 1);
    let found = fjall_keys(&rig).unwrap();
    assert!(found.len() < acked.len(), "nothing lost of {}", acked.len());
}
