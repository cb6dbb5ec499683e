//! Who may see whom: the user's own choice, what the two share, and who blocks whom. One place for every way that
//! presence can be asked for.

use std::sync::Arc;

use fanfare_proto::{ChannelId, UserId, wire};
use fanfare_storage::{
    StoreError, accounts::Accounts, content::Lists, metadata::Metadata, model::User, seen::LastSeen,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Channels in kept lists.
const KEPT_CHANNELS_MAX: usize = 1_000_000;
/// How long a list is kept, milliseconds.
const KEPT_MS: u64 = 2_000;

/// Who may see whether a user is online, and when it was last seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Audience {
    /// Every user.
    Everyone,
    /// Members of a channel that the user is a member of, a direct one too.
    #[default]
    SharedChannels,
    /// Nobody.
    Nobody,
}

impl Audience {
    const NAMES: [(Self, &'static str); 3] =
        [(Self::Everyone, "everyone"), (Self::SharedChannels, "shared_channels"), (Self::Nobody, "nobody")];

    /// As in the user's row.
    pub fn of(user: &User) -> Self {
        match (user.flags & User::SEEN_BY_NOBODY != 0, user.flags & User::SEEN_BY_EVERYONE != 0) {
            (true, _) => Self::Nobody,
            (false, true) => Self::Everyone,
            (false, false) => Self::SharedChannels,
        }
    }

    /// Flags to set and to clear.
    pub fn flags(self) -> (u32, u32) {
        match self {
            Self::Everyone => (User::SEEN_BY_EVERYONE, User::SEEN_BY_NOBODY),
            Self::SharedChannels => (0, User::SEEN_BY_EVERYONE | User::SEEN_BY_NOBODY),
            Self::Nobody => (User::SEEN_BY_NOBODY, User::SEEN_BY_EVERYONE),
        }
    }

    /// As frames say it; `None` for what says nothing.
    pub fn from_wire(audience: i32) -> Option<Self> {
        match wire::Audience::try_from(audience).ok()? {
            wire::Audience::Kept => None,
            wire::Audience::Everyone => Some(Self::Everyone),
            wire::Audience::SharedChannels => Some(Self::SharedChannels),
            wire::Audience::Nobody => Some(Self::Nobody),
        }
    }

    /// As frames say it.
    pub fn to_wire(self) -> wire::Audience {
        match self {
            Self::Everyone => wire::Audience::Everyone,
            Self::SharedChannels => wire::Audience::SharedChannels,
            Self::Nobody => wire::Audience::Nobody,
        }
    }

    /// As people and JSON say it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(audience, _)| *audience == self).map_or("", |(_, name)| name)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(audience, _)| *audience)
    }
}

/// Where it stands who is what to whom.
#[derive(Clone)]
pub struct Stores {
    /// Users and blocks.
    pub metadata: Arc<dyn Metadata>,
    /// Audiences are written through it.
    pub accounts: Arc<dyn Accounts>,
    /// Users' lists of channels.
    pub lists: Arc<dyn Lists>,
    /// Last seens.
    pub seen: Arc<dyn LastSeen>,
}

/// Answers who may see whom from the stores. Blocks. Keeps lists for a moment, so that a screen costs one look at each of its
/// users.
pub struct Rules {
    stores: Stores,
    lists: HashMap<UserId, (u64, Arc<[ChannelId]>), RandomState>,
    kept: usize,
}

impl Rules {
    /// On those stores.
    pub fn new(stores: Stores) -> Self {
        Self { stores, lists: HashMap::default(), kept: 0 }
    }

    /// Whether `viewer` may see how `user` stands: `false` too where there is no such user. `now_ms` is a monotonic clock.
    ///
    /// # Errors
    /// Of the stores.
    pub fn may_see(&mut self, now_ms: u64, viewer: UserId, user: UserId) -> Result<bool, StoreError> {
        let metadata = Arc::clone(&self.stores.metadata);
        let Some(row) = metadata.user(user)? else { return Ok(false) };
        if viewer == user {
            return Ok(true);
        }
        let audience = Audience::of(&row);
        if audience == Audience::Nobody {
            return Ok(false);
        }
        if metadata.is_blocked(user, viewer)? || metadata.is_blocked(viewer, user)? {
            return Ok(false);
        }
        if audience == Audience::Everyone || metadata.direct(viewer, user)?.is_some() {
            return Ok(true);
        }
        let (one, other) = (self.list(now_ms, viewer)?, self.list(now_ms, user)?);
        Ok(shares(&one, &other))
    }

    /// A user's list, ascending, kept for a while.
    fn list(&mut self, now_ms: u64, user: UserId) -> Result<Arc<[ChannelId]>, StoreError> {
        if let Some((read_ms, list)) = self.lists.get(&user)
            && now_ms < read_ms + KEPT_MS
        {
            return Ok(Arc::clone(list));
        }
        let mut list = self.stores.lists.list(user)?;
        list.sort_unstable();
        let list: Arc<[ChannelId]> = list.into();
        // One more for the entry itself.
        let (size, old) = (list.len() + 1, self.lists.remove(&user));
        self.kept -= old.map_or(0, |(_, old)| old.len() + 1);
        if self.kept + size > KEPT_CHANNELS_MAX {
            self.lists.clear();
            self.kept = 0;
        }
        self.kept += size;
        self.lists.insert(user, (now_ms, Arc::clone(&list)));
        Ok(list)
    }
}

/// Whether two ascending lists have one in common.
fn shares(one: &[ChannelId], other: &[ChannelId]) -> bool {
    let (few, many) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    if many.len() / 16 > few.len() {
        return few.iter().any(|channel| many.binary_search(channel).is_ok());
    }
    let (mut few, mut many) = (few.iter().peekable(), many.iter().peekable());
    while let (Some(one), Some(other)) = (few.peek(), many.peek()) {
        match one.cmp(other) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => drop(few.next()),
            std::cmp::Ordering::Greater => drop(many.next()),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_share_what_sets_have_in_common(
            one in proptest::collection::btree_set(0u64..400, 0..80),
            other in proptest::collection::btree_set(0u64..4_000, 0..400),
        ) {
            let list = |set: &BTreeSet<u64>| set.iter().map(|id| ChannelId(*id)).collect::<Vec<_>>();
            let wanted = one.intersection(&other).next().is_some();
            prop_assert_eq!(shares(&list(&one), &list(&other)), wanted);
            prop_assert_eq!(shares(&list(&other), &list(&one)), wanted);
        }
    }

    #[test]
    fn audiences_survive_rows_frames_and_names() {
        for (audience, name) in Audience::NAMES {
            let (set, clear) = audience.flags();
            let flags = (User::SEEN_BY_EVERYONE | User::SEEN_BY_NOBODY | User::BOT) & !clear | set;
            let row = User { user: UserId(1), name: String::new(), flags, tokens_from_s: 0 };
            assert_eq!(Audience::of(&row), audience);
            assert_eq!(Audience::from_wire(audience.to_wire().into()), Some(audience));
            assert_eq!(Audience::named(name), Some(audience));
            assert_eq!(audience.name(), name);
        }
    }
}
