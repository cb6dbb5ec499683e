//! Another program that opens a live server's database and leaves again (`sqlite3 meta.db`, a backup) takes nothing away
//! from it: what is committed afterwards survives a kill.

use std::{
    fs::OpenOptions,
    path::Path,
    process::{Command, ExitStatus},
};

use fanfare_proto::ChannelId;
use fanfare_storage::{
    conformance::Script,
    embedded::{self, Embedded, Options},
    metadata::Metadata,
    ownership::Ownership,
};
use rustix::fs::FlockOperation;

const HOLDS: &str = "FANFARE_TEST_HOLDS";
const VISITS: &str = "FANFARE_TEST_VISITS";

fn open(folder: &Path) -> Embedded {
    embedded::open(folder, &Options { reserve_bytes: 0, log_partitions: 1, ..Options::default() })
        .expect("opened")
}

/// Runs one of the tests below in a process of its own.
fn run(test: &str, variable: &str, folder: &Path) -> ExitStatus {
    let this = std::env::current_exe().expect("known");
    Command::new(this).args([test, "--exact"]).env(variable, folder).status().expect("run")
}

/// The program that looks; does nothing when run as a test. As SQLite before 3.51 leaves: who gets the file for itself takes itself
/// for the last one and removes the log. (Newer ones look at the lock of the log's index, too.)
#[test]
fn visitor_process() {
    let Some(folder) = std::env::var_os(VISITS) else { return };
    for file in ["meta.db", "cursors.db"] {
        let path = Path::new(&folder).join(file);
        let visitor = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        if rustix::fs::fcntl_lock(&visitor, FlockOperation::NonBlockingLockExclusive).is_ok() {
            for part in ["-wal", "-shm"] {
                let mut path = path.clone().into_os_string();
                path.push(part);
                std::fs::remove_file(path).expect("removed");
            }
        }
    }
}

/// The server; does nothing when run as a test.
#[test]
fn holder_process() {
    let Some(folder) = std::env::var_os(HOLDS) else { return };
    let folder = Path::new(&folder);
    let opened = open(folder);
    let lease = opened.metadata.take(3).expect("taken");
    let mut script = Script::new(3, lease.term);
    opened.metadata.commit(&[script.create(&[1])], &[]).expect("made");
    opened.metadata.commit(&[script.messages(&[1], "before the visit")], &[]).expect("committed");
    assert!(run("visitor_process", VISITS, folder).success());
    opened.metadata.commit(&[script.messages(&[1], "behind the visit")], &[]).expect("committed");
    // As a kill: nothing is closed.
    std::process::abort();
}

#[test]
fn what_is_committed_behind_a_visit_survives_a_kill() {
    let folder = tempfile::tempdir().expect("made");
    assert!(!run("holder_process", HOLDS, folder.path()).success(), "it aborts");
    let opened = open(folder.path());
    let channel = opened.metadata.channel(ChannelId(1)).expect("read").expect("there");
    assert_eq!(channel.head, 2, "the message that was acknowledged");
}
