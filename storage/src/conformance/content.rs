//! Checks of content, lists, log and drains.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{ChannelId, MessageId, ShardId, UserId, ids::IdSource};

use super::{Script, Stores, metadata::begin};
use crate::{
    drain::Drains,
    hash,
    model::{Entry, EntryKind, ListChange},
};

/// Long enough for any sound drain.
const PATIENCE: Duration = Duration::from_secs(30);

fn entry(channel: u64, epoch: u32, seq: u64) -> Entry {
    let frame = Bytes::from(format!("{channel}/{epoch}/{seq}"));
    Entry {
        message_id: MessageId(channel * 1000 + u64::from(epoch) * 100 + seq),
        channel: ChannelId(channel),
        epoch,
        seq,
        ordinal: seq,
        kind: EntryKind::Message,
        sender: UserId(1),
        client_id: [3; 16],
        target: 0,
        hash: hash::frame(&frame),
        frame,
    }
}

fn amending(channel: u64, seq: u64, kind: EntryKind, target: u64) -> Entry {
    Entry { kind, target, ..entry(channel, 1, seq) }
}

fn seqs(stores: &Stores, channel: u64, first: u64, last: u64, limit: usize, bytes: usize) -> Vec<u64> {
    let found = stores.content.range(ChannelId(channel), first, last, limit, bytes).expect("read");
    found.iter().map(|stored| stored.seq).collect()
}

pub fn ranges_come_newest_first(stores: &Stores) {
    let mut entries: Vec<Entry> = (1..=20).map(|seq| entry(5, 1, seq)).collect();
    entries.extend((1..=3).map(|seq| entry(6, 1, seq)));
    stores.content.put(&entries).expect("put");
    stores.content.flush().expect("flushed");
    assert_eq!(seqs(stores, 5, 1, u64::MAX, 100, usize::MAX), (1..=20).rev().collect::<Vec<_>>());
    assert_eq!(seqs(stores, 5, 8, 11, 100, usize::MAX), [11, 10, 9, 8]);
    assert_eq!(seqs(stores, 5, 1, 20, 3, usize::MAX), [20, 19, 18]);
    assert_eq!(seqs(stores, 5, 1, 20, 100, 1), [20], "at least one, whatever the bytes");
    assert!(seqs(stores, 5, 1, 20, 100, 30).len() < 20, "about so many bytes");
    assert_eq!(seqs(stores, 6, 0, u64::MAX, 100, usize::MAX), [3, 2, 1], "other channels' frames stay out");
    assert_eq!(seqs(stores, 7, 0, u64::MAX, 100, usize::MAX), []);
    assert_eq!(seqs(stores, 5, 9, 8, 100, usize::MAX), []);
    assert_eq!(seqs(stores, 5, 1, 20, 0, usize::MAX), []);
    let found = stores.content.range(ChannelId(5), 20, 20, 1, usize::MAX).expect("read");
    assert_eq!(found[0].frame, entry(5, 1, 20).frame);
}

pub fn highest_epoch_wins(stores: &Stores) {
    stores.content.put(&[entry(5, 2, 3), entry(5, 1, 2), entry(5, 1, 3), entry(5, 1, 4)]).expect("put");
    let found = stores.content.range(ChannelId(5), 1, 9, 9, usize::MAX).expect("read");
    let found: Vec<_> = found.iter().map(|stored| (stored.seq, stored.epoch)).collect();
    assert_eq!(found, [(4, 1), (3, 2), (2, 1)]);
    let limited = stores.content.range(ChannelId(5), 1, 9, 3, usize::MAX).expect("read");
    assert_eq!(limited.len(), 3, "older epochs do not count against the limit");
}

pub fn amendments_stand_under_their_target(stores: &Stores) {
    let entries = [
        entry(5, 1, 1),
        entry(5, 1, 2),
        amending(5, 3, EntryKind::Edit, 1),
        amending(5, 4, EntryKind::Reaction, 2),
        amending(5, 5, EntryKind::Recall, 1),
        amending(6, 2, EntryKind::Edit, 1),
    ];
    stores.content.put(&entries).expect("put");
    stores.content.put(&entries).expect("put again");
    let found = |first, last, limit| -> Vec<(u64, u64, EntryKind)> {
        let found = stores.content.amendments(ChannelId(5), first, last, limit).expect("read");
        for amendment in &found {
            assert_eq!(amendment.frame, entry(5, 1, amendment.seq).frame);
        }
        found.iter().map(|amendment| (amendment.target, amendment.seq, amendment.kind)).collect()
    };
    let all = [(1, 3, EntryKind::Edit), (1, 5, EntryKind::Recall), (2, 4, EntryKind::Reaction)];
    assert_eq!(found(1, 9, 10), all);
    assert_eq!(found(1, 1, 10), all[..2]);
    assert_eq!(found(2, 2, 10), all[2..]);
    assert_eq!(found(1, 9, 2), all[..2]);
    assert_eq!(found(3, 9, 10), []);
    let newest = |target| {
        let found = stores.content.newest_amendment(ChannelId(5), target).expect("read");
        found.map(|amendment| (amendment.seq, amendment.kind))
    };
    assert_eq!(newest(1), Some((5, EntryKind::Recall)));
    assert_eq!(newest(2), Some((4, EntryKind::Reaction)));
    assert_eq!(newest(3), None);
    // They are entries of their channel as well.
    assert_eq!(seqs(stores, 5, 1, 9, 10, usize::MAX), [5, 4, 3, 2, 1]);
    stores.content.remove(ChannelId(5), 5, 1).expect("removed");
    assert_eq!(found(1, 1, 10), all[..1]);
}

pub fn content_put_twice_stands_once(stores: &Stores) {
    let entries: Vec<Entry> = (1..=5).map(|seq| entry(5, 1, seq)).collect();
    for _ in 0..3 {
        stores.content.put(&entries).expect("put");
        stores.content.put(&entries[2..4]).expect("put");
        stores.content.flush().expect("flushed");
    }
    assert_eq!(seqs(stores, 5, 1, 9, 100, usize::MAX), [5, 4, 3, 2, 1]);
    assert_eq!(stores.content.walk(None, 100).expect("walked").len(), 5);
    stores.content.put(&[]).expect("nothing to put");
}

pub fn frames_are_walked_and_removed(stores: &Stores) {
    stores.content.put(&[entry(5, 1, 1), entry(5, 1, 2), entry(5, 2, 2), entry(6, 1, 1)]).expect("put");
    let mut walked = Vec::new();
    loop {
        let page = stores.content.walk(walked.last().copied(), 3).expect("walked");
        if page.is_empty() {
            break;
        }
        walked.extend(page);
    }
    let all: HashSet<_> = walked.iter().copied().collect();
    let five = ChannelId(5);
    assert_eq!(all, HashSet::from([(five, 1, 1), (five, 2, 1), (five, 2, 2), (ChannelId(6), 1, 1)]));
    assert_eq!(walked.len(), 4, "each once");
    stores.content.remove(five, 2, 2).expect("removed");
    stores.content.remove(five, 2, 2).expect("gone already");
    let left = stores.content.range(five, 2, 2, 9, usize::MAX).expect("read");
    assert_eq!((left.len(), left[0].epoch), (1, 1));
}

pub fn lists_keep_the_newest(stores: &Stores) {
    let change =
        |channel: u64, seq, listed| ListChange { user: UserId(4), channel: ChannelId(channel), seq, listed };
    let list = || stores.lists.list(UserId(4)).expect("read");
    let apply = |changes: &[ListChange]| {
        stores.lists.apply(changes).expect("applied");
        stores.lists.flush_lists().expect("flushed");
    };
    apply(&[change(2, 1, true), change(1, 1, true), change(3, 7, false)]);
    assert_eq!(list(), [ChannelId(1), ChannelId(2)]);
    apply(&[change(1, 5, false)]);
    assert_eq!(list(), [ChannelId(2)]);
    apply(&[change(1, 4, true)]);
    assert_eq!(list(), [ChannelId(2)], "an older change, repeated by a drain");
    apply(&[change(1, 6, true), change(2, 9, false), change(2, 8, true)]);
    assert_eq!(list(), [ChannelId(1)], "within one batch, too");
    apply(&[change(1, 6, true)]);
    assert_eq!(list(), [ChannelId(1)], "the same once more");
    assert_eq!(stores.lists.list(UserId(5)).expect("read"), []);
}

pub fn log_is_contiguous(stores: &Stores) {
    let partitions = stores.log.partitions();
    assert!(partitions > 0);
    let partition = stores.log.partition_of(3);
    assert!(partition < partitions);
    assert_eq!(stores.log.end(partition).expect("read"), 0);
    assert!(stores.log.read(partition, 0, 10).expect("read").is_empty());
    let channel = IdSource::new(ShardId(3), 0).next(1);
    let entries: Vec<Entry> = (1..=10).map(|seq| entry(channel, 1, seq)).collect();
    stores.content.put(&entries).expect("put");
    stores.log.append(&entries[..4]).expect("appended");
    stores.log.append(&[]).expect("nothing to append");
    stores.log.append(&entries[4..]).expect("appended");
    stores.log.flush_log().expect("flushed");
    assert_eq!(stores.log.end(partition).expect("read"), 10);
    let records = stores.log.read(partition, 0, 100).expect("read");
    assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    for (record, entry) in records.iter().zip(&entries) {
        assert_eq!(format!("{:?}", record.entry), format!("{entry:?}"));
    }
    let some = stores.log.read(partition, 7, 2).expect("read");
    assert_eq!(some.iter().map(|record| record.entry.seq).collect::<Vec<_>>(), [8, 9]);
    // A repeated batch stands twice; readers drop it.
    stores.log.append(&entries[8..]).expect("appended");
    assert_eq!(stores.log.end(partition).expect("read"), 12);
    stores.log.truncate(partition, 11).expect("truncated");
    let left = stores.log.read(partition, 0, 100).expect("read");
    assert_eq!(left.iter().map(|record| record.offset).collect::<Vec<_>>(), [11]);
    stores.log.truncate(partition, 100).expect("truncated");
    stores.log.append(&entries[..1]).expect("appended");
    assert_eq!(stores.log.read(partition, 0, 9).expect("read")[0].offset, 12, "offsets never begin again");
}

pub fn consumer_offsets_are_kept(stores: &Stores) {
    assert_eq!(stores.log.offset("push", 0).expect("read"), 0);
    stores.log.commit_offset("push", 0, 12).expect("noted");
    stores.log.commit_offset("presence", 0, 3).expect("noted");
    assert_eq!(stores.log.offset("push", 0).expect("read"), 12);
    assert_eq!(stores.log.offset("presence", 0).expect("read"), 3);
    if stores.log.partitions() > 1 {
        assert_eq!(stores.log.offset("push", 1).expect("read"), 0);
    }
}

pub fn drains_may_repeat(stores: &Stores) {
    let mut script: Script = begin(stores);
    let told = Arc::new(Mutex::new(HashSet::new()));
    let start = |recovered| {
        let told = Arc::clone(&told);
        Drains::start(
            Arc::clone(&stores.metadata),
            Arc::clone(&stores.content),
            Arc::clone(&stores.lists),
            Arc::clone(&stores.log),
            recovered,
            Box::new(move |rows| told.lock().expect("no panic").extend(rows.iter().copied())),
        )
        .expect("started")
    };
    let drains = start(stores.metadata.outbox().expect("read"));
    let mut entries = Vec::new();
    let mut rows = Vec::new();
    for round in 0..50_u64 {
        let mut commit = script.messages(&[1, 2, 3, 1], &round.to_string());
        commit.lists.push(ListChange {
            user: UserId(8),
            channel: ChannelId(round % 3),
            seq: round,
            listed: round % 2 == 0,
        });
        let row =
            stores.metadata.commit(std::slice::from_ref(&commit), &drains.take_drained()).expect("committed");
        let row = row.expect("a row");
        drains.offer(Script::batch(&commit, row));
        rows.push(row);
        entries.extend(commit.entries);
    }
    assert!(drains.wait_until_drained(PATIENCE), "{:?}", drains.status());
    assert_eq!(drains.status().entries_behind, 0);
    drains.stop();
    assert!(rows.iter().all(|row| told.lock().expect("no panic").contains(row)), "not all rows were told");
    assert!(stores.metadata.outbox().expect("read").is_empty(), "stopping deletes what is drained");

    let look = |stores: &Stores| {
        let frames: Vec<_> = (1..=3)
            .map(|id| stores.content.range(ChannelId(id), 1, 999, 999, usize::MAX).expect("read"))
            .collect();
        (frames, stores.lists.list(UserId(8)).expect("read"))
    };
    let before = look(stores);
    assert_eq!(before.0.iter().map(Vec::len).sum::<usize>(), entries.len());
    // All rows once more, as after a crash before they were deleted.
    let again = start(vec![]);
    let mut commit = script.empty();
    commit.entries.clone_from(&entries);
    again.offer(Script::batch(&commit, rows[0]));
    assert!(again.wait_until_drained(PATIENCE), "{:?}", again.status());
    again.stop();
    assert_eq!(look(stores), before);
}
