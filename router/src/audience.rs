//! Who listens to a channel now: sessions per gateway, with what a fan-out needs of each gateway.

use fanfare_proto::{
    UserId,
    link::{GatewayId, Handle, LANES_MAX, Origin},
};
use smallvec::SmallVec;

use crate::shelves::{Keyed, Shelves};

/// A session that is served.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Where.
    pub gateway: GatewayId,
    /// Which connection.
    pub handle: Handle,
}

/// A session at one gateway: a handle names one session for as long as the gateway is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    user: UserId,
    handle: Handle,
}

const _: () = assert!(size_of::<Place>() == 16, "each session has one in each of its channels");

impl Keyed for Place {
    type Key = Self;

    fn key(&self) -> Self {
        *self
    }
}

/// What a channel knows of one gateway.
#[derive(Debug)]
pub struct AtGateway {
    /// Which.
    pub gateway: GatewayId,
    /// Sessions per lane, up to the highest that ever had one.
    lanes: SmallVec<[u32; 4]>,
    places: Shelves<Place>,
    /// Everything up to here was sent; set while the gateway is behind the head.
    pub behind: Option<u64>,
}

impl AtGateway {
    /// The lanes with sessions, bit n for lane n.
    pub fn lanes(&self) -> u64 {
        self.lanes
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .fold(0, |mask, (lane, _)| mask | 1 << lane)
    }

    fn lane(&mut self, handle: Handle) -> &mut u32 {
        let lane = usize::from(handle.lane()) % LANES_MAX;
        if lane >= self.lanes.len() {
            self.lanes.resize(lane + 1, 0);
        }
        &mut self.lanes[lane]
    }

    fn remove(&mut self, place: Place) -> bool {
        let gone = self.places.remove(place).is_some();
        if gone {
            *self.lane(place.handle) -= 1;
        }
        gone
    }

    fn of_user(&self, user: UserId) -> impl Iterator<Item = Handle> + '_ {
        let first = Place { user, handle: Handle(0) };
        self.places.from(first).take_while(move |place| place.user == user).map(|place| place.handle)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Audience {
    /// By gateway; few, none without sessions.
    pub gateways: SmallVec<[AtGateway; 1]>,
}

impl Audience {
    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
    }

    /// Sessions.
    pub fn len(&self) -> usize {
        self.gateways.iter().map(|at| at.places.len()).sum()
    }

    /// Whether the session is served.
    pub fn has(&self, origin: &Origin) -> bool {
        let place = Place { user: origin.user, handle: origin.handle };
        self.gateways.iter().any(|at| at.gateway == origin.gateway && at.places.get(place).is_some())
    }

    /// Serves a session.
    pub fn add(&mut self, origin: &Origin) {
        let at = match self.gateways.iter().position(|at| at.gateway == origin.gateway) {
            Some(place) => place,
            None => {
                self.gateways.push(AtGateway {
                    gateway: origin.gateway,
                    lanes: SmallVec::new(),
                    places: Shelves::default(),
                    behind: None,
                });
                self.gateways.len() - 1
            }
        };
        let at = &mut self.gateways[at];
        if at.places.insert(Place { user: origin.user, handle: origin.handle }).is_none() {
            *at.lane(origin.handle) += 1;
        }
    }

    fn forget_empty(&mut self) {
        self.gateways.retain(|at| at.places.len() > 0);
    }

    /// Serves a session no more; says whether it was.
    pub fn remove(&mut self, origin: &Origin) -> bool {
        let Some(at) = self.at(origin.gateway) else { return false };
        let gone = at.remove(Place { user: origin.user, handle: origin.handle });
        self.forget_empty();
        gone
    }

    /// Serves none of a user's sessions any more; gives them.
    pub fn remove_user(&mut self, user: UserId) -> SmallVec<[Listener; 1]> {
        let of = self.of_user(user);
        for Listener { gateway, handle } in &of {
            if let Some(at) = self.at(*gateway) {
                at.remove(Place { user, handle: *handle });
            }
        }
        self.forget_empty();
        of
    }

    /// Everything at a gateway is gone.
    pub fn remove_gateway(&mut self, gateway: GatewayId) {
        self.gateways.retain(|at| at.gateway != gateway);
    }

    /// A user's sessions.
    pub fn of_user(&self, user: UserId) -> SmallVec<[Listener; 1]> {
        let of = |at: &AtGateway| {
            let gateway = at.gateway;
            at.of_user(user).map(move |handle| Listener { gateway, handle }).collect::<SmallVec<[_; 1]>>()
        };
        self.gateways.iter().flat_map(of).collect()
    }

    /// What is known of a gateway.
    pub fn at(&mut self, gateway: GatewayId) -> Option<&mut AtGateway> {
        self.gateways.iter_mut().find(|at| at.gateway == gateway)
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{DeviceId, SessionId};

    use super::*;

    fn origin(gateway: u16, lane: u8, user: u64, session: u64) -> Origin {
        Origin {
            gateway: GatewayId(gateway),
            handle: Handle::new(lane, session as u32, 1),
            session: SessionId(session),
            user: UserId(user),
            device: DeviceId(session),
        }
    }

    #[test]
    fn sessions_come_and_go_by_gateway_and_user() {
        let mut audience = Audience::default();
        let all = [origin(1, 0, 7, 1), origin(1, 3, 7, 2), origin(2, 0, 7, 3), origin(1, 3, 8, 4)];
        for one in all.iter().chain(&all) {
            audience.add(one);
        }
        assert_eq!((audience.len(), audience.of_user(UserId(7)).len()), (4, 3));
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1001);
        assert!(audience.has(&all[1]) && audience.remove(&all[1]) && !audience.remove(&all[1]));
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1001);
        assert_eq!(audience.remove_user(UserId(8)).len(), 1);
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1);
        audience.remove_gateway(GatewayId(2));
        assert!(!audience.has(&all[2]) && audience.has(&all[0]));
        assert_eq!(audience.remove_user(UserId(7)).len(), 1);
        assert!(audience.is_empty());
    }
}
