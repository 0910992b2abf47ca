//! One cluster in virtual time: what happens, in order; the server, the senders and the balancer between.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Arguments;
use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::election::Progress;
use prometheus_postgresql_adapter::election::by_labels::by_hand::PATIENCE;
use prometheus_postgresql_adapter::election::by_labels::cluster::{Next, Seen, Succession};
use prometheus_postgresql_adapter::handover::watermark::MARGIN_MS;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::by_labels::adapter::{Adapter, Local, Reply};
use crate::by_labels::settings::{Fault, Settings};
use crate::judge::Verdict;
use crate::postgres::{Server, Stage, Stored, Told, Transaction};
use crate::prometheus::{Prometheus, series_index};
use crate::queue::Queue;
use crate::random::Random;
use crate::settings::ms;
use crate::world::{Address, EPOCH_MS, Ms, show};

/// As the statements have it.
const FRESH_MS: Ms = 60_000;
const LIVES_MS: Ms = 5_000;
const LOOKED_BACK_MS: i64 = 3 * 3_600_000;

/// After all is calm, a watermark stays behind the lag of before for up to four minutes.
const SCRAPE_UNTIL_MAX: Ms = 330_000;

#[derive(Debug)]
pub(crate) enum Event {
    Local(Address, Local),
    Remote(Address, Remote),
    Sender { replica: usize, life: u32, what: Sender },
    Scrape { replica: usize, series: usize },
    TransactionIdle(u64),
    Copied(u64),
    ServerUp,
    AdapterUp(usize),
    ReplicaUp(usize),
    Ending,
    Fault(usize),
    KillLeader { down_ms: Ms },
    Release(usize),
}

/// What an adapter tells the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) reported_at: Ms,
    pub(crate) token: Uuid,
    pub(crate) has_begun: bool,
    pub(crate) heard_at: Option<Ms>,
    pub(crate) doubted_at: Option<Ms>,
    pub(crate) progress: Progress,
}

/// Where a term begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beginning {
    pub(crate) last_ms: Vec<(i64, i64)>,
    pub(crate) others_ms: i64,
}

/// A statement on its way to the server.
#[derive(Clone, Debug)]
pub(crate) enum Remote {
    Round { op: u64, report: Option<Report> },
    TakeOver { op: u64, succession: Succession },
    Beginning { op: u64, token: Uuid },
    OpenHole { op: u64, token: Uuid, watermark_ms: Option<i64> },
    Begin { op: u64, replica: usize, key: Uuid, rows: Vec<Row>, fence: Fence },
    Compare { op: u64, replica: usize, rows: Vec<Row>, fence: Fence, clock_ms: i64 },
    Fill { op: u64, rows: Vec<Row> },
    Commit { op: u64 },
    Abandon { op: u64 },
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
    start: Instant,
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) adapters: Vec<Adapter>,
    pub(crate) replicas: Vec<Prometheus>,
    pub(crate) server: Server,
    /// Whether any replica has led.
    has_led: bool,
    /// Who is to lead next by order, and until when the order lasts.
    ordered: Option<(Next, Ms)>,
    held_out: Vec<usize>,
    beginning: Beginning,
    reports: BTreeMap<usize, Report>,
    /// By transaction, whose samples it stores.
    pub(crate) whose: HashMap<u64, usize>,
    /// The adapter the balancer sends a replica's next request to.
    next: Vec<usize>,
    pub(crate) verdict: Verdict,
    pub(crate) bug: Option<Bug>,
    pub(crate) events: u64,
    queue: Queue<Event>,
    /// A replica died while a request of its was in hand: it was not seen to go.
    pub(crate) is_unheard: bool,
    next_id: u64,
    slow_until: Ms,
    trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, with_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let settings = Settings::draw(&mut random);
        let start = Instant::now();
        let adapters = (0..settings.adapters).map(|index| Adapter::new(index, 0, &settings)).collect();
        let replicas = (0..settings.replicas).map(|_| Prometheus::new(settings.shards, settings.series)).collect();
        let server = Server { is_up: true, series: vec![Vec::new(); settings.series], bug, ..Server::default() };
        let next = (0..settings.replicas).map(|replica| replica % settings.adapters).collect();
        let mut world = Self {
            now: 0,
            start,
            settings,
            random,
            adapters,
            replicas,
            server,
            has_led: false,
            ordered: None,
            held_out: Vec::new(),
            beginning: Beginning::default(),
            reports: BTreeMap::new(),
            whose: HashMap::new(),
            next,
            verdict: Verdict::default(),
            bug,
            events: 0,
            queue: Queue::new(),
            is_unheard: false,
            next_id: 1,
            slow_until: 0,
            trace: with_trace.then(Vec::new),
        };
        for adapter in 0..world.settings.adapters {
            world.adapters[adapter].is_up = false;
            let begin = world.random.spread(0, 3_000);
            world.at(begin, Event::AdapterUp(adapter));
        }
        for replica in 0..world.settings.replicas {
            for series in 0..world.settings.series {
                let phase = world.settings.phase(replica, series);
                world.at(phase, Event::Scrape { replica, series });
            }
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
            trace.push(format!("{:>9.3} {text}", Duration::from_millis(self.now as u64).as_secs_f64()));
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

    /// What all clocks show.
    pub(crate) fn wall(&self) -> i64 {
        EPOCH_MS + self.now
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
                if self.replicas[replica].life == life && self.replicas[replica].is_up {
                    self.on_sender(replica, what);
                }
            }
            Event::Scrape { replica, series } => self.on_scrape(replica, series),
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
            Event::ServerUp => {
                self.server.is_up = true;
                // They are not logged.
                self.reports.clear();
                self.say(format_args!("server: up"));
            }
            Event::AdapterUp(index) => self.start_adapter(index),
            Event::ReplicaUp(index) => {
                self.replicas[index].is_up = true;
                self.say(format_args!("replica {index}: up"));
            }
            Event::Ending => {
                if self.settings.scrape_until < SCRAPE_UNTIL_MAX && self.is_waiting() {
                    self.settings.scrape_until += 10_000;
                    self.settings.end_at += 10_000;
                    self.at(self.now + 10_000, Event::Ending);
                }
            }
            Event::Release(replica) => self.held_out.retain(|held_out| *held_out != replica),
            Event::KillLeader { down_ms } => self.on_fault(Fault::KillLeader { down_ms }),
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
        // Who is gone has no connections.
        let is_there = self.adapters[from.adapter].address() == from;
        match remote {
            Remote::Round { op, report } => {
                if let Some(report) = report {
                    self.reports.insert(from.adapter, Report { reported_at: self.now, ..report });
                }
                let seen = self.seen();
                self.tell_adapter(from, op, Reply::Read(seen));
            }
            Remote::TakeOver { op, succession } => {
                let has_taken = self.take_over(&succession);
                self.tell_adapter(from, op, Reply::Taken(has_taken));
            }
            Remote::Beginning { op, token } => {
                let is_in_force = self.server.group.token == token;
                let beginning = is_in_force.then(|| self.beginning.clone());
                self.tell_adapter(from, op, Reply::Beginning(beginning));
            }
            Remote::OpenHole { op, token, watermark_ms } => {
                let server_ms = self.wall();
                if self.server.group.token == token {
                    self.server.group.open_hole(watermark_ms, server_ms);
                    self.say(format_args!("server: a hole is open, behind {watermark_ms:?}"));
                }
                self.tell_adapter(from, op, Reply::Opened);
            }
            Remote::Begin { op, replica, key, rows, fence } => {
                if !is_there {
                    return;
                }
                let (stage, fills) = (Stage::Fence, None);
                self.whose.insert(op, replica);
                let transaction = Transaction { id: op, who: from, op, key, rows, fence, stage, fills };
                self.server.transactions.push_back(transaction);
                self.settle();
            }
            Remote::Compare { op, replica, rows, fence, clock_ms } => {
                let is_locked = self.server.transactions.iter().any(|transaction| transaction.fills.is_some());
                if !is_there || is_locked {
                    return self.tell_adapter(from, op, Reply::Failed);
                }
                let mut series: Vec<i64> = rows.iter().map(|row| row.series_id).collect();
                series.dedup();
                let times = || rows.iter().map(|row| row.time_ms);
                let (from_ms, to_ms) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
                let stored = self.server.stored_around(&series, from_ms, to_ms);
                let key = Uuid::from_u128(u128::from(op));
                let (stage, fills, rows) = (Stage::Comparing, Some(clock_ms), Vec::new());
                self.whose.insert(op, replica);
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
            Remote::Gone => {
                self.server.transactions.retain(|transaction| transaction.who != from);
                self.settle();
            }
        }
    }

    /// The cluster's row, and what adapters have told.
    fn seen(&self) -> Option<Seen> {
        if !self.has_led {
            return None;
        }
        let group = &self.server.group;
        let told: Vec<&Report> = self.reports.values().filter(|report| report.token == group.token).collect();
        let heard_at = told.iter().filter_map(|report| report.heard_at).max();
        let lives = told.iter().filter(|report| report.reported_at > self.now - LIVES_MS);
        let doubted_at = lives.filter_map(|report| report.doubted_at).max();
        let ago = |at: Ms| Duration::from_millis(u64::try_from(self.now - at).unwrap_or(0));
        let fresh = || told.iter().filter(|report| report.reported_at > self.now - FRESH_MS);
        let newest_ms = fresh().filter_map(|report| report.progress.newest_ms).max();
        let lag_ms = fresh().map(|report| report.progress.lag_ms).max().unwrap_or(0);
        let pending_ms = fresh().filter_map(|report| report.progress.pending_ms).min();
        let behind = newest_ms.map(|newest_ms| newest_ms - lag_ms - MARGIN_MS);
        let before = pending_ms.map(|pending_ms| pending_ms - 1);
        let watermark_ms = behind.into_iter().chain(before).min();
        Some(Seen {
            fence: Fence { group_no: 1, term: group.term, token: group.token },
            replica: group.holder.to_string(),
            heard_ago: heard_at.map(ago),
            doubted_ago: doubted_at.map(ago),
            watermark_ms,
            holes: group.holes.clone(),
            next: self.ordered.clone().filter(|(_, until)| self.now < *until).map(|(next, _)| next),
            held_out: self.held_out.iter().map(ToString::to_string).collect(),
        })
    }

    fn take_over(&mut self, succession: &Succession) -> bool {
        let (group, bug) = (&self.server.group, self.bug);
        let writes = self.server.transactions.iter().any(|one| !matches!(one.stage, Stage::Comparing | Stage::Fence));
        let is_current = self.has_led.then_some(group.token) == succession.token;
        if !is_current || (writes && bug != Some(Bug::SkipDrain)) {
            return false;
        }
        let silent_ms = Ms::try_from(succession.silent_for.as_millis()).unwrap_or(Ms::MAX);
        let is_heard = |report: &Report| {
            Some(report.token) == succession.token && report.heard_at.is_some_and(|at| at > self.now - silent_ms)
        };
        let begins = |report: &Report| {
            report.reported_at > self.now - LIVES_MS && !(report.has_begun && Some(report.token) == succession.token)
        };
        if self.reports.values().any(|report| is_heard(report) || begins(report)) {
            return false;
        }
        let server_ms = self.wall();
        let token = Uuid::from_u128(u128::from(self.id()) << 64 | 1);
        let since_ms = succession.watermark_ms.unwrap_or(server_ms - LOOKED_BACK_MS);
        let last = |series: usize| {
            let last_ms = self.server.last_time(series, since_ms, i64::MAX).filter(|last_ms| *last_ms > since_ms)?;
            Some((i64::try_from(series).unwrap_or(0), last_ms + succession.behind_ms))
        };
        let last_ms = (0..self.settings.series).filter_map(last).collect();
        self.beginning = Beginning { last_ms, others_ms: succession.watermark_ms.unwrap_or(i64::MIN) };
        self.has_led = true;
        self.ordered = None;
        let group = &mut self.server.group;
        group.term += 1;
        group.token = token;
        group.holder = succession.replica.parse().unwrap_or(0);
        group.heartbeat = Some(self.now);
        group.open_hole(succession.watermark_ms, server_ms);
        let (term, holder) = (group.term, group.holder);
        let beginning = self.beginning.clone();
        self.say(format_args!("server: replica {holder} leads in term {term}, behind {beginning:?}"));
        true
    }

    fn settle(&mut self) {
        for one in self.server.settle() {
            match one {
                Told::Drained(_) => {}
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
        let replica = self.whose.get(&op).copied().unwrap_or(0);
        let (term, fills) = (transaction.fence.term, transaction.fills.is_some());
        for row in &transaction.rows {
            let stored = Stored { time_ms: row.time_ms, value: row.value, replica, term, fills };
            self.judge_row(series_index(row), stored);
        }
        if let Some(clock_ms) = transaction.fills {
            self.server.group.fills_by(clock_ms);
        }
        let word = if fills { "fills in" } else { "commits" };
        let rows = show(&transaction.rows);
        self.say(format_args!("server: {word} replica {replica} by adapter {}: {rows}", from.adapter));
        self.tell_adapter(from, op, Reply::Committed);
        self.settle();
    }

    // ---- the replicas

    fn on_scrape(&mut self, replica: usize, series: usize) {
        let interval = self.settings.scrape_ms;
        if self.now + interval < self.settings.scrape_until {
            self.at(self.now + interval, Event::Scrape { replica, series });
        }
        let series_id = i64::try_from(series).unwrap_or(0);
        let row = Row { series_id, time_ms: self.wall(), value: self.now as f64 };
        if let Some(shard) = self.replicas[replica].scrape(row) {
            self.schedule_send(replica, shard);
        }
    }

    fn schedule_send(&mut self, replica: usize, shard: usize) {
        let (batch_max, deadline_ms) = (self.settings.batch_max, self.settings.send_deadline_ms);
        let sender = &mut self.replicas[replica];
        let life = sender.life;
        if let Some(after) = sender.shards[shard].schedule(batch_max, deadline_ms) {
            self.at(self.now + after, Event::Sender { replica, life, what: Sender::Send { shard } });
        }
    }

    fn on_sender(&mut self, replica: usize, what: Sender) {
        match what {
            Sender::Send { shard } => self.send(replica, shard),
            Sender::Answer { shard, attempt, accepted } => {
                let state = &mut self.replicas[replica].shards[shard];
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
        let sender = &mut self.replicas[replica];
        let life = sender.life;
        if sender.shards[shard].awaits(attempt) {
            let after = sender.shards[shard].back_off();
            self.at(self.now + after, Event::Sender { replica, life, what: Sender::Send { shard } });
        }
    }

    fn send(&mut self, replica: usize, shard: usize) {
        let key = Uuid::from_u128(u128::from(self.id()));
        let batch_max = self.settings.batch_max;
        let sender = &mut self.replicas[replica];
        let life = sender.life;
        let Some((attempt, batch)) = sender.shards[shard].begin(key, batch_max) else { return };
        let is_silent = sender.silent_until > self.now;
        let timeout = self.settings.remote_timeout_ms;
        self.at(self.now + timeout, Event::Sender { replica, life, what: Sender::Timeout { shard, attempt } });
        if is_silent {
            return;
        }
        let adapter = self.next[replica];
        let is_refused = !self.adapters[adapter].takes_connections();
        if self.settings.in_turn || is_refused {
            self.next[replica] = (adapter + 1) % self.settings.adapters;
        }
        if is_refused {
            let what = Sender::Answer { shard, attempt, accepted: false };
            return self.at(self.now + 1, Event::Sender { replica, life, what });
        }
        let after = self.random.between(0, 2);
        self.local(adapter, after, Local::Deliver { replica, life, shard, attempt, batch });
    }

    // ---- faults

    fn start_adapter(&mut self, index: usize) {
        if self.adapters[index].is_up {
            return;
        }
        let life = self.adapters[index].life + 1;
        let cut_until = self.adapters[index].cut_until;
        self.adapters[index] = Adapter::new(index, life, &self.settings);
        self.adapters[index].cut_until = cut_until;
        self.say(format_args!("adapter {index}: starts"));
        self.local(index, 0, Local::Round(0));
    }

    /// An adapter's process ends, and its memory with it.
    pub(crate) fn kill_adapter(&mut self, index: usize, down_ms: Ms) {
        if !self.adapters[index].is_up {
            return;
        }
        for replica in 0..self.settings.replicas {
            for row in self.adapters[index].held(replica) {
                self.replicas[replica].destroy(&row);
            }
        }
        let address = self.adapters[index].address();
        if let Some(after) = self.link(index) {
            self.at(self.now + after + 5, Event::Remote(address, Remote::Gone));
        }
        // What waited for an answer is told at once that nobody is there.
        for (replica, life, shard, attempt) in self.adapters[index].in_hand() {
            let what = Sender::Answer { shard, attempt, accepted: false };
            self.at(self.now + 1, Event::Sender { replica, life, what });
        }
        self.adapters[index].is_up = false;
        self.adapters[index].life += 1;
        self.say(format_args!("adapter {index}: ends"));
        self.at(self.now + down_ms, Event::AdapterUp(index));
    }

    fn kill_replica(&mut self, index: usize, down_ms: Ms) {
        if self.replicas[index].is_up {
            let in_hand = |adapter: &Adapter| adapter.in_hand().iter().any(|(replica, ..)| *replica == index);
            self.is_unheard |= self.adapters.iter().any(in_hand);
            self.replicas[index].die();
            for adapter in 0..self.settings.adapters {
                if self.adapters[adapter].is_up && self.settings.connects {
                    self.local(adapter, 1, Local::Gone { replica: index });
                }
            }
            self.at(self.now + down_ms, Event::ReplicaUp(index));
        }
    }

    fn on_fault(&mut self, fault: Fault) {
        let leader = self.server.group.holder;
        match fault {
            Fault::KillAdapter { adapter, down_ms } => self.kill_adapter(adapter, down_ms),
            Fault::StopAdapter { adapter, down_ms } => self.stop_adapter(adapter, down_ms),
            Fault::Freeze { adapter, for_ms } => self.adapters[adapter].frozen_until = self.now + for_ms,
            Fault::FreezeInWrite { adapter, for_ms } => self.adapters[adapter].freeze_in_write_ms = for_ms,
            Fault::Cut { adapter, for_ms } => self.adapters[adapter].cut_until = self.now + for_ms,
            Fault::KillReplica { replica, down_ms } => self.kill_replica(replica, down_ms),
            Fault::KillLeader { down_ms } => self.kill_replica(leader, down_ms),
            Fault::KillLeaders { apart_ms, down_ms } => {
                self.kill_replica(leader, down_ms);
                self.at(self.now + apart_ms, Event::KillLeader { down_ms });
            }
            Fault::Silence { replica, for_ms } => self.replicas[replica].silent_until = self.now + for_ms,
            Fault::SilenceLeader { for_ms } => self.replicas[leader].silent_until = self.now + for_ms,
            Fault::Reshuffle => {
                for replica in 0..self.settings.replicas {
                    self.next[replica] = self.random.below(self.settings.adapters);
                }
            }
            Fault::ServerCrash { down_ms } => {
                self.fail_all_transactions();
                self.server.is_up = false;
                self.at(self.now + down_ms, Event::ServerUp);
            }
            Fault::KillWrites => self.fail_all_transactions(),
            Fault::SlowServer { for_ms } => self.slow_until = self.now + for_ms,
            Fault::Yield { to } => {
                let next = to.map_or(Next::AnyOther, |replica| Next::Named(replica.to_string()));
                if to != Some(leader) {
                    self.ordered = Some((next, self.now + ms(PATIENCE)));
                }
            }
            Fault::Hold { replica, for_ms } => {
                self.held_out.push(replica);
                self.at(self.now + for_ms, Event::Release(replica));
            }
        }
    }

    fn fail_all_transactions(&mut self) {
        for transaction in std::mem::take(&mut self.server.transactions) {
            self.tell_adapter(transaction.who, transaction.op, Reply::Failed);
        }
    }
}

impl Remote {
    fn op(&self) -> Option<u64> {
        match self {
            Remote::Round { op, .. }
            | Remote::TakeOver { op, .. }
            | Remote::Beginning { op, .. }
            | Remote::OpenHole { op, .. }
            | Remote::Begin { op, .. }
            | Remote::Compare { op, .. }
            | Remote::Fill { op, .. }
            | Remote::Commit { op } => Some(*op),
            Remote::Abandon { .. } | Remote::Gone => None,
        }
    }
}
