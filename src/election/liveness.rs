//! Whether the own Prometheus sends. Pure: time is an argument.

use std::time::{Duration, Instant};

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

#[cfg(test)]
mod tests;
