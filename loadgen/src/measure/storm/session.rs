//! One session of `storm`: talks, or drops when it is told to and comes back as the SDK does.

use std::{cell::RefCell, rc::Rc, time::Duration};

use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame,
    error::Policy,
    session::client::{ClientSession, DeviceState, Ended, Event, SessionOptions},
    wire,
};
use hashbrown::HashMap;
use tokio::sync::{Notify, Semaphore, watch};

use super::world::World;
use crate::check::page_frames;

/// Entries asked for by one FETCH.
const FETCH_MESSAGES: u32 = 100;

/// What all dropping sessions are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// Be connected, or come back.
    Stay,
    /// Let go of the connection, without a word.
    Drop,
}

/// What a session is given.
pub struct Seat {
    /// What all share.
    pub world: Rc<RefCell<World>>,
    /// Its number.
    pub number: usize,
    /// How it connects.
    pub options: ConnectOptions,
    /// What it shows the first time.
    pub token: String,
    /// Has it look at what it is to send, or that all is over.
    pub wake: Rc<Notify>,
    /// Places of those that are connecting.
    pub opening: Rc<Semaphore>,
    /// For those that drop.
    pub words: Option<watch::Receiver<Word>>,
}

enum Turned {
    Over(Ended),
    Told,
    Closing,
}

impl Seat {
    /// Runs the session until the world closes or fails.
    pub async fn run(mut self) {
        let mut device = DeviceState::new(DeviceId(self.number as u64 + 1));
        let mut token = std::mem::take(&mut self.token);
        let first = token.clone();
        let mut attempt = 0;
        let mut is_back = false;
        loop {
            let options = SessionOptions {
                token: std::mem::take(&mut token),
                delivery: wire::Delivery::Full,
                device_name: "loadgen".into(),
                seed: self.random(attempt),
                ..Default::default()
            };
            let session = ClientSession::new(device.clone(), options, now_ms());
            self.world.borrow_mut().attempts += u64::from(is_back);
            let opened = {
                // Never closed.
                let _place = self.opening.acquire().await.ok();
                Connection::open(&self.options, session).await
            };
            let ended = match opened {
                Ok(mut connection) => {
                    let turned = self.turn(&mut connection, &mut attempt).await;
                    self.world.borrow_mut().repeats += connection.session().repeats();
                    device = connection.into_session().into_device();
                    match turned {
                        Turned::Closing => return,
                        Turned::Told => {
                            if !self.stay_away().await {
                                return;
                            }
                            (attempt, is_back) = (0, true);
                            Ended::from_close(None, "")
                        }
                        Turned::Over(ended) => ended,
                    }
                }
                Err(error) if is_back => error.ended(),
                Err(error) => {
                    self.fail(&format!("cannot connect: {error}"));
                    return;
                }
            };
            if !is_back {
                self.fail(&ended.to_string());
                return;
            }
            // From here on as the SDK does it.
            let Some(delay_ms) = ended.delay_ms(attempt, self.random(attempt)) else {
                self.fail(&ended.to_string());
                return;
            };
            if ended.policy == Policy::Authenticate {
                token.clone_from(&first);
                self.world.borrow_mut().by_token += 1;
            }
            if !ended.text.is_empty() {
                self.world.borrow_mut().attempt_failed = Some(ended.text);
            }
            attempt += 1;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            if self.world.borrow().closing {
                return;
            }
        }
    }

    /// Without a connection until it is told to come back; false where all is over.
    async fn stay_away(&mut self) -> bool {
        self.world.borrow_mut().dropped += 1;
        let Some(words) = &mut self.words else { return false };
        words.wait_for(|word| *word == Word::Stay).await.is_ok()
    }

    fn random(&self, attempt: u32) -> u64 {
        let number = (self.number as u64) << 16 | u64::from(attempt);
        // SplitMix64: neighbours have nothing in common.
        let mixed =
            (number ^ (number >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 3
    }

    fn fail(&self, why: &str) {
        let mut world = self.world.borrow_mut();
        if !world.closing {
            world.failed.get_or_insert(format!("session {}: {why}", self.number));
        }
    }

    async fn turn(&mut self, connection: &mut Connection, attempt: &mut u32) -> Turned {
        let mut taken = Taken {
            world: Rc::clone(&self.world),
            number: self.number,
            is_ready: false,
            to_fetch: Vec::new(),
            waiting: HashMap::new(),
        };
        loop {
            if taken.is_ready {
                *attempt = 0;
                self.world.borrow_mut().transmit(self.number, connection.session(), now_ms());
            }
            let told = async {
                match &mut self.words {
                    Some(words) => drop(words.wait_for(|word| *word == Word::Drop).await),
                    None => std::future::pending().await,
                }
            };
            let next = self.world.borrow().next(self.number);
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut sink = |event| taken.event(event);
            let turned = tokio::select! {
                biased;
                turned = connection.turn(&mut sink) => turned.err().map(Turned::Over),
                () = told => Some(Turned::Told),
                () = due => None,
                () = self.wake.notified() => self.world.borrow().closing.then_some(Turned::Closing),
            };
            for (channel, after, before) in std::mem::take(&mut taken.to_fetch) {
                let fetch = wire::Fetch { before, after, messages_max: FETCH_MESSAGES, before_ms: 0 };
                if let Err(code) = connection.session().fetch(channel, &fetch) {
                    self.fail(&format!("a FETCH could not be made: {code}"));
                }
            }
            if let Some(turned) = turned {
                self.world.borrow_mut().ready -= usize::from(taken.is_ready);
                return turned;
            }
        }
    }
}

/// Takes the events of one connection.
struct Taken {
    world: Rc<RefCell<World>>,
    number: usize,
    is_ready: bool,
    to_fetch: Vec<(ChannelId, u64, u64)>,
    /// Entries of channels of which some are fetched: they wait, so that all are in order.
    waiting: HashMap<ChannelId, Vec<Frame>>,
}

impl Taken {
    fn event(&mut self, event: Event) {
        let world = Rc::clone(&self.world);
        let mut world = world.borrow_mut();
        match event {
            Event::Deliver(frame) => {
                match frame.routed().and_then(|header| self.waiting.get_mut(&header.channel)) {
                    Some(waiting) => waiting.push(frame),
                    None => world.delivered(self.number, &frame),
                }
            }
            Event::Synced(synced) if synced.complete && !self.is_ready => {
                self.is_ready = true;
                world.ready += 1;
            }
            Event::SendAck { ack, .. } => world.acknowledged(self.number, &ack),
            Event::Gap { channel, after, head } if world.is_new(channel, head) => {
                world.gaps += 1;
                self.waiting.entry(channel).or_default();
                self.to_fetch.push((channel, after, head + 1));
            }
            Event::Page { channel, page, news, .. } => {
                let is_news = |seq| news.iter().any(|(first, last)| (*first..=*last).contains(&seq));
                let waiting = self.waiting.entry(channel).or_default();
                waiting.extend(
                    page_frames(&page)
                        .filter(|frame| frame.routed().is_some_and(|header| is_news(header.seq))),
                );
                if !page.more {
                    let mut frames = self.waiting.remove(&channel).unwrap_or_default();
                    frames.sort_by_key(|frame| frame.routed().map(|header| header.seq));
                    frames.iter().for_each(|frame| world.delivered(self.number, frame));
                }
            }
            Event::Defect { channel, kind, after, before } => {
                let number = self.number;
                world.hole.get_or_insert_with(|| {
                    format!("session {number}: {kind:?} in channel {channel} between {after} and {before}")
                });
            }
            Event::Failed(error) | Event::Refused { error, .. } => {
                let code = Code(error.code as u16);
                if code == Code::RATE_LIMITED {
                    world.limited += 1;
                } else {
                    world.failed.get_or_insert(format!("session {}: {code} {}", self.number, error.text));
                }
            }
            Event::Ended(ended) => {
                if let Some(Code::RATE_LIMITED | Code::PING_FLOOD | Code::CONNECTIONS_PER_ADDRESS) =
                    ended.code
                {
                    world.limited += 1;
                }
            }
            _ => {}
        }
    }
}
