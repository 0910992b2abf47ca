//! The model of the server: sessions, one lock, one row.

use std::time::Duration;

use uuid::Uuid;

use super::super::{Action, LeaderRow};
use super::world::{Event, Reply, World};
use crate::election::role::Leader;
use crate::storage::fence::Fence;

/// Time, in ms, after which a writer of an old term is terminated.
const DRAIN_PATIENCE: u64 = 500;

/// The server: sessions, one lock, one row.
#[derive(Default)]
pub(super) struct Server {
    pub(super) down_until: u64,
    pub(super) sessions: Vec<Session>,
    pub(super) lock: Option<Holder>,
    pub(super) term: i64,
    pub(super) token: Uuid,
    pub(super) holder: usize,
    pub(super) heartbeat: Option<u64>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) last_committed_term: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Holder {
    Session(usize),
    Stranger { until: u64 },
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) owner: usize,
    pub(super) alive: bool,
    /// `u64::MAX` while a statement waits for a lock, else 0. A running statement keeps the session from being idle.
    pub(super) busy_until: u64,
    pub(super) heard_at: u64,
    /// The arrival of the last message. Messages of one session arrive in order.
    pub(super) last_arrival: u64,
    /// Ended by an administrator or a restart, not because it was silent.
    pub(super) is_forced: bool,
}

pub(super) struct Transaction {
    pub(super) fence: Fence,
    pub(super) ends_at: u64,
}

impl World {
    /// Does what the server does by itself.
    pub(super) fn serve(&mut self) {
        for session in 0..self.server.sessions.len() {
            let known = &self.server.sessions[session];
            if known.alive && self.ends_at(known) <= self.now {
                self.end(session);
            }
        }
        if let Some(Holder::Stranger { until }) = self.server.lock
            && until <= self.now
        {
            self.server.lock = None;
        }
        let (ended, open) = std::mem::take(&mut self.server.transactions)
            .into_iter()
            .partition::<Vec<_>, _>(|one| one.ends_at <= self.now);
        self.server.transactions = open;
        for transaction in ended {
            assert_eq!(transaction.fence.token, self.server.token, "an old term's write commits in a new term");
            assert!(transaction.fence.term >= self.server.last_committed_term, "terms interleave");
            self.server.last_committed_term = transaction.fence.term;
        }
    }

    pub(super) fn end(&mut self, session: usize) {
        let known = &mut self.server.sessions[session];
        if !std::mem::take(&mut known.alive) {
            return;
        }
        let owner = known.owner;
        if self.server.lock == Some(Holder::Session(session)) {
            self.server.lock = None;
        }
        self.send_to_adapter(owner, Event::Ended { session });
    }

    pub(super) fn deliver(&mut self, serial: u64, adapter: usize, event: Event) {
        match event {
            Event::Answer { .. } | Event::Ended { .. } => {
                if serial > self.adapters[adapter].born_at_event {
                    self.adapters[adapter].mail.push(event);
                    self.adapters[adapter].wakes_at = self.now;
                }
            }
            Event::Bye { session } => self.end(session),
            Event::Write { fence, lasts } => {
                if self.now >= self.server.down_until && fence.token == self.server.token {
                    self.server.transactions.push(Transaction { fence, ends_at: self.now + lasts });
                } else if self.now >= self.server.down_until {
                    assert!(fence.term < self.server.term, "a write of the present term was refused");
                }
            }
            Event::Ask { session, action, fence, number, waits_since } => {
                if let Some(reply) = self.execute(adapter, session, action, fence, number, waits_since) {
                    self.send_to_adapter(adapter, Event::Answer { number, reply });
                }
            }
        }
    }

    /// Executes a statement at the server. Returns `None` while it waits for a lock.
    pub(super) fn execute(
        &mut self,
        adapter: usize,
        session: Option<usize>,
        action: Action,
        fence: Option<Fence>,
        number: u64,
        waits_since: Option<u64>,
    ) -> Option<Reply> {
        let Some(session) = session else {
            if self.now < self.server.down_until {
                return Some(Reply::Failed);
            }
            self.server.sessions.push(Session {
                owner: adapter,
                alive: true,
                busy_until: 0,
                heard_at: self.now,
                last_arrival: self.now,
                is_forced: false,
            });
            return Some(Reply::Connected(self.server.sessions.len() - 1));
        };
        if !self.server.sessions[session].alive {
            return Some(Reply::Failed);
        }
        self.server.sessions[session].heard_at = self.now;
        self.server.sessions[session].busy_until = 0;
        Some(match action {
            Action::TryLock => {
                assert_ne!(self.server.lock, Some(Holder::Session(session)), "the lock was taken twice");
                let is_free = self.server.lock.is_none();
                if is_free {
                    self.server.lock = Some(Holder::Session(session));
                }
                Reply::Tried(is_free, (!is_free).then(|| self.row()).flatten())
            }
            Action::Observe => Reply::Observed(self.row()),
            Action::RaiseTerm => {
                assert_eq!(self.server.lock, Some(Holder::Session(session)), "a term without the lock");
                let since = waits_since.unwrap_or(self.now);
                let patience_ends = since + DRAIN_PATIENCE;
                if self.now >= patience_ends {
                    self.server.transactions.clear();
                }
                if let Some(ends_at) = self.server.transactions.iter().map(|open| open.ends_at).max() {
                    let again = Event::Ask { session: Some(session), action, fence, number, waits_since: Some(since) };
                    self.server.sessions[session].busy_until = u64::MAX;
                    self.schedule(ends_at.min(patience_ends), adapter, again);
                    return None;
                }
                self.server.term += 1;
                self.terms_begun += 1;
                self.server.token = Uuid::from_u64_pair(self.terms_begun, self.random);
                self.server.holder = adapter;
                self.server.heartbeat = Some(self.now);
                Reply::Term(Fence { group_no: 1, term: self.server.term, token: self.server.token })
            }
            _ => {
                let is_ours = fence.is_some_and(|fence| fence.token == self.server.token);
                if is_ours {
                    self.server.heartbeat = Some(self.now);
                }
                Reply::Heartbeat(is_ours)
            }
        })
    }

    pub(super) fn row(&self) -> Option<LeaderRow> {
        self.server.heartbeat.map(|heartbeat| LeaderRow {
            leader: Leader { holder: self.server.holder.to_string(), term: self.server.term },
            heartbeat_age: Duration::from_millis(self.now - heartbeat),
            yields_for: None,
        })
    }
}
