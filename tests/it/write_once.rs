//! A request is stored once, however often it arrives, by whichever adapter and with whatever outcome.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{join, join_all};
use prometheus_postgresql_adapter::model::sample::Sample;
use rig::postgres::{Options, Postgres, Stop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::setup::{Body, Database, SOON, adapter_at, at, now_ms, one, start, store};

/// Many series with one sample each.
fn scrape(time_ms: i64) -> Body {
    (0..50).fold(Body::new(), |body, n| body.series(&[("__name__", "up"), ("n", &n.to_string())], &[at(time_ms, 1.0)]))
}

/// A trigger that makes the commit of a request wait while a session holds the advisory lock 42.
const SLOW_COMMIT: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON metrics_requests DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION slow()";

/// A trigger that makes COPY fail after the keys of the requests have been claimed.
const FAILING_COPY: &str = "
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END';
    CREATE TRIGGER fail BEFORE INSERT ON metrics_hot FOR EACH ROW EXECUTE FUNCTION fail()";

/// A query that is true if exactly `count` sessions of this database wait for a lock of kind `event`.
fn waiting(event: &str, count: usize) -> String {
    format!(
        "SELECT count(*) = {count} FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
         AND wait_event = '{event}'"
    )
}

#[tokio::test]
async fn a_retry_is_stored_once_also_by_another_adapter() {
    let database = Database::new().await;
    let (first, second) = (database.leader().await, database.leader().await);
    let body = scrape(now_ms());
    for adapter in [&first, &first, &second, &first] {
        store(adapter, body.clone()).await;
    }
    assert_eq!(database.samples().await, 50);
    assert_eq!(first.metric_with("samples_covered_total", "late").await, Some(100.0));
    assert_eq!(second.metric_with("samples_duplicate_total", "retry").await, Some(50.0));
}

#[tokio::test]
async fn equal_requests_at_once_are_stored_once() {
    let database = Database::new().await;
    let (first, second) = (database.leader().await, database.leader().await);
    for round in 0..5 {
        let body = scrape(now_ms() - round * 1000);
        let attempts = [&first, &second].into_iter().cycle().take(12).map(|adapter| store(adapter, body.clone()));
        join_all(attempts).await;
    }
    assert_eq!(database.samples().await, 5 * 50);
}

#[tokio::test]
async fn a_failed_copy_is_not_committed() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    database.run(FAILING_COPY).await;
    let body = scrape(now_ms());
    let answer = adapter.write(body.clone().compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_requests").await, 0);
    database.run("DROP TRIGGER fail ON metrics_hot").await;
    store(&adapter, body).await;
    assert_eq!(database.samples().await, 50);
}

#[tokio::test]
async fn a_retry_waits_for_the_attempt_that_still_runs() {
    let database = Database::new().await;
    let (first, second) = (database.leader().await, database.leader().await);
    let now = now_ms();
    // The series and the segment exist: only the samples have to be stored.
    store(&first, scrape(now - 1000)).await;
    database.run(SLOW_COMMIT).await;
    let blocker = database.session().await;
    blocker.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    let attempts = async {
        join(store(&first, scrape(now)), async {
            database.wait(&waiting("advisory", 1)).await;
            store(&second, scrape(now)).await;
        })
        .await
    };
    let release = async {
        database.wait(&waiting("transactionid", 1)).await;
        blocker.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
    };
    tokio::time::timeout(SOON, join(attempts, release)).await.expect("both are answered");
    assert_eq!(database.samples().await, 100);
}

#[tokio::test]
async fn a_retry_stores_what_a_killed_attempt_did_not() {
    let database = Database::new().await;
    let (first, second) = (database.leader().await, database.leader().await);
    let now = now_ms();
    store(&first, scrape(now - 1000)).await;
    database.run(SLOW_COMMIT).await;
    let blocker = database.session().await;
    blocker.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    let retry = async {
        database.wait(&waiting("advisory", 1)).await;
        store(&second, scrape(now)).await;
    };
    let kill = async {
        database.wait(&waiting("transactionid", 1)).await;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                    AND wait_event = 'advisory'";
        database.run(kill).await;
        database.wait(&waiting("transactionid", 0)).await;
        blocker.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
    };
    let all = join(first.write(scrape(now).compressed()), join(retry, kill));
    let (answer, _) = tokio::time::timeout(SOON, all).await.expect("both are answered");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    assert_eq!(database.samples().await, 100);
    store(&first, scrape(now)).await;
    assert_eq!(database.samples().await, 100);
}

/// Forwards connections to a server. Once armed, drops the next answer to a COMMIT and cuts its connection.
async fn cutting_proxy(server_port: u16) -> (u16, Arc<AtomicBool>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let armed = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&armed);
    #[allow(clippy::disallowed_methods, reason = "the handle ends it with its test")]
    let accepting = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
            connections.spawn(relay(client, server, Arc::clone(&cut)));
        }
    });
    (port, armed, AbortOnDropHandle::new(accepting))
}

async fn relay(mut client: TcpStream, mut server: TcpStream, cut: Arc<AtomicBool>) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(count) if count > 0 && server.write_all(&from_client[..count]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(count) if count > 0 => {
                    let bytes = &from_server[..count];
                    if bytes.windows(7).any(|word| word == b"COMMIT\0") && cut.swap(false, Ordering::Relaxed) {
                        return;
                    }
                    if client.write_all(bytes).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_not_repeated() {
    let database = Database::new().await;
    let (port, armed, _proxy) = cutting_proxy(database.server.port()).await;
    let uri = format!("postgres://postgres@127.0.0.1:{port}/{}?sslmode=disable", database.name);
    let adapter = start(&adapter_at(&uri)).await;
    let now = now_ms();
    store(&adapter, scrape(now - 1000)).await;
    armed.store(true, Ordering::Relaxed);
    let answer = adapter.write(scrape(now).compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(!armed.load(Ordering::Relaxed), "the commit was not cut");
    assert_eq!(database.samples().await, 100, "it was committed");
    store(&adapter, scrape(now)).await;
    assert_eq!(database.samples().await, 100);
}

#[tokio::test]
async fn a_database_that_is_down_is_not_the_senders_fault() {
    let mut server = Postgres::start(Options::default()).await;
    let adapter = start(&adapter_at(&server.uri("postgres"))).await;
    let now = now_ms();
    store(&adapter, scrape(now)).await;
    server.stop(Stop::Fast).await;
    // Known series and new ones. Any answer except a 5xx would lose them.
    let bodies = [scrape(now + 1000), Body::new().sample("new", now, 1.0)];
    for body in &bodies {
        let answer = adapter.write(body.clone().compressed()).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    }
    server.start_again().await;
    for body in &bodies {
        let retry = async || (adapter.write(body.clone().compressed()).await.status == 204).then_some(());
        adapter.process().wait_until("it stores again", SOON, retry).await;
    }
    let client = server.connect("postgres").await;
    assert_eq!(one::<i64>(&client, "SELECT count(*) FROM metrics").await, 101);
}

#[tokio::test]
async fn two_adapters_make_the_same_series_at_once() {
    let database = Database::new().await;
    let (first, second) = (database.leader().await, database.leader().await);
    let now = now_ms();
    let body = |order: &mut dyn Iterator<Item = i64>, sample: Sample| {
        order.fold(Body::new(), |body, n| body.series(&[("__name__", "m"), ("n", &n.to_string())], &[sample]))
    };
    let requests = (0..4).flat_map(|part| {
        // One upwards, the other downwards, with other parts at the same time, so that they meet in every order.
        let range = part * 250..part * 250 + 1250;
        [
            (&first, body(&mut range.clone(), at(now + part, 1.0))),
            (&second, body(&mut range.rev(), at(now + 10 + part, 1.0))),
        ]
    });
    join_all(requests.map(|(adapter, body)| store(adapter, body))).await;
    let ids = database.column::<i64>("SELECT id FROM metrics_labels").await;
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (2000, 2000));
    assert_eq!(database.one::<i64>("SELECT count(DISTINCT labels) FROM metrics_labels").await, 2000);
    assert_eq!(database.samples().await, 8 * 1250);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(database.one::<i64>(deadlocks).await, 0);
    for adapter in [&first, &second] {
        assert_eq!(adapter.metric_with("postgres_errors_total", "").await.unwrap_or_default(), 0.0);
    }
}

#[tokio::test]
async fn ids_do_not_run_out_at_two_thousand_million() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    database.run("ALTER TABLE metrics_series ALTER COLUMN id RESTART WITH 2147483647").await;
    store(&adapter, scrape(now_ms())).await;
    assert_eq!(database.samples().await, 50);
    assert!(database.one::<bool>("SELECT max(labels_id) = 2147483696 FROM metrics_values").await);
    let results = crate::reader::both(&adapter, &[crate::reader::query(0, now_ms(), &[])]).await;
    assert_eq!(results[0].len(), 50);
}
