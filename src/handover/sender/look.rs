//! A look at the buffer: which samples were observed to be stored, and which have waited long enough to be compared.
//! Pure.

use std::time::{Duration, Instant};

use crate::handover::buffer::{Buffer, Buffered, Fate};
use crate::handover::coverage::{By, Slot, Stored, is_taken};
use crate::handover::sender::Sender;
use crate::handover::series::SeriesHistory;
use crate::model::sender::SenderNo;
use crate::storage::row::Row;

/// Result of one look at the buffer.
#[derive(Debug, Default)]
pub struct Looked {
    /// Number of samples that were observed to be covered.
    pub covered: usize,
    /// Samples to be compared with what is stored around them. To be put back if that fails.
    pub due: Vec<Buffered>,
}

/// Time after two intervals at which an uncovered sample is reconciled: Prometheus' default `batch_send_deadline`.
const DUE_AFTER: Duration = Duration::from_secs(5);

/// Maximum for two intervals: samples that are not scraped at all, like history, must not wait for hours. Also the wait
/// where the interval is not known.
const DUE_MAX: Duration = Duration::from_secs(120);

/// Bounds of the time between two looks at a buffered sample, which is a quarter of the usual interval.
const LOOK_MIN: Duration = Duration::from_millis(900);

const LOOK_MAX: Duration = Duration::from_secs(15);

impl Sender {
    /// Drops samples that were observed to be covered, and takes out about `count` samples that stayed uncovered for so
    /// long that they are to be reconciled. With `is_last` (the last look before the adapter ends, or this sender
    /// leads), uncovered samples are taken out without waiting.
    #[must_use]
    pub fn look(&mut self, count: usize, is_last: bool, now: Instant) -> Looked {
        let every = match is_last {
            true => Duration::ZERO,
            false => Duration::from_millis(self.series.usual_ms().unsigned_abs() / 4).clamp(LOOK_MIN, LOOK_MAX),
        };
        let mut buffer = std::mem::replace(&mut self.buffer, Buffer::new(0));
        let may_be_due = count > 0;
        let mut recent = std::mem::take(&mut self.recent);
        let fate = |sample: &Buffered| {
            if self.is_covered(sample) {
                recent.add(std::iter::once(sample.clone()), now);
                return Fate::Covered;
            }
            if may_be_due && (is_last || self.is_due(sample, now)) { Fate::Due } else { Fate::Keep }
        };
        let (covered, due) = buffer.look(now, every, if may_be_due { count } else { usize::MAX }, fate);
        (self.buffer, self.recent) = (buffer, recent);
        Looked { covered, due }
    }

    fn is_due(&self, sample: &Buffered, now: Instant) -> bool {
        let SeriesHistory { interval_ms, guess_ms, is_led, .. } =
            self.series.get(sample.row.series_id, sample.row.time_ms);
        // If the leader sends the series, its next samples will show whether it is covered. Samples that come by one of
        // several adapters may be several intervals apart.
        let guesses_ms = if is_led { [0, 0] } else { [guess_ms, self.series.usual_ms()] };
        let guess_ms = guesses_ms.into_iter().filter(|ms| *ms > 0).min().unwrap_or(0);
        let two_intervals = match if interval_ms > 0 { interval_ms } else { guess_ms } {
            0 => DUE_MAX,
            interval_ms => Duration::from_millis(interval_ms.unsigned_abs().saturating_mul(2)).min(DUE_MAX),
        };
        let waited = two_intervals + DUE_AFTER;
        let age = now.saturating_duration_since(sample.arrived);
        let is_catching_up = self.leader_newest.is_some_and(|(newest_ms, at)| {
            newest_ms.saturating_add(self.skew_ms(sample, newest_ms)) < sample.row.time_ms
                && now.saturating_duration_since(at) < waited
        });
        age >= waited && !(is_led && is_catching_up && age < DUE_MAX + DUE_AFTER)
    }

    /// Returns `true` if stored samples of another sender are known to cover it. Own samples do not count: storing them
    /// may have failed.
    pub(super) fn is_covered(&self, sample: &Buffered) -> bool {
        let Row { series_id, time_ms, .. } = sample.row;
        let times = self.series.times(series_id).filter(|slot| !slot.is_own);
        let interval_ms = self.series.get(series_id, time_ms).interval_ms;
        let is_taken_by = |other: Option<SenderNo>| {
            let stored = |Slot { time_ms: stored_ms, .. }: Slot| {
                let skew_ms = other.map_or(0, |other| self.clocks.skew_ms(time_ms, other, stored_ms));
                Stored { time_ms: stored_ms, by: By::Other { skew_ms } }
            };
            is_taken(time_ms, times.clone().map(stored), interval_ms)
        };
        // It must be covered whichever of the others stored the samples.
        let mut others = self.clocks.others().peekable();
        if others.peek().is_none() { is_taken_by(None) } else { others.all(|other| is_taken_by(Some(other))) }
    }
}
