//! What nobody stored of a series, found by comparing. Pure.

use std::collections::HashMap;

use crate::storage::row::Row;

/// A span of time that a change of leader left in doubt, ends included, in ms since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Everything before is stored.
    pub lower_ms: i64,
    /// Everything after is stored, or will be.
    pub upper_ms: i64,
}

/// What samples are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Stored times by series id, in order, from [`LOOK_AROUND_MS`] before the first of the samples to as much after the
    /// last.
    pub times: HashMap<i64, Vec<i64>>,
    /// How far the clocks of those who stored them are ahead of the server's: the least and the most.
    pub clocks_ms: Option<(i64, i64)>,
}

/// What an adapter knows of its own sender's samples of a series, beside those it is about to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The time of the last one compared.
    pub last_ms: Option<i64>,
    /// The time of the next one.
    pub next_ms: Option<i64>,
    /// How often there is one, as far as was seen.
    pub pace_ms: Option<i64>,
    /// The time of the last one that nobody had stored.
    pub filled_ms: Option<i64>,
}

/// What became of samples that were compared.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Nobody has stored these.
    pub missing: Vec<Row>,
    /// Nobody has stored anything later, and somebody may be about to.
    pub undecided: Vec<Row>,
    /// What is known now, by series id.
    pub known: Vec<(i64, Known)>,
}

/// Series of other paces than a minute or two are not scraped.
pub const LOOK_AROUND_MS: i64 = 2 * 60_000;

/// Steps between stored samples that tell a pace.
const STORED_STEPS_MIN: usize = 6;

/// A scrape may be so late on a busy host.
const LATE_MS: i64 = 500;

/// Prometheus gives a scrape the time it was due if it is late by 2 ms at most.
const ALIGNED_MS: u64 = 5;

impl Hole {
    /// Whether some time from `earliest_ms` to `latest_ms` is in it.
    #[must_use]
    pub fn meets(&self, earliest_ms: i64, latest_ms: i64) -> bool {
        self.lower_ms <= latest_ms && earliest_ms <= self.upper_ms
    }
}

/// Whether `row` lies in one of `holes`.
#[must_use]
pub fn in_hole(holes: &[Hole], row: &Row) -> bool {
    holes.iter().any(|hole| hole.meets(row.time_ms, row.time_ms))
}

impl Stored {
    /// Of `rows`, in the order of series and time, those that nobody stored: in a gap that is longer than the series'
    /// pace, or beside the same sender's own, and not where another clock than ours, `clock_ms` ahead of the server's,
    /// might have seen them before what is stored earlier, or after what is stored later. A gap that is open to the future
    /// is one up to `passed_ms`. `known` is from comparing earlier rows.
    #[must_use]
    pub fn compare(&self, rows: &[Row], clock_ms: i64, passed_ms: i64, known: &HashMap<i64, Known>) -> Compared {
        let (least_ms, most_ms) = self.clocks_ms.unwrap_or((clock_ms, clock_ms));
        let (ahead_ms, behind_ms) = ((clock_ms - least_ms).max(0), (most_ms - clock_ms).max(0));
        let mut compared = Compared::default();
        for of_series in rows.chunk_by(|one, next| one.series_id == next.series_id) {
            let id = of_series[0].series_id;
            let known = known.get(&id).copied().unwrap_or_default();
            let times = self.times.get(&id).map_or(&[][..], Vec::as_slice);
            let pace_ms = own_pace_ms(of_series, known);
            // One step alone may be a gap of its sender's; so may several, if what is stored comes twice as often: samples in
            // doubt need not follow each other.
            let stored_pace_ms = stored_pace_ms(times);
            let is_sure = (of_series.len() > 1 || known.pace_ms.is_some())
                && pace_ms.zip(stored_pace_ms).is_none_or(|(own_ms, stored_ms)| own_ms < stored_ms * 2);
            let likely_ms = if is_sure { pace_ms } else { pace_ms.into_iter().chain(stored_pace_ms).min() };
            let limit_ms = likely_ms.map_or(i64::MAX, |pace_ms| pace_ms + LATE_MS.max(pace_ms / 8));
            let apart_ms = likely_ms.map_or(i64::MAX, |pace_ms| pace_ms / 8);
            let Known { mut last_ms, mut filled_ms, next_ms, .. } = known;
            for (place, row) in of_series.iter().enumerate() {
                let own_next_ms = of_series.get(place + 1).map(|next| next.time_ms).or(next_ms);
                let at = times.partition_point(|time_ms| *time_ms < row.time_ms);
                let stored_ms = at.checked_sub(1).map(|before| times[before]);
                let before_ms = stored_ms.max(filled_ms.filter(|at_ms| *at_ms < row.time_ms));
                let after_ms = times.get(at).copied();
                let is_own = before_ms.is_some() && before_ms == filled_ms;
                // Next to a stored one of the same sender, with none of another between, it belongs with that, also in a gap that
                // a late scrape of the other's would leave; but not right beside the other's. What another adapter stored of its
                // sender is told by lying a pace away.
                let is_far = |at_ms: Option<i64>| {
                    at_ms.is_none_or(|at_ms| at_ms.abs_diff(row.time_ms) >= apart_ms.unsigned_abs())
                };
                let is_a_pace = |from_ms: i64, to_ms: i64| {
                    likely_ms.is_some_and(|pace_ms| (to_ms - from_ms).abs_diff(pace_ms) <= ALIGNED_MS)
                };
                let follows = before_ms.is_some_and(|at_ms| Some(at_ms) == last_ms || is_a_pace(at_ms, row.time_ms))
                    && after_ms.is_some()
                    && is_far(after_ms);
                let precedes = after_ms
                    .is_some_and(|at_ms| Some(at_ms) == own_next_ms || is_a_pace(row.time_ms, at_ms))
                    && is_far(before_ms);
                // Right beside another's it is of the same scrape, which fills no gap.
                let is_alone = (is_own || is_far(before_ms)) && is_far(after_ms);
                let is_gap = match (before_ms, after_ms) {
                    (Some(before_ms), Some(after_ms)) => after_ms.saturating_sub(before_ms) > limit_ms,
                    (Some(before_ms), None) => is_own || row.time_ms.saturating_sub(before_ms) > limit_ms,
                    (None, Some(after_ms)) => after_ms.saturating_sub(row.time_ms) > limit_ms,
                    (None, None) => true,
                };
                let is_missing = follows || precedes || (is_alone && is_gap);
                let ahead_ms = if is_own { 0 } else { ahead_ms };
                let is_between = before_ms.is_none_or(|before_ms| row.time_ms > before_ms + ahead_ms)
                    && after_ms.is_none_or(|after_ms| row.time_ms + behind_ms < after_ms);
                if after_ms.is_none() && row.time_ms > passed_ms {
                    compared.undecided.push(*row);
                    continue;
                }
                last_ms = last_ms.max(Some(row.time_ms));
                if is_missing && is_between {
                    filled_ms = Some(row.time_ms);
                    compared.missing.push(*row);
                }
            }
            compared.known.push((id, Known { last_ms, next_ms: None, pace_ms, filled_ms }));
        }
        compared
    }
}

/// How often its sender takes samples of a series: by what it sent itself, for what is stored may be of two sides, whose
/// samples lie closer together where one follows the other. A lower quartile, as some steps are gaps.
fn own_pace_ms(of_series: &[Row], known: Known) -> Option<i64> {
    let times = of_series.iter().map(|row| row.time_ms);
    let times: Vec<i64> = known.last_ms.into_iter().chain(times).chain(known.next_ms).collect();
    let steps = steps_ms(&times);
    let step_ms = steps.get(steps.len().saturating_sub(1) / 4).copied();
    step_ms.into_iter().chain(known.pace_ms).min()
}

/// The same by what is stored, where that is enough for changes of side, which make steps short, to make no difference.
fn stored_pace_ms(times: &[i64]) -> Option<i64> {
    let steps = steps_ms(times);
    (steps.len() >= STORED_STEPS_MIN).then(|| steps[(steps.len() - 1) * 3 / 4])
}

/// The steps between ascending times, in order of size.
fn steps_ms(times: &[i64]) -> Vec<i64> {
    let mut steps: Vec<i64> = times.windows(2).map(|two| two[1] - two[0]).filter(|step_ms| *step_ms > 0).collect();
    steps.sort_unstable();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All in seconds.
    fn missing(stored: &[i64], held: &[i64], (least, most): (i64, i64), filled: Option<i64>) -> Vec<i64> {
        let row = |time: &i64| Row { series_id: 1, time_ms: time * 1_000, value: 0.0 };
        let times = stored.iter().map(|time| time * 1_000).collect();
        let stored = Stored { times: HashMap::from([(1, times)]), clocks_ms: Some((least * 1_000, most * 1_000)) };
        let known = |time| Known { filled_ms: Some(time * 1_000), ..Known::default() };
        let known = filled.map(|time| (1, known(time))).into_iter().collect();
        let compared = stored.compare(&held.iter().map(row).collect::<Vec<_>>(), 0, 30_000, &known);
        compared.missing.iter().map(|row| row.time_ms / 1_000).collect()
    }

    #[test]
    fn only_what_lies_in_a_gap_is_missing() {
        let missing = |stored: &[i64], held: &[i64]| missing(stored, held, (0, 0), None);
        assert_eq!(missing(&[0, 10, 20, 61, 71], &[4, 14, 24, 34, 44, 54, 64]), [24, 34, 44, 54]);
        assert_eq!(missing(&[0, 10, 20, 30, 41, 51], &[4, 14, 24, 34, 44]), [0_i64; 0], "nothing is");
        assert_eq!(missing(&[0, 10, 24, 34, 44, 54, 61, 71], &[24, 34, 44, 54]), [0_i64; 0], "stored already");
        assert_eq!(missing(&[0, 10, 30, 40], &[10, 20, 30]), [20], "as rules do");
        assert_eq!(missing(&[], &[5]), [5], "a series of its own");
        assert_eq!(missing(&[0, 30], &[14]), [0_i64; 0], "no pace is known");
        assert_eq!(missing(&[3, 7, 17], &[2, 12]), [0_i64; 0], "a young series that changed sides");
        assert_eq!(missing(&[21, 31], &[4, 14, 24]), [4, 14], "it began earlier");
        assert_eq!(missing(&[0, 10], &[14, 24, 34]), [24], "the leader may be about to be sent 34");
    }

    #[test]
    fn at_the_end_of_a_hole_a_sample_belongs_beside_its_own() {
        // Each second, in ms.
        let missing = |stored: &[i64], held: &[i64]| {
            let row = |time_ms: &i64| Row { series_id: 1, time_ms: *time_ms, value: 0.0 };
            let stored = Stored { times: HashMap::from([(1, stored.to_vec())]), clocks_ms: None };
            let compared = stored.compare(&held.iter().map(row).collect::<Vec<_>>(), 0, 30_000, &HashMap::new());
            compared.missing.iter().map(|row| row.time_ms).collect::<Vec<_>>()
        };
        assert_eq!(missing(&[0, 1_000, 2_440, 3_440], &[440, 1_440, 2_440, 3_440]), [1_440], "its run begins too late");
        assert_eq!(missing(&[440, 1_440, 2_900, 3_900], &[440, 1_440, 2_440, 3_440]), [2_440], "or ends too soon");
        let by_others = [-4_000, -3_000, -2_000, -1_000, 0, 1_000, 2_440, 3_440, 4_440, 5_440];
        assert_eq!(missing(&by_others, &[-1_560, 1_440, 4_440]), [1_440], "another adapter stored its neighbours");
        assert_eq!(missing(&[0, 1_000, 2_440, 3_440], &[250, 1_250, 2_250]), [0_i64; 0], "a third one's is late");
        assert_eq!(missing(&[0, 1_000, 2_100, 3_100], &[100, 1_100, 2_100]), [0_i64; 0], "its twin is stored");
        let late = [5_000, 6_000, 7_000, 8_000, 9_000, 10_950, 11_000, 12_000, 13_000];
        assert_eq!(missing(&[3_000, 4_000], &late), late[1..], "beside its own, of which one is late");
    }

    #[test]
    fn a_sample_right_beside_a_stored_one_fills_no_gap() {
        let stored = [-20, -10, 0, 10, 20, 40, 50, 60];
        assert_eq!(missing(&stored, &[39], (0, 0), None), [0_i64; 0], "what lies between is with another adapter");
        assert_eq!(missing(&stored, &[19, 29, 39], (0, 0), None), [29]);
        let late = [-40, -30, -20, -10, 0];
        assert_eq!(
            missing(&late, &[11, 19, 20], (0, 0), Some(1)),
            [11, 19, 20],
            "its own may lie close, if one is late"
        );
    }

    #[test]
    fn no_clock_makes_a_counter_run_backwards() {
        assert_eq!(missing(&[0, 10, 60, 70], &[14, 24, 34, 44, 54], (-5, 7), None), [24, 34, 44]);
        let by_one_clock = missing(&[0, 10, 24, 60], &[34, 44, 54], (-12, 0), Some(24));
        assert_eq!(by_one_clock, [34, 44, 54], "nothing is in doubt");
    }
}
