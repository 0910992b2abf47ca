use proptest::prelude::*;

use super::*;
use crate::wire::read::messages::{QueryResult, ReadResponse};
use crate::wire::snappy;
use crate::wire::spans::{Span, to_indices};

fn float(timestamp_ms: i64, value: f64) -> Point {
    Point { timestamp_ms, value: Value::Float(value) }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_stored(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
}

#[test]
fn a_known_answer() {
    let series = time_series(&labels(&[("a", "b")]), [float(1234, 1.5)]).unwrap();
    let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }, QueryResult::default()] };
    let bytes = b"\x0a\x18\x0a\x16\x0a\x06\x0a\x01a\x12\x01b\x12\x0c\x09\0\0\0\0\0\0\xf8\x3f\x10\xd2\x09\x0a\x00";
    assert_eq!(response.encode_to_vec(), bytes);
}

#[test]
fn a_known_frame() {
    let mut encoder = SeriesEncoder::new(&labels(&[("a", "b")]), 1);
    encoder.push(float(5, 0.0)).unwrap();
    let mut out = Vec::new();
    encoder.write_frame(&mut out);
    let payload = [
        &b"\x0a\x1d"[..],                      // chunked_series, 29 bytes
        b"\x0a\x06\x0a\x01a\x12\x01b",         // a="b"
        b"\x12\x13\x08\x05\x10\x05\x18\x01",   // a chunk from 5 to 5, XOR
        b"\x22\x0b\0\x01\x0a\0\0\0\0\0\0\0\0", // its data
        b"\x10\x01",                           // query_index
    ]
    .concat();
    assert_eq!(frame::read_frame(&mut &out[..], 1 << 20), Ok(Some(&payload[..])));
}

#[test]
fn a_series_goes_on_after_a_frame() {
    let labels = labels(&[("__name__", "up")]);
    let mut encoder = SeriesEncoder::new(&labels, 0);
    let mut out = Vec::new();
    for timestamp_ms in 0..150 {
        encoder.push(float(timestamp_ms, 0.0)).unwrap();
        if timestamp_ms == 129 {
            encoder.write_frame(&mut out);
        }
    }
    assert!(!encoder.is_full());
    encoder.write_frame(&mut out);
    let mut stream = &out[..];
    let mut times = Vec::new();
    while let Some(payload) = frame::read_frame(&mut stream, 1 << 20).unwrap() {
        let response = ChunkedReadResponse::decode(payload).unwrap();
        assert_eq!(response.chunked_series.len(), 1);
        let series = &response.chunked_series[0];
        assert_eq!(series.labels, label_messages(&labels));
        times.push(series.chunks.iter().map(|chunk| (chunk.min_time_ms, chunk.max_time_ms)).collect::<Vec<_>>());
    }
    assert_eq!(times, [vec![(0, 119), (120, 129)], vec![(130, 149)]]);
}

proptest! {
    #[test]
    fn chunks_hold_every_sample_and_its_time(bits in prop::collection::vec(any::<u64>(), 0..500)) {
        let samples: Vec<_> =
            (0..).zip(bits).map(|(at, bits)| Sample { timestamp_ms: at * 15_000, value: f64::from_bits(bits) }).collect();
        let series = chunked_series(&Labels::default(), samples.iter().map(|sample| float(sample.timestamp_ms, sample.value))).unwrap();
        prop_assert_eq!(series.chunks.len(), samples.len().div_ceil(CHUNK_SAMPLES));
        for (chunk, expected) in series.chunks.iter().zip(samples.chunks(CHUNK_SAMPLES)) {
            prop_assert_eq!(xor::decode(&chunk.data).unwrap(), expected);
            prop_assert_eq!(chunk.min_time_ms, expected[0].timestamp_ms);
            prop_assert_eq!(chunk.max_time_ms, expected[expected.len() - 1].timestamp_ms);
        }
    }

}

fn histogram_point(timestamp_ms: i64, histogram: &histogram::Histogram) -> Point {
    Point { timestamp_ms, value: Value::Histogram(histogram.to_numbers()) }
}

fn stale(timestamp_ms: i64) -> Point {
    float(timestamp_ms, f64::from_bits(STALE_NAN_BITS))
}

/// Returns the points of a chunk and its encoding.
fn decode_chunk(chunk: &Chunk) -> (ChunkEncoding, Vec<Point>) {
    let encoding = ChunkEncoding::try_from(chunk.encoding).unwrap();
    let decode = |is_float| histogram_chunk::decode(is_float, &chunk.data).unwrap().points;
    let points = match encoding {
        ChunkEncoding::Histogram => decode(false),
        ChunkEncoding::FloatHistogram => decode(true),
        _ => xor::decode(&chunk.data).unwrap().iter().map(|one| float(one.timestamp_ms, one.value)).collect(),
    };
    (encoding, points)
}

/// Returns the histogram that a message tells, as a client reads it.
fn told(message: &Histogram) -> Point {
    let is_float = message.count_float.is_some();
    assert_eq!([message.count_int.is_some(), message.zero_count_int.is_some()], [!is_float; 2]);
    assert_eq!(message.zero_count_float.is_some(), is_float);
    let number = |whole: Option<u64>, float: Option<f64>| whole.map_or(float.unwrap_or(0.0), |count| count as f64);
    let buckets = |spans: &[BucketSpan], deltas: &[i64], counts: &[f64]| {
        let spans: Vec<_> = spans.iter().map(|span| Span { offset: span.offset, length: span.length }).collect();
        let sums = deltas.iter().scan(0, |sum, delta| {
            *sum += delta;
            Some(*sum as f64)
        });
        let counts: Vec<f64> = sums.chain(counts.iter().copied()).collect();
        let indices = to_indices(&spans, 1000).unwrap();
        assert_eq!(indices.len(), counts.len());
        indices.into_iter().zip(counts).filter(|(_, count)| *count != 0.0).collect()
    };
    if message.sum.unwrap_or(0.0).to_bits() == STALE_NAN_BITS {
        return stale(message.timestamp);
    }
    let histogram = histogram::Histogram {
        schema: message.schema as i8,
        is_float,
        reset_hint: message.reset_hint as u8,
        start_ms: 0,
        zero_threshold: message.zero_threshold.unwrap_or(0.0),
        zero_count: number(message.zero_count_int, message.zero_count_float),
        count: number(message.count_int, message.count_float),
        sum: message.sum.unwrap_or(0.0),
        bounds: message.custom_values.clone(),
        positive: buckets(&message.positive_spans, &message.positive_deltas, &message.positive_counts),
        negative: buckets(&message.negative_spans, &message.negative_deltas, &message.negative_counts),
    };
    histogram_point(message.timestamp, &histogram)
}

#[test]
fn a_stale_marker_is_of_the_kind_before_it() {
    let whole = histogram::Histogram { count: 1.0, ..Default::default() };
    let floats = histogram::Histogram { is_float: true, ..whole.clone() };
    let points = [
        stale(0),
        float(1, 1.0),
        stale(2),
        histogram_point(3, &whole),
        stale(4),
        stale(5),
        histogram_point(6, &whole),
        histogram_point(7, &floats),
        stale(8),
        float(9, 1.0),
        stale(10),
    ];
    let series = chunked_series(&Labels::default(), points.clone()).unwrap();
    let chunks: Vec<_> = series.chunks.iter().map(decode_chunk).collect();
    let kinds = [
        (ChunkEncoding::Xor, 3),
        (ChunkEncoding::Histogram, 3),
        (ChunkEncoding::Histogram, 1),
        (ChunkEncoding::FloatHistogram, 2),
        (ChunkEncoding::Xor, 2),
    ];
    assert_eq!(chunks.iter().map(|(kind, points)| (*kind, points.len())).collect::<Vec<_>>(), kinds);
    assert_eq!(chunks.into_iter().flat_map(|(_, points)| points).collect::<Vec<_>>(), points);
    let series = time_series(&Labels::default(), points).unwrap();
    let times = |times: &[i64], expected: &[i64]| assert_eq!(times, expected);
    times(&series.samples.iter().map(|one| one.timestamp).collect::<Vec<_>>(), &[0, 1, 2, 9, 10]);
    times(&series.histograms.iter().map(|one| one.timestamp).collect::<Vec<_>>(), &[3, 4, 5, 6, 7, 8]);
    assert_eq!(series.histograms[5].count_float, Some(0.0));
}

/// A series of histograms may be cut into frames anywhere, also before a stale marker.
#[test]
fn a_run_of_histograms_goes_on_after_a_frame() {
    let mut encoder = SeriesEncoder::new(&Labels::default(), 0);
    let mut out = Vec::new();
    for timestamp_ms in 0..CHUNK_SAMPLES as i64 + 10 {
        encoder.push(histogram_point(timestamp_ms, &histogram::Histogram::default())).unwrap();
    }
    encoder.write_frame(&mut out);
    encoder.push(stale(500)).unwrap();
    encoder.write_frame(&mut out);
    let mut stream = &out[..];
    let mut times = Vec::new();
    while let Some(payload) = frame::read_frame(&mut stream, 1 << 20).unwrap() {
        for chunk in &ChunkedReadResponse::decode(payload).unwrap().chunked_series[0].chunks {
            assert_eq!(decode_chunk(chunk).0, ChunkEncoding::Histogram);
            times.push((chunk.min_time_ms, chunk.max_time_ms));
        }
    }
    assert_eq!(times, [(0, 119), (120, 129), (500, 500)]);
}

#[test]
fn what_waits_for_a_chunk_is_bounded() {
    let positive = (0..WAITING_BUCKETS as i32 / 3).map(|index| (index, 1.0)).collect();
    let large = histogram::Histogram { positive, ..Default::default() };
    let points = (0..8).map(|timestamp_ms| histogram_point(timestamp_ms, &large));
    let series = chunked_series(&Labels::default(), points).unwrap();
    assert_eq!(series.chunks.iter().map(|chunk| decode_chunk(chunk).1.len()).collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn corrupt_numbers_are_an_error() {
    let corrupt = || Point { timestamp_ms: 0, value: Value::Histogram(Numbers::from_stored(vec![0.0])) };
    assert!(time_series(&Labels::default(), [corrupt()]).is_err());
    assert!(chunked_series(&Labels::default(), [corrupt()]).is_err());
}

/// What comes next in a series.
#[derive(Clone, Debug)]
enum Next {
    Float(u64),
    Stale,
    /// A histogram of its own.
    New(histogram::Histogram),
    /// The last histogram with more in some buckets, and a hint.
    More(Vec<(i32, u32)>, u8),
    /// The last histogram without a bucket.
    Less(prop::sample::Index),
}

fn any_histogram() -> impl Strategy<Value = histogram::Histogram> {
    let buckets = || prop::collection::btree_map(-9_i32..9, 1_u32.., 0..6);
    let threshold = prop_oneof![Just(0.0), Just(2.0_f64.powi(-128)), Just(0.001), (0.0_f64..1.0)];
    // A bound of -0 is sent as 0, which is equal.
    let bound =
        prop_oneof![(0_u32..40_000_000).prop_map(|n| f64::from(n) / 1000.0), any::<f64>().prop_map(|n| n + 0.0)];
    let shape = (-4_i8..=8, any::<bool>(), 0_u8..4, threshold, prop::option::of(prop::collection::vec(bound, 0..5)));
    (shape, any::<u64>(), 0_u32..9, buckets(), buckets()).prop_map(|(shape, sum, zeros, positive, negative)| {
        let (schema, is_float, reset_hint, zero_threshold, bounds) = shape;
        let number = |count: u32| if is_float { f64::from(count) / 3.0 } else { f64::from(count) };
        let list = |buckets: std::collections::BTreeMap<i32, u32>| {
            buckets.into_iter().map(|(index, count)| (index, number(count))).collect::<Vec<_>>()
        };
        let is_custom = bounds.is_some();
        let positive = list(positive);
        histogram::Histogram {
            schema: if is_custom { histogram::CUSTOM_BUCKETS } else { schema },
            is_float,
            reset_hint,
            start_ms: 0,
            zero_threshold: if is_custom { 0.0 } else { zero_threshold },
            zero_count: if is_custom { 0.0 } else { number(zeros) },
            count: positive.iter().fold(0.0, |sum, (_, count)| sum + count),
            sum: if sum == STALE_NAN_BITS { 0.0 } else { f64::from_bits(sum) },
            bounds: bounds.unwrap_or_default(),
            positive,
            negative: if is_custom { Vec::new() } else { list(negative) },
        }
    })
}

fn any_points() -> impl Strategy<Value = Vec<Point>> {
    let more = (prop::collection::vec((-9_i32..9, 1_u32..99), 0..4), prop_oneof![8 => Just(0_u8), 1 => 1_u8..3]);
    let next = prop_oneof![
        2 => any::<u64>().prop_map(Next::Float),
        1 => Just(Next::Stale),
        2 => any_histogram().prop_map(Next::New),
        30 => more.prop_map(|(buckets, hint)| Next::More(buckets, hint)),
        1 => any::<prop::sample::Index>().prop_map(Next::Less),
    ];
    (any_histogram(), prop::collection::vec(next, 0..300)).prop_map(|(mut last, nexts)| {
        let mut points = Vec::new();
        for (timestamp_ms, next) in (0..).step_by(15_000).zip(nexts) {
            match next {
                Next::Float(bits) => {
                    points.push(float(timestamp_ms, f64::from_bits(bits)));
                    continue;
                }
                Next::Stale => {
                    points.push(stale(timestamp_ms));
                    continue;
                }
                Next::New(histogram) => last = histogram,
                Next::More(buckets, hint) => {
                    for (index, count) in buckets {
                        let count = f64::from(count);
                        last.count += count;
                        match last.positive.binary_search_by_key(&index, |(index, _)| *index) {
                            Ok(at) => last.positive[at].1 += count,
                            Err(at) => last.positive.insert(at, (index, count)),
                        }
                    }
                    if last.reset_hint != histogram_chunk::GAUGE {
                        last.reset_hint = hint;
                    }
                }
                Next::Less(at) if !last.positive.is_empty() => {
                    let at = at.index(last.positive.len());
                    last.positive.remove(at);
                }
                Next::Less(_) => {}
            }
            points.push(histogram_point(timestamp_ms, &last));
        }
        points
    })
}

fn with_hint(point: &Point, reset_hint: u8) -> Point {
    let Value::Histogram(numbers) = &point.value else { return point.clone() };
    let histogram = histogram::Histogram { reset_hint, ..numbers.to_histogram().unwrap() };
    histogram_point(point.timestamp_ms, &histogram)
}

/// Returns a point that says nothing of a reset instead of that there was none.
fn without_no(point: &Point) -> Point {
    match as_histogram(point) {
        Some(histogram) if histogram.reset_hint == NO_RESET => with_hint(point, 0),
        _ => point.clone(),
    }
}

fn as_histogram(point: &Point) -> Option<histogram::Histogram> {
    let Value::Histogram(numbers) = &point.value else { return None };
    Some(numbers.to_histogram().unwrap())
}

/// Returns `true` if every count of a histogram is at least what it was.
fn grows(last: &histogram::Histogram, next: &histogram::Histogram) -> bool {
    let count = |buckets: &[(i32, f64)], index| buckets.iter().find(|one| one.0 == index).map_or(0.0, |one| one.1);
    let buckets = |last: &[(i32, f64)], next: &[(i32, f64)]| last.iter().all(|one| count(next, one.0) >= one.1);
    next.count >= last.count
        && next.zero_count >= last.zero_count
        && buckets(&last.positive, &next.positive)
        && buckets(&last.negative, &next.negative)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn chunks_hold_every_point(points in any_points()) {
        let series = chunked_series(&Labels::default(), points.clone()).unwrap();
        let (mut rest, mut run) = (&points[..], ChunkEncoding::Xor);
        for chunk in &series.chunks {
            let (encoding, decoded) = decode_chunk(chunk);
            let (expected, after) = rest.split_at(decoded.len());
            rest = after;
            prop_assert!(decoded.len() <= CHUNK_SAMPLES);
            prop_assert_eq!(chunk.min_time_ms, expected[0].timestamp_ms);
            prop_assert_eq!(chunk.max_time_ms, expected[expected.len() - 1].timestamp_ms);
            for (index, (decoded, expected)) in decoded.iter().zip(expected).enumerate() {
                let stored = as_histogram(expected);
                run = match &stored {
                    Some(stored) if stored.is_float => ChunkEncoding::FloatHistogram,
                    Some(_) => ChunkEncoding::Histogram,
                    None if *expected == stale(expected.timestamp_ms) => run,
                    None => ChunkEncoding::Xor,
                };
                prop_assert_eq!(encoding, run);
                let hint = match &stored {
                    Some(stored) if stored.reset_hint == histogram_chunk::GAUGE => histogram_chunk::GAUGE,
                    _ if index > 0 => NO_RESET,
                    _ => 0,
                };
                prop_assert_eq!(decoded, &with_hint(expected, hint));
            }
            for pair in expected.windows(2) {
                if let (Some(last), Some(next)) = (as_histogram(&pair[0]), as_histogram(&pair[1]))
                    && next.reset_hint != histogram_chunk::GAUGE
                {
                    prop_assert!(grows(&last, &next) && next.reset_hint != histogram_chunk::RESET);
                }
            }
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn samples_hold_every_point(points in any_points()) {
        let series = time_series(&Labels::default(), points.clone()).unwrap();
        let series = TimeSeries::decode(&series.encode_to_vec()[..]).unwrap();
        let floats = series.samples.iter().map(|one| float(one.timestamp, one.value.unwrap_or(0.0)));
        let mut told: Vec<_> = floats.chain(series.histograms.iter().map(told)).collect();
        told.sort_by_key(|point| point.timestamp_ms);
        let expected: Vec<_> = points.iter().map(without_no).collect();
        prop_assert_eq!(told, expected);
    }
}

/// The samples that Prometheus 3.14 sent are those of its chunks, and so are ours.
#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn samples_of_prometheus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14/read");
    if !folder.is_dir() {
        eprintln!("skipped: there is no {}", folder.display());
        return;
    }
    for name in ["integer", "negative-buckets", "custom-buckets", "float"] {
        let body = |kind| std::fs::read(folder.join(format!("histogram-{name}-{kind}.response.bin"))).unwrap();
        let block = snappy::decompress(&body("samples"), 1 << 20, Vec::new()).unwrap();
        let samples = ReadResponse::decode(&block[..]).unwrap();
        let samples = &samples.results[0].timeseries[0];
        let stream = body("stream");
        let payload = frame::read_frame(&mut &stream[..], 1 << 20).unwrap().unwrap();
        let chunked = ChunkedReadResponse::decode(payload).unwrap();
        let points: Vec<_> = chunked.chunked_series[0].chunks.iter().flat_map(|chunk| decode_chunk(chunk).1).collect();
        // Prometheus has seen what is before the first sample, so it may know more of that than its chunk tells.
        let points: Vec<_> = points.iter().map(without_no).collect();
        let theirs: Vec<_> = samples.histograms.iter().map(|message| without_no(&told(message))).collect();
        assert_eq!(theirs, points);
        let ours = time_series(&Labels::default(), points.iter().cloned()).unwrap();
        assert_eq!(ours.histograms.iter().map(told).collect::<Vec<_>>(), points);
    }
}
