//! One series by SQL, an hour and a month of it, while ingest runs.

use std::time::{Duration, Instant};

use rig::postgres::Postgres;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::load::Load;
use crate::sender::Sent;
use crate::store::Setup;
use crate::verdict::{Verdicts, number};

/// Between the scrapes of what is stored before.
const INTERVAL_MS: i64 = 15_000;

/// Samples of a series in a message of it: only what is stored counts.
const RUN: usize = 200;

/// Requests of it that are built at once, in samples.
const PART: usize = 10_000_000;

/// So many samples a second are built for ingest.
const RATE_GUESS: usize = 1_200_000;

/// What is measured, by the function and by the view.
const QUERIES: [(&str, &str, i64, Option<f64>); 4] = [
    ("metrics_range", "the last hour", 3_600, Some(50.0)),
    ("metrics_range", "all days", 0, Some(1000.0)),
    ("metrics", "the last hour", 3_600, None),
    ("metrics", "all days", 0, None),
];

/// How much is stored, and asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Series stored before.
    pub(crate) series: usize,
    /// Days of them.
    pub(crate) days: usize,
    /// Times each query is run.
    pub(crate) runs: usize,
    /// Seconds for which ingest can run.
    pub(crate) seconds: u64,
}

/// Measures queries while `ingest` is sent at full speed.
pub(crate) async fn under_ingest(setup: &Setup, shape: Shape, ingest: Load, now_ms: i64, verdicts: &mut Verdicts) {
    println!("\none series by SQL ...");
    let store = setup.store(&[]).await;
    let per_day = usize::try_from(86_400_000 / INTERVAL_MS).expect("a day is short");
    let scrapes = shape.days * per_day;
    let batch = shape.series.div_ceil(ingest.connections) * RUN;
    let span = i64::try_from(scrapes).expect("days are few") * INTERVAL_MS;
    let stored = Load {
        cluster: "month",
        series: shape.series,
        batch,
        run: RUN,
        interval_ms: INTERVAL_MS,
        start_ms: now_ms - span,
        ..ingest
    };
    let (process, sender) = (store.adapter.process(), store.sender(ingest.connections));
    sender.warm_up(process, &stored.requests(0..1).await).await;
    let mut sent = Sent::default();
    let part = (PART / shape.series).max(RUN);
    for first in (1..scrapes).step_by(part) {
        let requests = stored.requests(first..scrapes.min(first + part)).await;
        sent += sender.send_all(&requests, Duration::MAX).await;
    }
    let sealing = store.seal().await;
    println!(
        "  {} samples of {} days stored at {}/s, the rest sealed in {:.1} s",
        number(sent.samples as f64),
        shape.days,
        number(sent.rate()),
        sealing.as_secs_f64()
    );
    store.check(scrapes * shape.series).await;
    vacuum_analyze(&setup.postgres, &store.database).await;

    sender.warm_up(process, &ingest.requests(0..1).await).await;
    let seconds = usize::try_from(shape.seconds).expect("seconds are few");
    let requests = ingest.requests(1..(seconds * RATE_GUESS / ingest.series).max(1) + 1).await;
    let client = setup.postgres.connect(&store.database).await;
    let mut sending = JoinSet::new();
    let limit = Duration::from_secs(shape.seconds);
    sending.spawn(async move { sender.send_all(&requests, limit).await });
    // Under way, with some samples hot.
    tokio::time::sleep(limit.min(Duration::from_secs(3))).await;
    let mut took: [Vec<Duration>; QUERIES.len()] = Default::default();
    'runs: for run in 0..shape.runs {
        for (took, query) in took.iter_mut().zip(QUERIES) {
            let elapsed = ask(&client, stored, run * 7 % shape.series, scrapes, query).await;
            // What ingest was not there for does not count.
            if sending.try_join_next().is_some_and(|sent| note(sent.expect("the sender panicked"))) {
                break 'runs;
            }
            took.push(elapsed);
        }
    }
    if let Some(sent) = sending.join_next().await {
        note(sent.expect("the sender panicked"));
    }
    for (took, (from, span, _, bar)) in took.iter_mut().zip(QUERIES) {
        took.sort_unstable();
        let what = format!("ms by SQL from {from}, one series, {span}, median of {}", took.len());
        let Some(most) = took.last() else {
            verdicts.skip(&what, "ingest was over before");
            continue;
        };
        let (median, most) = (took[took.len() / 2].as_secs_f64() * 1e3, most.as_secs_f64() * 1e3);
        match bar {
            Some(bar) => verdicts.below(&what, bar, median),
            None => verdicts.note(&what, median),
        }
        verdicts.note("... the slowest", most);
    }
    store.drop().await;
}

/// One query; its rows must be as many as there were scrapes.
async fn ask(
    client: &Client,
    stored: Load,
    series: usize,
    scrapes: usize,
    query: (&str, &str, i64, Option<f64>),
) -> Duration {
    let (from, span, seconds, _) = query;
    let (name, matchers) = stored.selector(series);
    let scrapes_i64 = i64::try_from(scrapes).expect("scrapes are few");
    let end_ms = stored.start_ms + scrapes_i64 * stored.interval_ms;
    let wanted = if seconds == 0 { scrapes_i64 } else { seconds * 1000 / stored.interval_ms };
    let (start, end) = (time(end_ms - wanted * stored.interval_ms), time(end_ms));
    let statement = match from {
        "metrics" => format!(
            "SELECT time, value FROM metrics WHERE name = '{name}' AND labels @> '{matchers}' \
             AND time >= {start} AND time <= {end} ORDER BY time"
        ),
        _ => format!("SELECT time, value FROM metrics_range('{name}', '{matchers}', {start}, {end})"),
    };
    let started = Instant::now();
    let rows = client.query(&statement, &[]).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    let elapsed = started.elapsed();
    assert_eq!(i64::try_from(rows.len()).ok(), Some(wanted), "samples of {span} by {statement}");
    elapsed
}

fn note(sent: Sent) -> bool {
    println!("  ingest meanwhile: {} samples/s for {:.0} s", number(sent.rate()), sent.elapsed.as_secs_f64());
    true
}

fn time(ms: i64) -> String {
    format!("to_timestamp({ms}::float8 / 1000)")
}

/// Statistics, as autovacuum would have made them by the time there is a month of data.
async fn vacuum_analyze(postgres: &Postgres, database: &str) {
    let client = postgres.connect(database).await;
    for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}
