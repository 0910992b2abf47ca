//! Spans of time in ms, the unit of samples.

use std::time::Duration;

/// Returns `duration` in ms. An `i64` can express 290 million years; a longer duration becomes the longest one.
#[must_use]
pub fn as_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
