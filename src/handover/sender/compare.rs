//! What of a sender's samples is missing, compared with what is stored around them. Pure.

use std::collections::HashMap;

use crate::handover::buffer::Buffered;
use crate::handover::sender::Sender;
use crate::handover::series::{GAP_MS, STEP_MAX_MS, SeriesHistory};
use crate::handover::slots::{By, Candidate, Slot, Stored, missing};
use crate::model::sender::SenderNo;
use crate::storage::reconcile::{Around, StoredTime};
use crate::storage::row::Row;

/// So many steps of stored times are not taken for gaps.
const STEPS_SURE: usize = 4;

/// Stored samples are looked for as far around a sample as so many intervals of its series, and so many ms at least: neighbours may
/// be one and a half apart.
const AROUND_INTERVALS: i64 = 2;
const AROUND_MIN_MS: i64 = 2_000;

/// The same where an interval is not known: as far as shows how often there are some.
const AROUND_UNKNOWN_MS: i64 = 2 * 60_000;

/// And so far at most: series of other intervals than an hour are not scraped.
const AROUND_MAX_MS: i64 = 2 * 60 * 60_000;

impl Sender {
    /// How far around these samples to look for stored ones, ms.
    #[must_use]
    pub fn window_ms(&self, samples: &[Buffered]) -> i64 {
        let around = |sample: &Buffered| match self.series.get(sample.row.series_id, sample.row.time_ms).interval_ms {
            0 => AROUND_UNKNOWN_MS,
            interval_ms => AROUND_INTERVALS * interval_ms,
        };
        let window_ms = samples.iter().map(around).max().unwrap_or(0).clamp(AROUND_MIN_MS, AROUND_MAX_MS);
        window_ms.saturating_add(self.clocks.most_ms().min(AROUND_MAX_MS))
    }

    /// The series of these, which are in the order of series, of which it is not known what is stored last.
    #[must_use]
    pub fn unbounded(&self, samples: &[Buffered]) -> Vec<i64> {
        let mut series: Vec<i64> = samples.iter().map(|sample| sample.row.series_id).collect();
        series.dedup();
        series.retain(|series_id| !self.series.get(*series_id, 0).is_bounded);
        series
    }

    /// Of these samples, in the order of series and time, each once, those that are not stored, going by what is stored
    /// around them. This sender is `own`.
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
            // Each is judged by how far the clock was off that stamped it.
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
                found.extend(missing(&candidates, &stored, interval_ms).into_iter().map(|place| samples[place]));
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
            // It may be its own.
            None if self.series.is_in_step(series_id, sample_ms, time_ms) != Some(false) => By::Other { skew_ms: 0 },
            None => {
                let skew_ms = |other| self.clocks.skew_ms(sample_ms, other, time_ms);
                let least_ms = self.clocks.others().map(skew_ms).min_by_key(|skew_ms| skew_ms.saturating_abs());
                By::Other { skew_ms: least_ms.unwrap_or(0) }
            }
        }
    }

    /// These samples were looked for: those of `inserted` are stored now, all others are stored or covered.
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

    /// As what is known of the series says for sure; else by the steps of `samples` and of what is stored around them; 0 where there are
    /// none.
    pub(super) fn interval_of(&self, samples: &[Buffered], stored: &[StoredTime]) -> i64 {
        let SeriesHistory { interval_ms, guess_ms, is_repeated, .. } =
            self.series.get(samples[0].row.series_id, samples[0].row.time_ms);
        if interval_ms > 0 {
            return interval_ms;
        }
        // Those of one sender are an interval apart, or several where scrapes were missed, or came by way of other adapters.
        let (known, mut sealed) = steps_ms(stored);
        let own = steps(samples.iter().map(|sample| sample.row.time_ms));
        let guess = Some(guess_ms).filter(|ms| *ms > 0);
        let least_ms = known.iter().copied().chain(own).chain(guess).min();
        if least_ms.is_none() && sealed.is_empty() {
            // From one sender's to another's: that says little, and nothing says more.
            sealed = steps(stored.iter().filter(|stored| !stored.is_marker).map(|stored| stored.time_ms)).collect();
        }
        let shortest_ms = Some(self.series.shortest_ms()).filter(|ms| *ms > 0);
        // Where nothing is known, no sample stands for another.
        let Some(found_ms) = least_ms.into_iter().chain(median(&sealed)).min() else { return 0 };
        let is_alike = |step_ms: &&i64| (**step_ms - found_ms).abs() <= found_ms / 4;
        // A few may all be gaps, and one of two scrapes where a half of what is sent comes by another adapter.
        match known.iter().chain(&sealed).filter(is_alike).count() {
            0..=1 if self.series.is_shared() && !is_repeated => found_ms.min(shortest_ms.unwrap_or(found_ms / 2)),
            0..STEPS_SURE => found_ms.min(shortest_ms.unwrap_or(i64::MAX)),
            _ => found_ms,
        }
    }
}

/// Whether a stored sample stands for none of `own`'s: it is its own, or a stale marker, by whomever.
fn is_own(stored: &StoredTime, own: SenderNo) -> bool {
    stored.is_marker || stored.sender == Some(own)
}

/// Steps of stored times, which are ascending: from one of a sender to the next of the same, and from a sealed one to the next, whoever
/// sent them.
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

/// Steps between times, which are ascending, but for those that are too long to be of a series that is scraped.
fn steps(times: impl Iterator<Item = i64> + Clone) -> impl Iterator<Item = i64> {
    let later = times.clone().skip(1);
    times.zip(later).map(|(earlier, later)| later - earlier).filter(|step_ms| *step_ms <= STEP_MAX_MS.into())
}

pub(super) fn median(steps: &[i64]) -> Option<i64> {
    let mut steps = steps.to_vec();
    let middle = steps.len().checked_sub(1)? / 2;
    Some(*steps.select_nth_unstable(middle).1)
}
