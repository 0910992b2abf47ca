//! The times of samples that are stored. Pure.

use crate::storage::row::TIME_MIN_MS;

/// Bounds of the times of samples, in ms since 1970.
pub(super) struct Bounds {
    pub(super) now_ms: i64,
    pub(super) latest_ms: i64,
    /// Samples before this are older than the retention.
    pub(super) expired_ms: Option<i64>,
}

impl Bounds {
    /// Returns whether a sample is kept.
    ///
    /// # Errors
    ///
    /// The time from now in ms, if it is out of bounds.
    pub(super) fn check(&self, time_ms: i64) -> Result<bool, i64> {
        if time_ms < TIME_MIN_MS || time_ms > self.latest_ms {
            return Err(time_ms.saturating_sub(self.now_ms));
        }
        Ok(self.expired_ms.is_none_or(|expired_ms| time_ms >= expired_ms))
    }
}
