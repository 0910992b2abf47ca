//! A reconcile sees everything that is stored, whoever else writes, and nobody stores again what it has just stored.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::future::{join, join_all};
use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::around::{Around, Near, StoredTime};
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::ingest::{Right, Stored};
use prometheus_postgresql_adapter::storage::reconcile::{Reconcile, Reconciled};
use prometheus_postgresql_adapter::storage::row::Row;
use prometheus_postgresql_adapter::storage::{SealedRows, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::setup::{Database, SOON, now_ms};
use crate::storage::open;

/// A group of two senders, the first of which leads, and an adapter's store with its only writer.
struct Group {
    database: Database,
    store: Arc<Store>,
    fence: Fence,
    leader: SenderNo,
    other: SenderNo,
    stop: CancellationToken,
    writers: JoinSet<()>,
}

impl Group {
    async fn new() -> Self {
        let database = Database::new().await;
        let (store, writers) = open(&database, None, false).await;
        let [leader, other] = ["a", "b"].map(|name| store.sender_no("a group", name));
        let (leader, other) = (leader.await.unwrap(), other.await.unwrap());
        let token = Uuid::new_v4();
        let lead = format!(
            "INSERT INTO metrics_leader (group_name, term, token, sender_no) VALUES ('a group', 1, '{token}', {})",
            leader.0
        );
        database.run(&lead).await;
        let group_no = database.one("SELECT group_no FROM metrics_leader").await;
        let stop = CancellationToken::new();
        let writers = writers.into_iter().map(|writer| writer.run(stop.clone())).collect();
        let fence = Fence { group_no, term: 1, token };
        Self { database, store: Arc::new(store), fence, leader, other, stop, writers }
    }

    fn right(&self, sender: SenderNo, reconciled: i64) -> Right {
        Right { sender, fence: Some(self.fence), reconciled, observed: None, epoch: self.store.epoch() }
    }

    async fn append(&self, rows: impl Into<Vec<Row>>, right: Right) -> Stored {
        self.store.commit(Uuid::new_v4(), rows.into(), right).await.unwrap()
    }

    /// Reconciles samples of the other sender: they are stored where the leader has no sample within half a second.
    fn reconcile<'a>(&self, rows: &'a [Row]) -> Reconcile<'a> {
        let near = Near { rows, window_ms: 500, unbounded: &[] };
        Reconcile { near, right: self.right(self.other, -1), is_told: true }
    }

    async fn reconciled(
        &self,
        what: Reconcile<'_>,
        judge: impl FnMut(usize, &Around) -> Vec<Row>,
    ) -> Option<Reconciled> {
        self.store.reconcile(&[what], judge).await.unwrap().remove(0)
    }

    async fn times(&self, series_id: i64) -> Vec<i64> {
        let times = format!(
            "SELECT (extract(epoch FROM time) * 1000)::bigint FROM metrics_values WHERE labels_id = {series_id} ORDER BY time"
        );
        self.database.column(&times).await
    }

    /// Creates series with these ids, which the views need.
    async fn make_series(&self, ids: std::ops::Range<i64>) {
        let make = format!(
            "INSERT INTO metrics_series (id, key, name, labels) OVERRIDING SYSTEM VALUE \
             SELECT n, gen_random_uuid(), 'up', '{{}}' FROM generate_series({}, {}) n",
            ids.start,
            ids.end - 1
        );
        self.database.run(&make).await;
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.writers.join_next().await.is_some() {}
    }
}

/// Returns the rows of `rows` around which nothing is stored.
fn missing<'a>(rows: &'a [Row]) -> impl FnMut(usize, &Around) -> Vec<Row> + 'a {
    |_, around| {
        let is_missing = |row: &&Row| around.times.get(&row.series_id).is_none_or(Vec::is_empty);
        rows.iter().filter(is_missing).cloned().collect()
    }
}

fn row(series_id: i64, time_ms: i64) -> Row {
    Row { series_id, time_ms, value: Value::Float(0.5) }
}

fn stored(times: &[(i64, Option<SenderNo>)]) -> Vec<StoredTime> {
    let stored = |(time_ms, sender): &(_, _)| StoredTime { time_ms: *time_ms, sender: *sender, is_marker: false };
    times.iter().map(stored).collect()
}

/// Makes every transaction that stores hot rows wait before its end while a session holds the advisory lock 42.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END';
    CREATE TRIGGER slow AFTER INSERT ON metrics_hot FOR EACH STATEMENT EXECUTE FUNCTION slow()";

const HOLD: &str = "SELECT pg_advisory_lock(42)";
const RELEASE: &str = "SELECT pg_advisory_unlock(42)";

/// A query that is true if exactly `count` sessions wait for an advisory lock.
fn waiting(count: usize) -> String {
    format!(
        "SELECT count(*) = {count} FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
         AND wait_event = 'advisory'"
    )
}

#[tokio::test]
async fn what_is_around_is_found_hot_and_sealed() {
    let group = Group::new().await;
    let (a, b) = (Some(group.leader), Some(group.other));
    group.make_series(1..300).await;
    let right = |sender| group.right(sender, 0);
    // Two buckets, and more samples than one hot row can hold.
    let scrape = |time_ms| (1..300).map(|id| row(id, time_ms)).collect::<Vec<_>>();
    for time_ms in [10_000, 20_000, 30_000] {
        group.append(scrape(time_ms), right(group.leader)).await;
    }
    group.store.seal(SealedRows::All).await.unwrap().expect("nobody else seals");
    group.append(scrape(40_000), right(group.leader)).await;
    let marker = Row { value: Value::Float(f64::from_bits(STALE_NAN_BITS)), ..row(200, 49_900) };
    group.append([row(7, 40_400), row(8, 60_000), marker], right(group.other)).await;
    group.append([row(7, 40_400)], right(group.leader)).await;
    group.database.run("INSERT INTO metrics_hot (\"time\", series, value) VALUES ('1970-01-01 00:00:40.5+00', ARRAY[9, 8], ARRAY[1, 1])").await;
    let rows = [row(7, 20_100), row(7, 40_000), row(8, 29_500), row(8, 40_900), row(200, 50_000), row(1_000, 40_000)];
    let unbounded = [8, 200, 1_000];
    let around = group
        .store
        .around(&[Near { rows: &rows, window_ms: 500, unbounded: &unbounded }], group.store.epoch())
        .await
        .unwrap();
    let mut times = HashMap::new();
    times.insert(7, stored(&[(20_000, None), (40_000, a), (40_400, None)]));
    times.insert(8, stored(&[(30_000, None), (40_500, None)]));
    times.insert(200, vec![StoredTime { is_marker: true, ..stored(&[(49_900, b)])[0] }]);
    let found = around.times[&7].get(2).copied().unwrap_or_else(|| panic!("{around:?}"));
    assert!([a, b].contains(&found.sender), "of two at one time one is told: {found:?}");
    times.get_mut(&7).unwrap()[2] = found;
    assert_eq!(around.times, times);
    assert_eq!(around.last_ms, HashMap::from([(8, stored(&[(60_000, b)])[0]), (200, times[&200][0])]));
    // The same after sealing, except for the sender, which is not known any more; the last sample comes from a chunk.
    group.store.seal(SealedRows::All).await.unwrap().expect("nobody else seals");
    let around = group
        .store
        .around(&[Near { rows: &rows, window_ms: 500, unbounded: &unbounded }], group.store.epoch())
        .await
        .unwrap();
    times.values_mut().flatten().for_each(|time| time.sender = None);
    assert_eq!(around.times, times);
    assert_eq!(around.last_ms, HashMap::from([(8, stored(&[(60_000, None)])[0]), (200, times[&200][0])]));
    group.end().await;
}

#[tokio::test]
async fn what_is_inserted_is_whole() {
    let group = Group::new().await;
    group.make_series(1..1_000).await;
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let mut rows: Vec<Row> = (1..1_000).flat_map(|id| [row(id, 5_000), row(id, 6_000)]).collect();
    rows[1].value = Value::Float(stale);
    let done = group.reconciled(group.reconcile(&rows), missing(&rows)).await.unwrap();
    assert_eq!((done.inserted.len(), done.reconciled), (rows.len(), 1));
    let of_sender =
        format!("SELECT count(*) FROM metrics_hot WHERE sender = {} AND cardinality(series) <= 248", group.other.0);
    assert_eq!(group.database.one::<i64>(&of_sender).await, 10, "five for each time");
    let ascending = "SELECT bool_and(series = ARRAY(SELECT unnest(series) ORDER BY 1)) FROM metrics_hot";
    assert!(group.database.one::<bool>(ascending).await);
    let bits = "SELECT float8send(value) = '\\x7ff0000000000002' FROM metrics_values WHERE labels_id = 1 AND time > '1970-01-01 00:00:05.5+00'";
    assert!(group.database.one::<bool>(bits).await);
    let again = group.reconciled(group.reconcile(&rows), missing(&rows)).await.unwrap();
    assert_eq!((again.inserted.len(), again.reconciled), (0, 1), "who stores nothing has nothing to tell");
    let untold = Reconcile { is_told: false, ..group.reconcile(&rows) };
    let insert = |_, _: &Around| vec![row(1, 9_000)];
    let untold = group.reconciled(untold, insert).await.unwrap();
    assert_eq!((untold.inserted.len(), untold.reconciled), (1, 1));
    assert_eq!(group.database.one::<i64>("SELECT reconciled FROM metrics_leader").await, 1);
    let over = Reconcile {
        right: Right { fence: Some(Fence { token: Uuid::new_v4(), ..group.fence }), ..group.right(group.other, 1) },
        ..group.reconcile(&rows)
    };
    let over = group.reconciled(over, |_, _| panic!("nothing to judge: the term is over")).await;
    assert!(over.is_none());
    group.end().await;
}

#[tokio::test]
async fn a_reconcile_waits_for_an_append_and_sees_it() {
    let group = Group::new().await;
    group.make_series(1..2).await;
    group.database.run(SLOW).await;
    let blocker = group.database.session().await;
    blocker.batch_execute(HOLD).await.unwrap();
    let rows = [row(1, 5_300)];
    let append = group.append([row(1, 5_000)], group.right(group.leader, 0));
    let reconcile = async {
        group.database.wait(&waiting(1)).await;
        group.reconciled(group.reconcile(&rows), missing(&rows)).await.unwrap()
    };
    let release = async {
        group.database.wait(&waiting(2)).await;
        blocker.batch_execute(RELEASE).await.unwrap();
    };
    let all = join(append, join(reconcile, release));
    let (appended, (reconciled, ())) = tokio::time::timeout(SOON, all).await.expect("all end");
    assert_eq!((appended, reconciled.inserted.len()), (Stored::Committed, 0));
    assert_eq!(reconciled.around.times[&1], stored(&[(5_000, Some(group.leader))]));
    assert_eq!(group.times(1).await, [5_000]);
    group.end().await;
}

#[tokio::test]
async fn an_append_waits_for_a_reconcile_and_is_overtaken() {
    let group = Group::new().await;
    group.make_series(1..3).await;
    group.database.run(SLOW).await;
    let blocker = group.database.session().await;
    blocker.batch_execute(HOLD).await.unwrap();
    let rows = [row(1, 5_300)];
    let reconcile = async { group.reconciled(group.reconcile(&rows), missing(&rows)).await.unwrap() };
    let append = async {
        group.database.wait(&waiting(1)).await;
        group.append([row(1, 5_000), row(2, 5_000)], group.right(group.leader, 0)).await
    };
    let release = async {
        group.database.wait(&waiting(2)).await;
        blocker.batch_execute(RELEASE).await.unwrap();
    };
    let (reconciled, (appended, ())) =
        tokio::time::timeout(SOON, join(reconcile, join(append, release))).await.expect("all end");
    assert_eq!((appended, reconciled.inserted.len(), reconciled.reconciled), (Stored::Overtaken, 1, 1));
    assert_eq!((group.times(1).await, group.times(2).await), (vec![5_300], vec![]), "nothing of it is stored");
    // On the same connection, once the counter is known.
    assert_eq!(group.append([row(2, 5_000)], group.right(group.leader, 1)).await, Stored::Committed);
    assert_eq!(group.append([row(2, 6_000)], group.right(group.leader, 0)).await, Stored::Overtaken);
    assert_eq!(group.append([row(2, 6_000)], group.right(group.leader, 1)).await, Stored::Committed);
    assert_eq!(group.times(2).await, [5_000, 6_000]);
    group.end().await;
}

#[tokio::test]
async fn groups_compared_at_once_do_not_wait_for_each_other() {
    const GROUPS: i64 = 20;
    let group = Group::new().await;
    group.make_series(1..GROUPS + 2).await;
    let make = format!(
        "INSERT INTO metrics_leader (group_name, term, token) SELECT 'g' || n, 1, gen_random_uuid() FROM generate_series(1, {GROUPS}) n"
    );
    group.database.run(&make).await;
    let token = "SELECT token FROM metrics_leader WHERE group_name LIKE 'g%' ORDER BY group_no";
    let tokens: Vec<Uuid> = group.database.column(token).await;
    let first: i32 = group.database.one("SELECT min(group_no) FROM metrics_leader WHERE group_name LIKE 'g%'").await;
    let rows: Vec<[Row; 2]> = (1..=GROUPS).map(|id| [row(id, 5_300), row(id, 9_000)]).collect();
    let parts: Vec<Reconcile<'_>> = (first..)
        .zip(&tokens)
        .zip(&rows)
        .map(|((group_no, token), rows)| {
            // The term of the last group is over.
            let token = if group_no == first + 19 { Uuid::new_v4() } else { *token };
            let right = Right { fence: Some(Fence { group_no, term: 1, token }), ..group.right(group.other, 0) };
            Reconcile { right, ..group.reconcile(rows) }
        })
        .collect();
    // Of one series a sample is stored already. One group is being written to.
    group.append([row(2, 5_000)], group.right(group.leader, 0)).await;
    let writer = group.database.session().await;
    let write =
        format!("BEGIN; SELECT pg_advisory_xact_lock_shared('metrics_leader'::regclass::oid::integer, {})", first + 4);
    writer.batch_execute(&write).await.unwrap();
    let judge = |place: usize, around: &Around| {
        let is_near = |row: &Row, time_ms: i64| (row.time_ms - time_ms).abs() <= 500;
        let times = |id| around.times.get(&id).into_iter().flatten();
        let is_missing = |row: &&Row| !times(row.series_id).any(|stored| is_near(row, stored.time_ms));
        rows[place].iter().filter(is_missing).cloned().collect()
    };
    let done = tokio::time::timeout(SOON, group.store.reconcile(&parts, judge)).await.expect("it ends").unwrap();
    let inserted: Vec<Option<usize>> = done.iter().map(|done| done.as_ref().map(|done| done.inserted.len())).collect();
    let mut expected = [Some(2); GROUPS as usize];
    (expected[1], expected[4], expected[19]) = (Some(1), None, None);
    assert_eq!(inserted, expected);
    assert!(done.iter().flatten().all(|done| done.reconciled == 1), "the leader of each is told");
    let transactions = "SELECT count(DISTINCT xid) FROM metrics_hot WHERE sender > 0 AND \"time\" <> to_timestamp(5)";
    assert_eq!(group.database.one::<i64>(transactions).await, 1);
    let told = "SELECT array_agg(reconciled ORDER BY group_no) FROM metrics_leader WHERE group_name LIKE 'g%'";
    let mut counters = vec![1_i64; GROUPS as usize];
    (counters[4], counters[19]) = (0, 0);
    assert_eq!(group.database.one::<Vec<i64>>(told).await, counters);
    writer.batch_execute("COMMIT").await.unwrap();
    let busy = group.reconciled(parts[4].clone(), |_, around| judge(4, around)).await.expect("nobody writes now");
    assert_eq!(busy.inserted.len(), 2);
    group.end().await;
}

#[tokio::test]
async fn requests_that_share_a_transaction_end_on_their_own() {
    let group = Group::new().await;
    group.make_series(1..9).await;
    let second = Uuid::new_v4();
    group
        .database
        .run(&format!(
            "INSERT INTO metrics_leader (group_name, term, token, reconciled) VALUES ('second', 1, '{second}', 3)"
        ))
        .await;
    let group_no = group.database.one("SELECT group_no FROM metrics_leader WHERE group_name = 'second'").await;
    let of_second = |reconciled| {
        let fence = Fence { group_no, term: 1, token: second };
        Right { sender: SenderNo::UNKNOWN, fence: Some(fence), reconciled, observed: None, epoch: group.store.epoch() }
    };
    let over = Fence { token: Uuid::new_v4(), ..group.fence };
    let rights = [
        (group.right(group.leader, 0), Stored::Committed),
        (of_second(3), Stored::Committed),
        (of_second(2), Stored::Overtaken),
        (Right { fence: Some(over), ..group.right(group.leader, 0) }, Stored::Fenced),
        (
            Right { sender: group.other, fence: None, reconciled: 0, observed: None, epoch: group.store.epoch() },
            Stored::Committed,
        ),
        (group.right(group.other, 1), Stored::Overtaken),
    ];
    // The only writer is busy while these requests queue.
    group.database.run(SLOW).await;
    let blocker = group.database.session().await;
    blocker.batch_execute(HOLD).await.unwrap();
    let busy = group.append([row(8, 1_000)], group.right(group.leader, 0));
    let append = async |id: usize, right| group.append([row(i64::try_from(id).unwrap(), 1_000)], right).await;
    let queue = async {
        group.database.wait(&waiting(1)).await;
        let mut appends =
            Box::pin(join_all(rights.iter().enumerate().map(|(at, (right, _))| append(at + 1, right.clone()))));
        // Sends all requests; none can be answered yet.
        assert!(futures_util::poll!(&mut appends).is_pending());
        blocker.batch_execute(RELEASE).await.unwrap();
        appends.await
    };
    let (_, ended) = tokio::time::timeout(SOON, join(busy, queue)).await.expect("all end");
    assert_eq!(ended, rights.map(|(_, expected)| expected));
    assert_eq!(group.database.one::<i64>("SELECT count(DISTINCT xid) FROM metrics_hot").await, 2, "in one transaction");
    let senders = "SELECT sender FROM metrics_hot WHERE series[1] < 8 ORDER BY series[1]";
    assert_eq!(group.database.column::<i32>(senders).await, [group.leader.0, 0, group.other.0]);
    group.end().await;
}

#[tokio::test]
async fn samples_stored_by_another_adapter_are_not_appended() {
    let mut group = Group::new().await;
    group.make_series(1..4).await;
    let (another, writers) = open(&group.database, None, false).await;
    writers.into_iter().for_each(|writer| drop(group.writers.spawn(writer.run(group.stop.clone()))));
    let append_there = async |rows: Vec<Row>, right| another.commit(Uuid::new_v4(), rows, right).await.unwrap();
    let observe = async || group.database.one::<String>("SELECT pg_current_snapshot()::text").await;
    let shared = |from: &str| Right { observed: Some(Arc::new(from.parse().unwrap())), ..group.right(group.leader, 0) };
    let begin = observe().await;
    // Of the same scrape, by both.
    assert_eq!(group.append([row(3, 1_000)], shared(&begin)).await, Stored::Committed);
    for first in [vec![row(1, 1_000), row(1, 2_000), row(2, 1_000)], vec![row(1, 3_000), row(2, 2_000)]] {
        assert_eq!(append_there(first, shared(&begin)).await, Stored::Committed);
    }
    for again in [row(1, 1_000), row(2, 2_000)] {
        // Own transactions are before and after the other adapter's.
        assert_eq!(group.append([row(3, 2_000)], shared(&begin)).await, Stored::Committed, "an adapter knows its own");
        assert_eq!(group.append([row(1, 4_000), again], shared(&begin)).await, Stored::Overtaken);
    }
    assert_eq!(group.times(1).await, [1_000, 2_000, 3_000]);
    let other = Right { sender: group.other, ..shared(&begin) };
    assert_eq!(group.append([row(1, 1_000)], other).await, Stored::Committed, "what others send is compared before");
    // While a transaction that has already written for a long time is in progress.
    let long = group.database.session().await;
    long.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let with_long = observe().await;
    assert_eq!(append_there(vec![row(1, 4_000)], shared(&with_long)).await, Stored::Committed);
    assert_eq!(group.append([row(1, 5_000), row(1, 4_000)], shared(&with_long)).await, Stored::Overtaken);
    let after = observe().await;
    assert_eq!(append_there(vec![row(1, 5_000)], shared(&after)).await, Stored::Committed);
    let observed = observe().await;
    assert_eq!(
        group.append([row(1, 5_000)], shared(&observed)).await,
        Stored::Committed,
        "whoever observed it compares"
    );
    // The sample may be sealed by now.
    let seal = async |to: &str| group.database.run(&format!("UPDATE metrics_sealed_to SET snapshot = '{to}'")).await;
    seal(&after).await;
    for observed in [&begin, &with_long] {
        assert_eq!(group.append([row(1, 6_000)], shared(observed)).await, Stored::Overtaken, "{observed}");
    }
    let young = [row(1, now_ms())];
    assert_eq!(group.append(young, shared(&begin)).await, Stored::Committed, "too young for that");
    assert_eq!(group.append([row(1, 6_000)], shared(&after)).await, Stored::Committed);
    long.batch_execute("COMMIT").await.unwrap();
    // The same for transactions that ended since, although none has begun since.
    let xmax: u64 = observe().await.split(':').nth(1).unwrap().parse().unwrap();
    seal(&format!("{xmax}:{xmax}:")).await;
    let in_progress = format!("{}:{xmax}:{}", xmax - 1, xmax - 1);
    assert_eq!(group.append([row(1, 7_000)], shared(&in_progress)).await, Stored::Overtaken);
    assert_eq!(group.append([row(1, 7_000)], shared(&format!("{xmax}:{xmax}:"))).await, Stored::Committed);
    // A published snapshot of another server's transactions does not matter.
    seal("9000000:9000000:").await;
    assert_eq!(group.append([row(1, 8_000)], shared(&observe().await)).await, Stored::Committed);
    group.end().await;
}

#[tokio::test]
async fn requests_of_one_term_wait_for_a_long_reconcile_together() {
    let group = Group::new().await;
    group.make_series(1..9).await;
    // The only writer is busy while requests with different counters queue.
    group.database.run(SLOW).await;
    let (blocker, reconciler) = (group.database.session().await, group.database.session().await);
    blocker.batch_execute(HOLD).await.unwrap();
    let busy = group.append([row(8, 1_000)], group.right(group.leader, 0));
    let queue = async {
        group.database.wait(&waiting(1)).await;
        let appends =
            [(1, 0), (2, 1)].map(|(id, known)| group.append([row(id, 1_000)], group.right(group.leader, known)));
        let mut appends = Box::pin(join_all(appends));
        assert!(futures_util::poll!(&mut appends).is_pending());
        let exclude =
            format!("SELECT pg_advisory_xact_lock('metrics_leader'::regclass::oid::integer, {})", group.fence.group_no);
        let excluding = async {
            reconciler.batch_execute(&format!("BEGIN; {exclude}")).await.unwrap();
            group.database.wait(&waiting(1)).await;
            // Longer than requests of several groups would wait.
            reconciler.batch_execute("SELECT pg_sleep(1.2)").await.unwrap();
            reconciler.batch_execute("UPDATE metrics_leader SET reconciled = 1; COMMIT").await.unwrap();
        };
        let release = async {
            group.database.wait(&waiting(2)).await;
            blocker.batch_execute(RELEASE).await.unwrap();
        };
        join(appends, join(excluding, release)).await.0
    };
    let (_, ended) = tokio::time::timeout(SOON, join(busy, queue)).await.expect("all end");
    assert_eq!(ended, [Stored::Overtaken, Stored::Committed]);
    group.end().await;
}

/// Stores a row while `reconcile` is frozen within its transaction. Returns the result of the store.
async fn while_frozen(group: &Group, what: Reconcile<'static>, append: Right) -> Stored {
    let (frozen, is_frozen) = tokio::sync::oneshot::channel();
    let (thaw, thawed) = mpsc::channel::<()>();
    let store = Arc::clone(&group.store);
    let mut adapter = JoinSet::new();
    adapter.spawn(async move {
        let mut frozen = Some(frozen);
        let freeze = move |_, _: &Around| {
            frozen.take().unwrap().send(()).unwrap();
            thawed.recv_timeout(SOON).unwrap();
            vec![row(1, 5_300)]
        };
        store.reconcile(&[what], freeze).await
    });
    is_frozen.await.unwrap();
    let started = std::time::Instant::now();
    let appended = group.append([row(1, 5_000)], append).await;
    assert!(started.elapsed() < Duration::from_secs(4), "the leader waited for {:?}", started.elapsed());
    thaw.send(()).unwrap();
    let reconciled = adapter.join_next().await.unwrap().unwrap();
    assert!(reconciled.is_err(), "{reconciled:?}");
    assert_eq!(group.times(1).await, [5_000]);
    appended
}

static LATE: [Row; 1] = [Row { series_id: 1, time_ms: 5_300, value: Value::Float(0.5) }];

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_frozen_reconcile_holds_the_leader_up_for_a_second() {
    let group = Group::new().await;
    group.make_series(1..2).await;
    let ended = while_frozen(&group, group.reconcile(&LATE), group.right(group.leader, 0)).await;
    assert_eq!(ended, Stored::Committed);
    group.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn without_an_election_too_nobody_writes_beside_a_reconcile() {
    let group = Group::new().await;
    group.make_series(1..2).await;
    let right = Right { sender: group.other, fence: None, reconciled: 0, observed: None, epoch: group.store.epoch() };
    let what = Reconcile { right: right.clone(), ..group.reconcile(&LATE) };
    assert_eq!(while_frozen(&group, what.clone(), right).await, Stored::Committed);
    let done = group.reconciled(what, |_, _| vec![row(1, 9_000)]).await.unwrap();
    assert_eq!((done.inserted.len(), done.reconciled), (1, 0));
    group.end().await;
}

/// Uses the hypertable's layout with only its table. Needs nothing of TimescaleDB itself.
#[tokio::test]
async fn rows_of_a_hypertable_are_found_too() {
    let database = Database::new().await;
    drop(open(&database, None, false).await);
    database
        .run(
            "CREATE TABLE metrics_samples (\"time\" timestamptz NOT NULL, series_id bigint NOT NULL, value float8 NOT NULL); \
             CREATE UNIQUE INDEX ON metrics_samples (series_id, \"time\"); \
             INSERT INTO metrics_samples SELECT to_timestamp(10 * n), id, 1 FROM generate_series(1, 6) n, generate_series(1, 3) id",
        )
        .await;
    let (store, _) = open(&database, None, true).await;
    let rows = [row(1, 20_300), row(2, 39_600), row(2, 41_000)];
    let near = Near { rows: &rows, window_ms: 500, unbounded: &[2, 3] };
    let around = store.around(&[near], store.epoch()).await.unwrap();
    let times = HashMap::from([(1, stored(&[(20_000, None)])), (2, stored(&[(40_000, None)]))]);
    assert_eq!((around.times, around.last_ms), (times, HashMap::from([(2, stored(&[(60_000, None)])[0])])));
}
