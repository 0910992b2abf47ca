//! A stopped process is not dead: the server's clock ends its lead, and the fence ends its writes.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{HOLDER, Member, WRITE_WAITS, candidate, pair, report, role_unknown, wait_true};
use crate::setup::{Body, Database, SOON, adapter_at, now_ms, one, start};

/// The shortest lease that is allowed.
const LEASE: Duration = Duration::from_secs(3);

/// Sends a sample without waiting for the response.
pub(super) fn write_in_background(adapter: &rig::adapter::Adapter, metric: &str) -> JoinSet<Option<u16>> {
    let url = adapter.url("/write");
    let body = Body::new().sample(metric, now_ms(), 1.0).compressed();
    let mut answer = JoinSet::new();
    answer.spawn(async move {
        let client = rig::http::Client::default();
        client.post(&url, &rig::http::WRITE_HEADERS, body).await.ok().map(|answer| answer.status)
    });
    answer
}

#[tokio::test]
async fn a_leader_frozen_beyond_its_lease_stores_nothing_of_its_term() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-lease=3s"]).await;
    a.sender.pause();
    let holder: i32 = db.one(HOLDER).await;
    a.adapter.process().pause();
    let (seen, since) = (b.log_len(), Instant::now());
    // The request lies in the socket of a process that still believes that it leads.
    let mut answer = write_in_background(&a.adapter, "late");
    let took = b.leads_after(seen, since).await;
    report("take-over from a frozen leader (lease 3 s)", took);
    assert!(took < LEASE + Duration::from_millis(500), "{took:?}");
    assert!(b.adapter.process().log().contains(&role_unknown("leader_stale")), "stood by behind a frozen leader");
    assert_ne!(db.one::<i32>(HOLDER).await, holder);
    a.adapter.process().resume();
    let answer = tokio::time::timeout(SOON, answer.join_next()).await.expect("an answer comes");
    // Whatever the response is, the old term does not store the sample.
    report(&format!("a write of the old term is answered {answer:?}"), Duration::ZERO);
    a.wait("standby").await;
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'late'").await, 0);
    assert_eq!(b.adapter.role().await.as_deref(), Some("leader"));
}

/// Sessions of the server that are stopped. They go on when this is dropped.
struct Stopped(Vec<i32>);

impl Stopped {
    fn signal(&self, signal: &str) -> bool {
        let pids = self.0.iter().map(i32::to_string);
        std::process::Command::new("kill").arg(signal).args(pids).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[tokio::test]
async fn a_take_over_does_not_wait_for_a_connection_without_answer() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-lease=3s"]).await;
    // As after a network failure, of which TCP learns late.
    let observing = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%''observers''%' \
                     AND pid <> pg_backend_pid()";
    wait_true(&db.client, &observing.replace("SELECT pid", "SELECT count(*) = 2")).await;
    let stopped = Stopped(db.column(observing).await);
    assert!(stopped.signal("-STOP"));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (seen, since) = (b.log_len(), Instant::now());
    a.adapter.process().kill9().await;
    let took = b.leads_after(seen, since).await;
    report("take-over with an observation under way that gets no answer", took);
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(stopped);
}

#[tokio::test]
async fn a_transaction_frozen_half_way_never_commits() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-lease=3s"]).await;
    a.sender.pause();
    let block = db.session().await;
    block.batch_execute("BEGIN; LOCK TABLE metrics_hot IN SHARE MODE").await.expect("the table can be locked");
    let mut answer = write_in_background(&a.adapter, "half_way");
    wait_true(&db.client, WRITE_WAITS).await;
    a.adapter.process().pause();
    let (seen, since) = (b.log_len(), Instant::now());
    block.batch_execute("COMMIT").await.expect("a commit works");
    let idle = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
        AND (state = 'idle in transaction' OR wait_event = 'ClientRead' AND xact_start IS NOT NULL))";
    wait_true(&db.client, idle).await;
    let took = b.leads_after(seen, since).await;
    report("take-over from a leader frozen in a transaction (lease 3 s)", took);
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    // The new leader ends the transaction, or its own timeout does.
    wait_true(&db.client, &format!("SELECT NOT ({})", idle.trim_start_matches("SELECT "))).await;
    a.adapter.process().resume();
    let answer = tokio::time::timeout(SOON, answer.join_next()).await.expect("an answer comes");
    assert_eq!(answer.map(Result::unwrap), Some(Some(503)), "acknowledged, and rolled back");
    a.wait("standby").await;
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'half_way'").await, 0);
}

#[tokio::test]
async fn behind_a_frozen_leader_nothing_is_thrown_away() {
    let db = Database::new().await;
    // The server would end the frozen leader's session only after most of a minute.
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-lease=1m"]).await;
    a.adapter.process().pause();
    b.wait("unknown").await;
    b.sender.pause();
    let answer = b.adapter.write(Body::new().sample("kept", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let ready = b.adapter.get("/-/ready").await.expect("it answers");
    assert_eq!(ready.status, 503);
    // A pause that is shorter than the lease changes nothing.
    a.adapter.process().resume();
    b.wait("standby").await;
    a.wait("leader").await;
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1);
}

#[tokio::test]
async fn a_heartbeat_of_the_future_is_none() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let a = Member::start(&candidate(&uri, "adapter a"), "a").await;
    a.wait("leader").await;
    a.adapter.process().kill9().await;
    let stranger = db.session().await;
    wait_true(&stranger, "SELECT pg_try_advisory_lock(1)").await;
    db.run("UPDATE metrics_leader SET heartbeat = now() + interval '40 days'").await;
    let b = Member::start(&candidate(&uri, "adapter b"), "b").await;
    b.adapter.process().wait_for_log("the lock is held by a session that shows no heartbeat", SOON).await;
    b.wait("unknown").await;
}

#[tokio::test]
async fn a_lock_in_strange_hands_is_nobodys_lead() {
    let db = Database::new().await;
    // An adapter of an earlier version, for example, has the same lock and no heartbeat.
    let stranger = db.session().await;
    let take = "SET application_name = 'intruder <1>'; SELECT pg_try_advisory_lock(1)";
    stranger.batch_execute(take).await.expect("the lock is free");
    let pid: i32 = one(&stranger, "SELECT pg_backend_pid()").await;
    let adapter = candidate(&db.server.uri(&db.name), "adapter").start().await;
    adapter
        .process()
        .wait_until("it has a group", SOON, async || {
            let text = adapter.status().await?;
            text.contains("\"group\":\"lock 1\"").then_some(())
        })
        .await;
    adapter.wait_role("resigned", SOON).await;
    let answer = adapter.write(Body::new().sample("first", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(adapter.role().await.as_deref(), Some("unknown"));
    assert_eq!(db.samples().await, 0);
    // The holder is named once.
    let named = format!(r#"group="lock 1" pid={pid} application_name="intruder <1>" client="127.0.0.1""#);
    let line = adapter.process().wait_for_log("is held by a session", SOON).await;
    assert!(line.contains(&named), "{line}");
    let status: serde_json::Value = serde_json::from_str(&adapter.status().await.expect("it answers")).unwrap();
    let expected = serde_json::json!({
        "pid": pid, "application_name": "intruder <1>", "client_address": "127.0.0.1"
    });
    assert_eq!(status["lock_holder"], expected);
    let page = adapter.get("/").await.expect("it answers").text();
    assert!(page.contains(&format!("pid {pid}")) && page.contains("intruder &lt;1&gt;"), "{page}");
    stranger.batch_execute("SELECT pg_advisory_unlock(1)").await.expect("the lock is held");
    adapter.wait_role("leader", SOON).await;
    let answer = adapter.write(Body::new().sample("first", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let status: serde_json::Value = serde_json::from_str(&adapter.status().await.expect("it answers")).unwrap();
    assert!(status["lock_holder"].is_null(), "{status}");
    let lines = adapter.process().log().lines();
    assert_eq!(lines.iter().filter(|line| line.contains("is held by a session")).count(), 1);
    // And the other way round.
    let row = stranger.query_one("SELECT pg_try_advisory_lock(1)", &[]).await.expect("the lock can be tried");
    assert!(!row.get::<_, bool>(0), "an adapter of before would lead, too");
    drop(start(&db.adapter()).await);
}

#[tokio::test]
async fn an_ordinary_user_learns_who_holds_the_lock() {
    let db = Database::new().await;
    let role = format!("ordinary_{}", db.name);
    db.run(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}")).await;
    // A key of more than 32 bits, and a key that differs from it only in the upper half.
    let (key, other_key) = (7 * (1_i64 << 32) + 3_000_000_000, 8 * (1_i64 << 32) + 3_000_000_000);
    let (other, first, second) = (db.session().await, db.session().await, db.session().await);
    let take = |name, key| format!("SET application_name = '{name}'; SELECT pg_advisory_lock({key})");
    other.batch_execute(&take("other", other_key)).await.expect("the lock is free");
    first.batch_execute(&take("intruder", key)).await.expect("the lock is free");
    let [first_pid, second_pid] =
        [one::<i32>(&first, "SELECT pg_backend_pid()").await, one::<i32>(&second, "SELECT pg_backend_pid()").await];
    let options = adapter_at(&db.server.uri_as(&role, &db.name));
    let member = Member::start(&options.arg(format!("-leader-election-pg-advisory-lock-id={key}")), "a").await;
    let process = member.adapter.process();
    let line = process.wait_for_log("is held by a session", SOON).await;
    assert!(line.contains(&format!(r#"pid={first_pid} application_name="intruder""#)), "{line}");
    assert!(!line.contains("client="), "the server does not tell it an ordinary user: {line}");
    // The next holder is logged again. It waits for the lock, so that the adapter does not get the lock in between.
    let seen = member.log_len();
    let (waiting, ended) = (take("successor", key), format!("SELECT pg_terminate_backend({first_pid})"));
    let deed = async {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
        wait_true(&db.client, waits).await;
        db.run(&ended).await;
    };
    let (taken, ()) = futures_util::future::join(second.batch_execute(&waiting), deed).await;
    taken.expect("the lock is given on");
    let line = process.wait_for_log_after(seen, "is held by a session", SOON).await;
    assert!(line.contains(&format!(r#"pid={second_pid} application_name="successor""#)), "{line}");
}
