//! Orders of an operator to a cluster, and the reasons to refuse them. Pure.

use std::time::{Duration, Instant};

use crate::election::by_labels::cluster::ClusterRow;
use crate::storage::fence::Fence;

/// Time limit of an order. By then some adapter has carried it out, or none can.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// An order to a cluster's election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterOrder {
    /// Let any other replica lead.
    Resign,
    /// Let the named replica lead.
    HandOver {
        /// Its name.
        to: String,
    },
    /// Take the lead from a replica, and exclude it from elections until released.
    Hold {
        /// Its name.
        replica: String,
    },
    /// Let a replica take part in elections again.
    Release {
        /// Its name.
        replica: String,
    },
}

/// The reason why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterRefusal {
    /// This adapter has received no samples of the cluster.
    #[error("no samples of a cluster {cluster:?} are sent to this adapter; /status.json names those that are")]
    NoSuchCluster {
        /// The name given.
        cluster: String,
    },
    /// This adapter has received no samples of the replica.
    #[error(
        "no samples of a replica {replica:?} of cluster {cluster:?} are sent to this adapter; those of {} are", known.join(", ")
    )]
    NoSuchReplica {
        /// The cluster.
        cluster: String,
        /// The name given.
        replica: String,
        /// The names that are possible.
        known: Vec<String>,
    },
    /// The first leader of the cluster is not known yet.
    #[error("nobody leads cluster {cluster:?} yet, as far as this adapter knows: try again")]
    NobodyLeads {
        /// The cluster.
        cluster: String,
    },
    /// The replica is excluded from elections.
    #[error("replica {replica:?} is held out of elections: release it first")]
    HeldOut {
        /// The replica.
        replica: String,
    },
    /// Another replica than the named one began to lead.
    #[error("replica {replica:?} leads now: its lead began before this order was carried out")]
    Overtaken {
        /// The leading replica.
        replica: String,
    },
    /// No adapter carried it out in time.
    #[error(
        "not done within {PATIENCE:?}: {}", if *is_written { "no adapter has been sent samples of a replica that could lead \
         instead; a hold stays in force and is carried out when one is" } else { "the database does not answer, see the log" }
    )]
    Overdue {
        /// `true` if the order stands in the cluster's row.
        is_written: bool,
    },
}

/// An order that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The cluster's group, and the term that the order applies to.
    pub fence: Fence,
    /// The order.
    pub order: ClusterOrder,
    /// When the caller stops waiting. A hold and a release stay in force after it.
    pub until: Instant,
}

impl ClusterOrder {
    /// Returns the word for the order in the log, as on the command line.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Resign => "resign",
            Self::HandOver { .. } => "hand-over",
            Self::Hold { .. } => "hold",
            Self::Release { .. } => "release",
        }
    }

    /// Returns the replica that the order names.
    pub(super) fn replica(&self) -> Option<&str> {
        match self {
            Self::Resign => None,
            Self::HandOver { to: replica } | Self::Hold { replica } | Self::Release { replica } => Some(replica),
        }
    }

    /// Returns the outcome of an order that was given in the term of `fence`, if the cluster's row is `now`; `None`
    /// while it is not carried out.
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

/// Orders that are not yet written to a cluster's row.
#[derive(Debug, Default)]
pub(super) struct UnwrittenOrders {
    pub(super) next_no: u64,
    pub(super) unwritten: Vec<(u64, Given)>,
}
