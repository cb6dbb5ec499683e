//! `sends`: durable sends to direct channels, beside one thread that writes the same batches into the stores.

pub mod floor;
mod stalls;
mod talk;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::{
    accounting::CpuTimes,
    crowd::Crowd,
    ledger::Deliveries,
    machine::{Cores, allow_files},
    pairs,
    population::people,
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::{Ratio, Spread, bar_text},
};
use crate::scratch::Scratch;
use floor::{Floor, Order};
use stalls::{STANDSTILL, Sample, Stall, Stretch, explained};
use talk::{Plan, Talk};

/// Messages that a connection has in flight: up to so many in all the one, beyond the other.
const FEW: usize = 64;
const EACH_OF_FEW: usize = 8;
const EACH_OF_MANY: usize = 16;
/// Rounds with their floors where nothing else is asked for.
const REPEATS: usize = 5;
/// The round that is not counted.
const WARM_UP: Duration = Duration::from_secs(2);
/// Between a round and the floor's: what the server has still to put away is put away.
const DRAIN: Duration = Duration::from_secs(1);
/// How often schedules are looked at.
const TICK: Duration = Duration::from_millis(1);
/// Ticks between two looks at what the server's threads have spent.
const TICKS_PER_SAMPLE: u32 = 25;
/// Parts of the measured throughput at which the open loop goes, rising.
const RATES: [f64; 4] = [0.25, 0.5, 0.75, 0.9];
/// Throughput is to be at least so much of the floor's.
const BAR: f64 = 0.5;
/// p99 at half of the measured throughput, in milliseconds.
const P99_MS_BAR: f64 = 20.0;

/// Durable sends to direct channels, the peer connected: throughput beside the stores' own, and latency at fixed rates.
///
/// 64 in flight are 8 connections with 8 messages of 128 bytes unacknowledged each, 1024 are 64 with 16; each sends in a direct
/// channel of its own, whose other user is connected and gets everything. A SEND_ACK says that the message is on the disk.
///
/// ratio: messages acknowledged a second, by the floor's messages written a second. The floor, in the same run and on the server's
/// core: one thread that writes batches of as many messages of the same size into SQLite (ten columns an entry in arrival order,
/// heads moved by compare-and-set, one blob row a batch, no further index, synced), then into fjall (synced). Ours and the floor
/// take turns. floor_sqlite_per_s: what SQLite alone would write of it. server_cores and load_cores: cores that each was
/// running on; where the load's is near 1, the load was what limited ours.
///
/// half_p99_ms: 99th percentile of the time to SEND_ACK with as many messages a second as half of the throughput of the round
/// before, sent by a schedule that does not wait for the server; time runs from when a message was meant to leave. rates:
/// the same at 25, 50, 75 and 90 % of the median throughput, once each; p50, p99, most, and messages a second acknowledged.
///
/// stalls: times of over 100 ms in which nothing was acknowledged although something was under way, each with what the server's log says
/// of slow steps at that time, or that the load itself was not run; busy: which of the server's threads ran meanwhile.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke, or the
/// machine has one core only). A missed bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Sends {
    /// Messages unacknowledged at any time, in all; several with commas between.
    #[arg(long, value_delimiter = ',', value_parser = crate::count, default_value = "64,1024")]
    pub in_flight: Vec<usize>,
    /// Seconds of each round, of each rate and of the floor's round.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600), default_value_t = 4)]
    pub seconds: u64,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.sends/v1`.
#[derive(Debug, Serialize)]
pub struct SendsReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    repeats: usize,
    seconds: u64,
    sizes: Vec<Size>,
}

/// What was measured with so many messages in flight.
#[derive(Debug, Serialize)]
struct Size {
    in_flight: usize,
    connections: usize,
    /// Messages a second.
    ratio: Ratio,
    sends_per_s: Spread,
    floor_per_s: Spread,
    floor_sqlite_per_s: Spread,
    ack_ms_p50: Spread,
    half_p99_ms: Spread,
    half_p99_ms_bar: f64,
    server_cores: Spread,
    load_cores: Spread,
    rates: Vec<Rate>,
    stalls: Vec<Stall>,
}

/// What came of a schedule.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Rate {
    planned_per_s: f64,
    acked_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Figures of one repeat.
struct Round {
    per_s: f64,
    floor_per_s: f64,
    sqlite_per_s: f64,
    ack_p50_ms: f64,
    half_p99_ms: f64,
    server_cores: f64,
    load_cores: f64,
}

/// How many connections there are for so many in flight, and how many each has.
fn shape(in_flight: usize) -> Result<(usize, usize)> {
    let each = if in_flight <= FEW { EACH_OF_FEW } else { EACH_OF_MANY };
    ensure!(in_flight.is_multiple_of(each), "--in-flight {in_flight}: a multiple of {each}");
    Ok((in_flight / each, each))
}

/// The whole run.
pub async fn run(arguments: &Sends, cores: &Cores) -> Result<SendsReport> {
    let mut counted = Counted::default();
    let mut sizes = Vec::new();
    for in_flight in &arguments.in_flight {
        sizes.push(measure(arguments, cores, *in_flight, &mut counted).await?);
    }
    let mut reasons = Vec::new();
    if !cores.apart {
        reasons.push("server and load share the only core".into());
    }
    Ok(SendsReport {
        schema: "fanfare.sends/v1",
        outcome: Outcome::of(counted.deliveries, counted.limited, counted.behind, reasons),
        transport: arguments.options.transport,
        repeats: arguments.options.repeats.unwrap_or(REPEATS),
        seconds: arguments.seconds,
        sizes,
    })
}

/// What all sizes count.
#[derive(Default)]
struct Counted {
    deliveries: Deliveries,
    limited: u64,
    behind: u64,
}

async fn measure(arguments: &Sends, cores: &Cores, in_flight: usize, counted: &mut Counted) -> Result<Size> {
    let (connections, each) = shape(in_flight)?;
    allow_files(connections * 2)?;
    let scratch = Scratch::new("sends", arguments.options.keep)?;
    let server = Server::start(&scratch.path, cores, arguments.options.transport).await?;
    let people = people(&server.admin, connections * 2).await?;
    let channels = pairs::direct(&server, &people).await?;
    let mut crowd = Crowd::new(Talk::new(&channels)?);
    crowd.grow(&server.targets, &people, connections * 2).await?;
    let mut floor = Floor::start(cores, &scratch.path.join("floor"))?;
    let (server_pid, standstills) = (server.pid(), Rc::default());
    let mut rounds = Rounds { crowd, connections, during: Vec::new(), server: server_pid, standstills };
    let length = Duration::from_secs(arguments.seconds);

    let mut arrives = rounds.closed(each, WARM_UP).await?.is_some();
    let frame_bytes = rounds.crowd.with(|stage| stage.load.frame_bytes);
    let for_ms = length.as_millis() as u64;
    let order = Order { batch: in_flight, channels: connections, frame_bytes, for_ms };
    floor.run(Order { for_ms: WARM_UP.as_millis() as u64, ..order })?;
    let mut measured = Vec::new();
    for _ in 0..arguments.options.repeats.unwrap_or(REPEATS) {
        if !arrives {
            break;
        }
        let (before, load_before, began) = (server.cpu()?, super::floor::thread_cpu_ns(), Instant::now());
        let closed = rounds.closed(each, length).await?;
        let elapsed_ns = began.elapsed().as_nanos() as f64;
        let server_ns: u64 = server.cpu()?.since(&before).values().sum();
        let load_ns = super::floor::thread_cpu_ns() - load_before;
        let half = match &closed {
            Some(closed) => rounds.open(closed.acked_per_s / 2.0, length).await?,
            None => None,
        };
        let (Some(closed), Some(half)) = (closed, half) else {
            arrives = false;
            continue;
        };
        tokio::time::sleep(DRAIN).await;
        let (taken, back) = tokio::task::spawn_blocking(move || (floor.run(order), floor)).await?;
        floor = back;
        let taken = taken?;
        measured.push(Round {
            per_s: closed.acked_per_s,
            floor_per_s: taken.messages as f64 * 1e9 / taken.elapsed_ns as f64,
            sqlite_per_s: taken.messages as f64 * 1e9 / taken.sqlite_ns as f64,
            ack_p50_ms: closed.p50_ms,
            half_p99_ms: half.p99_ms,
            server_cores: server_ns as f64 / elapsed_ns,
            load_cores: load_ns as f64 / elapsed_ns,
        });
    }
    drop(floor);
    let throughput = Spread::of(measured.iter().map(|round| round.per_s)).median;
    let mut rates = Vec::new();
    for part in RATES {
        if !arrives || throughput <= 0.0 {
            break;
        }
        match rounds.open(throughput * part, length).await? {
            Some(rate) => rates.push(rate),
            None => arrives = false,
        }
    }
    let standstills = rounds.standstills.take();
    let stalls = explained(&rounds.during, &standstills, server.log())?;
    let mut stage = rounds.crowd.end().await?;
    server.stop()?;
    let mut deliveries = stage.load.deliveries();
    stage.add_to(&mut deliveries);
    counted.deliveries.add(deliveries);
    counted.limited += stage.limited;
    counted.behind += stage.behind;
    Ok(size(&measured, in_flight, connections, rates, stalls))
}

fn size(
    rounds: &[Round],
    in_flight: usize,
    connections: usize,
    rates: Vec<Rate>,
    stalls: Vec<Stall>,
) -> Size {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    let beside: Vec<(f64, f64)> = rounds.iter().map(|round| (round.per_s, round.floor_per_s)).collect();
    Size {
        in_flight,
        connections,
        ratio: Ratio::at_least(&beside, BAR),
        sends_per_s: of(|round| round.per_s),
        floor_per_s: of(|round| round.floor_per_s),
        floor_sqlite_per_s: of(|round| round.sqlite_per_s),
        ack_ms_p50: of(|round| round.ack_p50_ms),
        half_p99_ms: of(|round| round.half_p99_ms),
        half_p99_ms_bar: P99_MS_BAR,
        server_cores: of(|round| round.server_cores),
        load_cores: of(|round| round.load_cores),
        rates,
        stalls,
    }
}

/// Has the sessions send, a round at a time.
struct Rounds {
    crowd: Crowd<Talk>,
    connections: usize,
    /// Stalls of all rounds, with what was measured.
    during: Vec<(String, Stretch, String)>,
    /// The server's process.
    server: u32,
    /// Times in which the load itself was not run.
    standstills: Rc<RefCell<Vec<Stretch>>>,
}

impl Rounds {
    /// So many in flight on each connection, for so long. `None` where something does not come: the ledgers count it.
    async fn closed(&mut self, each: usize, length: Duration) -> Result<Option<Rate>> {
        let began = Instant::now();
        let plan = Plan::Closed { in_flight: each, until: began + length };
        let name = format!("{} in flight", each * self.connections);
        self.round(plan, began, 0.0, &name).await
    }

    /// By a schedule of so many a second, for so long.
    async fn open(&mut self, per_s: f64, length: Duration) -> Result<Option<Rate>> {
        let from = Instant::now() + TICK * 10;
        let every = Duration::from_secs_f64(self.connections as f64 / per_s.max(1.0));
        let count = (length.as_secs_f64() / every.as_secs_f64()).ceil() as u64;
        let name = format!("{per_s:.0} a second");
        self.round(Plan::Open { from, every, count }, from, per_s, &name).await
    }

    async fn round(
        &mut self,
        plan: Plan,
        from: Instant,
        planned_per_s: f64,
        name: &str,
    ) -> Result<Option<Rate>> {
        self.crowd.with(|stage| stage.load.begin(plan));
        let wakes: Vec<_> = (0..self.connections).filter_map(|sender| self.crowd.waker(sender * 2)).collect();
        let standstills = Rc::clone(&self.standstills);
        let samples: Rc<RefCell<Vec<Sample>>> = Rc::default();
        let (server, taken) = (self.server, Rc::clone(&samples));
        let ticks = tokio::task::spawn_local(async move {
            for tick in 0_u32.. {
                wakes.iter().for_each(|wake| wake.notify_one());
                if tick.is_multiple_of(TICKS_PER_SAMPLE)
                    && let Ok(cpu) = CpuTimes::of(server)
                {
                    taken.borrow_mut().push(Sample { at: SystemTime::now(), cpu });
                }
                let before = Instant::now();
                tokio::time::sleep(TICK).await;
                let late = before.elapsed().saturating_sub(TICK);
                if late >= STANDSTILL {
                    standstills.borrow_mut().push(Stretch::until_now(late));
                }
            }
        });
        let settled = self
            .crowd
            .until(|stage| {
                let load = &stage.load;
                (load.is_settled() || load.refused.is_some(), load.checked)
            })
            .await;
        ticks.abort();
        let settled = settled?;
        let during = &mut self.during;
        self.crowd.with(|stage| {
            let load = &mut stage.load;
            if let Some(why) = load.refused.take() {
                bail!("{why}");
            }
            let samples = samples.borrow();
            during.extend(
                load.stalls.drain(..).map(|stall| (name.to_owned(), stall, stalls::busy(&stall, &samples))),
            );
            let elapsed_s = load.acked_at.saturating_duration_since(from).as_secs_f64();
            let ms = |us: u64| us as f64 / 1e3;
            let rate = Rate {
                planned_per_s,
                acked_per_s: load.acked as f64 / elapsed_s.max(1e-3),
                p50_ms: ms(load.ack_us.value_at_quantile(0.5)),
                p99_ms: ms(load.ack_us.value_at_quantile(0.99)),
                max_ms: ms(load.ack_us.max()),
            };
            load.begin(Plan::Rest);
            Ok(settled.then_some(rate))
        })
    }
}

impl Report for SendsReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  durable sends over {:?}, {} repeats of {} s (median, least to most)",
            self.transport, self.repeats, self.seconds
        );
        for size in &self.sizes {
            let (ours, floor, ratio) = (size.sends_per_s, size.floor_per_s, size.ratio);
            println!("  {} in flight on {} connections", size.in_flight, size.connections);
            println!("    sends/s      {:>9.0} ({:.0} to {:.0})", ours.median, ours.min, ours.max);
            println!(
                "    floor        {:>9.0} ({:.0} to {:.0}), SQLite alone {:.0}",
                floor.median, floor.min, floor.max, size.floor_sqlite_per_s.median
            );
            println!("    ratio         {}", ratio.text());
            println!(
                "    SEND_ACK ms  {:>9.2} p50; at half of that rate p99 {:.2} ({:.2} to {:.2}) {}",
                size.ack_ms_p50.median,
                size.half_p99_ms.median,
                size.half_p99_ms.min,
                size.half_p99_ms.max,
                bar_text(size.half_p99_ms.median, Some(size.half_p99_ms_bar)),
            );
            println!(
                "    cores        {:>9.2} the server, {:.2} the load",
                size.server_cores.median, size.load_cores.median
            );
            for rate in &size.rates {
                println!(
                    "    at {:>8.0}/s  {:>9.0} acknowledged/s, ms: p50 {:.2}, p99 {:.2}, most {:.2}",
                    rate.planned_per_s, rate.acked_per_s, rate.p50_ms, rate.p99_ms, rate.max_ms
                );
            }
            for stall in &size.stalls {
                println!(
                    "    stall        {:>9} ms, {}: {}; {}",
                    stall.stall_ms, stall.during, stall.cause, stall.busy
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_table() {
        assert_eq!(shape(64).unwrap(), (8, 8));
        assert_eq!(shape(1024).unwrap(), (64, 16));
        assert!(shape(65).is_err());
    }
}
