//! A lane's connections in pages of fixed length, found by number. A table that doubled would have up to twice the memory, and
//! three times while it copies; a page that is empty is given back, wherever it lies.

/// Bytes that a page is to fill: what allocators have as one of their sizes.
const PAGE_BYTES: usize = 16 * 1024;
/// One bit for each place of a page.
const PAGE_LEN_MAX: usize = 64;

/// A page's places. `used` has bit n for place n; without any there is no memory.
#[derive(Debug)]
struct Page<T> {
    used: u64,
    places: Box<[Option<T>]>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    pages: Vec<Page<T>>,
    len: usize,
    /// All pages in front of this one are full.
    open: usize,
}

impl<T> Slots<T> {
    const PAGE_LEN: usize = {
        let len = PAGE_BYTES / size_of::<Option<T>>();
        if len > PAGE_LEN_MAX { PAGE_LEN_MAX } else { len }
    };
    const FULL: u64 = u64::MAX >> (u64::BITS as usize - Self::PAGE_LEN);

    pub fn new() -> Self {
        Self { pages: Vec::new(), len: 0, open: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        let slot = slot as usize;
        self.pages.get(slot / Self::PAGE_LEN)?.places.get(slot % Self::PAGE_LEN)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let slot = slot as usize;
        self.pages.get_mut(slot / Self::PAGE_LEN)?.places.get_mut(slot % Self::PAGE_LEN)?.as_mut()
    }

    /// The lowest free place is taken by what is made for it.
    pub fn insert(&mut self, make: impl FnOnce(u32) -> T) -> (u32, &mut T) {
        let open = self.pages.iter().skip(self.open).position(|page| page.used != Self::FULL);
        self.open = open.map_or(self.pages.len(), |open| self.open + open);
        if self.open == self.pages.len() {
            self.pages.push(Page { used: 0, places: Box::default() });
        }
        let page = &mut self.pages[self.open];
        if page.used == 0 {
            page.places = std::iter::repeat_with(|| None).take(Self::PAGE_LEN).collect();
        }
        let place = page.used.trailing_ones() as usize;
        let slot = (self.open * Self::PAGE_LEN + place) as u32;
        let made = page.places[place].insert(make(slot));
        page.used |= 1 << place;
        self.len += 1;
        (slot, made)
    }

    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let number = slot as usize / Self::PAGE_LEN;
        let page = self.pages.get_mut(number)?;
        let place = slot as usize % Self::PAGE_LEN;
        let gone = page.places.get_mut(place)?.take()?;
        page.used &= !(1 << place);
        self.len -= 1;
        self.open = self.open.min(number);
        if page.used == 0 {
            page.places = Box::default();
            while self.pages.last().is_some_and(|page| page.used == 0) {
                self.pages.pop();
            }
            self.open = self.open.min(self.pages.len());
        }
        Some(gone)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.pages.iter_mut().enumerate().flat_map(|(number, page)| {
            let first = (number * Self::PAGE_LEN) as u32;
            let places = page.places.iter_mut().zip(first..);
            places.filter_map(|(place, slot)| Some((slot, place.as_mut()?)))
        })
    }

    /// Takes all out.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        let Self { pages, .. } = std::mem::replace(self, Self::new());
        pages.into_iter().flat_map(|page| page.places).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_from_the_lowest_and_pages_given_back() {
        let mut slots = Slots::<[u64; 40]>::new();
        assert_eq!(Slots::<[u64; 40]>::PAGE_LEN, 16_384 / 328);
        for number in 0..1_000 {
            assert_eq!(slots.insert(|slot| [slot.into(); 40]).0, number);
        }
        for number in (0..1_000).filter(|number| number % 7 != 3) {
            assert_eq!(slots.remove(number), Some([number.into(); 40]));
            assert_eq!((slots.remove(number), slots.get(number)), (None, None));
        }
        assert!(slots.iter_mut().map(|(slot, _)| slot).eq((0..1_000).filter(|number| number % 7 == 3)));
        let left = slots.len();
        assert_eq!(slots.insert(|slot| [slot.into(); 40]).0, 0);
        assert_eq!(slots.insert(|slot| [slot.into(); 40]).0, 1);
        assert_eq!(slots.len(), left + 2);
        for number in 100..1_000 {
            slots.remove(number);
        }
        let held = slots.pages.iter().filter(|page| !page.places.is_empty()).count();
        assert_eq!((slots.pages.len(), held), (2, 2));
        for number in 50..60 {
            slots.remove(number);
        }
        slots.get_mut(3).unwrap()[0] = 9;
        assert_eq!(slots.get(3).unwrap()[0], 9);
        assert_eq!(slots.get(1_000_000), None);
        let left = slots.len();
        assert_eq!(slots.drain().count(), left);
        assert!(slots.is_empty() && slots.insert(|_| [0; 40]).0 == 0);
    }
}
