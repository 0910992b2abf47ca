//! The cases in which the sides do not have the same, or send it late, out of order or once more.

use std::time::{Duration, Instant};

use crate::by_labels::{kill, replica_killed_once, revive};
use crate::case::Context;
use crate::cases::{LEARNING, crash_once, prometheus_killed_once, stop_once};
use crate::host::{Faults, Host, Shape, now_ms};
use crate::message;
use crate::mode::{ByLabels, Mode, REPLICAS};
use crate::stage::{Outcome, PATIENCE, Setup, Stage, sleep};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

fn fault(stage: &Stage<'_>, change: impl Fn(&mut Faults)) {
    stage.hosts.iter().for_each(|host| host.fault(&change));
}

pub(crate) async fn union(mut stage: Stage<'_>, has_markers: bool) -> Outcome {
    fault(&stage, |faults| (faults.missed, faults.has_markers) = (5, has_markers));
    sleep(8.0).await;
    crash_once(&mut stage).await;
    sleep(8.0).await;
    nothing_is_missed(&mut stage);
    stage.finish().await.0
}

/// An adapter that is told to end has samples that nobody else has scraped, whether it leads or not.
pub(crate) async fn union_stops(mut stage: Stage<'_>) -> Outcome {
    fault(&stage, |faults| faults.missed = 5);
    sleep(8.0).await;
    let leader = stage.healthy().await;
    for host in [1 - leader, leader] {
        stage.event(format!("SIGTERM {}", REPLICAS[host]));
        stage.terminate(host).await;
        sleep(1.0).await;
        stage.start(host).await;
        stage.healthy().await;
        sleep(4.0).await;
    }
    nothing_is_missed(&mut stage);
    stage.finish().await.0
}

fn nothing_is_missed(stage: &mut Stage<'_>) {
    stage.event("nothing is missed any more");
    fault(stage, |faults| faults.missed = 0);
}

/// All stop sending when only a standby has some of what was scraped.
pub(crate) async fn union_ends(stage: Stage<'_>) -> Outcome {
    fault(&stage, |faults| faults.missed = 5);
    sleep(LEARNING).await;
    stage.finish().await.0
}

pub(crate) async fn labels_union(mut stage: Stage<'_>) -> Outcome {
    fault(&stage, |faults| faults.missed = 5);
    sleep(8.0).await;
    replica_killed_once(&mut stage, 0, 3.0).await;
    sleep(8.0).await;
    nothing_is_missed(&mut stage);
    stage.finish().await.0
}

pub(crate) async fn blind(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    let leader = stage.healthy().await;
    let targets = message::targets(&stage.setup.shape);
    stage.event(format!("{} does not reach half of the targets", REPLICAS[leader]));
    stage.hosts[leader].fault(|faults| faults.blind = 0..targets / 2);
    sleep(10.0).await;
    crash_once(&mut stage).await;
    sleep(2.0).await;
    // Now the leader is the one that reaches all, and the standby does not.
    stage.event("the new leader does not reach the other half");
    stage.hosts[1 - leader].fault(|faults| faults.blind = targets / 2..targets);
    sleep(10.0).await;
    stage.event("all are reached");
    fault(&stage, |faults| faults.blind = 0..0);
    stage.finish().await.0
}

pub(crate) async fn late(mut stage: Stage<'_>) -> Outcome {
    fault(&stage, |faults| faults.late = 10);
    for _ in 0..2 {
        sleep(8.0).await;
        stop_once(&mut stage).await;
    }
    sleep(8.0).await;
    stage.finish().await.0
}

pub(crate) async fn history(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let mut stage =
        context.set(Setup { shape: Shape { series: 200, ..usual.shape }, lease_seconds: 5.0, ..usual }).await;
    // What is buffered is compared before anything else is stored.
    stage.record().takeover_wanted = stage.setup.lease_seconds;
    sleep(2.0).await;
    let leader = stage.healthy().await;
    let ago_ms = |days: i64| now_ms() - days * DAY_MS;
    stage.event("samples of 7 days ago come to the leader");
    stage.hosts[leader].remember_of(ago_ms(7), 144);
    sleep(3.0).await;
    stage.event("and to the standby");
    stage.hosts[1 - leader].remember_of(ago_ms(7), 144);
    sleep(1.0).await;
    stage.event("of 5 days ago to the standby alone, of 3 days ago to both at once, the newer ones first");
    stage.hosts[1 - leader].remember_of(ago_ms(5), 144);
    for host in &stage.hosts {
        let from_ms = ago_ms(3);
        host.remember_of(from_ms + 72_000, 72);
        host.remember_of(from_ms, 72);
    }
    sleep(1.0).await;
    crash_once(&mut stage).await;
    stage.event("of an hour ago to the standby, which is to lead at once");
    let leader = stage.healthy().await;
    stage.hosts[1 - leader].remember_of(now_ms() - HOUR_MS, 144);
    crash_once(&mut stage).await;
    stage.finish().await.0
}

/// As Prometheus does that goes back to a savepoint of its log.
pub(crate) async fn replay(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let shape = Shape { series: 200, interval_ms: 5_000, shards: 2, ..usual.shape };
    let arguments = vec!["-pg-prometheus-chunk-interval=5m".to_owned()];
    let mut stage = context.set(Setup { shape, arguments, lease_seconds: 10.0, senders: false, ..usual }).await;
    stage.record().takeover_wanted = stage.setup.lease_seconds;
    let began_ms = now_ms() - HOUR_MS / 2;
    for host in &stage.hosts {
        host.remember(360);
        host.start();
    }
    stage.healthy().await;
    stage.caught_up().await;
    for is_crash in [true, false] {
        sleep(6.0).await;
        let leader = stage.healthy().await;
        let (mark, deed) = (stage.mark(1 - leader), Instant::now());
        stage.event(format!(
            "all is sent again; {} of {}",
            if is_crash { "kill -9" } else { "SIGTERM" },
            REPLICAS[leader]
        ));
        stage.hosts.iter().for_each(|host| host.replay(began_ms));
        // Some of it is under way.
        let pause = stage.random.seconds(0.0, 0.5);
        sleep(pause).await;
        match is_crash {
            true => stage.kill(leader).await,
            false => stage.terminate(leader).await,
        }
        stage.takeover(1 - leader, mark, deed + Duration::from_secs_f64(pause)).await;
        stage.start(leader).await;
        stage.healthy().await;
        stage.caught_up().await;
    }
    stage.finish().await.0
}

pub(crate) async fn deadline(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let minute = Duration::from_secs(60);
    let shape = Shape {
        series: 200,
        rules: 0,
        interval_ms: 5_000,
        shards: 2,
        batch: 100_000,
        deadline: minute,
        stagger: minute / 2,
        ..usual.shape
    };
    let mut stage = context.set(Setup { shape, lease_seconds: 10.0, senders: false, ..usual }).await;
    for host in &stage.hosts {
        host.start();
        sleep(10.0).await;
    }
    // Each first sends after a minute; from then on the first shards 10 s one after the other, the second ones half a minute later.
    sleep(140.0).await;
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("the host of {} dies", REPLICAS[leader]));
    stage.hosts[leader].kill();
    stage.kill(leader).await;
    stage.takeover(1 - leader, mark, deed).await;
    stage.finish().await.0
}

/// Sends what bears other times than now, and says what was answered otherwise than wanted.
async fn strange(host: &Host, cluster: &str, replica: &str) -> Vec<String> {
    let labels = message::stranger(cluster, replica);
    let now = now_ms();
    let mut wrong = Vec::new();
    for (what, time_ms, wanted) in [
        ("a year ahead", now + 365 * DAY_MS, 400),
        ("3 min ahead", now + 180_000, 204),
        ("of 1970", 0, 204),
        ("before all times", i64::MIN, 400),
        ("after all times", i64::MAX, 400),
    ] {
        let status = host.post(message::request([(labels.as_slice(), time_ms, 1.0)].into_iter(), None)).await;
        // One that is not known who leads is asked again.
        if status != wanted && status != 503 {
            wrong.push(format!("a sample {what} was answered {status}, not {wanted}"));
        }
    }
    wrong
}

pub(crate) async fn future(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    stage.event("strange times come to both");
    for is_last in [false, false, false, false, false, true] {
        for (host, replica) in REPLICAS.iter().enumerate().take(2) {
            let wrong = strange(&stage.hosts[host], "chaos", replica).await;
            stage.record().broken.extend(wrong);
        }
        sleep(1.0).await;
        if is_last {
            crash_once(&mut stage).await;
        }
    }
    sleep(5.0).await;
    prometheus_silent(&mut stage).await;
    stage.finish().await.0
}

/// A stranger sends on by the leader's adapter while its Prometheus is frozen.
async fn prometheus_silent(stage: &mut Stage<'_>) {
    let leader = stage.healthy().await;
    stage.event(format!("Prometheus {} frozen for 5 s", REPLICAS[leader]));
    stage.hosts[leader].freeze(true);
    for _ in 0..5 {
        let wrong = strange(&stage.hosts[leader], "chaos", REPLICAS[leader]).await;
        stage.record().broken.extend(wrong);
        sleep(1.0).await;
    }
    stage.hosts[leader].freeze(false);
}

pub(crate) async fn labels_future(mut stage: Stage<'_>) -> Outcome {
    sleep(3.0).await;
    stage.settled().await;
    let (leader, term) = stage.leading(0).await;
    stage.event("strange times come from the other replica");
    for _ in 0..3 {
        let wrong = strange(stage.host(0, 1 - leader), "eu", REPLICAS[1 - leader]).await;
        stage.record().broken.extend(wrong);
    }
    let deed = kill(&mut stage, 0, leader);
    stage.succession(0, term, deed).await;
    sleep(3.0).await;
    revive(&mut stage, 0, leader).await;
    stage.finish().await.0
}

pub(crate) async fn labels_late(mut stage: Stage<'_>) -> Outcome {
    fault(&stage, |faults| faults.late = 10);
    sleep(8.0).await;
    replica_killed_once(&mut stage, 0, 3.0).await;
    sleep(8.0).await;
    stage.finish().await.0
}

pub(crate) async fn labels_history(mut stage: Stage<'_>) -> Outcome {
    sleep(3.0).await;
    let (leader, _) = stage.leading(0).await;
    let ago_ms = |days: i64| now_ms() - days * DAY_MS;
    stage.event(
        "samples of 7 days ago come from both, of 5 days ago from the leading one, of 3 days ago from the other",
    );
    for (replica, days) in [(0, 7), (1, 7), (leader, 5), (1 - leader, 3)] {
        stage.host(0, replica).remember_of(ago_ms(days), 72);
    }
    sleep(1.0).await;
    replica_killed_once(&mut stage, 0, 3.0).await;
    stage.finish().await.0
}

pub(crate) async fn labels_replay(mut stage: Stage<'_>) -> Outcome {
    for _ in 0..2 {
        sleep(10.0).await;
        stage.event("all is sent again");
        // None of it is older than the case.
        stage.hosts.iter().for_each(|host| host.replay(0));
        sleep(1.0).await;
        stage.caught_up().await;
    }
    replica_killed_once(&mut stage, 0, 3.0).await;
    stage.event("all is sent again");
    stage.hosts.iter().for_each(|host| host.replay(0));
    stage.finish().await.0
}

pub(crate) async fn apart(mut stage: Stage<'_>) -> Outcome {
    for _ in 0..2 {
        sleep(8.0).await;
        crash_once(&mut stage).await;
    }
    sleep(4.0).await;
    stage.finish().await.0
}

pub(crate) async fn full(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let shape = Shape { series: 5_000, rules: 0, shards: 4, batch: 2_000, ..usual.shape };
    let arguments = vec!["-standby-memory-mib=1".to_owned()];
    let mut stage = context.set(Setup { shape, arguments, lease_seconds: 30.0, ..usual }).await;
    stage.record().takeover_wanted = 5.0;
    sleep(3.0).await;
    let leader = stage.healthy().await;
    let locker = stage.client().await;
    stage.event("nothing can be stored");
    locker.batch_execute("BEGIN; LOCK TABLE metrics_hot IN ACCESS EXCLUSIVE MODE").await.expect("cannot lock");
    let (began, refused) = (Instant::now(), stage.hosts[1 - leader].counts().retried);
    while stage.hosts[1 - leader].counts().retried == refused {
        assert!(began.elapsed() < PATIENCE, "the standby is never full\n{}", stage.logs());
        sleep(0.05).await;
    }
    let held = stage.held(1 - leader);
    stage.record().notes.push(format!("full with {held} samples"));
    if stage.healthy().await != leader {
        stage.record().broken.push("the lead changed before".to_owned());
    }
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("the standby is full; kill -9 {}", REPLICAS[leader]));
    stage.kill(leader).await;
    locker.batch_execute("ROLLBACK").await.expect("cannot unlock");
    stage.takeover(1 - leader, mark, deed).await;
    sleep(2.0).await;
    stage.start(leader).await;
    stage.healthy().await;
    stage.finish().await.0
}

/// Seconds between two scrapes that are longer than connections are kept.
const RARE: f64 = 4.0;

fn rare(usual: Shape) -> Shape {
    let idle = Duration::from_secs(1);
    Shape { series: 200, rules: 0, shards: 1, batch: 200, interval_ms: 4_000, idle, ..usual }
}

pub(crate) async fn idle(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let mut stage = context.set(Setup { shape: rare(usual.shape), ..usual }).await;
    // A sender that opens a connection for each request says nothing by closing it: it is silent after two and a half of its gaps.
    stage.record().takeover_wanted = 2.5 * RARE + 1.0;
    let leader = stage.healthy().await;
    sleep(LEARNING + 3.0 * RARE).await;
    stage.event("connections are cut again and again");
    for _ in 0..8 {
        stage.balancers().iter().for_each(|balancer| balancer.cut());
        let pause = stage.random.seconds(0.5, 3.0);
        sleep(pause).await;
    }
    if stage.healthy().await != leader || stage.lines_with("became leader") > 1 {
        stage.record().broken.push("the lead changed".to_owned());
    }
    prometheus_killed_once(&mut stage, false).await;
    stage.finish().await.0
}

pub(crate) async fn labels_idle(context: &Context<'_>, by_labels: ByLabels) -> Outcome {
    let usual = Setup::default();
    let arguments = vec![format!("-metrics-high-availability-timeout={}s", 2.5 * RARE)];
    let mode = Mode::ByLabels(by_labels);
    let mut stage = context.set(Setup { mode, arguments, shape: rare(usual.shape), ..usual }).await;
    stage.record().takeover_wanted = 2.5 * RARE + 1.0;
    let before = [stage.leading(0).await, stage.leading(1).await];
    sleep(LEARNING + 3.0 * RARE).await;
    stage.event("connections are cut again and again");
    for _ in 0..8 {
        stage.balancer().cut();
        let pause = stage.random.seconds(0.5, 3.0);
        sleep(pause).await;
    }
    if before != [stage.leading(0).await, stage.leading(1).await] {
        stage.record().broken.push("the lead changed".to_owned());
    }
    replica_killed_once(&mut stage, 0, 3.0).await;
    stage.finish().await.0
}

pub(crate) async fn resent(mut stage: Stage<'_>) -> Outcome {
    stage.record().takeover_wanted = stage.setup.lease_seconds;
    sleep(1.0).await;
    stage.event("some is refused, all is sent again");
    fault(&stage, |faults| (faults.poison, faults.repeats) = (true, true));
    sleep(6.0).await;
    crash_once(&mut stage).await;
    sleep(6.0).await;
    stage.event("nothing is refused");
    fault(&stage, |faults| (faults.poison, faults.repeats) = (false, false));
    let refused: usize = stage.hosts.iter().map(|host| host.counts().poisoned).sum();
    stage.record().notes.push(format!("{refused} requests answered 4xx and sent again with more"));
    if refused == 0 {
        stage.record().broken.push("nothing was refused".to_owned());
    }
    stage.finish().await.0
}

pub(crate) async fn write_path(mut stage: Stage<'_>) -> Outcome {
    // Its writes have to fail for a whole lease.
    stage.record().takeover_wanted = 2.0 * stage.setup.lease_seconds + 1.0;
    for _ in 0..2 {
        sleep(3.0).await;
        let leader = stage.healthy().await;
        let (mark, deed) = (stage.mark(1 - leader), Instant::now());
        stage.event(format!("the pooler of {} ends", REPLICAS[leader]));
        stage.cut_pooler(leader, true);
        stage.takeover(1 - leader, mark, deed).await;
        sleep(3.0).await;
        stage.event("it is back");
        stage.cut_pooler(leader, false);
        stage.healthy().await;
    }
    stage.finish().await.0
}
