//! What a client may ask: each method queues one frame. Requests with an answer return the number that the answer will repeat.

use super::{ClientSession, NEVER, OUTGOING_FRAMES_MAX, Phase};
use crate::{
    error::{Code, Policy},
    frame,
    header::{FrameType, class, flags},
    ids::{ChannelId, Seq, UserId},
    limits, wire,
};

/// How long a SYNC waits that failed for a while, where the server names no longer time: at least and at most.
const SYNC_PAUSE_MS_MIN: u64 = 100;
const SYNC_PAUSE_MS_MAX: u64 = 30_000;
/// The longest time of the server's that is kept to.
const SYNC_RETRY_AFTER_MS_MAX: u64 = 600_000;

impl ClientSession {
    /// Asks where all channels stand, with every position that the server may not know; live frames follow. Done by itself after WELCOME where
    /// the options say so.
    pub fn sync(&mut self, now_ms: u64, window: u32) {
        (self.sync_window, self.sync_at) = (Some(window), NEVER);
        let mut positions = self.device.unconfirmed();
        // An ACK on its way when a connection broke may never have come: what it said is said again.
        for position in &positions {
            let channel = ChannelId(position.channel);
            if let Some(log) = self.device.channels.get_mut(&channel)
                && !log.dirty
            {
                log.dirty = true;
                self.dirty.push(channel);
            }
        }
        if positions.len() > limits::REPEATED_MAX {
            self.acknowledge(now_ms);
            positions.truncate(limits::REPEATED_MAX);
        } else if !self.dirty.is_empty() && self.ack_at == NEVER {
            self.acknowledge_later(now_ms);
        }
        let sync = wire::Sync { positions, window, cursor: Default::default() };
        self.outgoing.push_back(frame::short(FrameType::Sync, class::CONTROL, &sync));
    }

    /// Whether a SYNC failed that is repeated by itself: not before the time that the server names, and by a pause that doubles from failure to
    /// failure.
    pub(super) fn syncs_again(&mut self, now_ms: u64, error: &wire::Error) -> bool {
        let is_passing = matches!(Code(error.code as u16).policy(), Policy::BackOff | Policy::Repeat);
        if error.frame_type != FrameType::Sync as u32 || !is_passing || self.sync_window.is_none() {
            return false;
        }
        let named_ms = u64::from(error.retry_after_ms).min(SYNC_RETRY_AFTER_MS_MAX);
        let pause_ms = named_ms.max(self.sync_pause_ms).max(SYNC_PAUSE_MS_MIN);
        self.sync_pause_ms = (pause_ms * 2).min(SYNC_PAUSE_MS_MAX);
        self.sync_at = now_ms + pause_ms + self.next_random() % (pause_ms / 5 + 1);
        true
    }

    /// Sends one entry. `retry`: an earlier attempt with this client message id was made.
    ///
    /// # Errors
    /// `OUT_OF_STATE` before WELCOME and after the end, `TOO_MANY_IN_FLIGHT`, `BODY_TOO_LARGE`; nothing was queued.
    pub fn send(&mut self, channel: ChannelId, send: &wire::Send, retry: bool) -> Result<u64, Code> {
        let flags = if retry { flags::RETRY } else { 0 };
        self.request(FrameType::Send, class::MESSAGE, flags, channel, send)
    }

    /// Asks for a range of history.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn fetch(&mut self, channel: ChannelId, fetch: &wire::Fetch) -> Result<u64, Code> {
        self.request(FrameType::Fetch, class::HISTORY, 0, channel, fetch)
    }

    /// Opens a direct channel or makes a group.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn open(&mut self, open: &wire::Open) -> Result<u64, Code> {
        self.request(FrameType::Open, class::MESSAGE, 0, ChannelId(0), open)
    }

    /// Asks how many members have the entry.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn counts(&mut self, channel: ChannelId, of: Seq) -> Result<u64, Code> {
        let counts = wire::Counts { of, delivered: 0, read: 0, members: 0 };
        self.request(FrameType::Counts, class::STATE, 0, channel, &counts)
    }

    /// Says how far the user has read: `read_ordinal` is the ordinal of the entry at `read`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn mark_read(&mut self, channel: ChannelId, read: Seq, read_ordinal: u64) -> Result<(), Code> {
        let delivered = self.log(channel).map_or(0, |log| log.position);
        let cursor = wire::Cursor { user: 0, delivered, read, read_ordinal };
        let receipt = wire::Receipt { cursors: vec![cursor] };
        self.queue(frame::routed(FrameType::Receipt, class::STATE, 0, 0, channel, 0, &receipt))?;
        if let Some(log) = self.device.channels.get_mut(&channel) {
            log.receipted = log.receipted.max(delivered);
        }
        Ok(())
    }

    /// Says that the user types, or stopped. The server passes it on at most once in 3 s.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn typing(&mut self, channel: ChannelId, stopped: bool) -> Result<(), Code> {
        let typing = wire::Typing { user: 0, stopped };
        self.queue(frame::routed(FrameType::Typing, class::HINT, 0, 0, channel, 0, &typing))
    }

    /// Watches these users, at most 256, in place of those before.
    ///
    /// # Errors
    /// As [`Self::send`]; `BAD_FIELD` where there are more.
    pub fn watch(&mut self, users: &[UserId]) -> Result<(), Code> {
        if users.len() > limits::PRESENCE_WATCHED_MAX {
            return Err(Code::BAD_FIELD);
        }
        let watch = users.iter().map(|user| user.0).collect();
        self.presence(&wire::Presence { watch, ..Default::default() })
    }

    /// Says who may see whether this user is online, and when it was last seen.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn show_to(&mut self, audience: wire::Audience) -> Result<(), Code> {
        self.presence(&wire::Presence { audience: audience.into(), ..Default::default() })
    }

    fn presence(&mut self, presence: &wire::Presence) -> Result<(), Code> {
        self.queue(frame::routed(FrameType::Presence, class::CONTROL, 0, 0, ChannelId(0), 0, presence))
    }

    /// Says what the screen shows.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn state(&mut self, state: &wire::State) -> Result<(), Code> {
        self.queue(frame::short(FrameType::State, class::CONTROL, state))
    }

    /// Hands in a fresh token of the same user.
    ///
    /// # Errors
    /// As [`Self::send`]; `TOKEN_MALFORMED` beyond 4 KiB.
    pub fn authenticate(&mut self, token: String) -> Result<(), Code> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(Code::TOKEN_MALFORMED);
        }
        let auth = wire::Auth { token, ..Default::default() };
        self.queue(frame::short(FrameType::Auth, class::CONTROL, &auth))
    }

    /// Moves a channel's position over a hole that nobody will fill: what lies in it is no longer waited for.
    pub fn skip_to(&mut self, now_ms: u64, channel: ChannelId, seq: Seq) {
        let Some(log) = self.device.channels.get_mut(&channel) else { return };
        if log.position < seq {
            log.position = seq;
            log.hold_range(1, 0);
            self.position_moved(now_ms, channel);
        }
    }

    /// Ends the session: what waits, an ACK and CLOSE with `code` are sent, then the owner closes the connection.
    pub fn close(&mut self, code: Code, text: &str) {
        if self.phase == Phase::Ended {
            return;
        }
        if self.phase == Phase::Open {
            self.acknowledge(self.acked_at);
        }
        self.phase = Phase::Ended;
        let error = wire::Error { code: code.0.into(), text: text.into(), ..Default::default() };
        self.outgoing.push_back(frame::short(FrameType::Close, class::CONTROL, &error));
    }

    /// Unanswered requests of this session.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    fn request(
        &mut self,
        frame_type: FrameType,
        class: u8,
        flags: u8,
        channel: ChannelId,
        body: &impl prost::Message,
    ) -> Result<u64, Code> {
        if self.requests.len() >= limits::REQUESTS_IN_FLIGHT_MAX {
            return Err(Code::TOO_MANY_IN_FLIGHT);
        }
        let number = self.last_request + 1;
        self.queue(frame::routed(frame_type, class, flags, 0, channel, number, body))?;
        self.last_request = number;
        self.requests.push_back(number);
        Ok(number)
    }

    fn queue(&mut self, frame: bytes::Bytes) -> Result<(), Code> {
        if self.phase != Phase::Open {
            return Err(Code::OUT_OF_STATE);
        }
        if self.outgoing.len() >= OUTGOING_FRAMES_MAX {
            return Err(Code::TOO_MANY_IN_FLIGHT);
        }
        if frame.len() > limits::FRAME_BYTES_MAX {
            return Err(Code::BODY_TOO_LARGE);
        }
        self.outgoing.push_back(frame);
        Ok(())
    }
}
