//! A metadata store whose commits fail as a test asks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex},
};

use fanfare_proto::{ChannelId, DeviceId, MessageId, UserId};
use fanfare_storage::{
    StoreError,
    metadata::{Metadata, WalkedEntry},
    model::{
        Activity, Channel, CursorBatch, Device, DevicePosition, Hash, Mark, Member, OutboxBatch, OutboxRow,
        ShardCommit, User, UserCursor,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Full,
    Unavailable,
    /// The outcome is unknown, and nothing was committed.
    UnknownBefore,
    /// The outcome is unknown, and all was committed.
    UnknownAfter,
}

/// Who passes waits while it is closed.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn set(&self, is_closed: bool) {
        *self.0.lock().unwrap() = is_closed;
        self.1.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.0.lock().unwrap();
        while *closed {
            closed = self.1.wait(closed).unwrap();
        }
    }
}

pub struct Faulty {
    inner: Arc<dyn Metadata>,
    plan: Mutex<VecDeque<Fault>>,
    /// Reads of heads and outbox fail: an unknown outcome stays unknown.
    pub blind: std::sync::atomic::AtomicBool,
    /// Commits stop here while it is closed,
    gate: Gate,
    /// and reads of channels here.
    channels_gate: Gate,
    pub commits: std::sync::atomic::AtomicU64,
    /// Every id is somebody's.
    pub everybody_exists: std::sync::atomic::AtomicBool,
    /// Stored hashes are given with one bit flipped.
    pub wrong_hashes: std::sync::atomic::AtomicBool,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Metadata>) -> Self {
        Self {
            inner,
            plan: Mutex::default(),
            blind: Default::default(),
            gate: Default::default(),
            channels_gate: Default::default(),
            commits: Default::default(),
            wrong_hashes: Default::default(),
            everybody_exists: Default::default(),
        }
    }

    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().unwrap().extend(faults);
    }

    pub fn clear(&self) {
        self.plan.lock().unwrap().clear();
    }

    pub fn close_gate(&self) {
        self.gate.set(true);
    }

    pub fn open_gate(&self) {
        self.gate.set(false);
    }

    pub fn hold_channels(&self, are_held: bool) {
        self.channels_gate.set(are_held);
    }

    fn is_blind(&self) -> Result<(), StoreError> {
        if self.blind.load(std::sync::atomic::Ordering::SeqCst) {
            Err(StoreError::Unavailable("blind".into()))
        } else {
            Ok(())
        }
    }
}

impl Metadata for Faulty {
    fn commit(
        &self,
        commits: &[ShardCommit],
        drained: &[OutboxRow],
    ) -> Result<Option<OutboxRow>, StoreError> {
        self.gate.pass();
        self.commits.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let fault = self.plan.lock().unwrap().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => self.inner.commit(commits, drained),
            Fault::Full => Err(StoreError::Full("test".into())),
            Fault::Unavailable => Err(StoreError::Unavailable("test".into())),
            Fault::UnknownBefore => Err(StoreError::Unknown("test".into())),
            Fault::UnknownAfter => {
                self.inner.commit(commits, drained)?;
                Err(StoreError::Unknown("test".into()))
            }
        }
    }

    fn forget_drained(&self, drained: &[OutboxRow]) -> Result<(), StoreError> {
        self.inner.forget_drained(drained)
    }

    fn outbox(&self) -> Result<Vec<OutboxBatch>, StoreError> {
        self.is_blind()?;
        self.inner.outbox()
    }

    fn shard(&self, shard: u16) -> Result<(u64, u64), StoreError> {
        self.inner.shard(shard)
    }

    fn channel(&self, channel: ChannelId) -> Result<Option<Channel>, StoreError> {
        self.channels_gate.pass();
        self.is_blind()?;
        self.inner.channel(channel)
    }

    fn direct(&self, one: UserId, other: UserId) -> Result<Option<ChannelId>, StoreError> {
        self.inner.direct(one, other)
    }

    fn channels(&self, after: ChannelId, limit: usize) -> Result<Vec<Channel>, StoreError> {
        self.inner.channels(after, limit)
    }

    fn members(&self, channel: ChannelId) -> Result<Vec<Member>, StoreError> {
        self.inner.members(channel)
    }

    fn stretches(&self, channel: ChannelId, user: UserId) -> Result<Vec<Member>, StoreError> {
        self.inner.stretches(channel, user)
    }

    fn marks(&self, channel: ChannelId) -> Result<Vec<Mark>, StoreError> {
        self.inner.marks(channel)
    }

    fn invitations(
        &self,
        user: UserId,
        after: ChannelId,
        limit: usize,
    ) -> Result<Vec<ChannelId>, StoreError> {
        self.inner.invitations(user, after, limit)
    }

    fn block(&self, user: UserId, blocked: UserId, stands: bool, most: usize) -> Result<bool, StoreError> {
        self.inner.block(user, blocked, stands, most)
    }

    fn blocks(&self, user: UserId) -> Result<Vec<UserId>, StoreError> {
        self.inner.blocks(user)
    }

    fn is_blocked(&self, user: UserId, other: UserId) -> Result<bool, StoreError> {
        self.inner.is_blocked(user, other)
    }

    fn memberships(&self, user: UserId) -> Result<Vec<ChannelId>, StoreError> {
        self.inner.memberships(user)
    }

    fn hashes(&self, ids: &[MessageId]) -> Result<HashMap<MessageId, (ChannelId, u64, Hash)>, StoreError> {
        let mut hashes = self.inner.hashes(ids)?;
        if self.wrong_hashes.load(std::sync::atomic::Ordering::SeqCst) {
            for (_, _, hash) in hashes.values_mut() {
                hash[0] ^= 1;
            }
        }
        Ok(hashes)
    }

    fn walk(&self, after: MessageId, limit: usize) -> Result<Vec<WalkedEntry>, StoreError> {
        self.inner.walk(after, limit)
    }

    fn add_user(&self, user: &User) -> Result<bool, StoreError> {
        self.inner.add_user(user)
    }

    fn user(&self, user: UserId) -> Result<Option<User>, StoreError> {
        let found = self.inner.user(user)?;
        let exists = self.everybody_exists.load(std::sync::atomic::Ordering::SeqCst);
        Ok(found.or_else(|| {
            exists.then(|| User { user, name: format!("user {user}"), flags: 0, tokens_from_s: 0 })
        }))
    }

    fn user_named(&self, name: &str) -> Result<Option<User>, StoreError> {
        self.inner.user_named(name)
    }

    fn users(&self, after: UserId, limit: usize) -> Result<Vec<User>, StoreError> {
        self.inner.users(after, limit)
    }

    fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<u32, StoreError> {
        self.inner.revoke_device(user, device)
    }

    fn write_cursors(&self, batch: &CursorBatch) -> Result<(), StoreError> {
        self.inner.write_cursors(batch)
    }

    fn cursors(&self, channel: ChannelId) -> Result<Vec<UserCursor>, StoreError> {
        self.inner.cursors(channel)
    }

    fn activities(&self, channel: ChannelId) -> Result<Vec<Activity>, StoreError> {
        self.inner.activities(channel)
    }

    fn positions(&self, user: UserId, device: DeviceId) -> Result<Vec<DevicePosition>, StoreError> {
        self.inner.positions(user, device)
    }

    fn devices(&self, user: UserId) -> Result<Vec<Device>, StoreError> {
        self.inner.devices(user)
    }

    fn secret(&self, name: &str, make: &dyn Fn() -> Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.inner.secret(name, make)
    }
}
