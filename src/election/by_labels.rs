//! Election by labels: in each cluster one of its replicas leads, whichever adapters receive its samples.
//!
//! [`cluster`] decides. [`cluster_table`] has the statements by which adapters report to each other in the database.
//! [`clusters`] is the part that the write path reads. [`coordinator`] carries out the decisions. [`by_hand`] carries
//! out the [`orders`] of an operator. No adapter needs to hold a lock to lead, or to know another adapter.

use crate::election::PrometheusTimeout;
use crate::storage::upkeep::CLUSTER_GROUPS;

pub mod by_hand;
pub mod cluster;
pub mod cluster_table;
pub mod clusters;
pub mod coordinator;
pub mod orders;

/// Settings of the election by labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The label that names the cluster.
    pub cluster_label: String,
    /// `-metrics-high-availability-timeout`: the time after which a silent leading replica is replaced; not `Never`.
    pub timeout: PrometheusTimeout,
    /// `-metrics-high-availability-clusters`: the largest number of clusters.
    pub clusters_max: usize,
}

/// Returns the cluster's name in the leader table, in the log and in the status.
#[must_use]
pub fn group_name(cluster: &str) -> String {
    format!("{CLUSTER_GROUPS}{cluster}")
}
