//! What a standby holds until its sender leads: a stand-in, on this branch, for the hand-over that is being written.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::election::by_labels::group_name;
use crate::election::{Succession, Term};
use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::ingest::Stored;
use crate::storage::row::{Row, sort_and_dedup};
use crate::telemetry::metrics::Metrics;

/// What a standby may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-standby-memory-mib`, in bytes.
    pub memory_bytes_max: usize,
}

/// Nothing more can be held: the sender is to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this standby can hold no more: the leader is far behind, or -standby-memory-mib is small")]
pub struct Full;

/// A group, and by labels one of its replicas.
type Sender = (String, Option<String>);

/// One adapter's side of the hand-over.
pub struct Handover {
    rows_max: usize,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    held: Arc<Mutex<HashMap<Sender, Vec<Row>>>>,
}

impl Handover {
    /// Nothing is held.
    #[must_use]
    pub fn new(config: Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self { rows_max: config.memory_bytes_max / size_of::<Row>(), store, metrics, held: Arc::default() }
    }

    /// Takes what a standby is sent.
    ///
    /// # Errors
    ///
    /// When it can hold no more.
    pub fn hold(&self, group: &str, replica: Option<&str>, rows: &[Row]) -> Result<(), Full> {
        let mut held = self.held();
        if held.values().map(Vec::len).sum::<usize>() >= self.rows_max {
            return Err(Full);
        }
        held.entry((group.to_owned(), replica.map(str::to_owned))).or_default().extend_from_slice(rows);
        self.metrics.samples_standby_total.inc_by(rows.len() as u64);
        self.metrics.standby_held_samples.set(held.values().map(Vec::len).sum::<usize>() as i64);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Sender, Vec<Row>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Succession for Handover {
    fn prepare(&self, term: Term) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let (store, held) = (Arc::clone(&self.store), Arc::clone(&self.held));
        async move {
            let sender = (term.group, term.replica);
            let of_sender = |held: &Mutex<HashMap<Sender, Vec<Row>>>| {
                held.lock().unwrap_or_else(PoisonError::into_inner).get(&sender).cloned().unwrap_or_default()
            };
            let mut rows = of_sender(&held);
            sort_and_dedup(&mut rows);
            let ids: Vec<i64> = rows.iter().map(|row| row.series_id).collect();
            if let Some(from_ms) = rows.iter().map(|row| row.time_ms).min() {
                let last = store.last_times(&ids, from_ms, i64::MAX / 2_000).await?;
                rows.retain(|row| last.get(&row.series_id).is_none_or(|last_ms| row.time_ms > *last_ms));
                let stored = match rows.is_empty() {
                    true => Ok(Stored::AlreadyThere),
                    false => store.commit(Uuid::new_v4(), rows, Some(term.fence)).await,
                };
                match stored {
                    Ok(Stored::Committed | Stored::AlreadyThere) => {}
                    Ok(Stored::Fenced) => return Err(Error::Unfit("a newer term has begun".into())),
                    Err(error) => return Err(Error::Unfit(error.to_string())),
                }
            }
            held.lock().unwrap_or_else(PoisonError::into_inner).remove(&sender);
            Ok(())
        }
    }

    fn observed(&self, _: &Term) {}

    fn forget(&self, cluster: &str, replica: &str) {
        self.held().remove(&(group_name(cluster), Some(replica.to_owned())));
    }

    fn is_drained(&self) -> bool {
        self.held().is_empty()
    }

    fn forget_series(&self) {
        self.store.forget();
    }

    async fn sender_no(&self, _: &str, _: Option<&str>) -> Result<SenderNo, Error> {
        Ok(SenderNo(0))
    }
}
