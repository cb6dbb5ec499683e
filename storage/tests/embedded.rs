//! The embedded stores against the conformance suite, and what is theirs alone: lock, format, reopening.

use std::sync::Arc;

use fanfare_proto::{ChannelId, MessageId};
use fanfare_storage::{
    StoreError,
    conformance::{self, Script, Stores},
    content::Content,
    drain::Drains,
    embedded::{self, Options},
    log::Log,
    metadata::Metadata,
    ownership::Ownership,
    read, reconcile,
};

fn options() -> Options {
    Options { reserve_bytes: 0, log_bytes: 0, ..Options::default() }
}

#[test]
fn the_conformance_suite_passes() {
    conformance::check(&|| {
        let folder = tempfile::tempdir().expect("folder");
        let opened = embedded::open(folder.path(), &options()).expect("opened");
        Stores {
            metadata: opened.metadata.clone(),
            accounts: opened.metadata.clone(),
            seen: opened.metadata.clone(),
            ownership: opened.metadata,
            content: opened.store.clone(),
            lists: opened.store.clone(),
            log: opened.store,
            keep: Box::new(folder),
        }
    });
}

#[test]
fn a_second_opener_is_told_who_has_the_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let first = embedded::open(folder.path(), &options()).expect("opened");
    let before = std::time::Instant::now();
    match embedded::open(folder.path(), &options()) {
        Err(StoreError::Locked(text)) => assert!(text.contains(&std::process::id().to_string()), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(before.elapsed().as_secs() < 1, "the refusal must be quick");
    drop(first);
    embedded::open(folder.path(), &options()).expect("free again");
}

#[test]
fn another_format_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    drop(embedded::open(folder.path(), &options()).expect("opened"));
    std::fs::write(folder.path().join("format"), "7\n").expect("written");
    match embedded::open(folder.path(), &options()) {
        Err(StoreError::Format { found: 7, expected: embedded::FORMAT }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("deep/data");
    drop(embedded::open(&data, &options()).expect("opened"));
    assert_eq!(data.metadata().expect("there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().expect("folder");
    let opened = embedded::open(folder.path(), &options()).expect("opened");
    let lease = opened.metadata.take(0).expect("taken");
    let mut script = Script::new(0, lease.term);
    opened.metadata.commit(&[script.create(&[1])], &[]).expect("committed");
    let commit = script.messages(&[1, 1], "kept");
    let row = opened.metadata.commit(std::slice::from_ref(&commit), &[]).expect("committed");
    opened.store.put(&commit.entries).expect("put");
    opened.store.append(&commit.entries).expect("appended");
    opened.store.truncate(0, 2).expect("truncated");
    drop(opened);

    let opened = embedded::open(folder.path(), &options()).expect("opened");
    let batch = opened.recovered.last().expect("undrained");
    assert_eq!(Some(batch.row), row);
    assert_eq!(batch.entries.len(), 2);
    assert_eq!(opened.store.range(ChannelId(1), 1, 9, 9, 999).expect("read").len(), 2);
    assert_eq!(opened.store.end(0).expect("read"), 2, "the log's end outlives its records");
    let next = opened.metadata.commit(&[script.messages(&[1], "more")], &[]).expect("committed");
    assert!(next > row);
}

/// The script's frames do not carry their id; the test knows it.
#[test]
fn wrong_bytes_are_never_served_and_reconcile_finds_them() {
    let folder = tempfile::tempdir().expect("folder");
    let opened = embedded::open(folder.path(), &options()).expect("opened");
    let (metadata, store) = (opened.metadata, opened.store);
    let lease = metadata.take(0).expect("taken");
    let mut script = Script::new(0, lease.term);
    metadata.commit(&[script.create(&[1, 2])], &[]).expect("committed");
    let commit = script.messages(&[1, 1, 1, 1, 2], "text");
    metadata.commit(std::slice::from_ref(&commit), &[]).expect("committed");
    let undrained = metadata.outbox().expect("read");
    let report = reconcile::reconcile(&*metadata, &*store, &*store, &undrained).expect("walked");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.entries_checked, report.undrained), (5, 5));
    let report = reconcile::reconcile(&*metadata, &*store, &*store, &[]).expect("walked");
    assert_eq!(report.missing_content.count, 5, "{report:?}");

    store.put(&commit.entries).expect("put");
    let report = reconcile::reconcile(&*metadata, &*store, &*store, &[]).expect("walked");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.entries_checked, report.frames_checked, report.chains_checked), (5, 5, 2));

    let mut wrong = commit.entries[1].clone();
    wrong.frame = commit.entries[2].frame.clone();
    let mut orphan = commit.entries[3].clone();
    orphan.seq = 99;
    store.put(&[wrong, orphan]).expect("put");
    store.remove(ChannelId(2), 1, 1).expect("removed");
    let report = reconcile::reconcile(&*metadata, &*store, &*store, &[]).expect("walked");
    assert_eq!(report.hash_mismatch.examples, [(ChannelId(1), 1, 2)]);
    assert_eq!(report.orphan_content.examples, [(ChannelId(1), 1, 99)]);
    assert_eq!(report.missing_content.examples, [(ChannelId(2), 1, 1)]);
    assert!(!report.is_clean());

    let id_of = |frame: &[u8]| -> Option<MessageId> {
        commit.entries.iter().find(|entry| entry.frame == frame).map(|entry| entry.message_id)
    };
    let range =
        read::verified_range(&*metadata, &*store, &id_of, ChannelId(1), (1, 4), 10, 9999).expect("read");
    assert_eq!(range.frames.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [4, 3, 1]);
    assert_eq!(range.damaged, [2]);
}

#[test]
fn recovered_rows_are_drained_and_deleted() {
    let folder = tempfile::tempdir().expect("folder");
    let opened = embedded::open(folder.path(), &options()).expect("opened");
    let lease = opened.metadata.take(0).expect("taken");
    let mut script = Script::new(0, lease.term);
    opened.metadata.commit(&[script.create(&[1])], &[]).expect("committed");
    for round in 0..5 {
        opened.metadata.commit(&[script.messages(&[1], &round.to_string())], &[]).expect("committed");
    }
    drop(opened);
    let opened = embedded::open(folder.path(), &options()).expect("opened");
    assert_eq!(opened.recovered.len(), 6);
    let store = Arc::clone(&opened.store);
    let drains = Drains::start(
        opened.metadata.clone(),
        store.clone(),
        store.clone(),
        store.clone(),
        opened.recovered,
        Box::new(|_| ()),
    )
    .expect("started");
    drains.stop();
    assert!(opened.metadata.outbox().expect("read").is_empty());
    assert_eq!(store.range(ChannelId(1), 1, 9, 9, 999).expect("read").len(), 5);
}
