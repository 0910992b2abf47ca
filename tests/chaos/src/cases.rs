//! The cases: how each is set up, and what is done in it.

use std::time::{Duration, Instant};

use rig::postgres::Stop;
use rig::process::Signal;

use crate::case::Context;
use crate::host::{BACKOFF, Shape};
use crate::mode::Mode;
use crate::stage::{Outcome, PATIENCE, Setup, Stage, sleep};
use crate::{by_labels, disk, judge};

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

pub(crate) async fn crash(context: &Context<'_>, setup: Setup, times: usize) -> Outcome {
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

pub(crate) async fn stop(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn freeze_short(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn freeze_long(mut stage: Stage<'_>) -> Outcome {
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
pub(crate) async fn freeze_writing(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn lock_killed(mut stage: Stage<'_>) -> Outcome {
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
        stage.adapter(host).process().wait_for_log_after(marks[host], "became leader", Duration::from_secs(20))
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

pub(crate) async fn writers_killed(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn leader_cut(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn standby_cut(mut stage: Stage<'_>) -> Outcome {
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
pub(crate) async fn hole(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn flapping(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn pg_backend(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn pg_frozen(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    stage.event("PostgreSQL frozen");
    stage.postgres.pause();
    sleep(8.0).await;
    stage.event("PostgreSQL thawed");
    stage.postgres.resume();
    stage.healthy().await;
    stage.finish().await.0
}

/// Time within which a full disk must be noticed.
const FULL_WITHIN: Duration = Duration::from_secs(20);

/// Fills the disk to the last page.
async fn fill_up(client: &tokio_postgres::Client) {
    let mut rows = 1_000_000;
    while rows > 0 {
        // Halves as it fails.
        let more = format!("INSERT INTO filler SELECT repeat('x', 100) FROM generate_series(1, {rows})");
        if client.batch_execute(&more).await.is_err() {
            rows /= 2;
        }
    }
}

pub(crate) async fn pg_full(context: &Context<'_>) -> Outcome {
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
    let retried = |stage: &Stage<'_>| stage.hosts.iter().map(|host| host.counts().retried).sum::<usize>();
    let (before, began) = (retried(&stage), Instant::now());
    // What becomes free meanwhile is filled too.
    while retried(&stage) == before && began.elapsed() < FULL_WITHIN {
        fill_up(&client).await;
        sleep(0.5).await;
    }
    if retried(&stage) == before {
        stage.record().broken.push("nothing was refused: the disk was not full".to_owned());
    }
    sleep(5.0).await;
    drop(dump);
    stage.sql("DROP TABLE filler").await;
    stage.event("disk has room");
    stage.healthy().await;
    let outcome = stage.finish().await.0;
    drop(disk);
    outcome
}

pub(crate) async fn pg_read_only(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn prometheus_killed(mut stage: Stage<'_>) -> Outcome {
    let interval = stage.interval();
    // Its usual pace is less than an interval, for shards and rules send in between; and then it is waited for a second.
    stage.record().takeover_wanted = 3.0 * interval;
    // Until then the pace is not relied on.
    sleep(LEARNING).await;
    prometheus_killed_once(&mut stage, false).await;
    stage.finish().await.0
}

/// With `after_failures` its last request may have been refused: it may then pause that long before it sends again, so its
/// silence proves nothing earlier, and the bar of the take-over is later by as much.
pub(crate) async fn prometheus_killed_once(stage: &mut Stage<'_>, after_failures: bool) {
    let leader = stage.healthy().await;
    let (mark, deed) = (stage.mark(1 - leader), Instant::now());
    stage.event(format!("Prometheus {} killed", ["a", "b"][leader]));
    let is_refused = after_failures && stage.hosts[leader].counts().is_refused;
    let later = if is_refused { BACKOFF[1].as_secs_f64() } else { 0.0 };
    if is_refused {
        stage
            .record()
            .notes
            .push(format!("a Prometheus was killed right after a 5xx: its take-over may be {later} s later"));
    }
    stage.hosts[leader].kill();
    stage.later_takeover(1 - leader, mark, deed, later).await;
    sleep(5.0).await;
    stage.event("it is back");
    stage.hosts[leader].start();
    stage.healthy().await;
}

pub(crate) async fn prometheus_restarted(mut stage: Stage<'_>) -> Outcome {
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
pub(crate) async fn prometheus_silent(mut stage: Stage<'_>, peace: f64, wanted: f64) -> Outcome {
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

pub(crate) async fn both_silent(mut stage: Stage<'_>) -> Outcome {
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

pub(crate) async fn slow_commits(context: &Context<'_>) -> Outcome {
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

pub(crate) async fn pooled(mut stage: Stage<'_>) -> Outcome {
    sleep(2.0).await;
    crash_once(&mut stage).await;
    sleep(1.0).await;
    stop_once(&mut stage).await;
    stage.finish().await.0
}

pub(crate) async fn poison(mut stage: Stage<'_>) -> Outcome {
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
pub(crate) async fn skewed(context: &Context<'_>, skew_ms: i64) -> Outcome {
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

pub(crate) async fn backlog(context: &Context<'_>) -> Outcome {
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

pub(crate) async fn mixture(context: &Context<'_>) -> Outcome {
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
            7 => prometheus_killed_once(&mut stage, true).await,
            _ => cut_once(&mut stage).await,
        }
        played += 1;
    }
    unequal(&stage, 0);
    stage.record().notes.push(format!("{played} failures"));
    stage.finish().await.0
}
