//! Hot samples: rows that each hold what many series had at one time. Pure: the bytes of binary COPY.
//!
//! The format is PostgreSQL's, "Binary Format" under COPY: a header, then per row the number of fields and per field its
//! length and its bytes, all big-endian, then -1. An array is its number of dimensions, whether it has NULLs, the type of
//! its elements, per dimension its length and lower bound, and each element with its length.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{FromSql, Type};

use crate::storage::row::{Row, to_postgres_us};

/// Samples in a row at most: two such rows fill a page of 8 KiB.
pub const ROW_SAMPLES_MAX: usize = 249;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes of a row beside its samples: a count, three lengths, the time, the heads of two arrays.
const ROW_BYTES: usize = 2 + 3 * 4 + 8 + 2 * ARRAY_HEAD_BYTES;

const ARRAY_HEAD_BYTES: usize = 20;

/// An element of an array: its length, and eight bytes.
const ELEMENT_BYTES: usize = 4 + 8;

/// The body of `COPY … ("time", series, value) FROM STDIN BINARY`: the rows of one transaction, gathered by time, the
/// series of each ascending. `expected` is how many samples there are; were it wrong, it would only be slower.
#[must_use]
pub fn encode_copy<'a>(rows: impl Iterator<Item = &'a Row>, expected: usize) -> Bytes {
    // Rows come by series, so neighbours differ in time; few times occur, and mostly one.
    let mut places: HashMap<i64, usize> = HashMap::new();
    let mut blocks: Vec<(i64, Vec<(i64, u64)>)> = Vec::new();
    let mut last: Option<(i64, usize)> = None;
    let mut samples = 0;
    for row in rows {
        let place = match last {
            Some((time_ms, place)) if time_ms == row.time_ms => place,
            _ => *places.entry(row.time_ms).or_insert_with(|| {
                let room = if blocks.is_empty() { expected } else { 0 };
                blocks.push((row.time_ms, Vec::with_capacity(room)));
                blocks.len() - 1
            }),
        };
        last = Some((row.time_ms, place));
        blocks[place].1.push((row.series_id, row.value.to_bits()));
        samples += 1;
    }
    let count = blocks.iter().map(|(_, block)| block.len().div_ceil(ROW_SAMPLES_MAX)).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEADER.len() + count * ROW_BYTES + samples * 2 * ELEMENT_BYTES + 2);
    out.put_slice(HEADER);
    for (time_ms, block) in &mut blocks {
        // Readers leave out rows by their first and last series.
        if !block.is_sorted_by_key(|(series_id, _)| *series_id) {
            block.sort_by_key(|(series_id, _)| *series_id);
        }
        for part in block.chunks(ROW_SAMPLES_MAX) {
            out.put_i16(3);
            out.put_i32(8);
            out.put_i64(to_postgres_us(*time_ms));
            put_array(&mut out, &Type::INT8, part.iter().map(|(series_id, _)| series_id.to_be_bytes()));
            put_array(&mut out, &Type::FLOAT8, part.iter().map(|(_, bits)| bits.to_be_bytes()));
        }
    }
    out.put_i16(-1);
    out.freeze()
}

fn put_array(out: &mut BytesMut, of: &Type, elements: impl ExactSizeIterator<Item = [u8; 8]>) {
    let count = elements.len();
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "249 elements at most")]
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

/// The elements of an array of eight-byte numbers as they come from the server, with nothing copied.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Each one's bytes.
    pub fn iter(self) -> impl ExactSizeIterator<Item = [u8; 8]> + 'a {
        let (elements, _) = self.0.as_chunks::<ELEMENT_BYTES>();
        elements.iter().map(|[_, _, _, _, a, b, c, d, e, f, g, h]| [*a, *b, *c, *d, *e, *f, *g, *h])
    }
}

impl<'a> FromSql<'a> for Elements<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // One dimension, no NULL, and as many bytes as its length says; an empty array has no dimension.
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

    #[test]
    fn rows_are_gathered_by_time() {
        let value = f64::from_bits(0x7ff0_0000_0000_0002);
        let row = |series_id, time_ms| Row { series_id, time_ms, value };
        let rows = [row(1, 10), row(1, 20), row(2, 10), row(3, 10)];
        let bytes = encode_copy(rows.iter(), rows.len());
        assert_eq!(bytes.len(), HEADER.len() + 2 * ROW_BYTES + 4 * 2 * ELEMENT_BYTES + 2);
        let first = &bytes[HEADER.len()..];
        assert_eq!(first[..6], [0, 3, 0, 0, 0, 8]);
        assert_eq!(first[6..14], to_postgres_us(10).to_be_bytes());
        let series = &first[14..];
        assert_eq!(series[..4], 56_i32.to_be_bytes(), "three of twelve bytes, and a head");
        assert_eq!(series[4..24], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, 1]);
        assert_eq!(series[28..36], 1_i64.to_be_bytes());
        assert_eq!(series[40..48], 2_i64.to_be_bytes());
        let values = &series[60..];
        assert_eq!(values[12..16], 701_u32.to_be_bytes());
        assert_eq!(values[28..36], value.to_bits().to_be_bytes());
        assert_eq!(bytes[bytes.len() - 2..], [0xff, 0xff]);
    }

    #[test]
    fn series_ascend_in_a_row_whatever_request_they_are_from() {
        let row = |series_id| Row { series_id, time_ms: 1, value: 0.0 };
        let bytes = encode_copy([row(5), row(7), row(1), row(6)].iter(), 4);
        let at = |n: usize| i64::from_be_bytes(bytes[HEADER.len() + 14 + 28 + n * 12..][..8].try_into().unwrap());
        assert_eq!([at(0), at(1), at(2), at(3)], [1, 5, 6, 7]);
    }

    #[test]
    fn what_is_written_is_read() {
        let rows: Vec<Row> = (0..3).map(|n| Row { series_id: n, time_ms: 1, value: 0.5 }).collect();
        let bytes = encode_copy(rows.iter(), rows.len());
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
        let rows: Vec<Row> = (0..500).map(|series_id| Row { series_id, time_ms: 1, value: 0.0 }).collect();
        let bytes = encode_copy(rows.iter(), rows.len());
        assert_eq!(bytes.len(), HEADER.len() + 3 * ROW_BYTES + 500 * 2 * ELEMENT_BYTES + 2);
    }
}
