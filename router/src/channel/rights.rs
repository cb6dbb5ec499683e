//! Who may do what in a channel, as it stands when the entry gets its place: checked by the owner, so that the write and
//! what allows it go by the same state.

use fanfare_proto::{
    Code, UserId,
    limits::{CLIENT_ID_AGE_MAX, CLIENT_ID_AHEAD_MAX, MEMBERS_MAX, MENTIONS_MAX},
    wire,
};
use fanfare_storage::model::{Mark, MarkChange, MarkKind, Settings};

use super::{Channel, Effect, Waiting};
use crate::{members::role, send::Meaning};

/// How long it is known who turned down or was turned down: as long as the send that did it, or asked, may be repeated.
const DECLINED_KEPT_MS: u64 = (CLIENT_ID_AGE_MAX.as_millis() + CLIENT_ID_AHEAD_MAX.as_millis()) as u64;
/// How long invitations and requests do not begin anew after that.
const DECLINED_COUNTS_MS: u64 = 3_600_000;
/// Marks past their time that one entry takes away.
const OVER_PER_ENTRY_MAX: usize = 64;

/// What an entry that is allowed changes beside the log.
pub struct Allowed {
    /// Members, roles, settings.
    pub effect: Effect,
    /// Marks, set or taken away.
    pub marks: Vec<MarkChange>,
}

impl Allowed {
    fn only(effect: Effect) -> Self {
        Self { effect, marks: Vec::new() }
    }
}

impl Channel {
    /// Whether the user comes in, or asks to, by its own doing: what those may who are no members.
    pub(super) fn is_knock(&self, user: UserId, meaning: &Meaning) -> bool {
        let (Meaning::Joined { users, .. } | Meaning::Declined { users }) = meaning else {
            return *meaning == Meaning::Requested && self.joins_by(wire::JoinPolicy::ByRequest);
        };
        let is_marked = |kind| self.marks.get(user, kind, 0).is_some();
        let is_expected = is_marked(MarkKind::Invited) || is_marked(MarkKind::Requested);
        let is_open = matches!(meaning, Meaning::Joined { .. }) && self.joins_by(wire::JoinPolicy::OpenToAll);
        *users == [user] && (is_open || is_expected)
    }

    fn joins_by(&self, policy: wire::JoinPolicy) -> bool {
        i32::from(self.row.join) == policy as i32
    }

    /// Whether the send is allowed as the channel stands, and what it changes.
    pub(super) fn allow(&self, waiting: &Waiting, seq: u64, now_ms: u64) -> Result<Allowed, Code> {
        let mut allowed = self.allow_only(waiting, seq, now_ms)?;
        if !allowed.marks.is_empty() {
            // Before what is set: the same mark may be.
            let over = self.marks.over(now_ms, OVER_PER_ENTRY_MAX);
            let taken = over.map(|mark| self.change(Mark { seq, ..*mark }, false));
            allowed.marks.splice(0..0, taken.collect::<Vec<_>>());
        }
        Ok(allowed)
    }

    fn allow_only(&self, waiting: &Waiting, seq: u64, now_ms: u64) -> Result<Allowed, Code> {
        let sender = waiting.sender;
        let Some(standing) = self.members.get(sender) else {
            return self.allow_stranger(sender, &waiting.meaning, seq, now_ms);
        };
        let own = standing.role;
        let need = |least: u8| if own >= least { Ok(()) } else { Err(Code::FORBIDDEN) };
        match &waiting.meaning {
            Meaning::Message { mention_all, mentions, reply_to, .. } => {
                self.may_post(sender, own, now_ms)?;
                if (*mention_all || mentions.len() > MENTIONS_MAX) && !self.is_direct() {
                    need(role::ADMIN)?;
                }
                if *mention_all && !self.is_direct() && now_ms < self.mention_all_from_ms {
                    return Err(Code::RATE_LIMITED);
                }
                if *reply_to >= seq {
                    return Err(Code::BAD_FIELD);
                }
                Ok(Allowed::only(Effect::None))
            }
            Meaning::Edit { target } => {
                if waiting.target_sender != Some(sender) {
                    return Err(Code::FORBIDDEN);
                }
                self.may_post(sender, own, now_ms)?;
                self.is_not_recalled(*target)?;
                Ok(Allowed::only(Effect::None))
            }
            Meaning::Recall { target } => {
                if waiting.target_sender != Some(sender) {
                    need(role::ADMIN)?;
                }
                self.is_not_recalled(*target)?;
                Ok(Allowed::only(Effect::Recalled(*target)))
            }
            Meaning::Reaction { target } => {
                self.may_speak(sender, now_ms)?;
                self.is_not_recalled(*target)?;
                Ok(Allowed::only(Effect::None))
            }
            _ if self.is_direct() => Err(Code::WRONG_KIND),
            Meaning::Left => {
                if own == role::OWNER && self.members.owners() == 1 && self.members.len() > 1 {
                    return Err(Code::LAST_OWNER);
                }
                Ok(Allowed::only(Effect::Gone(vec![sender])))
            }
            Meaning::Requested => Err(Code::NO_CHANGE),
            Meaning::Joined { users, role: new_role } => {
                let new = self.strangers(users)?;
                need(role::ADMIN)?;
                self.none_is_banned(&new, now_ms)?;
                if self.members.len() + new.len() > MEMBERS_MAX {
                    return Err(Code::CHANNEL_FULL);
                }
                let marks = self.doors_closed(&new, seq);
                Ok(Allowed { effect: Effect::Joined(new, *new_role), marks })
            }
            Meaning::Removed { users } => {
                need(role::ADMIN)?;
                let gone = self.members_of(users);
                if gone.is_empty() {
                    return Err(Code::NO_CHANGE);
                }
                self.may_act_on(own, &gone)?;
                self.keeps_an_owner(&gone)?;
                Ok(Allowed::only(Effect::Gone(gone)))
            }
            Meaning::RoleChanged { users, role: new_role } => {
                need(role::OWNER)?;
                let mut changed = self.members_of(users);
                changed.retain(|user| self.role_of(*user) != *new_role);
                if changed.is_empty() {
                    return Err(Code::NO_CHANGE);
                }
                let owners = changed.iter().filter(|user| self.role_of(**user) == role::OWNER).count();
                if *new_role < role::OWNER && owners == self.members.owners() {
                    return Err(Code::LAST_OWNER);
                }
                Ok(Allowed::only(Effect::Role(changed, *new_role)))
            }
            Meaning::ChannelChange { name, history, join, posting } => {
                need(role::ADMIN)?;
                let keep = |new: u8, old: u8| if new == 0 { old } else { new };
                let (old, new) = (
                    self.settings(),
                    Settings {
                        name: name.clone().unwrap_or_else(|| self.row.name.clone()),
                        history: keep(*history, self.row.history),
                        join: keep(*join, self.row.join),
                        posting: keep(*posting, self.row.posting),
                    },
                );
                if new == old { Err(Code::NO_CHANGE) } else { Ok(Allowed::only(Effect::Settings(new))) }
            }
            Meaning::Invited { users } => {
                let new = self.strangers(users)?;
                need(role::ADMIN)?;
                self.none_is_banned(&new, now_ms)?;
                if new.iter().any(|user| self.has_just_declined(*user, now_ms)) {
                    return Err(Code::FORBIDDEN);
                }
                self.set(MarkKind::Invited, &new, 0, seq, now_ms)
            }
            Meaning::Declined { users } => {
                need(role::ADMIN)?;
                self.decline(users, seq, now_ms)
            }
            Meaning::Banned { users, until_ms } => {
                need(role::ADMIN)?;
                let gone = self.members_of(users);
                self.may_act_on(own, &gone)?;
                self.keeps_an_owner(&gone)?;
                let mut allowed = self.set(MarkKind::Banned, users, *until_ms, seq, now_ms)?;
                allowed.marks.extend(self.doors_closed(users, seq));
                if !gone.is_empty() {
                    allowed.effect = Effect::Gone(gone);
                }
                Ok(allowed)
            }
            Meaning::Unbanned { users } => {
                need(role::ADMIN)?;
                self.lift(MarkKind::Banned, users, seq, now_ms)
            }
            Meaning::Muted { users, until_ms } => {
                need(role::ADMIN)?;
                let muted = self.members_of(users);
                self.may_act_on(own, &muted)?;
                self.set(MarkKind::Muted, &muted, *until_ms, seq, now_ms)
            }
            Meaning::Unmuted { users } => {
                need(role::ADMIN)?;
                self.may_act_on(own, &self.members_of(users))?;
                self.lift(MarkKind::Muted, users, seq, now_ms)
            }
        }
    }

    fn allow_stranger(
        &self,
        user: UserId,
        meaning: &Meaning,
        seq: u64,
        now_ms: u64,
    ) -> Result<Allowed, Code> {
        // Asked again here: the policy or the mark may be another than when the send came.
        // Nor into a group that everybody left: nobody could ever make an owner there.
        if self.is_direct() || self.members.len() == 0 || !self.is_knock(user, meaning) {
            return Err(Code::NOT_A_MEMBER);
        }
        let marks = self.doors_closed(&[user], seq);
        let is_banned = self.marks.get(user, MarkKind::Banned, now_ms).is_some();
        match meaning {
            Meaning::Declined { users } => self.decline(users, seq, now_ms),
            _ if is_banned => Err(Code::BANNED),
            Meaning::Requested if !marks.is_empty() => Err(Code::NO_CHANGE),
            Meaning::Requested if self.has_just_declined(user, now_ms) => Err(Code::FORBIDDEN),
            Meaning::Requested => self.set(MarkKind::Requested, &[user], 0, seq, now_ms),
            _ if !self.joins_by(wire::JoinPolicy::OpenToAll)
                && self.marks.get(user, MarkKind::Invited, now_ms).is_none() =>
            {
                // It only asked.
                Err(Code::NOT_A_MEMBER)
            }
            _ if self.members.len() >= MEMBERS_MAX => Err(Code::CHANNEL_FULL),
            _ => Ok(Allowed { effect: Effect::Joined(vec![user], role::MEMBER), marks }),
        }
    }

    /// Messages, edits, typing.
    pub(super) fn may_post(&self, sender: UserId, own: u8, now_ms: u64) -> Result<(), Code> {
        let for_admins = i32::from(self.row.posting) == wire::PostingPolicy::AdminsOnly as i32;
        if for_admins && own < role::ADMIN {
            return Err(Code::FORBIDDEN);
        }
        self.may_speak(sender, now_ms)
    }

    /// Whatever others are shown: messages, edits, reactions, typing.
    fn may_speak(&self, sender: UserId, now_ms: u64) -> Result<(), Code> {
        if self.is_direct() {
            return if self.is_blocked(sender) { Err(Code::BLOCKED) } else { Ok(()) };
        }
        if self.marks.get(sender, MarkKind::Muted, now_ms).is_some() { Err(Code::MUTED) } else { Ok(()) }
    }

    fn is_not_recalled(&self, target: u64) -> Result<(), Code> {
        let stub = self.tail.get(target).is_some_and(|held| held.stub);
        if stub || self.recalled.contains(&target) { Err(Code::RECALLED) } else { Ok(()) }
    }

    fn role_of(&self, user: UserId) -> u8 {
        self.members.get(user).map_or(0, |standing| standing.role)
    }

    fn members_of(&self, users: &[UserId]) -> Vec<UserId> {
        users.iter().copied().filter(|user| self.members.get(*user).is_some()).collect()
    }

    /// Those who are no members; somebody must be.
    fn strangers(&self, users: &[UserId]) -> Result<Vec<UserId>, Code> {
        let new: Vec<UserId> =
            users.iter().copied().filter(|user| self.members.get(*user).is_none()).collect();
        if new.is_empty() { Err(Code::NO_CHANGE) } else { Ok(new) }
    }

    /// Owners may act on anybody, admins on members.
    fn may_act_on(&self, own: u8, users: &[UserId]) -> Result<(), Code> {
        let above = users.iter().any(|user| self.role_of(*user) >= role::ADMIN);
        if own < role::OWNER && above { Err(Code::FORBIDDEN) } else { Ok(()) }
    }

    fn keeps_an_owner(&self, gone: &[UserId]) -> Result<(), Code> {
        let owners = gone.iter().filter(|user| self.role_of(**user) == role::OWNER).count();
        let is_last = owners > 0 && owners == self.members.owners() && self.members.len() > gone.len();
        if is_last { Err(Code::LAST_OWNER) } else { Ok(()) }
    }

    fn none_is_banned(&self, users: &[UserId], now_ms: u64) -> Result<(), Code> {
        let is_banned = |user: &UserId| self.marks.get(*user, MarkKind::Banned, now_ms).is_some();
        if users.iter().any(is_banned) { Err(Code::BANNED) } else { Ok(()) }
    }

    /// What takes the users' invitations and requests away.
    fn doors_closed(&self, users: &[UserId], seq: u64) -> Vec<MarkChange> {
        let kinds = [MarkKind::Invited, MarkKind::Requested];
        kinds.into_iter().flat_map(|kind| self.taken_away(kind, users, seq, 0)).collect()
    }

    fn has_just_declined(&self, user: UserId, now_ms: u64) -> bool {
        let counts_until = |mark: &Mark| mark.until_ms.saturating_sub(DECLINED_KEPT_MS - DECLINED_COUNTS_MS);
        self.marks.get(user, MarkKind::Declined, now_ms).is_some_and(|mark| counts_until(mark) > now_ms)
    }

    /// The users' invitations and requests are gone, and it is known for a while that they were.
    fn decline(&self, users: &[UserId], seq: u64, now_ms: u64) -> Result<Allowed, Code> {
        let mut marks = self.doors_closed(users, seq);
        if marks.is_empty() {
            return Err(Code::NO_CHANGE);
        }
        let until_ms = now_ms + DECLINED_KEPT_MS;
        let declined: Vec<MarkChange> = marks
            .iter()
            .map(|gone| Mark { user: gone.mark.user, kind: MarkKind::Declined, until_ms, seq })
            .map(|mark| self.change(mark, true))
            .collect();
        if !self.marks.is_full(MarkKind::Declined, declined.len()) {
            marks.extend(declined);
        }
        Ok(Allowed { effect: Effect::None, marks })
    }

    fn change(&self, mark: Mark, stands: bool) -> MarkChange {
        MarkChange { channel: self.id(), mark, stands }
    }

    fn taken_away(&self, kind: MarkKind, users: &[UserId], seq: u64, now_ms: u64) -> Vec<MarkChange> {
        let standing = users.iter().filter_map(|user| self.marks.get(*user, kind, now_ms));
        standing.map(|mark| self.change(Mark { seq, ..*mark }, false)).collect()
    }

    fn lift(&self, kind: MarkKind, users: &[UserId], seq: u64, now_ms: u64) -> Result<Allowed, Code> {
        let marks = self.taken_away(kind, users, seq, now_ms);
        if marks.is_empty() { Err(Code::NO_CHANGE) } else { Ok(Allowed { effect: Effect::None, marks }) }
    }

    fn set(
        &self,
        kind: MarkKind,
        users: &[UserId],
        until_ms: u64,
        seq: u64,
        now_ms: u64,
    ) -> Result<Allowed, Code> {
        if until_ms > 0 && until_ms <= now_ms {
            return Err(Code::BAD_FIELD);
        }
        let is_new = |user: &&UserId| {
            self.marks.get(**user, kind, now_ms).is_none_or(|mark| mark.until_ms != until_ms)
        };
        let mark = |user: &UserId| Mark { user: *user, kind, until_ms, seq };
        let marks: Vec<MarkChange> =
            users.iter().filter(is_new).map(|user| self.change(mark(user), true)).collect();
        if marks.is_empty() {
            return Err(Code::NO_CHANGE);
        }
        let more = marks.iter().filter(|change| self.marks.get(change.mark.user, kind, 0).is_none()).count();
        let over = self.marks.over(now_ms, OVER_PER_ENTRY_MAX).filter(|mark| mark.kind == kind).count();
        if self.marks.is_full(kind, more.saturating_sub(over)) {
            return Err(Code::CHANNEL_FULL);
        }
        Ok(Allowed { effect: Effect::None, marks })
    }

    /// Name and policies as committed.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            name: self.row.name.clone(),
            history: self.row.history,
            join: self.row.join,
            posting: self.row.posting,
        }
    }
}
