//! What is stored, held against what the Prometheis know they were promised.

use rig::coverage::{self, Scrapes, Side};
use rig::postgres::Postgres;
use tokio_postgres::{Client, Error};

use crate::host::{Shape, phase_ms};
use crate::message::{is_constant, is_marker};
use crate::mode::{Mode, REPLICAS};
use crate::witness;

/// Samples of one series, by time.
type Series = Vec<(i64, f64)>;

/// What the database has.
pub(crate) struct Stored {
    /// Of each cluster, by series.
    clusters: Vec<Vec<Series>>,
    terms: i64,
    stale: i64,
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

/// What is wrong with it; all 0 when nothing is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Samples stored.
    pub(crate) stored: usize,
    /// Terms begun.
    pub(crate) terms: i64,
    /// Scrapes missing in a series though a Prometheus had been told that they are safe.
    pub(crate) lost: usize,
    /// Samples of a scrape that has one already.
    pub(crate) doubled: usize,
    /// Transactions of an old term, or with samples of a replica that does not lead.
    pub(crate) stale: i64,
    /// Times a counter ran backwards.
    pub(crate) backwards: usize,
    /// The first of each, in words.
    pub(crate) examples: Vec<String>,
}

/// Reads all of it.
///
/// # Errors
///
/// What the server says.
pub(crate) async fn read(client: &Client, mode: Mode, shape: &Shape) -> Result<Stored, Error> {
    let mut clusters = Vec::new();
    for cluster in mode.clusters() {
        clusters.push(samples(client, cluster, shape).await?);
    }
    Ok(Stored { clusters, terms: witness::terms(client).await?, stale: witness::stale(client, mode).await? })
}

/// How much of it is sealed.
pub(crate) async fn sealed_samples(client: &Client) -> i64 {
    let statement = "SELECT coalesce(sum(samples), 0)::bigint FROM metrics_segments";
    client.query_one(statement, &[]).await.expect("cannot count what is sealed").get(0)
}

async fn samples(client: &Client, cluster: &str, shape: &Shape) -> Result<Vec<Series>, Error> {
    // Arrays: one row a series, not one a sample.
    let statement = "
        SELECT (l.labels->>'series')::integer,
               array_agg((extract(epoch FROM s.time) * 1000)::bigint ORDER BY s.time, s.value),
               array_agg(s.value ORDER BY s.time, s.value)
        FROM metrics_values s JOIN metrics_labels l ON l.id = s.labels_id
        WHERE l.metric_name IN ('chaos_constant', 'chaos_time_total', 'chaos:rule')
        AND l.labels->>'cluster' = $1 GROUP BY l.id, l.labels";
    let mut series = vec![Vec::new(); shape.series + shape.rules];
    for row in client.query(statement, &[&cluster]).await? {
        let (number, times, values): (i32, Vec<i64>, Vec<f64>) = (row.get(0), row.get(1), row.get(2));
        let number = usize::try_from(number).expect("series have numbers from 0 on");
        // A marker says that there is no sample.
        series[number].extend(times.into_iter().zip(values).filter(|sample| !is_marker(sample.1)));
        // Two label sets for one series would be doubles too.
        series[number].sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    }
    Ok(series)
}

/// Judges.
pub(crate) fn judge(promised: &Promised, stored: &Stored) -> Findings {
    let mut findings = Findings { terms: stored.terms, stale: stored.stale, ..Findings::default() };
    for (cluster, series) in promised.clusters.iter().zip(&stored.clusters) {
        for (number, samples) in series.iter().enumerate() {
            findings.stored += samples.len();
            OneSeries { shape: &promised.shape, cluster, number, samples }.judge(&mut findings);
        }
    }
    findings
}

struct OneSeries<'a> {
    shape: &'a Shape,
    cluster: &'a Cluster,
    number: usize,
    samples: &'a [(i64, f64)],
}

impl OneSeries<'_> {
    fn judge(&self, findings: &mut Findings) {
        let interval_ms = self.shape.interval_ms;
        let scrapes = Scrapes { interval_ms, jitter_ms: interval_ms / 50 };
        let replicas = self.cluster.journals.iter().zip(&self.cluster.skews_ms);
        let sides: Vec<Side<'_>> =
            replicas.map(|(journal, skew_ms)| Side { times: &journal[self.number], ahead_ms: *skew_ms }).collect();
        let stored = |sample: &(i64, f64)| coverage::Stored {
            time_ms: sample.0,
            sides: self.host(*sample).map_or(0, |host| 1 << host),
        };
        let stored: Vec<_> = self.samples.iter().map(stored).collect();
        let is_counter = self.number < self.shape.series && !is_constant(self.shape, self.number);
        let backwards =
            self.samples.windows(2).filter(|pair| is_counter && pair[1].1 < pair[0].1).map(|pair| pair[1].0);
        for (what, times, total) in [
            ("lost", scrapes.lost(&sides, &stored), &mut findings.lost),
            ("doubled", scrapes.doubled(&stored), &mut findings.doubled),
            ("backwards", backwards.collect(), &mut findings.backwards),
        ] {
            if let (Some(first), 0) = (times.first(), *total) {
                let (count, number) = (times.len(), self.number);
                findings.examples.push(format!("series {number}: {count} {what}, the first {}", self.excerpt(*first)));
            }
            *total += times.len();
        }
    }

    /// Which host a stored sample is from: each scrapes at its own place in the interval; rules differ by value.
    fn host(&self, (time_ms, value): (i64, f64)) -> Option<usize> {
        (0..self.cluster.journals.len()).find(|host| {
            if self.number >= self.shape.series {
                #[expect(clippy::cast_precision_loss, reason = "one of three")]
                return (value.fract() - *host as f64 / 4.0).abs() < 0.1;
            }
            let offset_ms = time_ms - self.cluster.skews_ms[*host] - phase_ms(self.shape, *host);
            offset_ms.rem_euclid(self.shape.interval_ms) == 0
        })
    }

    /// A time, and what is stored around it.
    fn excerpt(&self, time_ms: i64) -> String {
        let at = |time_ms: i64| format!("{}.{:03}", time_ms / 1000, time_ms % 1000);
        let say =
            |sample: &(i64, f64)| format!("{}@{}", self.host(*sample).map_or("?", |host| REPLICAS[host]), at(sample.0));
        let place = self.samples.partition_point(|sample| sample.0 < time_ms);
        let around = place.saturating_sub(2)..(place + 2).min(self.samples.len());
        format!("{} among {}", at(time_ms), self.samples[around].iter().map(say).collect::<Vec<_>>().join(", "))
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
                WHERE l.name = 'chaos_time_total' ORDER BY s.series, s.time OFFSET 4 LIMIT 1)";
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
        let look = async || read(&client, promised.mode, &promised.shape).await.expect("cannot read what is stored");
        let before = judge(promised, &look().await);
        client.batch_execute(&deed).await.expect("cannot spoil what is stored");
        let after = judge(promised, &look().await);
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
