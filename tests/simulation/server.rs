//! Processes of the server: the work of a backend for each connection.

use std::rc::Rc;

use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::around::Around;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::observe::Position;
use prometheus_postgresql_adapter::storage::own_transactions::Gap;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::database::Group;
use crate::kernel::{Ms, TaskId};
use crate::link::End;
use crate::settings::ms;
use crate::world::World;

/// Time after which an idle transaction is ended.
const IDLE_MS: Ms = 5_000;

/// The same for a transaction that reconciles.
const RECONCILER_IDLE_MS: Ms = 1_000;

/// Lock timeout of a statement.
const LOCK_MS: Ms = 5_000;

/// The right under which samples are written.
#[derive(Clone, Debug)]
pub(crate) struct Right {
    pub(crate) sender: SenderNo,
    pub(crate) fence: Option<Fence>,
    pub(crate) reconciled: i64,
    /// By labels: the position of the last observation.
    pub(crate) observed: Option<Rc<Position>>,
    pub(crate) adapter: usize,
}

/// Response in a write transaction.
#[derive(Debug)]
pub(crate) enum Written {
    /// The adapter may send the rows, in the transaction with this id, and the gaps between its own transactions.
    Ready(u64),
    Committed,
    AlreadyThere,
    Fenced,
    Overtaken,
}

/// Response in a reconciliation.
#[derive(Debug)]
pub(crate) enum Compared {
    Around(Around),
    Fenced,
    /// The transaction is committed. Contains the counter of the group.
    Done(i64),
}

/// The evidence on which a term is raised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    Lock,
    Appointed,
    Follows(Uuid),
}

/// A statement on a lock session.
#[derive(Debug)]
pub(crate) enum Ask {
    TryLock,
    Observe,
    /// Waits until no write is under way.
    Drain,
    Raise {
        sender: SenderNo,
        claim: Claim,
    },
    Heartbeat {
        token: Uuid,
    },
    HandOver {
        token: Uuid,
        to: usize,
    },
    /// The unlock of the old adapter. Only an injected bug sends it.
    Unlock,
}

#[derive(Debug)]
pub(crate) enum Told {
    Connected,
    Tried {
        is_obtained: bool,
        group: Option<(Group, Ms)>,
    },
    Drained,
    Raised(Fence),
    Refused,
    /// True if the token is in force.
    Beat(bool),
}

/// Maximum duration of an order. An order that seems to last longer was given before the server's clock was set back.
const ORDERED_MAX_MS: i64 = 300_000;

/// True if an order to yield is in force.
pub(crate) fn yields(until_ms: i64, server_ms: i64) -> bool {
    (server_ms..=server_ms + ORDERED_MAX_MS).contains(&until_ms)
}

impl World {
    fn is_in_force(&self, fence: Option<Fence>) -> bool {
        fence.is_none_or(|fence| self.database.borrow().group.token == Some(fence.token))
    }

    /// Waits for the time that the server works on some rows.
    async fn work(&self) {
        let is_slow = self.now() < self.database.borrow().slow_until;
        let takes = {
            let mut random = self.random.borrow_mut();
            match is_slow || (!self.is_calm() && random.chance(1)) {
                true => random.spread(1, 6_000),
                false => random.between(0, 4),
            }
        };
        self.kernel.sleep(takes).await;
    }

    /// A write transaction. The adapter sends the rows when the transaction is ready for them, and COMMIT directly
    /// after them.
    pub(crate) async fn write(
        self: Rc<Self>,
        end: End<Written, (Vec<Row>, Vec<Gap>)>,
        task: TaskId,
        key: Uuid,
        right: Right,
    ) {
        let Some(_shared) = self.kernel.within(2 * LOCK_MS, self.lock_group(false, task)).await else { return };
        if !self.is_in_force(right.fence) && self.bug != Some(Bug::WriteUnfenced) {
            return end.send(Written::Fenced);
        }
        let reconciled = self.database.borrow().group.reconciled;
        if right.fence.is_some() && reconciled != right.reconciled && self.bug != Some(Bug::IgnoreReconciled) {
            return end.send(Written::Overtaken);
        }
        let mut transaction = self.begin();
        if !transaction.claim(key).await {
            return end.send(Written::AlreadyThere);
        }
        end.send(Written::Ready(transaction.xid));
        let Some((rows, gaps)) = end.next_within(IDLE_MS).await else { return };
        self.work().await;
        if self.database.borrow().has_any(&rows, &right, &gaps, self.server_ms()) {
            return end.send(Written::Overtaken);
        }
        transaction.commit(&rows, &right, false);
        end.send(Written::Committed);
    }

    /// Compares rows with what is stored around them, and then inserts the rows that the adapter sends. Nobody writes
    /// meanwhile.
    pub(crate) async fn reconcile(
        self: Rc<Self>,
        end: End<Compared, Vec<Row>>,
        task: TaskId,
        rows: Vec<Row>,
        (right, is_told): (Right, bool),
        window_ms: i64,
        unbounded: Vec<i64>,
    ) {
        let Some(_exclusive) = self.kernel.within(LOCK_MS, self.lock_group(true, task)).await else { return };
        if !self.is_in_force(right.fence) {
            return end.send(Compared::Fenced);
        }
        let group_no = right.fence.map_or(0, |fence| fence.group_no);
        let around = self.database.borrow().around(&rows, window_ms, &unbounded);
        end.send(Compared::Around(around));
        let Some(missing) = end.next_within(RECONCILER_IDLE_MS).await else { return };
        let transaction = self.begin();
        self.work().await;
        let reconciled = {
            let group = &mut self.database.borrow_mut().group;
            group.reconciled += i64::from(is_told && group_no != 0);
            group.reconciled
        };
        transaction.commit(&missing, &right, true);
        end.send(Compared::Done(if group_no == 0 { 0 } else { reconciled }));
    }

    /// The session that tries the advisory lock. Ends when its client is gone or silent for too long.
    pub(crate) async fn lock_session(self: Rc<Self>, end: End<Told, Ask>, task: TaskId, adapter: usize) {
        let session = Session { world: Rc::clone(&self), number: self.number() };
        self.database.borrow_mut().sessions.insert(session.number, task);
        let timeout = ms(self.settings.election.session_timeout());
        // The group's lock, held while the session raises a term.
        let mut exclusive = Vec::new();
        end.send(Told::Connected);
        // The old adapter's session has no idle timeout.
        let idle_ms = if self.bug == Some(Bug::LockTwice) { 1 << 40 } else { timeout };
        while let Some(ask) = end.next_within(idle_ms).await {
            match ask {
                Ask::TryLock => {
                    let is_obtained = self.try_lock(session.number);
                    if is_obtained {
                        self.say(format_args!("server: adapter {adapter} has the lock"));
                    }
                    end.send(Told::Tried { is_obtained, group: self.observed_group() });
                }
                Ask::Observe => end.send(Told::Tried { is_obtained: false, group: self.observed_group() }),
                Ask::Drain if self.bug == Some(Bug::SkipDrain) => end.send(Told::Drained),
                Ask::Drain => {
                    exclusive.push(self.drain(task).await);
                    end.send(Told::Drained);
                }
                Ask::Raise { sender, claim } => {
                    let server_ms = self.server_ms();
                    let may = {
                        let group = &self.database.borrow().group;
                        match claim {
                            Claim::Appointed => true,
                            Claim::Follows(token) => group.token == Some(token),
                            Claim::Lock => {
                                let is_meant = |(to, until)| to == Some(adapter) || !yields(until, server_ms);
                                group.successor.is_none_or(is_meant)
                            }
                        }
                    };
                    end.send(if may { Told::Raised(self.raise(adapter, sender)) } else { Told::Refused });
                    exclusive.clear();
                }
                Ask::Heartbeat { token } => {
                    if self.bug == Some(Bug::LockTwice) {
                        self.try_lock(session.number);
                    }
                    let server_ms = self.server_ms();
                    let group = &mut self.database.borrow_mut().group;
                    let is_ours = group.token == Some(token);
                    if is_ours {
                        group.heartbeat_ms = Some(server_ms);
                        self.heartbeat_at.set(self.now());
                    }
                    end.send(Told::Beat(is_ours));
                }
                Ask::HandOver { token, to } => {
                    let until = self.server_ms() + ms(self.settings.election.cooldown());
                    let group = &mut self.database.borrow_mut().group;
                    let is_ours = group.token == Some(token);
                    if is_ours {
                        group.successor = Some((Some(to), until));
                    }
                    end.send(Told::Beat(is_ours));
                }
                Ask::Unlock => {
                    if let Some((holder, count)) = &mut self.database.borrow_mut().lock
                        && *holder == session.number
                    {
                        *count -= 1;
                    }
                    self.database.borrow_mut().lock.take_if(|(_, count)| *count == 0);
                }
            }
        }
    }

    /// Waits for writers to end. Terminates those that remain after `drain_patience`, and then waits for the lock
    /// again.
    pub(crate) async fn drain(self: &Rc<Self>, task: TaskId) -> crate::database::Held {
        let patience = ms(self.settings.election.drain_patience());
        if let Some(held) = self.kernel.within(patience, self.lock_group(true, task)).await {
            return held;
        }
        let holders = self.database.borrow().holders(task);
        self.say(format_args!("server: terminates {} that hold the fence", holders.len()));
        for holder in holders {
            self.kernel.kill_task(holder);
        }
        self.lock_group(true, task).await
    }

    fn try_lock(&self, session: u64) -> bool {
        let lock = &mut self.database.borrow_mut().lock;
        match lock {
            Some((holder, count)) if *holder == session => {
                *count += 1;
                true
            }
            Some(_) => false,
            None => {
                *lock = Some((session, 1));
                true
            }
        }
    }

    /// Returns the group's row and the age of its heartbeat.
    fn observed_group(&self) -> Option<(Group, Ms)> {
        let database = self.database.borrow();
        Some((database.group.clone(), (self.server_ms() - database.group.heartbeat_ms?).abs()))
    }

    /// Raises the term.
    pub(crate) fn raise(&self, holder: usize, sender: SenderNo) -> Fence {
        let (server_ms, token) = (self.server_ms(), self.uuid());
        let mut database = self.database.borrow_mut();
        let group = &mut database.group;
        group.term += 1;
        (group.token, group.holder, group.sender) = (Some(token), holder, Some(sender));
        (group.heartbeat_ms, group.successor) = (Some(server_ms), None);
        self.heartbeat_at.set(self.now());
        let fence = Fence { group_no: 1, term: group.term, token };
        drop(database);
        self.say(format_args!("server: term {} of {holder}", fence.term));
        fence
    }
}

/// Releases the advisory lock on drop.
struct Session {
    world: Rc<World>,
    number: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut database = self.world.database.borrow_mut();
        database.lock.take_if(|(holder, _)| *holder == self.number);
        database.sessions.remove(&self.number);
        drop(database);
        self.world.database_changed.tell();
    }
}
