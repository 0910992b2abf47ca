//! Comparison of a sender's samples with what is stored around them, to find the missing ones. Pure.

use std::collections::HashMap;

use crate::handover::buffer::Buffered;
use crate::handover::coverage::{By, Candidate, Slot, Stored, missing};
use crate::handover::sender::Sender;
use crate::handover::series::{GAP_MS, STEP_MAX_MS, SeriesHistory};
use crate::model::sender::SenderNo;
use crate::storage::around::{Around, StoredTime};
use crate::storage::row::Row;

/// Number of alike steps of stored times from which they are not taken for gaps.
const STEPS_SURE: usize = 4;

/// Stored samples are looked up within a distance of this number of intervals around a sample, and at least of
/// `AROUND_MIN_MS`: neighbours may be one and a half intervals apart.
const AROUND_INTERVALS: i64 = 2;
const AROUND_MIN_MS: i64 = 2_000;

/// Distance where the interval is not known: far enough to show how often samples are stored.
const AROUND_UNKNOWN_MS: i64 = 2 * 60_000;

/// Maximum distance: no series is scraped at an interval longer than an hour.
const AROUND_MAX_MS: i64 = 2 * 60 * 60_000;

impl Sender {
    /// Returns the distance around these samples at which to look for stored ones, ms.
    #[must_use]
    pub fn window_ms(&self, samples: &[Buffered]) -> i64 {
        let around = |sample: &Buffered| match self.series.get(sample.row.series_id, sample.row.time_ms).interval_ms {
            0 => AROUND_UNKNOWN_MS,
            interval_ms => AROUND_INTERVALS * interval_ms,
        };
        let window_ms = samples.iter().map(around).max().unwrap_or(0).clamp(AROUND_MIN_MS, AROUND_MAX_MS);
        window_ms.saturating_add(self.clocks.most_ms().min(AROUND_MAX_MS))
    }

    /// Returns the series of these samples, which are in the order of series, whose last stored time is not known.
    #[must_use]
    pub fn unbounded(&self, samples: &[Buffered]) -> Vec<i64> {
        let mut series: Vec<i64> = samples.iter().map(|sample| sample.row.series_id).collect();
        series.dedup();
        series.retain(|series_id| !self.series.get(*series_id, 0).is_bounded);
        series
    }

    /// Returns those of `samples` that are not stored, judged by what is stored around them. `samples` are in the order
    /// of series and time, each once. This sender is `own`.
    #[must_use]
    pub fn missing(&self, samples: &[Buffered], around: &Around, own: SenderNo) -> Vec<Buffered> {
        let mut found = Vec::new();
        let belong_together = |one: &Buffered, next: &Buffered| {
            one.row.series_id == next.row.series_id && next.row.time_ms.saturating_sub(one.row.time_ms) <= GAP_MS
        };
        for of_series in samples.chunk_by(belong_together) {
            let series_id = of_series[0].row.series_id;
            let times = around.times.get(&series_id).map_or(&[][..], Vec::as_slice);
            let interval_ms = self.interval_of(of_series, times);
            // Each sample is judged by the offset of the clock that stamped it.
            let offset_ms = |sample: &Buffered| self.clocks.offset_ms(sample.row.time_ms);
            for samples in of_series.chunk_by(|one, next| offset_ms(one) == offset_ms(next)) {
                let by =
                    |stored: &StoredTime| Stored { time_ms: stored.time_ms, by: self.by(&samples[0], *stored, own) };
                // A stale marker is no neighbour either.
                let is_none = |stored: &&StoredTime| {
                    stored.is_marker
                        && samples.binary_search_by_key(&stored.time_ms, |sample| sample.row.time_ms).is_err()
                };
                let mut stored: Vec<Stored> = times.iter().filter(|stored| !is_none(stored)).map(by).collect();
                let before = found.iter().rev().take_while(|sample: &&Buffered| sample.row.series_id == series_id);
                stored.extend(before.map(|sample| Stored { time_ms: sample.row.time_ms, by: By::Own }));
                stored.sort_by_key(|stored| stored.time_ms);
                let candidate =
                    |sample: &Buffered| Candidate { time_ms: sample.row.time_ms, is_stamped: sample.is_stamped };
                let candidates: Vec<Candidate> = samples.iter().map(candidate).collect();
                found
                    .extend(missing(&candidates, &stored, interval_ms).into_iter().map(|place| samples[place].clone()));
            }
        }
        found
    }

    fn by(&self, sample: &Buffered, stored: StoredTime, own: SenderNo) -> By {
        let StoredTime { time_ms, sender, .. } = stored;
        let Row { series_id, time_ms: sample_ms, .. } = sample.row;
        if self.is_alone || is_own(&stored, own) {
            return By::Own;
        }
        match sender {
            Some(sender) => By::Other { skew_ms: self.clocks.skew_ms(sample_ms, sender, time_ms) },
            None if self.series.times(series_id).any(|slot| slot.is_own && slot.time_ms == time_ms) => By::Own,
            // The stored sample may be this sender's own.
            None if self.series.is_in_step(series_id, sample_ms, time_ms) != Some(false) => By::Other { skew_ms: 0 },
            None => {
                let skew_ms = |other| self.clocks.skew_ms(sample_ms, other, time_ms);
                let least_ms = self.clocks.others().map(skew_ms).min_by_key(|skew_ms| skew_ms.saturating_abs());
                By::Other { skew_ms: least_ms.unwrap_or(0) }
            }
        }
    }

    /// Notes the result of a comparison: the samples of `inserted` are stored now, all others are stored or covered.
    pub fn on_reconciled(&mut self, inserted: &[Row], unbounded: &[i64], around: &Around, own: SenderNo) {
        for series_id in unbounded {
            if let Some(last) = around.last_ms.get(series_id) {
                let is_own = self.is_alone || is_own(last, own);
                let slot = Slot { time_ms: last.time_ms, is_own };
                self.series.stored(*series_id, slot);
            }
        }
        for row in inserted {
            self.series.stored(row.series_id, Slot { time_ms: row.time_ms, is_own: true });
        }
        for series_id in unbounded {
            self.series.bounded(*series_id);
        }
    }

    /// Returns the interval of the series if it is known for sure; else an estimate by the steps of `samples` and of
    /// what is stored around them; 0 if there are no steps.
    pub(super) fn interval_of(&self, samples: &[Buffered], stored: &[StoredTime]) -> i64 {
        let SeriesHistory { interval_ms, guess_ms, is_repeated, .. } =
            self.series.get(samples[0].row.series_id, samples[0].row.time_ms);
        if interval_ms > 0 {
            return interval_ms;
        }
        // Samples of one sender are an interval apart, or several intervals where scrapes were missed or came by other
        // adapters.
        let (known, mut sealed) = steps_ms(stored);
        let own = steps(samples.iter().map(|sample| sample.row.time_ms));
        let guess = Some(guess_ms).filter(|ms| *ms > 0);
        let least_ms = known.iter().copied().chain(own).chain(guess).min();
        if least_ms.is_none() && sealed.is_empty() {
            // Steps from one sender's sample to another's show little, but nothing else is known.
            sealed = steps(stored.iter().filter(|stored| !stored.is_marker).map(|stored| stored.time_ms)).collect();
        }
        let shortest_ms = Some(self.series.shortest_ms()).filter(|ms| *ms > 0);
        // Where nothing is known, no sample covers another.
        let Some(found_ms) = least_ms.into_iter().chain(median(&sealed)).min() else { return 0 };
        let is_alike = |step_ms: &&i64| (**step_ms - found_ms).abs() <= found_ms / 4;
        // A few steps may all be gaps. A single step may span two scrapes where half of the samples come by another
        // adapter.
        match known.iter().chain(&sealed).filter(is_alike).count() {
            0..=1 if self.series.is_shared() && !is_repeated => found_ms.min(shortest_ms.unwrap_or(found_ms / 2)),
            0..STEPS_SURE => found_ms.min(shortest_ms.unwrap_or(i64::MAX)),
            _ => found_ms,
        }
    }
}

/// Returns `true` if a stored sample covers none of `own`'s: it is an own one, or a stale marker of any sender.
fn is_own(stored: &StoredTime, own: SenderNo) -> bool {
    stored.is_marker || stored.sender == Some(own)
}

/// Returns the steps of stored times, which are ascending: from each sample of a sender to its next one, and from each
/// sealed sample to the next sealed one, whoever sent them.
pub(super) fn steps_ms(stored: &[StoredTime]) -> (Vec<i64>, Vec<i64>) {
    let mut last: HashMap<Option<SenderNo>, i64> = HashMap::new();
    let (mut known, mut sealed) = (Vec::new(), Vec::new());
    let times = stored.iter().filter(|stored| !stored.is_marker);
    for StoredTime { time_ms, sender, .. } in times {
        if let Some(last_ms) = last.insert(*sender, *time_ms)
            && time_ms - last_ms <= STEP_MAX_MS.into()
        {
            if sender.is_some() { &mut known } else { &mut sealed }.push(time_ms - last_ms);
        }
    }
    (known, sealed)
}

/// Returns the steps between ascending times, except those that are too long for a series that is scraped.
fn steps(times: impl Iterator<Item = i64> + Clone) -> impl Iterator<Item = i64> {
    let later = times.clone().skip(1);
    times.zip(later).map(|(earlier, later)| later - earlier).filter(|step_ms| *step_ms <= STEP_MAX_MS.into())
}

pub(super) fn median(steps: &[i64]) -> Option<i64> {
    let mut steps = steps.to_vec();
    let middle = steps.len().checked_sub(1)? / 2;
    Some(*steps.select_nth_unstable(middle).1)
}
