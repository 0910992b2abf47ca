//! Many clusters on two adapters, one of which is killed: how soon all are led again, and what that asks of the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rig::adapter::{self, Adapter};
use rig::http::{Client, WRITE_HEADERS};
use rig::postgres::{Options, Postgres};
use tokio::task::JoinSet;

use crate::load::one_sample;
use crate::store::Setup;
use crate::verdict::Verdicts;

const CLUSTERS: usize = 1_000;

/// Each replica sends a sample so often.
const INTERVAL: Duration = Duration::from_secs(2);

/// Of a leading replica.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to each adapter, as of a load balancer that sends a replica's requests to one of them.
const CONNECTIONS: usize = 16;

/// How long all may take to be led at first, and again.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time for usual pauses and watermarks to be known.
const SETTLING: Duration = Duration::from_secs(15);

/// The account of the adapters, by which their statements are told from ours.
const ACCOUNT: &str = "adapter";

/// Clusters in which a replica leads, and that the adapter to which it sends has begun to store.
const LED: &str = "SELECT DISTINCT substr(l.group_name, 9) FROM metrics_leader l
    JOIN (SELECT unnest(tokens) AS token, unnest(begun) AS begun FROM metrics_reports
          WHERE reported_at > clock_timestamp() - interval '3 seconds') r ON r.token = l.token AND r.begun
    WHERE l.holder = $1";

/// Statements of the adapters so far.
const STATEMENTS: &str = "SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements s
    JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = $1";

/// When each cluster's replica was last answered.
type Answered = Arc<Mutex<Vec<Option<SystemTime>>>>;

/// Measures.
pub(crate) async fn many(setup: &Setup, verdicts: &mut Verdicts) {
    println!("\n{CLUSTERS} clusters on two adapters ...");
    let postgres = Postgres::start(Options::durable().with("shared_preload_libraries", "pg_stat_statements")).await;
    let client = postgres.connect("postgres").await;
    let prepare = format!("CREATE EXTENSION pg_stat_statements; CREATE ROLE {ACCOUNT} SUPERUSER LOGIN");
    client.batch_execute(&prepare).await.expect("cannot prepare the server");
    let [one, other] = [start(setup, &postgres).await, start(setup, &postgres).await];
    let leading = Answered::default();
    let mut senders = send("a", &one, &leading);
    led(&client, "a", CLUSTERS, |_| ()).await;
    let _others = send("b", &other, &Answered::default());
    tokio::time::sleep(SETTLING).await;
    let statements =
        async || client.query_one(STATEMENTS, &[&ACCOUNT]).await.expect("cannot count statements").get::<_, i64>(0);

    let before = statements().await;
    one.process().kill9().await;
    senders.shutdown().await;
    let answered = leading.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut beyond = HashMap::new();
    led(&client, "b", CLUSTERS, |cluster| {
        beyond.entry(cluster).or_insert_with_key(|cluster: &String| {
            let answered = cluster.parse::<usize>().ok().and_then(|cluster| answered[cluster]).expect("it has led");
            answered.elapsed().unwrap_or_default().as_secs_f64() - TIMEOUT.as_secs_f64()
        });
    })
    .await;
    for line in other.process().log().lines() {
        println!("  it said: {line}");
    }
    let statements = (statements().await - before) as f64 / CLUSTERS as f64;
    let mut beyond: Vec<f64> = beyond.into_values().collect();
    beyond.sort_unstable_by(f64::total_cmp);
    verdicts.note("1,000 clusters, one of two adapters killed: s from timeout to led, median", beyond[CLUSTERS / 2]);
    verdicts.at_most("... the slowest", 2.0, beyond[CLUSTERS - 1]);
    verdicts.below("... statements per cluster, all of the adapter's meanwhile", 5.0, statements);
}

async fn start(setup: &Setup, postgres: &Postgres) -> Adapter {
    let binary = setup.binary.clone().unwrap_or_else(adapter::binary_beside_this);
    let options = adapter::Options::new(binary)
        .arg(format!("-pg-uri={}", postgres.uri_as(ACCOUNT, "postgres")))
        .arg("-metrics-high-availability")
        .arg(format!("-metrics-high-availability-timeout={}s", TIMEOUT.as_secs()))
        .arg("-log-level=warn");
    options.start().await
}

/// Has `replica` of each cluster send to an adapter, until that is gone.
fn send(replica: &'static str, adapter: &Adapter, answered: &Answered) -> JoinSet<()> {
    answered.lock().unwrap_or_else(PoisonError::into_inner).resize(CLUSTERS, None);
    let mut senders = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (url, answered, client) = (adapter.url("/write"), Arc::clone(answered), Client::default());
        senders.spawn(async move {
            let own = (connection..CLUSTERS).step_by(CONNECTIONS);
            let mut ticker = tokio::time::interval(INTERVAL / u32::try_from(own.len()).unwrap_or(1));
            for cluster in own.cycle() {
                ticker.tick().await;
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let body = one_sample(&cluster.to_string(), replica, now.as_millis().try_into().unwrap_or(i64::MAX));
                // One that is not taken comes with the next: only who leads when is measured here.
                if let Ok(answer) = client.post(&url, &WRITE_HEADERS, body).await
                    && answer.status == 204
                {
                    answered.lock().unwrap_or_else(PoisonError::into_inner)[cluster] = Some(SystemTime::now());
                }
            }
        });
    }
    senders
}

/// Waits until `replica` leads in `count` clusters, and names each in which it is seen to.
async fn led(client: &tokio_postgres::Client, replica: &str, count: usize, mut seen: impl FnMut(String)) {
    let began = Instant::now();
    loop {
        // There are no tables at first.
        let rows = client.query(LED, &[&replica]).await.unwrap_or_default();
        for row in &rows {
            seen(row.get(0));
        }
        if rows.len() >= count {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{} of {count} clusters are led by {replica} after {PATIENCE:?}",
            rows.len()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
