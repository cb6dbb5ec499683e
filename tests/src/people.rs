//! A few people with a session each who talk at once, in several channels, and write everything into the ledger.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_proto::{ChannelId, ClientMessageId, FrameType, frame::Frame, header::flags, wire};

use crate::{
    connection::{ANSWER_TIME, Connection, History, fresh_id, unix_ms},
    ledger::{Fate, Ledger},
    server::Server,
};

/// Who talks: people whom the demo seed makes.
pub const NAMES: [&str; 3] = ["alice", "bob", "carol"];
/// Unanswered sends of one person.
const IN_FLIGHT: usize = 16;
/// Waits between attempts of the same message, by the server's word within these bounds.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The people, their tokens and, while the server lives, their sessions.
#[derive(Debug)]
pub struct People {
    tokens: Vec<String>,
    sessions: Vec<Option<Session>>,
    /// User ids, in the order of [`NAMES`].
    pub users: Vec<u64>,
    /// Where they talk, with who may.
    pub channels: Vec<(ChannelId, Vec<usize>)>,
    devices: u64,
    made: u64,
    /// Groups that alice opens with bob: their keys and, once it is answered, which channel it is.
    opened: Vec<(ClientMessageId, Option<u64>)>,
}

#[derive(Debug)]
struct Session {
    connection: Connection,
    /// Request number to message, and its fate before this attempt.
    waiting: BTreeMap<u64, (usize, Fate)>,
}

/// What became of a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Burst {
    /// Every send was answered.
    Answered,
    /// A session broke: the server died or hung.
    Broken,
}

impl People {
    /// Gets them tokens and channels to talk in: the seeded group, one of their own, a direct one.
    pub fn arrive(server: &Server) -> Result<Self> {
        let tokens = NAMES.iter().map(|name| server.token(name)).collect::<Result<Vec<_>>>()?;
        let mut people = Self {
            tokens,
            sessions: Vec::new(),
            users: Vec::new(),
            channels: Vec::new(),
            devices: u64::from(std::process::id()) << 20,
            made: 0,
            opened: Vec::new(),
        };
        people.connect(server)?;
        people.users =
            people.sessions.iter().flatten().map(|session| session.connection.welcome.user).collect();
        let [_, bob, carol] = people.users[..] else { bail!("three people") };
        let session = people.sessions[0].as_mut().context("alice is there")?;
        let seeded = session.connection.channels.iter().find(|state| state.name == "general");
        let general = seeded.context("the demo seed has no group general")?.channel;
        let group = wire::Group { name: "rig".into(), members: vec![bob, carol], ..Default::default() };
        let group = session.connection.open_channel(fresh_id(), wire::open::Target::Group(group))?.channel;
        let direct = session.connection.open_channel(fresh_id(), wire::open::Target::Direct(bob))?.channel;
        people.channels = vec![
            (ChannelId(general), vec![0, 1, 2]),
            (ChannelId(group), vec![0, 1, 2]),
            (ChannelId(direct), vec![0, 1]),
        ];
        Ok(people)
    }

    /// Opens a session for each of them.
    pub fn connect(&mut self, server: &Server) -> Result<()> {
        self.sessions.clear();
        for (index, token) in self.tokens.iter().enumerate() {
            let connection = Connection::open(server.address(), token, 1 + index as u64)
                .with_context(|| format!("{} cannot connect", NAMES[index]))?;
            self.sessions.push(Some(Session { connection, waiting: BTreeMap::new() }));
        }
        Ok(())
    }

    /// Forgets the sessions: what was not answered may have happened.
    pub fn hang_up(&mut self, ledger: &mut Ledger) {
        for session in &mut self.sessions {
            if let Some(session) = session.take() {
                lose(session, ledger);
            }
        }
    }

    /// Alice opens a group with bob, so that members' lists of channels move too; without an answer it stays open whether it
    /// happened.
    pub fn open_group(&mut self, ledger: &mut Ledger) -> Burst {
        self.opened.push((fresh_id(), None));
        self.open_again(ledger, self.opened.len() - 1)
    }

    fn open_again(&mut self, ledger: &mut Ledger, index: usize) -> Burst {
        let Some(session) = &mut self.sessions[0] else { return Burst::Broken };
        let (id, known) = self.opened[index];
        let name = format!("opened {index}");
        let group = wire::Group { name, members: vec![self.users[1]], ..Default::default() };
        match session.connection.open_channel(id, wire::open::Target::Group(group)) {
            Ok(state) => {
                if known.is_some_and(|known| known != state.channel) {
                    let text =
                        format!("G3 group {index} was opened as {known:?}, its repeat is {}", state.channel);
                    ledger.violations.push(text);
                }
                self.opened[index].1 = Some(state.channel);
                Burst::Answered
            }
            Err(_) => Burst::Broken,
        }
    }

    /// Makes new messages, one after the other by everybody in turn through their channels; returns them.
    pub fn make(&mut self, ledger: &mut Ledger, count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| {
                self.made += 1;
                let made = self.made as usize;
                let (channel, members) = &self.channels[made % self.channels.len()];
                let sender = members[made / self.channels.len() % members.len()];
                // Some long ones, so that pages, blobs and logs are not all alike; text that does not compress.
                let tail = noise(self.made, if made.is_multiple_of(7) { 3_000 } else { 24 });
                // And some that are all the same: two messages of one text are two messages.
                let text =
                    if made.is_multiple_of(5) { "+1".to_owned() } else { format!("message {made} {tail}") };
                ledger.add(*channel, sender, text)
            })
            .collect()
    }

    /// Sends these, several at once, and waits for the answers.
    pub fn send(&mut self, ledger: &mut Ledger, messages: &[usize]) -> Burst {
        let mut end = Burst::Answered;
        let mut lines: Vec<Vec<usize>> = vec![Vec::new(); self.sessions.len()];
        for &index in messages.iter().rev() {
            lines[ledger.messages[index].sender].push(index);
        }
        loop {
            for (line, slot) in lines.iter_mut().zip(&mut self.sessions) {
                while let Some(session) = slot
                    && session.waiting.len() < IN_FLIGHT
                    && let Some(index) = line.pop()
                {
                    if attempt(session, ledger, index).is_err() {
                        end = Burst::Broken;
                        lose(slot.take().expect("it was there"), ledger);
                    }
                }
            }
            let mut waiting = false;
            for (person, slot) in self.sessions.iter_mut().enumerate() {
                let Some(session) = slot else {
                    end = Burst::Broken;
                    continue;
                };
                if session.waiting.is_empty() {
                    continue;
                }
                match session.connection.next(ANSWER_TIME) {
                    Ok(Some(frame)) => take(session, ledger, person, &frame),
                    Ok(None) => {
                        ledger
                            .violations
                            .push(format!("G13 {}: no answer in {ANSWER_TIME:?}", NAMES[person]));
                        end = Burst::Broken;
                        lose(slot.take().expect("it was there"), ledger);
                    }
                    Err(_) => {
                        end = Burst::Broken;
                        lose(slot.take().expect("it was there"), ledger);
                    }
                }
                waiting |= slot.as_ref().is_some_and(|session| !session.waiting.is_empty());
            }
            let left =
                lines.iter().zip(&self.sessions).any(|(line, slot)| slot.is_some() && !line.is_empty());
            if !waiting && !left {
                return end;
            }
        }
    }

    /// Repeats everything that has no definite end until it is acknowledged. One in four of those that FAILed every
    /// time is left so, to be looked for.
    pub fn settle(&mut self, ledger: &mut Ledger, time: Duration) -> Result<()> {
        let mut failed = 0;
        for sent in ledger.messages.iter_mut().filter(|sent| sent.fate == Fate::Failed && !sent.left_failed) {
            failed += 1;
            sent.left_failed = failed % 4 == 1;
        }
        let until = Instant::now() + time;
        for index in 0..self.opened.len() {
            while self.opened[index].1.is_none() && self.open_again(ledger, index) == Burst::Broken {
                if Instant::now() > until {
                    bail!("a group could not be opened within {time:?} of the fault's end");
                }
                std::thread::sleep(WAIT_MIN);
            }
        }
        loop {
            let open: Vec<usize> = (0..ledger.messages.len())
                .filter(|index| {
                    let sent = &ledger.messages[*index];
                    !matches!(sent.fate, Fate::Acked { .. } | Fate::Unsent) && !sent.left_failed
                })
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("{} of the sends had no definite end within {time:?} of the fault's end", open.len());
            }
            if self.send(ledger, &open) == Burst::Broken {
                bail!("a session broke while sends were repeated without any fault");
            }
            let again = open.iter().any(|index| !matches!(ledger.messages[*index].fate, Fate::Acked { .. }));
            if again {
                // The server said: later.
                std::thread::sleep(WAIT_MIN.max(WAIT_MAX / 4));
            }
        }
    }

    /// Repeats every acknowledged message from the given one on: each must be answered with the place it had.
    pub fn repeat(&mut self, ledger: &mut Ledger, from: usize) -> Result<()> {
        let acked: Vec<usize> = (from..ledger.messages.len())
            .filter(|index| matches!(ledger.messages[*index].fate, Fate::Acked { .. }))
            .collect();
        let newest = self.opened.len().saturating_sub(4)..self.opened.len();
        for index in newest {
            if self.open_again(ledger, index) == Burst::Broken {
                bail!("a group that was opened cannot be opened again by the same key");
            }
        }
        if self.send(ledger, &acked) == Burst::Broken {
            bail!("a session broke while acknowledged sends were repeated");
        }
        Ok(())
    }

    /// Pages every channel by a fresh device of every member and holds it against the ledger.
    pub fn check(&mut self, server: &Server, ledger: &mut Ledger) -> Result<()> {
        for (person, name) in NAMES.iter().enumerate() {
            self.devices += 1;
            let mut reader = Connection::open(server.address(), &self.tokens[person], self.devices)?;
            for (index, channel) in self.opened.iter().enumerate().filter(|_| person < 2) {
                if channel.1.is_some_and(|id| !reader.channels.iter().any(|state| state.channel == id)) {
                    ledger
                        .violations
                        .push(format!("G1 {name}: group {index} was opened and is not among the channels"));
                }
            }
            for (channel, members) in &self.channels {
                if members.contains(&person) {
                    let history =
                        reader.history(*channel).with_context(|| format!("{name} pages {channel}"))?;
                    ledger.check(name, *channel, &history);
                }
            }
        }
        Ok(())
    }

    /// A channel as each of its members pages it with a fresh device.
    pub fn histories(&mut self, server: &Server, channel: ChannelId) -> Result<Vec<(&'static str, History)>> {
        let members =
            self.channels.iter().find(|(known, _)| *known == channel).map(|(_, members)| members.clone());
        let mut histories = Vec::new();
        for person in members.context("a channel of theirs")? {
            self.devices += 1;
            let mut reader = Connection::open(server.address(), &self.tokens[person], self.devices)?;
            histories.push((NAMES[person], reader.history(channel)?));
        }
        Ok(histories)
    }

    /// Whether history is served: one member pages one channel; nothing is checked but that it comes.
    pub fn pages_a_channel(&mut self, server: &Server) -> Result<usize> {
        self.devices += 1;
        let mut reader = Connection::open(server.address(), &self.tokens[0], self.devices)?;
        Ok(reader.history(self.channels[0].0)?.frames.len())
    }
}

fn attempt(session: &mut Session, ledger: &mut Ledger, index: usize) -> Result<()> {
    let sent = &mut ledger.messages[index];
    let again = sent.attempts_ms.0 != 0;
    let message = wire::Message { text: sent.text.clone(), ..Default::default() };
    let send = wire::Send {
        client_message_id: sent.id.0.to_vec().into(),
        first_attempt_ms: sent.attempts_ms.0,
        last_attempt_ms: sent.attempts_ms.1,
        content: Some(wire::send::Content::Message(message)),
    };
    let now = unix_ms();
    if !again {
        sent.attempts_ms.0 = now;
    }
    sent.attempts_ms.1 = now;
    let before = sent.fate;
    if !matches!(before, Fate::Acked { .. }) {
        // Until it is answered, it may happen.
        sent.fate = Fate::Unknown;
    }
    let flags = if again { flags::RETRY } else { 0 };
    let number = session.connection.request(FrameType::Send, flags, sent.channel, &send)?;
    session.waiting.insert(number, (index, before));
    Ok(())
}

fn take(session: &mut Session, ledger: &mut Ledger, person: usize, frame: &Frame) {
    match frame.frame_type() {
        FrameType::Deliver => ledger.saw(NAMES[person], frame),
        FrameType::SendAck => {
            let number = frame.routed().map_or(0, |routed| routed.seq);
            if let (Some((index, before)), Ok(ack)) = (session.waiting.remove(&number), frame.decode()) {
                ledger.answered(index, before, &ack);
            }
        }
        FrameType::Refused => {
            let number = frame.routed().map_or(0, |routed| routed.seq);
            if let Some((index, before)) = session.waiting.remove(&number) {
                let code = frame.decode::<wire::Error>().map_or(0, |error| error.code);
                ledger.answered(index, before, &wire::SendAck { code, ..Default::default() });
            }
        }
        _ => {}
    }
}

/// What had come before the end counts; what was not answered may have happened.
fn lose(mut session: Session, ledger: &mut Ledger) {
    while let Ok(Some(frame)) = session.connection.next(Duration::from_millis(1)) {
        take(&mut session, ledger, 0, &frame);
    }
}

/// Letters that do not compress, the same for the same seed.
pub fn noise(seed: u64, letters: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..letters)
        .map(|_| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            LETTERS[(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 58) as usize] as char
        })
        .collect()
}
