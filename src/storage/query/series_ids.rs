//! Ids of the series of a read. Pure.

use crate::storage::row::is_of_histograms;

/// Ids of what Prometheus takes for one series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesIds {
    /// Id of its floats.
    float: Option<i64>,
    /// Id of its native histograms.
    histogram: Option<i64>,
}

impl SeriesIds {
    pub(super) fn add(&mut self, id: i64) {
        *(if is_of_histograms(id) { &mut self.histogram } else { &mut self.float }) = Some(id);
    }

    pub(super) fn iter(self) -> impl Iterator<Item = i64> {
        self.float.into_iter().chain(self.histogram)
    }
}
