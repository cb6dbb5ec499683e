//! The client's side of a session, without IO: whole frames and `now` go in; frames to send, events and the next
//! deadline come out. It says HELLO and SYNC, keeps what is held of each channel, drops repeats, finds holes,
//! acknowledges, sends heartbeats and numbers requests. What a DELIVER costs is a lookup and a few additions: its body is not decoded.
//!
//! - `device`: what outlives a session;
//! - `intervals`: which seqs are held;
//! - `event`: what a session tells, and how it ends;
//! - `follow`: where channels stand by the server's word;
//! - `requests`: what a client may ask;
//! - `pace`: when a session speaks by itself.
//!
//! `now_ms` is any clock that never falls, in milliseconds, the same through one session. Randomness is a seed.

mod device;
mod event;
mod follow;
mod intervals;
mod pace;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;

pub use device::{ChannelLog, DeviceState, IdHash, IdHasher};
pub use event::{BACK_OFF_MS_MAX, Defect, Ended, Event};
use follow::{bounded, log_of, other_epoch, unannounced};
pub use intervals::{INTERVALS_MAX, IntervalSet};

use crate::{
    error::Code,
    frame::{self, Frame},
    header::{FrameType, RoutedHeader, class},
    ids::ChannelId,
    limits, wire,
};

/// Frames that may wait to be sent; beyond it requests are refused with TOO_MANY_IN_FLIGHT.
pub const OUTGOING_FRAMES_MAX: usize = 1_024;
/// From the start of a session to WELCOME, in milliseconds.
pub const WELCOME_TIME_MS: u64 = 10_000;
/// From a PING to any frame of the server, in milliseconds; then the connection counts as broken.
pub const PONG_TIME_MS: u64 = 15_000;
/// A request without an answer for so long is followed by a PING: a connection that is dead without a word (QUIC, a lost
/// network) should not wait for the heartbeat.
pub const UNANSWERED_PING_MS: u64 = 5_000;
/// So long before its time, and not within four fifths of [`limits::ACK_AFTER`], an ACK goes along with what the server sends.
pub const ACK_ALONG_MS: u64 = 2_000;
/// A heartbeat goes along with a head that the server tells when so much of its time has passed and the next head, if it comes after as
/// long a time as this one, would come too late:
pub const PING_ALONG_PERCENT: u64 = 45;
/// when so much has passed. That leaves a slow network a third of [`limits::IDLE_TIME_MAX`].
pub const PING_ALONG_PERCENT_MAX: u64 = 125;
/// An ACK rides with another frame at most once in so many milliseconds, so that busy senders stay within the rate
/// of frames that are not sends.
pub const ACK_RIDES_MS_MIN: u64 = 1_000;

/// How a session opens.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Token for HELLO; may be empty where the device has a resume secret.
    pub token: String,
    /// TIERED, or FULL with permission.
    pub delivery: wire::Delivery,
    /// Name of the installation for its user's list of devices, at most 256 bytes.
    pub device_name: String,
    /// Name and version of the program, at most 256 bytes.
    pub agent: String,
    /// Ask by itself, after WELCOME, where all channels stand, and have so many of them filled (0: the server's
    /// default of 50). `None`: the owner calls [`ClientSession::sync`].
    pub sync: Option<u32>,
    /// What the screen shows, said before the first SYNC. `None`: nothing is said, and the app counts as not on screen.
    pub screen: Option<wire::State>,
    /// 64 random bits for jitter.
    pub seed: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            token: String::new(),
            delivery: wire::Delivery::Tiered,
            device_name: String::new(),
            agent: concat!("fanfare-rust/", env!("CARGO_PKG_VERSION")).into(),
            sync: Some(0),
            screen: None,
            seed: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// HELLO is out.
    Opening,
    /// WELCOME came.
    Open,
    /// CLOSE was sent or came.
    Ended,
}

/// One session of a device. See the module's page.
#[derive(Debug)]
pub struct ClientSession {
    device: DeviceState,
    phase: Phase,
    /// The user of this session, 0 before WELCOME.
    user: u64,
    /// Server's clock minus ours.
    clock_offset_ms: i64,
    heartbeat_ms: u64,
    outgoing: VecDeque<Bytes>,
    /// Unanswered requests, oldest first.
    requests: VecDeque<u64>,
    last_request: u64,
    sync_window: Option<u32>,
    /// How long the next SYNC that fails for a while waits at least, milliseconds.
    sync_pause_ms: u64,
    screen: Option<wire::State>,
    /// Entries come by the tier of this session in each channel.
    is_tiered: bool,
    random: u64,

    // Acknowledging: channels whose position moved since the last ACK, and what came in since.
    dirty: Vec<ChannelId>,
    unacked_frames: u32,
    unacked_bytes: usize,
    acked_at: u64,
    receipts: Vec<ChannelId>,

    // Deadlines in the caller's milliseconds; NEVER where there is none.
    ack_at: u64,
    /// When the server last told a head.
    told_at: u64,
    /// From here on an ACK goes along with what the server sends.
    ack_along_at: u64,
    receipt_at: u64,
    /// A SYNC that failed for a while is repeated then.
    sync_at: u64,
    /// Next PING: at the heartbeat, or earlier to see whether a server that does not answer lives.
    ping_at: u64,
    heartbeat_at: u64,
    /// When something was sent last.
    rested_at: u64,
    alive_by: u64,

    repeats: u64,
    received: Received,
}

/// Frames of channels (DELIVER, NOTIFY, GAP, PAGE and the like, all with a routed header) that came, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Received {
    /// How many.
    pub frames: u64,
    /// Their bytes, headers included, what carries them not.
    pub bytes: u64,
}

const NEVER: u64 = u64::MAX;

impl ClientSession {
    /// A session that has HELLO ready to be sent. The device's resume secret is used where there is one, else the token.
    pub fn new(mut device: DeviceState, options: SessionOptions, now_ms: u64) -> Self {
        let mut dirty = Vec::new();
        for (channel, log) in &mut device.channels {
            (log.followed, log.receipt_due) = (false, false);
            if log.dirty {
                dirty.push(*channel);
            }
        }
        let hello = wire::Hello {
            version_min: crate::VERSION,
            version_max: crate::VERSION,
            capabilities: 0,
            delivery: options.delivery.into(),
            token: options.token,
            resume: device.resume.clone(),
            device: device.device.0,
            device_name: options.device_name,
            agent: options.agent,
        };
        let mut session = Self {
            device,
            phase: Phase::Opening,
            user: 0,
            clock_offset_ms: 0,
            heartbeat_ms: limits::HEARTBEAT.as_millis() as u64,
            outgoing: VecDeque::new(),
            requests: VecDeque::new(),
            last_request: 0,
            sync_window: options.sync,
            sync_pause_ms: 0,
            screen: options.screen,
            is_tiered: options.delivery == wire::Delivery::Tiered,
            random: options.seed,
            dirty,
            unacked_frames: 0,
            unacked_bytes: 0,
            acked_at: 0,
            receipts: Vec::new(),
            ack_at: NEVER,
            ack_along_at: NEVER,
            told_at: 0,
            receipt_at: NEVER,
            sync_at: NEVER,
            ping_at: NEVER,
            heartbeat_at: NEVER,
            rested_at: now_ms,
            alive_by: now_ms + WELCOME_TIME_MS,
            repeats: 0,
            received: Received::default(),
        };
        session.outgoing.push_back(frame::short(FrameType::Hello, class::CONTROL, &hello));
        session
    }

    /// Takes one frame of the server; what it means goes to `sink`, mostly one event, at once and without a queue.
    ///
    /// # Errors
    /// The server broke the protocol; the session is over and CLOSE with this number is ready to be sent.
    pub fn handle(&mut self, now_ms: u64, frame: Frame, sink: &mut impl FnMut(Event)) -> Result<(), Code> {
        if frame.routed().is_some() {
            self.received.frames += 1;
            self.received.bytes += frame.bytes.len() as u64;
        }
        let outcome = if let (FrameType::Deliver, Phase::Open, Some(routed)) =
            (frame.frame_type(), self.phase, frame.routed())
        {
            let routed = *routed;
            self.deliver(now_ms, routed, frame, sink)
        } else {
            self.handle_other(now_ms, frame, sink)
        };
        if let Err(code) = outcome {
            self.close(code, "");
        }
        outcome
    }

    fn deliver(
        &mut self,
        now_ms: u64,
        routed: RoutedHeader,
        frame: Frame,
        sink: &mut impl FnMut(Event),
    ) -> Result<(), Code> {
        let (channel, seq, epoch) = (routed.channel, routed.seq, routed.short.epoch);
        self.alive_by = NEVER;
        let log = log_of(&mut self.device, channel)?;
        if !log.followed {
            unannounced(log, channel, seq, epoch, sink);
        }
        if epoch != log.epoch as u8 && !other_epoch(log, channel, seq, epoch, sink) {
            self.repeats += 1;
            return Ok(());
        }
        if seq > log.tip {
            if seq != log.tip + 1 {
                let hole = Event::Defect { channel, kind: Defect::Hole, after: log.tip, before: seq };
                sink(hole);
            }
            log.tip = seq;
        }
        if !log.hold(seq) {
            self.repeats += 1;
            return Ok(());
        }
        // The position may stand before a hole while the entry is new all the same.
        if log.position >= seq && !log.dirty {
            log.dirty = true;
            self.dirty.push(channel);
        }
        if log.direct
            && !log.receipt_due
            && log.position > log.receipted
            && entry_sender(&frame) != Some(self.user)
        {
            log.receipt_due = true;
            self.receipts.push(channel);
            if self.receipt_at == NEVER {
                self.receipt_at = now_ms + limits::DIRECT_RECEIPT_AFTER.as_millis() as u64;
            }
        }
        if self.unacked_frames == 0 {
            self.acknowledge_later(now_ms);
        }
        self.unacked_frames += 1;
        self.unacked_bytes += frame.bytes.len();
        if self.unacked_frames >= limits::ACK_AFTER_FRAMES
            || self.unacked_bytes >= limits::ACK_AFTER_BYTES
            || now_ms >= self.ack_along_at
        {
            self.acknowledge(now_ms);
        }
        sink(Event::Deliver(frame));
        Ok(())
    }

    fn handle_other(&mut self, now_ms: u64, frame: Frame, sink: &mut impl FnMut(Event)) -> Result<(), Code> {
        let frame_type = frame.frame_type();
        if !frame_type.from_server() {
            return Err(Code::UNKNOWN_TYPE);
        }
        let (channel, number) =
            frame.routed().map_or((ChannelId(0), 0), |routed| (routed.channel, routed.seq));
        match (self.phase, frame_type) {
            (Phase::Ended, _) => return Ok(()),
            (_, FrameType::Close) => {
                let error: wire::Error = frame.decode()?;
                self.phase = Phase::Ended;
                let mut ended = Ended::from_code(Code(error.code as u16), error.text);
                ended.retry_after_ms = error.retry_after_ms;
                if matches!(ended.code, Some(Code::RESUME_REFUSED | Code::REVOKED)) {
                    self.device.resume = Bytes::new();
                }
                sink(Event::Ended(ended));
                return Ok(());
            }
            (Phase::Opening, FrameType::Welcome) => return self.welcome(now_ms, &frame, sink),
            (Phase::Opening, _) | (_, FrameType::Welcome) => return Err(Code::OUT_OF_STATE),
            (Phase::Open, _) => {}
        }
        self.alive_by = NEVER;
        match frame_type {
            FrameType::Synced => self.synced(frame.decode()?, sink)?,
            FrameType::Gap => self.head_moved(channel, &frame.decode()?, false, sink)?,
            FrameType::Notify => {
                self.head_moved(channel, &frame.decode()?, self.is_tiered, sink)?;
                self.speak_along(now_ms);
            }
            FrameType::Page => {
                let page: wire::Page = frame.decode()?;
                bounded([page.first, page.last, page.head])?;
                if !page.more {
                    self.answered(number);
                }
                let news = self.page(now_ms, channel, &page);
                sink(Event::Page { channel, request: number, news, page: Box::new(page) });
            }
            FrameType::Channel => {
                let state: wire::ChannelState = frame.decode()?;
                self.answered(number);
                self.follow(&state, false, sink)?;
                sink(Event::Channel { request: number, state: Box::new(state) });
            }
            FrameType::SendAck => {
                self.answered(number);
                sink(Event::SendAck { channel, request: number, ack: frame.decode()? });
            }
            FrameType::Counts => {
                self.answered(number);
                sink(Event::Counts { channel, request: number, counts: frame.decode()? });
            }
            FrameType::Refused => {
                self.answered(number);
                sink(Event::Refused { channel, request: number, error: frame.decode()? });
            }
            FrameType::Receipt => sink(Event::Receipt { channel, receipt: frame.decode()? }),
            FrameType::Typing => sink(Event::Typing { channel, typing: frame.decode()? }),
            FrameType::Error => {
                let error: wire::Error = frame.decode()?;
                if !self.syncs_again(now_ms, &error) {
                    sink(Event::Failed(error));
                }
            }
            FrameType::GoAway => sink(Event::GoAway(frame.decode()?)),
            FrameType::Pong => {
                let pong: wire::Pong = frame.decode()?;
                let round_trip_ms = now_ms.saturating_sub(pong.time_ms);
                let sent_half_ago = now_ms - round_trip_ms.min(now_ms) / 2;
                self.clock_offset_ms = (pong.server_time_ms as i64).wrapping_sub(sent_half_ago as i64);
                self.device.acks_confirmed = self.device.acks_confirmed.max(pong.acks_confirmed);
                sink(Event::Pong { round_trip_ms });
            }
            FrameType::Auth => {
                let auth: wire::Auth = frame.decode()?;
                if auth.until_ms != 0 {
                    self.device.resume = auth.resume;
                    self.device.resume_until_ms = auth.resume_until_ms;
                    sink(Event::Authenticated { until_ms: auth.until_ms });
                } else {
                    sink(Event::AuthRequired { within_ms: auth.required_within_ms });
                }
            }
            FrameType::Presence => sink(Event::Presence(frame.decode()?)),
            _ => {}
        }
        Ok(())
    }

    fn welcome(&mut self, now_ms: u64, frame: &Frame, sink: &mut impl FnMut(Event)) -> Result<(), Code> {
        let welcome: wire::Welcome = frame.decode()?;
        if welcome.version != crate::VERSION {
            return Err(Code::VERSION_UNSUPPORTED);
        }
        self.phase = Phase::Open;
        self.alive_by = NEVER;
        self.user = welcome.user;
        self.clock_offset_ms = (welcome.server_time_ms as i64).wrapping_sub(now_ms as i64);
        if welcome.heartbeat_ms != 0 {
            self.heartbeat_ms = u64::from(welcome.heartbeat_ms).clamp(1_000, 40_000);
        }
        self.rest_until_ping(now_ms);
        self.device.acks_confirmed = welcome.acks_confirmed;
        self.device.ack_number = self.device.ack_number.max(welcome.acks_confirmed);
        if !welcome.resume.is_empty() {
            self.device.resume = welcome.resume.clone();
            self.device.resume_until_ms = welcome.resume_until_ms;
        } else if !welcome.resumed {
            // What was tried was refused in favour of the token.
            self.device.resume = Bytes::new();
        }
        if let Some(screen) = self.screen.take() {
            self.state(&screen)?;
        }
        if let Some(window) = self.sync_window {
            self.sync(now_ms, window);
        }
        sink(Event::Welcome(Box::new(welcome)));
        Ok(())
    }

    fn answered(&mut self, request: u64) {
        if request == 0 {
            return;
        }
        if self.requests.front() == Some(&request) {
            self.requests.pop_front();
        } else if let Some(at) = self.requests.iter().position(|waiting| *waiting == request) {
            self.requests.remove(at);
        }
    }

    /// Whether WELCOME came and no CLOSE.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether a CLOSE came, was sent, or the server was given up.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// The user of this session; 0 before WELCOME.
    pub fn user(&self) -> crate::ids::UserId {
        crate::ids::UserId(self.user)
    }

    /// The server's clock, Unix milliseconds, as WELCOME and the PONGs tell.
    pub fn server_time_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(self.clock_offset_ms)
    }

    /// DELIVERs dropped as repeats.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// What came of channels.
    pub fn received(&self) -> Received {
        self.received
    }

    /// What outlives the session, as it stands.
    pub fn device(&self) -> &DeviceState {
        &self.device
    }

    /// Takes out what the next session needs.
    pub fn into_device(self) -> DeviceState {
        self.device
    }

    /// What is held of a channel.
    pub fn log(&self, channel: ChannelId) -> Option<&ChannelLog> {
        self.device.channels.get(&channel)
    }
}

/// The sender of a DELIVER's entry, read from the front of its body: fields are written in the order of their numbers.
fn entry_sender(frame: &Frame) -> Option<u64> {
    let mut body = frame.bytes.get(frame.header.header_bytes()..)?;
    loop {
        let (&tag, rest) = body.split_first()?;
        match tag {
            // epoch, ordinal: varints.
            0x08 | 0x18 => {
                let end = rest.iter().position(|byte| byte & 0x80 == 0)?;
                body = rest.get(end + 1..)?;
            }
            // message id: fixed64.
            0x11 => body = rest.get(8..)?,
            0x21 => return rest.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)),
            // No sender: the server.
            _ => return None,
        }
    }
}
