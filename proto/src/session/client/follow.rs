//! Where channels stand: what SYNCED, CHANNEL, GAP, NOTIFY and PAGE say of positions, and what an epoch that rose voids.

use std::collections::hash_map::Entry;

use super::{ChannelLog, ClientSession, Defect, DeviceState, Event};
use crate::{
    error::Code,
    frame,
    header::{FrameType, class},
    ids::{ChannelId, Seq},
    limits, wire,
};

impl ClientSession {
    pub(super) fn synced(&mut self, synced: wire::Synced, sink: &mut impl FnMut(Event)) -> Result<(), Code> {
        for state in &synced.channels {
            self.follow(state, true, sink)?;
        }
        self.sync_pause_ms = 0;
        if !synced.complete && !synced.cursor.is_empty() {
            let window = self.sync_window.unwrap_or(0);
            let next = wire::Sync { positions: Vec::new(), window, cursor: synced.cursor.clone() };
            self.outgoing.push_back(frame::short(FrameType::Sync, class::CONTROL, &next));
        }
        sink(Event::Synced(Box::new(synced)));
        Ok(())
    }

    /// Takes over where the server says a channel stands: it sends from `state.position` on. `restart`: and what it sent of
    /// the channel before is over.
    pub(super) fn follow(
        &mut self,
        state: &wire::ChannelState,
        restart: bool,
        sink: &mut impl FnMut(Event),
    ) -> Result<(), Code> {
        bounded([state.channel, state.position, state.head, state.epoch_start, state.delivered])?;
        let channel = ChannelId(state.channel);
        if state.role == wire::Role::None as i32 {
            self.device.channels.remove(&channel);
            self.dirty.retain(|dirty| *dirty != channel);
            self.receipts.retain(|due| *due != channel);
            return Ok(());
        }
        let new = !self.device.channels.contains_key(&channel);
        let log = log_of(&mut self.device, channel)?;
        log.direct = state.kind == wire::ChannelKind::Direct as i32;
        log.receipted = log.receipted.max(state.delivered);
        if new {
            (log.epoch, log.epoch_start, log.position) = (state.epoch, state.epoch_start, state.position);
        } else if !known_epoch(log, channel, state.epoch, state.epoch_start, sink) {
            return Ok(());
        }
        // A CHANNEL of a channel that is followed may have been overtaken by its entries (QUIC): it moves nothing back.
        log.tip = if restart || !log.followed { state.position } else { log.tip.max(state.position) };
        log.followed = true;
        if !log.held.missing(log.position, state.position).is_empty() {
            // The server starts behind what this state was made of: what lies between it will not send.
            sink(Event::Gap { channel, after: log.position, head: state.position });
        }
        Ok(())
    }

    pub(super) fn head_moved(
        &mut self,
        channel: ChannelId,
        head: &wire::Head,
        by_tier: bool,
        sink: &mut impl FnMut(Event),
    ) -> Result<(), Code> {
        bounded([head.head, head.after, head.epoch_start, head.ordinal])?;
        let log = log_of(&mut self.device, channel)?;
        if !log.followed && log.position == 0 && log.held.is_empty() {
            (log.epoch, log.epoch_start, log.position) = (head.epoch, head.epoch_start, head.after);
        } else if !known_epoch(log, channel, head.epoch, head.epoch_start, sink) {
            return Ok(());
        }
        log.followed = true;
        log.tip = log.tip.max(head.head);
        let (after, is_missing) = (log.position, !log.held.missing(log.position, head.head).is_empty());
        if by_tier {
            sink(Event::Notified { channel, after, head: head.head, ordinal: head.ordinal });
        } else if is_missing {
            sink(Event::Gap { channel, after, head: head.head });
        }
        Ok(())
    }

    /// Marks a page's range held; what of it was not.
    pub(super) fn page(&mut self, now_ms: u64, channel: ChannelId, page: &wire::Page) -> Vec<(Seq, Seq)> {
        let Some(log) = self.device.channels.get_mut(&channel) else { return Vec::new() };
        let first = page.first.max(1);
        let news = log.held.missing(log.position.max(first - 1), page.last);
        if log.hold_range(first, page.last) {
            self.position_moved(now_ms, channel);
        }
        news
    }
}

/// Where a channel stands; one that is new is followed as far as a user can have channels.
pub(super) fn log_of(device: &mut DeviceState, channel: ChannelId) -> Result<&mut ChannelLog, Code> {
    let known = device.channels.len();
    match device.channels.entry(channel) {
        Entry::Occupied(log) => Ok(log.into_mut()),
        Entry::Vacant(_) if known >= limits::CHANNELS_PER_USER_MAX => Err(Code::BAD_FIELD),
        Entry::Vacant(place) => Ok(place.insert(ChannelLog::default())),
    }
}

/// Ids and seqs are below 2^63.
pub(super) fn bounded<const N: usize>(numbers: [u64; N]) -> Result<(), Code> {
    if numbers.iter().any(|number| number >> 63 != 0) { Err(Code::BAD_FIELD) } else { Ok(()) }
}

/// A DELIVER of a channel that nobody named in this session: it is followed from there. On QUIC the first entries of a channel that was just
/// opened may come before the answer.
#[cold]
pub(super) fn unannounced(
    log: &mut ChannelLog,
    channel: ChannelId,
    seq: Seq,
    epoch: u8,
    sink: &mut impl FnMut(Event),
) {
    log.followed = true;
    if log.position == 0 && log.held.is_empty() {
        log.epoch = u32::from(epoch);
    }
    log.tip = log.position.max(seq.saturating_sub(1));
    if log.position + 1 < seq {
        sink(Event::Defect { channel, kind: Defect::Unannounced, after: log.position, before: seq });
    }
}

/// A DELIVER whose epoch is not the channel's newest: older entries keep theirs, a newer one rewound the log. Whether the entry
/// is valid.
#[cold]
pub(super) fn other_epoch(
    log: &mut ChannelLog,
    channel: ChannelId,
    seq: Seq,
    epoch: u8,
    sink: &mut impl FnMut(Event),
) -> bool {
    let ahead = epoch.wrapping_sub(log.epoch as u8);
    if ahead >= 0x80 {
        return seq < log.epoch_start;
    }
    let epoch = log.epoch.saturating_add(ahead.into());
    if log.raise_epoch(epoch, seq) {
        sink(Event::Rewound { channel, epoch, from: seq });
    }
    true
}

/// Brings the log to the epoch of a state or head; whether that is not older than the log's.
pub(super) fn known_epoch(
    log: &mut ChannelLog,
    channel: ChannelId,
    epoch: u32,
    start: Seq,
    sink: &mut impl FnMut(Event),
) -> bool {
    if epoch < log.epoch {
        sink(Event::Defect {
            channel,
            kind: Defect::EpochFell,
            after: log.position,
            before: log.position + 1,
        });
        return false;
    }
    if epoch > log.epoch {
        if log.raise_epoch(epoch, start) {
            sink(Event::Rewound { channel, epoch, from: start });
        }
    } else if start != 0 {
        log.epoch_start = start;
    }
    true
}
