//! Up to when a leader has committed everything it will be sent. Pure: time is an argument.
//!
//! It cannot be known, for the shards of a Prometheus progress unevenly and say nothing of each other. So it is guessed
//! from the safe side: behind every request that is unfinished or failed, and behind the newest committed sample by
//! the largest lag seen lately and a margin. Guessing too far behind costs a standby memory; too far ahead would
//! lose a sample if the leader's host died before it stored a straggler.

use std::collections::HashMap;

use uuid::Uuid;

use crate::election::Progress;

/// Prometheus' `batch_send_deadline`, and as much again.
pub const MARGIN_MS: i64 = 10_000;

/// The lag counts for one to two windows.
const WINDOW_MS: i64 = 120_000;

/// A failed request is retried within seconds while its Prometheus lives; after this it is not waited for.
pub const FAILED_KEPT_MS: i64 = 15 * 60_000;

/// Where it may be retried by way of another adapter, and this one never hears of it: its lag is heard of there.
pub const FAILED_ELSEWHERE_MS: i64 = 60_000;

/// See the module.
#[derive(Debug)]
pub struct Watermark {
    failed_kept_ms: i64,
    /// Requests that are not committed, by key: their earliest sample, and when they failed.
    pending: HashMap<Uuid, Pending>,
    newest_ms: Option<i64>,
    /// The largest lag of this window and of the one before.
    lag_ms: [i64; 2],
    window_end_ms: i64,
}

#[derive(Debug)]
struct Pending {
    earliest_ms: i64,
    attempts: usize,
    failed_at_ms: Option<i64>,
}

impl Watermark {
    /// Before anything is committed. A request that failed is waited for so long.
    #[must_use]
    pub fn new(failed_kept_ms: i64) -> Self {
        Self { failed_kept_ms, pending: HashMap::new(), newest_ms: None, lag_ms: [0, 0], window_end_ms: 0 }
    }

    /// A request with samples from `earliest_ms` to `latest_ms` begins to be stored. Its lag is that of the latest: what
    /// an exporter itself dates back says nothing of the sender, and is held by a standby for a while in any case.
    pub fn begin(&mut self, key: Uuid, earliest_ms: i64, latest_ms: i64, now_ms: i64) {
        if now_ms >= self.window_end_ms {
            self.lag_ms = [0, self.lag_ms[0]];
            self.window_end_ms = now_ms + WINDOW_MS;
        }
        self.lag_ms[0] = self.lag_ms[0].max(now_ms.saturating_sub(latest_ms));
        let pending = self.pending.entry(key).or_insert(Pending { earliest_ms, attempts: 0, failed_at_ms: None });
        pending.attempts += 1;
        pending.failed_at_ms = None;
    }

    /// It is committed; its latest sample is `latest_ms`.
    pub fn committed(&mut self, key: Uuid, latest_ms: i64, now_ms: i64) {
        self.pending.remove(&key);
        // A sender's clock that is ahead must not carry the watermark past what others still have to send.
        let latest_ms = latest_ms.min(now_ms);
        self.newest_ms = Some(self.newest_ms.map_or(latest_ms, |newest_ms| newest_ms.max(latest_ms)));
    }

    /// It failed, or its outcome is unknown: it will come again.
    pub fn failed(&mut self, key: Uuid, now_ms: i64) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.attempts = pending.attempts.saturating_sub(1);
            if pending.attempts == 0 {
                pending.failed_at_ms = Some(now_ms);
            }
        }
    }

    /// How far this leader has got.
    pub fn progress(&mut self, now_ms: i64) -> Progress {
        self.pending.retain(|_, pending| pending.failed_at_ms.is_none_or(|at_ms| now_ms - at_ms < self.failed_kept_ms));
        Progress {
            newest_ms: self.newest_ms,
            lag_ms: self.lag_ms[0].max(self.lag_ms[1]),
            pending_ms: self.pending.values().map(|pending| pending.earliest_ms).min(),
        }
    }

    /// The watermark, ms since 1970; `None` before anything is committed.
    pub fn at(&mut self, now_ms: i64) -> Option<i64> {
        let Progress { newest_ms, lag_ms, pending_ms } = self.progress(now_ms);
        let behind_newest = newest_ms?.saturating_sub(lag_ms).saturating_sub(MARGIN_MS);
        Some(pending_ms.map_or(behind_newest, |pending_ms| behind_newest.min(pending_ms.saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn stays_behind_what_is_unfinished_or_failed() {
        let mut watermark = Watermark::new(FAILED_KEPT_MS);
        assert_eq!(watermark.at(0), None);
        watermark.begin(key(1), 100_000, 100_000, 101_000);
        watermark.begin(key(2), 50_000, 50_000, 101_000);
        watermark.committed(key(1), 100_500, 101_000);
        assert_eq!(watermark.at(101_000), Some(100_500 - 51_000 - MARGIN_MS), "behind the lag of 51 s");
        let mut watermark = Watermark::new(FAILED_KEPT_MS);
        watermark.begin(key(1), 100_000, 100_000, 100_000);
        watermark.committed(key(1), 100_000, 100_000);
        watermark.begin(key(2), 100_001, 100_001, 100_001);
        watermark.begin(key(3), 200_000, 200_000, 200_000);
        watermark.committed(key(3), 200_000, 200_000);
        assert_eq!(watermark.at(200_000), Some(100_000), "a request is still under way");
        watermark.failed(key(2), 200_000);
        assert_eq!(watermark.at(200_001), Some(100_000), "and failed");
        watermark.begin(key(2), 100_001, 100_001, 200_002);
        watermark.committed(key(2), 100_001, 200_002);
        assert!(watermark.at(200_002) < Some(100_000), "a straggler widens the lag");
        assert_eq!(watermark.at(200_002), Some(200_000 - 100_001 - MARGIN_MS));
    }

    #[test]
    fn does_not_advance_while_nothing_comes() {
        let mut watermark = Watermark::new(FAILED_KEPT_MS);
        watermark.begin(key(1), 100_000, 100_000, 100_000);
        watermark.committed(key(1), 100_000, 100_000);
        assert_eq!(watermark.at(100_000), watermark.at(900_000));
    }

    #[test]
    fn a_clock_ahead_does_not_carry_it_away() {
        let mut watermark = Watermark::new(FAILED_KEPT_MS);
        watermark.begin(key(1), 9_000_000, 9_000_000, 100_000);
        watermark.committed(key(1), 9_000_000, 100_000);
        assert_eq!(watermark.at(100_000), Some(100_000 - MARGIN_MS));
    }
}
