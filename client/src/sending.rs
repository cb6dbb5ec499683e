//! Sends on their way: each is repeated, under the same client message id, until its outcome is known. A queue in memory,
//! bounded.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, MessageId, Seq,
    error::Policy,
    session::client::ClientSession,
    wire::{self, Outcome, send::Content},
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use crate::random;

/// Messages that may wait or be on their way in one client.
pub const QUEUE_MAX: usize = 1_000;
/// Sends in flight at once, of those.
pub const WINDOW_MAX: usize = 32;
/// An attempt without an answer for so long counts as unknown and is repeated.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// Refusals in a row, of the kind that asks to come back, after which a send whose outcome is known to be "not committed" fails.
const REFUSALS_MAX: u32 = 12;
/// Longest wait between two attempts of one send.
const WAIT_MS_MAX: u64 = 30_000;

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
    /// Not committed, and not tried any more.
    Failed(SendError),
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
    /// The client was closed first. Where an attempt was made (`attempted`), it may be committed all the same.
    #[error("the client was closed")]
    Closed {
        /// At least one attempt was made.
        attempted: bool,
    },
}

impl SendError {
    /// Whether sending the same once more, as a new send, may succeed.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Rejected { recoverable, .. } => *recoverable,
            Self::QueueFull | Self::Closed { .. } => true,
            Self::Aborted => false,
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

/// The sender's view of one send. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct SendHandle {
    status: watch::Receiver<Status>,
    abort: watch::Sender<bool>,
}

impl SendHandle {
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
        let ended =
            self.status.wait_for(|status| matches!(status, Status::Sent(_) | Status::Failed(_))).await;
        match ended.map(|status| status.clone()) {
            Ok(Status::Sent(sent)) => Ok(sent),
            Ok(Status::Failed(error)) => Err(error),
            _ => Err(SendError::Closed { attempted: true }),
        }
    }

    /// Takes it back, if no attempt was made yet.
    pub fn abort(&self) {
        self.abort.send_replace(true);
    }
}

/// One send in the client's task.
#[derive(Debug)]
pub(crate) struct Outgoing {
    channel: ChannelId,
    /// Without id and attempt times: those are of the attempts.
    send: wire::Send,
    status: watch::Sender<Status>,
    abort: watch::Receiver<bool>,
    attempts: u32,
    refusals: u32,
    /// An attempt ended unknown: later refusals do not settle it.
    unknown: bool,
    in_flight: Option<u64>,
    /// While in flight: when the answer is given up; else: not before.
    due: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Outgoing {
    pub fn new(channel: ChannelId, content: Content, permit: OwnedSemaphorePermit) -> (Self, SendHandle) {
        let (status, status_out) = watch::channel(Status::Queued);
        let (abort, abort_in) = watch::channel(false);
        let outgoing = Self {
            channel,
            send: wire::Send { content: Some(content), ..Default::default() },
            status,
            abort: abort_in,
            attempts: 0,
            refusals: 0,
            unknown: false,
            in_flight: None,
            due: Instant::now(),
            _permit: permit,
        };
        (outgoing, SendHandle { status: status_out, abort })
    }

    /// A handle of a send that failed before it began.
    pub fn failed(error: SendError) -> SendHandle {
        SendHandle { status: watch::channel(Status::Failed(error)).1, abort: watch::channel(false).0 }
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
}

/// All sends of a client, in the order in which they were made. Sends to one channel keep it as long as none has to be repeated
/// while later ones are on their way.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    all: VecDeque<Outgoing>,
}

impl SendQueue {
    pub fn push(&mut self, outgoing: Outgoing) {
        self.all.push_back(outgoing);
    }

    /// Makes the attempts that are due.
    pub fn pump(&mut self, session: &mut ClientSession, now_ms: u64) {
        let now = Instant::now();
        let mut in_flight = self.all.iter().filter(|send| send.in_flight.is_some()).count();
        let mut held_back: Vec<ChannelId> = Vec::new();
        let mut settled = Vec::new();
        for (index, outgoing) in self.all.iter_mut().enumerate() {
            if outgoing.in_flight.is_some() {
                if outgoing.due > now {
                    continue;
                }
                outgoing.lost();
                in_flight -= 1;
            }
            if outgoing.attempts == 0 && *outgoing.abort.borrow() {
                settled.push((index, Status::Failed(SendError::Aborted)));
                continue;
            }
            if in_flight >= WINDOW_MAX || outgoing.due > now || held_back.contains(&outgoing.channel) {
                held_back.push(outgoing.channel);
                continue;
            }
            let server_ms = session.server_time_ms(now_ms);
            let retry = outgoing.attempts > 0;
            if !retry {
                let mut bits = [0; 10];
                bits[..8].copy_from_slice(&random().to_ne_bytes());
                bits[8..].copy_from_slice(&random().to_ne_bytes()[..2]);
                outgoing.send.client_message_id = ClientMessageId::new(server_ms, bits).0.to_vec().into();
            }
            match session.send(outgoing.channel, &outgoing.send, retry) {
                Ok(number) => {
                    in_flight += 1;
                    outgoing.attempts += 1;
                    outgoing.in_flight = Some(number);
                    outgoing.due = now + ANSWER_TIME_MAX;
                    // For the attempt after this one, if there is one.
                    if !retry {
                        outgoing.send.first_attempt_ms = server_ms;
                        outgoing.status.send_replace(Status::Sending);
                    }
                    outgoing.send.last_attempt_ms = server_ms;
                }
                Err(Code::TOO_MANY_IN_FLIGHT | Code::OUT_OF_STATE) => break,
                Err(code) => {
                    let error = SendError::Rejected { code, text: String::new(), recoverable: false };
                    settled.push((index, Status::Failed(error)));
                }
            }
        }
        for (index, status) in settled.into_iter().rev() {
            self.settle(index, status);
        }
    }

    /// Takes the answer to an attempt; whether it was one.
    pub fn answer(&mut self, number: u64, ack: &wire::SendAck) -> bool {
        let Some(index) = self.all.iter().position(|send| send.in_flight == Some(number)) else {
            return false;
        };
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
                self.settle(index, Status::Sent(sent));
            }
            Ok(Outcome::Fail) => self.refused(index, Code(ack.code as u16), &ack.text, ack.retry_after_ms),
            // An outcome of a later version is as good as none.
            Ok(Outcome::Unknown) | Err(_) => {
                outgoing.unknown = true;
                outgoing.wait(ack.retry_after_ms);
            }
        }
        true
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
        if let Some(outgoing) = self.all.remove(index) {
            outgoing.status.send_replace(status);
        }
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
        for outgoing in self.all.drain(..) {
            let error = SendError::Closed { attempted: outgoing.attempts > 0 };
            outgoing.status.send_replace(Status::Failed(error));
        }
    }
}

/// Bound of the queue, shared by everybody who may send.
pub(crate) type Permits = Arc<tokio::sync::Semaphore>;
