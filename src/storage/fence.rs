//! The right to write, and the transaction that shows it. Pure: statements' text.

use std::time::Duration;

use uuid::Uuid;

use crate::storage::names::Names;

/// A leader's right to write: each write transaction compares the token with the group's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The group's number in the leader table; none is 0.
    pub group_no: i32,
    /// Counts the group's leaders.
    pub term: i64,
    /// New with each term; random, so that a term row rolled back by a fail-over of PostgreSQL is not mistaken.
    pub token: Uuid,
}

/// The group of those that write without an election.
pub const NO_GROUP: i32 = 0;

/// A writer that idles so long between the statements of a transaction is frozen: its transaction must not hold the
/// next leader up.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// For transactions with statements over many segments: a plan that looks costly enough the server would compile first, which
/// takes up to seconds, and saves little where each segment's part of it runs but briefly.
pub const WITHOUT_JIT: &str = "SET LOCAL jit = off";

/// How long the server lets parts of a transaction last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A statement.
    pub statement: Duration,
    /// A wait for a lock.
    pub lock: Duration,
    /// The pause between two statements.
    pub idle: Duration,
}

impl Limits {
    /// Those of a writer that is given `timeout` for all of it.
    #[must_use]
    pub fn of(timeout: Duration) -> Self {
        Self { statement: timeout, lock: timeout, idle: IDLE_IN_TRANSACTION_TIMEOUT }
    }
}

/// Opens a transaction that may write, bounded. Everything is set for the transaction alone, so that it holds behind a pooler
/// too. `check` is an expression that fails where nothing is to be written. BEGIN itself never fails, so whatever is sent behind is within
/// the transaction, be it one that has failed.
#[must_use]
pub fn begin(limits: Limits, check: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET TRANSACTION READ WRITE; SELECT set_config('statement_timeout', '{}', true), \
         set_config('lock_timeout', '{}', true), set_config('idle_in_transaction_session_timeout', '{}', true), \
         set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), true), {check}",
        limits.statement.as_millis(),
        limits.lock.as_millis(),
        limits.idle.as_millis(),
    )
}

/// Shows the right to write, in a transaction that is open already; without one, only that there is a writer. `reconciled` is
/// what is known of the group's counter; `None` is not compared.
#[must_use]
pub fn show(names: &Names, fence: Option<Fence>, reconciled: Option<i64>) -> String {
    let group_no = fence.map_or(NO_GROUP, |fence| fence.group_no);
    let token = fence.map_or_else(|| "NULL".to_owned(), |fence| format!("'{}'", fence.token));
    let reconciled = reconciled.map_or_else(|| "NULL".to_owned(), |reconciled| reconciled.to_string());
    names.sql(&format!("SELECT {{fence}}({group_no}, {token}, {reconciled})"))
}

/// Shows several rights to write at once. The parameters of the statement are the numbers of the groups, the tokens and what is
/// known of the counters; it returns for each the state that [`show`] would raise, or NULL.
#[must_use]
pub fn show_all(names: &Names) -> String {
    names.sql("SELECT {fences}($1, $2, $3)")
}

/// Takes the lock of a group that keeps all its writers out, in a transaction that is open already.
#[must_use]
pub fn exclude(names: &Names, group_no: i32) -> String {
    names.sql(&format!("SELECT pg_advisory_xact_lock({{leader:literal}}::regclass::oid::integer, {group_no})"))
}
