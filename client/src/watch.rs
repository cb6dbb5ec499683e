//! One channel: what it holds now and what comes, without a seam between the two.

use std::sync::Arc;

use fanfare_proto::{ChannelId, Seq, wire};

use crate::{
    asking::RequestError,
    client::{Client, Events},
    event::{Entry, Event, History},
    sending::SendHandle,
};

/// Messages of a snapshot, by default.
const SNAPSHOT_MESSAGES: u32 = 50;

/// A handle of one channel.
#[derive(Clone, Debug)]
pub struct Channel {
    client: Client,
    id: ChannelId,
}

impl Channel {
    pub(crate) fn new(client: Client, id: ChannelId) -> Self {
        Self { client, id }
    }

    /// Its id.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// As it stands, where it is known.
    pub fn state(&self) -> Option<Arc<wire::ChannelState>> {
        self.client.channel_state(self.id)
    }

    /// The newest 50 messages and everything that comes behind them. While there is no connection the snapshot comes from the store; what
    /// was missed follows once there is one.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn watch(&self) -> Result<Watch, RequestError> {
        self.watch_from(SNAPSHOT_MESSAGES).await
    }

    /// As [`Self::watch`], with `messages` (1 to 100) of them.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn watch_from(&self, messages: u32) -> Result<Watch, RequestError> {
        // First the stream, then the snapshot: what comes between is in both, and dropped from the stream.
        let events = self.client.events();
        let shown = Shown::new(self.client.clone(), self.id);
        let snapshot = self.client.history(self.id, 0, messages).await?;
        Ok(Watch { id: self.id, first: snapshot.first, last: snapshot.last, snapshot, events, _shown: shown })
    }

    /// Sends a text.
    pub fn send_text(&self, text: impl Into<String>) -> SendHandle {
        self.client.send_text(self.id, text)
    }

    /// The local echoes: see [`Client::echoes`].
    pub fn echoes(&self) -> Vec<SendHandle> {
        self.client.echoes(self.id)
    }

    /// Says that the user has read everything up to the head.
    pub fn mark_read(&self) {
        if let Some(state) = self.state() {
            self.client.mark_read(self.id, state.head, state.ordinal);
        }
    }

    /// Says that the user types.
    pub fn typing(&self) {
        self.client.typing(self.id, false);
    }

    /// Older messages, from the store while there is no connection: see [`Client::history`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn history(&self, before: Seq, limit: u32) -> Result<History, RequestError> {
        self.client.history(self.id, before, limit).await
    }

    /// How many unread messages there are, where the channel is known.
    pub fn unread(&self) -> Option<u64> {
        self.state().map(|state| state.ordinal.saturating_sub(state.read_ordinal))
    }
}

/// A channel's newest messages and what comes behind them.
#[derive(Debug)]
pub struct Watch {
    /// What the channel held when it was asked for.
    pub snapshot: History,
    id: ChannelId,
    first: Seq,
    last: Seq,
    events: Events,
    _shown: Shown,
}

/// For as long as it is there, the channel counts as on screen.
#[derive(Debug)]
struct Shown {
    client: Client,
    id: ChannelId,
}

impl Shown {
    fn new(client: Client, id: ChannelId) -> Self {
        client.watching(id, true);
        Self { client, id }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.client.watching(self.id, false);
    }
}

impl Watch {
    /// The next event of this channel (or [`Event::State`], [`Event::Lagged`]); entries of the snapshot do not come again. `None` when the
    /// client has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.events.next().await?;
            let wanted = match &event {
                Event::Entry(entry) => {
                    entry.channel == self.id && !(self.first..=self.last).contains(&entry.seq)
                }
                Event::ChannelChanged(state) => state.channel == self.id.0,
                Event::ChannelLeft(channel)
                | Event::Receipt { channel, .. }
                | Event::Typing { channel, .. }
                | Event::GapFilled { channel, .. }
                | Event::Skipped { channel, .. }
                | Event::Invited { channel, .. }
                | Event::InvitationOver(channel)
                | Event::Rewound { channel, .. } => *channel == self.id,
                Event::State(_) | Event::Lagged(_) => true,
                Event::Synced { .. }
                | Event::Presence(_)
                | Event::SeenBy(_)
                | Event::Failed { .. }
                | Event::StoreFailed(_) => false,
            };
            if let Event::Rewound { from, .. } = &event
                && wanted
            {
                // From there on seqs are given anew.
                self.last = self.last.min(from.saturating_sub(1));
            }
            if wanted {
                return Some(event);
            }
        }
    }

    /// The next entry; `None` when the client has ended.
    pub async fn next_entry(&mut self) -> Option<Arc<Entry>> {
        loop {
            if let Event::Entry(entry) = self.next().await? {
                return Some(entry);
            }
        }
    }
}
