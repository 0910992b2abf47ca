//! With TimescaleDB the same samples are stored and found. Needs the extension beside the server; the tests report if
//! it is missing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rig::adapter::Adapter;
use rig::postgres::{Options, Postgres};
use rig::process::Signal;
use tokio::sync::{Notify, OnceCell};
use tokio_util::task::TaskTracker;

use crate::election::candidate;
use crate::reader::{both, query};
use crate::seal::{CONTENT, body, check_dying_sealer, read, seal};
use crate::setup::{Body, Database, SOON, at, now_ms, skipped, start, store};
use crate::storage::{library, refusal};

/// Edition of TimescaleDB that a server uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edition {
    Community,
    Apache,
}

/// A database with the extension. `None` if the extension is not available; the reason is printed.
async fn database(edition: Edition, statement: &str) -> Option<Database> {
    static SERVERS: [OnceCell<Postgres>; 2] = [const { OnceCell::const_new() }; 2];
    let plain = Database::new().await;
    let available = "SELECT coalesce((SELECT string_to_array(substring(default_version FROM '^[0-9.]+'), '.')::integer[] \
                     >= ARRAY[2, 18, 1] FROM pg_available_extensions WHERE name = 'timescaledb'), false)";
    if !plain.one::<bool>(available).await {
        skipped("TimescaleDB is not installed, or older than 2.18.1");
        return None;
    }
    let license = if edition == Edition::Apache { "apache" } else { "timescale" };
    let options = Options::default()
        .with("shared_preload_libraries", "timescaledb")
        .with("timescaledb.telemetry_level", "off")
        .with("timescaledb.license", license);
    let server = SERVERS[edition as usize].get_or_init(|| Postgres::start(options)).await;
    let database = Database::on(server).await;
    database.run(statement).await;
    Some(database)
}

const INSTALL: &str = "CREATE EXTENSION timescaledb";

/// Compresses every segment, as the policy does with segments that are old enough.
const COMPRESS: &str = "SELECT compress_chunk(c, if_not_compressed => true) FROM show_chunks('metrics_samples') c";

const IS_HYPERTABLE: &str = "SELECT to_regclass('metrics_samples') IS NOT NULL";

/// Late samples and doubles of samples of [`body`], as from a sender that restarts.
fn more(start_ms: i64) -> Body {
    let late: Vec<_> = (0..100).map(|n| at(start_ms + n * 1_000 + 500, 7.0)).collect();
    let doubles: Vec<_> = (0..100).map(|n| at(start_ms + n * 1_000, 8.0)).collect();
    Body::new()
        .series(&[("__name__", "counter"), ("job", "a")], &late)
        .series(&[("__name__", "decimal"), ("job", "b")], &doubles)
        .series(&[("__name__", "decimal"), ("job", "b")], &[at(start_ms - 3_600_000, 9.0)])
}

/// Hashes of all that SQL and remote read return.
async fn all(database: &Database, adapter: &Adapter, start_ms: i64) -> (String, String, u64) {
    let range = format!(
        "SELECT md5(string_agg(concat_ws(' ', extract(epoch FROM time), float8send(value), labels), E'\\n' \
         ORDER BY labels::text, time)) FROM metrics_range('many', '{{}}', to_timestamp({start_ms} / 1000.0 + 10), now())"
    );
    (database.one(CONTENT).await, database.one(&range).await, hash(&read(adapter).await))
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[tokio::test]
async fn both_layouts_give_the_same() {
    let Some(with) = database(Edition::Community, INSTALL).await else { return };
    let without = Database::new().await;
    let start_ms = now_ms() - 100_000;
    let interval = "-pg-prometheus-chunk-interval=1m";
    let adapters = (start(&with.adapter().arg(interval)).await, start(&without.adapter().arg(interval)).await);
    assert!(with.one::<bool>(IS_HYPERTABLE).await && !without.one::<bool>(IS_HYPERTABLE).await);
    let store = async |body: Body| {
        store(&adapters.0, body.clone()).await;
        store(&adapters.1, body).await;
    };
    let seal = async |dropped: i64| {
        for adapter in [&adapters.0, &adapters.1] {
            assert_eq!(seal(adapter).await["dropped_samples"], dropped);
        }
    };
    let check = async || {
        assert_eq!(all(&with, &adapters.0, start_ms).await, all(&without, &adapters.1, start_ms).await);
    };
    store(body(start_ms, 100)).await;
    check().await;
    seal(0).await;
    check().await;
    // Twice while hot, once sealed, once compressed.
    store(more(start_ms)).await;
    store(more(start_ms + 1)).await;
    store(more(start_ms + 1).sample("young", start_ms, 1.0)).await;
    assert_eq!(hash(&read(&adapters.0).await), hash(&read(&adapters.1).await));
    seal(100 + 201).await;
    check().await;
    with.run(COMPRESS).await;
    check().await;
    store(more(start_ms).sample("young", start_ms, 2.0)).await;
    store(more(start_ms + 2)).await;
    assert_eq!(hash(&read(&adapters.0).await), hash(&read(&adapters.1).await));
    seal(202).await;
    check().await;
    let doubles = "SELECT count(*) FROM (SELECT FROM metrics GROUP BY name, labels, time HAVING count(*) > 1) d";
    assert_eq!(with.one::<i64>(doubles).await, 0);
    assert_eq!(with.one::<f64>("SELECT value FROM metrics WHERE name = 'young'").await, 1.0);
}

#[tokio::test]
async fn the_columnstore_is_on_and_its_policy_waits_for_sealing() {
    let Some(database) = database(Edition::Community, INSTALL).await else { return };
    let adapter = database.leader().await;
    let config = "SELECT config ->> 'compress_after' FROM timescaledb_information.jobs WHERE hypertable_name = 'metrics_samples'";
    assert_eq!(database.column::<String>(config).await, ["02:00:00"]);
    let again = start(&database.adapter().arg("-pg-prometheus-chunk-interval=6h")).await;
    assert_eq!(database.column::<String>(config).await.len(), 1);
    let interval = "SELECT time_interval = interval '6 hours' FROM timescaledb_information.dimensions \
                    WHERE hypertable_name = 'metrics_samples'";
    assert!(database.one::<bool>(interval).await);
    drop((adapter, again));
}

#[tokio::test]
async fn the_apache_edition_is_served_without_compression() {
    let Some(database) = database(Edition::Apache, INSTALL).await else { return };
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    adapter.process().wait_for_log("sealed samples are not compressed", SOON).await;
    let start_ms = now_ms() - 100_000;
    store(&adapter, body(start_ms, 100)).await;
    let before = all(&database, &adapter, start_ms).await;
    seal(&adapter).await;
    assert_eq!(all(&database, &adapter, start_ms).await, before);
    assert!(database.one::<bool>(IS_HYPERTABLE).await);
    assert!(database.one::<bool>("SELECT count(*) > 0 FROM metrics_samples").await);
    store(&adapter, more(start_ms - 5 * 3_600_000)).await;
    seal(&adapter).await;
    library(&database, Some(Duration::from_secs(2 * 3600))).await.upkeep(Duration::ZERO).await.unwrap();
    assert_eq!(all(&database, &adapter, start_ms).await, before, "retention drops what it should");
}

#[tokio::test]
async fn a_sealer_that_dies_changes_nothing_in_a_hypertable() {
    let Some(database) = database(Edition::Community, INSTALL).await else { return };
    check_dying_sealer(&database, &["LOCK metrics_samples IN SHARE MODE"]).await;
}

#[tokio::test]
async fn a_new_leader_goes_on_behind_sealed_samples() {
    let Some(database) = database(Edition::Community, INSTALL).await else { return };
    let uri = database.server.uri(&database.name);
    let now = now_ms();
    let send = async |adapter: &Adapter, times: &[i64], value: f64| {
        let samples: Vec<_> = times.iter().map(|s| at(now + s * 1_000, value)).collect();
        let body = Body::new().series(&[("__name__", "steady")], &samples).compressed();
        let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
        adapter.process().wait_until("it takes a request", SOON, taken).await;
    };
    let every = |step: usize, from: i64, to: i64| -> Vec<i64> { (from..=to).step_by(step).collect() };
    // The Prometheus sends only when the test does.
    let candidate = |name| candidate(&uri, name).arg("-leader-election-pg-advisory-lock-prometheus-timeout=0");
    let a = candidate("adapter a").start().await;
    send(&a, &every(5, -120, -90), 1.0).await;
    a.wait_role("leader", SOON).await;
    let b = candidate("adapter b").start().await;
    b.wait_role("standby", SOON).await;
    send(&b, &every(5, -118, -78), 2.0).await;
    seal(&a).await;
    database.run(COMPRESS).await;
    a.process().kill9().await;
    send(&b, &every(5, -73, -50), 2.0).await;
    b.wait_role("leader", SOON).await;
    let stored = "SELECT (extract(epoch FROM time - to_timestamp(0)) * 1000)::bigint FROM metrics ORDER BY time";
    let times = async || -> Vec<i64> {
        let times = database.column::<i64>(stored).await;
        times.iter().map(|ms| (ms - now) / 1_000).collect()
    };
    assert_eq!(times().await, [every(5, -120, -90), every(5, -88, -53)].concat(), "nothing twice, nothing missing");
    // Samples for a gap are compared with the sealed ones.
    b.process().kill9().await;
    let c = candidate("adapter c").start().await;
    send(&c, &every(5, -10, 0), 3.0).await;
    c.wait_role("leader", SOON).await;
    seal(&c).await;
    let d = candidate("adapter d").start().await;
    send(&d, &every(5, -119, 0), 4.0).await;
    let expected = [every(5, -120, -90), every(5, -88, -53), every(5, -49, -14), every(5, -10, 0)].concat();
    let filled = async || (times().await.len() >= expected.len()).then_some(());
    d.process().wait_until("the hole is filled", SOON, filled).await;
    assert_eq!(times().await, expected);
}

#[tokio::test]
async fn retention_drops_segments_of_a_hypertable() {
    let Some(database) = database(Edition::Community, INSTALL).await else { return };
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1h")).await;
    let now = now_ms();
    for hours in [0, 1, 2, 5, 6, 24 * 60] {
        let name = if hours > 24 { "ended" } else { "up" };
        store(&adapter, Body::new().sample(name, now - hours * 3_600_000, 1.0)).await;
    }
    seal(&adapter).await;
    let segments = "SELECT count(*) FROM show_chunks('metrics_samples')";
    assert_eq!(database.one::<i64>(segments).await, 6);
    let store = library(&database, Some(Duration::from_secs(4 * 3600))).await;
    store.upkeep(Duration::ZERO).await.unwrap();
    assert!(database.one::<bool>("SELECT min(time) > now() - interval '5 hours 1 minute' FROM metrics").await);
    let left = database.one::<i64>(segments).await;
    assert!((3..=4).contains(&left), "{left}");
    let ended: Vec<String> = database.column("SELECT name FROM metrics_series WHERE ended_at IS NOT NULL").await;
    assert_eq!(ended, ["ended"]);
    let sizes = "SELECT segments FROM metrics_sealed_sizes()";
    assert_eq!(database.one::<i64>(sizes).await, left);
}

#[tokio::test]
async fn a_reader_sees_all_while_samples_are_sealed_and_compressed() {
    let Some(database) = database(Edition::Community, INSTALL).await else { return };
    let adapter = Arc::new(start(&database.adapter().arg("-pg-prometheus-chunk-interval=1m")).await);
    let start_ms = now_ms() - 400_000;
    store(&adapter, body(start_ms, 100)).await;
    let expected = (database.one::<String>(CONTENT).await, hash(&read(&adapter).await));
    let (stop, watcher) = (Arc::new(Notify::new()), database.session().await);
    let watching = TaskTracker::new().spawn({
        let (stop, adapter, expected) = (Arc::clone(&stop), Arc::clone(&adapter), expected.clone());
        async move {
            loop {
                assert_eq!(crate::setup::one::<String>(&watcher, CONTENT).await, expected.0);
                assert_eq!(hash(&read(&adapter).await), expected.1);
                if tokio::time::timeout(Duration::ZERO, stop.notified()).await.is_ok() {
                    return;
                }
            }
        }
    });
    seal(&adapter).await;
    let decompress = "SELECT decompress_chunk(c, if_compressed => true) FROM show_chunks('metrics_samples') c";
    for _ in 0..10 {
        database.run(COMPRESS).await;
        database.run(decompress).await;
    }
    stop.notify_one();
    watching.await.unwrap();
}

#[tokio::test]
async fn times_of_any_age_and_odd_names_are_served() {
    let Some(database) =
        database(Edition::Community, "CREATE SCHEMA \"Its own\"; CREATE EXTENSION timescaledb SCHEMA \"Its own\"")
            .await
    else {
        return;
    };
    let options = database.adapter().arg("-pg-table=it's \\ \"quoted\"").arg("-pg-schema=Odd.Schema");
    let adapter = start(&options).await;
    let times = [-210_866_803_200_000, -1, 0, now_ms()];
    for time_ms in times {
        store(&adapter, Body::new().sample("up", time_ms, 1.0)).await;
    }
    assert_eq!(seal(&adapter).await["samples"], 4);
    let answer = both(&adapter, &[query(i64::MIN, i64::MAX, &[])]).await;
    assert_eq!(answer[0][0].1, times.map(|time_ms| at(time_ms, 1.0)));
    assert_eq!(database.one::<i64>("SELECT count(*) FROM \"Odd.Schema\".\"it's \\ \"\"quoted\"\"\"").await, 4);
}

#[tokio::test]
async fn a_store_stays_as_it_was_made() {
    let Some(database) = database(Edition::Community, "SELECT").await else { return };
    let said = "has no effect";
    let timescaledb = |value: &str, schema: &str| {
        database.adapter().arg(format!("-pg-use-timescaledb={value}")).arg(format!("-pg-schema={schema}"))
    };
    let is_hypertable = async |schema: &str| {
        database.one::<bool>(&format!("SELECT to_regclass('{schema}.metrics_samples') IS NOT NULL")).await
    };
    // The extension is not in the database yet.
    drop(start(&timescaledb("auto", "before")).await);
    assert!(!is_hypertable("before").await);
    drop(start(&timescaledb("true", "made")).await);
    assert!(is_hypertable("made").await, "it has installed the extension");
    drop(start(&timescaledb("auto", "after")).await);
    assert!(is_hypertable("after").await);
    drop(start(&timescaledb("false", "never")).await);
    assert!(!is_hypertable("never").await);
    for (value, schema, is_warned) in
        [("true", "before", true), ("auto", "before", false), ("false", "made", true), ("auto", "made", false)]
    {
        let was = is_hypertable(schema).await;
        let adapter = start(&timescaledb(value, schema)).await;
        store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
        seal(&adapter).await;
        assert_eq!(adapter.process().log().contains(said), is_warned, "{value} {schema}");
        assert_eq!(is_hypertable(schema).await, was);
        let reader = timescaledb("auto", schema).arg("-pg-read-only").start().await;
        crate::setup::wait_ready(&reader).await;
        assert!(!both(&reader, &[query(0, now_ms(), &[])]).await[0].is_empty());
        adapter.process().signal(Signal::TERM);
    }
}

#[tokio::test]
async fn without_the_extension_only_true_is_refused() {
    let database = Database::new().await;
    for flag in ["-pg-use-timescaledb=true", "-pg-use-timescaledb"] {
        let said = refusal(&database.adapter().arg(flag)).await;
        for words in ["CREATE EXTENSION timescaledb", "shared_preload_libraries", "leave the flag out"] {
            assert!(said.contains(words), "{said}");
        }
    }
    let adapter = start(&database.adapter().arg("-pg-use-timescaledb=auto")).await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    assert!(!database.one::<bool>(IS_HYPERTABLE).await);
}
