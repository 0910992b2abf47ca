//! Ends write transactions that keep a new term from being begun.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::storage::names::Names;

/// Terminates the backends whose transaction holds the fence's lock of one of `groups`, shared or, to reconcile,
/// exclusively. With `stuck_for`, only those that are at least so old and wait for their client, which is frozen or cut
/// off then. This is needed because no timeout of the server ends a process that is frozen during a COPY. The
/// transactions roll back, and their senders still have the data.
///
/// # Errors
///
/// Errors of the server or of the connection. A backend that may not be terminated is logged.
pub(super) async fn terminate(
    client: &Client,
    names: &Names,
    groups: &[i32],
    stuck_for: Option<Duration>,
) -> Result<(), Error> {
    // Of another user's transaction neither is shown: the server's own timeout ends it.
    let statement = names.sql(
        "SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity a USING (pid) \
         WHERE locktype = 'advisory' AND objsubid = 2 AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND classid = {leader:literal}::regclass::oid AND objid = ANY ($1::integer[]::oid[]) \
         AND ($2 IS NULL OR a.wait_event = 'ClientRead' AND a.xact_start < clock_timestamp() - make_interval(secs => $2))",
    );
    let stuck_for = stuck_for.map(|time| time.as_secs_f64());
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::INT4_ARRAY), (&stuck_for, Type::FLOAT8)];
    for row in client.query_typed(&statement, &parameters).await? {
        let pid: i32 = row.try_get(0)?;
        let terminated = client.query_typed("SELECT pg_terminate_backend($1)", &[(&pid, Type::INT4)]).await;
        match terminated.map_err(Error::from) {
            Ok(_) => log::warn!(pid = pid; "terminated the session of an old term that would not end"),
            // The caller waits for this session. If its process is frozen, only the operator can help.
            Err(error) => log::error!(
                pid = pid, err:% = error,
                hint = "let all adapters log in as the same user, or GRANT pg_signal_backend";
                "the session of an old term will not end and cannot be terminated"
            ),
        }
    }
    Ok(())
}
