//! The election of one adapter as a pure state machine: no clock, no socket, no task.
//!
//! A driver asks [`Machine::next`] for an action, carries it out, and reports the result. Only one action is done at a
//! time. The machine relies on two rules. A session tries the lock until it has it, and never again. Whatever is in
//! doubt ends in [`Action::Close`], because only the end of a session certainly releases its lock.

use std::time::{Duration, Instant};

use crate::election::orders::{Order, Pending, Refusal, StandingOrders};
use crate::election::role::{Leader, LeaderRow, Role};
use crate::election::{Config, Failing, Method};
use crate::storage::fence::Fence;
use uuid::Uuid;

pub use self::action::{Action, Reason};

mod action;

/// The state machine of one adapter's election. See the module.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    state: State,
    /// The time from which the own Prometheus counts as silent; `None` means never. Set by [`Machine::on_liveness`].
    silent_at: Option<Instant>,
    /// The present failure of the own writes, if any. Set by [`Machine::on_writes`].
    failing: Option<Failing>,
    stopping: bool,
    last_reason: Reason,
    orders: StandingOrders,
}

#[derive(Clone, Debug)]
enum State {
    Disconnected {
        retry_at: Instant,
    },
    /// A session without the lock. `returned` is `true` from when the own Prometheus sends again to the next answer.
    Following {
        seen: Option<ObservedLeader>,
        next_at: Instant,
        returned: bool,
    },
    /// The lock is held, or the order to lead was given. The term is not raised yet.
    Locked,
    /// The term is raised. The buffered samples are being stored.
    Preparing(Tenure),
    Leading(Tenure),
    /// The session must be closed.
    Closing {
        reason: Reason,
    },
    Stopped,
}

#[derive(Clone, Debug)]
struct ObservedLeader {
    leader: Leader,
    fresh_until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Tenure {
    fence: Fence,
    /// When the statement that raised the term was sent.
    began_at: Instant,
    /// When the last answered heartbeat was sent.
    renewed_at: Instant,
}

/// Pause before a new session after one was lost. It is short because a take-over waits for the session.
const RECONNECT: Duration = Duration::from_millis(250);

impl Machine {
    /// Returns the machine of an adapter that has just started and whose Prometheus has not sent yet.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        let orders = StandingOrders::new(config.is_held);
        Self {
            config,
            state: State::Disconnected { retry_at: now },
            silent_at: Some(now),
            failing: None,
            stopping: false,
            last_reason: Reason::SessionLost,
            orders,
        }
    }

    /// Returns the next action. A second call before the action is done returns the same action.
    #[must_use]
    pub fn next(&mut self, now: Instant) -> Action {
        if let Some(reason) = self.reason_to_close(now) {
            if reason == Reason::WritesFailing {
                // The writes of another adapter may succeed.
                self.orders.stand_back(self.fence().map(|fence| fence.term), now + self.config.cooldown());
            }
            self.last_reason = reason;
            self.state = State::Closing { reason };
        }
        if let (State::Following { .. }, Method::External(_)) = (&self.state, &self.config.method)
            && self.orders.may_try(&self.config.method, now)
        {
            self.state = State::Locked;
        }
        match (self.decide(now), &self.orders.pending) {
            // The caller of the pending order must get an answer by then.
            (Action::Wait(until), Some(pending)) => Action::Wait(until.min(pending.until)),
            (action, _) => action,
        }
    }

    fn decide(&self, now: Instant) -> Action {
        match &self.state {
            State::Closing { reason } => Action::Close(*reason),
            State::Stopped => Action::Wait(now + self.config.liveness_interval),
            State::Disconnected { retry_at } if now < *retry_at => Action::Wait(*retry_at),
            State::Disconnected { .. } => Action::Connect,
            State::Following { next_at, .. } if now < *next_at => Action::Wait(*next_at),
            State::Following { .. } if self.may_try(now) => Action::TryLock,
            State::Following { .. } => Action::Observe,
            State::Locked => Action::RaiseTerm,
            State::Preparing(_) | State::Leading(_) if self.successor().is_some() => Action::HandOver,
            State::Preparing(_) | State::Leading(_) if self.orders.is_newly_appointed() => Action::Heartbeat,
            State::Preparing(tenure) | State::Leading(tenure) => {
                let heartbeat_at = tenure.renewed_at + self.config.heartbeat_interval();
                if now >= heartbeat_at {
                    return Action::Heartbeat;
                }
                let next_check_at = heartbeat_at.min(now + self.config.liveness_interval);
                Action::Wait(self.silent_at.map_or(next_check_at, |silent_at| silent_at.min(next_check_at)))
            }
        }
    }

    /// Sets the time from which the own Prometheus counts as silent; `None` means never.
    pub fn on_liveness(&mut self, silent_at: Option<Instant>, now: Instant) {
        let was_silent = self.is_silent(now);
        self.silent_at = silent_at;
        let is_silent = self.is_silent(now);
        if let (true, false, State::Following { next_at, returned, .. }) = (was_silent, is_silent, &mut self.state) {
            *next_at = now;
            *returned = true;
        }
    }

    /// Sets the present failure of this adapter's writes, or `None` if the last write was committed.
    pub fn on_writes(&mut self, failing: Option<Failing>) {
        self.failing = failing;
    }

    /// Notes that a session is open, on a server that was found fit.
    pub fn on_connected(&mut self, now: Instant) {
        if let State::Disconnected { .. } = self.state {
            self.state = State::Following { seen: None, next_at: now, returned: false };
        }
    }

    /// Notes the result of a try for the lock, by a statement sent at `sent_at`.
    pub fn on_tried(&mut self, obtained: bool, observed: Option<LeaderRow>, sent_at: Instant) {
        if obtained {
            if let State::Following { .. } = self.state {
                self.state = State::Locked;
            }
        } else {
            self.on_observed(observed, sent_at);
        }
    }

    /// Notes the leader's row, read by a statement sent at `sent_at`.
    pub fn on_observed(&mut self, observed: Option<LeaderRow>, sent_at: Instant) {
        // At least once per heartbeat interval, so that the row that was read does not become stale before the next
        // read.
        let heartbeat = self.config.heartbeat_interval();
        let interval = if self.is_silent(sent_at) { heartbeat } else { self.config.election_interval.min(heartbeat) };
        let stale_after = self.config.stale_after();
        let term = observed.as_ref().map(|observed| observed.leader.term);
        let yields_for = observed.as_ref().and_then(|observed| observed.yields_for);
        self.orders.on_observed(term, yields_for.map(|remaining| sent_at + remaining));
        let may_try = self.may_try(sent_at);
        if let State::Following { seen, next_at, returned } = &mut self.state {
            *returned = false;
            *next_at = sent_at + interval;
            *seen = observed.and_then(|observed| {
                let remaining = stale_after.checked_sub(observed.heartbeat_age)?;
                Some(ObservedLeader { leader: observed.leader, fresh_until: sent_at + remaining })
            });
            self.last_reason = match seen {
                Some(_) => Reason::LeaderElsewhere,
                None if may_try => Reason::LeaderStale,
                None => Reason::NobodyLeads,
            };
        }
    }

    /// Notes that the term was raised; `sent_at` is when its proving statement was sent. Buffered samples are stored
    /// next.
    pub fn on_term(&mut self, fence: Fence, sent_at: Instant) {
        if let State::Locked = self.state {
            self.orders.on_proven(fence.token);
            self.state = State::Preparing(Tenure { fence, began_at: sent_at, renewed_at: sent_at });
        }
    }

    /// Notes that the term was not raised: another adapter is the named successor, or was appointed after this one.
    pub fn on_refused(&mut self, now: Instant) {
        match self.config.method {
            Method::AdvisoryLock(_) => {
                self.orders.on_observed(None, Some(now + self.config.cooldown()));
                self.on_lost(Reason::Requested, now);
            }
            Method::External(_) => self.on_lost(Reason::Fenced, now),
        }
    }

    /// Notes that the buffered samples are stored: this adapter leads now.
    pub fn on_prepared(&mut self) {
        if let State::Preparing(tenure) = self.state {
            self.state = State::Leading(tenure);
            self.last_reason = Reason::Elected;
        }
    }

    /// Notes that a heartbeat sent at `sent_at` found the own term in force.
    pub fn on_heartbeat(&mut self, sent_at: Instant) {
        if let State::Preparing(tenure) | State::Leading(tenure) = &mut self.state {
            tenure.renewed_at = tenure.renewed_at.max(sent_at);
            self.orders.on_proven(tenure.fence.token);
        }
    }

    /// Notes that the successor was written to the group's row.
    pub fn on_handed_over(&mut self, now: Instant) {
        let Some(fence) = self.fence() else { return };
        if let Some(Pending { is_named, .. }) = &mut self.orders.pending {
            *is_named = true;
        }
        self.orders.stand_back(Some(fence.term), now + self.config.cooldown());
        self.on_lost(Reason::Requested, now);
    }

    /// Notes that no adapter has the name of the ordered successor; `connected` are the names of those connected.
    pub fn on_no_such_peer(&mut self, connected: Vec<String>) {
        if let Some(Pending { order: Order::HandOver { to }, .. }) = self.orders.pending.take() {
            self.orders.refused = Some(Refusal::NoSuchPeer { to, connected });
        }
    }

    /// Takes an order whose caller waits until `until` for [`Machine::outcome`]. One order at a time.
    pub fn on_order(&mut self, order: Order, now: Instant, until: Instant) {
        let term = self.fence().map(|fence| fence.term);
        let given = self.orders.give(order.clone(), &self.config.method, term, now + self.config.cooldown());
        match given {
            Ok(()) => {
                self.orders.pending = Some(Pending { order, since: now, until, is_named: false });
                if let State::Following { next_at, .. } = &mut self.state {
                    *next_at = now;
                }
            }
            Err(refusal) => self.orders.refused = Some(refusal),
        }
    }

    /// Returns the outcome of the last order, once.
    pub fn outcome(&mut self, now: Instant) -> Option<Result<(), Refusal>> {
        if let Some(refusal) = self.orders.refused.take() {
            return Some(Err(refusal));
        }
        let Pending { order, since, until, is_named } = self.orders.pending.as_ref()?;
        let has_lead = !matches!(self.state, State::Disconnected { .. } | State::Following { .. } | State::Stopped);
        let outcome = match order {
            Order::Lead if matches!(self.state, State::Leading(_)) && !self.orders.is_newly_appointed() => Ok(()),
            Order::Release => Ok(()),
            Order::HandOver { .. } if !has_lead && !is_named => Err(Refusal::Lost(self.last_reason.label())),
            Order::Resign | Order::Hold | Order::HandOver { .. } if !has_lead => Ok(()),
            _ if self.stopping => Err(Refusal::Stopping),
            _ if now >= *until => {
                let (after, reason) = (*until - *since, self.reason(now).label());
                self.orders.withdraw();
                Err(Refusal::Overdue { after, reason, trouble: None })
            }
            _ => return None,
        };
        self.orders.pending = None;
        Some(outcome)
    }

    /// Returns the name of the successor, if a pending order names one.
    #[must_use]
    pub fn successor(&self) -> Option<&str> {
        match &self.orders.pending {
            Some(Pending { order: Order::HandOver { to }, .. }) => Some(to),
            _ => None,
        }
    }

    /// Returns the token that must be in force for the term to be raised; `None` means any token.
    #[must_use]
    pub fn follows(&self) -> Option<Uuid> {
        self.orders.follows()
    }

    /// Returns `true` if this adapter is excluded from elections.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.orders.is_held
    }

    /// Notes a failure, an end or a doubt: the session must be closed.
    pub fn on_lost(&mut self, reason: Reason, now: Instant) {
        if reason == Reason::Fenced {
            self.orders.on_fenced();
        }
        match self.state {
            State::Disconnected { .. } => self.state = State::Disconnected { retry_at: now + RECONNECT },
            State::Closing { .. } | State::Stopped => return,
            _ => self.state = State::Closing { reason },
        }
        self.last_reason = reason;
    }

    /// Notes that the session is closed.
    pub fn on_closed(&mut self, now: Instant) {
        let State::Closing { reason } = self.state else { return };
        self.state = match reason {
            Reason::Shutdown => State::Stopped,
            // These are no failures. The adapter observes again at once, so that a sender that returns finds its role.
            Reason::PrometheusTimeout | Reason::Requested | Reason::WritesFailing => {
                State::Disconnected { retry_at: now }
            }
            // By then any other adapter has tried to take the lead.
            Reason::TakeOverFailed => State::Disconnected { retry_at: now + self.config.heartbeat_interval() },
            _ => State::Disconnected { retry_at: now + RECONNECT },
        };
    }

    /// Notes that the program stops: the machine gives up the lock and the session.
    pub fn on_shutdown(&mut self) {
        self.stopping = true;
    }

    /// Returns the role of this adapter at `now`.
    #[must_use]
    pub fn role(&self, now: Instant) -> Role {
        match &self.state {
            State::Locked | State::Preparing(_) => Role::TakingOver,
            State::Leading(tenure) => Role::Leader {
                fence: Some(tenure.fence),
                until: Some(tenure.renewed_at + self.config.leader_deadline()),
            },
            State::Following { seen: None, returned: true, .. } => Role::Resigned,
            State::Following { .. } if self.is_silent(now) => Role::Resigned,
            State::Following { seen: Some(seen), .. } => {
                Role::Standby { leader: seen.leader.clone(), until: seen.fresh_until }
            }
            State::Following { seen: None, .. }
            | State::Disconnected { .. }
            | State::Closing { .. }
            | State::Stopped => Role::Unknown,
        }
        .at(now)
    }

    /// Returns when the term being prepared or held ends unless it is renewed.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Preparing(tenure) | State::Leading(tenure) => {
                Some(tenure.renewed_at + self.config.leader_deadline())
            }
            _ => None,
        }
    }

    /// Returns the fence of the term being prepared or held.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        match &self.state {
            State::Preparing(tenure) | State::Leading(tenure) => Some(tenure.fence),
            _ => None,
        }
    }

    /// Returns the reason for the present role.
    #[must_use]
    pub fn reason(&self, now: Instant) -> Reason {
        match &self.state {
            State::Following { .. } if self.is_silent(now) => Reason::PrometheusTimeout,
            State::Following { seen: Some(seen), .. } if now >= seen.fresh_until && self.may_try(now) => {
                Reason::LeaderStale
            }
            State::Following { seen: Some(seen), .. } if now >= seen.fresh_until => Reason::NobodyLeads,
            State::Leading(tenure) if now >= tenure.renewed_at + self.config.leader_deadline() => {
                Reason::HeartbeatOverdue
            }
            _ => self.last_reason,
        }
    }

    /// Returns `true` once the program stops and the session is closed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent_at.is_some_and(|silent_at| now >= silent_at)
    }

    /// Returns `true` if this adapter may try to take the lead.
    fn may_try(&self, now: Instant) -> bool {
        !self.is_silent(now) && self.orders.may_try(&self.config.method, now)
    }

    /// Returns `true` if the writes of this term have failed for the lease or longer. Always `false` if an external
    /// party appoints leaders: that party must judge this itself.
    fn has_failed(&self, tenure: &Tenure) -> bool {
        let has_failed = |failing: Failing| failing.last >= failing.since.max(tenure.began_at) + self.config.lease;
        matches!(self.config.method, Method::AdvisoryLock(_)) && self.failing.is_some_and(has_failed)
    }

    /// Returns the reason why the session must be closed, if it must be and is not being closed already.
    fn reason_to_close(&self, now: Instant) -> Option<Reason> {
        match &self.state {
            State::Closing { .. } | State::Stopped => None,
            _ if self.stopping => Some(Reason::Shutdown),
            State::Preparing(tenure) | State::Leading(tenure)
                if now >= tenure.renewed_at + self.config.leader_deadline() =>
            {
                Some(Reason::HeartbeatOverdue)
            }
            State::Locked | State::Preparing(_) | State::Leading(_)
                if !self.orders.may_lead(&self.config.method, now) =>
            {
                Some(Reason::Requested)
            }
            State::Preparing(_) | State::Leading(_) if self.is_silent(now) => Some(Reason::PrometheusTimeout),
            State::Preparing(tenure) | State::Leading(tenure) if self.has_failed(tenure) => Some(Reason::WritesFailing),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
