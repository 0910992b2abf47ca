//! Creates and migrates the tables, views and functions of a store.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, types::Type};

use crate::postgres::error::Error;
use crate::postgres::in_transaction;
use crate::storage::layout::{Layout, UseTimescaledb};
use crate::storage::names::Names;
use crate::storage::{chunk, hypertable};

/// Version of the schema that this program writes and reads.
pub const VERSION: i32 = MIGRATIONS.len() as i32;

/// Scripts from each version to the next, the first from an empty schema to version 1: for sealed samples in chunks,
/// and in a hypertable. What a later script replaces is stale in an earlier one: the functions of the fence and the columns of
/// the leader table are those of version 2.
const MIGRATIONS: [(&[&str], &[&str]); 7] = [
    (
        &[include_str!("schema.sql"), chunk::SQL, include_str!("segments.sql")],
        &[include_str!("schema.sql"), hypertable::SQL],
    ),
    (
        &[include_str!("migrate_2.sql"), include_str!("leader_2.sql")],
        &[include_str!("migrate_2.sql"), include_str!("leader_2.sql")],
    ),
    (&[chunk::SQL, include_str!("migrate_3.sql")], &[include_str!("migrate_3.sql")]),
    (&[include_str!("migrate_4.sql")], &[include_str!("migrate_4.sql")]),
    (&[include_str!("migrate_5.sql")], &[include_str!("migrate_5.sql")]),
    (&[include_str!("migrate_6.sql")], &[include_str!("migrate_6.sql")]),
    (
        &[
            include_str!("migrate_7.sql"),
            chunk::histograms::SQL,
            include_str!("histograms_chunks.sql"),
            include_str!("histograms_view.sql"),
            include_str!("histogram_functions.sql"),
            include_str!("histogram_arithmetic.sql"),
            include_str!("histogram_range_chunks.sql"),
            include_str!("histogram_rate.sql"),
        ],
        &[
            include_str!("migrate_7_hypertable.sql"),
            chunk::histograms::SQL,
            include_str!("histograms_hypertable.sql"),
            include_str!("histograms_view.sql"),
            include_str!("histogram_functions.sql"),
            include_str!("histogram_arithmetic.sql"),
            include_str!("histogram_range_hypertable.sql"),
            include_str!("histogram_rate.sql"),
        ],
    ),
];

/// Additional schema of the election by labels, created by the first adapter that uses it.
const CLUSTERS: &str = include_str!("clusters.sql");

/// Determines the location of the store: `schema`, or the first existing schema of the session's `search_path`.
///
/// # Errors
///
/// If no schema of the `search_path` exists; errors of the server or of the connection.
pub async fn locate(client: &Client, schema: Option<&str>, table: &str) -> Result<Names, Error> {
    let schema = match schema {
        Some(schema) => schema.to_owned(),
        None => {
            let row = client.query_typed_one("SELECT current_schema()::text", &[]).await?;
            row.try_get::<_, Option<String>>(0)?.ok_or_else(|| {
                Error::Misconfigured(
                    "no schema of the session's search_path exists: create one, or set -pg-schema".into(),
                )
            })?
        }
    };
    Ok(Names::new(schema, table))
}

/// Creates the store, or migrates it to version `to`. Any number of adapters may call this at once: the first does the
/// work, the others wait and find it done. `wanted` decides the layout of a new store; `by_labels` adds the tables of
/// the election by labels. Returns the layout of the store. `to` is [`VERSION`], or an earlier version for tests of
/// migration.
///
/// # Errors
///
/// [`Error::Misconfigured`] if the store is newer than this program, its names are taken, or the user may not create
/// tables; else errors of the server or of the connection.
pub async fn migrate(
    client: &Client,
    names: &Names,
    wanted: UseTimescaledb,
    by_labels: bool,
    to: i32,
) -> Result<Layout, Error> {
    // A frozen adapter must not keep others from starting.
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '10s'";
    let migrated = in_transaction(client, begin, async {
        // The lock keeps two adapters from both creating the schema. 2615 is the oid of pg_namespace, which no other table
        // has as a key.
        client
            .query_typed(
                "SELECT pg_advisory_xact_lock(2615, hashtext($1))",
                &[(&format!("{}.{}", names.schema_name(), names.relation("")), Type::TEXT)],
            )
            .await?;
        let exists = client
            .query_typed_opt("SELECT FROM pg_namespace WHERE nspname = $1", &[(&names.schema_name(), Type::TEXT)])
            .await?;
        if exists.is_none() {
            client.batch_execute(&names.sql("CREATE SCHEMA {schema}")).await?;
        }
        let version = version(client, names).await?.unwrap_or(0);
        if version > to {
            return Err(Error::Misconfigured(format!(
                "the tables of {} have version {version}, made by a newer adapter; this one knows versions up to {to}: \
                 start the newer one, or use another -pg-schema",
                names.view()
            )));
        }
        let layout =
            if version == 0 { Layout::choose(client, wanted).await? } else { Layout::of(client, names).await? };
        let timescaledb = hypertable::extension(client).await?.unwrap_or_default();
        let steps = usize::try_from(version).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        for (chunks, hypertable) in &MIGRATIONS[steps] {
            let parts = if layout == Layout::Chunks { chunks } else { hypertable };
            for part in *parts {
                client.batch_execute(&names.sql(&part.replace("{timescaledb}", &timescaledb))).await?;
            }
        }
        if version < to {
            // A function needs no page, and is part of the transaction like a row.
            let statement = format!(
                "CREATE OR REPLACE FUNCTION {{version}}() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT {to}'"
            );
            client.batch_execute(&names.sql(&statement)).await?;
            log::info!(
                table = names.view().as_str(), version = to, hypertable = layout == Layout::Hypertable;
                "made or migrated the tables"
            );
        }
        if by_labels {
            let is_there = "SELECT to_regclass($1) IS NOT NULL";
            let row = client.query_typed_one(is_there, &[(&names.sql("{reports}"), Type::TEXT)]).await?;
            if !row.try_get::<_, bool>(0)? {
                client.batch_execute(&names.sql(CLUSTERS)).await?;
            }
        }
        Ok(layout)
    })
    .await;
    migrated.map_err(|error| explain(error, names))
}

/// Returns the version of the store; `None` if it does not exist.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn version(client: &Client, names: &Names) -> Result<Option<i32>, Error> {
    let exists = client
        .query_typed_one("SELECT to_regprocedure($1) IS NOT NULL", &[(&names.sql("{version}()"), Type::TEXT)])
        .await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let row = client.query_typed_one(&names.sql("SELECT {version}()"), &[]).await?;
    Ok(Some(row.try_get(0)?))
}

fn explain(error: Error, names: &Names) -> Error {
    if error.is(&SqlState::DUPLICATE_TABLE) {
        return Error::Misconfigured(format!(
            "{error}: a relation of another program, perhaps of the old adapter or pg_prometheus, has a name that this \
             one needs beside {}: set -pg-schema or -pg-table, or rename it",
            names.view()
        ));
    }
    if error.is(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Error::Misconfigured(format!(
            "{error}: the adapter's user needs CREATE in schema {} (GRANT CREATE, USAGE ON SCHEMA …), or set -pg-schema \
             to a schema it owns",
            names.schema()
        ));
    }
    error
}
