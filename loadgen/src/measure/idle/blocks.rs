//! The people of `idle` and `leak`: one channel that everybody is in, and blocks of 40 that share small ones and talk there.

use anyhow::{Context, Result, bail};
use fanfare_proto::{
    ChannelId, UserId,
    session::client::{ClientSession, Event},
    wire::{self, send::Content},
};
use hashbrown::HashMap;

use crate::measure::{
    crowd::{Crowd, Load},
    ledger::{Deliveries, Ledger, refusal},
    population::{Made, Maker, Person, message_id},
    server::Server,
};

/// Users of one block: they share all their channels but the large one. With [`SENDS`] of each, each receives 200.
pub const BLOCK: usize = 40;
/// Messages that each session sends before the second look.
pub const SENDS: u32 = 5;
/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// Senders that have messages under way at once.
const SENDERS_MAX: usize = 256;
/// Who sends to everybody.
const SHOUTER: usize = 0;

/// The first small channel of a block, with who talks there.
pub struct Block {
    ledger: Ledger,
    first: usize,
}

/// The sessions' shared state.
pub struct Blocks {
    /// Of the channel that everybody is in.
    pub everybody: Ledger,
    /// Messages that the first session has still to send there.
    shouts: u32,
    blocks: Vec<Block>,
    by_channel: HashMap<ChannelId, usize>,
    /// By member: messages still to be sent, and under way.
    pub left: Vec<u32>,
    in_flight: Vec<bool>,
    number: u64,
    pub done: usize,
    pub refused: Option<String>,
}

impl Blocks {
    /// Of channels that were just made, with so many members in all.
    pub fn new(channels: &Channels, members: usize) -> Self {
        let block = |(number, made): (usize, &Made)| {
            let first = number * BLOCK;
            Block { ledger: Ledger::new(made.channel, made.head, BLOCK.min(members - first)), first }
        };
        Self {
            everybody: Ledger::new(channels.everybody.channel, channels.everybody.head, members),
            shouts: 0,
            blocks: channels.firsts.iter().enumerate().map(block).collect(),
            by_channel: channels
                .firsts
                .iter()
                .enumerate()
                .map(|(number, made)| (made.channel, number))
                .collect(),
            left: vec![0; members],
            in_flight: vec![false; members],
            number: 0,
            done: 0,
            refused: None,
        }
    }

    /// Whether every message that was sent in blocks is with all of its block.
    pub fn are_settled(&self) -> bool {
        self.blocks.iter().all(|block| block.ledger.is_settled())
    }

    /// Messages received so far.
    pub fn checked(&self) -> usize {
        self.blocks.iter().map(|block| block.ledger.deliveries.checked as usize).sum()
    }

    /// Closes all ledgers.
    pub fn deliveries(&mut self) -> Deliveries {
        let mut all = self.everybody.close();
        self.blocks.iter_mut().for_each(|block| all.add(block.ledger.close()));
        all
    }
}

impl Load for Blocks {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                let channel = frame.routed().map(|header| header.channel);
                if channel == Some(self.everybody.channel()) {
                    self.everybody.delivered(member, &frame);
                    return;
                }
                let Some(number) = channel.and_then(|channel| self.by_channel.get(&channel)) else { return };
                let Some(block) = self.blocks.get_mut(*number) else { return };
                if let Some(at) = member.checked_sub(block.first) {
                    block.ledger.delivered(at, &frame);
                }
            }
            Event::SendAck { ack, .. } => {
                self.in_flight[member] = false;
                self.done += usize::from(self.left[member] == 0);
                if let Some(why) = refusal(&ack) {
                    self.refused.get_or_insert(why);
                }
            }
            _ => {}
        }
    }

    fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        if channel == self.everybody.channel() {
            return self.everybody.is_new(channel, seq);
        }
        let block = self.by_channel.get(&channel).and_then(|number| self.blocks.get(*number));
        block.is_some_and(|block| block.ledger.is_new(channel, seq))
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        if self.in_flight[member] {
            return;
        }
        let ledger = if member == SHOUTER && self.shouts > 0 {
            self.shouts -= 1;
            &mut self.everybody
        } else if self.left[member] > 0 {
            let Some(block) = self.blocks.get_mut(member / BLOCK) else { return };
            self.left[member] -= 1;
            &mut block.ledger
        } else {
            return;
        };
        self.number += 1;
        let id = message_id(session.server_time_ms(now_ms), member, self.number);
        let text = format!("{:0TEXT_BYTES$}", self.number);
        ledger.sending(id, &text);
        let send = wire::Send {
            client_message_id: bytes::Bytes::copy_from_slice(&id.0),
            content: Some(Content::Message(wire::Message { text, ..Default::default() })),
            ..Default::default()
        };
        if let Err(code) = session.send(ledger.channel(), &send, false) {
            self.refused.get_or_insert(format!("a SEND could not be made: {code}"));
        }
        self.in_flight[member] = true;
    }
}

/// What [`channels`] made.
pub struct Channels {
    /// The one that all are in.
    pub everybody: Made,
    /// The first small one of each block.
    pub firsts: Vec<Made>,
}

/// Everybody in one channel, and every block in `channels - 1` of its own. Gives each block's first.
pub async fn channels(server: &Server, people: &[Person], channels: u16) -> Result<Channels> {
    let target = server.targets.first().context("there is a way to connect")?;
    let mut maker = Maker::open(target, people, 0).await?;
    let others: Vec<UserId> = people[1..].iter().map(|person| person.id).collect();
    let everybody = maker.group("everybody", &others).await?;
    maker.close().await;
    let mut firsts = Vec::new();
    for (number, block) in people.chunks(BLOCK).enumerate() {
        let mut maker = Maker::open(target, people, number * BLOCK).await?;
        let names: Vec<String> = (1..channels).map(|channel| format!("block-{number}-{channel}")).collect();
        let members: Vec<UserId> = block[1..].iter().map(|person| person.id).collect();
        let made = maker.groups(&names, &members).await?;
        firsts.push(*made.first().context("a block has a channel")?);
        maker.close().await;
    }
    Ok(Channels { everybody, firsts })
}

/// Has these sessions send their messages, some at a time, and waits until all have arrived; false where something does not
/// come: the ledgers count it.
pub async fn talk(crowd: &Crowd<Blocks>, members: std::ops::Range<usize>) -> Result<bool> {
    let count = members.len();
    crowd.with(|stage| stage.load.done = 0);
    let mut arrives = true;
    for (at, member) in members.enumerate() {
        crowd.with(|stage| stage.load.left[member] = SENDS);
        crowd.wake(member);
        let under_way = |done: usize| at + 1 - done.min(at + 1);
        arrives = arrives
            && crowd
                .until(|stage| {
                    let load = &stage.load;
                    (under_way(load.done) < SENDERS_MAX || load.refused.is_some(), load.done)
                })
                .await?;
    }
    arrives = arrives
        && crowd
            .until(|stage| {
                let load = &stage.load;
                let settled = load.done >= count && load.are_settled();
                (settled || load.refused.is_some(), load.done)
            })
            .await?;
    crowd.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None => Ok(arrives),
    })
}

/// Has the first session send a message to everybody and waits until all have it. Gives how many received it, and the time
/// until the last had it, in milliseconds; of what does not come the ledger counts how often.
pub async fn shout(crowd: &Crowd<Blocks>) -> Result<(u64, f64)> {
    let before = crowd.with(|stage| {
        stage.load.shouts = 1;
        stage.load.everybody.deliveries.checked
    });
    let began = std::time::Instant::now();
    crowd.wake(SHOUTER);
    crowd
        .until(|stage| {
            let load = &stage.load;
            let done = load.shouts == 0 && load.everybody.is_settled();
            (done || load.refused.is_some(), load.everybody.deliveries.checked as usize)
        })
        .await?;
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    crowd.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None => Ok((stage.load.everybody.deliveries.checked - before, took_ms)),
    })
}
