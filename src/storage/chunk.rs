//! How sealed samples are encoded: chunks of series that were scraped together. Pure; every bit of every float comes back.
//!
//! A chunk is a row: the samples of up to [`SERIES_PER_BUCKET`] series of one bucket at exactly the same times.
//!
//! | column | |
//! | --- | --- |
//! | `bucket` | the ids of its series, without their last five bits |
//! | `first`, `last` | its first and last time |
//! | `times` | how many times there are less one (16 bits), the times in ms since 1970, a check |
//! | `places` | the last five bits of the ids, ascending |
//! | `starts` | where the stream of each series begins in `data`, in bits |
//! | `data` | a stream for each series: its values, a check |
//! | `floats` | floats that no scale fits, as they are |
//!
//! A *check* is eight bits: how many of the bits before it in the stream are set, plus the place, modulo 256. It finds
//! any one flipped bit and most other damage, and SQL has it at the cost of a single `bit_count`.
//!
//! The times and the values are lists of integers (`integers`); what a value's integer means is said by its scale
//! (`values`). [`SQL`] decodes the same in the database.

use std::fmt;

use crate::storage::row::{Row, TIME_MAX_MS, TIME_MIN_MS};

pub use bits::Bits;
use bits::{Reader, Writer};
use integers::Lists;
use values::Floats;

mod bits;
mod integers;
mod values;

#[cfg(test)]
mod tests;

/// Series that may share a chunk.
pub const SERIES_PER_BUCKET: i64 = 32;

/// More times than this a chunk never has.
pub const SAMPLES_MAX: usize = 65_536;

const COUNT_BITS: u32 = 16;
const CHECK_BITS: u32 = 8;

/// Makes the functions that decode chunks in the database, with names to fill in: `{decode}` gives the samples of one
/// series of a row.
pub const SQL: &str = include_str!("chunk.sql");

/// The bucket of a series.
#[must_use]
pub fn bucket_of(series_id: i64) -> i64 {
    series_id.div_euclid(SERIES_PER_BUCKET)
}

/// The place of a series in its bucket.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "below 32")]
pub fn place_of(series_id: i64) -> i16 {
    series_id.rem_euclid(SERIES_PER_BUCKET) as i16
}

/// The series at `place` in `bucket`: the reverse of [`bucket_of`] and [`place_of`].
#[must_use]
pub fn series_at(bucket: i64, place: i16) -> i64 {
    bucket * SERIES_PER_BUCKET + i64::from(place)
}

/// Samples of some series of one bucket at the same times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// See [`bucket_of`].
    pub bucket: i64,
    /// Ascending, none twice; one to [`SAMPLES_MAX`], between `TIME_MIN_MS` and `TIME_MAX_MS`.
    pub times_ms: Vec<i64>,
    /// Places in the bucket, ascending, with as many values as there are times.
    pub series: Vec<(i16, Vec<f64>)>,
}

/// A row of the table of chunks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// As in the chunk.
    pub bucket: i64,
    /// The first time.
    pub first_ms: i64,
    /// The last time.
    pub last_ms: i64,
    /// The times.
    pub times: Bits,
    /// Which series of the bucket.
    pub places: Vec<i16>,
    /// Where their streams begin in `data`.
    pub starts: Vec<i32>,
    /// The values of all series.
    pub data: Bits,
    /// Floats that no scale fits.
    pub floats: Vec<f64>,
}

/// What is wrong with a chunk, in words fit for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt(String);

impl fmt::Display for Corrupt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "corrupt chunk: {}", self.0)
    }
}

impl std::error::Error for Corrupt {}

/// Groups rows, in the order of series and time and none twice, into chunks, by bucket and in no order within it. More
/// than `samples_max` times are cut into equal parts.
pub fn group(rows: &[Row], samples_max: usize) -> impl Iterator<Item = Chunk> {
    let samples_max = samples_max.clamp(1, SAMPLES_MAX);
    rows.chunk_by(|one, other| bucket_of(one.series_id) == bucket_of(other.series_id))
        .flat_map(move |rows| group_bucket(rows, samples_max))
}

fn group_bucket(rows: &[Row], samples_max: usize) -> Vec<Chunk> {
    let mut groups: Vec<Vec<&[Row]>> = Vec::new();
    for series in rows.chunk_by(|one, other| one.series_id == other.series_id) {
        match groups.iter_mut().find(|group| have_same_times(group[0], series)) {
            Some(group) => group.push(series),
            None => groups.push(vec![series]),
        }
    }
    let mut chunks = Vec::new();
    for group in groups {
        let count = group[0].len();
        let parts = count.div_ceil(samples_max);
        for part in 0..parts {
            let range = count * part / parts..count * (part + 1) / parts;
            let values = |series: &[Row]| {
                let place = place_of(series[0].series_id);
                (place, series[range.clone()].iter().map(|row| row.value).collect())
            };
            chunks.push(Chunk {
                bucket: bucket_of(group[0][0].series_id),
                times_ms: group[0][range.clone()].iter().map(|row| row.time_ms).collect(),
                series: group.iter().map(|series| values(series)).collect(),
            });
        }
    }
    chunks
}

fn have_same_times(one: &[Row], other: &[Row]) -> bool {
    // The ends tell most lists apart.
    let end = |rows: &[Row]| rows.last().map(|row| row.time_ms);
    one.len() == other.len()
        && end(one) == end(other)
        && one.iter().zip(other).all(|(one, other)| one.time_ms == other.time_ms)
}

/// The row of a chunk.
///
/// # Panics
///
/// When the chunk is none: without times, with more than [`SAMPLES_MAX`], or with another number of values.
#[must_use]
pub fn encode(chunk: &Chunk) -> Encoded {
    let count = chunk.times_ms.len();
    assert!((1..=SAMPLES_MAX).contains(&count), "a chunk of {count} times");
    let times_ms: Vec<_> = chunk.times_ms.iter().map(|time_ms| (*time_ms).clamp(TIME_MIN_MS, TIME_MAX_MS)).collect();
    let mut lists = Lists::default();
    let mut times = Writer::default();
    times.put(count as u64 - 1, COUNT_BITS);
    lists.write(&times_ms, &mut times);
    put_check(&mut times, 0, 0);
    let (mut data, mut floats) = (Writer::default(), Floats::default());
    let mut starts = Vec::with_capacity(chunk.series.len());
    for (place, values) in &chunk.series {
        assert_eq!(values.len(), count, "values at place {place}");
        // At most 32 streams of 65,536 times 64 bits and a little.
        starts.push(data.len() as i32);
        let ones = data.ones();
        values::write(values, &mut lists, &mut floats, &mut data);
        put_check(&mut data, ones, *place);
    }
    Encoded {
        bucket: chunk.bucket,
        first_ms: times_ms[0],
        last_ms: times_ms[count - 1],
        times: times.finish(),
        places: chunk.series.iter().map(|(place, _)| *place).collect(),
        starts,
        data: data.finish(),
        floats: floats.values,
    }
}

/// Ends a stream before which `ones` bits were set.
fn put_check(stream: &mut Writer, ones: usize, place: i16) {
    stream.put(check(stream.ones() - ones, place), CHECK_BITS);
}

fn check(ones: usize, place: i16) -> u64 {
    (ones as u64 + place as u64) % (1 << CHECK_BITS)
}

/// Takes the check off the end of a stream and compares it.
fn take_check(mut stream: Reader<'_>, place: i16) -> Result<Reader<'_>, Corrupt> {
    let found = stream.split_end(CHECK_BITS as usize)?.get(CHECK_BITS)?;
    let expected = check(stream.ones(), place);
    if found != expected {
        return Err(Corrupt(format!("a stream's check is {found} and not {expected}")));
    }
    Ok(stream)
}

fn at_end(stream: &Reader<'_>) -> Result<(), Corrupt> {
    match stream.left() {
        0 => Ok(()),
        left => Err(Corrupt(format!("{left} bits too many in a stream"))),
    }
}

impl Encoded {
    /// The whole chunk.
    ///
    /// # Errors
    ///
    /// What is corrupt.
    pub fn decode(&self) -> Result<Chunk, Corrupt> {
        let times_ms = self.times()?;
        self.check_places()?;
        let mut integers = Vec::new();
        let series = (0..self.places.len())
            .map(|index| Ok((self.places[index], self.read(index, times_ms.len(), &mut integers)?)))
            .collect::<Result<_, _>>()?;
        Ok(Chunk { bucket: self.bucket, times_ms, series })
    }

    /// The values of one series, if it is in the chunk, at `times`.
    ///
    /// # Errors
    ///
    /// What is corrupt.
    pub fn decode_series(&self, place: i16, times: &[i64]) -> Result<Option<Vec<f64>>, Corrupt> {
        self.check_places()?;
        let Ok(index) = self.places.binary_search(&place) else { return Ok(None) };
        self.read(index, times.len(), &mut Vec::new()).map(Some)
    }

    /// The times, in ms since 1970.
    ///
    /// # Errors
    ///
    /// What is corrupt.
    pub fn times(&self) -> Result<Vec<i64>, Corrupt> {
        let mut stream = take_check(Reader::new(&self.times, 0, self.times.len)?, 0)?;
        let count = stream.get(COUNT_BITS)? as usize + 1;
        let mut times = Vec::new();
        integers::read(&mut stream, count, &mut times)?;
        at_end(&stream)?;
        if times.first() != Some(&self.first_ms) || times.last() != Some(&self.last_ms) {
            return Err(Corrupt(format!("its times are not from {} to {}", self.first_ms, self.last_ms)));
        }
        if !times.is_sorted_by(|one, other| one < other) {
            return Err(Corrupt("its times do not ascend".into()));
        }
        Ok(times)
    }

    fn check_places(&self) -> Result<(), Corrupt> {
        let in_bounds = |place: &i16| (0..SERIES_PER_BUCKET).contains(&i64::from(*place));
        if !self.places.iter().all(in_bounds) || !self.places.is_sorted_by(|one, other| one < other) {
            return Err(Corrupt(format!("its places are {:?}", self.places)));
        }
        if self.starts.len() != self.places.len() || self.starts.first().is_some_and(|start| *start != 0) {
            return Err(Corrupt(format!("{} places begin at {:?}", self.places.len(), self.starts)));
        }
        Ok(())
    }

    fn read(&self, index: usize, count: usize, integers: &mut Vec<i64>) -> Result<Vec<f64>, Corrupt> {
        let at = |start: i32| usize::try_from(start).map_err(|_| Corrupt(format!("a stream at {start}")));
        let start = at(self.starts[index])?;
        let end = self.starts.get(index + 1).map_or(Ok(self.data.len), |end| at(*end))?;
        let place = self.places[index];
        let stream = Reader::new(&self.data, start, end).and_then(|stream| take_check(stream, place));
        let values = stream.and_then(|mut stream| {
            let values = values::read(&mut stream, count, &self.floats, integers)?;
            at_end(&stream)?;
            Ok(values)
        });
        values.map_err(|Corrupt(why)| Corrupt(format!("{why}, at place {place}")))
    }
}
