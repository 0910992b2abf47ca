//! A real Prometheus starts, responds to queries, and starts again on its data.

use rig::prometheus::{Options, Prometheus};
use std::io::Write;

#[tokio::test]
async fn starts_answers_and_starts_again() {
    if std::process::Command::new("prometheus").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: no prometheus in PATH");
        return;
    }
    let mut prometheus = Prometheus::start(Options::new("global: {scrape_interval: 1s}\n")).await;
    for _ in 0..2 {
        let answer = prometheus.query("vector(42) + 0").await;
        assert!(answer.contains(r#""42""#), "{answer}");
        assert_eq!(prometheus.sender().await.failed, 0.0);
        prometheus.kill9().await;
        prometheus.start_again().await;
    }
}
