//! One sender on one adapter: what becomes of its samples, and what was observed of its group's others. Pure: time is an argument.
//!
//! Ties [`SeriesTimes`], [`Buffer`] and the rule of [`slots`](crate::handover::slots) together; whoever drives it does the storing.
//! The simulation under `tests/` drives the same code.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered, Came, NotBuffered};
use crate::handover::clocks::Clocks;
use crate::handover::ring::Ring;
use crate::handover::series::{Sent, SeriesHistory, SeriesTimes};
use crate::handover::slots::{Slot, follows};
use crate::model::sender::SenderNo;
use crate::storage::row::Row;

pub use self::look::Looked;

mod compare;
mod look;

/// See the module.
#[derive(Debug)]
pub struct Sender {
    is_alone: bool,
    series: SeriesTimes,
    buffer: Buffer,
    /// What is stored, lest the server be replaced by one that lacks it.
    recent: Ring,
    /// Whether samples may be buffered: not from the end of a take-over until another sender leads.
    is_open: bool,
    clocks: Clocks,
    /// Before that, in ms since 1970, it scraped at other times within an interval, as far as its samples show: its clock was set, which
    /// is not known otherwise where it sends by several adapters, or its configuration was changed.
    set_ms: i64,
    /// When a request came most of which was late, if nothing that was observed since shows all that was stored until then.
    sent_again: Option<Instant>,
    /// The newest sample of the leading sender that was observed, ms since 1970, and when it became newer.
    leader_newest: Option<(i64, Instant)>,
}

/// A leader's samples, told apart.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Newer than anything that may be stored in their series: to be appended.
    pub append: Arc<Vec<Row>>,
    /// To be compared with what is stored around them.
    pub late: Vec<Buffered>,
    /// How many were observed stored, by another sender.
    pub covered: usize,
}

impl Sorted {
    /// The same of `samples`, which were sorted, with all that is not covered to be compared.
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

/// Where a sample belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Append,
    Late,
    Covered,
}

impl Sender {
    /// Nothing is known, and at most `bytes_max` bytes are buffered. `is_alone`: it is in no election, so no other sender's samples
    /// stand for its own.
    #[must_use]
    pub fn new(bytes_max: usize, is_alone: bool) -> Self {
        Self::with(SeriesTimes::new(false), bytes_max, is_alone)
    }

    /// The same of a sender whose samples come by way of several adapters.
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

    /// Its samples as they come while it leads, in the order of series and time. What is to be appended counts as stored from here
    /// on.
    #[must_use]
    pub fn sort(&mut self, rows: &[Row], now: Instant) -> Sorted {
        let came = self.came(rows.to_vec(), Uuid::nil(), now);
        self.sort_sent(&came)
    }

    /// The same of one request's samples, with what is known of their coming.
    #[must_use]
    pub fn sort_sent(&mut self, came: &Came) -> Sorted {
        let sorted = self.sort_each(came.samples(), Some(&came.rows));
        // Of what is sent again nearly all is late; where few are, an exporter was.
        if 2 * sorted.late.len() > came.rows.len() {
            self.sent_again = Some(came.arrived);
        }
        // The newest samples of what is sent again may have been stored by other adapters, too, and not be observed yet.
        if self.series.is_shared() && self.sent_again.is_some() { sorted.all_late(came.samples()) } else { sorted }
    }

    /// These are stored, or were found to be, at `now`.
    pub fn keep(&mut self, samples: impl Iterator<Item = Buffered>, now: Instant) {
        self.recent.add(samples, now);
    }

    /// Lets go of what it keeps beside the buffer and need not any more, or that takes more than `bytes_max`.
    pub fn trim(&mut self, bytes_max: usize, now: Instant) {
        self.recent.trim(bytes_max, now);
    }

    /// What it keeps beside the buffer.
    #[must_use]
    pub fn kept(&self) -> &Ring {
        &self.recent
    }

    /// What it has sent, in the order of series and time, with what is known of each sample's coming.
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
                    unsure.push(*row);
                    false
                }
                // What lies between scrapes was not scraped, however the clock was set: an exporter has stamped it.
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

    /// What has the same time was scraped together: those of `unsure` whose series have sent once are taken to have the interval of the
    /// others of `rows`.
    fn learn_from_others(&mut self, unsure: &[Row], rows: &[Row]) {
        let known = |row: &Row| self.series.get(row.series_id, row.time_ms);
        let new: Vec<Row> = unsure.iter().filter(|row| known(row).guess_ms == 0).copied().collect();
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

    /// The same of samples that were buffered.
    #[must_use]
    pub fn sort_buffered(&mut self, samples: &[Buffered]) -> Sorted {
        self.sort_each(samples.iter().copied(), None)
    }

    /// `rows`: the samples', if they are together somewhere.
    fn sort_each(
        &mut self,
        samples: impl ExactSizeIterator<Item = Buffered> + Clone,
        rows: Option<&Arc<Vec<Row>>>,
    ) -> Sorted {
        // As a rule all are. `append` decides as `place` does, by one look.
        let is_next = |sample: &Buffered| self.series.append(sample.row.series_id, sample.row.time_ms);
        let next = samples.clone().take_while(is_next).count();
        if let Some(rows) = rows.filter(|rows| rows.len() == next) {
            return Sorted { append: Arc::clone(rows), ..Sorted::default() };
        }
        let mut append = Vec::with_capacity(samples.len());
        append.extend(samples.clone().take(next).map(|sample| sample.row));
        let mut sorted = Sorted::default();
        for sample in samples.skip(next) {
            if self.series.append(sample.row.series_id, sample.row.time_ms) {
                append.push(sample.row);
                continue;
            }
            match self.place(&sample) {
                Place::Append => {
                    self.series.bounded(sample.row.series_id);
                    append.push(sample.row);
                }
                Place::Late => sorted.late.push(sample),
                Place::Covered => {
                    sorted.covered += 1;
                    continue;
                }
            }
            // What is late is not to be appended either when it comes a second time before it is compared.
            self.series.stored(sample.row.series_id, Slot { time_ms: sample.row.time_ms, is_own: true });
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

    /// Of samples that were sorted as to be appended, and were not because others had stored meanwhile what is observed by now:
    /// which are to be appended still.
    #[must_use]
    pub fn sort_again(&self, rows: Vec<Row>, now: Instant) -> Sorted {
        let (mut append, mut sorted) = (Vec::new(), Sorted::default());
        for row in rows {
            let sample = Buffered { row, is_stamped: false, arrived: now, key: Uuid::nil() };
            let SeriesHistory { is_bounded, interval_ms, .. } = self.series.get(row.series_id, row.time_ms);
            let is_newer = |other_ms: i64| {
                interval_ms > 0 && follows(row.time_ms, other_ms, self.skew_ms(&sample, other_ms), interval_ms)
            };
            let is_newest = !self.series.may_be_missed(row.time_ms)
                && self.series.newest_of_others(row.series_id).is_none_or(is_newer);
            if is_bounded && is_newest { append.push(row) } else { sorted.late.push(sample) }
        }
        Sorted { append: Arc::new(append), ..sorted }
    }

    /// Buffers samples of the request `key` while it does not lead, in the order of series and time.
    ///
    /// # Errors
    ///
    /// When no more can be buffered, or it has begun to lead; nothing of `rows` is buffered then.
    pub fn buffer(&mut self, rows: Vec<Row>, key: Uuid, now: Instant) -> Result<(), NotBuffered> {
        if !self.is_open {
            return Err(NotBuffered::Closed);
        }
        let came = self.came(rows, key, now);
        self.buffer.add(came.samples())
    }

    /// `leader` is observed to lead when it is `server_ms` by the server's clock, in ms since 1970. Said before what it stored.
    pub fn on_leader(&mut self, leader: SenderNo, server_ms: i64) {
        self.series.led(leader, server_ms);
    }

    /// These series have a sample stored at this time. What others stored is known to be committed.
    /// `leads`: whoever sent them leads.
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

    /// All that was stored at `at` is observed.
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

    /// Some of what was stored was not observed, nothing of it later than `newest_ms`; series with ids above `floor` were made since.
    pub fn on_missed(&mut self, newest_ms: i64, floor: i64) {
        self.series.missed(newest_ms, floor);
    }

    /// Another sender leads: samples may be buffered.
    pub fn open(&mut self) {
        self.is_open = true;
    }

    /// Takes out what was buffered first, about `count` samples. `None` once there is nothing left, from when on nothing is buffered.
    pub fn drain(&mut self, count: usize) -> Option<Vec<Buffered>> {
        let taken = self.buffer.take(count);
        self.is_open = !taken.is_empty();
        self.is_open.then_some(taken)
    }

    /// The server is another one, where series have other ids: forgets what is known of them, and returns under the old ones what is
    /// buffered, and what was stored lately.
    pub fn moved(&mut self, now: Instant) -> Buffer {
        self.series.forget();
        // Senders have other numbers there.
        (self.clocks, self.leader_newest) = (Clocks::new(now), None);
        let mut samples = self.buffer.take_all();
        samples.extend(self.recent.take());
        samples
    }

    /// Puts back what was taken out and is not known to be stored.
    pub fn put_back(&mut self, samples: &[Buffered]) {
        self.buffer.put_back(samples);
    }

    /// How often a series is scraped around a time, ms; 0 as long as that is not known for sure.
    #[must_use]
    pub fn interval_ms(&self, series_id: i64, time_ms: i64) -> i64 {
        self.series.get(series_id, time_ms).interval_ms
    }

    /// What it has in its buffer.
    #[must_use]
    pub fn buffered(&self) -> &Buffer {
        &self.buffer
    }

    /// How far, at most, the clock that stamped a sample was ahead of that of another sender, when that stored one at `stored_ms`.
    fn skew_ms(&self, sample: &Buffered, stored_ms: i64) -> i64 {
        let skew_ms = |other| self.clocks.skew_ms(sample.row.time_ms, other, stored_ms);
        self.clocks.others().map(skew_ms).max().unwrap_or(0)
    }
}

/// Puts samples in the order of series and time and leaves the one that came first of those with equal series and time.
pub fn sort_and_dedup(samples: &mut Vec<Buffered>) {
    samples.sort_by_key(|sample| (sample.row.series_id, sample.row.time_ms, sample.arrived));
    samples.dedup_by_key(|sample| (sample.row.series_id, sample.row.time_ms));
}

#[cfg(test)]
mod tests;
