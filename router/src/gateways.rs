//! A shard's view of the gateways: their downlinks, the credit each has granted, and what is behind.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId,
    link::{AudienceChange, CREDIT_BYTES, Down, Downlink, GatewayId, Handle, Origin, Tier},
};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

/// Places for what is for a gateway that a shard keeps for its next pass.
const DOWNS_KEPT: usize = 4;
/// Gateways whose places a worker keeps.
const LINKS_KEPT: usize = 64;

/// One gateway.
struct Link {
    downlink: Arc<dyn Downlink>,
    /// What may still be sent; below 0 by replies, which do not wait.
    credit: i64,
    /// Channels with a `behind` mark there, each once.
    behind: VecDeque<ChannelId>,
    waiting: HashSet<ChannelId, RandomState>,
    /// For it, from this pass.
    downs: Vec<Down>,
}

/// What the shards of a worker have for gateways, until the end of its pass.
#[derive(Default)]
pub struct Outbox {
    links: Vec<(GatewayId, Arc<dyn Downlink>, Vec<(u16, Down)>)>,
}

impl Outbox {
    fn add(&mut self, gateway: GatewayId, owner: u16, link: &mut Link) {
        let known = self
            .links
            .iter()
            .position(|(id, downlink, _)| *id == gateway && Arc::ptr_eq(downlink, &link.downlink));
        let at = known.unwrap_or_else(|| {
            self.links.push((gateway, Arc::clone(&link.downlink), Vec::new()));
            self.links.len() - 1
        });
        self.links[at].2.extend(link.downs.drain(..).map(|down| (owner, down)));
        if link.downs.capacity() > DOWNS_KEPT {
            link.downs = Vec::new();
        }
    }

    /// Hands everything over: what one shard gave in the order it gave it.
    pub fn send(&mut self) {
        for (_, downlink, downs) in &mut self.links {
            if !downs.is_empty() {
                downlink.send_all(downs);
                downs.clear();
            }
        }
        // A gateway that came again has another downlink.
        if self.links.len() > LINKS_KEPT {
            self.links.clear();
        }
    }
}

/// See the module.
pub struct Gateways {
    owner: u16,
    links: HashMap<GatewayId, Link, RandomState>,
}

impl Gateways {
    /// None yet, for the shard of that number.
    pub fn new(owner: u16) -> Self {
        Self { owner, links: HashMap::default() }
    }

    /// A gateway came (again): full credit, nothing behind.
    pub fn attach(&mut self, gateway: GatewayId, downlink: Arc<dyn Downlink>) {
        let credit = i64::from(CREDIT_BYTES);
        let (behind, waiting) = (VecDeque::new(), HashSet::default());
        let link = Link { downlink, credit, behind, waiting, downs: Vec::new() };
        self.links.insert(gateway, link);
    }

    /// Gives what this pass has for gateways.
    pub fn hand_out(&mut self, outbox: &mut Outbox) {
        for (gateway, link) in &mut self.links {
            if !link.downs.is_empty() {
                outbox.add(*gateway, self.owner, link);
            }
        }
    }

    /// A gateway is gone.
    pub fn detach(&mut self, gateway: GatewayId) {
        self.links.remove(&gateway);
    }

    fn send(&mut self, gateway: GatewayId, down: Down) {
        if let Some(link) = self.links.get_mut(&gateway) {
            link.credit -= i64::from(down.charge_bytes());
            link.downs.push(down);
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

    /// Serves the session from here on.
    pub fn add(&mut self, channel: ChannelId, gateway: GatewayId, handle: Handle) {
        let changes = vec![AudienceChange::Add(handle, Tier::Active)];
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
