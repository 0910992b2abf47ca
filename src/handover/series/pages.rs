//! Entries of series by id; ids are given in order. Pure.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::handover::series::entry::Entry;

#[derive(Debug)]
pub(super) struct Pages {
    pub(super) all: Vec<Box<[Entry; PAGE]>>,
    /// Index in `all` of each page, by id / [`PAGE`].
    places: HashMap<i64, usize, BuildHasherDefault<IdHasher>>,
    /// Page of the entry used last, because most ids come in order: its number, and its index.
    last: (i64, usize),
}

/// Number of series in a page.
const PAGE: usize = 256;

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

impl Default for Pages {
    fn default() -> Self {
        // No page has this number.
        Self { all: Vec::new(), places: HashMap::default(), last: (i64::MAX, 0) }
    }
}

impl Pages {
    pub(super) fn find(&self, series_id: i64) -> Option<&Entry> {
        let (page, place) = split(series_id);
        self.places.get(&page).map(|page| &self.all[*page][place])
    }

    pub(super) fn entry(&mut self, series_id: i64) -> &mut Entry {
        let (page, place) = split(series_id);
        if self.last.0 != page {
            let all = &mut self.all;
            let new = || {
                all.push(Box::new([Entry::UNKNOWN; PAGE]));
                all.len() - 1
            };
            self.last = (page, *self.places.entry(page).or_insert_with(new));
        }
        &mut self.all[self.last.1][place]
    }
}

/// Returns the page of a series, and the place in the page.
fn split(series_id: i64) -> (i64, usize) {
    (series_id.div_euclid(PAGE as i64), series_id.rem_euclid(PAGE as i64) as usize)
}
