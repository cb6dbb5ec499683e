//! Questions on their way: FETCH, OPEN and COUNTS. All of them may be asked twice, so a broken connection only delays them.

use std::{collections::VecDeque, time::Duration};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Seq, error::Policy, session::client::ClientSession, wire,
};
use tokio::{sync::oneshot, time::Instant};

use crate::random;

/// Questions that may wait or be on their way in one client.
pub const QUESTIONS_MAX: usize = 256;
/// Attempts of one question before its refusal is handed out.
const ATTEMPTS_MAX: u32 = 6;

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server refused it.
    #[error("refused: {code} {text}")]
    Refused {
        /// The error number.
        code: Code,
        /// For people.
        text: String,
    },
    /// Too many questions wait already.
    #[error("too many requests wait")]
    Busy,
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// The answer could not be read.
    #[error("the answer could not be read: {0}")]
    Answer(Code),
}

#[derive(Debug)]
pub(crate) enum Question {
    Fetch(ChannelId, wire::Fetch),
    Open(wire::Open),
    Counts(ChannelId, Seq),
}

#[derive(Debug)]
pub(crate) enum Answer {
    Pages(Vec<wire::Page>),
    Channel(Box<wire::ChannelState>),
    Counts(wire::Counts),
}

pub(crate) type Reply = oneshot::Sender<Result<Answer, RequestError>>;

#[derive(Debug)]
struct Asked {
    question: Question,
    /// `None`: nobody waits for it, and a broken connection or a refusal ends it.
    reply: Option<Reply>,
    number: Option<u64>,
    attempts: u32,
    not_before: Instant,
    pages: Vec<wire::Page>,
}

/// All questions of a client.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    all: VecDeque<Asked>,
}

impl Questions {
    pub fn ask(&mut self, question: Question, reply: Option<Reply>) {
        if self.all.len() >= QUESTIONS_MAX {
            // Whoever asked has gone, or hears that there is no room.
            let _ = reply.map(|reply| reply.send(Err(RequestError::Busy)));
            return;
        }
        let asked = Asked {
            question,
            reply,
            number: None,
            attempts: 0,
            not_before: Instant::now(),
            pages: Vec::new(),
        };
        self.all.push_back(asked);
    }

    pub fn pump(&mut self, session: &mut ClientSession, now_ms: u64) {
        let now = Instant::now();
        self.all.retain(|asked| asked.reply.as_ref().is_none_or(|reply| !reply.is_closed()));
        for asked in self.all.iter_mut().filter(|asked| asked.number.is_none() && asked.not_before <= now) {
            let number = match &mut asked.question {
                Question::Fetch(channel, fetch) => session.fetch(*channel, fetch),
                Question::Counts(channel, of) => session.counts(*channel, *of),
                Question::Open(open) => {
                    if open.client_message_id.is_empty() {
                        let mut bits = [0; 10];
                        bits[..8].copy_from_slice(&random().to_ne_bytes());
                        let id = ClientMessageId::new(session.server_time_ms(now_ms), bits);
                        open.client_message_id = id.0.to_vec().into();
                    }
                    session.open(open)
                }
            };
            let Ok(number) = number else { return };
            asked.number = Some(number);
            asked.attempts += 1;
            asked.pages.clear();
        }
    }

    pub fn page(&mut self, number: u64, page: wire::Page) {
        let Some(index) = self.index(number) else { return };
        let more = page.more;
        self.all[index].pages.push(page);
        if !more {
            let pages = std::mem::take(&mut self.all[index].pages);
            self.settle(index, Ok(Answer::Pages(pages)));
        }
    }

    pub fn channel(&mut self, number: u64, state: Box<wire::ChannelState>) {
        if let Some(index) = self.index(number) {
            self.settle(index, Ok(Answer::Channel(state)));
        }
    }

    pub fn counts(&mut self, number: u64, counts: wire::Counts) {
        if let Some(index) = self.index(number) {
            self.settle(index, Ok(Answer::Counts(counts)));
        }
    }

    pub fn refuse(&mut self, number: u64, error: &wire::Error) {
        let Some(index) = self.index(number) else { return };
        let code = Code(error.code as u16);
        let asked = &mut self.all[index];
        if matches!(code.policy(), Policy::BackOff | Policy::Repeat)
            && asked.attempts < ATTEMPTS_MAX
            && asked.reply.is_some()
        {
            asked.number = None;
            let wait_ms = u64::from(error.retry_after_ms) + random() % (200u64 << asked.attempts);
            asked.not_before = Instant::now() + Duration::from_millis(wait_ms);
            return;
        }
        self.settle(index, Err(RequestError::Refused { code, text: error.text.clone() }));
    }

    /// The connection broke: what was on its way is asked again.
    pub fn disconnected(&mut self) {
        self.all.retain(|asked| asked.reply.is_some());
        self.all.iter_mut().for_each(|asked| asked.number = None);
    }

    /// When [`Self::pump`] has something to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        self.all
            .iter()
            .filter(|asked| asked.number.is_none())
            .map(|asked| asked.not_before)
            .filter(|at| *at > now)
            .min()
    }

    pub fn close(&mut self) {
        for asked in self.all.drain(..) {
            let _ = asked.reply.map(|reply| reply.send(Err(RequestError::Closed)));
        }
    }

    fn index(&self, number: u64) -> Option<usize> {
        self.all.iter().position(|asked| asked.number == Some(number))
    }

    fn settle(&mut self, index: usize, outcome: Result<Answer, RequestError>) {
        if let Some(asked) = self.all.remove(index) {
            // Whoever asked may have gone.
            let _ = asked.reply.map(|reply| reply.send(outcome));
        }
    }
}
