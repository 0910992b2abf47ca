//! The lock session, and the task that does what the machine says.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;
use crate::election::Config;
use crate::election::liveness::Heard;
use crate::election::machine::{Action, Machine, Observed, Reason};
use crate::election::role::{Fence, Leader, Role};
use crate::postgres::error::{Class, Error};
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Connector, Session, within};
use crate::storage::names::Names;
use crate::storage::row::{from_postgres_us, to_postgres_us};
use crate::telemetry::metrics::Metrics;

/// The hand-over's side of an election: what a leader-to-be does before it serves, and what a leader publishes.
pub trait Succession: Send + Sync + 'static {
    /// Finishes what the last leader left, under the new fence. Called once a term; may be dropped half-way.
    fn prepare(&self, takeover: Takeover) -> impl Future<Output = Result<(), Error>> + Send;
    /// The time in ms since 1970 up to which everything this leader will be sent is committed.
    fn watermark(&self) -> Option<i64>;
    /// What another leader's [`Succession::watermark`] is, as a standby reads it.
    fn observed(&self, watermark_ms: Option<i64>);
}

/// A new term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The right to write.
    pub fence: Fence,
    /// How far the last leader's clock was behind ours, in ms; negative if it was ahead, 0 if unknown.
    pub last_leader_behind_ms: i64,
}

/// One adapter's part in the election.
pub struct Election<S> {
    /// Timings and the lock's id.
    pub config: Config,
    /// Opens the lock session.
    pub connector: Connector,
    /// Where the leader table is.
    pub names: Names,
    /// How this adapter is called in the group's row.
    pub holder: String,
    /// Whether the own Prometheus sends.
    pub heard: Arc<Heard>,
    /// The hand-over.
    pub succession: Arc<S>,
    /// Where the role is published.
    pub role: watch::Sender<Role>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The lock session, with what was found out about its server.
struct LockSession {
    session: Session,
    group_no: i32,
    /// How far our clock is ahead of the server's, ms, by the last answer that told.
    clock_offset_ms: AtomicI64,
}

impl<S: Succession> Election<S> {
    /// Takes part until `stop`; then gives the lock up, last of all, and returns.
    pub async fn run(self, stop: CancellationToken) {
        let mut machine = Machine::new(self.config.clone(), Instant::now());
        let mut session: Option<LockSession> = None;
        let mut proven = false;
        let mut trouble = Trouble::default();
        while !machine.is_stopped() {
            if stop.is_cancelled() {
                machine.on_shutdown();
            }
            let now = Instant::now();
            machine.on_liveness(self.heard.read().silent_at(now), now);
            let action = machine.next(now);
            self.publish(&machine, now);
            match (action, &session) {
                (Action::Wait(until), _) => self.wait(until, session.as_ref(), &mut machine, &stop).await,
                (Action::Close(reason), _) => {
                    self.close(session.take(), reason).await;
                }
                (Action::Connect, _) => match self.connect(&mut proven).await {
                    Ok(opened) => {
                        trouble.over();
                        session = Some(opened);
                        machine.on_connected(Instant::now());
                    }
                    Err(error) => {
                        trouble.report(&format!("no lock session: {error}"));
                        self.count(&error);
                        machine.on_lost(Reason::SessionLost, Instant::now());
                    }
                },
                (Action::RaiseTerm, Some(opened)) => self.take_over(opened, &mut machine).await,
                (Action::TryLock | Action::Observe | Action::Heartbeat, Some(opened)) => {
                    self.ask(action, opened, &mut machine).await;
                }
                (Action::RaiseTerm | Action::TryLock | Action::Observe | Action::Heartbeat, None) => {
                    machine.on_lost(Reason::SessionLost, now);
                }
            }
        }
        self.publish(&machine, Instant::now());
    }

    /// Sleeps until `until`, or until something happens that the machine may want to know.
    async fn wait(
        &self,
        until: Instant,
        session: Option<&LockSession>,
        machine: &mut Machine,
        stop: &CancellationToken,
    ) {
        let ended = async {
            match session {
                Some(opened) => opened.session.ended().await,
                None => std::future::pending().await,
            }
        };
        let candidate = matches!(*self.role.borrow(), Role::Resigned);
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = ended => machine.on_lost(Reason::SessionLost, Instant::now()),
            () = self.heard.begun(), if candidate => {}
            () = stop.cancelled(), if !machine.is_stopped() => machine.on_shutdown(),
        }
    }

    async fn connect(&self, proven: &mut bool) -> Result<LockSession, Error> {
        if !*proven {
            prove_exclusion(&self.connector, &self.config).await?;
            *proven = true;
        }
        LockSession::open(&self.connector, &self.config, &self.names).await
    }

    /// One short statement on the lock session.
    async fn ask(&self, action: Action, opened: &LockSession, machine: &mut Machine) {
        let sent_at = Instant::now();
        let done = within(self.config.stale_after(), async {
            match action {
                Action::TryLock if opened.try_lock(self.config.lock_id).await? => {
                    log::info!("lock obtained for {}", group_name(self.config.lock_id));
                    machine.on_tried(true, None, sent_at);
                }
                Action::TryLock => machine.on_tried(false, self.observe(opened).await?, sent_at),
                Action::Observe => machine.on_observed(self.observe(opened).await?, sent_at),
                _ => {
                    let Some(fence) = machine.fence() else { return Ok(()) };
                    if opened.heartbeat(&self.names, fence, self.succession.watermark()).await? {
                        machine.on_heartbeat(sent_at);
                    } else {
                        machine.on_lost(Reason::Fenced, Instant::now());
                    }
                }
            }
            Ok(())
        })
        .await;
        if let Err(error) = done {
            self.lost(&error, machine);
        }
    }

    /// Looks at the leader's row, and passes its watermark on.
    async fn observe(&self, opened: &LockSession) -> Result<Option<Observed>, Error> {
        let Some((observed, watermark_ms)) = opened.observe(&self.names).await? else { return Ok(None) };
        self.succession.observed(watermark_ms);
        Ok(Some(observed))
    }

    /// Raises the term, then lets the hand-over finish while heartbeats go on.
    async fn take_over(&self, opened: &LockSession, machine: &mut Machine) {
        let sent_at = Instant::now();
        // Twice the patience with writers, and the time of the statements themselves.
        let limit = self.config.lease;
        let takeover =
            match within(limit, opened.raise_term(&self.names, &self.holder, self.config.drain_patience())).await {
                Ok((takeover, proven_at)) => {
                    machine.on_term(takeover.fence, proven_at);
                    takeover
                }
                Err(error) => return self.lost(&error, machine),
            };
        let preparing = self.succession.prepare(takeover);
        tokio::pin!(preparing);
        loop {
            let now = Instant::now();
            match machine.next(now) {
                Action::Wait(until) => {
                    tokio::select! {
                        prepared = &mut preparing => {
                            match prepared {
                                Ok(()) => {
                                    machine.on_prepared();
                                    log::info!(
                                        "became leader of {} (term {}), {} ms after obtaining the lock",
                                        group_name(self.config.lock_id), takeover.fence.term, sent_at.elapsed().as_millis()
                                    );
                                }
                                Err(error) => self.lost(&error, machine),
                            }
                            return;
                        }
                        () = opened.session.ended() => return machine.on_lost(Reason::SessionLost, Instant::now()),
                        () = tokio::time::sleep_until(until.into()) => {}
                    }
                }
                Action::Heartbeat => self.ask(Action::Heartbeat, opened, machine).await,
                // The machine has given the term up; asked again by the main loop, it says so again.
                Action::Close(reason) => return machine.on_lost(reason, now),
                _ => return,
            }
        }
    }

    fn lost(&self, error: &Error, machine: &mut Machine) {
        self.count(error);
        let reason = if error.class() == Class::Fenced { Reason::Fenced } else { Reason::SessionLost };
        log::warn!("lock session of {} failed: {error}", group_name(self.config.lock_id));
        machine.on_lost(reason, Instant::now());
    }

    async fn close(&self, session: Option<LockSession>, reason: Reason) {
        let Some(opened) = session else { return };
        match reason {
            Reason::PrometheusTimeout => log::warn!(
                "Prometheus timeout exceeded: no write request for {:?}; resigned from {}",
                self.heard.read().timeout().unwrap_or_default(),
                group_name(self.config.lock_id)
            ),
            Reason::Shutdown => log::info!("giving up the lock session of {}", group_name(self.config.lock_id)),
            other => log::warn!("closing the lock session of {}: {}", group_name(self.config.lock_id), other.label()),
        }
        match reason {
            Reason::PrometheusTimeout | Reason::Requested | Reason::Shutdown => opened.session.close().await,
            _ => opened.session.abandon(),
        }
    }

    /// Publishes the role if it changed, and says so once.
    fn publish(&self, machine: &Machine, now: Instant) {
        let role = machine.role(now);
        let before = self.role.send_replace(role.clone());
        let is_news = before.word() != role.word();
        match &role {
            Role::Leader { fence: Some(fence), .. } => self.metrics.term.set(fence.term),
            Role::Standby { leader, .. } => {
                self.metrics.term.set(leader.term);
                let same = matches!(&before, Role::Standby { leader: known, .. } if known == leader);
                if !same {
                    log::info!(
                        "standing by in {}: {} leads (term {})",
                        group_name(self.config.lock_id),
                        leader.holder,
                        leader.term
                    );
                }
            }
            Role::Unknown if is_news => {
                log::warn!("role unknown ({}): write requests are answered 503", machine.reason().label());
            }
            Role::Resigned if is_news => {
                log::info!("own Prometheus is silent: not a candidate until it sends");
            }
            _ => {}
        }
        if is_news {
            self.metrics.set_role(role.word());
            self.metrics.transitions_total.with_label_values(&[role.word(), machine.reason().label()]).inc();
        }
    }

    fn count(&self, error: &Error) {
        self.metrics.postgres_errors_total.with_label_values(&[error.class_label()]).inc();
    }
}

/// Says a lasting trouble once, and again each half minute.
#[derive(Default)]
struct Trouble {
    said: Option<(String, Instant)>,
}

impl Trouble {
    fn report(&mut self, text: &str) {
        let again = Duration::from_secs(30);
        if !matches!(&self.said, Some((said, at)) if said == text && at.elapsed() < again) {
            log::error!("{text}");
            self.said = Some((text.to_owned(), Instant::now()));
        }
    }

    fn over(&mut self) {
        if self.said.take().is_some() {
            log::info!("the lock session is open again");
        }
    }
}

impl LockSession {
    /// Opens a session whose silence the server bounds, on a writable primary, and finds the group's row.
    async fn open(connector: &Connector, config: &Config, names: &Names) -> Result<Self, Error> {
        let group = group_name(config.lock_id);
        let session = connector.lock_session(&format!("prometheus-postgresql-adapter {group}")).await?;
        let work = async {
            session.client().batch_execute(&session_settings(config)).await?;
            // Not on every platform, and only a help against ghosts in running statements.
            if let Err(error) = session.client().batch_execute("SET client_connection_check_interval = '1s'").await {
                log::debug!("client_connection_check_interval is not available: {}", Error::from(error));
            }
            let clock_offset_ms = require_primary(&session).await?;
            // Two statements: one would not see the row that somebody else has just committed.
            let insert = names.fill("INSERT INTO {leader} (group_name) VALUES ($1) ON CONFLICT DO NOTHING");
            session.client().execute_typed(&insert, &[(&group, Type::TEXT)]).await?;
            let select = names.fill("SELECT group_no FROM {leader} WHERE group_name = $1");
            let row = session.client().query_typed_one(&select, &[(&group, Type::TEXT)]).await?;
            Ok((row.try_get(0)?, clock_offset_ms))
        };
        let (group_no, clock_offset_ms) = within(config.lease, work).await?;
        Ok(Self { session, group_no, clock_offset_ms: AtomicI64::new(clock_offset_ms) })
    }

    /// Tries the lock. After `true` it must not be called again on this session: the lock would stack.
    async fn try_lock(&self, lock_id: i64) -> Result<bool, Error> {
        let statement = "SELECT pg_try_advisory_lock($1)";
        let row = self.session.client().query_typed_one(statement, &[(&lock_id, Type::INT8)]).await?;
        Ok(row.try_get(0)?)
    }

    async fn observe(&self, names: &Names) -> Result<Option<(Observed, Option<i64>)>, Error> {
        let statement = names.fill(
            "SELECT holder, term, extract(epoch FROM clock_timestamp() - heartbeat)::float8, watermark \
             FROM {leader} WHERE group_no = $1 AND heartbeat IS NOT NULL",
        );
        let row = self.session.client().query_typed_opt(&statement, &[(&self.group_no, Type::INT4)]).await?;
        row.map(|row| {
            let age: f64 = row.try_get(2)?;
            let watermark: Option<Timestamp> = row.try_get(3)?;
            let observed = Observed {
                leader: Leader { holder: row.try_get(0)?, term: row.try_get(1)? },
                heartbeat_age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX),
            };
            Ok((observed, watermark.map(|Timestamp(time_us)| from_postgres_us(time_us))))
        })
        .transpose()
    }

    /// Waits until no writer of an old term is under way, then begins a new one. The time is from before the server
    /// was asked for it.
    async fn raise_term(&self, names: &Names, holder: &str, patience: Duration) -> Result<(Takeover, Instant), Error> {
        if !self.drain(names, Some(patience)).await? {
            let terminated = self.terminate_writers(names).await?;
            log::warn!("terminated {terminated} session(s) of an old term that would not end");
            self.drain(names, None).await?;
        }
        let proven_at = Instant::now();
        let statement = names.fill(
            "UPDATE {leader} new SET term = new.term + 1, token = gen_random_uuid(), holder = $2, \
             heartbeat = clock_timestamp(), clock_offset_ms = $3 \
             FROM {leader} old WHERE new.group_no = $1 AND old.group_no = new.group_no \
             RETURNING new.term, new.token, old.clock_offset_ms",
        );
        let clock_offset_ms = self.clock_offset_ms.load(Ordering::Relaxed);
        let client = self.session.client();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&self.group_no, Type::INT4), (&holder, Type::TEXT), (&clock_offset_ms, Type::INT8)];
        let row = client.query_typed_one(&statement, &parameters).await?;
        client.batch_execute("COMMIT").await?;
        let fence = Fence { group_no: self.group_no, term: row.try_get(0)?, token: row.try_get(1)? };
        let last_offset_ms: Option<i64> = row.try_get(2)?;
        let last_leader_behind_ms = last_offset_ms.map_or(0, |last_ms| clock_offset_ms.saturating_sub(last_ms));
        Ok((Takeover { fence, last_leader_behind_ms }, proven_at))
    }

    /// Begins a transaction that holds the fence exclusively. `false` if writers held it for all of `patience`.
    async fn drain(&self, names: &Names, patience: Option<Duration>) -> Result<bool, Error> {
        let client = self.session.client();
        let patience_ms = patience.map_or(0, |patience| patience.as_millis());
        client
            .batch_execute(&format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {patience_ms}"))
            .await?;
        let statement = names.fill("SELECT pg_advisory_xact_lock({leader:literal}::regclass::oid::integer, $1)");
        match client.query_typed(&statement, &[(&self.group_no, Type::INT4)]).await.map_err(Error::from) {
            Ok(_) => Ok(true),
            Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => {
                client.batch_execute("ROLLBACK").await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the backends of writers that hold the fence: a process frozen in the midst of a COPY is bounded by no
    /// timeout of the server's. Their transactions roll back; their senders still have the data.
    async fn terminate_writers(&self, names: &Names) -> Result<i64, Error> {
        let statement = names.fill(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_locks \
             WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND mode = 'ShareLock' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND classid = {leader:literal}::regclass::oid AND objid = $1::integer::oid",
        );
        let row = self.session.client().query_typed_one(&statement, &[(&self.group_no, Type::INT4)]).await?;
        Ok(row.try_get(0)?)
    }

    /// Publishes that the leader of `fence` lives. `false` if that term is over.
    async fn heartbeat(&self, names: &Names, fence: Fence, watermark_ms: Option<i64>) -> Result<bool, Error> {
        let statement = names.fill(
            "UPDATE {leader} SET heartbeat = clock_timestamp(), watermark = greatest(watermark, $3), clock_offset_ms = $4 \
             WHERE group_no = $1 AND token = $2 RETURNING clock_timestamp()",
        );
        let watermark = watermark_ms.map(|ms| Timestamp(to_postgres_us(ms)));
        let clock_offset_ms = self.clock_offset_ms.load(Ordering::Relaxed);
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&self.group_no, Type::INT4),
            (&fence.token, Type::UUID),
            (&watermark, Type::TIMESTAMPTZ),
            (&clock_offset_ms, Type::INT8),
        ];
        let asked_ms = now_ms();
        let row = self.session.client().query_typed_opt(&statement, &parameters).await?;
        let Some(row) = row else { return Ok(false) };
        self.clock_offset_ms.store(clock_offset(asked_ms, row.try_get(0)?), Ordering::Relaxed);
        Ok(true)
    }
}

/// What the group of a lock id is called in the leader table, log and status.
#[must_use]
pub fn group_name(lock_id: i64) -> String {
    format!("lock {lock_id}")
}

/// Everything a role or database might have set otherwise, so that the server bounds a silent session, and only so.
fn session_settings(config: &Config) -> String {
    let timeout_ms = config.session_timeout().as_millis();
    format!(
        "SET statement_timeout = {lease_ms}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = {timeout_ms}; \
         SET idle_session_timeout = {timeout_ms}; SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; \
         SET tcp_keepalives_count = 3; SET tcp_user_timeout = {timeout_ms}; SET default_transaction_isolation = 'read committed'",
        lease_ms = config.lease.as_millis(),
    )
}

/// Refuses a hot standby; says how far our clock is ahead of the server's.
async fn require_primary(session: &Session) -> Result<i64, Error> {
    let asked_ms = now_ms();
    let row = session.client().query_typed_one("SELECT pg_is_in_recovery(), clock_timestamp()", &[]).await?;
    if row.try_get(0)? {
        return Err(Error::Unfit(
            "the lock session reached a hot standby, where an advisory lock excludes nobody: point -pg-lock-uri (or \
             -pg-host) to the primary"
                .into(),
        ));
    }
    Ok(clock_offset(asked_ms, row.try_get(1)?))
}

/// How far our clock is ahead of the server's, ms: what it said lies between when it was asked and now.
fn clock_offset(asked_ms: i64, Timestamp(server_us): Timestamp) -> i64 {
    asked_ms.midpoint(now_ms()) - from_postgres_us(server_us)
}

/// Proves with two sessions that an advisory lock excludes here. It does not behind a transaction pooler, nor on
/// databases whose lock functions are stubs.
async fn prove_exclusion(connector: &Connector, config: &Config) -> Result<(), Error> {
    let unfit = |what: &str| {
        Error::Unfit(format!(
            "self-test of the advisory lock failed: {what}. Election needs sessions of its own on a PostgreSQL primary: if \
             a pooler in transaction mode is between, point -pg-lock-uri to the server itself"
        ))
    };
    let application_name = "prometheus-postgresql-adapter self-test";
    let (first, second) =
        tokio::try_join!(connector.lock_session(application_name), connector.lock_session(application_name))?;
    let work = async {
        let key = i64::from_le_bytes(uuid::Uuid::new_v4().as_u64_pair().0.to_le_bytes());
        require_primary(&first).await?;
        let (obtained, first_pid) = try_key(&first, key).await?;
        if !obtained {
            return Err(unfit("a lock that nobody holds was refused"));
        }
        let (obtained_twice, second_pid) = try_key(&second, key).await?;
        if obtained_twice || first_pid == second_pid {
            return Err(unfit("two sessions obtained the same lock"));
        }
        first.close().await;
        // The server takes a moment to end a session; it is asked again until the bound of the whole test.
        loop {
            let (obtained, pid) = try_key(&second, key).await?;
            if pid != second_pid {
                return Err(unfit("one session was served by two server processes"));
            }
            if obtained {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        second.close().await;
        Ok(())
    };
    match within(config.lease.min(Duration::from_secs(5)), work).await {
        Err(Error::Timeout { .. }) => Err(unfit("the lock of a closed session was not given free within 5 s")),
        other => other,
    }
}

/// Tries a key; says whether it was obtained, and by which server process.
async fn try_key(session: &Session, key: i64) -> Result<(bool, i32), Error> {
    let statement = "SELECT pg_try_advisory_lock($1), pg_backend_pid()";
    let row = session.client().query_typed_one(statement, &[(&key, Type::INT8)]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
