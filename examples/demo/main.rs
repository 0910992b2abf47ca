//! `make demo`: a real pair of Prometheis, each beside an adapter, over one PostgreSQL. The leader's Prometheus is
//! killed, then the new leader's adapter; what is stored afterwards is judged. Exits 1 when anything is wrong.
//!
//! Nothing it starts outlives it, whether it ends well or by Ctrl-C.
#![allow(missing_docs, clippy::print_stdout, reason = "a program that tells a story")]

mod judge;
mod pair;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rig::prometheus::Sender;

use crate::pair::{PROMETHEUS_TIMEOUT_SECONDS, Pair};
use crate::verdict::Verdict;

/// A take-over that takes longer than this has failed, and the story with it.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long the pair runs undisturbed between two deeds.
const PEACE: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("cannot start tokio");
    // A panic has said what went wrong; the verdict is still due.
    match catch_unwind(AssertUnwindSafe(|| runtime.block_on(story()))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => {
            println!("\nVERDICT: WRONG: the story could not be told to its end");
            ExitCode::FAILURE
        }
    }
}

async fn story() -> bool {
    let began = Instant::now();
    let say = move |text: &str| println!("[{:5.1} s] {text}", began.elapsed().as_secs_f64());
    let mut verdict = Verdict::default();
    let mut senders = Vec::new();

    say("starting PostgreSQL, node_exporter, two Prometheis and an adapter beside each ...");
    let mut pair = Pair::start(say).await;
    let first = leader(&pair).await;
    let second = 1 - first;
    let (first_name, second_name) = (pair.sides[first].name, pair.sides[second].name);
    pair.sides[second].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {first_name} leads and stores; adapter {second_name} stands by and stores nothing"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, say).await;

    senders.push((format!("Prometheus {first_name} until its death"), pair.sides[first].prometheus.sender().await));
    say(&format!("kill -9 of Prometheus {first_name}: its adapter lives, but has nothing to store any more"));
    let killed = Instant::now();
    pair.sides[first].prometheus.kill9().await;
    pair.sides[second].adapter().wait_role("leader", PATIENCE).await;
    let silence = killed.elapsed().as_secs_f64();
    say(&format!("adapter {second_name} leads, {silence:.2} s after the kill"));
    pair.sides[first].prometheus.start_again().await;
    say(&format!("Prometheus {first_name} is started again"));
    pair.sides[first].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {first_name} stands by: nobody takes the lead from a leader that does its work"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, say).await;

    say(&format!("kill -9 of adapter {second_name}, which leads"));
    let killed = Instant::now();
    pair.sides[second].kill_adapter().await;
    pair.sides[first].adapter().wait_role("leader", PATIENCE).await;
    let crash = killed.elapsed().as_secs_f64();
    say(&format!("adapter {first_name} leads, {crash:.2} s after the kill"));
    pair.sides[second].start_adapter().await;
    pair.sides[second].adapter().wait_role("standby", PATIENCE).await;
    say(&format!("adapter {second_name} is started again, and stands by"));
    tokio::time::sleep(PEACE).await;
    roles(&pair, say).await;

    say("what a SQL client sees:");
    verdict::show(&pair.postgres, say).await;
    say("and what is true of all of it:");
    let bound = PROMETHEUS_TIMEOUT_SECONDS + 1.0;
    verdict
        .check(&format!("take-over after {silence:.2} s when a Prometheus dies, at most {bound} s"), silence <= bound);
    verdict.check(&format!("take-over after {crash:.2} s when an adapter dies, at most 1 s"), crash <= 1.0);
    let sides = pair.sides.each_ref().map(|side| &side.prometheus);
    let found = verdict::by_the_pair(&mut verdict, &pair.postgres, sides, began.elapsed()).await;
    verdict::by_remote_read(&mut verdict, &pair.postgres, &pair.reader).await;
    for side in &pair.sides {
        senders.push((format!("Prometheus {}", side.name), side.prometheus.sender().await));
    }
    for (name, sender) in senders {
        judge_sender(&mut verdict, &name, sender);
    }
    let leaders = leaders(&pair).await.len();
    verdict.check(&format!("{leaders} of two adapters leads"), leaders == 1);
    verdict.conclude(&format!(
        "{} samples stored once: {} lost, {} doubled; take-overs in {silence:.2} s and {crash:.2} s",
        found.samples, found.lost, found.doubled,
    ))
}

/// Which side leads, as soon as one does.
async fn leader(pair: &Pair) -> usize {
    let one_leads = async || leaders(pair).await.first().copied();
    pair.sides[0].adapter().process().wait_until("one of the two adapters leads", PATIENCE, one_leads).await
}

/// The sides whose adapters say that they lead.
async fn leaders(pair: &Pair) -> Vec<usize> {
    let mut leaders = Vec::new();
    for (index, side) in pair.sides.iter().enumerate() {
        if side.adapter().role().await.as_deref() == Some("leader") {
            leaders.push(index);
        }
    }
    leaders
}

async fn roles(pair: &Pair, say: impl Fn(&str)) {
    for side in &pair.sides {
        let role = side.adapter().role().await.unwrap_or_else(|| "silent".to_owned());
        let stored = side.adapter().metric("samples_stored_total").await.unwrap_or(0.0);
        let received = side.adapter().metric("samples_received_total").await.unwrap_or(0.0);
        say(&format!("    adapter {}: {role:<8} {received:>7} samples received, {stored:>7} stored", side.name));
    }
}

fn judge_sender(verdict: &mut Verdict, name: &str, sender: Sender) {
    let Sender { sent, failed, dropped, .. } = sender;
    let what = format!("{name} sent {sent} samples, {failed} failed, {dropped} dropped");
    verdict.check(&what, failed == 0.0 && dropped == 0.0 && sent > 0.0);
}
