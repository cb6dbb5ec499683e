//! What people and programs of the server's own may ask: users and tokens, channels and their history, sessions, and how
//! things stand. It turns names into ids, asks the router, and gives rows that serialise.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fanfare_client::Entry;
use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, Frame, MessageId, UserId,
    wire::{self, ChannelKind, ChannelState, HistoryPolicy, JoinPolicy, PostingPolicy, Role, entry::Content},
};
use fanfare_router::{Admin, Handing, Hot, SessionTrace, Status, TierTimes};
use fanfare_storage::{
    StoreError,
    model::{Mark, MarkKind, User},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    clock,
    failure::{Failure, Outcome},
    history,
    node::stores::{self, Stores},
    token::{IssuedToken, TokenIssuer, hex},
};

/// Bytes of a user's name.
pub const USER_NAME_BYTES_MAX: usize = 64;
/// Members that one trace names; all are counted.
const TRACE_MEMBERS_MAX: usize = 1_000;
/// Busy channels that the status names.
const HOTTEST_MAX: usize = 5;
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
    /// Cannot connect or sign in.
    pub disabled: bool,
    /// May use `/admin/v1` with its own token.
    pub administrator: bool,
    /// Tokens issued before this time are void, Unix seconds.
    #[serde(skip)]
    pub tokens_from_s: u64,
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
    /// What a joiner sees: `from_join` or `all`.
    pub history: &'static str,
    /// Who may come in: `open_to_all`, `by_request` or `by_invitation`.
    pub join: &'static str,
    /// Who may send messages: `every_member` or `admins_only`.
    pub posting: &'static str,
    /// Until when the user may send nothing, Unix milliseconds; 0 for no end; none where it may.
    pub muted_until_ms: Option<u64>,
    /// Unix milliseconds of the newest entry.
    pub active_ms: u64,
}

/// What stands for or against a user in a channel.
#[derive(Clone, Debug)]
pub struct MarkRow {
    /// As the channel has it.
    pub mark: Mark,
    /// The user's name.
    pub name: String,
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
            disabled: user.flags & User::DISABLED != 0,
            administrator: user.flags & User::ADMINISTRATOR != 0,
            tokens_from_s: user.tokens_from_s,
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
            .ok_or_else(|| Failure::new(Code::NO_SUCH_NAME, format!("no user `{}` exists", quoted(name))))
    }

    /// A token.
    ///
    /// # Errors
    /// Signing failed.
    pub fn token(&self, user: &UserRow, ttl: Duration) -> Outcome<IssuedToken> {
        // A revocation of this very second voids what came before it, not this.
        let issued = self.issuer.issue(user.user, ttl, clock::now_ms().max(user.tokens_from_s * 1000));
        issued.map_err(|error| Failure::internal("no token could be issued").why(format!("{error:#}")))
    }

    /// Makes a group with its first members, by name or id.
    ///
    /// # Errors
    /// NO_SUCH_NAME, BAD_FIELD, and of the router.
    pub async fn create_group(&self, owner: UserId, name: &str, members: &[String]) -> Outcome<ChannelRow> {
        if name.trim().is_empty() || name.starts_with('@') || name.parse::<u64>().is_ok() {
            return Err(Failure::new(
                Code::BAD_FIELD,
                format!("`{}` cannot be a group's name", quoted(name)),
            )
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

    /// Who is muted, banned, invited, or asked to join, by kind and user, `limit` of them behind the first `skip`; and how
    /// many there are.
    ///
    /// # Errors
    /// NOT_A_MEMBER, FORBIDDEN below admin, and of the router.
    pub async fn marks(
        &self,
        user: UserId,
        channel: ChannelId,
        skip: usize,
        limit: usize,
    ) -> Outcome<(Vec<MarkRow>, usize)> {
        let (role, marks) = self.router.marks(channel, user).await?.ok_or(Code::NOT_A_MEMBER)?;
        if role == 0 {
            return Err(Failure::of(Code::NOT_A_MEMBER));
        }
        if i32::from(role) < Role::Admin as i32 {
            return Err(Failure::of(Code::FORBIDDEN));
        }
        let mut names = Names::new(&self.router);
        let total = marks.len();
        let mut rows = Vec::new();
        for mark in marks.into_iter().skip(skip).take(limit) {
            rows.push(MarkRow { mark, name: names.of(mark.user).await? });
        }
        Ok((rows, total))
    }

    /// Channels above `after` that the user is invited to, by ascending id, with their names, at most `limit`.
    ///
    /// # Errors
    /// Of the router.
    pub async fn invitations(
        &self,
        user: UserId,
        after: ChannelId,
        limit: usize,
    ) -> Outcome<Vec<(ChannelId, String)>> {
        Ok(self.router.invitations(user, after, limit).await?)
    }

    /// Writes whether the user takes direct messages from the other.
    ///
    /// # Errors
    /// NO_SUCH_USER, BAD_FIELD, CHANNEL_FULL, and of the router.
    pub async fn block(&self, user: UserId, other: UserId, stands: bool) -> Outcome<()> {
        Ok(self.router.block(user, other, stands).await?)
    }

    /// Whom the user blocks, by ascending id above `after`, with their names, at most `limit`.
    ///
    /// # Errors
    /// Of the router.
    pub async fn blocks(&self, user: UserId, after: UserId, limit: usize) -> Outcome<Vec<(UserId, String)>> {
        let mut names = Names::new(&self.router);
        let mut rows = Vec::new();
        let others = self.router.blocks(user).await?;
        for other in others.into_iter().filter(|other| *other > after).take(limit) {
            rows.push((other, names.of(other).await?));
        }
        Ok(rows)
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
            history: history_name(state.history),
            join: join_name(state.join),
            posting: posting_name(state.posting),
            muted_until_ms: state.muted.then_some(state.muted_until_ms).filter(is_ahead),
            active_ms: state.active_ms,
        })
    }

    /// What `words` mean to that user: a name among its channels, `@name`, or an id.
    ///
    /// # Errors
    /// NO_SUCH_NAME, also for channels that the user is no member of; BAD_FIELD where several have the name.
    pub async fn named_channel(&self, user: UserId, words: &str) -> Outcome<NamedChannel> {
        let none =
            || Failure::new(Code::NO_SUCH_NAME, format!("this user is in no channel `{}`", quoted(words)));
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
                Err(Failure::new(
                    Code::BAD_FIELD,
                    format!("{} channels are called `{}`", several.len(), quoted(words)),
                )
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
        Ok(self.history_before(user, channel, 0, 0, limit).await?.0)
    }

    /// The newest messages below the seq `before` (0: below the head's end) and before the time `before_ms` (Unix
    /// milliseconds, 0: whenever) that the user may see, oldest first; and the seq to ask on below, where something older may be there.
    ///
    /// # Errors
    /// Of the router.
    pub async fn history_before(
        &self,
        user: UserId,
        channel: ChannelId,
        mut before: u64,
        mut before_ms: u64,
        limit: u32,
    ) -> Outcome<(Vec<Value>, Option<u64>)> {
        let mut messages = Vec::new();
        let next = loop {
            let messages_max = limit.saturating_sub(messages.len() as u32);
            let fetch = wire::Fetch { messages_max, before, before_ms, ..wire::Fetch::default() };
            let pages = self.router.history(channel, Some(user), fetch).await?;
            before_ms = 0;
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

    /// Ends a user's sessions (of one device, where given): its clients have to sign in again. Gives how many.
    ///
    /// # Errors
    /// Of the router.
    pub async fn kick(&self, user: UserId, device: Option<DeviceId>) -> Outcome<usize> {
        Ok(self.router.kick(user, device, Code::REVOKED).await?)
    }

    /// A user's devices, with how many sessions each has now.
    ///
    /// # Errors
    /// Of the stores and the router.
    pub async fn devices(&self, user: UserId) -> Outcome<Vec<Value>> {
        let mut live: HashMap<DeviceId, (String, usize)> = HashMap::new();
        for session in self.router.sessions(user).await? {
            live.entry(session.device).or_insert((session.device_name, 0)).1 += 1;
        }
        let kept = self.router.devices(user).await?;
        let mut rows: Vec<Value> = Vec::new();
        for device in kept {
            let sessions = live.remove(&device.device).map_or(0, |(_, sessions)| sessions);
            rows.push(json!({
                "user": user.to_string(),
                "device": device.device.to_string(),
                "name": device.name,
                "sessions": sessions,
                "generation": device.generation,
                "seen_ms": device.seen_ms,
            }));
        }
        // Those that came just now are written a moment later.
        let mut fresh: Vec<_> = live.into_iter().collect();
        fresh.sort_unstable_by_key(|(device, _)| *device);
        rows.extend(fresh.into_iter().map(|(device, (name, sessions))| {
            json!({
                "user": user.to_string(),
                "device": device.to_string(),
                "name": name,
                "sessions": sessions,
                "generation": 0,
                "seen_ms": clock::now_ms(),
            })
        }));
        Ok(rows)
    }

    /// What decides about tokens: names, public keys, the clock, and whether a user is there.
    ///
    /// # Errors
    /// Of the stores.
    pub async fn trust(&self, user: Option<UserId>) -> Outcome<Value> {
        let found = match user {
            Some(user) => self.router.user(user).await?,
            None => None,
        };
        Ok(json!({
            "issuer": self.issuer.issuer(),
            "audience": self.issuer.audience(),
            "keys": [{ "kid": self.issuer.kid(), "public": hex(self.issuer.public_key()) }],
            "now_ms": clock::now_ms(),
            "user": found.map(|user| json!({ "name": user.name, "disabled": user.flags & User::DISABLED != 0 })),
        }))
    }

    /// The channel of that id, or of that name among all.
    ///
    /// # Errors
    /// NO_SUCH_NAME.
    pub async fn any_channel(&self, words: &str) -> Outcome<ChannelId> {
        let none = || Failure::new(Code::NO_SUCH_NAME, format!("there is no channel `{}`", quoted(words)));
        match words.parse::<u64>() {
            Ok(id) => Ok(ChannelId(id)),
            Err(_) => self.router.channel_named(words, None).await.map_err(|code| match code {
                Code::NO_SUCH_NAME => none(),
                code => code.into(),
            }),
        }
    }

    /// How a channel stands.
    ///
    /// # Errors
    /// NO_SUCH_NAME, and of the router.
    pub async fn channel_info(&self, channel: ChannelId) -> Outcome<Value> {
        let summary = self.router.describe(channel, Some(UserId(0))).await?;
        let summary = summary
            .ok_or_else(|| Failure::new(Code::NO_SUCH_NAME, format!("there is no channel `{channel}`")))?;
        let row = &summary.row;
        let direct = i32::from(row.kind) == ChannelKind::Direct as i32;
        let mut names = Names::new(&self.router);
        let mut pair = Vec::new();
        if direct {
            for user in [row.pair.0, row.pair.1] {
                pair.push(names.of(user).await?);
            }
        }
        Ok(json!({
            "channel": row.channel.to_string(),
            "kind": if direct { "direct" } else { "group" },
            "name": row.name,
            "pair": pair,
            "epoch": row.epoch,
            "head": row.head,
            "ordinal": row.ordinal,
            "message": row.message_id.to_string(),
            "active_ms": if row.message_id.is_none() { 0 } else { row.message_id.time_ms() },
            "members": summary.members_total,
            "listeners": summary.sessions,
            "tail_frames": summary.tail_frames,
            "history": history_name(row.history.into()),
            "join": join_name(row.join.into()),
            "posting": posting_name(row.posting.into()),
        }))
    }

    /// Where a message is: its place, its bytes, and how far each member has got.
    ///
    /// # Errors
    /// NO_SUCH_NAME, and of the stores and the router.
    pub async fn trace(&self, id: MessageId) -> Outcome<Value> {
        let found = self.read(move |stores| Ok(stores.metadata.hashes(&[id])?.remove(&id))).await?;
        let (channel, seq, hash) =
            found.ok_or_else(|| Failure::new(Code::NO_SUCH_NAME, format!("there is no message `{id}`")))?;
        let undrained = self.router.undrained().await?;
        let outbox = undrained.iter().any(|(_, of, at)| (*of, *at) == (channel, seq));
        let kept = self.read(move |stores| stores.content.range(channel, seq, seq, 1, usize::MAX)).await?;
        let content = kept.into_iter().next().map(|stored| stored.frame);
        let frame = match &content {
            Some(frame) => Some(frame.clone()),
            None => self.frame_in_memory(channel, seq).await?,
        };
        let hash_matches = content.as_ref().map(|frame| fanfare_storage::hash::frame(frame) == hash);
        let entry = match frame {
            Some(frame) => {
                Frame::iter(frame).next().transpose()?.map(|frame| Entry::decode(&frame)).transpose()?
            }
            None => None,
        };
        let summary = self.router.describe(channel, None).await?.ok_or(Code::RETRY_LATER)?;
        let mut names = Names::new(&self.router);
        let sender = entry.as_ref().map(|entry| entry.sender);
        let named: Vec<UserId> =
            summary.members.iter().take(TRACE_MEMBERS_MAX).map(|member| member.user).collect();
        let sessions = self.router.trace(channel, seq, named).await?;
        let times = self.router.tier_times()?;
        let mut members = Vec::new();
        let (mut delivered_total, mut read_total) = (0, 0);
        for member in &summary.members {
            let sent = sender == Some(member.user);
            let visible = member.visible_from <= seq;
            let (delivered, read) = (
                visible && (sent || member.cursor.delivered >= seq),
                visible && (sent || member.cursor.read >= seq),
            );
            delivered_total += u64::from(delivered);
            read_total += u64::from(read);
            if members.len() < TRACE_MEMBERS_MAX {
                let sessions: Vec<Value> =
                    sessions.iter().filter(|session| session.user == member.user).map(session_row).collect();
                members.push(json!({
                    "user": member.user.to_string(),
                    "sessions": sessions,
                    "name": names.of(member.user).await?,
                    "sender": sent,
                    "visible": visible,
                    "delivered": delivered,
                    "read": read,
                    "delivered_to": member.cursor.delivered,
                    "read_to": member.cursor.read,
                }));
            }
        }
        let sender_name = match sender {
            Some(UserId(0)) => "the server".to_owned(),
            Some(sender) => names.of(sender).await?,
            None => "unknown".to_owned(),
        };
        Ok(json!({
            "message": id.to_string(),
            "channel": channel.to_string(),
            "channel_name": summary.row.name,
            "epoch": entry.as_ref().map(|entry| entry.epoch),
            "seq": seq,
            "ordinal": entry.as_ref().map(|entry| entry.ordinal),
            "kind": entry.as_ref().map_or("unknown", kind_name),
            "sender": sender.map(|sender| sender.to_string()),
            "sender_name": sender_name,
            "time_ms": id.time_ms(),
            "time": clock::rfc3339(id.time_ms()),
            "stored": {
                "metadata": true,
                "content": content.is_some(),
                "outbox": outbox,
                "hash_matches": hash_matches,
            },
            "tiers": tier_bounds(&times),
            "members_total": summary.members_total,
            "delivered_total": delivered_total,
            "read_total": read_total,
            "members": members,
        }))
    }

    /// The frame of an entry that is not in content yet.
    async fn frame_in_memory(&self, channel: ChannelId, seq: u64) -> Outcome<Option<Bytes>> {
        let fetch =
            wire::Fetch { after: seq - 1, before: seq + 1, messages_max: 1, ..wire::Fetch::default() };
        let pages = self.router.history(channel, None, fetch).await?;
        Ok(pages.into_iter().map(|page| page.frames).find(|frames| !frames.is_empty()))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Stores) -> Result<T, StoreError> + Send + 'static,
    ) -> Outcome<T> {
        let stores = self.stores.clone();
        let read = tokio::task::spawn_blocking(move || read(&stores)).await;
        Ok(read.map_err(|error| Failure::internal("a reader failed").why(error))??)
    }

    /// How the router stands.
    ///
    /// # Errors
    /// RETRY_LATER where it has stopped.
    pub async fn status(&self) -> Outcome<Status> {
        Ok(self.router.status().await?)
    }

    /// How long each tier waits, and how often that is doubled now; the busiest channels.
    ///
    /// # Errors
    /// RETRY_LATER where the router has stopped.
    pub async fn fanout(&self, stretched: u32) -> Outcome<(Value, Value)> {
        let mut tiers = tier_bounds(&self.router.tier_times()?);
        tiers["passive_doubled"] = json!(stretched);
        let hottest = self.router.hottest(HOTTEST_MAX).await?;
        let row = |hot: Hot| {
            json!({
                "channel": hot.channel.to_string(),
                "name": hot.name,
                "entries_per_min": hot.entries_per_min,
                "sessions": hot.sessions,
            })
        };
        Ok((tiers, hottest.into_iter().map(row).collect()))
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

/// What a session got of an entry.
fn session_row(session: &SessionTrace) -> Value {
    let state = match session.handing {
        Handing::Sent => "sent",
        Handing::Named => "named",
        Handing::Waits => "waits",
    };
    json!({
        "tier": if session.is_full { "full" } else { session.tier.name() },
        "state": state,
        "at_ms": session.at_ms,
    })
}

/// Within how long each tier hears, milliseconds; at once where that is 0.
pub fn tier_bounds(times: &TierTimes) -> Value {
    json!({
        "by": if times.by_activity { "activity" } else { "nothing" },
        "visible_ms": 0,
        "active_ms": 0,
        "warm_ms": times.warm.as_millis() as u64,
        "passive_ms": times.passive.as_millis() as u64,
        "background_ms": times.background.as_millis() as u64,
    })
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
        return Err(Failure::new(Code::BAD_FIELD, format!("`{}` cannot be a user's name", quoted(name)))
            .why(format!(
                "a name has 1 to {USER_NAME_BYTES_MAX} bytes, no spaces, none of @ / , and not digits alone"
            )));
    }
    Ok(())
}

/// What somebody sent as a name, as far as an answer says it again.
fn quoted(name: &str) -> String {
    if name.len() <= USER_NAME_BYTES_MAX {
        return name.to_owned();
    }
    format!("{}…", &name[..name.floor_char_boundary(USER_NAME_BYTES_MAX)])
}

/// A mark's kind as JSON has it.
pub fn mark_name(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Muted => "muted",
        MarkKind::Banned => "banned",
        MarkKind::Invited => "invited",
        MarkKind::Requested => "requested",
        MarkKind::Declined => "declined",
    }
}

fn kind_name(entry: &Entry) -> &'static str {
    match entry.content {
        Some(Content::Message(_)) => "message",
        Some(Content::Edit(_)) => "edit",
        Some(Content::Recall(_)) => "recall",
        Some(Content::Reaction(_)) => "reaction",
        Some(Content::Membership(_)) => "membership",
        Some(Content::ChannelChange(_)) => "channel_change",
        None if entry.stub => "recalled message",
        None => "unknown",
    }
}

pub(crate) fn role_name(role: i32) -> &'static str {
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

/// As JSON has a history policy.
fn history_name(policy: i32) -> &'static str {
    if policy == HistoryPolicy::All as i32 { "all" } else { "from_join" }
}

/// As JSON has a join policy.
fn join_name(policy: i32) -> &'static str {
    match JoinPolicy::try_from(policy) {
        Ok(JoinPolicy::OpenToAll) => "open_to_all",
        Ok(JoinPolicy::ByRequest) => "by_request",
        Ok(JoinPolicy::ByInvitation | JoinPolicy::JoinDefault) | Err(_) => "by_invitation",
    }
}

/// As JSON has a posting policy.
fn posting_name(policy: i32) -> &'static str {
    if policy == PostingPolicy::AdminsOnly as i32 { "admins_only" } else { "every_member" }
}

/// Whether a mute until then goes on.
fn is_ahead(until_ms: &u64) -> bool {
    *until_ms == 0 || *until_ms > clock::now_ms()
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
