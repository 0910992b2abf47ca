//! Random native histograms, as targets count them and as senders send them.

use std::collections::BTreeMap;

use prometheus_postgresql_adapter::model::histogram::{CUSTOM_BUCKETS, Histogram, SCHEMA_MIN};
use prometheus_postgresql_adapter::wire::read::messages::{self, BucketSpan};
use rig::random::Random;

/// Signs of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signs {
    Positive,
    Negative,
    Both,
}

/// A target that counts observations in one histogram.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) random: Random,
    pub(super) signs: Signs,
    pub(super) now: Histogram,
}

#[expect(clippy::cast_precision_loss, reason = "below a million")]
fn float(number: u64) -> f64 {
    number as f64
}

impl Counting {
    /// A histogram of a random kind.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let schema = if random.chance(25) { CUSTOM_BUCKETS } else { i8::try_from(random.between(-4, 8)).unwrap() };
        let is_custom = schema == CUSTOM_BUCKETS;
        let thresholds = [0.0, 2_f64.powi(-128), 0.001, 0.125, 1.0];
        let zero_threshold = if is_custom { 0.0 } else { thresholds[random.index(thresholds.len())] };
        let signs = match random.below(4) {
            0 => Signs::Both,
            1 if !is_custom => Signs::Negative,
            _ => Signs::Positive,
        };
        let first = if signs == Signs::Both { -2.0 } else { 0.01 };
        let bounds = if is_custom { bounds(&mut random, first) } else { Vec::new() };
        let is_float = random.chance(40);
        let now = Histogram { schema, is_float, zero_threshold, bounds, ..Histogram::default() };
        let mut counting = Self { random, signs, now };
        counting.restart();
        counting
    }

    /// Counts from zero. A bucket of each sign that may come is there at once: Prometheus shows each histogram of a chunk with
    /// the empty buckets of all others, and takes their signs for seen.
    pub(super) fn restart(&mut self) {
        let Histogram { schema, is_float, zero_threshold, bounds, reset_hint, .. } = self.now.clone();
        self.now = Histogram { schema, is_float, zero_threshold, bounds, reset_hint, ..Histogram::default() };
        let first = 3.0 * zero_threshold.max(0.5);
        if self.signs != Signs::Negative {
            self.observe(first, 1.0);
        }
        if self.signs != Signs::Positive {
            self.observe(-first, 1.0);
        }
    }

    pub(super) fn observe(&mut self, value: f64, weight: f64) {
        let now = &mut self.now;
        now.count += weight;
        now.sum += value * weight;
        if value.is_nan() && now.schema != CUSTOM_BUCKETS {
            return;
        }
        if now.schema != CUSTOM_BUCKETS && value.abs() <= now.zero_threshold {
            now.zero_count += weight;
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 1024 * 2^8")]
        let index = if now.schema == CUSTOM_BUCKETS {
            i32::try_from(now.bounds.iter().take_while(|bound| value.is_nan() || value > **bound).count()).unwrap()
        } else if value.is_infinite() {
            (1024.0 * 2_f64.powi(now.schema.into())) as i32 + 1
        } else {
            (value.abs().log2() * 2_f64.powi(now.schema.into())).ceil() as i32
        };
        let is_negative = value < 0.0 && now.schema != CUSTOM_BUCKETS;
        let buckets = if is_negative { &mut now.negative } else { &mut now.positive };
        match buckets.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => buckets[at].1 += weight,
            Err(at) => buckets.insert(at, (index, weight)),
        }
    }

    /// Halves the number of buckets so many times, as a target does that has too many.
    pub(super) fn reduce(&mut self, times: i8) {
        let schema = (self.now.schema - times).max(SCHEMA_MIN);
        let shift = self.now.schema - schema;
        for buckets in [&mut self.now.positive, &mut self.now.negative] {
            let mut merged: BTreeMap<i32, f64> = BTreeMap::new();
            for (index, count) in buckets.iter() {
                *merged.entry(((index - 1) >> shift) + 1).or_default() += count;
            }
            *buckets = merged.into_iter().collect();
        }
        self.now.schema = schema;
    }

    /// Widens the zero bucket to a power of two, as a target does that has too many.
    pub(super) fn widen(&mut self, zero_threshold: f64) {
        let Histogram { schema, zero_count, positive, negative, .. } = &mut self.now;
        let upper = |index: i32| (f64::from(index) * 2_f64.powi((-*schema).into())).exp2();
        for buckets in [positive, negative] {
            buckets.retain(|(index, count)| {
                let is_within = upper(*index) <= zero_threshold * (1.0 + 1e-12);
                if is_within {
                    *zero_count += count;
                }
                !is_within
            });
        }
        self.now.zero_threshold = zero_threshold;
    }

    /// Leaves out a custom bound.
    pub(super) fn leave_out(&mut self, at: usize) {
        self.now.bounds.remove(at);
        let mut merged: BTreeMap<i32, f64> = BTreeMap::new();
        for (index, count) in &self.now.positive {
            let is_after = usize::try_from(*index).is_ok_and(|index| index > at);
            *merged.entry(index - i32::from(is_after)).or_default() += count;
        }
        self.now.positive = merged.into_iter().collect();
    }

    /// Observes some values at random.
    pub(super) fn observe_some(&mut self) {
        for _ in 0..self.random.below(15) {
            let size = (float(self.random.below(2_000)) / 200.0 - 6.0).exp2();
            let is_negative = match self.signs {
                Signs::Positive => false,
                Signs::Negative => true,
                Signs::Both => self.random.chance(40),
            };
            let weight = if self.now.is_float { float(self.random.below(1_000)) / 7.0 + 0.5 } else { 1.0 };
            self.observe(if is_negative { -size } else { size }, weight);
        }
    }
}

/// Returns some ascending bounds.
pub(super) fn bounds(random: &mut Random, first: f64) -> Vec<f64> {
    let count = random.below(9);
    (0..count).map(|n| first + float(n * n) / 3.0 + float(random.below(300)) / 1_000.0).collect()
}

/// Returns a histogram as senders send it.
pub(super) fn message(histogram: &Histogram, timestamp: i64) -> messages::Histogram {
    let Histogram { is_float, count, zero_count, .. } = *histogram;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers below 2^53")]
    let whole = |number: f64| (!is_float).then_some(number as u64);
    let counts =
        |buckets: &[(i32, f64)]| -> Vec<f64> { buckets.iter().map(|(_, count)| *count).filter(|_| is_float).collect() };
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53")]
    let deltas = |buckets: &[(i32, f64)]| -> Vec<i64> {
        let mut last = 0;
        let mut delta = |(_, count): &(i32, f64)| {
            let delta = *count as i64 - last;
            last += delta;
            delta
        };
        if is_float { Vec::new() } else { buckets.iter().map(&mut delta).collect() }
    };
    messages::Histogram {
        count_int: whole(count),
        count_float: is_float.then_some(count),
        sum: Some(histogram.sum),
        schema: histogram.schema.into(),
        zero_threshold: Some(histogram.zero_threshold),
        zero_count_int: whole(zero_count),
        zero_count_float: is_float.then_some(zero_count),
        negative_spans: spans(&histogram.negative),
        negative_deltas: deltas(&histogram.negative),
        negative_counts: counts(&histogram.negative),
        positive_spans: spans(&histogram.positive),
        positive_deltas: deltas(&histogram.positive),
        positive_counts: counts(&histogram.positive),
        reset_hint: histogram.reset_hint.into(),
        timestamp,
        custom_values: histogram.bounds.clone(),
    }
}

fn spans(buckets: &[(i32, f64)]) -> Vec<BucketSpan> {
    let mut end = 0;
    let mut span = |run: &[(i32, f64)]| {
        let offset = run[0].0 - end;
        end = run[run.len() - 1].0 + 1;
        BucketSpan { offset, length: u32::try_from(run.len()).unwrap() }
    };
    buckets.chunk_by(|(index, _), (next, _)| index + 1 == *next).map(&mut span).collect()
}
