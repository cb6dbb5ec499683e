//! Which seqs of a channel a client holds: a set of closed intervals. A channel that is read without interruption is
//! one interval that grows at its end, which is the case made fast and kept without heap.

/// Intervals kept for one channel. Beyond it the lowest are forgotten: their entries would be fetched once more.
pub const INTERVALS_MAX: usize = 64;

/// A set of u64, kept as sorted, disjoint closed intervals that do not touch each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntervalSet {
    /// The highest interval; `first > last` where the set is empty.
    newest: (u64, u64),
    /// The others, ascending.
    older: Vec<(u64, u64)>,
}

impl Default for IntervalSet {
    fn default() -> Self {
        Self { newest: EMPTY, older: Vec::new() }
    }
}

const EMPTY: (u64, u64) = (1, 0);

impl IntervalSet {
    /// Adds one value; whether it was new.
    pub fn insert(&mut self, value: u64) -> bool {
        if self.newest.1.checked_add(1) == Some(value) && self.newest != EMPTY {
            self.newest.1 = value;
            return true;
        }
        if self.contains(value) {
            return false;
        }
        self.insert_range(value, value);
        true
    }

    /// Adds `first..=last`; nothing where `first > last`.
    pub fn insert_range(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        let mut all = std::mem::take(&mut self.older);
        if self.newest != EMPTY {
            all.push(self.newest);
        }
        // All intervals that overlap or touch the new one melt into it.
        let from = all.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = all.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        if from < to {
            first = first.min(all[from].0);
            last = last.max(all[to - 1].1);
        }
        all.splice(from..to, [(first, last)]);
        if all.len() > INTERVALS_MAX {
            all.remove(0);
        }
        self.newest = all.pop().unwrap_or(EMPTY);
        self.older = all;
        if self.older.is_empty() {
            self.older = Vec::new();
        }
    }

    /// Takes out everything from `first` up.
    pub fn remove_from(&mut self, first: u64) {
        if self.newest != EMPTY {
            self.older.push(self.newest);
        }
        self.older.retain_mut(|(begin, end)| {
            *end = (*end).min(first.saturating_sub(1));
            *begin <= *end && *begin < first
        });
        self.newest = self.older.pop().unwrap_or(EMPTY);
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: u64) -> bool {
        self.interval(value).is_some()
    }

    /// The interval around `value`, if it is in the set.
    pub fn interval(&self, value: u64) -> Option<(u64, u64)> {
        if self.newest.0 <= value && value <= self.newest.1 {
            return Some(self.newest);
        }
        let index = self.older.partition_point(|(_, end)| *end < value);
        self.older.get(index).copied().filter(|(begin, _)| *begin <= value)
    }

    /// What is missing between `after` and `through` (`after` itself not, `through` included), ascending.
    pub fn missing(&self, after: u64, through: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut next = after.saturating_add(1);
        for (begin, end) in self.iter() {
            if end < next {
                continue;
            }
            if begin > through {
                break;
            }
            if begin > next {
                holes.push((next, begin - 1));
            }
            next = end.saturating_add(1);
        }
        if next <= through {
            holes.push((next, through));
        }
        holes
    }

    /// The intervals, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.older.iter().copied().chain((self.newest != EMPTY).then_some(self.newest))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.newest == EMPTY
    }
}

impl FromIterator<(u64, u64)> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(intervals: I) -> Self {
        let mut set = Self::default();
        for (first, last) in intervals {
            set.insert_range(first, last);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn values(set: &IntervalSet) -> BTreeSet<u64> {
        set.iter().flat_map(|(first, last)| first..=last).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64),
        Range(u64, u64),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u64..100).prop_map(Step::Insert),
            2 => (1u64..100, 0u64..9).prop_map(|(first, more)| Step::Range(first, first + more)),
            1 => (0u64..100).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(steps in proptest::collection::vec(step(), 0..80)) {
            let (mut set, mut model) = (IntervalSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(value) => prop_assert_eq!(set.insert(value), model.insert(value)),
                    Step::Range(first, last) => { set.insert_range(first, last); model.extend(first..=last); }
                    Step::Remove(first) => { set.remove_from(first); model.retain(|value| *value < first); }
                }
                prop_assert_eq!(&values(&set), &model);
                let intervals: Vec<_> = set.iter().collect();
                prop_assert!(intervals.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", intervals);
                prop_assert_eq!(set.is_empty(), model.is_empty());
            }
            for value in 0..120 {
                prop_assert_eq!(set.contains(value), model.contains(&value));
            }
            let missing: BTreeSet<u64> = set.missing(10, 90).into_iter().flat_map(|(first, last)| first..=last).collect();
            let expected: BTreeSet<u64> = (11..=90).filter(|value| !model.contains(value)).collect();
            prop_assert_eq!(missing, expected);
        }
    }

    #[test]
    fn the_lowest_intervals_are_forgotten_first() {
        let set: IntervalSet = (1..=100u64).map(|at| (at * 10, at * 10)).collect();
        assert_eq!(set.iter().count(), INTERVALS_MAX);
        assert!(set.contains(1_000) && !set.contains(10));
    }

    #[test]
    fn the_highest_number_is_a_number_like_others() {
        let mut set = IntervalSet::default();
        set.insert(u64::MAX);
        assert!(set.contains(u64::MAX) && !set.insert(u64::MAX));
        set.remove_from(0);
        assert!(set.is_empty());
    }
}
