//! The criterion of chaos and demo: each scrape of a series has its sample stored, once. Pure. Uses no code of the
//! adapter.
//!
//! Two sides scrape the same target with the same interval and in different phases. A reader wants one sample per
//! interval. A sample of one side is covered by a stored sample of the same scrape, also if the other side sent the
//! stored one.

/// Timing of the scrapes of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrapes {
    /// Time between two scrapes of a side, ms.
    pub interval_ms: i64,
    /// Time by which a scrape may be early or late, ms.
    pub jitter_ms: i64,
}

/// Scrapes of a series by one side.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Timestamps of the samples that must be covered, ms since 1970, ascending.
    pub times: &'a [i64],
    /// Time by which the side's clock is ahead of the true time, ms.
    pub ahead_ms: i64,
}

/// A stored sample of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// Sides that may have sent the sample: bit n for side n; 0 if unknown.
    pub sides: u32,
}

impl Stored {
    /// Returns the time by which the sender's clock is ahead, ms; `own_ms` if the sender is unknown.
    fn ahead_ms(&self, sides: &[Side<'_>], own_ms: i64) -> i64 {
        let sent_by = |(n, _): &(usize, &Side<'_>)| self.sides >> n & 1 == 1;
        sides.iter().enumerate().find(sent_by).map_or(own_ms, |(_, side)| side.ahead_ms)
    }
}

impl Scrapes {
    /// Returns the scrapes of `sides` that `stored` does not cover. `stored` is ascending. Two sides' samples of one
    /// scrape count once; the returned time is the earlier one.
    ///
    /// A sample is covered if a stored sample lies within half an interval of it, or if it lies between two stored
    /// samples that are at most one and a half intervals apart. If two clocks differ, a stored sample covers the span
    /// between its times on both clocks: if a sample in this span were stored too, a counter would run backwards.
    #[must_use]
    pub fn lost(&self, sides: &[Side<'_>], stored: &[Stored]) -> Vec<i64> {
        let mut lost: Vec<i64> = sides.iter().flat_map(|side| self.lost_of(*side, sides, stored)).collect();
        lost.sort_unstable();
        let mut scrapes: Vec<i64> = Vec::new();
        for time_ms in lost {
            if scrapes.last().is_none_or(|last| time_ms - last >= self.interval_ms - self.jitter_ms) {
                scrapes.push(time_ms);
            }
        }
        scrapes
    }

    fn lost_of(&self, side: Side<'_>, sides: &[Side<'_>], stored: &[Stored]) -> Vec<i64> {
        let span = |stored: &Stored| {
            let skewed_ms = stored.time_ms + side.ahead_ms - stored.ahead_ms(sides, side.ahead_ms);
            (stored.time_ms.min(skewed_ms), stored.time_ms.max(skewed_ms))
        };
        let mut spans: Vec<(i64, i64)> = stored.iter().map(span).collect();
        spans.sort_unstable();
        // Covered spans: (start, end).
        let mut covered: Vec<(i64, i64)> = Vec::new();
        for (from_ms, to_ms) in spans {
            match covered.last_mut() {
                Some((_, end_ms)) if from_ms - *end_ms <= self.interval_ms * 3 / 2 + self.jitter_ms => {
                    *end_ms = to_ms.max(*end_ms);
                }
                _ => covered.push((from_ms, to_ms)),
            }
        }
        let half_ms = self.interval_ms / 2 + self.jitter_ms;
        let is_covered = |time_ms: i64| {
            let next = covered.partition_point(|(_, end_ms)| end_ms + half_ms < time_ms);
            covered.get(next).is_some_and(|(from_ms, _)| from_ms - half_ms <= time_ms)
        };
        side.times.iter().copied().filter(|time_ms| !is_covered(*time_ms)).collect()
    }

    /// Returns the timestamps of samples in `stored` whose scrape is already stored: at the same time, or by another
    /// side less than half an interval before. `stored` is ascending.
    #[must_use]
    pub fn doubled(&self, stored: &[Stored]) -> Vec<i64> {
        let is_doubled = |pair: &&[Stored]| {
            let (apart_ms, [one, other]) = (pair[1].time_ms - pair[0].time_ms, [pair[0].sides, pair[1].sides]);
            let are_of_two_sides = one != 0 && other != 0 && one & other == 0;
            apart_ms == 0 || are_of_two_sides && apart_ms < self.interval_ms / 2 - self.jitter_ms
        };
        stored.windows(2).filter(is_doubled).map(|pair| pair[1].time_ms).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPES: Scrapes = Scrapes { interval_ms: 1_000, jitter_ms: 50 };

    /// Time by which the second side scrapes after the first one.
    const PHASE_MS: i64 = 400;

    fn stored(times: &[i64]) -> Vec<Stored> {
        let of = |time_ms: &i64| match time_ms.rem_euclid(1_000) {
            0 => 1,
            PHASE_MS => 2,
            _ => 0,
        };
        times.iter().map(|time_ms| Stored { time_ms: *time_ms, sides: of(time_ms) }).collect()
    }

    fn each_second(from_ms: i64, to_ms: i64) -> Vec<i64> {
        (from_ms..to_ms).step_by(1_000).collect()
    }

    /// Checks a store against two sides that scrape from 0 to 20 s.
    #[track_caller]
    fn check(times: &[i64], lost: &[i64], doubled: &[i64]) {
        let scraped = [each_second(0, 20_000), each_second(PHASE_MS, 20_000)];
        let sides = scraped.each_ref().map(|times| Side { times, ahead_ms: 0 });
        let stored = stored(times);
        assert_eq!((SCRAPES.lost(&sides, &stored), SCRAPES.doubled(&stored)), (lost.to_vec(), doubled.to_vec()));
    }

    #[test]
    fn either_side_covers_the_other_one() {
        check(&each_second(0, 20_000), &[], &[]);
        check(&each_second(400, 20_000), &[], &[]);
        check(&[each_second(0, 8_000), each_second(8_400, 20_000)].concat(), &[], &[]);
        check(&[each_second(400, 8_000), each_second(8_000, 20_000)].concat(), &[], &[]);
        check(&[each_second(0, 8_000), vec![8_400], each_second(9_000, 20_000)].concat(), &[], &[]);
    }

    #[test]
    fn what_is_missing_is_counted_once() {
        check(&[each_second(0, 8_000), each_second(9_000, 20_000)].concat(), &[8_000], &[]);
        check(&[each_second(0, 8_000), each_second(10_000, 20_000)].concat(), &[8_000, 9_000], &[]);
        check(&[each_second(400, 8_000), each_second(10_000, 20_000)].concat(), &[8_000, 9_000], &[]);
        check(&each_second(0, 18_000), &[18_000, 19_000], &[]);
        check(&each_second(2_000, 20_000), &[0, 1_000], &[]);
        check(&[], &each_second(0, 20_000), &[]);
    }

    #[test]
    fn what_is_there_twice_is_counted() {
        check(&[each_second(0, 8_000), each_second(7_000, 20_000)].concat(), &[], &[7_000]);
        let mut both = [each_second(0, 20_000), vec![5_400, 8_400]].concat();
        both.sort_unstable();
        check(&both, &[], &[5_400, 8_400]);
        let mut unknown = [each_second(0, 20_000), vec![5_300]].concat();
        unknown.sort_unstable();
        check(&unknown, &[], &[]);
    }

    #[test]
    fn a_late_scrape_is_a_scrape() {
        let late = [each_second(0, 8_000), each_second(8_040, 20_000)].concat();
        check(&late, &[], &[]);
        check(&[each_second(0, 8_000), vec![8_540], each_second(9_000, 20_000)].concat(), &[], &[]);
        check(&[each_second(0, 8_000), vec![8_560], each_second(9_000, 20_000)].concat(), &[8_000], &[]);
    }

    #[test]
    fn what_would_run_backwards_is_covered() {
        let ahead_ms = 5_000;
        let scraped = [each_second(0, 20_000), each_second(PHASE_MS + ahead_ms, 20_000 + ahead_ms)];
        let sides = [Side { times: &scraped[0], ahead_ms: 0 }, Side { times: &scraped[1], ahead_ms }];
        let lost = |times: &[i64]| SCRAPES.lost(&sides, &stored(times));
        // From the correct clock to the clock that is ahead: the same moments get later times.
        assert_eq!(lost(&[each_second(0, 8_000), each_second(13_400, 25_000)].concat()), [] as [i64; 0]);
        assert_eq!(
            lost(&[each_second(0, 8_000), each_second(15_400, 25_000)].concat()),
            [8_000, 9_000, 13_400, 14_400]
        );
        // And back to the correct clock.
        assert_eq!(lost(&[each_second(5_400, 13_000), each_second(13_000, 20_000)].concat()), [] as [i64; 0]);
    }
}
