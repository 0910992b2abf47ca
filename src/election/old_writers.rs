//! Ends write transactions that keep a new term from being begun.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::storage::names::Names;

/// Terminates the backends whose transaction holds the fence's lock of one of `groups`, shared or, to reconcile,
/// exclusively, if the transaction is at least as old as `age`. This is needed because no timeout of the server ends a
/// process that is frozen during a COPY. The transactions roll back, and their senders still have the data.
///
/// # Errors
///
/// Errors of the server or of the connection. A backend that may not be terminated is logged.
pub(super) async fn terminate(client: &Client, names: &Names, groups: &[i32], age: Duration) -> Result<(), Error> {
    // The age of another user's transaction is not shown.
    let statement = names.sql(
        "SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity a USING (pid) \
         WHERE locktype = 'advisory' AND objsubid = 2 AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND classid = {leader:literal}::regclass::oid AND objid = ANY ($1::integer[]::oid[]) \
         AND coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0) >= $2",
    );
    let age = age.as_secs_f64();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::INT4_ARRAY), (&age, Type::FLOAT8)];
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
