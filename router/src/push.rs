//! Who is told by a push, and of what: pure rules over what a channel's owner and the stores say, with `now` given. Who delivers
//! them, and how, is the server's.

use std::time::Duration;

use bytes::Bytes;
use fanfare_proto::{ChannelId, MessageId, UserId, wire, wire::entry::Content};
use fanfare_storage::{
    model::Entry,
    push::{Push, PushKey, PushKind},
};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use tokio::sync::oneshot;

use crate::{channel::Channel, desk::Desk, tail::Held};

/// Members of the largest group of which the absent are told as a whole; in larger ones only those who are named are told.
pub const GROUP_TOLD_MAX: usize = 256;
/// Members that an owner names in one answer.
pub const VIEW_MEMBERS_MAX: usize = 1_024;

/// Which members are asked about.
#[derive(Clone, Debug)]
pub enum Who {
    /// Those without a session here, by user, at most [`VIEW_MEMBERS_MAX`]; of a group of more than [`GROUP_TOLD_MAX`] members nobody,
    /// but where it is asked for `all`.
    Absent {
        /// Above that user.
        after: UserId,
        /// However large the group is.
        all: bool,
    },
    /// These, as far as they are members.
    Named(Vec<UserId>),
}

/// What is asked of a channel's owner.
pub struct ViewAsk {
    /// About whom.
    pub who: Who,
    /// Entries whose frames are asked for, as far as they are in memory.
    pub frames: Vec<u64>,
    /// Where the answer goes; `None` where there is no such channel.
    pub reply: oneshot::Sender<Option<View>>,
}

/// A channel as its owner holds it, for pushes.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Of two users.
    pub is_direct: bool,
    /// Its name; empty for direct channels.
    pub name: String,
    /// Members in all.
    pub members_total: usize,
    /// Those asked about, by user where nobody was named.
    pub members: Vec<Member>,
    /// There are more members above the last.
    pub more: bool,
    /// Among those looked at some have a session and not yet everything: whether it is alive is not known.
    pub unsettled: bool,
    /// Frames asked for, by seq.
    pub frames: Vec<(u64, Bytes)>,
}

/// A member, for pushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// A session of the user is served.
    pub is_here: bool,
    /// The first entry that the member is told of: none before the one by which it joined, nor what it may not see.
    pub from_seq: u64,
    /// Some device has everything up to there.
    pub delivered: u64,
    /// Read up to there.
    pub read: u64,
    /// Messages not read.
    pub unread: u64,
}

impl Member {
    /// Whether the member still has to be told of that entry: it may see it, is away, and no device of it has it.
    pub fn misses(&self, seq: u64) -> bool {
        !self.is_here && seq >= self.from_seq && seq > self.read.max(self.delivered)
    }
}

impl Channel {
    /// Answers a [`ViewAsk`].
    pub fn view(&self, desk: &Desk, who: &Who, frames: &[u64]) -> View {
        let member = |user: UserId| -> Option<Member> {
            let standing = self.members.get(user)?;
            let cursor = self.cursors.get(user);
            Some(Member {
                user,
                is_here: !self.audience.of_user(user).is_empty(),
                from_seq: standing.visible_from.max(standing.joined_seq),
                delivered: cursor.delivered,
                read: cursor.read,
                unread: self.row.ordinal.saturating_sub(cursor.read_ordinal),
            })
        };
        let mut view = View {
            is_direct: i32::from(self.row.kind) == wire::ChannelKind::Direct as i32,
            name: self.row.name.clone(),
            members_total: self.members.len(),
            ..View::default()
        };
        let is_unsettled =
            |member: &Member| member.is_here && member.delivered.max(member.read) < self.row.head;
        let mut unsettled = false;
        match who {
            Who::Named(users) => {
                view.members = users.iter().filter_map(|user| member(*user)).collect();
                unsettled = view.members.iter().any(is_unsettled);
            }
            Who::Absent { all: false, .. } if view.members_total > GROUP_TOLD_MAX => {}
            Who::Absent { after, .. } => {
                let absent = self.members.above(*after).filter_map(member).filter(|member| {
                    unsettled |= is_unsettled(member);
                    !member.is_here
                });
                view.members = absent.take(VIEW_MEMBERS_MAX + 1).collect();
                view.more = view.members.len() > VIEW_MEMBERS_MAX;
                view.members.truncate(VIEW_MEMBERS_MAX);
            }
        }
        view.unsettled = unsettled;
        if !frames.is_empty() {
            let undrained = desk.undrained_of(self.id());
            let of = |seq: &u64| {
                let entry = undrained.iter().find(|entry| entry.seq == *seq);
                let frame = entry.map(|entry| entry.frame.clone());
                Some((*seq, frame.or_else(|| self.tail_frame(*seq))?))
            };
            view.frames = frames.iter().filter_map(of).collect();
        }
        view
    }
}

/// A message as the rules look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// In which channel.
    pub channel: ChannelId,
    /// Of which epoch.
    pub epoch: u32,
    /// Its place.
    pub seq: u64,
    /// Its id; holds the time.
    pub message_id: MessageId,
    /// Who sent it.
    pub sender: UserId,
    /// Whom it names.
    pub mentions: Vec<UserId>,
    /// It names everybody.
    pub mention_all: bool,
    /// The seq that it answers, or 0.
    pub reply_to: u64,
    /// Who sent that one, where it was found.
    pub replied: Option<UserId>,
}

impl Heard {
    /// Of a message's frame; `None` where it does not decode or was taken back.
    pub fn of(entry: &Entry, frame: &Bytes) -> Option<Self> {
        let (_, decoded) = Held::of_stored(frame)?;
        let Some(Content::Message(message)) = decoded.content else { return None };
        Some(Self {
            channel: entry.channel,
            epoch: entry.epoch,
            seq: entry.seq,
            message_id: entry.message_id,
            sender: entry.sender,
            mentions: message.mentions.into_iter().map(UserId).collect(),
            mention_all: message.mention_all,
            reply_to: message.reply_to,
            replied: None,
        })
    }

    /// Whom it concerns by name.
    pub fn named(&self) -> impl Iterator<Item = UserId> + '_ {
        self.mentions.iter().copied().chain(self.replied)
    }
}

/// Who sent the entry of that frame.
pub fn sender_of(frame: &Bytes) -> Option<UserId> {
    Held::of_stored(frame).map(|(held, _)| held.sender)
}

/// What the rules go by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Who was there so recently is told that much later, if it is still needed then.
    pub recent: Duration,
    /// When this process began to serve, Unix milliseconds: who was there at its end was there until then.
    pub started_ms: u64,
}

/// What the rules have to know of the members of one channel.
#[derive(Debug, Default)]
pub struct Known {
    /// When a user's sessions last came or went, Unix milliseconds; none of those who never had one.
    pub seen_ms: HashMap<UserId, u64, RandomState>,
    /// When a user was last told of the channel as a whole, Unix milliseconds; kept up to date by [`plan`].
    pub told_ms: HashMap<UserId, u64, RandomState>,
    /// (user, sender): the user takes nothing from that sender.
    pub blocked: HashSet<(UserId, UserId), RandomState>,
}

/// Pushes for the members of a view by messages of its channel, in seq order.
pub fn plan(rules: Rules, now_ms: u64, view: &View, heard: &[Heard], known: &mut Known) -> Vec<Push> {
    let mut pushes = Vec::new();
    let recent_ms = rules.recent.as_millis() as u64;
    for message in heard {
        for member in view.members.iter().filter(|member| member.misses(message.seq)) {
            let user = member.user;
            if known.blocked.contains(&(user, message.sender)) {
                continue;
            }
            let Some(kind) = kind_for(view, message, user) else { continue };
            let seen = known.seen_ms.get(&user).copied().unwrap_or(0);
            if kind == PushKind::Group {
                // One for an absence: it has been told since it was last there.
                let told = known.told_ms.entry(user).or_default();
                if *told > 0 && *told >= seen {
                    continue;
                }
                *told = now_ms;
            }
            let is_recent = seen > 0 && now_ms < seen.max(rules.started_ms).saturating_add(recent_ms);
            pushes.push(Push {
                key: PushKey { user, channel: message.channel, epoch: message.epoch, seq: message.seq },
                kind,
                sender: message.sender,
                message_id: message.message_id,
                created_ms: now_ms,
                due_ms: if is_recent { now_ms + recent_ms } else { now_ms },
                attempts: 0,
                error: String::new(),
            });
        }
    }
    pushes
}

fn kind_for(view: &View, message: &Heard, user: UserId) -> Option<PushKind> {
    if user == message.sender {
        None
    } else if view.is_direct {
        Some(PushKind::Direct)
    } else if message.mention_all || message.mentions.contains(&user) {
        Some(PushKind::Mention)
    } else if message.replied == Some(user) {
        Some(PushKind::Reply)
    } else {
        (view.members_total <= GROUP_TOLD_MAX).then_some(PushKind::Group)
    }
}

/// Whether the absent are to be asked for one and all, rather than those who are named.
pub fn concerns_all(view: &View, heard: &[Heard]) -> bool {
    view.is_direct || view.members_total <= GROUP_TOLD_MAX || heard.iter().any(|message| message.mention_all)
}

#[cfg(test)]
mod tests;
