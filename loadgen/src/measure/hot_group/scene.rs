//! One server with its group and the sessions: those that are told at once on this thread, the passive ones on one that stands back.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_proto::{UserId, wire};
use hdrhistogram::Histogram;

use super::{
    HotGroup,
    plan::{ON_SCREEN, Plan, Role},
    world::{Tallies, World},
};
use crate::{
    measure::{
        accounting::CpuTimes,
        beside::{AbortOnDrop, Beside, look_now_and_then},
        crowd::{Crowd, Stage},
        ledger::Deliveries,
        machine::{Cores, allow_files},
        population::{Maker, Person, people},
        reach::Sent,
        server::{Server, Transport},
        udp,
    },
    scratch::Scratch,
};

/// Messages of each active session before anything is measured.
const REHEARSED: usize = 2;
/// Of those under way at once.
const REHEARSING_MAX: u64 = 128;
/// What cursors and scores take to be counted.
const REST: Duration = Duration::from_secs(2);
/// What opening sessions leaves to be done: positions are acknowledged within 12 s and then written.
const SETTLE: Duration = Duration::from_secs(18);
/// How long is looked at what sessions cost without anything.
const IDLE: Duration = Duration::from_secs(10);
/// From the last message of a round until its CPU is read: what is told late (passive sessions, within 15 s) and acknowledged late
/// (within 12 s) is in it.
const LATE: Duration = Duration::from_secs(16);
/// Sessions that show the group at once before the first of them leaves it.
const SHOWN: usize = 20;
/// Passive sessions that fetch everything at the end.
const SAMPLE: usize = 200;
/// Absent members that come at the end.
const RETURNING: usize = 50;

/// See the module's page.
pub struct Scene {
    server: Server,
    plan: Plan,
    people: Arc<[Person]>,
    sent: Vec<Sent>,
    front: Crowd<World>,
    back: Beside<Crowd<World>>,
    looks: [AbortOnDrop; 2],
    idle_cores: f64,
    _scratch: Scratch,
}

/// What a round took.
pub struct Round {
    /// By role.
    pub tallies: Tallies,
    /// CPU of the server in seconds, by kind of thread.
    pub cpu_s: BTreeMap<String, f64>,
    /// In how long.
    pub lasted: Duration,
    /// Cores that the server was running on while messages were sent.
    pub cores: f64,
    /// The same while all sessions were idle, before.
    pub idle_cores: f64,
    /// By the server's metrics: bytes handed to connections, and how often something was.
    pub server_bytes: Option<f64>,
    pub server_sends: Option<f64>,
    pub messages: u64,
    /// The longest that a message left after it was meant to.
    pub late: Duration,
}

/// How it ended.
pub struct Ended {
    pub deliveries: Deliveries,
    pub limited: u64,
    pub behind: u64,
    pub heads_equal: bool,
}

impl Scene {
    /// Starts a server, makes `groups` groups (the second is the small one) and opens all sessions.
    pub async fn open(
        arguments: &HotGroup,
        cores: &Cores,
        plan: Plan,
        delivery: wire::Delivery,
        groups: usize,
    ) -> Result<Self> {
        let transport = arguments.options.transport;
        allow_files(if transport == Transport::Quic { 0 } else { plan.sessions + RETURNING })?;
        let scratch = Scratch::new("hot-group", arguments.options.keep)?;
        let power_cut = arguments.power_cut;
        let server = Server::start_with(&scratch.path, cores, transport, power_cut).await?;
        let people: Arc<[Person]> = people(&server.admin, plan.memberships).await?.into();
        let sent = make(&server, plan, &people, groups).await?;

        let (front_count, back_count) = (plan.front(), plan.sessions - plan.front());
        let mut front = Crowd::new(World::new(plan, delivery, &sent, 0, front_count));
        front.grow(&server.targets, &people, front_count).await?;
        if delivery == wire::Delivery::Tiered {
            rehearse(&front, plan, &sent).await?;
        }
        sent.iter().for_each(Sent::forget);

        let shared = sent.clone();
        let back = Beside::start("passive", move || {
            Crowd::new(World::new(plan, delivery, &shared, front_count, back_count))
        })?;
        let (targets, behind_front) = (server.targets.clone(), Arc::clone(&people));
        let back_looks = back.ask(async move |crowd| {
            let targets = if transport == Transport::Quic { udp::apart(&targets)? } else { targets };
            crowd.grow(&targets, &behind_front[front_count..], back_count).await?;
            Ok(look_now_and_then())
        });
        let looks = [back_looks.await?, look_now_and_then()];
        tokio::time::sleep(SETTLE).await;
        let before = server.cpu()?;
        tokio::time::sleep(IDLE).await;
        let idle_ns: u64 = server.cpu()?.since(&before).values().sum();
        let idle_cores = idle_ns as f64 / IDLE.as_nanos() as f64;
        Ok(Self { server, plan, people, sent, front, back, looks, idle_cores, _scratch: scratch })
    }

    /// Has messages sent to a group by a schedule, and waits until everybody knows of all of them.
    pub async fn round(&mut self, group: usize, rate: f64, length: Duration) -> Result<Round> {
        self.count().await?;
        self.begin(group).await?;
        let metrics = self.metrics().await?;
        let (before, began) = (self.server.cpu()?, Instant::now());
        let messages = self.send_by_schedule(group, rate, length).await;
        let sent_ns: u64 = self.server.cpu()?.since(&before).values().sum();
        let cores = sent_ns as f64 / began.elapsed().as_nanos() as f64;
        tokio::time::sleep(LATE).await;
        let cpu_s = seconds(&self.server.cpu()?, &before);
        let lasted = began.elapsed();
        let metrics_after = self.metrics().await?;

        // What does not come is counted at the end.
        let sent = &self.sent[group];
        self.front
            .until(|stage| (stage.load.unanswered(sent) == 0 && stage.load.is_reached(), stage.load.moved))
            .await?;
        self.back.ask(async |crowd| crowd.until(is_reached).await).await?;
        self.count().await?;
        if let Some(why) = self.front.with(|stage| stage.load.refused.take()) {
            bail!(
                "{why}; {}; the server's log ends with\n{}",
                self.refusals().await?,
                self.server.log_tail()
            );
        }
        let (mut tallies, late) = self.front.with(|stage| (stage.load.end_round(), stage.load.late));
        let passive = self.back.ask(async |crowd| Ok(crowd.with(|stage| stage.load.end_round()))).await?;
        tallies.iter_mut().zip(&passive).for_each(|(all, passive)| all.add(passive));
        let grown = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        Ok(Round {
            tallies,
            cpu_s,
            lasted,
            cores,
            idle_cores: self.idle_cores,
            server_bytes: grown(metrics_after.0, metrics.0),
            server_sends: grown(metrics_after.1, metrics.1),
            messages,
            late,
        })
    }

    /// Has messages sent as [`Self::round`] does and kills the server meanwhile, so often and evenly; with a `seed` cuts it from power. Waits
    /// until everybody knows of all messages. Gives the sessions that came back, and the longest time from a kill to the next acknowledged message.
    pub async fn killed_round(
        &mut self,
        rate: f64,
        length: Duration,
        kills: u64,
        seed: Option<u64>,
    ) -> Result<(u64, Duration)> {
        self.set_killed(true).await?;
        self.begin(0).await?;
        let messages = planned(rate, length);
        let (mut killed, mut longest) = (0, Duration::ZERO);
        let mut from = Instant::now();
        for number in 0..messages {
            let at = from + Duration::from_secs_f64(1.0 / rate);
            tokio::time::sleep_until(at.into()).await;
            from = Instant::now();
            self.send(number, 0, from);
            if killed < kills && number >= (killed + 1) * messages / (kills + 1) {
                let (before, since) = (self.sent[0].head(), Instant::now());
                self.server.kill(seed.map(|seed| seed + killed)).await?;
                killed += 1;
                let sent = &self.sent[0];
                let woken = self.senders();
                let again = self.front.until(|stage| {
                    woken();
                    (sent.head() > before && stage.load.unanswered(sent) == 0, stage.load.moved)
                });
                if !again.await? {
                    let why = self.front.with(|stage| stage.load.refused.take());
                    bail!(
                        "{} messages under way at a kill were not acknowledged behind it ({}); {}; the server's log ends with\n{}",
                        self.sent[0].unanswered(),
                        why.unwrap_or_else(|| "nothing was refused".into()),
                        self.refusals().await?,
                        self.server.log_tail()
                    );
                }
                longest = longest.max(since.elapsed());
                from = Instant::now();
            }
        }
        let sent = &self.sent[0];
        self.front
            .until(|stage| (stage.load.unanswered(sent) == 0 && stage.load.is_reached(), stage.load.moved))
            .await?;
        self.back.ask(async |crowd| crowd.until(is_reached).await).await?;
        let back = self.back.ask(async |crowd| Ok(crowd.with(|stage| stage.load.came_back))).await?;
        let front = self.front.with(|stage| match stage.load.refused.take() {
            Some(why) => bail!("{why}"),
            None => Ok(stage.load.came_back),
        })?;
        self.set_killed(false).await?;
        Ok((front + back, longest))
    }

    fn senders(&self) -> impl Fn() + use<> {
        let wakes: Vec<_> = (0..self.plan.senders()).filter_map(|sender| self.front.waker(sender)).collect();
        move || wakes.iter().for_each(|wake| wake.notify_one())
    }

    async fn set_killed(&self, is_killed: bool) -> Result<()> {
        self.front.with(|stage| stage.load.is_killed = is_killed);
        let set = async move |crowd: &mut Crowd<World>| {
            crowd.with(|stage| stage.load.is_killed = is_killed);
            Ok(())
        };
        self.back.ask(set).await
    }

    /// Has messages sent as [`Self::round`] does while users of passive sessions open the group and leave it, `opens` a second. Gives what that
    /// took in microseconds.
    pub async fn opened_round(&mut self, rate: f64, length: Duration, opens: f64) -> Result<Histogram<u64>> {
        self.begin(0).await?;
        let back_count = self.plan.sessions - self.plan.front();
        // By tens, so that it is those with the app on screen.
        let opening = async move |crowd: &mut Crowd<World>| {
            let began = Instant::now();
            let count = (opens * length.as_secs_f64()) as usize;
            for number in 0..count {
                let at = began + Duration::from_secs_f64(number as f64 / opens);
                tokio::time::sleep_until(at.into()).await;
                let (member, before) = (number * ON_SCREEN % back_count, number.checked_sub(SHOWN));
                crowd.with(|stage| {
                    stage.load.open(member);
                    if let Some(before) = before {
                        stage.load.leave(before * ON_SCREEN % back_count);
                    }
                });
                crowd.wake(member);
                before.into_iter().for_each(|before| crowd.wake(before * ON_SCREEN % back_count));
            }
            crowd.until(|stage| (stage.load.opening() == 0, stage.load.moved)).await?;
            crowd.until(is_reached).await?;
            crowd.with(|stage| match (stage.load.refused.take(), stage.load.opening()) {
                (Some(why), _) => bail!("{why}"),
                (None, 0) => Ok(stage.load.opened_us.clone()),
                (None, count) => {
                    bail!("{count} sessions opened the group and did not get its newest entries")
                }
            })
        };
        let opened = self.back.ask(opening);
        let sending = async {
            self.send_by_schedule(0, rate, length).await;
            let sent = &self.sent[0];
            let reached = |stage: &Stage<World>| {
                (stage.load.unanswered(sent) == 0 && stage.load.is_reached(), stage.load.moved)
            };
            self.front.until(reached).await
        };
        let (opened, sent) = tokio::join!(opened, sending);
        sent?;
        opened
    }

    /// Begins a round of a group everywhere.
    async fn begin(&self, group: usize) -> Result<()> {
        self.front.with(|stage| stage.load.begin(group));
        let begin = async move |crowd: &mut Crowd<World>| {
            crowd.with(|stage| stage.load.begin(group));
            Ok(())
        };
        self.back.ask(begin).await
    }

    /// Has the message of that number sent that was meant to leave at `at`.
    fn send(&self, number: u64, group: usize, at: Instant) {
        let sender = number as usize % self.plan.senders();
        self.front.with(|stage| stage.load.send(sender, group, at));
        self.front.wake(sender);
    }

    /// Has messages sent whether others were answered or not, and gives their number when the time is over.
    async fn send_by_schedule(&self, group: usize, rate: f64, length: Duration) -> u64 {
        let (messages, from) = (planned(rate, length), Instant::now() + Duration::from_millis(50));
        for number in 0..messages {
            let at = from + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(at.into()).await;
            self.send(number, group, at);
        }
        tokio::time::sleep_until((from + length).into()).await;
        messages
    }

    /// Has all sessions count what they received: of frames that tell them nothing new nobody hears.
    async fn count(&self) -> Result<()> {
        self.front.datagrams_received().await?;
        self.back.ask(async |crowd| crowd.datagrams_received().await).await.map(|_| ())
    }

    /// What the server counted of requests that it could not do then.
    async fn refusals(&self) -> Result<String> {
        let names = [
            "fanfare_gateway_unsent_total",
            "fanfare_router_refused_total",
            "fanfare_router_retry_later_total",
            "fanfare_router_reads_refused_total",
            "fanfare_router_commits_",
        ];
        Ok(self.server.admin.metric_lines(&names).await?.join(", "))
    }

    async fn metrics(&self) -> Result<(Option<f64>, Option<f64>)> {
        let admin = &self.server.admin;
        let bytes = admin.metric_sum("fanfare_gateway_bytes_out_total").await?;
        let sends = match admin.metric_sum("fanfare_gateway_sends_total").await? {
            Some(sends) => Some(sends),
            None => admin.metric_sum("fanfare_gateway_buffers_out_total").await?,
        };
        Ok((bytes, sends))
    }

    /// Has all that are told at once and a sample of the others fetch what they lack, has some of the absent come, and ends everything.
    pub async fn end(mut self) -> Result<Ended> {
        let (front_count, back_count) = (self.plan.front(), self.plan.sessions - self.plan.front());
        drop(self.looks);
        fetched(&self.front, 0..front_count).await?;
        let step = (back_count / SAMPLE).max(1);
        // So that both kinds of passive sessions are in it, whatever the step.
        let step = step + usize::from(step.is_multiple_of(ON_SCREEN));
        self.back.ask(async move |crowd| fetched(crowd, (0..back_count).step_by(step)).await).await?;

        let absent = self.plan.memberships - self.plan.sessions;
        let returning = RETURNING.min(absent);
        let of_absent =
            |number: usize| self.people[self.plan.sessions + number * absent / returning.max(1)].clone();
        let mut seats = self.people[..front_count].to_vec();
        seats.extend((0..returning).map(of_absent));
        self.front.grow(&self.server.targets, &seats, front_count + returning).await?;
        // Sessions that came back count as ready each time.
        self.front.until(|stage| (stage.load.returned >= returning, stage.load.returned)).await?;
        let mut heads_equal = self.front.with(|stage| {
            let world = &stage.load;
            world.heads_are_equal() && (world.returned, world.returned_equal) == (returning, returning)
        });
        heads_equal &=
            self.back.ask(async |crowd| Ok(crowd.with(|stage| stage.load.heads_are_equal()))).await?;

        let (mut deliveries, limited, behind) = counted(self.front.end().await?);
        let passive = self.back.end(async |crowd| Ok(counted(crowd.end().await?))).await?;
        deliveries.add(passive.0);
        let unanswered: u64 = self.sent.iter().map(Sent::unanswered).sum();
        if unanswered > 0 {
            deliveries.lost += unanswered;
            deliveries.note(|| format!("{unanswered} messages were never answered"));
        }
        self.server.stop()?;
        Ok(Ended { deliveries, limited: limited + passive.1, behind: behind + passive.2, heads_equal })
    }
}

fn counted(mut stage: Stage<World>) -> (Deliveries, u64, u64) {
    let mut deliveries = stage.load.close();
    stage.add_to(&mut deliveries);
    (deliveries, stage.limited, stage.behind)
}

/// Messages of a round, at least one.
fn planned(rate: f64, length: Duration) -> u64 {
    (rate * length.as_secs_f64()).round().max(1.0) as u64
}

fn is_reached(stage: &Stage<World>) -> (bool, usize) {
    (stage.load.is_reached(), stage.load.moved)
}

fn seconds(now: &CpuTimes, before: &CpuTimes) -> BTreeMap<String, f64> {
    now.since(before).into_iter().map(|(kind, ns)| (kind, ns as f64 / 1e9)).collect()
}

async fn make(server: &Server, plan: Plan, people: &[Person], groups: usize) -> Result<Vec<Sent>> {
    let target = server.targets.first().context("there is a way to connect")?;
    let mut maker = Maker::open(target, people, 0).await?;
    let mut sent = Vec::with_capacity(groups);
    for group in 0..groups {
        let others = people.iter().enumerate().skip(1);
        let others: Vec<UserId> = others
            .filter(|(number, _)| group == 0 || plan.is_in_small(*number))
            .map(|(_, person)| person.id)
            .collect();
        let made = maker.group(["hot", "small"][group], &others).await?;
        sent.push(Sent::new(made.channel, made.head));
    }
    maker.close().await;
    Ok(sent)
}

/// Has sessions do what makes them what they are meant to be: active ones send and read, warm ones read.
async fn rehearse(front: &Crowd<World>, plan: Plan, sent: &[Sent]) -> Result<()> {
    let sending =
        (0..plan.front()).filter(|number| matches!(plan.role(*number), Role::Visible | Role::Active));
    for number in sending {
        for (group, sent) in sent.iter().enumerate() {
            let room =
                |stage: &Stage<World>| stage.load.unanswered(sent) + (REHEARSED as u64) <= REHEARSING_MAX;
            front.until(|stage| (room(stage) || stage.load.refused.is_some(), stage.load.moved)).await?;
            front.with(|stage| (0..REHEARSED).for_each(|_| stage.load.send(number, group, Instant::now())));
            front.wake(number);
        }
    }
    let settled = |stage: &Stage<World>| {
        let answered = stage.load.queued == 0 && sent.iter().all(|sent| sent.unanswered() == 0);
        (answered && stage.load.is_reached() || stage.load.refused.is_some(), stage.load.moved)
    };
    let settled = front.until(settled).await?;
    front.with(|stage| match stage.load.refused.take() {
        Some(why) => bail!("{why}"),
        None if !settled => bail!("the rehearsal's messages did not come to all"),
        None => Ok(()),
    })?;
    for number in 0..plan.front() {
        front.with(|stage| (0..sent.len()).for_each(|group| stage.load.read(number, group)));
        front.wake(number);
    }
    tokio::time::sleep(REST).await;
    Ok(())
}

async fn fetched(crowd: &Crowd<World>, members: impl IntoIterator<Item = usize>) -> Result<()> {
    for member in members {
        crowd.with(|stage| stage.load.fetch(member));
        crowd.wake(member);
    }
    // What does not come is counted as lost.
    crowd.until(|stage| (stage.load.have_fetched(), stage.load.moved)).await?;
    Ok(())
}
