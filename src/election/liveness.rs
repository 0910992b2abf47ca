//! Judges from its write requests if a Prometheus still sends. Pure: time is an argument.

use std::time::{Duration, Instant};

use crate::election::PrometheusTimeout;

/// Longest pause of Prometheus between attempts after a 5xx (`max_backoff`). The adapter's `Retry-After` is never
/// longer. Silence right after a 5xx is caused by the adapter itself.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The automatic timeout before any interval is known. It fits Prometheus' default scrape interval, one minute.
const UNLEARNED: Duration = Duration::from_secs(150);

/// Time for which gaps are observed before the automatic timeout relies on them.
const LEARNING: Duration = Duration::from_secs(15);

/// Time for which gaps are observed before a closed connection is judged by them, and the number of longest gaps that
/// this time must hold. A single scrape of many requests does not show the sender's pace.
const PACE_LEARNING: Duration = Duration::from_secs(5);
const PACE_GAPS: u32 = 4;

/// Limits of the automatic timeout. Prometheus may wait as long for a batch to fill as it backs off at most.
const AUTOMATIC_MIN: Duration = BACKOFF_MAX;
const AUTOMATIC_MAX: Duration = Duration::from_secs(300);

/// Extra time that a sender with closed connections gets after its longest gap. A quarter of the gap applies instead if
/// that is longer.
pub const LATE: Duration = Duration::from_secs(1);

/// Learns from write requests when the next one is overdue. Pure: time is an argument.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: PrometheusTimeout,
    /// The last sign of life: a request began or ended.
    last: Option<Instant>,
    /// Silence before this time is caused by the adapter itself.
    paused_until: Option<Instant>,
    /// The time of the first request.
    first: Option<Instant>,
    /// The longest recent gap. In a time as long as the gap it shrinks by a sixteenth, however many requests make up a
    /// scrape.
    gap: Option<Duration>,
    /// The last gap after which the sender, with its connections closed, counted as silent. One such gap may be a
    /// restart, which is no gap of a running sender. A second one shows how the sender sends.
    outage: Option<Duration>,
    in_flight: usize,
    /// Open connections that have carried requests of this sender alone.
    connections: usize,
    /// `true` if one of these connections, or of those closed since none was open, has carried several requests.
    are_kept: bool,
    /// When the last of these connections was closed, if the sender has not been heard since.
    closed_at: Option<Instant>,
}

impl Liveness {
    /// Returns the state before the first request.
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

    /// Notes that a write request has arrived.
    pub fn begin(&mut self, now: Instant) {
        self.in_flight += 1;
        if let (Some(last), true) = (self.last, self.paused_until.is_none_or(|until| until <= now)) {
            self.learn(now.saturating_duration_since(last), now);
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.first = self.first.or(Some(now));
        self.closed_at = None;
    }

    /// Notes that a write request was answered. `refused` means by a 5xx, after which the sender backs off.
    pub fn end(&mut self, now: Instant, refused: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        // An accepted request ends the pause, whatever was refused before.
        self.paused_until = refused.then(|| now + BACKOFF_MAX);
    }

    /// Notes that a connection has carried its first write request.
    pub fn connected(&mut self) {
        self.connections += 1;
    }

    /// Notes that such a connection also carries requests of other senders: its close then tells nothing.
    pub fn shared(&mut self) {
        self.connections = self.connections.saturating_sub(1);
    }

    /// Notes that such a connection was closed; `kept` if it had carried several requests. A sender that opens a
    /// connection for each request tells nothing by closing it. Returns `true` if [`Liveness::silent_at`] may change by
    /// it.
    pub fn closed(&mut self, kept: bool, now: Instant) -> bool {
        self.connections = self.connections.saturating_sub(1);
        self.are_kept |= kept;
        let tells = self.connections == 0 && std::mem::take(&mut self.are_kept) && self.in_flight == 0;
        if tells {
            self.closed_at = Some(now);
        }
        tells
    }

    /// Returns when the own Prometheus counts as silent if no more requests arrive; `None` means never. A Prometheus
    /// that has not sent yet is silent already.
    #[must_use]
    pub fn silent_at(&self, now: Instant) -> Option<Instant> {
        let timeout = self.timeout()?;
        let Some(last) = self.last else { return Some(now) };
        if self.in_flight > 0 {
            return Some(now + timeout);
        }
        self.overdue_at(last, self.closed_at)
    }

    /// Returns when the sender counts as silent if it was last heard at `last` and closed its connections at
    /// `closed_at`; `None` means never. A closed connection does not prove that the sender is dead: some senders close
    /// idle connections, and some proxies renew them. But a sender that sends often would soon be back. So a closed
    /// connection shortens the wait to the longest recent gap, once that is known.
    #[must_use]
    pub fn overdue_at(&self, last: Instant, closed_at: Option<Instant>) -> Option<Instant> {
        let last = last.max(self.paused_until.unwrap_or(last));
        let by_timeout = last + self.timeout()?;
        let by_gap =
            closed_at.zip(self.known_gap()).map(|(closed_at, gap)| closed_at.max(last + gap + LATE.max(gap / 4)));
        Some(by_gap.map_or(by_timeout, |by_gap| by_gap.min(by_timeout)))
    }

    /// Notes that this process did not run from `since` until `now`, so it could not hear any sender. A sender that was
    /// silent before stays silent.
    pub fn discount_pause(&mut self, since: Instant, now: Instant) {
        if self.silent_at(since).is_some_and(|at| at > since) {
            self.paused_until = Some(self.paused_until.map_or(now, |until| until.max(now)));
        }
    }

    /// Returns the timeout in force; `None` means never.
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

    /// Returns when the sender closed the last of its connections, if it has not been heard since.
    #[must_use]
    pub fn closed_at(&self) -> Option<Instant> {
        self.closed_at
    }

    /// Returns the time of the last sign of life.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Learns from a request that came `gap` after the last sign of life.
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

    /// Returns the time from the first to the last sign of life.
    fn heard_for(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

#[cfg(test)]
mod tests;
