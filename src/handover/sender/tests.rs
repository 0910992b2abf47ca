use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::sample::Value;
use crate::storage::around::{Around, StoredTime};

mod compare;

const OWN: SenderNo = SenderNo(1);
const OTHER: SenderNo = SenderNo(2);

/// A sender that knows everything that is stored and scrapes every 10 s; times are in milliseconds.
struct Scene {
    sender: Sender,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let mut sender = Sender::new(usize::MAX, false);
        sender.on_missed(i64::MIN, 0);
        sender.on_leader(OTHER, 0);
        Self { sender, now: Instant::now() }
    }

    /// Returns a scene in which the interval of series 1 is known.
    fn scraping() -> Self {
        let mut scene = Self::new();
        for time_ms in [-50_000, -40_000, -30_000, -20_000, -10_000] {
            scene.sender.series.sent(1, time_ms);
        }
        scene
    }

    /// Returns a scene whose sender leads and has sent series 1 at these times.
    fn leading(times: &[i64]) -> Self {
        let mut scene = Self::scraping();
        for time_ms in times {
            assert_eq!(scene.sort(&[*time_ms]), (vec![*time_ms], vec![], 0));
        }
        scene
    }

    /// Returns a scene whose sender stands by and has buffered series 1 at these times; the other sender has stored it
    /// at `stored`.
    fn standing_by(buffered: &[i64], stored: &[i64]) -> Self {
        let mut scene = Self::scraping();
        for time_ms in buffered {
            scene.sender.buffer(vec![row(*time_ms)], Uuid::new_v4(), scene.now).unwrap();
        }
        scene.stored(stored);
        scene
    }

    fn stored(&mut self, times: &[i64]) {
        for time_ms in times {
            self.sender.on_stored(*time_ms, false, true, [1].into_iter(), self.now);
        }
    }

    /// Sets by how much its clock is ahead of those of others.
    fn clocks(mut self, others: &[(SenderNo, i64)]) -> Self {
        let others = others.iter().map(|(sender, ahead_ms)| (*sender, -ahead_ms));
        self.sender.on_clocks(0, 0, others, self.now);
        self
    }

    fn sort(&mut self, times: &[i64]) -> (Vec<i64>, Vec<i64>, usize) {
        {
            let rows: Vec<Row> = times.iter().map(|time_ms| row(*time_ms)).collect();
            told(&self.sender.sort(&rows, self.now))
        }
    }

    /// Returns the number of covered samples, and the due ones.
    fn look(&mut self, count: usize) -> (usize, Vec<i64>) {
        let looked = self.sender.look(count, false, self.now);
        (looked.covered, times(&looked.due))
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }
}

fn row(time_ms: i64) -> Row {
    Row { series_id: 1, time_ms, value: Value::Float(0.5) }
}

fn times(samples: &[Buffered]) -> Vec<i64> {
    samples.iter().map(|sample| sample.row.time_ms).collect()
}

fn told(sorted: &Sorted) -> (Vec<i64>, Vec<i64>, usize) {
    (sorted.append.iter().map(|row| row.time_ms).collect(), times(&sorted.late), sorted.covered)
}

fn late(times: &[i64], is_stamped: bool) -> Vec<Buffered> {
    let now = Instant::now();
    let sample = |time_ms: &i64| Buffered { row: row(*time_ms), is_stamped, arrived: now, key: Uuid::nil() };
    times.iter().map(sample).collect()
}

/// Returns a stored time; a marker is given by the number for markers of its sender.
fn stored_time(time_ms: i64, sender: Option<SenderNo>) -> StoredTime {
    let (sender, is_marker) = sender.map_or((None, false), |sender| (Some(sender.split().0), sender.split().1));
    StoredTime { time_ms, sender, is_marker }
}

fn around(times: &[(i64, Option<SenderNo>)]) -> Around {
    let times = times.iter().map(|(time_ms, sender)| stored_time(*time_ms, *sender)).collect();
    Around { times: HashMap::from([(1, times)]), ..Around::default() }
}

#[test]
fn what_is_newer_than_the_bound_is_appended() {
    let mut scene = Scene::leading(&[10_000, 20_000]);
    assert_eq!(scene.sort(&[20_000, 20_001, 15_000]), (vec![20_001], vec![20_000, 15_000], 0));
    scene.sender.on_missed(30_000, 1);
    assert_eq!(scene.sort(&[40_000]), (vec![], vec![40_000], 0), "others may have stored what was not observed");
    scene.sender.on_reconciled(&[row(40_000)], &[1], &Around::default(), OWN);
    assert_eq!(scene.sort(&[40_000, 50_000]), (vec![50_000], vec![40_000], 0));
}

#[test]
fn nothing_is_appended_before_the_first_observation() {
    let mut sender = Sender::new(usize::MAX, false);
    assert_eq!(told(&sender.sort(&[row(10_000)], Instant::now())), (vec![], vec![10_000], 0));
}

#[test]
fn the_first_sample_after_another_leader_is_judged_by_its_slot() {
    for (first, expected) in
        [(34_000, (vec![], vec![], 1)), (36_000, (vec![36_000], vec![], 0)), (30_000, (vec![], vec![], 1))]
    {
        let mut scene = Scene::standing_by(&[6_000, 16_000, 26_000], &[10_000, 20_000, 30_000]);
        assert_eq!(scene.sort(&[first]), expected, "{first}");
    }
    let mut scene = Scene::new();
    scene.stored(&[10_000]);
    assert_eq!(scene.sort(&[30_000]), (vec![], vec![30_000], 0), "its interval is not known");
}

#[test]
fn what_was_about_to_be_stored_is_no_evidence() {
    let mut scene = Scene::leading(&[10_000, 20_000, 30_000]);
    assert_eq!(scene.sort(&[30_000]), (vec![], vec![30_000], 0));
    scene.sender.open();
    scene.sender.buffer(vec![row(30_000)], Uuid::nil(), scene.now).unwrap();
    assert_eq!(scene.after(24).look(9), (0, vec![]));
    assert_eq!(scene.after(3).look(9), (0, vec![30_000]));
}

#[test]
fn what_others_have_stored_meanwhile_is_sorted_again() {
    let mut scene = Scene::leading(&[10_000, 20_000, 30_000, 40_000]);
    let again = |scene: &Scene, times: &[i64]| {
        told(&scene.sender.sort_again(times.iter().map(|time_ms| row(*time_ms)).collect(), scene.now))
    };
    assert_eq!(again(&scene, &[40_000]), (vec![40_000], vec![], 0));
    scene.stored(&[34_000]);
    assert_eq!(again(&scene, &[40_000]), (vec![40_000], vec![], 0));
    scene.stored(&[36_000]);
    assert_eq!(again(&scene, &[40_000]), (vec![], vec![40_000], 0));
    scene.sender.on_missed(50_000, 1);
    assert_eq!(again(&scene, &[60_000]), (vec![], vec![60_000], 0));
    // Own samples that are about to be stored do not bound what was missed.
    let mut scene = Scene::leading(&[10_000, 20_000, 30_000, 40_000]);
    assert_eq!(scene.sort(&[50_000, 60_000]), (vec![50_000, 60_000], vec![], 0));
    scene.sender.on_missed(50_500, 1);
    assert_eq!(again(&scene, &[50_000, 60_000]), (vec![60_000], vec![50_000], 0));
}

#[test]
fn what_is_observed_covered_is_let_go_of() {
    let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 20_000, 30_000]);
    assert_eq!(scene.look(9), (0, vec![]), "it has only just come");
    assert_eq!(scene.after(3).look(9), (3, vec![]));
    assert_eq!(scene.sender.buffered().samples(), 0);
}

#[test]
fn uncovered_samples_are_due_after_two_intervals_and_5_s() {
    let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 40_000, 50_000]);
    assert_eq!(scene.after(24).look(9), (1, vec![]));
    assert_eq!(scene.after(3).look(0), (0, vec![]), "nobody is known to lead");
    assert_eq!(scene.after(3).look(1), (0, vec![24_000]));
    assert_eq!(scene.after(3).look(9), (0, vec![34_000]));
    let mut scene = Scene::standing_by(&[4_000, 14_000, 24_000], &[]);
    assert_eq!(scene.after(25).look(9), (0, vec![4_000, 14_000, 24_000]), "nobody stores anything");
}

#[test]
fn the_last_look_waits_for_nothing() {
    let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 20_000]);
    let looked = scene.sender.look(9, true, scene.now);
    assert_eq!((looked.covered, times(&looked.due)), (2, vec![34_000]));
}

#[test]
fn a_leader_that_catches_up_is_waited_for() {
    let mut scene = Scene::standing_by(&[104_000, 114_000, 124_000], &[]);
    scene.after(24).stored(&[20_000, 30_000]);
    assert_eq!(scene.after(3).look(9), (0, vec![]));
    scene.after(20).stored(&[40_000]);
    assert_eq!(scene.after(24).look(9), (0, vec![]));
    assert_eq!(scene.after(3).look(9), (0, vec![104_000, 114_000, 124_000]), "it has stopped");
}

#[test]
fn what_is_buffered_is_taken_over_in_order() {
    let mut scene = Scene::standing_by(&[6_000, 16_000, 26_000, 36_000], &[10_000, 20_000]);
    let taken = scene.sender.drain(usize::MAX).unwrap();
    assert_eq!(told(&scene.sender.sort_buffered(&taken)), (vec![26_000, 36_000], vec![], 2));
    scene.sender.put_back(&taken);
    let taken = scene.sender.drain(usize::MAX).unwrap();
    assert_eq!(told(&scene.sender.sort_buffered(&taken)), (vec![], vec![6_000, 26_000, 36_000], 1), "perhaps stored");
    assert_eq!(scene.sender.buffer(vec![row(46_000)], Uuid::nil(), scene.now), Ok(()), "until all is stored");
    assert_eq!(scene.sender.drain(1).map(|taken| times(&taken)), Some(vec![46_000]));
    assert!(scene.sender.drain(1).is_none());
    assert_eq!(scene.sender.buffer(vec![row(56_000)], Uuid::nil(), scene.now), Err(NotBuffered::Closed));
    scene.sender.open();
    assert_eq!(scene.sender.buffer(vec![row(56_000)], Uuid::nil(), scene.now), Ok(()));
}

#[test]
fn a_new_series_has_the_interval_of_what_was_scraped_with_it() {
    for mut sender in [Sender::new(usize::MAX, false), Sender::shared(usize::MAX, false)] {
        let now = Instant::now();
        sender.on_missed(i64::MIN, 0);
        sender.on_leader(OTHER, 0);
        for n in 0..9 {
            let own = n * 10_000 + 400;
            sender.on_stored(n * 10_000, false, true, [2, 3].into_iter(), now);
            let rows = [2, 3].map(|series_id| Row { series_id, ..row(own) });
            sender.buffer(rows.to_vec(), Uuid::nil(), now).unwrap();
        }
        sender.on_stored(90_000, false, true, [1, 2, 3].into_iter(), now);
        let stored = around(&[(90_000, Some(OTHER))]);
        let judged = |sender: &Sender| sender.missing(&late(&[90_400], false), &stored, OWN).len();
        assert_eq!(judged(&sender), 1, "nothing is known of it");
        sender.buffer([1, 2, 3].map(|series_id| Row { series_id, ..row(90_400) }).to_vec(), Uuid::nil(), now).unwrap();
        assert_eq!(judged(&sender), 0);
        assert_eq!(sender.series.get(1, 90_400).guess_ms, 10_000);
        // An own step counts as soon as it is shorter. Where samples come by several adapters, the leader's steps
        // count.
        sender.on_stored(92_000, false, true, [1].into_iter(), now);
        sender.buffer(vec![row(92_400)], Uuid::nil(), now).unwrap();
        assert_eq!(sender.series.get(1, 92_400).guess_ms, 2_000);
    }
}

#[test]
fn what_was_scraped_before_a_clock_was_set_is_not_stamped() {
    let mut sender = Sender::new(usize::MAX, false);
    let mut sent = |times: &[i64]| {
        let rows: Vec<Row> = [1, 2, 3]
            .into_iter()
            .flat_map(|series_id| times.iter().map(move |time_ms| Row { series_id, ..row(*time_ms) }))
            .collect();
        let came = sender.came(rows, Uuid::nil(), Instant::now());
        came.are_stamped.iter().filter(|is_stamped| **is_stamped).count()
    };
    for n in 0..9 {
        assert_eq!(sent(&[n * 10_000]), 0);
    }
    assert_eq!(sent(&[35_000]), 3, "between its scrapes");
    assert_eq!(sent(&[88_000]), 0);
    assert_eq!(sent(&[40_000, 50_000]), 0, "scraped before, perhaps");
    assert_eq!(sent(&[98_000]), 0);
    assert_eq!(sent(&[93_000]), 3);
}

#[test]
fn a_request_of_mostly_late_samples_is_compared_as_a_whole() {
    let mut sender = Sender::shared(usize::MAX, false);
    sender.on_missed(i64::MIN, 0);
    let mut sort = |times: &[i64]| {
        let rows: Vec<Row> = times.iter().map(|time_ms| row(*time_ms)).collect();
        told(&sender.sort(&rows, Instant::now()))
    };
    let before = Instant::now();
    assert_eq!(sort(&[10_000, 20_000]), (vec![10_000, 20_000], vec![], 0));
    assert_eq!(sort(&[20_000, 30_000]), (vec![30_000], vec![20_000], 0), "a late one");
    assert_eq!(sort(&[20_000, 30_000, 40_000]), (vec![], vec![20_000, 30_000, 40_000], 0), "sent again");
    assert_eq!(sort(&[50_000]), (vec![], vec![50_000], 0), "perhaps stored by another adapter a moment ago");
    sender.on_observed(before);
    let rows = [row(60_000)];
    assert_eq!(told(&sender.sort(&rows, Instant::now())), (vec![], vec![60_000], 0), "it is not observed yet");
    sender.on_observed(Instant::now());
    let rows = [row(70_000)];
    assert_eq!(told(&sender.sort(&rows, Instant::now())), (vec![70_000], vec![], 0));
}

#[test]
fn history_does_not_wait_for_hours() {
    let mut scene = Scene::new();
    for hour in 0..9 {
        scene.sender.buffer(vec![row(hour * 3_600_000)], Uuid::nil(), scene.now).unwrap();
    }
    assert_eq!(scene.after(124).look(99).1.len(), 0);
    assert_eq!(scene.after(20).look(99).1.len(), 9);
}

#[test]
fn a_last_time_that_was_looked_up_is_a_bound() {
    let mut scene = Scene::new();
    scene.sender.on_missed(i64::MAX, 1);
    assert_eq!(scene.sort(&[10_000, 20_000, 30_000]), (vec![], vec![10_000, 20_000, 30_000], 0));
    assert_eq!(scene.sender.unbounded(&late(&[10_000, 20_000], false)), [1]);
    let mut found = around(&[]);
    found.last_ms.insert(1, stored_time(45_000, Some(OTHER)));
    scene.sender.on_reconciled(&[row(10_000)], &[1], &found, OWN);
    assert_eq!(scene.sort(&[40_000, 51_000]), (vec![51_000], vec![], 1));
}

#[test]
fn what_is_kept_goes_where_there_is_no_room() {
    let mut scene = Scene::new();
    scene.sender.keep(late(&[0], false).into_iter(), scene.now);
    assert!(scene.sender.kept().bytes() > 0);
    scene.sender.trim(0, scene.now);
    assert_eq!(scene.sender.kept().bytes(), 0);
}

#[test]
fn a_leader_that_stores_something_late_is_not_catching_up() {
    let mut scene = Scene::standing_by(&[0, 10_000, 25_000], &[0, 10_000, 60_000]);
    scene.after(24).stored(&[5_000]);
    assert_eq!(scene.after(1).look(9), (2, vec![25_000]));
}

#[test]
fn a_guessed_interval_is_waited_for_twice() {
    let mut scene = Scene::new();
    for time_ms in [0, 10_000] {
        scene.sender.buffer(vec![row(time_ms)], Uuid::nil(), scene.now).unwrap();
    }
    assert_eq!(scene.after(24).look(9), (0, vec![]));
    assert_eq!(scene.after(3).look(9), (0, vec![0, 10_000]));
}

proptest! {
    #[test]
    fn what_is_appended_by_one_look_is_placed_so(
        stored in prop::collection::vec((0_i64..12, any::<bool>()), 0..6),
        newest_missed in prop::option::of(-1_i64..12),
        is_bounded in any::<bool>(),
        time in 0_i64..16,
    ) {
        let seen = || {
            let mut scene = Scene::scraping();
            for (time, is_own) in &stored {
                let slot = Slot { time_ms: time * 5_000, is_own: *is_own };
                scene.sender.series.stored(1, slot);
            }
            if is_bounded {
                scene.sender.series.bounded(1);
            }
            if let Some(newest) = newest_missed {
                scene.sender.on_missed(newest * 5_000, 9);
            }
            scene.sender
        };
        let (mut one, mut other) = (seen(), seen());
        let sample = late(&[time * 5_000], false).remove(0);
        let place = one.place(&sample);
        let are_own = one.series.times(1).all(|slot| slot.is_own);
        prop_assert_eq!(other.series.append(1, time * 5_000), place == Place::Append && are_own);
        if place == Place::Append && are_own {
            one.series.bounded(1);
            one.series.stored(1, Slot { time_ms: time * 5_000, is_own: true });
        }
        prop_assert_eq!(one.series.get(1, time * 5_000), other.series.get(1, time * 5_000));
        prop_assert!(one.series.times(1).eq(other.series.times(1)));
    }
}
