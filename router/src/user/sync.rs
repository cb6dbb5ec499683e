//! SYNC. First the channels' owners are asked how new their channels are; then they serve the session, newest activity
//! first: strictly one by one within the window, where frames are sent, then in strides.
//!
//! Each owner sends the state of its channel itself, before the channel's frames; the owner of the user sends the last
//! SYNCED when all have answered.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
};

use fanfare_proto::{
    ChannelId, Code, Frame, FrameType, MessageId, UserId,
    limits::{REPEATED_MAX, SYNC_FILL_BYTES_MAX, SYNC_WINDOW_MAX},
    link::Origin,
    wire,
};
use fanfare_storage::mutant;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::User;
use crate::{
    desk::Desk,
    event::{Cause, Subscribe, Touch, Word},
    frames, meter,
};

/// Channels filled where a client names no window.
const WINDOW_DEFAULT: u32 = 50;
/// Channels beyond the window that are asked at once.
const STRIDE: usize = 64;

/// A SYNC under way; one per session.
pub struct Syncing {
    id: u64,
    explicit: HashMap<ChannelId, (u32, u64), RandomState>,
    window: usize,
    heads: Vec<(MessageId, ChannelId)>,
    queue: VecDeque<ChannelId>,
    /// Answers that are still to come.
    waiting: usize,
    served: usize,
    total: u32,
    failed: Option<Code>,
    budget: Arc<AtomicUsize>,
}

impl User {
    /// SYNC.
    pub(super) fn sync(&mut self, desk: &mut Desk, origin: &Origin, frame: &Frame) -> Result<(), Code> {
        let sync: wire::Sync = frame.decode()?;
        if sync.positions.len() > REPEATED_MAX || sync.window > SYNC_WINDOW_MAX || !sync.cursor.is_empty() {
            return Err(Code::BAD_FIELD);
        }
        meter::sync();
        let total = self.channels.len();
        let channels: Vec<ChannelId> = self.channels.iter().collect();
        let Some(session) = self.session(origin) else { return Ok(()) };
        if session.syncing.is_some() {
            return Err(Code::TOO_MANY_IN_FLIGHT);
        }
        let id = desk.ids.next(desk.context.now_ms());
        session.follows = true;
        let window = if sync.window == 0 { WINDOW_DEFAULT } else { sync.window };
        session.syncing = Some(Box::new(Syncing {
            id,
            explicit: sync
                .positions
                .iter()
                .map(|position| (ChannelId(position.channel), (position.epoch, position.seq)))
                .collect(),
            window: window as usize,
            heads: Vec::with_capacity(total),
            queue: VecDeque::new(),
            waiting: total,
            served: 0,
            total: 0,
            failed: None,
            budget: Arc::new(AtomicUsize::new(SYNC_FILL_BYTES_MAX)),
        }));
        for channel in &channels {
            desk.post_channel(*channel, Touch::Head { origin: *origin, sync: id });
        }
        if channels.is_empty() {
            self.go_on(desk, origin);
        }
        Ok(())
    }

    /// Word from a channel's owner.
    pub fn word(&mut self, desk: &mut Desk, word: Word) {
        let (origin, sync) = match &word {
            Word::Head { origin, sync, .. } | Word::Subscribed { origin, sync, .. } => (*origin, *sync),
        };
        let saved = match &word {
            Word::Subscribed { channel, served: Ok(Some(position)), .. } => Some((*channel, *position)),
            _ => None,
        };
        let Some(session) = self.session(&origin) else { return };
        let Some(syncing) = session.syncing.as_mut().filter(|syncing| syncing.id == sync) else { return };
        syncing.waiting = syncing.waiting.saturating_sub(1);
        match word {
            Word::Head { head: Ok(Some(head)), channel, .. } => syncing.heads.push((head, channel)),
            Word::Subscribed { served: Ok(Some(_)), .. } => syncing.total += 1,
            Word::Head { head: Err(code), .. } | Word::Subscribed { served: Err(code), .. } => {
                syncing.failed = Some(code);
            }
            Word::Head { head: Ok(None), .. } | Word::Subscribed { served: Ok(None), .. } => {}
        }
        let is_complete = syncing.waiting == 0;
        if mutant::is("cursor-saved-before-push")
            && let Some((channel, position)) = saved
            && let Some(device) = self.device(origin.device)
            && let Some(positions) = &mut device.positions
        {
            positions.set(channel, position);
        }
        if is_complete {
            self.go_on(desk, &origin);
        }
    }

    /// All answers of a step are there: the next step.
    fn go_on(&mut self, desk: &mut Desk, origin: &Origin) {
        let user: UserId = self.id();
        let Some(device) = self.device(origin.device) else { return };
        let stored = device.positions.as_ref();
        let Some(session) = device.session.as_mut().filter(|one| one.session == origin.session) else {
            return;
        };
        let Some(mut syncing) = session.syncing.take() else { return };
        if !syncing.heads.is_empty() {
            let mut heads = std::mem::take(&mut syncing.heads);
            heads.sort_unstable_by(|one, other| other.cmp(one));
            syncing.queue = heads.into_iter().map(|(_, channel)| channel).collect();
        }
        let is_within = syncing.served < syncing.window;
        let stride = if is_within { 1 } else { STRIDE };
        for channel in syncing.queue.drain(..stride.min(syncing.queue.len())) {
            let explicit = syncing.explicit.get(&channel).copied();
            let position = explicit.or_else(|| stored.and_then(|stored| stored.get(channel)));
            let budget = is_within.then(|| Arc::clone(&syncing.budget));
            let subscribe = Subscribe {
                origin: *origin,
                position,
                is_explicit: explicit.is_some(),
                wants: session.wants(channel),
                cause: Cause::Sync { sync: syncing.id, budget },
            };
            syncing.waiting += 1;
            syncing.served += 1;
            desk.post_channel(channel, Touch::Subscribe(subscribe));
        }
        if syncing.waiting > 0 {
            session.syncing = Some(syncing);
            return;
        }
        let (failed, total) = (syncing.failed, syncing.total);
        let answer = match failed {
            // An answer is complete or says that it is not.
            Some(code) => {
                tracing::warn!(%user, ?code, "a sync could not be completed");
                frames::failed(FrameType::Sync, Code::RETRY_LATER)
            }
            None => {
                frames::synced(&wire::Synced { complete: true, channels_total: total, ..Default::default() })
            }
        };
        desk.gateways.reply(origin, answer);
    }
}
