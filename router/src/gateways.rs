//! A shard's view of the gateways: their downlinks, the credit each has granted, and what is behind.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId,
    link::{AudienceChange, CREDIT_BYTES, Down, Downlink, GatewayId, Handle, Origin, Tier},
};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::out::{Action, Out};

/// One gateway.
struct Link {
    downlink: Arc<dyn Downlink>,
    /// What may still be sent; below 0 by replies, which do not wait.
    credit: i64,
    /// Channels with a `behind` mark there, each once.
    behind: VecDeque<ChannelId>,
    waiting: HashSet<ChannelId, RandomState>,
}

/// See the module.
pub struct Gateways {
    links: HashMap<GatewayId, Link, RandomState>,
    /// What this pass has for them, and for others.
    pub out: Out,
}

impl Gateways {
    /// None yet.
    pub fn new() -> Self {
        Self { links: HashMap::default(), out: Out::default() }
    }

    /// A gateway came (again): full credit, nothing behind.
    pub fn attach(&mut self, gateway: GatewayId, downlink: Arc<dyn Downlink>) {
        let credit = i64::from(CREDIT_BYTES);
        let (behind, waiting) = (VecDeque::new(), HashSet::default());
        let link = Link { downlink, credit, behind, waiting };
        self.links.insert(gateway, link);
    }

    /// A gateway is gone.
    pub fn detach(&mut self, gateway: GatewayId) {
        self.links.remove(&gateway);
    }

    fn send(&mut self, gateway: GatewayId, down: Down) {
        if let Some(link) = self.links.get_mut(&gateway) {
            link.credit -= i64::from(down.charge_bytes());
            self.out.push(Action::Down(Arc::clone(&link.downlink), down));
        }
    }

    /// Frames for one session.
    pub fn reply(&mut self, origin: &Origin, frames: Bytes) {
        self.send(origin.gateway, Down::Reply { handle: origin.handle, frames });
    }

    /// Any other word about one session.
    pub fn tell(&mut self, origin: &Origin, down: Down) {
        self.send(origin.gateway, down);
    }

    /// Word to a gateway about one of its connections.
    pub fn tell_at(&mut self, gateway: GatewayId, down: Down) {
        self.send(gateway, down);
    }

    /// Frames for one session, by its connection.
    pub fn reply_at(&mut self, gateway: GatewayId, handle: Handle, frames: Bytes) {
        self.send(gateway, Down::Reply { handle, frames });
    }

    /// Serves the session from here on, as of that tier.
    pub fn add(&mut self, channel: ChannelId, gateway: GatewayId, handle: Handle, tier: Tier) {
        let changes = vec![AudienceChange::Add(handle, tier)];
        self.send(gateway, Down::Audience { channel, changes });
    }

    /// Serves the session no more.
    pub fn remove(&mut self, channel: ChannelId, gateway: GatewayId, handle: Handle) {
        let changes = vec![AudienceChange::Remove(handle)];
        self.send(gateway, Down::Audience { channel, changes });
    }

    /// Sends to a channel's audience where there is credit; says whether it did.
    pub fn fan_out(&mut self, gateway: GatewayId, down: Down) -> bool {
        let Some(link) = self.links.get(&gateway) else { return true };
        if link.credit < i64::from(down.charge_bytes()) {
            return false;
        }
        self.send(gateway, down);
        true
    }

    /// As [`Self::fan_out`], for what may wait: it leaves half of the credit to what may not.
    pub fn fan_out_late(&mut self, gateway: GatewayId, down: Down) -> bool {
        let Some(link) = self.links.get(&gateway) else { return true };
        if link.credit - i64::from(down.charge_bytes()) < i64::from(CREDIT_BYTES / 2) {
            return false;
        }
        self.send(gateway, down);
        true
    }

    /// Bytes that may be sent now.
    pub fn credit(&self, gateway: GatewayId) -> i64 {
        self.links.get(&gateway).map_or(0, |link| link.credit)
    }

    /// The channel waits for credit there.
    pub fn put_behind(&mut self, gateway: GatewayId, channel: ChannelId) {
        if let Some(link) = self.links.get_mut(&gateway)
            && link.waiting.insert(channel)
        {
            link.behind.push_back(channel);
        }
    }

    /// Credit came back.
    pub fn refill(&mut self, gateway: GatewayId, bytes: u32) {
        if let Some(link) = self.links.get_mut(&gateway) {
            link.credit = (link.credit + i64::from(bytes)).min(i64::from(CREDIT_BYTES));
        }
    }

    /// The next channel that waits there, if there is credit.
    pub fn next_behind(&mut self, gateway: GatewayId) -> Option<ChannelId> {
        let link = self.links.get_mut(&gateway)?;
        if link.credit <= 0 {
            return None;
        }
        let channel = link.behind.pop_front()?;
        link.waiting.remove(&channel);
        Some(channel)
    }
}
