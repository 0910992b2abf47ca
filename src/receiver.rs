//! What becomes of a write request, by role.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::election::WritePath;
use crate::election::by_labels::clusters::{Clusters, InFlight, Line, TooMany};
use crate::election::by_labels::group_name;
use crate::election::role::Role;
use crate::handover::{Full, Handover};
use crate::model::source::Source;
use crate::postgres::error::{Class, Error};
use crate::storage::fence::Fence;
use crate::storage::ingest::Stored;
use crate::storage::row::Row;
use crate::storage::sources::SourceId;
use crate::storage::{LookedUp, Rejected, Resolved, Store, part_key, request_key};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trouble::Trouble;
use crate::wire::write::Request;

/// Takes write requests; reads the role and never asks the database for it.
pub struct Receiver {
    /// Where a leader stores.
    pub store: Arc<Store>,
    /// Who sends, and who of them leads.
    pub senders: Senders,
    /// What passes between leaders.
    pub handover: Arc<Handover>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What was said of a database that refuses.
    pub trouble: Mutex<Trouble>,
}

/// Who sends, and where it is known who of them leads.
pub enum Senders {
    /// The own Prometheus alone: this adapter leads, or it does not.
    Own {
        /// What the group is called.
        group: String,
        /// Told how writes end.
        write_path: Arc<WritePath>,
        /// Who we are at the moment.
        role: watch::Receiver<Role>,
        /// Told when a write finds that a newer term has begun.
        fenced: Arc<Notify>,
    },
    /// Whoever their labels say: in each cluster one replica leads.
    ByLabels {
        /// Who leads.
        clusters: Arc<Clusters>,
    },
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
    Held(#[from] Full),
    /// There are more clusters than there may be.
    #[error(transparent)]
    Clusters(#[from] TooMany),
    /// The database failed.
    #[error("storing failed: {0}")]
    Database(String),
}

/// How long a request waits for a role that is being decided: longer than a take-over normally takes, shorter than a
/// sender's patience.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// What one sender has in a request.
struct Part {
    sender: SourceId,
    /// Who that is; `None` for the own Prometheus, and for one that does not say.
    source: Option<Arc<Source>>,
    /// The same for a retry of the same bytes.
    key: Uuid,
}

impl Receiver {
    /// Stores or holds `request`, decoded from `body`, which tells it from others. `line` is the connection it came by, if
    /// it matters who sends over which.
    ///
    /// # Errors
    ///
    /// [`Refused`]: nothing of it is promised, some of it may be stored; the retry is told apart by its bytes.
    pub async fn receive(&self, request: &Request<'_>, body: &[u8], line: Option<&Line>) -> Result<Taken, Refused> {
        let count = request.samples.len() as u64;
        self.metrics.samples_received_total.inc_by(count);
        self.metrics.exemplars_ignored_total.inc_by(request.exemplars as u64);
        self.metrics.metadata_received_total.inc_by(request.metadata as u64);
        let looked_up = self.store.look_up(request).map_err(|error| self.refused(&error, None))?;
        let parts = self.parts(request, body, &looked_up);
        let in_flight = self.heard(&parts, line)?;
        let taken = self.take(request, looked_up, &parts).await;
        if taken.is_err() {
            in_flight.into_iter().for_each(InFlight::refused);
        }
        taken
    }

    /// Tells the senders apart.
    fn parts(&self, request: &Request<'_>, body: &[u8], looked_up: &LookedUp) -> Vec<Part> {
        let key = request_key(body);
        let part = |(sender, _)| match &self.senders {
            Senders::Own { .. } => Part { sender, source: None, key },
            Senders::ByLabels { .. } => {
                let source = self.store.sources().source(sender);
                // Parts may be stored at different attempts.
                let key = source.as_ref().map_or(key, |source| part_key(key, source));
                Part { sender, source, key }
            }
        };
        looked_up.senders(request).into_iter().map(part).collect()
    }

    /// Where labels say who sends: it is heard.
    fn heard(&self, parts: &[Part], line: Option<&Line>) -> Result<Vec<InFlight>, Refused> {
        let Senders::ByLabels { clusters, .. } = &self.senders else { return Ok(Vec::new()) };
        let sources = || parts.iter().filter_map(|part| part.source.as_ref());
        let in_flight = sources().map(|source| clusters.begin(source)).collect::<Result<_, _>>()?;
        if let Some(line) = line {
            line.carried(sources());
        }
        Ok(in_flight)
    }

    async fn take(&self, request: &Request<'_>, looked_up: LookedUp, parts: &[Part]) -> Result<Taken, Refused> {
        let roles = join_all(parts.iter().map(|part| self.settled_role(part))).await;
        let is_settled = |role: &&Role| matches!(role, Role::Leader { .. } | Role::Standby { .. });
        if let Some(role) = roles.iter().find(|role| !is_settled(role)) {
            return Err(Refused::Role(role.word()));
        }
        // Series are found, or made, by a standby too, so that what is held is small and what can never be stored is refused
        // by both alike.
        let fence = match (&self.senders, roles.first()) {
            (Senders::Own { .. }, Some(Role::Leader { fence, .. })) => *fence,
            _ => None,
        };
        let mut resolved = self.resolve(request, looked_up, fence).await?;
        let mut take = |(part, role)| self.take_part(part, role, resolved.take_rows(part.sender));
        let taken: Vec<_> = parts.iter().zip(&roles).map(&mut take).collect();
        join_all(taken).await.into_iter().collect::<Result<(), Refused>>()?;
        Ok(Taken { rejected: resolved.rejected })
    }

    /// The role for what `part` has, once it is one that can answer, or what it is when patience ends.
    async fn settled_role(&self, part: &Part) -> Role {
        match (&self.senders, &part.source) {
            (Senders::Own { role, .. }, _) => {
                let mut roles = role.clone();
                let is_settled =
                    |role: &Role| matches!(role.at(Instant::now()), Role::Leader { .. } | Role::Standby { .. });
                match tokio::time::timeout(SETTLE_TIMEOUT, roles.wait_for(is_settled)).await {
                    Ok(Ok(role)) => role.at(Instant::now()),
                    _ => role.borrow().at(Instant::now()),
                }
            }
            (Senders::ByLabels { clusters, .. }, Some(source)) => clusters.settled_role(source, SETTLE_TIMEOUT).await,
            (Senders::ByLabels { .. }, None) => Role::Leader { fence: None, until: None },
        }
    }

    async fn take_part(&self, part: &Part, role: &Role, rows: Vec<Row>) -> Result<(), Refused> {
        match (role, &self.senders, &part.source) {
            (Role::Leader { fence, .. }, ..) => self.store(part, rows, *fence).await,
            (_, Senders::Own { group, .. }, _) => Ok(self.handover.hold(group, None, &rows)?),
            (_, _, Some(source)) => {
                Ok(self.handover.hold(&group_name(&source.cluster), Some(&source.replica), &rows)?)
            }
            (role, ..) => Err(Refused::Role(role.word())),
        }
    }

    async fn store(&self, part: &Part, rows: Vec<Row>, fence: Option<Fence>) -> Result<(), Refused> {
        let count = rows.len();
        if count == 0 {
            return Ok(());
        }
        let stored = self.store.commit(part.key, rows, fence).await;
        if let Senders::Own { write_path, .. } = &self.senders {
            match &stored {
                Ok(Stored::Committed | Stored::AlreadyThere) => write_path.succeeded(),
                Ok(Stored::Fenced) => {}
                Err(error) if error.class() == Class::Fenced => {}
                Err(_) => write_path.failed(Instant::now()),
            }
        }
        match stored {
            Ok(Stored::Committed) => {}
            Ok(Stored::AlreadyThere) => self.duplicates("retry", count),
            Ok(Stored::Fenced) => return Err(self.fenced(fence)),
            Err(error) => return Err(self.refused(&error, fence)),
        }
        Ok(())
    }

    async fn resolve(
        &self,
        request: &Request<'_>,
        looked_up: LookedUp,
        fence: Option<Fence>,
    ) -> Result<Resolved, Refused> {
        let resolved = self.store.resolve(request, looked_up, fence).await;
        let mut resolved = resolved.map_err(|error| self.refused(&error, fence))?;
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

    /// A newer term has begun than that of `fence`.
    fn fenced(&self, fence: Option<Fence>) -> Refused {
        match &self.senders {
            Senders::Own { role, fenced, .. } => {
                if matches!(&*role.borrow(), Role::Leader { fence: now, .. } if *now == fence) {
                    fenced.notify_one();
                }
            }
            Senders::ByLabels { clusters, .. } => clusters.on_fenced(),
        }
        Refused::Database("a newer term has begun".to_owned())
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
