//! An observer sees each committed row once, whatever transactions are under way, and knows if it has missed rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prometheus_postgresql_adapter::model::sample::Value;
use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::hot::SeriesAt;
use prometheus_postgresql_adapter::storage::ingest::{Right, Stored};
use prometheus_postgresql_adapter::storage::observe::Observed;
use prometheus_postgresql_adapter::storage::position::Position;
use prometheus_postgresql_adapter::storage::row::Row;
use prometheus_postgresql_adapter::storage::seal::outcome::Outcome;
use prometheus_postgresql_adapter::storage::{SealedRows, Store};
use rig::postgres::Postgres;
use rig::random::Random;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::setup::{Database, now_ms};
use crate::storage::{library, open};

const GROUP: &str = "a group";

/// An adapter that observes: the rows that it saw, by time and sender, and the position at which it continues.
#[derive(Default)]
struct Observer {
    position: Option<Position>,
    seen: BTreeMap<(i64, i32), usize>,
}

impl Observer {
    async fn look(&mut self, store: &Store, except: &[SenderNo]) -> Observed {
        let groups = [GROUP.to_owned()];
        let each = |row: SeriesAt| {
            assert_eq!(row.series, [1, 2]);
            *self.seen.entry((row.time_ms, row.sender.0)).or_default() += 1;
        };
        let observed = store.observe(self.position.as_ref(), Some(&groups), &[], except, each).await.unwrap();
        self.position = Some(observed.position.clone());
        observed
    }

    fn times(&self) -> Vec<i64> {
        self.seen.keys().map(|(time_ms, _)| *time_ms).collect()
    }
}

/// A statement that stores a hot row.
fn row(time_ms: i64, sender: SenderNo) -> String {
    format!(
        "INSERT INTO metrics_hot (\"time\", series, value, sender) \
         VALUES (to_timestamp({time_ms} / 1000.0), ARRAY[1, 2], ARRAY[0.5, 0.5], {})",
        sender.0
    )
}

/// Seals the rows that every adapter has observed.
async fn seal(store: &Store) -> Outcome {
    store.seal(SealedRows::Observed).await.unwrap().expect("nobody else seals")
}

async fn begin(database: &Database, time_ms: i64, sender: SenderNo) -> Client {
    let session = database.session().await;
    session.batch_execute(&format!("BEGIN; {}", row(time_ms, sender))).await.unwrap();
    session
}

#[tokio::test]
async fn what_commits_late_is_seen_once_and_what_rolls_back_never() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let sender = store.sender_no(GROUP, "a").await.unwrap();
    let mut observer = Observer::default();
    assert!(!observer.look(&store, &[]).await.is_complete, "the first look cannot tell");
    let long = begin(&database, 1_000, sender).await;
    let short = begin(&database, 2_000, sender).await;
    let back = begin(&database, 3_000, sender).await;
    database.run(&row(4_000, sender)).await;
    assert!(observer.look(&store, &[]).await.is_complete);
    assert_eq!(observer.times(), [4_000]);
    short.batch_execute("COMMIT").await.unwrap();
    back.batch_execute("ROLLBACK").await.unwrap();
    for _ in 0..3 {
        database.run(&row(5_000, sender)).await;
        assert!(observer.look(&store, &[]).await.is_complete);
    }
    assert_eq!(observer.times(), [2_000, 4_000, 5_000]);
    long.batch_execute("COMMIT").await.unwrap();
    assert!(observer.look(&store, &[]).await.is_complete);
    assert!(observer.look(&store, &[]).await.is_complete);
    let seen: Vec<_> = observer.seen.into_iter().map(|((time_ms, _), times)| (time_ms, times)).collect();
    assert_eq!(seen, [(1_000, 1), (2_000, 1), (4_000, 1), (5_000, 3)]);
}

#[tokio::test]
async fn each_row_is_seen_once_in_whatever_order_transactions_end() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let second = library(&database, None).await;
    let senders = [store.sender_no(GROUP, "a").await.unwrap(), store.sender_no(GROUP, "b").await.unwrap()];
    for seed in 1..6_u64 {
        let mut random = Random::new(seed);
        let (mut all, mut one) = (Observer::default(), Observer::default());
        all.look(&store, &[]).await;
        one.look(&second, &senders[..1]).await;
        (all.seen, one.seen) = Default::default();
        let mut sessions: Vec<(Client, Vec<(i64, i32)>)> = Vec::new();
        for _ in 0..6 {
            sessions.push((database.session().await, Vec::new()));
        }
        let (mut time_ms, mut committed) = (i64::try_from(seed).unwrap() * 1_000_000, BTreeSet::new());
        for _ in 0..150 {
            let at = random.index(sessions.len());
            let (session, pending) = &mut sessions[at];
            match random.index(10) {
                0..=4 => {
                    time_ms += 1;
                    let sender = senders[random.index(2)];
                    let begin = if pending.is_empty() { "BEGIN; " } else { "" };
                    session.batch_execute(&format!("{begin}{}", row(time_ms, sender))).await.unwrap();
                    pending.push((time_ms, sender.0));
                }
                5..=6 => {
                    session.batch_execute("COMMIT").await.unwrap();
                    committed.extend(pending.drain(..));
                }
                7 => {
                    session.batch_execute("ROLLBACK").await.unwrap();
                    pending.clear();
                }
                _ => {
                    let observed = all.look(&store, &[]).await;
                    assert!(observed.is_complete);
                    assert_eq!(all.seen.keys().copied().collect::<BTreeSet<_>>(), committed);
                    if random.index(3) == 0 {
                        assert!(one.look(&second, &senders[..1]).await.is_complete);
                        if random.index(2) == 0 {
                            seal(&store).await;
                        }
                    }
                }
            }
        }
        all.look(&store, &[]).await;
        one.look(&second, &senders[..1]).await;
        let of_one: BTreeSet<_> = all.seen.keys().filter(|(_, sender)| *sender == senders[1].0).copied().collect();
        assert_eq!(one.seen.keys().copied().collect::<BTreeSet<_>>(), of_one);
        assert!(all.seen.values().chain(one.seen.values()).all(|times| *times == 1), "{:?}", all.seen);
        drop(sessions);
        database.wait("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL").await;
    }
}

#[tokio::test]
async fn an_adapter_does_not_read_back_what_it_stored() {
    let database = Database::new().await;
    let (store, writers) = open(&database, None, false).await;
    let second = library(&database, None).await;
    let _writers: JoinSet<()> = writers.into_iter().map(|writer| writer.run(CancellationToken::new())).collect();
    let sender = store.sender_no(GROUP, "a").await.unwrap();
    let (mut own, mut other) = (Observer::default(), Observer::default());
    let observed = Some(Arc::new(own.look(&store, &[]).await.position));
    other.look(&second, &[]).await;
    let commit = async |time_ms: i64| {
        let right = Right { sender, fence: None, reconciled: 0, observed: observed.clone(), epoch: store.epoch() };
        let rows: Vec<Row> = [1, 2].map(|series_id| Row { series_id, time_ms, value: Value::Float(0.5) }).into();
        assert_eq!(store.commit(Uuid::new_v4(), rows, right).await.unwrap(), Stored::Committed);
    };
    commit(1_000).await;
    database.run(&row(2_000, sender)).await;
    other.look(&second, &[]).await;
    database.run("UPDATE metrics_hot SET series = ARRAY[7] WHERE \"time\" = to_timestamp(1)").await;
    own.look(&store, &[]).await;
    commit(3_000).await;
    for (observer, store) in [(&mut own, &store), (&mut other, &second)] {
        observer.look(store, &[]).await;
        assert!(observer.look(store, &[]).await.is_complete);
        let seen: Vec<_> = observer.seen.iter().map(|((time_ms, _), times)| (*time_ms, *times)).collect();
        assert_eq!(seen, [(1_000, 1), (2_000, 1), (3_000, 1)]);
    }
}

#[tokio::test]
async fn rows_stay_hot_until_every_living_adapter_has_observed_them() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let second = library(&database, None).await;
    let sender = store.sender_no(GROUP, "a").await.unwrap();
    let (mut observer, mut late) = (Observer::default(), Observer::default());
    // A long transaction of another user, even in another database, does not matter.
    let elsewhere = Postgres::shared().await.connect("postgres").await;
    elsewhere.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    late.look(&second, &[]).await;
    observer.look(&store, &[]).await;
    database.run(&row(1_000, sender)).await;
    assert!(observer.look(&store, &[]).await.is_complete);
    assert_eq!(seal(&store).await.samples, 0, "one adapter has yet to see it");
    database.run(&row(2_000, sender)).await;
    // The one that is late was frozen.
    let lapsed = "UPDATE metrics_observers SET observed_at = observed_at - interval '11 s' \
                  WHERE observed_at = (SELECT min(observed_at) FROM metrics_observers)";
    database.run(lapsed).await;
    assert_eq!(seal(&store).await.samples, 2, "the row that is not seen stays hot");
    assert!(observer.look(&store, &[]).await.is_complete);
    assert_eq!(observer.times(), [1_000, 2_000]);
    assert!(!late.look(&second, &[]).await.is_complete, "a row is gone that it had not seen");
    assert_eq!(late.times(), [2_000]);
    // Sealing with an earlier position does not take the published position back.
    let before = late.position.clone().unwrap();
    database.run(&row(3_000, sender)).await;
    database.run("UPDATE metrics_observers SET observed_at = '-infinity'").await;
    store.seal(SealedRows::All).await.unwrap().expect("nobody else seals");
    database.run(&format!("UPDATE metrics_observers SET position = '{before}', observed_at = now()")).await;
    seal(&store).await;
    assert!(!late.look(&second, &[]).await.is_complete);
    assert!(late.look(&second, &[]).await.is_complete);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
}

#[tokio::test]
async fn a_request_to_seal_all_waits_until_all_is_observed() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let second = library(&database, None).await;
    let sender = store.sender_no(GROUP, "a").await.unwrap();
    let mut observer = Observer::default();
    observer.look(&second, &[]).await;
    database.run(&row(1_000, sender)).await;
    let observed = async {
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                     AND state = 'idle' AND query LIKE '%FROM \"public\".\"metrics_observers\"%' AND pid <> pg_backend_pid())";
        database.wait(waits).await;
        assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 1);
        assert!(observer.look(&second, &[]).await.is_complete);
    };
    let (sealed, ()) = tokio::join!(store.seal(SealedRows::All), observed);
    assert_eq!(sealed.unwrap().expect("nobody else seals").samples, 2);
    assert!(observer.look(&second, &[]).await.is_complete);
    assert_eq!(observer.times(), [1_000]);
}

#[tokio::test]
async fn another_servers_rows_are_sealed_and_its_positions_are_none() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let sender = store.sender_no(GROUP, "a").await.unwrap();
    let mut observer = Observer::default();
    observer.look(&store, &[]).await;
    // As if restored from a dump of a server with higher transaction ids.
    let restored = format!(
        "INSERT INTO metrics_hot (\"time\", series, value, sender, xid) VALUES (now(), ARRAY[1, 2], ARRAY[1, 1], {}, '9000000000')",
        sender.0
    );
    database.run(&restored).await;
    database.run("UPDATE metrics_sealed_to SET snapshot = '9000000000:9000000000:'").await;
    assert!(observer.look(&store, &[]).await.is_complete);
    assert!(observer.seen.is_empty());
    assert_eq!(seal(&store).await.samples, 2);
    let sealed_to: String = database.one("SELECT snapshot::text FROM metrics_sealed_to").await;
    assert_eq!(sealed_to.parse().ok(), observer.position);
    observer.position = Some("9000000000:9000000000:".parse().unwrap());
    assert!(!observer.look(&store, &[]).await.is_complete);
    assert!(observer.look(&store, &[]).await.is_complete);
}

#[tokio::test]
async fn groups_senders_and_clocks_are_told() {
    let database = Database::new().await;
    let store = library(&database, None).await;
    let [first, second] = ["a", "b"].map(|name| store.sender_no(GROUP, name));
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let other = library(&database, None).await;
    assert_eq!(other.sender_no(GROUP, "b").await.unwrap(), second, "whoever asks");
    assert_eq!(store.sender_no(GROUP, "b").await.unwrap(), second, "and again");
    let stranger = store.sender_no("another group", "b").await.unwrap();
    assert!(![first, second].contains(&stranger));
    store.set_clock_offset(second, -1_500, store.epoch()).await.unwrap();
    let observed = Observer::default().look(&store, &[]).await;
    assert_eq!(observed.groups, []);
    let senders = |observed: &Observed| {
        let mut senders: Vec<_> = observed
            .senders
            .iter()
            .map(|state| (state.sender, state.group_name.clone(), state.clock_offset_ms))
            .collect();
        senders.sort_unstable();
        senders
    };
    assert_eq!(
        senders(&observed),
        [(first, GROUP.to_owned(), 0), (second, GROUP.to_owned(), -1_500)],
        "of a group without an election"
    );
    let lead = format!(
        "INSERT INTO metrics_leader (group_name, term, token, reconciled, sender_no) \
         VALUES ('another', 1, gen_random_uuid(), 1, NULL), ('{GROUP}', 7, gen_random_uuid(), 5, {})",
        second.0
    );
    database.run(&lead).await;
    database.run("INSERT INTO metrics_series (key, name, labels) VALUES (gen_random_uuid(), 'up', '{}')").await;
    let observed = Observer::default().look(&store, &[]).await;
    let [group] = observed.groups.as_slice() else { panic!("{:?}", observed.groups) };
    assert_eq!((group.group_name.as_str(), group.term, group.reconciled, group.sender_no), (GROUP, 7, 5, Some(second)));
    assert_eq!(group.group_no, database.one::<i32>("SELECT group_no FROM metrics_leader WHERE term = 7").await);
    assert!(group.token.is_some());
    assert_eq!(senders(&observed), [(first, GROUP.to_owned(), 0), (second, GROUP.to_owned(), -1_500)]);
    assert_eq!(observed.newest_series_no, database.one::<i64>("SELECT id FROM metrics_series").await);
    let uncertain_ms = observed.round_trip_ms / 2 + 2;
    assert!(observed.clock_offset_ms.abs() <= uncertain_ms, "{observed:?}: one host has one clock");
    let asked = database.one::<i64>("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
    assert!((asked - now_ms()).abs() < 60_000);
}
