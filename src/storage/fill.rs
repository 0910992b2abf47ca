//! Stores what nobody stored: samples that a change of leader passed over.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::fence::{Fence, begin, show};
use crate::storage::gaps::{Compared, Known, LOOK_AROUND_MS, Stored};
use crate::storage::ingest::{copy, copy_statement};
use crate::storage::names::Names;
use crate::storage::row::{Row, from_postgres_us, to_postgres_us};

/// Samples to be compared with what is stored, under the term in force.
#[derive(Clone, Debug)]
pub struct Doubtful {
    /// In the order of series and time, none twice.
    pub rows: Vec<Row>,
    /// The right to write.
    pub fence: Fence,
    /// How far our clock is ahead of the server's.
    pub clock_offset_ms: i64,
    /// Up to here the leader has stored all it will be sent.
    pub passed_ms: i64,
    /// By series id, what is known from comparing earlier ones.
    pub known: HashMap<i64, Known>,
}

/// One transaction: stores those that [are missing](Stored::compare). One adapter of a group at a time compares, and holds
/// nobody else up meanwhile: the fence is taken only if there is something to store.
///
/// # Errors
///
/// What the server said.
pub async fn fill(client: &Client, names: &Names, doubtful: &Doubtful, timeout: Duration) -> Result<Compared, Error> {
    let Doubtful { rows, fence, clock_offset_ms, passed_ms, known } = doubtful;
    client.batch_execute(&begin(names, None, timeout)).await?;
    let lock = names.fill("SELECT pg_advisory_xact_lock({requests:literal}::regclass::oid::integer, $1)");
    client.query_typed(&lock, &[(&fence.group_no, Type::INT4)]).await?;
    let stored = stored_around(client, names, fence.group_no, rows).await?;
    let compared = stored.compare(rows, *clock_offset_ms, *passed_ms, known);
    let missing = &compared.missing;
    if !missing.is_empty() {
        client.batch_execute(&show(names, *fence)).await?;
        let statement = client.prepare(&copy_statement(names)).await?;
        copy(client, &statement, missing.iter()).await?;
        let clocks = names.fill(
            "UPDATE {leader} SET hole_clock_least_ms = least(hole_clock_least_ms, $2), \
             hole_clock_most_ms = greatest(hole_clock_most_ms, $2) WHERE group_no = $1",
        );
        client.execute_typed(&clocks, &[(&fence.group_no, Type::INT4), (clock_offset_ms, Type::INT8)]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(compared)
}

async fn stored_around(client: &Client, names: &Names, group_no: i32, rows: &[Row]) -> Result<Stored, Error> {
    let mut ids: Vec<i64> = rows.iter().map(|row| row.series_id).collect();
    ids.dedup();
    let times = || rows.iter().map(|row| row.time_ms);
    let at = |time_ms: i64| Timestamp(to_postgres_us(time_ms));
    let from = at(times().min().unwrap_or(0).saturating_sub(LOOK_AROUND_MS));
    let to = at(times().max().unwrap_or(0).saturating_add(LOOK_AROUND_MS));
    let statement = names.fill(
        "SELECT id, array_agg(\"time\" ORDER BY \"time\") FROM (SELECT id, \"time\" FROM {sealed_times}($1, $2, $3) UNION ALL \
         SELECT w.id, h.\"time\" FROM (SELECT \"time\", unnest(series) AS id FROM {hot} \
         WHERE \"time\" >= $2 AND \"time\" <= $3) h JOIN unnest($1::bigint[]) AS w (id) ON w.id = h.id) f GROUP BY id",
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&ids, Type::INT8_ARRAY), (&from, Type::TIMESTAMPTZ), (&to, Type::TIMESTAMPTZ)];
    let mut stored = Stored::default();
    for row in client.query_typed(&statement, &parameters).await? {
        let times: Vec<Timestamp> = row.try_get(1)?;
        let times = times.into_iter().map(|Timestamp(time_us)| from_postgres_us(time_us)).collect();
        stored.times.insert(row.try_get(0)?, times);
    }
    let clocks = names.fill("SELECT hole_clock_least_ms, hole_clock_most_ms FROM {leader} WHERE group_no = $1");
    let row = client.query_typed_one(&clocks, &[(&group_no, Type::INT4)]).await?;
    stored.clocks_ms = row.try_get::<_, Option<i64>>(0)?.zip(row.try_get(1)?);
    Ok(stored)
}
