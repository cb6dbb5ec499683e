//! `fanout`: one sender, one group, and every member's delivery checked; beside a bare loop of `send`.

pub mod figures;

use std::{rc::Rc, time::Instant};

use anyhow::{Context, Result, bail};
use fanfare_proto::{
    ChannelId,
    session::client::{ClientSession, Event},
    wire::{self, send::Content},
    ws,
};
use tokio::sync::Notify;

use super::{
    crowd::{Crowd, Load, Stage},
    floor::{Floor, Order},
    ledger::{Deliveries, Ledger, refusal},
    machine::{Cores, allow_files},
    peer::{self, Peer},
    population::{Maker, message_id, people},
    report::{Options, Outcome},
    server::{Server, Transport},
    statistics::median_of,
};
use crate::scratch::Scratch;
use figures::{FanoutReport, Ours, Size, round, size};

/// Bytes of each message's text.
const TEXT_BYTES: usize = 128;
/// Deliveries of one round where nothing else is asked for, with one message in flight.
const DELIVERIES_PER_ROUND: usize = 1_000_000;
/// Messages in flight for which a round is made longer: beyond, a message costs little less.
const LONGER_MAX: usize = 16;
/// Messages of the round that is not counted: lists grow, files are opened.
const WARM_UP: usize = 20;
/// What a sealed record of TLS 1.3 adds: header, content type and tag, in bytes.
const RECORD_BYTES: u64 = 5 + 1 + 16;
/// Rounds with their floors where nothing else is asked for.
const REPEATS: usize = 5;
/// The same over QUIC.
const REPEATS_QUIC: usize = 7;

/// One sender and one group: what a message costs until every member has it, beside a bare loop of `send`.
///
/// A session of each member is connected and asks for full delivery; one of them sends messages of 128 bytes, --in-flight of
/// them unacknowledged at any time. Each repeat is a round of ours and, right after it, the floor: a loop that does nothing but
/// `send` the same bytes to as many sockets, in a process of its own on the server's core, its sockets read like the sessions'. With
/// several in flight each `send` of the loop carries as many messages. Over wss the loop's bytes are as many as the sealed record's.
///
/// cpu_us_per_delivery: CPU of all threads of the server, from the kernel's accounting, from a round's first SEND to the end of
/// the floor's round behind it (so that late acknowledgements and heartbeats are in it), divided by messages and members. The
/// commit to disk is included. `ratio` is ours by the floor's CPU per `send` and message.
///
/// deliver_us_p50: median time from SEND to the receipt by the last member. `pass_us_p50`: median time of one pass of the loop,
/// from its first `send` to the return of its last; `read_us_p50`: until the last socket's bytes were read.
///
/// Over QUIC the floor is quinn alone, writing the same bytes to as many connections. With one in flight the next message is sent
/// when all members have the last, so that each takes a datagram of its own on both sides; datagrams_per_message counts those
/// that reach a member, and a repeat in which ours and the floor's differ by over 5 % makes the run INVALID. `pass_us_p50` is there the
/// same as `read_us_p50`, since quinn sends when the loop is through.
///
/// peer, with --peer nats or mosquitto: the same work by that server, on the same core and in the same run, its turn behind the
/// floor's: one sender, as many subscriber sockets as members, payloads of 128 bytes, --in-flight of them under way until the sender's own
/// copy has come, every delivery checked. `ratio` is our CPU per delivery by the peer's (`floor`), by the same accounting; ours
/// is durable then, the peer's is not. NATS' text protocol, or MQTT 3.1.1 with QoS 0. A peer that is not installed is an error.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke, the machine
/// has one core only, or datagrams differ). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Fanout {
    /// Members of the group, the sender included; several sizes with commas between.
    #[arg(long, value_delimiter = ',', value_parser = crate::count, default_value = "1000,10000")]
    pub members: Vec<usize>,
    /// Messages that wait for SEND_ACK at any time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub in_flight: u16,
    /// Messages of each round; by default as many as make a million deliveries (with many in flight up to sixteen million).
    #[arg(long, value_parser = crate::count)]
    pub messages: Option<usize>,
    /// Also measure this peer on the same work: the program must be installed.
    #[arg(long, value_enum)]
    pub peer: Option<peer::Kind>,
    #[command(flatten)]
    pub options: Options,
}

impl Fanout {
    fn repeats(&self) -> usize {
        let usual = if self.options.transport == Transport::Quic { REPEATS_QUIC } else { REPEATS };
        self.options.repeats.unwrap_or(usual)
    }
}

/// The sessions' shared state.
struct Group {
    ledger: Ledger,
    sender: usize,
    in_flight_max: usize,
    in_flight: usize,
    /// A message is in flight until all members have it, not until it is acknowledged.
    until_delivered: bool,
    /// The sender's.
    wake: Option<Rc<Notify>>,
    /// Messages still to be sent in this round.
    left: usize,
    number: u64,
    frame_bytes: usize,
    deliver_us: Vec<u64>,
    refused: Option<String>,
}

impl Group {
    fn text(number: u64) -> String {
        format!("{number:0TEXT_BYTES$}")
    }

    fn landed(&mut self, counts: bool) {
        if counts {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    fn is_settled(&self) -> bool {
        self.left == 0 && self.in_flight == 0 && self.ledger.is_settled()
    }
}

impl Load for Group {
    fn event(&mut self, member: usize, event: Event) {
        match event {
            Event::Deliver(frame) => {
                if let Some(sent_at) = self.ledger.delivered(member, &frame) {
                    self.frame_bytes = frame.bytes.len();
                    self.deliver_us.push(sent_at.elapsed().as_micros() as u64);
                    self.landed(self.until_delivered);
                    if let Some(wake) = self.wake.as_ref().filter(|_| self.until_delivered) {
                        wake.notify_one();
                    }
                }
            }
            Event::SendAck { ack, .. } => {
                self.landed(!self.until_delivered);
                if let Some(why) = refusal(&ack) {
                    self.refused.get_or_insert(why);
                }
            }
            _ => {}
        }
    }

    fn is_new(&self, channel: ChannelId, seq: u64) -> bool {
        self.ledger.is_new(channel, seq)
    }

    fn transmit(&mut self, member: usize, session: &mut ClientSession, now_ms: u64) {
        if member != self.sender {
            return;
        }
        while self.left > 0 && self.in_flight < self.in_flight_max {
            let id = message_id(session.server_time_ms(now_ms), member, self.number);
            let text = Self::text(self.number);
            self.ledger.sending(id, &text);
            let send = wire::Send {
                client_message_id: bytes::Bytes::copy_from_slice(&id.0),
                content: Some(Content::Message(wire::Message { text, ..Default::default() })),
                ..Default::default()
            };
            if let Err(code) = session.send(self.ledger.channel(), &send, false) {
                self.refused.get_or_insert(format!("a SEND could not be made: {code}"));
                return;
            }
            (self.number, self.left, self.in_flight) = (self.number + 1, self.left - 1, self.in_flight + 1);
        }
    }
}

/// The whole run.
pub async fn run(arguments: &Fanout, cores: &Cores) -> Result<FanoutReport> {
    let mut deliveries = Deliveries::default();
    let (mut limited, mut behind) = (0, 0);
    let mut sizes = Vec::new();
    for members in &arguments.members {
        if *members < 2 {
            bail!("a group of {members} is no group: --members 2 at least");
        }
        let (size, mut stage) = measure(arguments, cores, *members).await?;
        let mut counted = stage.load.ledger.close();
        stage.add_to(&mut counted);
        deliveries.add(counted);
        limited += stage.limited;
        behind += stage.behind;
        sizes.push(size);
    }
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    if !sizes.iter().all(|size| size.datagrams_alike) {
        reasons.push("datagrams per message differ by over 5 % between ours and the floor".into());
    }
    Ok(FanoutReport {
        schema: "fanfare.fanout/v1",
        outcome: Outcome::of(deliveries, limited, behind, reasons),
        transport: arguments.options.transport,
        in_flight: arguments.in_flight,
        repeats: arguments.repeats(),
        sizes,
    })
}

async fn measure(arguments: &Fanout, cores: &Cores, members: usize) -> Result<(Size, Stage<Group>)> {
    allow_files(members)?;
    let scratch = Scratch::new("fanout", arguments.options.keep)?;
    let server = Server::start(&scratch.path, cores, arguments.options.transport).await?;
    let people = people(&server.admin, members).await?;
    let others: Vec<_> = people[1..].iter().map(|person| person.id).collect();
    let target = server.targets.first().context("there is a way to connect")?;
    let mut maker = Maker::open(target, &people, 0).await?;
    let made = maker.group("everybody", &others).await?;
    maker.close().await;

    let in_flight = usize::from(arguments.in_flight);
    let over_quic = arguments.options.transport == Transport::Quic;
    let group = Group {
        ledger: Ledger::new(made.channel, made.head, members),
        sender: 0,
        in_flight_max: in_flight,
        in_flight: 0,
        until_delivered: over_quic && in_flight == 1,
        wake: None,
        left: 0,
        number: 1,
        frame_bytes: 0,
        deliver_us: Vec::new(),
        refused: None,
    };
    let mut crowd = Crowd::new(group);
    crowd.grow(&server.targets, &people, members).await?;
    let wake = crowd.waker(0);
    crowd.with(|stage| stage.load.wake = wake);
    let mut floor = Floor::start(cores, arguments.options.transport, members)?;
    let mut peer = arguments.peer.map(|kind| Peer::start(kind, cores, &scratch.path, members)).transpose()?;

    let messages = arguments
        .messages
        .unwrap_or_else(|| (DELIVERIES_PER_ROUND / members).max(1) * in_flight.min(LONGER_MAX));
    let mut arrives = play(&crowd, WARM_UP.max(in_flight)).await?.is_some();
    let frame_bytes = crowd.with(|stage| stage.load.frame_bytes);
    let order = Order {
        bytes: send_bytes(frame_bytes * in_flight, arguments.options.transport),
        passes: messages.div_ceil(in_flight),
    };
    floor.run(Order { passes: 2, ..order })?;
    if let Some(peer) = &mut peer {
        peer.run(peer::Order { messages: WARM_UP.max(in_flight), in_flight })?;
    }
    let mut rounds = Vec::new();
    for _ in 0..arguments.repeats() {
        if !arrives {
            break;
        }
        let datagrams = if over_quic { crowd.datagrams_received().await? } else { 0 };
        let before = server.cpu()?;
        let began = Instant::now();
        let Some(deliver_us) = play(&crowd, messages).await? else {
            arrives = false;
            continue;
        };
        let elapsed_s = began.elapsed().as_secs_f64();
        // The sessions' heartbeats and late acknowledgements go on meanwhile.
        let (taken, back) = tokio::task::spawn_blocking(move || (floor.run(order), floor)).await?;
        floor = back;
        let spent = server.cpu()?.since(&before);
        let datagrams = if over_quic { crowd.datagrams_received().await? - datagrams } else { 0 };
        let mut peer_cpu_us = None;
        if let Some(mut asked) = peer.take() {
            let order = peer::Order { messages, in_flight };
            let (spent, back) = tokio::task::spawn_blocking(move || (asked.run(order), asked)).await?;
            (peer, peer_cpu_us) = (Some(back), Some(spent?));
        }
        let deliveries = messages * members;
        let ours = Ours { spent, deliver_us, elapsed_s, datagrams, deliveries, peer_cpu_us };
        rounds.push(round(&ours, taken?, order.passes * in_flight * members));
    }
    drop(floor);
    let stage = crowd.end().await?;
    server.stop()?;
    let peer = peer.map(|peer| (peer.name.clone(), peer.version.clone()));
    Ok((size(&rounds, members, messages, frame_bytes, in_flight, peer), stage))
}

/// Sends so many messages and waits until every member has them. Gives the median time from SEND to the last receipt, in
/// microseconds; `None` where what is missing does not come: the ledger counts it.
async fn play(crowd: &Crowd<Group>, messages: usize) -> Result<Option<u64>> {
    let sender = crowd.with(|stage| {
        stage.load.left = messages;
        stage.load.deliver_us.clear();
        stage.load.sender
    });
    crowd.wake(sender);
    let arrived = crowd
        .until(|stage| {
            let load = &stage.load;
            (load.is_settled() || load.refused.is_some(), load.ledger.deliveries.checked as usize)
        })
        .await?;
    crowd.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None => Ok(arrived.then(|| median_of(&mut stage.load.deliver_us))),
    })
}

/// Bytes of one `send` that carries frames of so many bytes in all.
fn send_bytes(frames_bytes: usize, transport: Transport) -> u64 {
    let message = (frames_bytes + ws::server_header_len(frames_bytes)) as u64;
    match transport {
        Transport::Wss => message + RECORD_BYTES,
        Transport::Ws => message,
        // Streams carry frames as they are.
        Transport::Quic => frames_bytes as u64,
    }
}
