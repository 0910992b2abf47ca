//! What an operator orders of a cluster, and why it is refused. Pure.

use std::time::{Duration, Instant};

use crate::election::by_labels::cluster::ClusterRow;
use crate::storage::fence::Fence;

/// An order lasts so long: by then some adapter has carried it out, or none can.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What an operator orders of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterOrder {
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
pub enum ClusterRefusal {
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
    pub order: ClusterOrder,
    /// Then nobody waits for it any more; a hold and a release last.
    pub until: Instant,
}

impl ClusterOrder {
    /// The replica it names.
    pub(super) fn replica(&self) -> Option<&str> {
        match self {
            Self::Resign => None,
            Self::HandOver { to: replica } | Self::Hold { replica } | Self::Release { replica } => Some(replica),
        }
    }

    /// What became of it, if it was about the term of `fence` and this is the cluster now.
    pub(super) fn outcome(&self, fence: Fence, now: &ClusterRow) -> Option<Result<(), ClusterRefusal>> {
        let has_changed = now.fence.token != fence.token;
        match self {
            Self::Resign => has_changed.then_some(Ok(())),
            Self::HandOver { to } if *to == now.replica => Some(Ok(())),
            Self::HandOver { .. } => {
                has_changed.then(|| Err(ClusterRefusal::Overtaken { replica: now.replica.clone() }))
            }
            Self::Hold { replica } => (now.held_out.contains(replica) && now.replica != *replica).then_some(Ok(())),
            Self::Release { replica } => (!now.held_out.contains(replica)).then_some(Ok(())),
        }
    }
}

/// UnwrittenOrders that no row has yet.
#[derive(Debug, Default)]
pub(super) struct UnwrittenOrders {
    pub(super) next_no: u64,
    pub(super) unwritten: Vec<(u64, Given)>,
}
