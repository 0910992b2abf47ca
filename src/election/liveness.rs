//! Whether the own Prometheus sends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::election::PrometheusTimeout;

/// Prometheus' longest pause between attempts after a 5xx (`max_backoff`), and the most we ask for by Retry-After:
/// silence right after a refusal of ours is our own doing.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The automatic timeout before any interval is known.
const UNLEARNED: Duration = Duration::from_secs(15);

/// The automatic timeout lies between these.
const AUTOMATIC_MIN: Duration = Duration::from_secs(1);
const AUTOMATIC_MAX: Duration = Duration::from_secs(300);

/// Learns from write requests when the next one is overdue. Pure: time is an argument.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: PrometheusTimeout,
    /// The last sign of life, a request that began or ended.
    last: Option<Instant>,
    /// Silence before this is our own doing.
    excused_until: Option<Instant>,
    /// The longest gap seen lately; it shrinks by a tenth in the time it spans. By time and not by request, for the
    /// requests of one scrape come in a burst, and a backlog in a long one.
    gap: Option<Duration>,
    in_flight: usize,
}

impl Liveness {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self { timeout, last: None, excused_until: None, gap: None, in_flight: 0 }
    }

    /// A write request arrived.
    pub fn begin(&mut self, now: Instant) {
        self.in_flight += 1;
        if let (Some(last), true) = (self.last, self.excused_until.is_none_or(|until| until <= now)) {
            let gap = now.saturating_duration_since(last);
            self.gap = Some(self.gap.map_or(gap, |known| gap.max(shrunk(known, gap))));
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
    }

    /// A write request was answered; `refused` means by a 5xx, after which the sender pauses.
    pub fn end(&mut self, now: Instant, refused: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        if refused {
            self.excused_until = Some(now + BACKOFF_MAX);
        }
    }

    /// When the own Prometheus counts as silent if nothing more is heard of it; `None` is never. One that has not sent
    /// yet is silent since for ever.
    #[must_use]
    pub fn silent_at(&self, now: Instant) -> Option<Instant> {
        let timeout = self.timeout()?;
        let Some(last) = self.last else { return Some(now) };
        if self.in_flight > 0 {
            return Some(now + timeout);
        }
        Some(last.max(self.excused_until.unwrap_or(last)) + timeout)
    }

    /// The timeout in force; `None` is never.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        match self.timeout {
            PrometheusTimeout::Never => None,
            PrometheusTimeout::After(timeout) => Some(timeout),
            PrometheusTimeout::Automatic => {
                Some(self.gap.map_or(UNLEARNED, |gap| (gap * 5 / 2).clamp(AUTOMATIC_MIN, AUTOMATIC_MAX)))
            }
        }
    }

    /// The last sign of life.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }
}

/// `known` once `elapsed` has passed.
fn shrunk(known: Duration, elapsed: Duration) -> Duration {
    if known.is_zero() {
        return known;
    }
    known.mul_f64(0.9_f64.powf(elapsed.as_secs_f64() / known.as_secs_f64()))
}

/// A [`Liveness`] that the write path feeds and the election reads.
#[derive(Debug)]
pub struct Heard {
    liveness: Mutex<Liveness>,
    begun: Notify,
}

/// A request under way; tells when it is over, also when it is dropped.
#[derive(Debug)]
pub struct InFlight {
    heard: Arc<Heard>,
    refused: bool,
}

impl Heard {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self { liveness: Mutex::new(Liveness::new(timeout)), begun: Notify::new() }
    }

    /// Notes a write request.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.with(|liveness| liveness.begin(Instant::now()));
        self.begun.notify_one();
        InFlight { heard: Arc::clone(self), refused: true }
    }

    /// Waits for a request to begin, one that began since the last wait included.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// A copy to decide by.
    #[must_use]
    pub fn read(&self) -> Liveness {
        self.with(|liveness| liveness.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Liveness) -> T) -> T {
        work(&mut self.liveness.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl InFlight {
    /// The request was answered, and not by a 5xx.
    pub fn accepted(mut self) {
        self.refused = false;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.heard.with(|liveness| liveness.end(Instant::now(), self.refused));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn silence_counts_from_the_last_sign_of_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(6)));
        assert_eq!(liveness.silent_at(start), Some(start), "one that never sent is silent");
        liveness.begin(start);
        assert_eq!(liveness.silent_at(at(start, 9_000)), Some(at(start, 15_000)), "a request in flight is life");
        liveness.end(at(start, 10_000), false);
        assert_eq!(liveness.silent_at(at(start, 11_000)), Some(at(start, 16_000)));
    }

    #[test]
    fn our_refusals_are_no_silence() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
        liveness.begin(start);
        liveness.end(start, true);
        assert_eq!(liveness.silent_at(start), Some(at(start, 8_000)));
    }

    #[test]
    fn a_burst_does_not_make_it_impatient() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
        for ms in (0..60_000).step_by(5_000).flat_map(|scrape| (0..20).map(move |request| scrape + request)) {
            liveness.begin(at(start, ms));
            liveness.end(at(start, ms), false);
        }
        assert!(liveness.timeout().unwrap() > Duration::from_secs(11), "{:?}", liveness.timeout());
    }

    #[test]
    fn never_is_never() {
        assert_eq!(Liveness::new(PrometheusTimeout::Never).silent_at(Instant::now()), None);
    }

    #[test]
    fn automatic_follows_the_longest_recent_gap() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
        let mut beat = |ms| {
            liveness.begin(at(start, ms));
            liveness.end(at(start, ms), false);
            liveness.timeout().unwrap()
        };
        assert_eq!(beat(0), UNLEARNED);
        assert_eq!(beat(1_000), Duration::from_millis(2_500));
        assert!(beat(1_010) > Duration::from_millis(2_490), "a short gap hardly changes it");
        assert_eq!(beat(3_010), Duration::from_millis(5_000));
    }
}
