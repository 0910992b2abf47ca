//! The handling of a write request, by role.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::election::WritePath;
use crate::election::by_labels::clusters::{ClusterConnection, Clusters, InFlight, TooMany};
use crate::election::role::Role;
use crate::handover::Handover;
use crate::handover::buffer::NotBuffered;
use crate::handover::replicas::Owner;
use crate::handover::senders::Senders;
use crate::model::source::Source;
use crate::postgres::error::{Class, Error};
use crate::storage::fence::Fence;
use crate::storage::request_key::{part_key, request_key};
use crate::storage::row::Row;
use crate::storage::server::Epoch;
use crate::storage::sources::SourceId;
use crate::storage::{Counts, LookedUp, Rejected, Resolved, Store};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;
use crate::wire::write::Request;

/// Takes write requests. Reads the role, and never asks the database for it.
pub struct Receiver {
    /// The store, in which a leader stores.
    pub store: Arc<Store>,
    /// The senders.
    pub senders: Arc<Senders>,
    /// The source of the senders' roles.
    pub leaders: Leaders,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Limits the log lines about refused requests.
    pub trouble: Mutex<LogThrottle>,
}

/// The source of the senders' roles.
pub enum Leaders {
    /// Only the own Prometheus sends. Either this adapter leads or it does not.
    Own {
        /// This adapter's present role.
        role: watch::Receiver<Role>,
        /// Notes how writes end.
        write_path: Arc<WritePath>,
        /// Notified when a write finds that a newer term has begun.
        fenced: Arc<Notify>,
    },
    /// Labels name the sender. In each cluster one replica leads.
    ByLabels(Arc<Clusters>),
}

/// A request was accepted: every sample is stored or buffered, except those that can never be stored.
#[derive(Debug, Default)]
pub struct Accepted {
    /// Stored or buffered, including what was stored already, and exemplars older than their retention.
    pub written: Counts,
    /// Left out because it is older than the retention.
    pub expired: Counts,
    /// The samples that can never be stored.
    pub rejected: Rejected,
}

/// A request was refused through no fault of its sender. The sender must send the same request again.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The leader is unknown, or a take-over is in progress.
    #[error("this adapter's role is {0}: nothing can be stored or held right now")]
    Role(&'static str),
    /// A standby cannot buffer more.
    #[error(transparent)]
    Held(#[from] NotBuffered),
    /// More clusters send than are allowed.
    #[error(transparent)]
    Clusters(#[from] TooMany),
    /// Another replica sends the same series to this adapter.
    #[error(
        "the replicas {first:?} and {refused:?} send the same series to this adapter, and both would be stored: {refused:?} is refused \
         while {first:?} sends; give each an adapter of its own in one election, or elect by labels (-metrics-high-availability)"
    )]
    Replica {
        /// The replica whose requests are accepted.
        first: String,
        /// The replica whose requests are refused.
        refused: String,
    },
    /// A group of adapters that elect a leader stores the same series.
    #[error(
        "adapters that elect a leader ({0}) store the same series in the same tables, and this one takes part in no election, so both would \
         be stored: it stores nothing while they do; start it with their -leader-election-pg-advisory-lock-id, or give it a -pg-table of its own"
    )]
    Group(Arc<str>),
    /// The database failed.
    #[error("storing failed: {0}")]
    Database(String),
}

/// Time that a request waits for a role that is being decided. It is longer than a usual take-over and shorter than a
/// sender's timeout.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The samples of one sender in a request.
struct Part {
    sender: SourceId,
    /// The sender's labels; `None` if the request does not name the sender.
    source: Option<Arc<Source>>,
    handover: Arc<Handover>,
    /// The request key of this part: the same for a retry of the same bytes.
    key: Uuid,
}

impl Receiver {
    /// Returns a receiver that has received nothing yet.
    #[must_use]
    pub fn new(store: &Arc<Store>, senders: &Arc<Senders>, leaders: Leaders, metrics: &Arc<Metrics>) -> Self {
        let (store, senders, metrics) = (Arc::clone(store), Arc::clone(senders), Arc::clone(metrics));
        Self { store, senders, leaders, metrics, trouble: Mutex::default() }
    }

    /// Stores or buffers `request`, which was decoded from `body`. The request key is made from `body`. `line` is the
    /// connection that carried the request, if the election needs to know it.
    ///
    /// # Errors
    ///
    /// [`Refused`]: no sample of it is acknowledged, though some may be stored. A retry is recognised by its bytes.
    pub async fn receive(
        &self,
        request: &Request<'_>,
        body: &[u8],
        line: Option<&ClusterConnection>,
    ) -> Result<Accepted, Refused> {
        self.metrics.samples_received_total.inc_by(request.samples.len() as u64);
        self.metrics.histograms_received_total.inc_by(request.histograms.len() as u64);
        self.metrics.exemplars_received_total.inc_by(request.exemplars.len() as u64);
        self.metrics.metadata_received_total.inc_by(request.metadata.len() as u64);
        let looked_up = self.store.look_up(request).map_err(|error| self.refused(&error, None))?;
        let parts = self.parts(request, body, &looked_up);
        let in_flight = self.heard(&parts, line)?;
        let taken = self.take(request, looked_up, &parts).await;
        if taken.is_err() {
            in_flight.into_iter().for_each(InFlight::refused);
        }
        taken
    }

    /// Returns the part of each sender in the request.
    fn parts(&self, request: &Request<'_>, body: &[u8], looked_up: &LookedUp) -> Vec<Part> {
        let key = request_key(body);
        let part = |sender| {
            let source = self.store.sources().source(sender);
            let handover = self.senders.of(source.as_deref());
            // Parts may be stored by different attempts.
            let key = source.as_ref().map_or(key, |source| part_key(key, source));
            Part { sender, source, handover, key }
        };
        looked_up.senders(request).into_iter().map(part).collect()
    }

    /// By labels: notes that the senders of the request were heard.
    fn heard(&self, parts: &[Part], line: Option<&ClusterConnection>) -> Result<Vec<InFlight>, Refused> {
        let Leaders::ByLabels(clusters) = &self.leaders else { return Ok(Vec::new()) };
        let sources = || parts.iter().filter_map(|part| part.source.as_ref());
        let in_flight = sources().map(|source| clusters.begin(source)).collect::<Result<_, _>>()?;
        if let Some(line) = line {
            line.carried(sources());
        }
        Ok(in_flight)
    }

    async fn take(&self, request: &Request<'_>, looked_up: LookedUp, parts: &[Part]) -> Result<Accepted, Refused> {
        let roles = join_all(parts.iter().map(|part| self.settled_role(part))).await;
        let is_settled = |role: &&Role| matches!(role, Role::Leader { .. } | Role::Standby { .. });
        if let Some(role) = roles.iter().find(|role| !is_settled(role)) {
            return Err(Refused::Role(role.word()));
        }
        // A standby also looks up and creates series ids. So a buffered sample is small, and both adapters reject the
        // same samples that can never be stored.
        let fence = match (&self.leaders, roles.first()) {
            (Leaders::Own { .. }, Some(Role::Leader { fence, .. })) => *fence,
            _ => None,
        };
        self.store.keep_metadata(&request.metadata).await.map_err(|error| self.refused(&error, None))?;
        let mut resolved = self.resolve(request, looked_up, fence).await?;
        self.check_replicas(parts, &resolved.found)?;
        let epoch = resolved.epoch;
        let exemplars = std::mem::take(&mut resolved.exemplars);
        self.store.keep_exemplars(exemplars, epoch).await.map_err(|error| self.refused(&error, None))?;
        let mut take = |(part, role)| self.take_part(part, role, epoch, resolved.take_rows(part.sender));
        let taken: Vec<_> = parts.iter().zip(&roles).map(&mut take).collect();
        join_all(taken).await.into_iter().collect::<Result<(), Refused>>()?;
        let Resolved { expired, rejected, .. } = resolved;
        let Request { samples, histograms, exemplars, .. } = request;
        let received = Counts { samples: samples.len(), histograms: histograms.len(), exemplars: exemplars.len() };
        Ok(Accepted { written: received - rejected.counts - expired, expired, rejected })
    }

    /// Refuses series that another replica sends too, or that another group stores, if both would be stored.
    fn check_replicas(&self, parts: &[Part], found: &[(SourceId, i64)]) -> Result<(), Refused> {
        for part in parts {
            let series = found.iter().filter(|(sender, _)| *sender == part.sender).map(|(_, id)| *id);
            let name = |source: Option<&Source>| source.map(|source| source.replica.clone()).unwrap_or_default();
            let refused = match self.senders.on_request(part.sender, series) {
                None => continue,
                Some(Owner::Group(group)) => Refused::Group(group),
                Some(Owner::Replica(first)) => Refused::Replica {
                    first: name(self.store.sources().source(first).as_deref()),
                    refused: name(part.source.as_deref()),
                },
            };
            self.warn(&refused.to_string());
            return Err(refused);
        }
        Ok(())
    }

    /// Returns the role for `part` once it is leader or standby, or the role when `SETTLE_TIMEOUT` ends.
    async fn settled_role(&self, part: &Part) -> Role {
        match (&self.leaders, &part.source) {
            (Leaders::Own { role, .. }, _) => {
                let mut roles = role.clone();
                let is_settled =
                    |role: &Role| matches!(role.at(Instant::now()), Role::Leader { .. } | Role::Standby { .. });
                match tokio::time::timeout(SETTLE_TIMEOUT, roles.wait_for(is_settled)).await {
                    Ok(Ok(role)) => role.at(Instant::now()),
                    _ => role.borrow().at(Instant::now()),
                }
            }
            (Leaders::ByLabels(clusters), Some(source)) => clusters.settled_role(source, SETTLE_TIMEOUT).await,
            (Leaders::ByLabels(_), None) => Role::Leader { fence: None, until: None },
        }
    }

    async fn take_part(&self, part: &Part, role: &Role, epoch: Epoch, rows: Vec<Row>) -> Result<(), Refused> {
        match role {
            Role::Leader { .. } if rows.is_empty() => Ok(()),
            Role::Leader { fence, .. } => {
                let stored = part.handover.store(part.key, epoch, rows, *fence).await;
                if let Leaders::Own { write_path, .. } = &self.leaders {
                    match &stored {
                        Ok(()) => write_path.succeeded(),
                        Err(error) if matches!(error.class(), Class::Fenced | Class::Moved) => {}
                        Err(_) => write_path.failed(Instant::now()),
                    }
                }
                stored.map_err(|error| self.refused(&error, *fence))
            }
            _ => Ok(part.handover.buffer(part.key, epoch, rows)?),
        }
    }

    async fn resolve(
        &self,
        request: &Request<'_>,
        looked_up: LookedUp,
        fence: Option<Fence>,
    ) -> Result<Resolved, Refused> {
        let resolved = self.store.resolve(request, looked_up, fence).await;
        let resolved = resolved.map_err(|error| self.refused(&error, fence))?;
        self.duplicates("same_request", resolved.duplicates);
        let expired = resolved.expired.samples + resolved.expired.histograms;
        self.metrics.samples_expired_total.inc_by(expired as u64);
        let Counts { samples, histograms, exemplars } = resolved.rejected.counts;
        for (kind, count) in [("float", samples), ("histogram", histograms), ("exemplar", exemplars)] {
            self.metrics.samples_rejected_total.with_label_values(&[kind]).inc_by(count as u64);
        }
        Ok(resolved)
    }

    fn duplicates(&self, reason: &str, count: usize) {
        self.metrics.samples_duplicate_total.with_label_values(&[reason]).inc_by(count as u64);
    }

    /// Notifies the election that a newer term than that of `fence` has begun.
    fn fenced(&self, fence: Option<Fence>) -> Refused {
        match &self.leaders {
            Leaders::Own { role, fenced, .. } => {
                if matches!(&*role.borrow(), Role::Leader { fence: now, .. } if *now == fence) {
                    fenced.notify_one();
                }
            }
            Leaders::ByLabels(clusters) => clusters.on_fenced(),
        }
        Refused::Database("a newer term has begun".to_owned())
    }

    /// Returns the refusal for `error`, which is not the sender's fault. If another adapter has begun a newer term, the
    /// election is notified: its own session may be connected to another server, where its term looks valid.
    fn refused(&self, error: &Error, fence: Option<Fence>) -> Refused {
        if error.class() == Class::Fenced {
            self.fenced(fence);
        }
        let why = error.to_string();
        // The election logs that a term is over.
        if error.class() != Class::Fenced {
            self.warn(&why);
        }
        Refused::Database(why)
    }

    /// Logs why requests are refused, unless the same was logged recently.
    fn warn(&self, why: &str) {
        if self.trouble.lock().should_log(why, Instant::now()) {
            log::warn!(err = why; "write requests are answered 503");
        }
    }
}
