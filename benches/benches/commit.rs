//! Group `commit`: the embedded metadata store's group commit, of which the flush is the acknowledgement, beside a plain
//! SQLite transaction of the same rows and beside a bare file write of as many bytes with one sync. All on the disk that
//! holds the build's folder.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fanfare_benches::{RUN, SAMPLES, WARM_UP, frames};
use fanfare_proto::{ChannelId, MessageId, UserId};
use fanfare_storage::{
    embedded::{self, SqliteMetadata},
    hash,
    metadata::Metadata,
    model::{Channel, Entry, EntryKind, Hash, HeadMove, OutboxRow, ShardCommit},
    ownership::Ownership,
};
use rusqlite::{Connection, params};

/// Channels that are busy at once; a commit of more entries moves some heads by two.
const CHANNELS: u64 = 1_000;
/// Entries in a commit.
const SIZES: [u64; 3] = [1, 64, 1_024];
/// Bytes of the file that the bare writes go round in, written in advance.
const FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Pages of the bare database's log after which it starts over, outside of what is measured: as of the store's.
const LOG_PAGES_MAX: i64 = 4 * 1024;
/// What an entry and its head take beside its frame, bytes: the row, the directory's line, the head's row.
const ROWS_BYTES: usize = 160 + 109 + 80;

/// Makes commits, one after the other, over all channels in turn.
struct Entries {
    heads: Vec<(u64, Hash)>,
    frame: Bytes,
    frame_hash: Hash,
    id: u64,
}

impl Entries {
    fn new() -> Self {
        let frame = frames::deliver(ChannelId(1), 1);
        let frame_hash = hash::frame(&frame);
        Self { heads: vec![(0, hash::CHAIN_START); CHANNELS as usize], frame, frame_hash, id: 0 }
    }

    fn commit(&mut self, term: u64, size: u64) -> ShardCommit {
        let mut commit = ShardCommit { shard: 0, term, ..ShardCommit::default() };
        for _ in 0..size {
            self.id += 1;
            let place = self.id % CHANNELS;
            let (head, chain) = &mut self.heads[place as usize];
            *head += 1;
            *chain = hash::chain(chain, 1, *head, &self.frame_hash);
            let (channel, message_id) = (ChannelId(place + 1), MessageId(self.id));
            commit.entries.push(Entry {
                message_id,
                channel,
                epoch: 1,
                seq: *head,
                ordinal: *head,
                kind: EntryKind::Message,
                sender: UserId(5),
                client_id: [4; 16],
                target: 0,
                hash: self.frame_hash,
                frame: self.frame.clone(),
            });
            // Found where the commit has come round: the channel is in it already.
            let nth = commit.entries.len() - 1;
            if let Some(moved) = commit.heads.get_mut(nth % CHANNELS as usize) {
                (moved.head, moved.ordinal, moved.message_id, moved.chain) =
                    (*head, *head, message_id, *chain);
            } else {
                let (head, chain) = (*head, *chain);
                commit.heads.push(HeadMove {
                    channel,
                    epoch: 1,
                    first_seq: head,
                    head,
                    ordinal: head,
                    message_id,
                    chain,
                });
            }
        }
        commit.last_id = self.id;
        commit
    }
}

fn channel(id: u64) -> Channel {
    Channel {
        channel: ChannelId(id),
        kind: 2,
        name: String::new(),
        history: 1,
        join: 1,
        posting: 1,
        pair: (UserId(0), UserId(0)),
        epoch: 1,
        epoch_start: 1,
        head: 0,
        ordinal: 0,
        message_id: MessageId(0),
        chain: hash::CHAIN_START,
    }
}

/// The store itself. Each commit takes the last one's outbox row away, as if it had been drained.
struct Store {
    metadata: Arc<SqliteMetadata>,
    term: u64,
    entries: Entries,
    drained: Option<OutboxRow>,
}

impl Store {
    fn new(folder: &Path) -> Self {
        let opened = embedded::open(folder, &embedded::Options::default()).expect("an empty folder");
        let metadata = opened.metadata;
        let term = metadata.take(0).expect("the folder is ours").term;
        let channels = (1..=CHANNELS).map(channel).collect();
        let first = ShardCommit { term, channels, ..ShardCommit::default() };
        let drained = metadata.commit(&[first], &[]).expect("there is room");
        Self { metadata, term, entries: Entries::new(), drained }
    }

    fn measure(&mut self, turns: u64, size: u64) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..turns {
            let commit = [self.entries.commit(self.term, size)];
            let start = Instant::now();
            self.drained = self.metadata.commit(&commit, self.drained.as_slice()).expect("there is room");
            spent += start.elapsed();
        }
        spent
    }
}

/// The same rows in a plain transaction: the same tables, log and flush, nothing around them.
struct Plain {
    connection: Connection,
    entries: Entries,
    row: i64,
}

impl Plain {
    fn new(folder: &Path) -> Self {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(folder.join("plain.db"))?;
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
            connection.pragma_update(None, "cache_size", -16 * 1024)?;
            connection.execute_batch(include_str!("../../storage/migrations/meta/0001.sql"))?;
            for channel in 1..=CHANNELS as i64 {
                let insert = "INSERT INTO heads (channel, epoch, head, ordinal, message_id, chain) VALUES (?, 1, 0, 0, 0, ?)";
                connection.prepare_cached(insert)?.execute(params![channel, hash::CHAIN_START])?;
            }
            Ok(connection)
        };
        Self { connection: open().expect("an empty folder"), entries: Entries::new(), row: 0 }
    }

    fn measure(&mut self, turns: u64, size: u64) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..turns {
            let commit = self.entries.commit(1, size);
            let body = commit.entries.iter().flat_map(|entry| entry.frame.to_vec()).collect::<Vec<u8>>();
            let start = Instant::now();
            self.write(&commit, &body).expect("there is room");
            spent += start.elapsed();
            self.start_log_over().expect("nobody reads");
        }
        spent
    }

    fn write(&mut self, commit: &ShardCommit, body: &[u8]) -> rusqlite::Result<()> {
        self.row += 1;
        let transaction = self.connection.transaction()?;
        {
            let mut update = transaction.prepare_cached(
                "UPDATE heads SET head = ?, ordinal = ?, message_id = ?, chain = ? WHERE channel = ? AND head = ?",
            )?;
            for head in &commit.heads {
                let moved = update.execute(params![
                    head.head as i64,
                    head.ordinal as i64,
                    head.message_id.0 as i64,
                    head.chain,
                    head.channel.0 as i64,
                    head.first_seq as i64 - 1
                ])?;
                assert_eq!(moved, 1, "heads move by compare-and-set");
            }
            let mut insert =
                transaction.prepare_cached("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
            for entry in &commit.entries {
                insert.execute(params![
                    entry.message_id.0 as i64,
                    entry.channel.0 as i64,
                    entry.epoch,
                    entry.seq as i64,
                    entry.ordinal as i64,
                    entry.kind as u8,
                    entry.sender.0 as i64,
                    entry.client_id,
                    entry.target as i64,
                    entry.hash
                ])?;
            }
            transaction
                .prepare_cached("INSERT INTO outbox VALUES (?, 0, 0, ?)")?
                .execute(params![self.row, body])?;
            transaction.prepare_cached("DELETE FROM outbox WHERE number = ?")?.execute([self.row - 1])?;
        }
        transaction.commit()
    }

    fn start_log_over(&self) -> rusqlite::Result<()> {
        let log = "PRAGMA wal_checkpoint(PASSIVE)";
        if self.row % 16 == 0
            && self.connection.query_row(log, [], |row| row.get::<_, i64>(1))? > LOG_PAGES_MAX
        {
            self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}

/// As many bytes, over and over the same file.
struct Bare {
    file: File,
    at: u64,
}

impl Bare {
    fn new(folder: &Path) -> Self {
        let file = File::create(folder.join("bare")).expect("an empty folder");
        file.write_all_at(&vec![1; FILE_BYTES as usize], 0).expect("there is room");
        file.sync_all().expect("the disk works");
        Self { file, at: 0 }
    }

    fn measure(&mut self, turns: u64, bytes: usize) -> Duration {
        let buffer = vec![2; bytes];
        let mut spent = Duration::ZERO;
        for _ in 0..turns {
            if self.at + bytes as u64 > FILE_BYTES {
                self.at = 0;
            }
            let start = Instant::now();
            self.file.write_all_at(&buffer, self.at).expect("there is room");
            self.file.sync_data().expect("the disk works");
            spent += start.elapsed();
            self.at += bytes as u64;
        }
        spent
    }
}

fn commit(criterion: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's folder is ours");
    let mut store = Store::new(&folder.path().join("store"));
    let mut plain = Plain::new(folder.path());
    let mut bare = Bare::new(folder.path());
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("commit/{size} entries"));
        group.throughput(Throughput::Elements(size));
        group.bench_function("store", |bench| bench.iter_custom(|turns| store.measure(turns, size)));
        group.bench_function("floor: plain SQLite", |bench| {
            bench.iter_custom(|turns| plain.measure(turns, size))
        });
        let bytes = (frames::deliver(ChannelId(1), 1).len() + ROWS_BYTES) * size as usize;
        group.bench_function("floor: write and fdatasync", |bench| {
            bench.iter_custom(|turns| bare.measure(turns, bytes));
        });
    }
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(SAMPLES).warm_up_time(WARM_UP).measurement_time(RUN);
    targets = commit
}
criterion_main!(group);
