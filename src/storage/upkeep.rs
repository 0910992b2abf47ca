//! Work of the leader besides writing and sealing: retention, and deleting ended series and old request keys.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::postgres::error::Error;
use crate::storage::names::{Names, identifier};
use crate::storage::series::TRUSTED;

/// Time for which a request's key is kept, in addition to the time that a request may take: a sender without an answer
/// retries within its timeout and 5 s. The caller has to know that such a retry finds the server and its leader there
/// ([`forget_requests`]).
pub const REQUESTS_KEPT: Duration = Duration::from_secs(300);

/// Prefix of the names of groups that are clusters.
pub const CLUSTER_GROUPS: &str = "cluster ";

/// Interval at which the transaction of [`lock`] shows that its adapter is alive.
const LOCK_SHOWN: Duration = Duration::from_secs(2);

/// Idle time after which the server ends the transaction of [`lock`]: its adapter is frozen or cut off, and another
/// adapter can do the upkeep.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Begins a transaction that excludes the upkeep of other adapters as long as [`hold_lock`] runs. Returns `false` if
/// another adapter does the upkeep.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn lock(client: &Client, names: &Names) -> Result<bool, Error> {
    // Simple queries are used: a portal would keep its snapshot, and CREATE INDEX CONCURRENTLY waits for older
    // snapshots.
    let begin = format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&begin).await?;
    // Another key than that for creating series (0), which must never wait for upkeep.
    let lock = names.sql("SELECT pg_try_advisory_xact_lock({series:literal}::regclass::oid::integer, 1)");
    let answer = client.simple_query(&lock).await?;
    Ok(answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
}

/// Keeps the transaction of [`lock`] open. Returns only the error that ended the transaction; then other adapters may
/// do the upkeep.
pub async fn hold_lock(client: &Client) -> Error {
    loop {
        tokio::time::sleep(LOCK_SHOWN).await;
        // Needs no snapshot, see `lock`.
        if let Err(error) = client.batch_execute("").await {
            return error.into();
        }
    }
}

/// Drops the segments that end before `now - retention`, and deletes older chunks from the segment without a lower
/// bound. Returns the names of the dropped segments. Neither ingest nor readers of other segments wait for this. It
/// waits for readers of the segment itself, at most until the lock timeout, and the next round continues from there.
/// [`hypertable::drop_expired`](crate::storage::hypertable::drop_expired) does it with TimescaleDB.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn drop_expired(client: &Client, names: &Names, retention: Duration) -> Result<Vec<String>, Error> {
    let seconds = retention.as_secs_f64();
    let statement = names.sql(
        "SELECT relation, c.oid IS NOT NULL, coalesce(i.inhdetachpending, false), i.inhrelid IS NOT NULL FROM {segments} \
         LEFT JOIN pg_class c ON c.relname = relation AND c.relnamespace = $2::text::regnamespace \
         LEFT JOIN pg_inherits i ON i.inhrelid = c.oid \
         WHERE lower IS NOT NULL AND (upper <= now() - make_interval(secs => $1) OR i.inhdetachpending) \
         ORDER BY i.inhdetachpending DESC NULLS LAST, upper",
    );
    let rows = client.query_typed(&statement, &[(&seconds, Type::FLOAT8), (&names.schema(), Type::TEXT)]).await?;
    let mut dropped = Vec::new();
    for row in rows {
        let relation: String = row.try_get(0)?;
        let (exists, pending, attached): (bool, bool, bool) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let table = format!("{}.{}", names.schema(), identifier(&relation));
        if pending {
            client
                .batch_execute(&names.sql(&format!("ALTER TABLE {{sealed}} DETACH PARTITION {table} FINALIZE")))
                .await?;
        } else if attached {
            let detach = format!("ALTER TABLE {{sealed}} DETACH PARTITION {table} CONCURRENTLY");
            client.batch_execute(&names.sql(&detach)).await?;
        }
        if exists {
            client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
        }
        let forget = names.sql("DELETE FROM {segments} WHERE relation = $1");
        client.execute_typed(&forget, &[(&relation, Type::NAME)]).await?;
        dropped.push(relation);
    }
    let before = names.qualified("_sealed_before");
    let statement =
        format!("DELETE FROM {before} WHERE last < now() - make_interval(secs => $1) AND to_regclass($2) IS NOT NULL");
    let exists = client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&before, Type::TEXT)]).await?;
    if exists.try_get(0)? {
        client.execute_typed(&statement, &[(&seconds, Type::FLOAT8), (&before, Type::TEXT)]).await?;
    }
    Ok(dropped)
}

/// Deletes the keys of requests stored longer than `kept` ago. Only a leader that has led for that long may call this:
/// after an outage of hours the first retry must still find its key.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn forget_requests(client: &Client, names: &Names, kept: Duration) -> Result<(), Error> {
    let statement = names.sql("DELETE FROM {requests} WHERE stored_at < now() - make_interval(secs => $1)");
    client.execute_typed(&statement, &[(&kept.as_secs_f64(), Type::FLOAT8)]).await?;
    truncate_empty(client, names, "requests", "NOT EXISTS (SELECT FROM {requests})").await
}

/// Gives the space of the index of hot rows back once all of them are sealed and VACUUM has removed their pages.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn shrink_hot(client: &Client, names: &Names) -> Result<(), Error> {
    // TRUNCATE ignores snapshots. But VACUUM keeps what any snapshot sees, so without pages nobody misses anything.
    truncate_empty(client, names, "hot", "pg_relation_size({hot:literal}::regclass) = 0").await
}

/// Truncates a table whose indexes are large, under the condition `is_empty`: an index never shrinks by itself. Nobody
/// waits for this, because it does nothing while the table is in use. The second look needs a snapshot newer than the lock.
async fn truncate_empty(client: &Client, names: &Names, table: &str, is_empty: &str) -> Result<(), Error> {
    let statement = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; DO $$ BEGIN IF pg_indexes_size({{{table}:literal}}::regclass) > 65536 AND {is_empty} THEN \
         LOCK TABLE {{{table}}} IN ACCESS EXCLUSIVE MODE NOWAIT; \
         IF {is_empty} THEN TRUNCATE {{{table}}}; END IF; END IF; \
         EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN NULL; END $$; COMMIT"
    );
    Ok(client.batch_execute(&names.sql(&statement)).await?)
}

/// Deletes clusters that no adapter has heard for a day, and the reports of adapters that have been gone for a day.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn forget_clusters(client: &Client, names: &Names) -> Result<(), Error> {
    let statement = names.sql(&format!(
        "DELETE FROM {{reports}} WHERE reported_at < now() - interval '1 day'; \
         DELETE FROM {{leader}} l WHERE starts_with(group_name, '{CLUSTER_GROUPS}') \
         AND coalesce(heartbeat, '-infinity') < now() - interval '1 day' AND NOT EXISTS (SELECT FROM {{reports}} r, \
         unnest(r.tokens, r.heard) AS u (token, heard) WHERE u.token = l.token AND u.heard > now() - interval '1 day')",
    ));
    Ok(client.batch_execute(&statement).await?)
}

/// Query for the ids of all series that have samples or exemplars.
const STORED: &str = "SELECT id FROM {sealed_series}() AS s (id) UNION SELECT DISTINCT unnest(series) FROM {hot} \
    UNION SELECT series FROM {exemplar_rows}";

/// Time from marking a series to deleting it. By then every adapter that had its id in the cache has looked again,
/// which removes the mark, and samples stored with an id looked up earlier are visible.
const DELETED_AFTER: Duration = TRUSTED.saturating_mul(3);

/// Marks the series to which no stored sample refers. To be called when segments have been dropped: a series ends in no
/// other way.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn mark_ended(client: &Client, names: &Names) -> Result<u64, Error> {
    let statement = format!(
        "WITH stored AS MATERIALIZED ({STORED}) UPDATE {{series}} s SET ended_at = now() \
         WHERE ended_at IS NULL AND NOT EXISTS (SELECT FROM stored WHERE stored.id = s.id)"
    );
    Ok(client.execute_typed(&names.sql(&statement), &[]).await?)
}

/// Deletes series that were marked long ago and have no samples, and removes the mark from those that have samples
/// again. Returns the number of deleted series.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn delete_ended(client: &Client, names: &Names) -> Result<u64, Error> {
    let old = "ended_at < now() - make_interval(secs => $1)";
    let seconds: [(&(dyn ToSql + Sync), Type); 1] = [(&DELETED_AFTER.as_secs_f64(), Type::FLOAT8)];
    let any = names.sql(&format!("SELECT EXISTS (SELECT FROM {{series}} WHERE {old})"));
    if !client.query_typed_one(&any, &seconds).await?.try_get(0)? {
        return Ok(0);
    }
    let delete = format!(
        "WITH stored AS MATERIALIZED ({STORED}) DELETE FROM {{series}} s \
         WHERE {old} AND NOT EXISTS (SELECT FROM stored WHERE stored.id = s.id)"
    );
    let deleted = client.execute_typed(&names.sql(&delete), &seconds).await?;
    let unmark = names.sql(&format!("UPDATE {{series}} SET ended_at = NULL WHERE {old}"));
    client.execute_typed(&unmark, &seconds).await?;
    Ok(deleted)
}

/// Rebuilds the index of labels if it has become larger than its table: GIN keeps the entry of a label for ever, even
/// if no series has the label any more. Nobody waits for this. To be called when series have been deleted.
///
/// # Errors
///
/// Errors of the server or of the connection; the next call drops an index that was left half built.
pub async fn rebuild_labels_index(client: &Client, names: &Names) -> Result<bool, Error> {
    let indexes = names.sql(
        "SELECT indexrelid::regclass::text, indisvalid, pg_relation_size(indexrelid) > \
         greatest(pg_relation_size(indrelid), 1048576) FROM pg_index JOIN pg_class ON oid = indexrelid \
         WHERE indrelid = {series:literal}::regclass AND relam = (SELECT oid FROM pg_am WHERE amname = 'gin')",
    );
    let mut is_rebuilt = false;
    for row in client.query_typed(&indexes, &[]).await? {
        let (index, is_valid, is_outgrown): (String, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if !is_valid {
            client.batch_execute(&format!("DROP INDEX CONCURRENTLY {index}")).await?;
        } else if is_outgrown {
            client.batch_execute(&format!("REINDEX INDEX CONCURRENTLY {index}")).await?;
            is_rebuilt = true;
        }
    }
    Ok(is_rebuilt)
}

/// Size of the sealed samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of segments.
    pub segments: i64,
    /// Number of samples in them; approximate in a hypertable.
    pub samples: i64,
    /// Bytes of their relations, including indexes.
    pub bytes: i64,
}

/// Counts the sealed samples.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn sizes(client: &Client, names: &Names) -> Result<Sizes, Error> {
    let statement = names.sql("SELECT segments, samples, bytes FROM {sealed_sizes}()");
    let row = client.query_typed_one(&statement, &[]).await?;
    Ok(Sizes { segments: row.try_get(0)?, samples: row.try_get(1)?, bytes: row.try_get(2)? })
}
