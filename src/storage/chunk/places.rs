//! Places of series in their bucket. Pure.

use crate::storage::chunk::SERIES_PER_BUCKET;

/// A set of places in a bucket, as the bits of PostgreSQL's integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Places(pub i32);

impl Places {
    /// Adds a place, below [`SERIES_PER_BUCKET`].
    #[must_use]
    pub fn with(self, place: u32) -> Self {
        Self(self.0 | 1 << place)
    }

    /// Returns `true` if `place` is in the set.
    #[must_use]
    pub fn contains(self, place: u32) -> bool {
        i64::from(place) < SERIES_PER_BUCKET && self.0 >> place & 1 == 1
    }

    /// Returns the number of places.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Returns the places, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..u32::BITS).filter(move |place| self.contains(*place))
    }

    /// Returns the number of places before `place`, which is in the set.
    pub(super) fn before(self, place: u32) -> usize {
        (self.0.cast_unsigned() & ((1 << place) - 1)).count_ones() as usize
    }
}
