//! The server may be replaced: a replica that lacks the latest acknowledged samples is promoted. No sample is stored
//! under another series, and samples that an adapter acknowledged within the last minute are stored again.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use futures_util::future::join_all;
use prometheus_postgresql_adapter::postgres::error::{Class, Error};
use prometheus_postgresql_adapter::storage::around::Near;
use prometheus_postgresql_adapter::storage::exemplars::Exemplar;
use prometheus_postgresql_adapter::storage::hot::SeriesAt;
use prometheus_postgresql_adapter::storage::ingest::{Right, Stored};
use prometheus_postgresql_adapter::storage::reconcile::Reconcile;
use prometheus_postgresql_adapter::wire::write::v1;
use rig::adapter::{Adapter, Options};
use rig::postgres::{self, Postgres, Stop};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::election::candidate;
use crate::setup::{Body, Database, SOON, adapter_at, now_ms, one, start};
use crate::storage::open;

/// A server, an asynchronous replica of it, and adapters to which the same series are sent.
struct Scene {
    primary: Postgres,
    replica: Postgres,
    adapters: Vec<Adapter>,
    /// True if labels name the sender. Each request then goes to the next adapter.
    by_labels: bool,
    /// Time at which the series of [`scrape`] begin.
    began_ms: i64,
}

/// Time between two scrapes, ms.
const STEP_MS: i64 = 1_000;

impl Scene {
    async fn new(names: &[&str], by_labels: bool, options: impl Fn(&str, &str) -> Options) -> Self {
        let primary = Postgres::start(postgres::Options::default()).await;
        let replica = primary.follow().await;
        let uri = format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable&target_session_attrs=read-write",
            primary.port(),
            replica.port()
        );
        let mut adapters = Vec::new();
        for name in names {
            let options = options(&uri, name);
            adapters.push(if names.len() == 1 || by_labels { start(&options).await } else { options.start().await });
        }
        Self { primary, replica, adapters, by_labels, began_ms: now_ms() - 40 * STEP_MS }
    }

    /// Every sender sends the scrape `number`, a sample of each series, until it is accepted.
    async fn scrape(&self, series: &[String], number: i64) {
        let time_ms = self.began_ms + number * STEP_MS;
        let sent = (0..self.adapters.len()).map(async |sender| {
            let mut body = Body::new();
            for name in series {
                let replica = format!("r{sender}");
                let mut labels = vec![("__name__", name.as_str())];
                if self.by_labels {
                    labels.extend([("__replica__", replica.as_str()), ("cluster", "eu")]);
                }
                #[expect(clippy::cast_precision_loss, reason = "times of today")]
                let sample = crate::setup::at(time_ms, time_ms as f64);
                // Some series have native histograms.
                body = match name.ends_with('3') {
                    true => body.histograms(&labels, &[sample]),
                    false => body.series(&labels, &[sample]),
                };
            }
            let body = body.compressed();
            let turn = if self.by_labels { usize::try_from(number).expect("it counts") } else { 0 };
            let adapter = &self.adapters[(sender + turn) % self.adapters.len()];
            let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
            adapter.process().wait_until("it takes a request", SOON, taken).await;
        });
        join_all(sent).await;
    }

    /// The primary is lost, and the replica is promoted.
    async fn promote(&mut self) {
        self.primary.stop(Stop::Immediate).await;
        self.replica.promote().await;
    }
}

async fn wait(client: &Client, sql: &str) {
    let poll = async {
        while !one::<bool>(client, sql).await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, poll).await.unwrap_or_else(|_| panic!("never true: {sql}"));
}

/// Names of series. A kind has so many that ids are used twice: a replica knows the sequence of ids 32 values ahead.
fn series(kind: &str) -> Vec<String> {
    (0..40).map(|n| format!("{kind}_{n}")).collect()
}

/// Returns the faults in the stored samples, compared with the sent ones.
async fn faults(client: &Client, scene: &Scene, sent: &[(&str, Vec<i64>)]) -> Vec<String> {
    let mut faults = Vec::new();
    for (kind, numbers) in sent {
        for name in series(kind) {
            let sql = "SELECT (extract(epoch FROM time) * 1000)::bigint FROM (SELECT time, name FROM metrics \
                       UNION ALL SELECT time, name FROM metrics_histograms) s WHERE name = $1 ORDER BY 1";
            let rows = client.query(sql, &[&name]).await.expect("the view answers");
            let stored: Vec<i64> = rows.iter().map(|row| (row.get::<_, i64>(0) - scene.began_ms) / STEP_MS).collect();
            if stored != *numbers {
                faults.push(format!("{name}: {stored:?} and not {numbers:?}"));
            }
        }
    }
    let stray =
        "SELECT count(*) FROM metrics_hot, unnest(series) AS id WHERE id NOT IN (SELECT id FROM metrics_series)";
    match one::<i64>(client, stray).await {
        0 => {}
        count => faults.push(format!("{count} samples are of no series")),
    }
    faults
}

/// Checks a replica that lacks the last new series and samples. After its promotion other new series are created.
async fn check_promoted(mut scene: Scene) {
    let (known, lost, new) = (series("known"), series("lost"), series("new"));
    for number in 0..6 {
        scene.scrape(&known, number).await;
    }
    scene.replica.stop_following(&scene.primary).await;
    let both = [known.clone(), lost.clone()].concat();
    for number in 6..12 {
        scene.scrape(&both, number).await;
    }
    scene.promote().await;
    let replica = scene.replica.connect("postgres").await;
    for number in 12..15 {
        // These get the ids that the lost series had.
        scene.scrape(&new, number).await;
        scene.scrape(&both, number).await;
    }
    let sent = [("known", (0..15).collect()), ("lost", (6..15).collect()), ("new", (12..15).collect())];
    let stored = async || faults(&replica, &scene, &sent).await.is_empty().then_some(());
    let stored = async {
        while stored().await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(SOON * 2, stored).await.is_err() {
        let logs: Vec<String> = scene.adapters.iter().map(|adapter| adapter.process().log().tail()).collect();
        panic!("{:#?}\n{}", faults(&replica, &scene, &sent).await, logs.join("\n---\n"));
    }
}

#[tokio::test]
async fn a_replica_that_lagged_is_promoted_without_an_election() {
    check_promoted(Scene::new(&["adapter"], false, |uri, name| adapter_at(uri).name(name)).await).await;
}

#[tokio::test]
async fn a_replica_that_lagged_is_promoted_under_a_pair() {
    check_promoted(Scene::new(&["adapter a", "adapter b"], false, candidate).await).await;
}

#[tokio::test]
async fn a_replica_that_lagged_is_promoted_under_leaders_by_labels() {
    let options = |uri: &str, name: &str| {
        adapter_at(uri).name(name).arg("-metrics.high-availability").arg("-metrics.high-availability.timeout=2s")
    };
    check_promoted(Scene::new(&["adapter a", "adapter b"], true, options).await).await;
}

/// Makes the server report another identity.
async fn replace_server(db: &Database, identity: &str) {
    let state = format!(
        "CREATE OR REPLACE FUNCTION metrics_server_state() RETURNS text LANGUAGE sql AS $$ SELECT '{identity}' $$"
    );
    db.run(&state).await;
}

#[tokio::test]
async fn nothing_is_written_or_compared_by_ids_of_another_server() {
    let db = Database::new().await;
    let (store, writers) = open(&db, None, false).await;
    let stop = CancellationToken::new();
    let _writers: JoinSet<()> = writers.into_iter().map(|writer| writer.run(stop.clone())).collect();
    let sender = store.sender_no("", "a").await.unwrap();
    let body = Body::new().sample("up", now_ms(), 1.0).plain();
    let request = v1::decode(&body).unwrap();
    let looked_up = || store.look_up(&request).unwrap();
    // One request looked up its series before, one resolved its series.
    let before = looked_up();
    let resolved = store.resolve(&request, looked_up(), None).await.unwrap();
    let rows = resolved.shares[0].rows.clone();
    let right = Right { sender, fence: None, reconciled: 0, observed: None, epoch: resolved.epoch };
    let near = Near { rows: &rows, window_ms: 500, unbounded: &[] };
    let what = Reconcile { near, right: right.clone(), is_told: false };
    let seen = store.observe(None, Some(&[]), &[], &[], |_| ()).await.unwrap().position;
    assert_eq!(store.commit(Uuid::new_v4(), rows.clone(), right.clone()).await.unwrap(), Stored::Committed);
    replace_server(&db, "another").await;
    let refused = async || {
        let is_moved = |error: &Error| error.class() == Class::Moved;
        assert!(is_moved(&store.commit(Uuid::new_v4(), rows.clone(), right.clone()).await.unwrap_err()));
        assert!(is_moved(&store.reconcile(std::slice::from_ref(&what), |_, _| rows.clone()).await.unwrap_err()));
        assert!(is_moved(&store.around(&[near], right.epoch).await.unwrap_err()));
        let exemplar = Exemplar::new(rows[0].series_id, rows[0].time_ms, 1.0, Vec::new(), false).unwrap();
        assert!(is_moved(&store.keep_exemplars(vec![exemplar], right.epoch).await.unwrap_err()));
        assert!(is_moved(&store.set_clock_offset(sender, 1_000, right.epoch).await.unwrap_err()));
        assert!(is_moved(&store.sender_numbers(right.epoch, &[("", "a")]).await.unwrap_err()));
    };
    refused().await;
    let each = |_: SeriesAt| panic!("rows of another server");
    assert_eq!(
        store.observe(Some(&seen), Some(&[String::new()]), &[], &[], each).await.unwrap_err().class(),
        Class::Moved
    );
    assert_eq!(store.resolve(&request, before, None).await.unwrap_err().class(), Class::Moved);
    assert!(store.look_at_server().await.unwrap());
    refused().await;
    assert_eq!(db.samples().await, 1);
    let resolved = store.resolve(&request, looked_up(), None).await.unwrap();
    let right = Right { epoch: resolved.epoch, ..right.clone() };
    assert_eq!(store.commit(Uuid::new_v4(), rows.clone(), right.clone()).await.unwrap(), Stored::Committed);
    assert!(!store.look_at_server().await.unwrap());
}

#[tokio::test]
async fn series_are_found_by_key_or_made_anew_by_labels() {
    let db = Database::new().await;
    let (store, _) = open(&db, None, false).await;
    let resolve = async |names: &[&str]| {
        let body = names.iter().fold(Body::new(), |body, name| body.sample(name, now_ms(), 1.0)).plain();
        let request = v1::decode(&body).unwrap();
        let looked_up = store.look_up(&request).unwrap();
        let resolved = store.resolve(&request, looked_up, None).await.unwrap();
        resolved.shares[0].rows.iter().map(|row| row.series_id).collect::<Vec<_>>()
    };
    let ids = resolve(&["same", "renumbered", "lost", "ended"]).await;
    let renumber = "ALTER TABLE metrics_series ALTER id SET GENERATED BY DEFAULT; \
                    UPDATE metrics_series SET id = id + 100 WHERE name = 'renumbered'; DELETE FROM metrics_series WHERE name = 'lost'; \
                    UPDATE metrics_series SET ended_at = now() WHERE name = 'ended'; \
                    INSERT INTO metrics_series (id, key, name, labels) SELECT 3, gen_random_uuid(), 'other', '{}'";
    db.run(renumber).await;
    replace_server(&db, "another").await;
    let (_, identities) = store.server().identities();
    assert!(store.look_at_server().await.unwrap());
    let asked = [ids.clone(), vec![4_711]].concat();
    let found = store.find_again(&asked, &identities, store.epoch()).await.unwrap();
    // And once more, before any request has named these series.
    let again: Vec<i64> = found.values().copied().collect();
    replace_server(&db, "a third").await;
    let (_, identities) = store.server().identities();
    assert!(store.look_at_server().await.unwrap());
    let found_again = store.find_again(&again, &identities, store.epoch()).await.unwrap();
    assert_eq!(found_again, again.iter().map(|id| (*id, *id)).collect::<HashMap<_, _>>());
    let now = resolve(&["same", "renumbered", "lost", "ended"]).await;
    let found: Vec<_> = asked.iter().map(|id| found.get(id).copied()).collect();
    let expected: HashSet<i64> = found.iter().flatten().copied().collect();
    assert_eq!((expected, found[4]), (now.iter().copied().collect(), None));
    assert_eq!((found[0], found[1], found[3]), (Some(ids[0]), Some(ids[1] + 100), Some(ids[3])));
    assert!(db.one::<bool>("SELECT bool_and(ended_at IS NULL) FROM metrics_series").await);
}

#[tokio::test]
async fn another_server_is_told_anew_how_far_a_clock_is_off() {
    let db = Database::new().await;
    let adapter = db.leader().await;
    assert_eq!(adapter.write(Body::new().sample("up", now_ms(), 1.0).compressed()).await.status, 204);
    db.wait("SELECT count(*) = 1 FROM metrics_senders WHERE sender_no > 0").await;
    for epoch in 0..2 {
        // The adapter measures an offset of almost zero here.
        db.run("UPDATE metrics_senders SET clock_offset_ms = 4711").await;
        replace_server(&db, &format!("server {epoch}")).await;
        db.wait("SELECT clock_offset_ms < 1000 FROM metrics_senders WHERE sender_no > 0").await;
    }
}

/// Copies the data of a stopped server.
async fn copy(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    let copied = tokio::task::spawn_blocking(move || command.status()).await.expect("the thread ends");
    let status = copied.expect("cp can be run");
    assert!(status.success());
}

#[tokio::test]
async fn an_older_copy_is_started_in_the_place_of_a_server() {
    let mut server = Postgres::start(postgres::Options::default()).await;
    let adapter = start(&adapter_at(&server.uri("postgres"))).await;
    let began_ms = now_ms() - 40 * STEP_MS;
    let send = async |metric: &str, number: i64| {
        let body = Body::new().sample(metric, began_ms + number * STEP_MS, 1.0).compressed();
        let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
        adapter.process().wait_until("it takes a request", SOON, taken).await;
    };
    send("known", 0).await;
    server.stop(Stop::Fast).await;
    let (data, older) = (server.data_directory(), server.data_directory().with_extension("older"));
    copy(&data, &older).await;
    server.start_again().await;
    for number in 1..5 {
        send("known", number).await;
    }
    let is_other = "the database server is another one";
    for series in 0..40 {
        send(&format!("lost_{series}"), 5).await;
    }
    server.stop(Stop::Immediate).await;
    std::fs::remove_dir_all(&data).expect("the server is stopped");
    std::fs::rename(&older, &data).expect("they are beside each other");
    server.start_again().await;
    for series in 0..40 {
        send(&format!("new_{series}"), 6).await;
        send(&format!("lost_{series}"), 6).await;
    }
    let client = server.connect("postgres").await;
    wait(&client, "SELECT count(*) = 5 FROM metrics WHERE name = 'known'").await;
    wait(&client, "SELECT count(*) = 80 AND count(DISTINCT (name, time)) = 80 FROM metrics WHERE name LIKE 'lost%'")
        .await;
    let each = "SELECT bool_and(n = 1) FROM (SELECT count(*) AS n FROM metrics WHERE name LIKE 'new%' GROUP BY name) AS of_each";
    wait(&client, each).await;
    adapter.process().wait_for_log(is_other, SOON).await;
}
