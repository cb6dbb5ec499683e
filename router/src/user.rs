//! A user as the owner of its shard holds it: sessions, devices with their positions, and the list of channels.

mod positions;
mod screen;
mod sync;

use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame, FrameType, SessionId, UserId,
    limits::REPEATED_MAX,
    link::{Down, GatewayId, Handle, Opened, Origin, Proof},
    wire,
};
use fanfare_storage::{
    model::{CursorBatch, Device, DevicePosition, ListChange, User as Row},
    mutant,
};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{
    admin::SessionSummary,
    desk::{Desk, Due},
    event::{Cause, Subscribe, Touch, Written},
    frames,
    load::LoadedUser,
    writer::Job,
};
use positions::{Channels, Positions};
use screen::Screen;
use sync::Syncing;

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

/// One live session. Its device has its name and since when it is there.
struct Session {
    handle: Handle,
    session: SessionId,
    syncing: Option<Box<Syncing>>,
    gateway: GatewayId,
    /// It has asked for its channels: those the user joins from then on are followed too.
    follows: bool,
    /// It has full delivery: what it shows changes nothing.
    is_full: bool,
    /// What it shows; `None`: the app is not on screen.
    screen: Option<Box<Screen>>,
}

/// A device, known from the stores or heard of since.
struct OpenDevice {
    device: DeviceId,
    /// As its client calls it.
    name: Box<str>,
    acks_confirmed: u64,
    /// The newest ACK taken.
    acks: u64,
    /// Unix milliseconds of the last open or close.
    seen_ms: u64,
    /// That is to be written.
    seen_due: bool,
    /// `None` while they are not in memory.
    positions: Option<Positions>,
    /// A session that opens ends the one before it.
    session: Option<Session>,
    generation: u32,
    /// It is in the stores, or will be: it has opened.
    is_stored: bool,
}

impl OpenDevice {
    fn new(device: DeviceId) -> Self {
        Self {
            device,
            name: Box::default(),
            acks_confirmed: 0,
            acks: 0,
            seen_ms: 0,
            seen_due: false,
            positions: None,
            session: None,
            generation: 0,
            is_stored: false,
        }
    }

    fn of_row(row: Device) -> Self {
        Self {
            name: row.name.into(),
            acks_confirmed: row.acks_confirmed,
            acks: row.acks_confirmed,
            seen_ms: row.seen_ms,
            generation: row.generation,
            is_stored: true,
            ..Self::new(row.device)
        }
    }

    fn row(&self, user: UserId, acks_confirmed: u64) -> Device {
        Device {
            user,
            device: self.device,
            name: self.name.to_string(),
            generation: self.generation,
            acks_confirmed,
            seen_ms: self.seen_ms,
        }
    }

    fn is_dirty(&self) -> bool {
        self.positions.as_ref().is_some_and(Positions::is_dirty)
    }

    /// Something of it is to be written.
    fn is_due(&self) -> bool {
        self.is_dirty() || self.acks > self.acks_confirmed || self.seen_due
    }

    fn origin(&self, user: UserId) -> Option<Origin> {
        let Session { handle, session, gateway, .. } = *self.session.as_ref()?;
        Some(Origin { gateway, handle, session, user, device: self.device })
    }
}

/// See the module. One of it stays in memory for as long as one of its sessions does: most have one device, and one session.
pub struct User {
    id: UserId,
    name: Box<str>,
    /// As in its row.
    flags: u32,
    is_due: bool,
    tokens_from_s: u64,
    devices: SmallVec<[OpenDevice; 1]>,
    channels: Channels,
    #[expect(clippy::box_collection, reason = "8 bytes in a user of whom nobody opens")]
    opening: Option<Box<Vec<OpenSession>>>,
}

const _: () = assert!(size_of::<User>() <= 208, "each session's user has one");

impl User {
    /// As read, with the list changes that are not drained.
    pub fn of_loaded<'a>(loaded: LoadedUser, changes: impl Iterator<Item = &'a ListChange>) -> Self {
        let mut user = Self {
            id: loaded.user.user,
            name: loaded.user.name.into(),
            flags: loaded.user.flags,
            is_due: false,
            tokens_from_s: loaded.user.tokens_from_s,
            devices: loaded.devices.into_iter().map(OpenDevice::of_row).collect(),
            channels: Channels::of(loaded.channels),
            opening: None,
        };
        for change in changes {
            user.list(change);
        }
        if let Some((device, positions)) = loaded.positions {
            user.add_device(device, &positions);
        }
        user
    }

    /// The channels in its list.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> + '_ {
        self.channels.iter()
    }

    /// Sessions.
    pub fn sessions_len(&self) -> usize {
        self.origins().count()
    }

    fn origins(&self) -> impl Iterator<Item = Origin> + '_ {
        self.devices.iter().filter_map(|device| device.origin(self.id))
    }

    fn device(&mut self, device: DeviceId) -> Option<&mut OpenDevice> {
        self.devices.iter_mut().find(|one| one.device == device)
    }

    /// Whether nobody needs it in memory.
    pub fn is_idle(&self) -> bool {
        self.devices.iter().all(|device| device.session.is_none()) && self.opening.is_none() && !self.is_due
    }

    fn list(&mut self, change: &ListChange) {
        if change.listed {
            self.channels.insert(change.channel);
        } else {
            self.channels.remove(change.channel);
        }
    }

    /// The user joined or left a channel. Sessions that follow its channels follow a new one from the entry that lists it.
    pub fn listed(&mut self, desk: &Desk, change: &ListChange) {
        self.list(change);
        if !change.listed {
            return;
        }
        for device in &self.devices {
            let Some(origin) = device.origin(self.id) else { continue };
            let Some(session) = device.session.as_ref().filter(|session| session.follows) else { continue };
            let wants = session.wants(change.channel);
            let cause = Cause::Joined(change.seq);
            let subscribe = Subscribe { origin, position: None, is_explicit: false, wants, cause };
            desk.post_channel(change.channel, Touch::Subscribe(subscribe));
        }
    }

    /// Whether the device's positions are in memory.
    pub fn has_device(&self, device: DeviceId) -> bool {
        self.devices.iter().any(|one| one.device == device && one.positions.is_some())
    }

    /// The device's positions are being read.
    pub fn wait_for_device(&mut self, open: OpenSession) {
        self.opening.get_or_insert_default().push(open);
    }

    /// The device's positions were read: gives the sessions that waited for them.
    pub fn device_read(
        &mut self,
        device: DeviceId,
        positions: Result<Vec<DevicePosition>, Code>,
    ) -> (Vec<OpenSession>, Option<Code>) {
        let opening = self.opening.take().unwrap_or_default();
        let (ready, rest): (Vec<_>, Vec<_>) =
            opening.into_iter().partition(|open| open.origin.device == device);
        self.opening = (!rest.is_empty()).then(|| Box::new(rest));
        match positions {
            Err(code) => (ready, Some(code)),
            Ok(positions) => {
                if !self.has_device(device) {
                    self.add_device(device, &positions);
                }
                (ready, None)
            }
        }
    }

    fn add_device(&mut self, device: DeviceId, positions: &[DevicePosition]) {
        let in_memory = self.devices.iter().filter(|one| one.positions.is_some()).count();
        if in_memory >= DEVICES_MAX {
            for one in self.devices.iter_mut().filter(|one| one.session.is_none() && !one.is_dirty()) {
                one.positions = None;
            }
            self.devices.retain(|one| one.is_stored || one.positions.is_some());
        }
        let positions = Some(Positions::of(positions));
        match self.device(device) {
            Some(known) => known.positions = positions,
            None => {
                self.devices.reserve_exact(1);
                self.devices.push(OpenDevice { positions, ..OpenDevice::new(device) });
            }
        }
    }

    /// Registers a session, or refuses it. The device's positions are in memory.
    pub fn open(&mut self, desk: &mut Desk, open: OpenSession) {
        let OpenSession { origin, proof, full, device_name } = open;
        let outcome = self.admit(desk, &origin, proof, full, device_name);
        let outcome = outcome.map(|(opened, replaced)| {
            if let Some(other) = replaced {
                let gone =
                    Origin { gateway: other.gateway, handle: other.handle, session: other.session, ..origin };
                desk.gateways.tell(&gone, Down::Kick { handle: gone.handle, code: Code::REPLACED });
                self.closed(desk, gone, &other);
            }
            opened
        });
        desk.gateways.tell(&origin, Down::Opened { handle: origin.handle, outcome });
    }

    fn admit(
        &mut self,
        desk: &mut Desk,
        origin: &Origin,
        proof: Proof,
        full: bool,
        device_name: String,
    ) -> Result<(Opened, Option<Session>), Code> {
        if self.flags & Row::DISABLED != 0 {
            return Err(Code::REVOKED);
        }
        if full && self.flags & Row::FULL_DELIVERY == 0 {
            return Err(Code::DELIVERY_REFUSED);
        }
        let Self { id: user, tokens_from_s, .. } = *self;
        let device = self.device(origin.device).filter(|device| device.positions.is_some());
        let device = device.ok_or(Code::RETRY_LATER)?;
        match proof {
            Proof::Resume { generation } if generation != device.generation => {
                return Err(Code::RESUME_REFUSED);
            }
            Proof::Token { issued_s, .. } if issued_s < tokens_from_s => return Err(Code::REVOKED),
            Proof::Token { generation: Some(generation), .. } if generation != device.generation => {
                return Err(Code::REVOKED);
            }
            Proof::Resume { .. } | Proof::Token { .. } => {}
        }
        device.name = device_name.into();
        // From here on it has a secret: a revocation must find it, whatever becomes of its positions.
        device.is_stored = true;
        device.seen_ms = desk.context.now_ms();
        let (acks_confirmed, generation) = (device.acks_confirmed, device.generation);
        let batch = CursorBatch { devices: vec![device.row(user, acks_confirmed)], ..Default::default() };
        desk.context.cursors.push(Job { batch, then: None, is_soon: true });
        let before = device.session.replace(Session {
            handle: origin.handle,
            session: origin.session,
            syncing: None,
            gateway: origin.gateway,
            follows: false,
            is_full: full,
            screen: None,
        });
        let replaced = before.filter(|before| before.session != origin.session);
        let user_name = self.name.to_string();
        Ok((Opened { user_name, acks_confirmed, generation, tokens_from_s }, replaced))
    }

    /// A session is over: its channels' owners are told.
    pub fn close(&mut self, desk: &mut Desk, origin: &Origin) {
        self.retain_opening(|open| open.origin.session != origin.session);
        let device = self.device(origin.device);
        let session = device.and_then(|device| device.session.take_if(|one| one.session == origin.session));
        if let Some(session) = session {
            self.closed(desk, *origin, &session);
        }
    }

    fn retain_opening(&mut self, keeps: impl FnMut(&OpenSession) -> bool) {
        if let Some(opening) = &mut self.opening {
            opening.retain(keeps);
            if opening.is_empty() {
                self.opening = None;
            }
        }
    }

    /// What follows when a session has gone from its device.
    fn closed(&mut self, desk: &mut Desk, origin: Origin, session: &Session) {
        if session.follows {
            for channel in self.channels.iter() {
                desk.post_channel(channel, Touch::Unsubscribe(origin));
            }
        }
        let Some(device) = self.device(origin.device) else { return };
        (device.seen_ms, device.seen_due) = (desk.context.now_ms(), true);
        // Written soon, so that the next session of the device begins where this one ended, and pushes know since when it is away.
        self.write_positions(desk);
    }

    /// All sessions at a gateway are over.
    pub fn close_at(&mut self, desk: &mut Desk, gateway: GatewayId) {
        let gone: Vec<Origin> = self.origins().filter(|origin| origin.gateway == gateway).collect();
        self.retain_opening(|open| open.origin.gateway != gateway);
        for origin in gone {
            self.close(desk, &origin);
        }
    }

    /// Ends sessions, of one device where given; gives how many.
    pub fn kick(&mut self, desk: &mut Desk, device: Option<DeviceId>, code: Code) -> usize {
        let gone: Vec<Origin> = self
            .origins()
            .chain(self.opening.iter().flat_map(|opening| opening.iter()).map(|open| open.origin))
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
        for origin in self.origins() {
            desk.gateways.reply(&origin, frames.clone());
        }
    }

    /// The device's generation was raised.
    pub fn revoked(&mut self, desk: &mut Desk, device: DeviceId, generation: u32) -> usize {
        if let Some(open) = self.device(device)
            && (open.positions.is_none() || !mutant::is("session-cache-ignores-revoke"))
        {
            open.generation = generation;
        }
        self.kick(desk, Some(device), Code::REVOKED)
    }

    /// The row changed in SQL: sessions end with this error, and what opens from here on goes by the new row. Gives the
    /// devices that are known, for the caller to raise their generations.
    pub fn row_changed(&mut self, desk: &mut Desk, row: Row, code: Code) -> Vec<DeviceId> {
        (self.name, self.flags, self.tokens_from_s) = (row.name.into(), row.flags, row.tokens_from_s);
        self.kick(desk, None, code);
        let mut devices: Vec<DeviceId> = self.devices.iter().map(|device| device.device).collect();
        devices.sort_unstable();
        devices
    }

    /// ACK, SYNC and STATE of a session of this user.
    pub fn frame(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let result = match frame.frame_type() {
            FrameType::Ack => self.ack(desk, &origin, frame),
            FrameType::Sync => self.sync(desk, &origin, frame),
            FrameType::State => self.state(desk, &origin, frame),
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
        let device = self.devices.iter_mut().find(|device| device.device == origin.device);
        let device = device.ok_or(Code::RETRY_LATER)?;
        let positions = device.positions.as_mut().ok_or(Code::RETRY_LATER)?;
        for position in ack.positions {
            let channel = ChannelId(position.channel);
            if self.channels.contains(channel) && position.seq >> 63 == 0 {
                positions.raise(channel, (position.epoch, position.seq));
            }
        }
        device.acks = device.acks.max(ack.number);
        self.make_due(desk);
        Ok(())
    }

    fn make_due(&mut self, desk: &mut Desk) {
        if !self.is_due {
            self.is_due = true;
            desk.at_together(desk.context.config.cursors_every, Due::Positions(self.id));
        }
    }

    /// Hands what moved to the writer, and to the channels' owners: what a device holds was delivered to its user.
    pub fn write_positions(&mut self, desk: &mut Desk) {
        let user = self.id;
        for open in self.devices.iter_mut().filter(|open| open.is_due()) {
            if !desk.context.cursors.has_room() {
                self.is_due = true;
                desk.at(Instant::now() + std::time::Duration::from_secs(1), Due::Positions(user));
                return;
            }
            open.seen_due = false;
            let device = open.device;
            let dirty = open.positions.as_mut().map(Positions::take_dirty).unwrap_or_default();
            let positions: Vec<DevicePosition> = dirty
                .into_iter()
                .map(|(channel, (epoch, seq))| DevicePosition { user, device, channel, epoch, seq })
                .collect();
            for position in &positions {
                desk.post_channel(position.channel, Touch::Delivered(user, position.seq));
            }
            let row = open.row(user, open.acks);
            let then = Some((desk.shard, Written::Device(user, device, open.acks)));
            let batch = CursorBatch { positions, devices: vec![row], ..Default::default() };
            desk.context.cursors.push(Job { batch, then, is_soon: false });
        }
        self.is_due = false;
    }

    /// ACKs of the device up to that number are written.
    pub fn confirmed(&mut self, desk: &mut Desk, device: DeviceId, number: u64) {
        let user = self.id;
        let Some(open) = self.device(device) else { return };
        open.acks_confirmed = open.acks_confirmed.max(number);
        let number = open.acks_confirmed;
        if let Some(origin) = open.origin(user) {
            desk.gateways.tell(&origin, Down::Confirmed { handle: origin.handle, number });
        }
    }

    /// For people.
    pub fn summaries(&self) -> Vec<SessionSummary> {
        let of = |device: &OpenDevice| {
            let origin = device.origin(self.id)?;
            Some(SessionSummary {
                user: self.id,
                session: origin.session,
                device: device.device,
                device_name: device.name.to_string(),
                gateway: origin.gateway,
                since_ms: device.seen_ms,
            })
        };
        self.devices.iter().filter_map(of).collect()
    }

    fn session(&mut self, origin: &Origin) -> Option<&mut Session> {
        let session = self.device(origin.device)?.session.as_mut()?;
        (session.session == origin.session).then_some(session)
    }

    /// Its id.
    pub fn id(&self) -> UserId {
        self.id
    }
}
