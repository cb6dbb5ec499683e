//! The way from gateways to the service, in memory. Nobody waits here: word of who is alive is dropped first, for the next one says the
//! same, and everything else only beyond a bound that sessions coming and going do not reach while the service lives. What was
//! dropped then is made good as the gateways name their sessions, or do not.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fanfare_proto::{
    Code,
    link::{Activities, Activity, GatewayId},
};
use parking_lot::{Condvar, Mutex};

/// Sessions in waiting [`Activity::Alive`]s: what a million sessions say in 4 s.
const ALIVE_MAX: usize = 262_144;
/// Waiting words of any other kind.
const WORDS_MAX: usize = 1_048_576;
/// Waiting words from which on a client's PRESENCE finds no room.
const PRESENCE_MAX: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
}

/// What waits.
#[derive(Debug, Default)]
pub struct Inner {
    /// In the order given.
    pub words: Vec<Activity>,
    /// Bytes handed on.
    pub credits: HashMap<GatewayId, u64>,
    /// Words that found no room.
    pub dropped: u64,
    /// Sessions in `Alive`s.
    alive: usize,
    /// Somebody should look.
    is_urgent: bool,
}

impl Queue {
    /// Has the service look now.
    pub fn wake(&self) {
        self.inner.lock().is_urgent = true;
        self.filled.notify_one();
    }

    /// Waits until somebody should look, or the time has passed; takes everything.
    pub fn take(&self, within: Duration) -> Inner {
        let until = Instant::now() + within;
        let mut inner = self.inner.lock();
        while !inner.is_urgent && !self.filled.wait_until(&mut inner, until).timed_out() {}
        std::mem::take(&mut *inner)
    }
}

impl Activities for Queue {
    fn publish(&self, activity: Activity) -> Result<(), Code> {
        let mut inner = self.inner.lock();
        let waiting = inner.words.len();
        let is_room = match &activity {
            Activity::Alive(sessions) => {
                let fits = inner.alive + sessions.len() <= ALIVE_MAX && waiting < PRESENCE_MAX;
                inner.alive += if fits { sessions.len() } else { 0 };
                fits
            }
            Activity::Presence(..) => waiting < PRESENCE_MAX,
            Activity::Up(_) | Activity::Down(..) | Activity::Shown(..) => waiting < WORDS_MAX,
        };
        if !is_room {
            inner.dropped += 1;
            return Err(Code::RETRY_LATER);
        }
        let is_asked = matches!(activity, Activity::Presence(..));
        inner.words.push(activity);
        if is_asked && !std::mem::replace(&mut inner.is_urgent, true) {
            drop(inner);
            self.filled.notify_one();
        }
        Ok(())
    }

    fn credit(&self, gateway: GatewayId, bytes: u32) {
        *self.inner.lock().credits.entry(gateway).or_default() += u64::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{
        DeviceId, SessionId, UserId,
        link::{Alive, Handle, Origin},
    };

    use super::*;

    fn origin(number: u32) -> Origin {
        Origin {
            gateway: GatewayId(1),
            handle: Handle::new(0, number & 0xffff, number),
            session: SessionId(u64::from(number)),
            user: UserId(7),
            device: DeviceId(1),
        }
    }

    #[test]
    fn word_of_who_is_alive_gives_way_and_comings_and_goings_do_not() {
        let queue = Queue::default();
        let alive = |sessions| {
            let one = Alive { origin: origin(1), silent_ms: 0, foreground: None };
            Activity::Alive(vec![one; sessions])
        };
        assert_eq!(queue.publish(alive(ALIVE_MAX)), Ok(()));
        assert_eq!(queue.publish(alive(1)), Err(Code::RETRY_LATER));
        for number in 0..PRESENCE_MAX as u32 {
            assert_eq!(queue.publish(Activity::Up(origin(number))), Ok(()));
        }
        assert_eq!(queue.publish(Activity::Down(origin(1), 0)), Ok(()), "there is room for who leaves");
        let taken = queue.take(Duration::ZERO);
        assert_eq!((taken.words.len(), taken.dropped), (PRESENCE_MAX + 2, 1));
        assert_eq!(queue.publish(alive(1)), Ok(()), "and for all again");
    }
}
