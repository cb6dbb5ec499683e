//! A single-shard writer for checks: makes sound commits and knows what was committed.

use std::collections::HashMap;

use bytes::Bytes;
use fanfare_proto::{ChannelId, MessageId, ShardId, UserId, ids::IdSource};

use crate::{
    hash,
    model::{Channel, Entry, EntryKind, Hash, HeadMove, OutboxBatch, OutboxRow, ShardCommit},
};

/// The state of the channels that a script writes.
#[derive(Debug)]
pub struct Script {
    /// The shard written.
    pub shard: u16,
    /// The term carried.
    pub term: u64,
    ids: IdSource,
    heads: HashMap<ChannelId, (u64, Hash)>,
}

impl Script {
    /// A writer of `shard` under `term`.
    pub fn new(shard: u16, term: u64) -> Self {
        Self { shard, term, ids: IdSource::new(ShardId(shard), 0), heads: HashMap::new() }
    }

    /// Goes on with a channel that is stored already, and ids above `last_id`.
    pub fn resume(&mut self, channel: &Channel, last_id: u64) {
        if last_id > self.ids.last() {
            self.ids = IdSource::new(ShardId(self.shard), last_id);
        }
        self.heads.insert(channel.channel, (channel.head, channel.chain));
    }

    /// A channel without entries.
    pub fn channel(id: u64) -> Channel {
        Channel {
            channel: ChannelId(id),
            kind: 2,
            name: format!("channel {id}"),
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

    /// A commit without entries that makes these channels.
    pub fn create(&self, channels: &[u64]) -> ShardCommit {
        ShardCommit { channels: channels.iter().map(|id| Self::channel(*id)).collect(), ..self.empty() }
    }

    /// A commit of nothing.
    pub fn empty(&self) -> ShardCommit {
        ShardCommit { shard: self.shard, term: self.term, last_id: self.ids.last(), ..ShardCommit::default() }
    }

    /// A commit of one message in each of these channels, with `tag` in their frames.
    pub fn messages(&mut self, channels: &[u64], tag: &str) -> ShardCommit {
        let mut commit = self.empty();
        for id in channels {
            self.add(&mut commit, *id, EntryKind::Message, 0, tag);
        }
        commit
    }

    /// Adds one entry to a commit.
    pub fn add(&mut self, commit: &mut ShardCommit, channel: u64, kind: EntryKind, target: u64, tag: &str) {
        let channel = ChannelId(channel);
        let (head, chain) = self.heads.entry(channel).or_insert((0, hash::CHAIN_START));
        *head += 1;
        let message_id = MessageId(self.ids.next(1_800_000_000_000));
        let frame = Bytes::from(format!("{channel} {head} {kind:?} {tag}"));
        let hash = hash::frame(&frame);
        *chain = hash::chain(chain, 1, *head, &hash);
        commit.entries.push(Entry {
            message_id,
            channel,
            epoch: 1,
            seq: *head,
            ordinal: *head,
            kind,
            sender: UserId(77),
            client_id: [*head as u8; 16],
            target,
            hash,
            frame,
        });
        commit.last_id = message_id.0;
        match commit.heads.iter_mut().find(|moved| moved.channel == channel) {
            Some(moved) => {
                (moved.head, moved.ordinal, moved.message_id, moved.chain) =
                    (*head, *head, message_id, *chain);
            }
            None => commit.heads.push(HeadMove {
                channel,
                epoch: 1,
                first_seq: *head,
                head: *head,
                ordinal: *head,
                message_id,
                chain: *chain,
            }),
        }
    }

    /// The outbox row that a commit leaves.
    pub fn batch(commit: &ShardCommit, row: OutboxRow) -> OutboxBatch {
        OutboxBatch { row, committed_ms: 0, entries: commit.entries.clone(), lists: commit.lists.clone() }
    }
}
