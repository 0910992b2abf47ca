//! The case with Prometheis as they are: the simulated ones might be wrong about how Prometheus sends.

use std::time::{Duration, Instant};

use rig::adapter::{self, Adapter};
use rig::port;
use rig::postgres::{self, Postgres};
use rig::prometheus::{self, Prometheus};
use tokio_postgres::Client;

use crate::case::Context;
use crate::judge::Findings;
use crate::mode::REPLICAS;
use crate::stage::{Outcome, PATIENCE, Record, sleep};

/// Samples missing in the targets' `up`, scraped each second: between two stored ones there may be one and a half; and samples of a
/// scrape that has one already: at the same time, or in `up` within less than half a second. A scrape may be late by a tenth.
const JUDGE: &str = "
WITH samples AS (SELECT labels_id, time FROM metrics_values),
     up AS (SELECT extract(epoch FROM time - lag(time) OVER (PARTITION BY labels_id ORDER BY time)) AS step
            FROM samples JOIN metrics_labels l ON l.id = labels_id WHERE metric_name = 'up')
SELECT (SELECT count(*) FROM samples),
       (SELECT coalesce(sum(ceil(step - 1.6)), 0)::bigint FROM up WHERE step > 1.6),
       (SELECT coalesce(sum(n - 1), 0)::bigint FROM
           (SELECT count(*) AS n FROM samples GROUP BY labels_id, time HAVING count(*) > 1) d)
       + (SELECT count(*) FROM up WHERE step > 0 AND step < 0.4)";

/// What the leading side missed is stored within two intervals and 5 s.
const COVERED_WITHIN: Duration = Duration::from_secs(15);

/// Two Prometheis scrape each other's metrics; the leading adapter is killed, then asked to end.
pub(crate) async fn play(context: &Context<'_>) -> Outcome {
    let began = Instant::now();
    let postgres = Postgres::start(postgres::Options::default()).await;
    let options = ["a", "b"].map(|name| {
        adapter::Options::new(context.binary)
            .name(name)
            .arg("-leader-election-pg-advisory-lock-id=7")
            .arg("-leader-election-lease=3s")
            .arg("-log-level=info")
            .arg(format!("-pg-uri={}", postgres.uri("postgres")))
    });
    let mut adapters = [Some(options[0].start().await), Some(options[1].start().await)];
    let ports = [port::free(), port::free()];
    let start = async |host: usize, adapter: u16| {
        let config = format!(
            "global:\n  scrape_interval: 1s\n  external_labels: {{cluster: chaos, __replica__: {}}}\n\
             remote_write:\n  - url: http://127.0.0.1:{adapter}/write\n    queue_config: {{batch_send_deadline: 1s}}\n\
             scrape_configs:\n  - job_name: pair\n    static_configs: [{{targets: ['127.0.0.1:{}', '127.0.0.1:{}']}}]\n",
            ["a", "b"][host],
            ports[0],
            ports[1]
        );
        Prometheus::start(prometheus::Options::new(config).port(ports[host])).await
    };
    let [a, b] = [0, 1].map(|host| adapters[host].as_ref().map_or(0, Adapter::port));
    let mut pair = [start(0, a).await, start(1, b).await];
    let mut record = Record { takeover_wanted: 1.0, ..Record::default() };
    for graceful in [false, true, false] {
        let leader = healthy(&adapters).await;
        sleep(3.0).await;
        record.events.push((began.elapsed().as_secs_f64(), if graceful { "SIGTERM" } else { "kill -9" }.to_owned()));
        let deed = Instant::now();
        if let Some(gone) = adapters[leader].take() {
            if graceful {
                gone.process().terminate(PATIENCE).await;
            } else {
                gone.process().kill9().await;
            }
        }
        let other = adapters[1 - leader].as_ref().expect("only one is gone");
        other.wait_role("leader", PATIENCE).await;
        record.taken_over(deed, 0.0);
        adapters[leader] = Some(options[leader].start().await);
    }
    healthy(&adapters).await;
    sleep(3.0).await;
    let (client, covered_by) = (postgres.connect("postgres").await, Instant::now() + COVERED_WITHIN);
    while judge(&client).await.lost > 0 && Instant::now() < covered_by {
        sleep(0.5).await;
    }
    let (mut failed, mut retried) = (0.0, 0.0);
    for prometheus in &mut pair {
        let sender = prometheus.sender().await;
        failed += sender.failed + sender.dropped;
        retried += sender.retried;
        prometheus.terminate(Duration::from_secs(70)).await;
    }
    let findings = judge(&client).await;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of samples")]
    let [failed, retried] = [failed as usize, retried as usize];
    record.notes.push("judged by SQL: what is missing in up, doubles in all series".to_owned());
    let seconds = began.elapsed().as_secs_f64();
    let log =
        |adapter: &Option<Adapter>| adapter.as_ref().map(|a| a.process().log().lines().join("\n")).unwrap_or_default();
    let logs = REPLICAS.into_iter().zip(adapters.iter().map(log)).collect();
    let (leaderless, held, bands) = (0.0, (0.0, 0.0), vec![Vec::new(), Vec::new()]);
    Outcome { record, findings, failed, retried, leaderless, held, logs, seconds, bands }
}

async fn judge(client: &Client) -> Findings {
    let row = client.query_one(JUDGE, &[]).await.expect("cannot read what is stored");
    let number = |index: usize| usize::try_from(row.get::<_, i64>(index)).expect("counts are not negative");
    Findings { stored: number(0), lost: number(1), doubled: number(2), ..Findings::default() }
}

/// Waits until one adapter leads and the other stands by; which one leads.
async fn healthy(adapters: &[Option<Adapter>; 2]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut roles = [None, None];
        for (role, adapter) in roles.iter_mut().zip(adapters) {
            *role = adapter.as_ref().expect("both run").role().await;
        }
        match roles.each_ref().map(Option::as_deref) {
            [Some("leader"), Some("standby")] => return 0,
            [Some("standby"), Some("leader")] => return 1,
            _ => assert!(Instant::now() < deadline, "no leader and standby: {roles:?}"),
        }
        sleep(0.02).await;
    }
}
