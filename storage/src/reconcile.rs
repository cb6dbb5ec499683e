//! Reconcile and scrub: walks metadata against content both ways, with every hash, the chains of hashes, and users'
//! lists against the memberships. It only looks; the channels' owner repairs.

use std::collections::{HashMap, HashSet};

use fanfare_proto::{ChannelId, MessageId, UserId};

use crate::{
    content::{Content, Lists},
    error::StoreError,
    hash,
    metadata::{Metadata, WalkedEntry},
    model::{Hash, OutboxBatch},
};

/// Examples kept of each kind of finding.
pub const EXAMPLES_MAX: usize = 10;
/// Rows read at once.
const PAGE: usize = 1024;

/// Where something was found: (channel, epoch, seq).
pub type Place = (ChannelId, u32, u64);

/// A kind of finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<Place>,
}

impl Finding {
    fn add(&mut self, place: Place) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(place);
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Metadata rows looked at.
    pub entries_checked: u64,
    /// Frames in content looked at.
    pub frames_checked: u64,
    /// Channels whose chain of hashes was computed and compared with their head.
    pub chains_checked: u64,
    /// Users whose lists were compared with their memberships.
    pub users_checked: u64,
    /// Entries that still wait in the outbox: in order, not counted below.
    pub undrained: u64,
    /// Entries without a frame, in content or the outbox.
    pub missing_content: Finding,
    /// Entries whose frame is there and wrong.
    pub hash_mismatch: Finding,
    /// Frames without an entry.
    pub orphan_content: Finding,
    /// Channels whose entries are not dense from the epoch's start up to the head, or do not give the head's chain;
    /// the place is the head.
    pub chain_mismatch: Finding,
    /// Users' lists that differ from the memberships: user and channel, whether it is listed.
    pub list_differences: u64,
    /// The first of them.
    pub list_examples: Vec<(UserId, ChannelId, bool)>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.missing_content.count == 0
            && self.hash_mismatch.count == 0
            && self.orphan_content.count == 0
            && self.chain_mismatch.count == 0
            && self.list_differences == 0
    }
}

/// Walks everything. Beside a running server, `undrained` are the rows of the outbox read **before** the walk, and
/// entries that were committed or drained meanwhile are looked at a second time before they are reported.
///
/// Memory: the seqs, epochs and hashes of all entries, about 64 bytes each.
///
/// # Errors
/// Of the stores.
pub fn reconcile(
    metadata: &dyn Metadata,
    content: &dyn Content,
    lists: &dyn Lists,
    undrained: &[OutboxBatch],
) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let waiting: HashMap<Place, Hash> = undrained
        .iter()
        .flat_map(|batch| &batch.entries)
        .map(|entry| ((entry.channel, entry.epoch, entry.seq), entry.hash))
        .collect();
    // Heads first: entries above them came later and are left to the next walk.
    let mut heads = HashMap::new();
    let mut after = ChannelId(0);
    loop {
        let page = metadata.channels(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.channel;
        heads.extend(page.into_iter().map(|channel| (channel.channel, channel)));
    }
    let mut by_channel: HashMap<ChannelId, Vec<WalkedEntry>> = HashMap::new();
    let mut after = MessageId(0);
    loop {
        let page = metadata.walk(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.message_id;
        report.entries_checked += page.len() as u64;
        for entry in page {
            by_channel.entry(entry.channel).or_default().push(entry);
        }
    }
    let mut known: HashSet<Place> = HashSet::new();
    for (id, entries) in &mut by_channel {
        entries.sort_by_key(|entry| (entry.epoch, entry.seq));
        known.extend(entries.iter().map(|entry| (entry.channel, entry.epoch, entry.seq)));
        check_frames(content, entries, &waiting, &mut report)?;
        match heads.get(id) {
            None => report.chain_mismatch.add((*id, 0, 0)),
            Some(channel) => {
                report.chains_checked += 1;
                let up_to_head: Vec<&WalkedEntry> = entries
                    .iter()
                    .filter(|entry| (entry.epoch, entry.seq) <= (channel.epoch, channel.head))
                    .collect();
                if !is_chain(&up_to_head, channel.epoch, channel.head, &channel.chain) {
                    report.chain_mismatch.add((*id, channel.epoch, channel.head));
                }
            }
        }
    }
    for channel in heads.values() {
        if channel.head > 0 && !by_channel.contains_key(&channel.channel) {
            report.chain_mismatch.add((channel.channel, channel.epoch, channel.head));
        }
    }
    check_orphans(metadata, content, &known, &mut report)?;
    check_lists(metadata, lists, &heads.keys().copied().collect::<Vec<_>>(), undrained, &mut report)?;
    Ok(report)
}

/// Every entry's frame, by whole pages of its channel.
fn check_frames(
    content: &dyn Content,
    entries: &[WalkedEntry],
    waiting: &HashMap<Place, Hash>,
    report: &mut Report,
) -> Result<(), StoreError> {
    // Of each seq the content store gives the highest epoch: an older epoch's entry of a seq given again is hidden.
    let mut newest: HashMap<u64, u32> = HashMap::new();
    for entry in entries {
        newest.insert(entry.seq, entry.epoch);
    }
    for page in entries.chunks(PAGE) {
        let (Some(first), Some(last)) =
            (page.iter().map(|entry| entry.seq).min(), page.iter().map(|entry| entry.seq).max())
        else {
            continue;
        };
        let mut frames = HashMap::new();
        let mut above = last;
        loop {
            let found = content.range(page[0].channel, first, above, PAGE, 16 * 1024 * 1024)?;
            let lowest = found.last().map(|stored| stored.seq);
            for stored in found {
                frames.insert((stored.epoch, stored.seq), hash::frame(&stored.frame));
            }
            match lowest {
                Some(lowest) if lowest > first => above = lowest - 1,
                _ => break,
            }
        }
        for entry in page {
            let place = (entry.channel, entry.epoch, entry.seq);
            let is_waiting = waiting.get(&place) == Some(&entry.hash);
            report.undrained += u64::from(is_waiting);
            match frames.get(&(entry.epoch, entry.seq)) {
                Some(found) if *found == entry.hash => report.frames_checked += 1,
                Some(_) => report.hash_mismatch.add(place),
                None if is_waiting || newest[&entry.seq] != entry.epoch => {}
                // Committed after `undrained` was read: its drain may take 2 s. Only the outbox can tell.
                None => report.missing_content.add(place),
            }
        }
    }
    Ok(())
}

/// Whether the entries are dense up to the head and give its chain.
fn is_chain(entries: &[&WalkedEntry], epoch: u32, head: u64, chain: &Hash) -> bool {
    let Some(last) = entries.last() else { return head == 0 };
    if (last.epoch, last.seq) != (epoch, head) && last.seq != head {
        return false;
    }
    let mut link = hash::CHAIN_START;
    let mut before: Option<&WalkedEntry> = None;
    for entry in entries {
        let is_next = match before {
            None => entry.seq == 1,
            // A higher epoch begins at the restored head's next seq: at or below what the lost epoch had reached.
            Some(before) if before.epoch != entry.epoch => entry.seq <= before.seq + 1,
            Some(before) => entry.seq == before.seq + 1,
        };
        if !is_next {
            return false;
        }
        link = hash::chain(&link, entry.epoch, entry.seq, &entry.hash);
        before = Some(entry);
    }
    link == *chain
}

fn check_orphans(
    metadata: &dyn Metadata,
    content: &dyn Content,
    known: &HashSet<Place>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut suspects = Vec::new();
    let mut after = None;
    loop {
        let page = content.walk(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        suspects.extend(
            page.into_iter()
                .map(|(channel, seq, epoch)| (channel, epoch, seq))
                .filter(|place| !known.contains(place)),
        );
    }
    if suspects.is_empty() {
        return Ok(());
    }
    // Committed since the walk began: look at what metadata holds now.
    let mut now = HashSet::new();
    let mut after = MessageId(0);
    loop {
        let page = metadata.walk(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.message_id;
        now.extend(page.iter().map(|entry| (entry.channel, entry.epoch, entry.seq)));
    }
    for place in suspects {
        if !now.contains(&place) {
            report.orphan_content.add(place);
        }
    }
    Ok(())
}

fn check_lists(
    metadata: &dyn Metadata,
    lists: &dyn Lists,
    channels: &[ChannelId],
    undrained: &[OutboxBatch],
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut members: HashMap<UserId, HashSet<ChannelId>> = HashMap::new();
    for channel in channels {
        for member in metadata.members(*channel)? {
            let of_user = members.entry(member.user).or_default();
            if member.left_seq == 0 {
                of_user.insert(*channel);
            }
        }
    }
    let waiting: HashSet<(UserId, ChannelId)> =
        undrained.iter().flat_map(|batch| &batch.lists).map(|change| (change.user, change.channel)).collect();
    for (user, of_user) in members {
        report.users_checked += 1;
        let listed: HashSet<ChannelId> = lists.list(user)?.into_iter().collect();
        for channel in listed.symmetric_difference(&of_user) {
            if waiting.contains(&(user, *channel)) {
                continue;
            }
            report.list_differences += 1;
            if report.list_examples.len() < EXAMPLES_MAX {
                report.list_examples.push((user, *channel, listed.contains(channel)));
            }
        }
    }
    Ok(())
}
