//! The tables are created automatically, only in the configured schema, and keep their promises to SQL users.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use prometheus_postgresql_adapter::postgres::{Config as Server, Connector, SslMode};
use prometheus_postgresql_adapter::storage::ingest::Writer;
use prometheus_postgresql_adapter::storage::layout::UseTimescaledb;
use prometheus_postgresql_adapter::storage::names::Names;
use prometheus_postgresql_adapter::storage::{Config, Store, chunk, exemplars, schema, upkeep};
use prometheus_postgresql_adapter::telemetry::metrics::Metrics;
use rig::process::Exit;
use tokio_postgres::SimpleQueryMessage;
use tokio_util::task::TaskTracker;

use crate::reader::{both, query};
use crate::seal::seal;
use crate::setup::{Body, Database, SOON, adapter_at, at, now_ms, one, start, store};

const HOUR_MS: i64 = 3_600_000;

/// Waits until an adapter with at most one retry gives up, and returns its log line.
pub(crate) async fn refusal(options: &rig::adapter::Options) -> String {
    let adapter = options.clone().arg("-pg-db-connect-retries=1").spawn();
    let line = adapter.process().wait_for_log("gave up", SOON).await;
    assert_eq!(adapter.process().wait_exit(SOON).await, Exit::Status(1));
    line
}

/// Opens the store as a library, for a test that starts rounds of upkeep itself.
pub(crate) async fn library(database: &Database, retention: Option<Duration>) -> Store {
    open(database, retention, false).await.0
}

/// The same with the writers, which the caller has to run.
pub(crate) async fn open(database: &Database, retention: Option<Duration>, read_only: bool) -> (Store, Vec<Writer>) {
    let uri: tokio_postgres::Config = database.server.uri(&database.name).parse().unwrap();
    let server = Server {
        server: uri.clone(),
        lock_server: uri,
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        max_open_conns: 6,
        max_idle_conns: 1,
        connect_retries: 0,
    };
    let tracker = TaskTracker::new();
    let connector = Connector::new(server, tracker.clone()).unwrap();
    let config = Config {
        schema: None,
        table: "metrics".into(),
        use_timescaledb: UseTimescaledb::Auto,
        chunk_interval: Duration::from_secs(3600),
        seal_samples: 1_000_000,
        seal_after: Duration::from_secs(3600),
        retention,
        exemplars: exemplars::Config { retention: None, per_series_max: 1000 },
        write_connections: 1,
        log_samples: false,
        read_only,
        replica_labels: vec![],
        sources: None,
        send_timeout: Duration::from_secs(30),
    };
    Store::open(config, connector, Arc::new(Metrics::new()), tracker).await.unwrap()
}

/// Returns the segments, oldest first.
async fn segments(database: &Database) -> Vec<String> {
    let attached = "SELECT c.relname::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN metrics_segments \
                    ON relation = relname WHERE inhparent = 'metrics_sealed'::regclass ORDER BY upper";
    database.column(attached).await
}

#[tokio::test]
async fn five_that_start_at_once_make_one_schema() {
    let database = Database::new().await;
    let options: Vec<_> = (0..5).map(|_| database.adapter().arg("-pg-schema=shared_by_all")).collect();
    let adapters = join_all(options.iter().map(start)).await;
    let now = now_ms();
    join_all((0..).zip(&adapters).map(|(n, adapter)| store(adapter, Body::new().sample("up", now + n, 1.0)))).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM shared_by_all.metrics").await, 5);
    assert_eq!(database.one::<i32>("SELECT shared_by_all.metrics_version()").await, schema::VERSION);
    for adapter in &adapters {
        assert!(!adapter.process().log().contains("level=ERROR"), "{}", adapter.process().log().tail());
    }
}

#[tokio::test]
async fn an_ordinary_user_needs_no_more_than_a_schema_of_its_own() {
    let database = Database::new().await;
    let [owner, stranger, dashboard] =
        ["owner", "stranger", "dashboard"].map(|role| format!("{role}_{}", database.name));
    let roles = format!(
        "CREATE ROLE {owner} LOGIN; CREATE ROLE {stranger} LOGIN; CREATE ROLE {dashboard}; CREATE SCHEMA own AUTHORIZATION {owner}; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    );
    database.run(&roles).await;
    let uri = |user: &str| database.server.uri_as(user, &database.name);
    let adapter = start(&adapter_at(&uri(&owner)).arg("-pg-schema=own")).await;
    let now = now_ms();
    store(&adapter, Body::new().sample("up", now, 1.0)).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM own.metrics").await, 1);
    assert_eq!(both(&adapter, &[query(0, now, &[])]).await[0].len(), 1);
    // A role with the privilege to read once may also read what is created later.
    let grant =
        format!("GRANT USAGE ON SCHEMA own TO {dashboard}; GRANT SELECT ON ALL TABLES IN SCHEMA own TO {dashboard}");
    database.run(&grant).await;
    store(&adapter, Body::new().sample("up", now - 20 * 24 * HOUR_MS, 1.0)).await;
    seal(&adapter).await;
    store(&adapter, Body::new().sample("up", now + 1, 1.0)).await;
    let reader = database.session().await;
    reader.batch_execute(&format!("SET ROLE {dashboard}")).await.unwrap();
    for from in ["own.metrics", "own.metrics_values", "own.metrics_range('up', '{}', '-infinity', 'infinity')"] {
        assert_eq!(one::<i64>(&reader, &format!("SELECT count(*) FROM {from}")).await, 3, "{from}");
    }
    let foreign = format!(
        "SELECT count(*) FROM pg_class WHERE relowner = '{owner}'::regrole AND relnamespace <> 'own'::regnamespace AND relkind = 'r'"
    );
    assert_eq!(database.one::<i64>(&foreign).await, 0);
    for schema in ["own", "public", "not_there"] {
        let said = refusal(&adapter_at(&uri(&stranger)).arg(format!("-pg-schema={schema}"))).await;
        assert!(said.contains("permission denied") && said.contains("-pg-schema"), "{schema}: {said}");
    }
}

#[tokio::test]
async fn odd_names_are_only_names() {
    let database = Database::new().await;
    for table in ["Odd-Name", "it's \\ \"quoted\"", "größe", "select"] {
        let options = database.adapter().arg(format!("-pg-table={table}")).arg("-pg-schema=Odd.Schema");
        let adapter = start(&options).await;
        let now = now_ms();
        store(&adapter, Body::new().sample("up", now, 1.0)).await;
        let view = format!("SELECT count(*) FROM \"Odd.Schema\".\"{}\"", table.replace('"', "\"\""));
        assert_eq!(database.one::<i64>(&view).await, 1, "{table}");
        assert_eq!(both(&adapter, &[query(0, now, &[])]).await[0].len(), 1, "{table}");
    }
}

#[tokio::test]
async fn names_that_are_taken_are_left_alone_and_named() {
    for statement in [
        "CREATE TABLE metrics (time timestamptz, name text)",
        "CREATE VIEW metrics_labels AS SELECT 1",
        "CREATE TABLE metrics_values (value float8)",
    ] {
        let database = Database::new().await;
        database.run(statement).await;
        let said = refusal(&database.adapter()).await;
        assert!(said.contains("already exists") && said.contains("-pg-table"), "{said}");
        let relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        assert_eq!(database.one::<i64>(relations).await, 1, "nothing of ours is left behind");
    }
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let database = Database::new().await;
    drop(database.leader().await);
    database.run("CREATE OR REPLACE FUNCTION metrics_version() RETURNS integer LANGUAGE sql AS 'SELECT 1000'").await;
    for options in [database.adapter(), database.adapter().arg("-pg-read-only")] {
        let said = refusal(&options).await;
        assert!(said.contains("version 1000") && said.contains("newer"), "{said}");
    }
}

/// The views are read-only. If a series were deleted, an adapter that knows its id would continue to store its samples,
/// and nobody would see them.
async fn check_views_refuse_changes(database: &Database) {
    for (view, column, value) in
        [("metrics_labels", "metric_name", "'up'"), ("metrics", "name", "'up'"), ("metrics_values", "value", "1")]
    {
        for statement in [
            format!("DELETE FROM {view} WHERE {column} = {value}"),
            format!("UPDATE {view} SET {column} = {value}"),
            format!("INSERT INTO {view} ({column}) VALUES ({value})"),
        ] {
            let error = database.client.batch_execute(&statement).await.expect_err(&statement);
            let error = error.as_db_error().expect("the server refuses");
            assert_eq!(error.code().code(), "55000", "{statement}: {error:?}");
            assert!(error.message().contains(view), "{statement}: {error:?}");
            assert!(error.hint().is_some_and(|hint| hint.contains("-pg-retention")), "{statement}: {error:?}");
        }
    }
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'up'").await, 1);
}

#[tokio::test]
async fn a_view_refuses_changes_and_says_what_to_do_instead() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    check_views_refuse_changes(&database).await;
}

#[tokio::test]
async fn a_store_of_version_1_is_migrated_with_what_it_has() {
    let database = Database::new().await;
    let names = Names::new("public", "metrics");
    for part in [
        include_str!("../../src/storage/schema.sql"),
        chunk::SQL,
        include_str!("../../src/storage/segments.sql"),
        "CREATE FUNCTION {version}() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
        "INSERT INTO {series} (key, name, labels) VALUES (gen_random_uuid(), 'up', jsonb_build_object()); \
         INSERT INTO {hot} (\"time\", series, value) VALUES (now(), ARRAY[1], ARRAY[1])",
    ] {
        database.run(&names.sql(part)).await;
    }
    let adapter = database.leader().await;
    assert_eq!(database.one::<i32>("SELECT metrics_version()").await, schema::VERSION);
    check_views_refuse_changes(&database).await;
    store(&adapter, Body::new().sample("down", now_ms(), 1.0)).await;
    seal(&adapter).await;
    assert_eq!(database.samples().await, 2);
}

#[tokio::test]
async fn a_request_over_the_border_of_a_segment_is_stored() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1m")).await;
    let border = now_ms() / 60_000 * 60_000 - 600_000;
    let times = [-60_001, -60_000, -59_999, -1, 0, 1, 59_999, 60_000, 60_001].map(|ms| border + ms);
    let samples = times.map(|time| at(time, 1.0));
    store(&adapter, Body::new().series(&[("__name__", "up")], &samples)).await;
    seal(&adapter).await;
    // Four segments of a minute each.
    assert_eq!(segments(&database).await.len(), 4);
    assert_eq!(both(&adapter, &[query(0, now_ms(), &[])]).await[0][0].1, samples);
    // Another interval continues from the existing segments.
    let wider = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let more = (-20..20).map(|n| at(border + n * 30_000 + 7, 2.0)).filter(|s| s.timestamp_ms <= now_ms());
    let more: Vec<_> = more.collect();
    store(&wider, Body::new().series(&[("__name__", "more")], &more)).await;
    seal(&wider).await;
    assert_eq!(both(&wider, &[query(0, now_ms(), &[("__name__", "=", "more")])]).await[0][0].1, more);
}

#[tokio::test]
async fn retention_drops_whole_segments_and_never_stops_ingest() {
    let database = Database::new().await;
    let options = database.adapter().arg("-pg-prometheus-chunk-interval=1h");
    let adapter = start(&options).await;
    let now = now_ms();
    for hours in [0, 1, 2, 5, 6, 24 * 60] {
        store(&adapter, Body::new().sample("up", now - hours * HOUR_MS, 1.0)).await;
    }
    seal(&adapter).await;
    assert_eq!(segments(&database).await.len(), 6);
    // A dump of the database is in progress.
    let dump = database.session().await;
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL lock_timeout = 0").await.unwrap();
    assert_eq!(one::<i64>(&dump, "SELECT count(*) FROM metrics").await, 6);
    let upkeep = async {
        let store = library(&database, Some(Duration::from_secs(4 * 3600))).await;
        store.upkeep(Duration::ZERO).await
    };
    let ingest = async {
        // While upkeep waits for the dump, it must not make other sessions wait.
        database
            .wait(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%DETACH PARTITION%CONCURRENTLY%' \
                       AND wait_event_type = 'Lock' AND datname = current_database())",
            )
            .await;
        let started = std::time::Instant::now();
        for n in 1..20 {
            store(&adapter, Body::new().sample("up", now + n, 1.0)).await;
            store(&adapter, Body::new().sample("up", now - 3 * HOUR_MS - n, 1.0)).await;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "ingest waited {:?}", started.elapsed());
        assert_eq!(both(&adapter, &[query(0, now + 100, &[("__name__", "=", "up")])]).await[0].len(), 1);
        assert_eq!(one::<i64>(&dump, "SELECT count(*) FROM metrics").await, 6, "the dump sees what it saw");
        dump.batch_execute("COMMIT").await.unwrap();
    };
    let (kept, ()) = tokio::join!(upkeep, ingest);
    kept.expect("upkeep goes on once the dump is over");
    // Only whole segments are dropped, so the remaining samples are at most an hour older than necessary.
    let kept = "SELECT min(time) > now() - interval '5 hours 1 minute' FROM metrics";
    assert!(database.one::<bool>(kept).await);
    let left = segments(&database).await;
    assert_eq!(left.len(), 4, "{left:?}");
    let orphans = "SELECT count(*) FROM pg_class LEFT JOIN pg_inherits ON inhrelid = oid \
                   WHERE relname ~ '^metrics_sealed_[0-9]+$' AND relkind = 'r' AND inhrelid IS NULL";
    assert_eq!(database.one::<i64>(orphans).await, 0);
    // A late sample for a dropped segment creates the segment again.
    store(&adapter, Body::new().sample("up", now - 5 * HOUR_MS, 2.0).sample("up", now + 50, 2.0)).await;
    seal(&adapter).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE value = 2").await, 2);
}

/// True if a session waits for a lock of another session.
const SOMEBODY_WAITS: &str =
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";

#[tokio::test]
async fn an_adapter_frozen_in_a_migration_keeps_no_other_out() {
    let database = Database::new().await;
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(2615, hashtext('public.metrics'))").await.unwrap();
    let frozen = database.adapter().name("frozen").spawn();
    database.wait(SOMEBODY_WAITS).await;
    frozen.process().pause();
    blocker.batch_execute("COMMIT").await.unwrap();
    let adapter = database.leader().await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
}

#[tokio::test]
async fn an_adapter_frozen_at_a_segment_stops_no_other_sealer() {
    let database = Database::new().await;
    let (frozen, adapter) = (database.leader().await, database.leader().await);
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; LOCK metrics_segments IN ROW EXCLUSIVE MODE").await.unwrap();
    let (client, url) = (frozen.client().clone(), frozen.url("/admin/storage/seal"));
    let _sealing = TaskTracker::new().spawn(async move { client.post(&url, &[], Vec::new()).await });
    database.wait(SOMEBODY_WAITS).await;
    frozen.process().pause();
    blocker.batch_execute("COMMIT").await.unwrap();
    let sealed = async || {
        let answer = adapter.client().post(&adapter.url("/admin/storage/seal"), &[], Vec::new()).await.unwrap();
        (answer.status == 200 && database.one::<i64>("SELECT count(*) FROM metrics_hot").await == 0).then_some(())
    };
    adapter.process().wait_until("it seals", SOON, sealed).await;
}

/// The leader's process is stopped, or its host hangs. In this test, its upkeep is not continued.
#[tokio::test]
async fn a_leader_frozen_in_upkeep_holds_nobody_up() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let now = now_ms();
    store(&adapter, Body::new().sample("old", now - 6 * HOUR_MS, 1.0)).await;
    seal(&adapter).await;
    let reader = database.session().await;
    reader.batch_execute("BEGIN; SELECT FROM metrics").await.unwrap();
    let retention = Some(Duration::from_secs(4 * 3600));
    let frozen = library(&database, retention).await;
    let mut upkeep = std::pin::pin!(frozen.upkeep(Duration::ZERO));
    let waits_for_reader = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%DETACH PARTITION%' \
                            AND wait_event_type = 'Lock' AND datname = current_database())";
    tokio::select! {
        done = &mut upkeep => panic!("it did not wait: {done:?}"),
        () = database.wait(waits_for_reader) => {}
    }
    store(&adapter, Body::new().sample("new", now, 1.0)).await;
    reader.batch_execute("COMMIT").await.unwrap();
    let locked = "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted \
                  AND classid = 'metrics_series'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    database.wait(locked).await;
    library(&database, retention).await.upkeep(Duration::ZERO).await.unwrap();
    assert_eq!(segments(&database).await, [""; 0]);
    assert_eq!(database.column::<String>("SELECT name FROM metrics").await, ["new"]);
}

/// However long upkeep takes.
#[tokio::test]
async fn upkeep_that_goes_on_keeps_its_lock() {
    let database = Database::new().await;
    drop(database.leader().await);
    let names = Names::new("public", "metrics");
    let (one, other) = (database.session().await, database.session().await);
    assert!(upkeep::lock(&one, &names).await.unwrap());
    let ended = tokio::time::timeout(Duration::from_secs(12), upkeep::hold_lock(&one)).await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(!upkeep::lock(&other, &names).await.unwrap(), "it was given to another");
}

#[tokio::test]
async fn ended_series_are_deleted_unless_they_are_sent_again() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let now = now_ms();
    for name in ["gone", "back", "stored_again"] {
        store(&adapter, Body::new().sample(name, now - 6 * HOUR_MS, 1.0)).await;
    }
    store(&adapter, Body::new().sample("sealed", now - 2 * HOUR_MS, 1.0)).await;
    seal(&adapter).await;
    store(&adapter, Body::new().sample("hot", now, 1.0)).await;
    let library = library(&database, Some(Duration::from_secs(4 * 3600))).await;
    library.upkeep(Duration::MAX).await.unwrap();
    let marked = "SELECT name FROM metrics_series WHERE ended_at IS NOT NULL ORDER BY name";
    assert_eq!(database.column::<String>(marked).await, ["back", "gone", "stored_again"]);
    // One series is looked up again; one is stored by an adapter that already knows its id.
    let other = start(&database.adapter()).await;
    store(&other, Body::new().sample("back", now, 1.0)).await;
    store(&adapter, Body::new().sample("stored_again", now, 1.0)).await;
    assert_eq!(database.column::<String>(marked).await, ["gone", "stored_again"]);
    library.upkeep(Duration::MAX).await.unwrap();
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_series").await, 5, "not yet");
    database.run("UPDATE metrics_series SET ended_at = ended_at - interval '3 hours'").await;
    library.upkeep(Duration::MAX).await.unwrap();
    let left = "SELECT name FROM metrics_series ORDER BY name";
    assert_eq!(database.column::<String>(left).await, ["back", "hot", "sealed", "stored_again"]);
    assert_eq!(database.column::<String>(marked).await, [""; 0]);
    // The series may begin again, under another id.
    let third = start(&database.adapter()).await;
    store(&third, Body::new().sample("gone", now, 1.0)).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'gone'").await, 1);
}

/// Pods that come and go: the table of series, its indexes and the cache do not grow with the number of series that
/// ever existed.
#[tokio::test]
async fn short_lived_series_come_and_go_and_leave_no_room_taken() {
    const WAVE: i64 = 8_000;
    const PARTS: i64 = 4;
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let library = library(&database, Some(Duration::from_secs(4 * 3600))).await;
    let now = now_ms();
    let mut sizes = Vec::new();
    for wave in 0..12 {
        for part in 0..PARTS {
            let pods = (0..WAVE / PARTS).map(|n| format!("pod-{wave}-{part}-{n}"));
            let body = pods.fold(Body::new(), |body, pod| {
                let [a, b, c] = ["a", "b", "c"].map(|of| format!("{of}-{pod}"));
                let labels = [("__name__", "up"), ("job", "churn"), ("pod", &pod), ("a", &a), ("b", &b), ("c", &c)];
                body.series(&labels, &[at(now - 6 * HOUR_MS, 1.0)])
            });
            store(&adapter, body).await;
        }
        seal(&adapter).await;
        library.upkeep(Duration::MAX).await.unwrap();
        database.run("UPDATE metrics_series SET ended_at = ended_at - interval '3 hours'").await;
        library.upkeep(Duration::MAX).await.unwrap();
        database.run("VACUUM metrics_series").await;
        assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_series").await, 0, "wave {wave}");
        sizes.push(database.one::<i64>("SELECT pg_total_relation_size('metrics_series')").await);
    }
    let most = |sizes: &[i64]| sizes.iter().copied().max().unwrap_or_default();
    assert!(most(&sizes[6..]) * 4 <= most(&sizes[..6]) * 5, "{sizes:?}");
    assert_eq!(adapter.metric("series_created_total").await, Some(12.0 * WAVE as f64));
}

#[tokio::test]
async fn what_retention_would_drop_at_once_is_not_stored() {
    let database = Database::new().await;
    let options = database.adapter().arg("-pg-prometheus-chunk-interval=1h").arg("-pg-retention=4h");
    let adapter = start(&options).await;
    let now = now_ms();
    let body = Body::new().series(&[("__name__", "up")], &[at(now - 5 * HOUR_MS, 1.0), at(now, 2.0)]);
    store(&adapter, body).await;
    assert_eq!(adapter.metric("samples_expired_total").await, Some(1.0));
    assert_eq!(database.column::<f64>("SELECT value FROM metrics").await, [2.0]);
}

#[tokio::test]
async fn what_sql_users_were_promised() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let now = now_ms();
    for hours in 0..6 {
        let time = now - hours * HOUR_MS;
        let body = Body::new()
            .series(&[("__name__", "up"), ("job", "node"), ("instance", "a")], &[at(time, 1.0)])
            .series(&[("__name__", "up"), ("job", "other")], &[at(time, 0.0)])
            .series(&[("__name__", "down"), ("job", "node")], &[at(time, 2.0)]);
        store(&adapter, body).await;
    }
    seal(&adapter).await;
    let columns = |relation: &str| {
        format!(
            "SELECT string_agg(attname || ' ' || format_type(atttypid, NULL), ', ' ORDER BY attnum) \
             FROM pg_attribute WHERE attrelid = '{relation}'::regclass AND attnum > 0"
        )
    };
    for (view, expected) in [
        ("metrics", "time timestamp with time zone, name text, value double precision, labels jsonb"),
        ("metrics_labels", "id bigint, metric_name text, labels jsonb"),
        ("metrics_values", "time timestamp with time zone, value double precision, labels_id bigint"),
    ] {
        assert_eq!(database.one::<String>(&columns(view)).await, expected, "{view}");
    }
    let old =
        r#"SELECT count(*) FROM (SELECT time, value FROM metrics WHERE name='up' AND labels @> '{"job":"node"}') x"#;
    assert_eq!(database.one::<i64>(old).await, 6);
    let joined = "SELECT count(*) FROM metrics_values v JOIN metrics_labels l ON l.id = v.labels_id \
                  WHERE metric_name = 'up' AND labels->>'instance' = 'a'";
    assert_eq!(database.one::<i64>(joined).await, 6);
    let range = |from: i64, to: i64| {
        format!(
            r#"metrics_range('up', '{{"job":"node"}}', to_timestamp({}::numeric / 1000), to_timestamp({}::numeric / 1000))"#,
            now - from * HOUR_MS,
            now - to * HOUR_MS
        )
    };
    let times = format!("SELECT round(extract(epoch FROM time) * 1000)::int8 FROM {}", range(3, 1));
    assert_eq!(database.column::<i64>(&times).await, [now - 3 * HOUR_MS, now - 2 * HOUR_MS, now - HOUR_MS]);
    let rows = format!("SELECT labels->>'instance' || value FROM {}", range(0, 0));
    assert_eq!(database.column::<String>(&rows).await, ["a1"]);
    // With constants and with the expressions of a dashboard, only the segments in the range are touched.
    let touched = async |statement: &str| {
        let plan = database.column::<String>(&format!("EXPLAIN (ANALYZE, COSTS OFF) {statement}")).await.join("\n");
        let scanned = plan.lines().filter(|line| line.contains("Scan") && !line.contains("never executed"));
        scanned.filter(|line| line.contains(" on metrics_sealed_") && !line.contains("Bitmap Index")).count()
    };
    assert_eq!(touched(&format!("SELECT * FROM {}", range(3, 2))).await, 2);
    let recent = r#"SELECT * FROM metrics_range('up', '{}', now() - interval '1 minute', now())"#;
    assert!(touched(recent).await <= 2);
    assert_eq!(touched("SELECT * FROM metrics WHERE name = 'up'").await, 6, "all");
}

#[tokio::test]
async fn an_hour_of_one_metric_touches_only_its_chunks() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=6h")).await;
    let start_ms = now_ms() / (6 * HOUR_MS) * 6 * HOUR_MS - 3 * HOUR_MS;
    let hour = async |start_ms: i64| {
        // The series of a metric are created together, so that they share chunks.
        for name in (0..30).map(|name| format!("metric_{name}")) {
            let series = |body: Body, n: i64| {
                let samples = (0..60).map(|at_n| at(start_ms + at_n * 60_000, (at_n * at_n * n % 1_009) as f64));
                body.series(&[("__name__", &name), ("n", &n.to_string())], &samples.collect::<Vec<_>>())
            };
            store(&adapter, (0..100).fold(Body::new(), series)).await;
        }
        seal(&adapter).await;
    };
    // Beside many other segments.
    let month = (1..60).map(|n| at(start_ms - (60 - n) * 12 * HOUR_MS, 0.0)).collect::<Vec<_>>();
    store(&adapter, Body::new().series(&[("__name__", "old")], &month)).await;
    hour(start_ms - HOUR_MS).await;
    database.run("ANALYZE").await;
    // The planner knows nothing of this hour yet.
    hour(start_ms).await;
    let statement = format!(
        r#"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM metrics_range('metric_7', '{{}}', to_timestamp({}), to_timestamp({}))"#,
        start_ms / 1_000,
        start_ms / 1_000 + 3_599
    );
    let rows = database.client.simple_query(&statement).await.unwrap();
    let plan = rows.iter().find_map(|row| if let SimpleQueryMessage::Row(row) = row { row.get(0) } else { None });
    let plan: serde_json::Value = serde_json::from_str(plan.unwrap()).unwrap();
    let mut nodes = vec![&plan[0]["Plan"]];
    let number = |node: &serde_json::Value, what: &str| node[what].as_f64().unwrap_or_default();
    assert!((number(nodes[0], "Actual Rows") - 6_000.0).abs() < 0.5, "{plan:#}");
    let mut touched = 0.0;
    while let Some(node) = nodes.pop() {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        if node["Relation Name"].as_str().is_some_and(|name| name.starts_with("metrics_sealed_")) {
            let rows = number(node, "Actual Rows") + number(node, "Rows Removed by Filter");
            touched += rows * number(node, "Actual Loops");
        }
    }
    let chunks = "SELECT count(*) FROM metrics_sealed \
                  WHERE bucket IN (SELECT id >> 5 FROM metrics_labels WHERE metric_name = 'metric_7')";
    let chunks = database.one::<i64>(chunks).await as f64;
    assert!((1.0..=chunks).contains(&touched), "{touched} touched, {chunks} are in its buckets\n{plan:#}");
}
