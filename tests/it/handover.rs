//! An acknowledged sample is stored once, whoever leads and however it arrives. Each test is a fault that once broke
//! this rule.

use std::ops::Range;

use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Sample};
use rig::adapter::{Adapter, Options};

use crate::election::candidate;
use crate::setup::{Body, Database, SOON, at, now_ms, start};

/// A day, ms.
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Starts a leader `a` and a standby `b`. `b` leads when `a` is gone.
async fn pair(db: &Database, arguments: &[&str]) -> (Adapter, Adapter) {
    let uri = db.server.uri(&db.name);
    let options = |name| arguments.iter().fold(candidate(&uri, name), |options, argument| options.arg(*argument));
    let awake = [now_ms()];
    let a = options("adapter a").start().await;
    send(&a, "awake", &awake).await;
    a.wait_role("leader", SOON).await;
    let b = options("adapter b").start().await;
    send(&b, "awake", &awake).await;
    b.wait_role("standby", SOON).await;
    (a, b)
}

/// Sends samples of one series until they are accepted. The value of each sample is its time.
async fn send(adapter: &Adapter, metric: &str, times: &[i64]) {
    send_body(adapter, Body::new().series(&[("__name__", metric)], &samples(times))).await;
}

async fn send_body(adapter: &Adapter, body: Body) {
    let body = body.compressed();
    let taken = async || (adapter.write(body.clone()).await.status == 204).then_some(());
    adapter.process().wait_until("it takes a request", SOON, taken).await;
}

#[expect(clippy::cast_precision_loss, reason = "times of today")]
fn samples(times: &[i64]) -> Vec<Sample> {
    times.iter().map(|time_ms| at(*time_ms, *time_ms as f64)).collect()
}

/// Returns the stored times of a series in order, each as often as it is stored.
async fn stored(db: &Database, metric: &str) -> Vec<i64> {
    let sql =
        format!("SELECT (extract(epoch FROM time) * 1000)::bigint FROM metrics WHERE name = '{metric}' ORDER BY 1");
    db.column(&sql).await
}

/// Waits until exactly these times of a series are stored.
async fn wait_stored(db: &Database, adapter: &Adapter, metric: &str, expected: &[i64]) {
    let is_stored = async || (stored(db, metric).await.len() >= expected.len()).then_some(());
    adapter
        .process()
        .wait_until(&format!("{} samples of {metric} are stored", expected.len()), SOON * 2, is_stored)
        .await;
    check_same(&stored(db, metric).await, expected);
}

/// Checks that two lists of times are equal, and reports the missing, unexpected and repeated ones.
fn check_same(stored: &[i64], expected: &[i64]) {
    let missing: Vec<_> = expected.iter().filter(|time_ms| !stored.contains(time_ms)).collect();
    let unexpected: Vec<_> = stored.iter().filter(|time_ms| !expected.contains(time_ms)).collect();
    let repeated: Vec<_> = stored.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).collect();
    assert!(
        missing.is_empty() && unexpected.is_empty() && repeated.is_empty(),
        "of {}: {} missing {missing:?}, {} unexpected {unexpected:?}, repeated {repeated:?}",
        expected.len(),
        missing.len(),
        unexpected.len(),
    );
}

/// Returns times at a distance of `step_ms`.
fn every(step_ms: i64, from_ms: i64, numbers: Range<i64>) -> Vec<i64> {
    numbers.map(|n| from_ms + n * step_ms).collect()
}

/// Seals all hot rows.
async fn seal(adapter: &Adapter) {
    let answer = adapter.client().post(&adapter.url("/admin/storage/seal"), &[], Vec::new()).await.expect("it answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn history_of_a_live_series_is_stored() {
    let db = Database::new().await;
    let (a, _b) = pair(&db, &[]).await;
    let live = every(5_000, now_ms() - 60_000, 0..12);
    send(&a, "live", &live).await;
    let history = every(70 * 60_000, now_ms() - 7 * DAY_MS, 0..144);
    send(&a, "live", &history).await;
    wait_stored(&db, &a, "live", &[history, live].concat()).await;
}

#[tokio::test]
async fn history_is_stored_newest_part_first_sealed_or_not() {
    let db = Database::new().await;
    let (a, _b) = pair(&db, &[]).await;
    let history = every(60_000, now_ms() - 7 * DAY_MS, 0..144);
    for part in history.chunks(36).rev() {
        send(&a, "backfilled", part).await;
        seal(&a).await;
    }
    send(&a, "backfilled", &history).await;
    wait_stored(&db, &a, "backfilled", &history).await;
}

/// The check of [`late_samples_are_stored_after_a_restart`] for one way to start an adapter.
async fn check_late_samples(options: &Options, db: &Database, metric: &str, is_sealed: bool) {
    let first = start(options).await;
    // Samples that only a standby has are lost when it dies. A candidate leads once a request arrives.
    send(&first, "first_of_all", &[now_ms()]).await;
    first.wait_role("leader", SOON).await;
    let scraped = every(15_000, now_ms() - 700_000, 0..40);
    send(&first, metric, &scraped).await;
    if is_sealed {
        seal(&first).await;
    }
    first.process().kill9().await;
    let again = options.start().await;
    // Scrapes continue, so that the adapter learns the interval again.
    let scraped_on = every(15_000, scraped[0], 40..45);
    send(&again, metric, &scraped_on).await;
    let late = every(15_000, scraped[0] + 6_000, 5..23);
    send(&again, metric, &late).await;
    let mut all = [scraped, scraped_on, late].concat();
    all.sort_unstable();
    wait_stored(db, &again, metric, &all).await;
}

#[tokio::test]
async fn late_samples_are_stored_after_a_restart() {
    let db = Database::new().await;
    for is_sealed in [false, true] {
        check_late_samples(&db.adapter(), &db, &format!("alone_{is_sealed}"), is_sealed).await;
        let elected = candidate(&db.server.uri(&db.name), "candidate");
        check_late_samples(&elected, &db, &format!("elected_{is_sealed}"), is_sealed).await;
    }
}

#[tokio::test]
async fn what_only_a_standby_is_sent_is_stored() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let now = now_ms();
    let mut all = Vec::new();
    for time_ms in every(1_000, now - 4_000, 0..5) {
        send(&a, "everywhere", &[time_ms]).await;
        send(&b, "everywhere", &[time_ms + 300]).await;
        send(&b, "only_b", &[time_ms + 300]).await;
        all.push(time_ms);
    }
    let only_b: Vec<i64> = all.iter().map(|time_ms| time_ms + 300).collect();
    wait_stored(&db, &b, "only_b", &only_b).await;
    assert_eq!(stored(&db, "everywhere").await, all);
    let is_empty = async || (b.metric("standby_held_samples").await == Some(0.0)).then_some(());
    b.process().wait_until("nothing is buffered any more", SOON, is_empty).await;
}

#[tokio::test]
async fn a_stale_marker_stands_for_nobodys_sample() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let scrapes = every(1_000, now_ms() - 12_000, 0..12);
    for (n, time_ms) in scrapes.iter().enumerate() {
        // The leader's scrape fails, so its sample is a stale marker.
        let value = if n == 8 { f64::from_bits(STALE_NAN_BITS) } else { 1.0 };
        send_body(&a, Body::new().series(&[("__name__", "up")], &[at(*time_ms, value)])).await;
        send(&b, "up", &[time_ms + 300]).await;
    }
    let mut expected = scrapes.clone();
    expected.insert(9, scrapes[8] + 300);
    wait_stored(&db, &b, "up", &expected).await;
    // The same if the leader's samples are sealed before the standby's samples arrive.
    for (n, time_ms) in scrapes.iter().enumerate() {
        let value = if n == 4 { f64::from_bits(STALE_NAN_BITS) } else { 1.0 };
        send_body(&a, Body::new().series(&[("__name__", "sealed")], &[at(*time_ms, value)])).await;
    }
    seal(&a).await;
    for time_ms in &scrapes {
        send(&b, "sealed", &[time_ms + 300]).await;
    }
    let mut expected = scrapes.clone();
    expected.insert(5, scrapes[4] + 300);
    wait_stored(&db, &b, "sealed", &expected).await;
}

#[tokio::test]
async fn each_side_misses_some_scrapes_and_the_store_none() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let now = now_ms();
    let (mut expected, mut slots) = (Vec::new(), 0..20_i64);
    slots.by_ref().for_each(|n| {
        let of_a = now - 20_000 + n * 1_000;
        // Both sides missed scrape 11.
        match n {
            11 => {}
            3 | 4 | 9 => expected.push(of_a + 300),
            _ => expected.push(of_a),
        }
    });
    for n in 0..20_i64 {
        let of_a = now - 20_000 + n * 1_000;
        if ![3, 4, 9, 11].contains(&n) {
            send(&a, "scraped", &[of_a]).await;
        }
        if ![5, 11, 15].contains(&n) {
            send(&b, "scraped", &[of_a + 300]).await;
        }
    }
    wait_stored(&db, &b, "scraped", &expected).await;
}

#[tokio::test]
async fn what_a_leader_was_still_to_be_sent_is_stored_when_it_dies() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let scraped = every(5_000, now_ms() - 100_000, 0..20);
    // One shard has sent all samples, another nothing for 60 s, and an exporter sets timestamps five minutes back.
    let backdated: Vec<i64> = scraped.iter().map(|time_ms| time_ms - 300_000).collect();
    send(&a, "quick_shard", &scraped).await;
    send(&a, "slow_shard", &scraped[..8]).await;
    send(&a, "backdated", &backdated[..15]).await;
    for (metric, times) in [("quick_shard", &scraped), ("slow_shard", &scraped), ("backdated", &backdated)] {
        send(&b, metric, times).await;
    }
    a.process().kill9().await;
    b.wait_role("leader", SOON).await;
    for (metric, times) in [("quick_shard", &scraped), ("slow_shard", &scraped), ("backdated", &backdated)] {
        wait_stored(&db, &b, metric, times).await;
    }
}

#[tokio::test]
async fn a_stranger_keeps_no_standby_from_storing() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let scraped = every(1_000, now_ms() - 10_000, 0..10);
    // The leader's own Prometheus is dead. A stranger still sends samples of now, of 1970, and of five minutes in the
    // future.
    for time_ms in &scraped {
        send(&a, "stranger", &[*time_ms]).await;
        send_body(&a, Body::new().sample("ancient", 0, 1.0)).await;
        send(&a, "future", &[time_ms + 300_000]).await;
        send(&b, "scraped", &[*time_ms]).await;
    }
    wait_stored(&db, &b, "scraped", &scraped).await;
    assert_eq!(b.role().await.as_deref(), Some("standby"));
    let is_empty = async || (b.metric("standby_held_samples").await == Some(0.0)).then_some(());
    b.process().wait_until("nothing is buffered any more", SOON, is_empty).await;
    assert_eq!(stored(&db, "ancient").await, [0]);
}

#[tokio::test]
async fn what_is_sent_again_in_other_batches_is_stored_once() {
    let db = Database::new().await;
    let (a, b) = pair(&db, &[]).await;
    let scraped = every(5_000, now_ms() - 1_800_000, 0..360);
    let by_b: Vec<i64> = scraped.iter().map(|time_ms| time_ms + 1_700).collect();
    for (part, of_b) in scraped[..300].chunks(50).zip(by_b[..300].chunks(50)) {
        send(&a, "replayed", part).await;
        send(&b, "replayed", of_b).await;
    }
    seal(&a).await;
    // A sender that repeats all samples since a request that was refused.
    for n in 300..320 {
        send(&a, "replayed", &scraped[290..=n]).await;
        check_same(&stored(&db, "replayed").await, &scraped[..=n]);
    }
    a.process().kill9().await;
    let replay = async {
        for part in by_b.chunks(37) {
            send(&b, "replayed", part).await;
        }
    };
    let (_, ()) = tokio::join!(b.wait_role("leader", SOON), replay);
    let all = [&scraped[..320], &by_b[320..]].concat();
    wait_stored(&db, &b, "replayed", &all).await;
    let a = candidate(&db.server.uri(&db.name), "adapter a").start().await;
    for part in scraped.chunks(41) {
        send(&a, "replayed", part).await;
    }
    let is_empty = async || (a.metric("standby_held_samples").await == Some(0.0)).then_some(());
    a.process().wait_until("nothing is buffered any more", SOON * 2, is_empty).await;
    check_same(&stored(&db, "replayed").await, &all);
}
