//! Bytes of what exporters send, beside those of a Prometheus that stores the same.

use super::*;
use crate::wire::histogram_chunk::{self, Sample};

/// Numbers that look random and are the same in each run.
struct Noise(u64);

impl Noise {
    /// Returns a number between 0 and 1, both excluded. Source: SplitMix64.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 + f64::EPSILON / 4.0
    }

    /// Returns a number of a normal distribution. Source: Box and Muller, 1958.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.share().ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos()
    }

    /// Returns a number of a Poisson distribution, by counting what happens in the time.
    fn poisson(&mut self, mean: f64) -> u32 {
        let (mut count, mut time) = (0, -self.share().ln());
        while time < mean {
            count += 1;
            time -= self.share().ln();
        }
        count
    }
}

/// Returns a counter of durations in whole nanoseconds, log-normally distributed about 50 ms over some 20 buckets, with
/// `each` of them a scrape on average. It is a week old.
fn durations(each: f64, count: usize) -> Vec<Histogram> {
    let mut noise = Noise(count as u64);
    let mut buckets = std::collections::BTreeMap::new();
    let mut histogram =
        Histogram { schema: 2, zero_threshold: 2_f64.powi(-128), reset_hint: 2, ..Histogram::default() };
    let mut observe = |number: f64, histogram: &mut Histogram| {
        for _ in 0..noise.poisson(number) {
            let seconds = (0.05 * (0.7 * noise.normal()).exp() * 1e9).round() / 1e9;
            *buckets.entry((seconds.log2() * 4.0).ceil() as i32).or_insert(0.0) += 1.0;
            histogram.sum += seconds;
            histogram.count += 1.0;
        }
        histogram.positive = buckets.iter().map(|(index, count)| (*index, *count)).collect();
    };
    observe(each * 4.0 * 60.0 * 24.0 * 7.0, &mut histogram);
    let next = |_| {
        observe(each, &mut histogram);
        histogram.clone()
    };
    (0..count).map(next).collect()
}

/// Returns the bytes of a chunk of Prometheus.
fn prometheus_bytes(values: &[TimedValue]) -> usize {
    let sample = |(timestamp_ms, value): &TimedValue| {
        let Value::Histogram(numbers) = value else { panic!("a histogram at each time") };
        Sample { timestamp_ms: *timestamp_ms, histogram: Some(numbers.to_histogram().expect("it is one")) }
    };
    histogram_chunk::encode(false, &values.iter().map(sample).collect::<Vec<_>>()).len()
}

#[test]
#[expect(clippy::print_stderr, reason = "figures are of use")]
fn what_exporters_send_is_smaller_than_in_prometheus() {
    for (each, what) in [(50.0, "50 a scrape"), (5.0, "5 a scrape"), (0.1, "0.1 a scrape"), (0.0, "at rest")] {
        for times in [120, 1024] {
            let histograms =
                if each > 0.0 { durations(each, times) } else { vec![durations(5.0, 1).swap_remove(0); times] };
            let buckets = histograms[times - 1].positive.len();
            let values = timed(histograms.iter().map(value));
            let rows = check_round_trip(-9, &values, times);
            let bytes: usize = rows.iter().map(Encoded::bytes).sum();
            let prometheus: usize = values.chunks(120).map(prometheus_bytes).sum();
            let each = |bytes: usize| bytes as f64 / times as f64;
            eprintln!(
                "{what}, {buckets} buckets, {times} times: {:.2} bytes each, {:.2} of them data; Prometheus {:.2}",
                each(bytes),
                each(rows.iter().map(|row| row.data.bytes.len() + 8 * row.floats.len()).sum()),
                each(prometheus)
            );
            assert!(bytes < prometheus, "{what}: {bytes} of {prometheus} bytes");
        }
    }
}
