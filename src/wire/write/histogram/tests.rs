use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::{Message, Oneof};
use serde_json::Value as Json;

use super::*;
use crate::model::sample::STALE_NAN_BITS;
use crate::wire::snappy;
use crate::wire::write::{HISTOGRAM_NUMBERS_MAX, HISTOGRAMS_MAX, Request, v1, v2};

/// The same message for an independent encoder.
#[derive(Clone, PartialEq, Message)]
pub(in crate::wire::write) struct ProstHistogram {
    #[prost(oneof = "ProstCount", tags = "1, 2")]
    count: Option<ProstCount>,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(oneof = "ProstZeroCount", tags = "6, 7")]
    zero_count: Option<ProstZeroCount>,
    #[prost(message, repeated, tag = "8")]
    negative_spans: Vec<ProstSpan>,
    #[prost(sint64, repeated, tag = "9")]
    negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "10")]
    negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<ProstSpan>,
    #[prost(sint64, repeated, tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    reset_hint: i32,
    #[prost(int64, tag = "15")]
    timestamp: i64,
    #[prost(double, repeated, tag = "16")]
    custom_values: Vec<f64>,
    #[prost(int64, tag = "17")]
    start_timestamp: i64,
}

#[derive(Clone, Copy, PartialEq, Oneof)]
pub(in crate::wire::write) enum ProstCount {
    #[prost(uint64, tag = "1")]
    Whole(u64),
    #[prost(double, tag = "2")]
    Float(f64),
}

#[derive(Clone, Copy, PartialEq, Oneof)]
pub(in crate::wire::write) enum ProstZeroCount {
    #[prost(uint64, tag = "6")]
    Whole(u64),
    #[prost(double, tag = "7")]
    Float(f64),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(in crate::wire::write) struct ProstSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

/// The lists of numbers once more, each number in a field of its own.
#[derive(Clone, PartialEq, Message)]
struct Unpacked {
    #[prost(sint64, repeated, packed = "false", tag = "9")]
    negative_deltas: Vec<i64>,
    #[prost(double, repeated, packed = "false", tag = "10")]
    negative_counts: Vec<f64>,
    #[prost(sint64, repeated, packed = "false", tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(double, repeated, packed = "false", tag = "13")]
    positive_counts: Vec<f64>,
    #[prost(double, repeated, packed = "false", tag = "16")]
    custom_values: Vec<f64>,
}

impl ProstHistogram {
    /// As a reader of version 1.0 sees it.
    pub(in crate::wire::write) fn without_start(&self) -> Self {
        Self { start_timestamp: 0, ..self.clone() }
    }

    fn unpacked(mut self) -> Vec<u8> {
        let unpacked = Unpacked {
            negative_deltas: std::mem::take(&mut self.negative_deltas),
            negative_counts: std::mem::take(&mut self.negative_counts),
            positive_deltas: std::mem::take(&mut self.positive_deltas),
            positive_counts: std::mem::take(&mut self.positive_counts),
            custom_values: std::mem::take(&mut self.custom_values),
        };
        [self.encode_to_vec(), unpacked.encode_to_vec()].concat()
    }
}

/// Absolute counts of one sign, with their indices; `None` if they are refused. Written for clarity, in wide numbers.
fn reference_side(spans: &[ProstSpan], counts: &[f64], merged: u32) -> Option<Vec<(i32, f64)>> {
    if spans.iter().map(|span| u128::from(span.length)).sum::<u128>() != counts.len() as u128 {
        return None;
    }
    let mut index = 0_i128;
    let mut buckets: BTreeMap<i128, f64> = BTreeMap::new();
    let mut counts = counts.iter();
    for (at, span) in spans.iter().enumerate() {
        if at > 0 && span.offset < 0 {
            return None;
        }
        index += i128::from(span.offset);
        for _ in 0..span.length {
            let count = *counts.next().unwrap();
            // The quotient, rounded up.
            let target = -(-index).div_euclid(1 << merged);
            i32::try_from(target).ok()?;
            if count != 0.0 {
                buckets.entry(target).and_modify(|sum| *sum += count).or_insert(count);
            }
            index += 1;
        }
    }
    Some(buckets.into_iter().map(|(index, count)| (i32::try_from(index).unwrap(), count)).collect())
}

/// What is to be stored of a message; `None` if it is refused.
fn reference(message: &ProstHistogram) -> Option<Histogram> {
    let is_float = matches!(message.count, Some(ProstCount::Float(_)));
    let absolute = |deltas: &[i64], counts: &[f64]| -> Vec<i128> {
        let mut sum = 0_i128;
        let deltas = deltas.iter().map(|delta| {
            sum += i128::from(*delta);
            sum
        });
        if is_float { counts.iter().map(|count| if *count < 0.0 { -1 } else { 0 }).collect() } else { deltas.collect() }
    };
    let positive = absolute(&message.positive_deltas, &message.positive_counts);
    let negative = absolute(&message.negative_deltas, &message.negative_counts);
    if positive.iter().chain(&negative).any(|count| *count < 0) {
        return None;
    }
    let (count, zero_count) = match (message.count, message.zero_count) {
        (Some(ProstCount::Float(count)), None | Some(ProstZeroCount::Whole(0))) => (count, 0.0),
        (Some(ProstCount::Float(count)), Some(ProstZeroCount::Float(zero_count))) => (count, zero_count),
        (Some(ProstCount::Whole(_)) | None, Some(ProstZeroCount::Float(zero))) if zero != 0.0 => return None,
        (Some(ProstCount::Float(_)), Some(ProstZeroCount::Whole(_))) => return None,
        (whole, zero) => {
            let count = if let Some(ProstCount::Whole(count)) = whole { count } else { 0 };
            let zero = if let Some(ProstZeroCount::Whole(count)) = zero { count } else { 0 };
            let sum = positive.iter().chain(&negative).sum::<i128>() + i128::from(zero);
            let is_sum = if message.sum.is_nan() { sum <= i128::from(count) } else { sum == i128::from(count) };
            if !is_sum || count >= 1 << 53 {
                return None;
            }
            (count as f64, zero as f64)
        }
    };
    if count < 0.0 || zero_count < 0.0 {
        return None;
    }
    let schema = match message.schema {
        -4..=52 if message.custom_values.is_empty() => message.schema.min(8),
        -53 => {
            let bounds = &message.custom_values;
            let needed: i128 =
                message.positive_spans.iter().map(|span| i128::from(span.offset) + i128::from(span.length)).sum();
            let is_fit = bounds.iter().all(|bound| *bound < f64::INFINITY)
                && bounds.windows(2).all(|pair| pair[0] < pair[1])
                && zero_count == 0.0
                && message.zero_threshold == 0.0
                && message.negative_spans.is_empty()
                && negative.is_empty()
                && message.positive_spans.iter().all(|span| span.offset >= 0)
                && needed <= bounds.len() as i128 + 1;
            is_fit.then_some(-53)?
        }
        _ => return None,
    };
    let merged = u32::try_from(message.schema - schema).unwrap();
    let counts = |counts: &[f64], whole: &[i128]| -> Vec<f64> {
        if is_float { counts.to_vec() } else { whole.iter().map(|count| *count as f64).collect() }
    };
    let positive_counts = counts(&message.positive_counts, &positive);
    let negative_counts = counts(&message.negative_counts, &negative);
    let zero = |number: f64| if number == 0.0 { 0.0 } else { number };
    Some(Histogram {
        schema: i8::try_from(schema).unwrap(),
        is_float,
        reset_hint: if (0..4).contains(&message.reset_hint) { message.reset_hint as u8 } else { 0 },
        start_ms: message.start_timestamp,
        zero_threshold: zero(message.zero_threshold),
        zero_count: zero(zero_count),
        count: zero(count),
        sum: message.sum,
        bounds: message.custom_values.clone(),
        positive: reference_side(&message.positive_spans, &positive_counts, merged)?,
        negative: reference_side(&message.negative_spans, &negative_counts, merged)?,
    })
}

fn decode_two(message: &[u8]) -> HistogramSample {
    decode(Scanner::new(message), Version::Two).unwrap()
}

/// Checks that a message is decoded as expected; returns `true` if it is stored.
#[track_caller]
pub(in crate::wire::write) fn check(sample: &HistogramSample, message: &ProstHistogram) -> bool {
    assert_eq!(sample.timestamp_ms, message.timestamp);
    if message.sum.to_bits() == STALE_NAN_BITS {
        assert_eq!(sample.value, Ok(Value::Float(message.sum)));
        return true;
    }
    match (&sample.value, reference(message)) {
        (Ok(Value::Histogram(numbers)), Some(expected)) => assert_eq!(numbers.to_histogram().unwrap(), expected),
        (Err(_), None) => return false,
        (value, expected) => panic!("{value:?}, not {expected:?} of {message:?}"),
    }
    true
}

fn spans() -> impl Strategy<Value = Vec<ProstSpan>> {
    let offset = prop_oneof![1 => -3..0, 30 => 0..4, 1 => any::<i32>()];
    let length = prop_oneof![40 => 0..4_u32, 1 => any::<u32>()];
    prop::collection::vec((offset, length).prop_map(|(offset, length)| ProstSpan { offset, length }), 0..5)
}

/// A side of a histogram: its spans, and deltas and counts that mostly fit these.
fn side() -> impl Strategy<Value = (Vec<ProstSpan>, Vec<i64>, Vec<f64>)> {
    let counts = prop::collection::vec(prop_oneof![1 => Just(0_u32), 2 => 0..100_u32, 1 => any::<u32>()], 20);
    let odd = prop_oneof![Just(-1.0), Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), any::<f64>()];
    let odd = prop::option::weighted(0.1, (0..20_usize, odd));
    let extreme = prop::option::weighted(0.1, (0..20_usize, any::<i64>()));
    (spans(), counts, odd, extreme, prop_oneof![9 => Just(0), 1 => -1..2_isize]).prop_map(
        |(spans, counts, odd, extreme, more)| {
            let buckets = spans.iter().map(|span| span.length as usize).sum::<usize>().min(19);
            let counts = &counts[..buckets.saturating_add_signed(more)];
            let before = [0].into_iter().chain(counts.iter().copied());
            let mut deltas: Vec<i64> =
                before.zip(counts).map(|(one, next)| i64::from(*next) - i64::from(one)).collect();
            let mut counts: Vec<f64> = counts.iter().copied().map(f64::from).collect();
            if let Some((place, delta)) = extreme {
                deltas.get_mut(place).into_iter().for_each(|at| *at = delta);
            }
            if let Some((place, count)) = odd {
                counts.get_mut(place).into_iter().for_each(|at| *at = count);
            }
            (spans, deltas, counts)
        },
    )
}

/// Messages of which about a third are valid, and the others nearly.
pub(in crate::wire::write) fn any_histogram() -> impl Strategy<Value = ProstHistogram> {
    let schema = prop_oneof![4 => -4..9, 4 => 9..53, 4 => Just(-53), 1 => any::<i32>(), 1 => -60..60];
    let sum = prop_oneof![
        8 => any::<f64>(),
        2 => Just(f64::NAN),
        1 => Just(f64::from_bits(STALE_NAN_BITS)),
        1 => any::<u64>().prop_map(f64::from_bits)
    ];
    // The other encoder leaves out a -0.
    let sum = sum.prop_map(|sum| if sum == 0.0 { 0.0 } else { sum });
    let bounds = prop::collection::btree_set(-20..20_i32, 0..12)
        .prop_map(|bounds| bounds.into_iter().map(f64::from).collect::<Vec<_>>());
    let odd_bounds = prop::collection::vec(prop_oneof![0.0..9.0, Just(f64::NAN), Just(f64::INFINITY)], 0..3);
    let bounds = prop_oneof![9 => bounds, 1 => odd_bounds];
    let threshold = prop_oneof![Just(0.0), Just(-0.0), Just(1e-9), Just(f64::NAN)];
    let zero_count = prop_oneof![6 => Just(0.0), 2 => 0.0..99.0, 1 => Just(-1.0), 1 => Just(f64::NAN)];
    let count = prop_oneof![9 => 0..5_u64, 1 => any::<u64>()];
    (
        (schema, sum, bounds, threshold, zero_count),
        (side(), side(), prop_oneof![8 => Just(0), 1 => -9..9_i32], any::<i64>(), 0..1_i64 << 45),
        (any::<bool>(), prop::bool::weighted(0.1), count, prop::bool::weighted(0.8)),
    )
        .prop_map(
            |((schema, sum, custom_values, zero_threshold, zero), sides, (is_float, is_mixed, more, is_tidy))| {
                let (positive, negative, reset_hint, timestamp, start_timestamp) = sides;
                let is_custom = schema == -53;
                // What does not go together is left out, mostly.
                let negative = if is_custom && is_tidy { (vec![], vec![], vec![]) } else { negative };
                let custom_values = if is_custom || !is_tidy { custom_values } else { vec![] };
                let zero = if is_custom && is_tidy { 0.0 } else { zero };
                let total = |deltas: &[i64]| {
                    deltas
                        .iter()
                        .scan(0_i64, |at, delta| {
                            *at = at.wrapping_add(*delta);
                            Some(*at)
                        })
                        .fold(0_i64, i64::wrapping_add)
                        .cast_unsigned()
                };
                let whole = total(&positive.1).wrapping_add(total(&negative.1)).wrapping_add(zero as u64);
                let more = if is_tidy && !sum.is_nan() { 0 } else { more };
                let zero_count =
                    if is_float != is_mixed { ProstZeroCount::Float(zero) } else { ProstZeroCount::Whole(zero as u64) };
                ProstHistogram {
                    count: Some(if is_float {
                        ProstCount::Float(more as f64)
                    } else {
                        ProstCount::Whole(whole.wrapping_add(more))
                    }),
                    sum,
                    schema,
                    zero_threshold: if is_custom && is_tidy { 0.0 } else { zero_threshold },
                    zero_count: (zero != 0.0 || is_mixed).then_some(zero_count),
                    negative_spans: negative.0,
                    negative_deltas: negative.1,
                    negative_counts: negative.2,
                    positive_spans: positive.0,
                    positive_deltas: positive.1,
                    positive_counts: positive.2,
                    reset_hint,
                    timestamp,
                    custom_values,
                    start_timestamp,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_message_is_refused_or_stored_as_it_should_be(message in any_histogram()) {
        let packed = decode_two(&message.encode_to_vec());
        check(&packed, &message);
        prop_assert_eq!(decode_two(&message.clone().unpacked()), packed);
        let of_1 = decode(Scanner::new(&message.encode_to_vec()), Version::One).unwrap();
        check(&of_1, &message.without_start());
    }

    #[test]
    fn a_damaged_message_never_panics(message in any_histogram(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut message = message.encode_to_vec();
        if !message.is_empty() {
            *at.get_mut(&mut message) = byte;
        }
        if let Ok(HistogramSample { value: Ok(Value::Histogram(numbers)), .. }) = decode(Scanner::new(&message), Version::Two) {
            prop_assert!(numbers.to_histogram().is_ok());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(message in any::<Vec<u8>>()) {
        let _ = decode(Scanner::new(&message), Version::One);
    }
}

#[test]
fn many_messages_are_of_each_sort() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut kinds = BTreeMap::<_, usize>::new();
    for _ in 0..4_000 {
        let message = any_histogram().new_tree(&mut runner).unwrap().current();
        let kind = match decode_two(&message.encode_to_vec()).value {
            Ok(Value::Float(_)) => "stale",
            Ok(Value::Histogram(_)) if message.schema == -53 => "custom",
            Ok(Value::Histogram(_)) => "exponential",
            Err(why) => why,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    assert!(kinds["custom"] > 100 && kinds["exponential"] > 400 && kinds.len() > 12, "{kinds:?}");
}

mod captures;
mod refusals;
