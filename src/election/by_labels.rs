//! Election by labels: for each cluster one of its replicas leads, whichever adapters its samples come by.
//!
//! [`cluster`] decides, [`board`] has what adapters tell each other in the database, [`clusters`] is what the write path reads, [`rounds`] carries the decisions out, [`by_hand`] is for whoever knows better. No
//! adapter leads by holding a lock, or has to know another.

use crate::election::PrometheusTimeout;
use crate::storage::upkeep::CLUSTER_GROUPS;

pub mod board;
pub mod by_hand;
pub mod cluster;
pub mod clusters;
pub mod rounds;

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
