//! A worker: one task that runs a part of the shards. It takes what has come for any of them in one pass, and what they have
//! for others leaves once per pass: one hand-over to the committer, one to each lane of a gateway, whatever the number of
//! shards. On few cores each hand-over costs a wake-up, and each wake-up a switch of threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::Instant,
};

use crate::{
    committer::Unit,
    context::Context,
    event::Event,
    out::Pass,
    shard::{SWEEP_EVERY, Shard},
    uplink::is_bounded,
};

/// Events handled before what they brought is sequenced.
const EVENTS_PER_PASS: usize = 512;

/// What reaches a worker: events with the shards that they are for.
pub enum Post {
    /// One.
    One(u16, Event),
    /// Several, taken in one pass.
    Many(Vec<(u16, Event)>),
}

/// The way to a worker. The queue has no bound of its own: see [`crate::context::Inbox`].
pub type Posts = UnboundedSender<Post>;

/// A shard of this worker, and what its pass is about.
struct Place {
    number: u16,
    /// `None` when it has ended.
    shard: Option<Shard>,
    /// Had an event in this pass.
    is_touched: bool,
    /// Events of this pass that held a permit.
    permits: usize,
}

/// See the module.
pub struct Worker {
    context: Arc<Context>,
    places: Vec<Place>,
    /// Places with an event in this pass.
    touched: Vec<usize>,
    units: Vec<Unit>,
    pass: Pass,
    next_due: Instant,
}

/// Moments within [`SWEEP_EVERY`] at which shards are swept.
const SWEEP_TURNS: u32 = 32;

/// How many workers run the shards, on a machine with so many cores.
pub fn count(cores: usize, shards: u16) -> usize {
    cores.clamp(1, usize::from(shards))
}

impl Worker {
    /// Of these shards: those whose number leaves this remainder, in ascending order.
    pub fn new(context: Arc<Context>, shards: Vec<(u16, Shard)>) -> Self {
        let now = Instant::now();
        let count = shards.len().max(1) as u32;
        let mut places: Vec<Place> = shards
            .into_iter()
            .map(|(number, shard)| Place { number, shard: Some(shard), is_touched: false, permits: 0 })
            .collect();
        // Not all at the same moment, since a sweep looks at all that a shard holds; nor each at one of its own, since each wakes the thread.
        for (place_at, place) in (0u32..).zip(&mut places) {
            if let Some(shard) = &mut place.shard {
                let turn = place_at * SWEEP_TURNS / count;
                shard.sweep_at(now + SWEEP_EVERY + SWEEP_EVERY * turn / SWEEP_TURNS);
            }
        }
        Self { context, places, touched: Vec::new(), units: Vec::new(), pass: Pass::default(), next_due: now }
    }

    /// Runs until all shards were told to stop and nothing is in flight.
    pub async fn run(mut self, mut inbox: UnboundedReceiver<Post>) {
        let mut posts = Vec::with_capacity(EVENTS_PER_PASS);
        let mut timer = pin!(tokio::time::sleep_until(self.next_due));
        loop {
            if timer.deadline() != self.next_due {
                timer.as_mut().reset(self.next_due);
            }
            tokio::select! {
                biased;
                count = inbox.recv_many(&mut posts, EVENTS_PER_PASS) => {
                    if count == 0 {
                        return;
                    }
                }
                () = &mut timer => {}
            }
            let now = Instant::now();
            for post in posts.drain(..) {
                match post {
                    Post::One(shard, event) => self.event(shard, event),
                    Post::Many(events) => {
                        for (shard, event) in events {
                            self.event(shard, event);
                        }
                    }
                }
            }
            if now >= self.next_due {
                self.timers(now);
            }
            self.finish_pass();
            if self.places.iter().all(|place| place.shard.is_none()) {
                return;
            }
        }
    }

    fn event(&mut self, shard: u16, event: Event) {
        let at = self.context.place_of(shard);
        let Some(place) = self.places.get_mut(at) else { return };
        debug_assert_eq!(place.number, shard);
        if !std::mem::replace(&mut place.is_touched, true) {
            self.touched.push(at);
        }
        place.permits += usize::from(matches!(&event, Event::Up(up) if is_bounded(up)));
        guarded(place, |shard| shard.handle(event));
    }

    fn timers(&mut self, now: Instant) {
        for (at, place) in self.places.iter_mut().enumerate() {
            let is_due = place.shard.as_ref().is_some_and(|shard| shard.next_due() <= now);
            if !is_due {
                continue;
            }
            if !std::mem::replace(&mut place.is_touched, true) {
                self.touched.push(at);
            }
            guarded(place, |shard| shard.timers(now));
        }
        // Whatever is due from here on is found below, with what this pass adds.
        let dues = self.places.iter().filter_map(|place| Some(place.shard.as_ref()?.next_due()));
        self.next_due = dues.min().unwrap_or_else(|| now + Duration::from_secs(5));
    }

    /// Sequences what the pass brought and hands on what it made.
    fn finish_pass(&mut self) {
        for at in self.touched.drain(..) {
            let Some(place) = self.places.get_mut(at) else { continue };
            place.is_touched = false;
            let permits = std::mem::take(&mut place.permits);
            if permits > 0
                && let Some(inbox) = self.context.inboxes.get(usize::from(place.number))
            {
                inbox.permits.add_permits(permits);
            }
            let (number, units) = (place.number, &mut self.units);
            guarded(place, |shard| shard.sequence(units));
            if let Some(shard) = &place.shard {
                self.pass.add(number, shard.out());
            }
            if place.shard.as_ref().is_some_and(Shard::is_done)
                && let Some(mut shard) = place.shard.take()
            {
                shard.flush();
                self.pass.add(place.number, shard.out());
            }
            match &place.shard {
                Some(shard) => self.next_due = self.next_due.min(shard.next_due()),
                // Who asks it is told RETRY_LATER, and does not wait for an answer that never comes.
                None => {
                    if let Some(inbox) = self.context.inboxes.get(usize::from(place.number)) {
                        inbox.permits.close();
                    }
                }
            }
        }
        self.context.commits.push(&mut self.units);
        self.pass.hand_on(&self.context);
    }
}

/// A shard whose work panicked ends: what it holds may be half changed. Nobody is told that something stands which does
/// not, and the others go on.
fn guarded(place: &mut Place, work: impl FnOnce(&mut Shard)) {
    let Some(shard) = &mut place.shard else { return };
    if catch_unwind(AssertUnwindSafe(|| work(shard))).is_err() {
        tracing::error!(
            shard = place.number,
            "a shard panicked and has ended; restart the server to serve it again"
        );
        place.shard = None;
    }
}
