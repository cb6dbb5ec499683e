//! What all sessions of a replay share: the plan, the checker, who waits for which answer. One thread owns it.

use std::{cell::RefCell, rc::Rc, time::Instant};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, Frame, UserId,
    session::client::ClientSession,
    wire::{self, open::Target, send::Content},
};
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use tokio::sync::Notify;

use crate::{
    check::{Checker, Sent, Way, text_hash},
    plan::{Plan, Step},
    trace::Bodies,
};

/// A user of the community, with its one session.
pub struct User {
    /// Its account.
    pub id: UserId,
    /// A token for HELLO.
    pub token: String,
    /// Wakes its session: something is to be sent.
    pub wake: Rc<Notify>,
    /// What it has under way.
    pub current: Option<Current>,
}

/// The row of the trace that a user works on.
#[derive(Clone)]
pub struct Current {
    /// Which row.
    pub row: usize,
    /// Which step of it.
    pub step: Step,
    client_id: ClientMessageId,
    /// The message, the same at every attempt.
    message: Option<wire::Message>,
    /// Server's clock at the first and last attempt, 0 before.
    first_attempt_ms: u64,
    last_attempt_ms: u64,
    /// An attempt's outcome is not known.
    unknown: bool,
    /// Request number of the attempt under way in this session.
    request: Option<u64>,
    /// Not before this instant.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct Topic {
    seq: u64,
    sender: Option<u32>,
}

/// See the module.
pub struct World {
    /// What is sent when.
    pub plan: Plan,
    /// Every delivery is checked here.
    pub checker: Checker,
    /// The community.
    pub users: Vec<User>,
    /// The trace's channels, where they are open.
    pub channels: Vec<Option<ChannelId>>,
    /// Who opened it, by channel.
    pub openers: Vec<Option<usize>>,
    /// Newest seq known of each channel.
    pub heads: HashMap<ChannelId, u64>,
    topics: Vec<Topic>,
    bodies: Bodies,
    began: Instant,
    /// From the planned instant to SEND_ACK.
    pub ack_us: Histogram<u64>,
    /// From the planned instant to each member's DELIVER.
    pub deliver_us: Histogram<u64>,
    /// Joins and openings.
    pub joins: u64,
    /// Sends of unknown outcome that came to a definite end.
    pub unknown_resolved: u64,
    /// Refusals by a limiter.
    pub rate_limited: u64,
    /// Connections made anew.
    pub reconnects: u64,
    /// Why the run cannot go on.
    pub failed: Option<String>,
    /// All is over: sessions end instead of reconnecting.
    pub closing: bool,
    /// Planned instants of rows, microseconds since the start, by the trace's speed; `None` at full speed.
    pub speed: Option<f64>,
    /// Sessions that have been opened at least once.
    pub sessions_open: usize,
    /// GAPs received.
    pub gaps: u64,
    /// The clock at the newest delivery, microseconds since the start.
    pub last_us: u64,
    opened: Vec<bool>,
    next_client_id: u64,
}

/// The shared state; never borrowed across an await.
pub type Shared = Rc<RefCell<World>>;

impl World {
    /// A community before its first word.
    pub fn new(
        plan: Plan,
        users: Vec<User>,
        channels: usize,
        topics: usize,
        bodies: Bodies,
        speed: Option<f64>,
    ) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds of an hour are valid");
        Self {
            plan,
            checker: Checker::default(),
            sessions_open: 0,
            gaps: 0,
            last_us: 0,
            opened: vec![false; users.len()],
            users,
            channels: vec![None; channels],
            openers: vec![None; channels],
            heads: HashMap::new(),
            topics: vec![Topic::default(); topics],
            bodies,
            began: Instant::now(),
            ack_us: histogram(),
            deliver_us: histogram(),
            joins: 0,
            unknown_resolved: 0,
            rate_limited: 0,
            reconnects: 0,
            failed: None,
            closing: false,
            speed,
            next_client_id: 0,
        }
    }

    /// The clock starts.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Gives every sender that may begin a row its work, and wakes its session.
    pub fn pump(&mut self) {
        let now_us = self.now_us();
        let until_s = match self.speed {
            Some(times) => (now_us as f64 * times / 1e6) as u64,
            None => u64::MAX,
        };
        while let Some((row, step)) = self.plan.next(until_s) {
            let sender = self.plan.row(row).sender as usize;
            let current = Self::begin_step(row, step);
            self.users[sender].current = Some(current);
            self.users[sender].wake.notify_one();
        }
    }

    fn begin_step(row: usize, step: Step) -> Current {
        Current {
            row,
            step,
            client_id: ClientMessageId::default(),
            message: None,
            first_attempt_ms: 0,
            last_attempt_ms: 0,
            unknown: false,
            request: None,
            not_before: None,
        }
    }

    fn planned_us(&self, row: usize) -> u64 {
        match self.speed {
            Some(times) => {
                let since = self.plan.row(row).time_s - self.plan.row(0).time_s;
                (since as f64 * 1e6 / times) as u64
            }
            None => self.now_us(),
        }
    }

    /// The session of `user` is open anew: whatever was under way is not known.
    pub fn session_opened(&mut self, user: usize) {
        if !std::mem::replace(&mut self.opened[user], true) {
            self.sessions_open += 1;
        }
        if let Some(current) = &mut self.users[user].current
            && current.request.take().is_some()
        {
            current.unknown = true;
        }
    }

    /// When the user's waiting attempt may be repeated, if it waits.
    pub fn not_before(&self, user: usize) -> Option<Instant> {
        self.users[user].current.as_ref().filter(|current| current.request.is_none())?.not_before
    }

    /// Puts the user's next attempt into its session, where there is one to be made now.
    pub fn transmit(&mut self, user: usize, session: &mut ClientSession, now_ms: u64) {
        let Some(mut current) = self.users[user].current.clone() else { return };
        if current.request.is_some() || current.not_before.is_some_and(|instant| Instant::now() < instant) {
            return;
        }
        let server_ms = session.server_time_ms(now_ms);
        let retry = current.first_attempt_ms != 0;
        let row = *self.plan.row(current.row);
        let sender = self.users[user].id;
        if !retry {
            // Bytes 3 to 9 are kept whole: the version and the variant take bits of bytes 0 and 2.
            self.next_client_id += 1;
            let mut random = [0; 10];
            random[3..].copy_from_slice(&self.next_client_id.to_be_bytes()[1..]);
            current.client_id = ClientMessageId::new(server_ms, random);
            current.first_attempt_ms = server_ms;
        }
        let client_id = bytes::Bytes::copy_from_slice(&current.client_id.0);
        let request = match current.step {
            Step::Open => {
                let group = wire::Group {
                    name: format!("channel-{}", row.channel + 1),
                    members: Vec::new(),
                    history: wire::HistoryPolicy::FromJoin.into(),
                    join: wire::JoinPolicy::OpenToAll.into(),
                    posting: wire::PostingPolicy::EveryMember.into(),
                };
                session.open(&wire::Open { client_message_id: client_id, target: Some(Target::Group(group)) })
            }
            Step::Join | Step::Send => {
                let Some(channel) = self.channels[row.channel as usize] else { return };
                let content = if current.step == Step::Join {
                    Content::Membership(wire::Membership {
                        change: wire::MembershipChange::Joined.into(),
                        users: vec![sender.0],
                        role: wire::Role::Member.into(),
                        until_ms: 0,
                    })
                } else {
                    if current.message.is_none() {
                        current.message = Some(self.message(current.row));
                    }
                    Content::Message(current.message.clone().unwrap_or_default())
                };
                if !retry {
                    let text = match &content {
                        Content::Message(message) => text_hash(message.text.as_bytes()),
                        _ => 0,
                    };
                    let planned_us = self.planned_us(current.row);
                    self.checker.sending(current.client_id, Sent { sender, channel, text, planned_us });
                }
                let send = wire::Send {
                    client_message_id: client_id,
                    first_attempt_ms: if retry { current.first_attempt_ms } else { 0 },
                    last_attempt_ms: if retry { current.last_attempt_ms } else { 0 },
                    content: Some(content),
                };
                session.send(channel, &send, retry)
            }
        };
        current.last_attempt_ms = server_ms;
        // A full session is tried again when it has sent something.
        current.request = request.ok();
        self.users[user].current = Some(current);
    }

    /// The message of a row, as its topic stands now.
    fn message(&mut self, row: usize) -> wire::Message {
        let trace = *self.plan.row(row);
        let topic = self.topics[trace.topic as usize];
        let mentions = topic.sender.filter(|sender| *sender != trace.sender);
        wire::Message {
            text: self.bodies.text(row as u64, trace.bytes as usize),
            mentions: mentions.map(|sender| self.users[sender as usize].id.0).into_iter().collect(),
            reply_to: topic.seq,
            ..Default::default()
        }
    }

    /// The user's row went a step further or ended.
    fn advance(&mut self, user: usize, row: usize, step: Step) {
        self.users[user].current = None;
        match step {
            Step::Open | Step::Join => {
                self.joins += 1;
                self.plan.joined(row);
                self.users[user].current = Some(Self::begin_step(row, Step::Send));
                self.users[user].wake.notify_one();
            }
            Step::Send => self.plan.finish(row),
        }
        self.pump();
    }

    /// The answer to OPEN.
    pub fn opened(&mut self, user: usize, request: u64, state: &wire::ChannelState) {
        let Some(current) =
            self.users[user].current.clone().filter(|current| current.request == Some(request))
        else {
            return;
        };
        let number = self.plan.row(current.row).channel as usize;
        let channel = ChannelId(state.channel);
        self.channels[number] = Some(channel);
        self.openers[number] = Some(user);
        self.unknown_resolved += u64::from(current.unknown);
        self.checker.joined(channel, user, 1);
        self.raise_head(channel, state.head);
        self.advance(user, current.row, current.step);
    }

    /// A request was refused.
    pub fn refused(&mut self, user: usize, request: u64, error: &wire::Error) {
        let mine = self.users[user].current.as_ref().is_some_and(|current| current.request == Some(request));
        let code = Code(error.code as u16);
        if mine {
            self.again(user, code, error.retry_after_ms, false);
        } else if code == Code::RATE_LIMITED {
            self.rate_limited += 1;
        }
    }

    /// The answer to SEND.
    pub fn acked(&mut self, user: usize, channel: ChannelId, request: u64, ack: &wire::SendAck) {
        let Some(current) =
            self.users[user].current.clone().filter(|current| current.request == Some(request))
        else {
            return;
        };
        let code = Code(ack.code as u16);
        match ack.outcome() {
            wire::Outcome::Ok => {
                self.checker.acked(channel, ack.seq, current.client_id, current.step == Step::Send);
                self.raise_head(channel, ack.seq);
                self.unknown_resolved += u64::from(current.unknown);
                if current.step == Step::Send {
                    let row = *self.plan.row(current.row);
                    let topic = &mut self.topics[row.topic as usize];
                    *topic = Topic { seq: topic.seq.max(ack.seq), sender: Some(row.sender) };
                    let planned_us = match self.speed {
                        Some(_) => self.planned_us(current.row),
                        None => self.checker.planned_us(current.client_id),
                    };
                    let waited = self.now_us().saturating_sub(planned_us);
                    self.ack_us.saturating_record(waited.max(1));
                } else {
                    self.checker.joined(channel, user, ack.seq);
                }
                self.advance(user, current.row, current.step);
            }
            wire::Outcome::Unknown => self.again(user, code, ack.retry_after_ms, true),
            wire::Outcome::Fail => self.again(user, code, ack.retry_after_ms, false),
        }
    }

    fn again(&mut self, user: usize, code: Code, retry_after_ms: u32, unknown: bool) {
        let name = self.users[user].id;
        let Some(current) = &mut self.users[user].current else { return };
        current.request = None;
        current.unknown |= unknown;
        match code {
            Code::RETRY_LATER | Code::READ_ONLY | Code::OUTCOME_UNKNOWN | Code::TOO_MANY_IN_FLIGHT => {
                let wait = std::time::Duration::from_millis(u64::from(retry_after_ms.clamp(20, 5_000)));
                current.not_before = Some(Instant::now() + wait);
                self.users[user].wake.notify_one();
            }
            Code::RATE_LIMITED => {
                self.rate_limited += 1;
                current.not_before = Some(Instant::now() + std::time::Duration::from_millis(500));
                self.users[user].wake.notify_one();
            }
            code => {
                self.failed.get_or_insert(format!("user {name}, {:?}: {code:?}", current.step));
            }
        }
    }

    /// One DELIVER frame of `user`.
    pub fn delivered(&mut self, user: usize, frame: &Frame, way: Way, now_us: u64) {
        if let Some(header) = frame.routed() {
            self.learn_join(user, frame);
            self.raise_head(header.channel, header.seq);
        }
        match self.checker.delivered(user, frame, way) {
            Ok(Some(planned_us)) if way == Way::Pushed => {
                self.deliver_us.saturating_record(now_us.saturating_sub(planned_us).max(1));
            }
            Ok(_) => {}
            Err(error) => {
                self.failed.get_or_insert(format!("{error:#}"));
            }
        }
    }

    /// One's own join may be delivered before it is acknowledged: from then on one is a member.
    fn learn_join(&mut self, user: usize, frame: &Frame) {
        let Some(current) = &self.users[user].current else { return };
        let (Step::Join | Step::Open, Some(header)) = (current.step, frame.routed()) else { return };
        if current.step == Step::Open {
            // On QUIC the first entry may come before the answer that names the channel.
            if header.seq == 1 && !self.heads.contains_key(&header.channel) {
                self.checker.joined(header.channel, user, 1);
            }
            return;
        }
        let Ok(entry) = frame.decode::<wire::Entry>() else { return };
        let mine = entry.client_message_id.as_ref() == current.client_id.0.as_slice();
        if mine && let Some(wire::entry::Content::Membership(_)) = entry.content {
            self.checker.joined(header.channel, user, header.seq);
        }
    }

    /// Where a further FETCH of a channel stops: before the user's first entry.
    pub fn fetch_floor(&self, user: usize, channel: ChannelId) -> u64 {
        self.checker.joined_seq(channel, user).saturating_sub(1)
    }

    fn raise_head(&mut self, channel: ChannelId, seq: u64) {
        let head = self.heads.entry(channel).or_default();
        *head = (*head).max(seq);
    }
}
