//! Sealing: the samples are the same before, during and after it, whoever reads, writes or dies meanwhile.

use std::sync::Arc;
use std::time::Duration;

use prometheus_postgresql_adapter::model::sample::Sample;
use prometheus_postgresql_adapter::storage::SealedRows;
use rig::adapter::Adapter;
use rig::process::Signal;
use tokio_util::task::TaskTracker;

use crate::reader::{both, query};
use crate::setup::{Body, Database, SOON, at, now_ms, one, start, store, with_clock};
use crate::storage::library;

const STALE_MARKER: u64 = 0x7ff0_0000_0000_0002;

/// Requests that all hot rows are sealed, and returns the response.
pub(crate) async fn seal(adapter: &Adapter) -> serde_json::Value {
    let answer = adapter.client().post(&adapter.url("/admin/storage/seal"), &[], Vec::new()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}

/// A query for a digest of the view's content with every bit of the values.
pub(crate) const CONTENT: &str = "SELECT md5(string_agg(concat_ws(' ', extract(epoch FROM time), name, float8send(value), labels), E'\\n' \
                       ORDER BY name, labels::text, time, value)) || count(*) FROM metrics";

/// True if a session waits for a lock of another session.
const SOMEBODY_WAITS: &str =
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";

/// Stores `count` hot rows of maximum length, each with its own second.
fn full_hot_rows(count: usize) -> String {
    format!(
        "INSERT INTO metrics_hot (\"time\", series, value) SELECT now() - n * interval '1 s', array_agg(s ORDER BY s), \
         array_agg(1.0) FROM generate_series(1, 249) s, generate_series(1, {count}) n GROUP BY n"
    )
}

/// Series of all kinds: constants, counters, decimals, odd floats, a series that ends, a series with its own times.
pub(crate) fn body(start_ms: i64, scrapes: i64) -> Body {
    let series = |f: &dyn Fn(i64) -> Option<f64>, offset_ms: i64| -> Vec<Sample> {
        (0..scrapes).filter_map(|n| Some(at(start_ms + n * 1_000 + offset_ms, f(n)?))).collect()
    };
    let odd = [f64::from_bits(STALE_MARKER), f64::NAN, f64::INFINITY, -0.0, f64::MIN_POSITIVE / 3.0, 1e300];
    let mut body = Body::new()
        .series(&[("__name__", "constant"), ("job", "a")], &series(&|_| Some(1.0), 0))
        .series(&[("__name__", "counter"), ("job", "a")], &series(&|n| Some((n * n % 1_000) as f64), 0))
        .series(&[("__name__", "decimal"), ("job", "b")], &series(&|n| Some(n as f64 * 0.001), 0))
        .series(&[("__name__", "float"), ("job", "b")], &series(&|n| Some((n as f64).sqrt()), 0))
        .series(&[("__name__", "odd"), ("job", "c")], &series(&|n| Some(odd[n as usize % odd.len()]), 0))
        .series(&[("__name__", "phase"), ("job", "c")], &series(&|n| Some(n as f64), 137))
        .series(&[("__name__", "gaps"), ("job", "c")], &series(&|n| (n % 3 > 0).then_some(n as f64), 0));
    for n in 0..60 {
        body = body.series(&[("__name__", "many"), ("n", &n.to_string())], &series(&|m| Some((m * n) as f64), 0));
    }
    body
}

/// Reads everything by remote read in both response types, and returns the answer with the bits of all values, NaN
/// included.
pub(crate) async fn read(adapter: &Adapter) -> String {
    let answers = both(adapter, &[query(0, now_ms() + 3_600_000, &[])]).await;
    let bits = |sample: &Sample| (sample.timestamp_ms, sample.value.to_bits());
    let series = |(labels, samples): &(Vec<(String, String)>, Vec<Sample>)| {
        format!("{labels:?} {:?}", samples.iter().map(bits).collect::<Vec<_>>())
    };
    answers[0].iter().map(series).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn readers_see_the_same_before_during_and_after() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1m")).await;
    let start_ms = now_ms() - 400_000;
    store(&adapter, body(start_ms, 100)).await;
    store(&adapter, body(start_ms + 100_000, 100)).await;
    let (content, answer) = (database.one::<String>(CONTENT).await, read(&adapter).await);
    // A range within the future chunks.
    let part = async || both(&adapter, &[query(start_ms + 20_137, start_ms + 149_000, &[("job", "=~", "a|b")])]).await;
    let of_part = part().await;
    assert_eq!(of_part[0].iter().map(|(_, samples)| samples.len()).sum::<usize>(), 4 * 129);
    // Readers that have begun to read before sealing and read again after it.
    let mut readers = Vec::new();
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let reader = database.session().await;
        reader.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.unwrap();
        one::<i64>(&reader, "SELECT count(*) FROM pg_class").await;
        readers.push(reader);
    }
    // And a reader that reads all the time.
    let watcher = database.session().await;
    let expected = content.clone();
    let stop = Arc::new(tokio::sync::Notify::new());
    let watching = TaskTracker::new().spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut looks = 0;
            loop {
                assert_eq!(one::<String>(&watcher, CONTENT).await, expected);
                looks += 1;
                if looks > 3 && tokio::time::timeout(std::time::Duration::ZERO, stop.notified()).await.is_ok() {
                    return;
                }
            }
        }
    });
    let sealed = seal(&adapter).await;
    assert_eq!(sealed["dropped_samples"], 0);
    assert_eq!(sealed["samples"].as_i64().unwrap(), database.samples().await);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    stop.notify_one();
    watching.await.unwrap();
    for reader in &readers {
        assert_eq!(one::<String>(reader, CONTENT).await, content);
    }
    assert_eq!(read(&adapter).await, answer);
    assert_eq!(part().await, of_part);
    let range = "SELECT count(*) FROM metrics_range('many', '{\"n\": \"7\"}', now() - interval '1 hour', now())";
    assert_eq!(database.one::<i64>(range).await, 200);
    let counted = "SELECT sum(samples)::bigint FROM metrics_segments";
    assert_eq!(database.one::<i64>(counted).await, database.samples().await);
    // Another round of sealing has nothing to do.
    assert_eq!(seal(&adapter).await["chunks"], 0);
}

#[tokio::test]
async fn late_samples_find_their_place_and_the_first_stored_counts() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-prometheus-chunk-interval=1m")).await;
    let start_ms = now_ms() - 300_000;
    let sample = |n: i64, value: f64| Body::new().sample("up", start_ms + n * 1_000, value);
    for n in (0..100).filter(|n| n % 2 == 0) {
        store(&adapter, sample(n, 1.0)).await;
    }
    seal(&adapter).await;
    // Samples between, before and after the sealed ones, in the gaps.
    for n in (-10..110).filter(|n| n % 2 != 0) {
        store(&adapter, sample(n, 2.0)).await;
    }
    store(&adapter, sample(200, 4.0)).await;
    // Doubles with other values: of a sample that is hot, and of sealed ones. Adapters by labels may store such
    // doubles.
    for (n, value) in [(200, 5.0), (0, 3.0), (10, 3.0), (98, 3.0)] {
        let again = format!(
            "INSERT INTO metrics_hot (\"time\", series, value) SELECT to_timestamp({}::numeric / 1000), ARRAY[id], ARRAY[{value}::float8] \
             FROM metrics_series WHERE name = 'up'",
            start_ms + n * 1_000
        );
        database.run(&again).await;
    }
    let answer = read(&adapter).await;
    let sealed = seal(&adapter).await;
    assert_eq!(sealed["dropped_samples"], 4, "{sealed}");
    assert!(sealed["replaced_chunks"].as_i64().unwrap() > 0, "{sealed}");
    let values = "SELECT array_agg(value ORDER BY value) FROM (SELECT value, count(*) FROM metrics GROUP BY 1) x";
    assert_eq!(database.one::<Vec<f64>>(values).await, [1.0, 2.0, 4.0]);
    assert_eq!(database.samples().await, 50 + 60 + 1);
    assert_eq!(database.one::<i64>("SELECT count(DISTINCT time) FROM metrics").await, 50 + 60 + 1);
    assert_eq!(read(&adapter).await, answer, "a reader never saw the doubles");
}

#[tokio::test]
async fn hot_samples_that_expire_are_not_sealed() {
    let database = Database::new().await;
    let adapter = start(
        &database.adapter().arg("-pg-retention=4h").arg("-pg-prometheus-chunk-interval=1h").arg("-pg-seal-after=24h"),
    )
    .await;
    let expired = "INSERT INTO metrics_hot (\"time\", series, value) \
                   SELECT now() - interval '5 h', array_agg(s ORDER BY s), array_agg(1.0) FROM generate_series(1, 100) s";
    database.run(expired).await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    let sealed = seal(&adapter).await;
    assert_eq!((&sealed["samples"], &sealed["dropped_samples"]), (&101.into(), &100.into()), "{sealed}");
    // The same if no other rows are hot.
    database.run(expired).await;
    let sealed = seal(&adapter).await;
    assert_eq!((&sealed["samples"], &sealed["dropped_samples"]), (&100.into(), &100.into()), "{sealed}");
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    assert_eq!(database.samples().await, 1);
    assert_eq!(database.one::<i64>("SELECT sum(samples)::bigint FROM metrics_segments").await, 1);
}

/// Only the server's clock counts, because the adapter's clock may be wrong.
#[tokio::test]
async fn the_sealers_own_clock_does_not_decide_what_expires() {
    const DAYS_40_MS: i64 = 40 * 24 * 3_600_000;
    let database = Database::new().await;
    let options = || database.adapter().arg("-pg-retention=30d").arg("-pg-seal-after=24h");
    let right = start(&options()).await;
    let young = (0..20).map(|n| at(now_ms() - n * 1_000, 1.0)).rev().collect::<Vec<_>>();
    store(&right, Body::new().series(&[("__name__", "up")], &young)).await;
    let ahead = start(&with_clock(options(), DAYS_40_MS)).await;
    let sealed = seal(&ahead).await;
    assert_eq!((&sealed["samples"], &sealed["dropped_samples"]), (&20.into(), &0.into()), "{sealed}");
    assert_eq!(database.samples().await, 20);
    let ancient = "SELECT count(*) FROM metrics_segments WHERE lower IS NULL";
    assert_eq!(database.one::<i64>(ancient).await, 0, "a segment of its time, for retention to drop in time");
    let behind = start(&with_clock(options(), -DAYS_40_MS)).await;
    database
        .run("INSERT INTO metrics_hot (\"time\", series, value) VALUES (now() - interval '31 days', '{1}', '{2}')")
        .await;
    let sealed = seal(&behind).await;
    assert_eq!((&sealed["samples"], &sealed["dropped_samples"]), (&1.into(), &1.into()), "{sealed}");
    assert_eq!(database.samples().await, 20);
}

#[tokio::test]
async fn a_sealer_that_dies_at_any_point_changes_nothing() {
    // Before sealing begins, at the chunks that it takes out, after all chunks are stored, and at the rows that it
    // deletes.
    let sealed = [
        "LOCK metrics_segments IN ACCESS EXCLUSIVE MODE",
        "LOCK metrics_sealed IN SHARE MODE",
        "SELECT FROM metrics_segments FOR UPDATE",
    ];
    check_dying_sealer(&Database::new().await, &sealed).await;
}

/// Ends a sealer while it waits for each of these locks, and for the locks on hot rows.
pub(crate) async fn check_dying_sealer(database: &Database, locks: &[&str]) {
    let adapter = start(&database.adapter()).await;
    // So that sealing waits for nothing but the locks: not for adapters that are killed or kept from observing.
    let nobody_publishes = "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                            CREATE TRIGGER drop_row BEFORE INSERT OR UPDATE ON metrics_senders \
                            FOR EACH ROW WHEN (NEW.group_name = 'observers') EXECUTE FUNCTION drop_row(); DELETE FROM metrics_observers";
    database.run(nobody_publishes).await;
    let start_ms = now_ms() - 400_000;
    // After this the segments exist, and some chunks that later samples overlap.
    store(&adapter, body(start_ms, 100)).await;
    store(&adapter, body(start_ms + 150_000, 50)).await;
    seal(&adapter).await;
    store(&adapter, body(start_ms + 90_500, 80)).await;
    let content = database.one::<String>(CONTENT).await;
    let own = ["LOCK metrics_hot IN ACCESS EXCLUSIVE MODE", "SELECT FROM metrics_hot FOR UPDATE"];
    let all = || own.iter().chain(locks).copied();
    for (lock, ends) in all().map(|lock| (lock, "session")).chain(all().map(|lock| (lock, "adapter"))) {
        let adapter = start(&database.adapter()).await;
        let blocker = database.session().await;
        blocker.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
        let client = adapter.client().clone();
        let url = adapter.url("/admin/storage/seal");
        let sealing = TaskTracker::new().spawn(async move { client.post(&url, &[], Vec::new()).await });
        // An adapter that observes, or that counts the hot samples, may wait too.
        let waits = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
                     AND query NOT LIKE 'SELECT sender, \"time\", series FROM %' AND query NOT LIKE 'SELECT coalesce(%'";
        database.wait(&format!("SELECT EXISTS (SELECT {waits})")).await;
        if ends == "adapter" {
            adapter.process().signal(Signal::KILL);
        } else {
            database.run(&format!("SELECT pg_terminate_backend(pid) {waits}")).await;
        }
        blocker.batch_execute("ROLLBACK").await.unwrap();
        match tokio::time::timeout(SOON, sealing).await.expect("sealing ends").unwrap() {
            Ok(answer) => assert_eq!((ends, answer.status), ("session", 503), "{lock}: {}", answer.text()),
            Err(_) => assert_eq!(ends, "adapter"),
        }
        assert_eq!(database.one::<String>(CONTENT).await, content, "{lock}");
    }
    // A backend whose client died may continue for a moment.
    let sealed = async || {
        let answer = adapter.client().post(&adapter.url("/admin/storage/seal"), &[], Vec::new()).await.unwrap();
        (answer.status == 200).then_some(())
    };
    adapter.process().wait_until("it seals", SOON, sealed).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    assert_eq!(database.one::<String>(CONTENT).await, content);
}

#[tokio::test]
async fn neither_a_dump_nor_sealing_holds_writers_up() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    let start_ms = now_ms() - 400_000;
    store(&adapter, body(start_ms, 50)).await;
    let dump = database.session().await;
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let dumped = one::<String>(&dump, CONTENT).await;
    seal(&adapter).await;
    store(&adapter, body(start_ms + 100_000, 50)).await;
    seal(&adapter).await;
    assert_eq!(one::<String>(&dump, CONTENT).await, dumped, "the dump sees what it saw");
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'constant'").await, 100);
    dump.batch_execute("COMMIT").await.unwrap();
    // Sealing waits for another session's lock, but writers do not.
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; LOCK metrics_sealed IN SHARE MODE").await.unwrap();
    store(&adapter, body(start_ms + 200_000, 50)).await;
    let client = adapter.client().clone();
    let url = adapter.url("/admin/storage/seal");
    let sealing = TaskTracker::new().spawn(async move { client.post(&url, &[], Vec::new()).await });
    database.wait(SOMEBODY_WAITS).await;
    store(&adapter, body(start_ms + 300_000, 50)).await;
    assert!(!sealing.is_finished());
    blocker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, sealing).await.unwrap().unwrap().unwrap().status, 200);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'constant'").await, 200);
}

#[tokio::test]
async fn small_chunks_are_put_together() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    let start_ms = now_ms() - 400_000;
    for n in 0..16 {
        store(&adapter, body(start_ms + n * 10_000, 10)).await;
        seal(&adapter).await;
    }
    let most = "SELECT max(n) FROM (SELECT count(*) AS n FROM metrics_sealed, generate_series(0, 31) place \
                WHERE places >> place & 1 = 1 GROUP BY bucket, place) x";
    assert!(database.one::<i64>(most).await < 12, "{}", database.one::<i64>(most).await);
    // The small chunks are found without reading all others.
    database
        .wait(
            "SELECT sum(idx_scan) > 0 FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid) \
             WHERE relname LIKE 'metrics_sealed%' AND indpred IS NOT NULL",
        )
        .await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'constant'").await, 160);
    assert_eq!(
        database.one::<i64>("SELECT count(DISTINCT (name, labels, time)) FROM metrics").await,
        database.samples().await
    );
}

#[tokio::test]
async fn the_leader_seals_by_itself() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-seal-samples=1000").arg("-pg-seal-after=1h")).await;
    store(&adapter, body(now_ms() - 200_000, 100)).await;
    database.wait("SELECT count(*) = 0 FROM metrics_hot").await;
    let sealed = database.samples().await as f64;
    let counted = async || (adapter.metric("sealed_samples_total").await == Some(sealed)).then_some(());
    adapter.process().wait_until("it counts what it sealed", SOON, counted).await;
    let empty = async || (adapter.metric("hot_samples").await == Some(0.0)).then_some(());
    adapter.process().wait_until("it sees that nothing is left", SOON, empty).await;
    assert_eq!(adapter.metric("seal_failures_total").await, Some(0.0));
    let by_time = start(&database.adapter().arg("-pg-seal-after=1s")).await;
    store(&by_time, Body::new().sample("up", now_ms(), 1.0)).await;
    database.wait("SELECT count(*) = 0 FROM metrics_hot").await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'up'").await, 1);
}

/// An adapter that restarts more often than the interval of sealing seals nevertheless.
#[tokio::test]
async fn old_hot_samples_are_sealed_at_once_after_a_start() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-seal-after=2h")).await;
    store(&adapter, Body::new().sample("up", now_ms() - 3_600_000, 1.0)).await;
    let hot = async || (adapter.metric("hot_oldest_seconds").await >= Some(3_600.0)).then_some(());
    adapter.process().wait_until("it has looked", SOON, hot).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 1);
    let _again = start(&database.adapter().arg("-pg-seal-after=1h")).await;
    database.wait("SELECT count(*) = 0 FROM metrics_hot").await;
}

/// A dump, for example: rows that are sealed meanwhile stay where they were.
#[tokio::test]
async fn room_that_an_open_session_kept_is_given_back() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-seal-samples=1000").arg("-pg-seal-after=24h")).await;
    let dump = database.session().await;
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM metrics_hot").await.unwrap();
    for _ in 0..2 {
        database.run(&full_hot_rows(200)).await;
        database.wait("SELECT count(*) = 0 FROM metrics_hot").await;
    }
    let alert = async || (adapter.metric("hot_bytes").await >= Some(200.0 * 8192.0)).then_some(());
    adapter.process().wait_until("it shows what is not given back", SOON, alert).await;
    dump.batch_execute("COMMIT").await.unwrap();
    database.run(&full_hot_rows(20)).await;
    database.wait("SELECT count(*) = 0 FROM metrics_hot").await;
    database.wait("SELECT pg_relation_size('metrics_hot') < 30 * 8192").await;
}

/// An index would keep the size that it once had. What any snapshot may see stays.
#[tokio::test]
async fn once_all_is_sealed_the_index_of_hot_rows_is_small_again() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let round = async || {
        store.seal(SealedRows::All).await.unwrap().expect("nobody else seals");
        store.upkeep(Duration::ZERO).await.unwrap();
    };
    database
        .run(
            "INSERT INTO metrics_hot (\"time\", series, value) SELECT now() - n * interval '1 s', '{1}', '{1}' \
             FROM generate_series(1, 20000) n",
        )
        .await;
    let is_small = "SELECT pg_relation_size('metrics_hot') = 0 AND pg_indexes_size('metrics_hot') = 8192";
    let reader = database.session().await;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM metrics_series").await.unwrap();
    round().await;
    let seen = reader.query_one("SELECT count(*) FROM metrics_hot", &[]).await.unwrap();
    assert_eq!(seen.get::<_, i64>(0), 20_000, "it goes on seeing what was hot");
    assert!(!database.one::<bool>(is_small).await);
    reader.batch_execute("COMMIT").await.unwrap();
    round().await;
    assert!(database.one::<bool>(is_small).await);
}

/// A round usually has a few samples more than one transaction takes.
#[tokio::test]
async fn no_small_chunks_are_made_of_what_is_left_of_a_round() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    // 2,033,334 samples.
    database.run(&full_hot_rows(8166)).await;
    seal(&adapter).await;
    let shortest: i16 = database.one("SELECT min(length) FROM metrics_sealed").await;
    assert!(shortest > 512, "a chunk of {shortest} times");
}

/// A request to seal all does not end while some rows are left.
#[tokio::test]
async fn what_another_adapter_seals_meanwhile_ends_no_round() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-pg-seal-samples=100000000")).await;
    // More rows than one transaction takes. Meanwhile all but the last row are removed.
    database.run(&full_hot_rows(8_033)).await;
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; LOCK metrics_segments IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let meanwhile = async {
        database.wait(SOMEBODY_WAITS).await;
        database.run("DELETE FROM metrics_hot WHERE no < (SELECT max(no) FROM metrics_hot)").await;
        blocker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (sealed, ()) = tokio::join!(seal(&adapter), meanwhile);
    assert_eq!(sealed["samples"], 249);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
}

/// Otherwise the planner overestimates the next rows so much that the server compiles plans for seconds.
#[tokio::test]
async fn what_is_known_of_hot_rows_fits_the_pages_that_are_left() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    store(&adapter, body(now_ms() - 100_000, 10)).await;
    seal(&adapter).await;
    // Two rows per page: first sealed rows, whose pages are known to be empty, then other rows.
    database.run(&full_hot_rows(200)).await;
    let last = database.one::<i64>("SELECT max(no) FROM metrics_hot").await;
    database.run(&full_hot_rows(200)).await;
    database.run(&format!("DELETE FROM metrics_hot WHERE no <= {last}")).await;
    database.run("VACUUM (TRUNCATE false) metrics_hot").await;
    // One more row arrives while the rest is sealed. Its page stays.
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; LOCK metrics_sealed IN SHARE MODE").await.unwrap();
    let meanwhile = async {
        database.wait(SOMEBODY_WAITS).await;
        database.run("INSERT INTO metrics_hot (\"time\", series, value) VALUES (now(), '{1}', '{1}')").await;
        blocker.batch_execute("ROLLBACK").await.unwrap();
    };
    tokio::join!(seal(&adapter), meanwhile);
    let of_hot = |what| format!("SELECT {what}::bigint FROM pg_class WHERE oid = 'metrics_hot'::regclass");
    let pages = database.one::<i64>(&of_hot("relpages")).await;
    let rows = database.one::<i64>(&of_hot("reltuples")).await;
    assert!(pages < 100, "{pages} pages are left");
    assert!(rows <= 2 * pages, "{rows} rows in {pages} pages");
}

#[tokio::test]
async fn a_corrupt_chunk_is_named_and_nothing_else_suffers() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    let start_ms = now_ms() - 200_000;
    store(&adapter, Body::new().sample("broken", start_ms, 1.5).sample("broken", start_ms + 10_000, 2.5)).await;
    seal(&adapter).await;
    database.run("UPDATE metrics_sealed SET data = B'1'").await;
    store(&adapter, Body::new().sample("broken", start_ms + 5_000, 2.0).sample("whole", start_ms, 3.0)).await;
    let answer = crate::reader::ask(&adapter, &[query(0, now_ms(), &[("__name__", "=", "broken")])], &[]).await;
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("corrupt"), "{}", answer.text());
    let error = database.client.query("SELECT * FROM metrics", &[]).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code().to_owned()), Some("XX001".to_owned()), "{error:?}");
    // The new sample is late for the corrupt chunk and overlaps it. The corrupt chunk stays; the rest is sealed.
    seal(&adapter).await;
    adapter.process().wait_for_log("a chunk is corrupt", SOON).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    assert_eq!(both(&adapter, &[query(0, now_ms(), &[("__name__", "=", "whole")])]).await[0].len(), 1);
}

#[tokio::test]
async fn a_hot_row_that_makes_no_sense_holds_nothing_up() {
    let database = Database::new().await;
    let adapter = start(&database.adapter()).await;
    database.run("INSERT INTO metrics_hot (\"time\", series, value) VALUES (now(), '{1001,1002}', '{0.5}')").await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    assert_eq!(seal(&adapter).await["samples"], 2);
    let line = adapter.process().wait_for_log("a hot row made by hand", SOON).await;
    assert!(line.contains("series=2 values=1"), "{line}");
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'up'").await, 1);
}

#[tokio::test]
async fn only_this_host_may_ask_and_only_by_post() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    assert_eq!(adapter.get("/admin/storage/seal").await.unwrap().status, 405);
    let reader = start(&database.adapter().arg("-pg-read-only")).await;
    let answer = reader.client().post(&reader.url("/admin/storage/seal"), &[], Vec::new()).await.unwrap();
    assert_eq!(answer.status, 409, "{}", answer.text());
}
