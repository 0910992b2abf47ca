//! One adapter ends or goes silent, and the other leads.

use std::time::{Duration, Instant};

use rig::adapter::{Adapter, Options};
use rig::postgres::{self, Stop};
use rig::process::Exit;
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::{
    HOLDER, Member, SECOND, WRITE_WAITS, candidate, check_stored, own_server, pair, report, wait_settled, wait_true,
};
use crate::setup::{BINARY, Body, Database, SOON, now_ms, one};

#[tokio::test]
async fn two_command_lines_give_a_leader_and_a_standby() {
    let db = Database::new().await;
    let line = |options: Options| {
        options
            .arg("-log.level=debug")
            .arg("-leader-election.pg-advisory-lock-id=1")
            .arg("-leader-election.pg-advisory-lock.prometheus-timeout=6s")
            .env("TS_PROM_PG_HOST", "127.0.0.1")
            .env("TS_PROM_PG_PORT", &db.server.port().to_string())
            .env("TS_PROM_PG_DATABASE", &db.name)
    };
    let a = Member::start(&line(Options::new(BINARY)), "a").await;
    let port = rig::port::free();
    let second = Options::new(BINARY).port(port).arg(format!("-web.listen-address=:{port}"));
    let b = Member::start(&line(second), "b").await;
    wait_settled(&a, &b).await;
    let process = a.adapter.process();
    process.wait_for_log(r#"group="lock 1""#, SOON).await;
    let holders: Vec<i32> = db.column(HOLDER).await;
    assert_eq!(holders.len(), 1, "{holders:?}");
}

#[tokio::test]
async fn the_standby_leads_within_a_second_of_a_kill() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[]).await;
    let (seen, since) = (b.log_len(), Instant::now());
    a.adapter.process().kill9().await;
    let took = b.leads_after(seen, since).await;
    report("take-over after kill -9", took);
    assert!(took < SECOND, "{took:?}");
    assert_eq!(db.column::<i32>(HOLDER).await.len(), 1);
    check_stored(&db.client, &a, "a").await;
}

#[tokio::test]
async fn one_leads_within_a_second_of_the_lock_sessions_end() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[]).await;
    let begun = (a.log_len(), b.log_len());
    for round in 0..3 {
        let (seen, since) = ((a.log_len(), b.log_len()), Instant::now());
        db.run(&format!("SELECT pg_terminate_backend(({HOLDER}))")).await;
        let took = tokio::select! {
            took = a.leads_after(seen.0, since) => took,
            took = b.leads_after(seen.1, since) => took,
        };
        report(&format!("take-over {round} after pg_terminate_backend"), took);
        assert!(took < SECOND, "{took:?}");
        wait_settled(&a, &b).await;
        assert_eq!(db.column::<i32>(HOLDER).await.len(), 1);
    }
    check_stored(&db.client, &a, "a").await;
    for (member, begun) in [(&a, begun.0), (&b, begun.1)] {
        let lines = member.adapter.process().log().lines();
        let silent = lines[begun..].iter().any(|line| line.contains("own Prometheus is silent: not a candidate"));
        assert!(!silent, "it sends, and is told not to: {lines:#?}");
    }
}

#[tokio::test]
async fn the_lock_is_taken_once_a_session() {
    let options = postgres::Options::default().with("log_statement", "all").with("log_line_prefix", "[%p] ");
    let (server, client) = own_server(options).await;
    // A hundred elections per second.
    let uri = server.uri("postgres");
    let arguments = ["-leader-election-pg-advisory-lock-prometheus-timeout=1s", "-scheduled-election-interval=10ms"];
    let (a, b) = pair(&uri, &arguments).await;
    let holder: i32 = one(&client, HOLDER).await;
    let tries = |of_holder: bool| {
        let lines = server.log().lines();
        let tries =
            lines.iter().filter(|line| line.contains("pg_try_advisory_lock($1)") && !line.contains("backend_pid"));
        tries.filter(|line| line.contains(&format!("[{holder}] ")) == of_holder).count()
    };
    let deadline = Instant::now() + SOON;
    while tries(false) < 1_000 {
        assert!(Instant::now() < deadline, "{} elections in {SOON:?}", tries(false));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(one::<i32>(&client, HOLDER).await, holder);
    assert_eq!(tries(true), 1, "tried again by the session that has it");
    // A lock that was taken once is released at once.
    a.sender.pause();
    let seen = b.log_len();
    a.wait("resigned").await;
    b.leads_after(seen, Instant::now()).await;
    assert_eq!(client.query(HOLDER, &[]).await.expect("pg_locks answers").len(), 1);
}

#[tokio::test]
async fn a_leader_whose_prometheus_is_silent_resigns_and_stays_out() {
    let db = Database::new().await;
    let timeout = Duration::from_secs(2);
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-pg-advisory-lock-prometheus-timeout=2s"]).await;
    a.sender.pause();
    let seen = (a.log_len(), b.log_len());
    a.adapter.process().wait_for_log_after(seen.0, "Prometheus timeout exceeded", SOON).await;
    let since = a.sender.acknowledged().last.expect("it sent");
    let took = b.leads_after(seen.1, since).await;
    report("take-over after the last write of a silent Prometheus (timeout 2 s)", took);
    assert!(took < timeout + SECOND, "{took:?}");
    a.wait("resigned").await;
    wait_settled_silent(&a).await;
    // The lock is free, and the adapter does not take it.
    b.adapter.process().kill9().await;
    wait_true(&db.client, "SELECT now() - heartbeat > interval '2s' FROM metrics_leader").await;
    assert_eq!(a.adapter.role().await.as_deref(), Some("resigned"));
    assert!(db.column::<i32>(HOLDER).await.is_empty());
    let (seen, since) = (a.log_len(), Instant::now());
    a.sender.resume();
    let took = a.leads_after(seen, since).await;
    report("take-over by a resigned adapter that is sent to again", took);
    assert!(took < SECOND, "{took:?}");
}

#[tokio::test]
async fn a_dead_prometheus_is_followed_within_its_pace_and_1_s() {
    let db = Database::new().await;
    // With its timeout alone this would take minutes.
    let (Member { adapter: a, sender }, b) = pair(&db.server.uri(&db.name), &[]).await;
    // By then the pace of the sender is known.
    wait_true(&db.client, "SELECT max(time) - min(time) > interval '6s' FROM metrics WHERE name = 'from_a'").await;
    let (seen, since) = ((a.process().log().len(), b.log_len()), Instant::now());
    drop(sender);
    let took = b.leads_after(seen.1, since).await;
    report("take-over after the death of a Prometheus that sent every 50 ms", took);
    assert!(took < 2 * SECOND, "{took:?}");
    a.process().wait_for_log_after(seen.0, "own Prometheus closed its connections", SOON).await;
}

#[tokio::test]
async fn one_whose_connections_are_renewed_leads_on() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let a = candidate(&uri, "adapter a").start().await;
    let mut b = None;
    let mut ticker = tokio::time::interval(SECOND);
    for _ in 0..12 {
        ticker.tick().await;
        // Two requests per connection, as with a proxy that replaces connections.
        let client = rig::http::Client::default();
        for series in ["one", "other"] {
            let body = Body::new().sample(series, now_ms(), 1.0).compressed();
            let url = a.url("/write");
            let taken = async || {
                let answer = client.post(&url, &rig::http::WRITE_HEADERS, body.clone()).await;
                answer.is_ok_and(|answer| answer.status == 204).then_some(())
            };
            a.process().wait_until("it takes a request", SOON, taken).await;
        }
        a.wait_role("leader", SOON).await;
        if b.is_none() {
            b = Some(Member::start(&candidate(&uri, "adapter b"), "b").await);
        }
    }
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1, "nobody else led");
}

/// Waits until the adapter logs why it is not a candidate.
async fn wait_settled_silent(member: &Member) {
    member.adapter.process().wait_for_log("not a candidate until it sends", SOON).await;
}

#[tokio::test]
async fn nobody_flips_while_both_are_silent() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-pg-advisory-lock-prometheus-timeout=1s"]).await;
    b.sender.pause();
    b.wait("resigned").await;
    a.sender.pause();
    a.wait("resigned").await;
    wait_true(&db.client, "SELECT now() - heartbeat > interval '2s' FROM metrics_leader").await;
    assert_eq!(b.adapter.role().await.as_deref(), Some("resigned"));
    assert!(db.column::<i32>(HOLDER).await.is_empty());
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1);
}

#[tokio::test]
async fn a_restart_of_postgresql_leaves_one_leader_and_all_data() {
    let (mut server, client) = own_server(postgres::Options::default()).await;
    drop(client);
    let (a, b) = pair(&server.uri("postgres"), &[]).await;
    for how in [Stop::Fast, Stop::Immediate] {
        let client = server.connect("postgres").await;
        let (term, token): (i64, String) = {
            let row = client.query_one("SELECT term, token::text FROM metrics_leader", &[]).await.expect("one group");
            (row.get(0), row.get(1))
        };
        let seen = (a.log_len(), b.log_len());
        server.stop(how).await;
        server.start_again().await;
        let since = Instant::now();
        let took = tokio::select! {
            took = a.leads_after(seen.0, since) => took,
            took = b.leads_after(seen.1, since) => took,
        };
        report(&format!("take-over after a restart ({how:?})"), took);
        wait_settled(&a, &b).await;
        let client = server.connect("postgres").await;
        assert_eq!(client.query(HOLDER, &[]).await.expect("pg_locks answers").len(), 1);
        assert!(one::<i64>(&client, "SELECT term FROM metrics_leader").await > term);
        let fence = format!("BEGIN; SELECT metrics_fence(1, '{token}', NULL)");
        let error = client.batch_execute(&fence).await.expect_err("a write of the old term passed the fence");
        assert_eq!(error.code().map(|code| code.code()), Some("PF001"), "{error:?}");
        client.batch_execute("ROLLBACK").await.expect("a rollback works");
    }
    let client = server.connect("postgres").await;
    check_stored(&client, &a, "a").await;
}

/// Starts a write that waits in the database until `release` is committed. Returns `release` and the pending response.
async fn write_held_up(
    db: &Database,
    adapter: &Adapter,
    metric: &str,
) -> (tokio_postgres::Client, JoinSet<Option<u16>>) {
    let release = db.session().await;
    release.batch_execute("BEGIN; LOCK TABLE metrics_hot IN SHARE MODE").await.expect("the table can be locked");
    let url = adapter.url("/write");
    let body = Body::new().sample(metric, now_ms(), 1.0).compressed();
    let mut answer = JoinSet::new();
    answer.spawn(async move {
        let client = rig::http::Client::default();
        client.post(&url, &rig::http::WRITE_HEADERS, body).await.ok().map(|answer| answer.status)
    });
    wait_true(&db.client, WRITE_WAITS).await;
    (release, answer)
}

#[tokio::test]
async fn a_stopping_leader_answers_all_before_it_unlocks() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[]).await;
    let holder: i32 = db.one(HOLDER).await;
    a.sender.pause();
    let (release, mut answer) = write_held_up(&db, &a.adapter, "held_up").await;
    let (seen, since) = (b.log_len(), Instant::now());
    a.adapter.process().signal(Signal::TERM);
    a.adapter.process().wait_for_log("finishing what is in flight", SOON).await;
    // After the time of three elections the lock has not changed hands.
    wait_true(&db.client, "SELECT pg_sleep(0.3) IS NOT NULL").await;
    assert_eq!(db.one::<i32>(HOLDER).await, holder, "given up before the last write");
    let waited = since.elapsed();
    release.batch_execute("COMMIT").await.expect("a commit works");
    let answer = tokio::time::timeout(SOON, answer.join_next()).await.expect("an answer comes");
    assert_eq!(answer.map(Result::unwrap), Some(Some(204)));
    assert_eq!(a.adapter.process().wait_exit(SOON).await, Exit::Status(0));
    let took = b.leads_after(seen, since).await - waited;
    report("take-over after SIGTERM, from the last answer on", took);
    assert!(took < SECOND, "{took:?}");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'held_up'").await, 1);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &["-leader-election-pg-advisory-lock-prometheus-timeout=1s"]).await;
    a.sender.pause();
    let (release, _answer) = write_held_up(&db, &a.adapter, "held_up").await;
    let process = a.adapter.process();
    process.signal(Signal::TERM);
    process.wait_for_log("finishing what is in flight", SOON).await;
    let (seen, since) = (b.log_len(), Instant::now());
    assert_eq!(process.terminate(SECOND).await, Exit::Status(1));
    // The write under way waits in the database, and does not notice that its client has gone.
    b.adapter.process().wait_for_log_after(seen, "session of an old term", SOON).await;
    let took = since.elapsed();
    report("writer ended after a second SIGTERM with a write stuck in the database", took);
    assert!(took < Duration::from_secs(2), "{took:?}");
    // The new leader's own first write waits, too, and longer than a Prometheus may be silent. The leader must not give
    // up.
    wait_true(&db.client, "SELECT pg_sleep(1.5) IS NOT NULL").await;
    assert_eq!(b.adapter.role().await.as_deref(), Some("taking_over"));
    release.batch_execute("COMMIT").await.expect("a commit works");
    b.leads_after(seen, since).await;
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 2, "more than one attempt");
}

#[tokio::test]
async fn a_signal_ends_an_adapter_that_cannot_reach_its_server() {
    let (server, client) = own_server(postgres::Options::default()).await;
    let adapter = candidate(&server.uri("postgres"), "adapter").start().await;
    adapter.wait_role("resigned", SOON).await;
    assert_eq!(adapter.write(Body::new().sample("first", now_ms(), 1.0).compressed()).await.status, 204);
    drop(client);
    server.pause();
    // Connecting again never ends.
    adapter.wait_role("unknown", SOON).await;
    adapter.process().wait_for_log("closing the lock session", SOON).await;
    let since = Instant::now();
    let exit = adapter.process().terminate(SOON).await;
    server.resume();
    report("stop with a frozen server", since.elapsed());
    assert_eq!(exit, Exit::Status(0));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}
