//! `fanfare send` and `fanfare listen`: the client SDK over the real gateway, with a token of the running server.

use std::{collections::HashMap, time::Duration};

use fanfare_client::{Client, Event, RequestError, State, Trust};
use fanfare_proto::{ChannelId, Code, UserId, limits::FETCH_MESSAGES_MAX, wire};
use serde_json::{Value, json};

use super::{Asker, channel::message_line, user::text, with_lists};
use crate::{
    admin_client::segment,
    cli::{Listen, Send, Transport},
    clock,
    failure::{Failure, Outcome, exit},
    history::Message,
};

/// Life of the token of a command.
const TOKEN_TTL_S: u64 = 24 * 3_600;

/// Sends one message and waits until it is durable.
pub async fn send(asker: Asker, flags: Send) -> Outcome<u8> {
    let actor = asker.actor(&flags.actor)?;
    asker.changing();
    let line = Line::open(&asker, &actor, &flags.channel, flags.transport).await?;
    let handle = line.client.send_text(line.channel, flags.text);
    let sent = tokio::time::timeout(asker.global.timeout, handle.sent()).await;
    line.client.close().await;
    let sent = match sent {
        Ok(Ok(sent)) => sent,
        Ok(Err(error)) => return Err(Failure::of(error.code().unwrap_or(Code::OUTCOME_UNKNOWN)).why(error)),
        Err(_) => {
            let what = format!("no word whether it was sent, within {:?}", asker.global.timeout);
            return Err(Failure::new(Code::OUTCOME_UNKNOWN, what)
                .advise(format!("fanfare channel history {}", flags.channel), "shows whether it arrived"));
        }
    };
    let result = json!({
        "channel": line.channel.to_string(),
        "epoch": sent.epoch,
        "seq": sent.seq,
        "message": sent.id.to_string(),
        "time": clock::rfc3339(sent.id.time_ms()),
        "sender_name": actor,
    });
    asker
        .output
        .object("sent", result, || format!("sent to {} as {actor} (seq {})", flags.channel, sent.seq));
    Ok(exit::OK)
}

/// Prints messages as they come, in order and without holes.
pub async fn listen(asker: Asker, flags: Listen) -> Outcome<u8> {
    let actor = asker.actor(&flags.actor)?;
    let mut line = Line::open(&asker, &actor, &flags.channel, flags.transport).await?;
    let mut events = line.client.events();
    // The stream first, the head second: what comes between is in both, and printed once.
    let head = line.fetch(0, 0).await?.head;
    let mut printer = Printer { asker: &asker, names: HashMap::new(), left: flags.count };
    line.next = if flags.since_start { 1 } else { head + 1 };
    if printer.left == Some(0) {
        return Ok(exit::OK);
    }
    asker.output.begun(
        &format!("listening to {} as {actor} (Ctrl-C ends)", flags.channel),
        json!({ "channel": line.channel.to_string(), "as": actor }),
        "listening",
    );
    if line.catch_up(head, &mut printer).await? {
        line.client.close().await;
        return Ok(exit::OK);
    }
    while let Some(event) = events.next().await {
        let enough = match event {
            Event::Entry(entry) if entry.channel == line.channel && entry.seq >= line.next => {
                line.catch_up(entry.seq - 1, &mut printer).await? || {
                    line.next = entry.seq + 1;
                    printer.print(Message::of_entry(&entry)).await
                }
            }
            Event::GapFilled { channel, last, .. } | Event::Skipped { channel, last, .. }
                if channel == line.channel =>
            {
                line.catch_up(last, &mut printer).await?
            }
            Event::Lagged(_) => {
                let head = line.fetch(0, 0).await?.head;
                line.catch_up(head, &mut printer).await?
            }
            Event::ChannelLeft(channel) if channel == line.channel => {
                return Err(Failure::new(
                    Code::NOT_A_MEMBER,
                    format!("{actor} is no longer a member of {}", flags.channel),
                ));
            }
            Event::State(State::Closed { code, reason }) => return Err(closed(code, &reason)),
            Event::State(State::Disconnected { reason, retry_in, .. }) => {
                asker
                    .output
                    .remark(&format!("connection lost ({reason}); again in {:.1} s", retry_in.as_secs_f64()));
                false
            }
            _ => false,
        };
        if enough {
            break;
        }
    }
    line.client.close().await;
    Ok(exit::OK)
}

/// A session with one channel in view.
struct Line {
    client: Client,
    channel: ChannelId,
    /// The next seq to be printed.
    next: u64,
}

impl Line {
    async fn open(asker: &Asker, actor: &str, channel: &str, transport: Transport) -> Outcome<Self> {
        let of = format!("/channel?channel={}&as={}", segment(channel), segment(actor));
        let named = asker.admin.get(&of).await.map_err(with_lists)?;
        let client = connect(asker, actor, transport).await?;
        let channel = match named["channel"].as_str() {
            Some(id) => id.parse().map_err(|_| Failure::internal("the server's answer has no channel id"))?,
            // The first word between two: the channel is made by asking for it.
            None => {
                let peer: UserId = text(&named["peer"])
                    .parse()
                    .map_err(|_| Failure::internal("the server's answer has no user id"))?;
                client.open_direct(peer).await.map_err(request_failed)?.id()
            }
        };
        Ok(Self { client, channel, next: 1 })
    }

    async fn fetch(&self, after: u64, before: u64) -> Outcome<fanfare_client::History> {
        let fetch = wire::Fetch { after, before, messages_max: FETCH_MESSAGES_MAX, before_ms: 0 };
        self.client.fetch(self.channel, fetch).await.map_err(request_failed)
    }

    /// Prints what lies between the last printed one and `last`, asked from the server in stretches that one answer
    /// covers; whether that was enough.
    async fn catch_up(&mut self, last: u64, printer: &mut Printer<'_>) -> Outcome<bool> {
        while self.next <= last {
            let end = last.min(self.next + u64::from(FETCH_MESSAGES_MAX) - 1);
            let mut messages: Vec<Message> = Vec::new();
            let mut before = end + 1;
            loop {
                let part = self.fetch(self.next - 1, before).await?;
                for entry in &part.entries {
                    messages.extend(Message::of_entry(entry));
                }
                for amendment in &part.amendments {
                    let amended = messages.iter_mut().find(|message| message.seq == amendment.target);
                    if let (Some(message), Some(newest)) = (amended, &amendment.newest) {
                        message.amend(newest);
                    }
                }
                if part.complete || part.first <= self.next || part.first >= before {
                    break;
                }
                before = part.first;
            }
            self.next = end + 1;
            messages.sort_by_key(|message| message.seq);
            for message in messages {
                if printer.print(Some(message)).await {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Prints messages and counts them.
struct Printer<'a> {
    asker: &'a Asker,
    names: HashMap<UserId, String>,
    left: Option<u64>,
}

impl Printer<'_> {
    /// Prints; whether that was enough.
    async fn print(&mut self, message: Option<Message>) -> bool {
        let Some(message) = message else { return false };
        let name = self.name(message.sender).await;
        let value = message.json(&name);
        let line = message_line(&value);
        self.asker.output.object("message", value, || line);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.left == Some(0)
    }

    async fn name(&mut self, user: UserId) -> String {
        if let Some(name) = self.names.get(&user) {
            return name.clone();
        }
        let found = self.asker.admin.get(&format!("/users/{user}")).await.unwrap_or(Value::Null);
        let name = found["name"].as_str().map_or_else(|| user.to_string(), str::to_owned);
        self.names.insert(user, name.clone());
        name
    }
}

/// Opens a session of that user.
async fn connect(asker: &Asker, actor: &str, transport: Transport) -> Outcome<Client> {
    let path = format!("/users/{}/token", segment(actor));
    let issued = asker.admin.post(&path, &json!({ "ttl_s": TOKEN_TTL_S })).await.map_err(with_lists)?;
    let door = asker.admin.door().await?;
    let pins: Vec<[u8; 32]> = door.certificate_sha256.iter().filter_map(|pin| unhex(pin)).collect();
    let builder = match transport {
        Transport::Ws if door.plain => Client::builder(format!("ws://{}", door.gateway)),
        Transport::Ws if !pins.is_empty() => {
            Client::builder(format!("wss://{}", door.gateway)).tls(Trust::Pinned(pins))
        }
        Transport::Ws => {
            return Err(Failure::of(Code::CERTIFICATE)
                .why(format!(
                    "{} is not on this machine and has no certificate that commands could compare",
                    door.gateway
                ))
                .advise(
                    "fanfare channel history CHANNEL --as USER",
                    "reads over HTTP, with the context alone",
                ));
        }
        Transport::Quic => {
            if pins.is_empty() {
                return Err(Failure::of(Code::CERTIFICATE)
                    .why("the server's certificate is not a self-signed one that commands could compare")
                    .advise("--transport ws", "on the server's own machine"));
            }
            Client::builder(format!("quic://{}", door.gateway)).tls(Trust::Pinned(pins))
        }
    };
    let connecting = builder
        .token(text(&issued["token"]))
        .agent(concat!("fanfare-cli/", env!("CARGO_PKG_VERSION")))
        .connect();
    match tokio::time::timeout(asker.global.timeout, connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(closed(error.code, &error.reason)),
        Err(_) => Err(unreachable(&door.gateway, asker.global.timeout)),
    }
}

/// 32 bytes of 64 hexadecimal digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    (text.len() == 64).then_some(bytes)
}

fn unreachable(gateway: &str, timeout: Duration) -> Failure {
    Failure::new(Code::UNREACHABLE, format!("the gateway at {gateway} does not answer"))
        .why(format!("no session within {timeout:?}"))
        .advise("fanfare status", "says how the server is")
}

fn closed(code: Option<Code>, reason: &str) -> Failure {
    match code {
        Some(code) => Failure::of(code).why(reason),
        None => Failure::new(Code::UNREACHABLE, "the connection to the gateway failed")
            .why(reason)
            .advise("fanfare status", "says how the server is"),
    }
}

fn request_failed(error: RequestError) -> Failure {
    match error {
        RequestError::Refused { code, text } => Failure::of(code).why(text),
        error => Failure::new(Code::UNREACHABLE, "the request was not answered").why(error),
    }
}
