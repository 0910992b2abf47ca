//! What the leader does beside writing and sealing: retention, deleting series that ended, forgetting old requests.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::postgres::error::Error;
use crate::storage::names::{Names, identifier};
use crate::storage::series::TRUSTED;

/// How long a request's key is kept, five minutes and the time a request may take: a sender that was not answered tries
/// again within its timeout and 5 s. That it finds the server and its leader there is the caller's to know
/// ([`forget_requests`]).
pub const REQUESTS_KEPT: Duration = Duration::from_secs(300);

/// What the names of groups begin with that are clusters.
pub const CLUSTER_GROUPS: &str = "cluster ";

/// The transaction of [`lock`] shows that often that its adapter lives.
const LOCK_SHOWN: Duration = Duration::from_secs(2);

/// The server ends the transaction of [`lock`] after so long without a sign of life: its adapter is frozen or cut off, and
/// upkeep is another's to do.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Begins a transaction that keeps others from doing this at the same time, for as long as [`hold_lock`] runs; `false` if
/// another one does it.
///
/// # Errors
///
/// What the server said.
pub async fn lock(client: &Client, names: &Names) -> Result<bool, Error> {
    // Simple queries: a portal would keep its snapshot, and an index built concurrently waits for older snapshots.
    let begin = format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&begin).await?;
    // Not the key of those that make series (0), who must never wait for upkeep.
    let lock = names.sql("SELECT pg_try_advisory_xact_lock({series:literal}::regclass::oid::integer, 1)");
    let answer = client.simple_query(&lock).await?;
    Ok(answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
}

/// Keeps the transaction of [`lock`] open; ends only with the error that ended it, after which others may be at it.
pub async fn hold_lock(client: &Client) -> Error {
    loop {
        tokio::time::sleep(LOCK_SHOWN).await;
        // Without a snapshot: see above.
        if let Err(error) = client.batch_execute("").await {
            return error.into();
        }
    }
}

/// Drops the segments that end before `now - retention`, and deletes what is older from the one without a beginning.
/// Returns the names of the dropped. Neither ingest nor a reader of other segments waits for it; a reader of the
/// segment itself makes it wait, at most until the statement timeout, and the next round goes on from there.
///
/// # Errors
///
/// What the server said.
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

/// Forgets the keys of requests stored longer ago than `kept`. To be called only by a leader that has led for so long:
/// after an outage of hours the first retry must still find its key.
///
/// # Errors
///
/// What the server said.
pub async fn forget_requests(client: &Client, names: &Names, kept: Duration) -> Result<(), Error> {
    let statement = names.sql("DELETE FROM {requests} WHERE stored_at < now() - make_interval(secs => $1)");
    client.execute_typed(&statement, &[(&kept.as_secs_f64(), Type::FLOAT8)]).await?;
    // An index never shrinks by itself. Where writers are at rest, nobody waits for this.
    let is_empty = names
        .sql("SELECT pg_indexes_size({requests:literal}::regclass) > 65536 AND NOT EXISTS (SELECT FROM {requests})");
    if client.query_typed_one(&is_empty, &[]).await?.try_get(0)? {
        let shrink = names.sql(
            "DO $$ BEGIN LOCK TABLE {requests} IN ACCESS EXCLUSIVE MODE NOWAIT; \
             IF NOT EXISTS (SELECT FROM {requests}) THEN TRUNCATE {requests}; END IF; \
             EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN NULL; END $$",
        );
        client.batch_execute(&shrink).await?;
    }
    Ok(())
}

/// Forgets clusters that no adapter has heard for a day, and what adapters told that are gone.
///
/// # Errors
///
/// What the server said.
pub async fn forget_clusters(client: &Client, names: &Names) -> Result<(), Error> {
    let statement = names.sql(&format!(
        "DELETE FROM {{reports}} WHERE reported_at < now() - interval '1 day'; \
         DELETE FROM {{leader}} l WHERE starts_with(group_name, '{CLUSTER_GROUPS}') \
         AND coalesce(heartbeat, '-infinity') < now() - interval '1 day' AND NOT EXISTS (SELECT FROM {{reports}} r, \
         unnest(r.tokens, r.heard) AS u (token, heard) WHERE u.token = l.token AND u.heard > now() - interval '1 day')",
    ));
    Ok(client.batch_execute(&statement).await?)
}

/// The ids of all series that have samples.
const STORED: &str = "SELECT id FROM {sealed_series}() AS s (id) UNION SELECT DISTINCT unnest(series) FROM {hot}";

/// A series is deleted so long after it was marked: by then every adapter that had its id in the cache has looked
/// again, which takes the mark away, and what it stored by an id from before is seen.
const DELETED_AFTER: Duration = TRUSTED.saturating_mul(3);

/// Marks the series to which nothing stored refers. To be called when segments have been dropped, for nothing else
/// makes a series end.
///
/// # Errors
///
/// What the server said.
pub async fn mark_ended(client: &Client, names: &Names) -> Result<u64, Error> {
    let statement = format!(
        "WITH stored AS MATERIALIZED ({STORED}) UPDATE {{series}} s SET ended_at = now() \
         WHERE ended_at IS NULL AND NOT EXISTS (SELECT FROM stored WHERE stored.id = s.id)"
    );
    Ok(client.execute_typed(&names.sql(&statement), &[]).await?)
}

/// Deletes series that were marked long ago and have no samples; those that have some again lose the mark. Returns how
/// many went.
///
/// # Errors
///
/// What the server said.
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

/// Builds the index of labels anew where it has outgrown its table: of a label that no series has any more GIN keeps the
/// entry for ever. Nobody waits for it. To be called when series have been deleted.
///
/// # Errors
///
/// What the server said; an index half built is dropped by the next call.
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

/// What the sealed samples take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Segments there are.
    pub segments: i64,
    /// Samples in them; in a hypertable, about so many.
    pub samples: i64,
    /// Bytes of their relations, indexes included.
    pub bytes: i64,
}

/// Counts what is sealed.
///
/// # Errors
///
/// What the server said.
pub async fn sizes(client: &Client, names: &Names) -> Result<Sizes, Error> {
    let statement = names.sql("SELECT segments, samples, bytes FROM {sealed_sizes}()");
    let row = client.query_typed_one(&statement, &[]).await?;
    Ok(Sizes { segments: row.try_get(0)?, samples: row.try_get(1)?, bytes: row.try_get(2)? })
}
