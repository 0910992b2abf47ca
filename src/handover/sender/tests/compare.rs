use super::*;

#[test]
fn a_sample_is_missing_by_who_stored_its_neighbours() {
    let scene = Scene::leading(&[0, 10_000, 20_000, 30_000]);
    let missing = |time_ms, is_stamped, around: &Around| {
        times(&scene.sender.missing(&late(&[time_ms], is_stamped), around, OWN)) == [time_ms]
    };
    let stored_by = |sender| around(&[(0, sender), (10_000, sender), (20_000, sender)]);
    assert!(missing(13_000, false, &stored_by(Some(OWN))));
    assert!(!missing(10_000, false, &stored_by(Some(OWN))));
    assert!(!missing(13_000, false, &stored_by(Some(OTHER))));
    assert!(missing(13_000, true, &stored_by(Some(OTHER))), "an exporter has stamped it");
    assert!(missing(13_000, false, &stored_by(Some(OTHER.of_markers()))), "for another one its series has ended");
    assert!(!missing(10_000, false, &stored_by(Some(OTHER.of_markers()))), "at one time there is one");
    let mut markers = stored_by(None);
    markers.times.values_mut().flatten().for_each(|stored| stored.is_marker = true);
    assert!(missing(13_000, false, &markers), "the same of what is sealed");
    let beside_marker = around(&[(0, Some(OTHER)), (12_500, Some(OTHER.of_markers())), (20_000, Some(OTHER))]);
    assert!(missing(13_000, false, &beside_marker), "another's scrape has failed");
    assert!(missing(13_000, false, &stored_by(None)), "sealed, and known to be its own");
    let sealed = around(&[(100_000, None), (110_000, None), (120_000, None)]);
    assert!(!missing(113_000, false, &sealed), "sealed, by whomever");
    assert!(missing(13_000, false, &around(&[])));
    let mut alone = Sender::new(usize::MAX, true);
    alone.on_stored(10_000, false, false, [1].into_iter(), Instant::now());
    assert!(!alone.is_covered(&late(&[10_001], false)[0]));
    assert_eq!(alone.missing(&late(&[10_001], false), &stored_by(Some(OTHER)), OWN).len(), 1);
    let mut sealed = around(&[]);
    sealed.last_ms.insert(1, stored_time(20_000, None));
    alone.on_reconciled(&[], &[1], &sealed, OWN);
    assert!(!alone.is_covered(&late(&[20_001], false)[0]), "whoever stored it");
}

#[test]
fn a_clock_that_is_off_shifts_what_is_missing() {
    let mut scene = Scene::standing_by(&[], &[]).clocks(&[(OTHER, 50_000)]);
    scene.stored(&[10_000, 20_000, 30_000]);
    let covered = [70_000, 84_000, 86_000].map(|time_ms| scene.sender.is_covered(&late(&[time_ms], false)[0]));
    assert_eq!(covered, [true, true, false]);
    let stored = around(&[(20_000, Some(OTHER)), (30_000, Some(OTHER))]);
    let missing = scene.sender.missing(&late(&[36_000, 84_000, 86_000, 96_000], false), &stored, OWN);
    assert_eq!(times(&missing), [86_000, 96_000]);
    scene.sender.series.sent(1, 64_000);
    assert_eq!(scene.sort(&[74_000, 84_000, 94_000]), (vec![94_000], vec![], 2));
    assert_eq!(scene.sender.window_ms(&missing), 20_000 + 50_000);
}

#[test]
fn of_several_clocks_the_one_counts_that_loses_nothing() {
    let third = SenderNo(3);
    let mut scene = Scene::standing_by(&[], &[]).clocks(&[(OTHER, 5_000), (third, 60_000)]);
    scene.stored(&[10_000, 20_000, 30_000]);
    let covered = [39_000, 41_000].map(|time_ms| scene.sender.is_covered(&late(&[time_ms], false)[0]));
    assert_eq!(covered, [true, false]);
    scene.sender.series.sent(1, 86_000);
    assert_eq!(scene.sort(&[96_000]), (vec![96_000], vec![], 0));
    let mut scene = Scene::standing_by(&[], &[30_000]).clocks(&[(OTHER, 5_000), (third, 60_000)]);
    scene.sender.series.sent(1, 84_000);
    assert_eq!(scene.sort(&[94_000]), (vec![], vec![94_000], 0), "to be compared");
}

#[test]
fn what_is_sealed_may_be_its_own() {
    let scene = Scene::leading(&[0, 10_000, 20_000, 30_000]).clocks(&[(OTHER, 50_000)]);
    let missing = |time_ms, stored_ms| {
        !scene.sender.missing(&late(&[time_ms], false), &around(&[(stored_ms, None)]), OWN).is_empty()
    };
    assert!(missing(50_000, 40_000) && missing(51_000, 40_000), "in step with its scrapes");
    assert!(!missing(50_000, 44_000), "another's, on another clock");
    assert!(!missing(33_000, 34_000) && missing(33_000, 30_000));
}

#[test]
fn samples_of_a_series_are_judged_together() {
    let scene = Scene::leading(&[0, 10_000, 20_000]);
    let samples = late(&[104_000, 114_000, 124_000], false);
    let stored = around(&[(100_000, Some(OTHER)), (130_000, Some(OTHER))]);
    assert_eq!(times(&scene.sender.missing(&samples, &stored, OWN)), [114_000, 124_000]);
    assert_eq!(scene.sender.window_ms(&samples), 20_000);
    assert!(scene.sender.unbounded(&samples).is_empty());
}

#[test]
fn an_interval_that_is_not_known_is_guessed() {
    let interval_ms = |sent: &[i64], judged: &[i64], stored: &[(i64, Option<SenderNo>)]| {
        let mut scene = Scene::new();
        for time_ms in sent {
            scene.sender.series.sent(1, *time_ms);
        }
        let stored = around(stored);
        scene.sender.interval_of(&late(judged, false), stored.times.get(&1).map_or(&[], Vec::as_slice))
    };
    let other = |times: &[i64]| times.iter().map(|time_ms| (*time_ms, Some(OTHER))).collect::<Vec<_>>();
    assert_eq!(interval_ms(&[], &[0], &[]), 0, "no sample stands for another");
    assert_eq!(interval_ms(&[], &[0], &other(&[0, 20_000, 40_000])), 20_000);
    let sealed: Vec<_> = (0..5).map(|n| (n * 20_000, None)).collect();
    assert_eq!(interval_ms(&[], &[0], &sealed), 20_000);
    assert_eq!(interval_ms(&[0, 60_000], &[60_000], &sealed), 20_000, "it missed two");
    let mixed: Vec<_> = (0..5).flat_map(|n| [(n * 20_000, Some(OTHER)), (n * 20_000 + 300, Some(OWN))]).collect();
    assert_eq!(interval_ms(&[], &[0], &mixed), 20_000, "from one of a sender to its next");
    let two = [(0, Some(OWN)), (5_600, Some(OTHER))];
    assert_eq!(interval_ms(&[0, 10_000], &[10_000], &two), 10_000, "how far two senders are apart is no step");
    assert_eq!(interval_ms(&[], &[10_000], &two), 5_600, "but all there is");
    let sealed: Vec<_> = (0..9).map(|n| (n * 5_000, None)).collect();
    assert_eq!(interval_ms(&[40_000, 58_000], &[40_400], &sealed), 5_000, "its only step was none");
    // A single step is known, and other scrapes may have come by another adapter.
    let shared = Sender::shared(usize::MAX, false);
    let stored = around(&other(&[0, 30_000]));
    assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 15_000);
    let stored = around(&other(&[0, 30_000, 60_000]));
    assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 30_000);
    let mut shared = shared;
    shared.on_leader(OTHER, 0);
    for n in 0..9 {
        shared.on_stored(n * 30_000, false, true, [2].into_iter(), Instant::now());
    }
    let stored = around(&other(&[0, 30_000]));
    assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 30_000);
    // Where the interval is not known for sure, the shortest one known of any series counts.
    let mut scene = Scene::new();
    for n in 0..9 {
        scene.sender.series.sent(2, n * 5_000);
    }
    let stored = around(&other(&[0, 20_000, 40_000, 60_000]));
    assert_eq!(scene.sender.interval_of(&late(&[0], false), &stored.times[&1]), 5_000, "gaps, perhaps");
    let stored = around(&other(&[0, 20_000, 40_000, 60_000, 80_000]));
    assert_eq!(scene.sender.interval_of(&late(&[0], false), &stored.times[&1]), 20_000);
}

#[test]
fn each_series_is_compared_with_what_is_stored_of_it() {
    let scene = Scene::new();
    let mut samples = late(&[0, 0, 0], false);
    for (sample, series_id) in samples.iter_mut().zip(1..) {
        sample.row.series_id = series_id;
    }
    let around = Around { times: HashMap::from([(2, vec![stored_time(0, Some(OTHER))])]), ..Around::default() };
    let missing = scene.sender.missing(&samples, &around, OWN);
    assert_eq!(missing.iter().map(|sample| sample.row.series_id).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn stored_samples_are_read_two_intervals_around() {
    assert_eq!(Scene::new().sender.window_ms(&late(&[0], false)), 120_000);
    let scene = Scene::scraping();
    assert_eq!((scene.sender.interval_ms(1, 0), scene.sender.window_ms(&late(&[0], false))), (10_000, 20_000));
}

#[test]
fn steps_that_differ_a_little_are_of_one_interval() {
    let sender = Sender::shared(usize::MAX, false);
    let stored = around(&[0, 10_000, 20_100, 30_000, 40_050].map(|time_ms| (time_ms, Some(OTHER))));
    assert!(sender.missing(&late(&[44_000], false), &stored, OWN).is_empty());
    assert_eq!(times(&sender.missing(&late(&[46_000], false), &stored, OWN)), [46_000]);
}
