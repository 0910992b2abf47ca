//! The orders resign, hand over and hold: by hand, in any election.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use hyper::Method;
use rig::adapter::Adapter;
use rig::http::{Client, Response};
use std::process::Command;

use super::rest::put;
use super::{Member, candidate, check_stored, pair, report, role_unknown, wait_true};
use crate::setup::{BINARY, Body, Database, SOON, adapter_at, now_ms, skipped};

/// Gives an order and returns the response.
pub(crate) async fn order(adapter: &Adapter, method: Method, verb: &str) -> Response {
    let url = adapter.url(&format!("/admin/election/{verb}"));
    let answer = adapter.client().request(method, &url, &[], Vec::new().into()).await;
    answer.unwrap_or_else(|error| adapter.process().fail(&error.to_string()))
}

/// Gives an order and checks that the adapter carries it out.
pub(crate) async fn obeys(adapter: &Adapter, verb: &str) {
    let answer = order(adapter, Method::POST, verb).await;
    assert_eq!(answer.status, 200, "{verb}: {}", answer.text());
}

async fn name(adapter: &Adapter) -> String {
    let status: serde_json::Value = serde_json::from_str(&adapter.status().await.unwrap()).unwrap();
    status["name"].as_str().unwrap().to_owned()
}

async fn terms(db: &Database) -> i64 {
    db.one("SELECT term FROM metrics_leader").await
}

#[tokio::test]
async fn a_leader_resigns_to_its_peer_and_nothing_is_lost() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[]).await;
    let (seen, since) = (b.log_len(), Instant::now());
    obeys(&a.adapter, "resign").await;
    report("resigned by hand", b.leads_after(seen, since).await);
    a.wait("standby").await;
    b.takes().await;
    let answer = order(&a.adapter, Method::POST, "resign").await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("does not lead"), "{}", answer.text());
    // And back.
    let seen = a.log_len();
    obeys(&b.adapter, "resign").await;
    a.leads_after(seen, Instant::now()).await;
    b.wait("standby").await;
    for (member, series) in [(&a, "a"), (&b, "b")] {
        member.sender.pause();
        check_stored(&db.client, member, series).await;
    }
    assert_eq!(terms(&db).await, 3);
}

#[tokio::test]
async fn one_without_a_peer_resigns_for_a_while() {
    let db = Database::new().await;
    let a = Member::start(&candidate(&db.server.uri(&db.name), "adapter").arg("-leader-election-lease=3s"), "a").await;
    a.wait("leader").await;
    a.takes().await;
    let (seen, since) = (a.log_len(), Instant::now());
    obeys(&a.adapter, "resign").await;
    assert_ne!(a.adapter.role().await.as_deref(), Some("leader"));
    let took = a.leads_after(seen, since).await;
    report("leads again for want of another", took);
    assert!(took >= Duration::from_millis(1_400), "{took:?}");
    check_stored(&db.client, &a, "a").await;
}

#[tokio::test]
async fn the_one_that_is_named_takes_the_lead() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let (a, b) = pair(&uri, &[]).await;
    // An adapter that tries much more often than the named one.
    let c = Member::start(&candidate(&uri, "adapter c").arg("-scheduled-election-interval=10ms"), "c").await;
    c.wait("standby").await;
    let names = [name(&a.adapter).await, name(&b.adapter).await, name(&c.adapter).await];
    let answer = order(&a.adapter, Method::POST, "hand-over?to=nobody%3A1").await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("called \"nobody:1\"") && answer.text().contains(&names[2]), "{}", answer.text());
    let own = format!("hand-over?to={}", names[0]);
    assert_eq!(order(&a.adapter, Method::POST, &own).await.status, 404);
    assert_eq!(order(&a.adapter, Method::POST, "hand-over").await.status, 400);
    assert_eq!(order(&c.adapter, Method::POST, &own).await.status, 409, "not the leader");
    assert_eq!(a.adapter.role().await.as_deref(), Some("leader"), "a mistake costs nothing");
    for (from, to) in [(&a, (&b, &names[1])), (&b, (&a, &names[0])), (&a, (&b, &names[1]))] {
        let (seen, since) = (to.0.log_len(), Instant::now());
        obeys(&from.adapter, &format!("hand-over?to={}", to.1)).await;
        report("handed over", to.0.leads_after(seen, since).await);
        from.wait("standby").await;
    }
    assert!(!c.adapter.process().log().contains("became leader"), "it was not named");
    assert_eq!(terms(&db).await, 4);
    b.takes().await;
    for (member, series) in [(&a, "a"), (&b, "b")] {
        member.sender.pause();
        check_stored(&db.client, member, series).await;
    }
    // A named successor that is gone keeps the others from leading for a limited time only.
    let since = Instant::now();
    db.run("UPDATE metrics_leader SET successor = 'nobody', successor_until = now() + interval '2 s'").await;
    b.adapter.process().kill9().await;
    wait_true(&db.client, "SELECT term = 5 FROM metrics_leader").await;
    assert!(since.elapsed() >= Duration::from_millis(1_900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn one_that_is_held_does_not_lead() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let (a, b) = pair(&uri, &[]).await;
    obeys(&b.adapter, "hold").await;
    assert!(b.adapter.status().await.unwrap().contains("\"held\":true"));
    assert_eq!(b.adapter.metric("held").await, Some(1.0));
    assert!(b.adapter.get("/").await.unwrap().text().contains("held out of them"));
    a.adapter.process().kill9().await;
    b.adapter.process().wait_for_log(&role_unknown("nobody_leads"), SOON).await;
    let seen = b.log_len();
    obeys(&b.adapter, "release").await;
    b.leads_after(seen, Instant::now()).await;
    b.takes().await;
    // A leader that is excluded gives up the lead.
    let c = Member::start(&candidate(&uri, "adapter c").arg("-leader-election-hold"), "c").await;
    c.wait("standby").await;
    obeys(&b.adapter, "hold").await;
    assert_ne!(b.adapter.role().await.as_deref(), Some("leader"));
    c.wait("unknown").await;
    assert_eq!(order(&c.adapter, Method::DELETE, "hold").await.status, 200);
    c.wait("leader").await;
    c.takes().await;
    b.wait("standby").await;
    for (member, series) in [(&b, "b"), (&c, "c")] {
        member.sender.pause();
        check_stored(&db.client, member, series).await;
    }
}

#[tokio::test]
async fn nobody_is_told_where_a_lock_decides_or_labels_do() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let a = Member::start(&candidate(&uri, "adapter"), "a").await;
    a.wait("leader").await;
    assert_eq!(a.adapter.get("/admin/election/leader").await.unwrap().text(), "true");
    for body in ["1", "0"] {
        let answer = put(&a.adapter, body).await;
        assert_eq!(answer.status, 409, "{}", answer.text());
    }
    let answer = order(&a.adapter, Method::POST, "hold?cluster=eu&replica=a").await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!(order(&a.adapter, Method::GET, "resign").await.status, 405);
    assert_eq!(order(&a.adapter, Method::POST, "nonsense").await.status, 404);
    assert_eq!(a.adapter.role().await.as_deref(), Some("leader"));
    let by_labels = adapter_at(&uri).arg("-metrics-high-availability").start().await;
    by_labels.wait_role("by_labels", SOON).await;
    for verb in ["resign", "hold", "release", "hand-over?to=x"] {
        let answer = order(&by_labels, Method::POST, verb).await;
        assert_eq!(answer.status, 400, "{verb}: {}", answer.text());
        assert!(answer.text().contains("cluster=NAME"), "{verb}: {}", answer.text());
    }
    assert_eq!(put(&by_labels, "1").await.status, 409);
    let alone = db.leader().await;
    assert_eq!(order(&alone, Method::POST, "resign").await.status, 409);
    assert_eq!(alone.get("/admin/election/leader").await.unwrap().text(), "true");
}

#[tokio::test]
async fn orders_come_from_this_host_or_show_the_token() {
    let db = Database::new().await;
    let uri = db.server.uri(&db.name);
    let Some(own) = own_address() else {
        skipped("this host has no address but loopback");
        return;
    };
    let client = Client::default();
    let post = async |port: u16, verb: &str, headers: &[(&str, &str)]| {
        let url = format!("http://{own}:{port}/admin/{verb}");
        client.request(Method::POST, &url, headers, Vec::new().into()).await.unwrap()
    };
    let listening = async |arguments: &[&str]| {
        let port = rig::port::free();
        let options = candidate(&uri, "adapter").port(port).arg(format!("-web-listen-address={own}:{port}"));
        let adapter = arguments.iter().fold(options, |options, argument| options.arg(*argument)).spawn();
        let ready = async || client.get(&format!("http://{own}:{port}/healthz")).await.ok().map(drop);
        adapter.process().wait_until("it listens", SOON, ready).await;
        (adapter, port)
    };
    let (_open, port) = listening(&[]).await;
    for verb in ["election/hold", "election/resign", "storage/seal"] {
        let answer = post(port, verb, &[]).await;
        assert_eq!(answer.status, 403, "{verb}: {}", answer.text());
        assert!(answer.text().contains("only from this host"), "{}", answer.text());
    }
    let leader = client.get(&format!("http://{own}:{port}/admin/election/leader")).await.unwrap();
    assert_eq!((leader.status, leader.text().as_str()), (200, "false"), "who asks changes nothing");
    let (guarded, port) = listening(&["-web-admin-token=open sesame"]).await;
    for headers in [&[][..], &[("authorization", "Bearer nonsense")], &[("authorization", "Basic open sesame")]] {
        let answer = post(port, "election/hold", headers).await;
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text());
    }
    let shown = [("authorization", "Bearer open sesame")];
    let wait = async || (post(port, "election/hold", &shown).await.status == 200).then_some(());
    guarded.process().wait_until("it is held", SOON, wait).await;
    assert!(!guarded.process().log().contains("sesame"), "the token is in the log");
    // A request of a web page is refused on this host, too.
    let a = candidate(&uri, "adapter").start().await;
    let url = a.url("/admin/election/hold");
    let answer = client.request(Method::POST, &url, &[("origin", "http://evil")], Vec::new().into()).await.unwrap();
    assert_eq!(answer.status, 403, "{}", answer.text());
}

/// Returns an address of this host other than loopback. Sends nothing.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn the_command_line_gives_the_orders() {
    let db = Database::new().await;
    let (a, b) = pair(&db.server.uri(&db.name), &[]).await;
    let run = async |member: &Member, words: &[&str]| {
        let url = format!("-url=http://localhost:{}", member.adapter.port());
        let output = Command::new(BINARY).arg("election").args(words).arg(url).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code().unwrap(), said)
    };
    let (status, said) = run(&a, &["status"]).await;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("role: leader\n") && said.contains("group: lock 1\n"), "{said}");
    let name = name(&b.adapter).await;
    let (status, said) = run(&a, &["hand-over", &name]).await;
    assert_eq!((status, said), (0, format!("handed over to {name}\n")));
    b.wait("leader").await;
    let (status, said) = run(&a, &["resign"]).await;
    assert!(status == 1 && said.contains("does not lead"), "{said}");
    a.wait("standby").await;
    assert_eq!(run(&b, &["hold"]).await.0, 0);
    a.wait("leader").await;
    assert!(run(&b, &["status"]).await.1.contains("held: true\n"));
    assert_eq!(run(&b, &["release"]).await.0, 0);
    let (status, said) = run(&b, &["lead"]).await;
    assert!(status == 1 && said.contains("-leader-election-rest"), "{said}");
    for wrong in [&["nonsense"][..], &["hand-over"], &["resign", "now"], &[]] {
        let (status, said) = run(&b, wrong).await;
        assert!(status == 2 && said.contains("election"), "{status}: {said}");
    }
    let answer = a.adapter.write(Body::new().sample("after", now_ms(), 1.0).compressed()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
}
