//! A model of the server: lock sessions, the group's row, fenced transactions, request keys, and what is stored.

use std::collections::{BTreeMap, HashSet, VecDeque};

use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::gaps::{Hole, LOOK_AROUND_MS, Stored as StoredTimes};
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::world::{Address, Ms};

/// As the driver has it, for scrapes of a few seconds.
const UNSURE_MS: i64 = 14_000;

/// A committed sample. Its value is the true time at which it was scraped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) time_ms: i64,
    pub(crate) value: f64,
    pub(crate) replica: usize,
    pub(crate) term: i64,
    /// It fills a hole.
    pub(crate) fills: bool,
}

#[derive(Debug)]
pub(crate) struct LockSession {
    pub(crate) who: Address,
    pub(crate) last_active: Ms,
    /// In a statement that waits: not idle.
    pub(crate) is_waiting: bool,
}

/// By what right a term is raised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    Lock,
    Told,
    Follows(Uuid),
}

/// The group's row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) term: i64,
    pub(crate) token: Uuid,
    pub(crate) holder: usize,
    pub(crate) heartbeat: Option<Ms>,
    /// Who is to lead next, and until when nobody else.
    pub(crate) successor: Option<(usize, Ms)>,
    pub(crate) watermark: Option<i64>,
    pub(crate) clock_offsets_ms: Vec<i64>,
    pub(crate) holes: Vec<Hole>,
    /// Of those who stored around holes, the least and the most.
    pub(crate) hole_clocks_ms: Option<(i64, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Compares what is in doubt with what is stored, before it shows the fence.
    Comparing,
    /// Behind the exclusive drain.
    Fence,
    /// Another transaction has claimed the same key and has not ended.
    Key,
    /// The server works on it.
    Copying,
    /// The client is to commit.
    Idle,
}

#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) id: u64,
    pub(crate) who: Address,
    pub(crate) op: u64,
    pub(crate) key: Uuid,
    pub(crate) rows: Vec<Row>,
    pub(crate) fence: Fence,
    pub(crate) stage: Stage,
    /// It fills a hole, by this clock.
    pub(crate) fills: Option<i64>,
}

/// What the server has to tell somebody.
#[derive(Debug)]
pub(crate) enum Told {
    /// The exclusive fence is granted to this session.
    Drained(u64),
    /// A transaction may begin its COPY.
    Copy(u64),
    /// A transaction's key is taken by a committed one.
    AlreadyThere(Address, u64),
    /// It failed.
    Failed(Address, u64),
}

#[derive(Default)]
pub(crate) struct Server {
    pub(crate) is_up: bool,
    pub(crate) sessions: BTreeMap<u64, LockSession>,
    pub(crate) lock: Option<(u64, u32)>,
    pub(crate) group: Group,
    pub(crate) exclusive: Option<u64>,
    pub(crate) waiting: Option<u64>,
    pub(crate) transactions: VecDeque<Transaction>,
    pub(crate) keys: HashSet<Uuid>,
    pub(crate) series: Vec<Vec<Stored>>,
    pub(crate) bug: Option<Bug>,
}

impl Stage {
    fn holds_fence(self) -> bool {
        !matches!(self, Stage::Comparing | Stage::Fence)
    }
}

impl Group {
    /// A term has been raised: what it leaves in doubt, as the driver has it noted.
    pub(crate) fn open_hole(&mut self, watermark: Option<i64>, now_ms: i64) {
        let newest_ms = self.holes.iter().map(|hole| hole.lower_ms).max();
        let lower_ms = watermark.filter(|at_ms| *at_ms <= now_ms).or(newest_ms).unwrap_or(now_ms - 3 * 3_600_000);
        self.holes.retain(|hole| hole.lower_ms != lower_ms);
        self.holes.push(Hole { lower_ms, upper_ms: now_ms + UNSURE_MS });
        for clock_ms in self.clock_offsets_ms.clone() {
            self.fills_by(clock_ms);
        }
    }

    pub(crate) fn fills_by(&mut self, clock_ms: i64) {
        let (least_ms, most_ms) = self.hole_clocks_ms.unwrap_or((clock_ms, clock_ms));
        self.hole_clocks_ms = Some((least_ms.min(clock_ms), most_ms.max(clock_ms)));
    }
}

impl Server {
    /// What is stored around rows in doubt.
    pub(crate) fn stored_around(&self, series: &[i64], from_ms: i64, to_ms: i64) -> StoredTimes {
        let around = from_ms - LOOK_AROUND_MS..=to_ms + LOOK_AROUND_MS;
        let times = |id: &i64| {
            let stored = &self.series[usize::try_from(*id).unwrap_or(0)];
            stored.iter().map(|row| row.time_ms).filter(|time_ms| around.contains(time_ms)).collect()
        };
        StoredTimes { times: series.iter().map(|id| (*id, times(id))).collect(), clocks_ms: self.group.hole_clocks_ms }
    }

    /// `true` if the session has the lock now.
    pub(crate) fn try_lock(&mut self, session: u64) -> bool {
        match &mut self.lock {
            Some((holder, count)) if *holder == session => {
                *count += 1;
                true
            }
            Some(_) => false,
            None => {
                self.lock = Some((session, 1));
                true
            }
        }
    }

    pub(crate) fn unlock_once(&mut self, session: u64) {
        if let Some((holder, count)) = &mut self.lock
            && *holder == session
        {
            *count -= 1;
            if *count == 0 {
                self.lock = None;
            }
        }
    }

    /// Ends a lock session and whatever it held.
    pub(crate) fn end_session(&mut self, session: u64) -> Option<LockSession> {
        if self.lock.is_some_and(|(holder, _)| holder == session) {
            self.lock = None;
        }
        if self.exclusive == Some(session) {
            self.exclusive = None;
        }
        if self.waiting == Some(session) {
            self.waiting = None;
        }
        self.sessions.remove(&session)
    }

    /// Grants what can be granted.
    pub(crate) fn settle(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        if let (Some(session), None) = (self.waiting, self.exclusive) {
            let holds = self.transactions.iter().any(|transaction| transaction.stage.holds_fence());
            if !holds || self.bug == Some(Bug::SkipDrain) {
                self.waiting = None;
                self.exclusive = Some(session);
                told.push(Told::Drained(session));
            }
        }
        let unfenced = self.bug == Some(Bug::WriteUnfenced);
        let mut at = 0;
        while at < self.transactions.len() {
            let (stage, key) = (self.transactions[at].stage, self.transactions[at].key);
            let may_share = (self.exclusive.is_none() && self.waiting.is_none()) || unfenced;
            if stage == Stage::Fence && may_share {
                if self.transactions[at].fence.token != self.group.token && !unfenced {
                    if let Some(transaction) = self.transactions.remove(at) {
                        told.push(Told::Failed(transaction.who, transaction.op));
                    }
                    continue;
                }
                self.transactions[at].stage = Stage::Key;
            }
            if self.transactions[at].stage == Stage::Key {
                if self.keys.contains(&key) {
                    if let Some(transaction) = self.transactions.remove(at) {
                        told.push(Told::AlreadyThere(transaction.who, transaction.op));
                    }
                    continue;
                }
                let claimed = self
                    .transactions
                    .iter()
                    .any(|other| other.key == key && matches!(other.stage, Stage::Copying | Stage::Idle));
                if !claimed {
                    self.transactions[at].stage = Stage::Copying;
                    told.push(Told::Copy(self.transactions[at].id));
                }
            }
            at += 1;
        }
        told
    }

    pub(crate) fn transaction(&mut self, id: u64) -> Option<&mut Transaction> {
        self.transactions.iter_mut().find(|transaction| transaction.id == id)
    }

    /// Takes a transaction out, to commit or to roll it back.
    pub(crate) fn end(&mut self, id: u64) -> Option<Transaction> {
        let at = self.transactions.iter().position(|transaction| transaction.id == id)?;
        self.transactions.remove(at)
    }

    /// Ends every backend that holds the fence shared.
    pub(crate) fn terminate_writers(&mut self) -> Vec<Told> {
        let (kept, ended): (VecDeque<_>, VecDeque<_>) =
            self.transactions.drain(..).partition(|transaction| !transaction.stage.holds_fence());
        self.transactions = kept;
        ended.iter().map(|transaction| Told::Failed(transaction.who, transaction.op)).collect()
    }

    /// The last stored time of a series between two times.
    pub(crate) fn last_time(&self, series: usize, from_ms: i64, to_ms: i64) -> Option<i64> {
        let stored = &self.series[series];
        stored.iter().rev().map(|row| row.time_ms).filter(|time_ms| (from_ms..=to_ms).contains(time_ms)).max()
    }
}
