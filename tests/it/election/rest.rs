//! An external party appoints the leader.

use std::time::{Duration, Instant};

use hyper::Method;
use rig::adapter::{Adapter, Options};
use rig::http::Response;
use rig::postgres::{self, Stop};

use super::frozen::write_in_background;
use super::{Member, SECOND, Sender, check_stored, own_server, report, wait_true};
use crate::setup::{Body, Database, SOON, adapter_at, now_ms};

/// Options of an adapter at `uri` that waits to be appointed.
fn told(uri: &str, name: &str) -> Options {
    adapter_at(uri).name(name).arg("-leader-election.rest")
}

/// Starts an adapter, and waits until it accepts an order.
async fn start(options: &Options) -> Adapter {
    let adapter = options.start().await;
    let can_be_told = async || (put(&adapter, "0").await.status == 200).then_some(());
    adapter.process().wait_until("it can be told", SOON, can_be_told).await;
    adapter
}

/// The same with a Prometheus that sends.
async fn member(options: &Options, series: &str) -> Member {
    let adapter = start(options).await;
    let sender = Sender::start(&adapter, series);
    Member { adapter, sender }
}

/// Starts two members. The first is appointed and leads; the other is standby.
async fn pair(uri: &str) -> [Member; 2] {
    let a = member(&told(uri, "adapter a"), "a").await;
    let b = member(&told(uri, "adapter b"), "b").await;
    tell(&a.adapter, "1").await;
    a.takes().await;
    b.wait("standby").await;
    [a, b]
}

/// Sends a PUT request with `body` to the path by which leaders are appointed.
pub(super) async fn put(adapter: &Adapter, body: &str) -> Response {
    let url = adapter.url("/admin/election/leader");
    let answer = adapter.client().request(Method::PUT, &url, &[], body.to_owned().into()).await;
    answer.unwrap_or_else(|error| adapter.process().fail(&error.to_string()))
}

async fn tell(adapter: &Adapter, body: &str) {
    let answer = put(adapter, body).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "true"));
}

async fn leads(adapter: &Adapter) -> String {
    adapter.get("/admin/election/leader").await.expect("it answers").text()
}

#[tokio::test]
async fn answers_and_statuses_are_those_of_0_6_0() {
    let db = Database::new().await;
    let adapter = start(&told(&db.server.uri(&db.name), "adapter")).await;
    assert_eq!(leads(&adapter).await, "false");
    let refused = adapter.write(Body::new().sample("early", now_ms(), 1.0).compressed()).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    tell(&adapter, "0").await;
    tell(&adapter, "1").await;
    assert_eq!(leads(&adapter).await, "true");
    assert_eq!(adapter.write(Body::new().sample("told", now_ms(), 1.0).compressed()).await.status, 204);
    tell(&adapter, "1").await;
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader WHERE group_name = 'rest 1'").await, 1);
    for body in ["", "2", "true", "1\n", &"1".repeat(100)] {
        let answer = put(&adapter, body).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, "1 or 0 expected in request body\n"), "{body:?}");
    }
    let answer = adapter.client().post(&adapter.url("/admin/election/leader"), &[], "1").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (400, "Request method not supported\n"));
    assert_eq!(leads(&adapter).await, "true");
    tell(&adapter, "0").await;
    assert_eq!(leads(&adapter).await, "false");
    tell(&adapter, "0").await;
    tell(&adapter, "1").await;
    assert_eq!(leads(&adapter).await, "true");
    assert_eq!(db.samples().await, 1);
}

#[tokio::test]
async fn of_two_told_to_lead_the_later_one_does() {
    let db = Database::new().await;
    let [a, b] = pair(&db.server.uri(&db.name)).await;
    for _ in 0..3 {
        let since = Instant::now();
        tell(&b.adapter, "1").await;
        report("told to lead", since.elapsed());
        assert_eq!(leads(&b.adapter).await, "true");
        a.wait("standby").await;
        // The adapter has not noticed yet that the other was appointed later. Its own, latest order wins nevertheless.
        tell(&a.adapter, "1").await;
        tell(&b.adapter, "1").await;
        tell(&a.adapter, "1").await;
        b.wait("standby").await;
    }
    assert!(a.adapter.process().log().contains(r#"reason="fenced""#), "a standby learns it from the row");
    tell(&b.adapter, "1").await;
    b.takes().await;
    for (member, series) in [(&a, "a"), (&b, "b")] {
        check_stored(&db.client, member, series).await;
    }
}

#[tokio::test]
async fn a_leader_frozen_while_another_is_told_stores_nothing_more() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let options = |name| told(&uri, name).arg("-leader-election-lease=3s");
    let a = member(&options("adapter a"), "a").await;
    tell(&a.adapter, "1").await;
    a.takes().await;
    a.sender.pause();
    let b = member(&options("adapter b"), "b").await;
    b.wait("standby").await;
    a.adapter.process().pause();
    let mut late = write_in_background(&a.adapter, "late");
    tell(&b.adapter, "1").await;
    b.takes().await;
    a.adapter.process().resume();
    // Its session may have ended meanwhile. It must not raise the term again.
    a.wait("standby").await;
    let _ = tokio::time::timeout(SOON, late.join_next()).await.expect("an answer comes");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics WHERE name = 'late'").await, 0);
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 2);
    assert_eq!(leads(&b.adapter).await, "true");
}

#[tokio::test]
async fn whoever_was_told_leads_on_when_the_database_is_back() {
    let (mut server, client) = own_server(postgres::Options::default()).await;
    let uri = server.uri("postgres");
    let a = member(&told(&uri, "adapter a").arg("-leader-election-lease=3s"), "a").await;
    let b = start(&told(&uri, "adapter b").arg("-leader-election-lease=3s")).await;
    tell(&a.adapter, "1").await;
    a.takes().await;
    b.wait_role("standby", SOON).await;
    drop(client);
    server.stop(Stop::Fast).await;
    a.wait("unknown").await;
    let since = Instant::now();
    let answer = put(&b, "1").await;
    report("told to lead without a database", since.elapsed());
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("not done within 3s (session_lost): "), "{}", answer.text());
    assert!(answer.header("retry-after").is_some() && since.elapsed() < Duration::from_secs(5));
    server.start_again().await;
    a.wait("leader").await;
    b.wait_role("standby", SOON).await;
    assert_eq!(leads(&a.adapter).await, "true", "what was answered 503 is not done later");
    let client = server.connect("postgres").await;
    wait_true(&client, "SELECT count(*) > 0 FROM metrics WHERE time > now() - interval '500 ms'").await;
    check_stored(&client, &a, "a").await;
}

#[tokio::test]
async fn one_that_resigns_and_nobody_told_is_nobody() {
    let db = Database::new().await;
    let [a, b] = pair(&db.server.uri(&db.name)).await;
    tell(&a.adapter, "0").await;
    a.sender.pause();
    b.wait("unknown").await;
    a.wait("unknown").await;
    tokio::time::sleep(SECOND).await;
    assert_eq!((leads(&a.adapter).await, leads(&b.adapter).await), ("false".into(), "false".into()));
    tell(&b.adapter, "1").await;
    b.takes().await;
    b.sender.pause();
    for (member, series) in [(&a, "a"), (&b, "b")] {
        check_stored(&db.client, member, series).await;
    }
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 2);
}
