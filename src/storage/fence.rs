//! The right to write, and the transaction that shows it. Pure: statements' text.

use std::time::Duration;

use uuid::Uuid;

use crate::storage::names::Names;

/// A leader's right to write: each write transaction compares the token with the group's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The group's number in the leader table.
    pub group_no: i32,
    /// Counts the group's leaders.
    pub term: i64,
    /// New with each term; random, so that a term row rolled back by a fail-over of PostgreSQL is not mistaken.
    pub token: Uuid,
}

/// A writer that idles so long between the statements of a transaction is frozen: its transaction must not hold the
/// next leader up.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// For transactions with statements over many segments: a plan that looks costly enough the server would compile first, which
/// takes up to seconds, and saves little where each segment's part of it runs but briefly.
pub const WITHOUT_JIT: &str = "SET LOCAL jit = off";

/// Opens a transaction that may write: bounded, and behind the fence. Everything is set for the transaction alone, so
/// that it holds behind a pooler too.
#[must_use]
pub fn begin(names: &Names, fence: Option<Fence>, timeout: Duration) -> String {
    let mut text = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT set_config('statement_timeout', '{timeout_ms}', true), \
         set_config('lock_timeout', '{timeout_ms}', true), \
         set_config('idle_in_transaction_session_timeout', '{idle_ms}', true), \
         set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), true)",
        timeout_ms = timeout.as_millis(),
        idle_ms = IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
    );
    if let Some(fence) = fence {
        text.push_str("; ");
        text.push_str(&show(names, fence));
    }
    text
}

/// Shows several rights to write at once: the statement returns the tokens that are in force, and waits for nobody. Its
/// parameters are the numbers of the groups, each once, and the tokens.
#[must_use]
pub fn show_all(names: &Names) -> String {
    names.fill("SELECT {fences}($1, $2)")
}

/// Shows the right to write, in a transaction that is open already.
#[must_use]
pub fn show(names: &Names, fence: Fence) -> String {
    names.fill(&format!("SELECT {{fence}}({}, '{}')", fence.group_no, fence.token))
}
