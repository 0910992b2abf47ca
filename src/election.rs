//! Who leads: a pure machine, and the advisory lock that drives it.
//!
//! [`machine`] decides, [`liveness`] knows whether the own Prometheus sends, [`role`] is what the rest of the program
//! sees; [`advisory_lock`] carries the machine's decisions out, on a [`lock_session`].

use std::time::Duration;

pub mod advisory_lock;
pub mod by_labels;
pub mod liveness;
pub mod lock_session;
pub mod machine;
pub mod role;

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

impl Config {
    /// The server ends a lock session that is silent for so long: 85 % of the lease, so that detection and take-over
    /// end within it.
    #[must_use]
    pub fn session_timeout(&self) -> Duration {
        self.lease * 17 / 20
    }

    /// A leader stops writing when a heartbeat sent so long ago is the last one answered: 70 % of the lease, well
    /// before the server gives the lock away, so that a clock that runs a tenth slow is still in time.
    #[must_use]
    pub fn leader_deadline(&self) -> Duration {
        self.lease * 7 / 10
    }

    /// How long a writer of an old term may take to end by itself before its backend is terminated: a third of what
    /// [`Config::session_timeout`] leaves of the lease, so that a take-over that has to wait ends within the lease.
    #[must_use]
    pub fn drain_patience(&self) -> Duration {
        self.lease / 20
    }

    /// How often a leader sends a heartbeat: once a second, or five times in a short lease.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        (self.lease / 5).min(Duration::from_secs(1))
    }

    /// A leader's heartbeat older than three of its intervals is stale: who leads is then unknown.
    #[must_use]
    pub fn stale_after(&self) -> Duration {
        self.heartbeat_interval() * 3
    }
}

/// How far a leader has got, as far as one adapter knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The newest sample stored, ms since 1970.
    pub newest_ms: Option<i64>,
    /// The largest lag seen lately.
    pub lag_ms: i64,
    /// The earliest sample of a request that is not stored.
    pub pending_ms: Option<i64>,
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
