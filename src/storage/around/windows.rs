//! Time windows in which to look for what is stored around samples. Pure.

use std::collections::BTreeMap;

use crate::storage::row::Row;

/// Samples of one sender, around which stored ones are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a> {
    /// Rows in the order of series and time, without duplicates.
    pub rows: &'a [Row],
    /// Time in ms before and after each sample within which stored samples are looked for.
    pub window_ms: i64,
    /// Series whose last stored time is wanted too. Series that are not in `rows` are ignored.
    pub unbounded: &'a [i64],
}

/// A span of time in ms since 1970, both ends included.
pub(super) type Span = (i64, i64);

/// The time windows around the samples of each series.
#[derive(Debug)]
pub(super) struct Windows {
    /// Ascending by id.
    series: Vec<Series>,
    /// First and last id of each part.
    ranges: Vec<(i64, i64)>,
}

#[derive(Debug)]
struct Series {
    id: i64,
    /// Ascending, disjoint.
    spans: Vec<Span>,
    /// `true` if the last stored time is wanted too, unless it is before the first span.
    is_unbounded: bool,
}

impl Windows {
    /// Builds windows from before to after each row of `parts`. Parts may share series.
    pub(super) fn new<'a>(parts: impl Iterator<Item = Near<'a>>) -> Self {
        let (mut series, mut ranges): (BTreeMap<i64, (Vec<Span>, bool)>, _) = (BTreeMap::new(), Vec::new());
        for Near { rows, window_ms, unbounded } in parts {
            ranges.extend(rows.first().zip(rows.last()).map(|(first, last)| (first.series_id, last.series_id)));
            let mut unbounded = unbounded.to_vec();
            unbounded.sort_unstable();
            for rows in rows.chunk_by(|one, next| one.series_id == next.series_id) {
                let id = rows[0].series_id;
                let around = |row: &Row| (row.time_ms.saturating_sub(window_ms), row.time_ms.saturating_add(window_ms));
                let (spans, is_unbounded) = series.entry(id).or_default();
                spans.extend(rows.iter().map(around));
                *is_unbounded |= unbounded.binary_search(&id).is_ok();
            }
        }
        let merged = |(id, (spans, is_unbounded))| Series { id, spans: merge(spans, 0), is_unbounded };
        Self { series: series.into_iter().map(merged).collect(), ranges }
    }

    /// Returns the first and last series id of each part that has rows.
    pub(super) fn ranges(&self) -> &[(i64, i64)] {
        &self.ranges
    }

    /// Returns the series ids, ascending.
    pub(super) fn ids(&self) -> Vec<i64> {
        self.series.iter().map(|series| series.id).collect()
    }

    /// Returns the series whose last stored time is wanted, each with the earliest time that counts.
    pub(super) fn unbounded(&self) -> impl Iterator<Item = (i64, i64)> {
        self.series.iter().filter(|series| series.is_unbounded).map(|series| (series.id, series.spans[0].0))
    }

    /// Returns all windows merged into at most `spans_max` spans: spans that are close become one.
    pub(super) fn spans(&self, spans_max: usize) -> Vec<Span> {
        let mut spans = merge(self.series.iter().flat_map(|series| &series.spans).copied().collect(), 0);
        let mut gap_ms = 1;
        while spans.len() > spans_max {
            gap_ms *= 2;
            spans = merge(spans, gap_ms);
        }
        spans
    }

    /// Returns the merged windows of the series that share a `unit`, by unit.
    pub(super) fn by(&self, unit: impl Fn(i64) -> i64) -> Vec<(i64, Span)> {
        let mut units: BTreeMap<i64, Vec<Span>> = BTreeMap::new();
        for series in &self.series {
            units.entry(unit(series.id)).or_default().extend(&series.spans);
        }
        let merged = |(unit, spans)| merge(spans, 0).into_iter().map(move |span| (unit, span));
        units.into_iter().flat_map(merged).collect()
    }

    /// Calls `each` for those of `series_ids` that are looked for, with the id, whether `time_ms` is in a window of the
    /// series, and whether `time_ms` may be the last time that is wanted. The ids usually ascend.
    pub(super) fn find(
        &self,
        series_ids: impl Iterator<Item = i64>,
        time_ms: i64,
        mut each: impl FnMut(i64, bool, bool),
    ) {
        let (mut next, mut last) = (0, i64::MIN);
        for id in series_ids {
            if id < last {
                next = 0;
            }
            last = id;
            next += self.series[next..].partition_point(|series| series.id < id);
            let Some(series) = self.series.get(next).filter(|series| series.id == id) else { continue };
            let (is_near, is_last) = (series.is_near(time_ms), series.is_unbounded && series.spans[0].0 <= time_ms);
            if is_near || is_last {
                each(id, is_near, is_last);
            }
        }
    }

    /// Returns those of `times_ms` that are in a window of the series; `times_ms` ascend.
    pub(super) fn near<'a>(&self, id: i64, times_ms: &'a [i64]) -> impl Iterator<Item = i64> + use<'_, 'a> {
        let place = self.series.binary_search_by_key(&id, |series| series.id).ok();
        let spans = place.map(|place| self.series[place].spans.as_slice()).unwrap_or_default();
        spans.iter().flat_map(|(from_ms, to_ms)| {
            let from = times_ms.partition_point(|time_ms| time_ms < from_ms);
            times_ms[from..].iter().copied().take_while(|time_ms| time_ms <= to_ms)
        })
    }
}

impl Series {
    fn is_near(&self, time_ms: i64) -> bool {
        let after = self.spans.partition_point(|(_, to_ms)| *to_ms < time_ms);
        self.spans.get(after).is_some_and(|(from_ms, _)| *from_ms <= time_ms)
    }
}

/// Merges spans that overlap or are at most `gap_ms` apart. Returns as few spans as possible, ascending.
fn merge(mut spans: Vec<Span>, gap_ms: i64) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (from_ms, to_ms) in spans {
        match merged.last_mut() {
            Some((_, last_ms)) if from_ms.saturating_sub(gap_ms) <= *last_ms => *last_ms = to_ms.max(*last_ms),
            _ => merged.push((from_ms, to_ms)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn rows(samples: &BTreeSet<(i64, i64)>) -> Vec<Row> {
        samples
            .iter()
            .map(|(series_id, time_ms)| Row { series_id: *series_id, time_ms: *time_ms, value: 0.0.into() })
            .collect()
    }

    fn near(rows: &[Row], window_ms: i64, unbounded: &[i64]) -> Windows {
        Windows::new([Near { rows, window_ms, unbounded }].into_iter())
    }

    #[test]
    fn parts_may_share_series() {
        let [one, other] = [[(1, 10), (3, 10)], [(3, 30), (7, 0)]].map(|samples| rows(&BTreeSet::from(samples)));
        let windows = Windows::new(
            [
                Near { rows: &one, window_ms: 5, unbounded: &[3] },
                Near { rows: &other, window_ms: 1, unbounded: &[7] },
                Near { rows: &[], window_ms: 9, unbounded: &[1] },
            ]
            .into_iter(),
        );
        assert_eq!((windows.ids(), windows.ranges()), (vec![1, 3, 7], &[(1, 3), (3, 7)][..]));
        assert_eq!(windows.near(3, &[4, 5, 15, 16, 28, 29, 31, 32]).collect::<Vec<_>>(), [5, 15, 29, 31]);
        assert_eq!(windows.unbounded().collect::<Vec<_>>(), [(3, 5), (7, -1)]);
    }

    #[test]
    fn extreme_times_are_times() {
        let samples = BTreeSet::from([(1, i64::MIN), (1, i64::MAX), (2, 0)]);
        let windows = near(&rows(&samples), i64::MAX, &[2]);
        assert_eq!((windows.spans(1).len(), windows.ids()), (1, vec![1, 2]));
        assert_eq!(windows.unbounded().collect::<Vec<_>>(), [(2, -i64::MAX)]);
        assert!(near(&[], 5, &[1]).spans(1).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_near_is_found(
            samples in prop::collection::btree_set((0_i64..5, 0_i64..1000), 1..30),
            window_ms in 0_i64..60,
            spans_max in 1_usize..6,
            unbounded in prop::collection::vec(0_i64..5, 0..3),
            row in prop::collection::vec(0_i64..6, 0..8),
        ) {
            let windows = near(&rows(&samples), window_ms, &unbounded);
            let is_near = |id: i64, time_ms: i64| {
                samples.iter().any(|(of, at_ms)| *of == id && (time_ms - at_ms).abs() <= window_ms)
            };
            let since = |id: i64| {
                let first = samples.iter().find(|(of, _)| *of == id).filter(|_| unbounded.contains(&id));
                first.map(|(_, at_ms)| at_ms - window_ms)
            };
            let contains = |spans: &[Span], time_ms| spans.iter().any(|(from, to)| (*from..=*to).contains(&time_ms));
            let (spans, all) = (windows.spans(spans_max), windows.spans(usize::MAX));
            let (halves, times): (_, Vec<i64>) = (windows.by(|id| id / 2), (-100..1100).collect());
            prop_assert!(spans.len() <= spans_max);
            for time_ms in &times {
                let near: Vec<i64> = (0..5).filter(|id| is_near(*id, *time_ms)).collect();
                prop_assert_eq!(contains(&all, *time_ms), !near.is_empty());
                prop_assert!(near.is_empty() || contains(&spans, *time_ms));
                for half in 0..3 {
                    let of_half: Vec<Span> = halves.iter().filter(|(of, _)| *of == half).map(|(_, span)| *span).collect();
                    prop_assert_eq!(contains(&of_half, *time_ms), near.iter().any(|id| id / 2 == half));
                    prop_assert!(of_half.is_sorted_by(|one, next| one.1 < next.0));
                }
                let mut found = Vec::new();
                windows.find(row.iter().copied(), *time_ms, |id, is_near, is_last| found.push((id, is_near, is_last)));
                let expected = row.iter().map(|id| {
                    (*id, near.contains(id), since(*id).is_some_and(|since_ms| since_ms <= *time_ms))
                });
                let expected: Vec<_> = expected.filter(|(_, is_near, is_last)| *is_near || *is_last).collect();
                prop_assert_eq!(found, expected);
            }
            for id in 0..6 {
                let near: Vec<i64> = times.iter().copied().filter(|time_ms| is_near(id, *time_ms)).collect();
                prop_assert_eq!(windows.near(id, &times).collect::<Vec<_>>(), near);
            }
            let asked: Vec<(i64, i64)> = (0..5).filter_map(|id| Some((id, since(id)?))).collect();
            prop_assert_eq!(windows.unbounded().collect::<Vec<_>>(), asked);
        }
    }
}
