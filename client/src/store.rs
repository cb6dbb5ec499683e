//! What a client keeps: the queue of sends, and what it has seen. [`MemoryStore`] forgets it with the process, [`DiskStore`] does not; another
//! one is a type with four methods.

#[cfg(feature = "disk")]
mod disk;
mod memory;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Seq, UserId,
    session::client::{ChannelLog, DeviceState},
    wire,
};

#[cfg(feature = "disk")]
pub use disk::DiskStore;
pub use memory::MemoryStore;

/// Entries of one channel that a store keeps, by default: those within so many seqs of its newest.
pub const ENTRIES_KEPT: u64 = 1_000;

/// A store failed, or cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another client has it open: two would send the same queue.
    #[error("the store is open in another client: close that one, or use a store of your own")]
    Locked,
    /// It was written by another version, or is something else.
    #[error("the store cannot be read: {0}")]
    Format(String),
    /// Reading or writing failed.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Keeps what must outlive a client. Its methods may block for a flush of the disk, and are never called two at a time.
pub trait Store: Send + 'static {
    /// Everything but the entries, once, before anything else.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self) -> Result<Saved, StoreError>;

    /// Writes changes, all or none, in the order of the fields; they last as long as the store does when it returns.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    fn write(&mut self, changes: &Changes) -> Result<(), StoreError>;

    /// The DELIVER frames kept of a channel, ascending. Which are let go is the store's choice, but the lowest seqs of a channel go
    /// first, and none that lies below one that was let go is taken again.
    ///
    /// # Errors
    /// [`StoreError`].
    fn entries(&mut self, channel: ChannelId) -> Result<Vec<Bytes>, StoreError>;

    /// Whether it outlives the process.
    fn lasts(&self) -> bool;
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// Whose it is, and the installation's own numbers.
    pub installation: Installation,
    /// Channels as they stood.
    pub channels: Vec<wire::ChannelState>,
    /// What is held of them.
    pub logs: Vec<(ChannelId, ChannelLog)>,
    /// How far the user has read where the server may not know it yet: seq and ordinal.
    pub reads: Vec<(ChannelId, Seq, u64)>,
    /// The queue, in its order.
    pub sends: Vec<SavedSend>,
}

/// What a device keeps besides its channels; see [`DeviceState`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Installation {
    /// The user whose store this is; 0 before the first session.
    pub user: UserId,
    /// Number of the device; 0 before it is picked.
    pub device: fanfare_proto::DeviceId,
    /// Number of the last ACK made.
    pub ack_number: u64,
    /// Newest ACK that the server has confirmed.
    pub acks_confirmed: u64,
    /// Secret that opens the next session.
    pub resume: Bytes,
    /// End of its life.
    pub resume_until_ms: u64,
}

impl Installation {
    pub(crate) fn of(user: UserId, device: &DeviceState) -> Self {
        Self {
            user,
            device: device.device,
            ack_number: device.ack_number,
            acks_confirmed: device.acks_confirmed,
            resume: device.resume.clone(),
            resume_until_ms: device.resume_until_ms,
        }
    }
}

/// One send of the queue.
#[derive(Clone, PartialEq, Debug)]
pub struct SavedSend {
    /// Its place in the queue; later sends have higher ones.
    pub place: u64,
    /// Where to.
    pub channel: ChannelId,
    /// Its content and, from the first attempt on, its client message id and the times of the first and the last attempt.
    pub send: wire::Send,
}

impl SavedSend {
    /// Whether an attempt was written down: it may have been made, and its outcome is not known.
    pub fn attempted(&self) -> bool {
        !self.send.client_message_id.is_empty()
    }
}

/// What is to be written, in this order.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The installation as it is.
    pub installation: Option<Installation>,
    /// Channels rewound: entries from that seq up are void.
    pub rewound: Vec<(ChannelId, Seq)>,
    /// Channels as they stand; `None`: left, and all that was kept of it is to go.
    pub channels: HashMap<ChannelId, Option<Arc<wire::ChannelState>>>,
    /// What is held of channels.
    pub logs: HashMap<ChannelId, ChannelLog>,
    /// DELIVER frames to be kept, instead of those that are.
    pub entries: BTreeMap<(ChannelId, Seq), Bytes>,
    /// How far the user has read; `None`: the server knows.
    pub reads: HashMap<ChannelId, Option<(Seq, u64)>>,
    /// Sends that are new or changed.
    pub sends: Vec<SavedSend>,
    /// Places of sends whose end is known.
    pub settled: Vec<u64>,
}

impl Changes {
    /// Whether there is nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.installation.is_none()
            && self.rewound.is_empty()
            && self.channels.is_empty()
            && self.logs.is_empty()
            && self.entries.is_empty()
            && self.reads.is_empty()
            && self.sends.is_empty()
            && self.settled.is_empty()
    }
}
