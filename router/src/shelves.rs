//! Many small records in the order of their keys, on shelves of bounded length: a record costs its own size and little more, however
//! many there are, where a hash table costs up to three times as much in the moment after it has doubled.

/// Records on one shelf: inserting moves half of them at the most.
const SHELF_LEN: usize = 256;
/// Places that a shelf grows by at the least.
const ROOM_MIN: usize = 2;

/// A record that holds its key.
pub trait Keyed: Copy {
    /// What it is found by.
    type Key: Ord + Copy;

    /// Its key.
    fn key(&self) -> Self::Key;
}

/// See the module.
#[derive(Debug)]
pub struct Shelves<T> {
    /// None empty, ascending.
    shelves: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Shelves<T> {
    fn default() -> Self {
        Self { shelves: Vec::new(), len: 0 }
    }
}

impl<T: Keyed> Shelves<T> {
    /// Records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The shelf where that key is or belongs, and its place there.
    fn find(&self, key: T::Key) -> (usize, Result<usize, usize>) {
        let shelf =
            self.shelves.partition_point(|shelf| shelf.first().is_some_and(|first| first.key() <= key));
        let shelf = shelf.saturating_sub(1);
        let place = self.shelves.get(shelf).map_or(Err(0), |of| of.binary_search_by_key(&key, T::key));
        (shelf, place)
    }

    /// The record of that key.
    pub fn get(&self, key: T::Key) -> Option<T> {
        let (shelf, place) = self.find(key);
        self.shelves.get(shelf)?.get(place.ok()?).copied()
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.shelves.iter().flatten().copied()
    }

    /// Those whose key is not below that one, in order.
    pub fn from(&self, key: T::Key) -> impl Iterator<Item = T> + '_ {
        let (shelf, place) = self.find(key);
        let (Ok(place) | Err(place)) = place;
        self.shelves.iter().skip(shelf).flatten().skip(place).copied()
    }

    /// Puts a record in the place of its key; gives the one that was there.
    pub fn insert(&mut self, record: T) -> Option<T> {
        let (mut shelf, place) = self.find(record.key());
        let mut place = match place {
            Ok(place) => return Some(std::mem::replace(&mut self.shelves[shelf][place], record)),
            Err(place) => place,
        };
        self.len += 1;
        match self.shelves.get_mut(shelf) {
            None => self.shelves.push(Vec::new()),
            Some(full) if full.len() >= SHELF_LEN => {
                // Who comes in order fills shelf after shelf.
                let is_end = place == full.len() && shelf + 1 == self.shelves.len();
                let at = if is_end { SHELF_LEN } else { SHELF_LEN / 2 };
                let upper = self.shelves[shelf].split_off(at);
                self.shelves[shelf].shrink_to_fit();
                if self.shelves.len() == self.shelves.capacity() {
                    self.shelves.reserve_exact(ROOM_MIN.max(self.shelves.len() / 8));
                }
                self.shelves.insert(shelf + 1, upper);
                if place >= at {
                    (shelf, place) = (shelf + 1, place - at);
                }
            }
            Some(_) => {}
        }
        let of = &mut self.shelves[shelf];
        if of.len() == of.capacity() {
            of.reserve_exact(ROOM_MIN.max(of.len() / 8));
        }
        of.insert(place, record);
        None
    }

    /// Takes the record of that key out.
    pub fn remove(&mut self, key: T::Key) -> Option<T> {
        let (shelf, place) = self.find(key);
        let of = self.shelves.get_mut(shelf)?;
        let gone = of.remove(place.ok()?);
        self.len -= 1;
        self.tidy(shelf);
        Some(gone)
    }

    /// Gives room back, and joins a shelf that has become short with its neighbour.
    fn tidy(&mut self, shelf: usize) {
        let of = &mut self.shelves[shelf];
        if of.is_empty() {
            self.shelves.remove(shelf);
            return;
        }
        let len = of.len();
        if of.capacity() > 2 * len + ROOM_MIN {
            of.shrink_to(len + len / 8);
        }
        if let Some(next) = self.shelves.get_mut(shelf + 1)
            && len + next.len() <= SHELF_LEN / 2
        {
            let next = std::mem::take(next);
            self.shelves[shelf].reserve_exact(next.len());
            self.shelves[shelf].extend(next);
            self.shelves.remove(shelf + 1);
        }
    }

    /// Bytes of heap.
    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        let records: usize = self.shelves.iter().map(Vec::capacity).sum();
        self.shelves.capacity() * size_of::<Vec<T>>() + records * size_of::<T>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (u64, u64) {
        type Key = u64;

        fn key(&self) -> u64 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn they_are_a_sorted_map(steps in proptest::collection::vec((0..4u8, 0..3_000u64), 1..4_000)) {
            let (mut shelves, mut map) = (Shelves::default(), BTreeMap::new());
            for (number, (what, key)) in steps.into_iter().enumerate() {
                let number = number as u64;
                if what > 0 {
                    let before = map.insert(key, number);
                    prop_assert_eq!(shelves.insert((key, number)).map(|(_, value)| value), before);
                } else {
                    prop_assert_eq!(shelves.remove(key).map(|(_, value)| value), map.remove(&key));
                }
                prop_assert_eq!(shelves.len(), map.len());
                prop_assert_eq!(shelves.get(key).map(|(_, value)| value), map.get(&key).copied());
            }
            prop_assert!(shelves.iter().eq(map.iter().map(|(key, value)| (*key, *value))));
            prop_assert!(shelves.from(1_500).eq(map.range(1_500..).map(|(key, value)| (*key, *value))));
        }
    }

    #[test]
    fn a_record_costs_its_size_and_a_quarter_at_the_most() {
        let mut shelves = Shelves::default();
        for key in 0..100_000u64 {
            shelves.insert((key.wrapping_mul(0x9e37_79b9_7f4a_7c15), key));
        }
        let bytes = shelves.heap_bytes();
        assert!(bytes < 100_000 * 16 * 5 / 4, "{bytes} bytes");
        for key in 0..99_000u64 {
            shelves.remove(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        let bytes = shelves.heap_bytes();
        assert!(bytes < 1_000 * 16 * 4, "{bytes} bytes");
    }
}
