//! What passes from one leader to the next: what a standby holds, and where a new leader begins.
//!
//! [`held`] is a standby's memory, [`watermark`] what a leader lets it forget, [`cut`] where a term begins in each
//! series, [`ledger`] the rules between them: four pure parts, and here what ties them to the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::election::advisory_lock::{Observation, Published, Succession, Takeover};
use crate::handover::cut::Cut;
use crate::handover::held::{Held, Refusal};
use crate::handover::ledger::{Ledger, Term};
use crate::handover::watermark::FAILED_KEPT_MS;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::gaps::Compared;
use crate::storage::ingest::Stored;
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

/// Rows compared with what is stored at once.
const FILL_ROWS: usize = 100_000;

/// One adapter's side of the hand-over.
pub struct Handover {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    ledger: Mutex<Ledger>,
    /// The watermark may have passed something that is in doubt.
    passed: Notify,
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
        Self {
            store,
            metrics,
            ledger: Mutex::new(Ledger::new(config.memory_bytes_max, FAILED_KEPT_MS)),
            passed: Notify::new(),
        }
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
    /// newer is from this adapter's own Prometheus alone, so the two never interleave. Returns what went, to be
    /// [doubted](Handover::doubt).
    ///
    /// # Errors
    ///
    /// What the server said; `rows` is as it was.
    pub async fn cut(&self, rows: &mut Vec<Row>) -> Result<Vec<Row>, Error> {
        let cut = self.ledger().cut();
        let Some(cut) = cut else { return Ok(Vec::new()) };
        let mut taken_out = self.apply(&cut, rows).await?;
        taken_out.extend(self.ledger().overtaken(rows));
        Ok(taken_out)
    }

    /// Holds what the cut took out and nobody may have stored.
    ///
    /// # Errors
    ///
    /// When it can hold no more.
    pub fn doubt(&self, rows: &[Row]) -> Result<(), Refusal> {
        if rows.is_empty() { Ok(()) } else { self.ledger().doubt(rows, Instant::now()) }
    }

    /// Fills in what nobody stored, as leader or as standby, whenever the watermark passes something held in doubt. Does
    /// not end.
    pub async fn fill(&self) {
        loop {
            self.passed.notified().await;
            while self.fill_some().await {}
        }
    }

    async fn fill_some(&self) -> bool {
        let doubtful = self.ledger().take_doubtful(FILL_ROWS, Instant::now());
        let Some(doubtful) = doubtful else { return false };
        let (compared, count) = (self.store.fill(&doubtful).await, doubtful.rows.len());
        match &compared {
            Ok(Compared { missing, .. }) if !missing.is_empty() => {
                self.metrics.samples_filled_total.inc_by(missing.len() as u64);
                log::info!("filled in {} of {count} samples that a change of leader left in doubt", missing.len());
            }
            Ok(_) => log::debug!("compared {count} samples that a change of leader left in doubt"),
            Err(error) => log::warn!("{count} samples in doubt could not be compared, to be tried again: {error}"),
        }
        let mut ledger = self.ledger();
        ledger.compared(&doubtful, compared.as_ref().ok(), Instant::now());
        self.show(ledger.held());
        true
    }

    async fn apply(&self, cut: &Cut, rows: &mut Vec<Row>) -> Result<Vec<Row>, Error> {
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
        let dropped = self.apply(cut, &mut rows).await?.len();
        self.metrics.samples_duplicate_total.with_label_values(&["last_leader"]).inc_by(dropped as u64);
        let stored = rows.len();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let whole = series_end(rest, REPLAY_ROWS);
            let (now, later) = rest.split_at(whole);
            let key = Uuid::new_v4();
            match self.store.commit(key, now.to_vec(), Some(takeover.fence)).await {
                Ok(Stored::Committed | Stored::AlreadyThere) => {}
                Ok(Stored::Fenced) => return Err(Error::Unfit("another adapter has begun a newer term".into())),
                Err(error) => return Err(Error::Unfit(error.to_string())),
            }
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
        let term = Term { fence: takeover.fence, clock_offset_ms: takeover.clock_offset_ms, watermark_ms: None };
        let (cut, held) = self.ledger().take_over(term, takeover.holes.clone(), now_ms(), &takeover.behind_ms);
        self.replay(held, &cut, &takeover).await?;
        let mut ledger = self.ledger();
        ledger.replayed(cut, takeover.follows_itself, Instant::now());
        self.show(ledger.held());
        Ok(())
    }

    fn published(&self) -> Published {
        let (mut ledger, now_ms) = (self.ledger(), now_ms());
        self.passed.notify_one();
        Published { watermark_ms: ledger.watermark(now_ms), is_settled: ledger.is_settled(now_ms) }
    }

    fn observed(&self, Observation { fence, watermark_ms, holes, clock_offset_ms }: Observation) {
        let mut ledger = self.ledger();
        ledger.observed(Term { fence, clock_offset_ms, watermark_ms }, holes, Instant::now());
        self.passed.notify_one();
        self.show(ledger.held());
    }
}

/// Where to split sorted rows: after about `count` of them, at the end of a series.
fn series_end(rows: &[Row], count: usize) -> usize {
    let Some(last) = rows.get(count) else { return rows.len() };
    let first_of_series = rows.partition_point(|row| row.series_id < last.series_id);
    if first_of_series > 0 { first_of_series } else { rows.partition_point(|row| row.series_id <= last.series_id) }
}
