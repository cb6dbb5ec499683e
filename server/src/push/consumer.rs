//! Reads the groups' log, asks each channel's owner who is absent, puts what the rules give into the outbox, and then notes how far
//! it is: what was not put is read again after a crash, and what was put twice has the same key. Who seems to be there may have a
//! session whose other end is gone: until that is known, the message is not noted as read.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{ChannelId, Code, UserId, limits::IDLE_TIME_MAX};
use fanfare_router::push::{self, GROUP_TOLD_MAX, Heard, Known, Rules, VIEW_MEMBERS_MAX, View, Who};
use fanfare_storage::{
    StoreError, fault, hash,
    log::Offset,
    model::{Entry, EntryKind},
    push::Push,
};
use tokio::time::Instant;

use super::{Shared, retried};
use crate::clock;

/// The consumer's name in the log.
pub const CONSUMER: &str = "push";
/// Records read at once.
const RECORDS_MAX: usize = 512;
/// Pushes put at once.
const PUT_MAX: usize = 4_096;
/// Between two looks at a log that had nothing new.
const IDLE: Duration = Duration::from_millis(50);
/// Between two looks at an outbox that is full.
const FULL: Duration = Duration::from_secs(1);
/// How long an offset may stay unnoted while there is more to read.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long a frame that is nowhere is waited for.
const FRAME_PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries where an owner or a store cannot answer.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// When those who seemed to be there are looked at again: a session that is dead has ended by then, and one that is alive has
/// acknowledged.
const LOOK_AGAIN: Duration = IDLE_TIME_MAX.saturating_add(Duration::from_secs(5));
/// Messages that wait for a second look; beyond it the oldest have theirs at once.
const LOOKED_AGAIN_MAX: usize = 100_000;

/// Messages of one channel to be looked at again.
struct Look {
    at: Instant,
    /// Of the first of their records: nothing from it on is noted as read.
    offset: Offset,
    channel: ChannelId,
    heard: Vec<Heard>,
}

/// How far the log was read.
struct Place {
    next: Vec<Offset>,
    noted: Vec<Offset>,
    noted_at: Instant,
    /// By partition, in the order of their offsets.
    looks: Vec<VecDeque<Look>>,
    /// Messages in all of these.
    looked_again: usize,
}

impl Place {
    /// Up to where a partition may be noted as read.
    fn done(&self, partition: usize) -> Offset {
        self.looks[partition].front().map_or(self.next[partition], |look| look.offset)
    }
}

/// Reads until it is stopped.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = read(&shared) => {}
    }
}

async fn read(shared: &Arc<Shared>) {
    let next = retried(shared, "the log's offsets", begin).await;
    shared.read.lock().clone_from(&next);
    let looks = next.iter().map(|_| VecDeque::new()).collect();
    let mut place = Place { noted: next.clone(), next, noted_at: Instant::now(), looks, looked_again: 0 };
    loop {
        let ends = retried(shared, "the log's ends", ends).await;
        for (next, end) in place.next.iter_mut().zip(&ends) {
            // A log that was opened again may have lost what was not flushed: it comes once more from there on.
            *next = (*next).min(*end);
        }
        let behind = |place: &Place| -> u64 {
            ends.iter().zip(&place.next).map(|(end, next)| end.saturating_sub(*next)).sum()
        };
        let moved = behind(&place) > 0;
        shared.meter.lag(behind(&place));
        for (partition, end) in (0u16..).zip(&ends) {
            if place.next[usize::from(partition)] >= *end {
                continue;
            }
            while shared.is_full() {
                tokio::time::sleep(FULL).await;
            }
            step(shared, &mut place, partition).await;
        }
        look_again(shared, &mut place).await;
        if !moved || place.noted_at.elapsed() >= NOTE_EVERY {
            note(shared, &mut place).await;
        }
        if !moved {
            tokio::time::sleep(IDLE).await;
        }
    }
}

fn ends(shared: &Shared) -> Result<Vec<Offset>, StoreError> {
    (0..shared.log.partitions()).map(|partition| shared.log.end(partition)).collect()
}

/// Where each partition is read from. At the first start ever that is its end: what was said before pushes were asked for
/// is old.
fn begin(shared: &Shared) -> Result<Vec<Offset>, StoreError> {
    let partitions = 0..shared.log.partitions();
    if shared.outbox.began_ms()?.is_none() {
        for partition in partitions.clone() {
            shared.log.commit_offset(CONSUMER, partition, shared.log.end(partition)?)?;
        }
        shared.outbox.begin(clock::now_ms())?;
    }
    partitions.map(|partition| shared.log.offset(CONSUMER, partition)).collect()
}

/// The next records of a partition.
async fn step(shared: &Arc<Shared>, place: &mut Place, partition: u16) {
    let from = place.next[usize::from(partition)];
    let read = move |shared: &Shared| shared.log.read(partition, from, RECORDS_MAX);
    let records = retried(shared, "the log", read).await;
    let Some(last) = records.last().map(|record| record.offset) else { return };
    let mut by_channel: Vec<(ChannelId, Offset, Vec<Entry>)> = Vec::new();
    let mut places: HashMap<ChannelId, usize> = HashMap::new();
    let oldest_ms = clock::now_ms().saturating_sub(shared.config.patience.age_max.as_millis() as u64);
    for record in records {
        let entry = record.entry;
        if entry.kind != EntryKind::Message || entry.message_id.time_ms() < oldest_ms {
            continue;
        }
        let at = *places.entry(entry.channel).or_insert_with(|| {
            by_channel.push((entry.channel, record.offset, Vec::new()));
            by_channel.len() - 1
        });
        by_channel[at].2.push(entry);
    }
    let mut pushes = Vec::new();
    for (channel, offset, entries) in by_channel {
        let mut heard = hear(shared, channel, entries).await;
        if tell(shared, shared.rules(), channel, &heard, &mut pushes).await {
            forget_all_but_the_newest(&mut heard);
            place.looked_again += heard.len();
            let at = Instant::now() + LOOK_AGAIN;
            place.looks[usize::from(partition)].push_back(Look { at, offset, channel, heard });
        }
    }
    put(shared, &mut pushes).await;
    place.next[usize::from(partition)] = last + 1;
    shared.read.lock()[usize::from(partition)] = last + 1;
}

/// What stands for a whole absence is told once: of messages that name nobody the newest will do.
fn forget_all_but_the_newest(heard: &mut Vec<Heard>) {
    let names = |message: &Heard| message.mention_all || message.named().next().is_some();
    let newest = heard.iter().rfind(|message| !names(message)).map(|message| message.seq);
    heard.retain(|message| names(message) || Some(message.seq) == newest);
}

/// Those who seemed to be there and did not get what was said after all.
async fn look_again(shared: &Arc<Shared>, place: &mut Place) {
    let mut pushes = Vec::new();
    for partition in 0..place.looks.len() {
        while let Some(look) = place.looks[partition].front() {
            if look.at > Instant::now() && place.looked_again <= LOOKED_AGAIN_MAX {
                break;
            }
            // It is late enough as it is.
            let rules = Rules { recent: Duration::ZERO, ..shared.rules() };
            tell(shared, rules, look.channel, &look.heard, &mut pushes).await;
            // Before its offset can be noted.
            put(shared, &mut pushes).await;
            let gone = place.looks[partition].pop_front();
            place.looked_again -= gone.map_or(0, |look| look.heard.len());
        }
    }
}

async fn note(shared: &Arc<Shared>, place: &mut Place) {
    for partition in 0..shared.log.partitions() {
        let (at, next) = (usize::from(partition), place.done(usize::from(partition)));
        if place.noted[at] == next {
            continue;
        }
        let noted = move |shared: &Shared| shared.log.commit_offset(CONSUMER, partition, next);
        retried(shared, "the log's offsets", noted).await;
        fault::point("after-push-offset");
        place.noted[at] = next;
    }
    place.noted_at = Instant::now();
}

/// The messages behind entries of one channel, in seq order.
async fn hear(shared: &Arc<Shared>, channel: ChannelId, entries: Vec<Entry>) -> Vec<Heard> {
    let lacking: Vec<u64> =
        entries.iter().filter(|entry| entry.frame.is_empty()).map(|entry| entry.seq).collect();
    let mut frames: HashMap<u64, Bytes> = HashMap::new();
    if !lacking.is_empty() {
        let about = view(shared, channel, Who::Named(Vec::new()), lacking).await;
        frames.extend(about.unwrap_or_default().frames);
    }
    let mut heard: Vec<Heard> = Vec::with_capacity(entries.len());
    for entry in &entries {
        let frame = frame(shared, entry, frames.remove(&entry.seq)).await;
        // What does not decode was taken back or is damaged: nobody is told of it.
        heard.extend(frame.and_then(|frame| Heard::of(entry, &frame)));
    }
    find_replied(shared, channel, &mut heard).await;
    heard
}

/// Plans what messages of one channel give. Says whether some who have a session do not have everything yet.
async fn tell(
    shared: &Arc<Shared>,
    rules: Rules,
    channel: ChannelId,
    heard: &[Heard],
    pushes: &mut Vec<Push>,
) -> bool {
    let mut unsettled = false;
    if heard.is_empty() {
        return unsettled;
    }
    let all = heard.iter().any(|message| message.mention_all);
    let mut who = Who::Absent { after: UserId(0), all };
    while let Some(page) = view(shared, channel, who, Vec::new()).await {
        if !push::concerns_all(&page, heard) {
            break;
        }
        unsettled |= page.unsettled;
        let after = page.members.last().map(|member| member.user).filter(|_| page.more);
        plan(shared, rules, page, heard, pushes).await;
        let Some(after) = after else { return unsettled };
        who = Who::Absent { after, all };
    }
    let mut named: Vec<UserId> = heard.iter().flat_map(Heard::named).collect();
    named.sort_unstable();
    named.dedup();
    for some in named.chunks(VIEW_MEMBERS_MAX) {
        let Some(page) = view(shared, channel, Who::Named(some.to_vec()), Vec::new()).await else { break };
        unsettled |= page.unsettled;
        plan(shared, rules, page, heard, pushes).await;
    }
    unsettled
}

/// What the owner says, however long it takes; `None` where there is no such channel.
async fn view(shared: &Shared, channel: ChannelId, who: Who, frames: Vec<u64>) -> Option<View> {
    loop {
        match shared.router.view(channel, who.clone(), frames.clone()).await {
            Ok(view) => return view,
            Err(Code::GOING_AWAY) => std::future::pending().await,
            Err(code) => {
                tracing::debug!(%channel, %code, "the channel's owner is asked again");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// An entry's frame, from the record, the owner, or the content store, whichever has it.
async fn frame(shared: &Arc<Shared>, entry: &Entry, of_owner: Option<Bytes>) -> Option<Bytes> {
    let is_it = |frame: &Bytes| hash::frame(frame) == entry.hash;
    if !entry.frame.is_empty() {
        return Some(entry.frame.clone());
    }
    if let Some(frame) = of_owner.filter(is_it) {
        return Some(frame);
    }
    let (channel, seq) = (entry.channel, entry.seq);
    let until = Instant::now() + FRAME_PATIENCE;
    loop {
        let stored = retried(shared, "content", move |shared| stored(shared, channel, seq)).await;
        if let Some(frame) = stored.filter(is_it) {
            return Some(frame);
        }
        if Instant::now() >= until {
            tracing::error!(%channel, seq, "a message's frame is nowhere: nobody is told of it");
            return None;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn stored(shared: &Shared, channel: ChannelId, seq: u64) -> Result<Option<Bytes>, StoreError> {
    let found = shared.content.range(channel, seq, seq, 1, usize::MAX)?;
    Ok(found.into_iter().next().map(|stored| stored.frame))
}

/// Finds who sent what is answered.
async fn find_replied(shared: &Arc<Shared>, channel: ChannelId, heard: &mut [Heard]) {
    let known: HashMap<u64, UserId> = heard.iter().map(|message| (message.seq, message.sender)).collect();
    for message in heard.iter_mut().filter(|message| message.reply_to > 0) {
        let seq = message.reply_to;
        message.replied = known.get(&seq).copied();
        if message.replied.is_none() {
            let frame = retried(shared, "content", move |shared| stored(shared, channel, seq)).await;
            message.replied = frame.as_ref().and_then(push::sender_of);
        }
        if message.replied.is_none() {
            // It may not be drained yet.
            let about = view(shared, channel, Who::Named(Vec::new()), vec![seq]).await.unwrap_or_default();
            message.replied = about.frames.first().and_then(|(_, frame)| push::sender_of(frame));
        }
    }
}

/// Plans pushes for the members of a view.
async fn plan(shared: &Arc<Shared>, rules: Rules, mut view: View, heard: &[Heard], pushes: &mut Vec<Push>) {
    view.members.retain(|member| heard.iter().any(|message| member.misses(message.seq)));
    let Some(channel) = heard.first().map(|message| message.channel).filter(|_| !view.members.is_empty())
    else {
        return;
    };
    let users: Vec<UserId> = view.members.iter().map(|member| member.user).collect();
    let mut known = Known::default();
    known.seen_ms.extend(seen(shared, &users).await);
    if !view.is_direct && view.members_total <= GROUP_TOLD_MAX {
        let told =
            retried(shared, "the push outbox", move |shared| shared.outbox.told(channel, &users)).await;
        known.told_ms.extend(told);
    }
    let now_ms = clock::now_ms();
    if !view.is_direct {
        // Blocks are read for those alone who would be told.
        let told_ms = known.told_ms.clone();
        let planned = push::plan(rules, now_ms, &view, heard, &mut known);
        known.told_ms = told_ms;
        let mut users: Vec<UserId> = planned.iter().map(|push| push.key.user).collect();
        users.sort_unstable();
        users.dedup();
        if users.is_empty() {
            return;
        }
        known.blocked.extend(retried(shared, "blocks", move |shared| blocked(shared, &users)).await);
    }
    pushes.extend(push::plan(rules, now_ms, &view, heard, &mut known));
    if pushes.len() >= PUT_MAX {
        put(shared, pushes).await;
    }
}

/// Puts them into the outbox; none are left.
async fn put(shared: &Arc<Shared>, pushes: &mut Vec<Push>) {
    if pushes.is_empty() {
        return;
    }
    let all: Arc<[Push]> = std::mem::take(pushes).into();
    fault::point("before-push-put");
    let kept = Arc::clone(&all);
    let new = retried(shared, "the push outbox", move |shared| shared.outbox.put(&kept)).await;
    fault::point("after-push-put");
    shared.meter.put(new);
    shared.wake.notify_one();
}

async fn seen(shared: &Shared, users: &[UserId]) -> Vec<(UserId, u64)> {
    loop {
        match shared.router.seen(users.to_vec()).await {
            Ok(seen) => return seen,
            Err(Code::GOING_AWAY) => std::future::pending().await,
            Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
        }
    }
}

fn blocked(shared: &Shared, users: &[UserId]) -> Result<Vec<(UserId, UserId)>, StoreError> {
    let mut all = Vec::new();
    for user in users {
        all.extend(shared.metadata.blocks(*user)?.into_iter().map(|by| (*user, by)));
    }
    Ok(all)
}
