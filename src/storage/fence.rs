//! The right to write, and the transaction that shows it. Pure: texts of statements.

use std::time::Duration;

use uuid::Uuid;

use crate::storage::names::Names;

/// A leader's right to write: each write transaction compares its token with the group's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Number of the group in the leader table; never 0.
    pub group_no: i32,
    /// Counter of the group's leaders.
    pub term: i64,
    /// Token, new with each term. It is random, so that a term is not mistaken for another one after a fail-over of
    /// PostgreSQL has rolled the row back.
    pub token: Uuid,
}

/// Group number of writers without an election.
pub const NO_GROUP: i32 = 0;

/// Returns the number of the group whose leader has `fence`.
pub(super) fn group_no(fence: Option<Fence>) -> i32 {
    fence.map_or(NO_GROUP, |fence| fence.group_no)
}

/// Idle time between the statements of a transaction after which its writer is frozen. Its transaction must not delay
/// the next leader.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Setting for transactions with statements over many segments. The server would compile an expensive plan first. That
/// takes up to seconds, and saves little if the plan's part for each segment runs only briefly.
pub const WITHOUT_JIT: &str = "SET LOCAL jit = off";

/// Timeouts of the server for parts of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Timeout of a statement.
    pub statement: Duration,
    /// Timeout of a wait for a lock.
    pub lock: Duration,
    /// Timeout of the pause between two statements.
    pub idle: Duration,
}

impl Limits {
    /// Returns the limits of a writer that has `timeout` for the whole transaction.
    #[must_use]
    pub fn of(timeout: Duration) -> Self {
        Self { statement: timeout, lock: timeout, idle: IDLE_IN_TRANSACTION_TIMEOUT }
    }
}

/// Settings, as expressions, of a transaction that finds few of many rows by an index, whatever the planner expects.
pub const BY_INDEX: &str = "set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)";

/// Returns the statements that open a write transaction with these limits, to be sent as one message. All settings are
/// local to the transaction, so that they also work with a pooler. `checks` are expressions that fail if nothing may be
/// written; they are evaluated in their order. On a server that only reads, BEGIN fails: statements that store must not
/// be sent before the answer.
#[must_use]
pub fn begin(limits: Limits, checks: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT set_config('statement_timeout', '{}', true), \
         set_config('lock_timeout', '{}', true), set_config('idle_in_transaction_session_timeout', '{}', true), {BY_INDEX}, \
         set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), true), {checks}",
        limits.statement.as_millis(),
        limits.lock.as_millis(),
        limits.idle.as_millis(),
    )
}

/// Returns the expression that shows the right to write in an open transaction, and fails if it is over. It waits for
/// the group's lock; what it then compares is as committed by then, also within the statement that opens the
/// transaction. Without a fence it shows only that there is a writer. `reconciled` is the known value of the group's
/// counter; `None` is not compared.
#[must_use]
pub fn show(names: &Names, fence: Option<Fence>, reconciled: Option<i64>) -> String {
    let group_no = group_no(fence);
    let token = fence.map_or_else(|| "NULL".to_owned(), |fence| format!("'{}'", fence.token));
    let reconciled = reconciled.map_or_else(|| "NULL".to_owned(), |reconciled| reconciled.to_string());
    names.sql(&format!("{{fence}}({group_no}, {token}, {reconciled})"))
}

/// Returns the expression that shows several rights to write at once, each with the known value of its group's counter.
/// It is a list, separated by commas, of the states that [`show`] would raise, with `-` for a right in force.
#[must_use]
pub fn show_all(names: &Names, rights: &[(Option<Fence>, i64)]) -> String {
    let fences = || rights.iter().map(|(fence, _)| fence);
    let groups = array(fences().map(|fence| group_no(*fence)));
    let tokens = array(fences().map(|fence| fence.map_or_else(|| "NULL".to_owned(), |fence| fence.token.to_string())));
    let reconciled = array(rights.iter().map(|(_, reconciled)| reconciled));
    format!("array_to_string({}({groups}, {tokens}, {reconciled}), ',', '-')", names.qualified("_fences"))
}

/// Returns numbers, or other texts without special characters, as the text of an array. Not for [`Names::sql`].
pub(super) fn array(elements: impl Iterator<Item = impl ToString>) -> String {
    let elements: Vec<String> = elements.map(|element| element.to_string()).collect();
    format!("'{{{}}}'", elements.join(","))
}

/// Returns the expression that takes a group's exclusive lock in an open transaction, which locks out all writers of
/// the group.
#[must_use]
pub fn exclude(names: &Names, group_no: i32) -> String {
    names.sql(&format!("pg_advisory_xact_lock({{leader:literal}}::regclass::oid::integer, {group_no})"))
}
