//! What a standby has been sent and may not forget yet. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::storage::gaps::{Hole, in_hole};
use crate::storage::row::{Row, sort_and_dedup};

/// Samples that were acknowledged and that no leader is known to have stored. Bounded in bytes.
#[derive(Debug)]
pub struct Held {
    /// While its content is being stored nothing may be added: it would be forgotten unstored.
    closed: bool,
    bytes_max: usize,
    bytes: usize,
    samples: usize,
    /// In order of arrival.
    blocks: VecDeque<Block>,
    /// A leader is past it, and may never have been sent it.
    doubtful: VecDeque<Block>,
}

/// Nothing more can be held: the sender is to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound is reached.
    #[error("this standby can hold no more: the leader is far behind, or -standby-memory-mib is small")]
    Full,
    /// A take-over is under way.
    #[error("this adapter is taking over")]
    Closed,
}

/// The samples of one request, by time: 20 bytes each.
#[derive(Debug)]
struct Block {
    /// The request's.
    key: Uuid,
    /// When it came, or came to be in doubt.
    arrived: Instant,
    base_ms: i64,
    latest_ms: i64,
    series: Box<[i64]>,
    after_base_ms: Box<[u32]>,
    values: Box<[f64]>,
}

/// What arrived is held for so long at least, whatever its time: an exporter may well give its samples the time of ten
/// minutes ago, and a watermark says nothing of those.
pub const HELD_AT_LEAST: Duration = Duration::from_secs(30);

/// Bytes a sample takes: series id, time within its block, value.
const SAMPLE_BYTES: usize = 8 + 4 + 8;

/// The span of times in one block; a request that spans more is split.
const BLOCK_SPAN_MS: i64 = u32::MAX as i64;

impl Held {
    /// Holds nothing, and at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { closed: false, bytes_max, bytes: 0, samples: 0, blocks: VecDeque::new(), doubtful: VecDeque::new() }
    }

    /// Holds `rows` of the request `key`, which arrived at `now`.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; nothing of `rows` is held then.
    pub fn hold(&mut self, key: Uuid, rows: &[Row], now: Instant) -> Result<(), Refusal> {
        if self.closed {
            return Err(Refusal::Closed);
        }
        let blocks = blocks(key, rows, now);
        let bytes: usize = blocks.iter().map(Block::bytes).sum();
        if self.bytes + bytes > self.bytes_max {
            return Err(Refusal::Full);
        }
        self.bytes += bytes;
        self.samples += rows.len();
        self.blocks.extend(blocks);
        Ok(())
    }

    /// Holds apart what of `rows` lies in one of `holes` and would else be forgotten, whether or not
    /// [there is room](Held::has_room).
    pub fn doubt(&mut self, rows: &[Row], holes: &[Hole], now: Instant) {
        let rows: Vec<Row> = rows.iter().filter(|row| in_hole(holes, row)).copied().collect();
        self.doubtful.extend(blocks(Uuid::nil(), &rows, now));
        self.count();
    }

    /// Whether more may be held in doubt: within the bound, or one request, so that however small it is all goes on.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.doubtful.is_empty() || self.bytes < self.bytes_max
    }

    /// Takes out about `count` samples that have been in doubt since before `until`, the earliest first, in the order of
    /// series and time, none twice.
    pub fn take_doubtful(&mut self, count: usize, until: Instant) -> Vec<Row> {
        let mut rows = Vec::new();
        while rows.len() < count && self.doubtful.front().is_some_and(|block| block.arrived <= until) {
            rows.extend(self.doubtful.pop_front().iter().flat_map(Block::rows));
        }
        self.count();
        sort_and_dedup(&mut rows);
        rows
    }

    /// By series id, the time of the first sample held, in doubt or not, after the last of `rows`, which are in order.
    #[must_use]
    pub fn next_times(&self, rows: &[Row]) -> HashMap<i64, i64> {
        let lasts: HashMap<i64, i64> = rows.iter().map(|row| (row.series_id, row.time_ms)).collect();
        let mut next = HashMap::new();
        for row in self.blocks.iter().chain(&self.doubtful).flat_map(Block::rows) {
            if lasts.get(&row.series_id).is_some_and(|last_ms| row.time_ms > *last_ms) {
                let next_ms = next.entry(row.series_id).or_insert(row.time_ms);
                *next_ms = row.time_ms.min(*next_ms);
            }
        }
        next
    }

    /// Forgets what a leader has committed: what is not later than `watermark_ms` and arrived [`HELD_AT_LEAST`] ago. What
    /// of it lies in one of `holes` is in doubt at once.
    pub fn forget(&mut self, watermark_ms: i64, holes: &[Hole], now: Instant) {
        let doubtful = &mut self.doubtful;
        self.blocks.retain_mut(|block| {
            let passed_ms = block.latest_ms.min(watermark_ms);
            if holes.iter().any(|hole| hole.meets(block.base_ms, passed_ms)) {
                let in_doubt = |row: &Row| row.time_ms <= watermark_ms && in_hole(holes, row);
                let (passed, rest): (Vec<Row>, Vec<Row>) = block.rows().partition(in_doubt);
                if !passed.is_empty() {
                    doubtful.extend(blocks(block.key, &passed, now));
                    let Some(rest) = blocks(block.key, &rest, block.arrived).pop() else { return false };
                    *block = rest;
                }
            }
            if now.saturating_duration_since(block.arrived) < HELD_AT_LEAST {
                return true;
            }
            if block.latest_ms > watermark_ms {
                block.forget(watermark_ms);
                return true;
            }
            false
        });
        self.count();
    }

    /// Refuses everything until [`Held::open`]: what is held is being stored.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Takes samples again.
    pub fn open(&mut self) {
        self.closed = false;
    }

    /// All that is held and not in doubt, in the order of series and time, none twice.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.samples);
        for block in &self.blocks {
            rows.extend(block.rows());
        }
        sort_and_dedup(&mut rows);
        rows
    }

    /// The same by the key of the request, a retried one once.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<Uuid, Vec<Row>> {
        let mut requests: BTreeMap<Uuid, Vec<Row>> = BTreeMap::new();
        for block in &self.blocks {
            requests.entry(block.key).or_default().extend(block.rows());
        }
        for rows in requests.values_mut() {
            sort_and_dedup(rows);
        }
        requests
    }

    /// The time of the earliest sample that is held and not in doubt.
    #[must_use]
    pub fn earliest_ms(&self) -> Option<i64> {
        self.blocks.iter().map(|block| block.base_ms).min()
    }

    /// Whether everything held is in doubt, or not later than `watermark_ms`.
    #[must_use]
    pub fn is_passed(&self, watermark_ms: Option<i64>) -> bool {
        self.blocks.iter().all(|block| Some(block.latest_ms) <= watermark_ms)
    }

    /// Forgets everything but what is in doubt: it is stored.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.blocks.shrink_to_fit();
        self.count();
    }

    /// All that is in doubt.
    pub fn doubtful(&self) -> impl Iterator<Item = Row> {
        self.doubtful.iter().flat_map(Block::rows)
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

    fn count(&mut self) {
        let blocks = || self.blocks.iter().chain(&self.doubtful);
        self.bytes = blocks().map(Block::bytes).sum();
        self.samples = blocks().map(|block| block.values.len()).sum();
    }
}

/// Usually one block. Far-apart times would not fit a block's offsets.
fn blocks(key: Uuid, rows: &[Row], arrived: Instant) -> Vec<Block> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| row.time_ms);
    let mut blocks = Vec::new();
    let mut rest = rows.as_slice();
    while let Some(first) = rest.first() {
        let end = rest.partition_point(|row| row.time_ms.saturating_sub(first.time_ms) <= BLOCK_SPAN_MS);
        let (block, later) = rest.split_at(end);
        blocks.push(Block::new(key, block, arrived));
        rest = later;
    }
    blocks
}

impl Block {
    /// `rows` are sorted by time, not empty, and span at most [`BLOCK_SPAN_MS`].
    fn new(key: Uuid, rows: &[&Row], arrived: Instant) -> Self {
        let base_ms = rows[0].time_ms;
        Self {
            key,
            arrived,
            base_ms,
            latest_ms: rows[rows.len() - 1].time_ms,
            series: rows.iter().map(|row| row.series_id).collect(),
            after_base_ms: rows.iter().map(|row| u32::try_from(row.time_ms - base_ms).unwrap_or(u32::MAX)).collect(),
            values: rows.iter().map(|row| row.value).collect(),
        }
    }

    /// Lets go of its samples up to `watermark_ms`, once they are half of it.
    fn forget(&mut self, watermark_ms: i64) {
        let after_ms = watermark_ms.saturating_sub(self.base_ms);
        let done = self.after_base_ms.partition_point(|at_ms| i64::from(*at_ms) <= after_ms);
        if done * 2 >= self.values.len() {
            self.series = self.series[done..].into();
            self.after_base_ms = self.after_base_ms[done..].into();
            self.values = self.values[done..].into();
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
        let now = Instant::now();
        let mut held = Held::new(size_of::<Block>() + 2 * SAMPLE_BYTES);
        assert_eq!(held.hold(Uuid::nil(), &[row(1, 1), row(1, 2)], now), Ok(()));
        assert_eq!(held.hold(Uuid::nil(), &[row(1, 3)], now), Err(Refusal::Full));
        assert_eq!(held.samples(), 2);
        held.forget(2, &[], now);
        assert_eq!(held.samples(), 2, "it has only just arrived");
        held.forget(0, &[], now + HELD_AT_LEAST);
        assert_eq!(held.samples(), 2, "the leader is behind it");
        held.forget(1, &[], now + HELD_AT_LEAST);
        assert_eq!(held.rows().iter().map(|row| row.time_ms).collect::<Vec<_>>(), [2]);
        held.forget(2, &[], now + HELD_AT_LEAST);
        assert_eq!((held.samples(), held.bytes()), (0, 0));
    }

    #[test]
    fn while_it_is_stored_nothing_is_added() {
        let mut held = Held::new(usize::MAX);
        held.hold(Uuid::nil(), &[row(1, 1)], Instant::now()).unwrap();
        held.close();
        assert_eq!(held.hold(Uuid::nil(), &[row(1, 2)], Instant::now()), Err(Refusal::Closed));
        held.clear();
        held.open();
        assert_eq!(held.hold(Uuid::nil(), &[row(1, 2)], Instant::now()), Ok(()));
    }

    #[test]
    fn a_held_sample_takes_less_than_24_bytes() {
        let rows: Vec<Row> = (0..2_000).map(|n| row(n, n)).collect();
        let mut held = Held::new(usize::MAX);
        held.hold(Uuid::nil(), &rows, Instant::now()).unwrap();
        assert!(held.bytes() < 21 * rows.len(), "{} bytes", held.bytes());
    }

    #[test]
    fn what_lies_in_a_hole_is_held_apart_once_the_watermark_is_past_it() {
        let now = Instant::now();
        let holes = [Hole { lower_ms: 10, upper_ms: 20 }];
        let mut held = Held::new(usize::MAX);
        held.hold(Uuid::nil(), &[row(1, 9), row(1, 10), row(2, 15), row(1, 20), row(1, 21)], now).unwrap();
        held.forget(15, &holes, now);
        assert_eq!(held.samples(), 5, "nothing is forgotten");
        assert_eq!(held.rows().iter().map(|row| row.time_ms).collect::<Vec<_>>(), [9, 20, 21]);
        held.clear();
        assert_eq!(held.take_doubtful(9, now).iter().map(|row| row.time_ms).collect::<Vec<_>>(), [10, 15]);
        assert_eq!((held.samples(), held.bytes()), (0, 0));
        held.doubt(&[row(1, 9), row(1, 12)], &holes, now);
        assert_eq!(held.take_doubtful(9, now).len(), 1, "outside of a hole nothing is in doubt");
    }

    #[test]
    fn times_far_apart_survive() {
        let mut held = Held::new(usize::MAX);
        let times = [-210_866_803_200_000, 0, 1, 9_000_000_000_000];
        let rows: Vec<Row> = times.iter().map(|time_ms| row(1, *time_ms)).collect();
        held.hold(Uuid::nil(), &rows, Instant::now()).unwrap();
        assert_eq!(held.rows().iter().map(|row| row.time_ms).collect::<Vec<_>>(), times);
    }

    proptest! {
        #[test]
        fn nothing_newer_than_the_watermark_is_ever_forgotten(
            requests in prop::collection::vec(prop::collection::vec((0_i64..20, 0_i64..1_000), 1..20), 1..20),
            watermarks in prop::collection::vec(0_i64..1_000, 1..20),
        ) {
            let start = Instant::now();
            let mut held = Held::new(usize::MAX);
            let mut sent = Vec::new();
            for (second, (request, watermark)) in (0_u64..).zip(requests.iter().zip(watermarks.iter().cycle())) {
                let now = start + Duration::from_secs(10 * second);
                let rows: Vec<Row> = request.iter().map(|(series_id, time_ms)| row(*series_id, *time_ms)).collect();
                held.hold(Uuid::nil(), &rows, now).unwrap();
                sent.extend(request.iter().map(|sample| (now, *sample)));
                held.forget(*watermark, &[], now);
                sent.retain(|(arrived, sample)| sample.1 > *watermark || now - *arrived < HELD_AT_LEAST);
                let rows = held.rows();
                let kept: std::collections::HashSet<_> = rows.iter().map(|row| (row.series_id, row.time_ms)).collect();
                prop_assert_eq!(kept.len(), rows.len());
                for (_, sample) in &sent {
                    prop_assert!(kept.contains(sample));
                }
            }
        }
    }
}
