//! One sender on one adapter: what becomes of its samples, and what was observed of its group's others. Pure: time is an argument.
//!
//! Ties [`SeriesTimes`], [`Buffer`] and the rule of [`slots`](crate::handover::slots) together; whoever drives it does the storing.
//! The simulation under `tests/` drives the same code.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered, Came, Fate, NotBuffered};
use crate::handover::clocks::Clocks;
use crate::handover::ring::Ring;
use crate::handover::series::{GAP_MS, STEP_MAX_MS, Sent, SeriesHistory, SeriesTimes};
use crate::handover::slots::{By, Candidate, Slot, Stored, follows, is_taken, missing};
use crate::model::sender::SenderNo;
use crate::storage::reconcile::{Around, StoredTime};
use crate::storage::row::Row;

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

/// What one look at the buffer came to.
#[derive(Debug, Default)]
pub struct Looked {
    /// How many samples were observed covered.
    pub covered: usize,
    /// To be compared with what is stored around them. To be put back if that fails.
    pub due: Vec<Buffered>,
}

/// Where a sample belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Append,
    Late,
    Covered,
}

/// A sample that stays uncovered for two intervals and so long is reconciled: Prometheus' default `batch_send_deadline`.
const DUE_AFTER: Duration = Duration::from_secs(5);

/// Two intervals count for so long at most: what is not scraped at all, like history, must not wait for hours. As long is waited where the
/// interval is not known.
const DUE_MAX: Duration = Duration::from_secs(120);

/// Buffered samples are looked at four times an interval, within these bounds.
const LOOK_MIN: Duration = Duration::from_millis(900);
const LOOK_MAX: Duration = Duration::from_secs(15);

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

    /// Lets go of what was observed covered, and takes out about `count` samples that have stayed uncovered for so long that they are
    /// to be reconciled; for `is_last`, the last look before the adapter ends, or if this sender leads, however short that is.
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
                recent.add(std::iter::once(*sample), now);
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
        // Of what the leader sends, its next samples will tell; what comes by way of one of several adapters may be several intervals apart.
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

    /// Whether another sender's stored samples are known to cover it. Its own do not count: they may have failed to be stored.
    fn is_covered(&self, sample: &Buffered) -> bool {
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
        // Whoever of them stored it.
        let mut others = self.clocks.others().peekable();
        if others.peek().is_none() { is_taken_by(None) } else { others.all(|other| is_taken_by(Some(other))) }
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

    /// As what is known of the series says for sure; else by the steps of `samples` and of what is stored around them; 0 where there are
    /// none.
    fn interval_of(&self, samples: &[Buffered], stored: &[StoredTime]) -> i64 {
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
fn steps_ms(stored: &[StoredTime]) -> (Vec<i64>, Vec<i64>) {
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

fn median(steps: &[i64]) -> Option<i64> {
    let mut steps = steps.to_vec();
    let middle = steps.len().checked_sub(1)? / 2;
    Some(*steps.select_nth_unstable(middle).1)
}

/// Puts samples in the order of series and time and leaves the one that came first of those with equal series and time.
pub fn sort_and_dedup(samples: &mut Vec<Buffered>) {
    samples.sort_by_key(|sample| (sample.row.series_id, sample.row.time_ms, sample.arrived));
    samples.dedup_by_key(|sample| (sample.row.series_id, sample.row.time_ms));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::reconcile::StoredTime;

    const OWN: SenderNo = SenderNo(1);
    const OTHER: SenderNo = SenderNo(2);

    /// A sender of which everything is known that is stored, scraping each 10 s; milliseconds are a thousandth of that.
    struct Scene {
        sender: Sender,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let mut sender = Sender::new(usize::MAX, false);
            sender.on_missed(i64::MIN, 0);
            sender.on_leader(OTHER, 0);
            Self { sender, now: Instant::now() }
        }

        /// The same, with an interval known in series 1.
        fn scraping() -> Self {
            let mut scene = Self::new();
            for time_ms in [-50_000, -40_000, -30_000, -20_000, -10_000] {
                scene.sender.series.sent(1, time_ms);
            }
            scene
        }

        /// A sender that leads and has sent series 1 at these times.
        fn leading(times: &[i64]) -> Self {
            let mut scene = Self::scraping();
            for time_ms in times {
                assert_eq!(scene.sort(&[*time_ms]), (vec![*time_ms], vec![], 0));
            }
            scene
        }

        /// A sender that stands by and has buffered series 1 at these times, the other one having stored it at those.
        fn standing_by(buffered: &[i64], stored: &[i64]) -> Self {
            let mut scene = Self::scraping();
            for time_ms in buffered {
                scene.sender.buffer(vec![row(*time_ms)], Uuid::nil(), scene.now).unwrap();
            }
            scene.stored(stored);
            scene
        }

        fn stored(&mut self, times: &[i64]) {
            for time_ms in times {
                self.sender.on_stored(*time_ms, false, true, [1].into_iter(), self.now);
            }
        }

        /// Its clock is ahead of those of others by so much.
        fn clocks(mut self, others: &[(SenderNo, i64)]) -> Self {
            let others = others.iter().map(|(sender, ahead_ms)| (*sender, -ahead_ms));
            self.sender.on_clocks(0, 0, others, self.now);
            self
        }

        fn sort(&mut self, times: &[i64]) -> (Vec<i64>, Vec<i64>, usize) {
            {
                let rows: Vec<Row> = times.iter().map(|time_ms| row(*time_ms)).collect();
                told(&self.sender.sort(&rows, self.now))
            }
        }

        /// How many are covered, and which are due.
        fn look(&mut self, count: usize) -> (usize, Vec<i64>) {
            let looked = self.sender.look(count, false, self.now);
            (looked.covered, times(&looked.due))
        }

        fn after(&mut self, seconds: u64) -> &mut Self {
            self.now += Duration::from_secs(seconds);
            self
        }
    }

    fn row(time_ms: i64) -> Row {
        Row { series_id: 1, time_ms, value: 0.5 }
    }

    fn times(samples: &[Buffered]) -> Vec<i64> {
        samples.iter().map(|sample| sample.row.time_ms).collect()
    }

    fn told(sorted: &Sorted) -> (Vec<i64>, Vec<i64>, usize) {
        (sorted.append.iter().map(|row| row.time_ms).collect(), times(&sorted.late), sorted.covered)
    }

    fn late(times: &[i64], is_stamped: bool) -> Vec<Buffered> {
        let now = Instant::now();
        let sample = |time_ms: &i64| Buffered { row: row(*time_ms), is_stamped, arrived: now, key: Uuid::nil() };
        times.iter().map(sample).collect()
    }

    /// Of markers by the number of theirs.
    fn stored_time(time_ms: i64, sender: Option<SenderNo>) -> StoredTime {
        let (sender, is_marker) = sender.map_or((None, false), |sender| (Some(sender.split().0), sender.split().1));
        StoredTime { time_ms, sender, is_marker }
    }

    fn around(times: &[(i64, Option<SenderNo>)]) -> Around {
        let times = times.iter().map(|(time_ms, sender)| stored_time(*time_ms, *sender)).collect();
        Around { times: HashMap::from([(1, times)]), ..Around::default() }
    }

    #[test]
    fn what_is_newer_than_the_bound_is_appended() {
        let mut scene = Scene::leading(&[10_000, 20_000]);
        assert_eq!(scene.sort(&[20_000, 20_001, 15_000]), (vec![20_001], vec![20_000, 15_000], 0));
        scene.sender.on_missed(30_000, 1);
        assert_eq!(scene.sort(&[40_000]), (vec![], vec![40_000], 0), "others may have stored what was not observed");
        scene.sender.on_reconciled(&[row(40_000)], &[1], &Around::default(), OWN);
        assert_eq!(scene.sort(&[40_000, 50_000]), (vec![50_000], vec![40_000], 0));
    }

    #[test]
    fn nothing_is_appended_before_the_first_observation() {
        let mut sender = Sender::new(usize::MAX, false);
        assert_eq!(told(&sender.sort(&[row(10_000)], Instant::now())), (vec![], vec![10_000], 0));
    }

    #[test]
    fn the_first_sample_after_another_leader_is_judged_by_its_slot() {
        for (first, expected) in
            [(34_000, (vec![], vec![], 1)), (36_000, (vec![36_000], vec![], 0)), (30_000, (vec![], vec![], 1))]
        {
            let mut scene = Scene::standing_by(&[6_000, 16_000, 26_000], &[10_000, 20_000, 30_000]);
            assert_eq!(scene.sort(&[first]), expected, "{first}");
        }
        let mut scene = Scene::new();
        scene.stored(&[10_000]);
        assert_eq!(scene.sort(&[30_000]), (vec![], vec![30_000], 0), "its interval is not known");
    }

    #[test]
    fn what_was_about_to_be_stored_is_no_evidence() {
        let mut scene = Scene::leading(&[10_000, 20_000, 30_000]);
        assert_eq!(scene.sort(&[30_000]), (vec![], vec![30_000], 0));
        scene.sender.open();
        scene.sender.buffer(vec![row(30_000)], Uuid::nil(), scene.now).unwrap();
        assert_eq!(scene.after(24).look(9), (0, vec![]));
        assert_eq!(scene.after(3).look(9), (0, vec![30_000]));
    }

    #[test]
    fn what_others_have_stored_meanwhile_is_sorted_again() {
        let mut scene = Scene::leading(&[10_000, 20_000, 30_000, 40_000]);
        let again = |scene: &Scene, times: &[i64]| {
            told(&scene.sender.sort_again(times.iter().map(|time_ms| row(*time_ms)).collect(), scene.now))
        };
        assert_eq!(again(&scene, &[40_000]), (vec![40_000], vec![], 0));
        scene.stored(&[34_000]);
        assert_eq!(again(&scene, &[40_000]), (vec![40_000], vec![], 0));
        scene.stored(&[36_000]);
        assert_eq!(again(&scene, &[40_000]), (vec![], vec![40_000], 0));
        scene.sender.on_missed(50_000, 1);
        assert_eq!(again(&scene, &[60_000]), (vec![], vec![60_000], 0));
        // Its own that are about to be stored are no bound of what was missed.
        let mut scene = Scene::leading(&[10_000, 20_000, 30_000, 40_000]);
        assert_eq!(scene.sort(&[50_000, 60_000]), (vec![50_000, 60_000], vec![], 0));
        scene.sender.on_missed(50_500, 1);
        assert_eq!(again(&scene, &[50_000, 60_000]), (vec![60_000], vec![50_000], 0));
    }

    #[test]
    fn what_is_observed_covered_is_let_go_of() {
        let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 20_000, 30_000]);
        assert_eq!(scene.look(9), (0, vec![]), "it has only just come");
        assert_eq!(scene.after(3).look(9), (3, vec![]));
        assert_eq!(scene.sender.buffered().samples(), 0);
    }

    #[test]
    fn what_stays_uncovered_is_due_after_two_intervals_and_five_seconds() {
        let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 40_000, 50_000]);
        assert_eq!(scene.after(24).look(9), (1, vec![]));
        assert_eq!(scene.after(3).look(0), (0, vec![]), "nobody is known to lead");
        assert_eq!(scene.after(3).look(1), (0, vec![24_000]));
        assert_eq!(scene.after(3).look(9), (0, vec![34_000]));
        let mut scene = Scene::standing_by(&[4_000, 14_000, 24_000], &[]);
        assert_eq!(scene.after(25).look(9), (0, vec![4_000, 14_000, 24_000]), "nobody stores anything");
    }

    #[test]
    fn the_last_look_waits_for_nothing() {
        let mut scene = Scene::standing_by(&[14_000, 24_000, 34_000], &[10_000, 20_000]);
        let looked = scene.sender.look(9, true, scene.now);
        assert_eq!((looked.covered, times(&looked.due)), (2, vec![34_000]));
    }

    #[test]
    fn a_leader_that_catches_up_is_waited_for() {
        let mut scene = Scene::standing_by(&[104_000, 114_000, 124_000], &[]);
        scene.after(24).stored(&[20_000, 30_000]);
        assert_eq!(scene.after(3).look(9), (0, vec![]));
        scene.after(20).stored(&[40_000]);
        assert_eq!(scene.after(24).look(9), (0, vec![]));
        assert_eq!(scene.after(3).look(9), (0, vec![104_000, 114_000, 124_000]), "it has stopped");
    }

    #[test]
    fn what_is_buffered_is_taken_over_in_order() {
        let mut scene = Scene::standing_by(&[6_000, 16_000, 26_000, 36_000], &[10_000, 20_000]);
        let taken = scene.sender.drain(usize::MAX).unwrap();
        assert_eq!(told(&scene.sender.sort_buffered(&taken)), (vec![26_000, 36_000], vec![], 2));
        scene.sender.put_back(&taken);
        let taken = scene.sender.drain(usize::MAX).unwrap();
        assert_eq!(
            told(&scene.sender.sort_buffered(&taken)),
            (vec![], vec![6_000, 26_000, 36_000], 1),
            "perhaps stored"
        );
        assert_eq!(scene.sender.buffer(vec![row(46_000)], Uuid::nil(), scene.now), Ok(()), "until all is stored");
        assert_eq!(scene.sender.drain(1).map(|taken| times(&taken)), Some(vec![46_000]));
        assert!(scene.sender.drain(1).is_none());
        assert_eq!(scene.sender.buffer(vec![row(56_000)], Uuid::nil(), scene.now), Err(NotBuffered::Closed));
        scene.sender.open();
        assert_eq!(scene.sender.buffer(vec![row(56_000)], Uuid::nil(), scene.now), Ok(()));
    }

    #[test]
    fn a_sample_is_missing_by_who_stored_its_neighbours() {
        let scene = Scene::leading(&[0, 10_000, 20_000, 30_000]);
        let missing = |time_ms, is_stamped, around: &Around| {
            times(&scene.sender.missing(&late(&[time_ms], is_stamped), around, OWN)) == [time_ms]
        };
        let stored_by = |sender| around(&[(0, sender), (10_000, sender), (20_000, sender)]);
        assert!(missing(13_000, false, &stored_by(Some(OWN))));
        assert!(!missing(10_000, false, &stored_by(Some(OWN))));
        assert!(!missing(13_000, false, &stored_by(Some(OTHER))));
        assert!(missing(13_000, true, &stored_by(Some(OTHER))), "an exporter has stamped it");
        assert!(missing(13_000, false, &stored_by(Some(OTHER.of_markers()))), "for another one its series has ended");
        assert!(!missing(10_000, false, &stored_by(Some(OTHER.of_markers()))), "at one time there is one");
        let mut markers = stored_by(None);
        markers.times.values_mut().flatten().for_each(|stored| stored.is_marker = true);
        assert!(missing(13_000, false, &markers), "the same of what is sealed");
        let beside_marker = around(&[(0, Some(OTHER)), (12_500, Some(OTHER.of_markers())), (20_000, Some(OTHER))]);
        assert!(missing(13_000, false, &beside_marker), "another's scrape has failed");
        assert!(missing(13_000, false, &stored_by(None)), "sealed, and known to be its own");
        let sealed = around(&[(100_000, None), (110_000, None), (120_000, None)]);
        assert!(!missing(113_000, false, &sealed), "sealed, by whomever");
        assert!(missing(13_000, false, &around(&[])));
        let mut alone = Sender::new(usize::MAX, true);
        alone.on_stored(10_000, false, false, [1].into_iter(), Instant::now());
        assert!(!alone.is_covered(&late(&[10_001], false)[0]));
        assert_eq!(alone.missing(&late(&[10_001], false), &stored_by(Some(OTHER)), OWN).len(), 1);
        let mut sealed = around(&[]);
        sealed.last_ms.insert(1, stored_time(20_000, None));
        alone.on_reconciled(&[], &[1], &sealed, OWN);
        assert!(!alone.is_covered(&late(&[20_001], false)[0]), "whoever stored it");
    }

    #[test]
    fn a_clock_that_is_off_shifts_what_is_missing() {
        let mut scene = Scene::standing_by(&[], &[]).clocks(&[(OTHER, 50_000)]);
        scene.stored(&[10_000, 20_000, 30_000]);
        let covered = [70_000, 84_000, 86_000].map(|time_ms| scene.sender.is_covered(&late(&[time_ms], false)[0]));
        assert_eq!(covered, [true, true, false]);
        let stored = around(&[(20_000, Some(OTHER)), (30_000, Some(OTHER))]);
        let missing = scene.sender.missing(&late(&[36_000, 84_000, 86_000, 96_000], false), &stored, OWN);
        assert_eq!(times(&missing), [86_000, 96_000]);
        scene.sender.series.sent(1, 64_000);
        assert_eq!(scene.sort(&[74_000, 84_000, 94_000]), (vec![94_000], vec![], 2));
        assert_eq!(scene.sender.window_ms(&missing), 20_000 + 50_000);
    }

    #[test]
    fn of_several_clocks_the_one_counts_that_loses_nothing() {
        let third = SenderNo(3);
        let mut scene = Scene::standing_by(&[], &[]).clocks(&[(OTHER, 5_000), (third, 60_000)]);
        scene.stored(&[10_000, 20_000, 30_000]);
        let covered = [39_000, 41_000].map(|time_ms| scene.sender.is_covered(&late(&[time_ms], false)[0]));
        assert_eq!(covered, [true, false]);
        scene.sender.series.sent(1, 86_000);
        assert_eq!(scene.sort(&[96_000]), (vec![96_000], vec![], 0));
        let mut scene = Scene::standing_by(&[], &[30_000]).clocks(&[(OTHER, 5_000), (third, 60_000)]);
        scene.sender.series.sent(1, 84_000);
        assert_eq!(scene.sort(&[94_000]), (vec![], vec![94_000], 0), "to be compared");
    }

    #[test]
    fn what_is_sealed_may_be_its_own() {
        let scene = Scene::leading(&[0, 10_000, 20_000, 30_000]).clocks(&[(OTHER, 50_000)]);
        let missing = |time_ms, stored_ms| {
            !scene.sender.missing(&late(&[time_ms], false), &around(&[(stored_ms, None)]), OWN).is_empty()
        };
        assert!(missing(50_000, 40_000) && missing(51_000, 40_000), "in step with its scrapes");
        assert!(!missing(50_000, 44_000), "another's, on another clock");
        assert!(!missing(33_000, 34_000) && missing(33_000, 30_000));
    }

    #[test]
    fn samples_of_a_series_are_judged_together() {
        let scene = Scene::leading(&[0, 10_000, 20_000]);
        let samples = late(&[104_000, 114_000, 124_000], false);
        let stored = around(&[(100_000, Some(OTHER)), (130_000, Some(OTHER))]);
        assert_eq!(times(&scene.sender.missing(&samples, &stored, OWN)), [114_000, 124_000]);
        assert_eq!(scene.sender.window_ms(&samples), 20_000);
        assert!(scene.sender.unbounded(&samples).is_empty());
    }

    #[test]
    fn an_interval_that_is_not_known_is_guessed() {
        let interval_ms = |sent: &[i64], judged: &[i64], stored: &[(i64, Option<SenderNo>)]| {
            let mut scene = Scene::new();
            for time_ms in sent {
                scene.sender.series.sent(1, *time_ms);
            }
            let stored = around(stored);
            scene.sender.interval_of(&late(judged, false), stored.times.get(&1).map_or(&[], Vec::as_slice))
        };
        let other = |times: &[i64]| times.iter().map(|time_ms| (*time_ms, Some(OTHER))).collect::<Vec<_>>();
        assert_eq!(interval_ms(&[], &[0], &[]), 0, "no sample stands for another");
        assert_eq!(interval_ms(&[], &[0], &other(&[0, 20_000, 40_000])), 20_000);
        let sealed: Vec<_> = (0..5).map(|n| (n * 20_000, None)).collect();
        assert_eq!(interval_ms(&[], &[0], &sealed), 20_000);
        assert_eq!(interval_ms(&[0, 60_000], &[60_000], &sealed), 20_000, "it missed two");
        let mixed: Vec<_> = (0..5).flat_map(|n| [(n * 20_000, Some(OTHER)), (n * 20_000 + 300, Some(OWN))]).collect();
        assert_eq!(interval_ms(&[], &[0], &mixed), 20_000, "from one of a sender to its next");
        let two = [(0, Some(OWN)), (5_600, Some(OTHER))];
        assert_eq!(interval_ms(&[0, 10_000], &[10_000], &two), 10_000, "how far two senders are apart is no step");
        assert_eq!(interval_ms(&[], &[10_000], &two), 5_600, "but all there is");
        let sealed: Vec<_> = (0..9).map(|n| (n * 5_000, None)).collect();
        assert_eq!(interval_ms(&[40_000, 58_000], &[40_400], &sealed), 5_000, "its only step was none");
        // One step that is known of where other scrapes may have come by another adapter.
        let shared = Sender::shared(usize::MAX, false);
        let stored = around(&other(&[0, 30_000]));
        assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 15_000);
        let stored = around(&other(&[0, 30_000, 60_000]));
        assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 30_000);
        let mut shared = shared;
        shared.on_leader(OTHER, 0);
        for n in 0..9 {
            shared.on_stored(n * 30_000, false, true, [2].into_iter(), Instant::now());
        }
        let stored = around(&other(&[0, 30_000]));
        assert_eq!(shared.interval_of(&late(&[15_000], false), &stored.times[&1]), 30_000);
        // The shortest known of any series, where it is not known for sure.
        let mut scene = Scene::new();
        for n in 0..9 {
            scene.sender.series.sent(2, n * 5_000);
        }
        let stored = around(&other(&[0, 20_000, 40_000, 60_000]));
        assert_eq!(scene.sender.interval_of(&late(&[0], false), &stored.times[&1]), 5_000, "gaps, perhaps");
        let stored = around(&other(&[0, 20_000, 40_000, 60_000, 80_000]));
        assert_eq!(scene.sender.interval_of(&late(&[0], false), &stored.times[&1]), 20_000);
    }

    #[test]
    fn a_new_series_has_the_interval_of_what_was_scraped_with_it() {
        for mut sender in [Sender::new(usize::MAX, false), Sender::shared(usize::MAX, false)] {
            let now = Instant::now();
            sender.on_missed(i64::MIN, 0);
            sender.on_leader(OTHER, 0);
            for n in 0..9 {
                let own = n * 10_000 + 400;
                sender.on_stored(n * 10_000, false, true, [2, 3].into_iter(), now);
                let rows = [2, 3].map(|series_id| Row { series_id, ..row(own) });
                sender.buffer(rows.to_vec(), Uuid::nil(), now).unwrap();
            }
            sender.on_stored(90_000, false, true, [1, 2, 3].into_iter(), now);
            let stored = around(&[(90_000, Some(OTHER))]);
            let judged = |sender: &Sender| sender.missing(&late(&[90_400], false), &stored, OWN).len();
            assert_eq!(judged(&sender), 1, "nothing is known of it");
            sender
                .buffer([1, 2, 3].map(|series_id| Row { series_id, ..row(90_400) }).to_vec(), Uuid::nil(), now)
                .unwrap();
            assert_eq!(judged(&sender), 0);
            assert_eq!(sender.series.get(1, 90_400).guess_ms, 10_000);
            // A step of its own counts as soon as it is shorter; where it comes by several adapters, the leader's.
            sender.on_stored(92_000, false, true, [1].into_iter(), now);
            sender.buffer(vec![row(92_400)], Uuid::nil(), now).unwrap();
            assert_eq!(sender.series.get(1, 92_400).guess_ms, 2_000);
        }
    }

    #[test]
    fn what_was_scraped_before_a_clock_was_set_is_not_stamped() {
        let mut sender = Sender::new(usize::MAX, false);
        let mut sent = |times: &[i64]| {
            let rows: Vec<Row> = [1, 2, 3]
                .into_iter()
                .flat_map(|series_id| times.iter().map(move |time_ms| Row { series_id, ..row(*time_ms) }))
                .collect();
            let came = sender.came(rows, Uuid::nil(), Instant::now());
            came.are_stamped.iter().filter(|is_stamped| **is_stamped).count()
        };
        for n in 0..9 {
            assert_eq!(sent(&[n * 10_000]), 0);
        }
        assert_eq!(sent(&[35_000]), 3, "between its scrapes");
        assert_eq!(sent(&[88_000]), 0);
        assert_eq!(sent(&[40_000, 50_000]), 0, "scraped before, perhaps");
        assert_eq!(sent(&[98_000]), 0);
        assert_eq!(sent(&[93_000]), 3);
    }

    #[test]
    fn what_comes_by_several_adapters_is_all_compared_where_most_is_late() {
        let mut sender = Sender::shared(usize::MAX, false);
        sender.on_missed(i64::MIN, 0);
        let mut sort = |times: &[i64]| {
            let rows: Vec<Row> = times.iter().map(|time_ms| row(*time_ms)).collect();
            told(&sender.sort(&rows, Instant::now()))
        };
        let before = Instant::now();
        assert_eq!(sort(&[10_000, 20_000]), (vec![10_000, 20_000], vec![], 0));
        assert_eq!(sort(&[20_000, 30_000]), (vec![30_000], vec![20_000], 0), "a late one");
        assert_eq!(sort(&[20_000, 30_000, 40_000]), (vec![], vec![20_000, 30_000, 40_000], 0), "sent again");
        assert_eq!(sort(&[50_000]), (vec![], vec![50_000], 0), "perhaps stored by another adapter a moment ago");
        sender.on_observed(before);
        let rows = [row(60_000)];
        assert_eq!(told(&sender.sort(&rows, Instant::now())), (vec![], vec![60_000], 0), "it is not observed yet");
        sender.on_observed(Instant::now());
        let rows = [row(70_000)];
        assert_eq!(told(&sender.sort(&rows, Instant::now())), (vec![70_000], vec![], 0));
    }

    #[test]
    fn history_does_not_wait_for_hours() {
        let mut scene = Scene::new();
        for hour in 0..9 {
            scene.sender.buffer(vec![row(hour * 3_600_000)], Uuid::nil(), scene.now).unwrap();
        }
        assert_eq!(scene.after(124).look(99).1.len(), 0);
        assert_eq!(scene.after(20).look(99).1.len(), 9);
    }

    #[test]
    fn a_last_time_that_was_looked_up_is_a_bound() {
        let mut scene = Scene::new();
        scene.sender.on_missed(i64::MAX, 1);
        assert_eq!(scene.sort(&[10_000, 20_000, 30_000]), (vec![], vec![10_000, 20_000, 30_000], 0));
        assert_eq!(scene.sender.unbounded(&late(&[10_000, 20_000], false)), [1]);
        let mut found = around(&[]);
        found.last_ms.insert(1, stored_time(45_000, Some(OTHER)));
        scene.sender.on_reconciled(&[row(10_000)], &[1], &found, OWN);
        assert_eq!(scene.sort(&[40_000, 51_000]), (vec![51_000], vec![], 1));
    }

    #[test]
    fn each_series_is_compared_with_what_is_stored_of_it() {
        let scene = Scene::new();
        let mut samples = late(&[0, 0, 0], false);
        for (sample, series_id) in samples.iter_mut().zip(1..) {
            sample.row.series_id = series_id;
        }
        let around = Around { times: HashMap::from([(2, vec![stored_time(0, Some(OTHER))])]), ..Around::default() };
        let missing = scene.sender.missing(&samples, &around, OWN);
        assert_eq!(missing.iter().map(|sample| sample.row.series_id).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn stored_samples_are_looked_for_as_far_around_as_two_intervals() {
        assert_eq!(Scene::new().sender.window_ms(&late(&[0], false)), 120_000);
        let scene = Scene::scraping();
        assert_eq!((scene.sender.interval_ms(1, 0), scene.sender.window_ms(&late(&[0], false))), (10_000, 20_000));
    }

    #[test]
    fn steps_that_differ_a_little_are_of_one_interval() {
        let sender = Sender::shared(usize::MAX, false);
        let stored = around(&[0, 10_000, 20_100, 30_000, 40_050].map(|time_ms| (time_ms, Some(OTHER))));
        assert!(sender.missing(&late(&[44_000], false), &stored, OWN).is_empty());
        assert_eq!(times(&sender.missing(&late(&[46_000], false), &stored, OWN)), [46_000]);
    }

    #[test]
    fn what_is_kept_goes_where_there_is_no_room() {
        let mut scene = Scene::new();
        scene.sender.keep(late(&[0], false).into_iter(), scene.now);
        assert!(scene.sender.kept().bytes() > 0);
        scene.sender.trim(0, scene.now);
        assert_eq!(scene.sender.kept().bytes(), 0);
    }

    #[test]
    fn a_leader_that_stores_something_late_is_not_catching_up() {
        let mut scene = Scene::standing_by(&[0, 10_000, 25_000], &[0, 10_000, 60_000]);
        scene.after(24).stored(&[5_000]);
        assert_eq!(scene.after(1).look(9), (2, vec![25_000]));
    }

    #[test]
    fn where_only_a_guess_of_the_interval_is_known_that_is_waited_for_twice() {
        let mut scene = Scene::new();
        for time_ms in [0, 10_000] {
            scene.sender.buffer(vec![row(time_ms)], Uuid::nil(), scene.now).unwrap();
        }
        assert_eq!(scene.after(24).look(9), (0, vec![]));
        assert_eq!(scene.after(3).look(9), (0, vec![0, 10_000]));
    }

    proptest! {
        #[test]
        fn what_is_appended_by_one_look_is_placed_so(
            stored in prop::collection::vec((0_i64..12, any::<bool>()), 0..6),
            newest_missed in prop::option::of(-1_i64..12),
            is_bounded in any::<bool>(),
            time in 0_i64..16,
        ) {
            let seen = || {
                let mut scene = Scene::scraping();
                for (time, is_own) in &stored {
                    let slot = Slot { time_ms: time * 5_000, is_own: *is_own };
                    scene.sender.series.stored(1, slot);
                }
                if is_bounded {
                    scene.sender.series.bounded(1);
                }
                if let Some(newest) = newest_missed {
                    scene.sender.on_missed(newest * 5_000, 9);
                }
                scene.sender
            };
            let (mut one, mut other) = (seen(), seen());
            let sample = late(&[time * 5_000], false)[0];
            let place = one.place(&sample);
            let are_own = one.series.times(1).all(|slot| slot.is_own);
            prop_assert_eq!(other.series.append(1, time * 5_000), place == Place::Append && are_own);
            if place == Place::Append && are_own {
                one.series.bounded(1);
                one.series.stored(1, Slot { time_ms: time * 5_000, is_own: true });
            }
            prop_assert_eq!(one.series.get(1, time * 5_000), other.series.get(1, time * 5_000));
            prop_assert!(one.series.times(1).eq(other.series.times(1)));
        }
    }
}
