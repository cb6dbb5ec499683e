//! One user's session: connects, turns its connection, reconnects, until all is over.

use std::time::{Duration, Instant};

use anyhow::Result;
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, Code, DeviceId,
    error::Policy,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire,
};

use super::world::Shared;
use crate::check::{Checker, Way, page_frames};

/// Entries asked for by one FETCH.
const FETCH_MESSAGES: u32 = 100;
/// Longest wait before the next attempt to connect: the server is on this machine and comes back.
const RECONNECT_MS_MAX: u64 = 400;

/// What a turn leaves to be done with the session.
enum Todo {
    Fetch { channel: ChannelId, after: u64, before: u64 },
    Opened,
    Token,
}

/// Runs the session of `user` until the world closes or fails.
pub async fn run(world: Shared, user: usize, options: ConnectOptions) {
    let wake = world.borrow().users[user].wake.clone();
    let mut device = DeviceState::new(DeviceId(user as u64 + 1));
    let mut attempt = 0u32;
    let mut connections = 0u64;
    let mut had_gap = false;
    loop {
        if world.borrow().closing || world.borrow().failed.is_some() {
            return;
        }
        let session_options = SessionOptions {
            token: world.borrow().users[user].token.clone(),
            delivery: wire::Delivery::Full,
            device_name: "loadgen".into(),
            // Everything is wanted: the whole list is filled from tails where they reach.
            sync: Some(fanfare_proto::limits::SYNC_WINDOW_MAX),
            seed: (user as u64) << 32 | u64::from(attempt),
            ..Default::default()
        };
        let session = ClientSession::new(device.clone(), session_options, now_ms());
        match Connection::open(&options, session).await {
            Ok(mut connection) => {
                connections += 1;
                if connections > 1 {
                    world.borrow_mut().reconnects += 1;
                }
                turn(&world, user, &wake, &mut connection, &mut attempt, &mut had_gap).await;
                let repeats = connection.session().repeats();
                // After a gap the server starts behind what FETCH had already brought: those are no duplicates.
                if repeats > 0 && !had_gap {
                    let mut world = world.borrow_mut();
                    world.checker.counts.duplicated += repeats;
                    Checker::violation(&mut world.checker.examples, || {
                        format!("member {user} was sent {repeats} entries that it held")
                    });
                }
                device = connection.session().device().clone();
            }
            Err(_) => attempt += 1,
        }
        let window = RECONNECT_MS_MAX.min(20 << attempt.min(6));
        let jitter = (user as u64).wrapping_mul(0x9e37_79b9) % window;
        tokio::time::sleep(Duration::from_millis(window / 2 + jitter / 2)).await;
        attempt = attempt.saturating_add(1);
    }
}

async fn turn(
    world: &Shared,
    user: usize,
    wake: &tokio::sync::Notify,
    connection: &mut Connection,
    attempt: &mut u32,
    had_gap: &mut bool,
) {
    let mut todo = Vec::new();
    let mut open = false;
    loop {
        if open {
            let mut world = world.borrow_mut();
            if world.closing {
                break;
            }
            world.transmit(user, connection.session(), now_ms());
        }
        let not_before = world.borrow().not_before(user);
        let later = async {
            match not_before {
                Some(instant) => tokio::time::sleep_until(instant.max(Instant::now()).into()).await,
                None => std::future::pending().await,
            }
        };
        let now_us = world.borrow().now_us();
        let mut clock = Some(now_us);
        let mut sink = |event| take(world, user, event, &mut todo, &mut clock);
        let over = tokio::select! {
            biased;
            turned = connection.turn(&mut sink) => turned.is_err(),
            () = wake.notified() => false,
            () = later => false,
        };
        for todo in todo.drain(..) {
            match todo {
                Todo::Opened => {
                    open = true;
                    *attempt = 0;
                }
                Todo::Fetch { channel, after, before } => {
                    *had_gap = true;
                    let fetch = wire::Fetch { before, after, messages_max: FETCH_MESSAGES, before_ms: 0 };
                    let _ = connection.session().fetch(channel, &fetch);
                }
                Todo::Token => {
                    let token = world.borrow().users[user].token.clone();
                    let _ = connection.session().authenticate(token);
                }
            }
        }
        if over {
            return;
        }
    }
}

fn take(world: &Shared, user: usize, event: Event, todo: &mut Vec<Todo>, clock: &mut Option<u64>) {
    let mut world = world.borrow_mut();
    match event {
        Event::Deliver(frame) => {
            // One look at the clock per turn that waited: frames of one read came together.
            let now_us = match clock.take() {
                Some(_) => world.now_us(),
                None => world.last_us,
            };
            world.last_us = now_us;
            world.delivered(user, &frame, Way::Pushed, now_us);
        }
        Event::Welcome(_) => {
            world.session_opened(user);
            todo.push(Todo::Opened);
        }
        Event::SendAck { channel, request, ack } => world.acked(user, channel, request, &ack),
        Event::Channel { request, state } if request != 0 => world.opened(user, request, &state),
        Event::Refused { request, error, .. } => world.refused(user, request, &error),
        Event::Gap { channel, after, head } => {
            world.gaps += 1;
            todo.push(Todo::Fetch { channel, after, before: head + 1 });
        }
        Event::Page { channel, page, .. } => {
            for frame in page_frames(&page) {
                world.delivered(user, &frame, Way::Paged, 0);
            }
            if !page.more && !page.complete && page.first > 1 {
                let after = world.fetch_floor(user, channel);
                todo.push(Todo::Fetch { channel, after, before: page.first });
            }
        }
        Event::Defect { channel, kind, after, before } => {
            world.checker.counts.reordered += 1;
            Checker::violation(&mut world.checker.examples, || {
                format!("member {user}: {kind:?} in channel {channel} between {after} and {before}")
            });
            todo.push(Todo::Fetch { channel, after, before });
        }
        Event::AuthRequired { .. } => todo.push(Todo::Token),
        Event::Failed(error) if error.code == u32::from(Code::RATE_LIMITED.0) => world.rate_limited += 1,
        Event::Failed(error) => {
            world.failed.get_or_insert(format!("user {user}: {} {}", Code(error.code as u16), error.text));
        }
        Event::Ended(ended) => {
            if let Some(Code::RATE_LIMITED | Code::PING_FLOOD | Code::CONNECTIONS_PER_ADDRESS) = ended.code {
                world.rate_limited += 1;
            }
            if ended.policy == Policy::Never && !world.closing {
                world.failed.get_or_insert(format!("user {user}: the server ended the session: {ended}"));
            }
        }
        _ => {}
    }
}

/// Reads a channel whole by a fresh device of one of its members, comparing every entry with what members saw. Gives (entries
/// read, head).
pub async fn reread(
    world: &Shared,
    user: usize,
    channel: ChannelId,
    options: &ConnectOptions,
) -> Result<(u64, u64)> {
    let device = DeviceState::new(DeviceId(1 << 40 | channel.0 & 0xffff_ffff));
    let session_options = SessionOptions {
        token: world.borrow().users[user].token.clone(),
        delivery: wire::Delivery::Full,
        device_name: "loadgen reader".into(),
        sync: None,
        ..Default::default()
    };
    let session = ClientSession::new(device, session_options, now_ms());
    let mut connection = Connection::open(options, session).await?;
    let (mut read, mut head, mut before, mut done) = (0, 0, 0, false);
    let mut ask = false;
    while !done {
        let mut sink = |event| match event {
            Event::Welcome(_) => ask = true,
            Event::Page { page, .. } => {
                head = head.max(page.head);
                for frame in page_frames(&page) {
                    world.borrow_mut().checker.reread(&frame);
                    read += 1;
                }
                if let Some(corrupt) = page.corrupt.first() {
                    let mut world = world.borrow_mut();
                    world.checker.counts.lost += 1;
                    Checker::violation(&mut world.checker.examples, || {
                        format!(
                            "channel {channel}: {} to {} read back as corrupt",
                            corrupt.first, corrupt.last
                        )
                    });
                }
                if !page.more {
                    done = page.complete || page.first <= 1;
                    before = page.first;
                    ask = !done;
                }
            }
            Event::Refused { error, .. } => {
                if error.code == u32::from(Code::RETRY_LATER.0) {
                    ask = true;
                } else {
                    done = true;
                    world.borrow_mut().failed.get_or_insert(format!(
                        "reading channel {channel} back: {} {}",
                        Code(error.code as u16),
                        error.text
                    ));
                }
            }
            _ => {}
        };
        connection.turn(&mut sink).await?;
        if std::mem::take(&mut ask) {
            let fetch = wire::Fetch { before, after: 0, messages_max: FETCH_MESSAGES, before_ms: 0 };
            connection.session().fetch(channel, &fetch)?;
        }
    }
    connection.close(Code(0)).await;
    Ok((read, head))
}
