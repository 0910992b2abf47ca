//! What is said of what is stored: by the pair's own databases, by SQL, and by a Prometheus that reads it.

use std::time::Duration;

use rig::postgres::Postgres;
use rig::prometheus::Prometheus;
use serde_json::Value;
use tokio_postgres::Client;

use crate::judge::{Findings, judge};

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

/// Says what of a pair's samples is stored, and how often.
pub(crate) async fn by_the_pair(
    verdict: &mut Verdict,
    postgres: &Postgres,
    sides: [&Prometheus; 2],
    ran_for: Duration,
) -> Findings {
    let findings = judge(postgres, sides, ran_for).await;
    let Findings { samples, series, lost, doubled, .. } = findings;
    verdict.check(&format!("{samples} samples of {series} series are stored"), samples > 0);
    verdict.check(&format!("{lost} lost (a Prometheus has it, and nothing of that scrape is stored)"), lost == 0);
    verdict.check(&format!("{doubled} doubled (at the time of another, or both sides stored)"), doubled == 0);
    if let Some(example) = &findings.example {
        println!("        the first: {example}");
    }
    let client = postgres.connect("postgres").await;
    let replicas = number(&client, "SELECT count(*) FROM metrics WHERE labels ? '__replica__'").await;
    verdict.check(&format!("{replicas} carry the label that tells the replicas apart"), replicas == 0);
    findings
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
