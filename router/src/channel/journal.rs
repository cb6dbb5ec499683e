//! What became of the newest entries, for those who ask after one: when bundles and heads were handed over, and who changed tiers. Bounded,
//! and in memory only: of what is older only the outcome is known.

use std::collections::VecDeque;

use fanfare_proto::{
    UserId,
    link::{GatewayId, Handle, Tier},
};

use super::Channel;
use crate::{
    admin::{Handing, Hot, SessionTrace},
    audience::{Listener, Serving},
    desk::Desk,
    meter,
};

/// Bundles and heads that are remembered.
const HANDED_MAX: usize = 64;
/// Changes of tier that are, of a channel with many sessions; of one with few twice as many as these.
const MOVED_MAX: usize = 256;
/// Where nothing was handed over for so long, nothing is remembered.
const KEPT_MS: u64 = 600_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Journal {
    handed: VecDeque<Handed>,
    moved: VecDeque<Moved>,
}

/// Everything up to a seq was handed to a gateway for a tier.
#[derive(Debug)]
struct Handed {
    gateway: GatewayId,
    tier: Tier,
    to: u64,
    at_ms: u64,
}

/// A session left a tier behind that seq.
#[derive(Debug)]
struct Moved {
    gateway: GatewayId,
    handle: Handle,
    behind: u64,
    from: Tier,
}

fn push<T>(of: &mut VecDeque<T>, max: usize, one: T) {
    while of.len() >= max {
        of.pop_front();
    }
    of.push_back(one);
}

/// Entries of this minute and of the one before.
#[derive(Debug, Default)]
pub struct Pace {
    /// Unix minutes.
    minute: u32,
    counts: [u32; 2],
}

impl Pace {
    /// So many entries more.
    pub fn count(&mut self, entries: usize, now_ms: u64) {
        self.turn(now_ms);
        self.counts[0] = self.counts[0].saturating_add(entries as u32);
    }

    fn turn(&mut self, now_ms: u64) {
        let minute = (now_ms / 60_000) as u32;
        if minute != self.minute {
            let before = if minute == self.minute + 1 { self.counts[0] } else { 0 };
            (self.minute, self.counts) = (minute, [0, before]);
        }
    }

    /// Entries of the last 60 s: of this minute, and of the one before as if they had come evenly.
    pub fn per_minute(&mut self, now_ms: u64) -> u64 {
        self.turn(now_ms);
        let left = 60_000 - now_ms % 60_000;
        u64::from(self.counts[0]) + u64::from(self.counts[1]) * left / 60_000
    }
}

impl Channel {
    /// Entries a minute by now.
    pub fn entries_per_min(&mut self, now_ms: u64) -> u64 {
        self.pace.per_minute(now_ms)
    }

    /// How busy it is.
    pub fn hot(&mut self, now_ms: u64) -> Hot {
        let entries_per_min = self.entries_per_min(now_ms);
        Hot {
            channel: self.id(),
            name: self.row.name.clone(),
            entries_per_min,
            sessions: self.audience.len(),
        }
    }

    /// How long an entry has had its place by now; `None` where the tail does not have it.
    pub(super) fn late_ms(&self, desk: &Desk, seq: u64) -> Option<u64> {
        let since_ms = self.tail.get(seq)?.message_id.time_ms();
        Some(desk.context.now_ms().saturating_sub(since_ms))
    }

    /// Entries behind `after` up to `to` were handed to a gateway for its warm or passive sessions, or named there.
    pub(super) fn handed(&mut self, desk: &Desk, gateway: GatewayId, tier: Tier, after: u64, to: u64) {
        let sessions = self.audience.at(gateway).map_or(0, |at| at.count(tier));
        meter::handed(tier, sessions, to.saturating_sub(after), self.late_ms(desk, after + 1));
        let journal = self.journal.get_or_insert_default();
        push(&mut journal.handed, HANDED_MAX, Handed { gateway, tier, to, at_ms: desk.context.now_ms() });
    }

    /// A session changes its tier.
    pub(super) fn moved(&mut self, listener: &Listener) {
        let Listener { gateway, handle, serving } = *listener;
        let moved = Moved { gateway, handle, behind: self.heard, from: serving.tier() };
        let max = (2 * self.audience.len()).clamp(HANDED_MAX, MOVED_MAX);
        push(&mut self.journal.get_or_insert_default().moved, max, moved);
    }

    /// Forgets what nobody will ask after.
    pub(super) fn forget_journal(&mut self, now_ms: u64) {
        let newest_ms = |journal: &Journal| journal.handed.back().map_or(0, |handed| handed.at_ms);
        self.journal.take_if(|journal| newest_ms(journal) + KEPT_MS < now_ms);
    }

    /// What sessions of these users got of an entry, in which tier, and when.
    pub fn trace(&self, seq: u64, users: &[UserId]) -> Vec<SessionTrace> {
        users
            .iter()
            .flat_map(|user| self.audience.of_user(*user).into_iter().map(move |at| (*user, at)))
            .map(|(user, listener)| self.trace_one(seq, user, &listener))
            .collect()
    }

    fn trace_one(&self, seq: u64, user: UserId, listener: &Listener) -> SessionTrace {
        let Listener { gateway, handle, serving } = *listener;
        let journal = self.journal.as_deref();
        let is_it = |moved: &&Moved| moved.gateway == gateway && moved.handle == handle;
        let left =
            journal.and_then(|journal| journal.moved.iter().filter(is_it).find(|moved| moved.behind >= seq));
        let tier = left.map_or(serving.tier(), |moved| moved.from);
        let at_once_ms = self.tail.get(seq).map(|held| held.message_id.time_ms());
        let handed = journal.and_then(|journal| {
            let is_it =
                |handed: &&Handed| handed.gateway == gateway && handed.tier == tier && handed.to >= seq;
            journal.handed.iter().find(is_it).map(|handed| handed.at_ms)
        });
        // Who left the tier was given first what the others there had not yet.
        let stands = if left.is_some() { u64::MAX } else { self.stands_at(gateway, serving) };
        let (handing, at_ms) = match tier {
            _ if stands < seq => (Handing::Waits, None),
            Tier::Visible | Tier::Active => (Handing::Sent, at_once_ms),
            Tier::Warm => (Handing::Sent, handed),
            Tier::Passive | Tier::Background => (Handing::Named, handed),
        };
        SessionTrace { user, tier, is_full: serving == Serving::Full, handing, at_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_of_the_last_minute() {
        let mut pace = Pace::default();
        pace.count(60, 600_000);
        assert_eq!(pace.per_minute(630_000), 60);
        assert_eq!(pace.per_minute(660_000), 60);
        assert_eq!(pace.per_minute(690_000), 30);
        pace.count(5, 719_999);
        assert_eq!((pace.per_minute(719_999), pace.per_minute(900_000)), (5, 0));
    }
}
