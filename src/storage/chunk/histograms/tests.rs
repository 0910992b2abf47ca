use proptest::prelude::*;

use super::*;
use crate::model::histogram::CUSTOM_BUCKETS;
use crate::storage::chunk::Corrupt;
use crate::storage::row::{TIME_MAX_MS, TIME_MIN_MS};

mod size;

const TIMES_MAX: usize = 50;

#[track_caller]
fn check_round_trip(series_id: i64, values: &[TimedValue], times_max: usize) -> Vec<Encoded> {
    let rows = encode(series_id, values, times_max);
    let mut found = Vec::new();
    for row in &rows {
        assert_eq!(row.bucket * 32 + i64::from(row.places.iter().next().unwrap()), series_id);
        let decoded = decode(row).unwrap();
        assert!((1..=times_max).contains(&decoded.len()));
        assert_eq!((row.first_ms, row.last_ms), (decoded[0].0, decoded[decoded.len() - 1].0));
        found.extend(decoded);
    }
    assert_eq!(found.len(), values.len());
    for (found, value) in found.iter().zip(values) {
        assert_eq!(found, value);
    }
    rows
}

/// Values every 15 s.
fn timed(values: impl IntoIterator<Item = Value>) -> Vec<TimedValue> {
    (0..).zip(values).map(|(n, value)| (1_700_000_000_000 + 15_000 * n, value)).collect()
}

fn marker() -> Value {
    Value::Float(STALE)
}

fn value(histogram: &Histogram) -> Value {
    Value::Histogram(histogram.to_numbers())
}

fn any_float() -> impl Strategy<Value = f64> {
    let hard = [0, 1, 1 << 63, 0x7ff0 << 48, 0xfff0 << 48, 0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001];
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        prop::sample::select(hard.to_vec()).prop_map(f64::from_bits),
        (0..1_u32 << 20).prop_map(f64::from),
        (0..1_u32 << 20).prop_map(|n| f64::from(n) / 1e3),
    ]
}

fn any_sum() -> impl Strategy<Value = f64> {
    any_float().prop_filter("a sum is no marker", |sum| sum.to_bits() != STALE_NAN_BITS)
}

fn any_threshold() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(2_f64.powi(-128)),
        Just(1.0),
        Just(f64::from_bits(1)),
        Just(f64::INFINITY),
        0.0..1.0_f64,
    ]
}

fn any_index() -> impl Strategy<Value = i32> {
    prop_oneof![9 => -20..20_i32, 1 => any::<i32>(), 1 => prop::sample::select(vec![i32::MIN, i32::MAX, 0, -1])]
}

fn any_count(is_float: bool) -> BoxedStrategy<f64> {
    if is_float {
        any_float().prop_filter("a bucket without a count is none", |count| *count != 0.0).boxed()
    } else {
        prop_oneof![20 => 1..1000_u64, 1 => 1..COUNT_MAX / 64].prop_map(|count| count as f64).boxed()
    }
}

fn any_buckets(is_float: bool) -> impl Strategy<Value = Vec<(i32, f64)>> {
    prop::collection::btree_map(any_index(), any_count(is_float), 0..12)
        .prop_map(|buckets| buckets.into_iter().collect())
}

/// Generates what changes between histograms that are alike.
fn any_like(head: Histogram) -> impl Strategy<Value = Histogram> {
    let is_float = head.is_float;
    let start = prop_oneof![
        4 => Just(0.0),
        2 => Just(1_700_000_000_123.0),
        1 => any::<i64>().prop_map(|start_ms| start_ms as f64),
        1 => prop::sample::select(vec![i64::MIN as f64, i64::MAX as f64, -1.0]),
    ];
    let negative = if head.schema == CUSTOM_BUCKETS { 0 } else { 12 };
    (any_buckets(is_float), any_buckets(is_float), any_count(is_float), any_sum(), 0..4_u8, start, 0..3_u64).prop_map(
        move |(positive, mut negative_buckets, zero_count, sum, reset_hint, start, more)| {
            negative_buckets.truncate(negative);
            let mut histogram = Histogram {
                reset_hint,
                start_ms: start as i64,
                zero_count,
                sum,
                positive,
                negative: negative_buckets,
                ..head.clone()
            };
            let total = zero_count + counts_of(&histogram).sum::<f64>();
            histogram.count = if is_float { total } else { total + more as f64 };
            histogram
        },
    )
}

fn any_head() -> impl Strategy<Value = Histogram> {
    let bounds = prop::collection::vec(any_float(), 0..8);
    let schema = prop_oneof![3 => -4..=8_i8, 1 => Just(CUSTOM_BUCKETS)];
    (schema, any::<bool>(), any_threshold(), bounds).prop_map(|(schema, is_float, zero_threshold, bounds)| Histogram {
        schema,
        is_float,
        zero_threshold,
        bounds: if schema == CUSTOM_BUCKETS { bounds } else { Vec::new() },
        ..Histogram::default()
    })
}

fn any_run() -> impl Strategy<Value = Vec<Value>> {
    let alike = any_head().prop_flat_map(|head| {
        let item = prop_oneof![8 => any_like(head).prop_map(|histogram| value(&histogram)), 1 => Just(marker())];
        prop::collection::vec(item, 1..30)
    });
    // A counter: each histogram is the one before and a little more.
    let counter = (any_head(), prop::collection::vec((-5..5_i32, 0..20_u32), 1..130)).prop_map(|(head, steps)| {
        let mut histogram = Histogram { is_float: false, ..head };
        let mut next = |(index, step): (i32, u32)| {
            if step > 0 {
                match histogram.positive.binary_search_by_key(&index, |(index, _)| *index) {
                    Ok(at) => histogram.positive[at].1 += f64::from(step),
                    Err(at) => histogram.positive.insert(at, (index, f64::from(step))),
                }
            }
            histogram.count += f64::from(step);
            histogram.sum += f64::from(step) * 0.1;
            value(&histogram)
        };
        steps.into_iter().map(&mut next).collect()
    });
    let odd = prop::collection::vec(prop::collection::vec(any_float(), 0..12), 1..4).prop_map(|lists| {
        lists.into_iter().map(|list| Value::Histogram(Numbers::from_stored(list))).collect::<Vec<_>>()
    });
    prop_oneof![4 => alike, 2 => counter, 1 => odd, 1 => prop::collection::vec(Just(marker()), 1..4)]
}

/// Generates the values of a series, and times.
fn any_series() -> impl Strategy<Value = Vec<TimedValue>> {
    let step = prop_oneof![4 => Just(15_000_i64), 1 => 1..20_000_i64, 1 => 1..100_000_000_000_i64];
    let start = prop_oneof![Just(TIME_MIN_MS), Just(-1), Just(1_700_000_000_000)];
    (prop::collection::vec(any_run(), 1..4), start, prop::collection::vec(step, 1..5)).prop_map(
        |(runs, start, steps)| {
            let mut time_ms = start;
            let times = steps.into_iter().cycle().map(|step| {
                time_ms += step;
                time_ms
            });
            times.zip(runs.into_iter().flatten()).collect()
        },
    )
}

proptest! {
    #[test]
    fn every_bit_comes_back(series_id in any::<i32>(), values in any_series(), times_max in 1..200_usize) {
        check_round_trip(i64::from(series_id), &values, times_max);
    }

    #[test]
    fn any_single_flipped_bit_is_found(values in any_series(), at in any::<prop::sample::Index>(), in_times: bool) {
        let mut row = encode(-7, &values, TIMES_MAX).swap_remove(0);
        let bits = if in_times { &mut row.times } else { &mut row.data };
        let at = at.index(bits.len);
        bits.bytes[at / 8] ^= 0x80 >> (at % 8);
        prop_assert!(decode(&row).is_err());
    }

    /// Damage that the check does not find is decoded, or found later.
    #[test]
    fn damage_is_no_panic(
        values in any_series(),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut row = encode(-7, &values, TIMES_MAX).swap_remove(0);
        let len = row.data.len - 8;
        for at in flips {
            let at = at.index(len);
            row.data.bytes[at / 8] ^= 0x80 >> (at % 8);
        }
        let _ = decode(&with_check(&row, len));
        let _ = decode(&with_check(&row, cut.index(len)));
        row.floats.pop();
        let _ = decode(&with_check(&row, len));
    }

    #[test]
    fn garbage_behind_a_check_is_no_panic(
        words in prop::collection::vec(any::<(u64, bool)>(), 0..40),
        floats in prop::collection::vec(any_float(), 0..3),
        times in 1..400_usize,
    ) {
        let mut data = Writer::default();
        words.iter().for_each(|(word, sparse)| data.put(if *sparse { word & word >> 7 & word >> 13 } else { *word } >> 1, 63));
        let (times_ms, times) = write_times((0..times as i64).map(|n| n * 15_000), &mut Lists::default());
        let len = data.len();
        let row = Encoded {
            first_ms: 0, last_ms: times_ms[times_ms.len() - 1], places: Places(1), times, data: data.finish(), floats,
            ..Encoded::default()
        };
        let _ = decode(&with_check(&row, len));
    }
}

/// Returns the row with the first `len` bits of its data, and a check that is right.
fn with_check(row: &Encoded, len: usize) -> Encoded {
    let mut data = Writer::default();
    let bits = |at: usize| u64::from(row.data.bytes[at / 8] >> (7 - at % 8) & 1);
    (0..len).for_each(|at| data.put(bits(at), 1));
    put_check(&mut data, row.places.iter().next().unwrap());
    Encoded { data: data.finish(), ..row.clone() }
}

fn histogram() -> Histogram {
    Histogram {
        schema: 3,
        zero_threshold: 2_f64.powi(-128),
        zero_count: 2.0,
        count: 6.0,
        sum: 1.25,
        positive: vec![(-3, 1.0), (-2, 3.0)],
        ..Histogram::default()
    }
}

#[test]
fn what_is_alike_shares_a_row() {
    let one = histogram();
    let more = Histogram { count: 9.0, negative: vec![(4, 3.0)], reset_hint: 2, start_ms: 5, ..one.clone() };
    let others = [
        Histogram { schema: 4, ..one.clone() },
        Histogram { is_float: true, ..one.clone() },
        Histogram { zero_threshold: 0.5, ..one.clone() },
        Histogram { schema: CUSTOM_BUCKETS, zero_threshold: 0.0, bounds: vec![0.5, 1.0], ..one.clone() },
        Histogram { schema: CUSTOM_BUCKETS, zero_threshold: 0.0, bounds: vec![0.5, 2.0], ..one.clone() },
    ];
    let lengths = |values: Vec<Value>, times_max: usize| -> Vec<usize> {
        let rows = check_round_trip(-1, &timed(values), times_max);
        rows.iter().map(|row| decode(row).unwrap().len()).collect()
    };
    let mut values = vec![marker(), value(&one), value(&more), marker(), marker()];
    assert_eq!(lengths(values.clone(), 1000), [5]);
    values.extend(others.iter().flat_map(|other| [value(other), marker()]));
    assert_eq!(lengths(values, 1000), [5, 2, 2, 2, 2, 2]);
    assert_eq!(lengths(vec![value(&one); 10], 4), [3, 3, 4]);
    assert_eq!(lengths(vec![marker(); 3], 1000), [3]);
    assert!(lengths(vec![], 1000).is_empty());
}

#[test]
fn what_columns_cannot_represent_is_stored_as_it_is() {
    let one = histogram();
    let odd = [
        Histogram { count: 1e300, ..one.clone() },
        Histogram { zero_count: 0.5, ..one.clone() },
        Histogram { sum: STALE, ..one.clone() },
        Histogram { positive: vec![(1, 0.0)], ..one.clone() },
        Histogram { positive: vec![(1, (COUNT_MAX - 1) as f64)], ..one.clone() },
        Histogram { count: -0.0, ..Histogram::default() },
        Histogram { positive: (0..CELLS_MAX as i32 + 1).map(|index| (index, 1.0)).collect(), ..one.clone() },
    ];
    for odd in odd {
        let rows = check_round_trip(-40, &timed([value(&one), marker(), value(&odd), marker(), value(&one)]), 1000);
        // What is longest is in a row without its marker.
        assert!(rows.len() == 3 || odd.positive.len() > CELLS_MAX && rows.len() == 4);
        assert_eq!(rows[1].data.bytes[0] >> 6, 2);
    }
}

#[test]
fn rows_are_split_by_the_cells_they_would_have() {
    let wide = |first: i32| Histogram {
        positive: (first..first + 40_000).map(|index| (index, 1.0)).collect(),
        count: 40_002.0,
        ..histogram()
    };
    let values: Vec<_> = (0..32).map(|n| value(&wide(n * 100_000))).collect();
    let rows = check_round_trip(-33, &timed(values), 1000);
    // 26 histograms with the same buckets would fit, but not five with different ones.
    assert_eq!(rows.len(), 8);
}

#[test]
fn few_bits_do_not_claim_much_memory() {
    let (times_ms, times) = write_times((0..65_536).map(|n| n * 15_000), &mut Lists::default());
    let claim = |kind: u64, lengths: [u32; 3]| {
        let (mut data, mut lists) = (Writer::default(), Lists::default());
        data.put(kind, KIND_BITS);
        if kind == AS_IT_IS {
            lists.write(&[1 << 40; 2], &mut data);
        } else {
            data.put_signed(0);
            data.put(0, EXPONENT_BITS);
            for length in lengths {
                data.put_unsigned(length);
                if length > 0 {
                    lists.write(&[0, 1, 2], &mut data);
                }
            }
        }
        put_check(&mut data, 0);
        let (first_ms, last_ms) = (times_ms[0], times_ms[times_ms.len() - 1]);
        decode(&Encoded {
            first_ms,
            last_ms,
            places: Places(1),
            times: times.clone(),
            data: data.finish(),
            ..Encoded::default()
        })
    };
    let why = |result: Result<Vec<TimedValue>, Corrupt>| result.unwrap_err().to_string();
    assert!(why(claim(WHOLE, [0, 1 << 30, 0])).contains("columns of 65536 numbers"));
    assert!(why(claim(FLOAT, [0, 10, 10])).contains("20 columns of 65536 numbers"));
    assert!(why(claim(AS_IT_IS, [0; 3])).contains("lists do not have 0 floats"));
    assert!(why(claim(3, [0; 3])).contains("no kind 3"));
}

#[test]
fn the_longest_chunk_comes_back() {
    let mut one = histogram();
    let values = (0..SAMPLES_MAX).map(|n| {
        one.positive[n % 2].1 += 1.0;
        one.count += 1.0;
        one.sum += 0.125;
        value(&one)
    });
    let values = timed(values);
    assert_eq!(check_round_trip(-5, &values, SAMPLES_MAX).len(), 1);
    assert!(values[values.len() - 1].0 < TIME_MAX_MS);
}
