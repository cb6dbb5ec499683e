//! Kills a writing process with SIGKILL at every named step of commit and drain, opens what it left, and holds that
//! against what it had acknowledged.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use fanfare_proto::{ChannelId, MessageId, UserId};
use fanfare_storage::{
    conformance::Script,
    drain::{Bounds, Drains, Room},
    embedded::{self, Embedded, Options},
    fault, hash,
    log::Log,
    metadata::Metadata,
    model::{Hash, ListChange, OutboxBatch},
    ownership::Ownership,
    reconcile::reconcile,
};

const FOLDER: &str = "FANFARE_TEST_CRASH_FOLDER";
const CHANNELS: [u64; 3] = [1, 2, 3];
const COMMITS: u64 = 40;

fn open(folder: &Path) -> Embedded {
    embedded::open(
        folder,
        &Options { reserve_bytes: 0, log_bytes: 0, log_partitions: 1, ..Options::default() },
    )
    .expect("opened")
}

fn drains(opened: &Embedded, recovered: Vec<OutboxBatch>) -> Drains {
    let bounds = Bounds { linger: Duration::from_millis(3), batch_entries: 16, ..Bounds::default() };
    Drains::start_with(
        opened.metadata.clone(),
        opened.store.clone(),
        opened.store.clone(),
        opened.store.clone(),
        recovered,
        Box::new(|_| ()),
        bounds,
        Box::new(|_| std::process::abort()),
    )
    .expect("started")
}

/// The process that is killed; does nothing when run as a test.
#[test]
fn writer_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut opened = open(Path::new(&folder));
    let lease = opened.metadata.take(0).expect("taken");
    let mut script = Script::new(0, lease.term);
    let recovered = std::mem::take(&mut opened.recovered);
    let drains = drains(&opened, recovered);
    let last_id = opened.metadata.shard(0).expect("read").1;
    let known = opened.metadata.channels(ChannelId(0), 10).expect("read");
    if known.is_empty() {
        opened.metadata.commit(&[script.create(&CHANNELS)], &[]).expect("committed");
    }
    for channel in &known {
        script.resume(channel, last_id);
    }
    let mut out = std::io::stdout();
    for round in 0..COMMITS {
        let channels = [CHANNELS[(round % 3) as usize], CHANNELS[(round / 3 % 3) as usize], 1];
        let mut commit = script.messages(&channels, &format!("round {round}"));
        let seq = commit.heads[0].head;
        commit.lists.push(ListChange {
            user: UserId(round % 4),
            channel: commit.heads[0].channel,
            seq,
            listed: round % 3 != 0,
        });
        while drains.wait_for_room(Duration::from_secs(1)) != Room::Yes {}
        let row =
            opened.metadata.commit(std::slice::from_ref(&commit), &drains.take_drained()).expect("committed");
        let mut acknowledged = String::new();
        for entry in &commit.entries {
            let hash: String = entry.hash.iter().map(|byte| format!("{byte:02x}")).collect();
            acknowledged.push_str(&format!("ack {} {} {hash}\n", entry.channel, entry.seq));
        }
        out.write_all(acknowledged.as_bytes()).expect("written");
        out.flush().expect("written");
        drains.offer(Script::batch(&commit, row.expect("a row")));
    }
    assert!(drains.wait_until_drained(Duration::from_secs(30)));
    drains.stop();
}

/// Runs the writer until the fault strikes; what it acknowledged, and whether it was killed.
fn run_writer(folder: &Path, fault: &str) -> (Vec<(u64, u64, String)>, bool) {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "writer_process", "--nocapture"])
        .env(FOLDER, folder)
        .env("FANFARE_FAULT", fault)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("started");
    let output = child.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let acknowledged = text
        .lines()
        .filter_map(|line| {
            // libtest writes "test writer_process ... " before the first line.
            let (_, line) = line.split_once("ack ")?;
            let mut words = line.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
        .collect();
    use std::os::unix::process::ExitStatusExt;
    assert!(output.status.success() || output.status.signal() == Some(9), "{}: {text}", output.status);
    (acknowledged, output.status.signal() == Some(9))
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every entry in metadata by place, each once.
fn stored(opened: &Embedded) -> BTreeMap<(u64, u64), String> {
    let mut stored = BTreeMap::new();
    let mut after = MessageId(0);
    loop {
        let page = opened.metadata.walk(after, 500).expect("walked");
        let Some(last) = page.last() else { return stored };
        after = last.message_id;
        for entry in page {
            let twice = stored.insert((entry.channel.0, entry.seq), hex(&entry.hash));
            assert!(twice.is_none(), "channel {} seq {} stands twice", entry.channel, entry.seq);
        }
    }
}

fn check(folder: &Path, acknowledged: &HashMap<(u64, u64), String>, fault: &str) {
    let mut opened = open(folder);
    let recovered = std::mem::take(&mut opened.recovered);
    let entries = stored(&opened);
    for (place, hash) in acknowledged {
        assert_eq!(entries.get(place), Some(hash), "{fault}: acknowledged {place:?} is not there");
    }
    // Frames, hashes, chains, heads and lists, with what still waits.
    let report = reconcile(&*opened.metadata, &*opened.store, &*opened.store, &recovered).expect("walked");
    let heads = opened.metadata.channels(ChannelId(0), 10).expect("read");
    assert_eq!(heads.iter().map(|channel| channel.head).sum::<u64>(), entries.len() as u64, "{fault}");
    let without_lists = |mut report: fanfare_storage::reconcile::Report| {
        // The writer changes lists without memberships.
        report.list_differences = 0;
        report
    };
    let report = without_lists(report);
    assert!(report.is_clean(), "{fault}: {report:?}");

    // Drained twice: the same.
    let drain = |rows: Vec<OutboxBatch>| {
        drains(&opened, rows).stop();
        assert!(opened.metadata.outbox().expect("read").is_empty(), "{fault}");
        let report = reconcile(&*opened.metadata, &*opened.store, &*opened.store, &[]).expect("walked");
        let report = without_lists(report);
        assert!(report.is_clean(), "{fault}: {report:?}");
        assert_eq!(report.frames_checked, entries.len() as u64, "{fault}");
    };
    drain(recovered.clone());
    drain(recovered);

    // The log holds every entry, in order once repeats are dropped.
    let mut seen = HashSet::new();
    let mut newest: HashMap<u64, u64> = HashMap::new();
    let mut next = 0;
    loop {
        let page = opened.store.read(0, next, 500).expect("read");
        let Some(last) = page.last() else { break };
        next = last.offset + 1;
        for record in page {
            let entry = record.entry;
            assert_eq!(hash::frame(&entry.frame), entry.hash, "{fault}: the log's frame");
            if seen.insert((entry.channel.0, entry.seq)) {
                let before = newest.insert(entry.channel.0, entry.seq).unwrap_or(0);
                assert_eq!(before + 1, entry.seq, "{fault}: the log skips in channel {}", entry.channel);
            }
        }
    }
    assert_eq!(seen.len(), entries.len(), "{fault}: the log is not whole");
    assert_eq!(next, opened.store.end(0).expect("read"));
}

#[test]
fn nothing_acknowledged_is_lost_at_any_step() {
    let folder = tempfile::tempdir().expect("folder");
    let mut acknowledged = HashMap::new();
    let mut kills = 0;
    for count in [1, 4] {
        for step in fault::STEPS {
            let fault = format!("{step}:{count}");
            let (more, was_killed) = run_writer(folder.path(), &fault);
            // Forgetting happens once a second: not four times in a run this short.
            assert!(was_killed || (count > 1 && step.ends_with("forget")), "{fault} did not strike");
            kills += u32::from(was_killed);
            acknowledged.extend(more.into_iter().map(|(channel, seq, hash)| ((channel, seq), hash)));
            check(folder.path(), &acknowledged, &fault);
        }
    }
    assert!(kills as usize > fault::STEPS.len());
    assert!(acknowledged.len() > 200, "only {} entries were acknowledged", acknowledged.len());
}
