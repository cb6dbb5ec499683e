//! `pairs`: many direct channels, one message in flight in each, beside a bare loop of one `recv` and two `send`.

pub mod floor;

use std::{collections::BTreeMap, rc::Rc, time::Instant};

use anyhow::{Context, Result, bail};
use fanfare_client::connection::ConnectOptions;
use fanfare_proto::{
    ChannelId,
    session::client::{ClientSession, Event},
    wire::{self, send::Content},
};
use hashbrown::HashMap;
use serde::Serialize;
use tokio::{sync::Notify, task::JoinSet};

use super::{
    crowd::{Crowd, Load},
    ledger::{Deliveries, Ledger, refusal},
    machine::{Cores, allow_files},
    population::{Made, Maker, Person, message_id, people},
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::{Ratio, Spread, median_of},
};
use crate::scratch::Scratch;
use floor::{Floor, Order};

/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// Messages of a round that is not counted, in each pair.
const WARM_UP: usize = 5;
/// Sessions that make channels at once.
const MAKERS: usize = 16;
/// Repeats where nothing else is asked for.
const REPEATS: usize = 5;
/// Threads that are not counted: what durability costs is measured by itself.
const STORES: &str = "store-";
/// What ours is to be at most, of the floor.
const BAR: f64 = 1.5;

/// Direct channels, one message in flight in each: what a message costs beside one `recv` and two `send`.
///
/// Two sessions for each pair; the one sends messages of 128 bytes to the other, the next when the last is acknowledged and
/// delivered. Receipts are on: the receiver's session says what it has, within 250 ms, and the sender is told. The floor, in the
/// same run and on the server's core: a loop that for each message does one `recv` from the sender's socket and two `send`, as many
/// bytes as SEND_ACK to the sender and as DELIVER to the receiver, on as many sockets, one message in flight in each pair. Over wss
/// and quic the loop is the same: it does not seal.
///
/// cpu_us_per_message: CPU of the server's threads from the kernel's accounting, those of the stores (named store-*) not
/// counted, from a round's first SEND to the end of the floor's round behind it (so that late receipts and acknowledgements are in it);
/// `ratio` is ours by the floor's. store_cpu_us_per_message: what was left out. deliver_us_p50: median from SEND to the
/// receiver's DELIVER. commit_us_p50: median of one group commit, flush included, as the server's metrics have it.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke, or the
/// machine has one core only). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Pairs {
    /// How many pairs.
    #[arg(long, value_parser = crate::count, default_value = "1000")]
    pub pairs: usize,
    /// Messages of each pair in each round.
    #[arg(long, value_parser = crate::count, default_value = "100")]
    pub messages: usize,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.pairs/v1`.
#[derive(Debug, Serialize)]
pub struct PairsReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    pairs: usize,
    messages_per_pair: usize,
    repeats: usize,
    /// CPU per message without the stores', in microseconds.
    ratio: Ratio,
    cpu_us_per_message: Spread,
    floor_cpu_us_per_message: Spread,
    store_cpu_us_per_message: Spread,
    cpu_us_per_message_by_thread: BTreeMap<String, f64>,
    deliver_us_p50: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_us_p50: Option<Spread>,
    messages_per_s: Spread,
}

/// One direct channel.
struct Pair {
    ledger: Ledger,
    left: usize,
    acked: bool,
    delivered: bool,
    sent_at: Instant,
}

/// The sessions' shared state: sessions 2n and 2n + 1 are a pair, the first one sends.
#[derive(Default)]
struct Talk {
    pairs: Vec<Pair>,
    by_channel: HashMap<ChannelId, usize>,
    wakes: Vec<Rc<Notify>>,
    number: u64,
    busy: usize,
    checked: usize,
    deliver_us: Vec<u64>,
    refused: Option<String>,
}

impl Talk {
    fn new(channels: &[Made]) -> Self {
        let pair = |made: &Made| Pair {
            ledger: Ledger::new(made.channel, made.head, 2),
            left: 0,
            acked: true,
            delivered: true,
            sent_at: Instant::now(),
        };
        Self {
            pairs: channels.iter().map(pair).collect(),
            by_channel: channels.iter().enumerate().map(|(number, made)| (made.channel, number)).collect(),
            ..Default::default()
        }
    }

    /// The next message goes when the last is acknowledged and delivered.
    fn moved(&mut self, number: usize) {
        let Some(pair) = self.pairs.get(number) else { return };
        if !(pair.acked && pair.delivered) {
            return;
        }
        if pair.left == 0 {
            self.busy = self.busy.saturating_sub(1);
        } else if let Some(wake) = self.wakes.get(number) {
            wake.notify_one();
        }
    }
}

impl Load for Talk {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                let channel = frame.routed().map(|header| header.channel);
                let Some(number) = channel.and_then(|channel| self.by_channel.get(&channel)).copied() else {
                    return;
                };
                let Some(pair) = self.pairs.get_mut(number) else { return };
                let before = pair.ledger.deliveries.checked;
                pair.ledger.delivered(member % 2, &frame);
                self.checked += (pair.ledger.deliveries.checked - before) as usize;
                if member % 2 == 1 && pair.ledger.deliveries.checked > before {
                    self.deliver_us.push(pair.sent_at.elapsed().as_micros() as u64);
                    pair.delivered = true;
                    self.moved(number);
                }
            }
            Event::SendAck { ack, .. } => {
                if let Some(why) = refusal(&ack) {
                    self.refused.get_or_insert(why);
                }
                if let Some(pair) = self.pairs.get_mut(member / 2) {
                    pair.acked = true;
                }
                self.moved(member / 2);
            }
            _ => {}
        }
    }

    fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        let pair = self.by_channel.get(&channel).and_then(|number| self.pairs.get(*number));
        pair.is_some_and(|pair| pair.ledger.is_new(channel, seq))
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        if member % 2 == 1 {
            return;
        }
        let Some(pair) = self.pairs.get_mut(member / 2) else { return };
        if pair.left == 0 || !pair.acked || !pair.delivered {
            return;
        }
        self.number += 1;
        let id = message_id(session.server_time_ms(now_ms), member, self.number);
        let text = format!("{:0TEXT_BYTES$}", self.number);
        pair.ledger.sending(id, &text);
        let send = wire::Send {
            client_message_id: bytes::Bytes::copy_from_slice(&id.0),
            content: Some(Content::Message(wire::Message { text, ..Default::default() })),
            ..Default::default()
        };
        if let Err(code) = session.send(pair.ledger.channel(), &send, false) {
            self.refused.get_or_insert(format!("a SEND could not be made: {code}"));
        }
        (pair.left, pair.acked, pair.delivered) = (pair.left - 1, false, false);
        pair.sent_at = Instant::now();
    }
}

/// Figures of one repeat, per message.
struct Round {
    cpu_us: f64,
    store_us: f64,
    by_thread: BTreeMap<String, f64>,
    floor_us: f64,
    deliver_us: f64,
    commit_us: Option<f64>,
    per_s: f64,
}

/// The whole run.
pub async fn run(arguments: &Pairs, cores: &Cores) -> Result<PairsReport> {
    let sessions = arguments.pairs * 2;
    allow_files(sessions)?;
    let scratch = Scratch::new("pairs", arguments.options.keep)?;
    let server = Server::start(&scratch.path, cores, arguments.options.transport).await?;
    let people = people(&server.admin, sessions).await?;
    let channels = direct(&server, &people).await?;
    let mut crowd = Crowd::new(Talk::new(&channels));
    crowd.grow(&server.targets, &people, sessions).await?;
    let wakes = (0..sessions).step_by(2).filter_map(|member| crowd.waker(member)).collect();
    crowd.with(|stage| stage.load.wakes = wakes);
    let mut floor = Floor::start(cores, arguments.pairs)?;
    let mut arrives = play(&crowd, arguments.pairs, WARM_UP).await?.is_some();
    floor.run(Order { messages: WARM_UP })?;
    let repeats = arguments.options.repeats.unwrap_or(REPEATS);
    let mut rounds = Vec::new();
    for _ in 0..repeats {
        if !arrives {
            break;
        }
        let (before, began) = (server.cpu()?, Instant::now());
        let Some(deliver_us) = play(&crowd, arguments.pairs, arguments.messages).await? else {
            arrives = false;
            continue;
        };
        let elapsed_s = began.elapsed().as_secs_f64();
        let commit_us = server.admin.metric("fanfare_router_commit_seconds{quantile=\"0.5\"}").await?;
        let order = Order { messages: arguments.messages };
        // The sessions' receipts and late acknowledgements go on meanwhile.
        let (taken, back) = tokio::task::spawn_blocking(move || (floor.run(order), floor)).await?;
        floor = back;
        let spent = server.cpu()?.since(&before);
        let messages = (arguments.pairs * arguments.messages) as f64;
        let us = |ns: u64| ns as f64 / 1e3 / messages;
        let stores = |is_store: bool| {
            let kinds = spent.iter().filter(move |(kind, _)| kind.starts_with(STORES) == is_store);
            us(kinds.map(|(_, ns)| ns).sum())
        };
        rounds.push(Round {
            cpu_us: stores(false),
            store_us: stores(true),
            by_thread: spent.iter().map(|(kind, ns)| (kind.clone(), us(*ns))).collect(),
            floor_us: us(taken?.cpu_ns),
            deliver_us: deliver_us as f64,
            commit_us: commit_us.map(|seconds| seconds * 1e6),
            per_s: messages / elapsed_s,
        });
    }
    drop(floor);
    let mut stage = crowd.end().await?;
    server.stop()?;
    let mut deliveries = Deliveries::default();
    stage.load.pairs.iter_mut().for_each(|pair| deliveries.add(pair.ledger.close()));
    stage.add_to(&mut deliveries);
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    Ok(report(arguments, Outcome::of(deliveries, stage.limited, stage.behind, reasons), &rounds))
}

/// Opens each pair's direct channel: of the first and second of `people`, the third and fourth, and so on.
pub async fn direct(server: &Server, people: &[Person]) -> Result<Vec<Made>> {
    let target = server.targets.first().context("there is a way to connect")?.clone();
    let everybody: Rc<[Person]> = people.into();
    let mut made = vec![None; people.len() / 2];
    let mut makers = JoinSet::new();
    for number in 0..made.len() {
        if makers.len() >= MAKERS {
            let (number, channel) = makers.join_next().await.context("some are at work")???;
            made[number] = Some(channel);
        }
        makers.spawn_local(one(target.clone(), Rc::clone(&everybody), number));
    }
    while let Some(ended) = makers.join_next().await {
        let (number, channel) = ended??;
        made[number] = Some(channel);
    }
    made.into_iter().collect::<Option<Vec<_>>>().context("every pair has a channel")
}

async fn one(target: ConnectOptions, everybody: Rc<[Person]>, number: usize) -> Result<(usize, Made)> {
    let mut maker = Maker::open(&target, &everybody, number * 2).await?;
    let made = maker.direct(everybody[number * 2 + 1].id).await?;
    maker.close().await;
    Ok((number, made))
}

/// Has each pair exchange so many messages. Gives the median time from SEND to DELIVER, in microseconds; `None` where
/// something does not come: the ledgers count it.
async fn play(crowd: &Crowd<Talk>, pairs: usize, messages: usize) -> Result<Option<u64>> {
    crowd.with(|stage| {
        stage.load.busy = pairs;
        stage.load.deliver_us.clear();
        stage.load.pairs.iter_mut().for_each(|pair| pair.left = messages);
    });
    (0..pairs).for_each(|pair| crowd.wake(pair * 2));
    let arrived = crowd
        .until(|stage| {
            let load = &stage.load;
            let done = load.busy == 0 && load.pairs.iter().all(|pair| pair.ledger.is_settled());
            (done || load.refused.is_some(), load.checked)
        })
        .await?;
    crowd.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None => Ok(arrived.then(|| median_of(&mut stage.load.deliver_us))),
    })
}

fn report(arguments: &Pairs, outcome: Outcome, rounds: &[Round]) -> PairsReport {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    let beside: Vec<(f64, f64)> = rounds.iter().map(|round| (round.cpu_us, round.floor_us)).collect();
    let commits: Option<Vec<f64>> = rounds.iter().map(|round| round.commit_us).collect();
    let mut kinds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (kind, us) in rounds.iter().flat_map(|round| &round.by_thread) {
        kinds.entry(kind.clone()).or_default().push(*us);
    }
    PairsReport {
        schema: "fanfare.pairs/v1",
        outcome,
        transport: arguments.options.transport,
        pairs: arguments.pairs,
        messages_per_pair: arguments.messages,
        repeats: rounds.len(),
        ratio: Ratio::of(&beside, Some(BAR)),
        cpu_us_per_message: of(|round| round.cpu_us),
        floor_cpu_us_per_message: of(|round| round.floor_us),
        store_cpu_us_per_message: of(|round| round.store_us),
        cpu_us_per_message_by_thread: kinds
            .into_iter()
            .map(|(kind, us)| (kind, Spread::of(us).median))
            .collect(),
        deliver_us_p50: of(|round| round.deliver_us),
        commit_us_p50: commits.map(Spread::of),
        messages_per_s: of(|round| round.per_s),
    }
}

impl Report for PairsReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  {} pairs over {:?}, one message in flight each, {} repeats (median, least to most)",
            self.pairs, self.transport, self.repeats
        );
        let (ours, floor, ratio) = (self.cpu_us_per_message, self.floor_cpu_us_per_message, self.ratio);
        println!(
            "  CPU us a message  {:>8.2} ({:.2} to {:.2}) without the stores' {:.2}",
            ours.median, ours.min, ours.max, self.store_cpu_us_per_message.median
        );
        println!("  floor             {:>8.2} ({:.2} to {:.2})", floor.median, floor.min, floor.max);
        println!("  ratio             {}", ratio.text());
        let commit = self.commit_us_p50.map_or("-".into(), |commit| format!("{:.0}", commit.median));
        println!(
            "  deliver p50 us    {:>8.0}, a commit's {commit} · {:.0} messages/s",
            self.deliver_us_p50.median, self.messages_per_s.median
        );
        let mut kinds: Vec<_> = self.cpu_us_per_message_by_thread.iter().collect();
        kinds.sort_by(|one, other| other.1.total_cmp(one.1));
        let kinds: Vec<String> = kinds.iter().map(|(kind, us)| format!("{kind} {us:.2}")).collect();
        println!("  by thread         {}", kinds.join(", "));
    }
}
