//! Many clusters at once.

use std::time::{Duration, Instant};

use rig::adapter::Adapter;
use rig::http::{Client, WRITE_HEADERS};
use rig::postgres::{Options, Postgres};
use tokio::task::JoinSet;

use super::{TIMEOUT, adapter, of};
use crate::setup::{Body, SOON, now_ms, start};

const CLUSTERS: usize = 40;

/// Limit for the statements that the take-overs cost the adapter, per cluster; there is one take-over per cluster.
/// Counted are its statements about groups, leaders and hot rows until it has taken over, minus those in the same time
/// without a take-over.
const STATEMENTS: i64 = 1;

/// Role of this adapter, which tells its statements from all others.
const ACCOUNT: &str = "adapter";

/// Sends samples of `replica` for all clusters to an adapter, whatever it answers: all in one request, as from a
/// gateway.
fn send(replica: &'static str, adapter: &Adapter) -> JoinSet<()> {
    let (url, client) = (adapter.url("/write"), Client::new(SOON));
    let mut senders = JoinSet::new();
    senders.spawn(async move {
        let mut ticker = tokio::time::interval(Duration::from_millis(300));
        loop {
            ticker.tick().await;
            let add = |body, cluster| of(body, &format!("c{cluster}"), replica, &[now_ms()]);
            let body = (0..CLUSTERS).fold(Body::new(), add).compressed();
            let _ = client.post(&url, &WRITE_HEADERS, body).await;
        }
    });
    senders
}

/// Waits until `replica` leads in all clusters.
async fn wait_led(client: &tokio_postgres::Client, replica: &str) {
    let statement = "SELECT count(*) FROM metrics_leader WHERE holder = $1";
    let led = async {
        // The tables do not exist at first.
        let led = async || client.query_one(statement, &[&replica]).await.map(|row| row.get::<_, i64>(0)).unwrap_or(0);
        while led().await < i64::try_from(CLUSTERS).unwrap_or(i64::MAX) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, led).await.unwrap_or_else(|_| panic!("{replica} does not lead in all clusters"));
}

#[tokio::test]
async fn a_take_over_of_many_clusters_asks_little_of_the_database() {
    let server = Postgres::start(Options::default().with("shared_preload_libraries", "pg_stat_statements")).await;
    let client = server.connect("postgres").await;
    let prepare = format!("CREATE EXTENSION pg_stat_statements; CREATE ROLE {ACCOUNT} SUPERUSER LOGIN");
    client.batch_execute(&prepare).await.expect("PostgreSQL comes with pg_stat_statements");
    let uri = server.uri_as(ACCOUNT, "postgres");
    let one = start(&adapter(&server.uri("postgres"), "adapter a")).await;
    let other = start(&adapter(&uri, "adapter b")).await;
    let leading = send("r1", &one);
    wait_led(&client, "r1").await;
    let _others = send("r2", &other);
    let holds = async || (other.metric("standby_held_samples").await >= Some(CLUSTERS as f64)).then_some(());
    other.process().wait_until("it holds", SOON, holds).await;
    let count = async || {
        let statement = "SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid \
                         WHERE r.rolname = $1 AND s.query ~ 'metrics_(leader|take_over|reports|senders|hot)'";
        client.query_one(statement, &[&ACCOUNT]).await.expect("it counts").get::<_, i64>(0)
    };
    let (start, begin) = (count().await, Instant::now());
    tokio::time::sleep(2 * TIMEOUT).await;
    let (before, killed) = (count().await, Instant::now());
    let each_second = (before - start) as f64 / begin.elapsed().as_secs_f64();
    one.process().kill9().await;
    drop(leading);
    wait_led(&client, "r2").await;
    let anyway = (each_second * killed.elapsed().as_secs_f64()) as i64;
    let asked = count().await - before - anyway;
    let by_statement = "SELECT string_agg(s.calls || ' times ' || left(s.query, 150), E'\n' ORDER BY s.calls DESC) \
                        FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = $1";
    let row = client.query_one(by_statement, &[&ACCOUNT]).await.expect("it counts");
    println!("all since the start:\n{}", row.get::<_, String>(0));
    println!("{asked} statements for {CLUSTERS} take-overs, and {anyway} anyway");
    assert!(asked < STATEMENTS * i64::try_from(CLUSTERS).unwrap_or(0), "{asked} statements");
}
