//! `make bench`: how fast the adapter stores, beside bare COPY and Prometheus' own receiver on the same machine.
//!
//! Ratios within one run are what counts; absolute numbers depend on the machine. Exits 1 when a bar is missed.
#![allow(missing_docs, clippy::print_stdout, reason = "a program that prints a table")]

mod contender;
mod load;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rig::adapter;
use rig::postgres::{Options, Postgres};
use structopt::StructOpt;

use crate::contender::{Outcome, build};
use crate::load::Load;

/// Samples a second the adapter must commit at least.
const RATE_BAR: f64 = 300_000.0;

/// Memory the adapter must stay below.
const MEMORY_BAR_MIB: f64 = 100.0;

/// Rows in the larger transactions of bare COPY.
const LARGE_COPY: usize = 20_000;

/// Measures ingest: the adapter, binary COPY into a bare table, and Prometheus as receiver.
#[derive(Debug, StructOpt)]
#[structopt(name = "bench")]
struct Flags {
    /// Series, ten labels each.
    #[structopt(long, default_value = "20000")]
    series: usize,
    /// Samples of each series at most.
    #[structopt(long, default_value = "500")]
    scrapes: usize,
    /// Samples in a request.
    #[structopt(long, default_value = "2000")]
    batch: usize,
    /// Connections, each with one request at a time.
    #[structopt(long, default_value = "4")]
    connections: usize,
    /// Seconds each contender is given at most.
    #[structopt(long, default_value = "30")]
    seconds: u64,
    /// Who takes part: adapter, copy, prometheus. Bars are judged when all do.
    #[structopt(long, default_value = "adapter,copy,prometheus", use_delimiter = true)]
    only: Vec<String>,
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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is before 1970").as_millis();
    let now = i64::try_from(now).expect("the clock is far ahead");
    // Close scrapes, so that Prometheus need not cut a block meanwhile; all in the past, or it would refuse them.
    let interval_ms = 5_000;
    let span = interval_ms * i64::try_from(flags.scrapes + 2).expect("too many scrapes");
    let load = Load {
        series: flags.series,
        scrapes: flags.scrapes,
        batch: flags.batch,
        connections: flags.connections,
        interval_ms,
        start_ms: now - span,
    };
    println!(
        "{} series of 10 labels, up to {} scrapes, batches of {}, {} connections, at most {} s each, {} processors",
        load.series,
        load.scrapes,
        load.batch,
        load.connections,
        flags.seconds,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    let outcomes = run(&flags, load).await;
    table(&outcomes);
    judge(&outcomes)
}

async fn run(flags: &Flags, load: Load) -> Vec<Outcome> {
    let takes_part = |name: &str| flags.only.iter().any(|only| only == name);
    let limit = Duration::from_secs(flags.seconds);
    let postgres = Postgres::start(Options::durable()).await;
    let mut outcomes = Vec::new();
    if takes_part("adapter") || takes_part("prometheus") {
        let started = Instant::now();
        let warm_up = build(load, |load, connection| load.requests(connection, 0..1)).await;
        let requests = build(load, |load, connection| load.requests(connection, 1..load.scrapes + 1)).await;
        let bytes: usize = requests.iter().flatten().map(|batch| batch.body.len()).sum();
        println!("bodies built in {:.1} s, {} MB compressed", started.elapsed().as_secs_f64(), bytes / 1_000_000);
        if takes_part("adapter") {
            println!("adapter ...");
            let mut options = adapter::Options::new(flags.binary.clone().unwrap_or_else(adapter::binary_beside_this));
            for argument in &flags.adapter_arg {
                options = options.arg(argument);
            }
            outcomes.push(contender::adapter(&postgres, options, &warm_up, &requests, limit).await);
        }
        if takes_part("prometheus") {
            println!("Prometheus ...");
            outcomes.push(contender::prometheus(&warm_up, &requests, limit).await);
        }
    }
    if takes_part("copy") {
        for batch in [load.batch, LARGE_COPY] {
            println!("COPY of {batch} rows ...");
            let copies = build(load, move |load, connection| load.copies(connection, 1..load.scrapes + 1, batch)).await;
            outcomes.push(contender::copy(&postgres, &format!("bare COPY, {batch} rows"), copies, limit).await);
        }
    }
    outcomes
}

fn table(outcomes: &[Outcome]) {
    println!(
        "\n{:<24} {:>12} {:>8} {:>9} {:>9} {:>11} {:>9} {:>8}",
        "", "samples/s", "seconds", "p50 ms", "p99 ms", "CPU s/mill.", "peak MiB", "retries"
    );
    for outcome in outcomes {
        let or_dash = |value: Option<f64>, digits| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        println!(
            "{:<24} {:>12.0} {:>8.1} {:>9.2} {:>9.2} {:>11} {:>9} {:>8}",
            outcome.name,
            outcome.rate(),
            outcome.elapsed.as_secs_f64(),
            outcome.latency(0.5).as_secs_f64() * 1e3,
            outcome.latency(0.99).as_secs_f64() * 1e3,
            or_dash(outcome.cpu_per_million(), 2),
            or_dash(outcome.memory_bytes.map(mebibytes), 1),
            outcome.retries,
        );
    }
}

/// Prints ratios and bars; success when none of them is missed.
fn judge(outcomes: &[Outcome]) -> ExitCode {
    let rate_of = |name: &str| outcomes.iter().filter(|o| o.name.starts_with(name)).map(Outcome::rate).reduce(f64::max);
    let Some(adapter) = outcomes.iter().find(|outcome| outcome.name == "adapter") else {
        return ExitCode::SUCCESS;
    };
    println!();
    let mut missed = false;
    let mut bar = |what: &str, value: f64, ok: Option<bool>| {
        let verdict = ok.map_or("", |ok| if ok { "ok" } else { "MISSED" });
        println!("{what:<58} {value:>12.2} {verdict}");
        missed |= ok == Some(false);
    };
    bar("samples/s, at least 300,000", adapter.rate(), Some(adapter.rate() >= RATE_BAR));
    if let Some(prometheus) = rate_of("Prometheus") {
        let ratio = adapter.rate() / prometheus;
        bar("ratio to Prometheus as receiver, at least 1", ratio, Some(ratio >= 1.0));
    }
    if let Some(copy) = rate_of("bare COPY") {
        bar("ratio to the better of bare COPY", adapter.rate() / copy, None);
    }
    if let Some(memory) = adapter.memory_bytes.map(mebibytes) {
        bar("resident memory in MiB, below 100", memory, Some(memory < MEMORY_BAR_MIB));
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
