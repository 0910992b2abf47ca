//! Where a term begins, series by series. Pure but for its lock.
//!
//! Found out when it is first needed: most series need one look at the first request after a take-over, and none once
//! samples are newer than anything the last leader can have stored.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::RwLock;

use crate::storage::row::Row;

/// See the module.
#[derive(Debug)]
pub struct Cut {
    until_ms: i64,
    /// When the term began, by our clock.
    now_ms: i64,
    /// How far the clocks of the last leaders were behind ours; each may have stored a series' last sample. What a clock
    /// that is behind stored with an earlier time is as new as that much later a time of ours.
    behind_ms: Vec<i64>,
    /// Where the term begins in series that `last` does not have; `None` if that is to be looked up.
    others_ms: Option<i64>,
    /// By series id, the time up to which nothing is to be stored any more.
    last: RwLock<HashMap<i64, i64, BuildHasherDefault<IdHasher>>>,
}

/// Ids come from a sequence and in order, and so they stay: rows of neighbouring series find their cuts in one cache line,
/// not all over memory. The map tells entries apart by the topmost bits first, which ids do not use.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("an id hashes as one i64");
    }

    fn write_i64(&mut self, id: i64) {
        let id = id.cast_unsigned();
        self.0 = id ^ (id << 57);
    }
}

/// Series whose last stored time is to be looked up.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Their ids, each once.
    pub series: Vec<i64>,
    /// The earliest of the rows that ask, by the clock of the last leader: what was stored before it decides nothing.
    pub from_ms: i64,
}

/// How far the measured difference of two clocks may be wrong.
const OFFSET_ERROR_MS: i64 = 100;

impl Cut {
    /// A term that began at `now_ms` (ms since 1970) by our clock, when no sample later than `until_ms` can have been
    /// stored, after leaders whose clocks were `behind_ms` behind ours. Without regard to them a counter of ours, scraped
    /// before the last one stored, would follow with a later time and a smaller value.
    #[must_use]
    pub fn new(now_ms: i64, until_ms: i64, behind_ms: &[i64]) -> Self {
        Self { until_ms, now_ms, behind_ms: behind_ms.to_vec(), others_ms: None, last: RwLock::default() }
    }

    /// A term of which it is known where it begins: in the series of `last` behind those times, in all others behind
    /// `others_ms`, up to where the last leader had stored everything.
    #[must_use]
    pub fn given(last: impl IntoIterator<Item = (i64, i64)>, others_ms: i64) -> Self {
        let last: HashMap<i64, i64, _> = last.into_iter().collect();
        let until_ms = last.values().copied().max().unwrap_or(others_ms).max(others_ms);
        let last = RwLock::new(last);
        Self { until_ms, now_ms: until_ms, behind_ms: Vec::new(), others_ms: Some(others_ms), last }
    }

    /// By our clock, when a sample stored with the time `at_ms` was taken, at the latest. A leader whose clock had not
    /// reached that time when this term began cannot have stored it.
    fn taken_ms(&self, at_ms: i64) -> i64 {
        let latest_ms = self.now_ms.saturating_add(OFFSET_ERROR_MS);
        let possible = self.behind_ms.iter().map(|behind_ms| at_ms.saturating_add(*behind_ms));
        possible.filter(|taken_ms| *taken_ms <= latest_ms).max().unwrap_or(at_ms).max(at_ms)
    }

    /// The latest time the last leader can have stored.
    #[must_use]
    pub fn until_ms(&self) -> i64 {
        self.until_ms
    }

    /// What must be looked up before [`Cut::apply`] can judge `rows`, which are in the order of series.
    #[must_use]
    pub fn unknown(&self, rows: &[Row]) -> Option<Unknown> {
        if self.others_ms.is_some() {
            return None;
        }
        let last = self.last.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut unknown = Unknown { series: Vec::new(), from_ms: i64::MAX };
        for row in rows.iter().filter(|row| row.time_ms <= self.until_ms && !last.contains_key(&row.series_id)) {
            if unknown.series.last() != Some(&row.series_id) {
                unknown.series.push(row.series_id);
            }
            unknown.from_ms = unknown.from_ms.min(row.time_ms);
        }
        let behind_ms = self.behind_ms.iter().copied().max().unwrap_or(0).max(0);
        unknown.from_ms = unknown.from_ms.saturating_sub(behind_ms);
        (!unknown.series.is_empty()).then_some(unknown)
    }

    /// Remembers what a look-up found. The first answer stays: a later one would count this term's own rows. Where
    /// nothing was found, the term begins with the row that asked: a sender keeps the order of a series, so what comes
    /// with an earlier time is a delivery that was overtaken by its own retry.
    pub fn learn(&self, unknown: &Unknown, found: &HashMap<i64, i64>) {
        let mut last = self.last.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let behind_ms = self.behind_ms.iter().copied().max().unwrap_or(0).max(0);
        for id in &unknown.series {
            let at_ms = match found.get(id) {
                Some(at_ms) => self.taken_ms(*at_ms),
                None => unknown.from_ms.saturating_add(behind_ms).saturating_sub(1),
            };
            last.entry(*id).or_insert(at_ms);
        }
    }

    /// These rows were held and are now stored. A sender that never heard that they were acknowledged sends them again,
    /// under a key that no transaction of the replay has claimed.
    pub fn replayed(&self, rows: &[Row]) {
        let mut last = self.last.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for row in rows {
            let at_ms = last.entry(row.series_id).or_insert(i64::MIN);
            *at_ms = row.time_ms.max(*at_ms);
        }
    }

    /// Takes over what `later` knows of series, where that is more.
    pub fn adopt(&self, later: &Cut) {
        let later = later.last.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut last = self.last.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (id, at_ms) in later.iter() {
            let known_ms = last.entry(*id).or_insert(i64::MIN);
            *known_ms = (*known_ms).max(*at_ms);
        }
    }

    /// Takes out what is not newer than its series' last stored time, and returns it.
    pub fn apply(&self, rows: &mut Vec<Row>) -> Vec<Row> {
        if rows.iter().all(|row| row.time_ms > self.until_ms) {
            return Vec::new();
        }
        let last = self.last.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_new = |row: &Row| match last.get(&row.series_id) {
            Some(at_ms) => row.time_ms > *at_ms,
            None => self.others_ms.is_none_or(|at_ms| row.time_ms > at_ms),
        };
        rows.extract_if(.., |row| row.time_ms <= self.until_ms && !is_new(row)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(series_id: i64, time_ms: i64) -> Row {
        Row { series_id, time_ms, value: 0.0 }
    }

    #[test]
    fn each_series_begins_where_it_was_left() {
        let cut = Cut::new(100, 100, &[]);
        let mut rows = vec![row(1, 10), row(1, 20), row(2, 15), row(3, 101)];
        let unknown = cut.unknown(&rows).unwrap();
        assert_eq!(unknown, Unknown { series: vec![1, 2], from_ms: 10 }, "series 3 is past the cut");
        cut.learn(&unknown, &HashMap::from([(1, 10)]));
        assert_eq!(cut.apply(&mut rows).len(), 1);
        assert_eq!(
            rows.iter().map(|row| (row.series_id, row.time_ms)).collect::<Vec<_>>(),
            [(1, 20), (2, 15), (3, 101)]
        );
        assert_eq!(cut.unknown(&rows), None, "looked up once");
    }

    #[test]
    fn a_clock_that_was_behind_makes_no_counter_run_backwards() {
        let cut = Cut::new(1_000, 1_000, &[30]);
        cut.learn(&Unknown { series: vec![1], from_ms: 100 }, &HashMap::from([(1, 100)]));
        let mut rows = vec![row(1, 101), row(1, 130), row(1, 131)];
        assert_eq!(cut.apply(&mut rows).len(), 2);
        assert_eq!(rows[0].time_ms, 131);
    }

    #[test]
    fn what_a_clock_that_was_behind_stored_is_looked_for_behind() {
        let unknown = Cut::new(100_000, 400_000, &[30_000]).unknown(&[row(1, 99_000)]).unwrap();
        assert_eq!(unknown.from_ms, 69_000);
    }

    #[test]
    fn a_clock_that_was_behind_and_stored_nothing_shifts_nothing() {
        let cut = Cut::new(100_000, 400_000, &[30_000]);
        // Two leaders ago, by a clock like ours; by the last leader's it was 70,000 at most.
        cut.learn(&Unknown { series: vec![1], from_ms: 65_000 }, &HashMap::from([(1, 95_000)]));
        assert_eq!(cut.apply(&mut vec![row(1, 95_000), row(1, 96_000)]).len(), 1);
    }

    #[test]
    fn of_several_clocks_the_furthest_behind_that_is_possible_counts() {
        let cut = Cut::new(31_500, 400_000, &[700, 5_500]);
        let looked = Unknown { series: vec![1, 2], from_ms: 0 };
        cut.learn(&looked, &HashMap::from([(1, 28_830), (2, 20_000)]));
        let mut rows = vec![row(1, 29_530), row(1, 29_531), row(2, 25_500), row(2, 25_501)];
        assert_eq!(cut.apply(&mut rows).len(), 2);
        assert_eq!(rows.iter().map(|row| row.time_ms).collect::<Vec<_>>(), [29_531, 25_501]);
    }

    #[test]
    fn own_rows_do_not_move_the_cut() {
        let cut = Cut::new(100, 100, &[]);
        let unknown = Unknown { series: vec![1], from_ms: 40 };
        cut.learn(&unknown, &HashMap::new());
        cut.learn(&unknown, &HashMap::from([(1, 50)]));
        assert_eq!(cut.apply(&mut vec![row(1, 40)]).len(), 0);
        assert_eq!(cut.apply(&mut vec![row(1, 39)]).len(), 1, "overtaken by its own retry");
    }

    #[test]
    fn where_a_term_begins_may_be_known() {
        let cut = Cut::given([(1, 20), (2, 5)], 10);
        let rows = [row(1, 20), row(1, 21), row(2, 5), row(2, 6), row(3, 10), row(3, 11)];
        assert_eq!(cut.unknown(&rows), None);
        let mut left = rows.to_vec();
        assert_eq!(cut.apply(&mut left).len(), 3);
        assert_eq!(left.iter().map(|row| (row.series_id, row.time_ms)).collect::<Vec<_>>(), [(1, 21), (2, 6), (3, 11)]);
    }

    #[test]
    fn what_was_replayed_is_not_stored_again() {
        let cut = Cut::new(1_000, 1_000, &[30]);
        cut.learn(&Unknown { series: vec![1], from_ms: 100 }, &HashMap::from([(1, 100)]));
        cut.replayed(&[row(1, 140), row(1, 150), row(2, 7)]);
        let mut rows = vec![row(1, 140), row(1, 150), row(1, 151), row(2, 7), row(2, 8)];
        assert_eq!(cut.apply(&mut rows).len(), 3);
    }
}
