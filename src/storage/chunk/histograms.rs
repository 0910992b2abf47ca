//! Encoding of sealed native histograms: chunks of one series. Pure; every bit of every number is preserved.
//!
//! A chunk has the histograms and stale markers of one series at up to [`SAMPLES_MAX`] times. It is a row of the table of
//! chunks, with one place; `data` is one stream, which ends with the same check. Numbers follow each other in columns
//! over the times, because a column changes little from one time to the next.
//!
//! | part of the stream | |
//! | --- | --- |
//! | kind | two bits: 0 whole counts, 1 counts that are floats, 2 lists of numbers as they are |
//! | schema | signed, with its length |
//! | zero threshold | 11 bits: 0 for zero, e for 2^(e-1023), 2047 if a list of values with it follows |
//! | custom bounds | their number with its length, and a list of values if there are any |
//! | positive, negative buckets | of each: the number with its length, and a list of indices if there are any |
//! | reset hints | a list of integers |
//! | starts, sums | lists of values; a sum that is a stale marker is one, and the other columns repeat their neighbour |
//! | counts | whole: a list of integers, the count less the zero bucket and all other buckets, which mostly is 0; else values |
//! | zero bucket, buckets | a list of integers or values each; 0 where a histogram does not have the bucket |
//!
//! What is no histogram in canonical form, or one beyond all reason, is stored as it is (kind 2): in the stream for each
//! time one more than the length of its list, or 0 for a stale marker (a list of integers); in `floats` the lists.
//!
//! [`SQL`] decodes the same format in the database.

use std::collections::BTreeSet;
use std::ops::Range;

pub use read::decode;

use super::bits::{Bits, Writer};
use super::integers::Lists;
use super::values::{self, Floats};
use super::{Encoded, Places, SAMPLES_MAX, bucket_of, place_of, put_check, write_times};
use crate::model::histogram::{COUNT_MAX, Histogram, Numbers};
use crate::model::sample::{STALE_NAN_BITS, Value};

mod read;

#[cfg(test)]
mod tests;

/// SQL that creates the functions for decoding histograms in the database, with placeholders for names. It needs those of
/// [`super::SQL`]. `{decode_histograms}` returns the histograms of a row, `{histogram_buckets}` the buckets of one.
pub const SQL: &str = include_str!("../histograms.sql");

/// A time in ms since 1970, and what the series has there. A float is always a stale marker.
pub type TimedValue = (i64, Value);

/// Maximum of custom bounds and buckets of a chunk, together, times the number of times. It bounds the memory that
/// decoding takes, for a column of equal numbers is stored in a few bits.
const CELLS_MAX: usize = 1 << 20;

const KIND_BITS: u32 = 2;
const WHOLE: u64 = 0;
const FLOAT: u64 = 1;
const AS_IT_IS: u64 = 2;

/// Bits of a zero threshold's exponent.
const EXPONENT_BITS: u32 = 11;
/// The exponent of a zero threshold that is no power of two.
const NO_POWER: u64 = (1 << EXPONENT_BITS) - 1;
const MANTISSA_BITS: u32 = 52;

const STALE: f64 = f64::from_bits(STALE_NAN_BITS);

/// What is stored at a time.
enum Item<'a> {
    Marker,
    Histogram(Histogram),
    /// Numbers that columns cannot represent.
    AsItIs(&'a Numbers),
}

impl<'a> Item<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Float(value) => {
                debug_assert_eq!(value.to_bits(), STALE_NAN_BITS, "a float in a series of histograms");
                Self::Marker
            }
            Value::Histogram(numbers) => match numbers.to_histogram() {
                Ok(histogram) if fits_columns(&histogram) && histogram.to_numbers() == *numbers => {
                    Self::Histogram(histogram)
                }
                _ => Self::AsItIs(numbers),
            },
        }
    }

    fn histogram(&self) -> Option<&Histogram> {
        if let Self::Histogram(histogram) = self { Some(histogram) } else { None }
    }

    /// Returns `true` if both, which are no markers, can be in one chunk.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Histogram(one), Self::Histogram(other)) => {
                one.schema == other.schema
                    && one.is_float == other.is_float
                    && one.zero_threshold.to_bits() == other.zero_threshold.to_bits()
                    && one
                        .bounds
                        .iter()
                        .map(|bound| bound.to_bits())
                        .eq(other.bounds.iter().map(|bound| bound.to_bits()))
            }
            (Self::AsItIs(_), Self::AsItIs(_)) => true,
            _ => false,
        }
    }
}

/// Returns `true` if columns give back what the histogram consists of.
fn fits_columns(histogram: &Histogram) -> bool {
    let counts = || counts_of(histogram);
    let is_whole = |count: f64| count < COUNT_MAX as f64 && (count as u64 as f64).to_bits() == count.to_bits();
    let are_counts = if histogram.is_float {
        true
    } else {
        is_whole(histogram.count)
            && is_whole(histogram.zero_count)
            && counts().all(is_whole)
            && counts().fold(histogram.zero_count as u64, |sum, count| sum.saturating_add(count as u64)) < COUNT_MAX
    };
    are_counts
        && counts().all(|count| count != 0.0)
        && histogram.sum.to_bits() != STALE_NAN_BITS
        && histogram.bounds.len() + histogram.positive.len() + histogram.negative.len() <= CELLS_MAX
}

fn counts_of(histogram: &Histogram) -> impl Iterator<Item = f64> {
    histogram.positive.iter().chain(&histogram.negative).map(|(_, count)| *count)
}

/// Encodes the values of a series, whose times ascend without duplicates and are between `TIME_MIN_MS` and `TIME_MAX_MS`.
/// Each row has at most `times_max` of them, which share schema, kind of counts, zero threshold and custom bounds.
#[must_use]
pub fn encode(series_id: i64, values: &[TimedValue], times_max: usize) -> Vec<Encoded> {
    let times_max = times_max.clamp(1, SAMPLES_MAX);
    let items: Vec<_> = values.iter().map(|(_, value)| Item::of(value)).collect();
    let mut ranges = Vec::new();
    for run in runs(&items) {
        let parts = run.len().div_ceil(times_max);
        for part in 0..parts {
            let at = |part: usize| run.start + run.len() * part / parts;
            split(&items, at(part)..at(part + 1), &mut ranges);
        }
    }
    let mut lists = Lists::default();
    let mut row = |range: Range<usize>| {
        let (times_ms, times) = write_times(values[range.clone()].iter().map(|(time_ms, _)| *time_ms), &mut lists);
        let mut floats = Floats::default();
        let data = write_stream(place_of(series_id), &items[range], &mut lists, &mut floats);
        Encoded {
            bucket: bucket_of(series_id),
            first_ms: times_ms[0],
            last_ms: times_ms[times_ms.len() - 1],
            places: Places::default().with(place_of(series_id)),
            times,
            data,
            floats: floats.values,
        }
    };
    ranges.into_iter().map(&mut row).collect()
}

/// Returns the runs of items that can be in one chunk. Markers are in the run before them; the first ones in that after.
fn runs(items: &[Item<'_>]) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut kind) = (Vec::new(), 0, None);
    for (at, item) in items.iter().enumerate().filter(|(_, item)| !matches!(item, Item::Marker)) {
        if kind.is_some_and(|kind: &Item<'_>| !kind.is_like(item)) {
            runs.push(start..at);
            start = at;
        }
        kind = Some(item);
    }
    if start < items.len() {
        runs.push(start..items.len());
    }
    runs
}

/// Halves a range until each part is within [`CELLS_MAX`].
fn split(items: &[Item<'_>], range: Range<usize>, ranges: &mut Vec<Range<usize>>) {
    if range.len() < 2 || width(&items[range.clone()]).saturating_mul(range.len()) <= CELLS_MAX {
        ranges.push(range);
        return;
    }
    let half = range.start + range.len() / 2;
    split(items, range.start..half, ranges);
    split(items, half..range.end, ranges);
}

/// Returns the number of columns that [`CELLS_MAX`] bounds.
fn width(items: &[Item<'_>]) -> usize {
    let longest = items.iter().map(|item| if let Item::AsItIs(numbers) = item { numbers.as_slice().len() } else { 0 });
    let histograms = || items.iter().filter_map(Item::histogram);
    let bounds = histograms().next().map_or(0, |histogram| histogram.bounds.len());
    let buckets = indices(histograms().map(|histogram| &histogram.positive)).len()
        + indices(histograms().map(|histogram| &histogram.negative)).len();
    longest.max().unwrap_or(0).max(bounds + buckets)
}

/// Returns the indices of all buckets, ascending.
fn indices<'a>(buckets: impl Iterator<Item = &'a Vec<(i32, f64)>>) -> Vec<i32> {
    let indices: BTreeSet<i32> = buckets.flatten().map(|(index, _)| *index).collect();
    indices.into_iter().collect()
}

fn write_stream(place: u32, items: &[Item<'_>], lists: &mut Lists, floats: &mut Floats) -> Bits {
    let mut out = Writer::default();
    if items.iter().any(|item| matches!(item, Item::AsItIs(_))) {
        write_as_it_is(items, lists, floats, &mut out);
    } else {
        write_columns(items, lists, floats, &mut out);
    }
    put_check(&mut out, place);
    out.finish()
}

fn write_as_it_is(items: &[Item<'_>], lists: &mut Lists, floats: &mut Floats, out: &mut Writer) {
    let mut lengths = Vec::with_capacity(items.len());
    for item in items {
        let numbers = if let Item::AsItIs(numbers) = item { Some(numbers.as_slice()) } else { None };
        lengths.push(numbers.map_or(0, |numbers| numbers.len() as i64 + 1));
        floats.values.extend(numbers.unwrap_or_default());
    }
    out.put(AS_IT_IS, KIND_BITS);
    lists.write(&lengths, out);
}

fn write_columns(items: &[Item<'_>], lists: &mut Lists, floats: &mut Floats, out: &mut Writer) {
    let none = Histogram::default();
    let mut latest = items.iter().find_map(Item::histogram).unwrap_or(&none);
    let (is_float, head) = (latest.is_float, latest);
    let histograms: Vec<&Histogram> = items
        .iter()
        .map(|item| {
            latest = item.histogram().unwrap_or(latest);
            latest
        })
        .collect();
    out.put(if is_float { FLOAT } else { WHOLE }, KIND_BITS);
    out.put_signed(i64::from(head.schema));
    write_threshold(head.zero_threshold, lists, floats, out);
    out.put_unsigned(head.bounds.len() as u32);
    if !head.bounds.is_empty() {
        values::write(&head.bounds, lists, floats, out);
    }
    let mut columns = Vec::new();
    for buckets in [|histogram| &histogram.positive, |histogram| &histogram.negative] as [BucketsOf; 2] {
        let indices = indices(histograms.iter().map(|histogram| buckets(histogram)));
        out.put_unsigned(indices.len() as u32);
        if !indices.is_empty() {
            let list: Vec<_> = indices.iter().map(|index| i64::from(*index)).collect();
            lists.write(&list, out);
        }
        add_columns(&histograms, buckets, &indices, &mut columns);
    }
    let hints: Vec<_> = histograms.iter().map(|histogram| i64::from(histogram.reset_hint)).collect();
    lists.write(&hints, out);
    let starts: Vec<_> = histograms.iter().map(|histogram| histogram.start_ms as f64).collect();
    values::write(&starts, lists, floats, out);
    let sum = |item: &Item<'_>| item.histogram().map_or(STALE, |histogram| histogram.sum);
    let sums: Vec<_> = items.iter().map(sum).collect();
    values::write(&sums, lists, floats, out);
    columns.insert(0, histograms.iter().map(|histogram| histogram.zero_count).collect());
    if is_float {
        let counts: Vec<_> = histograms.iter().map(|histogram| histogram.count).collect();
        values::write(&counts, lists, floats, out);
        columns.iter().for_each(|column| values::write(column, lists, floats, out));
    } else {
        let counted = |histogram: &&Histogram| (histogram.zero_count + counts_of(histogram).sum::<f64>()) as i64;
        let rests: Vec<_> = histograms.iter().map(|histogram| histogram.count as i64 - counted(histogram)).collect();
        lists.write(&rests, out);
        for column in &columns {
            let column: Vec<_> = column.iter().map(|count| *count as i64).collect();
            lists.write(&column, out);
        }
    }
}

type BucketsOf = fn(&Histogram) -> &Vec<(i32, f64)>;

/// Adds a column for each index: what each histogram has in that bucket.
fn add_columns(histograms: &[&Histogram], buckets: BucketsOf, indices: &[i32], columns: &mut Vec<Vec<f64>>) {
    let first = columns.len();
    columns.resize(first + indices.len(), vec![0.0; histograms.len()]);
    for (time, histogram) in histograms.iter().enumerate() {
        let mut places = indices.iter().zip(&mut columns[first..]);
        for (index, count) in buckets(histogram) {
            if let Some((_, column)) = places.find(|(place, _)| *place == index) {
                column[time] = *count;
            }
        }
    }
}

fn write_threshold(threshold: f64, lists: &mut Lists, floats: &mut Floats, out: &mut Writer) {
    let exponent = threshold.to_bits() >> MANTISSA_BITS;
    if exponent << MANTISSA_BITS == threshold.to_bits() && exponent < NO_POWER {
        out.put(exponent, EXPONENT_BITS);
    } else {
        out.put(NO_POWER, EXPONENT_BITS);
        values::write(&[threshold], lists, floats, out);
    }
}
