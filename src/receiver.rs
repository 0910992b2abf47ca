//! What becomes of a write request, by role.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::election::role::Role;
use crate::handover::Handover;
use crate::handover::held::Refusal;
use crate::postgres::error::{Class, Error};
use crate::storage::fence::Fence;
use crate::storage::ingest::Stored;
use crate::storage::{Rejected, Resolved, Store, request_key};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trouble::Trouble;
use crate::wire::write::Request;

/// Takes write requests; reads the role and never asks the database for it.
pub struct Receiver {
    /// Where a leader stores.
    pub store: Arc<Store>,
    /// Where a standby holds.
    pub handover: Arc<Handover>,
    /// Who we are at the moment.
    pub role: watch::Receiver<Role>,
    /// Told when a write finds that a newer term has begun.
    pub fenced: Arc<Notify>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What was said of a database that refuses.
    pub trouble: Mutex<Trouble>,
}

/// A request was taken: every sample stored or held, but for those that never can be.
#[derive(Debug, Default)]
pub struct Taken {
    /// What can never be stored.
    pub rejected: Rejected,
}

/// A request was not taken, through no fault of its sender: it is to send the same again.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nobody knows who leads, or a take-over is under way.
    #[error("this adapter's role is {0}: nothing can be stored or held right now")]
    Role(&'static str),
    /// A standby can hold nothing more.
    #[error(transparent)]
    Held(#[from] Refusal),
    /// The database failed.
    #[error("storing failed: {0}")]
    Database(String),
}

/// How long a request waits for a role that is being decided: longer than a take-over normally takes, shorter than a
/// sender's patience.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

impl Receiver {
    /// Stores or holds `request`, decoded from `body`, which tells it from others.
    ///
    /// # Errors
    ///
    /// [`Refused`]: nothing of it is promised, some of it may be stored; the retry is told apart by its bytes.
    pub async fn receive(&self, request: &Request<'_>, body: &[u8]) -> Result<Taken, Refused> {
        let count = request.samples.len() as u64;
        self.metrics.samples_received_total.inc_by(count);
        self.metrics.exemplars_ignored_total.inc_by(request.exemplars as u64);
        self.metrics.metadata_received_total.inc_by(request.metadata as u64);
        // Begun before the role is known: what is refused now still has to come, whoever leads then.
        let storing =
            self.handover.storing(request_key(body), request.samples.iter().map(|sample| sample.timestamp_ms));
        let taken = match self.settled_role().await {
            Role::Leader { fence, .. } => self.store(storing.key(), request, fence).await,
            Role::Standby { .. } => self.hold(request).await,
            role => Err(Refused::Role(role.word())),
        };
        if taken.is_ok() {
            storing.done();
        }
        taken
    }

    /// The role, once it is one that can answer, or what it is when patience ends.
    async fn settled_role(&self) -> Role {
        let mut roles = self.role.clone();
        let settled =
            roles.wait_for(|role| matches!(role.at(Instant::now()), Role::Leader { .. } | Role::Standby { .. }));
        match tokio::time::timeout(SETTLE_TIMEOUT, settled).await {
            Ok(Ok(role)) => role.at(Instant::now()),
            _ => self.role.borrow().at(Instant::now()),
        }
    }

    /// As a standby: series are found, or made, as a leader would, so that what is held is small and what can never be
    /// stored is refused by both alike.
    async fn hold(&self, request: &Request<'_>) -> Result<Taken, Refused> {
        let mut resolved = self.resolve(request, None).await?;
        self.handover.hold(&resolved.take_rows())?;
        Ok(Taken { rejected: resolved.rejected })
    }

    async fn store(&self, key: Uuid, request: &Request<'_>, fence: Option<Fence>) -> Result<Taken, Refused> {
        let mut resolved = self.resolve(request, fence).await?;
        let mut rows = resolved.take_rows();
        let cut = self.handover.cut(&mut rows).await.map_err(|error| self.refused(&error, fence))?;
        self.duplicates("last_leader", cut.len());
        let count = rows.len();
        if count > 0 {
            match self.store.commit(key, rows, fence).await {
                Ok(Stored::Committed) => {}
                Ok(Stored::AlreadyThere) => self.duplicates("retry", count),
                Ok(Stored::Fenced) => return Err(self.fenced(fence)),
                Err(error) => return Err(self.refused(&error, fence)),
            }
        }
        self.handover.doubt(&cut)?;
        Ok(Taken { rejected: resolved.rejected })
    }

    async fn resolve(&self, request: &Request<'_>, fence: Option<Fence>) -> Result<Resolved, Refused> {
        let mut resolved = self.store.resolve(request, fence).await.map_err(|error| self.refused(&error, fence))?;
        if request.histograms > 0 {
            let why = || format!("{} native histograms: this adapter stores float samples only", request.histograms);
            resolved.rejected.add(0, why);
            self.metrics.histograms_rejected_total.inc_by(request.histograms as u64);
        }
        self.duplicates("same_request", resolved.duplicates);
        self.duplicates("expired", resolved.expired);
        self.metrics.samples_rejected_total.with_label_values(&["invalid"]).inc_by(resolved.rejected.samples as u64);
        Ok(resolved)
    }

    fn duplicates(&self, reason: &str, count: usize) {
        self.metrics.samples_duplicate_total.with_label_values(&[reason]).inc_by(count as u64);
    }

    /// Another adapter has begun a newer term than that of `fence`.
    fn fenced(&self, fence: Option<Fence>) -> Refused {
        let in_force = matches!(&*self.role.borrow(), Role::Leader { fence: now, .. } if *now == fence);
        if in_force {
            self.fenced.notify_one();
        }
        Refused::Database("another adapter has begun a newer term".to_owned())
    }

    /// Our trouble. If it is that another adapter has begun a newer term, the election is to know: its own session may
    /// lead to another server, where everything looks well.
    fn refused(&self, error: &Error, fence: Option<Fence>) -> Refused {
        if error.class() == Class::Fenced {
            self.fenced(fence);
        }
        let why = error.to_string();
        // The election tells of a term that is over.
        let is_news = error.class() != Class::Fenced
            && self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_news(&why, Instant::now());
        if is_news {
            log::warn!("write requests are answered 503: {why}");
        }
        Refused::Database(why)
    }
}
