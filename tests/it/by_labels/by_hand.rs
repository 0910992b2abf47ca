//! The lead by order: any adapter accepts the order, and all carry it out.

use std::process::Command;

use hyper::Method;
use rig::adapter::Adapter;

use super::{Replica, adapters, check_stored, clusters, number, targets, wait_leader, wait_stored};
use crate::election::by_hand::{obeys, order};
use crate::setup::{BINARY, Database, SOON};

async fn refuses(adapter: &Adapter, verb: &str, status: u16, why: &str) {
    let answer = order(adapter, Method::POST, verb).await;
    assert_eq!(answer.status, status, "{verb}: {}", answer.text());
    assert!(answer.text().contains(why), "{verb}: {}", answer.text());
}

async fn held(adapter: &Adapter) -> String {
    clusters(adapter).await.get("eu").map(|cluster| cluster["held"].to_string()).unwrap_or_default()
}

#[tokio::test]
async fn a_replica_that_sends_yields_to_another_and_nothing_is_lost() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let _one = Replica::start("eu", "r1", &targets);
    wait_leader(&adapters[0], "eu", "r1").await;
    let _others = ["r2", "r3"].map(|name| Replica::start("eu", name, &targets));
    wait_stored(&db.client, "eu", number("r1"), 40).await;
    for adapter in &adapters {
        let all = async || (clusters(adapter).await["eu"]["replicas"].as_array()?.len() == 3).then_some(());
        adapter.process().wait_until("it hears all", SOON, all).await;
    }
    obeys(&adapters[1], "hand-over?cluster=eu&to=r3").await;
    for adapter in &adapters {
        wait_leader(adapter, "eu", "r3").await;
    }
    obeys(&adapters[1], "hand-over?cluster=eu&to=r3").await;
    wait_stored(&db.client, "eu", number("r3"), 40).await;
    obeys(&adapters[0], "hand-over?cluster=eu&to=r1").await;
    wait_stored(&db.client, "eu", number("r1"), 80).await;
    // To any other replica.
    let command = ["election", "resign", "-cluster=eu", &format!("-url={}", adapters[1].url(""))].map(str::to_owned);
    let ended = tokio::task::spawn_blocking(|| Command::new(BINARY).args(command).output().expect("it runs"));
    let ended = ended.await.expect("it ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "another replica leads");
    let stored: i64 = db.one("SELECT count(*) FROM metrics").await;
    db.wait(&format!("SELECT count(*) > {} FROM metrics", stored + 40)).await;
    check_stored(&db.client, "eu", 3).await;
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 4);
}

#[tokio::test]
async fn one_that_is_held_leads_again_only_once_it_is_released() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let _one = Replica::start("eu", "r1", &targets);
    wait_leader(&adapters[0], "eu", "r1").await;
    wait_stored(&db.client, "eu", number("r1"), 40).await;
    // No other replica exists yet.
    let answer = order(&adapters[0], Method::POST, "hold?cluster=eu&replica=r1").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("a hold stays in force"), "{}", answer.text());
    let other = Replica::start("eu", "r2", &targets);
    for adapter in &adapters {
        wait_leader(adapter, "eu", "r2").await;
        assert_eq!(held(adapter).await, r#"["r1"]"#);
    }
    refuses(&adapters[1], "hand-over?cluster=eu&to=r1", 409, "release it first").await;
    wait_stored(&db.client, "eu", number("r2"), 40).await;
    drop(other);
    let silent = async || clusters(&adapters[0]).await["eu"]["silent"].as_bool()?.then_some(());
    adapters[0].process().wait_until("nobody leads", SOON, silent).await;
    let terms: i64 = db.one("SELECT term FROM metrics_leader").await;
    assert_eq!(terms, 2, "the one that sends is held");
    obeys(&adapters[1], "release?cluster=eu&replica=r1").await;
    wait_leader(&adapters[0], "eu", "r1").await;
    wait_stored(&db.client, "eu", number("r1"), 80).await;
    assert_eq!(held(&adapters[0]).await, "[]");
    check_stored(&db.client, "eu", 2).await;
}

#[tokio::test]
async fn an_order_says_of_whom() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter"]).await;
    let adapter = &adapters[0];
    let targets = targets(&[adapter]);
    let _one = Replica::start("eu", "r1", &targets);
    wait_leader(adapter, "eu", "r1").await;
    for (verb, missing) in [
        ("resign", "resign?cluster=NAME"),
        ("hand-over?to=r2", "hand-over?cluster=NAME&to=NAME"),
        ("hand-over?cluster=eu", "hand-over?to=NAME"),
        ("hold", "hold?cluster=NAME&replica=NAME"),
        ("release?cluster=eu", "release?cluster=eu&replica=NAME"),
    ] {
        refuses(adapter, verb, 400, missing).await;
    }
    refuses(adapter, "resign?cluster=us", 404, "a cluster \"us\"").await;
    refuses(adapter, "hold?cluster=eu&replica=r7", 404, "those of r1 are").await;
    for (query, answer) in [("?cluster=eu&replica=r1", "true"), ("?cluster=eu&replica=r2", "false")] {
        assert_eq!(order(adapter, Method::GET, &format!("leader{query}")).await.text(), answer);
    }
    assert_eq!(order(adapter, Method::GET, "leader").await.status, 400);
    assert_eq!(order(adapter, Method::DELETE, "hold?cluster=eu&replica=r1").await.status, 200, "it is not held");
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1);
}
