//! State of the server: leader, locks, transactions, and stored samples.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::around::{Around, StoredTime};
use prometheus_postgresql_adapter::storage::ingest::SENT_AGAIN_MS;
use prometheus_postgresql_adapter::storage::own_transactions::Gap;
use prometheus_postgresql_adapter::storage::position::Position;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::by_labels::Report;
use crate::kernel::{Ms, NodeId, TaskId};
use crate::server::Right;
use crate::world::World;

/// The group's row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) term: i64,
    pub(crate) token: Option<Uuid>,
    pub(crate) holder: usize,
    pub(crate) sender: Option<SenderNo>,
    /// By the server's clock, like all times in this struct.
    pub(crate) heartbeat_ms: Option<i64>,
    /// The next leader, or `None` for any other one, and the end of the order.
    pub(crate) successor: Option<(Option<usize>, i64)>,
    pub(crate) held_out: Vec<usize>,
    pub(crate) reconciled: i64,
}

/// A place in the queue for the group's lock.
struct Turn {
    number: u64,
    is_exclusive: bool,
    task: TaskId,
}

pub(crate) struct Database {
    pub(crate) is_up: bool,
    pub(crate) node: NodeId,
    pub(crate) slow_until: Ms,
    pub(crate) group: Group,
    /// By replica.
    pub(crate) senders: BTreeMap<usize, SenderNo>,
    pub(crate) offsets_ms: BTreeMap<SenderNo, i64>,
    /// The advisory lock: the session that has it, and how many times the session has taken it.
    pub(crate) lock: Option<(u64, u32)>,
    /// Sessions that try the advisory lock.
    pub(crate) sessions: BTreeMap<u64, TaskId>,
    turns: Vec<Turn>,
    pub(crate) keys: HashSet<Uuid>,
    pub(crate) claims: HashSet<Uuid>,
    next_xid: u64,
    running: BTreeSet<u64>,
    ended: u64,
    /// By transaction: sender, series and time.
    hot: BTreeMap<u64, Vec<(SenderNo, i64, i64)>>,
    /// By series and time: the sender, if known.
    times: BTreeMap<(i64, i64), Option<SenderNo>>,
    pub(crate) sealed_newest_ms: i64,
    /// Snapshot of the transactions whose rows sealing may have removed.
    pub(crate) sealed_to: Position,
    /// The judge's numbers of series, by id.
    pub(crate) series: Vec<usize>,
    pub(crate) reports: BTreeMap<(usize, Uuid), Report>,
}

/// Result of an observation.
pub(crate) struct Observed {
    pub(crate) position: Position,
    pub(crate) is_complete: bool,
    pub(crate) group: Group,
    pub(crate) offsets_ms: BTreeMap<SenderNo, i64>,
    pub(crate) server_ms: i64,
    /// Clock offset of the adapter that observes, if it could be measured.
    pub(crate) clock_offset_ms: Option<i64>,
    pub(crate) newest_series_no: i64,
    pub(crate) sealed_newest_ms: i64,
    /// Latest time of any hot row.
    pub(crate) hot_newest_ms: i64,
    pub(crate) rows: Vec<(SenderNo, i64, i64)>,
}

/// A transaction with an id. Rolled back on drop.
pub(crate) struct Transaction {
    world: Rc<World>,
    pub(crate) xid: u64,
    claim: Option<Uuid>,
}

/// The group's lock, held until drop.
pub(crate) struct Held {
    world: Rc<World>,
    number: u64,
}

impl Database {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            is_up: true,
            node,
            slow_until: 0,
            group: Group::default(),
            senders: BTreeMap::new(),
            offsets_ms: BTreeMap::new(),
            lock: None,
            sessions: BTreeMap::new(),
            turns: Vec::new(),
            keys: HashSet::new(),
            claims: HashSet::new(),
            next_xid: 100,
            running: BTreeSet::new(),
            ended: 99,
            hot: BTreeMap::new(),
            times: BTreeMap::new(),
            sealed_newest_ms: i64::MIN,
            sealed_to: Position { xmax: 1, xip: Vec::new() },
            series: Vec::new(),
            reports: BTreeMap::new(),
        }
    }

    pub(crate) fn snapshot(&self) -> Position {
        let xmax = self.ended + 1;
        Position { xmax, xip: self.running.range(..xmax).copied().collect() }
    }

    /// Returns the number of a sender; creates it if it does not exist.
    pub(crate) fn sender_no(&mut self, replica: usize) -> SenderNo {
        let next = SenderNo(i32::try_from(self.senders.len()).unwrap_or(0) + 1);
        *self.senders.entry(replica).or_insert(next)
    }

    /// Returns the ids of series; creates those that do not exist.
    pub(crate) fn find_series(&mut self, series: &[usize]) -> HashMap<usize, i64> {
        let find = |series: &usize| {
            let place = self.series.iter().position(|known| known == series).unwrap_or_else(|| {
                self.series.push(*series);
                self.series.len() - 1
            });
            #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
            (*series, place as i64 + 1)
        };
        series.iter().map(find).collect()
    }

    /// True if one of these samples is old, and the same sender has one of them in a row of a transaction in `gaps` that
    /// was not observed, or may have had it in such a row before it was sealed.
    pub(crate) fn has_any(&self, rows: &[Row], right: &Right, gaps: &[Gap], server_ms: i64) -> bool {
        let Some(observed) = &right.observed else { return false };
        if rows.iter().all(|row| row.time_ms >= server_ms - SENT_AGAIN_MS) {
            return false;
        }
        let times: HashSet<(SenderNo, i64, i64)> =
            rows.iter().map(|row| (right.sender, row.series_id, row.time_ms)).collect();
        let in_gap = |gap: &Gap| self.hot.range(gap.after + 1..gap.before);
        let is_unseen = |(xid, _): &(&u64, _)| !observed.sees(**xid);
        let mut others = gaps.iter().flat_map(in_gap).filter(is_unseen).flat_map(|(_, rows)| rows);
        !observed.covers(&self.sealed_to) || others.any(|sample| times.contains(sample))
    }

    pub(crate) fn observe(&self, from: Option<&Position>, except: &[SenderNo], server_ms: i64) -> Observed {
        let position = self.snapshot();
        let is_new = |xid: u64| from.is_none_or(|from| !from.sees(xid));
        let since = from.map_or(0, Position::xmin);
        let rows = self.hot.range(since..).filter(|(xid, _)| is_new(**xid)).flat_map(|(_, rows)| rows);
        Observed {
            is_complete: from.is_some_and(|from| from.is_followed(&position, &self.sealed_to)),
            position,
            group: self.group.clone(),
            offsets_ms: self.offsets_ms.clone(),
            server_ms,
            clock_offset_ms: None,
            newest_series_no: i64::try_from(self.series.len()).unwrap_or(0),
            sealed_newest_ms: self.sealed_newest_ms,
            hot_newest_ms: self.hot.values().flatten().map(|(.., time_ms)| *time_ms).max().unwrap_or(i64::MIN),
            rows: rows.filter(|(sender, ..)| !except.contains(sender)).copied().collect(),
        }
    }

    /// Returns what is stored around rows. `rows` are in the order of series and time.
    pub(crate) fn around(&self, rows: &[Row], window_ms: i64, unbounded: &[i64]) -> Around {
        let mut around = Around::default();
        for of_series in rows.chunk_by(|one, next| one.series_id == next.series_id) {
            let series_id = of_series[0].series_id;
            let mut times: BTreeMap<i64, Option<SenderNo>> = BTreeMap::new();
            for row in of_series {
                let window = (series_id, row.time_ms.saturating_sub(window_ms))
                    ..=(series_id, row.time_ms.saturating_add(window_ms));
                times.extend(self.times.range(window).map(|((_, time_ms), sender)| (*time_ms, *sender)));
            }
            let stored = |(time_ms, sender)| StoredTime { time_ms, sender, is_marker: false };
            around.times.insert(series_id, times.into_iter().map(stored).collect());
            let since = of_series[0].time_ms.saturating_sub(window_ms);
            if unbounded.contains(&series_id)
                && let Some(((_, time_ms), sender)) =
                    self.times.range((series_id, since)..=(series_id, i64::MAX)).next_back()
            {
                around.last_ms.insert(series_id, stored((*time_ms, *sender)));
            }
        }
        around
    }

    /// Moves hot rows to the sealed ones: those of transactions below `below`, or all if `below` is `None`.
    pub(crate) fn seal(&mut self, below: Option<u64>) -> usize {
        let xids: Vec<u64> = self.hot.range(..below.unwrap_or(u64::MAX)).map(|(xid, _)| *xid).collect();
        let mut count = 0;
        for xid in xids {
            for (_, series_id, time_ms) in self.hot.remove(&xid).unwrap_or_default() {
                self.times.insert((series_id, time_ms), None);
                self.sealed_newest_ms = self.sealed_newest_ms.max(time_ms);
                count += 1;
            }
        }
        if count > 0 {
            self.sealed_to = self.snapshot();
        }
        count
    }

    pub(crate) fn is_sealed(&self, series_id: i64, time_ms: i64) -> bool {
        self.times.get(&(series_id, time_ms)) == Some(&None)
    }

    /// Returns the lowest id of a transaction that may still end.
    pub(crate) fn xmin(&self) -> u64 {
        self.running.first().copied().unwrap_or(self.ended + 1)
    }

    fn may_go(&self, number: u64) -> bool {
        let Some(place) = self.turns.iter().position(|turn| turn.number == number) else { return false };
        if self.turns[place].is_exclusive {
            place == 0
        } else {
            !self.turns[..place].iter().any(|turn| turn.is_exclusive)
        }
    }

    /// True if nobody has the group's lock or waits for it.
    pub(crate) fn is_free(&self) -> bool {
        self.turns.is_empty()
    }

    /// Returns the tasks that have the group's lock, except the task `but`, which is in the queue.
    pub(crate) fn holders(&self, but: TaskId) -> Vec<TaskId> {
        let has = |turn: &&Turn| turn.task != but && self.may_go(turn.number);
        self.turns.iter().filter(has).map(|turn| turn.task).collect()
    }

    /// Returns the session that has the advisory lock, or else the first session that tries it.
    pub(crate) fn lock_task(&self) -> Option<TaskId> {
        let holder = self.lock.and_then(|(session, _)| self.sessions.get(&session));
        holder.or(self.sessions.values().next()).copied()
    }

    /// Returns the tasks that write or wait to write.
    pub(crate) fn writers(&self) -> Vec<TaskId> {
        let is_session = |task| self.sessions.values().any(|session| *session == task);
        self.turns.iter().map(|turn| turn.task).filter(|task| !is_session(*task)).collect()
    }
}

impl World {
    pub(crate) fn server_ms(&self) -> i64 {
        self.clock_ms(None)
    }

    /// Waits for the group's lock.
    pub(crate) async fn lock_group(self: &Rc<Self>, is_exclusive: bool, task: TaskId) -> Held {
        let number = self.number();
        self.database.borrow_mut().turns.push(Turn { number, is_exclusive, task });
        let held = Held { world: Rc::clone(self), number };
        while !self.database.borrow().may_go(number) {
            self.database_changed.changed().await;
        }
        held
    }

    pub(crate) fn begin(self: &Rc<Self>) -> Transaction {
        let mut database = self.database.borrow_mut();
        let xid = database.next_xid;
        database.next_xid += 1;
        database.running.insert(xid);
        Transaction { world: Rc::clone(self), xid, claim: None }
    }
}

impl Transaction {
    /// Claims a request's key. Returns `false` if an earlier attempt is committed.
    pub(crate) async fn claim(&mut self, key: Uuid) -> bool {
        loop {
            {
                let mut database = self.world.database.borrow_mut();
                if database.keys.contains(&key) {
                    return false;
                }
                if database.claims.insert(key) {
                    self.claim = Some(key);
                    return true;
                }
            }
            self.world.database_changed.changed().await;
        }
    }

    pub(crate) fn commit(self, rows: &[Row], right: &Right, is_reconciled: bool) {
        let world = Rc::clone(&self.world);
        if let Some(key) = self.claim {
            world.database.borrow_mut().keys.insert(key);
        }
        world.judge_commit(rows, right, is_reconciled);
        let sender = right.sender;
        let mut database = world.database.borrow_mut();
        for row in rows {
            let known = Some(sender);
            database.times.insert((row.series_id, row.time_ms), known);
        }
        let hot = rows.iter().map(|row| (sender, row.series_id, row.time_ms)).collect();
        database.hot.insert(self.xid, hot);
        // The drop of the transaction does the rest.
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let mut database = self.world.database.borrow_mut();
        database.running.remove(&self.xid);
        database.ended = database.ended.max(self.xid);
        if let Some(key) = self.claim {
            database.claims.remove(&key);
        }
        drop(database);
        self.world.database_changed.tell();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.world.database.borrow_mut().turns.retain(|turn| turn.number != self.number);
        self.world.database_changed.tell();
    }
}
