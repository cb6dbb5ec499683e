//! Membership entries of large groups: bundled to at most one fan-out a second, even to active members. Who is concerned is told at once.

use std::time::Duration;

use bytes::Bytes;
use fanfare_proto::{
    limits::MEMBERSHIP_AT_ONCE_MEMBERS_MAX,
    link::{Down, Tiers},
};
use fanfare_storage::model::EntryKind;
use tokio::time::Instant;

use super::{Channel, Sequenced};
use crate::desk::{Desk, Due};

/// Between two fan-outs of nothing but membership entries.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of one such fan-out.
const BYTES: usize = 64 * 1024;

impl Channel {
    /// Whether entries may wait for others of their kind.
    pub(super) fn may_wait(&self, items: &[Sequenced]) -> bool {
        self.members.len() > MEMBERSHIP_AT_ONCE_MEMBERS_MAX
            && items.iter().all(|item| item.entry.kind == EntryKind::Membership)
    }

    /// Entries from `first_seq` on wait, unless the last bundle is long ago.
    pub(super) fn hold(&mut self, desk: &mut Desk, first_seq: u64) {
        if self.waits.held.is_some() {
            return;
        }
        self.waits.held = Some(first_seq);
        let now = Instant::now();
        let at = self.waits.held_sent.map_or(now, |sent| (sent + EVERY).max(now));
        if at <= now {
            self.release(desk);
        } else {
            desk.at(at, Due::Held(self.id()));
        }
    }

    /// What was held goes out with what comes behind it, as one where it is not much. Gives that, and its first seq.
    pub(super) fn with_held(
        &mut self,
        desk: &mut Desk,
        frames: Bytes,
        first: u64,
        last: u64,
    ) -> (Bytes, u64) {
        if let Some(held) = self.waits.held
            && self.tail.covers(held - 1, last)
            && let Some((both, end)) = self.tail.gather(held - 1, last, BYTES)
            && end == last
        {
            self.waits.held = None;
            self.waits.held_sent = Some(Instant::now());
            return (both, held);
        }
        self.release(desk);
        (frames, first)
    }

    /// Sends what was held.
    pub fn release(&mut self, desk: &mut Desk) {
        let Some(first) = self.waits.held.take() else { return };
        self.waits.held_sent = Some(Instant::now());
        let (channel, mut stands) = (self.id(), first.saturating_sub(1));
        while stands < self.heard {
            let gathered = if self.tail.covers(stands, self.heard) {
                self.tail.gather(stands, self.heard, BYTES)
            } else {
                None
            };
            let Some((frames, last)) = gathered else {
                // Older than the tail: everybody is told the head.
                for at in &self.audience.gateways {
                    let down = Down::Fanout {
                        channel,
                        lanes: at.lanes(),
                        tiers: Tiers::AT_ONCE,
                        frames: self.gap(stands),
                    };
                    desk.gateways.tell_at(at.gateway, down);
                }
                return;
            };
            self.at_once(desk, &frames, stands + 1);
            stands = last;
        }
    }
}
