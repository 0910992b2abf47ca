//! What the leader does beside writing: retention, indexes of segments that are full, forgetting old requests.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::postgres::error::Error;
use crate::storage::names::{Names, identifier};

/// How long a request's key is kept. A retry comes within seconds of the server being back; that it is back is the
/// caller's to know ([`forget_requests`]).
const REQUESTS_KEPT: Duration = Duration::from_secs(3600);

/// A segment is full when its end is this long past: late samples go on into it, but few.
const FULL_AFTER: Duration = Duration::from_secs(3600);

/// Drops the segments that end before `now - retention`, and deletes what is older from the one without a beginning.
/// Returns the names of the dropped. Neither ingest nor a reader of other segments waits for it; a reader of the
/// segment itself makes it wait, at most until the statement timeout, and the next round goes on from there.
///
/// # Errors
///
/// What the server said.
pub async fn drop_expired(client: &Client, names: &Names, retention: Duration) -> Result<Vec<String>, Error> {
    let seconds = retention.as_secs_f64();
    let statement = names.fill(
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
                .batch_execute(&names.fill(&format!("ALTER TABLE {{samples}} DETACH PARTITION {table} FINALIZE")))
                .await?;
        } else if attached {
            let detach = format!("ALTER TABLE {{samples}} DETACH PARTITION {table} CONCURRENTLY");
            client.batch_execute(&names.fill(&detach)).await?;
        }
        if exists {
            client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
        }
        let forget = names.fill("DELETE FROM {segments} WHERE relation = $1");
        client.execute_typed(&forget, &[(&relation, Type::TEXT)]).await?;
        dropped.push(relation);
    }
    let before = names.qualified("_samples_before");
    let statement = format!(
        "DELETE FROM {before} WHERE \"time\" < now() - make_interval(secs => $1) AND to_regclass($2) IS NOT NULL"
    );
    let exists = client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&before, Type::TEXT)]).await?;
    if exists.try_get(0)? {
        client.execute_typed(&statement, &[(&seconds, Type::FLOAT8), (&before, Type::TEXT)]).await?;
    }
    Ok(dropped)
}

/// Builds the index by series of segments that are full, one after another, without holding writers up. Written bare
/// and indexed in bulk, a row costs a quarter of what it does with the index there from the beginning.
///
/// # Errors
///
/// What the server said; an index left invalid is made anew the next time.
pub async fn index_full(client: &Client, names: &Names) -> Result<Vec<String>, Error> {
    let statement = names.fill(
        "SELECT relation FROM {segments} WHERE NOT indexed AND lower IS NOT NULL \
         AND upper <= now() - make_interval(secs => $1) ORDER BY upper",
    );
    let rows = client.query_typed(&statement, &[(&FULL_AFTER.as_secs_f64(), Type::FLOAT8)]).await?;
    let mut indexed = Vec::new();
    for row in rows {
        let relation: String = row.try_get(0)?;
        match index(client, names, &relation).await {
            Ok(()) => indexed.push(relation),
            // The others are not to wait for it.
            Err(error) => log::warn!("indexing {relation} failed, to be tried again: {error}"),
        }
    }
    Ok(indexed)
}

async fn index(client: &Client, names: &Names, relation: &str) -> Result<(), Error> {
    let table = format!("{}.{}", names.schema(), identifier(relation));
    let name = identifier(&format!("{relation}_series"));
    client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}.{name}", names.schema())).await?;
    client.batch_execute(&format!("CREATE INDEX CONCURRENTLY {name} ON {table} (series_id, \"time\")")).await?;
    let statement = names.fill("UPDATE {segments} SET indexed = true WHERE relation = $1");
    client.execute_typed(&statement, &[(&relation, Type::TEXT)]).await?;
    Ok(())
}

/// Forgets the keys of requests stored long ago. To be called only by a leader that has led for minutes: after an
/// outage of hours the first retry must still find its key.
///
/// # Errors
///
/// What the server said.
pub async fn forget_requests(client: &Client, names: &Names) -> Result<u64, Error> {
    let statement = names.fill("DELETE FROM {requests} WHERE stored_at < now() - make_interval(secs => $1)");
    Ok(client.execute_typed(&statement, &[(&REQUESTS_KEPT.as_secs_f64(), Type::FLOAT8)]).await?)
}
