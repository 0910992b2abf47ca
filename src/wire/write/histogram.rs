//! `Histogram`, the message of a native histogram: the same in both versions of remote write, but for its last field.
//!
//! What Prometheus refuses is refused, and so is what it takes although it cannot mean it: indices or sums that overflow, a
//! zero bucket of the other kind. Also refused are integer counts that no float has exactly. Source: Prometheus, `prompb/types.proto` and `model/histogram`.

use std::borrow::Cow;

use crate::model::histogram::{COUNT_MAX, CUSTOM_BUCKETS, Histogram, SCHEMA_MAX, SCHEMA_MIN};
use crate::model::sample::{Value, is_stale};
use crate::wire::protobuf::{DecodeError, Scanner};
use crate::wire::write::{HISTOGRAM_BUCKETS_MAX, HistogramSample, Version};

/// Greatest schema that a sender may use. Those above [`SCHEMA_MAX`] are reserved: a receiver merges their buckets.
const SCHEMA_RESERVED: i32 = 52;

/// Why a histogram can never be stored.
type Reason = &'static str;

const TOO_MANY: Reason = "a histogram with more than 10,000 buckets, spans or custom bounds";
const _: () = assert!(HISTOGRAM_BUCKETS_MAX == 10_000, "the text says so");
const TOO_LARGE: Reason = "a histogram with an integer count of 2^53 or more, which no float has exactly";
const NEGATIVE_OFFSET: Reason = "a histogram with a span of negative offset";
const NEGATIVE_BUCKET: Reason = "a histogram with a bucket of negative count";

/// Decodes a histogram. One that can never be stored is no error: see [`HistogramSample::value`].
///
/// The memory and time that it takes are bounded by the size of the message and by [`HISTOGRAM_BUCKETS_MAX`], whatever
/// numbers stand in it.
///
/// # Errors
///
/// `DecodeError` if it is no such message.
pub(super) fn decode(mut fields: Scanner<'_>, version: Version) -> Result<HistogramSample, DecodeError> {
    let mut raw = Raw::default();
    while let Some(field) = fields.next_field()? {
        match field.number {
            // Of alternatives the last one counts.
            1 => raw.count = Count::Whole(field.int64()?.cast_unsigned()),
            2 => raw.count = Count::Float(field.double()?),
            3 => raw.sum = field.double()?,
            4 => raw.schema = field.sint32()?,
            5 => raw.zero_threshold = field.double()?,
            6 => raw.zero_count = Count::Whole(field.int64()?.cast_unsigned()),
            7 => raw.zero_count = Count::Float(field.double()?),
            8 => raw.negative.spans.push(decode_span(fields.nested(field.bytes()?))?),
            9 => field.sint64s(|delta| raw.negative.deltas.push(delta))?,
            10 => field.doubles(|count| raw.negative.counts.push(count))?,
            11 => raw.positive.spans.push(decode_span(fields.nested(field.bytes()?))?),
            12 => field.sint64s(|delta| raw.positive.deltas.push(delta))?,
            13 => field.doubles(|count| raw.positive.counts.push(count))?,
            14 => raw.reset_hint = field.uint32()?,
            15 => raw.timestamp_ms = field.int64()?,
            16 => field.doubles(|bound| raw.bounds.push(bound))?,
            17 if version == Version::Two => raw.start_ms = field.int64()?,
            _ => {}
        }
    }
    Ok(HistogramSample { timestamp_ms: raw.timestamp_ms, value: raw.value() })
}

fn decode_span(mut fields: Scanner<'_>) -> Result<Span, DecodeError> {
    let mut span = Span::default();
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => span.offset = field.sint32()?,
            2 => span.length = field.uint32()?,
            _ => {}
        }
    }
    Ok(span)
}

/// The fields of the message.
#[derive(Default)]
struct Raw {
    /// Its kind is that of the histogram.
    count: Count,
    zero_count: Count,
    sum: f64,
    schema: i32,
    zero_threshold: f64,
    negative: Side,
    positive: Side,
    reset_hint: u32,
    timestamp_ms: i64,
    bounds: Capped<f64>,
    start_ms: i64,
}

#[derive(Clone, Copy)]
enum Count {
    Whole(u64),
    Float(f64),
}

impl Default for Count {
    fn default() -> Self {
        Self::Whole(0)
    }
}

/// Buckets of one sign. They are listed as deltas or as counts, by the kind of the histogram.
#[derive(Default)]
struct Side {
    spans: Capped<Span>,
    deltas: Capped<i64>,
    counts: Capped<f64>,
}

/// Neighbouring buckets: the distance from the end of the span before, and their number. Any numbers may stand here.
#[derive(Clone, Copy, Default)]
struct Span {
    offset: i32,
    length: u32,
}

/// Values of a repeated field: as many as are allowed, and one more.
#[derive(Default)]
struct Capped<T>(Vec<T>);

impl<T> Capped<T> {
    fn push(&mut self, value: T) {
        if !self.is_over() {
            self.0.push(value);
        }
    }

    fn is_over(&self) -> bool {
        self.0.len() > HISTOGRAM_BUCKETS_MAX
    }
}

impl Side {
    fn is_over(&self) -> bool {
        self.spans.is_over() || self.deltas.is_over() || self.counts.is_over()
    }
}

/// Counts of a histogram, of buckets without their places.
struct Counts<'a> {
    count: f64,
    zero_count: f64,
    positive: Cow<'a, [f64]>,
    negative: Cow<'a, [f64]>,
}

impl Raw {
    /// Returns what is stored.
    fn value(&self) -> Result<Value, Reason> {
        if is_stale(self.sum) {
            return Ok(Value::Float(self.sum));
        }
        if self.positive.is_over() || self.negative.is_over() || self.bounds.is_over() {
            return Err(TOO_MANY);
        }
        let is_custom = self.schema == i32::from(CUSTOM_BUCKETS);
        let exponential = i32::from(SCHEMA_MIN)..=SCHEMA_RESERVED;
        if !is_custom && !exponential.contains(&self.schema) {
            return Err("a histogram of an unknown schema: known are -4 to 52, and -53 for custom buckets");
        }
        // Each schema above the greatest one that is stored halves the width of the buckets.
        let (schema, merged) = match i8::try_from(self.schema) {
            Ok(schema @ ..=SCHEMA_MAX) => (schema, 0),
            _ => (SCHEMA_MAX, self.schema - i32::from(SCHEMA_MAX)),
        };
        let (is_float, counts) = match self.count {
            Count::Whole(count) => (false, self.whole_counts(count)?),
            Count::Float(count) => (true, self.float_counts(count)?),
        };
        if counts.positive.len() + counts.negative.len() > HISTOGRAM_BUCKETS_MAX {
            return Err(TOO_MANY);
        }
        if is_custom {
            self.check_custom(&counts)?;
        } else if !self.bounds.0.is_empty() {
            return Err("a histogram with custom bounds whose schema is not that of custom buckets (-53)");
        }
        let histogram = Histogram {
            schema,
            is_float,
            reset_hint: u8::try_from(self.reset_hint).ok().filter(|hint| *hint <= 3).unwrap_or(0),
            // A time that no float has exactly is no time at which anything started.
            start_ms: if self.start_ms.unsigned_abs() < COUNT_MAX { self.start_ms } else { 0 },
            zero_threshold: without_sign_of_zero(self.zero_threshold),
            zero_count: without_sign_of_zero(counts.zero_count),
            count: without_sign_of_zero(counts.count),
            sum: self.sum,
            bounds: self.bounds.0.clone(),
            positive: place(&self.positive.spans.0, &counts.positive, merged)?,
            negative: place(&self.negative.spans.0, &counts.negative, merged)?,
        };
        Ok(Value::Histogram(histogram.to_numbers()))
    }

    /// Checks the counts of an integer histogram: none is negative, and the buckets add up to `count`.
    fn whole_counts(&self, count: u64) -> Result<Counts<'_>, Reason> {
        let zero_count = match self.zero_count {
            Count::Whole(count) => count,
            Count::Float(0.0) => 0,
            Count::Float(_) => return Err("an integer histogram whose zero bucket has a float count"),
        };
        let (positive, of_positive) = add_up(&self.positive.deltas.0)?;
        let (negative, of_negative) = add_up(&self.negative.deltas.0)?;
        let in_buckets = of_positive.saturating_add(of_negative).saturating_add(zero_count);
        // A NaN that was observed is in no bucket, and makes the sum NaN.
        if in_buckets > count || in_buckets < count && !self.sum.is_nan() {
            return Err("a histogram whose buckets do not add up to its count");
        }
        if count >= COUNT_MAX {
            return Err(TOO_LARGE);
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^53, as no bucket has more than all of them")]
        Ok(Counts {
            count: count as f64,
            zero_count: zero_count as f64,
            positive: positive.into(),
            negative: negative.into(),
        })
    }

    /// Checks the counts of a float histogram: none is negative. They may be NaN or infinite, and need not add up.
    fn float_counts(&self, count: f64) -> Result<Counts<'_>, Reason> {
        let zero_count = match self.zero_count {
            Count::Float(count) => count,
            Count::Whole(0) => 0.0,
            Count::Whole(_) => return Err("a float histogram whose zero bucket has an integer count"),
        };
        let (positive, negative) = (&self.positive.counts.0, &self.negative.counts.0);
        if count < 0.0 {
            return Err("a histogram with a negative count");
        }
        if zero_count < 0.0 || positive.iter().chain(negative).any(|count| *count < 0.0) {
            return Err(NEGATIVE_BUCKET);
        }
        Ok(Counts { count, zero_count, positive: positive.into(), negative: negative.into() })
    }

    /// Checks what must hold of custom buckets.
    fn check_custom(&self, counts: &Counts<'_>) -> Result<(), Reason> {
        let bounds = &self.bounds.0;
        // The bound of the last bucket is +Inf without being listed; -Inf is allowed.
        if bounds.iter().any(|bound| bound.is_nan() || *bound == f64::INFINITY) {
            return Err("a histogram with a custom bound that is NaN or +Inf");
        }
        if !bounds.is_sorted_by(|one, next| one < next) {
            return Err("a histogram whose custom bounds do not ascend");
        }
        // A NaN is refused too.
        if counts.zero_count != 0.0 || self.zero_threshold != 0.0 {
            return Err("a histogram with custom buckets and a zero bucket");
        }
        if !self.negative.spans.0.is_empty() || !counts.negative.is_empty() {
            return Err("a histogram with custom buckets and negative ones");
        }
        let spans = &self.positive.spans.0;
        if spans.iter().any(|span| span.offset < 0) {
            return Err(NEGATIVE_OFFSET);
        }
        // The last bucket has no bound. At most 10,000 spans of less than 2^33 each do not overflow.
        let end: i64 = spans.iter().map(|span| i64::from(span.offset) + i64::from(span.length)).sum();
        if usize::try_from(end).is_ok_and(|end| end <= bounds.len() + 1) {
            Ok(())
        } else {
            Err("a histogram with fewer custom bounds than its buckets need")
        }
    }
}

/// Returns the counts of buckets of which each is listed as the difference to the one before, and their sum.
fn add_up(deltas: &[i64]) -> Result<(Vec<f64>, u64), Reason> {
    let (mut count, mut sum) = (0_i64, 0_u64);
    let mut counts = Vec::with_capacity(deltas.len());
    for delta in deltas {
        // Only upwards can it overflow: what was there is not negative.
        count = count.checked_add(*delta).ok_or(TOO_LARGE)?;
        let whole = u64::try_from(count).map_err(|_| NEGATIVE_BUCKET)?;
        sum = sum.saturating_add(whole);
        #[expect(clippy::cast_precision_loss, reason = "if it is not exact, the sum is too large")]
        counts.push(whole as f64);
    }
    Ok((counts, sum))
}

/// Gives the counts of buckets the indices that the spans say, leaves out those of zero, and merges `2^merged` neighbours
/// into one.
fn place(spans: &[Span], counts: &[f64], merged: i32) -> Result<Vec<(i32, f64)>, Reason> {
    // No number that stands in a span is trusted with a loop before this.
    if spans.iter().map(|span| u64::from(span.length)).sum::<u64>() != counts.len() as u64 {
        return Err("a histogram whose spans have another number of buckets than it has");
    }
    if spans.iter().skip(1).any(|span| span.offset < 0) {
        return Err(NEGATIVE_OFFSET);
    }
    let mut buckets: Vec<(i32, f64)> = Vec::with_capacity(counts.len());
    let (mut counts, mut next) = (counts.iter(), 0_i64);
    for span in spans {
        next += i64::from(span.offset);
        for (index, count) in (next..).zip(counts.by_ref().take(span.length as usize)) {
            // A bucket includes its upper bound, so the last of the merged ones has the index that is a multiple.
            let index = ((index - 1) >> merged) + 1;
            let index = i32::try_from(index).map_err(|_| "a histogram with the index of a bucket beyond 32 bits")?;
            if *count == 0.0 {
                continue;
            }
            match buckets.last_mut() {
                Some((last, sum)) if *last == index => *sum += count,
                _ => buckets.push((index, *count)),
            }
        }
        next += i64::from(span.length);
    }
    Ok(buckets)
}

/// Returns 0 for -0, which compares as equal and has other bits, and any other number as it is.
fn without_sign_of_zero(number: f64) -> f64 {
    if number == 0.0 { 0.0 } else { number }
}

#[cfg(test)]
pub(super) mod tests;
