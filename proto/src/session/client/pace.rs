//! When a session speaks by itself: acknowledgements, delivered receipts, heartbeats, and the order of what goes out.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    ACK_ALONG_MS, ACK_RIDES_MS_MIN, ClientSession, Ended, Event, NEVER, OUTGOING_FRAMES_MAX,
    PING_ALONG_PERCENT, PING_ALONG_PERCENT_MAX, PONG_TIME_MS, Phase, UNANSWERED_PING_MS,
};
use crate::{
    frame,
    header::{FrameType, class},
    ids::ChannelId,
    limits, wire,
};

impl ClientSession {
    pub(super) fn position_moved(&mut self, now_ms: u64, channel: ChannelId) {
        if let Some(log) = self.device.channels.get_mut(&channel)
            && !log.dirty
        {
            log.dirty = true;
            self.dirty.push(channel);
        }
        if self.ack_at == NEVER {
            self.acknowledge_later(now_ms);
        }
    }

    /// An ACK is due in a while, and a little earlier if the server sends something then: the radio is awake.
    pub(super) fn acknowledge_later(&mut self, now_ms: u64) {
        let after_ms = limits::ACK_AFTER.as_millis() as u64;
        self.ack_at = now_ms + self.jittered(after_ms);
        self.ack_along_at = self.ack_at.saturating_sub(ACK_ALONG_MS).max(now_ms + after_ms * 4 / 5);
    }

    /// Queues ACKs for all positions that moved.
    pub(super) fn acknowledge(&mut self, now_ms: u64) {
        (self.unacked_frames, self.unacked_bytes) = (0, 0);
        (self.ack_at, self.ack_along_at) = (NEVER, NEVER);
        if self.dirty.is_empty() {
            return;
        }
        if self.outgoing.len() >= OUTGOING_FRAMES_MAX {
            // A server that sends and does not read: positions wait, they are not queued.
            self.ack_at = now_ms + limits::ACK_AFTER.as_millis() as u64;
            return;
        }
        self.acked_at = now_ms;
        for channels in self.dirty.chunks(limits::REPEATED_MAX) {
            self.device.ack_number += 1;
            let mut positions = Vec::with_capacity(channels.len());
            for channel in channels {
                if let Some(log) = self.device.channels.get_mut(channel) {
                    log.dirty = false;
                    log.acked_in = self.device.ack_number;
                    positions.push(log.as_wire(*channel));
                }
            }
            let ack = wire::Ack { number: self.device.ack_number, positions };
            self.outgoing.push_back(frame::short(FrameType::Ack, class::STATE, &ack));
        }
        self.dirty.clear();
    }

    /// Queues the delivered receipts that wait.
    pub(super) fn send_receipts(&mut self) {
        self.receipt_at = NEVER;
        for channel in self.receipts.drain(..) {
            let Some(log) = self.device.channels.get_mut(&channel) else { continue };
            log.receipt_due = false;
            if log.position <= log.receipted || self.outgoing.len() >= OUTGOING_FRAMES_MAX {
                continue;
            }
            log.receipted = log.position;
            let cursor = wire::Cursor { user: 0, delivered: log.position, read: 0, read_ordinal: 0 };
            let receipt = wire::Receipt { cursors: vec![cursor] };
            self.outgoing.push_back(frame::routed(
                FrameType::Receipt,
                class::STATE,
                0,
                0,
                channel,
                0,
                &receipt,
            ));
        }
    }

    /// When [`Self::handle_timeout`] wants to be called; `None`: not by itself.
    pub fn deadline(&self) -> Option<u64> {
        let next = self.ack_at.min(self.receipt_at).min(self.sync_at).min(self.ping_at).min(self.alive_by);
        (next != NEVER && self.phase != Phase::Ended).then_some(next)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ms: u64, sink: &mut impl FnMut(Event)) {
        if self.phase == Phase::Ended {
            return;
        }
        if now_ms >= self.alive_by {
            self.phase = Phase::Ended;
            sink(Event::Ended(Ended::from_close(None, "the server does not answer")));
            return;
        }
        if now_ms >= self.ack_at {
            self.acknowledge(now_ms);
        }
        if now_ms >= self.receipt_at {
            self.send_receipts();
        }
        if now_ms >= self.sync_at
            && let Some(window) = self.sync_window
        {
            self.sync(now_ms, window);
        }
        if now_ms >= self.ping_at && now_ms < self.heartbeat_at && self.requests.is_empty() {
            // What was asked has been answered meanwhile.
            self.ping_at = self.heartbeat_at;
        }
        if now_ms >= self.ping_at {
            self.ping(now_ms, false);
        }
    }

    fn ping(&mut self, now_ms: u64, quiet: bool) {
        let ping = wire::Ping { time_ms: now_ms, quiet };
        self.outgoing.push_back(frame::short(FrameType::Ping, class::CONTROL, &ping));
        if !quiet {
            self.alive_by = self.alive_by.min(now_ms + PONG_TIME_MS);
        }
        // Counted from here, should the transport be stuck and not take it.
        self.rest_until_ping(now_ms);
    }

    /// The server told a head. What is due before the next one is likely to be told goes now: a telephone's radio is awake, and so is the
    /// server's thread, which the heartbeats of sessions that were told together reach together. A heartbeat wants no answer where that
    /// would tell nothing new: the server lives, and has confirmed all acknowledgements.
    pub(super) fn speak_along(&mut self, now_ms: u64) {
        let next_at =
            now_ms.saturating_add(now_ms - std::mem::replace(&mut self.told_at, now_ms).min(now_ms));
        if now_ms >= self.ack_along_at {
            return self.acknowledge(now_ms);
        }
        let along_at = |percent| self.rested_at + self.heartbeat_ms * percent / 100;
        if self.phase != Phase::Open || self.alive_by != NEVER || now_ms < along_at(PING_ALONG_PERCENT) {
            return;
        }
        if next_at >= along_at(PING_ALONG_PERCENT_MAX) {
            self.ping(now_ms, self.device.acks_confirmed >= self.device.ack_number);
        } else if self.ping_at == self.heartbeat_at && next_at >= self.heartbeat_at {
            // It waits for that one, and not for ever should it not come.
            self.heartbeat_at = along_at(PING_ALONG_PERCENT_MAX);
            self.ping_at = self.heartbeat_at;
        }
    }

    /// The next frame to send, in order, to be called until it answers `None`. An ACK that waits rides with the others.
    pub fn poll_transmit(&mut self, now_ms: u64) -> Option<Bytes> {
        let next = self.outgoing.pop_front()?;
        if self.phase == Phase::Open {
            if !self.dirty.is_empty() && now_ms >= self.acked_at.saturating_add(ACK_RIDES_MS_MIN) {
                self.acknowledge(now_ms);
            }
            self.rest_until_ping(now_ms);
        }
        if self.outgoing.is_empty() && self.outgoing.capacity() > 32 {
            self.outgoing = VecDeque::new();
        }
        Some(next)
    }

    /// Whether frames wait to be sent.
    pub fn has_transmit(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub(super) fn rest_until_ping(&mut self, now_ms: u64) {
        self.rested_at = now_ms;
        self.heartbeat_at = now_ms + self.jittered(self.heartbeat_ms);
        self.ping_at = self.heartbeat_at;
        if !self.requests.is_empty() && self.alive_by == NEVER {
            self.ping_at = self.ping_at.min(now_ms + UNANSWERED_PING_MS);
        }
    }

    /// A fifth more or less of it.
    pub(super) fn jittered(&mut self, ms: u64) -> u64 {
        ms - ms / 5 + self.next_random() % (ms * 2 / 5 + 1)
    }

    /// splitmix64.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}
