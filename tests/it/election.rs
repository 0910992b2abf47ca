//! The election: two adapters on a real server, and faults of either of them.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rig::adapter::{Adapter, Options};
use rig::http::{Client, WRITE_HEADERS};
use rig::postgres::Postgres;
use tokio::task::JoinSet;

use crate::setup::{Body, SOON, adapter_at, now_ms, one};

pub(crate) mod by_hand;
mod frozen;
mod lease;
mod lock;
mod rest;
mod take_over;
mod unsupported;
mod write_path;

/// Lock id of all groups in these tests. Each group has its own database, and an advisory lock belongs to one database.
const LOCK: i64 = 1;

/// Maximum duration of a take-over.
const SECOND: Duration = Duration::from_secs(1);

/// The session that holds the group's lock in the current database.
const HOLDER: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = 0 \
    AND objid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// True if a write waits for the table. Autovacuum may wait, too, and does not count.
const WRITE_WAITS: &str = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) \
    WHERE relation = 'metrics_hot'::regclass AND NOT granted AND query LIKE 'COPY%')";

/// Options of a candidate for the group's lock at `uri`.
pub(crate) fn candidate(uri: &str, name: &str) -> Options {
    adapter_at(uri).name(name).arg(format!("-leader-election-pg-advisory-lock-id={LOCK}"))
}

/// An adapter and a replacement for its Prometheus.
struct Member {
    adapter: Adapter,
    sender: Sender,
}

impl Member {
    /// Starts an adapter whose Prometheus sends.
    async fn start(options: &Options, series: &str) -> Self {
        let adapter = options.start().await;
        let sender = Sender::start(&adapter, series);
        Self { adapter, sender }
    }

    async fn wait(&self, role: &str) {
        self.adapter.wait_role(role, SOON).await;
    }

    /// Waits for the log line that says that the adapter leads, after the first `seen` lines. Returns the time since
    /// `since`.
    async fn leads_after(&self, seen: usize, since: Instant) -> Duration {
        self.adapter.process().wait_for_log_after(seen, "became leader", SOON).await;
        since.elapsed()
    }

    /// Waits until the adapter has accepted a sample as leader.
    async fn takes(&self) {
        let took = async || (!self.sender.acknowledged().by_leader.is_empty()).then_some(());
        self.adapter.process().wait_until("it takes something as leader", SOON, took).await;
    }

    fn log_len(&self) -> usize {
        self.adapter.process().log().len()
    }
}

/// Returns the end of the log line that says that the leader is unknown for `reason`.
fn role_unknown(reason: &str) -> String {
    format!(r#"msg="role unknown: write requests are answered 503" reason="{reason}""#)
}

/// Starts a leader and a standby.
async fn pair(uri: &str, arguments: &[&str]) -> (Member, Member) {
    let options = |name| arguments.iter().fold(candidate(uri, name), |options, argument| options.arg(*argument));
    let a = Member::start(&options("adapter a"), "a").await;
    a.wait("leader").await;
    let b = Member::start(&options("adapter b"), "b").await;
    b.wait("standby").await;
    a.takes().await;
    (a, b)
}

/// Waits until one of the two leads and the other is standby.
async fn wait_settled(a: &Member, b: &Member) {
    let settled = async || {
        let roles = (a.adapter.role().await, b.adapter.role().await);
        matches!((roles.0.as_deref()?, roles.1.as_deref()?), ("leader", "standby") | ("standby", "leader"))
            .then_some(())
    };
    a.adapter.process().wait_until("one leads and one stands by", SOON, settled).await;
}

/// A Prometheus as an adapter sees it: one series, a sample every 50 ms, each sent until it is accepted.
struct Sender {
    paused: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    _task: JoinSet<()>,
}

#[derive(Clone, Debug, Default)]
struct Acknowledged {
    /// Times of samples that the adapter accepted while it led.
    by_leader: Vec<i64>,
    all: usize,
    last: Option<Instant>,
}

impl Sender {
    fn start(adapter: &Adapter, series: &str) -> Self {
        let paused = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        let mut task = JoinSet::new();
        task.spawn(send(
            Client::new(Duration::from_secs(30)),
            (adapter.url("/write"), adapter.url("/status.json")),
            series.to_owned(),
            Arc::clone(&paused),
            Arc::clone(&acknowledged),
        ));
        Self { paused, acknowledged, _task: task }
    }

    /// Stops sending. A request under way may still arrive.
    fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn send(
    client: Client,
    (url, status_url): (String, String),
    series: String,
    paused: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
) {
    let status = async || client.get(&status_url).await.map(|answer| answer.text()).unwrap_or_default();
    // The term, which does not change as long as the adapter leads.
    let term_led = |status: &str| {
        let term = status.split_once("\"term\":")?.1.split(',').next()?.to_owned();
        status.contains("\"role\":\"leader\"").then_some(term)
    };
    let mut ticker = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticker.tick().await;
        if paused.load(Ordering::SeqCst) {
            continue;
        }
        let timestamp = now_ms();
        let body = Body::new().sample(&format!("from_{series}"), timestamp, 1.0).compressed();
        loop {
            let before = status().await;
            let answer = client.post(&url, &WRITE_HEADERS, body.clone()).await;
            match answer.map(|answer| answer.status) {
                Ok(204) => {
                    let after = status().await;
                    let mut acknowledged = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                    acknowledged.all += 1;
                    acknowledged.last = Some(Instant::now());
                    if term_led(&before).is_some() && term_led(&before) == term_led(&after) {
                        acknowledged.by_leader.push(timestamp);
                    }
                    break;
                }
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
                Ok(other) => panic!("a write was answered {other}"),
            }
            if paused.load(Ordering::SeqCst) {
                break;
            }
        }
    }
}

/// Checks that every sample that `member` accepted as leader is stored, and none twice.
async fn check_stored(client: &tokio_postgres::Client, member: &Member, series: &str) {
    let acknowledged = member.sender.acknowledged().by_leader;
    assert!(!acknowledged.is_empty(), "the leader took nothing");
    let sql = format!(
        "SELECT (extract(epoch FROM time) * 1000)::bigint FROM metrics WHERE name = 'from_{series}' ORDER BY 1"
    );
    let rows = client.query(&sql, &[]).await.expect("the view answers");
    let stored: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let missing: Vec<_> = acknowledged.iter().filter(|time| stored.binary_search(time).is_err()).collect();
    assert!(
        missing.is_empty(),
        "{} of {} acknowledged samples are missing: {missing:?}",
        missing.len(),
        acknowledged.len()
    );
    assert!(stored.windows(2).all(|two| two[0] < two[1]), "a sample is stored twice");
}

/// Waits until a query of one boolean returns true.
async fn wait_true(client: &tokio_postgres::Client, sql: &str) {
    let poll = async {
        while !one::<bool>(client, sql).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, poll).await.unwrap_or_else(|_| panic!("never true: {sql}"));
}

/// Prints how long something took, for `--nocapture`.
fn report(what: &str, took: Duration) {
    let _ = writeln!(std::io::stdout(), "{what}: {} ms", took.as_millis());
}

/// Starts a server and opens a session, for a test whose actions other tests must not notice.
async fn own_server(options: rig::postgres::Options) -> (Postgres, tokio_postgres::Client) {
    let server = Postgres::start(options).await;
    let client = server.connect("postgres").await;
    (server, client)
}
