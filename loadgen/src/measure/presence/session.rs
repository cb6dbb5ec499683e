//! The sessions of the run: those who come and go, those who watch, and those who send meanwhile.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, Code, DeviceId, UserId,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire::{self, send::Content},
};
use tokio::{sync::Semaphore, time::MissedTickBehavior};

use super::{
    super::population::{Person, message_id},
    world::World,
};

/// What all share. Borrowed for one event at a time, never across an await.
pub type Shared = Rc<RefCell<World>>;

/// Attempts in a row that fail.
const ATTEMPTS_MAX: u32 = 8;

async fn open(target: &ConnectOptions, person: &Person, device: u64) -> Result<Connection> {
    let options = SessionOptions {
        token: person.token.clone(),
        device_name: "loadgen".into(),
        sync: None,
        seed: device.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        ..Default::default()
    };
    let session = ClientSession::new(DeviceState::new(DeviceId(device)), options, now_ms());
    let mut connection = Connection::open(target, session).await?;
    while !connection.session().is_open() {
        connection.turn(&mut |_| {}).await?;
    }
    Ok(connection)
}

/// As [`open`], some at once, and again where it fails.
async fn open_surely(
    target: &ConnectOptions,
    person: &Person,
    device: u64,
    opening: &Semaphore,
) -> Result<Connection> {
    let _turn = opening.acquire().await?;
    let mut attempt = 0;
    loop {
        match open(target, person, device).await {
            Ok(connection) => return Ok(connection),
            Err(error) if attempt >= ATTEMPTS_MAX => return Err(error).context("a session cannot connect"),
            Err(_) => {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
            }
        }
    }
}

fn heard(world: &Shared, what: &str, event: &Event) {
    let mut world = world.borrow_mut();
    match event {
        Event::Failed(error) | Event::Refused { error, .. } => {
            let code = Code(error.code as u16);
            world.limited += u64::from(code == Code::RATE_LIMITED);
            world.failed.get_or_insert(format!("{what}: {code} {}", error.text));
        }
        Event::Ended(ended) if !world.closing => {
            world.failed.get_or_insert(format!("{what} ended: {ended}"));
        }
        _ => {}
    }
}

/// One who is watched: connected while that is wanted.
pub async fn come_and_go(
    world: Shared,
    at: usize,
    target: ConnectOptions,
    opening: Rc<Semaphore>,
) -> Result<()> {
    let (person, wake) = {
        let world = world.borrow();
        (world.watched[at].person.clone(), Rc::clone(&world.watched[at].wake))
    };
    let wanted = |world: &Shared| world.borrow().watched[at].wanted;
    loop {
        while !wanted(&world) {
            if world.borrow().closing {
                return Ok(());
            }
            wake.notified().await;
        }
        let mut connection = open_surely(&target, &person, at as u64 + 1, &opening).await?;
        world.borrow_mut().changed(at, true);
        let mut sink = |event: Event| heard(&world, "a watched session", &event);
        while wanted(&world) && !world.borrow().closing {
            tokio::select! {
                turned = connection.turn(&mut sink) => turned.context("a watched session")?,
                () = wake.notified() => {}
            }
        }
        world.borrow_mut().changed(at, false);
        let drops = world.borrow().drops || world.borrow().closing;
        if !drops {
            connection.close(Code(0)).await;
        }
        if world.borrow().closing {
            return Ok(());
        }
    }
}

/// One who watches.
pub async fn watch(
    world: Shared,
    number: usize,
    person: Person,
    target: ConnectOptions,
    screen: Vec<UserId>,
    opening: Rc<Semaphore>,
) -> Result<()> {
    let mut connection = open_surely(&target, &person, 1 << 32 | number as u64, &opening).await?;
    connection.session().watch(&screen)?;
    let mut sink = |event| match event {
        Event::Presence(presence) => world.borrow_mut().told(number, &presence),
        event => heard(&world, "one who watches", &event),
    };
    loop {
        connection.turn(&mut sink).await.context("one who watches")?;
    }
}

/// One who sends into a channel by a schedule that does not wait for the server.
pub async fn talk(
    world: Shared,
    number: usize,
    person: Person,
    target: ConnectOptions,
    channel: ChannelId,
    every: Duration,
) -> Result<()> {
    let mut connection = open(&target, &person, 1 << 33 | number as u64).await?;
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let meant: RefCell<HashMap<u64, Instant>> = RefCell::default();
    let mut sink = |event: Event| match event {
        Event::SendAck { request, ack, .. } => {
            let meant = meant.borrow_mut().remove(&request);
            let mut world = world.borrow_mut();
            match meant {
                Some(meant) if ack.outcome() == wire::Outcome::Ok => world.acknowledged(meant),
                _ => {
                    world.failed.get_or_insert(format!(
                        "a send failed: {} {}",
                        Code(ack.code as u16),
                        ack.text
                    ));
                }
            }
        }
        event => heard(&world, "one who sends", &event),
    };
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            due = ticks.tick() => {
                count += 1;
                let server_ms = connection.session().server_time_ms(now_ms());
                let id = message_id(server_ms, number, count);
                let message = wire::Message { text: "x".repeat(96), ..Default::default() };
                let send = wire::Send {
                    client_message_id: bytes::Bytes::copy_from_slice(&id.0),
                    content: Some(Content::Message(message)),
                    ..Default::default()
                };
                let request = connection.session().send(channel, &send, false)?;
                meant.borrow_mut().insert(request, due.into_std());
            }
            turned = connection.turn(&mut sink) => turned.context("one who sends")?,
        }
    }
}
