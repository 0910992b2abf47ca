//! Makes the database write down who wrote what, in which term: a test's own doing.

use tokio_postgres::{Client, Error};

use crate::host::{Shape, phase_ms};
use crate::mode::{Mode, REPLICAS};

/// A row a term.
const TERMS: &str = "
CREATE TABLE chaos_terms (group_no integer, term bigint, holder text, xid xid8);
CREATE FUNCTION chaos_term() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_terms VALUES (NEW.group_no, NEW.term, NEW.holder, pg_current_xact_id()); RETURN NULL; END $$;
CREATE TRIGGER chaos_term AFTER UPDATE ON metrics_leader
    FOR EACH ROW WHEN (OLD.term <> NEW.term) EXECUTE FUNCTION chaos_term();";

/// A row for each transaction that stored samples after it had compared them with what was stored, as another than who leads may.
const RECONCILED: &str = "
CREATE TABLE chaos_reconciled (group_no integer, xid xid8);
CREATE FUNCTION chaos_reconcile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_reconciled VALUES (NEW.group_no, pg_current_xact_id()); RETURN NULL; END $$;
CREATE TRIGGER chaos_reconcile AFTER UPDATE OF reconciled ON metrics_leader
    FOR EACH ROW WHEN (OLD.reconciled <> NEW.reconciled) EXECUTE FUNCTION chaos_reconcile();";

/// Of a pair, a row for each statement that stores samples.
const WRITES: &str = "
CREATE TABLE chaos_writes (group_no integer, term bigint, client inet, xid xid8);
CREATE FUNCTION chaos_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_writes SELECT group_no, term, inet_client_addr(), pg_current_xact_id() FROM metrics_leader
    ORDER BY heartbeat DESC NULLS LAST LIMIT 1; RETURN NULL; END $$;
CREATE TRIGGER chaos_write AFTER INSERT ON metrics_hot FOR EACH STATEMENT EXECUTE FUNCTION chaos_write();";

/// By labels, a row for each cluster and replica that a statement stores samples of, whoever says so: which replica that is, times and
/// rules' values tell.
const WRITES_BY_LABELS: &str = "
CREATE TABLE chaos_writes (group_no integer, term bigint, holder text, replica text, xid xid8);
CREATE FUNCTION chaos_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_writes SELECT l.group_no, l.term, l.holder, s.replica, pg_current_xact_id()
    FROM (SELECT DISTINCT d.labels->>'cluster' AS cluster, (ARRAY[REPLICAS])[1 + CASE
              WHEN d.metric_name = 'chaos:rule' THEN round((u.value - floor(u.value)) * 4)::integer
              ELSE array_position(ARRAY[PHASES], (extract(epoch FROM a.time) * 1000)::bigint % INTERVAL) - 1 END] AS replica
          FROM added a, unnest(a.series, a.value) AS u (id, value) JOIN metrics_labels d ON d.id = u.id
          WHERE d.metric_name <> 'chaos_stranger') s
    JOIN metrics_leader l ON l.group_name = 'cluster ' || s.cluster;
    RETURN NULL; END $$;
CREATE TRIGGER chaos_write AFTER INSERT ON metrics_hot
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION chaos_write();";

/// Write transactions that committed after a newer term had begun.
const LATE: &str = "SELECT count(*) FROM chaos_writes w WHERE EXISTS (
    SELECT FROM chaos_terms t WHERE t.group_no = w.group_no AND t.term > w.term
    AND pg_xact_commit_timestamp(t.xid::xid) < pg_xact_commit_timestamp(w.xid::xid))";

/// Those of a second host within one term, and those of another replica than leads; but for what was reconciled.
const OF_OTHERS: [&str; 2] = [
    "SELECT coalesce(sum(hosts - 1), 0)::bigint FROM (SELECT count(DISTINCT client) AS hosts FROM chaos_writes w
     WHERE NOT EXISTS (SELECT FROM chaos_reconciled r WHERE r.xid = w.xid AND r.group_no = w.group_no) GROUP BY term) h",
    "SELECT count(*) FROM chaos_writes w WHERE replica IS DISTINCT FROM holder
     AND NOT EXISTS (SELECT FROM chaos_reconciled r WHERE r.xid = w.xid AND r.group_no = w.group_no)",
];

/// What another replica's sample looks like to the witness.
pub(crate) const FOREIGN_WRITE: &str = "INSERT INTO chaos_writes SELECT group_no, term, holder, holder || holder, pg_current_xact_id() FROM metrics_leader";

/// What a transaction of an old term does.
pub(crate) fn stale_write(mode: Mode) -> &'static str {
    match mode {
        Mode::AdvisoryLock | Mode::Apart | Mode::Rest => {
            "INSERT INTO chaos_writes SELECT group_no, term - 1, inet_client_addr(), pg_current_xact_id() FROM metrics_leader"
        }
        Mode::ByLabels(_) => {
            "INSERT INTO chaos_writes SELECT group_no, term - 1, holder, holder, pg_current_xact_id() FROM metrics_leader"
        }
    }
}

/// What makes it.
pub(crate) fn statements(mode: Mode, shape: &Shape) -> String {
    let writes = match mode {
        Mode::AdvisoryLock | Mode::Apart | Mode::Rest => WRITES.to_owned(),
        Mode::ByLabels(_) => {
            let phases: Vec<String> = (0..REPLICAS.len()).map(|index| phase_ms(shape, index).to_string()).collect();
            let names = REPLICAS.map(|name| format!("'{name}'")).join(", ");
            let writes = WRITES_BY_LABELS.replace("REPLICAS", &names).replace("PHASES", &phases.join(", "));
            writes.replace("INTERVAL", &shape.interval_ms.to_string())
        }
    };
    format!("{TERMS}{RECONCILED}{writes}")
}

/// Transactions of an old term, and those of whoever does not lead.
///
/// # Errors
///
/// What the server says.
pub(crate) async fn stale(client: &Client, mode: Mode) -> Result<i64, Error> {
    let row =
        client.query_one(&format!("SELECT ({LATE}), ({})", OF_OTHERS[usize::from(mode.is_balanced())]), &[]).await?;
    Ok(row.get::<_, i64>(0) + row.get::<_, i64>(1))
}

/// Terms begun, in all groups.
///
/// # Errors
///
/// What the server says.
pub(crate) async fn terms(client: &Client) -> Result<i64, Error> {
    Ok(client.query_one("SELECT count(*) FROM chaos_terms", &[]).await?.get(0))
}

/// Which replica of a cluster leads, its term, and whether samples of its are stored in it; `None` while none leads, or the server
/// does not answer.
pub(crate) async fn leading(client: &Client, cluster: &str) -> Option<(usize, i64, bool)> {
    let statement = "SELECT holder, term, EXISTS (SELECT FROM chaos_writes w WHERE (w.group_no, w.term, w.replica) = (l.group_no, l.term, l.holder))
        FROM metrics_leader l WHERE group_name = 'cluster ' || $1 AND holder IS NOT NULL";
    let row = client.query_opt(statement, &[&cluster]).await.ok()??;
    let holder: String = row.get(0);
    let replica = REPLICAS.iter().position(|name| *name == holder)?;
    Some((replica, row.get(1), row.get(2)))
}
