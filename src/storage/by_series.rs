//! A value for each series, by its id; ids are assigned in order. Pure.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Values of series. A series without a value takes no room unless its neighbours have one.
#[derive(Debug)]
pub struct BySeries<T> {
    /// Pages in the order in which they were added. A few large allocations: among others, a small one for each page
    /// would leave holes that the allocator cannot return.
    blocks: Vec<Vec<[T; PAGE]>>,
    /// Place of each page, by id / [`PAGE`].
    places: HashMap<i64, Place, BuildHasherDefault<IdHasher>>,
    /// Page of the value used last, because most ids come in order: its number, and its place.
    last: (i64, Place),
}

/// Place of a page: its block, and its index in the block.
type Place = (u32, u32);

/// Number of series in a page.
const PAGE: usize = 256;

/// Maximum number of pages in a block.
const BLOCK_PAGES_MAX: usize = 64;

/// Hash that changes only the topmost bits of a page number: ids come from a sequence, so pages are few and their
/// numbers are spread already. The map first compares the topmost bits, which page numbers do not use.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a page number hashes as one i64");
    }

    fn write_i64(&mut self, id: i64) {
        let id = id.cast_unsigned();
        self.0 = id ^ (id << 57);
    }
}

impl<T> Default for BySeries<T> {
    fn default() -> Self {
        // No page has this number.
        Self { blocks: Vec::new(), places: HashMap::default(), last: (i64::MAX, (0, 0)) }
    }
}

impl<T: Copy + Default> BySeries<T> {
    /// Returns the value of a series; `None` if neither it nor one of its neighbours has one.
    #[must_use]
    pub fn get(&self, series_id: i64) -> Option<&T> {
        let (page, at) = split(series_id);
        self.places.get(&page).map(|(block, place)| &self.blocks[*block as usize][*place as usize][at])
    }

    /// Returns the value of a series for a change; the default one at first.
    pub fn entry(&mut self, series_id: i64) -> &mut T {
        let (page, at) = split(series_id);
        if self.last.0 != page {
            let blocks = &mut self.blocks;
            self.last = (page, *self.places.entry(page).or_insert_with(|| add_page(blocks)));
        }
        let (block, place) = self.last.1;
        &mut self.blocks[block as usize][place as usize][at]
    }

    /// Returns all values for a change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.blocks.iter_mut().flatten().flatten()
    }
}

/// Adds a page of default values, in a block twice as large as the last one if that is full.
fn add_page<T: Copy + Default>(blocks: &mut Vec<Vec<[T; PAGE]>>) -> Place {
    let room = blocks.last().map_or(0, |last| last.capacity() - last.len());
    if room == 0 {
        let pages = blocks.last().map_or(1, |last| (2 * last.len()).min(BLOCK_PAGES_MAX));
        blocks.push(Vec::with_capacity(pages));
    }
    let place = blocks.last().map_or(0, Vec::len);
    let block = blocks.len() - 1;
    blocks[block].push([T::default(); PAGE]);
    let index = |n: usize| u32::try_from(n).expect("pages are far fewer than 4 billion");
    (index(block), index(place))
}

/// Returns the page of a series, and the index in the page.
fn split(series_id: i64) -> (i64, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "below 256")]
    (series_id.div_euclid(PAGE as i64), series_id.rem_euclid(PAGE as i64) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_series_has_its_own_value(
            changes in prop::collection::vec((-100_000_i64..100_000, 1_u64..), 0..2_000),
            others in prop::collection::vec(-200_000_i64..200_000, 0..100),
        ) {
            let (mut values, mut expected) = (BySeries::default(), BTreeMap::new());
            for (series_id, value) in changes {
                prop_assert_eq!(*values.entry(series_id), expected.get(&series_id).copied().unwrap_or(0));
                *values.entry(series_id) = value;
                expected.insert(series_id, value);
            }
            for series_id in expected.keys().copied().chain(others) {
                let value = values.get(series_id).copied().unwrap_or(0);
                prop_assert_eq!(value, expected.get(&series_id).copied().unwrap_or(0));
            }
            let mut all: Vec<u64> = values.values_mut().map(|value| *value).filter(|value| *value > 0).collect();
            let mut expected: Vec<u64> = expected.into_values().collect();
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
