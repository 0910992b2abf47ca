//! What a change of leader passes over is stored by whoever brings it.

use rig::adapter::Adapter;

use super::candidate;
use crate::setup::{Body, Database, SOON, at, now_ms};

/// Sends samples of one series, each a counter's, until they are taken.
async fn send(adapter: &Adapter, times: &[i64]) {
    let samples: Vec<_> = times.iter().map(|time_ms| at(*time_ms, 1.0)).collect();
    let body = Body::new().series(&[("__name__", "steady")], &samples).compressed();
    let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
    adapter.process().wait_until("it takes a request", SOON, taken).await;
}

/// The times stored of it.
async fn stored(db: &Database) -> Vec<i64> {
    db.column("SELECT (extract(epoch FROM time) * 1000)::bigint FROM metrics WHERE name = 'steady' ORDER BY time").await
}

#[tokio::test]
async fn a_hole_is_filled_once_by_the_standby_that_brings_it() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let now = now_ms();
    let times = |from_s: i64, to_s: i64| -> Vec<i64> { (from_s..=to_s).step_by(5).map(|s| now + s * 1_000).collect() };
    let a = candidate(&uri, "adapter a").start().await;
    send(&a, &times(-120, -90)).await;
    a.process().kill9().await;
    // Its host was down, too: it knows nothing of the time before.
    let c = candidate(&uri, "adapter c").start().await;
    send(&c, &times(-20, 0)).await;
    c.wait_role("leader", SOON).await;
    assert_eq!(stored(&db).await, [times(-120, -90), times(-20, 0)].concat());
    // Cut off all the while, its Prometheus has it all.
    let b = candidate(&uri, "adapter b").start().await;
    send(&b, &times(-118, -3)).await;
    b.wait_role("standby", SOON).await;
    let filled = async || (stored(&db).await.len() > 12).then_some(());
    b.process().wait_until("the hole is filled", SOON, filled).await;
    let whole = [times(-120, -90), times(-88, -23), times(-20, 0)].concat();
    assert_eq!(stored(&db).await, whole);
    // Whatever else brings it again finds it stored.
    for (adapter, again) in [(&b, times(-118, -3)), (&c, times(-119, -19))] {
        let seen = adapter.process().log().len();
        send(adapter, &again).await;
        adapter.process().wait_for_log_after(seen, "samples that a change of leader left in doubt", SOON).await;
    }
    assert_eq!(stored(&db).await, whole);
    assert_eq!(b.metric("samples_filled_total").await, Some(14.0));
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 2, "nobody else led");
}
