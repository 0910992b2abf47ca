//! All clusters as this adapter knows them. The write path reports to them and reads roles; the coordinator's rounds
//! read rows and decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::election::Term;
use crate::election::by_labels::cluster::{Cluster, ClusterRow, Succession};
use crate::election::by_labels::orders::UnwrittenOrders;
use crate::election::by_labels::{Config, cluster_table};
use crate::election::liveness::Liveness;
use crate::election::role::Role;
use crate::model::source::Source;

/// The clusters that this adapter knows. See the module.
pub struct Clusters {
    config: Config,
    known: Mutex<HashMap<String, ClusterEntry>>,
    /// Incremented when a role may have changed.
    changes: watch::Sender<u64>,
    /// Starts the next round before its time.
    pub(super) wake: Notify,
    pub(super) orders: Mutex<UnwrittenOrders>,
}

struct ClusterEntry {
    cluster: Cluster,
    /// The group's number in the leader table, once the cluster has a row.
    group_no: Option<i32>,
    /// The token of the term that this adapter is just beginning.
    beginning: Option<Uuid>,
}

/// A cluster as shown in the status.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its name.
    pub cluster: String,
    /// The leading replica; `None` before any has led.
    pub leader: Option<Leading>,
    /// Replicas that send to this adapter, with the time since they last did.
    pub replicas: Vec<(String, Option<Duration>)>,
    /// Replicas excluded from elections.
    pub held_out: Vec<String>,
    /// `true` if nobody leads, or if the leading replica has been silent for its timeout.
    pub is_silent: bool,
}

/// A leading replica.
#[derive(Clone, Debug)]
pub struct Leading {
    /// Its name.
    pub replica: String,
    /// Its term.
    pub term: i64,
    /// Time since any adapter heard it.
    pub heard_ago: Option<Duration>,
}

/// A request in flight, as far as the samples of one source go.
pub struct InFlight {
    clusters: Arc<Clusters>,
    source: Arc<Source>,
    refused: bool,
}

/// A connection that may carry requests of replicas.
pub struct ClusterConnection {
    clusters: Arc<Clusters>,
    carried: Mutex<Carried>,
}

/// The senders of the requests that came over a connection.
enum Carried {
    Nothing,
    /// Requests of one sender; at least two if `kept`.
    One {
        source: Arc<Source>,
        kept: bool,
    },
    /// Requests of several senders. The connection belongs to a proxy, so its close tells nothing about the senders.
    Several,
}

/// More clusters send than are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} clusters already, as many as -metrics-high-availability-clusters allows")]
pub struct TooMany(pub usize);

impl Clusters {
    /// Returns an empty set.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (known, changes, wake) = (Mutex::default(), watch::Sender::new(0), Notify::new());
        Self { config, known, changes, wake, orders: Mutex::default() }
    }

    /// Returns the settings of the election by labels.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Notes that a request with samples of `source` has arrived.
    ///
    /// # Errors
    ///
    /// `TooMany` if `source` is of a new cluster and the largest number of clusters is reached.
    pub fn begin(self: &Arc<Self>, source: &Arc<Source>) -> Result<InFlight, TooMany> {
        let now = Instant::now();
        let mut known = self.known.lock();
        if !known.contains_key(&source.cluster) {
            if known.len() >= self.config.clusters_max {
                return Err(TooMany(known.len()));
            }
            let cluster = Cluster::new(self.config.timeout);
            known.insert(source.cluster.clone(), ClusterEntry { cluster, group_no: None, beginning: None });
        }
        if let Some(ClusterEntry { cluster, .. }) = known.get_mut(&source.cluster) {
            cluster.on_request(&source.replica, now);
            if matches!(cluster.role(&source.replica, now), Role::Unknown | Role::TakingOver) {
                self.wake.notify_one();
            }
        }
        Ok(InFlight { clusters: Arc::clone(self), source: Arc::clone(source), refused: false })
    }

    /// Notes a new connection. The returned value is dropped when the connection is closed.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> ClusterConnection {
        ClusterConnection { clusters: Arc::clone(self), carried: Mutex::new(Carried::Nothing) }
    }

    /// Notes that a write found its term over, or another term being begun.
    pub fn on_fenced(&self) {
        self.wake.notify_one();
    }

    /// Returns the role for samples of `source` once it is leader or standby, or the role when `patience` ends.
    pub async fn settled_role(&self, source: &Source, patience: Duration) -> Role {
        let mut changes = self.changes.subscribe();
        let settled = async {
            loop {
                changes.mark_unchanged();
                let role = self.role(source);
                if matches!(role, Role::Leader { .. } | Role::Standby { .. }) {
                    return role;
                }
                if changes.changed().await.is_err() {
                    return role;
                }
            }
        };
        tokio::time::timeout(patience, settled).await.unwrap_or_else(|_| self.role(source))
    }

    /// Returns the role for samples of `source` now.
    #[must_use]
    pub fn role(&self, source: &Source) -> Role {
        let known = self.known.lock();
        known.get(&source.cluster).map_or(Role::Unknown, |known| known.cluster.role(&source.replica, Instant::now()))
    }

    /// Returns `true` if `source` leads, as far as this adapter knows.
    #[must_use]
    pub fn leads(&self, source: &Source) -> bool {
        let known = self.known.lock();
        known.get(&source.cluster).is_some_and(|known| known.cluster.leads(&source.replica, Instant::now()))
    }

    /// Returns the clusters as shown in the status.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let now = Instant::now();
        let show = |(name, known): (&String, &ClusterEntry)| Shown {
            cluster: name.clone(),
            leader: known.cluster.seen().map(|seen| Leading {
                replica: seen.replica.clone(),
                term: seen.fence.term,
                heard_ago: known.cluster.silent_for(now),
            }),
            is_silent: known.cluster.is_silent(now),
            held_out: known.cluster.seen().map(|seen| seen.held_out.clone()).unwrap_or_default(),
            replicas: known.cluster.replicas(now).map(|(name, ago)| (name.to_owned(), ago)).collect(),
        };
        let mut shown: Vec<Shown> = self.known.lock().iter().map(show).collect();
        shown.sort_by(|one, other| one.cluster.cmp(&other.cluster));
        shown
    }

    /// Returns a cluster's row as last read, and the replicas heard here; `None` if this adapter receives no samples of
    /// it.
    pub(super) fn replicas_of(&self, cluster: &str) -> Option<(Option<ClusterRow>, Vec<String>)> {
        let known = self.known.lock();
        let cluster = &known.get(cluster)?.cluster;
        let replicas = cluster.replicas(Instant::now()).map(|(name, _)| name.to_owned()).collect();
        Some((cluster.seen().cloned(), replicas))
    }

    /// Returns a receiver that is notified when a role or a leading replica may have changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    // ---- for the rounds

    /// Waits for an event that cannot wait for the next round. An event since the last wait counts too.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the names of all clusters.
    pub(super) fn names(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    /// Returns the names of the clusters whose row is not known.
    pub(super) fn rowless(&self) -> Vec<String> {
        self.known.lock().iter().filter(|(_, known)| known.group_no.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Returns this adapter's reports on all leading replicas.
    pub(super) fn reports(&self, now: Instant) -> Vec<cluster_table::Report> {
        let report = |ClusterEntry { cluster, .. }: &ClusterEntry| {
            let token = cluster.seen()?.fence.token;
            Some(cluster_table::Report {
                token,
                has_begun: cluster.is_ready(token),
                heard_ago: cluster.heard_ago(now),
                patience: cluster.patience(),
            })
        };
        self.known.lock().values().filter_map(report).collect()
    }

    /// Notes the rows of these clusters, read by a statement sent at `asked`. Clusters may have no row.
    pub(super) fn on_read(&self, names: &[String], rows: Vec<cluster_table::Read>, asked: Instant, now: Instant) {
        let mut rows: HashMap<String, cluster_table::Read> =
            rows.into_iter().map(|row| (row.cluster.clone(), row)).collect();
        let mut known = self.known.lock();
        for name in names {
            let Some(known) = known.get_mut(name) else { continue };
            let row = rows.remove(name);
            known.group_no = row.as_ref().map(|row| row.group_no);
            known.cluster.on_read(row.and_then(|row| row.seen), asked, now);
        }
    }

    /// Forgets replicas that have not been heard here for a long time, and clusters without any replica. Returns the
    /// replicas.
    pub(super) fn forget(&self, now: Instant) -> Vec<Source> {
        let mut known = self.known.lock();
        let mut forgotten = Vec::new();
        known.retain(|name, known| {
            let source = |replica| Source { cluster: name.clone(), replica };
            forgotten.extend(known.cluster.forget(now).into_iter().map(source));
            known.cluster.replicas(now).next().is_some()
        });
        forgotten
    }

    /// Returns the take-overs to be done now, with the name of each cluster. Clusters in which no replica has led yet
    /// are included.
    pub(super) fn successions(&self, now: Instant) -> Vec<(String, Succession)> {
        let succession = |(name, known): (&String, &ClusterEntry)| {
            let group_no = known.group_no?;
            let succession = match known.cluster.seen() {
                Some(_) => known.cluster.succession(now)?,
                None => Succession::first(group_no, known.cluster.candidate(None, now)?),
            };
            Some((name.clone(), succession))
        };
        self.known.lock().iter().filter_map(succession).collect()
    }

    /// Returns the terms that this adapter has to begin, with the name of each cluster. Each term is returned once
    /// until [`Clusters::on_begun`].
    pub(super) fn to_begin(&self) -> Vec<(String, Term)> {
        let mut known = self.known.lock();
        let begin = |(name, known): (&String, &mut ClusterEntry)| {
            let seen = known.cluster.seen()?;
            let token = seen.fence.token;
            if known.cluster.is_ready(token) || known.beginning == Some(token) {
                return None;
            }
            let term = seen.term(name);
            known.beginning = Some(token);
            Some((name.clone(), term))
        };
        known.iter_mut().filter_map(begin).collect()
    }

    /// Notes that a term has begun here, or that it could not be begun.
    pub(super) fn on_begun(&self, cluster: &str, token: Uuid, has_begun: bool) {
        if let Some(known) = self.known.lock().get_mut(cluster) {
            known.beginning = known.beginning.filter(|beginning| *beginning != token);
            if has_begun {
                known.cluster.on_ready(token);
                // The next round reports it.
                self.wake.notify_one();
            }
        }
        self.changed();
    }

    /// Returns the earliest time at which a leading replica may count as silent.
    pub(super) fn next_check_at(&self, now: Instant) -> Option<Instant> {
        self.known.lock().values().filter_map(|known| known.cluster.next_check_at(now)).min()
    }

    /// Notifies that roles may have changed.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Calls `work` on the liveness of `source`, if this adapter has heard it, and returns its result.
    fn with<T>(&self, source: &Source, work: impl FnOnce(&mut Liveness) -> T) -> Option<T> {
        self.known.lock().get_mut(&source.cluster)?.cluster.heard(&source.replica).map(work)
    }
}

impl InFlight {
    /// Notes that the request was answered by a 5xx.
    pub fn refused(mut self) {
        self.refused = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(known) = self.clusters.known.lock().get_mut(&self.source.cluster) {
            known.cluster.on_answer(&self.source.replica, self.refused, Instant::now());
        }
    }
}

impl ClusterConnection {
    /// Notes that the connection has carried a request with samples of these sources.
    pub fn carried<'a>(&self, mut sources: impl Iterator<Item = &'a Arc<Source>>) {
        let Some(first) = sources.next() else { return };
        let mut carried = self.carried.lock();
        let is_one = sources.next().is_none();
        match &mut *carried {
            Carried::Nothing if is_one => {
                self.clusters.with(first, Liveness::connected);
                *carried = Carried::One { source: Arc::clone(first), kept: false };
            }
            Carried::One { source, kept } if is_one && source == first => *kept = true,
            Carried::Several => {}
            other => {
                if let Carried::One { source, .. } = std::mem::replace(other, Carried::Several) {
                    self.clusters.with(&source, Liveness::shared);
                }
            }
        }
    }
}

impl Drop for ClusterConnection {
    fn drop(&mut self) {
        let carried = self.carried.get_mut();
        if let Carried::One { source, kept } = carried {
            let kept = *kept;
            if self.clusters.with(source, |heard| heard.closed(kept, Instant::now())) == Some(true) {
                // The other adapters need the report soon.
                self.clusters.wake.notify_one();
            }
        }
    }
}
