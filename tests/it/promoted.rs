//! The server may become another one: a replica that lacks the latest of what was acknowledged is promoted. No sample is stored under
//! another series, and what an adapter acknowledged within the last minute is stored again.

use futures_util::future::join_all;
use rig::adapter::{Adapter, Options};
use rig::postgres::{self, Postgres, Stop};
use tokio_postgres::Client;

use crate::election::candidate;
use crate::setup::{Body, SOON, adapter_at, now_ms, one, start};

/// A server, a replica of it that follows asynchronously, and adapters that are sent the same series.
struct Scene {
    primary: Postgres,
    replica: Postgres,
    adapters: Vec<Adapter>,
    /// Labels say who sends: each request comes by the next adapter.
    by_labels: bool,
    /// When the series of [`scrape`] began.
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

    /// Every sender sends a sample of each series, those of the scrape `number`, until it is taken.
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
                body = body.series(&labels, &[sample]);
            }
            let body = body.compressed();
            let turn = if self.by_labels { usize::try_from(number).expect("it counts") } else { 0 };
            let adapter = &self.adapters[(sender + turn) % self.adapters.len()];
            let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
            adapter.process().wait_until("it takes a request", SOON, taken).await;
        });
        join_all(sent).await;
    }

    /// The replica has what the primary has, and gets no more.
    async fn cut_off(&self) -> Client {
        let (primary, replica) = (self.primary.connect("postgres").await, self.replica.connect("postgres").await);
        let behind: String = one(&primary, "SELECT pg_current_wal_lsn()::text").await;
        wait(&replica, &format!("SELECT pg_last_wal_replay_lsn() >= '{behind}'")).await;
        replica.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.expect("a superuser's setting");
        replica.batch_execute("SELECT pg_reload_conf()").await.expect("a superuser may");
        wait(&replica, "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)").await;
        replica
    }

    /// The primary is lost, and the replica takes its place.
    async fn promote(&mut self, replica: &Client) {
        self.primary.stop(Stop::Immediate).await;
        replica.batch_execute("SELECT pg_promote()").await.expect("a replica can be promoted");
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

/// Names of series, so many of a kind that the sequence of ids, which a replica knows 32 ahead, comes to be used twice.
fn series(kind: &str) -> Vec<String> {
    (0..40).map(|n| format!("{kind}_{n}")).collect()
}

/// What is stored in the place of what was sent, if anything is wrong with it.
async fn faults(client: &Client, scene: &Scene, sent: &[(&str, Vec<i64>)]) -> Vec<String> {
    let mut faults = Vec::new();
    for (kind, numbers) in sent {
        for name in series(kind) {
            let sql = "SELECT (extract(epoch FROM time) * 1000)::bigint FROM metrics WHERE name = $1 ORDER BY 1";
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

/// The replica lacks the last new series and samples; then others are made.
async fn check_promoted(mut scene: Scene) {
    let (known, lost, new) = (series("known"), series("lost"), series("new"));
    for number in 0..6 {
        scene.scrape(&known, number).await;
    }
    let replica = scene.cut_off().await;
    let both = [known.clone(), lost.clone()].concat();
    for number in 6..12 {
        scene.scrape(&both, number).await;
    }
    scene.promote(&replica).await;
    for number in 12..15 {
        // These get the ids that the lost ones had.
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
