//! A take-over from a buffer that is full: how soon the standby leads, and how much memory it takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::sender::Sender;
use crate::store::Setup;
use crate::verdict::{Verdicts, mebibytes};

/// Samples that are sent to the standby, as a part of what its buffer is certain to have room for.
const FILLED: f64 = 0.97;

/// `-standby-memory-mib` as it is shipped, and what a buffered sample takes of it.
const BUFFER_MIB: f64 = 256.0;
const SAMPLE_BYTES: f64 = 20.0;

/// Bytes in a MiB.
const MIB: f64 = 1024.0 * 1024.0;

/// `-leader-election-lease` as it is shipped, seconds.
const LEASE: f64 = 10.0;

/// Resident memory of a standby with a full buffer that takes over, MiB.
const MEMORY_MIB: f64 = 320.0;

/// Time for what is not measured.
const PATIENCE: Duration = Duration::from_secs(120);

/// Fills the standby's buffer, kills the leader, and waits until the standby leads and has stored all of it.
pub(crate) async fn full_buffer(setup: &Setup, load: Load, verdicts: &mut Verdicts) {
    println!("\ntake-over from a full buffer ...");
    let store = setup.store(&[]).await;
    let first = load.requests(0..1).await;
    let mut samples = store.sender(load.connections).warm_up(store.adapter.process(), &first).await;
    let standby = store.standby().await;
    let sender = Sender::new(standby.url("/write"), load.connections);
    // As its own Prometheus would have scraped it: the first scrape is that of the leader.
    sender.warm_up(standby.process(), &first).await;
    standby.wait_role("standby", PATIENCE).await;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
    let scrapes = (BUFFER_MIB * MIB / SAMPLE_BYTES * FILLED) as usize / load.series;
    let requests = load.requests(1..1 + scrapes).await;
    let sent = sender.send_all(&requests, PATIENCE).await;
    samples += sent.samples;
    println!("  {} samples acknowledged in {:.1} s", sent.samples, sent.elapsed.as_secs_f64());
    let buffered = standby.metric("standby_held_bytes").await.unwrap_or_default() / MIB;
    verdicts.at_least("MiB buffered by the standby when the leader is killed", 0.9 * BUFFER_MIB, buffered);
    let resident = [standby.process().memory_bytes(), standby.process().peak_memory_bytes()].map(mebibytes);
    println!("  {:.0} MiB resident before the take-over, {:.0} at most", resident[0], resident[1]);
    let killed = Instant::now();
    store.adapter.process().kill9().await;
    standby.wait_role("leader", PATIENCE).await;
    verdicts.at_most("... seconds until it leads", LEASE, killed.elapsed().as_secs_f64());
    verdicts.below("... MiB resident at most", MEMORY_MIB, mebibytes(standby.process().peak_memory_bytes()));
    let requests = Arc::new(vec![load.requests(1 + scrapes..2 + scrapes).await[0].clone()]);
    samples += sender.send_all(&requests, PATIENCE).await.samples;
    store.check(samples).await;
    drop(standby);
    store.drop().await;
}
