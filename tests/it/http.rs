//! Methods, content types, sizes, and misbehaving clients.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::wire::read::messages::{LabelMatcher, Query, ReadRequest};
use prometheus_postgresql_adapter::wire::snappy;
use prost::Message;
use rig::adapter::Adapter;
use rig::http::WRITE_HEADERS;
use rig::remote_write::{V2, add_series, labels};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::setup::{Body, Database, SOON, now_ms, send_v2, skipped, store};

/// Headers of a write with a `Content-Length` that need not be true.
fn head(length: &str) -> String {
    format!("POST /write HTTP/1.1\r\nHost: it\r\nContent-Encoding: snappy\r\nContent-Length: {length}\r\n\r\n")
}

async fn connect(adapter: &Adapter) -> TcpStream {
    TcpStream::connect(("127.0.0.1", adapter.port())).await.expect("the adapter listens")
}

/// Sends bytes unchanged, and returns the first line of the response.
async fn raw(adapter: &Adapter, bytes: &[u8]) -> String {
    let mut stream = connect(adapter).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(SOON, stream.read(&mut answer)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&answer[..read]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_is_no_remote_write_is_refused_before_it_is_decoded() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let good = Body::new().sample("up", now_ms(), 1.0).compressed();
    let proto = "application/x-protobuf;proto=";
    let v1 = format!("{proto}prometheus.WriteRequest");
    let v2 = format!("{proto}io.prometheus.write.v2.Request");
    let cases: [(&str, &str, u16); 9] = [
        ("application/x-protobuf", "snappy", 204),
        (&v1, "snappy", 204),
        ("application/x-protobuf; proto=\"prometheus.WriteRequest\"", "Snappy", 204),
        ("application/json", "snappy", 415),
        ("image/png", "snappy", 415),
        // Of version 1.0, as which it is not labelled.
        (&v2, "snappy", 400),
        ("application/x-protobuf;proto=nonsense", "snappy", 415),
        ("application/x-protobuf", "gzip", 415),
        ("application/x-protobuf", "deflate", 415),
    ];
    for path in ["/write", "/api/v1/write"] {
        for (content_type, encoding, expected) in cases {
            let headers = [("content-type", content_type), ("content-encoding", encoding)];
            let url = adapter.url(path);
            let status = adapter.client().post(&url, &headers, good.clone()).await.unwrap().status;
            assert_eq!(status, expected, "{path} {content_type} {encoding}");
            let corrupt = adapter.client().post(&url, &headers, &b"0\xff\xff"[..]).await.unwrap().status;
            let expected = if expected == 204 { 400 } else { expected };
            assert_eq!(corrupt, expected, "{path} {content_type} {encoding}, corrupt");
        }
    }
    // A request without headers counts as remote write 1.0.
    assert_eq!(adapter.client().post(&adapter.url("/write"), &[], good).await.unwrap().status, 204);
}

#[tokio::test]
async fn an_unreadable_sender_is_told_the_setting_to_change() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let ready = async || adapter.get("/-/ready").await.unwrap();
    let said = |text: &str| adapter.process().log().lines().iter().filter(|line| line.contains(text)).count();
    for round in 1..=2 {
        for named in ["zstd", "gzip"] {
            let body = Body::new().sample("up", now_ms(), 1.0).compressed();
            let headers = [("content-encoding", named)];
            let answer = adapter.client().post(&adapter.url("/write"), &headers, body).await.unwrap();
            assert_eq!(answer.status, 415);
            assert!(answer.text().contains(named), "{}", answer.text());
            adapter.process().wait_for_log(named, SOON).await;
            assert_eq!(said(named), 1, "once, though refused {round} times");
            assert_eq!(ready().await.status, 503);
            assert!(ready().await.text().contains(named), "{}", ready().await.text());
            assert!(adapter.get("/").await.unwrap().text().contains(named));
            let status: serde_json::Value = serde_json::from_str(&adapter.status().await.unwrap()).unwrap();
            assert_eq!(status["ready"], false);
            assert!(status["unsupported"].as_str().is_some_and(|why| why.contains(named)), "{status}");
        }
        assert_eq!(adapter.metric("write_requests_unsupported_total").await, Some(f64::from(round * 2)));
        store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
        assert_eq!(ready().await.status, 200);
        adapter.process().wait_for_log("a write request can be read again", SOON).await;
        assert_eq!(said("a write request can be read again"), 1);
        assert!(adapter.status().await.unwrap().contains(r#""unsupported":null"#));
    }
}

#[tokio::test]
async fn bodies_that_are_truncated_corrupt_or_bombs() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let check = async |body: &[u8], expected: u16, what: &str| {
        let answer = adapter.write(body.to_vec()).await;
        assert_eq!(answer.status, expected, "{what}: {}", answer.text());
    };
    let plain = Body::new().sample("up", now_ms(), 1.0).plain();
    let whole = snappy::compress(&plain).unwrap();
    check(&whole[..whole.len() - 1], 400, "truncated snappy").await;
    check(b"", 400, "nothing").await;
    check(b"\xff\x06\x00\x00sNaPpY", 400, "framed snappy").await;
    for length in 1..plain.len() {
        check(&snappy::compress(&plain[..length]).unwrap(), 400, "truncated protobuf").await;
    }
    check(&snappy::compress(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").unwrap(), 400, "corrupt protobuf").await;
    for _ in 0..20 {
        check(b"\xff\xff\xff\xff\x0f\0", 400, "a bomb of 4 GiB").await;
        check(b"\x81\x80\x80\x10\0", 400, "a bomb of 32 MiB and a byte").await;
    }
    assert!(adapter.process().peak_memory_bytes() < 64 << 20, "{}", adapter.process().peak_memory_bytes());
    check(&whole, 204, "the same, whole").await;
    assert_eq!(database.samples().await, 1);
}

#[tokio::test]
async fn small_bodies_cost_little_memory_and_time() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let (name, value) = (labels([("__name__", "up")]), "\u{1}".repeat(8 << 20));
    let series = |labels: &[Vec<u8>]| {
        let mut message = Vec::new();
        add_series(&mut message, &labels.concat(), [(now_ms(), 1.0)]);
        rig::remote_write::compress(&message)
    };
    let writes = [
        ("empty labels", series(&[name.clone(), b"\x0a\x00".repeat(15 << 20)])),
        ("many labels", series(&[name.clone(), b"\x0a\x06\x0a\x01a\x12\x01b".repeat(3 << 20)])),
        ("a long value of a series without a name", series(&[labels([("n", value)])])),
    ];
    for (what, body) in writes {
        assert!(body.len() < 2 << 20);
        let answer = adapter.write(body).await;
        assert_eq!(answer.status, 400, "{what}");
        assert!(answer.text().len() < 1024, "{what}: {}", answer.text().len());
    }
    // In version 2.0 many fields may refer to one large symbol.
    let long = "x".repeat(8 << 20);
    let names: Vec<String> = (0..900).map(|n| n.to_string()).collect();
    let mut many_labels = V2::default();
    many_labels.add(names.iter().map(|name| (name.as_str(), long.as_str())), [(now_ms(), 1.0)], b"");
    let mut many_helps = V2::default();
    for name in &names {
        many_helps.add(
            [("__name__", name.as_str()), ("help", long.as_str())],
            [(now_ms(), 1.0)],
            b"\x2a\x04\x08\x01\x18\x04",
        );
    }
    let mut many_series = V2::default();
    for name in &names {
        let labels = [("__name__", "up"), ("n", name.as_str()), ("long", &long[..900 << 10])];
        many_series.add(labels, [(now_ms(), 1.0)], b"");
    }
    let wrapped = |tag: u8, content: &[u8]| {
        let mut field = vec![tag];
        prost::encoding::encode_varint(content.len() as u64, &mut field);
        [&field, content].concat()
    };
    let nested = |series: &[u8]| [b"\x22\x00".to_vec(), wrapped(0x2a, series)].concat();
    let references = wrapped(0x0a, &vec![0; 31 << 20]);
    let exemplar = [wrapped(0x0a, b""), wrapped(0x22, &references), b"\x12\x02\x10\x05".to_vec()].concat();
    let version_2 = [
        ("labels of one symbol", many_labels.message()),
        ("helps of one symbol", many_helps.message()),
        ("series of one symbol", many_series.message()),
        ("references", nested(&[references.clone(), b"\x12\x02\x10\x05".to_vec()].concat())),
        ("references of an exemplar", nested(&exemplar)),
        ("exemplars", nested(&b"\x22\x00".repeat(15 << 20))),
        ("samples", nested(&b"\x12\x00".repeat(15 << 20))),
    ];
    for (what, message) in version_2 {
        let answer = send_v2(&adapter, &message).await;
        assert_eq!(answer.status, 400, "{what}");
        println!("{what}: {} MiB at most: {}", adapter.process().peak_memory_bytes() >> 20, answer.text());
    }
    let matchers = |count: usize, expression: &str| {
        let matcher = |_| LabelMatcher { kind: 2, name: "l".into(), value: expression.into() };
        let query = Query { matchers: (0..count).map(matcher).collect(), ..Query::default() };
        ReadRequest { queries: vec![query], accepted_response_types: vec![] }.encode_to_vec()
    };
    let reads = [
        ("empty queries", b"\x0a\x00".repeat(15 << 20)),
        ("200 large expressions", matchers(200, r"\pL{150}")),
        ("64 large expressions", matchers(64, r"\pL{150}")),
        ("braces", matchers(1, &"{".repeat(60_000))),
        ("a class", matchers(1, &format!("[{}", "[:".repeat(30_000)))),
    ];
    for (what, body) in reads {
        let asked = Instant::now();
        let answer = adapter.read(rig::remote_write::compress(&body)).await;
        let expected = if what == "braces" { 200 } else { 400 };
        assert_eq!(answer.status, expected, "{what}: {}", answer.text());
        println!("{what}: {:?}, {} MiB at most", asked.elapsed(), adapter.process().peak_memory_bytes() >> 20);
    }
    assert!(adapter.process().peak_memory_bytes() < 400 << 20, "{}", adapter.process().peak_memory_bytes());
}

#[tokio::test]
async fn a_body_of_more_than_32_mib_is_refused_unread() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    for length in ["33554433", "99999999999", "18446744073709551615"] {
        let line = raw(&adapter, head(length).as_bytes()).await;
        assert!(line.starts_with("HTTP/1.1 4"), "{length}: {line}");
    }
    assert_eq!(raw(&adapter, head("33554433").as_bytes()).await, "HTTP/1.1 413 Payload Too Large");
    // Without a declared length, the size is noticed while the body is read.
    let mut stream = connect(&adapter).await;
    stream.write_all(b"POST /write HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![0; 0x10_0000], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    while sent < 64 && stream.write_all(&chunk).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 64, "the adapter took 64 MiB");
    assert!(adapter.process().peak_memory_bytes() < 128 << 20);
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
}

#[tokio::test]
async fn slow_clients_hold_nobody_up() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let mut slow = Vec::new();
    for length in ["33554432", "100"].repeat(20) {
        let mut stream = connect(&adapter).await;
        stream.write_all(head(length).as_bytes()).await.unwrap();
        slow.push(stream);
    }
    // Some send one byte of the body, some do not even send all headers.
    for stream in &mut slow[10..20] {
        stream.write_all(b"\x10").await.unwrap();
    }
    for _ in 0..5 {
        let mut stream = connect(&adapter).await;
        stream.write_all(b"POST /write HT").await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    for n in 0..10 {
        store(&adapter, Body::new().sample("up", now_ms() + n, 1.0)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_a_vanished_client_sent_whole_is_stored() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let blocker = database.session().await;
    blocker.batch_execute("BEGIN; LOCK metrics_series").await.unwrap();
    let body = Body::new().sample("up", now, 2.0).compressed();
    let mut stream = connect(&adapter).await;
    stream.write_all(head(&body.len().to_string()).as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    database
        .wait("SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'metrics_series'::regclass AND NOT granted)")
        .await;
    drop(stream);
    // A client that disconnects before its body is complete stores nothing.
    let mut half = connect(&adapter).await;
    half.write_all(head("1000").as_bytes()).await.unwrap();
    half.write_all(&body).await.unwrap();
    drop(half);
    // An adapter that reacts to the lost connection has done so before it answers this request.
    adapter.get("/healthz").await.unwrap();
    blocker.batch_execute("ROLLBACK").await.unwrap();
    database.wait("SELECT count(*) = 1 FROM metrics").await;
}

#[tokio::test]
async fn every_path_has_its_methods() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let check = async |method: &str, path: &str, expected: u16| {
        let method = method.parse().expect("a method");
        let answer = adapter.client().request(method, &adapter.url(path), &WRITE_HEADERS, "".into()).await.unwrap();
        assert_eq!(answer.status, expected, "{path}");
        answer
    };
    for path in ["/write", "/api/v1/write", "/read", "/api/v1/read"] {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            assert_eq!(check(method, path, 405).await.header("allow"), Some("POST"));
        }
    }
    for path in ["/", "/metrics", "/healthz", "/-/healthy", "/-/ready", "/status.json"] {
        assert!(!check("GET", path, 200).await.body.is_empty());
        assert!(check("HEAD", path, 200).await.body.is_empty());
        assert_eq!(check("POST", path, 405).await.header("allow"), Some("GET, HEAD"));
    }
    check("GET", "/nonsense", 404).await;
    check("GET", "/write/", 404).await;
    let status: serde_json::Value = serde_json::from_str(&adapter.status().await.unwrap()).expect("it is JSON");
    assert_eq!((&status["role"], &status["ready"]), (&"leader".into(), &true.into()));
    assert!(check("GET", "/", 200).await.text().contains("leader"));
}

#[tokio::test]
async fn an_adapter_without_its_database_is_alive_and_not_ready() {
    // Nothing listens on a port that was just released.
    let nobody = rig::port::free();
    let options = crate::setup::adapter_at(&format!("postgres://nobody:geheim@127.0.0.1:{nobody}/none"));
    let adapter = options.start().await;
    for (path, expected) in [("/healthz", 200), ("/-/healthy", 200), ("/-/ready", 503), ("/", 200), ("/metrics", 200)] {
        assert_eq!(adapter.get(path).await.unwrap().status, expected, "{path}");
    }
    let answer = adapter.write(Body::new().sample("up", now_ms(), 1.0).compressed()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    let answer = adapter.read(crate::reader::body(&[], &[])).await;
    assert_eq!(answer.status, 503);
    adapter.process().wait_for_log("cannot be opened", SOON).await;
    assert!(!adapter.process().log().contains("geheim"), "a password is in the log");
}

#[tokio::test]
async fn metrics_follow_the_conventions() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    store(&adapter, Body::new().sample("up", now_ms(), 1.0)).await;
    adapter.write("nonsense").await;
    crate::reader::both(&adapter, &[crate::reader::query(0, now_ms(), &[])]).await;
    let metrics = adapter.get("/metrics").await.unwrap().text();
    for name in ["samples_received_total", "samples_stored_total", "build_info", "process_resident_memory_bytes"] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let promtool = promtool.spawn();
    let Ok(mut promtool) = promtool else {
        skipped("there is no promtool");
        return;
    };
    let mut input = promtool.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut input, metrics.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
