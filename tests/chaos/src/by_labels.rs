//! The cases by labels: any adapter is sent what any replica has, through a balancer.

use std::time::{Duration, Instant};

use rig::postgres::Stop;

use crate::balancer::Policy;
use crate::case::Context;
use crate::cases::pg_restart_once;
use crate::host::Shape;
use crate::mode::{ByLabels, Mode};
use crate::stage::{Outcome, PATIENCE, Setup, Stage, sleep};

/// `-metrics-high-availability-timeout`, in seconds.
const TIMEOUT: f64 = 2.0;

/// How long a replica that is killed stays away.
const AWAY: f64 = 8.0;

/// So long after an adapter died nothing is missing in what the others hold: the leading replica was stored that far.
const RECOVERED: f64 = 2.0;

pub(crate) const TWO: ByLabels = ByLabels { adapters: 2, replicas: 2, clusters: 2 };
pub(crate) const THREE: ByLabels = ByLabels { adapters: 3, replicas: 3, clusters: 2 };

pub(crate) async fn set<'a>(context: &'a Context<'_>, by_labels: ByLabels) -> Stage<'a> {
    set_up(context, setup(by_labels)).await
}

pub(crate) async fn set_up<'a>(context: &'a Context<'_>, setup: Setup) -> Stage<'a> {
    let mut stage = context.set(setup).await;
    stage.record().takeover_wanted = TIMEOUT + 0.5;
    stage
}

pub(crate) fn setup(by_labels: ByLabels) -> Setup {
    let usual = Setup::default();
    // The balancer gives up after 5 s, as behind an adapter that is cut off.
    let timeout = Duration::from_secs(5);
    let shape = Shape { series: 400, rules: 10, batch: 100, timeout, ..usual.shape };
    let arguments = vec![format!("-metrics-high-availability-timeout={TIMEOUT}s")];
    Setup { mode: Mode::ByLabels(by_labels), shape, arguments, ..usual }
}

fn any_cluster(stage: &mut Stage<'_>) -> usize {
    let clusters = stage.setup.mode.clusters().len();
    stage.random.index(clusters)
}

fn any_adapter(stage: &mut Stage<'_>) -> usize {
    let adapters = stage.setup.mode.adapters();
    stage.random.index(adapters)
}

/// A pause by chance.
async fn pause(stage: &mut Stage<'_>, from: f64, to: f64) {
    let seconds = stage.random.seconds(from, to);
    sleep(seconds).await;
}

pub(crate) async fn replica_killed(mut stage: Stage<'_>, times: usize) -> Outcome {
    for number in 0..times {
        replica_killed_once(&mut stage, number % 2, AWAY).await;
        pause(&mut stage, 1.0, 3.0).await;
    }
    stage.finish().await.0
}

/// Kills the leading replica of a cluster, and starts it again.
pub(crate) async fn replica_killed_once(stage: &mut Stage<'_>, cluster: usize, away: f64) {
    stage.settled().await;
    let (leader, term) = stage.leading(cluster).await;
    let deed = kill(stage, cluster, leader);
    stage.succession(cluster, term, deed).await;
    sleep((away - deed.elapsed().as_secs_f64()).max(0.5)).await;
    revive(stage, cluster, leader).await;
}

pub(crate) fn kill(stage: &mut Stage<'_>, cluster: usize, replica: usize) -> Instant {
    let name = stage.replica_name(cluster, replica);
    stage.event(format!("{name} killed"));
    stage.host(cluster, replica).kill();
    Instant::now()
}

pub(crate) async fn revive(stage: &mut Stage<'_>, cluster: usize, replica: usize) {
    stage.event("it is back");
    stage.host(cluster, replica).start();
    stage.settled().await;
}

/// Frozen, it closes no connection: only its silence tells. Its last request has just been answered.
pub(crate) async fn replica_silent(mut stage: Stage<'_>) -> Outcome {
    for number in 0..4 {
        replica_silent_once(&mut stage, number % 2).await;
        pause(&mut stage, 1.0, 2.0).await;
    }
    stage.finish().await.0
}

async fn replica_silent_once(stage: &mut Stage<'_>, cluster: usize) {
    stage.settled().await;
    let (leader, term) = stage.leading(cluster).await;
    let sent = tokio::time::timeout(PATIENCE, stage.host(cluster, leader).sent()).await;
    sent.expect("the leading replica is not answered");
    let name = stage.replica_name(cluster, leader);
    stage.event(format!("{name} frozen"));
    let deed = Instant::now();
    stage.host(cluster, leader).freeze(true);
    stage.succession(cluster, term, deed).await;
    sleep(2.0).await;
    stage.event("it is thawed");
    stage.host(cluster, leader).freeze(false);
    stage.settled().await;
}

pub(crate) async fn adapter_killed(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    for number in 0..6 {
        adapter_killed_once(&mut stage, number % 3).await;
        pause(&mut stage, 0.2, 2.0).await;
    }
    // What the last one held is of no use any more, what a new one was sent is.
    sleep(RECOVERED).await;
    replica_killed_once(&mut stage, 0, 2.0).await;
    stage.finish().await.0
}

async fn adapter_killed_once(stage: &mut Stage<'_>, adapter: usize) {
    let name = stage.setup.mode.adapter_name(adapter);
    stage.event(format!("kill -9 {name}"));
    stage.kill(adapter).await;
    pause(stage, 0.3, 3.0).await;
    stage.event("it is back");
    stage.start(adapter).await;
    stage.settled().await;
}

const POLICIES: [Policy; 4] = [Policy::PerSender, Policy::RoundRobin, Policy::PerShard, Policy::PerSender];

pub(crate) async fn reshuffle(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    for (number, policy) in POLICIES.into_iter().chain(POLICIES).enumerate() {
        pause(&mut stage, 1.0, 3.0).await;
        if number % 3 == 2 {
            reshuffled_with_death(&mut stage, number % 2, policy).await;
        } else {
            reshuffle_once(&mut stage, policy);
        }
    }
    stage.finish().await.0
}

fn reshuffle_once(stage: &mut Stage<'_>, policy: Policy) {
    stage.event(format!("reshuffled: {policy:?}"));
    stage.balancer().reshuffle(policy);
}

/// The leading replica of a cluster dies just when all move to other adapters.
async fn reshuffled_with_death(stage: &mut Stage<'_>, cluster: usize, policy: Policy) {
    stage.settled().await;
    let (leader, term) = stage.leading(cluster).await;
    reshuffle_once(stage, policy);
    pause(stage, 0.0, 0.6).await;
    let deed = kill(stage, cluster, leader);
    stage.succession(cluster, term, deed).await;
    sleep(2.0).await;
    revive(stage, cluster, leader).await;
}

/// An adapter that is told to end stays until nothing is held that is not stored.
pub(crate) async fn rolling(mut stage: Stage<'_>) -> Outcome {
    for (adapter, is_told_first) in [(0, true), (1, false)] {
        replace(&mut stage, adapter, is_told_first).await;
        replica_killed_once(&mut stage, adapter, 3.0).await;
    }
    // The leading replica goes while the adapter that may hold what another one sent is about to end.
    let (leader, term) = stage.leading(0).await;
    let deed = kill(&mut stage, 0, leader);
    replace(&mut stage, 0, true).await;
    let (_, now) = stage.leading(0).await;
    if now == term {
        stage.succession(0, term, deed).await;
    }
    revive(&mut stage, 0, leader).await;
    stage.finish().await.0
}

async fn replace(stage: &mut Stage<'_>, adapter: usize, is_told_first: bool) {
    let name = stage.setup.mode.adapter_name(adapter);
    stage.event(format!("a new one for {name}, SIGTERM"));
    stage.replace(adapter, is_told_first).await;
    stage.event("it has ended");
    stage.settled().await;
}

pub(crate) async fn adapter_cut(mut stage: Stage<'_>) -> Outcome {
    adapter_cut_once(&mut stage, 0, 8.0).await;
    sleep(RECOVERED).await;
    // Others wait for it until it counts as dead.
    stage.record().takeover_wanted = 5.0 + TIMEOUT + 0.5;
    let (leader, term) = stage.leading(0).await;
    stage.event("cut 2");
    stage.cut(1, true);
    sleep(1.0).await;
    let deed = kill(&mut stage, 0, leader);
    stage.succession(0, term, deed).await;
    sleep(3.0).await;
    stage.event("heal");
    stage.cut(1, false);
    revive(&mut stage, 0, leader).await;
    adapter_cut_once(&mut stage, 2, 3.0).await;
    stage.finish().await.0
}

async fn adapter_cut_once(stage: &mut Stage<'_>, adapter: usize, seconds: f64) {
    let name = stage.setup.mode.adapter_name(adapter);
    stage.event(format!("cut {name}"));
    stage.cut(adapter, true);
    sleep(seconds).await;
    stage.event("heal");
    stage.cut(adapter, false);
    stage.settled().await;
}

pub(crate) async fn mixture(context: &Context<'_>) -> Outcome {
    let mut stage = set(context, THREE).await;
    let began = Instant::now();
    let mut played = 0;
    while began.elapsed() < context.mixture {
        stage.settled().await;
        pause(&mut stage, RECOVERED, RECOVERED + 4.0).await;
        let (cluster, adapter) = (any_cluster(&mut stage), any_adapter(&mut stage));
        let policy = POLICIES[stage.random.index(POLICIES.len())];
        let kinds = if context.network.is_some() { 9 } else { 8 };
        match stage.random.below(kinds) {
            0 => replica_killed_once(&mut stage, cluster, AWAY).await,
            1 => replica_killed_once(&mut stage, cluster, 0.5).await,
            2 => replica_silent_once(&mut stage, cluster).await,
            3 => adapter_killed_once(&mut stage, adapter).await,
            4 => reshuffle_once(&mut stage, policy),
            5 => reshuffled_with_death(&mut stage, cluster, policy).await,
            6 => replace(&mut stage, adapter, adapter == 0).await,
            7 => {
                let how = if adapter == 0 { Stop::Fast } else { Stop::Immediate };
                pg_restart_once(&mut stage, how).await;
            }
            _ => adapter_cut_once(&mut stage, adapter, 4.0).await,
        }
        played += 1;
    }
    stage.record().notes.push(format!("{played} failures"));
    stage.finish().await.0
}
