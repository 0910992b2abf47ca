//! What a standby has been sent and may not forget yet. Pure.

use std::collections::VecDeque;

use crate::storage::row::Row;

/// Samples that were acknowledged and that no leader is known to have stored. Bounded in bytes.
#[derive(Debug)]
pub struct Held {
    bytes_max: usize,
    bytes: usize,
    samples: usize,
    /// In order of arrival.
    blocks: VecDeque<Block>,
}

/// Nothing more can be held: the sender is to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The samples of one request: 20 bytes each.
#[derive(Debug)]
struct Block {
    base_ms: i64,
    latest_ms: i64,
    series: Box<[i64]>,
    after_base_ms: Box<[u32]>,
    values: Box<[f64]>,
}

/// Bytes a sample takes: series id, time within its block, value.
const SAMPLE_BYTES: usize = 8 + 4 + 8;

/// The span of times in one block; a request that spans more is split.
const BLOCK_SPAN_MS: i64 = u32::MAX as i64;

impl Held {
    /// Holds nothing, and at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, samples: 0, blocks: VecDeque::new() }
    }

    /// Holds those of `rows` that are later than `watermark_ms`, or all without one.
    ///
    /// # Errors
    ///
    /// [`Full`]; nothing of `rows` is held then.
    pub fn hold(&mut self, rows: &[Row], watermark_ms: Option<i64>) -> Result<(), Full> {
        let newer = |row: &&Row| watermark_ms.is_none_or(|watermark_ms| row.time_ms > watermark_ms);
        let mut rows: Vec<&Row> = rows.iter().filter(newer).collect();
        if rows.is_empty() {
            return Ok(());
        }
        // Usually one block. Far-apart times would not fit a block's offsets.
        rows.sort_by_key(|row| row.time_ms);
        let mut blocks = Vec::new();
        let mut rest = rows.as_slice();
        while let Some(first) = rest.first() {
            let end = rest.partition_point(|row| row.time_ms.saturating_sub(first.time_ms) <= BLOCK_SPAN_MS);
            let (now, later) = rest.split_at(end);
            blocks.push(Block::new(now));
            rest = later;
        }
        let bytes: usize = blocks.iter().map(Block::bytes).sum();
        if self.bytes + bytes > self.bytes_max {
            return Err(Full);
        }
        self.bytes += bytes;
        self.samples += rows.len();
        self.blocks.extend(blocks);
        Ok(())
    }

    /// Forgets what a leader has committed: every block whose last sample is not later than `watermark_ms`.
    pub fn forget(&mut self, watermark_ms: i64) {
        self.blocks.retain(|block| block.latest_ms > watermark_ms);
        self.count();
    }

    /// All that is held, in the order of series and time, none twice.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.samples);
        for block in &self.blocks {
            rows.extend(block.rows());
        }
        crate::storage::row::sort_and_dedup(&mut rows);
        rows
    }

    /// Forgets everything: it is stored.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.blocks.shrink_to_fit();
        self.count();
    }

    /// How many samples are held.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// How many bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The earliest time held, ms since 1970.
    #[must_use]
    pub fn earliest_ms(&self) -> Option<i64> {
        self.blocks.iter().map(|block| block.base_ms).min()
    }

    fn count(&mut self) {
        self.bytes = self.blocks.iter().map(Block::bytes).sum();
        self.samples = self.blocks.iter().map(|block| block.values.len()).sum();
    }
}

impl Block {
    /// `rows` are sorted by time, not empty, and span at most [`BLOCK_SPAN_MS`].
    fn new(rows: &[&Row]) -> Self {
        let base_ms = rows[0].time_ms;
        Self {
            base_ms,
            latest_ms: rows[rows.len() - 1].time_ms,
            series: rows.iter().map(|row| row.series_id).collect(),
            after_base_ms: rows.iter().map(|row| u32::try_from(row.time_ms - base_ms).unwrap_or(u32::MAX)).collect(),
            values: rows.iter().map(|row| row.value).collect(),
        }
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let times = self.after_base_ms.iter().map(|after_ms| self.base_ms + i64::from(*after_ms));
        self.series.iter().zip(times).zip(&self.values).map(|((series_id, time_ms), value)| Row {
            series_id: *series_id,
            time_ms,
            value: *value,
        })
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.values.len() * SAMPLE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(series_id: i64, time_ms: i64) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        Row { series_id, time_ms, value: (series_id * 1_000 + time_ms) as f64 }
    }

    #[test]
    fn a_full_buffer_says_so_and_keeps_what_it_has() {
        let mut held = Held::new(size_of::<Block>() + 2 * SAMPLE_BYTES);
        assert_eq!(held.hold(&[row(1, 1), row(1, 2)], None), Ok(()));
        assert_eq!(held.hold(&[row(1, 3)], None), Err(Full));
        assert_eq!(held.hold(&[row(1, 3)], Some(3)), Ok(()), "what the leader has stored needs no room");
        assert_eq!(held.samples(), 2);
        held.forget(1);
        assert_eq!(held.samples(), 2, "the block still has a newer sample");
        held.forget(2);
        assert_eq!((held.samples(), held.bytes()), (0, 0));
    }

    #[test]
    fn a_held_sample_takes_less_than_24_bytes() {
        let rows: Vec<Row> = (0..2_000).map(|n| row(n, n)).collect();
        let mut held = Held::new(usize::MAX);
        held.hold(&rows, None).unwrap();
        assert!(held.bytes() < 21 * rows.len(), "{} bytes", held.bytes());
    }

    #[test]
    fn times_far_apart_survive() {
        let mut held = Held::new(usize::MAX);
        let times = [-210_866_803_200_000, 0, 1, 9_000_000_000_000];
        let rows: Vec<Row> = times.iter().map(|time_ms| row(1, *time_ms)).collect();
        held.hold(&rows, None).unwrap();
        assert_eq!(held.rows().iter().map(|row| row.time_ms).collect::<Vec<_>>(), times);
    }

    proptest! {
        #[test]
        fn nothing_newer_than_the_watermark_is_ever_forgotten(
            requests in prop::collection::vec(prop::collection::vec((0_i64..20, 0_i64..1_000), 1..20), 1..20),
            watermarks in prop::collection::vec(0_i64..1_000, 1..20),
        ) {
            let mut held = Held::new(usize::MAX);
            let mut sent = Vec::new();
            let mut watermark = i64::MIN;
            for (request, next) in requests.iter().zip(watermarks.iter().cycle()) {
                let rows: Vec<Row> = request.iter().map(|(series_id, time_ms)| row(*series_id, *time_ms)).collect();
                held.hold(&rows, Some(watermark)).unwrap();
                sent.extend(request.iter().copied());
                watermark = watermark.max(*next);
                held.forget(watermark);
                let rows = held.rows();
                let kept: std::collections::HashSet<_> = rows.iter().map(|row| (row.series_id, row.time_ms)).collect();
                prop_assert_eq!(kept.len(), rows.len());
                for sample in &sent {
                    prop_assert!(sample.1 <= watermark || kept.contains(sample));
                }
            }
        }
    }
}
