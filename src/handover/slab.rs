//! Samples in large allocations, 20 bytes each. An allocation for each request would leave holes between those of
//! requests in progress, which an allocator keeps. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::model::histogram::Numbers;
use crate::model::sample::Value;
use crate::storage::row::Row;

/// A sample, and what is known of its arrival.
#[derive(Clone, Debug)]
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

/// Samples in the order in which they were added.
#[derive(Debug)]
pub(super) struct Slab {
    parts: VecDeque<Part>,
    /// Never grows beyond its capacity. The samples before `start` were taken out.
    samples: Vec<Packed>,
    start: usize,
    /// Most slabs have none.
    histograms: Option<Box<Histograms>>,
}

/// Histograms of the samples with the bit [`HISTOGRAM`].
#[derive(Debug, Default)]
struct Histograms {
    /// Those of samples that were taken out are `None`.
    numbers: Vec<Option<Numbers>>,
    /// Bytes of all of them.
    bytes: usize,
}

/// Samples of a slab that arrived together.
#[derive(Debug)]
struct Part {
    arrived: Instant,
    key: Uuid,
    /// Time of the last look at them.
    looked_at: Instant,
    base_ms: i64,
    /// End of these samples among the slab's samples.
    end: usize,
}

/// One sample of a part.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Packed {
    series_id: i64,
    /// Bits of a float, or the place of a histogram.
    value: u64,
    /// Milliseconds after [`Part::base_ms`], and the bits [`STAMPED`] and [`HISTOGRAM`].
    after_base_ms: u32,
}

/// Bit of a sample that was stamped by an exporter.
const STAMPED: u32 = 1 << 31;

/// Bit of a sample that is a native histogram.
const HISTOGRAM: u32 = 1 << 30;

/// Maximum span of the times in one part, 12 days.
const PART_SPAN_MS: u32 = HISTOGRAM - 1;

/// Bounds of the capacity of a slab, which is an eighth more than the number of samples in the slab before. The upper
/// one takes a mebibyte.
const SAMPLES_MIN: usize = 64;
pub(super) const SAMPLES_MAX: usize = 52_000;

/// Bytes that a sample takes, and a slab and a part beside their samples.
pub(super) const SAMPLE_BYTES: usize = size_of::<Packed>();
pub(super) const SLAB_BYTES: usize = size_of::<Slab>() + size_of::<Part>();

impl Slab {
    /// Returns an empty slab to follow `before`.
    pub(super) fn after(before: Option<&Self>) -> Self {
        let before = before.map_or(0, |before| before.samples.len());
        let capacity = (before + before / 8).clamp(SAMPLES_MIN, SAMPLES_MAX);
        Self { parts: VecDeque::new(), samples: Vec::with_capacity(capacity), start: 0, histograms: None }
    }

    /// Returns `true` if no sample can be added.
    pub(super) fn is_full(&self) -> bool {
        self.samples.len() == self.samples.capacity()
    }

    /// Returns the number of samples.
    pub(super) fn len(&self) -> usize {
        self.samples.len() - self.start
    }

    /// Returns the bytes that the slab takes, apart from what is left of its capacity.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + SAMPLE_BYTES * self.samples.len()
            + size_of::<Part>() * self.parts.len()
            + self.histograms.as_ref().map_or(0, |histograms| histograms.bytes)
    }

    /// Adds a sample to a slab that is not full. Returns the number of additional bytes that the slab takes.
    pub(super) fn push(&mut self, sample: &Buffered) -> usize {
        let is_together = |part: &&mut Part| (part.arrived, part.key) == (sample.arrived, sample.key);
        let histogram_bytes = sample.row.value.bytes();
        let value = match &sample.row.value {
            Value::Float(value) => value.to_bits(),
            Value::Histogram(numbers) => self.histograms.get_or_insert_default().add(numbers.clone()),
        };
        if let Some(part) = self.parts.back_mut().filter(is_together)
            && let Some(packed) = Packed::new(sample, value, part.base_ms)
        {
            self.samples.push(packed);
            part.end = self.samples.len();
            return SAMPLE_BYTES + histogram_bytes;
        }
        // The times of other samples may be equally far before and after it.
        let base_ms = sample.row.time_ms.saturating_sub(i64::from(PART_SPAN_MS / 2));
        self.samples.extend(Packed::new(sample, value, base_ms));
        let Buffered { arrived, key, .. } = *sample;
        self.parts.push_back(Part { arrived, key, looked_at: arrived, base_ms, end: self.samples.len() });
        SAMPLE_BYTES + size_of::<Part>() + histogram_bytes
    }

    /// Returns arrival and request key of the first samples.
    pub(super) fn first(&self) -> Option<(Instant, Uuid)> {
        self.parts.front().map(|part| (part.arrived, part.key))
    }

    /// Returns the time of arrival of the oldest samples.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.parts.iter().map(|part| part.arrived).min()
    }

    /// Takes out the first samples that arrived together.
    pub(super) fn take_first(&mut self) -> impl Iterator<Item = Buffered> {
        let part = self.parts.pop_front();
        let start = self.start;
        self.start = part.as_ref().map_or(start, |part| part.end);
        let Self { samples, histograms, .. } = self;
        let samples = &samples[start..self.start];
        samples.iter().filter_map(move |packed| {
            let value = packed.take_value(histograms.as_deref_mut());
            part.as_ref().map(|part| part.unpack(*packed, value))
        })
    }

    /// Returns the samples.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Buffered> {
        let places = self
            .parts
            .iter()
            .scan(self.start, |start, part| Some((part, std::mem::replace(start, part.end)..part.end)));
        places.flat_map(|(part, places)| {
            self.samples[places].iter().map(|packed| part.unpack(*packed, packed.value(self.histograms.as_deref())))
        })
    }

    /// Looks at the samples whose last look is `every` ago or longer: drops the covered ones and moves the due ones to
    /// `due`. Ends once there are `due_max` of these. Returns the number of covered ones.
    pub(super) fn look(
        &mut self,
        now: Instant,
        every: Duration,
        (due, due_max): (&mut Vec<Buffered>, usize),
        mut fate: impl FnMut(&Buffered) -> Fate,
    ) -> usize {
        let Self { parts, samples, start, histograms } = self;
        let (mut from, mut to, mut covered) = (*start, 0, 0);
        parts.retain_mut(|part| {
            let places = std::mem::replace(&mut from, part.end)..part.end;
            let first = to;
            if now.saturating_duration_since(part.looked_at) >= every && due.len() < due_max {
                part.looked_at = now;
                for place in places {
                    let packed = samples[place];
                    let sample = part.unpack(packed, packed.value(histograms.as_deref()));
                    let fate = fate(&sample);
                    match fate {
                        Fate::Keep => {
                            samples[to] = packed;
                            to += 1;
                        }
                        Fate::Covered => covered += 1,
                        Fate::Due => due.push(sample),
                    }
                    if fate != Fate::Keep {
                        packed.take_value(histograms.as_deref_mut());
                    }
                }
            } else {
                let count = places.len();
                if places.start != to {
                    samples.copy_within(places, to);
                }
                to += count;
            }
            part.end = to;
            to > first
        });
        *start = 0;
        samples.truncate(to);
        // What is taken stays close to what is counted.
        if samples.len() < samples.capacity() / 8 * 7 && from > to {
            samples.shrink_to_fit();
        }
        covered
    }
}

impl Part {
    fn unpack(&self, Packed { series_id, after_base_ms, .. }: Packed, value: Value) -> Buffered {
        Buffered {
            row: Row { series_id, time_ms: self.base_ms + i64::from(after_base_ms & PART_SPAN_MS), value },
            is_stamped: after_base_ms & STAMPED != 0,
            arrived: self.arrived,
            key: self.key,
        }
    }
}

impl Packed {
    /// Returns `None` if the time of the sample is not within [`PART_SPAN_MS`] after `base_ms`.
    fn new(sample: &Buffered, value: u64, base_ms: i64) -> Option<Self> {
        let Row { series_id, time_ms, .. } = sample.row;
        let after_ms = u32::try_from(time_ms.checked_sub(base_ms)?).ok().filter(|ms| *ms <= PART_SPAN_MS)?;
        let stamped = if sample.is_stamped { STAMPED } else { 0 };
        let histogram = if matches!(sample.row.value, Value::Histogram(_)) { HISTOGRAM } else { 0 };
        Some(Self { series_id, value, after_base_ms: after_ms | stamped | histogram })
    }

    /// Returns the value, which may be one of the slab's `histograms`.
    fn value(self, histograms: Option<&Histograms>) -> Value {
        match histograms {
            Some(histograms) if self.after_base_ms & HISTOGRAM != 0 => histograms.get(self.value),
            _ => Value::Float(f64::from_bits(self.value)),
        }
    }

    /// Does the same for a sample that is taken out.
    fn take_value(self, histograms: Option<&mut Histograms>) -> Value {
        match histograms {
            Some(histograms) if self.after_base_ms & HISTOGRAM != 0 => histograms.take(self.value),
            _ => Value::Float(f64::from_bits(self.value)),
        }
    }
}

impl Histograms {
    /// Adds a histogram; returns its place.
    fn add(&mut self, numbers: Numbers) -> u64 {
        self.bytes += numbers.bytes();
        self.numbers.push(Some(numbers));
        self.numbers.len() as u64 - 1
    }

    fn get(&self, place: u64) -> Value {
        let numbers = usize::try_from(place).ok().and_then(|place| self.numbers[place].clone());
        Value::Histogram(numbers.expect("it stays until its sample is taken out"))
    }

    fn take(&mut self, place: u64) -> Value {
        let value = self.get(place);
        self.bytes -= value.bytes();
        usize::try_from(place).into_iter().for_each(|place| self.numbers[place] = None);
        value
    }
}
