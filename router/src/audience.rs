//! Who listens to a channel now: sessions per gateway, with what a fan-out needs of each gateway.

use fanfare_proto::{
    SessionId, UserId,
    link::{GatewayId, Handle, LANES_MAX, Origin},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

/// A session that is served.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Where.
    pub gateway: GatewayId,
    /// Which connection.
    pub handle: Handle,
    /// Its id.
    pub session: SessionId,
}

/// What a channel knows of one gateway.
#[derive(Debug)]
pub struct AtGateway {
    /// Which.
    pub gateway: GatewayId,
    /// Sessions per lane.
    lanes: Box<[u32; LANES_MAX]>,
    sessions: usize,
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
}

/// See the module.
#[derive(Debug, Default)]
pub struct Audience {
    listeners: HashMap<UserId, SmallVec<[Listener; 1]>, RandomState>,
    /// By gateway; few.
    pub gateways: SmallVec<[AtGateway; 1]>,
    sessions: usize,
}

fn lane_of(handle: Handle) -> usize {
    usize::from(handle.lane()) % LANES_MAX
}

impl Audience {
    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.sessions == 0
    }

    /// Sessions.
    pub fn len(&self) -> usize {
        self.sessions
    }

    /// Whether the session is served.
    pub fn has(&self, origin: &Origin) -> bool {
        self.listeners.get(&origin.user).is_some_and(|of| of.iter().any(|one| one.session == origin.session))
    }

    /// Serves a session.
    pub fn add(&mut self, origin: &Origin) {
        let of = self.listeners.entry(origin.user).or_default();
        if of.iter().any(|one| one.session == origin.session) {
            return;
        }
        of.push(Listener { gateway: origin.gateway, handle: origin.handle, session: origin.session });
        self.sessions += 1;
        let at = match self.gateways.iter().position(|at| at.gateway == origin.gateway) {
            Some(place) => place,
            None => {
                let lanes = Box::new([0; LANES_MAX]);
                self.gateways.push(AtGateway { gateway: origin.gateway, lanes, sessions: 0, behind: None });
                self.gateways.len() - 1
            }
        };
        let at = &mut self.gateways[at];
        at.sessions += 1;
        at.lanes[lane_of(origin.handle)] += 1;
    }

    fn count_out(&mut self, listener: &Listener) {
        self.sessions -= 1;
        if let Some(place) = self.gateways.iter().position(|at| at.gateway == listener.gateway) {
            let at = &mut self.gateways[place];
            at.sessions -= 1;
            at.lanes[lane_of(listener.handle)] -= 1;
            if at.sessions == 0 {
                self.gateways.swap_remove(place);
            }
        }
    }

    /// Serves a session no more; says whether it was.
    pub fn remove(&mut self, origin: &Origin) -> bool {
        let Some(of) = self.listeners.get_mut(&origin.user) else { return false };
        let Some(place) = of.iter().position(|one| one.session == origin.session) else { return false };
        let listener = of.swap_remove(place);
        if of.is_empty() {
            self.listeners.remove(&origin.user);
        }
        self.count_out(&listener);
        true
    }

    /// Serves none of a user's sessions any more; gives them.
    pub fn remove_user(&mut self, user: UserId) -> SmallVec<[Listener; 1]> {
        let of = self.listeners.remove(&user).unwrap_or_default();
        for listener in &of {
            self.count_out(listener);
        }
        of
    }

    /// Everything at a gateway is gone.
    pub fn remove_gateway(&mut self, gateway: GatewayId) {
        self.listeners.retain(|_, of| {
            of.retain(|one| one.gateway != gateway);
            !of.is_empty()
        });
        if let Some(place) = self.gateways.iter().position(|at| at.gateway == gateway) {
            self.sessions -= self.gateways[place].sessions;
            self.gateways.swap_remove(place);
        }
    }

    /// A user's sessions.
    pub fn of_user(&self, user: UserId) -> &[Listener] {
        self.listeners.get(&user).map_or(&[], |of| of.as_slice())
    }

    /// What is known of a gateway.
    pub fn at(&mut self, gateway: GatewayId) -> Option<&mut AtGateway> {
        self.gateways.iter_mut().find(|at| at.gateway == gateway)
    }
}
