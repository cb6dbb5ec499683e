//! The floor of durable sends: one thread that writes batches into the stores themselves, without a server. It runs where the
//! server runs, in a process of its own.
//!
//! A batch is what the server's group commit writes of as many messages: in SQLite ten columns an entry in arrival order, heads
//! moved by compare-and-set and one blob row, flushed by COMMIT; then the frames in fjall, flushed by its own sync.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::measure::{
    floor::{line, say},
    machine::Cores,
};

/// Bytes of an entry's line in the blob row, beside its frame.
const LINE_BYTES: usize = 109;
/// Page cache of SQLite, KiB; pages in its log at which they move into the file; memtable of fjall, bytes: as the server has them.
const CACHE_KIB: i64 = 16 * 1024;
const LOG_PAGES: i64 = 4 * 1024;
const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Journals that fjall keeps, bytes.
const JOURNALS_BYTES: u64 = 192 * 1024 * 1024;

const SCHEMA: &str = "
    CREATE TABLE heads (channel INTEGER PRIMARY KEY, epoch INTEGER, head INTEGER, ordinal INTEGER, message_id INTEGER, chain BLOB);
    CREATE TABLE entries (message_id INTEGER PRIMARY KEY, channel INTEGER, epoch INTEGER, seq INTEGER, ordinal INTEGER,
                          kind INTEGER, sender INTEGER, client_id BLOB, target INTEGER, hash BLOB);
    CREATE TABLE outbox (number INTEGER PRIMARY KEY, shard INTEGER, committed_ms INTEGER, body BLOB);";

/// What the measurement asks of the loop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Messages of a batch.
    pub batch: usize,
    /// Channels that they are in, alike.
    pub channels: usize,
    /// Bytes of a message's frame.
    pub frame_bytes: usize,
    /// How long it goes on, in milliseconds.
    pub for_ms: u64,
}

/// What the loop did.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// Messages written, durable in both.
    pub messages: u64,
    /// From the first batch's begin to the last one's end, in nanoseconds,
    pub elapsed_ns: u64,
    /// and the part of it in SQLite.
    pub sqlite_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Ready {
    ready: bool,
}

/// Its process.
pub struct Floor {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts it on fresh stores in `folder`.
    pub fn start(cores: &Cores, folder: &Path) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut child = cores.as_server(|| {
            let mut command = Command::new(&own);
            command.arg("floor-store").arg("--folder").arg(folder);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().context("cannot start the floor")
        })?;
        let orders = child.stdin.take().context("it is piped")?;
        let mut answers = BufReader::new(child.stdout.take().context("it is piped")?);
        let _: Ready = line(&mut answers)?;
        Ok(Self { child, orders, answers })
    }

    /// Runs the loop. Blocks.
    pub fn run(&mut self, order: Order) -> Result<Taken> {
        writeln!(self.orders, "{}", serde_json::to_string(&order)?).context("the floor is gone")?;
        line(&mut self.answers)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What its process takes.
#[derive(clap::Args, Clone, Debug)]
pub struct FloorStore {
    /// Where the stores are made.
    #[arg(long)]
    pub folder: PathBuf,
}

/// The loop's process: `loadgen floor-store`.
pub fn run(arguments: &FloorStore) -> Result<()> {
    let mut stores = Stores::open(&arguments.folder)?;
    say(&Ready { ready: true })?;
    let mut orders = BufReader::new(std::io::stdin());
    let mut text = String::new();
    while orders.read_line(&mut text)? > 0 {
        let order: Order = serde_json::from_str(&text).context("a broken order")?;
        text.clear();
        say(&stores.batches(order)?)?;
    }
    Ok(())
}

/// One message as the stores take it.
struct Entry {
    id: i64,
    channel: usize,
    seq: i64,
    hash: [u8; 32],
}

struct Stores {
    sqlite: Connection,
    fjall: Database,
    content: Keyspace,
    /// The newest seq of each channel.
    heads: Vec<i64>,
    id: i64,
    row: i64,
    random: u64,
}

impl Stores {
    fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let sqlite = Connection::open(folder.join("floor.db"))?;
        sqlite.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        sqlite.pragma_update(None, "synchronous", "FULL")?;
        sqlite.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
        sqlite.pragma_update(None, "cache_size", -CACHE_KIB)?;
        sqlite.execute_batch(SCHEMA)?;
        let fjall =
            Database::builder(folder.join("floor.fjall")).max_journaling_size(JOURNALS_BYTES).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let content = fjall.keyspace("content", options)?;
        Ok(Self { sqlite, fjall, content, heads: Vec::new(), id: 0, row: 0, random: 0x9e37_79b9_7f4a_7c15 })
    }

    fn batches(&mut self, order: Order) -> Result<Taken> {
        ensure!(order.batch > 0 && order.channels > 0, "a batch of nothing");
        while self.heads.len() < order.channels {
            self.sqlite
                .prepare_cached("INSERT INTO heads VALUES (?, 1, 0, 0, 0, ?)")?
                .execute(params![self.heads.len() as i64, [0_u8; 32]])?;
            self.heads.push(0);
        }
        let until = Duration::from_millis(order.for_ms);
        let mut taken = Taken { messages: 0, elapsed_ns: 0, sqlite_ns: 0 };
        let began = Instant::now();
        while began.elapsed() < until {
            let entries = self.entries(order);
            let at = Instant::now();
            self.write_sqlite(&entries, order)?;
            taken.sqlite_ns += at.elapsed().as_nanos() as u64;
            self.write_fjall(&entries, order)?;
            taken.messages += entries.len() as u64;
        }
        taken.elapsed_ns = began.elapsed().as_nanos() as u64;
        Ok(taken)
    }

    fn entries(&mut self, order: Order) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(order.batch);
        for number in 0..order.batch {
            let channel = number % order.channels;
            self.id += 1;
            self.heads[channel] += 1;
            let mut hash = [0; 32];
            hash.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_be_bytes()));
            entries.push(Entry { id: self.id, channel, seq: self.heads[channel], hash });
        }
        entries
    }

    /// What does not compress, as a hash.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn write_sqlite(&mut self, entries: &[Entry], order: Order) -> Result<()> {
        self.row += 1;
        let transaction = self.sqlite.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO entries VALUES (?, ?, 1, ?, ?, 1, ?, ?, 0, ?)")?;
            for Entry { id, channel, seq, hash } in entries {
                insert.execute(params![id, *channel as i64, seq, seq, *channel as i64, &hash[..16], hash])?;
            }
            let mut update = transaction.prepare_cached(
                "UPDATE heads SET head = ?, ordinal = ?, message_id = ?, chain = ? WHERE channel = ? AND head = ? AND epoch = 1",
            )?;
            for channel in 0..order.channels.min(entries.len()) {
                let count = entries.iter().skip(channel).step_by(order.channels).count();
                let newest = &entries[channel + (count - 1) * order.channels];
                let expected = newest.seq - count as i64;
                let moved = update.execute(params![
                    newest.seq,
                    newest.seq,
                    newest.id,
                    newest.hash,
                    channel as i64,
                    expected
                ])?;
                ensure!(moved == 1, "a head was not where it was left");
            }
            let body = vec![b'0'; entries.len() * (LINE_BYTES + order.frame_bytes)];
            transaction
                .prepare_cached("INSERT INTO outbox VALUES (?, 0, 0, ?)")?
                .execute(params![self.row, body])?;
        }
        Ok(transaction.commit()?)
    }

    fn write_fjall(&self, entries: &[Entry], order: Order) -> Result<()> {
        let mut batch = self.fjall.batch();
        for entry in entries {
            let mut key = [0; 20];
            key[..8].copy_from_slice(&(entry.channel as u64).to_be_bytes());
            key[8..16].copy_from_slice(&(!entry.seq).to_be_bytes());
            let mut frame = vec![b'0'; order.frame_bytes];
            let end = frame.len().min(entry.hash.len());
            frame[..end].copy_from_slice(&entry.hash[..end]);
            batch.insert(&self.content, key, frame);
        }
        batch.commit()?;
        Ok(self.fjall.persist(PersistMode::SyncData)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_is_in_both_stores_and_heads_follow() {
        let folder = std::env::temp_dir().join(format!("fanfare-floor-{}", std::process::id()));
        let mut stores = Stores::open(&folder).unwrap();
        let order = Order { batch: 10, channels: 4, frame_bytes: 200, for_ms: 30 };
        let first = stores.batches(order).unwrap();
        let second = stores.batches(Order { batch: 3, ..order }).unwrap();
        let messages = (first.messages + second.messages) as i64;
        assert!(first.messages >= 10 && second.messages >= 3 && first.sqlite_ns < first.elapsed_ns);
        let one = |sql: &str| stores.sqlite.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(one("SELECT count(*) FROM entries"), messages);
        assert_eq!(one("SELECT sum(head) FROM heads"), messages);
        assert_eq!(one("SELECT count(*) FROM outbox"), stores.row);
        assert_eq!(stores.content.iter().count() as i64, messages);
        // A head that somebody else moved is found.
        stores.sqlite.execute("UPDATE heads SET head = head + 1 WHERE channel = 0", []).unwrap();
        assert!(stores.batches(order).is_err());
        drop(stores);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
