//! A group in virtual time: what happens, in order, and what each part does about it.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::election::By;
use prometheus_postgresql_adapter::election::orders::Order;
use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::adapter::{Adapter, Local, Reply};
use crate::judge::Verdict;
use crate::postgres::{Claim, LockSession, Server, Stage, Stored, Told, Transaction};
use crate::prometheus::{Prometheus, series_index};
use crate::queue::Queue;
use crate::random::Random;
use crate::settings::{Fault, Ordered, Settings, ms};

/// Virtual time, ms since the beginning.
pub(crate) type Ms = i64;

/// What the wall clock of a host without offset shows at the beginning.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

/// After all is calm, a watermark stays behind the lag of before for up to four minutes.
const SCRAPE_UNTIL_MAX: Ms = 330_000;

/// One life of an adapter: what was meant for an earlier one does not reach a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) adapter: usize,
    pub(crate) life: u32,
}

#[derive(Debug)]
pub(crate) enum Event {
    Local(Address, Local),
    Remote(Address, Remote),
    Sender {
        replica: usize,
        life: u32,
        what: Sender,
    },
    Scrape {
        replica: usize,
        series: usize,
    },
    SessionIdle(u64),
    TransactionIdle(u64),
    Copied(u64),
    DrainOverdue(u64),
    ServerUp,
    AdapterUp(usize),
    PrometheusUp(usize),
    /// The outside party, where there is one, sees to it that somebody leads.
    Tell,
    /// Scraping is about to end, unless a hole is still to be filled.
    Ending,
    Fault(usize),
}

/// A statement on its way to the server.
#[derive(Clone, Debug)]
pub(crate) enum Remote {
    Open {
        op: u64,
    },
    Close {
        session: u64,
    },
    /// The way of the old adapter; only an injected bug sends it.
    Unlock {
        session: u64,
    },
    TryLock {
        session: u64,
        op: u64,
    },
    Observe {
        session: u64,
        op: u64,
    },
    Drain {
        session: u64,
        op: u64,
    },
    Raise {
        session: u64,
        op: u64,
        clock_offset_ms: i64,
        claim: Claim,
    },
    HandOver {
        session: u64,
        op: u64,
        token: Uuid,
        watermark: Option<i64>,
        successor: Option<usize>,
    },
    Heartbeat {
        session: u64,
        op: u64,
        token: Uuid,
        watermark: Option<i64>,
        clock_offset_ms: i64,
        is_settled: bool,
    },
    LastTimes {
        op: u64,
        series: Vec<i64>,
        from_ms: i64,
        to_ms: i64,
    },
    Begin {
        op: u64,
        key: Uuid,
        rows: Vec<Row>,
        fence: Fence,
    },
    /// A transaction that fills begins, and compares.
    Compare {
        op: u64,
        rows: Vec<Row>,
        fence: Fence,
        clock_ms: i64,
    },
    /// It has something to store.
    Fill {
        op: u64,
        rows: Vec<Row>,
    },
    Commit {
        op: u64,
    },
    /// The connection of a transaction is closed.
    Abandon {
        op: u64,
    },
    /// A process is gone, and its host says so.
    Gone,
}

#[derive(Debug)]
pub(crate) enum Sender {
    Send { shard: usize },
    Answer { shard: usize, attempt: u64, accepted: bool },
    Timeout { shard: usize, attempt: u64 },
}

pub(crate) struct World {
    pub(crate) now: Ms,
    pub(crate) start: Instant,
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) adapters: Vec<Adapter>,
    pub(crate) prometheis: Vec<Prometheus>,
    pub(crate) server: Server,
    pub(crate) verdict: Verdict,
    pub(crate) bug: Option<Bug>,
    pub(crate) events: u64,
    /// The most that any adapter has measured its clock wrong by.
    pub(crate) clock_error_ms: i64,
    /// A Prometheus died unnoticed by its adapter, which had a request of its in hand, or heard of the next one at once.
    pub(crate) is_unheard: bool,
    queue: Queue<Event>,
    next_id: u64,
    slow_until: Ms,
    trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, with_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let settings = Settings::draw(&mut random);
        let start = Instant::now();
        let adapters = (0..settings.replicas).map(|index| Adapter::new(index, 0, &settings, start)).collect();
        let prometheis = (0..settings.replicas).map(|_| Prometheus::new(settings.shards, settings.series())).collect();
        let server = Server { is_up: true, series: vec![Vec::new(); settings.series()], bug, ..Server::default() };
        let mut world = Self {
            now: 0,
            start,
            settings,
            random,
            adapters,
            prometheis,
            server,
            verdict: Verdict::default(),
            bug,
            events: 0,
            clock_error_ms: 0,
            is_unheard: false,
            queue: Queue::new(),
            next_id: 1,
            slow_until: 0,
            trace: with_trace.then(Vec::new),
        };
        for replica in 0..world.settings.replicas {
            let begin = world.settings.begins_at[replica];
            world.adapters[replica].is_up = false;
            world.at(begin, Event::AdapterUp(replica));
            for series in 0..world.settings.series() {
                let phase = world.settings.phase(replica, series);
                world.at(phase, Event::Scrape { replica, series });
            }
        }
        if let By::Rest(_) = world.settings.election.by {
            world.at(6_000, Event::Tell);
        }
        world.at(world.settings.scrape_until - world.settings.scrape_ms - 1, Event::Ending);
        for index in 0..world.settings.faults.len() {
            let at = world.settings.faults[index].0;
            world.at(at, Event::Fault(index));
        }
        world
    }

    /// Runs to the end, or to the first broken promise.
    pub(crate) fn run(&mut self) {
        while let Some((at, event)) = self.queue.pop() {
            if at > self.settings.end_at || self.verdict.broken.is_some() {
                break;
            }
            self.now = at;
            self.events += 1;
            self.handle(event);
        }
        if self.verdict.broken.is_none() {
            self.judge_end();
        }
    }

    pub(crate) fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    pub(crate) fn say(&mut self, text: Arguments<'_>) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {text}", std::time::Duration::from_millis(self.now as u64).as_secs_f64()));
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + Duration::from_millis(u64::try_from(self.now).unwrap_or(0))
    }

    /// When an instant is, rounded up.
    pub(crate) fn time_of(&self, instant: Instant) -> Ms {
        let micros = instant.saturating_duration_since(self.start).as_micros();
        Ms::try_from(micros.div_ceil(1000)).unwrap_or(Ms::MAX)
    }

    /// What the clock of an adapter's host shows.
    pub(crate) fn wall(&self, adapter: usize) -> i64 {
        EPOCH_MS + self.now + self.settings.offsets[adapter]
    }

    pub(crate) fn at(&mut self, at: Ms, event: Event) {
        let order = self.id();
        self.queue.push(at.max(self.now), order, event);
    }

    pub(crate) fn local(&mut self, adapter: usize, after: Ms, local: Local) {
        let address = self.adapters[adapter].address();
        self.at(self.now + after, Event::Local(address, local));
    }

    /// Sends a statement; the link may delay or lose it.
    pub(crate) fn send_server(&mut self, adapter: usize, remote: Remote) {
        let address = self.adapters[adapter].address();
        if let Some(after) = self.link(adapter) {
            self.at(self.now + after, Event::Remote(address, remote));
        }
    }

    fn tell_adapter(&mut self, to: Address, op: u64, reply: Reply) {
        if let Some(after) = self.link(to.adapter) {
            self.at(self.now + after, Event::Local(to, Local::Reply(op, reply)));
        }
    }

    /// How long a message between an adapter and the server takes; `None` if it is lost.
    fn link(&mut self, adapter: usize) -> Option<Ms> {
        let base = if self.now < self.settings.calm_at && self.random.chance(3) {
            self.random.spread(1, 800)
        } else {
            self.random.between(0, 2)
        };
        let cut_until = self.adapters[adapter].cut_until;
        if self.now >= cut_until {
            return Some(base);
        }
        self.random.chance(50).then_some(cut_until - self.now + base)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Local(to, local) => {
                let adapter = &self.adapters[to.adapter];
                if adapter.address() != to || !adapter.is_up {
                    return;
                }
                if adapter.frozen_until > self.now {
                    let later = adapter.frozen_until + self.random.between(0, 20);
                    return self.at(later, Event::Local(to, local));
                }
                self.on_local(to.adapter, local);
            }
            Event::Remote(from, remote) => self.on_remote(from, remote),
            Event::Sender { replica, life, what } => {
                if self.prometheis[replica].life == life && self.prometheis[replica].is_up {
                    self.on_sender(replica, what);
                }
            }
            Event::Scrape { replica, series } => self.on_scrape(replica, series),
            Event::SessionIdle(session) => self.on_session_idle(session),
            Event::TransactionIdle(id) => {
                let is_idle = |stage| matches!(stage, Stage::Comparing | Stage::Idle);
                if self.server.transaction(id).is_some_and(|transaction| is_idle(transaction.stage)) {
                    self.fail_transaction(id);
                }
            }
            Event::Copied(id) => {
                let Some(transaction) = self.server.transaction(id) else { return };
                transaction.stage = Stage::Idle;
                let (who, op) = (transaction.who, transaction.op);
                self.tell_adapter(who, op, Reply::Copied);
                self.at(self.now + 5_000, Event::TransactionIdle(id));
            }
            Event::DrainOverdue(session) => {
                if self.server.waiting == Some(session) {
                    self.say(format_args!("server: terminates writers that hold the fence"));
                    let told = self.server.terminate_writers();
                    self.tell(told);
                    self.settle();
                }
            }
            Event::ServerUp => {
                self.server.is_up = true;
                self.say(format_args!("server: up"));
            }
            Event::AdapterUp(index) => self.start_adapter(index),
            Event::PrometheusUp(index) => {
                self.prometheis[index].is_up = true;
                // Where leaders are told, one leads on without its Prometheus for as long as it is let.
                self.is_unheard |= matches!(self.settings.election.by, By::Rest(_));
                self.say(format_args!("prometheus {index}: up"));
            }
            Event::Tell => self.tell_leader(),
            Event::Ending => {
                if self.settings.scrape_until < SCRAPE_UNTIL_MAX && self.is_waiting() {
                    self.settings.scrape_until += 10_000;
                    self.settings.end_at += 10_000;
                    self.at(self.now + 10_000, Event::Ending);
                }
            }
            Event::Fault(index) => {
                let fault = self.settings.faults[index].1;
                self.say(format_args!("FAULT {fault:?}"));
                self.on_fault(fault);
            }
        }
    }

    // ---- the server

    fn on_remote(&mut self, from: Address, remote: Remote) {
        if !self.server.is_up {
            if let Some(op) = remote.op() {
                self.tell_adapter(from, op, Reply::Failed);
            }
            return;
        }
        if let Some(session) = remote.session() {
            let Some(open) = self.server.sessions.get_mut(&session) else {
                if let Some(op) = remote.op() {
                    self.tell_adapter(from, op, Reply::Failed);
                }
                return;
            };
            open.last_active = self.now;
        }
        let server_ms = EPOCH_MS + self.now;
        match remote {
            Remote::Open { op } => {
                if self.adapters[from.adapter].address() != from {
                    return;
                }
                let session = self.id();
                let open = LockSession { who: from, last_active: self.now, is_waiting: false };
                self.server.sessions.insert(session, open);
                let timeout = self.settings.session_timeout_ms();
                self.at(self.now + timeout, Event::SessionIdle(session));
                self.tell_adapter(from, op, Reply::Connected { session, server_ms });
            }
            Remote::Close { session } => {
                self.server.end_session(session);
                self.settle();
            }
            Remote::Unlock { session } => self.server.unlock_once(session),
            Remote::TryLock { session, op } => {
                let obtained = self.server.try_lock(session);
                if obtained {
                    self.say(format_args!("server: adapter {} has the lock", from.adapter));
                }
                let group = self.observed();
                self.tell_adapter(from, op, Reply::Tried { obtained, group });
            }
            Remote::Observe { op, .. } => {
                let group = self.observed();
                self.tell_adapter(from, op, Reply::Tried { obtained: false, group });
            }
            Remote::Drain { session, op } => {
                if let Some(open) = self.server.sessions.get_mut(&session) {
                    open.is_waiting = true;
                }
                self.server.waiting = Some(session);
                self.adapters[from.adapter].drain_op = op;
                self.at(self.now + 500, Event::DrainOverdue(session));
                self.settle();
            }
            Remote::Raise { session, op, clock_offset_ms, claim } => {
                let group = &mut self.server.group;
                let may = match claim {
                    Claim::Told => true,
                    Claim::Follows(token) => token == group.token,
                    Claim::Lock => group.successor.is_none_or(|(to, until)| to == from.adapter || until <= self.now),
                };
                if !may {
                    if self.server.exclusive == Some(session) {
                        self.server.exclusive = None;
                    }
                    self.say(format_args!("server: no term of adapter {}", from.adapter));
                    self.tell_adapter(from, op, Reply::Refused);
                    return self.settle();
                }
                group.successor = None;
                let (last_offsets_ms, last_token) = (group.clock_offsets_ms.clone(), group.token);
                let watermark = group.watermark.take();
                group.term += 1;
                group.token = Uuid::from_u128(u128::from(op) << 64 | 1);
                group.holder = from.adapter;
                group.heartbeat = Some(self.now);
                group.clock_offsets_ms.push(clock_offset_ms);
                group.open_hole(watermark, server_ms);
                let holes = group.holes.clone();
                let fence = Fence { group_no: 1, term: group.term, token: group.token };
                let behind_ms = last_offsets_ms.iter().map(|last_ms| clock_offset_ms - last_ms).collect();
                if self.server.exclusive == Some(session) {
                    self.server.exclusive = None;
                }
                self.say(format_args!("server: term {} of adapter {}", fence.term, from.adapter));
                self.tell_adapter(from, op, Reply::Raised { fence, behind_ms, last_token, holes });
                self.settle();
            }
            Remote::HandOver { op, token, watermark, successor, .. } => {
                let until = self.now + ms(self.settings.election.standing_back());
                let group = &mut self.server.group;
                let is_ours = group.token == token;
                if is_ours {
                    group.heartbeat = Some(self.now);
                    group.watermark = watermark;
                    group.successor = successor.map(|to| (to, until));
                }
                self.tell_adapter(from, op, Reply::HandedOver { is_ours });
            }
            Remote::Heartbeat { session, op, token, watermark, clock_offset_ms, is_settled } => {
                if self.bug == Some(Bug::LockTwice) {
                    self.server.try_lock(session);
                }
                let group = &mut self.server.group;
                let is_ours = group.token == token;
                if is_ours {
                    group.heartbeat = Some(self.now);
                    group.watermark = watermark;
                    if is_settled {
                        group.clock_offsets_ms = vec![clock_offset_ms];
                    }
                }
                self.tell_adapter(from, op, Reply::Beat { is_ours, server_ms });
            }
            Remote::LastTimes { op, series, from_ms, to_ms } => {
                let found = series
                    .iter()
                    .filter_map(|id| {
                        let index = usize::try_from(*id).ok()?;
                        Some((*id, self.server.last_time(index, from_ms, to_ms)?))
                    })
                    .collect();
                self.tell_adapter(from, op, Reply::LastTimes(found));
            }
            Remote::Begin { op, key, rows, fence } => {
                if self.adapters[from.adapter].address() != from {
                    return;
                }
                let (stage, fills) = (Stage::Fence, None);
                let transaction = Transaction { id: op, who: from, op, key, rows, fence, stage, fills };
                self.server.transactions.push_back(transaction);
                self.settle();
            }
            Remote::Compare { op, rows, fence, clock_ms } => {
                let is_locked = self.server.transactions.iter().any(|transaction| transaction.fills.is_some());
                if self.adapters[from.adapter].address() != from || is_locked {
                    return self.tell_adapter(from, op, Reply::Failed);
                }
                let mut series: Vec<i64> = rows.iter().map(|row| row.series_id).collect();
                series.dedup();
                let times = || rows.iter().map(|row| row.time_ms);
                let (from_ms, to_ms) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
                let stored = self.server.stored_around(&series, from_ms, to_ms);
                let key = Uuid::from_u128(u128::from(op));
                let (stage, fills, rows) = (Stage::Comparing, Some(clock_ms), Vec::new());
                let transaction = Transaction { id: op, who: from, op, key, rows, fence, stage, fills };
                self.server.transactions.push_back(transaction);
                self.at(self.now + 5_000, Event::TransactionIdle(op));
                self.tell_adapter(from, op, Reply::Around(stored));
            }
            Remote::Fill { op, rows } => {
                let Some(transaction) = self.server.transaction(op) else {
                    return self.tell_adapter(from, op, Reply::Failed);
                };
                transaction.rows = rows;
                transaction.stage = Stage::Fence;
                self.settle();
            }
            Remote::Commit { op } => self.commit(from, op),
            Remote::Abandon { op } => {
                self.server.end(op);
                self.settle();
            }
            Remote::Gone => self.end_of(from),
        }
    }

    /// The group's row, and how old its heartbeat is.
    fn observed(&self) -> Option<(crate::postgres::Group, Ms)> {
        let heartbeat = self.server.group.heartbeat?;
        Some((self.server.group.clone(), self.now - heartbeat))
    }

    fn settle(&mut self) {
        let told = self.server.settle();
        self.tell(told);
    }

    fn tell(&mut self, told: Vec<Told>) {
        for one in told {
            match one {
                Told::Drained(session) => {
                    let Some(open) = self.server.sessions.get_mut(&session) else { continue };
                    open.is_waiting = false;
                    open.last_active = self.now;
                    let who = open.who;
                    let op = self.adapters[who.adapter].drain_op;
                    self.tell_adapter(who, op, Reply::Drained);
                }
                Told::Copy(id) => {
                    let slow = self.now < self.slow_until || self.random.chance(1);
                    let takes = if slow { self.random.spread(1, 6_000) } else { self.random.between(0, 4) };
                    self.at(self.now + takes, Event::Copied(id));
                }
                Told::AlreadyThere(who, op) => self.tell_adapter(who, op, Reply::AlreadyThere),
                Told::Failed(who, op) => self.tell_adapter(who, op, Reply::Failed),
            }
        }
    }

    fn fail_transaction(&mut self, id: u64) {
        if let Some(transaction) = self.server.end(id) {
            self.tell_adapter(transaction.who, transaction.op, Reply::Failed);
            self.settle();
        }
    }

    fn commit(&mut self, from: Address, op: u64) {
        if self.server.transaction(op).is_none_or(|transaction| transaction.stage != Stage::Idle) {
            return self.tell_adapter(from, op, Reply::Failed);
        }
        let Some(transaction) = self.server.end(op) else { return };
        if transaction.fence.token != self.server.group.token {
            let term = transaction.fence.term;
            self.broken(format!("sentence 2: a row of term {term} commits in term {}", self.server.group.term));
        }
        self.server.keys.insert(transaction.key);
        for row in &transaction.rows {
            let (replica, term, fills) = (from.adapter, transaction.fence.term, transaction.fills.is_some());
            let stored = Stored { time_ms: row.time_ms, value: row.value, replica, term, fills };
            self.judge_row(series_index(row), stored);
        }
        if let Some(clock_ms) = transaction.fills {
            self.server.group.fills_by(clock_ms);
        }
        self.say(format_args!(
            "server: {} {} rows of adapter {}: {}",
            if transaction.fills.is_some() { "fills in" } else { "commits" },
            transaction.rows.len(),
            from.adapter,
            show(&transaction.rows)
        ));
        self.tell_adapter(from, op, Reply::Committed);
        self.settle();
    }

    fn on_session_idle(&mut self, session: u64) {
        let Some(open) = self.server.sessions.get(&session) else { return };
        let timeout = self.settings.session_timeout_ms();
        // The old adapter's session is never idle.
        let is_used = open.is_waiting || self.bug == Some(Bug::LockTwice);
        let ends_at = if is_used { self.now + timeout } else { open.last_active + timeout };
        if ends_at > self.now {
            return self.at(ends_at, Event::SessionIdle(session));
        }
        let index = open.who.adapter;
        self.say(format_args!("server: ends the idle session of adapter {index}"));
        self.kill_session(session);
    }

    fn kill_session(&mut self, session: u64) {
        if let Some(ended) = self.server.end_session(session) {
            if let Some(after) = self.link(ended.who.adapter) {
                self.at(self.now + after, Event::Local(ended.who, Local::SessionEnded(session)));
            }
            self.settle();
        }
    }

    /// The server notices that a process is gone.
    fn end_of(&mut self, who: Address) {
        let sessions: Vec<u64> =
            self.server.sessions.iter().filter(|(_, open)| open.who == who).map(|(id, _)| *id).collect();
        for session in sessions {
            self.server.end_session(session);
        }
        self.server.transactions.retain(|transaction| transaction.who != who);
        self.settle();
    }

    // ---- Prometheus

    fn on_scrape(&mut self, replica: usize, series: usize) {
        let interval = self.settings.scrape_ms;
        if self.now + interval < self.settings.scrape_until {
            self.at(self.now + interval, Event::Scrape { replica, series });
        }
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let row = Row { series_id: series as i64, time_ms: self.wall(replica), value: self.now as f64 };
        if let Some(shard) = self.prometheis[replica].scrape(row) {
            self.schedule_send(replica, shard);
        }
    }

    fn schedule_send(&mut self, replica: usize, shard: usize) {
        let (batch_max, deadline_ms) = (self.settings.batch_max, self.settings.send_deadline_ms);
        let sender = &mut self.prometheis[replica];
        let life = sender.life;
        if let Some(after) = sender.shards[shard].schedule(batch_max, deadline_ms) {
            self.at(self.now + after, Event::Sender { replica, life, what: Sender::Send { shard } });
        }
    }

    fn on_sender(&mut self, replica: usize, what: Sender) {
        match what {
            Sender::Send { shard } => self.send(replica, shard),
            Sender::Answer { shard, attempt, accepted } => {
                let state = &mut self.prometheis[replica].shards[shard];
                if accepted && state.awaits(attempt) {
                    state.accepted();
                    self.schedule_send(replica, shard);
                } else {
                    self.retry(replica, shard, attempt);
                }
            }
            Sender::Timeout { shard, attempt } => self.retry(replica, shard, attempt),
        }
    }

    /// Tries again what this attempt did not achieve.
    fn retry(&mut self, replica: usize, shard: usize, attempt: u64) {
        let sender = &mut self.prometheis[replica];
        let life = sender.life;
        if sender.shards[shard].awaits(attempt) {
            let after = sender.shards[shard].back_off();
            self.at(self.now + after, Event::Sender { replica, life, what: Sender::Send { shard } });
        }
    }

    fn send(&mut self, replica: usize, shard: usize) {
        let key = Uuid::from_u128(u128::from(self.id()));
        let batch_max = self.settings.batch_max;
        let sender = &mut self.prometheis[replica];
        let life = sender.life;
        let Some((attempt, batch)) = sender.shards[shard].begin(key, batch_max) else { return };
        let lossy = if self.now < self.settings.calm_at { self.settings.lossy } else { 0 };
        let is_silent = sender.silent_until > self.now;
        let timeout = self.settings.remote_timeout_ms;
        self.at(self.now + timeout, Event::Sender { replica, life, what: Sender::Timeout { shard, attempt } });
        if is_silent || self.random.chance(lossy) {
            return;
        }
        if !self.adapters[replica].is_up {
            let what = Sender::Answer { shard, attempt, accepted: false };
            return self.at(self.now + 1, Event::Sender { replica, life, what });
        }
        if self.random.chance(lossy) {
            let again = self.random.spread(1, timeout);
            self.local(replica, again, Local::Deliver { shard, attempt: 0, batch: batch.clone() });
        }
        let slow = self.random.chance(lossy);
        let after = if slow { self.random.spread(1, timeout + 2_000) } else { self.random.between(0, 2) };
        self.local(replica, after, Local::Deliver { shard, attempt, batch });
    }

    // ---- whoever tells who leads

    /// Tells the first adapter that seems well to lead, unless one that is leads already.
    fn tell_leader(&mut self) {
        let again = self.now + self.random.between(500, 3_000);
        self.at(again, Event::Tell);
        let now = self.instant();
        let is_well = |adapter: &Adapter| {
            adapter.is_up
                && adapter.frozen_until <= self.now
                && adapter.cut_until <= self.now
                && !adapter.machine.is_held()
        };
        let leads = |adapter: &Adapter| matches!(adapter.role.at(now), Role::Leader { .. } | Role::TakingOver);
        if self.adapters.iter().any(|adapter| is_well(adapter) && leads(adapter)) {
            return;
        }
        if let Some(well) = self.adapters.iter().position(is_well) {
            self.local(well, 1, Local::Order(Order::Lead));
        }
    }

    // ---- faults

    fn start_adapter(&mut self, index: usize) {
        if self.adapters[index].is_up {
            return;
        }
        let life = self.adapters[index].life + 1;
        let cut_until = self.adapters[index].cut_until;
        self.adapters[index] = Adapter::new(index, life, &self.settings, self.instant());
        self.adapters[index].cut_until = cut_until;
        self.say(format_args!("adapter {index}: starts"));
        self.local(index, 0, Local::Step(0));
    }

    /// An adapter's process dies, and its memory with it.
    pub(crate) fn kill_adapter(&mut self, index: usize, host_too: bool, down_ms: Ms) {
        if !self.adapters[index].is_up {
            return;
        }
        for row in self.adapters[index].all_held() {
            self.prometheis[index].destroy(&row);
        }
        let address = self.adapters[index].address();
        if !host_too && let Some(after) = self.link(index) {
            self.at(self.now + after + 5, Event::Remote(address, Remote::Gone));
        }
        // What waited for an answer is told at once that nobody is there.
        let life = self.prometheis[index].life;
        for shard in 0..self.settings.shards {
            let attempt = self.prometheis[index].shards[shard].attempt;
            let what = Sender::Answer { shard, attempt, accepted: false };
            self.at(self.now + 1, Event::Sender { replica: index, life, what });
        }
        self.adapters[index].is_up = false;
        self.adapters[index].life += 1;
        self.at(self.now + down_ms, Event::AdapterUp(index));
    }

    fn kill_prometheus(&mut self, index: usize, down_ms: Ms) {
        if self.prometheis[index].is_up {
            self.prometheis[index].die();
            if self.adapters[index].is_up {
                self.local(index, 1, Local::Gone);
            }
            self.at(self.now + down_ms, Event::PrometheusUp(index));
        }
    }

    fn on_fault(&mut self, fault: Fault) {
        match fault {
            Fault::KillAdapter { adapter, down_ms } => self.kill_adapter(adapter, false, down_ms),
            Fault::KillHost { adapter, down_ms } => {
                self.kill_adapter(adapter, true, down_ms);
                self.kill_prometheus(adapter, down_ms);
            }
            Fault::StopAdapter { adapter, down_ms } => {
                self.adapters[adapter].down_ms = down_ms;
                self.adapters[adapter].machine.on_shutdown();
                self.local(adapter, 0, Local::Wake);
            }
            Fault::Freeze { adapter, for_ms } => {
                self.adapters[adapter].frozen_until = self.now + for_ms;
            }
            Fault::FreezeInWrite { adapter, for_ms } => self.adapters[adapter].freeze_in_write_ms = for_ms,
            Fault::Cut { adapter, for_ms } => {
                self.adapters[adapter].cut_until = self.now + for_ms;
            }
            Fault::CutAll { for_ms } => {
                for adapter in &mut self.adapters {
                    adapter.cut_until = self.now + for_ms;
                }
            }
            Fault::KillPrometheus { replica, down_ms } => self.kill_prometheus(replica, down_ms),
            Fault::Silence { replica, for_ms } => {
                self.prometheis[replica].silent_until = self.now + for_ms;
            }
            Fault::ServerCrash { down_ms } => {
                let sessions: Vec<u64> = self.server.sessions.keys().copied().collect();
                for session in sessions {
                    self.kill_session(session);
                }
                self.fail_all_transactions();
                self.server.is_up = false;
                self.at(self.now + down_ms, Event::ServerUp);
            }
            Fault::KillLockSession => {
                let first = self.server.sessions.keys().next().copied();
                if let Some(session) = self.server.lock.map(|(session, _)| session).or(first) {
                    self.kill_session(session);
                }
            }
            Fault::Order { adapter, order } => {
                let order = match order {
                    Ordered::Lead => Order::Lead,
                    Ordered::Resign => Order::Resign,
                    Ordered::HandOver { to } => Order::HandOver { to: to.to_string() },
                    Ordered::Hold => Order::Hold,
                    Ordered::Release => Order::Release,
                };
                self.local(adapter, 0, Local::Order(order));
            }
            Fault::KillWrites => self.fail_all_transactions(),
            Fault::SlowServer { for_ms } => self.slow_until = self.now + for_ms,
        }
    }

    fn fail_all_transactions(&mut self) {
        for transaction in std::mem::take(&mut self.server.transactions) {
            self.tell_adapter(transaction.who, transaction.op, Reply::Failed);
        }
        self.settle();
    }
}

impl Remote {
    fn op(&self) -> Option<u64> {
        match self {
            Remote::Open { op }
            | Remote::TryLock { op, .. }
            | Remote::Observe { op, .. }
            | Remote::Drain { op, .. }
            | Remote::Raise { op, .. }
            | Remote::HandOver { op, .. }
            | Remote::Heartbeat { op, .. }
            | Remote::LastTimes { op, .. }
            | Remote::Begin { op, .. }
            | Remote::Compare { op, .. }
            | Remote::Fill { op, .. }
            | Remote::Commit { op } => Some(*op),
            Remote::Close { .. } | Remote::Unlock { .. } | Remote::Abandon { .. } | Remote::Gone => None,
        }
    }

    fn session(&self) -> Option<u64> {
        match self {
            Remote::TryLock { session, .. }
            | Remote::Observe { session, .. }
            | Remote::Drain { session, .. }
            | Remote::Raise { session, .. }
            | Remote::HandOver { session, .. }
            | Remote::Heartbeat { session, .. } => Some(*session),
            _ => None,
        }
    }
}

/// Rows for a trace: series@seconds.
pub(crate) fn show(rows: &[Row]) -> String {
    let one = |row: &Row| format!("{}@{:.3}", row.series_id, (row.time_ms - EPOCH_MS) as f64 / 1e3);
    rows.iter().map(one).collect::<Vec<_>>().join(" ")
}
