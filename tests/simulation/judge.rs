//! Rules that must hold whenever something is stored, and at the end. The judge knows what was scraped and
//! acknowledged, and does not use the rules of the code under test.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::model::histogram::Histogram;
use prometheus_postgresql_adapter::model::sample::Value;
use prometheus_postgresql_adapter::storage::row::Row;

use crate::adapter::{Adapter, series_of};
use crate::kernel::Ms;
use crate::server::Right;
use crate::settings::{Fault, Kind, LATE_PART, Mode, ms};
use crate::world::{EPOCH_MS, World};

/// Information that the value of a sample encodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// True time of the scrape, not by the clock of any host.
    pub(crate) true_ms: i64,
    pub(crate) replica: usize,
    /// The exporter set the timestamp, so no other sample stands for this one.
    pub(crate) is_exact: bool,
}

impl Tag {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "small numbers")]
    pub(crate) fn to_value(self, series: usize) -> Value {
        let value = ((self.true_ms * 16 + self.replica as i64) * 2 + i64::from(self.is_exact)) as f64;
        // Some series have native histograms.
        match series % 5 {
            0 => Value::Histogram(Histogram { sum: value, ..Histogram::default() }.to_numbers()),
            _ => Value::Float(value),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "made by the above")]
    fn of(value: &Value) -> Self {
        let value = match value {
            Value::Float(value) => *value as i64,
            Value::Histogram(numbers) => numbers.to_histogram().expect("it is one").sum as i64,
        };
        let replica = usize::try_from((value >> 1).rem_euclid(16)).unwrap_or(0);
        Self { true_ms: (value >> 1).div_euclid(16), replica, is_exact: value & 1 == 1 }
    }
}

/// An acknowledged sample.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    /// The sample was acknowledged as stored, or is buffered by a process that has not died.
    is_kept: bool,
    tag: Option<Tag>,
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The first rule that was broken.
    pub(crate) broken: Option<String>,
    /// Samples that existed only in the memory of processes that died.
    pub(crate) died: usize,
    /// By labels: samples that one sender sent in two requests by two adapters at the same time, and that were stored
    /// twice.
    pub(crate) twice: usize,
    /// Scrapes that were stored beside another replica's by an adapter that cannot yet know the scrape interval of the
    /// series.
    pub(crate) unsure: usize,
    /// Samples that an exporter stamped out of order, among another replica's samples, and that only one replica
    /// scraped. They are taken for scrapes that are sent again.
    pub(crate) dense: usize,
    /// Samples that were lost although no sample of another replica is near: clocks differ by more than half an
    /// interval.
    pub(crate) skewed: usize,
    /// Samples that run backwards beside a sealed sample. Once a sample is sealed, nobody knows which clock stamped it.
    pub(crate) disordered: usize,
    /// Samples that could only have been stored in the wrong order, because clocks differ.
    pub(crate) orderless: usize,
    pub(crate) acknowledged: usize,
    pub(crate) stored: usize,
    pub(crate) reconciled: usize,
    pub(crate) terms: i64,
}

#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) verdict: RefCell<Verdict>,
    /// By series, then by time and replica.
    promised: RefCell<Vec<BTreeMap<(i64, usize), Promise>>>,
    /// By series and time.
    stored: RefCell<Vec<BTreeMap<i64, Tag>>>,
    /// By series and time: the adapter that stored the sample last, and the time at which it did.
    by: RefCell<HashMap<(usize, i64), (usize, Ms)>>,
}

/// By labels: the time within which an adapter may not know yet what another adapter stored of the same sender. An
/// adapter observes once a second, and a request may be under way for as long as a transaction lasts.
const AT_ONCE_MS: Ms = 12_000;

/// Difference below which two clocks may be taken for equal. The measurement of an offset is as precise as the links
/// are fast.
const CLOCK_ERROR_MS: i64 = 300;

impl World {
    pub(crate) fn broken(&self, what: String) {
        self.say(format_args!("BROKEN {what}"));
        self.judge.verdict.borrow_mut().broken.get_or_insert(what);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.judge.verdict.borrow().broken.is_some()
    }

    fn is_counter(&self, series: usize) -> bool {
        self.settings.target(series).kind == Kind::Counter
    }

    /// Returns the interval of a series. If samples are often late, the interval may look twice as long.
    fn interval_ms(&self, series: usize) -> i64 {
        let target = self.settings.target(series);
        if matches!(target.kind, Kind::Late { .. }) { 2 * target.interval_ms } else { target.interval_ms }
    }

    /// True if the adapter that stores a sample knows the interval of its series.
    fn is_sure(&self, id: i64, time_ms: i64, right: &Right) -> bool {
        let Some(adapter) = self.adapter(right.adapter) else { return false };
        adapter.senders.all().iter().any(|member| {
            member.number.get() == Some(right.sender) && member.state.borrow().interval_ms(id, time_ms) > 0
        })
    }

    /// Returns the time by which the distance of two scrapes may differ from the interval.
    fn jitter_ms(&self, series: usize) -> i64 {
        2 * self.settings.target(series).interval_ms / LATE_PART + 10
    }

    /// True if the clocks of all hosts may be taken for equal at all times.
    fn are_clocks_equal(&self) -> bool {
        let offsets = &self.settings.offsets;
        let is_set = |fault: &Fault| matches!(fault, Fault::Clock { .. });
        offsets.iter().all(|offset| offset.abs() < 50) && !self.settings.faults.iter().any(|one| is_set(&one.fault))
    }

    /// True if the offset of the clock that stamped a sample is known.
    fn is_clock_known(&self, tag: Tag) -> bool {
        let sets = |fault: &Fault| matches!(fault, Fault::Clock { .. });
        let mut sets =
            self.settings.faults.iter().filter(|one| sets(&one.fault)).map(|one| (one.at, one.at + one.for_ms));
        let first = sets.clone().map(|(at, _)| at).min();
        let last = sets.by_ref().map(|(_, until)| until).max();
        first.is_none_or(|first| self.now() < first) || last.is_none_or(|last| tag.true_ms > last + 5_000)
    }

    /// Returns the maximum difference between the clock that stamped a sample and the clocks of other replicas.
    fn skew_ms(&self, tag: Tag) -> i64 {
        let offsets_ms = &self.settings.offsets[..self.settings.replicas];
        let static_ms =
            offsets_ms.iter().map(|offset_ms| offset_ms.abs_diff(offsets_ms[tag.replica])).max().unwrap_or(0);
        let set_ms = self.settings.faults.iter().map(|one| match one.fault {
            // A sample that was stamped before the fault may have arrived after it.
            Fault::Clock { host: Some(_), by_ms }
                if (one.at - 60_000..one.at + one.for_ms + 60_000).contains(&tag.true_ms) =>
            {
                by_ms.abs()
            }
            _ => 0,
        });
        i64::try_from(static_ms).unwrap_or(i64::MAX) + set_ms.sum::<i64>()
    }

    // ---- when samples are stored

    pub(crate) fn judge_commit(&self, rows: &[Row], right: &Right, is_reconciled: bool) {
        let Right { sender, fence, .. } = *right;
        let group = self.database.borrow().group.clone();
        if let Some(fence) = fence
            && group.token != Some(fence.token)
        {
            self.broken(format!("old term: rows of term {} are stored in term {}", fence.term, group.term));
        }
        {
            let mut verdict = self.judge.verdict.borrow_mut();
            verdict.stored += rows.len();
            verdict.reconciled += if is_reconciled { rows.len() } else { 0 };
        }
        let word = if is_reconciled { "reconciles" } else { "appends" };
        let shown: Vec<Row> = rows.iter().map(|row| self.as_judged(row)).collect();
        self.say(format_args!("server: {word} of sender {} {}", sender.0, show(&shown)));
        for (row, stored) in shown.iter().zip(rows) {
            self.judge_row(row, stored.series_id, right);
        }
    }

    /// Formats rows with ids of the database for a trace.
    pub(crate) fn show_stored(&self, rows: &[Row]) -> String {
        if !self.is_traced() {
            return String::new();
        }
        show(&rows.iter().map(|row| self.as_judged(row)).collect::<Vec<_>>())
    }

    fn as_judged(&self, row: &Row) -> Row {
        let id = usize::try_from(row.series_id).unwrap_or(1) - 1;
        #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
        Row { series_id: self.database.borrow().series[id] as i64, ..row.clone() }
    }

    /// `id` is the id of the series in the database.
    fn judge_row(&self, row: &Row, id: i64, right: &Right) {
        let (series, time_ms, tag) = (series_of(row), row.time_ms, Tag::of(&row.value));
        let mut stored = self.judge.stored.borrow_mut();
        stored.resize_with(self.settings.target_of.len(), BTreeMap::new);
        let stored = &mut stored[series];
        let by = (right.adapter, self.now());
        let was_by = self.judge.by.borrow_mut().insert((series, time_ms), by);
        if let Some(other) = stored.get(&time_ms) {
            let is_at_once = was_by.is_some_and(|(adapter, at)| adapter != by.0 && by.1 - at <= AT_ONCE_MS);
            if self.settings.mode == Mode::Labels && other.replica == tag.replica && is_at_once {
                self.judge.verdict.borrow_mut().twice += 1;
                return;
            }
            return self
                .broken(format!("doubled: series {series} has two samples at {}: {other:?} and {tag:?}", at(time_ms)));
        }
        let before = stored.range(..time_ms).next_back().map(|(time_ms, tag)| (*time_ms, *tag));
        let after = stored.range(time_ms..).next().map(|(time_ms, tag)| (*time_ms, *tag));
        stored.insert(time_ms, tag);
        let least_ms = self.settings.target(series).interval_ms / 2 - self.jitter_ms(series);
        for (other_ms, other) in [before, after].into_iter().flatten() {
            let is_scrape = !tag.is_exact && !other.is_exact;
            if is_scrape && other.replica != tag.replica && (other_ms - time_ms).abs() < least_ms {
                if !self.is_sure(id, time_ms, right) {
                    self.judge.verdict.borrow_mut().unsure += 1;
                    continue;
                }
                self.broken(format!(
                    "doubled: series {series} has two scrapes in one interval: {} of {tag:?}, {} of {other:?}",
                    at(time_ms),
                    at(other_ms)
                ));
            }
            let is_earlier = other_ms < time_ms;
            let step_ms = if is_earlier { tag.true_ms - other.true_ms } else { other.true_ms - tag.true_ms };
            let are_known = self.is_clock_known(tag) && self.is_clock_known(other);
            if self.is_counter(series) && step_ms < -CLOCK_ERROR_MS && are_known {
                // By labels no clock is known. With several other replicas it is also unknown which of them stored the
                // last sample.
                let is_unknown = self.settings.mode == Mode::Labels || self.settings.replicas > 2;
                if is_unknown || self.database.borrow().is_sealed(id, other_ms) {
                    self.judge.verdict.borrow_mut().disordered += 1;
                    continue;
                }
                self.broken(format!(
                    "backwards: series {series} at {} has {tag:?}, at {} {other:?}",
                    at(time_ms),
                    at(other_ms)
                ));
            }
        }
    }

    // ---- when samples are acknowledged

    fn promise(&self, rows: &[Row]) {
        let mut promised = self.judge.promised.borrow_mut();
        promised.resize_with(self.settings.target_of.len(), BTreeMap::new);
        for row in rows {
            let tag = Tag::of(&row.value);
            let promise = promised[series_of(row)].entry((row.time_ms, tag.replica)).or_default();
            *promise = Promise { is_kept: true, tag: Some(tag) };
        }
    }

    /// Judges a leader's acknowledgement.
    pub(crate) fn judge_stored(&self, adapter: &Adapter, replica: usize, rows: &[Row]) {
        self.say(format_args!("adapter {}: has stored of replica {replica} {}", adapter.index, show(rows)));
        self.promise(rows);
    }

    /// Judges a standby's acknowledgement. A standby needs a leader with a recent heartbeat. `silent_ms` is the age of
    /// the last heartbeat at the time when the adapter found that it is a standby.
    pub(crate) fn judge_buffered(&self, adapter: &Adapter, replica: usize, rows: &[Row], silent_ms: Ms) {
        self.say(format_args!("adapter {}: buffers of replica {replica} {}", adapter.index, show(rows)));
        self.promise(rows);
        // The age of a heartbeat is measured by the database's clock, which may have been set in the meantime.
        let set_ms: Ms = self
            .settings
            .faults
            .iter()
            .map(|one| match one.fault {
                Fault::Clock { host: None, by_ms } => by_ms.abs(),
                _ => 0,
            })
            .sum();
        let fresh_ms = ms(self.settings.election.stale_after()) + set_ms;
        if self.settings.mode != Mode::Labels && silent_ms > fresh_ms {
            self.broken(format!("stale: adapter {} stands by behind a leader that is silent", adapter.index));
        }
    }

    /// Notes that a process died that had buffered these rows. The rows have ids of the database.
    pub(crate) fn judge_death(&self, rows: &[Row]) {
        for row in rows {
            let row = self.as_judged(row);
            let tag = Tag::of(&row.value);
            if let Some(promise) =
                self.judge.promised.borrow_mut()[series_of(&row)].get_mut(&(row.time_ms, tag.replica))
            {
                promise.is_kept = false;
            }
        }
    }

    // ---- at the end

    /// Checks that no sample is buffered for too long while nothing goes wrong.
    pub(crate) fn judge_steady(&self) {
        let now = self.kernel.instant();
        // Samples are buffered for longer while a leader catches up. A leader that sends rarely catches up all the
        // time.
        let is_slow = self.settings.sending.iter().any(|sending| sending.deadline_ms > 5_000);
        let most_ms = self.settings.buffered_ms() * if is_slow { 2 } else { 1 };
        for adapter in self.adapters() {
            for member in adapter.senders.all() {
                let oldest = member.state.borrow().buffered().oldest();
                let age_ms = oldest.map_or(0, |oldest| ms(now.saturating_duration_since(oldest)));
                if age_ms > most_ms {
                    let count = member.state.borrow().buffered().samples();
                    self.broken(format!(
                        "buffered: adapter {} has {count} samples in its buffer, one for {age_ms} ms",
                        adapter.index
                    ));
                }
            }
        }
    }

    pub(crate) fn judge_end(&self) {
        let now = self.kernel.instant();
        for replica in self.replicas.iter().filter(|replica| replica.is_up.get() && !replica.is_done()) {
            self.broken(format!("unanswered: replica {} has something left to send", replica.index));
        }
        for adapter in self.adapters().iter().filter(|adapter| !adapter.senders.is_drained()) {
            self.broken(format!("not drained: adapter {} has something left in its buffer", adapter.index));
        }
        let leads = |adapter: &std::rc::Rc<Adapter>| matches!(adapter.role.borrow().at(now), Role::Leader { .. });
        let leaders = self.adapters().iter().filter(|adapter| leads(adapter)).count();
        if leaders > 1 {
            self.broken(format!("{leaders} adapters lead"));
        }
        self.judge.verdict.borrow_mut().terms = self.database.borrow().group.term;
        let promised = self.judge.promised.borrow();
        self.judge.stored.borrow_mut().resize_with(self.settings.target_of.len(), BTreeMap::new);
        for (series, promised) in promised.iter().enumerate() {
            self.judge.verdict.borrow_mut().acknowledged += promised.len();
            for ((time_ms, _), promise) in promised {
                if let Some(tag) = promise.tag {
                    self.judge_promise(series, *time_ms, tag, promise.is_kept);
                }
            }
        }
    }

    fn judge_promise(&self, series: usize, time_ms: i64, tag: Tag, is_kept: bool) {
        let stored = &self.judge.stored.borrow()[series];
        let interval_ms = self.interval_ms(series);
        if stored.contains_key(&time_ms)
            || (!tag.is_exact && self.is_covered(stored, time_ms, tag, interval_ms, self.jitter_ms(series)))
        {
            return;
        }
        let mut verdict = self.judge.verdict.borrow_mut();
        if !is_kept {
            verdict.died += 1;
            return;
        }
        // An exporter whose samples are often late is taken for one with a longer interval.
        let is_late = matches!(self.settings.target(series).kind, Kind::Late { .. });
        let dense_ms = if is_late { 2 * interval_ms } else { interval_ms };
        if (tag.is_exact || is_late) && self.is_covered(stored, time_ms, tag, dense_ms, self.jitter_ms(series)) {
            verdict.dense += 1;
            return;
        }
        let is_between = |after: i64, before: i64| after > tag.true_ms || before < tag.true_ms;
        let before = stored.range(..time_ms).map(|(_, tag)| tag.true_ms).max().unwrap_or(i64::MIN);
        let after = stored.range(time_ms..).map(|(_, tag)| tag.true_ms).min().unwrap_or(i64::MAX);
        let skew_ms = self.skew_ms(tag);
        if skew_ms > interval_ms / 2 - self.jitter_ms(series) {
            let reach_ms = skew_ms + interval_ms / 2 + self.jitter_ms(series);
            let mut near = stored.range(time_ms.saturating_sub(reach_ms)..=time_ms.saturating_add(reach_ms));
            if near.any(|(_, other)| other.replica != tag.replica) {
                verdict.orderless += 1;
                return;
            }
            // A sealed sample of the same replica may have been taken for another replica's.
            verdict.skewed += 1;
            return;
        }
        // Timestamps of an exporter do not depend on the clocks of the replicas, and nobody knows which series have
        // them.
        let is_exported = matches!(self.settings.target(series).kind, Kind::Exported { .. });
        if (is_exported || !tag.is_exact && is_between(before, after)) && !self.are_clocks_equal() {
            verdict.orderless += 1;
            return;
        }
        drop(verdict);
        let near: Vec<String> = stored
            .range(time_ms - 2 * interval_ms..time_ms + 2 * interval_ms)
            .map(|(time_ms, tag)| format!("{} of {}", at(*time_ms), tag.replica))
            .collect();
        self.broken(format!(
            "lost: series {series} ({:?}, each {interval_ms} ms) at {} of {tag:?}; stored around it: {}",
            self.settings.target(series).kind,
            at(time_ms),
            near.join(", ")
        ));
    }

    /// True if another replica's scrape stands for this one, or if there is no gap at its place. The place is given by
    /// the timestamp or, where clocks differ, by the true time of the scrape.
    fn is_covered(
        &self,
        stored: &BTreeMap<i64, Tag>,
        time_ms: i64,
        tag: Tag,
        interval_ms: i64,
        jitter_ms: i64,
    ) -> bool {
        let (half_ms, gap_ms) = (interval_ms / 2 + jitter_ms, interval_ms + interval_ms / 2 + jitter_ms);
        let is_other = |other: &Tag| other.replica != tag.replica;
        let mut near = stored.range(time_ms - half_ms..=time_ms + half_ms).map(|(_, other)| other);
        if near.any(is_other) {
            return true;
        }
        let before = stored.range(..time_ms).next_back().map(|(time_ms, _)| *time_ms);
        let after = stored.range(time_ms..).next().map(|(time_ms, _)| *time_ms);
        if before.zip(after).is_some_and(|(before, after)| after - before <= gap_ms) {
            return true;
        }
        if self.are_clocks_equal() {
            return false;
        }
        let (half_ms, gap_ms) = (half_ms + CLOCK_ERROR_MS, gap_ms + CLOCK_ERROR_MS);
        let others = || stored.values().map(|other| (other.true_ms, is_other(other)));
        let before = others().filter(|(true_ms, _)| *true_ms <= tag.true_ms).map(|(true_ms, _)| true_ms).max();
        let after = others().filter(|(true_ms, _)| *true_ms >= tag.true_ms).map(|(true_ms, _)| true_ms).min();
        others().any(|(true_ms, is_other)| is_other && (true_ms - tag.true_ms).abs() <= half_ms)
            || before.zip(after).is_some_and(|(before, after)| after - before <= gap_ms)
    }

    pub(crate) fn say_end(&self) {
        let verdict = self.judge.verdict.borrow();
        self.say(format_args!("{verdict:?}"));
    }
}

/// Formats rows for a trace: series@seconds.
pub(crate) fn show(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{}@{}", row.series_id, at(row.time_ms))).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn at(time_ms: Ms) -> String {
    format!("{:.3}", (time_ms - EPOCH_MS) as f64 / 1e3)
}
