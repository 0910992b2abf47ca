//! Chunks that a transaction creates. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::model::sample::Value;
use crate::postgres::error::Error;
use crate::storage::chunk::{self, Encoded, histograms};
use crate::storage::row::{Row, is_of_histograms};
use crate::storage::segments::{self, Span};

/// Maximum number of times in a chunk: a query for one moment decodes that many.
const LENGTH_MAX: usize = 1024;

/// Number of times below which a chunk is small and is merged with others. `segments.sql` has an index of small chunks.
pub(super) const SMALL_LENGTH: usize = 64;

/// Bytes of a page for rows and their pointers.
const PAGE_BYTES: usize = 8168;

/// Chunks to be stored, and their statistics.
pub(super) struct ChunkBatch<'a> {
    pub(super) spans: &'a [Span],
    pub(super) chunks: Vec<(Encoded, i16)>,
    pub(super) replaced: usize,
    pub(super) dropped: usize,
    /// Changes of the approximate number of samples, by the upper bound of the segment.
    pub(super) counts: HashMap<i64, i64>,
}

impl<'a> ChunkBatch<'a> {
    pub(super) fn new(spans: &'a [Span]) -> Self {
        Self { spans, chunks: Vec::new(), replaced: 0, dropped: 0, counts: HashMap::new() }
    }

    /// Encodes chunks from a bucket's samples, which are in the order of series and time, without duplicates.
    pub(super) fn encode(&mut self, rows: &[Row]) -> Result<(), Error> {
        let mut by_span: BTreeMap<Span, Vec<&[Row]>> = BTreeMap::new();
        for mut rest in rows.chunk_by(|one, next| one.series_id == next.series_id) {
            while let Some(first) = rest.first() {
                let span = segments::find(self.spans, first.time_ms)
                    .ok_or_else(|| Error::Corrupt(format!("there is no segment for the time {}", first.time_ms)))?;
                let (run, later) = rest.split_at(rest.partition_point(|row| span.contains(row.time_ms)));
                by_span.entry(span).or_default().push(run);
                rest = later;
            }
        }
        for series in by_span.into_values() {
            let (histograms, floats): (Vec<&[Row]>, Vec<&[Row]>) =
                series.into_iter().partition(|rows| is_of_histograms(rows[0].series_id));
            for rows in histograms {
                self.encode_histograms(rows);
            }
            for chunk in chunk::group(floats, LENGTH_MAX) {
                self.count(chunk.times_ms[0], chunk.samples(), 1);
                let length = length(chunk.times_ms.len());
                self.chunks.extend(chunk::encode(&chunk).into_iter().map(|row| (row, length)));
            }
        }
        Ok(())
    }

    fn encode_histograms(&mut self, rows: &[Row]) {
        let values: Vec<(i64, Value)> = rows.iter().map(|row| (row.time_ms, row.value.clone())).collect();
        let mut chunks = histograms::encode(rows[0].series_id, &values, LENGTH_MAX).into_iter().peekable();
        while let Some(encoded) = chunks.next() {
            let before = |time_ms: i64| values.partition_point(|(value_ms, _)| *value_ms < time_ms);
            let times = before(encoded.last_ms + 1) - before(encoded.first_ms);
            self.count(encoded.first_ms, times, 1);
            // What could not be in one chunk with what follows is not small: it would be merged in vain, again and again.
            let counted = if chunks.peek().is_some() { times.max(SMALL_LENGTH) } else { times };
            self.chunks.push((encoded, length(counted)));
        }
    }

    /// Orders the rows so that they fill pages: next comes always the largest row that fits the rest of the page.
    pub(super) fn fill_pages(&mut self) {
        let mut by_size: BTreeMap<(usize, usize), (Encoded, i16)> = BTreeMap::new();
        for (number, chunk) in self.chunks.drain(..).enumerate() {
            by_size.insert((chunk.0.bytes(), number), chunk);
        }
        let mut left = PAGE_BYTES;
        while let Some(largest) = by_size.keys().next_back().copied() {
            let fitting = by_size.range(..=(left, usize::MAX)).next_back().map(|(key, _)| *key);
            let key = fitting.unwrap_or(largest);
            left = if fitting.is_some() { left - key.0 } else { PAGE_BYTES.saturating_sub(key.0) };
            self.chunks.extend(by_size.remove(&key));
        }
    }

    pub(super) fn count(&mut self, time_ms: i64, samples: usize, sign: i64) {
        let samples = i64::try_from(samples).unwrap_or_default();
        if let Some(span) = segments::find(self.spans, time_ms) {
            *self.counts.entry(span.upper_ms).or_default() += sign * samples;
        }
    }
}

/// Returns the column `length` of a chunk.
fn length(times: usize) -> i16 {
    i16::try_from(times).unwrap_or(i16::MAX)
}
