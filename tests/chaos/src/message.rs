//! What is in a remote-write request: as of a Prometheus.

use std::ops::Range;

use rig::remote_write::{self, add_series, compress};

use crate::host::Shape;

/// Series of a target.
const OF_TARGET: usize = 50;

/// A stale marker.
pub(crate) const MARKER: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// How many targets there are.
pub(crate) fn targets(shape: &Shape) -> usize {
    shape.series.div_ceil(OF_TARGET)
}

/// The series of a target.
pub(crate) fn series_of(shape: &Shape, target: usize) -> Range<usize> {
    target * OF_TARGET..((target + 1) * OF_TARGET).min(shape.series)
}

/// Whether a value is a stale marker.
pub(crate) fn is_marker(value: f64) -> bool {
    value.to_bits() == MARKER.to_bits()
}

/// Labels of `series` as a replica of `cluster` sends it, as the fields of a `TimeSeries`.
pub(crate) fn labels(shape: &Shape, series: usize, cluster: &str, replica: &str) -> Vec<u8> {
    let name = match series {
        _ if series >= shape.series => "chaos:rule",
        _ if is_constant(shape, series) => "chaos_constant",
        _ => "chaos_time_total",
    };
    let number = series.to_string();
    let instance = format!("10.0.0.{}:9090", series / OF_TARGET);
    remote_write::labels([
        ("__name__", name),
        ("__replica__", replica),
        ("cluster", cluster),
        ("instance", &instance),
        ("job", "chaos"),
        ("series", &number),
    ])
}

/// The same of a series that no replica scrapes.
pub(crate) fn stranger(cluster: &str, replica: &str) -> Vec<u8> {
    remote_write::labels([("__name__", "chaos_stranger"), ("__replica__", replica), ("cluster", cluster)])
}

/// Whether a series never changes.
pub(crate) fn is_constant(shape: &Shape, series: usize) -> bool {
    series < shape.series && series.is_multiple_of(4)
}

/// What replica `index` sees of `series` at a time: a counter is the time itself, so that going back shows; a rule says by
/// its fraction who evaluated it.
#[expect(clippy::cast_precision_loss, reason = "times in ms are far below 2^53")]
pub(crate) fn value(shape: &Shape, series: usize, true_ms: i64, index: usize) -> f64 {
    match series {
        _ if series >= shape.series => (true_ms % 1_000_000) as f64 + index as f64 / 4.0,
        _ if is_constant(shape, series) => series as f64,
        _ => true_ms as f64,
    }
}

/// A request, compressed; with a series that can never be stored if `poison` says whose.
pub(crate) fn request<'a>(samples: impl Iterator<Item = (&'a [u8], i64, f64)>, poison: Option<usize>) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut push = |labels: &[u8], time_ms: i64, value: f64| add_series(&mut plain, labels, [(time_ms, value)]);
    for (labels, time_ms, value) in samples {
        push(labels, time_ms, value);
    }
    if poison.is_some() {
        // U+0000, which no text of PostgreSQL's takes; a byte that is no UTF-8; no name; a time beyond all ages.
        let poison = (&b"__name__"[..], &b"chaos_poison"[..]);
        push(&remote_write::labels([poison, (b"series", b"\0")]), 1, 1.0);
        push(&remote_write::labels([poison, (b"series", b"\xff")]), 1, 1.0);
        push(&remote_write::labels([(b"series", b"nameless")]), 1, 1.0);
        push(&remote_write::labels([poison]), i64::MAX, 1.0);
    }
    compress(&plain)
}
