//! What people and programs of the server's own may ask: users and tokens, channels and their history, sessions, and how
//! things stand. It turns names into ids, asks the router, and gives rows that serialise.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, UserId,
    wire::{self, ChannelKind, ChannelState, Role},
};
use fanfare_router::{Admin, Status};
use fanfare_storage::model::User;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    clock,
    failure::{Failure, Outcome},
    history,
    node::stores::{self, Stores},
    token::{IssuedToken, TokenIssuer},
};

/// Bytes of a user's name.
pub const USER_NAME_BYTES_MAX: usize = 64;
/// First members of a group, beside its owner.
pub const MEMBERS_MAX: usize = 1_000;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Administration {
    stores: Stores,
    issuer: Arc<TokenIssuer>,
    router: Admin,
}

impl std::fmt::Debug for Administration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Administration").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A user as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct UserRow {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub user: UserId,
    /// Its name.
    pub name: String,
    /// May ask for full delivery.
    pub full_delivery: bool,
    /// Is a bot.
    pub bot: bool,
}

/// A channel as it stands for a user, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelRow {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub channel: ChannelId,
    /// `direct` or `group`.
    pub kind: &'static str,
    /// Empty for direct channels.
    pub name: String,
    /// The other one of a direct channel; empty in groups.
    pub peer_name: String,
    /// The user's role.
    pub role: &'static str,
    /// Members in all.
    pub members: u32,
    /// Its newest seq.
    pub head: u64,
    /// Messages not read.
    pub unread: u64,
    /// Unix milliseconds of the newest entry.
    pub active_ms: u64,
}

/// What somebody's words for a channel mean.
#[derive(Clone, Debug)]
pub enum NamedChannel {
    /// This one.
    Existing(ChannelId),
    /// The direct channel with that user, of which nothing was said yet.
    DirectWith(UserId),
}

impl From<User> for UserRow {
    fn from(user: User) -> Self {
        Self {
            user: user.user,
            full_delivery: user.flags & User::FULL_DELIVERY != 0,
            bot: user.flags & User::BOT != 0,
            name: user.name,
        }
    }
}

impl Administration {
    /// Over those stores and that router.
    pub fn new(stores: Stores, issuer: Arc<TokenIssuer>, router: Admin) -> Self {
        Self { stores, issuer, router }
    }

    /// Makes a user.
    ///
    /// # Errors
    /// BAD_FIELD, NAME_TAKEN, and of the stores.
    pub async fn add_user(&self, name: &str, full_delivery: bool, bot: bool) -> Outcome<UserRow> {
        check_name(name)?;
        let mut flags = 0;
        for (wanted, flag) in [(full_delivery, User::FULL_DELIVERY), (bot, User::BOT)] {
            flags |= if wanted { flag } else { 0 };
        }
        match self.router.create_user(name, flags).await {
            Ok(user) => Ok(user.into()),
            Err(Code::NAME_TAKEN) => {
                Err(Failure::new(Code::NAME_TAKEN, format!("a user `{name}` exists already"))
                    .advise("fanfare user ls", "lists who there is"))
            }
            Err(code) => Err(Failure::of(code)),
        }
    }

    /// The user of that name, made where it is missing; whether it was.
    ///
    /// # Errors
    /// As of [`Self::add_user`].
    pub async fn user_made(&self, name: &str, full_delivery: bool, bot: bool) -> Outcome<(UserRow, bool)> {
        if let Some(user) = self.router.user_named(name).await? {
            return Ok((user.into(), false));
        }
        match self.add_user(name, full_delivery, bot).await {
            Ok(user) => Ok((user, true)),
            // Somebody else was faster.
            Err(Failure { code: Some(Code::NAME_TAKEN), .. }) => Ok((self.user(name).await?, false)),
            Err(failure) => Err(failure),
        }
    }

    /// Users by ascending id above `after`.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn users(&self, after: UserId, limit: usize) -> Outcome<Vec<UserRow>> {
        Ok(self.router.users(after, limit).await?.into_iter().map(UserRow::from).collect())
    }

    /// A user by name or id.
    ///
    /// # Errors
    /// NO_SUCH_NAME.
    pub async fn user(&self, name: &str) -> Outcome<UserRow> {
        let found = match name.parse::<u64>() {
            Ok(id) => self.router.user(UserId(id)).await?,
            Err(_) => self.router.user_named(name.strip_prefix('@').unwrap_or(name)).await?,
        };
        found
            .map(UserRow::from)
            .ok_or_else(|| Failure::new(Code::NO_SUCH_NAME, format!("no user `{name}` exists")))
    }

    /// A token.
    ///
    /// # Errors
    /// Signing failed.
    pub fn token(&self, user: UserId, ttl: Duration) -> Outcome<IssuedToken> {
        let issued = self.issuer.issue(user, ttl, clock::now_ms());
        issued.map_err(|error| Failure::internal("no token could be issued").why(format!("{error:#}")))
    }

    /// Makes a group with its first members, by name or id.
    ///
    /// # Errors
    /// NO_SUCH_NAME, BAD_FIELD, and of the router.
    pub async fn create_group(&self, owner: UserId, name: &str, members: &[String]) -> Outcome<ChannelRow> {
        if name.trim().is_empty() || name.starts_with('@') || name.parse::<u64>().is_ok() {
            return Err(Failure::new(Code::BAD_FIELD, format!("`{name}` cannot be a group's name"))
                .why("commands take @name for the direct channel with a user, and a number for an id"));
        }
        if members.len() > MEMBERS_MAX {
            return Err(Failure::new(
                Code::BAD_FIELD,
                format!("a group begins with at most {MEMBERS_MAX} members"),
            ));
        }
        let mut users = Vec::with_capacity(members.len());
        for member in members {
            let user = self.user(member).await?.user;
            if user != owner && !users.contains(&user.0) {
                users.push(user.0);
            }
        }
        let group = wire::Group { name: name.to_owned(), members: users, ..wire::Group::default() };
        let channel = self.router.create_group(owner, fresh_id()?, group).await?;
        let described = self.router.describe(channel, Some(owner)).await?;
        let state = described.and_then(|summary| summary.state);
        let state = state
            .ok_or_else(|| Failure::of(Code::RETRY_LATER).why("the group is made, and not served yet"))?;
        self.channel_row(&state).await
    }

    /// A user's channels, newest activity first.
    ///
    /// # Errors
    /// Of the router.
    pub async fn channels(&self, user: UserId) -> Outcome<Vec<ChannelRow>> {
        let mut rows = Vec::new();
        for state in self.router.states_of(user).await? {
            rows.push(self.channel_row(&state).await?);
        }
        Ok(rows)
    }

    /// One channel of a user.
    ///
    /// # Errors
    /// NOT_A_MEMBER, also where there is no such channel.
    pub async fn channel_of(&self, user: UserId, channel: ChannelId) -> Outcome<ChannelRow> {
        let described = self.router.describe(channel, Some(user)).await?;
        let state = described.and_then(|summary| summary.state).filter(|state| state.role != 0);
        match state {
            Some(state) => self.channel_row(&state).await,
            None => Err(Failure::of(Code::NOT_A_MEMBER)),
        }
    }

    /// The direct channel of a pair, made where it is not there.
    ///
    /// # Errors
    /// NO_SUCH_USER, BAD_FIELD, and of the router.
    pub async fn open_direct(&self, user: UserId, peer: UserId) -> Outcome<ChannelRow> {
        if self.router.user(peer).await?.is_none() {
            return Err(Failure::of(Code::NO_SUCH_USER));
        }
        let channel = self.router.open_direct(user, peer, fresh_id()?).await?;
        self.channel_of(user, channel).await
    }

    /// Members by ascending id above `after`, at most `limit`, and how many there are in all.
    ///
    /// # Errors
    /// NOT_A_MEMBER where there is no such channel.
    pub async fn members_page(
        &self,
        channel: ChannelId,
        after: UserId,
        limit: usize,
    ) -> Outcome<(Vec<MemberRow>, usize)> {
        let summary = self.router.describe(channel, None).await?.ok_or(Code::NOT_A_MEMBER)?;
        let mut names = Names::new(&self.router);
        let mut rows = Vec::new();
        for member in summary.members.iter().filter(|member| member.user > after).take(limit) {
            rows.push(MemberRow {
                user: member.user,
                name: names.of(member.user).await?,
                role: role_name(member.role.into()),
                read: member.cursor.read,
            });
        }
        Ok((rows, summary.members_total))
    }

    async fn channel_row(&self, state: &ChannelState) -> Outcome<ChannelRow> {
        let direct = state.kind == ChannelKind::Direct as i32;
        let peer = if direct { self.router.user(UserId(state.peer)).await? } else { None };
        Ok(ChannelRow {
            channel: ChannelId(state.channel),
            kind: if direct { "direct" } else { "group" },
            name: state.name.clone(),
            peer_name: peer.map(|peer| peer.name).unwrap_or_default(),
            role: role_name(state.role),
            members: state.members,
            head: state.head,
            unread: state.ordinal.saturating_sub(state.read_ordinal),
            active_ms: state.active_ms,
        })
    }

    /// What `words` mean to that user: a name among its channels, `@name`, or an id.
    ///
    /// # Errors
    /// NO_SUCH_NAME, also for channels that the user is no member of; BAD_FIELD where several have the name.
    pub async fn named_channel(&self, user: UserId, words: &str) -> Outcome<NamedChannel> {
        let none = || Failure::new(Code::NO_SUCH_NAME, format!("this user is in no channel `{words}`"));
        if let Some(peer) = words.strip_prefix('@') {
            let peer = self.user(peer).await?.user;
            let metadata = Arc::clone(&self.stores.metadata);
            let found = tokio::task::spawn_blocking(move || metadata.direct(user, peer)).await;
            let found = found.map_err(|error| Failure::internal("a reader failed").why(error))??;
            return Ok(found.map_or(NamedChannel::DirectWith(peer), NamedChannel::Existing));
        }
        let states = self.router.states_of(user).await?;
        let id = words.parse::<u64>().ok();
        let fits: Vec<ChannelId> = states
            .iter()
            .filter(|state| id.map_or(state.name == words, |id| state.channel == id))
            .map(|state| ChannelId(state.channel))
            .collect();
        match fits.as_slice() {
            [] => Err(none()),
            [one] => Ok(NamedChannel::Existing(*one)),
            several => {
                let ids: Vec<String> = several.iter().map(ChannelId::to_string).collect();
                Err(Failure::new(Code::BAD_FIELD, format!("{} channels are called `{words}`", several.len()))
                    .why(format!("their ids: {}", ids.join(", "))))
            }
        }
    }

    /// As [`Self::named_channel`], where something must have been said.
    ///
    /// # Errors
    /// NO_SUCH_NAME also where nothing was.
    pub async fn existing_channel(&self, user: UserId, words: &str) -> Outcome<ChannelId> {
        match self.named_channel(user, words).await? {
            NamedChannel::Existing(channel) => Ok(channel),
            NamedChannel::DirectWith(_) => Err(Failure::new(
                Code::NO_SUCH_NAME,
                format!("nothing was said between this user and {words} yet"),
            )),
        }
    }

    /// Who is in a channel.
    ///
    /// # Errors
    /// Of the router.
    pub async fn members(&self, channel: ChannelId) -> Outcome<Vec<Value>> {
        let summary = self.router.describe(channel, None).await?.ok_or(Code::NOT_A_MEMBER)?;
        let mut names = Names::new(&self.router);
        let mut members = Vec::with_capacity(summary.members.len());
        for member in &summary.members {
            members.push(json!({
                "user": member.user.to_string(),
                "name": names.of(member.user).await?,
                "role": role_name(member.role.into()),
                "joined_seq": member.joined_seq,
                "delivered": member.cursor.delivered,
                "read": member.cursor.read,
            }));
        }
        Ok(members)
    }

    /// The newest messages that the user may see, oldest first.
    ///
    /// # Errors
    /// Of the router.
    pub async fn history(&self, user: UserId, channel: ChannelId, limit: u32) -> Outcome<Vec<Value>> {
        Ok(self.history_before(user, channel, 0, limit).await?.0)
    }

    /// The newest messages below the seq `before` (0: below the head's end) that the user may see, oldest first; and the seq to
    /// ask on below, where something older may be there.
    ///
    /// # Errors
    /// Of the router.
    pub async fn history_before(
        &self,
        user: UserId,
        channel: ChannelId,
        mut before: u64,
        limit: u32,
    ) -> Outcome<(Vec<Value>, Option<u64>)> {
        let mut messages = Vec::new();
        let next = loop {
            let messages_max = limit.saturating_sub(messages.len() as u32);
            let fetch = wire::Fetch { messages_max, before, ..wire::Fetch::default() };
            let pages = self.router.history(channel, Some(user), fetch).await?;
            let mut part = history::messages(&pages)?;
            part.append(&mut messages);
            messages = part;
            let first = pages.iter().filter(|page| page.first <= page.last).map(|page| page.first).min();
            let complete = pages.iter().any(|page| page.complete);
            match first {
                // One answer is bounded in bytes and entries: ask on, unless nothing older is there.
                Some(first) if !complete && first > 1 && first != before => {
                    before = first;
                    if messages.len() >= limit as usize {
                        break Some(first);
                    }
                }
                _ => break None,
            }
        };
        let mut names = Names::new(&self.router);
        let mut rows = Vec::with_capacity(messages.len());
        for message in &messages {
            rows.push(message.json(&names.of(message.sender).await?));
        }
        Ok((rows, next))
    }

    /// A user's live sessions.
    ///
    /// # Errors
    /// Of the router.
    pub async fn sessions(&self, user: UserId) -> Outcome<Vec<Value>> {
        let sessions = self.router.sessions(user).await?;
        let row = |session: &fanfare_router::SessionSummary| {
            json!({
                "session": session.session.to_string(),
                "user": session.user.to_string(),
                "device": session.device.to_string(),
                "device_name": session.device_name,
                "gateway": session.gateway.0,
                "since_ms": session.since_ms,
                "since": clock::rfc3339(session.since_ms),
            })
        };
        Ok(sessions.iter().map(row).collect())
    }

    /// How the router stands.
    ///
    /// # Errors
    /// RETRY_LATER where it has stopped.
    pub async fn status(&self) -> Outcome<Status> {
        Ok(self.router.status().await?)
    }

    /// Walks the stores against each other.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn reconcile(&self) -> Outcome<Value> {
        let stores = self.stores.clone();
        let walked = tokio::task::spawn_blocking(move || stores::walk(&stores)).await;
        walked.map_err(|error| Failure::internal("the walk failed").why(error))?
    }
}

/// A client message id of the server's own people.
fn fresh_id() -> Outcome<ClientMessageId> {
    let mut random = [0; 10];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Failure::internal("the system has no random numbers"))?;
    Ok(ClientMessageId::new(clock::now_ms(), random))
}

/// A member of a channel.
#[derive(Clone, Debug)]
pub struct MemberRow {
    /// Who.
    pub user: UserId,
    /// As people see it.
    pub name: String,
    /// Its role.
    pub role: &'static str,
    /// How far it has read.
    pub read: u64,
}

/// Users' names, each asked for once.
struct Names<'a> {
    router: &'a Admin,
    known: HashMap<UserId, String>,
}

impl<'a> Names<'a> {
    fn new(router: &'a Admin) -> Self {
        Self { router, known: HashMap::new() }
    }

    async fn of(&mut self, user: UserId) -> Result<String, Code> {
        if let Some(name) = self.known.get(&user) {
            return Ok(name.clone());
        }
        let found = self.router.user(user).await?;
        let name = found.map_or_else(|| user.to_string(), |user| user.name);
        self.known.insert(user, name.clone());
        Ok(name)
    }
}

impl Serialize for NamedChannel {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Existing(channel) => json!({ "channel": channel.to_string() }),
            Self::DirectWith(peer) => json!({ "channel": null, "peer": peer.to_string() }),
        }
        .serialize(serializer)
    }
}

/// Names stand in command lines and beside ids: no spaces, no control characters, not digits alone.
pub(crate) fn check_name(name: &str) -> Outcome {
    let odd =
        |character: char| character.is_whitespace() || character.is_control() || "@/,".contains(character);
    if name.is_empty()
        || name.len() > USER_NAME_BYTES_MAX
        || name.contains(odd)
        || name.parse::<u64>().is_ok()
    {
        return Err(Failure::new(Code::BAD_FIELD, format!("`{name}` cannot be a user's name")).why(format!(
            "a name has 1 to {USER_NAME_BYTES_MAX} bytes, no spaces, none of @ / , and not digits alone"
        )));
    }
    Ok(())
}

fn role_name(role: i32) -> &'static str {
    match Role::try_from(role) {
        Ok(Role::Owner) => "owner",
        Ok(Role::Admin) => "admin",
        Ok(Role::Member) => "member",
        _ => "none",
    }
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_read_as_something_else_are_refused() {
        for good in ["alice", "member-12-3", "größe", "echo-bot", "a"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "12", "a b", "@a", "a/b", "a,b", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
