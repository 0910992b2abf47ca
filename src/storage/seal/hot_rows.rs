//! Hot rows as sealing takes them: rows with many series at one time are added, and the samples of a bucket are read
//! series by series. Pure.

use std::collections::HashMap;
use std::ops::Range;

use crate::model::histogram::Numbers;
use crate::model::sample::Value;
use crate::storage::chunk::{Places, SERIES_PER_BUCKET, bucket_of, place_of, series_at};
use crate::storage::row::Row;

/// Number of places in a bucket.
#[expect(clippy::cast_possible_truncation, reason = "a few")]
const PLACES: usize = SERIES_PER_BUCKET as usize;

/// Hot rows in memory: 9 bytes per sample, and 12 for each bucket per row that has samples of it. A native histogram takes
/// 24 more, and those of its numbers.
#[derive(Debug, Default)]
pub(super) struct HotRows {
    /// Time in ms since 1970 and number of each row. The numbers are in the order of storing.
    rows: Vec<(i64, i64)>,
    /// Values of all rows, row by row. A native histogram's is its place in `histograms`, as bits.
    values: Vec<f64>,
    histograms: Vec<Numbers>,
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
    /// `true` if the only sample is a native histogram.
    is_histogram: bool,
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
            let run = Run { row, samples: start..index(self.values.len())?, is_histogram: false };
            self.runs.entry(bucket).or_default().push(run);
        }
        Ok(())
    }

    /// Adds a row with one native histogram.
    pub(super) fn push_histogram(
        &mut self,
        time_ms: i64,
        no: i64,
        series_id: i64,
        numbers: Numbers,
    ) -> Result<(), TooMany> {
        self.push(time_ms, no, std::iter::once((series_id, f64::from_bits(self.histograms.len() as u64))))?;
        self.histograms.push(numbers);
        let last = self.runs.get_mut(&bucket_of(series_id)).and_then(|runs| runs.last_mut());
        last.into_iter().for_each(|run| run.is_histogram = true);
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
        for place in self.runs_of(bucket).flat_map(|run| &self.places[run.samples()]) {
            counts[usize::from(*place)] += 1;
        }
        // Index in `rows` of the next sample of each place.
        let mut next = [rows.len(); PLACES];
        for place in 1..PLACES {
            next[place] = next[place - 1] + counts[place - 1];
        }
        rows.resize(
            rows.len() + counts.iter().sum::<usize>(),
            Row { series_id: 0, time_ms: 0, value: Value::Float(0.0) },
        );
        for run in self.runs_of(bucket) {
            let (time_ms, samples) = (self.time_ms(run), run.samples());
            for (place, value) in self.places[samples.clone()].iter().zip(&self.values[samples]) {
                let next = &mut next[usize::from(*place)];
                let value = if run.is_histogram { self.histogram(*value) } else { Value::Float(*value) };
                rows[*next] = Row { series_id: series_at(bucket, u32::from(*place)), time_ms, value };
                *next += 1;
            }
        }
    }

    /// Returns the first and last times of a bucket's samples.
    pub(super) fn reach(&self, bucket: i64) -> Reach {
        let mut reach = Reach { first_ms: i64::MAX, last_ms: i64::MIN, places: [(i64::MAX, i64::MIN); PLACES] };
        for run in self.runs_of(bucket) {
            let time_ms = self.time_ms(run);
            for place in &self.places[run.samples()] {
                let (first_ms, last_ms) = &mut reach.places[usize::from(*place)];
                (*first_ms, *last_ms) = (time_ms.min(*first_ms), time_ms.max(*last_ms));
            }
            (reach.first_ms, reach.last_ms) = (time_ms.min(reach.first_ms), time_ms.max(reach.last_ms));
        }
        reach
    }

    fn runs_of(&self, bucket: i64) -> impl Iterator<Item = &Run> {
        self.runs.get(&bucket).into_iter().flatten()
    }

    fn time_ms(&self, run: &Run) -> i64 {
        self.rows[run.row as usize].0
    }

    fn histogram(&self, place: f64) -> Value {
        let place = usize::try_from(place.to_bits()).expect("it is a place");
        Value::Histogram(self.histograms[place].clone())
    }
}

impl Run {
    /// Returns the range of its samples in [`HotRows::values`].
    fn samples(&self) -> Range<usize> {
        self.samples.start as usize..self.samples.end as usize
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

    fn values(rows: &[Row]) -> Vec<(i64, i64, Value)> {
        rows.iter().map(|row| (row.series_id, row.time_ms, row.value.clone())).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_by_series_time_and_order_of_storing((stored, read) in rows()) {
            let mut hot = HotRows::default();
            for (no, (time_ms, samples)) in &read {
                hot.push(*time_ms, i64::try_from(*no).unwrap(), samples.iter().copied()).unwrap();
            }
            hot.sort();
            let row = |time_ms| move |(series_id, value): &(i64, f64)| Row { series_id: *series_id, time_ms, value: Value::Float(*value) };
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
                let before = Row { series_id: 7, time_ms: 8, value: Value::Float(9.0) };
                let mut rows = vec![before.clone()];
                hot.append_to(&mut rows, bucket);
                let of_bucket: Vec<Row> =
                    [before].into_iter().chain(all.iter().filter(|row| bucket_of(row.series_id) == bucket).cloned()).collect();
                prop_assert_eq!(values(&rows), values(&of_bucket));
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
        let series: Vec<_> = rows.iter().map(|row| (row.series_id, row.value.clone())).collect();
        assert_eq!(series, [(2, 2.0.into()), (2, 4.0.into()), (33, 1.0.into()), (34, 3.0.into())]);
    }
}
