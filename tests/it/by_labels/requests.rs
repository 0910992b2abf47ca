//! Results of requests, depending on the labels of their series.

use std::time::Duration;

use super::{Replica, adapter, body, leader, number, targets, wait_leader, wait_stored};
use crate::setup::{Body, Database, SOON, at, now_ms, send_unreadable, start, store, wait_ready};

#[tokio::test]
async fn a_request_of_several_clusters_is_judged_series_by_series() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let adapter = start(&adapter(&uri, "adapter")).await;
    let targets = targets(&[&adapter]);
    let _eu = Replica::start("eu", "r1", &targets);
    let _us = Replica::start("us", "r2", &targets);
    wait_leader(&adapter, "eu", "r1").await;
    wait_leader(&adapter, "us", "r2").await;
    let now = now_ms();
    let mixed = [("eu", "r1"), ("eu", "r2"), ("us", "r1"), ("us", "r2"), ("asia", "r2")];
    let mixed = mixed.iter().fold(Body::new(), |body, (cluster, replica)| {
        let labels = [("__name__", "mixed"), ("cluster", cluster), ("__replica__", replica)];
        body.series(&labels, &[at(now, number(replica))])
    });
    store(&adapter, mixed.clone()).await;
    let stored = "SELECT labels ->> 'cluster' || ' ' || value FROM metrics WHERE name = 'mixed' ORDER BY 1";
    let expected = [("asia", "r2"), ("eu", "r1"), ("us", "r2")];
    let expected: Vec<_> = expected.iter().map(|(name, replica)| format!("{name} {}", number(replica))).collect();
    assert_eq!(db.column::<String>(stored).await, expected);
    store(&adapter, mixed.clone()).await;
    assert_eq!(db.column::<String>(stored).await, expected, "a retry is stored once");
    assert_eq!(adapter.metric_with("samples_covered_total", "late").await, Some(3.0));
    let refused = [("__name__", "mixed"), ("cluster", "eu")];
    let answer = adapter.write(mixed.series(&refused, &[at(now, 1.0), at(now + 1, 1.0)]).compressed()).await;
    let written = answer.header("x-prometheus-remote-write-samples-written");
    assert_eq!((answer.status, written), (400, Some("5")), "stored, and held");
}

#[tokio::test]
async fn a_series_that_does_not_say_who_sends_it_is_refused_by_name() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    let now = now_ms();
    let good = body("eu", "r1", &[now]);
    for (labels, missing) in [
        (vec![("__name__", "bad"), ("__replica__", "r1")], "cluster"),
        (vec![("__name__", "bad"), ("cluster", "eu")], "__replica__"),
        (vec![("__name__", "bad"), ("__replica__", ""), ("cluster", "eu")], "__replica__"),
    ] {
        let answer = adapter.write(good.clone().series(&labels, &[at(now, 1.0)]).compressed()).await;
        assert_eq!(answer.status, 400);
        let expected = format!("the label {missing:?}, which says who sends the series, is missing");
        assert!(answer.text().contains(&expected), "{}", answer.text());
    }
    assert_eq!(db.column::<String>("SELECT DISTINCT name FROM metrics").await, ["ticks"], "the rest is stored");
}

#[tokio::test]
async fn series_without_labels_may_be_stored_as_they_are() {
    let db = Database::new().await;
    let options = adapter(&db.server.uri(&db.name), "adapter").arg("-metrics.high-availability.unlabelled=store");
    let adapter = start(&options).await;
    let now = now_ms();
    let plain = [("__name__", "plain"), ("instance", "a")];
    let body = body("eu", "r1", &[now]).series(&plain, &[at(now, 1.0)]);
    store(&adapter, body.clone()).await;
    store(&adapter, body).await;
    let stored = "SELECT name || labels::text FROM metrics ORDER BY 1";
    assert_eq!(db.column::<String>(stored).await, [r#"plain{"instance": "a"}"#, r#"ticks{"cluster": "eu"}"#]);
}

#[tokio::test]
async fn there_may_be_so_many_clusters_and_no_more() {
    let db = Database::new().await;
    let options = |name| adapter(&db.server.uri(&db.name), name).arg("-metrics.high-availability.clusters=2");
    let (one, other) = (start(&options("adapter a")).await, start(&options("adapter b")).await);
    store(&one, body("eu", "r1", &[now_ms()])).await;
    store(&other, body("us", "r1", &[now_ms()])).await;
    store(&one, body("us", "r1", &[now_ms()])).await;
    let answer = one.write(body("asia", "r1", &[now_ms()]).compressed()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("-metrics-high-availability-clusters"), "{}", answer.text());
    assert_eq!(leader(&one, "asia").await, None);
    // Clusters that the other adapter has not heard of count as well.
    let answer = other.write(body("africa", "r1", &[now_ms()]).compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics_leader").await, 2);
    let names = db.column::<String>("SELECT DISTINCT labels ->> 'cluster' FROM metrics ORDER BY 1").await;
    assert_eq!(names, ["eu", "us"]);
}

#[tokio::test]
async fn another_label_may_name_the_cluster_and_the_replica() {
    let db = Database::new().await;
    let options = adapter(&db.server.uri(&db.name), "adapter")
        .arg("-metrics.high-availability.cluster-label=region")
        .arg("-replica-labels=replica,prometheus_replica");
    let adapter = start(&options).await;
    let send = async |replica: &str, value: f64| {
        let labels = [("__name__", "ticks"), ("prometheus_replica", replica), ("region", "eu")];
        store(&adapter, Body::new().series(&labels, &[at(now_ms(), value)])).await;
    };
    send("r1", 1.0).await;
    send("r2", 2.0).await;
    wait_leader(&adapter, "eu", "r1").await;
    assert_eq!(db.column::<String>("SELECT labels::text FROM metrics").await, [r#"{"region": "eu"}"#]);
}

#[tokio::test]
async fn the_same_request_by_two_adapters_is_held_and_stored_once() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let (one, other) = (start(&adapter(&uri, "adapter a")).await, start(&adapter(&uri, "adapter b")).await);
    let targets = targets(&[&one, &other]);
    let leads = Replica::start("eu", "r1", &targets);
    wait_leader(&one, "eu", "r1").await;
    wait_leader(&other, "eu", "r1").await;
    wait_stored(&db.client, "eu", number("r1"), 20).await;
    let now = now_ms() + 60_000;
    // The answer of the first adapter was lost, so the request was sent to the second.
    for adapter in [&one, &other] {
        store(adapter, body("eu", "r2", &[now])).await;
    }
    drop(leads);
    // Sent only once, r2 would count as silent about as soon as r1 does.
    let again = async {
        loop {
            let _ = other.write(body("eu", "r2", &[now]).compressed()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        _ = wait_leader(&one, "eu", "r2") => {}
        () = again => {}
    }
    let stored = format!("SELECT count(*) FROM metrics WHERE value = {}", number("r2"));
    db.wait(&stored.replace("count(*)", "count(*) > 0")).await;
    for adapter in [&one, &other] {
        let begun = async || (adapter.metric("standby_held_samples").await == Some(0.0)).then_some(());
        adapter.process().wait_until("it holds nothing", SOON, begun).await;
    }
    assert_eq!(db.one::<i64>(&stored).await, 1);
}

#[tokio::test]
async fn an_unreadable_sender_takes_the_adapter_from_no_cluster() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    let ready = async || {
        assert_eq!(send_unreadable(&adapter).await.status, 415);
        adapter.get("/-/ready").await.unwrap()
    };
    assert_eq!(ready().await.status, 503, "nobody else sends");
    assert!(ready().await.text().contains("Content-Encoding"), "{}", ready().await.text());
    let targets = targets(&[&adapter]);
    let replica = Replica::start("eu", "r1", &targets);
    wait_leader(&adapter, "eu", "r1").await;
    wait_ready(&adapter).await;
    for _ in 0..20 {
        assert_eq!(ready().await.status, 200);
    }
    adapter.process().wait_for_log("Content-Encoding", SOON).await;
    assert!(adapter.metric("write_requests_unsupported_total").await >= Some(20.0));
    replica.pause();
    let is_not = async || (ready().await.status == 503).then_some(());
    adapter.process().wait_until("it is not ready", SOON, is_not).await;
    // In the election, a sender that cannot be read counts as silent.
    let _other = Replica::start("eu", "r2", &targets);
    wait_leader(&adapter, "eu", "r2").await;
    wait_ready(&adapter).await;
}
