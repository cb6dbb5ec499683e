//! One connection: its link, its session, what waits for it. Owned by one lane, moved by nobody else.

use std::{
    collections::VecDeque,
    io::IoSlice,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use fanfare_proto::{
    error::Code,
    frame::Frame,
    header::FrameType,
    ids::ChannelId,
    limits,
    link::{Activity, Alive, Opened, Origin, Proof, Up},
    session::server::{self, Action, Due, Greeted, ServerSession},
    wire,
    ws::{Decoder, Event, Opcode, server_close, server_control},
};
use tokio::io::AsyncWrite as _;

use crate::{
    admission::{AddressPermit, UserPermit},
    gather::frame_kind,
    outgoing::{Chunk, Kind, Queue},
    quic::QuicLink,
    readiness::Readiness,
    resume::Resume,
    shared::Shared,
    token::Verified,
    wire::Wire,
};

/// Buffers of one vectored write.
const SLICES_MAX: usize = 64;
/// Bytes of several chunks up to which copying them for one `send` costs less than a vectored write.
const JOINED_BYTES_MAX: usize = 1024;
/// Bytes that the frames of a session which must authenticate first may have.
const HELD_BYTES_MAX: usize = limits::FRAME_BYTES_MAX;
/// How long a connection has to take its last frames, in milliseconds.
pub(crate) const LINGER_MS: u64 = 2_000;
/// Hints are not worth waiting for behind so many bytes.
const HINT_BEHIND_BYTES_MAX: u32 = 64 * 1024;
/// The next FETCH is forwarded when no more of the last one's answer waits.
const HISTORY_LEFT_BYTES_MAX: u32 = 64 * 1024;

/// How the bytes come and go.
pub(crate) enum Link {
    Ws {
        wire: Wire,
        decoder: Decoder,
        /// Of its lane.
        readiness: Rc<Readiness>,
    },
    Quic(Box<QuicLink>),
}

/// Where a connection stands. Before HELLO it is no [`Connection`] at all.
pub(crate) enum Stage {
    /// Its proof was checked; the owner of its user has been asked.
    Opening(Box<Opening>),
    /// WELCOME is sent.
    Open(ServerSession),
    /// CLOSE is sent; the socket is closed when it is out, or at this time.
    Closing { until_ms: u64 },
}

/// What is remembered until the owner has answered.
pub(crate) struct Opening {
    pub greeted: Greeted,
    pub proof: Proof,
    pub token_until_ms: u64,
    pub deadline_ms: u64,
}

/// What came behind HELLO and waits for WELCOME.
pub(crate) struct Early {
    /// Frames of the same message.
    pub frames: Bytes,
    /// Bytes not yet decoded.
    pub raw: Vec<u8>,
}

/// When the next flush pass writes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dirty {
    /// It has nothing new.
    No,
    /// With the others.
    Yes,
    /// Behind the others.
    Late {
        /// It has nothing but answers to what it sent into large channels.
        answers_alone: bool,
    },
    /// In none: when the round of a channel it sent into ends, unless something else is for it before.
    Behind,
}

/// See the module's page.
pub(crate) struct Connection {
    pub link: Link,
    pub queue: Queue,
    pub stage: Stage,
    pub origin: Origin,
    /// Channels whose audience it is in, as counted here.
    pub memberships: u32,
    /// Of the device, for the next resume secret.
    generation: u32,
    /// On a list of the next flush pass.
    pub dirty: Dirty,
    /// The socket failed: nothing can be written any more.
    pub broken: bool,
    /// What it sent waits for room at its owner: nothing is read until then.
    pub forwards: bool,
    /// What the client last said of its screen.
    foreground: Option<bool>,
    rare: Option<Box<Rare>>,
    /// Tokens issued before this time were revoked before the session opened, Unix seconds.
    tokens_from_s: u64,
    user: UserPermit,
    _address: AddressPermit,
}

/// Each lane has 49 of them on a page of 16 KiB: see [`crate::slots`].
const _: () = assert!(size_of::<Option<Connection>>() <= 328, "each session has one");

/// What few connections have at a time.
#[derive(Default)]
struct Rare {
    early: Option<Early>,
    held: Held,
    /// FETCH requests: the one being answered, 0 if none, and those that wait for it.
    fetch: u64,
    fetches: VecDeque<Frame>,
}

/// The frames of a session that must authenticate first.
#[derive(Default)]
struct Held {
    frames: Vec<Frame>,
    bytes: usize,
}

impl Connection {
    pub fn new(
        link: Link,
        origin: Origin,
        opening: Opening,
        user: UserPermit,
        address: AddressPermit,
        early: Option<Box<Early>>,
    ) -> Self {
        Self {
            link,
            queue: Queue::default(),
            stage: Stage::Opening(Box::new(opening)),
            origin,
            memberships: 0,
            generation: 0,
            dirty: Dirty::No,
            broken: false,
            forwards: false,
            foreground: None,
            rare: early.map(|early| Box::new(Rare { early: Some(*early), ..Rare::default() })),
            tokens_from_s: 0,
            user,
            _address: address,
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Gives the room back where nothing rare is left.
    fn tidy(&mut self) {
        let is_over = |rare: &Rare| {
            rare.early.is_none() && rare.held.frames.is_empty() && rare.fetch == 0 && rare.fetches.is_empty()
        };
        self.rare.take_if(|rare| is_over(rare));
    }

    fn fetching(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.fetch)
    }

    fn fetched(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.fetch = 0;
        }
        self.tidy();
    }

    /// What came behind HELLO, once.
    pub fn take_early(&mut self) -> Option<Early> {
        let early = self.rare.as_mut()?.early.take();
        self.tidy();
        early
    }

    // ---- the session's life

    /// What asks the owner to take the session. Only while it opens.
    pub fn open_request(&self) -> Option<Up> {
        let Stage::Opening(opening) = &self.stage else { return None };
        let greeted = &opening.greeted;
        let device_name = greeted.device_name.clone();
        Some(Up::Open { origin: self.origin, proof: opening.proof, full: greeted.full, device_name })
    }

    /// The owner answered. `Some`: the resume secret was refused and there is a token to try; ask again.
    pub fn opened(&mut self, shared: &Shared, now_ms: u64, outcome: Result<Opened, Code>) -> Option<Up> {
        let Stage::Opening(opening) = &mut self.stage else { return None };
        let opened = match outcome {
            Ok(opened) => opened,
            Err(code) => {
                let retry = matches!(code, Code::RESUME_REFUSED | Code::REVOKED)
                    && matches!(opening.proof, Proof::Resume { .. })
                    && !opening.greeted.token.is_empty();
                if retry {
                    let token = std::mem::take(&mut opening.greeted.token);
                    match shared.verifier.verify(&token, shared.clock.unix_ms()) {
                        Ok(verified) => return self.retry(shared, now_ms, verified),
                        Err(code) => self.refused(shared, now_ms, code),
                    }
                } else {
                    self.refused(shared, now_ms, code);
                }
                return None;
            }
        };
        let resumed = matches!(opening.proof, Proof::Resume { .. });
        let token_until_ms = opening.token_until_ms;
        let mut until = shared.clock.monotonic(token_until_ms);
        if !resumed {
            // Leeway: a token that has just ended is good, and soon asked for again.
            until = until.max(now_ms + 1);
        }
        let full = opening.greeted.full;
        let mut session = ServerSession::new(now_ms, until, opened.acks_confirmed);
        self.generation = opened.generation;
        self.tokens_from_s = opened.tokens_from_s;
        let resume = if session.is_restricted() {
            (Bytes::new(), 0)
        } else {
            self.resume_secret(shared, token_until_ms)
        };
        let welcome = server::Welcome {
            session: self.origin.session,
            user: self.origin.user,
            user_name: opened.user_name,
            server_time_ms: shared.clock.unix_ms(),
            resume,
            token_until_ms,
            acks_confirmed: opened.acks_confirmed,
            resumed,
            full,
        };
        let mut frames = server::welcome(welcome, shared.policy()).to_vec();
        if let Some(Due::Auth { within_ms }) = session.handle_timeout(now_ms, shared.policy()) {
            frames.extend_from_slice(&server::auth_required(within_ms));
        }
        self.stage = Stage::Open(session);
        self.control(frames.into(), now_ms);
        shared.counts.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _ = shared.tell(Activity::Up(self.origin));
        None
    }

    fn retry(&mut self, shared: &Shared, now_ms: u64, verified: Verified) -> Option<Up> {
        if verified.user != self.origin.user {
            match shared.admission.user(verified.user) {
                Ok(permit) => self.user = permit,
                Err(code) => {
                    self.refused(shared, now_ms, code);
                    return None;
                }
            }
            self.origin.user = verified.user;
        }
        let proof = match verified.proof(self.origin.device) {
            Ok(proof) => proof,
            Err(code) => {
                self.refused(shared, now_ms, code);
                return None;
            }
        };
        if let Stage::Opening(opening) = &mut self.stage {
            (opening.proof, opening.token_until_ms) = (proof, verified.until_ms);
        }
        self.open_request()
    }

    fn resume_secret(&self, shared: &Shared, token_until_ms: u64) -> (Bytes, u64) {
        let until_ms = shared.clock.unix_ms() + shared.resume_life_ms;
        let (user, device) = (self.origin.user, self.origin.device);
        let resume = Resume { user, device, generation: self.generation, token_until_ms, until_ms };
        (shared.resume.seal(&resume), until_ms)
    }

    /// Ends a session that its owner did not take: the owner is told nothing.
    pub fn refused(&mut self, shared: &Shared, now_ms: u64, code: Code) {
        self.begin_close(shared, now_ms, Some(code));
    }

    /// Ends the session: CLOSE, then the transport's own close. Its owner is told.
    pub fn close(&mut self, shared: &Shared, now_ms: u64, code: Code) {
        if matches!(self.stage, Stage::Closing { .. }) {
            return;
        }
        self.end(shared);
        self.begin_close(shared, now_ms, Some(code));
    }

    /// Tells the owner that the session is over, once.
    pub fn end(&mut self, shared: &Shared) {
        match &self.stage {
            Stage::Closing { .. } => return,
            Stage::Open(session) => {
                let silent_ms = shared.clock.now_ms().saturating_sub(session.heard_ms());
                let silent_ms = u32::try_from(silent_ms).unwrap_or(u32::MAX);
                let _ = shared.tell(Activity::Down(self.origin, silent_ms));
                shared.counts.sessions.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
            Stage::Opening(_) => {}
        }
        self.stage = Stage::Closing { until_ms: 0 };
        shared.send_up(Up::Close { origin: self.origin });
    }

    fn begin_close(&mut self, shared: &Shared, now_ms: u64, code: Option<Code>) {
        self.stage = Stage::Closing { until_ms: now_ms + LINGER_MS };
        let fetch = self.fetching();
        self.rare = (fetch != 0).then(|| Box::new(Rare { fetch, ..Rare::default() }));
        if code == Some(Code::SLOW_READER) {
            self.queue.clear();
        }
        if let Some(code) = code {
            shared.count_close(code);
            tracing::debug!(session = self.origin.session.0, %code, "closing");
            self.control(server::close(code, retry_after_ms(code)), now_ms);
        }
        let reason = code.and_then(Code::row).map_or("", |row| row.name);
        match &mut self.link {
            Link::Ws { .. } => {
                let close = server_close(Some(code.map_or(1000, Code::close_code)), reason);
                self.queue.push(raw(close), now_ms);
            }
            Link::Quic(link) => link.close_with(code, reason),
        }
        self.wake();
    }

    /// Word that the session is still there, where it is open.
    pub fn alive(&self, now_ms: u64) -> Option<Alive> {
        let Stage::Open(session) = &self.stage else { return None };
        let silent_ms = u32::try_from(now_ms.saturating_sub(session.heard_ms())).unwrap_or(u32::MAX);
        Some(Alive { origin: self.origin, silent_ms, foreground: self.foreground })
    }

    /// What the sweep finds due.
    pub fn sweep(&mut self, shared: &Shared, now_ms: u64) {
        let policy = shared.policy();
        match &mut self.stage {
            Stage::Opening(opening) if now_ms >= opening.deadline_ms => {
                return self.close(shared, now_ms, Code::HANDSHAKE_TIMEOUT);
            }
            Stage::Open(session) => match session.handle_timeout(now_ms, policy) {
                Some(Due::Auth { within_ms }) => self.control(server::auth_required(within_ms), now_ms),
                Some(Due::Close(code)) => return self.close(shared, now_ms, code),
                None => {}
            },
            _ => {}
        }
        self.relieve(shared, now_ms);
    }

    // ---- what goes out

    /// Session control and answers, for this connection alone.
    pub fn control(&mut self, frames: Bytes, now_ms: u64) {
        match &mut self.link {
            Link::Ws { .. } => self.queue.push(Chunk::message(&frames, Kind::Control, ChannelId(0)), now_ms),
            Link::Quic(link) => link.control(frames, now_ms),
        }
    }

    /// Whole frames of an owner, for this connection alone.
    pub fn reply(&mut self, shared: &Shared, frames: Bytes, now_ms: u64) {
        let Stage::Open(session) = &mut self.stage else { return };
        // What is for a session that must authenticate first is dropped: its SYNC brings the state.
        if session.is_restricted() {
            return;
        }
        let mut run: Option<(Kind, ChannelId, usize)> = None;
        let (mut start, mut end) = (0, 0);
        for frame in Frame::iter(frames.clone()) {
            let Ok(frame) = frame else {
                tracing::error!("an owner sent broken frames");
                break;
            };
            let Stage::Open(session) = &mut self.stage else { return };
            session.replied(&frame);
            let number = frame.routed().map_or(0, |routed| routed.seq);
            let fetch = self.rare.as_ref().map_or(0, |rare| rare.fetch);
            if fetch != 0 && number == fetch && answers_fetch(&frame) {
                self.fetched();
            }
            let kind = frame_kind(&frame.header);
            let channel = match kind {
                Kind::Entries => frame.routed().map_or(ChannelId(0), |routed| routed.channel),
                _ => ChannelId(0),
            };
            let stream = match &self.link {
                Link::Ws { .. } => 0,
                Link::Quic(link) => link.stream_of(&frame),
            };
            let next = end + frame.bytes.len();
            let fits = next - start <= limits::FRAME_BYTES_MAX;
            match run {
                Some(same) if same == (kind, channel, stream) && fits => {}
                Some((kind, channel, stream)) => {
                    self.run(frames.slice(start..end), kind, channel, stream, now_ms);
                    start = end;
                }
                None => {}
            }
            run = Some((kind, channel, stream));
            end = next;
        }
        if let Some((kind, channel, stream)) = run {
            self.run(frames.slice(start..end), kind, channel, stream, now_ms);
        }
        if self.queue.waiting() > shared.limits.outgoing_bytes_max {
            self.flush(shared, now_ms);
        }
        self.relieve(shared, now_ms);
    }

    fn run(&mut self, frames: Bytes, kind: Kind, channel: ChannelId, stream: usize, now_ms: u64) {
        match &mut self.link {
            Link::Ws { .. } if kind == Kind::Hint && self.queue.waiting() > HINT_BEHIND_BYTES_MAX => {}
            Link::Ws { .. } => self.queue.push(Chunk::message(&frames, kind, channel), now_ms),
            Link::Quic(link) => {
                let chunk = Chunk { bytes: frames, lead: 0, kind, channel };
                link.push(&mut self.queue, stream, chunk, now_ms);
            }
        }
    }

    /// A shared buffer. Says whether it was taken.
    pub fn gathered(&mut self, shared: &Shared, chunk: &Chunk, now_ms: u64) -> bool {
        let Stage::Open(session) = &self.stage else { return false };
        if session.is_restricted() || self.broken {
            return false;
        }
        if chunk.kind == Kind::Hint {
            if let Link::Quic(link) = &self.link {
                link.hint(chunk);
                return true;
            }
            if self.queue.waiting() > HINT_BEHIND_BYTES_MAX {
                return false;
            }
        }
        self.queue.push(chunk.clone(), now_ms);
        if self.queue.waiting() > shared.limits.outgoing_bytes_max {
            // It may be the pass that is fast, and not the reader that is slow.
            self.flush(shared, now_ms);
            self.relieve(shared, now_ms);
        }
        true
    }

    /// The same, and written now. What a socket takes at once, where nothing waits for it, goes by no queue.
    pub fn gathered_now(&mut self, shared: &Shared, chunk: &Chunk, now_ms: u64) -> bool {
        let is_open = matches!(&self.stage, Stage::Open(session) if !session.is_restricted());
        if let Link::Ws { wire: wire @ Wire::Plain(_), .. } = &mut self.link
            && is_open
            && !self.broken
            && self.queue.is_empty()
        {
            let written = wire.poll_write_bytes(&mut Context::from_waker(Waker::noop()), &chunk.bytes);
            match written {
                Poll::Ready(Ok(bytes)) if bytes == chunk.bytes.len() => return true,
                Poll::Ready(Ok(bytes)) => {
                    self.queue.push(chunk.clone(), now_ms);
                    self.queue.advance(bytes, now_ms);
                }
                Poll::Pending => {
                    self.queue.push(chunk.clone(), now_ms);
                    return true;
                }
                Poll::Ready(Err(_)) => {
                    self.broken = true;
                    self.leave();
                    return false;
                }
            }
            self.flush(shared, now_ms);
            return true;
        }
        let is_taken = self.gathered(shared, chunk, now_ms);
        self.flush(shared, now_ms);
        is_taken
    }

    /// Holds what waits within its bounds: see [`crate::outgoing`].
    pub fn relieve(&mut self, shared: &Shared, now_ms: u64) {
        let limits = &shared.limits;
        let waiting = |connection: &Self| {
            connection.queue.waiting()
                + match &connection.link {
                    Link::Ws { .. } => 0,
                    Link::Quic(link) => link.waiting(),
                }
        };
        let since_ms = match &self.link {
            Link::Ws { .. } => self.queue.since_ms(),
            Link::Quic(link) => [self.queue.since_ms(), link.since_ms()].into_iter().flatten().min(),
        };
        let waited_ms = since_ms.map_or(0, |since| now_ms.saturating_sub(since));
        let over = |connection: &Self| waiting(connection) > limits.outgoing_bytes_max;
        if !over(self) && waited_ms * 2 < limits.outgoing_ms_max {
            return;
        }
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        if self.queue.drop_hints() > 0 {
            shared.counts.hints_dropped.fetch_add(1, relaxed);
        }
        if (over(self) || waited_ms * 2 >= limits.outgoing_ms_max) && self.queue.collapse() > 0 {
            shared.counts.collapsed.fetch_add(1, relaxed);
        }
        if over(self) || waited_ms >= limits.outgoing_ms_max {
            self.close(shared, now_ms, Code::SLOW_READER);
        }
    }

    /// Writes what waits, as far as the link takes it. When it takes more the lane is told, or over QUIC the task.
    pub fn flush(&mut self, shared: &Shared, now_ms: u64) {
        if self.broken {
            return;
        }
        self.broken = match &mut self.link {
            Link::Ws { wire, .. } => {
                write(wire, &mut self.queue, &mut Context::from_waker(Waker::noop()), now_ms).is_err()
            }
            Link::Quic(link) => link.write(&mut self.queue, now_ms).is_err(),
        };
        if self.broken {
            self.queue.clear();
            self.leave();
        } else if self.rare.is_some() {
            self.next_fetch(shared, now_ms);
        }
    }

    /// Has the connection looked at again: by its lane, or by its task.
    pub fn wake(&self) {
        match &self.link {
            Link::Ws { readiness, .. } => readiness.wake(self.origin.handle.into()),
            Link::Quic(link) => link.wake(),
        }
    }

    /// It is broken: has it removed.
    fn leave(&self) {
        match &self.link {
            Link::Ws { readiness, .. } => readiness.leave(self.origin.handle.into()),
            Link::Quic(link) => link.wake(),
        }
    }

    /// The task that the link wakes, over QUIC.
    pub fn set_waker(&mut self, waker: &Waker) {
        if let Link::Quic(link) = &mut self.link {
            link.set_waker(waker);
        }
    }

    /// Everything is written, to the kernel or to QUIC.
    pub fn is_flushed(&self) -> bool {
        self.queue.is_empty()
            && match &self.link {
                Link::Ws { .. } => true,
                Link::Quic(link) => link.is_flushed(),
            }
    }

    /// Bytes that wait here.
    pub fn waiting_bytes(&self) -> u64 {
        let other = match &self.link {
            Link::Ws { .. } => 0,
            Link::Quic(link) => link.waiting(),
        };
        u64::from(self.queue.waiting()) + u64::from(self.queue.history()) + u64::from(other)
    }

    // ---- what comes in

    /// Bytes of a WebSocket. What is to go up is added to `ups`.
    pub fn bytes(&mut self, shared: &Shared, now_ms: u64, mut input: &mut [u8], ups: &mut Vec<Up>) {
        loop {
            let Link::Ws { decoder, .. } = &mut self.link else { return };
            let event = decoder.next(&mut input);
            let Stage::Open(session) = &mut self.stage else { return };
            match event {
                Ok(None) => return,
                Ok(Some(Event::Message { binary: true, payload })) => {
                    let message = Bytes::from(payload.into_owned());
                    self.message(shared, now_ms, message, ups);
                }
                Ok(Some(Event::Message { binary: false, .. })) => {
                    self.close(shared, now_ms, Code::TEXT_MESSAGE)
                }
                Ok(Some(Event::Ping(payload))) => match session.ping(now_ms, shared.policy()) {
                    Ok(()) => self.queue.push(raw(server_control(Opcode::Pong, &payload)), now_ms),
                    Err(code) => self.close(shared, now_ms, code),
                },
                Ok(Some(Event::Pong(_))) => {
                    if let Err(code) = session.ping(now_ms, shared.policy()) {
                        self.close(shared, now_ms, code);
                    }
                }
                Ok(Some(Event::Close { code, .. })) => {
                    self.end(shared);
                    self.stage = Stage::Closing { until_ms: now_ms + LINGER_MS };
                    self.queue.push(raw(server_close(code, "")), now_ms);
                }
                Err(error) => {
                    let code = match error.close_code() {
                        1009 => Code::FRAME_TOO_LARGE,
                        _ => Code::WEBSOCKET,
                    };
                    tracing::debug!(session = self.origin.session.0, %error, "broken framing");
                    self.close(shared, now_ms, code);
                }
            }
        }
    }

    /// The frames of one WebSocket message.
    pub fn message(&mut self, shared: &Shared, now_ms: u64, message: Bytes, ups: &mut Vec<Up>) {
        for frame in Frame::iter(message) {
            match frame {
                Ok(frame) => self.frame(shared, now_ms, frame, ups),
                Err(code) => self.close(shared, now_ms, code),
            }
            if !matches!(self.stage, Stage::Open(_)) {
                return;
            }
        }
    }

    /// One frame, of whatever link.
    pub fn frame(&mut self, shared: &Shared, now_ms: u64, frame: Frame, ups: &mut Vec<Up>) {
        let Stage::Open(session) = &mut self.stage else { return };
        let action = {
            let mut sends = self.user.user.sends.lock();
            session.handle(now_ms, &frame, shared.policy(), &mut sends)
        };
        match action {
            Ok(Action::Forward) if frame.frame_type() == FrameType::Fetch => self.fetch(frame, ups),
            Ok(Action::Forward) if frame.frame_type() == FrameType::Presence => {
                if let Err(code) = shared.tell(Activity::Presence(self.origin, frame.clone())) {
                    let retry_after_ms = if code == Code::RETRY_LATER { server::RETRY_AFTER_MS } else { 0 };
                    self.control(server::failed(&frame, code, retry_after_ms), now_ms);
                }
            }
            Ok(Action::Forward) => {
                if frame.frame_type() == FrameType::State {
                    self.shown(shared, &frame);
                }
                ups.push(Up::Frame { origin: self.origin, frame });
            }
            Ok(Action::Pong { time_ms }) => {
                let pong = server::pong(time_ms, shared.clock.unix_ms(), session.acks_confirmed());
                self.control(pong, now_ms);
            }
            Ok(Action::Answer(answer)) => {
                if let Link::Quic(link) = &mut self.link
                    && frame.frame_type() == FrameType::Fetch
                {
                    let number = frame.routed().map_or(0, |routed| routed.seq);
                    link.answer_fetch(&mut self.queue, number, answer, now_ms);
                } else {
                    self.control(answer, now_ms);
                }
            }
            Ok(Action::Hold) => {
                let held = &mut self.rare().held;
                held.bytes += frame.bytes.len();
                held.frames.push(frame);
                if held.bytes > HELD_BYTES_MAX {
                    self.close(shared, now_ms, Code::REAUTHENTICATE);
                }
            }
            Ok(Action::Auth { token }) => self.authenticate(shared, now_ms, &token, ups),
            Ok(Action::Done) => {}
            Ok(Action::Closed) => {
                self.end(shared);
                self.begin_close(shared, now_ms, None);
            }
            Err(code) => self.close(shared, now_ms, code),
        }
    }

    /// The client said what its screen shows: told where that is another than before.
    fn shown(&mut self, shared: &Shared, frame: &Frame) {
        let foreground = frame.decode::<wire::State>().ok().map(|state| state.attention != 0);
        if let Some(is_foreground) = foreground
            && self.foreground != foreground
        {
            self.foreground = foreground;
            let _ = shared.tell(Activity::Shown(self.origin, is_foreground));
        }
    }

    fn authenticate(&mut self, shared: &Shared, now_ms: u64, token: &str, ups: &mut Vec<Up>) {
        let verified = shared.verifier.verify(token, shared.clock.unix_ms());
        let verified = verified.and_then(|verified| {
            if verified.user != self.origin.user {
                return Err(Code::TOKEN_CLAIMS);
            }
            // A session is closed when what it proved itself with is revoked; a token bound to the device must not
            // keep it for longer with what was revoked before it opened, nor may any that is older than a revocation.
            match verified.proof(self.origin.device)? {
                Proof::Token { generation: Some(at), .. } if at != self.generation => Err(Code::REVOKED),
                Proof::Token { issued_s, .. } if issued_s < self.tokens_from_s => Err(Code::REVOKED),
                _ => Ok(verified),
            }
        });
        let until_ms = match verified {
            Ok(verified) => verified.until_ms,
            Err(code) => return self.close(shared, now_ms, code),
        };
        let until = shared.clock.monotonic(until_ms).max(now_ms + 1);
        let (secret, secret_until_ms) = self.resume_secret(shared, until_ms);
        if let Stage::Open(session) = &mut self.stage {
            session.authenticated(until);
        }
        self.control(server::auth_taken(until_ms, secret, secret_until_ms), now_ms);
        let held = self.rare.as_mut().map(|rare| std::mem::take(&mut rare.held)).unwrap_or_default();
        self.tidy();
        for frame in held.frames {
            self.frame(shared, now_ms, frame, ups);
        }
    }

    /// One FETCH is answered at a time, so that what waits for a session is bounded by one answer.
    fn fetch(&mut self, frame: Frame, ups: &mut Vec<Up>) {
        let number = frame.routed().map_or(0, |routed| routed.seq);
        let rare = self.rare();
        if rare.fetch == 0 && rare.fetches.is_empty() {
            rare.fetch = number;
            self.tidy();
            ups.push(Up::Frame { origin: self.origin, frame });
        } else {
            // Bounded by the requests in flight.
            rare.fetches.push_back(frame);
        }
    }

    fn next_fetch(&mut self, shared: &Shared, now_ms: u64) {
        let other = match &self.link {
            Link::Ws { .. } => 0,
            Link::Quic(link) => link.history(),
        };
        if self.fetching() != 0 || self.queue.history() + other > HISTORY_LEFT_BYTES_MAX {
            return;
        }
        let Some(rare) = &mut self.rare else { return };
        let Some(frame) = rare.fetches.pop_front() else { return };
        rare.fetch = frame.routed().map_or(0, |routed| routed.seq);
        self.tidy();
        if shared.uplink.try_send(Up::Frame { origin: self.origin, frame: frame.clone() }).is_err() {
            self.unsent(&frame, now_ms);
            // This is behind a flush: the answer is to be written, too.
            self.wake();
        }
    }

    /// A frame found no room at its owner.
    pub fn unsent(&mut self, frame: &Frame, now_ms: u64) {
        let Stage::Open(session) = &mut self.stage else { return };
        use FrameType::{Counts, Fetch, Open, Send};
        metrics::counter!("fanfare_gateway_unsent_total").increment(1);
        if matches!(frame.frame_type(), Send | Fetch | Open | Counts) {
            session.request_failed();
        }
        let answer = server::failed(frame, Code::RETRY_LATER, server::RETRY_AFTER_MS);
        if frame.frame_type() == Fetch {
            self.fetched();
            if let Link::Quic(link) = &mut self.link {
                let number = frame.routed().map_or(0, |routed| routed.seq);
                return link.answer_fetch(&mut self.queue, number, answer, now_ms);
            }
        }
        self.control(answer, now_ms);
    }
}

/// A WebSocket control frame.
fn raw(bytes: Vec<u8>) -> Chunk {
    Chunk { bytes: bytes.into(), lead: 0, kind: Kind::Raw, channel: ChannelId(0) }
}

fn answers_fetch(frame: &Frame) -> bool {
    match frame.frame_type() {
        FrameType::Refused => true,
        FrameType::Page => !frame.decode::<fanfare_proto::wire::Page>().is_ok_and(|page| page.more),
        _ => false,
    }
}

/// What a CLOSE asks a client to wait, where the back-off should not be its own guess.
pub(crate) fn retry_after_ms(code: Code) -> u32 {
    match code {
        Code::RETRY_LATER | Code::OVERLOADED => 1_000,
        Code::RATE_LIMITED | Code::PING_FLOOD => 5_000,
        Code::CONNECTIONS_PER_USER | Code::CONNECTIONS_PER_ADDRESS => 10_000,
        _ => 0,
    }
}

/// Writes a queue to a socket until that takes no more.
fn write(wire: &mut Wire, queue: &mut Queue, cx: &mut Context<'_>, now_ms: u64) -> std::io::Result<()> {
    while !queue.is_empty() {
        let written = match queue.single() {
            // Most are: `send` costs less than `writev`, and there are no slices to lay out.
            Some(bytes) => wire.poll_write_bytes(cx, bytes),
            None => {
                let mut joined = [0; JOINED_BYTES_MAX];
                match queue.join(&mut joined) {
                    Some(bytes) => wire.poll_write_bytes(cx, &joined[..bytes]),
                    None => {
                        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                        let count = queue.slices(&mut slices);
                        wire.poll_write_slices(cx, &slices[..count])
                    }
                }
            }
        };
        match written {
            Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(bytes)) => queue.advance(bytes, now_ms),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(()),
        }
    }
    match Pin::new(wire).poll_flush(cx) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Ok(()),
    }
}
