//! What a shard's channels and users work with: the way out, the clock, timers, ids, and what is not drained.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fanfare_proto::{ChannelId, UserId, ids::IdSource, link::Tier};
use fanfare_storage::model::{Entry, OutboxRow};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    context::Context,
    event::{Event, Touch, Word},
    gateways::Gateways,
    out::Action,
};

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Due {
    /// A channel's cursors are to be written.
    Cursors(ChannelId),
    /// A channel's written cursors are to be shown.
    Receipts(ChannelId),
    /// A channel's warm sessions get what there is.
    Warm(ChannelId),
    /// A channel's passive sessions, of either tier, are told the head.
    Tell(ChannelId, Tier),
    /// A channel's membership entries were held for long enough.
    Held(ChannelId),
    /// Scores in a channel may have fallen.
    Look(ChannelId),
    /// A channel's scores are to be written.
    Scores(ChannelId),
    /// A user's positions are to be written.
    Positions(UserId),
    /// A channel that could not be read is tried again.
    Reload(ChannelId),
    /// Sends wait for room in the commit queue.
    Sequence,
    /// What is idle is put away.
    Sweep,
}

/// See the module.
pub struct Desk {
    /// What all shards share.
    pub context: Arc<Context>,
    /// The shard's number.
    pub shard: u16,
    /// The term of its lease.
    pub term: u64,
    /// Its ids.
    pub ids: IdSource,
    /// The gateways.
    pub gateways: Gateways,
    /// By channel, in seq order: committed and not drained.
    pub undrained: HashMap<ChannelId, VecDeque<(OutboxRow, Arc<Entry>)>, RandomState>,
    /// The channels of each such row.
    pub rows: HashMap<OutboxRow, Vec<ChannelId>, RandomState>,
    /// Channels with sends to be sequenced.
    pub dirty: Vec<ChannelId>,
    /// How much there is to do.
    pub strain: Strain,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
}

impl Desk {
    /// Of a shard, with the entries that were found in the outbox.
    pub fn new(context: Arc<Context>, shard: u16, term: u64, ids: IdSource) -> Self {
        Self {
            gateways: Gateways::new(),
            context,
            shard,
            term,
            ids,
            undrained: HashMap::default(),
            rows: HashMap::default(),
            dirty: Vec::new(),
            strain: Strain::default(),
            due: BinaryHeap::new(),
        }
    }

    /// To a shard, behind what this one has given before.
    pub fn post(&self, shard: u16, event: Event) {
        self.gateways.out.push(Action::Post(shard, event));
    }

    /// To the owner of a channel.
    pub fn post_channel(&self, channel: ChannelId, touch: Touch) {
        self.post(self.context.shard_of(channel.shard()), Event::Touch(channel, touch));
    }

    /// To the owner of a user.
    pub fn post_user(&self, user: UserId, word: Word) {
        self.post(self.context.shard_of(user.shard()), Event::Word(user, word));
    }

    /// Answers the server's own people, behind what was given before.
    pub fn answer<T: Send + 'static>(&self, reply: oneshot::Sender<T>, value: T) {
        self.gateways.out.push(Action::Answer(Box::new(move || drop(reply.send(value)))));
    }

    /// Notes a committed entry until its row is drained.
    pub fn remember(&mut self, row: OutboxRow, entry: Arc<Entry>) {
        let channels = self.rows.entry(row).or_default();
        if channels.last() != Some(&entry.channel) {
            channels.push(entry.channel);
        }
        self.undrained.entry(entry.channel).or_default().push_back((row, entry));
    }

    /// Rows are drained.
    pub fn drained(&mut self, rows: &[OutboxRow]) {
        for row in rows {
            for channel in self.rows.remove(row).unwrap_or_default() {
                if let Some(of) = self.undrained.get_mut(&channel) {
                    while of.front().is_some_and(|(front, _)| front == row) {
                        of.pop_front();
                    }
                    of.retain(|(one, _)| one != row);
                    if of.is_empty() {
                        self.undrained.remove(&channel);
                    }
                }
            }
        }
    }

    /// What of a channel is not drained, in seq order.
    pub fn undrained_of(&self, channel: ChannelId) -> Vec<Arc<Entry>> {
        self.undrained
            .get(&channel)
            .map_or_else(Vec::new, |of| of.iter().map(|(_, entry)| Arc::clone(entry)).collect())
    }

    /// Wakes the shard at that time.
    pub fn at(&mut self, time: Instant, due: Due) {
        self.due.push(Reverse((time, due)));
    }

    /// Wakes the shard when so much time has passed, and up to a tenth more: in all shards at the same moments, so that what thousands
    /// have to do now and then wakes a thread a few times a second.
    pub fn at_together(&mut self, after: Duration, due: Due) {
        let time = Instant::now() + after;
        let began = self.context.began;
        let step = (after / 10).max(Duration::from_millis(1)).as_nanos();
        let steps = time.duration_since(began).as_nanos().div_ceil(step);
        let at = began + Duration::from_nanos(u64::try_from(steps * step).unwrap_or(u64::MAX));
        self.at(at, due);
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((time, _))| *time)
    }

    /// Takes the next timer that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Due> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((time, due)) = self.due.pop()?;
        if matches!(due, Due::Warm(_) | Due::Tell(..)) {
            self.strain.was_late(now, now.duration_since(time));
        }
        Some(due)
    }
}

/// How late a timer may be before it says that there is more to do than is done.
const LATE: Duration = Duration::from_millis(50);
/// From one step of strain to the next, up, or down where delayed work is done in time.
const STEP_EVERY: Duration = Duration::from_millis(500);
/// How long a step lasts where there is no such work that could tell.
const STEP_LASTS: Duration = Duration::from_secs(5);
/// Steps of strain: each doubles the time of passive sessions, and from the third on that of warm ones.
const STEPS_MAX: u32 = 5;

/// How far the delayed part of the fan-out is stretched, so that visible and active sessions never wait: passive sessions first, then
/// warm ones. It rises while delayed work is done late or finds no credit, and falls again by itself.
#[derive(Debug, Default)]
pub struct Strain {
    /// As of the last change.
    steps: u32,
    changed: Option<Instant>,
    /// Something found no credit since the last step.
    was_short: bool,
}

impl Strain {
    /// How often the delayed work's times are doubled.
    pub fn steps(&self, now: Instant) -> u32 {
        let since = self.changed.map_or(Duration::ZERO, |changed| now.saturating_duration_since(changed));
        let fallen = since.as_millis() / STEP_LASTS.as_millis();
        self.steps.saturating_sub(u32::try_from(fallen).unwrap_or(u32::MAX))
    }

    /// How long passive sessions wait.
    pub fn passive(&self, now: Instant, time: Duration) -> Duration {
        time * (1 << self.steps(now))
    }

    /// How long warm sessions wait.
    pub fn warm(&self, now: Instant, time: Duration) -> Duration {
        time * (1 << self.steps(now).saturating_sub(2))
    }

    /// Delayed work was done so late.
    pub fn was_late(&mut self, now: Instant, late: Duration) {
        self.step(now, late >= LATE || self.was_short);
    }

    /// Delayed work found no credit, `now`. It may have been done in time all the same: a shard with nothing to do is never late.
    pub fn short(&mut self, now: Instant) {
        self.step(now, true);
        self.was_short = true;
    }

    fn step(&mut self, now: Instant, is_up: bool) {
        if self.changed.is_some_and(|changed| now.saturating_duration_since(changed) < STEP_EVERY) {
            return;
        }
        self.was_short = false;
        let before = self.steps(now);
        let steps = if is_up { (before + 1).min(STEPS_MAX) } else { before.saturating_sub(1) };
        if steps != self.steps {
            tracing::debug!(steps, "the delayed fan-out is stretched so many times");
        }
        if is_up || steps != self.steps {
            (self.steps, self.changed) = (steps, Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strain_stretches_the_passive_before_the_warm_and_goes_by_itself() {
        let (mut strain, mut now) = (Strain::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut seen = Vec::new();
        for late in [LATE, LATE, LATE, Duration::ZERO, Duration::ZERO, Duration::ZERO] {
            strain.was_late(now, late);
            strain.was_late(now, late);
            seen.push((strain.passive(now, second).as_secs(), strain.warm(now, second).as_secs()));
            now += STEP_EVERY;
        }
        assert_eq!(seen, [(2, 1), (4, 1), (8, 2), (4, 1), (2, 1), (1, 1)]);
        for _ in 0..100 {
            now += STEP_EVERY;
            strain.was_late(now, LATE);
        }
        assert_eq!((strain.passive(now, second).as_secs(), strain.warm(now, second).as_secs()), (32, 8));
    }

    #[test]
    fn short_credit_stretches_though_all_is_done_in_time() {
        let (mut strain, mut now) = (Strain::default(), Instant::now());
        for _ in 0..20 {
            now += STEP_EVERY;
            strain.was_late(now, Duration::ZERO);
            strain.short(now);
        }
        assert_eq!(strain.steps(now), STEPS_MAX);
        for _ in 0..20 {
            now += STEP_EVERY;
            strain.was_late(now, Duration::ZERO);
        }
        assert_eq!(strain.steps(now), 0);
        // Nor does it last where nothing is delayed any more.
        for _ in 0..20 {
            now += STEP_EVERY;
            strain.short(now);
        }
        assert_eq!(strain.steps(now), STEPS_MAX);
        assert_eq!(strain.steps(now + 2 * STEP_LASTS), STEPS_MAX - 2);
        assert_eq!(strain.steps(now + 20 * STEP_LASTS), 0);
    }
}
