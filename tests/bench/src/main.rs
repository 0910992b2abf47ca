//! `make bench`: how fast, how small and how soon found, beside what the same machine does bare.
//!
//! Ratios within one run are what counts; absolute numbers depend on the machine. Exits 1 when a bar is missed.
#![allow(missing_docs, clippy::print_stdout, reason = "a program that prints a table")]
#![allow(clippy::cast_precision_loss, reason = "samples, bytes and series are far below 2^53")]

mod clusters;
mod ingest;
mod load;
mod query;
mod read;
mod room;
mod sender;
mod store;
mod takeover;
mod verdict;
mod versions;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rig::postgres::{Options, Postgres};
use structopt::StructOpt;

use crate::load::{Load, Version};
use crate::store::Setup;
use crate::verdict::Verdicts;

/// The parts, in the order in which they run. `copy` and `prometheus` go with `ingest`, `read` with `generated`.
const PARTS: &str = "ingest,copy,prometheus,many,versions,labels,takeover,capture,generated,read,query,clusters";

/// What was wanted of the store, and what is measured.
#[derive(Debug, StructOpt)]
#[structopt(name = "bench")]
struct Flags {
    /// Which parts run.
    #[structopt(long, default_value = PARTS, use_delimiter = true)]
    only: Vec<String>,
    /// Series, ten labels each.
    #[structopt(long, default_value = "20000")]
    series: usize,
    /// Series of the part `many`, which runs for a quarter of the time.
    #[structopt(long, default_value = "1000000")]
    many_series: usize,
    /// Samples in a request.
    #[structopt(long, default_value = "2000")]
    batch: usize,
    /// Connections, each with one request at a time.
    #[structopt(long, default_value = "4")]
    connections: usize,
    /// Seconds for which ingest is sustained.
    #[structopt(long, default_value = "120")]
    seconds: u64,
    /// The archive of requests of the part `capture`.
    #[structopt(long, default_value = "../shared/captures/prometheus-2.42-28min-a.tar.zst")]
    capture: PathBuf,
    /// Samples a series of the part `generated`.
    #[structopt(long, default_value = "200")]
    scrapes: usize,
    /// Samples of the part `read`.
    #[structopt(long, default_value = "10000000")]
    read_samples: usize,
    /// Series of the part `query`.
    #[structopt(long, default_value = "200")]
    query_series: usize,
    /// Days of them.
    #[structopt(long, default_value = "30")]
    days: usize,
    /// Times that each query runs.
    #[structopt(long, default_value = "20")]
    runs: usize,
    /// The adapter's program; the one built beside this without it.
    #[structopt(long)]
    binary: Option<PathBuf>,
    /// An argument for the adapter; may be given several times.
    #[structopt(long, number_of_values = 1, allow_hyphen_values = true)]
    adapter_arg: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::from_args();
    if let Some(unknown) = flags.only.iter().find(|only| !PARTS.split(',').any(|part| part == *only)) {
        println!("there is no part {unknown}; there are {PARTS}");
        return ExitCode::FAILURE;
    }
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is before 1970").as_millis();
    let now_ms = i64::try_from(now_ms).expect("the clock is far ahead");
    println!(
        "batches of {}, {} connections, {} processors",
        flags.batch,
        flags.connections,
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    let verdicts = run(&flags, now_ms).await;
    verdicts.print()
}

async fn run(flags: &Flags, now_ms: i64) -> Verdicts {
    let takes_part = |name: &str| flags.only.iter().any(|only| only == name);
    let limit = Duration::from_secs(flags.seconds);
    let load = Load {
        cluster: "bench",
        series: flags.series,
        batch: flags.batch,
        run: 1,
        connections: flags.connections,
        interval_ms: 5_000,
        // Ahead of what any of them can be sent.
        start_ms: now_ms - 24 * 3_600_000,
        version: Version::V1,
    };
    let postgres = Postgres::start(Options::durable()).await;
    let setup = Setup { postgres, binary: flags.binary.clone(), arguments: flags.adapter_arg.clone() };
    let mut verdicts = Verdicts::default();
    let mut rate = None;
    if takes_part("ingest") {
        rate = Some(ingest::few_series(&setup, load, limit, &flags.only, &mut verdicts).await);
    }
    if takes_part("many") {
        let load = Load { series: flags.many_series, ..load };
        ingest::many_series(&setup, load, limit / 4, rate, &mut verdicts).await;
    }
    if takes_part("versions") {
        versions::decoding(load, &mut verdicts).await;
        ingest::both_versions(&setup, load, limit / 4, &mut verdicts).await;
    }
    if takes_part("labels") {
        ingest::by_labels(&setup, load, limit / 4, &mut verdicts).await;
    }
    if takes_part("takeover") {
        takeover::full_buffer(&setup, load, &mut verdicts).await;
    }
    let capture = match takes_part("capture") {
        true => room::Capture::store(&setup, &flags.capture, &mut verdicts).await,
        false => None,
    };
    if takes_part("generated") {
        let (mut store, sender) = room::generated(&setup, load, flags.scrapes, &mut verdicts).await;
        if takes_part("read") {
            let scrapes = (flags.read_samples / load.series).max(flags.scrapes + 1);
            room::add(&store, &sender, load, flags.scrapes..scrapes).await;
            read::streamed(&mut store, load.cluster, load.series * scrapes, &mut verdicts).await;
        }
        store.drop().await;
    }
    if takes_part("query") {
        let shape = query::Shape {
            series: flags.query_series,
            days: flags.days,
            runs: flags.runs,
            seconds: flags.seconds.min(60),
        };
        // Within the last hour, so that all that is hot is in the way of who asks for that hour.
        let load = Load { interval_ms: 1_000, start_ms: now_ms - 3_600_000, ..load };
        query::under_ingest(&setup, shape, load, now_ms, &mut verdicts).await;
    }
    if takes_part("clusters") {
        clusters::many(&setup, &mut verdicts).await;
    }
    if let Some(capture) = capture {
        capture.measure(&mut verdicts).await;
    }
    verdicts
}
