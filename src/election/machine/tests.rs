//! The machine against a model of PostgreSQL: two or three adapters in virtual time, and faults at any moment.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use uuid::Uuid;

use super::{Action, Machine, Observed, Reason};
use crate::election::liveness::Liveness;
use crate::election::role::{Fence, Leader, Role};
use crate::election::{Config, PrometheusTimeout};

/// How often a Prometheus sends.
const SEND_INTERVAL: u64 = 500;

/// Within this of the last fault everything must have settled: a session's end by the server, the longest Prometheus
/// timeout with our own refusals excused before it, and a second.
const SETTLED_AFTER: u64 = 25_000;

/// A writer of an old term is terminated after so long.
const DRAIN_PATIENCE: u64 = 500;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The process does nothing; what is sent to it waits.
    Freeze,
    /// Nothing passes between adapter and server, and neither learns of it.
    Cut,
    /// Its Prometheus sends nothing.
    Silence,
    /// Messages take up to two seconds.
    Slow,
    /// Its next transactions are not ended by it.
    StuckWrites,
    /// An administrator ends its lock session.
    Terminate,
    /// SIGTERM, and a new process when the fault is over.
    Stop,
    /// SIGKILL, and a new process when the fault is over.
    Kill,
    /// The server is down: every session ends.
    ServerDown,
    /// A stranger takes the lock if it is free, and keeps it.
    Stranger,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    at: u64,
    lasts: u64,
    adapter: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
struct Story {
    adapters: usize,
    lease: Duration,
    timeout: PrometheusTimeout,
    faults: Vec<Fault>,
    /// Whose Prometheus sends in the end; the last adapter's always does.
    sends_at_last: [bool; 2],
    seed: u64,
}

fn stories() -> impl Strategy<Value = Story> {
    let kind = proptest::sample::select(vec![
        Kind::Freeze,
        Kind::Cut,
        Kind::Silence,
        Kind::Slow,
        Kind::StuckWrites,
        Kind::Terminate,
        Kind::Stop,
        Kind::Kill,
        Kind::ServerDown,
        Kind::Stranger,
    ]);
    let fault = (0..20_000_u64, 10..15_000_u64, 0..3_usize, kind).prop_map(|(at, lasts, adapter, kind)| Fault {
        at,
        lasts,
        adapter,
        kind,
    });
    let timeout = proptest::sample::select(vec![
        PrometheusTimeout::Never,
        PrometheusTimeout::After(Duration::from_secs(2)),
        PrometheusTimeout::After(Duration::from_secs(6)),
        PrometheusTimeout::Automatic,
    ]);
    let lease = proptest::sample::select(vec![Duration::from_secs(3), Duration::from_secs(10)]);
    (2..=3_usize, lease, timeout, proptest::collection::vec(fault, 0..8), any::<[bool; 2]>(), any::<u64>()).prop_map(
        |(adapters, lease, timeout, mut faults, sends_at_last, seed)| {
            faults.iter_mut().for_each(|fault| fault.adapter %= adapters);
            faults.sort_by_key(|fault| fault.at);
            Story { adapters, lease, timeout, faults, sends_at_last, seed }
        },
    )
}

fn config(lease: Duration, timeout: PrometheusTimeout) -> Config {
    Config {
        lock_id: 1,
        prometheus_timeout: timeout,
        liveness_interval: Duration::from_secs(10),
        election_interval: Duration::from_millis(250),
        lease,
    }
}

/// The server: sessions, one lock, one row.
#[derive(Default)]
struct Server {
    down_until: u64,
    sessions: Vec<Session>,
    lock: Option<Holder>,
    term: i64,
    token: Uuid,
    holder: usize,
    heartbeat: Option<u64>,
    transactions: Vec<Transaction>,
    last_committed_term: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Holder {
    Session(usize),
    Stranger { until: u64 },
}

#[derive(Debug)]
struct Session {
    owner: usize,
    alive: bool,
    /// The server hears of it at this time at the latest by a message on the way; statements keep it from being idle.
    busy_until: u64,
    heard_at: u64,
    /// Messages of one session arrive in order.
    last_arrival: u64,
    /// Ended by an administrator or a restart, not by silence.
    is_forced: bool,
}

struct Transaction {
    fence: Fence,
    ends_at: u64,
}

#[derive(Clone, Debug)]
enum Reply {
    Connected(usize),
    Tried(bool, Option<Observed>),
    Observed(Option<Observed>),
    Term(Fence),
    Heartbeat(bool),
    Failed,
}

#[derive(Clone, Debug)]
enum Event {
    /// A statement reaches the server.
    Ask { session: Option<usize>, action: Action, fence: Option<Fence>, number: u64, waits_since: Option<u64> },
    /// An answer reaches the adapter.
    Answer { number: u64, reply: Reply },
    /// The end of a session reaches the server.
    Bye { session: usize },
    /// The end of a session reaches the adapter.
    Ended { session: usize },
    /// A write reaches the server.
    Write { fence: Fence, lasts: u64 },
}

/// What is asked of the server and not answered yet.
#[derive(Debug)]
struct Asked {
    number: u64,
    sent_at: u64,
    gives_up_at: u64,
}

/// What the driver knows of its term: the machine's role is held against it.
#[derive(Clone, Copy, Debug)]
struct Tenure {
    fence: Fence,
    renewed_at: u64,
    prepared_at: u64,
    is_prepared: bool,
}

/// One adapter: machine, driver, Prometheus.
struct Adapter {
    machine: Option<Machine>,
    liveness: Liveness,
    session: Option<usize>,
    has_lock: bool,
    tenure: Option<Tenure>,
    asked: Option<Asked>,
    /// Came while it was frozen, or busy.
    mail: Vec<Event>,
    wakes_at: u64,
    sends_at: u64,
    frozen_until: u64,
    cut_until: u64,
    silent_until: u64,
    slow_until: u64,
    stuck_until: u64,
    starts_at: Option<u64>,
    /// Messages to an earlier process are lost.
    born_at_event: u64,
}

struct World {
    start: Instant,
    now: u64,
    config: Config,
    server: Server,
    adapters: Vec<Adapter>,
    /// Time, serial number, adapter, event.
    events: Vec<(u64, u64, usize, Event)>,
    serial: u64,
    random: u64,
    terms_begun: u64,
    statements: u64,
}

impl World {
    fn new(story: &Story) -> Self {
        let mut world = Self {
            start: Instant::now() + Duration::from_secs(1),
            now: 0,
            config: config(story.lease, story.timeout),
            server: Server::default(),
            adapters: Vec::new(),
            events: Vec::new(),
            serial: 0,
            random: story.seed | 1,
            terms_begun: 0,
            statements: 0,
        };
        for _ in 0..story.adapters {
            let adapter = world.process();
            world.adapters.push(adapter);
        }
        world
    }

    fn process(&self) -> Adapter {
        Adapter {
            machine: Some(Machine::new(self.config.clone(), self.instant(self.now))),
            liveness: Liveness::new(self.config.prometheus_timeout),
            session: None,
            has_lock: false,
            tenure: None,
            asked: None,
            mail: Vec::new(),
            wakes_at: self.now,
            sends_at: self.now + 50,
            frozen_until: 0,
            cut_until: 0,
            silent_until: 0,
            slow_until: 0,
            stuck_until: 0,
            starts_at: None,
            born_at_event: self.serial,
        }
    }

    fn instant(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn ms(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).unwrap()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn latency(&mut self, adapter: usize) -> u64 {
        let most = if self.now < self.adapters[adapter].slow_until { 2_000 } else { 10 };
        1 + self.random(most)
    }

    fn is_cut(&self, adapter: usize) -> bool {
        self.now < self.adapters[adapter].cut_until
    }

    fn schedule(&mut self, at: u64, adapter: usize, event: Event) {
        self.serial += 1;
        self.events.push((at, self.serial, adapter, event));
    }

    /// Sends a statement or a good-bye, in order with what the session sent before.
    fn send_to_server(&mut self, adapter: usize, session: Option<usize>, event: Event) {
        if self.is_cut(adapter) {
            return;
        }
        let mut at = self.now + self.latency(adapter);
        if let Some(session) = session.map(|number| &mut self.server.sessions[number]) {
            at = at.max(session.last_arrival);
            session.last_arrival = at;
        }
        self.schedule(at, adapter, event);
    }

    fn send_to_adapter(&mut self, adapter: usize, event: Event) {
        if !self.is_cut(adapter) {
            let at = self.now + self.latency(adapter);
            self.schedule(at, adapter, event);
        }
    }

    fn run(&mut self, story: &Story) {
        let mut faults = story.faults.iter().copied().peekable();
        let calm_at = story.faults.iter().map(|fault| fault.at + fault.lasts).max().unwrap_or(0);
        let ends_at = calm_at + SETTLED_AFTER;
        for (adapter, sends) in story.sends_at_last.iter().enumerate().take(story.adapters - 1) {
            if !sends {
                self.adapters[adapter].silent_until = u64::MAX;
            }
        }
        let mut steps_now = 0;
        while self.now < ends_at {
            let next_fault = faults.peek().map_or(u64::MAX, |fault| fault.at);
            let next = self.next_time().min(next_fault).min(ends_at);
            steps_now = if next > self.now { 0 } else { steps_now + 1 };
            assert!(steps_now < 100, "time stands still: a busy loop");
            self.now = self.now.max(next);
            while let Some(fault) = faults.next_if(|fault| fault.at <= self.now) {
                self.strike(fault);
            }
            self.serve();
            let mut due: Vec<_> = Vec::new();
            self.events.retain(|event| {
                let is_due = event.0 <= self.now;
                if is_due {
                    due.push(event.clone());
                }
                !is_due
            });
            due.sort_by_key(|event| event.1);
            for (_, serial, adapter, event) in due {
                self.deliver(serial, adapter, event);
                self.check();
            }
            for adapter in 0..self.adapters.len() {
                self.drive(adapter);
                self.check();
            }
        }
        self.check_settled();
    }

    /// When something happens next.
    fn next_time(&self) -> u64 {
        let events = self.events.iter().map(|event| event.0);
        let transactions = self.server.transactions.iter().map(|transaction| transaction.ends_at);
        let sessions = self.server.sessions.iter().filter(|session| session.alive).map(|session| self.ends_at(session));
        let adapters = self.adapters.iter().map(|adapter| {
            let starts_at = adapter.starts_at.unwrap_or(u64::MAX);
            if adapter.machine.is_none() {
                return starts_at;
            }
            let asked = adapter.asked.as_ref();
            let driver = asked.map_or(adapter.wakes_at, |asked| asked.gives_up_at);
            let tenure = adapter.tenure.filter(|tenure| !tenure.is_prepared && asked.is_none());
            let prepared = tenure.map_or(u64::MAX, |tenure| tenure.prepared_at);
            let sends = adapter.sends_at.max(adapter.silent_until);
            driver.min(prepared).min(sends).max(adapter.frozen_until).min(starts_at)
        });
        events.chain(transactions).chain(sessions).chain(adapters).min().unwrap_or(u64::MAX)
    }

    fn ends_at(&self, session: &Session) -> u64 {
        let timeout = u64::try_from(self.config.session_timeout().as_millis()).unwrap();
        session.heard_at.max(session.busy_until).saturating_add(timeout)
    }

    fn strike(&mut self, fault: Fault) {
        let until = fault.at + fault.lasts;
        let adapter = &mut self.adapters[fault.adapter];
        let latest = |known: &mut u64| *known = (*known).max(until);
        match fault.kind {
            Kind::Freeze => latest(&mut adapter.frozen_until),
            Kind::Cut => latest(&mut adapter.cut_until),
            Kind::Silence => latest(&mut adapter.silent_until),
            Kind::Slow => latest(&mut adapter.slow_until),
            Kind::StuckWrites => latest(&mut adapter.stuck_until),
            Kind::Terminate => {
                if let Some(session) = adapter.session {
                    self.server.sessions[session].is_forced = true;
                    self.end(session);
                }
            }
            Kind::Stop => {
                if let Some(machine) = &mut adapter.machine {
                    machine.on_shutdown();
                    adapter.wakes_at = self.now;
                }
                adapter.starts_at.get_or_insert(until);
            }
            Kind::Kill => {
                adapter.machine = None;
                adapter.tenure = None;
                adapter.starts_at = Some(until);
                if let Some(session) = adapter.session.take() {
                    self.send_to_server(fault.adapter, Some(session), Event::Bye { session });
                }
            }
            Kind::ServerDown => {
                self.server.down_until = self.server.down_until.max(until);
                self.server.transactions.clear();
                for session in 0..self.server.sessions.len() {
                    self.server.sessions[session].is_forced |= self.server.sessions[session].alive;
                    self.end(session);
                }
            }
            Kind::Stranger => {
                self.server.lock.get_or_insert(Holder::Stranger { until });
            }
        }
    }

    /// What the server does by itself.
    fn serve(&mut self) {
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

    fn end(&mut self, session: usize) {
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

    fn deliver(&mut self, serial: u64, adapter: usize, event: Event) {
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

    /// A statement at the server; `None` while it waits for a lock.
    fn execute(
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

    fn row(&self) -> Option<Observed> {
        self.server.heartbeat.map(|heartbeat| Observed {
            leader: Leader { holder: self.server.holder.to_string(), term: self.server.term },
            heartbeat_age: Duration::from_millis(self.now - heartbeat),
        })
    }

    /// The adapter's own doing at this moment, as the driver does it.
    fn drive(&mut self, number: usize) {
        let now = self.now;
        if self.adapters[number].starts_at.is_some_and(|starts_at| starts_at <= now) {
            if let Some(session) = self.adapters[number].session.take() {
                self.send_to_server(number, Some(session), Event::Bye { session });
            }
            let old = &self.adapters[number];
            let (silent_until, cut_until) = (old.silent_until, old.cut_until);
            let process = Adapter { silent_until, cut_until, ..self.process() };
            self.adapters[number] = process;
        }
        if self.adapters[number].machine.is_none() || now < self.adapters[number].frozen_until {
            return;
        }
        self.receive(number);
        self.hear(number);
        let adapter = &mut self.adapters[number];
        if let (Some(tenure), None, Some(machine)) = (&mut adapter.tenure, &adapter.asked, &mut adapter.machine)
            && !tenure.is_prepared
            && tenure.prepared_at <= now
        {
            machine.on_prepared();
            tenure.is_prepared = machine.fence() == Some(tenure.fence);
        }
        while self.adapters[number].asked.is_none() && self.adapters[number].machine.is_some() {
            if !self.act(number) {
                break;
            }
        }
    }

    /// Takes in what has come, and gives up what has not.
    fn receive(&mut self, number: usize) {
        let now = self.instant(self.now);
        let now_ms = self.now;
        let start = self.start;
        let adapter = &mut self.adapters[number];
        let machine = adapter.machine.as_mut().unwrap();
        let mut is_lost = false;
        for event in std::mem::take(&mut adapter.mail) {
            match event {
                Event::Ended { session } => is_lost |= adapter.session == Some(session),
                Event::Answer { number, reply } => {
                    let Some(asked) = adapter.asked.take_if(|asked| asked.number == number) else {
                        // To a statement given up: a session that opened too late is dropped.
                        continue;
                    };
                    let sent_at = start + Duration::from_millis(asked.sent_at);
                    match reply {
                        Reply::Connected(session) => {
                            adapter.session = Some(session);
                            machine.on_connected(now);
                        }
                        Reply::Tried(obtained, observed) => {
                            adapter.has_lock = obtained;
                            machine.on_tried(obtained, observed, sent_at);
                        }
                        Reply::Observed(observed) => machine.on_observed(observed, sent_at),
                        Reply::Term(fence) => {
                            machine.on_term(fence, sent_at);
                            adapter.tenure = Some(Tenure {
                                fence,
                                renewed_at: asked.sent_at,
                                prepared_at: now_ms + 20,
                                is_prepared: false,
                            });
                        }
                        Reply::Heartbeat(true) => {
                            machine.on_heartbeat(sent_at);
                            if let Some(tenure) = &mut adapter.tenure {
                                tenure.renewed_at = asked.sent_at;
                            }
                        }
                        Reply::Heartbeat(false) => {
                            machine.on_lost(Reason::Fenced, now);
                            adapter.tenure = None;
                        }
                        Reply::Failed => is_lost = true,
                    }
                }
                Event::Ask { .. } | Event::Bye { .. } | Event::Write { .. } => unreachable!("for the server"),
            }
        }
        is_lost |= adapter.asked.as_ref().is_some_and(|asked| asked.gives_up_at <= now_ms);
        if is_lost {
            adapter.asked = None;
            adapter.tenure = None;
            machine.on_lost(Reason::SessionLost, now);
        }
        adapter.wakes_at = adapter.wakes_at.max(now_ms);
    }

    /// Its Prometheus sends when it is time; a leader's write goes to the server.
    fn hear(&mut self, number: usize) {
        let now = self.instant(self.now);
        let lasts = if self.now < self.adapters[number].stuck_until { 60_000 } else { 1 + self.random(50) };
        let adapter = &mut self.adapters[number];
        if self.now < adapter.sends_at.max(adapter.silent_until) {
            return;
        }
        adapter.sends_at = self.now + SEND_INTERVAL;
        adapter.liveness.begin(now);
        let role = adapter.machine.as_ref().unwrap().role(now);
        adapter.liveness.end(now, !matches!(role, Role::Leader { .. } | Role::Standby { .. }));
        adapter.wakes_at = self.now;
        if let Role::Leader { fence: Some(fence), .. } = role {
            self.send_to_server(number, None, Event::Write { fence, lasts });
        }
    }

    /// Asks the machine once and does what it says; false when there is nothing to do now.
    fn act(&mut self, number: usize) -> bool {
        let now = self.instant(self.now);
        let lease = self.config.lease;
        let adapter = &mut self.adapters[number];
        let machine = adapter.machine.as_mut().unwrap();
        let silent_at = adapter.liveness.silent_at(now);
        machine.on_liveness(silent_at, now);
        let action = machine.next(now);
        let mut again = machine.clone();
        assert_eq!(again.next(now), action, "asked again, it says something else");
        assert_eq!(again.role(now), machine.role(now), "asking changes the role");
        let patience = match action {
            Action::Wait(until) => {
                assert!(until > now, "waits for what has been");
                let until = self.ms(until);
                self.adapters[number].wakes_at = until;
                return false;
            }
            Action::Close(_) => {
                assert!(!matches!(machine.role(now), Role::Leader { .. }), "leads with a session that must go");
                machine.on_closed(now);
                (adapter.has_lock, adapter.tenure) = (false, None);
                if machine.is_stopped() {
                    adapter.machine = None;
                }
                if let Some(session) = adapter.session.take() {
                    self.send_to_server(number, Some(session), Event::Bye { session });
                }
                return true;
            }
            Action::Connect => {
                assert!(adapter.session.is_none(), "a second session beside the first");
                Duration::from_secs(10)
            }
            Action::TryLock => {
                assert!(!adapter.has_lock, "the lock is asked for twice in a session");
                assert!(silent_at.is_none_or(|at| at > now), "a candidate whose Prometheus is silent");
                self.config.stale_after()
            }
            Action::RaiseTerm => {
                assert!(adapter.has_lock, "a term without the lock");
                lease
            }
            Action::Observe => self.config.stale_after(),
            Action::Heartbeat => {
                let tenure = adapter.tenure.expect("a heartbeat without a term");
                let deadline = self.start + Duration::from_millis(tenure.renewed_at) + self.config.leader_deadline();
                assert!(now < deadline, "a term is renewed that is over");
                self.config.stale_after()
            }
        };
        assert!(action == Action::Connect || adapter.session.is_some(), "{action:?} without a session");
        let (session, fence) = (adapter.session, machine.fence());
        self.serial += 1;
        self.statements += 1;
        let asked = Asked {
            number: self.serial,
            sent_at: self.now,
            gives_up_at: self.now + u64::try_from(patience.as_millis()).unwrap(),
        };
        let ask = Event::Ask { session, action, fence, number: asked.number, waits_since: None };
        adapter.asked = Some(asked);
        self.send_to_server(number, session, ask);
        true
    }

    /// What must be true at every moment.
    fn check(&self) {
        let now = self.instant(self.now);
        let mut leaders = 0;
        for adapter in &self.adapters {
            let Some(machine) = &adapter.machine else { continue };
            let role = machine.role(now);
            assert_eq!(role.at(now), role, "an expired role is given out");
            let deadline = |tenure: Tenure| self.instant(tenure.renewed_at) + self.config.leader_deadline();
            let tenure = adapter.tenure.filter(|tenure| tenure.is_prepared && now < deadline(*tenure));
            match &role {
                Role::Leader { fence, until } => {
                    let tenure = tenure.expect("leads without a term of its own in force");
                    assert!(adapter.has_lock, "leads without the lock");
                    assert_eq!((*fence, *until), (Some(tenure.fence), Some(deadline(tenure))));
                    assert_eq!(role.at(deadline(tenure)), Role::Unknown, "leads beyond the deadline");
                    // One whose session was ended by force learns of it, or of its fence, a moment later.
                    let session = &self.server.sessions[adapter.session.expect("leads without a session")];
                    leaders += usize::from(!session.is_forced);
                }
                Role::Standby { until, .. } => {
                    let fresh = self.instant(self.server.heartbeat.expect("stands by without a leader"));
                    assert!(*until <= fresh + self.config.stale_after(), "stands by behind a stale leader");
                    assert!(!adapter.has_lock, "stands by with the lock");
                }
                _ => assert!(tenure.is_none(), "{role:?} with a term in force"),
            }
        }
        assert!(leaders <= 1, "{leaders} leaders at one time");
    }

    /// What must be true when nothing has gone wrong for a while.
    fn check_settled(&self) {
        let now = self.instant(self.now);
        let role = |adapter: &Adapter| adapter.machine.as_ref().map(|machine| machine.role(now));
        let roles: Vec<_> = self.adapters.iter().map(role).collect();
        let leaders = roles.iter().flatten().filter(|role| matches!(role, Role::Leader { .. })).count();
        assert_eq!(leaders, 1, "in the end the roles are {roles:?}");
        for (adapter, role) in self.adapters.iter().zip(&roles) {
            let is_silent = adapter.liveness.silent_at(now).is_some_and(|at| at <= now);
            match role {
                Some(Role::Leader { .. } | Role::Standby { .. }) => assert!(!is_silent, "in the end {roles:?}"),
                Some(Role::Resigned) => assert!(is_silent, "in the end {roles:?}"),
                _ => panic!("in the end the roles are {roles:?}"),
            }
        }
        let sessions = self.server.sessions.iter().filter(|session| session.alive).count();
        assert_eq!(sessions, self.adapters.len(), "sessions are left over");
        let seconds = self.now / 1_000 * u64::try_from(self.adapters.len()).unwrap();
        assert!(self.statements < 10 * seconds, "{} statements in {seconds} s", self.statements);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn one_leads_and_never_two(story in stories()) {
        World::new(&story).run(&story);
    }
}

#[test]
fn lease_bounds_what_is_derived_from_it() {
    for seconds in 3..=300 {
        for millis in [0, 1, 333, 999] {
            let config = config(Duration::from_millis(seconds * 1000 + millis), PrometheusTimeout::Never);
            let (deadline, timeout) = (config.leader_deadline(), config.session_timeout());
            assert!(deadline < timeout && timeout < config.lease, "{config:?}");
            // A clock that runs a tenth slow.
            assert!(deadline * 11 / 10 < timeout, "{config:?}");
            // One heartbeat may be lost, and the next may take as long as it is given, before the term is in danger.
            assert!(config.stale_after() + config.heartbeat_interval() > config.heartbeat_interval() * 2);
            assert!(config.stale_after() < deadline, "{config:?}");
            assert!(config.heartbeat_interval() * 2 < deadline, "{config:?}");
            // The server sees a standby that is silent look at the row often enough.
            assert!(config.heartbeat_interval() < timeout, "{config:?}");
        }
    }
}

#[test]
fn a_new_session_of_a_sender_is_not_resigned() {
    let start = Instant::now();
    let mut machine = Machine::new(config(Duration::from_secs(10), PrometheusTimeout::Never), start);
    machine.on_liveness(None, start);
    assert_eq!(machine.next(start), Action::Connect);
    machine.on_connected(start);
    assert_eq!(machine.role(start), Role::Unknown, "nobody was silent");
    machine.on_tried(false, None, start);
    let later = start + Duration::from_secs(1);
    machine.on_liveness(Some(later), later);
    assert_eq!((machine.next(later), machine.role(later)), (Action::Observe, Role::Resigned));
    machine.on_observed(None, later);
    machine.on_liveness(None, later);
    assert_eq!(
        machine.role(later),
        Role::Resigned,
        "until it knows better: a write waits, and finds leader or standby"
    );
    assert_eq!(machine.next(later), Action::TryLock);
    machine.on_tried(false, None, later);
    assert_eq!(machine.role(later), Role::Unknown);
}
