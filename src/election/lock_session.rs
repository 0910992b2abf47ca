//! The statements of the lock session, and the checks that a server is fit for one.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::election::Config;
use crate::election::old_writers;
use crate::election::role::{Leader, LeaderRow, LockHolder};
use crate::postgres::error::Error;
use crate::postgres::{Connector, Session, within};
use crate::storage::fence::Fence;
use crate::storage::names::Names;

/// The session that holds the lock or tries to obtain it, on a server found fit.
pub(super) struct LockSession {
    session: Session,
    group_no: i32,
    /// This adapter's name in the group's row.
    holder: String,
    /// The common start of the group's `application_name`s, before the adapter's name.
    prefix: String,
}

/// A term that was raised.
pub(super) struct Raised {
    pub(super) fence: Fence,
    /// A time before the server was asked for the term.
    pub(super) proven_at: Instant,
}

/// The right by which a term is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The lock is held. Valid unless another adapter is the named successor.
    Lock,
    /// This adapter was appointed just now.
    Appointed,
    /// This adapter was appointed before, and no adapter since then: this token is still in force.
    Follows(Uuid),
}

/// Bytes of an `application_name` that the server keeps.
const APPLICATION_NAME_BYTES_MAX: usize = 63;

/// The SQL condition that a group's row names a successor to whom others must yield. No order lasts longer than five
/// minutes, unless the server's clock was set back after it was given.
pub(super) const YIELDS: &str =
    "successor_until BETWEEN clock_timestamp() AND clock_timestamp() + interval '5 minutes'";

/// The error text for a server that takes no writes: advisory locks are not replicated.
const NOT_PRIMARY: &str = "the lock session reached a server that takes no writes, such as a hot standby, where an \
    advisory lock excludes nobody: point -pg-lock-uri (or -pg-host) to the primary";

impl LockSession {
    /// Opens a session on a writable primary, lets the server limit its silence, and finds the group's row.
    pub(super) async fn open(
        connector: &Connector,
        config: &Config,
        names: &Names,
        holder: &str,
    ) -> Result<Self, Error> {
        let group = config.group();
        // The adapters of a group find each other by this prefix.
        let prefix = format!("prometheus-postgresql-adapter {group} ");
        let session = connector.lock_session(&format!("{prefix}{holder}")).await.map_err(not_primary)?;
        let work = async {
            session.client().batch_execute(&session_settings(config)).await?;
            // Not available on every platform. It only helps to end sessions of vanished clients while a statement
            // runs.
            if let Err(error) = session.client().batch_execute("SET client_connection_check_interval = '1s'").await {
                log::debug!(err:% = Error::from(error); "client_connection_check_interval is not available");
            }
            require_primary(&session).await?;
            // Two statements: a single one would not see a row that another session has just committed.
            let insert = names.sql("INSERT INTO {leader} (group_name) VALUES ($1) ON CONFLICT DO NOTHING");
            session.client().execute_typed(&insert, &[(&group, Type::TEXT)]).await?;
            let select = names.sql("SELECT group_no FROM {leader} WHERE group_name = $1");
            let row = session.client().query_typed_one(&select, &[(&group, Type::TEXT)]).await?;
            Ok(row.try_get(0)?)
        };
        let group_no = within(config.lease, work).await?;
        Ok(Self { session, group_no, holder: holder.to_owned(), prefix })
    }

    /// Tries the lock. Must not be called again on this session after `true`, because session locks stack.
    pub(super) async fn try_lock(&self, lock_id: i64) -> Result<bool, Error> {
        let statement = "SELECT pg_try_advisory_lock($1)";
        let row = self.session.client().query_typed_one(statement, &[(&lock_id, Type::INT8)]).await?;
        Ok(row.try_get(0)?)
    }

    /// Returns the session that holds the lock; `None` if the lock was released meanwhile.
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

    /// Returns the leader's row and the fence in force.
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
                // A heartbeat in the future was written before the server's clock was set back.
                heartbeat_age: Duration::try_from_secs_f64(age.abs()).unwrap_or(Duration::MAX),
                yields_for: yields_for.and_then(|remaining| Duration::try_from_secs_f64(remaining).ok()),
            };
            Ok((observed, Fence { group_no: self.group_no, term, token: row.try_get(2)? }))
        })
        .transpose()
    }

    /// Waits until no writer of an old term runs, then begins a new term in which this adapter leads. A writer that
    /// runs longer than `patience` is terminated. Returns `None` if another token is in force than the one to be
    /// followed, or another adapter is the named successor.
    pub(super) async fn raise_term(
        &self,
        names: &Names,
        claim: Claim,
        patience: Duration,
    ) -> Result<Option<Raised>, Error> {
        if !self.drain(names, Some(patience)).await? {
            old_writers::terminate(self.session.client(), names, &[self.group_no], None).await?;
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

    /// Begins a transaction that holds the fence's lock exclusively. Returns `false` if writers held it for all of
    /// `patience`.
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

    /// Writes the heartbeat of the leader of `fence`. Returns `false` if that term is over.
    pub(super) async fn heartbeat(&self, names: &Names, fence: Fence) -> Result<bool, Error> {
        let statement =
            names.sql("UPDATE {leader} SET heartbeat = clock_timestamp() WHERE group_no = $1 AND token = $2");
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&self.group_no, Type::INT4), (&fence.token, Type::UUID)];
        Ok(self.session.client().execute_typed(&statement, &parameters).await? == 1)
    }

    /// Writes the successor of the term of `fence`, to whom other adapters yield for `lasting`. Returns `false` if that
    /// term is over.
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

    /// Returns the names of the other connected adapters of this group, as far as the server keeps the names.
    pub(super) async fn peers(&self) -> Result<Vec<String>, Error> {
        let statement = "SELECT DISTINCT substr(application_name, length($1) + 1) FROM pg_stat_activity \
             WHERE datname = current_database() AND starts_with(application_name, $1) AND pid <> pg_backend_pid() ORDER BY 1";
        let rows = self.session.client().query_typed(statement, &[(&self.prefix, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Returns `true` if `peer`, as the server shows it, may be the full `name`: the server truncates names.
    pub(super) fn is_peer(&self, peer: &str, name: &str) -> bool {
        peer == name || (name.starts_with(peer) && self.prefix.len() + peer.len() >= APPLICATION_NAME_BYTES_MAX)
    }

    /// Waits until the session has ended, by either side.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.session.ended()
    }

    /// Ends the session, and waits for the end.
    pub(super) async fn close(self) {
        self.session.close().await;
    }
}

/// Returns the session settings that limit a silent session. All settings that a role or database may have changed are
/// set, so that no other limit applies.
fn session_settings(config: &Config) -> String {
    let timeout_ms = config.session_timeout().as_millis();
    format!(
        "SET statement_timeout = {lease_ms}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = {timeout_ms}; \
         SET idle_session_timeout = {timeout_ms}; SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; \
         SET tcp_keepalives_count = 3; SET tcp_user_timeout = {timeout_ms}; SET default_transaction_isolation = 'read committed'",
        lease_ms = config.lease.as_millis(),
    )
}

/// Returns an error on a hot standby.
async fn require_primary(session: &Session) -> Result<(), Error> {
    let row = session.client().query_typed_one("SELECT pg_is_in_recovery()", &[]).await?;
    if row.try_get(0)? { Err(Error::Misconfigured(NOT_PRIMARY.into())) } else { Ok(()) }
}

/// Replaces the error of a connection that found only servers that take no writes. The connection asks for a server
/// that takes writes and fails with a less helpful error.
fn not_primary(error: Error) -> Error {
    let Error::Server(inner) = &error else { return error };
    let cause = std::error::Error::source(inner).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause {
        // Not an error of the operating system: tokio-postgres reports this case so.
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
        // The server needs a moment to end a session. The loop asks again until the timeout of the whole test.
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

/// Tries a lock. Returns `true` if it was obtained, and the pid of the server process.
async fn try_key(session: &Session, key: i64) -> Result<(bool, i32), Error> {
    let statement = "SELECT pg_try_advisory_lock($1), pg_backend_pid()";
    let row = session.client().query_typed_one(statement, &[(&key, Type::INT8)]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
