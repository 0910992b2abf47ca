//! Who leads by order: nothing fails, and nothing may be lost or doubled all the same.

use std::time::Instant;

use crate::mode::REPLICAS;
use crate::stage::{Outcome, Stage, sleep};

/// Of a pair: each way that there is, twice.
pub(crate) async fn pair(mut stage: Stage<'_>) -> Outcome {
    for verb in ["resign", "hand-over", "hold", "hand-over", "hold", "resign"] {
        sleep(1.5).await;
        let leader = stage.healthy().await;
        let other = 1 - leader;
        let status = stage.order(other, &["status"]).await;
        let name = status.lines().find_map(|line| line.strip_prefix("name: ")).unwrap_or_default().to_owned();
        let words = if verb == "hand-over" { vec![verb, &name] } else { vec![verb] };
        stage.event(format!("{}: {verb}", REPLICAS[leader]));
        let (mark, deed) = (stage.mark(other), Instant::now());
        stage.order(leader, &words).await;
        stage.takeover(other, mark, deed).await;
        if verb == "hold" {
            sleep(1.0).await;
            stage.order(leader, &["release"]).await;
        }
    }
    stage.healthy().await;
    stage.finish().await.0
}

/// Leaders are told: while the other leads, once it has died, and both at once.
pub(crate) async fn rest(mut stage: Stage<'_>) -> Outcome {
    for _ in 0..3 {
        sleep(1.5).await;
        let leader = stage.healthy().await;
        tell(&mut stage, 1 - leader).await;
    }
    sleep(1.0).await;
    let leader = stage.healthy().await;
    stage.event(format!("kill -9 {}", REPLICAS[leader]));
    stage.kill(leader).await;
    tell(&mut stage, 1 - leader).await;
    stage.start(leader).await;
    stage.healthy().await;
    sleep(1.0).await;
    stage.event("both told");
    let words = ["lead"];
    for host in [leader, 1 - leader, leader] {
        stage.order(host, &words).await;
    }
    let last = stage.healthy().await;
    if last != leader {
        stage.record().broken.push("the one told last does not lead".to_owned());
    }
    stage.finish().await.0
}

async fn tell(stage: &mut Stage<'_>, host: usize) {
    stage.event(format!("{} told to lead", REPLICAS[host]));
    let (mark, deed) = (stage.mark(host), Instant::now());
    stage.order(host, &["lead"]).await;
    stage.takeover(host, mark, deed).await;
}

/// By labels: any adapter is asked.
pub(crate) async fn labels(mut stage: Stage<'_>) -> Outcome {
    // An adapter carries an order out in its next round.
    stage.record().takeover_wanted = 2.5;
    for (number, verb) in ["resign", "hand-over", "hold", "hand-over", "hold", "resign"].into_iter().enumerate() {
        stage.settled().await;
        labels_once(&mut stage, verb, number % 2, number % 3).await;
        sleep(1.5).await;
    }
    stage.finish().await.0
}

async fn labels_once(stage: &mut Stage<'_>, verb: &str, cluster: usize, adapter: usize) {
    let (leader, term) = stage.leading(cluster).await;
    let next = (leader + 1) % stage.setup.mode.replicas();
    let (leader, next) = (REPLICAS[leader], REPLICAS[next]);
    let of = format!("-cluster={}", stage.setup.mode.clusters()[cluster]);
    let held = format!("-replica={leader}");
    let words = match verb {
        "hand-over" => vec![verb, &of, next],
        "hold" => vec![verb, &of, &held],
        _ => vec![verb, &of],
    };
    stage.event(words.join(" "));
    let deed = Instant::now();
    stage.order(adapter, &words).await;
    stage.succession(cluster, term, deed).await;
    if verb == "hold" {
        sleep(1.0).await;
        stage.order(adapter, &["release", &of, &held]).await;
    }
}
