//! Two clusters of two Prometheis behind one load balancer: any adapter is sent any replica's samples, and of each
//! cluster one replica is stored. One leading Prometheus is killed; then an adapter, and before it is back the other
//! cluster's leading Prometheus is stopped.

mod proxy;
mod stage;

use std::time::Instant;

use rig::prometheus::Sender;

use self::stage::{Lead, REPLICAS, Stage, TIMEOUT_SECONDS};
use crate::judge::death;
use crate::verdict::{self, Verdict};
use crate::{PATIENCE, PEACE, Teller};

/// A silent leader is followed within its timeout, and all adapters know a round later at most; a busy machine has another.
const BOUND_SECONDS: f64 = TIMEOUT_SECONDS + 2.0;

/// The places of the clusters.
const EU: usize = 0;
const US: usize = 1;

/// The adapter that dies.
const VICTIM: usize = 0;

/// Tells it; whether all ends well.
pub(crate) async fn story(teller: Teller) -> bool {
    let say = |text: &str| teller.say(text);
    let mut verdicts = [Verdict::new("VERDICT on cluster eu"), Verdict::new("VERDICT on cluster us")];
    let mut senders: [Vec<(String, Sender)>; 2] = [Vec::new(), Vec::new()];

    say("starting PostgreSQL, node_exporter, two adapters behind a proxy, and two clusters of two Prometheis ...");
    let mut stage = Stage::start(teller).await;
    let began = [stage.settled(EU, None).await, stage.settled(US, None).await];
    say(
        "the proxy passes each request to the next adapter; the adapters find by its labels whether it is to be stored",
    );
    tokio::time::sleep(PEACE).await;
    roles(&stage, teller).await;

    senders[EU].push(sender(&stage, EU, began[EU]).await);
    say(&format!(
        "kill -9 of Prometheus eu/{}, which leads: whatever it had not sent is gone with it",
        began[EU].name()
    ));
    let killed = Instant::now();
    stage.clusters[EU].replicas[began[EU].replica].kill9().await;
    let prometheus = death(Some(began[EU].replica));
    let eu = stage.settled(EU, Some(began[EU])).await;
    let killed_seconds = killed.elapsed().as_secs_f64();
    say(&format!("Prometheus eu/{} leads, {killed_seconds:.2} s after the kill", eu.name()));
    let us = stage.settled(US, None).await;
    say(&format!("Prometheus us/{} leads cluster us as before: term {}", us.name(), us.term));
    stage.clusters[EU].replicas[began[EU].replica].start_again().await;
    say(&format!("Prometheus eu/{} is started again, and stands by", began[EU].name()));
    tokio::time::sleep(PEACE).await;
    roles(&stage, teller).await;

    say(&format!("kill -9 of adapter {}: the proxy passes its turns on to the other one", VICTIM + 1));
    stage.kill_adapter(VICTIM).await;
    let adapter = death(None);
    tokio::time::sleep(PEACE).await;
    let alone = [stage.settled(EU, None).await, stage.settled(US, None).await];
    roles(&stage, teller).await;
    senders[US].push(sender(&stage, US, us).await);
    say(&format!("SIGTERM to Prometheus us/{}, which leads, while one adapter is all there is", us.name()));
    stage.clusters[US].replicas[us.replica].terminate(PATIENCE).await;
    let ended = Instant::now();
    let us_after = stage.settled(US, Some(us)).await;
    let stopped_seconds = ended.elapsed().as_secs_f64();
    say(&format!("Prometheus us/{} leads, {stopped_seconds:.2} s after the other one's end", us_after.name()));
    stage.start_adapter(VICTIM).await;
    stage.clusters[US].replicas[us.replica].start_again().await;
    say(&format!("adapter {} and Prometheus us/{} are started again", VICTIM + 1, us.name()));
    tokio::time::sleep(PEACE).await;
    let ends = [stage.settled(EU, None).await, stage.settled(US, None).await];
    roles(&stage, teller).await;

    say("what a SQL client sees:");
    for cluster in &stage.clusters {
        verdict::show(&stage.postgres, cluster.name, teller).await;
    }
    let deeds = [
        Deeds {
            what: "is killed",
            took: killed_seconds,
            kept: [(eu, alone[EU], "an adapter dies"), (eu, ends[EU], "cluster us has another leader")],
        },
        Deeds {
            what: "is stopped",
            took: stopped_seconds,
            kept: [(began[US], us, "cluster eu has another leader"), (us, alone[US], "an adapter dies")],
        },
    ];
    let mut summaries = Vec::new();
    for (index, cluster) in stage.clusters.iter().enumerate() {
        say(&format!("and what is true of all of cluster {}:", cluster.name));
        let (verdict, deeds) = (&mut verdicts[index], &deeds[index]);
        deeds.judge(verdict);
        let deaths = if index == EU { &[adapter, prometheus][..] } else { &[adapter] };
        let found = verdict::by_the_pair(verdict, &stage.postgres, &cluster.subject(deaths), teller.began()).await;
        let leading = &cluster.replicas[ends[index].replica];
        verdict::by_remote_read(verdict, &stage.postgres, &stage.reader, leading, cluster.name).await;
        for (replica, prometheus) in cluster.replicas.iter().enumerate() {
            let name = format!("Prometheus {}/{}", cluster.name, REPLICAS[replica]);
            senders[index].push((name, prometheus.sender().await));
        }
        for (name, sender) in std::mem::take(&mut senders[index]) {
            verdict::by_sender(verdict, &name, sender);
        }
        summaries.push(format!(
            "{} samples stored once: {} lost, {} doubled; take-over in {:.2} s",
            found.samples, found.lost, found.doubled, deeds.took
        ));
    }
    let ok = verdicts.iter().zip(&summaries).map(|(verdict, summary)| verdict.conclude(summary)).collect::<Vec<_>>();
    ok.iter().all(|ok| *ok)
}

/// What was done to a cluster, and what must not have touched it.
struct Deeds {
    /// What happens to its leading Prometheus.
    what: &'static str,
    /// Seconds until the other one led.
    took: f64,
    /// Who led before and after something that is none of its business.
    kept: [(Lead, Lead, &'static str); 2],
}

impl Deeds {
    fn judge(&self, verdict: &mut Verdict) {
        let Self { what, took, kept } = self;
        let text = format!("take-over {took:.2} s after its leading Prometheus {what}, at most {BOUND_SECONDS} s");
        verdict.check(&text, *took <= BOUND_SECONDS);
        for (before, after, why) in kept {
            let (one, other) = (before.name(), after.name());
            let text =
                format!("{other} leads in term {} after {why}; before, {one} in term {}", after.term, before.term);
            verdict.check(&text, before == after);
        }
    }
}

/// What a leading Prometheus has sent until now: its counters die with it.
async fn sender(stage: &Stage, cluster: usize, lead: Lead) -> (String, Sender) {
    let Lead { replica, .. } = lead;
    let cluster = &stage.clusters[cluster];
    (format!("Prometheus {}/{} until its end", cluster.name, lead.name()), cluster.replicas[replica].sender().await)
}

async fn roles(stage: &Stage, teller: Teller) {
    for (index, cluster) in stage.clusters.iter().enumerate() {
        let lead = stage.settled(index, None).await;
        let other = REPLICAS[1 - lead.replica];
        teller.say(&format!(
            "    cluster {}: {} leads in term {}, {other} stands by",
            cluster.name,
            lead.name(),
            lead.term
        ));
    }
    let (answered, unanswered) = stage.proxy.counts();
    for (index, adapter) in stage.adapters.iter().enumerate() {
        let Some(adapter) = adapter else {
            teller.say(&format!("    adapter {}: dead; {unanswered} requests passed on by the proxy", index + 1));
            continue;
        };
        let stored = adapter.metric("samples_stored_total").await.unwrap_or(0.0);
        let received = adapter.metric("samples_received_total").await.unwrap_or(0.0);
        let (name, requests) = (index + 1, answered[index]);
        let text = format!("{requests:>4} requests answered, {received:>7} samples received, {stored:>7} stored");
        teller.say(&format!("    adapter {name}: {text}"));
    }
}
