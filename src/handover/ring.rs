//! What was acknowledged lately, whether or not it was observed stored: the server may be replaced by one that lacks it. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::handover::buffer::{Block, Buffered, blocks};

/// Acknowledged samples of the last minute, as far as there is room.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: usize,
    /// In order of acknowledgement.
    blocks: VecDeque<Block>,
}

/// Samples are kept for so long: an asynchronous replica that lags by more is not one to be promoted.
const KEPT: Duration = Duration::from_secs(60);

impl Ring {
    /// Keeps samples.
    pub fn add(&mut self, samples: &[Buffered]) {
        for block in blocks(samples) {
            self.bytes += block.bytes();
            self.blocks.push_back(block);
        }
    }

    /// Lets go of what was acknowledged longer ago than it is kept, and of the oldest of what takes more than `bytes_max`.
    pub fn trim(&mut self, bytes_max: usize, now: Instant) {
        while let Some(oldest) = self.blocks.front()
            && (self.bytes > bytes_max || now.saturating_duration_since(oldest.arrived()) >= KEPT)
        {
            self.bytes -= oldest.bytes();
            self.blocks.pop_front();
        }
    }

    /// Takes out everything.
    pub fn take(&mut self) -> Vec<Buffered> {
        self.bytes = 0;
        self.blocks.drain(..).flat_map(|block| block.samples().collect::<Vec<_>>()).collect()
    }

    /// How many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::slots::Order;
    use crate::storage::row::Row;

    fn samples(numbers: std::ops::Range<i64>, arrived: Instant) -> Vec<Buffered> {
        let sample = |time_ms| Buffered {
            row: Row { series_id: 1, time_ms, value: 0.5 },
            order: Order::In,
            clock_offset_ms: 0,
            arrived,
        };
        numbers.map(sample).collect()
    }

    fn left(ring: &mut Ring) -> Vec<i64> {
        let left = ring.take();
        assert_eq!(ring.bytes(), 0);
        left.iter().map(|sample| sample.row.time_ms).collect()
    }

    #[test]
    fn samples_are_kept_for_a_minute() {
        let start = Instant::now();
        let mut ring = Ring::default();
        for second in 0..4 {
            let second = 20 * second;
            ring.add(&samples(second..second + 2, start + Duration::from_secs(second.unsigned_abs())));
        }
        ring.trim(usize::MAX, start + Duration::from_secs(79));
        assert_eq!(left(&mut ring), [20, 21, 40, 41, 60, 61]);
    }

    #[test]
    fn the_oldest_go_where_there_is_no_room() {
        let now = Instant::now();
        let mut ring = Ring::default();
        ring.add(&samples(0..100, now));
        let bytes = ring.bytes();
        ring.add(&samples(100..200, now));
        ring.trim(2 * bytes, now);
        assert_eq!(ring.bytes(), 2 * bytes);
        ring.trim(2 * bytes - 1, now);
        assert_eq!(left(&mut ring), (100..200).collect::<Vec<_>>());
    }
}
