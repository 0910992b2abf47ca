//! A stored sample, and binary COPY of many. Pure.
//!
//! The format is PostgreSQL's, "Binary Format" under COPY: a header, then per row the number of fields and per field its
//! length and its bytes, all big-endian, then -1.

use bytes::{BufMut, Bytes, BytesMut};

/// Milliseconds from 1970-01-01 to 2000-01-01, where PostgreSQL's timestamps begin.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// The earliest timestamptz, 4714-11-24 BC, in ms since 1970.
pub const TIME_MIN_MS: i64 = -210_866_803_200_000;

/// The last timestamptz that counts, 294276-12-31, in ms since 1970.
pub const TIME_MAX_MS: i64 = 9_224_318_015_999_999;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes of a row in binary COPY: a count, and three fields of eight bytes with their lengths.
const ROW_BYTES: usize = 2 + 3 * (4 + 8);

/// One sample of a known series.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The series' id in the database.
    pub series_id: i64,
    /// Milliseconds since 1970, between [`TIME_MIN_MS`] and [`TIME_MAX_MS`].
    pub time_ms: i64,
    /// Any float; every bit counts.
    pub value: f64,
}

/// `time_ms` as PostgreSQL's binary timestamptz: microseconds since 2000.
#[must_use]
pub fn to_postgres_us(time_ms: i64) -> i64 {
    (time_ms.clamp(TIME_MIN_MS, TIME_MAX_MS) - POSTGRES_EPOCH_MS) * 1000
}

/// The reverse of [`to_postgres_us`], rounded down to the millisecond.
#[must_use]
pub fn from_postgres_us(time_us: i64) -> i64 {
    time_us.div_euclid(1000) + POSTGRES_EPOCH_MS
}

/// Puts rows in the order of series and time and leaves the first of those with equal series and time. Returns how many
/// it took out. Senders do repeat a timestamp, with another value even (prometheus/prometheus#12255): the first wins.
pub fn sort_and_dedup(rows: &mut Vec<Row>) -> usize {
    let before = rows.len();
    rows.sort_by_key(|row| (row.series_id, row.time_ms));
    rows.dedup_by_key(|row| (row.series_id, row.time_ms));
    before - rows.len()
}

/// The body of `COPY … (time, series_id, value) FROM STDIN BINARY`.
pub fn encode_copy<'a>(rows: impl Iterator<Item = &'a Row>, count: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER.len() + count * ROW_BYTES + 2);
    out.put_slice(HEADER);
    for row in rows {
        let mut field = [
            0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0,
            0, 0,
        ];
        field[6..14].copy_from_slice(&to_postgres_us(row.time_ms).to_be_bytes());
        field[18..26].copy_from_slice(&row.series_id.to_be_bytes());
        field[30..38].copy_from_slice(&row.value.to_bits().to_be_bytes());
        out.put_slice(&field);
    }
    out.put_i16(-1);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_laid_out_as_documented() {
        let row = Row { series_id: 7, time_ms: POSTGRES_EPOCH_MS + 1, value: f64::from_bits(0x7ff0_0000_0000_0002) };
        let bytes = encode_copy([row].iter(), 1);
        assert_eq!(bytes.len(), HEADER.len() + ROW_BYTES + 2);
        let row_bytes = &bytes[HEADER.len()..];
        assert_eq!(row_bytes[..6], [0, 3, 0, 0, 0, 8]);
        assert_eq!(row_bytes[6..14], 1000_i64.to_be_bytes());
        assert_eq!(row_bytes[18..26], 7_i64.to_be_bytes());
        assert_eq!(row_bytes[30..38], 0x7ff0_0000_0000_0002_u64.to_be_bytes());
        assert_eq!(row_bytes[38..], [0xff, 0xff]);
    }

    #[test]
    fn times_survive_there_and_back() {
        for time_ms in [TIME_MIN_MS, -1, 0, 1, POSTGRES_EPOCH_MS, 1_800_000_000_123, TIME_MAX_MS] {
            assert_eq!(from_postgres_us(to_postgres_us(time_ms)), time_ms);
        }
    }

    #[test]
    fn the_first_of_equal_times_wins() {
        let row = |series_id, time_ms, value| Row { series_id, time_ms, value };
        let mut rows = vec![row(2, 5, 1.0), row(1, 9, 2.0), row(2, 5, 3.0), row(2, 4, 4.0)];
        assert_eq!(sort_and_dedup(&mut rows), 1);
        let left: Vec<_> = rows.iter().map(|row| (row.series_id, row.time_ms, row.value)).collect();
        assert_eq!(left, [(1, 9, 2.0), (2, 4, 4.0), (2, 5, 1.0)]);
    }
}
