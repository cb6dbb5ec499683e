//! When last seens are written: one user at most once in an interval, a crowd spread over another one, and never more
//! in a second than the store should bear.

use std::collections::VecDeque;

use fanfare_proto::UserId;

use crate::Config;

/// Width of a slot, milliseconds.
const SLOT_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub struct Writes {
    /// By the second they are due in, beginning with `slot`.
    slots: VecDeque<Vec<(usize, UserId)>>,
    slot: u64,
    /// Due, and waiting for their turn.
    ready: VecDeque<(usize, UserId)>,
    every_ms: u64,
    per_s: u64,
    /// What may be written now, in thousandths.
    allowance: u64,
    polled_ms: u64,
    waiting: usize,
}

impl Writes {
    pub fn new(config: &Config, now_ms: u64) -> Self {
        Self {
            slots: VecDeque::new(),
            slot: now_ms / SLOT_MS,
            ready: VecDeque::new(),
            every_ms: (config.write_every.as_millis() as u64).max(SLOT_MS),
            per_s: u64::from(config.writes_per_s.max(1)),
            allowance: 0,
            polled_ms: now_ms,
            waiting: 0,
        }
    }

    /// One more, somewhere in the interval that begins now, or when the user's may be written again.
    pub fn add(&mut self, now_ms: u64, at: usize, user: UserId, written_ms: Option<u64>) {
        let from = written_ms.map_or(now_ms, |written| now_ms.max(written + self.every_ms));
        let due = from + spread(user, self.every_ms);
        let slot = (due.div_ceil(SLOT_MS).max(self.slot) - self.slot) as usize;
        while self.slots.len() <= slot {
            self.slots.push_back(Vec::new());
        }
        self.slots[slot].push((at, user));
        self.waiting += 1;
    }

    /// The next that is due and allowed.
    pub fn poll(&mut self, now_ms: u64) -> Option<(usize, UserId)> {
        while self.slot <= now_ms / SLOT_MS {
            self.ready.extend(self.slots.pop_front().unwrap_or_default());
            self.slot += 1;
        }
        let passed = now_ms.saturating_sub(self.polled_ms);
        self.polled_ms = now_ms;
        // At most what a second allows is saved up.
        self.allowance = (self.allowance + passed * self.per_s).min(self.per_s * 1_000);
        if self.allowance < 1_000 {
            return None;
        }
        let next = self.ready.pop_front()?;
        self.allowance -= 1_000;
        self.waiting -= 1;
        Some(next)
    }

    /// All of them.
    pub fn drain(&mut self) -> Vec<(usize, UserId)> {
        self.waiting = 0;
        self.ready.drain(..).chain(self.slots.drain(..).flatten()).collect()
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether as much waits as goes into an interval: what can wait for another time should, so that others are not held up.
    pub fn is_busy(&self) -> bool {
        self.waiting as u64 * 1_000 >= self.per_s * self.every_ms
    }
}

/// A place in the interval that is the user's own: neighbours' are far from each other.
fn spread(user: UserId, every_ms: u64) -> u64 {
    let mixed = user.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * u128::from(every_ms)) >> 64) as u64
}
