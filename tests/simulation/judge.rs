//! What must hold after each step, and when all is quiet again: the four sentences of the promise.

use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::storage::row::Row;

use crate::postgres::Stored;
use crate::prometheus::{Shard, series_index};
use crate::settings::ms;
use crate::world::World;

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The first sentence broken.
    pub(crate) broken: Option<String>,
    /// Holes of which every sample that any replica scraped died in the memory of a process that died.
    pub(crate) excused: usize,
    /// Holes in what one replica scraped or got rid of, kept by another one, whose adapter forgot it by the rule: the
    /// watermark passes what the leader was never sent, if neither a change of leader nor its adapter tells of it.
    pub(crate) passed_over: usize,
    /// Holes that somebody still holds samples of, or could not get rid of, the watermark being behind.
    pub(crate) waiting: usize,
    pub(crate) terms: i64,
    pub(crate) stored: usize,
}

impl World {
    pub(crate) fn broken(&mut self, what: String) {
        self.say(format_args!("BROKEN {what}"));
        self.verdict.broken.get_or_insert(what);
    }

    /// A row commits: once, after all of its series that earlier terms stored, and between neighbours of fitting values.
    /// Within a term a delivery may be overtaken, so it takes the place that its time gives it; so does what fills a hole.
    pub(crate) fn judge_row(&mut self, series: usize, row: Stored) {
        let slack = self.clock_slack_ms() as f64;
        let rows = &self.server.series[series];
        let at = rows.partition_point(|stored| stored.time_ms < row.time_ms);
        let (before, after) = (at.checked_sub(1).map(|before| rows[before]), rows.get(at).copied());
        if after.is_some_and(|after| after.time_ms == row.time_ms) {
            self.broken(format!("sentence 3: stored twice, series {series}: {after:?} and {row:?}"));
        } else if let Some(after) = after.filter(|after| after.term < row.term && !row.fills) {
            self.broken(format!("sentence 3: terms interleave, series {series}: {row:?} before {after:?}"));
        } else if self.settings.is_counter(series)
            && (before.is_some_and(|before| row.value + slack < before.value)
                || after.is_some_and(|after| after.value + slack < row.value))
        {
            self.broken(format!(
                "sentence 3: a counter runs backwards, series {series}: {before:?}, {row:?}, {after:?}"
            ));
        }
        self.server.series[series].insert(at, row);
    }

    /// How far two measured clocks may be wrong together.
    fn clock_slack_ms(&self) -> i64 {
        2 * self.clock_error_ms + 20
    }

    /// By how much a scrape may be late before its series has a hole.
    fn late_ms(&self) -> i64 {
        (self.settings.scrape_ms / 8).max(500)
    }

    /// A leader acknowledges: each series is stored up to there, but for what lies between two clocks, or is held.
    pub(crate) fn judge_leader(&mut self, me: usize, rows: &[Row]) {
        let skew_ms = self.settings.skew_ms() + self.clock_slack_ms();
        for row in rows {
            let last = self.server.series[series_index(row)].last();
            let is_held = || self.adapters[me].all_held().iter().any(|held| is_same(held, row));
            if last.is_none_or(|last| last.time_ms + skew_ms < row.time_ms) && !is_held() {
                return self.broken(format!(
                    "sentence 1: leader {me} acknowledges what is not stored: {row:?}, last {last:?}"
                ));
            }
        }
    }

    /// A standby is about to acknowledge: somebody leads, and has said so lately.
    pub(crate) fn judge_standby(&mut self, me: usize) {
        let fresh_ms = ms(self.settings.election.stale_after());
        if self.server.group.heartbeat.is_none_or(|heartbeat| heartbeat + fresh_ms < self.now) {
            self.broken(format!("sentence 4: adapter {me} answers as standby behind a stale heartbeat"));
        }
    }

    /// All is quiet: somebody leads, everything is stored up to now, and no series has a hole that anybody could fill.
    pub(crate) fn judge_end(&mut self) {
        let now = self.instant();
        let leaders = self.adapters.iter().filter(|one| matches!(one.role.at(now), Role::Leader { .. })).count();
        if leaders > 1 {
            self.broken(format!("sentence 2: {leaders} adapters lead"));
        }
        self.verdict.terms = self.server.group.term;
        self.verdict.stored = self.server.series.iter().map(Vec::len).sum();
        for series in 0..self.settings.series() {
            self.judge_series(series);
        }
    }

    /// Whether somebody holds samples of a hole.
    pub(crate) fn is_waiting(&self) -> bool {
        let pace = self.settings.scrape_ms + self.late_ms() + self.settings.skew_ms() + self.clock_slack_ms();
        let waits = |row: &Row| {
            let stored = &self.server.series[series_index(row)];
            let at = stored.partition_point(|stored| stored.time_ms < row.time_ms);
            let (before, after) = (at.checked_sub(1).map(|before| &stored[before]), stored.get(at));
            before.zip(after).is_some_and(|(before, after)| after.time_ms - before.time_ms > pace)
        };
        self.adapters.iter().any(|adapter| adapter.is_up && adapter.all_held().iter().any(waits))
    }

    fn judge_series(&mut self, series: usize) {
        let mut scraped: Vec<(i64, usize, bool)> = Vec::new();
        for (replica, prometheus) in self.prometheis.iter().enumerate() {
            scraped.extend(prometheus.scraped[series].iter().map(|one| (one.time_ms, replica, one.is_destroyed)));
        }
        let interval = self.settings.scrape_ms;
        let late = self.late_ms();
        let stored = self.server.series[series].clone();
        // Where one side follows another, two samples may be close.
        let is_beside = |three: &&[Stored]| {
            let by_one = three[0].replica == three[2].replica && !three[0].fills && three[1].fills && !three[2].fills;
            by_one && three[2].time_ms - three[0].time_ms < interval + late
        };
        if let Some(three) = stored.windows(3).find(is_beside) {
            return self.broken(format!("sentence 3: filled in where there is no hole, series {series}: {three:?}"));
        }
        let ends = |row: Option<&Stored>| row.map(|row| (row.time_ms, (row.term, row.replica, row.fills)));
        let firsts = stored.iter().map(|row| ends(Some(row)));
        let befores = std::iter::once(None).chain(stored.iter().map(|row| ends(Some(row))));
        let pairs: Vec<_> = befores.zip(firsts.chain(std::iter::once(None))).collect();
        for (before, after) in pairs {
            // By one clock a series goes on at its pace; from one to the next it may miss what lies between them. So it
            // may where a hole was filled by several.
            let (from, to, gap) = match (before, after) {
                (Some((from, one)), Some((to, other))) => {
                    let skew = if one == other && !one.2 { 0 } else { self.settings.skew_ms() };
                    (from, to, interval + skew + late + self.clock_slack_ms())
                }
                (Some((from, _)), None) => {
                    (from, i64::MAX, interval + self.settings.skew_ms() + late + self.clock_slack_ms())
                }
                (None, Some((to, _))) => {
                    (i64::MIN, to, interval + self.settings.skew_ms() + late + self.clock_slack_ms())
                }
                (None, None) => (i64::MIN, i64::MAX, 0),
            };
            if to.saturating_sub(from) <= gap {
                continue;
            }
            // Into a gap between two of one clock, nothing is filled by another clock that may not be between them.
            let writers = [before, after].map(|end| end.map(|(_, (_, replica, _))| replica));
            let margin = |replica: usize| {
                let is_others = writers[0] == writers[1] && writers[0] != Some(replica);
                gap - interval + if is_others { self.settings.skew_ms() } else { 0 }
            };
            let is_inside = |time_ms: i64, margin: i64| {
                time_ms > from.saturating_add(margin) && time_ms < to.saturating_sub(margin)
            };
            let missing: Vec<_> =
                scraped.iter().filter(|(time_ms, replica, _)| is_inside(*time_ms, margin(*replica))).collect();
            if missing.is_empty() {
                continue;
            }
            // At the open ends, the pace alone decides.
            let lasts =
                |time_ms: i64| (before.is_none() && to - time_ms <= gap) || (after.is_none() && time_ms - from <= gap);
            let kept = missing.iter().find(|(time_ms, _, destroyed)| !destroyed && !lasts(*time_ms));
            let is_held = |replica: usize, time_ms: i64| {
                #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
                let row = Row { series_id: series as i64, time_ms, value: 0.0 };
                let mut unsent = self.prometheis[replica].shards.iter().flat_map(Shard::unsent);
                let held = || self.adapters[replica].all_held();
                after.is_some() && unsent.any(|held| is_same(held, &row))
                    || self.adapters[replica].is_up && held().iter().any(|held| is_same(held, &row))
            };
            if missing
                .iter()
                .any(|(time_ms, replica, destroyed)| !destroyed && !lasts(*time_ms) && is_held(*replica, *time_ms))
            {
                self.verdict.waiting += 1;
                continue;
            }
            match kept {
                // A shard whose deliveries are lost before the adapter sees them may be stuck for longer than the lag.
                Some(_) if self.is_unheard || self.settings.lossy > 0 => self.verdict.passed_over += 1,
                Some((time_ms, replica, _)) => {
                    let at = (*time_ms - crate::world::EPOCH_MS) as f64 / 1e3;
                    let (from, to) = (
                        before.map(|row| row.0 - crate::world::EPOCH_MS),
                        after.map(|row| row.0 - crate::world::EPOCH_MS),
                    );
                    return self.broken(format!(
                        "sentence 3: a hole in series {series} between {from:?} and {to:?}: replica {replica} scraped at {at:.3} and lost nothing of it"
                    ));
                }
                None if missing.iter().all(|(time_ms, ..)| lasts(*time_ms)) => {}
                None => self.verdict.excused += 1,
            }
        }
    }
}

fn is_same(one: &Row, other: &Row) -> bool {
    (one.series_id, one.time_ms) == (other.series_id, other.time_ms)
}
