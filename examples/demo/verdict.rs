//! What is said of what is stored: by the Prometheis' own databases, by SQL, and by a Prometheus that reads it.

use std::time::Instant;

use rig::postgres::Postgres;
use rig::prometheus::{Prometheus, Sender};
use serde_json::Value;

use crate::Teller;
use crate::judge::{Findings, Subject, judge};

/// What was measured, and whether all of it is as it must be.
pub(crate) struct Verdict {
    title: String,
    wrong: Vec<String>,
}

impl Verdict {
    /// One that will be printed under this title.
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), wrong: Vec::new() }
    }

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
            println!("\n{}: {summary}", self.title);
        } else {
            println!("\n{}: WRONG: {}", self.title, self.wrong.join("; "));
        }
        self.wrong.is_empty()
    }
}

/// Says what of a pair's samples is stored, and how often.
pub(crate) async fn by_the_pair(
    verdict: &mut Verdict,
    postgres: &Postgres,
    subject: &Subject<'_>,
    began: Instant,
) -> Findings {
    let findings = judge(postgres, subject, began).await;
    let Findings { samples, series, lost, died, doubled, .. } = findings;
    verdict.check(&format!("{samples} samples of {series} series are stored"), samples > 0);
    verdict.check(&format!("{lost} lost (a Prometheus has it, and nothing of that scrape is stored)"), lost == 0);
    verdict.check(&format!("{doubled} doubled (of one scrape there are two)"), doubled == 0);
    if died > 0 {
        println!("        {died} that only one side had made, right before its Prometheus or an adapter was killed");
    }
    if let Some(example) = &findings.example {
        println!("        the first: {example}");
    }
    let client = postgres.connect("postgres").await;
    let count = "SELECT count(*) FROM metrics WHERE labels ->> 'cluster' = $1 AND labels ? '__replica__'";
    let counted = client.query_one(count, &[&subject.cluster]).await;
    let replicas: i64 = counted.expect("cannot query the stored data").get(0);
    verdict.check(&format!("{replicas} carry the label that tells the replicas apart"), replicas == 0);
    findings
}

/// Shows the newest samples of a target as any SQL client would.
pub(crate) async fn show(postgres: &Postgres, cluster: &str, teller: Teller) {
    let labels = format!(r#"{{"cluster":"{cluster}","job":"node"}}"#);
    let statement = format!("SELECT time, value FROM metrics WHERE name='up' AND labels @> '{labels}'");
    teller.say(&statement);
    let client = postgres.connect("postgres").await;
    let newest = format!("SELECT time::text, value FROM ({statement} ORDER BY time DESC LIMIT 3) newest");
    for row in client.query(&newest, &[]).await.expect("cannot query the stored data") {
        teller.say(&format!("    {}  {}", row.get::<_, String>(0), row.get::<_, f64>(1)));
    }
}

/// Compares what a Prometheus reads with what the database holds, over the same half minute, and with what the leading
/// Prometheus has itself, over the same last seconds.
pub(crate) async fn by_remote_read(
    verdict: &mut Verdict,
    postgres: &Postgres,
    reader: &Prometheus,
    leading: &Prometheus,
    cluster: &str,
) {
    let client = postgres.connect("postgres").await;
    // Well before the newest sample, so that nothing arrives meanwhile, and off any whole millisecond of a scrape.
    let newest = "SELECT extract(epoch FROM max(time))::float8 - 3 FROM metrics
                  WHERE name = 'up' AND labels @> jsonb_build_object('job', 'node', 'cluster', $1::text)";
    let end: f64 = client.query_one(newest, &[&cluster]).await.expect("cannot query the stored data").get(0);
    let end = (end * 1000.0).floor() / 1000.0;
    let count = "SELECT count(*) FROM metrics
                 WHERE name = 'up' AND labels @> jsonb_build_object('job', 'node', 'cluster', $1::text)
                 AND time BETWEEN to_timestamp($2::float8 - 30) AND to_timestamp($2::float8)";
    let counted = client.query_one(count, &[&cluster, &end]).await;
    let stored: i64 = counted.expect("cannot query the stored data").get(0);
    let expression = format!(r#"sum(count_over_time(up{{cluster="{cluster}",job="node"}}[30s]))"#);
    let read = number(reader, &expression, end).await;
    let what = format!("{expression} by remote_read gives {read}, SQL gives {stored}");
    verdict.check(&what, read == stored && read > 0);
    // For longer than that the leader has been the same one.
    let question = |labels: &str| format!("sum(count_over_time(up{labels}[4s]))");
    let read = number(reader, &question(&format!(r#"{{cluster="{cluster}"}}"#)), end).await;
    let own = number(leading, &question(""), end).await;
    let what = format!("{} by remote_read gives {read}, {own} by the leading Prometheus itself", question(""));
    verdict.check(&what, read == own && read > 0);
}

/// The one number that a Prometheus answers at a Unix time in seconds.
async fn number(prometheus: &Prometheus, expression: &str, time: f64) -> i64 {
    let answer = prometheus.query_at(expression, time).await;
    let number = serde_json::from_str::<Value>(&answer)
        .ok()
        .and_then(|json| json.pointer("/data/result/0/value/1")?.as_str()?.parse::<i64>().ok());
    number.unwrap_or_else(|| prometheus.process().fail(&format!("{expression} was answered {answer}")))
}

/// Says what a Prometheus could not send.
pub(crate) fn by_sender(verdict: &mut Verdict, name: &str, sender: Sender) {
    let Sender { sent, failed, dropped, .. } = sender;
    let what = format!("{name} sent {sent} samples, {failed} failed, {dropped} dropped");
    verdict.check(&what, failed == 0.0 && dropped == 0.0 && sent > 0.0);
}
