//! A user as the owner of its shard holds it: sessions, devices with their positions, and the list of channels.

mod sync;

use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame, FrameType, SessionId, UserId,
    limits::REPEATED_MAX,
    link::{Down, Opened, Origin, Proof},
    wire,
};
use fanfare_storage::{
    model::{CursorBatch, Device, DevicePosition, ListChange, User as Row},
    mutant,
};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use crate::{
    admin::SessionSummary,
    desk::{Desk, Due},
    event::{Cause, Subscribe, Touch, Written},
    frames,
    load::LoadedUser,
    writer::Job,
};
pub use sync::Syncing;

/// Devices whose positions are kept in memory for one user.
const DEVICES_MAX: usize = 64;

/// A session that asked to be opened.
#[derive(Clone)]
pub struct OpenSession {
    /// Which.
    pub origin: Origin,
    /// What its gateway checked.
    pub proof: Proof,
    /// It asked for full delivery.
    pub full: bool,
    /// What the client calls its device.
    pub device_name: String,
}

/// One live session.
pub struct Session {
    origin: Origin,
    device_name: String,
    since_ms: u64,
    /// It has asked for its channels: those the user joins from then on are followed too.
    follows: bool,
    syncing: Option<Syncing>,
}

/// A device that was heard of since the user was loaded.
struct OpenDevice {
    row: Device,
    positions: HashMap<ChannelId, (u32, u64), RandomState>,
    dirty: HashSet<ChannelId, RandomState>,
    /// The newest ACK taken.
    acks: u64,
}

/// See the module.
pub struct User {
    row: Row,
    known: HashMap<DeviceId, Device, RandomState>,
    devices: HashMap<DeviceId, OpenDevice, RandomState>,
    channels: HashSet<ChannelId, RandomState>,
    sessions: Vec<Session>,
    opening: Vec<OpenSession>,
    is_due: bool,
}

impl User {
    /// As read, with the list changes that are not drained.
    pub fn of_loaded<'a>(loaded: LoadedUser, changes: impl Iterator<Item = &'a ListChange>) -> Self {
        let mut user = Self {
            row: loaded.user,
            known: loaded.devices.into_iter().map(|device| (device.device, device)).collect(),
            devices: HashMap::default(),
            channels: loaded.channels.into_iter().collect(),
            sessions: Vec::new(),
            opening: Vec::new(),
            is_due: false,
        };
        for change in changes {
            user.list(change);
        }
        if let Some((device, positions)) = loaded.positions {
            user.add_device(device, positions);
        }
        user
    }

    /// The channels in its list.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> + '_ {
        self.channels.iter().copied()
    }

    /// Sessions.
    pub fn sessions_len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody needs it in memory.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.opening.is_empty() && !self.is_due
    }

    fn list(&mut self, change: &ListChange) {
        if change.listed {
            self.channels.insert(change.channel);
        } else {
            self.channels.remove(&change.channel);
        }
    }

    /// The user joined or left a channel. Sessions that follow its channels follow a new one from the entry that lists it.
    pub fn listed(&mut self, desk: &Desk, change: &ListChange) {
        self.list(change);
        if !change.listed {
            return;
        }
        for session in self.sessions.iter().filter(|session| session.follows) {
            let subscribe = Subscribe {
                origin: session.origin,
                position: None,
                is_explicit: false,
                cause: Cause::Joined(change.seq),
            };
            desk.post_channel(change.channel, Touch::Subscribe(subscribe));
        }
    }

    /// Whether the device's positions are in memory.
    pub fn has_device(&self, device: DeviceId) -> bool {
        self.devices.contains_key(&device)
    }

    /// The device's positions are being read.
    pub fn wait_for_device(&mut self, open: OpenSession) {
        self.opening.push(open);
    }

    /// The device's positions were read: gives the sessions that waited for them.
    pub fn device_read(
        &mut self,
        device: DeviceId,
        positions: Result<Vec<DevicePosition>, Code>,
    ) -> (Vec<OpenSession>, Option<Code>) {
        let (ready, rest) = self.opening.drain(..).partition(|open| open.origin.device == device);
        self.opening = rest;
        match positions {
            Err(code) => (ready, Some(code)),
            Ok(positions) => {
                if !self.devices.contains_key(&device) {
                    self.add_device(device, positions);
                }
                (ready, None)
            }
        }
    }

    fn add_device(&mut self, device: DeviceId, positions: Vec<DevicePosition>) {
        if self.devices.len() >= DEVICES_MAX {
            let live: Vec<DeviceId> = self.sessions.iter().map(|session| session.origin.device).collect();
            self.devices.retain(|device, open| live.contains(device) || !open.dirty.is_empty());
        }
        let row = self.known.get(&device).cloned().unwrap_or(Device {
            user: self.row.user,
            device,
            name: String::new(),
            generation: 0,
            acks_confirmed: 0,
            seen_ms: 0,
        });
        let positions = positions
            .into_iter()
            .map(|position| (position.channel, (position.epoch, position.seq)))
            .collect();
        let acks = row.acks_confirmed;
        self.devices.insert(device, OpenDevice { row, positions, dirty: HashSet::default(), acks });
    }

    /// Registers a session, or refuses it. The device's positions are in memory.
    pub fn open(&mut self, desk: &mut Desk, open: OpenSession) {
        let OpenSession { origin, proof, full, device_name } = open;
        let outcome = self.admit(desk, &origin, proof, full, device_name);
        if let Ok(_opened) = &outcome {
            let replaced: Vec<Origin> = self
                .sessions
                .iter()
                .map(|session| session.origin)
                .filter(|other| other.device == origin.device && other.session != origin.session)
                .collect();
            for other in replaced {
                desk.gateways.tell(&other, Down::Kick { handle: other.handle, code: Code::REPLACED });
                self.close(desk, &other);
            }
        }
        desk.gateways.tell(&origin, Down::Opened { handle: origin.handle, outcome });
    }

    fn admit(
        &mut self,
        desk: &mut Desk,
        origin: &Origin,
        proof: Proof,
        full: bool,
        device_name: String,
    ) -> Result<Opened, Code> {
        if self.row.flags & Row::DISABLED != 0 {
            return Err(Code::REVOKED);
        }
        if full && self.row.flags & Row::FULL_DELIVERY == 0 {
            return Err(Code::DELIVERY_REFUSED);
        }
        let device = self.devices.get_mut(&origin.device).ok_or(Code::RETRY_LATER)?;
        match proof {
            Proof::Resume { generation } if generation != device.row.generation => {
                return Err(Code::RESUME_REFUSED);
            }
            Proof::Token { issued_s, .. } if issued_s < self.row.tokens_from_s => return Err(Code::REVOKED),
            Proof::Token { generation: Some(generation), .. } if generation != device.row.generation => {
                return Err(Code::REVOKED);
            }
            Proof::Resume { .. } | Proof::Token { .. } => {}
        }
        let now_ms = desk.context.now_ms();
        device.row.name.clone_from(&device_name);
        device.row.seen_ms = now_ms;
        let opened = Opened {
            user_name: self.row.name.clone(),
            acks_confirmed: device.row.acks_confirmed,
            generation: device.row.generation,
            tokens_from_s: self.row.tokens_from_s,
        };
        let batch = CursorBatch { devices: vec![device.row.clone()], ..Default::default() };
        desk.context.cursors.push(Job { batch, then: None });
        self.sessions.retain(|session| session.origin.session != origin.session);
        self.sessions.push(Session {
            origin: *origin,
            device_name,
            since_ms: now_ms,
            follows: false,
            syncing: None,
        });
        Ok(opened)
    }

    /// A session is over: its channels' owners are told.
    pub fn close(&mut self, desk: &mut Desk, origin: &Origin) {
        self.opening.retain(|open| open.origin.session != origin.session);
        let Some(place) = self.sessions.iter().position(|one| one.origin.session == origin.session) else {
            return;
        };
        let session = self.sessions.swap_remove(place);
        if session.follows {
            for channel in &self.channels {
                desk.post_channel(*channel, Touch::Unsubscribe(session.origin));
            }
        }
        if let Some(device) = self.devices.get_mut(&origin.device) {
            device.row.seen_ms = desk.context.now_ms();
            if !device.dirty.is_empty() || device.acks > device.row.acks_confirmed {
                // Written soon, so that the next session of the device begins where this one ended.
                self.write_positions(desk);
            }
        }
    }

    /// All sessions at a gateway are over.
    pub fn close_at(&mut self, desk: &mut Desk, gateway: fanfare_proto::link::GatewayId) {
        let gone: Vec<Origin> = self
            .sessions
            .iter()
            .map(|session| session.origin)
            .filter(|origin| origin.gateway == gateway)
            .collect();
        self.opening.retain(|open| open.origin.gateway != gateway);
        for origin in gone {
            self.close(desk, &origin);
        }
    }

    /// Ends sessions, of one device where given; gives how many.
    pub fn kick(&mut self, desk: &mut Desk, device: Option<DeviceId>, code: Code) -> usize {
        let gone: Vec<Origin> = self
            .sessions
            .iter()
            .map(|session| session.origin)
            .chain(self.opening.iter().map(|open| open.origin))
            .filter(|origin| device.is_none_or(|device| device == origin.device))
            .filter(|_| !mutant::is("session-outlives-revocation"))
            .collect();
        for origin in &gone {
            desk.gateways.tell(origin, Down::Kick { handle: origin.handle, code });
            self.close(desk, origin);
        }
        gone.len()
    }

    /// Frames for all sessions.
    pub fn tell(&self, desk: &mut Desk, frames: &bytes::Bytes) {
        for session in &self.sessions {
            desk.gateways.reply(&session.origin, frames.clone());
        }
    }

    /// The device's generation was raised.
    pub fn revoked(&mut self, desk: &mut Desk, device: DeviceId, generation: u32) -> usize {
        if let Some(open) = self.devices.get_mut(&device)
            && !mutant::is("session-cache-ignores-revoke")
        {
            open.row.generation = generation;
        }
        if let Some(known) = self.known.get_mut(&device) {
            known.generation = generation;
        }
        self.kick(desk, Some(device), Code::REVOKED)
    }

    /// The row changed in SQL: sessions end with this error, and what opens from here on goes by the new row. Gives the
    /// devices that are known, for the caller to raise their generations.
    pub fn row_changed(&mut self, desk: &mut Desk, row: Row, code: Code) -> Vec<DeviceId> {
        self.row = row;
        self.kick(desk, None, code);
        let mut devices: Vec<DeviceId> = self.known.keys().chain(self.devices.keys()).copied().collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// ACK, SYNC and STATE of a session of this user.
    pub fn frame(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let result = match frame.frame_type() {
            FrameType::Ack => self.ack(desk, &origin, frame),
            FrameType::Sync => self.sync(desk, &origin, frame),
            FrameType::State => frame.decode::<wire::State>().and_then(|state| {
                // Tiers are not computed yet: what the screen shows changes nothing.
                if state.visible.len() > REPEATED_MAX { Err(Code::BAD_FIELD) } else { Ok(()) }
            }),
            _ => Err(Code::NOT_SERVED),
        };
        if let Err(code) = result {
            desk.gateways.reply(&origin, frames::failed(frame.frame_type(), code));
        }
    }

    fn ack(&mut self, desk: &mut Desk, origin: &Origin, frame: &Frame) -> Result<(), Code> {
        let ack: wire::Ack = frame.decode()?;
        if ack.positions.len() > REPEATED_MAX {
            return Err(Code::BAD_FIELD);
        }
        let device = self.devices.get_mut(&origin.device).ok_or(Code::RETRY_LATER)?;
        for position in ack.positions {
            let channel = ChannelId(position.channel);
            let to = (position.epoch, position.seq);
            if self.channels.contains(&channel) && position.seq >> 63 == 0 {
                let held = device.positions.entry(channel).or_insert((0, 0));
                if to > *held {
                    *held = to;
                    device.dirty.insert(channel);
                }
            }
        }
        device.acks = device.acks.max(ack.number);
        self.make_due(desk);
        Ok(())
    }

    fn make_due(&mut self, desk: &mut Desk) {
        if !self.is_due {
            self.is_due = true;
            desk.at(Instant::now() + desk.context.config.cursors_every, Due::Positions(self.row.user));
        }
    }

    /// Hands what moved to the writer, and to the channels' owners: what a device holds was delivered to its user.
    pub fn write_positions(&mut self, desk: &mut Desk) {
        let user = self.row.user;
        for (device, open) in &mut self.devices {
            if open.dirty.is_empty() && open.acks <= open.row.acks_confirmed {
                continue;
            }
            if !desk.context.cursors.has_room() {
                self.is_due = true;
                desk.at(Instant::now() + std::time::Duration::from_secs(1), Due::Positions(user));
                return;
            }
            let positions: Vec<DevicePosition> = open
                .dirty
                .drain()
                .filter_map(|channel| {
                    let (epoch, seq) = *open.positions.get(&channel)?;
                    Some(DevicePosition { user, device: *device, channel, epoch, seq })
                })
                .collect();
            for position in &positions {
                desk.post_channel(position.channel, Touch::Delivered(user, position.seq));
            }
            let row = Device { acks_confirmed: open.acks, ..open.row.clone() };
            let then = Some((desk.shard, Written::Device(user, *device, open.acks)));
            let batch = CursorBatch { positions, devices: vec![row], ..Default::default() };
            desk.context.cursors.push(Job { batch, then });
        }
        self.is_due = false;
    }

    /// ACKs of the device up to that number are written.
    pub fn confirmed(&mut self, desk: &mut Desk, device: DeviceId, number: u64) {
        let Some(open) = self.devices.get_mut(&device) else { return };
        open.row.acks_confirmed = open.row.acks_confirmed.max(number);
        let number = open.row.acks_confirmed;
        for session in self.sessions.iter().filter(|session| session.origin.device == device) {
            let origin = session.origin;
            desk.gateways.tell(&origin, Down::Confirmed { handle: origin.handle, number });
        }
    }

    /// For people.
    pub fn summaries(&self) -> Vec<SessionSummary> {
        self.sessions
            .iter()
            .map(|session| SessionSummary {
                user: self.row.user,
                session: session.origin.session,
                device: session.origin.device,
                device_name: session.device_name.clone(),
                gateway: session.origin.gateway,
                since_ms: session.since_ms,
            })
            .collect()
    }

    fn session(&mut self, session: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|one| one.origin.session == session)
    }

    /// Its id.
    pub fn id(&self) -> UserId {
        self.row.user
    }
}
