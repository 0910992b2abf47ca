//! The task that carries out the machine's actions on the lock session.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::election::commands::CommandQueue;
use crate::election::liveness_monitor::LivenessMonitor;
use crate::election::lock_session::{Claim, LockSession, Raised, prove_exclusion};
use crate::election::machine::{Action, Machine, Reason};
use crate::election::role::{LeaderRow, LockHolder, Role};
use crate::election::{Config, Method, Succession, Term, WritePath};
use crate::postgres::error::{Class, Error};
use crate::postgres::{Connector, within};
use crate::storage::fence::Fence;
use crate::storage::names::Names;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// One adapter's part in the election.
pub struct Election<S> {
    /// Timings, and the method by which an adapter becomes leader.
    pub config: Config,
    /// Opens the lock session.
    pub connector: Connector,
    /// Names of the tables, the leader table among them.
    pub names: Names,
    /// This adapter's name in the group's row.
    pub holder: String,
    /// Judges if the own Prometheus sends.
    pub heard: Arc<LivenessMonitor>,
    /// Tells if the writes of this adapter are committed.
    pub write_path: Arc<WritePath>,
    /// The hand-over.
    pub succession: Arc<S>,
    /// Owns the tasks that run beside the election.
    pub tracker: TaskTracker,
    /// Notified when a write finds that a newer term has begun.
    pub fenced: Arc<Notify>,
    /// Publishes the role.
    pub role: watch::Sender<Role>,
    /// Publishes the session that holds the lock, while no heartbeat shows a leader.
    pub lock_holder: watch::Sender<Option<LockHolder>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl<S: Succession> Election<S> {
    /// Takes part in elections until `stop` and carries out the orders from `commands`. Then releases the lock, as the
    /// last step, and returns.
    pub async fn run(self, stop: CancellationToken, mut commands: CommandQueue) {
        let mut machine = Machine::new(self.config.clone(), Instant::now());
        let mut session: Option<LockSession> = None;
        let mut proven = false;
        let mut awake_at = Instant::now();
        let mut trouble = LogThrottle::default();
        let mut look_at = awake_at;
        while !machine.is_stopped() {
            if stop.is_cancelled() {
                machine.on_shutdown();
            }
            let now = Instant::now();
            if now.saturating_duration_since(awake_at) > self.config.heartbeat_interval() * 3 {
                // The process was frozen, or the server delayed it. That nothing was heard in this time proves nothing.
                self.heard.discount_pause(awake_at, now);
            }
            awake_at = now;
            self.tell(&mut machine, now);
            let action = machine.next(now);
            self.publish(&machine, now);
            commands.answer(&mut machine, now);
            match (action, &session) {
                (Action::Wait(until), _) => {
                    self.wait(until, session.as_ref(), &mut machine, &stop, &mut commands).await
                }
                (Action::Close(reason), _) => {
                    self.close(session.take(), reason).await;
                    machine.on_closed(Instant::now());
                }
                (Action::Connect, _) => {
                    let connected = {
                        let connecting = self.connect(&mut proven);
                        tokio::pin!(connecting);
                        loop {
                            tokio::select! {
                                connected = &mut connecting => break Some(connected),
                                () = stop.cancelled() => break None,
                                given = commands.next() => {
                                    commands.take(given, &mut machine);
                                    commands.answer(&mut machine, Instant::now());
                                }
                            }
                        }
                    };
                    let Some(connected) = connected else { continue };
                    match connected {
                        Ok(opened) => {
                            if trouble.over() {
                                log::info!("the lock session is open again");
                            }
                            session = Some(opened);
                            commands.trouble = None;
                            machine.on_connected(Instant::now());
                        }
                        Err(error) => {
                            let why = error.to_string();
                            if trouble.should_log(&why, Instant::now()) {
                                log::error!(err = why.as_str(); "no lock session");
                            }
                            commands.trouble = Some(why);
                            self.count(&error);
                            machine.on_lost(Reason::SessionLost, Instant::now());
                        }
                    }
                }
                (Action::RaiseTerm, Some(opened)) => tokio::select! {
                    () = self.take_over(opened, &mut machine, &mut commands) => {}
                    () = stop.cancelled() => {}
                },
                (Action::TryLock | Action::Observe | Action::Heartbeat, Some(opened)) => {
                    self.ask(action, opened, &mut machine).await;
                    let now = Instant::now();
                    if now >= look_at && is_held_in_silence(&machine, now) {
                        look_at = now + self.config.heartbeat_interval();
                        self.name_holder(opened, &mut machine).await;
                    }
                }
                (Action::HandOver, Some(opened)) => self.hand_over(opened, &mut machine).await,
                (
                    Action::RaiseTerm | Action::TryLock | Action::Observe | Action::Heartbeat | Action::HandOver,
                    None,
                ) => {
                    machine.on_lost(Reason::SessionLost, now);
                }
            }
        }
        self.publish(&machine, Instant::now());
        commands.answer(&mut machine, Instant::now());
    }

    /// Sleeps until `until`, or until an event that may change the machine's next action.
    async fn wait(
        &self,
        until: Instant,
        session: Option<&LockSession>,
        machine: &mut Machine,
        stop: &CancellationToken,
        commands: &mut CommandQueue,
    ) {
        let ended = async {
            match session {
                Some(opened) => opened.ended().await,
                None => std::future::pending().await,
            }
        };
        let candidate = matches!(*self.role.borrow(), Role::Resigned);
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = ended => machine.on_lost(Reason::SessionLost, Instant::now()),
            () = self.heard.begun(), if candidate => {}
            () = self.heard.closed() => {}
            given = commands.next() => commands.take(given, machine),
            () = self.fenced.notified(), if machine.fence().is_some() => machine.on_lost(Reason::Fenced, Instant::now()),
            () = stop.cancelled(), if !machine.is_stopped() => machine.on_shutdown(),
        }
    }

    /// Passes the observations of the write path to the machine.
    fn tell(&self, machine: &mut Machine, now: Instant) {
        machine.on_liveness(self.heard.read().silent_at(now), now);
        machine.on_writes(self.write_path.failing());
    }

    async fn connect(&self, proven: &mut bool) -> Result<LockSession, Error> {
        if !*proven {
            prove_exclusion(&self.connector, &self.config).await?;
            *proven = true;
        }
        LockSession::open(&self.connector, &self.config, &self.names, &self.holder).await
    }

    /// Sends one short statement on the lock session.
    async fn ask(&self, action: Action, opened: &LockSession, machine: &mut Machine) {
        let sent_at = Instant::now();
        // A heartbeat has until the deadline of its term: a short delay of the server is no reason to give up the term.
        let limit =
            machine.deadline().map_or(self.config.stale_after(), |until| until.saturating_duration_since(sent_at));
        let done = within(limit, async {
            match (action, &self.config.method) {
                (Action::TryLock, Method::AdvisoryLock(id)) if opened.try_lock(*id).await? => {
                    log::info!(group:% = self.config.group(); "lock obtained");
                    machine.on_tried(true, None, sent_at);
                }
                (Action::TryLock, _) => machine.on_tried(false, self.observe(opened).await?, sent_at),
                (Action::Observe, _) => machine.on_observed(self.observe(opened).await?, sent_at),
                _ => {
                    let Some(fence) = machine.fence() else { return Ok(()) };
                    if opened.heartbeat(&self.names, fence).await? {
                        machine.on_heartbeat(sent_at);
                        self.succession.observed(&self.term(fence));
                    } else {
                        machine.on_lost(Reason::Fenced, Instant::now());
                    }
                }
            }
            Ok(())
        })
        .await;
        match done {
            Ok(()) => self.metrics.lock_checked(sent_at),
            Err(error) => self.lost(Reason::SessionLost, &error, machine),
        }
    }

    /// Looks up the session that holds the lock, and logs it when it has changed.
    async fn name_holder(&self, opened: &LockSession, machine: &mut Machine) {
        let Method::AdvisoryLock(lock_id) = self.config.method else { return };
        let holder = match within(self.config.stale_after(), opened.holder(lock_id)).await {
            Ok(holder) => holder,
            // The server may refuse to show it. The session is still good.
            Err(error) if error.sqlstate().is_some() => {
                log::debug!(err:% = error; "who holds the lock cannot be told");
                None
            }
            Err(error) => return self.lost(Reason::SessionLost, &error, machine),
        };
        if let Some(holder) = holder.as_ref().filter(|holder| self.lock_holder.borrow().as_ref() != Some(*holder)) {
            log::warn!(
                group:% = self.config.group(), pid = holder.pid, application_name = holder.application_name.as_str(),
                client = holder.client_address.as_deref(),
                hint = "end that session, or give the pair another -leader-election-pg-advisory-lock-id";
                "the lock is held by a session that shows no heartbeat, of a frozen adapter or another program"
            );
        }
        self.lock_holder.send_replace(holder);
    }

    /// Reads the leader's row, and passes the term to the hand-over.
    async fn observe(&self, opened: &LockSession) -> Result<Option<LeaderRow>, Error> {
        let Some((observed, fence)) = opened.observe(&self.names).await? else { return Ok(None) };
        self.succession.observed(&self.term(fence));
        Ok(Some(observed))
    }

    fn term(&self, fence: Fence) -> Term {
        Term { group: self.config.group(), fence, replica: None }
    }

    /// Writes the successor to the group's row, if it is an adapter of this group.
    async fn hand_over(&self, opened: &LockSession, machine: &mut Machine) {
        let Some((fence, to)) = machine.fence().zip(machine.successor().map(str::to_owned)) else { return };
        let limit = machine
            .deadline()
            .map_or(self.config.stale_after(), |until| until.saturating_duration_since(Instant::now()));
        let done = within(limit, async {
            let peers = opened.peers().await?;
            if to == self.holder || !peers.iter().any(|peer| opened.is_peer(peer, &to)) {
                machine.on_no_such_peer(peers);
            } else if opened.hand_over(&self.names, fence, &to, self.config.cooldown()).await? {
                machine.on_handed_over(Instant::now());
            } else {
                machine.on_lost(Reason::Fenced, Instant::now());
            }
            Ok(())
        })
        .await;
        if let Err(error) = done {
            self.lost(Reason::SessionLost, &error, machine);
        }
    }

    /// Returns the claim by which the term is raised.
    fn claim(&self, machine: &Machine) -> Claim {
        match (&self.config.method, machine.follows()) {
            (Method::AdvisoryLock(_), _) => Claim::Lock,
            (Method::External(_), Some(token)) => Claim::Follows(token),
            (Method::External(_), None) => Claim::Appointed,
        }
    }

    /// Raises the term, then waits for the hand-over to finish while heartbeats go on.
    async fn take_over(&self, opened: &LockSession, machine: &mut Machine, commands: &mut CommandQueue) {
        let sent_at = Instant::now();
        let group = self.config.group();
        // The lease limits the wait for writers, their termination, and the statements themselves.
        let raising = opened.raise_term(&self.names, self.claim(machine), self.config.drain_patience());
        let Raised { fence, proven_at } = match within(self.config.lease, raising).await {
            Ok(Some(raised)) => raised,
            Ok(None) => {
                log::info!(group = group.as_str(); "another adapter is to lead: this one lets it");
                return machine.on_refused(Instant::now());
            }
            Err(error) => return self.lost(Reason::SessionLost, &error, machine),
        };
        machine.on_term(fence, proven_at);
        // A notification that arrived before this term is about an earlier term.
        let _ = self.fenced.notified().now_or_never();
        // In a task of its own, because heartbeats must not wait for it.
        let preparing = self.tracker.spawn(self.succession.prepare(self.term(fence)));
        let mut preparing = AbortOnDropHandle::new(preparing);
        loop {
            let now = Instant::now();
            // The take-over may take longer than the timeout of a silent Prometheus.
            self.tell(machine, now);
            match machine.next(now) {
                Action::Wait(until) => {
                    tokio::select! {
                        prepared = &mut preparing => {
                            match prepared.unwrap_or_else(|failed| Err(Error::Stopping(failed.to_string()))) {
                                Ok(()) => {
                                    machine.on_prepared();
                                    let by = match self.config.method {
                                        Method::AdvisoryLock(_) => "the advisory lock",
                                        Method::External(_) => "an order",
                                    };
                                    log::info!(
                                        group = group.as_str(), term = fence.term,
                                        after_ms = sent_at.elapsed().as_millis(), by = by;
                                        "became leader"
                                    );
                                }
                                Err(error) => self.lost(Reason::TakeOverFailed, &error, machine),
                            }
                            return;
                        }
                        () = opened.ended() => return machine.on_lost(Reason::SessionLost, Instant::now()),
                        () = tokio::time::sleep_until(until.into()) => {}
                        given = commands.next() => commands.take(given, machine),
                    }
                    commands.answer(machine, Instant::now());
                }
                Action::Heartbeat => self.ask(Action::Heartbeat, opened, machine).await,
                Action::HandOver => self.hand_over(opened, machine).await,
                // The machine has given up the term. The main loop asks it again and gets the same action.
                _ => return,
            }
        }
    }

    /// Notes that the lead or the take-over was lost by a failure: for `reason`, or as fenced if the error says that
    /// the term is over.
    fn lost(&self, reason: Reason, error: &Error, machine: &mut Machine) {
        self.count(error);
        match reason {
            Reason::TakeOverFailed => {
                log::warn!(
                    group:% = self.config.group(), err:% = error;
                    "the lead cannot be taken over, to be tried again"
                );
            }
            _ => log::warn!(group:% = self.config.group(), err:% = error; "the lock session failed"),
        }
        let is_over = error.class() == Class::Fenced;
        machine.on_lost(if is_over { Reason::Fenced } else { reason }, Instant::now());
    }

    async fn close(&self, session: Option<LockSession>, reason: Reason) {
        let Some(opened) = session else { return };
        let unsupported = self.heard.only_unsupported();
        let group = self.config.group();
        let group = group.as_str();
        match (reason, unsupported) {
            (Reason::PrometheusTimeout, Some(why)) => log::warn!(
                group = group, reason = why.as_str();
                "own Prometheus sends only what is refused: resigned"
            ),
            (Reason::PrometheusTimeout, None) if self.heard.read().closed_at().is_some() => log::warn!(
                group = group;
                "own Prometheus closed its connections and has not come back in its usual time: resigned"
            ),
            (Reason::PrometheusTimeout, None) => log::warn!(
                group = group, timeout:? = self.heard.read().timeout().unwrap_or_default();
                "Prometheus timeout exceeded: no write request came, resigned"
            ),
            (Reason::Shutdown, _) => log::info!(group = group; "giving up the lock session"),
            (Reason::Requested, _) => log::info!(group = group; "gave up the lead"),
            (Reason::WritesFailing, _) => log::warn!(
                group = group, lease:? = self.config.lease, hint = "see what its writes were refused with";
                "no write of this adapter was committed for a lease: resigned, so that another adapter may lead"
            ),
            (other, _) => log::warn!(group = group, reason = other.label(); "closing the lock session"),
        }
        match reason {
            Reason::PrometheusTimeout
            | Reason::Requested
            | Reason::WritesFailing
            | Reason::TakeOverFailed
            | Reason::Shutdown => opened.close().await,
            // In doubt: do not wait for the end of the session.
            _ => drop(opened),
        }
    }

    /// Publishes the role if it changed, and logs the change once.
    fn publish(&self, machine: &Machine, now: Instant) {
        let role = machine.role(now);
        let before = self.role.send_replace(role.clone());
        let should_log = before.word() != role.word();
        if !is_held_in_silence(machine, now) {
            self.lock_holder.send_if_modified(|holder| holder.take().is_some());
        }
        match &role {
            Role::Leader { fence: Some(fence), .. } => self.metrics.term.set(fence.term),
            Role::Standby { leader, .. } => {
                self.metrics.term.set(leader.term);
                let same = matches!(&before, Role::Standby { leader: known, .. } if known == leader);
                if !same {
                    log::info!(
                        group:% = self.config.group(), leader = leader.holder.as_str(), term = leader.term;
                        "standing by"
                    );
                }
            }
            Role::Unknown if should_log => {
                log::warn!(reason = machine.reason(now).label(); "role unknown: write requests are answered 503");
            }
            Role::Resigned if should_log => match self.heard.only_unsupported() {
                Some(why) => log::warn!(
                    reason = why.as_str();
                    "own Prometheus sends only what is refused: not a candidate until it sends something else"
                ),
                None => log::info!("own Prometheus is silent: not a candidate until it sends"),
            },
            _ => {}
        }
        if should_log {
            self.metrics.set_role(role.word());
            self.metrics.transitions_total.with_label_values(&[role.word(), machine.reason(now).label()]).inc();
        }
    }

    fn count(&self, error: &Error) {
        self.metrics.postgres_error(error.sqlstate());
    }
}

/// Returns `true` if the lock is held elsewhere and no fresh heartbeat names its holder.
fn is_held_in_silence(machine: &Machine, now: Instant) -> bool {
    matches!((machine.role(now), machine.reason(now)), (Role::Unknown, Reason::LeaderStale))
}
