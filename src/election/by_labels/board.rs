//! What adapters tell each other about clusters, in the database: statements and what they return.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::election::Progress;
use crate::election::by_labels::by_hand::{Given, Order};
use crate::election::by_labels::cluster::{Next, Seen, Succession};
use crate::election::by_labels::group_name;
use crate::election::lock_session::{FILLED, UNSURE, holes, holes_of};
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::fence::Fence;
use crate::storage::names::Names;
use crate::storage::row::{from_postgres_us, to_postgres_us};
use crate::storage::upkeep::CLUSTER_GROUPS;

/// What one adapter tells of a leading replica.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The cluster's number.
    pub group_no: i32,
    /// The term.
    pub token: Uuid,
    /// Whether what was held of its replica is stored.
    pub has_begun: bool,
    /// How long ago it was heard, if it was in this term.
    pub heard_ago: Option<Duration>,
    /// How long ago the silence began for which it is in doubt.
    pub doubted_ago: Option<Duration>,
    /// How far it is stored.
    pub progress: Progress,
}

/// A cluster's row.
#[derive(Clone, Debug)]
pub struct Read {
    /// The cluster.
    pub cluster: String,
    /// Its number.
    pub group_no: i32,
    /// `None` before any replica has led.
    pub seen: Option<Seen>,
}

/// Where a term begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The term.
    pub token: Uuid,
    /// Behind these times, ms since 1970, in these series.
    pub last_ms: Vec<(i64, i64)>,
    /// Behind this one in all others.
    pub others_ms: i64,
}

/// What adapters report is relied on for so long, but for when a replica was heard.
const FRESH: &str = "interval '60 seconds'";

/// Writes under way end within so long, or another try is made.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);

/// An adapter that has not reported for so long is not waited for before another replica leads.
const LIVES: &str = "interval '5 seconds'";

/// A watermark in SQL, `NULL` where it lies so far ahead of the server's clock that it was made by a wrong one: no range may
/// begin after its end, and the statement is for many clusters.
fn plausible(watermark: &str) -> String {
    format!("CASE WHEN {watermark} <= clock_timestamp() + {UNSURE} THEN {watermark} END")
}

/// Tells the others, and reads what they told of these clusters; `margin_ms` is the watermark's distance from the newest
/// sample. One round trip. Clusters without a row are not in the answer.
///
/// # Errors
///
/// What the server said.
pub async fn round(
    client: &Client,
    names: &Names,
    adapter: Uuid,
    reports: &[Report],
    clusters: &[String],
    margin_ms: i64,
) -> Result<Vec<Read>, Error> {
    let at = |ms: Option<i64>| ms.map(|ms| Timestamp(to_postgres_us(ms)));
    let numbers: Vec<i32> = reports.iter().map(|report| report.group_no).collect();
    let tokens: Vec<Uuid> = reports.iter().map(|report| report.token).collect();
    let begun: Vec<bool> = reports.iter().map(|report| report.has_begun).collect();
    let seconds = |ago: Option<Duration>| ago.map(|ago| ago.as_secs_f64());
    let heard: Vec<Option<f64>> = reports.iter().map(|report| seconds(report.heard_ago)).collect();
    let doubted: Vec<Option<f64>> = reports.iter().map(|report| seconds(report.doubted_ago)).collect();
    let newest: Vec<Option<Timestamp>> = reports.iter().map(|report| at(report.progress.newest_ms)).collect();
    let lag_ms: Vec<i64> = reports.iter().map(|report| report.progress.lag_ms).collect();
    let pending: Vec<Option<Timestamp>> = reports.iter().map(|report| at(report.progress.pending_ms)).collect();
    let times = |parameter: &str| {
        format!(
            "ARRAY(SELECT clock_timestamp() - make_interval(secs => ago) \
             FROM unnest({parameter}) WITH ORDINALITY a (ago, n) ORDER BY n)"
        )
    };
    let (heard_at, doubted_at) = (times("$5"), times("$6"));
    let tell = names.fill(&format!(
        "INSERT INTO {{reports}} (adapter, reported_at, groups, tokens, begun, heard, doubted, newest, lag_ms, pending) \
         VALUES ($1, clock_timestamp(), $2, $3, $4, {heard_at}, {doubted_at}, $7, $8, $9) \
         ON CONFLICT (adapter) DO UPDATE SET reported_at = excluded.reported_at, groups = excluded.groups, \
         tokens = excluded.tokens, begun = excluded.begun, heard = excluded.heard, doubted = excluded.doubted, \
         newest = excluded.newest, lag_ms = excluded.lag_ms, pending = excluded.pending",
    ));
    let told: [(&(dyn ToSql + Sync), Type); 9] = [
        (&adapter, Type::UUID),
        (&numbers, Type::INT4_ARRAY),
        (&tokens, Type::UUID_ARRAY),
        (&begun, Type::BOOL_ARRAY),
        (&heard, Type::FLOAT8_ARRAY),
        (&doubted, Type::FLOAT8_ARRAY),
        (&newest, Type::TIMESTAMPTZ_ARRAY),
        (&lag_ms, Type::INT8_ARRAY),
        (&pending, Type::TIMESTAMPTZ_ARRAY),
    ];
    let read = names.fill(&format!(
        "WITH told AS (SELECT u.token, max(u.heard) AS heard, max(u.doubted) FILTER (WHERE lives) AS doubted, max(u.newest) FILTER (WHERE is_fresh) AS newest, \
         max(u.lag_ms) FILTER (WHERE is_fresh) AS lag_ms, min(u.pending) FILTER (WHERE is_fresh) AS pending \
         FROM (SELECT *, reported_at > clock_timestamp() - {FRESH} AS is_fresh, \
         reported_at > clock_timestamp() - {LIVES} AS lives FROM {{reports}}) r, \
         unnest(r.tokens, r.heard, r.doubted, r.newest, r.lag_ms, r.pending) AS u (token, heard, doubted, newest, lag_ms, pending) \
         GROUP BY 1) SELECT group_name, group_no, term, l.token, holder, \
         extract(epoch FROM clock_timestamp() - t.heard)::float8, extract(epoch FROM clock_timestamp() - t.doubted)::float8, \
         t.newest, t.lag_ms, t.pending, {}, \
         CASE WHEN l.successor_until > clock_timestamp() THEN coalesce(l.successor, '') END, l.held_out \
         FROM {{leader}} l LEFT JOIN told t ON t.token = l.token WHERE group_name = ANY ($1)",
        holes_of("l.holes"),
    ));
    let groups: Vec<String> = clusters.iter().map(|cluster| group_name(cluster)).collect();
    let asked: [(&(dyn ToSql + Sync), Type); 1] = [(&groups, Type::TEXT_ARRAY)];
    // Sent together; what others told is read as it is before.
    let (told, rows) =
        futures_util::future::join(client.execute_typed(&tell, &told), client.query_typed(&read, &asked)).await;
    told?;
    rows?.iter().map(|row| read_row(row, margin_ms)).collect()
}

fn read_row(row: &tokio_postgres::Row, margin_ms: i64) -> Result<Read, Error> {
    let (group_name, group_no): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
    let (token, replica): (Option<Uuid>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let (heard, doubted): (Option<f64>, Option<f64>) = (row.try_get(5)?, row.try_get(6)?);
    let ago = |secs: f64| Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(Duration::MAX);
    let at = |column: usize| {
        let at: Option<Timestamp> = row.try_get(column)?;
        Ok::<_, Error>(at.map(|Timestamp(time_us)| from_postgres_us(time_us)))
    };
    let progress = Progress {
        newest_ms: at(7)?,
        lag_ms: row.try_get::<_, Option<i64>>(8)?.unwrap_or_default(),
        pending_ms: at(9)?,
    };
    let term = row.try_get(2)?;
    let seen = match token.zip(replica) {
        Some((token, replica)) => Some(Seen {
            fence: Fence { group_no, term, token },
            replica,
            heard_ago: heard.map(ago),
            doubted_ago: doubted.map(ago),
            watermark_ms: watermark_ms(progress, margin_ms),
            holes: holes(&row.try_get::<_, Vec<Timestamp>>(10)?),
            // No replica has an empty name: a label without a value is none.
            next: row.try_get::<_, Option<String>>(11)?.map(|next| match next.is_empty() {
                true => Next::AnyOther,
                false => Next::Named(next),
            }),
            held_out: row.try_get(12)?,
        }),
        None => None,
    };
    let cluster = group_name.strip_prefix(CLUSTER_GROUPS).unwrap_or(&group_name).to_owned();
    Ok(Read { cluster, group_no, seen })
}

/// Up to where everything is stored, as far as all adapters together have got. Not reckoned by the server, which would refuse
/// to answer for all clusters where the times of one are out of its bounds.
fn watermark_ms(Progress { newest_ms, lag_ms, pending_ms }: Progress, margin_ms: i64) -> Option<i64> {
    let behind_newest = newest_ms.map(|newest_ms| newest_ms.saturating_sub(lag_ms).saturating_sub(margin_ms));
    let before_pending = pending_ms.map(|pending_ms| pending_ms.saturating_sub(1));
    behind_newest.into_iter().chain(before_pending).min()
}

/// Makes rows for new clusters, as long as there are fewer than `clusters_max`.
///
/// # Errors
///
/// What the server said.
pub async fn add(client: &Client, names: &Names, clusters: &[String], clusters_max: usize) -> Result<(), Error> {
    let statement = names.fill(
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

/// Writes down an order, for all adapters to see.
///
/// # Errors
///
/// What the server said.
pub async fn order(client: &Client, names: &Names, given: &Given) -> Result<(), Error> {
    let Given { fence: Fence { group_no, token, .. }, order, until } = given;
    let left = until.saturating_duration_since(Instant::now());
    let yields = format!(
        "successor = $2, successor_until = clock_timestamp() + make_interval(secs => {}) WHERE token = '{token}' AND",
        left.as_secs_f64()
    );
    let (replica, set) = match order {
        Order::Resign => (None, yields.as_str()),
        Order::HandOver { to } => (Some(to), yields.as_str()),
        Order::Hold { replica } => (Some(replica), "held_out = array_append(array_remove(held_out, $2), $2) WHERE"),
        Order::Release { replica } => (Some(replica), "held_out = array_remove(held_out, $2) WHERE"),
    };
    let statement = names.fill(&format!("UPDATE {{leader}} SET {set} group_no = $1"));
    client.execute_typed(&statement, &[(group_no, Type::INT4), (&replica, Type::TEXT)]).await?;
    Ok(())
}

/// Waits until no write of these groups is under way, in a transaction that [`take_over`] is to be called in and that is to
/// be committed: else those that write all the time would never let another replica lead. Returns whether it is so.
///
/// # Errors
///
/// What the server said.
pub async fn drain(client: &Client, names: &Names, groups: &[i32]) -> Result<bool, Error> {
    // All of it is bounded: who is frozen or cut off now holds up all that write.
    let bounds = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {0}; \
         SET LOCAL idle_in_transaction_session_timeout = {0}",
        DRAINED_WITHIN.as_millis()
    );
    client.batch_execute(&bounds).await?;
    let lock = names.fill(
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

/// Lets other replicas lead, each given with its cluster; returns the numbers of the groups in which one does now.
///
/// # Errors
///
/// What the server said; nothing has changed then.
pub async fn take_over(
    client: &Client,
    names: &Names,
    cluster_label: &str,
    successions: &[(String, Succession)],
) -> Result<Vec<i32>, Error> {
    let all = || successions.iter().map(|(_, succession)| succession);
    let groups: Vec<i32> = all().map(|succession| succession.group_no).collect();
    let clusters: Vec<&str> = successions.iter().map(|(cluster, _)| cluster.as_str()).collect();
    let tokens: Vec<Option<Uuid>> = all().map(|succession| succession.token).collect();
    let replicas: Vec<&str> = all().map(|succession| succession.replica.as_str()).collect();
    let silent: Vec<f64> = all().map(|succession| succession.silent_for.as_secs_f64()).collect();
    let passed: Vec<Option<Timestamp>> =
        all().map(|succession| succession.watermark_ms.map(|ms| Timestamp(to_postgres_us(ms)))).collect();
    let behind_ms: Vec<i64> = all().map(|succession| succession.behind_ms).collect();
    let statement = names.fill(&format!(
        "SELECT {{take_over}}($1, $2, $3, $4, $5, ARRAY(SELECT {} FROM unnest($6::timestamptz[]) WITH ORDINALITY \
         AS w (passed, place) ORDER BY place), $7, $8, {FILLED}, {UNSURE}, {LIVES})",
        plausible("passed")
    ));
    let parameters: [(&(dyn ToSql + Sync), Type); 8] = [
        (&groups, Type::INT4_ARRAY),
        (&clusters, Type::TEXT_ARRAY),
        (&tokens, Type::UUID_ARRAY),
        (&replicas, Type::TEXT_ARRAY),
        (&silent, Type::FLOAT8_ARRAY),
        (&passed, Type::TIMESTAMPTZ_ARRAY),
        (&behind_ms, Type::INT8_ARRAY),
        (&cluster_label, Type::TEXT),
    ];
    Ok(client.query_typed_one(&statement, &parameters).await?.try_get(0)?)
}

/// Leaves in doubt what the leading replicas of these clusters may have lost, from where they are known to be stored.
///
/// # Errors
///
/// What the server said.
pub async fn open_holes(client: &Client, names: &Names, clusters: &[&Seen]) -> Result<(), Error> {
    let statement = names.fill(&format!(
        "UPDATE {{leader}} l SET holes = holes + tstzmultirange(tstzrange(coalesce({}, clock_timestamp() - {FILLED}), \
         clock_timestamp() + {UNSURE})) FROM unnest($1::uuid[], $2::timestamptz[]) AS w (of_token, passed) \
         WHERE l.token = w.of_token",
        plausible("passed")
    ));
    let tokens: Vec<Uuid> = clusters.iter().map(|seen| seen.fence.token).collect();
    let passed: Vec<Option<Timestamp>> =
        clusters.iter().map(|seen| seen.watermark_ms.map(|ms| Timestamp(to_postgres_us(ms)))).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&tokens, Type::UUID_ARRAY), (&passed, Type::TIMESTAMPTZ_ARRAY)];
    client.execute_typed(&statement, &parameters).await?;
    Ok(())
}

/// Where these terms begin.
///
/// # Errors
///
/// What the server said.
pub async fn beginnings(client: &Client, names: &Names, tokens: &[Uuid]) -> Result<Vec<Beginning>, Error> {
    let statement = names.fill("SELECT token, others, series, last FROM {cuts} WHERE token = ANY ($1)");
    let rows = client.query_typed(&statement, &[(&tokens, Type::UUID_ARRAY)]).await?;
    let ms = |Timestamp(time_us): Timestamp| if time_us == i64::MIN { i64::MIN } else { from_postgres_us(time_us) };
    rows.iter()
        .map(|row| {
            let (series, last): (Vec<i64>, Vec<Timestamp>) = (row.try_get(2)?, row.try_get(3)?);
            let last_ms = series.into_iter().zip(last.into_iter().map(ms)).collect();
            Ok(Beginning { token: row.try_get(0)?, others_ms: ms(row.try_get(1)?), last_ms })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_lags_of_any_size_make_a_watermark() {
        let watermark = |newest_ms, lag_ms, pending_ms| watermark_ms(Progress { newest_ms, lag_ms, pending_ms }, 10);
        assert_eq!(watermark(None, 0, None), None);
        assert_eq!(watermark(Some(100), 5, None), Some(85));
        assert_eq!(watermark(Some(100), 5, Some(90)), Some(85));
        assert_eq!(watermark(Some(100), 5, Some(80)), Some(79));
        assert_eq!(watermark(None, 0, Some(80)), Some(79));
        assert_eq!(watermark(Some(0), i64::MAX, Some(i64::MIN)), Some(i64::MIN), "as an adapter of before may tell");
    }
}
