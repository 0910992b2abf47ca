//! Who leads: a pure machine, and the advisory lock that drives it.
//!
//! [`machine`] decides, [`liveness`] knows whether the own Prometheus sends, [`orders`] what it was ordered, [`role`] is what
//! the rest of the program sees; [`driver`] carries the machine's decisions out, on a [`lock_session`], and takes
//! orders at a [`commands`].

use std::future::Future;
use std::time::Duration;

use crate::postgres::error::Error;
use crate::storage::fence::Fence;

pub use self::write_path::{Failing, WritePath};

pub mod by_labels;
pub mod commands;
pub mod driver;
pub mod liveness;
pub mod liveness_monitor;
pub mod lock_session;
pub mod machine;
pub mod orders;
pub mod role;
mod write_path;

/// A term of a group, as it was read or begun: who leads, and the right to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What the group is called in the leader table: [`Config::group`], or [`by_labels::group_name`] of a cluster.
    pub group: String,
    /// The right to write.
    pub fence: Fence,
    /// By labels, the replica that leads; `None` where an adapter leads for its own Prometheus.
    pub replica: Option<String>,
}

/// The hand-over's side of an election.
pub trait Succession: Send + Sync + 'static {
    /// Stores what is buffered of the sender that leads in `term`: this adapter's own, or by labels [`Term::replica`]. Runs
    /// beside the election, may be dropped half-way, and may be tried again for the same term; one for an earlier term of the
    /// group may still be under way.
    ///
    /// # Errors
    ///
    /// What the server said, or that another term is in force.
    fn prepare(&self, term: Term) -> impl Future<Output = Result<(), Error>> + Send + 'static;

    /// A group's row was read, or a heartbeat found this adapter's own term in force. Called about once a second.
    fn observed(&self, term: &Term);

    /// By labels: a replica of `cluster` has not been heard for an hour.
    fn forget(&self, cluster: &str, replica: &str);

    /// Whether nothing acknowledged is left in a buffer. By labels this is asked before the process stops.
    fn is_drained(&self) -> bool;
}

/// How the leader of a group is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What makes an adapter the leader.
    pub method: Method,
    /// `-leader-election-hold`: out of elections from the start, until released.
    pub is_held: bool,
    /// `-leader-election-pg-advisory-lock-prometheus-timeout`.
    pub prometheus_timeout: PrometheusTimeout,
    /// `-leader-election-liveness-interval`: how often a silent Prometheus is looked for (beside the exact deadline).
    pub liveness_interval: Duration,
    /// `-scheduled-election-interval`: how often a standby tries to take the lock.
    pub election_interval: Duration,
    /// `-leader-election-lease`: the longest a frozen or unreachable leader keeps the lock; 3 s to 5 m.
    pub lease: Duration,
}

/// What makes an adapter the leader of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// `-leader-election-pg-advisory-lock-id`: that it holds this advisory lock. Never 0, which is no election.
    AdvisoryLock(i64),
    /// `-leader-election-rest`: that an outside party tells it to lead this group.
    External(String),
}

impl Config {
    /// What the group is called in the leader table, log and status.
    #[must_use]
    pub fn group(&self) -> String {
        match &self.method {
            Method::AdvisoryLock(id) => format!("lock {id}"),
            Method::External(group) => format!("rest {group}"),
        }
    }

    /// How long one that gave the lead up stands back for another, and another for the one it named: several times as long
    /// as whoever is there takes to notice.
    #[must_use]
    pub fn cooldown(&self) -> Duration {
        self.lease / 2
    }

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
