//! Buffer of the samples that an adapter acknowledged for a sender that does not lead. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use crate::handover::slab::{Buffered, Fate};
use crate::handover::slab::{SAMPLE_BYTES, SLAB_BYTES, Slab};
use crate::storage::row::Row;

/// Acknowledged samples that were not observed to be covered yet. Bounded in bytes.
#[derive(Debug)]
pub struct Buffer {
    bytes_max: usize,
    bytes: usize,
    samples: usize,
    /// In order of arrival.
    slabs: VecDeque<Slab>,
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
        let sample = move |(row, is_stamped): (&Row, &bool)| Buffered {
            row: row.clone(),
            is_stamped: *is_stamped,
            arrived,
            key,
        };
        self.rows.iter().zip(&self.are_stamped).map(sample)
    }
}

impl Buffer {
    /// Returns an empty buffer of at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, samples: 0, slabs: VecDeque::new() }
    }

    /// Buffers samples that arrived together.
    ///
    /// # Errors
    ///
    /// [`NotBuffered::Full`]; then none of them is buffered.
    pub fn add(&mut self, samples: impl ExactSizeIterator<Item = Buffered> + Clone) -> Result<(), NotBuffered> {
        let histogram_bytes: usize = samples.clone().map(|sample| sample.row.value.bytes()).sum();
        if self.bytes + SLAB_BYTES + SAMPLE_BYTES * samples.len() + histogram_bytes > self.bytes_max {
            return Err(NotBuffered::Full);
        }
        self.push(samples);
        Ok(())
    }

    /// Puts back samples that were taken out and have not become stored, regardless of the bound.
    pub fn put_back(&mut self, samples: &[Buffered]) {
        self.push(samples.iter().cloned());
    }

    fn push(&mut self, samples: impl Iterator<Item = Buffered>) {
        for sample in samples {
            if self.slabs.back().is_none_or(Slab::is_full) {
                self.slabs.push_back(Slab::after(self.slabs.back()));
                self.bytes += self.slabs.back().map_or(0, Slab::bytes);
            }
            if let Some(last) = self.slabs.back_mut() {
                self.bytes += last.push(&sample);
                self.samples += 1;
            }
        }
    }

    pub(super) fn extend(&mut self, slabs: impl Iterator<Item = Slab>) {
        for slab in slabs {
            self.bytes += slab.bytes();
            self.samples += slab.len();
            self.slabs.push_back(slab);
        }
    }

    /// Looks at the samples whose last look is `every` ago or longer: drops the covered ones, and returns the number of
    /// covered ones and the due ones. Ends when about `due_max` samples are due; the next look goes on from there.
    pub fn look(
        &mut self,
        now: Instant,
        every: Duration,
        due_max: usize,
        mut fate: impl FnMut(&Buffered) -> Fate,
    ) -> (usize, Vec<Buffered>) {
        let (mut covered, mut due) = (0, Vec::new());
        let (mut bytes, mut samples) = (0, 0);
        self.slabs.retain_mut(|slab| {
            covered += slab.look(now, every, (&mut due, due_max), &mut fate);
            if slab.len() == 0 {
                return false;
            }
            bytes += slab.bytes();
            samples += slab.len();
            true
        });
        (self.bytes, self.samples) = (bytes, samples);
        (covered, due)
    }

    /// Takes out the oldest samples: whole requests, until there are `count` samples or none are left.
    pub fn take(&mut self, count: usize) -> Vec<Buffered> {
        let mut taken: Vec<Buffered> = Vec::new();
        let mut request = None;
        while let Some(slab) = self.slabs.front_mut()
            && let Some(next) = slab.first()
            && (taken.len() < count || request == Some(next))
        {
            request = Some(next);
            let (before, bytes_before) = (taken.len(), slab.bytes());
            taken.extend(slab.take_first());
            self.samples -= taken.len() - before;
            self.bytes -= bytes_before;
            match slab.len() {
                0 => drop(self.slabs.pop_front()),
                _ => self.bytes += slab.bytes(),
            }
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

    /// Returns the time of arrival of the oldest samples.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.slabs.iter().filter_map(Slab::oldest).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::histogram::Histogram;
    use crate::model::sample::Value;

    fn sample(series_id: i64, time_ms: i64, arrived: Instant) -> Buffered {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let sum = (series_id * 1_000 + time_ms) as f64;
        let value = match series_id % 4 {
            3 => Value::Histogram(Histogram { sum, ..Histogram::default() }.to_numbers()),
            _ => Value::Float(sum),
        };
        Buffered { row: Row { series_id, time_ms, value }, is_stamped: time_ms % 3 == 0, arrived, key: Uuid::nil() }
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
        let mut buffer = Buffer::new(SLAB_BYTES + 2 * SAMPLE_BYTES);
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
        buffer.add(samples.iter().cloned()).unwrap();
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
            let key = Uuid::new_v4();
            buffer.add([2, 4].map(|id| Buffered { key, ..sample(id, n, start) }).into_iter()).unwrap();
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
        buffer.add(samples.iter().cloned()).unwrap();
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
                buffer.add(samples.iter().cloned()).unwrap();
                expected.extend(request);
            }
            for (rest, seconds) in looks {
                let taken = buffer.take(7 * rest.unsigned_abs() as usize);
                buffer.put_back(&taken);
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
            let left = buffer.take(usize::MAX);
            for Buffered { row, .. } in &left {
                prop_assert_eq!(&row.value, &sample(row.series_id, row.time_ms, start).row.value);
            }
            let mut left: Vec<(i64, i64)> = left.iter().map(|sample| (sample.row.series_id, sample.row.time_ms)).collect();
            prop_assert_eq!(buffer.bytes(), 0);
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }
}
