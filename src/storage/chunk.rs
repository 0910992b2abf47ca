//! Encoding of sealed samples: chunks of series that were scraped together. Pure; every bit of every float is
//! preserved.
//!
//! A chunk has the samples of up to [`SERIES_PER_BUCKET`] series of one bucket at exactly the same times. It is stored
//! as one row or a few. Each row has as many series as let four rows fit in a page: nothing is stored out of line, and
//! a query for one series reads little of the others.
//!
//! | column | |
//! | --- | --- |
//! | `bucket` | the ids of the series, without their last five bits |
//! | `first`, `last` | the first and last time |
//! | `places` | the last five bits of the ids, as a bit set |
//! | `times` | the number of times less one (16 bits), the times in ms since 1970, a check |
//! | `data` | the start of each stream but the first, in bits (16 bits each); a stream per series: values, a check |
//! | `floats` | floats that no scale fits, unchanged; NULL if there are none |
//!
//! A *check* has eight bits: the number of set bits before it in the stream, plus the place, modulo 256. It detects any
//! single flipped bit and most other damage, and costs SQL only one `bit_count`. A wrong start is detected by the
//! stream before it, which then does not end at the right bit.
//!
//! Times and values are lists of integers (`integers`). The meaning of a value's integer depends on its scale
//! (`values`). [`SQL`] decodes the same format in the database.

use std::fmt;

use crate::model::sample::{Value, is_stale};
use crate::storage::row::{Row, TIME_MAX_MS, TIME_MIN_MS, is_of_histograms};

pub use bits::Bits;
use bits::{Reader, Writer};
use integers::Lists;
pub use places::Places;
use values::Floats;

mod bits;
pub mod histograms;
mod integers;
mod places;
mod values;

#[cfg(test)]
mod tests;

/// Maximum number of series in a chunk.
pub const SERIES_PER_BUCKET: i64 = 32;

/// Maximum number of times in a chunk.
pub const SAMPLES_MAX: usize = 65_536;

const COUNT_BITS: u32 = 16;
const CHECK_BITS: u32 = 8;
const START_BITS: u32 = 16;

/// Maximum bytes of a row of several series, with everything that PostgreSQL adds: four of them fill a page of 8 KiB.
const ROW_BYTES_MAX: usize = 2032;

/// Bytes of a row besides times, streams and floats: the tuple header, the five fixed-size columns, and the headers of
/// what follows.
const ROW_BYTES: usize = 24 + 30 + 3 + 9 + 7;

/// Bytes of the header of an array.
const ARRAY_BYTES: usize = 28;

/// SQL that creates the functions for decoding chunks in the database, with placeholders for names. `{decode}` returns
/// the samples of one series of a row.
pub const SQL: &str = include_str!("chunk.sql");

/// Returns the bucket of a series.
#[must_use]
pub fn bucket_of(series_id: i64) -> i64 {
    series_id.div_euclid(SERIES_PER_BUCKET)
}

/// Returns the place of a series in its bucket.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "from 0 to 31")]
pub fn place_of(series_id: i64) -> u32 {
    series_id.rem_euclid(SERIES_PER_BUCKET) as u32
}

/// Returns the series at `place` in `bucket`: the reverse of [`bucket_of`] and [`place_of`].
#[must_use]
pub fn series_at(bucket: i64, place: u32) -> i64 {
    bucket * SERIES_PER_BUCKET + i64::from(place)
}

/// Samples of some series of one bucket at the same times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// See [`bucket_of`].
    pub bucket: i64,
    /// Ascending, without duplicates; one to [`SAMPLES_MAX`], between `TIME_MIN_MS` and `TIME_MAX_MS`.
    pub times_ms: Vec<i64>,
    /// Places in the bucket, ascending, each with as many values as there are times.
    pub series: Vec<(u32, Vec<f64>)>,
}

/// A row of the table of chunks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// The same as in the chunk.
    pub bucket: i64,
    /// The first time.
    pub first_ms: i64,
    /// The last time.
    pub last_ms: i64,
    /// Places of the series in the bucket.
    pub places: Places,
    /// The times.
    pub times: Bits,
    /// The values of all series.
    pub data: Bits,
    /// Floats that no scale fits.
    pub floats: Vec<f64>,
}

/// Description of a corrupt chunk, for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt(String);

impl fmt::Display for Corrupt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "corrupt chunk: {}", self.0)
    }
}

impl std::error::Error for Corrupt {}

/// Groups the series of a bucket into chunks, in no order. Each series is given by its rows, at least one, in the order
/// of time without duplicates; the series ascend. More than `samples_max` times are split into equal parts.
pub fn group<'a>(series: impl IntoIterator<Item = &'a [Row]>, samples_max: usize) -> Vec<Chunk> {
    let samples_max = samples_max.clamp(1, SAMPLES_MAX);
    let mut groups: Vec<Vec<&[Row]>> = Vec::new();
    for series in series {
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
                (place, series[range.clone()].iter().map(float).collect())
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

/// Returns the value of a row of a series of floats.
fn float(row: &Row) -> f64 {
    match &row.value {
        Value::Float(value) => *value,
        Value::Histogram(_) => unreachable!("only series of histograms have histograms"),
    }
}

fn have_same_times(one: &[Row], other: &[Row]) -> bool {
    // Most lists differ in their last time.
    let end = |rows: &[Row]| rows.last().map(|row| row.time_ms);
    one.len() == other.len()
        && end(one) == end(other)
        && one.iter().zip(other).all(|(one, other)| one.time_ms == other.time_ms)
}

/// Encodes a chunk as rows. Only a row with a single series can exceed `ROW_BYTES_MAX`.
///
/// # Panics
///
/// If the chunk has no times, more than [`SAMPLES_MAX`] times, or a series with another number of values.
#[must_use]
pub fn encode(chunk: &Chunk) -> Vec<Encoded> {
    let count = chunk.times_ms.len();
    assert!((1..=SAMPLES_MAX).contains(&count), "a chunk of {count} times");
    let mut lists = Lists::default();
    let (times_ms, times) = write_times(chunk.times_ms.iter().copied(), &mut lists);
    let mut rows = Vec::new();
    let mut row = Streams::default();
    for (place, values) in &chunk.series {
        assert_eq!(values.len(), count, "values at place {place}");
        let kept = row.floats.values.len();
        let stream = write_stream(*place, values, &mut lists, &mut row.floats);
        if row.places.count() > 0 && row.bytes_with(&stream) + times.bytes.len() > ROW_BYTES_MAX {
            row.floats.truncate(kept);
            rows.push(std::mem::take(&mut row));
            let stream = write_stream(*place, values, &mut lists, &mut row.floats);
            row.add(*place, stream);
        } else {
            row.add(*place, stream);
        }
    }
    rows.push(row);
    let encoded = |row: Streams| Encoded {
        bucket: chunk.bucket,
        first_ms: times_ms[0],
        last_ms: times_ms[count - 1],
        places: row.places,
        times: times.clone(),
        data: row.join(),
        floats: row.floats.values,
    };
    rows.into_iter().map(encoded).collect()
}

/// Returns the times of a row, one to [`SAMPLES_MAX`], as they are stored, and their stream.
fn write_times(times_ms: impl Iterator<Item = i64>, lists: &mut Lists) -> (Vec<i64>, Bits) {
    let times_ms: Vec<_> = times_ms.map(|time_ms| time_ms.clamp(TIME_MIN_MS, TIME_MAX_MS)).collect();
    let mut times = Writer::default();
    times.put(times_ms.len() as u64 - 1, COUNT_BITS);
    lists.write(&times_ms, &mut times);
    put_check(&mut times, 0);
    (times_ms, times.finish())
}

/// The series of an unfinished row.
#[derive(Default)]
struct Streams {
    places: Places,
    streams: Vec<Bits>,
    bits: usize,
    floats: Floats,
}

impl Streams {
    fn add(&mut self, place: u32, stream: Bits) {
        self.places = self.places.with(place);
        self.bits += stream.len;
        self.streams.push(stream);
    }

    /// Returns the bytes of the row, without its times, if `stream` is added. The floats of the stream are already in
    /// the row.
    fn bytes_with(&self, stream: &Bits) -> usize {
        let starts = self.streams.len() * START_BITS as usize;
        row_bytes((starts + self.bits + stream.len).div_ceil(8), self.floats.values.len())
    }

    fn join(&self) -> Bits {
        let mut data = Writer::default();
        let mut start = (self.streams.len().saturating_sub(1)) * START_BITS as usize;
        for stream in self.streams.iter().take(self.streams.len().saturating_sub(1)) {
            start += stream.len;
            data.put(start as u64, START_BITS);
        }
        for stream in &self.streams {
            data.append(stream);
        }
        data.finish()
    }
}

/// Returns the bytes of a row without its times.
fn row_bytes(data_bytes: usize, floats: usize) -> usize {
    ROW_BYTES + data_bytes + if floats == 0 { 0 } else { ARRAY_BYTES + 8 * floats }
}

fn write_stream(place: u32, values: &[f64], lists: &mut Lists, floats: &mut Floats) -> Bits {
    let mut stream = Writer::default();
    values::write(values, lists, floats, &mut stream);
    put_check(&mut stream, place);
    stream.finish()
}

/// Writes the check at the end of a stream.
fn put_check(stream: &mut Writer, place: u32) {
    stream.put(check(stream.ones(), place), CHECK_BITS);
}

fn check(ones: usize, place: u32) -> u64 {
    (ones as u64 + u64::from(place)) % (1 << CHECK_BITS)
}

/// Removes the check from the end of a stream and compares it.
fn take_check(mut stream: Reader<'_>, place: u32) -> Result<Reader<'_>, Corrupt> {
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

impl Chunk {
    /// Returns the number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.times_ms.len() * self.series.len()
    }
}

impl Encoded {
    /// Returns the approximate bytes of the row in a page.
    #[must_use]
    pub fn bytes(&self) -> usize {
        row_bytes(self.data.bytes.len(), self.floats.len()) + self.times.bytes.len()
    }

    /// Decodes the whole row.
    ///
    /// # Errors
    ///
    /// A description of the corruption.
    pub fn decode(&self) -> Result<Chunk, Corrupt> {
        let times_ms = self.times()?;
        let mut integers = Vec::new();
        let series = self
            .places
            .iter()
            .map(|place| Ok((place, self.read(place, times_ms.len(), &mut integers)?)))
            .collect::<Result<_, _>>()?;
        Ok(Chunk { bucket: self.bucket, times_ms, series })
    }

    /// Decodes the values of one series at `times`; `None` if the series is not in the row.
    ///
    /// # Errors
    ///
    /// A description of the corruption.
    pub fn decode_series(&self, place: u32, times: &[i64]) -> Result<Option<Vec<f64>>, Corrupt> {
        if !self.places.contains(place) {
            return Ok(None);
        }
        self.read(place, times.len(), &mut Vec::new()).map(Some)
    }

    /// Decodes the whole row, of either kind, into its samples in the order of series and time.
    ///
    /// # Errors
    ///
    /// A description of the corruption.
    pub fn rows(&self) -> Result<Vec<Row>, Corrupt> {
        if is_of_histograms(self.bucket) {
            let series_id = self.places.iter().next().map_or(0, |place| series_at(self.bucket, place));
            let row = |(time_ms, value)| Row { series_id, time_ms, value };
            return Ok(histograms::decode(self)?.into_iter().map(row).collect());
        }
        let Chunk { bucket, times_ms, series } = self.decode()?;
        let rows_of = |(place, values): (u32, Vec<f64>)| {
            let series_id = series_at(bucket, place);
            let row = move |(time_ms, value): (&i64, f64)| Row { series_id, time_ms: *time_ms, value: value.into() };
            times_ms.iter().zip(values).map(row)
        };
        Ok(series.into_iter().flat_map(rows_of).collect())
    }

    /// Returns those of `times` at which the series at `place`, which is in the row, has stale markers.
    ///
    /// # Errors
    ///
    /// A description of the corruption.
    pub fn markers(&self, place: u32, times: &[i64]) -> Result<Vec<i64>, Corrupt> {
        if is_of_histograms(self.bucket) {
            let markers = self.rows()?.into_iter().filter(Row::is_marker);
            return Ok(markers.map(|row| row.time_ms).collect());
        }
        let values = self.read(place, times.len(), &mut Vec::new())?;
        let is_marker = |(_, value): &(&i64, f64)| is_stale(*value);
        Ok(times.iter().zip(values).filter(is_marker).map(|(time_ms, _)| *time_ms).collect())
    }

    /// Decodes the times, in ms since 1970.
    ///
    /// # Errors
    ///
    /// A description of the corruption.
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

    /// Returns the start of the stream of the `number`th series, or for the number of series the end of the last
    /// stream.
    fn start(&self, number: usize) -> Result<usize, Corrupt> {
        let count = self.places.count();
        if number == count {
            return Ok(self.data.len);
        }
        let width = START_BITS as usize;
        match number.checked_sub(1) {
            None => Ok((count - 1) * width),
            Some(before) => {
                let at = before * width;
                Ok(Reader::new(&self.data, at, at + width)?.get(START_BITS)? as usize)
            }
        }
    }

    fn read(&self, place: u32, count: usize, integers: &mut Vec<i64>) -> Result<Vec<f64>, Corrupt> {
        let number = self.places.before(place);
        let stream = self.start(number).and_then(|start| {
            let stream = Reader::new(&self.data, start, self.start(number + 1)?)?;
            take_check(stream, place)
        });
        let values = stream.and_then(|mut stream| {
            let values = values::read(&mut stream, count, &self.floats, integers)?;
            at_end(&stream)?;
            Ok(values)
        });
        values.map_err(|Corrupt(why)| Corrupt(format!("{why}, at place {place}")))
    }
}
