//! Sealed chunks of floats.

use prometheus_postgresql_adapter::storage::chunk::{
    Bits, Chunk, Encoded, Places, SAMPLES_MAX, bucket_of, encode, group, place_of, series_at,
};
use prometheus_postgresql_adapter::storage::row::{Row, TIME_MAX_MS, TIME_MIN_MS, is_of_histograms};

use crate::bits;
use crate::input::{Input, Output};
use crate::seeds::Captures;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => arbitrary(&mut input),
        1 => streams(&mut input),
        _ => samples(&mut input),
    }
}

/// Decodes columns with anything in them.
fn arbitrary(input: &mut Input<'_>) {
    let column = |input: &mut Input<'_>| {
        let len = input.up_to(4000);
        let bytes = input.bytes(len.div_ceil(8));
        // The number of bits and that of bytes may disagree.
        Bits { len, bytes: bytes.to_vec() }
    };
    let mut encoded = Encoded {
        bucket: bucket_of(input.integer()),
        first_ms: input.integer(),
        last_ms: input.integer(),
        places: Places(i32::try_from(input.integer()).unwrap_or(-1)),
        times: column(input),
        data: column(input),
        floats: floats(input),
    };
    if input.flag() {
        bits::push_check(&mut encoded.times, 0);
    }
    check(&encoded);
}

/// Decodes good times, and for each series a stream with anything in it and the right check.
fn streams(input: &mut Input<'_>) {
    let times_ms = times(input);
    let bucket = i64::from(input.byte());
    let template = Chunk { bucket, series: vec![(0, vec![0.0; times_ms.len()])], times_ms };
    let mut encoded = encode(&template).swap_remove(0);
    let count = input.up_to(3) + 1;
    let (mut data, mut all) = (Bits::default(), Bits::default());
    encoded.places = Places::default();
    for place in 0..count as u32 {
        encoded.places = encoded.places.with(place);
        let len = input.up_to(2000);
        let mut stream = bits::bits(input.bytes(len.div_ceil(8)), len);
        bits::push_check(&mut stream, place);
        if place > 0 {
            bits::push(&mut data, ((count - 1) * 16 + all.len) as u64, 16);
        }
        bits::append(&mut all, &stream);
    }
    bits::append(&mut data, &all);
    encoded.data = data;
    encoded.floats = floats(input);
    check(&encoded);
}

/// Encodes samples of a few series.
fn samples(input: &mut Input<'_>) {
    let bucket = i64::from(input.byte());
    let mut series: Vec<Vec<Row>> = Vec::new();
    let mut times_ms = times(input);
    for place in 0..=input.up_to(4) as u32 {
        if input.flag() {
            times_ms = times(input);
        }
        let row =
            |time_ms: &i64| Row { series_id: series_at(bucket, place), time_ms: *time_ms, value: input.float().into() };
        series.push(times_ms.iter().map(row).collect());
    }
    let samples_max = input.up_to(300) + 1;
    let chunks = group(series.iter().map(Vec::as_slice), samples_max);
    assert!(chunks.iter().all(|chunk| chunk.times_ms.len() <= samples_max));
    let encoded: Vec<Encoded> = chunks.iter().flat_map(encode).collect();
    let mut found: Vec<Row> = encoded.iter().flat_map(|one| one.rows().expect("it was just encoded")).collect();
    found.sort_by_key(|row| (row.series_id, row.time_ms));
    let key = |row: &Row| (row.series_id, row.time_ms);
    assert!(found.iter().map(key).eq(series.iter().flatten().map(key)));
    assert!(found.iter().zip(series.iter().flatten()).all(|(found, row)| found.value == row.value));
    encoded.iter().for_each(|one| damage(one, input));
}

/// Changes one bit, and demands that it is noticed.
fn damage(encoded: &Encoded, input: &mut Input<'_>) {
    let at = input.up_to(65_535);
    let mut damaged = encoded.clone();
    bits::flip(if at.is_multiple_of(2) { &mut damaged.times } else { &mut damaged.data }, at / 2);
    assert!(damaged.rows().is_err(), "{damaged:?} instead of {encoded:?}");
}

/// Decodes a row in every way. If it is good, what it has survives.
pub(crate) fn check(encoded: &Encoded) {
    let rows = encoded.rows();
    let Ok(chunk) = encoded.decode() else { return };
    if is_of_histograms(encoded.bucket) {
        return;
    }
    assert!((1..=SAMPLES_MAX).contains(&chunk.times_ms.len()));
    for (place, values) in &chunk.series {
        let alone = encoded.decode_series(*place, &chunk.times_ms);
        assert!(alone.is_ok_and(|alone| alone.is_some_and(|alone| are_equal(&alone, values))));
    }
    let Ok(rows) = rows else { return };
    assert_eq!(rows.len(), chunk.samples());
    assert!(rows.iter().all(|row| bucket_of(row.series_id) == chunk.bucket));
    let markers = rows.iter().filter(|row| row.is_marker()).count();
    let found =
        chunk.series.iter().map(|(place, _)| encoded.markers(*place, &chunk.times_ms).map_or(0, |all| all.len()));
    assert_eq!(found.sum::<usize>(), markers);
    let is_stored = chunk.times_ms.iter().all(|time_ms| (TIME_MIN_MS..=TIME_MAX_MS).contains(time_ms));
    if is_stored && !chunk.series.is_empty() && chunk.samples() < 10_000 {
        let again: Vec<_> =
            encode(&chunk).iter().flat_map(|one| one.decode().expect("it was just encoded").series).collect();
        assert_eq!(again.len(), chunk.series.len());
        for ((place, values), (found_place, found)) in chunk.series.iter().zip(&again) {
            assert!(place == found_place && are_equal(values, found));
        }
    }
}

fn are_equal(values: &[f64], others: &[f64]) -> bool {
    values.iter().map(|value| value.to_bits()).eq(others.iter().map(|value| value.to_bits()))
}

/// Returns one to 300 ascending times.
pub(crate) fn times(input: &mut Input<'_>) -> Vec<i64> {
    let count = input.up_to(299) + 1;
    let (mut time_ms, regular) = (input.integer().clamp(TIME_MIN_MS, TIME_MAX_MS / 2), input.flag());
    let step = i64::from(input.byte()) + 1;
    let mut next = |_| {
        time_ms += if regular { step } else { i64::from(input.byte()) + 1 };
        time_ms
    };
    (0..count).map(&mut next).collect()
}

fn floats(input: &mut Input<'_>) -> Vec<f64> {
    (0..input.up_to(8)).map(|_| input.float()).collect()
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    // Inputs of this target have a form of their own; any bytes will do.
    let mut seeds: Vec<Vec<u8>> = (0..3).map(|mode| [&[mode, 9, 0, 4, 1, 60][..], &[1; 60]].concat()).collect();
    let (id, times_ms) = (35, [1_700_000_000_000, 1_700_000_015_000, 1_700_000_030_000, 1_700_000_045_000]);
    for values in [[0.0; 4], [1.0, 2.5, 2.5, f64::NAN], [1.0, 2.0, 4.0, 8.0], [0.1, 0.2, 0.1 + 0.2, 1e300]] {
        let chunk =
            Chunk { bucket: bucket_of(id), times_ms: times_ms.to_vec(), series: vec![(place_of(id), values.to_vec())] };
        for row in encode(&chunk) {
            let (low, high) = ((row.data.len - 8) as u8, ((row.data.len - 8) >> 8) as u8);
            // Four times in the same steps, one series.
            let stream = &row.data.bytes[..(row.data.len - 8).div_ceil(8)];
            let mut seed = Output([&[1, 3, 0, 0, 1, 15, 1, 0, low, high][..], stream].concat());
            seed.byte(row.floats.len() as u8);
            row.floats.iter().for_each(|float| seed.float(*float));
            seeds.push(seed.0);
        }
    }
    seeds.extend(
        captures
            .messages(&["prometheus-3.14/cases/bodies"], ".v1.bin", 3)
            .into_iter()
            .map(|body| [&[2][..], &body].concat()),
    );
    seeds
}
