//! Sealed chunks of native histograms.

use prometheus_postgresql_adapter::model::histogram::{CUSTOM_BUCKETS, Histogram};
use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::storage::chunk::histograms::{TimedValue, decode, encode};
use prometheus_postgresql_adapter::storage::chunk::{SAMPLES_MAX, place_of};

use crate::input::{Input, Output};
use crate::seeds::Captures;
use crate::{bits, chunk};

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 2 {
        0 => stream(&mut input),
        _ => samples(&mut input),
    }
}

/// Decodes good times and a stream with anything in it and the right check.
fn stream(input: &mut Input<'_>) {
    let series_id = -1 - i64::from(input.byte());
    let stale = Value::Float(f64::from_bits(STALE_NAN_BITS));
    let times: Vec<TimedValue> = chunk::times(input).into_iter().map(|time_ms| (time_ms, stale.clone())).collect();
    let mut encoded = encode(series_id, &times, SAMPLES_MAX).swap_remove(0);
    encoded.floats = (0..input.up_to(40)).map(|_| input.float()).collect();
    let unused = input.up_to(7);
    let len = (input.0.len() * 8).saturating_sub(unused);
    encoded.data = bits::bits(input.0, len);
    bits::push_check(&mut encoded.data, place_of(series_id));
    let Ok(values) = decode(&encoded) else { return };
    assert_eq!(values.len(), times.len());
    assert!(encoded.rows().is_ok_and(|rows| rows.iter().all(|row| row.series_id == series_id)));
    round_trip(series_id, &values);
}

/// Encodes histograms.
fn samples(input: &mut Input<'_>) {
    let series_id = -1 - i64::from(input.byte());
    let mut last = Histogram::default();
    let mut value = |time_ms: i64| {
        let change = input.byte();
        if change == 0 {
            return (time_ms, Value::Float(f64::from_bits(STALE_NAN_BITS)));
        }
        if change & 1 != 0 {
            last.is_float = input.flag();
            last.schema = if input.flag() { CUSTOM_BUCKETS } else { input.up_to(12) as i8 - 4 };
            last.zero_threshold = input.float();
            last.bounds = (0..input.up_to(8)).map(|_| input.float()).collect();
        }
        if change & 2 != 0 {
            last.reset_hint = input.up_to(3) as u8;
            last.start_ms = input.integer();
        }
        for (flag, buckets) in [(4, &mut last.positive), (8, &mut last.negative)] {
            if change & flag != 0 {
                let mut index = i64::from(i32::MIN);
                buckets.clear();
                for _ in 0..input.up_to(8) {
                    index = index.max(input.integer().saturating_add(index / 2)) + 1;
                    let Ok(index) = i32::try_from(index) else { break };
                    buckets.push((index, input.float()));
                }
            }
        }
        last.sum = input.float();
        last.zero_count = input.float();
        last.count = input.float();
        (time_ms, Value::Histogram(last.to_numbers()))
    };
    let values: Vec<_> = (0..20).map(&mut value).collect();
    round_trip(series_id, &values);
    let mut damaged = encode(series_id, &values, SAMPLES_MAX).swap_remove(0);
    bits::flip(&mut damaged.data, input.up_to(65_535));
    assert!(decode(&damaged).is_err(), "{damaged:?}");
}

/// Encodes the values of a series, whose times ascend, and decodes them.
pub(crate) fn round_trip(series_id: i64, values: &[TimedValue]) {
    for times_max in [7, SAMPLES_MAX] {
        let rows = encode(series_id, values, times_max);
        let found: Vec<_> = rows.iter().flat_map(|row| decode(row).expect("it was just encoded")).collect();
        assert_eq!(found, values);
    }
}

pub fn seeds(_: &Captures) -> Vec<Vec<u8>> {
    let mut seeds = vec![[&[1, 3][..], &[0x0f; 300]].concat()];
    for histograms in [false, true].into_iter().flat_map(crate::numbers::examples) {
        let value = |(n, histogram): (i64, Histogram)| (n, Value::Histogram(histogram.to_numbers()));
        let values: Vec<_> = (0..).zip(histograms).map(value).collect();
        for row in encode(-1, &values, SAMPLES_MAX) {
            let count = (values.len() - 1) as u8;
            let mut seed = Output(vec![0, 0, count, 0, 0, 1, 0, row.floats.len() as u8]);
            row.floats.iter().for_each(|float| seed.float(*float));
            // The check of eight bits at the end is added by the target.
            let stream = bits::bits(&row.data.bytes, row.data.len - 8);
            seed.byte((stream.bytes.len() * 8 - stream.len) as u8);
            seeds.push([seed.0, stream.bytes].concat());
        }
    }
    seeds
}
