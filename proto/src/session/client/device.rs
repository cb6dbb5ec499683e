//! What a client keeps from one session to the next: where it stands in each channel, which acknowledgements are not
//! confirmed yet, and the resume secret.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use bytes::Bytes;

use super::intervals::IntervalSet;
use crate::{
    ids::{ChannelId, DeviceId, Seq},
    wire,
};

/// The state of one installation of a client that outlives its sessions. Plain data: keep it in memory between two
/// sessions, or on disk.
#[derive(Clone, Debug, Default)]
pub struct DeviceState {
    /// The number this installation picked once, 1 to 2^63 - 1.
    pub device: DeviceId,
    /// Number of the last ACK made; 0 before the first.
    pub ack_number: u64,
    /// Newest ACK whose positions, and those of all before, the server has written.
    pub acks_confirmed: u64,
    /// Secret that opens the next session without a token; empty where there is none.
    pub resume: Bytes,
    /// End of the secret's life, Unix milliseconds of the server's clock.
    pub resume_until_ms: u64,
    /// Where it stands in each channel it follows.
    pub channels: HashMap<ChannelId, ChannelLog, IdHash>,
}

impl DeviceState {
    /// A new installation that holds nothing.
    pub fn new(device: DeviceId) -> Self {
        Self { device, ..Self::default() }
    }

    /// Every position that changed since the newest confirmed ACK, by channel.
    pub fn unconfirmed(&self) -> Vec<wire::Position> {
        let changed = |log: &&ChannelLog| log.dirty || log.acked_in > self.acks_confirmed;
        let mut positions: Vec<_> =
            self.channels.iter().filter(|(_, log)| changed(log)).map(|(id, log)| log.as_wire(*id)).collect();
        positions.sort_unstable_by_key(|position| position.channel);
        positions
    }
}

/// What a client holds of one channel.
#[derive(Clone, Debug, Default)]
pub struct ChannelLog {
    /// Newest epoch known.
    pub epoch: u32,
    /// First seq of that epoch.
    pub epoch_start: Seq,
    /// End of what is held without a hole from where it began to follow.
    pub position: Seq,
    /// Everything held.
    pub held: IntervalSet,
    /// Number of the newest ACK that carried the position; 0 for none.
    pub acked_in: u64,
    /// The position moved since that ACK.
    pub dirty: bool,
    /// A direct channel: DELIVERs are answered by delivered receipts.
    pub direct: bool,
    /// Newest seq that a delivered receipt named.
    pub receipted: Seq,
    /// Newest seq the server has sent or named in this session; not kept between sessions.
    pub(super) tip: Seq,
    /// The server said in this session from where on it sends.
    pub(super) followed: bool,
    /// A delivered receipt waits to be sent.
    pub(super) receipt_due: bool,
}

impl ChannelLog {
    /// Newest seq that the server has sent or named in this session.
    pub fn tip(&self) -> Seq {
        self.tip
    }

    /// Marks one entry held and moves the position; whether it was new.
    pub(super) fn hold(&mut self, seq: Seq) -> bool {
        if seq <= self.position || !self.held.insert(seq) {
            return false;
        }
        self.advance();
        true
    }

    /// Marks a range held and moves the position; whether the position moved.
    pub(super) fn hold_range(&mut self, first: Seq, last: Seq) -> bool {
        let before = self.position;
        self.held.insert_range(first, last);
        self.advance();
        self.position != before
    }

    fn advance(&mut self) {
        if let Some((_, last)) = self.held.interval(self.position + 1) {
            self.position = last;
        }
    }

    /// Takes over a higher epoch, which rewound the log at `start`: what was held from there on is gone. Whether
    /// anything was.
    pub(super) fn raise_epoch(&mut self, epoch: u32, start: Seq) -> bool {
        self.epoch = epoch;
        self.epoch_start = start;
        let rewound =
            self.position >= start || self.held.iter().last().is_some_and(|(_, last)| last >= start);
        self.held.remove_from(start);
        self.position = self.position.min(start.saturating_sub(1));
        self.tip = self.tip.min(start.saturating_sub(1));
        self.receipted = self.receipted.min(self.position);
        rewound
    }

    pub(super) fn as_wire(&self, channel: ChannelId) -> wire::Position {
        wire::Position { channel: channel.0, epoch: self.epoch, seq: self.position }
    }
}

/// Hashes ids by one multiplication: they are the server's, not a stranger's, and this is looked up per DELIVER.
pub type IdHash = BuildHasherDefault<IdHasher>;

/// See [`IdHash`].
#[derive(Clone, Default, Debug)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The table takes its index from the low bits and its tag from the high ones: fold both.
        self.0 = mixed ^ mixed >> 32;
    }
}
