//! The numbers of a native histogram, as they are stored.

use prometheus_postgresql_adapter::model::histogram::{CUSTOM_BUCKETS, Histogram, Numbers};
use prometheus_postgresql_adapter::model::sample::{Point, Value};

use crate::input::{Input, Output};
use crate::seeds::Captures;
use crate::{answer, chunk_of_histograms};

/// Most numbers of an input.
const NUMBERS_MAX: usize = 2000;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut numbers = Vec::new();
    while !input.is_empty() && numbers.len() < NUMBERS_MAX {
        numbers.push(input.float());
    }
    let numbers = Numbers::from_stored(numbers);
    if let Ok(histogram) = numbers.to_histogram() {
        for buckets in [&histogram.positive, &histogram.negative] {
            assert!(buckets.is_sorted_by(|(one, _), (next, _)| one < next));
        }
        let again = histogram.to_numbers();
        assert!(again.to_histogram().is_ok_and(|again| again == histogram));
    }
    // Whatever stands in the database is sealed as it is, and answered or refused.
    let value = Value::Histogram(numbers);
    chunk_of_histograms::round_trip(-1, &[(0, value.clone()), (1, value.clone())]);
    let point = |timestamp_ms| Point { timestamp_ms, value: value.clone() };
    answer::check(&[point(0), point(1)]);
}

pub fn seeds(_: &Captures) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for histogram in [false, true].into_iter().flat_map(examples).flatten() {
        let mut out = Output::default();
        histogram.to_numbers().as_slice().iter().for_each(|number| out.float(*number));
        seeds.push(out.0);
    }
    seeds
}

/// Returns histograms of which each list may be in one chunk.
pub(crate) fn examples(is_float: bool) -> Vec<Vec<Histogram>> {
    let half = if is_float { 0.5 } else { 0.0 };
    let next = |n: f64| Histogram {
        schema: 3,
        is_float,
        zero_threshold: 2.0_f64.powi(-128),
        zero_count: n,
        count: 6.0 * n,
        sum: 0.1 * n,
        positive: vec![(-2, n + half), (-1, n), (7, 2.0 * n)],
        negative: vec![(i32::MAX, n)],
        ..Histogram::default()
    };
    let custom = |n: f64| Histogram {
        schema: CUSTOM_BUCKETS,
        is_float,
        reset_hint: 3,
        start_ms: 1_700_000_000_000,
        count: n,
        bounds: vec![0.005, 0.1, 1.0, 1e9],
        positive: vec![(1, n)],
        ..Histogram::default()
    };
    vec![
        vec![Histogram { is_float, ..Histogram::default() }],
        [1.0, 2.0, 4.0].map(next).into(),
        vec![custom(1.0), custom(7.0)],
    ]
}
