//! Wall clock, to compare with the timestamps of samples. Durations are measured with `Instant`.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::time::as_ms;

/// Returns the milliseconds since 1970-01-01 UTC by this host's clock; 0 if the clock is before 1970.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    as_ms(since)
}
