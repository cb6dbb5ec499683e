//! Entries per second of the embedded commit path, drains running beside it, at 64 and 1,024 entries a commit over
//! 1,000 channels. `cargo run --profile ci -p fanfare-storage --example commit_rate [folder]`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanfare_proto::{ChannelId, MessageId, UserId};
use fanfare_storage::{
    StoreError,
    drain::{Drains, Room},
    embedded, hash,
    metadata::Metadata,
    model::{Channel, Entry, EntryKind, HeadMove, OutboxBatch, ShardCommit},
    ownership::Ownership,
};

const CHANNELS: u64 = 1_000;
const FRAME_BYTES: usize = 160;
const RUN: Duration = Duration::from_secs(3);

fn main() -> Result<(), StoreError> {
    let given = std::env::args().nth(1).map(PathBuf::from);
    for drained in [false, true] {
        for per_commit in [64, 1_024] {
            let temporary =
                tempfile::tempdir().map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let folder =
                given.as_deref().unwrap_or(temporary.path()).join(format!("rate-{per_commit}-{drained}"));
            run(&folder, per_commit, drained)?;
        }
    }
    Ok(())
}

fn run(folder: &std::path::Path, per_commit: u64, drained: bool) -> Result<(), StoreError> {
    let embedded = embedded::open(folder, &embedded::Options::default())?;
    let metadata = embedded.metadata;
    let store = embedded.store;
    let lease = metadata.take(0)?;
    let channels: Vec<Channel> = (1..=CHANNELS).map(channel).collect();
    metadata.commit(&[ShardCommit { term: lease.term, channels, ..ShardCommit::default() }], &[])?;
    let drains = Drains::start(
        metadata.clone(),
        store.clone(),
        store.clone(),
        store.clone(),
        Vec::new(),
        Box::new(|_| ()),
    )?;
    let mut heads = vec![(0_u64, hash::CHAIN_START); CHANNELS as usize + 1];
    let frame = Bytes::from(vec![7_u8; FRAME_BYTES]);
    let frame_hash = hash::frame(&frame);
    let (mut id, mut next_channel, mut entries_done, mut commits) = (1_u64, 0, 0_u64, 0_u64);
    let mut spent: Vec<Duration> = Vec::new();
    let start = Instant::now();
    let mut waited = Duration::ZERO;
    while start.elapsed() < RUN {
        let mut commit = ShardCommit { term: lease.term, ..ShardCommit::default() };
        while (commit.entries.len() as u64) < per_commit {
            // A stride prime to the count: neighbours in a commit stand on different pages, as in life.
            next_channel = (next_channel + 617) % CHANNELS;
            let (head, chain) = &mut heads[next_channel as usize];
            *head += 1;
            id += 1;
            *chain = hash::chain(chain, 1, *head, &frame_hash);
            commit.entries.push(Entry {
                message_id: MessageId(id),
                channel: ChannelId(next_channel + 1),
                epoch: 1,
                seq: *head,
                ordinal: *head,
                kind: EntryKind::Message,
                sender: UserId(1),
                client_id: [id as u8; 16],
                target: 0,
                hash: frame_hash,
                frame: frame.clone(),
            });
            if commit.heads.len() < CHANNELS as usize {
                commit.heads.push(HeadMove {
                    channel: ChannelId(next_channel + 1),
                    epoch: 1,
                    first_seq: *head,
                    head: *head,
                    ordinal: *head,
                    message_id: MessageId(id),
                    chain: *chain,
                });
            } else {
                // The commit has come round: the channel is in it already.
                let moved = &mut commit.heads[(commit.entries.len() - 1) % CHANNELS as usize];
                (moved.head, moved.ordinal, moved.message_id, moved.chain) =
                    (*head, *head, MessageId(id), *chain);
            }
        }
        commit.last_id = id;
        entries_done += commit.entries.len() as u64;
        let commit_batch = [commit];
        let before = Instant::now();
        let gone = drains.take_drained();
        let row = metadata.commit(&commit_batch, &gone)?;
        spent.push(before.elapsed());
        let [commit] = commit_batch;
        commits += 1;
        if drained {
            drains.offer(OutboxBatch {
                row: row.ok_or_else(|| StoreError::Damaged("nothing was committed".to_owned()))?,
                committed_ms: 0,
                entries: commit.entries,
                lists: commit.lists,
            });
            let before = Instant::now();
            while drains.wait_for_room(Duration::from_secs(1)) != Room::Yes {}
            waited += before.elapsed();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    spent.sort();
    let at = |share: f64| spent[(spent.len() as f64 * share) as usize].as_micros();
    println!(
        "{per_commit:>5} a commit, drains {}: {:>7.0} entries/s, {commits} commits, p50 {} us, p99 {} us, max {} us, waited for drains {} ms",
        if drained { "on " } else { "off" },
        entries_done as f64 / seconds,
        at(0.5),
        at(0.99),
        spent.last().map_or(0, |longest| longest.as_micros()),
        waited.as_millis(),
    );
    let before = Instant::now();
    drains.stop();
    println!("      stopped in {} ms", before.elapsed().as_millis());
    Ok(())
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
