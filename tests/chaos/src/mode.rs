//! How the adapters of a case agree who leads, and with that who sends to whom.

/// What replicas of a cluster, or the two sides of a pair, are called.
pub(crate) const REPLICAS: [&str; 3] = ["a", "b", "c"];

/// What adapters are called to which any replica may send.
const ADAPTERS: [&str; 4] = ["1", "2", "3", "4"];

/// Clusters of a case by labels.
const CLUSTERS: [&str; 2] = ["eu", "us"];

/// What an operator's orders show.
pub(crate) const TOKEN: &str = "operator";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A pair, an adapter beside each Prometheus: the adapter that has the advisory lock leads.
    AdvisoryLock,
    /// The same by mistake for two clusters of a Prometheus each, which have one lock between them.
    Apart,
    /// A pair of which the one that was told to leads.
    Rest,
    /// Any adapter takes what any replica sends: of each cluster one replica leads.
    ByLabels(ByLabels),
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByLabels {
    /// Adapters behind the balancer, 3 at most.
    pub(crate) adapters: usize,
    /// Replicas of each cluster, 3 at most.
    pub(crate) replicas: usize,
    /// Clusters, 2 at most.
    pub(crate) clusters: usize,
}

impl Mode {
    /// How many adapters there are.
    pub(crate) fn adapters(self) -> usize {
        match self {
            Mode::AdvisoryLock | Mode::Apart | Mode::Rest => 2,
            Mode::ByLabels(ByLabels { adapters, .. }) => adapters,
        }
    }

    /// How many Prometheis each cluster has.
    pub(crate) fn replicas(self) -> usize {
        match self {
            Mode::Apart => 1,
            Mode::AdvisoryLock | Mode::Rest => 2,
            Mode::ByLabels(ByLabels { replicas, .. }) => replicas,
        }
    }

    /// What is sent as `cluster`.
    pub(crate) fn clusters(self) -> &'static [&'static str] {
        match self {
            Mode::Apart => &CLUSTERS,
            Mode::AdvisoryLock | Mode::Rest => &["chaos"],
            Mode::ByLabels(ByLabels { clusters, .. }) => &CLUSTERS[..clusters],
        }
    }

    /// What an adapter is called.
    pub(crate) fn adapter_name(self, adapter: usize) -> &'static str {
        match self {
            Mode::AdvisoryLock | Mode::Apart | Mode::Rest => REPLICAS[adapter],
            Mode::ByLabels(_) => ADAPTERS[adapter],
        }
    }

    /// What tells an adapter of it.
    pub(crate) fn arguments(self, lease_seconds: f64) -> Vec<String> {
        match self {
            Mode::AdvisoryLock | Mode::Apart => vec![
                "-leader-election-pg-advisory-lock-id=7".to_owned(),
                format!("-leader-election-lease={}ms", lease_seconds * 1000.0),
            ],
            Mode::Rest => {
                vec!["-leader-election-rest".to_owned(), format!("-leader-election-lease={}ms", lease_seconds * 1000.0)]
            }
            Mode::ByLabels(_) => {
                // They listen elsewhere than on loopback, so an operator shows who he is.
                vec!["-metrics-high-availability".to_owned(), format!("-web-admin-token={TOKEN}")]
            }
        }
    }

    /// Whether any Prometheus may send to any adapter.
    pub(crate) fn is_balanced(self) -> bool {
        matches!(self, Mode::ByLabels(_))
    }
}
