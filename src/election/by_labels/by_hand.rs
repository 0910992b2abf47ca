//! Orders to a cluster's election: written down in its row, where every adapter reads them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::election::by_labels::cluster::Seen;
use crate::election::by_labels::clusters::Clusters;
use crate::storage::fence::Fence;

/// An order lasts so long: by then some adapter has carried it out, or none can.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What an operator orders of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another replica is to lead.
    Resign,
    /// This one is.
    HandOver {
        /// Its name.
        to: String,
    },
    /// A replica is to give the lead up and stay out of elections until released.
    Hold {
        /// Its name.
        replica: String,
    },
    /// It is to take part again.
    Release {
        /// Its name.
        replica: String,
    },
}

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing has been sent of it.
    #[error("no samples of a cluster {cluster:?} are sent to this adapter; /status.json names those that are")]
    NoSuchCluster {
        /// The name given.
        cluster: String,
    },
    /// Nothing has been sent of it.
    #[error(
        "no samples of a replica {replica:?} of cluster {cluster:?} are sent to this adapter; those of {} are", known.join(", ")
    )]
    NoSuchReplica {
        /// The cluster.
        cluster: String,
        /// The name given.
        replica: String,
        /// Names that would do.
        known: Vec<String>,
    },
    /// Its first leader is not known yet.
    #[error("nobody leads cluster {cluster:?} yet, as far as this adapter knows: try again")]
    NobodyLeads {
        /// The cluster.
        cluster: String,
    },
    /// It must not lead.
    #[error("replica {replica:?} is held out of elections: release it first")]
    HeldOut {
        /// The replica.
        replica: String,
    },
    /// Somebody else leads instead.
    #[error("replica {replica:?} leads now: its lead began before this order was carried out")]
    Overtaken {
        /// Who leads.
        replica: String,
    },
    /// No adapter did it.
    #[error(
        "not done within {PATIENCE:?}: {}", if *is_written { "no adapter has been sent samples of a replica that could lead \
         instead; a hold stays in force and is carried out when one is" } else { "the database does not answer, see the log" }
    )]
    Overdue {
        /// Whether it stands in the cluster's row.
        is_written: bool,
    },
}

/// An order on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The cluster's row, and the term that the order is about.
    pub fence: Fence,
    /// What is ordered.
    pub order: Order,
    /// Then nobody waits for it any more; a hold and a release last.
    pub until: Instant,
}

impl Order {
    /// The replica it names.
    fn replica(&self) -> Option<&str> {
        match self {
            Self::Resign => None,
            Self::HandOver { to: replica } | Self::Hold { replica } | Self::Release { replica } => Some(replica),
        }
    }

    /// What became of it, if it was about the term of `fence` and this is the cluster now.
    fn outcome(&self, fence: Fence, now: &Seen) -> Option<Result<(), Refusal>> {
        let has_changed = now.fence.token != fence.token;
        match self {
            Self::Resign => has_changed.then_some(Ok(())),
            Self::HandOver { to } if *to == now.replica => Some(Ok(())),
            Self::HandOver { .. } => has_changed.then(|| Err(Refusal::Overtaken { replica: now.replica.clone() })),
            Self::Hold { replica } => (now.held_out.contains(replica) && now.replica != *replica).then_some(Ok(())),
            Self::Release { replica } => (!now.held_out.contains(replica)).then_some(Ok(())),
        }
    }
}

impl Clusters {
    /// Gives an order, and waits until it is carried out, by whichever adapter.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub async fn give(self: &Arc<Self>, cluster: &str, order: Order) -> Result<(), Refusal> {
        let (seen, known) =
            self.replicas_of(cluster).ok_or_else(|| Refusal::NoSuchCluster { cluster: cluster.to_owned() })?;
        let seen = seen.ok_or_else(|| Refusal::NobodyLeads { cluster: cluster.to_owned() })?;
        if let Some(replica) = order.replica() {
            if !known.iter().any(|known| known == replica) && !seen.held_out.iter().any(|known| known == replica) {
                let (cluster, replica) = (cluster.to_owned(), replica.to_owned());
                return Err(Refusal::NoSuchReplica { cluster, replica, known });
            }
            if matches!(order, Order::HandOver { .. }) && seen.held_out.iter().any(|held_out| held_out == replica) {
                return Err(Refusal::HeldOut { replica: replica.to_owned() });
            }
        }
        if let Some(outcome) = order.outcome(seen.fence, &seen) {
            return outcome;
        }
        log::info!("ordered of cluster {cluster:?}: {order:?}");
        let until = Instant::now() + PATIENCE;
        let given = Given { fence: seen.fence, order, until };
        let way = self.on_its_way(given.clone());
        let mut changes = self.changes();
        let carried_out = async {
            loop {
                changes.mark_unchanged();
                if let Some((Some(now), _)) = self.replicas_of(cluster)
                    && let Some(outcome) = given.order.outcome(given.fence, &now)
                {
                    return outcome;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let outcome = tokio::time::timeout_at(until.into(), carried_out).await;
        let outcome = outcome.unwrap_or_else(|_| Err(Refusal::Overdue { is_written: way.is_written() }));
        if let Err(refusal) = &outcome {
            log::info!("not carried out: {refusal}");
        }
        outcome
    }

    fn on_its_way(self: &Arc<Self>, given: Given) -> Way {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let no = orders.next_no;
        orders.next_no += 1;
        orders.unwritten.push((no, given));
        drop(orders);
        self.wake.notify_one();
        Way { clusters: Arc::clone(self), no }
    }

    /// Orders that are to be written down, each with a number of its own.
    pub(super) fn unwritten(&self) -> Vec<(u64, Given)> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).unwritten.clone()
    }

    /// One is.
    pub(super) fn on_written(&self, no: u64) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.unwritten.retain(|(unwritten, _)| *unwritten != no);
    }
}

/// Orders that no row has yet.
#[derive(Debug, Default)]
pub(super) struct Orders {
    next_no: u64,
    unwritten: Vec<(u64, Given)>,
}

/// An order's: dropped once nobody waits for it.
struct Way {
    clusters: Arc<Clusters>,
    no: u64,
}

impl Way {
    fn is_written(&self) -> bool {
        self.clusters.unwritten().iter().all(|(no, _)| *no != self.no)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.clusters.on_written(self.no);
    }
}
