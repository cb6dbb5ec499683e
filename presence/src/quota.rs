//! How often users may choose who sees them: each change is a commit of its own, on the thread of presence. By user, so that
//! nobody keeps others from it; and of all, for the store.

use std::collections::VecDeque;

use fanfare_proto::UserId;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Changes of one user
const OF_USER_MAX: u32 = 5;
/// in so long, milliseconds.
const WITHIN_MS: u64 = 10_000;
/// Changes of all users in a second: 400 who change as often as they may.
const PER_S_MAX: usize = 200;

/// See the module. Keeps the changes of the last ten seconds alone, which the bound of all bounds.
#[derive(Debug, Default)]
pub struct Quota {
    /// When, and whose; ascending.
    changes: VecDeque<(u64, UserId)>,
    /// How many of these are whose.
    by_user: HashMap<UserId, u32, RandomState>,
}

impl Quota {
    /// Whether the user may change it now: that counts as done.
    pub fn take(&mut self, now_ms: u64, user: UserId) -> bool {
        while let Some((_, of)) = self.changes.pop_front_if(|(at, _)| *at + WITHIN_MS <= now_ms) {
            let count = self.by_user.entry(of).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_user.remove(&of);
            }
        }
        let before = self.changes.partition_point(|(at, _)| *at + 1_000 <= now_ms);
        let count = self.by_user.get(&user).copied().unwrap_or_default();
        if count >= OF_USER_MAX || self.changes.len() - before >= PER_S_MAX {
            return false;
        }
        self.changes.push_back((now_ms, user));
        self.by_user.insert(user, count + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_quota_of_its_own_and_gets_it_back() {
        let mut quota = Quota::default();
        let taken =
            |quota: &mut Quota, now_ms, user| (0..100).filter(|_| quota.take(now_ms, UserId(user))).count();
        assert_eq!(taken(&mut quota, 0, 1), 5);
        assert_eq!(taken(&mut quota, 0, 2), 5, "another's are his own");
        assert_eq!(taken(&mut quota, 9_999, 1), 0);
        assert_eq!(taken(&mut quota, 10_000, 1), 5);
        assert_eq!(taken(&mut quota, 19_999, 1), 0);
    }

    #[test]
    fn all_have_a_bound_and_the_table_forgets() {
        let mut quota = Quota::default();
        let mut taken = 0;
        // 10,000 users in each of 60 seconds.
        for second in 0..60 {
            for user in 0..10_000 {
                taken += usize::from(quota.take(second * 1_000, UserId(second * 10_000 + user)));
            }
            assert!(quota.changes.len() <= 10 * PER_S_MAX, "{} are kept", quota.changes.len());
            assert!(quota.by_user.len() <= quota.changes.len());
        }
        assert_eq!(taken, 60 * PER_S_MAX);
        assert!(quota.take(1_000_000, UserId(1)));
        assert_eq!((quota.changes.len(), quota.by_user.len()), (1, 1));
    }
}
