//! What is stored of a cluster, held against what its two Prometheis have in their own databases.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rig::coverage::{Scrapes, Side, Stored};
use rig::postgres::Postgres;
use rig::prometheus::Prometheus;
use serde_json::Value;
use tokio_postgres::Client;

/// Milliseconds between scrapes, and between evaluations.
const SCRAPE_MS: i64 = 1_000;

/// A scrape of a busy machine may be so late.
const LATE_MS: i64 = SCRAPE_MS / 10;

/// Two sides' scrapes that are no farther apart are one.
const HALF_MS: u64 = SCRAPE_MS.unsigned_abs() / 2;

/// By then all that was scraped is covered: what the leading side missed is stored after two intervals and 5 s.
const COVERED_WITHIN: Duration = Duration::from_secs(30);

/// So long, at most, the memory of one adapter may have been all that had a scrape which the leading side did not make: as above, and
/// in a process that is dead then.
const BUFFERED_MS: i64 = 2 * SCRAPE_MS + 5_000 + 2 * SCRAPE_MS;

/// So long, at most, a Prometheus has a sample that it has not sent: `batch_send_deadline` in the configurations, and a request.
const UNSENT_MS: i64 = 2 * SCRAPE_MS;

/// Before that some targets have not been scraped, and some rules not been evaluated, by both: each side spreads its first
/// ones over an interval, and on a busy machine one is up a second or two before the other.
const WARM_MS: i64 = 4 * SCRAPE_MS;

/// All that a Prometheus has. Without alerts, which are series only while they burn: the sides need not agree on that.
const OWN: &str = r#"{__name__=~".+", __name__!~"ALERTS|ALERTS_FOR_STATE"}"#;

/// Every series of a cluster with the times of its samples.
const STORED: &str = "
SELECT l.metric_name, l.labels::text, array_agg((extract(epoch FROM v.time) * 1000)::bigint ORDER BY v.time)
FROM metrics_values v JOIN metrics_labels l ON l.id = v.labels_id
WHERE l.labels ->> 'cluster' = $1 GROUP BY l.id, l.metric_name, l.labels";

/// Times in ms since 1970 of the samples of each series, which is its labels.
type Times = BTreeMap<BTreeMap<String, String>, Vec<i64>>;

/// Whose samples are judged.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Its label `cluster`.
    pub(crate) cluster: &'a str,
    /// Its replicas.
    pub(crate) sides: [&'a Prometheus; 2],
    /// What was killed.
    pub(crate) deaths: &'a [Death],
}

/// A process that was killed, and with it what it alone had.
#[derive(Clone, Copy)]
pub(crate) struct Death {
    /// When, ms since 1970.
    pub(crate) at_ms: i64,
    /// The side whose Prometheus it was; `None` if it was an adapter.
    pub(crate) side: Option<usize>,
}

impl Death {
    /// Whether what these sides have scraped at a time, and nobody has stored, may have died so.
    fn explains(&self, time_ms: i64, made_by: [bool; 2]) -> bool {
        let (is_alone, most_ms) = match self.side {
            None => (made_by != [true, true], BUFFERED_MS),
            Some(side) => (made_by[side] && !made_by[1 - side], UNSENT_MS),
        };
        is_alone && (self.at_ms - most_ms..=self.at_ms).contains(&time_ms)
    }
}

/// A process is killed now.
pub(crate) fn death(side: Option<usize>) -> Death {
    Death { at_ms: now_ms(), side }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Samples stored.
    pub(crate) samples: usize,
    /// Series stored.
    pub(crate) series: usize,
    /// Scrapes that a Prometheus has, and of which the store has neither side's, but for those that died with an adapter.
    pub(crate) lost: usize,
    /// Scrapes that one side alone had made, right before its Prometheus or an adapter was killed: what only that had is gone.
    pub(crate) died: usize,
    /// Samples of a scrape that has one already.
    pub(crate) doubled: usize,
    /// The first of those lost or doubled, in words.
    pub(crate) example: Option<String>,
}

/// Judges all that is stored of a cluster, once all that was scraped until now is.
pub(crate) async fn judge(postgres: &Postgres, subject: &Subject<'_>, began: Instant) -> Findings {
    let client = postgres.connect("postgres").await;
    let (asked, until) = (Instant::now(), now_ms());
    loop {
        let expression = format!("{OWN}[{}s]", began.elapsed().as_secs() + 1);
        let scraped = [own(subject.sides[0], &expression).await, own(subject.sides[1], &expression).await];
        let stored = stored(&client, subject.cluster).await;
        let from = stored.values().filter_map(|times| times.first()).min().copied().unwrap_or(until) + WARM_MS;
        let findings = compare(&stored, &scraped, from..until, subject.deaths);
        if findings.lost == 0 || asked.elapsed() > COVERED_WITHIN {
            return findings;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The time in ms since 1970.
fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(now.as_millis()).expect("the clock is not far ahead")
}

/// What the database has of a cluster.
async fn stored(client: &Client, cluster: &str) -> Times {
    let mut stored = Times::new();
    for row in client.query(STORED, &[&cluster]).await.expect("cannot read what is stored") {
        let labels: BTreeMap<String, String> = serde_json::from_str(row.get(1)).expect("labels are an object of texts");
        let name = ("__name__".to_owned(), row.get(0));
        let labels = labels.into_iter().filter(|(name, _)| name != "cluster").chain([name]).collect();
        stored.insert(labels, row.get(2));
    }
    stored
}

/// What a Prometheus has in its own database.
async fn own(prometheus: &Prometheus, expression: &str) -> Times {
    let answer = prometheus.query(expression).await;
    let parse = || {
        let json: Value = serde_json::from_str(&answer).ok()?;
        let series = json.pointer("/data/result")?.as_array()?.iter().map(|series| {
            let labels = serde_json::from_value(series.get("metric")?.clone()).ok()?;
            let time = |sample: &Value| {
                #[expect(clippy::cast_possible_truncation, reason = "ms since 1970, which a double holds exactly")]
                sample.get(0)?.as_f64().map(|seconds| (seconds * 1_000.0).round() as i64)
            };
            let times = series.get("values")?.as_array()?.iter().map(time).collect::<Option<_>>()?;
            Some((labels, times))
        });
        series.collect::<Option<Times>>().filter(|times| !times.is_empty())
    };
    parse().unwrap_or_else(|| panic!("{expression} was answered {}", answer.chars().take(500).collect::<String>()))
}

/// Judges every series that is stored or that a side has; what was scraped, within `span`.
fn compare(stored: &Times, scraped: &[Times; 2], span: Range<i64>, deaths: &[Death]) -> Findings {
    let scrapes = Scrapes { interval_ms: SCRAPE_MS, jitter_ms: LATE_MS };
    let samples = stored.values().map(Vec::len).sum();
    let mut findings = Findings { samples, series: stored.len(), ..Findings::default() };
    let labels: BTreeSet<_> = stored.keys().chain(scraped.iter().flat_map(BTreeMap::keys)).collect();
    for labels in labels {
        let of = |times: &Times| times.get(labels).cloned().unwrap_or_default();
        let (stored, scraped) = (of(stored), scraped.each_ref().map(of));
        // A stale marker, which no query shows, is of neither.
        let has = |side: usize, time: &i64| scraped[side].binary_search(time).is_ok();
        let sides = |time: &i64| u32::from(has(0, time)) | u32::from(has(1, time)) << 1;
        let stored: Vec<Stored> = stored.iter().map(|time| Stored { time_ms: *time, sides: sides(time) }).collect();
        let within = |times: &Vec<i64>| times.iter().copied().filter(|time| span.contains(time)).collect::<Vec<_>>();
        let scraped = scraped.each_ref().map(within);
        let lost = scrapes.lost(&scraped.each_ref().map(|times| Side { times, ahead_ms: 0 }), &stored);
        let made_by = |times: &Vec<i64>, time: i64| times.iter().any(|made| made.abs_diff(time) <= HALF_MS);
        let has_died = |time: &i64| {
            let made_by = scraped.each_ref().map(|times| made_by(times, *time));
            deaths.iter().any(|death| death.explains(*time, made_by))
        };
        let (died, lost): (Vec<i64>, Vec<i64>) = lost.into_iter().partition(has_died);
        findings.died += died.len();
        let doubled = scrapes.doubled(&stored);
        findings.lost += lost.len();
        findings.doubled += doubled.len();
        if findings.example.is_none() && !(lost.is_empty() && doubled.is_empty()) {
            let around = stored.iter().filter(|stored| {
                lost.iter()
                    .chain(&doubled)
                    .take(3)
                    .any(|time| time.abs_diff(stored.time_ms) < 3 * SCRAPE_MS.unsigned_abs())
            });
            let around: Vec<_> = around.map(|stored| (stored.time_ms, stored.sides)).collect();
            findings.example =
                Some(format!("{labels:?}: lost {lost:?}, doubled {doubled:?}; stored around {around:?}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scrapes of one side: from, to, each second, in ms.
    fn each_second(from: i64, to: i64) -> Vec<i64> {
        (from..to).step_by(1_000).collect()
    }

    fn series(times: &[i64]) -> Times {
        Times::from([(BTreeMap::new(), times.to_vec())])
    }

    /// Two sides scrape for 20 s, the second one 300 ms later; from 4 s on it counts.
    #[track_caller]
    fn check(stored: &[Vec<i64>], lost: usize, doubled: usize) {
        let sides = [series(&each_second(0, 20_000)), series(&each_second(300, 20_000))];
        let mut stored = stored.concat();
        stored.sort_unstable();
        let findings = compare(&series(&stored), &sides, 4_000..20_000, &[]);
        assert_eq!((findings.lost, findings.doubled), (lost, doubled), "{:?}", findings.example);
        assert_eq!(findings.example.is_some(), lost + doubled > 0);
    }

    #[test]
    fn either_side_may_be_stored() {
        check(&[each_second(0, 20_000)], 0, 0);
        check(&[each_second(0, 8_000), each_second(8_300, 20_000)], 0, 0);
        check(&[each_second(0, 8_000), vec![8_300], each_second(9_000, 20_000)], 0, 0);
        check(&[each_second(4_300, 20_000)], 0, 0);
    }

    #[test]
    fn what_is_missing_is_counted() {
        check(&[each_second(0, 8_000), each_second(9_000, 20_000)], 1, 0);
        check(&[each_second(0, 15_000)], 5, 0);
        check(&[], 16, 0);
    }

    #[test]
    fn what_one_process_alone_had_dies_with_it() {
        let sides = [series(&[5_000, 6_000, 7_000]), series(&[5_300, 6_300, 7_300, 8_300])];
        let check = |stored: &[i64], until_ms: i64, deaths: &[Death], lost: usize, died: usize| {
            let findings = compare(&series(stored), &sides, 4_000..until_ms, deaths);
            assert_eq!((findings.lost, findings.died), (lost, died), "{:?}", deaths.first().map(|death| death.at_ms));
        };
        let stored = [5_000, 6_000, 7_000];
        check(&stored, 20_000, &[], 1, 0);
        for (at_ms, died) in [(8_300, 1), (8_299, 0), (17_299, 1), (17_301, 0)] {
            check(&stored, 20_000, &[Death { at_ms, side: None }], 1 - died, died);
        }
        check(&stored[..2], 7_500, &[Death { at_ms: 7_400, side: None }], 1, 0);
        for (at_ms, side, died) in [(8_300, 1, 1), (10_300, 1, 1), (8_299, 1, 0), (10_301, 1, 0), (8_300, 0, 0)] {
            check(&stored, 20_000, &[Death { at_ms, side: Some(side) }], 1 - died, died);
        }
        check(&stored[..2], 7_500, &[Death { at_ms: 7_400, side: Some(1) }], 1, 0);
    }

    #[test]
    fn what_is_there_twice_is_counted() {
        check(&[each_second(0, 8_000), each_second(7_000, 20_000)], 0, 1);
        check(&[each_second(0, 20_000), each_second(5_300, 9_000)], 0, 4);
        check(&[each_second(0, 20_000), vec![5_150]], 0, 0);
    }
}
