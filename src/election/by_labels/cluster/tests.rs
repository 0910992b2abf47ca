use super::*;

#[test]
fn nothing_is_known_of_a_cluster_before_its_row_is_read() {
    let now = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(15)));
    cluster.on_request("a", 0, now);
    assert_eq!(cluster.role("a", now), Role::Unknown);
    assert_eq!(cluster.candidate(None, now), Some("a"));
}
