//! Membership entries of large groups: bundled to at most one fan-out a second, even to active members. Who is concerned is told at once.

use std::time::Duration;

use bytes::Bytes;
use fanfare_proto::{
    UserId,
    limits::MEMBERSHIP_AT_ONCE_MEMBERS_MAX,
    link::{Down, GatewayId, Handle, Origin, Tier, Tiers},
};
use fanfare_storage::model::EntryKind;
use tokio::time::Instant;

use super::{Channel, Sequenced};
use crate::{
    audience::Listener,
    desk::{Desk, Due},
};

/// Between two fan-outs of nothing but membership entries.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of one such fan-out.
const BYTES: usize = 64 * 1024;

/// A session that its gateway does not know of yet.
#[derive(Debug)]
pub struct Comer {
    user: UserId,
    gateway: GatewayId,
    handle: Handle,
    /// Up to here it has everything.
    has: u64,
}

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
        self.send_held(desk);
        (frames, first)
    }

    /// A session that comes while entries are held has them already, and may have none of those before it joined: its gateway hears of it
    /// when they have gone out. Says whether that is so.
    pub(super) fn wait_to_listen(&mut self, origin: &Origin) -> bool {
        if self.waits.held.is_some() {
            let Origin { gateway, handle, user, .. } = *origin;
            self.waits.comers.push(Comer { user, gateway, handle, has: self.heard });
        }
        self.waits.held.is_some()
    }

    /// Whether its gateway does not know of the session yet.
    pub(super) fn waits_to_listen(&self, listener: &Listener) -> bool {
        let is = |comer: &Comer| comer.gateway == listener.gateway && comer.handle == listener.handle;
        self.waits.comers.iter().any(is)
    }

    /// What was held has gone out, to everybody but those who had it: from here on they listen as the others do.
    pub(super) fn let_listen(&mut self, desk: &mut Desk) {
        for Comer { user, gateway, handle, has } in std::mem::take(&mut self.waits.comers) {
            let Some(serving) = self.audience.serving(gateway, user, handle) else { continue };
            match serving.tier() {
                Tier::Visible | Tier::Active => self.close_gap(desk, gateway),
                Tier::Warm => self.settle_warm(desk, gateway),
                Tier::Passive | Tier::Background => {}
            }
            if has < self.heard {
                let frames = self.news(has, true);
                desk.gateways.reply_at(gateway, handle, frames);
            }
            desk.gateways.add(self.id(), gateway, handle, serving.tier());
        }
    }

    /// Sends what was held.
    pub fn release(&mut self, desk: &mut Desk) {
        self.send_held(desk);
        self.let_listen(desk);
        self.put_off(desk);
    }

    fn send_held(&mut self, desk: &mut Desk) {
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
            self.at_once(desk, &frames, stands + 1, last);
            stands = last;
        }
    }
}
