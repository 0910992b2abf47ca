//! The actions that the machine requests from its driver, and the reasons of a role.

use std::time::Instant;

/// The next action of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Do nothing before this time, unless a write request begins or the session ends.
    Wait(Instant),
    /// Open a session. Result: `Machine::on_connected` or `Machine::on_lost`.
    Connect,
    /// Try the lock and, if it is not free, read the leader's row. Result: `Machine::on_tried` or `Machine::on_lost`.
    TryLock,
    /// Only read the leader's row. Result: `Machine::on_observed` or `Machine::on_lost`.
    Observe,
    /// Wait until old writers have ended and raise the term, if that is allowed: see `Machine::follows`. Result:
    /// `Machine::on_term`, `Machine::on_refused` or `Machine::on_lost`.
    RaiseTerm,
    /// Write a heartbeat for the own term. Result: `Machine::on_heartbeat` or `Machine::on_lost`.
    Heartbeat,
    /// Write the name of `Machine::successor` to the leader's row. Result: `Machine::on_handed_over`,
    /// `Machine::on_no_such_peer` or `Machine::on_lost`.
    HandOver,
    /// Close the session, if there is one. This releases the lock. Result: `Machine::on_closed`.
    Close(Reason),
}

/// The reason why a role was left or taken, as written in log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The term was raised and the buffered samples were stored.
    Elected,
    /// Another adapter leads.
    LeaderElsewhere,
    /// The own Prometheus sent nothing for its timeout.
    PrometheusTimeout,
    /// The lock session ended or failed.
    SessionLost,
    /// A heartbeat was not answered by its deadline.
    HeartbeatOverdue,
    /// Another adapter has begun a newer term.
    Fenced,
    /// The own writes have failed for longer than the lease.
    WritesFailing,
    /// The term was raised, but the buffered samples could not be stored.
    TakeOverFailed,
    /// The holder of the lock shows no fresh heartbeat.
    LeaderStale,
    /// No fresh heartbeat, and this adapter may not lead: it is excluded, yields to another adapter, or is not
    /// appointed.
    NobodyLeads,
    /// This adapter is stopping.
    Shutdown,
    /// Requested by an order.
    Requested,
}

impl Reason {
    /// Returns the label of the metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Reason::Elected => "elected",
            Reason::LeaderElsewhere => "leader_elsewhere",
            Reason::PrometheusTimeout => "prometheus_timeout",
            Reason::SessionLost => "session_lost",
            Reason::HeartbeatOverdue => "heartbeat_overdue",
            Reason::Fenced => "fenced",
            Reason::WritesFailing => "writes_failing",
            Reason::TakeOverFailed => "take_over_failed",
            Reason::LeaderStale => "leader_stale",
            Reason::NobodyLeads => "nobody_leads",
            Reason::Shutdown => "shutdown",
            Reason::Requested => "requested",
        }
    }
}
