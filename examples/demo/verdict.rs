//! What is stored, judged by SQL and through a Prometheus that reads it.

use rig::postgres::Postgres;
use rig::prometheus::Prometheus;
use serde_json::Value;
use tokio_postgres::Client;

/// Seconds between scrapes in `prometheus-configs/`.
const SCRAPE_SECONDS: f64 = 1.0;

/// Seconds a Prometheus keeps samples at most before it sends them, by the same files.
const SEND_SECONDS: f64 = 1.0;

/// What was measured, and whether all of it is as it must be.
#[derive(Default)]
pub(crate) struct Verdict {
    wrong: Vec<String>,
}

impl Verdict {
    /// Prints one finding, and remembers it when it is wrong.
    pub(crate) fn check(&mut self, what: &str, ok: bool) {
        println!("  {} {what}", if ok { "ok   " } else { "WRONG" });
        if !ok {
            self.wrong.push(what.to_owned());
        }
    }

    /// Prints the end of the story; whether it is a good one.
    pub(crate) fn conclude(&self, summary: &str) -> bool {
        if self.wrong.is_empty() {
            println!("\nVERDICT: {summary}");
        } else {
            println!("\nVERDICT: WRONG: {}", self.wrong.join("; "));
        }
        self.wrong.is_empty()
    }
}

/// What the database says of the whole run.
pub(crate) struct Stored {
    /// Samples.
    pub(crate) samples: i64,
    /// Samples that share series and time with another one.
    pub(crate) doubled: i64,
    /// Seconds of the longest time between two samples of a target's `up`.
    pub(crate) longest_hole: f64,
}

/// Looks at all that is stored by SQL. `take_over` is the longest in seconds.
pub(crate) async fn by_sql(verdict: &mut Verdict, postgres: &Postgres, take_over: f64) -> Stored {
    let client = postgres.connect("postgres").await;
    let samples = number(&client, "SELECT count(*) FROM metrics").await;
    let series = number(&client, "SELECT count(*) FROM (SELECT DISTINCT name, labels FROM metrics) s").await;
    verdict.check(&format!("{samples} samples of {series} series are stored"), samples > 0);

    let doubled = number(
        &client,
        "SELECT coalesce(sum(n - 1), 0)::bigint
         FROM (SELECT count(*) AS n FROM metrics GROUP BY name, labels, time HAVING count(*) > 1) d",
    )
    .await;
    verdict.check(&format!("{doubled} are doubled (same series, same time)"), doubled == 0);

    // A window of five scrapes holds five samples, one more where scrapes jitter over its rim or at a switch. Where
    // both adapters had stored, there would be ten.
    let overlaps = number(
        &client,
        "SELECT count(*) FROM (
             SELECT 1 FROM metrics WHERE name = 'up'
             GROUP BY labels, floor(extract(epoch FROM time) / 5) HAVING count(*) > 6) o",
    )
    .await;
    verdict.check(&format!("{overlaps} times both sides of the pair were stored side by side"), overlaps == 0);

    let replicas = number(&client, "SELECT count(*) FROM metrics WHERE labels ? '__replica__'").await;
    verdict.check(&format!("{replicas} carry the label that tells the replicas apart"), replicas == 0);

    let hole = client
        .query_one(
            "SELECT coalesce(max(extract(epoch FROM lag))::float8, 0) FROM (
                 SELECT time - lag(time) OVER (PARTITION BY labels ORDER BY time) AS lag
                 FROM metrics WHERE name = 'up') l",
            &[],
        )
        .await
        .expect("cannot look for holes");
    let longest_hole: f64 = hole.get(0);
    // The dead Prometheus had not sent its last scrapes; the new leader's next scrape is the first one stored.
    let bound = take_over + 2.0 * SCRAPE_SECONDS + 2.0 * SEND_SECONDS;
    let what = format!("the longest hole in a series is {longest_hole:.1} s, at most {bound:.1} s allowed");
    verdict.check(&what, longest_hole <= bound);
    Stored { samples, doubled, longest_hole }
}

/// Shows the newest samples of a target as any SQL client would.
pub(crate) async fn show(postgres: &Postgres, say: impl Fn(&str)) {
    let statement = r#"SELECT time, value FROM metrics WHERE name='up' AND labels @> '{"job":"node"}'"#;
    say(statement);
    let client = postgres.connect("postgres").await;
    let newest = format!("SELECT time::text, value FROM ({statement} ORDER BY time DESC LIMIT 3) newest");
    for row in client.query(&newest, &[]).await.expect("cannot query the stored data") {
        say(&format!("    {}  {}", row.get::<_, String>(0), row.get::<_, f64>(1)));
    }
}

/// Compares what the third Prometheus reads with what the database holds, over the same half minute.
pub(crate) async fn by_remote_read(verdict: &mut Verdict, postgres: &Postgres, reader: &Prometheus) {
    let client = postgres.connect("postgres").await;
    // Well before the newest sample, so that nothing arrives meanwhile, and off any whole millisecond of a scrape.
    let newest = r#"SELECT extract(epoch FROM max(time))::float8 - 3 FROM metrics
                    WHERE name = 'up' AND labels @> '{"job":"node"}'"#;
    let end: f64 = client.query_one(newest, &[]).await.expect("cannot query the stored data").get(0);
    let end = (end * 1000.0).floor() / 1000.0;
    let count = r#"SELECT count(*) FROM metrics WHERE name = 'up' AND labels @> '{"job":"node"}'
                   AND time BETWEEN to_timestamp($1::float8 - 30) AND to_timestamp($1::float8)"#;
    let stored: i64 = client.query_one(count, &[&end]).await.expect("cannot query the stored data").get(0);
    let expression = r#"sum(count_over_time(up{job="node"}[30s]))"#;
    let answer = reader.query_at(expression, end).await;
    let read = serde_json::from_str::<Value>(&answer)
        .ok()
        .and_then(|json| json.pointer("/data/result/0/value/1")?.as_str()?.parse::<i64>().ok());
    let read = read.unwrap_or_else(|| panic!("Prometheus, reading, answered {answer}"));
    let what = format!("{expression} by remote_read gives {read}, SQL gives {stored}");
    verdict.check(&what, read == stored && read > 0);
}

async fn number(client: &Client, statement: &str) -> i64 {
    client.query_one(statement, &[]).await.unwrap_or_else(|e| panic!("{statement}: {e}")).get(0)
}
