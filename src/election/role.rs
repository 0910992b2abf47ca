//! The role of this adapter, as the rest of the program reads it.

use std::time::{Duration, Instant};

use crate::storage::fence::Fence;

/// A leader, as the group's row shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its name: host and port.
    pub holder: String,
    /// Its term.
    pub term: i64,
}

/// The session that holds the group's lock while no heartbeat shows a leader. It belongs to another program or to a
/// frozen adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// The pid of its server process.
    pub pid: i32,
    /// Its `application_name`; empty if it has none.
    pub application_name: String,
    /// Its client address. `None` for a Unix socket, or if the server hides it from an ordinary user.
    pub client_address: Option<String>,
}

/// The role of this adapter. Roles that rest on an answer of the server expire by themselves, so that a reader is right
/// even while the task that renews them is stuck. Read it by [`Role::at`].
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// The leader is unknown: writes are answered 503.
    Unknown,
    /// Another adapter leads, or by labels another replica, according to a row that was fresh.
    Standby {
        /// The leader.
        leader: Leader,
        /// When that row is too old to rely on.
        until: Instant,
    },
    /// The right to lead is obtained, but the take-over is not finished: writes wait a short time, or are answered 503.
    TakingOver,
    /// Samples are stored as they arrive.
    Leader {
        /// The right to write; `None` without an election.
        fence: Option<Fence>,
        /// When the right expires unless renewed; `None` without an election.
        until: Option<Instant>,
    },
    /// Leaders are elected by labels. This adapter stores or buffers the samples of any replica, according to the role
    /// in its cluster.
    ByLabels {
        /// When the leaders last read are too old to rely on.
        until: Instant,
    },
    /// The own Prometheus is silent. This adapter is no candidate until it sends.
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
    /// Returns the role at `now`: itself, or [`Role::Unknown`] once expired.
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

    /// Returns `true` if this adapter seals and drops old data. With [`Role::ByLabels`] other adapters may do so too,
    /// but only one does it at a time.
    #[must_use]
    pub fn keeps_store(&self) -> bool {
        matches!(self, Role::Leader { .. } | Role::ByLabels { .. })
    }

    /// Returns the word for the role in log, metrics and status.
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

/// The group's row, as a standby read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderRow {
    /// The leader.
    pub leader: Leader,
    /// The age of its heartbeat by the server's clock.
    pub heartbeat_age: Duration,
    /// The time for which another adapter than the reader is still the named successor.
    pub yields_for: Option<Duration>,
}
