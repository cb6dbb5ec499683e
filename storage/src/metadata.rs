//! The metadata store: one SQL transaction per group commit is the acknowledgement.

use std::collections::HashMap;

use fanfare_proto::{ChannelId, DeviceId, MessageId, UserId};

use crate::{
    error::StoreError,
    model::{
        Activity, Channel, CursorBatch, Device, DevicePosition, Hash, Mark, Member, OutboxBatch, OutboxRow,
        ShardCommit, User, UserCursor,
    },
};

/// What stands in SQL. Methods block; owners call them on threads of their own (the committer's, the cursors', readers').
///
/// Implementations are `Sync`: reads run beside the one writer and see the newest committed state.
pub trait Metadata: Send + Sync + 'static {
    /// Commits all of `commits` in **one** transaction and returns when it is flushed, giving the number of its outbox
    /// row. A shard may have several parts, in its order. Per shard: its term is checked
    /// and its `last_id` moved (never back); channels are inserted, heads
    /// moved by compare-and-set, entries' metadata inserted, members, marks and settings written. One outbox row is stored that
    /// holds all entries' frames and list changes; `None` where there was no commit. Deletes the outbox rows in `drained` in the same transaction.
    ///
    /// *Atomicity*: all or nothing. *Durability*: on return. *Idempotence*: none; heads' compare-and-set refuses a second
    /// time. *Cost*: one flush, whatever the number of entries; nothing but time-ordered keys for messages.
    ///
    /// # Errors
    /// `Full`, `Unavailable`, `Fenced`, `HeadMoved`: nothing was changed. `Unknown`: read the heads under lock before
    /// anything else. `SyncFailed`: the process must end.
    fn commit(&self, commits: &[ShardCommit], drained: &[OutboxRow])
    -> Result<Option<OutboxRow>, StoreError>;

    /// Deletes outbox rows whose sinks have flushed, where no commit comes by to carry it.
    ///
    /// # Errors
    /// As of [`Self::commit`]; repeating is safe.
    fn forget_drained(&self, drained: &[OutboxRow]) -> Result<(), StoreError>;

    /// All outbox rows, ascending: read once at start, before anything is served.
    ///
    /// # Errors
    /// `Damaged` where a row does not decode or a frame does not match its hash.
    fn outbox(&self) -> Result<Vec<OutboxBatch>, StoreError>;

    /// The shard's (term, highest id given).
    ///
    /// # Errors
    /// `Unavailable`.
    fn shard(&self, shard: u16) -> Result<(u64, u64), StoreError>;

    /// A channel, if it exists.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`.
    fn channel(&self, channel: ChannelId) -> Result<Option<Channel>, StoreError>;

    /// The direct channel of a pair, if it exists.
    ///
    /// # Errors
    /// `Unavailable`.
    fn direct(&self, one: UserId, other: UserId) -> Result<Option<ChannelId>, StoreError>;

    /// Channels by ascending id above `after`, at most `limit`: for reconcile and `channel ls`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn channels(&self, after: ChannelId, limit: usize) -> Result<Vec<Channel>, StoreError>;

    /// All membership rows of a channel, past ones too, by user and joined_seq.
    ///
    /// # Errors
    /// `Unavailable`.
    fn members(&self, channel: ChannelId) -> Result<Vec<Member>, StoreError>;

    /// The membership rows of one user in a channel, past ones too, by joined_seq: costs the same in a channel of any size.
    ///
    /// # Errors
    /// `Unavailable`.
    fn stretches(&self, channel: ChannelId, user: UserId) -> Result<Vec<Member>, StoreError>;

    /// All marks of a channel, past their time too, by user and kind.
    ///
    /// # Errors
    /// `Unavailable`.
    fn marks(&self, channel: ChannelId) -> Result<Vec<Mark>, StoreError>;

    /// The channels the user is invited to, by ascending id, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn invitations(&self, user: UserId, after: ChannelId, limit: usize)
    -> Result<Vec<ChannelId>, StoreError>;

    /// Writes whether `user` takes direct messages from `blocked`. Durable on return. Gives `false`, and writes nothing,
    /// where the user blocks `most` others already.
    ///
    /// # Errors
    /// As of [`Self::commit`]; repeating is safe.
    fn block(&self, user: UserId, blocked: UserId, stands: bool, most: usize) -> Result<bool, StoreError>;

    /// Whom the user blocks, by ascending id.
    ///
    /// # Errors
    /// `Unavailable`.
    fn blocks(&self, user: UserId) -> Result<Vec<UserId>, StoreError>;

    /// Whether the user blocks the other.
    ///
    /// # Errors
    /// `Unavailable`.
    fn is_blocked(&self, user: UserId, other: UserId) -> Result<bool, StoreError>;

    /// Which channels the user is a member of now, by the memberships themselves (slow: for reconcile).
    ///
    /// # Errors
    /// `Unavailable`.
    fn memberships(&self, user: UserId) -> Result<Vec<ChannelId>, StoreError>;

    /// Stored (channel, seq, hash) of entries by message id, for the check of what content returned.
    ///
    /// # Errors
    /// `Unavailable`.
    fn hashes(&self, ids: &[MessageId]) -> Result<HashMap<MessageId, (ChannelId, u64, Hash)>, StoreError>;

    /// Entries' (message id, channel, epoch, seq, hash) by ascending message id above `after`, at most `limit`: the walk
    /// of reconcile and scrub.
    ///
    /// # Errors
    /// `Unavailable`.
    fn walk(&self, after: MessageId, limit: usize) -> Result<Vec<WalkedEntry>, StoreError>;

    /// Makes a user, and moves the `last_id` of the id's shard (never back). Durable on return.
    ///
    /// # Errors
    /// `HeadMoved` is never returned; a taken name gives `Ok(false)`.
    fn add_user(&self, user: &User) -> Result<bool, StoreError>;

    /// A user by id.
    ///
    /// # Errors
    /// `Unavailable`.
    fn user(&self, user: UserId) -> Result<Option<User>, StoreError>;

    /// A user by name.
    ///
    /// # Errors
    /// `Unavailable`.
    fn user_named(&self, name: &str) -> Result<Option<User>, StoreError>;

    /// Users by ascending id above `after`.
    ///
    /// # Errors
    /// `Unavailable`.
    fn users(&self, after: UserId, limit: usize) -> Result<Vec<User>, StoreError>;

    /// Raises the device's generation: its resume secrets are void. Returns the new one. Durable on return.
    ///
    /// # Errors
    /// As of [`Self::commit`].
    fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<u32, StoreError>;

    /// Writes cursors, positions and devices, merged as maxima, in one transaction apart from the commit path, flushed
    /// on return (a second database file where the engine has one writer).
    ///
    /// # Errors
    /// As of [`Self::commit`]; repeating is safe.
    fn write_cursors(&self, batch: &CursorBatch) -> Result<(), StoreError>;

    /// Cursors of a channel, all members'.
    ///
    /// # Errors
    /// `Unavailable`.
    fn cursors(&self, channel: ChannelId) -> Result<Vec<UserCursor>, StoreError>;

    /// How active members of a channel are, by user; those who never did anything have none.
    ///
    /// # Errors
    /// `Unavailable`.
    fn activities(&self, channel: ChannelId) -> Result<Vec<Activity>, StoreError>;

    /// One member's cursor; zeros where none is known.
    ///
    /// # Errors
    /// `Unavailable`.
    fn cursor(&self, channel: ChannelId, user: UserId) -> Result<UserCursor, StoreError> {
        let all = self.cursors(channel)?;
        let of_user = all.into_iter().find(|cursor| cursor.user == user);
        Ok(of_user.unwrap_or(UserCursor { channel, user, ..UserCursor::default() }))
    }

    /// Positions of one device.
    ///
    /// # Errors
    /// `Unavailable`.
    fn positions(&self, user: UserId, device: DeviceId) -> Result<Vec<DevicePosition>, StoreError>;

    /// Devices of a user.
    ///
    /// # Errors
    /// `Unavailable`.
    fn devices(&self, user: UserId) -> Result<Vec<Device>, StoreError>;

    /// The deployment's secrets by name ("client-ids", "resume", "tokens", ...), made at first use with `make`.
    ///
    /// # Errors
    /// As of [`Self::commit`].
    fn secret(&self, name: &str, make: &dyn Fn() -> Vec<u8>) -> Result<Vec<u8>, StoreError>;
}

/// One row of [`Metadata::walk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkedEntry {
    /// Its id.
    pub message_id: MessageId,
    /// Its channel.
    pub channel: ChannelId,
    /// The channel's epoch.
    pub epoch: u32,
    /// Its place.
    pub seq: u64,
    /// SHA-256 of its frame.
    pub hash: Hash,
}
