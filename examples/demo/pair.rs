//! A pair of Prometheis, each beside an adapter. The leader's Prometheus is killed, then the new leader's adapter.

mod stage;

use std::time::Instant;

use self::stage::{PROMETHEUS_TIMEOUT_SECONDS, Pair};
use crate::judge::{Subject, death};
use crate::verdict::{self, Verdict};
use crate::{PATIENCE, PEACE, Teller};

/// The cluster of `prometheus-configs/`.
const CLUSTER: &str = "demo";

/// Tells it; whether all ends well.
pub(crate) async fn story(teller: Teller) -> bool {
    let say = |text: &str| teller.say(text);
    let mut verdict = Verdict::new("VERDICT");
    let mut senders = Vec::new();

    say("starting PostgreSQL, node_exporter, two Prometheis and an adapter beside each ...");
    let mut pair = Pair::start(teller).await;
    let first = leader(&pair).await;
    let second = 1 - first;
    let (first_name, second_name) = (pair.sides[first].name, pair.sides[second].name);
    pair.sides[second].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {first_name} leads and stores; adapter {second_name} stands by and stores nothing"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, teller).await;

    senders.push((format!("Prometheus {first_name} until its death"), pair.sides[first].prometheus.sender().await));
    say(&format!("kill -9 of Prometheus {first_name}: its adapter lives, but has nothing to store any more"));
    let killed = Instant::now();
    pair.sides[first].prometheus.kill9().await;
    let prometheus = death(Some(first));
    pair.sides[second].adapter().wait_role("leader", PATIENCE).await;
    let silence = killed.elapsed().as_secs_f64();
    say(&format!("adapter {second_name} leads, {silence:.2} s after the kill"));
    pair.sides[first].prometheus.start_again().await;
    say(&format!("Prometheus {first_name} is started again"));
    pair.sides[first].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {first_name} stands by: nobody takes the lead from a leader that does its work"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, teller).await;

    say(&format!("kill -9 of adapter {second_name}, which leads"));
    let killed = Instant::now();
    pair.sides[second].kill_adapter().await;
    pair.sides[first].adapter().wait_role("leader", PATIENCE).await;
    let crash = killed.elapsed().as_secs_f64();
    say(&format!("adapter {first_name} leads, {crash:.2} s after the kill"));
    pair.sides[second].start_adapter().await;
    pair.sides[second].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {second_name} is started again, and stands by"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, teller).await;

    say("what a SQL client sees:");
    verdict::show(&pair.postgres, CLUSTER, teller).await;
    say("and what is true of all of it:");
    let bound = PROMETHEUS_TIMEOUT_SECONDS + 1.0;
    verdict
        .check(&format!("take-over after {silence:.2} s when a Prometheus dies, at most {bound} s"), silence <= bound);
    verdict.check(&format!("take-over after {crash:.2} s when an adapter dies, at most 1 s"), crash <= 1.0);
    let sides = pair.sides.each_ref().map(|side| &side.prometheus);
    let subject = Subject { cluster: CLUSTER, sides, deaths: &[prometheus] };
    let found = verdict::by_the_pair(&mut verdict, &pair.postgres, &subject, teller.began()).await;
    let leading = &pair.sides[leader(&pair).await].prometheus;
    verdict::by_remote_read(&mut verdict, &pair.postgres, &pair.reader, leading, CLUSTER).await;
    for side in &pair.sides {
        senders.push((format!("Prometheus {}", side.name), side.prometheus.sender().await));
    }
    for (name, sender) in senders {
        verdict::by_sender(&mut verdict, &name, sender);
    }
    let leaders = leaders(&pair).await.len();
    verdict.check(&format!("{leaders} of two adapters leads"), leaders == 1);
    verdict.conclude(&format!(
        "{} samples stored once: {} lost, {} doubled; take-overs in {silence:.2} s and {crash:.2} s",
        found.samples, found.lost, found.doubled,
    ))
}

/// Which side leads, as soon as one does.
async fn leader(pair: &Pair) -> usize {
    let one_leads = async || leaders(pair).await.first().copied();
    pair.sides[0].adapter().process().wait_until("one of the two adapters leads", PATIENCE, one_leads).await
}

/// The sides whose adapters say that they lead.
async fn leaders(pair: &Pair) -> Vec<usize> {
    let mut leaders = Vec::new();
    for (index, side) in pair.sides.iter().enumerate() {
        if side.adapter().role().await.as_deref() == Some("leader") {
            leaders.push(index);
        }
    }
    leaders
}

async fn roles(pair: &Pair, teller: Teller) {
    for side in &pair.sides {
        let role = side.adapter().role().await.unwrap_or_else(|| "silent".to_owned());
        let stored = side.adapter().metric("samples_stored_total").await.unwrap_or(0.0);
        let received = side.adapter().metric("samples_received_total").await.unwrap_or(0.0);
        teller.say(&format!("    adapter {}: {role:<8} {received:>7} samples received, {stored:>7} stored", side.name));
    }
}
