//! Writing a chunk of histograms.

use crate::model::sample::STALE_NAN_BITS;
use crate::wire::bits::BitWriter;
use crate::wire::histogram_chunk::layout::Layout;
use crate::wire::histogram_chunk::{GAUGE, NO_RESET, RESET, SAMPLES_MAX, Sample};
use crate::wire::spans::to_indices;
use crate::wire::xor::{Window, write_change};

/// Returns a chunk of samples, each of which [`may_follow`](super::may_follow) the one before. `is_float`: their counts
/// are floats. What the first histogram says of a reset is said of the chunk.
///
/// # Panics
///
/// Panics if there are more than [`SAMPLES_MAX`] samples; chunks of real servers have 120.
pub fn encode(is_float: bool, samples: &[Sample]) -> Vec<u8> {
    encode_with(&Layout::of(samples), is_float, samples)
}

/// Encodes samples with a layout that has all their buckets.
pub(super) fn encode_with(layout: &Layout, is_float: bool, samples: &[Sample]) -> Vec<u8> {
    assert!(samples.len() <= SAMPLES_MAX, "a chunk holds at most {SAMPLES_MAX} samples");
    let hint = samples.first().and_then(|sample| sample.histogram.as_ref()).map(|first| first.reset_hint);
    let header = match hint {
        Some(RESET) => 0b1000_0000,
        Some(NO_RESET) => 0b0100_0000,
        Some(GAUGE) => 0b1100_0000,
        _ => 0,
    };
    let [high, low] = (samples.len() as u16).to_be_bytes();
    let mut encoder = Encoder {
        bits: BitWriter::after(vec![high, low, header]),
        positive: to_indices(&layout.positive, usize::MAX).unwrap_or_default(),
        negative: to_indices(&layout.negative, usize::MAX).unwrap_or_default(),
        is_float,
        time: Steps::default(),
        sum: Xored::default(),
        counts: Vec::new(),
        last_counts: Vec::new(),
    };
    let mut samples = samples.iter();
    if let Some(first) = samples.next() {
        layout.write(&mut encoder.bits);
        encoder.write_first(first);
    }
    for sample in samples {
        encoder.write_next(sample);
    }
    encoder.bits.finish()
}

struct Encoder {
    bits: BitWriter,
    /// Indices of the layout's buckets.
    positive: Vec<i32>,
    negative: Vec<i32>,
    is_float: bool,
    time: Steps,
    sum: Xored,
    /// Counts of the sample that is being written: of all observations, of the zero bucket, and as they are written of
    /// the positive and the negative buckets; whole numbers, or the bits of floats.
    counts: Vec<u64>,
    last_counts: Vec<Last>,
}

/// The last one of numbers that are written one by one.
enum Last {
    Whole(Steps),
    Float(Xored),
}

/// A whole number, of which is written by how much its step to the next one changes.
#[derive(Default)]
struct Steps {
    last: i64,
    step: i64,
}

/// A float, of which is written in which bits the next one differs.
#[derive(Default)]
struct Xored {
    last: u64,
    window: Option<Window>,
}

impl Encoder {
    fn write_first(&mut self, sample: &Sample) {
        self.bits.write_varbit_int(sample.timestamp_ms);
        self.time.last = sample.timestamp_ms;
        self.collect(sample);
        // The counts of all observations and of the zero bucket come before the sum.
        let sum = sum_bits(sample);
        for (place, &count) in self.counts.iter().enumerate() {
            if self.is_float {
                self.bits.write(count, 64);
            } else if place < 2 {
                self.bits.write_varbit_uint(count);
            } else {
                self.bits.write_varbit_int(count.cast_signed());
            }
            if place == 1 {
                self.bits.write(sum, 64);
            }
        }
        self.sum.last = sum;
        let last = |&count: &u64| match self.is_float {
            true => Last::Float(Xored { last: count, window: None }),
            false => Last::Whole(Steps { last: count.cast_signed(), step: 0 }),
        };
        self.last_counts = self.counts.iter().map(last).collect();
    }

    fn write_next(&mut self, sample: &Sample) {
        self.time.write(&mut self.bits, sample.timestamp_ms);
        self.collect(sample);
        for (place, (&count, last)) in self.counts.iter().zip(&mut self.last_counts).enumerate() {
            match last {
                // A stale marker's count is written as if it were the expected one.
                Last::Whole(_) if sample.histogram.is_none() => self.bits.write_varbit_int(0),
                Last::Whole(steps) => steps.write(&mut self.bits, count.cast_signed()),
                Last::Float(xored) => xored.write(&mut self.bits, count),
            }
            if place == 1 {
                self.sum.write(&mut self.bits, sum_bits(sample));
            }
        }
    }

    /// Collects the counts of a sample.
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53")]
    fn collect(&mut self, sample: &Sample) {
        self.counts.clear();
        let Some(histogram) = &sample.histogram else {
            self.counts.extend([0, 0]);
            return;
        };
        for count in [histogram.count, histogram.zero_count] {
            self.counts.push(if self.is_float { count.to_bits() } else { (count as i64).cast_unsigned() });
        }
        for (indices, buckets) in [(&self.positive, &histogram.positive), (&self.negative, &histogram.negative)] {
            let (mut buckets, mut before) = (buckets.iter().peekable(), 0);
            for index in indices {
                let count = buckets.next_if(|(other, _)| other == index).map_or(0.0, |(_, count)| *count);
                if self.is_float {
                    self.counts.push(count.to_bits());
                } else {
                    let count = count as i64;
                    self.counts.push(count.wrapping_sub(before).cast_unsigned());
                    before = count;
                }
            }
        }
    }
}

fn sum_bits(sample: &Sample) -> u64 {
    sample.histogram.as_ref().map_or(STALE_NAN_BITS, |histogram| histogram.sum.to_bits())
}

impl Steps {
    fn write(&mut self, bits: &mut BitWriter, value: i64) {
        let step = value.wrapping_sub(self.last);
        bits.write_varbit_int(step.wrapping_sub(self.step));
        *self = Self { last: value, step };
    }
}

impl Xored {
    fn write(&mut self, bits: &mut BitWriter, value: u64) {
        write_change(bits, value ^ self.last, &mut self.window);
        self.last = value;
    }
}
