//! Users that connect by a pace, get where their channels stand, and leave.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    Code, DeviceId,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
};
use tokio::task::JoinSet;

use super::{
    book::Book,
    clock::{Clock, Pace},
};
use crate::measure::population::Person;

/// On their way at once: beyond, who is due is refused on this side.
const COMING_MAX: usize = 4_000;
/// From the first byte until a session knows where its channels stand.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the pace is looked at.
const TICK: Duration = Duration::from_millis(1);

/// Who comes, and by which way.
#[derive(Clone)]
pub struct Comers {
    pub people: Arc<[Person]>,
    pub targets: Vec<ConnectOptions>,
    /// A second, outside of the spike and in it.
    pub per_s: f64,
    pub spike_per_s: f64,
}

impl Comers {
    /// Has them come until it is `over`, and waits for the last.
    pub async fn come(self, clock: Clock, over: Arc<AtomicBool>) -> Result<Book> {
        let book = Rc::new(RefCell::new(Book::new(clock)));
        let mut pace = Pace::new(&clock, self.per_s, self.spike_per_s, 0.5);
        let (mut coming, mut number) = (JoinSet::new(), 0);
        while !over.load(Ordering::Relaxed) {
            while coming.try_join_next().is_some() {}
            while let Some(at) = pace.due(&clock, Instant::now()) {
                book.borrow_mut().meant(at);
                if coming.len() >= COMING_MAX {
                    book.borrow_mut().refused("on this side: too many on their way".into());
                    continue;
                }
                let person = self.people.get(number % self.people.len()).context("there are people")?.clone();
                let target = self.targets.get(number % self.targets.len()).context("there is a way")?.clone();
                let device = number % self.people.len();
                coming.spawn_local(one(target, person, device, at, Rc::clone(&book)));
                number += 1;
            }
            tokio::time::sleep(TICK).await;
        }
        while let Some(ended) = coming.join_next().await {
            ended.context("a task of who comes failed")?;
        }
        Rc::try_unwrap(book).ok().map(RefCell::into_inner).context("all have ended")
    }
}

async fn one(target: ConnectOptions, person: Person, device: usize, meant: Instant, book: Rc<RefCell<Book>>) {
    match tokio::time::timeout(PATIENCE, ready(target, person, device)).await {
        Ok(Ok(connection)) => {
            book.borrow_mut().done(meant);
            connection.close(Code(0)).await;
        }
        Ok(Err(why)) => book.borrow_mut().refused(why),
        Err(_) => book.borrow_mut().refused("no answer".into()),
    }
}

/// A session that knows where its channels stand, or why there is none.
async fn ready(target: ConnectOptions, person: Person, device: usize) -> Result<Connection, String> {
    let options = SessionOptions { token: person.token, device_name: "loadgen".into(), ..Default::default() };
    let device = DeviceState::new(DeviceId(device as u64 + 1));
    let session = ClientSession::new(device, options, now_ms());
    let why =
        |ended: fanfare_proto::session::client::Ended| ended.code.map_or(ended.text, |code| code.to_string());
    let mut connection = Connection::open(&target, session).await.map_err(|error| why(error.ended()))?;
    let (mut is_ready, mut refused) = (false, None);
    while !is_ready {
        let mut sink = |event| match event {
            Event::Synced(synced) => is_ready |= synced.complete,
            Event::Failed(error) | Event::Refused { error, .. } => refused = Some(Code(error.code as u16)),
            _ => {}
        };
        connection.turn(&mut sink).await.map_err(why)?;
        if let Some(code) = refused {
            return Err(code.to_string());
        }
    }
    Ok(connection)
}
