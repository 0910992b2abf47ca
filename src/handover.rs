//! What passes from one leader to the next: what a standby holds, and where a new leader begins.
//!
//! A standby counts what it is sent and lets go of it; holding it until the leader has committed past it is this
//! room's next task, behind the same two calls.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::election::advisory_lock::Succession;
use crate::election::role::Fence;
use crate::handover::cut::Cut;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::row::Row;
use crate::telemetry::metrics::Metrics;
use crate::wire::write::Request;

pub mod cut;

/// Clocks of the two hosts may differ by so much: the last leader's samples may lie that far ahead.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// One adapter's side of the hand-over.
pub struct Handover {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// Where the present term began; none before the first.
    cut: RwLock<Option<Arc<Cut>>>,
}

impl Handover {
    /// Before the first term.
    #[must_use]
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, cut: RwLock::new(None) }
    }

    /// Takes what a standby is sent.
    pub fn hold(&self, request: &Request<'_>) {
        self.metrics.samples_standby_total.inc_by(request.samples.len() as u64);
    }

    /// Takes out of `rows` what the last leader stored: for each series, everything up to its last stored time. What is
    /// newer is from this adapter's own Prometheus alone, so the two never interleave. Returns how many went.
    ///
    /// # Errors
    ///
    /// What the server said; `rows` is as it was.
    pub async fn cut(&self, rows: &mut Vec<Row>) -> Result<usize, Error> {
        let cut = self.cut.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let Some(cut) = cut else { return Ok(0) };
        if let Some(unknown) = cut.unknown(rows) {
            let found = self.store.last_times(&unknown.series, unknown.from_ms, cut.until_ms()).await?;
            cut.learn(&unknown.series, &found);
        }
        Ok(cut.apply(rows))
    }
}

impl Succession for Handover {
    async fn prepare(&self, _: Fence) -> Result<(), Error> {
        let skew_ms = i64::try_from(CLOCK_SKEW_MAX.as_millis()).unwrap_or(i64::MAX);
        let until_ms = self.store.server_time_ms().await?.saturating_add(skew_ms);
        *self.cut.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(Cut::new(until_ms)));
        Ok(())
    }

    fn watermark(&self) -> Option<i64> {
        None
    }
}
