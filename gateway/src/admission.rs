//! Who may still come in: connections counted by address, by user and in all. A permit gives its place back when it is
//! dropped.

use std::{
    cell::Cell,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use dashmap::DashMap;
use fanfare_proto::{error::Code, ids::UserId, session::server::Bucket};
use parking_lot::Mutex;

use crate::config::Limits;

/// The counts of one gateway.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    addresses: DashMap<IpAddr, Arc<Address>>,
    users: DashMap<UserId, Arc<User>>,
    connections: AtomicU32,
    handshakes: AtomicU32,
    /// Of those the ones over TCP that have not begun.
    waiting: AtomicU32,
}

/// What the connections of one address share.
#[derive(Debug)]
struct Address {
    admission: Arc<Admission>,
    address: IpAddr,
    connections: AtomicU32,
}

/// What the connections of one user share.
#[derive(Debug)]
pub(crate) struct User {
    admission: Arc<Admission>,
    id: UserId,
    connections: AtomicU32,
    /// The rate of SENDs holds for the user, not for each connection.
    pub sends: Mutex<Bucket>,
}

/// A connection's place under its address and in all.
#[derive(Debug)]
pub(crate) struct AddressPermit {
    address: Arc<Address>,
    /// Connections of the lane that has this one.
    lane: Option<Arc<AtomicU32>>,
    /// The address had more connections than it may when this one came.
    over: bool,
}

/// A session's place under its user.
#[derive(Debug)]
pub(crate) struct UserPermit {
    pub user: Arc<User>,
}

/// What a handshake comes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    Tcp,
    Quic,
}

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    admission: Arc<Admission>,
    /// Over TCP, before its first turn.
    waits: Cell<bool>,
}

impl Admission {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            addresses: DashMap::new(),
            users: DashMap::new(),
            connections: AtomicU32::new(0),
            handshakes: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        })
    }

    /// Connections, handshakes included.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// A place for a connection of that address. Up to twice the bound connections are let in to be told why they are
    /// refused; beyond it is not worth an answer.
    pub fn address(self: &Arc<Self>, address: IpAddr) -> Option<AddressPermit> {
        let address = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None if v6.is_loopback() => address,
                None => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
            },
        };
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.limits.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let most = self.limits.connections_per_address;
        let of = self.addresses.entry(address).or_insert_with(|| {
            Arc::new(Address { admission: self.clone(), address, connections: AtomicU32::new(0) })
        });
        // Under the map's lock, as in `drop`: an entry that is counted is never removed.
        if of.connections.load(Ordering::Relaxed) >= most.saturating_mul(2) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let over = of.connections.fetch_add(1, Ordering::Relaxed) >= most;
        Some(AddressPermit { address: of.clone(), lane: None, over })
    }

    /// Handshakes under way.
    pub fn handshakes(&self) -> u32 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// A place for a handshake.
    pub fn handshake(self: &Arc<Self>, over: Over) -> Option<HandshakePermit> {
        if self.handshakes.fetch_add(1, Ordering::Relaxed) >= self.limits.handshakes_max {
            self.handshakes.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if over == Over::Tcp {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        Some(HandshakePermit { admission: self.clone(), waits: Cell::new(over == Over::Tcp) })
    }

    /// Handshakes over TCP that wait for their first turn: work of ours alone, which no peer holds up.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A place for a session of that user.
    ///
    /// # Errors
    /// `CONNECTIONS_PER_USER`.
    pub fn user(self: &Arc<Self>, id: UserId) -> Result<UserPermit, Code> {
        let user = self.users.entry(id).or_insert_with(|| {
            let (admission, sends) = (self.clone(), Mutex::default());
            Arc::new(User { admission, id, connections: AtomicU32::new(0), sends })
        });
        // Under the map's lock, as in `drop`: an entry that is counted is never removed.
        if user.connections.load(Ordering::Relaxed) >= self.limits.connections_per_user {
            return Err(Code::CONNECTIONS_PER_USER);
        }
        user.connections.fetch_add(1, Ordering::Relaxed);
        Ok(UserPermit { user: user.clone() })
    }
}

impl AddressPermit {
    /// Counts for a lane too, from here on.
    pub fn on_lane(&mut self, connections: &Arc<AtomicU32>) {
        connections.fetch_add(1, Ordering::Relaxed);
        self.lane = Some(connections.clone());
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.fetch_sub(1, Ordering::Relaxed);
        }
        let admission = &self.address.admission;
        admission.connections.fetch_sub(1, Ordering::Relaxed);
        admission.addresses.remove_if(&self.address.address, |_, address| {
            address.connections.fetch_sub(1, Ordering::Relaxed) == 1
        });
    }
}

impl AddressPermit {
    /// The address has more connections than it may: this one is told so and closed. Others of them may have gone while it waited.
    pub fn is_over(&self) -> bool {
        let most = self.address.admission.limits.connections_per_address;
        self.over && self.address.connections.load(Ordering::Relaxed) > most
    }
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        self.user
            .admission
            .users
            .remove_if(&self.user.id, |_, user| user.connections.fetch_sub(1, Ordering::Relaxed) == 1);
    }
}

impl HandshakePermit {
    /// The handshake's first turn has come.
    pub fn begun(&self) {
        if self.waits.replace(false) {
            self.admission.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.begun();
        self.admission.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let limits = Limits { connections_per_address: 2, connections_per_user: 1, ..Limits::DEFAULT };
        let admission = Admission::new(limits);
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let permits: Vec<_> = (0..5).map(|_| admission.address(address)).collect();
        let over: Vec<_> =
            permits.iter().map(|permit| permit.as_ref().map(|permit| permit.is_over())).collect();
        assert_eq!(over, [Some(false), Some(false), Some(true), Some(true), None]);
        drop(permits);
        assert!(admission.addresses.is_empty() && admission.connections() == 0);
        let user = admission.user(UserId(1)).unwrap();
        assert_eq!(admission.user(UserId(1)).unwrap_err(), Code::CONNECTIONS_PER_USER);
        drop(user);
        assert!(admission.users.is_empty());
        assert!(admission.user(UserId(1)).is_ok());
    }

    #[test]
    fn a_handshake_waits_until_it_has_begun_or_is_given_up() {
        let admission = Admission::new(Limits { handshakes_max: 2, ..Limits::DEFAULT });
        let (one, two) = (admission.handshake(Over::Tcp).unwrap(), admission.handshake(Over::Tcp).unwrap());
        assert!(admission.handshake(Over::Quic).is_none());
        assert_eq!((admission.waiting(), admission.handshakes()), (2, 2));
        one.begun();
        one.begun();
        assert_eq!((admission.waiting(), admission.handshakes()), (1, 2));
        drop((one, two));
        assert_eq!((admission.waiting(), admission.handshakes()), (0, 0));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let limits = Limits { connections_per_address: 1, ..Limits::DEFAULT };
        let admission = Admission::new(limits);
        let one = admission.address("2001:db8::1".parse().unwrap()).unwrap();
        let two = admission.address("2001:db8::2:0:0:1".parse().unwrap()).unwrap();
        let other = admission.address("2001:db8:0:1::1".parse().unwrap()).unwrap();
        let mapped = admission.address("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        let plain = admission.address("10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(
            [one.is_over(), two.is_over(), other.is_over(), mapped.is_over(), plain.is_over()],
            [false, true, false, false, true]
        );
    }
}
