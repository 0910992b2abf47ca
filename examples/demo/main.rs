//! `make demo` and `make demo-clusters`: real Prometheis and adapters over one PostgreSQL, what dies of them, and what is
//! stored afterwards. Without an argument the story of a [pair], with `clusters` that of two [clusters]. Exits 1 when
//! anything is wrong.
//!
//! Nothing it starts outlives it, whether it ends well or by Ctrl-C.
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, reason = "a program that tells a story")]

mod clusters;
mod judge;
mod pair;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A take-over that takes longer than this has failed, and the story with it.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long everything runs undisturbed between two deeds.
const PEACE: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().expect("cannot start tokio");
    let tell = || match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Some(runtime.block_on(pair::story(Teller::new()))),
        ["clusters"] => Some(runtime.block_on(clusters::story(Teller::new()))),
        _ => None,
    };
    // A panic has said what went wrong; the verdict is still due.
    match catch_unwind(AssertUnwindSafe(tell)) {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::FAILURE,
        Ok(None) => {
            eprintln!("usage: demo [clusters]");
            ExitCode::FAILURE
        }
        Err(_) => {
            println!("\nVERDICT: WRONG: the story could not be told to its end");
            ExitCode::FAILURE
        }
    }
}

/// Prints what happens, each line with its time.
#[derive(Clone, Copy)]
struct Teller {
    began: Instant,
}

impl Teller {
    fn new() -> Self {
        Self { began: Instant::now() }
    }

    fn say(self, text: &str) {
        println!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f64());
    }

    /// When the story began.
    fn began(self) -> Instant {
        self.began
    }
}
