//! One adapter: the real machine, liveness and ledger, and a model of the driver and receiver around them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::election::By;
use prometheus_postgresql_adapter::election::liveness::Liveness;
use prometheus_postgresql_adapter::election::machine::{Action, Machine, Observed, Reason};
use prometheus_postgresql_adapter::election::orders::Order;
use prometheus_postgresql_adapter::election::role::{Leader, Role};
use prometheus_postgresql_adapter::handover::cut::{Cut, Unknown};
use prometheus_postgresql_adapter::handover::held::HELD_AT_LEAST;
use prometheus_postgresql_adapter::handover::ledger::{Ledger, Term};
use prometheus_postgresql_adapter::handover::watermark::FAILED_KEPT_MS;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::fill::Doubtful;
use prometheus_postgresql_adapter::storage::gaps::{Compared, Hole, Stored as StoredTimes};
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::postgres::{Claim, Group};
use crate::prometheus::Batch;
use crate::settings::{Settings, ms};
use crate::world::{Address, Event, Ms, Remote, Sender, World, show};

/// Something that happens in an adapter; waits while it is frozen.
#[derive(Debug)]
pub(crate) enum Local {
    /// The election task's sleep ends.
    Step(u64),
    /// The election task is told of something.
    Wake,
    Reply(u64, Reply),
    SessionEnded(u64),
    /// A statement's time is up.
    Expire(u64),
    Deliver {
        shard: usize,
        attempt: u64,
        batch: Batch,
    },
    /// The own Prometheus' connections are closed.
    Gone,
    Order(Order),
    /// A request that waited for a role to settle has waited long enough.
    Settle(u64),
    /// The series of a request are found.
    Resolved(u64),
}

/// What the server answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Connected {
        session: u64,
        server_ms: i64,
    },
    Tried {
        obtained: bool,
        group: Option<(Group, Ms)>,
    },
    Drained,
    Raised {
        fence: Fence,
        behind_ms: Vec<i64>,
        last_token: Uuid,
        holes: Vec<Hole>,
    },
    /// The term is not to be raised.
    Refused,
    Beat {
        is_ours: bool,
        server_ms: i64,
    },
    HandedOver {
        is_ours: bool,
    },
    LastTimes(HashMap<i64, i64>),
    Around(StoredTimes),
    Copied,
    Committed,
    AlreadyThere,
    Failed,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// The election task, on its lock session.
    Election {
        action: Action,
        asked: Instant,
        asked_ms: i64,
    },
    Replay,
    Fill,
    Request(u64),
}

/// What is compared with what is stored, and what of it was missing.
#[derive(Debug)]
struct Fill {
    doubtful: Doubtful,
    compared: Compared,
}

#[derive(Debug)]
struct Request {
    shard: usize,
    attempt: u64,
    batch: Batch,
    /// What it is to be stored under; `None` for a standby.
    fence: Option<Fence>,
    /// Waits for a role that can answer.
    is_settling: bool,
    /// What the cut leaves of it.
    rows: Vec<Row>,
}

/// A take-over between the new term and serving.
#[derive(Debug)]
struct Replay {
    fence: Fence,
    cut: Arc<Cut>,
    follows_itself: bool,
    rest: Vec<Row>,
    asked: Option<Unknown>,
    committing: usize,
}

pub(crate) struct Adapter {
    index: usize,
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    pub(crate) frozen_until: Ms,
    /// Frozen for so long when next a transaction of its is between COPY and COMMIT.
    pub(crate) freeze_in_write_ms: Ms,
    /// The link to the server is cut before this.
    pub(crate) cut_until: Ms,
    pub(crate) down_ms: Ms,
    pub(crate) drain_op: u64,
    pub(crate) machine: Machine,
    pub(crate) ledger: Ledger,
    /// The token of the last term this adapter led.
    last_token: Option<Uuid>,
    pub(crate) role: Role,
    liveness: Liveness,
    session: Option<u64>,
    /// The statement the election task waits for.
    busy: Option<u64>,
    wake: u64,
    clock_offset_ms: i64,
    has_measured: bool,
    /// Between the drain and the raise: when the server was last asked.
    proven_at: Instant,
    replay: Option<Replay>,
    fill: Option<Fill>,
    waiting: BTreeMap<u64, Waiting>,
    requests: BTreeMap<u64, Request>,
}

const SEND_TIMEOUT_MS: Ms = 10_000;
const SETTLE_MS: Ms = 2_000;
const CLOCK_ROUND_TRIP_MAX_MS: i64 = 100;
const REPLAY_ROWS: usize = 8;
const FILL_ROWS: usize = 12;

impl Adapter {
    pub(crate) fn new(index: usize, life: u32, settings: &Settings, now: Instant) -> Self {
        Self {
            index,
            life,
            is_up: true,
            frozen_until: 0,
            freeze_in_write_ms: 0,
            cut_until: 0,
            down_ms: 0,
            drain_op: 0,
            machine: Machine::new(settings.election.clone(), now),
            ledger: Ledger::new(settings.memory_bytes_max, FAILED_KEPT_MS),
            last_token: None,
            role: Role::Unknown,
            liveness: Liveness::new(settings.election.prometheus_timeout),
            session: None,
            busy: None,
            wake: 0,
            clock_offset_ms: 0,
            has_measured: false,
            proven_at: now,
            replay: None,
            fill: None,
            waiting: BTreeMap::new(),
            requests: BTreeMap::new(),
        }
    }

    /// Everything acknowledged that is not stored, as far as this adapter knows.
    pub(crate) fn all_held(&self) -> Vec<Row> {
        let mut rows = self.ledger.held().rows();
        rows.extend(self.ledger.held().doubtful());
        rows.extend(self.fill.iter().flat_map(|fill| &fill.doubtful.rows));
        rows
    }

    pub(crate) fn address(&self) -> Address {
        Address { adapter: self.index, life: self.life }
    }
}

impl World {
    pub(crate) fn on_local(&mut self, me: usize, local: Local) {
        match local {
            Local::Step(wake) => {
                if self.adapters[me].wake == wake {
                    self.step(me);
                }
            }
            Local::Wake => self.step(me),
            Local::SessionEnded(session) => {
                if self.adapters[me].session == Some(session) {
                    let now = self.instant();
                    let adapter = &mut self.adapters[me];
                    adapter.session = None;
                    if let Some(op) = adapter.busy.take() {
                        adapter.waiting.remove(&op);
                    }
                    adapter.replay = None;
                    adapter.machine.on_lost(Reason::SessionLost, now);
                    self.step(me);
                }
            }
            Local::Reply(op, reply) => self.on_reply(me, op, reply),
            Local::Expire(op) => {
                if self.adapters[me].waiting.contains_key(&op) {
                    self.send_server(me, Remote::Abandon { op });
                    self.on_reply(me, op, Reply::Failed);
                }
            }
            Local::Deliver { shard, attempt, batch } => {
                let now = self.instant();
                self.is_unheard |= self.adapters[me].liveness.is_gone() && self.adapters[me].machine.fence().is_some();
                self.adapters[me].liveness.begin(now);
                let id = self.id();
                let request = Request { shard, attempt, batch, fence: None, is_settling: true, rows: Vec::new() };
                self.adapters[me].requests.insert(id, request);
                self.local(me, SETTLE_MS, Local::Settle(id));
                self.receive(me, id);
                if matches!(self.adapters[me].role, Role::Resigned) {
                    self.step(me);
                }
            }
            Local::Settle(id) => {
                if self.adapters[me].requests.get(&id).is_some_and(|request| request.is_settling) {
                    self.answer(me, id, false);
                }
            }
            Local::Gone => {
                let now = self.instant();
                self.adapters[me].liveness.gone(now);
                self.is_unheard |= !self.adapters[me].liveness.is_gone();
                self.step(me);
            }
            Local::Resolved(id) => self.resolved(me, id),
            Local::Order(order) => {
                let now = self.instant();
                self.say(format_args!("adapter {me}: ordered to {order:?}"));
                let lease = self.settings.election.lease;
                self.adapters[me].machine.on_order(order, now, now + lease);
                self.step(me);
            }
        }
    }

    // ---- the election task

    fn step(&mut self, me: usize) {
        while self.adapters[me].busy.is_none() && self.adapters[me].is_up {
            let now = self.instant();
            let adapter = &mut self.adapters[me];
            let is_preparing = adapter.replay.is_some();
            if !is_preparing {
                let silent_at = adapter.liveness.silent_at(now);
                adapter.machine.on_liveness(silent_at, now);
            }
            let action = adapter.machine.next(now);
            if let Some(outcome) = adapter.machine.outcome(now) {
                self.say(format_args!("adapter {me}: order ended {outcome:?}"));
            }
            if !is_preparing {
                self.publish(me);
            }
            match action {
                Action::Wait(until) => {
                    if self.adapters[me].machine.is_stopped() {
                        let down_ms = self.adapters[me].down_ms;
                        return self.kill_adapter(me, false, down_ms);
                    }
                    let after = (self.time_of(until) - self.now).max(1);
                    self.adapters[me].wake += 1;
                    let wake = self.adapters[me].wake;
                    return self.local(me, after, Local::Step(wake));
                }
                Action::Close(reason) => {
                    self.say(format_args!("adapter {me}: closes, {}", reason.label()));
                    self.adapters[me].replay = None;
                    if let Some(session) = self.adapters[me].session.take() {
                        let stacked = self.bug == Some(Bug::LockTwice) && reason == Reason::PrometheusTimeout;
                        let remote = if stacked { Remote::Unlock { session } } else { Remote::Close { session } };
                        self.send_server(me, remote);
                    }
                    self.adapters[me].machine.on_closed(now);
                }
                _ => self.ask(me, action),
            }
        }
    }

    fn ask(&mut self, me: usize, action: Action) {
        let now = self.instant();
        let op = self.id();
        let wall = self.wall(me);
        let adapter = &mut self.adapters[me];
        let clock_offset_ms = adapter.clock_offset_ms;
        let is_settled = adapter.ledger.is_settled(wall);
        let Some(session) = adapter.session.or((action == Action::Connect).then_some(0)) else {
            return adapter.machine.on_lost(Reason::SessionLost, now);
        };
        let remote = match action {
            Action::Connect => Remote::Open { op },
            Action::TryLock => Remote::TryLock { session, op },
            Action::Observe => Remote::Observe { session, op },
            Action::RaiseTerm => Remote::Drain { session, op },
            Action::HandOver => {
                let Some(fence) = adapter.machine.fence() else { return };
                let watermark = adapter.ledger.watermark(wall);
                let successor = adapter.machine.successor().and_then(|name| name.parse().ok());
                Remote::HandOver { session, op, token: fence.token, watermark, successor }
            }
            _ => {
                let Some(fence) = adapter.machine.fence() else { return };
                let watermark = adapter.ledger.watermark(wall);
                Remote::Heartbeat { session, op, token: fence.token, watermark, clock_offset_ms, is_settled }
            }
        };
        let limit = match action {
            Action::Connect | Action::RaiseTerm => self.settings.election.lease,
            _ => self.settings.election.stale_after(),
        };
        adapter.busy = Some(op);
        adapter.waiting.insert(op, Waiting::Election { action, asked: now, asked_ms: wall });
        self.local(me, ms(limit), Local::Expire(op));
        self.send_server(me, remote);
    }

    fn publish(&mut self, me: usize) {
        let now = self.instant();
        let role = self.adapters[me].machine.role(now);
        if role.word() != self.adapters[me].role.word() {
            self.say(format_args!("adapter {me}: {}", role.word()));
        }
        self.adapters[me].role = role;
        let settling: Vec<u64> =
            self.adapters[me].requests.iter().filter(|(_, request)| request.is_settling).map(|(id, _)| *id).collect();
        for id in settling {
            self.receive(me, id);
        }
    }

    fn on_reply(&mut self, me: usize, op: u64, reply: Reply) {
        let Some(waiting) = self.adapters[me].waiting.get(&op).copied() else {
            // Too late: a transaction that nobody waits for is abandoned with its connection, a session closed.
            if let Reply::Connected { session, .. } = reply {
                self.send_server(me, Remote::Close { session });
            }
            return;
        };
        if let Reply::Copied = reply {
            if self.adapters[me].freeze_in_write_ms > 0 {
                let for_ms = std::mem::take(&mut self.adapters[me].freeze_in_write_ms);
                self.say(format_args!("adapter {me}: freezes before COMMIT"));
                self.adapters[me].frozen_until = self.now + for_ms;
                return self.local(me, 0, Local::Reply(op, Reply::Copied));
            }
            return self.send_server(me, Remote::Commit { op });
        }
        self.adapters[me].waiting.remove(&op);
        match waiting {
            Waiting::Election { action, asked, asked_ms } => self.on_election(me, op, action, asked, asked_ms, reply),
            Waiting::Replay => self.on_replay(me, reply),
            Waiting::Fill => self.on_fill(me, op, reply),
            Waiting::Request(id) => self.on_request(me, id, reply),
        }
    }

    fn on_election(&mut self, me: usize, op: u64, action: Action, asked: Instant, asked_ms: i64, reply: Reply) {
        let now = self.instant();
        let wall = self.wall(me);
        self.adapters[me].busy = None;
        let bug = self.bug;
        let adapter = &mut self.adapters[me];
        match reply {
            Reply::Connected { session, server_ms } => {
                adapter.machine.on_connected(now);
                self.measured(me, asked_ms, server_ms);
                let adapter = &mut self.adapters[me];
                if let Some(old) = adapter.session.replace(session) {
                    self.send_server(me, Remote::Close { session: old });
                }
            }
            Reply::Tried { obtained: true, .. } => adapter.machine.on_tried(true, None, asked),
            Reply::Tried { obtained: false, group } => {
                let observed = group.map(|(group, age_ms)| {
                    let fence = Fence { group_no: 1, term: group.term, token: group.token };
                    let clock_offset_ms = adapter.clock_offset_ms;
                    let term = Term { fence, clock_offset_ms, watermark_ms: group.watermark };
                    // Too early by all that keeps it from being so: the lag, and the least time of holding.
                    let early = Term { watermark_ms: Some(wall), ..term };
                    match bug {
                        Some(Bug::ForgetEarly) => adapter.ledger.observed(early, Vec::new(), now + HELD_AT_LEAST),
                        Some(Bug::ForgetHoles) => adapter.ledger.observed(term, Vec::new(), now),
                        Some(Bug::FillEarly) => adapter.ledger.observed(early, group.holes, now),
                        _ => adapter.ledger.observed(term, group.holes, now),
                    }
                    let age_ms = if bug == Some(Bug::StaleIsStandby) { 0 } else { age_ms };
                    Observed {
                        leader: Leader { holder: group.holder.to_string(), term: group.term },
                        heartbeat_age: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
                        yields_for: group
                            .successor
                            .filter(|(to, _)| *to != me)
                            .map(|(_, until)| Duration::from_millis(u64::try_from(until - self.now).unwrap_or(0))),
                    }
                });
                match action {
                    Action::TryLock => adapter.machine.on_tried(false, observed, asked),
                    _ => adapter.machine.on_observed(observed, asked),
                }
                self.fill_some(me);
            }
            Reply::Drained => {
                adapter.proven_at = now;
                adapter.busy = Some(op);
                adapter.waiting.insert(op, Waiting::Election { action, asked, asked_ms });
                let clock_offset_ms = adapter.clock_offset_ms;
                let Some(session) = adapter.session else { return };
                let claim = match (&self.settings.election.by, adapter.machine.follows()) {
                    (By::Lock(_), _) => Claim::Lock,
                    (By::Rest(_), None) => Claim::Told,
                    (By::Rest(_), Some(token)) => Claim::Follows(token),
                };
                return self.send_server(me, Remote::Raise { session, op, clock_offset_ms, claim });
            }
            Reply::Raised { fence, behind_ms, last_token, holes } => {
                let proven_at = adapter.proven_at;
                adapter.machine.on_term(fence, proven_at);
                let follows_itself = adapter.last_token == Some(last_token);
                let term = Term { fence, clock_offset_ms: adapter.clock_offset_ms, watermark_ms: None };
                let holes = if bug == Some(Bug::ForgetHoles) { Vec::new() } else { holes };
                let (cut, rows) = adapter.ledger.take_over(term, holes, wall, &behind_ms);
                self.say(format_args!(
                    "adapter {me}: term {}, last leaders {behind_ms:?} ms behind, holds {}",
                    fence.term,
                    show(&rows)
                ));
                self.adapters[me].replay =
                    Some(Replay { fence, cut, follows_itself, rest: rows, asked: None, committing: 0 });
                self.go_on_with_replay(me);
            }
            Reply::Refused => adapter.machine.on_refused(now),
            Reply::HandedOver { is_ours } => {
                adapter.replay = None;
                if is_ours {
                    adapter.machine.on_handed_over(now);
                } else {
                    adapter.machine.on_lost(Reason::Fenced, now);
                }
            }
            Reply::Beat { is_ours, server_ms } => {
                if is_ours {
                    adapter.machine.on_heartbeat(asked);
                    self.measured(me, asked_ms, server_ms);
                    self.fill_some(me);
                } else {
                    adapter.replay = None;
                    adapter.machine.on_lost(Reason::Fenced, now);
                }
            }
            _ => {
                adapter.replay = None;
                adapter.machine.on_lost(Reason::SessionLost, now);
            }
        }
        self.step(me);
    }

    /// The server has told its time; a slow answer tells too little.
    fn measured(&mut self, me: usize, asked_ms: i64, server_ms: i64) {
        let wall = self.wall(me);
        let adapter = &mut self.adapters[me];
        if !adapter.has_measured || wall - asked_ms <= CLOCK_ROUND_TRIP_MAX_MS {
            adapter.has_measured = true;
            adapter.clock_offset_ms = asked_ms.midpoint(wall) - server_ms;
            let error = (adapter.clock_offset_ms - self.settings.offsets[me]).abs();
            self.clock_error_ms = self.clock_error_ms.max(error);
        }
    }

    // ---- the hand-over

    fn go_on_with_replay(&mut self, me: usize) {
        let op = self.id();
        let (bug, now) = (self.bug, self.instant());
        let adapter = &mut self.adapters[me];
        let Some(replay) = &mut adapter.replay else { return };
        if bug != Some(Bug::ReplayUncut) {
            if let Some(unknown) = replay.cut.unknown(&replay.rest) {
                let (series, from_ms, to_ms) = (unknown.series.clone(), unknown.from_ms, replay.cut.until_ms());
                replay.asked = Some(unknown);
                adapter.waiting.insert(op, Waiting::Replay);
                self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
                return self.send_server(me, Remote::LastTimes { op, series, from_ms, to_ms });
            }
            replay.cut.apply(&mut replay.rest);
        }
        if replay.rest.is_empty() {
            let cut = Arc::clone(&replay.cut);
            let (token, follows_itself) = (replay.fence.token, replay.follows_itself);
            adapter.replay = None;
            adapter.ledger.replayed(cut, follows_itself, now);
            adapter.last_token = Some(token);
            adapter.machine.on_prepared();
            return;
        }
        // Whole series at a time, as the driver does.
        let last = replay.rest[replay.rest.len().min(REPLAY_ROWS) - 1].series_id;
        replay.committing = replay.rest.partition_point(|row| row.series_id <= last);
        let rows = replay.rest[..replay.committing].to_vec();
        let fence = replay.fence;
        adapter.waiting.insert(op, Waiting::Replay);
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        let key = Uuid::from_u128(u128::from(op));
        self.send_server(me, Remote::Begin { op, key, rows, fence });
    }

    fn on_replay(&mut self, me: usize, reply: Reply) {
        let now = self.instant();
        let adapter = &mut self.adapters[me];
        let Some(replay) = &mut adapter.replay else { return };
        match reply {
            Reply::LastTimes(found) => {
                if let Some(unknown) = replay.asked.take() {
                    replay.cut.learn(&unknown, &found);
                }
            }
            Reply::Committed | Reply::AlreadyThere => {
                replay.rest.drain(..replay.committing);
            }
            _ => {
                adapter.replay = None;
                adapter.machine.on_lost(Reason::SessionLost, now);
            }
        }
        self.go_on_with_replay(me);
        self.step(me);
    }

    fn fill_some(&mut self, me: usize) {
        let (op, now) = (self.id(), self.instant());
        let adapter = &mut self.adapters[me];
        if adapter.fill.is_some() {
            return;
        }
        let Some(doubtful) = adapter.ledger.take_doubtful(FILL_ROWS, now) else { return };
        let Doubtful { rows, fence, clock_offset_ms, .. } = doubtful.clone();
        adapter.fill = Some(Fill { doubtful, compared: Compared::default() });
        adapter.waiting.insert(op, Waiting::Fill);
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        self.send_server(me, Remote::Compare { op, rows, fence, clock_ms: clock_offset_ms });
    }

    fn on_fill(&mut self, me: usize, op: u64, reply: Reply) {
        let (bug, now) = (self.bug, self.instant());
        let adapter = &mut self.adapters[me];
        let Some(mut fill) = adapter.fill.take() else { return };
        match reply {
            Reply::Around(stored) => {
                let Doubtful { rows, clock_offset_ms, passed_ms, known, .. } = &fill.doubtful;
                fill.compared = match bug {
                    Some(Bug::FillUncompared) => Compared { missing: rows.clone(), ..Compared::default() },
                    Some(Bug::FillEarly) => stored.compare(rows, *clock_offset_ms, i64::MAX, known),
                    _ => stored.compare(rows, *clock_offset_ms, *passed_ms, known),
                };
                if fill.compared.missing.is_empty() {
                    adapter.ledger.compared(&fill.doubtful, Some(&fill.compared), now);
                    return self.send_server(me, Remote::Abandon { op });
                }
                let rows = fill.compared.missing.clone();
                adapter.waiting.insert(op, Waiting::Fill);
                adapter.fill = Some(fill);
                self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
                self.send_server(me, Remote::Fill { op, rows });
            }
            Reply::Committed => {
                adapter.ledger.compared(&fill.doubtful, Some(&fill.compared), now);
                self.fill_some(me);
            }
            _ => adapter.ledger.compared(&fill.doubtful, None, now),
        }
    }

    // ---- the receiver

    /// Decides by role, once it is one that can answer.
    fn receive(&mut self, me: usize, id: u64) {
        let now = self.instant();
        let role = match self.bug {
            Some(Bug::WriteUnfenced) if matches!(self.adapters[me].role, Role::Leader { .. }) => {
                self.adapters[me].role.clone()
            }
            _ => self.adapters[me].role.at(now),
        };
        let fence = match role {
            Role::Leader { fence, .. } => fence,
            Role::Standby { .. } => {
                self.judge_standby(me);
                None
            }
            _ => return,
        };
        let takes = if self.random.chance(4) { self.random.spread(1, 3_000) } else { 0 };
        let wall = self.wall(me);
        let adapter = &mut self.adapters[me];
        let Some(request) = adapter.requests.get_mut(&id) else { return };
        request.is_settling = false;
        request.fence = fence;
        if let Some(span) = span(&request.batch.rows) {
            adapter.ledger.storing(request.batch.key, span, wall);
        }
        if takes > 0 {
            return self.local(me, takes, Local::Resolved(id));
        }
        self.resolved(me, id);
    }

    fn resolved(&mut self, me: usize, id: u64) {
        let (bug, now, wall) = (self.bug, self.instant(), self.wall(me));
        let adapter = &mut self.adapters[me];
        let Some(request) = adapter.requests.get_mut(&id) else { return };
        if request.fence.is_none() {
            let held = bug == Some(Bug::HoldNothing)
                || adapter.ledger.hold(request.batch.key, &request.batch.rows, now).is_ok();
            let latest = span(&request.batch.rows).map(|(_, latest)| latest);
            adapter.ledger.stored(request.batch.key, latest.filter(|_| held), wall);
            return self.answer(me, id, held);
        }
        request.rows.clone_from(&request.batch.rows);
        self.store(me, id);
    }

    fn store(&mut self, me: usize, id: u64) {
        let (op, now) = (self.id(), self.instant());
        let adapter = &mut self.adapters[me];
        let cut = adapter.ledger.cut();
        let Some(request) = adapter.requests.get_mut(&id) else { return };
        let Some(fence) = request.fence else { return };
        let remote = match cut.as_ref().and_then(|cut| Some((cut, cut.unknown(&request.rows)?))) {
            Some((cut, unknown)) => {
                let to_ms = cut.until_ms();
                Remote::LastTimes { op, series: unknown.series, from_ms: unknown.from_ms, to_ms }
            }
            None => {
                if let Some(cut) = &cut {
                    let mut taken_out = cut.apply(&mut request.rows);
                    taken_out.extend(adapter.ledger.overtaken(&mut request.rows));
                    if adapter.ledger.doubt(&taken_out, now).is_err() {
                        return self.finish(me, id, false);
                    }
                }
                if request.rows.is_empty() {
                    return self.finish(me, id, true);
                }
                Remote::Begin { op, key: request.batch.key, rows: request.rows.clone(), fence }
            }
        };
        adapter.waiting.insert(op, Waiting::Request(id));
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        self.send_server(me, remote);
    }

    fn on_request(&mut self, me: usize, id: u64, reply: Reply) {
        match reply {
            Reply::LastTimes(found) => {
                let adapter = &mut self.adapters[me];
                let Some(request) = adapter.requests.get(&id) else { return };
                if let Some(cut) = adapter.ledger.cut()
                    && let Some(unknown) = cut.unknown(&request.rows)
                {
                    cut.learn(&unknown, &found);
                }
                self.store(me, id);
            }
            Reply::Committed | Reply::AlreadyThere => self.finish(me, id, true),
            _ => self.finish(me, id, false),
        }
    }

    /// A leader has stored a request, or has not.
    fn finish(&mut self, me: usize, id: u64, is_stored: bool) {
        let wall = self.wall(me);
        let adapter = &mut self.adapters[me];
        if let Some(request) = adapter.requests.get(&id) {
            let latest = request.batch.rows.iter().map(|row| row.time_ms).max();
            adapter.ledger.stored(request.batch.key, latest.filter(|_| is_stored), wall);
            // To a process that is gone, or has given this attempt up, nothing is acknowledged.
            let waits = self.prometheis[me].shards[request.shard].attempt == request.attempt;
            if is_stored && waits {
                let rows = request.batch.rows.clone();
                self.judge_leader(me, &rows);
            }
        }
        self.answer(me, id, is_stored);
    }

    fn answer(&mut self, me: usize, id: u64, accepted: bool) {
        let now = self.instant();
        let Some(request) = self.adapters[me].requests.remove(&id) else { return };
        self.adapters[me].liveness.end(now, !accepted);
        let word = if accepted { "takes" } else { "refuses" };
        let as_whom = if request.fence.is_some() { "leader" } else { "standby" };
        self.say(format_args!("adapter {me}: {word} as {as_whom} {}", show(&request.batch.rows)));
        let life = self.prometheis[me].life;
        let silent = self.prometheis[me].silent_until > self.now
            || (self.now < self.settings.calm_at && self.random.chance(self.settings.lossy));
        if !silent {
            let what = Sender::Answer { shard: request.shard, attempt: request.attempt, accepted };
            let after = self.random.between(0, 2);
            self.at(self.now + after, Event::Sender { replica: me, life, what });
        }
    }
}

/// The earliest and the latest time of a request.
pub(crate) fn span(rows: &[Row]) -> Option<(i64, i64)> {
    let times = || rows.iter().map(|row| row.time_ms);
    Some((times().min()?, times().max()?))
}
