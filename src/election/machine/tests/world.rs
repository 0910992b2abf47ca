//! The whole state of a story: server, adapters, messages in flight and time. Also the conditions that must hold.

use std::time::{Duration, Instant};

use super::super::{Action, LeaderRow, Machine};
use super::driver::{Adapter, Tenure};
use super::server::{Holder, Server, Session};
use super::{Fault, Kind, Story, config};
use crate::election::liveness::Liveness;
use crate::election::role::Role;
use crate::election::{Config, WritePath};
use crate::storage::fence::Fence;

/// Time after the last fault, in ms, within which everything must settle. It covers the end of a session by the server,
/// before it the longest Prometheus timeout with the pause after our own refusals, and one second.
const SETTLED_AFTER: u64 = 25_000;

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Connected(usize),
    Tried(bool, Option<LeaderRow>),
    Observed(Option<LeaderRow>),
    Term(Fence),
    Heartbeat(bool),
    Failed,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
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

pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: u64,
    pub(super) config: Config,
    pub(super) server: Server,
    pub(super) adapters: Vec<Adapter>,
    /// Time, serial number, adapter, event.
    pub(super) events: Vec<(u64, u64, usize, Event)>,
    pub(super) serial: u64,
    pub(super) random: u64,
    pub(super) terms_begun: u64,
    pub(super) statements: u64,
}

impl World {
    pub(super) fn new(story: &Story) -> Self {
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

    pub(super) fn process(&self) -> Adapter {
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
            failing_until: 0,
            write_path: WritePath::default(),
            starts_at: None,
            born_at_event: self.serial,
        }
    }

    pub(super) fn instant(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    pub(super) fn ms(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).unwrap()
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub(super) fn latency(&mut self, adapter: usize) -> u64 {
        let most = if self.now < self.adapters[adapter].slow_until { 2_000 } else { 10 };
        1 + self.random(most)
    }

    pub(super) fn is_cut(&self, adapter: usize) -> bool {
        self.now < self.adapters[adapter].cut_until
    }

    pub(super) fn schedule(&mut self, at: u64, adapter: usize, event: Event) {
        self.serial += 1;
        self.events.push((at, self.serial, adapter, event));
    }

    /// Sends a statement or the end of a session, after everything that the session sent before.
    pub(super) fn send_to_server(&mut self, adapter: usize, session: Option<usize>, event: Event) {
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

    pub(super) fn send_to_adapter(&mut self, adapter: usize, event: Event) {
        if !self.is_cut(adapter) {
            let at = self.now + self.latency(adapter);
            self.schedule(at, adapter, event);
        }
    }

    pub(super) fn run(&mut self, story: &Story) {
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

    /// Returns the time of the next event.
    pub(super) fn next_time(&self) -> u64 {
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

    pub(super) fn ends_at(&self, session: &Session) -> u64 {
        let timeout = u64::try_from(self.config.session_timeout().as_millis()).unwrap();
        session.heard_at.max(session.busy_until).saturating_add(timeout)
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        let until = fault.at + fault.lasts;
        let adapter = &mut self.adapters[fault.adapter];
        let latest = |known: &mut u64| *known = (*known).max(until);
        match fault.kind {
            Kind::Freeze => latest(&mut adapter.frozen_until),
            Kind::Cut => latest(&mut adapter.cut_until),
            Kind::Silence => latest(&mut adapter.silent_until),
            Kind::Slow => latest(&mut adapter.slow_until),
            Kind::StuckWrites => latest(&mut adapter.stuck_until),
            Kind::FailingWrites => latest(&mut adapter.failing_until),
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

    /// Checks the conditions that hold at every moment.
    pub(super) fn check(&self) {
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
                    // An adapter whose session was ended by force learns of it, or of the fence, a moment later.
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

    /// Checks the conditions that hold when no fault has occurred for a while.
    pub(super) fn check_settled(&self) {
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
