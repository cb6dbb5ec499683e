//! The sessions of one side of `storm`, and the thread of those that drop.
//!
//! Thousands of handshakes at once keep a thread busy for seconds. So those that drop have a thread of their own, which stands back behind
//! the talkers': what talkers wait for is the server.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fanfare_client::connection::ConnectOptions;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::{JoinSet, LocalSet},
};

use super::{
    session::{Seat, Word},
    world::{Places, Sent, Side, World},
};
use crate::measure::{
    ledger::Deliveries,
    population::{Made, Person},
    udp,
};

/// Sessions opened at once before the first storm.
const OPENING_MAX: usize = 64;
/// Transports opened at once by those that come back: twice what a gateway has under way. Each of their machines has its own core; the one
/// that stands for all of them here does no handshake in its time when it has begun all.
const CONNECTING_MAX: usize = 2_048;
/// Between two looks at whether something has happened.
const LOOK: Duration = Duration::from_millis(2);
/// Nothing moves for so long: what is waited for does not come. Longer than the SDK ever waits between two attempts, with one attempt.
const PATIENCE: Duration = Duration::from_secs(120);
/// How far the thread of those that drop stands back.
const NICE: i32 = 10;

/// All sessions of one side.
pub struct Crowd {
    pub world: Rc<RefCell<World>>,
    words: watch::Sender<Word>,
    wakes: Vec<Rc<Notify>>,
    opening: Rc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(world: World) -> Self {
        let words = watch::Sender::new(Word::Stay);
        Self {
            world: Rc::new(RefCell::new(world)),
            words,
            wakes: Vec::new(),
            opening: Rc::new(Semaphore::new(CONNECTING_MAX)),
            tasks: JoinSet::new(),
        }
    }

    /// Opens the sessions with those numbers and waits until all are in their audiences.
    pub async fn open(
        &mut self,
        side: Side,
        ways: &[ConnectOptions],
        people: &[Person],
        first: usize,
    ) -> Result<()> {
        for (number, person) in (first..).zip(people) {
            let wake = Rc::new(Notify::new());
            self.wakes.push(Rc::clone(&wake));
            let seat = Seat {
                world: Rc::clone(&self.world),
                number,
                options: ways.get(number % ways.len()).context("there is a way to connect")?.clone(),
                token: person.token.clone(),
                wake,
                opening: Rc::clone(&self.opening),
                words: (side == Side::Dropping).then(|| self.words.subscribe()),
            };
            self.tasks.spawn_local(seat.run());
            let opened = self.wakes.len();
            self.surely("sessions do not open", |world| (world.ready + OPENING_MAX >= opened, world.ready))
                .await?;
        }
        let sessions = self.wakes.len();
        self.surely("sessions do not open", |world| (world.ready >= sessions, world.ready)).await
    }

    /// Has all sessions look at what they are to send.
    pub fn wake(&self) {
        self.wakes.iter().for_each(|wake| wake.notify_one());
    }

    /// Has all sessions drop, and come back when the last one has.
    async fn storm(&self) -> Result<Back> {
        let sessions = self.wakes.len();
        let began = Instant::now();
        self.world.borrow_mut().storm();
        let _ = self.words.send(Word::Drop);
        self.surely("sessions do not let go", |world| (world.dropped >= sessions, world.dropped)).await?;
        let _ = self.words.send(Word::Stay);
        self.surely("sessions do not come back", |world| (world.ready >= sessions, world.ready)).await?;
        let world = self.world.borrow();
        Ok(Back {
            resume_s: began.elapsed().as_secs_f64(),
            attempts: world.attempts as f64 / sessions as f64,
            by_token: world.by_token,
            attempt_failed: world.attempt_failed.clone(),
        })
    }

    /// Waits until everything that was sent is with everybody; false where something does not come.
    pub async fn settle(&self) -> Result<bool> {
        self.until(|world| (world.is_settled(), world.checked)).await
    }

    async fn surely(&self, what: &str, look: impl Fn(&mut World) -> (bool, usize)) -> Result<()> {
        if self.until(look).await? {
            return Ok(());
        }
        let world = self.world.borrow();
        let why = world.attempt_failed.as_deref().unwrap_or("no attempt failed");
        bail!(
            "{what}: nothing moved for {} s, {} of {} are ready after {} attempts, the last of which failed: {why}",
            PATIENCE.as_secs(),
            world.ready,
            self.wakes.len(),
            world.attempts
        )
    }

    /// Waits until `look` says so; false where its second answer did not move for [`PATIENCE`].
    async fn until(&self, look: impl Fn(&mut World) -> (bool, usize)) -> Result<bool> {
        let (mut moved_at, mut last) = (Instant::now(), usize::MAX);
        loop {
            {
                let mut world = self.world.borrow_mut();
                if let Some(why) = &world.failed {
                    bail!("{why}");
                }
                let (done, figure) = look(&mut world);
                if done {
                    return Ok(true);
                }
                if figure != last {
                    (moved_at, last) = (Instant::now(), figure);
                }
            }
            if moved_at.elapsed() > PATIENCE {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets go of all sessions and gives what was shared.
    pub async fn end(mut self) -> Result<World> {
        self.world.borrow_mut().closing = true;
        self.wake();
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a session's task failed")?;
        }
        Rc::try_unwrap(self.world).ok().map(RefCell::into_inner).context("a session outlived its task")
    }
}

/// How they came back.
#[derive(Clone, Debug)]
pub struct Back {
    /// From the drop until the last one was ready.
    pub resume_s: f64,
    /// Connections tried, each.
    pub attempts: f64,
    /// How often the secret was not taken.
    pub by_token: u64,
    /// Why the last attempt that failed did.
    pub attempt_failed: Option<String>,
}

/// What those that dropped counted.
#[derive(Debug)]
pub struct Counted {
    /// Their deliveries.
    pub deliveries: Deliveries,
    /// GAPs of which the entries were fetched.
    pub gaps: u64,
    /// How often a limiter spoke.
    pub limited: u64,
}

enum Order {
    Storm(oneshot::Sender<Result<Back>>),
    Settle(oneshot::Sender<Result<bool>>),
    End(oneshot::Sender<Result<Counted>>),
}

/// The thread of those that drop.
pub struct Dropping {
    orders: mpsc::UnboundedSender<Order>,
}

/// What its sessions are given.
pub struct Seats {
    /// Who is where.
    pub places: Places,
    /// The groups.
    pub made: Vec<Made>,
    /// What talkers sent.
    pub sent: Sent,
    /// How they connect,
    pub ways: Vec<ConnectOptions>,
    /// over QUIC by UDP sockets of their own.
    pub over_quic: bool,
    /// The people behind the talkers.
    pub people: Vec<Person>,
}

impl Dropping {
    /// Starts the thread and opens its sessions.
    pub async fn open(seats: Seats) -> Result<Self> {
        let (orders, taken) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        std::thread::Builder::new().name("dropping".into()).spawn(move || {
            // Without it the figure is only worse.
            let _ = rustix::process::nice(NICE);
            let run = || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, serve(seats, opened, taken))
            };
            if let Err(error) = run() {
                eprintln!("error: {error:#}");
            }
        })?;
        is_open.await.context("the thread of those that drop ended")??;
        Ok(Self { orders })
    }

    /// Has them drop and come back.
    pub async fn storm(&self) -> Result<Back> {
        self.ask(Order::Storm).await
    }

    /// As [`Crowd::settle`].
    pub async fn settle(&self) -> Result<bool> {
        self.ask(Order::Settle).await
    }

    /// Ends them.
    pub async fn end(self) -> Result<Counted> {
        self.ask(Order::End).await
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T>>) -> Order) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).ok().context("the thread of those that drop ended")?;
        answered.await.context("the thread of those that drop ended")?
    }
}

async fn serve(
    seats: Seats,
    opened: oneshot::Sender<Result<()>>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Result<()> {
    let world = World::new(seats.places, Side::Dropping, &seats.made, seats.sent)?;
    let mut ways = seats.ways;
    if seats.over_quic {
        ways = udp::apart(&ways)?;
    }
    let mut crowd = Crowd::new(world);
    let outcome = crowd.open(Side::Dropping, &ways, &seats.people, seats.places.talkers).await;
    if opened.send(outcome).is_err() {
        return Ok(());
    }
    // Whoever asked may be gone: then nobody needs the answer.
    while let Some(order) = orders.recv().await {
        match order {
            Order::Storm(answer) => drop(answer.send(crowd.storm().await)),
            Order::Settle(answer) => drop(answer.send(crowd.settle().await)),
            Order::End(answer) => {
                let counted = crowd.end().await.map(|mut world| Counted {
                    deliveries: world.deliveries(),
                    gaps: world.gaps,
                    limited: world.limited,
                });
                drop(answer.send(counted));
                return Ok(());
            }
        }
    }
    Ok(())
}
