//! What a faulty sender, or an adapter with a wrong clock, does to other replicas and clusters: nothing.

use super::{Replica, adapter, adapters, body, check_stored, number, targets, wait_leader, wait_stored};
use crate::setup::{Database, now_ms, start, store, with_clock};

const DAY_MS: i64 = 24 * 3_600_000;

#[tokio::test]
async fn a_sample_of_an_impossible_past_is_refused_and_nothing_is_learned_from_it() {
    check_impossible(&["r1", "r2"], &[i64::MIN, i64::MIN + 1, -210_866_803_200_001]).await;
}

#[tokio::test]
async fn a_sample_of_an_impossible_future_is_refused_and_nothing_is_learned_from_it() {
    check_impossible(&["r2"], &[now_ms() + 365 * DAY_MS, i64::MAX]).await;
}

/// Of `r1`, which leads, and `r2`, these send such samples: `r2` leads next, and nothing is lost.
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
async fn samples_of_any_time_that_can_be_stored_stop_no_other_clusters_election() {
    let db = Database::new().await;
    let adapter = start(&adapter(&db.server.uri(&db.name), "adapter")).await;
    let targets = targets(&[&adapter]);
    let times = [-210_866_803_200_000, 0, now_ms() + DAY_MS - 60_000];
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
    // Its Prometheus is on the same host.
    store(&ahead, body("us", "r1", &[now_ms() + 2 * DAY_MS])).await;
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
