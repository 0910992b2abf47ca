use proptest::prelude::*;

use super::entry::Entry;
use super::*;
use crate::storage::row::{TIME_MAX_MS, TIME_MIN_MS};

fn slot(time_ms: i64) -> Slot {
    Slot { time_ms, is_own: time_ms % 2 == 1 }
}

#[test]
fn an_entry_takes_48_bytes() {
    assert_eq!(size_of::<Entry>(), 48);
}

const LEADER: SenderNo = SenderNo(1);
const OTHER: SenderNo = SenderNo(2);

/// Returns the interval of series 1 that is known for sure around a time, and the one that its steps suggest.
fn known(series: &SeriesTimes, time_ms: i64) -> (i64, i64) {
    let known = series.get(1, time_ms);
    (known.interval_ms, known.guess_ms)
}

#[test]
fn the_shortest_of_the_latest_steps_is_the_interval() {
    let mut series = SeriesTimes::new(false);
    for (time_ms, expected) in [
        (0, (0, 0)),
        (30_000, (0, 30_000)),
        (45_000, (0, 15_000)),
        (60_100, (0, 15_100)),
        (90_000, (0, 15_100)),
        (105_000, (0, 15_000)),
        (120_000, (0, 15_000)),
        (135_000, (15_000, 15_000)),
        (195_000, (15_000, 15_000)),
    ] {
        assert!(matches!(series.sent(1, time_ms), Sent::Newer { .. }));
        assert_eq!(known(&series, time_ms), expected, "{time_ms}");
    }
    assert_eq!(known(&series, 195_000 + GAP_MS), (15_000, 15_000));
    assert_eq!(known(&series, 195_001 + GAP_MS), (0, 0), "history may have another");
    let unknown =
        SeriesHistory { last: None, is_bounded: false, interval_ms: 0, guess_ms: 0, is_repeated: false, is_led: false };
    assert_eq!(series.get(2, 0), unknown);
    assert!((13_000..17_000).contains(&series.usual_ms()));
    assert_eq!(series.shortest_ms(), 15_000);
    for n in 1..5 {
        series.sent(1, 195_000 + n * 5_000);
        assert_eq!(known(&series, 200_000), (if n < 4 { 0 } else { 5_000 }, 5_000), "a shorter one counts at once");
    }
    for n in 1..14 {
        series.sent(1, 215_000 + n * 20_000);
    }
    assert_eq!(known(&series, 475_000).1, 20_000, "longer ones do after a while");
}

#[test]
fn two_samples_alone_may_be_anything() {
    let mut series = SeriesTimes::new(false);
    series.sent(1, 0);
    series.sent(1, 700);
    assert_eq!((known(&series, 0), series.shortest_ms()), ((0, 700), 0));
    series.sent(1, 1_400);
    assert_eq!(series.shortest_ms(), 700);
}

#[test]
fn a_given_interval_counts_until_own_steps_are_seen() {
    let mut series = SeriesTimes::new(false);
    series.scraped_with(1, 0, 10_000);
    assert_eq!((known(&series, 0), series.get(1, 0).is_repeated), ((0, 10_000), true));
    series.sent(1, 0);
    series.sent(1, 7_000);
    assert_eq!((known(&series, 0), series.get(1, 0).is_repeated), ((0, 7_000), false));
    let mut led = SeriesTimes::new(true);
    led.led(LEADER, 0);
    for (n, is_repeated) in [(0, false), (1, false), (2, true), (3, true)] {
        led.observed(1, slot(n * 10_000), true);
        assert_eq!(led.get(1, 0).is_repeated, is_repeated, "{n}");
    }
}

#[test]
fn a_bound_is_later_than_all_that_was_missed() {
    let mut series = SeriesTimes::new(false);
    for (series_id, time_ms) in [(1, 10), (2, 11)] {
        series.stored(series_id, slot(time_ms));
        series.bounded(series_id);
    }
    series.missed(10, 9);
    assert_eq!([1, 2, 9, 10].map(|series_id| series.get(series_id, 0).is_bounded), [false, true, false, true]);
}

#[test]
fn samples_later_than_all_missed_ones_are_a_bound() {
    let mut series = SeriesTimes::new(true);
    let is_bounded = |series: &SeriesTimes| series.get(1, 0).is_bounded;
    series.observed(1, slot(9), false);
    assert!(!is_bounded(&series), "the first observation has not ended");
    series.missed(10, 9);
    series.observed(1, slot(10), false);
    series.observed(1, Slot { time_ms: 11, is_own: true }, false);
    assert!(!is_bounded(&series), "an own one may only be about to be stored");
    series.observed(1, slot(12), false);
    assert!(is_bounded(&series));
    series.missed(5, 9);
    assert!(is_bounded(&series), "it is later than what was missed before, too");
    series.missed(12, 9);
    assert!(!is_bounded(&series));
}

#[test]
fn history_teaches_scrapes_nothing() {
    let mut series = SeriesTimes::new(false);
    let week_ms = 7 * 86_400_000;
    for n in 0..9 {
        series.sent(1, n * 1_000);
    }
    assert_eq!(known(&series, 8_000).0, 1_000);
    for n in 0..6 {
        series.sent(1, week_ms + n * 30_000);
    }
    assert_eq!(known(&series, week_ms).0, 30_000);
    series.led(LEADER, 0);
    for n in 0..9 {
        series.observed(1, slot(n * 1_000), true);
    }
    assert_eq!(known(&series, week_ms).0, 30_000);
    assert_eq!(known(&series, 8_000), (0, 0));
}

#[test]
fn of_what_comes_by_several_adapters_the_leaders_steps_count() {
    let mut series = SeriesTimes::new(true);
    for n in 0..6 {
        series.sent(1, n * 20_000);
    }
    assert_eq!(known(&series, 100_000), (0, 20_000), "half of it may come by way of another one");
    series.led(LEADER, 0);
    for n in 0..5 {
        assert_eq!(known(&series, 0).0, 0);
        series.observed(1, slot(n * 10_000), true);
        series.observed(2, slot(n * 10_000), false);
    }
    assert_eq!(series.get(2, 0).guess_ms, 0);
    assert!(series.get(1, 0).is_led);
    assert_eq!(known(&series, 0), (10_000, 10_000));
    series.led(OTHER, 40_700);
    series.observed(1, slot(40_700), true);
    series.sent(1, 120_000);
    series.sent(1, 120_500);
    assert_eq!(known(&series, 0), (10_000, 10_000), "from one of a sender to its next");
    series.led(LEADER, 50_000);
    assert!(!series.get(1, 0).is_led, "it does not lead any more");
}

#[test]
fn what_a_new_leader_had_buffered_teaches_nothing() {
    let mut series = SeriesTimes::new(true);
    series.led(LEADER, 0);
    for n in 0..9 {
        series.observed(1, slot(n * 10_000), true);
    }
    // One of two adapters stores its half of a long buffer.
    series.led(OTHER, 500_000);
    for n in 5..25 {
        series.observed(1, slot(n * 20_000 + 300), true);
    }
    assert_eq!(known(&series, 500_000), (10_000, 10_000));
    for n in 0..14 {
        series.led(OTHER, 600_000);
        series.observed(1, slot(500_300 + n * 15_000), true);
    }
    assert_eq!(known(&series, 600_000), (15_000, 15_000), "what it sends since does");
}

#[test]
fn what_another_ones_samples_stand_for_is_no_step() {
    let mut series = SeriesTimes::new(true);
    let (led, other) = (|time_ms| Slot { time_ms, is_own: true }, |time_ms| Slot { time_ms, is_own: false });
    series.led(LEADER, 0);
    for n in 0..9 {
        series.observed(1, led(n * 10_000), true);
    }
    // Every second sample was stored by another sender, before these steps and between them.
    for n in 0..9 {
        series.observed(1, other(100_300 + n * 20_000), false);
    }
    for n in 0..20 {
        series.observed(1, led(90_000 + n * 20_000), true);
        series.observed(1, other(300_300 + n * 20_000), false);
    }
    assert_eq!(known(&series, 300_000), (10_000, 10_000));
}

#[test]
fn what_lies_between_scrapes_is_not_in_step() {
    let mut series = SeriesTimes::new(false);
    let scrapes = |series: &mut SeriesTimes, numbers: std::ops::Range<i64>| {
        numbers.map(|n| series.sent(1, n * 10_000)).collect::<Vec<_>>()
    };
    scrapes(&mut series, 0..3);
    assert_eq!(series.is_in_step(1, 15_000, 20_000), None, "its interval is not known");
    scrapes(&mut series, 3..9);
    for (time_ms, is_in_step) in [(15_000, false), (11_251, false), (18_749, false), (11_250, true), (18_750, true)] {
        assert_eq!(series.is_in_step(1, time_ms, 80_000), Some(is_in_step), "{time_ms}");
    }
    assert_eq!(scrapes(&mut series, 0..9), [Sent::Again { newest_ms: 80_000 }; 9]);
    assert_eq!(series.sent(1, 100_000), Sent::Newer { is_in_step: Some(true) });
    assert_eq!(series.sent(1, 115_000), Sent::Newer { is_in_step: Some(false) });
}

#[test]
fn what_others_stored_counts_before_what_is_about_to_be_stored() {
    let mut series = SeriesTimes::new(false);
    series.stored(1, Slot { time_ms: 10, is_own: true });
    assert_eq!(series.newest_of_others(1), None);
    series.stored(1, Slot { time_ms: 10, is_own: false });
    assert_eq!(series.newest_of_others(1), Some(10));
    series.stored(1, Slot { time_ms: 10, is_own: true });
    for time_ms in [20, 30] {
        series.stored(1, Slot { time_ms, is_own: true });
    }
    assert_eq!(series.newest_of_others(1), Some(10));
    series.stored(1, Slot { time_ms: 40, is_own: true });
    assert_eq!(series.newest_of_others(1), Some(20), "no earlier one is known any more");
}

#[test]
fn a_bound_holds_until_something_was_missed() {
    let mut series = SeriesTimes::new(false);
    assert!(!series.get(1, 0).is_bounded, "nothing was observed yet");
    series.stored(1, slot(10));
    series.stored(2, slot(20));
    series.missed(15, 7);
    let bounded = |series: &SeriesTimes, id| series.get(id, 0).is_bounded;
    assert_eq!([1, 2, 7, 8].map(|id| bounded(&series, id)), [false, true, false, true]);
    series.bounded(1);
    series.sent(8, 5);
    assert_eq!([1, 8].map(|id| bounded(&series, id)), [true, true]);
    series.stored(8, slot(30));
    series.missed(40, 9);
    assert_eq!([1, 2, 8, 9, 10].map(|id| bounded(&series, id)), [false, false, false, false, true]);
}

proptest! {
    #[test]
    fn a_newer_time_is_noted_as_any_other(
        slots in prop::collection::vec((prop_oneof![-9_i64..9, TIME_MIN_MS..TIME_MAX_MS, 0..2 * i64::from(u32::MAX)], any::<bool>()), 1..9),
        flags in 0_u8..4,
    ) {
        let mut entry = Entry { flags: flags * GIVEN, ..Entry::UNKNOWN };
        for (time_ms, is_own) in slots {
            let mut merged = entry;
            merged.merge(Slot { time_ms, is_own });
            entry.add(Slot { time_ms, is_own });
            prop_assert!(entry.stored().eq(merged.stored()), "{:?} {:?}", entry, merged);
            prop_assert_eq!(entry.flags & (BOUNDED | GIVEN), flags * GIVEN);
            entry = merged;
        }
    }

    #[test]
    fn the_newest_times_are_known(times in prop::collection::vec(-5_000_000_000_i64..5_000_000_000, 1..12)) {
        let mut series = SeriesTimes::new(false);
        for time_ms in &times {
            series.stored(3, slot(*time_ms));
        }
        let mut expected = times;
        expected.sort_unstable_by(|one, other| other.cmp(one));
        expected.dedup();
        let newest = expected[0];
        // Times too far from the newest are not kept.
        let expected: Vec<Slot> = expected.into_iter().take(3).take_while(|ms| newest - ms < i64::from(u32::MAX)).map(slot).collect();
        let known: Vec<Slot> = series.times(3).collect();
        prop_assert_eq!(known.first(), expected.first());
        prop_assert!(known.len() <= expected.len());
        prop_assert!(known.iter().all(|slot| expected.contains(slot)), "{:?} {:?}", known, expected);
    }
}
