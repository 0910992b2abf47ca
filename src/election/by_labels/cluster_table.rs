//! The reports and rows of clusters in the database: statements and their results.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::election::by_labels::cluster::{ClusterRow, Next, Succession};
use crate::election::by_labels::group_name;
use crate::election::by_labels::orders::{ClusterOrder, Given};
use crate::election::lock_session::YIELDS;
use crate::postgres::error::Error;
use crate::storage::fence::Fence;
use crate::storage::names::Names;
use crate::storage::upkeep::CLUSTER_GROUPS;

/// One adapter's report on a leading replica.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The token of the term.
    pub token: Uuid,
    /// `true` if the buffered samples of the term's replica are stored.
    pub has_begun: bool,
    /// Time since the replica was heard, if it was heard in this term.
    pub heard_ago: Option<Duration>,
    /// Time after which the replica counts as silent once it was last heard.
    pub patience: Option<Duration>,
}

/// A cluster's row, as read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The name of the cluster.
    pub cluster: String,
    /// The group's number in the leader table.
    pub group_no: i32,
    /// `None` before any replica has led.
    pub seen: Option<ClusterRow>,
}

/// Time limit of the wait for writes in flight. After it the take-over is tried again.
pub(super) const DRAINED_WITHIN: Duration = Duration::from_secs(1);

/// Age of an adapter's last report up to which the adapter counts as living. A take-over waits only for living
/// adapters.
const LIVES: &str = "interval '3 seconds'";

/// Writes this adapter's reports, and reads the rows of these clusters with the reports of all adapters. One round
/// trip. Clusters without a row are not in the result.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn round(
    client: &Client,
    names: &Names,
    adapter: Uuid,
    reports: &[Report],
    clusters: &[String],
) -> Result<Vec<Read>, Error> {
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    let tokens: Vec<Uuid> = reports.iter().map(|report| report.token).collect();
    let begun: Vec<bool> = reports.iter().map(|report| report.has_begun).collect();
    let heard: Vec<Option<f64>> = reports.iter().map(|report| seconds(report.heard_ago)).collect();
    let patience: Vec<Option<f64>> = reports.iter().map(|report| seconds(report.patience)).collect();
    let tell = names.sql(
        "INSERT INTO {reports} (adapter, reported_at, tokens, begun, heard, patience) VALUES ($1, clock_timestamp(), $2, $3, \
         ARRAY(SELECT clock_timestamp() - make_interval(secs => ago) FROM unnest($4) WITH ORDINALITY a (ago, n) ORDER BY n), $5) \
         ON CONFLICT (adapter) DO UPDATE SET reported_at = excluded.reported_at, tokens = excluded.tokens, \
         begun = excluded.begun, heard = excluded.heard, patience = excluded.patience",
    );
    let told: [(&(dyn ToSql + Sync), Type); 5] = [
        (&adapter, Type::UUID),
        (&tokens, Type::UUID_ARRAY),
        (&begun, Type::BOOL_ARRAY),
        (&heard, Type::FLOAT8_ARRAY),
        (&patience, Type::FLOAT8_ARRAY),
    ];
    // The adapter that heard the replica last decides after what time it is silent. A time in the future was written
    // before the server's clock was set back.
    let read = names.sql(&format!(
        "WITH told AS (SELECT u.token, max(u.heard) AS heard, \
         (array_agg(u.patience ORDER BY u.heard DESC))[1] AS patience \
         FROM {{reports}} r, unnest(r.tokens, r.heard, r.patience) AS u (token, heard, patience) \
         WHERE u.heard <= clock_timestamp() GROUP BY 1) \
         SELECT group_name, group_no, term, l.token, holder, extract(epoch FROM clock_timestamp() - t.heard)::float8, t.patience, \
         CASE WHEN {YIELDS} THEN coalesce(l.successor, '') END, l.held_out \
         FROM {{leader}} l LEFT JOIN told t ON t.token = l.token WHERE group_name = ANY ($1)",
    ));
    let groups: Vec<String> = clusters.iter().map(|cluster| group_name(cluster)).collect();
    let asked: [(&(dyn ToSql + Sync), Type); 1] = [(&groups, Type::TEXT_ARRAY)];
    // Both statements are sent together. The query may read the reports of other adapters as they were before.
    let (told, rows) =
        futures_util::future::join(client.execute_typed(&tell, &told), client.query_typed(&read, &asked)).await;
    told?;
    rows?.iter().map(read_row).collect()
}

fn read_row(row: &tokio_postgres::Row) -> Result<Read, Error> {
    let (group_name, group_no): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
    let (token, replica): (Option<Uuid>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let (heard, patience): (Option<f64>, Option<f64>) = (row.try_get(5)?, row.try_get(6)?);
    let duration = |secs: f64| Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(Duration::MAX);
    let term = row.try_get(2)?;
    let seen = match token.zip(replica) {
        Some((token, replica)) => Some(ClusterRow {
            fence: Fence { group_no, term, token },
            replica,
            heard_ago: heard.map(duration),
            patience: patience.map(duration),
            // No replica has an empty name: a label without a value does not exist.
            next: row.try_get::<_, Option<String>>(7)?.map(|next| match next.is_empty() {
                true => Next::AnyOther,
                false => Next::Named(next),
            }),
            held_out: row.try_get(8)?,
        }),
        None => None,
    };
    let cluster = group_name.strip_prefix(CLUSTER_GROUPS).unwrap_or(&group_name).to_owned();
    Ok(Read { cluster, group_no, seen })
}

/// Inserts rows for new clusters, as long as there are fewer than `clusters_max`.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn add(client: &Client, names: &Names, clusters: &[String], clusters_max: usize) -> Result<(), Error> {
    let statement = names.sql(
        "INSERT INTO {leader} (group_name) SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS n (name, place) \
         WHERE place + (SELECT count(*) FROM {leader} WHERE starts_with(group_name, $3)) <= $2 ON CONFLICT DO NOTHING",
    );
    let groups: Vec<String> = clusters.iter().map(|cluster| group_name(cluster)).collect();
    let most = i64::try_from(clusters_max).unwrap_or(i64::MAX);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&groups, Type::TEXT_ARRAY), (&most, Type::INT8), (&CLUSTER_GROUPS, Type::TEXT)];
    client.execute_typed(&statement, &parameters).await?;
    Ok(())
}

/// Writes an order to the cluster's row, where all adapters read it.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn order(client: &Client, names: &Names, given: &Given) -> Result<(), Error> {
    let Given { fence: Fence { group_no, token, .. }, order, until } = given;
    let left = until.saturating_duration_since(Instant::now());
    let yields = format!(
        "successor = $2, successor_until = clock_timestamp() + make_interval(secs => {}) WHERE token = '{token}' AND",
        left.as_secs_f64()
    );
    let (replica, set) = match order {
        ClusterOrder::Resign => (None, yields.as_str()),
        ClusterOrder::HandOver { to } => (Some(to), yields.as_str()),
        ClusterOrder::Hold { replica } => {
            (Some(replica), "held_out = array_append(array_remove(held_out, $2), $2) WHERE")
        }
        ClusterOrder::Release { replica } => (Some(replica), "held_out = array_remove(held_out, $2) WHERE"),
    };
    let statement = names.sql(&format!("UPDATE {{leader}} SET {set} group_no = $1"));
    client.execute_typed(&statement, &[(group_no, Type::INT4), (&replica, Type::TEXT)]).await?;
    Ok(())
}

/// Waits until no write of these groups is in flight, in a transaction in which [`take_over`] is to be called and which
/// the caller commits. Without this wait, replicas that write all the time would never let another replica lead.
/// Returns `true` if no write is in flight.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn drain(client: &Client, names: &Names, groups: &[i32]) -> Result<bool, Error> {
    // Every step has a timeout: an adapter that is frozen or cut off now blocks all writers.
    let bounds = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {0}; \
         SET LOCAL idle_in_transaction_session_timeout = {0}",
        DRAINED_WITHIN.as_millis()
    );
    client.batch_execute(&bounds).await?;
    let lock = names.sql(
        "SELECT pg_advisory_xact_lock({leader:literal}::regclass::oid::integer, of_group) FROM unnest($1::integer[]) \
         AS g (of_group) ORDER BY of_group",
    );
    match client.query_typed(&lock, &[(&groups, Type::INT4_ARRAY)]).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            client.batch_execute("ROLLBACK").await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Raises the terms of these take-overs, and returns the numbers of the groups whose term was raised.
///
/// # Errors
///
/// Errors of the server or of the connection. Nothing has changed then.
pub async fn take_over(client: &Client, names: &Names, successions: &[&Succession]) -> Result<Vec<i32>, Error> {
    let all = || successions.iter();
    let groups: Vec<i32> = all().map(|succession| succession.group_no).collect();
    let tokens: Vec<Option<Uuid>> = all().map(|succession| succession.token).collect();
    let replicas: Vec<&str> = all().map(|succession| succession.replica.as_str()).collect();
    let silent: Vec<f64> = all().map(|succession| succession.silent_for.as_secs_f64()).collect();
    let told: Vec<Option<f64>> =
        all().map(|succession| succession.told_within.map(|within| within.as_secs_f64())).collect();
    let statement = names.sql(&format!("SELECT {{take_over}}($1, $2, $3, $4, $5, {LIVES})"));
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&groups, Type::INT4_ARRAY),
        (&tokens, Type::UUID_ARRAY),
        (&replicas, Type::TEXT_ARRAY),
        (&silent, Type::FLOAT8_ARRAY),
        (&told, Type::FLOAT8_ARRAY),
    ];
    Ok(client.query_typed_one(&statement, &parameters).await?.try_get(0)?)
}
