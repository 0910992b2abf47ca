//! What passes from one leader to the next: what a standby holds, and where a new leader begins.
//!
//! [`held`] is a standby's memory, [`watermark`] what a leader lets it forget, [`cut`] where a term begins in each
//! series: three pure parts, and here what ties them to the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use uuid::Uuid;

use crate::clock::now_ms;
use crate::election::advisory_lock::{Succession, Takeover};
use crate::handover::cut::Cut;
use crate::handover::held::{Full, Held};
use crate::handover::watermark::Watermark;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::row::Row;
use crate::telemetry::metrics::Metrics;

pub mod cut;
pub mod held;
pub mod watermark;

/// What a standby may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-standby-memory-mib`, in bytes.
    pub memory_bytes_max: usize,
}

/// Clocks of the two hosts may differ by so much: the last leader's samples may lie that far ahead.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Rows of one transaction of a replay.
const REPLAY_ROWS: usize = 50_000;

/// Why a standby does not hold what it was sent: the sender is to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheld {
    /// It can hold no more.
    Full,
    /// It is taking over, or leads already: what came now would not be replayed.
    Closed,
}

/// One adapter's side of the hand-over.
pub struct Handover {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// What this adapter has acknowledged as a standby.
    held: Mutex<Hold>,
    /// The last watermark seen in the group's row.
    seen: Mutex<Option<i64>>,
    /// What this adapter has committed as a leader.
    watermark: Mutex<Watermark>,
    /// Where the present term began; none before the first.
    cut: RwLock<Option<Arc<Cut>>>,
}

/// What is held, and whether more may come: under one lock, so that a request which began while this adapter stood by
/// and is resolved only after the replay has looked is not acknowledged and forgotten.
struct Hold {
    held: Held,
    is_open: bool,
}

impl Handover {
    /// Before the first term.
    #[must_use]
    pub fn new(config: Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            held: Mutex::new(Hold { held: Held::new(config.memory_bytes_max), is_open: true }),
            seen: Mutex::default(),
            watermark: Mutex::default(),
            cut: RwLock::new(None),
        }
    }

    /// Takes what a standby is sent: holds what the leader may not have committed yet.
    ///
    /// # Errors
    ///
    /// When it can hold no more, or is no standby any longer.
    pub fn hold(&self, rows: &[Row]) -> Result<(), Unheld> {
        let seen = *lock(&self.seen);
        let mut hold = lock(&self.held);
        if !hold.is_open {
            return Err(Unheld::Closed);
        }
        hold.held.hold(rows, seen).map_err(|Full| Unheld::Full)?;
        self.metrics.samples_standby_total.inc_by(rows.len() as u64);
        self.show(&hold.held);
        Ok(())
    }

    /// Takes out of `rows` what the last leader stored: for each series, everything up to its last stored time. What is
    /// newer is from this adapter's own Prometheus alone, so the two never interleave. Returns how many went.
    ///
    /// # Errors
    ///
    /// What the server said; `rows` is as it was.
    pub async fn cut(&self, rows: &mut Vec<Row>) -> Result<usize, Error> {
        let cut = self.cut.read().unwrap_or_else(PoisonError::into_inner).clone();
        match cut {
            Some(cut) => self.apply(&cut, rows).await,
            None => Ok(0),
        }
    }

    async fn apply(&self, cut: &Cut, rows: &mut Vec<Row>) -> Result<usize, Error> {
        if let Some(unknown) = cut.unknown(rows) {
            let found = self.store.last_times(&unknown.series, unknown.from_ms, cut.until_ms()).await?;
            cut.learn(&unknown.series, &found);
        }
        Ok(cut.apply(rows))
    }

    /// A request begins to be stored by this leader; to be followed by [`Handover::stored`].
    pub fn storing(&self, key: Uuid, earliest_ms: i64) {
        lock(&self.watermark).begin(key, earliest_ms, now_ms());
    }

    /// How storing it ended: with the latest of its times once it is committed, `None` if it must come again.
    pub fn stored(&self, key: Uuid, committed_up_to_ms: Option<i64>) {
        let mut watermark = lock(&self.watermark);
        match committed_up_to_ms {
            Some(latest_ms) => watermark.committed(key, latest_ms, now_ms()),
            None => watermark.failed(key, now_ms()),
        }
    }

    /// Stores what was held and is newer than what the last leader stored, whole series at a time, so that whatever
    /// of it fails is found missing by the next attempt.
    async fn replay(&self, cut: &Cut, takeover: &Takeover) -> Result<(), Error> {
        let mut rows = {
            let mut hold = lock(&self.held);
            hold.is_open = false;
            hold.held.rows()
        };
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
        let held = &mut lock(&self.held).held;
        held.clear();
        self.show(held);
        Ok(())
    }

    fn show(&self, held: &Held) {
        self.metrics.standby_held_samples.set(i64::try_from(held.samples()).unwrap_or(i64::MAX));
        self.metrics.standby_held_bytes.set(i64::try_from(held.bytes()).unwrap_or(i64::MAX));
    }
}

impl Succession for Handover {
    async fn prepare(&self, takeover: Takeover) -> Result<(), Error> {
        let skew_ms = i64::try_from(CLOCK_SKEW_MAX.as_millis()).unwrap_or(i64::MAX);
        let now_ms = now_ms();
        let cut = Arc::new(Cut::new(now_ms, now_ms.saturating_add(skew_ms), takeover.last_leader_behind_ms));
        *lock(&self.watermark) = Watermark::default();
        self.replay(&cut, &takeover).await?;
        *self.cut.write().unwrap_or_else(PoisonError::into_inner) = Some(cut);
        Ok(())
    }

    fn watermark(&self) -> Option<i64> {
        lock(&self.watermark).at(now_ms())
    }

    fn observed(&self, watermark_ms: Option<i64>) {
        let mut hold = lock(&self.held);
        hold.is_open = true;
        let Some(watermark_ms) = watermark_ms else { return };
        *lock(&self.seen) = Some(watermark_ms);
        hold.held.forget(watermark_ms);
        self.show(&hold.held);
    }
}

/// Where to split sorted rows: after about `count` of them, at the end of a series.
fn series_end(rows: &[Row], count: usize) -> usize {
    let Some(last) = rows.get(count) else { return rows.len() };
    let first_of_series = rows.partition_point(|row| row.series_id < last.series_id);
    if first_of_series > 0 { first_of_series } else { rows.partition_point(|row| row.series_id <= last.series_id) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
