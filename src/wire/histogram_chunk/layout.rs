//! What all histograms of a chunk share.

use std::collections::BTreeSet;

use crate::model::histogram::{CUSTOM_BUCKETS, SCHEMA_MAX, SCHEMA_MIN};
use crate::wire::bits::{BitReader, BitWriter};
use crate::wire::histogram_chunk::Sample;
use crate::wire::spans::{Span, to_spans};

/// Added to a power of two, as IEEE 754 writes its exponent, to make the byte of a zero threshold.
const EXPONENT_OFFSET: u64 = 779;

/// Byte of a zero threshold that is written in full.
const OTHER_THRESHOLD: u64 = 255;

/// Largest bound in thousandths that is written as a whole number.
const BOUND_MAX: f64 = 33_554_430.0;

/// What all histograms of a chunk share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) schema: i8,
    pub(super) zero_threshold: f64,
    pub(super) bounds: Vec<f64>,
    pub(super) positive: Vec<Span>,
    pub(super) negative: Vec<Span>,
}

impl Layout {
    /// Returns the layout with every bucket that a sample has. Stale markers have none.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let histograms = || samples.iter().filter_map(|sample| sample.histogram.as_ref());
        let (mut positive, mut negative) = (BTreeSet::new(), BTreeSet::new());
        for histogram in histograms() {
            positive.extend(histogram.positive.iter().map(|(index, _)| *index));
            negative.extend(histogram.negative.iter().map(|(index, _)| *index));
        }
        let first = histograms().next();
        Self {
            schema: first.map_or(0, |first| first.schema),
            zero_threshold: first.map_or(0.0, |first| first.zero_threshold),
            bounds: first.map_or_else(Vec::new, |first| first.bounds.clone()),
            positive: to_spans(positive),
            negative: to_spans(negative),
        }
    }

    pub(super) fn write(&self, bits: &mut BitWriter) {
        write_threshold(bits, self.zero_threshold);
        bits.write_varbit_int(i64::from(self.schema));
        for spans in [&self.positive, &self.negative] {
            bits.write_varbit_uint(spans.len() as u64);
            for span in spans {
                bits.write_varbit_uint(u64::from(span.length));
                bits.write_varbit_int(i64::from(span.offset));
            }
        }
        if self.schema == CUSTOM_BUCKETS {
            bits.write_varbit_uint(self.bounds.len() as u64);
            for &bound in &self.bounds {
                write_bound(bits, bound);
            }
        }
    }

    pub(super) fn read(bits: &mut BitReader<'_>) -> Result<Self, &'static str> {
        let zero_threshold = read_threshold(bits)?;
        let schema = i8::try_from(bits.read_varbit_int()?)
            .ok()
            .filter(|schema| (SCHEMA_MIN..=SCHEMA_MAX).contains(schema) || *schema == CUSTOM_BUCKETS)
            .ok_or("an unknown schema")?;
        let positive = read_spans(bits)?;
        let negative = read_spans(bits)?;
        let mut bounds = Vec::new();
        if schema == CUSTOM_BUCKETS {
            for _ in 0..bits.read_varbit_uint()? {
                bounds.push(read_bound(bits)?);
            }
        }
        Ok(Self { schema, zero_threshold, bounds, positive, negative })
    }
}

fn read_spans(bits: &mut BitReader<'_>) -> Result<Vec<Span>, &'static str> {
    let mut spans = Vec::new();
    for _ in 0..bits.read_varbit_uint()? {
        let length = u32::try_from(bits.read_varbit_uint()?).map_err(|_| "a span of more than 32 bits")?;
        let offset = i32::try_from(bits.read_varbit_int()?).map_err(|_| "a span of more than 32 bits")?;
        spans.push(Span { offset, length });
    }
    Ok(spans)
}

/// Writes 0 and powers of two from 2^-243 to 2^10 as one byte.
fn write_threshold(bits: &mut BitWriter, threshold: f64) {
    let raw = threshold.to_bits();
    let byte = (raw >> 52).wrapping_sub(EXPONENT_OFFSET);
    if threshold == 0.0 {
        bits.write(0, 8);
    } else if raw << 12 == 0 && (1..OTHER_THRESHOLD).contains(&byte) {
        bits.write(byte, 8);
    } else {
        bits.write(OTHER_THRESHOLD, 8);
        bits.write(raw, 64);
    }
}

fn read_threshold(bits: &mut BitReader<'_>) -> Result<f64, &'static str> {
    Ok(match bits.read(8)? {
        0 => 0.0,
        OTHER_THRESHOLD => f64::from_bits(bits.read(64)?),
        byte => f64::from_bits((byte + EXPONENT_OFFSET) << 52),
    })
}

/// Writes a multiple of 0.001 as a whole number plus one, anything else as 0 and the float.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "compared")]
fn write_bound(bits: &mut BitWriter, bound: f64) {
    let thousandths = (bound * 1000.0).round() as u64;
    let is_out = bound * 1000.0 < 0.0 || bound * 1000.0 > BOUND_MAX;
    if is_out || thousandths as f64 / 1000.0 != bound {
        bits.write(0, 1);
        bits.write(bound.to_bits(), 64);
    } else {
        bits.write_varbit_uint(thousandths + 1);
    }
}

#[expect(clippy::cast_precision_loss, reason = "no writer writes so large a number")]
fn read_bound(bits: &mut BitReader<'_>) -> Result<f64, &'static str> {
    Ok(match bits.read_varbit_uint()? {
        0 => f64::from_bits(bits.read(64)?),
        thousandths => (thousandths - 1) as f64 / 1000.0,
    })
}
