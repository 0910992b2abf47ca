//! Hot rows as sealing takes them: rows with many series at one time are added, and the samples of a bucket are read
//! series by series. Pure.

use std::collections::HashMap;
use std::ops::Range;

use crate::storage::chunk::{Places, SERIES_PER_BUCKET, bucket_of, place_of, series_at};
use crate::storage::row::Row;

/// Number of places in a bucket.
#[expect(clippy::cast_possible_truncation, reason = "a few")]
const PLACES: usize = SERIES_PER_BUCKET as usize;

/// Hot rows in memory: 9 bytes per sample, and 12 for each bucket per row that has samples of it.
#[derive(Debug, Default)]
pub(super) struct HotRows {
    /// Time in ms since 1970 and number of each row. The numbers are in the order of storing.
    rows: Vec<(i64, i64)>,
    /// Values of all rows, row by row.
    values: Vec<f64>,
    /// Place of each value's series in its bucket.
    places: Vec<u8>,
    runs: HashMap<i64, Vec<Run>>,
}

/// Samples of one bucket in one row.
#[derive(Debug)]
struct Run {
    /// Index of the row in [`HotRows::rows`].
    row: u32,
    /// Range of the samples in [`HotRows::values`].
    samples: Range<u32>,
}

/// More than 2^32 rows or samples.
#[derive(Debug, thiserror::Error)]
#[error("too many hot samples at once")]
pub(super) struct TooMany;

/// First and last times of a bucket's samples, in ms since 1970.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// First time of all samples.
    pub(super) first_ms: i64,
    /// Last time of all samples.
    pub(super) last_ms: i64,
    /// First and last time of each place; for a place without samples the last is before the first.
    places: [(i64, i64); PLACES],
}

impl HotRows {
    /// Adds a row: its time, its number, and its samples by series id. The ids usually ascend.
    pub(super) fn push(
        &mut self,
        time_ms: i64,
        no: i64,
        samples: impl Iterator<Item = (i64, f64)>,
    ) -> Result<(), TooMany> {
        let row = index(self.rows.len())?;
        self.rows.push((time_ms, no));
        let mut samples = samples.peekable();
        while let Some((first, _)) = samples.peek() {
            let bucket = bucket_of(*first);
            let start = index(self.values.len())?;
            while let Some((series_id, value)) = samples.next_if(|(series_id, _)| bucket_of(*series_id) == bucket) {
                #[expect(clippy::cast_possible_truncation, reason = "one of 32")]
                self.places.push(place_of(series_id) as u8);
                self.values.push(value);
            }
            let run = Run { row, samples: start..index(self.values.len())? };
            self.runs.entry(bucket).or_default().push(run);
        }
        Ok(())
    }

    /// Sorts the samples of each series by time, and by the order of storing where times are equal. Has to be called
    /// once all rows are added.
    pub(super) fn sort(&mut self) {
        // Stable sort: a row whose series do not ascend has several runs of a bucket.
        self.runs.values_mut().for_each(|runs| runs.sort_by_key(|run| self.rows[run.row as usize]));
    }

    /// Returns the number of samples.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns the buckets that have samples, in no order.
    pub(super) fn buckets(&self) -> impl Iterator<Item = i64> {
        self.runs.keys().copied()
    }

    /// Returns the times of the rows, in ms since 1970, in no order.
    pub(super) fn times_ms(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|(time_ms, _)| *time_ms)
    }

    /// Appends a bucket's samples to `rows`, in the order of series, time and storing.
    pub(super) fn append_to(&self, rows: &mut Vec<Row>, bucket: i64) {
        let mut counts = [0; PLACES];
        for place in self.runs_of(bucket).flat_map(|(_, samples)| &self.places[samples]) {
            counts[usize::from(*place)] += 1;
        }
        // Index in `rows` of the next sample of each place.
        let mut next = [rows.len(); PLACES];
        for place in 1..PLACES {
            next[place] = next[place - 1] + counts[place - 1];
        }
        rows.resize(rows.len() + counts.iter().sum::<usize>(), Row { series_id: 0, time_ms: 0, value: 0.0 });
        for (time_ms, samples) in self.runs_of(bucket) {
            for (place, value) in self.places[samples.clone()].iter().zip(&self.values[samples]) {
                let next = &mut next[usize::from(*place)];
                rows[*next] = Row { series_id: series_at(bucket, u32::from(*place)), time_ms, value: *value };
                *next += 1;
            }
        }
    }

    /// Returns the first and last times of a bucket's samples.
    pub(super) fn reach(&self, bucket: i64) -> Reach {
        let mut reach = Reach { first_ms: i64::MAX, last_ms: i64::MIN, places: [(i64::MAX, i64::MIN); PLACES] };
        for (time_ms, samples) in self.runs_of(bucket) {
            for place in &self.places[samples] {
                let (first_ms, last_ms) = &mut reach.places[usize::from(*place)];
                (*first_ms, *last_ms) = (time_ms.min(*first_ms), time_ms.max(*last_ms));
            }
            (reach.first_ms, reach.last_ms) = (time_ms.min(reach.first_ms), time_ms.max(reach.last_ms));
        }
        reach
    }

    /// Returns the runs of a bucket: the time of each, and the range of its samples.
    fn runs_of(&self, bucket: i64) -> impl Iterator<Item = (i64, Range<usize>)> {
        let range = |samples: &Range<u32>| samples.start as usize..samples.end as usize;
        let runs = self.runs.get(&bucket).into_iter().flatten();
        runs.map(move |run| (self.rows[run.row as usize].0, range(&run.samples)))
    }
}

impl Reach {
    /// Returns `true` if any series at `places` has samples from `first_ms` to `last_ms`, or both before and after.
    pub(super) fn is_into(&self, places: Places, first_ms: i64, last_ms: i64) -> bool {
        let mut reached = places.iter().map(|place| self.places[place as usize]);
        reached.any(|(first, last)| first <= last_ms && last >= first_ms)
    }
}

fn index(count: usize) -> Result<u32, TooMany> {
    u32::try_from(count).map_err(|_| TooMany)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Time of a row and its samples.
    type Sent = (i64, Vec<(i64, f64)>);

    /// Rows in the order of storing, and the same rows in any order, each with its number.
    fn rows() -> impl Strategy<Value = (Vec<Sent>, Vec<(usize, Sent)>)> {
        let samples = vec((-40_i64..40, any::<f64>()), 0..20).prop_map(|mut samples| {
            samples.sort_by_key(|(series_id, _)| *series_id);
            samples
        });
        vec((0_i64..5, samples), 0..12).prop_flat_map(|rows| {
            let numbered: Vec<_> = rows.iter().cloned().enumerate().collect();
            (Just(rows), Just(numbered).prop_shuffle())
        })
    }

    fn bits(rows: &[Row]) -> Vec<(i64, i64, u64)> {
        rows.iter().map(|row| (row.series_id, row.time_ms, row.value.to_bits())).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_by_series_time_and_order_of_storing((stored, read) in rows()) {
            let mut hot = HotRows::default();
            for (no, (time_ms, samples)) in &read {
                hot.push(*time_ms, i64::try_from(*no).unwrap(), samples.iter().copied()).unwrap();
            }
            hot.sort();
            let row = |time_ms| move |(series_id, value): &(i64, f64)| Row { series_id: *series_id, time_ms, value: *value };
            let mut all: Vec<Row> =
                stored.iter().flat_map(|(time_ms, samples)| samples.iter().map(row(*time_ms))).collect();
            all.sort_by_key(|row| (row.series_id, row.time_ms));
            prop_assert_eq!(hot.len(), all.len());
            let buckets: BTreeSet<i64> = hot.buckets().collect();
            let expected: BTreeSet<i64> = all.iter().map(|row| bucket_of(row.series_id)).collect();
            prop_assert_eq!(&buckets, &expected);
            let times = |rows: &mut dyn Iterator<Item = i64>| { let mut times: Vec<_> = rows.collect(); times.sort_unstable(); times };
            prop_assert_eq!(times(&mut hot.times_ms()), times(&mut stored.iter().map(|(time_ms, _)| *time_ms)));
            for bucket in buckets {
                let before = Row { series_id: 7, time_ms: 8, value: 9.0 };
                let mut rows = vec![before];
                hot.append_to(&mut rows, bucket);
                let of_bucket: Vec<Row> =
                    [before].into_iter().chain(all.iter().copied().filter(|row| bucket_of(row.series_id) == bucket)).collect();
                prop_assert_eq!(bits(&rows), bits(&of_bucket));
            }
        }

        #[test]
        fn a_reach_is_into_what_lies_between_its_ends((_, read) in rows(), first_ms in 0_i64..5, length in 0_i64..3, place in 0_u32..32) {
            let mut hot = HotRows::default();
            for (no, (time_ms, samples)) in &read {
                hot.push(*time_ms, i64::try_from(*no).unwrap(), samples.iter().copied()).unwrap();
            }
            for bucket in hot.buckets() {
                let reach = hot.reach(bucket);
                let times = |wanted: &dyn Fn(i64) -> bool| -> Vec<i64> {
                    let rows = read.iter().map(|(_, row)| row);
                    rows.filter(|(_, samples)| samples.iter().any(|(id, _)| wanted(*id))).map(|(time_ms, _)| *time_ms).collect()
                };
                let of_bucket = times(&|id| bucket_of(id) == bucket);
                prop_assert_eq!(Some(reach.first_ms), of_bucket.iter().min().copied());
                prop_assert_eq!(Some(reach.last_ms), of_bucket.iter().max().copied());
                let last_ms = first_ms + length;
                let of_series = times(&|id| id == series_at(bucket, place));
                let ends = of_series.iter().min().zip(of_series.iter().max());
                let expected = ends.is_some_and(|(first, last)| *first <= last_ms && *last >= first_ms);
                prop_assert_eq!(reach.is_into(Places::default().with(place), first_ms, last_ms), expected);
            }
        }
    }

    #[test]
    fn a_row_whose_series_do_not_ascend_is_taken_too() {
        let mut hot = HotRows::default();
        hot.push(5, 0, [(33, 1.0), (2, 2.0), (34, 3.0), (2, 4.0)].into_iter()).unwrap();
        hot.sort();
        let mut rows = Vec::new();
        hot.append_to(&mut rows, 0);
        hot.append_to(&mut rows, 1);
        let series: Vec<_> = rows.iter().map(|row| (row.series_id, row.value)).collect();
        assert_eq!(series, [(2, 2.0), (2, 4.0), (33, 1.0), (34, 3.0)]);
    }
}
