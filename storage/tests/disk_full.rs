//! The embedded stores on a disk that fills up and is freed again: nothing half done, nothing lost, no restart needed.
//! Needs to mount a tmpfs; says so and passes where it may not.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fanfare_proto::ChannelId;
use fanfare_storage::{
    StoreError,
    conformance::Script,
    content::Content,
    drain::{Bounds, Drains, Room},
    embedded::{self, Options},
    metadata::Metadata,
    ownership::Ownership,
    reconcile::reconcile,
};

/// Room for what the stores themselves come to where the rounds are slow: SQLite goes on in pages that it has.
const DISK_MIB: u64 = 512;
const MIB: u64 = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        let size = format!("size={DISK_MIB}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "fanfare-test"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            _ => None,
        }
    }

    fn free(&self) -> u64 {
        let room = rustix::fs::statvfs(&self.0).expect("there");
        room.f_bavail * room.f_frsize
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        use std::io::Write;
        let mut ballast =
            File::options().create(true).append(true).open(self.0.join("ballast")).expect("opened");
        while self.free() > left {
            let more = (self.free() - left).min(MIB) as usize;
            if ballast.write_all(&vec![1; more]).is_err() {
                break;
            }
        }
    }

    fn relieve(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_is_read_only_and_heals() {
    let place = tempfile::tempdir().expect("folder");
    let Some(disk) = Disk::mount(place.path()) else {
        println!("skipped: may not mount a tmpfs");
        return;
    };
    let options = Options { reserve_bytes: 8 * MIB, ..Options::default() };
    let opened = embedded::open(&place.path().join("data"), &options).expect("opened");
    let (metadata, store) = (opened.metadata, opened.store);
    let bounds = Bounds { linger: Duration::from_millis(5), ..Bounds::default() };
    // What would have ended the process.
    let fatal = Arc::new(Mutex::new(None));
    let ended = fatal.clone();
    let drains = Drains::start_with(
        metadata.clone(),
        store.clone(),
        store.clone(),
        store.clone(),
        Vec::new(),
        Box::new(|_| ()),
        bounds,
        Box::new(move |error| *ended.lock().expect("not poisoned") = Some(error.to_string())),
    )
    .expect("started");
    let lease = metadata.take(0).expect("taken");
    let mut script = Script::new(0, lease.term);
    metadata.commit(&[script.create(&[1])], &[]).expect("committed");
    let tag = "x".repeat(4000);
    let mut acknowledged = 0;
    let mut commit = |acknowledged: &mut u64| -> Result<(), StoreError> {
        let head = metadata.channel(ChannelId(1))?.expect("there");
        assert_eq!(head.head, *acknowledged, "a refused commit moved the head");
        script.resume(&head, metadata.shard(0)?.1);
        let commit = script.messages(&[1; 16], &tag);
        let row = metadata.commit(std::slice::from_ref(&commit), &[])?;
        *acknowledged += 16;
        drains.offer(Script::batch(&commit, row.expect("a row")));
        Ok(())
    };
    for _ in 0..20 {
        commit(&mut acknowledged).expect("committed");
    }
    assert!(drains.wait_until_drained(PATIENCE));

    for round in 0..3 {
        // Below the content store's reserve: the outbox takes what comes until the disk is full.
        disk.fill(4 * MIB);
        let until = Instant::now() + PATIENCE;
        loop {
            match commit(&mut acknowledged) {
                Ok(()) => assert!(Instant::now() < until, "round {round}: never full"),
                Err(StoreError::Full(_)) => break,
                Err(error) => panic!("round {round}: {error}"),
            }
            disk.fill(0);
        }
        for _ in 0..5 {
            let error = commit(&mut acknowledged).expect_err("full");
            assert!(matches!(error, StoreError::Full(_)), "round {round}: {error}");
        }
        // A drain that has something to move says so; else the refused commits do.
        let until = Instant::now() + PATIENCE;
        while drains.room() != Room::ReadOnly && drains.status().rows_behind > 0 {
            assert!(Instant::now() < until, "round {round}: {:?}", drains.status());
            std::thread::yield_now();
        }
        // History is served.
        let found = store.range(ChannelId(1), 1, 16, 16, usize::MAX).expect("read");
        assert_eq!(found.len(), 16);

        disk.relieve();
        let drained = drains.wait_until_drained(PATIENCE);
        assert_eq!(*fatal.lock().expect("not poisoned"), None, "round {round}");
        assert!(drained, "round {round}: {:?}", drains.status());
        assert_eq!(drains.room(), Room::Yes, "round {round}");
        commit(&mut acknowledged).expect("there is room again");
    }
    drains.stop();
    let undrained = metadata.outbox().expect("read");
    let report = reconcile(&*metadata, &*store, &*store, &undrained).expect("walked");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.entries_checked, acknowledged);
}

/// fjall refuses everything after a write without room until it is opened again: the store does that by itself.
#[test]
fn the_content_store_heals_where_even_its_reserve_was_gone() {
    let place = tempfile::tempdir().expect("folder");
    let Some(disk) = Disk::mount(place.path()) else {
        println!("skipped: may not mount a tmpfs");
        return;
    };
    let options = Options { reserve_bytes: 0, ..Options::default() };
    let data = place.path().join("data");
    let opened = embedded::open(&data, &options).expect("opened");
    let store = opened.store;
    let mut script = Script::new(0, 1);
    let tag = "x".repeat(4000);
    let mut kept = Vec::new();
    for round in 0..3 {
        let sound = script.messages(&[1; 16], &tag).entries;
        store.put(&sound).expect("put");
        store.flush().expect("flushed");
        kept.extend(sound);
        disk.fill(0);
        let lost = script.messages(&[1; 64], &tag).entries;
        let until = Instant::now() + PATIENCE;
        // Pages of the journal that are there already may still be written.
        while store.put(&lost).is_ok() {
            assert!(Instant::now() < until, "round {round}: never full");
        }
        for _ in 0..3 {
            let error = store.put(&lost).expect_err("full");
            assert!(matches!(error, StoreError::Full(_)), "round {round}: {error}");
        }
        disk.relieve();
        store.put(&lost).expect("there is room again");
        let error = store.flush().expect_err("what was put before may be gone: once more");
        assert!(matches!(error, StoreError::Unavailable(_)), "round {round}: {error}");
        store.put(&lost).expect("put");
        store.flush().expect("flushed");
        kept.extend(lost);
    }
    let found = store.range(ChannelId(1), 1, u64::MAX, usize::MAX, usize::MAX).expect("read");
    assert_eq!(found.len(), kept.len());
    for (found, kept) in found.iter().rev().zip(&kept) {
        assert_eq!((found.seq, &found.frame), (kept.seq, &kept.frame));
    }

    // Started on a full disk, history is served.
    drop((store, opened.metadata));
    disk.fill(MIB);
    let opened = embedded::open(&data, &options).expect("opened");
    let found = opened.store.range(ChannelId(1), 1, u64::MAX, usize::MAX, usize::MAX).expect("read");
    assert_eq!(found.len(), kept.len());
}
