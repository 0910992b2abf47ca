//! The rule of what is covered and what is missing: a sample is missing if its slot in the series is empty. Pure.
//!
//! Two replicas scrape a target at the same interval and in different phases. The slot of a sample extends half an
//! interval to both sides of it. The sample is covered if another replica's sample is stored in the slot, or if its
//! stored neighbours are no farther apart than one and a half intervals. A sender's own samples never cover each other,
//! except at the same timestamp.

/// A known stored sample of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// `true` if the sender whose samples are judged sent it.
    pub is_own: bool,
}

/// Sender of a stored sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The sender whose samples are judged.
    Own,
    /// Another sender. The judged sender's clock is ahead of that one's by this skew.
    Other {
        /// Milliseconds; negative if behind.
        skew_ms: i64,
    },
}

/// A stored sample near the judged ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// Its sender.
    pub by: By,
}

/// A sample to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// `true` if an exporter stamped it: no other sample covers it.
    pub is_stamped: bool,
}

/// Maximum difference at which clocks count as equal: the difference is not known more exactly.
pub const CLOCK_ERROR_MS: i64 = 100;

/// Returns the span of time that a stored sample of another sender covers, on both senders' clocks. A sample inside the
/// span would be scraped after the stored one and stored before it, or the reverse, and a counter would run backwards.
fn span(time_ms: i64, skew_ms: i64) -> (i64, i64) {
    let skewed_ms = if skew_ms.abs() <= CLOCK_ERROR_MS { time_ms } else { time_ms.saturating_add(skew_ms) };
    (time_ms.min(skewed_ms), time_ms.max(skewed_ms))
}

/// Returns `true` if a sample at `time_ms` comes after another sender's stored one at `other_ms`, and outside of its
/// slot.
#[must_use]
pub fn follows(time_ms: i64, other_ms: i64, skew_ms: i64, interval_ms: i64) -> bool {
    let (_, hi_ms) = span(other_ms, skew_ms);
    time_ms.saturating_sub(hi_ms) > interval_ms / 2
}

/// Returns `true` if the slot at `time_ms` is known to be taken by `times`: some of the samples that others stored in
/// the series, newest first. `false` may only mean that too few are known.
#[must_use]
pub fn is_taken(time_ms: i64, times: impl Iterator<Item = Stored>, interval_ms: i64) -> bool {
    let mut later_ms: Option<i64> = None;
    for stored in times {
        let By::Other { skew_ms } = stored.by else { continue };
        let (lo_ms, hi_ms) = span(stored.time_ms, skew_ms);
        let is_beside =
            lo_ms.saturating_sub(time_ms) <= interval_ms / 2 && time_ms.saturating_sub(hi_ms) <= interval_ms / 2;
        if is_beside || stored.time_ms == time_ms {
            return true;
        }
        if stored.time_ms < time_ms {
            return later_ms.is_some_and(|later_ms| later_ms.saturating_sub(hi_ms) <= interval_ms + interval_ms / 2);
        }
        later_ms = Some(lo_ms);
    }
    false
}

/// Returns the places of those `candidates` whose slot is empty. `candidates` are of one sender and series, ascending,
/// each time once. `stored` has what is stored around all of them, ascending. A candidate that is found missing counts
/// as stored for those after it.
#[must_use]
pub fn missing(candidates: &[Candidate], stored: &[Stored], interval_ms: i64) -> Vec<usize> {
    let others = |stored: &Stored| match stored.by {
        By::Own => None,
        By::Other { skew_ms } => Some(span(stored.time_ms, skew_ms)),
    };
    let mut missing = Vec::new();
    let mut inserted_ms: Option<i64> = None;
    for (place, candidate) in candidates.iter().enumerate() {
        let time_ms = candidate.time_ms;
        let after = stored.partition_point(|stored| stored.time_ms < time_ms);
        if stored.get(after).is_some_and(|stored| stored.time_ms == time_ms) {
            continue;
        }
        if candidate.is_stamped {
            missing.push(place);
            inserted_ms = Some(time_ms);
            continue;
        }
        let half_ms = interval_ms / 2;
        let is_beside = stored
            .iter()
            .filter_map(others)
            .any(|(lo_ms, hi_ms)| lo_ms.saturating_sub(time_ms) <= half_ms && time_ms.saturating_sub(hi_ms) <= half_ms);
        if is_beside {
            continue;
        }
        let before = stored[..after].last().filter(|stored| inserted_ms.is_none_or(|at_ms| stored.time_ms > at_ms));
        let before = match before {
            Some(stored) => Some((others(stored).map_or(stored.time_ms, |(_, hi_ms)| hi_ms), others(stored).is_none())),
            None => inserted_ms.map(|at_ms| (at_ms, true)),
        };
        let next = stored.get(after);
        let next =
            next.map(|stored| (others(stored).map_or(stored.time_ms, |(lo_ms, _)| lo_ms), others(stored).is_none()));
        if let (Some((before_ms, before_is_own)), Some((next_ms, next_is_own))) = (before, next) {
            let is_between_own = before_is_own && next_is_own;
            if !is_between_own && next_ms.saturating_sub(before_ms) <= interval_ms + half_ms {
                continue;
            }
        }
        missing.push(place);
        inserted_ms = Some(time_ms);
    }
    missing
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OTHER: By = By::Other { skew_ms: 0 };

    fn candidates(times: &[i64], is_stamped: bool) -> Vec<Candidate> {
        times.iter().map(|time_ms| Candidate { time_ms: *time_ms, is_stamped }).collect()
    }

    fn stored(times: &[i64], by: By) -> Vec<Stored> {
        times.iter().map(|time_ms| Stored { time_ms: *time_ms, by }).collect()
    }

    /// Judges samples at an interval of 10.
    #[track_caller]
    fn check(stored_by: &[(&[i64], By)], judged: &[i64], is_stamped: bool, expected: &[i64]) {
        let mut all: Vec<Stored> = stored_by.iter().flat_map(|(times, by)| stored(times, *by)).collect();
        all.sort_by_key(|stored| stored.time_ms);
        let found = missing(&candidates(judged, is_stamped), &all, 10);
        assert_eq!(found.into_iter().map(|place| judged[place]).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_scrape_that_the_other_missed_is_missing_once() {
        check(&[(&[0, 10, 30, 40], OTHER)], &[4, 14, 24, 34], false, &[24]);
        check(&[(&[0, 10, 40, 50], OTHER)], &[4, 14, 24, 34, 44], false, &[24, 34]);
        check(&[(&[0, 10, 50, 60], OTHER)], &[6, 16, 26, 36, 46, 56], false, &[16, 26, 36]);
        check(&[(&[0, 10], OTHER)], &[4, 14, 24, 34], false, &[24, 34]);
        check(&[], &[4, 14], false, &[4, 14]);
        check(&[(&[50, 60], OTHER)], &[4, 14, 24, 34, 44, 54], false, &[4, 14, 24, 34, 44]);
    }

    #[test]
    fn the_same_time_is_stored_whoever_sent_it() {
        for is_stamped in [false, true] {
            check(&[(&[0, 10, 20], By::Own)], &[0, 10, 20], is_stamped, &[]);
            check(&[(&[0, 10, 20], OTHER)], &[0, 10, 20], is_stamped, &[]);
        }
    }

    #[test]
    fn a_late_sample_among_its_own_is_missing() {
        check(&[(&[0, 10, 20, 30], By::Own)], &[13, 17], false, &[13, 17]);
        check(&[(&[0, 10, 20, 30], OTHER)], &[13], false, &[]);
    }

    #[test]
    fn a_sample_between_an_own_and_anothers_is_covered() {
        check(&[(&[10], By::Own), (&[24], OTHER)], &[17], false, &[]);
        check(&[(&[10], OTHER), (&[24], By::Own)], &[17], false, &[]);
        check(&[(&[10, 24], By::Own)], &[17], false, &[17]);
        // A sample found missing is a neighbour only while no stored sample is nearer.
        check(&[(&[10, 24], OTHER)], &[2, 17], false, &[2]);
    }

    #[test]
    fn for_what_an_exporter_has_stamped_no_other_sample_stands() {
        check(&[(&[0, 10, 20, 30], OTHER)], &[13, 17, 20], true, &[13, 17]);
    }

    #[test]
    fn history_is_missing() {
        for is_stamped in [false, true] {
            check(&[(&[1_000, 1_010], OTHER)], &[0, 10, 20], is_stamped, &[0, 10, 20]);
            check(&[(&[0, 10], By::Own), (&[1_000], OTHER)], &[20, 30], is_stamped, &[20, 30]);
        }
    }

    #[test]
    fn no_clock_makes_a_counter_run_backwards() {
        // Its clock is 300 ahead: what the other stored at 100 was scraped at 400 by it.
        check(&[(&[90, 100], By::Other { skew_ms: 300 })], &[104, 114, 404, 406, 416], false, &[406, 416]);
        // Its clock is 300 behind: what it would stamp 90 and 100 is stored at 390 and 400. A sample in between would
        // be scraped after the stored one and stored before it.
        check(
            &[(&[390, 400], By::Other { skew_ms: -300 })],
            &[84, 96, 104, 200, 404, 406, 416],
            false,
            &[84, 406, 416],
        );
        check(&[(&[90, 100], By::Other { skew_ms: CLOCK_ERROR_MS })], &[106], false, &[106]);
    }

    #[test]
    fn a_taken_slot_is_known_from_the_newest_times() {
        let newest = |times: &[i64], by| stored(times, by).into_iter();
        let taken = |times: &[i64], time_ms| is_taken(time_ms, newest(times, OTHER), 10);
        assert!(
            taken(&[30, 20, 10], 20) && taken(&[30, 20, 10], 26) && taken(&[30, 16], 24) && taken(&[30, 20, 10], 5)
        );
        assert!(!taken(&[30, 20, 10], 4), "too old to be known");
        assert!(!taken(&[40, 20, 10], 27) && !taken(&[20], 26) && !taken(&[], 0));
        assert!(!is_taken(26, newest(&[30, 20], By::Own), 10) && !is_taken(20, newest(&[30, 20], By::Own), 10));
        let skewed = By::Other { skew_ms: 300 };
        assert!(is_taken(329, newest(&[30], skewed), 10) && !is_taken(336, newest(&[30], skewed), 10));
        assert!(is_taken(30, newest(&[30], skewed), 10) && is_taken(25, newest(&[30], skewed), 10));
        assert!(!is_taken(24, newest(&[30], skewed), 10));
    }

    #[test]
    fn a_sample_follows_outside_of_the_slot() {
        assert!(follows(16, 10, 0, 10) && !follows(15, 10, 0, 10));
        assert!(follows(316, 10, 300, 10) && !follows(315, 10, 300, 10));
        assert!(follows(16, 10, -300, 10) && !follows(15, 10, -300, 10));
    }

    /// Scrapes of a sender: at an interval of 100 from a phase on, some of them missed, each late by a little.
    fn scrapes(phase: i64, late: &[i64], missed: &[bool]) -> Vec<i64> {
        let times = late.iter().zip(missed).enumerate();
        times
            .filter(|(_, (_, missed))| !**missed)
            .map(|(n, (late, _))| phase + 100 * i64::try_from(n).unwrap() + late)
            .collect()
    }

    proptest! {
        #[test]
        fn the_store_is_the_union(
            phase in 0_i64..100,
            late in prop::collection::vec((0_i64..3, 0_i64..3), 30),
            missed in prop::collection::vec((prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 30),
        ) {
            let (late_a, late_b): (Vec<i64>, Vec<i64>) = late.into_iter().unzip();
            let (missed_a, missed_b): (Vec<bool>, Vec<bool>) = missed.into_iter().unzip();
            let leader = scrapes(0, &late_a, &missed_a);
            let other = scrapes(phase, &late_b, &missed_b);
            let found = missing(&candidates(&other, false), &stored(&leader, OTHER), 100);
            let mut all: Vec<(i64, bool)> = leader.iter().map(|time_ms| (*time_ms, false)).collect();
            all.extend(found.iter().map(|place| (other[*place], true)));
            all.sort_unstable();
            for time_ms in &other {
                let is_covered = all.iter().any(|(at_ms, _)| (at_ms - time_ms).abs() <= 50)
                    || all.windows(2).any(|pair| pair[0].0 < *time_ms && *time_ms < pair[1].0 && pair[1].0 - pair[0].0 <= 150);
                prop_assert!(is_covered, "{} of {:?}", time_ms, all);
            }
            for pair in all.windows(2) {
                prop_assert!(pair[0].1 == pair[1].1 || pair[1].0 - pair[0].0 > 50, "{:?}", pair);
            }
            // The inserted samples are then found to be stored.
            let mut again: Vec<Stored> = stored(&leader, OTHER);
            again.extend(found.iter().map(|place| Stored { time_ms: other[*place], by: By::Own }));
            again.sort_by_key(|stored| stored.time_ms);
            prop_assert_eq!(missing(&candidates(&other, false), &again, 100), Vec::<usize>::new());
            let all: Vec<i64> = all.into_iter().map(|(time_ms, _)| time_ms).collect();
            prop_assert_eq!(missing(&candidates(&leader, false), &stored(&all, OTHER), 100), Vec::<usize>::new());
        }

        #[test]
        fn what_is_known_taken_is_not_missing(
            times in prop::collection::btree_set(0_i64..300, 1..6),
            time_ms in 0_i64..300,
            skew_ms in prop_oneof![Just(0_i64), -200_i64..200],
        ) {
            let all: Vec<Stored> = times.iter().map(|time_ms| Stored { time_ms: *time_ms, by: By::Other { skew_ms } }).collect();
            let newest = all.iter().rev().take(3).copied();
            if is_taken(time_ms, newest, 20) {
                prop_assert_eq!(missing(&candidates(&[time_ms], false), &all, 20), Vec::<usize>::new());
            }
        }
    }
}
