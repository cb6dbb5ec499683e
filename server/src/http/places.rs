//! Who may have a connection: so many in all, so many of an address, some kept free for this machine's own commands. Where
//! there is no more room, whoever was idle for longest makes it.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 512;
/// Of those, kept free for 127.0.0.1 and ::1, from where commands ask.
pub const CONNECTIONS_KEPT_FREE: usize = 32;
/// Of one address, so that none takes all places; more are closed at once.
pub const CONNECTIONS_PER_ADDRESS: u32 = 128;

/// [`Connection::idle_since`] of one that is asked something.
const BUSY: u64 = u64::MAX;

/// All places.
#[derive(Default)]
pub struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    connections: HashMap<u64, Connection>,
    by_address: HashMap<IpAddr, u32>,
    strangers: usize,
    next: u64,
}

struct Connection {
    address: IpAddr,
    /// Since when nothing is asked, in nanoseconds since `began`; [`BUSY`] while something is.
    idle_since: Arc<AtomicU64>,
    shed: CancellationToken,
}

/// A connection's place; given back with it.
pub struct Place {
    number: u64,
    places: Arc<Places>,
    began: Instant,
    idle_since: Arc<AtomicU64>,
    /// Somebody else has the place: the connection ends as soon as it may.
    pub shed: CancellationToken,
}

/// Whether commands of this machine ask from there.
fn is_own(address: IpAddr) -> bool {
    address == IpAddr::from([127, 0, 0, 1]) || address.is_ipv6() && address.is_loopback()
}

impl Taken {
    fn remove(&mut self, number: u64) -> Option<Connection> {
        let connection = self.connections.remove(&number)?;
        self.strangers -= usize::from(!is_own(connection.address));
        if let Some(count) = self.by_address.get_mut(&connection.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&connection.address);
            }
        }
        Some(connection)
    }

    /// Whoever is idle for longest loses its place; a stranger takes none of this machine's own.
    fn shed(&mut self, by_own: bool) -> bool {
        let idle = self.connections.iter().filter_map(|(number, connection)| {
            let since = connection.idle_since.load(Ordering::Relaxed);
            (since != BUSY && (by_own || !is_own(connection.address))).then_some((since, *number))
        });
        let longest = idle.min().and_then(|(_, number)| self.remove(number));
        longest.inspect(|connection| connection.shed.cancel()).is_some()
    }
}

impl Places {
    /// A place for a connection of that address, at `now`; `None` where there is none for it. A proxy's connections are many
    /// people's: what one address may have does not bound it.
    pub fn take(
        self: &Arc<Self>,
        address: IpAddr,
        is_proxy: bool,
        began: Instant,
        now: Instant,
    ) -> Option<Place> {
        let mut taken = self.taken.lock();
        let own = is_own(address);
        if !is_proxy && taken.by_address.get(&address).is_some_and(|count| *count >= CONNECTIONS_PER_ADDRESS)
        {
            return None;
        }
        let full = taken.connections.len() >= CONNECTIONS_MAX
            || !own && taken.strangers >= CONNECTIONS_MAX - CONNECTIONS_KEPT_FREE;
        if full && !taken.shed(own) {
            return None;
        }
        let idle_since = Arc::new(AtomicU64::new(nanos(began, now)));
        let shed = CancellationToken::new();
        let number = taken.next;
        taken.next += 1;
        taken.strangers += usize::from(!own);
        *taken.by_address.entry(address).or_insert(0) += 1;
        let connection = Connection { address, idle_since: Arc::clone(&idle_since), shed: shed.clone() };
        taken.connections.insert(number, connection);
        Some(Place { number, places: Arc::clone(self), began, idle_since, shed })
    }
}

fn nanos(began: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(began).as_nanos()).unwrap_or(BUSY - 1)
}

impl Place {
    /// Something is asked, until what is given is dropped.
    pub fn busy(&self) -> Busy {
        self.idle_since.store(BUSY, Ordering::Relaxed);
        Busy { began: self.began, idle_since: Arc::clone(&self.idle_since) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().remove(self.number);
    }
}

/// See [`Place::busy`].
pub struct Busy {
    began: Instant,
    idle_since: Arc<AtomicU64>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.idle_since.store(nanos(self.began, Instant::now()), Ordering::Relaxed);
    }
}

/// An answer's body, with which the connection is busy until its end.
pub struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl BusyBody {
    /// That body.
    pub fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl hyper::body::Body for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OWN: [u8; 4] = [127, 0, 0, 1];

    fn stranger(number: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, (number / CONNECTIONS_PER_ADDRESS as usize) as u8])
    }

    #[test]
    fn an_address_has_its_places_and_a_proxy_has_more() {
        let (places, now) = (Arc::new(Places::default()), Instant::now());
        let take = |address: IpAddr, is_proxy| places.take(address, is_proxy, now, now);
        let mut held: Vec<Place> =
            (0..CONNECTIONS_PER_ADDRESS).filter_map(|_| take(stranger(0), false)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_ADDRESS as usize);
        assert!(take(stranger(0), false).is_none());
        assert!(take(stranger(200), false).is_some());
        held.extend(take(stranger(0), true));
        assert_eq!(held.len(), CONNECTIONS_PER_ADDRESS as usize + 1);
        drop(held);
        assert!(take(stranger(0), false).is_some());
        let taken = places.taken.lock();
        assert!(taken.by_address.is_empty() && taken.connections.is_empty() && taken.strangers == 0);
    }

    #[test]
    fn commands_have_their_places_whatever_others_hold() {
        let (places, began) = (Arc::new(Places::default()), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        let most = CONNECTIONS_MAX - CONNECTIONS_KEPT_FREE;
        let mut held: Vec<(Place, Busy)> = Vec::new();
        for number in 0..most {
            let place = places.take(stranger(number), false, began, at(number as u64)).expect("room");
            let busy = place.busy();
            held.push((place, busy));
        }
        assert!(places.take(stranger(600), false, began, at(1_000)).is_none(), "nobody is idle");
        let own: Vec<Place> = (0..CONNECTIONS_KEPT_FREE)
            .filter_map(|_| places.take(OWN.into(), false, began, at(1_000)))
            .collect();
        assert_eq!(own.len(), CONNECTIONS_KEPT_FREE);
        // Who is idle for longest makes room, and this machine's own do for none but its own.
        assert!(places.take(stranger(600), false, began, at(1_000)).is_none());
        for index in [7, 5, 9] {
            let (place, busy) = held.remove(index);
            drop(busy);
            place.idle_since.store(index as u64, Ordering::Relaxed);
            held.push((place, Busy { began, idle_since: Arc::default() }));
        }
        let newcomer = places.take(stranger(600), false, began, at(2_000)).expect("room was made");
        let shed = |held: &[(Place, Busy)]| -> Vec<u64> {
            let lost = held.iter().filter(|(place, _)| place.shed.is_cancelled());
            lost.map(|(place, _)| place.idle_since.load(Ordering::Relaxed)).collect()
        };
        assert_eq!(shed(&held), [5]);
        assert!(!newcomer.shed.is_cancelled() && own.iter().all(|place| !place.shed.is_cancelled()));
        assert_eq!(places.taken.lock().connections.len(), CONNECTIONS_MAX);
        drop(held);
        drop(own);
        assert_eq!(places.taken.lock().connections.len(), 1, "a place that was lost was given back twice");
    }
}
