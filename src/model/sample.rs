//! A sample: a value at a time.

use crate::model::histogram::Numbers;

/// Bits of the value that Prometheus writes when a series ends: a signalling NaN, so the bits must never pass through
/// arithmetic. Source: Prometheus, `model/value/value.go`.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Returns `true` for the value of a stale marker.
#[must_use]
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}

/// A value at a time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Milliseconds since 1970-01-01 UTC, any i64.
    pub timestamp_ms: i64,
    /// Any float, every NaN payload included.
    pub value: f64,
}

impl PartialEq for Sample {
    /// Compares bit for bit, so that a NaN equals itself.
    fn eq(&self, other: &Self) -> bool {
        self.timestamp_ms == other.timestamp_ms && self.value.to_bits() == other.value.to_bits()
    }
}

impl Eq for Sample {}

/// What a series has at a time: a float, or a native histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Milliseconds since 1970-01-01 UTC.
    pub timestamp_ms: i64,
    /// The value.
    pub value: Value,
}

/// What the values of a series are. A series with the same labels may exist of each kind, because a metric may change from
/// a classic to a native histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Floats.
    #[default]
    Float,
    /// Native histograms.
    Histogram,
}

/// Value of a point.
#[derive(Clone, Debug)]
pub enum Value {
    /// Any float, every NaN payload included; a stale marker ends a series of either kind.
    Float(f64),
    /// A native histogram.
    Histogram(Numbers),
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl Value {
    /// Returns `true` for a stale marker, by which Prometheus reports that a series has ended.
    #[must_use]
    pub fn is_marker(&self) -> bool {
        matches!(self, Self::Float(value) if is_stale(*value))
    }

    /// Returns how many numbers it has, which bounds what handling it takes: a float has one.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Histogram(numbers) => numbers.as_slice().len(),
        }
    }

    /// Returns the bytes of memory that it takes beside its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(_) => 0,
            Self::Histogram(numbers) => numbers.bytes(),
        }
    }
}

impl PartialEq for Value {
    /// Compares bit for bit, so that a NaN equals itself.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(one), Self::Float(other)) => one.to_bits() == other.to_bits(),
            (Self::Histogram(one), Self::Histogram(other)) => one == other,
            _ => false,
        }
    }
}
