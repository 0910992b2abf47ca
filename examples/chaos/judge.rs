//! What is stored, held against what the Prometheis know they were promised.

use rig::postgres::Postgres;
use tokio_postgres::Client;

use crate::host::{Shape, phase_ms};
use crate::message::is_constant;
use crate::mode::{Mode, REPLICAS};
use crate::witness;

/// Samples of one series, by time.
type Series = Vec<(i64, f64)>;

/// What the database has.
pub(crate) struct Stored {
    clusters: Vec<StoredCluster>,
    stale: i64,
}

struct StoredCluster {
    series: Vec<Series>,
    terms: i64,
    /// Changes from one replica to another that are as they should be.
    switches: i64,
}

/// What the Prometheis know.
#[derive(Clone)]
pub(crate) struct Promised {
    /// How they scrape.
    pub(crate) shape: Shape,
    /// How it was decided who leads.
    pub(crate) mode: Mode,
    /// Those of each cluster.
    pub(crate) clusters: Vec<Cluster>,
}

/// The Prometheis of a cluster, or of a pair.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Times of the acknowledged samples of each series, by replica.
    pub(crate) journals: Vec<Vec<Vec<i64>>>,
    /// How wrong each one's clock was.
    pub(crate) skews_ms: Vec<i64>,
}

impl Promised {
    /// What they know of the time before.
    pub(crate) fn before(mut self, until_ms: i64) -> Self {
        for times in self.clusters.iter_mut().flat_map(|cluster| &mut cluster.journals).flatten() {
            times.truncate(times.partition_point(|time_ms| *time_ms < until_ms));
        }
        self
    }
}

impl Stored {
    /// Leaves what is stored of the time before.
    pub(crate) fn forget_after(&mut self, until_ms: i64) {
        for samples in self.clusters.iter_mut().flat_map(|cluster| &mut cluster.series) {
            samples.truncate(samples.partition_point(|sample| sample.0 < until_ms));
        }
    }
}

/// What is wrong with it; all 0 when nothing is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Samples stored.
    pub(crate) stored: usize,
    /// Terms begun.
    pub(crate) terms: i64,
    /// Scrapes missing in a series though a Prometheus had been told that they are safe.
    pub(crate) lost: usize,
    /// Samples at a time that has one already, and switches between replicas that no change of leader explains.
    pub(crate) doubled: usize,
    /// Transactions of an old term, or with samples of a replica that does not lead.
    pub(crate) stale: i64,
    /// Times a counter ran backwards.
    pub(crate) backwards: usize,
    /// The first of each, in words.
    pub(crate) examples: Vec<String>,
}

/// Reads all of it.
pub(crate) async fn read(postgres: &Postgres, mode: Mode, shape: &Shape) -> Stored {
    let client = postgres.connect("postgres").await;
    let (stale, mut clusters) = (witness::stale(&client, mode).await, Vec::new());
    for cluster in mode.clusters() {
        let (terms, switches) = witness::terms(&client, mode, cluster).await;
        clusters.push(StoredCluster { series: samples(&client, cluster, shape).await, terms, switches });
    }
    Stored { clusters, stale }
}

/// How much of it is sealed.
pub(crate) async fn sealed_samples(postgres: &Postgres) -> i64 {
    let client = postgres.connect("postgres").await;
    let statement = "SELECT coalesce(sum(samples), 0)::bigint FROM metrics_segments";
    client.query_one(statement, &[]).await.expect("cannot count what is sealed").get(0)
}

async fn samples(client: &Client, cluster: &str, shape: &Shape) -> Vec<Series> {
    // Arrays: one row a series, not one a sample.
    let statement = "
        SELECT (l.labels->>'series')::integer,
               array_agg((extract(epoch FROM s.time) * 1000)::bigint ORDER BY s.time, s.value),
               array_agg(s.value ORDER BY s.time, s.value)
        FROM metrics_values s JOIN metrics_labels l ON l.id = s.labels_id
        WHERE l.metric_name IN ('chaos_constant', 'chaos_time_total', 'chaos:rule')
        AND l.labels->>'cluster' = $1 GROUP BY l.id, l.labels";
    let mut series = vec![Vec::new(); shape.series + shape.rules];
    for row in client.query(statement, &[&cluster]).await.expect("cannot read what is stored") {
        let (number, times, values): (i32, Vec<i64>, Vec<f64>) = (row.get(0), row.get(1), row.get(2));
        let number = usize::try_from(number).expect("series have numbers from 0 on");
        series[number].extend(times.into_iter().zip(values));
        // Two label sets for one series would be doubles too.
        series[number].sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    }
    series
}

/// Judges.
pub(crate) fn judge(promised: &Promised, stored: &Stored) -> Findings {
    let mut findings = Findings { stale: stored.stale, ..Findings::default() };
    for (cluster, stored) in promised.clusters.iter().zip(&stored.clusters) {
        judge_cluster(&promised.shape, cluster, stored, &mut findings);
    }
    findings
}

fn judge_cluster(shape: &Shape, cluster: &Cluster, stored: &StoredCluster, findings: &mut Findings) {
    findings.terms += stored.terms;
    let mut switches_max = 0;
    for (number, samples) in stored.series.iter().enumerate() {
        findings.stored += samples.len();
        let of = OneSeries { shape, cluster, number };
        let (mut lost, mut doubled, mut backwards, mut switches) = (of.lost(samples), 0, 0, 0);
        for pair in samples.windows(2) {
            let ((earlier_ms, before), (later_ms, after)) = (pair[0], pair[1]);
            doubled += usize::from(earlier_ms == later_ms);
            let is_counter = number < shape.series && !is_constant(shape, number);
            backwards += usize::from(is_counter && after < before);
            switches += i64::from(of.host(pair[0]) != of.host(pair[1]));
        }
        switches_max = switches_max.max(switches);
        for (what, count, total) in [
            ("lost", &mut lost, &mut findings.lost),
            ("doubled", &mut doubled, &mut findings.doubled),
            ("backwards", &mut backwards, &mut findings.backwards),
        ] {
            if *count > 0 && *total == 0 {
                findings.examples.push(format!("series {number}: {count} {what}: {}", of.excerpt(samples)));
            }
            *total += *count;
        }
    }
    let excess = usize::try_from(switches_max - stored.switches).unwrap_or(0);
    if excess > 0 {
        let (terms, allowed) = (stored.terms, stored.switches);
        findings.examples.push(format!("{switches_max} switches in one series, {terms} terms make {allowed} at most"));
    }
    findings.doubled += excess;
}

struct OneSeries<'a> {
    shape: &'a Shape,
    cluster: &'a Cluster,
    number: usize,
}

impl OneSeries<'_> {
    fn is_rule(&self) -> bool {
        self.number >= self.shape.series
    }

    /// Which host a stored sample is from: each scrapes at its own place in the interval; rules differ by value.
    fn host(&self, (time_ms, value): (i64, f64)) -> Option<usize> {
        (0..self.cluster.journals.len()).find(|host| {
            if self.is_rule() {
                #[expect(clippy::cast_precision_loss, reason = "one of three")]
                return (value.fract() - *host as f64 / 4.0).abs() < 0.1;
            }
            let offset_ms = time_ms - self.cluster.skews_ms[*host] - phase_ms(self.shape, *host);
            offset_ms.rem_euclid(self.shape.interval_ms) == 0
        })
    }

    /// Scrapes missing between stored samples, before the first and after the last.
    ///
    /// A side that is stored must be complete from its first to its last sample of a stretch, and where another side
    /// goes on, it does so with its next scrape. Of a side that is not stored one scrape lies between two stored
    /// ones, more mean that the stored side has a hole that the other could have filled.
    fn lost(&self, samples: &[(i64, f64)]) -> usize {
        let Some((first, last)) = samples.first().zip(samples.last()) else {
            return self.cluster.journals.iter().map(|journal| journal[self.number].len()).max().unwrap_or(0);
        };
        let within = samples.windows(2).map(|pair| self.missing(Some(pair[0]), Some(pair[1])));
        self.missing(None, Some(*first)) + within.sum::<usize>() + self.missing(Some(*last), None)
    }

    fn missing(&self, after: Option<(i64, f64)>, before: Option<(i64, f64)>) -> usize {
        let sides = [after, before].map(|sample| sample.and_then(|sample| self.host(sample)));
        let at_edge = after.is_none() || before.is_none();
        let from_ms = after.map_or(i64::MIN, |(time_ms, _)| time_ms.saturating_add(self.excused_ms(sides)));
        let to_ms = before.map_or(i64::MAX, |(time_ms, _)| time_ms);
        // Beyond an edge the other side's times count by when they really were.
        let edge = sides[0].or(sides[1]).unwrap_or(0);
        let missing = (0..self.cluster.journals.len()).map(|host| {
            let ahead_ms = if at_edge { self.cluster.skews_ms[host] - self.cluster.skews_ms[edge] } else { 0 };
            let (from_ms, to_ms) = (from_ms.saturating_add(ahead_ms), to_ms.saturating_add(ahead_ms));
            let times = &self.cluster.journals[host][self.number];
            let inside = times.partition_point(|time_ms| *time_ms < to_ms);
            let inside = inside.saturating_sub(times.partition_point(|time_ms| *time_ms <= from_ms));
            let is_other = if self.is_rule() { at_edge } else { !sides.contains(&Some(host)) };
            inside.saturating_sub(usize::from(is_other))
        });
        missing.max().unwrap_or(0)
    }

    /// A switch to a clock that is ahead of the last one's leaves out what would make counters run backwards: no time
    /// is missing, only numbers.
    fn excused_ms(&self, sides: [Option<usize>; 2]) -> i64 {
        match sides {
            [Some(from), Some(to)] if self.cluster.skews_ms[to] > self.cluster.skews_ms[from] => {
                self.cluster.skews_ms[to] - self.cluster.skews_ms[from] + self.shape.interval_ms
            }
            _ => 0,
        }
    }

    /// The times around the first thing wrong.
    fn excerpt(&self, samples: &[(i64, f64)]) -> String {
        let is_wrong = |pair: &&[(i64, f64)]| {
            pair[0].0 == pair[1].0 || pair[1].1 < pair[0].1 || self.missing(Some(pair[0]), Some(pair[1])) > 0
        };
        let say = |sample: &(i64, f64)| {
            let host = self.host(*sample).map_or("?", |host| REPLICAS[host]);
            format!("{host}@{}.{:03}", sample.0 / 1000, sample.0 % 1000)
        };
        match samples.windows(2).find(is_wrong) {
            Some(pair) => format!("{} then {}", say(&pair[0]), say(&pair[1])),
            None => {
                format!("at an edge; {} stored, last {}", samples.len(), samples.last().map(say).unwrap_or_default())
            }
        }
    }
}

/// Spoils what is stored in several ways, one after the other; returns how many, and which of them the judge did not see.
pub(crate) async fn prove(postgres: &Postgres, promised: &Promised) -> (usize, Vec<String>) {
    let client = postgres.connect("postgres").await;
    // A row for each sample, where it is easily spoiled.
    let laid_bare = "ALTER TABLE metrics_hot DISABLE TRIGGER USER;
                     BEGIN; CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM metrics_values;
                     TRUNCATE metrics_hot, metrics_sealed;
                     INSERT INTO metrics_hot (time, series, value) SELECT time, ARRAY[labels_id], ARRAY[value] FROM kept; COMMIT";
    client.batch_execute(laid_bare).await.expect("cannot lay the samples bare");
    let one = "(SELECT s.ctid FROM metrics_hot s JOIN metrics_series l ON l.id = s.series[1]
                WHERE l.name = 'chaos_time_total' ORDER BY s.series, s.time OFFSET 3 LIMIT 1)";
    let mut deeds = vec![
        ("a sample taken away", format!("DELETE FROM metrics_hot WHERE ctid = {one}"), "lost"),
        (
            "a sample added again",
            format!(
                "INSERT INTO metrics_hot (time, series, value) SELECT time, series, value FROM metrics_hot WHERE ctid = {one}"
            ),
            "doubled",
        ),
        ("a counter set back", format!("UPDATE metrics_hot SET value = ARRAY[1] WHERE ctid = {one}"), "backwards"),
        ("a transaction of an old term", witness::stale_write(promised.mode).to_owned(), "stale"),
        (
            "both sides stored",
            "INSERT INTO metrics_hot (time, series, value)
             SELECT time + interval '440 ms' * CASE WHEN extract(milliseconds FROM time)::bigint % 1000 = 130
             THEN 1 ELSE -1 END, series, value FROM metrics_hot"
                .to_owned(),
            "doubled",
        ),
    ];
    if promised.mode.is_balanced() {
        deeds.push(("a sample of another replica", witness::FOREIGN_WRITE.to_owned(), "stale"));
    }
    let (count, mut unseen) = (deeds.len(), Vec::new());
    for (what, deed, field) in deeds {
        let before = judge(promised, &read(postgres, promised.mode, &promised.shape).await);
        client.batch_execute(&deed).await.expect("cannot spoil what is stored");
        let after = judge(promised, &read(postgres, promised.mode, &promised.shape).await);
        let seen = match field {
            "lost" => after.lost == before.lost + 1,
            "doubled" => after.doubled > before.doubled,
            "backwards" => after.backwards > before.backwards,
            _ => after.stale > before.stale,
        };
        if !seen {
            unseen.push(what.to_owned());
        }
    }
    (count, unseen)
}
