//! Who gets what when: sessions' tiers by what members do and show, and the delayed part of the fan-out.
//!
//! Entries go to visible and active sessions as they are committed ([`Channel::fan_out`]). Warm sessions of a gateway get a bundle from
//! the tail, and passive ones a NOTIFY with the head; a timer of the channel is set when there is something for them, so what that costs
//! follows the time and not the rate of messages. Everything a channel knows of this is a seq for each gateway and tier.

use std::time::Duration;

use fanfare_activity::{Act, Level, Member, Shown, level};
use fanfare_proto::{
    FrameType, UserId,
    frame::routed,
    header::class,
    link::{GatewayId, Origin, Tier, Tiers},
    wire,
};
use fanfare_storage::model::{CursorBatch, EntryKind, MarkKind};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Channel, Sequenced, bundle::Comer};
use crate::{
    audience::{Listener, Serving},
    desk::{Desk, Due},
    event::Wants,
    meter,
    scores::act_of,
    writer::Job,
};

/// Bytes of one bundle, and of what one session is sent when its tier rises; beyond it is told the head.
const BUNDLE_BYTES: usize = 64 * 1024;
/// The most that heads are handed over before their time.
const EARLY_MAX: Duration = Duration::from_millis(100);
/// How long changed scores stay unwritten.
const SCORES_EVERY: Duration = Duration::from_secs(30);
/// Looking at a channel counts once in this.
const LOOKS_EVERY_MS: u64 = 30_000;

/// What of a channel waits for a time.
#[derive(Debug, Default)]
pub struct Waits {
    /// Since when there is something for warm sessions, and when that is looked at.
    warm: Option<(Instant, Instant)>,
    /// It is time, but for the commit that is under way.
    warm_waits: bool,
    /// Since when there is something to tell passive ones: with the app on screen, and not.
    told: [Option<Instant>; 2],
    look: bool,
    /// The clock from which on it is time for that look, should its timer be late.
    look_ms: u64,
    scores: bool,
    /// Membership entries from this seq on.
    pub(super) held: Option<u64>,
    /// When the last of them went out.
    pub(super) held_sent: Option<Instant>,
    /// Sessions that came since, and have what is held.
    pub(super) comers: Vec<Comer>,
}

/// When what is due within `bound` is handed over: a little before, as the gateway sends it in slices behind everything else.
fn early(bound: Duration) -> Duration {
    bound - (bound / 10).min(EARLY_MAX)
}

impl Channel {
    /// Whether members' activity decides anything here: not in direct channels and small groups, where everybody is active.
    fn is_tiered(&self, desk: &Desk) -> bool {
        let config = &desk.context.config;
        config.tiers.by_activity && !self.is_direct() && self.members.len() > config.activity.small_members
    }

    fn member(&self, user: UserId, shown: Shown, now_ms: u64) -> Member {
        let read = self.cursors.get(user).read_ordinal;
        Member {
            shown,
            is_direct: self.is_direct(),
            members: self.members.len(),
            is_muted: self.marks.get(user, MarkKind::Muted, now_ms).is_some(),
            unread: self.row.ordinal.saturating_sub(read),
            total: self.scores.total(),
        }
    }

    /// How a session of that user is to be served that shows so much and has that level now.
    fn served_as(&self, desk: &Desk, user: UserId, shown: Shown, now: Level) -> Serving {
        if shown == Shown::Visible || !self.is_tiered(desk) {
            return Serving::of(shown, Level::Active);
        }
        let (config, score, now_ms) = (&desk.context.config, self.scores.get(user), desk.context.now_ms());
        let level = level(&config.activity, &score, &self.member(user, shown, now_ms), now, now_ms);
        Serving::of(shown, level)
    }

    /// How a new session is to be served.
    pub(super) fn serve_as(&mut self, desk: &mut Desk, user: UserId, wants: Wants) -> Serving {
        let serving = match wants {
            Wants::Full => Serving::Full,
            Wants::ByTier(shown) => self.served_as(desk, user, shown, Level::Passive),
        };
        if serving.may_fade() {
            self.look_later(desk);
        }
        serving
    }

    /// A member did something, or others did something to it: its sessions rise where the score says so.
    pub(super) fn act(&mut self, desk: &mut Desk, user: UserId, act: Act) {
        if self.is_direct() || self.members.get(user).is_none() {
            return;
        }
        let now_ms = desk.context.now_ms();
        if self.scores.act(&desk.context.config.activity, user, act, now_ms) && !self.waits.scores {
            self.waits.scores = true;
            desk.at(Instant::now() + SCORES_EVERY, Due::Scores(self.id()));
        }
        for listener in self.audience.of_user(user) {
            if listener.serving.level() < Level::Active {
                let shown = listener.serving.shown();
                let serving = self.served_as(desk, user, shown, listener.serving.level());
                self.serve_otherwise(desk, user, &listener, serving);
            }
        }
    }

    /// A member is mentioned or replied to: its sessions get that entry and what follows at once.
    pub(super) fn name(&mut self, desk: &mut Desk, user: UserId) {
        self.act(desk, user, Act::Named);
        for listener in self.audience.of_user(user) {
            if listener.serving.level() < Level::Active {
                let serving = Serving::of(listener.serving.shown(), Level::Active);
                self.serve_otherwise(desk, user, &listener, serving);
            }
        }
    }

    /// What committed entries say of members, before anybody hears of them: who is named hears with the active ones.
    pub(super) fn before_hearing(&mut self, desk: &mut Desk, items: &[Sequenced]) {
        if self.is_direct() {
            return;
        }
        let now_ms = desk.context.now_ms();
        if self.waits.look && now_ms >= self.waits.look_ms {
            self.waits.look_ms = now_ms + desk.context.config.tiers.look.as_millis() as u64;
            self.look_at(desk, Serving::may_fade);
        }
        for item in items {
            let sender = item.entry.sender;
            if let Some(act) = act_of(item.entry.kind) {
                self.act(desk, sender, act);
            }
            let Some(named) = &item.named else { continue };
            let mut replied = None;
            if named.reply_to > 0 {
                self.act(desk, sender, Act::Reply);
                replied = self.replied(desk, sender, named.reply_to);
            }
            let mentioned = named.users.iter().copied().filter(|user| Some(*user) != replied);
            for user in replied.into_iter().chain(mentioned).filter(|user| *user != sender) {
                self.name(desk, user);
            }
        }
    }

    /// Who sent the message that one answers; of an older one that is looked up.
    fn replied(&self, desk: &Desk, sender: UserId, seq: u64) -> Option<UserId> {
        if !self.members.sees(sender, seq) {
            return None;
        }
        let held = self.tail.get(seq);
        if held.is_none() {
            self.look_up_replied(desk, sender, seq);
        }
        held.filter(|held| held.kind == EntryKind::Message).map(|held| held.sender)
    }

    /// A session shows the channel, or no longer, or the app came or went.
    pub(super) fn shows(&mut self, desk: &mut Desk, origin: &Origin, shown: Shown) {
        let Origin { gateway, handle, user, .. } = *origin;
        let Some(serving) = self.audience.serving(gateway, user, handle) else { return };
        if serving == Serving::Full || serving.shown() == shown {
            return;
        }
        let is_opened = shown == Shown::Visible;
        let listener = Listener { gateway, handle, serving };
        let wanted = self.served_as(desk, user, shown, serving.level());
        self.serve_otherwise(desk, user, &listener, wanted);
        if is_opened {
            self.looked(desk, user, Act::Look);
        }
    }

    /// A member came to the channel, by a push or otherwise: coming again and again is one act.
    pub(super) fn looked(&mut self, desk: &mut Desk, user: UserId, act: Act) {
        let now_ms = desk.context.now_ms();
        if self.scores.get(user).acted_ms() + LOOKS_EVERY_MS <= now_ms {
            self.act(desk, user, act);
        }
    }

    /// Serves a session otherwise. First it gets what those have whom it joins, then the gateway is told.
    fn serve_otherwise(&mut self, desk: &mut Desk, user: UserId, listener: &Listener, to: Serving) {
        let from = listener.serving;
        if from == to || from == Serving::Full {
            return;
        }
        let gateway = listener.gateway;
        if self.waits_to_listen(listener) {
            self.release(desk);
        }
        if from.tier() != to.tier() {
            self.moved(listener);
            // What those whom it joins are still to get would come to it a second time.
            if self.waits.held.is_some() {
                self.release(desk);
            }
            if to.level() == Level::Active {
                self.close_gap(desk, gateway);
            }
            if from.tier() == Tier::Warm || to.tier() == Tier::Warm {
                self.settle_warm(desk, gateway);
            }
            let stands = self.stands_at(gateway, from);
            if stands < self.heard {
                let frames = self.news(stands, from.level() > Level::Passive);
                desk.gateways.reply_at(gateway, listener.handle, frames);
            }
        }
        self.comes_to(gateway, to.tier());
        self.audience.set(user, listener, to);
        if from.tier() != to.tier() {
            desk.gateways.add(self.id(), gateway, listener.handle, to.tier());
        }
        if to.may_fade() {
            self.look_later(desk);
        }
    }

    /// A session of that tier comes at a gateway, with everything that was heard of: where it is the first one, nothing waits for it.
    pub(super) fn comes_to(&mut self, gateway: GatewayId, tier: Tier) {
        let heard = self.heard;
        let Some(at) = self.audience.at(gateway).filter(|at| at.count(tier) == 0) else { return };
        match tier {
            Tier::Visible | Tier::Active => {}
            Tier::Warm => at.warm_to = heard,
            Tier::Passive => at.told[0] = heard,
            Tier::Background => at.told[1] = heard,
        }
    }

    /// Up to where sessions served so at a gateway were sent entries, or told the head.
    pub(super) fn stands_at(&self, gateway: GatewayId, serving: Serving) -> u64 {
        let Some(at) = self.audience.gateways.iter().find(|at| at.gateway == gateway) else {
            return self.heard;
        };
        match serving.tier() {
            Tier::Visible | Tier::Active => self.sent_to(gateway),
            Tier::Warm => at.warm_to,
            Tier::Passive => at.told[0],
            Tier::Background => at.told[1],
        }
    }

    /// What a session that stands there gets to be as far as the others: frames where it had all before and they are few, else the head.
    pub(super) fn news(&self, stands: u64, had_all: bool) -> bytes::Bytes {
        if had_all && self.tail.covers(stands, self.heard) {
            let gathered = self.tail.gather(stands, self.heard, BUNDLE_BYTES);
            if let Some((frames, last)) = gathered
                && last == self.heard
            {
                return frames;
            }
        }
        self.notify(stands)
    }

    /// NOTIFY with the head as far as it is heard of.
    fn notify(&self, after: u64) -> bytes::Bytes {
        self.notify_of(after, self.heard)
    }

    fn notify_of(&self, after: u64, head: u64) -> bytes::Bytes {
        let head = self.head_at(after, head);
        routed(FrameType::Notify, class::STATE, 0, head.epoch, self.id(), head.head, &head)
    }

    /// A head, for who has everything up to `after`.
    pub(super) fn head_at(&self, after: u64, head: u64) -> wire::Head {
        let ordinal = self.tail.get(head).map_or(self.row.ordinal, |held| held.ordinal);
        let (epoch, epoch_start) = (self.row.epoch, self.row.epoch_start);
        wire::Head { epoch, epoch_start, head, ordinal, after }
    }

    fn look_later(&mut self, desk: &mut Desk) {
        if !self.waits.look && self.is_tiered(desk) {
            self.waits.look = true;
            let look = desk.context.config.tiers.look;
            self.waits.look_ms = desk.context.now_ms() + look.as_millis() as u64;
            desk.at(Instant::now() + look, Due::Look(self.id()));
        }
    }

    /// The group grew or shrank: whether activity decides may have changed.
    pub(super) fn resized(&mut self, desk: &mut Desk) {
        if self.is_tiered(desk) {
            return self.look_later(desk);
        }
        if self
            .audience
            .gateways
            .iter()
            .any(|at| [Tier::Warm, Tier::Passive, Tier::Background].iter().any(|tier| at.count(*tier) > 0))
        {
            self.look_at(desk, |serving| serving.level() < Level::Active);
        }
    }

    /// Looks at the scores of those who may have to go down a tier.
    pub fn look(&mut self, desk: &mut Desk) {
        self.waits.look = false;
        let visible: SmallVec<[UserId; 16]> = self
            .audience
            .gateways
            .iter()
            .filter(|at| at.count(Tier::Visible) > 0)
            .flat_map(|at| at.all())
            .filter(|(_, listener)| listener.serving == Serving::Visible)
            .map(|(user, _)| user)
            .collect();
        for user in visible {
            self.looked(desk, user, Act::Look);
        }
        self.look_at(desk, Serving::may_fade);
    }

    fn look_at(&mut self, desk: &mut Desk, is_looked_at: impl Fn(Serving) -> bool) {
        let mut changed: Vec<(UserId, Listener, Serving)> = Vec::new();
        let mut may_fade = false;
        for (user, listener) in self.audience.gateways.iter().flat_map(|at| at.all()) {
            let serving = listener.serving;
            if !is_looked_at(serving) {
                continue;
            }
            let wanted = self.served_as(desk, user, serving.shown(), serving.level());
            may_fade |= wanted.may_fade();
            if wanted != serving {
                changed.push((user, listener, wanted));
            }
        }
        for (user, listener, wanted) in changed {
            self.serve_otherwise(desk, user, &listener, wanted);
        }
        if may_fade {
            self.look_later(desk);
        }
    }

    /// Something is there for warm and passive sessions: they get it in their time.
    pub(super) fn put_off(&mut self, desk: &mut Desk) {
        let (warm, passive, background) = self.audience.gateways.iter().fold((0, 0, 0), |sums, at| {
            let (warm, passive) = (at.count(Tier::Warm), at.count(Tier::Passive));
            (sums.0 + warm, sums.1 + passive, sums.2 + at.count(Tier::Background))
        });
        let (now, times) = (Instant::now(), desk.context.config.tiers);
        if warm > 0 && self.waits.warm.is_none() {
            self.look_at_warm(desk, now, now + times.warm);
        }
        let passives = [(passive, times.passive), (background, times.background)];
        for (number, (count, after)) in passives.into_iter().enumerate() {
            if count > 0 && self.waits.told[number].is_none() {
                self.waits.told[number] = Some(now);
                let tier = if number == 0 { Tier::Passive } else { Tier::Background };
                desk.at(now + early(after), Due::Tell(self.id(), tier));
            }
        }
    }

    fn look_at_warm(&mut self, desk: &mut Desk, since: Instant, due: Instant) {
        self.waits.warm = Some((since, due));
        desk.at(due, Due::Warm(self.id()));
    }

    /// The time of warm sessions has come, unless it is stretched as things stand now. A message that is being committed goes along: else
    /// the same sessions were written to twice within a few milliseconds.
    pub fn warm_due(&mut self, desk: &mut Desk) {
        let (now, times) = (Instant::now(), desk.context.config.tiers);
        let Some((since, due)) = self.waits.warm else { return };
        if now < due {
            // What this timer was for has gone; something else waits since.
            return;
        }
        let stretched = since + desk.strain.warm(now, times.warm);
        if now < stretched {
            return self.look_at_warm(desk, since, stretched.min(now + times.warm));
        }
        if self.in_flight.is_some() && !self.waits.warm_waits {
            self.waits.warm_waits = true;
            return self.look_at_warm(desk, since, now + times.commit);
        }
        self.tell_warm(desk);
    }

    /// Messages were committed: a bundle that waited for them goes.
    pub(super) fn warm_goes_along(&mut self, desk: &mut Desk) {
        if self.waits.warm_waits {
            self.tell_warm(desk);
        }
    }

    /// Warm sessions get their bundles.
    fn tell_warm(&mut self, desk: &mut Desk) {
        (self.waits.warm, self.waits.warm_waits) = (None, false);
        let gateways: SmallVec<[GatewayId; 4]> = self.audience.gateways.iter().map(|at| at.gateway).collect();
        let mut is_all = true;
        for gateway in gateways {
            is_all &= self.bundle(desk, gateway, true);
        }
        if !is_all {
            self.put_off(desk);
        }
    }

    /// Warm sessions of a gateway get what there is for them, now.
    pub(super) fn settle_warm(&mut self, desk: &mut Desk, gateway: GatewayId) {
        self.bundle(desk, gateway, false);
    }

    /// Sends warm sessions of a gateway what they were not sent yet, but for membership entries that are held for everybody; with `waits` only
    /// as far as there is credit. Gives whether they have all of it.
    fn bundle(&mut self, desk: &mut Desk, gateway: GatewayId, waits: bool) -> bool {
        let heard = self.sent();
        loop {
            let Some(at) = self.audience.at(gateway) else { return true };
            let (stands, lanes) = (at.warm_to, at.lanes());
            if stands >= heard || at.count(Tier::Warm) == 0 {
                at.warm_to = heard;
                return true;
            }
            let gathered = if self.tail.covers(stands, heard) {
                self.tail.gather(stands, heard, BUNDLE_BYTES)
            } else {
                None
            };
            let (frames, to) = gathered.unwrap_or_else(|| (self.notify_of(stands, heard), heard));
            let down =
                fanfare_proto::link::Down::Fanout { channel: self.id(), lanes, tiers: Tiers::WARM, frames };
            if !waits {
                desk.gateways.tell_at(gateway, down);
            } else if !desk.gateways.fan_out_late(gateway, down) {
                desk.strain.short(Instant::now());
                return false;
            }
            meter::bundle();
            self.handed(desk, gateway, Tier::Warm, stands, to);
            if let Some(at) = self.audience.at(gateway) {
                at.warm_to = to;
            }
        }
    }

    /// The time of passive sessions has come, unless it is stretched as things stand now: it may have been when it began, and they shall
    /// not wait for what is over.
    pub fn passive_due(&mut self, desk: &mut Desk, tier: Tier) {
        let (now, times) = (Instant::now(), desk.context.config.tiers);
        let number = usize::from(tier == Tier::Background);
        let after = early(if number == 0 { times.passive } else { times.background });
        let Some(since) = self.waits.told[number] else { return };
        let stretched = since + desk.strain.passive(now, after);
        if now < stretched {
            return desk.at(stretched.min(now + after), Due::Tell(self.id(), tier));
        }
        self.waits.told[number] = None;
        self.tell_passive(desk, tier);
    }

    /// One NOTIFY for each gateway, however many entries there were.
    fn tell_passive(&mut self, desk: &mut Desk, tier: Tier) {
        let number = usize::from(tier == Tier::Background);
        let (channel, heard) = (self.id(), self.heard);
        let oldest = self.audience.gateways.iter().map(|at| at.told[number]).min().unwrap_or(heard);
        if oldest >= heard {
            return;
        }
        let frames = self.notify(oldest);
        let mut is_all = true;
        let mut told: SmallVec<[(GatewayId, u64); 4]> = SmallVec::new();
        for at in &mut self.audience.gateways {
            if at.told[number] < heard && at.count(tier) > 0 {
                let (lanes, tiers) = (at.lanes(), Tiers::of(tier));
                let down =
                    fanfare_proto::link::Down::Fanout { channel, lanes, tiers, frames: frames.clone() };
                if !desk.gateways.fan_out_late(at.gateway, down) {
                    desk.strain.short(Instant::now());
                    is_all = false;
                    continue;
                }
                meter::notify();
                told.push((at.gateway, at.told[number]));
            }
            at.told[number] = heard;
        }
        for (gateway, after) in told {
            self.handed(desk, gateway, tier, after, heard);
        }
        if !is_all {
            self.put_off(desk);
        }
    }

    /// An entry for everybody in the same moment: to warm sessions with what they lack, to passive ones behind the head.
    pub(super) fn tell_all(&mut self, desk: &mut Desk, frames: &bytes::Bytes) {
        let gateways: SmallVec<[GatewayId; 4]> = self.audience.gateways.iter().map(|at| at.gateway).collect();
        for gateway in gateways {
            self.settle_warm(desk, gateway);
        }
        let (channel, heard) = (self.id(), self.heard);
        let mut both = self.notify(0).to_vec();
        both.extend_from_slice(frames);
        let frames = bytes::Bytes::from(both);
        for at in &mut self.audience.gateways {
            if at.count(Tier::Passive) + at.count(Tier::Background) > 0 {
                let tiers = Tiers(Tiers::of(Tier::Passive).0 | Tiers::of(Tier::Background).0);
                let lanes = at.lanes();
                let down =
                    fanfare_proto::link::Down::Fanout { channel, lanes, tiers, frames: frames.clone() };
                if !desk.gateways.fan_out(at.gateway, down) {
                    continue;
                }
            }
            at.told = [heard; 2];
        }
    }

    /// Warm sessions hear now what was taken back.
    pub(super) fn hurry_warm(&mut self, desk: &mut Desk) {
        if self.audience.gateways.iter().any(|at| at.count(Tier::Warm) > 0) {
            self.tell_warm(desk);
        }
    }

    /// Hands scores that changed to the writer.
    pub fn write_scores(&mut self, desk: &mut Desk) {
        self.waits.scores = false;
        if !self.scores.is_dirty() {
            return;
        }
        if !desk.context.cursors.has_room() {
            self.waits.scores = true;
            return desk.at(Instant::now() + Duration::from_secs(1), Due::Scores(self.id()));
        }
        let activities = self.scores.take_dirty(self.id(), self.row.head);
        let batch = CursorBatch { activities, ..Default::default() };
        desk.context.cursors.push(Job { batch, then: None, is_soon: false });
    }

    /// After the channel was read again: what was put off is put off anew.
    pub(super) fn resume_waits(&mut self, desk: &mut Desk) {
        self.put_off(desk);
        self.look_later(desk);
    }
}
