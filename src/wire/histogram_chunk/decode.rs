//! Reading a chunk of histograms, as Prometheus does.

use crate::model::histogram::Histogram;
use crate::model::sample::{Point, STALE_NAN_BITS, Value};
use crate::wire::bits::BitReader;
use crate::wire::histogram_chunk::layout::Layout;
use crate::wire::histogram_chunk::{DecodeError, GAUGE, NO_RESET, RESET, Sample};
use crate::wire::spans::to_indices;
use crate::wire::xor::{Window, read_change};

/// A decoded chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// What the chunk says of a reset before it, as the reset hint of a histogram.
    pub reset_hint: u8,
    /// Its samples. Their hints are those that Prometheus gives them: a gauge, or for the first one unknown and for
    /// the others no reset.
    pub points: Vec<Point>,
}

/// Decodes a whole chunk; bytes after its last sample are ignored. `is_float`: its counts are floats.
///
/// # Errors
///
/// `DecodeError` if the bytes end before the samples do, or no encoder can have written them.
pub fn decode(is_float: bool, chunk: &[u8]) -> Result<Decoded, DecodeError> {
    let (_, reset_hint, samples) = decode_with_layout(is_float, chunk)?;
    let point = |sample: Sample| Point {
        timestamp_ms: sample.timestamp_ms,
        value: match sample.histogram {
            Some(histogram) => Value::Histogram(histogram.to_numbers()),
            None => Value::Float(f64::from_bits(STALE_NAN_BITS)),
        },
    };
    Ok(Decoded { reset_hint, points: samples.into_iter().map(point).collect() })
}

/// Decodes a whole chunk to its layout, its header and its samples. A chunk without samples has no layout.
pub(super) fn decode_with_layout(is_float: bool, chunk: &[u8]) -> Result<(Layout, u8, Vec<Sample>), DecodeError> {
    let fault = |sample| move |what| DecodeError { sample, what };
    let Some((&[high, low, header], stream)) = chunk.split_first_chunk() else {
        return Err(DecodeError { sample: 0, what: "no count" });
    };
    let reset_hint = match header >> 6 {
        0b10 => RESET,
        0b01 => NO_RESET,
        0b11 => GAUGE,
        _ => 0,
    };
    let count = usize::from(u16::from_be_bytes([high, low]));
    if count == 0 {
        return Ok((Layout::of(&[]), reset_hint, Vec::new()));
    }
    let mut decoder = Decoder::begin(is_float, stream).map_err(fault(0))?;
    let mut samples = Vec::new();
    for index in 0..count {
        let reset_hint = match reset_hint {
            GAUGE => GAUGE,
            _ if index > 0 => NO_RESET,
            _ => 0,
        };
        samples.push(decoder.next(index == 0, reset_hint).map_err(fault(index))?);
    }
    Ok((decoder.layout, reset_hint, samples))
}

struct Decoder<'a> {
    bits: BitReader<'a>,
    layout: Layout,
    /// Indices of the layout's buckets.
    positive: Vec<i32>,
    negative: Vec<i32>,
    is_float: bool,
    timestamp_ms: i64,
    time_step: i64,
    sum: Number,
    /// Counts in the order of the chunk: of all observations, of the zero bucket, of positive and negative buckets.
    counts: Vec<Number>,
}

/// A number of the last sample: a whole number and its last step, or the bits of a float and their window.
#[derive(Clone, Copy, Default)]
struct Number {
    last: u64,
    step: i64,
    window: Window,
}

impl<'a> Decoder<'a> {
    fn begin(is_float: bool, stream: &'a [u8]) -> Result<Self, &'static str> {
        let mut bits = BitReader::new(stream);
        let layout = Layout::read(&mut bits)?;
        // The first sample has at least a bit for each bucket.
        let positive = to_indices(&layout.positive, bits.left())?;
        let negative = to_indices(&layout.negative, bits.left())?;
        let counts = vec![Number::default(); 2 + positive.len() + negative.len()];
        Ok(Self {
            bits,
            layout,
            positive,
            negative,
            is_float,
            timestamp_ms: 0,
            time_step: 0,
            sum: Number::default(),
            counts,
        })
    }

    fn next(&mut self, is_first: bool, reset_hint: u8) -> Result<Sample, &'static str> {
        if is_first {
            self.read_first()?;
        } else {
            self.read_next()?;
        }
        let histogram = (self.sum.last != STALE_NAN_BITS).then(|| self.histogram(reset_hint));
        Ok(Sample { timestamp_ms: self.timestamp_ms, histogram })
    }

    fn read_first(&mut self) -> Result<(), &'static str> {
        self.timestamp_ms = self.bits.read_varbit_int()?;
        for (place, number) in self.counts.iter_mut().enumerate() {
            number.last = if self.is_float {
                self.bits.read(64)?
            } else if place < 2 {
                self.bits.read_varbit_uint()?
            } else {
                self.bits.read_varbit_int()?.cast_unsigned()
            };
            if place == 1 {
                self.sum.last = self.bits.read(64)?;
            }
        }
        Ok(())
    }

    fn read_next(&mut self) -> Result<(), &'static str> {
        self.time_step = self.time_step.wrapping_add(self.bits.read_varbit_int()?);
        self.timestamp_ms = self.timestamp_ms.wrapping_add(self.time_step);
        for (place, number) in self.counts.iter_mut().enumerate() {
            if self.is_float {
                number.read_change(&mut self.bits)?;
            } else {
                number.step = number.step.wrapping_add(self.bits.read_varbit_int()?);
                number.last = number.last.wrapping_add_signed(number.step);
            }
            if place == 1 {
                self.sum.read_change(&mut self.bits)?;
                if self.sum.last == STALE_NAN_BITS {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus' counts are whole numbers of 64 bits")]
    fn histogram(&self, reset_hint: u8) -> Histogram {
        let count = |raw: u64| if self.is_float { f64::from_bits(raw) } else { raw as f64 };
        let buckets = |indices: &[i32], numbers: &[Number]| {
            let mut sum = 0_u64;
            let counts = numbers.iter().map(|number| {
                sum = sum.wrapping_add(number.last);
                if self.is_float { f64::from_bits(number.last) } else { sum.cast_signed() as f64 }
            });
            indices.iter().copied().zip(counts).filter(|(_, count)| *count != 0.0).collect()
        };
        let (positive, negative) = self.counts[2..].split_at(self.positive.len());
        Histogram {
            schema: self.layout.schema,
            is_float: self.is_float,
            reset_hint,
            start_ms: 0,
            zero_threshold: self.layout.zero_threshold,
            zero_count: count(self.counts[1].last),
            count: count(self.counts[0].last),
            sum: f64::from_bits(self.sum.last),
            bounds: self.layout.bounds.clone(),
            positive: buckets(&self.positive, positive),
            negative: buckets(&self.negative, negative),
        }
    }
}

impl Number {
    fn read_change(&mut self, bits: &mut BitReader<'_>) -> Result<(), &'static str> {
        self.last ^= read_change(bits, &mut self.window)?;
        Ok(())
    }
}
