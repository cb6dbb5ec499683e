//! Users with tokens, groups and direct channels, made in bulk before anything is measured.

use anyhow::{Context, Result, bail};
use fanfare_client::connection::{ConnectOptions, Connection, now_ms};
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, UserId,
    limits::MEMBERS_PER_ENTRY_MAX,
    session::client::{ClientSession, DeviceState, Event, SessionOptions},
    wire::{self, open::Target, send::Content},
};
use serde_json::json;

use crate::admin::Admin;

/// Users made by one request.
const USERS_PER_REQUEST: usize = 1_000;
/// Life of the tokens: longer than any run.
const TOKEN_S: u64 = 24 * 3600;
/// Requests that a maker of channels has under way.
const IN_FLIGHT_MAX: usize = 64;

/// An account with its token.
#[derive(Clone, Debug)]
pub struct Person {
    /// Its id.
    pub id: UserId,
    /// Good for HELLO until the run is over.
    pub token: String,
}

/// A channel as its maker left it.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Its id.
    pub channel: ChannelId,
    /// Its newest seq.
    pub head: u64,
}

/// Makes `count` accounts that may ask for full delivery.
pub async fn people(admin: &Admin, count: usize) -> Result<Vec<Person>> {
    let mut people = Vec::with_capacity(count);
    while people.len() < count {
        let names: Vec<String> = (people.len()..count.min(people.len() + USERS_PER_REQUEST))
            .map(|number| format!("member-{}", number + 1))
            .collect();
        let body = json!({ "names": names, "full_delivery": true, "token_ttl_s": TOKEN_S });
        let answer = admin.request("POST", "/admin/v1/users/bulk", Some(&body)).await?;
        let made = answer["users"].as_array().context("no `users` in the answer")?;
        if made.len() != names.len() {
            bail!("{} users asked for, {} made", names.len(), made.len());
        }
        for user in made {
            let id = user["user"].as_str().and_then(|id| id.parse().ok()).context("a user without an id")?;
            let token = user["token"].as_str().context("a user without a token")?.to_owned();
            people.push(Person { id: UserId(id), token });
        }
    }
    Ok(people)
}

/// A client message id that this run has not used: the server's time, a number of the sender and one of the message.
pub fn message_id(server_ms: u64, sender: usize, number: u64) -> ClientMessageId {
    // The version and the variant take bits of bytes 0 and 2.
    let mut random = [0; 10];
    random[3..6].copy_from_slice(&(sender as u32).to_be_bytes()[1..]);
    random[6..].copy_from_slice(&(number as u32).to_be_bytes());
    ClientMessageId::new(server_ms, random)
}

/// A session that makes channels and is in none of their audiences.
pub struct Maker {
    connection: Connection,
    person: usize,
    next: u64,
}

impl Maker {
    /// Opens the session of one of `people`.
    pub async fn open(options: &ConnectOptions, people: &[Person], person: usize) -> Result<Self> {
        let session_options = SessionOptions {
            token: people.get(person).context("no such person")?.token.clone(),
            device_name: "loadgen maker".into(),
            sync: None,
            ..Default::default()
        };
        let device = DeviceState::new(DeviceId((1 << 40) | (person as u64 + 1)));
        let session = ClientSession::new(device, session_options, now_ms());
        let mut connection = Connection::open(options, session).await?;
        while !connection.session().is_open() {
            connection.turn(&mut |_| {}).await?;
        }
        Ok(Self { connection, person, next: 0 })
    }

    /// Makes a group of any size: with as many members as OPEN takes, the others by further entries.
    pub async fn group(&mut self, name: &str, members: &[UserId]) -> Result<Made> {
        let mut parts = members.chunks(MEMBERS_PER_ENTRY_MAX);
        let first = self.group_request(name, parts.next().unwrap_or_default())?;
        let mut made = self.channels(&[first]).await?.pop().context("one was asked for")?;
        for part in parts {
            let membership = wire::Membership {
                change: wire::MembershipChange::Joined.into(),
                users: part.iter().map(|user| user.0).collect(),
                role: wire::Role::Member.into(),
                until_ms: 0,
            };
            let send = wire::Send {
                client_message_id: self.id(),
                content: Some(Content::Membership(membership)),
                ..Default::default()
            };
            let request = self.connection.session().send(made.channel, &send, false)?;
            let ack = self.sent(request).await?;
            if ack.outcome() != wire::Outcome::Ok {
                bail!("members were not taken: {} {}", Code(ack.code as u16), ack.text);
            }
            made.head = ack.seq;
        }
        Ok(made)
    }

    /// Makes `names.len()` groups of the same members, at most as many as one OPEN takes.
    pub async fn groups(&mut self, names: &[String], members: &[UserId]) -> Result<Vec<Made>> {
        let mut made = Vec::with_capacity(names.len());
        for names in names.chunks(IN_FLIGHT_MAX) {
            let requests: Result<Vec<u64>> =
                names.iter().map(|name| self.group_request(name, members)).collect();
            made.extend(self.channels(&requests?).await?);
        }
        Ok(made)
    }

    /// Opens the direct channel with a user.
    pub async fn direct(&mut self, user: UserId) -> Result<Made> {
        let open = wire::Open { client_message_id: self.id(), target: Some(Target::Direct(user.0)) };
        let request = self.connection.session().open(&open)?;
        self.channels(&[request]).await?.pop().context("one was asked for")
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.connection.close(Code(0)).await;
    }

    fn id(&mut self) -> bytes::Bytes {
        self.next += 1;
        let server_ms = self.connection.session().server_time_ms(now_ms());
        // A number that no measured session uses.
        let id = message_id(server_ms, 1 << 23 | self.person, self.next);
        bytes::Bytes::copy_from_slice(&id.0)
    }

    fn group_request(&mut self, name: &str, members: &[UserId]) -> Result<u64> {
        let group = wire::Group {
            name: name.into(),
            members: members.iter().map(|user| user.0).collect(),
            history: wire::HistoryPolicy::FromJoin.into(),
            join: wire::JoinPolicy::OpenToAll.into(),
            posting: wire::PostingPolicy::EveryMember.into(),
        };
        let open = wire::Open { client_message_id: self.id(), target: Some(Target::Group(group)) };
        Ok(self.connection.session().open(&open)?)
    }

    /// Waits for the answer to a SEND.
    async fn sent(&mut self, wanted: u64) -> Result<wire::SendAck> {
        let (mut answer, mut refused) = (None, None);
        loop {
            let mut sink = |event| match event {
                Event::SendAck { request, ack, .. } if request == wanted => answer = Some(ack),
                Event::Refused { error, .. } | Event::Failed(error) => refused = Some(error),
                _ => {}
            };
            self.connection.turn(&mut sink).await?;
            if let Some(error) = refused {
                bail!("the server refused: {} {}", Code(error.code as u16), error.text);
            }
            if let Some(ack) = answer {
                return Ok(ack);
            }
        }
    }

    /// Waits for the answers to OPENs, in whatever order they come.
    async fn channels(&mut self, requests: &[u64]) -> Result<Vec<Made>> {
        let mut made = vec![None; requests.len()];
        let mut refused = None;
        while made.iter().any(Option::is_none) && refused.is_none() {
            let mut sink = |event| match event {
                Event::Channel { request, state } => {
                    if let Some(at) = requests.iter().position(|wanted| *wanted == request) {
                        made[at] = Some(Made { channel: ChannelId(state.channel), head: state.head });
                    }
                }
                Event::Refused { error, .. } | Event::Failed(error) => refused = Some(error),
                _ => {}
            };
            self.connection.turn(&mut sink).await?;
        }
        match refused {
            Some(error) => bail!("a channel was refused: {} {}", Code(error.code as u16), error.text),
            None => Ok(made.into_iter().flatten().collect()),
        }
    }
}
