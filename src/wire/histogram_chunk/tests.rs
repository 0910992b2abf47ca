use proptest::prelude::*;
use prost::Message;

use super::decode::decode_with_layout;
use super::encode::encode_with;
use super::layout::Layout;
use super::*;
use crate::model::histogram::CUSTOM_BUCKETS;
use crate::model::sample::Value;
use crate::wire::bits::{BitReader, BitWriter};
use crate::wire::frame;
use crate::wire::read::messages::{Chunk, ChunkEncoding, ChunkedReadResponse};
use crate::wire::spans::{Span, to_indices};

fn sample(timestamp_ms: i64, histogram: Histogram) -> Sample {
    Sample { timestamp_ms, histogram: Some(histogram) }
}

fn counter(positive: &[(i32, f64)]) -> Histogram {
    let count = positive.iter().map(|(_, count)| count).sum();
    Histogram { count, positive: positive.to_vec(), ..Histogram::default() }
}

/// `bits` is the stream after the header; spaces are for the reader.
#[track_caller]
fn check(is_float: bool, samples: &[Sample], header: u8, bits: &str) {
    let bits: Vec<u8> = bits.bytes().filter(|&bit| bit != b' ').map(|bit| bit - b'0').collect();
    let mut expected = vec![0, samples.len() as u8, header];
    expected.extend(bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | bit << (7 - at))));
    let encoded = encode(is_float, samples);
    assert_eq!(encoded, expected, "{encoded:02x?} is not {expected:02x?}");
    let (_, _, decoded) = decode_with_layout(is_float, &expected).unwrap();
    let without_hint = |sample: &Sample| Sample {
        timestamp_ms: sample.timestamp_ms,
        histogram: sample.histogram.clone().map(|histogram| Histogram { reset_hint: 0, ..histogram }),
    };
    let [decoded, samples] = [&decoded, samples].map(|samples| samples.iter().map(without_hint).collect::<Vec<_>>());
    assert_eq!(decoded, samples);
}

fn zeros(len: usize) -> String {
    "0".repeat(len)
}

#[test]
fn known_bits_of_whole_counts() {
    let first = Histogram { reset_hint: RESET, ..counter(&[(2, 3.0), (3, 1.0)]) };
    let second = Histogram { zero_count: 1.0, sum: 1.0, ..counter(&[(2, 3.0), (3, 5.0)]) };
    let samples = [sample(1, first), sample(3, second), Sample { timestamp_ms: 5, histogram: None }];
    // Threshold 0, schema 0; one positive span of two buckets from 2, no negative one.
    let layout = "00000000 0 10001 10010 10010 0";
    // Time 1, count 4, no zeros, no sum; buckets 3 and -2 to that.
    let one = format!("10001 10100 0 {} 10011 10110", zeros(64));
    // A step of 2, the count by 4, the zero bucket by 1, the sum; the second bucket by 4 to the first.
    let two = "10010 10100 10001 11 00010 001010 1111111111 0 10100";
    // The same step; what is expected of the counts; the sum of a stale marker: bits 52 to 61 stay 1, bit 62 is new.
    let change = 1.0_f64.to_bits() ^ crate::model::sample::STALE_NAN_BITS;
    let three = format!("0 0 0 11 00001 111110 {:062b}", change >> 1);
    check(false, &samples, 0b1000_0000, &[layout, &one, two, &three].concat());
}

#[test]
fn known_bits_of_float_counts() {
    let gauge = |count, sum| Histogram {
        is_float: true,
        reset_hint: GAUGE,
        zero_threshold: 0.5,
        count,
        sum,
        negative: vec![(-1, count)],
        ..Histogram::default()
    };
    let samples = [sample(0, gauge(1.0, 0.0)), sample(0, gauge(2.0, 0.0))];
    let one = format!("{:064b}", 1.0_f64.to_bits());
    let layout = "11110011 0 0 10001 10001 10111";
    // From 1 to 2 eleven bits change, from the second on.
    let change = "11 00001 001011 11111111111";
    let stream = format!("{layout} 0 {one} {} {one} 0 {change} 0 0 {change}", zeros(128));
    assert_eq!(1.0_f64.to_bits() ^ 2.0_f64.to_bits(), 0b111_1111_1111 << 52);
    check(true, &samples, 0b1100_0000, &stream);
}

#[test]
fn thresholds_and_bounds() {
    let bits = |layout: &Layout| {
        let mut bits = BitWriter::after(vec![]);
        layout.write(&mut bits);
        let bytes = bits.finish();
        assert_eq!(Layout::read(&mut BitReader::new(&bytes)).as_ref(), Ok(layout));
        bytes.len()
    };
    let empty = Layout::of(&[]);
    for exponent in -300..300 {
        let layout = Layout { zero_threshold: 2.0_f64.powi(exponent), ..empty.clone() };
        assert_eq!(bits(&layout), if (-243..=10).contains(&exponent) { 2 } else { 10 }, "2^{exponent}");
    }
    for zero_threshold in [-0.5, 0.75, f64::INFINITY, f64::MIN_POSITIVE / 2.0] {
        assert_eq!(bits(&Layout { zero_threshold, ..empty.clone() }), 10);
    }
    // -53 takes 13 bits, no spans two, the number of bounds five; a bound as a multiple of 0.001, or 65 bits.
    let bound = |bound| bits(&Layout { schema: CUSTOM_BUCKETS, bounds: vec![bound], ..empty.clone() }) * 8;
    for (value, width) in [(0.0, 5), (0.006, 5), (0.007, 9), (0.1, 13), (33_554.43, 32), (33_554.431, 65)] {
        assert_eq!(bound(value), (8_usize + 13 + 2 + 5 + width).next_multiple_of(8), "{value}");
    }
    for value in [-1.0, 0.0005, 1e300, f64::INFINITY] {
        assert_eq!(bound(value), (8_usize + 13 + 2 + 5 + 65).next_multiple_of(8), "{value}");
    }
}

#[test]
fn a_chunk_ends_where_prometheus_ends_it() {
    let base = Histogram { zero_count: 5.0, ..counter(&[(0, 2.0), (4, 1.0)]) };
    let follows = |last: &Histogram, next: Histogram| may_follow(&sample(0, last.clone()), &sample(1, next));
    assert!(follows(&base, base.clone()));
    assert!(follows(&base, Histogram { positive: vec![(-3, 1.0), (0, 2.0), (4, 1.0), (9, 1.0)], ..base.clone() }));
    assert!(follows(&base, Histogram { reset_hint: NO_RESET, sum: -1.0, ..base.clone() }));
    let cuts = [
        Histogram { reset_hint: RESET, ..base.clone() },
        Histogram { reset_hint: GAUGE, ..base.clone() },
        Histogram { count: 2.0, ..base.clone() },
        Histogram { zero_count: 4.0, ..base.clone() },
        Histogram { positive: vec![(0, 2.0)], ..base.clone() },
        Histogram { positive: vec![(0, 1.0), (4, 1.0)], ..base.clone() },
        Histogram { schema: 1, ..base.clone() },
        Histogram { zero_threshold: 1.0, ..base.clone() },
        Histogram { bounds: vec![1.0], ..base.clone() },
    ];
    for next in cuts {
        assert!(!follows(&base, next.clone()), "{next:?}");
    }
    let negative = |count| Histogram { negative: vec![(1, count)], ..base.clone() };
    assert!(follows(&negative(1.0), negative(2.0)) && !follows(&negative(2.0), negative(1.0)));
    let gauge = Histogram { reset_hint: GAUGE, ..base.clone() };
    assert!(follows(&gauge, Histogram { count: 1.0, positive: vec![], ..gauge.clone() }));
    assert!(!follows(&gauge, base.clone()));
    let stale = Sample { timestamp_ms: 1, histogram: None };
    assert!(may_follow(&sample(0, base.clone()), &stale) && may_follow(&stale, &stale));
    assert!(!may_follow(&stale, &sample(2, base)));
}

/// Histograms as they may stand in one chunk: of each a time, counts, a sum, and buckets by their places in a layout.
fn any_samples() -> impl Strategy<Value = (bool, Vec<Sample>)> {
    let count = || prop_oneof![0..9_u64, 0..1_u64 << 53];
    let buckets = || prop::collection::btree_map(prop_oneof![-9..9, any::<i32>()], count(), 0..9);
    let step = prop_oneof![Just(15_000), -600_000..600_000_i64, any::<i64>()];
    let one = (step, prop::array::uniform2(count()), any::<u64>(), buckets(), buckets(), 0..10);
    (any::<bool>(), prop::bool::ANY, prop::collection::vec(one, 0..30)).prop_map(|(is_float, is_gauge, ones)| {
        let number = |count: u64| if is_float { count as f64 / 3.0 } else { count as f64 };
        let list = |buckets: std::collections::BTreeMap<i32, u64>| {
            buckets.into_iter().filter(|(_, count)| *count > 0).map(|(index, count)| (index, number(count))).collect()
        };
        let (mut timestamp_ms, mut samples) = (0_i64, Vec::new());
        for (step, [count, zero_count], sum, positive, negative, kind) in ones {
            timestamp_ms = timestamp_ms.wrapping_add(step);
            let is_stale = kind == 0 || samples.last().is_some_and(|last: &Sample| last.histogram.is_none());
            let histogram = Histogram {
                is_float,
                reset_hint: if is_gauge { GAUGE } else { 0 },
                zero_count: number(zero_count),
                count: number(count),
                sum: f64::from_bits(sum),
                positive: list(positive),
                negative: list(negative),
                ..Histogram::default()
            };
            samples.push(Sample { timestamp_ms, histogram: (!is_stale).then_some(histogram) });
        }
        (is_float, samples)
    })
}

proptest! {
    #[test]
    fn samples_survive((is_float, mut samples) in any_samples()) {
        let (_, _, decoded) = decode_with_layout(is_float, &encode(is_float, &samples)).unwrap();
        let starts_as_counter =
            samples.first().is_some_and(|one| one.histogram.as_ref().is_none_or(|one| one.reset_hint != GAUGE));
        if starts_as_counter {
            for histogram in samples.iter_mut().skip(1).filter_map(|sample| sample.histogram.as_mut()) {
                histogram.reset_hint = NO_RESET;
            }
        }
        prop_assert_eq!(decoded, samples);
    }

    #[test]
    fn a_truncated_chunk_is_an_error((is_float, samples) in any_samples(), at in any::<prop::sample::Index>()) {
        let chunk = encode(is_float, &samples);
        if !samples.is_empty() {
            prop_assert!(decode(is_float, &chunk[..at.index(chunk.len())]).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(is_float in any::<bool>(), chunk in any::<Vec<u8>>()) {
        let _ = decode(is_float, &chunk);
    }

    #[test]
    fn varbit_numbers_survive(numbers in prop::collection::vec((any::<i64>(), 0..64_u32), 0..50)) {
        let numbers: Vec<_> = numbers.into_iter().map(|(number, shift)| number >> shift).collect();
        let mut bits = BitWriter::after(vec![]);
        for &number in &numbers {
            bits.write_varbit_int(number);
            bits.write_varbit_uint(number.cast_unsigned());
        }
        let bytes = bits.finish();
        let mut bits = BitReader::new(&bytes);
        for number in numbers {
            prop_assert_eq!(bits.read_varbit_int(), Ok(number));
            prop_assert_eq!(bits.read_varbit_uint(), Ok(number.cast_unsigned()));
        }
    }
}

/// Returns the histogram of a sample in the captures.
fn captured(sample: &serde_json::Value) -> Histogram {
    let bits = |value: &serde_json::Value| {
        f64::from_bits(value.as_str().map_or(0, |hex| u64::from_str_radix(hex, 16).unwrap()))
    };
    let list = |name: &str| sample[name].as_array().cloned().unwrap_or_default();
    let is_float = !sample["count_float"].is_null();
    let count = |name: &str| match is_float {
        true => bits(&sample[format!("{name}_float")]),
        false => sample[format!("{name}_int")].as_u64().unwrap() as f64,
    };
    let buckets = |sign: &str| {
        let spans = list(&format!("{sign}_spans"));
        let span = |span: &serde_json::Value| Span {
            offset: span[0].as_i64().unwrap() as i32,
            length: span[1].as_u64().unwrap() as u32,
        };
        let indices = to_indices(&spans.iter().map(span).collect::<Vec<_>>(), 1000).unwrap();
        let counts: Vec<f64> = if is_float {
            list(&format!("{sign}_counts")).iter().map(bits).collect()
        } else {
            let deltas = list(&format!("{sign}_deltas"));
            let sums = deltas.iter().scan(0, |sum, delta| {
                *sum += delta.as_i64().unwrap();
                Some(*sum as f64)
            });
            sums.collect()
        };
        assert_eq!(indices.len(), counts.len());
        indices.into_iter().zip(counts).filter(|(_, count)| *count != 0.0).collect()
    };
    let hints = ["UNKNOWN", "YES", "NO", "GAUGE"];
    Histogram {
        schema: sample["schema"].as_i64().unwrap_or(0) as i8,
        is_float,
        reset_hint: hints.iter().position(|hint| sample["reset_hint"] == **hint).unwrap() as u8,
        start_ms: 0,
        zero_threshold: bits(&sample["zero_threshold"]),
        zero_count: count("zero_count"),
        count: count("count"),
        sum: bits(&sample["sum"]),
        bounds: list("custom_values").iter().map(bits).collect(),
        positive: buckets("positive"),
        negative: buckets("negative"),
    }
}

/// What Prometheus 3.14 sent is decoded as it decodes it, and encoded as it encodes it.
#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn chunks_of_prometheus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14/read");
    if !folder.is_dir() {
        eprintln!("skipped: there is no {}", folder.display());
        return;
    }
    let (mut chunks, mut stale, mut same_layout) = (0, 0, 0);
    for name in ["integer", "negative-buckets", "custom-buckets", "float"] {
        let path = |kind| folder.join(format!("histogram-{name}-stream.{kind}"));
        let body = std::fs::read(path("response.bin")).unwrap();
        let expected = std::fs::read_to_string(path("expected.jsonl")).unwrap();
        let (mut frames, mut lines) = (&body[..], expected.lines());
        while let Some(payload) = frame::read_frame(&mut frames, 1 << 20).unwrap() {
            let response = ChunkedReadResponse::decode(payload).unwrap();
            let expected: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
            let expected = expected["chunks"].as_array().unwrap();
            assert_eq!(response.chunked_series[0].chunks.len(), expected.len());
            for (chunk, expected) in response.chunked_series[0].chunks.iter().zip(expected) {
                let (stale_of, is_same) = check_chunk(chunk, expected["decoded"].as_array().unwrap());
                chunks += 1;
                stale += stale_of;
                same_layout += usize::from(is_same);
            }
        }
    }
    assert!(chunks >= 10 && stale > 0 && same_layout > 0, "{chunks} chunks, {stale} stale, {same_layout} the same");
}

/// Returns the number of stale markers in a chunk, and whether the layout chosen here is the same.
fn check_chunk(chunk: &Chunk, expected: &[serde_json::Value]) -> (usize, bool) {
    let is_float = chunk.encoding == i32::from(ChunkEncoding::FloatHistogram);
    assert!(is_float || chunk.encoding == i32::from(ChunkEncoding::Histogram));
    let Decoded { points, .. } = decode(is_float, &chunk.data).unwrap();
    assert_eq!(points.len(), expected.len());
    let mut stale = 0;
    for (point, expected) in points.iter().zip(expected) {
        assert_eq!(point.timestamp_ms, expected["t"].as_i64().unwrap());
        match &point.value {
            Value::Histogram(numbers) => assert_eq!(numbers.to_histogram().unwrap(), captured(expected)),
            Value::Float(_) => {
                assert_eq!(expected["sum"], "7ff0000000000002");
                stale += 1;
            }
        }
    }
    let (layout, reset_hint, mut samples) = decode_with_layout(is_float, &chunk.data).unwrap();
    if let Some(first) = samples[0].histogram.as_mut() {
        first.reset_hint = reset_hint;
    }
    assert_eq!(encode_with(&layout, is_float, &samples), chunk.data, "encoded again");
    assert!(samples.windows(2).all(|pair| may_follow(&pair[0], &pair[1])), "Prometheus put them into one chunk");
    let is_same = Layout::of(&samples) == layout;
    assert!(!is_same || encode(is_float, &samples) == chunk.data);
    (stale, is_same)
}
