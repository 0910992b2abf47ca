//! What the machine has its driver do, and why.

use std::time::Instant;

/// What the driver is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before this time, or until a write request begins or the session ends.
    Wait(Instant),
    /// Open a session; then `Machine::on_connected` or `Machine::on_lost`.
    Connect,
    /// Try the lock, then look at the leader's row; then `Machine::on_tried` or `Machine::on_lost`.
    TryLock,
    /// Look at the leader's row only; then `Machine::on_observed` or `Machine::on_lost`.
    Observe,
    /// Wait out old writers and raise the term, if that is allowed: see `Machine::follows`; then `Machine::on_term`,
    /// `Machine::on_refused` or `Machine::on_lost`.
    RaiseTerm,
    /// Publish a heartbeat for the own term; then `Machine::on_heartbeat` or `Machine::on_lost`.
    Heartbeat,
    /// Name `Machine::successor` in the leader's row; then `Machine::on_handed_over`, `Machine::on_no_such_peer` or
    /// `Machine::on_lost`.
    HandOver,
    /// Close the session, if there is one, which gives the lock up; then `Machine::on_closed`.
    Close(Reason),
}

/// Why a role was left or taken: the words of log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The lock was obtained and the term raised.
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
    /// The lock was obtained, and what was held could not be stored.
    TakeOverFailed,
    /// The holder of the lock shows no fresh heartbeat.
    LeaderStale,
    /// No fresh heartbeat, and this adapter may not lead: it is held, stands back for another, or was not told to.
    NobodyLeads,
    /// This adapter is stopping.
    Shutdown,
    /// An operator asked for it.
    Requested,
}

impl Reason {
    /// The label of the metric.
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
