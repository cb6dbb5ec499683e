//! Who listens to a channel now: sessions per gateway, with what a fan-out needs of each gateway.

use fanfare_activity::{Level, Shown};
use fanfare_proto::{
    UserId,
    link::{GatewayId, Handle, LANES_MAX, Origin, Tier},
};
use smallvec::SmallVec;

use crate::shelves::{Keyed, Shelves};

/// How a session is served in a channel: its tier, and what it shows where the tier does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Serving {
    /// It asked for full delivery.
    Full = 0,
    /// The channel is on its screen.
    Visible = 1,
    /// Active.
    Active = 2,
    /// Active, and the app is not on screen.
    ActiveBehind = 3,
    /// Warm.
    Warm = 4,
    /// Passive, and the app is on screen.
    Passive = 5,
    /// Passive, and the app is not on screen.
    Background = 6,
}

impl Serving {
    const ALL: [Self; 7] = [
        Self::Full,
        Self::Visible,
        Self::Active,
        Self::ActiveBehind,
        Self::Warm,
        Self::Passive,
        Self::Background,
    ];

    /// By what is shown and the score's level. There is no warm tier behind the screen: it would wake a telephone four times a second.
    pub fn of(shown: Shown, level: Level) -> Self {
        match (shown, level) {
            (Shown::Visible, _) => Self::Visible,
            (Shown::Foreground, Level::Active) => Self::Active,
            (Shown::Foreground, Level::Warm) => Self::Warm,
            (Shown::Foreground, Level::Passive) => Self::Passive,
            (Shown::Background, Level::Active) => Self::ActiveBehind,
            (Shown::Background, _) => Self::Background,
        }
    }

    /// The tier, as gateways know it.
    pub fn tier(self) -> Tier {
        match self {
            Self::Visible => Tier::Visible,
            Self::Full | Self::Active | Self::ActiveBehind => Tier::Active,
            Self::Warm => Tier::Warm,
            Self::Passive => Tier::Passive,
            Self::Background => Tier::Background,
        }
    }

    /// What the session shows; of no interest where it has full delivery.
    pub fn shown(self) -> Shown {
        match self {
            Self::Visible => Shown::Visible,
            Self::Full | Self::Active | Self::Warm | Self::Passive => Shown::Foreground,
            Self::ActiveBehind | Self::Background => Shown::Background,
        }
    }

    /// The level that it has.
    pub fn level(self) -> Level {
        match self.tier() {
            Tier::Visible | Tier::Active => Level::Active,
            Tier::Warm => Level::Warm,
            Tier::Passive | Tier::Background => Level::Passive,
        }
    }

    /// Whether time alone may take it down: its score is looked at now and then.
    pub fn may_fade(self) -> bool {
        matches!(self, Self::Visible | Self::Active | Self::ActiveBehind | Self::Warm)
    }
}

/// A session that is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listener {
    /// Where.
    pub gateway: GatewayId,
    /// Which connection.
    pub handle: Handle,
    /// How.
    pub serving: Serving,
}

/// A session at one gateway: a handle names one session for as long as the gateway is there. 16 bytes: how it is served stands in the
/// highest bit of the user, as ids have 63, and in the two highest of the handle, as there are at most 64 lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    user: u64,
    handle: u64,
}

const _: () = assert!(size_of::<Place>() == 16, "each session has one in each of its channels");
const _: () = assert!(LANES_MAX <= 64, "a place keeps other things in a handle's two highest bits");

const USER_BITS: u64 = u64::MAX >> 1;
const HANDLE_BITS: u64 = u64::MAX >> 2;

impl Place {
    fn new(user: UserId, handle: Handle, serving: Serving) -> Self {
        let bits = serving as u64;
        Self { user: user.0 & USER_BITS | bits >> 2 << 63, handle: handle.0 & HANDLE_BITS | bits << 62 }
    }

    fn user(self) -> UserId {
        UserId(self.user & USER_BITS)
    }

    fn handle(self) -> Handle {
        Handle(self.handle & HANDLE_BITS)
    }

    fn serving(self) -> Serving {
        let bits = self.user >> 63 << 2 | self.handle >> 62;
        Serving::ALL.get(bits as usize).copied().unwrap_or(Serving::Full)
    }
}

impl Keyed for Place {
    type Key = (UserId, Handle);

    fn key(&self) -> Self::Key {
        (self.user(), self.handle())
    }
}

/// What a channel knows of one gateway.
#[derive(Debug)]
pub struct AtGateway {
    /// Which.
    pub gateway: GatewayId,
    /// Sessions per lane, up to the highest that ever had one.
    lanes: SmallVec<[u32; 4]>,
    /// Sessions by how they are served.
    counts: [u32; Serving::ALL.len()],
    places: Shelves<Place>,
    /// Everything up to here was sent to those who get entries at once; set while the gateway is behind the head.
    pub behind: Option<u64>,
    /// Everything up to here was sent to warm sessions.
    pub warm_to: u64,
    /// The heads that passive sessions were told last: with the app on screen, and not.
    pub told: [u64; 2],
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

    /// Sessions of that tier.
    pub fn count(&self, tier: Tier) -> u32 {
        let of = Serving::ALL.iter().zip(self.counts).filter(|(serving, _)| serving.tier() == tier);
        of.map(|(_, count)| count).sum()
    }

    /// Whether anybody gets entries at once.
    pub fn has_at_once(&self) -> bool {
        self.count(Tier::Visible) + self.count(Tier::Active) > 0
    }

    fn lane(&mut self, handle: Handle) -> &mut u32 {
        let lane = usize::from(handle.lane()) % LANES_MAX;
        if lane >= self.lanes.len() {
            self.lanes.resize(lane + 1, 0);
        }
        &mut self.lanes[lane]
    }

    fn remove(&mut self, user: UserId, handle: Handle) -> bool {
        let gone = self.places.remove((user, handle));
        if let Some(gone) = gone {
            *self.lane(handle) -= 1;
            self.counts[gone.serving() as usize] -= 1;
        }
        gone.is_some()
    }

    fn of_user(&self, user: UserId) -> impl Iterator<Item = Listener> + '_ {
        let gateway = self.gateway;
        self.places
            .from((user, Handle(0)))
            .take_while(move |place| place.user() == user)
            .map(move |place| Listener { gateway, handle: place.handle(), serving: place.serving() })
    }

    /// All sessions here, with their users.
    pub fn all(&self) -> impl Iterator<Item = (UserId, Listener)> + '_ {
        let gateway = self.gateway;
        self.places.iter().map(move |place| {
            (place.user(), Listener { gateway, handle: place.handle(), serving: place.serving() })
        })
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

    /// How the session is served, if it is.
    pub fn serving(&self, gateway: GatewayId, user: UserId, handle: Handle) -> Option<Serving> {
        let at = self.gateways.iter().find(|at| at.gateway == gateway)?;
        at.places.get((user, handle)).map(Place::serving)
    }

    /// Whether the session is served.
    pub fn has(&self, origin: &Origin) -> bool {
        self.serving(origin.gateway, origin.user, origin.handle).is_some()
    }

    /// Serves a session, or serves it otherwise. A gateway that had none is at `head`.
    pub fn add(&mut self, origin: &Origin, serving: Serving, head: u64) {
        let at = match self.gateways.iter().position(|at| at.gateway == origin.gateway) {
            Some(place) => place,
            None => {
                self.gateways.push(AtGateway {
                    gateway: origin.gateway,
                    lanes: SmallVec::new(),
                    counts: Default::default(),
                    places: Shelves::default(),
                    behind: None,
                    warm_to: head,
                    told: [head; 2],
                });
                self.gateways.len() - 1
            }
        };
        let at = &mut self.gateways[at];
        match at.places.insert(Place::new(origin.user, origin.handle, serving)) {
            Some(known) => at.counts[known.serving() as usize] -= 1,
            None => *at.lane(origin.handle) += 1,
        }
        at.counts[serving as usize] += 1;
    }

    /// Serves a session that is served otherwise.
    pub fn set(&mut self, user: UserId, listener: &Listener, serving: Serving) {
        let Some(at) = self.at(listener.gateway) else { return };
        if let Some(known) = at.places.get((user, listener.handle)) {
            at.places.insert(Place::new(user, listener.handle, serving));
            at.counts[known.serving() as usize] -= 1;
            at.counts[serving as usize] += 1;
        }
    }

    fn forget_empty(&mut self) {
        self.gateways.retain(|at| at.places.len() > 0);
    }

    /// Serves a session no more; says whether it was.
    pub fn remove(&mut self, origin: &Origin) -> bool {
        let Some(at) = self.at(origin.gateway) else { return false };
        let gone = at.remove(origin.user, origin.handle);
        self.forget_empty();
        gone
    }

    /// Serves none of a user's sessions any more; gives them.
    pub fn remove_user(&mut self, user: UserId) -> SmallVec<[Listener; 1]> {
        let of = self.of_user(user);
        for Listener { gateway, handle, .. } in &of {
            if let Some(at) = self.at(*gateway) {
                at.remove(user, *handle);
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
        self.gateways.iter().flat_map(|at| at.of_user(user)).collect()
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
            audience.add(one, Serving::Warm, 5);
        }
        assert_eq!((audience.len(), audience.of_user(UserId(7)).len()), (4, 3));
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1001);
        assert_eq!(
            (audience.at(GatewayId(1)).unwrap().warm_to, audience.gateways[0].count(Tier::Warm)),
            (5, 3)
        );
        assert!(audience.has(&all[1]) && audience.remove(&all[1]) && !audience.remove(&all[1]));
        assert_eq!(audience.gateways[0].count(Tier::Warm), 2);
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1001);
        assert_eq!(audience.remove_user(UserId(8)).len(), 1);
        assert_eq!(audience.at(GatewayId(1)).unwrap().lanes(), 0b1);
        audience.remove_gateway(GatewayId(2));
        assert!(!audience.has(&all[2]) && audience.has(&all[0]));
        assert_eq!(audience.remove_user(UserId(7)).len(), 1);
        assert!(audience.is_empty());
    }

    #[test]
    fn how_a_session_is_served_fits_its_place() {
        for (number, serving) in Serving::ALL.into_iter().enumerate() {
            assert_eq!(serving as usize, number);
            let (user, handle) = (UserId(USER_BITS), Handle::new(63, (1 << 24) - 1, u32::MAX));
            let place = Place::new(user, handle, serving);
            assert_eq!((place.user(), place.handle(), place.serving()), (user, handle, serving));
            if serving != Serving::Full {
                assert_eq!(Serving::of(serving.shown(), serving.level()), serving);
            }
        }
        let mut audience = Audience::default();
        let one = origin(1, 0, 7, 1);
        audience.add(&one, Serving::Background, 0);
        let listener = audience.of_user(UserId(7))[0];
        audience.set(UserId(7), &listener, Serving::Visible);
        assert_eq!(audience.serving(GatewayId(1), UserId(7), one.handle), Some(Serving::Visible));
        assert_eq!(Tier::ALL.map(|tier| audience.gateways[0].count(tier)), [1, 0, 0, 0, 0]);
    }
}
