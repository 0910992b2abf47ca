use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::storage::row::sort_and_dedup;
use crate::wire::{snappy, write::v1};

const STALE: u64 = 0x7ff0_0000_0000_0002;

/// Returns the bits of every value, because NaN is not equal to itself.
fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[track_caller]
fn check_round_trip(chunk: &Chunk) -> Vec<Encoded> {
    let rows = encode(chunk);
    let mut found = Vec::new();
    for row in &rows {
        let decoded = row.decode().unwrap();
        assert_eq!((decoded.bucket, &decoded.times_ms), (chunk.bucket, &chunk.times_ms));
        assert_eq!((row.first_ms, Some(&row.last_ms)), (chunk.times_ms[0], chunk.times_ms.last()));
        for (place, values) in &decoded.series {
            let alone = row.decode_series(*place, &chunk.times_ms).unwrap().unwrap();
            assert_eq!(bits(&alone), bits(values));
        }
        found.extend(decoded.series);
        assert!(row.places.count() == 1 || row.bytes() <= 2032, "{:?} in {} bytes", row.places, row.bytes());
    }
    assert_eq!(found.len(), chunk.series.len());
    for ((place, values), (expected_place, expected)) in found.iter().zip(&chunk.series) {
        assert_eq!((place, bits(values)), (expected_place, bits(expected)));
    }
    rows
}

/// Builds a chunk of one series, with a sample every 15 s.
fn chunk_of(values: Vec<f64>) -> Chunk {
    let times_ms = (0..values.len() as i64).map(|n| 1_700_000_000_000 + n * 15_000).collect();
    Chunk { bucket: 7, times_ms, series: vec![(3, values)] }
}

/// Returns the bits of a series' stream.
#[track_caller]
fn cost_of(values: Vec<f64>) -> usize {
    let rows = check_round_trip(&chunk_of(values));
    rows[0].data.len + rows[0].floats.len() * 64
}

fn any_bits() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        prop::sample::select(vec![
            STALE,
            0x7ff8_0000_0000_0001,
            0xfff0_dead_beef_0001,
            f64::INFINITY.to_bits(),
            f64::NEG_INFINITY.to_bits(),
            (-0.0_f64).to_bits(),
            0,
            1,
            f64::MIN_POSITIVE.to_bits(),
            f64::MAX.to_bits(),
            f64::MIN.to_bits(),
            9_007_199_254_740_991_f64.to_bits(),
            9_007_199_254_740_992_f64.to_bits(),
            9_007_199_254_740_994_f64.to_bits(),
        ])
        .prop_map(f64::from_bits),
    ]
}

/// Generates `count` values like those of exporters.
fn any_values(count: usize) -> impl Strategy<Value = Vec<f64>> {
    let list = move |strategy: BoxedStrategy<f64>| prop::collection::vec(strategy, count).boxed();
    let steps = move |strategy: BoxedStrategy<f64>| {
        list(strategy).prop_map(|steps| {
            steps
                .iter()
                .scan(0.0, |sum, step| {
                    Some({
                        *sum += step;
                        *sum
                    })
                })
                .collect()
        })
    };
    let kinds = prop_oneof![
        any_bits().prop_map(move |value| vec![value; count]),
        list(any_bits().boxed()),
        list((0..1000_u32).prop_map(f64::from).boxed()),
        (any::<i32>(), 2..10_000).prop_flat_map(move |(first, factor)| {
            list((0..1000_i32).prop_map(move |n| f64::from(first) + f64::from(n) * f64::from(factor)).boxed())
        }),
        list((any::<i32>(), 0..12).prop_map(|(n, e)| f64::from(n) / 10_f64.powi(e)).boxed()),
        (1..10)
            .prop_flat_map(move |e: i32| list(any::<i32>().prop_map(move |n| f64::from(n) / 10_f64.powi(e)).boxed())),
        (1..10)
            .prop_flat_map(move |e: i32| list((0..1 << 20).prop_map(move |n| f64::from(n) * 10_f64.powi(-e)).boxed())),
        (any_bits(), any_bits()).prop_flat_map(move |(a, b)| list(prop::sample::select(vec![a, b]).boxed())),
        steps((0..100_u32).prop_map(f64::from).boxed()),
        steps(prop_oneof![9 => Just(0.0), 1 => (0..5_u32).prop_map(f64::from)].boxed()),
        steps((0.0..0.1).boxed()),
        // Sums of nanoseconds, and microseconds that were divided by a thousand twice.
        steps((0..1_u32 << 30).prop_map(|n| f64::from(n) / 1e9).boxed()),
        steps((0..1_u32 << 20).prop_map(f64::from).boxed())
            .prop_map(|values: Vec<f64>| values.iter().map(|value| value / 1000.0 / 1000.0).collect()),
        steps((0.0..1e19).boxed()),
    ];
    let odd = prop::collection::vec((0..count, any_bits()), 0..4);
    let reset = prop::option::of(0..count);
    (kinds, odd, reset).prop_map(|(mut values, odd, reset): (Vec<f64>, _, _)| {
        if let Some(at) = reset {
            let lost = values[at];
            for value in values[at..].iter_mut().filter(|value| value.is_finite()) {
                *value -= lost;
            }
        }
        for (at, value) in odd {
            values[at] = value;
        }
        values
    })
}

fn any_times(count: usize) -> impl Strategy<Value = Vec<i64>> {
    let span = TIME_MAX_MS - TIME_MIN_MS;
    let step = move || prop_oneof![4 => Just(15_000), 2 => 14_990_i64..15_010, 1 => 1..100_000_000_i64, 1 => 1..=span / count as i64];
    let steps = prop_oneof![prop::collection::vec(step(), count), step().prop_map(move |step| vec![step; count]),];
    (steps, any::<prop::sample::Index>()).prop_map(move |(steps, begin)| {
        let mut times: Vec<i64> = steps
            .iter()
            .scan(0, |sum, step| {
                Some({
                    *sum += step;
                    *sum
                })
            })
            .collect();
        let room = span - (times[times.len() - 1] - times[0]);
        let offset = TIME_MIN_MS - times[0] + (begin.index(usize::MAX) as i64).rem_euclid(room.max(1));
        times.iter_mut().for_each(|time| *time += offset);
        times
    })
}

fn any_chunk() -> impl Strategy<Value = Chunk> {
    let count = prop_oneof![1..6_usize, 1..400_usize, 125..132_usize];
    let places = prop::sample::subsequence((0..32).collect::<Vec<u32>>(), 1..=6);
    (any::<i32>(), count, places).prop_flat_map(|(bucket, count, places)| {
        let series = places.into_iter().map(|place| (Just(place), any_values(count))).collect::<Vec<_>>();
        (any_times(count), series).prop_map(move |(times_ms, series)| Chunk {
            bucket: i64::from(bucket),
            times_ms,
            series,
        })
    })
}

proptest! {
    #[test]
    fn every_bit_comes_back(chunk in any_chunk()) {
        check_round_trip(&chunk);
    }

    #[test]
    fn any_single_flipped_bit_is_found(chunk in any_chunk(), at in any::<prop::sample::Index>(), in_times: bool) {
        let mut encoded = encode(&chunk).swap_remove(0);
        let bits = if in_times { &mut encoded.times } else { &mut encoded.data };
        let at = at.index(bits.len);
        bits.bytes[at / 8] ^= 0x80 >> (at % 8);
        prop_assert!(encoded.decode().is_err());
    }

    #[test]
    fn a_truncated_stream_is_found(chunk in any_chunk(), at in any::<prop::sample::Index>(), in_times: bool) {
        let mut encoded = encode(&chunk).swap_remove(0);
        let bits = if in_times { &mut encoded.times } else { &mut encoded.data };
        bits.len = at.index(bits.len);
        bits.bytes.truncate(bits.len.div_ceil(8));
        // The check has only eight bits and may match by chance; then the number of samples differs.
        if let Ok(decoded) = encoded.decode() {
            prop_assert_ne!(decoded, encode(&chunk)[0].decode().unwrap());
        }
    }

    #[test]
    fn garbage_is_no_panic(
        times in any::<Vec<u8>>(),
        data in any::<Vec<u8>>(),
        cut in 0..8_usize,
        places in any::<i32>(),
        floats in prop::collection::vec(any_bits(), 0..3),
    ) {
        let bits = |bytes: Vec<u8>| Bits { len: (bytes.len() * 8).saturating_sub(cut), bytes };
        let places = Places(places);
        let encoded = Encoded { times: bits(times), data: bits(data), places, floats, ..Encoded::default() };
        let _ = encoded.decode();
        let _ = encoded.times();
        for place in 0..40 {
            let _ = encoded.decode_series(place, &[1, 2, 3]);
        }
    }

    /// Garbage with a matching check is decoded further.
    #[test]
    fn garbage_behind_a_check_is_no_panic(
        words in prop::collection::vec(any::<(u64, bool)>(), 0..40),
        head in 0..64_u64,
        count in 1..400_usize,
    ) {
        let mut stream = Writer::default();
        stream.put(head, 6);
        words.iter().for_each(|(word, sparse)| stream.put(if *sparse { word & word >> 7 & word >> 13 } else { *word } >> 1, 63));
        put_check(&mut stream, 0);
        let encoded = Encoded { data: stream.finish(), places: Places(1), ..Encoded::default() };
        let _ = encoded.decode_series(0, &vec![0; count]);
    }

    #[test]
    fn every_row_is_in_one_chunk(
        rows in prop::collection::vec((-70..70_i64, prop_oneof![0..6_i64, 0..1000_i64]), 0..300),
        common in prop::collection::vec(-70..70_i64, 0..40),
        samples_max in 1..20_usize,
    ) {
        let mut rows: Vec<_> = rows
            .into_iter()
            .chain(common.iter().flat_map(|id| (0..30).map(|n| (*id, 2000 + n))))
            .map(|(series_id, time_ms)| Row { series_id, time_ms, value: Value::Float((series_id * 7919 + time_ms) as f64) })
            .collect();
        sort_and_dedup(&mut rows);
        let mut found = Vec::new();
        for chunk in chunks(&rows, samples_max) {
            prop_assert!((1..=samples_max).contains(&chunk.times_ms.len()));
            prop_assert!(chunk.series.is_sorted_by_key(|(place, _)| *place));
            for (place, values) in &chunk.series {
                prop_assert_eq!(values.len(), chunk.times_ms.len());
                let series_id = series_at(chunk.bucket, *place);
                found.extend(chunk.times_ms.iter().zip(values).map(|(time_ms, value)| (series_id, *time_ms, *value)));
            }
        }
        found.sort_by_key(|(series_id, time_ms, _)| (*series_id, *time_ms));
        let expected: Vec<_> = rows.iter().map(|row| (row.series_id, row.time_ms, float(row))).collect();
        prop_assert_eq!(found, expected);
    }
}

/// Returns the chunks of rows in the order of series and time.
fn chunks(rows: &[Row], samples_max: usize) -> Vec<Chunk> {
    let buckets = rows.chunk_by(|one, next| bucket_of(one.series_id) == bucket_of(next.series_id));
    let series = |rows: &'_ [Row]| group(rows.chunk_by(|one, next| one.series_id == next.series_id), samples_max);
    buckets.flat_map(series).collect()
}

#[test]
fn series_scraped_together_share_a_chunk() {
    let rows: Vec<_> = (0..100_i64)
        .flat_map(|series_id| (0..50).map(move |n| Row { series_id, time_ms: n * 1000, value: Value::Float(1.0) }))
        .filter(|row| row.series_id != 40 || row.time_ms != 9000)
        .collect();
    let shapes: Vec<_> =
        chunks(&rows, 30).into_iter().map(|chunk| (chunk.bucket, chunk.times_ms.len(), chunk.series.len())).collect();
    let expected = [
        (0, 25, 32),
        (0, 25, 32),
        (1, 25, 31),
        (1, 25, 31),
        (1, 24, 1),
        (1, 25, 1),
        (2, 25, 32),
        (2, 25, 32),
        (3, 25, 4),
        (3, 25, 4),
    ];
    assert_eq!(shapes, expected);
}

#[test]
fn what_exporters_send_is_small() {
    let n = || 0..480_u32;
    let noise = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    assert_eq!(cost_of(vec![1.0; 480]), 26);
    assert_eq!(cost_of(n().map(f64::from).collect()), 32);
    // A flag that changes twice.
    assert!(cost_of(n().map(|n| f64::from(u8::from((100..300).contains(&n)))).collect()) < 90);
    // A counter that grows by 0 to 15: 4 bits.
    let counter = |n: u32| (0..n).map(|n| noise(n) % 16).sum::<u64>() as f64;
    assert!(cost_of(n().map(counter).collect()) < 480 * 4 + 120);
    // Decimals of three digits: 10 bits.
    let decimal = |n: u32| (noise(n) % 1000) as f64 / 1000.0;
    assert!(cost_of(n().map(decimal).collect()) < 480 * 10 + 120);
    // The same decimals as computed by an exporter that multiplies.
    let product = |n: u32| (noise(n) % 1000 + 8000) as f64 * 0.001;
    assert!(cost_of(n().map(product).collect()) < 480 * 10 + 120);
    // Sizes in pages: their common factor is stored once.
    let pages = |n: u32| (noise(n) % 1000 * 4096 + 77) as f64;
    assert!(cost_of(n().map(pages).collect()) < 480 * 10 + 150);
    // The same with a stale marker at the end, and NaNs at the beginning and in between.
    let mut values: Vec<_> = n().map(decimal).collect();
    values[479] = f64::from_bits(STALE);
    (values[0], values[1], values[200]) = (f64::NAN, f64::NAN, f64::NAN);
    assert!(cost_of(values) < 480 * 10 + 400);
    // A sum of durations that grows by about a nanosecond: few of its 53 bits change.
    let mut sum = 123.456;
    let sums: Vec<_> = n()
        .map(|n| {
            sum += (noise(n) % 1000) as f64 * 1.1e-12;
            sum
        })
        .collect();
    assert!(cost_of(sums) < 480 * 20);
    // A sum of durations of up to a second in nanoseconds: 30 bits, and some for the rounding of each sum.
    let mut sum = 123.456;
    let mut duration_sum = |n: u32| {
        sum += (noise(n) % (1 << 30)) as f64 / 1e9;
        sum
    };
    assert!(cost_of(n().map(&mut duration_sum).collect()) < 480 * 37);
    // Microseconds that were divided by a thousand twice: each quotient is rounded.
    let twice = |n: u32| (u64::from(n) * 1_000_000 + noise(n) % 100_000) as f64 / 1000.0 / 1000.0;
    assert!(cost_of(n().map(twice).collect()) < 480 * 22);
    // Arbitrary floats with few different values.
    let flip = |n: u32| f64::from_bits(if noise(n) % 2 == 0 { STALE } else { 0x7ff8_dead_beef_0001 });
    assert!(cost_of(n().map(flip).collect()) < 480 + 300);
    // Noise in every bit does not become much larger.
    let any = |n: u32| f64::from_bits(u64::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    assert!(cost_of(n().map(any).collect()) < 480 * 64 + 100);
}

#[test]
fn the_longest_chunk_comes_back() {
    let noise = |n: u64| f64::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    check_round_trip(&chunk_of((0..SAMPLES_MAX as u64).map(noise).collect()));
}

#[test]
fn a_damaged_frame_is_told() {
    let good = encode(&chunk_of(vec![1.0, f64::NAN, 2.5])).swap_remove(0);
    let check = |damage: fn(&mut Encoded), why: &str| {
        let mut encoded = good.clone();
        damage(&mut encoded);
        let error = encoded.decode().unwrap_err().to_string();
        assert!(error.contains(why), "{error} is not about {why:?}");
    };
    check(|encoded| encoded.first_ms -= 1, "its times are not from");
    check(|encoded| encoded.last_ms += 1, "its times are not from");
    check(|encoded| encoded.places = Places(1 << 4), "check");
    check(|encoded| encoded.places = Places(3 << 3), "at place 3");
    check(|encoded| encoded.data = Bits { len: 5, bytes: vec![0] }, "bits");
    check(|encoded| encoded.floats.clear(), "float 0 of 0");
    check(|encoded| encoded.data.bytes.push(0), "in 11 bytes");
}

/// Runs only if the captures are available; they are too large for the repository.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so, and a figure is of use")]
fn what_a_real_pair_sent_is_small() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-2.42-pair/a");
    let Ok(entries) = captures.read_dir() else {
        eprintln!("skipped: no captures in {}", captures.display());
        return;
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut ids, mut rows) = (BTreeMap::new(), Vec::new());
    for file in &files {
        let body = snappy::decompress(&std::fs::read(file).unwrap(), 32 << 20, vec![]).unwrap();
        let request = v1::decode(&body).unwrap();
        for series in &request.series {
            let next = ids.len() as i64;
            let series_id = *ids.entry(series.labels.to_vec()).or_insert(next);
            rows.extend(request.samples_of(series).iter().map(|sample| Row {
                series_id,
                time_ms: sample.timestamp_ms,
                value: Value::Float(sample.value),
            }));
        }
    }
    sort_and_dedup(&mut rows);
    let (mut samples, mut bytes) = (0, 0);
    for chunk in chunks(&rows, 480) {
        samples += chunk.times_ms.len() * chunk.series.len();
        for row in check_round_trip(&chunk) {
            bytes += row.bytes();
        }
    }
    assert_eq!(samples, rows.len());
    let each = bytes as f64 / samples as f64;
    eprintln!("{each:.3} bytes/sample, {samples} samples of {} series", ids.len());
    assert!(each < 0.35, "{each} bytes/sample");
}
