//! Memory bound and memory use of the buffers of all senders of an adapter together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::telemetry::metrics::Metrics;

/// Bounds of what a standby may buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-standby-memory-mib`, in bytes.
    pub memory_bytes_max: usize,
}

/// Memory use of all senders together.
pub struct Memory {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Bytes of samples that are kept beside the buffers though they are stored, as far as there is memory.
    kept_bytes: AtomicUsize,
    /// A permit for each buffer that may be stored at the same time at a take-over.
    taking_out: Semaphore,
    metrics: Arc<Metrics>,
}

/// Largest number of buffers that are stored at the same time.
const TAKEN_OUT: usize = 16;

impl Memory {
    pub(super) fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        let (bytes, kept_bytes) = Default::default();
        let taking_out = Semaphore::new(TAKEN_OUT);
        Self { bytes_max: config.memory_bytes_max, bytes, kept_bytes, taking_out, metrics }
    }

    /// Waits until a buffer may be stored. What is taken out of it takes memory beside it.
    pub(super) async fn taking_out(&self) -> Option<SemaphorePermit<'_>> {
        self.taking_out.acquire().await.ok()
    }

    /// Returns the bytes that a sender may keep beside its buffer, if it keeps `kept` bytes now.
    pub(super) fn available(&self, kept: usize) -> usize {
        let others = self.kept_bytes.load(Ordering::Relaxed).saturating_sub(kept);
        self.bytes_max.saturating_sub(self.bytes.load(Ordering::Relaxed)).saturating_sub(others)
    }

    pub(super) fn kept(&self, kept: usize, kept_now: usize) {
        if kept_now != kept {
            self.kept_bytes.fetch_add(kept_now.wrapping_sub(kept), Ordering::Relaxed);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max
    }

    pub(super) fn changed(&self, (samples, bytes): (usize, usize), (samples_now, bytes_now): (usize, usize)) {
        if bytes_now != bytes {
            self.bytes.fetch_add(bytes_now.wrapping_sub(bytes), Ordering::Relaxed);
            let more = |now: usize, before: usize| now.wrapping_sub(before).cast_signed() as i64;
            self.metrics.standby_held_samples.add(more(samples_now, samples));
            self.metrics.standby_held_bytes.add(more(bytes_now, bytes));
        }
    }
}
