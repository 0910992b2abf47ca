//! What an operator, or an outside party, orders of an adapter. Pure.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::Method;

/// An order, to one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lead: only where leaders are appointed.
    Lead,
    /// Give the lead up, and let another have it.
    Resign,
    /// The same, and name who is to have it.
    HandOver {
        /// As its holder's name is in the group's row.
        to: String,
    },
    /// Give the lead up and stay out of elections until released.
    Hold,
    /// Take part in elections again.
    Release,
}

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has nothing to give up.
    #[error("this adapter does not lead its group: ask the one that does, which /status.json names")]
    NotLeader,
    /// It is kept out of elections.
    #[error("this adapter is held out of elections: release it first")]
    Held,
    /// It is not for anybody to tell.
    #[error(
        "this group's leader is not appointed: it is who holds an advisory lock; ask the leader to resign or to hand over, or \
         start both adapters with -leader-election-rest"
    )]
    NotAppointable,
    /// It is for an outside party to tell.
    #[error("this group's leader is told (-leader-election-rest): tell the other one to lead, and this one ends")]
    Appointed,
    /// Nobody by that name takes part.
    #[error("no other adapter of this group is called {to:?}; those connected are: {}", names(connected))]
    NoSuchPeer {
        /// The name given.
        to: String,
        /// Names that would do.
        connected: Vec<String>,
    },
    /// The lead was lost in another way before it could be handed over.
    #[error("the lead was lost ({0}) before it could be handed over")]
    Lost(&'static str),
    /// It took too long.
    #[error("not done within {after:?} ({reason}){}", trouble.as_ref().map_or(String::new(), |why| format!(": {why}")))]
    Overdue {
        /// How long it was tried.
        after: Duration,
        /// Why the role is what it is.
        reason: &'static str,
        /// What the database said last, if it fails.
        trouble: Option<String>,
    },
    /// Nobody takes orders any more.
    #[error("the adapter is stopping")]
    Stopping,
}

fn names(connected: &[String]) -> String {
    if connected.is_empty() { "none".to_owned() } else { connected.join(", ") }
}

/// The orders in force.
#[derive(Clone, Debug)]
pub(super) struct StandingOrders {
    /// The one that somebody waits for.
    pub(super) pending: Option<Pending>,
    /// What became of one that needed no doing.
    pub(super) refused: Option<Refusal>,
    pub(super) is_held: bool,
    appointed: Option<Appointed>,
    out: Option<Out>,
    /// Another adapter is named to lead next.
    yields_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) order: Order,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// It is written down who is to lead next.
    pub(super) is_named: bool,
}

/// Told to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appointed {
    /// And not done yet: whoever leads.
    Pending,
    /// Done by the term of this token: once another term has begun, another was told later.
    InTerm(Uuid),
}

/// Gave the lead up.
#[derive(Clone, Copy, Debug)]
struct Out {
    until: Instant,
    /// A later one tells that somebody took the lead.
    term: i64,
}

impl StandingOrders {
    pub(super) fn new(is_held: bool) -> Self {
        Self { pending: None, refused: None, is_held, appointed: None, out: None, yields_until: None }
    }

    /// Notes an order of an adapter that leads `term`, or does not lead.
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

    /// Lets others have the lead of after `term`, for a while.
    pub(super) fn stand_back(&mut self, term: Option<i64>, until: Instant) {
        self.appointed = None;
        self.out = term.map(|term| Out { until, term });
    }

    /// Whether this adapter may take the lead, or keep it.
    pub(super) fn may_lead(&self, method: &Method, now: Instant) -> bool {
        let is_out = self.out.is_some_and(|out| now < out.until);
        !self.is_held && !is_out && (matches!(method, Method::AdvisoryLock(_)) || self.appointed.is_some())
    }

    /// Whether this adapter may take the lead now. One that is told to need not wait for whoever is named.
    pub(super) fn may_try(&self, method: &Method, now: Instant) -> bool {
        let yields = matches!(method, Method::AdvisoryLock(_)) && self.yields_until.is_some_and(|until| now < until);
        self.may_lead(method, now) && !yields
    }

    /// Whether it is in doubt that the term in force is the one it was told to begin.
    pub(super) fn is_newly_appointed(&self) -> bool {
        self.appointed == Some(Appointed::Pending)
    }

    /// The term that must be in force for this adapter to begin the next, if it is not free to.
    pub(super) fn follows(&self) -> Option<Uuid> {
        match self.appointed {
            Some(Appointed::InTerm(token)) => Some(token),
            _ => None,
        }
    }

    /// The own term is in force.
    pub(super) fn on_proven(&mut self, token: Uuid) {
        if let Some(appointed) = &mut self.appointed {
            *appointed = Appointed::InTerm(token);
        }
    }

    /// Another term has begun than the own one.
    pub(super) fn on_fenced(&mut self) {
        self.appointed = self.appointed.filter(|appointed| *appointed == Appointed::Pending);
    }

    /// The group's row was read.
    pub(super) fn on_observed(&mut self, term: Option<i64>, yields_until: Option<Instant>) {
        self.yields_until = yields_until;
        self.out = self.out.filter(|out| term.is_none_or(|term| term <= out.term));
    }

    /// Nobody waits any more for the order to lead.
    pub(super) fn withdraw(&mut self) {
        if self.is_newly_appointed() {
            self.appointed = None;
        }
    }
}
