//! Stores what nobody stored: samples that a change of leader passed over.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::fence::{Fence, Limits, WITHOUT_JIT, begin};
use crate::storage::gaps::{Compared, Known, LOOK_AROUND_MS, Stored};
use crate::storage::ingest::{copy, copy_statement, standing};
use crate::storage::names::Names;
use crate::storage::row::{Row, from_postgres_us, to_postgres_us};

/// Samples of one sender to be compared with what is stored, under the term in force.
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

/// One transaction, for several senders: stores those of each that [are missing](Stored::compare), and returns what became of
/// each; `None` where another term may have begun. One adapter of a group at a time compares; a fence is taken only if there is
/// something to store, and then holds a take-over up until the end.
///
/// # Errors
///
/// What the server said.
pub async fn fill(
    client: &Client,
    names: &Names,
    doubtful: &[Doubtful],
    timeout: Duration,
) -> Result<Vec<Option<Compared>>, Error> {
    let mut groups: Vec<i32> = doubtful.iter().map(|doubtful| doubtful.fence.group_no).collect();
    groups.sort_unstable();
    groups.dedup();
    client.batch_execute(&format!("{}; {WITHOUT_JIT}", begin(Limits::of(timeout)))).await?;
    // All in the same order, so that no two wait for each other.
    let lock = names.fill(
        "SELECT pg_advisory_xact_lock({requests:literal}::regclass::oid::integer, of_group) FROM unnest($1::integer[]) \
         WITH ORDINALITY AS g (of_group, place) ORDER BY place",
    );
    client.query_typed(&lock, &[(&groups, Type::INT4_ARRAY)]).await?;
    let times = stored_around(client, names, doubtful).await?;
    let clocks_ms = clocks(client, names, &groups).await?;
    let compare = |doubtful: &Doubtful| {
        let ids = doubtful.rows.chunk_by(|one, next| one.series_id == next.series_id).map(|rows| rows[0].series_id);
        let times = ids.filter_map(|id| Some((id, times.get(&id)?.clone()))).collect();
        let stored = Stored { times, clocks_ms: clocks_ms.get(&doubtful.fence.group_no).copied() };
        stored.compare(&doubtful.rows, doubtful.clock_offset_ms, doubtful.passed_ms, &doubtful.known)
    };
    let mut compared: Vec<Option<Compared>> = doubtful.iter().map(|doubtful| Some(compare(doubtful))).collect();
    let is_missing = |compared: &Option<Compared>| compared.as_ref().is_some_and(|one| !one.missing.is_empty());
    let all = doubtful.iter().zip(&compared);
    let filled: Vec<&Doubtful> =
        all.filter(|(_, compared)| is_missing(compared)).map(|(doubtful, _)| doubtful).collect();
    if !filled.is_empty() {
        let rights: Vec<_> = filled.iter().map(|doubtful| (Some(doubtful.fence), None)).collect();
        let shown = rights.iter().zip(standing(client, names, &rights).await?);
        let in_force: HashSet<Uuid> =
            shown.filter_map(|((fence, _), standing)| standing.ok().and(fence.map(|fence| fence.token))).collect();
        for (doubtful, compared) in doubtful.iter().zip(&mut compared) {
            if is_missing(compared) && !in_force.contains(&doubtful.fence.token) {
                *compared = None;
            }
        }
        let statement = client.prepare(&copy_statement(names)).await?;
        let missing: Vec<&Row> = compared.iter().flatten().flat_map(|compared| &compared.missing).collect();
        let rows = missing.iter().map(|row| (SenderNo::UNKNOWN, *row));
        copy(client, &statement, rows, missing.len()).await?.as_mut().finish().await?;
        let filled = filled.iter().filter(|doubtful| in_force.contains(&doubtful.fence.token));
        note_clocks(client, names, filled.copied()).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(compared)
}

/// Stored times by series id, from [`LOOK_AROUND_MS`] before the first of all samples to as much after the last.
async fn stored_around(client: &Client, names: &Names, doubtful: &[Doubtful]) -> Result<HashMap<i64, Vec<i64>>, Error> {
    let rows = || doubtful.iter().flat_map(|doubtful| &doubtful.rows);
    let mut ids: Vec<i64> = rows().map(|row| row.series_id).collect();
    ids.sort_unstable();
    ids.dedup();
    let times = || rows().map(|row| row.time_ms);
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
    let rows = client.query_typed(&statement, &parameters).await?;
    let times = |row: &tokio_postgres::Row| {
        let times: Vec<Timestamp> = row.try_get(1)?;
        let times = times.into_iter().map(|Timestamp(time_us)| from_postgres_us(time_us)).collect();
        Ok((row.try_get(0)?, times))
    };
    rows.iter().map(times).collect()
}

/// By group, how far the clocks of those who stored around its holes are ahead of the server's: the least and the most.
async fn clocks(client: &Client, names: &Names, groups: &[i32]) -> Result<HashMap<i32, (i64, i64)>, Error> {
    let statement = names.fill(
        "SELECT group_no, hole_clock_least_ms, hole_clock_most_ms FROM {leader} \
         WHERE group_no = ANY ($1) AND hole_clock_least_ms IS NOT NULL AND hole_clock_most_ms IS NOT NULL",
    );
    let rows = client.query_typed(&statement, &[(&groups, Type::INT4_ARRAY)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)))).collect()
}

/// Remembers the clocks of those who stored around these groups' holes.
async fn note_clocks<'a>(
    client: &Client,
    names: &Names,
    filled: impl Iterator<Item = &'a Doubtful> + Clone,
) -> Result<(), Error> {
    let statement = names.fill(
        "UPDATE {leader} l SET hole_clock_least_ms = least(hole_clock_least_ms, f.least), \
         hole_clock_most_ms = greatest(hole_clock_most_ms, f.most) \
         FROM (SELECT of_group, min(clock) AS least, max(clock) AS most FROM unnest($1::integer[], $2::bigint[]) \
         AS f (of_group, clock) GROUP BY 1) f WHERE group_no = f.of_group",
    );
    let groups: Vec<i32> = filled.clone().map(|doubtful| doubtful.fence.group_no).collect();
    let clocks_ms: Vec<i64> = filled.map(|doubtful| doubtful.clock_offset_ms).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::INT4_ARRAY), (&clocks_ms, Type::INT8_ARRAY)];
    client.execute_typed(&statement, &parameters).await?;
    Ok(())
}
