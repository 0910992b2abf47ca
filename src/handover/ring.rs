//! Samples that were stored lately: the server may be replaced by one that lacks them. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::handover::slab::{Buffered, Slab};

/// Samples that were stored, or observed to be covered, within the last minute, as far as there is memory. 20 bytes
/// each.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: usize,
    /// In the order in which they were stored.
    slabs: VecDeque<Stored>,
}

/// Samples that were stored within some seconds. They are dropped together.
#[derive(Debug)]
struct Stored {
    /// Times at which the first and the last of them were stored.
    first: Instant,
    last: Instant,
    slab: Slab,
}

/// Time for which samples are kept: an asynchronous replica that lags by more should not be promoted.
const KEPT: Duration = Duration::from_secs(60);

/// Maximum time for which a slab is filled; then it ends, full or not.
const SLAB_SPAN: Duration = Duration::from_secs(10);

impl Ring {
    /// Adds samples that were stored, or observed to be stored, at `now`.
    pub fn add(&mut self, samples: impl Iterator<Item = Buffered>, now: Instant) {
        for sample in samples {
            if self.slabs.back().is_none_or(|last| last.is_full(now)) {
                let slab = Slab::after(self.slabs.back().map(|last| &last.slab));
                self.bytes += slab.bytes();
                self.slabs.push_back(Stored { first: now, last: now, slab });
            }
            if let Some(Stored { last, slab, .. }) = self.slabs.back_mut() {
                self.bytes += slab.push(&sample);
                *last = now;
            }
        }
    }

    /// Drops samples that were stored longer ago than `KEPT`, and the oldest ones while all take more than
    /// `bytes_max`.
    pub fn trim(&mut self, bytes_max: usize, now: Instant) {
        while let Some(oldest) = self.slabs.front()
            && (self.bytes > bytes_max || now.saturating_duration_since(oldest.last) >= KEPT)
        {
            self.bytes -= oldest.slab.bytes();
            self.slabs.pop_front();
        }
    }

    /// Takes out everything.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Slab> {
        self.bytes = 0;
        self.slabs.drain(..).map(|stored| stored.slab)
    }

    /// Returns the bytes that all samples take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Stored {
    fn is_full(&self, now: Instant) -> bool {
        self.slab.is_full() || now.saturating_duration_since(self.first) >= SLAB_SPAN
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::handover::slab::SAMPLES_MAX;
    use crate::model::histogram::Histogram;
    use crate::model::sample::Value;
    use crate::storage::row::Row;

    fn samples(times: impl IntoIterator<Item = i64>, arrived: Instant) -> Vec<Buffered> {
        let histogram = || Value::Histogram(Histogram::default().to_numbers());
        let sample = |time_ms| Buffered {
            row: Row { series_id: 1, time_ms, value: if time_ms == 4 { histogram() } else { Value::Float(0.5) } },
            is_stamped: time_ms % 3 == 0,
            arrived,
            key: Uuid::nil(),
        };
        times.into_iter().map(sample).collect()
    }

    fn times(samples: &[Buffered]) -> Vec<i64> {
        samples.iter().map(|sample| sample.row.time_ms).collect()
    }

    fn left(ring: &mut Ring) -> Vec<Buffered> {
        let left: Vec<Buffered> = ring.take().flat_map(|slab| slab.iter().collect::<Vec<_>>()).collect();
        assert_eq!(ring.bytes(), 0);
        left
    }

    #[test]
    fn samples_are_kept_for_a_minute_after_they_were_stored() {
        let start = Instant::now();
        let mut ring = Ring::default();
        for second in [0_i64, 20, 40, 60] {
            let stored = start + Duration::from_secs(second.unsigned_abs());
            ring.add(samples(second..second + 2, start).into_iter(), stored);
        }
        let all = ring.bytes();
        ring.trim(usize::MAX, start + Duration::from_secs(79));
        assert_eq!(ring.bytes(), all / 4 * 3);
        assert_eq!(times(&left(&mut ring)), [20, 21, 40, 41, 60, 61]);
    }

    #[test]
    fn the_oldest_go_where_there_is_no_room() {
        let now = Instant::now();
        let mut ring = Ring::default();
        let count = 40 * SAMPLES_MAX as i64;
        ring.add(samples(0..count, now).into_iter(), now);
        assert!((40 * 20 * SAMPLES_MAX..41 * 20 * SAMPLES_MAX).contains(&ring.bytes()));
        ring.trim(4 * 20 * SAMPLES_MAX, now);
        let bytes = ring.bytes();
        assert!((3 * 20 * SAMPLES_MAX..4 * 20 * SAMPLES_MAX).contains(&bytes), "{bytes}");
        let left = times(&left(&mut ring));
        assert!(left.len() > 2 * SAMPLES_MAX);
        assert_eq!(left, (count - left.len() as i64..count).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_ring_keeps_comes_out_as_it_was() {
        let (now, far_ms) = (Instant::now(), 40 * 86_400_000);
        let mut ring = Ring::default();
        let mut kept = samples([5, 3, far_ms, 4, -far_ms, i64::MIN, i64::MAX], now);
        kept.extend(samples([6, 7], now + Duration::from_secs(1)));
        ring.add(kept.iter().cloned(), now);
        let seen = |samples: &[Buffered]| -> Vec<_> {
            samples.iter().map(|one| (one.row.time_ms, one.row.value.clone(), one.is_stamped, one.arrived)).collect()
        };
        assert_eq!(seen(&left(&mut ring)), seen(&kept));
    }
}
