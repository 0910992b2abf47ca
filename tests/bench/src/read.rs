//! Remote read of sealed samples, streamed as chunks.

use std::time::{Duration, Instant};

use prost::Message;
use rig::http::{Client, READ_HEADERS};
use rig::remote_write::compress;

use crate::store::Store;
use crate::verdict::{Verdicts, mebibytes, number};

/// A remote-read request, the generator's own.
#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Query>,
    #[prost(int32, repeated, tag = "2")]
    accepted_response_types: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Query {
    #[prost(int64, tag = "1")]
    start_timestamp_ms: i64,
    #[prost(int64, tag = "2")]
    end_timestamp_ms: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<Matcher>,
}

/// A matcher of type 0, equal.
#[derive(Clone, PartialEq, Message)]
struct Matcher {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

/// The response type `STREAMED_XOR_CHUNKS`.
const STREAMED_XOR_CHUNKS: i32 = 1;

/// How often it is read.
const RUNS: usize = 3;

/// How long a read may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// How long an adapter may take to answer reads.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A cluster that is not stored.
const NOTHING: &str = "nothing";

/// Reads all `samples` of `store`, by an adapter that has done nothing else.
pub(crate) async fn streamed(store: &mut Store<'_>, cluster: &str, samples: usize, verdicts: &mut Verdicts) {
    println!("\nremote read ...");
    store.restart().await;
    let client = Client::new(DEADLINE);
    let url = store.adapter.url("/read");
    let process = store.adapter.process();
    // It reaches the database in its own time.
    let ready = async || {
        let answer = client.post(&url, &READ_HEADERS, request(NOTHING)).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    };
    process.wait_until("it answers reads", READY_DEADLINE, ready).await;
    let body = request(cluster);
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        let (cpu_before, started) = (process.cpu(), Instant::now());
        let answer = client.post(&url, &READ_HEADERS, body.clone()).await;
        let answer = answer.unwrap_or_else(|error| process.fail(&error.to_string()));
        let elapsed = started.elapsed();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let cpu = process.cpu().saturating_sub(cpu_before);
        let rate = samples as f64 / elapsed.as_secs_f64();
        println!(
            "  {:.2} s, {} samples/s, {:.1} MiB of chunks, {:.2} s CPU of the adapter",
            elapsed.as_secs_f64(),
            number(rate),
            mebibytes(answer.body.len() as u64),
            cpu.as_secs_f64()
        );
        rates.push(rate);
    }
    let read = store.adapter.metric("read_samples_total").await.unwrap_or_default();
    assert!((read - (RUNS * samples) as f64).abs() < 0.5, "{read} samples read, not {RUNS} times {samples}");
    rates.sort_by(f64::total_cmp);
    verdicts.at_least(&format!("samples/s by remote read, {} sealed", number(samples as f64)), 5e6, rates[RUNS / 2]);
    verdicts.below("... adapter's memory at most, MiB", 100.0, mebibytes(process.peak_memory_bytes()));
}

/// All samples of all series of `cluster`.
fn request(cluster: &str) -> Vec<u8> {
    let matcher = Matcher { name: "cluster".to_owned(), value: cluster.to_owned() };
    let query = Query { start_timestamp_ms: 0, end_timestamp_ms: i64::MAX / 2, matchers: vec![matcher] };
    let request = ReadRequest { queries: vec![query], accepted_response_types: vec![STREAMED_XOR_CHUNKS] };
    compress(&request.encode_to_vec())
}
