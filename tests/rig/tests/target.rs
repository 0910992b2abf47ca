//! A current Prometheus takes from the target what the target says that it does.

use std::io::Write;
use std::time::Duration;

use rig::prometheus::{self, Options, Prometheus};
use rig::target::{CLASSIC, NATIVE, NATIVE_GAUGE, SCRAPES, Scrape, Target};

/// Returns the only value of an answer.
async fn value(prometheus: &Prometheus, expression: &str, time: f64) -> Option<f64> {
    let answer = prometheus.query_at(expression, time).await;
    answer.rsplit_once("\"]")?.0.rsplit_once('"')?.1.parse().ok()
}

/// Returns count and sum of the histogram of a family.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn count_and_sum(scrape: &Scrape, name: &str) -> (f64, f64) {
    let family = scrape.families().into_iter().find(|family| family.name == name).expect("a family");
    let histogram = family.metrics[0].histogram.clone().expect("a histogram");
    (histogram.count as f64 + histogram.count_float, histogram.sum)
}

#[tokio::test]
async fn a_current_prometheus_takes_all_kinds_of_histograms() {
    let Some(program) = prometheus::current() else {
        let _ = writeln!(std::io::stderr(), "skipped: no current Prometheus is built: tests/prometheus/build");
        return;
    };
    let target = Target::start().await;
    let config = format!(
        "
global: {{scrape_interval: 200ms}}
scrape_configs:
  - job_name: target
    static_configs: [{{targets: ['{}']}}]
    scrape_native_histograms: true
    always_scrape_classic_histograms: true
    convert_classic_histograms_to_nhcb: true
",
        target.address()
    );
    let options = Options::new(config).program(program).arg("--enable-feature=exemplar-storage");
    let prometheus = Prometheus::start(options).await;
    target.wait_scrapes(5, Duration::from_secs(30)).await;

    // A Prometheus has stored a scrape before it begins the next one.
    let scrape = target.scrapes()[3];
    #[expect(clippy::cast_precision_loss, reason = "ms since 1970, which a double holds exactly")]
    let now = scrape.time_ms as f64 / 1_000.0;
    assert_eq!(value(&prometheus, SCRAPES, now).await, Some(4.0));
    for name in [CLASSIC, NATIVE, NATIVE_GAUGE] {
        let (count, sum) = count_and_sum(&scrape, name);
        assert_eq!(value(&prometheus, &format!("histogram_count({name})"), now).await, Some(count), "{name}");
        assert_eq!(value(&prometheus, &format!("histogram_sum({name})"), now).await, Some(sum), "{name}");
    }
    // More buckets are not taken for a reset.
    let resets = value(&prometheus, &format!("resets({NATIVE}[1m])"), now).await;
    assert_eq!(resets, Some(0.0));
    for float in scrape.floats(true) {
        let le = float.le.map(|le| format!("{{le=\"{le}\"}}")).unwrap_or_default();
        assert_eq!(value(&prometheus, &format!("{}{le}", float.name), now).await, Some(float.value), "{float:?}");
    }
    let exemplars = prometheus.exemplars("{__name__=~\"target_.*\"}", now - 60.0, now + 1.0).await;
    for (family, exemplar) in scrape.exemplars(true) {
        assert!(exemplars.contains(&exemplar.labels[0].value), "{family}: {exemplar:?} in {exemplars}");
    }
}
