//! The leader election: a pure state machine, and the advisory lock that drives it.
//!
//! [`machine`] decides. [`liveness`] judges if the own Prometheus sends. [`orders`] has the orders given to this
//! adapter. [`role`] is the part that the rest of the program sees. [`driver`] carries out the machine's decisions on a
//! [`lock_session`], and takes orders from [`commands`].

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
mod old_writers;
pub mod orders;
pub mod role;
mod write_path;

/// A term of a group, as read or begun: the leader and the right to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The group's name in the leader table: [`Config::group`], or [`by_labels::group_name`] of a cluster.
    pub group: String,
    /// The right to write.
    pub fence: Fence,
    /// By labels, the leading replica. `None` if an adapter leads for its own Prometheus.
    pub replica: Option<String>,
}

/// The interface of the hand-over to an election.
pub trait Succession: Send + Sync + 'static {
    /// Stores the buffered samples of the sender that leads in `term`: this adapter's own Prometheus, or by labels
    /// [`Term::replica`]. The future runs beside the election. It may be dropped before it ends and called again for
    /// the same term. A call for an earlier term of the group may still run.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or a fenced write because another term is in force.
    fn prepare(&self, term: Term) -> impl Future<Output = Result<(), Error>> + Send + 'static;

    /// Notes that a group's row was read, or that a heartbeat found the own term in force. Called about once a second.
    fn observed(&self, term: &Term);

    /// By labels: notes that a replica of `cluster` has not been heard for an hour.
    fn forget(&self, cluster: &str, replica: &str);

    /// Returns `true` if no acknowledged sample is left in a buffer. By labels, called before the process stops.
    fn is_drained(&self) -> bool;
}

/// Settings of a leader election.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The method by which an adapter becomes leader.
    pub method: Method,
    /// `-leader-election-hold`: excluded from elections from the start until released.
    pub is_held: bool,
    /// `-leader-election-pg-advisory-lock-prometheus-timeout`.
    pub prometheus_timeout: PrometheusTimeout,
    /// `-leader-election-liveness-interval`: interval of checks for a silent Prometheus, besides the exact deadline.
    pub liveness_interval: Duration,
    /// `-scheduled-election-interval`: interval at which a standby tries to take the lock.
    pub election_interval: Duration,
    /// `-leader-election-lease`: the longest time a frozen or unreachable leader keeps the lock, 3 s to 5 m.
    pub lease: Duration,
}

/// The method by which an adapter becomes leader of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// `-leader-election-pg-advisory-lock-id`: the leader holds this advisory lock. Never 0, which means no election.
    AdvisoryLock(i64),
    /// `-leader-election-rest`: an external party appoints the leader of this group.
    External(String),
}

impl Config {
    /// Returns the group's name in the leader table, in the log and in the status.
    #[must_use]
    pub fn group(&self) -> String {
        match &self.method {
            Method::AdvisoryLock(id) => format!("lock {id}"),
            Method::External(group) => format!("rest {group}"),
        }
    }

    /// Returns the time for which an adapter that gave up the lead does not take it again, and for which the other
    /// adapters yield to a named successor. This is several times the time that another adapter needs to notice.
    #[must_use]
    pub fn cooldown(&self) -> Duration {
        self.lease / 2
    }

    /// Returns the time after which the server ends a silent lock session: 85 % of the lease. So detection and
    /// take-over both end within the lease.
    #[must_use]
    pub fn session_timeout(&self) -> Duration {
        self.lease * 17 / 20
    }

    /// Returns the time after which a leader stops writing, counted from when its last answered heartbeat was sent:
    /// 70 % of the lease. The server releases the lock well after that, so a clock that runs 10 % slow is still in
    /// time.
    #[must_use]
    pub fn leader_deadline(&self) -> Duration {
        self.lease * 7 / 10
    }

    /// Returns the time that a writer of an old term has to end by itself before its backend is terminated: a third of
    /// what [`Config::session_timeout`] leaves of the lease. So a take-over that must wait still ends within the lease.
    #[must_use]
    pub fn drain_patience(&self) -> Duration {
        self.lease / 20
    }

    /// Returns the interval of a leader's heartbeats: one second, or a fifth of a short lease.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        (self.lease / 5).min(Duration::from_secs(1))
    }

    /// Returns the age from which a heartbeat is stale: three heartbeat intervals. The leader is then unknown.
    #[must_use]
    pub fn stale_after(&self) -> Duration {
        self.heartbeat_interval() * 3
    }
}

/// The time after which a leader gives up the lead because its own Prometheus sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrometheusTimeout {
    /// `0`: never.
    Never,
    /// This long after the last write request.
    After(Duration),
    /// Unset: learned from the interval between requests.
    Automatic,
}
