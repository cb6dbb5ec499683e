//! `idle`: what a session costs in memory that is connected and says nothing.

pub mod blocks;

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::{
    accounting::{kernel_socket_bytes, process_bytes},
    crowd::Crowd,
    ledger::Deliveries,
    machine::{Cores, allow_files},
    population::people,
    report::{Options, Outcome, Report},
    server::{Server, Transport},
    statistics::Spread,
    udp,
};
use crate::scratch::Scratch;
use blocks::{BLOCK, Blocks, channels, shout, talk};

/// From the last message to the second look.
const REST: Duration = Duration::from_secs(30);
/// From the last session's opening to the first look: what the handshakes held is given back.
const SETTLE: Duration = Duration::from_secs(3);
/// Runs where nothing else is asked for.
const REPEATS: usize = 2;

/// Memory per idle session: connected, authenticated, in several channels, one of them with everybody.
///
/// Users and memberships are made first; then the server is started anew, so that its stores are flushed and nothing of them is in
/// memory. Sessions are opened up to each size in turn, and memory is read there. A figure is the growth from the smallest to the
/// largest size divided by their difference: what a server costs without anybody is not in it.
///
/// process_bytes_per_session: the server's own memory (Anonymous of /proc/PID/smaps_rollup; files that it maps are not
/// counted). kernel_bytes_per_session: what the kernel holds for the server's end of the socket (from /proc/slabinfo and
/// /proc/net/sockstat; both ends are on this machine and cost the same, half is taken); absent where the kernel does not tell.
///
/// `fresh`: 3 s after the last session opened. `after_traffic`: in a second life of the server, 30 s after each session sent 5
/// messages and received 200, to the 40 members of one of its channels. bytes_per_membership, with two numbers of channels: the
/// difference of the two figures per session divided by the difference of the channels, in the whole process.
///
/// everybody: with all sessions of the largest size connected, and after memory was read, one of them sends a message to the large
/// channel, and it must come to each of them.
///
/// A session that is refused, or not answered in time, tries again as the SDK does, eight times at most (repeated_attempts); one that
/// was open and ends is an error.
///
/// Exit status: 0 PASS, 1 error, 10 a delivery was lost, doubled, reordered or altered, 11 INVALID (a limiter spoke). A missed
/// bar changes nothing.
#[derive(clap::Args, Clone, Debug)]
pub struct Idle {
    /// Sessions at which memory is read, rising, with commas between; at least two sizes.
    #[arg(long, value_delimiter = ',', value_parser = crate::count, default_value = "3000,9000,18000")]
    pub sessions: Vec<usize>,
    /// Channels of each session, the large one included; or two numbers with a comma between, for the cost of one membership.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(2..=1000), num_args = 1.., default_value = "5")]
    pub channels: Vec<u16>,
    /// Leave the second look out: no traffic, no wait.
    #[arg(long)]
    pub fresh_only: bool,
    #[command(flatten)]
    pub options: Options,
}

/// `fanfare.idle/v1`.
#[derive(Debug, Serialize)]
pub struct IdleReport {
    schema: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    transport: Transport,
    repeats: usize,
    /// One for each number of channels.
    results: Vec<Membered>,
    /// Attempts to connect beside each session's first, as the SDK makes them where it is refused or not answered.
    repeated_attempts: u64,
    /// Of the figures fresh and after traffic; with two numbers of channels only.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_membership: Option<Look<Spread>>,
    /// What a session may take in the process, and a membership.
    process_bytes_per_session_bar: u32,
    bytes_per_membership_bar: u32,
}

/// What sessions cost with one number of channels.
#[derive(Debug, Serialize)]
struct Membered {
    channels: u16,
    process_bytes_per_session: Look<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_bytes_per_session: Option<Look<Spread>>,
    /// What was read at each size, of every repeat.
    readings: Vec<Reading>,
    /// A message to everybody at the largest size, of every repeat and look.
    everybody: Vec<Everybody>,
}

/// A figure of both looks.
#[derive(Clone, Copy, Debug, Serialize)]
struct Look<T> {
    fresh: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_traffic: Option<T>,
}

/// A message to the channel that all sessions are in, sent when they all were connected.
#[derive(Clone, Copy, Debug, Serialize)]
struct Everybody {
    sessions: usize,
    /// How many had it.
    delivered: u64,
    /// From SEND until the last had it, in milliseconds.
    deliver_ms: f64,
}

/// Memory at one size.
#[derive(Clone, Copy, Debug, Serialize)]
struct Reading {
    repeat: usize,
    after_traffic: bool,
    sessions: usize,
    process_bytes: u64,
    kernel_bytes: Option<u64>,
}

/// The whole run.
pub async fn run(arguments: &Idle, cores: &Cores) -> Result<IdleReport> {
    let sizes = &arguments.sessions;
    if sizes.len() < 2 || !sizes.is_sorted_by(|one, next| one < next) {
        bail!("--sessions needs at least two sizes, rising");
    }
    if sizes.iter().any(|size| size % BLOCK != 0) {
        bail!("--sessions: each a multiple of {BLOCK}, the members of a small channel");
    }
    if arguments.channels.len() > 2 {
        bail!("--channels takes one number or two");
    }
    let repeats = arguments.options.repeats.unwrap_or(REPEATS);
    let mut run = Run { deliveries: Deliveries::default(), limited: 0, behind: 0, repeated_attempts: 0 };
    let mut results = Vec::new();
    for channels in &arguments.channels {
        let (mut readings, mut everybody) = (Vec::new(), Vec::new());
        for repeat in 0..repeats {
            run.once(arguments, cores, *channels, repeat, &mut readings, &mut everybody).await?;
        }
        results.push(membered(*channels, readings, everybody, sizes));
    }
    let bytes_per_membership = match results.as_slice() {
        [few, many] => Some(per_membership(few, many)),
        _ => None,
    };
    let transport = arguments.options.transport;
    Ok(IdleReport {
        schema: "fanfare.idle/v1",
        outcome: Outcome::of(run.deliveries, run.limited, run.behind, Vec::new()),
        transport,
        repeats,
        results,
        repeated_attempts: run.repeated_attempts,
        bytes_per_membership,
        process_bytes_per_session_bar: match transport {
            Transport::Ws => 2_048,
            Transport::Wss => 6_144,
            Transport::Quic => 36_864,
        },
        bytes_per_membership_bar: 48,
    })
}

/// What all repeats count.
struct Run {
    deliveries: Deliveries,
    limited: u64,
    behind: u64,
    repeated_attempts: u64,
}

impl Run {
    async fn once(
        &mut self,
        arguments: &Idle,
        cores: &Cores,
        channel_count: u16,
        repeat: usize,
        readings: &mut Vec<Reading>,
        everybody: &mut Vec<Everybody>,
    ) -> Result<()> {
        let most = arguments.sessions.last().copied().unwrap_or_default();
        allow_files(if arguments.options.transport == Transport::Quic { 0 } else { most })?;
        let scratch = Scratch::new("idle", arguments.options.keep)?;
        let mut server = Server::start(&scratch.path, cores, arguments.options.transport).await?;
        let people = people(&server.admin, most).await?;
        let mut made = channels(&server, &people, channel_count).await?;
        for after_traffic in [false, true] {
            if after_traffic && arguments.fresh_only {
                break;
            }
            server.restart().await?;
            let kernel_before = kernel_socket_bytes();
            let targets = match arguments.options.transport {
                Transport::Quic => udp::apart(&server.targets)?,
                Transport::Ws | Transport::Wss => server.targets.clone(),
            };
            let mut crowd = Crowd::new(Blocks::new(&made, most));
            for sessions in &arguments.sessions {
                let before = crowd.len();
                crowd.grow(&targets, &people, *sessions).await?;
                if after_traffic {
                    if !talk(&crowd, before..*sessions).await? {
                        break;
                    }
                    tokio::time::sleep(REST).await;
                } else {
                    tokio::time::sleep(SETTLE).await;
                }
                let kernel_bytes = kernel_socket_bytes()
                    .zip(kernel_before)
                    .map(|(now, before)| now.saturating_sub(before) / 2);
                let process_bytes = process_bytes(server.pid())?;
                readings.push(Reading {
                    repeat,
                    after_traffic,
                    sessions: *sessions,
                    process_bytes,
                    kernel_bytes,
                });
            }
            // After everything was read: what it takes is in no figure.
            if crowd.len() == most && crowd.with(|stage| stage.behind == 0) {
                let (delivered, deliver_ms) = shout(&crowd).await?;
                everybody.push(Everybody { sessions: most, delivered, deliver_ms });
                // For the next life's sessions it is history.
                made.everybody.head += 1;
            }
            let mut stage = crowd.end().await?;
            let mut deliveries = stage.load.deliveries();
            stage.add_to(&mut deliveries);
            self.deliveries.add(deliveries);
            self.limited += stage.limited;
            self.behind += stage.behind;
            self.repeated_attempts += stage.repeated_attempts;
        }
        server.stop()
    }
}

/// Growth of a figure from the smallest to the largest size per session, of each repeat.
fn growth(
    readings: &[Reading],
    after: bool,
    sizes: &[usize],
    figure: fn(&Reading) -> Option<u64>,
) -> Option<Spread> {
    let (least, most) = (*sizes.first()?, *sizes.last()?);
    let repeats = readings.iter().map(|reading| reading.repeat + 1).max()?;
    let at = |repeat, sessions| {
        let is_it = |reading: &&Reading| {
            (reading.repeat, reading.after_traffic, reading.sessions) == (repeat, after, sessions)
        };
        figure(readings.iter().find(is_it)?)
    };
    let grown = |repeat| Some((at(repeat, most)? as f64 - at(repeat, least)? as f64) / (most - least) as f64);
    let grown: Option<Vec<f64>> = (0..repeats).map(grown).collect();
    Some(Spread::of(grown?))
}

fn membered(channels: u16, readings: Vec<Reading>, everybody: Vec<Everybody>, sizes: &[usize]) -> Membered {
    let look = |figure: fn(&Reading) -> Option<u64>| {
        let fresh = growth(&readings, false, sizes, figure)?;
        Some(Look { fresh, after_traffic: growth(&readings, true, sizes, figure) })
    };
    let process = look(|reading| Some(reading.process_bytes));
    let kernel_bytes_per_session = look(|reading| reading.kernel_bytes);
    let none = Look { fresh: Spread::default(), after_traffic: None };
    Membered {
        channels,
        process_bytes_per_session: process.unwrap_or(none),
        kernel_bytes_per_session,
        readings,
        everybody,
    }
}

fn per_membership(few: &Membered, many: &Membered) -> Look<Spread> {
    let channels = f64::from(many.channels) - f64::from(few.channels);
    let difference = |one: Spread, other: Spread| Spread {
        median: (other.median - one.median) / channels,
        min: (other.min - one.max) / channels,
        max: (other.max - one.min) / channels,
    };
    let (few, many) = (few.process_bytes_per_session, many.process_bytes_per_session);
    Look {
        fresh: difference(few.fresh, many.fresh),
        after_traffic: few.after_traffic.zip(many.after_traffic).map(|(few, many)| difference(few, many)),
    }
}

impl Report for IdleReport {
    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn print(&self) {
        println!(
            "  idle sessions over {:?}, {} repeats (median, least to most)",
            self.transport, self.repeats
        );
        let looks = |look: &Look<Spread>| {
            [Some(("fresh", look.fresh)), look.after_traffic.map(|spread| ("after traffic", spread))]
        };
        for result in &self.results {
            let bar = self.process_bytes_per_session_bar;
            for (when, spread) in looks(&result.process_bytes_per_session).into_iter().flatten() {
                let met = if spread.median <= f64::from(bar) { "met" } else { "MISSED" };
                line(&format!("{} channels, process, {when}", result.channels), spread, "bytes a session");
                println!("{:>44} bar {bar} {met}", "");
            }
            for (when, spread) in result.kernel_bytes_per_session.iter().flat_map(looks).flatten() {
                line(&format!("{} channels, kernel, {when}", result.channels), spread, "bytes a session");
            }
            for reading in &result.readings {
                println!(
                    "    repeat {} {:>6} sessions {:<13} {:>8.1} MiB in the process",
                    reading.repeat + 1,
                    reading.sessions,
                    if reading.after_traffic { "after traffic" } else { "fresh" },
                    reading.process_bytes as f64 / f64::from(1 << 20)
                );
            }
            for all in &result.everybody {
                println!(
                    "    a message to all {} at once: delivered to {}, the last after {:.0} ms",
                    all.sessions, all.delivered, all.deliver_ms
                );
            }
        }
        println!("    {} attempts to connect were repeated", self.repeated_attempts);
        for (when, spread) in self.bytes_per_membership.iter().flat_map(looks).flatten() {
            line(&format!("a membership, {when}"), spread, "bytes");
            let met =
                if spread.median <= f64::from(self.bytes_per_membership_bar) { "met" } else { "MISSED" };
            println!("{:>44} bar {} {met}", "", self.bytes_per_membership_bar);
        }
    }
}

fn line(what: &str, spread: Spread, unit: &str) {
    println!("  {what:<40} {:>9.0} ({:.0} to {:.0}) {unit}", spread.median, spread.min, spread.max);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(repeat: usize, after_traffic: bool, sessions: usize, process_bytes: u64) -> Reading {
        Reading { repeat, after_traffic, sessions, process_bytes, kernel_bytes: None }
    }

    #[test]
    fn growth_is_from_the_smallest_to_the_largest() {
        let readings = [
            reading(0, false, 100, 1_000_000),
            reading(0, false, 300, 9_000_000),
            reading(0, false, 600, 1_500_000),
            reading(0, true, 100, 2_000_000),
            reading(0, true, 600, 4_000_000),
            reading(1, false, 100, 1_000_000),
            reading(1, false, 600, 2_500_000),
        ];
        let sizes = [100, 300, 600];
        let grown = growth(&readings, false, &sizes, |reading| Some(reading.process_bytes));
        assert_eq!(grown, Some(Spread { median: 2_000.0, min: 1_000.0, max: 3_000.0 }));
        assert_eq!(growth(&readings, false, &sizes, |reading| reading.kernel_bytes), None);
        // The second repeat was not read after traffic.
        assert_eq!(growth(&readings, true, &sizes, |reading| Some(reading.process_bytes)), None);
    }

    #[test]
    fn a_membership_is_what_more_channels_cost() {
        let spread = |median, min, max| Spread { median, min, max };
        let membered = |channels, fresh| Membered {
            channels,
            process_bytes_per_session: Look { fresh, after_traffic: None },
            kernel_bytes_per_session: None,
            readings: Vec::new(),
            everybody: Vec::new(),
        };
        let (few, many) =
            (membered(5, spread(2_000.0, 1_900.0, 2_100.0)), membered(15, spread(2_400.0, 2_300.0, 2_500.0)));
        assert_eq!(per_membership(&few, &many).fresh, spread(40.0, 20.0, 60.0));
    }
}
