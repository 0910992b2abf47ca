//! What must hold after each step, and when all is quiet again.

use crate::by_labels::World;
use crate::postgres::Stored;
use crate::prometheus::Shard;
use crate::world::EPOCH_MS;

/// A scrape may be so late before its series has a hole.
const LATE_MS: i64 = 500;

impl World {
    pub(crate) fn broken(&mut self, what: String) {
        self.say(format_args!("BROKEN {what}"));
        self.verdict.broken.get_or_insert(what);
    }

    /// A row commits: once, and after all of its series that earlier terms stored, but for what fills a hole.
    pub(crate) fn judge_row(&mut self, series: usize, row: Stored) {
        let rows = &self.server.series[series];
        let at = rows.partition_point(|stored| stored.time_ms < row.time_ms);
        let after = rows.get(at).copied();
        if after.is_some_and(|after| after.time_ms == row.time_ms) {
            self.broken(format!("sentence 3: stored twice, series {series}: {after:?} and {row:?}"));
        } else if let Some(after) = after.filter(|after| after.term < row.term && !row.fills) {
            self.broken(format!("sentence 3: terms interleave, series {series}: {row:?} before {after:?}"));
        }
        self.server.series[series].insert(at, row);
    }

    pub(crate) fn judge_end(&mut self) {
        self.verdict.terms = self.server.group.term;
        self.verdict.stored = self.server.series.iter().map(Vec::len).sum();
        for series in 0..self.settings.series {
            self.judge_series(series);
        }
    }

    /// Whether somebody holds samples of a hole.
    pub(crate) fn is_waiting(&self) -> bool {
        (0..self.settings.series).any(|series| {
            self.gaps(series).iter().any(|(from, to)| {
                self.kept(series, *from, *to).iter().any(|(replica, time_ms)| self.is_held(*replica, series, *time_ms))
            })
        })
    }

    fn gap_ms(&self) -> i64 {
        self.settings.scrape_ms + LATE_MS
    }

    /// Spans in which nothing is stored, longer than a series' pace.
    fn gaps(&self, series: usize) -> Vec<(i64, i64)> {
        let times = self.server.series[series].iter().map(|stored| stored.time_ms);
        let ends = std::iter::once(i64::MIN).chain(times.clone()).zip(times.chain(std::iter::once(i64::MAX)));
        ends.filter(|(from, to)| to.saturating_sub(*from) > self.gap_ms()).collect()
    }

    /// Samples in a gap that lived: by replica and time. At the ends the pace alone decides.
    fn kept(&self, series: usize, from: i64, to: i64) -> Vec<(usize, i64)> {
        let lower = if from == i64::MIN { from } else { from + LATE_MS };
        let upper = if to == i64::MAX { to } else { to - LATE_MS };
        let lasts = |time_ms: i64| {
            (from == i64::MIN && to - time_ms <= self.gap_ms()) || (to == i64::MAX && time_ms - from <= self.gap_ms())
        };
        let mut kept = Vec::new();
        for (replica, sender) in self.replicas.iter().enumerate() {
            let scraped = sender.scraped[series].iter().filter(|one| one.time_ms > lower && one.time_ms < upper);
            kept.extend(
                scraped.filter(|one| !one.is_destroyed && !lasts(one.time_ms)).map(|one| (replica, one.time_ms)),
            );
        }
        kept
    }

    fn is_held(&self, replica: usize, series: usize, time_ms: i64) -> bool {
        let is_it = |row: &prometheus_postgresql_adapter::storage::row::Row| {
            usize::try_from(row.series_id) == Ok(series) && row.time_ms == time_ms
        };
        self.replicas[replica].shards.iter().flat_map(Shard::unsent).any(is_it)
            || self.adapters.iter().any(|adapter| adapter.is_up && adapter.held(replica).iter().any(is_it))
    }

    fn judge_series(&mut self, series: usize) {
        for (from, to) in self.gaps(series) {
            let kept = self.kept(series, from, to);
            let Some((replica, time_ms)) = kept.first().copied() else {
                self.verdict.excused += usize::from(from != i64::MIN && to != i64::MAX);
                continue;
            };
            if kept.iter().any(|(replica, time_ms)| self.is_held(*replica, series, *time_ms)) {
                self.verdict.waiting += 1;
                continue;
            }
            // Several failures at once may be too many; how often they are is bounded over all schedules.
            if self.is_unheard || self.settings.restarts_unnoticed() || self.settings.faults.len() > 1 {
                self.verdict.passed_over += 1;
                continue;
            }
            let at = (time_ms - EPOCH_MS) as f64 / 1e3;
            let (from, to) = (from.saturating_sub(EPOCH_MS), to.saturating_sub(EPOCH_MS));
            return self.broken(format!(
                "sentence 3: a hole in series {series} between {from} and {to}: replica {replica} scraped at {at:.3} and lost nothing of it"
            ));
        }
    }
}
