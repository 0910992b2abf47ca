//! All clusters as this adapter knows them: the write path tells and asks, the rounds read and decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::election::Term;
use crate::election::by_labels::cluster::{Cluster, ClusterRow, Succession};
use crate::election::by_labels::orders::UnwrittenOrders;
use crate::election::by_labels::{Config, cluster_table};
use crate::election::liveness::Liveness;
use crate::election::role::Role;
use crate::model::source::Source;

/// See the module.
pub struct Clusters {
    config: Config,
    known: Mutex<HashMap<String, ClusterEntry>>,
    /// Counts what may have changed a role.
    changes: watch::Sender<u64>,
    /// Wakes the rounds before their time.
    pub(super) wake: Notify,
    pub(super) orders: Mutex<UnwrittenOrders>,
}

struct ClusterEntry {
    cluster: Cluster,
    /// Its number in the leader table, once it has a row.
    group_no: Option<i32>,
    /// The term that is just beginning here.
    beginning: Option<Uuid>,
}

/// What is shown of a cluster.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its name.
    pub cluster: String,
    /// Who leads; `None` before anybody has.
    pub leader: Option<Leading>,
    /// Replicas that send to this adapter, and how long ago they last did.
    pub replicas: Vec<(String, Option<Duration>)>,
    /// Replicas that are held out of elections.
    pub held_out: Vec<String>,
    /// Nobody leads, or the leading replica has been silent for its timeout.
    pub is_silent: bool,
}

/// A leading replica.
#[derive(Clone, Debug)]
pub struct Leading {
    /// Its name.
    pub replica: String,
    /// Its term.
    pub term: i64,
    /// How long ago any adapter heard it.
    pub heard_ago: Option<Duration>,
}

/// A request that is not answered yet, as far as one source's samples in it go.
pub struct InFlight {
    clusters: Arc<Clusters>,
    source: Arc<Source>,
    refused: bool,
}

/// A connection.
pub struct ClusterConnection {
    clusters: Arc<Clusters>,
    carried: Mutex<Carried>,
}

/// Whose requests came over a connection.
enum Carried {
    Nothing,
    /// One's, at least twice if it was kept.
    One {
        source: Arc<Source>,
        kept: bool,
    },
    /// It belongs to a proxy: that it is closed says nothing of those who send.
    Several,
}

/// More clusters send than there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} clusters already, as many as -metrics-high-availability-clusters allows")]
pub struct TooMany(pub usize);

impl Clusters {
    /// None yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (known, changes, wake) = (Mutex::default(), watch::Sender::new(0), Notify::new());
        Self { config, known, changes, wake, orders: Mutex::default() }
    }

    /// How leaders are found.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A request with samples of `source` has come.
    ///
    /// # Errors
    ///
    /// When there are too many clusters.
    pub fn begin(self: &Arc<Self>, source: &Arc<Source>) -> Result<InFlight, TooMany> {
        let now = Instant::now();
        let mut known = self.known();
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

    /// A connection is open; dropped when it is closed.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> ClusterConnection {
        ClusterConnection { clusters: Arc::clone(self), carried: Mutex::new(Carried::Nothing) }
    }

    /// A write found that the term of `fence` is over, or that another is being begun.
    pub fn on_fenced(&self) {
        self.wake.notify_one();
    }

    /// What this adapter may do with samples of `source`, once that is settled, or what it is when `patience` ends.
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

    /// What this adapter may do with samples of `source` now.
    #[must_use]
    pub fn role(&self, source: &Source) -> Role {
        let known = self.known();
        known.get(&source.cluster).map_or(Role::Unknown, |known| known.cluster.role(&source.replica, Instant::now()))
    }

    /// Whether `source` leads, as far as this adapter knows.
    #[must_use]
    pub fn leads(&self, source: &Source) -> bool {
        let known = self.known();
        known.get(&source.cluster).is_some_and(|known| known.cluster.leads(&source.replica, Instant::now()))
    }

    /// What is to be shown.
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
        let mut shown: Vec<Shown> = self.known().iter().map(show).collect();
        shown.sort_by(|one, other| one.cluster.cmp(&other.cluster));
        shown
    }

    /// A cluster's row as it was read last, and the replicas heard here; `None` where nothing is sent of it.
    pub(super) fn replicas_of(&self, cluster: &str) -> Option<(Option<ClusterRow>, Vec<String>)> {
        let known = self.known();
        let cluster = &known.get(cluster)?.cluster;
        let replicas = cluster.replicas(Instant::now()).map(|(name, _)| name.to_owned()).collect();
        Some((cluster.seen().cloned(), replicas))
    }

    /// Tells when a role, or who leads, may have changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    // ---- for the rounds

    /// Waits for something that cannot wait for the next round, one that was since the last wait included.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The names of all.
    pub(super) fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Those whose row is not known.
    pub(super) fn rowless(&self) -> Vec<String> {
        self.known().iter().filter(|(_, known)| known.group_no.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// What is to be told of each leading replica.
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
        self.known().values().filter_map(report).collect()
    }

    /// The rows of these clusters were read by a statement sent at `asked`; some may have none.
    pub(super) fn on_read(&self, names: &[String], rows: Vec<cluster_table::Read>, asked: Instant, now: Instant) {
        let mut rows: HashMap<String, cluster_table::Read> =
            rows.into_iter().map(|row| (row.cluster.clone(), row)).collect();
        let mut known = self.known();
        for name in names {
            let Some(known) = known.get_mut(name) else { continue };
            let row = rows.remove(name);
            known.group_no = row.as_ref().map(|row| row.group_no);
            known.cluster.on_read(row.and_then(|row| row.seen), asked, now);
        }
    }

    /// Lets go of replicas that have not been heard here for a long time, and of clusters without any.
    pub(super) fn forget(&self, now: Instant) -> Vec<Source> {
        let mut known = self.known();
        let mut forgotten = Vec::new();
        known.retain(|name, known| {
            let source = |replica| Source { cluster: name.clone(), replica };
            forgotten.extend(known.cluster.forget(now).into_iter().map(source));
            known.cluster.replicas(now).next().is_some()
        });
        forgotten
    }

    /// Those in which another replica is to lead now, with the group's number; also those in which none has led yet.
    pub(super) fn successions(&self, now: Instant) -> Vec<(String, Succession)> {
        let succession = |(name, known): (&String, &ClusterEntry)| {
            let group_no = known.group_no?;
            let succession = match known.cluster.seen() {
                Some(_) => known.cluster.succession(now)?,
                None => Succession::first(group_no, known.cluster.candidate(None, now)?),
            };
            Some((name.clone(), succession))
        };
        self.known().iter().filter_map(succession).collect()
    }

    /// Terms that this adapter has to begin, each once until [`Clusters::on_begun`]: the cluster of each, and the term.
    pub(super) fn to_begin(&self) -> Vec<(String, Term)> {
        let mut known = self.known();
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

    /// A term has begun, or it could not.
    pub(super) fn on_begun(&self, cluster: &str, token: Uuid, has_begun: bool) {
        if let Some(known) = self.known().get_mut(cluster) {
            known.beginning = known.beginning.filter(|beginning| *beginning != token);
            if has_begun {
                known.cluster.on_ready(token);
                // For it to be told.
                self.wake.notify_one();
            }
        }
        self.changed();
    }

    /// When the next leading replica may count as silent.
    pub(super) fn next_check_at(&self, now: Instant) -> Option<Instant> {
        self.known().values().filter_map(|known| known.cluster.next_check_at(now)).min()
    }

    /// Roles may have changed.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// What is made of `source`, if it has been heard.
    fn with<T>(&self, source: &Source, work: impl FnOnce(&mut Liveness) -> T) -> Option<T> {
        self.known().get_mut(&source.cluster)?.cluster.heard(&source.replica).map(work)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, ClusterEntry>> {
        self.known.lock()
    }
}

impl InFlight {
    /// The request was answered by a 5xx.
    pub fn refused(mut self) {
        self.refused = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(known) = self.clusters.known().get_mut(&self.source.cluster) {
            known.cluster.on_answer(&self.source.replica, self.refused, Instant::now());
        }
    }
}

impl ClusterConnection {
    /// It has carried a request from these.
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
                // Others are to be told.
                self.clusters.wake.notify_one();
            }
        }
    }
}
