//! A stored sample, and the conversion of its time to PostgreSQL's. Pure.

use crate::model::sample::{Kind, Value};

/// Milliseconds from 1970-01-01 to 2000-01-01, where PostgreSQL's timestamps begin.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// Earliest timestamptz, 4714-11-24 BC, in ms since 1970.
pub const TIME_MIN_MS: i64 = -210_866_803_200_000;

/// Latest supported timestamptz, 294246-12-31, in ms since 1970. PostgreSQL supports thirty years more, TimescaleDB
/// does not.
pub const TIME_MAX_MS: i64 = 9_223_371_331_199_999;

/// One sample of a known series.
#[derive(Clone, Debug)]
pub struct Row {
    /// Id of the series in the database.
    pub series_id: i64,
    /// Milliseconds since 1970, between [`TIME_MIN_MS`] and [`TIME_MAX_MS`].
    pub time_ms: i64,
    /// A histogram only if the id is that of a series of histograms.
    pub value: Value,
}

impl Row {
    /// Returns `true` for a stale marker.
    #[must_use]
    pub fn is_marker(&self) -> bool {
        self.value.is_marker()
    }
}

/// Returns `true` if the series, or the bucket of series, has native histograms: their ids are negative. A series that has
/// floats too has another id for them.
#[must_use]
pub fn is_of_histograms(series_id: i64) -> bool {
    series_id < 0
}

/// Returns the kind of a series.
#[must_use]
pub fn kind_of(series_id: i64) -> Kind {
    if is_of_histograms(series_id) { Kind::Histogram } else { Kind::Float }
}

/// Returns the number of a series in the order in which all series were created.
#[must_use]
pub fn creation_no(series_id: i64) -> i64 {
    series_id.saturating_abs()
}

/// Converts `time_ms` to PostgreSQL's binary timestamptz: microseconds since 2000.
#[must_use]
pub fn to_postgres_us(time_ms: i64) -> i64 {
    (time_ms.clamp(TIME_MIN_MS, TIME_MAX_MS) - POSTGRES_EPOCH_MS) * 1000
}

/// Reverses [`to_postgres_us`], rounded down to the millisecond.
#[must_use]
pub fn from_postgres_us(time_us: i64) -> i64 {
    time_us.div_euclid(1000) + POSTGRES_EPOCH_MS
}

/// Sorts rows by series and time, and keeps the first of those with equal series and time. Returns the number of
/// removed rows. Senders do repeat a timestamp, even with another value (prometheus/prometheus#12255): the first wins.
pub fn sort_and_dedup(rows: &mut Vec<Row>) -> usize {
    let before = rows.len();
    rows.sort_by_key(|row| (row.series_id, row.time_ms));
    rows.dedup_by_key(|row| (row.series_id, row.time_ms));
    before - rows.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_there_and_back() {
        for time_ms in [TIME_MIN_MS, -1, 0, 1, POSTGRES_EPOCH_MS, 1_800_000_000_123, TIME_MAX_MS] {
            assert_eq!(from_postgres_us(to_postgres_us(time_ms)), time_ms);
        }
    }

    #[test]
    fn the_first_of_equal_times_wins() {
        let row = |series_id, time_ms, value| Row { series_id, time_ms, value: Value::Float(value) };
        let mut rows = vec![row(2, 5, 1.0), row(1, 9, 2.0), row(2, 5, 3.0), row(2, 4, 4.0)];
        assert_eq!(sort_and_dedup(&mut rows), 1);
        let left: Vec<_> = rows.iter().map(|row| (row.series_id, row.time_ms, row.value.clone())).collect();
        assert_eq!(left, [(1, 9, 2.0.into()), (2, 4, 4.0.into()), (2, 5, 1.0.into())]);
    }
}
