//! What is stored, held against what the two Prometheis know they were promised.

use rig::postgres::Postgres;
use tokio_postgres::Client;

use crate::host::{Shape, phase_ms};
use crate::message::is_constant;

/// Makes the database write down who wrote what, in which term. A test's own doing: every write transaction inserts
/// into the table of requests.
pub(crate) const WITNESS: &str = "
CREATE TABLE chaos_terms (term bigint, holder text, xid xid8);
CREATE TABLE chaos_writes (term bigint, client inet, xid xid8);
CREATE FUNCTION chaos_term() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_terms VALUES (NEW.term, NEW.holder, pg_current_xact_id()); RETURN NULL; END $$;
CREATE FUNCTION chaos_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_writes SELECT term, inet_client_addr(), pg_current_xact_id() FROM metrics_leader
    ORDER BY heartbeat DESC NULLS LAST LIMIT 1; RETURN NULL; END $$;
CREATE TRIGGER chaos_term AFTER UPDATE ON metrics_leader
    FOR EACH ROW WHEN (OLD.term <> NEW.term) EXECUTE FUNCTION chaos_term();
CREATE TRIGGER chaos_write AFTER INSERT ON metrics_requests FOR EACH STATEMENT EXECUTE FUNCTION chaos_write();";

/// Write transactions that committed after a newer term had begun, and those of a second host within one term.
const STALE: &str = "
SELECT (SELECT count(*) FROM chaos_writes w WHERE EXISTS (
            SELECT FROM chaos_terms t WHERE t.term > w.term
            AND pg_xact_commit_timestamp(t.xid::xid) < pg_xact_commit_timestamp(w.xid::xid)))
     + (SELECT coalesce(sum(hosts - 1), 0)::bigint FROM (
            SELECT count(DISTINCT client) AS hosts FROM chaos_writes GROUP BY term) h),
       (SELECT count(*) FROM chaos_terms)";

/// Samples of one series, by time.
type Series = Vec<(i64, f64)>;

/// What the database has.
pub(crate) struct Stored {
    series: Vec<Series>,
    stale: i64,
    terms: i64,
}

/// What the Prometheis know.
pub(crate) struct Promised {
    /// How they scrape.
    pub(crate) shape: Shape,
    /// Times of the acknowledged samples of each series, by host.
    pub(crate) journals: [Vec<Vec<i64>>; 2],
    /// How wrong each host's clock was.
    pub(crate) skews_ms: [i64; 2],
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
    /// Samples at a time that has one already, and switches between the two sides that no change of leader explains.
    pub(crate) doubled: usize,
    /// Transactions of an old term.
    pub(crate) stale: i64,
    /// Times a counter ran backwards.
    pub(crate) backwards: usize,
    /// The first of each, in words.
    pub(crate) examples: Vec<String>,
}

/// Reads all of it.
pub(crate) async fn read(postgres: &Postgres, shape: &Shape) -> Stored {
    let client = postgres.connect("postgres").await;
    let row = client.query_one(STALE, &[]).await.expect("cannot read the witness");
    let (stale, terms) = (row.get(0), row.get(1));
    Stored { series: samples(&client, shape).await, stale, terms }
}

async fn samples(client: &Client, shape: &Shape) -> Vec<Series> {
    // Arrays: one row a series, not one a sample.
    let statement = "
        SELECT (l.labels->>'series')::integer,
               array_agg((extract(epoch FROM s.time) * 1000)::bigint ORDER BY s.time, s.value),
               array_agg(s.value ORDER BY s.time, s.value)
        FROM metrics_values s JOIN metrics_labels l ON l.id = s.labels_id
        WHERE l.metric_name IN ('chaos_constant', 'chaos_time_total', 'chaos:rule') GROUP BY l.id, l.labels";
    let mut series = vec![Vec::new(); shape.series + shape.rules];
    for row in client.query(statement, &[]).await.expect("cannot read what is stored") {
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
    let mut findings = Findings { stale: stored.stale, terms: stored.terms, ..Findings::default() };
    let mut switches_max = 0;
    for (number, samples) in stored.series.iter().enumerate() {
        findings.stored += samples.len();
        let of = OneSeries { promised, number };
        let (mut lost, mut doubled, mut backwards, mut switches) = (of.lost(samples), 0, 0, 0);
        for pair in samples.windows(2) {
            let ((earlier_ms, before), (later_ms, after)) = (pair[0], pair[1]);
            doubled += usize::from(earlier_ms == later_ms);
            let is_counter = number < promised.shape.series && !is_constant(&promised.shape, number);
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
    // The first leader needs no switch, and each later one at most one.
    let excess = usize::try_from(switches_max - stored.terms).unwrap_or(0);
    if excess > 0 {
        findings.examples.push(format!("{switches_max} switches in one series, {} terms", stored.terms));
    }
    findings.doubled += excess;
    findings
}

struct OneSeries<'a> {
    promised: &'a Promised,
    number: usize,
}

impl OneSeries<'_> {
    fn is_rule(&self) -> bool {
        self.number >= self.promised.shape.series
    }

    /// Which host a stored sample is from: each scrapes at its own place in the interval; rules differ by value.
    fn host(&self, (time_ms, value): (i64, f64)) -> Option<usize> {
        let shape = &self.promised.shape;
        (0..2).find(|host| {
            if self.is_rule() {
                let half = value.fract() > 0.25;
                return half == (*host == 1);
            }
            let offset_ms = time_ms - self.promised.skews_ms[*host] - phase_ms(shape, *host);
            offset_ms.rem_euclid(shape.interval_ms) == 0
        })
    }

    /// Scrapes missing between stored samples, before the first and after the last.
    ///
    /// A side that is stored must be complete from its first to its last sample of a stretch, and where the other side
    /// goes on, it does so with its next scrape. Of the side that is not stored one scrape lies between two stored
    /// ones, more mean that the stored side has a hole that the other could have filled.
    fn lost(&self, samples: &[(i64, f64)]) -> usize {
        let Some((first, last)) = samples.first().zip(samples.last()) else {
            return self.promised.journals.iter().map(|journal| journal[self.number].len()).max().unwrap_or(0);
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
        let missing = (0..2).map(|host| {
            let ahead_ms = if at_edge { self.promised.skews_ms[host] - self.promised.skews_ms[edge] } else { 0 };
            let (from_ms, to_ms) = (from_ms.saturating_add(ahead_ms), to_ms.saturating_add(ahead_ms));
            let times = &self.promised.journals[host][self.number];
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
            [Some(from), Some(to)] if self.promised.skews_ms[to] > self.promised.skews_ms[from] => {
                self.promised.skews_ms[to] - self.promised.skews_ms[from] + self.promised.shape.interval_ms
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
            let host = self.host(*sample).map_or("?", |host| ["a", "b"][host]);
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

/// Spoils what is stored in four ways, one after the other, and says which of them the judge did not see.
pub(crate) async fn prove(postgres: &Postgres, promised: &Promised) -> Vec<String> {
    let client = postgres.connect("postgres").await;
    // A row for each sample, where it is easily spoiled.
    let laid_bare = "BEGIN; CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM metrics_values;
                     TRUNCATE metrics_hot, metrics_sealed;
                     INSERT INTO metrics_hot (time, series, value) SELECT time, ARRAY[labels_id], ARRAY[value] FROM kept; COMMIT";
    client.batch_execute(laid_bare).await.expect("cannot lay the samples bare");
    let one = "(SELECT s.ctid FROM metrics_hot s JOIN metrics_series l ON l.id = s.series[1]
                WHERE l.name = 'chaos_time_total' ORDER BY s.series, s.time OFFSET 3 LIMIT 1)";
    let deeds = [
        ("a sample taken away", format!("DELETE FROM metrics_hot WHERE ctid = {one}"), "lost"),
        (
            "a sample added again",
            format!(
                "INSERT INTO metrics_hot (time, series, value) SELECT time, series, value FROM metrics_hot WHERE ctid = {one}"
            ),
            "doubled",
        ),
        ("a counter set back", format!("UPDATE metrics_hot SET value = ARRAY[1] WHERE ctid = {one}"), "backwards"),
        (
            "a transaction of an old term",
            "INSERT INTO chaos_writes SELECT term - 1, inet_client_addr(), pg_current_xact_id() FROM metrics_leader"
                .to_owned(),
            "stale",
        ),
        (
            "both sides stored",
            "INSERT INTO metrics_hot (time, series, value)
             SELECT time + interval '440 ms' * CASE WHEN extract(milliseconds FROM time)::bigint % 1000 = 130
             THEN 1 ELSE -1 END, series, value FROM metrics_hot"
                .to_owned(),
            "doubled",
        ),
    ];
    let mut unseen = Vec::new();
    for (what, deed, field) in deeds {
        let before = judge(promised, &read(postgres, &promised.shape).await);
        client.batch_execute(&deed).await.expect("cannot spoil what is stored");
        let after = judge(promised, &read(postgres, &promised.shape).await);
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
    unseen
}
