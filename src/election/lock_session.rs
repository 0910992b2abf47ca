//! The statements of the lock session, and what proves that a server is fit for one.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::election::Config;
use crate::election::role::{Leader, LeaderRow, LockHolder};
use crate::postgres::error::Error;
use crate::postgres::{Connector, Session, within};
use crate::storage::fence::Fence;
use crate::storage::names::Names;

/// The session that holds the lock or tries to, on a server found fit.
pub(super) struct LockSession {
    session: Session,
    group_no: i32,
    /// How this adapter is called in the group's row.
    holder: String,
    /// What the others' sessions are called, before their names.
    prefix: String,
}

/// A term that was raised.
pub(super) struct Raised {
    pub(super) fence: Fence,
    /// From before the server was asked for the term.
    pub(super) proven_at: Instant,
}

/// By what right a term is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The lock is held: unless another adapter is named to lead next.
    Lock,
    /// It was told to lead, just now.
    Appointed,
    /// It was told once, and nobody later: this token is in force.
    Follows(Uuid),
}

/// What the server keeps of a name.
const APPLICATION_NAME_BYTES_MAX: usize = 63;

/// Whether a group's row keeps others than the one it names from the lead: no order lasts longer, unless the server's clock was
/// set back after it was given.
pub(super) const YIELDS: &str =
    "successor_until BETWEEN clock_timestamp() AND clock_timestamp() + interval '5 minutes'";

/// An advisory lock is not replicated.
const NOT_PRIMARY: &str = "the lock session reached a server that takes no writes, such as a hot standby, where an \
    advisory lock excludes nobody: point -pg-lock-uri (or -pg-host) to the primary";

impl LockSession {
    /// Opens a session whose silence the server bounds, on a writable primary, and finds the group's row.
    pub(super) async fn open(
        connector: &Connector,
        config: &Config,
        names: &Names,
        holder: &str,
    ) -> Result<Self, Error> {
        let group = config.group();
        // By these the adapters of a group find each other.
        let prefix = format!("prometheus-postgresql-adapter {group} ");
        let session = connector.lock_session(&format!("{prefix}{holder}")).await.map_err(not_primary)?;
        let work = async {
            session.client().batch_execute(&session_settings(config)).await?;
            // Not on every platform, and only a help against ghosts in running statements.
            if let Err(error) = session.client().batch_execute("SET client_connection_check_interval = '1s'").await {
                log::debug!("client_connection_check_interval is not available: {}", Error::from(error));
            }
            require_primary(&session).await?;
            // Two statements: one would not see the row that somebody else has just committed.
            let insert = names.sql("INSERT INTO {leader} (group_name) VALUES ($1) ON CONFLICT DO NOTHING");
            session.client().execute_typed(&insert, &[(&group, Type::TEXT)]).await?;
            let select = names.sql("SELECT group_no FROM {leader} WHERE group_name = $1");
            let row = session.client().query_typed_one(&select, &[(&group, Type::TEXT)]).await?;
            Ok(row.try_get(0)?)
        };
        let group_no = within(config.lease, work).await?;
        Ok(Self { session, group_no, holder: holder.to_owned(), prefix })
    }

    /// Tries the lock. After `true` it must not be called again on this session: the lock would stack.
    pub(super) async fn try_lock(&self, lock_id: i64) -> Result<bool, Error> {
        let statement = "SELECT pg_try_advisory_lock($1)";
        let row = self.session.client().query_typed_one(statement, &[(&lock_id, Type::INT8)]).await?;
        Ok(row.try_get(0)?)
    }

    /// The session that holds the lock; `None` if it was given free meanwhile.
    pub(super) async fn holder(&self, lock_id: i64) -> Result<Option<LockHolder>, Error> {
        let statement = "SELECT l.pid, a.application_name, host(a.client_addr) \
             FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND l.classid = (($1 >> 32) & 4294967295)::oid AND l.objid = ($1 & 4294967295)::oid \
             ORDER BY l.pid LIMIT 1";
        let row = self.session.client().query_typed_opt(statement, &[(&lock_id, Type::INT8)]).await?;
        row.map(|row| {
            Ok(LockHolder {
                pid: row.try_get(0)?,
                application_name: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
                client_address: row.try_get(2)?,
            })
        })
        .transpose()
    }

    /// The leader's row, and the right to write that is in force.
    pub(super) async fn observe(&self, names: &Names) -> Result<Option<(LeaderRow, Fence)>, Error> {
        let statement = names.sql(&format!(
            "SELECT holder, term, token, extract(epoch FROM clock_timestamp() - heartbeat)::float8, \
             CASE WHEN successor <> $2 AND {YIELDS} THEN extract(epoch FROM successor_until - clock_timestamp())::float8 END \
             FROM {{leader}} WHERE group_no = $1 AND heartbeat IS NOT NULL",
        ));
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&self.group_no, Type::INT4), (&self.holder, Type::TEXT)];
        let row = self.session.client().query_typed_opt(&statement, &parameters).await?;
        row.map(|row| {
            let (term, age): (i64, f64) = (row.try_get(1)?, row.try_get(3)?);
            let yields_for: Option<f64> = row.try_get(4)?;
            let observed = LeaderRow {
                leader: Leader { holder: row.try_get(0)?, term },
                // One from the future was made before the server's clock was set back.
                heartbeat_age: Duration::try_from_secs_f64(age.abs()).unwrap_or(Duration::MAX),
                yields_for: yields_for.and_then(|remaining| Duration::try_from_secs_f64(remaining).ok()),
            };
            Ok((observed, Fence { group_no: self.group_no, term, token: row.try_get(2)? }))
        })
        .transpose()
    }

    /// Waits until no writer of an old term is under way, then begins a new one, in which this adapter leads. A writer that
    /// takes longer than `patience` is terminated. `None` if another token is in force than the one to be followed, or
    /// another adapter is named to lead next.
    pub(super) async fn raise_term(
        &self,
        names: &Names,
        claim: Claim,
        patience: Duration,
    ) -> Result<Option<Raised>, Error> {
        if !self.drain(names, Some(patience)).await? {
            self.terminate_writers(names).await?;
            self.drain(names, None).await?;
        }
        let proven_at = Instant::now();
        let statement = names.sql(&format!(
            "SELECT new_term, new_token FROM (SELECT group_no FROM {{leader}} WHERE group_no = $1 AND CASE WHEN $3 THEN true \
             WHEN $4 IS NOT NULL THEN token = $4 \
             ELSE successor IS NULL OR successor = $2 OR NOT ({YIELDS}) END FOR UPDATE) l, {{raise}}(l.group_no, $2)",
        ));
        let client = self.session.client();
        let (is_told, follows) = match claim {
            Claim::Appointed => (true, None),
            Claim::Follows(token) => (false, Some(token)),
            Claim::Lock => (false, None),
        };
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&self.group_no, Type::INT4), (&self.holder, Type::TEXT), (&is_told, Type::BOOL), (&follows, Type::UUID)];
        let row = client.query_typed_opt(&statement, &parameters).await?;
        client.batch_execute("COMMIT").await?;
        let raised = |row: tokio_postgres::Row| {
            let fence = Fence { group_no: self.group_no, term: row.try_get(0)?, token: row.try_get(1)? };
            Ok(Raised { fence, proven_at })
        };
        row.map(raised).transpose()
    }

    /// Begins a transaction that holds the fence exclusively. `false` if writers held it for all of `patience`.
    async fn drain(&self, names: &Names, patience: Option<Duration>) -> Result<bool, Error> {
        let client = self.session.client();
        let patience_ms = patience.map_or(0, |patience| patience.as_millis());
        client
            .batch_execute(&format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {patience_ms}"))
            .await?;
        let statement = names.sql("SELECT pg_advisory_xact_lock({leader:literal}::regclass::oid::integer, $1)");
        match client.query_typed(&statement, &[(&self.group_no, Type::INT4)]).await.map_err(Error::from) {
            Ok(_) => Ok(true),
            Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => {
                client.batch_execute("ROLLBACK").await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the backends of writers that hold the fence, shared or, to reconcile, exclusively: a process frozen in the midst of a COPY is bounded by no
    /// timeout of the server's. Their transactions roll back; their senders still have the data.
    async fn terminate_writers(&self, names: &Names) -> Result<(), Error> {
        let client = self.session.client();
        let statement = names.sql(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND classid = {leader:literal}::regclass::oid AND objid = $1::integer::oid",
        );
        for row in client.query_typed(&statement, &[(&self.group_no, Type::INT4)]).await? {
            let pid: i32 = row.try_get(0)?;
            let terminated = client.query_typed("SELECT pg_terminate_backend($1)", &[(&pid, Type::INT4)]).await;
            match terminated.map_err(Error::from) {
                Ok(_) => log::warn!("terminated the session of an old term that would not end (pid {pid})"),
                // It is waited for; should its process be frozen, only this helps.
                Err(error) => log::error!(
                    "the session of an old term (pid {pid}) will not end and cannot be terminated: {error}; let both \
                     adapters log in as the same user, or GRANT pg_signal_backend"
                ),
            }
        }
        Ok(())
    }

    /// Publishes that the leader of `fence` lives. `false` if that term is over.
    pub(super) async fn heartbeat(&self, names: &Names, fence: Fence) -> Result<bool, Error> {
        let statement =
            names.sql("UPDATE {leader} SET heartbeat = clock_timestamp() WHERE group_no = $1 AND token = $2");
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&self.group_no, Type::INT4), (&fence.token, Type::UUID)];
        Ok(self.session.client().execute_typed(&statement, &parameters).await? == 1)
    }

    /// Names who is to lead after the term of `fence`, which for `lasting` keeps others from it. `false` if that term is over.
    pub(super) async fn hand_over(
        &self,
        names: &Names,
        fence: Fence,
        successor: &str,
        lasting: Duration,
    ) -> Result<bool, Error> {
        let statement = names.sql(
            "UPDATE {leader} SET successor = $3, successor_until = clock_timestamp() + make_interval(secs => $4) \
             WHERE group_no = $1 AND token = $2",
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&self.group_no, Type::INT4),
            (&fence.token, Type::UUID),
            (&successor, Type::TEXT),
            (&lasting.as_secs_f64(), Type::FLOAT8),
        ];
        Ok(self.session.client().execute_typed(&statement, &parameters).await? == 1)
    }

    /// The names of the other adapters of this group that are connected, as far as the server keeps them.
    pub(super) async fn peers(&self) -> Result<Vec<String>, Error> {
        let statement = "SELECT DISTINCT substr(application_name, length($1) + 1) FROM pg_stat_activity \
             WHERE datname = current_database() AND starts_with(application_name, $1) AND pid <> pg_backend_pid() ORDER BY 1";
        let rows = self.session.client().query_typed(statement, &[(&self.prefix, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Whether `peer`, as the server has it, may be whole `name`: it cuts names short.
    pub(super) fn is_peer(&self, peer: &str, name: &str) -> bool {
        peer == name || (name.starts_with(peer) && self.prefix.len() + peer.len() >= APPLICATION_NAME_BYTES_MAX)
    }

    /// Ends when the session has ended, whoever ended it.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.session.ended()
    }

    /// Ends the session, and waits for that.
    pub(super) async fn close(self) {
        self.session.close().await;
    }
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

/// Refuses a hot standby.
async fn require_primary(session: &Session) -> Result<(), Error> {
    let row = session.client().query_typed_one("SELECT pg_is_in_recovery()", &[]).await?;
    if row.try_get(0)? { Err(Error::Misconfigured(NOT_PRIMARY.into())) } else { Ok(()) }
}

/// What to say where only servers that take no writes were found: the way to them asks for one that does, and gives up
/// with less of an explanation.
fn not_primary(error: Error) -> Error {
    let Error::Server(inner) = &error else { return error };
    let cause = std::error::Error::source(inner).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause {
        // Not by the operating system: this is how tokio-postgres puts it.
        Some(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied && cause.raw_os_error().is_none() => {
            Error::Misconfigured(NOT_PRIMARY.into())
        }
        _ => error,
    }
}

/// Proves with two sessions that an advisory lock excludes here. It does not behind a transaction pooler, nor on
/// databases whose lock functions are stubs.
pub(super) async fn prove_exclusion(connector: &Connector, config: &Config) -> Result<(), Error> {
    let unfit = |what: &str| {
        Error::Misconfigured(format!(
            "self-test of the advisory lock failed: {what}. Election needs sessions of its own on a PostgreSQL primary: if \
             a pooler in transaction mode is between, point -pg-lock-uri to the server itself"
        ))
    };
    let application_name = "prometheus-postgresql-adapter self-test";
    let (first, second) =
        tokio::try_join!(connector.lock_session(application_name), connector.lock_session(application_name))
            .map_err(not_primary)?;
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
