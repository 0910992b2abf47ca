//! The actions of one adapter in the model, as the driver does them: machine, session, Prometheus.

use std::time::Duration;

use super::super::{Action, Machine, Reason};
use super::world::{Event, Reply, World};
use crate::election::WritePath;
use crate::election::liveness::Liveness;
use crate::election::role::Role;
use crate::storage::fence::Fence;

/// Interval of the requests of a Prometheus, ms.
const SEND_INTERVAL: u64 = 500;

/// A statement that the server has not answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) sent_at: u64,
    pub(super) gives_up_at: u64,
}

/// The driver's own record of its term. The machine's role is compared with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenure {
    pub(super) fence: Fence,
    pub(super) renewed_at: u64,
    pub(super) prepared_at: u64,
    pub(super) is_prepared: bool,
}

/// One adapter: machine, driver, Prometheus.
pub(super) struct Adapter {
    pub(super) machine: Option<Machine>,
    pub(super) liveness: Liveness,
    pub(super) session: Option<usize>,
    pub(super) has_lock: bool,
    pub(super) tenure: Option<Tenure>,
    pub(super) asked: Option<Asked>,
    /// Messages that arrived while the adapter was frozen or busy.
    pub(super) mail: Vec<Event>,
    pub(super) wakes_at: u64,
    pub(super) sends_at: u64,
    pub(super) frozen_until: u64,
    pub(super) cut_until: u64,
    pub(super) silent_until: u64,
    pub(super) slow_until: u64,
    pub(super) stuck_until: u64,
    pub(super) failing_until: u64,
    pub(super) write_path: WritePath,
    pub(super) starts_at: Option<u64>,
    /// The last event before the process started. Earlier messages were sent to an earlier process, and are lost.
    pub(super) born_at_event: u64,
}

impl World {
    /// Runs the adapter's actions at this moment, as the driver does them.
    pub(super) fn drive(&mut self, number: usize) {
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

    /// Reads the messages that have arrived, and gives up a statement whose timeout is over.
    pub(super) fn receive(&mut self, number: usize) {
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
                        // The answer to a statement given up: a session that opened too late is dropped.
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

    /// Lets the Prometheus send when its time has come. The write of a leader goes to the server.
    pub(super) fn hear(&mut self, number: usize) {
        let now = self.instant(self.now);
        let lasts = if self.now < self.adapters[number].stuck_until { 60_000 } else { 1 + self.random(50) };
        let adapter = &mut self.adapters[number];
        if self.now < adapter.sends_at.max(adapter.silent_until) {
            return;
        }
        adapter.sends_at = self.now + SEND_INTERVAL;
        adapter.liveness.begin(now);
        let role = adapter.machine.as_ref().unwrap().role(now);
        let fails = self.now < adapter.failing_until && matches!(role, Role::Leader { .. });
        adapter.liveness.end(now, fails || !matches!(role, Role::Leader { .. } | Role::Standby { .. }));
        adapter.wakes_at = self.now;
        if fails {
            adapter.write_path.failed(now);
        } else if let Role::Leader { fence: Some(fence), .. } = role {
            adapter.write_path.succeeded();
            self.send_to_server(number, None, Event::Write { fence, lasts });
        }
    }

    /// Asks the machine once and does the action. Returns `false` if nothing is to be done now.
    pub(super) fn act(&mut self, number: usize) -> bool {
        let now = self.instant(self.now);
        let lease = self.config.lease;
        let adapter = &mut self.adapters[number];
        let machine = adapter.machine.as_mut().unwrap();
        let silent_at = adapter.liveness.silent_at(now);
        machine.on_liveness(silent_at, now);
        machine.on_writes(adapter.write_path.failing());
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
            Action::HandOver => unreachable!("nobody orders anything"),
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
}
