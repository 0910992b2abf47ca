//! A faulty sender, or an adapter with a wrong clock, has no effect on other replicas and clusters.

use rig::postgres::Postgres;
use uuid::Uuid;

use super::{Replica, adapter, adapters, body, check_stored, number, of, targets, wait_leader, wait_stored};
use crate::setup::{Body, Database, now_ms, start, store, with_clock};

const DAY_MS: i64 = 24 * 3_600_000;

#[tokio::test]
async fn nothing_is_learned_from_an_impossible_past() {
    check_impossible(&["r1", "r2"], &[i64::MIN, i64::MIN + 1, -210_866_803_200_001]).await;
}

#[tokio::test]
async fn nothing_is_learned_from_an_impossible_future() {
    check_impossible(&["r2"], &[now_ms() + 365 * DAY_MS, i64::MAX]).await;
}

/// Lets the `faulty` ones of `r1`, which leads, and `r2` send such samples. Checks that `r2` leads next, and that
/// nothing is lost.
async fn check_impossible(faulty: &[&str], times_ms: &[i64]) {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let one = Replica::start("eu", "r1", &targets);
    for adapter in &adapters {
        wait_leader(adapter, "eu", "r1").await;
    }
    let _other = Replica::start("eu", "r2", &targets);
    wait_stored(&db.client, "eu", number("r1"), 40).await;
    for time_ms in times_ms {
        for (replica, adapter) in faulty.iter().flat_map(|replica| adapters.iter().map(move |one| (replica, one))) {
            let answer = adapter.write(body("eu", replica, &[*time_ms]).compressed()).await;
            assert_eq!(answer.status, 400, "{time_ms}: {}", answer.text());
            assert!(answer.text().contains(&time_ms.to_string()), "{}", answer.text());
        }
    }
    drop(one);
    wait_leader(&adapters[0], "eu", "r2").await;
    wait_stored(&db.client, "eu", number("r2"), 40).await;
    assert_eq!(check_stored(&db.client, "eu", 1).await, [number("r1"), number("r2")]);
}

#[tokio::test]
async fn no_storable_time_stops_another_clusters_election() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    let targets = targets(&[&adapter]);
    let times = [-210_866_803_200_000, 0, now_ms() + 9 * 60_000];
    for replica in ["r1", "r2"] {
        for time_ms in times {
            store(&adapter, body("odd", replica, &[time_ms])).await;
        }
    }
    wait_leader(&adapter, "odd", "r1").await;
    let one = Replica::start("eu", "r1", &targets);
    wait_leader(&adapter, "eu", "r1").await;
    let _others = [Replica::start("eu", "r2", &targets), Replica::start("odd", "r2", &targets)];
    wait_stored(&db.client, "eu", number("r1"), 40).await;
    drop(one);
    wait_leader(&adapter, "eu", "r2").await;
    wait_leader(&adapter, "odd", "r2").await;
    wait_stored(&db.client, "eu", number("r2"), 40).await;
    check_stored(&db.client, "eu", 1).await;
}

#[tokio::test]
async fn an_adapter_whose_clock_is_ahead_keeps_nobody_from_the_lead() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let ahead = start(&with_clock(adapter(&uri, "ahead"), 2 * DAY_MS)).await;
    let right = start(&adapter(&uri, "right")).await;
    let _one = Replica::start("eu", "r2", &targets(&[&right]));
    wait_leader(&right, "eu", "r2").await;
    store(&ahead, body("us", "r1", &[now_ms()])).await;
    wait_leader(&ahead, "us", "r1").await;
    let targets = targets(&[&right]);
    let _us = Replica::start("us", "r2", &targets);
    wait_leader(&right, "us", "r2").await;
    let asia = Replica::start("asia", "r1", &targets);
    wait_leader(&right, "asia", "r1").await;
    let _asia = Replica::start("asia", "r2", &targets);
    wait_stored(&db.client, "asia", number("r1"), 20).await;
    drop(asia);
    wait_leader(&right, "asia", "r2").await;
}

#[tokio::test]
async fn a_name_that_is_too_long_disturbs_no_other_cluster() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    // A text that does not compress.
    let long: String = (0..125).map(|_| Uuid::new_v4().simple().to_string()).collect();
    let longest = &long[..256];
    for (cluster, replica, label) in [
        (long.as_str(), "r1", "cluster"),
        (&long[..257], "r1", "cluster"),
        ("eu", &long, "__replica__"),
        ("eu", &long[..257], "__replica__"),
    ] {
        let good = body(longest, "r1", &[now_ms()]);
        let answer = adapter.write(of(good, cluster, replica, &[now_ms()]).compressed()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        let named = format!(
            "the label {label:?}, which says who sends the series, has {} bytes",
            cluster.len().max(replica.len())
        );
        assert!(answer.text().contains(&named) && answer.text().contains("256"), "{}", answer.text());
    }
    assert_eq!(db.samples().await, 4, "the rest of each request is stored");
    store(&adapter, body("eu", longest, &[now_ms()])).await;
    wait_leader(&adapter, "eu", longest).await;
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics_leader").await, 2);
}

#[tokio::test]
async fn a_cluster_may_be_called_like_a_group() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    for cluster in ["cluster 1", "cluster cluster 1", "1", "cluster "] {
        store(&adapter, body(cluster, "r1", &[now_ms()])).await;
        wait_leader(&adapter, cluster, "r1").await;
    }
}

#[tokio::test]
async fn a_name_that_may_not_fit_disturbs_no_other_cluster() {
    let server = Postgres::shared().await;
    let name = format!("{}_latin1", server.create_database().await);
    let client = server.connect("postgres").await;
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    client.batch_execute(&create).await.expect("a database of another encoding can be made");
    let adapter = start(&adapter(&server.uri(&name), "adapter")).await;
    let good = || body("eu", "r1", &[now_ms()]);
    for (cluster, replica, label) in [("☃", "r1", "cluster"), ("eu", "☃", "__replica__")] {
        let answer = adapter.write(of(good(), cluster, replica, &[now_ms()]).compressed()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(label) && answer.text().contains("LATIN1"), "{}", answer.text());
        store(&adapter, good()).await;
    }
    store(&adapter, body("us", "r1", &[now_ms()])).await;
    // Labels that do not name the cluster or the replica are accepted as always.
    let labels = [("__name__", "größe"), ("cluster", "eu"), ("__replica__", "r1")];
    store(&adapter, Body::new().series(&labels, &[crate::setup::at(now_ms(), 1.0)])).await;
}
