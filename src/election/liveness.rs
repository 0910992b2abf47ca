//! Whether the own Prometheus sends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::election::PrometheusTimeout;

/// Prometheus' longest pause between attempts after a 5xx (`max_backoff`), and the most we ask for by Retry-After:
/// silence right after a refusal of ours is our own doing.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The automatic timeout before any interval is known: Prometheus' default scrape interval.
const UNLEARNED: Duration = Duration::from_secs(60);

/// Gaps are watched for so long before they are relied on.
const LEARNING: Duration = Duration::from_secs(15);

/// The automatic timeout lies between these. Prometheus may wait for a batch to fill as long as it backs off.
const AUTOMATIC_MIN: Duration = BACKOFF_MAX;
const AUTOMATIC_MAX: Duration = Duration::from_secs(300);

/// A sender that only changes connections has opened the next by then.
pub const RECONNECT_TIME: Duration = Duration::from_millis(100);

/// Learns from write requests when the next one is overdue. Pure: time is an argument.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: PrometheusTimeout,
    /// The last sign of life, a request that began or ended.
    last: Option<Instant>,
    /// Silence before this is our own doing.
    excused_until: Option<Instant>,
    /// The first request.
    first: Option<Instant>,
    /// The longest gap seen lately; as time passes it shrinks, by a sixteenth in the time of its own length, however many
    /// requests make up a scrape.
    gap: Option<Duration>,
    in_flight: usize,
    /// The sender's last connection was closed then, and it has not been heard of since.
    gone: Option<Instant>,
}

impl Liveness {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self { timeout, last: None, excused_until: None, first: None, gap: None, in_flight: 0, gone: None }
    }

    /// A write request arrived.
    pub fn begin(&mut self, now: Instant) {
        self.in_flight += 1;
        if let (Some(last), true) = (self.last, self.excused_until.is_none_or(|until| until <= now)) {
            let gap = now.saturating_duration_since(last);
            self.gap = Some(self.gap.map_or(gap, |known| gap.max(known.saturating_sub(gap / 16))));
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.first = self.first.or(Some(now));
        self.gone = None;
    }

    /// A write request was answered; `refused` means by a 5xx, after which the sender pauses.
    pub fn end(&mut self, now: Instant, refused: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        // One that was accepted ends the pause, whatever was refused before.
        self.excused_until = refused.then(|| now + BACKOFF_MAX);
    }

    /// When the own Prometheus counts as silent if nothing more is heard of it; `None` is never. One that has not sent
    /// yet is silent since for ever.
    #[must_use]
    pub fn silent_at(&self, now: Instant) -> Option<Instant> {
        let timeout = self.timeout()?;
        let Some(last) = self.last else { return Some(now) };
        if let Some(gone) = self.gone {
            return Some(gone + RECONNECT_TIME);
        }
        if self.in_flight > 0 {
            return Some(now + timeout);
        }
        Some(last.max(self.excused_until.unwrap_or(last)) + timeout)
    }

    /// The sender's last connection was closed. One that keeps connections open between requests has died or restarted,
    /// and what it had not sent it never will: the sooner its twin takes over, which has all of it, the better.
    pub fn gone(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.gone = Some(now);
        }
    }

    /// This process itself did not run from `since` until `now`: nobody can have been heard. One that was silent before
    /// is so still.
    pub fn excuse(&mut self, since: Instant, now: Instant) {
        if self.silent_at(since).is_some_and(|at| at > since) {
            self.excused_until = Some(self.excused_until.map_or(now, |until| until.max(now)));
        }
    }

    /// The timeout in force; `None` is never.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        match self.timeout {
            PrometheusTimeout::Never => None,
            PrometheusTimeout::After(timeout) => Some(timeout),
            PrometheusTimeout::Automatic => {
                let learned = self.first.zip(self.last).is_some_and(|(first, last)| last - first >= LEARNING);
                let from_gap = self.gap.map_or(Duration::ZERO, |gap| gap * 5 / 2);
                let timeout = if learned { from_gap } else { from_gap.max(UNLEARNED) };
                Some(timeout.clamp(AUTOMATIC_MIN, AUTOMATIC_MAX))
            }
        }
    }

    /// Whether the sender's connections are closed, rather than silent.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// When the sender's last connection was closed, if it has not been heard of since.
    #[must_use]
    pub fn gone_at(&self) -> Option<Instant> {
        self.gone
    }

    /// The last sign of life.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }
}

/// A [`Liveness`] that the write path feeds and the election reads.
#[derive(Debug)]
pub struct Heard {
    liveness: Mutex<Liveness>,
    begun: Notify,
    gone: Notify,
    lines: Mutex<Lines>,
    unsupported: Mutex<Option<String>>,
}

/// The connections that have carried a write request and are open.
#[derive(Debug, Default)]
struct Lines {
    open: usize,
    /// One of them has carried several: its sender keeps connections between requests.
    kept: bool,
}

/// A connection that may carry write requests.
#[derive(Debug)]
pub struct Line {
    heard: Arc<Heard>,
    requests: AtomicUsize,
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
        Self {
            liveness: Mutex::new(Liveness::new(timeout)),
            begun: Notify::new(),
            gone: Notify::new(),
            lines: Mutex::default(),
            unsupported: Mutex::default(),
        }
    }

    /// Notes a write request.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.with(|liveness| liveness.begin(Instant::now()));
        self.begun.notify_one();
        InFlight { heard: Arc::clone(self), refused: false }
    }

    /// A request was refused for its message or encoding, as `why` says, and the next of its kind will be too. Its
    /// sender is there, but counts as silent: another Prometheus may send what can be stored.
    pub fn unsupported(&self, why: String) {
        *self.why_unsupported() = Some(why);
    }

    /// A request could be read. Returns whether the one before was [`Heard::unsupported`].
    pub fn supported(&self) -> bool {
        self.why_unsupported().take().is_some()
    }

    /// Why the latest request was [`Heard::unsupported`]; `None` if one could be read since.
    #[must_use]
    pub fn only_unsupported(&self) -> Option<String> {
        self.why_unsupported().clone()
    }

    /// Waits for a request to begin, one that began since the last wait included.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// A connection is open; dropped when it is closed.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> Line {
        Line { heard: Arc::clone(self), requests: AtomicUsize::new(0) }
    }

    /// Waits for the last connection to be closed, one that was since the last wait included.
    pub async fn gone(&self) {
        self.gone.notified().await;
    }

    /// See [`Liveness::excuse`].
    pub fn excuse(&self, since: Instant, now: Instant) {
        self.with(|liveness| liveness.excuse(since, now));
    }

    /// A copy to decide by.
    #[must_use]
    pub fn read(&self) -> Liveness {
        self.with(|liveness| liveness.clone())
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn why_unsupported(&self) -> MutexGuard<'_, Option<String>> {
        self.unsupported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Liveness) -> T) -> T {
        work(&mut self.liveness.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Line {
    /// It has carried a write request.
    pub fn wrote(&self) {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut lines = self.heard.lines();
        lines.open += usize::from(before == 0);
        lines.kept |= before > 0;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if *self.requests.get_mut() == 0 {
            return;
        }
        let mut lines = self.heard.lines();
        lines.open -= 1;
        // A sender that opens a connection for each request says nothing by closing it.
        if lines.open == 0 && std::mem::take(&mut lines.kept) {
            self.heard.with(|liveness| liveness.gone(Instant::now()));
            self.heard.gone.notify_one();
        }
    }
}

impl InFlight {
    /// The request was answered by a 5xx. One whose sender has gone before the answer was not refused: nobody pauses.
    pub fn refused(mut self) {
        self.refused = true;
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
    fn an_accepted_request_ends_the_excuse() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
        liveness.begin(start);
        liveness.end(start, true);
        liveness.begin(at(start, 100));
        liveness.end(at(start, 200), false);
        assert_eq!(liveness.silent_at(at(start, 200)), Some(at(start, 3_200)));
    }

    #[test]
    fn a_sender_that_vanishes_is_not_excused() {
        let heard = Arc::new(Heard::new(PrometheusTimeout::After(Duration::from_secs(3))));
        let silent_in = || heard.read().silent_at(Instant::now()).unwrap().saturating_duration_since(Instant::now());
        drop(heard.begin());
        assert!(silent_in() <= Duration::from_secs(3));
        heard.begin().refused();
        assert!(silent_in() > Duration::from_secs(3));
    }

    #[test]
    fn the_gap_after_a_refusal_is_not_learned() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
        let beats = [(0, false), (3_000, true), (7_900, false), (10_900, false), (13_900, false), (16_900, false)];
        for (ms, refused) in beats {
            liveness.begin(at(start, ms));
            liveness.end(at(start, ms), refused);
        }
        assert_eq!(liveness.timeout(), Some(Duration::from_millis(7_500)));
    }

    #[test]
    fn automatic_stays_within_its_bounds() {
        let check = |gap_ms: u64, expected| {
            let start = Instant::now();
            let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
            for beat in 0..=15_000 / gap_ms.min(15_000) {
                liveness.begin(at(start, beat * gap_ms));
                liveness.end(at(start, beat * gap_ms), false);
            }
            assert_eq!(liveness.timeout(), Some(expected), "{gap_ms} ms");
        };
        check(100, AUTOMATIC_MIN);
        check(15_000, Duration::from_millis(37_500));
        check(3_600_000, AUTOMATIC_MAX);
    }

    #[test]
    fn a_scrape_of_many_requests_is_one_beat() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
        for scrape in 0..20 {
            for request in 0..50 {
                let now = at(start, scrape * 30_000 + request * 5);
                assert!(liveness.silent_at(now).unwrap() >= now || scrape == 0, "scrape {scrape}, request {request}");
                liveness.begin(now);
                liveness.end(now, false);
                assert!(scrape < 2 || liveness.timeout() > Some(Duration::from_secs(60)));
            }
        }
    }

    #[test]
    fn several_requests_at_once_are_life_until_the_last_ends() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
        liveness.begin(start);
        liveness.begin(at(start, 100));
        liveness.end(at(start, 200), false);
        assert_eq!(liveness.silent_at(at(start, 60_000)), Some(at(start, 63_000)), "one is still under way");
        liveness.end(at(start, 61_000), false);
        assert_eq!(liveness.silent_at(at(start, 62_000)), Some(at(start, 64_000)));
    }

    #[test]
    fn a_sender_whose_connections_close_is_gone() {
        let heard = Arc::new(Heard::new(PrometheusTimeout::After(Duration::from_secs(60))));
        let silent_in = || heard.read().silent_at(Instant::now()).unwrap().saturating_duration_since(Instant::now());
        let (first, second) = (heard.line(), heard.line());
        for line in [&first, &first, &second, &second] {
            drop(heard.begin());
            line.wrote();
        }
        drop(heard.line());
        drop(first);
        assert!(silent_in() > Duration::from_secs(50), "one is still open");
        let third = heard.line();
        drop(heard.begin());
        third.wrote();
        drop(second);
        assert!(silent_in() > Duration::from_secs(50), "one is still open");
        drop(third);
        assert!(silent_in() <= RECONNECT_TIME, "though the last of them carried only one");
        drop(heard.begin());
        assert!(silent_in() > Duration::from_secs(50), "it is back");
        heard.line().wrote();
        assert!(silent_in() > Duration::from_secs(50), "one request a connection is a habit, not an end");
    }

    #[test]
    fn an_own_freeze_is_nobodys_silence() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
        liveness.begin(start);
        liveness.end(start, false);
        liveness.excuse(at(start, 1_000), at(start, 10_000));
        assert_eq!(liveness.silent_at(at(start, 10_000)), Some(at(start, 13_000)));
        liveness.excuse(at(start, 14_000), at(start, 20_000));
        assert_eq!(liveness.silent_at(at(start, 20_000)), Some(at(start, 13_000)), "silent before, silent after");
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
        for second in 1..15 {
            assert_eq!(beat(second * 1_000), UNLEARNED, "too early to tell");
        }
        assert_eq!(beat(15_000), AUTOMATIC_MIN);
        assert_eq!(beat(18_000), Duration::from_millis(7_500));
        assert!(beat(18_010) > Duration::from_millis(7_400), "a short gap hardly changes it");
    }
}
