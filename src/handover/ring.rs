//! What became stored lately: the server may be replaced by one that lacks it. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::handover::buffer::{Block, Buffered, Came, blocks};
use crate::storage::row::Row;

/// Samples that were stored within the last minute, or observed covered, as far as there is room.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: usize,
    /// In the order of being stored, and when that was.
    kept: VecDeque<(Instant, Kept)>,
}

/// Samples as a ring keeps them.
#[derive(Debug)]
pub struct Kept(Form);

#[derive(Debug)]
enum Form {
    /// What came at once, and is shared with whoever stores it: 24 bytes each.
    Shared {
        /// In any order.
        rows: Arc<Vec<Row>>,
        /// When it came.
        arrived: Instant,
    },
    /// 20 bytes each.
    Copied(Vec<Block>),
}

/// Samples are kept for so long: an asynchronous replica that lags by more is not one to be promoted.
const KEPT: Duration = Duration::from_secs(60);

impl Kept {
    /// Of these.
    #[must_use]
    pub fn new(samples: impl Iterator<Item = Buffered> + Clone) -> Self {
        Self(Form::Copied(blocks(samples)))
    }

    /// What came in one request.
    #[must_use]
    pub fn came(came: &Came) -> Self {
        match came.are_stamped.contains(&true) {
            true => Self::new(came.samples()),
            false => Self(Form::Shared { rows: Arc::clone(&came.rows), arrived: came.arrived }),
        }
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Form::Shared { rows, .. } => size_of::<Self>() + rows.capacity() * size_of::<Row>(),
            Form::Copied(blocks) => blocks.iter().map(Block::bytes).sum(),
        }
    }

    fn into_blocks(self) -> Vec<Block> {
        match self.0 {
            Form::Shared { rows, arrived } => {
                let sample = |row: &Row| Buffered { row: *row, is_stamped: false, arrived, key: Uuid::nil() };
                blocks(rows.iter().map(sample))
            }
            Form::Copied(blocks) => blocks,
        }
    }
}

impl Ring {
    /// Keeps samples that are stored `now`, or seen to be.
    pub fn add(&mut self, kept: Kept, now: Instant) {
        self.bytes += kept.bytes();
        self.kept.push_back((now, kept));
    }

    /// Lets go of what was stored longer ago than it is kept, and of the oldest of what takes more than `bytes_max`.
    pub fn trim(&mut self, bytes_max: usize, now: Instant) {
        while let Some((stored, oldest)) = self.kept.front()
            && (self.bytes > bytes_max || now.saturating_duration_since(*stored) >= KEPT)
        {
            self.bytes -= oldest.bytes();
            self.kept.pop_front();
        }
    }

    /// Takes out everything.
    pub(super) fn take(&mut self) -> Vec<Block> {
        self.bytes = 0;
        self.kept.drain(..).flat_map(|(_, kept)| kept.into_blocks()).collect()
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

    fn kept(numbers: std::ops::Range<i64>, arrived: Instant) -> Kept {
        let sample = |time_ms| Buffered {
            row: Row { series_id: 1, time_ms, value: 0.5 },
            is_stamped: false,
            arrived,
            key: Uuid::nil(),
        };
        Kept::new(numbers.map(sample))
    }

    fn left(ring: &mut Ring) -> Vec<i64> {
        let left = ring.take();
        assert_eq!(ring.bytes(), 0);
        left.iter().flat_map(|block| block.iter().map(|sample| sample.row.time_ms).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn samples_are_kept_for_a_minute_after_they_were_stored() {
        let start = Instant::now();
        let mut ring = Ring::default();
        for second in 0..4 {
            let second = 20 * second;
            ring.add(kept(second..second + 2, start), start + Duration::from_secs(second.unsigned_abs()));
        }
        let all = ring.bytes();
        ring.trim(usize::MAX, start + Duration::from_secs(79));
        assert_eq!(ring.bytes(), all / 4 * 3);
        assert_eq!(left(&mut ring), [20, 21, 40, 41, 60, 61]);
    }

    #[test]
    fn the_oldest_go_where_there_is_no_room() {
        let now = Instant::now();
        let mut ring = Ring::default();
        ring.add(kept(0..100, now), now);
        let bytes = ring.bytes();
        ring.add(kept(100..200, now), now);
        ring.trim(2 * bytes, now);
        assert_eq!(ring.bytes(), 2 * bytes);
        ring.trim(2 * bytes - 1, now);
        assert_eq!(left(&mut ring), (100..200).collect::<Vec<_>>());
    }
}
