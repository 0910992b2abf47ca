//! Hot samples: each row holds the samples of many series at one time, or one native histogram. Pure: the bytes of binary
//! COPY.
//!
//! The values of a histogram's row are its numbers, in an array of two dimensions, of which the first is 1: an adapter of
//! an earlier version refuses such an array, where it would take the numbers for samples.
//!
//! The format is PostgreSQL's, "Binary Format" under COPY: a header, then per row the number of fields and per field
//! its length and its bytes, all big-endian, then -1. An array is its number of dimensions, whether it has NULLs, the
//! type of its elements, per dimension its length and lower bound, and each element with its length.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{FromSql, Type};

use crate::model::histogram::Numbers;
use crate::model::sample::Value;
use crate::model::sender::SenderNo;
use crate::storage::row::{Row, to_postgres_us};

/// Maximum number of samples in a row: two such rows fill a page of 8 KiB.
pub const ROW_SAMPLES_MAX: usize = 248;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes of a row besides its samples: a count, four lengths, the time, the headers of two arrays, the sender.
const ROW_BYTES: usize = 2 + 4 * 4 + 8 + 2 * ARRAY_HEAD_BYTES + 4;

const ARRAY_HEAD_BYTES: usize = 20;

/// Bytes of each further dimension of an array.
const DIMENSION_BYTES: usize = 8;

/// Bytes of an array element: its length, and eight bytes.
const ELEMENT_BYTES: usize = 4 + 8;

/// Samples of one sender at one time.
pub struct Gathered {
    /// Sender of the samples; for stale markers [`SenderNo::of_markers`].
    pub sender: SenderNo,
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// Series ids, ascending, and the bits of their values.
    pub samples: Vec<(i64, u64)>,
    /// Series ids and their native histograms.
    pub histograms: Vec<(i64, Numbers)>,
}

/// Arrays of a hot row.
pub struct HotRow {
    /// Column `series`.
    pub series: Vec<i64>,
    /// Bits of the column `value`.
    pub bits: Vec<u64>,
    /// `true` if the values are the numbers of a native histogram, in two dimensions.
    pub is_histogram: bool,
}

impl Gathered {
    /// Returns the rows.
    pub fn rows(&self) -> impl Iterator<Item = HotRow> {
        let samples = self.samples.chunks(ROW_SAMPLES_MAX).map(|samples| {
            let (series, bits) = samples.iter().copied().unzip();
            HotRow { series, bits, is_histogram: false }
        });
        let histograms = self.histograms.iter().map(|(series_id, numbers)| {
            let bits = numbers.as_slice().iter().map(|number| number.to_bits()).collect();
            HotRow { series: vec![*series_id], bits, is_histogram: true }
        });
        samples.chain(histograms)
    }
}

/// Series that have a stored sample of one sender at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesAt {
    /// Sender of the samples; for stale markers [`SenderNo::of_markers`].
    pub sender: SenderNo,
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// Series ids, ascending.
    pub series: Vec<i64>,
}

impl From<Gathered> for SeriesAt {
    fn from(Gathered { sender, time_ms, samples, histograms }: Gathered) -> Self {
        // Not in the place of the samples, which take twice as much.
        let mut series = Vec::with_capacity(samples.len() + histograms.len());
        series.extend(histograms.iter().map(|(series_id, _)| *series_id));
        series.extend(samples.iter().map(|(series_id, _)| *series_id));
        if !histograms.is_empty() {
            series.sort_unstable();
        }
        Self { sender, time_ms, series }
    }
}

/// Groups samples by sender and time, with stale markers apart.
#[must_use]
pub fn gather<'a>(rows: impl Iterator<Item = (SenderNo, &'a Row)> + Clone) -> Vec<Gathered> {
    // Rows arrive series by series, so neighbours differ in time. There are few different times, usually one.
    let mut places: HashMap<(SenderNo, i64), usize> = HashMap::new();
    let mut counts: Vec<((SenderNo, i64), usize)> = Vec::new();
    let mut last: Option<((SenderNo, i64), usize)> = None;
    let place = |(sender, row): (SenderNo, &Row)| {
        let sender = if row.is_marker() { sender.of_markers() } else { sender };
        let key = (sender, row.time_ms);
        let place = match last {
            Some((last, place)) if last == key => place,
            _ => *places.entry(key).or_insert_with(|| {
                counts.push((key, 0));
                counts.len() - 1
            }),
        };
        last = Some((key, place));
        counts[place].1 += 1;
        place
    };
    let places_of_rows: Vec<usize> = rows.clone().map(place).collect();
    let empty = |((sender, time_ms), count)| Gathered {
        sender,
        time_ms,
        samples: Vec::with_capacity(count),
        histograms: Vec::new(),
    };
    let mut gathered: Vec<Gathered> = counts.into_iter().map(empty).collect();
    for ((_, row), place) in rows.zip(places_of_rows) {
        let Gathered { samples, histograms, .. } = &mut gathered[place];
        match &row.value {
            Value::Float(value) => samples.push((row.series_id, value.to_bits())),
            Value::Histogram(numbers) => histograms.push((row.series_id, numbers.clone())),
        }
    }
    for Gathered { samples, .. } in &mut gathered {
        // Sorted, because readers skip rows by their first and last series.
        if !samples.is_sorted_by_key(|(series_id, _)| *series_id) {
            samples.sort_by_key(|(series_id, _)| *series_id);
        }
    }
    gathered
}

/// Returns the body of `COPY … ("time", series, value, sender) FROM STDIN BINARY` for the samples of one transaction.
#[must_use]
pub fn encode_copy(gathered: &[Gathered]) -> Bytes {
    let bytes = |gathered: &Gathered| {
        let samples = gathered.samples.len();
        let numbers = |(_, numbers): &(i64, Numbers)| {
            ROW_BYTES + DIMENSION_BYTES + (1 + numbers.as_slice().len()) * ELEMENT_BYTES
        };
        samples.div_ceil(ROW_SAMPLES_MAX) * ROW_BYTES
            + samples * 2 * ELEMENT_BYTES
            + gathered.histograms.iter().map(numbers).sum::<usize>()
    };
    let mut out = BytesMut::with_capacity(HEADER.len() + gathered.iter().map(bytes).sum::<usize>() + 2);
    out.put_slice(HEADER);
    for Gathered { sender, time_ms, samples, histograms } in gathered {
        for part in samples.chunks(ROW_SAMPLES_MAX) {
            let (series, values) = (part.iter().map(|(series_id, _)| *series_id), part.iter().map(|(_, bits)| *bits));
            put_row(&mut out, *time_ms, series, (values, 1), *sender);
        }
        for (series_id, numbers) in histograms {
            let values = numbers.as_slice().iter().map(|number| number.to_bits());
            put_row(&mut out, *time_ms, std::iter::once(*series_id), (values, 2), *sender);
        }
    }
    out.put_i16(-1);
    out.freeze()
}

fn put_row(
    out: &mut BytesMut,
    time_ms: i64,
    series: impl ExactSizeIterator<Item = i64>,
    (values, dimensions): (impl ExactSizeIterator<Item = u64>, usize),
    sender: SenderNo,
) {
    out.put_i16(4);
    out.put_i32(8);
    out.put_i64(to_postgres_us(time_ms));
    put_array(out, &Type::INT8, 1, series.map(i64::to_be_bytes));
    put_array(out, &Type::FLOAT8, dimensions, values.map(u64::to_be_bytes));
    out.put_i32(4);
    out.put_i32(sender.0);
}

/// Writes an array of so many dimensions, all of length 1 but the last.
fn put_array(out: &mut BytesMut, of: &Type, dimensions: usize, elements: impl ExactSizeIterator<Item = [u8; 8]>) {
    let count = elements.len();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "248 elements, or the numbers of a histogram"
    )]
    {
        out.put_i32((ARRAY_HEAD_BYTES + (dimensions - 1) * DIMENSION_BYTES + count * ELEMENT_BYTES) as i32);
        out.put_i32(dimensions as i32);
        out.put_i32(0);
        out.put_u32(of.oid());
        for _ in 1..dimensions {
            out.put_i32(1);
            out.put_i32(1);
        }
        out.put_i32(count as i32);
        out.put_i32(1);
    }
    for element in elements {
        let mut field = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        field[4..].copy_from_slice(&element);
        out.put_slice(&field);
    }
}

/// Elements of an array of eight-byte numbers as received from the server, without a copy.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    /// `true` for an array of two dimensions: the numbers of a native histogram.
    pub are_numbers: bool,
}

impl<'a> Elements<'a> {
    /// Returns the bytes of each element.
    pub fn iter(self) -> impl ExactSizeIterator<Item = [u8; 8]> + Clone + 'a {
        let (elements, _) = self.bytes.as_chunks::<ELEMENT_BYTES>();
        elements.iter().map(|[_, _, _, _, a, b, c, d, e, f, g, h]| [*a, *b, *c, *d, *e, *f, *g, *h])
    }
}

impl<'a> FromSql<'a> for Elements<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // No NULL, and as many bytes as its length requires; an empty array has no dimension.
        let (bytes, length, are_numbers) = match raw {
            [0, 0, 0, 0, ..] => (&[][..], [0; 4], false),
            [0, 0, 0, 1, 0, 0, 0, 0, _, _, _, _, l0, l1, l2, l3, _, _, _, _, elements @ ..] => {
                (elements, [*l0, *l1, *l2, *l3], false)
            }
            [0, 0, 0, 2, 0, 0, 0, 0, _, _, _, _, 0, 0, 0, 1, _, _, _, _, l0, l1, l2, l3, _, _, _, _, elements @ ..] => {
                (elements, [*l0, *l1, *l2, *l3], true)
            }
            _ => return Err("a hot row's array is not one of whole numbers or floats without NULL".into()),
        };
        if bytes.len() != u32::from_be_bytes(length) as usize * ELEMENT_BYTES {
            return Err("a hot row's array has another length than it says".into());
        }
        Ok(Self { bytes, are_numbers })
    }

    fn accepts(ty: &Type) -> bool {
        [Type::INT8_ARRAY, Type::FLOAT8_ARRAY].contains(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: f64 = f64::from_bits(0x7ff0_0000_0000_0004);

    fn row(series_id: i64, time_ms: i64) -> Row {
        Row { series_id, time_ms, value: Value::Float(VALUE) }
    }

    fn of(sender: i32, rows: &[Row]) -> impl Iterator<Item = (SenderNo, &Row)> + Clone {
        rows.iter().map(move |row| (SenderNo(sender), row))
    }

    #[test]
    fn rows_are_gathered_by_time() {
        let rows = [row(1, 10), row(1, 20), row(2, 10), row(3, 10)];
        let bytes = encode_copy(&gather(of(7, &rows)));
        assert_eq!(bytes.len(), HEADER.len() + 2 * ROW_BYTES + 4 * 2 * ELEMENT_BYTES + 2);
        let first = &bytes[HEADER.len()..];
        assert_eq!(first[..6], [0, 4, 0, 0, 0, 8]);
        assert_eq!(first[6..14], to_postgres_us(10).to_be_bytes());
        let series = &first[14..];
        assert_eq!(series[..4], 56_i32.to_be_bytes(), "three of twelve bytes, and a head");
        assert_eq!(series[4..24], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, 1]);
        assert_eq!(series[28..36], 1_i64.to_be_bytes());
        assert_eq!(series[40..48], 2_i64.to_be_bytes());
        let values = &series[60..];
        assert_eq!(values[12..16], 701_u32.to_be_bytes());
        assert_eq!(values[28..36], VALUE.to_bits().to_be_bytes());
        assert_eq!(values[60..68], [0, 0, 0, 4, 0, 0, 0, 7], "the sender");
        assert_eq!(bytes[bytes.len() - 2..], [0xff, 0xff]);
    }

    #[test]
    fn senders_have_rows_of_their_own() {
        let (one, other) = ([row(1, 10), row(2, 10), row(2, 20)], [row(1, 10), row(3, 10)]);
        let gathered = gather(of(1, &one).chain(of(2, &other)).chain(of(1, &[row(3, 10)])));
        let found = |gathered: &Gathered| {
            let ids: Vec<i64> = gathered.samples.iter().map(|(series_id, _)| *series_id).collect();
            (gathered.sender.0, gathered.time_ms, ids)
        };
        let found: Vec<_> = gathered.iter().map(found).collect();
        assert_eq!(found, [(1, 10, vec![1, 2, 3]), (1, 20, vec![2]), (2, 10, vec![1, 3])]);
    }

    #[test]
    fn stale_markers_have_rows_of_their_own() {
        let marker = Row { value: Value::Float(f64::from_bits(crate::model::sample::STALE_NAN_BITS)), ..row(2, 10) };
        let gathered = gather(of(7, &[row(1, 10), marker, row(3, 10)]));
        let found: Vec<_> = gathered.iter().map(|gathered| (gathered.sender.split(), gathered.samples.len())).collect();
        assert_eq!(found, [((SenderNo(7), false), 2), ((SenderNo(7), true), 1)]);
    }

    #[test]
    fn series_ascend_in_a_row_whatever_request_they_are_from() {
        let bytes = encode_copy(&gather(of(0, &[row(5, 1), row(7, 1), row(1, 1), row(6, 1)])));
        let at = |n: usize| i64::from_be_bytes(bytes[HEADER.len() + 14 + 28 + n * 12..][..8].try_into().unwrap());
        assert_eq!([at(0), at(1), at(2), at(3)], [1, 5, 6, 7]);
    }

    #[test]
    fn what_is_written_is_read() {
        let rows: Vec<Row> = (0..3).map(|n| row(n, 1)).collect();
        let bytes = encode_copy(&gather(of(0, &rows)));
        let array = &bytes[HEADER.len() + 18..][..56];
        let read = |raw: &[u8]| -> Option<Vec<i64>> {
            Some(Elements::from_sql(&Type::INT8_ARRAY, raw).ok()?.iter().map(i64::from_be_bytes).collect())
        };
        assert_eq!(read(array), Some(vec![0, 1, 2]));
        assert_eq!(read(&[0; 12]), Some(vec![]), "an empty array");
        assert_eq!(read(&array[..55]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn long_rows_are_cut() {
        let rows: Vec<Row> = (0..500).map(|series_id| row(series_id, 1)).collect();
        let bytes = encode_copy(&gather(of(0, &rows)));
        assert_eq!(bytes.len(), HEADER.len() + 3 * ROW_BYTES + 500 * 2 * ELEMENT_BYTES + 2);
    }
}
