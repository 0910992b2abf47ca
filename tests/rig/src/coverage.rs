//! What chaos and demo judge by: whether each scrape of a series has its sample stored, once. Pure, and no code of the adapter's.
//!
//! Two sides scrape the same target at one interval and in different phases, and whoever reads wants a sample an interval. What one
//! side scraped is covered by a stored sample of the same scrape, be it the other side's.

/// How a series is scraped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrapes {
    /// Milliseconds between two scrapes of a side.
    pub interval_ms: i64,
    /// Milliseconds by which a scrape may come early or late.
    pub jitter_ms: i64,
}

/// What one side scraped of a series.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Timestamps of the samples that must be covered, ms since 1970, ascending.
    pub times: &'a [i64],
    /// How far its clock is ahead of the true time, ms.
    pub ahead_ms: i64,
}

/// A stored sample of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// The sides that may have sent it, bit n for the n-th; 0 if nobody knows.
    pub sides: u32,
}

impl Stored {
    /// By how much the clock of who sent it is ahead; as `own_ms` if that is not known.
    fn ahead_ms(&self, sides: &[Side<'_>], own_ms: i64) -> i64 {
        let sent_by = |(n, _): &(usize, &Side<'_>)| self.sides >> n & 1 == 1;
        sides.iter().enumerate().find(sent_by).map_or(own_ms, |(_, side)| side.ahead_ms)
    }
}

impl Scrapes {
    /// Of what `sides` scraped, the scrapes that are not covered by `stored`, which is ascending. Two sides' samples of one scrape count
    /// once; the times are the earlier ones of these.
    ///
    /// A sample is covered if a stored one lies within half an interval, or two stored ones around it are no farther apart than one and
    /// a half. Between clocks that differ a stored sample covers what lies between its times on both of them: stored beside it, a
    /// counter would run backwards.
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
        // What is covered, from one time to another.
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

    /// Timestamps, out of `stored`, which is ascending, of samples whose scrape has one already: at the same time, or another side's
    /// within less than half an interval.
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

    /// The second side scrapes 400 ms after the first one.
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

    /// Two sides scrape from 0 to 20 s.
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
        // From the clock that is right to the one ahead: the same moments have later times.
        assert_eq!(lost(&[each_second(0, 8_000), each_second(13_400, 25_000)].concat()), [] as [i64; 0]);
        assert_eq!(
            lost(&[each_second(0, 8_000), each_second(15_400, 25_000)].concat()),
            [8_000, 9_000, 13_400, 14_400]
        );
        // And back.
        assert_eq!(lost(&[each_second(5_400, 13_000), each_second(13_000, 20_000)].concat()), [] as [i64; 0]);
    }
}
