//! Who leads: a pure machine, and the advisory lock that drives it.

use std::time::Duration;

/// How the leader of a group is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-leader-election-pg-advisory-lock-id`: the group's lock; never 0 (0 is no election, hence no `Config`).
    pub lock_id: i64,
    /// `-leader-election-pg-advisory-lock-prometheus-timeout`.
    pub prometheus_timeout: PrometheusTimeout,
    /// `-leader-election-liveness-interval`: how often a silent Prometheus is looked for (beside the exact deadline).
    pub liveness_interval: Duration,
    /// `-scheduled-election-interval`: how often a standby tries to take the lock.
    pub election_interval: Duration,
    /// `-leader-election-lease`: the longest a frozen or unreachable leader keeps the lock; 3 s to 5 m.
    pub lease: Duration,
}

/// When a leader whose own Prometheus sends nothing gives the lead up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrometheusTimeout {
    /// `0`: never.
    Never,
    /// So long after the last write request.
    After(Duration),
    /// Unset: learned from the interval between requests.
    Automatic,
}
