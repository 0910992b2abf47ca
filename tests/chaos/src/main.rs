//! `make chaos`: real adapters over a real PostgreSQL, sent to by Prometheis that know what they were promised; one
//! failure after another, and after each the question what was lost and what is there twice. Exits 1 when any promise
//! is broken.
//!
//! Nothing it starts outlives it, whether it ends well, by a panic or by Ctrl-C.
#![allow(missing_docs, clippy::print_stdout, reason = "a program that prints a table")]

mod balancer;
mod by_hand;
mod by_labels;
mod case;
mod cases;
mod disk;
mod host;
mod judge;
mod message;
mod mode;
mod picture;
mod pooler;
mod reader;
mod real_prometheus;
mod report;
mod stage;
mod suite;
mod unequal;
mod watch;
mod witness;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rig::adapter;
use rig::network::Network;
use structopt::StructOpt;

use crate::case::{Case, Context, obstacle};
use crate::report::Row;
use crate::suite::CASES;
use rig::random::Random;

/// Injects every failure, and counts samples lost and doubled.
#[derive(Debug, StructOpt)]
#[structopt(name = "chaos")]
struct Flags {
    /// Where chance begins.
    #[structopt(long, default_value = "1")]
    seed: u64,
    /// Minutes in all: what the cases leave of them goes to random mixtures.
    #[structopt(long, default_value = "10")]
    minutes: f64,
    /// Only these cases, comma-separated.
    #[structopt(long, use_delimiter = true)]
    cases: Vec<String>,
    /// Name the cases and end.
    #[structopt(long)]
    list: bool,
    /// A few cases, in under three minutes.
    #[structopt(long)]
    short: bool,
    /// The adapter's program; the one built beside this without it.
    #[structopt(long)]
    binary: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::from_args();
    if flags.list {
        for case in CASES {
            println!("{:24} {}", case.name, case.what);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = flags.cases.iter().find(|name| CASES.iter().all(|case| case.name != name.as_str())) {
        println!("no case is called {unknown:?}; --list names them");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Runtime::new().expect("cannot start tokio");
    let is_well = runtime.block_on(run(&flags));
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(flags: &Flags) -> bool {
    let began = Instant::now();
    let network = Network::new();
    if let Err(why) = &network {
        println!("every host on loopback: {why}");
    }
    let binary = flags.binary.clone().unwrap_or_else(adapter::binary_beside_this);
    let chosen = |case: &&Case| match flags.cases.as_slice() {
        [] if flags.short => case.short,
        [] => true,
        names => names.iter().any(|name| name == case.name),
    };
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/chaos");
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (number, case) in CASES.iter().enumerate().filter(|(_, case)| chosen(case)) {
        if let Some(why) = obstacle(case.needs, &network) {
            println!("{:24} skipped: {why}", case.name);
            rows.push(Row { case, outcome: Err(format!("skipped: {why}")) });
            continue;
        }
        let left = Duration::from_secs_f64(flags.minutes * 60.0).saturating_sub(began.elapsed());
        let mixtures = CASES[number..].iter().filter(|case| chosen(case) && case.is_mixture()).count();
        let context = Context {
            network: network.as_ref().ok(),
            binary: &binary,
            short: flags.short,
            random: Random::new(flags.seed.wrapping_mul(1_000) + number as u64),
            mixture: (left / u32::try_from(mixtures.max(1)).unwrap_or(1)).max(Duration::from_secs(30)),
        };
        // A panic has said what it waited for; the other cases are still due.
        let outcome = AssertUnwindSafe((case.run)(&context)).catch_unwind().await;
        let row = Row { case, outcome: outcome.map_err(|_| "could not be played to its end".to_owned()) };
        println!("{}", row.line());
        if let Ok(outcome) = &row.outcome {
            picture::draw(&pictures, case.name, case.what, outcome);
            for (host, log) in &outcome.logs {
                let path = pictures.join(format!("{}-{host}.log", case.name));
                std::fs::write(path, log).expect("cannot write a log");
            }
        }
        rows.push(row);
    }
    println!("\n{}", report::table(&rows, flags.seed, began.elapsed()));
    println!("pictures and logs: {}", pictures.display());
    rows.iter().all(Row::is_well)
}
