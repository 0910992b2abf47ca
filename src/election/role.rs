//! What the rest of the program knows of an election.

use std::time::{Duration, Instant};

use crate::storage::fence::Fence;

/// A leader as its heartbeat in the group's row shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Host and address it gave.
    pub holder: String,
    /// Its term.
    pub term: i64,
}

/// The session that holds the group's lock while no heartbeat tells of a leader: another program's, or a frozen
/// adapter's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its server process.
    pub pid: i32,
    /// What it calls itself; empty if nothing.
    pub application_name: String,
    /// Where it comes from; `None` by a Unix socket, or where the server does not tell an ordinary user.
    pub client_address: Option<String>,
}

/// What this adapter may do now. Roles that rest on an answer of the server expire by themselves, so that a reader is
/// right even while the task that renews them is stuck: read it by [`Role::at`].
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Nobody can say: answer 503.
    Unknown,
    /// Another adapter leads, and its heartbeat was fresh.
    Standby {
        /// Who.
        leader: Leader,
        /// When that is too old to rely on.
        until: Instant,
    },
    /// The lock is ours, the term is not yet: a short wait or 503.
    TakingOver,
    /// Store.
    Leader {
        /// The right to; `None` without an election.
        fence: Option<Fence>,
        /// When the right must have been renewed; `None` without an election.
        until: Option<Instant>,
    },
    /// Leaders are found by labels: this adapter stores or holds what any replica sends, as each cluster's role says.
    ByLabels {
        /// When what is known of them is too old to rely on.
        until: Instant,
    },
    /// The own Prometheus is silent: not a candidate until it sends.
    Resigned,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {}, application_name {:?}", self.pid, self.application_name)?;
        match &self.client_address {
            Some(address) => write!(f, ", client {address}"),
            None => Ok(()),
        }
    }
}

impl Role {
    /// The role at `now`: itself, or [`Role::Unknown`] once expired.
    #[must_use]
    pub fn at(&self, now: Instant) -> Role {
        match self {
            Role::Standby { until, .. } | Role::ByLabels { until } | Role::Leader { until: Some(until), .. }
                if now >= *until =>
            {
                Role::Unknown
            }
            role => role.clone(),
        }
    }

    /// Whether it is this adapter's to seal and to drop what is old. With [`Role::ByLabels`] it may be another's as well:
    /// one does it at a time.
    #[must_use]
    pub fn keeps_store(&self) -> bool {
        matches!(self, Role::Leader { .. } | Role::ByLabels { .. })
    }

    /// The word for it in log, metrics and status.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Role::Unknown => "unknown",
            Role::Standby { .. } => "standby",
            Role::TakingOver => "taking_over",
            Role::Leader { .. } => "leader",
            Role::ByLabels { .. } => "by_labels",
            Role::Resigned => "resigned",
        }
    }
}

/// The row of the group's leader, as a standby read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderRow {
    /// Who it names.
    pub leader: Leader,
    /// How old its heartbeat is by the server's clock.
    pub heartbeat_age: Duration,
    /// For how long another adapter than the reader is still named to lead next.
    pub yields_for: Option<Duration>,
}
