//! Hot samples: each row holds the samples of many series at one time. Pure: the bytes of binary COPY.
//!
//! The format is PostgreSQL's, "Binary Format" under COPY: a header, then per row the number of fields and per field
//! its length and its bytes, all big-endian, then -1. An array is its number of dimensions, whether it has NULLs, the
//! type of its elements, per dimension its length and lower bound, and each element with its length.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{FromSql, Type};

use crate::model::sender::SenderNo;
use crate::storage::row::{Row, to_postgres_us};

/// Maximum number of samples in a row: two such rows fill a page of 8 KiB.
pub const ROW_SAMPLES_MAX: usize = 248;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes of a row besides its samples: a count, four lengths, the time, the headers of two arrays, the sender.
const ROW_BYTES: usize = 2 + 4 * 4 + 8 + 2 * ARRAY_HEAD_BYTES + 4;

const ARRAY_HEAD_BYTES: usize = 20;

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
    fn from(Gathered { sender, time_ms, samples }: Gathered) -> Self {
        // Not in the place of the samples, which take twice as much.
        let mut series = Vec::with_capacity(samples.len());
        series.extend(samples.iter().map(|(series_id, _)| *series_id));
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
    let empty = |((sender, time_ms), count)| Gathered { sender, time_ms, samples: Vec::with_capacity(count) };
    let mut gathered: Vec<Gathered> = counts.into_iter().map(empty).collect();
    for ((_, row), place) in rows.zip(places_of_rows) {
        gathered[place].samples.push((row.series_id, row.value.to_bits()));
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
    let samples = gathered.iter().map(|gathered| gathered.samples.len()).sum::<usize>();
    let count = gathered.iter().map(|gathered| gathered.samples.len().div_ceil(ROW_SAMPLES_MAX)).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEADER.len() + count * ROW_BYTES + samples * 2 * ELEMENT_BYTES + 2);
    out.put_slice(HEADER);
    for Gathered { sender, time_ms, samples } in gathered {
        for part in samples.chunks(ROW_SAMPLES_MAX) {
            out.put_i16(4);
            out.put_i32(8);
            out.put_i64(to_postgres_us(*time_ms));
            put_array(&mut out, &Type::INT8, part.iter().map(|(series_id, _)| series_id.to_be_bytes()));
            put_array(&mut out, &Type::FLOAT8, part.iter().map(|(_, bits)| bits.to_be_bytes()));
            out.put_i32(4);
            out.put_i32(sender.0);
        }
    }
    out.put_i16(-1);
    out.freeze()
}

fn put_array(out: &mut BytesMut, of: &Type, elements: impl ExactSizeIterator<Item = [u8; 8]>) {
    let count = elements.len();
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "248 elements at most")]
    {
        out.put_i32((ARRAY_HEAD_BYTES + count * ELEMENT_BYTES) as i32);
        out.put_i32(1);
        out.put_i32(0);
        out.put_u32(of.oid());
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
pub struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Returns the bytes of each element.
    pub fn iter(self) -> impl ExactSizeIterator<Item = [u8; 8]> + Clone + 'a {
        let (elements, _) = self.0.as_chunks::<ELEMENT_BYTES>();
        elements.iter().map(|[_, _, _, _, a, b, c, d, e, f, g, h]| [*a, *b, *c, *d, *e, *f, *g, *h])
    }
}

impl<'a> FromSql<'a> for Elements<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // One dimension, no NULL, and as many bytes as its length requires; an empty array has no dimension.
        let elements = match raw {
            [0, 0, 0, 0, ..] => &[][..],
            [0, 0, 0, 1, 0, 0, 0, 0, _, _, _, _, l0, l1, l2, l3, _, _, _, _, elements @ ..]
                if elements.len() == u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize * ELEMENT_BYTES =>
            {
                elements
            }
            _ => return Err("a hot row's array is not one of whole numbers or floats without NULL".into()),
        };
        Ok(Self(elements))
    }

    fn accepts(ty: &Type) -> bool {
        [Type::INT8_ARRAY, Type::FLOAT8_ARRAY].contains(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(series_id: i64, time_ms: i64) -> Row {
        Row { series_id, time_ms, value: f64::from_bits(0x7ff0_0000_0000_0004) }
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
        assert_eq!(values[28..36], rows[0].value.to_bits().to_be_bytes());
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
        let marker = Row { value: f64::from_bits(crate::model::sample::STALE_NAN_BITS), ..row(2, 10) };
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
