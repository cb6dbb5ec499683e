//! The server's side of a session, without IO. A connection is a [`Greeting`] until its HELLO has come, which makes it a
//! [`Greeted`]; only who checked that one's proof can make a [`ServerSession`] of it. So no frame of a peer that nobody
//! knows can reach what is behind the session.
//!
//! `now_ms` is a monotonic clock of the caller's, in milliseconds, the same for all calls; Unix times are named so. The
//! session tells what to do with each frame ([`Action`]) and what is due by itself ([`Due`]); the caller moves the bytes.

use bytes::Bytes;

use crate::{
    check,
    error::Code,
    frame::{self, Frame},
    header::{FrameType, class},
    ids::{ChannelId, DeviceId, SessionId, UserId},
    limits, wire,
};

/// How often something may happen: so many a minute, and so many at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// In the long run.
    pub per_minute: u32,
    /// At once, after a rest.
    pub burst: u32,
}

/// A token bucket of 16 bytes; the rate is the caller's, so that a million buckets share it. Full at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// What is used up, in 60,000ths: one event per minute gives back one of them per millisecond.
    used: u64,
    at_ms: u64,
}

/// One event in the bucket's unit.
const EVENT: u64 = 60_000;

impl Bucket {
    /// Takes one event out.
    ///
    /// # Errors
    /// Milliseconds until there is one again.
    pub fn take(&mut self, now_ms: u64, rate: Rate) -> Result<(), u32> {
        let rested = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(rate.per_minute));
        let used = self.used.saturating_sub(rested) + EVENT;
        let over = used.saturating_sub(u64::from(rate.burst) * EVENT);
        if over > 0 {
            let wait_ms = over.div_ceil(u64::from(rate.per_minute.max(1)));
            return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX).max(1));
        }
        (self.used, self.at_ms) = (used, now_ms.max(self.at_ms));
        Ok(())
    }
}

/// What a deployment lets a session do, and when it loses patience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// SENDs, per user.
    pub sends: Rate,
    /// All other frames, per session.
    pub frames: Rate,
    /// PING frames and WebSocket pings, per session.
    pub pings: Rate,
    /// Unanswered requests of a session.
    pub requests_in_flight_max: u16,
    /// From connecting to HELLO, in milliseconds.
    pub handshake_ms: u64,
    /// Silence after which a session is closed, in milliseconds.
    pub idle_ms: u64,
    /// What WELCOME asks clients to ping at, in milliseconds.
    pub heartbeat_ms: u32,
    /// A fresh token is asked for so long before the old one ends, in milliseconds,
    pub reauth_before_ms: u64,
    /// and the session closed so long after; also what a session resumed past its token's end has, in milliseconds.
    pub reauth_grace_ms: u64,
}

impl Policy {
    /// The numbers of docs/protocol.md, section 7.
    pub const DEFAULT: Self = Self {
        sends: Rate { per_minute: 120, burst: 30 },
        frames: Rate { per_minute: 20 * 60, burst: 100 },
        pings: Rate { per_minute: 60, burst: 10 },
        requests_in_flight_max: limits::REQUESTS_IN_FLIGHT_MAX as u16,
        handshake_ms: limits::HANDSHAKE_TIME_MAX.as_millis() as u64,
        idle_ms: limits::IDLE_TIME_MAX.as_millis() as u64,
        heartbeat_ms: limits::HEARTBEAT.as_millis() as u32,
        reauth_before_ms: limits::REAUTH_BEFORE.as_millis() as u64,
        reauth_grace_ms: limits::REAUTH_GRACE.as_millis() as u64,
    };
    /// The same with rates that a load test does not reach.
    pub const LOAD: Self = Self {
        sends: Rate { per_minute: 60_000_000, burst: 1_000_000 },
        frames: Rate { per_minute: 60_000_000, burst: 1_000_000 },
        pings: Rate { per_minute: 600_000, burst: 10_000 },
        ..Self::DEFAULT
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A connection before its HELLO: takes nothing else, for a short time and a few bytes.
#[derive(Debug)]
pub struct Greeting {
    until_ms: u64,
    bytes_left: usize,
}

/// What a valid HELLO says. The proof in it is not yet checked.
#[derive(Debug, Clone)]
pub struct Greeted {
    /// The highest version that both speak.
    pub version: u32,
    /// Asked for full delivery.
    pub full: bool,
    /// A token, or empty.
    pub token: String,
    /// A resume secret, or empty. Tried first.
    pub resume: Bytes,
    /// Which device.
    pub device: DeviceId,
    /// What the client calls it.
    pub device_name: String,
}

impl Greeting {
    /// From the moment of connecting.
    pub fn new(now_ms: u64, policy: &Policy) -> Self {
        Self { until_ms: now_ms + policy.handshake_ms, bytes_left: limits::BEFORE_AUTH_BYTES_MAX }
    }

    /// When the caller closes the connection with `HANDSHAKE_TIMEOUT`.
    pub fn deadline(&self) -> u64 {
        self.until_ms
    }

    /// Counts what the peer sent, of whatever kind.
    ///
    /// # Errors
    /// `HANDSHAKE_TIMEOUT`: more than is allowed before HELLO.
    pub fn received(&mut self, bytes: usize) -> Result<(), Code> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(Code::HANDSHAKE_TIMEOUT)?;
        Ok(())
    }

    /// Takes the first frame.
    ///
    /// # Errors
    /// `OUT_OF_STATE` for anything but HELLO, `VERSION_UNSUPPORTED`, `TOKEN_MISSING`, and those of [`check::decode`].
    pub fn handle(self, frame: &Frame) -> Result<Greeted, Code> {
        check::header(&frame.header, true)?;
        if frame.frame_type() != FrameType::Hello {
            return Err(Code::OUT_OF_STATE);
        }
        // A version that nobody speaks may have other bounds: it is told so first.
        let hello: wire::Hello = frame.decode()?;
        if hello.version_min > crate::VERSION || hello.version_max < crate::VERSION {
            return Err(Code::VERSION_UNSUPPORTED);
        }
        check::Body::check(&hello, &frame.header)?;
        Ok(Greeted {
            version: crate::VERSION,
            full: hello.delivery == wire::Delivery::Full as i32,
            token: hello.token,
            resume: hello.resume,
            device: DeviceId(hello.device),
            device_name: hello.device_name,
        })
    }
}

/// What to do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Hand it to its owner.
    Forward,
    /// Keep it until [`ServerSession::authenticated`], within bounds of the caller's; then hand it in again.
    Hold,
    /// Answer with [`pong`].
    Pong {
        /// The client's clock, repeated.
        time_ms: u64,
    },
    /// Nothing more: it was heard.
    Done,
    /// Check the token; then [`ServerSession::authenticated`], or close.
    Auth {
        /// At most [`limits::TOKEN_BYTES_MAX`].
        token: String,
    },
    /// Send this back: the request failed, the session goes on.
    Answer(Bytes),
    /// The client said goodbye.
    Closed,
}

/// What is due by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Ask for a fresh token with [`auth_required`].
    Auth {
        /// How long the client has, in milliseconds.
        within_ms: u32,
    },
    /// Close with this number.
    Close(Code),
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Resumed past its token's end: nothing but AUTH, PING and CLOSE until a token came.
    Restricted,
    Ended,
}

/// An authenticated session: small, because there may be a million of them.
#[derive(Debug)]
pub struct ServerSession {
    heard_ms: u64,
    token_until_ms: u64,
    /// When the session is closed without AUTH; `u64::MAX` while none was asked for.
    auth_by_ms: u64,
    acks_confirmed: u64,
    frames: Bucket,
    pings: Bucket,
    in_flight: u16,
    phase: Phase,
}

impl ServerSession {
    /// A session whose proof was checked and whose user's owner took it. `token_until_ms` on the monotonic clock; a
    /// session whose token is over by now is restricted until AUTH.
    pub fn new(now_ms: u64, token_until_ms: u64, acks_confirmed: u64) -> Self {
        let phase = if token_until_ms <= now_ms { Phase::Restricted } else { Phase::Open };
        Self {
            heard_ms: now_ms,
            token_until_ms,
            auth_by_ms: u64::MAX,
            acks_confirmed,
            frames: Bucket::default(),
            pings: Bucket::default(),
            in_flight: 0,
            phase,
        }
    }

    /// Whether only AUTH is awaited: nothing but AUTH, PONG and CLOSE may be sent to it.
    pub fn is_restricted(&self) -> bool {
        self.phase == Phase::Restricted
    }

    /// Takes one frame and says what to do with it. `sends` is the bucket of the session's user.
    ///
    /// # Errors
    /// The session ends with that number.
    pub fn handle(
        &mut self,
        now_ms: u64,
        frame: &Frame,
        policy: &Policy,
        sends: &mut Bucket,
    ) -> Result<Action, Code> {
        let outcome = self.judge(now_ms, frame, policy, sends);
        if matches!(outcome, Err(_) | Ok(Action::Closed)) {
            self.phase = Phase::Ended;
        }
        outcome
    }

    fn judge(
        &mut self,
        now_ms: u64,
        frame: &Frame,
        policy: &Policy,
        sends: &mut Bucket,
    ) -> Result<Action, Code> {
        use FrameType::{Auth, Close, Counts, Fetch, Hello, Open, Ping, Send};
        if self.phase == Phase::Ended {
            return Err(Code::OUT_OF_STATE);
        }
        self.heard_ms = now_ms;
        let frame_type = frame.frame_type();
        check::header(&frame.header, true)?;
        match frame_type {
            Hello => return Err(Code::OUT_OF_STATE),
            Ping => {
                self.ping(now_ms, policy)?;
                let ping: wire::Ping = check::decode(frame)?;
                return Ok(if ping.quiet { Action::Done } else { Action::Pong { time_ms: ping.time_ms } });
            }
            Close => return Ok(Action::Closed),
            Auth => {
                self.frames.take(now_ms, policy.frames).map_err(|_| Code::RATE_LIMITED)?;
                return Ok(Action::Auth { token: check::decode::<wire::Auth>(frame)?.token });
            }
            _ if self.phase == Phase::Restricted => return Ok(Action::Hold),
            _ => {}
        }
        // What costs least comes first: the rate, then the count, then the body.
        let taken = match frame_type {
            Send => sends.take(now_ms, policy.sends),
            _ => self.frames.take(now_ms, policy.frames),
        };
        if let Err(retry_after_ms) = taken {
            return Ok(Action::Answer(failed(frame, Code::RATE_LIMITED, retry_after_ms)));
        }
        let is_request = matches!(frame_type, Send | Fetch | Open | Counts);
        if is_request && self.in_flight >= policy.requests_in_flight_max {
            return Ok(Action::Answer(failed(frame, Code::TOO_MANY_IN_FLIGHT, RETRY_AFTER_MS)));
        }
        match check::check(frame, true) {
            Ok(()) => {
                self.in_flight += u16::from(is_request);
                Ok(Action::Forward)
            }
            Err(code) if is_request && frame.routed().is_some_and(|routed| routed.seq != 0) => {
                Ok(Action::Answer(failed(frame, code, 0)))
            }
            Err(code) => Err(code),
        }
    }

    /// A ping, of the protocol or of WebSocket, came.
    ///
    /// # Errors
    /// `PING_FLOOD`.
    pub fn ping(&mut self, now_ms: u64, policy: &Policy) -> Result<(), Code> {
        self.heard_ms = now_ms;
        self.pings.take(now_ms, policy.pings).map_err(|_| Code::PING_FLOOD)
    }

    /// A frame of a reply goes to the client: an answered request is not in flight any more.
    pub fn replied(&mut self, frame: &Frame) {
        let answers = match (frame.frame_type(), frame.routed()) {
            (FrameType::SendAck | FrameType::Counts | FrameType::Refused, _) => true,
            (FrameType::Channel, Some(routed)) => routed.seq != 0,
            (FrameType::Page, _) => is_last_page(frame),
            _ => false,
        };
        if answers {
            self.request_failed();
        }
    }

    /// A request that was to be forwarded found no room: it is not in flight any more.
    pub fn request_failed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// When the last frame or ping came, on the monotonic clock.
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// Unanswered requests.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// A fresh token of the same user was checked; `token_until_ms` on the monotonic clock. Held frames may come again.
    pub fn authenticated(&mut self, token_until_ms: u64) {
        self.token_until_ms = token_until_ms;
        self.auth_by_ms = u64::MAX;
        if self.phase == Phase::Restricted {
            self.phase = Phase::Open;
        }
    }

    /// ACKs up to this number are written.
    pub fn confirmed(&mut self, number: u64) {
        self.acks_confirmed = self.acks_confirmed.max(number);
    }

    /// The newest ACK whose positions are all written.
    pub fn acks_confirmed(&self) -> u64 {
        self.acks_confirmed
    }

    /// When [`ServerSession::handle_timeout`] has something to say, on the monotonic clock.
    pub fn deadline(&self, policy: &Policy) -> u64 {
        let auth = match (self.auth_by_ms, self.phase) {
            (u64::MAX, Phase::Restricted) => 0,
            (u64::MAX, _) => self.token_until_ms.saturating_sub(policy.reauth_before_ms),
            (by, _) => by,
        };
        auth.min(self.heard_ms.saturating_add(policy.idle_ms))
    }

    /// What is due, if anything; call it again until it says `None`.
    pub fn handle_timeout(&mut self, now_ms: u64, policy: &Policy) -> Option<Due> {
        if self.phase == Phase::Ended || now_ms < self.deadline(policy) {
            return None;
        }
        let code = if now_ms >= self.auth_by_ms {
            Code::REAUTHENTICATE
        } else if now_ms >= self.heard_ms.saturating_add(policy.idle_ms) {
            Code::IDLE
        } else {
            let by = self.token_until_ms.max(now_ms) + policy.reauth_grace_ms;
            self.auth_by_ms = by;
            return Some(Due::Auth { within_ms: u32::try_from(by - now_ms).unwrap_or(u32::MAX) });
        };
        self.phase = Phase::Ended;
        Some(Due::Close(code))
    }
}

/// What is told to wait where nothing better is known, in milliseconds.
pub const RETRY_AFTER_MS: u32 = 500;

fn is_last_page(frame: &Frame) -> bool {
    !frame.decode::<wire::Page>().is_ok_and(|page| page.more)
}

/// What WELCOME says beside this crate's limits and the policy's heartbeat.
#[derive(Debug, Clone, Default)]
pub struct Welcome {
    /// The session's id.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// The user's name.
    pub user_name: String,
    /// Unix milliseconds.
    pub server_time_ms: u64,
    /// The secret, or empty, and its end in Unix milliseconds.
    pub resume: (Bytes, u64),
    /// The token's end in Unix milliseconds.
    pub token_until_ms: u64,
    /// The newest ACK whose positions are all written.
    pub acks_confirmed: u64,
    /// The session was proved by a resume secret.
    pub resumed: bool,
    /// Full delivery.
    pub full: bool,
}

/// WELCOME.
pub fn welcome(welcome: Welcome, policy: &Policy) -> Bytes {
    let (resume, resume_until_ms) = welcome.resume;
    let body = wire::Welcome {
        version: crate::VERSION,
        capabilities: 0,
        session: welcome.session.0,
        user: welcome.user.0,
        user_name: welcome.user_name,
        server_time_ms: welcome.server_time_ms,
        heartbeat_ms: policy.heartbeat_ms,
        resume,
        resume_until_ms,
        token_until_ms: welcome.token_until_ms,
        acks_confirmed: welcome.acks_confirmed,
        resumed: welcome.resumed,
        limits: Some(wire::Limits {
            frame_bytes_max: limits::FRAME_BYTES_MAX as u32,
            body_bytes_max: limits::BODY_BYTES_MAX as u32,
            entry_bytes_max: limits::ENTRY_BYTES_MAX as u32,
            page_bytes_max: limits::PAGE_BYTES_MAX as u32,
            fetch_messages_max: limits::FETCH_MESSAGES_MAX,
            sync_channels_max: limits::REPEATED_MAX as u32,
            sends_in_flight_max: u32::from(policy.requests_in_flight_max),
        }),
        delivery: if welcome.full { wire::Delivery::Full } else { wire::Delivery::Tiered }.into(),
    };
    frame::short(FrameType::Welcome, class::CONTROL, &body)
}

/// PONG; `unix_ms` is the server's clock.
pub fn pong(time_ms: u64, unix_ms: u64, acks_confirmed: u64) -> Bytes {
    frame::short(
        FrameType::Pong,
        class::CONTROL,
        &wire::Pong { time_ms, server_time_ms: unix_ms, acks_confirmed },
    )
}

/// AUTH that asks for a fresh token.
pub fn auth_required(within_ms: u32) -> Bytes {
    frame::short(
        FrameType::Auth,
        class::CONTROL,
        &wire::Auth { required_within_ms: within_ms, ..Default::default() },
    )
}

/// AUTH that answers a token that was taken; times in Unix milliseconds.
pub fn auth_taken(until_ms: u64, resume: Bytes, resume_until_ms: u64) -> Bytes {
    let body = wire::Auth { until_ms, resume, resume_until_ms, ..Default::default() };
    frame::short(FrameType::Auth, class::CONTROL, &body)
}

/// GOAWAY.
pub fn go_away(delay_ms: (u32, u32), gateway: &str, code: Code) -> Bytes {
    let (delay_ms_min, delay_ms_max) = delay_ms;
    let body = wire::GoAway { delay_ms_min, delay_ms_max, gateway: gateway.into(), code: u32::from(code.0) };
    frame::short(FrameType::GoAway, class::CONTROL, &body)
}

/// CLOSE, with what the table says of the number.
pub fn close(code: Code, retry_after_ms: u32) -> Bytes {
    frame::short(FrameType::Close, class::CONTROL, &error_body(code, retry_after_ms))
}

fn error(code: Code, frame_type: FrameType, retry_after_ms: u32) -> Bytes {
    let body = wire::Error { frame_type: u32::from(frame_type as u8), ..error_body(code, retry_after_ms) };
    frame::short(FrameType::Error, class::CONTROL, &body)
}

fn error_body(code: Code, retry_after_ms: u32) -> wire::Error {
    let text = code.row().map_or_else(String::new, |row| row.what.into());
    wire::Error { code: u32::from(code.0), text, retry_after_ms, frame_type: 0 }
}

/// The answer to a frame that failed without ending the session: SEND_ACK to SEND, REFUSED to other requests, else ERROR.
pub fn failed(frame: &Frame, code: Code, retry_after_ms: u32) -> Bytes {
    let frame_type = frame.frame_type();
    let (channel, number) = frame.routed().map_or((ChannelId(0), 0), |routed| (routed.channel, routed.seq));
    match frame_type {
        FrameType::Send => {
            let body = wire::SendAck {
                outcome: wire::Outcome::Fail.into(),
                code: u32::from(code.0),
                retry_after_ms,
                text: code.row().map_or_else(String::new, |row| row.what.into()),
                ..Default::default()
            };
            frame::routed(FrameType::SendAck, class::MESSAGE, 0, 0, channel, number, &body)
        }
        FrameType::Fetch | FrameType::Open | FrameType::Counts => {
            let body = wire::Error { frame_type: frame_type as u32, ..error_body(code, retry_after_ms) };
            frame::routed(FrameType::Refused, class::CONTROL, 0, 0, channel, number, &body)
        }
        _ => error(code, frame_type, retry_after_ms),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
