//! Orders of an operator or an external party to an adapter. Pure.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::Method;

/// An order to one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lead. Only allowed if an external party appoints leaders.
    Lead,
    /// Give up the lead to another adapter.
    Resign,
    /// Give up the lead to a named adapter.
    HandOver {
        /// The successor's name, as it stands in the group's row.
        to: String,
    },
    /// Give up the lead and stay excluded from elections until released.
    Hold,
    /// Take part in elections again.
    Release,
}

impl Order {
    /// Returns the word for the order in the log, as on the command line.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Lead => "lead",
            Self::Resign => "resign",
            Self::HandOver { .. } => "hand-over",
            Self::Hold => "hold",
            Self::Release => "release",
        }
    }

    /// Returns the adapter that the order names.
    pub(super) fn to(&self) -> Option<&str> {
        match self {
            Self::HandOver { to } => Some(to),
            _ => None,
        }
    }
}

/// The reason why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The adapter does not lead, so it cannot give up the lead.
    #[error("this adapter does not lead its group: ask the one that does, which /status.json names")]
    NotLeader,
    /// The adapter is excluded from elections.
    #[error("this adapter is held out of elections: release it first")]
    Held,
    /// No leader can be appointed: leaders are elected by advisory lock.
    #[error(
        "this group's leader is not told: it is who holds an advisory lock; ask the leader to resign or to hand over, or \
         start both adapters with -leader-election-rest"
    )]
    NotAppointable,
    /// Only the external party can order this, because it appoints leaders.
    #[error("this group's leader is told (-leader-election-rest): tell the other one to lead, and this one ends")]
    Appointed,
    /// No other adapter of the group has this name.
    #[error("no other adapter of this group is called {to:?}; those connected are: {}", names(connected))]
    NoSuchPeer {
        /// The name given.
        to: String,
        /// The names that are possible.
        connected: Vec<String>,
    },
    /// The lead was lost in another way before the hand-over.
    #[error("the lead was lost ({0}) before it could be handed over")]
    Lost(&'static str),
    /// The order was not carried out in time.
    #[error("not done within {after:?} ({reason}){}", trouble.as_ref().map_or(String::new(), |why| format!(": {why}")))]
    Overdue {
        /// The time for which the adapter tried.
        after: Duration,
        /// The reason for the adapter's role.
        reason: &'static str,
        /// The last error of the database, if it fails.
        trouble: Option<String>,
    },
    /// The adapter is stopping and takes no more orders.
    #[error("the adapter is stopping")]
    Stopping,
}

fn names(connected: &[String]) -> String {
    if connected.is_empty() { "none".to_owned() } else { connected.join(", ") }
}

/// The orders in force.
#[derive(Clone, Debug)]
pub(super) struct StandingOrders {
    /// The order that a caller waits for.
    pub(super) pending: Option<Pending>,
    /// The refusal of an order, until `Machine::outcome` returns it.
    pub(super) refused: Option<Refusal>,
    pub(super) is_held: bool,
    appointed: Option<Appointed>,
    out: Option<Out>,
    /// While this time is not over, another adapter is the named successor.
    yields_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) order: Order,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// `true` once the successor is written to the group's row.
    pub(super) is_named: bool,
}

/// The state of an order to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appointed {
    /// Not carried out yet. Valid whoever leads.
    Pending,
    /// Carried out by the term of this token. Once another term has begun, another adapter was appointed later.
    InTerm(Uuid),
}

/// A period after this adapter gave up the lead, in which it does not take the lead again.
#[derive(Clone, Copy, Debug)]
struct Out {
    until: Instant,
    /// The term given up. A later term shows that another adapter took the lead.
    term: i64,
}

impl StandingOrders {
    pub(super) fn new(is_held: bool) -> Self {
        Self { pending: None, refused: None, is_held, appointed: None, out: None, yields_until: None }
    }

    /// Takes an order. `term` is the term in which this adapter leads, if it does.
    pub(super) fn give(
        &mut self,
        order: Order,
        method: &Method,
        term: Option<i64>,
        out_until: Instant,
    ) -> Result<(), Refusal> {
        match &order {
            Order::Lead if matches!(method, Method::AdvisoryLock(_)) => return Err(Refusal::NotAppointable),
            Order::Lead if self.is_held => return Err(Refusal::Held),
            Order::Lead => {
                self.appointed = Some(Appointed::Pending);
                self.out = None;
            }
            Order::Resign if term.is_none() && self.appointed.is_none() => return Err(Refusal::NotLeader),
            Order::Resign => self.stand_back(term, out_until),
            Order::HandOver { .. } if matches!(method, Method::External(_)) => return Err(Refusal::Appointed),
            Order::HandOver { .. } if term.is_none() => return Err(Refusal::NotLeader),
            Order::HandOver { .. } => {}
            Order::Hold => {
                self.is_held = true;
                self.appointed = None;
            }
            Order::Release => {
                self.is_held = false;
                self.out = None;
            }
        }
        Ok(())
    }

    /// Ends an appointment and, until `until`, lets other adapters take the lead after `term`.
    pub(super) fn stand_back(&mut self, term: Option<i64>, until: Instant) {
        self.appointed = None;
        self.out = term.map(|term| Out { until, term });
    }

    /// Returns `true` if this adapter may take or keep the lead.
    pub(super) fn may_lead(&self, method: &Method, now: Instant) -> bool {
        let is_out = self.out.is_some_and(|out| now < out.until);
        !self.is_held && !is_out && (matches!(method, Method::AdvisoryLock(_)) || self.appointed.is_some())
    }

    /// Returns `true` if this adapter may take the lead now. An appointed adapter need not yield to a named successor.
    pub(super) fn may_try(&self, method: &Method, now: Instant) -> bool {
        let yields = matches!(method, Method::AdvisoryLock(_)) && self.yields_until.is_some_and(|until| now < until);
        self.may_lead(method, now) && !yields
    }

    /// Returns `true` if it is not yet proven that the term in force is the one that was ordered.
    pub(super) fn is_newly_appointed(&self) -> bool {
        self.appointed == Some(Appointed::Pending)
    }

    /// Returns the token that must be in force for this adapter to begin the next term; `None` means any token.
    pub(super) fn follows(&self) -> Option<Uuid> {
        match self.appointed {
            Some(Appointed::InTerm(token)) => Some(token),
            _ => None,
        }
    }

    /// Notes that the own term is in force.
    pub(super) fn on_proven(&mut self, token: Uuid) {
        if let Some(appointed) = &mut self.appointed {
            *appointed = Appointed::InTerm(token);
        }
    }

    /// Notes that another term than the own one has begun.
    pub(super) fn on_fenced(&mut self) {
        self.appointed = self.appointed.filter(|appointed| *appointed == Appointed::Pending);
    }

    /// Notes that the group's row was read.
    pub(super) fn on_observed(&mut self, term: Option<i64>, yields_until: Option<Instant>) {
        self.yields_until = yields_until;
        self.out = self.out.filter(|out| term.is_none_or(|term| term <= out.term));
    }

    /// Withdraws an order to lead that no caller waits for any more.
    pub(super) fn withdraw(&mut self) {
        if self.is_newly_appointed() {
            self.appointed = None;
        }
    }
}
