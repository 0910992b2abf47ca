//! Leaders by labels: several adapters on a real server, replicas that send to any of them, and faults of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rig::adapter::{Adapter, Options};
use rig::http::{Client, WRITE_HEADERS};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::setup::{Body, SOON, adapter_at, at, now_ms, start};

mod by_hand;
mod faulty;
mod many;
mod requests;
mod take_over;

/// Scrape interval of the replicas. Each replica has its own phase.
const STEP_MS: i64 = 50;

/// Timeout of a leading replica.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Options of an adapter that finds leaders by labels.
fn adapter(uri: &str, name: &str) -> Options {
    adapter_at(uri).name(name).arg("-metrics.high-availability").arg("-metrics.high-availability.timeout=2s")
}

/// Starts an adapter for each of `names`.
async fn adapters(uri: &str, names: &[&str]) -> Vec<Adapter> {
    let mut adapters = Vec::new();
    for name in names {
        adapters.push(start(&adapter(uri, name)).await);
    }
    adapters
}

/// URLs to which a replica sends, each request to the next one.
type Targets = Arc<Mutex<Vec<String>>>;

fn targets(adapters: &[&Adapter]) -> Targets {
    Arc::new(Mutex::new(adapters.iter().map(|adapter| adapter.url("/write")).collect()))
}

/// A replica as adapters see it: a sample every [`STEP_MS`] with its own timestamps, each sent until it is accepted.
struct Replica {
    paused: Arc<AtomicBool>,
    sent: Arc<Mutex<Option<Instant>>>,
    _task: JoinSet<()>,
}

impl Replica {
    fn start(cluster: &str, replica: &str, targets: &Targets) -> Self {
        let (paused, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let mut task = JoinSet::new();
        task.spawn(send(
            (cluster.to_owned(), replica.to_owned()),
            Arc::clone(targets),
            Arc::clone(&paused),
            Arc::clone(&sent),
        ));
        Self { paused, sent, _task: task }
    }

    /// Stops scraping and sending from now on. The connections stay open.
    fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    /// Time of the response to the last request.
    fn sent(&self) -> Instant {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).expect("it has sent")
    }
}

/// A request with one series of `cluster`, as `replica` sends it.
fn body(cluster: &str, replica: &str, times_ms: &[i64]) -> Body {
    of(Body::new(), cluster, replica, times_ms)
}

/// Adds another series to a request.
fn of(body: Body, cluster: &str, replica: &str, times_ms: &[i64]) -> Body {
    let labels = [("__name__", "ticks"), ("__replica__", replica), ("cluster", cluster)];
    let samples: Vec<_> = times_ms.iter().map(|time_ms| at(*time_ms, number(replica))).collect();
    body.series(&labels, &samples)
}

/// Value of the samples of a replica.
fn number(replica: &str) -> f64 {
    replica.bytes().map(f64::from).sum()
}

async fn send(
    (cluster, replica): (String, String),
    targets: Targets,
    paused: Arc<AtomicBool>,
    sent: Arc<Mutex<Option<Instant>>>,
) {
    let client = Client::new(Duration::from_secs(30));
    let phase_ms = replica.bytes().map(i64::from).sum::<i64>() * 7 % STEP_MS;
    let mut next_ms = (now_ms() / STEP_MS + 1) * STEP_MS + phase_ms;
    let mut turn = 0;
    let mut ticker = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticker.tick().await;
        let due = now_ms();
        if paused.load(Ordering::SeqCst) || next_ms > due {
            continue;
        }
        let times: Vec<i64> = (0..).map(|n| next_ms + n * STEP_MS).take_while(|time_ms| *time_ms <= due).collect();
        next_ms = times.last().map_or(next_ms, |last_ms| last_ms + STEP_MS);
        let body = body(&cluster, &replica, &times).compressed();
        loop {
            let url = {
                let targets = targets.lock().unwrap_or_else(PoisonError::into_inner);
                targets[turn % targets.len()].clone()
            };
            turn += 1;
            match client.post(&url, &WRITE_HEADERS, body.clone()).await.map(|answer| answer.status) {
                Ok(204) => break,
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
                Ok(other) => panic!("a write was answered {other}"),
            }
        }
        *sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Returns the clusters in an adapter's status, by name.
async fn clusters(adapter: &Adapter) -> BTreeMap<String, Value> {
    let status: Value = serde_json::from_str(&adapter.status().await.unwrap_or_default()).unwrap_or_default();
    let clusters = status["clusters"].as_array().cloned().unwrap_or_default();
    clusters.into_iter().map(|one| (one["cluster"].as_str().unwrap_or_default().to_owned(), one)).collect()
}

/// Returns the leading replica according to an adapter.
async fn leader(adapter: &Adapter, cluster: &str) -> Option<String> {
    Some(clusters(adapter).await.get(cluster)?["leader"]["replica"].as_str()?.to_owned())
}

/// Waits until an adapter knows that `replica` leads, and returns the time at which it knew.
async fn wait_leader(adapter: &Adapter, cluster: &str, replica: &str) -> Instant {
    let leads = async || (leader(adapter, cluster).await.as_deref() == Some(replica)).then(Instant::now);
    adapter.process().wait_until(&format!("{replica} leads {cluster}"), SOON, leads).await
}

/// Waits until more than `count` samples are stored.
async fn wait_stored(client: &tokio_postgres::Client, cluster: &str, value: f64, count: i64) {
    let sql = "SELECT count(*) FROM metrics WHERE labels ->> 'cluster' = $1 AND value = $2";
    let stored = async {
        while client.query_one(sql, &[&cluster, &value]).await.expect("the view answers").get::<_, i64>(0) <= count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, stored).await.unwrap_or_else(|_| panic!("no {count} samples of {cluster} ({value})"));
}

/// Checks that no sample is missing once every adapter has stored its part, that no sample is stored twice, and that
/// the leader changes at most `changes` times. Returns the values of the replicas that led, in order.
async fn check_stored(client: &tokio_postgres::Client, cluster: &str, changes: usize) -> Vec<f64> {
    let sql = "SELECT (extract(epoch FROM time) * 1000)::bigint, value FROM metrics WHERE labels ->> 'cluster' = $1 \
               AND time <= $2 ORDER BY 1";
    let until = SystemTime::now();
    let ends = Instant::now() + SOON;
    let stored = loop {
        let rows = client.query(sql, &[&cluster, &until]).await.expect("the view answers");
        let stored: Vec<(i64, f64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        match faults(&stored) {
            Ok(()) => break stored,
            Err(fault) if Instant::now() > ends => panic!("{fault}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let mut leaders: Vec<f64> = stored.iter().map(|(_, value)| *value).collect();
    leaders.dedup();
    let terms = "SELECT term FROM metrics_leader WHERE group_name = 'cluster ' || $1";
    let terms: i64 = client.query_one(terms, &[&cluster]).await.expect("it has a row").get(0);
    assert!(terms <= i64::try_from(changes).unwrap_or(0) + 1, "{terms} terms, {leaders:?}");
    leaders
}

/// Returns the first fault in the stored samples.
fn faults(stored: &[(i64, f64)]) -> Result<(), String> {
    if stored.len() <= 10 {
        return Err(format!("{} samples", stored.len()));
    }
    for (at, two) in stored.windows(2).enumerate() {
        let step_ms = two[1].0 - two[0].0;
        let around = &stored[at.saturating_sub(9)..stored.len().min(at + 9)];
        let is_of_one = two[0].1.total_cmp(&two[1].1).is_eq();
        if step_ms <= 0 || (!is_of_one && step_ms <= STEP_MS / 2) {
            return Err(format!("{two:?} are stored twice: {around:?}"));
        }
        // After a change of the leader, the next leader's sample is in the next slot, whatever its phase.
        if step_ms > STEP_MS + STEP_MS / 2 {
            return Err(format!("something is missing between {two:?}: {around:?}"));
        }
    }
    Ok(())
}
