//! One sender on one adapter: decides about its samples, and keeps what was observed of the other senders of its group.
//! Pure: time is an argument.
//!
//! Ties [`SeriesTimes`], [`Buffer`] and the rule of [`coverage`](crate::handover::coverage) together; the caller does the
//! storing. The simulation under `tests/` calls the same code.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered, Came, NotBuffered};
use crate::handover::clocks::Clocks;
use crate::handover::coverage::{Slot, follows};
use crate::handover::ring::Ring;
use crate::handover::series::{Sent, SeriesHistory, SeriesTimes};
use crate::model::sender::SenderNo;
use crate::storage::row::Row;

pub use self::look::Looked;

mod compare;
mod look;

/// State of one sender on one adapter.
#[derive(Debug)]
pub struct Sender {
    is_alone: bool,
    series: SeriesTimes,
    buffer: Buffer,
    /// Samples that were stored lately, because the server may be replaced by one that lacks them.
    recent: Ring,
    /// `true` if samples may be buffered; `false` from the end of a take-over until another sender leads.
    is_open: bool,
    clocks: Clocks,
    /// Time, in ms since 1970, before which it scraped at other times within an interval, as far as its samples show:
    /// its clock was set, or its configuration was changed. Where it sends by several adapters, nothing else shows that
    /// its clock was set.
    set_ms: i64,
    /// Arrival of a request most of which was late, unless an observation since then shows all that was stored until
    /// then.
    sent_again: Option<Instant>,
    /// The newest observed sample of the leading sender, ms since 1970, and when a newer one was observed last.
    leader_newest: Option<(i64, Instant)>,
}

/// Samples of a leader, sorted by what has to be done with them.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Samples newer than anything that may be stored in their series: to be appended.
    pub append: Arc<Vec<Row>>,
    /// Samples to be compared with what is stored around them.
    pub late: Vec<Buffered>,
    /// Number of samples that were observed to be covered by another sender's.
    pub covered: usize,
}

impl Sorted {
    /// Returns the result of the same sorted `samples`, with all samples that are not covered to be compared.
    fn all_late(self, samples: impl Iterator<Item = Buffered>) -> Self {
        let key = |row: &Row| (row.series_id, row.time_ms);
        let is_left = |sample: &Buffered| {
            let of_sample = key(&sample.row);
            self.append.binary_search_by_key(&of_sample, key).is_ok()
                || self.late.binary_search_by_key(&of_sample, |late| key(&late.row)).is_ok()
        };
        let late = samples.filter(is_left).collect();
        Self { append: Arc::default(), late, covered: self.covered }
    }
}

/// Decision about one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Append,
    Late,
    Covered,
}

impl Sender {
    /// Returns a sender of which nothing is known, with a buffer of at most `bytes_max` bytes. `is_alone`: the sender
    /// is in no election, so no other sender's samples cover its own.
    #[must_use]
    pub fn new(bytes_max: usize, is_alone: bool) -> Self {
        Self::with(SeriesTimes::new(false), bytes_max, is_alone)
    }

    /// Returns a sender whose samples come by several adapters.
    #[must_use]
    pub fn shared(bytes_max: usize, is_alone: bool) -> Self {
        Self::with(SeriesTimes::new(true), bytes_max, is_alone)
    }

    fn with(series: SeriesTimes, bytes_max: usize, is_alone: bool) -> Self {
        Self {
            is_alone,
            series,
            buffer: Buffer::new(bytes_max),
            recent: Ring::default(),
            is_open: true,
            clocks: Clocks::new(Instant::now()),
            set_ms: i64::MIN,
            sent_again: None,
            leader_newest: None,
        }
    }

    /// Sorts samples as they arrive while this sender leads, in the order of series and time. Samples to be appended
    /// count as stored from here on.
    #[must_use]
    pub fn sort(&mut self, rows: &[Row], now: Instant) -> Sorted {
        let came = self.came(rows.to_vec(), Uuid::nil(), now);
        self.sort_sent(&came)
    }

    /// Sorts the samples of one request, with what is known of their arrival.
    #[must_use]
    pub fn sort_sent(&mut self, came: &Came) -> Sorted {
        let sorted = self.sort_each(came.samples(), Some(&came.rows));
        // In a request that is sent again nearly all samples are late. Where few are late, an exporter was late.
        if 2 * sorted.late.len() > came.rows.len() {
            self.sent_again = Some(came.arrived);
        }
        // Other adapters may have stored the newest samples of a repeated request too, and this adapter may not have
        // observed them yet.
        if self.series.is_shared() && self.sent_again.is_some() { sorted.all_late(came.samples()) } else { sorted }
    }

    /// Keeps samples that were stored, or found to be stored, at `now`.
    pub fn keep(&mut self, samples: impl Iterator<Item = Buffered>, now: Instant) {
        self.recent.add(samples, now);
    }

    /// Drops samples kept beside the buffer that are old enough, or that take more than `bytes_max`.
    pub fn trim(&mut self, bytes_max: usize, now: Instant) {
        self.recent.trim(bytes_max, now);
    }

    /// Returns the samples kept beside the buffer.
    #[must_use]
    pub fn kept(&self) -> &Ring {
        &self.recent
    }

    /// Notes samples that this sender sent, in the order of series and time. Returns them with what is known of each
    /// one's arrival.
    pub fn came(&mut self, rows: Vec<Row>, key: Uuid, now: Instant) -> Came {
        let (mut in_step, mut out_of_step, mut set_ms) = (0_usize, 0_usize, i64::MIN);
        let mut unsure = Vec::new();
        let is_stamped = |row: &Row| {
            let Row { series_id, time_ms, .. } = *row;
            match self.series.sent(series_id, time_ms) {
                Sent::Newer { is_in_step: Some(false) } => {
                    (out_of_step, set_ms) = (out_of_step + 1, set_ms.max(time_ms));
                    false
                }
                Sent::Newer { is_in_step: Some(true) } => {
                    in_step += 1;
                    false
                }
                Sent::Newer { is_in_step: None } => {
                    unsure.push(row.clone());
                    false
                }
                // No scrape happened between two scrapes, however the clock was set: an exporter has stamped such a
                // sample.
                Sent::Again { newest_ms } => {
                    let is_between = |shift_ms: i64| {
                        self.series.is_in_step(series_id, time_ms.saturating_add(shift_ms), newest_ms) == Some(false)
                    };
                    time_ms >= self.set_ms && self.clocks.own_shifts_ms().all(is_between)
                }
            }
        };
        let are_stamped = rows.iter().map(is_stamped).collect();
        if out_of_step > in_step {
            self.set_ms = self.set_ms.max(set_ms);
        }
        self.learn_from_others(&unsure, &rows);
        Came { rows: Arc::new(rows), are_stamped, arrived: now, key }
    }

    /// Learns intervals from samples of the same time, which were scraped together: series of `unsure` that have sent
    /// once get the interval of the others of `rows`.
    fn learn_from_others(&mut self, unsure: &[Row], rows: &[Row]) {
        let known = |row: &Row| self.series.get(row.series_id, row.time_ms);
        let new: Vec<Row> = unsure.iter().filter(|row| known(row).guess_ms == 0).cloned().collect();
        if new.is_empty() {
            return;
        }
        let mut least: HashMap<i64, i64> = HashMap::new();
        for row in rows {
            let interval_ms = known(row).interval_ms;
            if interval_ms > 0 {
                let least_ms = least.entry(row.time_ms).or_insert(interval_ms);
                *least_ms = interval_ms.min(*least_ms);
            }
        }
        for row in new {
            if let Some(interval_ms) = least.get(&row.time_ms) {
                self.series.scraped_with(row.series_id, row.time_ms, *interval_ms);
            }
        }
    }

    /// Sorts samples that were buffered.
    #[must_use]
    pub fn sort_buffered(&mut self, samples: &[Buffered]) -> Sorted {
        self.sort_each(samples.iter().cloned(), None)
    }

    /// Sorts samples. `rows`: their rows, if those already exist together.
    fn sort_each(
        &mut self,
        samples: impl ExactSizeIterator<Item = Buffered> + Clone,
        rows: Option<&Arc<Vec<Row>>>,
    ) -> Sorted {
        // Usually all are to be appended. `append` decides as `place` does, with one lookup.
        let is_next = |sample: &Buffered| self.series.append(sample.row.series_id, sample.row.time_ms);
        let next = samples.clone().take_while(is_next).count();
        if let Some(rows) = rows.filter(|rows| rows.len() == next) {
            return Sorted { append: Arc::clone(rows), ..Sorted::default() };
        }
        let mut append = Vec::with_capacity(samples.len());
        append.extend(samples.clone().take(next).map(|sample| sample.row));
        let mut sorted = Sorted::default();
        for sample in samples.skip(next) {
            let Row { series_id, time_ms, .. } = sample.row;
            if self.series.append(series_id, time_ms) {
                append.push(sample.row);
                continue;
            }
            match self.place(&sample) {
                Place::Append => {
                    self.series.bounded(series_id);
                    append.push(sample.row);
                }
                Place::Late => sorted.late.push(sample),
                Place::Covered => {
                    sorted.covered += 1;
                    continue;
                }
            }
            // A late sample that comes a second time before it was compared must not be appended either.
            self.series.stored(series_id, Slot { time_ms, is_own: true });
        }
        Sorted { append: Arc::new(append), ..sorted }
    }

    fn place(&self, sample: &Buffered) -> Place {
        let Row { series_id, time_ms, .. } = sample.row;
        let SeriesHistory { last, is_bounded, interval_ms, .. } = self.series.get(series_id, time_ms);
        if self.is_covered(sample) {
            return Place::Covered;
        }
        match last {
            _ if !is_bounded => Place::Late,
            None => Place::Append,
            Some(last) if time_ms <= last.time_ms => Place::Late,
            Some(last) if last.is_own => Place::Append,
            Some(last)
                if interval_ms > 0
                    && follows(time_ms, last.time_ms, self.skew_ms(sample, last.time_ms), interval_ms) =>
            {
                Place::Append
            }
            Some(_) => Place::Late,
        }
    }

    /// Sorts samples again that were to be appended, but were not, because others had stored samples meanwhile, which
    /// are observed by now. Those that still are the newest are to be appended, the others to be compared.
    #[must_use]
    pub fn sort_again(&self, rows: Vec<Row>, now: Instant) -> Sorted {
        let (mut append, mut sorted) = (Vec::new(), Sorted::default());
        for row in rows {
            let sample = Buffered { row, is_stamped: false, arrived: now, key: Uuid::nil() };
            let Row { series_id, time_ms, .. } = sample.row;
            let SeriesHistory { is_bounded, interval_ms, .. } = self.series.get(series_id, time_ms);
            let is_newer = |other_ms: i64| {
                interval_ms > 0 && follows(time_ms, other_ms, self.skew_ms(&sample, other_ms), interval_ms)
            };
            let is_newest =
                !self.series.may_be_missed(time_ms) && self.series.newest_of_others(series_id).is_none_or(is_newer);
            if is_bounded && is_newest { append.push(sample.row) } else { sorted.late.push(sample) }
        }
        Sorted { append: Arc::new(append), ..sorted }
    }

    /// Buffers samples of the request `key`, in the order of series and time, while this sender does not lead.
    ///
    /// # Errors
    ///
    /// `NotBuffered::Full` if no more can be buffered, `NotBuffered::Closed` if it has begun to lead; nothing of `rows`
    /// is buffered then.
    pub fn buffer(&mut self, rows: Vec<Row>, key: Uuid, now: Instant) -> Result<(), NotBuffered> {
        if !self.is_open {
            return Err(NotBuffered::Closed);
        }
        let came = self.came(rows, key, now);
        self.buffer.add(came.samples())
    }

    /// Notes that `leader` is observed to lead at `server_ms` of the server's clock, in ms since 1970. To be called
    /// before what the leader stored is noted.
    pub fn on_leader(&mut self, leader: SenderNo, server_ms: i64) {
        self.series.led(leader, server_ms);
    }

    /// Notes that these series have a stored sample at this time. What others stored is known to be committed. `leads`:
    /// the sender of the samples leads.
    pub fn on_stored(
        &mut self,
        time_ms: i64,
        is_own: bool,
        leads: bool,
        series: impl Iterator<Item = i64>,
        now: Instant,
    ) {
        let is_own = is_own || self.is_alone;
        for series_id in series {
            self.series.observed(series_id, Slot { time_ms, is_own }, leads);
        }
        if leads && !is_own && self.leader_newest.is_none_or(|(newest_ms, _)| newest_ms < time_ms) {
            self.leader_newest = Some((time_ms, now));
        }
    }

    /// Notes that everything that was stored at `at` is observed.
    pub fn on_observed(&mut self, at: Instant) {
        self.sent_again = self.sent_again.filter(|came| *came > at);
    }

    /// See [`Clocks::on_read`].
    pub fn on_clocks(
        &mut self,
        wall_ms: i64,
        offset_ms: i64,
        others: impl Iterator<Item = (SenderNo, i64)>,
        now: Instant,
    ) {
        self.clocks.on_read(wall_ms, offset_ms, others, now);
    }

    /// Notes that some of what was stored was not observed. Nothing of it is later than `newest_ms`, and series with
    /// numbers above `floor` were created since.
    pub fn on_missed(&mut self, newest_ms: i64, floor: i64) {
        self.series.missed(newest_ms, floor);
    }

    /// Allows buffering, because another sender leads.
    pub fn open(&mut self) {
        self.is_open = true;
    }

    /// Takes out the oldest buffered samples, about `count` of them. Returns `None` once nothing is left; from then on
    /// nothing is buffered.
    pub fn drain(&mut self, count: usize) -> Option<Vec<Buffered>> {
        let taken = self.buffer.take(count);
        self.is_open = !taken.is_empty();
        self.is_open.then_some(taken)
    }

    /// Forgets what is known of series, because they have other ids on another server. Returns, under the old ids, the
    /// samples that are buffered and those that were stored lately.
    pub fn moved(&mut self, now: Instant) -> Buffer {
        self.series.forget();
        // Senders have other numbers on the other server.
        (self.clocks, self.leader_newest) = (Clocks::new(now), None);
        let mut samples = self.buffer.take_all();
        samples.extend(self.recent.take());
        samples
    }

    /// Puts back samples that were taken out and are not known to be stored.
    pub fn put_back(&mut self, samples: &[Buffered]) {
        self.buffer.put_back(samples);
    }

    /// Returns the interval of a series around a time, ms; 0 as long as it is not known for sure.
    #[must_use]
    pub fn interval_ms(&self, series_id: i64, time_ms: i64) -> i64 {
        self.series.get(series_id, time_ms).interval_ms
    }

    /// Returns the buffer.
    #[must_use]
    pub fn buffered(&self) -> &Buffer {
        &self.buffer
    }

    /// Returns the maximum by which the clock that stamped a sample was ahead of the clock of another sender, when that
    /// one stored a sample at `stored_ms`.
    fn skew_ms(&self, sample: &Buffered, stored_ms: i64) -> i64 {
        let skew_ms = |other| self.clocks.skew_ms(sample.row.time_ms, other, stored_ms);
        self.clocks.others().map(skew_ms).max().unwrap_or(0)
    }
}

/// Sorts samples by series and time. Of samples with equal series and time, the one that arrived first is left.
pub fn sort_and_dedup(samples: &mut Vec<Buffered>) {
    samples.sort_by_key(|sample| (sample.row.series_id, sample.row.time_ms, sample.arrived));
    samples.dedup_by_key(|sample| (sample.row.series_id, sample.row.time_ms));
}

#[cfg(test)]
mod tests;
