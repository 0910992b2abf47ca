//! Whether the own Prometheus sends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::election::PrometheusTimeout;

/// Prometheus' longest pause between attempts after a 5xx (`max_backoff`), and the most we ask for by Retry-After:
/// silence right after a refusal of ours is our own doing.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The automatic timeout before any interval is known: as it is for Prometheus' default scrape interval, a minute.
const UNLEARNED: Duration = Duration::from_secs(150);

/// Gaps are watched for so long before the automatic timeout relies on them.
const LEARNING: Duration = Duration::from_secs(15);

/// And for so long, and as long as so many of the longest take, before a closed connection is judged by them: a scrape of many
/// requests is no pace.
const PACE_LEARNING: Duration = Duration::from_secs(5);
const PACE_GAPS: u32 = 4;

/// The automatic timeout lies between these. Prometheus may wait for a batch to fill as long as it backs off.
const AUTOMATIC_MIN: Duration = BACKOFF_MAX;
const AUTOMATIC_MAX: Duration = Duration::from_secs(300);

/// A sender that has closed its connections is waited for so much longer than its longest gap, or for a quarter of that.
pub const LATE: Duration = Duration::from_secs(1);

/// Learns from write requests when the next one is overdue. Pure: time is an argument.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: PrometheusTimeout,
    /// The last sign of life, a request that began or ended.
    last: Option<Instant>,
    /// Silence before this is our own doing.
    paused_until: Option<Instant>,
    /// The first request.
    first: Option<Instant>,
    /// The longest gap seen lately; as time passes it shrinks, by a sixteenth in the time of its own length, however many
    /// requests make up a scrape.
    gap: Option<Duration>,
    /// The last gap for which the sender, its connections closed, counted as silent. One may be a restart, which is no gap of
    /// a sender that runs; a second one is how it sends.
    outage: Option<Duration>,
    in_flight: usize,
    /// Connections that are open and have carried a request of this sender alone.
    connections: usize,
    /// One of those, or of those closed since there was none, has carried several.
    are_kept: bool,
    /// When the last of them was closed, if the sender has not been heard of since.
    closed_at: Option<Instant>,
}

impl Liveness {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self {
            timeout,
            last: None,
            paused_until: None,
            first: None,
            gap: None,
            outage: None,
            in_flight: 0,
            connections: 0,
            are_kept: false,
            closed_at: None,
        }
    }

    /// A write request arrived.
    pub fn begin(&mut self, now: Instant) {
        self.in_flight += 1;
        if let (Some(last), true) = (self.last, self.paused_until.is_none_or(|until| until <= now)) {
            self.learn(now.saturating_duration_since(last), now);
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.first = self.first.or(Some(now));
        self.closed_at = None;
    }

    /// A write request was answered; `refused` means by a 5xx, after which the sender pauses.
    pub fn end(&mut self, now: Instant, refused: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        // One that was accepted ends the pause, whatever was refused before.
        self.paused_until = refused.then(|| now + BACKOFF_MAX);
    }

    /// A connection has carried its first write request.
    pub fn connected(&mut self) {
        self.connections += 1;
    }

    /// Such a connection has been found to carry other senders' requests too: that it is closed will tell nothing.
    pub fn shared(&mut self) {
        self.connections = self.connections.saturating_sub(1);
    }

    /// Such a connection was closed; `kept` if it had carried several requests. A sender that opens one for each request says
    /// nothing by closing it. Returns whether [`Liveness::silent_at`] may be another for it.
    pub fn closed(&mut self, kept: bool, now: Instant) -> bool {
        self.connections = self.connections.saturating_sub(1);
        self.are_kept |= kept;
        let tells = self.connections == 0 && std::mem::take(&mut self.are_kept) && self.in_flight == 0;
        if tells {
            self.closed_at = Some(now);
        }
        tells
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
        self.overdue_at(last, self.closed_at)
    }

    /// When it counts as silent if it was heard last at `last`, and closed its connections at `closed_at`; `None` is never. A
    /// closed connection is no evidence of a dead sender: there are those that close idle ones, and proxies that renew them.
    /// But one that sends often would be back soon, so it shortens the wait to the longest gap lately, once that is known.
    #[must_use]
    pub fn overdue_at(&self, last: Instant, closed_at: Option<Instant>) -> Option<Instant> {
        let last = last.max(self.paused_until.unwrap_or(last));
        let by_timeout = last + self.timeout()?;
        let by_gap =
            closed_at.zip(self.known_gap()).map(|(closed_at, gap)| closed_at.max(last + gap + LATE.max(gap / 4)));
        Some(by_gap.map_or(by_timeout, |by_gap| by_gap.min(by_timeout)))
    }

    /// This process itself did not run from `since` until `now`: nobody can have been heard. One that was silent before
    /// is so still.
    pub fn discount_pause(&mut self, since: Instant, now: Instant) {
        if self.silent_at(since).is_some_and(|at| at > since) {
            self.paused_until = Some(self.paused_until.map_or(now, |until| until.max(now)));
        }
    }

    /// The timeout in force; `None` is never.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        match self.timeout {
            PrometheusTimeout::Never => None,
            PrometheusTimeout::After(timeout) => Some(timeout),
            PrometheusTimeout::Automatic => {
                let from_gap = self.gap.map_or(Duration::ZERO, |gap| gap * 5 / 2);
                let timeout = if self.heard_for() >= LEARNING { from_gap } else { from_gap.max(UNLEARNED) };
                Some(timeout.clamp(AUTOMATIC_MIN, AUTOMATIC_MAX))
            }
        }
    }

    /// When the sender closed the last of its connections, if it has not been heard of since.
    #[must_use]
    pub fn closed_at(&self) -> Option<Instant> {
        self.closed_at
    }

    /// The last sign of life.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// A request came `gap` after the last sign of life.
    fn learn(&mut self, gap: Duration, now: Instant) {
        let is_outage = self.closed_at.is_some()
            && self
                .last
                .and_then(|last| self.overdue_at(last, self.closed_at))
                .is_some_and(|overdue_at| overdue_at < now);
        let learned = if is_outage { self.outage.replace(gap).map(|before| before.min(gap)) } else { Some(gap) };
        if let Some(learned) = learned {
            self.gap = Some(self.gap.map_or(learned, |known| learned.max(known.saturating_sub(gap / 16))));
        }
    }

    fn known_gap(&self) -> Option<Duration> {
        self.gap.filter(|gap| self.heard_for() >= PACE_LEARNING.max(*gap * PACE_GAPS))
    }

    /// From the first to the last sign of life.
    fn heard_for(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// A [`Liveness`] that the write path feeds and the election reads.
#[derive(Debug)]
pub struct LivenessMonitor {
    liveness: Mutex<Liveness>,
    begun: Notify,
    closed: Notify,
    unsupported: Mutex<Option<String>>,
}

/// A connection that may carry write requests.
#[derive(Debug)]
pub struct ConnectionTracker {
    heard: Arc<LivenessMonitor>,
    requests: AtomicUsize,
}

/// A request under way; tells when it is over, also when it is dropped.
#[derive(Debug)]
pub struct InFlight {
    heard: Arc<LivenessMonitor>,
    refused: bool,
}

impl LivenessMonitor {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self {
            liveness: Mutex::new(Liveness::new(timeout)),
            begun: Notify::new(),
            closed: Notify::new(),
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

    /// A request could be read. Returns whether the one before was [`LivenessMonitor::unsupported`].
    pub fn supported(&self) -> bool {
        self.why_unsupported().take().is_some()
    }

    /// Why the latest request was [`LivenessMonitor::unsupported`]; `None` if one could be read since.
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
    pub fn line(self: &Arc<Self>) -> ConnectionTracker {
        ConnectionTracker { heard: Arc::clone(self), requests: AtomicUsize::new(0) }
    }

    /// Waits for the last connection to be closed, one that was since the last wait included.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    /// See [`Liveness::discount_pause`].
    pub fn discount_pause(&self, since: Instant, now: Instant) {
        self.with(|liveness| liveness.discount_pause(since, now));
    }

    /// A copy to decide by.
    #[must_use]
    pub fn read(&self) -> Liveness {
        self.with(|liveness| liveness.clone())
    }

    fn why_unsupported(&self) -> MutexGuard<'_, Option<String>> {
        self.unsupported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Liveness) -> T) -> T {
        work(&mut self.liveness.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ConnectionTracker {
    /// It has carried a write request.
    pub fn wrote(&self) {
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            self.heard.with(Liveness::connected);
        }
    }
}

impl Drop for ConnectionTracker {
    fn drop(&mut self) {
        let requests = *self.requests.get_mut();
        if requests > 0 && self.heard.with(|liveness| liveness.closed(requests > 1, Instant::now())) {
            self.heard.closed.notify_one();
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
        let heard = Arc::new(LivenessMonitor::new(PrometheusTimeout::After(Duration::from_secs(3))));
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
    fn lines_count_the_connections_that_are_open() {
        let heard = Arc::new(LivenessMonitor::new(PrometheusTimeout::After(Duration::from_secs(60))));
        let is_closed = || heard.read().closed_at().is_some();
        let (first, second) = (heard.line(), heard.line());
        for line in [&first, &first, &second] {
            drop(heard.begin());
            line.wrote();
        }
        drop(heard.line());
        drop(first);
        assert!(!is_closed(), "one is still open");
        let third = heard.line();
        drop(heard.begin());
        third.wrote();
        drop(second);
        assert!(!is_closed(), "one is still open");
        drop(third);
        assert!(is_closed(), "though the last of them carried only one");
        drop(heard.begin());
        assert!(!is_closed(), "it is back");
        heard.line().wrote();
        assert!(!is_closed(), "one request a connection is a habit, not an end");
    }

    #[test]
    fn an_own_freeze_is_nobodys_silence() {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
        liveness.begin(start);
        liveness.end(start, false);
        liveness.discount_pause(at(start, 1_000), at(start, 10_000));
        assert_eq!(liveness.silent_at(at(start, 10_000)), Some(at(start, 13_000)));
        liveness.discount_pause(at(start, 14_000), at(start, 20_000));
        assert_eq!(liveness.silent_at(at(start, 20_000)), Some(at(start, 13_000)), "silent before, silent after");
    }

    #[test]
    fn never_is_never() {
        assert_eq!(Liveness::new(PrometheusTimeout::Never).silent_at(Instant::now()), None);
    }

    /// What is known of a sender that makes so many `requests`, 5 ms apart, at each of these times, in ms; and at which of them
    /// it counted as silent. Its connection is closed when it has been idle for so many ms, if it is at all.
    fn sends(
        timeout: PrometheusTimeout,
        times: impl IntoIterator<Item = u64>,
        requests: u64,
        idle: Option<u64>,
    ) -> (Instant, Liveness, Vec<u64>) {
        let start = Instant::now();
        let mut liveness = Liveness::new(timeout);
        let (mut last, mut carried, mut silent) = (0, 0, Vec::new());
        for ms in times {
            if let Some(closed) = idle.map(|idle| last + idle).filter(|closed| carried > 0 && *closed <= ms) {
                liveness.closed(carried > 1, at(start, closed));
                carried = 0;
            }
            if liveness.last().is_some() && liveness.silent_at(at(start, ms)) <= Some(at(start, ms)) {
                silent.push(ms);
            }
            for request in 0..requests {
                last = ms + request * 5;
                liveness.begin(at(start, last));
                liveness.end(at(start, last), false);
                if carried == 0 {
                    liveness.connected();
                }
                carried += 1;
            }
        }
        (start, liveness, silent)
    }

    const TIMEOUTS: [PrometheusTimeout; 2] =
        [PrometheusTimeout::Automatic, PrometheusTimeout::After(Duration::from_secs(180))];

    #[test]
    fn one_that_closes_idle_connections_is_not_silent() {
        for timeout in TIMEOUTS {
            // vmagent: after 60 s, where scrapes are 75 s apart; the OpenTelemetry Collector after 90 s.
            for (interval, idle) in [(75_000, 60_000), (120_000, 90_000)] {
                for requests in [1, 3] {
                    let scrapes = (0..20).map(|scrape| scrape * interval);
                    let (_, liveness, silent) = sends(timeout, scrapes, requests, Some(idle));
                    assert_eq!(silent, [0; 0], "{timeout:?}, every {interval} ms, {requests} requests");
                    assert!(liveness.timeout() > Some(Duration::from_secs(150)));
                }
            }
        }
    }

    #[test]
    fn one_that_renews_its_connections_is_not_silent() {
        for timeout in TIMEOUTS {
            for interval in [1_000, 5_000, 15_000, 60_000] {
                // One for each request, as without keep-alive; and one for each scrape of several.
                for requests in [1, 2, 50] {
                    let scrapes = (0..100).map(|scrape| scrape * interval + scrape % 3 * interval / 10);
                    let (_, _, silent) = sends(timeout, scrapes, requests, Some(0));
                    assert_eq!(silent, [0; 0], "{timeout:?}, every {interval} ms, {requests} requests");
                }
            }
        }
    }

    #[test]
    fn one_that_dies_is_followed_within_its_pace_and_a_second() {
        for timeout in TIMEOUTS {
            let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 2, None);
            let last = at(start, 60_005);
            liveness.closed(true, at(start, 60_400));
            let silent_at = liveness.silent_at(at(start, 60_400)).unwrap();
            assert!(silent_at > last + Duration::from_millis(1_900), "{timeout:?}");
            assert!(silent_at <= last + Duration::from_millis(2_000), "{timeout:?}");
            liveness.begin(at(start, 68_000));
            liveness.end(at(start, 68_000), false);
            liveness.connected();
            for second in 69..100 {
                liveness.begin(at(start, second * 1_000));
                liveness.end(at(start, second * 1_000), false);
            }
            liveness.closed(true, at(start, 99_100));
            assert_eq!(
                liveness.silent_at(at(start, 99_100)),
                Some(at(start, 101_000)),
                "the time it was down is no gap of one that runs"
            );
        }
    }

    #[test]
    fn one_that_hangs_before_it_dies_is_followed_when_it_is_closed() {
        let timeout = PrometheusTimeout::After(Duration::from_secs(60));
        let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 1, None);
        liveness.closed(true, at(start, 70_000));
        assert_eq!(liveness.silent_at(at(start, 70_000)), Some(at(start, 70_000)));
    }

    #[test]
    fn a_closed_connection_never_lengthens_the_timeout() {
        let timeout = PrometheusTimeout::After(Duration::from_secs(6));
        let (start, mut liveness, _) = sends(timeout, (0..=6).map(|time| time * 5_500), 1, None);
        liveness.closed(true, at(start, 33_100));
        assert_eq!(liveness.silent_at(at(start, 33_100)), Some(at(start, 39_000)));
        let mut never = Liveness::new(PrometheusTimeout::Never);
        never.begin(start);
        never.end(start, false);
        never.closed(true, start);
        assert_eq!(never.silent_at(start), None);
    }

    #[test]
    fn before_the_pace_is_known_a_closed_connection_tells_nothing() {
        for timeout in TIMEOUTS {
            let (start, mut liveness, _) = sends(timeout, [0, 1_000, 2_000], 3, None);
            liveness.closed(true, at(start, 2_100));
            assert!(liveness.silent_at(at(start, 2_100)) >= Some(at(start, 150_000)), "{timeout:?}");
        }
    }

    #[test]
    fn one_that_comes_to_send_less_often_is_mistaken_twice_at_most() {
        // Over one connection a scrape, closed at once: the first pauses look as restarts do.
        let scrapes = (0..60).map(|second| second * 1_000).chain((1..20).map(|scrape| 59_000 + scrape * 30_000));
        let (_, _, silent) = sends(PrometheusTimeout::After(Duration::from_secs(180)), scrapes, 2, Some(0));
        assert_eq!(silent, [89_000, 119_000]);
    }

    #[test]
    fn our_refusals_are_no_silence_of_one_whose_connections_are_closed() {
        let timeout = PrometheusTimeout::After(Duration::from_secs(60));
        let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 1, None);
        liveness.begin(at(start, 61_000));
        liveness.end(at(start, 61_000), true);
        liveness.closed(true, at(start, 61_000));
        assert_eq!(
            liveness.silent_at(at(start, 61_000)),
            Some(at(start, 61_000) + BACKOFF_MAX + Duration::from_secs(2))
        );
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
