//! What one adapter has acknowledged, may forget, and begins a term with. Pure: time is an argument.
//!
//! The rules that tie [`Held`], [`Watermark`] and [`Cut`] together; whoever drives them does the storing. The simulation
//! under `tests/` drives the same code.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::Progress;
use crate::handover::cut::Cut;
use crate::handover::held::{Held, Refusal};
use crate::handover::watermark::Watermark;
use crate::storage::fence::Fence;
use crate::storage::fill::Doubtful;
use crate::storage::gaps::{Compared, Hole, Known, in_hole};
use crate::storage::row::Row;

/// Clocks of the two hosts may differ by so much, 5 min: the last leader's samples may lie that far ahead.
const CLOCK_SKEW_MAX_MS: i64 = 5 * 60_000;

/// Clocks that differ by less make no sample filled in follow one that its leader is still to be sent.
const CLOCKS_APART_MS: i64 = 10_000;

/// So long after it came to be in doubt, and after the last comparison, a sample is compared: the more of a series have come,
/// the better its pace is known.
const COMPARED_AFTER: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    /// What this adapter has acknowledged as a standby.
    held: Held,
    /// What this adapter has committed as a leader.
    watermark: Watermark,
    /// Where the present term began; none before the first.
    cut: Option<Arc<Cut>>,
    /// When the present term began, ms since 1970; none before the first.
    began_ms: Option<i64>,
    /// What changes of leader left in doubt.
    holes: Vec<Hole>,
    /// The term in force.
    term: Option<Term>,
    /// By series id, what comparing has told.
    known: HashMap<i64, Known>,
    /// When last all that was to be compared was taken out.
    compared_at: Option<Instant>,
}

/// A term as those know it who fill in under it what nobody stored.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// The right to write.
    pub fence: Fence,
    /// How far our clock is ahead of the server's.
    pub clock_offset_ms: i64,
    /// Its watermark, if we lead the latest we ever had.
    pub watermark_ms: Option<i64>,
}

impl Ledger {
    /// Before the first term; holds at most `bytes_max` bytes, and waits for a request that failed `failed_kept_ms`.
    #[must_use]
    pub fn new(bytes_max: usize, failed_kept_ms: i64) -> Self {
        Self {
            held: Held::new(bytes_max),
            watermark: Watermark::new(failed_kept_ms),
            cut: None,
            began_ms: None,
            holes: Vec::new(),
            term: None,
            known: HashMap::new(),
            compared_at: None,
        }
    }

    /// Takes what a standby is sent in the request `key`.
    ///
    /// # Errors
    ///
    /// When it can hold no more, or a take-over has begun; nothing of `rows` is held then.
    pub fn hold(&mut self, key: Uuid, rows: &[Row], now: Instant) -> Result<(), Refusal> {
        self.held.hold(key, rows, now)
    }

    /// Another adapter leads, in this term.
    pub fn observed(&mut self, term: Term, holes: Vec<Hole>, now: Instant) {
        self.held.open();
        self.now_in(term, holes);
        if let Some(watermark_ms) = term.watermark_ms {
            self.held.forget(watermark_ms, &self.holes, now);
        }
    }

    /// `term` begins at `now_ms`, after leaders whose clocks were `behind_ms` behind ours: what is held is to be stored as
    /// far as the cut leaves it, and then [`Ledger::replayed`] to be called. From here on nothing is held: it would come
    /// too late for the replay.
    #[must_use]
    pub fn take_over(&mut self, term: Term, holes: Vec<Hole>, now_ms: i64, behind_ms: &[i64]) -> (Arc<Cut>, Vec<Row>) {
        let ahead_ms = behind_ms.iter().copied().min().unwrap_or(0).min(0).saturating_neg();
        let until_ms = now_ms.saturating_add(CLOCK_SKEW_MAX_MS).saturating_add(ahead_ms);
        self.begin(term, holes, now_ms);
        (Arc::new(Cut::new(now_ms, until_ms, behind_ms)), self.held.rows())
    }

    /// As [`Ledger::take_over`], for a term whose cut is known: what is held, [by request](Held::requests), is to be stored
    /// as far as the cut leaves it, and then [`Ledger::begun`] to be called.
    pub fn begin(&mut self, term: Term, holes: Vec<Hole>, now_ms: i64) {
        self.held.close();
        self.now_in(term, holes);
        self.began_ms = Some(now_ms);
    }

    /// What was held is stored, each request under its own key: whichever adapter is sent one again finds it stored.
    pub fn begun(&mut self, cut: Arc<Cut>, now: Instant) {
        let taken_out = cut.apply(&mut self.held.rows());
        self.held.clear();
        self.held.doubt(&taken_out, &self.holes, now);
        self.cut = Some(cut);
    }

    fn passed(&mut self, watermark_ms: Option<i64>) {
        if let Some(term) = &mut self.term {
            term.watermark_ms = term.watermark_ms.max(watermark_ms);
        }
    }

    /// The leader of the present term has got so far, by way of all adapters together; its clock is so far ahead of the
    /// server's, as is known by now, and this is in doubt.
    pub fn led(&mut self, watermark_ms: Option<i64>, clock_offset_ms: i64, holes: Vec<Hole>) {
        self.passed(watermark_ms);
        if let Some(term) = &mut self.term {
            term.clock_offset_ms = clock_offset_ms;
        }
        self.doubtful_are(holes);
    }

    /// What was held is stored: from here on the leader serves. One that follows itself goes on with the cut it had, but
    /// for the series replayed: nobody else has stored between.
    pub fn replayed(&mut self, cut: Arc<Cut>, follows_itself: bool, now: Instant) {
        let mut rows = self.held.rows();
        let stored = cut.apply(&mut rows);
        cut.replayed(&rows);
        let cut = match self.cut.take().filter(|_| follows_itself) {
            Some(before) => {
                before.adopt(&cut);
                before
            }
            None => cut,
        };
        self.held.clear();
        self.held.doubt(&stored, &self.holes, now);
        self.cut = Some(cut);
    }

    fn now_in(&mut self, term: Term, holes: Vec<Hole>) {
        self.doubtful_are(holes);
        self.term = Some(term);
    }

    fn doubtful_are(&mut self, holes: Vec<Hole>) {
        if self.holes != holes {
            self.known = HashMap::new();
        }
        self.holes = holes;
    }

    /// Takes out of what this leader is sent all that comes so late that others may have filled in for it already.
    pub fn overtaken(&self, rows: &mut Vec<Row>) -> Vec<Row> {
        let Some(passed_ms) = self.term.and_then(|term| term.watermark_ms) else { return Vec::new() };
        let overtaken: Vec<Row> =
            rows.extract_if(.., |row| row.time_ms <= passed_ms && in_hole(&self.holes, row)).collect();
        if let Some(cut) = &self.cut {
            cut.replayed(&overtaken);
        }
        overtaken
    }

    /// Holds what this leader is sent and does not store, for it is older than what is stored: perhaps nobody stored it.
    ///
    /// # Errors
    ///
    /// When no more can be held; nothing of `rows` is then.
    pub fn doubt(&mut self, rows: &[Row], now: Instant) -> Result<(), Refusal> {
        if !self.held.has_room() {
            return Err(Refusal::Full);
        }
        self.held.doubt(rows, &self.holes, now);
        Ok(())
    }

    /// Takes out some of what is in doubt, to be compared with what is stored. Nothing for a while after the last time, and
    /// nothing that has only just come to be in doubt: what its sender sends next tells the pace.
    pub fn take_doubtful(&mut self, count: usize, now: Instant) -> Option<Doubtful> {
        let Term { fence, clock_offset_ms, watermark_ms } = self.term?;
        let until = now.checked_sub(COMPARED_AFTER)?;
        if self.compared_at.is_some_and(|compared_at| compared_at > until) {
            return None;
        }
        let passed_ms = watermark_ms.map_or(i64::MIN, |at_ms| at_ms.saturating_sub(CLOCKS_APART_MS));
        let rows = self.held.take_doubtful(count, until);
        if rows.is_empty() {
            return None;
        }
        self.compared_at = (rows.len() < count).then_some(now);
        let known = |row: &Row| (row.series_id, self.known.get(&row.series_id).copied().unwrap_or_default());
        let mut known: HashMap<i64, Known> = rows.iter().map(known).collect();
        for (id, next_ms) in self.held.next_times(&rows) {
            known.entry(id).or_default().next_ms = Some(next_ms);
        }
        Some(Doubtful { rows, fence, clock_offset_ms, passed_ms, known })
    }

    /// How that ended: what was missing is stored now; `None` if it must be tried again.
    pub fn compared(&mut self, doubtful: &Doubtful, compared: Option<&Compared>, now: Instant) {
        let rest = match compared {
            Some(Compared { undecided, known, .. }) => {
                self.known.extend(known.iter().copied());
                undecided
            }
            None => &doubtful.rows,
        };
        self.held.doubt(rest, &self.holes, now);
    }

    /// Where the present term began; none before the first.
    #[must_use]
    pub fn cut(&self) -> Option<Arc<Cut>> {
        self.cut.clone()
    }

    /// A request with samples from `earliest_ms` to `latest_ms` begins, that is to be stored, now or at a later attempt.
    pub fn storing(&mut self, key: Uuid, (earliest_ms, latest_ms): (i64, i64), now_ms: i64) {
        self.watermark.begin(key, earliest_ms, latest_ms, now_ms);
    }

    /// How that ended: with the latest of its times once it is stored or held, `None` if it must come again.
    pub fn stored(&mut self, key: Uuid, committed_up_to_ms: Option<i64>, now_ms: i64) {
        match committed_up_to_ms {
            Some(latest_ms) => self.watermark.committed(key, latest_ms, now_ms),
            None => self.watermark.failed(key, now_ms),
        }
    }

    /// How far this leader has got, by way of this adapter; not past anything that it has still to store of what it held.
    pub fn progress(&mut self, now_ms: i64) -> Progress {
        let mut progress = self.watermark.progress(now_ms);
        progress.pending_ms = progress.pending_ms.into_iter().chain(self.held.earliest_ms()).min();
        progress
    }

    /// The time in ms since 1970 up to which everything this leader will be sent is committed.
    pub fn watermark(&mut self, now_ms: i64) -> Option<i64> {
        let watermark_ms = self.watermark.at(now_ms);
        self.passed(watermark_ms);
        watermark_ms
    }

    /// Whether every series goes on under this term, so that what was stored before it is no series' end any more.
    pub fn is_settled(&mut self, now_ms: i64) -> bool {
        self.began_ms.is_some_and(|began_ms| self.watermark.at(now_ms).is_some_and(|at_ms| at_ms > began_ms))
    }

    /// Whether all that is held is stored, as far as is known.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.held.is_passed(self.term.and_then(|term| term.watermark_ms))
    }

    /// Forgets what is held: its sender has been silent for so long that it is stored, or nobody wants it.
    pub fn forget(&mut self) {
        self.held = Held::new(0);
    }

    /// What is held.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_doubt_waits_for_as_long_as_it_must_and_no_longer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let fence = Fence { group_no: 1, term: 1, token: Uuid::nil() };
        let term = Term { fence, clock_offset_ms: 0, watermark_ms: Some(100_000) };
        let mut ledger = Ledger::new(usize::MAX, 0);
        let row = |time_ms| Row { series_id: 1, time_ms, value: 0.0 };
        ledger.observed(term, vec![Hole { lower_ms: 0, upper_ms: 100_000 }], start);
        let taken = |ledger: &mut Ledger, seconds| {
            ledger
                .take_doubtful(9, at(seconds))
                .map(|taken| taken.rows.iter().map(|row| row.time_ms).collect::<Vec<_>>())
        };
        ledger.doubt(&[row(1)], start).unwrap();
        assert_eq!(taken(&mut ledger, 9), None, "more of its series may come");
        assert_eq!(taken(&mut ledger, 10), Some(vec![1]));
        ledger.doubt(&[row(2)], at(11)).unwrap();
        assert_eq!(taken(&mut ledger, 20), None, "it has only just come");
        assert_eq!(taken(&mut ledger, 21), Some(vec![2]));
    }
}
