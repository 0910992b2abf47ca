//! A Prometheus that sends what its adapter cannot read is present, but is no reason to lead.

use super::{HOLDER, Member, candidate, check_stored, pair};
use crate::setup::{Database, SOON, now_ms, send_unreadable, wait_ready};

const TIMEOUT: &str = "-leader-election-pg-advisory-lock-prometheus-timeout=1s";

/// Log texts that must not appear about a Prometheus that sends.
const SILENT: [&str; 2] = ["own Prometheus is silent", "no write request"];

#[tokio::test]
async fn an_unreadable_prometheus_costs_its_adapter_the_lead() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[TIMEOUT]).await;
    let seen = (a.log_len(), b.log_len());
    a.sender.pause();
    let since_ms = now_ms();
    let process = a.adapter.process();
    let resigned = async || {
        assert_eq!(send_unreadable(&a.adapter).await.status, 415);
        let lines = process.log().lines();
        lines[seen.0..].iter().find(|line| line.contains(r#"resigned" group="lock 1""#)).cloned()
    };
    let line = process.wait_until("it resigns", SOON, resigned).await;
    assert!(line.contains("own Prometheus sends only what is refused"), "{line}");
    assert!(line.contains("Content-Encoding"), "{line}");
    b.adapter.process().wait_for_log_after(seen.1, "became leader", SOON).await;
    b.takes().await;
    // The adapter is still resigned, and not ready; but its Prometheus is not called silent.
    send_unreadable(&a.adapter).await;
    a.wait("resigned").await;
    let ready = a.adapter.get("/-/ready").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("Content-Encoding"), "{}", ready.text());
    let lines = process.log().lines()[seen.0..].join("\n");
    assert!(SILENT.iter().all(|silent| !lines.contains(silent)), "{lines}");
    // No sample of b is missing, from the last sample of a on that could be stored.
    check_stored(&db.client, &b, "b").await;
    let from = "SELECT (extract(epoch FROM min(time)) * 1000)::bigint FROM metrics WHERE name = 'from_b'";
    let from_ms = db.one::<i64>(from).await;
    assert!(from_ms <= since_ms + 200, "stored from {} ms after it", from_ms - since_ms);
    a.sender.resume();
    a.wait("standby").await;
    wait_ready(&a.adapter).await;
}

#[tokio::test]
async fn alone_it_neither_leads_nor_is_ready_until_it_can_be_read() {
    let db = Database::new().await;
    let options = candidate(&db.server.uri(&db.name), "adapter").arg(TIMEOUT);
    let adapter = options.start().await;
    adapter.wait_role("resigned", SOON).await;
    for _ in 0..20 {
        assert_eq!(send_unreadable(&adapter).await.status, 415);
        assert_eq!(adapter.get("/-/ready").await.unwrap().status, 503);
        assert!(db.column::<i32>(HOLDER).await.is_empty());
    }
    let member = Member { sender: super::Sender::start(&adapter, "a"), adapter };
    member.wait("leader").await;
    wait_ready(&member.adapter).await;
    member.takes().await;
}
