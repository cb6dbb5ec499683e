//! How active each member of a channel is, and whose activity is to be written.

use fanfare_activity::{Act, Score, Settings, Total};
use fanfare_proto::{ChannelId, UserId};
use fanfare_storage::model::{Activity, EntryKind};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::{
    shelves::{Keyed, Shelves},
    tail::Tail,
};

/// A member's score.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Place {
    user: UserId,
    score: Score,
}

const _: () = assert!(size_of::<Place>() == 20, "each member who ever did something has one");

impl Keyed for Place {
    type Key = UserId;

    fn key(&self) -> UserId {
        self.user
    }
}

/// See the module. Members who never did anything have none.
#[derive(Debug, Default)]
pub struct Scores {
    of: Shelves<Place>,
    total: Total,
    dirty: HashSet<UserId, RandomState>,
}

impl Scores {
    /// Of members at `now_ms`: as stored, and what the tail holds of entries that are not counted in that.
    pub fn restore(
        settings: &Settings,
        rows: Vec<Activity>,
        tail: &Tail,
        now_ms: u64,
        is_member: impl Fn(UserId) -> bool,
    ) -> Self {
        let mut scores = Self::default();
        let mut counted: HashMap<UserId, u64, RandomState> = HashMap::default();
        for Activity { user, fast, slow, acted, seq, .. } in rows {
            if !is_member(user) {
                continue;
            }
            let score = Score::of_parts((fast, slow, acted)).sound(settings, now_ms);
            scores.of.insert(Place { user, score });
            scores.total.add(settings, &score);
            counted.insert(user, seq);
        }
        for held in tail.iter() {
            let act = act_of(held.kind);
            let is_counted = counted.get(&held.sender).is_some_and(|seq| held.seq <= *seq);
            if let Some(act) = act.filter(|_| !is_counted && is_member(held.sender)) {
                let score = scores.get(held.sender);
                scores.raise(settings, held.sender, score, act, held.message_id.time_ms().min(now_ms));
            }
        }
        scores
    }

    /// A user's score.
    pub fn get(&self, user: UserId) -> Score {
        self.of.get(user).map_or_else(Score::default, |place| place.score)
    }

    /// What all members do.
    pub fn total(&self) -> Total {
        self.total
    }

    /// Counts an act; says whether it is the first that is to be written.
    pub fn act(&mut self, settings: &Settings, user: UserId, act: Act, now_ms: u64) -> bool {
        let score = self.get(user).sound(settings, now_ms);
        self.raise(settings, user, score, act, now_ms);
        self.dirty.len() == 1
    }

    fn raise(&mut self, settings: &Settings, user: UserId, mut score: Score, act: Act, now_ms: u64) {
        self.total.remove(settings, &self.get(user));
        score.act(settings, act, now_ms);
        self.total.add(settings, &score);
        self.of.insert(Place { user, score });
        self.dirty.insert(user);
    }

    /// Forgets one who left.
    pub fn forget(&mut self, settings: &Settings, user: UserId) {
        self.total.remove(settings, &self.get(user));
        self.of.remove(user);
        self.dirty.remove(&user);
    }

    /// Whether anything waits to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes what changed since the last time, as of the entry `seq`.
    pub fn take_dirty(&mut self, channel: ChannelId, seq: u64) -> Vec<Activity> {
        let of = |user: UserId| {
            let (fast, slow, acted) = self.of.get(user)?.score.parts();
            Some(Activity { channel, user, fast, slow, acted, seq })
        };
        std::mem::take(&mut self.dirty).into_iter().filter_map(of).collect()
    }
}

/// What an entry says its sender did.
pub fn act_of(kind: EntryKind) -> Option<Act> {
    match kind {
        EntryKind::Message => Some(Act::Send),
        EntryKind::Reaction | EntryKind::Edit | EntryKind::Recall => Some(Act::React),
        EntryKind::Membership | EntryKind::ChannelChange => None,
    }
}
