//! Election by labels: for each cluster one of its replicas leads, whichever adapters its samples come by.
//!
//! [`cluster`] decides, [`cluster_table`] has what adapters tell each other in the database, [`clusters`] is what the write path
//! reads, [`coordinator`] carries the decisions out, [`by_hand`] carries [`orders`] of an operator out. No adapter leads by holding
//! a lock, or has to know another.

use crate::election::PrometheusTimeout;
use crate::storage::upkeep::CLUSTER_GROUPS;

pub mod by_hand;
pub mod cluster;
pub mod cluster_table;
pub mod clusters;
pub mod coordinator;
pub mod orders;

/// How leaders are found by labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The label that names the cluster.
    pub cluster_label: String,
    /// `-metrics-high-availability-timeout`: a leading replica silent for so long is followed by another; not `Never`.
    pub timeout: PrometheusTimeout,
    /// `-metrics-high-availability-clusters`: as many clusters at most.
    pub clusters_max: usize,
}

/// What a cluster is called in the leader table, log and status.
#[must_use]
pub fn group_name(cluster: &str) -> String {
    format!("{CLUSTER_GROUPS}{cluster}")
}
