//! Serving sessions: SYNC's answer for one channel, what a gateway missed, typing, and the answer to OPEN.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fanfare_activity::Act;
use fanfare_proto::{
    Code, Frame, FrameType, UserId,
    frame::routed,
    header::class,
    limits::MEMBERSHIP_AT_ONCE_MEMBERS_MAX,
    link::{Down, GatewayId, Origin, Tier, Tiers},
    wire,
};
use fanfare_storage::mutant;
use tokio::time::Instant;

use super::Channel;
use crate::{
    admin::{ChannelSummary, MemberSummary},
    desk::Desk,
    event::{Cause, Subscribe, Wants, Word},
    frames, meter,
};

/// One TYPING per user and channel.
pub const TYPING_EVERY: Duration = Duration::from_secs(3);
/// TYPING frames of one channel passed on per second.
const TYPING_PER_SECOND_MAX: u32 = 10;
/// Bytes of one catching-up fan-out.
const CATCH_UP_BYTES: usize = 64 * 1024;

impl Channel {
    /// Tells a syncing session's owner how new the channel is.
    pub(super) fn tell_head(&self, desk: &Desk, origin: Origin, sync: u64) {
        let is_member = self.members.get(origin.user).is_some() && !self.is_opening();
        let head = Ok(is_member.then(|| self.head_id()));
        desk.post_user(origin.user, Word::Head { origin, sync, channel: self.id(), head });
    }

    /// Serves a session from its position on: first the state, then what is missing, then the live frames, all in one order.
    pub(super) fn subscribe(&mut self, desk: &mut Desk, subscribe: Subscribe) {
        let Subscribe { origin, position, is_explicit, wants, cause } = subscribe;
        let served = self.serve(desk, &origin, position, is_explicit, wants, &cause);
        if let Cause::Sync { sync, .. } = cause {
            let saved_early = mutant::is("cursor-saved-before-push");
            let served =
                Ok(served.map(|seq| (self.row.epoch, if saved_early { self.row.head } else { seq })));
            desk.post_user(origin.user, Word::Subscribed { origin, sync, channel: self.id(), served });
        }
    }

    /// Gives the seq from which the session was served; `None` where the user is no member.
    fn serve(
        &mut self,
        desk: &mut Desk,
        origin: &Origin,
        position: Option<(u32, u64)>,
        is_explicit: bool,
        wants: Wants,
        cause: &Cause,
    ) -> Option<u64> {
        let standing = self.members.get(origin.user)?;
        if self.is_opening() {
            return None;
        }
        let is_served = self.audience.has(origin);
        if is_served && matches!(cause, Cause::Joined(_)) {
            return None;
        }
        // The session shall go on from the head: a gateway that is behind is told of the gap now, before it.
        self.close_gap(desk, origin.gateway);
        let head = self.row.head;
        let floor = standing.joined_seq.saturating_sub(1).min(head);
        let position = match (cause, position) {
            (Cause::Joined(seq), _) if mutant::is("join-served-one-late") => *seq,
            (Cause::Joined(seq), _) => seq.saturating_sub(1).max(floor),
            // Served already, and the client said nothing new: it has been sent everything.
            _ if is_served && !is_explicit => head,
            (_, None) => floor,
            (_, Some((epoch, seq))) if epoch < self.row.epoch => {
                seq.min(self.row.epoch_start.saturating_sub(1)).max(floor)
            }
            (_, Some((_, seq))) => seq.max(floor),
        }
        .min(head);
        let state = self.state_for(origin.user, position, desk.context.now_ms());
        let mut out = match cause {
            Cause::Joined(_) => frames::channel(0, &state).to_vec(),
            Cause::Sync { .. } => {
                frames::synced(&wire::Synced { channels: vec![state], ..Default::default() }).to_vec()
            }
        };
        if position < head {
            let from = position + u64::from(mutant::is("resume-off-by-one"));
            let bytes =
                if self.tail.covers(position, head) { self.tail.bytes_behind(from) } else { usize::MAX };
            let is_within = match cause {
                Cause::Joined(_) => bytes <= CATCH_UP_BYTES,
                Cause::Sync { budget, .. } => budget.as_ref().is_some_and(|budget| take(budget, bytes)),
            };
            if is_within {
                for held in self.tail.behind(from) {
                    out.extend_from_slice(&held.frame);
                }
            } else {
                meter::gap();
                out.extend_from_slice(&self.gap(position));
            }
        }
        desk.gateways.reply(origin, out.into());
        if !is_served {
            let serving = self.serve_as(desk, origin.user, wants);
            if serving.tier() == Tier::Warm {
                // It has everything up to the head: what waits for the others is not for it.
                self.settle_warm(desk, origin.gateway);
            }
            self.comes_to(origin.gateway, serving.tier());
            self.audience.add(origin, serving, self.heard);
            if !self.wait_to_listen(origin) {
                desk.gateways.add(self.id(), origin.gateway, origin.handle, serving.tier());
            }
        }
        Some(position)
    }

    pub(super) fn gap(&self, after: u64) -> bytes::Bytes {
        frames::gap(self.id(), &self.head_at(after, self.heard))
    }

    /// Up to where entries go out: not those that are held.
    pub(super) fn sent(&self) -> u64 {
        self.waits.held.map_or(self.heard, |first| first.saturating_sub(1))
    }

    /// Where the sessions stand that get entries at once at a gateway: behind the head while it is behind, or entries are held.
    pub(super) fn sent_to(&self, gateway: GatewayId) -> u64 {
        let at = self.audience.gateways.iter().find(|at| at.gateway == gateway);
        let sent = self.sent();
        at.and_then(|at| at.behind).map_or(sent, |behind| behind.min(sent))
    }

    /// Sends a GAP to a gateway that is behind, credit or not: it is small, and one at most per channel that fell behind.
    pub(super) fn close_gap(&mut self, desk: &mut Desk, gateway: GatewayId) {
        let (channel, head) = (self.id(), self.sent());
        let Some(at) = self.audience.at(gateway) else { return };
        let lanes = at.lanes();
        let Some(sent) = at.behind.take() else { return };
        if sent < head {
            meter::gap();
            let frames = frames::gap(channel, &self.head_at(sent, head));
            desk.gateways.tell_at(gateway, Down::Fanout { channel, lanes, tiers: Tiers::AT_ONCE, frames });
        }
    }

    /// A gateway that was behind has credit again: from the tail, or GAP.
    pub fn catch_up(&mut self, desk: &mut Desk, gateway: GatewayId) {
        let (channel, head) = (self.id(), self.sent());
        loop {
            let Some(at) = self.audience.at(gateway) else { return };
            let Some(sent) = at.behind else { return };
            let lanes = at.lanes();
            if sent >= head {
                at.behind = None;
                return;
            }
            if !self.tail.covers(sent, head) {
                return self.close_gap(desk, gateway);
            }
            let credit = usize::try_from(desk.gateways.credit(gateway)).unwrap_or(0);
            let gathered =
                if credit == 0 { None } else { self.tail.gather(sent, head, CATCH_UP_BYTES.min(credit)) };
            let Some((frames, last)) = gathered else {
                return desk.gateways.put_behind(gateway, channel);
            };
            desk.gateways.tell_at(gateway, Down::Fanout { channel, lanes, tiers: Tiers::AT_ONCE, frames });
            if let Some(at) = self.audience.at(gateway) {
                at.behind = Some(last);
            }
        }
    }

    /// After the channel was read again: its audience goes on from what it was sent.
    pub fn resume_audience(&mut self, desk: &mut Desk, mut audience: crate::audience::Audience, sent: u64) {
        let gateways: Vec<GatewayId> = audience.gateways.iter().map(|at| at.gateway).collect();
        for at in &mut audience.gateways {
            at.behind = Some(at.behind.unwrap_or(sent).min(sent));
        }
        self.audience = audience;
        for gateway in gateways {
            self.catch_up(desk, gateway);
        }
        self.resume_waits(desk);
    }

    /// TYPING.
    pub(super) fn typing(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let Ok(typing) = frame.decode::<wire::Typing>() else {
            return desk.gateways.reply(&origin, frames::failed(FrameType::Typing, Code::BAD_BODY));
        };
        let role = self.members.get(origin.user).map(|standing| standing.role);
        if role.is_none() && !mutant::is("typing-skips-membership") {
            return desk.gateways.reply(&origin, frames::failed(FrameType::Typing, Code::NOT_A_MEMBER));
        }
        if self.may_post(origin.user, role.unwrap_or(0), desk.context.now_ms()).is_err() {
            return;
        }
        let now = Instant::now();
        let is_first = self.typed.get(&origin.user).is_none_or(|typed| *typed + TYPING_EVERY <= now);
        if !typing.stopped && is_first {
            self.act(desk, origin.user, Act::Type);
        }
        if self.members.len() > MEMBERSHIP_AT_ONCE_MEMBERS_MAX {
            if !typing.stopped && is_first {
                self.typed.insert(origin.user, now);
            }
            return;
        }
        let typed = self.typed.get(&origin.user);
        if !typing.stopped && typed.is_some_and(|typed| now.duration_since(*typed) < TYPING_EVERY) {
            return;
        }
        match self.typing_window {
            (Some(since), count) if now.duration_since(since) < Duration::from_secs(1) => {
                if count >= TYPING_PER_SECOND_MAX {
                    return;
                }
                self.typing_window.1 += 1;
            }
            _ => self.typing_window = (Some(now), 1),
        }
        if typing.stopped {
            // A stop for each start, no more.
            if self.typed.remove(&origin.user).is_none() {
                return;
            }
        } else {
            self.typed.insert(origin.user, now);
        }
        let word = wire::Typing { user: origin.user.0, stopped: typing.stopped };
        let bytes = routed(FrameType::Typing, class::HINT, 0, 0, self.id(), 0, &word);
        self.hint(desk, bytes);
    }

    /// To the audience where there is credit; may be lost.
    pub(super) fn hint(&mut self, desk: &mut Desk, frames: bytes::Bytes) -> bool {
        let (channel, mut all) = (self.id(), true);
        for at in self.audience.gateways.iter().filter(|at| at.has_at_once()) {
            let (lanes, tiers) = (at.lanes(), Tiers::AT_ONCE);
            let down = Down::Fanout { channel, lanes, tiers, frames: frames.clone() };
            all &= at.behind.is_none() && desk.gateways.fan_out(at.gateway, down);
        }
        all
    }

    /// The answer to OPEN.
    pub(super) fn answer_open(&mut self, desk: &mut Desk, origin: &Origin, request: u64) {
        let frame = match self.members.get(origin.user) {
            Some(standing) => {
                let start = standing.joined_seq.saturating_sub(1);
                let position = if self.audience.has(origin) { self.sent_to(origin.gateway) } else { start };
                frames::channel(request, &self.state_for(origin.user, position, desk.context.now_ms()))
            }
            None => {
                frames::refused(FrameType::Open, fanfare_proto::ChannelId(0), request, Code::NOT_A_MEMBER)
            }
        };
        desk.gateways.reply(origin, frame);
    }

    /// For people.
    pub(super) fn describe(&self, user: Option<UserId>, now_ms: u64) -> ChannelSummary {
        let mut members: Vec<MemberSummary> = self
            .members
            .iter()
            .filter(|(one, _)| user.is_none_or(|user| user == *one))
            .map(|(user, standing)| MemberSummary {
                user,
                role: standing.role,
                joined_seq: standing.joined_seq,
                visible_from: standing.visible_from,
                cursor: self.cursors.get(user),
            })
            .collect();
        members.sort_unstable_by_key(|member| member.user);
        ChannelSummary {
            row: self.row.clone(),
            members_total: self.members.len(),
            members,
            sessions: self.audience.len(),
            state: user.map(|user| self.state_for(user, self.row.head, now_ms)),
            tail_frames: self.tail.len(),
        }
    }
}

/// Takes bytes out of a budget; `false`, and nothing taken, where they are not there.
fn take(budget: &Arc<AtomicUsize>, bytes: usize) -> bool {
    budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
}
