//! The embedded push outbox: conformance, reopening, and a consumer of the log that is killed between its steps.

use std::{
    collections::HashSet,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use fanfare_proto::UserId;
use fanfare_storage::{
    conformance::{self, Script},
    embedded::{self, Embedded, Options},
    fault,
    log::{Log, Record},
    push::{Push, PushKey, PushKind, PushOutbox, PushOutcome},
};

const FOLDER: &str = "FANFARE_TEST_PUSH_FOLDER";
const CONSUMER: &str = "push";
const RECORDS: u64 = 60;
const BATCH: usize = 7;

fn open(folder: &Path) -> Embedded {
    let options = Options { reserve_bytes: 0, log_bytes: 0, log_partitions: 1, ..Options::default() };
    embedded::open(folder, &options).expect("opened")
}

#[test]
fn the_conformance_suite_passes() {
    conformance::check_pushes(&|check| {
        let folder = tempfile::tempdir().expect("folder");
        check(&*open(folder.path()).pushes(folder.path()).expect("opened"));
    });
}

#[test]
fn the_folder_stays_locked_for_as_long_as_the_outbox_is_there() {
    let folder = tempfile::tempdir().expect("folder");
    let pushes = open(folder.path()).pushes(folder.path()).expect("opened");
    assert!(embedded::open(folder.path(), &Options::default()).is_err());
    drop(pushes);
    drop(open(folder.path()));
}

fn push_of(record: &Record) -> Push {
    let entry = &record.entry;
    Push {
        key: PushKey { user: UserId(1), channel: entry.channel, epoch: entry.epoch, seq: entry.seq },
        kind: PushKind::Direct,
        sender: entry.sender,
        message_id: entry.message_id,
        created_ms: 1,
        due_ms: 1,
        attempts: 0,
        error: String::new(),
    }
}

/// The process that is killed; does nothing when run as a test. It delivers what is due, each a line, then reads the log, puts, and
/// notes how far it is.
#[test]
fn consumer_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let opened = open(Path::new(&folder));
    let pushes = opened.pushes(Path::new(&folder)).expect("opened");
    let mut out = std::io::stdout();
    loop {
        for push in pushes.due(10, 100).expect("read") {
            fault::point("before-push-post");
            writeln!(out, "push {}", push.key).and_then(|()| out.flush()).expect("written");
            fault::point("after-push-post");
            pushes.finish(10, &[(push.key, PushOutcome::Delivered)]).expect("finished");
        }
        let next = opened.store.offset(CONSUMER, 0).expect("read");
        let records = opened.store.read(0, next, BATCH).expect("read");
        let Some(last) = records.last() else { return };
        let found: Vec<Push> = records.iter().map(push_of).collect();
        fault::point("before-push-put");
        pushes.put(&found).expect("put");
        fault::point("after-push-put");
        opened.store.commit_offset(CONSUMER, 0, last.offset + 1).expect("noted");
        fault::point("after-push-offset");
    }
}

/// What the consumer delivered, and whether it was killed.
fn run(folder: &Path, fault: &str) -> (Vec<PushKey>, bool) {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "consumer_process", "--nocapture"])
        .env(FOLDER, folder)
        .env("FANFARE_FAULT", fault)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let output = child.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() || output.status.signal() == Some(9), "{}: {text}", output.status);
    let keys = text.lines().filter_map(|line| line.split_once("push ")?.1.parse().ok()).collect();
    (keys, output.status.signal() == Some(9))
}

#[test]
fn every_record_becomes_a_push_that_is_delivered_wherever_the_consumer_is_killed() {
    for step in fault::PUSH_STEPS {
        let folder = tempfile::tempdir().expect("folder");
        let mut wanted = HashSet::new();
        {
            let opened = open(folder.path());
            let mut script = Script::new(0, 1);
            script.create(&[1, 2]);
            for round in 0..RECORDS / 2 {
                let commit = script.messages(&[1, 2], &round.to_string());
                opened.store.append(&commit.entries).expect("appended");
                wanted.extend(commit.entries.iter().map(|entry| (entry.channel, entry.seq)));
            }
            opened.store.flush_log().expect("flushed");
        }
        let (mut delivered, mut kills) = (Vec::new(), 0);
        loop {
            // Killed at the third pass of the step, again and again, until there is nothing left to pass it.
            let (keys, was_killed) = run(folder.path(), &format!("{step}:3"));
            delivered.extend(keys);
            kills += usize::from(was_killed);
            assert!(kills < 1_000, "{step}: it does not come to an end");
            if !was_killed {
                break;
            }
        }
        let different: HashSet<_> = delivered.iter().map(|key| (key.channel, key.seq)).collect();
        assert_eq!(different, wanted, "{step}: not every record was told of");
        assert!(delivered.len() <= wanted.len() + kills, "{step}: {} deliveries", delivered.len());
        assert!(kills > 2, "{step}: killed {kills} times");
    }
}
