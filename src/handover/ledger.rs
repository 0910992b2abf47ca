//! What one adapter has acknowledged, may forget, and begins a term with. Pure: time is an argument.
//!
//! The rules that tie [`Held`], [`Watermark`] and [`Cut`] together; whoever drives them does the storing. The simulation
//! under `tests/` drives the same code.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::handover::cut::Cut;
use crate::handover::held::{Held, Refusal};
use crate::handover::watermark::Watermark;
use crate::storage::row::Row;

/// Clocks of the two hosts may differ by so much, 5 min: the last leader's samples may lie that far ahead.
const CLOCK_SKEW_MAX_MS: i64 = 5 * 60_000;

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
}

impl Ledger {
    /// Before the first term; holds at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { held: Held::new(bytes_max), watermark: Watermark::default(), cut: None, began_ms: None }
    }

    /// Takes what a standby is sent.
    ///
    /// # Errors
    ///
    /// When it can hold no more, or a take-over has begun; nothing of `rows` is held then.
    pub fn hold(&mut self, rows: &[Row], now: Instant) -> Result<(), Refusal> {
        self.held.hold(rows, now)
    }

    /// Another adapter leads, and this is its watermark.
    pub fn observed(&mut self, watermark_ms: Option<i64>, now: Instant) {
        self.held.open();
        if let Some(watermark_ms) = watermark_ms {
            self.held.forget(watermark_ms, now);
        }
    }

    /// A term begins at `now_ms`, after leaders whose clocks were `behind_ms` behind ours: what is held is to be stored as
    /// far as the cut leaves it, and then [`Ledger::replayed`] to be called. From here on nothing is held: it would come
    /// too late for the replay.
    #[must_use]
    pub fn take_over(&mut self, now_ms: i64, behind_ms: &[i64]) -> (Arc<Cut>, Vec<Row>) {
        self.held.close();
        self.began_ms = Some(now_ms);
        let ahead_ms = behind_ms.iter().copied().min().unwrap_or(0).min(0).saturating_neg();
        let until_ms = now_ms.saturating_add(CLOCK_SKEW_MAX_MS).saturating_add(ahead_ms);
        (Arc::new(Cut::new(now_ms, until_ms, behind_ms)), self.held.rows())
    }

    /// What was held is stored: from here on the leader serves. One that follows itself goes on with the cut it had, but
    /// for the series replayed: nobody else has stored between.
    pub fn replayed(&mut self, cut: Arc<Cut>, follows_itself: bool) {
        cut.replayed(&self.held.rows());
        let cut = match self.cut.take().filter(|_| follows_itself) {
            Some(before) => {
                before.adopt(&cut);
                before
            }
            None => cut,
        };
        self.held.clear();
        self.cut = Some(cut);
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

    /// The time in ms since 1970 up to which everything this leader will be sent is committed.
    pub fn watermark(&mut self, now_ms: i64) -> Option<i64> {
        self.watermark.at(now_ms)
    }

    /// Whether every series goes on under this term, so that what was stored before it is no series' end any more.
    pub fn is_settled(&mut self, now_ms: i64) -> bool {
        self.began_ms.is_some_and(|began_ms| self.watermark.at(now_ms).is_some_and(|at_ms| at_ms > began_ms))
    }

    /// What is held.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }
}
