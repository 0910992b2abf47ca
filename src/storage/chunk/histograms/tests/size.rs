//! Bytes of what exporters send, beside those of a Prometheus that stores the same.

use super::*;

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

/// Returns the bytes of a chunk of Prometheus. Source: `tsdb/chunkenc/histogram.go`, `varbit.go` and `xor.go`.
fn prometheus_bytes(histograms: &[Histogram]) -> usize {
    let varbit = |value: i64| -> usize {
        let sizes = [(0, 1), (3, 5), (6, 9), (9, 13), (12, 17), (18, 24), (25, 32), (56, 64)];
        let fits = |bits: u32| value == 0 || bits > 0 && -((1 << (bits - 1)) - 1) <= value && value <= 1 << (bits - 1);
        sizes.iter().find(|(bits, _)| fits(*bits)).map_or(72, |(_, size)| *size)
    };
    let indices = indices(histograms.iter().map(|histogram| &histogram.positive));
    // Counts, and buckets as differences to the one before.
    let row = |histogram: &Histogram| -> Vec<i64> {
        let buckets = histogram.positive.iter().copied().collect::<std::collections::BTreeMap<_, _>>();
        let count = |index: &i32| buckets.get(index).copied().unwrap_or(0.0) as i64;
        let counts: Vec<_> = indices.iter().map(count).collect();
        let deltas = (0..counts.len()).map(|at| counts[at] - if at > 0 { counts[at - 1] } else { 0 });
        [histogram.count as i64, histogram.zero_count as i64].into_iter().chain(deltas).collect()
    };
    let rows: Vec<_> = histograms.iter().map(row).collect();
    let spans = indices.chunk_by(|one, next| one + 1 == *next).count();
    // Number of samples, flags, threshold, schema, spans; the first time and sum.
    let mut bits = 16 + 8 + 8 + varbit(2) + 10 + spans * 14 + 64 + 64;
    let (mut before, mut deltas) = (vec![0; rows[0].len()], vec![0; rows[0].len()]);
    for (number, row) in rows.iter().enumerate() {
        for at in 0..row.len() {
            let delta = row[at] - before[at];
            bits += varbit(if number < 2 { delta } else { delta - deltas[at] });
            deltas[at] = if number == 0 { 0 } else { delta };
        }
        before.clone_from(row);
        // A time of a steady interval.
        bits += if number == 1 { 17 } else { 1 };
    }
    let (mut leading, mut trailing) = (u32::MAX, 0);
    for pair in histograms.windows(2) {
        let changed = pair[0].sum.to_bits() ^ pair[1].sum.to_bits();
        let (zeros, after) = (changed.leading_zeros().min(31), changed.trailing_zeros());
        bits += if changed == 0 {
            1
        } else if leading != u32::MAX && zeros >= leading && after >= trailing {
            2 + (64 - leading - trailing) as usize
        } else {
            (leading, trailing) = (zeros, after);
            2 + 5 + 6 + (64 - leading - trailing) as usize
        };
    }
    bits.div_ceil(8)
}

#[test]
#[expect(clippy::print_stderr, reason = "figures are of use")]
fn what_exporters_send_is_smaller_than_in_prometheus() {
    for (each, what) in [(50.0, "50 a scrape"), (5.0, "5 a scrape"), (0.1, "0.1 a scrape"), (0.0, "at rest")] {
        for times in [120, 1024] {
            let histograms =
                if each > 0.0 { durations(each, times) } else { vec![durations(5.0, 1).swap_remove(0); times] };
            let buckets = histograms[times - 1].positive.len();
            let rows = check_round_trip(-9, &timed(histograms.iter().map(value)), times);
            let bytes: usize = rows.iter().map(Encoded::bytes).sum();
            let prometheus: usize = histograms.chunks(120).map(prometheus_bytes).sum();
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
