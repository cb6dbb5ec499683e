//! A send on its way to its place: repeats, the checks that need the stores, and the queue.

use fanfare_proto::{ChannelId, Code, Frame, UserId, limits::CLIENT_ID_AHEAD_MAX, link::Origin, wire};
use fanfare_storage::{StoreError, content::Content, hash, metadata::Metadata, model::EntryKind};

use super::{Channel, Waiting};
use crate::{
    desk::Desk,
    event::{Check, Event, Touch},
    frames,
    load::{code_of, print_of},
    members::role,
    meter,
    repeats::{Attempt, Key, Known, Place, Repeats, WAITING_ATTEMPTS_MAX},
    send::{self, Meaning},
    tail::Held,
};

/// Entries that one search for a repeat may look at.
const SEARCH_ENTRIES_MAX: usize = 50_000;
/// Entries read at once.
const SEARCH_READ: usize = 1_024;
/// What a retry's times are widened by, milliseconds.
const RETRY_SLACK_MS: u64 = 60_000;

impl Channel {
    /// SEND.
    pub(super) fn send(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        meter::send();
        let Some(request) = frame.routed().map(|header| header.seq) else { return };
        let attempt: Attempt = (origin, request);
        let now_ms = desk.context.now_ms();
        let parsed = match send::parse(frame, origin.user, now_ms) {
            Ok(parsed) => parsed,
            Err((code, id)) => {
                meter::refused();
                return desk.gateways.reply(&origin, frames::send_failed(self.id(), request, &id, code));
            }
        };
        let key = Key::new(origin.user, parsed.client_message_id, parsed.fingerprint);
        let is_frozen = self.in_flight.as_ref().is_some_and(|flight| flight.is_frozen);
        let refuse = |channel: ChannelId, desk: &mut Desk, code: Code| {
            meter::refused();
            let id = parsed.client_message_id.0;
            desk.gateways.reply(&origin, frames::send_failed(channel, request, &id, code));
        };
        match self.repeats.get(&key) {
            Some(Known::Done { fingerprint, place }) => {
                meter::repeat();
                if fingerprint != parsed.fingerprint {
                    return refuse(self.id(), desk, Code::CONFLICT);
                }
                return self.acknowledge(desk, &attempt, &parsed.client_message_id.0, place, true);
            }
            Some(Known::Pending { fingerprint, attempts }) => {
                meter::repeat();
                if fingerprint != parsed.fingerprint {
                    return refuse(self.id(), desk, Code::CONFLICT);
                }
                if is_frozen {
                    return refuse(self.id(), desk, Code::OUTCOME_UNKNOWN);
                }
                if attempts.len() < WAITING_ATTEMPTS_MAX {
                    return attempts.push(attempt);
                }
                meter::retry_later("attempts");
                return refuse(self.id(), desk, Code::RETRY_LATER);
            }
            None => {}
        }
        if !self.may_ever_have_sent(origin.user, &parsed.meaning) {
            return refuse(self.id(), desk, Code::NOT_A_MEMBER);
        }
        let config = &desk.context.config;
        let is_full = self.pending.len() + self.parked.len() >= config.pending_sends_max
            || self.pending_bytes >= config.pending_bytes_max;
        let is_draining = desk.context.draining.load(std::sync::atomic::Ordering::Relaxed);
        let hindered = [(is_frozen, "frozen"), (is_full, "full"), (is_draining, "draining")];
        if let Some((_, why)) = hindered.into_iter().find(|(is, _)| *is) {
            meter::retry_later(why);
            return refuse(self.id(), desk, Code::RETRY_LATER);
        }
        self.repeats.begin(key, parsed.fingerprint, Some(attempt));
        let window = search_window(&parsed, &key, &self.repeats, now_ms);
        let waiting = Waiting {
            key,
            sender: origin.user,
            client_message_id: parsed.client_message_id,
            meaning: parsed.meaning,
            content: parsed.content,
            fingerprint: parsed.fingerprint,
            target_sender: None,
            users_checked: false,
            searched: window.is_none(),
        };
        self.pending_bytes += waiting.bytes();
        match window {
            Some(window) if self.row.head > 0 => self.search(desk, waiting, window),
            _ => self.check(desk, waiting),
        }
    }

    /// Members, those who were, those who come or ask to, and those whom that was granted to or not: only they can have an
    /// entry here.
    fn may_ever_have_sent(&self, user: UserId, meaning: &Meaning) -> bool {
        self.members.was_ever(user) || self.marks.knows(user) || self.is_knock(user, meaning)
    }

    /// The next thing that has to be known before the send may be queued; queues it where nothing is.
    fn check(&mut self, desk: &mut Desk, mut waiting: Waiting) {
        // Whatever was sent before is found by now: who is out learns nothing more of the channel.
        if self.members.get(waiting.sender).is_none() && !self.is_knock(waiting.sender, &waiting.meaning) {
            return self.refuse(desk, waiting, Code::NOT_A_MEMBER);
        }
        let target = waiting.meaning.target();
        if target > 0 && !self.members.sees(waiting.sender, target) {
            return self.refuse(desk, waiting, Code::NO_SUCH_TARGET);
        }
        if target > 0 && waiting.target_sender.is_none() {
            if target > self.row.head {
                return self.refuse(desk, waiting, Code::NO_SUCH_TARGET);
            }
            if let Some(held) = self.tail.get(target) {
                if held.kind != EntryKind::Message {
                    return self.refuse(desk, waiting, Code::NO_SUCH_TARGET);
                }
                waiting.target_sender = Some(held.sender);
            } else {
                return self.look_up_target(desk, waiting, target);
            }
        }
        if !waiting.users_checked {
            let others = waiting.meaning.named().iter().copied().filter(|user| *user != waiting.sender);
            // Whom they block may neither add nor invite them, also where they were members once.
            let comes_in = matches!(waiting.meaning, Meaning::Joined { .. } | Meaning::Invited { .. });
            let users: Vec<UserId> = if comes_in {
                others.filter(|user| self.members.get(*user).is_none()).collect()
            } else {
                others.filter(|user| !self.members.was_ever(*user)).collect()
            };
            if !users.is_empty() {
                // Who may not name anybody shall not learn who exists, nor make the stores work.
                let refusal = match self.members.get(waiting.sender) {
                    None => Some(Code::NOT_A_MEMBER),
                    Some(_) if self.is_direct() => Some(Code::WRONG_KIND),
                    Some(standing) if standing.role < role::ADMIN => Some(Code::FORBIDDEN),
                    Some(_) => None,
                };
                if let Some(code) = refusal {
                    return self.refuse(desk, waiting, code);
                }
                return self.look_up_users(desk, waiting, users, comes_in);
            }
        }
        self.pending.push_back(waiting);
        self.mark_dirty(desk);
    }

    pub(super) fn mark_dirty(&mut self, desk: &mut Desk) {
        if !self.is_dirty {
            self.is_dirty = true;
            desk.dirty.push(self.id());
        }
    }

    /// The send fails for good.
    pub(super) fn refuse(&mut self, desk: &mut Desk, waiting: Waiting, code: Code) {
        meter::refused();
        self.pending_bytes -= waiting.bytes();
        for (origin, request) in self.repeats.failed(&waiting.key) {
            let frame = frames::send_failed(self.id(), request, &waiting.client_message_id.0, code);
            desk.gateways.reply(&origin, frame);
        }
    }

    /// SEND_ACK OK.
    pub(super) fn acknowledge(
        &self,
        desk: &mut Desk,
        (origin, request): &Attempt,
        client_message_id: &[u8],
        place: Place,
        repeated_send: bool,
    ) {
        let ack = wire::SendAck {
            outcome: wire::Outcome::Ok.into(),
            epoch: place.epoch,
            seq: place.seq,
            message_id: place.message_id.0,
            ordinal: place.ordinal,
            client_message_id: bytes::Bytes::copy_from_slice(client_message_id),
            repeated_send,
            ..Default::default()
        };
        desk.gateways.reply(origin, frames::send_ack(self.id(), *request, &ack));
    }

    /// Parks the send until a reader has looked.
    fn park(
        &mut self,
        desk: &mut Desk,
        waiting: Waiting,
        look: impl FnOnce(&dyn Metadata, &dyn Content) -> Result<Check, StoreError> + Send + 'static,
    ) {
        let (channel, key) = (self.id(), waiting.key);
        let started = desk.context.read(desk.shard, move |context| {
            let check = look(&*context.metadata, &*context.content).unwrap_or_else(|error| {
                tracing::warn!(%channel, %error, "a send cannot be checked");
                Check::Refused(code_of(&error))
            });
            Event::Checked { channel, key, check }
        });
        if started {
            self.parked.insert(key, waiting);
        } else {
            meter::retry_later("readers");
            self.refuse(desk, waiting, Code::RETRY_LATER);
        }
    }

    /// A reader has looked.
    pub fn checked(&mut self, desk: &mut Desk, key: &Key, check: Check) {
        let Some(mut waiting) = self.parked.remove(key) else { return };
        match check {
            Check::Refused(_) if !waiting.searched => {
                // The search was cut off or failed: nothing was found and nothing is excluded.
                self.refuse(desk, waiting, Code::OUTCOME_UNKNOWN);
            }
            Check::Refused(code) => self.refuse(desk, waiting, code),
            Check::Repeat(place, is_same) => {
                self.pending_bytes -= waiting.bytes();
                meter::repeat();
                // With another content the key is known by what stands in the stores, which is not this send's.
                let attempts = if is_same {
                    self.repeats.done(waiting.key, place)
                } else {
                    self.repeats.failed(&waiting.key)
                };
                for attempt in attempts {
                    if is_same {
                        self.acknowledge(desk, &attempt, &waiting.client_message_id.0, place, true);
                    } else {
                        let id = waiting.client_message_id.0;
                        let frame = frames::send_failed(self.id(), attempt.1, &id, Code::CONFLICT);
                        desk.gateways.reply(&attempt.0, frame);
                    }
                }
            }
            Check::New => {
                waiting.searched = true;
                self.check(desk, waiting);
            }
            Check::Target(sender) => {
                waiting.target_sender = Some(sender);
                self.check(desk, waiting);
            }
            Check::Users => {
                waiting.users_checked = true;
                self.check(desk, waiting);
            }
        }
    }

    fn search(&mut self, desk: &mut Desk, waiting: Waiting, (from_ms, to_ms): (u64, u64)) {
        let (channel, head, sender) = (self.id(), self.row.head, waiting.sender);
        let (id, print) = (waiting.client_message_id, waiting.fingerprint);
        let undrained = desk.undrained_of(channel);
        self.park(desk, waiting, move |metadata, content| {
            let searched = Search { metadata, content, channel, head, undrained: &undrained };
            searched.repeat(sender, &id.0, print, from_ms, to_ms)
        });
    }

    fn look_up_target(&mut self, desk: &mut Desk, waiting: Waiting, target: u64) {
        let (channel, head) = (self.id(), self.row.head);
        let undrained = desk.undrained_of(channel);
        let is_recalled = self.recalled.contains(&target);
        self.park(desk, waiting, move |metadata, content| {
            if is_recalled {
                return Ok(Check::Refused(Code::RECALLED));
            }
            let search = Search { metadata, content, channel, head, undrained: &undrained };
            search.target(target)
        });
    }

    /// Finds out who sent the message that an entry answers, where it is older than the tail: its session rises when that is known. Of one that
    /// is not there or was taken back nobody hears.
    pub(super) fn look_up_replied(&self, desk: &Desk, by: UserId, replied: u64) {
        let (channel, head) = (self.id(), self.row.head);
        let undrained = desk.undrained_of(channel);
        desk.context.read(desk.shard, move |context| {
            let (metadata, content) = (&*context.metadata, &*context.content);
            let search = Search { metadata, content, channel, head, undrained: &undrained };
            let sender = match search.target(replied) {
                Ok(Check::Target(sender)) => Some(sender).filter(|sender| *sender != by),
                _ => None,
            };
            Event::Touch(channel, Touch::Replied(sender))
        });
    }

    fn look_up_users(&mut self, desk: &mut Desk, waiting: Waiting, users: Vec<UserId>, comes_in: bool) {
        let sender = waiting.sender;
        self.park(desk, waiting, move |metadata, _| {
            for user in users {
                if metadata.user(user)?.is_none() {
                    return Ok(Check::Refused(Code::NO_SUCH_USER));
                }
                if comes_in && metadata.is_blocked(user, sender)? {
                    return Ok(Check::Refused(Code::BLOCKED));
                }
            }
            Ok(Check::Users)
        });
    }
}

/// When the stores have to be searched for an earlier attempt: commit times from and to, Unix milliseconds.
fn search_window(parsed: &send::Parsed, key: &Key, repeats: &Repeats, now_ms: u64) -> Option<(u64, u64)> {
    let earliest = parsed.client_message_id.time_ms().saturating_sub(CLIENT_ID_AHEAD_MAX.as_millis() as u64);
    if repeats.is_new(key, earliest) {
        return None;
    }
    let (from, to) = match parsed.retry_ms {
        Some((first, last)) if first > 0 => {
            (first.saturating_sub(RETRY_SLACK_MS), last.saturating_add(RETRY_SLACK_MS))
        }
        _ => (earliest, now_ms + RETRY_SLACK_MS),
    };
    // What is newer than `complete_since` would be known.
    let to = to.min(repeats.complete_since_ms());
    (from <= to).then_some((from, to))
}

struct Search<'a> {
    metadata: &'a dyn Metadata,
    content: &'a dyn Content,
    channel: ChannelId,
    head: u64,
    undrained: &'a [std::sync::Arc<fanfare_storage::model::Entry>],
}

impl Search<'_> {
    fn remembered(&self, seq: u64) -> Option<bytes::Bytes> {
        let index = self.undrained.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        self.undrained.get(index).map(|entry| entry.frame.clone())
    }

    fn frame(&self, seq: u64) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.remembered(seq) {
            Some(frame) => Ok(Some(frame)),
            None => {
                let stored = self.content.range(self.channel, seq, seq, 1, 64 * 1024)?;
                Ok(stored.into_iter().next().map(|stored| stored.frame))
            }
        }
    }

    /// The first seq committed at or after `ms`.
    fn first_at(&self, ms: u64) -> Result<u64, StoreError> {
        let (mut low, mut high) = (1, self.head + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let held = self.frame(middle)?.as_ref().and_then(Held::of_stored);
            let is_before = held.is_some_and(|(held, _)| held.message_id.time_ms() < ms);
            if is_before { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    fn repeat(
        &self,
        sender: UserId,
        id: &[u8],
        print: u64,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Check, StoreError> {
        let mut seq = self.first_at(from_ms)?;
        let mut looked = 0;
        while seq <= self.head {
            let last = (seq + SEARCH_READ as u64 - 1).min(self.head);
            let stored = self.content.range(self.channel, seq, last, SEARCH_READ, usize::MAX)?;
            let mut frames: Vec<_> = stored.into_iter().map(|stored| (stored.seq, stored.frame)).collect();
            frames.extend((seq..=last).filter_map(|seq| self.remembered(seq).map(|frame| (seq, frame))));
            let mut found = std::collections::BTreeMap::new();
            found.extend(frames);
            if (found.len() as u64) < last + 1 - seq {
                return Err(StoreError::Unavailable(format!("entries {seq} to {last} are not all there")));
            }
            for frame in found.values() {
                let Some((held, entry)) = Held::of_stored(frame) else {
                    return Err(StoreError::Unavailable("a stored frame does not decode".into()));
                };
                if held.message_id.time_ms() > to_ms {
                    return Ok(Check::New);
                }
                if held.sender == sender && entry.client_message_id == id {
                    let place = Place {
                        epoch: entry.epoch,
                        seq: held.seq,
                        message_id: held.message_id,
                        ordinal: held.ordinal,
                    };
                    return Ok(Check::Repeat(place, print_of(&entry) == print));
                }
            }
            looked += found.len();
            if looked >= SEARCH_ENTRIES_MAX {
                return Ok(Check::Refused(Code::OUTCOME_UNKNOWN));
            }
            seq = last + 1;
        }
        Ok(Check::New)
    }

    fn target(&self, target: u64) -> Result<Check, StoreError> {
        let none = Ok(Check::Refused(Code::NO_SUCH_TARGET));
        let Some(frame) = self.frame(target)? else { return none };
        let Some((held, _)) = Held::of_stored(&frame) else { return none };
        if held.kind != EntryKind::Message || held.seq != target {
            return none;
        }
        let hashes = self.metadata.hashes(&[held.message_id])?;
        if hashes.get(&held.message_id).is_none_or(|(_, _, stored)| *stored != hash::frame(&frame)) {
            return Ok(Check::Refused(Code::CORRUPT));
        }
        let is_recall = |kind: EntryKind| kind == EntryKind::Recall;
        let recalled = self.undrained.iter().any(|entry| entry.target == target && is_recall(entry.kind))
            // Nothing comes behind a recall.
            || self.content.newest_amendment(self.channel, target)?.is_some_and(|one| is_recall(one.kind));
        Ok(if recalled { Check::Refused(Code::RECALLED) } else { Check::Target(held.sender) })
    }
}
