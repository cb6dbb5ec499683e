//! The envelope between gateways and routers: what one says to the other, in memory now, over TCP later. Both sides
//! exchange these values and share no mutable state.
//!
//! A router sees a gateway as a numbered place that takes [`Down`]s; a gateway sees *the* router as something that takes
//! [`Up`]s. Which shard serves what is the router's secret: the gateway hands over a user or a channel and the link finds
//! the owner.
//!
//! **Order.** What one owner (of a channel, of a user) sends to one gateway arrives in the order it was sent; an
//! [`Down::Audience`] change therefore holds for exactly the [`Down::Fanout`]s behind it. Between owners there is no order.
//!
//! **Bounds.** A gateway grants each owner [`CREDIT_BYTES`] and gives credit back as it has handed bytes to its
//! connections ([`Up::Credit`]). Fan-out never waits for credit: the owner keeps a `behind` mark per channel and gateway
//! and later sends from the tail, or a GAP. Replies are bounded by the requests that caused them and are sent even without
//! credit. Upwards each owner has a bounded inbox; [`Uplink::send`] waits at most [`UP_WAIT_MAX`] for room.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;

use crate::{
    error::Code,
    frame::Frame,
    ids::{ChannelId, DeviceId, SessionId, UserId},
};

/// Bytes that one owner may have under way to one gateway.
pub const CREDIT_BYTES: u32 = 1 << 20;
/// How long a frame may wait for room in its owner's inbox before it is answered RETRY_LATER.
pub const UP_WAIT_MAX: Duration = Duration::from_secs(1);
/// What each message is charged against the credit beside its frames' bytes.
pub const MESSAGE_OVERHEAD_BYTES: u32 = 64;
/// Lanes (workers) a gateway may have.
pub const LANES_MAX: usize = 64;

/// One gateway process, as routers number them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GatewayId(pub u16);

/// A connection, as its gateway finds it without a map: lane (8 bits), slot (24 bits), generation (32 bits). Opaque to
/// routers but for the lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Handle(pub u64);

impl Handle {
    /// From its parts; a slot has 24 bits.
    pub fn new(lane: u8, slot: u32, generation: u32) -> Self {
        debug_assert!(slot < 1 << 24);
        Self(u64::from(lane) << 56 | u64::from(slot & 0x00ff_ffff) << 32 | u64::from(generation))
    }

    /// The worker that owns the connection.
    pub fn lane(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Its place in the worker's slab.
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ffff
    }

    /// Tells connections apart that had the same slot.
    pub fn generation(self) -> u32 {
        self.0 as u32
    }
}

/// A session as routers know it: at which gateway, which connection, whose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// Where.
    pub gateway: GatewayId,
    /// Which connection there.
    pub handle: Handle,
    /// Its id, given by the gateway.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
}

/// How soon a member's session gets a channel's entries. A session that asked for full delivery is `Active` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Tier {
    /// On a foreground screen.
    Visible = 0,
    /// At once.
    Active = 1,
    /// Bundled within 250 ms.
    Warm = 2,
    /// A NOTIFY within 5 s.
    Passive = 3,
    /// Passive, and the app is not on screen: within 15 s.
    Background = 4,
}

impl Tier {
    /// All of them, the soonest first.
    pub const ALL: [Self; 5] = [Self::Visible, Self::Active, Self::Warm, Self::Passive, Self::Background];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Active => "active",
            Self::Warm => "warm",
            Self::Passive => "passive",
            Self::Background => "background",
        }
    }
}

/// A set of tiers, bit n for tier n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tiers(pub u8);

impl Tiers {
    /// All of them.
    pub const ALL: Self = Self(0b1_1111);
    /// Those that get entries at once.
    pub const AT_ONCE: Self = Self(0b0_0011);
    /// Those that get them bundled.
    pub const WARM: Self = Self(0b0_0100);

    /// One of them.
    pub fn of(tier: Tier) -> Self {
        Self(1 << tier as u8)
    }

    /// Whether it has one of those whose frames go at once, before everything else.
    pub fn is_at_once(self) -> bool {
        self.0 & Self::AT_ONCE.0 != 0
    }

    /// Whether it holds that tier.
    pub fn contains(self, tier: Tier) -> bool {
        self.0 >> tier as u8 & 1 != 0
    }
}

/// How a session proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// A token whose signature and claims the gateway checked.
    Token {
        /// When it was issued, Unix seconds; the owner of the user refuses one from before a revocation.
        issued_s: u64,
        /// The device's generation it was issued at, where it is bound to the device; the owner refuses an older one.
        generation: Option<u32>,
    },
    /// A resume secret whose HMAC the gateway checked, made at this generation of the device.
    Resume {
        /// Raised by revocation; the owner of the user refuses an older one.
        generation: u32,
    },
}

/// From a gateway to an owner.
#[derive(Clone, Debug)]
pub enum Up {
    /// A session whose proof was checked asks to be registered with its user's owner, which answers
    /// [`Down::Opened`]. Nothing else of the session is sent before.
    Open {
        /// The session.
        origin: Origin,
        /// What was checked.
        proof: Proof,
        /// Whether it asked for full delivery.
        full: bool,
        /// What the client calls its device, for `session ls`.
        device_name: String,
    },
    /// The session is over; whatever it had in flight is answered to nobody. It may come before frames that the session sent last:
    /// these count all the same.
    Close {
        /// The session.
        origin: Origin,
    },
    /// A frame for the owner of its channel (SEND, RECEIPT, COUNTS, FETCH, TYPING), or of its user (ACK, SYNC, STATE, OPEN).
    Frame {
        /// Who sent it.
        origin: Origin,
        /// The whole frame, as it came.
        frame: Frame,
    },
    /// The gateway has handed on so many bytes that this owner sent.
    Credit {
        /// Which gateway.
        gateway: GatewayId,
        /// The owner's number, as it stood in [`Down`].
        owner: u16,
        /// Bytes, with [`MESSAGE_OVERHEAD_BYTES`] each.
        bytes: u32,
    },
}

/// What the owner of the user knows of a session it registered.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The user's name.
    pub user_name: String,
    /// The newest ACK of this device whose positions are all written.
    pub acks_confirmed: u64,
    /// The device's generation, for the resume secret.
    pub generation: u32,
    /// Tokens issued before this time are void, Unix seconds. It holds as long as the session: whatever raises it ends
    /// the session.
    pub tokens_from_s: u64,
}

/// One change of a channel's audience at a gateway.
#[derive(Clone, Copy, Debug)]
pub enum AudienceChange {
    /// The session is served from here on, as of this tier; also changes the tier of one that is.
    Add(Handle, Tier),
    /// It is not any more.
    Remove(Handle),
}

/// From an owner to a gateway.
#[derive(Clone, Debug)]
pub enum Down {
    /// The answer to [`Up::Open`].
    Opened {
        /// The connection.
        handle: Handle,
        /// What WELCOME needs, or why the session is refused.
        outcome: Result<Opened, Code>,
    },
    /// Whole frames, side by side, for one session, in the order given.
    Reply {
        /// The connection.
        handle: Handle,
        /// Frames.
        frames: Bytes,
    },
    /// Whole frames of one channel, side by side and ascending, for its audience. One message per gateway,
    /// whatever the number of members.
    Fanout {
        /// The channel.
        channel: ChannelId,
        /// The lanes that have members of it, bit n for lane n.
        lanes: u64,
        /// For whom.
        tiers: Tiers,
        /// Frames.
        frames: Bytes,
    },
    /// Corrects the gateway's mirror of a channel's audience.
    Audience {
        /// The channel.
        channel: ChannelId,
        /// What changed, all on one lane.
        changes: Vec<AudienceChange>,
    },
    /// Ends a session with an error number.
    Kick {
        /// The connection.
        handle: Handle,
        /// Why.
        code: Code,
    },
    /// ACKs up to this number are written: told to the device in the next PONG.
    Confirmed {
        /// The connection.
        handle: Handle,
        /// ACK number.
        number: u64,
    },
}

impl Down {
    /// The lanes it is for, bit n for lane n.
    pub fn lanes(&self) -> u64 {
        match self {
            Self::Opened { handle, .. }
            | Self::Reply { handle, .. }
            | Self::Kick { handle, .. }
            | Self::Confirmed { handle, .. } => 1 << handle.lane(),
            Self::Fanout { lanes, .. } => *lanes,
            Self::Audience { changes, .. } => changes.first().map_or(0, |change| match change {
                AudienceChange::Add(handle, _) | AudienceChange::Remove(handle) => 1 << handle.lane(),
            }),
        }
    }

    /// What it is charged against the owner's credit.
    pub fn charge_bytes(&self) -> u32 {
        let frames = match self {
            Self::Reply { frames, .. } | Self::Fanout { frames, .. } => frames.len() as u32,
            _ => 0,
        };
        frames + MESSAGE_OVERHEAD_BYTES
    }
}

/// A gateway's way to the owners.
pub trait Uplink: Send + Sync + 'static {
    /// Hands over without waiting.
    ///
    /// # Errors
    /// Gives the message back where its owner's inbox is full.
    fn try_send(&self, up: Up) -> Result<(), Box<Up>>;

    /// Takes a place for a message at its owner, to be handed over by [`Self::hand_over`]. Says whether there was one.
    fn reserve(&self, up: &Up) -> bool;

    /// Hands over messages whose places are taken, each owner's in the order given; `ups` is empty then. What was read in
    /// one turn of a lane goes together, and wakes the router once.
    fn hand_over(&self, ups: &mut Vec<Up>);

    /// Waits up to [`UP_WAIT_MAX`] for room. Close and Credit always find room.
    ///
    /// # Errors
    /// `RETRY_LATER` where none came.
    fn send(&self, up: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>>;
}

/// A router's way to one gateway. Never blocks: what may be under way is bounded by credit.
pub trait Downlink: Send + Sync + 'static {
    /// Hands over; `owner` is given back in [`Up::Credit`]. A gateway that is gone takes nothing; its sessions are closed
    /// by its [`Up::Close`]s or by the link.
    fn send(&self, owner: u16, down: Down);

    /// The same of all that a pass of the router has, each owner's in the order given; `downs` is empty then. Each lane is
    /// woken once.
    fn send_all(&self, downs: &mut Vec<(u16, Down)>) {
        for (owner, down) in downs.drain(..) {
            self.send(owner, down);
        }
    }
}

/// The number of what tells presence, in place of an owner's: see [`Activities::credit`].
pub const PRESENCE_OWNER: u16 = u16::MAX;

/// One session that lives, as its gateway tells every 15 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alive {
    /// The session.
    pub origin: Origin,
    /// How long nothing has come from it, in milliseconds.
    pub silent_ms: u32,
    /// What it last said of its screen; `None` where it never did.
    pub foreground: Option<bool>,
}

/// What sessions do, as far as presence follows from it.
#[derive(Clone, Debug)]
pub enum Activity {
    /// A session is open.
    Up(Origin),
    /// It is over. It was heard of last so many milliseconds ago.
    Down(Origin, u32),
    /// It said whether it is in the foreground.
    Shown(Origin, bool),
    /// Sessions that are still there: what was lost on the way is made good by it.
    Alive(Vec<Alive>),
    /// A client's PRESENCE, checked.
    Presence(Origin, Frame),
}

/// Where gateways tell what their sessions do. Nothing here waits.
pub trait Activities: std::fmt::Debug + Send + Sync + 'static {
    /// Takes one word, of one gateway in the order given.
    ///
    /// # Errors
    /// `RETRY_LATER` for a [`Activity::Presence`] that finds no room; whatever else is lost is made good by the next
    /// [`Activity::Alive`], or by its absence.
    fn publish(&self, activity: Activity) -> Result<(), Code>;

    /// Bytes that [`PRESENCE_OWNER`] sent were handed on.
    fn credit(&self, gateway: GatewayId, bytes: u32);
}
