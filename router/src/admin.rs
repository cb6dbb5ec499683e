//! What the server's HTTP and commands ask of a router.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use fanfare_proto::{
    ChannelId, ClientMessageId, Code, DeviceId, SessionId, UserId,
    ids::direct_shard,
    link::{GatewayId, Tier},
    wire::{self, ChannelState},
};
use fanfare_storage::{
    StoreError,
    drain::{Drains, Status as DrainStatus},
    metadata::Metadata,
    model::{Channel, Device, Mark, OutboxRow, User, UserCursor},
    mutant,
};
use tokio::sync::oneshot;

use crate::{
    context::{Context, TierTimes},
    event::{AdminAsk, Block, Event, OpenAsk, OpenTarget, Touch},
    load::code_of,
    page::{self, PageAsk, Snapshot},
    push::{View, ViewAsk, Who},
};

/// Users that one user may block.
pub const BLOCKS_MAX: usize = 10_000;
/// How long devices that have just been seen are waited for.
const DEVICES_PATIENCE: Duration = Duration::from_secs(1);

/// A session, for people.
#[derive(Clone, Debug)]
pub struct SessionSummary {
    /// Whose.
    pub user: UserId,
    /// Its id.
    pub session: SessionId,
    /// On which device.
    pub device: DeviceId,
    /// As the client calls it.
    pub device_name: String,
    /// Where.
    pub gateway: GatewayId,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

/// A member, for people.
#[derive(Clone, Debug)]
pub struct MemberSummary {
    /// Who.
    pub user: UserId,
    /// `wire::Role`.
    pub role: u8,
    /// The entry by which it joined.
    pub joined_seq: u64,
    /// The first seq it may see.
    pub visible_from: u64,
    /// How far it has got.
    pub cursor: UserCursor,
}

/// A channel, for people.
#[derive(Clone, Debug)]
pub struct ChannelSummary {
    /// Its row.
    pub row: Channel,
    /// Members in all.
    pub members_total: usize,
    /// Those asked for, by user.
    pub members: Vec<MemberSummary>,
    /// Sessions that listen.
    pub sessions: usize,
    /// As it stands for the user asked about.
    pub state: Option<ChannelState>,
    /// Frames in the tail.
    pub tail_frames: usize,
}

/// What a session got of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handing {
    /// The entry was handed to its gateway for it.
    Sent,
    /// The head was: it fetches the entry when the user looks.
    Named,
    /// It waits for its tier's time, or for a gateway that is behind.
    Waits,
}

/// A session that listens, and an entry.
#[derive(Clone, Copy, Debug)]
pub struct SessionTrace {
    /// Whose.
    pub user: UserId,
    /// Its tier when the entry came.
    pub tier: Tier,
    /// It asked for everything.
    pub is_full: bool,
    /// What it got.
    pub handing: Handing,
    /// When, Unix milliseconds; `None` where it waits, or it is longer ago than is remembered.
    pub at_ms: Option<u64>,
}

/// A busy channel.
#[derive(Clone, Debug)]
pub struct Hot {
    /// Which.
    pub channel: ChannelId,
    /// Its name.
    pub name: String,
    /// Entries of the last minute.
    pub entries_per_min: u64,
    /// Sessions that listen.
    pub sessions: usize,
}

/// How much one shard holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardCounts {
    /// Channels loaded.
    pub channels: usize,
    /// Users loaded.
    pub users: usize,
    /// Sessions registered.
    pub sessions: usize,
    /// Listeners over all channels.
    pub listeners: usize,
    /// Entries that wait for their drains.
    pub undrained: usize,
    /// How often the times of passive sessions are doubled now; of all shards, the most. Those of warm ones from the third time on.
    pub stretched: u32,
}

/// How a router stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// Shards.
    pub shards: u16,
    /// Sums over the shards.
    pub counts: ShardCounts,
    /// Commits since the start.
    pub commits: u64,
    /// Entries since the start.
    pub entries: u64,
    /// The newest commit found no room.
    pub read_only: bool,
    /// No new sends are taken.
    pub draining: bool,
    /// Bytes of all tails.
    pub tail_bytes: usize,
    /// The drains.
    pub drains: DrainStatus,
}

/// A handle for the server's own people and programs. Cheap to clone. Once the router has ended every question is
/// answered `GOING_AWAY`.
#[derive(Clone)]
pub struct Admin {
    // Weak, so that a handle somebody keeps does not keep stores and drains open.
    context: Weak<Context>,
    drains: Weak<Drains>,
}

impl Admin {
    pub(crate) fn new(context: &Arc<Context>, drains: &Arc<Drains>) -> Self {
        Self { context: Arc::downgrade(context), drains: Arc::downgrade(drains) }
    }

    fn context(&self) -> Result<Arc<Context>, Code> {
        self.context.upgrade().ok_or(Code::GOING_AWAY)
    }

    async fn ask<T>(&self, shard: u16, ask: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Code> {
        let (reply, answer) = oneshot::channel();
        self.context()?.post(shard, ask(reply));
        answer.await.map_err(|_| Code::RETRY_LATER)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Metadata) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Code> {
        let metadata = Arc::clone(&self.context()?.metadata);
        let read = tokio::task::spawn_blocking(move || read(&*metadata));
        match read.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a question to the metadata store failed");
                Err(code_of(&error))
            }
            Err(_) => Err(Code::INTERNAL),
        }
    }

    /// Makes a user of that name with those flags (see [`User`]).
    ///
    /// # Errors
    /// `BAD_FIELD` for an empty or overlong name, `NAME_TAKEN`, `RETRY_LATER`.
    pub async fn create_user(&self, name: &str, flags: u32) -> Result<User, Code> {
        if name.is_empty() || name.len() > fanfare_proto::limits::NAME_BYTES_MAX {
            return Err(Code::BAD_FIELD);
        }
        let id = self.new_user_id(name).await?;
        let user = User { user: id, name: name.to_owned(), flags, tokens_from_s: 0 };
        let of_thread = user.clone();
        let added = self.read(move |metadata| metadata.add_user(&of_thread)).await?;
        if !added {
            return Err(Code::NAME_TAKEN);
        }
        self.user_made(id)?;
        Ok(user)
    }

    /// A user's row was made in SQL: that it was unknown before is forgotten.
    ///
    /// # Errors
    /// `GOING_AWAY`.
    pub fn user_made(&self, user: UserId) -> Result<(), Code> {
        let context = self.context()?;
        context.post(context.shard_of(user.shard()), Event::Admin(AdminAsk::Forget(user)));
        Ok(())
    }

    /// A user by id.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn user(&self, user: UserId) -> Result<Option<User>, Code> {
        self.read(move |metadata| metadata.user(user)).await
    }

    /// A user by name; nobody has one that is longer than `NAME_BYTES_MAX`.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn user_named(&self, name: &str) -> Result<Option<User>, Code> {
        if name.len() > fanfare_proto::limits::NAME_BYTES_MAX {
            return Ok(None);
        }
        let name = name.to_owned();
        self.read(move |metadata| metadata.user_named(&name)).await
    }

    /// Users by ascending id above `after`, at most `limit`.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn users(&self, after: UserId, limit: usize) -> Result<Vec<User>, Code> {
        self.read(move |metadata| metadata.users(after, limit)).await
    }

    /// Channels by ascending id above `after`, at most `limit`, as they stand in SQL.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn channels(&self, after: ChannelId, limit: usize) -> Result<Vec<Channel>, Code> {
        self.read(move |metadata| metadata.channels(after, limit)).await
    }

    /// The ids of a user's channels.
    ///
    /// # Errors
    /// `UNKNOWN_USER`, `RETRY_LATER`.
    pub async fn channels_of(&self, user: UserId) -> Result<Vec<ChannelId>, Code> {
        let shard = self.context()?.shard_of(user.shard());
        self.ask(shard, |reply| Event::Admin(AdminAsk::Channels(user, reply))).await
    }

    /// A user's channels as they stand for it, newest activity first.
    ///
    /// # Errors
    /// `UNKNOWN_USER`, `RETRY_LATER`.
    pub async fn states_of(&self, user: UserId) -> Result<Vec<ChannelState>, Code> {
        let mut states = Vec::new();
        for channel in self.channels_of(user).await? {
            if let Some(state) = self.describe(channel, Some(user)).await?.and_then(|summary| summary.state)
                && state.role != 0
            {
                states.push(state);
            }
        }
        states.sort_by_key(|state| std::cmp::Reverse(state.active_ms));
        Ok(states)
    }

    /// The channel of that name: among a user's channels where one is given, else among all. The newest where several
    /// have it.
    ///
    /// # Errors
    /// `NO_SUCH_NAME`, `RETRY_LATER`.
    pub async fn channel_named(&self, name: &str, user: Option<UserId>) -> Result<ChannelId, Code> {
        let mut found = None;
        match user {
            Some(user) => {
                let states = self.states_of(user).await?;
                found = states.iter().find(|state| state.name == name).map(|state| ChannelId(state.channel));
            }
            None => {
                let mut after = ChannelId(0);
                loop {
                    let some = self.channels(after, 1_000).await?;
                    let Some(last) = some.last() else { break };
                    after = last.channel;
                    found = some.iter().rev().find(|one| one.name == name).map(|one| one.channel).or(found);
                }
            }
        }
        found.ok_or(Code::NO_SUCH_NAME)
    }

    /// A channel with its members (all, or only the user given); `None` where there is none.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn describe(
        &self,
        channel: ChannelId,
        user: Option<UserId>,
    ) -> Result<Option<ChannelSummary>, Code> {
        let shard = self.context()?.shard_of(channel.shard());
        self.ask(shard, |reply| Event::Touch(channel, Touch::Describe(user, reply))).await
    }

    /// The user's role in a channel (`wire::Role`, 0: no member), and what stands for or against users there, by kind and
    /// user; `None` where there is no channel.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn marks(&self, channel: ChannelId, user: UserId) -> Result<Option<(u8, Vec<Mark>)>, Code> {
        let shard = self.context()?.shard_of(channel.shard());
        self.ask(shard, |reply| Event::Touch(channel, Touch::Marks(user, reply))).await
    }

    /// Makes a group whose owner is `owner`, as OPEN would; the same client message id gives the same group.
    ///
    /// # Errors
    /// `NO_SUCH_USER`, `BAD_FIELD`, `READ_ONLY`, `RETRY_LATER`, `OUTCOME_UNKNOWN`.
    pub async fn create_group(
        &self,
        owner: UserId,
        client_message_id: ClientMessageId,
        group: wire::Group,
    ) -> Result<ChannelId, Code> {
        self.open(owner, client_message_id, OpenTarget::Group(group)).await
    }

    /// The direct channel of a pair, made where it is not there.
    ///
    /// # Errors
    /// As of [`Self::create_group`].
    pub async fn open_direct(
        &self,
        one: UserId,
        other: UserId,
        client_message_id: ClientMessageId,
    ) -> Result<ChannelId, Code> {
        self.open(one, client_message_id, OpenTarget::Direct(other)).await
    }

    async fn open(&self, user: UserId, id: ClientMessageId, target: OpenTarget) -> Result<ChannelId, Code> {
        if self.user(user).await?.is_none() {
            return Err(Code::NO_SUCH_USER);
        }
        let (reply, answer) = oneshot::channel();
        let channels = self.channels_of(user).await.unwrap_or_default();
        let ask = OpenAsk {
            origin: None,
            request: 0,
            user,
            client_message_id: id,
            target,
            candidates: channels,
            reply: Some(Arc::new(Mutex::new(Some(reply)))),
        };
        crate::opens::route(&*self.context()?, ask)?;
        answer.await.map_err(|_| Code::RETRY_LATER)?
    }

    /// Pages of a channel's history, newest first, as FETCH gives them; with `reader` what that member may see, without all.
    ///
    /// # Errors
    /// `NOT_A_MEMBER`, `CORRUPT`, `RETRY_LATER`.
    pub async fn history(
        &self,
        channel: ChannelId,
        reader: Option<UserId>,
        fetch: wire::Fetch,
    ) -> Result<Vec<wire::Page>, Code> {
        let shard = self.context()?.shard_of(channel.shard());
        let memory: Option<Snapshot> =
            self.ask(shard, |reply| Event::Touch(channel, Touch::Snapshot(reply))).await?;
        let memory = memory.ok_or(Code::NOT_A_MEMBER)?;
        let context = self.context()?;
        let read = tokio::task::spawn_blocking(move || {
            let visible = match reader {
                None => smallvec::smallvec![(1, u64::MAX)],
                Some(user) => {
                    let rows = context.metadata.stretches(channel, user).map_err(|error| code_of(&error))?;
                    let unchecked = || {
                        mutant::is("page-over-http-skips-membership")
                            .then(|| smallvec::smallvec![(1, u64::MAX)])
                    };
                    let visible = crate::members::Members::of_rows(&rows).visible(user);
                    visible.or_else(unchecked).ok_or(Code::NOT_A_MEMBER)?
                }
            };
            let place = (memory.epoch, memory.head);
            let ask = PageAsk::new(&fetch, channel, place, visible, reader.unwrap_or_default());
            page::from_stores(&ask, &memory, &*context.metadata, &*context.content)
                .map_err(|error| code_of(&error))
        });
        read.await.map_err(|_| Code::INTERNAL)?
    }

    /// Writes whether `user` takes direct messages from `other`; counts once this returns.
    ///
    /// # Errors
    /// `BAD_FIELD` for oneself, `NO_SUCH_USER`, `CHANNEL_FULL` beyond [`BLOCKS_MAX`], `READ_ONLY`, `RETRY_LATER`.
    pub async fn block(&self, user: UserId, other: UserId, stands: bool) -> Result<(), Code> {
        if user == other {
            return Err(Code::BAD_FIELD);
        }
        let context = self.context()?;
        let order = Arc::clone(&context.block_order);
        let write = move |metadata: &dyn Metadata| {
            if metadata.user(other)?.is_none() {
                return Ok(Err(Code::NO_SUCH_USER));
            }
            let mut last = order.lock().unwrap_or_else(PoisonError::into_inner);
            let written = metadata.block(user, other, stands, BLOCKS_MAX)?;
            *last += 1;
            Ok(if written { Ok(*last) } else { Err(Code::CHANNEL_FULL) })
        };
        let block = Block { user, stands, order: self.read(write).await?? };
        // A channel of the two that is being made has looked already; one that is made or read from now on sees the row.
        let shard = direct_shard(user, other, context.config.shards).0;
        self.ask(shard, |reply| Event::Admin(AdminAsk::Blocked(block, other, reply))).await?;
        let Some(channel) = self.read(move |metadata| metadata.direct(user, other)).await? else {
            return Ok(());
        };
        self.ask(context.shard_of(channel.shard()), |reply| {
            Event::Touch(channel, Touch::Blocked { block, reply })
        })
        .await
    }

    /// Whom the user blocks.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn blocks(&self, user: UserId) -> Result<Vec<UserId>, Code> {
        self.read(move |metadata| metadata.blocks(user)).await
    }

    /// The channels above `after` that the user is invited to, by ascending id, with their names, at most `limit`.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn invitations(
        &self,
        user: UserId,
        after: ChannelId,
        limit: usize,
    ) -> Result<Vec<(ChannelId, String)>, Code> {
        self.read(move |metadata| {
            let mut found = Vec::new();
            for channel in metadata.invitations(user, after, limit)? {
                found.extend(metadata.channel(channel)?.map(|row| (channel, row.name)));
            }
            Ok(found)
        })
        .await
    }

    /// A channel for pushes, with the members asked about and the frames asked for; `None` where there is no channel.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn view(&self, channel: ChannelId, who: Who, frames: Vec<u64>) -> Result<Option<View>, Code> {
        let shard = self.context()?.shard_of(channel.shard());
        let ask = |reply| Event::Touch(channel, Touch::View(Box::new(ViewAsk { who, frames, reply })));
        self.ask(shard, ask).await
    }

    /// When sessions of these users last came or went, Unix milliseconds; those who never had one are left out. The same work in
    /// the stores for each of them.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn seen(&self, users: Vec<UserId>) -> Result<Vec<(UserId, u64)>, Code> {
        let context = self.context()?;
        self.read(move |metadata| {
            context.cursors.settle(DEVICES_PATIENCE);
            let mut seen = Vec::with_capacity(users.len());
            for user in users {
                let newest = metadata.devices(user)?.iter().map(|device| device.seen_ms).max();
                seen.extend(newest.map(|seen_ms| (user, seen_ms)));
            }
            Ok(seen)
        })
        .await
    }

    /// A user's sessions.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn sessions(&self, user: UserId) -> Result<Vec<SessionSummary>, Code> {
        let shard = self.context()?.shard_of(user.shard());
        self.ask(shard, |reply| Event::Admin(AdminAsk::Sessions(user, reply))).await
    }

    /// Ends a user's sessions (of one device, where given) with that error; gives how many.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn kick(&self, user: UserId, device: Option<DeviceId>, code: Code) -> Result<usize, Code> {
        let shard = self.context()?.shard_of(user.shard());
        self.ask(shard, |reply| Event::Admin(AdminAsk::Kick(user, device, code, reply))).await
    }

    /// Voids a device's resume secrets, durably, and ends its sessions; gives how many.
    ///
    /// # Errors
    /// `RETRY_LATER`, `READ_ONLY`.
    pub async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<usize, Code> {
        let generation = self.read(move |metadata| metadata.revoke_device(user, device)).await?;
        let shard = self.context()?.shard_of(user.shard());
        self.ask(shard, |reply| Event::Admin(AdminAsk::Revoked(user, device, generation, reply))).await
    }

    /// The user's row was changed in SQL so that what it proved itself with is void: ends its sessions with that error, and voids
    /// the resume secrets of all its devices, durably, before it returns.
    ///
    /// # Errors
    /// `RETRY_LATER`, `READ_ONLY`: repeat it.
    pub async fn revoke_user(&self, row: User, code: Code) -> Result<(), Code> {
        let user = row.user;
        let shard = self.context()?.shard_of(user.shard());
        let known = self.ask(shard, |reply| Event::Admin(AdminAsk::UserRevoked(row, code, reply))).await?;
        let stored = self.read(move |metadata| metadata.devices(user)).await?;
        let mut devices: Vec<DeviceId> =
            known.into_iter().chain(stored.into_iter().map(|device| device.device)).collect();
        devices.sort_unstable();
        devices.dedup();
        for device in devices {
            self.revoke_device(user, device).await?;
        }
        Ok(())
    }

    /// A user's devices, those included whose sessions have just opened.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn devices(&self, user: UserId) -> Result<Vec<Device>, Code> {
        let context = self.context()?;
        self.read(move |metadata| {
            context.cursors.settle(DEVICES_PATIENCE);
            metadata.devices(user)
        })
        .await
    }

    /// A new id of a user of that name: any shard will do, and names spread over all.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn new_user_id(&self, name: &str) -> Result<UserId, Code> {
        let mixed = crate::send::fingerprint(name.as_bytes());
        let shard = (mixed % u64::from(self.context()?.config.shards)) as u16;
        self.ask(shard, |reply| Event::Admin(AdminAsk::NewId(reply))).await.map(UserId)
    }

    /// How the router stands.
    ///
    /// # Errors
    /// `RETRY_LATER` where a shard has ended.
    pub async fn status(&self) -> Result<Status, Code> {
        let mut counts = ShardCounts::default();
        for shard in 0..self.context()?.config.shards {
            let of = self.ask(shard, |reply| Event::Admin(AdminAsk::Counts(reply))).await?;
            counts.channels += of.channels;
            counts.users += of.users;
            counts.sessions += of.sessions;
            counts.listeners += of.listeners;
            counts.undrained += of.undrained;
            counts.stretched = counts.stretched.max(of.stretched);
        }
        let drains = self.drains.upgrade().map(|drains| drains.status()).unwrap_or_default();
        let context = self.context()?;
        Ok(Status {
            shards: context.config.shards,
            counts,
            commits: context.committed.0.load(Ordering::Relaxed),
            entries: context.committed.1.load(Ordering::Relaxed),
            read_only: context.read_only.load(Ordering::Relaxed) || drains.read_only,
            draining: context.draining.load(Ordering::Relaxed),
            tail_bytes: context.tail_bytes.load(Ordering::Relaxed),
            drains,
        })
    }

    /// The busiest channels, at most so many.
    ///
    /// # Errors
    /// `RETRY_LATER` where a shard has ended.
    pub async fn hottest(&self, max: usize) -> Result<Vec<Hot>, Code> {
        let mut all = Vec::new();
        for shard in 0..self.context()?.config.shards {
            all.extend(self.ask(shard, |reply| Event::Admin(AdminAsk::Hottest(max, reply))).await?);
        }
        all.sort_by_key(|hot| std::cmp::Reverse(hot.entries_per_min));
        all.truncate(max);
        Ok(all)
    }

    /// What sessions of these users got of an entry; none of those who are not there.
    ///
    /// # Errors
    /// `RETRY_LATER`.
    pub async fn trace(
        &self,
        channel: ChannelId,
        seq: u64,
        users: Vec<UserId>,
    ) -> Result<Vec<SessionTrace>, Code> {
        let shard = self.context()?.shard_of(channel.shard());
        self.ask(shard, |reply| Event::Touch(channel, Touch::Trace(seq, users, reply))).await
    }

    /// How long each tier waits.
    ///
    /// # Errors
    /// `GOING_AWAY`.
    pub fn tier_times(&self) -> Result<TierTimes, Code> {
        Ok(self.context()?.config.tiers)
    }

    /// (row, channel, seq) of every entry whose row is not drained, for reconcile.
    ///
    /// # Errors
    /// `RETRY_LATER` where a shard has ended.
    pub async fn undrained(&self) -> Result<Vec<(OutboxRow, ChannelId, u64)>, Code> {
        let mut all = Vec::new();
        for shard in 0..self.context()?.config.shards {
            all.extend(self.ask(shard, |reply| Event::Admin(AdminAsk::Undrained(reply))).await?);
        }
        Ok(all)
    }
}
