//! What is stored of a cluster, held against what its two Prometheis have in their own databases.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rig::postgres::Postgres;
use rig::prometheus::Prometheus;
use serde_json::Value;

/// Milliseconds between scrapes, and between evaluations.
const SCRAPE_MS: i64 = 1_000;

/// Scrapes of the two sides so close to each other are one and the same: which of them comes first is chance.
const SAME_MS: i64 = SCRAPE_MS / 10;

/// By then what was scraped has been sent and stored, on a busy machine too.
const SETTLED_MS: i64 = 5_000;

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
    /// Its name in the table of leaders.
    pub(crate) group: &'a str,
    /// Its replicas.
    pub(crate) sides: [&'a Prometheus; 2],
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Samples stored.
    pub(crate) samples: usize,
    /// Series stored.
    pub(crate) series: usize,
    /// Samples that a Prometheus has, and of whose scrape the store has neither side's.
    pub(crate) lost: usize,
    /// Samples at a time that their series has already, and changes from one side to the other that no change of
    /// leader explains.
    pub(crate) doubled: usize,
    /// The first that is wrong, in words.
    pub(crate) example: Option<String>,
}

/// Judges all that is stored of a cluster, but for the last seconds.
pub(crate) async fn judge(postgres: &Postgres, subject: &Subject<'_>, ran_for: Duration) -> Findings {
    let Subject { cluster, group, sides } = *subject;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let until = i64::try_from(now.as_millis()).expect("the clock is not far ahead") - SETTLED_MS;
    let expression = format!("{OWN}[{}s]", ran_for.as_secs() + 1);
    let scraped = [own(sides[0], &expression).await, own(sides[1], &expression).await];
    let client = postgres.connect("postgres").await;
    let mut stored = Times::new();
    for row in client.query(STORED, &[&cluster]).await.expect("cannot read what is stored") {
        let labels: BTreeMap<String, String> = serde_json::from_str(row.get(1)).expect("labels are an object of texts");
        let name = ("__name__".to_owned(), row.get(0));
        let labels = labels.into_iter().filter(|(name, _)| name != "cluster").chain([name]).collect();
        stored.insert(labels, row.get(2));
    }
    let term = "SELECT term FROM metrics_leader WHERE group_name = $1";
    let terms: i64 = client.query_one(term, &[&group]).await.expect("nobody led").get(0);
    let from = stored.values().filter_map(|times| times.first()).min().copied().unwrap_or(until) + WARM_MS;
    compare(&stored, &scraped, from..until, usize::try_from(terms).expect("terms count up"))
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

/// Judges every series that is stored or that a side has, within `span`; `terms` is how many leaders there were.
fn compare(stored: &Times, scraped: &[Times; 2], span: Range<i64>, terms: usize) -> Findings {
    let samples = stored.values().map(Vec::len).sum();
    let mut findings = Findings { samples, series: stored.len(), ..Findings::default() };
    let labels: BTreeSet<_> = stored.keys().chain(scraped.iter().flat_map(BTreeMap::keys)).collect();
    for labels in labels {
        let of = |times: &Times| times.get(labels).cloned().unwrap_or_default();
        let (stored, scraped) = (of(stored), scraped.each_ref().map(of));
        let (holes, twice) = (holes(&stored, &scraped, &span), twice(&stored, &scraped));
        let doubled = twice.at_once.len() + twice.stretches.len().saturating_sub(terms);
        findings.lost += holes.iter().map(|hole| hole.missing).sum::<usize>();
        findings.doubled += doubled;
        if findings.example.is_none() && (!holes.is_empty() || doubled > 0) {
            findings.example = Some(format!("{labels:?}: {doubled} doubled of {twice:?}, {holes:?}"));
        }
    }
    findings
}

/// Scrapes that are missing between two stored samples; before the first and after the last, one of these is none.
#[derive(Debug)]
struct Hole {
    missing: usize,
    #[expect(dead_code, reason = "for the eye")]
    between: [Option<i64>; 2],
}

/// Where scrapes of a series are missing.
///
/// The store has one side at a time. A side has no sample between two stored ones when one of these is its own; the
/// other side has one, because it scrapes at another moment. What is more is missing.
fn holes(stored: &[i64], scraped: &[Vec<i64>; 2], span: &Range<i64>) -> Vec<Hole> {
    let borders = [None].into_iter().chain(stored.iter().copied().map(Some)).chain([None]).collect::<Vec<_>>();
    let hole = |pair: &[Option<i64>]| {
        let from = pair[0].map_or(span.start, |time| span.start.max(time + SAME_MS));
        let to = pair[1].map_or(span.end, |time| span.end.min(time - SAME_MS));
        let missing = scraped.iter().map(|times| {
            let is_own = pair.iter().flatten().any(|time| times.binary_search(time).is_ok());
            let between = times.iter().filter(|time| (from..to).contains(*time)).count();
            between.saturating_sub(usize::from(!is_own))
        });
        Hole { missing: missing.max().unwrap_or(0), between: [pair[0], pair[1]] }
    };
    borders.windows(2).map(hole).filter(|hole| hole.missing > 0).collect()
}

/// Where a series was stored twice, in ms since 1970.
#[derive(Debug)]
struct Twice {
    /// At these times there is another sample.
    at_once: Vec<i64>,
    /// Here one side begins, be it that the other one ends.
    stretches: Vec<i64>,
}

/// Where a series was stored twice. What one side filled in where the other scraped nothing is neither.
fn twice(stored: &[i64], scraped: &[Vec<i64>; 2]) -> Twice {
    let at_once = stored.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    let is_stored = |at: &i64| stored.binary_search(at).is_ok();
    let is_filled_in = |time: &i64| {
        scraped.iter().any(|times| {
            let next = times.partition_point(|at| at < time);
            let before = next.checked_sub(1).map(|last| times[last]);
            // One that was up before the other one has the beginning alone.
            let is_beginning = stored.first().is_some_and(|first| *time < first + WARM_MS);
            let is_gap = |after: &i64| before.map_or(is_beginning, |before| after - before > SCRAPE_MS * 3 / 2);
            let is_between = |after: &i64| after != time && is_gap(after) && is_stored(after);
            before.iter().all(is_stored) && times.get(next).is_some_and(is_between)
        })
    };
    let (mut sides, mut stretches) = ([false, false], Vec::new());
    for time in stored.iter().filter(|time| !is_filled_in(time)) {
        let now = scraped.each_ref().map(|times| times.binary_search(time).is_ok());
        let still = [sides[0] && now[0], sides[1] && now[1]];
        if still != [false, false] {
            sides = still;
        } else if now != [false, false] {
            // Neither has a stale marker, which no query shows.
            sides = now;
            stretches.push(*time);
        }
    }
    Twice { at_once, stretches }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scrapes of one side: from, to, each second, in ms.
    fn each_second(from: i64, to: i64) -> Vec<i64> {
        (from..to).step_by(1_000).collect()
    }

    #[track_caller]
    fn check(stored: &[i64], terms: usize, lost: usize, doubled: usize) {
        let series = |times: &[i64]| Times::from([(BTreeMap::new(), times.to_vec())]);
        let sides = [series(&each_second(0, 20_000)), series(&each_second(300, 20_000))];
        let findings = compare(&series(stored), &sides, 0..20_000, terms);
        assert_eq!((findings.lost, findings.doubled), (lost, doubled), "{:?}", findings.example);
    }

    #[test]
    fn one_side_at_a_time_is_whole() {
        check(&each_second(0, 20_000), 1, 0, 0);
        check(&[each_second(0, 8_000), each_second(7_300, 20_000)].concat(), 2, 0, 0);
        check(&[each_second(300, 8_000), each_second(8_000, 20_000)].concat(), 2, 0, 0);
    }

    #[test]
    fn what_is_missing_is_counted() {
        check(&[each_second(0, 8_000), each_second(9_000, 20_000)].concat(), 1, 1, 0);
        check(&[each_second(0, 8_000), each_second(10_300, 20_000)].concat(), 2, 3, 0);
        check(&each_second(0, 15_000), 1, 5, 0);
        check(&each_second(6_000, 20_000), 1, 6, 0);
        check(&[], 0, 19, 0);
    }

    #[test]
    fn what_one_side_alone_scraped_is_filled_in_once() {
        let series = |times: Vec<i64>| Times::from([(BTreeMap::new(), times)]);
        let sides =
            [series([each_second(0, 8_000), each_second(12_000, 20_000)].concat()), series(each_second(300, 20_000))];
        let doubled = |filled_in: &[i64]| {
            let mut stored = [each_second(0, 8_000), filled_in.to_vec(), each_second(12_000, 20_000)].concat();
            stored.sort_unstable();
            compare(&series(stored), &sides, 0..20_000, 1).doubled
        };
        assert_eq!(doubled(&each_second(8_300, 12_000)), 0);
        assert_eq!(doubled(&each_second(8_300, 13_000)), 2, "where the other has samples, too");
        assert_eq!(doubled(&[3_300, 8_300, 9_300, 10_300, 11_300]), 2);
    }

    #[test]
    fn what_one_side_scraped_before_the_other_began_is_filled_in() {
        let series = |times: Vec<i64>| Times::from([(BTreeMap::new(), times)]);
        let sides = [series(each_second(0, 20_000)), series(each_second(1_700, 20_000))];
        let doubled = |stored: &[i64]| compare(&series(stored.to_vec()), &sides, 0..20_000, 2).doubled;
        let after = [each_second(1_700, 9_000), each_second(9_000, 20_000)].concat();
        assert_eq!(doubled(&[vec![0, 1_000], after].concat()), 0);
        let to_and_fro =
            [each_second(1_700, 4_000), vec![4_000, 4_700], each_second(5_000, 9_000), each_second(9_700, 20_000)];
        assert_eq!(doubled(&[vec![0, 1_000], to_and_fro.concat()].concat()), 3, "what comes later is not");
    }

    #[test]
    fn what_is_there_twice_is_counted() {
        check(&[each_second(0, 8_000), each_second(7_000, 20_000)].concat(), 1, 0, 1);
        let mut both = [each_second(0, 20_000), each_second(5_300, 9_000)].concat();
        both.sort_unstable();
        // To and fro four times; two leaders explain one of these eight changes.
        check(&both, 2, 0, 7);
    }
}
