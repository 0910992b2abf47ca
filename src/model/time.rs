//! Spans of time as samples have them, in ms.

use std::time::Duration;

/// `duration` in ms, of which an `i64` has room for 290 million years; the longest of those for a longer one.
#[must_use]
pub fn as_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
