use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn filled() -> Metrics {
    let metrics = Metrics::new();
    metrics.set_role("leader");
    metrics.transitions_total.with_label_values(&["leader", "lock_obtained"]).inc();
    metrics.samples_duplicate_total.with_label_values(&["retry"]).inc_by(2);
    metrics.samples_rejected_total.with_label_values(&["quote \" backslash \\ line\n"]).inc();
    metrics.write_requests_total.with_label_values(&["204"]).inc();
    metrics.read_requests_total.with_label_values(&["200"]).inc();
    metrics.commit_duration_seconds.observe(0.003);
    metrics.postgres_error(Some("40001"));
    metrics.postgres_error(None);
    metrics
}

#[test]
fn promtool_accepts_the_text() {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        let _ = writeln!(std::io::stderr(), "skipped: promtool is not installed");
        return;
    };
    child.stdin.take().unwrap().write_all(filled().render().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn every_name_has_the_prefix() {
    let text = filled().render();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with(&format!("{PREFIX}_")) || line.starts_with("process_"), "{line}");
    }
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    assert!(text.contains("prometheus_postgresql_adapter_postgres_errors_total{class=\"40\"} 1\n"), "{text}");
    assert!(text.contains("prometheus_postgresql_adapter_postgres_errors_total{class=\"connection\"} 1\n"), "{text}");
    assert!(text.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")), "{text}");
}

#[test]
fn one_role_at_a_time() {
    let metrics = Metrics::new();
    for role in ROLES {
        metrics.set_role(role);
        let text = metrics.render();
        let current: Vec<_> = text.lines().filter(|line| line.contains("_role{") && line.ends_with(" 1")).collect();
        assert_eq!(current, [format!("{PREFIX}_role{{role=\"{role}\"}} 1")]);
        assert_eq!(metrics.leader.get(), i64::from(role == "leader"));
    }
}

#[test]
fn two_adapters_count_apart() {
    let (one, other) = (Metrics::new(), Metrics::new());
    one.samples_stored_total.inc();
    one.clone().samples_stored_total.inc();
    assert_eq!((one.samples_stored_total.get(), other.samples_stored_total.get()), (2, 0));
}
