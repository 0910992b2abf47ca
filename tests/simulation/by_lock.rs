//! The election among adapters that each have their own Prometheus. Follows `src/election/driver.rs` around the real
//! machine.

use prometheus_postgresql_adapter::election::role::LeaderRow;
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::election::Method;
use prometheus_postgresql_adapter::election::machine::{Action, Machine, Reason};
use prometheus_postgresql_adapter::election::orders::Order;
use prometheus_postgresql_adapter::election::role::Leader;
use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::fence::Fence;

use crate::Bug;
use crate::adapter::Adapter;
use crate::database::Group;
use crate::handover::Failure;
use crate::kernel::Ms;
use crate::link::{End, Lost, Way};
use crate::server::{Ask, Claim, Told, yields};
use crate::settings::ms;

type Session = End<Ask, Told>;

/// Maximum time that a stopping process waits until its buffer is empty.
pub(crate) const GRACE_MS: Ms = 25_000;

impl Adapter {
    /// Takes part in the election until the adapter is asked to stop.
    pub(crate) async fn elect(self: &Rc<Self>) {
        let config = self.world.settings.election.clone();
        let mut machine = Machine::new(config.clone(), self.now());
        let mut session: Option<Session> = None;
        let mut awake_at = self.now();
        let stops_at = Cell::new(None);
        while !machine.is_stopped() {
            if self.is_to_stop(&stops_at) {
                machine.on_shutdown();
            }
            let now = self.now();
            if now.saturating_duration_since(awake_at) > config.heartbeat_interval() * 3 {
                self.liveness.borrow_mut().discount_pause(awake_at, now);
            }
            awake_at = now;
            self.tell(&mut machine);
            let action = machine.next(now);
            self.publish(&machine);
            if let Some(outcome) = machine.outcome(now) {
                self.world.say(format_args!("adapter {}: order ended {outcome:?}", self.index));
            }
            match (action, &session) {
                (Action::Wait(until), _) => self.wait(until, session.as_ref(), &mut machine, &stops_at).await,
                (Action::Close(reason), _) => {
                    self.world.say(format_args!("adapter {}: closes, {}", self.index, reason.label()));
                    let closed = session.take();
                    if self.world.bug == Some(Bug::LockTwice) && reason == Reason::PrometheusTimeout {
                        session = closed.inspect(|closed| closed.send(Ask::Unlock));
                    }
                    machine.on_closed(self.now());
                }
                (Action::Connect, _) => {
                    if session.is_none() || self.world.bug != Some(Bug::LockTwice) {
                        session = self.connect().await;
                    }
                    match session {
                        Some(_) => machine.on_connected(self.now()),
                        None => machine.on_lost(Reason::SessionLost, self.now()),
                    }
                }
                (Action::RaiseTerm, Some(opened)) => self.take_over(opened, &mut machine).await,
                (Action::TryLock | Action::Observe | Action::Heartbeat, Some(opened)) => {
                    self.ask(action, opened, &mut machine).await;
                }
                (Action::HandOver, Some(opened)) => self.hand_over(opened, &mut machine).await,
                (_, None) => machine.on_lost(Reason::SessionLost, now),
            }
        }
        self.publish(&machine);
        drop(session);
        self.world.adapter_ended(self.index);
    }

    fn now(&self) -> Instant {
        self.world.kernel.instant()
    }

    /// True if the adapter was asked to stop and its buffer is empty, or if it has waited long enough for that.
    fn is_to_stop(&self, stops_at: &Cell<Option<Ms>>) -> bool {
        if !self.is_stopping.get() {
            return false;
        }
        let until = stops_at.get().unwrap_or(self.world.now() + GRACE_MS);
        stops_at.set(Some(until));
        (self.senders.is_drained() && self.in_flight.get() == 0) || self.world.now() >= until
    }

    async fn wait(
        &self,
        until: Instant,
        session: Option<&Session>,
        machine: &mut Machine,
        stops_at: &Cell<Option<Ms>>,
    ) {
        let seen = self.woken.seen();
        let ended = async {
            match session {
                Some(opened) => opened.ended().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = ended => machine.on_lost(Reason::SessionLost, self.now()),
            () = self.woken.changed_since(seen) => {}
            () = self.world.kernel.sleep_until(self.world.kernel.time_of(until).max(self.world.now() + 1)) => {}
            () = self.world.kernel.sleep(500), if stops_at.get().is_some() => {}
        }
        if self.is_fenced.take() && machine.fence().is_some() {
            machine.on_lost(Reason::Fenced, self.now());
        }
        self.take_orders(machine);
    }

    fn take_orders(&self, machine: &mut Machine) {
        for order in self.orders.take() {
            let now = self.now();
            self.world.say(format_args!("adapter {}: ordered to {order:?}", self.index));
            machine.on_order(order, now, now + self.world.settings.election.lease);
        }
    }

    fn tell(&self, machine: &mut Machine) {
        let now = self.now();
        machine.on_liveness(self.liveness.borrow().silent_at(now), now);
        machine.on_writes(self.failing());
    }

    async fn connect(&self) -> Option<Session> {
        let index = self.index;
        let session =
            self.world.connect(index, Way::Locks, move |world, end, task| world.lock_session(end, task, index));
        let lease = ms(self.world.settings.election.lease);
        match self.world.kernel.within(lease, session.next()).await.flatten() {
            Some(Told::Connected) => Some(session),
            _ => None,
        }
    }

    async fn answer(&self, session: &Session, ask: Ask, limit: Duration) -> Result<Told, Lost> {
        session.send(ask);
        self.world.kernel.within(ms(limit).max(1), session.next()).await.flatten().ok_or(Lost)
    }

    async fn ask(&self, action: Action, opened: &Session, machine: &mut Machine) {
        let sent_at = self.now();
        let stale_after = self.world.settings.election.stale_after();
        let limit = machine.deadline().map_or(stale_after, |until| until.saturating_duration_since(sent_at));
        let asked = match (action, machine.fence()) {
            (Action::TryLock, _) => Ask::TryLock,
            (Action::Observe, _) => Ask::Observe,
            (_, Some(fence)) => Ask::Heartbeat { token: fence.token },
            (_, None) => return,
        };
        match self.answer(opened, asked, limit).await {
            Ok(Told::Tried { is_obtained: true, .. }) => machine.on_tried(true, None, sent_at),
            Ok(Told::Tried { group, .. }) => {
                let observed = group.map(|(group, age_ms)| self.observed(&group, age_ms));
                match action {
                    Action::TryLock => machine.on_tried(false, observed, sent_at),
                    _ => machine.on_observed(observed, sent_at),
                }
            }
            Ok(Told::Beat(true)) => {
                machine.on_heartbeat(sent_at);
                if let Some(fence) = machine.fence() {
                    self.open_others(fence);
                }
            }
            Ok(Told::Beat(false)) => machine.on_lost(Reason::Fenced, self.now()),
            _ => machine.on_lost(Reason::SessionLost, self.now()),
        }
    }

    fn observed(&self, group: &Group, age_ms: Ms) -> LeaderRow {
        if let Some(token) = group.token {
            self.open_others(Fence { group_no: 1, term: group.term, token });
        }
        let age_ms = if self.world.bug == Some(Bug::StaleIsStandby) { 0 } else { age_ms };
        let millis = |ms: Ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let server_ms = self.world.server_ms();
        let is_others = |(to, until): &(Option<usize>, i64)| *to != Some(self.index) && yields(*until, server_ms);
        let successor = group.successor.filter(is_others);
        LeaderRow {
            leader: Leader { holder: group.holder.to_string(), term: group.term },
            heartbeat_age: millis(age_ms),
            yields_for: successor.map(|(_, until)| millis(until - server_ms)),
        }
    }

    /// Like `Senders::observed`.
    fn open_others(&self, fence: Fence) {
        let member = self.senders.of(self.index);
        if member.leads.get() != Some(fence.token) {
            member.open();
        }
    }

    async fn hand_over(&self, opened: &Session, machine: &mut Machine) {
        let Some((fence, to)) = machine.fence().zip(machine.successor().map(str::to_owned)) else { return };
        let to: usize = to.parse().unwrap_or(0);
        let limit = machine.deadline().map_or(Duration::ZERO, |until| until.saturating_duration_since(self.now()));
        if to == self.index || !self.world.is_adapter_up(to) {
            return machine.on_no_such_peer(Vec::new());
        }
        match self.answer(opened, Ask::HandOver { token: fence.token, to }, limit).await {
            Ok(Told::Beat(true)) => machine.on_handed_over(self.now()),
            Ok(_) => machine.on_lost(Reason::Fenced, self.now()),
            Err(Lost) => machine.on_lost(Reason::SessionLost, self.now()),
        }
    }

    async fn raise(
        &self,
        opened: &Session,
        machine: &Machine,
        sender: SenderNo,
    ) -> Result<Option<(Fence, Instant)>, Lost> {
        let lease = self.world.settings.election.lease;
        let Told::Drained = self.answer(opened, Ask::Drain, lease).await? else { return Err(Lost) };
        let proven_at = self.now();
        let claim = match (&self.world.settings.election.method, machine.follows()) {
            (Method::AdvisoryLock(_), _) => Claim::Lock,
            (Method::External(_), Some(token)) => Claim::Follows(token),
            (Method::External(_), None) => Claim::Appointed,
        };
        match self.answer(opened, Ask::Raise { sender, claim }, lease).await? {
            Told::Raised(fence) => Ok(Some((fence, proven_at))),
            _ => Ok(None),
        }
    }

    async fn take_over(self: &Rc<Self>, opened: &Session, machine: &mut Machine) {
        let lease = ms(self.world.settings.election.lease);
        let member = self.senders.of(self.index);
        let stale_after = ms(self.world.settings.election.stale_after());
        let Some(Ok(sender)) = self.world.kernel.within(stale_after, self.senders.number(&member)).await else {
            return machine.on_lost(Reason::TakeOverFailed, self.now());
        };
        let raised = self.world.kernel.within(lease, self.raise(opened, machine, sender)).await;
        let (fence, proven_at) = match raised {
            Some(Ok(Some(raised))) => raised,
            Some(Ok(None)) => return machine.on_refused(self.now()),
            _ => return machine.on_lost(Reason::SessionLost, self.now()),
        };
        machine.on_term(fence, proven_at);
        self.is_fenced.set(false);
        let mut preparing = std::pin::pin!(self.senders.drain(&member, fence));
        loop {
            self.tell(machine);
            self.publish(machine);
            match machine.next(self.now()) {
                Action::Wait(until) => {
                    let seen = self.woken.seen();
                    tokio::select! {
                        biased;
                        prepared = &mut preparing => {
                            match prepared {
                                Ok(()) => machine.on_prepared(),
                                Err(Failure::Fenced) => machine.on_lost(Reason::Fenced, self.now()),
                                Err(Failure::Lost) => machine.on_lost(Reason::TakeOverFailed, self.now()),
                            }
                            return;
                        }
                        () = opened.ended() => return machine.on_lost(Reason::SessionLost, self.now()),
                        () = self.world.kernel.sleep_until(self.world.kernel.time_of(until).max(self.world.now() + 1)) => {}
                        () = self.woken.changed_since(seen) => self.take_orders(machine),
                    }
                    if let Some(outcome) = machine.outcome(self.now()) {
                        self.world.say(format_args!("adapter {}: order ended {outcome:?}", self.index));
                    }
                }
                Action::Heartbeat => self.ask(Action::Heartbeat, opened, machine).await,
                Action::HandOver => self.hand_over(opened, machine).await,
                _ => return,
            }
        }
    }

    fn publish(&self, machine: &Machine) {
        let role = machine.role(self.now());
        if role.word() != self.role.borrow().word() {
            self.world.say(format_args!("adapter {}: {}", self.index, role.word()));
        }
        *self.role.borrow_mut() = role;
        self.changed.tell();
    }

    /// Gives an order to the adapter, from an operator or an external party.
    pub(crate) fn order(&self, order: Order) {
        self.orders.borrow_mut().push(order);
        self.woken.tell();
    }
}
