//! What passes from one leader to the next: what a standby holds, and where a new leader begins.
//!
//! [`held`] is a standby's memory, [`watermark`] what a leader lets it forget, [`cut`] where a term begins in each
//! series, [`ledger`] the rules between them: four pure parts, and here what ties them to the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::clock::now_ms;
use crate::election::advisory_lock::{Published, Succession, Takeover};
use crate::handover::cut::Cut;
use crate::handover::held::{Held, Refusal};
use crate::handover::ledger::Ledger;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::row::Row;
use crate::telemetry::metrics::Metrics;

pub mod cut;
pub mod held;
pub mod ledger;
pub mod watermark;

/// What a standby may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-standby-memory-mib`, in bytes.
    pub memory_bytes_max: usize,
}

/// Rows of one transaction of a replay.
const REPLAY_ROWS: usize = 50_000;

/// One adapter's side of the hand-over.
pub struct Handover {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    ledger: Mutex<Ledger>,
}

/// A request that is not stored yet; dropped before [`Storing::done`] it counts as failed, to come again.
pub struct Storing<'a> {
    handover: &'a Handover,
    key: Uuid,
    latest_ms: Option<i64>,
    done: bool,
}

impl Handover {
    /// Before the first term.
    #[must_use]
    pub fn new(config: Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, ledger: Mutex::new(Ledger::new(config.memory_bytes_max)) }
    }

    /// Takes what a standby is sent.
    ///
    /// # Errors
    ///
    /// When it can hold no more, or a take-over has begun.
    pub fn hold(&self, rows: &[Row]) -> Result<(), Refusal> {
        let mut ledger = self.ledger();
        ledger.hold(rows, Instant::now())?;
        self.metrics.samples_standby_total.inc_by(rows.len() as u64);
        self.show(ledger.held());
        Ok(())
    }

    /// Takes out of `rows` what the last leader stored: for each series, everything up to its last stored time. What is
    /// newer is from this adapter's own Prometheus alone, so the two never interleave. Returns how many went.
    ///
    /// # Errors
    ///
    /// What the server said; `rows` is as it was.
    pub async fn cut(&self, rows: &mut Vec<Row>) -> Result<usize, Error> {
        let cut = self.ledger().cut();
        match cut {
            Some(cut) => self.apply(&cut, rows).await,
            None => Ok(0),
        }
    }

    async fn apply(&self, cut: &Cut, rows: &mut Vec<Row>) -> Result<usize, Error> {
        if let Some(unknown) = cut.unknown(rows) {
            let found = self.store.last_times(&unknown.series, unknown.from_ms, cut.until_ms()).await?;
            cut.learn(&unknown, &found);
        }
        Ok(cut.apply(rows))
    }

    /// A request begins that is to be stored, now or at a later attempt: the watermark stays behind its `times_ms` until
    /// [`Storing::done`].
    pub fn storing(&self, key: Uuid, times_ms: impl Iterator<Item = i64>) -> Storing<'_> {
        let span = times_ms.fold(None, |span: Option<(i64, i64)>, time_ms| {
            Some(span.map_or((time_ms, time_ms), |(earliest, latest)| (earliest.min(time_ms), latest.max(time_ms))))
        });
        if let Some(span) = span {
            self.ledger().storing(key, span, now_ms());
        }
        Storing { handover: self, key, latest_ms: span.map(|(_, latest_ms)| latest_ms), done: false }
    }

    /// Stores what was held and is newer than what the last leader stored, whole series at a time, so that whatever
    /// of it fails is found missing by the next attempt.
    async fn replay(&self, mut rows: Vec<Row>, cut: &Cut, takeover: &Takeover) -> Result<(), Error> {
        let held = rows.len();
        if held == 0 {
            return Ok(());
        }
        let dropped = self.apply(cut, &mut rows).await?;
        self.metrics.samples_duplicate_total.with_label_values(&["last_leader"]).inc_by(dropped as u64);
        let stored = rows.len();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let whole = series_end(rest, REPLAY_ROWS);
            let (now, later) = rest.split_at(whole);
            let key = Uuid::new_v4();
            self.store
                .commit(key, now.to_vec(), Some(takeover.fence))
                .await
                .map_err(|error| Error::Unfit(error.to_string()))?;
            rest = later;
        }
        self.metrics.samples_replayed_total.inc_by(stored as u64);
        log::info!("replayed {stored} of {held} samples held; the last leader had stored the others");
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: &Held) {
        self.metrics.standby_held_samples.set(i64::try_from(held.samples()).unwrap_or(i64::MAX));
        self.metrics.standby_held_bytes.set(i64::try_from(held.bytes()).unwrap_or(i64::MAX));
    }
}

impl Storing<'_> {
    /// What tells the request from others.
    #[must_use]
    pub fn key(&self) -> Uuid {
        self.key
    }

    /// It is stored, or held.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        let Some(latest_ms) = self.latest_ms else { return };
        self.handover.ledger().stored(self.key, self.done.then_some(latest_ms), now_ms());
    }
}

impl Succession for Handover {
    async fn prepare(&self, takeover: Takeover) -> Result<(), Error> {
        // After a fail-over of PostgreSQL, what is cached may never have reached the new primary.
        self.store.forget();
        let (cut, held) = self.ledger().take_over(now_ms(), &takeover.behind_ms);
        self.replay(held, &cut, &takeover).await?;
        let mut ledger = self.ledger();
        ledger.replayed(cut, takeover.follows_itself);
        self.show(ledger.held());
        Ok(())
    }

    fn published(&self) -> Published {
        let (mut ledger, now_ms) = (self.ledger(), now_ms());
        Published { watermark_ms: ledger.watermark(now_ms), is_settled: ledger.is_settled(now_ms) }
    }

    fn observed(&self, watermark_ms: Option<i64>) {
        let mut ledger = self.ledger();
        ledger.observed(watermark_ms, Instant::now());
        self.show(ledger.held());
    }
}

/// Where to split sorted rows: after about `count` of them, at the end of a series.
fn series_end(rows: &[Row], count: usize) -> usize {
    let Some(last) = rows.get(count) else { return rows.len() };
    let first_of_series = rows.partition_point(|row| row.series_id < last.series_id);
    if first_of_series > 0 { first_of_series } else { rows.partition_point(|row| row.series_id <= last.series_id) }
}
