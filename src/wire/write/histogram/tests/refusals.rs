//! Each reason for which a histogram is refused, and the limits.

use super::*;
use crate::wire::write::HISTOGRAM_BUCKETS_MAX;

fn spans<const N: usize>(spans: [(i32, u32); N]) -> Vec<ProstSpan> {
    spans.into_iter().map(|(offset, length)| ProstSpan { offset, length }).collect()
}

/// Ten observations: 1, 2, 1 and 1 positive ones, 2 and 1 negative ones, and 2 in the zero bucket.
fn integer() -> ProstHistogram {
    ProstHistogram {
        count: Some(ProstCount::Whole(10)),
        sum: 18.4,
        schema: 3,
        zero_threshold: 1e-128,
        zero_count: Some(ProstZeroCount::Whole(2)),
        negative_spans: spans([(0, 2)]),
        negative_deltas: vec![2, -1],
        positive_spans: spans([(0, 2), (1, 2)]),
        positive_deltas: vec![1, 1, -1, 0],
        timestamp: 1_795_740_247_000,
        ..ProstHistogram::default()
    }
}

/// The same with float counts.
fn float() -> ProstHistogram {
    ProstHistogram {
        count: Some(ProstCount::Float(10.0)),
        zero_count: Some(ProstZeroCount::Float(2.0)),
        negative_deltas: vec![],
        negative_counts: vec![2.0, 1.0],
        positive_deltas: vec![],
        positive_counts: vec![1.0, 2.0, 1.0, 1.0],
        ..integer()
    }
}

/// The positive ones of them in custom buckets.
fn custom() -> ProstHistogram {
    ProstHistogram {
        count: Some(ProstCount::Whole(5)),
        schema: -53,
        zero_threshold: 0.0,
        zero_count: None,
        negative_spans: vec![],
        negative_deltas: vec![],
        custom_values: vec![0.1, 0.5, 1.0, 5.0],
        ..integer()
    }
}

fn value(message: &ProstHistogram) -> Result<Value, Reason> {
    let sample = decode_two(&message.encode_to_vec());
    check(&sample, message);
    sample.value
}

#[test]
fn each_refusal_has_its_reason() {
    type Change = fn(&mut ProstHistogram);
    type Case = (fn() -> ProstHistogram, &'static str, Change);
    let cases: [Case; 30] = [
        (integer, "unknown schema", |h| h.schema = 53),
        (integer, "unknown schema", |h| h.schema = -5),
        (integer, "unknown schema", |h| h.schema = i32::MIN),
        (integer, "another number of buckets", |h| h.positive_spans = spans([(0, 3), (1, 2)])),
        (integer, "another number of buckets", |h| h.negative_spans = vec![]),
        (integer, "another number of buckets", |h| h.positive_spans = spans([(0, u32::MAX)])),
        (integer, "another number of buckets", |h| h.positive_spans = spans([(0, u32::MAX), (0, 5)])),
        (integer, "negative offset", |h| h.positive_spans[1].offset = -1),
        (integer, "beyond 32 bits", |h| h.positive_spans[1].offset = i32::MAX),
        (integer, "do not add up", |h| h.positive_deltas.clear()),
        (integer, "negative count", |h| h.positive_deltas[1] = -2),
        (integer, "2^53", |h| h.positive_deltas[1] = i64::MAX),
        (integer, "do not add up", |h| h.count = Some(ProstCount::Whole(9))),
        (integer, "do not add up", |h| h.count = None),
        (integer, "do not add up", |h| (h.count, h.sum) = (Some(ProstCount::Whole(9)), f64::NAN)),
        (integer, "do not add up", |h| h.zero_count = Some(ProstZeroCount::Whole(u64::MAX - 7))),
        (integer, "zero bucket has a float count", |h| h.zero_count = Some(ProstZeroCount::Float(2.0))),
        (integer, "2^53", |h| (h.count, h.sum) = (Some(ProstCount::Whole(1 << 53)), f64::NAN)),
        (integer, "custom bounds whose schema", |h| h.custom_values = vec![1.0]),
        (float, "zero bucket has an integer count", |h| h.zero_count = Some(ProstZeroCount::Whole(2))),
        (float, "negative count", |h| h.count = Some(ProstCount::Float(-10.0))),
        (float, "negative count", |h| h.zero_count = Some(ProstZeroCount::Float(-1.0))),
        (float, "negative count", |h| h.negative_counts[0] = f64::NEG_INFINITY),
        (float, "another number of buckets", |h| h.positive_counts.clear()),
        (custom, "fewer custom bounds", |h| h.custom_values.truncate(3)),
        (custom, "do not ascend", |h| h.custom_values[1] = 0.1),
        (custom, "NaN or +Inf", |h| h.custom_values[3] = f64::INFINITY),
        (custom, "zero bucket", |h| h.zero_threshold = 1e-9),
        (custom, "and negative ones", |h| h.negative_spans = spans([(0, 0)])),
        (custom, "negative offset", |h| h.positive_spans[0].offset = -1),
    ];
    for (of, reason, change) in cases {
        let mut message = of();
        assert!(value(&message).is_ok());
        change(&mut message);
        let why = value(&message).unwrap_err();
        assert!(why.contains(reason), "{why}, not {reason}");
    }
    for (change, reason) in [
        ((|h| h.custom_values[1] = f64::NAN) as Change, "NaN or +Inf"),
        (|h| (h.count, h.zero_count) = (Some(ProstCount::Whole(7)), Some(ProstZeroCount::Whole(2))), "zero bucket"),
        (|h| h.positive_spans[1].offset = i32::MAX, "fewer custom bounds"),
    ] {
        let mut message = custom();
        change(&mut message);
        assert!(value(&message).unwrap_err().contains(reason), "{reason}");
    }
}

#[test]
fn what_is_unusual_and_allowed_is_stored() {
    type Change = fn(&mut ProstHistogram);
    let cases: [(fn() -> ProstHistogram, Change); 11] = [
        (integer, |h| h.positive_spans = spans([(-9, 2), (0, 0), (1, 2), (i32::MAX, 0)])),
        (integer, |h| (h.count, h.sum) = (Some(ProstCount::Whole(11)), f64::NAN)),
        (integer, |h| h.zero_count = Some(ProstZeroCount::Whole(2))),
        (integer, |h| h.positive_counts = vec![-1.0]),
        (integer, |h| h.zero_threshold = f64::NAN),
        (integer, |h| h.reset_hint = 3),
        (float, |h| h.count = Some(ProstCount::Float(f64::NAN))),
        (float, |h| h.positive_counts[1] = f64::INFINITY),
        (float, |h| h.zero_count = None),
        (custom, |h| h.custom_values[0] = f64::NEG_INFINITY),
        (custom, |h| *h = ProstHistogram { schema: -53, ..ProstHistogram::default() }),
    ];
    for (of, change) in cases {
        let mut message = of();
        change(&mut message);
        assert!(value(&message).is_ok(), "{message:?}");
    }
    // A time that no float has is left out.
    for start_timestamp in [i64::MIN, i64::MAX, 1 << 53] {
        let far = ProstHistogram { start_timestamp, ..integer() }.encode_to_vec();
        assert_eq!(decode_two(&far).value, value(&integer()));
    }
    // The other encoder leaves out a -0.
    let minus_zero = [integer().encode_to_vec(), b"\x19\0\0\0\0\0\0\0\x80".to_vec()].concat();
    let Ok(Value::Histogram(numbers)) = decode_two(&minus_zero).value else { panic!("refused") };
    assert!(numbers.to_histogram().unwrap().sum.is_sign_negative());
    assert_eq!(value(&ProstHistogram { reset_hint: 259, ..integer() }), value(&integer()));
}

#[test]
fn buckets_of_reserved_schemas_are_merged() {
    let nine = ProstHistogram { schema: 9, ..integer() };
    let eight =
        ProstHistogram { schema: 8, positive_spans: spans([(0, 3)]), positive_deltas: vec![1, 1, 0], ..integer() };
    assert_eq!(value(&nine), value(&eight));
    // Of the narrowest, any index above 0 goes into bucket 1, and any other into bucket 0.
    let narrowest = ProstHistogram { schema: 52, positive_spans: spans([(-1, 3), (i32::MAX - 3, 1)]), ..integer() };
    let Ok(Value::Histogram(numbers)) = value(&narrowest) else { panic!("refused") };
    assert_eq!(numbers.to_histogram().unwrap().positive, [(0, 3.0), (1, 2.0)]);
}

#[test]
fn a_stale_marker_may_have_anything_else() {
    let stale = ProstHistogram { sum: f64::from_bits(STALE_NAN_BITS), schema: 99, ..custom() };
    let Ok(Value::Float(value)) = value(&stale) else { panic!("no marker") };
    assert_eq!(value.to_bits(), STALE_NAN_BITS);
    let cut = stale.encode_to_vec();
    assert!(decode(Scanner::new(&cut[..cut.len() - 1]), Version::Two).is_err());
}

#[test]
fn the_last_of_alternatives_counts() {
    let last = |one: &[u8], other: &[u8]| decode_two(&[one, other].concat()).value;
    let (one, two) = (integer().encode_to_vec(), [&b"\x30\x02"[..], b"\x08\x0a"].concat());
    let as_float = [&b"\x11\0\0\0\0\0\0\x24\x40"[..], b"\x39\0\0\0\0\0\0\0\x40"].concat();
    assert_eq!(last(&[&as_float[..], &one].concat(), b""), value(&integer()));
    assert_eq!(last(&[&one[..], &as_float].concat(), &two), value(&integer()));
    // As a float histogram it has no buckets for its spans.
    assert!(last(&one, &as_float).unwrap_err().contains("another number of buckets"));
}

#[test]
fn malformed_messages_are_errors() {
    for (message, what) in [
        (&b"\x09\0\0\0\0\0\0\0\0"[..], "known field of the wrong wire type"),
        (b"\x40\x00", "known field of the wrong wire type"),
        (b"\x61\0\0\0\0\0\0\0\0", "known field of the wrong wire type"),
        (b"\x80\x01\x00", "known field of the wrong wire type"),
        (b"\x62\x02\x01\x80", "truncated or overlong packed number"),
        (b"\x6a\x07\0\0\0\0\0\0\0", "truncated packed number"),
        (b"\x42\x02\x12\x00", "known field of the wrong wire type"),
    ] {
        let error = decode(Scanner::new(message), Version::Two).unwrap_err();
        assert_eq!((error.offset, error.what), (if message[0] == 0x42 { 2 } else { 0 }, what), "{message:x?}");
    }
}

#[test]
fn buckets_are_bounded() {
    let many = |count: usize| ProstHistogram {
        count: Some(ProstCount::Float(1.0)),
        positive_spans: spans([(0, u32::try_from(count).unwrap())]),
        positive_counts: vec![1.0; count],
        ..ProstHistogram::default()
    };
    assert!(value(&many(HISTOGRAM_BUCKETS_MAX)).is_ok());
    let mut both = many(HISTOGRAM_BUCKETS_MAX);
    (both.negative_spans, both.negative_counts) = (spans([(0, 1)]), vec![1.0]);
    let bounds = (0..=HISTOGRAM_BUCKETS_MAX).map(|bound| bound as f64).collect();
    let bounds = ProstHistogram { schema: -53, custom_values: bounds, ..ProstHistogram::default() };
    let empty = vec![ProstSpan::default(); HISTOGRAM_BUCKETS_MAX + 1];
    let empty = ProstHistogram { negative_spans: empty, ..ProstHistogram::default() };
    for message in [many(HISTOGRAM_BUCKETS_MAX + 1), many(3 * HISTOGRAM_BUCKETS_MAX), both, bounds, empty] {
        assert_eq!(decode_two(&message.encode_to_vec()).value, Err(TOO_MANY));
    }
}

#[test]
fn histograms_of_a_request_are_bounded() {
    type Decode = fn(&[u8]) -> Result<Request<'_>, DecodeError>;
    let versions: [(u8, u8, Decode); 2] = [(0x0a, 0x22, v1::decode), (0x2a, 0x1a, v2::decode)];
    for (series, histogram, decode) in versions {
        let body = |message: &[u8], count: usize| {
            let mut of_series = Vec::new();
            for _ in 0..count {
                of_series.push(histogram);
                prost::encoding::encode_varint(message.len() as u64, &mut of_series);
                of_series.extend_from_slice(message);
            }
            let mut body = vec![series];
            prost::encoding::encode_varint(of_series.len() as u64, &mut body);
            [body, of_series].concat()
        };
        assert_eq!(decode(&body(b"", HISTOGRAMS_MAX)).unwrap().histograms.len(), HISTOGRAMS_MAX);
        let what = decode(&body(b"", HISTOGRAMS_MAX + 1)).unwrap_err().what;
        assert_eq!(what, "more histograms than one request may have");
        let large = ProstHistogram {
            count: Some(ProstCount::Whole(5_000)),
            positive_spans: spans([(0, 5_000)]),
            positive_deltas: std::iter::once(1).chain(vec![0; 4_999]).collect(),
            ..ProstHistogram::default()
        };
        let what = decode(&body(&large.encode_to_vec(), HISTOGRAM_NUMBERS_MAX / 5_000)).unwrap_err().what;
        assert_eq!(what, "more buckets than all histograms of one request may have");
    }
}
