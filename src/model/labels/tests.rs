use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(pairs: &[(&[u8], &[u8])], expected: Result<&[(&str, &str)], LabelsError>) {
    let dropped = ["__replica__".to_owned()];
    let labels = Labels::new(pairs.iter().copied(), &dropped);
    assert_eq!(labels, expected.map(labels_of));
}

fn labels_of(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_stored(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
}

#[test]
fn labels_are_sorted_by_bytes_and_the_absent_ones_left_out() {
    check(
        &[(b"job", b"node"), (b"__name__", b"up"), (b"Z", b"1"), (b"empty", b""), (b"__replica__", b"a")],
        Ok(&[("Z", "1"), ("__name__", "up"), ("job", "node")]),
    );
    check(
        &[("naïve.metric 😀".as_bytes(), b"line\nbreak"), (b"__name__", b"x")],
        Ok(&[("__name__", "x"), ("naïve.metric 😀", "line\nbreak")]),
    );
}

#[test]
fn what_can_never_be_stored_is_named() {
    let up: (&[u8], &[u8]) = (b"__name__", b"up");
    check(&[up, (b"", b"v")], Err(LabelsError::EmptyName("v".into())));
    check(&[up, (b"", b"")], Err(LabelsError::EmptyName(String::new())));
    check(&[up, (b"n\xff", b"v")], Err(LabelsError::NameNotUtf8("n\u{fffd}".into())));
    check(&[up, (b"n", b"\xc3")], Err(LabelsError::ValueNotUtf8("n".into())));
    check(&[up, (b"n\0", b"v")], Err(LabelsError::NameWithNul("n\0".into())));
    check(&[up, (b"n", b"\0")], Err(LabelsError::ValueWithNul("n".into())));
    check(&[up, (b"n", b"1"), (b"m", b"1"), (b"n", b"2")], Err(LabelsError::Duplicate("n".into())));
    check(&[up, (b"n", b"1"), (b"n", b"")], Err(LabelsError::Duplicate("n".into())));
    check(&[up, (b"__replica__", b"a"), (b"__replica__", b"b")], Err(LabelsError::Duplicate("__replica__".into())));
    check(&[up, (b"__replica__", b"\xff")], Err(LabelsError::ValueNotUtf8("__replica__".into())));
    check(&[(b"job", b"node")], Err(LabelsError::NoMetricName));
    check(&[(b"__name__", b"")], Err(LabelsError::NoMetricName));
    check(&[], Err(LabelsError::NoMetricName));
}

#[test]
fn a_long_name_is_cut_short_in_the_message() {
    check(&[(&[b'x'; 64], b"\xff")], Err(LabelsError::ValueNotUtf8("x".repeat(64))));
    check(&[(&[b'x'; 65], b"\xff")], Err(LabelsError::ValueNotUtf8("x".repeat(64) + "…")));
    check(&[("ä".repeat(1000).as_bytes(), b"\xff")], Err(LabelsError::ValueNotUtf8("ä".repeat(64) + "…")));
    check(&[(&[0xff; 100_000], b"v")], Err(LabelsError::NameNotUtf8("\u{fffd}".repeat(64) + "…")));
    assert_eq!(LabelsError::ValueWithNul("a\0".into()).to_string().matches('\0').count(), 0);
}

#[test]
fn sets_are_ordered_as_prometheus_orders_series() {
    let in_order = [
        labels_of(&[]),
        labels_of(&[("A", "z")]),
        labels_of(&[("a", "1")]),
        labels_of(&[("a", "1"), ("b", "")]),
        labels_of(&[("a", "1"), ("b", "1")]),
        labels_of(&[("a", "10")]),
        labels_of(&[("a", "2")]),
        labels_of(&[("ab", "0")]),
        labels_of(&[("ä", "0")]),
    ];
    assert!(in_order.is_sorted_by(|a, b| a < b));
}

#[test]
fn a_missing_label_reads_as_empty() {
    let labels = labels_of(&[("__name__", "up"), ("job", "node")]);
    assert_eq!((labels.metric_name(), labels.get("job"), labels.get("nope"), labels.len()), ("up", "node", "", 2));
    assert_eq!(Labels::default().metric_name(), "");
    assert!(Labels::default().is_empty());
}

/// These are the keys of every series in every existing database: if this test fails, the code is wrong, not the test.
#[test]
fn the_identity_never_changes() {
    let identity = |pairs| labels_of(pairs).identity(Kind::Float).map(|byte| format!("{byte:02x}")).concat();
    assert_eq!(identity(&[]), "e3b0c44298fc1c149afbf4c8996fb924");
    assert_eq!(identity(&[("__name__", "up"), ("job", "nöde")]), "b1a419c264224ba2d96b7f599451c5ef");
    assert_ne!(identity(&[("a", "bc")]), identity(&[("ab", "c")]));
}

proptest! {
    #[test]
    fn any_order_gives_the_same_set(
        pairs in prop::collection::btree_map("[a-zé]{1,6}", "[a-z é]{0,6}", 0..12),
        seed in any::<prop::sample::Index>(),
    ) {
        let mut pairs: Vec<(String, String)> = pairs.into_iter().collect();
        pairs.push((METRIC_NAME.into(), "m".into()));
        let forward = Labels::new(pairs.iter().map(|(n, v)| (n, v)), &[]).unwrap();
        let at = seed.index(pairs.len());
        pairs.rotate_left(at);
        let rotated = Labels::new(pairs.iter().map(|(n, v)| (n, v)), &[]).unwrap();
        prop_assert_eq!(forward.identity(Kind::Float), rotated.identity(Kind::Float));
        prop_assert!(forward.iter().is_sorted_by(|a, b| a.name < b.name));
        prop_assert!(forward.iter().all(|label| !label.value.is_empty()));
        for (name, value) in &pairs {
            prop_assert_eq!(forward.get(name), value);
        }
        prop_assert_eq!(forward, rotated);
    }

    #[test]
    fn arbitrary_bytes_never_panic(pairs in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5)) {
        if let Err(error) = Labels::new(pairs, &[]) {
            prop_assert!(error.to_string().len() < 700);
        }
    }
}
