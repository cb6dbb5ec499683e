//! Sends on their way: each is repeated, under the same client message id, until its outcome is known. A queue, bounded, that the
//! [`Store`](crate::store::Store) keeps.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, MessageId, Seq, UserId,
    error::Policy,
    session::client::ClientSession,
    wire::{self, Outcome, send::Content},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use crate::{
    event::Entry,
    keep::Keeper,
    random,
    store::{SavedSend, StoreError},
};

/// Messages that may wait or be on their way in one client.
pub const QUEUE_MAX: usize = 1_000;
/// Sends in flight at once, of those, in all channels together.
pub const WINDOW_MAX: usize = 32;
/// An attempt without an answer for so long counts as unknown and is repeated.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// Refusals in a row, of the kind that asks to come back, after which a send whose outcome is known to be "not committed" fails.
const REFUSALS_MAX: u32 = 12;
/// Longest wait between two attempts of one send.
const WAIT_MS_MAX: u64 = 30_000;
/// Wait after the store or the session could not take an attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Committed sends whose receipts are awaited.
const TRACKED_MAX: usize = 1_000;

/// How a send stands.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Waits for the connection or its turn.
    Queued,
    /// At least one attempt was made; its outcome is not known yet.
    Sending,
    /// Committed.
    Sent(Sent),
    /// Another member's device has it: in a direct channel the other's, in a group (up to 32 members, as larger ones send no receipts)
    /// at least one; [`Client::counts`](crate::Client::counts) says how many. Known of the newest 1,000 sends.
    Delivered(Sent),
    /// Another member has read it.
    Read(Sent),
    /// Not committed, and not tried any more.
    Failed(SendError),
}

impl Status {
    /// Where the entry stands, once it is committed.
    pub fn sent(&self) -> Option<Sent> {
        match self {
            Self::Sent(sent) | Self::Delivered(sent) | Self::Read(sent) => Some(*sent),
            _ => None,
        }
    }
}

/// Where a committed entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Its epoch.
    pub epoch: u32,
    /// Its seq.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// Its ordinal.
    pub ordinal: u64,
    /// An attempt before the one that was answered had already committed it.
    pub repeated: bool,
}

/// Why a send failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The server refused it.
    #[error("refused: {code} {text}")]
    Rejected {
        /// The error number.
        code: Code,
        /// For people.
        text: String,
        /// The same may succeed later, as a new send.
        recoverable: bool,
    },
    /// [`QUEUE_MAX`] sends wait already; nothing was done.
    #[error("the queue of sends is full")]
    QueueFull,
    /// Aborted before the first attempt.
    #[error("aborted")]
    Aborted,
    /// The store could not keep it; nothing was done.
    #[error("not queued")]
    Store(#[from] StoreError),
    /// The client was closed first. Where an attempt was made (`attempted`), it may be committed all the same.
    #[error("the client was closed")]
    Closed {
        /// At least one attempt was made.
        attempted: bool,
        /// It stays in the store's queue: the next client that opens the store sends it.
        kept: bool,
    },
}

impl SendError {
    /// Whether sending the same once more, as a new send, may succeed.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Rejected { recoverable, .. } => *recoverable,
            Self::QueueFull | Self::Store(_) | Self::Closed { kept: false, .. } => true,
            Self::Aborted | Self::Closed { kept: true, .. } => false,
        }
    }

    /// The error number, where the server said one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Rejected { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The sender's view of one send: its status, and its local echo until the server's copy is seen. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct SendHandle {
    status: watch::Receiver<Status>,
    about: Arc<About>,
    ticket: Weak<Ticket>,
}

/// What a send is.
#[derive(Debug)]
struct About {
    channel: ChannelId,
    content: Content,
    id: OnceLock<ClientMessageId>,
}

/// What the queue and the handles of one send share while its status may change.
#[derive(Debug)]
pub(crate) struct Ticket {
    status: watch::Sender<Status>,
    about: Arc<About>,
    place: OnceLock<u64>,
    keeper: Arc<Keeper>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Ticket {
    /// Says what became of it; its room in the queue is free from then on.
    fn settle(&self, status: Status) {
        self.permit.lock().take();
        self.status.send_replace(status);
    }
}

impl SendHandle {
    /// A handle of a send that failed before it began.
    pub(crate) fn failed(channel: ChannelId, content: Content, error: SendError) -> Self {
        let about = Arc::new(About { channel, content, id: OnceLock::new() });
        Self { status: watch::channel(Status::Failed(error)).1, about, ticket: Weak::new() }
    }

    /// Where it goes.
    pub fn channel(&self) -> ChannelId {
        self.about.channel
    }

    /// What it says.
    pub fn content(&self) -> &Content {
        &self.about.content
    }

    /// Its name on the wire, from the first attempt on; the entry's [`client_message_id`](crate::Entry::client_message_id) is the same.
    pub fn client_message_id(&self) -> Option<ClientMessageId> {
        self.about.id.get().copied()
    }

    /// How it stands now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits for the next change of status; `None` when there will be none.
    pub async fn changed(&mut self) -> Option<Status> {
        self.status.changed().await.ok()?;
        Some(self.status.borrow_and_update().clone())
    }

    /// Waits until the outcome is known.
    ///
    /// # Errors
    /// It was not committed, or the client was closed before that was known.
    pub async fn sent(mut self) -> Result<Sent, SendError> {
        let settled = |status: &Status| status.sent().is_some() || matches!(status, Status::Failed(_));
        let ended = self.status.wait_for(settled).await.map(|status| status.clone());
        match ended {
            Ok(Status::Failed(error)) => Err(error),
            Ok(status) => status.sent().ok_or(SendError::Aborted),
            Err(_) => Err(SendError::Closed { attempted: true, kept: false }),
        }
    }

    /// Takes it back, if no attempt was made yet: from the store too, when this returns. Whether it was.
    pub fn abort(&self) -> bool {
        let Some(ticket) = self.ticket.upgrade() else { return false };
        let aborted = ticket.status.send_if_modified(|status| {
            let queued = *status == Status::Queued;
            if queued {
                *status = Status::Failed(SendError::Aborted);
            }
            queued
        });
        if aborted {
            ticket.permit.lock().take();
            if let Some(place) = ticket.place.get() {
                ticket.keeper.aborted(*place);
            }
        }
        aborted
    }
}

/// One send in the client's task.
#[derive(Debug)]
pub(crate) struct Outgoing {
    ticket: Arc<Ticket>,
    place: u64,
    /// Id and attempt times are those of the attempts so far.
    send: wire::Send,
    attempts: u32,
    refusals: u32,
    /// An attempt ended unknown: later refusals do not settle it.
    unknown: bool,
    in_flight: Option<u64>,
    /// While in flight: when the answer is given up; else: not before.
    due: Instant,
}

impl Outgoing {
    /// A new send, before its place is known.
    pub fn ticket(
        channel: ChannelId,
        content: Content,
        permit: OwnedSemaphorePermit,
        keeper: Arc<Keeper>,
    ) -> (Arc<Ticket>, SendHandle) {
        let (status, status_out) = watch::channel(Status::Queued);
        let about = Arc::new(About { channel, content, id: OnceLock::new() });
        let ticket = Arc::new(Ticket {
            status,
            about: about.clone(),
            place: OnceLock::new(),
            keeper,
            permit: Mutex::new(Some(permit)),
        });
        let handle = SendHandle { status: status_out, about, ticket: Arc::downgrade(&ticket) };
        (ticket, handle)
    }

    pub fn new(ticket: Arc<Ticket>, place: u64, send: wire::Send) -> Self {
        let _ = ticket.place.set(place);
        Self {
            ticket,
            place,
            send,
            attempts: 0,
            refusals: 0,
            unknown: false,
            in_flight: None,
            due: Instant::now(),
        }
    }

    /// One that a client before this one left; `None` for one without content.
    pub fn saved(
        saved: SavedSend,
        permit: OwnedSemaphorePermit,
        keeper: Arc<Keeper>,
    ) -> Option<(Self, SendHandle)> {
        let attempted = saved.attempted();
        let (ticket, handle) = Self::ticket(saved.channel, saved.send.content.clone()?, permit, keeper);
        if let Some(id) = ClientMessageId::from_wire(&saved.send.client_message_id) {
            let _ = ticket.about.id.set(id);
        }
        let mut outgoing = Self::new(ticket, saved.place, saved.send);
        if attempted {
            (outgoing.attempts, outgoing.unknown) = (1, true);
            outgoing.ticket.status.send_replace(Status::Sending);
        }
        Some((outgoing, handle))
    }

    fn channel(&self) -> ChannelId {
        self.ticket.about.channel
    }

    fn lost(&mut self) {
        self.in_flight = None;
        self.unknown = true;
        self.due = Instant::now();
    }

    fn wait(&mut self, at_least_ms: u32) {
        self.in_flight = None;
        let window = (250u64 << self.attempts.min(7)).min(WAIT_MS_MAX);
        self.due = Instant::now() + Duration::from_millis(u64::from(at_least_ms) + random() % window);
    }

    /// Turns it into the attempt that is about to be made; what the frame says (the attempts before), or `None` for one that was
    /// aborted.
    fn attempt(&mut self, server_ms: u64) -> Option<wire::Send> {
        let first = self.attempts == 0;
        if first {
            let begun = self.ticket.status.send_if_modified(|status| {
                let queued = *status == Status::Queued;
                if queued {
                    *status = Status::Sending;
                }
                queued
            });
            if !begun {
                return None;
            }
            let mut bits = [0; 10];
            bits[..8].copy_from_slice(&random().to_ne_bytes());
            bits[8..].copy_from_slice(&random().to_ne_bytes()[..2]);
            let id = ClientMessageId::new(server_ms, bits);
            let _ = self.ticket.about.id.set(id);
            self.send.client_message_id = id.0.to_vec().into();
        }
        let frame = self.send.clone();
        if first {
            self.send.first_attempt_ms = server_ms;
        }
        // The reckoned clock may have been set back since.
        self.send.last_attempt_ms = server_ms.max(self.send.last_attempt_ms);
        self.attempts += 1;
        Some(frame)
    }
}

/// All sends of a client, in the order in which they were made. Those of one channel are committed in that order: with a
/// pipeline of 1 without exception, else as long as the server refuses none while later ones are on their way.
#[derive(Debug)]
pub(crate) struct SendQueue {
    all: VecDeque<Outgoing>,
    keeper: Arc<Keeper>,
    /// Sends of one channel in flight at once.
    pipeline: usize,
    /// Committed, not read yet, and somebody may want to know.
    tracked: VecDeque<(Arc<Ticket>, Sent)>,
}

impl SendQueue {
    pub fn new(keeper: Arc<Keeper>, pipeline: usize) -> Self {
        Self { all: VecDeque::new(), keeper, pipeline, tracked: VecDeque::new() }
    }

    pub fn push(&mut self, outgoing: Outgoing) {
        self.all.push_back(outgoing);
    }

    /// Makes the attempts that are due.
    ///
    /// # Errors
    /// They could not be written down, so none was made.
    pub fn pump(&mut self, session: &mut ClientSession, now_ms: u64) -> Result<(), StoreError> {
        let now = Instant::now();
        let server_ms = session.server_time_ms(now_ms);
        self.all.retain(|send| !matches!(*send.ticket.status.borrow(), Status::Failed(_)));
        for late in self.all.iter_mut().filter(|send| send.in_flight.is_some() && send.due <= now) {
            late.lost();
        }
        let mut in_flight = self.all.iter().filter(|send| send.in_flight.is_some()).count();
        // Of each channel: sends before this one that have no end yet, and whether nothing may follow them for now.
        let mut before: HashMap<ChannelId, (usize, bool)> = HashMap::new();
        let mut attempts = Vec::new();
        for (index, outgoing) in self.all.iter_mut().enumerate() {
            let (ahead, closed) = before.entry(outgoing.channel()).or_default();
            // A repeat may be searched for on the server while what came behind it is committed: it goes alone.
            let alone = outgoing.attempts > 0;
            if outgoing.in_flight.is_some() {
                *ahead += 1;
                *closed |= outgoing.attempts > 1;
                continue;
            }
            let may = !*closed && *ahead < self.pipeline && !(alone && *ahead > 0) && outgoing.due <= now;
            if !may || in_flight >= WINDOW_MAX {
                *closed = true;
                continue;
            }
            let Some(frame) = outgoing.attempt(server_ms) else { continue };
            *ahead += 1;
            *closed |= alone;
            in_flight += 1;
            attempts.push((index, frame, alone));
        }
        if attempts.is_empty() {
            return Ok(());
        }
        let saved = |outgoing: &Outgoing| SavedSend {
            place: outgoing.place,
            channel: outgoing.channel(),
            send: outgoing.send.clone(),
        };
        let written =
            self.keeper.attempt(attempts.iter().map(|(index, ..)| saved(&self.all[*index])).collect());
        let mut settled = Vec::new();
        for (index, frame, retry) in attempts {
            let outgoing = &mut self.all[index];
            if written.is_err() {
                // As a repeat later: the id stays, and repeating is always safe.
                outgoing.due = now + AGAIN_AFTER;
                continue;
            }
            // A first attempt that was held back after it was written down goes as a repeat, with its times.
            match session.send(outgoing.channel(), &frame, retry) {
                Ok(number) => {
                    outgoing.in_flight = Some(number);
                    outgoing.due = now + ANSWER_TIME_MAX;
                }
                Err(Code::TOO_MANY_IN_FLIGHT | Code::OUT_OF_STATE) => outgoing.due = now + AGAIN_AFTER,
                Err(code) => {
                    let error = SendError::Rejected { code, text: String::new(), recoverable: false };
                    settled.push((index, Status::Failed(error)));
                }
            }
        }
        for (index, status) in settled.into_iter().rev() {
            self.settle(index, status);
        }
        written
    }

    /// Takes the answer to an attempt; what it settled as committed.
    pub fn answer(&mut self, number: u64, ack: &wire::SendAck) -> Option<(ChannelId, Sent)> {
        let index = self.all.iter().position(|send| send.in_flight == Some(number))?;
        let outgoing = &mut self.all[index];
        match Outcome::try_from(ack.outcome) {
            Ok(Outcome::Ok) => {
                let sent = Sent {
                    epoch: ack.epoch,
                    seq: ack.seq,
                    id: MessageId(ack.message_id),
                    ordinal: ack.ordinal,
                    repeated: ack.repeated_send,
                };
                let channel = outgoing.channel();
                self.settle(index, Status::Sent(sent));
                return Some((channel, sent));
            }
            Ok(Outcome::Fail) => self.refused(index, Code(ack.code as u16), &ack.text, ack.retry_after_ms),
            // An outcome of a later version is as good as none.
            Ok(Outcome::Unknown) | Err(_) => {
                outgoing.unknown = true;
                outgoing.wait(ack.retry_after_ms);
            }
        }
        None
    }

    /// An entry of the user's own came: a send whose answer was lost is settled by it.
    pub fn seen(&mut self, entry: &Entry) {
        let Some(id) = entry.client_message_id else { return };
        let own = |send: &Outgoing| {
            send.channel() == entry.channel
                && send.in_flight.is_none()
                && send.ticket.about.id.get() == Some(&id)
        };
        if let Some(index) = self.all.iter().position(own) {
            let (epoch, seq, id, ordinal) = (entry.epoch, entry.seq, entry.id, entry.ordinal);
            self.settle(index, Status::Sent(Sent { epoch, seq, id, ordinal, repeated: true }));
        }
    }

    /// Takes a REFUSED; whether it answers an attempt.
    pub fn refuse(&mut self, number: u64, error: &wire::Error) -> bool {
        let Some(index) = self.all.iter().position(|send| send.in_flight == Some(number)) else {
            return false;
        };
        self.refused(index, Code(error.code as u16), &error.text, error.retry_after_ms);
        true
    }

    fn refused(&mut self, index: usize, code: Code, text: &str, retry_after_ms: u32) {
        let outgoing = &mut self.all[index];
        let comes_back = matches!(code.policy(), Policy::BackOff | Policy::Repeat);
        outgoing.refusals += 1;
        if code == Code::OUTCOME_UNKNOWN {
            outgoing.unknown = true;
        }
        if comes_back && (outgoing.unknown || outgoing.refusals < REFUSALS_MAX) {
            outgoing.wait(retry_after_ms);
            return;
        }
        let error = SendError::Rejected { code, text: text.into(), recoverable: comes_back };
        self.settle(index, Status::Failed(error));
    }

    fn settle(&mut self, index: usize, status: Status) {
        let Some(outgoing) = self.all.remove(index) else { return };
        self.keeper.settled(outgoing.place);
        let sent = status.sent();
        outgoing.ticket.settle(status);
        if let Some(sent) = sent {
            self.tracked.retain(|(ticket, _)| !ticket.status.is_closed());
            if self.tracked.len() >= TRACKED_MAX {
                self.tracked.pop_front();
            }
            self.tracked.push_back((outgoing.ticket, sent));
        }
    }

    /// Another member's cursors: what lies at or below them is delivered, or read.
    pub fn receipt(&mut self, channel: ChannelId, delivered: Seq, read: Seq) {
        self.tracked.retain(|(ticket, sent)| {
            if ticket.about.channel != channel || sent.seq > delivered.max(read) {
                return true;
            }
            let reached = if sent.seq <= read { Status::Read(*sent) } else { Status::Delivered(*sent) };
            ticket.status.send_if_modified(|status| {
                let rises = *status != reached && !matches!(status, Status::Read(_));
                if rises {
                    *status = reached.clone();
                }
                rises
            });
            sent.seq > read
        });
    }

    /// Seqs to ask counts of after a reconnect, as receipts may have been missed: the oldest and the newest of each channel, of at most
    /// `channels_max`.
    pub fn unread(&mut self, channels_max: usize) -> Vec<(ChannelId, Seq)> {
        self.tracked.retain(|(ticket, _)| !ticket.status.is_closed());
        let mut ends: HashMap<ChannelId, (Seq, Seq)> = HashMap::new();
        for (ticket, sent) in &self.tracked {
            if ends.len() < channels_max || ends.contains_key(&ticket.about.channel) {
                let (oldest, newest) = ends.entry(ticket.about.channel).or_insert((sent.seq, sent.seq));
                (*oldest, *newest) = ((*oldest).min(sent.seq), (*newest).max(sent.seq));
            }
        }
        let ask =
            ends.into_iter().flat_map(|(channel, (oldest, newest))| [(channel, oldest), (channel, newest)]);
        let mut ask: Vec<_> = ask.collect();
        ask.dedup();
        ask
    }

    /// A restore rewound the channel: what stood there is void.
    pub fn rewound(&mut self, channel: ChannelId, from: Seq) {
        self.tracked.retain(|(ticket, sent)| ticket.about.channel != channel || sent.seq < from);
    }

    /// The connection broke: what was on its way may be committed or not.
    pub fn disconnected(&mut self) {
        self.all.iter_mut().filter(|send| send.in_flight.is_some()).for_each(Outgoing::lost);
    }

    /// When [`Self::pump`] has something to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        // Those that are due already wait for an answer to another, not for time.
        self.all.iter().map(|send| send.due).filter(|due| *due > now).min()
    }

    /// No more attempts.
    pub fn close(&mut self) {
        let kept = self.keeper.lasts();
        for outgoing in self.all.drain(..) {
            let aborted = matches!(*outgoing.ticket.status.borrow(), Status::Failed(_));
            if !aborted {
                let error = SendError::Closed { attempted: outgoing.attempts > 0, kept };
                outgoing.ticket.settle(Status::Failed(error));
            }
        }
        self.tracked.clear();
    }
}

/// The local echoes: sends whose copy from the server was not seen yet, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Echoes {
    all: VecDeque<SendHandle>,
}

impl Echoes {
    pub fn push(&mut self, handle: SendHandle) {
        self.all.retain(|echo| !matches!(*echo.status.borrow(), Status::Failed(_)));
        if self.all.len() >= QUEUE_MAX * 2 {
            self.all.pop_front();
        }
        self.all.push_back(handle);
    }

    pub fn of(&self, channel: ChannelId) -> Vec<SendHandle> {
        let shown = |echo: &&SendHandle| {
            echo.channel() == channel && !matches!(*echo.status.borrow(), Status::Failed(_))
        };
        self.all.iter().filter(shown).cloned().collect()
    }

    pub fn pending(&self) -> Vec<SendHandle> {
        let pending = |echo: &&SendHandle| matches!(*echo.status.borrow(), Status::Queued | Status::Sending);
        self.all.iter().filter(pending).cloned().collect()
    }

    /// The server's copy was seen.
    pub fn seen(&mut self, entry: &Entry, user: UserId) {
        if entry.sender == user && entry.client_message_id.is_some() {
            self.all.retain(|echo| {
                echo.channel() != entry.channel || echo.client_message_id() != entry.client_message_id
            });
        }
    }

    /// What is committed in this range was seen before, or will not be told.
    pub fn passed(&mut self, channel: ChannelId, first: Seq, last: Seq) {
        self.all.retain(|echo| {
            let sent = echo.status.borrow().sent();
            echo.channel() != channel || sent.is_none_or(|sent| !(first..=last).contains(&sent.seq))
        });
    }
}

/// Bound of the queue, shared by everybody who may send.
pub(crate) type Permits = Arc<tokio::sync::Semaphore>;
