//! A store of an earlier version is migrated and keeps its content.

use prometheus_postgresql_adapter::storage::SealedRows;
use prometheus_postgresql_adapter::storage::layout::UseTimescaledb;
use prometheus_postgresql_adapter::storage::names::Names;
use prometheus_postgresql_adapter::storage::schema::{self, VERSION};

use crate::seal::CONTENT;
use crate::setup::Database;
use crate::storage::library;

#[tokio::test]
async fn a_store_of_version_1_goes_on_with_its_rows() {
    let database = Database::new().await;
    let names = Names::new("public", "metrics");
    schema::migrate(&database.client, &names, UseTimescaledb::Never, true, 1).await.unwrap();
    assert_eq!(database.one::<i32>("SELECT metrics_version()").await, 1);
    let fill = "INSERT INTO metrics_series (key, name, labels) SELECT gen_random_uuid(), 'up', jsonb_build_object('n', n::text) \
                FROM generate_series(1, 249) n; \
                INSERT INTO metrics_hot (\"time\", series, value) SELECT date_trunc('second', now()) - n * interval '1 s', \
                (SELECT array_agg(id ORDER BY id) FROM metrics_series), (SELECT array_agg(id + 0.5 ORDER BY id) FROM metrics_series) \
                FROM generate_series(1, 20) n; \
                INSERT INTO metrics_leader (group_name, term, token) VALUES ('advisory lock 1', 5, gen_random_uuid())";
    database.run(fill).await;
    let content: String = database.one(CONTENT).await;
    let pages = "SELECT pg_relation_filenode('metrics_hot')::bigint * 1000 + pg_relation_size('metrics_hot') / 8192";
    let before: i64 = database.one(pages).await;
    let store = library(&database, None).await;
    assert_eq!(database.one::<i32>("SELECT metrics_version()").await, VERSION);
    assert_eq!(database.one::<String>(CONTENT).await, content);
    assert_eq!(database.one::<i64>(pages).await, before, "the rows are not written again");
    assert!(database.one::<bool>("SELECT bool_and(reconciled = 0 AND term = 5) FROM metrics_leader").await);
    assert!(database.one::<bool>("SELECT bool_and(sender = 0) FROM metrics_hot").await, "nobody knows who sent them");
    store.observe(None, Some(&[]), &[], &[], |_| ()).await.unwrap();
    let sealed = store.seal(SealedRows::Observed).await.unwrap().expect("nobody else seals");
    assert_eq!(sealed.samples, 20 * 249);
    assert_eq!(database.one::<String>(CONTENT).await, content);
    // Another start has nothing to migrate.
    drop(library(&database, None).await);
    assert_eq!(database.one::<String>(CONTENT).await, content);
}

#[tokio::test]
async fn a_store_of_version_2_goes_on_from_what_was_sealed() {
    let database = Database::new().await;
    let names = Names::new("public", "metrics");
    schema::migrate(&database.client, &names, UseTimescaledb::Never, false, 2).await.unwrap();
    database.run("UPDATE metrics_sealed_to SET snapshot = '700:710:700,705', newest = '2026-01-02 03:04:05Z'").await;
    database.run("SELECT metrics_sender('lock 1', 'one'), metrics_sender('', '')").await;
    drop(library(&database, None).await);
    assert_eq!(database.one::<i32>("SELECT metrics_version()").await, VERSION);
    let sealed_to = "SELECT snapshot::text || ' ' || extract(epoch FROM newest)::integer FROM metrics_sealed_to";
    assert_eq!(database.one::<String>(sealed_to).await, "700:710:700,705 1767323045");
    assert!(database.one::<bool>("SELECT metrics_sender('', '') = 2 AND metrics_sender('lock 1', 'two') = 3").await);
    // An adapter of version 2 that is still running writes the same.
    assert_eq!(database.client.execute("UPDATE metrics_sealed_to SET newest = now()", &[]).await.unwrap(), 1);
}
