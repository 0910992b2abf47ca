//! Buffer of the samples that an adapter acknowledged for a sender that does not lead. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::storage::row::Row;

/// Acknowledged samples that were not observed to be covered yet. Bounded in bytes.
#[derive(Debug)]
pub struct Buffer {
    bytes_max: usize,
    bytes: usize,
    samples: usize,
    /// In order of arrival.
    blocks: VecDeque<Block>,
}

/// Reason why samples were not buffered: the sender must keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBuffered {
    /// The bound of the memory is reached.
    #[error("this standby can hold no more: the leader is far behind, or -standby-memory-mib is small")]
    Full,
    /// A take-over is in progress, or has ended.
    #[error("this adapter is taking over")]
    Closed,
    /// The database server became another one after the ids of the samples' series were found.
    #[error("the database server was replaced meanwhile")]
    Moved,
}

/// A sample, and what is known of its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Buffered {
    /// The sample.
    pub row: Row,
    /// `true` if an exporter stamped it: its sender had sent newer ones, and it lies between the sender's scrapes.
    pub is_stamped: bool,
    /// Time of arrival.
    pub arrived: Instant,
    /// Key of the request that contained it.
    pub key: Uuid,
}

/// Samples of one request.
#[derive(Debug)]
pub struct Came {
    /// Samples in the order of series and time.
    pub rows: Arc<Vec<Row>>,
    /// [`Buffered::is_stamped`] of each sample.
    pub are_stamped: Vec<bool>,
    /// Time of arrival.
    pub arrived: Instant,
    /// Key of the request.
    pub key: Uuid,
}

impl Came {
    /// Returns its samples.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = Buffered> + Clone {
        let Self { arrived, key, .. } = *self;
        let sample =
            move |(row, is_stamped): (&Row, &bool)| Buffered { row: *row, is_stamped: *is_stamped, arrived, key };
        self.rows.iter().zip(&self.are_stamped).map(sample)
    }
}

/// Decision about a buffered sample, made by [`Sender::look`](crate::handover::sender::Sender::look) by the rule of
/// [`coverage`](crate::handover::coverage).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays in the buffer.
    Keep,
    /// It was observed to be covered: it is dropped.
    Covered,
    /// It is taken out, to be reconciled.
    Due,
}

/// Samples that arrived together: 20 bytes each.
#[derive(Debug)]
pub(super) struct Block {
    arrived: Instant,
    key: Uuid,
    /// Time of the last look at its samples.
    looked_at: Instant,
    base_ms: i64,
    samples: Box<[Packed]>,
}

/// One sample of a block.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
pub(super) struct Packed {
    series_id: i64,
    value: f64,
    /// Milliseconds after [`Block::base_ms`], and the bit [`STAMPED`].
    after_base_ms: u32,
}

/// Bit of a sample that was stamped by an exporter.
const STAMPED: u32 = 1 << 31;

/// Maximum span of the times in one block, 24 days; samples that span more are split.
const BLOCK_SPAN_MS: u32 = STAMPED - 1;

impl Buffer {
    /// Returns an empty buffer of at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, samples: 0, blocks: VecDeque::new() }
    }

    /// Buffers samples that arrived together.
    ///
    /// # Errors
    ///
    /// [`NotBuffered::Full`]; then none of them is buffered.
    pub fn add(&mut self, samples: impl Iterator<Item = Buffered> + Clone) -> Result<(), NotBuffered> {
        let blocks = blocks(samples);
        let bytes: usize = blocks.iter().map(Block::bytes).sum();
        if self.bytes + bytes > self.bytes_max {
            return Err(NotBuffered::Full);
        }
        self.extend(blocks);
        Ok(())
    }

    /// Puts back samples that were taken out and have not become stored, regardless of the bound.
    pub fn put_back(&mut self, samples: &[Buffered]) {
        self.extend(blocks(samples.iter().copied()));
    }

    pub(super) fn extend(&mut self, blocks: Vec<Block>) {
        for block in blocks {
            self.bytes += block.bytes();
            self.samples += block.samples.len();
            self.blocks.push_back(block);
        }
    }

    /// Looks at the samples whose last look is `every` ago or longer: drops the covered ones, and returns the due ones
    /// and the number of covered ones. Ends when about `due_max` samples are due; the next look goes on from there.
    pub fn look(
        &mut self,
        now: Instant,
        every: Duration,
        due_max: usize,
        mut fate: impl FnMut(&Buffered) -> Fate,
    ) -> (usize, Vec<Buffered>) {
        let (mut covered, mut due) = (0, Vec::new());
        let (mut bytes, mut samples) = (0, 0);
        self.blocks.retain_mut(|block| {
            if now.saturating_duration_since(block.looked_at) >= every && due.len() < due_max {
                block.looked_at = now;
                let before = block.samples.len();
                let taken = due.len();
                let mut kept: Vec<Buffered> = Vec::new();
                let mut keeps_all = true;
                for (place, sample) in block.iter().enumerate() {
                    let fate = fate(&sample);
                    if fate != Fate::Keep && keeps_all {
                        keeps_all = false;
                        kept.extend(block.iter().take(place));
                    }
                    match fate {
                        Fate::Keep if keeps_all => {}
                        Fate::Keep => kept.push(sample),
                        Fate::Covered => {}
                        Fate::Due => due.push(sample),
                    }
                }
                if !keeps_all {
                    covered += before - kept.len() - (due.len() - taken);
                    if kept.is_empty() {
                        return false;
                    }
                    let kept = Block::new(block.arrived, block.key, block.base_ms, kept.into_iter());
                    *block = Block { looked_at: now, ..kept };
                }
            }
            bytes += block.bytes();
            samples += block.samples.len();
            true
        });
        (self.bytes, self.samples) = (bytes, samples);
        (covered, due)
    }

    /// Takes out the oldest samples: whole requests, until there are `count` samples or none are left.
    pub fn take(&mut self, count: usize) -> Vec<Buffered> {
        let mut taken: Vec<Buffered> = Vec::new();
        let mut request = None;
        while let Some(next) = self.blocks.front().map(|block| (block.arrived, block.key))
            && (taken.len() < count || request == Some(next))
            && let Some(block) = self.blocks.pop_front()
        {
            request = Some(next);
            self.bytes -= block.bytes();
            self.samples -= block.samples.len();
            taken.extend(block.iter());
        }
        taken
    }

    /// Takes out everything, as a buffer.
    #[must_use]
    pub fn take_all(&mut self) -> Self {
        let bytes_max = self.bytes_max;
        std::mem::replace(self, Self::new(bytes_max))
    }

    /// Returns the number of buffered samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Returns the bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the time of arrival of the oldest block.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.blocks.iter().map(|block| block.arrived).min()
    }
}

/// Splits samples into blocks; usually there is one. A block has one time of arrival, and the offsets of a block cannot
/// express times that are far apart.
fn blocks(samples: impl Iterator<Item = Buffered> + Clone) -> Vec<Block> {
    let Some(first) = samples.clone().next() else { return Vec::new() };
    let came_with = |sample: &Buffered| (sample.arrived, sample.key);
    let (mut from_ms, mut to_ms, mut is_one) = (i64::MAX, i64::MIN, true);
    for sample in samples.clone() {
        (from_ms, to_ms) = (sample.row.time_ms.min(from_ms), sample.row.time_ms.max(to_ms));
        is_one &= came_with(&sample) == came_with(&first);
    }
    let fits = |from_ms: i64, to_ms: i64| to_ms.saturating_sub(from_ms) <= i64::from(BLOCK_SPAN_MS);
    if is_one && fits(from_ms, to_ms) {
        return vec![Block::new(first.arrived, first.key, from_ms, samples)];
    }
    let mut samples: Vec<Buffered> = samples.collect();
    samples.sort_by_key(|sample| (came_with(sample), sample.row.time_ms));
    let mut blocks = Vec::new();
    let mut rest = samples.as_slice();
    while let Some(first) = rest.first() {
        let belongs =
            |sample: &Buffered| came_with(sample) == came_with(first) && fits(first.row.time_ms, sample.row.time_ms);
        let (block, later) = rest.split_at(rest.partition_point(belongs));
        blocks.push(Block::new(first.arrived, first.key, first.row.time_ms, block.iter().copied()));
        rest = later;
    }
    blocks
}

impl Packed {
    /// Returns a base for the time of `sample`, so that the times of other samples may be equally far before and after
    /// it.
    pub(super) fn base_ms(sample: &Buffered) -> i64 {
        sample.row.time_ms.saturating_sub(i64::from(BLOCK_SPAN_MS / 2))
    }

    /// Returns `None` if the time of the sample is not within [`BLOCK_SPAN_MS`] after `base_ms`.
    pub(super) fn new(sample: &Buffered, base_ms: i64) -> Option<Self> {
        let Row { series_id, time_ms, value } = sample.row;
        let after_ms = u32::try_from(time_ms.checked_sub(base_ms)?).ok().filter(|ms| *ms <= BLOCK_SPAN_MS)?;
        let after_base_ms = if sample.is_stamped { after_ms | STAMPED } else { after_ms };
        Some(Self { series_id, value, after_base_ms })
    }
}

impl Block {
    /// Returns a block of `samples`, which arrived together and are within [`BLOCK_SPAN_MS`] after `base_ms`.
    fn new(arrived: Instant, key: Uuid, base_ms: i64, samples: impl Iterator<Item = Buffered>) -> Self {
        let mut packed = Vec::with_capacity(samples.size_hint().0);
        packed.extend(samples.filter_map(|sample| Packed::new(&sample, base_ms)));
        Self::packed(arrived, key, base_ms, packed.into())
    }

    /// Returns a block of samples that are packed already.
    pub(super) fn packed(arrived: Instant, key: Uuid, base_ms: i64, samples: Box<[Packed]>) -> Self {
        Self { arrived, key, looked_at: arrived, base_ms, samples }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Buffered> {
        let unpack = |Packed { series_id, value, after_base_ms }: Packed| Buffered {
            row: Row { series_id, time_ms: self.base_ms + i64::from(after_base_ms & BLOCK_SPAN_MS), value },
            is_stamped: after_base_ms & STAMPED != 0,
            arrived: self.arrived,
            key: self.key,
        };
        self.samples.iter().copied().map(unpack)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.samples)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(series_id: i64, time_ms: i64, arrived: Instant) -> Buffered {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let row = Row { series_id, time_ms, value: (series_id * 1_000 + time_ms) as f64 };
        Buffered { row, is_stamped: time_ms % 3 == 0, arrived, key: Uuid::nil() }
    }

    fn times(samples: &[Buffered]) -> Vec<i64> {
        samples.iter().map(|sample| sample.row.time_ms).collect()
    }

    #[test]
    fn a_request_is_taken_out_whole() {
        let (now, day_ms) = (Instant::now(), 86_400_000);
        let mut buffer = Buffer::new(usize::MAX);
        buffer.add([sample(1, 0, now), sample(1, 40 * day_ms, now)].into_iter()).unwrap();
        buffer.add([sample(1, 1, now + Duration::from_secs(1))].into_iter()).unwrap();
        assert_eq!(buffer.oldest(), Some(now));
        assert_eq!(times(&buffer.take(1)), [0, 40 * day_ms], "what is stored under its key is all of it");
        assert_eq!(buffer.oldest(), Some(now + Duration::from_secs(1)));
        assert_eq!(times(&buffer.take(1)), [1]);
        assert_eq!(buffer.oldest(), None);
    }

    #[test]
    fn a_full_buffer_says_so_and_keeps_what_it_has() {
        let now = Instant::now();
        let mut buffer = Buffer::new(size_of::<Block>() + 2 * size_of::<Packed>());
        assert_eq!(buffer.add([sample(1, 1, now), sample(1, 2, now)].into_iter()), Ok(()));
        assert_eq!(buffer.add([sample(1, 3, now)].into_iter()), Err(NotBuffered::Full));
        let taken = buffer.take(1);
        assert_eq!(times(&taken), [1, 2]);
        assert_eq!((buffer.samples(), buffer.bytes()), (0, 0));
        buffer.put_back(&taken);
        buffer.put_back(&taken);
        assert_eq!(buffer.samples(), 4, "what was acknowledged has room");
    }

    #[test]
    fn a_buffered_sample_takes_20_bytes_and_a_bit() {
        let now = Instant::now();
        let samples: Vec<Buffered> = (0..2_000).map(|n| sample(2 * n, n, now)).collect();
        let mut buffer = Buffer::new(usize::MAX);
        buffer.add(samples.iter().copied()).unwrap();
        assert!((20 * samples.len()..21 * samples.len()).contains(&buffer.bytes()), "{} bytes", buffer.bytes());
    }

    #[test]
    fn samples_are_looked_at_as_often_as_is_asked() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut buffer = Buffer::new(usize::MAX);
        buffer.add([sample(2, 1, start), sample(2, 2, start), sample(2, 3, start)].into_iter()).unwrap();
        assert_eq!(buffer.look(start, second, 9, |_| Fate::Covered).0, 0);
        let fate = |sample: &Buffered| [Fate::Keep, Fate::Covered, Fate::Keep, Fate::Due][sample.row.time_ms as usize];
        let (covered, due) = buffer.look(start + second, second, 9, fate);
        assert_eq!((covered, times(&due), buffer.samples()), (1, vec![3], 1));
        assert_eq!(buffer.look(start + second, second, 9, |_| Fate::Covered).0, 0);
        assert_eq!(buffer.look(start + 2 * second, second, 9, |_| Fate::Covered).0, 1);
        assert_eq!((buffer.samples(), buffer.bytes()), (0, 0));
    }

    #[test]
    fn a_look_ends_with_what_is_due_and_goes_on_from_there() {
        let start = Instant::now();
        let mut buffer = Buffer::new(usize::MAX);
        for n in 0..9 {
            buffer.add([sample(2, n, start), sample(4, n, start)].into_iter()).unwrap();
        }
        let later = start + Duration::from_secs(9);
        let mut due = || times(&buffer.look(later, Duration::from_secs(1), 5, |_| Fate::Due).1);
        assert_eq!([due(), due(), due(), due()].map(|times| times.len()), [6, 6, 6, 0]);
        assert_eq!(buffer.samples(), 0);
    }

    #[test]
    fn times_far_apart_survive() {
        let now = Instant::now();
        let far = [-210_866_803_200_000, 0, 1, 9_000_000_000_000];
        let samples = far.map(|time_ms| sample(2, time_ms, now));
        let mut buffer = Buffer::new(usize::MAX);
        buffer.add(samples.iter().copied()).unwrap();
        let taken = buffer.take(9);
        assert_eq!(times(&taken), far);
        assert!(taken.iter().zip(&samples).all(|(one, other)| one.is_stamped == other.is_stamped));
    }

    proptest! {
        #[test]
        fn a_sample_goes_only_by_its_fate(
            requests in prop::collection::vec(prop::collection::vec((0_i64..9, 0_i64..100), 1..20), 1..9),
            looks in prop::collection::vec((0_i64..3, 0_u64..3), 1..9),
        ) {
            let start = Instant::now();
            let mut buffer = Buffer::new(usize::MAX);
            let mut expected: Vec<(i64, i64)> = Vec::new();
            for (n, request) in (0..).zip(&requests) {
                let samples: Vec<Buffered> =
                    request.iter().map(|(series, time)| sample(*series, *time, start + Duration::from_secs(n))).collect();
                buffer.add(samples.iter().copied()).unwrap();
                expected.extend(request);
            }
            for (rest, seconds) in looks {
                let fate = |sample: &Buffered| match sample.row.time_ms % 3 == rest {
                    true if sample.row.series_id < 5 => Fate::Covered,
                    true => Fate::Due,
                    false => Fate::Keep,
                };
                let before = buffer.samples();
                let (covered, due) = buffer.look(start + Duration::from_secs(20), Duration::from_secs(seconds), usize::MAX, fate);
                prop_assert_eq!(before, buffer.samples() + covered + due.len());
                buffer.put_back(&due);
                let left: Vec<Buffered> = { let left = buffer.take(usize::MAX); buffer.put_back(&left); left };
                expected.retain(|(series, time)| time % 3 != rest || *series >= 5
                    || left.iter().any(|sample| (sample.row.series_id, sample.row.time_ms) == (*series, *time)));
            }
            let mut left: Vec<(i64, i64)> =
                buffer.take(usize::MAX).iter().map(|sample| (sample.row.series_id, sample.row.time_ms)).collect();
            prop_assert_eq!(buffer.bytes(), 0);
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }
}
