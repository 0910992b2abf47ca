//! The cases: how each is set up, and what is done in it.

use std::path::Path;
use std::time::{Duration, Instant};

use rig::network::Network;
use rig::postgres::Stop;
use rig::process::Signal;

use crate::host::{BACKOFF, Shape};
use crate::mode::Mode;
use crate::pooler::Pooler;
use crate::random::Random;
use crate::stage::{Outcome, PATIENCE, Setup, Stage, sleep};
use crate::{by_hand, by_labels, disk, judge, real, unequal};

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What happens, for the table.
    pub(crate) what: &'static str,
    /// Whether it is in the short form.
    pub(crate) short: bool,
    /// What it cannot do without.
    pub(crate) needs: Needs,
}

/// What a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// What every case has.
    Nothing,
    /// Hosts of their own.
    Network,
    /// libfaketime.
    Clock,
    /// pgbouncer.
    Pooler,
    /// A file system of its own.
    Disk,
}

impl Case {
    /// Whether it goes on for as long as there is time.
    pub(crate) fn is_mixture(&self) -> bool {
        self.name.ends_with("mixture")
    }
}

const fn case(name: &'static str, short: bool, needs: Needs, what: &'static str) -> Case {
    Case { name, what, short, needs }
}

/// All of them, in order.
pub(crate) const CASES: &[Case] = &[
    case("calm", true, Needs::Nothing, "nothing; then the judge must see five kinds of damage"),
    case("crash", true, Needs::Nothing, "kill -9 of the leading adapter, again and again"),
    case("crash-load", false, Needs::Nothing, "the same at 20,000 series every 5 s"),
    case("stop", true, Needs::Nothing, "rolling restart by SIGTERM"),
    case("freeze-short", false, Needs::Nothing, "leader frozen for less than the lease"),
    case("freeze-long", false, Needs::Nothing, "leader frozen for longer than the lease of 3 s"),
    case("freeze-default", false, Needs::Nothing, "leader frozen for longer than the default lease of 10 s"),
    case("freeze-writing", false, Needs::Nothing, "leader frozen inside a write transaction"),
    case("lock-killed", false, Needs::Nothing, "lock session terminated"),
    case("writers-killed", false, Needs::Nothing, "write sessions terminated"),
    case("leader-cut", true, Needs::Network, "leader's host cut off"),
    case("standby-cut", false, Needs::Network, "standby's host cut off"),
    case("hole", false, Needs::Network, "both hosts cut off; the first one back has lost its backlog"),
    case("flapping", false, Needs::Network, "leader's link down and up"),
    case("pg-fast", false, Needs::Nothing, "PostgreSQL restarted"),
    case("pg-immediate", true, Needs::Nothing, "PostgreSQL crashed"),
    case("pg-backend", false, Needs::Nothing, "kill -9 of one of PostgreSQL's backends"),
    case("pg-frozen", false, Needs::Nothing, "PostgreSQL frozen for 8 s"),
    case("pg-full", false, Needs::Disk, "PostgreSQL's disk full for 5 s"),
    case("pg-read-only", false, Needs::Nothing, "PostgreSQL read-only for 5 s"),
    case(
        "pg-promoted",
        false,
        Needs::Nothing,
        "primary crashes at 20,000 samples/s, its replica is promoted 10 s behind, leader crashes",
    ),
    case("prometheus-killed", true, Needs::Nothing, "leader's Prometheus killed for 8 s"),
    case("prometheus-restarted", false, Needs::Nothing, "leader's Prometheus killed and back within 1.5 s"),
    case("prometheus-silent", false, Needs::Nothing, "leader's Prometheus frozen, prometheus-timeout 2 s"),
    case("prometheus-silent-auto", false, Needs::Nothing, "the same with the timeout learned, a request every 2 s"),
    case("both-silent", false, Needs::Nothing, "both Prometheis frozen for 6 s"),
    case("slow-commits", false, Needs::Nothing, "commits slower than the sender's patience"),
    case("pooler", false, Needs::Pooler, "writes through pgbouncer in transaction mode, leader crashes"),
    case("poison", false, Needs::Nothing, "series that can never be stored, leader crashes"),
    case("skew-ahead", false, Needs::Clock, "leader's clock 30 s ahead, it crashes and comes back"),
    case("skew-behind", false, Needs::Clock, "leader's clock 30 s behind, it crashes and comes back"),
    case("backlog", false, Needs::Nothing, "an hour of backlog, 1,000,000 samples, comes to a standby"),
    case("union", true, Needs::Nothing, "each side does not make 5 % of its scrapes, leader crashes"),
    case("union-stops", false, Needs::Nothing, "the same, rolling restart of both adapters"),
    case("union-ends", false, Needs::Nothing, "the same, and then both Prometheis stop"),
    case("union-failed", false, Needs::Nothing, "the same, and scrapes that fail leave stale markers"),
    case("blind", false, Needs::Nothing, "leader's Prometheus reaches half of the targets only, it crashes"),
    case("late", false, Needs::Nothing, "10 % of the scrapes are sent up to 20 later, rolling restart"),
    case("history", false, Needs::Nothing, "samples of last week for series that live, leader crashes"),
    case(
        "replay",
        false,
        Needs::Nothing,
        "both sides send half an hour again in other batches while leader crashes or stops",
    ),
    case("deadline", false, Needs::Nothing, "batches of 60 s by two shards out of phase, leader's host dies"),
    case("future", false, Needs::Nothing, "samples of other times than now beside those that count, leader crashes"),
    case("apart", false, Needs::Nothing, "two clusters on one lock, leader crashes"),
    case("full", false, Needs::Nothing, "standby's memory full when the leader crashes"),
    case("idle", false, Needs::Nothing, "connections closed when idle, and cut by a proxy; leader's Prometheus killed"),
    case("resent", false, Needs::Nothing, "all is sent again for ever because of some that is refused, leader crashes"),
    case("write-path", false, Needs::Pooler, "leader's pooler killed, lock session direct"),
    case("by-hand", false, Needs::Nothing, "resign, hand-over and hold by an operator's hand"),
    case("rest", false, Needs::Nothing, "leaders told by REST; both told at once, and a crash"),
    case("real", false, Needs::Nothing, "real Prometheis; leading adapter killed, stopped, killed"),
    case("labels-calm", true, Needs::Nothing, "by labels: nothing; then the judge must see six kinds of damage"),
    case("labels-replica-killed", true, Needs::Nothing, "2 adapters, 2 replicas: the leading one killed for 8 s"),
    case("labels-replica-killed-3", false, Needs::Nothing, "3 adapters, 3 replicas: the leading one killed for 8 s"),
    case("labels-replica-silent", false, Needs::Nothing, "the leading replica frozen, timeout 2 s"),
    case("labels-replica-silent-3", false, Needs::Nothing, "the same with 3 adapters, 3 replicas"),
    case("labels-adapter-killed", false, Needs::Nothing, "kill -9 of one adapter of 3 after another"),
    case(
        "labels-reshuffle",
        false,
        Needs::Nothing,
        "all connections cut and balanced anew, a leading replica killed too",
    ),
    case(
        "labels-rolling",
        false,
        Needs::Nothing,
        "each adapter replaced, then stopped, a leading replica killed between",
    ),
    case(
        "labels-by-hand",
        false,
        Needs::Nothing,
        "by labels: resign, hand-over and hold by hand, to and from each replica",
    ),
    case("labels-pg-restarted", false, Needs::Nothing, "by labels: PostgreSQL crashed"),
    case(
        "labels-pg-promoted",
        false,
        Needs::Nothing,
        "by labels: primary crashes at 20,000 samples/s, its replica is promoted 10 s behind, a replica killed",
    ),
    case(
        "labels-union",
        false,
        Needs::Nothing,
        "by labels: each replica does not make 5 % of its scrapes, one is killed",
    ),
    case(
        "labels-late",
        false,
        Needs::Nothing,
        "by labels: 10 % of the scrapes are sent up to 20 later, a replica killed",
    ),
    case("labels-history", false, Needs::Nothing, "by labels: samples of last week, the leading replica killed"),
    case(
        "labels-replay",
        false,
        Needs::Nothing,
        "by labels: all replicas send all again in other batches, one is killed",
    ),
    case(
        "labels-future",
        false,
        Needs::Nothing,
        "by labels: samples of other times than now, the leading replica killed",
    ),
    case("labels-idle", false, Needs::Nothing, "by labels: connections closed when idle; the leading replica killed"),
    case("labels-adapter-cut", false, Needs::Network, "an adapter's host cut off, a leading replica killed meanwhile"),
    case(
        "mixture",
        false,
        Needs::Nothing,
        "chance: one failure after another, each side misses some and is late with some",
    ),
    case("labels-mixture", false, Needs::Nothing, "by labels, chance: one failure after another"),
];

/// What every case is given.
pub(crate) struct Context<'a> {
    /// Hosts of their own, if this machine has them.
    pub(crate) network: Option<&'a Network>,
    /// The adapter.
    pub(crate) binary: &'a Path,
    /// Whether to be quick.
    pub(crate) short: bool,
    /// Chance.
    pub(crate) random: Random,
    /// How long a mixture goes on.
    pub(crate) mixture: Duration,
}

impl Context<'_> {
    pub(crate) async fn set(&self, setup: Setup) -> Stage<'_> {
        Stage::set(self.network, self.binary, setup, self.random.clone()).await
    }
}

/// Why this machine cannot play a case.
pub(crate) fn obstacle(needs: Needs, network: &Result<Network, String>) -> Option<String> {
    match (needs, network) {
        (Needs::Network, Err(why)) => Some(why.clone()),
        (Needs::Clock, _) if rig::clock::wrong_by(0).is_none() => Some("needs libfaketime".to_owned()),
        (Needs::Pooler, _) if !Pooler::is_installed() => Some("needs pgbouncer".to_owned()),
        (Needs::Disk, _) if !rig::network::is_root() => Some("needs root for a file system of its own".to_owned()),
        _ => None,
    }
}

/// Plays one.
pub(crate) async fn play(name: &str, context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    match name {
        "calm" => calm(context.set(usual).await).await,
        "crash" => crash(context, usual, if context.short { 3 } else { 12 }).await,
        "crash-load" => {
            let batches = Shape { series: 20_000, interval_ms: 5_000, shards: 4, batch: 2_000, ..usual.shape };
            let mut outcome = crash(context, Setup { shape: batches, lease_seconds: 10.0, ..usual }, 12).await;
            let median = outcome.record.median();
            if median >= 0.3 {
                outcome.record.broken.push(format!("take-over p50 {median:.2} s, wanted 0.3 s"));
            }
            outcome
        }
        "stop" => stop(context.set(usual).await).await,
        "freeze-short" => freeze_short(context.set(usual).await).await,
        "freeze-long" => freeze_long(context.set(usual).await).await,
        "freeze-default" => freeze_long(context.set(Setup { lease_seconds: 10.0, ..usual }).await).await,
        "freeze-writing" => freeze_writing(context.set(usual).await).await,
        "lock-killed" => lock_killed(context.set(usual).await).await,
        "writers-killed" => writers_killed(context.set(usual).await).await,
        "leader-cut" => leader_cut(context.set(usual).await).await,
        "standby-cut" => standby_cut(context.set(usual).await).await,
        "hole" => hole(context.set(usual).await).await,
        "flapping" => flapping(context.set(usual).await).await,
        "pg-fast" => pg_restart(context.set(usual).await, Stop::Fast).await,
        "pg-immediate" => pg_restart(context.set(usual).await, Stop::Immediate).await,
        "pg-backend" => pg_backend(context.set(usual).await).await,
        "pg-frozen" => pg_frozen(context.set(usual).await).await,
        "pg-full" => pg_full(context).await,
        "pg-read-only" => pg_read_only(context.set(usual).await).await,
        "pg-promoted" => pg_promoted(context.set(with_replica(usual)).await).await,
        "prometheus-killed" => prometheus_killed(context.set(usual).await).await,
        "prometheus-restarted" => prometheus_restarted(context.set(usual).await).await,
        "prometheus-silent" => {
            let arguments = vec!["-leader-election-pg-advisory-lock-prometheus-timeout=2s".to_owned()];
            prometheus_silent(context.set(Setup { arguments, ..usual }).await, 1.0, 2.0 + 0.3).await
        }
        "prometheus-silent-auto" => {
            // One batch a scrape: what is sent has no other rhythm.
            let shape = Shape { series: 200, rules: 0, shards: 1, batch: 200, interval_ms: 2_000, ..usual.shape };
            prometheus_silent(context.set(Setup { shape, ..usual }).await, LEARNING, 3.0 * 2.0).await
        }
        "both-silent" => both_silent(context.set(usual).await).await,
        "slow-commits" => slow_commits(context).await,
        "pooler" => pooled(context.set(Setup { poolers: true, ..usual }).await).await,
        "poison" => poison(context.set(usual).await).await,
        "skew-ahead" => skewed(context, 30_000).await,
        "skew-behind" => skewed(context, -30_000).await,
        "backlog" => backlog(context).await,
        "union" => unequal::union(context.set(usual).await, false).await,
        "union-failed" => unequal::union(context.set(usual).await, true).await,
        "union-stops" => unequal::union_stops(context.set(usual).await).await,
        "union-ends" => unequal::union_ends(context.set(usual).await).await,
        "blind" => unequal::blind(context.set(usual).await).await,
        "late" => unequal::late(context.set(usual).await).await,
        "history" => unequal::history(context).await,
        "replay" => unequal::replay(context).await,
        "deadline" => unequal::deadline(context).await,
        "future" => unequal::future(context.set(usual).await).await,
        "apart" => unequal::apart(context.set(Setup { mode: Mode::Apart, ..usual }).await).await,
        "full" => unequal::full(context).await,
        "idle" => unequal::idle(context).await,
        "resent" => unequal::resent(context.set(usual).await).await,
        "write-path" => unequal::write_path(context.set(Setup { poolers: true, ..usual }).await).await,
        "by-hand" => by_hand::pair(context.set(usual).await).await,
        "rest" => by_hand::rest(context.set(Setup { mode: Mode::Rest, ..usual }).await).await,
        "real" => real::play(context).await,
        "mixture" => mixture(context).await,
        name => by_labels::play(name, context).await,
    }
}

pub(crate) async fn calm(stage: Stage<'_>) -> Outcome {
    sleep(5.0).await;
    let (mut outcome, kept) = stage.finish().await;
    if let Some((postgres, promised)) = kept {
        let (count, unseen) = judge::prove(&postgres, &promised).await;
        outcome.record.broken.extend(unseen.iter().map(|what| format!("the judge does not see {what}")));
        if unseen.is_empty() {
            outcome.record.notes.push(format!("{count} of {count} kinds of damage seen"));
        }
    }
    outcome
}

async fn crash(context: &Context<'_>, setup: Setup, times: usize) -> Outcome {
    let mut stage = context.set(setup).await;
    for _ in 0..times {
        let pause = stage.random.seconds(0.2, stage.interval() + 0.5);
        sleep(pause).await;
        crash_once(&mut stage).await;
    }
    stage.finish().await.0
}

pub(crate) async fn crash_once(stage: &mut Stage<'_>) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("kill -9 {}", ["a", "b"][leader]));
    stage.kill(leader).await;
    stage.takeover(1 - leader, mark, deed).await;
    stage.start(leader).await;
    stage.healthy().await;
}

async fn stop(mut stage: Stage<'_>) -> Outcome {
    for _ in 0..2 {
        sleep(1.5).await;
        stop_once(&mut stage).await;
    }
    stage.finish().await.0
}

pub(crate) async fn stop_once(stage: &mut Stage<'_>) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("SIGTERM {}", ["a", "b"][leader]));
    stage.terminate(leader).await;
    stage.takeover(1 - leader, mark, deed).await;
    sleep(1.0).await;
    stage.start(leader).await;
    stage.healthy().await;
}

async fn freeze_short(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    for seconds in [0.5, 1.0, 1.5] {
        let leader = stage.healthy().await;
        let mark = stage.mark(1 - leader);
        stage.event(format!("freeze {} for {seconds} s", ["a", "b"][leader]));
        stage.adapter(leader).process().pause();
        sleep(seconds).await;
        stage.adapter(leader).process().resume();
        sleep(2.0).await;
        if stage.adapter(1 - leader).process().log().lines()[mark..].iter().any(|line| line.contains("became leader")) {
            stage.record().broken.push(format!("the lead changed after {seconds} s, half a lease"));
        }
    }
    stage.finish().await.0
}

async fn freeze_long(mut stage: Stage<'_>) -> Outcome {
    let lease = stage.setup.lease_seconds;
    stage.record().takeover_wanted = lease;
    sleep(2.0).await;
    freeze_once(&mut stage, lease).await;
    stage.finish().await.0
}

async fn freeze_once(stage: &mut Stage<'_>, lease: f64) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("freeze {}", ["a", "b"][leader]));
    stage.adapter(leader).process().pause();
    stage.takeover(1 - leader, mark, deed).await;
    sleep((lease * 1.5 - deed.elapsed().as_secs_f64()).max(1.0)).await;
    stage.event("thaw");
    stage.adapter(leader).process().resume();
    stage.healthy().await;
}

/// A lock on the samples holds a COPY up; the adapter is frozen behind it, and only then the lock goes.
async fn freeze_writing(mut stage: Stage<'_>) -> Outcome {
    let lease = stage.setup.lease_seconds;
    stage.record().takeover_wanted = lease;
    sleep(2.0).await;
    let leader = stage.healthy().await;
    let (locker, looker) = (stage.client().await, stage.client().await);
    locker.batch_execute("BEGIN; LOCK TABLE metrics_hot IN ACCESS EXCLUSIVE MODE").await.expect("cannot lock");
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'metrics_hot'::regclass";
    let waiting = async || (looker.query_one(waits, &[]).await.ok()?.get::<_, i64>(0) > 0).then_some(());
    stage.adapter(leader).process().wait_until("a COPY is held up", Duration::from_secs(10), waiting).await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("freeze {} in a COPY", ["a", "b"][leader]));
    stage.adapter(leader).process().pause();
    locker.batch_execute("ROLLBACK").await.expect("cannot unlock");
    stage.takeover(1 - leader, mark, deed).await;
    sleep(2.0).await;
    stage.event("thaw");
    stage.adapter(leader).process().resume();
    stage.healthy().await;
    stage.finish().await.0
}

const KILL_LOCK: &str = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
    AND granted AND mode = 'ExclusiveLock' AND classid = 0 AND objid = 7";

async fn lock_killed(mut stage: Stage<'_>) -> Outcome {
    for _ in 0..4 {
        let pause = stage.random.seconds(0.5, 2.0);
        sleep(pause).await;
        lock_killed_once(&mut stage).await;
    }
    stage.finish().await.0
}

async fn lock_killed_once(stage: &mut Stage<'_>) {
    stage.healthy().await;
    let marks = [stage.mark(0), stage.mark(1)];
    let deed = Instant::now();
    stage.event("lock session killed");
    stage.sql(KILL_LOCK).await;
    // Either may be the next.
    let led = |host: usize| {
        stage.adapter(host).process().wait_for_log_after(marks[host], "became leader of", Duration::from_secs(20))
    };
    tokio::select! {
        _ = led(0) => {}
        _ = led(1) => {}
    }
    stage.record().taken_over(deed, 0.0);
    stage.healthy().await;
}

const KILL_WRITERS: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity a WHERE backend_type = 'client backend'
    AND pid <> pg_backend_pid() AND application_name NOT LIKE '%lock 7%'";

async fn writers_killed(mut stage: Stage<'_>) -> Outcome {
    sleep(1.0).await;
    let leader = stage.healthy().await;
    let mark = stage.mark(1 - leader);
    for _ in 0..20 {
        let pause = stage.random.seconds(0.05, 0.4);
        sleep(pause).await;
        stage.event("kill");
        stage.sql(KILL_WRITERS).await;
    }
    if stage.adapter(1 - leader).process().log().lines()[mark..].iter().any(|line| line.contains("became leader")) {
        stage.record().broken.push("the lead changed".to_owned());
    }
    stage.finish().await.0
}

async fn leader_cut(mut stage: Stage<'_>) -> Outcome {
    let lease = stage.setup.lease_seconds;
    stage.record().takeover_wanted = lease;
    sleep(2.0).await;
    cut_once(&mut stage).await;
    stage.finish().await.0
}

async fn cut_once(stage: &mut Stage<'_>) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("cut {}", ["a", "b"][leader]));
    stage.cut(leader, true);
    stage.takeover(1 - leader, mark, deed).await;
    sleep(4.0).await;
    stage.event("heal");
    stage.cut(leader, false);
    stage.healthy().await;
}

async fn standby_cut(mut stage: Stage<'_>) -> Outcome {
    sleep(1.0).await;
    let leader = stage.healthy().await;
    stage.event(format!("cut {}", ["a", "b"][1 - leader]));
    stage.cut(1 - leader, true);
    sleep(7.0).await;
    stage.event("heal");
    stage.cut(1 - leader, false);
    if stage.healthy().await != leader {
        stage.record().broken.push("the lead changed".to_owned());
    }
    crash_once(&mut stage).await;
    stage.finish().await.0
}

/// What nobody stored while both were cut off, the standby alone can bring: the leader's Prometheus was restarted.
async fn hole(mut stage: Stage<'_>) -> Outcome {
    stage.record().takeover_wanted = stage.setup.lease_seconds;
    sleep(3.0).await;
    let leader = stage.healthy().await;
    let mark = stage.mark(leader);
    stage.event("both cut off");
    stage.cut(0, true);
    stage.cut(1, true);
    sleep(6.0).await;
    stage.event(format!("Prometheus {} restarted, its host back", ["a", "b"][leader]));
    stage.hosts[leader].kill();
    sleep(0.5).await;
    stage.hosts[leader].start();
    stage.cut(leader, false);
    stage.takeover(leader, mark, Instant::now()).await;
    sleep(2.0).await;
    stage.event("the other is back");
    stage.cut(1 - leader, false);
    stage.healthy().await;
    stage.finish().await.0
}

async fn flapping(mut stage: Stage<'_>) -> Outcome {
    let leader = stage.healthy().await;
    for _ in 0..6 {
        for cut in [true, false] {
            stage.event(if cut { "down" } else { "up" });
            stage.cut(leader, cut);
            let pause = stage.random.seconds(0.5, 2.0);
            sleep(pause).await;
        }
    }
    stage.healthy().await;
    stage.finish().await.0
}

pub(crate) async fn pg_restart(mut stage: Stage<'_>, how: Stop) -> Outcome {
    stage.sealed().await;
    for _ in 0..2 {
        sleep(2.0).await;
        pg_restart_once(&mut stage, how).await;
    }
    stage.finish().await.0
}

pub(crate) async fn pg_restart_once(stage: &mut Stage<'_>, how: Stop) {
    stage.settled().await;
    stage.event(format!("PostgreSQL: {how:?} stop"));
    stage.postgres.stop(how).await;
    let pause = stage.random.seconds(0.2, 3.0);
    sleep(pause).await;
    stage.postgres.start_again().await;
    stage.event("PostgreSQL is back");
    stage.settled().await;
}

async fn pg_backend(mut stage: Stage<'_>) -> Outcome {
    stage.sealed().await;
    for _ in 0..2 {
        sleep(2.0).await;
        stage.healthy().await;
        let client = stage.client().await;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a session has a process").get(0);
        stage.event("kill -9 of a backend");
        rig::process::signal(pid, Signal::KILL);
        sleep(1.0).await;
        stage.healthy().await;
    }
    stage.finish().await.0
}

async fn pg_frozen(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    stage.event("PostgreSQL frozen");
    stage.postgres.pause();
    sleep(8.0).await;
    stage.event("PostgreSQL thawed");
    stage.postgres.resume();
    stage.healthy().await;
    stage.finish().await.0
}

async fn pg_full(context: &Context<'_>) -> Outcome {
    let disk = disk::Disk::new(96);
    let mut stage = context.set(Setup::default()).await;
    // What the adapters make from now on, their next partition too, stays where it is; what is there moves.
    let place = format!("CREATE TABLESPACE small LOCATION '{}'", disk.path());
    stage.sql(&place).await;
    stage.sql("ALTER TABLE metrics_hot SET TABLESPACE small").await;
    let (client, dump) = (stage.client().await, stage.client().await);
    // There is no room in the table for what comes, and what is sealed meanwhile makes none.
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.expect("cannot look");
    stage.sql("VACUUM FULL metrics_hot").await;
    sleep(1.0).await;
    stage.event("disk full");
    let fill = "CREATE TABLE filler (a text) TABLESPACE small";
    stage.sql(fill).await;
    let mut rows = 1_000_000;
    while rows > 0 {
        // Halves as it fails: to the last page.
        let more = format!("INSERT INTO filler SELECT repeat('x', 100) FROM generate_series(1, {rows})");
        if client.batch_execute(&more).await.is_err() {
            rows /= 2;
        }
    }
    let errors = stage.hosts.iter().map(|host| host.counts().retried).sum::<usize>();
    sleep(5.0).await;
    let after = stage.hosts.iter().map(|host| host.counts().retried).sum::<usize>();
    if after == errors {
        stage.record().broken.push("nothing was refused: the disk was not full".to_owned());
    }
    drop(dump);
    stage.sql("DROP TABLE filler").await;
    stage.event("disk has room");
    stage.healthy().await;
    let outcome = stage.finish().await.0;
    drop(disk);
    outcome
}

async fn pg_read_only(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    stage.event("read-only");
    stage.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
    stage.sql("SELECT pg_reload_conf()").await;
    sleep(5.0).await;
    stage.event("writable");
    stage.sql("ALTER SYSTEM RESET default_transaction_read_only").await;
    stage.sql("SELECT pg_reload_conf()").await;
    stage.healthy().await;
    stage.finish().await.0
}

/// With a replica, and 20,000 samples a second from each side.
pub(crate) fn with_replica(setup: Setup) -> Setup {
    let uri = "postgres://postgres@HOST:PORT,HOST:SECOND/postgres?sslmode=disable&target_session_attrs=read-write";
    let series = 20_000 / setup.mode.clusters().len();
    let shape = Shape { series, shards: 4, batch: 2_000, ..setup.shape };
    Setup { uri: uri.to_owned(), replica: true, shape, lease_seconds: 10.0, ..setup }
}

/// The replica that is promoted lacks the last ten seconds.
pub(crate) async fn pg_promoted(mut stage: Stage<'_>) -> Outcome {
    stage.sealed().await;
    let replica = stage.replica.take().expect("this case has a replica");
    replica.stop_following(&stage.postgres).await;
    stage.event("replica cut off");
    sleep(10.0).await;
    stage.event("primary crashes");
    stage.postgres.stop(Stop::Immediate).await;
    stage.event("replica promoted");
    replica.promote().await;
    stage.postgres = replica;
    stage.settled().await;
    sleep(2.0).await;
    match stage.setup.mode {
        Mode::ByLabels(_) => by_labels::replica_killed_once(&mut stage, 0, 4.0).await,
        _ => crash_once(&mut stage).await,
    }
    stage.finish().await.0
}

/// So long a Prometheus has to send before its adapter knows how often it does, with a margin.
pub(crate) const LEARNING: f64 = 17.0;

async fn prometheus_killed(mut stage: Stage<'_>) -> Outcome {
    let interval = stage.interval();
    // Its usual pace is less than an interval, for shards and rules send in between; and then it is waited for a second.
    stage.record().takeover_wanted = 3.0 * interval;
    // Until then the pace is not relied on.
    sleep(LEARNING).await;
    prometheus_killed_once(&mut stage).await;
    stage.finish().await.0
}

pub(crate) async fn prometheus_killed_once(stage: &mut Stage<'_>) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("Prometheus {} killed", ["a", "b"][leader]));
    // One that was refused may pause so long before it sends again: its silence tells nothing until then.
    let later = if stage.hosts[leader].counts().is_refused { BACKOFF[1].as_secs_f64() } else { 0.0 };
    stage.hosts[leader].kill();
    stage.later_takeover(1 - leader, mark, deed, later).await;
    sleep(5.0).await;
    stage.event("it is back");
    stage.hosts[leader].start();
    stage.healthy().await;
}

async fn prometheus_restarted(mut stage: Stage<'_>) -> Outcome {
    sleep(3.0).await;
    for seconds in [0.3, 0.8, 1.5] {
        let leader = stage.healthy().await;
        stage.event(format!("Prometheus {} down for {seconds} s", ["a", "b"][leader]));
        stage.hosts[leader].kill();
        sleep(seconds).await;
        stage.hosts[leader].start();
        sleep(3.0).await;
    }
    stage.finish().await.0
}

/// Frozen, it closes no connection: only its silence tells. Its last request has just been answered, so nothing of the
/// silence is over yet.
async fn prometheus_silent(mut stage: Stage<'_>, peace: f64, wanted: f64) -> Outcome {
    stage.record().takeover_wanted = wanted;
    sleep(peace).await;
    for _ in 0..2 {
        let leader = stage.healthy().await;
        let sent = tokio::time::timeout(PATIENCE, stage.hosts[leader].sent()).await;
        sent.expect("the leader's Prometheus is not answered");
        let (mark, deed) = (stage.mark(1 - leader), Instant::now());
        stage.event(format!("Prometheus {} frozen", ["a", "b"][leader]));
        stage.hosts[leader].freeze(true);
        stage.takeover(1 - leader, mark, deed).await;
        sleep(2.0).await;
        stage.event("it is thawed");
        stage.hosts[leader].freeze(false);
        stage.healthy().await;
    }
    stage.finish().await.0
}

async fn both_silent(mut stage: Stage<'_>) -> Outcome {
    sleep(3.0).await;
    stage.event("both frozen");
    for host in &stage.hosts {
        host.freeze(true);
    }
    sleep(6.0).await;
    stage.event("both thawed");
    for host in &stage.hosts {
        host.freeze(false);
    }
    stage.healthy().await;
    crash_once(&mut stage).await;
    stage.finish().await.0
}

async fn slow_commits(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let shape = Shape { timeout: Duration::from_secs(1), ..usual.shape };
    let mut stage = context.set(Setup { shape, ..usual }).await;
    sleep(2.0).await;
    stage.event("commits take 0 to 3 s");
    stage
        .sql(
            "CREATE FUNCTION chaos_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_sleep(random() * 3); RETURN NULL; END $$;
             CREATE TRIGGER chaos_slow AFTER INSERT ON metrics_requests FOR EACH STATEMENT EXECUTE FUNCTION chaos_slow()",
        )
        .await;
    sleep(8.0).await;
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.record().takeover_wanted = 10.0;
    stage.event(format!("kill -9 {}", ["a", "b"][leader]));
    stage.kill(leader).await;
    stage.takeover(1 - leader, mark, deed).await;
    stage.start(leader).await;
    sleep(4.0).await;
    stage.event("commits are quick again");
    stage.sql("DROP TRIGGER chaos_slow ON metrics_requests").await;
    stage.healthy().await;
    stage.finish().await.0
}

async fn pooled(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    crash_once(&mut stage).await;
    sleep(1.0).await;
    stop_once(&mut stage).await;
    stage.finish().await.0
}

async fn poison(mut stage: Stage<'_>) -> Outcome {
    sleep(1.0).await;
    stage.event("poison");
    stage.hosts.iter().for_each(|host| host.fault(|faults| faults.poison = true));
    sleep(4.0).await;
    crash_once(&mut stage).await;
    sleep(2.0).await;
    stage.event("no poison");
    stage.hosts.iter().for_each(|host| host.fault(|faults| faults.poison = false));
    let poisoned: usize = stage.hosts.iter().map(|host| host.counts().poisoned).sum();
    stage.record().notes.push(format!("{poisoned} requests with poison answered 4xx, the rest of them stored"));
    if poisoned == 0 {
        stage.record().broken.push("poison was not refused".to_owned());
    }
    stage.finish().await.0
}

/// The second host's clock is wrong, its adapter's and its Prometheus'. It is made the leader, crashes, and is made
/// the leader again.
async fn skewed(context: &Context<'_>, skew_ms: i64) -> Outcome {
    let environment = rig::clock::wrong_by(skew_ms).expect("looked for before");
    let mut stage = context.set(Setup { environment, senders: false, ..Setup::default() }).await;
    stage.hosts[1].skew(skew_ms);
    stage.hosts[1].start();
    sleep(0.5).await;
    stage.hosts[0].start();
    stage.healthy().await;
    for _ in 0..3 {
        sleep(5.0).await;
        crash_once(&mut stage).await;
    }
    // What a clock ahead has stored is caught up with before anything more is stored.
    sleep(32.0).await;
    stage.finish().await.0
}

async fn backlog(context: &Context<'_>) -> Outcome {
    let usual = Setup::default();
    let shape = Shape { rules: 0, interval_ms: 3_600, shards: 8, batch: 2_000, ..usual.shape };
    let setup = Setup { shape, lease_seconds: 10.0, senders: false, ..usual };
    let mut stage = context.set(setup).await;
    let mut seconds = Vec::new();
    for host in [0, 1] {
        stage.event(format!("an hour comes to {}", ["a", "b"][host]));
        stage.hosts[host].remember(1_000);
        let began = Instant::now();
        stage.hosts[host].start();
        while stage.hosts[host].waiting() > 0 {
            assert!(began.elapsed() < Duration::from_secs(120), "the backlog is not answered for\n{}", stage.logs());
            sleep(0.02).await;
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    stage.healthy().await;
    stage
        .record()
        .notes
        .push(format!("1,000,000 samples: by the leader {:.1} s, by the standby {:.1} s", seconds[0], seconds[1]));
    if seconds[1] >= 10.0 {
        stage.record().broken.push(format!("backlog acknowledged in {:.1} s, wanted 10 s", seconds[1]));
    }
    stage.record().takeover_wanted = 10.0;
    crash_once(&mut stage).await;
    stage.finish().await.0
}

async fn mixture(context: &Context<'_>) -> Outcome {
    // Adapters that have just been started do not know yet how often they are sent to.
    let arguments = vec!["-leader-election-pg-advisory-lock-prometheus-timeout=2500ms".to_owned()];
    let mut stage = context.set(Setup { arguments, ..Setup::default() }).await;
    stage.record().takeover_wanted = stage.setup.lease_seconds;
    // Neither side has all, nor in order. Only a standby that is killed loses what it alone was sent, and none is.
    let unequal = |stage: &Stage<'_>, percent| {
        stage.hosts.iter().for_each(|host| host.fault(|faults| (faults.missed, faults.late) = (percent, percent)));
    };
    unequal(&stage, 3);
    let began = Instant::now();
    let mut played = 0;
    while began.elapsed() < context.mixture {
        stage.healthy().await;
        let pause = stage.random.seconds(0.0, 4.0);
        sleep(pause).await;
        let kinds = if context.network.is_some() { 9 } else { 8 };
        match stage.random.below(kinds) {
            0 => crash_once(&mut stage).await,
            1 => stop_once(&mut stage).await,
            2 => freeze_once(&mut stage, 3.0).await,
            3 => lock_killed_once(&mut stage).await,
            4 => stage.sql(KILL_WRITERS).await,
            5 => pg_restart_once(&mut stage, Stop::Fast).await,
            6 => pg_restart_once(&mut stage, Stop::Immediate).await,
            7 => prometheus_killed_once(&mut stage).await,
            _ => cut_once(&mut stage).await,
        }
        played += 1;
    }
    unequal(&stage, 0);
    stage.record().notes.push(format!("{played} failures"));
    stage.finish().await.0
}
