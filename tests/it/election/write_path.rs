//! A leader that can renew its lock but cannot store.

use std::time::{Duration, Instant};

use super::lock::pooler;
use super::{Member, candidate, report, wait_true};
use crate::setup::{Database, SOON, skipped};

const LEASE: &str = "-leader-election-lease=3s";

#[tokio::test]
async fn another_one_leads_where_only_the_leaders_writes_fail() {
    let db = Database::new().await;
    let Some((pooler, _directory, port)) = pooler(db.server).await else {
        skipped("no pgbouncer: run make install-deps");
        return;
    };
    let (direct, pooled) = (db.server.uri(&db.name), format!("postgres://postgres@127.0.0.1:{port}/{}", db.name));
    let lock_uri = format!("-pg-lock-uri={direct}");
    let a = Member::start(&candidate(&pooled, "adapter a").arg(lock_uri).arg(LEASE), "a").await;
    a.wait("leader").await;
    let b = Member::start(&candidate(&direct, "adapter b").arg(LEASE), "b").await;
    b.wait("standby").await;
    a.takes().await;
    let (seen, since) = ((a.log_len(), b.log_len()), Instant::now());
    pooler.kill9().await;
    let took = b.leads_after(seen.1, since).await;
    report("take-over from a leader whose writes fail (lease 3 s)", took);
    // At most the time that a request of its Prometheus waits for the next attempt, and then the lease.
    assert!(took < Duration::from_secs(10), "{took:?}");
    a.adapter.process().wait_for_log_after(seen.0, "no write of this adapter was committed for", SOON).await;
    wait_true(&db.client, "SELECT count(*) > 10 FROM metrics WHERE name = 'from_b'").await;
    a.wait("standby").await;
}

#[tokio::test]
async fn one_alone_whose_writes_fail_stores_again_once_they_do_not() {
    let db = Database::new().await;
    let a = Member::start(&candidate(&db.server.uri(&db.name), "adapter a").arg(LEASE), "a").await;
    a.wait("leader").await;
    a.takes().await;
    let seen = a.log_len();
    db.run("ALTER TABLE metrics_hot RENAME TO metrics_away").await;
    a.adapter.process().wait_for_log_after(seen, "no write of this adapter was committed for", SOON).await;
    db.run("ALTER TABLE metrics_away RENAME TO metrics_hot").await;
    let before = a.sender.acknowledged().all;
    let takes = async || (a.sender.acknowledged().all > before + 10).then_some(());
    a.adapter.process().wait_until("it stores again", SOON, takes).await;
}
