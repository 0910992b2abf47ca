//! The layout with TimescaleDB: sealed samples are rows of a hypertable, which its columnstore compresses where the
//! edition has one.
//!
//! What differs from chunks is sealing, retention and how remote read asks; the rest is in `hypertable.sql`.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::names::{Names, identifier};
use crate::storage::row::{TIME_MIN_MS, to_postgres_us};
use crate::storage::seal::outcome::Outcome;

/// What the layout has beside `schema.sql`.
pub const SQL: &str = include_str!("hypertable.sql");

/// Samples may be so late beyond the time they wait to be sealed before they meet a compressed segment, which takes a
/// tenth as many a second.
const LATE: Duration = Duration::from_secs(3600);

/// The oldest TimescaleDB that serves: in those before, INSERT … ON CONFLICT DO NOTHING into a compressed segment ends,
/// without a word, at the first row that is there already.
pub const VERSION_MIN: &str = "2.18.1";

/// The schema that TimescaleDB is in, quoted; `None` where it is not installed in the database, or older than
/// [`VERSION_MIN`].
///
/// # Errors
///
/// What the server said.
pub async fn extension(client: &Client) -> Result<Option<String>, Error> {
    let statement = "SELECT nspname::text FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace \
                     WHERE extname = 'timescaledb' AND string_to_array(substring(extversion FROM '^[0-9.]+'), '.')::integer[] \
                     >= string_to_array($1, '.')::integer[]";
    let row = client.query_typed_opt(statement, &[(&VERSION_MIN, Type::TEXT)]).await?;
    Ok(row.map(|row| row.try_get::<_, String>(0)).transpose()?.map(|schema| identifier(&schema)))
}

/// Sets the span of segments to come, and lets the columnstore compress those that end longer ago than samples wait to be
/// sealed.
///
/// # Errors
///
/// What the server said.
pub async fn adjust(client: &Client, names: &Names, interval: Duration, seal_after: Duration) -> Result<(), Error> {
    let schema = extension(client).await?.ok_or_else(|| {
        Error::Misconfigured(format!(
            "{} is a hypertable and needs TimescaleDB {VERSION_MIN} or later: ALTER EXTENSION timescaledb UPDATE",
            names.qualified("_samples")
        ))
    })?;
    let fill = |text: &str| names.sql(&text.replace("{timescaledb}", &schema));
    let statement =
        fill("SELECT {timescaledb}.set_chunk_time_interval({samples:literal}::regclass, make_interval(secs => $1))");
    client.query_typed(&statement, &[(&interval.as_secs_f64(), Type::FLOAT8)]).await?;
    let statement = "SELECT compression_enabled FROM timescaledb_information.hypertables \
                     WHERE hypertable_schema = $1 AND hypertable_name = $2";
    let relation = names.relation("_samples");
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&names.schema_name(), Type::NAME), (&relation, Type::NAME)];
    if client.query_typed_one(statement, &parameters).await?.try_get(0)? {
        return Ok(());
    }
    // One message, so one transaction.
    let enable = format!(
        "ALTER TABLE {{samples}} SET (timescaledb.compress, timescaledb.compress_segmentby = 'series_id', \
         timescaledb.compress_orderby = '\"time\"'); \
         SELECT {{timescaledb}}.add_compression_policy({{samples:literal}}::regclass, make_interval(secs => {}), \
         if_not_exists => true)",
        (seal_after + LATE).as_secs_f64()
    );
    match client.batch_execute(&fill(&enable)).await.map_err(Error::from) {
        Err(error) if error.is(&SqlState::FEATURE_NOT_SUPPORTED) => {
            log::info!("sealed samples are not compressed: this TimescaleDB has no columnstore ({error})");
            Ok(())
        }
        enabled => enabled,
    }
}

/// Moves the hot rows of which the condition `taken` holds into the hypertable, in the transaction that is open, which sees
/// one state of them. Returns the latest time of them, too; `None` where there are none.
///
/// # Errors
///
/// What the server said.
pub async fn seal(
    client: &Client,
    names: &Names,
    taken: &str,
    expired_ms: Option<i64>,
) -> Result<(Outcome, Option<Timestamp>), Error> {
    let count =
        format!("SELECT coalesce(sum(cardinality(series)), 0)::bigint, max(\"time\") FROM {{hot}} WHERE {taken}");
    let count = client.query_typed_one(&names.sql(&count), &[]).await?;
    // Of several in one transaction of a writer, the order within the row is that of storing.
    let insert = names.sql(&format!(
        "INSERT INTO {{samples}} (\"time\", series_id, value) \
         SELECT DISTINCT ON (id, \"time\") \"time\", id, value FROM (SELECT \"time\", unnest(series) AS id, \
         unnest(value) AS value, no, generate_subscripts(series, 1) AS place FROM {{hot}} WHERE {taken} AND \"time\" >= $1) h \
         ORDER BY id, \"time\", no, place ON CONFLICT DO NOTHING"
    ));
    let since = Timestamp(to_postgres_us(expired_ms.unwrap_or(TIME_MIN_MS)));
    let inserted = client.execute_typed(&insert, &[(&since, Type::TIMESTAMPTZ)]).await?;
    client.execute_typed(&names.sql(&format!("DELETE FROM {{hot}} WHERE {taken}")), &[]).await?;
    let samples = usize::try_from(count.try_get::<_, i64>(0)?).unwrap_or_default();
    let dropped = samples.saturating_sub(usize::try_from(inserted).unwrap_or_default());
    Ok((Outcome { samples, dropped, ..Outcome::default() }, count.try_get(1)?))
}

/// Drops the segments that end before `now - retention`; their names.
///
/// # Errors
///
/// What the server said; the next round goes on from there.
pub async fn drop_expired(client: &Client, names: &Names, retention: Duration) -> Result<Vec<String>, Error> {
    let statement = names.sql("SELECT {drop_older}(now() - make_interval(secs => $1))");
    let rows = client.query_typed(&statement, &[(&retention.as_secs_f64(), Type::FLOAT8)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
