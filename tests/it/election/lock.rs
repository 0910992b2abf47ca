//! Requirements of an advisory lock: a dedicated session on the primary that no foreign setting ends.

use std::path::Path;
use std::process::Command;

use rig::guard::Directory;
use rig::port;
use rig::postgres::{self, Postgres, Stop};
use rig::process::Process;

use super::{HOLDER, Member, candidate, check_stored, own_server, wait_settled, wait_true};
use crate::setup::{Body, Database, SOON, now_ms, skipped};

/// pgbouncer in transaction mode in front of `server`, with so few connections that its clients must share them. `None`
/// if pgbouncer is not installed.
pub(super) async fn pooler(server: &Postgres) -> Option<(Process, Directory, u16)> {
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists())?;
    let (directory, port) = (Directory::new("pgbouncer"), port::free());
    let settings = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 8\n\
         ignore_startup_parameters = extra_float_digits\n",
        server.port()
    );
    let file = directory.path().join("pgbouncer.ini");
    std::fs::write(&file, settings).expect("cannot write the pooler's settings");
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.args(["-u", "postgres"]);
    }
    command.arg(&file);
    let process = Process::spawn("pgbouncer", command);
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
    process.wait_until("it listens", SOON, listens).await;
    Some((process, directory, port))
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_no_place_for_a_lock() {
    let db = Database::new().await;
    let Some((_pooler, _directory, port)) = pooler(db.server).await else {
        skipped("no pgbouncer: run make install-deps");
        return;
    };
    let pooled = format!("postgres://postgres@127.0.0.1:{port}/{}", db.name);
    let member = Member::start(&candidate(&pooled, "adapter"), "a").await;
    let process = member.adapter.process();
    let line = process.wait_for_log("self-test of the advisory lock failed", SOON).await;
    assert!(line.contains("-pg-lock-uri"), "{line}");
    member.wait("unknown").await;
    assert!(db.column::<i32>(HOLDER).await.is_empty());
}

#[tokio::test]
async fn writes_may_go_through_a_pooler_where_the_lock_does_not() {
    let db = Database::new().await;
    let Some((_pooler, _directory, port)) = pooler(db.server).await else {
        skipped("no pgbouncer: run make install-deps");
        return;
    };
    let pooled = format!("postgres://postgres@127.0.0.1:{port}/{}", db.name);
    let lock_uri = format!("-pg-lock-uri={}", db.server.uri(&db.name));
    let (a, b) = super::pair(&pooled, &[&lock_uri]).await;
    let (seen, since) = (b.log_len(), std::time::Instant::now());
    wait_stored(&db, "a").await;
    a.adapter.process().kill9().await;
    super::report("take-over after kill -9, writes by pgbouncer", b.leads_after(seen, since).await);
    wait_stored(&db, "b").await;
    b.takes().await;
    b.sender.pause();
    for (member, series) in [(&a, "a"), (&b, "b")] {
        check_stored(&db.client, member, series).await;
    }
}

/// Waits until ten samples of a sender are stored.
async fn wait_stored(db: &Database, series: &str) {
    wait_true(&db.client, &format!("SELECT count(*) >= 10 FROM metrics WHERE name = 'from_{series}'")).await;
}

#[tokio::test]
async fn a_hot_standby_is_no_place_for_a_lock() {
    let db = Database::new().await;
    // A server that never leaves recovery, like a replica.
    let mut replica = Postgres::start(postgres::Options::default()).await;
    replica.stop(Stop::Fast).await;
    std::fs::write(replica.data_directory().join("standby.signal"), "").expect("cannot make a replica");
    replica.start_again().await;
    let options =
        candidate(&db.server.uri(&db.name), "adapter").arg(format!("-pg-lock-uri={}", replica.uri("postgres")));
    let member = Member::start(&options, "a").await;
    let line = member.adapter.process().wait_for_log("no lock session", SOON).await;
    assert!(line.contains("hot standby") && line.contains("-pg-lock-uri"), "{line}");
    assert_eq!(member.adapter.role().await.as_deref(), Some("unknown"));
}

#[tokio::test]
async fn what_a_role_is_set_to_does_not_end_the_session() {
    let (server, client) = own_server(postgres::Options::default()).await;
    client
        .batch_execute(
            "CREATE ROLE adapter LOGIN; GRANT CREATE ON SCHEMA public TO adapter; \
             ALTER ROLE adapter SET statement_timeout = '250ms'; ALTER ROLE adapter SET lock_timeout = '100ms'; \
             ALTER ROLE adapter SET idle_session_timeout = '300ms'; \
             ALTER ROLE adapter SET idle_in_transaction_session_timeout = '100ms'; \
             ALTER ROLE adapter SET default_transaction_isolation = 'serializable'",
        )
        .await
        .expect("a role can be made");
    let uri = server.uri_as("adapter", "postgres");
    let a = Member::start(&candidate(&uri, "adapter a"), "a").await;
    a.wait("leader").await;
    let b = Member::start(&candidate(&uri, "adapter b"), "b").await;
    b.wait("standby").await;
    a.takes().await;
    wait_true(&client, "SELECT count(*) >= 30 FROM metrics WHERE name = 'from_a'").await;
    wait_settled(&a, &b).await;
    let term: i64 = crate::setup::one(&client, "SELECT term FROM metrics_leader").await;
    assert_eq!(term, 1, "the lead changed hands");
    assert!(!b.adapter.process().log().contains("closing the lock session"));
    check_stored(&client, &a, "a").await;
}

#[tokio::test]
async fn where_no_connection_is_left_the_leader_leads_on_and_says_so() {
    let db = Database::new().await;
    let role = format!("limited_{}", db.name);
    db.run(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}")).await;
    let uri = db.server.uri_as(&role, &db.name);
    let a = Member::start(&candidate(&uri, "adapter a"), "a").await;
    a.wait("leader").await;
    a.takes().await;
    let lock: Vec<i32> = db.column(HOLDER).await;
    // No further connections are allowed, so only the lock session is left after this.
    db.run(&format!("ALTER ROLE {role} CONNECTION LIMIT 1")).await;
    let others = format!("FROM pg_stat_activity WHERE usename = '{role}' AND pid <> {}", lock[0]);
    db.run(&format!("SELECT pg_terminate_backend(pid) {others}")).await;
    let refused = r#"msg="write requests are answered 503" err="too many connections"#;
    let line = a.adapter.process().wait_for_log(refused, SOON).await;
    assert!(line.contains("WARN") && line.contains("53300"), "{line}");
    // The first request may still find that a connection of the pool was ended.
    let refused = async || {
        let answer = a.adapter.write(Body::new().sample("refused", now_ms(), 1.0).compressed()).await;
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.text());
        answer.text().contains("too many connections").then_some(())
    };
    a.adapter.process().wait_until("the answer says why", SOON, refused).await;
    let b = Member::start(&candidate(&uri, "adapter b"), "b").await;
    let line = b.adapter.process().wait_for_log("the store cannot be opened", SOON).await;
    assert!(line.contains("53300"), "{line}");
    assert_eq!(b.adapter.role().await.as_deref(), Some("unknown"));
    assert_eq!(a.adapter.role().await.as_deref(), Some("leader"));
    db.run(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;
    let (stored, since) = (a.sender.acknowledged().all, db.one::<i64>("SELECT count(*) FROM metrics").await);
    b.wait("standby").await;
    wait_true(&db.client, &format!("SELECT count(*) > {since} FROM metrics")).await;
    let more = async || (a.sender.acknowledged().all > stored).then_some(());
    a.adapter.process().wait_until("it stores again", SOON, more).await;
    assert_eq!(db.column::<i32>(HOLDER).await, lock, "the lock session was lost");
    assert_eq!(db.one::<i64>("SELECT term FROM metrics_leader").await, 1);
    check_stored(&db.client, &a, "a").await;
}

#[tokio::test]
async fn a_promoted_replica_is_found_by_the_uri_that_names_both() {
    let (mut primary, client) = own_server(postgres::Options::default()).await;
    let replica = primary.follow().await;
    // Acknowledged samples are on both servers, so that none is lost with the primary.
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.expect("a superuser's setting");
    client.batch_execute("SELECT pg_reload_conf()").await.expect("a superuser may");
    wait_true(&client, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')").await;
    let uri = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        replica.port()
    );
    let (a, b) = super::pair(&uri, &[]).await;
    primary.stop(Stop::Immediate).await;
    a.wait("unknown").await;
    let client = replica.connect("postgres").await;
    client.batch_execute("SELECT pg_promote()").await.expect("a replica can be promoted");
    wait_settled(&a, &b).await;
    wait_true(
        &client,
        "SELECT count(*) > 0 FROM metrics WHERE time > (SELECT heartbeat - interval '1 s' FROM metrics_leader)",
    )
    .await;
    // The old primary returns as a replica: it is the first of the two, and is skipped.
    std::fs::write(primary.data_directory().join("standby.signal"), "").expect("cannot make a replica");
    primary.start_again().await;
    let c = Member::start(&candidate(&uri, "adapter c"), "c").await;
    c.wait("standby").await;
    wait_settled(&a, &b).await;
    check_stored(&client, &a, "a").await;
}

#[tokio::test]
async fn a_candidate_that_was_never_sent_to_does_not_take_the_lock() {
    let db = Database::new().await;
    let adapter = candidate(&db.server.uri(&db.name), "adapter").start().await;
    adapter.wait_role("resigned", SOON).await;
    assert!(db.column::<i32>(HOLDER).await.is_empty());
    // The first request makes the adapter the leader.
    let answer = adapter.write(Body::new().sample("first", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(db.column::<i32>(HOLDER).await.len(), 1);
    assert_eq!(db.samples().await, 1);
}

#[tokio::test]
async fn lock_id_0_is_no_election() {
    let db = Database::new().await;
    let adapter = db.adapter().arg("-leader-election-pg-advisory-lock-id=0").start().await;
    adapter.wait_role("leader", SOON).await;
    let answer = adapter.write(Body::new().sample("first", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert!(db.column::<i32>(HOLDER).await.is_empty());
    assert_eq!(db.one::<i64>("SELECT count(*) FROM metrics_leader").await, 0);
}
