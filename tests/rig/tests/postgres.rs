//! Behaviour of the private server: start, restart, freeze, removal.

use std::time::Duration;

use rig::postgres::{Options, Postgres, Stop};

#[tokio::test]
async fn starts_restarts_freezes_and_vanishes() {
    let mut postgres = Postgres::start(Options::default()).await;
    let database = postgres.create_database().await;
    let client = postgres.connect(&database).await;
    client.batch_execute("CREATE TABLE t AS SELECT 1 AS x").await.expect("cannot create a table");
    for how in [Stop::Immediate, Stop::Fast] {
        postgres.restart(how).await;
        let client = postgres.connect(&database).await;
        let row = client.query_one("SELECT x FROM t", &[]).await.expect("the table is gone");
        assert_eq!(row.get::<_, i32>(0), 1);
    }
    let client = postgres.connect(&database).await;
    postgres.pause();
    let frozen = tokio::time::timeout(Duration::from_millis(100), client.query_one("SELECT 1", &[])).await;
    assert!(frozen.is_err(), "a frozen server answered");
    postgres.resume();
    client.query_one("SELECT 1", &[]).await.expect("the server did not come back");
    let (directory, pid) = (postgres.socket_directory().to_owned(), postgres.pid());
    postgres.pause();
    drop(postgres);
    assert!(!directory.exists(), "the directory outlived its owner");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the server outlived its owner");
}
