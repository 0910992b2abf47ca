//! The layout with TimescaleDB: sealed samples are rows of a hypertable. Its columnstore compresses them if the edition
//! has one.
//!
//! Sealing, retention and the statements of remote read differ from the layout with chunks; the rest is in
//! `hypertable.sql`.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::names::{Names, identifier};
use crate::storage::row::{TIME_MIN_MS, to_postgres_us};
use crate::storage::seal::outcome::Outcome;

/// Schema of this layout in addition to `schema.sql`.
pub const SQL: &str = include_str!("hypertable.sql");

/// Lateness of samples, beyond the time that they wait to be sealed, from which they reach a compressed segment. Such a
/// segment takes a tenth as many samples per second.
const LATE: Duration = Duration::from_secs(3600);

/// Oldest supported version of TimescaleDB. In earlier versions INSERT … ON CONFLICT DO NOTHING into a compressed
/// segment silently ends at the first row that exists already.
pub const VERSION_MIN: &str = "2.18.1";

/// Returns the quoted schema of TimescaleDB; `None` if it is not installed in the database, or is older than
/// [`VERSION_MIN`].
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn extension(client: &Client) -> Result<Option<String>, Error> {
    let statement = "SELECT nspname::text FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace \
                     WHERE extname = 'timescaledb' AND string_to_array(substring(extversion FROM '^[0-9.]+'), '.')::integer[] \
                     >= string_to_array($1, '.')::integer[]";
    let row = client.query_typed_opt(statement, &[(&VERSION_MIN, Type::TEXT)]).await?;
    Ok(row.map(|row| row.try_get::<_, String>(0)).transpose()?.map(|schema| identifier(&schema)))
}

/// Sets the time span of new segments, and lets the columnstore compress segments that ended longer ago than
/// `seal_after` and `LATE` together.
///
/// # Errors
///
/// `Error::Misconfigured` if TimescaleDB is missing or too old; errors of the server or of the connection.
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
    // One message, and therefore one transaction.
    let enable = format!(
        "ALTER TABLE {{samples}} SET (timescaledb.compress, timescaledb.compress_segmentby = 'series_id', \
         timescaledb.compress_orderby = '\"time\"'); \
         SELECT {{timescaledb}}.add_compression_policy({{samples:literal}}::regclass, make_interval(secs => {}), \
         if_not_exists => true)",
        (seal_after + LATE).as_secs_f64()
    );
    match client.batch_execute(&fill(&enable)).await.map_err(Error::from) {
        Err(error) if error.is(&SqlState::FEATURE_NOT_SUPPORTED) => {
            log::info!(err:% = error; "sealed samples are not compressed: this TimescaleDB has no columnstore");
            Ok(())
        }
        enabled => enabled,
    }
}

/// Moves the hot rows that meet the condition `taken` into the hypertable, in the open transaction, which sees one
/// state of them. Also returns their latest time; `None` if there are no such rows.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn seal(
    client: &Client,
    names: &Names,
    taken: &str,
    expired_ms: Option<i64>,
) -> Result<(Outcome, Option<Timestamp>), Error> {
    let count =
        format!("SELECT coalesce(sum(cardinality(series)), 0)::bigint, max(\"time\") FROM {{hot}} WHERE {taken}");
    let count = client.query_typed_one(&names.sql(&count), &[]).await?;
    // The seventh number of a histogram is its sum. If one transaction of a writer stored several samples of a series at one time, their order within the row is that
    // of storing.
    let insert = names.sql(&format!(
        "INSERT INTO {{samples}} (\"time\", series_id, value, histogram) \
         SELECT DISTINCT ON (id, \"time\") \"time\", id, value, histogram FROM (SELECT \"time\", unnest(series) AS id, \
         unnest(value) AS value, NULL::float8[] AS histogram, no, generate_subscripts(series, 1) AS place \
         FROM {{hot}} WHERE {taken} AND \"time\" >= $1 AND array_ndims(value) = 1 \
         UNION ALL SELECT \"time\", series[1], value[1][7], ARRAY(SELECT unnest(value)), no, 1 \
         FROM {{hot}} WHERE {taken} AND \"time\" >= $1 AND array_ndims(value) = 2) h \
         ORDER BY id, \"time\", no, place ON CONFLICT DO NOTHING"
    ));
    let since = Timestamp(to_postgres_us(expired_ms.unwrap_or(TIME_MIN_MS)));
    let inserted = client.execute_typed(&insert, &[(&since, Type::TIMESTAMPTZ)]).await?;
    client.execute_typed(&names.sql(&format!("DELETE FROM {{hot}} WHERE {taken}")), &[]).await?;
    let samples = usize::try_from(count.try_get::<_, i64>(0)?).unwrap_or_default();
    let dropped = samples.saturating_sub(usize::try_from(inserted).unwrap_or_default());
    Ok((Outcome { samples, dropped, ..Outcome::default() }, count.try_get(1)?))
}

/// Drops the segments that end before `now - retention`, and returns their names.
///
/// # Errors
///
/// Errors of the server or of the connection; the next round continues from there.
pub async fn drop_expired(client: &Client, names: &Names, retention: Duration) -> Result<Vec<String>, Error> {
    let statement = names.sql("SELECT {drop_older}(now() - make_interval(secs => $1))");
    let rows = client.query_typed(&statement, &[(&retention.as_secs_f64(), Type::FLOAT8)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
