//! Places for many values, which stay where they are: a table that grew in one piece would move tens of megabytes for
//! one value more, while all else waits.

use std::{iter, mem, ptr};

/// So many values lie side by side.
const PAGE: usize = 16;

/// Values by the places that they were given.
#[derive(Debug)]
pub(super) struct Pages<T> {
    pages: Vec<Page<T>>,
    /// Places without a value. The last is given out first.
    free: Vec<u32>,
    /// The memory of a page, empty: for values that come and go where one page ends.
    spare: Option<Box<[Option<T>]>>,
}

#[derive(Debug)]
struct Page<T> {
    /// None at all while the page is empty.
    values: Box<[Option<T>]>,
    used: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages {
            pages: Vec::new(),
            free: Vec::new(),
            spare: None,
        }
    }
}

impl<T> Pages<T> {
    /// Takes a value in, and returns its place.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if self.free.is_empty() {
            let first = self.pages.len() * PAGE;
            let places = (first..first + PAGE).rev();
            self.free.extend(
                places.map(|place| {
                    u32::try_from(place).expect("fewer than that fit into any memory")
                }),
            );
            self.pages.push(Page {
                values: Box::default(),
                used: 0,
            });
        }
        let place = self.free.pop().expect("there is one now");
        let page = &mut self.pages[place as usize / PAGE];
        if page.used == 0 {
            let new = || iter::repeat_with(|| None).take(PAGE).collect();
            page.values = self.spare.take().unwrap_or_else(new);
        }
        page.used += 1;
        page.values[place as usize % PAGE] = Some(value);
        place
    }

    /// Where a place lies, whether there is a value or not, without a look at it.
    #[inline]
    pub(super) fn address(&self, place: u32) -> Option<*const u8> {
        let page = self.pages.get(place as usize / PAGE)?;
        let value = page.values.get(place as usize % PAGE)?;
        Some(ptr::from_ref(value).cast())
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> Option<&T> {
        let page = self.pages.get(place as usize / PAGE)?;
        page.values.get(place as usize % PAGE)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        let page = self.pages.get_mut(place as usize / PAGE)?;
        page.values.get_mut(place as usize % PAGE)?.as_mut()
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<T> {
        let page = self.pages.get_mut(place as usize / PAGE)?;
        let value = page.values.get_mut(place as usize % PAGE)?.take()?;
        self.free.push(place);
        page.used -= 1;
        if page.used == 0 {
            self.spare = Some(mem::take(&mut page.values));
        }
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let values = self.pages.iter().flat_map(|page| &page.values);
        values.filter_map(Option::as_ref)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let values = self.pages.iter_mut().flat_map(|page| &mut page.values);
        values.filter_map(Option::as_mut)
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len() * PAGE - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::seeds;

    #[test]
    fn values_are_found_where_they_were_put() {
        seeds::each(50, "pages", |random| {
            let mut pages = Pages::default();
            let mut known = BTreeMap::new();
            for step in 0..2000 {
                // Grows, and shrinks again to nothing.
                let grows = random.below(2000) > step;
                if grows {
                    let value = step.to_string();
                    let place = pages.insert(value.clone());
                    assert_eq!(known.insert(place, value), None);
                } else if !known.is_empty() {
                    let chosen = random.below(known.len() as u64) as usize;
                    let place = *known.keys().nth(chosen).unwrap();
                    assert_eq!(pages.remove(place), known.remove(&place));
                }
                let place = random.below(1000) as u32;
                assert_eq!(pages.get(place), known.get(&place));
                assert_eq!(pages.get_mut(place), known.get_mut(&place));
                assert_eq!(pages.len(), known.len());
                assert_eq!(pages.is_empty(), known.is_empty());
            }
            assert!(pages.iter().eq(known.values()));
            assert!(pages.iter_mut().eq(known.values_mut()));
        });
    }

    #[test]
    fn values_do_not_move() {
        let mut pages = Pages::default();
        let places: Vec<_> = (0..100).map(|n| pages.insert(n)).collect();
        let before = places
            .iter()
            .map(|&place| pages.get(place).map(ptr::from_ref));
        let before: Vec<_> = before.collect();
        for n in 0..100_000 {
            pages.insert(n);
        }
        let after = places
            .iter()
            .map(|&place| pages.get(place).map(ptr::from_ref));
        assert!(after.eq(before));
    }

    #[test]
    fn p4_the_memory_of_many_is_given_back() {
        let mut pages = Pages::default();
        let places: Vec<_> = (0..1000).map(|n| pages.insert(n)).collect();
        for place in places {
            pages.remove(place);
        }
        assert!(pages.pages.iter().all(|page| page.values.is_empty()));
        // What comes and goes has the memory that there is.
        let place = pages.insert(0);
        let before = pages.get(place).map(ptr::from_ref);
        pages.remove(place);
        let place = pages.insert(0);
        assert_eq!(pages.get(place).map(ptr::from_ref), before);
        assert_eq!(pages.remove(place), Some(0));
        assert_eq!(pages.remove(place), None, "it is gone");
    }
}
