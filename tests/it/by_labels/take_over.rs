//! One replica goes, and another one leads.

use std::time::{Duration, Instant};

use rig::adapter::Adapter;

use super::{
    Replica, TIMEOUT, Targets, adapter, adapters, check_stored, clusters, leader, number, targets, wait_leader,
    wait_stored,
};
use crate::setup::{Database, SOON, start};

/// Precision with which adapters report to each other when a replica was heard.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

/// Starts `r1`, which leads and has stored more than `stored` samples, and `r2`, which does not lead.
async fn leading_and_held(db: &Database, adapters: &[Adapter], targets: &Targets, stored: i64) -> [Replica; 2] {
    let one = Replica::start("eu", "r1", targets);
    wait_leader(&adapters[0], "eu", "r1").await;
    let other = Replica::start("eu", "r2", targets);
    wait_stored(&db.client, "eu", number("r1"), stored).await;
    [one, other]
}

#[tokio::test]
async fn the_first_replica_leads_and_the_others_are_held() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let _one = Replica::start("eu", "r1", &targets);
    for adapter in &adapters {
        wait_leader(adapter, "eu", "r1").await;
    }
    let _other = Replica::start("eu", "r2", &targets);
    wait_stored(&db.client, "eu", number("r1"), 40).await;
    for adapter in &adapters {
        let held = async || (adapter.metric("standby_held_samples").await > Some(5.0)).then_some(());
        adapter.process().wait_until("it holds", SOON, held).await;
    }
    assert_eq!(check_stored(&db.client, "eu", 0).await, [number("r1")]);
    let labels: Vec<String> = db.column("SELECT DISTINCT labels::text FROM metrics").await;
    assert_eq!(labels, [r#"{"cluster": "eu"}"#]);
}

#[tokio::test]
async fn a_silent_leader_is_followed_once_its_timeout_is_over() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let [one, _other] = leading_and_held(&db, &adapters, &targets, 60).await;
    one.pause();
    let heard = one.sent();
    let led = wait_leader(&adapters[0], "eu", "r2").await.min(wait_leader(&adapters[1], "eu", "r2").await);
    let took = led.saturating_duration_since(heard);
    assert!(took >= TIMEOUT - HALF_A_SECOND, "{took:?}: too early");
    println!("followed {took:?} after it was heard last, with a timeout of {TIMEOUT:?}");
    wait_stored(&db.client, "eu", number("r2"), 60).await;
    assert_eq!(check_stored(&db.client, "eu", 1).await, [number("r1"), number("r2")]);
}

#[tokio::test]
async fn a_write_that_does_not_end_keeps_nobody_in_the_lead() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let [one, _other] = leading_and_held(&db, &adapters, &targets, 20).await;
    // As of an adapter that is cut off, or frozen within a write.
    let cut_off = db.session().await;
    let write = "BEGIN; SELECT pg_advisory_xact_lock_shared('metrics_leader'::regclass::oid::integer, group_no) FROM metrics_leader";
    cut_off.batch_execute(write).await.unwrap();
    one.pause();
    let led = wait_leader(&adapters[0], "eu", "r2").await;
    let took = led.saturating_duration_since(one.sent());
    println!("followed {took:?} after it was heard last");
    assert!(cut_off.batch_execute("COMMIT").await.is_err(), "a write of an old term was not ended");
}

#[tokio::test]
async fn a_report_of_the_future_keeps_nobody_in_the_lead() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let [one, _other] = leading_and_held(&db, &adapters, &targets, 20).await;
    db.run(
        "INSERT INTO metrics_reports (adapter, reported_at, tokens, begun, heard, patience) SELECT gen_random_uuid(), \
         now() + interval '40 days', ARRAY[token], ARRAY[true], ARRAY[now() + interval '40 days'], ARRAY[2] FROM metrics_leader",
    )
    .await;
    one.pause();
    wait_leader(&adapters[0], "eu", "r2").await;
}

/// A timeout so long that only a closed connection reveals a dead replica in time.
const LONG_TIMEOUT: &str = "-metrics.high-availability.timeout=60s";

/// Number of samples after which the pace of a replica is known.
const SAMPLES: i64 = 140;

#[tokio::test]
async fn a_closed_connection_shortens_the_wait_to_pace_and_1_s() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let adapters = [
        start(&adapter(&uri, "adapter a").arg(LONG_TIMEOUT)).await,
        start(&adapter(&uri, "adapter b").arg(LONG_TIMEOUT)).await,
    ];
    // Each replica sends to a separate adapter: no adapter hears both.
    let one = Replica::start("eu", "r1", &targets(&[&adapters[0]]));
    wait_leader(&adapters[0], "eu", "r1").await;
    let _other = Replica::start("eu", "r2", &targets(&[&adapters[1]]));
    wait_stored(&db.client, "eu", number("r1"), SAMPLES).await;
    let killed = Instant::now();
    drop(one);
    let took = wait_leader(&adapters[1], "eu", "r2").await.saturating_duration_since(killed);
    println!("followed {took:?} after it was killed");
    // Adapters report to each other once a second.
    assert!(took < Duration::from_secs(3), "{took:?}");
    wait_stored(&db.client, "eu", number("r2"), 20).await;
    check_stored(&db.client, "eu", 1).await;
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 2);
}

#[tokio::test]
async fn a_leader_that_changes_its_connections_leads_on() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let adapters = [
        start(&adapter(&uri, "adapter a").arg(LONG_TIMEOUT)).await,
        start(&adapter(&uri, "adapter b").arg(LONG_TIMEOUT)).await,
    ];
    let mut one = Replica::start("eu", "r1", &targets(&[&adapters[0]]));
    wait_leader(&adapters[0], "eu", "r1").await;
    let _other = Replica::start("eu", "r2", &targets(&[&adapters[1]]));
    wait_stored(&db.client, "eu", number("r1"), SAMPLES).await;
    // Its connections to the first adapter are closed, and it sends to the other.
    drop(std::mem::replace(&mut one, Replica::start("eu", "r1", &targets(&[&adapters[1]]))));
    for _ in 0..5 {
        let stored: i64 = db.one("SELECT count(*) FROM metrics").await;
        db.wait(&format!("SELECT count(*) > {} FROM metrics", stored + 20)).await;
    }
    assert_eq!(leader(&adapters[0], "eu").await.as_deref(), Some("r1"));
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1);
}

#[tokio::test]
async fn replicas_lead_in_turn_and_none_of_it_is_lost() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b", "adapter c"]).await;
    let targets = targets(&[&adapters[0], &adapters[1], &adapters[2]]);
    let names = ["r1", "r2", "r3"];
    let mut replicas: Vec<_> = names.iter().map(|name| Some(Replica::start("eu", name, &targets))).collect();
    for _ in 0..4 {
        let settled = async || leader(&adapters[0], "eu").await;
        let leads = adapters[0].process().wait_until("one leads", SOON, settled).await;
        let at = names.iter().position(|name| *name == leads).expect("it is one of them");
        let stored: i64 = db.one("SELECT count(*) FROM metrics").await;
        db.wait(&format!("SELECT count(*) > {} FROM metrics", stored + 20)).await;
        replicas[at] = None;
        let follows = async || leader(&adapters[0], "eu").await.filter(|leader| *leader != leads);
        adapters[0].process().wait_until("another one leads", SOON, follows).await;
        replicas[at] = Some(Replica::start("eu", names[at], &targets));
    }
    check_stored(&db.client, "eu", 4).await;
    let mut changes = 0.0;
    for adapter in &adapters {
        changes += adapter.metric("cluster_leader_changes_total").await.unwrap_or_default();
    }
    assert_eq!(changes, 5.0, "each leads until it goes");
}

#[tokio::test]
async fn an_adapter_that_is_killed_takes_nothing_with_it() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let mut adapters = adapters(&uri, &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let _replicas = ["r1", "r2"].map(|name| Replica::start("eu", name, &targets));
    for round in 0..3 {
        let stored: i64 = db.one("SELECT count(*) FROM metrics").await;
        db.wait(&format!("SELECT count(*) > {} FROM metrics", stored + 40)).await;
        adapters[0].process().kill9().await;
        let stored: i64 = db.one("SELECT count(*) FROM metrics").await;
        db.wait(&format!("SELECT count(*) > {} FROM metrics", stored + 60)).await;
        adapters[0] = start(&adapter(&uri, &format!("adapter a{round}")).port(adapters[0].port())).await;
    }
    check_stored(&db.client, "eu", 6).await;
}

#[tokio::test]
async fn a_rolling_update_stores_what_is_buffered_first() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let mut adapters = adapters(&uri, &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let [one, _other] = leading_and_held(&db, &adapters, &targets, 60).await;
    // The leading replica ends at the moment when an adapter is stopped that buffers a part of the other replica's
    // samples.
    targets.lock().unwrap().remove(0);
    adapters[0].process().signal(rustix::process::Signal::TERM);
    drop(one);
    adapters[0].process().wait_exit(Duration::from_secs(40)).await;
    wait_stored(&db.client, "eu", number("r2"), 40).await;
    adapters[0] = start(&adapter(&uri, "adapter a2")).await;
    targets.lock().unwrap().push(adapters[0].url("/write"));
    wait_leader(&adapters[0], "eu", "r2").await;
    wait_stored(&db.client, "eu", number("r2"), 80).await;
    assert_eq!(check_stored(&db.client, "eu", 1).await, [number("r1"), number("r2")]);
}

#[tokio::test]
async fn every_cluster_has_a_leader_of_its_own() {
    let db = Database::new().await;
    let adapters = adapters(&db.server.uri(&db.name), &["adapter a", "adapter b"]).await;
    let targets = targets(&[&adapters[0], &adapters[1]]);
    let names = ["eu", "us", "asia"];
    let mut one: Vec<_> = names.iter().map(|name| Replica::start(name, "r1", &targets)).collect();
    for name in names {
        wait_leader(&adapters[0], name, "r1").await;
    }
    let _other: Vec<_> = names.iter().map(|name| Replica::start(name, "r2", &targets)).collect();
    wait_stored(&db.client, "us", number("r1"), 60).await;
    drop(one.remove(1));
    wait_leader(&adapters[1], "us", "r2").await;
    wait_stored(&db.client, "us", number("r2"), 40).await;
    let clusters = clusters(&adapters[1]).await;
    let leaders: Vec<_> = clusters.values().map(|one| one["leader"]["replica"].as_str()).collect();
    assert_eq!(leaders, [Some("r1"), Some("r1"), Some("r2")]);
    for (name, changes) in [("eu", 0), ("us", 1), ("asia", 0)] {
        check_stored(&db.client, name, changes).await;
    }
    let changes = async |at: usize| adapters[at].metric("cluster_leader_changes_total").await.unwrap_or_default();
    assert_eq!(changes(0).await + changes(1).await, 4.0);
}
