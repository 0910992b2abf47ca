//! Two current Prometheis are a pair, and the adapter that leads is killed: every scrape is stored once, native histograms and
//! exemplars included.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::*;
use crate::election::candidate;

/// Half of the interval at which both scrape, ms: of two scrapes that are no further apart one is stored.
const HALF_MS: i64 = 500;

/// Asserts that what is stored of each series are scrapes of either Prometheus, and that each scrape is stored or another
/// one beside it, but no two scrapes beside each other.
fn assert_once<V: PartialEq + Debug>(
    stored: &BTreeMap<Labels, BTreeMap<i64, V>>,
    own: [&BTreeMap<Labels, BTreeMap<i64, V>>; 2],
    is_same: impl Fn(&V, &V) -> bool,
) {
    let empty = BTreeMap::new();
    let names = |all: &BTreeMap<Labels, BTreeMap<i64, V>>| all.keys().cloned().collect::<BTreeSet<Labels>>();
    assert_eq!(names(stored), &names(own[0]) | &names(own[1]));
    for (series, stored) in stored {
        let sent = own.map(|own| own.get(series).unwrap_or(&empty));
        for (ms, value) in stored {
            let is_sent = sent.iter().any(|sent| sent.get(ms).is_some_and(|sent| is_same(value, sent)));
            assert!(is_sent, "{series:?} at {ms}: {value:?} is stored, and nobody sent it");
        }
        let near = |ms: &i64, reach_ms| stored.range(ms - reach_ms..=ms + reach_ms).count();
        for ms in sent.iter().flat_map(|sent| sent.keys()) {
            assert!(near(ms, HALF_MS + 50) > 0, "{series:?} at {ms} is lost: {:?}", stored.keys());
        }
        for ms in stored.keys() {
            assert_eq!(near(ms, HALF_MS - 50), 1, "{series:?} at {ms} is stored twice: {:?}", stored.keys());
        }
    }
}

async fn is_stored_once(message: &str) {
    let Some(program) = prometheus::current() else {
        skipped("no current Prometheus is built: tests/prometheus/build");
        return;
    };
    let (database, target) = (Database::new().await, Target::start().await);
    let uri = database.server.uri(&database.name);
    let start = async |name: &str, role: &str| {
        let adapter = candidate(&uri, name).start().await;
        let config = config(&target, name, &adapter.url("/write"), message);
        let options = prometheus::Options::new(config).program(program.clone()).arg(FEATURES);
        let prometheus = Prometheus::start(options).await;
        adapter.wait_role(role, SOON).await;
        (adapter, prometheus)
    };
    let (leader, first) = start("a", "leader").await;
    let (standby, second) = start("b", "standby").await;
    // Both have seen every series often enough to know its interval.
    target.wait_scrapes(target.scrapes().len() + 4 * SCRAPES, SCRAPING).await;
    leader.process().kill9().await;
    standby.wait_role("leader", SOON).await;
    target.wait_scrapes(target.scrapes().len() + 2 * SCRAPES, SCRAPING).await;
    let until = now_ms();
    let stored = async || (database.one::<Option<i64>>(STORED_UNTIL).await? > until).then_some(());
    second.process().wait_until("what was scraped is stored", SOON, stored).await;

    let is_near = |one: &f64, other: &f64| one == other || (one - other).abs() <= 1e-14 * one.abs();
    let are_near = |one: &Vec<f64>, other: &Vec<f64>| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_near(one, other))
    };
    let own = [own_histograms(&first, until).await, own_histograms(&second, until).await];
    let histograms = stored_histograms(&database, until).await;
    assert!(histograms.len() >= 2, "{:?}", histograms.keys());
    assert_once(&histograms, own.each_ref(), are_near);
    let own = [own_samples(&first, until).await, own_samples(&second, until).await];
    assert_once(&stored_samples(&database, until).await, own.each_ref(), u64::eq);
    // Of a killed adapter what its Prometheus sent last may be lost; the other one sends exemplars of its own scrapes.
    let exemplars = stored_exemplars(&database, until).await;
    for (of, exemplar) in own_exemplars(&second, until).await {
        assert_eq!(exemplars.get(&of).map(|(bits, _)| *bits), Some(exemplar.0), "{of:?}");
    }
}

#[tokio::test]
async fn each_scrape_of_a_pair_is_stored_once_by_version_1() {
    is_stored_once("").await;
}

#[tokio::test]
async fn each_scrape_of_a_pair_is_stored_once_by_version_2() {
    is_stored_once(VERSION_2).await;
}
